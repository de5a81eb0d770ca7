#include <string.h>

#include "bind.h"
#include "bind_ids.h"
#include "tokenizer.h"

/* Userdata hold a pointer that is NULL once freed; a stream's environment keeps its tokenizer alive. */
typedef struct Stream {
    TokenStream *stream;
    Bytes piece;
} Stream;

static Tokenizer *check_tokenizer(lua_State *L) {
    Tokenizer **t = luaL_checkudata(L, 1, "onn.tokenizer");
    if (!*t)
        luaL_argerror(L, 1, "the tokenizer was freed");
    return *t;
}

/* An options table at `arg`, or nothing: each key must be among `names`; its truth goes to the same place in `values`. */
static void check_options(lua_State *L, int arg, const char *const *names, int *values) {
    if (lua_isnoneornil(L, arg))
        return;
    luaL_checktype(L, arg, LUA_TTABLE);
    lua_pushnil(L);
    while (lua_next(L, arg)) {
        const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
        int i = 0;
        while (names[i] && strcmp(names[i], key))
            i++;
        if (!names[i])
            luaL_argerror(L, arg, lua_pushfstring(L, "unknown option '%s'", key));
        values[i] = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
}

/* load(text, name) -> tokenizer; nil, message, code */
static int l_load(lua_State *L) {
    size_t n;
    const char *text = luaL_checklstring(L, 1, &n), *name = luaL_optstring(L, 2, "tokenizer.json");
    Tokenizer **t = lua_newuserdata(L, sizeof *t);
    *t = NULL;
    luaL_getmetatable(L, "onn.tokenizer");
    lua_setmetatable(L, -2);
    return outside(L, tokenizer_load(text, n, name, t), 1);
}

static int l_free(lua_State *L) {
    Tokenizer **t = luaL_checkudata(L, 1, "onn.tokenizer");
    tokenizer_free(*t);
    *t = NULL;
    return 0;
}

/* tok:encode(text, { special = true, bos = false, add_special_tokens = false, pair = nil }) -> ids;
 * with add_special_tokens also the segment (token type) of each id, and `pair` may hold a second text */
static int l_encode(lua_State *L) {
    static const char *const names[] = {"special", "bos", "add_special_tokens", "pair", NULL};
    Tokenizer *t = check_tokenizer(L);
    size_t n, pair_length = 0;
    const char *text = luaL_checklstring(L, 2, &n), *pair = NULL;
    int values[] = {1, 0, 0, 0};
    check_options(L, 3, names, values);
    if (values[3]) {
        lua_settop(L, 3);
        lua_getfield(L, 3, "pair"); /* stays on the stack while its bytes are read */
        if (lua_type(L, 4) != LUA_TSTRING)
            luaL_argerror(L, 3, "the option 'pair' is no text");
        pair = lua_tolstring(L, 4, &pair_length);
    }
    if (pair && !values[2])
        luaL_argerror(L, 3, "the option 'pair' needs add_special_tokens");
    if (values[1] && values[2])
        luaL_argerror(L, 3, "of the options bos and add_special_tokens one excludes the other");
    Ids *ids = push_ids(L);
    int flags = (values[0] ? ENCODE_SPECIAL : 0) | (values[1] ? ENCODE_BOS : 0);
    if (!values[2])
        return done(L, tokenizer_encode(t, text, n, flags, ids), 1);
    Ids *types = push_ids(L);
    return done(L, tokenizer_encode_framed(t, text, n, pair, pair_length, flags, ids, types), 2);
}

/* tok:decode(ids, { skip_special = true }) -> text */
static int l_decode(lua_State *L) {
    static const char *const names[] = {"skip_special", NULL};
    Tokenizer *t = check_tokenizer(L);
    int skip = 1;
    check_options(L, 3, names, &skip);
    Ids *ids = push_ids(L); /* a copy, so that an array and one number serve as well */
    collect_ids(L, 2, ids);
    Bytes text = {0};
    Status status = tokenizer_decode(t, ids->data, ids->count, skip, &text);
    if (status == OK)
        lua_pushlstring(L, text.data ? text.data : "", text.length);
    bytes_free(&text);
    return done(L, status, 1);
}

/* tok:stream({ skip_special = true }) -> stream */
static int l_stream(lua_State *L) {
    static const char *const names[] = {"skip_special", NULL};
    Tokenizer *t = check_tokenizer(L);
    int skip = 1;
    check_options(L, 2, names, &skip);
    Stream *s = lua_newuserdata(L, sizeof *s);
    *s = (Stream){0};
    luaL_getmetatable(L, "onn.token_stream");
    lua_setmetatable(L, -2);
    lua_createtable(L, 1, 0);
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
    return done(L, tokenizer_stream(t, skip, &s->stream), 1);
}

static Stream *check_stream(lua_State *L) {
    Stream *s = luaL_checkudata(L, 1, "onn.token_stream");
    lua_getfenv(L, 1);
    lua_rawgeti(L, -1, 1);
    Tokenizer **t = lua_touserdata(L, -1);
    lua_pop(L, 2);
    if (!s->stream || !t || !*t)
        luaL_argerror(L, 1, "the stream or its tokenizer was freed");
    s->piece.length = 0;
    return s;
}

static int give_piece(lua_State *L, Stream *s, Status status) {
    if (status == OK)
        lua_pushlstring(L, s->piece.data ? s->piece.data : "", s->piece.length);
    return done(L, status, 1);
}

/* stream:push(id) -> the text that is certain now, may be "" */
static int l_push(lua_State *L) {
    Stream *s = check_stream(L);
    return give_piece(L, s, token_stream_push(s->stream, (int32_t)check_integer(L, 2, INT32_MIN, INT32_MAX), &s->piece));
}

/* stream:finish() -> the rest; the stream begins anew */
static int l_finish(lua_State *L) {
    Stream *s = check_stream(L);
    return give_piece(L, s, token_stream_finish(s->stream, &s->piece));
}

static int l_stream_free(lua_State *L) {
    Stream *s = luaL_checkudata(L, 1, "onn.token_stream");
    token_stream_free(s->stream);
    s->stream = NULL;
    bytes_free(&s->piece);
    return 0;
}

/* tok:id(text) -> id or nil */
static int l_id(lua_State *L) {
    Tokenizer *t = check_tokenizer(L);
    size_t n;
    const char *text = luaL_checklstring(L, 2, &n);
    int32_t id = tokenizer_id(t, text, n);
    if (id < 0)
        lua_pushnil(L);
    else
        lua_pushinteger(L, id);
    return 1;
}

/* tok:token(id) -> the token as the file spells it, whether it is special; nil if there is none */
static int l_token(lua_State *L) {
    Tokenizer *t = check_tokenizer(L);
    int64_t id = check_integer(L, 2, INT32_MIN, INT32_MAX);
    size_t n;
    const char *text = tokenizer_token(t, id, &n);
    if (!text)
        return lua_pushnil(L), 1;
    lua_pushlstring(L, text, n);
    lua_pushboolean(L, tokenizer_special(t, id));
    return 2;
}

/* tok:size() -> a number that all ids are below */
static int l_size(lua_State *L) {
    lua_pushinteger(L, tokenizer_size(check_tokenizer(L)));
    return 1;
}

/* tok:prefix() -> ids that { bos = true } puts first */
static int l_prefix(lua_State *L) {
    const Ids *prefix = tokenizer_prefix(check_tokenizer(L));
    return done(L, ids_append(push_ids(L), prefix->data, prefix->count), 1);
}

/* ids(array, ids or number or nothing) -> a new buffer */
static int l_ids(lua_State *L) {
    lua_settop(L, 1);
    Ids *ids = push_ids(L);
    if (!lua_isnil(L, 1))
        collect_ids(L, 1, ids);
    return 1;
}

int bind_tokenizer(lua_State *L) {
    static const luaL_Reg tokenizer[] = {
        {"__gc", l_free},     {"free", l_free}, {"encode", l_encode}, {"decode", l_decode}, {"stream", l_stream},
        {"id", l_id},         {"token", l_token}, {"size", l_size},   {"prefix", l_prefix}, {NULL, NULL},
    };
    static const luaL_Reg stream[] = {
        {"__gc", l_stream_free}, {"free", l_stream_free}, {"push", l_push}, {"finish", l_finish}, {NULL, NULL},
    };
    static const luaL_Reg module[] = {{"load", l_load}, {"ids", l_ids}, {NULL, NULL}};
    ids_class(L);
    new_class(L, "onn.tokenizer", tokenizer);
    new_class(L, "onn.token_stream", stream);
    lua_newtable(L);
    luaL_register(L, NULL, module);
    return 1;
}
