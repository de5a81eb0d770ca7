#include "bind_tensor.h"

#include <math.h>
#include <string.h>

#define CLASS "onn.tensor"

/* Handles of one scope form a list, so that leaving it frees what was made inside. */
typedef struct Handle {
    Tensor tensor;
    struct Handle *previous, *next;
    int depth;       /* 0: in no scope */
    uint64_t serial; /* order of making */
} Handle;

enum { MAX_SCOPES = 200 };
static Handle *scopes[MAX_SCOPES + 1];
static int depth;
static uint64_t last_serial;
static const Backend *table, *real; /* in use; the device's own */
static Memory *place;               /* where new tensors lie */

const Backend *backend(void) { return table; }
Memory *tensors_pool(void) { return place; }

static void unlink_handle(Handle *h) {
    if (h->previous)
        h->previous->next = h->next;
    else if (scopes[h->depth] == h)
        scopes[h->depth] = h->next;
    if (h->next)
        h->next->previous = h->previous;
    h->previous = h->next = NULL;
    h->depth = 0;
}

static void link_handle(Handle *h, int at) {
    h->depth = at;
    if (!at)
        return;
    h->next = scopes[at];
    if (h->next)
        h->next->previous = h;
    scopes[at] = h;
}

/* A dry run's tensors stay until its end unless they are freed: what the collector frees may still be there at the largest moment of a run.
 * (To stop the collector would not do: LuaJIT goes on with a cycle that is in its last phases, whatever was asked.) */
static int held; /* in the registry's table of this name */
static const char HELD[] = "onn.dry";

static void hold(lua_State *L) {
    luaL_checkstack(L, 2, "tensors of a dry run");
    lua_getfield(L, LUA_REGISTRYINDEX, HELD);
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, ++held);
    lua_pop(L, 1);
}

Tensor *push_tensor(lua_State *L) {
    Handle *h = lua_newuserdata(L, sizeof *h);
    memset(h, 0, sizeof *h);
    luaL_getmetatable(L, CLASS);
    lua_setmetatable(L, -2);
    h->serial = ++last_serial;
    link_handle(h, depth);
    if (place == memory_dry())
        hold(L);
    return &h->tensor;
}

/* For what needs no data: shapes, dtypes, views. */
static Tensor *check_view(lua_State *L, int arg) {
    Tensor *t = luaL_checkudata(L, arg, CLASS);
    if (!t->storage)
        luaL_argerror(L, arg, "this tensor has been freed");
    return t;
}

Tensor *check_tensor(lua_State *L, int arg) {
    Tensor *t = check_view(L, arg);
    if (!tensor_present(t))
        luaL_argerror(L, arg, "this tensor is not in memory: its unit is not acquired");
    return t;
}

Tensor *check_values(lua_State *L, int arg) {
    Tensor *t = check_tensor(L, arg);
    if (tensor_phantom(t))
        luaL_argerror(L, arg, "a dry run has no values: what depends on them must be told by shapes alone (see onn.dry)");
    return t;
}

void keep_tensor(Tensor *t) { unlink_handle((Handle *)t); }

Tensor *optional_tensor(lua_State *L, int arg) { return lua_isnoneornil(L, arg) ? NULL : check_tensor(L, arg); }

Tensor *new_tensor(lua_State *L, Dtype dtype, int dims, const int64_t *shape) {
    Tensor *t = push_tensor(L);
    RUN(L, tensor_make_in(t, place, dtype, dims, shape));
    return t;
}

Tensor *new_values(lua_State *L, Dtype dtype, int dims, const int64_t *shape) {
    Tensor *t = push_tensor(L);
    RUN(L, tensor_make(t, dtype, dims, shape));
    return t;
}

Tensor *new_like(lua_State *L, const Tensor *like, Dtype dtype) {
    return new_tensor(L, dtype, like->view.dims, like->view.shape);
}

static int collapses(const View *v) {
    if (v->dims && v->shape[v->dims - 1] > 1 && v->stride[v->dims - 1] != 1)
        return 0;
    for (int i = 0; i + 2 < v->dims; i++)
        if (v->shape[i] > 1 && v->stride[i] != v->shape[i + 1] * v->stride[i + 1])
            return 0;
    return 1;
}

