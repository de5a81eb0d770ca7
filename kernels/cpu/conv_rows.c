/* Convolution as a product of rows: each pixel of the output is a row of the window that it sees, (kh, kw, in). For images of few pixels
 * this keeps the products large, because the pixels of many images are rows of one product. Images lie with channels last meanwhile. */
#include "conv_rows.h"

enum { PIECE_BYTES = 8 << 20 /* of windows at a time; the cut depends on shapes alone */ };

typedef struct Shape {
    int64_t images, in, height, width, out, rows, columns, kernel[2];
    int64_t window, pixels; /* elements of a row; rows of an image */
    int64_t group;          /* images at a time */
    const Conv *conv;
} Shape;

static Shape shape_of(const View *x, const View *w, const View *y, const Conv *conv) {
    Shape s = {.images = x->shape[0], .in = x->shape[1], .height = x->shape[2], .width = x->shape[3], .out = y->shape[1],
               .rows = y->shape[2], .columns = y->shape[3], .kernel = {w->shape[2], w->shape[3]}, .conv = conv};
    s.window = s.in * s.kernel[0] * s.kernel[1];
    s.pixels = s.rows * s.columns;
    s.group = PIECE_BYTES / (s.window * s.pixels * (int64_t)sizeof(float));
    s.group = s.group < 1 ? 1 : s.group < s.images ? s.group : s.images;
    return s;
}

static View matrix(float *data, int64_t rows, int64_t width) {
    return (View){.data = data, .dtype = F32, .dims = 2, .shape = {rows, width}, .stride = {width, 1}};
}

/* to (columns, rows) = from (rows, columns), turned. */
static void turn(float *to, const float *from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            to[j * rows + i] = from[i * columns + j];
}

static void turn_images(float *to, const float *from, int64_t images, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static) if (images * rows * columns >= 1 << 14)
    for (int64_t n = 0; n < images; n++)
        turn(to + n * rows * columns, from + n * rows * columns, rows, columns);
}

/* One image's windows (pixels, window) from its pixels, or back: pixels get the sum of what their places in windows have. Neighbouring columns of a
 * window are neighbours in the image, too, where nothing is left out between them: they go as one run. */
INLINE void pass(float *windows, float *image, const Shape *s, const int back) {
    const int64_t step = s->conv->dilation[1], run = step == 1 ? s->kernel[1] : 1; /* columns that go together */
    float *row = windows;
    if (back)
        memset(image, 0, (size_t)(s->height * s->width * s->in) * sizeof *image);
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < s->columns; j++)
            for (int64_t a = 0; a < s->kernel[0]; a++)
                for (int64_t b = 0; b < s->kernel[1]; b += run, row += run * s->in) {
                    int64_t r = i * s->conv->stride[0] - s->conv->padding[0] + a * s->conv->dilation[0];
                    int64_t c = j * s->conv->stride[1] - s->conv->padding[1] + b * step;
                    int64_t first = c < 0 ? (-c < run ? -c : run) : 0, end = c + run > s->width ? s->width - c : run;
                    if (r < 0 || r >= s->height || end < first)
                        first = end = run; /* all of it lies in the padding */
                    int64_t n = (end - first) * s->in;
                    float *pixel = image + (r * s->width + c + first) * s->in, *part = row + first * s->in;
                    if (back) {
                        for (int64_t k = 0; k < n; k++)
                            pixel[k] += part[k];
                        continue;
                    }
                    memset(row, 0, (size_t)(first * s->in) * sizeof *row);
                    if (n)
                        memcpy(part, pixel, (size_t)n * sizeof *row);
                    memset(row + end * s->in, 0, (size_t)((run - end) * s->in) * sizeof *row);
                }
}

static void gather(float *windows, float *x, const Shape *s, int64_t images) {
#pragma omp parallel for schedule(static) if (images * s->pixels * s->window >= 1 << 14)
    for (int64_t n = 0; n < images; n++)
        pass(windows + n * s->pixels * s->window, x + n * s->height * s->width * s->in, s, 0);
}

static void scatter(float *x, float *windows, const Shape *s, int64_t images) {
#pragma omp parallel for schedule(static) if (images * s->pixels * s->window >= 1 << 14)
    for (int64_t n = 0; n < images; n++)
        pass(windows + n * s->pixels * s->window, x + n * s->height * s->width * s->in, s, 1);
}

/* (out, in, places) to (out, places, in), or back. */
static float *with_channels_last(float *to, const float *w, const Shape *s) {
    turn_images(to, w, s->out, s->in, s->kernel[0] * s->kernel[1]);
    return to;
}

/* Scratch of one call: the weight's copy, a group's images on both sides, its windows. */
typedef struct Work {
    float *weight, *in, *out, *windows;
    void *memory;
    size_t bytes;
} Work;

