/* What the CPU kernels share across instruction sets: scratch, threads, tiles, and oneDNN. */
#ifndef ONN_CPU_H
#define ONN_CPU_H

#include "kernels.h"

/* scratch_alloc() : counted scratch, 64-byte aligned, freed with scratch_free(); NULL with a message over budget. */
void *scratch_alloc(size_t bytes);
void scratch_free(void *memory, size_t bytes);

/* scratch_only() : true in a dry run: what was taken has no memory, so a kernel gives it back and is done. */
int scratch_only(void);
void scratch_set_only(int on);

/* Tiles of tokens: at most TILE tokens, none crossing a sequence. tiles_make() lists their borders: tile i is
 * tiles[i]..tiles[i+1]. `starts` NULL means one sequence of `rows`. *count tiles; free with scratch_free(tiles, *bytes). */
enum { TILE = 128 };
Status tiles_make(int32_t **tiles, int64_t *count, size_t *bytes, const View *starts, int64_t rows);

/* Convolution through oneDNN; x, w, y and their gradients contiguous f32 and none of them empty. dw is added to, the others
 * are overwritten; bias may be NULL. The same bits whatever the threads and the number of images. */
Status dnnl_conv(View *y, const View *x, const View *w, const View *bias, const Conv *conv);
Status dnnl_conv_backward_data(View *dx, const View *dy, const View *w, const Conv *conv);
Status dnnl_conv_backward_weights(View *dw, const View *dy, const View *x, const View *w, const Conv *conv);

#endif
