/* Units: what one slot of a stream holds, a few tensors or rows of them; where each lies in the slot, and how it is read from the files. */
#ifndef ONN_UNIT_H
#define ONN_UNIT_H

#include <stdatomic.h>

#include "kernels.h"
#include "store.h"

/* All or some rows of one stored tensor. */
typedef struct Piece {
    const Entry *entry;
    uint64_t offset; /* within the entry's data */
    size_t bytes;
    Dtype dtype;
    int dims;
    int64_t shape[MAX_DIMS];
    size_t at;   /* its first byte in the slot: a multiple of the element's size */
    size_t read; /* where a direct read puts it, at most an element behind `at` */
} Piece;

/* A part of a file that is read in one go. */
typedef struct Window {
    uint64_t begin, end; /* begin is a multiple of 4096, end the last piece's */
    size_t at;           /* of `begin` in the slot, a multiple of 4096 */
    size_t first, count; /* its pieces, in the unit's order of files */
} Window;

typedef struct Unit {
    Piece *pieces; /* in the caller's order */
    size_t count;
    size_t *order; /* of pieces, as they lie in the files */
    Window *windows;
    size_t window_count;
    size_t bytes, data; /* of the slot; of the pieces alone */
} Unit;

enum { UNIT_ALIGNMENT = 4096 };

/* unit_piece() : rows first to first + rows - 1 of tensor `name`; rows -1: all of it. ERR_FORMAT without such a tensor, ERR_UNSUPPORTED
 * for a dtype that is not computed with, ERR_ARGUMENT for rows that it does not have. */
Status unit_piece(const Store *store, const char *name, int64_t first, int64_t rows, Piece *out);

/* unit_lay_out() : gives the pieces their places, neighbours in a file together, and fills the rest of `u`. */
Status unit_lay_out(Unit *u);
void unit_free(Unit *u);

/* How units are read: by descriptors past the page cache where the file system has such reads. */
typedef struct UnitReader {
    const Store *store;
    int *direct; /* by shard; -1: reads go through the page cache */
    int shards;
    atomic_int buffered; /* some shard's reads do */
    atomic_int stop;     /* asks a read in progress to end with ERR_INTERRUPTED */
} UnitReader;

/* unit_reader_open() : for the shards that these units lie in; without `direct`, all through the page cache. */
Status unit_reader_open(UnitReader *r, const Store *store, const Unit *units, size_t count, int direct);
void unit_reader_close(UnitReader *r);

/* unit_read() : all of a unit into `slot`, 4096-aligned and u->bytes long. Errors name the file and the tensor. */
Status unit_read(UnitReader *r, const Unit *u, void *slot);

#endif
