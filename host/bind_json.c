/* onn.core.json: strict JSON to Lua values and back. null is json.null; arrays carry json.array's metatable. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind.h"
#include "json.h"

#define ARRAY "onn.json.array"

static void push_value(lua_State *L, const cJSON *item) {
    luaL_checkstack(L, 6, "JSON is nested too deep");
    if (cJSON_IsString(item)) {
        lua_pushstring(L, item->valuestring);
    } else if (cJSON_IsNumber(item)) {
        lua_pushnumber(L, item->valuedouble);
    } else if (cJSON_IsBool(item)) {
        lua_pushboolean(L, cJSON_IsTrue(item));
    } else if (cJSON_IsArray(item)) {
        int i = 0;
        lua_newtable(L);
        luaL_getmetatable(L, ARRAY);
        lua_setmetatable(L, -2);
        for (const cJSON *c = item->child; c; c = c->next) {
            push_value(L, c);
            lua_rawseti(L, -2, ++i);
        }
    } else if (cJSON_IsObject(item)) {
        lua_newtable(L);
        for (const cJSON *c = item->child; c; c = c->next) {
            lua_pushstring(L, c->string);
            push_value(L, c);
            lua_rawset(L, -3);
        }
    } else {
        lua_pushlightuserdata(L, NULL);
    }
}

static int push_protected(lua_State *L) {
    push_value(L, lua_touserdata(L, 1));
    return 1;
}

/* decode(text, name) -> value, or nil, message, code */
static int l_decode(lua_State *L) {
    size_t length;
    const char *text = luaL_checklstring(L, 1, &length), *name = luaL_optstring(L, 2, "JSON");
    cJSON *root;
    Status status = json_parse(text, length, name, &root);
    if (status != OK)
        return outside(L, status, 0);
    lua_pushcfunction(L, push_protected);
    lua_pushlightuserdata(L, root);
    int failed = lua_pcall(L, 1, 1, 0);
    cJSON_Delete(root);
    return failed ? lua_error(L) : 1;
}

static int by_key(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static cJSON *build(lua_State *L, int depth, const char **problem);

static cJSON *build_array(lua_State *L, int depth, const char **problem) {
    cJSON *array = cJSON_CreateArray();
    int n = (int)lua_objlen(L, -1);
    for (int i = 1; i <= n && !*problem; i++) {
        lua_rawgeti(L, -1, i);
        cJSON *item = build(L, depth + 1, problem);
        lua_pop(L, 1);
        if (item && !cJSON_AddItemToArray(array, item))
            cJSON_Delete(item);
    }
    return array;
}

/* Keys in byte order, so that the same value gives the same text. */
static cJSON *build_object(lua_State *L, int depth, const char **problem) {
    cJSON *object = cJSON_CreateObject();
    size_t count = 0, i = 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
        count++;
    const char **keys = calloc(count + 1, sizeof *keys);
    if (!keys)
        *problem = "out of memory";
    for (lua_pushnil(L); keys && lua_next(L, -2); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING)
            *problem = "a table with keys that are neither 1..n nor strings has no JSON form";
        else if (i < count)
            keys[i++] = lua_tostring(L, -2);
    }
    if (keys && !*problem)
        qsort(keys, i, sizeof *keys, by_key);
    for (size_t k = 0; k < i && !*problem; k++) {
        lua_getfield(L, -1, keys[k]);
        cJSON *item = build(L, depth + 1, problem);
        lua_pop(L, 1);
        if (item && !cJSON_AddItemToObject(object, keys[k], item))
            cJSON_Delete(item);
    }
    free(keys);
    return object;
}

static int is_array(lua_State *L) {
    if (lua_objlen(L, -1) > 0)
        return 1;
    if (!lua_getmetatable(L, -1))
        return 0;
    luaL_getmetatable(L, ARRAY);
    int same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return same;
}

/* The value on top of the stack as cJSON; *problem is set where it has no JSON form. Raises nothing. */
static cJSON *build(lua_State *L, int depth, const char **problem) {
    if (depth > 60 || !lua_checkstack(L, 8)) {
        *problem = "nested too deep for JSON";
        return NULL;
    }
    switch (lua_type(L, -1)) {
    case LUA_TSTRING: return cJSON_CreateString(lua_tostring(L, -1));
    case LUA_TBOOLEAN: return cJSON_CreateBool(lua_toboolean(L, -1));
    case LUA_TNUMBER:
        if (!isfinite(lua_tonumber(L, -1)))
            *problem = "a number that is not finite has no JSON form";
        return cJSON_CreateNumber(lua_tonumber(L, -1));
    case LUA_TLIGHTUSERDATA:
    case LUA_TNIL: return cJSON_CreateNull();
    case LUA_TTABLE: return is_array(L) ? build_array(L, depth, problem) : build_object(L, depth, problem);
    default: *problem = "only nil, booleans, numbers, strings and tables have a JSON form"; return NULL;
    }
}

/* encode(value [, {pretty = true}]) -> text */
static int l_encode(lua_State *L) {
    luaL_checkany(L, 1);
    int pretty = 0;
    if (lua_istable(L, 2)) {
        lua_getfield(L, 2, "pretty");
        pretty = lua_toboolean(L, -1);
    }
    lua_settop(L, 1);
    const char *problem = NULL;
    cJSON *root = build(L, 0, &problem);
    char *text = root && !problem ? (pretty ? cJSON_Print(root) : cJSON_PrintUnformatted(root)) : NULL;
    cJSON_Delete(root);
    if (!text)
        return luaL_error(L, "json.encode: %s", problem ? problem : "out of memory");
    lua_pushstring(L, text);
    cJSON_free(text);
    return 1;
}

/* array(t) -> t, marked: written as [] even when empty */
static int l_array(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    luaL_getmetatable(L, ARRAY);
    lua_setmetatable(L, 1);
    return 1;
}

int bind_json(lua_State *L) {
    static const luaL_Reg functions[] = {{"decode", l_decode}, {"encode", l_encode}, {"array", l_array}, {NULL, NULL}};
    luaL_newmetatable(L, ARRAY);
    lua_pop(L, 1);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushlightuserdata(L, NULL);
    lua_setfield(L, -2, "null");
    return 1;
}
