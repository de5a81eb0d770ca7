/* onn.core.ops, second part: what models are made of: products with LoRA, attention, rotary, gates, losses, convolution. */
#include <math.h>
#include <string.h>

#include "bind_shapes.h"

#define X(name) #name,
static const char *const gate_names[] = {GATES(X) NULL};
#undef X

static Tensor *float_heads(lua_State *L, int arg) {
    Tensor *t = check_tensor(L, arg);
    const View *v = &t->view;
    if (v->dims != 3 || (v->dtype != F32 && v->dtype != BF16))
        luaL_argerror(L, arg, "expected (tokens, heads, size) in f32 or bf16");
    if (v->stride[2] == 1 || v->shape[2] == 1)
        return t;
    Tensor *copy = new_like(L, t, v->dtype);
    RUN(L, backend()->convert(&copy->view, v));
    lua_replace(L, arg);
    return copy;
}

/* rope(x, cos, sin, positions, interleaved, sign, dtype) -> y; dtype nil: x's */
static int l_rope(lua_State *L) {
    Tensor *x = float_heads(L, 1), *cos = check_tensor(L, 2);
    if (cos->view.dims != 2 || cos->view.dtype != F32 || cos->view.shape[1] * 2 > x->view.shape[2] || !tensor_contiguous(cos))
        return luaL_argerror(L, 2, "expected contiguous f32 (positions, half) with 2 * half within a head");
    Tensor *sin = check_vector(L, 3, F32, view_count(&cos->view));
    Tensor *positions = check_index(L, 4, x->view.shape[0], cos->view.shape[0], NO_INDEX);
    int interleaved = lua_toboolean(L, 5), sign = (int)check_integer(L, 6, -1, 1);
    Dtype dtype = lua_isnoneornil(L, 7) ? x->view.dtype : check_dtype(L, 7);
    if (dtype != F32 && dtype != BF16)
        return luaL_argerror(L, 7, "expected f32 or bf16");
    Tensor *y = new_like(L, x, dtype);
    RUN(L, backend()->rope(&y->view, &x->view, &cos->view, &sin->view, &positions->view, interleaved, sign));
    return 1;
}

/* rope_table(inv_freq, positions, scale) -> cos, sin f32 (positions, half): of the f32 products position * inv_freq, as the
 * reference implementations take them; scale multiplies both (attention factor of scaled rotary). */
static int l_rope_table(lua_State *L) {
    Tensor *inv = check_tensor(L, 1);
    int64_t half = view_count(&inv->view), shape[2] = {check_integer(L, 2, 1, 1 << 24), half};
    double scale = luaL_optnumber(L, 3, 1);
    check_vector(L, 1, F32, half);
    Tensor *cos_table = new_tensor(L, F32, 2, shape), *sin_table = new_tensor(L, F32, 2, shape);
    if (tensor_phantom(cos_table))
        return 2;
    const float *f = inv->view.data;
    float *c = cos_table->view.data, *s = sin_table->view.data;
    for (int64_t p = 0; p < shape[0]; p++)
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)p * f[i];
            c[p * half + i] = (float)(cos((double)angle) * scale);
            s[p * half + i] = (float)(sin((double)angle) * scale);
        }
    return 2;
}

/* What a table at `arg` adds to a mask, of `heads` heads; nil: nothing. */
static void check_mask(lua_State *L, int arg, Mask *m, int64_t heads) {
    if (lua_isnoneornil(L, arg))
        return;
    luaL_checktype(L, arg, LUA_TTABLE);
    lua_getfield(L, arg, "cap");
    lua_getfield(L, arg, "chunk");
    lua_getfield(L, arg, "bias");
    lua_getfield(L, arg, "zero");
    lua_getfield(L, arg, "sinks");
    int top = lua_gettop(L);
    double cap = luaL_optnumber(L, top - 4, 0), chunk = luaL_optnumber(L, top - 3, 0), zero = luaL_optnumber(L, top - 1, -1);
    Tensor *bias = optional_tensor(L, top - 2), *sinks = optional_tensor(L, top);
    if (!(cap >= 0))
        luaL_argerror(L, arg, "'cap' is no number from 0 on");
    if (!(chunk >= 0 && chunk < 0x1p40 && chunk == floor(chunk)))
        luaL_argerror(L, arg, "'chunk' is no number of tokens");
    m->cap = (float)cap;
    m->chunk = (int64_t)chunk;
    if (bias) {
        if (bias->view.dims != 2 || bias->view.dtype != F32 || bias->view.shape[0] != heads || !bias->view.shape[1] || !tensor_contiguous(bias))
            luaL_argerror(L, arg, lua_pushfstring(L, "'bias' is not contiguous f32 (%d heads, distances)", (int)heads));
        if (!(zero >= 0 && zero < (double)bias->view.shape[1] && zero == floor(zero)))
            luaL_argerror(L, arg, "'zero' is no entry of the bias");
        m->bias = bias->view.data;
        m->bias_size = bias->view.shape[1];
        m->bias_zero = (int64_t)zero;
    }
    if (sinks) {
        if (sinks->view.dtype != F32 || view_count(&sinks->view) != heads || !tensor_contiguous(sinks))
            luaL_argerror(L, arg, lua_pushfstring(L, "'sinks' is not f32 of %d heads", (int)heads));
        m->sinks = sinks->view.data;
    }
}

