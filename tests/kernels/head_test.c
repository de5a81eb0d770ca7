/* The fused head and loss against a double reference; the same bits for any threads, any grouping, with gradients or without. */
#include "products.h"

typedef struct Case {
    int64_t rows, width, vocabulary;
    Dtype x, w;
    int turned, all;
} Case;

/* nll, dx, dw of the whole in double. */
static void reference(const Case *c, const View *x, const View *w, const int32_t *labels, double scale, double multiplier, double *nll, double *dx, double *dw) {
    double *logits = malloc((size_t)c->vocabulary * sizeof *logits);
    if (!logits)
        exit(1);
    for (int64_t r = 0; r < c->rows; r++) {
        nll[r] = 0;
        if (labels[r] < 0)
            continue;
        double most = -1e300, total = 0;
        for (int64_t v = 0; v < c->vocabulary; v++) {
            logits[v] = 0;
            for (int64_t k = 0; k < c->width; k++)
                logits[v] += multiplier * value_at(x, r, k) * value_at(w, v, k);
            most = fmax(most, logits[v]);
        }
        for (int64_t v = 0; v < c->vocabulary; v++)
            total += exp(logits[v] - most);
        nll[r] = most + log(total) - logits[labels[r]];
        for (int64_t v = 0; v < c->vocabulary; v++) {
            double g = scale * multiplier * (exp(logits[v] - most) / total - (labels[r] == v));
            for (int64_t k = 0; k < c->width; k++) {
                dx[r * c->width + k] += g * value_at(w, v, k);
                dw[v * c->width + k] += g * value_at(x, r, k);
            }
        }
    }
    free(logits);
}

static void check(const Backend *t, const Case *c) {
    char what[120];
    snprintf(what, sizeof what, "head: rows %ld width %ld vocabulary %ld %s x %s%s", (long)c->rows, (long)c->width, (long)c->vocabulary,
             dtype_name(c->x), dtype_name(c->w), c->turned ? " turned" : "");
    float scale = 0.3f, multiplier = 1.5f;
    View x = random_matrix(c->x, c->rows, c->width, 3, 0), w = random_matrix(c->w, c->vocabulary, c->width, 0, c->turned);
    fill(&w, 0.5);
    int32_t *labels = calloc((size_t)c->rows, 4);
    size_t wide = (size_t)(c->rows * c->width), tall = (size_t)(c->vocabulary * c->width);
    double *nll = calloc((size_t)c->rows, 8), *dx = calloc(wide, 8), *dw = calloc(tall, 8);
    if (!labels || !nll || !dx || !dw)
        exit(1);
    for (int64_t r = 0; r < c->rows; r++)
        labels[r] = r % 4 == 1 || (!c->all && r < c->rows / 3) ? -100 : (int32_t)((uniform() + 1) * 0.5 * (double)c->vocabulary);
    reference(c, &x, &w, labels, scale, multiplier, nll, dx, dw);
    int32_t cuts[3] = {0, (int32_t)(c->rows / 3), (int32_t)c->rows};
    View starts = {cuts, I32, 1, {3}, {1}}, n[4], gx[4], gw[4];
    for (int i = 0; i < 4; i++) { /* one thread, two, sequence by sequence, losses alone */
        n[i] = matrix(F32, 1, c->rows, 0, 0), gx[i] = matrix(c->x, c->rows, c->width, 0, 0), gw[i] = matrix(F32, c->vocabulary, c->width, 0, 0);
        omp_set_num_threads(i == 0 ? 1 : 2);
        for (int s = 0; s < (i == 2 ? 2 : 1); s++) {
            int64_t from = i == 2 ? cuts[s] : 0, to = i == 2 ? cuts[s + 1] : c->rows;
            View ns = {(float *)n[i].data + from, F32, 1, {to - from}, {1}}, ls = {labels + from, I32, 1, {to - from}, {1}};
            View xs = part(&x, from, to), gs = part(&gx[i], from, to);
            must(t->head_loss(&ns, i == 3 ? NULL : &gs, i == 3 ? NULL : &gw[i], NULL, &xs, &w, &ls, i == 2 ? NULL : &starts, scale, &(Logits){.multiplier = multiplier}) == OK, t->name, what);
        }
        must(same(&n[0], &n[i]), t->name, what);
        must(i == 3 || (same(&gx[0], &gx[i]) && same(&gw[0], &gw[i])), t->name, what);
    }
    double size = 0; /* gradients are measured against the largest: their terms cancel */
    for (size_t i = 0; i < wide; i++)
        size = fmax(size, fabs(dx[i]));
    for (size_t i = 0; i < tall; i++)
        size = fmax(size, fabs(dw[i]));
    int right = 1;
    for (int64_t r = 0; r < c->rows; r++) {
        right &= fabs(value_at(&n[0], 0, r) - nll[r]) < 1e-5 * (1 + nll[r]);
        for (int64_t k = 0; k < c->width; k++)
            right &= near(value_at(&gx[0], r, k), dx[r * c->width + k], size, c->x, c->x == BF16);
    }
    must(right, t->name, what);
    for (int64_t v = 0; v < c->vocabulary; v++)
        for (int64_t k = 0; k < c->width; k++)
            right &= near(value_at(&gw[0], v, k), dw[v * c->width + k], size, F32, c->x == BF16);
    must(right, t->name, what);
    for (int i = 0; i < 4; i++)
        free(n[i].data), free(gx[i].data), free(gw[i].data);
    free(x.data), free(w.data), free(labels), free(nll), free(dx), free(dw);
}

