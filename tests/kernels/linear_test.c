/* Linear layers of every instruction set against a double reference; the same bits for any threads and any grouping of tokens.
 * --bench prints rates on a small model's shapes instead. */
#include "products.h"

static double dot(const View *x, int64_t r, const View *w, int64_t o, double *size) {
    double s = 0;
    for (int64_t k = 0; k < x->shape[1]; k++) {
        double t = value_at(x, r, k) * value_at(w, o, k);
        s += t;
        *size += fabs(t);
    }
    return s;
}

static View turned(const View *v) {
    View t = *v;
    t.shape[0] = v->shape[1], t.shape[1] = v->shape[0], t.stride[0] = v->stride[1], t.stride[1] = v->stride[0];
    return t;
}

/* c must be a b^T + scale * h right^T + bias + old, whichever are there. `coarse` if h was rounded elsewhere. */
static int product_right(int coarse, const View *c, const View *a, const View *b, const View *h, const View *right, double scale,
                         const View *bias, const View *old) {
    for (int64_t r = 0; r < c->shape[0]; r++)
        for (int64_t o = 0; o < c->shape[1]; o++) {
            double size = 1e-3, want = a ? dot(a, r, b, o, &size) : 0;
            if (h)
                want += scale * dot(h, r, right, o, &size);
            if (bias)
                want += value_at(bias, 0, o);
            if (old)
                want += value_at(old, r, o);
            if (!near(value_at(c, r, o), want, size, c->dtype, coarse)) {
                printf("  (%ld, %ld): %g, expected %g\n", (long)r, (long)o, value_at(c, r, o), want);
                return 0;
            }
        }
    return 1;
}

typedef struct Case {
    int64_t rows, in, out, rank;
    Dtype x, w, y;
    int turned, bias, dropout;
} Case;

static View copy_of(const View *v) {
    View c = matrix(v->dtype, v->shape[0], v->shape[1], 0, 0);
    for (int64_t r = 0; r < v->shape[0]; r++)
        memcpy((char *)c.data + r * c.stride[0] * (int64_t)dtype_size(v->dtype), part(v, r, r + 1).data, (size_t)v->shape[1] * dtype_size(v->dtype));
    return c;
}

/* What a product with bf16 takes as it is stored; here nothing is left to round, so that the reference need not. */
static void make_short(View *w) {
    for (int64_t r = 0; r < w->shape[0]; r++)
        for (int64_t k = 0; k < w->shape[1]; k++) {
            int64_t i = r * w->stride[0] + k * w->stride[1];
            if (w->dtype == F32)
                ((uint32_t *)w->data)[i] &= 0xffff0000;
            else
                ((uint16_t *)w->data)[i] &= 0xfff8;
        }
}

