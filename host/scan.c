#include "scan.h"

#include <string.h>

#include "unicode.h"
#include "utf8.h"

static inline int class_at(const char *p, int *length) { return char_classes[utf8_read(p, length)]; }

/* The end of the run of characters at p that have one of the classes `in` and none of `out`. */
static inline const char *run(const char *p, const char *end, int in, int out) {
    while (p < end) {
        int length, class = class_at(p, &length);
        if ((in && !(class & in)) || (class & out))
            break;
        p += length;
    }
    return p;
}

enum { SOLID = CHAR_LETTER | CHAR_NUMBER | CHAR_SPACE };

/* White space at p: all of it at the end of the text, else all but its last character if there are two or more, else one. */
static size_t white(const char *p, const char *end) {
    const char *stop = run(p, end, CHAR_SPACE, 0);
    if (stop == end)
        return (size_t)(stop - p);
    const char *last = utf8_back(stop);
    return (size_t)((last > p ? last : stop) - p);
}

size_t scan_gpt2(const char *p, const char *end) {
    if (*p == '\'' && end - p > 1) {
        char c = p[1], d = end - p > 2 ? p[2] : 0;
        if (c == 's' || c == 't' || c == 'm' || c == 'd')
            return 2;
        if ((c == 'r' && d == 'e') || (c == 'v' && d == 'e') || (c == 'l' && d == 'l'))
            return 3;
    }
    const char *word = p + (*p == ' ' && end - p > 1);
    int length, class = class_at(word, &length);
    if (class & CHAR_SPACE)
        return white(p, end);
    int in = class & (CHAR_LETTER | CHAR_NUMBER);
    return (size_t)(run(word + length, end, in, in ? 0 : SOLID) - p);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d) with the long s, which folds to s. */
static size_t contraction(const char *p, const char *end) {
    if (*p != '\'' || end - p < 2)
        return 0;
    char c = p[1] | 0x20, d = end - p > 2 ? p[2] | 0x20 : 0;
    if (c == 's' || c == 't' || c == 'm' || c == 'd')
        return 2;
    if ((c == 'r' && d == 'e') || (c == 'v' && d == 'e') || (c == 'l' && d == 'l'))
        return 3;
    return end - p > 2 && !memcmp(p + 1, "\xC5\xBF", 2) ? 3 : 0;
}

static const char *newlines(const char *p, const char *end) {
    while (p < end && (*p == '\r' || *p == '\n'))
        p++;
    return p;
}

size_t scan_gpt4(const char *p, const char *end, int digits) {
    size_t short_form = contraction(p, end);
    if (short_form)
        return short_form;
    int length, class = class_at(p, &length), second_length, second;
    if (class & CHAR_LETTER)
        return (size_t)(run(p + length, end, CHAR_LETTER, 0) - p);
    if (class & CHAR_NUMBER) {
        const char *q = p + length;
        while (--digits > 0 && q < end && (class_at(q, &length) & CHAR_NUMBER))
            q += length;
        return (size_t)(q - p);
    }
    if (p + length < end && *p != '\r' && *p != '\n') {
        second = class_at(p + length, &second_length);
        if (second & CHAR_LETTER)
            return (size_t)(run(p + length + second_length, end, CHAR_LETTER, 0) - p);
        if (*p == ' ' && !(second & SOLID))
            return (size_t)(newlines(run(p + length + second_length, end, 0, SOLID), end) - p);
    }
    if (!(class & CHAR_SPACE))
        return (size_t)(newlines(run(p + length, end, 0, SOLID), end) - p);
    const char *stop = run(p, end, CHAR_SPACE, 0), *q = stop;
    while (q > p && q[-1] != '\r' && q[-1] != '\n')
        q--;
    return q > p ? (size_t)(q - p) : white(p, end);
}

int scan_known(const char *pattern) {
    static const char head[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}";
    static const char tail[] = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    if (!strcmp(pattern, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"))
        return -1;
    if (strncmp(pattern, head, sizeof head - 1))
        return 0;
    pattern += sizeof head - 1;
    int digits = 1;
    if (!strncmp(pattern, "{1,", 3) && pattern[3] >= '1' && pattern[3] <= '9' && pattern[4] == '}')
        digits = pattern[3] - '0', pattern += 5;
    return strcmp(pattern, tail) ? 0 : digits;
}
