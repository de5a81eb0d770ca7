/* Cross entropy of logits that are there in memory: classifiers, and models whose vocabulary is small. */
#include <math.h>

#include "vecmath.h"

Status KERNEL(cross_entropy)(View *nll, View *dlogits, const View *logits, const View *labels, float scale) {
    int64_t rows = view_rows(logits), width = view_width(logits);
    const int32_t *label = labels->data;
#pragma omp parallel for if (rows * width >= 1 << 15)
    for (int64_t r = 0; r < rows; r++) {
        const void *row = row_at(logits, r);
        float top = -INFINITY;
        for (int64_t i = 0; i < width; i++) {
            float x = scalar_get(row, logits->dtype, i);
            top = x > top ? x : top;
        }
        Vec sum = vec_set(0);
        for (int64_t i = 0; i < width; i += LANES) {
            int64_t n = width - i < LANES ? width - i : LANES;
            Vec e = vec_exp(vec_get_part(row, logits->dtype, i, n) - top);
            for (int64_t k = n; k < LANES; k++)
                e[k] = 0;
            sum += e;
        }
        float log_sum = top + logf(vec_sum(sum));
        int counted = label[r] != -100;
        ((float *)nll->data)[r] = counted ? log_sum - scalar_get(row, logits->dtype, label[r]) : 0;
        if (!dlogits)
            continue;
        void *out = row_at(dlogits, r);
        if (!counted) { /* zeros, whatever the logits are */
            memset(out, 0, (size_t)width * dtype_size(dlogits->dtype));
            continue;
        }
        for (int64_t i = 0; i < width; i += LANES) {
            int64_t n = width - i < LANES ? width - i : LANES;
            Vec p = vec_exp(vec_get_part(row, logits->dtype, i, n) - log_sum);
            if (label[r] >= i && label[r] < i + n)
                p[label[r] - i] -= 1.0f;
            vec_put_part(out, dlogits->dtype, i, n, p * scale);
        }
    }
    return OK;
}
