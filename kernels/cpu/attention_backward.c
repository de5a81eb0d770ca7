/* Softmax attention, backward: probabilities are made again from the kept log-sum-exp, tile by tile (arXiv 2205.14135).
 * A key's gradient is one chain of sums over its heads and tiles of queries, in order; a query's, over its tiles of keys. One
 * thread walks a whole (sequence, key head); if there are too few of those, gradients of keys and of queries are made in two
 * sweeps that share out the tiles, with the same chains and so the same bits. */
#include <omp.h>

#include "attention.h"

typedef struct Job {
    View *dq, *dk, *dv;
    const View *dy, *y, *q, *k, *v;
    const float *lse; /* (N, heads) */
    const Mask *mask;
    float scale, exponent; /* of scores: for gradients, and times log2(e) for probabilities, 1 where scores are shaped first */
    Form form, values;
    int64_t heads, kv_heads, group;
} Job;

/* What one thread does at a time: tiles of queries q_from..q_to against tiles of keys k_from..k_to, and which gradients of them. */
typedef struct Unit {
    int64_t sequence, kv_head, q_from, q_to, k_from, k_to;
    int keys, queries;
} Unit;

/* One thread's scratch, in floats. */
typedef struct Own {
    float *keys, *values, *key_pairs; /* of the unit's tiles of keys */
    float *dk, *dv;                   /* f32 (keys, dims), over the whole unit */
    float *q_lanes, *dy_lanes, *rows, *q_pairs, *dy_pairs;
    float *p, *ds;                    /* f32 (KEYS, QUERIES) */
    float *slopes;                    /* what ds is multiplied by where scores are capped */
    float *p_rows, *ds_rows, *ds_pairs; /* the same in bf16, or p and ds themselves */
    float *sum, *turn;
} Own;

static int64_t own_make(Own *o, const Form *f, const Form *v, int capped, int64_t tiles, float *at) {
    int64_t used = 0, rows = tiles * KEYS;
#define TAKE(member, floats) (o->member = at ? at + used : NULL, used += ((floats) + 15) / 16 * 16)
    TAKE(keys, rows * f->words);
    TAKE(values, rows * v->words);
    TAKE(key_pairs, f->pairs ? rows * f->words : 0);
    TAKE(dk, rows * f->dims);
    TAKE(dv, rows * v->dims);
    TAKE(q_lanes, f->dims * QUERIES);
    TAKE(dy_lanes, v->dims * QUERIES);
    TAKE(rows, QUERIES * (f->words > v->words ? f->words : v->words));
    TAKE(q_pairs, QUERIES * f->words);
    TAKE(dy_pairs, QUERIES * v->words);
    TAKE(p, KEYS * QUERIES);
    TAKE(ds, KEYS * QUERIES);
    TAKE(slopes, capped ? KEYS * QUERIES : 0);
    TAKE(p_rows, KEYS * QUERIES / 2);
    TAKE(ds_rows, KEYS * QUERIES / 2);
    TAKE(ds_pairs, KEYS * QUERIES / 2);
    TAKE(sum, f->dims * QUERIES);
    TAKE(turn, QUERIES * QUERIES);
#undef TAKE
    if (!f->pairs)
        o->key_pairs = o->keys, o->p_rows = o->p, o->ds_rows = o->ds_pairs = o->ds;
    return used;
}

