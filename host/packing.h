/* Rows of a corpus: what one place of a batch holds, and in which order an epoch takes them. */
#ifndef ONN_PACKING_H
#define ONN_PACKING_H

#include "corpus.h"

/* Tokens [begin, begin + length) of the corpus, trained as one sequence: nothing in it sees beyond it. */
typedef struct Piece {
    int64_t begin;
    int32_t length;
} Piece;

typedef enum Packing {
    PACK_NONE,     /* a row is one sample */
    PACK_BEST_FIT, /* a row holds whole samples, together at most seq_len tokens */
    PACK_STREAM    /* all samples one after another, cut into sequences of exactly seq_len tokens */
} Packing;

typedef struct Rows {
    Piece *pieces;
    int64_t *firsts; /* (rows + 1): the pieces of row r are firsts[r] .. firsts[r + 1] */
    int64_t *order;  /* (rows): the epoch's order */
    int64_t rows, n_pieces;
    int64_t tokens;    /* in all rows */
    int64_t truncated; /* samples cut to seq_len */
    int64_t dropped;   /* tokens that no row holds: what was cut, or the end of a stream */
    int64_t longest;   /* tokens of the longest row */
    int32_t seq_len;
} Rows;

/* What goes through a model together, without padding. All arrays but `starts` are (tokens). */
typedef struct Batch {
    int64_t tokens, sequences;
    int64_t longest;    /* tokens of the longest sequence */
    int64_t supervised; /* labels that count */
    int32_t *ids;
    int32_t *labels;    /* the id that follows in the same sequence; -100 at its end and where it is not trained */
    int32_t *positions; /* from 0 on in each sequence */
    int32_t *starts;    /* (sequences + 1): sequence s is tokens starts[s] .. starts[s + 1] */
    int64_t *numbers;   /* the token's place in the corpus: randomness keyed by it does not depend on the batch */
} Batch;

/* rows_plan() : divides the corpus into rows; deterministic, the same for every epoch. A stream shorter than seq_len is one
 * short row. @rows : zeroed, owned by the caller, freed with rows_free(). seq_len >= 2. */
Status rows_plan(Rows *rows, const Corpus *c, Packing packing, int32_t seq_len);

/* rows_shuffle() : the order of an epoch, from Philox keyed by the seed; rows_in_order() : as planned. */
void rows_shuffle(Rows *rows, uint64_t seed, uint32_t epoch);
void rows_in_order(Rows *rows);

/* rows_streams() : an order in which each `streams` rows that follow each other go on where the same place of the last ones ended: row k of
 * turn u is the planned row k * (rows / streams) + u. Rows that make no whole turn come last. 1 <= streams <= rows. */
void rows_streams(Rows *rows, int64_t streams);

/* rows_measure() : sets tokens, sequences and longest of the batch of rows order[first .. first + count). */
void rows_measure(const Rows *rows, int64_t first, int64_t count, Batch *b);

/* rows_fill() : fills the arrays, which have the sizes that rows_measure() found, and counts `supervised`. */
void rows_fill(const Rows *rows, const Corpus *c, int64_t first, int64_t count, Batch *b);

void rows_free(Rows *rows);

#endif
