/* Packing operands into panels, and the block kernel that multiplies two panels. */
#include "panel.h"

#if defined(__AVX512BF16__) || defined(__F16C__)
#include <immintrin.h>
#endif

/* So that widths, dtypes and counts of registers are constants inside. */

/* --- packing --------------------------------------------------------------------------------------------------------- */

typedef uint32_t Words __attribute__((vector_size(32), may_alias));
typedef uint16_t Halves __attribute__((vector_size(16), may_alias));

static inline uint32_t f16_word(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    union { uint32_t u; float f; } v = {rest << 13};
    v.f *= 0x1p112f; /* moves the exponent's bias, subnormals included */
    if (rest >= 0x7c00)
        v.u |= 0x7f800000;
    return v.u | sign;
}

/* One panel word from the source: `next` is how far the pair's second element lies, 0 if there is none. */
static inline uint32_t word_at(const void *p, Dtype dtype, int pairs, int64_t next) {
    const uint16_t *h = p;
    if (pairs)
        return h[0] | (next ? (uint32_t)h[next] << 16 : 0);
    if (dtype == F32)
        return *(const uint32_t *)p;
    return dtype == BF16 ? (uint32_t)h[0] << 16 : f16_word(h[0]);
}

/* Eight words that follow each other in the source. */
INLINE void words_load(Words *w, const void *p, Dtype dtype, int pairs) {
    if (pairs || dtype == F32) {
        memcpy(w, p, sizeof *w);
        return;
    }
    Halves h;
    memcpy(&h, p, sizeof h);
    if (dtype == BF16) {
        *w = __builtin_convertvector(h, Words) << 16;
        return;
    }
#ifdef __F16C__
    *w = (Words)_mm256_cvtph_ps((__m128i)h);
#else
    for (int i = 0; i < 8; i++)
        (*w)[i] = f16_word(h[i]);
#endif
}

INLINE void words_transpose(Words r[8]) {
    Words t[8];
    for (int i = 0; i < 4; i++) {
        t[i] = __builtin_shuffle(r[2 * i], r[2 * i + 1], (Words){0, 8, 2, 10, 4, 12, 6, 14});
        t[i + 4] = __builtin_shuffle(r[2 * i], r[2 * i + 1], (Words){1, 9, 3, 11, 5, 13, 7, 15});
    }
    for (int i = 0; i < 8; i += 2) {
        r[i] = __builtin_shuffle(t[i], t[i + 1], (Words){0, 1, 8, 9, 4, 5, 12, 13});
        r[i + 1] = __builtin_shuffle(t[i], t[i + 1], (Words){2, 3, 10, 11, 6, 7, 14, 15});
    }
    /* r[0], r[2]: columns 0 and 4 of lines 0-3, 4-7; r[1], r[3]: columns 2 and 6; r[4..7]: the odd ones */
    for (int i = 0; i < 4; i++) {
        Words low = r[(i & 1) * 4 + (i >> 1)], high = r[(i & 1) * 4 + (i >> 1) + 2];
        t[i] = __builtin_shuffle(low, high, (Words){0, 1, 2, 3, 8, 9, 10, 11});
        t[i + 4] = __builtin_shuffle(low, high, (Words){4, 5, 6, 7, 12, 13, 14, 15});
    }
    memcpy(r, t, sizeof t);
}

/* Lines whose depth is contiguous: transposed in squares of eight. */
INLINE void pack_across(uint32_t *to, int width, Side from, int64_t lines, int64_t depth, int pairs, Dtype dtype) {
    int64_t size = dtype == F32 ? 4 : 2, word = pairs ? 4 : size, whole = pairs ? depth / 2 : depth, steps = panel_steps(depth, pairs);
    const char *data = from.data;
    int64_t s = 0;
    for (; s + 8 <= whole; s += 8) {
#pragma GCC unroll 4
        for (int at = 0; at < width; at += 8) {
            const int part = width - at < 8 ? width - at : 8;
            const char *p = data + at * from.step * size + s * word;
            Words r[8];
            if (at + part <= lines)
                for (int i = 0; i < 8; i++, p += from.step * size)
                    if (i < part)
                        words_load(&r[i], p, dtype, pairs);
                    else
                        r[i] = (Words){0};
            else
                for (int i = 0; i < 8; i++, p += from.step * size)
                    if (at + i < lines)
                        words_load(&r[i], p, dtype, pairs);
                    else
                        r[i] = (Words){0};
            words_transpose(r);
            for (int i = 0; i < 8; i++)
                memcpy(to + (s + i) * width + at, &r[i], (size_t)part * 4);
        }
    }
    for (; s < steps; s++)
        for (int i = 0; i < width; i++)
            to[s * width + i] = i < lines ? word_at(data + i * from.step * size + s * word, dtype, pairs, s < whole) : 0;
}

/* Eight (or the first `n`) neighbouring lines of one step; `next`, if there is one, is the pair's second row. */
INLINE void step_load(Words *w, const char *row, const char *next, int64_t n, int pairs, Dtype dtype) {
    char low[32] = {0}, high[16] = {0};
    Halves a, b;
    if (n < 8) {
        memcpy(low, row, (size_t)n * (dtype == F32 ? 4 : 2));
        if (pairs && next)
            memcpy(high, next, (size_t)n * 2);
        row = low;
        next = high;
    }
    if (!pairs) {
        words_load(w, row, dtype, 0);
        return;
    }
    memcpy(&a, row, sizeof a);
    memcpy(&b, next ? next : high, sizeof b);
    *w = __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16;
}