Tensor *rows_tensor(lua_State *L, int arg) {
    Tensor *t = check_tensor(L, arg);
    if (collapses(&t->view))
        return t;
    Tensor *copy = new_like(L, t, t->view.dtype);
    RUN(L, table->convert(&copy->view, &t->view));
    lua_replace(L, arg);
    return copy;
}

Dtype check_dtype(lua_State *L, int arg) {
    const char *name = luaL_checkstring(L, arg);
    int dtype = dtype_from_name(name);
    if (dtype < 0)
        luaL_argerror(L, arg, lua_pushfstring(L, "no dtype '%s': expected f32, bf16, f16, i8, u8, i32, i64 or bool", name));
    return (Dtype)dtype;
}

int check_shape(lua_State *L, int arg, int64_t shape[MAX_DIMS]) {
    int from_table = lua_istable(L, arg);
    int dims = from_table ? (int)lua_objlen(L, arg) : lua_gettop(L) - arg + 1;
    if (dims > MAX_DIMS)
        luaL_error(L, "a tensor has at most %d dimensions, not %d", MAX_DIMS, dims);
    for (int i = 0; i < dims; i++) {
        if (from_table)
            lua_rawgeti(L, arg, i + 1);
        int at = from_table ? lua_gettop(L) : arg + i;
        shape[i] = check_integer(L, at, -1, INT64_C(1) << 52);
        if (from_table)
            lua_pop(L, 1);
    }
    return dims;
}

static int l_new(lua_State *L) {
    int64_t shape[MAX_DIMS];
    Dtype dtype = check_dtype(L, 1);
    int dims = check_shape(L, 2, shape);
    new_tensor(L, dtype, dims, shape);
    return 1;
}

static int l_zeros(lua_State *L) {
    l_new(L);
    Tensor *t = check_tensor(L, -1);
    if (!tensor_phantom(t))
        memset(t->view.data, 0, tensor_bytes(t));
    return 1;
}

static double element(const View *v, const char *p) {
    switch (v->dtype) {
    case F32: { float x; memcpy(&x, p, 4); return (double)x; }
    case BF16: {
        uint16_t h;
        memcpy(&h, p, 2);
        uint32_t u = (uint32_t)h << 16;
        float x;
        memcpy(&x, &u, 4);
        return (double)x;
    }
    case I8: return *(const int8_t *)p;
    case U8: case BOOL: return *(const uint8_t *)p;
    case I32: { int32_t x; memcpy(&x, p, 4); return x; }
    case I64: { int64_t x; memcpy(&x, p, 8); return (double)x; }
    default: return NAN;
    }
}

static void push_element(lua_State *L, const View *v, const char *p) {
    if (v->dtype == BOOL)
        lua_pushboolean(L, *(const uint8_t *)p);
    else
        lua_pushnumber(L, element(v, p));
}

/* f16 is read through an f32 copy: only the kernels know its format. */
static Tensor *readable(lua_State *L, int arg) {
    Tensor *t = check_values(L, arg);
    if (t->view.dtype != F16)
        return t;
    Tensor *copy = new_values(L, F32, t->view.dims, t->view.shape);
    RUN(L, real->convert(&copy->view, &t->view));
    lua_replace(L, arg);
    return copy;
}

static int l_item(lua_State *L) {
    Tensor *t = readable(L, 1);
    if (view_count(&t->view) != 1)
        return luaL_error(L, "item() wants one element, this tensor has %d", (int)view_count(&t->view));
    push_element(L, &t->view, t->view.data);
    return 1;
}

static void push_nested(lua_State *L, const View *v, int dim, const char *p) {
    if (dim == v->dims) {
        push_element(L, v, p);
        return;
    }
    luaL_checkstack(L, 4, "tensor is nested too deep");
    lua_createtable(L, (int)(v->shape[dim] < INT32_MAX ? v->shape[dim] : 0), 0);
    for (int64_t i = 0; i < v->shape[dim]; i++) {
        push_nested(L, v, dim + 1, p + i * v->stride[dim] * (int64_t)dtype_size(v->dtype));
        lua_rawseti(L, -2, (int)(i + 1));
    }
}

static int l_totable(lua_State *L) {
    Tensor *t = readable(L, 1);
    push_nested(L, &t->view, 0, t->view.data);
    return 1;
}

