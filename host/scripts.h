/* The writing systems that the pre-tokenizer UnicodeScripts cuts between. */
#ifndef ONN_SCRIPTS_H
#define ONN_SCRIPTS_H

#include <stdint.h>

enum { SCRIPT_ANY = 0 };

/* script_of() : a number for the script of a character, Hiragana and Katakana being one with Han; SCRIPT_ANY for a space and for
 * what has none. */
int script_of(uint32_t c);

#endif
