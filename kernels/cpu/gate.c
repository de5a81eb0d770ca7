/* Gated activation: y = gate(g) * u. */
#include "vecmath.h"

INLINE Vec gate_sigmoid_slope(Vec x) {
    Vec s = vec_sigmoid(x);
    return s * (1.0f - s);
}

typedef struct Rows {
    View *y, *dg, *du;
    const View *dy, *g, *u;
} Rows;

/* Loops for each gate and dtype: its value and its slope are inlined. */
#define GATE(name, value, slope) \
    INLINE void name##_loop(const Rows *a, int64_t r, const Dtype dtype) { \
        const void *g = row_at(a->g, r), *u = row_at(a->u, r); \
        void *y = row_at(a->y, r); \
        int64_t width = view_width(a->g); \
        for (int64_t i = 0; i < width; i += LANES) { \
            Vec x = vec_take(g, dtype, i, width - i); \
            vec_give(y, dtype, i, width - i, value(x) * vec_take(u, dtype, i, width - i)); \
        } \
    } \
    INLINE void name##_loop_backward(const Rows *a, int64_t r, const Dtype dtype) { \
        const void *dy = row_at(a->dy, r), *g = row_at(a->g, r), *u = row_at(a->u, r); \
        void *dg = row_at(a->dg, r), *du = row_at(a->du, r); \
        int64_t width = view_width(a->g); \
        for (int64_t i = 0; i < width; i += LANES) { \
            int64_t n = width - i; \
            Vec x = vec_take(g, dtype, i, n), d = vec_take(dy, dtype, i, n), up = vec_take(u, dtype, i, n); \
            vec_give(dg, dtype, i, n, d * up * slope(x)); \
            vec_give(du, dtype, i, n, d * value(x)); \
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
