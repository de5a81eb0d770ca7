/* The Lua class onn.ids: token ids in a C buffer. */
#ifndef ONN_BIND_IDS_H
#define ONN_BIND_IDS_H

#include <lua.h>

#include "ids.h"

/* ids_class() : registers the class; free to call again. */
void ids_class(lua_State *L);

/* push_ids() : a new, empty buffer on the stack, owned by Lua. */
Ids *push_ids(lua_State *L);

/* check_ids() : argument `arg` as ids; raises if it is something else. */
Ids *check_ids(lua_State *L, int arg);

/* collect_ids() : appends argument `arg` to `out`: ids, an array of integers, or one integer; raises on anything else. */
void collect_ids(lua_State *L, int arg, Ids *out);

#endif
