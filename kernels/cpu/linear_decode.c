/* Products for a few rows, bound by reading the weights once: each thread takes a run of outputs, each output is one chain of
 * vector sums over the depth, the same whatever the number of rows. */
#include "product.h"

#include <omp.h>

#if defined(__AVX512BF16__) || defined(__F16C__)
#include <immintrin.h>
#endif

enum {
    CHAINS = 4,   /* sums of one output */
    TOGETHER = 4, /* outputs that share a visit to the rows of x */
    AHEAD = 4096  /* bytes */
};

INLINE Vec weights_load(const void *w, Dtype dtype, int64_t i) {
    if (dtype != F16)
        return vec_get(w, dtype, i);
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)w + i)));
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)w + i)));
#else
    uint16_t h[LANES];
    uint32_t wide[LANES];
    memcpy(h, (const uint16_t *)w + i, sizeof h);
    for (int j = 0; j < LANES; j++)
        wide[j] = h[j];
    VecU u;
    memcpy(&u, wide, sizeof u);
    VecU rest = u & 0x7fff;
    Vec v = (Vec)(rest << 13) * 0x1p112f; /* moves the exponent's bias, subnormals included */
    return (Vec)((VecU)v | ((VecU)(rest >= 0x7c00) & 0x7f800000) | (u & 0x8000) << 16);
#endif
}

INLINE Vec weights_load_part(const void *w, Dtype dtype, int64_t i, int64_t n) {
    union { uint16_t half[2 * LANES]; float whole[LANES]; } part = {.whole = {0}};
    int64_t size = dtype == F32 ? 4 : 2;
    memcpy(&part, (const char *)w + i * size, (size_t)(n * size));
    return weights_load(&part, dtype, 0);
}

/* The same as they are multiplied: rounded to bf16 if x is. */
INLINE Vec weights_take(const void *w, Dtype dtype, int64_t i, int64_t n, const int rounded) {
    Vec v = n >= LANES ? weights_load(w, dtype, i) : weights_load_part(w, dtype, i, n);
    if (!rounded || dtype == BF16)
        return v;
    VecH h = vec_to_bf16(v);
    return (Vec)(__builtin_convertvector(h, VecU) << 16);
}

#ifdef __AVX512BF16__
/* 32 weights, or the first n, in bf16. */
INLINE __m512bh pairs_take(const void *w, const Dtype dtype, int64_t i, int64_t n) {
    if (dtype == BF16)
        return (__m512bh)_mm512_maskz_loadu_epi16(n >= 32 ? 0xffffffff : (1u << n) - 1, (const bf16 *)w + i);
    Vec low = n >= LANES ? weights_load(w, dtype, i) : weights_load_part(w, dtype, i, n);
    Vec high = n >= 2 * LANES ? weights_load(w, dtype, i + LANES) : n > LANES ? weights_load_part(w, dtype, i + LANES, n - LANES) : (Vec){0};
    if (dtype == F16) /* none is under 2^-126, which this instruction makes zero */
        return _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (__m512bh)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)vec_to_bf16(low)), (__m256i)vec_to_bf16(high), 1);
}
#endif

/* x . w over the depth, lanes still apart. One row of w after another: memory then gives 30 GB/s to one core of Zen 4, against 6.5
 * when four rows are read side by side. xd and wd are constants where this is inlined. */
