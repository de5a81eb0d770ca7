/* UTF-8: reading characters of valid text, and making text valid. */
#ifndef ONN_UTF8_H
#define ONN_UTF8_H

#include <stdint.h>

#include "bytes.h"

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* utf8_step() : the character at p, of `n` >= 1 bytes.
 * @return : its length, 1..4; -k if the first k bytes can begin no character (a maximal subpart, as WHATWG and Unicode
 * call it); 0 if all n bytes are the beginning of a character that ends beyond them. */
int utf8_step(const char *p, size_t n);

/* utf8_valid() : the length of the longest valid beginning of the text. */
size_t utf8_valid(const char *text, size_t n);

/* utf8_repair() : appends the text to `out` with U+FFFD for each maximal subpart that is no character. */
Status utf8_repair(const char *text, size_t n, Bytes *out);

/* utf8_length() : bytes of the character that begins with this byte, in valid text. */
static inline int utf8_length(char first) {
    unsigned char c = (unsigned char)first;
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

/* utf8_read() : the character at p and, in *length, its bytes; p lies in valid text. */
static inline uint32_t utf8_read(const char *p, int *length) {
    const unsigned char *u = (const unsigned char *)p;
    if (u[0] < 0x80)
        return *length = 1, u[0];
    if (u[0] < 0xE0)
        return *length = 2, (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
    if (u[0] < 0xF0)
        return *length = 3, (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
    return *length = 4,
           (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 | (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
}

/* utf8_write() : writes the character c to `out` (room for 4). @return : its bytes. */
static inline int utf8_write(char *out, uint32_t c) {
    if (c < 0x80)
        return out[0] = (char)c, 1;
    if (c < 0x800)
        return out[0] = (char)(0xC0 | c >> 6), out[1] = (char)(0x80 | (c & 0x3F)), 2;
    if (c < 0x10000)
        return out[0] = (char)(0xE0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 0x3F)), out[2] = (char)(0x80 | (c & 0x3F)), 3;
    out[0] = (char)(0xF0 | c >> 18), out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F)), out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

/* utf8_back() : the beginning of the character that ends before p. */
static inline const char *utf8_back(const char *p) {
    do
        p--;
    while (((unsigned char)*p & 0xC0) == 0x80);
    return p;
}

#endif
