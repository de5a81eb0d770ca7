/* Added tokens: texts that are tokens by themselves, found before anything else looks at the text. */
#ifndef ONN_ADDED_H
#define ONN_ADDED_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct AddedToken {
    int32_t id;
    unsigned special : 1, lstrip : 1, rstrip : 1, single_word : 1;
} AddedToken;

/* A set of added tokens, searched for all at once: the leftmost, of these the longest. */
typedef struct AddedSet AddedSet;

Status added_open(AddedSet **out);
/* added_put() : a token and the text that stands for it; a second one of the same text takes its place. */
Status added_put(AddedSet *s, const char *text, size_t n, AddedToken token);

/* added_next() : the first token in valid UTF-8 text at or after *from, which is moved behind it. Special ones are passed
 * over unless `special`. [*start, *end) is what it covers, with the white space that lstrip and rstrip add. What lies before
 * `covered`, the end of the one before, lstrip does not take: nothing may be left then, and the token counts for nothing;
 * without lstrip it covers its own text once more. @return : the token, NULL if there is none. */
const AddedToken *added_next(const AddedSet *s, const char *text, size_t n, int special, size_t *from, size_t covered,
                             size_t *start, size_t *end);
int added_empty(const AddedSet *s);
void added_free(AddedSet *s);

#endif
