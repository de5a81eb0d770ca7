/* Products over rows of tokens: operands are packed into panels, blocks finish in registers, each result is rounded once. */
#include "product.h"

#include <omp.h>

enum {
    ROWS_PACKED = 2048,      /* rows of a that are packed at once, fewer if they are deep, */
    WORDS_PACKED = 1 << 22,  /* more than so many words; but at least as many rows as */
    ROWS_AT_ONCE = 512,      /* those that one piece of b meets: */
    PANELS_AT_ONCE = 8,      /* so many panels (with tiles and FEW_BLOCKS of rows at most: 2 or 16, see most_panels()), ... */
    DEPTH_AT_ONCE = 256,     /* ... about so deep. Rows and blocks then lie in the second cache, a panel in the first. */
    UNIT_DEPTH = 32,         /* A piece is packed unit by unit (a panel wide, or */
    FEW_BLOCKS = 4,          /* (their packed rows stay in the second cache.) */
    UNIT_ROWS = 8,           /* so many rows of it) beside the products of the piece before it, */
    UNITS_AHEAD = 4          /* and asked of memory so many units earlier. Nothing here changes a bit. */
};

typedef struct Job {
    const Product *p;
    const LowRank *low;
    int pairs, threads;
    int64_t cuts, cut_depth, at_once; /* the depth's cuts; blocks of rows packed at once */
    int64_t a_words, b_words, h_words, right_words, low_words; /* of one panel: a's and b's are one cut deep */
    int64_t panels, left_panels;
    float *a, *h, *left; /* packed: a (cuts, blocks) and h for the rows at once, left (panels, cuts) for the whole call */
    int64_t first, blocks, chunks, groups, taken; /* the rows at once, and the shares of their work */
} Job;

/* A share of the columns' panels and of the rows' blocks, at one cut of the depth; no panels: there is none. */
typedef struct Piece {
    int64_t panel, panels, from, to, cut;
} Piece;

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

static inline int64_t cut_length(const Job *job, int64_t depth, int64_t cut) { return least(job->cut_depth, depth - cut * job->cut_depth); }
static inline float *a_at(const Job *job, int64_t block, int64_t cut) { return job->a + (cut * job->at_once + block) * job->a_words; }

/* Packs block i of the rows, and makes its part of h. `own` holds a panel of the adapter's own input, then the blocks of h, then h. */
static void rows_prepare(const Job *job, int64_t i, float *own) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    int64_t row = job->first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
    float *blocks = own + job->a_words, *scaled = blocks + job->left_panels * BLOCK_ROWS * BLOCK_COLS;
    int same = low && low->low.data == p->a.data && low->depth == p->depth;
    for (int64_t cut = 0; (p->c || same) && cut < job->cuts; cut++)
        KERNEL(panel_pack)(a_at(job, i, cut), LEFT, side_at(p->a, row, cut * job->cut_depth), rows, cut_length(job, p->depth, cut),
                           job->pairs);
    if (!low)
        return;
    for (int64_t cut = 0; cut == 0 || cut * job->cut_depth < low->depth; cut++) {
        int64_t depth = cut_length(job, low->depth, cut);
        if (!same)
            KERNEL(panel_pack)(own, LEFT, side_at(low->low, row, cut * job->cut_depth), rows, depth, job->pairs);
        for (int64_t j = 0; j < job->left_panels; j++) {
            const float *left = job->left + j * job->low_words + panel_steps(cut * job->cut_depth, job->pairs) * BLOCK_COLS;
            Factors part = {same ? a_at(job, i, cut) : own, left, panel_steps(depth, job->pairs)};
            KERNEL(block_product)(blocks + j * BLOCK_ROWS * BLOCK_COLS, cut > 0, &part, 1, rows, low->rank - j * BLOCK_COLS, job->pairs);
        }
    }
    Dtype dtype = low->low.dtype;
    int64_t size = (int64_t)dtype_size(dtype);
    char *h = (char *)low->h + row * low->h_step * size;
    for (int64_t j = 0; j < job->left_panels; j++) {
        float *block = blocks + j * BLOCK_ROWS * BLOCK_COLS;
        int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, low->rank - col);
        block_scale(block, low->left_scale);
        block_store(block, h + col * size, dtype, low->h_step, rows, cols);
        block_scale(block, low->right_scale);
        block_store(block, (char *)scaled + col * size, dtype, low->rank, rows, cols);
    }
    if (p->c)
        KERNEL(panel_pack)(job->h + i * job->h_words, LEFT, (Side){scaled, dtype, low->rank, 1}, rows, low->rank, job->pairs);
}

