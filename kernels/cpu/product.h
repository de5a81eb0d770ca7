/* Products over rows of tokens, with what is added to them before their single rounding, and sums over tokens. */
#ifndef ONN_PRODUCT_H
#define ONN_PRODUCT_H

#include "panel.h"

/* A low-rank part: h = left_scale * low left^T, rounded to h's dtype; c gets right_scale * h right^T, right_scale * h rounded once too. */
typedef struct LowRank {
    Side low, left, right; /* (rows, depth), (rank, depth), (cols, rank) */
    int64_t rank, depth;
    float left_scale, right_scale;
    void *h; /* (rows, rank), of low's dtype */
    int64_t h_step;
} LowRank;

/* c = a b^T + bias + the low-rank part + c's old value if add. */
typedef struct Product {
    int64_t rows, cols, depth;
    Side a, b;    /* (rows, depth), (cols, depth) */
    int rounded;  /* b, f32 or f16, is rounded to bf16 first */
    void *c;      /* f32 or bf16, columns contiguous; NULL: only h is made */
    Dtype dtype;  /* of c */
    int64_t step; /* from one row of c to the next */
    int add;
    const float *bias;       /* (cols), or NULL */
    const LowRank *low_rank; /* or NULL */
    void *apart;             /* if not NULL the low-rank part goes here, rounded, and not into c */
    Dtype apart_dtype;
    int64_t apart_step;
} Product;
Status KERNEL(product)(const Product *p);

/* c (rows, cols) f32 += scale * a^T b, tile by tile of tokens: each tile's sum starts from zero, then is added. The caller takes
 * the scratch, so that it can take all it needs before the first of several sums is added to anything. */
typedef struct TokenSum {
    float *c;
    int64_t rows, cols, step;
    Side a, b; /* lines are c's rows and c's columns, the depth is the tokens */
    float scale;
} TokenSum;
size_t KERNEL(token_sum_bytes)(const TokenSum *sum);
void KERNEL(token_sum)(const TokenSum *sum, const int32_t *tiles, int64_t count, float *scratch);
/* y (width) f32 += sum over the rows of x, by the same tiles. */
void KERNEL(row_sum)(View *y, const View *x, const int32_t *tiles, int64_t count);

/* A view's rows as lines of depth `width`, or its columns as lines over its rows. */
static inline Side side_rows(const View *v) { return (Side){v->data, v->dtype, view_step(v), 1}; }
static inline Side side_columns(const View *v) { return (Side){v->data, v->dtype, 1, view_step(v)}; }
/* A matrix of two dimensions with any strides: its rows, or its columns, as lines. */
static inline Side side_matrix(const View *v, int columns) {
    return (Side){v->data, v->dtype, v->stride[columns ? 1 : 0], v->stride[columns ? 0 : 1]};
}

#endif
