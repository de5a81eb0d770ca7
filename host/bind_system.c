/* onn.core.system: files, directories, child processes, and what the machine has. Failures of the world give nil, message, code. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "bind.h"
#include "file.h"
#include "system.h"

/* read_file(path [, limit]) -> text */
static int l_read_file(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    char *text;
    size_t length = 0, limit = (size_t)luaL_optnumber(L, 2, (double)((size_t)1 << 30));
    Status status = file_read(path, limit, &text, &length);
    if (status != OK)
        return outside(L, status, 0);
    lua_pushlstring(L, text, length);
    free(text);
    return 1;
}

/* write_file(path, text) -> true: the file appears whole or not at all */
static int l_write_file(lua_State *L) {
    size_t length;
    const char *path = luaL_checkstring(L, 1), *text = luaL_checklstring(L, 2, &length);
    Writer *w;
    Status status = writer_open(path, &w);
    if (status == OK) {
        status = writer_put(w, text, length);
        if (status == OK)
            status = writer_commit(w);
        else
            writer_abort(w);
    }
    lua_pushboolean(L, 1);
    return outside(L, status, 1);
}

/* stat(path) -> {size, mtime, kind = "file"|"directory"|"other"} */
static int l_stat(lua_State *L) {
    struct stat st;
    const char *path = luaL_checkstring(L, 1);
    if (stat(path, &st))
        return outside(L, fail(ERR_IO, "%s: %s", path, strerror(errno)), 0);
    lua_createtable(L, 0, 3);
    lua_pushnumber(L, (double)st.st_size), lua_setfield(L, -2, "size");
    lua_pushnumber(L, (double)st.st_mtime), lua_setfield(L, -2, "mtime");
    lua_pushstring(L, S_ISDIR(st.st_mode) ? "directory" : S_ISREG(st.st_mode) ? "file" : "other"), lua_setfield(L, -2, "kind");
    return 1;
}

static int l_exists(lua_State *L) {
    lua_pushboolean(L, !access(luaL_checkstring(L, 1), F_OK));
    return 1;
}

static int l_isdir(lua_State *L) {
    struct stat st;
    lua_pushboolean(L, !stat(luaL_checkstring(L, 1), &st) && S_ISDIR(st.st_mode));
    return 1;
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* list(directory) -> names in byte order, without . and .. */
static int l_list(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0)
        return outside(L, fail(ERR_IO, "%s: %s", path, strerror(errno)), 0);
    char **names = calloc((size_t)n + 1, sizeof *names);
    int count = 0;
    for (int i = 0; i < n; i++) {
        if (names && strcmp(entries[i]->d_name, ".") && strcmp(entries[i]->d_name, ".."))
            names[count++] = strdup(entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    if (!names)
        return outside(L, fail(ERR_MEMORY, "out of memory"), 0);
    qsort(names, (size_t)count, sizeof *names, by_text);
    lua_createtable(L, count, 0);
    for (int i = 0; i < count; i++) {
        lua_pushstring(L, names[i]);
        lua_rawseti(L, -2, i + 1);
        free(names[i]);
    }
    free(names);
    return 1;
}

static int truth(lua_State *L, Status status) {
    lua_pushboolean(L, 1);
    return outside(L, status, 1);
}

static int l_mkdir_p(lua_State *L) { return truth(L, system_mkdirs(luaL_checkstring(L, 1))); }
static int l_remove_tree(lua_State *L) { return truth(L, system_remove_tree(luaL_checkstring(L, 1))); }

/* rename(from, to) -> true, with the directory synced */
static int l_rename(lua_State *L) {
    const char *from = luaL_checkstring(L, 1), *to = luaL_checkstring(L, 2);
    if (rename(from, to))
        return outside(L, fail(ERR_IO, "%s to %s: %s", from, to, strerror(errno)), 0);
    return truth(L, file_sync_directory(to));
}

static int l_realpath(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    char *real = realpath(path, NULL);
    if (!real)
        return outside(L, fail(ERR_IO, "%s: %s", path, strerror(errno)), 0);
    lua_pushstring(L, real);
    free(real);
    return 1;
}

static int l_hash_file(lua_State *L) {
    char hex[17];
    Status status = system_hash_file(luaL_checkstring(L, 1), hex);
    lua_pushstring(L, status == OK ? hex : "");
    return outside(L, status, 1);
}

/* spawn({program, argument, ...}, {timeout = seconds}) -> {status, signal, timed_out, stdout, stderr} */
static int l_spawn(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    double timeout = 0;
    if (lua_istable(L, 2)) {
        lua_getfield(L, 2, "timeout");
        timeout = luaL_optnumber(L, -1, 0);
        lua_pop(L, 1);
    }
    int n = (int)lua_objlen(L, 1);
    if (!n)
        return luaL_argerror(L, 1, "a program is needed");
    char **argv = lua_newuserdata(L, ((size_t)n + 1) * sizeof *argv);
    luaL_checkstack(L, n + 4, "too many arguments");
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, 1, i + 1); /* stays on the stack, so that the string lives */
        argv[i] = (char *)(uintptr_t)luaL_checkstring(L, -1);
    }
    argv[n] = NULL;
    Child c;
    Status status = system_spawn(argv, timeout, &c);
    if (status != OK)
        return outside(L, status, 0);
    lua_createtable(L, 0, 5);
    lua_pushlstring(L, c.output ? c.output : "", c.output_length), lua_setfield(L, -2, "stdout");
    lua_pushlstring(L, c.errors ? c.errors : "", c.errors_length), lua_setfield(L, -2, "stderr");
    free(c.output), free(c.errors);
    lua_pushinteger(L, c.status), lua_setfield(L, -2, "status");
    lua_pushinteger(L, c.signal), lua_setfield(L, -2, "signal");
    lua_pushboolean(L, c.timed_out), lua_setfield(L, -2, "timed_out");
    return 1;
}

