/* One query for each sequence against its cache, read once. Keys go in chunks counted from the cache's begin; each chunk's maximum,
 * sum and weighted values are made apart and joined in order, so the threads do not matter. */
#include <immintrin.h>
#include <math.h>
#include <omp.h>

#include "vecmath.h"

enum {
    CHUNK = 256,
    ON_STACK = 8192, /* floats */
#ifdef __AVX512F__
    HEADS = 4 /* heads that share one reading of a chunk: their sums fill the registers */
#else
    HEADS = 2
#endif
};


typedef struct Job {
    const View *q, *k, *v;
    const int32_t *lengths;
    const Mask *mask;
    int64_t group, chunks, part; /* part: floats of one head's result of one chunk: values, maximum, sum */
    float scale;
    float *parts;                        /* (S, heads, chunks, part) */
} Job;

/* Sums of the lanes of four vectors. */
static inline __m128 lanes_sum(const Vec v[4]) {
    __m128 r[4];
    for (int i = 0; i < 4; i++) {
#if defined(__AVX512F__)
        __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), _mm512_extractf32x8_ps((__m512)v[i], 1));
        r[i] = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
        r[i] = _mm_add_ps(_mm256_castps256_ps128((__m256)v[i]), _mm256_extractf128_ps((__m256)v[i], 1));
#else
        r[i] = (__m128)v[i];
#endif
    }
    __m128 a = _mm_add_ps(_mm_unpacklo_ps(r[0], r[1]), _mm_unpackhi_ps(r[0], r[1]));
    __m128 b = _mm_add_ps(_mm_unpacklo_ps(r[2], r[3]), _mm_unpackhi_ps(r[2], r[3]));
    return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
}

/* scores (heads, CHUNK) of n keys; q f32 (heads, dims). The last keys are done again to fill a four. */
INLINE void score(float *scores, const float *q, int64_t dims, const char *k, Dtype dtype, int64_t size, int64_t step, int64_t n, float scale,
                   const int heads) {
    int64_t bytes = step * (dtype == F32 ? 4 : 2), whole = size / LANES * LANES;
    for (int64_t i = 0; i < n; i += 4) {
        const char *row[4];
        Vec sum[HEADS][4] = {{{0}}};
        for (int r = 0; r < 4; r++)
            row[r] = k + (i + r < n ? i + r : n - 1) * bytes;
        for (int64_t d = 0; d < dims; d += LANES) {
            Vec key[4];
            for (int r = 0; r < 4; r++)
                key[r] = d < whole ? vec_get(row[r], dtype, d) : vec_get_part(row[r], dtype, d, size - d);
            for (int h = 0; h < heads; h++) {
                Vec query = vec_load(q + h * dims + d);
                for (int r = 0; r < 4; r++)
                    sum[h][r] += query * key[r];
            }
        }
        for (int h = 0; h < heads; h++)
            _mm_storeu_ps(scores + h * CHUNK + i, _mm_mul_ps(lanes_sum(sum[h]), _mm_set1_ps(scale)));
    }
}

/* out (heads, part), elements d..d+vecs*LANES = sum of p times the values' rows. */
INLINE void weigh(float *out, int64_t part, const float *p, const char *v, Dtype dtype, int64_t size, int64_t step, int64_t n, int64_t d,
                   const int heads, const int vecs) {
    int64_t bytes = step * (dtype == F32 ? 4 : 2), rest = size - d;
    Vec sum[HEADS][4] = {{{0}}};
    for (int64_t i = 0; i < n; i++, v += bytes) {
        Vec value[4];
        for (int j = 0; j < vecs; j++)
            value[j] = vecs > 1 || rest >= LANES ? vec_get(v, dtype, d + j * LANES) : vec_get_part(v, dtype, d, rest);
        for (int h = 0; h < heads; h++) {
            Vec weight = vec_set(p[h * CHUNK + i]);
            for (int j = 0; j < vecs; j++)
                sum[h][j] += weight * value[j];
        }
    }
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < vecs; j++)
            vec_store(out + h * part + d + j * LANES, sum[h][j]);
}

