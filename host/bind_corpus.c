/* onn.core.corpus: tokens of training samples in C memory, their rows, and batches as tensors. */
#include <stdio.h>
#include <string.h>

#include "bind_tensor.h"
#include "packing.h"

#define CORPUS "onn.corpus"
#define ROWS "onn.rows"
#define IDS "onn.ids" /* the tokenizer's class: an Ids */
#define MOST_IDS INT32_MAX

static Corpus *check_corpus(lua_State *L) { return luaL_checkudata(L, 1, CORPUS); }

/* new(own): own: each label is its token's own, and batches leave it where it is */
static int l_new(lua_State *L) {
    int own = lua_toboolean(L, 1);
    Corpus *c = lua_newuserdata(L, sizeof *c);
    memset(c, 0, sizeof *c);
    c->own = own;
    luaL_getmetatable(L, CORPUS);
    lua_setmetatable(L, -2);
    return 1;
}

static int l_corpus_free(lua_State *L) {
    corpus_free(check_corpus(L));
    return 0;
}

/* Argument `arg` as ids: a tokenizer's ids, or a Lua table, which is copied into an Ids pushed on the stack. */
static const Ids *check_ids(lua_State *L, int arg) {
    if (lua_isuserdata(L, arg))
        return luaL_checkudata(L, arg, IDS);
    luaL_checktype(L, arg, LUA_TTABLE);
    size_t n = lua_objlen(L, arg);
    Ids *ids = lua_newuserdata(L, sizeof *ids + n * sizeof *ids->data);
    *ids = (Ids){(int32_t *)(ids + 1), n, n};
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, arg, (int)i + 1);
        lua_Number id = lua_tonumber(L, -1);
        if (!lua_isnumber(L, -1) || id != (int32_t)id)
            luaL_argerror(L, arg, "expected whole numbers");
        ids->data[i] = (int32_t)id;
        lua_pop(L, 1);
    }
    return ids;
}

/* corpus:add(ids, from, gaps, limit) -> labels that count. Ids before index `from` (0-based, default 0) have no label, nor have
 * those in the ranges of `gaps` = {from, to, from, to, ...} (0-based, `to` left out). At most `limit` ids are taken. */
static int l_add(lua_State *L) {
    Corpus *c = check_corpus(L);
    int64_t from = lua_isnoneornil(L, 3) ? 0 : check_integer(L, 3, 0, MOST_IDS);
    int64_t limit = lua_isnoneornil(L, 5) ? MOST_IDS : check_integer(L, 5, 1, MOST_IDS);
    const Ids *gaps = lua_isnoneornil(L, 4) ? NULL : check_ids(L, 4);
    const Ids *ids = check_ids(L, 2);
    int64_t before = c->supervised, n = (int64_t)ids->count;
    done(L, corpus_add(c, ids->data, NULL, n < limit ? n : limit, from), 0);
    for (size_t i = 0; gaps && i + 1 < gaps->count; i += 2)
        corpus_unlabel(c, gaps->data[i], gaps->data[i + 1]);
    lua_pushnumber(L, (lua_Number)(c->supervised - before));
    return 1;
}

/* corpus:add_windows(ids, length) -> number of samples. Cuts ids into samples of `length`; the last may be shorter, and is left
 * out if it is a single token, which nothing predicts. */
static int l_add_windows(lua_State *L) {
    Corpus *c = check_corpus(L);
    int64_t length = check_integer(L, 3, 2, MOST_IDS), before = c->samples;
    const Ids *ids = check_ids(L, 2);
    int64_t n = (int64_t)ids->count;
    for (int64_t at = 0; at < n && (n - at > 1 || at == 0); at += length)
        done(L, corpus_add(c, ids->data + at, NULL, n - at < length ? n - at : length, 0), 0);
    lua_pushnumber(L, (lua_Number)(c->samples - before));
    return 1;
}

static int32_t whole_at(lua_State *L, const View *v, int64_t at) {
    int64_t value = v->dtype == I64 ? ((const int64_t *)v->data)[at] : ((const int32_t *)v->data)[at];
    if (value < INT32_MIN || value > INT32_MAX)
        luaL_error(L, "token %f is no id", (double)value);
    return (int32_t)value;
}

