/* onn.core.tensor, second part: the device's memory and threads, and dry runs, in which they are only counted. */
#include <math.h>

#include "bind_tensor.h"

/* memory() -> {used, cached, peak, budget} in bytes; in a dry run, of what it counts. So is reset_peak(). */
static int l_memory(lua_State *L) {
    MemoryInfo info = memory_info(tensors_pool());
    lua_createtable(L, 0, 4);
    lua_pushnumber(L, (double)info.used), lua_setfield(L, -2, "used");
    lua_pushnumber(L, (double)info.cached), lua_setfield(L, -2, "cached");
    lua_pushnumber(L, (double)info.peak), lua_setfield(L, -2, "peak");
    lua_pushnumber(L, info.budget == SIZE_MAX ? HUGE_VAL : (double)info.budget), lua_setfield(L, -2, "budget");
    return 1;
}

static int l_set_budget(lua_State *L) {
    double bytes = luaL_checknumber(L, 1);
    if (!(bytes > 0))
        return luaL_argerror(L, 1, "a budget is more than 0 bytes");
    memory_set_budget(memory_cpu(), bytes >= 9e18 ? SIZE_MAX : (size_t)bytes);
    return 0;
}

static int l_reset_peak(lua_State *L) {
    (void)L;
    memory_reset_peak(tensors_pool());
    return 0;
}

static int l_trim(lua_State *L) {
    (void)L;
    memory_trim(memory_cpu());
    return 0;
}

static int l_is_dry(lua_State *L) {
    lua_pushboolean(L, tensors_pool() == memory_dry());
    return 1;
}

/* dry_begin() : from now on new tensors are phantoms, counted apart, and operations compute nothing. Use onn.dry. */
static int l_dry_begin(lua_State *L) {
    if (tensors_pool() == memory_dry())
        return luaL_error(L, "a dry run within a dry run");
    tensors_dry(L, 1);
    return 0;
}

static int l_dry_end(lua_State *L) {
    tensors_dry(L, 0);
    return 0;
}

/* dry_flops() -> operations of all products that dry runs have met */
static int l_dry_flops(lua_State *L) {
    lua_pushnumber(L, backend_dry_flops());
    return 1;
}

static int l_set_threads(lua_State *L) {
    backend_set_threads((int)check_integer(L, 1, 1, 1024));
    return 0;
}

static int l_threads(lua_State *L) {
    lua_pushinteger(L, backend_threads());
    return 1;
}

static int l_backend(lua_State *L) {
    lua_pushstring(L, backend_describe());
    lua_pushboolean(L, backend_native_bf16());
    return 2;
}

int bind_device(lua_State *L);

int bind_device(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"memory", l_memory}, {"set_budget", l_set_budget}, {"reset_peak", l_reset_peak}, {"trim", l_trim},
        {"set_threads", l_set_threads}, {"threads", l_threads}, {"backend", l_backend}, {"is_dry", l_is_dry},
        {"dry_begin", l_dry_begin}, {"dry_end", l_dry_end}, {"dry_flops", l_dry_flops}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
    return 1;
}
