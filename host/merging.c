/* Short words are merged in an array, by looking for the lowest rank. In long ones each rank has a queue of the places where
 * its pair stands, so no order has to be kept among ranks, and neighbouring places are neighbours in memory. A merged symbol
 * stays where its left part stood, and what it covers is empty: symbol[i] is -1 there. Its first and its last place hold the
 * number of places, so that both neighbours can be found. Little is kept for each symbol, as memory is what takes the time. */
#include "merging.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SHORT_WORD = 48 };

typedef struct Entry {
    int32_t place, next; /* -1 at the end of the rank's queue; stale if another pair stands there by now */
} Entry;

static size_t merge_short(const Merges *merges, int32_t *symbol, size_t n) {
    int32_t rank[SHORT_WORD];
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = merges_rank(merges, symbol[i], symbol[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == NO_RANK)
            break;
        symbol[best] = merges_result(merges, rank[best]);
        memmove(symbol + best + 1, symbol + best + 2, (n - best - 2) * sizeof *symbol);
        n--;
        memmove(rank + best, rank + best + 1, (n - best) * sizeof *rank);
        if (best > 0)
            rank[best - 1] = merges_rank(merges, symbol[best - 1], symbol[best]);
        if (best + 1 < n)
            rank[best] = merges_rank(merges, symbol[best], symbol[best + 1]);
    }
    return n;
}

/* --- queues ------------------------------------------------------------------------------------------------------- */

/* Long words jump about in their arrays: in pages of 4 KB half of the time would go into looking up addresses. */
static void *allocate(size_t bytes) {
    const size_t page = (size_t)2 << 20;
    if (bytes < 2 * page)
        return malloc(bytes);
    bytes = (bytes + page - 1) / page * page;
    void *memory = aligned_alloc(page, bytes);
    if (memory)
        madvise(memory, bytes, MADV_HUGEPAGE); /* serves with small pages as well */
    return memory;
}

static Status reserve(Merging *g, const Merges *merges, size_t n) {
    if (n > INT32_MAX / 4)
        return fail(ERR_UNSUPPORTED, "a word of more than %d symbols", INT32_MAX / 4);
    if (!g->words) {
        size_t ranks = (size_t)merges->count + 1, words = ranks / 64 + 1;
        g->first = malloc(ranks * sizeof *g->first);
        g->last = malloc(ranks * sizeof *g->last);
        g->rest = malloc(ranks * sizeof *g->rest);
        g->bits = calloc(words, sizeof *g->bits);
        g->summary = calloc(words / 64 + 1, sizeof *g->summary);
        if (!g->first || !g->last || !g->rest || !g->bits || !g->summary) {
            merging_free(g);
            return fail(ERR_MEMORY, "no memory for merging");
        }
        memset(g->first, -1, ranks * sizeof *g->first);
        memset(g->rest, -1, ranks * sizeof *g->rest);
        g->words = words;
    }
    if (n <= g->capacity)
        return OK;
    free(g->covers);
    free(g->entries);
    g->capacity = 0;
    g->covers = allocate(n * sizeof *g->covers);
    g->entries = allocate(3 * n * sizeof *g->entries); /* n pairs, and two more for each of n - 1 merges */
    if (!g->covers || !g->entries)
        return fail(ERR_MEMORY, "no memory for a word of %zu symbols", n);
    g->capacity = n;
    return OK;
}

static void mark(Merging *g, int32_t rank) {
    size_t word = (size_t)rank >> 6;
    g->bits[word] |= (uint64_t)1 << (rank & 63);
    g->summary[word >> 6] |= (uint64_t)1 << (word & 63);
}

static void enqueue(Merging *g, int32_t rank, int32_t place) {
    int32_t entry = g->spare;
    if (entry >= 0)
        g->spare = g->entries[entry].next;
    else
        entry = g->used++;
    g->entries[entry] = (Entry){place, -1};
    if (g->first[rank] >= 0)
        g->entries[g->last[rank]].next = entry;
    else
        g->first[rank] = entry, mark(g, rank);
    g->last[rank] = entry;
}

static int32_t release(Merging *g, int32_t entry) {
    int32_t next = g->entries[entry].next;
    g->entries[entry].next = g->spare;
    g->spare = entry;
    return next;
}

/* The lowest rank with entries, looking from the summary's word *from on; -1 if there is none. */
static int32_t lowest(const Merging *g, size_t *from) {
    for (size_t last = (g->words - 1) >> 6; *from <= last; ++*from)
        if (g->summary[*from]) {
            size_t word = *from << 6 | (size_t)__builtin_ctzll(g->summary[*from]);
            return (int32_t)(word << 6 | (size_t)__builtin_ctzll(g->bits[word]));
        }
    return -1;
}

/* The end of the ascending run of entries at `at`; *next is what follows it. */
static int32_t run_end(Entry *e, int32_t at, int32_t *next) {
    while (e[at].next >= 0 && e[e[at].next].place >= e[at].place)
        at = e[at].next;
    *next = e[at].next;
    e[at].next = -1;
    return at;
}

