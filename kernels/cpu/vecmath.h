/* Elementary functions of LANES numbers at a time, a few ulp from the true value. */
#ifndef ONN_VECMATH_H
#define ONN_VECMATH_H

#include "isa.h"

static inline Vec vec_select(VecI mask, Vec yes, Vec no) { return (Vec)((mask & (VecI)yes) | (~mask & (VecI)no)); }

/* NaN where either is NaN, unlike vec_max and vec_min. */
static inline Vec vec_maximum(Vec a, Vec b) { return vec_select((a > b) | (a != a), a, b); }
static inline Vec vec_minimum(Vec a, Vec b) { return vec_select((a < b) | (a != a), a, b); }
static inline Vec vec_relu(Vec x) { return vec_maximum(x, vec_set(0)); }
static inline Vec vec_relu_slope(Vec x) { return vec_select(x > 0, vec_set(1), vec_set(0)); }

static inline Vec vec_sqrt(Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (Vec)_mm256_sqrt_ps((__m256)x);
#else
    return (Vec)_mm_sqrt_ps((__m128)x);
#endif
}

/* Natural logarithm: Cephes' polynomial on [sqrt(1/2), sqrt(2)) after the exponent is split off. */
static inline Vec vec_log(Vec x) {
    Vec tiny = vec_set(1.17549435e-38f);
    VecI small = x < tiny;
    Vec scaled = vec_select(small, x * 8388608.0f, x);
    VecI bits = (VecI)scaled;
    VecI e = (bits >> 23) - 126;
    Vec m = (Vec)((bits & 0x007fffff) | 0x3f000000);
    VecI below = m < 0.707106781186547524f;
    e += below;
    m = m - 1.0f + vec_select(below, m, vec_set(0));
    e -= small & 23;
    Vec z = m * m;
    Vec p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    Vec n = __builtin_convertvector(e, Vec);
    Vec y = m + (m * z * p - n * 2.12194440e-4f - z * 0.5f) + n * 0.693359375f;
    y = vec_select(x == 0, vec_set(-__builtin_inff()), y);
    y = vec_select(x == __builtin_inff(), x, y);
    return vec_select((x < 0) | (x != x), vec_set(__builtin_nanf("")), y);
}

/* 1 / x of normal x whose reciprocal is normal. */
static inline Vec vec_reciprocal(Vec x) {
#ifdef __AVX512F__
    Vec y = (Vec)_mm512_rcp14_ps((__m512)x); /* a division takes as long as all of e^x */
    return y + y * (1.0f - x * y);
#else
    return 1.0f / x;
#endif
}

/* 1 / (1 + e^-x); 0 below -87.3; a NaN stays one. */
static inline Vec vec_sigmoid(Vec x) {
    Vec r = vec_clamp(x, -87.3f, 87.3f), n;
    VecI low = x < -87.3f;
    n = r * -1.44269504088896341f + 12582912.0f;
    VecI scale = ((VecI)n << 23) + 0x3f800000;
    n -= 12582912.0f;
    r = -r - n * 0.693359375f + n * 2.12194440e-4f;
    return (Vec)(~low & (VecI)vec_reciprocal(1.0f + vec_exp_rest(r) * (Vec)scale));
}

/* tanh: Cephes' polynomial below 0.625, 1 - 2 / (e^2|x| + 1) above. */
static inline Vec vec_tanh(Vec x) {
    Vec a = vec_max(x, -x), z = x * x;
    Vec p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    Vec near = p * z * x + x;
    Vec far = 1.0f - 2.0f / (vec_exp(2.0f * a) + 1.0f);
    return vec_select(a < 0.625f, near, vec_select(x < 0, -far, far));
}

/* erf: Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7. */
static inline Vec vec_erf(Vec x) {
    Vec a = vec_max(x, -x), t = 1.0f / (1.0f + 0.3275911f * a);
    Vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Vec y = 1.0f - p * t * vec_exp(-a * a);
    return vec_select(x < 0, -y, y);
}

/* x * Phi(x), and its derivative Phi(x) + x phi(x). */
static inline Vec vec_gelu(Vec x) { return 0.5f * x * (1.0f + vec_erf(x * 0.70710678118654752f)); }
static inline Vec vec_gelu_slope(Vec x) {
    return 0.5f * (1.0f + vec_erf(x * 0.70710678118654752f)) + x * 0.39894228040143268f * vec_exp(-0.5f * x * x);
}

/* The tanh form of GELU (arXiv 1606.08415). */
static inline Vec vec_gelu_tanh(Vec x) {
    return 0.5f * x * (1.0f + vec_tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
static inline Vec vec_gelu_tanh_slope(Vec x) {
    Vec t = vec_tanh(0.79788456080286536f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 0.134145f * x * x);
}

static inline Vec vec_silu(Vec x) { return x * vec_sigmoid(x); }
static inline Vec vec_silu_slope(Vec x) {
    Vec s = vec_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

/* x sigmoid(1.702 x): the coarse form of GELU. */
static inline Vec vec_quick_gelu(Vec x) { return x * vec_sigmoid(1.702f * x); }
static inline Vec vec_quick_gelu_slope(Vec x) {
    Vec s = vec_sigmoid(1.702f * x);
    return s * (1.0f + 1.702f * x * (1.0f - s));
}

static inline Vec vec_relu2(Vec x) { return vec_relu(x) * vec_relu(x); }
static inline Vec vec_relu2_slope(Vec x) { return 2.0f * vec_relu(x); }

static inline Vec vec_relu6(Vec x) { return vec_minimum(vec_relu(x), vec_set(6)); }
static inline Vec vec_relu6_slope(Vec x) { return vec_select((x > 0) & (x < 6), vec_set(1), vec_set(0)); }

static inline Vec vec_hardsigmoid(Vec x) { return vec_relu6(x + 3.0f) * 0.16666667f; }
static inline Vec vec_hardsigmoid_slope(Vec x) { return vec_select((x > -3) & (x < 3), vec_set(0.16666667f), vec_set(0)); }
static inline Vec vec_hardswish(Vec x) { return x * vec_hardsigmoid(x); }
static inline Vec vec_hardswish_slope(Vec x) {
    return vec_select(x <= -3, vec_set(0), vec_select(x >= 3, vec_set(1), x * 0.33333333f + 0.5f));
}

/* log(1 + e^x); log(u) + (e - (u - 1)) / u keeps what u = 1 + e has rounded away. */
static inline Vec vec_softplus(Vec x) {
    Vec e = vec_exp(-vec_max(x, -x)), u = 1.0f + e;
    return vec_relu(x) + (vec_log(u) + (e - (u - 1.0f)) / u);
}

#endif