/* Arguments q, k, v at `arg`..arg+2, then q_starts, k_starts, causal, window, scale; what else the mask has is a table at `more`. */
typedef struct Attention {
    Tensor *q, *k, *v;
    Mask mask;
    float scale;
} Attention;

/* Starts that a dry run does not know are taken to be those of one sequence, which costs most. */
static Mask longest_mask(int64_t queries, int64_t keys) {
    static int32_t starts[2][2];
    starts[0][1] = (int32_t)queries, starts[1][1] = (int32_t)keys;
    return (Mask){.q_starts = starts[0], .k_starts = starts[1], .sequences = 1};
}

static Attention check_attention(lua_State *L, int arg, int more) {
    Attention a = {float_heads(L, arg), float_heads(L, arg + 1), float_heads(L, arg + 2), {0}, 0};
    const View *q = &a.q->view, *k = &a.k->view, *v = &a.v->view;
    if (v->dtype != k->dtype || v->shape[0] != k->shape[0] || v->shape[1] != k->shape[1])
        luaL_argerror(L, arg + 2, "values want the keys' dtype, tokens and heads");
    if (k->dtype != q->dtype || k->shape[2] != q->shape[2] || !k->shape[1] || q->shape[1] % k->shape[1])
        luaL_argerror(L, arg + 1, "keys want the queries' dtype and head size, and a number of heads that divides theirs");
    Tensor *qs = check_starts(L, arg + 3, q->shape[0]), *ks = check_starts(L, arg + 4, k->shape[0]);
    a.mask.sequences = view_count(&qs->view) - 1;
    if (view_count(&ks->view) - 1 != a.mask.sequences)
        luaL_argerror(L, arg + 4, "as many sequences of keys as of queries");
    a.mask.q_starts = qs->view.data;
    a.mask.k_starts = ks->view.data;
    if (tensor_phantom(qs) || tensor_phantom(ks))
        a.mask = longest_mask(q->shape[0], k->shape[0]);
    a.mask.causal = lua_toboolean(L, arg + 5);
    a.mask.window = check_integer(L, arg + 6, 0, INT64_C(1) << 40);
    a.scale = (float)luaL_checknumber(L, arg + 7);
    check_mask(L, more, &a.mask, q->shape[1]);
    if (a.mask.chunk && !a.mask.causal)
        luaL_argerror(L, more, "chunks of keys are for causal attention");
    int placed = a.mask.causal || a.mask.window || a.mask.bias; /* places count: the last query sits at the last key */
    for (int64_t s = 0; s < a.mask.sequences && placed; s++)
        if (a.mask.k_starts[s + 1] - a.mask.k_starts[s] < a.mask.q_starts[s + 1] - a.mask.q_starts[s])
            luaL_argerror(L, arg + 4, "a sequence has fewer keys than queries");
    return a;
}

/* y's shape: the queries', with the values' size. */
static Tensor *new_heads(lua_State *L, const Tensor *q, int64_t size) {
    int64_t shape[3] = {q->view.shape[0], q->view.shape[1], size};
    return new_tensor(L, q->view.dtype, 3, shape);
}

/* attention(q, k, v, q_starts, k_starts, causal, window, scale, keep, more) -> y [, lse]; more {cap, bias, zero, sinks, chunk} or nil,
 * see kernels.h's Mask */
