#define _GNU_SOURCE
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

Status file_open(const char *path, int *fd, uint64_t *size) {
    struct stat st;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang the open */
    if (*fd < 0)
        return fail(ERR_IO, "%s: %s", path, strerror(errno));
    if (fstat(*fd, &st) || !S_ISREG(st.st_mode)) {
        close(*fd);
        *fd = -1;
        return fail(ERR_IO, "%s: %s", path, S_ISDIR(st.st_mode) ? "this is a directory" : "not a regular file");
    }
    *size = (uint64_t)st.st_size;
    return OK;
}

Status file_read_at(int fd, const char *path, uint64_t offset, void *buffer, size_t bytes) {
    char *to = buffer;
    while (bytes) {
        ssize_t got = pread(fd, to, bytes > (1u << 30) ? (1u << 30) : bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail(ERR_IO, "%s: reading at byte %llu: %s", path, (unsigned long long)offset, strerror(errno));
        if (got == 0)
            return fail(ERR_IO, "%s: the file ends at byte %llu, %zu bytes too early", path, (unsigned long long)offset, bytes);
        to += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return OK;
}

Status file_read(const char *path, size_t limit, char **text, size_t *length) {
    int fd;
    uint64_t size;
    *text = NULL;
    Status status = file_open(path, &fd, &size);
    if (status != OK)
        return status;
    if (size > limit)
        status = fail(ERR_FORMAT, "%s: %llu bytes, at most %zu are read", path, (unsigned long long)size, limit);
    else if (!(*text = malloc((size_t)size + 1)))
        status = fail(ERR_MEMORY, "%s: out of memory for %llu bytes", path, (unsigned long long)size);
    else
        status = file_read_at(fd, path, 0, *text, (size_t)size);
    close(fd);
    if (status != OK) {
        free(*text);
        *text = NULL;
        return status;
    }
    (*text)[size] = 0;
    *length = (size_t)size;
    return OK;
}

Status file_sync_directory(const char *path) {
    char *copy = strdup(path);
    if (!copy)
        return fail(ERR_MEMORY, "out of memory");
    char *slash = strrchr(copy, '/');
    const char *directory = slash ? (slash == copy ? "/" : copy) : ".";
    if (slash && slash != copy)
        *slash = 0;
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    Status status = OK;
    if (fd < 0 || (fsync(fd) && errno != EINVAL)) /* EINVAL: this file system has no such thing */
        status = fail(ERR_IO, "%s: %s", directory, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(copy);
    return status;
}

enum { GATHERED = 1 << 16 }; /* small pieces are written together */

struct Writer {
    char *path, *temporary, *gathered;
    size_t count;
    int fd;
};

static void writer_free(Writer *w) {
    if (w->fd >= 0)
        close(w->fd);
    free(w->gathered);
    free(w->temporary);
    free(w->path);
    free(w);
}

Status writer_open(const char *path, Writer **out) {
    struct stat there;
    *out = NULL;
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) /* a device would give way to a file */
        return fail(ERR_IO, "%s: this is no file", path);
    Writer *w = calloc(1, sizeof *w);
    if (!w)
        return fail(ERR_MEMORY, "out of memory");
    w->fd = -1;
    w->path = strdup(path);
    w->gathered = malloc(GATHERED);
    if (!w->path || !w->gathered || asprintf(&w->temporary, "%s.part-XXXXXX", path) < 0) {
        w->temporary = NULL;
        writer_free(w);
        return fail(ERR_MEMORY, "out of memory");
    }
    mode_t mask = umask(022); /* mkstemp's files are the owner's alone; a result is like any other file */
    umask(mask);
    w->fd = mkostemp(w->temporary, O_CLOEXEC);
    if (w->fd < 0 || fchmod(w->fd, 0666 & ~mask)) {
        Status status = fail(ERR_IO, "%s: %s", path, strerror(errno));
        if (w->fd >= 0)
            unlink(w->temporary);
        writer_free(w);
        return status;
    }
    *out = w;
    return OK;
}

static Status write_whole(const Writer *w, const char *data, size_t bytes) {
    while (bytes) {
        ssize_t n = write(w->fd, data, bytes > (1u << 30) ? (1u << 30) : bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail(ERR_IO, "%s: writing: %s", w->path, n ? strerror(errno) : "nothing was written");
        data += n;
        bytes -= (size_t)n;
    }
    return OK;
}

static Status flush(Writer *w) {
    size_t n = w->count;
    w->count = 0;
    return write_whole(w, w->gathered, n);
}

Status writer_put(Writer *w, const void *data, size_t bytes) {
    Status status = bytes > GATHERED - w->count ? flush(w) : OK;
    if (status != OK || bytes > GATHERED)
        return status == OK ? write_whole(w, data, bytes) : status;
    if (bytes)
        memcpy(w->gathered + w->count, data, bytes);
    w->count += bytes;
    return OK;
}

Status writer_commit(Writer *w) {
    Status status = flush(w);
    if (status == OK && fsync(w->fd))
        status = fail(ERR_IO, "%s: writing to the disk: %s", w->path, strerror(errno));
    if (status == OK) {
        int bad = close(w->fd);
        w->fd = -1;
        if (bad) /* network file systems tell here what they could not write */
            status = fail(ERR_IO, "%s: closing: %s", w->path, strerror(errno));
    }
    if (status == OK && rename(w->temporary, w->path))
        status = fail(ERR_IO, "%s: %s", w->path, strerror(errno));
    if (status == OK)
        status = file_sync_directory(w->path);
    else
        unlink(w->temporary);
    writer_free(w);
    return status;
}

void writer_abort(Writer *w) {
    if (!w)
        return;
    unlink(w->temporary);
    writer_free(w);
}
