#include "trie.h"

#include <stdlib.h>

static void place(Trie *t, uint64_t key, int32_t child) {
    uint64_t slot = key * 0x9E3779B97F4A7C15u >> t->shift;
    while (t->keys[slot])
        slot = (slot + 1) & t->slot_mask;
    t->keys[slot] = key;
    t->children[slot] = child;
}

/* Room for one more node; there are at least twice as many slots as nodes. */
static Status grow(Trie *t) {
    if (t->count < t->capacity)
        return OK;
    if (t->capacity > INT32_MAX / 4)
        return fail(ERR_FORMAT, "a vocabulary of more than %d bytes", INT32_MAX / 4);
    int32_t capacity = t->capacity ? 2 * t->capacity : 1024;
    int32_t *values = realloc(t->values, (size_t)capacity * sizeof *values);
    if (values)
        t->values = values;
    Trie bigger = *t;
    bigger.slot_mask = 2 * (uint64_t)capacity - 1;
    bigger.shift = 64 - __builtin_ctzll(bigger.slot_mask + 1);
    bigger.keys = calloc(bigger.slot_mask + 1, sizeof *bigger.keys);
    bigger.children = malloc((bigger.slot_mask + 1) * sizeof *bigger.children);
    if (!values || !bigger.keys || !bigger.children) {
        free(bigger.keys);
        free(bigger.children);
        return fail(ERR_MEMORY, "no memory for a vocabulary");
    }
    for (uint64_t slot = 0; t->keys && slot <= t->slot_mask; slot++)
        if (t->keys[slot])
            place(&bigger, t->keys[slot], t->children[slot]);
    free(t->keys);
    free(t->children);
    bigger.capacity = capacity;
    *t = bigger;
    if (!t->count)
        t->values[t->count++] = -1;
    return OK;
}

Status trie_add(Trie *t, const char *text, size_t n, int32_t value) {
    int32_t node = 0;
    Status status = grow(t);
    for (size_t i = 0; i < n && status == OK; i++) {
        int32_t child = trie_step(t, node, text[i]);
        if (child < 0 && (status = grow(t)) == OK) {
            child = t->count++;
            t->values[child] = -1;
            place(t, ((uint64_t)(uint32_t)node << 8 | (unsigned char)text[i]) + 1, child);
        }
        node = child;
    }
    if (status == OK)
        t->values[node] = value;
    return status;
}

Status trie_add_vocab(Trie *t, const Vocab *vocab) {
    Status status = OK;
    for (int32_t id = 0; id < vocab->limit && status == OK; id++) {
        size_t n;
        const char *text = vocab_text(vocab, id, &n);
        if (text)
            status = trie_add(t, text, n, id);
    }
    return status;
}

int32_t trie_longest(const Trie *t, int32_t node, const char *text, size_t n, size_t *length) {
    int32_t value = -1;
    for (size_t i = 0; i < n && (node = trie_step(t, node, text[i])) >= 0; i++)
        if (t->values[node] >= 0) {
            value = t->values[node];
            *length = i + 1;
        }
    return value;
}

void trie_free(Trie *t) {
    free(t->keys);
    free(t->children);
    free(t->values);
    *t = (Trie){0};
}
