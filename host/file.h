/* Files: whole reads by offset, and writes that appear whole or not at all. */
#ifndef ONN_FILE_H
#define ONN_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* file_open() : a regular file for reading; *size its length. Directories and devices are refused. */
Status file_open(const char *path, int *fd, uint64_t *size);

/* file_read_at() : exactly `bytes` at `offset`; a file that ends before is an error naming `path`. */
Status file_read_at(int fd, const char *path, uint64_t offset, void *buffer, size_t bytes);

/* file_read() : a whole file of at most `limit` bytes, with a NUL behind it; free() it. */
Status file_read(const char *path, size_t limit, char **text, size_t *length);

/* A file being written: a temporary one in the same directory, renamed over `path` by writer_commit() after fsync of the file,
 * and before fsync of the directory. */
typedef struct Writer Writer;
Status writer_open(const char *path, Writer **out);
Status writer_put(Writer *w, const void *data, size_t bytes);
/* Both end the writer, whatever they return. A failed commit leaves what was at `path` as it was. */
Status writer_commit(Writer *w);
void writer_abort(Writer *w);

/* file_sync_directory() : fsync of the directory that holds `path`. */
Status file_sync_directory(const char *path);

#endif
