/* Vocab: tokens' texts by id and ids by text, in flat arrays. A zeroed Vocab is empty. */
#ifndef ONN_VOCAB_H
#define ONN_VOCAB_H

#include <stdint.h>

#include "bytes.h"

typedef struct Vocab {
    Bytes text;          /* all tokens, one after the other */
    uint32_t *start;     /* by id, into text */
    uint32_t *length;    /* by id; NO_TOKEN where an id is unused */
    int32_t limit;       /* all ids are below */
    int32_t capacity;
    int32_t *slots;      /* hash table of ids, -1 where empty */
    uint32_t slot_count; /* a power of two, more than twice the tokens */
    uint32_t count;
} Vocab;

enum { VOCAB_ID_LIMIT = 1 << 24 };

/* vocab_reserve() : room for this many tokens without rehashing. */
Status vocab_reserve(Vocab *v, size_t tokens);

/* vocab_add() : ERR_FORMAT if the id is taken or out of [0, VOCAB_ID_LIMIT), or the text is known already.
 * `what` names the file. */
Status vocab_add(Vocab *v, const char *text, size_t n, int64_t id, const char *what);

/* vocab_add_again() : the same, but a text that is known already gets this id, and the old one keeps its text. */
Status vocab_add_again(Vocab *v, const char *text, size_t n, int64_t id, const char *what);

/* vocab_find() : the id of a token; -1 if there is none. */
int32_t vocab_find(const Vocab *v, const char *text, size_t n);

/* vocab_byte() : the id of a byte's token, <0x00>..<0xFF>; -1 if there is none. */
int32_t vocab_byte(const Vocab *v, int byte);

/* vocab_text() : the token of an id and its length, not terminated; NULL if there is none. */
const char *vocab_text(const Vocab *v, int64_t id, size_t *n);

void vocab_free(Vocab *v);

#endif
