/* Softmax attention, forward: an online softmax over tiles of keys (arXiv 2205.14135), for each tile of queries. */
#include <omp.h>

#include "attention.h"

typedef struct Job {
    View *y;
    float *lse; /* (N, heads) or NULL */
    const View *q, *k, *v;
    const Mask *mask;
    float scale; /* of scores, times log2(e): exponentials are powers of two; 1 where scores are shaped by `shape` first */
    float shape;
    Form form, values; /* of queries and keys, and of values */
    int64_t heads, kv_heads, group, parts;
} Job;

/* One thread's scratch, in floats. */
typedef struct Own {
    float *keys, *values;  /* the sequence's, as rows and as pairs */
    float *rows;           /* one tile of values as rows, before it is interleaved */
    float *q;              /* the tile's queries as lanes */
    float *scores, *p;     /* (KEYS, QUERIES); p may be scores */
    float *sum, *turn;     /* (dims, QUERIES), and what turns it */
} Own;

static int64_t own_make(Own *o, const Form *f, const Form *v, int64_t keys, float *at) {
    int64_t tiles = count_of(keys, KEYS), used = 0;
#define TAKE(member, floats) (o->member = at ? at + used : NULL, used += ((floats) + 15) / 16 * 16)
    TAKE(keys, tiles * KEYS * f->words);
    TAKE(values, tiles * KEYS * v->words);
    TAKE(rows, KEYS * v->words);
    TAKE(q, f->dims * QUERIES);
    TAKE(scores, KEYS * QUERIES);
    TAKE(p, KEYS * QUERIES);
    TAKE(sum, v->dims * QUERIES);
    TAKE(turn, QUERIES * QUERIES);
#undef TAKE
    if (!f->pairs)
        o->p = o->scores;
    return used;
}

/* Turns scores (n, QUERIES) into powers of two above the running maximum; returns what older sums are multiplied by. */
INLINE void soften(const Job *job, const Own *o, int64_t n, Vec most[2], Vec total[2], Vec factor[2]) {
    Vec top[2] = {most[0], most[1]}, sum[2] = {{0}}, base[2];
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < 2; j++)
            top[j] = larger(vec_load(o->scores + i * QUERIES + j * LANES) * job->scale, top[j]);
    for (int j = 0; j < 2; j++) {
        VecI none = top[j] == vec_set(-INFINITY);
        base[j] = (Vec)(~none & (VecI)top[j]); /* 0 where nothing was seen yet, so that -inf gives 0 and not NaN */
        factor[j] = exp2_below(most[j] - base[j]);
        most[j] = top[j];
    }
    for (int64_t i = 0; i < n; i += 2) {
        Vec p[2][2];
        for (int r = 0; r < 2; r++)
            for (int j = 0; j < 2; j++) {
                p[r][j] = exp2_below(vec_load(o->scores + (i + r) * QUERIES + j * LANES) * job->scale - base[j]);
                sum[j] += p[r][j];
            }
#ifdef __AVX512BF16__
        if (job->form.pairs) {
            interleave(o->p + i / 2 * QUERIES, row_of(p[0]), row_of(p[1]));
            continue;
        }
#endif
        for (int r = 0; r < 2; r++)
            for (int j = 0; j < 2; j++)
                vec_store(o->p + (i + r) * QUERIES + j * LANES, p[r][j]);
    }
    for (int j = 0; j < 2; j++)
        total[j] = total[j] * factor[j] + sum[j];
}

/* Queries q0..q0+n of sequence s, against keys that `o` holds. */
static void queries_run(const Job *job, const Own *o, int64_t s, int64_t head, int64_t q0, int64_t n) {
    const Form *f = &job->form, *fv = &job->values;
    int64_t token = job->mask->q_starts[s];
    Sight sight = sight_of(job->mask, s, q0, n);
    int shapes = mask_shapes(job->mask);
    Vec most[2] = {vec_set(-INFINITY), vec_set(-INFINITY)}, total[2] = {{0}}, factor[2];
    for (int j = 0; job->mask->sinks && j < 2; j++)
        most[j] = vec_set(job->mask->sinks[head] * LOG2_E), total[j] = vec_set(1);
    copy_lanes(o->q, f, head_at(job->q, token, head), q0, n);
    memset(o->sum, 0, (size_t)(fv->dims * QUERIES) * sizeof(float));
    for (int64_t k0 = sight.low / KEYS * KEYS; k0 < sight.high; k0 += KEYS) {
        int64_t keys = whole_parts(least(KEYS, sight.high - k0));
        keys_times_queries(o->scores, f, o->keys + k0 * f->words, o->q, keys);
        if (shapes)
            shape_scores(o->scores, NULL, job->mask, &sight, head, k0, keys, job->shape);
        if (hides(&sight, k0, keys))
            hide(o->scores, &sight, k0, keys);
        soften(job, o, keys, most, total, factor);
        keys_turned_times(o->sum, fv, factor, o->values + k0 * fv->words, o->p, keys);
    }
    float lse[QUERIES], logs[QUERIES];
    for (int j = 0; j < 2; j++) {
        VecI none = total[j] == 0;
        Vec over = 1 / (Vec)((none & (VecI)vec_set(1)) | (~none & (VecI)total[j]));
        for (int64_t d = 0; d < fv->dims; d++) {
            float *at = o->sum + d * QUERIES + j * LANES;
            vec_store(at, vec_load(at) * over);
        }
        vec_store(lse + j * LANES, most[j]);
        vec_store(logs + j * LANES, total[j]);
    }
    put_turned(head_at(job->y, token, head), fv, q0, n, o->sum, o->turn);
    for (int64_t i = 0; i < n && job->lse; i++)
        job->lse[(token + q0 + i) * job->heads + head] = LN_2 * lse[i] + logf(logs[i]);
}

