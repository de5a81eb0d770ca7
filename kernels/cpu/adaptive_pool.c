/* Averages of an image onto a grid of a given size: cell i of n takes the rows from floor(i h / n) to ceil((i + 1) h / n), and so for
 * columns; cells may overlap where n does not divide h. */
#include "isa.h"

typedef struct Span {
    int64_t first, end;
} Span;

static Span span_of(int64_t cell, int64_t cells, int64_t size) {
    return (Span){cell * size / cells, ((cell + 1) * size + cells - 1) / cells};
}

Status KERNEL(adaptive_pool)(View *y, const View *x) {
    int64_t planes = x->shape[0] * x->shape[1], h = x->shape[2], w = x->shape[3], rows = y->shape[2], columns = y->shape[3];
#pragma omp parallel for schedule(static) if (view_count(x) >= 1 << 15)
    for (int64_t p = 0; p < planes; p++) {
        const float *in = (const float *)x->data + p * h * w;
        float *out = (float *)y->data + p * rows * columns;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) {
                Span r = span_of(i, rows, h), c = span_of(j, columns, w);
                float sum = 0;
                for (int64_t k = r.first; k < r.end; k++)
                    for (int64_t l = c.first; l < c.end; l++)
                        sum += in[k * w + l];
                out[i * columns + j] = sum / (float)((r.end - r.first) * (c.end - c.first));
            }
    }
    return OK;
}

Status KERNEL(adaptive_pool_backward)(View *dx, const View *dy) {
    int64_t planes = dx->shape[0] * dx->shape[1], h = dx->shape[2], w = dx->shape[3], rows = dy->shape[2], columns = dy->shape[3];
#pragma omp parallel for schedule(static) if (view_count(dx) >= 1 << 15)
    for (int64_t p = 0; p < planes; p++) {
        float *out = (float *)dx->data + p * h * w;
        const float *in = (const float *)dy->data + p * rows * columns;
        memset(out, 0, (size_t)(h * w) * sizeof *out);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) {
                Span r = span_of(i, rows, h), c = span_of(j, columns, w);
                float g = in[i * columns + j] / (float)((r.end - r.first) * (c.end - c.first));
                for (int64_t k = r.first; k < r.end; k++)
                    for (int64_t l = c.first; l < c.end; l++)
                        out[k * w + l] += g;
            }
    }
    return OK;
}