/* Scores of one chunk become exponentials above their maximum. */
static void soften(float *scores, int64_t n, float *most, float *total) {
    Vec top = vec_set(-INFINITY), sum = {0};
    float high = -INFINITY;
    for (int64_t i = n; i % LANES; i++)
        scores[i] = -INFINITY;
    for (int64_t i = 0; i < n; i += LANES)
        top = vec_max(top, vec_load(scores + i));
    for (int i = 0; i < LANES; i++)
        high = top[i] > high ? top[i] : high;
    float base = high == -INFINITY ? 0 : high;
    for (int64_t i = 0; i < n; i += LANES) {
        Vec p = vec_exp(vec_load(scores + i) - base);
        vec_store(scores + i, p);
        sum += p;
    }
    *most = high;
    *total = vec_sum(sum);
}

/* Scaled scores of keys from.. of one head become cap * tanh(score / cap) + bias, where there are such. */
static void shape_scores(float *scores, const Mask *m, int64_t head, int64_t distance, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) { /* the last vector is whole: there is room */
        Vec s = vec_load(scores + i);
        if (m->cap > 0)
            s = vec_tanh(s / m->cap) * m->cap;
        for (int k = 0; m->bias && k < LANES; k++) {
            int64_t at = distance + i + k + m->bias_zero;
            s[k] += m->bias[head * m->bias_size + (at < 0 ? 0 : at < m->bias_size ? at : m->bias_size - 1)];
        }
        vec_store(scores + i, s);
    }
}

INLINE void heads_run(const Job *job, int64_t s, int64_t kv_head, int64_t first, int64_t from, int64_t n, float *out, Dtype dtype, const int heads) {
    const View *q = job->q, *k = job->k, *v = job->v;
    int64_t size = q->shape[2], dims = (size + LANES - 1) / LANES * LANES, bytes = dtype == F32 ? 4 : 2, d = 0, stride = job->chunks * job->part;
    int64_t values = v->shape[3], at = job->part - 2;
    float queries[HEADS * HEAD_MOST], scores[HEADS * CHUNK + LANES];
    for (int h = 0; h < heads; h++) {
        const void *row = (const char *)q->data + (s * q->stride[0] + (kv_head * job->group + first + h) * q->stride[1]) * bytes;
        for (d = 0; d + LANES <= size; d += LANES)
            vec_store(queries + h * dims + d, vec_get(row, dtype, d));
        if (d < size)
            vec_store(queries + h * dims + d, vec_get_part(row, dtype, d, size - d));
    }
    const char *key = (const char *)k->data + (s * k->stride[0] + from * k->stride[1] + kv_head * k->stride[2]) * bytes;
    const char *value = (const char *)v->data + (s * v->stride[0] + from * v->stride[1] + kv_head * v->stride[2]) * bytes;
    score(scores, queries, dims, key, dtype, size, k->stride[1], n, job->scale, heads);
    for (int h = 0; h < heads && (job->mask->cap > 0 || job->mask->bias); h++)
        shape_scores(scores + h * CHUNK, job->mask, kv_head * job->group + first + h, from - (job->lengths[s] - 1), n);
    for (int h = 0; h < heads; h++)
        soften(scores + h * CHUNK, n, out + h * stride + at, out + h * stride + at + 1);
    for (d = 0; d + 4 * LANES <= values; d += 4 * LANES)
        weigh(out, stride, scores, value, dtype, values, v->stride[1], n, d, heads, 4);
    for (; d < values; d += LANES)
        weigh(out, stride, scores, value, dtype, values, v->stride[1], n, d, heads, 1);
}

INLINE void heads_some(const Job *job, int64_t s, int64_t kv_head, int64_t first, int64_t from, int64_t n, float *out, const int heads) {
    if (job->q->dtype == F32)
        heads_run(job, s, kv_head, first, from, n, out, F32, heads);
    else
        heads_run(job, s, kv_head, first, from, n, out, BF16, heads);
}

/* The keys that sequence s sees of one chunk: *from and their number. */
static int64_t chunk_keys(const Job *job, int64_t s, int64_t chunk, int64_t *from) {
    const Mask *m = job->mask;
    int64_t length = job->lengths[s], low = m->window && length > m->window ? length - m->window : 0, to = (chunk + 1) * CHUNK;
    if (m->chunk && length > 0 && (length - 1) / m->chunk * m->chunk > low)
        low = (length - 1) / m->chunk * m->chunk;
    *from = chunk * CHUNK > low ? chunk * CHUNK : low;
    return (to < length ? to : length) - *from;
}

