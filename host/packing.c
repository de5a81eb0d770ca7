#include "packing.h"

#include <stdlib.h>
#include <string.h>

#include "random.h"

/* Samples are packed in windows of this many: the longest first within one, and rows do not reach beyond it. */
enum { WINDOW = 1 << 16 };

/* Keeps the shuffle's counters away from those of other draws with the same seed. */
#define SHUFFLE_SITE UINT64_C(0x6f72646572000000)

static Status no_memory(int64_t n) { return fail(ERR_MEMORY, "no memory for the order of %lld samples", (long long)n); }

static int64_t cut_length(const Corpus *c, int64_t i, int32_t seq_len) {
    int64_t n = corpus_length(c, i);
    return n < seq_len ? n : seq_len;
}

static void plan_samples(Rows *rows, const Corpus *c) {
    for (int64_t i = 0; i < c->samples; i++) {
        rows->pieces[i] = (Piece){corpus_begin(c, i), (int32_t)cut_length(c, i, rows->seq_len)};
        rows->firsts[i] = i;
    }
    rows->rows = rows->n_pieces = c->samples;
}

static void plan_stream(Rows *rows, int64_t tokens) {
    int64_t n = tokens / rows->seq_len;
    for (int64_t r = 0; r < n; r++)
        rows->pieces[r] = (Piece){r * rows->seq_len, rows->seq_len};
    if (n == 0 && tokens > 0)
        rows->pieces[n++] = (Piece){0, (int32_t)tokens};
    for (int64_t r = 0; r < n; r++)
        rows->firsts[r] = r;
    rows->rows = rows->n_pieces = n;
}

/* Bins of one window: rows with the same free space form a list, and a set of bits says which lists are not empty. */
typedef struct Bins {
    int32_t *heads;   /* (seq_len + 1): a row with that many free places, or -1 */
    int32_t *nexts;   /* (window): the next row of the list, or -1 */
    uint64_t *filled; /* (seq_len / 64 + 1) */
    int32_t *lasts;   /* (window): the piece put last into the row, or -1 */
    int32_t *befores; /* (window): the piece before it in the same row, or -1 */
    int32_t *sorted;  /* (window): samples, the longest first */
    int32_t *counts;  /* (seq_len + 2) */
} Bins;

static void bins_put(Bins *b, int32_t free, int32_t row) {
    b->nexts[row] = b->heads[free];
    b->heads[free] = row;
    b->filled[free / 64] |= UINT64_C(1) << (free % 64);
}

/* The least free space >= need that some row has, or -1. */
static int32_t bins_find(const Bins *b, int32_t need, int32_t seq_len) {
    uint64_t word = b->filled[need / 64] & (~UINT64_C(0) << (need % 64));
    for (int32_t i = need / 64;;) {
        if (word)
            return i * 64 + __builtin_ctzll(word);
        if (++i > seq_len / 64)
            return -1;
        word = b->filled[i];
    }
}

static int32_t bins_take(Bins *b, int32_t free) {
    int32_t row = b->heads[free];
    b->heads[free] = b->nexts[row];
    if (b->heads[free] < 0)
        b->filled[free / 64] &= ~(UINT64_C(1) << (free % 64));
    return row;
}

/* Sorts the window's samples by length, the longest first and equal ones in their order (a counting sort). */
static void sort_window(Bins *b, const Corpus *c, int64_t first, int32_t n, int32_t seq_len) {
    memset(b->counts, 0, ((size_t)seq_len + 2) * sizeof *b->counts);
    for (int32_t i = 0; i < n; i++)
        b->counts[seq_len - cut_length(c, first + i, seq_len) + 1]++;
    for (int32_t l = 1; l <= seq_len + 1; l++)
        b->counts[l] += b->counts[l - 1];
    for (int32_t i = 0; i < n; i++)
        b->sorted[b->counts[seq_len - cut_length(c, first + i, seq_len)]++] = i;
}

/* Packs samples [first, first + n) and appends the rows. */
static void pack_window(Rows *rows, const Corpus *c, Bins *b, int64_t first, int32_t n) {
    int32_t seq_len = rows->seq_len, made = 0;
    sort_window(b, c, first, n, seq_len);
    memset(b->heads, -1, ((size_t)seq_len + 1) * sizeof *b->heads);
    memset(b->filled, 0, ((size_t)seq_len / 64 + 1) * sizeof *b->filled);
    for (int32_t k = 0; k < n; k++) {
        int32_t i = b->sorted[k], length = (int32_t)cut_length(c, first + i, seq_len);
        int32_t free = bins_find(b, length, seq_len), row;
        if (free >= 0) {
            row = bins_take(b, free);
        } else {
            row = made++;
            free = seq_len;
            b->lasts[row] = -1;
        }
        b->befores[i] = b->lasts[row];
        b->lasts[row] = i;
        bins_put(b, free - length, row);
    }
    for (int32_t row = 0; row < made; row++) {
        rows->firsts[rows->rows++] = rows->n_pieces;
        for (int32_t i = b->lasts[row]; i >= 0; i = b->befores[i])
            rows->pieces[rows->n_pieces++] = (Piece){corpus_begin(c, first + i), (int32_t)cut_length(c, first + i, seq_len)};
    }
}

