/* The language-model head and its loss, as the weight's rows pass once: per token a running maximum, the sum of exponentials, the
 * label's logit, and the sum of exponential x row of w, which is scaled where a later cut of the vocabulary moves the maximum
 * (the recurrence of arXiv 1805.02867). Cuts count from the vocabulary's first row, so parts of the weight, micro-batches and
 * threads change no bit. */
#include <math.h>
#include <omp.h>

#include "product.h"
#include "vecmath.h"

enum {
    CUT = HEAD_CUT,
    ROWS_AT_ONCE = 1024 / BLOCK_ROWS * BLOCK_ROWS, /* tokens whose logits of one cut exist at once; w's panels are packed once for them */
    STRIP = 4,          /* panels of w for which a piece of x stays in the second cache */
    DEPTH_AT_ONCE = 320 /* as in product.c; whole panels of w's columns */
};

typedef struct Head {
    const View *x, *w;
    int32_t *tokens;   /* the rows of x at hand: those with labels */
    const int32_t *labels;
    int64_t first;     /* w's first row is this entry of the vocabulary */
    Logits form;
    int64_t width, count, room; /* of `count` rows, `room` is what a panel of blocks has place for */
    int pairs;
    float *stats, *most, *total, *target; /* per token */
    View *label_rows;
    float *sums;       /* panels of blocks; row i is the i-th token with a label, `sum_rows` rows to a panel. NULL: no gradient */
    int64_t sum_rows;
    float *x_panels, *logits, *exponentials, *w_panels; /* logits (panels of the cut, room, BLOCK_COLS) */
    float *factors;    /* what the cut scales earlier sums by */
    int64_t x_words, e_words, w_words, e_steps;
} Head;

/* e^x for x <= 0; a NaN stays one. */
static inline Vec exp_falling(Vec x) {
    Vec clamped = vec_max(vec_set(-87.3f), x);
    Vec n = clamped * 1.44269504088896341f + 12582912.0f;
    VecI k = (VecI)n - 0x4b400000;
    n -= 12582912.0f;
    Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    p = p * (Vec)((k + 127) << 23);
    return (Vec)(~(x < -87.3f) & (VecI)p);
}

/* Logits of products with w's rows entry..entry+LANES, of which `left` are there. */
INLINE Vec logits_of(const Head *h, Vec product, int64_t entry, int64_t left) {
    const Logits *f = &h->form;
    if (f->bias && left > 0)
        product += vec_take(f->bias, F32, h->first + entry, left);
    product *= f->multiplier;
    if (f->cap > 0)
        product = vec_tanh(product / f->cap) * f->cap;
    return product;
}

/* Their derivative by what went into the cap; 0 for -inf. */
INLINE Vec cap_slope(Vec logit, float cap) {
    Vec t = vec_max(logit, vec_set(-cap)) / cap;
    return 1.0f - t * t;
}

/* Block i of the rows at hand, packed; `own` holds the rows themselves where they do not follow each other. */
static void rows_pack(const Head *h, int64_t i, char *own) {
    int64_t first = i * BLOCK_ROWS, rows = least(BLOCK_ROWS, h->count - first);
    const int32_t *t = h->tokens + first;
    Side from = side_at(side_rows(h->x), t[0], 0);
    if (t[rows - 1] - t[0] != rows - 1) {
        size_t bytes = (size_t)h->width * dtype_size(h->x->dtype);
        for (int64_t r = 0; r < rows; r++)
            memcpy(own + (size_t)r * bytes, row_at(h->x, t[r]), bytes);
        from = (Side){own, h->x->dtype, h->width, 1};
    }
    KERNEL(panel_pack)(h->x_panels + i * h->x_words, LEFT, from, rows, h->width, h->pairs);
}

/* Logits of the rows at hand, before the multiplier, for w's rows from..to, a strip of a cut that starts at `cut`. The same visit
 * packs w as the sums want it. */
