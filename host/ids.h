/* Ids: a growable run of token ids. A zeroed Ids is empty. */
#ifndef ONN_IDS_H
#define ONN_IDS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct Ids {
    int32_t *data;
    size_t count, capacity;
} Ids;

/* ids_reserve() : room for `more` ids beyond the count. */
Status ids_reserve(Ids *ids, size_t more);

/* ids_append() : adds n ids; `more` may lie in `ids` itself. */
Status ids_append(Ids *ids, const int32_t *more, size_t n);

static inline Status ids_push(Ids *ids, int32_t id) {
    if (ids->count < ids->capacity) {
        ids->data[ids->count++] = id;
        return OK;
    }
    return ids_append(ids, &id, 1);
}

void ids_free(Ids *ids);

#endif
