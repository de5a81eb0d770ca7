/* The selective scan of state-space models, token by token. A channel's states lie on the lanes.
 *
 * Backward: states are made again, from one kept every CHUNK tokens. Gradients of b and c are sums over channels: each group's heads are
 * cut into at most LOTS lots, whose sums are kept apart and joined in order; gradients of a_log and d are kept apart for each sequence
 * and joined in order. So neither threads nor what else is packed change any bit. */
#include <omp.h>

#include "panel.h"
#include "vecmath.h"

enum { BLOCK = 16, CHUNK = 32, LOTS = 8 };

typedef struct Job {
    const View *x, *b, *c;
    const int32_t *starts;
    const float *steps, *d; /* (N, heads); (heads) or NULL */
    float *a;               /* (heads, decays): decays is 1, or states in whole vectors */
    int64_t heads, size, groups, states, dims, decays;
    View *y;
    float *state; /* (sequences, channels, states) or NULL */
    /* backward */
    const View *dy;
    View *dx;
    float *dsteps, *db, *dc; /* (N, heads); (lots, N, groups, dims) each */
    float *da, *dd;          /* (sequences, heads, decays), (sequences, heads) */
    int64_t lots;
} Job;

static Job job_of(const View *x, const View *dt, const View *b, const View *c, const View *a_log, const View *d, const View *starts) {
    Job j = {.x = x, .b = b, .c = c, .starts = starts->data, .heads = view_width(dt), .groups = b->shape[1], .states = b->shape[2],
             .d = d ? d->data : NULL};
    j.size = j.heads ? view_width(x) / j.heads : 0;
    j.dims = count_of(j.states, LANES) * LANES;
    j.decays = a_log->shape[1] == 1 ? 1 : j.dims;
    return j;
}

/* Words of the steps, and of a. */
static int64_t step_words(const Job *j) { return (view_rows(j->x) * j->heads + 15) / 16 * 16; }
static int64_t decay_words(const Job *j) { return (j->heads * j->decays + 15) / 16 * 16; }

/* steps (N, heads) and a, made from what is stored. */
static void prepare(Job *j, float *steps, float *a, const View *dt, const View *a_log, const View *bias, Steps limits) {
    int64_t rows = view_rows(dt);
#pragma omp parallel for schedule(static) if (rows * j->heads >= 32768)
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < j->heads; h += LANES) {
            int64_t left = j->heads - h;
            Vec v = vec_take(row_at(dt, t), F32, h, left);
            if (bias)
                v += vec_take(bias->data, F32, h, left);
            v = vec_minimum(vec_maximum(vec_softplus(v), vec_set(limits.low)), vec_set(limits.high));
            vec_give(steps + t * j->heads, F32, h, left, v);
        }
    for (int64_t h = 0; h < j->heads; h++)
        for (int64_t n = 0; n < j->decays; n += LANES) {
            int64_t stored = a_log->shape[1], left = stored - n;
            Vec v = -vec_exp(left > 0 ? vec_take(a_log->data, F32, h * stored + n, left) : vec_set(0));
            vec_give(a + h * j->decays, F32, n, j->decays - n, v);
        }
    j->steps = steps;
    j->a = a;
}

static const float *group_row(const View *v, int64_t t, int64_t group) {
    return (const float *)v->data + t * v->stride[0] + group * v->stride[1];
}

/* What head h's states are multiplied by in a step, if that is one number for all of them. */
INLINE Vec decay_of(const Job *j, int64_t h, float step) { return vec_exp(vec_set(step * j->a[h])); }
INLINE Vec decay_at(const Job *j, int64_t h, float step, int64_t n) { return vec_exp(vec_load(j->a + h * j->decays + n) * step); }

/* Channels c0..c0+count over tokens from..to: states (count, dims) go on; y is written if wanted; each token's states are kept from
 * `kept` (tokens, count, dims) on, or one of every CHUNK tokens before it, if given. */