static int l_attention(lua_State *L) {
    lua_settop(L, 10);
    Attention a = check_attention(L, 1, 10);
    int keep = lua_toboolean(L, 9);
    Tensor *y = new_heads(L, a.q, a.v->view.shape[2]), *lse = keep ? new_tensor(L, F32, 2, a.q->view.shape) : NULL;
    RUN(L, backend()->attention(&y->view, lse ? &lse->view : NULL, &a.q->view, &a.k->view, &a.v->view, &a.mask, a.scale));
    return keep ? 2 : 1;
}

/* attention_backward(dy, y, lse, q, k, v, q_starts, k_starts, causal, window, scale, more) -> dq, dk, dv; the mask takes no gradient */
static int l_attention_backward(lua_State *L) {
    lua_settop(L, 12);
    Tensor *dy = rows_tensor(L, 1), *y = rows_tensor(L, 2);
    Attention a = check_attention(L, 4, 12);
    const View *v = &y->view;
    if (v->dims != 3 || v->dtype != a.q->view.dtype || v->shape[0] != a.q->view.shape[0] || v->shape[1] != a.q->view.shape[1] ||
        v->shape[2] != a.v->view.shape[2])
        return luaL_argerror(L, 2, "y has the queries' dtype, tokens and heads, and the values' size");
    same_shape(L, 1, dy, y);
    Tensor *lse = check_vector(L, 3, F32, a.q->view.shape[0] * a.q->view.shape[1]);
    Tensor *dq = new_like(L, a.q, a.q->view.dtype), *dk = new_like(L, a.k, a.q->view.dtype), *dv = new_like(L, a.v, a.q->view.dtype);
    RUN(L, backend()->attention_backward(&dq->view, &dk->view, &dv->view, &dy->view, &y->view, &lse->view, &a.q->view,
                                         &a.k->view, &a.v->view, &a.mask, a.scale));
    return 3;
}

/* attention_decode(q, k, v, lengths, window, scale, more) -> y; k, v (sequences, capacity, kv_heads, size), v's size its own */
static int l_attention_decode(lua_State *L) {
    lua_settop(L, 7);
    Tensor *q = float_heads(L, 1), *k = check_tensor(L, 2), *v = check_tensor(L, 3);
    const View *vq = &q->view, *vk = &k->view;
    if (v->view.dims != 4 || vk->dims != 4 || v->view.dtype != vk->dtype || memcmp(v->view.shape, vk->shape, 3 * sizeof vk->shape[0]) != 0)
        return luaL_argerror(L, 3, "values want the keys' dtype, sequences, capacity and heads");
    if (vk->dims != 4 || vk->dtype != vq->dtype || vk->shape[0] != vq->shape[0] || vk->shape[3] != vq->shape[2] ||
        !vk->shape[2] || vq->shape[1] % vk->shape[2] || !tensor_contiguous(k) || !tensor_contiguous(v))
        return luaL_argerror(L, 2, "expected a cache (sequences, capacity, kv_heads, size) that fits the queries");
    check_values(L, 4);
    Tensor *lengths = check_index(L, 4, vq->shape[0], vk->shape[1] + 1, NO_INDEX);
    Mask mask = {.window = check_integer(L, 5, 0, INT64_C(1) << 40)};
    float scale = (float)luaL_checknumber(L, 6);
    check_mask(L, 7, &mask, vq->shape[1]);
    Tensor *y = new_heads(L, q, v->view.shape[3]);
    RUN(L, backend()->attention_decode(&y->view, vq, vk, &v->view, &lengths->view, &mask, scale));
    return 1;
}

static int l_gate(lua_State *L) {
    Tensor *g = float_rows(L, 1), *u = float_rows(L, 2);
    int gate = luaL_checkoption(L, 3, NULL, gate_names);
    same_shape(L, 2, u, g);
    Tensor *y = new_like(L, g, g->view.dtype);
    RUN(L, backend()->gate(&y->view, &g->view, &u->view, (Gate)gate));
    return 1;
}

static int l_gate_backward(lua_State *L) {
    Tensor *dy = float_rows(L, 1), *g = float_rows(L, 2), *u = float_rows(L, 3);
    int gate = luaL_checkoption(L, 4, NULL, gate_names);
    same_shape(L, 2, g, dy);
    same_shape(L, 3, u, dy);
    Tensor *dg = new_like(L, g, g->view.dtype), *du = new_like(L, u, u->view.dtype);
    RUN(L, backend()->gate_backward(&dg->view, &du->view, &dy->view, &g->view, &u->view, (Gate)gate));
    return 2;
}

/* A weight (out, in), row-major or a transposed view, of a dtype that goes with activations of `dtype`; those of linear layers may be
 * as they are stored. */
