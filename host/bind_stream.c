/* onn.core.stream: the chunk ring in Lua. Units and slots count from 1. */
#include <stdlib.h>
#include <string.h>

#include "bind_store.h"
#include "bind_tensor.h"
#include "ring.h"
#include "stream.h"

#define CLASS "onn.stream"

enum { MOST_SLOTS = 1 << 20, MOST_UNITS = 1 << 24 };

typedef struct Handle {
    Stream *stream;
} Handle;

static Stream *check_stream(lua_State *L) {
    Handle *h = luaL_checkudata(L, 1, CLASS);
    if (!h->stream)
        luaL_argerror(L, 1, "this stream has been closed");
    return h->stream;
}

static size_t check_unit(lua_State *L, int arg, size_t units) {
    double unit = luaL_checknumber(L, arg);
    if (!(unit >= 1 && unit <= (double)units) || unit != (double)(size_t)unit)
        luaL_error(L, "there is no unit %f: the stream has units 1 to %d", unit, (int)units);
    return (size_t)unit - 1;
}

/* An integer of the table on top of the stack; `absent` where the key is not there. */
static int64_t integer_field(lua_State *L, const char *key, int64_t low, int64_t absent) {
    lua_getfield(L, -1, key);
    double value = lua_isnil(L, -1) ? (double)absent : lua_isnumber(L, -1) ? lua_tonumber(L, -1) : 0.5;
    if (!lua_isnil(L, -1) && (value != (double)(int64_t)value || value < (double)low || value > 9007199254740992.0))
        luaL_error(L, "%s: expected an integer from %d", key, (int)low);
    lua_pop(L, 1);
    return (int64_t)value;
}

static int boolean_field(lua_State *L, int table, const char *key) {
    lua_getfield(L, table, key);
    int on = lua_isnil(L, -1) || lua_toboolean(L, -1);
    lua_pop(L, 1);
    return on;
}

typedef struct Units {
    Unit *list;
    size_t count;
} Units;

static int free_units(lua_State *L) {
    Units *units = lua_touserdata(L, 1);
    for (size_t u = 0; u < units->count; u++)
        unit_free(&units->list[u]);
    free(units->list);
    *units = (Units){0};
    return 0;
}

/* Owned by Lua until a stream takes them: what is wrong in the table raises. */
static Units *push_units(lua_State *L) {
    Units *units = lua_newuserdata(L, sizeof *units);
    *units = (Units){0};
    if (luaL_newmetatable(L, "onn.stream.units")) {
        lua_pushcfunction(L, free_units);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    return units;
}

/* The piece described by the table on top of the stack: {name=} or {name=, first=, rows=}. */
static Status read_piece(lua_State *L, const Store *store, Piece *out) {
    if (!lua_istable(L, -1))
        luaL_error(L, "units: a piece is a table {name=, first=, rows=}");
    int64_t first = integer_field(L, "first", 0, 0), rows = integer_field(L, "rows", 0, -1);
    lua_getfield(L, -1, "name");
    if (lua_type(L, -1) != LUA_TSTRING)
        luaL_error(L, "units: a piece without a name");
    if (rows < 0 && first)
        luaL_error(L, "units: tensor '%s' has a first row, but no number of rows", lua_tostring(L, -1));
    Status status = unit_piece(store, lua_tostring(L, -1), first, rows, out);
    lua_pop(L, 1);
    return status;
}

/* Units from the table at `arg`. */
static Status read_units(lua_State *L, const Store *store, int arg, Units *units) {
    size_t count = lua_objlen(L, arg);
    if (!count || count > MOST_UNITS)
        luaL_error(L, "units: a list of 1 to %d units is expected, not of %d", MOST_UNITS, (int)count);
    if (!(units->list = calloc(count, sizeof *units->list)))
        return fail(ERR_MEMORY, "out of memory");
    units->count = count;
    Status status = OK;
    for (size_t u = 0; u < count && status == OK; u++) {
        Unit *unit = &units->list[u];
        lua_rawgeti(L, arg, (int)u + 1);
        if (!lua_istable(L, -1))
            luaL_error(L, "units: unit %d is not a list of pieces", (int)u + 1);
        unit->count = lua_objlen(L, -1);
        if (!(unit->pieces = calloc(unit->count + 1, sizeof *unit->pieces)))
            return fail(ERR_MEMORY, "out of memory");
        for (size_t i = 0; i < unit->count && status == OK; i++) {
            lua_rawgeti(L, -1, (int)i + 1);
            status = read_piece(L, store, &unit->pieces[i]);
            lua_pop(L, 1);
        }
        if (status == OK)
            status = unit_lay_out(unit);
        lua_pop(L, 1);
    }
    return status;
}

/* Handles of all pieces, [unit][piece], as the stream's environment. */
static void push_tensors(lua_State *L, const Stream *s) {
    lua_createtable(L, (int)stream_units(s), 0);
    for (size_t u = 0; u < stream_units(s); u++) {
        size_t count = stream_unit(s, u)->count;
        lua_createtable(L, (int)count, 0);
        for (size_t i = 0; i < count; i++) {
            Tensor *t = push_tensor(L);
            keep_tensor(t);
            tensor_share(t, stream_tensor(s, u, i));
            lua_rawseti(L, -2, (int)i + 1);
        }
        lua_rawseti(L, -2, (int)u + 1);
    }
}

static void check_keys(lua_State *L, int table, const char *const *known) {
    for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
        int found = 0;
        for (int i = 0; known[i] && lua_type(L, -2) == LUA_TSTRING && !found; i++)
            found = !strcmp(known[i], lua_tostring(L, -2));
        if (!found)
            luaL_error(L, "unknown option '%s'", lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : luaL_typename(L, -2));
    }
}

