/* The parts of a tokenizer.json are objects with a "type" and settings; these read them, refusing what is not known. */
#ifndef ONN_COMPONENT_H
#define ONN_COMPONENT_H

#include <cjson/cJSON.h>

#include "bytes.h"
#include "regex.h"

enum { COMPONENT_LIMIT = 64 }; /* parts in one sequence of normalizers, pre-tokenizers or decoders, nested ones included */

/* component_type() : the "type" of a part, a string; `kind` ("normalizer") and `what` (the file) are for messages. */
Status component_type(const cJSON *part, const char *kind, const char *what, const char **type);

/* component_keys() : ERR_UNSUPPORTED if the part has a key that is neither "type" nor among `known`, separated by spaces. */
Status component_keys(const cJSON *part, const char *known, const char *what);

/* component_flag(), component_text() : a setting, or `fallback` where it is absent, null or of another type. */
int component_flag(const cJSON *part, const char *key, int fallback);
const char *component_text(const cJSON *part, const char *key, const char *fallback);

/* What Split and Replace look for: {"String": ...} or {"Regex": ...}. */
typedef struct Pattern {
    char *literal; /* or NULL */
    size_t length;
    Regex *regex;
} Pattern;
Status pattern_load(const cJSON *item, const char *what, Pattern *out);

/* Match: one after the other. A zeroed one stands before the first. */
typedef struct Match {
    size_t start, end;
    size_t from; /* where the search goes on */
    int any;
} Match;
/* pattern_next() : the next match in valid UTF-8 text, or *found = 0. An empty one right behind another does not count.
 * ERR_UNSUPPORTED if the pattern backtracks beyond its limit. */
Status pattern_next(const Pattern *p, const char *text, size_t n, Match *match, int *found);
void pattern_free(Pattern *p);

#endif
