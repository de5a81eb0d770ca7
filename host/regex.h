/* Regular expressions of tokenizer.json, by PCRE2 with Unicode classes. */
#ifndef ONN_REGEX_H
#define ONN_REGEX_H

#include <stddef.h>

#include "status.h"

typedef struct Regex Regex;

/* regex_compile() : `what` names the pattern's place in messages. ERR_UNSUPPORTED with PCRE2's words if it is none of its
 * patterns. @out : freed with regex_free(). Not to be used by two threads at once. */
Status regex_compile(const char *pattern, size_t n, const char *what, Regex **out);

/* regex_find() : the first match at or after `from` in valid UTF-8 text. *found is 1 with [*start, *end), or 0.
 * ERR_UNSUPPORTED if the pattern backtracks beyond its limit. */
Status regex_find(Regex *regex, const char *text, size_t n, size_t from, int *found, size_t *start, size_t *end);

void regex_free(Regex *regex);

#endif
