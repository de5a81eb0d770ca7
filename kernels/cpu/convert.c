/* Conversion between dtypes and between layouts: the strided copy of the library. */
#include <math.h>

#include "half.h"
#include "isa.h"


#define SATURATE(v, low, high) ((v) != (v) ? 0 : (v) <= (double)(low) ? (low) : (v) >= (double)(high) ? (high) : (v))

static inline double read_one(const char *p, Dtype dtype) {
    switch (dtype) {
    case F32: return (double)*(const float *)p;
    case BF16: return (double)bf16_to_f32(*(const bf16 *)p);
    case F16: return (double)f16_to_f32(*(const uint16_t *)p);
    case I8: return *(const int8_t *)p;
    case U8: case BOOL: return *(const uint8_t *)p;
    case I32: return *(const int32_t *)p;
    default: return (double)*(const int64_t *)p;
    }
}

static inline void write_one(char *p, Dtype dtype, double v) {
    switch (dtype) {
    case F32: *(float *)p = (float)v; break;
    case BF16: *(bf16 *)p = f32_to_bf16((float)v); break;
    case F16: *(uint16_t *)p = f32_to_f16((float)v); break;
    case I8: *(int8_t *)p = (int8_t)SATURATE(v, INT8_MIN, INT8_MAX); break;
    case U8: *(uint8_t *)p = (uint8_t)SATURATE(v, 0, UINT8_MAX); break;
    case BOOL: *(uint8_t *)p = v != 0; break;
    case I32: *(int32_t *)p = (int32_t)SATURATE(v, INT32_MIN, INT32_MAX); break;
    default: *(int64_t *)p = v != v ? 0 : v >= 0x1p63 ? INT64_MAX : v <= -0x1p63 ? INT64_MIN : (int64_t)v; break;
    }
}

/* Floats of one dtype to those of another, side by side. */
INLINE void run_floats(char *y, const Dtype to, const char *x, const Dtype from, int64_t n) {
    int64_t i = 0, ys = (int64_t)dtype_size(to), xs = (int64_t)dtype_size(from);
    for (; i + LANES <= n; i += LANES) {
        const void *p = x + i * xs;
        Vec v = from == F32 ? vec_load(p) : from == BF16 ? vec_load_bf16(p) : vec_load_f16(p);
        if (to == F32)
            vec_store((float *)(void *)(y + i * ys), v);
        else if (to == BF16)
            vec_store_bf16((bf16 *)(void *)(y + i * ys), v);
        else
            vec_store_f16((uint16_t *)(void *)(y + i * ys), v);
    }
    for (; i < n; i++)
        write_one(y + i * ys, to, read_one(x + i * xs, from));
}

static void convert_run(char *y, Dtype to, int64_t y_step, const char *x, Dtype from, int64_t x_step, int64_t n) {
    int64_t ys = (int64_t)dtype_size(to), xs = (int64_t)dtype_size(from);
    int flat = y_step == 1 && x_step == 1;
    if (flat && to == from) {
        memcpy(y, x, (size_t)(n * xs));
    } else if (flat && to == F32 && from == BF16) {
        run_floats(y, F32, x, BF16, n);
    } else if (flat && to == BF16 && from == F32) {
        run_floats(y, BF16, x, F32, n);
    } else if (flat && to == F32 && from == F16) {
        run_floats(y, F32, x, F16, n);
    } else if (flat && to == BF16 && from == F16) {
        run_floats(y, BF16, x, F16, n);
    } else if (flat && to == F16 && from == F32) {
        run_floats(y, F16, x, F32, n);
    } else if (flat && to == F16 && from == BF16) {
        run_floats(y, F16, x, BF16, n);
    } else if (to == from) {
        for (int64_t i = 0; i < n; i++)
            memcpy(y + i * y_step * ys, x + i * x_step * xs, (size_t)xs);
    } else if (to == I32 && from == I64) {
        for (int64_t i = 0; i < n; i++) {
            int64_t v = *(const int64_t *)(x + i * x_step * xs);
            *(int32_t *)(y + i * y_step * ys) = v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : (int32_t)v;
        }
    } else {
        for (int64_t i = 0; i < n; i++)
            write_one(y + i * y_step * ys, to, read_one(x + i * x_step * xs, from));
    }
}

/* Joins neighbouring dimensions that lie one after another on both sides; returns how many remain, at least 1. */
static int collapse(const View *y, const View *x, int64_t *shape, int64_t *ys, int64_t *xs) {
    int dims = 0;
    for (int i = 0; i < y->dims; i++) {
        if (y->shape[i] == 1)
            continue;
        if (dims && ys[dims - 1] == y->stride[i] * y->shape[i] && xs[dims - 1] == x->stride[i] * y->shape[i]) {
            shape[dims - 1] *= y->shape[i];
            ys[dims - 1] = y->stride[i], xs[dims - 1] = x->stride[i];
        } else {
            shape[dims] = y->shape[i], ys[dims] = y->stride[i], xs[dims] = x->stride[i];
            dims++;
        }
    }
    if (!dims)
        shape[dims] = 1, ys[dims] = xs[dims] = 1, dims++;
    return dims;
}

Status KERNEL(convert)(View *y, const View *x) {
    int64_t shape[MAX_DIMS], ys[MAX_DIMS], xs[MAX_DIMS], runs = 1;
    if (!view_count(y))
        return OK;
    int dims = collapse(y, x, shape, ys, xs), last = dims - 1;
    for (int i = 0; i < last; i++)
        runs *= shape[i];
    int64_t piece = 1 << 15, pieces = runs == 1 ? (shape[last] + piece - 1) / piece : 1;
    int64_t y_size = (int64_t)dtype_size(y->dtype), x_size = (int64_t)dtype_size(x->dtype), jobs = runs * pieces;
#pragma omp parallel for if (runs * shape[last] >= 1 << 16)
    for (int64_t job = 0; job < jobs; job++) {
        int64_t at = pieces > 1 ? 0 : job, begin = pieces > 1 ? job * piece : 0, yo = 0, xo = 0;
        int64_t n = pieces > 1 && shape[last] - begin > piece ? piece : shape[last] - begin;
        for (int i = last - 1; i >= 0; i--) {
            yo += at % shape[i] * ys[i];
            xo += at % shape[i] * xs[i];
            at /= shape[i];
        }
        convert_run((char *)y->data + (yo + begin * ys[last]) * y_size, y->dtype, ys[last],
                    (const char *)x->data + (xo + begin * xs[last]) * x_size, x->dtype, xs[last], n);
    }
    return OK;
}

Status KERNEL(fill)(View *y, double value) {
    char one[8];
    View x = *y;
    if (!view_count(y))
        return OK;
    write_one(one, y->dtype, value);
    x.data = one;
    for (int i = 0; i < x.dims; i++)
        x.stride[i] = 0;
    return KERNEL(convert)(y, &x);
}
