/* onn.core.ops, for routers of experts: the largest of rows, picked elements, and which rows go to which expert. */
#include <string.h>

#include "bind_shapes.h"

/* A tensor with x's leading dimensions and k as its last. */
static Tensor *new_last(lua_State *L, const Tensor *x, Dtype dtype, int64_t k) {
    int64_t shape[MAX_DIMS];
    memcpy(shape, x->view.shape, sizeof shape);
    shape[x->view.dims - 1] = k;
    return new_tensor(L, dtype, x->view.dims, shape);
}

/* topk(x, k) -> values, index i32: the k largest of each row, largest first, equals in their order; index from 0 */
static int l_topk(lua_State *L) {
    Tensor *x = float_rows(L, 1);
    if (!x->view.dims)
        return luaL_argerror(L, 1, "expected rows");
    int64_t k = check_integer(L, 2, 0, view_width(&x->view));
    Tensor *values = new_last(L, x, x->view.dtype, k), *index = new_last(L, x, I32, k);
    RUN(L, backend()->topk(&values->view, &index->view, &x->view));
    return 2;
}

/* index (rows, k) at `arg`, whose elements number columns of `width`, for as many rows as `x` has. */
static Tensor *check_columns(lua_State *L, int arg, const Tensor *x, int64_t width) {
    Tensor *index = check_tensor(L, arg);
    int same = index->view.dims == x->view.dims && index->view.dims > 0;
    for (int i = 0; same && i + 1 < x->view.dims; i++)
        same = index->view.shape[i] == x->view.shape[i];
    if (!same)
        luaL_argerror(L, arg, "expected an index for each row");
    return check_index(L, arg, view_count(&index->view), width, NO_INDEX);
}

/* pick(x, index) -> y (rows, k) = x[row, index[row]] */
static int l_pick(lua_State *L) {
    Tensor *x = float_rows(L, 1), *index = check_columns(L, 2, x, view_width(&x->view));
    Tensor *y = new_like(L, index, x->view.dtype);
    RUN(L, backend()->pick(&y->view, &x->view, &index->view));
    return 1;
}

/* pick_backward(dy, index, width) -> dx (rows, width) */
static int l_pick_backward(lua_State *L) {
    Tensor *dy = float_rows(L, 1);
    int64_t width = check_integer(L, 3, 0, INT32_MAX);
    Tensor *index = check_columns(L, 2, dy, width);
    if (view_width(&index->view) != view_width(&dy->view))
        return luaL_argerror(L, 2, "the index has dy's shape");
    Tensor *dx = new_last(L, dy, dy->view.dtype, width);
    RUN(L, backend()->pick_backward(&dx->view, &dy->view, &index->view));
    return 1;
}

/* group(index, count) -> order, starts: positions of the index's elements (from 0), all that are 0 first, then all that are 1 and so
 * on, each group in its order; group g lies at starts[g]..starts[g + 1] of it. order i32 (elements), starts i32 (count + 1). */
static int l_group(lua_State *L) {
    Tensor *raw = check_values(L, 1);
    int64_t n = view_count(&raw->view), count = check_integer(L, 2, 1, 1 << 24), bounds = count + 1;
    Tensor *index = check_index(L, 1, n, count, NO_INDEX);
    if (n > INT32_MAX)
        return luaL_argerror(L, 1, "too many elements");
    Tensor *order = new_values(L, I32, 1, &n), *starts = new_values(L, I32, 1, &bounds);
    const int32_t *of = index->view.data;
    int32_t *to = order->view.data, *at = starts->view.data;
    memset(at, 0, (size_t)bounds * sizeof *at);
    for (int64_t i = 0; i < n; i++)
        at[of[i] + 1]++;
    for (int64_t g = 0; g < count; g++)
        at[g + 1] += at[g];
    for (int64_t i = 0; i < n; i++)
        to[at[of[i]]++] = (int32_t)i;
    for (int64_t g = count; g > 0; g--)
        at[g] = at[g - 1];
    at[0] = 0;
    return 2;
}

int bind_experts(lua_State *L); /* adds to the table on the stack */

int bind_experts(lua_State *L) {
    static const luaL_Reg functions[] = {{"topk", l_topk}, {"pick", l_pick}, {"pick_backward", l_pick_backward}, {"group", l_group}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
    return 1;
}
