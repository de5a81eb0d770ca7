/* Gated activation: y = gate(g) * u. */
#include "vecmath.h"

INLINE Vec gate_sigmoid_slope(Vec x) {
    Vec s = vec_sigmoid(x);
    return s * (1.0f - s);
}

INLINE Vec gate_tanh_slope(Vec x) {
    Vec t = vec_tanh(x);
    return 1.0f - t * t;
}

/* gpt-oss: both sides are clamped, the gate only from above; a clamped one has no gradient. */
static const float GATE_LIMIT = 7;
INLINE Vec gate_clamped(Vec g) { return vec_minimum(g, vec_set(GATE_LIMIT)); }
INLINE Vec gate_open(Vec x, float low) { return vec_select((x >= low) & (x <= GATE_LIMIT), vec_set(1), vec_set(0)); }
INLINE Vec gate_swiglu_oai(Vec g) { return vec_quick_gelu(gate_clamped(g)); }
INLINE Vec gate_swiglu_oai_slope(Vec g) { return vec_quick_gelu_slope(gate_clamped(g)) * gate_open(g, -3.402823466e38f); }
INLINE Vec gate_up(Vec u) { return vec_clamp(u, -GATE_LIMIT, GATE_LIMIT) + 1.0f; }
INLINE Vec gate_up_slope(Vec u) { return gate_open(u, -GATE_LIMIT); }
INLINE Vec gate_same(Vec u) { return u; }
INLINE Vec gate_one(Vec u) { return (void)u, vec_set(1); }

typedef struct Rows {
    View *y, *dg, *du;
    const View *dy, *g, *u;
} Rows;

/* Loops for each gate and dtype: value and slope, and those of the other side, are inlined. */
#define GATE(name, value, slope) GATE_AND(name, value, slope, gate_same, gate_one)
#define GATE_AND(name, value, slope, other, other_slope) \
    INLINE void name##_loop(const Rows *a, int64_t r, const Dtype dtype) { \
        const void *g = row_at(a->g, r), *u = row_at(a->u, r); \
        void *y = row_at(a->y, r); \
        int64_t width = view_width(a->g); \
        for (int64_t i = 0; i < width; i += LANES) { \
            Vec x = vec_take(g, dtype, i, width - i); \
            vec_give(y, dtype, i, width - i, value(x) * other(vec_take(u, dtype, i, width - i))); \
        } \
    } \
    INLINE void name##_loop_backward(const Rows *a, int64_t r, const Dtype dtype) { \
        const void *dy = row_at(a->dy, r), *g = row_at(a->g, r), *u = row_at(a->u, r); \
        void *dg = row_at(a->dg, r), *du = row_at(a->du, r); \
        int64_t width = view_width(a->g); \
        for (int64_t i = 0; i < width; i += LANES) { \
            int64_t n = width - i; \
            Vec x = vec_take(g, dtype, i, n), d = vec_take(dy, dtype, i, n), up = vec_take(u, dtype, i, n); \
            vec_give(dg, dtype, i, n, d * other(up) * slope(x)); \
            vec_give(du, dtype, i, n, d * value(x) * other_slope(up)); \
        } \
    } \
    static void name##_row(const Rows *a, int64_t r, Dtype dtype) { \
        dtype == F32 ? name##_loop(a, r, F32) : name##_loop(a, r, BF16); \
    } \
    static void name##_row_backward(const Rows *a, int64_t r, Dtype dtype) { \
        dtype == F32 ? name##_loop_backward(a, r, F32) : name##_loop_backward(a, r, BF16); \
    }
GATE(silu, vec_silu, vec_silu_slope)
GATE(gelu, vec_gelu, vec_gelu_slope)
GATE(gelu_tanh, vec_gelu_tanh, vec_gelu_tanh_slope)
GATE(sigmoid, vec_sigmoid, gate_sigmoid_slope)
GATE(relu, vec_relu, vec_relu_slope)
GATE(quick_gelu, vec_quick_gelu, vec_quick_gelu_slope)
GATE(relu2, vec_relu2, vec_relu2_slope)
GATE(tanh, vec_tanh, gate_tanh_slope)
GATE_AND(swiglu_oai, gate_swiglu_oai, gate_swiglu_oai_slope, gate_up, gate_up_slope)

typedef void RowFunction(const Rows *a, int64_t row, Dtype dtype);
static RowFunction *const forward[] = {
#define X(name) name##_row,
    GATES(X)
#undef X
};
static RowFunction *const backward[] = {
#define X(name) name##_row_backward,
    GATES(X)
#undef X
};

Status KERNEL(gate)(View *y, const View *g, const View *u, Gate gate) {
    Rows a = {.y = y, .g = g, .u = u};
    int64_t rows = view_rows(g);
#pragma omp parallel for schedule(static) if (rows * view_width(g) >= 32768)
    for (int64_t r = 0; r < rows; r++)
        forward[gate](&a, r, g->dtype);
    return OK;
}

Status KERNEL(gate_backward)(View *dg, View *du, const View *dy, const View *g, const View *u, Gate gate) {
    Rows a = {.dg = dg, .du = du, .dy = dy, .g = g, .u = u};
    int64_t rows = view_rows(g);
#pragma omp parallel for schedule(static) if (rows * view_width(g) >= 32768)
    for (int64_t r = 0; r < rows; r++)
        backward[gate](&a, r, g->dtype);
    return OK;
}
