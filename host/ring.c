#include "ring.h"

#include <stdlib.h>
#include <string.h>

Status ring_make(Ring *r, size_t units, size_t slots) {
    *r = (Ring){.units = units, .slots = slots};
    r->slot_of = calloc(units + 1, sizeof *r->slot_of);
    r->unit_of = calloc(slots + 1, sizeof *r->unit_of);
    r->held = calloc(units + 1, sizeof *r->held);
    r->used = calloc(units + 1, sizeof *r->used);
    r->first_use = calloc(units + 1, sizeof *r->first_use);
    if (!r->slot_of || !r->unit_of || !r->held || !r->used || !r->first_use) {
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
    free(r->used);
    free(r->schedule);
    free(r->uses);
    free(r->first_use);
    memset(r, 0, sizeof *r);
}

static Status set_schedule(Ring *r, const size_t *schedule, size_t length) {
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
    r->ahead = length;
    return OK;
}

int ring_scheduled(const Ring *r, size_t unit) { return r->first_use[unit] < r->first_use[unit + 1]; }

/* Uses of the schedule before the next one of `unit`; RING_NONE if it is not scheduled. */
static size_t distance(const Ring *r, size_t unit) {
    size_t low = r->first_use[unit], end = r->first_use[unit + 1], high = end;
    if (!ring_scheduled(r, unit))
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
        if (best == RING_NONE || d > *away || (d == *away && r->used[unit] < r->used[r->unit_of[best]])) {
            best = s;
            *away = d;
        }
    }
    return best;
}

int ring_next(const Ring *r, size_t *unit, size_t *slot) {
    size_t d = 0, away = 0;
    size_t end = r->ahead < r->length ? r->ahead : r->length;
    while (d < end && r->slot_of[r->schedule[(r->position + d) % r->length]] != RING_NONE)
        d++;
    if (d == end)
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
    r->used[unit] = ++r->clock;
}

void ring_drop(Ring *r, size_t unit) { r->held[unit]--; }

static void round_load(Ring *r, size_t unit, size_t slot, size_t *loaded, size_t *count) {
    ring_empty(r, slot);
    ring_put(r, unit, slot);
    if (loaded)
        loaded[*count] = unit;
    ++*count;
}

void ring_round(Ring *r, size_t *loaded, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < r->length; i++) {
        size_t used = r->schedule[r->position], unit, slot;
        while (ring_next(r, &unit, &slot))
            round_load(r, unit, slot, loaded, count);
        if (r->slot_of[used] == RING_NONE)
            round_load(r, used, ring_victim(r), loaded, count);
        ring_hold(r, used);
        while (ring_next(r, &unit, &slot))
            round_load(r, unit, slot, loaded, count);
        ring_drop(r, used);
    }
}

/* A load is for a use within this round or the next, and each use has one at most. */
size_t ring_round_most(const Ring *r) { return 2 * r->length + 1; }

enum { SETTLED = 3, COSTS = 50 }; /* rounds until loads repeat, nearly; reading ahead may cost a 50th more of them */

/* Loads of all rounds but the first, reading `ahead` uses ahead from empty slots; RING_NONE without memory for it. */
static size_t cost(const Ring *r, size_t ahead) {
    Ring trial;
    size_t total = 0, count;
    if (ring_make(&trial, r->units, r->slots) != OK)
        return RING_NONE;
    if (set_schedule(&trial, r->schedule, r->length) != OK) {
        ring_free(&trial);
        return RING_NONE;
    }
    trial.ahead = ahead;
    for (int round = 0; round <= SETTLED; round++) {
        ring_round(&trial, NULL, &count);
        total += round ? count : 0;
    }
    ring_free(&trial);
    return total;
}

Status ring_schedule(Ring *r, const size_t *schedule, size_t length) {
    Status status = set_schedule(r, schedule, length);
    if (status != OK || length < 2)
        return status;
    size_t least = RING_NONE, best = length, tries = 0, costs[64], distances[64];
    for (size_t ahead = 1; tries < 64; ahead *= 2) {
        distances[tries] = ahead < length ? ahead : length;
        if ((costs[tries] = cost(r, distances[tries])) == RING_NONE)
            return OK; /* the trial had no memory: as far ahead as can be */
        least = costs[tries] < least ? costs[tries] : least;
        tries++;
        if (ahead >= length || ahead >= r->slots)
            break;
    }
    for (size_t i = 0; i < tries; i++)
        if (costs[i] <= least + least / COSTS)
            best = distances[i];
    r->ahead = best;
    return OK;
}