static void check(const Backend *t, const Case *c) {
    char what[160];
    snprintf(what, sizeof what, "rows %ld in %ld out %ld rank %ld %s x %s%s -> %s", (long)c->rows, (long)c->in, (long)c->out, (long)c->rank,
             dtype_name(c->x), dtype_name(c->w), c->turned ? " turned" : "", dtype_name(c->y));
    View x = random_matrix(c->x, c->rows, c->in, 3, 0), w = random_matrix(c->w, c->out, c->in, 1, c->turned);
    View bias = random_matrix(F32, 1, c->out, 0, 0), ax = c->dropout ? random_matrix(c->x, c->rows, c->in, 0, 0) : x;
    View a = random_matrix(c->x, c->rank, c->in, 0, 0), b = random_matrix(c->x, c->out, c->rank, 0, 0);
    View dy = random_matrix(c->x, c->rows, c->out, 5, 0);
    if (c->x == BF16 && c->w != BF16)
        make_short(&w);
    Lora lora = {&ax, &a, &b, 0.5f, NULL}, *l = c->rank ? &lora : NULL; /* a power of two: h and scale * h round alike */
    View *bi = c->bias ? &bias : NULL, y[3], h[3], dx[3], dh[3], dd[3], da[3], db[3], dw[3], yd[3];
    View bias1 = bias;
    bias1.dims = 1, bias1.shape[0] = c->out, bias1.stride[0] = 1;
    View *bv = bi ? &bias1 : NULL, old = random_matrix(c->x, c->rows, c->in, 0, 0);
    int32_t cuts[5] = {0, (int32_t)(c->rows / 3), (int32_t)(c->rows / 3), (int32_t)(c->rows - 1), (int32_t)c->rows};
    View starts = {cuts, I32, 1, {5}, {1}};
    /* 0: one thread; 1: two threads; 2: sequence by sequence */
    for (int i = 0; i < 3; i++) {
        y[i] = matrix(c->y, c->rows, c->out, 2, 0), yd[i] = matrix(c->y, c->rows, c->out, 2, 0), h[i] = matrix(c->x, c->rows, c->rank, 0, 0);
        dx[i] = copy_of(&old), dd[i] = matrix(c->x, c->rows, c->in, 0, 0), dh[i] = matrix(c->x, c->rows, c->rank, 0, 0);
        da[i] = matrix(F32, c->rank, c->in, 0, 0), db[i] = matrix(F32, c->out, c->rank, 0, 0), dw[i] = matrix(F32, c->out, c->in, 0, 0);
        omp_set_num_threads(i == 0 ? 1 : 2);
        for (int s = 0; s < (i == 2 ? 4 : 1); s++) {
            int64_t from = i == 2 ? cuts[s] : 0, to = i == 2 ? cuts[s + 1] : c->rows;
            View ys = part(&y[i], from, to), yds = part(&yd[i], from, to), hs = part(&h[i], from, to), xs = part(&x, from, to), axs = part(&ax, from, to);
            View dxs = part(&dx[i], from, to), dhs = part(&dh[i], from, to), dys = part(&dy, from, to), dds = part(&dd[i], from, to);
            Lora ls = {&axs, &a, &b, lora.scale, NULL}, *lp = l ? &ls : NULL;
            const View *st = i == 2 ? NULL : &starts;
            must(t->linear(&ys, l ? &hs : NULL, &xs, &w, bv, lp) == OK, t->name, what);
            must(t->linear_backward(&dxs, l ? &dhs : NULL, c->dropout && l ? &dds : NULL, &dys, &w, lp, 1) == OK, t->name, what);
            if (l)
                must(t->lora_backward(&da[i], &db[i], &dhs, &dys, &hs, &ls, st) == OK, t->name, what);
            must(t->linear_backward_weight(&dw[i], NULL, &dys, &xs, st) == OK, t->name, what);
            if (!c->dropout)
                must(t->linear_decode(&yds, &xs, &w, bv, lp) == OK, t->name, what);
        }
        if (i && !(same(&y[0], &y[i]) && same(&yd[0], &yd[i]) && same(&dx[0], &dx[i]) && same(&dw[0], &dw[i]) && same(&dd[0], &dd[i]) &&
                   same(&h[0], &h[i]) && same(&dh[0], &dh[i]) && same(&da[0], &da[i]) && same(&db[0], &db[i]))) {
            printf("  %s\n", i == 1 ? "two threads give other bits" : "token by token groups give other bits");
            must(0, t->name, what);
        }
    }
    View wt = turned(&w), at = turned(&a), bt = turned(&b), dyt = turned(&dy), xt = turned(&x), axt = turned(&ax), dht = turned(dh), ht = turned(h);
    must(product_right(0, &y[0], &x, &w, l ? &h[0] : NULL, &b, lora.scale, bi, NULL), t->name, what);
    if (!c->dropout)
        must(product_right(l && c->x == BF16, &yd[0], &x, &w, l ? &h[0] : NULL, &b, lora.scale, bi, NULL), t->name, what);
    must(product_right(0, &dx[0], &dy, &wt, l && !c->dropout ? &dh[0] : NULL, &at, 1, NULL, &old), t->name, what);
    must(product_right(0, &dw[0], &dyt, &xt, NULL, NULL, 0, NULL, NULL), t->name, what);
    if (l) {
        must(product_right(0, &h[0], &ax, &a, NULL, NULL, 0, NULL, NULL), t->name, what);
        must(product_right(0, &dh[0], NULL, NULL, &dy, &bt, lora.scale, NULL, NULL), t->name, what);
        must(product_right(0, &da[0], &dht, &axt, NULL, NULL, 0, NULL, NULL), t->name, what);
        must(product_right(0, &db[0], NULL, NULL, &dyt, &ht, lora.scale, NULL, NULL), t->name, what);
        if (c->dropout)
            must(product_right(0, &dd[0], &dh[0], &at, NULL, NULL, 0, NULL, NULL), t->name, what);
    }
    for (int i = 0; i < 3; i++)
        free(y[i].data), free(yd[i].data), free(h[i].data), free(dx[i].data), free(dd[i].data), free(dh[i].data), free(da[i].data),
            free(db[i].data), free(dw[i].data);
    if (c->dropout)
        free(ax.data);
    free(x.data), free(w.data), free(bias.data), free(a.data), free(b.data), free(dy.data), free(old.data);
}

static void check_matmul(const Backend *t) {
    static const int64_t shapes[][3] = {{1, 1, 1}, {7, 5, 9}, {33, 64, 17}, {40, 129, 70}};
    for (int i = 0; i < 16; i++) {
        const int64_t *s = shapes[i / 4];
        for (Dtype dtype = F32; dtype <= BF16; dtype++) {
            View a = random_matrix(dtype, s[0], s[1], 1, i & 1), b = random_matrix(dtype, s[1], s[2], 0, i >> 1 & 1);
            View c = matrix(dtype, s[0], s[2], 0, 0), bt = turned(&b);
            must(t->matmul(&c, &a, &b) == OK && product_right(0, &c, &a, &bt, NULL, NULL, 0, NULL, NULL), t->name, "matmul");
            free(a.data), free(b.data), free(c.data);
        }
    }
}

/* --- rates --------------------------------------------------------------------------------------------------------------- */

#define TIME(best, code) do { \
    best = 1e9; \
    for (double begun = seconds(), t0; seconds() - begun < 0.25;) { t0 = seconds(); code; t0 = seconds() - t0; best = t0 < best ? t0 : best; } \
} while (0)

