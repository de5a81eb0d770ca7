/* The language-model head and its loss: logits exist for one tile of tokens at a time, or, without gradients, for one cut of
 * the vocabulary. Maximum and sum of exponentials go cut by cut, so both ways give the same bits. */
#include <math.h>
#include <omp.h>

#include "product.h"

enum {
    CUT = 2048,        /* entries of the vocabulary whose sum is one part */
    DEPTH_CUT = 512    /* entries whose gradients are packed at once */
};

typedef struct Head {
    const View *x, *w;
    View *nll, *dx, *dw;
    const int32_t *labels;
    float scale, multiplier;
    int64_t vocabulary, width, step; /* step: f32 from one row of logits to the next */
    int pairs;                       /* products of x and w; those of dlogits and w have dlogits in x's dtype, so too */
    float *a;       /* x packed, or a cut of dlogits */
    float *logits;  /* (TILE, step) */
    float *sums;    /* dx (rows, width) in blocks, before its rounding */
    float *most, *total, *target; /* per row of the tile: maximum, sum of exp(logit - maximum), the label's logit */
} Head;

/* logits of the panel j; they lie from column `origin` on. */
static void logits_run(const Head *h, int64_t rows, int64_t j, int64_t origin, float *own) {
    float block[BLOCK_ROWS * BLOCK_COLS] __attribute__((aligned(64)));
    int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, h->vocabulary - col), a_words = panel_words(BLOCK_ROWS, h->width, h->pairs);
    KERNEL(panel_pack)(own, RIGHT, side_at(side_matrix(h->w, 0), col, 0), h->vocabulary - col, h->width, h->pairs);
    int64_t later = col + omp_get_num_threads() * BLOCK_COLS, more = least(BLOCK_COLS, h->vocabulary - later);
    for (int64_t i = 0; i * BLOCK_ROWS < rows; i++) {
        int64_t n = least(BLOCK_ROWS, rows - i * BLOCK_ROWS);
        if (more > 0)
            side_prefetch(side_at(side_matrix(h->w, 0), later, 0), more, h->width, i, count_of(rows, BLOCK_ROWS));
        Factors part = {h->a + i * a_words, own, panel_steps(h->width, h->pairs)};
        KERNEL(block_product)(block, 0, &part, 1, n, cols, h->pairs);
        for (int64_t r = 0; r < n; r++) {
            float *to = h->logits + (i * BLOCK_ROWS + r) * h->step + col - origin;
            for (int k = 0; k < BLOCK_COLS; k += LANES) /* step leaves room for a whole panel */
                vec_store(to + k, vec_load(block + r * BLOCK_COLS + k) * h->multiplier);
        }
    }
}

/* Adds entries from..to of one row to its maximum and sum. */
static void row_sum(const Head *h, int64_t r, int64_t label, int64_t from, int64_t to, int64_t origin) {
    const float *l = h->logits + r * h->step - origin;
    Vec most = vec_set(-INFINITY), sum[4] = {{0}};
    float high = -INFINITY, total;
    int64_t k = from;
    for (; k + LANES <= to; k += LANES)
        most = vec_max(most, vec_load(l + k));
    for (int i = 0; i < LANES; i++)
        high = most[i] > high ? most[i] : high;
    for (; k < to; k++)
        high = l[k] > high ? l[k] : high;
    for (k = from; k + 4 * LANES <= to; k += 4 * LANES)
        for (int i = 0; i < 4; i++)
            sum[i] += vec_exp(vec_load(l + k + i * LANES) - high);
    total = vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; k < to; k++)
        total += expf(l[k] - high);
    if (from == 0) {
        h->most[r] = high;
        h->total[r] = total;
    } else {
        float top = high > h->most[r] ? high : h->most[r];
        h->total[r] = h->total[r] * expf(h->most[r] - top) + total * expf(high - top);
        h->most[r] = top;
    }
    if (label >= from && label < to)
        h->target[r] = l[label];
}

