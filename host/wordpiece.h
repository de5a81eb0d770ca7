/* What tokenizer.json calls models WordPiece and WordLevel: a word is cut into the longest tokens from its left, or is one. */
#ifndef ONN_WORDPIECE_H
#define ONN_WORDPIECE_H

#include <cjson/cJSON.h>

#include "ids.h"
#include "vocab.h"

typedef struct WordPiece WordPiece;

/* wordpiece_load() : reads `model` of a tokenizer.json; its vocabulary is in `vocab` already, which must outlive the result.
 * whole_words: WordLevel. `what` names the file. @out : freed with wordpiece_free(). */
Status wordpiece_load(const cJSON *model, const Vocab *vocab, int whole_words, const char *what, WordPiece **out);

/* wordpiece_encode() : appends the ids of one word of n >= 1 bytes. ERR_FORMAT if it needs an unknown token that the
 * vocabulary lacks. */
Status wordpiece_encode(const WordPiece *w, const char *word, size_t n, Ids *out);

void wordpiece_free(WordPiece *w);

#endif
