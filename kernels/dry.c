/* The table of a dry run: nothing is computed, operations of products are counted, and scratch is taken and given back. An operation that
 * takes scratch asks the CPU's kernel, which knows how much; all others do nothing, those that are added one day too. */
#include "cpu/cpu.h"

/* Most operations here leave their arguments alone, and some of the table's entries are given twice. */
#pragma GCC diagnostic ignored "-Wunused-parameter"
#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define OP(name, args) static Status nothing_##name args { return OK; }
#include "ops.def"
#undef OP

static double flops;
double backend_dry_flops(void) { return flops; }

/* Takes and gives back what a call of the CPU's would. */
#define SCRATCH(call) (scratch_set_only(1), scratch_done(backend_cpu()->call))
static Status scratch_done(Status status) {
    scratch_set_only(0);
    return status;
}

static void count(int64_t a, int64_t b, int64_t c, double times) { flops += times * 2 * (double)a * (double)b * (double)c; }

static Status dry_sum_rows(View *y, const View *x, const View *starts) { return SCRATCH(sum_rows(y, x, starts)); }

/* The adapter's A and B, for `rows` tokens of a layer's input and output. */
static void count_lora(int64_t rows, const Lora *lora) {
    if (lora) {
        count(rows, lora->a->shape[0], lora->a->shape[1], 1);
        count(rows, lora->b->shape[0], lora->b->shape[1], 1);
    }
}

static Status dry_linear(View *y, View *h, const View *x, const View *w, const View *bias, const Lora *lora) {
    count(view_rows(x), w->shape[0], w->shape[1], 1);
    count_lora(view_rows(x), lora);
    return SCRATCH(linear(y, h, x, w, bias, lora));
}

static Status dry_linear_decode(View *y, const View *x, const View *w, const View *bias, const Lora *lora) {
    count(view_rows(x), w->shape[0], w->shape[1], 1);
    count_lora(view_rows(x), lora);
    return SCRATCH(linear_decode(y, x, w, bias, lora));
}

static Status dry_linear_backward(View *dx, View *dh, View *dropped, const View *dy, const View *w, const Lora *lora, int add) {
    count(view_rows(dy), w->shape[0], w->shape[1], dx ? 1 : 0);
    count_lora(view_rows(dy), lora);
    return SCRATCH(linear_backward(dx, dh, dropped, dy, w, lora, add));
}

static Status dry_lora_backward(View *da, View *db, const View *dh, const View *dy, const View *h, const Lora *lora, const View *starts) {
    count(view_rows(dy), view_width(h), view_width(lora->x) + view_width(dy), 1);
    return SCRATCH(lora_backward(da, db, dh, dy, h, lora, starts));
}

static Status dry_linear_backward_weight(View *dw, View *dbias, const View *dy, const View *x, const View *starts) {
    count(view_rows(dy), view_width(dy), view_width(x), dw ? 1 : 0);
    return SCRATCH(linear_backward_weight(dw, dbias, dy, x, starts));
}

static Status dry_matmul(View *c, const View *a, const View *b) {
    count(c->shape[0], c->shape[1], a->shape[1], 1);
    return SCRATCH(matmul(c, a, b));
}

/* Half of d * |d|: the pairs that lie above a diagonal d steps along. */
static double corner(double d) { return d > 0 ? d * d / 2 : 0; }

/* Pairs of query and key that see each other; of a causal square the half. */
static double pairs(const Mask *m) {
    double total = 0;
    for (int64_t s = 0; s < m->sequences; s++) {
        double queries = m->q_starts[s + 1] - m->q_starts[s], keys = m->k_starts[s + 1] - m->k_starts[s], window = (double)m->window;
        total += m->causal ? corner(keys) - corner(keys - queries) : queries * keys;
        if (m->window) /* what lies too far back */
            total -= corner(keys - window) - corner(keys - queries - window);
    }
    return total;
}

/* Two products forward; backward four, and the scores again, which are not counted. */
static Status dry_attention(View *y, View *lse, const View *q, const View *k, const View *v, const Mask *mask, float scale) {
    flops += 2 * pairs(mask) * (double)(q->shape[1] * (q->shape[2] + v->shape[2]));
    return SCRATCH(attention(y, lse, q, k, v, mask, scale));
}

static Status dry_attention_backward(View *dq, View *dk, View *dv, const View *dy, const View *y, const View *lse, const View *q,
                                     const View *k, const View *v, const Mask *mask, float scale) {
    flops += 4 * pairs(mask) * (double)(q->shape[1] * (q->shape[2] + v->shape[2]));
    return SCRATCH(attention_backward(dq, dk, dv, dy, y, lse, q, k, v, mask, scale));
}

static Status dry_attention_decode(View *y, const View *q, const View *k, const View *v, const View *lengths, const Mask *mask, float scale) {
    for (int64_t s = 0; s < q->shape[0]; s++) {
        int64_t n = ((const int32_t *)lengths->data)[s];
        count(q->shape[1], q->shape[2] + v->shape[3], mask->window && n > mask->window ? mask->window : n, 1);
    }
    return SCRATCH(attention_decode(y, q, k, v, lengths, mask, scale));
}

