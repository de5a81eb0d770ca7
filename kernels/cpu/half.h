/* f16 <-> f32 for the instruction set that includes this: one number or LANES at a time. */
#ifndef ONN_HALF_H
#define ONN_HALF_H

#include "isa.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

/* f16_to_f32() : exact; subnormals, infinities and NaN included. */
static inline float f16_to_f32(uint16_t h) {
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, u = rest << 13;
    float f;
    memcpy(&f, &u, 4);
    f *= 0x1p112f; /* moves the exponent's bias, subnormals included */
    memcpy(&u, &f, 4);
    if (rest >= 0x7c00)
        u = 0x7f800000 | rest << 13 | (rest > 0x7c00 ? 0x400000 : 0);
    u |= sign;
    memcpy(&f, &u, 4);
    return f;
#endif
}

/* f32_to_f16() : round to nearest even; infinity from 65520 on, a NaN stays a NaN. */
static inline uint16_t f32_to_f16(float f) {
#ifdef __F16C__
    return (uint16_t)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x1ff));
    if (u >= 0x477ff000) /* 65520, halfway from the largest f16 to the next power of two */
        return sign | 0x7c00;
    if (u < 0x38800000) { /* under 2^-14: adding 1/2 leaves the result, rounded to 2^-24, in the low bits */
        memcpy(&f, &u, 4);
        f += 0.5f;
        memcpy(&u, &f, 4);
        return (uint16_t)(sign | (u - 0x3f000000));
    }
    return (uint16_t)(sign | ((u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13));
#endif
}

static inline Vec vec_load_f16(const uint16_t *p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
#else
    float v[LANES];
    for (int i = 0; i < LANES; i++)
        v[i] = f16_to_f32(p[i]);
    Vec all;
    memcpy(&all, v, sizeof all);
    return all;
#endif
}

static inline void vec_store_f16(uint16_t *p, Vec v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES; i++)
        p[i] = f32_to_f16(v[i]);
#endif
}

#endif
