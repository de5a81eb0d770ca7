/* Plain matrix products, each operand in either layout. */
#include "product.h"

Status KERNEL(matmul)(View *c, const View *a, const View *b) {
    Product p = {.rows = c->shape[0], .cols = c->shape[1], .depth = a->shape[1], .a = side_matrix(a, 0), .b = side_matrix(b, 1),
                 .c = c->data, .dtype = c->dtype, .step = c->stride[0]};
    return KERNEL(product)(&p);
}
