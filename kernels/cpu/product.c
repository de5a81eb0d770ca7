/* Products over rows of tokens: operands are packed into panels, blocks finish in registers, each result is rounded once. */
#include "product.h"

#include <omp.h>

enum {
    /* Words of a's panels that are made at once: they stay in the second cache while all of b passes by. */
    WORDS_AT_ONCE = 1 << 18,
    LEAST_ROWS = 4 * BLOCK_ROWS,
    /* Depth of b's piece that meets these rows before the next: with a's it stays in the nearest cache. Neither changes a bit. */
    DEPTH_AT_ONCE = 320
};

typedef struct Job {
    const Product *p;
    const LowRank *low;
    int pairs;
    int64_t rank_steps, a_words, h_words, panels, left_panels;
    float *a, *h, *left; /* packed: a and h for the rows at once, left for the whole call */
} Job;

/* Puts columns col.. of `rows` rows of a block where they belong, rounded to c's dtype. */
static void block_store(const float *block, void *c, Dtype dtype, int64_t step, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++) {
        void *row = (char *)c + i * step * (int64_t)dtype_size(dtype);
        const float *from = block + i * BLOCK_COLS;
        int64_t j = 0;
        for (; j + LANES <= cols; j += LANES)
            vec_put(row, dtype, j, vec_load(from + j));
        if (j < cols)
            vec_put_part(row, dtype, j, cols - j, vec_load(from + j));
    }
}

static void block_scale(float *block, float scale) {
    for (int64_t k = 0; k < BLOCK_ROWS * BLOCK_COLS && scale != 1; k += LANES)
        vec_store(block + k, vec_load(block + k) * scale);
}

/* What the chain of sums starts from: the bias and the old value. */
static void block_start(float *block, const Product *p, const void *c, int64_t col, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++) {
        const void *row = (const char *)c + i * p->step * (int64_t)dtype_size(p->dtype);
        for (int64_t j = 0; j < cols; j += LANES) {
            int64_t n = cols - j;
            Vec v = {0};
            if (p->bias)
                v = n >= LANES ? vec_load(p->bias + col + j) : vec_get_part(p->bias + col, F32, j, n);
            if (p->add)
                v += n >= LANES ? vec_get(row, p->dtype, j) : vec_get_part(row, p->dtype, j, n);
            vec_store(block + i * BLOCK_COLS + j, v);
        }
    }
}

/* Packs block i of the rows from `first`, and makes its part of h. `own` holds a panel of the adapter's own input, then scaled h. */
static void rows_prepare(const Job *job, int64_t first, int64_t i, float *own) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    int64_t row = first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
    float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    float *a = job->a + i * job->a_words, *scaled = own + job->a_words;
    int same = low && low->low.data == p->a.data;
    if (p->c || same)
        KERNEL(panel_pack)(a, LEFT, side_at(p->a, row, 0), p->rows - row, p->depth, job->pairs);
    if (!low)
        return;
    if (!same)
        KERNEL(panel_pack)(own, LEFT, side_at(low->low, row, 0), p->rows - row, p->depth, job->pairs);
    Dtype dtype = low->low.dtype;
    int64_t size = (int64_t)dtype_size(dtype);
    char *h = (char *)low->h + row * low->h_step * size;
    for (int64_t j = 0; j < job->left_panels; j++) {
        int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, low->rank - col);
        Factors part = {same ? a : own, job->left + j * panel_words(BLOCK_COLS, p->depth, job->pairs), panel_steps(p->depth, job->pairs)};
        KERNEL(block_product)(block, 0, &part, 1, rows, cols, job->pairs);
        block_scale(block, low->left_scale);
        block_store(block, h + col * size, dtype, low->h_step, rows, cols);
        block_scale(block, low->right_scale);
        block_store(block, (char *)scaled + col * size, dtype, low->rank, rows, cols);
    }
    if (p->c)
        KERNEL(panel_pack)(job->h + i * job->h_words, LEFT, (Side){scaled, dtype, low->rank, 1}, rows, low->rank, job->pairs);
}

/* Blocks from..to (counted from row `first`) of column panel j: cut by cut of the depth, every block's chain goes on where it was.
 * `own` holds the piece of b, the low rank's panel and, if the depth has several cuts, the blocks. */
