/* What the bind_*.c files share: how a Status becomes a Lua error or `nil, message, code`, and argument checks. */
#ifndef ONN_BIND_H
#define ONN_BIND_H

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>

#include "status.h"

/* done() : misuse and exhausted memory. OK returns `results`, the number of values already pushed; anything else raises. */
int done(lua_State *L, Status status, int results);

/* outside() : the outside world (files, devices). OK returns `results`; anything else pushes nil, message, code. */
int outside(lua_State *L, Status status, int results);

/* check_integer() : argument `arg` as an integer in [low, high]; raises on fractions and out of range. */
int64_t check_integer(lua_State *L, int arg, int64_t low, int64_t high);

/* new_class() : registers metatable `name` whose __index is itself, with these methods (metamethods included);
 * leaves nothing on the stack. */
void new_class(lua_State *L, const char *name, const luaL_Reg *methods);

/* One opener per binding; each leaves one table of functions on the stack, which main.c puts into package.loaded
 * under "onn.core.<noun>". */
int bind_json(lua_State *L);
int bind_hash(lua_State *L);
int bind_spill(lua_State *L);
int bind_store(lua_State *L);
int bind_stream(lua_State *L);
int bind_system(lua_State *L);
int bind_tensor(lua_State *L);
int bind_ops(lua_State *L);
int bind_tokenizer(lua_State *L);
int bind_corpus(lua_State *L);
int bind_regex(lua_State *L);
int bind_picture(lua_State *L);

#endif
