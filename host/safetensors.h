/* One safetensors file: its header, checked by every rule of the format before any tensor byte is used. */
#ifndef ONN_SAFETENSORS_H
#define ONN_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum { MAX_TENSOR_DIMS = 8 };

typedef struct Entry {
    char *name;
    const char *dtype;  /* the format's name: "F32", "BF16", ... */
    int dims;
    int64_t shape[MAX_TENSOR_DIMS];
    uint64_t offset;    /* of the first byte in the file */
    uint64_t bytes;
    int shard;          /* which file of a store it lies in */
} Entry;

typedef struct Header {
    Entry *entries;     /* in the order of their offsets */
    size_t count;
    char **metadata;    /* key, value, key, value, ... */
    size_t metadata_count; /* pairs */
} Header;

/* safetensors_element() : bytes per element of a dtype by the format's name; 0 if there is no such dtype. */
size_t safetensors_element(const char *dtype);

/* safetensors_header() : reads and checks the header of an open file of `size` bytes; `path` names it in messages.
 * @return : OK, or ERR_FORMAT / ERR_IO / ERR_MEMORY with nothing to free. */
Status safetensors_header(int fd, const char *path, uint64_t size, Header *out);
void safetensors_free(Header *header);

#endif
