/* The gated delta rule, token by token. A channel of the values has states of its own, as many as a key has elements, which lie on the lanes.
 *
 * Backward: states are made again, from one kept every CHUNK tokens. Gradients of queries and keys are sums over channels: each group's heads
 * are cut into at most LOTS lots, whose sums are kept apart and joined in order. So neither threads nor what else is packed change any bit. */
#include <omp.h>

#include "panel.h"
#include "vecmath.h"

enum { BLOCK = 16, CHUNK = 32, LOTS = 8 };

typedef struct Job {
    const View *q, *k, *v, *beta;
    const int32_t *starts;
    float *fall; /* (N, heads, decays): what states are multiplied by; decays is 1, or states in whole vectors */
    int64_t heads, size, groups, states, dims, decays;
    View *y;
    /* backward */
    const View *dy;
    View *dv, *dbeta;
    float *dfall, *dq, *dk; /* of log decays (N, heads, decays); (lots, N, groups, dims) each */
    int64_t lots;
} Job;

static Job job_of(const View *q, const View *k, const View *v, const View *decay, const View *beta, const View *starts) {
    Job j = {.q = q, .k = k, .v = v, .beta = beta, .starts = starts->data, .heads = view_width(beta), .groups = q->shape[1], .states = q->shape[2]};
    j.size = j.heads ? view_width(v) / j.heads : 0;
    j.dims = count_of(j.states, LANES) * LANES;
    j.decays = decay->shape[2] == 1 ? 1 : j.dims;
    return j;
}

/* Words of what has a number for each decay. */
static int64_t fall_words(const Job *j) { return (view_rows(j->v) * j->heads * j->decays + 15) / 16 * 16; }

/* fall = exp(decay); beyond the states, where there is one for each, ones. */
static void prepare(Job *j, float *fall, const View *decay) {
    int64_t rows = view_rows(j->v) * (j->decays == 1 ? 1 : j->heads), width = j->decays == 1 ? j->heads : j->states;
    int64_t step = j->decays == 1 ? j->heads : j->decays;
#pragma omp parallel for schedule(static) if (rows * width >= 32768)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < width; n += LANES)
            vec_give(fall + r * step, F32, n, step - n, vec_exp(vec_take(decay->data, F32, r * width + n, width - n)));
    j->fall = fall;
}

static const float *group_row(const View *v, int64_t t, int64_t group) {
    return (const float *)v->data + t * v->stride[0] + group * v->stride[1];
}

INLINE Vec fall_at(const Job *j, int64_t t, int64_t h, int64_t n) {
    const float *fall = j->fall + (t * j->heads + h) * j->decays;
    return j->decays == 1 ? vec_set(*fall) : vec_load(fall + n);
}

/* Channels c0..c0+count over tokens from..to: states (count, dims) go on; y is written if wanted; each token's states are kept from
 * `kept` (tokens, count, dims) on, or one of every CHUNK tokens before it, if given. */
INLINE void run(const Job *j, float *states, int64_t c0, int64_t count, int64_t from, int64_t to, View *y, float *kept, float *chunks) {
    for (int64_t t = from; t < to; t++) {
        const float *v = row_at(j->v, t), *beta = row_at(j->beta, t);
        if (chunks && (t - from) % CHUNK == 0)
            memcpy(chunks + (t - from) / CHUNK * count * j->dims, states, (size_t)(count * j->dims) * sizeof(float));
        for (int64_t i = 0; i < count; i++) {
            int64_t h = (c0 + i) / j->size, group = h / (j->heads / j->groups);
            const float *q = group_row(j->q, t, group), *k = group_row(j->k, t, group);
            float *state = states + i * j->dims;
            Vec known = {0}, sum = {0};
            for (int64_t n = 0; n < j->dims; n += LANES) {
                Vec s = vec_load(state + n) * fall_at(j, t, h, n);
                vec_store(state + n, s);
                known += s * vec_take(k, F32, n, j->states - n);
            }
            Vec news = vec_set(beta[h] * (v[c0 + i] - vec_sum(known)));
            for (int64_t n = 0; n < j->dims; n += LANES) {
                Vec s = vec_load(state + n) + vec_take(k, F32, n, j->states - n) * news;
                vec_store(state + n, s);
                if (y)
                    sum += s * vec_take(q, F32, n, j->states - n);
            }
            if (y)
                ((float *)row_at(y, t))[c0 + i] = vec_sum(sum);
        }
        if (kept)
            memcpy(kept + (t - from) * count * j->dims, states, (size_t)(count * j->dims) * sizeof(float));
    }
}

