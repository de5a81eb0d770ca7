/* Products over rows of tokens: operands are packed into panels, blocks finish in registers, each result is rounded once. */
#include "product.h"

#include <omp.h>

/* Rows whose panels are made at once. It bounds scratch (rows x depth) and how often b is packed again; it changes no bit. */
enum { ROWS_AT_ONCE = 64 * BLOCK_ROWS };

typedef struct Job {
    const Product *p;
    const LowRank *low;
    int pairs;
    int64_t steps, rank_steps, a_words, h_words, panels, left_panels;
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

/* What the chain of sums starts from: the scaled low-rank part, the bias, the old value. */
static void block_start(float *block, const Product *p, const void *c, int64_t col, int64_t rows, int64_t cols, float scale) {
    for (int64_t i = 0; i < rows; i++) {
        const void *row = (const char *)c + i * p->step * (int64_t)dtype_size(p->dtype);
        for (int64_t j = 0; j < cols; j += LANES) {
            int64_t n = cols - j;
            Vec v = vec_load(block + i * BLOCK_COLS + j) * scale;
            if (p->bias)
                v += n >= LANES ? vec_load(p->bias + col + j) : vec_get_part(p->bias + col, F32, j, n);
            if (p->add)
                v += n >= LANES ? vec_get(row, p->dtype, j) : vec_get_part(row, p->dtype, j, n);
            vec_store(block + i * BLOCK_COLS + j, v);
        }
    }
}

/* Packs block i of the rows from `first`, and makes its part of h. `own` holds a panel of the adapter's own input. */
static void rows_prepare(const Job *job, int64_t first, int64_t i, float *own) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    int64_t row = first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
    float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    float *a = job->a + i * job->a_words;
    int same = low && low->low.data == p->a.data;
    if (p->c || same)
        KERNEL(panel_pack)(a, LEFT, side_at(p->a, row, 0), p->rows - row, p->depth, job->pairs);
    if (!low)
        return;
    if (!same)
        KERNEL(panel_pack)(own, LEFT, side_at(low->low, row, 0), p->rows - row, p->depth, job->pairs);
    Dtype dtype = low->low.dtype;
    char *h = (char *)low->h + row * low->h_step * (int64_t)dtype_size(dtype);
    for (int64_t j = 0; j < job->left_panels; j++) {
        int64_t cols = least(BLOCK_COLS, low->rank - j * BLOCK_COLS);
        KERNEL(block_product)(block, 0, same ? a : own, job->left + j * panel_words(BLOCK_COLS, p->depth, job->pairs), job->steps, rows,
                              cols, job->pairs);
        for (int64_t k = 0; k < rows * BLOCK_COLS; k += LANES)
            vec_store(block + k, vec_load(block + k) * low->left_scale);
        block_store(block, h + j * BLOCK_COLS * (int64_t)dtype_size(dtype), dtype, low->h_step, rows, cols);
    }
    if (p->c)
        KERNEL(panel_pack)(job->h + i * job->h_words, LEFT, (Side){h, dtype, low->h_step, 1}, rows, low->rank, job->pairs);
}

/* Blocks from..to (counted from row `first`) of column panel j. `own` holds the panel of b, then that of the low rank. */
static void panel_run(const Job *job, int64_t first, int64_t from, int64_t to, int64_t j, float *own) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, p->cols - col), size = (int64_t)dtype_size(p->dtype);
    float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    float *right = own + panel_words(BLOCK_COLS, p->depth, job->pairs);
    int starts = p->bias || p->add || (low && !p->apart);
    KERNEL(panel_pack)(own, RIGHT, side_at(p->b, col, 0), p->cols - col, p->depth, job->pairs);
    if (low)
        KERNEL(panel_pack)(right, RIGHT, side_at(low->right, col, 0), p->cols - col, low->rank, job->pairs);
    for (int64_t i = from; i < to; i++) {
        int64_t row = first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
        char *c = (char *)p->c + (row * p->step + col) * size;
        float scale = 0;
        if (starts && !low)
            memset(block, 0, sizeof block);
        if (low) {
            KERNEL(block_product)(block, 0, job->h + i * job->h_words, right, job->rank_steps, rows, cols, job->pairs);
            scale = low->right_scale;
        }
        if (p->apart) {
            for (int64_t k = 0; k < rows * BLOCK_COLS; k += LANES)
                vec_store(block + k, vec_load(block + k) * scale);
            block_store(block, (char *)p->apart + (row * p->apart_step + col) * size, p->dtype, p->apart_step, rows, cols);
            memset(block, 0, sizeof block);
        }
        if (starts)
            block_start(block, p, c, col, rows, cols, scale);
        KERNEL(block_product)(block, starts, job->a + i * job->a_words, own, job->steps, rows, cols, job->pairs);
        block_store(block, c, p->dtype, p->step, rows, cols);
    }
}

