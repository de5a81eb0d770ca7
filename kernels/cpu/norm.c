/* Root-mean-square and layer norms over rows. Gradients of the weights are made before those of the input, which may overwrite dy. */
#include <math.h>

#include "isa.h"

enum { STRIP = 4 * LANES }; /* columns whose weight gradients one thread sums at a time */

/* Elements of f32 parameters; NULL reads as `otherwise`. */
INLINE Vec take_f32(const float *p, int64_t i, int64_t n, float otherwise) {
    Vec v = vec_set(otherwise);
    if (p)
        v = vec_take(p, F32, i, n);
    return v;
}

/* A parameter's row for row r of x: one for all, or one per head. */
INLINE const float *row_of(const View *p, int64_t r, int64_t width) {
    return p ? (const float *)p->data + (view_count(p) > width ? r % (view_count(p) / width) * width : 0) : NULL;
}

/* --- forward ----------------------------------------------------------------------------------------------------------- */

INLINE float row_square(const void *x, Dtype dtype, int64_t width) {
    Vec sum[2] = {{0}};
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES)
        for (int j = 0; j < 2; j++) {
            Vec v = vec_get(x, dtype, i + j * LANES);
            sum[j] += v * v;
        }
    for (; i < width; i += LANES) {
        Vec v = vec_take(x, dtype, i, width - i);
        sum[0] += v * v;
    }
    return vec_sum(sum[0] + sum[1]);
}

INLINE void rms_row(void *y, Dtype yd, float *rstd, const void *x, Dtype xd, const float *w, int64_t width, float eps) {
    float r = 1 / sqrtf(row_square(x, xd, width) / (float)width + eps);
    for (int64_t i = 0; i < width; i += LANES)
        vec_give(y, yd, i, width - i, vec_take(x, xd, i, width - i) * r * take_f32(w, i, width - i, 1));
    if (rstd)
        *rstd = r;
}

/* Mean, then the mean square of what is left: two passes, because a mean far from 0 would drown the variance. */
INLINE void layer_row(void *y, Dtype yd, float *stats, const void *x, Dtype dtype, const float *w, const float *b, int64_t width, float eps) {
    Vec sum = {0}, square = {0};
    int64_t i = 0, whole = width / LANES * LANES;
    for (; i < width; i += LANES)
        sum += vec_take(x, dtype, i, width - i);
    float mean = vec_sum(sum) / (float)width;
    for (i = 0; i < whole; i += LANES) {
        Vec v = vec_get(x, dtype, i) - mean;
        square += v * v;
    }
    float left = vec_sum(square);
    for (; i < width; i++)
        left += (scalar_get(x, dtype, i) - mean) * (scalar_get(x, dtype, i) - mean);
    float r = 1 / sqrtf(left / (float)width + eps);
    for (i = 0; i < width; i += LANES) {
        int64_t n = width - i;
        vec_give(y, yd, i, n, (vec_take(x, dtype, i, n) - mean) * r * take_f32(w, i, n, 1) + take_f32(b, i, n, 0));
    }
    if (stats)
        stats[0] = mean, stats[1] = r;
}

/* Runs CALL(first dtype, second dtype) with both as constants. */
#define BY_DTYPES(a, b, CALL) \
    do { \
        if ((a) == F32 && (b) == F32) CALL(F32, F32); \
        else if ((a) == F32) CALL(F32, BF16); \
        else if ((b) == F32) CALL(BF16, F32); \
        else CALL(BF16, BF16); \
    } while (0)

Status KERNEL(rms_norm)(View *y, View *rstd, const View *x, const View *w, float eps) {
    int64_t rows = view_rows(x), width = view_width(x);
    float *stats = rstd ? rstd->data : NULL;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++) {
#define ROW(yd, xd) rms_row(row_at(y, r), yd, stats ? stats + r : NULL, row_at(x, r), xd, row_of(w, r, width), width, eps)
        BY_DTYPES(y->dtype, x->dtype, ROW);
#undef ROW
    }
    return OK;
}

Status KERNEL(layer_norm)(View *y, View *stats, const View *x, const View *w, const View *b, float eps) {
    int64_t rows = view_rows(x), width = view_width(x);
    float *kept = stats ? stats->data : NULL;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++) {
#define ROW(yd, xd) layer_row(row_at(y, r), yd, kept ? kept + 2 * r : NULL, row_at(x, r), xd, row_of(w, r, width), row_of(b, r, width), width, eps)
        BY_DTYPES(y->dtype, x->dtype, ROW);
#undef ROW
    }
    return OK;
}

/* --- backward ---------------------------------------------------------------------------------------------------------- */

typedef struct Norm {
    View *dx, *dw, *db;
    const View *dy, *x;
    const View *w;
    const float *stats; /* (rows, each): rstd, or mean and rstd */
    int each;
} Norm;