static Tensor *check_matrix(lua_State *L, int arg, Dtype dtype, int64_t in, int stored) {
    Tensor *w = check_tensor(L, arg);
    const View *v = &w->view;
    int layout = v->dims == 2 && (v->stride[1] == 1 || v->shape[1] == 1 || v->stride[0] == 1);
    int type = dtype == BF16 && !stored ? v->dtype == BF16 : v->dtype == F32 || v->dtype == BF16 || v->dtype == F16;
    if (!layout || !type || (in >= 0 && v->shape[1] != in)) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "expected a weight (out, %f) for %s activations, got %s", (double)in,
                                              dtype_name(dtype), tensor_shape_text(w, got, sizeof got)));
    }
    return w;
}
static Tensor *check_weight(lua_State *L, int arg, Dtype dtype, int64_t in) { return check_matrix(L, arg, dtype, in, 0); }

/* Adapter a (rank, in), b (out, rank) at `arg`, `arg + 1`, scale at `arg + 2`; nil: none, and 0 is returned. */
static int check_lora(lua_State *L, int arg, Lora *lora, const Tensor *w, int64_t out, Dtype dtype) {
    Tensor *a = optional_tensor(L, arg), *b = optional_tensor(L, arg + 1);
    if (!a)
        return 0;
    if (!b || a->view.dims != 2 || b->view.dims != 2 || a->view.dtype != dtype || b->view.dtype != dtype ||
        !tensor_contiguous(a) || !tensor_contiguous(b) || a->view.shape[1] != w->view.shape[1] ||
        b->view.shape[0] != out || a->view.shape[0] != b->view.shape[1])
        luaL_argerror(L, arg, "an adapter is A (rank, in) and B (out, rank) in the activations' dtype");
    lora->a = &a->view;
    lora->b = &b->view;
    lora->scale = (float)luaL_checknumber(L, arg + 2);
    return 1;
}

static Tensor *new_rows(lua_State *L, const Tensor *like, Dtype dtype, int64_t width) {
    int64_t shape[MAX_DIMS];
    memcpy(shape, like->view.shape, sizeof shape);
    shape[like->view.dims - 1] = width;
    return new_tensor(L, dtype, like->view.dims, shape);
}

/* Pushes what a product writes to: a new tensor of the dtype at `dtype_arg`, or the one at `arg`, which may be a view whose rows lie apart. */
static Tensor *push_output(lua_State *L, int arg, int dtype_arg, const Tensor *x, int64_t width) {
    Dtype dtype = check_float_dtype(L, dtype_arg, x->view.dtype);
    if (lua_isnoneornil(L, arg))
        return new_rows(L, x, dtype, width);
    Tensor *y = float_tensor(L, arg);
    int fits = y->view.dims == x->view.dims && view_width(&y->view) == width && (lua_isnoneornil(L, dtype_arg) || y->view.dtype == dtype);
    for (int i = 0; fits && i + 1 < x->view.dims; i++)
        fits = y->view.shape[i] == x->view.shape[i];
    if (!fits || rows_tensor(L, arg) != y) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "expected rows of %f for the output, got %s", (double)width, tensor_shape_text(y, got, sizeof got)));
    }
    lua_pushvalue(L, arg);
    return y;
}

/* linear(x, w, bias, a, b, scale, adapter_x, dtype, out) -> y [, h]; a, b, adapter_x, dtype may be nil; y is `out` if that is there */
static int l_linear(lua_State *L) {
    Lora lora = {0};
    lua_settop(L, 9);
    Tensor *x = float_rows(L, 1), *w = check_matrix(L, 2, x->view.dtype, view_width(&x->view), 1);
    Tensor *bias = optional_vector(L, 3, F32, w->view.shape[0]), *h = NULL;
    int adapted = check_lora(L, 4, &lora, w, w->view.shape[0], x->view.dtype);
    Tensor *source = lua_isnil(L, 7) ? x : float_rows(L, 7);
    same_shape(L, 7, source, x);
    lora.x = &source->view;
    Tensor *y = push_output(L, 9, 8, x, w->view.shape[0]);
    if (adapted)
        h = new_rows(L, x, x->view.dtype, lora.a->shape[0]);
    RUN(L, backend()->linear(&y->view, h ? &h->view : NULL, &x->view, &w->view, view_of(bias), adapted ? &lora : NULL));
    return adapted ? 2 : 1;
}