/* The next share of the work, at its first cut. */
static Piece piece_take(Job *job) {
    int64_t n, chunks = job->chunks, groups = job->groups;
#pragma omp atomic capture
    n = job->taken++;
    if (n >= chunks * groups)
        return (Piece){0};
    int64_t chunk = n / groups, group = n % groups, panel = job->panels * chunk / chunks;
    return (Piece){.panel = panel, .panels = job->panels * (chunk + 1) / chunks - panel,
                   .from = job->blocks * group / groups, .to = job->blocks * (group + 1) / groups};
}

/* Whole panels of columns that lie side by side are packed some rows of the depth at a time, all panels of the piece together:
 * the longer the runs, the faster they come from memory. */
static int piece_by_rows(const Job *job, const Piece *piece) {
    const Product *p = job->p;
    return PACKS_ROWS && job->pairs && !p->rounded && p->b.step == 1 && p->b.inner != 1 &&
           (piece->panel + piece->panels) * BLOCK_COLS <= p->cols && cut_length(job, p->depth, piece->cut) % UNIT_DEPTH == 0;
}

static inline int64_t piece_units(const Job *job, const Piece *piece) {
    int64_t length = cut_length(job, job->p->depth, piece->cut);
    return piece_by_rows(job, piece) ? length / UNIT_ROWS : piece->panels * count_of(length, UNIT_DEPTH);
}

/* Unit u of a piece of b: packed, or, with `to` NULL, asked of memory. Units follow each other as their memory does. */
static void piece_unit(const Job *job, const Piece *piece, int64_t u, float *to) {
    const Product *p = job->p;
    int64_t length = cut_length(job, p->depth, piece->cut), units = count_of(length, UNIT_DEPTH);
    if (piece_by_rows(job, piece)) {
        Side rows = side_at(p->b, piece->panel * BLOCK_COLS, piece->cut * job->cut_depth + u * UNIT_ROWS);
        if (to)
            KERNEL(panels_pack_rows)(to + u * UNIT_ROWS / 2 * BLOCK_COLS, job->b_words, piece->panels, rows, UNIT_ROWS);
        else
            side_prefetch(rows, piece->panels * BLOCK_COLS, UNIT_ROWS, 0, 1);
        return;
    }
    int64_t j = p->b.inner == 1 ? u / units : u % piece->panels, k = (p->b.inner == 1 ? u % units : u / piece->panels) * UNIT_DEPTH;
    int64_t col = (piece->panel + j) * BLOCK_COLS, cols = least(BLOCK_COLS, p->cols - col), depth = least(UNIT_DEPTH, length - k);
    Side from = side_at(p->b, col, piece->cut * job->cut_depth + k);
    if (!to) {
        side_prefetch(from, cols, depth, 0, 1);
        return;
    }
    to += j * job->b_words + panel_steps(k, job->pairs) * BLOCK_COLS;
    if (p->rounded)
        KERNEL(panel_pack_rounded)(to, RIGHT, from, cols, depth, job->pairs);
    else
        KERNEL(panel_pack)(to, RIGHT, from, cols, depth, job->pairs);
}

static void piece_pack(const Job *job, const Piece *piece, int64_t from, int64_t to, float *packed) {
    Piece after = *piece;
    int64_t units = piece_units(job, piece);
    after.cut++;
    for (int64_t u = from; u < to; u++) {
        if (u + UNITS_AHEAD < units)
            piece_unit(job, piece, u + UNITS_AHEAD, NULL);
        else if (after.cut < job->cuts && u + UNITS_AHEAD - units < piece_units(job, &after))
            piece_unit(job, &after, u + UNITS_AHEAD - units, NULL);
        piece_unit(job, piece, u, packed);
    }
}

/* Share `i` of `of` of the packed rows that a piece will meet, brought near. */
static void rows_prefetch(const Job *job, const Piece *piece, int64_t i, int64_t of) {
    int64_t lines = (piece->to - piece->from) * job->a_words / 16;
    const float *a = a_at(job, piece->from, piece->cut);
    for (int64_t line = lines * i / of; line < lines * (i + 1) / of; line++)
        __builtin_prefetch(a + line * 16, 0, 2);
}

