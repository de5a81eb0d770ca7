/* Gradients of fully trained linear layers. */
#include "product.h"

Status KERNEL(linear_backward_weight)(View *dw, View *dbias, const View *dy, const View *x, const View *starts) {
    Status status = dbias ? KERNEL(sum_rows)(dbias, dy, starts) : OK;
    if (status != OK || !dw)
        return status;
    int64_t count;
    int32_t *tiles;
    size_t bytes;
    status = tiles_make(&tiles, &count, &bytes, starts, view_rows(dy));
    if (status != OK)
        return status;
    TokenSum sum = {.c = dw->data, .rows = view_width(dy), .cols = view_width(x), .step = view_width(x), .a = side_columns(dy),
                    .b = side_columns(x), .scale = 1};
    status = KERNEL(token_sum)(&sum, tiles, count);
    scratch_free(tiles, bytes);
    return status;
}
