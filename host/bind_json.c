/* onn.core.json: strict JSON to Lua values and back. null is json.null; arrays carry the mark json.array. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind.h"
#include "json.h"

#define ARRAY "onn.json.array"
#define TEXT "onn.json.text"

enum { MAX_NESTING = 64 }; /* what decode() accepts, so that whatever is written can be read */

/* --- decode ------------------------------------------------------------------------------------------------------- */

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

/* decode(text [, name]) -> value, or nil, message, code; `name` stands for the text in messages */
static int l_decode(lua_State *L) {
    size_t length;
    const char *text = luaL_checklstring(L, 1, &length), *name = luaL_optstring(L, 2, "JSON");
    cJSON *root;
    lua_pushcfunction(L, push_protected);
    Status status = json_parse(text, length, name, &root);
    if (status != OK)
        return outside(L, status, 0);
    lua_pushlightuserdata(L, root);
    int failed = lua_pcall(L, 1, 1, 0);
    cJSON_Delete(root);
    return failed ? lua_error(L) : 1;
}

/* --- encode ------------------------------------------------------------------------------------------------------- */

/* A growing text, owned by a userdata so that an error in the middle leaks nothing. */
typedef struct Text {
    char *data;
    size_t length, room;
    int pretty;
} Text;

static int l_text_free(lua_State *L) {
    Text *t = lua_touserdata(L, 1);
    free(t->data);
    t->data = NULL;
    return 0;
}

static void put(lua_State *L, Text *t, const char *data, size_t n) {
    if (t->room - t->length < n) {
        size_t room = (t->length + n) * 2;
        char *grown = realloc(t->data, room);
        if (!grown)
            luaL_error(L, "json.encode: out of memory");
        t->data = grown;
        t->room = room;
    }
    memcpy(t->data + t->length, data, n);
    t->length += n;
}

static void new_line(lua_State *L, Text *t, int depth) {
    if (!t->pretty)
        return;
    put(L, t, "\n", 1);
    for (int i = 0; i < depth; i++)
        put(L, t, "  ", 2);
}

/* Length of the well-formed UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_length(const unsigned char *p, size_t left) {
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

/* Bytes that are not UTF-8 become U+FFFD, as everywhere where text is shown; a key is refused instead, since two keys could
 * become one. */
static void put_string(lua_State *L, Text *t, int is_key) {
    size_t length, plain = 0; /* plain: from where the text is still to be copied as it is */
    const char *s = lua_tolstring(L, -1, &length);
    put(L, t, "\"", 1);
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)s[i];
        size_t n = utf8_length((const unsigned char *)s + i, length - i);
        if (n && c >= 0x20 && c != '"' && c != '\\') {
            i += n;
            continue;
        }
        put(L, t, s + plain, i - plain);
        plain = ++i;
        const char *from = "\"\\\b\f\n\r\t", *at = c && n ? strchr(from, c) : NULL;
        char escape[8];
        if (at)
            put(L, t, escape, (size_t)snprintf(escape, sizeof escape, "\\%c", "\"\\bfnrt"[at - from]));
        else if (n && (c || !is_key))
            put(L, t, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        else if (is_key)
            luaL_error(L, "json.encode: a key holds bytes that are not UTF-8 text");
        else
            put(L, t, "\xef\xbf\xbd", 3);
    }
    put(L, t, s + plain, length - plain);
    put(L, t, "\"", 1);
}

/* The shortest text that reads back as the same double; integers without a point. */
static void put_number(lua_State *L, Text *t, double value) {
    char text[40];
    int n = 0;
    if (!isfinite(value))
        luaL_error(L, "json.encode: a number that is not finite has no JSON form");
    if (value == floor(value) && fabs(value) < 9007199254740992.0)
        n = snprintf(text, sizeof text, "%.0f", value);
    for (int precision = 15; !n || (precision <= 17 && strtod(text, NULL) != value); precision++)
        n = snprintf(text, sizeof text, "%.*g", precision, value);
    put(L, t, text, (size_t)n);
}

static void put_value(lua_State *L, Text *t, int depth);

static int is_marked(lua_State *L) {
    if (!lua_getmetatable(L, -1))
        return 0;
    luaL_getmetatable(L, ARRAY);
    int same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return same;
}

static void put_array(lua_State *L, Text *t, int n, int depth) {
    put(L, t, "[", 1);
    for (int i = 1; i <= n; i++) {
        if (i > 1)
            put(L, t, ",", 1);
        new_line(L, t, depth);
        lua_rawgeti(L, -1, i);
        put_value(L, t, depth);
        lua_pop(L, 1);
    }
    if (n)
        new_line(L, t, depth - 1);
    put(L, t, "]", 1);
}