/* The blocks of one piece, whose part of b is packed: every block's chain goes on where it was. Meanwhile the next piece is packed. */
static void piece_run(const Job *job, const Piece *piece, const float *packed, float *right, float *blocks, const Piece *next,
                      float *next_packed) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    float single[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    int64_t cut = piece->cut, steps = panel_steps(cut_length(job, p->depth, cut), job->pairs), size = (int64_t)dtype_size(p->dtype);
    int64_t count = piece->to - piece->from, runs = piece->panels * count, units = next->panels ? piece_units(job, next) : 0;
    /* Panels go by twos, so that a block of rows that has come near serves both; with a low rank's panel to pack, one by one. */
    int64_t together = cut == 0 && low ? 1 : 2, done = 0;
    for (int64_t pair = 0; pair < piece->panels; pair += together) {
        if (cut == 0 && low)
            KERNEL(panel_pack)(right, RIGHT, side_at(low->right, (piece->panel + pair) * BLOCK_COLS, 0),
                               least(BLOCK_COLS, p->cols - (piece->panel + pair) * BLOCK_COLS), low->rank, job->pairs);
        for (int64_t n = 0, some = least(together, piece->panels - pair); n < count * some; n++, done++) {
            int64_t i = n / some, j = pair + n % some, col = (piece->panel + j) * BLOCK_COLS, cols = least(BLOCK_COLS, p->cols - col);
            int64_t block_at = piece->from + i, run = done;
            int64_t row = job->first + block_at * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
            char *c = (char *)p->c + (row * p->step + col) * size;
            float *block = job->cuts > 1 ? blocks + (j * count + i) * BLOCK_ROWS * BLOCK_COLS : single;
            Factors parts[2] = {{a_at(job, block_at, cut), packed + j * job->b_words, steps}};
            int factors = 1, keep = cut > 0;
            if (cut == 0 && low) {
                Factors part = {job->h + block_at * job->h_words, right, panel_steps(low->rank, job->pairs)};
                if (p->apart) {
                    char *apart = (char *)p->apart + (row * p->apart_step + col) * (int64_t)dtype_size(p->apart_dtype);
                    KERNEL(block_product)(block, 0, &part, 1, rows, cols, job->pairs);
                    block_store(block, apart, p->apart_dtype, p->apart_step, rows, cols);
                } else {
                    parts[1] = parts[0], parts[0] = part;
                    factors = 2;
                }
            }
            if (cut == 0 && (p->bias || p->add)) {
                block_start(block, p, c, col, rows, cols);
                keep = 1;
            }
            KERNEL(block_product)(block, keep, parts, factors, rows, cols, job->pairs);
            if (PACKS_ROWS && next->panels && job->blocks > FEW_BLOCKS)
                rows_prefetch(job, next, run, runs);
            piece_pack(job, next, units * run / runs, units * (run + 1) / runs, next_packed);
            if (cut + 1 == job->cuts)
                block_store(block, c, p->dtype, p->step, rows, cols);
        }
    }
}

/* Panels of a piece at most. The fewer the rows, the more it is memory's speed that counts, and long runs come fastest: along the depth
 * few lines, whose next cut is on its way already; along the columns many. More rows would have to be read again for each piece. */
static int64_t most_panels(const Job *job) {
    if (!PACKS_ROWS || !job->pairs || job->at_once > FEW_BLOCKS)
        return PANELS_AT_ONCE;
    return job->p->b.inner == 1 ? 2 : 16;
}

/* Shares of the rows at once: enough of them for the threads to end together, few enough that b is seldom packed again. */
static void job_share(Job *job, int64_t first) {
    enum { MOST = ROWS_AT_ONCE / BLOCK_ROWS, HALF = MOST / 2 };
    job->first = first;
    job->blocks = least(job->at_once, count_of(job->p->rows - first, BLOCK_ROWS));
    job->groups = count_of(job->blocks, MOST);
    job->chunks = count_of(job->panels, most_panels(job));
    job->taken = 0;
    if (job->chunks && job->chunks * job->groups < 4 * job->threads && job->blocks >= 2 * HALF)
        job->groups = least(job->blocks / HALF, count_of(4 * job->threads, job->chunks));
    if (job->chunks * job->groups < 2 * job->threads)
        job->chunks = least(job->panels, count_of(4 * job->threads, job->groups));
}

