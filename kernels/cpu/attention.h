/* Tiles of attention. Queries lie on the lanes, QUERIES at a time; keys are the rows of a tile, KEYS at a time, counted from the
 * sequence's first key, so a query's result depends neither on other queries nor on where its tile of queries begins.
 *
 * Operands are copied into rows of `dims` elements (the head size rounded up to whole vectors, filled with 0): f32, or bf16 where
 * the processor multiplies pairs of them. A "word" is 4 bytes of such a row: one f32 or two bf16. Layouts, in words:
 *   rows   (tokens, words)           a token's elements: contraction over the head size
 *   pairs  (tokens / 2, dims)        two tokens' bf16 interleaved: contraction over tokens; for f32 the same as rows
 *   lanes  (size / 2, QUERIES)       a tile of queries turned, so that queries lie on the lanes
 *   turned (dims, KEYS / 2)          a tile of keys turned: contraction over keys with tiles; without tiles the same as pairs */
#ifndef ONN_ATTENTION_H
#define ONN_ATTENTION_H

#include <immintrin.h>
#include <math.h>

#include "panel.h"
#include "vecmath.h"

enum {
    QUERIES = BLOCK_COLS,
#ifdef __AVX512F__
    ROWS = 12, /* of one block: with two vectors each its sums fill the registers */
#else
    ROWS = 6,
#endif
    PART = ROWS / 3,
#ifdef __AMX_BF16__
    KEY_PART = 32, DIM_PART = 32, /* whole tiles */
#else
    KEY_PART = PART, DIM_PART = LANES,
#endif
    KEYS = 96
};

static const float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

/* One head's tokens of one sequence, in place: token t's elements begin at data + t * step. */
typedef struct Head {
    char *data;
    Dtype dtype;
    int64_t step;
} Head;

static inline Head head_at(const View *v, int64_t token, int64_t head) {
    return (Head){(char *)v->data + (token * v->stride[0] + head * v->stride[1]) * (int64_t)dtype_size(v->dtype), v->dtype, v->stride[0]};
}
static inline void *head_row(Head h, int64_t token) { return h.data + token * h.step * (int64_t)dtype_size(h.dtype); }

/* The copies' geometry. */
typedef struct Form {
    int64_t size, dims, words; /* of a head; of a copied row in elements, and in words */
    int pairs;
} Form;

static inline Form form_of(const View *v) {
    int pairs = sides_pair(v->dtype, v->dtype);
    int64_t size = v->shape[2], part = pairs ? DIM_PART : LANES, dims = count_of(size, part) * part;
    return (Form){size, dims, pairs ? dims / 2 : dims, pairs};
}

/* Keys that a tile's block of rows reads: a whole number of parts. */
static inline int64_t whole_parts(int64_t n) { return count_of(n, KEY_PART) * KEY_PART; }

/* --- copies ------------------------------------------------------------------------------------------------------------ */

/* rows (n up to whole tiles, words): tokens from..from+n; rows up to `filled` become 0. */
static inline void copy_rows(float *to, const Form *f, Head from, int64_t first, int64_t n, int64_t filled) {
    for (int64_t i = 0; i < n; i++, to += f->words) {
        const void *row = head_row(from, first + i);
        if (f->pairs) {
            memcpy(to, row, (size_t)f->size * 2);
            memset((char *)to + f->size * 2, 0, (size_t)(f->dims - f->size) * 2);
            continue;
        }
        int64_t k = 0;
        for (; k + LANES <= f->size; k += LANES)
            vec_store(to + k, vec_get(row, from.dtype, k));
        if (k < f->size)
            vec_store(to + k, vec_get_part(row, from.dtype, k, f->size - k));
    }
    if (filled > n)
        memset(to, 0, (size_t)((filled - n) * f->words) * 4);
}

/* pairs (n / 2, dims) from rows (n, words) of bf16; n even. */
static inline void copy_pairs(float *to, const Form *f, const float *rows, int64_t n) {
    const bf16 *a = (const bf16 *)(const void *)rows;
    for (int64_t i = 0; i < n; i += 2, a += 2 * f->dims, to += f->dims)
        for (int64_t k = 0; k < f->dims; k += LANES) {
            VecH low, high;
            memcpy(&low, a + k, sizeof low);
            memcpy(&high, a + f->dims + k, sizeof high);
            VecU both = __builtin_convertvector(low, VecU) | __builtin_convertvector(high, VecU) << 16;
            memcpy(to + k, &both, sizeof both);
        }
}