/* Fills from nested tables, checking that every level has the size of the first. `at` is advanced in row-major order. */
static void read_nested(lua_State *L, int dim, int dims, const int64_t *shape, float *f, int32_t *n, int64_t *l, int64_t *at) {
    if (dim == dims) {
        double x = lua_isboolean(L, -1) ? lua_toboolean(L, -1) : luaL_checknumber(L, -1);
        if (f)
            f[*at] = (float)x;
        else if (x != floor(x) || fabs(x) > (n ? (double)INT32_MAX : 9007199254740992.0))
            luaL_error(L, "%f is not an integer of the dtype asked for", x);
        else if (n)
            n[*at] = (int32_t)x;
        else
            l[*at] = (int64_t)x;
        ++*at;
        return;
    }
    luaL_checkstack(L, 4, "table is nested too deep");
    if (!lua_istable(L, -1) || (int64_t)lua_objlen(L, -1) != shape[dim])
        luaL_error(L, "ragged table: level %d should hold %d values", dim + 1, (int)shape[dim]);
    for (int64_t i = 0; i < shape[dim]; i++) {
        lua_rawgeti(L, -1, (int)(i + 1));
        read_nested(L, dim + 1, dims, shape, f, n, l, at);
        lua_pop(L, 1);
    }
}

static int l_from_table(lua_State *L) {
    Dtype dtype = lua_isnoneornil(L, 2) ? F32 : check_dtype(L, 2);
    int64_t shape[MAX_DIMS], at = 0;
    int dims = 0;
    lua_settop(L, 2);
    lua_pushvalue(L, 1);
    while (lua_istable(L, -1)) {
        if (dims == MAX_DIMS)
            return luaL_error(L, "a tensor has at most %d dimensions", MAX_DIMS);
        shape[dims++] = (int64_t)lua_objlen(L, -1);
        lua_rawgeti(L, -1, 1);
    }
    lua_settop(L, 2);
    Dtype made = dtype == I32 || dtype == I64 || dtype == F32 ? dtype : F32;
    Tensor *t = new_values(L, made, dims, shape);
    lua_pushvalue(L, 1);
    read_nested(L, 0, dims, shape, made == F32 ? t->view.data : NULL, made == I32 ? t->view.data : NULL,
                made == I64 ? t->view.data : NULL, &at);
    lua_pop(L, 1);
    if (made != dtype) {
        Tensor *converted = new_values(L, dtype, dims, shape);
        RUN(L, real->convert(&converted->view, &t->view));
    }
    return 1;
}

static int l_free(lua_State *L) {
    Handle *h = luaL_checkudata(L, 1, CLASS);
    tensor_free(&h->tensor);
    return 0;
}

static int l_gc(lua_State *L) {
    Handle *h = luaL_checkudata(L, 1, CLASS);
    unlink_handle(h);
    tensor_free(&h->tensor);
    return 0;
}

