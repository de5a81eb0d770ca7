/* What tokenizer.json calls model Unigram: of all ways to cut a text into tokens the one with the greatest sum of scores. */
#ifndef ONN_UNIGRAM_H
#define ONN_UNIGRAM_H

#include <cjson/cJSON.h>

#include "ids.h"
#include "vocab.h"

typedef struct Unigram Unigram;

/* unigram_load() : reads `model` of a tokenizer.json and enters its vocabulary, a list of [token, score], into `vocab`, which is
 * empty and must outlive the result. `what` names the file. @out : freed with unigram_free(). Not for two threads at once. */
Status unigram_load(const cJSON *model, Vocab *vocab, const char *what, Unigram **out);

/* unigram_encode() : appends the ids of a text of n >= 1 bytes. ERR_FORMAT if it needs an unknown token and there is none. */
Status unigram_encode(Unigram *u, const char *text, size_t n, Ids *out);

void unigram_free(Unigram *u);

#endif
