/* Gradients of fully trained linear layers. */
#include "product.h"

Status KERNEL(linear_backward_weight)(View *dw, View *dbias, const View *dy, const View *x, const View *starts) {
    int64_t count;
    int32_t *tiles;
    size_t bytes, sum_bytes = 0;
    float *scratch = NULL;
    Status status = tiles_make(&tiles, &count, &bytes, starts, view_rows(dy));
    if (status != OK)
        return status;
    TokenSum sum = {.rows = view_width(dy), .cols = view_width(x), .step = view_width(x), .a = side_columns(dy), .b = side_columns(x), .scale = 1};
    if (dw) {
        sum.c = dw->data;
        sum_bytes = KERNEL(token_sum_bytes)(&sum);
        if (!(scratch = scratch_alloc(sum_bytes)))
            status = ERR_MEMORY;
    }
    if (status == OK && dw && !scratch_only())
        KERNEL(token_sum)(&sum, tiles, count, scratch);
    if (status == OK && dbias && !scratch_only())
        KERNEL(row_sum)(dbias, dy, tiles, count);
    scratch_free(scratch, sum_bytes);
    scratch_free(tiles, bytes);
    return status;
}