static void bench(const Backend *t, Dtype dtype) {
    static const int64_t shapes[][2] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}};
    enum { RANK = 16 };
    printf("%s, %s, %d threads\n", t->name, dtype_name(dtype), omp_get_max_threads());
    for (int64_t tokens = 512; tokens <= 2048; tokens *= 4)
        for (int i = 0; i < 4; i++) {
            int64_t out = shapes[i][0], in = shapes[i][1];
            View x = random_matrix(dtype, tokens, in, 0, 0), w = random_matrix(dtype, out, in, 0, 0), a = random_matrix(dtype, RANK, in, 0, 0);
            View b = random_matrix(dtype, out, RANK, 0, 0), y = matrix(dtype, tokens, out, 0, 0), h = matrix(dtype, tokens, RANK, 0, 0);
            View da = matrix(F32, RANK, in, 0, 0), db = matrix(F32, out, RANK, 0, 0), dx = matrix(dtype, tokens, in, 0, 0), dw = matrix(F32, out, in, 0, 0);
            Lora lora = {&x, &a, &b, 2, NULL};
            double plain, with, back, grad, full, f = 2e-9 * (double)(tokens * out * in), r = 2e-9 * (double)(tokens * (out + in) * RANK);
            TIME(plain, t->linear(&y, NULL, &x, &w, NULL, NULL));
            TIME(with, t->linear(&y, &h, &x, &w, NULL, &lora));
            TIME(back, t->linear_backward(&dx, &h, NULL, &y, &w, &lora, 1));
            TIME(grad, t->lora_backward(&da, &db, &h, &y, &h, &lora, NULL));
            TIME(full, t->linear_backward_weight(&dw, NULL, &y, &x, NULL));
            printf("%5ld tokens %5ld x %5ld: plain %4.0f, with lora %4.0f, backward %4.0f, lora_backward %4.0f, weight %4.0f GFLOP/s\n", (long)tokens,
                   (long)out, (long)in, f / plain, (f + r) / with, (f + r) / back, r / grad, f / full);
            free(x.data), free(w.data), free(a.data), free(b.data), free(y.data), free(h.data), free(da.data), free(db.data), free(dx.data), free(dw.data);
        }
    static const int64_t decoded[][2] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}, {49152, 576}};
    for (int i = 0; i < 5; i++)
        for (int64_t rows = 1; rows <= 4; rows += 3) {
            int64_t out = decoded[i][0], in = decoded[i][1];
            View x = random_matrix(dtype, rows, in, 0, 0), w = random_matrix(dtype, out, in, 0, 0), y = matrix(dtype, rows, out, 0, 0);
            double best;
            TIME(best, t->linear_decode(&y, &x, &w, NULL, NULL));
            printf("decode %ld rows %5ld x %5ld: %.1f us, %.1f GB/s\n", (long)rows, (long)out, (long)in, best * 1e6,
                   (double)(out * in) * (double)dtype_size(dtype) / best * 1e-9);
            free(x.data), free(w.data), free(y.data);
        }
}

int main(int argc, char **argv) {
    const Backend *tables[5];
    int count = table_count(tables);
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        for (int i = argc > 2 ? atoi(argv[2]) : count - 1; i < count; i++)
            for (Dtype dtype = BF16; (int)dtype >= F32; dtype--) {
                bench(tables[i], dtype);
                if (dtype == F32)
                    break;
            }
        return 0;
    }
    static const Case cases[] = {
        {1, 1, 1, 1, F32, F32, F32, 0, 0, 0},        {5, 37, 19, 4, BF16, BF16, BF16, 0, 1, 0},   {131, 65, 70, 16, BF16, BF16, BF16, 0, 0, 0},
        {40, 96, 33, 8, F32, BF16, F32, 0, 1, 0},    {40, 70, 96, 24, F32, F16, F32, 1, 0, 0},    {300, 33, 48, 64, BF16, BF16, F32, 1, 0, 0},
        {29, 64, 40, 16, BF16, BF16, BF16, 0, 0, 1}, {26, 40, 64, 5, F32, F32, F32, 0, 1, 1},     {17, 200, 50, 0, BF16, BF16, BF16, 0, 1, 0},
        {50, 129, 160, 0, F32, F16, F32, 0, 0, 0},   {3, 300, 280, 16, BF16, BF16, BF16, 1, 1, 0}, {800, 24, 20, 3, BF16, BF16, BF16, 0, 0, 0},
        {37, 700, 410, 20, BF16, BF16, BF16, 0, 1, 0}, {37, 410, 700, 33, F32, F32, F32, 0, 1, 1}, {33, 500, 290, 7, BF16, F16, BF16, 0, 1, 0},
        {70, 45, 400, 16, BF16, F32, BF16, 1, 0, 1},
    };
    for (int i = 0; i < count; i++) {
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++)
            check(tables[i], &cases[j]);
        check_matmul(tables[i]);
    }
    printf("linear: %s\n", failures ? "FAILED" : "passed");
    return failures != 0;
}
