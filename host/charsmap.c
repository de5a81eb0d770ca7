/* The format: the trie's bytes (u32), the trie as a double array of u32 in the layout of the library darts-clone, then texts
 * that end with NUL; a value of the trie is where its text begins. All little-endian. */
#include "charsmap.h"

#include <stdint.h>
#include <utf8proc.h>

#include "utf8.h"

struct Charsmap {
    Bytes blob;
    size_t units;      /* of the trie, which begins at 4 */
    const char *texts; /* in the blob */
    size_t length;
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static int digit(char c) {
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static Status base64_decode(const char *text, const char *what, Bytes *out) {
    size_t n = strlen(text);
    uint32_t bits = 0;
    while (n > 0 && text[n - 1] == '=')
        n--;
    Status status = bytes_reserve(out, n / 4 * 3 + 3);
    for (size_t i = 0; i < n && status == OK; i++) {
        int value = digit(text[i]);
        if (value < 0)
            return fail(ERR_FORMAT, "%s: precompiled_charsmap is not base64", what);
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 > 0)
            out->data[out->length++] = (char)(bits >> (6 - 2 * (i % 4)) & 0xFF);
    }
    return status;
}

static uint32_t read_u32(const char *p) {
    const unsigned char *u = (const unsigned char *)p;
    return u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
}

Status charsmap_load(const char *base64, const char *what, Charsmap **out) {
    *out = NULL;
    Charsmap *m = calloc(1, sizeof *m);
    if (!m)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    Status status = base64_decode(base64, what, &m->blob);
    uint32_t bytes = status == OK && m->blob.length >= 4 ? read_u32(m->blob.data) : 0;
    if (status == OK && (bytes < 4 || bytes % 4 || bytes > m->blob.length - 4))
        status = fail(ERR_FORMAT, "%s: precompiled_charsmap is cut off or none", what);
    if (status == OK) {
        m->units = bytes / 4;
        m->texts = m->blob.data + 4 + bytes;
        m->length = m->blob.length - 4 - bytes;
        if (utf8_valid(m->texts, m->length) < m->length)
            status = fail(ERR_FORMAT, "%s: precompiled_charsmap makes texts that are no UTF-8", what);
    }
    if (status == OK)
        *out = m;
    else
        charsmap_free(m);
    return status;
}

void charsmap_free(Charsmap *m) {
    if (!m)
        return;
    bytes_free(&m->blob);
    free(m);
}

/* --- rewriting ---------------------------------------------------------------------------------------------------- */

static uint32_t offset_of(uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); }

/* What the shortest text of the map that the piece begins with becomes; NULL if none. Like the reference, that stands for all of
 * the piece. */
static const char *transform(const Charsmap *m, const char *piece, size_t n, size_t *length) {
    const char *trie = m->blob.data + 4;
    size_t at = offset_of(read_u32(trie));
    for (size_t i = 0; i < n && piece[i]; i++) {
        at ^= (unsigned char)piece[i];
        if (at >= m->units)
            return NULL;
        uint32_t unit = read_u32(trie + 4 * at);
        if ((unit & 0x800000FF) != (unsigned char)piece[i])
            return NULL;
        at ^= offset_of(unit);
        if (!(unit & 0x100))
            continue;
        if (at >= m->units)
            return NULL;
        size_t start = read_u32(trie + 4 * at) & 0x7FFFFFFF;
        if (start >= m->length || ((unsigned char)m->texts[start] & 0xC0) == 0x80)
            return NULL;
        const char *end = memchr(m->texts + start, 0, m->length - start);
        *length = end ? (size_t)(end - m->texts) - start : m->length - start;
        return m->texts + start;
    }
    return NULL;
}

/* The end of the character as readers see it (a grapheme cluster) that begins at i. */
static size_t cluster_end(const char *text, size_t n, size_t i) {
    int length;
    int32_t state = 0, before = (int32_t)utf8_read(text + i, &length);
    for (i += (size_t)length; i < n; i += (size_t)length) {
        int32_t c = (int32_t)utf8_read(text + i, &length);
        if ((before < 0x80 && c < 0x80 && before != '\r') || utf8proc_grapheme_break_stateful(before, c, &state))
            break;
        before = c;
    }
    return i;
}

static Status rewrite(const Charsmap *m, const char *piece, size_t n, int *changed, Bytes *out) {
    size_t length;
    const char *text = transform(m, piece, n, &length);
    *changed = text != NULL;
    return text ? bytes_append(out, text, length) : OK;
}

Status charsmap_run(const Charsmap *m, const char *text, size_t n, Bytes *out) {
    Status status = bytes_reserve(out, n);
    for (size_t i = 0, end; i < n && status == OK; i = end) {
        int changed = 0;
        end = cluster_end(text, n, i);
        if (end - i < 6)
            status = rewrite(m, text + i, end - i, &changed, out);
        for (size_t at = i, width; !changed && at < end && status == OK; at += width) {
            int one;
            width = (size_t)utf8_length(text[at]);
            status = rewrite(m, text + at, width, &one, out);
            if (status == OK && !one)
                status = bytes_append(out, text + at, width);
        }
    }
    return status;
}
