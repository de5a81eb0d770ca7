/* onn.core.ops, third part: convolution and pooling of images (n, c, h, w) in f32. */
#include "bind_shapes.h"

static Tensor *check_image(lua_State *L, int arg) {
    Tensor *t = check_tensor(L, arg);
    if (t->view.dims != 4 || t->view.dtype != F32 || !tensor_contiguous(t))
        luaL_argerror(L, arg, "expected a contiguous f32 (n, c, h, w)");
    return t;
}

/* Numbers `key`[1..count] of the options table at `arg`, or `fallback`. */
static void read_sizes(lua_State *L, int arg, const char *key, int count, int64_t *out, int64_t fallback, int64_t low) {
    lua_getfield(L, arg, key);
    for (int i = 0; i < count; i++) {
        out[i] = fallback;
        if (lua_isnumber(L, -1)) {
            out[i] = check_integer(L, lua_gettop(L), low, 1 << 20);
        } else if (lua_istable(L, -1)) {
            lua_rawgeti(L, -1, i + 1);
            if (lua_isnil(L, -1) && count == 4) { /* (h, w) given for (top, left, bottom, right) */
                lua_pop(L, 1);
                lua_rawgeti(L, -1, i - 1);
            }
            out[i] = check_integer(L, lua_gettop(L), low, 1 << 20);
            lua_pop(L, 1);
        }
    }
    lua_pop(L, 1);
}

static Conv read_conv(lua_State *L, int arg) {
    Conv c;
    luaL_checktype(L, arg, LUA_TTABLE);
    read_sizes(L, arg, "stride", 2, c.stride, 1, 1);
    read_sizes(L, arg, "padding", 4, c.padding, 0, 0);
    read_sizes(L, arg, "dilation", 2, c.dilation, 1, 1);
    read_sizes(L, arg, "groups", 1, &c.groups, 1, 1);
    lua_getfield(L, arg, "by_image");
    c.by_image = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return c;
}

static int64_t out_size(lua_State *L, int64_t in, int64_t before, int64_t after, int64_t kernel, int64_t dilation, int64_t stride) {
    int64_t room = in + before + after - (dilation * (kernel - 1) + 1);
    if (room < 0)
        luaL_error(L, "a window of %d does not fit an image of %d with padding %d and %d", (int)kernel, (int)in, (int)before, (int)after);
    return room / stride + 1;
}

/* The output's shape; raises if x, w and the options do not go together. */
static void conv_shape(lua_State *L, const Tensor *x, const Tensor *w, const Conv *c, int64_t shape[4]) {
    const int64_t *xs = x->view.shape, *ws = w->view.shape;
    if (ws[1] * c->groups != xs[1] || ws[0] % c->groups)
        luaL_error(L, "conv: %d channels in and %d out, a weight for %d in %d groups", (int)xs[1], (int)ws[0], (int)ws[1], (int)c->groups);
    shape[0] = xs[0], shape[1] = ws[0];
    for (int i = 0; i < 2; i++)
        shape[2 + i] = out_size(L, xs[2 + i], c->padding[i], c->padding[2 + i], ws[2 + i], c->dilation[i], c->stride[i]);
}

static void pool_shape(lua_State *L, const Tensor *x, const Pool *p, int64_t shape[4]) {
    const int64_t *xs = x->view.shape;
    shape[0] = xs[0], shape[1] = xs[1];
    for (int i = 0; i < 2; i++) {
        if (p->padding[i] >= p->kernel[i] || p->padding[2 + i] >= p->kernel[i])
            luaL_error(L, "pool: padding %d and %d, but a window of %d must not lie in the padding alone", (int)p->padding[i],
                       (int)p->padding[2 + i], (int)p->kernel[i]);
        shape[2 + i] = out_size(L, xs[2 + i], p->padding[i], p->padding[2 + i], p->kernel[i], 1, p->stride[i]);
    }
}

/* dy at argument 1 has the shape of the forward's output. */
static void check_gradient(lua_State *L, const Tensor *dy, const int64_t shape[4]) {
    for (int i = 0; i < 4; i++)
        if (dy->view.shape[i] != shape[i])
            luaL_argerror(L, 1, lua_pushfstring(L, "expected (%d, %d, %d, %d)", (int)shape[0], (int)shape[1], (int)shape[2], (int)shape[3]));
}