/* turned (dims, KEYS / 2), or pairs, from rows (n, words) of bf16. */
static inline void copy_turned(float *to, const Form *f, const float *rows, int64_t n) {
#ifdef __AMX_BF16__
    const bf16 *a = (const bf16 *)(const void *)rows;
    for (int64_t d = 0; d < f->dims; d += 16)
        for (int64_t k = 0; k < n; k += 32) {
            __m512i r[16];
            for (int s = 0; s < 16; s++) {
                const bf16 *even = a + (k + 2 * s) * f->dims + d;
                __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)even));
                __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(even + f->dims)));
                r[s] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            }
            words_turn(r);
            for (int i = 0; i < 16; i++)
                _mm512_storeu_si512(to + (d + i) * (KEYS / 2) + k / 2, r[i]);
        }
#else
    copy_pairs(to, f, rows, n);
#endif
}

/* lanes (size / 2 or size, QUERIES): n queries from `first`; missing lanes are 0. */
static inline void copy_lanes(float *to, const Form *f, Head from, int64_t first, int64_t n) {
    KERNEL(panel_pack)(to, RIGHT, (Side){head_row(from, first), from.dtype, from.step, 1}, n, f->size, f->pairs);
}

/* Tokens first..first+n of `to` = turned^T, turned f32 (dims, QUERIES); turn is QUERIES * QUERIES of scratch. */
static inline void put_turned(Head to, const Form *f, int64_t first, int64_t n, const float *turned, float *turn) {
    for (int64_t d = 0; d < f->size; d += QUERIES) {
        int64_t cols = least(QUERIES, f->size - d);
        KERNEL(panel_pack)(turn, RIGHT, (Side){turned + d * QUERIES, F32, QUERIES, 1}, cols, QUERIES, 0);
        for (int64_t i = 0; i < n; i++) {
            void *row = head_row(to, first + i);
            int64_t k = 0;
            for (; k + LANES <= cols; k += LANES)
                vec_put(row, to.dtype, d + k, vec_load(turn + i * QUERIES + k));
            if (k < cols)
                vec_put_part(row, to.dtype, d + k, cols - k, vec_load(turn + i * QUERIES + k));
        }
    }
}

/* --- blocks ------------------------------------------------------------------------------------------------------------ */

