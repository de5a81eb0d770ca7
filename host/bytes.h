/* Bytes: a growable run of bytes, for text under construction. A zeroed Bytes is empty. */
#ifndef ONN_BYTES_H
#define ONN_BYTES_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

typedef struct Bytes {
    char *data; /* not terminated; NULL while nothing was reserved */
    size_t length, capacity;
} Bytes;

/* bytes_reserve() : room for `more` bytes beyond the length, so that bytes_append() of them cannot fail. */
static inline Status bytes_reserve(Bytes *b, size_t more) {
    if (more <= b->capacity - b->length)
        return OK;
    if (more > ((size_t)1 << 62) - b->capacity)
        return fail(ERR_MEMORY, "a text of more than 2^62 bytes");
    size_t capacity = b->length + more + b->capacity / 2 + 64;
    char *data = realloc(b->data, capacity);
    if (!data)
        return fail(ERR_MEMORY, "no memory for %zu bytes of text", capacity);
    b->data = data;
    b->capacity = capacity;
    return OK;
}

static inline Status bytes_append(Bytes *b, const char *data, size_t n) {
    if (n == 0)
        return OK;
    Status status = bytes_reserve(b, n);
    if (status == OK) {
        memcpy(b->data + b->length, data, n);
        b->length += n;
    }
    return status;
}

static inline void bytes_free(Bytes *b) {
    free(b->data);
    *b = (Bytes){0};
}

#endif