static void strip_run(const Head *h, int64_t cut, int64_t from, int64_t to, float *own) {
    int64_t blocks = count_of(h->count, BLOCK_ROWS), end = h->w->shape[0];
    Side rows = side_matrix(h->w, 0), columns = side_matrix(h->w, 1);
    for (int64_t k = 0; k < h->width; k += DEPTH_AT_ONCE) {
        int64_t depth = least(DEPTH_AT_ONCE, h->width - k), x_at = panel_steps(k, h->pairs) * BLOCK_ROWS;
        for (int64_t row = from; row < to; row += BLOCK_COLS) {
            int64_t lines = least(BLOCK_COLS, to - row), next = row + BLOCK_COLS < to ? row + BLOCK_COLS : from;
            int64_t next_k = next > row ? k : k + DEPTH_AT_ONCE, next_depth = least(DEPTH_AT_ONCE, h->width - next_k);
            int64_t next_lines = least(BLOCK_COLS, end - next);
            KERNEL(panel_pack)(own, RIGHT, side_at(rows, row, k), lines, depth, h->pairs);
            for (int64_t c = k; h->sums && c < k + depth; c += BLOCK_COLS) {
                float *packed = h->w_panels + c / BLOCK_COLS * h->w_words + panel_steps(row - cut, h->pairs) * BLOCK_COLS;
                memory_claim(packed, panel_steps(lines, h->pairs) * BLOCK_COLS * (int64_t)sizeof *packed);
                KERNEL(panel_pack)(packed, RIGHT, side_at(columns, c, row), h->width - c, lines, h->pairs);
            }
            float *logits = h->logits + (row - cut) / BLOCK_COLS * h->room * BLOCK_COLS;
            for (int64_t i = 0; i < blocks; i++) {
                Factors part = {h->x_panels + i * h->x_words + x_at, own, panel_steps(depth, h->pairs)};
                int64_t line = next_lines * i / blocks, size = (int64_t)dtype_size(rows.dtype);
                Ahead ahead = {side_at(rows, next + line, next_k).data, rows.step * size, next_lines * (i + 1) / blocks - line, next_depth * size};
                KERNEL(block_product)(logits + i * BLOCK_ROWS * BLOCK_COLS, k > 0, &part, 1, least(BLOCK_ROWS, h->count - i * BLOCK_ROWS),
                                      lines, h->pairs, next_depth > 0 ? &ahead : NULL);
            }
        }
    }
}

/* A row of w in x's dtype, for the token whose label it is. */
static void label_row_keep(const Head *h, int64_t token, int64_t row, float *own) {
    void *to = row_at(h->label_rows, token);
    for (int64_t k = 0; k < h->width; k += DEPTH_AT_ONCE) {
        int64_t depth = least(DEPTH_AT_ONCE, h->width - k);
        KERNEL(panel_pack)(own, RIGHT, side_at(side_matrix(h->w, 0), row, k), 1, depth, 0);
        for (int64_t i = 0; i < depth; i++)
            scalar_put(to, h->x->dtype, k + i, own[i * BLOCK_COLS]);
    }
}

