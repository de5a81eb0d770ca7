#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

enum { MAX_NESTING = 64 };

/* Length of the well-formed UTF-8 sequence at p (RFC 3629: no surrogates, no overlong forms), 0 if there is none. */
static size_t utf8_length(const unsigned char *p, size_t left) {
    static const struct { unsigned char low, high, first_low, first_high, length; } forms[] = {
        {0x00, 0x7f, 0, 0, 1}, {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3},
        {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4},
        {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        if (*p < forms[f].low || *p > forms[f].high)
            continue;
        if (forms[f].length > left)
            return 0;
        if (forms[f].length > 1 && (p[1] < forms[f].first_low || p[1] > forms[f].first_high))
            return 0;
        for (size_t i = 2; i < forms[f].length; i++)
            if (p[i] < 0x80 || p[i] > 0xbf)
                return 0;
        return forms[f].length;
    }
    return 0;
}

static int hex4(const char *p) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* A \u escape at `p`, which points behind the u: its length behind the backslash, or 0 with a message. */
static size_t check_escape(const char *p, size_t left, const char *what, size_t at) {
    int code = left >= 4 ? hex4(p) : -1;
    if (code < 0)
        return fail(ERR_FORMAT, "%s: byte %zu: \\u wants four hexadecimal digits", what, at), 0;
    if (code == 0)
        return fail(ERR_FORMAT, "%s: byte %zu: \\u0000 is not accepted", what, at), 0;
    if (code >= 0xd800 && code <= 0xdbff) {
        int low = left >= 10 && p[4] == '\\' && p[5] == 'u' ? hex4(p + 6) : -1;
        if (low < 0xdc00 || low > 0xdfff)
            return fail(ERR_FORMAT, "%s: byte %zu: half of a surrogate pair", what, at), 0;
        return 11;
    }
    if (code >= 0xdc00 && code <= 0xdfff)
        return fail(ERR_FORMAT, "%s: byte %zu: half of a surrogate pair", what, at), 0;
    return 5;
}

/* What cJSON does not look at: encoding, NUL, control characters in strings, escapes, and depth. */
static Status scan(const char *text, size_t length, const char *what) {
    int in_string = 0, depth = 0;
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)text[i];
        if (c == 0)
            return fail(ERR_FORMAT, "%s: byte %zu: a NUL byte", what, i);
        size_t n = utf8_length((const unsigned char *)text + i, length - i);
        if (!n)
            return fail(ERR_FORMAT, "%s: byte %zu: not valid UTF-8", what, i);
        if (in_string && c < 0x20)
            return fail(ERR_FORMAT, "%s: byte %zu: a control character within a string", what, i);
        if (in_string && c == '\\') {
            if (i + 1 < length && text[i + 1] == 'u') {
                n = check_escape(text + i + 2, length - i - 2, what, i);
                if (!n)
                    return ERR_FORMAT;
                i += n + 1;
            } else {
                i += 2;
            }
            continue;
        }
        if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '{' || c == '[') && ++depth > MAX_NESTING)
            return fail(ERR_FORMAT, "%s: byte %zu: nested deeper than %d", what, i, MAX_NESTING);
        else if (!in_string && (c == '}' || c == ']'))
            depth--;
        i += n;
    }
    return OK;
}

static int by_name(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static Status check_keys(const cJSON *object, const char *what) {
    size_t count = 0;
    for (const cJSON *c = object->child; c; c = c->next)
        count++;
    if (count < 2)
        return OK;
    const char **names = malloc(count * sizeof *names);
    if (!names)
        return fail(ERR_MEMORY, "%s: out of memory", what);
    size_t i = 0;
    for (const cJSON *c = object->child; c; c = c->next)
        names[i++] = c->string;
    qsort(names, count, sizeof *names, by_name);
    Status status = OK;
    for (i = 1; i < count && status == OK; i++)
        if (!strcmp(names[i - 1], names[i]))
            status = fail(ERR_FORMAT, "%s: the key '%.200s' appears twice in one object", what, names[i]);
    free(names);
    return status;
}

/* Recursion is bounded: scan() has limited the depth. */
static Status check_values(const cJSON *item, const char *what) {
    if (cJSON_IsNumber(item) && !isfinite(item->valuedouble))
        return fail(ERR_FORMAT, "%s: a number too large to hold", what);
    Status status = cJSON_IsObject(item) ? check_keys(item, what) : OK;
    for (const cJSON *c = item->child; c && status == OK; c = c->next)
        status = check_values(c, what);
    return status;
}

Status json_parse(const char *text, size_t length, const char *what, cJSON **out) {
    *out = NULL;
    Status status = scan(text, length, what);
    if (status != OK)
        return status;
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, length, &end, 0);
    if (!root) {
        size_t at = end && end >= text ? (size_t)(end - text) : 0;
        return fail(ERR_FORMAT, "%s: not valid JSON near byte %zu", what, at);
    }
    while (end < text + length && (*end == ' ' || *end == '\t' || *end == '\n' || *end == '\r'))
        end++;
    if (end != text + length)
        status = fail(ERR_FORMAT, "%s: byte %zu: text after the end of the JSON value", what, (size_t)(end - text));
    else
        status = check_values(root, what);
    if (status != OK) {
        cJSON_Delete(root);
        return status;
    }
    *out = root;
    return OK;
}

Status json_read(const char *path, size_t limit, cJSON **out) {
    char *text;
    size_t length;
    *out = NULL;
    Status status = file_read(path, limit, &text, &length);
    if (status != OK)
        return status;
    status = json_parse(text, length, path, out);
    free(text);
    return status;
}

const cJSON *json_get(const cJSON *object, const char *key) {
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

int json_integer(const cJSON *item, int64_t *value) {
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) || fabs(item->valuedouble) >= 9007199254740992.0)
        return 0;
    *value = (int64_t)item->valuedouble;
    return 1;
}
