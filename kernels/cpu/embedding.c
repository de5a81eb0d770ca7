/* Rows of a table by number, and their gradient. */
#include "half.h"

static void row_copy(void *y, Dtype to, const void *x, Dtype from, int64_t width) {
    if (to == from) {
        memcpy(y, x, (size_t)width * dtype_size(to));
        return;
    }
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        vec_put(y, to, i, from == F16 ? vec_load_f16((const uint16_t *)x + i) : vec_get(x, from, i));
    for (; i < width; i++)
        scalar_put(y, to, i, from == F16 ? f16_to_f32(((const uint16_t *)x)[i]) : scalar_get(x, from, i));
}

Status KERNEL(embedding)(View *y, const View *table, const View *ids) {
    int64_t rows = view_rows(y), width = view_width(y);
    const int32_t *id = ids->data;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++)
        row_copy(row_at(y, r), y->dtype, row_at(table, id[r]), table->dtype, width);
    return OK;
}

/* Threads share the columns, so that every element is one chain of sums in the order of the tokens. */
Status KERNEL(embedding_backward)(View *dtable, const View *dy, const View *ids) {
    enum { STRIP = 256 };
    int64_t rows = view_rows(dy), width = view_width(dy);
    const int32_t *id = ids->data;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t from = 0; from < width; from += STRIP) {
        int64_t to = from + STRIP < width ? from + STRIP : width;
        for (int64_t r = 0; r < rows; r++) {
            float *d = row_at(dtable, id[r]);
            const void *x = row_at(dy, r);
            int64_t i = from;
            for (; i + LANES <= to; i += LANES)
                vec_store(d + i, vec_load(d + i) + vec_get(x, dy->dtype, i));
            for (; i < to; i++)
                d[i] += scalar_get(x, dy->dtype, i);
        }
    }
    return OK;
}
