/* Byte-pair encoding of words: what tokenizer.json calls model BPE. */
#ifndef ONN_BPE_H
#define ONN_BPE_H

#include <cjson/cJSON.h>

#include "ids.h"
#include "vocab.h"

typedef struct Bpe Bpe;

/* bpe_load() : reads `model` of a tokenizer.json; its vocabulary is in `vocab` already, which must outlive the result.
 * bytes: words come as raw bytes, to be spelt in the byte-level alphabet; otherwise as UTF-8.
 * `what` names the file. @out : freed with bpe_free(). Not to be used by two threads at once. */
Status bpe_load(const cJSON *model, const Vocab *vocab, int bytes, const char *what, Bpe **out);

/* bpe_encode() : appends the ids of one word of n >= 1 bytes. */
Status bpe_encode(Bpe *b, const char *word, size_t n, Ids *out);

void bpe_free(Bpe *b);

/* byte_level_char() : the character that spells a byte in the byte-level alphabet: itself where it is printable in
 * Latin-1, else one of U+0100.. in order. */
uint32_t byte_level_char(unsigned char byte);

/* byte_level_byte() : the byte that a character spells; -1 if none. */
int byte_level_byte(uint32_t character);

#endif