static void panel_run(const Job *job, int64_t first, int64_t from, int64_t to, int64_t j, float *own) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, p->cols - col), size = (int64_t)dtype_size(p->dtype);
    float single[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    float *right = own + panel_words(BLOCK_COLS, DEPTH_AT_ONCE, job->pairs), *blocks = right + panel_words(BLOCK_COLS, low ? low->rank : 0, job->pairs);
    Side next = side_at(p->b, col + omp_get_num_threads() * BLOCK_COLS, 0);
    int64_t next_lines = least(BLOCK_COLS, p->cols - col - omp_get_num_threads() * BLOCK_COLS);
    if (low)
        KERNEL(panel_pack)(right, RIGHT, side_at(low->right, col, 0), p->cols - col, low->rank, job->pairs);
    for (int64_t cut = 0; cut == 0 || cut < p->depth; cut += DEPTH_AT_ONCE) {
        int64_t depth = least(DEPTH_AT_ONCE, p->depth - cut), a_at = panel_steps(cut, job->pairs) * BLOCK_ROWS;
        KERNEL(panel_pack)(own, RIGHT, side_at(p->b, col, cut), p->cols - col, depth, job->pairs);
        for (int64_t i = from; i < to; i++) {
            int64_t row = first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
            char *c = (char *)p->c + (row * p->step + col) * size;
            float *block = p->depth > DEPTH_AT_ONCE ? blocks + (i - from) * BLOCK_ROWS * BLOCK_COLS : single;
            Factors parts[2] = {{job->a + i * job->a_words + a_at, own, panel_steps(depth, job->pairs)}};
            int count = 1, keep = cut > 0;
            if (next_lines > 0)
                side_prefetch(side_at(next, 0, cut), next_lines, depth, i - from, to - from);
            if (cut == 0 && low) {
                Factors part = {job->h + i * job->h_words, right, job->rank_steps};
                if (p->apart) {
                    KERNEL(block_product)(block, 0, &part, 1, rows, cols, job->pairs);
                    block_store(block, (char *)p->apart + (row * p->apart_step + col) * size, p->dtype, p->apart_step, rows, cols);
                } else {
                    parts[1] = parts[0], parts[0] = part;
                    count = 2;
                }
            }
            if (cut == 0 && (p->bias || p->add)) {
                block_start(block, p, c, col, rows, cols);
                keep = 1;
            }
            KERNEL(block_product)(block, keep, parts, count, rows, cols, job->pairs);
            if (cut + depth == p->depth)
                block_store(block, c, p->dtype, p->step, rows, cols);
        }
    }
}

Status KERNEL(product)(const Product *p) {
    const LowRank *low = p->low_rank;
    int pairs = sides_pair(p->a.dtype, p->b.dtype), threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    int64_t at_once = WORDS_AT_ONCE / (panel_steps(p->depth, pairs) + 1) / BLOCK_ROWS, rank = low ? low->rank : 0;
    at_once = least(count_of(p->rows, BLOCK_ROWS), at_once > LEAST_ROWS / BLOCK_ROWS ? at_once : LEAST_ROWS / BLOCK_ROWS);
    if (!p->rows || (p->c && !p->cols))
        return OK;
    Job job = {.p = p, .low = low, .pairs = pairs, .rank_steps = panel_steps(rank, pairs),
               .a_words = panel_words(BLOCK_ROWS, p->depth, pairs), .h_words = panel_words(BLOCK_ROWS, rank, pairs),
               .panels = p->c ? count_of(p->cols, BLOCK_COLS) : 0, .left_panels = count_of(rank, BLOCK_COLS)};
    int64_t wide = panel_words(BLOCK_COLS, p->depth, pairs);
    int64_t own_words = panel_words(BLOCK_COLS, DEPTH_AT_ONCE, pairs) + panel_words(BLOCK_COLS, rank, pairs) +
                        (p->depth > DEPTH_AT_ONCE ? at_once * BLOCK_ROWS * BLOCK_COLS : 0);
    int64_t prepare_words = low ? job.a_words + (BLOCK_ROWS * rank + 15) / 16 * 16 : 0;
    own_words = own_words > prepare_words ? own_words : prepare_words;
    int64_t words = at_once * (job.a_words + job.h_words) + job.left_panels * wide + threads * own_words;
    size_t bytes = (size_t)words * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch)
        return ERR_MEMORY;
    job.a = scratch;
    job.h = job.a + at_once * job.a_words;
    job.left = job.h + at_once * job.h_words;
    float *owned = job.left + job.left_panels * wide;
