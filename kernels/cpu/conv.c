/* Convolution of images (n, c, h, w): by products of rows where images are small, else by oneDNN. */
#include "conv_rows.h"

/* Which way is faster, by shapes alone. oneDNN takes an image at a time: with few output pixels its products are small. Windows
 * of one pixel are no work for it, and of many pixels they are much to copy; gradients of the weights gain from large sums most. */
static int by_rows(const View *y, const View *w, const Conv *conv, int gradient) {
    int64_t pixels = y->shape[2] * y->shape[3], window = w->shape[2] * w->shape[3];
    if (conv->groups != 1)
        return 0;
    return pixels <= 16 || (window > 1 && (pixels <= 64 || (gradient && w->shape[1] >= 8)));
}

/* y (n, channels, plane) = the channel's bias, or 0. */
static void fill_channels(View *y, const View *bias) {
    int64_t planes = y->shape[0] * y->shape[1], plane = y->shape[2] * y->shape[3];
    for (int64_t p = 0; p < planes; p++)
        for (int64_t i = 0; i < plane; i++)
            ((float *)y->data)[p * plane + i] = bias ? ((const float *)bias->data)[p % y->shape[1]] : 0;
}

Status KERNEL(conv)(View *y, const View *x, const View *w, const View *bias, const Conv *conv) {
    if (!view_count(y))
        return OK;
    if (!view_count(x) || !view_count(w)) {
        fill_channels(y, bias);
        return OK;
    }
    return by_rows(y, w, conv, 0) ? KERNEL(conv_rows)(y, x, w, bias, conv) : dnnl_conv(y, x, w, bias, conv);
}

/* dbias (channels) += dy (n, channels, plane), image after image. */
static void add_bias_gradient(View *dbias, const View *dy) {
    int64_t images = dy->shape[0], channels = dy->shape[1], plane = dy->shape[2] * dy->shape[3];
#pragma omp parallel for schedule(static) if (images * channels * plane >= 1 << 15)
    for (int64_t c = 0; c < channels; c++) {
        float total = 0;
        for (int64_t n = 0; n < images; n++) {
            const float *p = (const float *)dy->data + (n * channels + c) * plane;
            Vec sum = {0};
            int64_t i = 0;
            for (; i + LANES <= plane; i += LANES)
                sum += vec_load(p + i);
            if (i < plane)
                sum += vec_get_part(p, F32, i, plane - i);
            total += vec_sum(sum);
        }
        ((float *)dbias->data)[c] += total;
    }
}

Status KERNEL(conv_backward)(View *dx, View *dw, View *dbias, const View *dy, const View *x, const View *w, const Conv *conv) {
    Status status = OK;
    int something = view_count(dy) && view_count(x) && view_count(w);
    if (dx && something)
        status = by_rows(dy, w, conv, 0) ? KERNEL(conv_rows_dx)(dx, dy, w, conv) : dnnl_conv_backward_data(dx, dy, w, conv);
    else if (dx)
        fill_channels(dx, NULL);
    if (status == OK && dw && something)
        status = by_rows(dy, w, conv, 1) ? KERNEL(conv_rows_dw)(dw, dy, x, w, conv) : dnnl_conv_backward_weights(dw, dy, x, w, conv);
    if (status == OK && dbias)
        add_bias_gradient(dbias, dy);
    return status;
}