INLINE float mean_of(const Norm *n, int64_t r) { return n->each == 2 ? n->stats[2 * r] : 0; }
INLINE float rstd_of(const Norm *n, int64_t r) { return n->stats[n->each * r + n->each - 1]; }

/* dx = rstd * (d - mean(d) - h * mean(d h)), d = dy w, h = (x - mean) rstd; without mean(d) if each is 1. */
INLINE void row_backward(const Norm *a, int64_t r, Dtype yd, Dtype xd) {
    const void *dy = row_at(a->dy, r), *x = row_at(a->x, r);
    void *dx = row_at(a->dx, r);
    int64_t width = view_width(a->x);
    const float *w = row_of(a->w, r, width);
    float mean = mean_of(a, r), rstd = rstd_of(a, r);
    Vec sum = {0}, dot = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t n = width - i;
        Vec d = vec_take(dy, yd, i, n) * take_f32(w, i, n, 1); /* 0 past the width */
        sum += d;
        dot += d * (vec_take(x, xd, i, n) - mean);
    }
    float middle = a->each == 2 ? vec_sum(sum) / (float)width : 0, slope = vec_sum(dot) * rstd * rstd / (float)width;
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t n = width - i;
        Vec d = vec_take(dy, yd, i, n) * take_f32(w, i, n, 1);
        vec_give(dx, xd, i, n, (d - middle - (vec_take(x, xd, i, n) - mean) * slope) * rstd);
    }
}

/* dw += sum dy h and db += sum dy for columns from..to of rows of one head (every `heads`-th), each tile's sum apart. */
INLINE void strip_backward(const Norm *a, const int32_t *tiles, int64_t count, int64_t from, int64_t to, int64_t head, int64_t heads, Dtype yd, Dtype xd) {
    int64_t width = view_width(a->x);
    float *dw = a->dw ? (float *)a->dw->data + head * width : NULL, *db = a->db ? (float *)a->db->data + head * width : NULL;
    for (int64_t t = 0; t < count; t++) {
        Vec weight[4] = {{0}}, bias[4] = {{0}};
        for (int64_t r = (tiles[t] - head + heads - 1) / heads * heads + head; r < tiles[t + 1]; r += heads) {
            const void *dy = row_at(a->dy, r), *x = row_at(a->x, r);
            float mean = mean_of(a, r), rstd = rstd_of(a, r);
            for (int j = 0; j < 4; j++) {
                int64_t i = from + j * LANES;
                if (i >= to)
                    break;
                Vec d = vec_take(dy, yd, i, to - i);
                weight[j] += d * ((vec_take(x, xd, i, to - i) - mean) * rstd);
                bias[j] += d;
            }
        }
        for (int64_t i = from; i < to; i += LANES) {
            if (dw)
                vec_give(dw, F32, i, to - i, vec_take(dw, F32, i, to - i) + weight[(i - from) / LANES]);
            if (db)
                vec_give(db, F32, i, to - i, vec_take(db, F32, i, to - i) + bias[(i - from) / LANES]);
        }
    }
}

static Status norm_backward(const Norm *a, const View *starts) {
    int64_t rows = view_rows(a->x), width = view_width(a->x);
    if (a->dw || a->db) {
        int64_t count;
        int32_t *tiles;
        size_t bytes;
        Status status = tiles_make(&tiles, &count, &bytes, starts, rows);
        if (status != OK || scratch_only())
            return scratch_free(status == OK ? tiles : NULL, bytes), status;
        int64_t heads = width ? view_count(a->dw ? a->dw : a->db) / width : 1, strips = (width + STRIP - 1) / STRIP;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
        for (int64_t strip = 0; strip < strips * heads; strip++) {
            int64_t from = strip % strips * STRIP, to = from + STRIP < width ? from + STRIP : width;
#define STRIP_OF(yd, xd) strip_backward(a, tiles, count, from, to, strip / strips, heads, yd, xd)
            BY_DTYPES(a->dy->dtype, a->x->dtype, STRIP_OF);
#undef STRIP_OF
        }
        scratch_free(tiles, bytes);
    }
    if (scratch_only())
        return OK;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++) {
#define ROW(yd, xd) row_backward(a, r, yd, xd)
        BY_DTYPES(a->dy->dtype, a->x->dtype, ROW);
#undef ROW
    }
    return OK;
}

Status KERNEL(rms_norm_backward)(View *dx, View *dw, const View *dy, const View *x, const View *w, const View *rstd, const View *starts) {
    Norm a = {.dx = dx, .dw = dw, .dy = dy, .x = x, .w = w, .stats = rstd->data, .each = 1};
    return norm_backward(&a, starts);
}

Status KERNEL(layer_norm_backward)(View *dx, View *dw, View *db, const View *dy, const View *x, const View *w, const View *stats,
                                   const View *starts) {
    Norm a = {.dx = dx, .dw = dw, .db = db, .dy = dy, .x = x, .w = w, .stats = stats->data, .each = 2};
    return norm_backward(&a, starts);
}
