/* Rotary positions (arXiv 2104.09864): pairs of each head's elements turned by their position's angles. */
#include "isa.h"

/* Pairs (i, i + half). y may be x: both elements of a pair are read before either is written. */
INLINE void turn_halves_of(void *y, const void *x, Dtype yd, Dtype xd, const float *cos, const float *sin, int64_t half, float sign) {
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        Vec a = vec_get(x, xd, i), b = vec_get(x, xd, half + i), c = vec_load(cos + i), s = vec_load(sin + i) * sign;
        vec_put(y, yd, i, a * c - b * s);
        vec_put(y, yd, half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = scalar_get(x, xd, i), b = scalar_get(x, xd, half + i), c = cos[i], s = sin[i] * sign;
        scalar_put(y, yd, i, a * c - b * s);
        scalar_put(y, yd, half + i, b * c + a * s);
    }
}
static void turn_halves(void *y, const void *x, Dtype yd, Dtype xd, const float *cos, const float *sin, int64_t half, float sign) {
    if (xd == F32 && yd == BF16)
        turn_halves_of(y, x, BF16, F32, cos, sin, half, sign);
    else if (xd == F32)
        turn_halves_of(y, x, F32, F32, cos, sin, half, sign);
    else if (yd == F32)
        turn_halves_of(y, x, F32, BF16, cos, sin, half, sign);
    else
        turn_halves_of(y, x, BF16, BF16, cos, sin, half, sign);
}

/* Pairs (2i, 2i + 1). */
static void turn_pairs(void *y, const void *x, Dtype yd, Dtype xd, const float *cos, const float *sin, int64_t half, float sign) {
    int64_t i = 0;
    for (; xd == BF16 && yd == BF16 && i + LANES <= half; i += LANES) { /* a pair of bf16 is one word */
        VecU word, low, high;
        bf16 first[LANES], second[LANES];
        memcpy(&word, (const bf16 *)x + 2 * i, sizeof word);
        Vec a = (Vec)(word << 16), b = (Vec)(word & 0xffff0000), c = vec_load(cos + i), s = vec_load(sin + i) * sign;
        vec_store_bf16(first, a * c - b * s);
        vec_store_bf16(second, b * c + a * s);
        VecH h;
        memcpy(&h, first, sizeof h);
        low = __builtin_convertvector(h, VecU);
        memcpy(&h, second, sizeof h);
        high = __builtin_convertvector(h, VecU);
        word = low | high << 16;
        memcpy((bf16 *)y + 2 * i, &word, sizeof word);
    }
    for (; i < half; i++) {
        float a = scalar_get(x, xd, 2 * i), b = scalar_get(x, xd, 2 * i + 1), c = cos[i], s = sin[i] * sign;
        scalar_put(y, yd, 2 * i, a * c - b * s);
        scalar_put(y, yd, 2 * i + 1, b * c + a * s);
    }
}

Status KERNEL(rope)(View *y, const View *x, const View *cos, const View *sin, const View *positions, int interleaved, int sign) {
    int64_t tokens = x->shape[0], heads = x->shape[1], size = x->shape[2], half = cos->shape[1];
    int64_t x_bytes = (int64_t)dtype_size(x->dtype), y_bytes = (int64_t)dtype_size(y->dtype);
    const int32_t *at = positions->data;
#pragma omp parallel for schedule(static) if (tokens * heads * size >= 32768)
    for (int64_t n = 0; n < tokens; n++) {
        const float *c = (const float *)cos->data + at[n] * cos->stride[0], *s = (const float *)sin->data + at[n] * sin->stride[0];
        for (int64_t h = 0; h < heads; h++) {
            const char *from = (const char *)x->data + (n * x->stride[0] + h * x->stride[1]) * x_bytes;
            char *to = (char *)y->data + (n * y->stride[0] + h * y->stride[1]) * y_bytes;
            (interleaved ? turn_pairs : turn_halves)(to, from, y->dtype, x->dtype, c, s, half, (float)sign);
            if (x->dtype != y->dtype)
                for (int64_t i = 2 * half; i < size; i++)
                    scalar_put(to, y->dtype, i, scalar_get(from, x->dtype, i));
            else if (to != from && 2 * half < size)
                memcpy(to + 2 * half * y_bytes, from + 2 * half * x_bytes, (size_t)((size - 2 * half) * y_bytes));
        }
    }
    return OK;
}
