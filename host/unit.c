#define _GNU_SOURCE
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor.h"

enum {
    REQUEST = 32 << 20, /* bytes asked for at once: no faster beyond, and a stop is heeded soon */
    GAP = 64 << 10      /* bytes between two pieces that are sooner read than asked for separately */
};

static uint64_t down(uint64_t n) { return n / UNIT_ALIGNMENT * UNIT_ALIGNMENT; }
static uint64_t up(uint64_t n) { return down(n + UNIT_ALIGNMENT - 1); }

Status unit_piece(const Store *store, const char *name, int64_t first, int64_t rows, Piece *out) {
    const Entry *e = store_find(store, name);
    if (!e)
        return fail(ERR_FORMAT, "there is no tensor '%.200s' in the store", name);
    int dtype = dtype_from_name(e->dtype);
    if (dtype < 0)
        return fail(ERR_UNSUPPORTED, "%s: tensor '%.200s' is %s, which is not computed with", store_path(store, e), name, e->dtype);
    *out = (Piece){.entry = e, .bytes = (size_t)e->bytes, .dtype = (Dtype)dtype, .dims = e->dims};
    memcpy(out->shape, e->shape, sizeof out->shape);
    if (rows < 0)
        return OK;
    if (!e->dims)
        return fail(ERR_ARGUMENT, "%s: tensor '%.200s' is a single number and has no rows", store_path(store, e), name);
    if (first < 0 || first > e->shape[0] || rows > e->shape[0] - first)
        return fail(ERR_ARGUMENT, "%s: tensor '%.200s' has %lld rows, not %lld from row %lld", store_path(store, e), name,
                    (long long)e->shape[0], (long long)rows, (long long)first);
    uint64_t row = e->shape[0] ? e->bytes / (uint64_t)e->shape[0] : 0;
    out->offset = row * (uint64_t)first;
    out->bytes = (size_t)(row * (uint64_t)rows);
    out->shape[0] = rows;
    return OK;
}

static uint64_t file_begin(const Piece *p) { return p->entry->offset + p->offset; }

static int by_place(const void *a, const void *b, void *pieces) {
    size_t i = *(const size_t *)a, j = *(const size_t *)b;
    const Piece *p = (const Piece *)pieces + i, *q = (const Piece *)pieces + j;
    if (p->entry->shard != q->entry->shard)
        return p->entry->shard < q->entry->shard ? -1 : 1;
    if (file_begin(p) != file_begin(q))
        return file_begin(p) < file_begin(q) ? -1 : 1;
    return i < j ? -1 : i > j;
}

Status unit_lay_out(Unit *u) {
    u->order = calloc(u->count + 1, sizeof *u->order);
    u->windows = calloc(u->count + 1, sizeof *u->windows);
    if (!u->order || !u->windows)
        return fail(ERR_MEMORY, "out of memory");
    for (size_t i = 0; i < u->count; i++)
        u->order[i] = i;
    qsort_r(u->order, u->count, sizeof *u->order, by_place, u->pieces);
    int joinable = 0;
    for (size_t i = 0; i < u->count; i++) {
        Piece *p = &u->pieces[u->order[i]];
        uint64_t begin = file_begin(p), end = begin + p->bytes;
        size_t odd = (size_t)(begin % dtype_size(p->dtype)); /* the format allows it; the kernels do not */
        Window *w = u->window_count ? &u->windows[u->window_count - 1] : NULL;
        int same = w && u->pieces[u->order[w->first]].entry->shard == p->entry->shard;
        if (!p->bytes) { /* no bytes of its own: any place will do, with the window that is open if there is one */
            if (w)
                w->count++;
            else
                u->windows[u->window_count++] = (Window){.begin = down(begin), .end = down(begin), .count = 1};
            continue;
        }
        if (same && joinable && !odd && begin <= w->end + GAP) {
            w->end = end > w->end ? end : w->end;
            w->count++;
        } else {
            size_t at = w ? w->at + (size_t)(up(w->end) - w->begin) : 0;
            w = &u->windows[u->window_count++];
            *w = (Window){.begin = down(begin), .end = end, .at = at, .first = i, .count = 1};
        }
        joinable = !odd; /* what is moved to its alignment would run over a neighbour */
        p->read = w->at + (size_t)(begin - w->begin);
        p->at = p->read - odd;
        u->data += p->bytes;
    }
    const Window *last = u->window_count ? &u->windows[u->window_count - 1] : NULL;
    u->bytes = last ? last->at + (size_t)(up(last->end) - last->begin) : 0;
    return OK;
}

void unit_free(Unit *u) {
    free(u->pieces);
    free(u->order);
    free(u->windows);
    memset(u, 0, sizeof *u);
}

