/* onn: an interpreter like luajit that carries the core modules, finds its own Lua files and ends with clear exit codes. */
#include <locale.h>
#include <lua.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bind.h"
#include "paths.h"
#include "signals.h"


#include "version.h" /* made by the Makefile: ONN_VERSION, ONN_REVISION, ONN_MULTIARCH */

#pragma weak bind_json
#pragma weak bind_store
#pragma weak bind_system
#pragma weak bind_tensor
#pragma weak bind_ops
#pragma weak bind_tokenizer
int bind_signals(lua_State *L);
int bind_terminal(lua_State *L);
static int bind_program(lua_State *L);
const char *backend_describe(void) __attribute__((weak));

/* require "onn.core.<name>" gives what the opener leaves on the stack. */
static const struct {
    const char *name;
    lua_CFunction open;
} core[] = {
    {"json", bind_json},           {"store", bind_store},     {"system", bind_system},     {"tensor", bind_tensor},
    {"ops", bind_ops},             {"signals", bind_signals}, {"terminal", bind_terminal}, {"program", bind_program},
    {"tokenizer", bind_tokenizer}, {"corpus", bind_corpus},   {"regex", bind_regex},       {"stream", bind_stream},
    {"spill", bind_spill}, {"hash", bind_hash},           {"picture", bind_picture},
};

static lua_State *main_state; /* for the signal handler only */

/* --- errors ------------------------------------------------------------------------------------------------------- */

static int is_user_error(lua_State *L, int index) {
    int yes = 0;
    if (lua_istable(L, index)) {
        lua_getfield(L, index, "user");
        yes = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    return yes;
}

/* Does a message say where in a program it comes from, as FILE:LINE: does? */
static int has_position(const char *message) {
    for (const char *at = strchr(message, ':'); at; at = strchr(at + 1, ':')) {
        size_t digits = strspn(at + 1, "0123456789");
        if (digits && at[1 + digits] == ':')
            return 1;
    }
    return 0;
}

/* Adds a traceback, except to the errors that cli.fail raises and to error(), which say all that is to be said, and to strings that are
 * raised without a position: those tell of the world outside, as a disk that fails in the middle of a run. A budget is the user's to
 * raise, wherever it ran out. */
static int add_traceback(lua_State *L) {
    if (is_user_error(L, 1) || lua_isnil(L, 1))
        return 1;
    const char *budget = lua_type(L, 1) == LUA_TSTRING ? strstr(lua_tostring(L, 1), "memory budget: ") : NULL;
    if (budget) {
        lua_createtable(L, 0, 2);
        lua_pushboolean(L, 1), lua_setfield(L, -2, "user");
        lua_pushfstring(L, "%s (--memory and --ram set the budget)", budget), lua_setfield(L, -2, "message");
        return 1;
    }
    if (lua_type(L, 1) == LUA_TSTRING && !has_position(lua_tostring(L, 1)))
        return 1;
    if (!lua_isstring(L, 1)) {
        if (luaL_callmeta(L, 1, "__tostring") && lua_isstring(L, -1))
            lua_replace(L, 1);
        else
            lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1)), lua_replace(L, 1);
    }
    lua_settop(L, 1);
    luaL_traceback(L, L, lua_tostring(L, 1), 1);
    return 1;
}

/* report() : prints the error on the top of the stack and pops it. @return : the exit code. */
static int report(lua_State *L) {
    int asked = signal_pending(), code = asked ? 128 + asked : 1;
    fflush(stdout);
    if (is_user_error(L, -1)) {
        lua_getfield(L, -1, "code");
        if (!asked && lua_isnumber(L, -1))
            code = (int)lua_tointeger(L, -1);
        lua_getfield(L, -2, "message");
        fprintf(stderr, "onn: %s\n", lua_isstring(L, -1) ? lua_tostring(L, -1) : "failed");
        lua_pop(L, 2);
    } else if (asked) {
        if (asked != SIGPIPE)
            fputs("onn: interrupted\n", stderr);
    } else if (!lua_isnil(L, -1)) {
        fprintf(stderr, "onn: %s\n", lua_isstring(L, -1) ? lua_tostring(L, -1) : "failed");
    }
    lua_pop(L, 1);
    return code;
}

