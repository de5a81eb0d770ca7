/* Shape and dtype checks that the operations' bindings share. Each raises, naming what was expected and what came. */
#ifndef ONN_BIND_SHAPES_H
#define ONN_BIND_SHAPES_H

#include "bind_tensor.h"

#define NO_INDEX INT64_MIN /* as `except`: none */

Tensor *float_tensor(lua_State *L, int arg);                                   /* f32 or bf16, any strides */
Tensor *float_rows(lua_State *L, int arg);                                     /* f32 or bf16, rows as kernels want them */
void same_shape(lua_State *L, int arg, const Tensor *t, const Tensor *like);   /* shape and dtype */
Tensor *check_vector(lua_State *L, int arg, Dtype dtype, int64_t size);        /* contiguous, `size` elements */
Tensor *optional_vector(lua_State *L, int arg, Dtype dtype, int64_t size);     /* NULL for nil */
Tensor *check_starts(lua_State *L, int arg, int64_t tokens);                   /* 0 = starts[0] <= ... = tokens */
Tensor *optional_starts(lua_State *L, int arg, int64_t tokens);
Tensor *check_index(lua_State *L, int arg, int64_t count, int64_t limit, int64_t except); /* i32 in 0..limit-1 or `except` */
Dtype check_float_dtype(lua_State *L, int arg, Dtype missing);                 /* f32 or bf16; `missing` for nil */
const View *view_of(const Tensor *t);                                          /* NULL for NULL */

#endif
