/* Pictures in files: PNG and JPEG, made to the size that a net takes. */
#ifndef ONN_PICTURE_H
#define ONN_PICTURE_H

#include <stdint.h>

#include "status.h"

/* What a net takes: channels (1: grey, 3: RGB) x height x width; a value v in 0..1 becomes (v - mean[c]) / deviation[c]. */
typedef struct PictureForm {
    int64_t channels, height, width;
    float mean[3], deviation[3];
} PictureForm;

/* picture_size() : height and width of the picture in `path`, from its header. */
Status picture_size(const char *path, int64_t *height, int64_t *width);

/* picture_read() : decodes `path`, scales it (area-weighted triangle filter) until it just covers height x width, cuts out the middle and writes
 * it to `out` (channels, height, width). ERR_FORMAT names the file where it is no picture, or one of more than 2^26 pixels. */
Status picture_read(const char *path, const PictureForm *form, float *out);

#endif
