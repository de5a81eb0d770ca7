/* Which unit is in which slot, and which comes and goes next: the replacement of a chunk ring, when future uses are known. No I/O here. */
#ifndef ONN_RING_H
#define ONN_RING_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define RING_NONE SIZE_MAX

typedef struct Ring {
    size_t units, slots;
    size_t *slot_of;  /* of each unit; RING_NONE: in none */
    size_t *unit_of;  /* of each slot; RING_NONE: free */
    uint32_t *held;   /* of each unit: uses begun and not ended */
    uint64_t *used, clock; /* of each unit: when its last use began, counted in uses */
    size_t *schedule; /* uses in order, then the same again and again */
    size_t length, position; /* uses in the schedule; the next one */
    size_t ahead;            /* uses from the position on that are loaded for */
    size_t *uses, *first_use; /* places in the schedule of unit u, ascending: uses[first_use[u]] to before uses[first_use[u + 1]] */
} Ring;

/* ring_make() : `slots` free slots for `units` units, nothing scheduled. On failure there is nothing to free. */
Status ring_make(Ring *r, size_t units, size_t slots);
void ring_free(Ring *r);

/* ring_schedule() : uses from now on, units below r->units. ERR_MEMORY leaves the old schedule. How far ahead units are loaded follows from
 * it: as far as that costs no more loads. A sweep there and back costs none; in a cycle whoever reads far ahead throws out what would have
 * stayed. */
Status ring_schedule(Ring *r, const size_t *uses, size_t length);

/* ring_scheduled() : whether the schedule has a use of `unit`. */
int ring_scheduled(const Ring *r, size_t unit);

/* ring_next() : the load that the schedule asks for: the first unit within `ahead` uses that is in no slot, into a free slot or in the
 * place of the unit not held whose next use is farthest, if that is later than the loaded unit's own. Of units with no use ahead the one
 * that was used the longest ago gives way.
 * @return : 0 if there is none. */
int ring_next(const Ring *r, size_t *unit, size_t *slot);

/* ring_victim() : the slot to load into when that cannot wait: a free one, or the one not held whose next use is farthest.
 * RING_NONE if every slot is held. */
size_t ring_victim(const Ring *r);

void ring_empty(Ring *r, size_t slot);            /* what the slot held is gone */
void ring_put(Ring *r, size_t unit, size_t slot); /* `unit` is now in `slot`, which was emptied */

/* ring_hold() : a use of `unit`, which is in a slot, begins. The position moves to after the unit's next use in the schedule; within
 * another use of the same unit only if that is the very next. */
void ring_hold(Ring *r, size_t unit);
void ring_drop(Ring *r, size_t unit);

/* ring_round() : all uses of the schedule once, loads being done at once: whatever can be loaded ahead is. *count: loads, which go to
 * `loaded` (room for ring_round_most()) if that is not NULL. */
void ring_round(Ring *r, size_t *loaded, size_t *count);
size_t ring_round_most(const Ring *r);

#endif