/* conv(x, w, bias, {stride, padding, dilation, groups}) -> y */
static int l_conv(lua_State *L) {
    Tensor *x = check_image(L, 1), *w = check_image(L, 2), *bias = optional_vector(L, 3, F32, w->view.shape[0]);
    Conv c = read_conv(L, 4);
    int64_t shape[4];
    conv_shape(L, x, w, &c, shape);
    Tensor *y = new_tensor(L, F32, 4, shape);
    RUN(L, backend()->conv(&y->view, &x->view, &w->view, view_of(bias), &c));
    return 1;
}

/* conv_backward(dy, x, w, options, want_dx, dw, dbias) -> dx or nil; dw, dbias are added to, and may be nil */
static int l_conv_backward(lua_State *L) {
    Tensor *dy = check_image(L, 1), *x = check_image(L, 2), *w = check_image(L, 3);
    Conv c = read_conv(L, 4);
    int64_t shape[4];
    conv_shape(L, x, w, &c, shape);
    check_gradient(L, dy, shape);
    int want = lua_toboolean(L, 5);
    Tensor *dw = optional_vector(L, 6, F32, view_count(&w->view)), *dbias = optional_vector(L, 7, F32, w->view.shape[0]);
    Tensor *dx = want ? new_like(L, x, F32) : NULL;
    RUN(L, backend()->conv_backward(dx ? &dx->view : NULL, dw ? &dw->view : NULL, dbias ? &dbias->view : NULL, &dy->view,
                                    &x->view, &w->view, &c));
    return want ? 1 : 0;
}

static Pool read_pool(lua_State *L, int arg) {
    Pool p;
    luaL_checktype(L, arg, LUA_TTABLE);
    read_sizes(L, arg, "kernel", 2, p.kernel, 1, 1);
    read_sizes(L, arg, "stride", 2, p.stride, 1, 1);
    read_sizes(L, arg, "padding", 4, p.padding, 0, 0);
    lua_getfield(L, arg, "average");
    p.average = lua_toboolean(L, -1);
    lua_getfield(L, arg, "count_padding");
    p.count_padding = lua_toboolean(L, -1);
    lua_pop(L, 2);
    return p;
}

/* pool(x, {kernel, stride, padding, average, count_padding}, keep) -> y [, index] */
static int l_pool(lua_State *L) {
    Tensor *x = check_image(L, 1), *index = NULL;
    Pool p = read_pool(L, 2);
    int64_t shape[4];
    pool_shape(L, x, &p, shape);
    int keep = lua_toboolean(L, 3) && !p.average;
    Tensor *y = new_tensor(L, F32, 4, shape);
    if (keep)
        index = new_tensor(L, I32, 4, shape);
    RUN(L, backend()->pool(&y->view, index ? &index->view : NULL, &x->view, &p));
    return keep ? 2 : 1;
}

/* pool_backward(dy, index, x, options) -> dx; index nil for averages */
static int l_pool_backward(lua_State *L) {
    Tensor *dy = check_image(L, 1), *index = optional_vector(L, 2, I32, view_count(&dy->view)), *x = check_image(L, 3);
    Pool p = read_pool(L, 4);
    if (!index && !p.average)
        return luaL_argerror(L, 2, "max pooling wants the index of its forward");
    int64_t shape[4];
    pool_shape(L, x, &p, shape);
    check_gradient(L, dy, shape);
    Tensor *dx = new_like(L, x, F32);
    RUN(L, backend()->pool_backward(&dx->view, &dy->view, view_of(index), &p));
    return 1;
}

/* adaptive_pool(x, rows, columns) -> averages (n, c, rows, columns) */
static int l_adaptive_pool(lua_State *L) {
    Tensor *x = check_image(L, 1);
    int64_t shape[4] = {x->view.shape[0], x->view.shape[1], check_integer(L, 2, 1, 1 << 20), check_integer(L, 3, 1, 1 << 20)};
    if (!x->view.shape[2] || !x->view.shape[3])
        return luaL_argerror(L, 1, "an image without pixels has no average");
    Tensor *y = new_tensor(L, F32, 4, shape);
    RUN(L, backend()->adaptive_pool(&y->view, &x->view));
    return 1;
}

