#include "tensor.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct Storage {
    atomic_int references;
    void *data;
    size_t bytes; /* as the pool gave it */
    Memory *pool; /* NULL: the memory is somebody else's, and may come and go */
};

/* A view of all of a storage that is still to come; *bytes: what it takes. */
static Status lay_out(Tensor *t, Dtype dtype, int dims, const int64_t *shape, size_t *total) {
    memset(t, 0, sizeof *t);
    size_t bytes = dtype_size(dtype);
    if (dims < 0 || dims > MAX_DIMS)
        return fail(ERR_ARGUMENT, "a tensor has at most %d dimensions, not %d", MAX_DIMS, dims);
    for (int i = 0; i < dims; i++) {
        if (shape[i] < 0)
            return fail(ERR_ARGUMENT, "dimension %d has the negative size %lld", i + 1, (long long)shape[i]);
        if (__builtin_mul_overflow(bytes, (size_t)shape[i], &bytes) || bytes > PTRDIFF_MAX)
            return fail(ERR_ARGUMENT, "the shape's product overflows");
    }
    t->view.dtype = dtype;
    t->view.dims = dims;
    int64_t step = 1;
    for (int i = dims - 1; i >= 0; i--) {
        t->view.shape[i] = shape[i];
        t->view.stride[i] = step;
        step *= shape[i] ? shape[i] : 1;
    }
    *total = bytes;
    return OK;
}

Status tensor_declare(Tensor *t, Dtype dtype, int dims, const int64_t *shape) {
    size_t bytes = 0;
    Status status = lay_out(t, dtype, dims, shape, &bytes);
    if (status != OK)
        return status;
    if (!(t->storage = malloc(sizeof *t->storage)))
        return fail(ERR_MEMORY, "out of memory");
    *t->storage = (Storage){.references = 1, .bytes = bytes};
    return OK;
}

int tensor_phantom(const Tensor *t) { return t->storage && t->storage->pool == memory_dry(); }

Status tensor_make(Tensor *t, Dtype dtype, int dims, const int64_t *shape) { return tensor_make_in(t, memory_cpu(), dtype, dims, shape); }

Status tensor_make_in(Tensor *t, Memory *pool, Dtype dtype, int dims, const int64_t *shape) {
    Status status = tensor_declare(t, dtype, dims, shape);
    if (status != OK)
        return status;
    Storage *s = t->storage;
    s->pool = pool;
    status = memory_alloc(s->pool, &s->bytes, &s->data);
    if (status != OK) {
        free(s);
        t->storage = NULL;
        return status;
    }
    t->view.data = s->data;
    return OK;
}

void tensor_bind(Tensor *t, void *memory) {
    t->storage->data = memory;
    tensor_present(t);
}

int tensor_present(Tensor *t) {
    char *data = t->storage->data;
    t->view.data = data ? data + t->offset : NULL;
    return data != NULL;
}

void tensor_share(Tensor *t, const Tensor *base) {
    *t = *base;
    if (t->storage)
        atomic_fetch_add(&t->storage->references, 1);
}

void tensor_free(Tensor *t) {
    Storage *s = t->storage;
    t->storage = NULL;
    t->view.data = NULL;
    if (s && atomic_fetch_sub(&s->references, 1) == 1) {
        if (s->pool)
            memory_free(s->pool, s->data, s->bytes);
        free(s);
    }
}

size_t tensor_bytes(const Tensor *t) { return (size_t)view_count(&t->view) * dtype_size(t->view.dtype); }

size_t tensor_room(const Tensor *t) { return t->storage->bytes - (size_t)((char *)t->view.data - (char *)t->storage->data); }

int tensor_contiguous(const Tensor *t) {
    int64_t step = 1;
    if (!view_count(&t->view))
        return 1;
    for (int i = t->view.dims - 1; i >= 0; i--) {
        if (t->view.shape[i] != 1 && t->view.stride[i] != step)
            return 0;
        step *= t->view.shape[i];
    }
    return 1;
}

/* Strides that show `v`'s elements under another shape without a copy; 0 if there are none. Walks both shapes from the
 * back, matching runs of dimensions that are contiguous among themselves. */
static int restride(const View *v, int dims, const int64_t *shape, int64_t *stride) {
    int from = v->dims - 1, to = dims - 1;
    while (from >= 0 || to >= 0) {
        int64_t have = from >= 0 ? v->shape[from] : 1, want = 1;
        int64_t step = from >= 0 ? v->stride[from] : 1, run = step;
        from--;
        while (from >= 0 && (v->shape[from] == 1 || v->stride[from] == step * have))
            have *= v->shape[from--];
        while (to >= 0 && want < have) {
            stride[to] = run;
            run *= shape[to];
            want *= shape[to--];
        }
        while (to >= 0 && shape[to] == 1)
            stride[to--] = run;
        if (want != have)
            return 0;
    }
    return 1;
}

