/* PNG and JPEG by stb_image; scaling as torchvision's Resize with antialias does it: a triangle as wide as a source pixel or a target's,
 * whichever is larger. */
#include "picture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "jpeg_tables.h"

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
/* Zeroed: a scan may name tables that no segment defined. */
#define STBI_MALLOC(n) calloc(1, n)
#define STBI_REALLOC(p, n) realloc(p, n)
#define STBI_FREE(p) free(p)
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS (1 << 16)
#pragma GCC diagnostic ignored "-Wunused-function" /* what it declares and, so cut down, lacks */
#include <stb/stb_image.h>

enum { LIMIT = 1 << 28 /* bytes of a file */, PIXELS = 1 << 26 };

typedef struct Picture {
    char *bytes;
    size_t length;
    int height, width;
} Picture;

static Status picture_open(const char *path, Picture *p) {
    int channels;
    Status status = file_read(path, LIMIT, &p->bytes, &p->length);
    if (status != OK)
        return status;
    const stbi_uc *data = (const stbi_uc *)p->bytes;
    if (jpeg_tables_fit(data, p->length) && stbi_info_from_memory(data, (int)p->length, &p->width, &p->height, &channels) && p->width > 0 &&
        p->height > 0 && (int64_t)p->width * p->height <= PIXELS)
        return OK;
    free(p->bytes);
    return fail(ERR_FORMAT, "%s: this is no sound PNG or JPEG of at most %d pixels", path, PIXELS);
}

Status picture_size(const char *path, int64_t *height, int64_t *width) {
    Picture p;
    Status status = picture_open(path, &p);
    if (status == OK) {
        *height = p.height, *width = p.width;
        free(p.bytes);
    }
    return status;
}

/* One target line of `n` elements, `step` apart, from source lines: weights of a triangle around the target's middle. from counts source
 * pixels of a target pixel, shift where the cut begins in the scaled line. */
typedef struct Axis {
    double ratio, shift, support;
    int64_t size;
} Axis;

/* The line of `source` pixels becomes one of `scaled`, of which the middle `target` are kept. */
static Axis axis_make(int64_t source, int64_t scaled, int64_t target) {
    double ratio = (double)source / (double)scaled;
    return (Axis){.ratio = ratio, .shift = nearbyint((double)(scaled - target) / 2), .support = ratio > 1 ? ratio : 1, .size = source};
}

static void axis_span(const Axis *a, int64_t i, int64_t *first, int64_t *end, double *middle) {
    *middle = ((double)i + a->shift + 0.5) * a->ratio;
    *first = (int64_t)floor(*middle - a->support + 0.5);
    *end = (int64_t)floor(*middle + a->support + 0.5);
    *first = *first < 0 ? 0 : *first >= a->size ? a->size - 1 : *first;
    *end = *end > a->size ? a->size : *end <= *first ? *first + 1 : *end;
}

static double axis_weight(const Axis *a, int64_t at, double middle) {
    double w = 1 - fabs(((double)at + 0.5 - middle) / a->support);
    return w > 0 ? w : 0;
}

/* wide (height, target width, channels) from pixels (height, source width, channels). */
static void scale_rows(float *wide, const stbi_uc *pixels, const Axis *a, int64_t height, int64_t target, int64_t channels) {
    for (int64_t j = 0; j < target; j++) {
        int64_t first, end;
        double middle, total = 0;
        axis_span(a, j, &first, &end, &middle);
        for (int64_t k = first; k < end; k++)
            total += axis_weight(a, k, middle);
        for (int64_t y = 0; y < height; y++)
            for (int64_t c = 0; c < channels; c++) {
                double sum = 0;
                for (int64_t k = first; k < end; k++)
                    sum += axis_weight(a, k, middle) * (double)pixels[(y * a->size + k) * channels + c];
                wide[(y * target + j) * channels + c] = (float)(total > 0 ? sum / total : (double)pixels[(y * a->size + first) * channels + c]);
            }
    }
}

/* out (channels, target height, width), normalised, from wide. */
static void scale_columns(float *out, const float *wide, const Axis *a, const PictureForm *form) {
    for (int64_t i = 0; i < form->height; i++) {
        int64_t first, end, row = form->width * form->channels;
        double middle, total = 0;
        axis_span(a, i, &first, &end, &middle);
        for (int64_t k = first; k < end; k++)
            total += axis_weight(a, k, middle);
        for (int64_t c = 0; c < form->channels; c++)
            for (int64_t j = 0; j < form->width; j++) {
                double sum = 0;
                for (int64_t k = first; k < end; k++)
                    sum += axis_weight(a, k, middle) * (double)wide[k * row + j * form->channels + c];
                double v = (total > 0 ? sum / total : (double)wide[first * row + j * form->channels + c]) / 255;
                out[(c * form->height + i) * form->width + j] = (float)((v - (double)form->mean[c]) / (double)form->deviation[c]);
            }
    }
}

Status picture_read(const char *path, const PictureForm *form, float *out) {
    Picture p;
    int height, width, channels;
    Status status = picture_open(path, &p);
    if (status != OK)
        return status;
    stbi_uc *pixels = stbi_load_from_memory((const stbi_uc *)p.bytes, (int)p.length, &width, &height, &channels, (int)form->channels);
    free(p.bytes);
    if (!pixels)
        return fail(ERR_FORMAT, "%s: the picture is damaged (%s)", path, stbi_failure_reason());
    int64_t high = form->height, wide_side = form->width; /* the whole picture scaled, its sides in proportion */
    if ((int64_t)height * form->width <= (int64_t)width * form->height)
        wide_side = high * width / height;
    else
        high = wide_side * height / width;
    Axis across = axis_make(width, wide_side, form->width), down = axis_make(height, high, form->height);
    float *wide = malloc((size_t)height * (size_t)form->width * (size_t)form->channels * sizeof *wide);
    if (wide) {
        scale_rows(wide, pixels, &across, height, form->width, form->channels);
        scale_columns(out, wide, &down, form);
    } else {
        status = fail(ERR_MEMORY, "%s: no memory for a picture of %d x %d", path, width, height);
    }
    free(wide);
    stbi_image_free(pixels);
    return status;
}