static int l_shape(lua_State *L) {
    Tensor *t = check_view(L, 1);
    lua_createtable(L, t->view.dims, 0);
    for (int i = 0; i < t->view.dims; i++) {
        lua_pushnumber(L, (double)t->view.shape[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

static int l_size(lua_State *L) {
    Tensor *t = check_view(L, 1);
    int64_t dim = check_integer(L, 2, -t->view.dims, t->view.dims);
    if (!dim)
        return luaL_argerror(L, 2, "dimensions count from 1");
    lua_pushnumber(L, (double)t->view.shape[dim > 0 ? dim - 1 : t->view.dims + dim]);
    return 1;
}

static int l_dtype(lua_State *L) {
    lua_pushstring(L, dtype_name(check_view(L, 1)->view.dtype));
    return 1;
}

static int l_numel(lua_State *L) {
    lua_pushnumber(L, (double)view_count(&check_view(L, 1)->view));
    return 1;
}

static int l_bytes(lua_State *L) {
    lua_pushnumber(L, (double)tensor_bytes(check_view(L, 1)));
    return 1;
}

static int l_is_free(lua_State *L) {
    Tensor *t = luaL_checkudata(L, 1, CLASS);
    lua_pushboolean(L, !t->storage);
    return 1;
}

static int l_is_contiguous(lua_State *L) {
    lua_pushboolean(L, tensor_contiguous(check_view(L, 1)));
    return 1;
}

static Tensor *push_view(lua_State *L) {
    Tensor *base = check_view(L, 1);
    Tensor *t = push_tensor(L);
    tensor_share(t, base);
    return t;
}

static int l_view(lua_State *L) {
    int64_t shape[MAX_DIMS];
    int dims = check_shape(L, 2, shape);
    return done(L, tensor_reshape(push_view(L), dims, shape), 1);
}

static int l_expand(lua_State *L) {
    int64_t shape[MAX_DIMS];
    int dims = check_shape(L, 2, shape);
    return done(L, tensor_expand(push_view(L), dims, shape), 1);
}

static int l_narrow(lua_State *L) {
    int dim = (int)check_integer(L, 2, 1, MAX_DIMS);
    int64_t start = check_integer(L, 3, 1, INT64_C(1) << 52), length = check_integer(L, 4, 0, INT64_C(1) << 52);
    return done(L, tensor_narrow(push_view(L), dim - 1, start - 1, length), 1);
}

static int l_select(lua_State *L) {
    int dim = (int)check_integer(L, 2, 1, MAX_DIMS) - 1;
    int64_t at = check_integer(L, 3, 1, INT64_C(1) << 52);
    Tensor *t = push_view(L);
    done(L, tensor_narrow(t, dim, at - 1, 1), 0);
    for (int i = dim; i + 1 < t->view.dims; i++) {
        t->view.shape[i] = t->view.shape[i + 1];
        t->view.stride[i] = t->view.stride[i + 1];
    }
    t->view.dims--;
    return 1;
}

static int l_transpose(lua_State *L) {
    int first = (int)luaL_optinteger(L, 2, 1), second = (int)luaL_optinteger(L, 3, 2);
    return done(L, tensor_transpose(push_view(L), first - 1, second - 1), 1);
}

static int l_to(lua_State *L) {
    Tensor *t = check_tensor(L, 1);
    Dtype dtype = check_dtype(L, 2);
    if (dtype == t->view.dtype) {
        lua_settop(L, 1);
        return 1;
    }
    Tensor *y = new_like(L, t, dtype);
    RUN(L, table->convert(&y->view, &t->view));
    return 1;
}

static int l_clone(lua_State *L) {
    Tensor *t = check_tensor(L, 1), *y = new_like(L, t, t->view.dtype);
    RUN(L, table->convert(&y->view, &t->view));
    return 1;
}

static int l_contiguous(lua_State *L) {
    Tensor *t = check_tensor(L, 1);
    lua_settop(L, 1);
    return tensor_contiguous(t) ? 1 : l_clone(L);
}

static int l_copy(lua_State *L) {
    Tensor *t = check_tensor(L, 1), *source = check_tensor(L, 2), expanded;
    tensor_share(&expanded, source);
    Status status = tensor_expand(&expanded, t->view.dims, t->view.shape);
    if (status == OK)
        status = table->convert(&t->view, &expanded.view);
    tensor_free(&expanded);
    lua_settop(L, 1);
    return done(L, status, 1);
}

static int l_fill(lua_State *L) {
    Tensor *t = check_tensor(L, 1);
    RUN(L, table->fill(&t->view, luaL_checknumber(L, 2)));
    lua_settop(L, 1);
    return 1;
}

static int l_describe(lua_State *L) {
    char text[200];
    lua_pushstring(L, tensor_shape_text(check_view(L, 1), text, sizeof text));
    return 1;
}

/* Raw bytes of a contiguous tensor, and back: for files and hashes of small things. */
static int l_data(lua_State *L) {
    Tensor *t = check_values(L, 1);
    if (!tensor_contiguous(t))
        return luaL_error(L, "data() wants a contiguous tensor");
    lua_pushlstring(L, t->view.data, tensor_bytes(t));
    return 1;
}

static int l_from_data(lua_State *L) {
    size_t length;
    const char *bytes = luaL_checklstring(L, 1, &length);
    Dtype dtype = check_dtype(L, 2);
    int64_t shape[MAX_DIMS];
    int dims = check_shape(L, 3, shape);
    Tensor *t = new_values(L, dtype, dims, shape);
    if (tensor_bytes(t) != length)
        return luaL_error(L, "%d bytes do not fill a tensor of %d", (int)length, (int)tensor_bytes(t));
    memcpy(t->view.data, bytes, length);
    return 1;
}

static int l_scope_begin(lua_State *L) {
    if (depth == MAX_SCOPES)
        return luaL_error(L, "scopes are nested deeper than %d", MAX_SCOPES);
    depth++;
    return 0;
}

static void keep_value(lua_State *L, int arg, int to, int levels) {
    arg = arg < 0 ? lua_gettop(L) + arg + 1 : arg;
    if (lua_type(L, arg) == LUA_TUSERDATA && lua_getmetatable(L, arg)) {
        luaL_getmetatable(L, CLASS);
        if (lua_rawequal(L, -1, -2)) {
            Handle *h = lua_touserdata(L, arg);
            if (h->depth > to) {
                unlink_handle(h);
                link_handle(h, to);
            }
        }
        lua_pop(L, 2);
    } else if (lua_istable(L, arg) && levels) {
        luaL_checkstack(L, 6, "value is nested too deep");
        for (lua_pushnil(L); lua_next(L, arg); lua_pop(L, 1))
            keep_value(L, -1, to, levels - 1);
    }
}

/* scope_end(...) : frees what the innermost scope made, but for tensors among the arguments (also inside tables). */
static int l_scope_end(lua_State *L) {
    if (!depth)
        return luaL_error(L, "no scope is open");
    for (int i = 1; i <= lua_gettop(L); i++)
        keep_value(L, i, depth - 1, 16);
    while (scopes[depth]) {
        Handle *h = scopes[depth];
        unlink_handle(h);
        tensor_free(&h->tensor);
    }
    depth--;
    return 0;
}

static int l_keep(lua_State *L) {
    for (int i = 1; i <= lua_gettop(L); i++)
        keep_value(L, i, 0, 16);
    return lua_gettop(L);
}

/* serial() -> number of the newest tensor; serial(t) -> t's own: tells what was made since a moment. */
static int l_serial(lua_State *L) {
    lua_pushnumber(L, (double)(lua_isnoneornil(L, 1) ? last_serial : ((Handle *)luaL_checkudata(L, 1, CLASS))->serial));
    return 1;
}

static int l_is_tensor(lua_State *L) {
    int is = 0;
    if (lua_type(L, 1) == LUA_TUSERDATA && lua_getmetatable(L, 1)) {
        luaL_getmetatable(L, CLASS);
        is = lua_rawequal(L, -1, -2);
    }
    lua_pushboolean(L, is);
    return 1;
}

void tensors_dry(lua_State *L, int on) {
    for (lua_getfield(L, LUA_REGISTRYINDEX, HELD); held > 0; held--) { /* freed now, or the next dry run would see them go */
        lua_rawgeti(L, -1, held);
        Handle *h = lua_touserdata(L, -1);
        if (tensor_phantom(&h->tensor))
            tensor_free(&h->tensor);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    if (on)
        lua_newtable(L);
    else
        lua_pushnil(L);
    lua_setfield(L, LUA_REGISTRYINDEX, HELD);
    table = on ? backend_dry() : real;
    place = on ? memory_dry() : memory_cpu();
    memory_serve_kernels(place);
}

int bind_device(lua_State *L); /* adds to the table on the stack what concerns the device as a whole */

int bind_tensor(lua_State *L) {
    static const luaL_Reg methods[] = {
        {"__gc", l_gc}, {"free", l_free}, {"shape", l_shape}, {"size", l_size}, {"dtype", l_dtype}, {"numel", l_numel},
        {"bytes", l_bytes}, {"is_free", l_is_free}, {"is_contiguous", l_is_contiguous}, {"view", l_view},
        {"expand", l_expand}, {"narrow", l_narrow}, {"select", l_select}, {"transpose", l_transpose}, {"to", l_to},
        {"clone", l_clone}, {"contiguous", l_contiguous}, {"copy", l_copy}, {"fill", l_fill}, {"item", l_item},
        {"totable", l_totable}, {"describe", l_describe}, {"data", l_data}, {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"new", l_new}, {"zeros", l_zeros}, {"from_table", l_from_table}, {"from_data", l_from_data},
        {"scope_begin", l_scope_begin}, {"scope_end", l_scope_end}, {"keep", l_keep}, {"serial", l_serial}, {"is_tensor", l_is_tensor}, {NULL, NULL}};
    if (!(real = backend_cpu()))
        return luaL_error(L, "%s", status_message());
    tensors_dry(L, 0);
    new_class(L, CLASS, methods);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    luaL_getmetatable(L, CLASS);
    lua_setfield(L, -2, "class");
    return bind_device(L);
}
