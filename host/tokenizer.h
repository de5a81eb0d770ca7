/* Tokenizers of Hugging Face's tokenizer.json: text to token ids and back, as the reference does it. */
#ifndef ONN_TOKENIZER_H
#define ONN_TOKENIZER_H

#include "bytes.h"
#include "ids.h"

typedef struct Tokenizer Tokenizer;
typedef struct TokenStream TokenStream;

/* tokenizer_load() : reads the n bytes of a tokenizer.json; `what` names it in messages. ERR_FORMAT for a broken file,
 * ERR_UNSUPPORTED, by name, for a part that is not known. Truncation and padding are left to whoever makes batches.
 * @out : freed with tokenizer_free(); not to be used by two threads at once. */
Status tokenizer_load(const char *json, size_t n, const char *what, Tokenizer **out);
void tokenizer_free(Tokenizer *t);

enum {
    ENCODE_SPECIAL = 1, /* special tokens in the text are recognised; without it they are text like any other */
    ENCODE_BOS = 2      /* begins with what the file's template puts before a text */
};

/* tokenizer_encode() : appends the ids of a text. Bytes that are no UTF-8 count as U+FFFD. Added tokens that are not
 * special are always recognised. */
Status tokenizer_encode(Tokenizer *t, const char *text, size_t n, int flags, Ids *out);

/* tokenizer_encode_framed() : appends the ids of a text with the special tokens around it that the file's post-processor asks
 * for, or those of a pair of texts if b is not NULL; and to `types` the segment (token type) of each. flags: ENCODE_SPECIAL. */
Status tokenizer_encode_framed(Tokenizer *t, const char *a, size_t a_length, const char *b, size_t b_length, int flags, Ids *out,
                               Ids *types);

/* tokenizer_decode() : appends the text of the ids; ids without a token are passed over, special ones too if asked. */
Status tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, int skip_special, Bytes *out);

/* tokenizer_stream() : decodes id by id: the pieces together are what tokenizer_decode() gives for all the ids.
 * `t` must outlive the stream. @out : freed with token_stream_free(). */
Status tokenizer_stream(const Tokenizer *t, int skip_special, TokenStream **out);
Status token_stream_push(TokenStream *s, int32_t id, Bytes *out);
Status token_stream_finish(TokenStream *s, Bytes *out); /* appends the rest and begins anew */
void token_stream_free(TokenStream *s);

/* tokenizer_id() : the id of a token's text; -1 if there is none. */
int32_t tokenizer_id(const Tokenizer *t, const char *text, size_t n);
/* tokenizer_token() : the text of an id as the file has it, not terminated; NULL if there is none. */
const char *tokenizer_token(const Tokenizer *t, int64_t id, size_t *n);
int tokenizer_special(const Tokenizer *t, int64_t id);
/* tokenizer_size() : all ids are below. */
int32_t tokenizer_size(const Tokenizer *t);
/* tokenizer_prefix() : what the file's template puts before a text; owned by t, may be empty. */
const Ids *tokenizer_prefix(const Tokenizer *t);

#endif
