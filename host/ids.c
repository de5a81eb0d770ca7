#include "ids.h"

#include <stdlib.h>
#include <string.h>

Status ids_reserve(Ids *ids, size_t more) {
    if (more <= ids->capacity - ids->count)
        return OK;
    if (more > SIZE_MAX / 16 - ids->capacity)
        return fail(ERR_MEMORY, "more than %zu token ids", SIZE_MAX / 16);
    size_t capacity = ids->count + more + ids->capacity / 2 + 16;
    int32_t *data = realloc(ids->data, capacity * sizeof *data);
    if (!data)
        return fail(ERR_MEMORY, "no memory for %zu token ids", capacity);
    ids->data = data;
    ids->capacity = capacity;
    return OK;
}

Status ids_append(Ids *ids, const int32_t *more, size_t n) {
    int inside = ids->data && more >= ids->data && more < ids->data + ids->count;
    size_t offset = inside ? (size_t)(more - ids->data) : 0;
    Status status = ids_reserve(ids, n);
    if (status != OK || n == 0)
        return status;
    memmove(ids->data + ids->count, inside ? ids->data + offset : more, n * sizeof *more);
    ids->count += n;
    return OK;
}

void ids_free(Ids *ids) {
    free(ids->data);
    *ids = (Ids){0};
}
