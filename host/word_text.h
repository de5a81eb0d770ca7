/* How the tokens of word models become text. */
#ifndef ONN_WORD_TEXT_H
#define ONN_WORD_TEXT_H

#include "bytes.h"

/* word_replace() : replaces all of `from`, which is not empty, in the text. */
Status word_replace(Bytes *text, const char *from, const char *to);

/* word_text() : a token of WordPiece as text: it loses its `prefix`, or else gets a space in front, but for the first one.
 * cleanup: spaces before English punctuation and contractions go. */
Status word_text(Bytes *token, const char *prefix, int first, int cleanup);

#endif
