#include "spill.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "places.h"
#include "system.h"

enum {
    ALIGN = 4096,       /* what O_DIRECT wants of addresses, lengths and offsets, on every disk */
    BOUNCE = 256 << 10, /* buffer for what does not lie so */
    TRIES = 16          /* calls in a row that move nothing */
};

typedef enum Work { IDLE, WAITS, RUNS } Work;

struct Ticket {
    Spill *spill; /* NULL once that is closed */
    Ticket *previous, *following; /* of all tickets */
    Ticket *next;                 /* in its queue */
    Tensor written;               /* shape and dtype; its storage until it is in the file */
    Tensor fetched;               /* what a prefetch has read or is reading */
    uint64_t at, room;            /* the place; room is a multiple of ALIGN */
    Work writing, reading;
    int forgotten;
    Status status; /* of the reading; message in text */
    char text[1024]; /* as much as status_message() has */
};

typedef struct Queue {
    Ticket *first, **last;
} Queue;

struct Spill {
    pthread_mutex_t lock;
    pthread_cond_t work, done; /* for the thread; for the caller */
    pthread_t thread;
    Queue reads, writes; /* reads go first: somebody will soon wait for them */
    Ticket *tickets;
    Places places;
    size_t limit;
    int fd, stop, started;
    atomic_int direct;
    char *directory;
    void *bounce;
    size_t bounce_bytes;
    SpillStats stats;
    Status status; /* of a write that failed, until it is told; message in text */
    char text[1024]; /* as much as status_message() has */
};

/* --- the file ----------------------------------------------------------------------------------------------------- */

