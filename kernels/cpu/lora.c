/* Gradients of the adapter. */
#include "product.h"

Status KERNEL(lora_backward)(View *da, View *db, const View *dh, const View *dy, const View *h, const Lora *lora, const View *starts) {
    int64_t rank = view_width(h), in = view_width(lora->x), out = view_width(dy), count;
    int32_t *tiles;
    size_t bytes;
    Status status = tiles_make(&tiles, &count, &bytes, starts, view_rows(dy));
    if (status != OK)
        return status;
    TokenSum a = {.c = da->data, .rows = rank, .cols = in, .step = in, .a = side_columns(dh), .b = side_columns(lora->x), .scale = 1};
    TokenSum b = {.c = db->data, .rows = out, .cols = rank, .step = rank, .a = side_columns(dy), .b = side_columns(h), .scale = lora->scale};
    size_t for_a = KERNEL(token_sum_bytes)(&a), for_b = KERNEL(token_sum_bytes)(&b), most = for_a > for_b ? for_a : for_b;
    float *scratch = scratch_alloc(most);
    if (scratch) {
        KERNEL(token_sum)(&a, tiles, count, scratch);
        KERNEL(token_sum)(&b, tiles, count, scratch);
    }
    scratch_free(scratch, most);
    scratch_free(tiles, bytes);
    return scratch ? OK : ERR_MEMORY;
}