INLINE Vec dot(const void *x, const void *w, int64_t depth, const Dtype xd, const Dtype wd) {
    Vec sum[CHAINS] = {{0}};
    int64_t k = 0;
#ifdef __AVX512BF16__
    if (xd == BF16) {
        const bf16 *a = x;
        const int64_t size = wd == F32 ? 4 : 2;
        for (; k + 32 * CHAINS <= depth; k += 32 * CHAINS)
            for (int j = 0; j < CHAINS; j++) {
                const char *ahead = (const char *)w + (k + 32 * j) * size + AHEAD; /* the processor's own stops at a page's end */
                __builtin_prefetch(ahead, 0, 3);
                if (size == 4)
                    __builtin_prefetch(ahead + 64, 0, 3);
                sum[j] = (Vec)_mm512_dpbf16_ps((__m512)sum[j], (__m512bh)_mm512_loadu_si512(a + k + 32 * j), pairs_take(w, wd, k + 32 * j, 32));
            }
        for (int j = 0; k < depth; k += 32, j++) {
            int64_t left = least(32, depth - k);
            sum[j] = (Vec)_mm512_dpbf16_ps((__m512)sum[j], pairs_take(a, BF16, k, left), pairs_take(w, wd, k, left));
        }
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
#endif
    for (; k + CHAINS * LANES <= depth; k += CHAINS * LANES)
        for (int j = 0; j < CHAINS; j++)
            sum[j] += vec_get(x, xd, k + LANES * j) * weights_take(w, wd, k + LANES * j, LANES, xd == BF16);
    for (int j = 0; k < depth; k += LANES, j++) {
        int64_t left = depth - k;
        if (left >= LANES)
            sum[j] += vec_get(x, xd, k) * weights_take(w, wd, k, LANES, xd == BF16);
        else
            sum[j] += vec_get_part(x, xd, k, left) * weights_take(w, wd, k, left, xd == BF16);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

typedef struct Decode {
    View *y;
    const View *x, *w;
    const float *bias;
    const Lora *lora;
    float *h; /* (rows, rank): x a^T, rounded to x's dtype, times the scale */
} Decode;

static inline void finish(const Decode *d, int64_t row, int64_t out, float v) {
    if (d->lora) {
        int64_t rank = d->lora->a->shape[0];
        const void *b = row_at(d->lora->b, out);
        Vec sum = {0};
        for (int64_t r = 0; r < rank; r += LANES) {
            int64_t n = least(LANES, rank - r);
            const float *h = d->h + row * rank + r;
            if (n == LANES)
                sum += vec_load(h) * vec_get(b, d->lora->b->dtype, r);
            else
                sum += vec_get_part(h, F32, 0, n) * vec_get_part(b, d->lora->b->dtype, r, n);
        }
        v += vec_sum(sum);
    }
    if (d->bias)
        v += d->bias[out];
    scalar_put(row_at(d->y, row), d->y->dtype, out, v);
}

/* Outputs from..to of every row; w's depth is contiguous. A few rows of w serve all rows of x while they are near. */
INLINE void outputs(const Decode *d, int64_t from, int64_t to, const Dtype xd, const Dtype wd) {
    int64_t rows = view_rows(d->x), depth = d->w->shape[1], step = d->w->stride[0], size = wd == F32 ? 4 : 2;
    for (int64_t o = from; o < to; o += TOGETHER)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = o; i < least(o + TOGETHER, to); i++)
                finish(d, r, i, vec_sum(dot(row_at(d->x, r), (const char *)d->w->data + i * step * size, depth, xd, wd)));
}

/* The same where w's outputs are contiguous: runs of outputs walk down the depth. */
INLINE void outputs_along(const Decode *d, int64_t from, int64_t to, const Dtype wd, const int rounded) {
    enum { RUN = 8 };
    int64_t rows = view_rows(d->x), depth = d->w->shape[1], inner = d->w->stride[1], size = wd == F32 ? 4 : 2, o = from;
    const char *w = d->w->data;
    for (; o + RUN * LANES <= to; o += RUN * LANES)
        for (int64_t r = 0; r < rows; r++) {
            const void *x = row_at(d->x, r);
            Vec sum[RUN];
            float part[LANES];
            for (int j = 0; j < RUN; j++)
                sum[j] = (Vec){0};
            for (int64_t k = 0; k < depth; k++) {
                Vec v = vec_set(scalar_get(x, d->x->dtype, k));
                for (int j = 0; j < RUN; j++)
                    sum[j] += v * weights_take(w + (k * inner + o) * size, wd, j * LANES, LANES, rounded);
            }
            for (int j = 0; j < RUN; j++) {
                vec_store(part, sum[j]);
                for (int i = 0; i < LANES; i++)
                    finish(d, r, o + j * LANES + i, part[i]);
            }
        }
    for (; o < to; o += LANES) {
        int64_t n = least(LANES, to - o);
        for (int64_t r = 0; r < rows; r++) {
            const void *x = row_at(d->x, r);
            Vec sum = {0};
            float part[LANES];
            for (int64_t k = 0; k < depth; k++)
                sum += vec_set(scalar_get(x, d->x->dtype, k)) * weights_take(w + (k * inner + o) * size, wd, 0, n, rounded);
            vec_store(part, sum);
            for (int64_t i = 0; i < n; i++)
                finish(d, r, o + i, part[i]);
        }
    }
}

INLINE void outputs_of(const Decode *d, int64_t from, int64_t to, const Dtype wd) {
    int paired = d->x->dtype == BF16;
    if (d->w->stride[1] != 1 && d->w->shape[1] != 1) {
        if (paired)
            outputs_along(d, from, to, wd, 1);
        else
            outputs_along(d, from, to, wd, 0);
    } else if (paired) {
        outputs(d, from, to, BF16, wd);
    } else {
        outputs(d, from, to, F32, wd);
    }
}

static void outputs_run(const Decode *d, int64_t from, int64_t to) {
    if (d->w->dtype == BF16)
        outputs_of(d, from, to, BF16);
    else if (d->w->dtype == F32)
        outputs_of(d, from, to, F32);
    else
        outputs_of(d, from, to, F16);
}

/* h for every row, by the calling thread: the rank is small. */
static void adapter_run(const Decode *d) {
    const View *a = d->lora->a, *x = d->lora->x;
    int64_t rank = a->shape[0];
    for (int64_t r = 0; r < view_rows(x); r++)
        for (int64_t o = 0; o < rank; o++) {
            float h = vec_sum(x->dtype == BF16 ? dot(row_at(x, r), row_at(a, o), a->shape[1], BF16, BF16)
                                               : dot(row_at(x, r), row_at(a, o), a->shape[1], F32, F32));
            d->h[r * rank + o] = (x->dtype == BF16 ? bf16_to_f32(f32_to_bf16(h)) : h) * d->lora->scale;
        }
}

Status KERNEL(linear_decode)(View *y, const View *x, const View *w, const View *bias, const Lora *lora) {
    enum { SMALL = 4096 };
    float few[SMALL];
    Decode d = {y, x, w, bias ? bias->data : NULL, lora, few};
    int64_t out = w->shape[0], n = lora ? view_rows(x) * lora->a->shape[0] : 0;
    if (n > SMALL && !(d.h = scratch_alloc((size_t)n * sizeof *d.h)))
        return ERR_MEMORY;
    if (scratch_only())
        return scratch_free(n > SMALL ? d.h : NULL, (size_t)n * sizeof *d.h), OK;
    if (lora)
        adapter_run(&d);
    int64_t run = w->stride[1] == 1 ? TOGETHER : 8 * LANES; /* the threads' shares are whole runs, so tails are the matrix's own */
#pragma omp parallel
    {
        int64_t runs = count_of(out, run), t = omp_get_thread_num(), of = omp_get_num_threads();
        outputs_run(&d, runs * t / of * run, least(out, runs * (t + 1) / of * run));
    }
    if (n > SMALL)
        scratch_free(d.h, (size_t)n * sizeof *d.h);
    return OK;
}
