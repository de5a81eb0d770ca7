/* onn.core.spill: a scratch file that tensors go to and come back from in the background. */
#include "bind_tensor.h"
#include "spill.h"

#define CLASS "onn.spill"
#define TICKET "onn.spill.ticket"

typedef struct Handle {
    Spill *spill;
} Handle;

typedef struct TicketHandle {
    Ticket *ticket;
    Handle *owner; /* kept alive by the environment table */
} TicketHandle;

static Spill *check_spill(lua_State *L, int arg) {
    Handle *h = luaL_checkudata(L, arg, CLASS);
    if (!h->spill)
        luaL_argerror(L, arg, "this scratch file has been closed");
    return h->spill;
}

static TicketHandle *check_ticket(lua_State *L, int arg) {
    Spill *s = check_spill(L, 1);
    TicketHandle *h = luaL_checkudata(L, arg, TICKET);
    if (!h->ticket)
        luaL_argerror(L, arg, "this ticket has been forgotten");
    if (h->owner->spill != s)
        luaL_argerror(L, arg, "this ticket is another scratch file's");
    return h;
}

/* open(directory [, limit = 64 MB]) -> spill, or nil, message, code. While writes under way hold `limit` bytes, write() waits. */
static int l_open(lua_State *L) {
    const char *directory = luaL_checkstring(L, 1);
    size_t limit = lua_isnoneornil(L, 2) ? (size_t)64 << 20 : (size_t)check_integer(L, 2, 0, INT64_C(1) << 52);
    Handle *h = lua_newuserdata(L, sizeof *h);
    h->spill = NULL;
    luaL_getmetatable(L, CLASS);
    lua_setmetatable(L, -2);
    return outside(L, spill_open(directory, limit, &h->spill), 1);
}

static int l_close(lua_State *L) {
    Handle *h = luaL_checkudata(L, 1, CLASS);
    spill_close(h->spill);
    h->spill = NULL;
    return 0;
}

/* write(tensor) -> ticket, or nil, message, code */
static int l_write(lua_State *L) {
    Spill *s = check_spill(L, 1);
    Tensor *t = check_values(L, 2);
    TicketHandle *h = lua_newuserdata(L, sizeof *h);
    *h = (TicketHandle){.owner = lua_touserdata(L, 1)};
    luaL_getmetatable(L, TICKET);
    lua_setmetatable(L, -2);
    lua_createtable(L, 1, 0);
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
    Status status = spill_write(s, t, &h->ticket);
    return status == ERR_ARGUMENT ? done(L, status, 0) : outside(L, status, 1);
}

/* prefetch(ticket) -> whether reading has begun: not where memory is refused or nothing is to be read */
static int l_prefetch(lua_State *L) {
    lua_pushboolean(L, spill_prefetch(check_ticket(L, 2)->ticket));
    return 1;
}

/* read(ticket) -> tensor, or nil, message, code */
static int l_read(lua_State *L) {
    Ticket *k = check_ticket(L, 2)->ticket;
    Tensor *t = push_tensor(L);
    Status status = spill_read(k, t);
    if (status == ERR_MEMORY) {
        lua_gc(L, LUA_GCCOLLECT, 0);
        status = spill_read(k, t);
    }
    return status == ERR_MEMORY ? done(L, status, 0) : outside(L, status, 1);
}

static int forget(TicketHandle *h) {
    if (h->ticket)
        spill_forget(h->ticket);
    h->ticket = NULL;
    return 0;
}

static int l_forget(lua_State *L) { return forget(check_ticket(L, 2)); }
static int l_ticket_gc(lua_State *L) { return forget(luaL_checkudata(L, 1, TICKET)); }

/* wait() -> true when nothing is under way, or nil, message, code */
static int l_wait(lua_State *L) {
    Status status = spill_wait(check_spill(L, 1));
    lua_pushboolean(L, 1);
    return outside(L, status, 1);
}

/* stats() -> {written, read, held, file: bytes; waited: seconds; direct: whether the page cache is bypassed} */
static int l_stats(lua_State *L) {
    SpillStats stats = spill_stats(check_spill(L, 1));
    lua_createtable(L, 0, 6);
    lua_pushnumber(L, (double)stats.written), lua_setfield(L, -2, "written");
    lua_pushnumber(L, (double)stats.read), lua_setfield(L, -2, "read");
    lua_pushnumber(L, (double)stats.held), lua_setfield(L, -2, "held");
    lua_pushnumber(L, (double)stats.file), lua_setfield(L, -2, "file");
    lua_pushnumber(L, stats.waited), lua_setfield(L, -2, "waited");
    lua_pushboolean(L, stats.direct), lua_setfield(L, -2, "direct");
    return 1;
}

int bind_spill(lua_State *L) {
    static const luaL_Reg methods[] = {{"__gc", l_close},  {"close", l_close},   {"write", l_write}, {"prefetch", l_prefetch},
                                       {"read", l_read},   {"forget", l_forget}, {"wait", l_wait},   {"stats", l_stats},
                                       {NULL, NULL}};
    static const luaL_Reg ticket_methods[] = {{"__gc", l_ticket_gc}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"open", l_open}, {NULL, NULL}};
    new_class(L, CLASS, methods);
    new_class(L, TICKET, ticket_methods);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
