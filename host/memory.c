#define _GNU_SOURCE
#include "memory.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels.h"

enum { SMALL = 256 << 10, HUGE_PAGE = 2 << 20, PAGE = 4096 };

/* Freed blocks in order of size; equal sizes lie together, the last freed first to go out again. */
typedef struct Block {
    void *memory;
    size_t bytes;
} Block;

struct Memory {
    pthread_mutex_t lock;
    size_t used, cached, peak, high, budget; /* high: the highest `used` ever, which bounds what the cache may add */
    Block *free;
    size_t free_count, free_room;
};

static Memory cpu_memory = {.lock = PTHREAD_MUTEX_INITIALIZER, .budget = SIZE_MAX};

Memory *memory_cpu(void) { return &cpu_memory; }

static size_t round_size(size_t bytes) {
    size_t step = 64;
    if (bytes >= SMALL)
        step = 16 * PAGE;
    else
        while (step * 16 < bytes)
            step *= 2;
    return bytes > SIZE_MAX - step ? 0 : (bytes + step - 1) / step * step;
}

static void *system_alloc(size_t bytes) {
    if (bytes < SMALL)
        return aligned_alloc(64, bytes);
    size_t slack = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *map = mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    if (!slack)
        return map;
    char *aligned = (char *)(((uintptr_t)map + slack - 1) / slack * slack);
    if (aligned > map)
        munmap(map, (size_t)(aligned - map));
    size_t tail = (size_t)(map + bytes + slack - (aligned + bytes));
    if (tail)
        munmap(aligned + bytes, tail);
    madvise(aligned, bytes, MADV_HUGEPAGE);
    return aligned;
}

static void system_free(void *memory, size_t bytes) {
    if (bytes < SMALL)
        free(memory);
    else
        munmap(memory, bytes);
}

/* Index of the first cached block of at least `bytes`. */
static size_t lower_bound(const Memory *pool, size_t bytes) {
    size_t low = 0, high = pool->free_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (pool->free[middle].bytes < bytes)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void remove_block(Memory *pool, size_t i) {
    pool->cached -= pool->free[i].bytes;
    pool->free_count--;
    for (; i < pool->free_count; i++)
        pool->free[i] = pool->free[i + 1];
}

/* Gives back the largest cached blocks until at most `allowed` bytes are cached. */
static void shrink_cache(Memory *pool, size_t allowed) {
    while (pool->free_count && pool->cached > allowed) {
        Block b = pool->free[pool->free_count - 1];
        remove_block(pool, pool->free_count - 1);
        system_free(b.memory, b.bytes);
    }
}

static Status alloc_locked(Memory *pool, size_t *bytes, void **block) {
    size_t want = round_size(*bytes ? *bytes : 1);
    if (!want)
        return fail(ERR_MEMORY, "out of memory: %zu bytes asked", *bytes);
    size_t i = lower_bound(pool, want);
    if (i < pool->free_count && pool->free[i].bytes <= want + want / 8) {
        while (i + 1 < pool->free_count && pool->free[i + 1].bytes == pool->free[i].bytes)
            i++;
        *block = pool->free[i].memory;
        *bytes = pool->free[i].bytes;
        remove_block(pool, i);
        return OK;
    }
    if (want > pool->budget || pool->used > pool->budget - want)
        return fail(ERR_MEMORY, "memory budget: %zu bytes asked, %zu of %zu in use", want, pool->used, pool->budget);
    size_t bound = pool->used + want > pool->high ? pool->used + want : pool->high;
    if (bound > pool->budget)
        bound = pool->budget;
    shrink_cache(pool, bound - pool->used - want);
    if (!(*block = system_alloc(want))) {
        shrink_cache(pool, 0);
        if (!(*block = system_alloc(want)))
            return fail(ERR_MEMORY, "out of memory: the system refused %zu bytes, %zu in use", want, pool->used);
    }
    *bytes = want;
    return OK;
}

Status memory_alloc(Memory *pool, size_t *bytes, void **block) {
    pthread_mutex_lock(&pool->lock);
    Status status = alloc_locked(pool, bytes, block);
    if (status == OK) {
        pool->used += *bytes;
        if (pool->used > pool->peak)
            pool->peak = pool->used;
        if (pool->used > pool->high)
            pool->high = pool->used;
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

void memory_free(Memory *pool, void *block, size_t bytes) {
    if (!block)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->used -= bytes;
    if (pool->free_count == pool->free_room) {
        size_t room = pool->free_room ? pool->free_room * 2 : 256;
        Block *grown = realloc(pool->free, room * sizeof *grown);
        if (grown)
            pool->free = grown, pool->free_room = room;
    }
    if (pool->free_count == pool->free_room) {
        system_free(block, bytes);
    } else {
        size_t at = lower_bound(pool, bytes + 1);
        for (size_t i = pool->free_count; i > at; i--)
            pool->free[i] = pool->free[i - 1];
        pool->free[at] = (Block){block, bytes};
        pool->free_count++;
        pool->cached += bytes;
    }
    pthread_mutex_unlock(&pool->lock);
}

void memory_trim(Memory *pool) {
    pthread_mutex_lock(&pool->lock);
    shrink_cache(pool, 0);
    free(pool->free);
    pool->free = NULL;
    pool->free_room = 0;
    pthread_mutex_unlock(&pool->lock);
}

void memory_set_budget(Memory *pool, size_t bytes) {
    pthread_mutex_lock(&pool->lock);
    pool->budget = bytes;
    shrink_cache(pool, bytes > pool->used ? bytes - pool->used : 0);
    pthread_mutex_unlock(&pool->lock);
}

MemoryInfo memory_info(Memory *pool) {
    pthread_mutex_lock(&pool->lock);
    MemoryInfo info = {pool->used, pool->cached, pool->peak, pool->budget};
    pthread_mutex_unlock(&pool->lock);
    return info;
}

void memory_reset_peak(Memory *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->peak = pool->used;
    pthread_mutex_unlock(&pool->lock);
}

static Memory *scratch_memory;

/* The true size is kept in front of the block, since kernels give back the size they asked for. */
static void *scratch_from_pool(size_t bytes) {
    size_t total = bytes + 64;
    void *block;
    if (memory_alloc(scratch_memory, &total, &block) != OK)
        return NULL;
    *(size_t *)block = total;
    return (char *)block + 64;
}

static void scratch_to_pool(void *memory, size_t bytes) {
    (void)bytes;
    char *block = (char *)memory - 64;
    memory_free(scratch_memory, block, *(size_t *)block);
}

void memory_serve_kernels(Memory *pool) {
    scratch_memory = pool;
    backend_set_allocator((Allocator){scratch_from_pool, scratch_to_pool});
}
