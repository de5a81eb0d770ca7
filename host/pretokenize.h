/* Pre-tokenizers: how text is cut into the words that a model encodes. */
#ifndef ONN_PRETOKENIZE_H
#define ONN_PRETOKENIZE_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "status.h"

typedef struct PreTokenizer PreTokenizer;

/* Takes one word of n >= 1 bytes, valid until it returns. */
typedef Status (*WordSink)(void *context, const char *word, size_t n);

/* pretokenizer_load() : `spec` is the pre_tokenizer of a tokenizer.json, NULL or null for none; `what` names the file.
 * ERR_UNSUPPORTED by name for what is not known. @out : freed with pretokenizer_free(); not for two threads at once. */
Status pretokenizer_load(const cJSON *spec, const char *what, PreTokenizer **out);

/* pretokenizer_bytes() : true if words are bytes to be spelt in the byte-level alphabet rather than UTF-8. */
int pretokenizer_bytes(const PreTokenizer *t);

/* pretokenizer_spell() : from here on words are UTF-8 always, bytes spelt in the byte-level alphabet. */
void pretokenizer_spell(PreTokenizer *t);

/* pretokenizer_run() : cuts valid UTF-8 text. at_start: it stands at the very beginning of what is being encoded. */
Status pretokenizer_run(PreTokenizer *t, const char *text, size_t n, int at_start, WordSink sink, void *context);

void pretokenizer_free(PreTokenizer *t);

#endif
