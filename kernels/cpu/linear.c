/* Linear layers with frozen weights and LoRA adapters: forward, and the gradient of the input. */
#include "product.h"

/* Arithmetic is that of the activations; a weight is used as it is stored, so it may have to be rounded on the way. */
static int weight_rounded(const View *x, const View *w) { return x->dtype == BF16 && w->dtype != BF16; }

Status KERNEL(linear)(View *y, View *h, const View *x, const View *w, const View *bias, const Lora *lora) {
    LowRank low;
    Product p = {.rows = view_rows(x), .cols = w->shape[0], .depth = w->shape[1], .a = side_rows(x), .b = side_matrix(w, 0),
                 .rounded = weight_rounded(x, w), .c = y->data, .dtype = y->dtype, .step = view_step(y), .bias = bias ? bias->data : NULL};
    if (lora) {
        low = (LowRank){.low = side_rows(lora->x), .left = side_rows(lora->a), .right = side_rows(lora->b), .rank = lora->a->shape[0], .depth = p.depth,
                        .left_scale = 1, .right_scale = lora->scale, .h = h->data, .h_step = view_step(h)};
        p.low_rank = &low;
    }
    return KERNEL(product)(&p);
}

Status KERNEL(linear_backward)(View *dx, View *dh, View *dropped, const View *dy, const View *w, const Lora *lora, int add) {
    LowRank low;
    Product p = {.rows = view_rows(dy), .cols = w->shape[1], .depth = w->shape[0], .a = side_rows(dy), .b = side_matrix(w, 1),
                 .rounded = weight_rounded(dy, w), .dtype = dy->dtype, .add = add};
    if (lora) {
        const View *whole = lora->whole ? lora->whole : dy;
        low = (LowRank){.low = side_rows(whole), .left = side_columns(lora->b), .right = side_columns(lora->a), .rank = lora->a->shape[0],
                        .depth = view_width(whole), .left_scale = lora->scale, .right_scale = 1, .h = dh->data, .h_step = view_step(dh)};
        p.low_rank = &low;
    }
    if (dx) {
        p.c = dx->data;
        p.dtype = dx->dtype;
        p.step = view_step(dx);
    }
    if (dropped && dx) {
        p.apart = dropped->data;
        p.apart_dtype = dropped->dtype;
        p.apart_step = view_step(dropped);
    }
    Status status = KERNEL(product)(&p);
    if (status != OK || !dropped || dx || !lora)
        return status;
    /* Without dx the adapter's part is a product of its own. */
    Product part = {.rows = p.rows, .cols = p.cols, .depth = low.rank, .a = side_rows(dh), .b = low.right, .c = dropped->data,
                    .dtype = dropped->dtype, .step = view_step(dropped)};
    return KERNEL(product)(&part);
}