/* One row's logits become its gradient, in place, f32 or bf16: scale * multiplier * (softmax - one hot). */
static void row_gradient(const Head *h, int64_t r, int64_t label) {
    float *l = h->logits + r * h->step, factor = h->scale * h->multiplier;
    Dtype dtype = h->x->dtype;
    if (label < 0) {
        memset(l, 0, (size_t)h->vocabulary * dtype_size(dtype));
        return;
    }
    float most = h->most[r] + logf(h->total[r]);
    for (int64_t k = 0; k < h->vocabulary; k += LANES) { /* what is written lies before what is still to be read */
        Vec v = vec_exp(vec_load(l + k) - most);
        if (label >= k && label < k + LANES)
            v[label - k] -= 1;
        vec_put(l, dtype, k, v * factor);
    }
}

static inline Side gradients(const Head *h) {
    Dtype dtype = h->x->dtype;
    return (Side){h->logits, dtype, h->step * 4 / (int64_t)dtype_size(dtype), 1};
}

/* Panel j of dx: sums over the cut of the vocabulary from..to, from the blocks' former sums on. */
static void dx_run(const Head *h, int64_t first, int64_t rows, int64_t j, int64_t from, int64_t to, float *own) {
    int64_t col = j * BLOCK_COLS, cols = least(BLOCK_COLS, h->width - col), blocks = count_of(rows, BLOCK_ROWS);
    int64_t a_words = panel_words(BLOCK_ROWS, DEPTH_CUT, h->pairs);
    KERNEL(panel_pack)(own, RIGHT, side_at(side_matrix(h->w, 1), col, from), h->width - col, to - from, h->pairs);
    int64_t more = least(to - from, h->vocabulary - to);
    for (int64_t i = 0; i < blocks; i++) {
        int64_t n = least(BLOCK_ROWS, rows - i * BLOCK_ROWS);
        if (more > 0)
            side_prefetch(side_at(side_matrix(h->w, 1), col, to), cols, more, i, blocks);
        float *block = h->sums + (j * count_of(TILE, BLOCK_ROWS) + i) * BLOCK_ROWS * BLOCK_COLS;
        Factors part = {h->a + i * a_words, own, panel_steps(to - from, h->pairs)};
        KERNEL(block_product)(block, from > 0, &part, 1, n, cols, h->pairs);
        for (int64_t r = 0; r < n && to == h->vocabulary; r++) {
            void *row = row_at(h->dx, first + i * BLOCK_ROWS + r);
            int64_t k = 0;
            for (; k + LANES <= cols; k += LANES)
                vec_put(row, h->dx->dtype, col + k, vec_load(block + r * BLOCK_COLS + k));
            if (k < cols)
                vec_put_part(row, h->dx->dtype, col + k, cols - k, vec_load(block + r * BLOCK_COLS + k));
        }
    }
}

static void rows_pack(const Head *h, Side from, int64_t rows, int64_t depth, int64_t a_words) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count_of(rows, BLOCK_ROWS); i++)
        KERNEL(panel_pack)(h->a + i * a_words, LEFT, side_at(from, i * BLOCK_ROWS, 0), rows - i * BLOCK_ROWS, depth, h->pairs);
}

/* Tokens first..first + rows, by the whole team. */
static void tile_run(const Head *h, int64_t first, int64_t rows, float *own) {
    int whole = h->dx || h->dw;
    blocks_begin();
    rows_pack(h, side_at(side_rows(h->x), first, 0), rows, h->width, panel_words(BLOCK_ROWS, h->width, h->pairs));
    for (int64_t cut = 0; cut < h->vocabulary; cut += CUT) {
        int64_t end = least(cut + CUT, h->vocabulary), origin = whole ? 0 : cut;
#pragma omp for schedule(dynamic)
        for (int64_t j = cut / BLOCK_COLS; j < count_of(end, BLOCK_COLS); j++)
            logits_run(h, rows, j, origin, own);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            row_sum(h, r, h->labels[first + r], cut, end, origin);
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        int64_t label = h->labels[first + r];
        ((float *)h->nll->data)[first + r] = label < 0 ? 0 : h->most[r] + logf(h->total[r]) - h->target[r];
        if (whole)
            row_gradient(h, r, label);
    }
    for (int64_t cut = 0; h->dx && cut < h->vocabulary; cut += DEPTH_CUT) {
        int64_t end = least(cut + DEPTH_CUT, h->vocabulary);
        rows_pack(h, side_at(gradients(h), 0, cut), rows, end - cut, panel_words(BLOCK_ROWS, DEPTH_CUT, h->pairs));
#pragma omp for schedule(dynamic)
        for (int64_t j = 0; j < count_of(h->width, BLOCK_COLS); j++)
            dx_run(h, first, rows, j, cut, end, own);
    }
    blocks_end();
}

