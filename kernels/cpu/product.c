/* Products over rows of tokens: operands are packed into panels, blocks finish in registers, each result is rounded once. */
#include "product.h"

#include <omp.h>

enum {
    ROWS_PACKED = 2048,      /* rows of a that are packed at once, fewer if they are deep, */
    WORDS_PACKED = 1 << 22,  /* more than so many words; but at least as many rows as */
    ROWS_AT_ONCE = 512,      /* those that one piece of b meets: */
    PANELS_AT_ONCE = 8,      /* so many panels (with tiles and FEW_BLOCKS of rows at most: 2 or 16, see most_panels()), ... */
    DEPTH_AT_ONCE = 256,     /* ... about so deep. Rows and blocks then lie in the second cache, a panel in the first. */
    FEW_BLOCKS = 4,          /* (their packed rows stay in the second cache.) */
    UNIT_DEPTH = 32,         /* A piece is packed unit by unit (a panel wide and so deep, or */
    BYTES_STREAMED = 1 << 21, /* (Results of so many bytes and more go past the caches.) */
    UNIT_RUNS = 2            /* so many runs of its memory), and asked of memory a panel's blocks earlier. Nothing here changes a bit. */
};

typedef struct Job {
    const Product *p;
    const LowRank *low;
    int pairs, threads;
    int turned;  /* b's panels are the left ones, and blocks of c come out turned */
    int streams; /* c is too large to stay in the second cache */
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

/* Whole lines of memory in bf16, past the caches: bringing them near first would take as long as their arithmetic. */
static int block_stream(const float *block, void *c, int64_t step, int64_t rows, int64_t cols) {
#ifdef __AMX_BF16__
    if (cols < BLOCK_COLS || (uintptr_t)c % 64 || step % 32)
        return 0;
    for (int64_t i = 0; i < rows; i++) {
        const float *from = block + i * BLOCK_COLS;
        __m512i line = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + LANES), _mm512_loadu_ps(from));
        _mm512_stream_si512((void *)((bf16 *)c + i * step), line);
    }
    return 1;
#else
    return (void)block, (void)c, (void)step, (void)rows, (void)cols, 0;
#endif
}

