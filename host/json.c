#include "json.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "file.h"

enum {
    MAX_NESTING = 64,
    MAX_NUMBER = 63, /* characters: cJSON cuts longer ones */
    FEW_KEYS = 12    /* up to here comparing every pair is the fastest search for duplicates */
};

typedef struct Scan {
    const char *text, *what;
    size_t length, at;
} Scan;

/* Fails at the current byte, with the line, which is what an editor shows. */
static Status wrong(const Scan *s, const char *problem) {
    size_t line = 1;
    for (size_t i = 0; i < s->at && i < s->length; i++)
        line += s->text[i] == '\n';
    return fail(ERR_FORMAT, "%s: line %zu, byte %zu: %s", s->what, line, s->at, problem);
}

/* Length of the well-formed UTF-8 sequence of several bytes at p (RFC 3629: no surrogates, no overlong forms), else 0. */
static size_t utf8_length(const unsigned char *p, size_t left) {
    static const struct { unsigned char low, high, second_low, second_high, length; } forms[] = {
        {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
        {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        if (*p < forms[f].low || *p > forms[f].high)
            continue;
        if (forms[f].length > left || p[1] < forms[f].second_low || p[1] > forms[f].second_high)
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

/* A \u escape, s->at on its backslash; moves behind it, and behind its pair if it is a surrogate. */
static Status scan_escape(Scan *s) {
    const char *p = s->text + s->at + 2;
    size_t left = s->length - s->at - 2;
    int code = left >= 4 ? hex4(p) : -1, low;
    if (code < 0)
        return wrong(s, "\\u wants four hexadecimal digits");
    if (code == 0)
        return wrong(s, "\\u0000 is not accepted");
    if (code < 0xd800 || code > 0xdfff) {
        s->at += 6;
        return OK;
    }
    low = code <= 0xdbff && left >= 10 && p[4] == '\\' && p[5] == 'u' ? hex4(p + 6) : -1;
    if (low < 0xdc00 || low > 0xdfff)
        return wrong(s, "half of a surrogate pair");
    s->at += 12;
    return OK;
}

/* A string's inside, s->at behind its opening quote; moves behind the closing one. */
static Status scan_string(Scan *s) {
    while (s->at < s->length) {
        unsigned char c = (unsigned char)s->text[s->at];
        if (c == '"') {
            s->at++;
            return OK;
        }
        if (c < 0x20)
            return wrong(s, c ? "a control character within a string" : "a NUL byte");
        if (c == '\\') {
            char kind = s->at + 1 < s->length ? s->text[s->at + 1] : 0;
            if (kind == 'u') {
                Status status = scan_escape(s);
                if (status != OK)
                    return status;
            } else if (kind && strchr("\"\\/bfnrt", kind)) {
                s->at += 2;
            } else {
                return wrong(s, "an unknown escape");
            }
        } else if (c < 0x80) {
            s->at++;
        } else {
            size_t n = utf8_length((const unsigned char *)s->text + s->at, s->length - s->at);
            if (!n)
                return wrong(s, "not valid UTF-8");
            s->at += n;
        }
    }
    return wrong(s, "the text ends within a string");
}

static size_t digits(const Scan *s, size_t at) {
    size_t n = 0;
    while (at + n < s->length && s->text[at + n] >= '0' && s->text[at + n] <= '9')
        n++;
    return n;
}

/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)? : strtod takes more than this. */
static Status scan_number(Scan *s) {
    size_t at = s->at + (s->text[s->at] == '-'), n = digits(s, at);
    if (!n)
        return wrong(s, "a number without digits");
    if (n > 1 && s->text[at] == '0')
        return wrong(s, "a number with a leading zero");
    at += n;
    if (at < s->length && s->text[at] == '.') {
        if (!(n = digits(s, at + 1)))
            return wrong(s, "a number that ends with its point");
        at += 1 + n;
    }
    if (at < s->length && (s->text[at] == 'e' || s->text[at] == 'E')) {
        at++;
        if (at < s->length && (s->text[at] == '+' || s->text[at] == '-'))
            at++;
        if (!(n = digits(s, at)))
            return wrong(s, "a number whose exponent has no digits");
        at += n;
    }
    if (at - s->at > MAX_NUMBER)
        return wrong(s, "a number of more than 63 characters");
    s->at = at;
    return OK;
}

/* What cJSON does not look at: encoding, NUL, control characters, escapes, the form of numbers, depth. The order of the
 * tokens is left to it. */
static Status scan(Scan *s) {
    int depth = 0;
    while (s->at < s->length) {
        unsigned char c = (unsigned char)s->text[s->at];
        Status status = OK;
        switch (c) {
        case '"': s->at++, status = scan_string(s); break;
        case '{': case '[':
            if (++depth > MAX_NESTING)
                return wrong(s, "nested deeper than 64");
            s->at++;
            break;
        case '}': case ']': depth--, s->at++; break;
        case ' ': case '\t': case '\n': case '\r': case ':': case ',': s->at++; break;
        case '-': case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7': case '8': case '9':
            status = scan_number(s);
            break;
        default:
            if (c < 'a' || c > 'z') /* of true, false and null; cJSON knows which letters */
                return wrong(s, c ? "not JSON" : "a NUL byte");
            s->at++;
        }
        if (status != OK)
            return status;
    }
    return OK;
}

typedef struct Key {
    uint64_t hash;
    const char *name;
} Key;

static Status twice(const char *what, const char *name) {
    return fail(ERR_FORMAT, "%s: the key '%.200s' appears twice in one object", what, name);
}

/* One hash table per object, open addressing. The seed differs from run to run, so that no file can be made to collide. */
static Status check_keys(const cJSON *object, const char *what) {
    size_t count = 0, slots = 64;
    for (const cJSON *c = object->child; c; c = c->next)
        count++;
    if (count <= FEW_KEYS) {
        for (const cJSON *c = object->child; c; c = c->next)
            for (const cJSON *later = c->next; later; later = later->next)
                if (!strcmp(c->string, later->string))
                    return twice(what, c->string);
        return OK;
    }
    while (slots < 2 * count)
        slots *= 2;
    Key *keys = calloc(slots, sizeof *keys);
    if (!keys)
        return fail(ERR_MEMORY, "%s: out of memory", what);
    Status status = OK;
    for (const cJSON *c = object->child; c && status == OK; c = c->next) {
        uint64_t hash = XXH3_64bits_withSeed(c->string, strlen(c->string), (uint64_t)(uintptr_t)keys);
        size_t i = hash & (slots - 1);
        while (keys[i].name && (keys[i].hash != hash || strcmp(keys[i].name, c->string)))
            i = (i + 1) & (slots - 1);
        if (keys[i].name)
            status = twice(what, c->string);
        keys[i] = (Key){hash, c->string};
    }
    free(keys);
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
    Scan s = {.text = text, .what = what, .length = length};
    const char *end = NULL;
    *out = NULL;
    if (length >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) /* a byte order mark, which some editors write */
        s.text = text += 3, s.length = length -= 3;
    Status status = scan(&s);
    if (status != OK)
        return status;
    errno = 0;
    cJSON *root = cJSON_ParseWithLengthOpts(text, length, &end, 0);
    if (!root && errno == ENOMEM)
        return fail(ERR_MEMORY, "%s: out of memory for %zu bytes of JSON", what, length);
    s.at = end && end >= text ? (size_t)(end - text) : 0;
    if (!root)
        return wrong(&s, length ? "not valid JSON here" : "no JSON at all");
    while (s.at < length && strchr(" \t\n\r", text[s.at]))
        s.at++;
    status = s.at < length ? wrong(&s, "text after the end of the JSON value") : check_values(root, what);
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
