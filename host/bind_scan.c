/* onn.core.ops, for mixers with states: the short causal convolution, the selective scan and the gated delta rule, f32, over packed
 * sequences. */
#include <math.h>
#include <string.h>

#include "bind_shapes.h"

static Tensor *f32_rows(lua_State *L, int arg, int64_t rows, int64_t width) {
    Tensor *t = float_rows(L, arg);
    if (t->view.dtype != F32 || t->view.dims != 2 || (rows >= 0 && t->view.shape[0] != rows) || (width >= 0 && t->view.shape[1] != width)) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "expected f32 (tokens, channels) that fit, got %s", tensor_shape_text(t, got, sizeof got)));
    }
    return t;
}

/* A parameter of `rows` rows as a matrix, whatever its dimensions: checkpoints store (rows), (rows, columns) and (rows, 1, columns). */
static View f32_matrix(lua_State *L, int arg, int64_t rows) {
    Tensor *t = check_tensor(L, arg);
    int64_t count = view_count(&t->view);
    if (t->view.dims < 1 || t->view.dtype != F32 || t->view.shape[0] != rows || count < 1 || !tensor_contiguous(t)) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "expected contiguous f32 with %d rows, got %s", (int)rows, tensor_shape_text(t, got, sizeof got)));
    }
    return (View){t->view.data, F32, 2, {rows, count / rows}, {count / rows, 1}};
}

static int64_t sequences_of(const Tensor *starts) { return view_count(&starts->view) - 1; }

/* causal_conv(x, w, bias, starts, state) -> y; x f32 (N, channels), w f32 (channels, size) or (channels, 1, size); bias and state (sequences, size - 1,
 * channels), which is carried on in place, may be nil */
static int l_causal_conv(lua_State *L) {
    lua_settop(L, 5);
    Tensor *x = f32_rows(L, 1, -1, -1);
    int64_t rows = x->view.shape[0], channels = x->view.shape[1];
    View w = f32_matrix(L, 2, channels);
    Tensor *bias = optional_vector(L, 3, F32, channels), *starts = check_starts(L, 4, rows);
    Tensor *state = optional_vector(L, 5, F32, sequences_of(starts) * (w.shape[1] - 1) * channels), *y = new_like(L, x, F32);
    RUN(L, backend()->causal_conv(&y->view, state ? &state->view : NULL, &x->view, &w, view_of(bias), &starts->view));
    return 1;
}

/* causal_conv_backward(dy, x, w, starts, dw, dbias) -> dx; dw, dbias are added to, and may be nil */
static int l_causal_conv_backward(lua_State *L) {
    lua_settop(L, 6);
    Tensor *x = f32_rows(L, 2, -1, -1);
    int64_t rows = x->view.shape[0], channels = x->view.shape[1];
    View w = f32_matrix(L, 3, channels);
    Tensor *dy = f32_rows(L, 1, rows, channels), *starts = check_starts(L, 4, rows);
    Tensor *dw = optional_vector(L, 5, F32, view_count(&w)), *dbias = optional_vector(L, 6, F32, channels), *dx = new_like(L, x, F32);
    RUN(L, backend()->causal_conv_backward(&dx->view, dw ? &dw->view : NULL, dbias ? &dbias->view : NULL, &dy->view, &x->view, &w,
                                           &starts->view));
    return 1;
}

/* What both directions of the scan take: x, dt, b, c, a_log, bias, d, starts, low, high from `arg` on. */
typedef struct Scanned {
    Tensor *x, *dt, *b, *c, *bias, *d, *starts;
    View a_log;
    Steps steps;
} Scanned;

static Tensor *check_groups(lua_State *L, int arg, int64_t rows) {
    Tensor *t = check_tensor(L, arg);
    const View *v = &t->view;
    if (v->dims != 3 || v->dtype != F32 || v->shape[0] != rows || v->shape[1] < 1 || v->shape[2] < 1 || (v->stride[2] != 1 && v->shape[2] != 1)) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "expected f32 (tokens, groups, states), got %s", tensor_shape_text(t, got, sizeof got)));
    }
    return t;
}

static Scanned check_scan(lua_State *L, int arg) {
    Scanned s = {.x = f32_rows(L, arg, -1, -1)};
    int64_t rows = s.x->view.shape[0], heads;
    s.dt = f32_rows(L, arg + 1, rows, -1);
    heads = s.dt->view.shape[1];
    if (!heads || s.x->view.shape[1] % heads)
        luaL_argerror(L, arg + 1, "its heads do not divide the channels");
    s.b = check_groups(L, arg + 2, rows);
    s.c = check_groups(L, arg + 3, rows);
    if (s.b->view.shape[1] != s.c->view.shape[1] || s.b->view.shape[2] != s.c->view.shape[2] || heads % s.b->view.shape[1])
        luaL_argerror(L, arg + 3, "b and c have one shape, with groups that divide the heads");
    s.a_log = f32_matrix(L, arg + 4, heads);
    if (s.a_log.shape[1] != 1 && s.a_log.shape[1] != s.b->view.shape[2])
        luaL_argerror(L, arg + 4, "expected (heads) or (heads, states)");
    s.bias = optional_vector(L, arg + 5, F32, heads);
    s.d = optional_vector(L, arg + 6, F32, heads);
    s.starts = check_starts(L, arg + 7, rows);
    s.steps = (Steps){(float)luaL_optnumber(L, arg + 8, 0), (float)luaL_optnumber(L, arg + 9, INFINITY)};
    if (!(s.steps.low >= 0 && s.steps.low <= s.steps.high))
        luaL_argerror(L, arg + 8, "steps lie between a low limit and a high one");
    return s;
}

