/* Matrix products through oneDNN: a bounded, least-recently-used cache of primitives, scratchpads counted as ours. */
#include "cpu.h"

#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <string.h>

typedef struct Key {
    int64_t m, n, k, c_step, a_step, b_step;
    int32_t dtype, c_dtype, add, a_turned, b_turned, unused;
} Key;

typedef struct Entry {
    Key key;
    dnnl_primitive_t primitive; /* NULL: the entry is free */
    dnnl_memory_desc_t c, a, b, pad;
    size_t pad_bytes;
    uint64_t used; /* the cache's clock at its last use */
    int busy;      /* calls that run it now: it is not replaced */
} Entry;

enum { ENTRIES = 256 };
static Entry entries[ENTRIES];
static uint64_t clock_now;
static dnnl_engine_t engine;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static Status check(dnnl_status_t status, const char *what) {
    if (status == dnnl_success)
        return OK;
    return fail(status == dnnl_out_of_memory ? ERR_MEMORY : ERR_UNSUPPORTED, "oneDNN refuses a matrix product: %s, status %d", what, (int)status);
}

static Status describe(dnnl_memory_desc_t *desc, Dtype dtype, int64_t rows, int64_t cols, int64_t step, int turned) {
    dnnl_dims_t dims = {rows, cols}, strides = {turned ? 1 : step, turned ? step : 1};
    return check(dnnl_memory_desc_init_by_strides(desc, 2, dims, dtype == BF16 ? dnnl_bf16 : dnnl_f32, strides), "strides");
}

static Status entry_make(Entry *e, const Key *key) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_matmul_desc_t matmul;
    Status status;
    e->key = *key;
    if ((status = describe(&e->c, (Dtype)key->c_dtype, key->m, key->n, key->c_step, 0)) != OK ||
        (status = describe(&e->a, (Dtype)key->dtype, key->m, key->k, key->a_step, key->a_turned)) != OK ||
        (status = describe(&e->b, (Dtype)key->dtype, key->k, key->n, key->b_step, key->b_turned)) != OK ||
        (status = check(dnnl_matmul_desc_init(&matmul, &e->a, &e->b, NULL, &e->c), "description")) != OK ||
        (status = check(dnnl_primitive_attr_create(&attr), "attributes")) != OK ||
        (status = check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad mode")) != OK)
        goto end;
    if (key->add && ((status = check(dnnl_post_ops_create(&ops), "post operations")) != OK ||
                     (status = check(dnnl_post_ops_append_sum(ops, 1), "sum")) != OK ||
                     (status = check(dnnl_primitive_attr_set_post_ops(attr, ops), "sum")) != OK))
        goto end;
    if ((status = check(dnnl_primitive_desc_create(&desc, &matmul, attr, engine, NULL), "shape or type")) != OK)
        goto end;
    e->pad = *dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    e->pad_bytes = dnnl_memory_desc_get_size(&e->pad);
    status = check(dnnl_primitive_create(&e->primitive, desc), "code");
end:
    if (status != OK)
        e->primitive = NULL;
    dnnl_primitive_desc_destroy(desc);
    dnnl_post_ops_destroy(ops);
    dnnl_primitive_attr_destroy(attr);
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
        status = fail(ERR_UNSUPPORTED, "more than %d matrix products at once", ENTRIES);
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
    pthread_mutex_lock(&lock);
    e->busy--;
    pthread_mutex_unlock(&lock);
}

Status dnnl_product(Matrix c, Matrix a, Matrix b, int add) {
    Key key;
    Entry *e;
    memset(&key, 0, sizeof key);
    key.m = c.rows, key.n = c.cols, key.k = a.cols;
    key.dtype = (int32_t)a.dtype, key.c_dtype = (int32_t)c.dtype, key.add = add != 0;
    key.a_turned = a.col_step != 1 && a.cols > 1, key.b_turned = b.col_step != 1 && b.cols > 1;
    key.c_step = c.row_step;
    key.a_step = key.a_turned ? a.col_step : a.row_step;
    key.b_step = key.b_turned ? b.col_step : b.row_step;
    if (!key.m || !key.n)
        return OK;
    Status status = entry_take(&e, &key);
    if (status != OK)
        return status;
    dnnl_memory_t memories[4] = {NULL};
    dnnl_stream_t stream = NULL;
    void *pad = e->pad_bytes ? scratch_alloc(e->pad_bytes) : NULL;
    if (e->pad_bytes && !pad)
        status = ERR_MEMORY;
    if (status == OK && (status = check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream")) == OK &&
        (status = check(dnnl_memory_create(&memories[0], &e->a, engine, a.data), "memory")) == OK &&
        (status = check(dnnl_memory_create(&memories[1], &e->b, engine, b.data), "memory")) == OK &&
        (status = check(dnnl_memory_create(&memories[2], &e->c, engine, c.data), "memory")) == OK &&
        (status = check(dnnl_memory_create(&memories[3], &e->pad, engine, pad), "memory")) == OK) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, memories[0]}, {DNNL_ARG_WEIGHTS, memories[1]}, {DNNL_ARG_DST, memories[2]},
                                  {DNNL_ARG_SCRATCHPAD, memories[3]}};
        status = check(dnnl_primitive_execute(e->primitive, stream, 4, args), "execution");
        if (status == OK)
            status = check(dnnl_stream_wait(stream), "execution");
    }
    for (int i = 0; i < 4; i++)
        dnnl_memory_destroy(memories[i]);
    dnnl_stream_destroy(stream);
    scratch_free(pad, e->pad_bytes);
    entry_release(e);
    return status;
}
