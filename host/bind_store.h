/* Stores as Lua sees them, for the bindings that take one. */
#ifndef ONN_BIND_STORE_H
#define ONN_BIND_STORE_H

#include "bind.h"
#include "store.h"

/* check_store() : argument `arg` as an open store; raises on anything else and on a closed one. */
Store *check_store(lua_State *L, int arg);

#endif