/* call() : calls the function below its `arguments`, dropping results. @return : 0, or the exit code of what it raised. */
static int call(lua_State *L, int arguments) {
    int base = lua_gettop(L) - arguments;
    lua_pushcfunction(L, add_traceback);
    lua_insert(L, base);
    int status = lua_pcall(L, arguments, 0, base);
    lua_remove(L, base);
    return status ? report(L) : 0;
}

static void stop_hook(lua_State *L, lua_Debug *where) {
    (void)where;
    lua_sethook(L, NULL, 0, 0);
    luaL_error(L, "interrupted");
}

static void stop_script(void) {
    lua_sethook(main_state, stop_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* --- the state ---------------------------------------------------------------------------------------------------- */

/* finish() : what was printed must have arrived; a broken pipe stays quiet. */
static int finish(int code) {
    int bad = fflush(stdout) != 0 || ferror(stdout);
    if (signal_pending() && code == 0)
        return 128 + signal_pending();
    if (bad && code == 0) {
        fputs("onn: standard output could not be written\n", stderr);
        return 1;
    }
    return code;
}

/* os.exit([code]) closes the state first, so that files, devices and child processes are released in order. */
static int l_exit(lua_State *L) {
    int code = lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : (int)luaL_optinteger(L, 1, 0);
    lua_close(L);
    exit(finish(code));
}

/* add_path() : package[field] = before .. package[field] .. each part of `after` that it has not yet. */
static void add_path(lua_State *L, const char *field, const char *before, const char *const *after) {
    lua_getglobal(L, "package");
    lua_getfield(L, -1, field);
    const char *path = lua_isstring(L, -1) ? lua_tostring(L, -1) : "";
    lua_pushfstring(L, "%s%s", before, path);
    for (; *after; after++) {
        if (strstr(path, *after))
            continue;
        lua_pushfstring(L, ";%s", *after);
        lua_concat(L, 2);
    }
    lua_setfield(L, -3, field);
    lua_pop(L, 2);
}

/* Debian's Lua modules are built for 5.1 and load here. Its multiarch folder is this program's own. */
static void set_paths(lua_State *L) {
    static const char *const lua[] = {"/usr/share/lua/5.1/?.lua", "/usr/share/lua/5.1/?/init.lua", NULL};
    static const char *const c[] = {"/usr/lib/" ONN_MULTIARCH "/lua/5.1/?.so", NULL};
    const char *home = paths_home(), *own = "";
    if (home)
        own = lua_pushfstring(L, "%s/lua/?.lua;%s/lua/?/init.lua;", home, home);
    add_path(L, "path", own, lua);
    add_path(L, "cpath", "", c);
    if (home)
        lua_pop(L, 1);
}

/* onn.core.program: version, revision, and the folder that holds lua/ and recipes/ */
static int bind_program(lua_State *L) {
    lua_createtable(L, 0, 3);
    lua_pushstring(L, ONN_VERSION);
    lua_setfield(L, -2, "version");
    lua_pushstring(L, ONN_REVISION);
    lua_setfield(L, -2, "revision");
    lua_pushstring(L, paths_home());
    lua_setfield(L, -2, "home");
    return 1;
}

static void load_core(lua_State *L) {
    lua_getfield(L, LUA_REGISTRYINDEX, "_LOADED");
    for (size_t i = 0; i < sizeof core / sizeof *core; i++) {
        if (!core[i].open)
            continue;
        lua_pushfstring(L, "onn.core.%s", core[i].name);
        if (core[i].open(L) == 1 && lua_istable(L, -1))
            lua_settable(L, -3);
        else
            luaL_error(L, "onn.core.%s gave no table", core[i].name);
    }
    lua_pop(L, 1);
}

/* Tensors are counted in C, but Lua tables of a corpus are not: without GC64 the Lua heap ends at 2 GB. */
static void check_gc64(lua_State *L) {
    luaL_loadstring(L, "return require('ffi').abi('gc64')");
    lua_call(L, 0, 1);
    if (!lua_toboolean(L, -1))
        luaL_error(L, "this LuaJIT is built without GC64; onn needs it (Debian's libluajit-5.1-2 has it)");
    lua_pop(L, 1);
}

static int open_all(lua_State *L) {
    luaL_openlibs(L);
    check_gc64(L);
    set_paths(L);
    lua_getglobal(L, "os");
    lua_pushcfunction(L, l_exit);
    lua_setfield(L, -2, "exit");
    lua_pop(L, 1);
    load_core(L);
    return 0;
}

/* --- the command line --------------------------------------------------------------------------------------------- */

static void print_help(void) {
    puts("usage: onn [OPTIONS] [SCRIPT | - | RECIPE] [ARGUMENTS]\n"
         "\n"
         "Runs a Lua file, standard input (-), or an installed recipe by its name.\n"
         "Without any of them: an interactive prompt on a terminal, else standard input.\n"
         "\n"
         "  -e CODE      run CODE first\n"
         "  -l MODULE    require MODULE first\n"
         "  -i           interactive prompt after the script\n"
         "  --version    version, LuaJIT, CPU features and back ends\n"
         "  --help       this text; `onn RECIPE --help` explains a recipe\n"
         "\n"
         "recipes:");
    paths_list_recipes(stdout);
    puts("\nexample: onn train models/tiny data.jsonl --steps 100 --out adapter");
}

static void print_version(lua_State *L) {
    printf("onn %s", ONN_VERSION);
    if (*ONN_REVISION)
        printf(" (%s)", ONN_REVISION);
    luaL_openlibs(L);
    lua_getglobal(L, "jit");
    lua_getfield(L, -1, "version");
    printf("\n%s\n", lua_tostring(L, -1));
    lua_pop(L, 2);
    fputs("cpu:", stdout);
    __builtin_cpu_init();
#define SHOW(feature) \
    if (__builtin_cpu_supports(feature)) \
        fputs(" " feature, stdout)
    SHOW("sse4.1");
    SHOW("avx");
    SHOW("avx2");
    SHOW("fma");
    SHOW("avx512f");
    SHOW("avx512bw");
    SHOW("avx512vl");
    SHOW("avx512dq");
    SHOW("avx512bf16");
#undef SHOW
    printf("\nback ends: %s\n", backend_describe ? backend_describe() : "cpu");
}

static int usage(const char *format, const char *what) {
    fputs("onn: ", stderr);
    fprintf(stderr, format, what);
    fputs("\nusage: onn [-e CODE] [-l MODULE] [-i] [--version] [--help] [SCRIPT | - | RECIPE] [ARGS]\n", stderr);
    return 2;
}

/* run_chunk() : runs the chunk that `status` says was loaded, with arg[1..] as `...`. */
static int run_chunk(lua_State *L, int status, int arguments, char **argv) {
    if (status) {
        fprintf(stderr, "onn: %s\n", lua_tostring(L, -1));
        lua_pop(L, 1);
        return 1;
    }
    luaL_checkstack(L, arguments + 4, "too many arguments");
    for (int i = 0; i < arguments; i++)
        lua_pushstring(L, argv[i]);
    return call(L, arguments);
}

/* run_script() : argv[0] is a file, `-`, or the name of a recipe. */
static int run_script(lua_State *L, int arguments, char **argv) {
    const char *word = argv[0];
    if (strcmp(word, "-") == 0)
        return run_chunk(L, luaL_loadfilex(L, NULL, "t"), arguments - 1, argv + 1);
    if (paths_is_file(word))
        return run_chunk(L, luaL_loadfilex(L, word, "t"), arguments - 1, argv + 1);
    char *recipe = paths_recipe(word);
    if (recipe) {
        int status = luaL_loadfilex(L, recipe, "t");
        free(recipe);
        return run_chunk(L, status, arguments - 1, argv + 1);
    }
    char *nearest = paths_nearest_recipe(word);
    fprintf(stderr, "onn: '%s' is neither a file nor a recipe", word);
    if (nearest)
        fprintf(stderr, "; nearest recipe: %s", nearest);
    fputs("\n`onn --help` lists the recipes\n", stderr);
    free(nearest);
    return 2;
}

/* set_arg() : arg[0] is the script, arg[1..] what follows it, negative numbers what comes before, as in luajit. */
static void set_arg(lua_State *L, int script, char **argv, int argc) {
    lua_createtable(L, argc - script, script);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - script);
    }
    lua_setglobal(L, "arg");
}