typedef struct Key {
    const char *text;
    size_t length;
} Key;

static int by_bytes(const void *a, const void *b) {
    const Key *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    return order ? order : x->length < y->length ? -1 : x->length > y->length;
}

/* Keys in byte order, so that the same value gives the same text. */
static void put_object(lua_State *L, Text *t, size_t count, int depth) {
    size_t n = 0;
    int table = lua_gettop(L);
    Key *keys = lua_newuserdata(L, (count + 1) * sizeof *keys);
    for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING)
            luaL_error(L, "json.encode: a table's keys should be all strings, or 1..n without gaps; one is %s",
                       lua_type(L, -2) == LUA_TNUMBER ? lua_pushfstring(L, "%f", lua_tonumber(L, -2)) : luaL_typename(L, -2));
        keys[n].text = lua_tolstring(L, -2, &keys[n].length);
        n++;
    }
    qsort(keys, n, sizeof *keys, by_bytes);
    put(L, t, "{", 1);
    for (size_t k = 0; k < n; k++) {
        if (k)
            put(L, t, ",", 1);
        new_line(L, t, depth);
        lua_pushlstring(L, keys[k].text, keys[k].length);
        put_string(L, t, 1);
        put(L, t, ": ", t->pretty ? 2 : 1);
        lua_rawget(L, table);
        put_value(L, t, depth);
        lua_pop(L, 1);
    }
    if (n)
        new_line(L, t, depth - 1);
    put(L, t, "}", 1);
    lua_pop(L, 1);
}

static void put_table(lua_State *L, Text *t, int depth) {
    size_t count = 0, n = lua_objlen(L, -1);
    if (depth > MAX_NESTING)
        luaL_error(L, "json.encode: nested deeper than %d, or a table that holds itself", MAX_NESTING);
    luaL_checkstack(L, 8, "json.encode: nested too deep");
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
        count++;
    if (count == n && (n || is_marked(L)))
        put_array(L, t, (int)n, depth);
    else
        put_object(L, t, count, depth);
}

/* The value on top of the stack, which stays there. */
static void put_value(lua_State *L, Text *t, int depth) {
    switch (lua_type(L, -1)) {
    case LUA_TNIL: put(L, t, "null", 4); break;
    case LUA_TBOOLEAN: put(L, t, lua_toboolean(L, -1) ? "true" : "false", lua_toboolean(L, -1) ? 4 : 5); break;
    case LUA_TNUMBER: put_number(L, t, lua_tonumber(L, -1)); break;
    case LUA_TSTRING: put_string(L, t, 0); break;
    case LUA_TTABLE: put_table(L, t, depth + 1); break;
    default:
        if (lua_type(L, -1) != LUA_TLIGHTUSERDATA || lua_touserdata(L, -1))
            luaL_error(L, "json.encode: a %s has no JSON form", luaL_typename(L, -1));
        put(L, t, "null", 4);
    }
}

/* encode(value [, {pretty = true}]) -> text; keys in byte order, so equal values give equal text */
static int l_encode(lua_State *L) {
    int pretty = 0;
    luaL_checkany(L, 1);
    if (!lua_isnoneornil(L, 2)) {
        luaL_checktype(L, 2, LUA_TTABLE);
        lua_getfield(L, 2, "pretty");
        pretty = lua_toboolean(L, -1);
    }
    lua_settop(L, 1);
    Text *t = lua_newuserdata(L, sizeof *t);
    *t = (Text){.pretty = pretty};
    luaL_getmetatable(L, TEXT);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, 1);
    put_value(L, t, 0);
    lua_pushlstring(L, t->data, t->length);
    free(t->data);
    t->data = NULL;
    return 1;
}

/* array(t) -> t, marked: written as [] even when empty */
static int l_array(lua_State *L) {
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    luaL_getmetatable(L, ARRAY);
    lua_setmetatable(L, 2);
    return 1;
}

int bind_json(lua_State *L) {
    static const luaL_Reg functions[] = {{"decode", l_decode}, {"encode", l_encode}, {NULL, NULL}};
    static const luaL_Reg text[] = {{"__gc", l_text_free}, {NULL, NULL}};
    new_class(L, TEXT, text);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushlightuserdata(L, NULL);
    lua_setfield(L, -2, "null");
    luaL_newmetatable(L, ARRAY); /* json.array is the mark itself and, called, sets it */
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, l_array);
    lua_setfield(L, -2, "__call");
    lua_setmetatable(L, -2);
    lua_setfield(L, -2, "array");
    return 1;
}