/* c (rows, vecs * LANES) = c * factor (0 if factor is NULL) + sum over steps of a's words times b's vectors. */
INLINE void block_sum(float *c, int64_t c_row, const Vec *factor, const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_row,
                       int64_t steps, const int rows, const int vecs, const int pairs) {
    Vec sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vecs; j++)
            if (factor)
                sum[i][j] = vec_load(c + i * c_row + j * LANES) * factor[j];
            else
                sum[i][j] = (Vec){0};
    for (int64_t s = 0; s < steps; s++, a += a_step, b += b_row) {
        Vec right[2];
        for (int j = 0; j < vecs; j++)
            right[j] = vec_load(b + j * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            Vec left = vec_set(a[i * a_row]);
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
            vec_store(c + i * c_row + j * LANES, sum[i][j]);
}

/* The same for any number of rows, a multiple of PART. */
INLINE void rows_sum(float *c, int64_t c_row, const Vec *factor, const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_row,
                      int64_t steps, int64_t rows, const int vecs, const int pairs) {
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        block_sum(c + i * c_row, c_row, factor, a + i * a_row, a_row, a_step, b, b_row, steps, ROWS, vecs, pairs);
    if (i + 2 * PART <= rows)
        block_sum(c + i * c_row, c_row, factor, a + i * a_row, a_row, a_step, b, b_row, steps, 2 * PART, vecs, pairs);
    else if (i < rows)
        block_sum(c + i * c_row, c_row, factor, a + i * a_row, a_row, a_step, b, b_row, steps, PART, vecs, pairs);
}

#ifdef __AMX_BF16__
/* c (rows, 2 * LANES) = (keep ? c : 0) + a b by tiles: a's rows `a_row` words apart, rows a multiple of 32, steps of 16. */
INLINE void tiles_sum(float *c, int64_t c_row, const int keep, const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t steps,
                      int64_t rows) {
    for (int64_t i = 0; i < rows; i += 32, a += 32 * a_row, c += 32 * c_row) {
        if (keep) {
            _tile_loadd(0, c, c_row * 4);
            _tile_loadd(1, c + 16, c_row * 4);
            _tile_loadd(2, c + 16 * c_row, c_row * 4);
            _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t s = 0; s < steps; s += 16) {
            _tile_loadd(4, a + s, a_row * 4);
            _tile_loadd(6, b + s * b_row, b_row * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + s * b_row + 16, b_row * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + 16 * a_row + s, a_row * 4);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, c_row * 4);
        _tile_stored(1, c + 16, c_row * 4);
        _tile_stored(2, c + 16 * c_row, c_row * 4);
        _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
    }
}

/* The three products below for bf16. */
static inline void pairs_keys_times(float *c, const Form *f, const float *keys, const float *q, int64_t n) {
    tiles_sum(c, QUERIES, 0, keys, f->words, q, QUERIES, f->words, n);
}
static inline void pairs_turned_times(float *c, const Form *f, const Vec *factor, const float *keys, const float *p, int64_t n) {
    for (int64_t d = 0; factor && d < f->dims; d++)
        for (int j = 0; j < 2; j++)
            vec_store(c + d * QUERIES + j * LANES, vec_load(c + d * QUERIES + j * LANES) * factor[j]);
    tiles_sum(c, QUERIES, 1, keys, KEYS / 2, p, QUERIES, n / 2, f->dims);
}
static inline void pairs_from_queries(float *c, const Form *f, const float *p, const float *q, int64_t n) {
    for (int64_t d = 0; d < f->dims; d += 2 * LANES)
        tiles_sum(c + d, f->dims, 1, p, QUERIES / 2, q + d, f->dims, QUERIES / 2, n);
}
#else
static inline void pairs_keys_times(float *c, const Form *f, const float *keys, const float *q, int64_t n) {
    rows_sum(c, QUERIES, NULL, keys, f->words, 1, q, QUERIES, (f->size + 1) / 2, n, 2, 1);
}
static inline void pairs_turned_times(float *c, const Form *f, const Vec *factor, const float *keys, const float *p, int64_t n) {
    const Vec ones[2] = {vec_set(1), vec_set(1)};
    rows_sum(c, QUERIES, factor ? factor : ones, keys, 1, f->dims, p, QUERIES, n / 2, f->dims, 2, 1);
}
static inline void pairs_from_queries(float *c, const Form *f, const float *p, const float *q, int64_t n) {
    const Vec ones[2] = {vec_set(1), vec_set(1)};
    int64_t d = 0;
    for (; d + 2 * LANES <= f->dims; d += 2 * LANES)
        rows_sum(c + d, f->dims, ones, p, QUERIES / 2, 1, q + d, f->dims, QUERIES / 2, n, 2, 1);
    if (d < f->dims)
        rows_sum(c + d, f->dims, ones, p, QUERIES / 2, 1, q + d, f->dims, QUERIES / 2, n, 1, 1);
}
#endif

/* c (n keys, QUERIES) = keys q^T: keys as rows, q as lanes. n a multiple of KEY_PART. */
static inline void keys_times_queries(float *c, const Form *f, const float *keys, const float *q, int64_t n) {
    if (f->pairs)
        pairs_keys_times(c, f, keys, q, n);
    else
        rows_sum(c, QUERIES, NULL, keys, f->words, 1, q, QUERIES, f->size, n, 2, 0);
}

/* c (dims, QUERIES) = c * factor (NULL: c) + keys^T p over n keys of one tile: keys turned, p (n / 2 or n, QUERIES). */
static inline void keys_turned_times(float *c, const Form *f, const Vec *factor, const float *keys, const float *p, int64_t n) {
    const Vec ones[2] = {vec_set(1), vec_set(1)};
    if (f->pairs)
        pairs_turned_times(c, f, factor, keys, p, n);
    else
        rows_sum(c, QUERIES, factor ? factor : ones, keys, 1, f->dims, p, QUERIES, n, f->dims, 2, 0);
}

/* c (n keys, dims) += p q over the tile's queries: p (keys, QUERIES) as rows, q as pairs. */
static inline void keys_from_queries(float *c, const Form *f, const float *p, const float *q, int64_t n) {
    const Vec ones[2] = {vec_set(1), vec_set(1)};
    int64_t d = 0;
    if (f->pairs) {
        pairs_from_queries(c, f, p, q, n);
        return;
    }
    for (; d + 2 * LANES <= f->dims; d += 2 * LANES)
        rows_sum(c + d, f->dims, ones, p, QUERIES, 1, q + d, f->dims, QUERIES, n, 2, 0);
    if (d < f->dims)
        rows_sum(c + d, f->dims, ones, p, QUERIES, 1, q + d, f->dims, QUERIES, n, 1, 0);
}

/* --- scores ------------------------------------------------------------------------------------------------------------ */

/* The larger; b where either is NaN. */
static inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#endif
}

/* 2^x for x <= 1: relative error under 2e-7; 0 below -127; NaN stays. */
static inline Vec exp2_below(Vec x) {
    x = larger(vec_set(-127), x);
    Vec shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f); /* 1.5 * 2^23: the nearest integer in the low bits */
    Vec p = r * 1.55946770e-4f + 1.34066438e-3f;
    p = p * r + 9.61769298e-3f;
    p = p * r + 5.55031055e-2f;
    p = p * r + 2.40226528e-1f;
    p = p * r + 6.93147215e-1f;
    p = p * r + 1.0f;
    return p * (Vec)(((VecI)shifted << 23) + 0x3f800000);
}

