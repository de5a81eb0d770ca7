/* SentencePiece's precompiled normalization: a trie of short texts and what they become. */
#ifndef ONN_CHARSMAP_H
#define ONN_CHARSMAP_H

#include "bytes.h"

typedef struct Charsmap Charsmap;

/* charsmap_load() : reads a precompiled_charsmap, in base64. `what` names the file. @out : freed with charsmap_free(). */
Status charsmap_load(const char *base64, const char *what, Charsmap **out);

/* charsmap_run() : appends valid UTF-8 text as the map rewrites it. */
Status charsmap_run(const Charsmap *m, const char *text, size_t n, Bytes *out);

void charsmap_free(Charsmap *m);

#endif