static Status dry_head_loss(View *nll, View *dx, View *dw, View *dbias, const View *x, const View *w, const View *labels,
                            const View *starts, float scale, const Logits *form) {
    count(view_rows(x), w->shape[0], w->shape[1], 1 + (dx != NULL) + (dw != NULL));
    return SCRATCH(head_loss(nll, dx, dw, dbias, x, w, labels, starts, scale, form));
}

static Status dry_head_part(View *stats, View *sums, View *label_rows, const View *x, const View *w, const View *labels, int64_t first,
                            const Logits *form) {
    count(view_rows(x), w->shape[0], w->shape[1], sums ? 2 : 1);
    return SCRATCH(head_part(stats, sums, label_rows, x, w, labels, first, form));
}

static Status dry_rms_norm_backward(View *dx, View *dw, const View *dy, const View *x, const View *w, const View *rstd, const View *starts) {
    return SCRATCH(rms_norm_backward(dx, dw, dy, x, w, rstd, starts));
}

static Status dry_layer_norm_backward(View *dx, View *dw, View *db, const View *dy, const View *x, const View *w, const View *stats,
                                      const View *starts) {
    return SCRATCH(layer_norm_backward(dx, dw, db, dy, x, w, stats, starts));
}

/* One product of a convolution: every output element with a filter of its group. */
static void count_conv(const View *y, const View *w) {
    int64_t filters = w->shape[0] ? w->shape[0] : 1;
    count(view_count(y), view_count(w) / filters, 1, 1);
}

static Status dry_conv(View *y, const View *x, const View *w, const View *bias, const Conv *conv) {
    count_conv(y, w);
    return view_count(y) && view_count(x) && view_count(w) ? SCRATCH(conv(y, x, w, bias, conv)) : OK;
}

static Status dry_conv_backward(View *dx, View *dw, View *dbias, const View *dy, const View *x, const View *w, const Conv *conv) {
    for (int k = 0; k < (dx != NULL) + (dw != NULL); k++)
        count_conv(dy, w);
    return view_count(dy) && view_count(x) && view_count(w) ? SCRATCH(conv_backward(dx, dw, NULL, dy, x, w, conv)) : OK;
}

static Status dry_causal_conv_backward(View *dx, View *dw, View *dbias, const View *dy, const View *x, const View *w, const View *starts) {
    return SCRATCH(causal_conv_backward(dx, dw, dbias, dy, x, w, starts));
}

static Status dry_scan(View *y, View *state, const View *x, const View *dt, const View *b, const View *c, const View *a_log, const View *bias,
                       const View *d, const View *starts, Steps steps) {
    return SCRATCH(scan(y, state, x, dt, b, c, a_log, bias, d, starts, steps));
}

static Status dry_scan_backward(View *dx, View *ddt, View *db, View *dc, View *da_log, View *dd, const View *dy, const View *x, const View *dt,
                                const View *b, const View *c, const View *a_log, const View *bias, const View *d, const View *starts,
                                Steps steps) {
    return SCRATCH(scan_backward(dx, ddt, db, dc, da_log, dd, dy, x, dt, b, c, a_log, bias, d, starts, steps));
}

static Status dry_delta_rule(View *y, View *state, const View *q, const View *k, const View *v, const View *decay, const View *beta,
                             const View *starts) {
    return SCRATCH(delta_rule(y, state, q, k, v, decay, beta, starts));
}

static Status dry_delta_rule_backward(View *dq, View *dk, View *dv, View *ddecay, View *dbeta, const View *dy, const View *q, const View *k,
                                      const View *v, const View *decay, const View *beta, const View *starts) {
    return SCRATCH(delta_rule_backward(dq, dk, dv, ddecay, dbeta, dy, q, k, v, decay, beta, starts));
}

/* The products with the state; those with the input are linear layers. */
static void count_recurrent(int64_t tokens, const Recurrent *r) {
    count(tokens, r->w->shape[0], r->w->shape[1], 1);
    if (r->projection)
        count(tokens, r->projection->shape[0], r->projection->shape[1], 1);
}

static Status dry_recurrent(View *y, View *kept, View *cells, View *last, View *last_cell, const View *x, const Recurrent *r) {
    count_recurrent(view_rows(x), r);
    return SCRATCH(recurrent(y, kept, cells, last, last_cell, x, r));
}

static Status dry_recurrent_backward(View *dx, View *dstate, View *previous, View *projected, View *dout, const View *dy, const View *y,
                                     const View *kept, const View *cells, const Recurrent *r) {
    count_recurrent(view_rows(dy), r);
    return SCRATCH(recurrent_backward(dx, dstate, previous, projected, dout, dy, y, kept, cells, r));
}

#define COUNTED(X) \
    X(sum_rows) X(linear) X(linear_decode) X(linear_backward) X(lora_backward) X(linear_backward_weight) X(matmul) X(attention) \
    X(attention_backward) X(attention_decode) X(head_loss) X(head_part) X(rms_norm_backward) X(layer_norm_backward) X(conv) X(conv_backward) \
    X(causal_conv_backward) X(scan) X(scan_backward) X(delta_rule) X(delta_rule_backward) X(recurrent) X(recurrent_backward)

static const Backend dry_backend = {
    .name = "dry",
#define OP(op, args) .op = nothing_##op,
#include "ops.def"
#undef OP
#define X(op) .op = dry_##op,
    COUNTED(X)
#undef X
};

const Backend *backend_dry(void) { return &dry_backend; }
