/* onn.core.ops: element-wise operations, reductions, random numbers, norms. Shapes are checked here, once, before dispatch. */
#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "bind_shapes.h"
#include "random.h"

#define X(name) #name,
static const char *const unary_names[] = {UNARY_OPS(X) NULL};
static const char *const binary_names[] = {BINARY_OPS(X) NULL};
static const char *const reduce_names[] = {REDUCE_OPS(X) NULL};
#undef X

Tensor *float_tensor(lua_State *L, int arg) {
    Tensor *t = check_tensor(L, arg);
    if (t->view.dtype != F32 && t->view.dtype != BF16)
        luaL_argerror(L, arg, lua_pushfstring(L, "expected f32 or bf16, got %s", dtype_name(t->view.dtype)));
    return t;
}

Tensor *float_rows(lua_State *L, int arg) {
    float_tensor(L, arg);
    return rows_tensor(L, arg);
}

Dtype check_float_dtype(lua_State *L, int arg, Dtype missing) {
    Dtype dtype = lua_isnoneornil(L, arg) ? missing : check_dtype(L, arg);
    if (dtype != F32 && dtype != BF16)
        luaL_argerror(L, arg, lua_pushfstring(L, "expected f32 or bf16, got %s", dtype_name(dtype)));
    return dtype;
}

void same_shape(lua_State *L, int arg, const Tensor *t, const Tensor *like) {
    char got[200], wanted[200];
    int same = t->view.dims == like->view.dims && t->view.dtype == like->view.dtype;
    for (int i = 0; same && i < t->view.dims; i++)
        same = t->view.shape[i] == like->view.shape[i];
    if (!same)
        luaL_argerror(L, arg, lua_pushfstring(L, "expected %s, got %s", tensor_shape_text(like, wanted, sizeof wanted),
                                              tensor_shape_text(t, got, sizeof got)));
}

Tensor *check_vector(lua_State *L, int arg, Dtype dtype, int64_t size) {
    Tensor *t = check_tensor(L, arg);
    if (t->view.dtype != dtype || view_count(&t->view) != size || !tensor_contiguous(t)) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "expected %s of %f elements, got %s", dtype_name(dtype), (double)size,
                                              tensor_shape_text(t, got, sizeof got)));
    }
    return t;
}

Tensor *optional_vector(lua_State *L, int arg, Dtype dtype, int64_t size) {
    return lua_isnoneornil(L, arg) ? NULL : check_vector(L, arg, dtype, size);
}

const View *view_of(const Tensor *t) { return t ? &t->view : NULL; }

Tensor *check_starts(lua_State *L, int arg, int64_t tokens) {
    Tensor *t = check_tensor(L, arg);
    int64_t n = view_count(&t->view);
    if (t->view.dtype != I32 || n < 2 || !tensor_contiguous(t))
        luaL_argerror(L, arg, "starts are i32, one per sequence and the end");
    const int32_t *at = t->view.data;
    if (tensor_phantom(t))
        return t;
    for (int64_t i = 0; i + 1 < n; i++)
        if (at[i] < 0 || at[i + 1] < at[i])
            luaL_argerror(L, arg, "starts must not decrease");
    if (at[0] != 0 || at[n - 1] != tokens)
        luaL_argerror(L, arg, lua_pushfstring(L, "starts end at %d, but there are %f tokens", at[n - 1], (double)tokens));
    return t;
}

Tensor *optional_starts(lua_State *L, int arg, int64_t tokens) {
    return lua_isnoneornil(L, arg) ? NULL : check_starts(L, arg, tokens);
}

Tensor *check_index(lua_State *L, int arg, int64_t count, int64_t limit, int64_t except) {
    Tensor *t = check_vector(L, arg, I32, count);
    const int32_t *at = t->view.data;
    for (int64_t i = 0; i < count && !tensor_phantom(t); i++)
        if ((at[i] < 0 || at[i] >= limit) && at[i] != except)
            luaL_argerror(L, arg, lua_pushfstring(L, "element %f is %d, outside 0..%f", (double)i, at[i], (double)(limit - 1)));
    return t;
}

static int l_unary(lua_State *L) {
    Tensor *x = float_tensor(L, 1);
    int op = luaL_checkoption(L, 2, NULL, unary_names);
    Tensor *y = new_like(L, x, x->view.dtype);
    RUN(L, backend()->unary(&y->view, &x->view, (UnaryOp)op));
    return 1;
}

static int l_unary_backward(lua_State *L) {
    Tensor *dy = float_tensor(L, 1), *x = check_tensor(L, 2), *y = check_tensor(L, 3);
    int op = luaL_checkoption(L, 4, NULL, unary_names);
    same_shape(L, 2, x, dy);
    same_shape(L, 3, y, dy);
    Tensor *dx = new_like(L, x, x->view.dtype);
    RUN(L, backend()->unary_backward(&dx->view, &dy->view, &x->view, &y->view, (UnaryOp)op));
    return 1;
}

