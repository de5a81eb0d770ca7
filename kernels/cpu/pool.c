/* Pooling of images (n, c, h, w): maxima with the place they came from, averages with or without the padding counted. */
#include <math.h>

#include "isa.h"

/* A window: the rows and columns of the image that it covers, and where it begins (in the padding, maybe). */
typedef struct Window {
    int64_t top, left, first[2], end[2];
} Window;

static Window window_at(const Pool *pool, int64_t oh, int64_t ow, int64_t height, int64_t width) {
    Window w = {.top = oh * pool->stride[0] - pool->padding[0], .left = ow * pool->stride[1] - pool->padding[1]};
    w.first[0] = w.top > 0 ? w.top : 0;
    w.first[1] = w.left > 0 ? w.left : 0;
    w.end[0] = w.top + pool->kernel[0] < height ? w.top + pool->kernel[0] : height;
    w.end[1] = w.left + pool->kernel[1] < width ? w.left + pool->kernel[1] : width;
    return w;
}

/* What an average divides by. The padding counts as far as it was asked for, not beyond. */
static float window_count(const Window *w, const Pool *pool, int64_t height, int64_t width) {
    int64_t rows = w->end[0] - w->first[0], cols = w->end[1] - w->first[1];
    if (pool->count_padding) {
        int64_t bottom = height + pool->padding[2] - w->top, right = width + pool->padding[3] - w->left;
        rows = pool->kernel[0] < bottom ? pool->kernel[0] : bottom;
        cols = pool->kernel[1] < right ? pool->kernel[1] : right;
    }
    return rows > 0 && cols > 0 ? (float)(rows * cols) : 1;
}

static float window_max(const float *x, const Window *w, int64_t width, int64_t kernel_width, int32_t *index) {
    float most = -INFINITY;
    int64_t at = -1;
    for (int64_t i = w->first[0]; i < w->end[0]; i++)
        for (int64_t j = w->first[1]; j < w->end[1]; j++) {
            float f = x[i * width + j];
            if (at < 0 || f > most || (f != f && most == most)) /* the first NaN stays */
                most = f, at = (i - w->top) * kernel_width + j - w->left;
        }
    if (index)
        *index = (int32_t)at;
    return most;
}

static float window_sum(const float *x, const Window *w, int64_t width) {
    float sum = 0;
    for (int64_t i = w->first[0]; i < w->end[0]; i++)
        for (int64_t j = w->first[1]; j < w->end[1]; j++)
            sum += x[i * width + j];
    return sum;
}

Status KERNEL(pool)(View *y, View *index, const View *x, const Pool *pool) {
    int64_t planes = x->shape[0] * x->shape[1], height = x->shape[2], width = x->shape[3], out_h = y->shape[2], out_w = y->shape[3];
#pragma omp parallel for schedule(static) if (view_count(x) >= 1 << 14)
    for (int64_t p = 0; p < planes; p++) {
        const float *in = (const float *)x->data + p * height * width;
        for (int64_t i = 0; i < out_h; i++)
            for (int64_t j = 0; j < out_w; j++) {
                int64_t at = (p * out_h + i) * out_w + j;
                Window w = window_at(pool, i, j, height, width);
                ((float *)y->data)[at] = pool->average
                                             ? window_sum(in, &w, width) / window_count(&w, pool, height, width)
                                             : window_max(in, &w, width, pool->kernel[1], index ? (int32_t *)index->data + at : NULL);
            }
    }
    return OK;
}

Status KERNEL(pool_backward)(View *dx, const View *dy, const View *index, const Pool *pool) {
    int64_t planes = dx->shape[0] * dx->shape[1], height = dx->shape[2], width = dx->shape[3], out_h = dy->shape[2], out_w = dy->shape[3];
#pragma omp parallel for schedule(static) if (view_count(dx) >= 1 << 14)
    for (int64_t p = 0; p < planes; p++) {
        float *out = (float *)dx->data + p * height * width;
        memset(out, 0, (size_t)(height * width) * sizeof *out);
        for (int64_t i = 0; i < out_h; i++)
            for (int64_t j = 0; j < out_w; j++) {
                int64_t at = (p * out_h + i) * out_w + j;
                float g = ((const float *)dy->data)[at];
                Window w = window_at(pool, i, j, height, width);
                if (!pool->average) {
                    int64_t from = ((const int32_t *)index->data)[at], r = w.top + from / pool->kernel[1], c = w.left + from % pool->kernel[1];
                    if (from >= 0 && r >= w.first[0] && r < w.end[0] && c >= w.first[1] && c < w.end[1])
                        out[r * width + c] += g;
                    continue;
                }
                g /= window_count(&w, pool, height, width);
                for (int64_t r = w.first[0]; r < w.end[0]; r++)
                    for (int64_t c = w.first[1]; c < w.end[1]; c++)
                        out[r * width + c] += g;
            }
    }
    return OK;
}
