#define _GNU_SOURCE
#include "stream.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"
#include "system.h"

enum { MOST_EVENTS = 1 << 20 }; /* 32 MB: more between two calls of stream_events() are counted, not kept */

typedef struct Failure {
    size_t unit; /* RING_NONE: none */
    Status status;
    char text[1024];
} Failure;

struct Stream {
    Store *store;
    Unit *units;
    Tensor **tensors; /* [unit][piece] */
    size_t count, slot_bytes;
    char *slots;
    void *block; /* what the pool gave: the slots, perhaps behind some bytes of alignment */
    size_t block_bytes;
    UnitReader io;
    pthread_t thread;
    int running, prefetch;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t work, loaded; /* for the reader; for the consumer */
    Ring ring;
    size_t wanted;   /* the unit that the consumer waits for, or RING_NONE */
    Failure failure; /* of a load, until the unit is asked for or another schedule comes */
    int paused;      /* no reading ahead between a failure's delivery and the next call: nothing has changed that would mend it */
    int stop, recording, loading;
    StreamStats stats;
    StreamEvent *events;
    size_t event_count, event_room, dropped;
};

static int choose(const Stream *s, size_t *unit, size_t *slot) {
    if (s->wanted != RING_NONE) {
        *unit = s->wanted;
        *slot = ring_victim(&s->ring);
        return s->ring.slot_of[*unit] == RING_NONE && s->failure.unit != *unit && *slot != RING_NONE;
    }
    return s->prefetch && !s->paused && s->failure.unit == RING_NONE && ring_next(&s->ring, unit, slot);
}

static void record(Stream *s, StreamEvent e) {
    if (!s->recording)
        return;
    if (s->event_count == s->event_room && s->event_room < MOST_EVENTS) {
        size_t room = s->event_room ? s->event_room * 2 : 256;
        StreamEvent *grown = realloc(s->events, room * sizeof *grown);
        if (grown)
            s->events = grown, s->event_room = room;
    }
    if (s->event_count < s->event_room)
        s->events[s->event_count++] = e;
    else
        s->dropped++;
}

/* Called with the lock, which it gives up while it reads. */
static void load(Stream *s, size_t unit, size_t slot) {
    const Unit *u = &s->units[unit];
    ring_empty(&s->ring, slot);
    s->loading = 1;
    pthread_mutex_unlock(&s->lock);
    double began = system_now();
    Status status = unit_read(&s->io, u, s->slots + slot * s->slot_bytes);
    double ended = system_now();
    pthread_mutex_lock(&s->lock);
    s->loading = 0;
    s->stats.reading += ended - began;
    if (status == OK) {
        ring_put(&s->ring, unit, slot);
        s->stats.loads++;
        s->stats.bytes += u->data;
        record(s, (StreamEvent){unit, began, ended, u->data});
    } else if (unit == s->wanted || ring_scheduled(&s->ring, unit)) { /* else nobody would ask for it, and it would stay */
        s->failure.unit = unit;
        s->failure.status = status;
        strncpy(s->failure.text, status_message(), sizeof s->failure.text - 1);
    }
    pthread_cond_signal(&s->loaded);
}

static void *reader(void *argument) {
    Stream *s = argument;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        size_t unit, slot;
        if (choose(s, &unit, &slot))
            load(s, unit, slot);
        else
            pthread_cond_wait(&s->work, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Signals stay with the program's own threads. */
static Status start(Stream *s) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&s->thread, NULL, reader, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return fail(ERR_MEMORY, "the reader's thread cannot be started: %s", strerror(error));
    s->running = 1;
    return OK;
}

static Status make_tensors(Stream *s) {
    if (!(s->tensors = calloc(s->count + 1, sizeof *s->tensors)))
        return fail(ERR_MEMORY, "out of memory");
    Status status = OK;
    for (size_t u = 0; u < s->count && status == OK; u++) {
        if (!(s->tensors[u] = calloc(s->units[u].count + 1, sizeof **s->tensors)))
            return fail(ERR_MEMORY, "out of memory");
        for (size_t i = 0; i < s->units[u].count && status == OK; i++) {
            const Piece *p = &s->units[u].pieces[i];
            status = tensor_declare(&s->tensors[u][i], p->dtype, p->dims, p->shape);
        }
    }
    return status;
}

static Status make_slots(Stream *s, size_t slots) {
    for (size_t u = 0; u < s->count; u++)
        if (s->units[u].bytes > s->slot_bytes)
            s->slot_bytes = s->units[u].bytes;
    if (!s->slot_bytes)
        s->slot_bytes = UNIT_ALIGNMENT; /* tensors of no elements have an address too */
    if (__builtin_mul_overflow(s->slot_bytes, slots, &s->block_bytes) || s->block_bytes > PTRDIFF_MAX - UNIT_ALIGNMENT)
        return fail(ERR_MEMORY, "%zu slots of %zu bytes are more than there are addresses", slots, s->slot_bytes);
    if (s->block_bytes < (256 << 10)) /* blocks below are not aligned by the pool */
        s->block_bytes += UNIT_ALIGNMENT;
    Status status = memory_alloc(memory_cpu(), &s->block_bytes, &s->block);
    s->slots = (char *)(((uintptr_t)s->block + UNIT_ALIGNMENT - 1) / UNIT_ALIGNMENT * UNIT_ALIGNMENT);
    return status;
}

Status stream_open(Store *store, Unit *units, size_t count, size_t slots, int prefetch, int direct, Stream **out) {
    *out = NULL;
    Stream *s = calloc(1, sizeof *s);
    if (!s) {
        for (size_t u = 0; u < count; u++)
            unit_free(&units[u]);
        free(units);
        return fail(ERR_MEMORY, "out of memory");
    }
    *s = (Stream){.store = store_hold(store), .units = units, .count = count, .prefetch = prefetch, .wanted = RING_NONE,
                  .failure.unit = RING_NONE};
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->loaded, NULL);
    if (slots > count)
        slots = count ? count : 1;
    Status status = ring_make(&s->ring, count, slots);
    if (status == OK)
        status = make_tensors(s);
    if (status == OK)
        status = unit_reader_open(&s->io, store, units, count, direct);
    if (status == OK)
        status = make_slots(s, slots);
    if (status == OK)
        status = start(s);
    if (status != OK) {
        stream_close(s);
        return status;
    }
    *out = s;
    return OK;
}