/* scan(x, dt, b, c, a_log, bias, d, starts, low, high, state) -> y; bias, d, low, high, state (sequences, channels, states), which is
 * carried on in place, may be nil. Shapes and formula: see kernels/ops.def. */
static int l_scan(lua_State *L) {
    lua_settop(L, 11);
    Scanned s = check_scan(L, 1);
    Tensor *state = optional_vector(L, 11, F32, sequences_of(s.starts) * s.x->view.shape[1] * s.b->view.shape[2]), *y = new_like(L, s.x, F32);
    RUN(L, backend()->scan(&y->view, state ? &state->view : NULL, &s.x->view, &s.dt->view, &s.b->view, &s.c->view, &s.a_log, view_of(s.bias),
                           view_of(s.d), &s.starts->view, s.steps));
    return 1;
}

/* scan_backward(dy, x, dt, b, c, a_log, bias, d, starts, low, high, da_log, dd) -> dx, ddt, db, dc; da_log and dd are added to, and
 * may be nil; ddt is what bias's gradient is the sum of */
static int l_scan_backward(lua_State *L) {
    lua_settop(L, 13);
    Scanned s = check_scan(L, 2);
    Tensor *dy = f32_rows(L, 1, s.x->view.shape[0], s.x->view.shape[1]);
    Tensor *da_log = optional_vector(L, 12, F32, view_count(&s.a_log)), *dd = optional_vector(L, 13, F32, s.dt->view.shape[1]);
    Tensor *dx = new_like(L, s.x, F32), *ddt = new_like(L, s.dt, F32), *db = new_like(L, s.b, F32), *dc = new_like(L, s.c, F32);
    RUN(L, backend()->scan_backward(&dx->view, &ddt->view, &db->view, &dc->view, da_log ? &da_log->view : NULL, dd ? &dd->view : NULL, &dy->view,
                                    &s.x->view, &s.dt->view, &s.b->view, &s.c->view, &s.a_log, view_of(s.bias), view_of(s.d),
                                    &s.starts->view, s.steps));
    return 4;
}

/* What both directions of the delta rule take: q, k, v, decay, beta, starts from `arg` on. */
typedef struct Deltas {
    Tensor *q, *k, *v, *decay, *beta, *starts;
} Deltas;

static Deltas check_deltas(lua_State *L, int arg) {
    Deltas d = {.v = f32_rows(L, arg + 2, -1, -1)};
    int64_t rows = d.v->view.shape[0], heads;
    d.beta = f32_rows(L, arg + 4, rows, -1);
    heads = d.beta->view.shape[1];
    if (!heads || d.v->view.shape[1] % heads)
        luaL_argerror(L, arg + 4, "its heads do not divide the channels");
    d.q = check_groups(L, arg, rows);
    d.k = check_groups(L, arg + 1, rows);
    if (d.q->view.shape[1] != d.k->view.shape[1] || d.q->view.shape[2] != d.k->view.shape[2] || heads % d.q->view.shape[1])
        luaL_argerror(L, arg + 1, "q and k have one shape, with groups that divide the heads");
    d.decay = check_groups(L, arg + 3, rows);
    if (d.decay->view.shape[1] != heads || (d.decay->view.shape[2] != 1 && d.decay->view.shape[2] != d.q->view.shape[2]) ||
        !tensor_contiguous(d.decay))
        luaL_argerror(L, arg + 3, "expected contiguous (tokens, heads, 1) or (tokens, heads, states)");
    d.starts = check_starts(L, arg + 5, rows);
    return d;
}

/* delta_rule(q, k, v, decay, beta, starts, state) -> y; state (sequences, channels, states), which is carried on in place, may be nil. Shapes
 * and formula: see kernels/ops.def. */
static int l_delta_rule(lua_State *L) {
    lua_settop(L, 7);
    Deltas d = check_deltas(L, 1);
    Tensor *state = optional_vector(L, 7, F32, sequences_of(d.starts) * d.v->view.shape[1] * d.q->view.shape[2]), *y = new_like(L, d.v, F32);
    RUN(L, backend()->delta_rule(&y->view, state ? &state->view : NULL, &d.q->view, &d.k->view, &d.v->view, &d.decay->view, &d.beta->view,
                                 &d.starts->view));
    return 1;
}

/* delta_rule_backward(dy, q, k, v, decay, beta, starts) -> dq, dk, dv, ddecay, dbeta */
static int l_delta_rule_backward(lua_State *L) {
    lua_settop(L, 7);
    Deltas d = check_deltas(L, 2);
    Tensor *dy = f32_rows(L, 1, d.v->view.shape[0], d.v->view.shape[1]);
    Tensor *dq = new_like(L, d.q, F32), *dk = new_like(L, d.k, F32), *dv = new_like(L, d.v, F32), *ddecay = new_like(L, d.decay, F32);
    Tensor *dbeta = new_like(L, d.beta, F32);
    RUN(L, backend()->delta_rule_backward(&dq->view, &dk->view, &dv->view, &ddecay->view, &dbeta->view, &dy->view, &d.q->view, &d.k->view,
                                          &d.v->view, &d.decay->view, &d.beta->view, &d.starts->view));
    return 5;
}

int bind_scan(lua_State *L); /* adds to the table on the stack */

int bind_scan(lua_State *L) {
    static const luaL_Reg functions[] = {{"causal_conv", l_causal_conv}, {"causal_conv_backward", l_causal_conv_backward}, {"scan", l_scan},
                                         {"scan_backward", l_scan_backward}, {"delta_rule", l_delta_rule},
                                         {"delta_rule_backward", l_delta_rule_backward}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
    return 1;
}
