#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };
static const size_t RANGE = (size_t)1 << 42, STEP = (size_t)256 << 20; /* addresses reserved; opened at a time */

static int reserve(Arena *a) {
    for (size_t range = RANGE; range >= STEP; range /= 2) { /* an address limit may leave less */
        char *map = mmap(NULL, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map != MAP_FAILED) {
            a->base = (char *)(((uintptr_t)map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
            return 1;
        }
    }
    return 0;
}

/* Makes addresses below `end` usable. */
static int open_upto(Arena *a, size_t end) {
    if (!a->base && !reserve(a))
        return 0;
    if (end <= a->opened)
        return 1;
    size_t bytes = (end - a->opened + STEP - 1) / STEP * STEP;
    if (mprotect(a->base + a->opened, bytes, PROT_READ | PROT_WRITE))
        return 0;
    madvise(a->base + a->opened, bytes, MADV_HUGEPAGE);
    a->opened += bytes;
    return 1;
}

static int make_room(Arena *a, size_t more) {
    if (a->count + more <= a->room)
        return 1;
    size_t room = a->room ? a->room * 2 : 256;
    Hole *grown = realloc(a->holes, room * sizeof *grown);
    if (!grown)
        return 0;
    a->holes = grown;
    a->room = room;
    return 1;
}

static void remove_holes(Arena *a, size_t first, size_t n) {
    if (!n) /* also where no list is there yet */
        return;
    memmove(a->holes + first, a->holes + first + n, (a->count - first - n) * sizeof *a->holes);
    a->count -= n;
}

/* Joins hole i with its right neighbour if they touch and are alike. */
static void join(Arena *a, size_t i) {
    if (i + 1 >= a->count)
        return;
    Hole *h = &a->holes[i], *next = h + 1;
    if (h->at + h->bytes == next->at && h->cold == next->cold) {
        h->bytes += next->bytes;
        remove_holes(a, i + 1, 1);
    }
}

/* The first run of touching holes with `bytes` in all; *last is its last hole. Returns its first, or a->count. */
static size_t find_run(const Arena *a, size_t bytes, size_t *last) {
    size_t first = 0, total = 0;
    for (size_t i = 0; i < a->count; i++) {
        if (i > first && a->holes[i - 1].at + a->holes[i - 1].bytes != a->holes[i].at)
            first = i, total = 0;
        total += a->holes[i].bytes;
        if (total >= bytes) {
            *last = i;
            return first;
        }
    }
    return a->count;
}

void *arena_alloc(Arena *a, size_t bytes, size_t *fresh) {
    size_t last, first = find_run(a, bytes, &last), at, left = bytes, n = 0;
    if (first == a->count) { /* past the end, from the last hole on if that lies there */
        const Hole *h = a->count ? &a->holes[a->count - 1] : NULL;
        int touches = h && h->at + h->bytes == a->top;
        at = touches ? h->at : a->top;
        if (at > SIZE_MAX - bytes || at + bytes > RANGE - HUGE_PAGE || !open_upto(a, at + bytes))
            return NULL;
        first = touches ? a->count - 1 : a->count;
        a->top = at + bytes;
    } else {
        at = a->holes[first].at;
    }
    *fresh = bytes;
    for (size_t i = first; i < a->count && left; i++) {
        Hole *h = &a->holes[i];
        size_t part = h->bytes < left ? h->bytes : left;
        if (!h->cold) {
            a->warm -= part;
            *fresh -= part;
        }
        h->at += part;
        h->bytes -= part;
        left -= part;
        n += h->bytes == 0;
    }
    remove_holes(a, first, n);
    return a->base + at;
}

void arena_free(Arena *a, void *block, size_t bytes) {
    size_t at = (size_t)((char *)block - a->base), low = 0, high = a->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (a->holes[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    if (!make_room(a, 1)) { /* the list cannot grow: gone from memory, its addresses unused from now on */
        madvise(block, bytes, MADV_DONTNEED);
        return;
    }
    memmove(a->holes + low + 1, a->holes + low, (a->count - low) * sizeof *a->holes);
    a->holes[low] = (Hole){at, bytes, 0};
    a->count++;
    a->warm += bytes;
    join(a, low);
    if (low)
        join(a, low - 1);
}

void arena_cool(Arena *a, size_t allowed) {
    for (size_t i = a->count; i-- > 0 && a->warm > allowed;) {
        Hole *h = &a->holes[i];
        if (h->cold)
            continue;
        madvise(a->base + h->at, h->bytes, MADV_DONTNEED);
        h->cold = 1;
        a->warm -= h->bytes;
        join(a, i);
        if (i)
            join(a, i - 1);
    }
}