Status unit_reader_open(UnitReader *r, const Store *store, const Unit *units, size_t count, int direct) {
    *r = (UnitReader){.store = store};
    int shards = 0;
    for (size_t u = 0; u < count; u++)
        for (size_t i = 0; i < units[u].count; i++)
            if (units[u].pieces[i].entry->shard >= shards)
                shards = units[u].pieces[i].entry->shard + 1;
    if (!(r->direct = malloc(((size_t)shards + 1) * sizeof *r->direct)))
        return fail(ERR_MEMORY, "out of memory");
    r->shards = shards;
    for (int i = 0; i < shards; i++)
        r->direct[i] = -1;
    atomic_store(&r->buffered, !direct);
    for (size_t u = 0; u < count && direct; u++)
        for (size_t i = 0; i < units[u].count; i++) {
            const Entry *e = units[u].pieces[i].entry;
            if (r->direct[e->shard] < 0 && (r->direct[e->shard] = store_reopen(store, e, O_RDONLY | O_DIRECT)) < 0)
                atomic_store(&r->buffered, 1);
        }
    return OK;
}

void unit_reader_close(UnitReader *r) {
    for (int i = 0; i < r->shards; i++)
        if (r->direct[i] >= 0)
            close(r->direct[i]);
    free(r->direct);
    *r = (UnitReader){0};
}

static Status stopped(void) { return fail(ERR_INTERRUPTED, "the stream was closed while it was reading"); }

/* A window's pieces through the page cache, each to its place. */
static Status read_buffered(UnitReader *r, const Unit *u, const Window *w, char *slot) {
    Status status = OK;
    for (size_t i = w->first; i < w->first + w->count && status == OK; i++) {
        const Piece *p = &u->pieces[u->order[i]];
        for (size_t n = 0; n < p->bytes && status == OK; n += REQUEST) {
            size_t want = p->bytes - n < REQUEST ? p->bytes - n : REQUEST;
            status = atomic_load(&r->stop) ? stopped() : store_read(r->store, p->entry, p->offset + n, slot + p->at + n, want);
        }
    }
    return status;
}

/* The piece that holds byte `at` of its file, or the next one behind: for messages. */
static const Piece *piece_at(const Unit *u, const Window *w, uint64_t at) {
    for (size_t i = w->first; i < w->first + w->count; i++) {
        const Piece *p = &u->pieces[u->order[i]];
        if (file_begin(p) + p->bytes > at)
            return p;
    }
    return &u->pieces[u->order[w->first]];
}

/* OK with *whole = 0: the window must be read through the page cache, since direct reads are refused or came short. */
static Status read_direct(UnitReader *r, const Unit *u, const Window *w, char *slot, int *whole) {
    int shard = u->pieces[u->order[w->first]].entry->shard;
    uint64_t at = w->begin;
    *whole = 0;
    while (at < w->end) {
        uint64_t left = up(w->end) - at;
        size_t want = left < REQUEST ? (size_t)left : REQUEST;
        if (atomic_load(&r->stop))
            return stopped();
        ssize_t got = pread(r->direct[shard], slot + w->at + (at - w->begin), want, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EINVAL) { /* a file system that opens for direct reads and then refuses them */
            close(r->direct[shard]);
            r->direct[shard] = -1;
            atomic_store(&r->buffered, 1);
            return OK;
        }
        const Piece *p = piece_at(u, w, at);
        if (got < 0)
            return fail(ERR_IO, "%s: tensor '%.200s': reading at byte %llu: %s", store_path(r->store, p->entry), p->entry->name,
                        (unsigned long long)at, strerror(errno));
        at += (uint64_t)got;
        if ((size_t)got < want && at < w->end)
            return OK;
    }
    *whole = 1;
    return OK;
}

Status unit_read(UnitReader *r, const Unit *u, void *slot) {
    for (size_t i = 0; i < u->window_count; i++) {
        const Window *w = &u->windows[i];
        const Piece *first = &u->pieces[u->order[w->first]];
        int whole = 0;
        Status status = store_check(r->store, first->entry);
        if (status == OK && r->direct[first->entry->shard] >= 0)
            status = read_direct(r, u, w, slot, &whole);
        if (status == OK && !whole)
            status = read_buffered(r, u, w, slot);
        if (status == OK) /* what was written meanwhile would be a mixture */
            status = store_check(r->store, first->entry);
        if (status != OK)
            return status;
        for (size_t k = w->first; whole && k < w->first + w->count; k++) {
            const Piece *p = &u->pieces[u->order[k]];
            if (p->at != p->read)
                memmove((char *)slot + p->at, (char *)slot + p->read, p->bytes);
        }
    }
    return OK;
}
