/* A store: the safetensors files behind one model, read in place. Opening reads headers only. */
#ifndef ONN_STORE_H
#define ONN_STORE_H

#include "safetensors.h"

typedef struct Store Store;

/* store_open() : a .safetensors file, or a directory with model.safetensors or model.safetensors.index.json and its shards.
 * Every tensor of the index must lie in the shard it names, and the shards may hold no other. */
Status store_open(const char *path, Store **out);
void store_close(Store *s);

/* store_hold() : one more owner, who calls store_close() too; the last one closes. From the thread that opened it only. */
Store *store_hold(Store *s);

/* Entries in the order of their names. */
size_t store_count(const Store *s);
const Entry *store_entry(const Store *s, size_t i);

/* store_find() : the entry called `name`, owned by `s`; NULL if there is none. Reads no tensor data. */
const Entry *store_find(const Store *s, const char *name);

/* store_path() : the file that an entry lies in. */
const char *store_path(const Store *s, const Entry *e);

/* store_metadata() : key, value, ... of the first shard; *pairs their number. */
char *const *store_metadata(const Store *s, size_t *pairs);

/* store_read() : `bytes` of an entry's data from `offset` within it. A file that is shorter than when it was opened, or was written to
 * since, is an error that names it and the tensor. */
Status store_read(const Store *s, const Entry *e, uint64_t offset, void *buffer, size_t bytes);

/* store_check() : an error if the file that `e` lies in was written to or cut since it was opened. */
Status store_check(const Store *s, const Entry *e);

/* store_reopen() : another descriptor of the very file that `e` lies in, even if its name leads elsewhere by now; -1 if the system
 * refuses, with errno. `flags` as for open(). */
int store_reopen(const Store *s, const Entry *e, int flags);

/* store_read_rows() : rows `ids`, n of them, of a tensor with at least one dimension, one after another into `out`. Each distinct row is
 * read once, neighbours together, several reads at a time, and nothing beside them. ERR_ARGUMENT names an id that is no row. */
Status store_read_rows(const Store *s, const Entry *e, const int32_t *ids, size_t n, void *out);

/* A store being written: declare every tensor, then put each one's bytes in the same order, then commit. */
typedef struct StoreWriter StoreWriter;
Status store_writer_open(const char *path, StoreWriter **out);
Status store_writer_metadata(StoreWriter *w, const char *key, const char *value);
Status store_writer_declare(StoreWriter *w, const char *name, const char *dtype, int dims, const int64_t *shape);
Status store_writer_put(StoreWriter *w, const void *data, size_t bytes); /* the first call writes the header */
Status store_writer_commit(StoreWriter *w);                              /* ends the writer, whatever it returns */
void store_writer_abort(StoreWriter *w);

#endif
