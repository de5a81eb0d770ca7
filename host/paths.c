#include "paths.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* join() : `a` + `b` + `c` in memory to be freed; NULL when there is none. */
static char *join(const char *a, const char *b, const char *c) {
    char *text = NULL;
    return asprintf(&text, "%s%s%s", a, b, c) < 0 ? NULL : text;
}

static int is_directory(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

int paths_is_file(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && !S_ISDIR(about.st_mode);
}

static int is_home(const char *path) {
    char *lua = join(path, "/lua/onn", "");
    int yes = lua && is_directory(lua);
    free(lua);
    return yes;
}

/* program_folder() : the folder of the running program in `folder`, without its last slash; false if unknown. */
static int program_folder(char *folder, size_t size) {
    ssize_t length = readlink("/proc/self/exe", folder, size - 1);
    if (length <= 0)
        return 0;
    folder[length] = 0;
    char *slash = strrchr(folder, '/');
    if (!slash)
        return 0;
    *slash = 0;
    return 1;
}

const char *paths_home(void) {
    /* build/onn, build/asan/onn, PREFIX/bin/onn */
    static const char *const places[] = {"/..", "/../..", "/../share/onn"};
    static char *home;
    char folder[4096];
    const char *given = getenv("ONN_HOME");

    if (home)
        return home;
    if (given && is_home(given))
        return home = strdup(given);
    if (!program_folder(folder, sizeof folder))
        return NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places && !home; i++) {
        char *place = join(folder, places[i], "");
        if (place && is_home(place))
            home = realpath(place, NULL);
        free(place);
    }
    return home;
}

static int is_recipe_name(const char *name) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    return *name && strspn(name, letters) == strlen(name);
}

char *paths_recipe(const char *name) {
    if (!paths_home() || !is_recipe_name(name))
        return NULL;
    char *base = join(paths_home(), "/recipes/", name);
    char *path = base ? join(base, ".lua", "") : NULL;
    free(base);
    if (path && paths_is_file(path))
        return path;
    free(path);
    return NULL;
}

static int is_lua(const struct dirent *entry) {
    size_t length = strlen(entry->d_name);
    return length > 4 && strcmp(entry->d_name + length - 4, ".lua") == 0;
}

/* each_recipe() : calls visit(context, name, path) in the order of names. */
static void each_recipe(void (*visit)(void *, const char *, const char *), void *context) {
    struct dirent **entries = NULL;
    char *folder = paths_home() ? join(paths_home(), "/recipes", "") : NULL;
    int count = folder ? scandir(folder, &entries, is_lua, alphasort) : 0;
    for (int i = 0; i < count; i++) {
        char *name = strndup(entries[i]->d_name, strlen(entries[i]->d_name) - 4);
        char *path = name ? paths_recipe(name) : NULL;
        if (path)
            visit(context, name, path);
        free(path);
        free(name);
        free(entries[i]);
    }
    free(entries);
    free(folder);
}

static void list_one(void *context, const char *name, const char *path) {
    char line[256] = "", *summary = NULL;
    FILE *file = fopen(path, "r");
    if (file && fgets(line, sizeof line, file) && strncmp(line, "--", 2) == 0) {
        line[strcspn(line, "\r\n")] = 0;
        summary = strchr(line, ':');
    }
    if (file)
        fclose(file);
    fprintf(context, "  %-12s %s\n", name, summary ? summary + 1 + strspn(summary + 1, " ") : "");
}

void paths_list_recipes(FILE *out) {
    each_recipe(list_one, out);
}

/* Levenshtein's distance between two words of fewer than 64 letters. */
static int distance(const char *a, const char *b) {
    int row[65], m = (int)strlen(a), n = (int)strlen(b);
    if (m > 63 || n > 63)
        return 64;
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; i <= m; i++) {
        int corner = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int change = corner + (a[i - 1] != b[j - 1]);
            corner = row[j];
            if (change > row[j] + 1)
                change = row[j] + 1;
            row[j] = change < row[j - 1] + 1 ? change : row[j - 1] + 1;
        }
    }
    return row[n];
}

typedef struct Nearest {
    const char *word;
    char *name;
    int distance;
} Nearest;

static void compare_one(void *context, const char *name, const char *path) {
    Nearest *nearest = context;
    int d = distance(nearest->word, name);
    (void)path;
    if (d < nearest->distance) {
        free(nearest->name);
        nearest->name = strdup(name);
        nearest->distance = d;
    }
}

char *paths_nearest_recipe(const char *word) {
    Nearest nearest = {word, NULL, 4};
    each_recipe(compare_one, &nearest);
    return nearest.name;
}