/* linear_decode(x, w, bias, a, b, scale, dtype, out) -> y */
static int l_linear_decode(lua_State *L) {
    Lora lora = {0};
    Tensor *x = float_rows(L, 1), *w = check_matrix(L, 2, x->view.dtype, view_width(&x->view), 1);
    Tensor *bias = optional_vector(L, 3, F32, w->view.shape[0]);
    int adapted = check_lora(L, 4, &lora, w, w->view.shape[0], x->view.dtype);
    lora.x = &x->view;
    Tensor *y = push_output(L, 8, 7, x, w->view.shape[0]);
    RUN(L, backend()->linear_decode(&y->view, &x->view, &w->view, view_of(bias), adapted ? &lora : NULL));
    return 1;
}

/* linear_backward(dy, w, a, b, scale, dx, split, skip, whole) -> dx, dh, dropped: dx, of dy's dtype or f32, is added to if given;
 * split: the adapter's part apart, in `dropped`; skip: no dx at all; whole: dy of all the layer's outputs, where w is a tile of its
 * rows and an adapter goes with it. What is not there is nil. */
static int l_linear_backward(lua_State *L) {
    Lora lora = {0};
    lua_settop(L, 9);
    Tensor *dy = float_rows(L, 1), *w = check_matrix(L, 2, dy->view.dtype, -1, 1), *dx = optional_tensor(L, 6), *dh = NULL, *dropped = NULL;
    Tensor *whole = lua_isnil(L, 9) ? dy : float_rows(L, 9);
    if (w->view.shape[0] != view_width(&dy->view))
        return luaL_argerror(L, 2, "dy is not as wide as the weight's output");
    if (view_rows(&whole->view) != view_rows(&dy->view) || whole->view.dtype != dy->view.dtype)
        return luaL_argerror(L, 9, "the whole layer's dy has the rows and dtype of the tile's");
    int adapted = check_lora(L, 3, &lora, w, view_width(&whole->view), dy->view.dtype), add = dx != NULL;
    int split = lua_toboolean(L, 7), skip = lua_toboolean(L, 8);
    lora.whole = &whole->view;
    if (dx && ((dx->view.dtype != dy->view.dtype && dx->view.dtype != F32) || view_width(&dx->view) != w->view.shape[1] ||
               view_rows(&dx->view) != view_rows(&dy->view) || !tensor_contiguous(dx)))
        return luaL_argerror(L, 6, "the gradient to add to has another shape or dtype");
    if (!skip && !dx)
        dx = new_rows(L, dy, dy->view.dtype, w->view.shape[1]);
    else
        lua_pushvalue(L, 6);
    if (adapted)
        dh = new_rows(L, dy, dy->view.dtype, lora.a->shape[0]);
    else
        lua_pushnil(L);
    if (adapted && split)
        dropped = new_rows(L, dy, dy->view.dtype, w->view.shape[1]);
    else
        lua_pushnil(L);
    RUN(L, backend()->linear_backward(skip ? NULL : &dx->view, dh ? &dh->view : NULL, dropped ? &dropped->view : NULL, &dy->view,
                                      &w->view, adapted ? &lora : NULL, add));
    return 3;
}

/* lora_backward(da, db, dh, dy, h, x, b, scale, starts) */
static int l_lora_backward(lua_State *L) {
    Tensor *da = check_tensor(L, 1), *db = check_tensor(L, 2), *dh = float_rows(L, 3), *dy = float_rows(L, 4);
    Tensor *h = float_rows(L, 5), *x = float_rows(L, 6), *b = check_tensor(L, 7);
    Lora lora = {.x = &x->view, .b = &b->view, .scale = (float)luaL_checknumber(L, 8)};
    Tensor *starts = optional_starts(L, 9, view_rows(&dy->view));
    int64_t rank = view_width(&h->view), rows = view_rows(&dy->view);
    same_shape(L, 5, h, dh);
    check_vector(L, 1, F32, rank * view_width(&x->view));
    check_vector(L, 2, F32, rank * view_width(&dy->view));
    if (view_rows(&x->view) != rows || view_rows(&h->view) != rows)
        return luaL_argerror(L, 6, "x, h and dy have as many rows");
    RUN(L, backend()->lora_backward(&da->view, &db->view, &dh->view, &dy->view, &h->view, &lora, view_of(starts)));
    return 0;
}

