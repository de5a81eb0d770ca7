#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"

#define LIMIT_FORMAT UINT64_C(100000000) /* the format's own limit on a header */
#define LIMIT_SMALL (UINT64_C(16) << 20) /* ours, unless the file is so large that its header may be */
#define HEADER_SHARE 32 /* parsing takes about 40 bytes of heap for each byte: never much more than the file itself */

static const struct { const char *name; size_t bytes; } dtypes[] = {
    {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1}, {"U64", 8}, {"U32", 4},
    {"U16", 2}, {"U8", 1}, {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"C64", 8}};

static const char *known_dtype(const char *name) {
    for (size_t i = 0; name && i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (!strcmp(dtypes[i].name, name))
            return dtypes[i].name;
    return NULL;
}

size_t safetensors_element(const char *dtype) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (!strcmp(dtypes[i].name, dtype))
            return dtypes[i].bytes;
    return 0;
}

/* What people pass by mistake: said by name, since "bad header" would not help them. */
static Status check_magic(const unsigned char *head, size_t n, const char *path) {
    if (n >= 7 && !memcmp(head, "version", 7))
        return fail(ERR_FORMAT, "%s: this is a Git LFS pointer, not the model; fetch the file itself (git lfs pull)", path);
    if (n >= 4 && !memcmp(head, "PK\3\4", 4))
        return fail(ERR_FORMAT, "%s: this is a PyTorch (zip, pickle) file, which could run code when read; convert it with "
                                "safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)", path);
    if (n >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5 && head[7])
        return fail(ERR_FORMAT, "%s: this is a Python pickle, which could run code when read; convert it with "
                                "safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)", path);
    if (n >= 4 && !memcmp(head, "GGUF", 4))
        return fail(ERR_FORMAT, "%s: this is a GGUF file; safetensors is expected", path);
    return OK;
}

static Status read_shape(const cJSON *shape, const char *path, Entry *e, uint64_t *elements) {
    *elements = 1;
    if (!cJSON_IsArray(shape))
        return fail(ERR_FORMAT, "%s: tensor '%.200s' has no shape", path, e->name);
    for (const cJSON *c = shape->child; c; c = c->next) {
        int64_t size;
        if (e->dims == MAX_TENSOR_DIMS)
            return fail(ERR_FORMAT, "%s: tensor '%.200s' has more than %d dimensions", path, e->name, MAX_TENSOR_DIMS);
        if (!cJSON_IsNumber(c))
            return fail(ERR_FORMAT, "%s: tensor '%.200s': its shape should be a list of integers", path, e->name);
        if (!json_integer(c, &size) || signbit(c->valuedouble) || size > (INT64_C(1) << 48) - 1)
            return fail(ERR_FORMAT, "%s: tensor '%.200s': size %.17g is not an integer in 0..2^48-1", path, e->name, c->valuedouble);
        if (__builtin_mul_overflow(*elements, (uint64_t)size, elements))
            return fail(ERR_FORMAT, "%s: tensor '%.200s': the shape's product overflows", path, e->name);
        e->shape[e->dims++] = size;
    }
    return OK;
}

static Status read_entry(const cJSON *item, const char *path, uint64_t data, uint64_t size, Entry *e) {
    uint64_t elements, bytes;
    int64_t offset[2] = {0, 0};
    if (!(e->name = strdup(item->string)))
        return fail(ERR_MEMORY, "%s: out of memory", path);
    if (!cJSON_IsObject(item))
        return fail(ERR_FORMAT, "%s: tensor '%.200s': an object is expected", path, e->name);
    const cJSON *dtype = json_get(item, "dtype"), *offsets = json_get(item, "data_offsets");
    if (!cJSON_IsString(dtype))
        return fail(ERR_FORMAT, "%s: tensor '%.200s' has no dtype", path, e->name);
    if (!(e->dtype = known_dtype(dtype->valuestring)))
        return fail(ERR_FORMAT, "%s: tensor '%.200s': unknown dtype '%.40s'", path, e->name, dtype->valuestring);
    Status status = read_shape(json_get(item, "shape"), path, e, &elements);
    if (status != OK)
        return status;
    int n = 0;
    for (const cJSON *c = cJSON_IsArray(offsets) ? offsets->child : NULL; c; c = c->next, n++)
        if (n >= 2 || !json_integer(c, &offset[n]) || offset[n] < 0)
            return fail(ERR_FORMAT, "%s: tensor '%.200s': data_offsets are two integers", path, e->name);
    if (n != 2)
        return fail(ERR_FORMAT, "%s: tensor '%.200s': data_offsets are two integers", path, e->name);
    if (offset[1] < offset[0] || (uint64_t)offset[1] > size - data)
        return fail(ERR_FORMAT, "%s: tensor '%.200s' lies at %lld..%lld, the file holds %llu bytes of data", path, e->name,
                    (long long)offset[0], (long long)offset[1], (unsigned long long)(size - data));
    e->bytes = (uint64_t)(offset[1] - offset[0]);
    e->offset = data + (uint64_t)offset[0];
    if (__builtin_mul_overflow(elements, (uint64_t)safetensors_element(e->dtype), &bytes) || bytes != e->bytes)
        return fail(ERR_FORMAT, "%s: tensor '%.200s': its shape needs %llu elements of %s, its offsets hold %llu bytes", path,
                    e->name, (unsigned long long)elements, e->dtype, (unsigned long long)e->bytes);
    return OK;
}

