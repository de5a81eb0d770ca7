#include "vocab.h"

#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define NO_TOKEN UINT32_MAX

static uint32_t home(const Vocab *v, const char *text, size_t n) {
    return (uint32_t)XXH3_64bits(text, n) & (v->slot_count - 1);
}

static Status rehash(Vocab *v, uint32_t slot_count) {
    int32_t *slots = malloc(slot_count * sizeof *slots);
    if (!slots)
        return fail(ERR_MEMORY, "no memory for a vocabulary");
    memset(slots, -1, slot_count * sizeof *slots);
    free(v->slots);
    v->slots = slots;
    v->slot_count = slot_count;
    for (int32_t id = v->limit - 1; id >= 0; id--) { /* of a text with several ids the last one is found first */
        if (v->length[id] == NO_TOKEN)
            continue;
        uint32_t slot = home(v, v->text.data + v->start[id], v->length[id]);
        while (slots[slot] >= 0)
            slot = (slot + 1) & (slot_count - 1);
        slots[slot] = id;
    }
    return OK;
}

Status vocab_reserve(Vocab *v, size_t tokens) {
    uint32_t slots = v->slot_count ? v->slot_count : 64;
    if (tokens > VOCAB_ID_LIMIT)
        return fail(ERR_FORMAT, "a vocabulary of %zu tokens", tokens);
    while (slots <= 2 * tokens)
        slots *= 2;
    return slots == v->slot_count ? OK : rehash(v, slots);
}

static Status grow_ids(Vocab *v, int32_t id) {
    if (id >= v->capacity) {
        int32_t capacity = id + id / 2 + 256;
        uint32_t *start = realloc(v->start, (size_t)capacity * sizeof *start);
        if (start)
            v->start = start;
        uint32_t *length = realloc(v->length, (size_t)capacity * sizeof *length);
        if (length)
            v->length = length;
        if (!start || !length)
            return fail(ERR_MEMORY, "no memory for a vocabulary");
        v->capacity = capacity;
    }
    for (; v->limit <= id; v->limit++)
        v->length[v->limit] = NO_TOKEN;
    return OK;
}

static Status add(Vocab *v, const char *text, size_t n, int64_t id, int again, const char *what) {
    if (id < 0 || id >= VOCAB_ID_LIMIT)
        return fail(ERR_FORMAT, "%s: token '%.*s' has id %lld", what, (int)(n < 100 ? n : 100), text, (long long)id);
    if (v->text.length + n >= UINT32_MAX)
        return fail(ERR_FORMAT, "%s: a vocabulary of more than 4 GB", what);
    Status status = vocab_reserve(v, v->count + (size_t)1);
    if (status != OK)
        return status;
    uint32_t slot = home(v, text, n);
    for (; v->slots[slot] >= 0; slot = (slot + 1) & (v->slot_count - 1)) {
        int32_t other = v->slots[slot];
        if (v->length[other] != n || memcmp(v->text.data + v->start[other], text, n))
            continue;
        if (!again)
            return fail(ERR_FORMAT, "%s: token '%.*s' stands there twice", what, (int)(n < 100 ? n : 100), text);
        break;
    }
    size_t taken;
    if (vocab_text(v, id, &taken))
        return fail(ERR_FORMAT, "%s: id %lld belongs to '%.*s' and to '%.*s'", what, (long long)id,
                    (int)(taken < 100 ? taken : 100), vocab_text(v, id, &taken), (int)(n < 100 ? n : 100), text);
    status = grow_ids(v, (int32_t)id);
    size_t start = v->text.length;
    if (status == OK)
        status = bytes_reserve(&v->text, n + 1);
    if (status != OK)
        return status;
    bytes_append(&v->text, text, n);
    v->start[id] = (uint32_t)start;
    v->length[id] = (uint32_t)n;
    v->slots[slot] = (int32_t)id;
    v->count++;
    return OK;
}

Status vocab_add(Vocab *v, const char *text, size_t n, int64_t id, const char *what) {
    return add(v, text, n, id, 0, what);
}

Status vocab_add_again(Vocab *v, const char *text, size_t n, int64_t id, const char *what) {
    return add(v, text, n, id, 1, what);
}

int32_t vocab_find(const Vocab *v, const char *text, size_t n) {
    if (!v->count)
        return -1;
    uint32_t slot = home(v, text, n);
    for (; v->slots[slot] >= 0; slot = (slot + 1) & (v->slot_count - 1)) {
        int32_t id = v->slots[slot];
        if (v->length[id] == n && !memcmp(v->text.data + v->start[id], text, n))
            return id;
    }
    return -1;
}

int32_t vocab_byte(const Vocab *v, int byte) {
    char name[8];
    snprintf(name, sizeof name, "<0x%02X>", byte & 255);
    return vocab_find(v, name, 6);
}

const char *vocab_text(const Vocab *v, int64_t id, size_t *n) {
    if (id < 0 || id >= v->limit || v->length[id] == NO_TOKEN)
        return NULL;
    *n = v->length[id];
    return v->text.data + v->start[id];
}

void vocab_free(Vocab *v) {
    bytes_free(&v->text);
    free(v->start);
    free(v->length);
    free(v->slots);
    *v = (Vocab){0};
}