Status KERNEL(delta_rule)(View *y, View *state, const View *q, const View *k, const View *v, const View *decay, const View *beta, const View *starts) {
    Job j = job_of(q, k, v, decay, beta, starts);
    int64_t channels = view_width(v), blocks = count_of(channels, BLOCK), sequences = view_count(starts) - 1, own = BLOCK * j.dims;
    int threads = omp_in_parallel() || view_count(v) * j.dims < 1 << 15 ? 1 : omp_get_max_threads();
    size_t bytes = (size_t)(fall_words(&j) + own * threads) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
    prepare(&j, scratch, decay);
    float *held = scratch + fall_words(&j);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < sequences * blocks; i++) {
        int64_t s = i / blocks, c0 = i % blocks * BLOCK, count = least(BLOCK, channels - c0);
        float *states = held + own * omp_get_thread_num(), *carried = state ? (float *)state->data + (s * channels + c0) * j.states : NULL;
        memset(states, 0, (size_t)(count * j.dims) * sizeof(float));
        for (int64_t c = 0; carried && c < count; c++)
            memcpy(states + c * j.dims, carried + c * j.states, (size_t)j.states * sizeof(float));
        run(&j, states, c0, count, j.starts[s], j.starts[s + 1], y, NULL, NULL);
        for (int64_t c = 0; carried && c < count; c++)
            memcpy(carried + c * j.states, states + c * j.dims, (size_t)j.states * sizeof(float));
    }
    scratch_free(scratch, bytes);
    return OK;
}

/* --- backward ---------------------------------------------------------------------------------------------------------- */

/* One thread's scratch. */
typedef struct Own {
    float *states, *chunks, *kept, *gradient; /* (BLOCK, dims), before each chunk, after each of its tokens, and of the states */
} Own;

static int64_t own_make(Own *o, const Job *j, int64_t most, float *at) {
    int64_t block = BLOCK * j->dims, chunks = count_of(most, CHUNK);
    *o = at ? (Own){at, at + block, at + block * (1 + chunks), at + block * (1 + chunks + CHUNK)} : (Own){0};
    return block * (2 + chunks + CHUNK);
}

/* One token of one channel, whose states' gradient is `gradient`; `before` and `after` are its states. With r = fall before and
 * u = beta (v - k r): after = r + k u. */
INLINE void channel_backward(const Job *j, int64_t t, int64_t channel, float *gradient, const float *before, const float *after, float *dq,
                             float *dk) {
    int64_t h = channel / j->size, group = h / (j->heads / j->groups);
    const float *q = group_row(j->q, t, group), *k = group_row(j->k, t, group);
    float beta = ((const float *)row_at(j->beta, t))[h], v = ((const float *)row_at(j->v, t))[channel];
    float dy = ((const float *)row_at(j->dy, t))[channel], *dfall = j->dfall + (t * j->heads + h) * j->decays;
    Vec known = {0}, with_k = {0}, fallen = {0};
    for (int64_t n = 0; n < j->dims; n += LANES) {
        Vec key = vec_take(k, F32, n, j->states - n), g = vec_load(gradient + n) + vec_take(q, F32, n, j->states - n) * dy;
        vec_store(gradient + n, g);
        vec_store(dq + n, vec_load(dq + n) + vec_load(after + n) * dy);
        known += vec_load(before + n) * fall_at(j, t, h, n) * key;
        with_k += g * key;
    }
    float miss = v - vec_sum(known), du = vec_sum(with_k), back = beta * du, u = beta * miss;
    for (int64_t n = 0; n < j->dims; n += LANES) {
        Vec key = vec_take(k, F32, n, j->states - n), fall = fall_at(j, t, h, n), r = vec_load(before + n) * fall, g = vec_load(gradient + n);
        vec_store(dk + n, vec_load(dk + n) + g * u - r * back);
        Vec dr = g - key * back, by = dr * r;
        if (j->decays == 1)
            fallen += by;
        else
            vec_store(dfall + n, vec_load(dfall + n) + by);
        vec_store(gradient + n, dr * fall);
    }
    if (j->decays == 1)
        *dfall += vec_sum(fallen);
    ((float *)row_at(j->dv, t))[channel] = back;
    ((float *)row_at(j->dbeta, t))[h] += du * miss;
}

