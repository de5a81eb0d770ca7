/* Normalizers: how text is rewritten before it is cut into words. */
#ifndef ONN_NORMALIZE_H
#define ONN_NORMALIZE_H

#include <cjson/cJSON.h>

#include "bytes.h"

typedef struct Normalizer Normalizer;

/* normalizer_load() : `spec` is the normalizer of a tokenizer.json, NULL or null for none; `what` names the file.
 * ERR_UNSUPPORTED by name for what is not known. @out : freed with normalizer_free(); not for two threads at once. */
Status normalizer_load(const cJSON *spec, const char *what, Normalizer **out);

/* normalizer_run() : rewrites valid UTF-8 text. *out, *out_n is the result: `text` itself if nothing changes it, else
 * memory of the normalizer, valid until its next run. *from_start: the text's first character was not dropped. */
Status normalizer_run(Normalizer *n, const char *text, size_t length, const char **out, size_t *out_length, int *from_start);

void normalizer_free(Normalizer *n);

#endif
