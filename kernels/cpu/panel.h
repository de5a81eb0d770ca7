/* The blocks that every product is made of: C (BLOCK_ROWS x BLOCK_COLS) = A B from two packed panels.
 * Each element of C is one chain of sums over the depth, from its start to its end, so its bits depend on nothing but its own
 * row and column: not on how many rows there are, nor on tiles, cuts or threads. */
#ifndef ONN_PANEL_H
#define ONN_PANEL_H

#include "isa.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__AMX_BF16__)
enum { BLOCK_ROWS = 32, BLOCK_VECS = 2, PAIR_STEPS = 16 }; /* two by two tiles; a tile is 16 pairs deep */
#elif defined(__AVX512F__)
enum { BLOCK_ROWS = 12, BLOCK_VECS = 2, PAIR_STEPS = 1 };
#elif defined(__AVX2__)
enum { BLOCK_ROWS = 6, BLOCK_VECS = 2, PAIR_STEPS = 1 };
#else
enum { BLOCK_ROWS = 4, BLOCK_VECS = 2, PAIR_STEPS = 1 };
#endif
enum { BLOCK_COLS = LANES * BLOCK_VECS };

/* A block's operands: its rows come from a left panel, its columns from a right one. */
typedef enum Panel { LEFT, RIGHT } Panel;
static inline int panel_width(Panel panel) { return panel == LEFT ? BLOCK_ROWS : BLOCK_COLS; }

/* One operand: its lines are C's rows or C's columns; element (line, k) lies at line * step + k * inner. */
typedef struct Side {
    const void *data;
    Dtype dtype; /* f32, bf16, f16 */
    int64_t step, inner;
} Side;

static inline Side side_at(Side s, int64_t line, int64_t k) {
    s.data = (const char *)s.data + (line * s.step + k * s.inner) * (int64_t)dtype_size(s.dtype);
    return s;
}

/* Whether the product of two dtypes runs on pairs of bf16 here; if not, panels are f32. */
static inline int sides_pair(Dtype a, Dtype b) {
#ifdef __AVX512BF16__
    return a == BF16 && b == BF16;
#else
    return (void)a, (void)b, 0;
#endif
}

/* A panel is steps x width words of 4 bytes: an f32, or two bf16 that follow each other in the depth. With tiles, pairs come in
 * whole groups of PAIR_STEPS steps (zeros fill the last), and within a group a left panel is width x steps. */
static inline int64_t panel_steps(int64_t depth, int pairs) {
    int64_t steps = pairs ? (depth + 1) / 2 : depth;
    return pairs ? (steps + PAIR_STEPS - 1) / PAIR_STEPS * PAIR_STEPS : steps;
}

/* Words that a panel takes, a multiple of 64 bytes. */
static inline int64_t panel_words(int width, int64_t depth, int pairs) {
    return (panel_steps(depth, pairs) * width + 15) / 16 * 16;
}

/* panel_pack() : as many of `lines` lines of `from` as the panel is wide, `depth` deep; missing lines, and what fills the last
 * step, are 0. */
void KERNEL(panel_pack)(float *to, Panel panel, Side from, int64_t lines, int64_t depth, int pairs);
/* panel_pack_rounded() : the same of f32 or f16 rounded to bf16 first; lines or depth contiguous, or only one of them. */
void KERNEL(panel_pack_rounded)(float *to, Panel panel, Side from, int64_t lines, int64_t depth, int pairs);

/* panel_pack_lines() : a left panel of bf16 pairs from lines whose depth is contiguous, bf16, or f32 or f16 rounded first. Only where
 * PACKS_ROWS. */
void KERNEL(panel_pack_lines)(float *to, Side from, int64_t lines, int64_t depth);

/* panels_pack_rows() : `rows` rows, a multiple of 2, of the depth of `panels` whole right panels of bf16 pairs, each `words` after the
 * one before; lines side by side. Only where PACKS_ROWS. */
void KERNEL(panels_pack_rows)(float *to, int64_t words, int64_t panels, Side from, int64_t rows);
#ifdef __AMX_BF16__
enum { PACKS_ROWS = 1 };
#else
enum { PACKS_ROWS = 0 };
#endif

#ifdef __AVX512F__
/* Sixteen rows of sixteen words become columns. */
static inline void words_turn(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}
#endif

/* blocks_begin(), blocks_end() : around all block_product() calls of one thread in one parallel region. */
#ifdef __AMX_BF16__
static inline void blocks_begin(void) {
    static const struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } eight
        __attribute__((aligned(64))) = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&eight);
}
static inline void blocks_end(void) {
    _tile_release();
    _mm_sfence(); /* after results that went past the caches */
}

/* A square block becomes its transpose. */
static inline void block_turn(float *block) {
    __m512i r[16], q[16];
    for (int at = 0; at < 2; at++)
        for (int from = at; from < 2; from++) {
            float *low = block + at * 16 * BLOCK_COLS + from * 16, *high = block + from * 16 * BLOCK_COLS + at * 16;
            for (int i = 0; i < 16; i++) {
                r[i] = _mm512_loadu_si512(low + i * BLOCK_COLS);
                q[i] = _mm512_loadu_si512(high + i * BLOCK_COLS);
            }
            words_turn(r);
            for (int i = 0; i < 16; i++)
                _mm512_storeu_si512(high + i * BLOCK_COLS, r[i]);
            if (at == from)
                continue;
            words_turn(q);
            for (int i = 0; i < 16; i++)
                _mm512_storeu_si512(low + i * BLOCK_COLS, q[i]);
        }
}
#else
static inline void blocks_begin(void) {}
static inline void blocks_end(void) {}
static inline void block_turn(float *block) { (void)block; } /* no product is turned */
#endif

/* A product's part: panels a and b, `steps` deep. */
typedef struct Factors {
    const float *a, *b;
    int64_t steps;
} Factors;

/* Memory that will be packed soon: runs of `bytes`, `step` bytes from one to the next. */
typedef struct Ahead {
    const char *at;
    int64_t step, runs, bytes;
} Ahead;

/* block_product() : c (BLOCK_ROWS x BLOCK_COLS) = (keep ? c : 0) + each of `count` parts, one chain of sums through them in order;
 * what lies past `rows` and `cols` may be left as it is. What is `ahead`, if not NULL, is brought near meanwhile, evenly: asked for all
 * at once it would keep the panels themselves waiting. */
void KERNEL(block_product)(float *c, int keep, const Factors *parts, int count, int64_t rows, int64_t cols, int pairs, const Ahead *ahead);

/* Brings share `i` of `of` of a panel's source near, while blocks are computed. */
static inline void side_prefetch(Side s, int64_t lines, int64_t depth, int64_t i, int64_t of) {
    int64_t size = (int64_t)dtype_size(s.dtype), runs = s.inner == 1 ? lines : depth, bytes = (s.inner == 1 ? depth : lines) * size;
    for (int64_t r = runs * i / of; r < runs * (i + 1) / of; r++)
        for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch((const char *)s.data + r * (s.inner == 1 ? s.step : s.inner) * size + b, 0, 2);
}

/* Asks for memory that is written next, all of it: lines that another core has had come one by one otherwise. */
static inline void memory_claim(void *to, int64_t bytes) {
    for (int64_t b = 0; b < bytes; b += 64)
        __builtin_prefetch((char *)to + b, 1, 3);
}

static inline int64_t count_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
