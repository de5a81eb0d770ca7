/* Gradients of the adapter: sums over tokens in which one side is only the rank wide, so that reading the other is most of the
 * time. It is read once, in pieces of rows as long as the second cache allows, and is always a right panel, which is packed without
 * turning it. */
#include <omp.h>

#include "product.h"

enum {
    PANELS = 32,       /* at most, of the wide side at once: a tile of them lies in the second cache */
    TILES_AT_ONCE = 8  /* tiles of the narrow side that are packed at once, for all threads */
};

/* c += scale * narrow^T wide, c (rank, width), or (width, rank) if turned. */
typedef struct RankSum {
    float *c;
    int turned;
    Side narrow, wide; /* lines over the tokens */
    int64_t rank, width;
    float scale;
    int pairs;
    int64_t words;       /* of one tile of the narrow side, packed */
    int64_t panels, runs; /* of the wide side: panels at once, and how often */
    float *packed;
} RankSum;

static inline int64_t left_panels(const RankSum *s) { return count_of(s->rank, BLOCK_ROWS); }

static void narrow_pack(const RankSum *s, int64_t slot, int64_t from, int64_t to) {
    int64_t words = panel_words(BLOCK_ROWS, TILE, s->pairs);
    for (int64_t j = 0; j < left_panels(s); j++)
        KERNEL(panel_pack)(s->packed + slot * s->words + j * words, LEFT, side_at(s->narrow, j * BLOCK_ROWS, from), s->rank - j * BLOCK_ROWS,
                           to - from, s->pairs);
}

/* c's rows += scale * a block's. */
static void add_block(const RankSum *s, const float *block, int64_t r, int64_t rows, int64_t col, int64_t cols) {
    for (int64_t i = 0; i < rows; i++, block += BLOCK_COLS) {
        float *c = s->c + (r + i) * s->width + col;
        int64_t k = 0;
        for (; k + LANES <= cols; k += LANES)
            vec_store(c + k, vec_load(c + k) + vec_load(block + k) * s->scale);
        for (; k < cols; k++)
            c[k] += block[k] * s->scale;
    }
}

/* c's columns += scale * a block's rows. A rank may be less than a vector: four at a time. */
static void add_turned(const RankSum *s, const float *block, int64_t r, int64_t rows, int64_t col, int64_t cols) {
    float turn[BLOCK_COLS * BLOCK_COLS] __attribute__((aligned(64)));
    KERNEL(panel_pack)(turn, RIGHT, (Side){block, F32, BLOCK_COLS, 1}, rows, cols, 0);
    for (int64_t j = 0; j < cols; j++) {
        float *c = s->c + (col + j) * s->rank + r;
        const float *from = turn + j * BLOCK_COLS;
        int64_t k = 0;
        for (; k + 4 <= rows; k += 4)
            _mm_storeu_ps(c + k, _mm_loadu_ps(c + k) + _mm_loadu_ps(from + k) * s->scale);
        for (; k < rows; k++)
            c[k] += from[k] * s->scale;
    }
}

/* Reads lines of tokens from..to once, row by row: memory comes twice as fast as when it is asked for panel by panel, with
 * prefetches too (32 against 54 ms for the adapters of a 1B model, 512 tokens, Sapphire Rapids). */
static void rows_touch(Side s, int64_t width, int64_t from, int64_t to) {
    int64_t bytes = width * (int64_t)dtype_size(s.dtype);
    for (int64_t t = from; t < to; t++) {
        const volatile char *row = side_at(s, 0, t).data;
        for (int64_t b = 0; b < bytes; b += 64)
            (void)row[b];
    }
}

