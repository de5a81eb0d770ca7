/* Decoders: how tokens become text again, one token after the other. */
#ifndef ONN_DECODE_H
#define ONN_DECODE_H

#include <cjson/cJSON.h>

#include "bytes.h"

typedef struct Decoder Decoder;   /* what the file says */
typedef struct Decoding Decoding; /* one text under way */

/* decoder_load() : `spec` is the decoder of a tokenizer.json; without one tokens are joined by spaces. `what` names the file.
 * ERR_UNSUPPORTED by name for what is not known. @out : freed with decoder_free(). */
Status decoder_load(const cJSON *spec, const char *what, Decoder **out);
void decoder_free(Decoder *d);

/* decoding_open() : begins a text; `d` must outlive it. @out : freed with decoding_free(). */
Status decoding_open(const Decoder *d, Decoding **out);

/* decoding_push() : the next token, valid UTF-8. Appends to `out` what is certain now: held back are characters whose bytes
 * are not all there, runs of byte tokens (one bad byte spoils all of them), and what a later token may still change. */
Status decoding_push(Decoding *g, const char *token, size_t n, Bytes *out);

/* decoding_finish() : appends what was held back, and begins anew. All that was appended since the beginning is the
 * reference's text for all the tokens at once. */
Status decoding_finish(Decoding *g, Bytes *out);

void decoding_free(Decoding *g);

#endif