typedef struct Options {
    int script;      /* index in argv of the script, or argc */
    int interactive; /* -i */
    int version, help;
    int code; /* -e or -l was given */
} Options;

/* scan() : finds the script and refuses what is no option, before anything runs. @return : 0, or the exit code. */
static int scan(int argc, char **argv, Options *o) {
    int i = 1;
    for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--") == 0) {
            i++;
            break;
        }
        if (strcmp(a, "--version") == 0 || strcmp(a, "-v") == 0)
            o->version = 1;
        else if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0)
            o->help = 1;
        else if (strcmp(a, "-i") == 0)
            o->interactive = 1;
        else if (a[1] == 'e' || a[1] == 'l') {
            o->code = 1;
            if (!a[2] && ++i >= argc)
                return usage("option %s needs a value", a);
        } else
            return usage("unknown option %s", a);
    }
    o->script = i;
    return 0;
}

/* run_options() : the -e and -l of argv[1..script-1], in their order. */
static int run_options(lua_State *L, char **argv, int script) {
    int code = 0;
    for (int i = 1; i < script && !code; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--") == 0)
            break;
        if (a[1] != 'e' && a[1] != 'l')
            continue;
        const char *value = a[2] ? a + 2 : argv[++i];
        if (a[1] == 'e') {
            code = run_chunk(L, luaL_loadbufferx(L, value, strlen(value), "=(command line)", "t"), 0, NULL);
        } else {
            lua_getglobal(L, "require");
            lua_pushstring(L, value);
            code = call(L, 1);
        }
    }
    return code;
}

