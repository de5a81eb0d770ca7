/* Large blocks of memory, cut from one reserved range of addresses. What is freed stays resident and serves blocks of other
 * sizes, joined with its neighbours; what must leave memory is given back to the system page by page and keeps its address. */
#ifndef ONN_ARENA_H
#define ONN_ARENA_H

#include <stddef.h>

enum { ARENA_UNIT = 64 << 10 }; /* sizes and addresses are multiples of this */

typedef struct Hole {
    size_t at, bytes;
    int cold; /* not resident */
} Hole;

/* Zeroed, it is an empty arena. Not locked: the owner is. */
typedef struct Arena {
    char *base;
    size_t opened, top; /* bytes that may be used; bytes below which blocks and holes lie */
    Hole *holes;        /* in order of address; two that touch differ in `cold` */
    size_t count, room;
    size_t warm; /* resident bytes in holes */
} Arena;

/* arena_alloc() : `bytes`, a multiple of ARENA_UNIT, at the lowest address where they fit. *fresh: how many become resident.
 * @return : NULL if the system has no more addresses or memory for it. */
void *arena_alloc(Arena *a, size_t bytes, size_t *fresh);

/* arena_free() : `block` of `bytes` becomes a warm hole. */
void arena_free(Arena *a, void *block, size_t bytes);

/* arena_cool() : gives warm holes back to the system, from the highest address down, until at most `allowed` bytes are warm. */
void arena_cool(Arena *a, size_t allowed);

#endif
