/* A chunk ring: weights of a model that is larger than memory pass through a few equal slots, brought by a thread that knows the order of
 * their uses and reads ahead of the arithmetic. All calls are for one thread, the consumer's. */
#ifndef ONN_STREAM_H
#define ONN_STREAM_H

#include "tensor.h"
#include "unit.h"

typedef struct Stream Stream;

typedef struct StreamStats {
    uint64_t bytes, loads; /* read; units read, in all */
    uint64_t hits;         /* acquired units that were in their slot already */
    double waited, reading; /* seconds: of stream_acquire() waiting; of the reader reading */
    int idle;               /* the reader has nothing to read now */
    int direct;             /* reads go past the page cache, all of them */
    size_t slots, slot_bytes;
} StreamStats;

typedef struct StreamEvent {
    size_t unit;
    double began, ended; /* system_now() */
    uint64_t bytes;
} StreamEvent;

/* stream_open() : takes `units`, laid out, whatever it returns; holds the store. More slots than units are as many as units. The slots come
 * from the CPU's memory pool: ERR_MEMORY over its budget. */
Status stream_open(Store *store, Unit *units, size_t count, size_t slots, int prefetch, int direct, Stream **out);

/* stream_close() : waits for the reader; tensors of acquired units lose their memory. */
void stream_close(Stream *s);

size_t stream_units(const Stream *s);
const Unit *stream_unit(const Stream *s, size_t unit);

/* stream_tensor() : piece `i` of a unit: the same always; without memory while the unit is not acquired. */
const Tensor *stream_tensor(const Stream *s, size_t unit, size_t i);

/* stream_schedule() : the uses from now on, then the same again and again. Units in slots stay. */
Status stream_schedule(Stream *s, const size_t *uses, size_t length);

/* stream_acquire() : waits until the unit is in a slot, which is its own until as many stream_release() as stream_acquire(). A unit that
 * could not be read is an error here; the next call tries again. ERR_ARGUMENT when every slot is acquired. */
Status stream_acquire(Stream *s, size_t unit);

/* stream_release() : ERR_ARGUMENT if the unit is not acquired. */
Status stream_release(Stream *s, size_t unit);

StreamStats stream_stats(Stream *s);

/* stream_record() : from now on loads are kept for stream_events(), or no longer. */
void stream_record(Stream *s, int on);

/* stream_events() : loads recorded since the last call; free() them. *dropped: later ones, that were more than are kept. */
size_t stream_events(Stream *s, StreamEvent **events, size_t *dropped);

#endif
