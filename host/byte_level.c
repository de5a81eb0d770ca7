#include "bpe.h"

static int prints(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

/* The 68 bytes that do not print are 0..32, 127..160 and 173, and take U+0100..U+0143 in this order. */
uint32_t byte_level_char(unsigned char byte) {
    if (prints(byte))
        return byte;
    return byte <= 32 ? 0x100u + byte : byte <= 160 ? 0x100u + 33 + (byte - 127u) : 0x143u;
}

int byte_level_byte(uint32_t c) {
    if (c < 0x100)
        return prints((int)c) ? (int)c : -1;
    if (c > 0x143)
        return -1;
    c -= 0x100;
    return c <= 32 ? (int)c : c < 67 ? (int)c - 33 + 127 : 173;
}