/* The gradient of the weights from the tile's tokens: rows of dlogits, which lie in `logits`. */
static TokenSum weights_sum(const Head *h, int64_t first) {
    Side g = gradients(h);
    return (TokenSum){.c = h->dw->data, .rows = h->vocabulary, .cols = h->width, .step = h->width, .a = {g.data, g.dtype, 1, g.step},
                      .b = side_at(side_columns(h->x), 0, first), .scale = 1};
}

/* 1 if no token of the tile has a label; then its losses and gradients are zeros. */
static int tile_empty(const Head *h, int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; r++)
        if (h->labels[first + r] >= 0)
            return 0;
    memset((float *)h->nll->data + first, 0, (size_t)rows * 4);
    for (int64_t r = 0; r < rows && h->dx; r++)
        memset(row_at(h->dx, first + r), 0, (size_t)h->width * dtype_size(h->dx->dtype));
    return 1;
}

Status KERNEL(head_loss)(View *nll, View *dx, View *dw, const View *x, const View *w, const View *labels, const View *starts, float scale,
                         float multiplier) {
    enum { BLOCKS = (TILE + BLOCK_ROWS - 1) / BLOCK_ROWS };
    Head h = {.x = x, .w = w, .nll = nll, .dx = dx, .dw = dw, .labels = labels->data, .scale = scale, .multiplier = multiplier,
              .vocabulary = w->shape[0], .width = w->shape[1], .pairs = sides_pair(x->dtype, w->dtype)};
    int whole = dx || dw;
    h.step = (least(h.vocabulary, whole ? h.vocabulary : CUT) + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS + 16;
    int64_t depth = h.width > DEPTH_CUT ? h.width : DEPTH_CUT, a_words = BLOCKS * panel_words(BLOCK_ROWS, depth, h.pairs);
    int64_t sum_words = dx ? count_of(h.width, BLOCK_COLS) * BLOCKS * BLOCK_ROWS * BLOCK_COLS : 0;
    int64_t own_words = panel_words(BLOCK_COLS, depth, h.pairs), threads = omp_in_parallel() ? 1 : omp_get_max_threads(), count;
    size_t tile_bytes, bytes = (size_t)(a_words + TILE * h.step + sum_words + 4 * TILE + threads * own_words) * 4;
    int32_t *tiles;
    Status status = tiles_make(&tiles, &count, &tile_bytes, starts, view_rows(x));
    if (status != OK)
        return status;
    size_t sum_bytes = 0;
    if (dw) {
        TokenSum sum = weights_sum(&h, 0);
        sum_bytes = KERNEL(token_sum_bytes)(&sum);
    }
    float *scratch = scratch_alloc(bytes), *sum_scratch = scratch && dw ? scratch_alloc(sum_bytes) : NULL, *owned;
    if (!scratch || (dw && !sum_scratch)) {
        scratch_free(scratch, bytes);
        scratch_free(tiles, tile_bytes);
        return ERR_MEMORY;
    }
    h.a = scratch;
    h.logits = h.a + a_words;
    h.sums = h.logits + TILE * h.step;
    h.most = h.sums + sum_words;
    h.total = h.most + TILE;
    h.target = h.total + TILE;
    owned = h.target + 2 * TILE;
    for (int64_t t = 0; t < count; t++) {
        int64_t first = tiles[t], rows = tiles[t + 1] - first;
        if (tile_empty(&h, first, rows))
            continue;
#pragma omp parallel
        tile_run(&h, first, rows, owned + omp_get_thread_num() * own_words);
        if (dw) {
            TokenSum sum = weights_sum(&h, first);
            KERNEL(token_sum)(&sum, (const int32_t[]){0, (int32_t)rows}, 1, sum_scratch);
        }
    }
    scratch_free(sum_scratch, sum_bytes);
    scratch_free(scratch, bytes);
    scratch_free(tiles, tile_bytes);
    return OK;
}
