/* Places in a file: ranges that are handed out first fit and used again. */
#ifndef ONN_PLACES_H
#define ONN_PLACES_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct Place {
    uint64_t at, bytes;
} Place;

typedef struct Places {
    Place *holes; /* by `at`; no two touch, none touches the end */
    size_t count, room;
    size_t live;  /* places handed out */
    uint64_t end; /* past the last place */
} Places;

/* places_take() : a place of `bytes`. Also sees to it that its return cannot fail: ERR_MEMORY changes nothing. */
Status places_take(Places *p, uint64_t bytes, uint64_t *at);
void places_give(Places *p, uint64_t at, uint64_t bytes);
void places_free(Places *p);

#endif
