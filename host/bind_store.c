/* onn.core.store: model files in Lua. A store is closed once and for all; its tensors are read on demand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bind_store.h"
#include "bind_tensor.h"

#define CLASS "onn.store"

typedef struct Handle {
    Store *store;
} Handle;

Store *check_store(lua_State *L, int arg) {
    Handle *h = luaL_checkudata(L, arg, CLASS);
    if (!h->store)
        luaL_argerror(L, arg, "this store has been closed");
    return h->store;
}

/* open(path) -> store, or nil, message, code */
static int l_open(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    Handle *h = lua_newuserdata(L, sizeof *h);
    h->store = NULL;
    luaL_getmetatable(L, CLASS);
    lua_setmetatable(L, -2);
    return outside(L, store_open(path, &h->store), 1);
}

static int l_close(lua_State *L) {
    Handle *h = luaL_checkudata(L, 1, CLASS);
    store_close(h->store);
    h->store = NULL;
    return 0;
}

static int l_names(lua_State *L) {
    Store *s = check_store(L, 1);
    lua_createtable(L, (int)store_count(s), 0);
    for (size_t i = 0; i < store_count(s); i++) {
        lua_pushstring(L, store_entry(s, i)->name);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* info(name) -> {name, dtype, shape, bytes, file}, or nil */
static int l_info(lua_State *L) {
    Store *s = check_store(L, 1);
    const Entry *e = store_find(s, luaL_checkstring(L, 2));
    if (!e)
        return 0;
    lua_createtable(L, 0, 5);
    lua_pushstring(L, e->name), lua_setfield(L, -2, "name");
    lua_pushstring(L, e->dtype), lua_setfield(L, -2, "dtype");
    lua_pushstring(L, store_path(s, e)), lua_setfield(L, -2, "file");
    lua_pushnumber(L, (double)e->bytes), lua_setfield(L, -2, "bytes");
    lua_createtable(L, e->dims, 0);
    for (int i = 0; i < e->dims; i++) {
        lua_pushnumber(L, (double)e->shape[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "shape");
    return 1;
}

static int l_metadata(lua_State *L) {
    size_t pairs;
    char *const *text = store_metadata(check_store(L, 1), &pairs);
    lua_newtable(L);
    for (size_t i = 0; i < pairs; i++) {
        lua_pushstring(L, text[2 * i + 1]);
        lua_setfield(L, -2, text[2 * i]);
    }
    return 1;
}

/* read(name [, dtype]) -> tensor, converted if another dtype is asked for; or nil, message, code */
static int l_read(lua_State *L) {
    Store *s = check_store(L, 1);
    const char *name = luaL_checkstring(L, 2);
    int wanted = lua_isnoneornil(L, 3) ? -1 : (int)check_dtype(L, 3);
    const Entry *e = store_find(s, name);
    if (!e)
        return outside(L, fail(ERR_FORMAT, "there is no tensor '%s' in the store", name), 0);
    int stored = dtype_from_name(e->dtype);
    if (stored < 0)
        return outside(L, fail(ERR_UNSUPPORTED, "%s: tensor '%s' is %s, which is not computed with", store_path(s, e), name, e->dtype), 0);
    Tensor *t = new_values(L, (Dtype)stored, e->dims, e->shape);
    Status status = store_read(s, e, 0, t->view.data, (size_t)e->bytes);
    if (status != OK || wanted < 0 || wanted == stored) {
        if (status != OK)
            tensor_free(t);
        return outside(L, status, 1);
    }
    Tensor *converted = new_like(L, t, (Dtype)wanted);
    RUN(L, backend()->convert(&converted->view, &t->view));
    tensor_free(t);
    return 1;
}

/* read_rows(name, ids) -> rows of a matrix by their numbers from 0, (n, width) in the stored dtype; or nil, message, code */
static int l_read_rows(lua_State *L) {
    Store *s = check_store(L, 1);
    const char *name = luaL_checkstring(L, 2);
    const Tensor *ids = check_values(L, 3);
    if (ids->view.dtype != I32 || !tensor_contiguous(ids))
        return luaL_argerror(L, 3, "ids are a contiguous tensor of i32");
    const Entry *e = store_find(s, name);
    if (!e)
        return outside(L, fail(ERR_FORMAT, "there is no tensor '%s' in the store", name), 0);
    int stored = dtype_from_name(e->dtype);
    if (stored < 0 || e->dims != 2)
        return outside(L, fail(ERR_UNSUPPORTED, "%s: tensor '%s' is %s in %d dimensions; rows are read of matrices that are computed with",
                               store_path(s, e), name, e->dtype, e->dims), 0);
    int64_t shape[2] = {view_count(&ids->view), e->shape[1]};
    Tensor *t = new_values(L, (Dtype)stored, 2, shape);
    Status status = store_read_rows(s, e, ids->view.data, (size_t)shape[0], t->view.data);
    if (status != OK)
        tensor_free(t);
    return outside(L, status, 1);
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* F16 names and so on are the format's spelling of our dtypes. */
static const char *format_name(Dtype dtype) {
    static const char *const names[] = {"F32", "BF16", "F16", "I8", "U8", "I32", "I64", "BOOL"};
    return names[dtype];
}

typedef struct Job {
    StoreWriter *writer;
    const char **names;
    int count;
} Job;

static Status write_all(lua_State *L, Job *job) {
    Status status = OK;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < job->count && status == OK; i++) {
            lua_getfield(L, 2, job->names[i]);
            Tensor *t = lua_touserdata(L, -1);
            lua_pop(L, 1);
            status = pass ? store_writer_put(job->writer, t->view.data, tensor_bytes(t))
                          : store_writer_declare(job->writer, job->names[i], format_name(t->view.dtype), t->view.dims, t->view.shape);
        }
    return status;
}

/* write(path, {name = tensor}, {key = text}) -> true, or nil, message, code. The file appears whole or not at all. */
static int l_write(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 3);
    lua_newtable(L); /* contiguous copies live here until the end */
    int count = 0;
    for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1), count++) {
        if (lua_type(L, -2) != LUA_TSTRING)
            return luaL_argerror(L, 2, "names are strings");
        int at = lua_gettop(L);
        if (!tensor_contiguous(check_values(L, at)))
            return luaL_error(L, "write: tensor '%s' is a view that is not contiguous", lua_tostring(L, -2));
    }
    Job job = {.names = lua_newuserdata(L, ((size_t)count + 1) * sizeof *job.names)};
    for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1))
        job.names[job.count++] = lua_tostring(L, -2);
    qsort(job.names, (size_t)job.count, sizeof *job.names, by_text);
    Status status = store_writer_open(path, &job.writer);
    if (status != OK)
        return outside(L, status, 0);
    if (lua_istable(L, 3))
        for (lua_pushnil(L); lua_next(L, 3); lua_pop(L, 1))
            if (status == OK && lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TSTRING)
                status = store_writer_metadata(job.writer, lua_tostring(L, -2), lua_tostring(L, -1));
    if (status == OK)
        status = write_all(L, &job);
    if (status == OK)
        status = store_writer_commit(job.writer);
    else
        store_writer_abort(job.writer);
    lua_pushboolean(L, 1);
    return outside(L, status, 1);
}

