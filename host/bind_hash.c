/* onn.core.hash: XXH3 with 128 bits, as 32 hexadecimal digits: names for what was computed from something, and checksums. */
#include <stdio.h>
#include <xxhash.h>

#include "bind_tensor.h"

static void push_hash(lua_State *L, XXH128_hash_t h) {
    char hex[33];
    snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
    lua_pushlstring(L, hex, 32);
}

/* text(string) -> hash */
static int l_text(lua_State *L) {
    size_t length;
    const char *text = luaL_checklstring(L, 1, &length);
    push_hash(L, XXH3_128bits(text, length));
    return 1;
}

/* data(tensor) -> hash of its bytes; it lies contiguously */
static int l_data(lua_State *L) {
    Tensor *t = check_values(L, 1);
    if (!tensor_contiguous(t))
        return luaL_argerror(L, 1, "a contiguous tensor is expected");
    push_hash(L, XXH3_128bits(t->view.data, tensor_bytes(t)));
    return 1;
}

static Tensor *check_row(lua_State *L, int arg) {
    Tensor *t = check_values(L, arg);
    if (t->view.dtype != I32 || t->view.dims != 1 || !tensor_contiguous(t))
        luaL_argerror(L, arg, "an i32 tensor of one dimension is expected");
    return t;
}

/* sequences(ids, starts [, seed]) -> {hash of each sequence's ids}. ids i32 (tokens), starts i32 (sequences + 1): sequence i is
 * tokens starts[i] to starts[i + 1]. */
static int l_sequences(lua_State *L) {
    const Tensor *ids = check_row(L, 1), *starts = check_row(L, 2);
    uint64_t seed = lua_isnoneornil(L, 3) ? 0 : (uint64_t)check_integer(L, 3, 0, INT64_C(1) << 52);
    const int32_t *id = ids->view.data, *at = starts->view.data;
    int64_t n = starts->view.shape[0] - 1;
    for (int64_t i = 0; i <= n; i++)
        if (at[i] < (i ? at[i - 1] : 0) || at[i] > ids->view.shape[0])
            return luaL_error(L, "sequence %d: starts are not ascending numbers of the %d tokens", (int)i + 1, (int)ids->view.shape[0]);
    lua_createtable(L, n > 0 ? (int)n : 0, 0);
    for (int64_t i = 0; i < n; i++) {
        push_hash(L, XXH3_128bits_withSeed(id + at[i], (size_t)(at[i + 1] - at[i]) * sizeof *id, seed));
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

int bind_hash(lua_State *L) {
    static const luaL_Reg functions[] = {{"text", l_text}, {"data", l_data}, {"sequences", l_sequences}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
