/* Vector types of the instruction set this file is compiled for (-DISA=...): GCC vector extensions, one width each.
 * Every kernel file but cpu.c and dnnl.c is compiled once per set; KERNEL(name) keeps the copies apart. */
#ifndef ONN_ISA_H
#define ONN_ISA_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "cpu.h"

#define PASTE_(a, b, c) a##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define KERNEL(name) PASTE(cpu_, ISA, name)

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float Vec __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t VecI __attribute__((vector_size(LANES * 4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(LANES * 4), may_alias));
typedef uint16_t VecH __attribute__((vector_size(LANES * 2), may_alias));

/* For helpers whose constant arguments must reach the innermost loop. */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16; /* the upper half of an f32 */

static inline float bf16_to_f32(bf16 h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even; a NaN stays a NaN. */
static inline bf16 f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, nan = (u >> 16) | 0x40;
    return (bf16)((u & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

static inline Vec vec_set(float x) { return x - (Vec){0}; }
static inline Vec vec_load(const float *p) { Vec v; memcpy(&v, p, sizeof v); return v; }
static inline void vec_store(float *p, Vec v) { memcpy(p, &v, sizeof v); }
static inline Vec vec_load_bf16(const bf16 *p) {
    VecH h;
    memcpy(&h, p, sizeof h);
    return (Vec)(__builtin_convertvector(h, VecU) << 16);
}
static inline VecH vec_to_bf16(Vec v) {
    VecU u = (VecU)v;
    VecU rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, nan = (u >> 16) | 0x40;
    VecU is_nan = (VecU)((u & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), VecH);
}
static inline void vec_store_bf16(bf16 *p, Vec v) {
    VecH h = vec_to_bf16(v);
    memcpy(p, &h, sizeof h);
}
/* The same for results of arithmetic, by one instruction where there is one; it makes numbers under 2^-126 zero. */
static inline void vec_round_bf16(bf16 *p, Vec v) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    vec_store_bf16(p, v);
#endif
}
static inline Vec vec_max(Vec a, Vec b) { VecI m = a > b; return (Vec)((m & (VecI)a) | (~m & (VecI)b)); }
static inline Vec vec_min(Vec a, Vec b) { VecI m = a < b; return (Vec)((m & (VecI)a) | (~m & (VecI)b)); }
/* Sum of the lanes, in one fixed order: halves onto halves. */
static inline float vec_sum(Vec v) {
#if defined(__AVX512F__)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
    __m128 four = (__m128)v;
#endif
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* x within [low, high]; a NaN stays one. */
static inline Vec vec_clamp(Vec x, float low, float high) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)vec_set(high), _mm512_max_ps((__m512)vec_set(low), (__m512)x));
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)vec_set(high), _mm256_max_ps((__m256)vec_set(low), (__m256)x));
#else
    return (Vec)_mm_min_ps((__m128)vec_set(high), _mm_max_ps((__m128)vec_set(low), (__m128)x));
#endif
}

/* e^r for |r| <= ln 2 / 2: Cephes' polynomial of degree 6. */
static inline Vec vec_exp_rest(Vec r) {
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.0f;
}

/* e^x, relative error under 2e-7 on [-87, 88]; 0 below, inf above; Cody-Waite reduction and a polynomial. */
static inline Vec vec_exp(Vec x) {
    Vec clamped = vec_min(vec_max(x, vec_set(-87.3f)), vec_set(88.7f));
    Vec n = clamped * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer in the low bits */
    VecI k = (VecI)n - 0x4b400000;
    n -= 12582912.0f;
    Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = vec_exp_rest(r);
    VecI half = k >> 1; /* two factors, so that the scale itself stays a normal number at both ends */
    p = p * (Vec)((half + 127) << 23) * (Vec)((k - half + 127) << 23);
    VecI low = x < -87.3f, high = x > 88.7f, nan = x != x;
    p = (Vec)(~low & (VecI)p);
    p = (Vec)((high & 0x7f800000) | (~high & (VecI)p));
    return (Vec)((nan & (VecI)x) | (~nan & (VecI)p));
}

/* Element access whatever the dtype (f32 or bf16), for rows handled LANES at a time with a scalar tail. */
static inline Vec vec_get(const void *row, Dtype dtype, int64_t i) {
    return dtype == F32 ? vec_load((const float *)row + i) : vec_load_bf16((const bf16 *)row + i);
}
static inline void vec_put(void *row, Dtype dtype, int64_t i, Vec v) {
    if (dtype == F32)
        vec_store((float *)row + i, v);
    else
        vec_round_bf16((bf16 *)row + i, v);
}
/* The last `n` < LANES elements; the missing lanes are 0. */
static inline Vec vec_get_part(const void *row, Dtype dtype, int64_t i, int64_t n) {
    if (dtype == F32) {
        float part[LANES] = {0};
        memcpy(part, (const float *)row + i, (size_t)n * 4);
        return vec_load(part);
    }
    bf16 part[LANES] = {0};
    memcpy(part, (const bf16 *)row + i, (size_t)n * 2);
    return vec_load_bf16(part);
}
static inline void vec_put_part(void *row, Dtype dtype, int64_t i, int64_t n, Vec v) {
    if (dtype == F32) {
        float part[LANES];
        vec_store(part, v);
        memcpy((float *)row + i, part, (size_t)n * 4);
    } else {
        bf16 part[LANES];
        vec_round_bf16(part, v);
        memcpy((bf16 *)row + i, part, (size_t)n * 2);
    }
}
/* Up to LANES elements from i on, of which `n` are left in the row. */
INLINE Vec vec_take(const void *row, Dtype dtype, int64_t i, int64_t n) {
    return n >= LANES ? vec_get(row, dtype, i) : vec_get_part(row, dtype, i, n);
}
INLINE void vec_give(void *row, Dtype dtype, int64_t i, int64_t n, Vec v) {
    if (n >= LANES)
        vec_put(row, dtype, i, v);
    else
        vec_put_part(row, dtype, i, n, v);
}
static inline float scalar_get(const void *row, Dtype dtype, int64_t i) {
    return dtype == F32 ? ((const float *)row)[i] : bf16_to_f32(((const bf16 *)row)[i]);
}
static inline void scalar_put(void *row, Dtype dtype, int64_t i, float x) {
    if (dtype == F32)
        ((float *)row)[i] = x;
    else
        ((bf16 *)row)[i] = f32_to_bf16(x);
}

/* Start of row r of a view read as a matrix. */
static inline void *row_at(const View *v, int64_t r) {
    return (char *)v->data + r * view_step(v) * (int64_t)dtype_size(v->dtype);
}

#define OP(name, args) Status KERNEL(name) args;
#include "ops.def"
#undef OP

#endif