/* binary(a, b, op [, out]) : broadcasts both. */
static int l_binary(lua_State *L) {
    Tensor *a = check_tensor(L, 1), *b = check_tensor(L, 2), *y = NULL;
    int op = luaL_checkoption(L, 3, NULL, binary_names);
    const View *va = &a->view, *vb = &b->view;
    if (va->dtype != vb->dtype)
        return luaL_error(L, "%s and %s do not mix; convert one with :to()", dtype_name(va->dtype), dtype_name(vb->dtype));
    int dims = va->dims > vb->dims ? va->dims : vb->dims;
    int64_t shape[MAX_DIMS];
    for (int i = 1; i <= dims; i++) {
        int64_t sa = i <= va->dims ? va->shape[va->dims - i] : 1, sb = i <= vb->dims ? vb->shape[vb->dims - i] : 1;
        if (sa != sb && sa != 1 && sb != 1) {
            char ta[200], tb[200];
            return luaL_error(L, "%s: %s and %s do not broadcast", binary_names[op], tensor_shape_text(a, ta, sizeof ta),
                              tensor_shape_text(b, tb, sizeof tb));
        }
        shape[dims - i] = sa == 1 ? sb : sa;
    }
    Tensor ea = *a, eb = *b; /* views for this call only: they hold no reference */
    tensor_expand(&ea, dims, shape);
    tensor_expand(&eb, dims, shape);
    if (lua_isnoneornil(L, 4)) {
        y = new_tensor(L, va->dtype, dims, shape);
    } else {
        y = check_tensor(L, 4);
        lua_settop(L, 4);
        int same = y->view.dims == dims && y->view.dtype == va->dtype;
        for (int i = 0; same && i < dims; i++)
            same = y->view.shape[i] == shape[i];
        if (!same)
            return luaL_argerror(L, 4, "the output's shape or dtype differs");
    }
    RUN(L, backend()->binary(&y->view, &ea.view, &eb.view, (BinaryOp)op));
    return 1;
}

static int l_affine(lua_State *L) {
    Tensor *x = float_tensor(L, 1);
    float alpha = (float)luaL_checknumber(L, 2), beta = (float)luaL_checknumber(L, 3);
    Tensor *y = new_like(L, x, x->view.dtype);
    RUN(L, backend()->affine(&y->view, &x->view, alpha, beta));
    return 1;
}

static int l_reduce(lua_State *L) {
    Tensor *x = float_rows(L, 1);
    int op = luaL_checkoption(L, 2, NULL, reduce_names);
    if (!x->view.dims || !view_width(&x->view))
        return luaL_argerror(L, 1, "nothing to reduce in the last dimension");
    Tensor *y = new_tensor(L, op == REDUCE_argmax ? I32 : x->view.dtype, x->view.dims - 1, x->view.shape);
    RUN(L, backend()->reduce(&y->view, &x->view, (ReduceOp)op));
    return 1;
}

static int l_sum_rows(lua_State *L) {
    Tensor *x = float_rows(L, 2), *y = check_vector(L, 1, F32, view_width(&x->view));
    Tensor *starts = optional_starts(L, 3, view_rows(&x->view));
    RUN(L, backend()->sum_rows(&y->view, &x->view, view_of(starts)));
    return 0;
}

/* total(x, square) -> sum, count of non-finite elements */
static int l_total(lua_State *L) {
    check_values(L, 1);
    if (tensors_pool() == memory_dry())
        return luaL_error(L, "total: a dry run has no values");
    Tensor *x = float_rows(L, 1);
    double sum = 0;
    int64_t bad = 0;
    int square = lua_toboolean(L, 2);
    RUN(L, backend()->total(&sum, &bad, &x->view, square));
    lua_pushnumber(L, sum);
    lua_pushnumber(L, (double)bad);
    return 2;
}

/* running_sum(x, start) -> start + x[0] + x[1] + ..., in double and in this order: it may be cut between calls anywhere. */
static int l_running_sum(lua_State *L) {
    Tensor *x = check_values(L, 1);
    double sum = luaL_optnumber(L, 2, 0);
    if (x->view.dtype != F32 || !tensor_contiguous(x))
        return luaL_argerror(L, 1, "expected contiguous f32");
    const float *p = x->view.data;
    for (int64_t i = 0, n = view_count(&x->view); i < n; i++)
        sum += (double)p[i];
    lua_pushnumber(L, sum);
    return 1;
}