#pragma omp parallel
    {
        float *own = owned + omp_get_thread_num() * own_words;
        blocks_begin();
        if (low) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < job.left_panels; j++)
                KERNEL(panel_pack)(job.left + j * wide, RIGHT, side_at(low->left, j * BLOCK_COLS, 0),
                                   rank - j * BLOCK_COLS, p->depth, pairs);
        }
        for (int64_t first = 0; first < p->rows; first += at_once * BLOCK_ROWS) {
            int64_t blocks = count_of(least(at_once * BLOCK_ROWS, p->rows - first), BLOCK_ROWS);
            /* Enough pieces for the threads to end together, without packing b's panels too often. */
            int64_t groups = job.panels ? least(count_of(blocks, 8), count_of(8 * threads, job.panels)) : 0, items = job.panels * groups;
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < blocks; i++)
                rows_prepare(&job, first, i, own);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < items; i++) {
                int64_t g = i % groups;
                panel_run(&job, first, blocks * g / groups, blocks * (g + 1) / groups, i / groups, own);
            }
        }
        blocks_end();
    }
    scratch_free(scratch, bytes);
    return OK;
}

/* --- sums over tokens -------------------------------------------------------------------------------------------------- */

enum { TILES_AT_ONCE = 8 };

/* The side with fewer lines is packed for several tiles at once; the threads share out the other's lines. */
static inline int sum_swaps(const TokenSum *sum) { return sum->cols < sum->rows; }

size_t KERNEL(token_sum_bytes)(const TokenSum *sum) {
    int pairs = sides_pair(sum->a.dtype, sum->b.dtype), swap = sum_swaps(sum), threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    int kept_width = panel_width(swap ? RIGHT : LEFT), run_width = panel_width(swap ? LEFT : RIGHT);
    int64_t kept_panels = count_of(swap ? sum->cols : sum->rows, kept_width);
    return (size_t)(TILES_AT_ONCE * kept_panels * panel_words(kept_width, TILE, pairs) + threads * panel_words(run_width, TILE, pairs)) *
           sizeof(float);
}

void KERNEL(token_sum)(const TokenSum *sum, const int32_t *tiles, int64_t count, float *scratch) {
    int pairs = sides_pair(sum->a.dtype, sum->b.dtype), swap = sum_swaps(sum);
    Side kept = swap ? sum->b : sum->a, run = swap ? sum->a : sum->b;
    Panel kept_panel = swap ? RIGHT : LEFT, run_panel = swap ? LEFT : RIGHT;
    int kept_width = panel_width(kept_panel), run_width = panel_width(run_panel);
    int64_t kept_lines = swap ? sum->cols : sum->rows, run_lines = swap ? sum->rows : sum->cols;
    int64_t kept_panels = count_of(kept_lines, kept_width), run_panels = count_of(run_lines, run_width);
    int64_t kept_words = panel_words(kept_width, TILE, pairs), run_words = panel_words(run_width, TILE, pairs);
#pragma omp parallel
    {
        float *own = scratch + TILES_AT_ONCE * kept_panels * kept_words + omp_get_thread_num() * run_words;
        float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
        blocks_begin();
        for (int64_t first = 0; first < count; first += TILES_AT_ONCE) {
            int64_t some = least(TILES_AT_ONCE, count - first);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < some * kept_panels; i++) {
                int64_t t = first + i / kept_panels, line = i % kept_panels * kept_width;
                KERNEL(panel_pack)(scratch + i * kept_words, kept_panel, side_at(kept, line, tiles[t]),
                                   kept_lines - line, tiles[t + 1] - tiles[t], pairs);
            }
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < run_panels; i++)
                for (int64_t t = 0; t < some; t++) {
                    int64_t line = i * run_width, depth = tiles[first + t + 1] - tiles[first + t];
                    KERNEL(panel_pack)(own, run_panel, side_at(run, line, tiles[first + t]), run_lines - line, depth, pairs);
                    for (int64_t j = 0; j < kept_panels; j++) {
                        const float *other = scratch + (t * kept_panels + j) * kept_words;
                        int64_t row = swap ? line : j * kept_width, col = swap ? j * kept_width : line;
                        int64_t rows = least(BLOCK_ROWS, sum->rows - row), cols = least(BLOCK_COLS, sum->cols - col);
                        Factors part = {swap ? own : other, swap ? other : own, panel_steps(depth, pairs)};
                        KERNEL(block_product)(block, 0, &part, 1, rows, cols, pairs);
                        for (int64_t r = 0; r < rows; r++) {
                            float *c = sum->c + (row + r) * sum->step + col;
                            const float *from = block + r * BLOCK_COLS;
                            int64_t k = 0;
                            for (; k + LANES <= cols; k += LANES)
                                vec_store(c + k, vec_load(c + k) + vec_load(from + k) * sum->scale);
                            for (; k < cols; k++)
                                c[k] = __builtin_fmaf(from[k], sum->scale, c[k]);
                        }
                    }
                }
        }
        blocks_end();
    }
}