INLINE void run(const Job *j, float *states, int64_t c0, int64_t count, int64_t from, int64_t to, View *y, float *kept, float *chunks) {
    for (int64_t t = from; t < to; t++) {
        const float *x = row_at(j->x, t);
        if (chunks && (t - from) % CHUNK == 0)
            memcpy(chunks + (t - from) / CHUNK * count * j->dims, states, (size_t)(count * j->dims) * sizeof(float));
        int64_t last = -1;
        Vec same = {0};
        for (int64_t i = 0; i < count; i++) {
            int64_t h = (c0 + i) / j->size, group = h / (j->heads / j->groups);
            const float *b = group_row(j->b, t, group), *c = group_row(j->c, t, group);
            float step = j->steps[t * j->heads + h], *state = states + i * j->dims;
            Vec sum = {0}, in = vec_set(step * x[c0 + i]);
            if (j->decays == 1 && h != last)
                same = decay_of(j, h, step), last = h;
            for (int64_t n = 0; n < j->dims; n += LANES) {
                Vec decay = same;
                if (j->decays != 1)
                    decay = decay_at(j, h, step, n);
                Vec s = vec_load(state + n) * decay + vec_take(b, F32, n, j->states - n) * in;
                vec_store(state + n, s);
                if (y)
                    sum += s * vec_take(c, F32, n, j->states - n);
            }
            if (y)
                ((float *)row_at(y, t))[c0 + i] = vec_sum(sum) + (j->d ? j->d[h] * x[c0 + i] : 0);
        }
        if (kept)
            memcpy(kept + (t - from) * count * j->dims, states, (size_t)(count * j->dims) * sizeof(float));
    }
}

Status KERNEL(scan)(View *y, View *state, const View *x, const View *dt, const View *b, const View *c, const View *a_log, const View *bias,
                    const View *d, const View *starts, Steps limits) {
    Job j = job_of(x, dt, b, c, a_log, d, starts);
    int64_t channels = view_width(x), blocks = count_of(channels, BLOCK), sequences = view_count(starts) - 1, own = BLOCK * j.dims;
    int threads = omp_in_parallel() || view_count(x) * j.dims < 1 << 15 ? 1 : omp_get_max_threads();
    size_t bytes = (size_t)(step_words(&j) + decay_words(&j) + own * threads) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
    prepare(&j, scratch, scratch + step_words(&j), dt, a_log, bias, limits);
    float *held = scratch + step_words(&j) + decay_words(&j);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < sequences * blocks; i++) {
        int64_t s = i / blocks, c0 = i % blocks * BLOCK, count = least(BLOCK, channels - c0);
        float *states = held + own * omp_get_thread_num(), *carried = state ? (float *)state->data + (s * channels + c0) * j.states : NULL;
        memset(states, 0, (size_t)(count * j.dims) * sizeof(float));
        for (int64_t k = 0; carried && k < count; k++)
            memcpy(states + k * j.dims, carried + k * j.states, (size_t)j.states * sizeof(float));
        run(&j, states, c0, count, j.starts[s], j.starts[s + 1], y, NULL, NULL);
        for (int64_t k = 0; carried && k < count; k++)
            memcpy(carried + k * j.states, states + k * j.dims, (size_t)j.states * sizeof(float));
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

/* One token of one channel, whose states' gradient is `gradient`; `before` and `after` are its states. */
INLINE void channel_backward(const Job *j, int64_t s, int64_t t, int64_t channel, float *gradient, const float *before, const float *after,
                             float *db, float *dc) {
    int64_t h = channel / j->size, group = h / (j->heads / j->groups);
    const float *b = group_row(j->b, t, group), *c = group_row(j->c, t, group);
    float step = j->steps[t * j->heads + h], x = ((const float *)row_at(j->x, t))[channel], dy = ((const float *)row_at(j->dy, t))[channel];
    float *da = j->da + (s * j->heads + h) * j->decays;
    Vec same = {0}, with_b = {0}, with_decay = {0}, in = vec_set(step * x);
    if (j->decays == 1)
        same = decay_of(j, h, step);
    for (int64_t n = 0; n < j->dims; n += LANES) {
        Vec decay = same;
        if (j->decays != 1)
            decay = decay_at(j, h, step, n);
        Vec g = vec_load(gradient + n) + vec_take(c, F32, n, j->states - n) * dy, fall = g * decay * vec_load(before + n);
        vec_store(dc + n, vec_load(dc + n) + vec_load(after + n) * dy);
        vec_store(db + n, vec_load(db + n) + g * in);
        with_b += g * vec_take(b, F32, n, j->states - n);
        if (j->decays == 1) {
            with_decay += fall;
        } else {
            with_decay += fall * vec_load(j->a + h * j->decays + n);
            vec_store(da + n, vec_load(da + n) + fall * step);
        }
        vec_store(gradient + n, g * decay);
    }
    float by_b = vec_sum(with_b), by_decay = vec_sum(with_decay);
    if (j->decays == 1) {
        *da += by_decay * step;
        by_decay *= j->a[h];
    }
    ((float *)row_at(j->dx, t))[channel] = step * by_b + (j->d ? j->d[h] * dy : 0);
    j->dsteps[t * j->heads + h] += by_decay + by_b * x;
    j->dd[s * j->heads + h] += dy * x;
}

/* A lot of a group's heads, of one sequence. */
static void lot_backward(const Job *j, const Own *o, int64_t s, int64_t group, int64_t lot) {
    int64_t per = j->heads / j->groups, head = group * per + per * lot / j->lots, end = (group * per + per * (lot + 1) / j->lots) * j->size;
    int64_t from = j->starts[s], to = j->starts[s + 1], rows = view_rows(j->x), wide = j->groups * j->dims;
    float *db = j->db + lot * rows * wide + group * j->dims, *dc = j->dc + lot * rows * wide + group * j->dims;
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
                    channel_backward(j, s, t, c0 + i, o->gradient + i * j->dims, before + i * j->dims, after + i * j->dims, db + t * wide,
                                     dc + t * wide);
            }
        }
    }
}

