/* The merges of byte-pair encoding, by pair. */
#ifndef ONN_MERGES_H
#define ONN_MERGES_H

#include <cjson/cJSON.h>

#include "vocab.h"

#define NO_RANK INT32_MAX

typedef struct Pair {
    uint64_t key; /* left << 32 | right; NO_PAIR where the slot is empty */
    int32_t rank;
} Pair;
#define NO_PAIR UINT64_MAX

typedef struct Merges {
    Pair *pairs; /* hash table */
    int shift;   /* 64 - log2(slots) */
    uint64_t slot_mask;
    int32_t *left, *right, *result; /* by rank: the two sides and the merged token */
    int32_t count;                  /* ranks are below */
    uint64_t *joins; /* bits: a hash of (last character of a left side, first character of a right side) */
    int joins_shift;
} Merges;

/* merges_load() : `list` holds "a b" strings or ["a", "b"] pairs, all of the vocabulary. prefix: what the right side begins with
 * and loses when it is joined, may be "". unk: the unknown token's id or -1. @out : freed with merges_free(). */
Status merges_load(const cJSON *list, const Vocab *vocab, const char *prefix, int32_t unk, const char *what, Merges **out);
void merges_free(Merges *m);

static inline uint64_t merges_hash(int32_t left, int32_t right) {
    return ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
}

/* merges_rank() : the rank of a pair of symbols, lower merges first; NO_RANK if they do not merge. */
static inline int32_t merges_rank(const Merges *m, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint64_t slot = merges_hash(left, right) >> m->shift;; slot = (slot + 1) & m->slot_mask) {
        if (m->pairs[slot].key == key)
            return m->pairs[slot].rank;
        if (m->pairs[slot].key == NO_PAIR)
            return NO_RANK;
    }
}

static inline int32_t merges_result(const Merges *m, int32_t rank) { return m->result[rank]; }

/* merges_joins() : false if no merge at all can join a text that ends in the character with symbol `left` to one that begins
 * with `right`: encoding both sides apart then gives what encoding the whole gives. May be true without need. */
static inline int merges_joins(const Merges *m, int32_t left, int32_t right) {
    uint64_t bit = merges_hash(left, right) >> m->joins_shift;
    return (int)(m->joins[bit >> 6] >> (bit & 63) & 1);
}

#endif
