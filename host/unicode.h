/* What tokenizers ask of a character, as one table of bits filled once from utf8proc. */
#ifndef ONN_UNICODE_H
#define ONN_UNICODE_H

#include <stdint.h>

enum {
    CHAR_LETTER = 1,   /* general category L* */
    CHAR_NUMBER = 2,   /* N* */
    CHAR_SPACE = 4,    /* White_Space */
    CHAR_PUNCT = 8,    /* P*, and all of ASCII's !..~ that is no letter or digit */
    CHAR_NONSPACING = 16, /* Mn */
    CHAR_MARK = 32,    /* M* */
    CHAR_WORD = 64,    /* \w: Alphabetic, M*, Nd, Pc, joiners */
    CHAR_CONTROL = 128 /* Cc, Cf, Co */
};

enum { CHAR_COUNT = 0x110000 };
extern uint8_t char_classes[CHAR_COUNT];

/* unicode_open() : fills char_classes; free to call again and from any thread. */
void unicode_open(void);

#endif
