/* Packing operands into panels, and the block kernel that multiplies two panels. */
#include "panel.h"

#include "half.h"

#if defined(__AVX512BF16__) || defined(__F16C__)
#include <immintrin.h>
#endif

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

#ifdef __AVX512F__
static inline __mmask32 first_halves(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1; }

/* Sixteen words of sixteen lines whose depth is contiguous, a line to a vector. `left` halves of words remain of the depth. */
static inline void group_across(__m512i r[16], const uint16_t *data, int64_t step, int64_t lines, int64_t left) {
    if (lines >= 16 && left >= 32) {
        for (int i = 0; i < 16; i++)
            r[i] = _mm512_loadu_si512(data + i * step);
        return;
    }
    __mmask32 mask = first_halves(left);
    for (int i = 0; i < 16; i++)
        r[i] = i < lines ? _mm512_maskz_loadu_epi16(mask, data + i * step) : _mm512_setzero_si512();
}

/* Lines whose words follow each other: transposed in squares of sixteen, each line's memory at once. halves: of words, in the depth; `step`
 * from one line to the next, in halves too. */
INLINE void pack_squares(uint32_t *to, const int width, const uint16_t *data, int64_t step, int64_t lines, int64_t halves) {
    for (int64_t k = 0; k < halves; k += 32, to += 16 * width) {
        int64_t steps = least(16, (halves - k + 1) / 2);
        for (int at = 0; at < width; at += 16) {
            __mmask16 part = (__mmask16)first_halves(width - at);
            __m512i r[16];
            group_across(r, data + at * step + k, step, least(lines, width) - at, halves - k);
            words_turn(r);
            for (int64_t i = 0; i < steps; i++)
                _mm512_mask_storeu_epi32(to + i * width + at, part, r[i]);
        }
    }
}
#endif

#ifdef __AVX512BF16__
/* Sixteen steps of lines that lie side by side, a step to a vector: two rows of the depth interleaved. `left` elements remain of it. */
static inline void group_along(__m512i r[16], const uint16_t *data, int64_t inner, int64_t lines, int64_t left) {
    __mmask16 mask = (__mmask16)first_halves(lines);
    for (int s = 0; s < 16; s++, data += 2 * inner) {
        __m512i low = 2 * s < left ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, data)) : _mm512_setzero_si512();
        __m512i high = 2 * s + 1 < left ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, data + inner)) : _mm512_setzero_si512();
        r[s] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
}

/* One step of a right panel whose 32 lines lie side by side: 64 bytes of two rows of the depth, interleaved. */
static inline void pair_along(uint32_t *to, const uint16_t *data, int64_t inner) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i even = _mm512_loadu_si512(data), odd = _mm512_loadu_si512(data + inner);
    __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd); /* by fours: 0 2 4 6, 1 3 5 7 */
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(low, second, high));
}

/* A right panel of bf16 pairs whose lines lie side by side. */
static void pack_beside(uint32_t *to, Side from, int64_t lines, int64_t depth) {
    const uint16_t *data = from.data;
    for (int64_t k = 0; k < depth; k += 32, to += 16 * BLOCK_COLS) {
        int64_t steps = least(16, (depth - k + 1) / 2);
        if (lines >= BLOCK_COLS && depth - k >= 32) {
            for (int s = 0; s < 16; s++)
                pair_along(to + s * BLOCK_COLS, data + (k + 2 * s) * from.inner, from.inner);
            continue;
        }
        for (int at = 0; at < BLOCK_COLS; at += 16) {
            __m512i r[16];
            group_along(r, data + at + k * from.inner, from.inner, lines - at, depth - k);
            for (int64_t i = 0; i < steps; i++)
                _mm512_storeu_si512(to + i * BLOCK_COLS + at, r[i]);
        }
    }
}
#endif

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
#ifdef __AVX512F__
    if (from.inner == 1 && (pairs || dtype == F32)) {
        const int halves = dtype == F32 ? 2 : 1;
        pack_squares(to, width, from.data, from.step * halves, lines, depth * halves);
        return;
    }