/* to (N, groups, states) = the lots' sums, in order. */
static void lots_join(View *to, const Job *j, const float *lots) {
    int64_t rows = view_rows(j->x), wide = j->groups * j->dims;
#pragma omp parallel for schedule(static) if (rows * wide >= 32768)
    for (int64_t i = 0; i < rows * j->groups; i++)
        for (int64_t n = 0; n < j->states; n++) {
            float sum = 0;
            for (int64_t l = 0; l < j->lots; l++)
                sum += lots[l * rows * wide + i * j->dims + n];
            ((float *)to->data)[i * j->states + n] = sum;
        }
}

/* Gradients of the steps become those of dt + bias. */
static void steps_backward(View *ddt, const Job *j, const View *dt, const View *bias, Steps limits) {
    int64_t rows = view_rows(dt);
#pragma omp parallel for schedule(static) if (rows * j->heads >= 32768)
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < j->heads; h += LANES) {
            int64_t left = j->heads - h;
            Vec v = vec_take(row_at(dt, t), F32, h, left);
            if (bias)
                v += vec_take(bias->data, F32, h, left);
            Vec step = vec_softplus(v), open = vec_select((step >= limits.low) & (step <= limits.high), vec_set(1), vec_set(0));
            vec_give(row_at(ddt, t), F32, h, left, vec_take(j->dsteps + t * j->heads, F32, h, left) * vec_sigmoid(v) * open);
        }
}

Status KERNEL(scan_backward)(View *dx, View *ddt, View *db, View *dc, View *da_log, View *dd, const View *dy, const View *x, const View *dt,
                             const View *b, const View *c, const View *a_log, const View *bias, const View *d, const View *starts, Steps limits) {
    Job j = job_of(x, dt, b, c, a_log, d, starts);
    int64_t rows = view_rows(x), sequences = view_count(starts) - 1, most = 0;
    if (!rows)
        return OK;
    if (scratch_only()) /* at most: starts may have no values */
        most = rows;
    for (int64_t s = 0; s < sequences && !scratch_only(); s++)
        most = j.starts[s + 1] - j.starts[s] > most ? j.starts[s + 1] - j.starts[s] : most;
    j.lots = least(LOTS, j.heads / j.groups);
    j.dy = dy, j.dx = dx;
    int64_t units = sequences * j.groups * j.lots, lot_words = j.lots * rows * j.groups * j.dims, zeros;
    int threads = omp_in_parallel() || view_count(x) * j.dims < 1 << 14 ? 1 : omp_get_max_threads();
    Own sizes;
    int64_t own = own_make(&sizes, &j, most, NULL), da = (sequences * j.heads * j.decays + 15) / 16 * 16;
    int64_t sums = (sequences * j.heads + 15) / 16 * 16;
    zeros = step_words(&j) + 2 * lot_words + da + sums;
    size_t bytes = (size_t)(step_words(&j) + decay_words(&j) + zeros + own * threads) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
    prepare(&j, scratch, scratch + step_words(&j), dt, a_log, bias, limits);
    j.dsteps = scratch + step_words(&j) + decay_words(&j);
    j.db = j.dsteps + step_words(&j);
    j.dc = j.db + lot_words;
    j.da = j.dc + lot_words;
    j.dd = j.da + da;
    memset(j.dsteps, 0, (size_t)zeros * sizeof(float));
    float *held = j.dsteps + zeros;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < units; i++) {
        Own o;
        own_make(&o, &j, most, held + own * omp_get_thread_num());
        lot_backward(&j, &o, i / j.lots / j.groups, i / j.lots % j.groups, i % j.lots);
    }
    lots_join(db, &j, j.db);
    lots_join(dc, &j, j.dc);
    steps_backward(ddt, &j, dt, bias, limits);
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t h = 0; h < j.heads; h++) {
            int64_t stored = a_log->shape[1];
            for (int64_t n = 0; da_log && n < stored; n++)
                ((float *)da_log->data)[h * stored + n] += j.da[(s * j.heads + h) * j.decays + n] * j.a[h * j.decays + n];
            if (dd)
                ((float *)dd->data)[h] += j.dd[s * j.heads + h];
        }
    scratch_free(scratch, bytes);
    return OK;
}