/* Puts a block where it belongs, rounded to c's dtype. */
static void block_store(const float *block, void *c, Dtype dtype, int64_t step, int64_t rows, int64_t cols, int streams) {
    if (streams && dtype == BF16 && block_stream(block, c, step, rows, cols))
        return;
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

/* A block of rows times a panel of columns, in parts: their panels lie as `turned` says, and so does the result. */
static void job_block(const Job *job, float *block, int keep, Factors *parts, int count, int64_t rows, int64_t cols, const Ahead *ahead) {
    for (int i = 0; job->turned && i < count; i++)
        parts[i] = (Factors){parts[i].b, parts[i].a, parts[i].steps};
    KERNEL(block_product)(block, keep, parts, count, job->turned ? cols : rows, job->turned ? rows : cols, job->pairs, ahead);
}
static inline Panel rows_panel(const Job *job) { return job->turned ? RIGHT : LEFT; }
static inline Panel cols_panel(const Job *job) { return job->turned ? LEFT : RIGHT; }

static inline int64_t cut_length(const Job *job, int64_t depth, int64_t cut) { return least(job->cut_depth, depth - cut * job->cut_depth); }
static inline float *a_at(const Job *job, int64_t block, int64_t cut) { return job->a + (cut * job->at_once + block) * job->a_words; }

/* Packs block i of the rows, and makes its part of h. `own` holds a panel of the adapter's own input, then the blocks of h, then h. */
static void rows_prepare(const Job *job, int64_t i, float *own) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    int64_t row = job->first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
    float *blocks = own + job->a_words, *scaled = blocks + job->left_panels * BLOCK_ROWS * BLOCK_COLS;
    int same = low && low->low.data == p->a.data && low->depth == p->depth;
    for (int64_t cut = 0; (p->c || same) && cut < job->cuts; cut++) {
        float *packed = a_at(job, i, cut);
        memory_claim(packed, job->a_words * (int64_t)sizeof *packed);
        KERNEL(panel_pack)(packed, rows_panel(job), side_at(p->a, row, cut * job->cut_depth), rows, cut_length(job, p->depth, cut),
                           job->pairs);
    }
    if (!low)
        return;
    for (int64_t cut = 0; cut == 0 || cut * job->cut_depth < low->depth; cut++) {
        int64_t depth = cut_length(job, low->depth, cut);
        if (!same)
            KERNEL(panel_pack)(own, rows_panel(job), side_at(low->low, row, cut * job->cut_depth), rows, depth, job->pairs);
        for (int64_t j = 0; j < job->left_panels; j++) {
            const float *left = job->left + j * job->low_words + panel_steps(cut * job->cut_depth, job->pairs) * BLOCK_COLS;
            Factors part = {same ? a_at(job, i, cut) : own, left, panel_steps(depth, job->pairs)};
            job_block(job, blocks + j * BLOCK_ROWS * BLOCK_COLS, cut > 0, &part, 1, rows, low->rank - j * BLOCK_COLS, NULL);
        }
    }
    Dtype dtype = low->low.dtype;
    int64_t size = (int64_t)dtype_size(dtype);
    char *h = (char *)low->h + row * low->h_step * size;
    for (int64_t j = 0; j < job->left_panels; j++) {
        float *block = blocks + j * BLOCK_ROWS * BLOCK_COLS;
        int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, low->rank - col);
        if (job->turned)
            block_turn(block);
        block_scale(block, low->left_scale);
        block_store(block, h + col * size, dtype, low->h_step, rows, cols, 0);
        block_scale(block, low->right_scale);
        block_store(block, (char *)scaled + col * size, dtype, low->rank, rows, cols, 0);
    }
    if (p->c)
        KERNEL(panel_pack)(job->h + i * job->h_words, rows_panel(job), (Side){scaled, dtype, low->rank, 1}, rows, low->rank, job->pairs);
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

/* A piece of b is packed in units that follow each other as its memory does, by runs as long as there are: the longer, the faster they
 * come. With left panels a run is one line of the piece's depth; with whole right panels of columns that lie side by side it is one
 * step of the depth, through all panels of the piece. Otherwise a unit is a panel wide and UNIT_DEPTH deep. */
typedef enum Units { LINES, STEPS, SQUARES } Units;

typedef struct Source {
    Units kind;
    Side from; /* the piece's first column, where its depth begins */
    int64_t panels, cols, depth, units;
} Source;

/* No units past the last cut. */
static Source piece_source(const Job *job, const Piece *piece) {
    const Product *p = job->p;
    if (!piece->panels || piece->cut == job->cuts)
        return (Source){0};
    int64_t col = piece->panel * BLOCK_COLS, cols = p->cols - col;
    Source s = {SQUARES, side_at(p->b, col, piece->cut * job->cut_depth), piece->panels, cols, cut_length(job, p->depth, piece->cut), 0};
    if (job->turned)
        s.kind = LINES;
    else if (PACKS_ROWS && job->pairs && !p->rounded && s.from.step == 1 && s.panels * BLOCK_COLS <= cols && s.depth % UNIT_DEPTH == 0)
        s.kind = STEPS;
    s.units = s.kind == LINES ? s.panels * BLOCK_COLS / UNIT_RUNS
            : s.kind == STEPS ? s.depth / UNIT_RUNS
                              : s.panels * count_of(s.depth, UNIT_DEPTH);
    return s;
}

/* The square of unit u: its panel, and where it begins in the depth. */
static inline void source_square(const Source *s, int64_t u, int64_t *panel, int64_t *k) {
    int64_t units = count_of(s->depth, UNIT_DEPTH), across = s->from.inner == 1;
    *panel = across ? u / units : u % s->panels;
    *k = (across ? u % units : u / s->panels) * UNIT_DEPTH;
}

