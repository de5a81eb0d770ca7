#include "memory.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include "arena.h"
#include "kernels.h"

enum {
    SMALL = 256 << 10, /* below, malloc serves */
    SLACK = 16,        /* resident bytes may exceed the highest use by a 16th: holes between blocks; */
    LEAST_SLACK = 32 << 20 /* of small nets by so many, within the budget: an LSTM's update met 1250 page faults otherwise */
};

struct Memory {
    pthread_mutex_t lock;
    size_t used, peak, high, budget; /* high: the highest `used` ever */
    int counts; /* nothing more: no memory lies behind its blocks */
    Arena arena;
};

static Memory cpu_memory = {.lock = PTHREAD_MUTEX_INITIALIZER, .budget = SIZE_MAX};
static Memory dry_memory = {.lock = PTHREAD_MUTEX_INITIALIZER, .budget = SIZE_MAX, .counts = 1};

Memory *memory_cpu(void) { return &cpu_memory; }
Memory *memory_dry(void) { return &dry_memory; }

static size_t round_size(size_t bytes) {
    size_t step = 64;
    if (bytes >= SMALL)
        step = ARENA_UNIT;
    else
        while (step * 16 < bytes)
            step *= 2;
    return bytes > SIZE_MAX - step ? 0 : (bytes + step - 1) / step * step;
}

/* Lets as much of what is free stay resident as `used` bytes in use allow. */
static void cool(Memory *pool) {
    size_t high = pool->high > pool->used ? pool->high : pool->used, bound = high + (high / SLACK > LEAST_SLACK ? high / SLACK : LEAST_SLACK);
    if (bound > pool->budget)
        bound = pool->budget > pool->used ? pool->budget : pool->used;
    arena_cool(&pool->arena, bound - pool->used);
}

static Status alloc_locked(Memory *pool, size_t *bytes, void **block) {
    size_t want = round_size(*bytes ? *bytes : 1), fresh = 0;
    if (!want)
        return fail(ERR_MEMORY, "out of memory: %zu bytes asked", *bytes);
    if (want > pool->budget || pool->used > pool->budget - want)
        return fail(ERR_MEMORY, "memory budget: %zu bytes asked, %zu of %zu in use", want, pool->used, pool->budget);
    if (pool->counts)
        *block = MEMORY_NOWHERE;
    else
        *block = want < SMALL ? aligned_alloc(64, want) : arena_alloc(&pool->arena, want, &fresh);
    if (!*block)
        return fail(ERR_MEMORY, "out of memory: the system refused %zu bytes, %zu in use", want, pool->used);
    *bytes = want;
    pool->used += want;
    if (fresh)
        cool(pool);
    return OK;
}

Status memory_alloc(Memory *pool, size_t *bytes, void **block) {
    pthread_mutex_lock(&pool->lock);
    Status status = alloc_locked(pool, bytes, block);
    if (status == OK) {
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
    if (pool->counts)
        ;
    else if (bytes < SMALL)
        free(block);
    else
        arena_free(&pool->arena, block, bytes);
    pthread_mutex_unlock(&pool->lock);
}

void memory_trim(Memory *pool) {
    pthread_mutex_lock(&pool->lock);
    arena_cool(&pool->arena, 0);
    pool->high = pool->used;
    pthread_mutex_unlock(&pool->lock);
}

void memory_set_budget(Memory *pool, size_t bytes) {
    pthread_mutex_lock(&pool->lock);
    pool->budget = bytes;
    cool(pool);
    pthread_mutex_unlock(&pool->lock);
}

MemoryInfo memory_info(Memory *pool) {
    pthread_mutex_lock(&pool->lock);
    MemoryInfo info = {pool->used, pool->arena.warm, pool->peak, pool->budget};
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
    if (!scratch_memory->counts)
        *(size_t *)block = total;
    return (char *)block + 64;
}

static void scratch_to_pool(void *memory, size_t bytes) {
    char *block = (char *)memory - 64;
    memory_free(scratch_memory, block, scratch_memory->counts ? round_size(bytes + 64) : *(size_t *)block);
}

void memory_serve_kernels(Memory *pool) {
    scratch_memory = pool;
    backend_set_allocator((Allocator){scratch_from_pool, scratch_to_pool});
}
