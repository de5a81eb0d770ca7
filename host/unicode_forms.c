/* utf8proc's own decomposition sorts runs of combining marks by exchanging neighbours, which takes quadratic time on long
 * runs; here such runs are counted into order. Its tables of decompositions and compositions are used. */
#include "unicode_forms.h"

#include <utf8proc.h>

#include "utf8.h"

enum { LONGEST_DECOMPOSITION = 64 };

/* Characters with a decomposition or a combining class that came after Unicode 9, the version of Hugging Face's forms:
 * there they stay as they are, and nothing moves past them. In order. */
static const struct {
    int32_t first, last;
} younger[] = {
    {0x7FD, 0x7FD}, {0x898, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C}, {0xD3B, 0xD3C}, {0xEBA, 0xEBA},
    {0x1715, 0x1715}, {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA}, {0x32FF, 0x32FF}, {0xA7F2, 0xA7F4}, {0xA82C, 0xA82C},
    {0xAB69, 0xAB69}, {0x10781, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC},
    {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
};

static int is_younger(int32_t c) {
    int low = 0, high = (int)(sizeof younger / sizeof *younger);
    while (low < high) {
        int middle = (low + high) / 2;
        if (younger[middle].last < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < (int)(sizeof younger / sizeof *younger) && younger[low].first <= c;
}

static int class_of(int32_t c) {
    int class = utf8proc_get_property(c)->combining_class;
    return class && is_younger(c) ? 0 : class;
}

/* Stable counting sort by combining class of the n characters at c, all of class > 0; `spare` has room for n. */
static void order(int32_t *c, size_t n, int32_t *spare) {
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[class_of(c[i]) + 1]++;
    for (int k = 0; k < 256; k++)
        start[k + 1] += start[k];
    for (size_t i = 0; i < n; i++)
        spare[start[class_of(c[i])]++] = c[i];
    memcpy(c, spare, n * sizeof *c);
}

static void order_runs(int32_t *c, size_t n, int32_t *spare) {
    for (size_t i = 0; i < n;) {
        if (class_of(c[i]) == 0) {
            i++;
            continue;
        }
        size_t start = i;
        int sorted = 1;
        for (int last = 0; i < n && class_of(c[i]); i++) {
            sorted &= class_of(c[i]) >= last;
            last = class_of(c[i]);
        }
        if (!sorted)
            order(c + start, i - start, spare);
    }
}

static Status decompose(const char *text, size_t n, int compatible, int32_t **out, size_t *out_count) {
    utf8proc_option_t options = (compatible ? UTF8PROC_COMPAT : 0) | UTF8PROC_DECOMPOSE | UTF8PROC_STABLE;
    size_t count = 0, capacity = n + n / 4 + LONGEST_DECOMPOSITION;
    int32_t *list = malloc(capacity * sizeof *list);
    for (size_t i = 0; list && i < n;) {
        int length, boundary = 0;
        int32_t c = (int32_t)utf8_read(text + i, &length);
        i += (size_t)length;
        if (capacity - count < LONGEST_DECOMPOSITION) {
            capacity += capacity / 2 + LONGEST_DECOMPOSITION;
            int32_t *more = realloc(list, capacity * sizeof *list);
            if (!more)
                free(list);
            list = more;
        }
        if (!list)
            break;
        utf8proc_ssize_t made =
            is_younger(c) ? -1 : utf8proc_decompose_char(c, list + count, LONGEST_DECOMPOSITION, options, &boundary);
        if (made < 0)
            list[count++] = c;
        else
            count += (size_t)made;
    }
    *out = list;
    *out_count = count;
    return list ? OK : fail(ERR_MEMORY, "no memory to normalize %zu bytes of text", n);
}

/* Composes the n characters at c in place. @return : how many remain. */
static size_t compose(int32_t *c, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n;) {
        size_t start = i;
        while (i < n && !is_younger(c[i]))
            i++;
        size_t made = (size_t)utf8proc_normalize_utf32(c + start, (utf8proc_ssize_t)(i - start),
                                                       UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        memmove(c + kept, c + start, made * sizeof *c);
        kept += made;
        if (i < n)
            c[kept++] = c[i++];
    }
    return kept;
}

Status unicode_form(const char *text, size_t n, int compatible, int composed, Bytes *out) {
    size_t ascii = 0;
    while (ascii < n && !(text[ascii] & 0x80))
        ascii++;
    if (ascii == n)
        return bytes_append(out, text, n);
    int32_t *list, *spare = NULL;
    size_t count;
    Status status = decompose(text, n, compatible, &list, &count);
    if (status == OK && !(spare = malloc((count + 1) * sizeof *spare)))
        status = fail(ERR_MEMORY, "no memory to normalize %zu bytes of text", n);
    if (status == OK) {
        order_runs(list, count, spare);
        if (composed)
            count = compose(list, count);
        status = bytes_reserve(out, 4 * count);
    }
    for (size_t i = 0; status == OK && i < count; i++)
        out->length += (size_t)utf8_write(out->data + out->length, (uint32_t)list[i]);
    free(list);
    free(spare);
    return status;
}