static Status read_metadata(const cJSON *item, const char *path, Header *h) {
    size_t pairs = (size_t)cJSON_GetArraySize(item);
    if (!cJSON_IsObject(item))
        return fail(ERR_FORMAT, "%s: __metadata__ should map strings to strings", path);
    if (!(h->metadata = calloc(pairs * 2 + 1, sizeof *h->metadata)))
        return fail(ERR_MEMORY, "%s: out of memory", path);
    for (const cJSON *c = item->child; c; c = c->next) {
        if (!cJSON_IsString(c))
            return fail(ERR_FORMAT, "%s: __metadata__ '%.200s' is not a string", path, c->string);
        char **pair = h->metadata + 2 * h->metadata_count++;
        if (!(pair[0] = strdup(c->string)) || !(pair[1] = strdup(c->valuestring)))
            return fail(ERR_MEMORY, "%s: out of memory", path);
    }
    return OK;
}

static int by_offset(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* an empty tensor first */
}

static Status read_entries(const cJSON *root, const char *path, uint64_t data, uint64_t size, Header *h) {
    if (!cJSON_IsObject(root))
        return fail(ERR_FORMAT, "%s: the header should be a JSON object", path);
    if (!(h->entries = calloc((size_t)cJSON_GetArraySize(root) + 1, sizeof *h->entries)))
        return fail(ERR_MEMORY, "%s: out of memory", path);
    for (const cJSON *c = root->child; c; c = c->next) {
        Status status = strcmp(c->string, "__metadata__") ? read_entry(c, path, data, size, &h->entries[h->count++])
                                                         : read_metadata(c, path, h);
        if (status != OK)
            return status;
    }
    qsort(h->entries, h->count, sizeof *h->entries, by_offset);
    uint64_t at = data;
    for (size_t i = 0; i < h->count; i++) {
        if (h->entries[i].offset != at)
            return fail(ERR_FORMAT, "%s: tensor '%.200s' begins at %llu, expected %llu: tensors may neither overlap nor leave holes",
                        path, h->entries[i].name, (unsigned long long)(h->entries[i].offset - data), (unsigned long long)(at - data));
        at += h->entries[i].bytes;
    }
    if (at != size)
        return fail(ERR_FORMAT, "%s: the tensors end at byte %llu, the file at %llu", path, (unsigned long long)at, (unsigned long long)size);
    return OK;
}

/* The format knows whole numbers only; once parsed, 2.0 and 20e-1 look like 2. The text is valid JSON here. */
static Status check_numbers(const char *text, size_t length, const char *path) {
    int quoted = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i], before = i ? text[i - 1] : 0;
        if (quoted)
            quoted = c != '"', i += c == '\\';
        else if (c == '"')
            quoted = 1;
        else if (before >= '0' && before <= '9' && (c == '.' || c == 'e' || c == 'E'))
            return fail(ERR_FORMAT, "%s: byte %zu: the header holds a number that is not written as an integer", path, i + 8);
    }
    return OK;
}

Status safetensors_header(int fd, const char *path, uint64_t size, Header *out) {
    unsigned char head[8];
    *out = (Header){0};
    if (size < 8)
        return fail(ERR_FORMAT, "%s: %llu bytes are too few for a safetensors file", path, (unsigned long long)size);
    Status status = file_read_at(fd, path, 0, head, 8);
    if (status == OK)
        status = check_magic(head, 8, path);
    if (status != OK)
        return status;
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | head[i];
    uint64_t limit = size / HEADER_SHARE;
    limit = limit < LIMIT_SMALL ? LIMIT_SMALL : limit > LIMIT_FORMAT ? LIMIT_FORMAT : limit;
    if (length > size - 8)
        return fail(ERR_FORMAT, "%s: no safetensors file: its first 8 bytes announce a header of %llu bytes, the file has %llu", path,
                    (unsigned long long)length, (unsigned long long)size);
    if (length > limit)
        return fail(ERR_FORMAT, "%s: a header of %llu bytes, at most %llu are read from a file of this size", path, (unsigned long long)length,
                    (unsigned long long)limit);
    char *text = malloc((size_t)length + 1);
    if (!text)
        return fail(ERR_MEMORY, "%s: out of memory", path);
    cJSON *root = NULL;
    status = file_read_at(fd, path, 8, text, (size_t)length);
    if (status == OK && (!length || text[0] != '{'))
        status = fail(ERR_FORMAT, "%s: no safetensors file: the header should begin with '{'", path);
    if (status == OK)
        status = json_parse(text, (size_t)length, path, &root);
    if (status == OK)
        status = check_numbers(text, (size_t)length, path);
    if (status == OK)
        status = read_entries(root, path, 8 + length, size, out);
    cJSON_Delete(root);
    free(text);
    if (status != OK)
        safetensors_free(out);
    return status;
}

void safetensors_free(Header *h) {
    for (size_t i = 0; i < h->count; i++)
        free(h->entries[i].name);
    for (size_t i = 0; i < 2 * h->metadata_count; i++)
        free(h->metadata[i]);
    free(h->entries);
    free(h->metadata);
    *h = (Header){0};
}
