/* Softmax over rows. */
#include <math.h>

#include "isa.h"

static void row_softmax(void *y, const void *x, Dtype dtype, int64_t width) {
    Vec most = vec_set(-INFINITY), sum = {0};
    float high = -INFINITY, total;
    int64_t i = 0, whole = width / LANES * LANES, rest = width - whole;
    for (; i < whole; i += LANES)
        most = vec_max(most, vec_get(x, dtype, i));
    for (int j = 0; j < LANES; j++)
        high = most[j] > high ? most[j] : high;
    for (; i < width; i++) {
        float f = scalar_get(x, dtype, i);
        high = f > high ? f : high;
    }
    for (i = 0; i < whole; i += LANES)
        sum += vec_exp(vec_get(x, dtype, i) - high);
    Vec last = vec_exp(vec_get_part(x, dtype, whole, rest) - high);
    total = vec_sum(sum);
    for (int j = 0; j < rest; j++)
        total += last[j];
    float over = 1 / total;
    for (i = 0; i < whole; i += LANES)
        vec_put(y, dtype, i, vec_exp(vec_get(x, dtype, i) - high) * over);
    if (rest)
        vec_put_part(y, dtype, whole, rest, last * over);
}

static void row_backward(void *dx, const void *dy, const void *y, Dtype dtype, int64_t width) {
    Vec sum = {0};
    int64_t i = 0, whole = width / LANES * LANES, rest = width - whole;
    for (; i < whole; i += LANES)
        sum += vec_get(dy, dtype, i) * vec_get(y, dtype, i);
    if (rest)
        sum += vec_get_part(dy, dtype, whole, rest) * vec_get_part(y, dtype, whole, rest);
    float dot = vec_sum(sum);
    for (i = 0; i < whole; i += LANES)
        vec_put(dx, dtype, i, vec_get(y, dtype, i) * (vec_get(dy, dtype, i) - dot));
    if (rest)
        vec_put_part(dx, dtype, whole, rest, vec_get_part(y, dtype, whole, rest) * (vec_get_part(dy, dtype, whole, rest) - dot));
}

Status KERNEL(softmax)(View *y, const View *x) {
    int64_t rows = view_rows(x), width = view_width(x);
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++)
        row_softmax(row_at(y, r), row_at(x, r), x->dtype, width);
    return OK;
}

Status KERNEL(softmax_backward)(View *dx, const View *dy, const View *y) {
    int64_t rows = view_rows(y), width = view_width(y);
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++)
        row_backward(row_at(dx, r), row_at(dy, r), row_at(y, r), y->dtype, width);
    return OK;
}
