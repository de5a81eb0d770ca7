/* Merging the symbols of a word, lowest rank first and of one rank from left to right. */
#ifndef ONN_MERGING_H
#define ONN_MERGING_H

#include "ids.h"
#include "merges.h"

/* Room for merging, kept from word to word. A zeroed one is empty. */
typedef struct Merging {
    int32_t *covers;        /* by place: how many a symbol covers */
    struct Entry *entries;  /* pairs that wait, by rank */
    size_t capacity;
    int32_t count, used, spare; /* places, entries that were in use, and the list of those that are free again */
    int32_t *first, *last;  /* by rank: its queue, into entries; first is -1 where there is none */
    int32_t *rest;          /* by rank: what a lower one interrupted; -1 where there is none */
    uint64_t *bits, *summary; /* ranks with entries, and words of bits that are not 0 */
    size_t words;
} Merging;

/* merging_run() : merges the symbols in place; linear in their number but for runs that have to be brought into order. */
Status merging_run(Merging *g, const Merges *merges, Ids *symbols);
void merging_free(Merging *g);

#endif
