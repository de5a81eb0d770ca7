#include "bind.h"
#include "signals.h"

/* signals.pending() -> number of the signal that asked to stop, or false */
static int l_pending(lua_State *L) {
    int number = signal_pending();
    if (number)
        lua_pushinteger(L, number);
    else
        lua_pushboolean(L, 0);
    return 1;
}

/* signals.handle(on): true = this program polls pending() and ends by itself */
static int l_handle(lua_State *L) {
    luaL_checktype(L, 1, LUA_TBOOLEAN);
    signals_handle(lua_toboolean(L, 1));
    return 0;
}

static int l_clear(lua_State *L) {
    (void)L;
    signals_clear();
    return 0;
}

int bind_signals(lua_State *L) {
    static const luaL_Reg functions[] = {{"pending", l_pending}, {"handle", l_handle}, {"clear", l_clear}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
