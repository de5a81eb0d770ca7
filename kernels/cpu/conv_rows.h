/* Convolution of small images by the products of linear layers. */
#ifndef ONN_CONV_ROWS_H
#define ONN_CONV_ROWS_H

#include "isa.h"

/* conv_rows*() : as conv and conv_backward, for groups == 1 and nothing empty. dw is added to. A row of y and dx gets the same bits whatever else is
 * in the batch; sums for dw go in tiles of pixels that may hold several images, or with conv->by_image image by image. */
Status KERNEL(conv_rows)(View *y, const View *x, const View *w, const View *bias, const Conv *conv);
Status KERNEL(conv_rows_dx)(View *dx, const View *dy, const View *w, const Conv *conv);
Status KERNEL(conv_rows_dw)(View *dw, const View *dy, const View *x, const View *w, const Conv *conv);

#endif