/* --- a file written tensor by tensor ---------------------------------------------------------------------------------------- */
#define WRITER "onn.store.writer"

typedef struct WriterHandle {
    StoreWriter *writer;
} WriterHandle;

static StoreWriter *check_writer(lua_State *L) {
    WriterHandle *h = luaL_checkudata(L, 1, WRITER);
    if (!h->writer)
        luaL_argerror(L, 1, "this writer has ended");
    return h->writer;
}

/* writer(path [, {key = text}]) -> writer, or nil, message, code. The file appears whole, at commit(), or not at all. */
static int l_writer(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    lua_settop(L, 2);
    WriterHandle *h = lua_newuserdata(L, sizeof *h);
    h->writer = NULL;
    luaL_getmetatable(L, WRITER);
    lua_setmetatable(L, -2);
    Status status = store_writer_open(path, &h->writer);
    if (status == OK && lua_istable(L, 2))
        for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1))
            if (status == OK && lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TSTRING)
                status = store_writer_metadata(h->writer, lua_tostring(L, -2), lua_tostring(L, -1));
    return outside(L, status, 1);
}

/* declare(name, dtype, shape): every tensor, before the first put(). */
static int l_declare(lua_State *L) {
    StoreWriter *w = check_writer(L);
    const char *name = luaL_checkstring(L, 2);
    Dtype dtype = check_dtype(L, 3);
    luaL_checktype(L, 4, LUA_TTABLE);
    int64_t shape[8];
    size_t dims = lua_objlen(L, 4);
    if (dims > sizeof shape / sizeof *shape)
        return luaL_argerror(L, 4, "more dimensions than a tensor has");
    for (size_t i = 0; i < dims; i++, lua_pop(L, 1)) {
        lua_rawgeti(L, 4, (int)i + 1);
        shape[i] = (int64_t)luaL_checknumber(L, -1);
    }
    lua_pushboolean(L, 1);
    return outside(L, store_writer_declare(w, name, format_name(dtype), (int)dims, shape), 1);
}

/* put(tensor): the next of the declared tensors, or its next rows. */
static int l_put(lua_State *L) {
    StoreWriter *w = check_writer(L);
    const Tensor *t = check_values(L, 2);
    if (!tensor_contiguous(t))
        return luaL_argerror(L, 2, "a contiguous tensor is written");
    lua_pushboolean(L, 1);
    return outside(L, store_writer_put(w, t->view.data, tensor_bytes(t)), 1);
}

static int l_commit(lua_State *L) {
    StoreWriter *w = check_writer(L);
    ((WriterHandle *)lua_touserdata(L, 1))->writer = NULL;
    lua_pushboolean(L, 1);
    return outside(L, store_writer_commit(w), 1);
}

static int l_abort(lua_State *L) {
    WriterHandle *h = luaL_checkudata(L, 1, WRITER);
    store_writer_abort(h->writer);
    h->writer = NULL;
    return 0;
}

int bind_store(lua_State *L) {
    static const luaL_Reg methods[] = {{"__gc", l_close}, {"close", l_close}, {"names", l_names}, {"info", l_info},
                                       {"metadata", l_metadata}, {"read", l_read}, {"read_rows", l_read_rows}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"open", l_open}, {"write", l_write}, {"writer", l_writer}, {NULL, NULL}};
    static const luaL_Reg writing[] = {{"__gc", l_abort}, {"abort", l_abort}, {"declare", l_declare}, {"put", l_put}, {"commit", l_commit},
                                       {NULL, NULL}};
    new_class(L, CLASS, methods);
    new_class(L, WRITER, writing);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