static int number(lua_State *L, double value) {
    lua_pushnumber(L, value);
    return 1;
}

static int l_now(lua_State *L) { return number(L, system_now()); }
static int l_cpu_count(lua_State *L) { return number(L, system_cpu_count()); }
static int l_total_ram(lua_State *L) { return number(L, (double)system_total_ram()); }
static int l_available_ram(lua_State *L) { return number(L, (double)system_available_ram()); }
static int l_rss(lua_State *L) { return number(L, (double)system_rss(0)); }
static int l_peak_rss(lua_State *L) { return number(L, (double)system_rss(1)); }
static int l_pid(lua_State *L) { return number(L, getpid()); }

static int l_wall(lua_State *L) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return number(L, (double)t.tv_sec + (double)t.tv_nsec * 1e-9);
}

static int l_cpu_model(lua_State *L) {
    lua_pushstring(L, system_cpu_model());
    return 1;
}

static int l_host_name(lua_State *L) {
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    lua_pushstring(L, name);
    return 1;
}

static int l_free_disk(lua_State *L) {
    struct statvfs st;
    const char *path = luaL_checkstring(L, 1);
    if (statvfs(path, &st))
        return outside(L, fail(ERR_IO, "%s: %s", path, strerror(errno)), 0);
    return number(L, (double)st.f_bavail * (double)st.f_frsize);
}

static int l_setenv(lua_State *L) {
    const char *name = luaL_checkstring(L, 1), *value = luaL_optstring(L, 2, NULL);
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
    return 0;
}

static int l_sleep(lua_State *L) {
    double seconds = luaL_checknumber(L, 1);
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
    return 0;
}

static int l_make_temp_dir(lua_State *L) {
    const char *base = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/onn-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(path))
        return outside(L, fail(ERR_IO, "%s: %s", path, strerror(errno)), 0);
    lua_pushstring(L, path);
    return 1;
}

int bind_system(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"read_file", l_read_file}, {"write_file", l_write_file}, {"stat", l_stat}, {"exists", l_exists}, {"isdir", l_isdir},
        {"list", l_list}, {"mkdir_p", l_mkdir_p}, {"remove_tree", l_remove_tree}, {"rename", l_rename}, {"realpath", l_realpath},
        {"hash_file", l_hash_file}, {"spawn", l_spawn}, {"now", l_now}, {"wall", l_wall}, {"cpu_count", l_cpu_count},
        {"total_ram", l_total_ram}, {"available_ram", l_available_ram}, {"rss", l_rss}, {"peak_rss", l_peak_rss}, {"pid", l_pid},
        {"cpu_model", l_cpu_model}, {"host_name", l_host_name}, {"free_disk", l_free_disk}, {"setenv", l_setenv},
        {"sleep", l_sleep}, {"make_temp_dir", l_make_temp_dir}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
