/* utf8proc's own decomposition sorts runs of combining marks by exchanging neighbours, which takes quadratic time on long
 * runs; here such runs are counted into order. Its tables of decompositions and compositions are used. */
#include "unicode_forms.h"

#include <utf8proc.h>

#include "utf8.h"

enum { LONGEST_DECOMPOSITION = 64 };

static int class_of(int32_t c) { return utf8proc_get_property(c)->combining_class; }

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
        utf8proc_ssize_t made = utf8proc_decompose_char(c, list + count, LONGEST_DECOMPOSITION, options, &boundary);
        if (made < 0)
            list[count++] = c;
        else
            count += (size_t)made;
    }
    *out = list;
    *out_count = count;
    return list ? OK : fail(ERR_MEMORY, "no memory to normalize %zu bytes of text", n);
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
            count = (size_t)utf8proc_normalize_utf32(list, (utf8proc_ssize_t)count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        status = bytes_reserve(out, 4 * count);
    }
    for (size_t i = 0; status == OK && i < count; i++)
        out->length += (size_t)utf8_write(out->data + out->length, (uint32_t)list[i]);
    free(list);
    free(spare);
    return status;
}
