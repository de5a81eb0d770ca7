/* The largest elements of rows, and elements picked by number: what a router of experts does. */
#include <math.h>

#include "isa.h"

/* Order of sorting: NaN above all, then by value; among equals the first is the larger. */
static int larger(float a, int32_t at, float b, int32_t bt) {
    if (a != a || b != b)
        return a != a && (b == b || at < bt);
    return a > b || (a == b && at < bt);
}

/* The k first of n in that order, by insertion: k is small. */
static void row_topk(void *values, int32_t *index, const void *x, Dtype dtype, int64_t n, int64_t k) {
    int64_t held = 0;
    for (int32_t i = 0; i < n; i++) {
        float v = scalar_get(x, dtype, i);
        if (held == k && !larger(v, i, scalar_get(x, dtype, index[k - 1]), index[k - 1]))
            continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && larger(v, i, scalar_get(x, dtype, index[at - 1]), index[at - 1]); at--)
            index[at] = index[at - 1];
        index[at] = i;
    }
    for (int64_t j = 0; j < k; j++)
        scalar_put(values, dtype, j, scalar_get(x, dtype, index[j]));
}

Status KERNEL(topk)(View *values, View *index, const View *x) {
    int64_t rows = view_rows(x), width = view_width(x), k = view_width(values);
    if (!k)
        return OK;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++)
        row_topk(row_at(values, r), row_at(index, r), row_at(x, r), x->dtype, width, k);
    return OK;
}

Status KERNEL(pick)(View *y, const View *x, const View *index) {
    int64_t rows = view_rows(x), k = view_width(y);
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *at = row_at(index, r);
        for (int64_t j = 0; j < k; j++)
            scalar_put(row_at(y, r), y->dtype, j, scalar_get(row_at(x, r), x->dtype, at[j]));
    }
    return OK;
}

Status KERNEL(pick_backward)(View *dx, const View *dy, const View *index) {
    int64_t rows = view_rows(dx), width = view_width(dx), k = view_width(dy);
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *at = row_at(index, r);
        void *to = row_at(dx, r);
        memset(to, 0, (size_t)width * dtype_size(dx->dtype));
        for (int64_t j = 0; j < k; j++)
            scalar_put(to, dx->dtype, at[j], scalar_get(to, dx->dtype, at[j]) + scalar_get(row_at(dy, r), dy->dtype, j));
    }
    return OK;
}
