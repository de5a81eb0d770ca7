/* Corpus: token ids of many samples one after another, each with its label: the id itself, or -100 where it is not trained. */
#ifndef ONN_CORPUS_H
#define ONN_CORPUS_H

#include "ids.h"

enum { NO_LABEL = -100 };

typedef struct Corpus {
    Ids ids, labels;         /* of equal count */
    int64_t *ends;           /* ends[i]: tokens up to the end of sample i */
    int64_t samples, room;   /* room: entries of `ends` allocated */
    int64_t supervised;      /* labels that count; unless they are each token's own, the first of a sample is left out: nothing predicts it */
    int own;                 /* labels are said of the token itself (classes, masked tokens), not predicted by the one before */
} Corpus;

/* corpus_add() : appends a sample of n >= 1 ids. labels may be NULL: then ids from index `from` on are their own labels and
 * those before have none. ERR_ARGUMENT for an empty sample or a negative id. On failure the corpus is as before. */
Status corpus_add(Corpus *c, const int32_t *ids, const int32_t *labels, int64_t n, int64_t from);

/* corpus_unlabel() : takes the labels of tokens [from, to) of the last sample away. */
void corpus_unlabel(Corpus *c, int64_t from, int64_t to);

/* corpus_remove_last() : takes the last sample out again. */
void corpus_remove_last(Corpus *c);

/* corpus_begin() : where sample i starts; corpus_length() : its tokens. */
static inline int64_t corpus_begin(const Corpus *c, int64_t i) { return i ? c->ends[i - 1] : 0; }
static inline int64_t corpus_length(const Corpus *c, int64_t i) { return c->ends[i] - corpus_begin(c, i); }

/* corpus_hash() : of ids, labels and borders; the same on every machine. */
uint64_t corpus_hash(const Corpus *c);

/* corpus_beyond() : the first id or label of `limit` and more: its sample and its place there, both from 0.
 * @return : the id, or -1 if there is none. */
int32_t corpus_beyond(const Corpus *c, int32_t limit, int64_t *sample, int64_t *place);

void corpus_free(Corpus *c);

#endif