#endif
#ifdef __AVX512BF16__
    if (from.step == 1 && pairs && width == BLOCK_COLS) {
        pack_beside(to, from, lines, depth);
        return;
    }
#endif
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

#ifdef __AMX_BF16__
/* `count` lines of a left panel, whose depth is contiguous: one after another, the order in which memory comes fastest. */
static void copy_lines(uint32_t *to, int count, Side from, int64_t lines, int64_t depth) {
    const uint16_t *data = from.data;
    for (int i = 0; i < count; i++, data += from.step) {
        int64_t k = 0, n = i < lines ? depth : 0;
        for (; k + 32 <= n; k += 32)
            _mm512_storeu_si512(to + k * 16 + i * 16, _mm512_loadu_si512(data + k));
        for (; k < depth; k += 32)
            _mm512_storeu_si512(to + k * 16 + i * 16, _mm512_maskz_loadu_epi16(first_halves(n - k), data + k));
    }
}

static void pack_tiles(uint32_t *to, Panel panel, Side from, int64_t lines, int64_t depth) {
    const uint16_t *data = from.data;
    if (panel == LEFT && from.inner == 1) {
        copy_lines(to, 32, from, lines, depth);
        return;
    }
    int across = from.inner == 1;
    for (int64_t k = 0; k < depth; k += 32, to += 16 * 32) {
        if (!across && panel == RIGHT && lines >= 32 && depth - k >= 32) {
            for (int s = 0; s < 16; s++)
                pair_along(to + s * 32, data + (k + 2 * s) * from.inner, from.inner);
            continue;
        }
        for (int at = 0; at < 32; at += 16) {
            __m512i r[16];
            if (across)
                group_across(r, data + at * from.step + k, from.step, lines - at, depth - k);
            else
                group_along(r, data + at + k * from.inner, from.inner, lines - at, depth - k);
            if (across == (panel == RIGHT))
                words_turn(r);
            for (int i = 0; i < 16; i++)
                _mm512_storeu_si512(panel == LEFT ? to + (at + i) * 16 : to + i * 32 + at, r[i]);
        }
    }
}
#endif

void KERNEL(panel_pack)(float *to, Panel panel, Side from, int64_t lines, int64_t depth, int pairs) {
    uint32_t *words = (uint32_t *)(void *)to;
#ifdef __AMX_BF16__
    if (pairs) {
        pack_tiles(words, panel, from, lines, depth);
        return;
    }
#endif
    if (panel == LEFT)
        pack_width(words, BLOCK_ROWS, from, lines, depth, pairs);
    else
        pack_width(words, BLOCK_COLS, from, lines, depth, pairs);
}

void KERNEL(panels_pack_rows)(float *to, int64_t words, int64_t panels, Side from, int64_t rows) {
#ifdef __AMX_BF16__
    for (int64_t k = 0; k < rows; k += 2, to += 32)
        for (int64_t j = 0; j < panels; j++)
            pair_along((uint32_t *)(void *)(to + j * words), (const uint16_t *)from.data + k * from.inner + j * 32, from.inner);
#else
    (void)to, (void)words, (void)panels, (void)from, (void)rows;
#endif
}

static void run_rounded(bf16 *to, const void *from, Dtype dtype, int64_t n) {
    const uint16_t *half = from;
    const float *whole = from;
    int64_t i = 0;
    if (dtype == F16) {
        for (; i + LANES <= n; i += LANES)
            vec_round_bf16(to + i, vec_load_f16(half + i)); /* no f16 is under 2^-126 */
        for (; i < n; i++)
            to[i] = f32_to_bf16(f16_to_f32(half[i]));
    } else {
        for (; i + LANES <= n; i += LANES)
            vec_store_bf16(to + i, vec_load(whole + i));
        for (; i < n; i++)
            to[i] = f32_to_bf16(whole[i]);
    }
}