/* Brings a queue into the order of its places, by merging neighbouring runs; a queue in order costs one look at each entry. */
static int32_t sorted(Entry *e, int32_t head) {
    for (;;) {
        int32_t result = -1, *tail = &result, rest = head;
        int runs = 0;
        for (; rest >= 0; runs++) {
            int32_t a = rest, b;
            int32_t end = run_end(e, a, &b);
            if (b < 0) {
                *tail = a;
                tail = &e[end].next;
                rest = -1;
                continue;
            }
            run_end(e, b, &rest);
            while (a >= 0 && b >= 0) {
                int32_t *lower = e[a].place <= e[b].place ? &a : &b;
                *tail = *lower;
                tail = &e[*lower].next;
                *lower = *tail;
            }
            *tail = a >= 0 ? a : b;
            while (*tail >= 0)
                tail = &e[*tail].next;
        }
        head = result;
        if (runs <= 1)
            return head;
    }
}

static int stands(const Merging *g, const Merges *merges, const int32_t *symbol, int32_t rank, int32_t place) {
    return symbol[place] == merges->left[rank] && place + g->covers[place] < g->count &&
           symbol[place + g->covers[place]] == merges->right[rank];
}

/* Takes all entries of a rank away, in order. What was left when a lower rank came between is in order already; the few that
 * were entered since lie near its beginning, so it is not walked to its end each time. @return : the first entry. */
static int32_t take(Merging *g, const Merges *merges, const int32_t *symbol, int32_t rank) {
    size_t word = (size_t)rank >> 6;
    Entry *e = g->entries;
    int32_t fresh = g->first[rank] < 0 ? -1 : sorted(e, g->first[rank]), rest = g->rest[rank], head = -1, *tail = &head;
    g->bits[word] &= ~((uint64_t)1 << (rank & 63));
    if (!g->bits[word])
        g->summary[word >> 6] &= ~((uint64_t)1 << (word & 63));
    g->first[rank] = g->rest[rank] = -1;
    while (fresh >= 0 && rest >= 0) {
        int32_t *lower = e[fresh].place <= e[rest].place ? &fresh : &rest;
        if (!stands(g, merges, symbol, rank, e[*lower].place)) {
            *lower = release(g, *lower);
            continue;
        }
        *tail = *lower;
        tail = &e[*lower].next;
        *lower = *tail;
    }
    *tail = fresh >= 0 ? fresh : rest;
    return head;
}

/* --- long words --------------------------------------------------------------------------------------------------- */

/* Enters the pair that begins at a place. @return : its rank. */
static int32_t enter(Merging *g, const Merges *merges, const int32_t *symbol, int32_t place) {
    int32_t next = place + g->covers[place], rank = next < g->count ? merges_rank(merges, symbol[place], symbol[next]) : NO_RANK;
    if (rank != NO_RANK)
        enqueue(g, rank, place);
    return rank;
}

/* Merges the pair at a place, whose rank is the lowest. @return : the lowest rank of the new pairs. */
static int32_t merge_at(Merging *g, const Merges *merges, int32_t *symbol, int32_t rank, int32_t place) {
    int32_t gone = place + g->covers[place], covers = g->covers[place] + g->covers[gone];
    symbol[place] = merges_result(merges, rank);
    symbol[gone] = -1;
    g->covers[place] = g->covers[place + covers - 1] = covers;
    int32_t right = enter(g, merges, symbol, place);
    int32_t left = place > 0 ? enter(g, merges, symbol, place - g->covers[place - 1]) : NO_RANK;
    return left < right ? left : right;
}

static Status merge_long(Merging *g, const Merges *merges, Ids *symbols) {
    Status status = reserve(g, merges, symbols->count);
    if (status != OK)
        return status;
    int32_t *symbol = symbols->data, rank;
    size_t from = 0, kept = 0;
    g->count = (int32_t)symbols->count;
    g->used = 0, g->spare = -1;
    for (int32_t i = 0; i < g->count; i++) {
        g->covers[i] = 1;
        enter(g, merges, symbol, i);
    }
    while ((rank = lowest(g, &from)) >= 0) {
        int32_t head = take(g, merges, symbol, rank);
        while (head >= 0) {
            int32_t place = g->entries[head].place;
            head = release(g, head);
            if (!stands(g, merges, symbol, rank, place) || merge_at(g, merges, symbol, rank, place) > rank)
                continue;
            from = 0; /* a lower rank, or this one further left, comes first */
            if (head >= 0)
                g->rest[rank] = head, mark(g, rank);
            break;
        }
    }
    for (int32_t i = 0; i < g->count; i += g->covers[i])
        symbol[kept++] = symbol[i];
    symbols->count = kept;
    return OK;
}

Status merging_run(Merging *g, const Merges *merges, Ids *symbols) {
    if (symbols->count > SHORT_WORD)
        return merge_long(g, merges, symbols);
    symbols->count = merge_short(merges, symbols->data, symbols->count);
    return OK;
}

void merging_free(Merging *g) {
    free(g->covers);
    free(g->entries);
    free(g->first);
    free(g->last);
    free(g->rest);
    free(g->bits);
    free(g->summary);
    *g = (Merging){0};
}
