#include "component.h"

#include "json.h"
#include "utf8.h"

Status component_type(const cJSON *part, const char *kind, const char *what, const char **type) {
    const cJSON *item = json_get(part, "type");
    if (!cJSON_IsString(item))
        return fail(ERR_FORMAT, "%s: a %s without a type", what, kind);
    *type = item->valuestring;
    return OK;
}

Status component_keys(const cJSON *part, const char *known, const char *what) {
    const cJSON *item;
    cJSON_ArrayForEach(item, part) {
        size_t n = strlen(item->string);
        const char *at = strcmp(item->string, "type") ? known : NULL;
        while (at && *at && !(strncmp(at, item->string, n) == 0 && (at[n] == ' ' || at[n] == 0))) {
            at = strchr(at, ' ');
            at = at ? at + 1 : "";
        }
        if (at && !*at)
            return fail(ERR_UNSUPPORTED, "%s: %s has an unknown setting '%s'", what, component_text(part, "type", "a part"),
                        item->string);
    }
    return OK;
}

int component_flag(const cJSON *part, const char *key, int fallback) {
    const cJSON *item = json_get(part, key);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : fallback;
}

const char *component_text(const cJSON *part, const char *key, const char *fallback) {
    const cJSON *item = json_get(part, key);
    return cJSON_IsString(item) ? item->valuestring : fallback;
}

Status pattern_load(const cJSON *item, const char *what, Pattern *out) {
    const cJSON *literal = json_get(item, "String"), *regex = json_get(item, "Regex");
    *out = (Pattern){0};
    if (cJSON_IsString(regex))
        return regex_compile(regex->valuestring, strlen(regex->valuestring), what, &out->regex);
    if (!cJSON_IsString(literal))
        return fail(ERR_FORMAT, "%s: a pattern is neither a String nor a Regex", what);
    out->length = strlen(literal->valuestring);
    if (!out->length)
        return fail(ERR_UNSUPPORTED, "%s: an empty pattern", what);
    out->literal = strdup(literal->valuestring);
    return out->literal ? OK : fail(ERR_MEMORY, "no memory for a pattern");
}

static Status find(const Pattern *p, const char *text, size_t n, size_t from, int *found, size_t *start, size_t *end) {
    if (p->regex)
        return regex_find(p->regex, text, n, from, found, start, end);
    const char *at = p->length ? memmem(text + from, n - from, p->literal, p->length) : NULL;
    *found = at != NULL;
    if (at) {
        *start = (size_t)(at - text);
        *end = *start + p->length;
    }
    return OK;
}

Status pattern_next(const Pattern *p, const char *text, size_t n, Match *m, int *found) {
    *found = 0;
    while (m->from <= n) {
        size_t start = 0, end = 0;
        Status status = find(p, text, n, m->from, found, &start, &end);
        if (status != OK || !*found)
            return status;
        int follows = start == end && m->any && m->end == end;
        m->from = !follows ? end : m->from < n ? m->from + (size_t)utf8_length(text[m->from]) : n + 1;
        if (follows)
            continue;
        m->start = start, m->end = end, m->any = 1;
        return OK;
    }
    *found = 0;
    return OK;
}

void pattern_free(Pattern *p) {
    free(p->literal);
    regex_free(p->regex);
    *p = (Pattern){0};
}
