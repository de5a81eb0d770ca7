/* Reductions over rows and over tokens, in orders that do not depend on the number of threads. */
#include <math.h>

#include "product.h"
#include "vecmath.h"

static float row_sum(const void *row, Dtype dtype, int64_t n) {
    Vec sum = vec_set(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum += vec_get(row, dtype, i);
    if (i < n)
        sum += vec_get_part(row, dtype, i, n - i);
    return vec_sum(sum);
}

static int64_t row_argmax(const void *row, Dtype dtype, int64_t n) {
    int64_t best = 0;
    float value = scalar_get(row, dtype, 0);
    for (int64_t i = 1; i < n; i++) {
        float x = scalar_get(row, dtype, i);
        if (x > value || (value != value && x == x))
            best = i, value = x;
    }
    return best;
}

/* NaN where either is NaN. */
static inline float larger(float a, float b) { return a > b || a != a ? a : b; }

static float row_max(const void *row, Dtype dtype, int64_t n) {
    Vec top = vec_set(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        top = vec_maximum(top, vec_get(row, dtype, i));
    float best = -INFINITY;
    for (int k = 0; k < LANES; k++)
        best = larger(best, top[k]);
    for (; i < n; i++)
        best = larger(best, scalar_get(row, dtype, i));
    return best;
}

Status KERNEL(reduce)(View *y, const View *x, ReduceOp op) {
    int64_t rows = view_rows(x), width = view_width(x);
#pragma omp parallel for if (rows > 1 && rows * width >= 1 << 15)
    for (int64_t r = 0; r < rows; r++) {
        const void *row = row_at(x, r);
        switch (op) {
        case REDUCE_sum: scalar_put(y->data, y->dtype, r, row_sum(row, x->dtype, width)); break;
        case REDUCE_mean: scalar_put(y->data, y->dtype, r, row_sum(row, x->dtype, width) / (float)width); break;
        case REDUCE_max: scalar_put(y->data, y->dtype, r, row_max(row, x->dtype, width)); break;
        default: ((int32_t *)y->data)[r] = (int32_t)row_argmax(row, x->dtype, width); break;
        }
    }
    return OK;
}

void KERNEL(row_sum)(View *y, const View *x, const int32_t *tiles, int64_t count) {
    int64_t width = view_width(x), blocks = (width + LANES - 1) / LANES;
    float *sum = y->data;
#pragma omp parallel for if (view_count(x) >= 1 << 15)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t i = block * LANES, n = width - i < LANES ? width - i : LANES;
        for (int64_t t = 0; t < count; t++) {
            Vec part = vec_set(0);
            for (int64_t r = tiles[t]; r < tiles[t + 1]; r++)
                part += n == LANES ? vec_get(row_at(x, r), x->dtype, i) : vec_get_part(row_at(x, r), x->dtype, i, n);
            Vec total = n == LANES ? vec_load(sum + i) : vec_get_part(sum, F32, i, n);
            vec_put_part(sum, F32, i, n, total + part);
        }
    }
}

Status KERNEL(sum_rows)(View *y, const View *x, const View *starts) {
    int32_t *tiles;
    int64_t count;
    size_t bytes;
    Status status = tiles_make(&tiles, &count, &bytes, starts, view_rows(x));
    if (status != OK)
        return status;
    if (!scratch_only())
        KERNEL(row_sum)(y, x, tiles, count);
    scratch_free(tiles, bytes);
    return OK;
}

typedef double VecD __attribute__((vector_size(LANES * 8)));

/* Sum of n elements from i on, or of their squares: a lane's sum each, then the lanes in order. */
INLINE double total_of(const void *row, const Dtype dtype, int64_t i, int64_t n, const int square, int64_t *bad) {
    VecD sum = {0};
    VecI finite = {0};
    int64_t lanes = 0;
    for (int64_t end = i + n; i < end; i += LANES, lanes += LANES) {
        Vec v = vec_take(row, dtype, i, end - i);
        VecD wide = __builtin_convertvector(v, VecD);
        finite -= v - v == 0;
        sum += square ? wide * wide : wide;
    }
    double total = 0;
    for (int k = 0; k < LANES; k++) {
        total += sum[k];
        lanes -= finite[k];
    }
    *bad = lanes;
    return total;
}

Status KERNEL(total)(double *total, int64_t *bad, const View *x, int square) {
    enum { BLOCK = 4096 };
    int64_t rows = view_rows(x), width = view_width(x);
    if (rows > 1 && view_step(x) == width) /* contiguous: one long row */
        width *= rows, rows = 1;
    int64_t per_row = (width + BLOCK - 1) / BLOCK, blocks = rows * per_row;
    size_t bytes = (size_t)blocks * sizeof(double);
    double *part = scratch_alloc(bytes);
    if (!part)
        return ERR_MEMORY;
    int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong) if (view_count(x) >= 1 << 15)
    for (int64_t b = 0; b < blocks; b++) {
        const void *row = row_at(x, b / per_row);
        int64_t i = b % per_row * BLOCK, n = i + BLOCK < width ? BLOCK : width - i, bad_here;
        if (x->dtype == F32)
            part[b] = square ? total_of(row, F32, i, n, 1, &bad_here) : total_of(row, F32, i, n, 0, &bad_here);
        else
            part[b] = total_of(row, x->dtype, i, n, square, &bad_here);
        wrong += bad_here;
    }
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++)
        sum += part[b];
    scratch_free(part, bytes);
    *total = sum;
    *bad = wrong;
    return OK;
}
