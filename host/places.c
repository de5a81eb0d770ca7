#include "places.h"

#include <stdlib.h>
#include <string.h>

static void remove_hole(Places *p, size_t i) {
    p->count--;
    memmove(p->holes + i, p->holes + i + 1, (p->count - i) * sizeof *p->holes);
}

Status places_take(Places *p, uint64_t bytes, uint64_t *at) {
    if (p->live + 2 > p->room) { /* there are never more holes than places between which they lie, and one */
        size_t room = p->room ? p->room * 2 : 64;
        Place *grown = realloc(p->holes, room * sizeof *grown);
        if (!grown)
            return fail(ERR_MEMORY, "out of memory");
        p->holes = grown;
        p->room = room;
    }
    p->live++;
    for (size_t i = 0; i < p->count; i++) {
        Place *hole = &p->holes[i];
        if (hole->bytes < bytes)
            continue;
        *at = hole->at;
        hole->at += bytes;
        hole->bytes -= bytes;
        if (!hole->bytes)
            remove_hole(p, i);
        return OK;
    }
    *at = p->end;
    p->end += bytes;
    return OK;
}

void places_give(Places *p, uint64_t at, uint64_t bytes) {
    size_t low = 0, high = p->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (p->holes[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    p->live--;
    int left = low && p->holes[low - 1].at + p->holes[low - 1].bytes == at;
    int right = low < p->count && at + bytes == p->holes[low].at;
    if (left && right) {
        p->holes[low - 1].bytes += bytes + p->holes[low].bytes;
        remove_hole(p, low);
    } else if (left) {
        p->holes[low - 1].bytes += bytes;
    } else if (right) {
        p->holes[low].at = at;
        p->holes[low].bytes += bytes;
    } else {
        memmove(p->holes + low + 1, p->holes + low, (p->count - low) * sizeof *p->holes);
        p->holes[low] = (Place){at, bytes};
        p->count++;
    }
    if (p->count && p->holes[p->count - 1].at + p->holes[p->count - 1].bytes == p->end)
        p->end = p->holes[--p->count].at;
}

void places_free(Places *p) {
    free(p->holes);
    *p = (Places){0};
}