Status KERNEL(product)(const Product *p) {
    const LowRank *low = p->low_rank;
    int pairs = sides_pair(p->a.dtype, p->b.dtype), threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    int64_t at_once = least(count_of(p->rows, BLOCK_ROWS), ROWS_AT_ONCE / BLOCK_ROWS), rank = low ? low->rank : 0;
    if (!p->rows || (p->c && !p->cols))
        return OK;
    Job job = {.p = p, .low = low, .pairs = pairs, .steps = panel_steps(p->depth, pairs), .rank_steps = panel_steps(rank, pairs),
               .a_words = panel_words(BLOCK_ROWS, p->depth, pairs), .h_words = panel_words(BLOCK_ROWS, rank, pairs),
               .panels = p->c ? count_of(p->cols, BLOCK_COLS) : 0, .left_panels = count_of(rank, BLOCK_COLS)};
    int64_t wide = panel_words(BLOCK_COLS, p->depth, pairs), own_words = wide + panel_words(BLOCK_COLS, rank, pairs);
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
        if (low) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < job.left_panels; j++)
                KERNEL(panel_pack)(job.left + j * wide, RIGHT, side_at(low->left, j * BLOCK_COLS, 0),
                                   rank - j * BLOCK_COLS, p->depth, pairs);
        }
        for (int64_t first = 0; first < p->rows; first += ROWS_AT_ONCE) {
            int64_t blocks = count_of(least(ROWS_AT_ONCE, p->rows - first), BLOCK_ROWS);
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
    }
    scratch_free(scratch, bytes);
    return OK;
}

/* --- sums over tokens -------------------------------------------------------------------------------------------------- */

enum { TILES_AT_ONCE = 8 };

Status KERNEL(token_sum)(const TokenSum *sum, const int32_t *tiles, int64_t count) {
    int pairs = sides_pair(sum->a.dtype, sum->b.dtype), threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    /* The side with fewer lines is packed for several tiles at once; the threads share out the other's lines. */
    int swap = sum->cols < sum->rows;
    Side kept = swap ? sum->b : sum->a, run = swap ? sum->a : sum->b;
    Panel kept_panel = swap ? RIGHT : LEFT, run_panel = swap ? LEFT : RIGHT;
    int kept_width = panel_width(kept_panel), run_width = panel_width(run_panel);
    int64_t kept_lines = swap ? sum->cols : sum->rows, run_lines = swap ? sum->rows : sum->cols;
    int64_t kept_panels = count_of(kept_lines, kept_width), run_panels = count_of(run_lines, run_width);
    int64_t kept_words = panel_words(kept_width, TILE, pairs), run_words = panel_words(run_width, TILE, pairs);
    size_t bytes = (size_t)(TILES_AT_ONCE * kept_panels * kept_words + threads * run_words) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch)
        return ERR_MEMORY;
#pragma omp parallel
    {
        float *own = scratch + TILES_AT_ONCE * kept_panels * kept_words + omp_get_thread_num() * run_words;
        float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
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
                        KERNEL(block_product)(block, 0, swap ? own : other, swap ? other : own, panel_steps(depth, pairs), rows, cols, pairs);
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
    }
    scratch_free(scratch, bytes);
    return OK;
}
