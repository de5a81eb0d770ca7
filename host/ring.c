#include "ring.h"

#include <stdlib.h>
#include <string.h>

Status ring_make(Ring *r, size_t units, size_t slots) {
    *r = (Ring){.units = units, .slots = slots};
    r->slot_of = calloc(units + 1, sizeof *r->slot_of);
    r->unit_of = calloc(slots + 1, sizeof *r->unit_of);
    r->held = calloc(units + 1, sizeof *r->held);
    r->first_use = calloc(units + 1, sizeof *r->first_use);
    if (!r->slot_of || !r->unit_of || !r->held || !r->first_use) {
        ring_free(r);
        return fail(ERR_MEMORY, "out of memory");
    }
    for (size_t u = 0; u < units; u++)
        r->slot_of[u] = RING_NONE;
    for (size_t s = 0; s < slots; s++)
        r->unit_of[s] = RING_NONE;
    return OK;
}

void ring_free(Ring *r) {
    free(r->slot_of);
    free(r->unit_of);
    free(r->held);
    free(r->schedule);
    free(r->uses);
    free(r->first_use);
    memset(r, 0, sizeof *r);
}

Status ring_schedule(Ring *r, const size_t *schedule, size_t length) {
    size_t *copy = malloc((length + 1) * sizeof *copy), *uses = malloc((length + 1) * sizeof *uses);
    size_t *first = calloc(r->units + 2, sizeof *first);
    if (!copy || !uses || !first) {
        free(copy);
        free(uses);
        free(first);
        return fail(ERR_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < length; i++) {
        copy[i] = schedule[i];
        first[schedule[i] + 2]++; /* one further than where it belongs, since filling moves it up */
    }
    for (size_t u = 2; u <= r->units; u++)
        first[u] += first[u - 1];
    for (size_t i = 0; i < length; i++)
        uses[first[schedule[i] + 1]++] = i;
    free(r->schedule);
    free(r->uses);
    free(r->first_use);
    r->schedule = copy;
    r->uses = uses;
    r->first_use = first;
    r->length = length;
    r->position = 0;
    return OK;
}

/* Uses of the schedule before the next one of `unit`; RING_NONE if it is not scheduled. */
static size_t distance(const Ring *r, size_t unit) {
    size_t low = r->first_use[unit], end = r->first_use[unit + 1], high = end;
    if (low == end)
        return RING_NONE;
    size_t first = r->uses[low];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (r->uses[middle] < r->position)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end ? r->uses[low] - r->position : first + r->length - r->position;
}

/* The slot to give up, and how far off its unit's next use is: RING_NONE for a free one and for one with no use ahead. */
static size_t farthest(const Ring *r, size_t *away) {
    size_t best = RING_NONE;
    for (size_t s = 0; s < r->slots; s++) {
        size_t unit = r->unit_of[s];
        if (unit == RING_NONE) {
            *away = RING_NONE;
            return s;
        }
        if (r->held[unit])
            continue;
        size_t d = distance(r, unit);
        if (best == RING_NONE || d > *away) {
            best = s;
            *away = d;
        }
    }
    return best;
}

int ring_next(const Ring *r, size_t *unit, size_t *slot) {
    size_t d = 0, away = 0;
    while (d < r->length && r->slot_of[r->schedule[(r->position + d) % r->length]] != RING_NONE)
        d++;
    if (d == r->length)
        return 0;
    *unit = r->schedule[(r->position + d) % r->length];
    *slot = farthest(r, &away);
    return *slot != RING_NONE && away > d;
}

size_t ring_victim(const Ring *r) {
    size_t away = 0;
    return farthest(r, &away);
}

void ring_empty(Ring *r, size_t slot) {
    if (r->unit_of[slot] != RING_NONE)
        r->slot_of[r->unit_of[slot]] = RING_NONE;
    r->unit_of[slot] = RING_NONE;
}

void ring_put(Ring *r, size_t unit, size_t slot) {
    r->unit_of[slot] = unit;
    r->slot_of[unit] = slot;
}

void ring_hold(Ring *r, size_t unit) {
    size_t d = distance(r, unit);
    if (d != RING_NONE && (!r->held[unit] || !d))
        r->position = (r->position + d + 1) % r->length;
    r->held[unit]++;
}

void ring_drop(Ring *r, size_t unit) { r->held[unit]--; }
