/* onn.core.ops, recurrent layers. */
#include <string.h>

#include "bind_shapes.h"

#define X(name, gates, kept) #name,
static const char *const cell_names[] = {CELLS(X) NULL};
#undef X

/* A layer's arguments: w, bias, projection, starts, first, first_cell, cell, reverse from `arg` on; all f32 but the matrices. */
static Recurrent check_recurrent(lua_State *L, int arg, int64_t tokens, int64_t *hidden) {
    Recurrent r = {.cell = (Cell)luaL_checkoption(L, arg + 6, NULL, cell_names), .reverse = lua_toboolean(L, arg + 7)};
    Tensor *w = check_tensor(L, arg), *projection = optional_tensor(L, arg + 2);
    int64_t gates = cell_gates(r.cell);
    const View *v = &w->view;
    if (v->dims != 2 || (v->dtype != F32 && v->dtype != BF16 && v->dtype != F16) || v->shape[0] < gates || v->shape[0] % gates || v->shape[1] < 1)
        luaL_argerror(L, arg, lua_pushfstring(L, "expected the state's weight (%d * hidden, out)", (int)gates));
    *hidden = v->shape[0] / gates;
    if (projection) {
        const View *p = &projection->view;
        if (r.cell != CELL_lstm || p->dims != 2 || p->shape[0] != v->shape[1] || p->shape[1] != *hidden ||
            (p->dtype != F32 && p->dtype != BF16 && p->dtype != F16))
            luaL_argerror(L, arg + 2, "expected an LSTM's projection (out, hidden)");
    } else if (v->shape[1] != *hidden) {
        luaL_argerror(L, arg, "without a projection the output is as wide as the hidden state");
    }
    r.w = v;
    r.bias = view_of(optional_vector(L, arg + 1, F32, v->shape[0]));
    r.projection = view_of(projection);
    Tensor *starts = check_starts(L, arg + 3, tokens);
    int64_t sequences = view_count(&starts->view) - 1;
    r.starts = &starts->view;
    r.first = view_of(optional_vector(L, arg + 4, F32, sequences * v->shape[1]));
    r.first_cell = view_of(optional_vector(L, arg + 5, F32, sequences * *hidden));
    const View *states[2] = {r.first, r.first_cell}, *wide[2] = {r.w, NULL};
    for (int i = 0; i < 2; i++)
        if (states[i] && (states[i]->dims != 2 || states[i]->shape[1] != (wide[i] ? wide[i]->shape[1] : *hidden)))
            luaL_argerror(L, arg + 4 + i, "expected a state (sequences, width)");
    return r;
}

static Tensor *check_gates(lua_State *L, int arg, int64_t width) {
    Tensor *x = float_rows(L, arg);
    if (x->view.dims != 2 || x->view.dtype != F32 || x->view.shape[1] != width)
        luaL_argerror(L, arg, lua_pushfstring(L, "expected f32 (tokens, %f)", (double)width));
    return x;
}

/* recurrent(x, w, bias, projection, starts, first, first_cell, cell, reverse, keep) -> y, last, last_cell, kept, cells; what is not there
 * is nil. See ops.def for the shapes. */
static int l_recurrent(lua_State *L) {
    int64_t hidden;
    lua_settop(L, 10);
    Tensor *x = float_rows(L, 1);
    int64_t tokens = view_rows(&x->view);
    Recurrent r = check_recurrent(L, 2, tokens, &hidden);
    x = check_gates(L, 1, r.w->shape[0]);
    int keep = lua_toboolean(L, 10), lstm = r.cell == CELL_lstm;
    int64_t sequences = view_count(r.starts) - 1, out[2] = {tokens, r.w->shape[1]}, state[2] = {sequences, r.w->shape[1]};
    int64_t cell_state[2] = {sequences, hidden}, cell[2] = {tokens, hidden}, kept[2] = {tokens, hidden * cell_kept(r.cell)};
    Tensor *y = new_tensor(L, F32, 2, out), *last = new_tensor(L, F32, 2, state), *last_cell = NULL, *saved = NULL, *cells = NULL;
    if (lstm)
        last_cell = new_tensor(L, F32, 2, cell_state);
    else
        lua_pushnil(L);
    if (keep && kept[1])
        saved = new_tensor(L, F32, 2, kept);
    else
        lua_pushnil(L);
    if (keep && lstm)
        cells = new_tensor(L, F32, 2, cell);
    else
        lua_pushnil(L);
    RUN(L, backend()->recurrent(&y->view, saved ? &saved->view : NULL, cells ? &cells->view : NULL, &last->view,
                                last_cell ? &last_cell->view : NULL, &x->view, &r));
    return 5;
}

/* recurrent_backward(dy, w, bias, projection, starts, first, first_cell, cell, reverse, y, kept, cells, weights)
 * -> dx, dstate, previous, projected, dout; all but dx are nil unless `weights` is true: they are for the gradients of w and the projection. */
static int l_recurrent_backward(lua_State *L) {
    int64_t hidden;
    lua_settop(L, 13);
    Tensor *dy = float_rows(L, 1);
    int64_t tokens = view_rows(&dy->view);
    Recurrent r = check_recurrent(L, 2, tokens, &hidden);
    int64_t out = r.w->shape[1], wide[2] = {tokens, r.w->shape[0]}, narrow[2] = {tokens, out}, middle[2] = {tokens, hidden};
    dy = check_gates(L, 1, out);
    Tensor *y = check_gates(L, 10, out);
    Tensor *kept = cell_kept(r.cell) ? check_gates(L, 11, hidden * cell_kept(r.cell)) : NULL;
    Tensor *cells = r.cell == CELL_lstm ? check_gates(L, 12, hidden) : NULL;
    int weights = lua_toboolean(L, 13);
    if (view_rows(&y->view) != tokens || (kept && view_rows(&kept->view) != tokens) || (cells && view_rows(&cells->view) != tokens))
        return luaL_argerror(L, 10, "what the forward gave has as many tokens as dy");
    Tensor *dx = new_tensor(L, F32, 2, wide), *dstate = NULL, *previous = NULL, *projected = NULL, *dout = NULL;
    if (weights && r.cell == CELL_gru)
        dstate = new_tensor(L, F32, 2, wide);
    else if (weights)
        lua_pushvalue(L, -1);
    else
        lua_pushnil(L);
    if (weights)
        previous = new_tensor(L, F32, 2, narrow);
    else
        lua_pushnil(L);
    if (weights && r.projection) {
        projected = new_tensor(L, F32, 2, middle);
        dout = new_tensor(L, F32, 2, narrow);
    } else {
        lua_pushnil(L);
        lua_pushnil(L);
    }
    RUN(L, backend()->recurrent_backward(&dx->view, dstate ? &dstate->view : NULL, previous ? &previous->view : NULL,
                                         projected ? &projected->view : NULL, dout ? &dout->view : NULL, &dy->view, &y->view,
                                         kept ? &kept->view : NULL, cells ? &cells->view : NULL, &r));
    return 5;
}

int bind_recurrent(lua_State *L);

int bind_recurrent(lua_State *L) {
    static const luaL_Reg functions[] = {{"recurrent", l_recurrent}, {"recurrent_backward", l_recurrent_backward}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
    return 1;
}