/* One run of the wide side against tile `slot` of the narrow one, the tokens from..to. */
static void run_sum(const RankSum *s, int64_t run, int64_t slot, int64_t from, int64_t to, float *own) {
    int64_t first = run * s->panels * BLOCK_COLS, width = least(s->panels * BLOCK_COLS, s->width - first);
    int64_t words = panel_words(BLOCK_ROWS, TILE, s->pairs), steps = panel_steps(to - from, s->pairs);
    float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    rows_touch(side_at(s->wide, first, 0), width, from, to);
    for (int64_t col = 0; col < width; col += BLOCK_COLS) {
        int64_t cols = least(BLOCK_COLS, width - col);
        KERNEL(panel_pack)(own, RIGHT, side_at(s->wide, first + col, from), cols, to - from, s->pairs);
        for (int64_t j = 0; j < left_panels(s); j++) {
            int64_t r = j * BLOCK_ROWS, rows = least(BLOCK_ROWS, s->rank - r);
            Factors part = {s->packed + slot * s->words + j * words, own, steps};
            KERNEL(block_product)(block, 0, &part, 1, rows, cols, s->pairs, NULL);
            (s->turned ? add_turned : add_block)(s, block, r, rows, first + col, cols);
        }
    }
}

static void sums_run(const RankSum sums[2], const int32_t *tiles, int64_t count, float *owned, int64_t own_words) {
#pragma omp parallel
    {
        float *own = owned + omp_get_thread_num() * own_words;
        blocks_begin();
        for (int64_t first = 0; first < count; first += TILES_AT_ONCE) {
            int64_t some = least(TILES_AT_ONCE, count - first);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < 2 * some; i++)
                narrow_pack(&sums[i % 2], i / 2, tiles[first + i / 2], tiles[first + i / 2 + 1]);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < sums[0].runs + sums[1].runs; i++) {
                const RankSum *s = &sums[i >= sums[0].runs];
                for (int64_t t = 0; t < some; t++)
                    run_sum(s, i - (s == sums ? 0 : sums[0].runs), t, tiles[first + t], tiles[first + t + 1], own);
            }
        }
        blocks_end();
    }
}

Status KERNEL(lora_backward)(View *da, View *db, const View *dh, const View *dy, const View *h, const Lora *lora, const View *starts) {
    int64_t rank = view_width(h), in = view_width(lora->x), out = view_width(dy), count;
    int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    int32_t *tiles;
    size_t bytes;
    RankSum sums[2] = {{.c = da->data, .narrow = side_columns(dh), .wide = side_columns(lora->x), .width = in, .scale = 1},
                       {.c = db->data, .narrow = side_columns(h), .wide = side_columns(dy), .width = out, .scale = lora->scale, .turned = 1}};
    int64_t words = 0, own_words = 0, share = count_of(count_of(in, BLOCK_COLS) + count_of(out, BLOCK_COLS), 2 * threads);
    for (int i = 0; i < 2; i++) {
        RankSum *s = &sums[i];
        s->rank = rank;
        s->pairs = sides_pair(s->narrow.dtype, s->wide.dtype);
        s->words = left_panels(s) * panel_words(BLOCK_ROWS, TILE, s->pairs);
        s->panels = least(PANELS, share ? share : 1);
        s->runs = count_of(s->width, s->panels * BLOCK_COLS);
        words += TILES_AT_ONCE * s->words;
        own_words = panel_words(BLOCK_COLS, TILE, s->pairs) > own_words ? panel_words(BLOCK_COLS, TILE, s->pairs) : own_words;
    }
    Status status = tiles_make(&tiles, &count, &bytes, starts, view_rows(dy));
    if (status != OK)
        return status;
    size_t scratch_bytes = (size_t)(words + threads * own_words) * sizeof(float);
    float *scratch = scratch_alloc(scratch_bytes);
    if (scratch && !scratch_only()) {
        sums[0].packed = scratch;
        sums[1].packed = scratch + TILES_AT_ONCE * sums[0].words;
        sums_run(sums, tiles, count, scratch + words, own_words);
    }
    scratch_free(scratch, scratch_bytes);
    scratch_free(tiles, bytes);
    return scratch ? OK : ERR_MEMORY;
}