/* Block i of a cut's logits joins its tokens' maximum and sum; its exponentials, in x's dtype, become a panel. */
static void block_softmax(const Head *h, int64_t i, int64_t cut, int64_t end, float *own) {
    Dtype dtype = h->x->dtype;
    int64_t first = i * BLOCK_ROWS, rows = least(BLOCK_ROWS, h->count - first), panels = count_of(end - cut, BLOCK_COLS);
    int64_t last = end - cut - (panels - 1) * BLOCK_COLS, panel_step = h->room * BLOCK_COLS;
    float *l = h->logits + first * BLOCK_COLS;
    float highest[BLOCK_ROWS * LANES] __attribute__((aligned(64)));
    for (int64_t r = 0; r < rows; r++)
        vec_store(highest + r * LANES, vec_set(-INFINITY));
    for (int64_t j = 0; j < panels; j++)
        for (int64_t r = 0; r < rows; r++) {
            float *at = l + j * panel_step + r * BLOCK_COLS;
            Vec most = vec_load(highest + r * LANES);
            for (int k = 0; k < BLOCK_COLS; k += LANES) {
                Vec v = logits_of(h, vec_load(at + k), cut + j * BLOCK_COLS + k, end - cut - j * BLOCK_COLS - k);
                for (int64_t n = last - k; j == panels - 1 && n < LANES; n++) /* what is not in the vocabulary */
                    if (n >= 0)
                        v[n] = -INFINITY;
                vec_store(at + k, v);
                most = vec_max(most, v);
            }
            vec_store(highest + r * LANES, most);
        }
    for (int64_t r = 0; r < rows; r++) {
        int64_t token = h->tokens[first + r], label = h->labels[token] - h->first;
        float before = h->first + cut > 0 ? h->most[token] : -INFINITY, high = before, factor;
        for (int k = 0; k < LANES; k++)
            high = highest[r * LANES + k] > high ? highest[r * LANES + k] : high;
        factor = high == before ? 1 : expf(before - high);
        Vec sum[BLOCK_VECS] = {{0}};
        float *at = l + r * BLOCK_COLS;
        for (int64_t j = 0; j < panels; j++, at += panel_step)
            for (int k = 0; k < BLOCK_VECS; k++) {
                Vec e = exp_falling(vec_load(at + k * LANES) - high);
                sum[k] += e;
                if (h->sums && h->form.cap > 0)
                    e *= cap_slope(vec_load(at + k * LANES), h->form.cap);
                if (h->sums)
                    vec_put(own, dtype, r * CUT + j * BLOCK_COLS + k * LANES, e);
            }
        float total = vec_sum(sum[0] + sum[1]);
        h->total[token] = h->first + cut > 0 ? h->total[token] * factor + total : total;
        h->most[token] = high;
        h->factors[first + r] = factor;
        if (label >= cut && label < end) {
            h->target[token] = l[(label - cut) / BLOCK_COLS * panel_step + r * BLOCK_COLS + (label - cut) % BLOCK_COLS];
            if (h->sums)
                label_row_keep(h, token, label, own + BLOCK_ROWS * CUT);
        }
    }
    if (h->sums)
        KERNEL(panel_pack)(h->exponentials + i * h->e_words, LEFT, (Side){own, dtype, CUT, 1}, rows, end - cut, h->pairs);
}

/* Panel j of the sums, for the rows at hand; `from` is their first row in it. */
static void sums_run(const Head *h, int64_t j, int64_t from, int64_t cut, int64_t end) {
    int64_t blocks = count_of(h->count, BLOCK_ROWS), cols = least(BLOCK_COLS, h->width - j * BLOCK_COLS);
    float *block = h->sums + (j * h->sum_rows + from) * BLOCK_COLS;
    for (int64_t i = 0; i < blocks; i++, block += BLOCK_ROWS * BLOCK_COLS) {
        int64_t rows = least(BLOCK_ROWS, h->count - i * BLOCK_ROWS);
        Factors part = {h->exponentials + i * h->e_words, h->w_panels + j * h->w_words, panel_steps(end - cut, h->pairs)};
        Ahead ahead = {(const char *)(block + BLOCK_ROWS * BLOCK_COLS), 0, i + 1 < blocks, BLOCK_ROWS * BLOCK_COLS * (int64_t)sizeof *block};
        for (int64_t r = 0; r < rows && h->first + cut > 0; r++)
            for (int k = 0; k < BLOCK_COLS && h->factors[i * BLOCK_ROWS + r] != 1; k += LANES)
                vec_store(block + r * BLOCK_COLS + k, vec_load(block + r * BLOCK_COLS + k) * h->factors[i * BLOCK_ROWS + r]);
        KERNEL(block_product)(block, h->first + cut > 0, &part, 1, rows, cols, h->pairs, &ahead);
    }
}