/* A lot of a group's heads, of one sequence. */
static void lot_backward(const Job *j, const Own *o, int64_t s, int64_t group, int64_t lot) {
    int64_t per = j->heads / j->groups, head = group * per + per * lot / j->lots, end = (group * per + per * (lot + 1) / j->lots) * j->size;
    int64_t from = j->starts[s], to = j->starts[s + 1], rows = view_rows(j->v), wide = j->groups * j->dims;
    float *dq = j->dq + lot * rows * wide + group * j->dims, *dk = j->dk + lot * rows * wide + group * j->dims;
    for (int64_t c0 = head * j->size; c0 < end; c0 += BLOCK) {
        int64_t count = least(BLOCK, end - c0), block = count * j->dims;
        memset(o->states, 0, (size_t)block * sizeof(float));
        memset(o->gradient, 0, (size_t)block * sizeof(float));
        run(j, o->states, c0, count, from, to, NULL, NULL, o->chunks);
        for (int64_t chunk = count_of(to - from, CHUNK) - 1; chunk >= 0; chunk--) {
            int64_t first = from + chunk * CHUNK, last = least(first + CHUNK, to);
            memcpy(o->states, o->chunks + chunk * block, (size_t)block * sizeof(float));
            run(j, o->states, c0, count, first, last, NULL, o->kept, NULL);
            for (int64_t t = last - 1; t >= first; t--) {
                const float *after = o->kept + (t - first) * block, *before = t > first ? after - block : o->chunks + chunk * block;
                for (int64_t i = 0; i < count; i++)
                    channel_backward(j, t, c0 + i, o->gradient + i * j->dims, before + i * j->dims, after + i * j->dims, dq + t * wide,
                                     dk + t * wide);
            }
        }
    }
}

/* to (N, groups, states) = the lots' sums, in order. */
static void lots_join(View *to, const Job *j, const float *lots) {
    int64_t rows = view_rows(j->v), wide = j->groups * j->dims;
#pragma omp parallel for schedule(static) if (rows * wide >= 32768)
    for (int64_t i = 0; i < rows * j->groups; i++)
        for (int64_t n = 0; n < j->states; n++) {
            float sum = 0;
            for (int64_t l = 0; l < j->lots; l++)
                sum += lots[l * rows * wide + i * j->dims + n];
            ((float *)to->data)[i * j->states + n] = sum;
        }
}

Status KERNEL(delta_rule_backward)(View *dq, View *dk, View *dv, View *ddecay, View *dbeta, const View *dy, const View *q, const View *k,
                                   const View *v, const View *decay, const View *beta, const View *starts) {
    Job j = job_of(q, k, v, decay, beta, starts);
    int64_t rows = view_rows(v), sequences = view_count(starts) - 1, most = 0;
    if (!rows)
        return OK;
    if (scratch_only()) /* at most: starts may have no values */
        most = rows;
    for (int64_t s = 0; s < sequences && !scratch_only(); s++)
        most = j.starts[s + 1] - j.starts[s] > most ? j.starts[s + 1] - j.starts[s] : most;
    j.lots = least(LOTS, j.heads / j.groups);
    j.dy = dy, j.dv = dv, j.dbeta = dbeta;
    int64_t units = sequences * j.groups * j.lots, lot_words = j.lots * rows * j.groups * j.dims;
    int threads = omp_in_parallel() || view_count(v) * j.dims < 1 << 14 ? 1 : omp_get_max_threads();
    Own sizes;
    int64_t own = own_make(&sizes, &j, most, NULL), zeros = fall_words(&j) + 2 * lot_words;
    size_t bytes = (size_t)(fall_words(&j) + zeros + own * threads) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
    prepare(&j, scratch, decay);
    j.dfall = scratch + fall_words(&j);
    j.dq = j.dfall + fall_words(&j);
    j.dk = j.dq + lot_words;
    memset(j.dfall, 0, (size_t)zeros * sizeof(float));
    memset(dbeta->data, 0, (size_t)view_count(dbeta) * sizeof(float));
    float *held = j.dfall + zeros;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < units; i++) {
        Own o;
        own_make(&o, &j, most, held + own * omp_get_thread_num());
        lot_backward(&j, &o, i / j.lots / j.groups, i / j.lots % j.groups, i % j.lots);
    }
    lots_join(dq, &j, j.dq);
    lots_join(dk, &j, j.dk);
    int64_t stored = decay->shape[2];
    for (int64_t r = 0; r < rows * j.heads; r++)
        memcpy((float *)ddecay->data + r * stored, j.dfall + r * j.decays, (size_t)stored * sizeof(float));
    scratch_free(scratch, bytes);
    return OK;
}