/* linear_backward_weight(dw, dbias, dy, x, starts) */
static int l_linear_backward_weight(lua_State *L) {
    Tensor *dy = float_rows(L, 3), *x = float_rows(L, 4);
    int64_t out = view_width(&dy->view), in = view_width(&x->view);
    Tensor *dw = optional_vector(L, 1, F32, out * in), *dbias = optional_vector(L, 2, F32, out);
    Tensor *starts = optional_starts(L, 5, view_rows(&dy->view));
    if (view_rows(&x->view) != view_rows(&dy->view) || x->view.dtype != dy->view.dtype)
        return luaL_argerror(L, 4, "x and dy have as many rows and one dtype");
    RUN(L, backend()->linear_backward_weight(dw ? &dw->view : NULL, dbias ? &dbias->view : NULL, &dy->view, &x->view, view_of(starts)));
    return 0;
}

static int l_matmul(lua_State *L) {
    Tensor *a = check_tensor(L, 1), *b = check_tensor(L, 2);
    const View *va = &a->view, *vb = &b->view;
    if (va->dims != 2 || vb->dims != 2 || va->shape[1] != vb->shape[0] || va->dtype != vb->dtype ||
        (va->dtype != F32 && va->dtype != BF16)) {
        char ta[200], tb[200];
        return luaL_error(L, "matmul: %s and %s do not go together", tensor_shape_text(a, ta, sizeof ta), tensor_shape_text(b, tb, sizeof tb));
    }
    for (int i = 1; i <= 2; i++) {
        Tensor *t = check_tensor(L, i);
        if (t->view.stride[0] == 1 || t->view.stride[1] == 1)
            continue;
        Tensor *copy = new_like(L, t, t->view.dtype);
        RUN(L, backend()->convert(&copy->view, &t->view));
        lua_replace(L, i);
    }
    a = check_tensor(L, 1), b = check_tensor(L, 2);
    int64_t shape[2] = {a->view.shape[0], b->view.shape[1]};
    Tensor *c = new_tensor(L, a->view.dtype, 2, shape);
    RUN(L, backend()->matmul(&c->view, &a->view, &b->view));
    return 1;
}

/* multiplier, bias, cap at these arguments: see kernels.h's Logits; each may be nil. */
static Logits check_logits(lua_State *L, int multiplier, int bias, int cap, int64_t vocabulary) {
    Tensor *b = bias ? optional_vector(L, bias, F32, vocabulary) : NULL;
    Logits form = {(float)luaL_optnumber(L, multiplier, 1), (float)luaL_optnumber(L, cap, 0), b ? b->view.data : NULL};
    if (!(form.cap >= 0))
        luaL_argerror(L, cap, "a cap is no negative number");
    return form;
}

/* head_loss(x, w, labels, starts, scale, multiplier, gradient, dw, bias, cap, dbias) -> nll [, dx] */
static int l_head_loss(lua_State *L) {
    lua_settop(L, 11);
    Tensor *x = float_rows(L, 1), *w = check_weight(L, 2, x->view.dtype, view_width(&x->view));
    int64_t rows = view_rows(&x->view);
    Tensor *labels = check_index(L, 3, rows, w->view.shape[0], -100), *starts = optional_starts(L, 4, rows);
    float scale = (float)luaL_checknumber(L, 5);
    int gradient = lua_toboolean(L, 7);
    Tensor *dw = optional_vector(L, 8, F32, view_count(&w->view)), *dbias = optional_vector(L, 11, F32, w->view.shape[0]);
    Logits form = check_logits(L, 6, 9, 10, w->view.shape[0]);
    Tensor *nll = new_tensor(L, F32, 1, &rows), *dx = gradient ? new_like(L, x, x->view.dtype) : NULL;
    RUN(L, backend()->head_loss(&nll->view, dx ? &dx->view : NULL, dw ? &dw->view : NULL, dbias ? &dbias->view : NULL, &x->view,
                                &w->view, &labels->view, view_of(starts), scale, &form));
    return gradient ? 2 : 1;
}

/* What the streamed loss keeps between parts: a table {vocabulary, passed (rows of the weight so far), stats, sums, label_rows}. */
typedef struct HeadState {
    int64_t vocabulary, passed;
    Tensor *stats, *sums, *label_rows; /* the last two NULL: losses alone */
} HeadState;

static const char *const head_tensors[] = {"stats", "sums", "label_rows", NULL};