static float row_dot(const void *a, const void *b, Dtype dtype, int64_t n) {
    Vec sum = {0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        sum += vec_get(a, dtype, k) * vec_get(b, dtype, k);
    if (k < n)
        sum += vec_get_part(a, dtype, k, n - k) * vec_get_part(b, dtype, k, n - k);
    return vec_sum(sum);
}

static void copy_query_pairs(const Own *o, float *to, const Form *f, Head from, int64_t first, int64_t n) {
    copy_rows(f->pairs ? o->rows : to, f, from, first, n, QUERIES);
    if (f->pairs)
        copy_pairs(to, f, o->rows, QUERIES);
}

/* p = exp(score - lse), ds = p (dp - dot), from scores in p and dp in ds; and both as bf16. */
INLINE void probabilities(const Job *job, const Own *o, int64_t n, const Vec lse[2], const Vec dot[2], const int capped) {
    float scale = job->exponent;
    for (int64_t i = 0; i < n; i += 2) {
        Vec p[2][2], ds[2][2];
        for (int r = 0; r < 2; r++)
            for (int j = 0; j < 2; j++) {
                int64_t at = (i + r) * QUERIES + j * LANES;
                p[r][j] = exp2_below(vec_load(o->p + at) * scale - lse[j]);
                ds[r][j] = p[r][j] * (vec_load(o->ds + at) - dot[j]);
                if (capped)
                    ds[r][j] *= vec_load(o->slopes + at);
            }
#ifdef __AVX512BF16__
        if (job->form.pairs) {
            __m512i even = row_of(ds[0]), odd = row_of(ds[1]);
            _mm512_storeu_si512(o->p_rows + i * (QUERIES / 2), row_of(p[0]));
            _mm512_storeu_si512(o->p_rows + (i + 1) * (QUERIES / 2), row_of(p[1]));
            _mm512_storeu_si512(o->ds_rows + i * (QUERIES / 2), even);
            _mm512_storeu_si512(o->ds_rows + (i + 1) * (QUERIES / 2), odd);
            interleave(o->ds_pairs + i / 2 * QUERIES, even, odd);
            continue;
        }
#endif
        for (int r = 0; r < 2; r++)
            for (int j = 0; j < 2; j++) {
                vec_store(o->p + (i + r) * QUERIES + j * LANES, p[r][j]);
                vec_store(o->ds + (i + r) * QUERIES + j * LANES, ds[r][j]);
            }
    }
}

/* Queries q0..q0+n of one head against the unit's keys. */
static void queries_run(const Job *job, const Own *o, const Unit *u, int64_t head, int64_t q0, int64_t n) {
    const Form *f = &job->form, *fv = &job->values;
    const Mask *m = job->mask;
    int64_t token = m->q_starts[u->sequence];
    Sight sight = sight_of(m, u->sequence, q0, n);
    int64_t low = sight.low / KEYS > u->k_from ? sight.low / KEYS : u->k_from, high = least(count_of(sight.high, KEYS), u->k_to);
    if (low >= high && !u->queries)
        return;
    Head q = head_at(job->q, token, head), dy = head_at(job->dy, token, head), y = head_at(job->y, token, head);
    float lses[QUERIES], dots[QUERIES] = {0};
    for (int64_t i = 0; i < QUERIES; i++) /* lanes without a query: a probability of 0 */
        lses[i] = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        float l = job->lse[(token + q0 + i) * job->heads + head];
        if (l != -INFINITY)
            lses[i] = l * LOG2_E;
        dots[i] = row_dot(head_row(dy, q0 + i), head_row(y, q0 + i), dy.dtype, fv->size);
    }
    const Vec lse[2] = {vec_load(lses), vec_load(lses + LANES)}, dot[2] = {vec_load(dots), vec_load(dots + LANES)};
    copy_lanes(o->q_lanes, f, q, q0, n);
    copy_lanes(o->dy_lanes, fv, dy, q0, n);
    if (u->keys) {
        copy_query_pairs(o, o->q_pairs, f, q, q0, n);
        copy_query_pairs(o, o->dy_pairs, fv, dy, q0, n);
    }
    if (u->queries)
        memset(o->sum, 0, (size_t)(f->dims * QUERIES) * sizeof(float));
    for (int64_t t = low; t < high; t++) {
        int64_t k0 = t * KEYS, keys = whole_parts(least(KEYS, sight.high - k0)), at = (t - u->k_from) * KEYS;
        keys_times_queries(o->p, f, o->keys + at * f->words, o->q_lanes, keys);
        keys_times_queries(o->ds, fv, o->values + at * fv->words, o->dy_lanes, keys);
        if (mask_shapes(m))
            shape_scores(o->p, m->cap > 0 ? o->slopes : NULL, m, &sight, head, k0, keys, job->scale);
        if (hides(&sight, k0, keys))
            hide(o->p, &sight, k0, keys);
        if (m->cap > 0)
            probabilities(job, o, keys, lse, dot, 1);
        else
            probabilities(job, o, keys, lse, dot, 0);
        if (u->queries)
            keys_turned_times(o->sum, f, NULL, o->key_pairs + at * f->words, o->ds_pairs, keys);
        if (u->keys) {
            keys_from_queries(o->dv + at * fv->dims, fv, o->p_rows, o->dy_pairs, keys);
            keys_from_queries(o->dk + at * f->dims, f, o->ds_rows, o->q_pairs, keys);
        }
    }
    if (!u->queries)
        return;
    for (int64_t i = 0; i < f->dims * QUERIES; i += LANES)
        vec_store(o->sum + i, vec_load(o->sum + i) * job->scale);
    put_turned(head_at(job->dq, token, head), f, q0, n, o->sum, o->turn);
}

static void put_rows(Head to, const Form *f, int64_t first, int64_t n, const float *from, float scale) {
    for (int64_t i = 0; i < n; i++, from += f->dims) {
        void *row = head_row(to, first + i);
        int64_t k = 0;
        for (; k + LANES <= f->size; k += LANES)
            vec_put(row, to.dtype, k, vec_load(from + k) * scale);
        if (k < f->size)
            vec_put_part(row, to.dtype, k, f->size - k, vec_load(from + k) * scale);
    }
}

