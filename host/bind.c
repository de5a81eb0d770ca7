#include "bind.h"

#include <math.h>

int done(lua_State *L, Status status, int results) {
    if (status == OK)
        return results;
    return luaL_error(L, "%s", status_message());
}

int outside(lua_State *L, Status status, int results) {
    if (status == OK)
        return results;
    lua_pushnil(L);
    lua_pushstring(L, status_message());
    lua_pushstring(L, status_name(status));
    return 3;
}

int64_t check_integer(lua_State *L, int arg, int64_t low, int64_t high) {
    double value = luaL_checknumber(L, arg);
    if (!(value == floor(value)) || value < (double)low || value > (double)high)
        luaL_argerror(L, arg, lua_pushfstring(L, "expected an integer from %f to %f, got %f", (double)low, (double)high, value));
    return (int64_t)value;
}

void new_class(lua_State *L, const char *name, const luaL_Reg *methods) {
    luaL_newmetatable(L, name);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    for (; methods->name; methods++) {
        lua_pushcfunction(L, methods->func);
        lua_setfield(L, -2, methods->name);
    }
    lua_pop(L, 1);
}