/* One part of the work on one head of keys of one sequence: tiles of queries, each with the heads that share those keys. */
static void unit_run(const Job *job, const Own *o, int64_t s, int64_t kv_head, int64_t part) {
    const Mask *m = job->mask;
    const Form *f = &job->form, *fv = &job->values;
    int64_t queries = m->q_starts[s + 1] - m->q_starts[s], items = count_of(queries, QUERIES) * job->group;
    int64_t from = items * part / job->parts, to = items * (part + 1) / job->parts;
    if (from == to)
        return;
    int64_t last = (to - 1) / job->group * QUERIES, first = from / job->group * QUERIES;
    Sight begin = sight_of(m, s, first, 1), end = sight_of(m, s, last, least(QUERIES, queries - last));
    Head k = head_at(job->k, m->k_starts[s], kv_head), v = head_at(job->v, m->k_starts[s], kv_head);
    for (int64_t k0 = begin.low / KEYS * KEYS; k0 < end.high; k0 += KEYS) {
        int64_t n = least(KEYS, end.high - k0), at = k0 * fv->words, filled = whole_parts(n);
        copy_rows(o->keys + k0 * f->words, f, k, k0, n, filled);
        copy_rows(fv->pairs ? o->rows : o->values + at, fv, v, k0, n, filled);
        if (fv->pairs)
            copy_turned(o->values + at, fv, o->rows, filled);
    }
    for (int64_t i = from; i < to; i++) {
        int64_t q0 = i / job->group * QUERIES;
        queries_run(job, o, s, kv_head * job->group + i % job->group, q0, least(QUERIES, queries - q0));
    }
}

Status KERNEL(attention)(View *y, View *lse, const View *q, const View *k, const View *v, const Mask *mask, float scale) {
    Job job = {.y = y, .lse = lse ? lse->data : NULL, .q = q, .k = k, .v = v, .mask = mask, .scale = mask_shapes(mask) ? 1 : scale * LOG2_E, .shape = scale,
               .form = form_of(q), .values = form_of(v), .heads = q->shape[1], .kv_heads = k->shape[1], .parts = 1};
    job.group = job.heads / job.kv_heads;
    int64_t most = 0, work = 0, units = mask->sequences * job.kv_heads;
    for (int64_t s = 0; s < mask->sequences; s++) {
        int64_t keys = mask->k_starts[s + 1] - mask->k_starts[s], queries = mask->q_starts[s + 1] - mask->q_starts[s];
        most = keys > most ? keys : most;
        work += keys * queries * job.heads * job.form.size;
    }
    int threads = omp_in_parallel() || work < 1 << 18 ? 1 : omp_get_max_threads();
    if (threads > 1 && units < 4 * threads) /* each part copies the keys that it needs */
        job.parts = count_of(4 * threads, units);
    Own sizes;
    int64_t floats = own_make(&sizes, &job.form, &job.values, most, NULL);
    size_t bytes = (size_t)(floats * threads) * sizeof(float);
    float *scratch = scratch_alloc(bytes);
    if (!scratch || scratch_only())
        return scratch_free(scratch, bytes), scratch ? OK : ERR_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        Own own;
        blocks_begin();
        own_make(&own, &job.form, &job.values, most, scratch + floats * omp_get_thread_num());
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units * job.parts; i++) /* the last parts see the most keys: they go first */
            unit_run(&job, &own, i / job.parts / job.kv_heads, i / job.parts % job.kv_heads, job.parts - 1 - i % job.parts);
        blocks_end();
    }
    scratch_free(scratch, bytes);
    return OK;
}