/* The rows at hand meet all of w, by the whole team. */
static void rows_run(const Head *h, int64_t from, float *own) {
    int64_t end = h->w->shape[0];
    blocks_begin();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count_of(h->count, BLOCK_ROWS); i++)
        rows_pack(h, i, (char *)own);
    for (int64_t cut = 0; cut < end; cut += CUT) {
        int64_t to = least(cut + CUT, end);
#pragma omp for schedule(dynamic)
        for (int64_t row = cut; row < to; row += STRIP * BLOCK_COLS)
            strip_run(h, cut, row, least(row + STRIP * BLOCK_COLS, to), own);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count_of(h->count, BLOCK_ROWS); i++)
            block_softmax(h, i, cut, to, own);
        if (h->sums) {
#pragma omp for schedule(dynamic)
            for (int64_t j = 0; j < count_of(h->width, BLOCK_COLS); j++)
                sums_run(h, j, from, cut, to);
        }
    }
    blocks_end();
}

/* Lists the tokens with labels; returns their number. */
static int64_t tokens_list(int32_t *tokens, const View *labels, int64_t count) {
    int64_t n = 0;
    for (int64_t t = 0; t < count; t++)
        if (((const int32_t *)labels->data)[t] >= 0)
            tokens[n++] = (int32_t)t;
    return n;
}

/* Scratch in bytes, with R = min(tokens with labels, ROWS_AT_ONCE) in whole blocks and C = min(CUT, rows of w): R * width * e
 * for x, R * C * 4 for logits, R * C * e and C * width * e for the sums, e the size of the dtype that is multiplied (4 unless both are
 * bf16 and the processor multiplies those), R * 4; and for each thread BLOCK_ROWS * max(width, C) * 4 + DEPTH_AT_ONCE * BLOCK_COLS * 4. */
typedef struct Scratch {
    float *data;
    size_t bytes;
    int64_t own_words;
    float *own;
} Scratch;

static int scratch_take(Head *h, Scratch *s, int64_t rows) {
    int64_t cut = least(CUT, h->w->shape[0]), blocks = count_of(rows, BLOCK_ROWS), panels = count_of(cut, BLOCK_COLS);
    int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    h->room = blocks * BLOCK_ROWS + 3; /* not a power of two: panels would share sets of the cache */
    h->x_words = panel_words(BLOCK_ROWS, h->width, h->pairs);
    h->e_words = h->sums ? panel_words(BLOCK_ROWS, cut, h->pairs) : 0;
    h->w_words = h->sums ? panel_words(BLOCK_COLS, cut, h->pairs) : 0;
    s->own_words = BLOCK_ROWS * (h->width > CUT ? h->width : CUT) / 16 * 16 + 16 + DEPTH_AT_ONCE * BLOCK_COLS;
    int64_t x = blocks * h->x_words, logits = (panels * h->room * BLOCK_COLS + 15) / 16 * 16, e = blocks * h->e_words;
    int64_t w = count_of(h->width, BLOCK_COLS) * h->w_words, factors = blocks * BLOCK_ROWS / 16 * 16 + 16;
    s->bytes = (size_t)(x + logits + e + w + factors + threads * s->own_words) * 4;
    if (!(s->data = scratch_alloc(s->bytes)))
        return 0;
    h->x_panels = s->data;
    h->logits = h->x_panels + x;
    h->exponentials = h->logits + logits;
    h->w_panels = h->exponentials + e;
    h->factors = h->w_panels + w;
    s->own = h->factors + factors;
    return 1;
}

