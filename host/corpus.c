#include "corpus.h"

#include <stdlib.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

static int64_t count_labels(const Corpus *c, int64_t first, int64_t last) {
    int64_t n = 0;
    for (int64_t t = first; t < last; t++)
        n += c->labels.data[t] != NO_LABEL;
    return n;
}

Status corpus_add(Corpus *c, const int32_t *ids, const int32_t *labels, int64_t n, int64_t from) {
    if (n < 1 || n > INT32_MAX)
        return fail(ERR_ARGUMENT, "a sample has %lld tokens", (long long)n);
    for (int64_t t = 0; t < n; t++)
        if (ids[t] < 0 || (labels && labels[t] < 0 && labels[t] != NO_LABEL))
            return fail(ERR_ARGUMENT, "token %lld of a sample: id %d, label %d; expected ids from 0 on, and -100 for no label",
                        (long long)t, ids[t], labels ? labels[t] : ids[t]);
    if (c->samples == c->room) {
        int64_t room = c->room + c->room / 2 + 64;
        int64_t *ends = realloc(c->ends, (size_t)room * sizeof *ends);
        if (!ends)
            return fail(ERR_MEMORY, "no memory for %lld samples", (long long)room);
        c->ends = ends;
        c->room = room;
    }
    Status status = ids_reserve(&c->labels, (size_t)n);
    if (status == OK)
        status = ids_append(&c->ids, ids, (size_t)n);
    if (status != OK)
        return status;
    int32_t *out = c->labels.data + c->labels.count;
    for (int64_t t = 0; t < n; t++)
        out[t] = labels ? labels[t] : t >= from ? ids[t] : NO_LABEL;
    int64_t begin = (int64_t)c->labels.count;
    c->labels.count += (size_t)n;
    c->ends[c->samples++] = begin + n;
    c->supervised += count_labels(c, begin + !c->own, begin + n);
    return OK;
}

void corpus_unlabel(Corpus *c, int64_t from, int64_t to) {
    int64_t begin = corpus_begin(c, c->samples - 1), n = corpus_length(c, c->samples - 1);
    if (from < 0)
        from = 0;
    if (to > n)
        to = n;
    for (int64_t t = from; t < to; t++) {
        c->supervised -= (t > 0 || c->own) && c->labels.data[begin + t] != NO_LABEL;
        c->labels.data[begin + t] = NO_LABEL;
    }
}

void corpus_remove_last(Corpus *c) {
    if (!c->samples)
        return;
    int64_t begin = corpus_begin(c, c->samples - 1);
    c->supervised -= count_labels(c, begin + !c->own, (int64_t)c->labels.count);
    c->ids.count = c->labels.count = (size_t)begin;
    c->samples--;
}

int32_t corpus_beyond(const Corpus *c, int32_t limit, int64_t *sample, int64_t *place) {
    int64_t t = 0;
    for (int64_t i = 0; i < c->samples; i++)
        for (int64_t begin = t; t < c->ends[i]; t++)
            if (c->ids.data[t] >= limit || c->labels.data[t] >= limit) {
                *sample = i;
                *place = t - begin;
                return c->ids.data[t] >= limit ? c->ids.data[t] : c->labels.data[t];
            }
    return -1;
}

uint64_t corpus_hash(const Corpus *c) {
    uint64_t parts[3] = {
        XXH64(c->ids.data, c->ids.count * sizeof *c->ids.data, 0),
        XXH64(c->labels.data, c->labels.count * sizeof *c->labels.data, 0),
        XXH64(c->ends, (size_t)c->samples * sizeof *c->ends, 0),
    };
    return XXH64(parts, sizeof parts, 0);
}

void corpus_free(Corpus *c) {
    ids_free(&c->ids);
    ids_free(&c->labels);
    free(c->ends);
    *c = (Corpus){0};
}
