/* A trie: which of many texts another text begins with. */
#ifndef ONN_TRIE_H
#define ONN_TRIE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "vocab.h"

/* Children are in one hash table by (node, byte): large vocabularies have few nodes with many children. A zeroed one is empty. */
typedef struct Trie {
    uint64_t *keys;    /* by slot: (node << 8 | byte) + 1; 0 where the slot is empty */
    int32_t *children; /* by slot */
    int32_t *values;   /* by node; -1 where no text ends. Node 0 is the root. */
    uint64_t slot_mask;
    int shift; /* 64 - log2(slots) */
    int32_t count, capacity; /* nodes */
} Trie;

/* trie_add() : enters a text with a value >= 0; of a text that is entered twice the later value counts. */
Status trie_add(Trie *t, const char *text, size_t n, int32_t value);

/* trie_add_vocab() : enters all tokens of a vocabulary with their ids. */
Status trie_add_vocab(Trie *t, const Vocab *vocab);

void trie_free(Trie *t);

/* trie_step() : the child of a node; -1 if no text goes on that way. */
static inline int32_t trie_step(const Trie *t, int32_t node, char byte) {
    uint64_t key = ((uint64_t)(uint32_t)node << 8 | (unsigned char)byte) + 1;
    if (!t->keys)
        return -1;
    for (uint64_t slot = key * 0x9E3779B97F4A7C15u >> t->shift;; slot = (slot + 1) & t->slot_mask) {
        if (t->keys[slot] == key)
            return t->children[slot];
        if (!t->keys[slot])
            return -1;
    }
}

/* trie_longest() : the value of the longest text, below `node`, that these n bytes begin with, and its bytes; -1 if none. */
int32_t trie_longest(const Trie *t, int32_t node, const char *text, size_t n, size_t *length);

#endif
