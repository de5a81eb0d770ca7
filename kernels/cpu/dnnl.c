/* Convolution through oneDNN, in the plain (n, c, h, w) layout.
 *
 * oneDNN cuts the work by the number of threads, and with it the order of its sums. So the cut is made here, by the shapes
 * alone: a unit is one image and a piece of the channels, one thread runs it from start to end, and the gradient of the
 * weights adds image after image. Primitives are made for one thread and kept in a bounded, least-recently-used cache. */
#include "cpu.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <string.h>

typedef enum Pass { FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS } Pass;

/* What a unit computes: `in` and `out` channels of one image. */
typedef struct Key {
    Pass pass;
    int32_t bias;
    int64_t in, out, groups, size[2], out_size[2], kernel[2], stride[2], dilation[2], padding[4];
} Key;

typedef struct Entry {
    Key key;
    dnnl_primitive_t primitive; /* NULL: the entry is free */
    dnnl_memory_desc_t x, w, bias, y, pad;
    size_t pad_bytes;
    uint64_t used; /* the cache's clock at its last use */
    int busy;      /* calls that run it now: it is not replaced */
} Entry;

enum { ENTRIES = 256, PIECE = 64 /* output channels of a unit, where it can be chosen */ };
static Entry entries[ENTRIES];
static uint64_t clock_now;
static dnnl_engine_t engine;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static Status check(dnnl_status_t status, const char *what) {
    if (status == dnnl_success)
        return OK;
    return fail(status == dnnl_out_of_memory ? ERR_MEMORY : ERR_UNSUPPORTED, "oneDNN refuses a convolution: %s, status %d", what, (int)status);
}

static dnnl_status_t describe(Entry *e, const Key *k) {
    dnnl_dims_t x = {1, k->in, k->size[0], k->size[1]}, y = {1, k->out, k->out_size[0], k->out_size[1]}, bias = {k->out};
    dnnl_dims_t plain = {k->out, k->in, k->kernel[0], k->kernel[1]};
    dnnl_dims_t grouped = {k->groups, k->out / k->groups, k->in / k->groups, k->kernel[0], k->kernel[1]};
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&e->x, 4, x, dnnl_f32, dnnl_nchw);
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_tag(&e->y, 4, y, dnnl_f32, dnnl_nchw);
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_tag(&e->bias, 1, bias, dnnl_f32, dnnl_a);
    if (status == dnnl_success)
        status = k->groups == 1 ? dnnl_memory_desc_init_by_tag(&e->w, 4, plain, dnnl_f32, dnnl_oihw)
                                : dnnl_memory_desc_init_by_tag(&e->w, 5, grouped, dnnl_f32, dnnl_goihw);
    return status;
}

static dnnl_status_t describe_pass(dnnl_convolution_desc_t *conv, const Entry *e, const Key *k) {
    const dnnl_alg_kind_t direct = dnnl_convolution_direct;
    /* Arrays of oneDNN's own length, as its header declares them. */
    dnnl_dims_t stride = {k->stride[0], k->stride[1]}, dilates = {k->dilation[0] - 1, k->dilation[1] - 1};
    dnnl_dims_t before = {k->padding[0], k->padding[1]}, after = {k->padding[2], k->padding[3]};
    switch (k->pass) {
    case FORWARD:
        return dnnl_dilated_convolution_forward_desc_init(conv, dnnl_forward_inference, direct, &e->x, &e->w, k->bias ? &e->bias : NULL,
                                                          &e->y, stride, dilates, before, after);
    case BACKWARD_DATA:
        return dnnl_dilated_convolution_backward_data_desc_init(conv, direct, &e->x, &e->w, &e->y, stride, dilates, before, after);
    default:
        return dnnl_dilated_convolution_backward_weights_desc_init(conv, direct, &e->x, &e->w, NULL, &e->y, stride, dilates, before,
                                                                   after);
    }
}

static Status entry_make(Entry *e, const Key *key) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_convolution_desc_t conv;
    Status status;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* oneDNN asks how many there are when it makes a primitive */
    e->key = *key;
    if ((status = check(describe(e, key), "shape")) == OK && (status = check(describe_pass(&conv, e, key), "geometry")) == OK &&
        (status = check(dnnl_primitive_attr_create(&attr), "attributes")) == OK &&
        (status = check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad mode")) == OK &&
        (status = check(dnnl_primitive_desc_create(&desc, &conv, attr, engine, NULL), "description")) == OK) {
        e->pad = *dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
        e->pad_bytes = (dnnl_memory_desc_get_size(&e->pad) + 63) / 64 * 64;
        status = check(dnnl_primitive_create(&e->primitive, desc), "code");
    }
    if (status != OK)
        e->primitive = NULL;
    dnnl_primitive_desc_destroy(desc);
    dnnl_primitive_attr_destroy(attr);
    omp_set_num_threads(threads);
    return status;
}