/* adaptive_pool_backward(dy, h, w) -> dx (n, c, h, w) */
static int l_adaptive_pool_backward(lua_State *L) {
    Tensor *dy = check_image(L, 1);
    int64_t shape[4] = {dy->view.shape[0], dy->view.shape[1], check_integer(L, 2, 1, 1 << 20), check_integer(L, 3, 1, 1 << 20)};
    Tensor *dx = new_tensor(L, F32, 4, shape);
    RUN(L, backend()->adaptive_pool_backward(&dx->view, &dy->view));
    return 1;
}

/* Contiguous f32 with channels in its second dimension. */
static Tensor *check_channels(lua_State *L, int arg) {
    Tensor *t = check_tensor(L, arg);
    if (t->view.dims < 2 || t->view.dtype != F32 || !tensor_contiguous(t))
        luaL_argerror(L, arg, "expected a contiguous f32 (n, c, ...)");
    return t;
}

/* batch_norm(x, w, b, mean, variance, {eps, momentum, batch, update}) -> y, stats; mean and variance change with `update` */
static int l_batch_norm(lua_State *L) {
    Tensor *x = check_channels(L, 1);
    int64_t channels = x->view.shape[1], shape[2] = {channels, 2};
    Tensor *w = check_vector(L, 2, F32, channels), *b = check_vector(L, 3, F32, channels);
    Tensor *mean = check_vector(L, 4, F32, channels), *variance = check_vector(L, 5, F32, channels);
    BatchNorm norm;
    luaL_checktype(L, 6, LUA_TTABLE);
    lua_getfield(L, 6, "eps"), lua_getfield(L, 6, "momentum"), lua_getfield(L, 6, "batch"), lua_getfield(L, 6, "update");
    norm.eps = (float)luaL_checknumber(L, -4), norm.momentum = (float)luaL_optnumber(L, -3, 0.1);
    norm.batch = lua_toboolean(L, -2), norm.update = norm.batch && lua_toboolean(L, -1);
    lua_pop(L, 4);
    if (norm.batch && !view_count(&x->view))
        return luaL_argerror(L, 1, "an empty batch has no statistics");
    Tensor *y = new_like(L, x, F32), *stats = new_tensor(L, F32, 2, shape);
    RUN(L, backend()->batch_norm(&y->view, &stats->view, &mean->view, &variance->view, &x->view, &w->view, &b->view, &norm));
    return 2;
}

/* batch_norm_backward(dy, x, w, stats, batch, want_dx, dw, db) -> dx or nil; dw, db are added to, and may be nil */
static int l_batch_norm_backward(lua_State *L) {
    Tensor *dy = check_channels(L, 1), *x = check_channels(L, 2);
    same_shape(L, 1, dy, x);
    int64_t channels = x->view.shape[1];
    Tensor *w = check_vector(L, 3, F32, channels), *stats = check_vector(L, 4, F32, channels * 2);
    int batch = lua_toboolean(L, 5), want = lua_toboolean(L, 6);
    Tensor *dw = optional_vector(L, 7, F32, channels), *db = optional_vector(L, 8, F32, channels);
    Tensor *dx = want ? new_like(L, x, F32) : NULL;
    RUN(L, backend()->batch_norm_backward(dx ? &dx->view : NULL, dw ? &dw->view : NULL, db ? &db->view : NULL, &dy->view, &x->view,
                                          &w->view, &stats->view, batch));
    return want ? 1 : 0;
}

int bind_images(lua_State *L);

int bind_images(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"conv", l_conv}, {"conv_backward", l_conv_backward}, {"pool", l_pool}, {"pool_backward", l_pool_backward},
        {"adaptive_pool", l_adaptive_pool}, {"adaptive_pool_backward", l_adaptive_pool_backward}, {"batch_norm", l_batch_norm},
        {"batch_norm_backward", l_batch_norm_backward}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
    return 1;
}