static int run(lua_State *L, int argc, char **argv) {
    Options o = {0};
    int code = scan(argc, argv, &o);
    if (code)
        return code;
    if (o.help || o.version) {
        if (o.help)
            print_help();
        else
            print_version(L);
        return 0;
    }
    lua_pushcfunction(L, open_all);
    if (lua_pcall(L, 0, 0, 0)) /* no script runs yet: a traceback would say nothing */
        return report(L);
    set_arg(L, o.script < argc ? o.script : 0, argv, argc);
    if ((code = run_options(L, argv, o.script)) != 0 && !o.interactive)
        return code;
    if (o.script < argc)
        code = run_script(L, argc - o.script, argv + o.script);
    else if (!o.code && !o.interactive && !isatty(0))
        code = run_chunk(L, luaL_loadfilex(L, NULL, "t"), 0, NULL);
    else if (!o.code)
        o.interactive = 1;
    if (o.interactive) {
        int status = luaL_loadstring(L, "require('onn.repl').start()");
        code = run_chunk(L, status, 0, NULL);
    }
    return code;
}

/* Threads that wait for each other spin for a while before they sleep. libgomp's usual 300,000 rounds starve the thread that is
 * waited for where other programs run too (decoding fell to a tenth); 5,000 cost nothing on a free machine. It reads this before
 * main() begins, so the program starts again with it, unless the user has said how to wait. */
static void wait_briefly(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "5000", 1))
        return;
    execv("/proc/self/exe", argv); /* if that cannot be, it goes on as it is */
}

int main(int argc, char **argv) {
    wait_briefly(argv);
    setlocale(LC_CTYPE, ""); /* for the line editor; numbers keep their point */
    lua_State *L = luaL_newstate();
    if (!L) {
        fputs("onn: not enough memory for a Lua state\n", stderr);
        return 1;
    }
    main_state = L;
    signals_install(stop_script);
    int code = run(L, argc, argv);
    lua_close(L);
    return finish(code);
}