/* seed, site [, counter] at `arg`: the stream's key is a hash of both, so sites never share numbers. */
static Random check_random(lua_State *L, int arg) {
    size_t length;
    uint64_t seed = (uint64_t)check_integer(L, arg, 0, INT64_C(1) << 53);
    const char *site = luaL_checklstring(L, arg + 1, &length);
    uint64_t counter = lua_isnoneornil(L, arg + 2) ? 0 : (uint64_t)check_integer(L, arg + 2, 0, INT64_C(1) << 53);
    return (Random){XXH3_64bits_withSeed(site, length, seed), counter};
}

static Tensor *check_filled(lua_State *L, int arg) {
    Tensor *t = float_tensor(L, arg);
    if (!tensor_contiguous(t))
        luaL_argerror(L, arg, "random numbers want a contiguous tensor");
    return t;
}

/* uniform(t, seed, site, counter, low, high), in place */
static int l_uniform(lua_State *L) {
    Tensor *t = check_filled(L, 1);
    Random random = check_random(L, 2);
    float low = (float)luaL_optnumber(L, 5, 0), high = (float)luaL_optnumber(L, 6, 1);
    RUN(L, backend()->random_uniform(&t->view, random, low, high));
    lua_settop(L, 1);
    return 1;
}

/* normal(t, seed, site, counter, deviation), in place */
static int l_normal(lua_State *L) {
    Tensor *t = check_filled(L, 1);
    Random random = check_random(L, 2);
    RUN(L, backend()->random_normal(&t->view, random, (float)luaL_optnumber(L, 5, 1)));
    lua_settop(L, 1);
    return 1;
}

/* random(seed, site, counter) -> a number in [0, 1) with 53 random bits */
static int l_random(lua_State *L) {
    Random random = check_random(L, 1);
    uint32_t word[4];
    philox(word, random.key, 0, random.counter);
    lua_pushnumber(L, (double)((((uint64_t)word[0] << 32) | word[1]) >> 11) * 0x1p-53);
    return 1;
}

/* dropout(x, p, seed, site, counter, rows) */
static int l_dropout(lua_State *L) {
    Tensor *x = float_rows(L, 1);
    double p = luaL_checknumber(L, 2);
    Random random = check_random(L, 3);
    Tensor *rows = check_vector(L, 6, I64, view_rows(&x->view));
    if (!(p >= 0 && p < 1))
        return luaL_argerror(L, 2, "a dropout rate lies in [0, 1)");
    Tensor *y = new_like(L, x, x->view.dtype);
    RUN(L, backend()->dropout(&y->view, &x->view, random, (float)p, &rows->view));
    return 1;
}

/* embedding(table, ids, dtype) -> (rows, width) */
static int l_embedding(lua_State *L) {
    Tensor *t = rows_tensor(L, 1), *raw = check_tensor(L, 2);
    Dtype dtype = check_float_dtype(L, 3, F32);
    if (t->view.dtype != F32 && t->view.dtype != BF16 && t->view.dtype != F16)
        return luaL_argerror(L, 1, lua_pushfstring(L, "expected f32, bf16 or f16, got %s", dtype_name(t->view.dtype)));
    Tensor *ids = check_index(L, 2, view_count(&raw->view), view_rows(&t->view), NO_INDEX);
    int64_t shape[2] = {view_count(&ids->view), view_width(&t->view)};
    Tensor *y = new_tensor(L, dtype, 2, shape);
    RUN(L, backend()->embedding(&y->view, &t->view, &ids->view));
    return 1;
}

static int l_embedding_backward(lua_State *L) {
    Tensor *dt = check_tensor(L, 1), *dy = float_rows(L, 2);
    Tensor *ids = check_index(L, 3, view_rows(&dy->view), view_rows(&dt->view), NO_INDEX);
    if (dt->view.dtype != F32 || view_width(&dt->view) != view_width(&dy->view) || !tensor_contiguous(dt))
        return luaL_argerror(L, 1, "the gradient's table is contiguous f32, as wide as dy");
    RUN(L, backend()->embedding_backward(&dt->view, &dy->view, &ids->view));
    return 0;
}

/* A norm's parameter for x, f32: as many elements as x's last dimension has, or its last two, one row for each head; NULL for nil. */
static Tensor *optional_norm(lua_State *L, int arg, const Tensor *x) {
    Tensor *w = optional_tensor(L, arg);
    const View *v = &x->view;
    int64_t width = view_width(v);
    if (w && v->dims > 2 && view_count(&w->view) != width)
        return check_vector(L, arg, F32, v->shape[v->dims - 2] * width);
    return w ? check_vector(L, arg, F32, width) : NULL;
}

/* The gradient of that parameter, as large. */
static Tensor *optional_norm_gradient(lua_State *L, int arg, const Tensor *w, int64_t width) {
    return optional_vector(L, arg, F32, w ? view_count(&w->view) : width);
}