void KERNEL(panel_pack_lines)(float *to, Side from, int64_t lines, int64_t depth) {
#ifdef __AMX_BF16__
    enum { PART = 256 };
    uint32_t *words = (uint32_t *)(void *)to;
    if (from.dtype == BF16) {
        copy_lines(words, BLOCK_ROWS, from, lines, depth);
        return;
    }
    bf16 part[PART];
    for (int64_t i = 0; i < BLOCK_ROWS; i++)
        for (int64_t k = 0; k < depth; k += PART) {
            int64_t deep = least(PART, depth - k);
            if (i < lines)
                run_rounded(part, side_at(from, i, k).data, from.dtype, deep);
            copy_lines(words + (k + i) * 16, 1, (Side){part, BF16, PART, 1}, lines - i, deep);
        }
#else
    (void)to, (void)from, (void)lines, (void)depth;
#endif
}

void KERNEL(panel_pack_rounded)(float *to, Panel panel, Side from, int64_t lines, int64_t depth, int pairs) {
    enum { MOST_LINES = (int)BLOCK_ROWS > (int)BLOCK_COLS ? (int)BLOCK_ROWS : (int)BLOCK_COLS, PART = 64 };
    bf16 part[MOST_LINES * PART];
    int64_t width = panel_width(panel), n = least(lines, width), across = from.inner == 1 || depth == 1;
    for (int64_t k = 0; k < depth; k += PART, to += panel_steps(PART, pairs) * width) {
        int64_t deep = least(PART, depth - k);
        if (across)
            for (int64_t i = 0; i < n; i++)
                run_rounded(part + i * PART, side_at(from, i, k).data, from.dtype, deep);
        else
            for (int64_t i = 0; i < deep; i++)
                run_rounded(part + i * MOST_LINES, side_at(from, 0, k + i).data, from.dtype, n);
        KERNEL(panel_pack)(to, panel, (Side){part, BF16, across ? PART : 1, across ? 1 : MOST_LINES}, n, deep, pairs);
    }
}

/* --- the block ------------------------------------------------------------------------------------------------------- */

/* Rows whose sums fill the registers. */
enum { SUM_ROWS = BLOCK_ROWS < 12 ? BLOCK_ROWS : 12 };

/* rows, vecs and pairs are constants where this is inlined, so that the accumulators are registers. Two vectors for each
 * broadcast: with one, the loads of a bf16 block take longer than its arithmetic (172 against 223 GFLOP/s on Zen 4). */