Status tensor_reshape(Tensor *t, int dims, const int64_t *shape) {
    int64_t sizes[MAX_DIMS], steps[MAX_DIMS], product = 1, count = view_count(&t->view);
    int open = -1;
    if (dims > MAX_DIMS)
        return fail(ERR_ARGUMENT, "a tensor has at most %d dimensions, not %d", MAX_DIMS, dims);
    for (int i = 0; i < dims; i++) {
        sizes[i] = shape[i];
        if (shape[i] == -1 && open < 0)
            open = i;
        else if (shape[i] < 0 || __builtin_mul_overflow(product, shape[i], &product))
            return fail(ERR_ARGUMENT, "size %lld of dimension %d is not valid", (long long)shape[i], i + 1);
    }
    if (open >= 0)
        product *= sizes[open] = product ? count / product : 0;
    if (product != count)
        return fail(ERR_ARGUMENT, "%lld elements do not fill a shape of %lld", (long long)count, (long long)product);
    if (!count || tensor_contiguous(t)) {
        int64_t step = 1;
        for (int i = dims - 1; i >= 0; i--) {
            steps[i] = step;
            step *= sizes[i] ? sizes[i] : 1;
        }
    } else if (!restride(&t->view, dims, sizes, steps)) {
        return fail(ERR_ARGUMENT, "this view's elements do not lie so that they can be reshaped; use :contiguous() first");
    }
    t->view.dims = dims;
    for (int i = 0; i < dims; i++)
        t->view.shape[i] = sizes[i], t->view.stride[i] = steps[i];
    return OK;
}

Status tensor_narrow(Tensor *t, int dim, int64_t start, int64_t length) {
    View *v = &t->view;
    if (dim < 0 || dim >= v->dims)
        return fail(ERR_ARGUMENT, "there is no dimension %d in a tensor of %d", dim + 1, v->dims);
    if (start < 0 || length < 0 || start > v->shape[dim] || length > v->shape[dim] - start)
        return fail(ERR_ARGUMENT, "%lld elements from %lld do not lie in dimension %d of size %lld", (long long)length,
                    (long long)start + 1, dim + 1, (long long)v->shape[dim]);
    size_t skipped = (size_t)(start * v->stride[dim]) * dtype_size(v->dtype);
    t->offset += skipped;
    if (v->data)
        v->data = (char *)v->data + skipped;
    v->shape[dim] = length;
    return OK;
}

Status tensor_transpose(Tensor *t, int first, int second) {
    View *v = &t->view;
    if (first < 0 || second < 0 || first >= v->dims || second >= v->dims)
        return fail(ERR_ARGUMENT, "dimensions %d and %d are not both in a tensor of %d", first + 1, second + 1, v->dims);
    int64_t size = v->shape[first], step = v->stride[first];
    v->shape[first] = v->shape[second], v->stride[first] = v->stride[second];
    v->shape[second] = size, v->stride[second] = step;
    return OK;
}

Status tensor_expand(Tensor *t, int dims, const int64_t *shape) {
    View v = t->view;
    int lead = dims - v.dims;
    if (lead < 0 || dims > MAX_DIMS)
        return fail(ERR_ARGUMENT, "cannot broadcast %d dimensions to %d", v.dims, dims);
    for (int i = dims - 1; i >= 0; i--) {
        int64_t size = i >= lead ? t->view.shape[i - lead] : 1, step = i >= lead ? t->view.stride[i - lead] : 0;
        if (size != shape[i] && size != 1)
            return fail(ERR_ARGUMENT, "size %lld does not broadcast to %lld in dimension %d", (long long)size,
                        (long long)shape[i], i + 1);
        v.shape[i] = shape[i];
        v.stride[i] = size == 1 && shape[i] != 1 ? 0 : step;
    }
    v.dims = dims;
    t->view = v;
    return OK;
}

const char *tensor_shape_text(const Tensor *t, char *text, size_t room) {
    int n = snprintf(text, room, "%s (", dtype_name(t->view.dtype));
    for (int i = 0; i < t->view.dims && n > 0 && (size_t)n < room; i++)
        n += snprintf(text + n, room - (size_t)n, "%s%lld", i ? ", " : "", (long long)t->view.shape[i]);
    if (n > 0 && (size_t)n < room)
        snprintf(text + n, room - (size_t)n, ")");
    return text;
}

int dtype_from_name(const char *name) {
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (!strcasecmp(name, dtype_name((Dtype)d)))
            return d;
    return -1;
}
