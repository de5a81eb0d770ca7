/* The numbers: views of memory, and the table of operations that a back end fills.
 * Nothing here allocates for its caller, knows Lua, or opens files. Shapes are checked by the caller (host/ops.c). */
#ifndef ONN_KERNELS_H
#define ONN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define DTYPES(X) /* name, bytes */ \
    X(F32, 4) X(BF16, 2) X(F16, 2) X(I8, 1) X(U8, 1) X(I32, 4) X(I64, 8) X(BOOL, 1)

typedef enum Dtype {
#define X(name, bytes) name,
    DTYPES(X)
#undef X
    DTYPE_COUNT
} Dtype;

static inline size_t dtype_size(Dtype dtype) {
    static const unsigned char sizes[DTYPE_COUNT] = {
#define X(name, bytes) bytes,
        DTYPES(X)
#undef X
    };
    return sizes[dtype];
}
const char *dtype_name(Dtype dtype); /* "f32", "bf16", ... */

enum { MAX_DIMS = 8 };

/* A strided window on memory owned elsewhere. Strides count elements, and may be 0 for broadcast operands. */
typedef struct View {
    void *data;
    Dtype dtype;
    int dims;
    int64_t shape[MAX_DIMS];
    int64_t stride[MAX_DIMS];
} View;

/* Rows and width of a view read as a matrix: all dimensions but the last, and the last. */
static inline int64_t view_width(const View *v) { return v->dims ? v->shape[v->dims - 1] : 1; }
static inline int64_t view_rows(const View *v) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < v->dims; i++)
        rows *= v->shape[i];
    return rows;
}
static inline int64_t view_count(const View *v) { return view_rows(v) * view_width(v); }
/* Elements from one row to the next; the caller has made sure that the leading dimensions collapse. */
static inline int64_t view_step(const View *v) { return v->dims > 1 ? v->stride[v->dims - 2] : view_width(v); }

#define UNARY_OPS(X) X(neg) X(exp) X(log) X(sqrt) X(abs) X(square) X(tanh) X(sigmoid) X(relu) X(silu) X(gelu) X(gelu_tanh) \
    X(quick_gelu) X(relu2) X(relu6) X(softplus) X(hardswish) X(hardsigmoid)
#define BINARY_OPS(X) X(add) X(sub) X(mul) X(div) X(max) X(min)
#define REDUCE_OPS(X) X(sum) X(mean) X(max) X(argmax)
#define GATES(X) X(silu) X(gelu) X(gelu_tanh) X(sigmoid) X(relu) X(quick_gelu) X(relu2) X(tanh) X(swiglu_oai)
#define CELLS(X) /* name, gates, values of a token and hidden unit that the backward reads */ \
    X(tanh, 1, 0) X(relu, 1, 0) X(lstm, 4, 4) X(gru, 3, 4)

#define X(name) UNARY_##name,
typedef enum UnaryOp { UNARY_OPS(X) UNARY_COUNT } UnaryOp;
#undef X
#define X(name) BINARY_##name,
typedef enum BinaryOp { BINARY_OPS(X) BINARY_COUNT } BinaryOp;
#undef X
#define X(name) REDUCE_##name,
typedef enum ReduceOp { REDUCE_OPS(X) REDUCE_COUNT } ReduceOp;
#undef X
#define X(name) GATE_##name,
typedef enum Gate { GATES(X) GATE_COUNT } Gate;
#undef X
#define X(name, gates, kept) CELL_##name,
typedef enum Cell { CELLS(X) CELL_COUNT } Cell;
#undef X

static inline int cell_gates(Cell cell) {
    static const signed char gates[] = {
#define X(name, gates, kept) gates,
        CELLS(X)
#undef X
    };
    return gates[cell];
}
static inline int cell_kept(Cell cell) {
    static const signed char kept[] = {
#define X(name, gates, kept) kept,
        CELLS(X)
#undef X
    };
    return kept[cell];
}

/* The low-rank part of an adapted product: scale * (x a^T) b^T, a (rank, in), b (out, rank), both in the arithmetic's dtype. */
typedef struct Lora {
    const View *x; /* (rows, in): the product's input, after dropout if there is one */
    const View *a, *b;
    float scale;
    const View *whole; /* (rows, b's out): dy of the whole layer where a gradient's w is only a tile of its rows; NULL: w is whole */
} Lora;