static void squares_pack(const Job *job, const Source *s, int64_t from, int64_t to, float *packed) {
    for (int64_t u = from, j, k; u < to; u++) {
        source_square(s, u, &j, &k);
        Side side = side_at(s->from, j * BLOCK_COLS, k);
        int64_t cols = least(BLOCK_COLS, s->cols - j * BLOCK_COLS), depth = least(UNIT_DEPTH, s->depth - k);
        float *at = packed + j * job->b_words + panel_steps(k, job->pairs) * BLOCK_COLS;
        if (job->p->rounded)
            KERNEL(panel_pack_rounded)(at, RIGHT, side, cols, depth, job->pairs);
        else
            KERNEL(panel_pack)(at, RIGHT, side, cols, depth, job->pairs);
    }
}

/* Units from..to, where the piece has its panels beside each other. */
static inline void source_pack(const Job *job, const Source *s, int64_t from, int64_t to, float *packed) {
    if (s->kind == SQUARES)
        squares_pack(job, s, from, to, packed);
    else if (from < to)
        KERNEL(panels_pack_rows)(packed + from * UNIT_RUNS / 2 * BLOCK_COLS, job->b_words, s->panels,
                                 side_at(s->from, 0, from * UNIT_RUNS), (to - from) * UNIT_RUNS);
}

/* The memory of the same units; of squares only that of the first. */
static inline Ahead source_memory(const Source *s, int64_t from, int64_t to) {
    int64_t size = (int64_t)dtype_size(s->from.dtype), first = from * UNIT_RUNS, runs = (to - from) * UNIT_RUNS, j, k;
    if (from >= to)
        return (Ahead){0};
    if (s->kind == LINES)
        return (Ahead){side_at(s->from, first, 0).data, s->from.step * size, least(runs, s->cols - first), s->depth * size};
    if (s->kind == STEPS)
        return (Ahead){side_at(s->from, 0, first).data, s->from.inner * size, runs, s->panels * BLOCK_COLS * size};
    source_square(s, from, &j, &k);
    int64_t cols = least(BLOCK_COLS, s->cols - j * BLOCK_COLS), depth = least(UNIT_DEPTH, s->depth - k), across = s->from.inner == 1;
    return (Ahead){side_at(s->from, j * BLOCK_COLS, k).data, (across ? s->from.step : s->from.inner) * size, across ? cols : depth,
                   (across ? depth : cols) * size};
}

/* Units shared out over turns, without a division at each: a turn's share is from..to. */
typedef struct Turns {
    int64_t turns, whole, rest, carry, from, to;
} Turns;

static inline Turns turns_of(int64_t units, int64_t turns) { return (Turns){.turns = turns, .whole = units / turns, .rest = units % turns}; }

static inline void turns_next(Turns *t) {
    t->from = t->to;
    t->to += t->whole;
    if ((t->carry += t->rest) >= t->turns) {
        t->carry -= t->turns;
        t->to++;
    }
}

/* The blocks of one piece: every block's chain goes on where it was. A left panel is packed just before its blocks, and stays in the
 * first cache for them; right panels are packed all together, beside the blocks of the piece before. What is packed next is asked of
 * memory meanwhile. */
