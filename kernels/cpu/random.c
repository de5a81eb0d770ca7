/* Counter-based random tensors: element i takes word (counter + i) of its stream, whoever computes it. */
#include "random.h"
#include "vecmath.h"

static inline float uniform_word(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/* The word of one counter: each block of the generator serves four. */
static inline uint32_t word_at(Random r, uint64_t i) {
    uint32_t out[4];
    uint64_t at = r.counter + i;
    philox(out, r.key, 0, at / 4);
    return out[at % 4];
}

#define EACH_FOUR(n, BODY) \
    do { \
        _Pragma("omp parallel for if ((n) >= 1 << 14)") for (int64_t block = 0; block < ((n) + 3) / 4; block++) { \
            uint32_t word[4]; \
            int64_t first = block * 4, end = first + 4 < (n) ? first + 4 : (n); \
            if (random.counter % 4 == 0) \
                philox(word, random.key, 0, (random.counter + (uint64_t)first) / 4); \
            else \
                for (int k = 0; k < 4; k++) \
                    word[k] = word_at(random, (uint64_t)first + (uint64_t)k); \
            BODY; \
        } \
    } while (0)

Status KERNEL(random_uniform)(View *y, Random random, float low, float high) {
    int64_t n = view_count(y);
    EACH_FOUR(n, for (int64_t i = first; i < end; i++) scalar_put(y->data, y->dtype, i, low + (high - low) * uniform_word(word[i - first])));
    return OK;
}

/* Box-Muller on pairs of words: the first of a pair takes the cosine, the second the sine. */
Status KERNEL(random_normal)(View *y, Random random, float deviation) {
    int64_t n = view_count(y);
    EACH_FOUR(n, {
        for (int64_t i = first; i < end; i++) {
            int64_t pair = (i - first) / 2 * 2;
            float radius = __builtin_sqrtf(-2.0f * __builtin_logf(uniform_word(word[pair]) + 0x1p-25f));
            float angle = 6.28318530717958648f * uniform_word(word[pair + 1]);
            float value = radius * ((i - first) % 2 ? __builtin_sinf(angle) : __builtin_cosf(angle));
            scalar_put(y->data, y->dtype, i, deviation * value);
        }
    });
    return OK;
}

Status KERNEL(dropout)(View *y, const View *x, Random random, float p, const View *rows) {
    int64_t count = view_rows(x), width = view_width(x);
    float scale = 1.0f / (1.0f - p);
#pragma omp parallel for if (count * width >= 1 << 14)
    for (int64_t r = 0; r < count; r++) {
        Random row = random;
        row.counter += (uint64_t)(rows->dtype == I64 ? ((const int64_t *)rows->data)[r] : ((const int32_t *)rows->data)[r]) * (uint64_t)width;
        for (int64_t i = 0; i < width; i++) {
            int keep = uniform_word(word_at(row, (uint64_t)i)) >= p;
            scalar_put(row_at(y, r), y->dtype, i, keep ? scalar_get(row_at(x, r), x->dtype, i) * scale : 0.0f);
        }
    }
    return OK;
}