/* How queries see keys. Sequence s owns query tokens q_starts[s]..q_starts[s+1] and key tokens k_starts[s]..k_starts[s+1];
 * its last query sits at its last key (keys >= queries). window: keys seen back from a query, itself included; 0 = all. chunk: with
 * causal, only keys of the query's own run of `chunk` keys, counted from the sequence's first; 0 = all. Scores, once scaled, become
 * cap * tanh(score / cap) if cap > 0, then bias is added: f32 (heads, bias_size), at the key's number - the query's + bias_zero, clamped
 * to the row's ends; NULL: none. sinks: f32 (heads), a logit more for each head's softmax, without a value; NULL: none. */
typedef struct Mask {
    const int32_t *q_starts, *k_starts;
    int64_t sequences;
    int causal;
    int64_t window, chunk;
    float cap;
    const float *bias, *sinks;
    int64_t bias_size, bias_zero;
} Mask;

/* One direction of a recurrent layer, in torch.nn's order of gates. Its output is as wide as its state (hidden), or with a projection
 * as that is high. Everything but w and projection is f32; those are as they are stored. */
typedef struct Recurrent {
    Cell cell;
    int reverse;                      /* from each sequence's end to its start */
    const View *w;                    /* (gates * hidden, out) */
    const View *bias;                 /* (gates * hidden), or NULL */
    const View *projection;           /* (out, hidden), LSTM only, or NULL */
    const View *starts;               /* i32 (sequences + 1) */
    const View *first, *first_cell;   /* (sequences, out), (sequences, hidden): the state before each sequence; NULL: zero */
} Recurrent;
/* How a language-model head's products become logits: multiplier * (product + bias), then cap * tanh(logit / cap) if cap > 0. */
typedef struct Logits {
    float multiplier, cap;
    const float *bias; /* of the whole vocabulary, or NULL */
} Logits;

enum { HEAD_MOST = 512 };

/* Convolution and pooling geometry, (h, w) pairs; padding is (top, left, bottom, right). */
typedef struct Conv {
    int64_t stride[2], padding[4], dilation[2], groups;
    int by_image; /* gradients of w are summed image by image: the same bits however a batch is cut */
} Conv;
typedef struct Pool {
    int64_t kernel[2], stride[2], padding[4];
    int average, count_padding;
} Pool;

/* batch: the statistics are the batch's own, else the running ones; update (with batch): the running ones move towards them. */
typedef struct BatchNorm {
    float eps, momentum;
    int batch, update;
} BatchNorm;

/* A selective scan's time steps: softplus(dt + bias), clamped to [low, high]. */
typedef struct Steps {
    float low, high;
} Steps;

typedef struct Adam {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* multiplies the gradient first: clipping and averaging */
    int64_t step;     /* 1 at the first update */
} Adam;

/* Key of the counter-based generator: one stream per (seed, site); `counter` is the first element's number. */
typedef struct Random {
    uint64_t key, counter;
} Random;

/* The head's vocabulary is cut every HEAD_CUT rows from its first. head_sums() : elements of the sums that its loss keeps for `rows` tokens. */
enum { HEAD_CUT = 1024 };
static inline int64_t head_sum_rows(int64_t rows) { return rows + 31; } /* whole blocks of any instruction set */
static inline int64_t head_sums(int64_t rows, int64_t width) { return head_sum_rows(rows) * ((width + 31) / 32 * 32); }

typedef struct Backend {
    const char *name;
#define OP(name, args) Status(*name) args;
#include "ops.def"
#undef OP
} Backend;

/* backend_cpu() : the CPU table for this processor, chosen once. $ONN_CPU caps it: amx_bf16 | avx512_bf16 | avx512 | avx2 | sse4.1.
 * NULL with a message if $ONN_CPU names something else or the processor lacks sse4.1. */
const Backend *backend_cpu(void);

/* backend_dry() : a table that computes nothing and touches no operand but a mask's starts and a cache's lengths: of products it counts
 * the operations, and it takes and gives back the scratch that the CPU's kernel would take, from the same allocator. total() is the CPU's.
 * backend_dry_flops() : operations counted so far, a multiplication and an addition each one: 2 * rows * out * in for a product, for
 * attention by the pairs of query and key that see each other; not those that a kernel repeats to save memory. */
const Backend *backend_dry(void);
double backend_dry_flops(void);

/* backend_describe() : one line for people: instruction set, threads, libraries. */
const char *backend_describe(void);

/* backend_native_bf16() : true if products of bf16 are the fast path here. */
int backend_native_bf16(void);

/* backend_set_threads() : threads of every following operation; results do not depend on it. n >= 1. */
void backend_set_threads(int n);
int backend_threads(void);

/* Scratch memory comes from here, so that its owner can count it. alloc returns 64-byte aligned memory or NULL. */
typedef struct Allocator {
    void *(*alloc)(size_t bytes);
    void (*release)(void *memory, size_t bytes);
} Allocator;
void backend_set_allocator(Allocator allocator);

#endif
