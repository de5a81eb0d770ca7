/* Post-processors: the special tokens that stand around one text, or around a pair of texts. */
#ifndef ONN_POSTPROCESS_H
#define ONN_POSTPROCESS_H

#include <cjson/cJSON.h>

#include "ids.h"
#include "vocab.h"

typedef struct PostProcessor PostProcessor;

/* postprocessor_load() : `spec` is the post_processor of a tokenizer.json, NULL or null for none; `what` names the file. Tokens are
 * looked up in `vocab`. ERR_UNSUPPORTED by name for what is not known. @out : freed with postprocessor_free(). */
Status postprocessor_load(const cJSON *spec, const Vocab *vocab, const char *what, PostProcessor **out);

/* postprocessor_run() : appends to `out` the ids of a text, or of a pair of texts if b is not NULL, with the special tokens, and to
 * `types` the segment (token type) of each. */
Status postprocessor_run(const PostProcessor *p, const Ids *a, const Ids *b, Ids *out, Ids *types);

/* postprocessor_prefix() : appends what stands before a single text. */
Status postprocessor_prefix(const PostProcessor *p, Ids *out);

void postprocessor_free(PostProcessor *p);

#endif