static Head head_of(View *stats, View *sums, View *label_rows, const View *x, const View *w, const View *labels, int64_t first, const Logits *form) {
    int64_t rows = view_rows(x);
    float *s = stats->data;
    return (Head){.x = x, .w = w, .labels = labels->data, .first = first, .form = *form, .width = w->shape[1],
                  .pairs = sides_pair(x->dtype, w->dtype), .most = s, .total = s + rows, .target = s + 2 * rows,
                  .label_rows = label_rows, .sums = sums ? sums->data : NULL, .sum_rows = head_sum_rows(rows)};
}

Status KERNEL(head_part)(View *stats, View *sums, View *label_rows, const View *x, const View *w, const View *labels, int64_t first,
                         const Logits *form) {
    Head h = head_of(stats, sums, label_rows, x, w, labels, first, form);
    int64_t rows = view_rows(x), count;
    size_t list_bytes = (size_t)rows * sizeof(int32_t);
    int32_t *list = rows ? scratch_alloc(list_bytes) : NULL;
    Scratch scratch = {0};
    Status status = rows && !list ? ERR_MEMORY : OK;
    count = !list ? 0 : scratch_only() ? rows : tokens_list(list, labels, rows);
    /* Equal groups, for which w passes again. */
    int64_t groups = count_of(count, ROWS_AT_ONCE), at_once = groups ? count_of(count_of(count, groups), BLOCK_ROWS) * BLOCK_ROWS : 0;
    if (count && w->shape[0] && !scratch_take(&h, &scratch, at_once))
        status = ERR_MEMORY;
    for (int64_t from = 0; from < count && scratch.data && !scratch_only(); from += at_once) {
        h.tokens = list + from;
        h.count = least(at_once, count - from);
#pragma omp parallel
        rows_run(&h, from, scratch.own + omp_get_thread_num() * scratch.own_words);
    }
    if (scratch.data)
        scratch_free(scratch.data, scratch.bytes);
    if (list)
        scratch_free(list, list_bytes);
    return status;
}

/* One token's dx, from the panels of the sums; `slope` of its label's logit. */
static void gradient_finish(View *dx, const View *sums, const View *label_rows, int64_t token, int64_t row, int64_t sum_rows, float total,
                            float factor, float slope) {
    const void *label = row_at(label_rows, token);
    int64_t width = view_width(dx);
    void *to = row_at(dx, token);
    for (int64_t k = 0; k < width; k += LANES) {
        const float *sum = (const float *)sums->data + (k / BLOCK_COLS * sum_rows + row) * BLOCK_COLS + k % BLOCK_COLS;
        int64_t n = width - k;
        Vec of = n >= LANES ? vec_get(label, dx->dtype, k) : vec_get_part(label, dx->dtype, k, n);
        Vec v = (vec_load(sum) / total - of * slope) * factor;
        if (n >= LANES)
            vec_put(to, dx->dtype, k, v);
        else
            vec_put_part(to, dx->dtype, k, n, v);
    }
}

Status KERNEL(head_end)(View *nll, View *dx, const View *stats, const View *sums, const View *label_rows, const View *labels, float scale,
                        const Logits *form) {
    int64_t rows = view_count(labels);
    const int32_t *l = labels->data;
    const float *most = stats->data, *total = most + rows, *target = total + rows;
    for (int64_t t = 0; t < rows; t++)
        ((float *)nll->data)[t] = l[t] < 0 ? 0 : most[t] + logf(total[t]) - target[t];
    if (!dx)
        return OK;
#pragma omp parallel
    {
        int64_t at = omp_get_thread_num(), of = omp_get_num_threads(), row = 0;
        for (int64_t t = 0; t < rows * at / of; t++)
            row += l[t] >= 0;
        for (int64_t t = rows * at / of; t < rows * (at + 1) / of; t++)
            if (l[t] < 0)
                memset(row_at(dx, t), 0, (size_t)view_width(dx) * dtype_size(dx->dtype));
            else
                gradient_finish(dx, sums, label_rows, t, row++, head_sum_rows(rows), total[t], scale * form->multiplier,
                                form->cap > 0 ? 1 - target[t] / form->cap * (target[t] / form->cap) : 1);
    }
    return OK;
}

