/* The walk over a JPEG's markers (ITU T.81, B.1) as a lenient decoder takes it: what is no marker where one is due is passed over. */
#include "jpeg_tables.h"

enum { START = 0xd8, END = 0xd9, SCAN = 0xda, HUFFMAN = 0xc4, SYMBOLS = 256 };

/* Tables of one segment: each a byte, 16 counts, and as many symbols as the counts say. */
static int tables_fit(const unsigned char *p, size_t left) {
    while (left) {
        size_t symbols = 0;
        if (left < 17)
            return 0;
        for (int i = 1; i <= 16; i++)
            symbols += p[i];
        if (symbols > SYMBOLS || symbols > left - 17)
            return 0;
        p += 17 + symbols;
        left -= 17 + symbols;
    }
    return 1;
}

/* The next marker from *at on, which then lies behind it; 0 at the end. In a scan 0 and restarts (d0 to d7) belong to the data. */
static int next_marker(const unsigned char *data, size_t length, size_t *at, int in_scan) {
    size_t i = *at;
    while (i < length) {
        if (data[i++] != 0xff)
            continue;
        while (i < length && data[i] == 0xff)
            i++;
        if (i == length)
            break;
        int marker = data[i++];
        if (in_scan && (!marker || (marker >= 0xd0 && marker <= 0xd7)))
            continue;
        *at = i;
        return marker ? marker : -1;
    }
    *at = length;
    return 0;
}

int jpeg_tables_fit(const unsigned char *data, size_t length) {
    size_t at = 0;
    int in_scan = 0;
    if (length < 2 || data[0] != 0xff || next_marker(data, length, &at, 0) != START)
        return 1;
    for (;;) {
        int marker = next_marker(data, length, &at, in_scan);
        if (!marker || marker == END)
            return 1;
        size_t left = length - at, size = left < 2 ? 0 : (size_t)data[at] << 8 | data[at + 1];
        if (size < 2 || size > left)
            return 0;
        if (marker == HUFFMAN && !tables_fit(data + at + 2, size - 2))
            return 0;
        at += size;
        in_scan = in_scan || marker == SCAN;
    }
}
