/* Which instruction set runs, threads, scratch, and the token tiles that every reduction shares. */
#include "cpu.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *const dtype_names[] = {"f32", "bf16", "f16", "i8", "u8", "i32", "i64", "bool"};

const char *dtype_name(Dtype dtype) { return dtype < DTYPE_COUNT ? dtype_names[dtype] : "?"; }

extern const Backend cpu_amx_bf16_backend, cpu_avx512_bf16_backend, cpu_avx512_backend, cpu_avx2_backend, cpu_sse41_backend;

static int has_sse41(void) { return __builtin_cpu_supports("sse4.1") != 0; }
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static int has_avx512_bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }


/* Tiles' state is large, so Linux hands it out on request (arch_prctl(2)); threads made afterwards have it too. */
static int has_amx_bf16(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static const struct Level {
    const char *name;
    const Backend *backend;
    int (*present)(void);
    dnnl_cpu_isa_t library;
} levels[] = {
    {"amx_bf16", &cpu_amx_bf16_backend, has_amx_bf16, dnnl_cpu_isa_all},
    {"avx512_bf16", &cpu_avx512_bf16_backend, has_avx512_bf16, dnnl_cpu_isa_avx512_core_bf16},
    {"avx512", &cpu_avx512_backend, has_avx512, dnnl_cpu_isa_avx512_core_vnni},
    {"avx2", &cpu_avx2_backend, has_avx2, dnnl_cpu_isa_avx2},
    {"sse4.1", &cpu_sse41_backend, has_sse41, dnnl_cpu_isa_sse41},
};
enum { LEVELS = sizeof levels / sizeof levels[0] };

static const struct Level *chosen;
static int threads = 1;

const Backend *backend_cpu(void) {
    if (chosen)
        return chosen->backend;
    const char *cap = getenv("ONN_CPU");
    int first = 0;
    if (cap && *cap) {
        while (first < LEVELS && strcmp(levels[first].name, cap))
            first++;
        if (first == LEVELS) {
            fail(ERR_ARGUMENT, "ONN_CPU=%s: expected amx_bf16, avx512_bf16, avx512, avx2 or sse4.1", cap);
            return NULL;
        }
    }
    for (int i = first; i < LEVELS; i++)
        if (levels[i].present()) {
            chosen = &levels[i];
            if (i)
                dnnl_set_max_cpu_isa(chosen->library);
            backend_set_threads(omp_get_num_procs());
            return chosen->backend;
        }
    fail(ERR_UNSUPPORTED, "this processor has no sse4.1, which is the least that onn is built for");
    return NULL;
}

int backend_native_bf16(void) { return backend_cpu() && chosen <= &levels[1]; }

void backend_set_threads(int n) {
    threads = n;
    omp_set_dynamic(0);
    omp_set_num_threads(n);
}

int backend_threads(void) { return threads; }

const char *backend_describe(void) {
    static char text[160];
    const dnnl_version_t *v = dnnl_version();
    if (!backend_cpu())
        return status_message();
    snprintf(text, sizeof text, "cpu: %s, %d threads, oneDNN %d.%d.%d, %s products", chosen->name, threads, v->major, v->minor,
             v->patch, backend_native_bf16() ? "bf16 and f32" : "f32");
    return text;
}

static void *plain_alloc(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }
static void plain_release(void *memory, size_t bytes) { (void)bytes, free(memory); }
static Allocator allocator = {plain_alloc, plain_release};

void backend_set_allocator(Allocator a) { allocator = a; }

static int only_scratch;
int scratch_only(void) { return only_scratch; }
void scratch_set_only(int on) { only_scratch = on; }

void *scratch_alloc(size_t bytes) {
    void *memory = allocator.alloc(bytes ? bytes : 64);
    if (!memory && allocator.alloc == plain_alloc)
        fail(ERR_MEMORY, "out of memory: %zu bytes of scratch", bytes);
    return memory;
}

void scratch_free(void *memory, size_t bytes) {
    if (memory)
        allocator.release(memory, bytes ? bytes : 64);
}

Status tiles_make(int32_t **tiles, int64_t *count, size_t *bytes, const View *starts, int64_t rows) {
    int32_t whole[2] = {0, (int32_t)rows};
    const int32_t *at = starts ? starts->data : whole;
    int64_t sequences = starts ? view_count(starts) - 1 : 1, n = 0;
    if (scratch_only()) /* at most: starts may have no values */
        n = rows / TILE + sequences, sequences = 0;
    for (int64_t s = 0; s < sequences; s++)
        n += (at[s + 1] - at[s] + TILE - 1) / TILE;
    *bytes = (size_t)(n + 1) * sizeof **tiles;
    if (!(*tiles = scratch_alloc(*bytes)))
        return ERR_MEMORY;
    *count = n;
    if (scratch_only())
        return OK;
    int32_t *t = *tiles;
    for (int64_t s = 0; s < sequences; s++)
        for (int32_t i = at[s]; i < at[s + 1]; i += TILE)
            *t++ = i;
    *t = at[sequences];
    return OK;
}