void stream_close(Stream *s) {
    if (!s)
        return;
    if (s->running) {
        atomic_store(&s->io.stop, 1);
        pthread_mutex_lock(&s->lock);
        s->stop = 1;
        pthread_cond_signal(&s->work);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    for (size_t u = 0; u < s->count; u++) {
        for (size_t i = 0; s->tensors && s->tensors[u] && i < s->units[u].count; i++)
            if (s->tensors[u][i].storage) {
                tensor_bind(&s->tensors[u][i], NULL);
                tensor_free(&s->tensors[u][i]);
            }
        if (s->tensors)
            free(s->tensors[u]);
        unit_free(&s->units[u]);
    }
    free(s->tensors);
    free(s->units);
    memory_free(memory_cpu(), s->block, s->block_bytes);
    unit_reader_close(&s->io);
    ring_free(&s->ring);
    free(s->events);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->loaded);
    pthread_mutex_destroy(&s->lock);
    store_close(s->store);
    free(s);
}

size_t stream_units(const Stream *s) { return s->count; }
const Unit *stream_unit(const Stream *s, size_t unit) { return &s->units[unit]; }
const Tensor *stream_tensor(const Stream *s, size_t unit, size_t i) { return &s->tensors[unit][i]; }

Status stream_schedule(Stream *s, const size_t *uses, size_t length) {
    pthread_mutex_lock(&s->lock);
    Status status = ring_schedule(&s->ring, uses, length);
    s->failure.unit = RING_NONE; /* of a unit that may have no use now, and then nobody would ask for it */
    s->paused = 0;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    return status;
}

static void bind(Stream *s, size_t unit, int present) {
    char *slot = present ? s->slots + s->ring.slot_of[unit] * s->slot_bytes : NULL;
    for (size_t i = 0; i < s->units[unit].count; i++)
        tensor_bind(&s->tensors[unit][i], present ? slot + s->units[unit].pieces[i].at : NULL);
}

/* With the lock: until the unit is in a slot, or cannot be read. */
static Status await(Stream *s, size_t unit) {
    Ring *r = &s->ring;
    if (r->slot_of[unit] == RING_NONE && s->failure.unit != unit) {
        if (ring_victim(r) == RING_NONE)
            return fail(ERR_ARGUMENT, "all %zu slots of the stream are acquired: unit %zu has no place", r->slots, unit + 1);
        double began = system_now();
        s->wanted = unit;
        pthread_cond_signal(&s->work);
        while (r->slot_of[unit] == RING_NONE && s->failure.unit != unit)
            pthread_cond_wait(&s->loaded, &s->lock);
        s->wanted = RING_NONE;
        s->stats.waited += system_now() - began;
    } else if (r->slot_of[unit] != RING_NONE && !r->held[unit]) {
        s->stats.hits++;
    }
    if (r->slot_of[unit] != RING_NONE)
        return OK;
    s->failure.unit = RING_NONE;
    s->paused = 1;
    return fail(s->failure.status, "%s", s->failure.text);
}

Status stream_acquire(Stream *s, size_t unit) {
    pthread_mutex_lock(&s->lock);
    s->paused = 0;
    Status status = await(s, unit);
    if (status == OK) {
        if (!s->ring.held[unit])
            bind(s, unit, 1);
        ring_hold(&s->ring, unit);
    }
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    return status;
}

Status stream_release(Stream *s, size_t unit) {
    if (!s->ring.held[unit]) /* only this thread writes it */
        return fail(ERR_ARGUMENT, "unit %zu of the stream is not acquired", unit + 1);
    pthread_mutex_lock(&s->lock);
    ring_drop(&s->ring, unit);
    if (!s->ring.held[unit])
        bind(s, unit, 0);
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    return OK;
}

StreamStats stream_stats(Stream *s) {
    pthread_mutex_lock(&s->lock);
    StreamStats stats = s->stats;
    size_t unit, slot;
    stats.idle = !s->loading && !choose(s, &unit, &slot);
    stats.direct = !atomic_load(&s->io.buffered);
    stats.slots = s->ring.slots;
    stats.slot_bytes = s->slot_bytes;
    pthread_mutex_unlock(&s->lock);
    return stats;
}

void stream_record(Stream *s, int on) {
    pthread_mutex_lock(&s->lock);
    s->recording = on;
    pthread_mutex_unlock(&s->lock);
}

size_t stream_events(Stream *s, StreamEvent **events, size_t *dropped) {
    pthread_mutex_lock(&s->lock);
    size_t n = s->event_count;
    *events = s->events;
    *dropped = s->dropped;
    s->events = NULL;
    s->event_count = s->event_room = s->dropped = 0;
    pthread_mutex_unlock(&s->lock);
    return n;
}