/* The entry for `key`, marked busy until entry_release(). */
static Status entry_take(Entry **found, const Key *key) {
    Status status = OK;
    Entry *e = NULL;
    pthread_mutex_lock(&lock);
    if (!engine)
        status = check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine");
    for (int i = 0; i < ENTRIES && status == OK; i++) {
        if (entries[i].primitive && !memcmp(&entries[i].key, key, sizeof *key)) {
            e = &entries[i];
            break;
        }
        if (!entries[i].busy && (!e || entries[i].used < e->used))
            e = &entries[i];
    }
    if (status == OK && !e)
        status = fail(ERR_UNSUPPORTED, "more than %d convolutions at once", ENTRIES);
    if (status == OK && (!e->primitive || memcmp(&e->key, key, sizeof *key))) {
        if (e->primitive)
            dnnl_primitive_destroy(e->primitive);
        e->primitive = NULL;
        e->used = 0;
        status = entry_make(e, key);
    }
    if (status == OK) {
        e->busy++;
        e->used = ++clock_now;
        *found = e;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

static void entry_release(Entry *e) {
    if (!e)
        return;
    pthread_mutex_lock(&lock);
    e->busy--;
    pthread_mutex_unlock(&lock);
}

/* Runs a unit on the calling thread. */
static dnnl_status_t execute(const Entry *e, const float *x, const float *w, const float *bias, const float *y, char *pad) {
    static const int names[][4] = {
        [FORWARD] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_BIAS},
        [BACKWARD_DATA] = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST},
        [BACKWARD_WEIGHTS] = {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST},
    };
    const dnnl_memory_desc_t *descs[] = {&e->x, &e->w, &e->y, &e->pad, &e->bias};
    const void *data[] = {x, w, y, pad, bias};
    dnnl_exec_arg_t args[5];
    dnnl_memory_t memories[5] = {NULL};
    dnnl_stream_t stream = NULL;
    int count = e->key.bias ? 5 : 4;
    dnnl_status_t status = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    for (int i = 0; i < count && status == dnnl_success; i++) {
        status = dnnl_memory_create(&memories[i], descs[i], engine, (void *)data[i]);
        args[i] = (dnnl_exec_arg_t){i == 3 ? DNNL_ARG_SCRATCHPAD : names[e->key.pass][i == 4 ? 3 : i], memories[i]};
    }
    if (status == dnnl_success)
        status = dnnl_primitive_execute(e->primitive, stream, count, args);
    if (status == dnnl_success)
        status = dnnl_stream_wait(stream);
    for (int i = 0; i < count; i++)
        dnnl_memory_destroy(memories[i]);
    dnnl_stream_destroy(stream);
    return status;
}

/* A pass cut into pieces of the channels: runs of whole groups, or output channels of the only group. Two entries: the last
 * piece may be smaller. */
typedef struct Cut {
    Key key;
    int64_t pieces, group_in, group_out, piece; /* piece: groups, or output channels if there is one group */
    Entry *whole, *last;
    char *scratch;
    size_t bytes, per_thread;
} Cut;

static void cut_free(Cut *cut) {
    entry_release(cut->whole);
    entry_release(cut->last);
    scratch_free(cut->scratch, cut->bytes);
}

static Key piece_key(const Cut *cut, int64_t size) {
    Key key = cut->key;
    key.in = cut->key.groups == 1 ? cut->group_in : size * cut->group_in;
    key.out = cut->key.groups == 1 ? size : size * cut->group_out;
    key.groups = cut->key.groups == 1 ? 1 : size;
    return key;
}

/* Every thread gets `extra` bytes in front of its scratchpad. */
static Status cut_make(Cut *cut, Pass pass, const View *x, const View *w, const View *y, int bias, const Conv *conv) {
    memset(cut, 0, sizeof *cut);
    Key *k = &cut->key;
    k->pass = pass, k->bias = bias, k->groups = conv->groups;
    for (int i = 0; i < 2; i++) {
        k->size[i] = x->shape[2 + i], k->out_size[i] = y->shape[2 + i], k->kernel[i] = w->shape[2 + i];
        k->stride[i] = conv->stride[i], k->dilation[i] = conv->dilation[i];
    }
    memcpy(k->padding, conv->padding, sizeof k->padding);
    cut->group_in = w->shape[1], cut->group_out = w->shape[0] / conv->groups;
    int64_t all = conv->groups;
    if (conv->groups > 1) {
        cut->piece = cut->group_out < PIECE ? PIECE / cut->group_out : 1;
    } else {
        all = cut->group_out;
        cut->piece = pass == BACKWARD_DATA ? all : PIECE; /* its sum goes over the output channels */
    }
    cut->piece = cut->piece < all ? cut->piece : all;
    cut->pieces = (all + cut->piece - 1) / cut->piece;
    Key whole = piece_key(cut, cut->piece), last = piece_key(cut, all - (cut->pieces - 1) * cut->piece);
    Status status = entry_take(&cut->whole, &whole);
    if (status == OK)
        status = entry_take(&cut->last, &last);
    if (status == OK) {
        size_t pad = cut->whole->pad_bytes > cut->last->pad_bytes ? cut->whole->pad_bytes : cut->last->pad_bytes;
        size_t extra = pass == BACKWARD_WEIGHTS ? (dnnl_memory_desc_get_size(&cut->whole->w) + 63) / 64 * 64 : 0;
        cut->per_thread = pad + extra;
        cut->bytes = cut->per_thread * (size_t)omp_get_max_threads();
        if (cut->bytes && !(cut->scratch = scratch_alloc(cut->bytes)))
            status = ERR_MEMORY;
    }
    if (status != OK)
        cut_free(cut);
    return status;
}