/* rms_norm(x, w, eps, keep, dtype) -> y [, rstd]; y has x's dtype unless another is named; w (width), (heads, width) or nil */
static int l_rms_norm(lua_State *L) {
    Tensor *x = float_rows(L, 1), *w = optional_norm(L, 2, x), *rstd = NULL;
    float eps = (float)luaL_checknumber(L, 3);
    int keep = lua_toboolean(L, 4);
    Tensor *y = new_like(L, x, check_float_dtype(L, 5, x->view.dtype));
    int64_t rows = view_rows(&x->view);
    if (keep)
        rstd = new_tensor(L, F32, 1, &rows);
    RUN(L, backend()->rms_norm(&y->view, rstd ? &rstd->view : NULL, &x->view, view_of(w), eps));
    return keep ? 2 : 1;
}

/* rms_norm_backward(dy, x, w, rstd, dw, starts) -> dx; dw may be nil */
static int l_rms_norm_backward(lua_State *L) {
    Tensor *dy = float_rows(L, 1), *x = float_rows(L, 2);
    int64_t width = view_width(&x->view), rows = view_rows(&x->view);
    if (view_width(&dy->view) != width || view_rows(&dy->view) != rows)
        return luaL_argerror(L, 1, "dy and x differ in shape");
    Tensor *w = optional_norm(L, 3, x), *rstd = check_vector(L, 4, F32, rows), *dw = optional_norm_gradient(L, 5, w, width);
    Tensor *starts = optional_starts(L, 6, rows), *dx = new_like(L, x, x->view.dtype);
    RUN(L, backend()->rms_norm_backward(&dx->view, dw ? &dw->view : NULL, &dy->view, &x->view, view_of(w), &rstd->view,
                                        view_of(starts)));
    return 1;
}

/* layer_norm(x, w, b, eps, dtype) -> y, stats; w, b (width), (heads, width) or nil; y has x's dtype unless another is named */
static int l_layer_norm(lua_State *L) {
    Tensor *x = float_rows(L, 1);
    int64_t shape[2] = {view_rows(&x->view), 2};
    Tensor *w = optional_norm(L, 2, x), *b = optional_norm(L, 3, x);
    float eps = (float)luaL_checknumber(L, 4);
    Tensor *y = new_like(L, x, check_float_dtype(L, 5, x->view.dtype)), *stats = new_tensor(L, F32, 2, shape);
    RUN(L, backend()->layer_norm(&y->view, &stats->view, &x->view, view_of(w), view_of(b), eps));
    return 2;
}

/* layer_norm_backward(dy, x, w, stats, dw, db, starts) -> dx */
static int l_layer_norm_backward(lua_State *L) {
    Tensor *dy = float_rows(L, 1), *x = float_rows(L, 2);
    int64_t width = view_width(&x->view), rows = view_rows(&x->view);
    if (view_width(&dy->view) != width || view_rows(&dy->view) != rows)
        return luaL_argerror(L, 1, "dy and x differ in shape");
    Tensor *w = optional_norm(L, 3, x), *stats = check_vector(L, 4, F32, rows * 2);
    Tensor *dw = optional_norm_gradient(L, 5, w, width), *db = optional_norm_gradient(L, 6, w, width);
    Tensor *starts = optional_starts(L, 7, rows), *dx = new_like(L, x, x->view.dtype);
    RUN(L, backend()->layer_norm_backward(&dx->view, dw ? &dw->view : NULL, db ? &db->view : NULL, &dy->view, &x->view,
                                          view_of(w), &stats->view, view_of(starts)));
    return 1;
}

static int l_softmax(lua_State *L) {
    Tensor *x = float_rows(L, 1), *y = new_like(L, x, x->view.dtype);
    RUN(L, backend()->softmax(&y->view, &x->view));
    return 1;
}

static int l_softmax_backward(lua_State *L) {
    Tensor *dy = float_rows(L, 1), *y = float_rows(L, 2);
    same_shape(L, 1, dy, y);
    Tensor *dx = new_like(L, y, y->view.dtype);
    RUN(L, backend()->softmax_backward(&dx->view, &dy->view, &y->view));
    return 1;
}

int bind_layers(lua_State *L); /* adds the model's layers to the table on the stack */

int bind_ops(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"unary", l_unary}, {"unary_backward", l_unary_backward}, {"binary", l_binary}, {"affine", l_affine},
        {"reduce", l_reduce}, {"sum_rows", l_sum_rows}, {"total", l_total}, {"running_sum", l_running_sum},
        {"uniform", l_uniform}, {"normal", l_normal}, {"random", l_random}, {"dropout", l_dropout},
        {"embedding", l_embedding}, {"embedding_backward", l_embedding_backward}, {"rms_norm", l_rms_norm},
        {"rms_norm_backward", l_rms_norm_backward}, {"layer_norm", l_layer_norm},
        {"layer_norm_backward", l_layer_norm_backward}, {"softmax", l_softmax}, {"softmax_backward", l_softmax_backward},
        {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return bind_layers(L);
}