static Status work_make(Work *k, const Shape *s) {
    size_t weight = (size_t)(s->out * s->window), in = (size_t)(s->group * s->height * s->width * s->in);
    size_t out = (size_t)(s->group * s->pixels * s->out), windows = (size_t)(s->group * s->pixels * s->window);
    k->bytes = (weight + in + out + windows + 4 * 16) * sizeof(float);
    k->memory = scratch_alloc(k->bytes);
    if (!k->memory)
        return ERR_MEMORY;
    k->weight = k->memory;
    k->in = k->weight + (weight + 15) / 16 * 16;
    k->out = k->in + (in + 15) / 16 * 16;
    k->windows = k->out + (out + 15) / 16 * 16;
    return OK;
}

/* Ends a call with `status`, which is also that of work_make(). */
static Status work_free(Work *k, Status status) {
    if (k->memory)
        scratch_free(k->memory, k->bytes);
    return status;
}

Status KERNEL(conv_rows)(View *y, const View *x, const View *w, const View *bias, const Conv *conv) {
    Shape s = shape_of(x, w, y, conv);
    Work k;
    Status status = work_make(&k, &s);
    if (status != OK)
        return status;
    int dry = scratch_only(); /* then the products' own scratch counts too */
    View weight = matrix(dry ? k.weight : with_channels_last(k.weight, w->data, &s), s.out, s.window);
    for (int64_t n = 0; n < s.images && status == OK; n += s.group) {
        int64_t images = s.images - n < s.group ? s.images - n : s.group;
        View rows = matrix(k.windows, images * s.pixels, s.window), to = matrix(k.out, images * s.pixels, s.out);
        if (!dry) {
            turn_images(k.in, (const float *)x->data + n * s.in * s.height * s.width, images, s.in, s.height * s.width);
            gather(k.windows, k.in, &s, images);
        }
        status = KERNEL(linear)(&to, NULL, &rows, &weight, bias, NULL);
        if (!dry)
            turn_images((float *)y->data + n * s.out * s.pixels, k.out, images, s.pixels, s.out);
    }
    return work_free(&k, status);
}

Status KERNEL(conv_rows_dx)(View *dx, const View *dy, const View *w, const Conv *conv) {
    Shape s = shape_of(dx, w, dy, conv);
    Work k;
    Status status = work_make(&k, &s);
    if (status != OK)
        return status;
    int dry = scratch_only();
    View weight = matrix(dry ? k.weight : with_channels_last(k.weight, w->data, &s), s.out, s.window);
    for (int64_t n = 0; n < s.images && status == OK; n += s.group) {
        int64_t images = s.images - n < s.group ? s.images - n : s.group;
        View rows = matrix(k.windows, images * s.pixels, s.window), from = matrix(k.out, images * s.pixels, s.out);
        if (!dry)
            turn_images(k.out, (const float *)dy->data + n * s.out * s.pixels, images, s.out, s.pixels);
        status = KERNEL(linear_backward)(&rows, NULL, NULL, &from, &weight, NULL, 0);
        if (!dry) {
            scatter(k.in, k.windows, &s, images);
            turn_images((float *)dx->data + n * s.in * s.height * s.width, k.in, images, s.height * s.width, s.in);
        }
    }
    return work_free(&k, status);
}

/* Borders of images among rows of pixels, for sums that do not depend on how a batch is cut. */
static View image_starts(int32_t *starts, int64_t images, int64_t pixels) {
    for (int64_t n = 0; starts && n <= images; n++)
        starts[n] = (int32_t)(n * pixels);
    return (View){.data = starts, .dtype = I32, .dims = 1, .shape = {images + 1}, .stride = {1}};
}

Status KERNEL(conv_rows_dw)(View *dw, const View *dy, const View *x, const View *w, const Conv *conv) {
    Shape s = shape_of(x, w, dy, conv);
    Work k;
    Status status = work_make(&k, &s);
    if (status != OK)
        return status;
    size_t starts_bytes = (size_t)(s.group + 1) * sizeof(int32_t);
    int32_t *starts = scratch_alloc(starts_bytes);
    if (!starts)
        return work_free(&k, ERR_MEMORY);
    /* Summed apart from dw, which stays as it was if a product fails. */
    int64_t places = s.kernel[0] * s.kernel[1];
    int dry = scratch_only();
    float *sum = k.weight;
    if (!dry)
        with_channels_last(sum, dw->data, &s);
    View gradient = matrix(sum, s.out, s.window);
    for (int64_t n = 0; n < s.images && status == OK; n += s.group) {
        int64_t images = s.images - n < s.group ? s.images - n : s.group;
        View rows = matrix(k.windows, images * s.pixels, s.window), from = matrix(k.out, images * s.pixels, s.out);
        View borders = image_starts(dry ? NULL : starts, images, s.pixels);
        if (!dry) {
            turn_images(k.in, (const float *)x->data + n * s.in * s.height * s.width, images, s.in, s.height * s.width);
            gather(k.windows, k.in, &s, images);
            turn_images(k.out, (const float *)dy->data + n * s.out * s.pixels, images, s.out, s.pixels);
        }
        status = KERNEL(linear_backward_weight)(&gradient, NULL, &from, &rows, conv->by_image ? &borders : NULL);
    }
    if (status == OK && !dry)
        turn_images(dw->data, sum, s.out, places, s.in);
    scratch_free(starts, starts_bytes);
    return work_free(&k, status);
}