static void unit_run(const Job *job, const Own *o, const Unit *u) {
    const Mask *m = job->mask;
    const Form *f = &job->form, *fv = &job->values;
    int64_t s = u->sequence, queries = m->q_starts[s + 1] - m->q_starts[s], keys = m->k_starts[s + 1] - m->k_starts[s];
    int64_t token = m->k_starts[s], from = u->k_from * KEYS, to = least(u->k_to * KEYS, keys);
    Head k = head_at(job->k, token, u->kv_head), v = head_at(job->v, token, u->kv_head);
    for (int64_t k0 = from; k0 < to; k0 += KEYS) {
        int64_t n = least(KEYS, to - k0), at = (k0 - from) * f->words, filled = whole_parts(n);
        copy_rows(o->keys + at, f, k, k0, n, filled);
        copy_rows(o->values + (k0 - from) * fv->words, fv, v, k0, n, filled);
        if (f->pairs)
            copy_turned(o->key_pairs + at, f, o->keys + at, filled);
    }
    if (u->keys) {
        memset(o->dk, 0, (size_t)((u->k_to - u->k_from) * KEYS * f->dims) * sizeof(float));
        memset(o->dv, 0, (size_t)((u->k_to - u->k_from) * KEYS * fv->dims) * sizeof(float));
    }
    for (int64_t h = 0; h < job->group; h++)
        for (int64_t t = u->q_from; t < u->q_to; t++)
            queries_run(job, o, u, u->kv_head * job->group + h, t * QUERIES, least(QUERIES, queries - t * QUERIES));
    if (!u->keys)
        return;
    put_rows(head_at(job->dk, token, u->kv_head), f, from, to - from, o->dk, job->scale);
    put_rows(head_at(job->dv, token, u->kv_head), fv, from, to - from, o->dv, 1);
}

Status KERNEL(attention_backward)(View *dq, View *dk, View *dv, const View *dy, const View *y, const View *lse, const View *q,
                                  const View *k, const View *v, const Mask *mask, float scale) {
    Job job = {.dq = dq, .dk = dk, .dv = dv, .dy = dy, .y = y, .q = q, .k = k, .v = v, .lse = lse->data, .mask = mask, .scale = scale,
               .exponent = mask_shapes(mask) ? 1 : scale * LOG2_E, .form = form_of(q), .values = form_of(v), .heads = q->shape[1], .kv_heads = k->shape[1]};
    job.group = job.heads / job.kv_heads;
    int64_t most = 0, work = 0, units = mask->sequences * job.kv_heads, parts = 1;
    for (int64_t s = 0; s < mask->sequences; s++) {
        int64_t keys = mask->k_starts[s + 1] - mask->k_starts[s], queries = mask->q_starts[s + 1] - mask->q_starts[s];
        most = keys > most ? keys : most;
        work += keys * queries * job.heads * job.form.size;
    }
    int threads = omp_in_parallel() || work < 1 << 17 ? 1 : omp_get_max_threads();
    /* Two sweeps cost seven products for five. */
    int sweeps = units && 7 * units < 5 * threads * count_of(units, threads) ? 2 : 1;
    if (sweeps == 2)
        parts = count_of(4 * threads, units);
    Own sizes;
    int64_t floats = own_make(&sizes, &job.form, &job.values, mask->cap > 0, count_of(most, KEYS), NULL);
    size_t bytes = (size_t)(floats * threads) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        Own own;
        blocks_begin();
        own_make(&own, &job.form, &job.values, mask->cap > 0, count_of(most, KEYS), scratch + floats * omp_get_thread_num());
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units * sweeps * parts; i++) {
            int64_t unit = i / (sweeps * parts), part = i / sweeps % parts, s = unit / job.kv_heads, queries = i % sweeps;
            Unit u = {.sequence = s, .kv_head = unit % job.kv_heads, .keys = sweeps == 1 || !queries, .queries = sweeps == 1 || queries};
            u.q_to = count_of(mask->q_starts[s + 1] - mask->q_starts[s], QUERIES);
            u.k_to = count_of(mask->k_starts[s + 1] - mask->k_starts[s], KEYS);
            if (!u.keys)
                u.q_from = u.q_to * part / parts, u.q_to = u.q_to * (part + 1) / parts;
            if (!u.queries)
                u.k_from = u.k_to * part / parts, u.k_to = u.k_to * (part + 1) / parts;
            if (u.keys ? u.k_from < u.k_to : u.q_from < u.q_to)
                unit_run(&job, &own, &u);
        }
        blocks_end();
    }
    scratch_free(scratch, bytes);
    return OK;
}
