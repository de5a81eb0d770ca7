#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bind.h"
#include "terminal.h"

static int completer_ref = LUA_NOREF;

/* terminal.isatty(fd) -> boolean; 0 standard input, 1 output, 2 error */
static int l_isatty(lua_State *L) {
    lua_pushboolean(L, isatty((int)check_integer(L, 1, 0, 2)));
    return 1;
}

static int l_columns(lua_State *L) {
    lua_pushinteger(L, terminal_columns());
    return 1;
}

/* terminal.read(prompt) -> line; nil at the end; false when Ctrl-C cancelled it */
static int l_read(lua_State *L) {
    const char *line = NULL;
    switch (terminal_read(luaL_checkstring(L, 1), &line)) {
    case LINE_READ: lua_pushstring(L, line); break;
    case LINE_END: lua_pushnil(L); break;
    case LINE_CANCELLED: lua_pushboolean(L, 0); break;
    }
    return 1;
}

static char *copy_string(lua_State *L, int index) {
    return lua_isstring(L, index) ? strdup(lua_tostring(L, index)) : NULL;
}

/* Runs inside libedit: no error may leave it. */
static void complete(void *context, const char *before, char **insert, char **show) {
    lua_State *L = context;
    lua_rawgeti(L, LUA_REGISTRYINDEX, completer_ref);
    lua_pushstring(L, before);
    if (lua_pcall(L, 1, 2, 0) == 0) {
        *insert = copy_string(L, -2);
        *show = copy_string(L, -1);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

/* terminal.complete(f): f(line up to the cursor) -> text to insert or nil, text to show or nil */
static int l_complete(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    luaL_unref(L, LUA_REGISTRYINDEX, completer_ref);
    completer_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    terminal_complete(complete, L);
    return 0;
}

static int l_history(lua_State *L) {
    terminal_history(luaL_checkstring(L, 1));
    return 0;
}

static int l_remember(lua_State *L) {
    terminal_remember(luaL_checkstring(L, 1));
    return 0;
}

static int l_close(lua_State *L) {
    (void)L;
    terminal_close();
    return 0;
}

int bind_terminal(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"isatty", l_isatty},   {"columns", l_columns},   {"read", l_read},   {"complete", l_complete},
        {"history", l_history}, {"remember", l_remember}, {"close", l_close}, {NULL, NULL},
    };
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_newuserdata(L, 0); /* closes the terminal with the state, also after os.exit at the prompt */
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, l_close);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    luaL_ref(L, LUA_REGISTRYINDEX);
    return 1;
}