/* --- the weight's gradient: a second pass, when the sums of exponentials are known ---------------------------------------- */

/* A token's logits of a cut become its gradients, in x's dtype: scale * multiplier * (softmax - one hot), times the cap's slope. */
static void row_gradient(const Head *h, int64_t row, int64_t cut, int64_t end, void *to, float factor) {
    int64_t token = h->tokens[row], label = h->labels[token];
    Dtype dtype = h->x->dtype;
    if (label < 0) {
        memset(to, 0, (size_t)(end - cut) * dtype_size(dtype));
        return;
    }
    const float *at = h->logits + row * BLOCK_COLS;
    float most = h->most[token] + logf(h->total[token]);
    for (int64_t v = cut; v < end; v += BLOCK_COLS, at += h->room * BLOCK_COLS)
        for (int64_t k = 0; k < BLOCK_COLS; k += LANES) { /* `to` has room for a whole panel */
            Vec logit = logits_of(h, vec_load(at + k), v + k, end - v - k), p = exp_falling(logit - most);
            if (label >= v + k && label < v + k + LANES)
                p[label - v - k] -= 1;
            if (h->form.cap > 0)
                p *= cap_slope(logit, h->form.cap);
            vec_put(to, dtype, v - cut + k, p * factor);
        }
}

/* dbias += sums of gradients (tokens, CUT) over the tokens of each tile, of `columns` columns. */
static void bias_gradient(float *dbias, const void *gradients, Dtype dtype, const int32_t *tiles, int64_t count, int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < columns; c += LANES)
        for (int64_t t = 0; t < count; t++) {
            Vec sum = {0};
            for (int64_t r = tiles[t]; r < tiles[t + 1]; r++)
                sum += vec_get(gradients, dtype, r * CUT + c);
            vec_give(dbias, F32, c, columns - c, vec_take(dbias, F32, c, columns - c) + sum);
        }
}

/* dw (vocabulary, width) and dbias += over the tokens tiles[0]..tiles[count], whose logits are made again cut by cut. */
static void tiles_gradient(Head *h, View *dw, View *dbias, const int32_t *tiles, int64_t count, float factor, const Scratch *s, void *gradients,
                           float *sum_scratch) {
    int64_t end = h->w->shape[0], size = (int64_t)dtype_size(h->x->dtype);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count_of(h->count, BLOCK_ROWS); i++)
        rows_pack(h, i, NULL);
    for (int64_t cut = 0; cut < end; cut += CUT) {
        int64_t to = least(cut + CUT, end);
#pragma omp parallel
        {
            blocks_begin();
#pragma omp for schedule(dynamic)
            for (int64_t row = cut; row < to; row += STRIP * BLOCK_COLS)
                strip_run(h, cut, row, least(row + STRIP * BLOCK_COLS, to), s->own + omp_get_thread_num() * s->own_words);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < h->count; r++)
                row_gradient(h, r, cut, to, (char *)gradients + r * CUT * size, factor);
            blocks_end();
        }
        if (dbias)
            bias_gradient((float *)dbias->data + cut, gradients, h->x->dtype, tiles, count, to - cut);
        if (!dw)
            continue;
        TokenSum sum = {.c = (float *)dw->data + cut * h->width, .rows = to - cut, .cols = h->width, .step = h->width,
                        .a = {gradients, h->x->dtype, 1, CUT}, .b = side_at(side_columns(h->x), 0, h->tokens[0]), .scale = 1};
        KERNEL(token_sum)(&sum, tiles, count, sum_scratch);
    }
}

static size_t sum_bytes(const Head *h, int64_t rows) {
    TokenSum sum = {.rows = rows, .cols = h->width, .a = {NULL, h->x->dtype, 1, CUT}, .b = side_columns(h->x)};
    return KERNEL(token_sum_bytes)(&sum);
}