static Status open_file(Spill *s) {
    s->fd = open(s->directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (s->fd < 0) { /* not every file system has these */
        char *path;
        if (asprintf(&path, "%s/onn-spill-XXXXXX", s->directory) < 0)
            return fail(ERR_MEMORY, "out of memory");
        s->fd = mkostemp(path, O_CLOEXEC);
        if (s->fd < 0 || unlink(path)) {
            Status status = fail(ERR_IO, "%s: making a scratch file: %s", s->directory, strerror(errno));
            free(path);
            return status;
        }
        free(path);
    }
    s->direct = !fcntl(s->fd, F_SETFL, O_DIRECT);
    return OK;
}

static Status broken(const Spill *s, int writing, size_t bytes, uint64_t at, const char *why) {
    return fail(ERR_IO, "scratch file in %s: %s %zu bytes at byte %llu: %s", s->directory, writing ? "writing" : "reading", bytes,
                (unsigned long long)at, why);
}

/* Moves all of `bytes`, which O_DIRECT can take while s->direct. A call may move less; whole units of that count. */
static Status move(Spill *s, int writing, char *data, size_t bytes, uint64_t at) {
    for (int tries = 0; bytes;) {
        size_t step = bytes > (1u << 30) ? (1u << 30) : bytes;
        ssize_t n = writing ? pwrite(s->fd, data, step, (off_t)at) : pread(s->fd, data, step, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL && s->direct) { /* accepted when the file was opened, and yet not possible */
            fcntl(s->fd, F_SETFL, 0);
            s->direct = 0;
            continue;
        }
        if (n < 0)
            return broken(s, writing, bytes, at, strerror(errno));
        if (s->direct)
            n = n / ALIGN * ALIGN;
        tries = n ? 0 : tries + 1;
        if (tries == TRIES)
            return broken(s, writing, bytes, at, writing ? "nothing is written" : "the file ends before");
        data += n;
        at += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return OK;
}

static Status transfer(Spill *s, int writing, const Tensor *t, uint64_t at) {
    size_t bytes = tensor_bytes(t), whole = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    char *data = t->view.data;
    if ((uintptr_t)data % ALIGN == 0 && tensor_room(t) >= whole)
        return move(s, writing, data, whole, at);
    Status status = OK;
    for (size_t done = 0; done < bytes && status == OK; done += s->bounce_bytes) {
        size_t part = bytes - done < s->bounce_bytes ? bytes - done : s->bounce_bytes;
        size_t padded = (part + ALIGN - 1) / ALIGN * ALIGN;
        if (writing) {
            memcpy(s->bounce, data + done, part);
            memset((char *)s->bounce + part, 0, padded - part);
        }
        status = move(s, writing, s->bounce, padded, at + done);
        if (!writing && status == OK)
            memcpy(data + done, s->bounce, part);
    }
    return status;
}

/* --- queues and tickets; the lock is held ---------------------------------------------------------------------------- */

static void put(Queue *q, Ticket *k) {
    k->next = NULL;
    *q->last = k;
    q->last = &k->next;
}

static void take_out(Queue *q, Ticket *k) {
    Ticket **p = &q->first;
    while (*p != k)
        p = &(*p)->next;
    *p = k->next;
    if (q->last == &k->next)
        q->last = p;
}

static void unlink_ticket(Ticket *k) {
    *(k->previous ? &k->previous->following : &k->spill->tickets) = k->following;
    if (k->following)
        k->following->previous = k->previous;
}

static void end_ticket(Ticket *k) {
    unlink_ticket(k);
    if (k->room)
        places_give(&k->spill->places, k->at, k->room);
    tensor_free(&k->written);
    tensor_free(&k->fetched);
    free(k);
}

/* --- the thread --------------------------------------------------------------------------------------------------- */

static void write_one(Spill *s, Ticket *k) {
    k->writing = RUNS;
    pthread_mutex_unlock(&s->lock);
    Status status = transfer(s, 1, &k->written, k->at);
    pthread_mutex_lock(&s->lock);
    k->writing = IDLE;
    s->stats.held -= k->room;
    if (status == OK) {
        s->stats.written += tensor_bytes(&k->written);
        tensor_free(&k->written);
    } else if (!k->forgotten && s->status == OK) {
        s->status = status;
        snprintf(s->text, sizeof s->text, "%s", status_message());
    }
}

static void read_one(Spill *s, Ticket *k) {
    k->reading = RUNS;
    pthread_mutex_unlock(&s->lock);
    Status status = transfer(s, 0, &k->fetched, k->at);
    pthread_mutex_lock(&s->lock);
    k->reading = IDLE;
    k->status = status;
    if (status == OK)
        s->stats.read += tensor_bytes(&k->fetched);
    else
        snprintf(k->text, sizeof k->text, "%s", status_message());
}

static void *run(void *argument) {
    Spill *s = argument;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        Queue *q = s->reads.first ? &s->reads : &s->writes;
        Ticket *k = q->first;
        if (!k) {
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        take_out(q, k);
        if (q == &s->reads)
            read_one(s, k);
        else
            write_one(s, k);
        if (k->forgotten)
            end_ticket(k);
        pthread_cond_broadcast(&s->done);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static Status start(Spill *s) {
    sigset_t all, before; /* signals are for the thread that runs Lua */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    s->started = !error;
    return error ? fail(ERR_MEMORY, "a thread for the scratch file in %s: %s", s->directory, strerror(error)) : OK;
}

/* --- the caller --------------------------------------------------------------------------------------------------- */

Status spill_open(const char *directory, size_t limit, Spill **out) {
    *out = NULL;
    Spill *s = calloc(1, sizeof *s);
    if (!s || !(s->directory = strdup(directory))) {
        free(s);
        return fail(ERR_MEMORY, "out of memory");
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->done, NULL);
    s->reads.last = &s->reads.first;
    s->writes.last = &s->writes.first;
    s->limit = limit;
    s->fd = -1;
    s->bounce_bytes = BOUNCE;
    Status status = memory_alloc(memory_cpu(), &s->bounce_bytes, &s->bounce);
    if (status == OK)
        status = open_file(s);
    if (status == OK)
        status = start(s);
    if (status != OK)
        spill_close(s);
    else
        *out = s;
    return status;
}

void spill_close(Spill *s) {
    if (!s)
        return;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stop = 1;
        pthread_cond_signal(&s->work);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    for (Ticket *k = s->tickets, *following; k; k = following) {
        following = k->following;
        tensor_free(&k->written);
        tensor_free(&k->fetched);
        k->spill = NULL;
    }
    if (s->fd >= 0)
        close(s->fd);
    if (s->bounce)
        memory_free(memory_cpu(), s->bounce, s->bounce_bytes);
    places_free(&s->places);
    pthread_cond_destroy(&s->done);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
    free(s->directory);
    free(s);
}

static void wait_done(Spill *s) {
    double began = system_now();
    pthread_cond_wait(&s->done, &s->lock);
    s->stats.waited += system_now() - began;
}

/* What failed in the background, told once. */
static Status tell(Spill *s) {
    Status status = s->status;
    s->status = OK;
    return status == OK ? OK : fail(status, "%s", s->text);
}

static Status write_locked(Spill *s, Ticket *k) {
    while (s->status == OK && s->stats.held && s->stats.held + k->room > s->limit)
        wait_done(s);
    Status status = tell(s);
    if (status == OK && k->room)
        status = places_take(&s->places, k->room, &k->at);
    if (status != OK)
        return status;
    k->following = s->tickets;
    if (k->following)
        k->following->previous = k;
    s->tickets = k;
    if (k->room) {
        k->writing = WAITS;
        s->stats.held += k->room;
        put(&s->writes, k);
        pthread_cond_signal(&s->work);
    }
    return OK;
}

Status spill_write(Spill *s, const Tensor *t, Ticket **out) {
    *out = NULL;
    if (!tensor_contiguous(t))
        return fail(ERR_ARGUMENT, "only a contiguous tensor can be written");
    Ticket *k = calloc(1, sizeof *k);
    if (!k)
        return fail(ERR_MEMORY, "out of memory");
    k->spill = s;
    k->room = (tensor_bytes(t) + ALIGN - 1) / ALIGN * ALIGN;
    tensor_share(&k->written, t);
    pthread_mutex_lock(&s->lock);
    Status status = write_locked(s, k);
    pthread_mutex_unlock(&s->lock);
    if (status != OK) {
        tensor_free(&k->written);
        free(k);
        return status;
    }
    *out = k;
    return OK;
}

/* Begins to read, unless the tensor is in memory or on its way; the lock is held. */
static Status fetch(Ticket *k) {
    if (k->written.storage || k->fetched.storage)
        return OK;
    const View *v = &k->written.view;
    Status status = tensor_make(&k->fetched, v->dtype, v->dims, v->shape);
    if (status != OK || !k->room)
        return status;
    k->reading = WAITS;
    put(&k->spill->reads, k);
    pthread_cond_signal(&k->spill->work);
    return OK;
}

int spill_prefetch(Ticket *k) {
    pthread_mutex_lock(&k->spill->lock);
    int begun = !k->written.storage && !k->fetched.storage && fetch(k) == OK;
    pthread_mutex_unlock(&k->spill->lock);
    return begun;
}

static Status read_locked(Ticket *k, Tensor *t) {
    Status status = tell(k->spill);
    if (status == OK)
        status = fetch(k);
    while (status == OK && k->reading != IDLE)
        wait_done(k->spill);
    if (status != OK)
        return status;
    if (k->written.storage) {
        tensor_share(t, &k->written);
        return OK;
    }
    status = k->status;
    k->status = OK;
    if (status == OK)
        *t = k->fetched;
    else
        tensor_free(&k->fetched);
    k->fetched.storage = NULL;
    return status == OK ? OK : fail(status, "%s", k->text);
}

Status spill_read(Ticket *k, Tensor *t) {
    pthread_mutex_lock(&k->spill->lock);
    Status status = read_locked(k, t);
    pthread_mutex_unlock(&k->spill->lock);
    return status;
}

void spill_forget(Ticket *k) {
    Spill *s = k->spill;
    if (!s) {
        free(k);
        return;
    }
    pthread_mutex_lock(&s->lock);
    if (k->writing == WAITS) {
        take_out(&s->writes, k);
        s->stats.held -= k->room;
    }
    if (k->reading == WAITS)
        take_out(&s->reads, k);
    if (k->writing == RUNS || k->reading == RUNS)
        k->forgotten = 1; /* the thread ends it */
    else
        end_ticket(k);
    pthread_mutex_unlock(&s->lock);
}

Status spill_wait(Spill *s) {
    pthread_mutex_lock(&s->lock);
    while (s->stats.held)
        wait_done(s);
    int reading = 1;
    while (reading) {
        reading = 0;
        for (Ticket *k = s->tickets; k && !reading; k = k->following)
            reading = k->reading != IDLE;
        if (reading)
            wait_done(s);
    }
    Status status = tell(s);
    pthread_mutex_unlock(&s->lock);
    return status;
}

SpillStats spill_stats(Spill *s) {
    pthread_mutex_lock(&s->lock);
    SpillStats stats = s->stats;
    stats.file = s->places.end;
    stats.direct = s->direct;
    pthread_mutex_unlock(&s->lock);
    return stats;
}