static HeadState check_head(lua_State *L, int arg, const Tensor *x) {
    int64_t rows = view_rows(&x->view), width = view_width(&x->view);
    HeadState s = {0};
    luaL_checktype(L, arg, LUA_TTABLE);
    for (int i = 0; head_tensors[i]; i++)
        lua_getfield(L, arg, head_tensors[i]);
    if (lua_isnil(L, -3))
        luaL_argerror(L, arg, "this loss has ended");
    int top = lua_gettop(L);
    s.stats = check_tensor(L, top - 2), s.sums = optional_tensor(L, top - 1), s.label_rows = optional_tensor(L, top);
    lua_getfield(L, arg, "vocabulary");
    lua_getfield(L, arg, "passed");
    s.vocabulary = lua_tointeger(L, -2), s.passed = lua_tointeger(L, -1);
    if (s.stats->view.dims != 2 || s.stats->view.shape[1] != rows ||
        (s.label_rows && (s.label_rows->view.dtype != x->view.dtype || view_rows(&s.label_rows->view) != rows || view_width(&s.label_rows->view) != width))) {
        char got[200];
        luaL_argerror(L, arg, lua_pushfstring(L, "this loss began with another input than %s", tensor_shape_text(x, got, sizeof got)));
    }
    check_vector(L, top - 2, F32, 3 * rows);
    if (s.sums)
        check_vector(L, top - 1, F32, head_sums(rows, width));
    if (s.label_rows)
        check_vector(L, top, x->view.dtype, rows * width);
    return s;
}

/* head_begin(x, vocabulary, gradient) -> state: the loss of tokens x (N, width) while the head's weight passes in parts. Between them it
 * keeps 12 bytes a token and, unless gradient is false, (N + 31) * width * 4 (width rounded up to 32s) and N * width * x's size. */
static int l_head_begin(lua_State *L) {
    Tensor *x = float_rows(L, 1);
    int64_t rows = view_rows(&x->view), vocabulary = check_integer(L, 2, 1, INT32_MAX), shape[2] = {3, rows};
    int64_t sums = head_sums(rows, view_width(&x->view));
    int gradient = lua_isnoneornil(L, 3) || lua_toboolean(L, 3);
    lua_createtable(L, 0, 5);
    int state = lua_gettop(L);
    lua_pushinteger(L, (lua_Integer)vocabulary), lua_setfield(L, state, "vocabulary");
    lua_pushinteger(L, 0), lua_setfield(L, state, "passed");
    new_tensor(L, F32, 2, shape), lua_setfield(L, state, "stats");
    if (gradient) {
        new_tensor(L, F32, 1, &sums), lua_setfield(L, state, "sums");
        new_like(L, x, x->view.dtype), lua_setfield(L, state, "label_rows");
    }
    return 1;
}

/* head_part(state, x, w, labels, first_row, multiplier, bias, cap), bias of the whole vocabulary: w holds the vocabulary's rows from first_row (from 0) on. Parts come in order, and
 * each but the last has a multiple of head_cut rows. */
static int l_head_part(lua_State *L) {
    lua_settop(L, 8);
    Tensor *x = float_rows(L, 2), *w = check_weight(L, 3, x->view.dtype, view_width(&x->view));
    HeadState s = check_head(L, 1, x);
    Tensor *labels = check_index(L, 4, view_rows(&x->view), s.vocabulary, -100);
    int64_t first = check_integer(L, 5, 0, INT32_MAX), rows = w->view.shape[0];
    Logits form = check_logits(L, 6, 7, 8, s.vocabulary);
    if (first != s.passed)
        return luaL_argerror(L, 5, lua_pushfstring(L, "the part from row %f on is expected, got %f", (double)s.passed, (double)first));
    if (first + rows > s.vocabulary || (rows % HEAD_CUT && first + rows < s.vocabulary))
        return luaL_argerror(L, 3, lua_pushfstring(L, "expected a multiple of %d rows or the last %f, got %f", HEAD_CUT,
                                                   (double)(s.vocabulary - first), (double)rows));
    RUN(L, backend()->head_part(&s.stats->view, s.sums ? &s.sums->view : NULL, s.label_rows ? &s.label_rows->view : NULL, &x->view, &w->view,
                                &labels->view, first, &form));
    lua_pushinteger(L, (lua_Integer)(first + rows)), lua_setfield(L, 1, "passed");
    return 0;
}