static Status plan_best_fit(Rows *rows, const Corpus *c) {
    size_t window = (size_t)(c->samples < WINDOW ? c->samples : WINDOW), lengths = (size_t)rows->seq_len;
    Bins b = {
        malloc((lengths + 1) * sizeof(int32_t)), malloc((window + 1) * sizeof(int32_t)), malloc((lengths / 64 + 1) * sizeof(uint64_t)),
        malloc((window + 1) * sizeof(int32_t)),  malloc((window + 1) * sizeof(int32_t)), malloc((window + 1) * sizeof(int32_t)),
        malloc((lengths + 2) * sizeof(int32_t)),
    };
    Status status = OK;
    if (!b.heads || !b.nexts || !b.filled || !b.lasts || !b.befores || !b.sorted || !b.counts)
        status = no_memory(c->samples);
    for (int64_t first = 0; status == OK && first < c->samples; first += WINDOW) {
        int64_t left = c->samples - first;
        pack_window(rows, c, &b, first, (int32_t)(left < WINDOW ? left : WINDOW));
    }
    free(b.heads);
    free(b.nexts);
    free(b.filled);
    free(b.lasts);
    free(b.befores);
    free(b.sorted);
    free(b.counts);
    return status;
}

Status rows_plan(Rows *rows, const Corpus *c, Packing packing, int32_t seq_len) {
    int64_t total = (int64_t)c->ids.count;
    if (seq_len < 2)
        return fail(ERR_ARGUMENT, "rows of %d tokens; at least 2 are needed", seq_len);
    rows->seq_len = seq_len;
    int64_t most = packing == PACK_STREAM ? total / seq_len + 1 : c->samples;
    rows->pieces = calloc((size_t)most + 1, sizeof *rows->pieces);
    rows->firsts = calloc((size_t)most + 1, sizeof *rows->firsts);
    rows->order = calloc((size_t)most + 1, sizeof *rows->order);
    if (!rows->pieces || !rows->firsts || !rows->order) {
        rows_free(rows);
        return no_memory(most);
    }
    Status status = OK;
    if (packing == PACK_STREAM)
        plan_stream(rows, total);
    else if (packing == PACK_BEST_FIT)
        status = plan_best_fit(rows, c);
    else
        plan_samples(rows, c);
    if (status != OK) {
        rows_free(rows);
        return status;
    }
    rows->firsts[rows->rows] = rows->n_pieces;
    for (int64_t r = 0; r < rows->rows; r++) {
        int64_t length = 0;
        for (int64_t p = rows->firsts[r]; p < rows->firsts[r + 1]; p++)
            length += rows->pieces[p].length;
        rows->tokens += length;
        rows->longest = length > rows->longest ? length : rows->longest;
    }
    rows->dropped = total - rows->tokens;
    if (packing != PACK_STREAM)
        for (int64_t i = 0; i < c->samples; i++)
            rows->truncated += corpus_length(c, i) > seq_len;
    rows_in_order(rows);
    return OK;
}

void rows_in_order(Rows *rows) {
    for (int64_t r = 0; r < rows->rows; r++)
        rows->order[r] = r;
}

void rows_streams(Rows *rows, int64_t streams) {
    int64_t turns = rows->rows / streams;
    rows_in_order(rows);
    for (int64_t u = 0; u < turns; u++)
        for (int64_t k = 0; k < streams; k++)
            rows->order[u * streams + k] = k * turns + u;
}

/* A uniform number below n: the high half of random * n, whose bias is below n / 2^64. */
static uint64_t below(uint64_t n, uint64_t seed, uint32_t epoch, uint64_t counter) {
    uint32_t words[4];
    philox(words, seed, SHUFFLE_SITE ^ epoch, counter);
    uint64_t random = (uint64_t)words[1] << 32 | words[0];
    return (uint64_t)(((unsigned __int128)random * n) >> 64);
}

void rows_shuffle(Rows *rows, uint64_t seed, uint32_t epoch) {
    rows_in_order(rows);
    for (int64_t r = rows->rows - 1; r > 0; r--) {
        int64_t other = (int64_t)below((uint64_t)r + 1, seed, epoch, (uint64_t)r);
        int64_t kept = rows->order[r];
        rows->order[r] = rows->order[other];
        rows->order[other] = kept;
    }
}

void rows_measure(const Rows *rows, int64_t first, int64_t count, Batch *b) {
    b->tokens = b->sequences = b->longest = b->supervised = 0;
    for (int64_t i = first; i < first + count; i++) {
        int64_t r = rows->order[i];
        for (int64_t p = rows->firsts[r]; p < rows->firsts[r + 1]; p++) {
            b->tokens += rows->pieces[p].length;
            b->sequences++;
            if (rows->pieces[p].length > b->longest)
                b->longest = rows->pieces[p].length;
        }
    }
}

static void fill_piece(const Corpus *c, Piece piece, int64_t at, Batch *b) {
    for (int32_t t = 0; t < piece.length; t++) {
        int64_t from = piece.begin + t;
        int32_t label = c->own ? c->labels.data[from] : t + 1 < piece.length ? c->labels.data[from + 1] : NO_LABEL;
        b->ids[at + t] = c->ids.data[from];
        b->labels[at + t] = label;
        b->positions[at + t] = t;
        b->numbers[at + t] = from;
        b->supervised += label != NO_LABEL;
    }
}

void rows_fill(const Rows *rows, const Corpus *c, int64_t first, int64_t count, Batch *b) {
    int64_t at = 0, sequence = 0;
    b->supervised = 0;
    b->starts[0] = 0;
    for (int64_t i = first; i < first + count; i++) {
        int64_t r = rows->order[i];
        for (int64_t p = rows->firsts[r]; p < rows->firsts[r + 1]; p++) {
            fill_piece(c, rows->pieces[p], at, b);
            at += rows->pieces[p].length;
            b->starts[++sequence] = (int32_t)at;
        }
    }
}

void rows_free(Rows *rows) {
    free(rows->pieces);
    free(rows->firsts);
    free(rows->order);
    *rows = (Rows){0};
}