static void bench(const Backend *t, Dtype dtype, int64_t tokens, int64_t width, int64_t vocabulary) {
    View w = random_matrix(dtype, vocabulary, width, 0, 0), x = random_matrix(dtype, tokens, width, 0, 0), dx = matrix(dtype, tokens, width, 0, 0);
    fill(&w, 0.05);
    View nll = {calloc((size_t)tokens, 4), F32, 1, {tokens}, {1}}, labels = {calloc((size_t)tokens, 4), I32, 1, {tokens}, {1}};
    if (!nll.data || !labels.data)
        exit(1);
    double f = 2e-9 * (double)(tokens * width) * (double)vocabulary, best[2] = {1e9, 1e9};
    for (int i = 0; i < 10; i++) {
        double t0 = seconds();
        must(t->head_loss(&nll, i & 1 ? &dx : NULL, NULL, NULL, &x, &w, &labels, NULL, 1.0f / (float)tokens, &(Logits){.multiplier = 1}) == OK, t->name, "bench");
        best[i & 1] = fmin(best[i & 1], seconds() - t0);
    }
    printf("%s %s head %ld x %ld, %ld tokens: loss alone %.0f, with dx %.0f GFLOP/s, %.1f ms\n", t->name, dtype_name(dtype), (long)vocabulary,
           (long)width, (long)tokens, f / best[0], 2 * f / best[1], best[1] * 1e3);
    free(labels.data), free(nll.data), free(x.data), free(dx.data), free(w.data);
}

int main(int argc, char **argv) {
    const Backend *tables[5];
    int count = table_count(tables);
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench(tables[count - 1], BF16, 512, 576, 49152);
        bench(tables[count - 1], BF16, 2048, 576, 49152);
        bench(tables[count - 1], BF16, 512, 2048, 128256);
        bench(tables[count - 1], F32, 512, 576, 49152);
        return 0;
    }
    static const Case cases[] = {
        {1, 3, 2, F32, F32, 0, 1},       {7, 33, 41, BF16, BF16, 0, 1},  {150, 20, 130, F32, BF16, 0, 0},
        {390, 17, 65, BF16, BF16, 1, 0}, {9, 8, 8300, BF16, BF16, 0, 1}, {5, 6, 1100, F32, F16, 1, 1},
    };
    for (int i = 0; i < count; i++)
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++)
            check(tables[i], &cases[j]);
    printf("head: %s\n", failures ? "FAILED" : "passed");
    return failures != 0;
}