/* head_end(state, x, labels, scale, multiplier, gradient, cap) -> nll [, dx]; frees the state's tensors */
static int l_head_end(lua_State *L) {
    lua_settop(L, 7);
    Tensor *x = float_rows(L, 2);
    HeadState s = check_head(L, 1, x);
    int64_t rows = view_rows(&x->view);
    Tensor *labels = check_index(L, 3, rows, s.vocabulary, -100);
    float scale = (float)luaL_checknumber(L, 4);
    Logits form = check_logits(L, 5, 0, 7, s.vocabulary);
    int gradient = lua_toboolean(L, 6);
    if (s.passed != s.vocabulary)
        return luaL_argerror(L, 1, lua_pushfstring(L, "%f of %f rows of the weight have passed", (double)s.passed, (double)s.vocabulary));
    if (gradient && (!s.sums || !s.label_rows))
        return luaL_argerror(L, 6, "this loss began without a gradient");
    Tensor *nll = new_tensor(L, F32, 1, &rows), *dx = gradient ? new_like(L, x, x->view.dtype) : NULL;
    RUN(L, backend()->head_end(&nll->view, dx ? &dx->view : NULL, &s.stats->view, view_of(s.sums), view_of(s.label_rows), &labels->view, scale,
                               &form));
    for (int i = 0; head_tensors[i]; i++) {
        lua_getfield(L, 1, head_tensors[i]);
        if (luaL_callmeta(L, -1, "free"))
            lua_pop(L, 1);
        lua_pop(L, 1);
        lua_pushnil(L);
        lua_setfield(L, 1, head_tensors[i]);
    }
    return gradient ? 2 : 1;
}

/* cross_entropy(logits, labels, scale, gradient) -> nll [, dlogits] */
static int l_cross_entropy(lua_State *L) {
    Tensor *x = float_rows(L, 1);
    int64_t rows = view_rows(&x->view);
    Tensor *labels = check_index(L, 2, rows, view_width(&x->view), -100);
    float scale = (float)luaL_optnumber(L, 3, 1);
    int gradient = lua_toboolean(L, 4);
    Tensor *nll = new_tensor(L, F32, 1, &rows), *dx = gradient ? new_like(L, x, x->view.dtype) : NULL;
    RUN(L, backend()->cross_entropy(&nll->view, dx ? &dx->view : NULL, &x->view, &labels->view, scale));
    return gradient ? 2 : 1;
}

/* adamw(p, m, v, shadow, g, lr, beta1, beta2, eps, weight_decay, grad_scale, step), in place; shadow may be nil */
static int l_adamw(lua_State *L) {
    Tensor *p = check_tensor(L, 1), *shadow = optional_tensor(L, 4);
    int64_t n = view_count(&p->view);
    check_vector(L, 1, F32, n);
    Tensor *m = check_vector(L, 2, F32, n), *v = check_vector(L, 3, F32, n), *g = check_vector(L, 5, F32, n);
    if (shadow)
        check_vector(L, 4, BF16, n);
    Adam adam = {(float)luaL_checknumber(L, 6), (float)luaL_checknumber(L, 7), (float)luaL_checknumber(L, 8),
                 (float)luaL_checknumber(L, 9), (float)luaL_checknumber(L, 10), (float)luaL_checknumber(L, 11),
                 check_integer(L, 12, 1, INT64_C(1) << 52)};
    RUN(L, backend()->adamw(&p->view, &m->view, &v->view, shadow ? &shadow->view : NULL, &g->view, &adam));
    return 0;
}

int bind_images(lua_State *L);
int bind_recurrent(lua_State *L);
int bind_experts(lua_State *L);
int bind_scan(lua_State *L);

int bind_layers(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"rope", l_rope}, {"rope_table", l_rope_table}, {"attention", l_attention}, {"attention_backward", l_attention_backward},
        {"attention_decode", l_attention_decode}, {"gate", l_gate}, {"gate_backward", l_gate_backward}, {"linear", l_linear},
        {"linear_decode", l_linear_decode}, {"linear_backward", l_linear_backward}, {"lora_backward", l_lora_backward},
        {"linear_backward_weight", l_linear_backward_weight}, {"matmul", l_matmul}, {"head_loss", l_head_loss},
        {"head_begin", l_head_begin}, {"head_part", l_head_part}, {"head_end", l_head_end},
        {"cross_entropy", l_cross_entropy}, {"adamw", l_adamw}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
    lua_pushinteger(L, HEAD_CUT);
    lua_setfield(L, -2, "head_cut");
    bind_recurrent(L);
    bind_experts(L);
    bind_scan(L);
    return bind_images(L);
}
