/* Paths: where the program's own Lua files and recipes lie, whatever the current directory. */
#ifndef ONN_PATHS_H
#define ONN_PATHS_H

#include <stdio.h>

/* paths_home() : the directory that holds lua/ and recipes/: $ONN_HOME, the source tree around build/onn, or
 * ../share/onn of an installed bin/onn. NULL if none of them has them. Found once; owned by this file. */
const char *paths_home(void);

/* paths_recipe() : the file of recipe `name` (letters, digits, `_` and `-` only), to be freed; NULL if there is none. */
char *paths_recipe(const char *name);

/* paths_is_file() : true for anything that opens and is no directory (a pipe is fine). */
int paths_is_file(const char *path);

/* paths_list_recipes() : one line each, sorted: name and the summary of its first line `-- name: summary`. */
void paths_list_recipes(FILE *out);

/* paths_nearest_recipe() : the recipe whose name is most like `word`, to be freed; NULL if none is close. */
char *paths_nearest_recipe(const char *word);

#endif
