#include "bind_ids.h"

#include <math.h>

#include "bind.h"

Ids *push_ids(lua_State *L) {
    Ids *ids = lua_newuserdata(L, sizeof *ids);
    *ids = (Ids){0};
    luaL_getmetatable(L, "onn.ids");
    lua_setmetatable(L, -2);
    return ids;
}

Ids *check_ids(lua_State *L, int arg) { return luaL_checkudata(L, arg, "onn.ids"); }

static Ids *is_ids(lua_State *L, int arg) {
    int same = 0;
    if (lua_isuserdata(L, arg) && lua_getmetatable(L, arg)) {
        luaL_getmetatable(L, "onn.ids");
        same = lua_rawequal(L, -1, -2);
        lua_pop(L, 2);
    }
    return same ? lua_touserdata(L, arg) : NULL;
}

void collect_ids(lua_State *L, int arg, Ids *out) {
    Ids *ids = is_ids(L, arg);
    if (ids) {
        done(L, ids_append(out, ids->data, ids->count), 0);
    } else if (lua_istable(L, arg)) {
        size_t n = lua_objlen(L, arg);
        for (size_t i = 1; i <= n; i++) {
            lua_rawgeti(L, arg, (int)i);
            double value = lua_isnumber(L, -1) ? lua_tonumber(L, -1) : NAN;
            if (!(value == floor(value)) || value < INT32_MIN || value > INT32_MAX)
                luaL_argerror(L, arg, lua_pushfstring(L, "element %d is no token id", (int)i));
            lua_pop(L, 1);
            done(L, ids_push(out, (int32_t)value), 0);
        }
    } else if (lua_type(L, arg) == LUA_TNUMBER) {
        done(L, ids_push(out, (int32_t)check_integer(L, arg, INT32_MIN, INT32_MAX)), 0);
    } else {
        luaL_argerror(L, arg, lua_pushfstring(L, "expected token ids, an array or a number, got %s", luaL_typename(L, arg)));
    }
}

static int l_gc(lua_State *L) {
    ids_free(check_ids(L, 1));
    return 0;
}

static int l_len(lua_State *L) {
    lua_pushnumber(L, (double)check_ids(L, 1)->count);
    return 1;
}

/* ids[i] -> number, nil past the ends; otherwise a method */
static int l_index(lua_State *L) {
    Ids *ids = check_ids(L, 1);
    if (lua_type(L, 2) == LUA_TNUMBER) {
        double i = lua_tonumber(L, 2);
        if (i >= 1 && i <= (double)ids->count && i == floor(i))
            lua_pushinteger(L, ids->data[(size_t)i - 1]);
        else
            lua_pushnil(L);
        return 1;
    }
    luaL_getmetatable(L, "onn.ids");
    lua_pushvalue(L, 2);
    lua_rawget(L, -2);
    return 1;
}

/* ids[i] = id, within 1..#ids */
static int l_newindex(lua_State *L) {
    Ids *ids = check_ids(L, 1);
    int64_t i = check_integer(L, 2, 1, (int64_t)ids->count);
    ids->data[i - 1] = (int32_t)check_integer(L, 3, INT32_MIN, INT32_MAX);
    return 0;
}

static int l_totable(lua_State *L) {
    Ids *ids = check_ids(L, 1);
    if (ids->count > INT32_MAX / 16)
        return luaL_error(L, "%f ids are too many for a table", (double)ids->count);
    lua_createtable(L, (int)ids->count, 0);
    for (size_t i = 0; i < ids->count; i++) {
        lua_pushinteger(L, ids->data[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* ids:append(ids, array or number) -> ids */
static int l_append(lua_State *L) {
    collect_ids(L, 2, check_ids(L, 1));
    lua_settop(L, 1);
    return 1;
}

/* ids:slice(i, j) -> a copy of i..j, both included; j defaults to the end; cut to what there is, negative from the end */
static int l_slice(lua_State *L) {
    Ids *ids = check_ids(L, 1);
    int64_t n = (int64_t)ids->count, limit = INT64_C(1) << 52;
    int64_t i = check_integer(L, 2, -limit, limit), j = lua_isnoneornil(L, 3) ? n : check_integer(L, 3, -limit, limit);
    i = i < 0 ? n + 1 + i : i;
    j = j < 0 ? n + 1 + j : j > n ? n : j;
    i = i < 1 ? 1 : i;
    Ids *part = push_ids(L);
    return done(L, i <= j ? ids_append(part, ids->data + i - 1, (size_t)(j - i + 1)) : OK, 1);
}

/* ids:concat([separator]) -> string of numbers, " " between them */
static int l_concat(lua_State *L) {
    Ids *ids = check_ids(L, 1);
    size_t n;
    const char *separator = luaL_optlstring(L, 2, " ", &n);
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    for (size_t i = 0; i < ids->count; i++) {
        char digits[12], *p = digits + sizeof digits;
        uint32_t value = ids->data[i] < 0 ? 0u - (uint32_t)ids->data[i] : (uint32_t)ids->data[i];
        do
            *--p = (char)('0' + value % 10);
        while (value /= 10);
        if (ids->data[i] < 0)
            *--p = '-';
        if (i)
            luaL_addlstring(&b, separator, n);
        luaL_addlstring(&b, p, (size_t)(digits + sizeof digits - p));
    }
    luaL_pushresult(&b);
    return 1;
}

void ids_class(lua_State *L) {
    static const luaL_Reg methods[] = {
        {"__gc", l_gc},       {"__len", l_len},       {"__index", l_index}, {"__newindex", l_newindex}, {"totable", l_totable},
        {"append", l_append}, {"slice", l_slice},     {"concat", l_concat}, {"free", l_gc},             {NULL, NULL},
    };
    new_class(L, "onn.ids", methods);
}