static void piece_run(const Job *job, const Piece *piece, float *packed, float *right, float *blocks, const Piece *next, float *next_packed) {
    const Product *p = job->p;
    const LowRank *low = job->low;
    float single[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    int64_t cut = piece->cut, steps = panel_steps(cut_length(job, p->depth, cut), job->pairs), size = (int64_t)dtype_size(p->dtype);
    int64_t count = piece->to - piece->from, runs = piece->panels * count, asked = count;
    int last = cut + 1 == job->cuts;
    Piece after = *next;
    after.cut++;
    Source this = piece_source(job, piece), then = piece_source(job, next), later = piece_source(job, &after);
    Turns pack = turns_of(then.units, runs), ask = turns_of(job->turned ? this.units : then.units, runs);
    const Source *asks = job->turned ? &this : &then;
    for (int64_t i = 0; i < asked; i++)
        turns_next(&ask);
    for (int64_t j = 0; j < piece->panels; j++) {
        int64_t col = (piece->panel + j) * BLOCK_COLS, cols = least(BLOCK_COLS, p->cols - col);
        if (job->turned)
            KERNEL(panel_pack_lines)(packed, side_at(p->b, col, cut * job->cut_depth), cols, this.depth);
        if (cut == 0 && low)
            KERNEL(panel_pack)(right, cols_panel(job), side_at(low->right, col, 0), cols, low->rank, job->pairs);
        for (int64_t i = piece->from; i < piece->to; i++) {
            int64_t row = job->first + i * BLOCK_ROWS, rows = least(BLOCK_ROWS, p->rows - row);
            char *c = (char *)p->c + (row * p->step + col) * size;
            float *block = job->cuts > 1 ? blocks + (j * count + i - piece->from) * BLOCK_ROWS * BLOCK_COLS : single;
            Factors parts[2] = {{a_at(job, i, cut), job->turned ? packed : packed + j * job->b_words, steps}};
            int factors = 1, keep = cut > 0;
            if (cut == 0 && low) {
                Factors part = {job->h + i * job->h_words, right, panel_steps(low->rank, job->pairs)};
                if (p->apart) {
                    char *apart = (char *)p->apart + (row * p->apart_step + col) * (int64_t)dtype_size(p->apart_dtype);
                    job_block(job, block, 0, &part, 1, rows, cols, NULL);
                    if (job->turned)
                        block_turn(block);
                    block_store(block, apart, p->apart_dtype, p->apart_step, rows, cols, job->streams);
                } else {
                    parts[1] = parts[0], parts[0] = part;
                    factors = 2;
                }
            }
            if (cut == 0 && (p->bias || p->add)) {
                block_start(block, p, c, col, rows, cols);
                if (job->turned)
                    block_turn(block);
                keep = 1;
            }
            if (asked++ == runs) {
                asks = job->turned ? &then : &later;
                ask = turns_of(asks->units, runs);
            }
            turns_next(&ask);
            turns_next(&pack);
            Ahead ahead = source_memory(asks, ask.from, ask.to);
            job_block(job, block, keep, parts, factors, rows, cols, &ahead);
            if (!job->turned)
                source_pack(job, &then, pack.from, pack.to, next_packed);
            if (last) {
                if (job->turned)
                    block_turn(block);
                block_store(block, c, p->dtype, p->step, rows, cols, job->streams);
            }
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
    Job job = {.p = p, .low = low, .pairs = pairs, .turned = PACKS_ROWS && pairs && p->b.inner == 1,
               .streams = pairs && p->rows * p->cols * (int64_t)dtype_size(p->dtype) >= BYTES_STREAMED,
               .threads = omp_in_parallel() ? 1 : omp_get_max_threads()};
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
    int64_t packed_words = panels * job.b_words, own_words = job.right_words + 2 * packed_words + sum_words;
    int64_t prepare_words = low ? job.a_words + (job.left_panels * BLOCK_COLS + (rank + 15) / 16 * 16) * BLOCK_ROWS : 0;
    own_words = own_words > prepare_words ? own_words : prepare_words;
    int64_t words = job.at_once * (job.cuts * job.a_words + job.h_words) + job.left_panels * job.low_words + job.threads * own_words;
    size_t bytes = (size_t)words * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
    job.a = scratch;
    job.h = job.a + job.at_once * job.cuts * job.a_words;
    job.left = job.h + job.at_once * job.h_words;
    float *owned = job.left + job.left_panels * job.low_words;
    job_share(&job, 0);
#pragma omp parallel
    {
        float *own = owned + omp_get_thread_num() * own_words, *right = own, *packed[2] = {right + job.right_words};
        packed[1] = packed[0] + packed_words;
        float *blocks = packed[1] + packed_words;
        blocks_begin();
        if (low) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < job.left_panels; j++)
                KERNEL(panel_pack)(job.left + j * job.low_words, cols_panel(&job), side_at(low->left, j * BLOCK_COLS, 0),
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
            Source source = piece_source(&job, &piece);
            if (!job.turned)
                source_pack(&job, &source, 0, source.units, packed[0]);
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
                        KERNEL(block_product)(block, 0, &part, 1, rows, cols, pairs, NULL);
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
