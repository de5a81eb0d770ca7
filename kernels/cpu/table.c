/* The CPU back end's table for one instruction set: a kernel that is missing fails to link. */
#include "isa.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const Backend KERNEL(backend) = {
    .name = "cpu " TEXT(ISA),
#define OP(op, args) .op = KERNEL(op),
#include "ops.def"
#undef OP
};
