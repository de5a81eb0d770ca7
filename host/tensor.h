/* Tensors: a view of counted, shared storage. Views of one storage keep it alive. */
#ifndef ONN_TENSOR_H
#define ONN_TENSOR_H

#include "kernels.h"
#include "memory.h"

typedef struct Storage Storage;

typedef struct Tensor {
    View view;
    Storage *storage; /* NULL once freed */
    size_t offset;    /* bytes from the storage's begin to the view's first element */
} Tensor;

/* tensor_make() : a new contiguous tensor with undefined contents. ERR_MEMORY over budget; ERR_ARGUMENT when the
 * shape's product overflows or a size is negative. */
Status tensor_make(Tensor *t, Dtype dtype, int dims, const int64_t *shape);

/* tensor_make_in() : the same in another pool than the CPU's. tensor_phantom() : is its pool memory_dry(): a shape without values? */
Status tensor_make_in(Tensor *t, Memory *pool, Dtype dtype, int dims, const int64_t *shape);
int tensor_phantom(const Tensor *t);

/* tensor_declare() : a contiguous tensor without memory, whose views have none either until tensor_bind(). ERR_ARGUMENT as tensor_make(). */
Status tensor_declare(Tensor *t, Dtype dtype, int dims, const int64_t *shape);

/* tensor_bind() : a declared tensor and all its views show `memory` from now on, NULL: none again. The memory stays its owner's.
 * Views find it by tensor_present(). */
void tensor_bind(Tensor *t, void *memory);

/* tensor_present() : brings the view's address up to date; 0 if there is no memory behind it now. */
int tensor_present(Tensor *t);

/* tensor_share() : `t` becomes another view of `base`'s storage, initially the same view. */
void tensor_share(Tensor *t, const Tensor *base);

/* tensor_free() : drops the storage; idempotent. */
void tensor_free(Tensor *t);

/* tensor_bytes() : size of the elements seen through the view. */
size_t tensor_bytes(const Tensor *t);

/* tensor_room() : bytes from the view's first element to the end of its storage, rounding up included. */
size_t tensor_room(const Tensor *t);

int tensor_contiguous(const Tensor *t);

/* tensor_reshape() : ERR_ARGUMENT if the product differs or a copy would be needed; one size may be -1. */
Status tensor_reshape(Tensor *t, int dims, const int64_t *shape);

/* tensor_narrow() : the part [start, start + length) of dimension `dim`. */
Status tensor_narrow(Tensor *t, int dim, int64_t start, int64_t length);
Status tensor_transpose(Tensor *t, int first, int second);

/* tensor_expand() : broadcasts by the usual rules (sizes 1 and missing leading dimensions become stride 0). */
Status tensor_expand(Tensor *t, int dims, const int64_t *shape);

/* tensor_shape_text() : "f32 (2, 17, 112)" into `text`, for messages; returns text. */
const char *tensor_shape_text(const Tensor *t, char *text, size_t room);

/* dtype_from_name() : -1 if there is no such name. Accepts "f32" and safetensors' "F32", "BOOL". */
int dtype_from_name(const char *name);

#endif