/* open(store, {units=, slots=, prefetch=true, direct=true}) -> stream, or nil, message, code */
static int l_open(lua_State *L) {
    static const char *const known[] = {"units", "slots", "prefetch", "direct", NULL};
    Store *store = check_store(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    check_keys(L, 2, known);
    size_t slots = (size_t)integer_field(L, "slots", 1, 0);
    if (!slots || slots > MOST_SLOTS)
        return luaL_error(L, "slots: a number from 1 to %d is expected", MOST_SLOTS);
    int prefetch = boolean_field(L, 2, "prefetch"), direct = boolean_field(L, 2, "direct");
    Handle *h = lua_newuserdata(L, sizeof *h);
    h->stream = NULL;
    luaL_getmetatable(L, CLASS);
    lua_setmetatable(L, -2);
    Status status = OK;
    for (int attempt = 0; attempt < 2; attempt++) { /* over budget, garbage is collected once */
        lua_settop(L, 3);
        lua_getfield(L, 2, "units");
        luaL_argcheck(L, lua_istable(L, 4), 2, "units: a list is expected");
        Units *units = push_units(L);
        status = read_units(L, store, 4, units);
        if (status == OK) {
            Units taken = *units;
            *units = (Units){0};
            status = stream_open(store, taken.list, taken.count, slots, prefetch, direct, &h->stream);
        }
        if (status != ERR_MEMORY)
            break;
        if (!attempt)
            lua_gc(L, LUA_GCCOLLECT, 0);
    }
    if (status != OK)
        return outside(L, status, 0);
    push_tensors(L, h->stream);
    lua_setfenv(L, 3);
    lua_settop(L, 3);
    return 1;
}

static int l_close(lua_State *L) {
    Handle *h = luaL_checkudata(L, 1, CLASS);
    stream_close(h->stream);
    h->stream = NULL;
    return 0;
}

/* tensors(u) -> { tensor, ... }, one for each piece: the same table always */
static int l_tensors(lua_State *L) {
    size_t unit = check_unit(L, 2, stream_units(check_stream(L)));
    lua_getfenv(L, 1);
    lua_rawgeti(L, -1, (int)unit + 1);
    return 1;
}

/* A list of units from the table at `arg`, as a block that Lua owns. */
static size_t *read_uses(lua_State *L, int arg, size_t units, size_t *length) {
    *length = lua_objlen(L, arg);
    size_t *uses = lua_newuserdata(L, (*length + 1) * sizeof *uses);
    for (size_t i = 0; i < *length; i++) {
        lua_rawgeti(L, arg, (int)i + 1);
        uses[i] = check_unit(L, -1, units);
        lua_pop(L, 1);
    }
    return uses;
}

/* schedule({u, ...}) */
static int l_schedule(lua_State *L) {
    Stream *s = check_stream(L);
    size_t length;
    luaL_checktype(L, 2, LUA_TTABLE);
    const size_t *uses = read_uses(L, 2, stream_units(s), &length);
    return done(L, stream_schedule(s, uses, length), 0);
}

/* acquire(u) -> true, or nil, message, code */
static int l_acquire(lua_State *L) {
    Stream *s = check_stream(L);
    Status status = stream_acquire(s, check_unit(L, 2, stream_units(s)));
    lua_pushboolean(L, 1);
    return outside(L, status, 1);
}

static int l_release(lua_State *L) {
    Stream *s = check_stream(L);
    return done(L, stream_release(s, check_unit(L, 2, stream_units(s))), 0);
}

static void set_number(lua_State *L, const char *key, double value) {
    lua_pushnumber(L, value);
    lua_setfield(L, -2, key);
}

/* stats() -> {bytes, loads, hits, waited, reading, idle, direct, slots, slot_bytes}, totals since open; seconds */
static int l_stats(lua_State *L) {
    StreamStats stats = stream_stats(check_stream(L));
    lua_createtable(L, 0, 9);
    set_number(L, "bytes", (double)stats.bytes);
    set_number(L, "loads", (double)stats.loads);
    set_number(L, "hits", (double)stats.hits);
    set_number(L, "waited", stats.waited);
    set_number(L, "reading", stats.reading);
    set_number(L, "slots", (double)stats.slots);
    set_number(L, "slot_bytes", (double)stats.slot_bytes);
    lua_pushboolean(L, stats.idle);
    lua_setfield(L, -2, "idle");
    lua_pushboolean(L, stats.direct);
    lua_setfield(L, -2, "direct");
    return 1;
}

/* events(on) turns recording on or off; events() -> list of {unit, began, ended, bytes}, and how many later ones were not kept */
static int l_events(lua_State *L) {
    Stream *s = check_stream(L);
    if (lua_isboolean(L, 2))
        stream_record(s, lua_toboolean(L, 2));
    StreamEvent *events;
    size_t dropped, count = stream_events(s, &events, &dropped);
    StreamEvent *copy = lua_newuserdata(L, (count + 1) * sizeof *copy); /* Lua's, before the list can fail to grow */
    if (count)
        memcpy(copy, events, count * sizeof *copy);
    free(events);
    lua_createtable(L, (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        double values[] = {(double)copy[i].unit + 1, copy[i].began, copy[i].ended, (double)copy[i].bytes};
        lua_createtable(L, 4, 0);
        for (int k = 0; k < 4; k++) {
            lua_pushnumber(L, values[k]);
            lua_rawseti(L, -2, k + 1);
        }
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_pushnumber(L, (double)dropped);
    return 2;
}

/* bytes(store, units) -> bytes of one slot that can hold each of these units, or nil, message, code */
static int l_bytes(lua_State *L) {
    const Store *store = check_store(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    Units *units = push_units(L);
    Status status = read_units(L, store, 2, units);
    size_t most = UNIT_ALIGNMENT;
    for (size_t u = 0; u < units->count && status == OK; u++)
        most = units->list[u].bytes > most ? units->list[u].bytes : most;
    lua_pushnumber(L, (double)most);
    return outside(L, status, 1);
}

static int free_ring(lua_State *L) {
    ring_free(lua_touserdata(L, 1));
    return 0;
}

/* simulate{units=, slots=, schedule=, rounds=3} -> loads in the last round, units loaded in it, by a reader that is never late; and how
 * many uses it reads ahead */
static int l_simulate(lua_State *L) {
    static const char *const known[] = {"units", "slots", "schedule", "rounds", NULL};
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    check_keys(L, 1, known);
    size_t units = (size_t)integer_field(L, "units", 1, 0), slots = (size_t)integer_field(L, "slots", 1, 0), length;
    int64_t rounds = integer_field(L, "rounds", 1, 3);
    if (!units || units > MOST_UNITS || !slots || rounds > 1000)
        return luaL_error(L, "simulate: units and slots from 1, and at most 1000 rounds, are expected");
    lua_getfield(L, 1, "schedule");
    luaL_argcheck(L, lua_istable(L, 2), 1, "schedule: a list of units is expected");
    const size_t *uses = read_uses(L, 2, units, &length);
    Ring *ring = lua_newuserdata(L, sizeof *ring);
    *ring = (Ring){0};
    if (luaL_newmetatable(L, "onn.stream.ring")) {
        lua_pushcfunction(L, free_ring);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    done(L, ring_make(ring, units, slots < units ? slots : units), 0);
    done(L, ring_schedule(ring, uses, length), 0);
    size_t *loaded = lua_newuserdata(L, ring_round_most(ring) * sizeof *loaded), count = 0;
    for (int64_t round = 0; round < rounds; round++)
        ring_round(ring, loaded, &count);
    lua_pushnumber(L, (double)count);
    lua_createtable(L, (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        lua_pushnumber(L, (double)loaded[i] + 1);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_pushnumber(L, (double)ring->ahead);
    return 3;
}

int bind_stream(lua_State *L) {
    static const luaL_Reg methods[] = {{"__gc", l_close}, {"close", l_close}, {"tensors", l_tensors}, {"schedule", l_schedule},
                                       {"acquire", l_acquire}, {"release", l_release}, {"stats", l_stats}, {"events", l_events},
                                       {NULL, NULL}};
    static const luaL_Reg functions[] = {{"open", l_open}, {"bytes", l_bytes}, {"simulate", l_simulate}, {NULL, NULL}};
    new_class(L, CLASS, methods);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
