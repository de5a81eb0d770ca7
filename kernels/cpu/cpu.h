/* What the CPU kernels share across instruction sets: scratch, threads, tiles, and oneDNN. */
#ifndef ONN_CPU_H
#define ONN_CPU_H

#include "kernels.h"

/* scratch_alloc() : counted scratch, 64-byte aligned, freed with scratch_free(); NULL with a message over budget. */
void *scratch_alloc(size_t bytes);
void scratch_free(void *memory, size_t bytes);

/* Tiles of tokens: at most TILE tokens, none crossing a sequence. tiles_make() lists their borders: tile i is
 * tiles[i]..tiles[i+1]. `starts` NULL means one sequence of `rows`. *count tiles; free with scratch_free(tiles, *bytes). */
enum { TILE = 128 };
Status tiles_make(int32_t **tiles, int64_t *count, size_t *bytes, const View *starts, int64_t rows);

/* A matrix for oneDNN: f32 or bf16; the step of one of the two dimensions is 1. */
typedef struct Matrix {
    void *data;
    Dtype dtype;
    int64_t rows, cols, row_step, col_step;
} Matrix;

/* dnnl_product() : c = a b (+ c if add), through oneDNN with a bounded cache of primitives. a and b of one dtype; c f32 or that one.
 * Parallel over the set threads, or on the calling thread alone inside an OpenMP region. */
Status dnnl_product(Matrix c, Matrix a, Matrix b, int add);

#endif