/* corpus:add_tensor(input_ids, labels) -> labels that count. Both (N, T), i32 or i64; each row becomes a sample. */
static int l_add_tensor(lua_State *L) {
    Corpus *c = check_corpus(L);
    int has_labels = !lua_isnoneornil(L, 3);
    lua_settop(L, 3);
    Tensor *t[2] = {check_values(L, 2), has_labels ? check_values(L, 3) : NULL};
    for (int i = 0; i < 1 + has_labels; i++)
        if ((t[i]->view.dtype != I32 && t[i]->view.dtype != I64) || t[i]->view.dims != 2 || !tensor_contiguous(t[i]))
            luaL_error(L, "%s: expected (rows, length) of i32 or i64", i ? "labels" : "input_ids");
    int64_t n = t[0]->view.shape[0], length = t[0]->view.shape[1], before = c->supervised;
    if (has_labels && (t[1]->view.shape[0] != n || t[1]->view.shape[1] != length))
        luaL_error(L, "labels: their shape differs from that of input_ids");
    if (length < 1 || length > MOST_IDS)
        luaL_error(L, "input_ids: rows without tokens");
    int32_t *ids = lua_newuserdata(L, 2 * (size_t)length * sizeof *ids), *labels = ids + length;
    for (int64_t r = 0; r < n; r++) {
        for (int64_t k = 0; k < length; k++) {
            ids[k] = whole_at(L, &t[0]->view, r * length + k);
            labels[k] = has_labels ? whole_at(L, &t[1]->view, r * length + k) : ids[k];
        }
        done(L, corpus_add(c, ids, labels, length, 0), 0);
    }
    lua_pushnumber(L, (lua_Number)(c->supervised - before));
    return 1;
}

static int l_remove_last(lua_State *L) {
    corpus_remove_last(check_corpus(L));
    return 0;
}

static int l_samples(lua_State *L) {
    lua_pushnumber(L, (lua_Number)check_corpus(L)->samples);
    return 1;
}

static int l_tokens(lua_State *L) {
    lua_pushnumber(L, (lua_Number)check_corpus(L)->ids.count);
    return 1;
}

static int l_supervised(lua_State *L) {
    lua_pushnumber(L, (lua_Number)check_corpus(L)->supervised);
    return 1;
}

static int l_hash(lua_State *L) {
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)corpus_hash(check_corpus(L)));
    lua_pushstring(L, text);
    return 1;
}

/* Argument 2 as a sample's number, 1-based in Lua. */
static int64_t check_sample(lua_State *L, const Corpus *c) { return check_integer(L, 2, 1, c->samples) - 1; }

/* corpus:beyond(limit) -> the first id or label that is not below `limit`, its sample and its place there (1-based), or nothing */
static int l_beyond(lua_State *L) {
    int64_t sample = 0, place = 0;
    int32_t id = corpus_beyond(check_corpus(L), (int32_t)check_integer(L, 2, 1, MOST_IDS), &sample, &place);
    if (id < 0)
        return 0;
    lua_pushnumber(L, id);
    lua_pushnumber(L, (lua_Number)(sample + 1));
    lua_pushnumber(L, (lua_Number)(place + 1));
    return 3;
}

static int l_length(lua_State *L) {
    Corpus *c = check_corpus(L);
    lua_pushnumber(L, (lua_Number)corpus_length(c, check_sample(L, c)));
    return 1;
}

