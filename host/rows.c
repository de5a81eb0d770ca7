/* Rows of a stored tensor by their numbers: an embedding's, of which a batch needs few. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file.h"
#include "store.h"

enum {
    MOST_THREADS = 8,  /* reads in flight: their latency, not the processor, is what they wait for */
    RUNS_EACH = 8,     /* below so many runs for a thread it is not worth starting */
    MOST_RUN = 1 << 18 /* bytes read together */
};

typedef struct Wish {
    int32_t id;
    size_t place; /* row of the result */
} Wish;

typedef struct Job {
    const Store *store;
    const Entry *entry;
    char *out;
    int fd;
    size_t row;   /* bytes */
    Wish *wishes; /* by id */
    size_t *runs; /* run i: wishes runs[i] to before runs[i + 1], of ids without a gap */
    size_t run_count;
    atomic_size_t next;
    pthread_mutex_t lock;
    Status status; /* the first failure, with its message */
    char text[1024];
} Job;

static int by_id(const void *a, const void *b) {
    const Wish *x = a, *y = b;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

static Status read_run(const Job *job, const char *what, const Wish *from, const Wish *end, char *buffer) {
    size_t rows = (size_t)(end[-1].id - from->id) + 1;
    char *to = rows == 1 ? job->out + from->place * job->row : buffer;
    Status status = file_read_at(job->fd, what, job->entry->offset + (uint64_t)from->id * job->row, to, rows * job->row);
    for (const Wish *w = from; w < end && status == OK; w++) {
        const char *found = to + (size_t)(w->id - from->id) * job->row;
        if (found != job->out + w->place * job->row)
            memcpy(job->out + w->place * job->row, found, job->row);
    }
    return status;
}

static void *work(void *argument) {
    Job *job = argument;
    char what[512], *buffer = malloc(job->row > MOST_RUN ? job->row : MOST_RUN);
    Status status = buffer ? OK : fail(ERR_MEMORY, "out of memory");
    snprintf(what, sizeof what, "%s: tensor '%.100s'", store_path(job->store, job->entry), job->entry->name);
    for (size_t i; status == OK && (i = atomic_fetch_add(&job->next, 1)) < job->run_count;)
        status = read_run(job, what, job->wishes + job->runs[i], job->wishes + job->runs[i + 1], buffer);
    free(buffer);
    if (status != OK) {
        atomic_store(&job->next, job->run_count);
        pthread_mutex_lock(&job->lock);
        if (job->status == OK) {
            job->status = status;
            snprintf(job->text, sizeof job->text, "%s", status_message());
        }
        pthread_mutex_unlock(&job->lock);
    }
    return NULL;
}

static void share_out(Job *job) {
    pthread_t threads[MOST_THREADS];
    size_t wanted = job->run_count / RUNS_EACH, started = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the program's own threads */
    while (started + 1 < wanted && started + 1 < MOST_THREADS && !pthread_create(&threads[started], NULL, work, job))
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    work(job);
    while (started)
        pthread_join(threads[--started], NULL);
}

static void find_runs(Job *job, size_t n) {
    size_t most = job->row ? MOST_RUN / job->row : 1;
    for (size_t i = 0; i < n; i++) {
        size_t begin = job->run_count ? job->runs[job->run_count - 1] : 0;
        int32_t id = job->wishes[i].id;
        if (!i || id > job->wishes[i - 1].id + 1 || (id > job->wishes[i - 1].id && (size_t)(id - job->wishes[begin].id) >= most))
            job->runs[job->run_count++] = i;
    }
    job->runs[job->run_count] = n;
}

Status store_read_rows(const Store *s, const Entry *e, const int32_t *ids, size_t n, void *out) {
    if (!e->dims)
        return fail(ERR_ARGUMENT, "%s: tensor '%.200s' is a single number and has no rows", store_path(s, e), e->name);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= e->shape[0])
            return fail(ERR_ARGUMENT, "%s: tensor '%.200s' has rows 0 to %lld, and no row %d", store_path(s, e), e->name,
                        (long long)e->shape[0] - 1, (int)ids[i]);
    Status status = store_check(s, e);
    if (status != OK || !n || !e->bytes)
        return status;
    Job job = {.store = s, .entry = e, .out = out, .row = (size_t)(e->bytes / (uint64_t)e->shape[0]), .lock = PTHREAD_MUTEX_INITIALIZER};
    job.wishes = malloc(n * sizeof *job.wishes);
    job.runs = malloc((n + 1) * sizeof *job.runs);
    job.fd = store_reopen(s, e, O_RDONLY); /* its own: what is told about it concerns no other reader */
    if (!job.wishes || !job.runs) {
        job.status = fail(ERR_MEMORY, "out of memory");
    } else if (job.fd < 0) {
        job.status = fail(ERR_IO, "%s: %s", store_path(s, e), strerror(errno));
    } else {
        posix_fadvise(job.fd, 0, 0, POSIX_FADV_RANDOM);
        for (size_t i = 0; i < n; i++)
            job.wishes[i] = (Wish){ids[i], i};
        qsort(job.wishes, n, sizeof *job.wishes, by_id);
        find_runs(&job, n);
        share_out(&job);
        if (job.status != OK)
            fail(job.status, "%s", job.text);
    }
    if (job.fd >= 0)
        close(job.fd);
    free(job.wishes);
    free(job.runs);
    return job.status == OK ? store_check(s, e) : job.status;
}