/* Which keys a tile of queries sees: queries first..last stand at these key numbers; keys low..high in all. */
typedef struct Sight {
    int64_t first, last, low, high, window, chunk;
    int causal;
} Sight;

static inline Sight sight_of(const Mask *m, int64_t s, int64_t q0, int64_t n) {
    int64_t queries = m->q_starts[s + 1] - m->q_starts[s], keys = m->k_starts[s + 1] - m->k_starts[s];
    Sight v = {.first = q0 + keys - queries, .window = m->window, .chunk = m->chunk, .causal = m->causal};
    v.last = v.first + n - 1;
    v.high = m->causal ? v.last + 1 : keys;
    v.low = m->window && v.first - m->window + 1 > 0 ? v.first - m->window + 1 : 0;
    if (m->chunk && v.first / m->chunk * m->chunk > v.low)
        v.low = v.first / m->chunk * m->chunk;
    return v;
}

/* Scores (n keys from k0, QUERIES) that a query does not see become -inf. */
static inline void hide(float *scores, const Sight *v, int64_t k0, int64_t n) {
    int32_t numbers[2 * LANES], chunks[2 * LANES];
    VecI at[2], chunk[2];
    for (int j = 0; j < 2 * LANES; j++) {
        numbers[j] = (int32_t)(v->first + j);
        chunks[j] = v->chunk ? (int32_t)((v->first + j) / v->chunk * v->chunk) : 0;
    }
    memcpy(at, numbers, sizeof at);
    memcpy(chunk, chunks, sizeof chunk);
    for (int64_t i = 0; i < n; i++) {
        int64_t key = k0 + i;
        int after = v->causal && key > v->first, before = v->window && key <= v->last - v->window;
        int apart = v->chunk && key < v->last / v->chunk * v->chunk;
        if (key < v->high && !after && !before && !apart)
            continue;
        for (int j = 0; j < 2; j++) {
            VecI hidden = {0};
            if (key >= v->high)
                hidden = ~hidden;
            if (after)
                hidden |= at[j] < (int32_t)key;
            if (before)
                hidden |= at[j] - (int32_t)v->window >= (int32_t)key;
            if (apart)
                hidden |= chunk[j] > (int32_t)key;
            float *p = scores + i * QUERIES + j * LANES;
            vec_store(p, (Vec)((hidden & (int32_t)0xff800000) | (~hidden & (VecI)vec_load(p))));
        }
    }
}
static inline int hides(const Sight *v, int64_t k0, int64_t n) {
    return k0 + n > v->high || (v->causal && k0 + n - 1 > v->first) || (v->window && k0 <= v->last - v->window) ||
           (v->chunk && k0 < v->last / v->chunk * v->chunk);
}

/* Whether scores are more than products: their cap and bias are then a step of its own, after which they are whole logits times log2(e). */
static inline int mask_shapes(const Mask *m) { return m->cap > 0 || m->bias; }

/* Scores (n keys from k0, QUERIES) of one head become cap * tanh(scale * score / cap) + bias, times log2(e); slopes, if not NULL,
 * receive the derivative by scale * score. */
static inline void shape_scores(float *scores, float *slopes, const Mask *m, const Sight *v, int64_t head, int64_t k0, int64_t n, float scale) {
    float line[KEYS + QUERIES]; /* the bias from the farthest distance of the tile's last key down: element t lies t before it */
    for (int64_t t = 0, end = n - 1 + QUERIES; m->bias && t < end; t++) {
        int64_t at = k0 + n - 1 - v->first - t + m->bias_zero;
        at = at < 0 ? 0 : at < m->bias_size ? at : m->bias_size - 1;
        line[t] = m->bias[head * m->bias_size + at] * LOG2_E;
    }
    float inside = m->cap > 0 ? scale / m->cap : 0, outside = m->cap * LOG2_E;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < 2; j++) {
            float *at = scores + i * QUERIES + j * LANES;
            Vec s = vec_load(at);
            if (m->cap > 0) {
                Vec t = vec_tanh(s * inside);
                s = t * outside;
                if (slopes)
                    vec_store(slopes + i * QUERIES + j * LANES, 1.0f - t * t);
            } else {
                s *= scale * LOG2_E;
            }
            if (m->bias)
                s += vec_load(line + n - 1 - i + j * LANES);
            vec_store(at, s);
        }
}

#ifdef __AVX512BF16__
/* One key's probabilities, 32 queries, as a row of bf16. */
static inline __m512i row_of(const Vec p[2]) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)p[1], (__m512)p[0]); }
/* Two keys' rows interleaved into QUERIES words. */
static inline void interleave(float *to, __m512i even, __m512i odd) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1,
                                         32, 0);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(even, _mm512_add_epi16(low, _mm512_set1_epi16(16)), odd));
}
#endif

#endif
