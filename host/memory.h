/* Device memory: every byte counted against a budget; freed blocks are kept for the next request of about their size. */
#ifndef ONN_MEMORY_H
#define ONN_MEMORY_H

#include <stddef.h>

#include "status.h"

typedef struct Pool Pool;

typedef struct MemoryInfo {
    size_t used;   /* bytes in live blocks */
    size_t cached; /* bytes in freed blocks kept for reuse */
    size_t peak;   /* highest `used` since memory_reset_peak() */
    size_t budget; /* hard limit on used + cached */
} MemoryInfo;

/* memory_pool() : the pool of the CPU device; its budget starts without limit. */
Pool *memory_pool(void);

/* memory_alloc() : a block of at least *bytes, 64-byte aligned (2 MB aligned and on huge pages from 2 MB up);
 * *bytes becomes its true size, which memory_free() wants back. Contents are undefined.
 * ERR_MEMORY over budget, with both numbers; the pool is then as before. Thread-safe. */
Status memory_alloc(Pool *pool, size_t *bytes, void **block);
void memory_free(Pool *pool, void *block, size_t bytes);

/* memory_trim() : gives cached blocks back to the system. */
void memory_trim(Pool *pool);

void memory_set_budget(Pool *pool, size_t bytes);
MemoryInfo memory_info(Pool *pool);
void memory_reset_peak(Pool *pool);

/* memory_serve_kernels() : the back end's scratch comes from `pool` from now on, so it counts too. */
void memory_serve_kernels(Pool *pool);

#endif