static void chunk_run(const Job *job, int64_t s, int64_t kv_head, int64_t chunk) {
    int64_t from, n = chunk_keys(job, s, chunk, &from), heads = job->q->shape[1];
    for (int64_t h = 0; h < job->group && n > 0; h += HEADS) {
        float *out = job->parts + ((s * heads + kv_head * job->group + h) * job->chunks + chunk) * job->part;
        switch (job->group - h) {
        case 1: heads_some(job, s, kv_head, h, from, n, out, 1); break;
#ifdef __AVX512F__
        case 2: heads_some(job, s, kv_head, h, from, n, out, 2); break;
        case 3: heads_some(job, s, kv_head, h, from, n, out, 3); break;
#endif
        default: heads_some(job, s, kv_head, h, from, n, out, HEADS);
        }
    }
}

/* Joins the chunks of one head. */
static void head_join(const Job *job, View *y, int64_t s, int64_t head) {
    int64_t size = job->v->shape[3], dims = job->part - 2, from;
    const float *sinks = job->mask->sinks;
    const float *parts = job->parts + (s * job->q->shape[1] + head) * job->chunks * job->part;
    void *row = (char *)y->data + (s * y->stride[0] + head * y->stride[1]) * (int64_t)dtype_size(y->dtype);
    float most = sinks ? sinks[head] : -INFINITY, total, sum[HEAD_MOST + LANES] = {0};
    for (int64_t c = 0; c < job->chunks; c++)
        if (chunk_keys(job, s, c, &from) > 0 && parts[c * job->part + dims] > most)
            most = parts[c * job->part + dims];
    total = sinks ? expf(sinks[head] - most) : 0;
    for (int64_t c = 0; c < job->chunks; c++) {
        const float *p = parts + c * job->part;
        if (chunk_keys(job, s, c, &from) <= 0)
            continue;
        float weight = p[dims] == most ? 1 : expf(p[dims] - most);
        total += weight * p[dims + 1];
        for (int64_t d = 0; d < dims; d += LANES)
            vec_store(sum + d, vec_load(sum + d) + vec_load(p + d) * weight);
    }
    float over = total == 0 ? 0 : 1 / total;
    int64_t d = 0;
    for (; d + LANES <= size; d += LANES)
        vec_put(row, y->dtype, d, vec_load(sum + d) * over);
    if (d < size)
        vec_put_part(row, y->dtype, d, size - d, vec_load(sum + d) * over);
}

Status KERNEL(attention_decode)(View *y, const View *q, const View *k, const View *v, const View *lengths, const Mask *mask, float scale) {
    int64_t sequences = q->shape[0], heads = q->shape[1], kv_heads = k->shape[2], size = q->shape[2], values = v->shape[3], most = 0, work = 0;
    Job job = {.q = q, .k = k, .v = v, .lengths = lengths->data, .mask = mask, .group = heads / kv_heads, .scale = scale};
    if (size > HEAD_MOST || values > HEAD_MOST)
        return fail(ERR_UNSUPPORTED, "attention: heads of %ld elements, %d are the most", (long)(size > values ? size : values), HEAD_MOST);
    for (int64_t s = 0; s < sequences; s++) {
        int64_t n = job.lengths[s];
        most = n > most ? n : most;
        work += (mask->window && n > mask->window ? mask->window : n) * heads * size;
    }
    job.chunks = (most + CHUNK - 1) / CHUNK;
    job.part = (values + LANES - 1) / LANES * LANES + 2;
    int64_t units = sequences * kv_heads * job.chunks, floats = sequences * heads * job.chunks * job.part;
    float stack[ON_STACK];
    size_t bytes = floats > ON_STACK ? (size_t)floats * sizeof(float) : 0;
    job.parts = bytes ? scratch_alloc(bytes) : stack;
    if (!job.parts || scratch_only())
        return scratch_free(bytes ? job.parts : NULL, bytes), job.parts ? OK : ERR_MEMORY;
#pragma omp parallel for schedule(dynamic) if (work > 1 << 17)
    for (int64_t i = 0; i < units; i++)
        chunk_run(&job, i / (job.chunks * kv_heads), i % kv_heads, i / kv_heads % job.chunks);
    for (int64_t i = 0; i < sequences * heads; i++)
        head_join(&job, y, i / heads, i % heads);
    if (bytes)
        scratch_free(job.parts, bytes);
    return OK;
}