INLINE void block(float *c, int keep, const Factors *parts, int count, int64_t first, const int rows, const int vecs, const int pairs) {
    Vec sum[SUM_ROWS][BLOCK_VECS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vecs; j++)
            sum[i][j] = keep ? vec_load(c + i * BLOCK_COLS + j * LANES) : (Vec){0};
    for (int p = 0; p < count; p++) {
        const float *a = parts[p].a + first, *b = parts[p].b;
        for (int64_t s = 0; s < parts[p].steps; s++, a += BLOCK_ROWS, b += BLOCK_COLS) {
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
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vecs; j++)
            vec_store(c + i * BLOCK_COLS + j * LANES, sum[i][j]);
}

INLINE void block_rows(float *c, int keep, const Factors *parts, int count, int64_t rows, const int vecs, const int pairs) {
    enum { PART = (SUM_ROWS + 2) / 3 };
    for (int64_t first = 0; first < rows; first += SUM_ROWS, c += SUM_ROWS * BLOCK_COLS)
        if (rows - first <= PART)
            block(c, keep, parts, count, first, PART, vecs, pairs);
        else if (rows - first <= 2 * PART)
            block(c, keep, parts, count, first, 2 * PART, vecs, pairs);
        else
            block(c, keep, parts, count, first, SUM_ROWS, vecs, pairs);
}

static void ahead_fetch(const Ahead *ahead) {
    for (int64_t r = 0; r < ahead->runs; r++)
        for (int64_t b = 0; b < ahead->bytes; b += 64)
            __builtin_prefetch(ahead->at + r * ahead->step + b, 0, 2);
}

#ifdef __AMX_BF16__
/* Two by two tiles: c 0-3, a 4-5, b 6-7. One multiply-add of tiles is 16 steps of every element's chain. */
INLINE void block_tiles(float *c, int keep, const Factors *parts, int count, const int rows, const int cols, Ahead ahead) {
    enum { C_STEP = BLOCK_COLS * 4, B_STEP = BLOCK_COLS * 4, A_STEP = PAIR_STEPS * 4 };
    if (keep) {
        _tile_loadd(0, c, C_STEP);
        if (cols > 1) _tile_loadd(1, c + 16, C_STEP);
        if (rows > 1) _tile_loadd(2, c + 16 * BLOCK_COLS, C_STEP);
        if (rows > 1 && cols > 1) _tile_loadd(3, c + 16 * BLOCK_COLS + 16, C_STEP);
    } else {
        _tile_zero(0);
        if (cols > 1) _tile_zero(1);
        if (rows > 1) _tile_zero(2);
        if (rows > 1 && cols > 1) _tile_zero(3);
    }
    /* What is ahead comes with the groups of steps, some lines of one run with each. */
    int64_t groups = 0, lines = count_of(ahead.bytes, 64), done = 0;
    for (int p = 0; p < count; p++)
        groups += parts[p].steps / PAIR_STEPS;
    int64_t each = groups ? count_of(lines * ahead.runs, groups) : 0, turns = each ? count_of(lines, each) : 0;
    for (int p = 0; p < count; p++) {
        const float *a = parts[p].a, *b = parts[p].b;
        for (int64_t s = 0; s < parts[p].steps; s += PAIR_STEPS, a += PAIR_STEPS * BLOCK_ROWS, b += PAIR_STEPS * BLOCK_COLS) {
            _tile_loadd(4, a, A_STEP);
            _tile_loadd(6, b, B_STEP);
            _tile_dpbf16ps(0, 4, 6);
            if (cols > 1) {
                _tile_loadd(7, b + 16, B_STEP);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (each) {
                for (int64_t i = 0; i < each; i++)
                    _mm_prefetch(ahead.at + i * 64, _MM_HINT_T1);
                ahead.at += each * 64;
                if (++done == turns) {
                    done = 0;
                    ahead.at += ahead.step - turns * each * 64;
                    each = --ahead.runs ? each : 0;
                }
            }
            if (rows > 1) {
                _tile_loadd(5, a + 16 * PAIR_STEPS, A_STEP);
                _tile_dpbf16ps(2, 5, 6);
                if (cols > 1) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, c, C_STEP);
    if (cols > 1) _tile_stored(1, c + 16, C_STEP);
    if (rows > 1) _tile_stored(2, c + 16 * BLOCK_COLS, C_STEP);
    if (rows > 1 && cols > 1) _tile_stored(3, c + 16 * BLOCK_COLS + 16, C_STEP);
}

static void block_pairs(float *c, int keep, const Factors *parts, int count, int64_t rows, int64_t cols, const Ahead *ahead) {
    if (rows > 16 && cols > 16)
        block_tiles(c, keep, parts, count, 2, 2, *ahead);
    else if (rows > 16)
        block_tiles(c, keep, parts, count, 2, 1, *ahead);
    else if (cols > 16)
        block_tiles(c, keep, parts, count, 1, 2, *ahead);
    else
        block_tiles(c, keep, parts, count, 1, 1, *ahead);
}
#else
static void block_pairs(float *c, int keep, const Factors *parts, int count, int64_t rows, int64_t cols, const Ahead *ahead) {
    ahead_fetch(ahead);
    if (cols > LANES)
        block_rows(c, keep, parts, count, rows, 2, 1);
    else
        block_rows(c, keep, parts, count, rows, 1, 1);
}
#endif

void KERNEL(block_product)(float *c, int keep, const Factors *parts, int count, int64_t rows, int64_t cols, int pairs, const Ahead *ahead) {
    static const Ahead nothing;
    ahead = ahead ? ahead : &nothing;
    if (pairs) {
        block_pairs(c, keep, parts, count, rows, cols, ahead);
        return;
    }
    ahead_fetch(ahead);
    if (cols > LANES)
        block_rows(c, keep, parts, count, rows, 2, 0);
    else
        block_rows(c, keep, parts, count, rows, 1, 0);
}
