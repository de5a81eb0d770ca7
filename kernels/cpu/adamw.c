/* AdamW, operation by operation in the order that PyTorch applies them. */
#include <math.h>

#include "vecmath.h"

Status KERNEL(adamw)(View *p, View *m, View *v, View *shadow, const View *g, const Adam *adam) {
    int64_t n = view_count(p), blocks = (n + LANES - 1) / LANES;
    double correction1 = 1 - pow((double)adam->beta1, (double)adam->step), correction2 = 1 - pow((double)adam->beta2, (double)adam->step);
    float step_size = (float)((double)adam->lr / correction1), root = (float)sqrt(correction2);
    float decay = 1.0f - adam->lr * adam->weight_decay;
    float *param = p->data, *first = m->data, *second = v->data;
    const float *grad = g->data;
#pragma omp parallel for schedule(static) if (n >= 1 << 15)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t i = b * LANES, left = n - i;
        Vec gr = vec_take(grad, F32, i, left) * adam->grad_scale;
        Vec mm = vec_take(first, F32, i, left), vv = vec_take(second, F32, i, left), pp = vec_take(param, F32, i, left);
        pp *= decay;
        mm += (gr - mm) * (1.0f - adam->beta1);
        vv = vv * adam->beta2 + gr * gr * (1.0f - adam->beta2);
        pp -= step_size * (mm / (vec_sqrt(vv) / root + adam->eps));
        vec_give(first, F32, i, left, mm);
        vec_give(second, F32, i, left, vv);
        vec_give(param, F32, i, left, pp);
        if (shadow)
            vec_give(shadow->data, BF16, i, left, pp);
    }
    return OK;
}
