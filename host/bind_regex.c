/* onn.core.regex: patterns that files bring along, such as the keys of an adapter's rank_pattern. */
#include <lauxlib.h>

#include "bind.h"
#include "regex.h"

/* match(pattern, text) -> whether the pattern occurs in the text; nil, message, code if it is no pattern. */
static int l_match(lua_State *L) {
    size_t n, length, start, end;
    const char *pattern = luaL_checklstring(L, 1, &n), *text = luaL_checklstring(L, 2, &length);
    Regex *regex;
    int found = 0;
    Status status = regex_compile(pattern, n, "pattern", &regex);
    if (status == OK) {
        status = regex_find(regex, text, length, 0, &found, &start, &end);
        regex_free(regex);
    }
    if (status == OK)
        lua_pushboolean(L, found);
    return outside(L, status, 1);
}

int bind_regex(lua_State *L) {
    static const luaL_Reg functions[] = {{"match", l_match}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
