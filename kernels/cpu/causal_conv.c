/* A short convolution along each sequence, every channel by itself: a token sees itself and the size - 1 before it. */
#include "isa.h"

/* Weight k of channels c..c+LANES: they lie `size` apart. */
INLINE Vec weights_at(const float *w, int64_t c, int64_t channels, int64_t size, int64_t k) {
    float part[LANES] = {0};
    for (int64_t i = 0; i < LANES && c + i < channels; i++)
        part[i] = w[(c + i) * size + k];
    return vec_load(part);
}

enum { MOST = 16 }; /* weights of a channel that are held at once */

/* Channels c..c+LANES of one sequence. state (size - 1, channels) or NULL. */
static void forward(View *y, float *state, const View *x, const View *w, const float *bias, int64_t from, int64_t to, int64_t c) {
    int64_t channels = view_width(x), size = w->shape[1], left = channels - c;
    Vec add = {0};
    if (bias)
        add = vec_take(bias, F32, c, left);
    Vec taps[MOST], past[MOST]; /* past[k]: what weight k meets */
    for (int64_t k = 0; k < size; k++) {
        taps[k] = weights_at(w->data, c, channels, size, k);
        past[k] = (Vec){0};
        if (state && k > 0)
            past[k] = vec_take(state + (k - 1) * channels, F32, c, left);
    }
    for (int64_t t = from; t < to; t++) {
        for (int64_t k = 0; k + 1 < size; k++)
            past[k] = past[k + 1];
        past[size - 1] = vec_take(row_at(x, t), F32, c, left);
        Vec sum = add;
        for (int64_t k = 0; k < size; k++)
            sum += taps[k] * past[k];
        vec_give(row_at(y, t), F32, c, left, sum);
    }
    for (int64_t k = 1; state && k < size; k++)
        vec_give(state + (k - 1) * channels, F32, c, left, past[k]);
}

static Status check(const View *w) {
    if (w->shape[1] < 1 || w->shape[1] > MOST)
        return fail(ERR_UNSUPPORTED, "causal_conv: %ld weights to a channel, 1 to %d are possible", (long)w->shape[1], MOST);
    return OK;
}

Status KERNEL(causal_conv)(View *y, View *state, const View *x, const View *w, const View *bias, const View *starts) {
    int64_t channels = view_width(x), size = w->shape[1], blocks = (channels + LANES - 1) / LANES, sequences = view_count(starts) - 1;
    const int32_t *at = starts->data;
    if (check(w) != OK)
        return ERR_UNSUPPORTED;
#pragma omp parallel for schedule(static) if (view_count(x) >= 32768)
    for (int64_t i = 0; i < sequences * blocks; i++) {
        int64_t s = i / blocks;
        forward(y, state ? (float *)state->data + s * (size - 1) * channels : NULL, x, w, bias ? bias->data : NULL, at[s], at[s + 1],
                i % blocks * LANES);
    }
    return OK;
}

/* dx of channels c..c+LANES of one sequence: the mirrored convolution. */
static void input_backward(View *dx, const View *dy, const View *w, int64_t from, int64_t to, int64_t c) {
    int64_t channels = view_width(dx), size = w->shape[1], left = channels - c;
    Vec taps[MOST], next[MOST] = {{0}}; /* next[k]: the dy that met the token through weight k */
    for (int64_t k = 0; k < size; k++)
        taps[k] = weights_at(w->data, c, channels, size, k);
    for (int64_t t = to - 1; t >= from; t--) {
        for (int64_t k = 0; k + 1 < size; k++)
            next[k] = next[k + 1];
        next[size - 1] = vec_take(row_at(dy, t), F32, c, left);
        Vec sum = {0};
        for (int64_t k = 0; k < size; k++)
            sum += taps[k] * next[k];
        vec_give(row_at(dx, t), F32, c, left, sum);
    }
}

/* dw and dbias of channels c..c+LANES, each tile's sum apart; tiles know where their sequence begins. */
static void weight_backward(float *dw, float *dbias, const View *dy, const View *x, int64_t size, const int32_t *tiles, int64_t count,
                            const int32_t *starts, int64_t c) {
    int64_t channels = view_width(x), left = channels - c;
    const int32_t *start = starts;
    for (int64_t t = 0; t < count; t++) {
        Vec sum[MOST] = {{0}}, total = {0};
        while (start[1] <= tiles[t])
            start++;
        for (int64_t r = tiles[t]; r < tiles[t + 1]; r++) {
            Vec d = vec_take(row_at(dy, r), F32, c, left);
            total += d;
            for (int64_t k = 0; k < size; k++)
                if (r - size + 1 + k >= *start)
                    sum[k] += d * vec_take(row_at(x, r - size + 1 + k), F32, c, left);
        }
        for (int64_t i = 0; i < LANES && i < left; i++) {
            for (int64_t k = 0; dw && k < size; k++)
                dw[(c + i) * size + k] += sum[k][i];
            if (dbias)
                dbias[c + i] += total[i];
        }
    }
}

Status KERNEL(causal_conv_backward)(View *dx, View *dw, View *dbias, const View *dy, const View *x, const View *w, const View *starts) {
    int64_t channels = view_width(x), blocks = (channels + LANES - 1) / LANES, sequences = view_count(starts) - 1, count;
    const int32_t *at = starts->data;
    int32_t *tiles;
    size_t bytes;
    if (check(w) != OK)
        return ERR_UNSUPPORTED;
    Status status = tiles_make(&tiles, &count, &bytes, starts, view_rows(x));
    if (status != OK || scratch_only())
        return status == OK ? scratch_free(tiles, bytes), OK : status;
#pragma omp parallel for schedule(static) if (view_count(x) >= 32768)
    for (int64_t i = 0; i < sequences * blocks; i++)
        input_backward(dx, dy, w, at[i / blocks], at[i / blocks + 1], i % blocks * LANES);
    if (dw || dbias) {
#pragma omp parallel for schedule(static) if (view_count(x) >= 32768)
        for (int64_t i = 0; i < blocks; i++)
            weight_backward(dw ? dw->data : NULL, dbias ? dbias->data : NULL, dy, x, w->shape[1], tiles, count, at, i * LANES);
    }
    scratch_free(tiles, bytes);
    return OK;
}
