/* Patterns of tokenizer.json are written for Oniguruma in Ruby's syntax; here they are spelt for PCRE2. */
#ifndef ONN_ONIGURUMA_H
#define ONN_ONIGURUMA_H

#include "bytes.h"

/* oniguruma_translate() : appends to `out` a pattern for PCRE2 with UTF, UCP and MULTILINE that finds what the n bytes at
 * `pattern` find in Oniguruma. ERR_UNSUPPORTED, naming the construct, where there is none; what is no pattern at all is
 * left for PCRE2 to refuse. `what` names the file. */
Status oniguruma_translate(const char *pattern, size_t n, const char *what, Bytes *out);

#endif
