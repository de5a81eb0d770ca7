/* Batch norm of images (n, c, plane): a channel is one thread's from start to end, so its sums have one order whatever the threads. */
#include <math.h>

#include "isa.h"

typedef struct Planes {
    int64_t images, channels, plane;
} Planes;

static Planes planes_of(const View *x) {
    Planes p = {x->shape[0], x->shape[1], 1};
    for (int i = 2; i < x->dims; i++)
        p.plane *= x->shape[i];
    return p;
}

static int wide_enough(const Planes *p) { return p->images * p->channels * p->plane >= 1 << 15; }

static inline const float *plane_at(const View *v, const Planes *p, int64_t image, int64_t channel) {
    return (const float *)v->data + (image * p->channels + channel) * p->plane;
}

/* Sum of one plane, of f32 lanes; planes are added up in double. */
static inline float plane_sum(const float *x, int64_t plane) {
    Vec sum = {0};
    int64_t i = 0;
    for (; i + LANES <= plane; i += LANES)
        sum += vec_load(x + i);
    if (i < plane)
        sum += vec_get_part(x, F32, i, plane - i);
    return vec_sum(sum);
}

/* The same of (x - mean)^2: the missing lanes of the last vector count as the mean. */
static inline float plane_square(const float *x, int64_t plane, float mean) {
    Vec sum = {0};
    int64_t i = 0;
    for (; i + LANES <= plane; i += LANES) {
        Vec d = vec_load(x + i) - mean;
        sum += d * d;
    }
    float rest = 0;
    for (; i < plane; i++)
        rest += (x[i] - mean) * (x[i] - mean);
    return vec_sum(sum) + rest;
}

static void normalise(float *y, const float *x, int64_t plane, float mean, float scale, float shift) {
    int64_t i = 0;
    for (; i < plane; i += LANES)
        vec_give(y, F32, i, plane - i, (vec_take(x, F32, i, plane - i) - mean) * scale + shift);
}

/* One channel's mean and reciprocal deviation over the batch; moves the running ones if asked. */
static void measure(float stats[2], View *mean, View *variance, const View *x, const Planes *p, int64_t c, const BatchNorm *norm) {
    int64_t count = p->images * p->plane;
    double sum = 0, square = 0;
    for (int64_t n = 0; n < p->images; n++)
        sum += (double)plane_sum(plane_at(x, p, n, c), p->plane);
    stats[0] = (float)(sum / (double)count);
    for (int64_t n = 0; n < p->images; n++)
        square += (double)plane_square(plane_at(x, p, n, c), p->plane, stats[0]);
    stats[1] = (float)(1 / sqrt(square / (double)count + (double)norm->eps));
    if (!norm->update)
        return;
    float *m = (float *)mean->data + c, *v = (float *)variance->data + c;
    *m += norm->momentum * (stats[0] - *m);
    *v += norm->momentum * ((float)(square / (double)(count > 1 ? count - 1 : 1)) - *v);
}

Status KERNEL(batch_norm)(View *y, View *stats, View *mean, View *variance, const View *x, const View *w, const View *b, const BatchNorm *norm) {
    Planes p = planes_of(x);
#pragma omp parallel for schedule(static) if (wide_enough(&p))
    for (int64_t c = 0; c < p.channels; c++) {
        float *s = (float *)stats->data + 2 * c;
        if (norm->batch)
            measure(s, mean, variance, x, &p, c, norm);
        else
            s[0] = ((const float *)mean->data)[c], s[1] = 1 / sqrtf(((const float *)variance->data)[c] + norm->eps);
        float scale = s[1] * ((const float *)w->data)[c], shift = ((const float *)b->data)[c];
        for (int64_t n = 0; n < p.images; n++)
            normalise((float *)y->data + (n * p.channels + c) * p.plane, plane_at(x, &p, n, c), p.plane, s[0], scale, shift);
    }
    return OK;
}

/* *sum = sum of dy, *product = sum of dy (x - mean), over one plane. */
static void plane_products(const float *dy, const float *x, int64_t plane, float mean, float *sum, float *product) {
    Vec s = {0}, t = {0};
    for (int64_t i = 0; i < plane; i += LANES) {
        Vec d = vec_take(dy, F32, i, plane - i);
        s += d;
        t += d * (vec_take(x, F32, i, plane - i) - mean); /* beyond the end d is 0 */
    }
    *sum = vec_sum(s), *product = vec_sum(t);
}

Status KERNEL(batch_norm_backward)(View *dx, View *dw, View *db, const View *dy, const View *x, const View *w, const View *stats, int batch) {
    Planes p = planes_of(x);
    double count = (double)(p.images * p.plane);
#pragma omp parallel for schedule(static) if (wide_enough(&p))
    for (int64_t c = 0; c < p.channels; c++) {
        const float mean = ((const float *)stats->data)[2 * c], rstd = ((const float *)stats->data)[2 * c + 1];
        double sum = 0, product = 0;
        for (int64_t n = 0; n < p.images && (batch || dw || db); n++) {
            float s, t;
            plane_products(plane_at(dy, &p, n, c), plane_at(x, &p, n, c), p.plane, mean, &s, &t);
            sum += (double)s, product += (double)t;
        }
        if (dw)
            ((float *)dw->data)[c] += (float)(product * (double)rstd);
        if (db)
            ((float *)db->data)[c] += (float)sum;
        if (!dx)
            continue;
        /* dx = scale (dy - sum / count - (x - mean) rstd^2 product / count) */
        float scale = rstd * ((const float *)w->data)[c];
        float level = batch ? (float)(sum / count) : 0, slope = batch ? (float)(product / count * (double)rstd * (double)rstd) : 0;
        for (int64_t n = 0; n < p.images; n++) {
            const float *g = plane_at(dy, &p, n, c), *in = plane_at(x, &p, n, c);
            float *out = (float *)dx->data + (n * p.channels + c) * p.plane;
            for (int64_t i = 0; i < p.plane; i += LANES) {
                int64_t left = p.plane - i;
                Vec d = vec_take(g, F32, i, left) - level;
                if (batch)
                    d -= (vec_take(in, F32, i, left) - mean) * slope;
                vec_give(out, F32, i, left, d * scale);
            }
        }
    }
    return OK;
}