static void push_part(lua_State *L, const int32_t *from, int64_t n) {
    lua_createtable(L, (int)n, 0);
    for (int64_t i = 0; i < n; i++) {
        lua_pushnumber(L, from[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static int l_ids(lua_State *L) {
    Corpus *c = check_corpus(L);
    int64_t i = check_sample(L, c);
    push_part(L, c->ids.data + corpus_begin(c, i), corpus_length(c, i));
    return 1;
}

static int l_labels(lua_State *L) {
    Corpus *c = check_corpus(L);
    int64_t i = check_sample(L, c);
    push_part(L, c->labels.data + corpus_begin(c, i), corpus_length(c, i));
    return 1;
}

/* common_prefix(a, b) -> how many ids a and b begin with alike */
static int l_common_prefix(lua_State *L) {
    const Ids *a = check_ids(L, 1), *b = check_ids(L, 2);
    size_t n = 0;
    while (n < a->count && n < b->count && a->data[n] == b->data[n])
        n++;
    lua_pushnumber(L, (lua_Number)n);
    return 1;
}

/* count(ids) -> how many */
static int l_count(lua_State *L) {
    lua_pushnumber(L, (lua_Number)check_ids(L, 1)->count);
    return 1;
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

static Rows *check_rows(lua_State *L) { return luaL_checkudata(L, 1, ROWS); }

/* corpus:rows(packing, seq_len): packing is "none", "best-fit" or "stream". The corpus may not grow while rows are used. */
static int l_rows(lua_State *L) {
    static const char *const names[] = {"none", "best-fit", "stream", NULL};
    Corpus *c = check_corpus(L);
    Packing packing = (Packing)luaL_checkoption(L, 2, NULL, names);
    int32_t seq_len = (int32_t)check_integer(L, 3, 2, MOST_IDS);
    Rows *rows = lua_newuserdata(L, sizeof *rows);
    memset(rows, 0, sizeof *rows);
    luaL_getmetatable(L, ROWS);
    lua_setmetatable(L, -2);
    lua_createtable(L, 1, 0); /* the rows keep their corpus alive */
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
    RUN(L, rows_plan(rows, c, packing, seq_len));
    return 1;
}

static int l_rows_free(lua_State *L) {
    rows_free(check_rows(L));
    return 0;
}

static int l_rows_count(lua_State *L) {
    lua_pushnumber(L, (lua_Number)check_rows(L)->rows);
    return 1;
}

/* rows:info() -> {rows, sequences, tokens, longest, truncated, dropped, fill}; longest: tokens of the longest row; fill: share of rows x seq_len that holds tokens */
static int l_rows_info(lua_State *L) {
    const Rows *r = check_rows(L);
    const struct {
        const char *name;
        double value;
    } fields[] = {
        {"rows", (double)r->rows},           {"sequences", (double)r->n_pieces}, {"tokens", (double)r->tokens},
        {"truncated", (double)r->truncated}, {"dropped", (double)r->dropped}, {"longest", (double)r->longest},
        {"fill", r->rows ? (double)r->tokens / ((double)r->rows * r->seq_len) : 0},
    };
    lua_newtable(L);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        lua_pushnumber(L, fields[i].value);
        lua_setfield(L, -2, fields[i].name);
    }
    return 1;
}

/* rows:shuffle(seed, epoch); without arguments: back to the planned order */
static int l_rows_shuffle(lua_State *L) {
    Rows *rows = check_rows(L);
    if (lua_isnoneornil(L, 2)) {
        rows_in_order(rows);
        return 0;
    }
    int64_t seed = check_integer(L, 2, 0, INT64_C(1) << 53), epoch = check_integer(L, 3, 0, INT32_MAX);
    rows_shuffle(rows, (uint64_t)seed, (uint32_t)epoch);
    return 0;
}

/* rows:streams(n): turns of n rows, each going on where the same place of the last turn ended */
static int l_rows_streams(lua_State *L) {
    Rows *rows = check_rows(L);
    rows_streams(rows, check_integer(L, 2, 1, rows->rows));
    return 0;
}

static void *put_tensor(lua_State *L, Dtype dtype, int64_t n, const char *name) {
    Tensor *t = new_values(L, dtype, 1, &n);
    lua_setfield(L, -2, name);
    return t->view.data;
}

static void put_number(lua_State *L, const char *name, int64_t value) {
    lua_pushnumber(L, (lua_Number)value);
    lua_setfield(L, -2, name);
}

/* rows:batch(first, count) -> {ids, labels, positions, starts (i32), rows (i64), tokens, sequences, longest, supervised} of rows
 * first .. first + count - 1 of the epoch's order (1-based). Labels are shifted: label t is the id at t + 1;
 * those of a corpus of tokens' own labels are not. */
static int l_rows_batch(lua_State *L) {
    Rows *rows = check_rows(L);
    int64_t first = check_integer(L, 2, 1, rows->rows) - 1, count = check_integer(L, 3, 1, rows->rows - first);
    lua_settop(L, 3);
    lua_getfenv(L, 1);
    lua_rawgeti(L, -1, 1);
    const Corpus *c = luaL_checkudata(L, -1, CORPUS);
    Batch b = {0};
    rows_measure(rows, first, count, &b);
    if (b.tokens > INT32_MAX)
        luaL_error(L, "%s", "a batch of more than 2^31 tokens");
    lua_newtable(L);
    b.ids = put_tensor(L, I32, b.tokens, "ids");
    b.labels = put_tensor(L, I32, b.tokens, "labels");
    b.positions = put_tensor(L, I32, b.tokens, "positions");
    b.starts = put_tensor(L, I32, b.sequences + 1, "starts");
    b.numbers = put_tensor(L, I64, b.tokens, "rows");
    rows_fill(rows, c, first, count, &b);
    put_number(L, "tokens", b.tokens);
    put_number(L, "sequences", b.sequences);
    put_number(L, "longest", b.longest);
    put_number(L, "supervised", b.supervised);
    return 1;
}

int bind_corpus(lua_State *L);
int bind_corpus(lua_State *L) {
    static const luaL_Reg corpus[] = {
        {"add", l_add},       {"add_windows", l_add_windows}, {"add_tensor", l_add_tensor}, {"__len", l_samples},
        {"samples", l_samples}, {"tokens", l_tokens},         {"supervised", l_supervised}, {"hash", l_hash},
        {"length", l_length}, {"beyond", l_beyond}, {"ids", l_ids},                 {"labels", l_labels},         {"rows", l_rows},
        {"remove_last", l_remove_last}, {"__gc", l_corpus_free}, {NULL, NULL},
    };
    static const luaL_Reg rows[] = {
        {"__len", l_rows_count},       {"count", l_rows_count}, {"info", l_rows_info}, {"shuffle", l_rows_shuffle}, {"streams", l_rows_streams},
        {"batch", l_rows_batch},       {"__gc", l_rows_free},   {NULL, NULL},
    };
    static const luaL_Reg functions[] = {{"new", l_new}, {"common_prefix", l_common_prefix}, {"count", l_count}, {NULL, NULL}};
    new_class(L, CORPUS, corpus);
    new_class(L, ROWS, rows);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
