/* Element by element: unary functions with their slopes, binary operations with broadcast, alpha x + beta. */
#include "vecmath.h"

/* Four views walked together: neighbouring dimensions joined where all of them allow it. */
typedef struct Walk {
    int dims;
    int64_t shape[MAX_DIMS], step[4][MAX_DIMS];
    int64_t runs, length; /* runs of `length` elements along the last dimension */
} Walk;

static Walk walk(const View *a, const View *b, const View *c, const View *d) {
    const View *v[4] = {a, b, c, d};
    Walk w = {0};
    for (int i = 0; i < a->dims; i++) {
        int joins = w.dims > 0;
        if (a->shape[i] == 1)
            continue;
        for (int k = 0; k < 4; k++)
            joins = joins && w.step[k][w.dims - 1] == v[k]->stride[i] * a->shape[i];
        if (joins)
            w.shape[w.dims - 1] *= a->shape[i];
        else
            w.shape[w.dims++] = a->shape[i];
        for (int k = 0; k < 4; k++)
            w.step[k][w.dims - 1] = v[k]->stride[i];
    }
    if (!w.dims)
        w.dims = 1, w.shape[0] = 1, w.step[0][0] = w.step[1][0] = w.step[2][0] = w.step[3][0] = 1;
    w.length = w.shape[w.dims - 1];
    w.runs = 1;
    for (int i = 0; i + 1 < w.dims; i++)
        w.runs *= w.shape[i];
    return w;
}

static void *run_at(const Walk *w, int k, const View *v, int64_t run) {
    int64_t offset = 0;
    for (int i = w->dims - 2; i >= 0; i--) {
        offset += run % w->shape[i] * w->step[k][i];
        run /= w->shape[i];
    }
    return (char *)v->data + offset * (int64_t)dtype_size(v->dtype);
}

/* n <= LANES elements from i on, `step` apart. Whole neighbouring vectors are taken in place; the rest, which runs end with, is
 * one call, so that it is not repeated in each of the many loops below. */
static __attribute__((noinline)) Vec fetch_rest(const void *p, Dtype dtype, int64_t step, int64_t i, int64_t n) {
    if (step == 1)
        return vec_get_part(p, dtype, i, n);
    if (step == 0)
        return vec_set(scalar_get(p, dtype, 0));
    float part[LANES] = {0};
    for (int64_t k = 0; k < n; k++)
        part[k] = scalar_get(p, dtype, (i + k) * step);
    return vec_load(part);
}

static inline Vec fetch(const void *p, Dtype dtype, int64_t step, int64_t i, int64_t n) {
    return step == 1 && n == LANES ? vec_get(p, dtype, i) : fetch_rest(p, dtype, step, i, n);
}

static __attribute__((noinline)) void deliver_rest(void *p, Dtype dtype, int64_t step, int64_t i, int64_t n, Vec v) {
    if (step == 1) {
        vec_put_part(p, dtype, i, n, v);
    } else {
        for (int64_t k = 0; k < n; k++)
            scalar_put(p, dtype, (i + k) * step, v[k]);
    }
}

static inline void deliver(void *p, Dtype dtype, int64_t step, int64_t i, int64_t n, Vec v) {
    if (step == 1 && n == LANES)
        vec_put(p, dtype, i, v);
    else
        deliver_rest(p, dtype, step, i, n, v);
}

enum { PIECE = 1 << 14, PARALLEL = 1 << 15 };

/* Runs BODY, which makes `out` from `a`, `b` and `c`, over all elements; a run is cut in pieces so that one long run is shared too. */
#define EACH(y, x1, x2, x3, BODY) \
    do { \
        Walk w = walk(y, x1, x2, x3); \
        int64_t pieces = (w.length + PIECE - 1) / PIECE, jobs = w.runs * pieces, last = w.dims - 1; \
        _Pragma("omp parallel for if (w.runs * w.length >= PARALLEL)") for (int64_t job = 0; job < jobs; job++) { \
            int64_t run = job / pieces, i = job % pieces * PIECE, end = i + PIECE < w.length ? i + PIECE : w.length; \
            void *py = run_at(&w, 0, y, run); \
            const void *pa = run_at(&w, 1, x1, run), *pb = run_at(&w, 2, x2, run), *pc = run_at(&w, 3, x3, run); \
            for (; i < end; i += LANES) { \
                int64_t n = end - i < LANES ? end - i : LANES; \
                Vec out, a = fetch(pa, (x1)->dtype, w.step[1][last], i, n), b = fetch(pb, (x2)->dtype, w.step[2][last], i, n); \
                Vec c = fetch(pc, (x3)->dtype, w.step[3][last], i, n); \
                (void)b, (void)c; \
                BODY; \
                deliver(py, (y)->dtype, w.step[0][last], i, n, out); \
            } \
        } \
    } while (0)

/* A unary operation is a value of a, and a slope of a (the input) and b (its value). */
#define VALUE_neg(a) (-(a))
#define VALUE_exp(a) vec_exp(a)
#define VALUE_log(a) vec_log(a)
#define VALUE_sqrt(a) vec_sqrt(a)
#define VALUE_abs(a) vec_max(a, -(a))
#define VALUE_square(a) ((a) * (a))
#define VALUE_tanh(a) vec_tanh(a)
#define VALUE_sigmoid(a) vec_sigmoid(a)
#define VALUE_relu(a) vec_relu(a)
#define VALUE_silu(a) vec_silu(a)
#define VALUE_gelu(a) vec_gelu(a)
#define VALUE_gelu_tanh(a) vec_gelu_tanh(a)
#define VALUE_quick_gelu(a) vec_quick_gelu(a)
#define VALUE_relu2(a) vec_relu2(a)
#define VALUE_relu6(a) vec_relu6(a)
#define VALUE_softplus(a) vec_softplus(a)
#define VALUE_hardswish(a) vec_hardswish(a)
#define VALUE_hardsigmoid(a) vec_hardsigmoid(a)

