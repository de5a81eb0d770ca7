/* Tensors as Lua sees them, for the bindings that take or make them. */
#ifndef ONN_BIND_TENSOR_H
#define ONN_BIND_TENSOR_H

#include "bind.h"
#include "tensor.h"

/* check_tensor() : argument `arg` as a live tensor; raises on anything else, on a freed one and on one that is not in memory now.
 * In a dry run it may be a phantom (tensor_phantom()), for operations alone: check_values() is for whoever reads its elements. */
Tensor *check_tensor(lua_State *L, int arg);
Tensor *check_values(lua_State *L, int arg);
/* optional_tensor() : the same, NULL for nil or none. */
Tensor *optional_tensor(lua_State *L, int arg);

/* push_tensor() : an empty handle owned by Lua and by the current scope, before anything can fail. */
Tensor *push_tensor(lua_State *L);

/* keep_tensor() : takes a pushed handle out of its scope, which then leaves it alone. */
void keep_tensor(Tensor *t);

/* new_tensor() : pushes a fresh tensor. Over budget it collects garbage once, tries again, then raises. */
Tensor *new_tensor(lua_State *L, Dtype dtype, int dims, const int64_t *shape);
/* new_values() : the same for elements that are known: real in a dry run too, where all else is a phantom. */
Tensor *new_values(lua_State *L, Dtype dtype, int dims, const int64_t *shape);
/* new_like() : new_tensor() with `like`'s shape. */
Tensor *new_like(lua_State *L, const Tensor *like, Dtype dtype);

/* rows_tensor() : argument `arg` with its last dimension contiguous and the leading ones collapsible, as kernels want it;
 * other views are replaced on the stack by a copy. */
Tensor *rows_tensor(lua_State *L, int arg);

Dtype check_dtype(lua_State *L, int arg);

/* check_shape() : sizes from a table or from all arguments from `arg` on; returns the number of dimensions. -1 is let through. */
int check_shape(lua_State *L, int arg, int64_t shape[MAX_DIMS]);

/* RUN() : a status-returning call; out of memory collects garbage once and repeats it, then failure raises. */
#define RUN(L, call) \
    do { \
        Status run_status = (call); \
        if (run_status == ERR_MEMORY) { \
            lua_gc(L, LUA_GCCOLLECT, 0); \
            run_status = (call); \
        } \
        done(L, run_status, 0); \
    } while (0)

/* backend() : the table of the device in use; set when the bindings are opened. tensors_pool() : where new tensors lie. */
const Backend *backend(void);
Memory *tensors_pool(void);

/* tensors_dry() : with `on`, new tensors and scratch are counted in memory_dry() and backend() computes nothing; else as ever. Phantoms that
 * an earlier dry run left are freed. */
void tensors_dry(lua_State *L, int on);

#endif