/* Offsets, in elements, of piece p of one image in x, w (and its gradient), y; for bias, the first channel. */
static int64_t piece_in(const Cut *cut, int64_t p) { return cut->key.groups == 1 ? 0 : p * cut->piece * cut->group_in; }
static int64_t piece_out(const Cut *cut, int64_t p) { return p * cut->piece * (cut->key.groups == 1 ? 1 : cut->group_out); }
static char *own_scratch(const Cut *cut) {
    return cut->scratch ? cut->scratch + cut->per_thread * (size_t)omp_get_thread_num() : NULL;
}

/* Forward and backward for x: every unit writes its own part. */
static Status run_units(Pass pass, const View *x, const View *w, const View *bias, const View *y, const Conv *conv) {
    Cut cut;
    Status status = cut_make(&cut, pass, x, w, y, bias != NULL, conv);
    if (status != OK || scratch_only())
        return status == OK ? cut_free(&cut), OK : status;
    int64_t x_plane = x->shape[2] * x->shape[3], y_plane = y->shape[2] * y->shape[3], w_out = w->shape[1] * w->shape[2] * w->shape[3];
    int64_t units = x->shape[0] * cut.pieces;
    dnnl_status_t worst = dnnl_success;
    /* Always in a region, however few the units: inside one oneDNN keeps to the calling thread. */
#pragma omp parallel for schedule(dynamic)
    for (int64_t unit = 0; unit < units; unit++) {
        int64_t image = unit / cut.pieces, p = unit % cut.pieces, in = piece_in(&cut, p), out = piece_out(&cut, p);
        dnnl_status_t got = execute(p + 1 < cut.pieces ? cut.whole : cut.last, (float *)x->data + (image * x->shape[1] + in) * x_plane,
                                    (float *)w->data + out * w_out, bias ? (float *)bias->data + out : NULL,
                                    (float *)y->data + (image * y->shape[1] + out) * y_plane, own_scratch(&cut));
        if (got != dnnl_success) {
#pragma omp critical
            worst = got;
        }
    }
    cut_free(&cut);
    return check(worst, "execution");
}

Status dnnl_conv(View *y, const View *x, const View *w, const View *bias, const Conv *conv) {
    return run_units(FORWARD, x, w, bias, y, conv);
}

Status dnnl_conv_backward_data(View *dx, const View *dy, const View *w, const Conv *conv) {
    return run_units(BACKWARD_DATA, dx, w, NULL, dy, conv);
}

Status dnnl_conv_backward_weights(View *dw, const View *dy, const View *x, const View *w, const Conv *conv) {
    Cut cut;
    Status status = cut_make(&cut, BACKWARD_WEIGHTS, x, w, dy, 0, conv);
    if (status != OK || scratch_only())
        return status == OK ? cut_free(&cut), OK : status;
    int64_t x_plane = x->shape[2] * x->shape[3], y_plane = dy->shape[2] * dy->shape[3], w_out = w->shape[1] * w->shape[2] * w->shape[3];
    dnnl_status_t worst = dnnl_success;
#pragma omp parallel for schedule(dynamic)
    for (int64_t p = 0; p < cut.pieces; p++) {
        int64_t in = piece_in(&cut, p), out = piece_out(&cut, p);
        const Entry *e = p + 1 < cut.pieces ? cut.whole : cut.last;
        float *sum = (float *)dw->data + out * w_out, *part = (float *)(void *)own_scratch(&cut);
        char *pad = (char *)part + (dnnl_memory_desc_get_size(&cut.whole->w) + 63) / 64 * 64;
        for (int64_t image = 0; image < x->shape[0]; image++) {
            dnnl_status_t got = execute(e, (float *)x->data + (image * x->shape[1] + in) * x_plane, part, NULL,
                                        (float *)dy->data + (image * dy->shape[1] + out) * y_plane, pad);
            if (got != dnnl_success) {
#pragma omp critical
                worst = got;
                break;
            }
            for (int64_t i = 0; i < e->key.out * w_out; i++)
                sum[i] += part[i];
        }
    }
    cut_free(&cut);
    return check(worst, "execution");
}