#define SLOPE_neg(x, y) vec_set(-1)
#define SLOPE_exp(x, y) (y)
#define SLOPE_log(x, y) (1.0f / (x))
#define SLOPE_sqrt(x, y) (0.5f / (y))
#define SLOPE_abs(x, y) vec_select((x) > 0, vec_set(1), vec_select((x) < 0, vec_set(-1), vec_set(0)))
#define SLOPE_square(x, y) (2.0f * (x))
#define SLOPE_tanh(x, y) (1.0f - (y) * (y))
#define SLOPE_sigmoid(x, y) ((y) * (1.0f - (y)))
#define SLOPE_relu(x, y) vec_relu_slope(x)
#define SLOPE_silu(x, y) vec_silu_slope(x)
#define SLOPE_gelu(x, y) vec_gelu_slope(x)
#define SLOPE_gelu_tanh(x, y) vec_gelu_tanh_slope(x)
#define SLOPE_quick_gelu(x, y) vec_quick_gelu_slope(x)
#define SLOPE_relu2(x, y) vec_relu2_slope(x)
#define SLOPE_relu6(x, y) vec_relu6_slope(x)
#define SLOPE_softplus(x, y) vec_sigmoid(x)
#define SLOPE_hardswish(x, y) vec_hardswish_slope(x)
#define SLOPE_hardsigmoid(x, y) vec_hardsigmoid_slope(x)

Status KERNEL(unary)(View *y, const View *x, UnaryOp op) {
    switch (op) {
#define X(name) case UNARY_##name: EACH(y, x, x, x, out = VALUE_##name(a)); return OK;
        UNARY_OPS(X)
#undef X
    default: return fail(ERR_UNSUPPORTED, "no unary operation %d", (int)op);
    }
}

Status KERNEL(unary_backward)(View *dx, const View *dy, const View *x, const View *y, UnaryOp op) {
    switch (op) {
#define X(name) case UNARY_##name: EACH(dx, x, y, dy, (void)a; out = SLOPE_##name(a, b) * c); return OK;
        UNARY_OPS(X)
#undef X
    default: return fail(ERR_UNSUPPORTED, "no unary operation %d", (int)op);
    }
}

/* Integers go one by one: they count and index, they do not carry the load. */
static void integers(View *y, const View *a, const View *b, BinaryOp op) {
    Walk w = walk(y, a, b, b);
    int last = w.dims - 1, wide = y->dtype == I64;
    for (int64_t run = 0; run < w.runs; run++) {
        char *py = run_at(&w, 0, y, run);
        const char *pa = run_at(&w, 1, a, run), *pb = run_at(&w, 2, b, run);
        for (int64_t i = 0; i < w.length; i++) {
            int64_t ia = i * w.step[1][last], ib = i * w.step[2][last], iy = i * w.step[0][last];
            int64_t p = wide ? ((const int64_t *)pa)[ia] : ((const int32_t *)pa)[ia];
            int64_t q = wide ? ((const int64_t *)pb)[ib] : ((const int32_t *)pb)[ib], r = 0;
            switch (op) {
            case BINARY_add: r = (int64_t)((uint64_t)p + (uint64_t)q); break;
            case BINARY_sub: r = (int64_t)((uint64_t)p - (uint64_t)q); break;
            case BINARY_mul: r = (int64_t)((uint64_t)p * (uint64_t)q); break;
            case BINARY_div: r = q == 0 ? 0 : q == -1 ? (int64_t)(0 - (uint64_t)p) : p / q; break;
            case BINARY_max: r = p > q ? p : q; break;
            default: r = p < q ? p : q; break;
            }
            if (wide)
                ((int64_t *)py)[iy] = r;
            else
                ((int32_t *)py)[iy] = (int32_t)r;
        }
    }
}

Status KERNEL(binary)(View *y, const View *x1, const View *x2, BinaryOp op) {
    if (y->dtype == I32 || y->dtype == I64) {
        integers(y, x1, x2, op);
        return OK;
    }
    if (y->dtype != F32 && y->dtype != BF16)
        return fail(ERR_UNSUPPORTED, "binary operations take f32, bf16, i32 and i64, not %s", dtype_name(y->dtype));
    switch (op) {
    case BINARY_add: EACH(y, x1, x2, x2, out = a + b); break;
    case BINARY_sub: EACH(y, x1, x2, x2, out = a - b); break;
    case BINARY_mul: EACH(y, x1, x2, x2, out = a * b); break;
    case BINARY_div: EACH(y, x1, x2, x2, out = a / b); break;
    case BINARY_max: EACH(y, x1, x2, x2, out = vec_maximum(a, b)); break;
    case BINARY_min: EACH(y, x1, x2, x2, out = vec_minimum(a, b)); break;
    default: return fail(ERR_UNSUPPORTED, "no binary operation %d", (int)op);
    }
    return OK;
}

Status KERNEL(affine)(View *y, const View *x, float alpha, float beta) {
    EACH(y, x, x, x, out = a * alpha + beta);
    return OK;
}