Status KERNEL(product)(const Product *p) {
    const LowRank *low = p->low_rank;
    int pairs = sides_pair(p->a.dtype, p->rounded ? BF16 : p->b.dtype);
    Job job = {.p = p, .low = low, .pairs = pairs, .threads = omp_in_parallel() ? 1 : omp_get_max_threads()};
    int64_t rank = low ? low->rank : 0, rows_deep = WORDS_PACKED / (panel_steps(p->depth, pairs) + 1);
    if (!p->rows || (p->c && !p->cols))
        return OK;
    rows_deep = rows_deep > ROWS_AT_ONCE ? least(rows_deep, ROWS_PACKED) : ROWS_AT_ONCE;
    job.cuts = p->depth > DEPTH_AT_ONCE ? (p->depth + DEPTH_AT_ONCE / 2) / DEPTH_AT_ONCE : 1;
    job.cut_depth = count_of(count_of(p->depth, job.cuts), UNIT_DEPTH) * UNIT_DEPTH;
    job.cut_depth = job.cut_depth ? job.cut_depth : UNIT_DEPTH;
    job.cuts = p->depth ? count_of(p->depth, job.cut_depth) : 1;
    int64_t passes = count_of(p->rows, rows_deep);
    job.at_once = count_of(count_of(p->rows, passes), BLOCK_ROWS);
    job.a_words = panel_words(BLOCK_ROWS, job.cut_depth, pairs);
    job.b_words = panel_words(BLOCK_COLS, job.cut_depth, pairs);
    job.h_words = panel_words(BLOCK_ROWS, rank, pairs);
    job.right_words = panel_words(BLOCK_COLS, rank, pairs);
    job.low_words = low ? panel_words(BLOCK_COLS, low->depth, pairs) : 0;
    job.panels = p->c ? count_of(p->cols, BLOCK_COLS) : 0;
    job.left_panels = count_of(rank, BLOCK_COLS);
    int64_t panels = least(most_panels(&job), job.panels), most_blocks = least(job.at_once, ROWS_AT_ONCE / BLOCK_ROWS);
    int64_t sum_words = job.cuts > 1 ? panels * most_blocks * BLOCK_ROWS * BLOCK_COLS : 0;
    int64_t own_words = job.right_words + 2 * panels * job.b_words + sum_words;
    int64_t prepare_words = low ? job.a_words + (job.left_panels * BLOCK_COLS + (rank + 15) / 16 * 16) * BLOCK_ROWS : 0;
    own_words = own_words > prepare_words ? own_words : prepare_words;
    int64_t words = job.at_once * (job.cuts * job.a_words + job.h_words) + job.left_panels * job.low_words + job.threads * own_words;
    size_t bytes = (size_t)words * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch)
        return ERR_MEMORY;
    job.a = scratch;
    job.h = job.a + job.at_once * job.cuts * job.a_words;
    job.left = job.h + job.at_once * job.h_words;
    float *owned = job.left + job.left_panels * job.low_words;
    job_share(&job, 0);
#pragma omp parallel
    {
        float *own = owned + omp_get_thread_num() * own_words, *right = own, *packed[2] = {right + job.right_words};
        packed[1] = packed[0] + panels * job.b_words;
        float *blocks = packed[1] + panels * job.b_words;
        blocks_begin();
        if (low) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < job.left_panels; j++)
                KERNEL(panel_pack)(job.left + j * job.low_words, RIGHT, side_at(low->left, j * BLOCK_COLS, 0),
                                   rank - j * BLOCK_COLS, low->depth, pairs);
        }
        for (int64_t first = 0; first < p->rows; first += job.at_once * BLOCK_ROWS) {
            if (first) {
#pragma omp barrier
#pragma omp single
                job_share(&job, first);
            }
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < job.blocks; i++)
                rows_prepare(&job, i, own);
            Piece piece = piece_take(&job);
            if (piece.panels)
                piece_pack(&job, &piece, 0, piece_units(&job, &piece), packed[0]);
            for (int side = 0; piece.panels; side = !side) {
                Piece next = piece;
                if (++next.cut == job.cuts)
                    next = piece_take(&job);
                piece_run(&job, &piece, packed[side], right, blocks, &next, packed[!side]);
                piece = next;
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
                    int64_t line = i * run_width, depth = tiles[first + t + 1] - tiles[first + t], after = first + t + 1;
                    if (after < count)
                        side_prefetch(side_at(run, line, tiles[after]), least(run_width, run_lines - line), tiles[after + 1] - tiles[after], 0, 1);
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
