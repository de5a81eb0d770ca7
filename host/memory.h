/* Device memory: every byte counted against a budget; what is freed stays resident for the next request. */
#ifndef ONN_MEMORY_H
#define ONN_MEMORY_H

#include <stddef.h>

#include "status.h"

typedef struct Memory Memory;

/* Where a block of memory_dry() seems to lie: an address for arithmetic, with nothing behind it. */
#define MEMORY_NOWHERE ((void *)4096)

typedef struct MemoryInfo {
    size_t used;   /* bytes in live blocks */
    size_t cached; /* freed bytes that stay resident */
    size_t peak;   /* highest `used` since memory_reset_peak() */
    size_t budget; /* hard limit on used + cached */
} MemoryInfo;

/* memory_cpu() : the pool of the CPU device; its budget starts without limit. */
Memory *memory_cpu(void);

/* memory_dry() : a pool that only counts, rounding as the CPU's does: its blocks all lie at MEMORY_NOWHERE. */
Memory *memory_dry(void);

/* memory_alloc() : a block of at least *bytes, 64-byte aligned (64 KB aligned from 256 KB up, and on huge pages);
 * *bytes becomes its true size, which memory_free() wants back. Contents are undefined.
 * ERR_MEMORY over budget, with both numbers; the pool is then as before. Thread-safe. */
Status memory_alloc(Memory *pool, size_t *bytes, void **block);
void memory_free(Memory *pool, void *block, size_t bytes);

/* memory_trim() : gives cached blocks back to the system. */
void memory_trim(Memory *pool);

void memory_set_budget(Memory *pool, size_t bytes);
MemoryInfo memory_info(Memory *pool);
void memory_reset_peak(Memory *pool);

/* memory_serve_kernels() : the back end's scratch comes from `pool` from now on, so it counts too. */
void memory_serve_kernels(Memory *pool);

#endif
