/* What the tests of products share: random matrices, a double reference, timing, and every instruction set of this machine. */
#ifndef ONN_TESTS_PRODUCTS_H
#define ONN_TESTS_PRODUCTS_H

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels.h"

extern const Backend cpu_amx_bf16_backend, cpu_avx512_bf16_backend, cpu_avx512_backend, cpu_avx2_backend, cpu_sse41_backend;

static long failures;

static inline int table_count(const Backend *tables[5]) {
    int n = 0;
    tables[n++] = &cpu_sse41_backend;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        tables[n++] = &cpu_avx2_backend;
    if (n == 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        tables[n++] = &cpu_avx512_backend;
    if (n == 3 && __builtin_cpu_supports("avx512bf16"))
        tables[n++] = &cpu_avx512_bf16_backend;
    const Backend *best = backend_cpu(); /* asks Linux for the tiles' state */
    if (best == &cpu_amx_bf16_backend)
        tables[n++] = best;
    return n;
}

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t state = 88172645463325252u;
static inline double uniform(void) { /* in [-1, 1) */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) * 0x1p-52 - 1;
}

static inline uint16_t half_of(float f, Dtype dtype) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (dtype == BF16)
        return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    /* f16 of |f| in [2^-14, 2): enough for these tests; smaller ones become 0 */
    int32_t e = (int32_t)(u >> 23 & 255) - 112;
    return (uint16_t)((u >> 16 & 0x8000) | (e <= 0 ? 0u : ((uint32_t)e << 10 | (u >> 13 & 0x3ff))));
}

static inline double value_at(const View *v, int64_t row, int64_t col) {
    int64_t i = row * (v->dims > 1 ? v->stride[0] : 0) + col * v->stride[v->dims - 1];
    if (v->dtype == F32)
        return ((float *)v->data)[i];
    uint16_t h = ((uint16_t *)v->data)[i];
    if (v->dtype == F16) {
        double m = h & 0x3ff;
        int e = h >> 10 & 31;
        return (h & 0x8000 ? -1 : 1) * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24));
    }
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* A matrix with `extra` unused elements after each row; turned: stored by columns. Fresh memory of exactly that size. */
static inline View matrix(Dtype dtype, int64_t rows, int64_t cols, int64_t extra, int turned) {
    int64_t lines = turned ? cols : rows, step = (turned ? rows : cols) + extra;
    View v = {.dtype = dtype, .dims = 2, .shape = {rows, cols}, .stride = {turned ? 1 : step, turned ? step : 1}};
    size_t bytes = (size_t)(lines * step) * dtype_size(dtype), huge = 2 << 20;
    v.data = bytes < huge ? calloc(bytes + 1, 1) : aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
    if (!v.data)
        exit(1);
    if (bytes >= huge) { /* as weights lie in the product */
        madvise(v.data, bytes, MADV_HUGEPAGE);
        memset(v.data, 0, bytes);
    }
    return v;
}

static inline void fill(View *v, double size) {
    for (int64_t r = 0; r < v->shape[0]; r++)
        for (int64_t c = 0; c < v->shape[1]; c++) {
            int64_t i = r * v->stride[0] + c * v->stride[1];
            float f = (float)(uniform() * size);
            if (v->dtype == F32)
                ((float *)v->data)[i] = f;
            else
                ((uint16_t *)v->data)[i] = half_of(f, v->dtype);
        }
}

static inline View random_matrix(Dtype dtype, int64_t rows, int64_t cols, int64_t extra, int turned) {
    View v = matrix(dtype, rows, cols, extra, turned);
    fill(&v, 1);
    return v;
}

/* Rows from..to of a view. */
static inline View part(const View *v, int64_t from, int64_t to) {
    View p = *v;
    p.data = (char *)v->data + from * v->stride[0] * (int64_t)dtype_size(v->dtype);
    p.shape[0] = to - from;
    return p;
}

static inline int same(const View *a, const View *b) {
    for (int64_t r = 0; r < a->shape[0]; r++)
        for (int64_t c = 0; c < a->shape[1]; c++)
            if (value_at(a, r, c) != value_at(b, r, c))
                return 0;
    return 1;
}

static inline void must(int good, const char *table, const char *what) {
    if (good)
        return;
    failures++;
    printf("FAILED %s: %s\n", table, what);
}

/* |got - want| within one rounding of its dtype and `size`, the sum of the terms' magnitudes, in f32 (bf16 if `coarse`). */
static inline int near(double got, double want, double size, Dtype dtype, int coarse) {
    return fabs(got - want) <= (dtype == F32 ? 1e-6 : 0.0041) * fabs(want) + size * (coarse ? 0.005 : 3e-6) + 1e-30;
}

#endif