/* Lines that lie side by side: each step is a copy, or two rows interleaved. */
INLINE void pack_along(uint32_t *to, int width, Side from, int64_t lines, int64_t depth, int pairs, Dtype dtype) {
    int64_t size = dtype == F32 ? 4 : 2, steps = panel_steps(depth, pairs);
    for (int64_t s = 0; s < steps; s++) {
        const char *row = (const char *)from.data + (pairs ? 2 * s : s) * from.inner * size;
        const char *next = pairs && 2 * s + 1 < depth ? row + from.inner * size : NULL;
#pragma GCC unroll 4
        for (int at = 0; at < width; at += 8) {
            const int part = width - at < 8 ? width - at : 8;
            Words w = {0};
            if (at + 8 <= lines) /* past the width too: one load, of which a part is kept */
                step_load(&w, row + at * size, next ? next + at * size : NULL, 8, pairs, dtype);
            else if (at < lines)
                step_load(&w, row + at * size, next ? next + at * size : NULL, lines - at, pairs, dtype);
            memcpy(to + s * width + at, &w, (size_t)part * 4);
        }
    }
}

static void pack_any(uint32_t *to, int width, Side from, int64_t lines, int64_t depth, int pairs) {
    int64_t size = (int64_t)dtype_size(from.dtype), steps = panel_steps(depth, pairs);
    for (int64_t s = 0; s < steps; s++)
        for (int i = 0; i < width; i++) {
            int64_t k = pairs ? 2 * s : s;
            const char *p = (const char *)from.data + (i * from.step + k * from.inner) * size;
            to[s * width + i] = i < lines ? word_at(p, from.dtype, pairs, k + 1 < depth ? from.inner : 0) : 0;
        }
}

INLINE void pack(uint32_t *to, int width, Side from, int64_t lines, int64_t depth, int pairs, Dtype dtype) {
    if (from.inner == 1)
        pack_across(to, width, from, lines, depth, pairs, dtype);
    else if (from.step == 1)
        pack_along(to, width, from, lines, depth, pairs, dtype);
    else
        pack_any(to, width, from, lines, depth, pairs);
}

INLINE void pack_width(uint32_t *to, int width, Side from, int64_t lines, int64_t depth, int pairs) {
    if (pairs)
        pack(to, width, from, lines, depth, 1, BF16);
    else if (from.dtype == F32)
        pack(to, width, from, lines, depth, 0, F32);
    else if (from.dtype == BF16)
        pack(to, width, from, lines, depth, 0, BF16);
    else
        pack(to, width, from, lines, depth, 0, F16);
}

void KERNEL(panel_pack)(float *to, int width, Side from, int64_t lines, int64_t depth, int pairs) {
    if (width == BLOCK_ROWS)
        pack_width((uint32_t *)(void *)to, BLOCK_ROWS, from, lines, depth, pairs);
    else
        pack_width((uint32_t *)(void *)to, BLOCK_COLS, from, lines, depth, pairs);
}

/* --- the block ------------------------------------------------------------------------------------------------------- */

/* rows, vecs and pairs are constants where this is inlined, so that the accumulators are registers. Two vectors for each
 * broadcast: with one, the loads of a bf16 block take longer than its arithmetic (172 against 223 GFLOP/s on Zen 4). */
INLINE void block(float *c, int keep, const float *a, const float *b, int64_t steps, const int rows,
                  const int vecs, const int pairs) {
    Vec sum[BLOCK_ROWS][BLOCK_VECS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vecs; j++)
            sum[i][j] = keep ? vec_load(c + i * BLOCK_COLS + j * LANES) : (Vec){0};
    for (int64_t s = 0; s < steps; s++, a += BLOCK_ROWS, b += BLOCK_COLS) {
        Vec right[BLOCK_VECS];
        for (int j = 0; j < vecs; j++)
            right[j] = vec_load(b + j * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            Vec left = vec_set(a[i]);
#pragma GCC unroll 2
            for (int j = 0; j < vecs; j++) {
#ifdef __AVX512BF16__
                if (pairs) {
                    sum[i][j] = (Vec)_mm512_dpbf16_ps((__m512)sum[i][j], (__m512bh)right[j], (__m512bh)left);
                    continue;
                }
#endif
                (void)pairs;
                sum[i][j] += left * right[j];
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vecs; j++)
            vec_store(c + i * BLOCK_COLS + j * LANES, sum[i][j]);
}

INLINE void block_rows(float *c, int keep, const float *a, const float *b, int64_t steps, int64_t rows,
                       const int vecs, const int pairs) {
    enum { PART = (BLOCK_ROWS + 2) / 3 };
    if (rows <= PART)
        block(c, keep, a, b, steps, PART, vecs, pairs);
    else if (rows <= 2 * PART)
        block(c, keep, a, b, steps, 2 * PART, vecs, pairs);
    else
        block(c, keep, a, b, steps, BLOCK_ROWS, vecs, pairs);
}

void KERNEL(block_product)(float *c, int keep, const float *a, const float *b, int64_t steps, int64_t rows, int64_t cols, int pairs) {
    if (pairs && cols > LANES)
        block_rows(c, keep, a, b, steps, rows, 2, 1);
    else if (pairs)
        block_rows(c, keep, a, b, steps, rows, 1, 1);
    else if (cols > LANES)
        block_rows(c, keep, a, b, steps, rows, 2, 0);
    else
        block_rows(c, keep, a, b, steps, rows, 1, 0);
}