static Status weight_gradient(View *stats, View *dw, View *dbias, const View *x, const View *w, const View *labels, const View *starts,
                              float scale, const Logits *form) {
    Head h = head_of(stats, NULL, NULL, x, w, labels, 0, form);
    int64_t rows = view_rows(x), cut = least(CUT, w->shape[0]), rest = w->shape[0] % CUT, count;
    size_t tile_bytes, sums = sum_bytes(&h, cut), other = sum_bytes(&h, rest), list_bytes;
    int32_t *tiles, *list;
    Status status = tiles_make(&tiles, &count, &tile_bytes, starts, rows);
    if (status != OK)
        return status;
    int64_t at_once = least(rows, ROWS_AT_ONCE), gradient_words = at_once * CUT * (int64_t)dtype_size(x->dtype) / 4;
    sums = sums > other ? sums : other;
    list_bytes = (size_t)(rows + count + 1) * sizeof *list;
    size_t bytes = (size_t)gradient_words * 4 + sums;
    Scratch scratch = {0};
    float *gradients = scratch_alloc(bytes);
    if (!(list = scratch_alloc(list_bytes)) || !gradients || !scratch_take(&h, &scratch, at_once))
        status = ERR_MEMORY;
    for (int64_t t = 0, next; t < count && status == OK && !scratch_only(); t = next) { /* all tiles that fit */
        int32_t *relative = list + rows;
        for (next = t; next < count && (next == t || tiles[next + 1] - tiles[t] <= at_once); next++)
            relative[next - t] = tiles[next] - tiles[t];
        relative[next - t] = tiles[next] - tiles[t];
        h.count = relative[next - t];
        h.tokens = list;
        int labelled = 0;
        for (int64_t i = 0; i < h.count; i++) {
            list[i] = tiles[t] + (int32_t)i;
            labelled |= h.labels[list[i]] >= 0;
        }
        if (labelled)
            tiles_gradient(&h, dw, dbias, relative, next - t, scale * form->multiplier, &scratch, gradients, gradients + gradient_words);
    }
    if (scratch.data)
        scratch_free(scratch.data, scratch.bytes);
    if (list)
        scratch_free(list, list_bytes);
    if (gradients)
        scratch_free(gradients, bytes);
    scratch_free(tiles, tile_bytes);
    return status;
}

/* The whole: what is kept per token lies in scratch. */
Status KERNEL(head_loss)(View *nll, View *dx, View *dw, View *dbias, const View *x, const View *w, const View *labels, const View *starts,
                         float scale, const Logits *form) {
    int64_t rows = view_rows(x), width = view_width(x), stat_words = (3 * rows + 15) / 16 * 16, sum_words = dx ? head_sums(rows, width) : 0;
    size_t bytes = (size_t)(stat_words + sum_words) * 4 + (dx ? (size_t)(rows * width) * dtype_size(x->dtype) : 0);
    if (!rows)
        return OK;
    float *kept = scratch_alloc(bytes);
    if (!kept)
        return ERR_MEMORY;
    View stats = {kept, F32, 2, {3, rows}, {rows, 1}}, sums = {kept + stat_words, F32, 1, {sum_words}, {1}};
    View label_rows = {kept + stat_words + sum_words, x->dtype, 2, {rows, width}, {width, 1}};
    Status status = KERNEL(head_part)(&stats, dx ? &sums : NULL, dx ? &label_rows : NULL, x, w, labels, 0, form);
    if (status == OK && (dw || dbias))
        status = weight_gradient(&stats, dw, dbias, x, w, labels, starts, scale, form);
    if (status == OK && !scratch_only())
        status = KERNEL(head_end)(nll, dx, &stats, dx ? &sums : NULL, dx ? &label_rows : NULL, labels, scale, form);
    scratch_free(kept, bytes);
    return status;
}
