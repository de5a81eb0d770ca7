#include "utf8.h"

int utf8_step(const char *p, size_t n) {
    const unsigned char *u = (const unsigned char *)p;
    unsigned char first = u[0], low = 0x80, high = 0xBF;
    int length;
    if (first < 0x80)
        return 1;
    if (first < 0xC2 || first > 0xF4)
        return -1;
    if (first < 0xE0) {
        length = 2;
    } else if (first < 0xF0) {
        length = 3;
        if (first == 0xE0)
            low = 0xA0; /* no overlong forms */
        if (first == 0xED)
            high = 0x9F; /* no surrogates */
    } else {
        length = 4;
        if (first == 0xF0)
            low = 0x90;
        if (first == 0xF4)
            high = 0x8F; /* nothing past U+10FFFF */
    }
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n)
            return 0;
        if (u[i] < low || u[i] > high)
            return -i;
        low = 0x80, high = 0xBF;
    }
    return length;
}

size_t utf8_valid(const char *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        while (i + 8 <= n && (memcpy(&eight, text + i, 8), !(eight & 0x8080808080808080u)))
            i += 8;
        if (i == n)
            break;
        int step = utf8_step(text + i, n - i);
        if (step <= 0)
            break;
        i += (size_t)step;
    }
    return i;
}

Status utf8_repair(const char *text, size_t n, Bytes *out) {
    Status status = OK;
    while (n > 0 && status == OK) {
        size_t good = utf8_valid(text, n);
        status = bytes_append(out, text, good);
        text += good, n -= good;
        if (n > 0 && status == OK) {
            int step = utf8_step(text, n);
            size_t bad = step < 0 ? (size_t)-step : n;
            status = bytes_append(out, UTF8_REPLACEMENT, 3);
            text += bad, n -= bad;
        }
    }
    return status;
}
