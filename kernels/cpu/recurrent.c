/* Recurrent layers: a loop over time whose steps are a small product with the state's weight and the cell's own arithmetic, and the
 * way back through time. Threads share out the columns of each step, so that a thread's part of the weight stays in its cache, and meet at
 * its end; where there are too few columns they share out the sequences. A sequence's bits depend on nothing but itself: each element of a
 * product is one chain of sums (panel.h), and the cell works element by element. */
#include <omp.h>
#include <stdlib.h>

#include "product.h"
#include "vecmath.h"

enum {
    MOST_PANELS = 8, /* rows of a group, in panels */
    BLOCK = BLOCK_ROWS * BLOCK_COLS
};

/* A packed right operand: `sections` of `cols` columns each, every section from a panel's start. */
typedef struct Matrix {
    float *panels;
    int64_t sections, cols, depth, words;
} Matrix;

static int64_t matrix_across(const Matrix *m) { return m->sections * count_of(m->cols, BLOCK_COLS); }

static void matrix_pack(const Matrix *m, const View *w, int columns) {
    int64_t each = count_of(m->cols, BLOCK_COLS), all = matrix_across(m);
    Side side = side_matrix(w, columns);
#pragma omp parallel for schedule(static) if (all * m->words >= 32768)
    for (int64_t q = 0; q < all; q++) {
        int64_t col = q % each * BLOCK_COLS;
        KERNEL(panel_pack)(m->panels + q * m->words, RIGHT, side_at(side, q / each * m->cols + col, 0), least(BLOCK_COLS, m->cols - col), m->depth, 0);
    }
}

/* A member of the threads that take a group of sequences through time together, and its share of a matrix' columns: whole panels. */
typedef struct Member {
    int number, of;
} Member;

typedef struct Columns {
    int64_t from, to;
} Columns;

static Columns matrix_share(const Matrix *m, Member who) {
    int64_t each = count_of(m->cols, BLOCK_COLS);
    return (Columns){each * who.number / who.of * BLOCK_COLS, least(each * (who.number + 1) / who.of * BLOCK_COLS, m->cols)};
}

/* All members have come so far. */
static void meet(Member who) {
    if (who.of > 1) {
#pragma omp barrier
    }
}

/* A member's blocks (row panels, the matrix' panels) = rows x depth, packed in left panels, times the matrix. */
static void matrix_product(const Matrix *m, Member who, float *blocks, const float *left, int64_t rows) {
    int64_t each = count_of(m->cols, BLOCK_COLS), all = matrix_across(m), left_words = panel_words(BLOCK_ROWS, m->depth, 0);
    Columns own = matrix_share(m, who);
    for (int64_t section = 0; section < m->sections; section++)
        for (int64_t col = own.from; col < own.to; col += BLOCK_COLS)
            for (int64_t p = 0; p * BLOCK_ROWS < rows; p++) {
                int64_t q = section * each + col / BLOCK_COLS;
                Factors factors = {left + p * left_words, m->panels + q * m->words, m->depth};
                KERNEL(block_product)(blocks + (p * all + q) * BLOCK, 0, &factors, 1, least(BLOCK_ROWS, rows - p * BLOCK_ROWS),
                                      least(BLOCK_COLS, m->cols - col), 0, NULL);
            }
}

/* LANES elements of such a product from column j of a section on. */
INLINE Vec matrix_get(const Matrix *m, const float *blocks, int64_t row, int64_t section, int64_t j) {
    int64_t each = count_of(m->cols, BLOCK_COLS);
    const float *block = blocks + (row / BLOCK_ROWS * m->sections * each + section * each + j / BLOCK_COLS) * BLOCK;
    return vec_load(block + row % BLOCK_ROWS * BLOCK_COLS + j % BLOCK_COLS);
}

/* The first n lanes become elements k .. of a row of left panels. */
INLINE void left_put(float *left, int64_t depth, int64_t row, int64_t k, int64_t n, Vec v) {
    float lanes[LANES], *to = left + row / BLOCK_ROWS * panel_words(BLOCK_ROWS, depth, 0) + k * BLOCK_ROWS + row % BLOCK_ROWS;
    vec_store(lanes, v);
    for (int64_t i = 0; i < least(n, LANES); i++)
        to[i * BLOCK_ROWS] = lanes[i];
}

typedef struct Sequence {
    int64_t number, first, length;
} Sequence;

/* One call: the sequences, the longest first, in groups that a thread, or a team of all threads, takes through time together. */
typedef struct Run {
    const Recurrent *r;
    int64_t hidden, out, gates, kept, sequences, group;
    Sequence *order;
    Matrix state, projection; /* as this direction multiplies by them */
    float *scratch;
    int64_t state_left, state_blocks, projection_left, projection_blocks, carried, words; /* words of a team's parts, and of all */
    size_t bytes, order_bytes;
    int teams, together; /* how many; one team of all threads? */
    View *y, *saved, *cells, *last, *last_cell, *dx, *dstate, *previous, *projected, *dout;
    const View *x, *dy, *y_known, *saved_known, *cells_known;
} Run;

static int by_length(const void *a, const void *b) {
    const Sequence *p = a, *q = b;
    if (p->length != q->length)
        return p->length < q->length ? 1 : -1;
    return p->number < q->number ? -1 : 1;
}

static int64_t align(int64_t words) { return (words + 15) / 16 * 16; }
static const float *bias_of(const Recurrent *r) { return r->bias ? r->bias->data : NULL; }

/* Sizes, order and scratch; the matrices' shapes are set. Ended by run_end(). */
static Status run_begin(Run *run) {
    const int32_t *starts = run->r->starts->data;
    run->sequences = view_count(run->r->starts) - 1;
    run->order_bytes = (size_t)run->sequences * sizeof *run->order;
    if (!(run->order = scratch_alloc(run->order_bytes)))
        return ERR_MEMORY;
    for (int64_t s = 0; s < run->sequences && !scratch_only(); s++)
        run->order[s] = (Sequence){s, starts[s], starts[s + 1] - starts[s]};
    if (!scratch_only())
        qsort(run->order, (size_t)run->sequences, sizeof *run->order, by_length);

    int64_t threads = backend_threads(), panels = count_of(least(run->hidden, run->out), BLOCK_COLS);
    int together = threads > 1 && panels >= 2 * threads;
    int64_t groups = count_of(run->sequences, MOST_PANELS * BLOCK_ROWS), teams = together ? 1 : threads;
    groups = count_of(groups > 0 ? groups : 1, teams) * teams;
    run->group = run->sequences ? count_of(run->sequences, groups) : 1;
    run->teams = (int)(together ? 1 : least(threads, run->sequences > 0 ? run->sequences : 1));
    run->together = together;
    Matrix *both[2] = {&run->state, &run->projection};
    int64_t rows = count_of(run->group, BLOCK_ROWS), packed = 0;
    for (int i = 0; i < 2; i++) {
        both[i]->words = panel_words(BLOCK_COLS, both[i]->depth, 0);
        packed += matrix_across(both[i]) * both[i]->words;
    }
    run->state_left = rows * panel_words(BLOCK_ROWS, run->state.depth, 0);
    run->state_blocks = rows * matrix_across(&run->state) * BLOCK;
    run->projection_left = rows * panel_words(BLOCK_ROWS, run->projection.depth, 0);
    run->projection_blocks = rows * matrix_across(&run->projection) * BLOCK;
    run->carried = run->group * align(run->hidden);
    run->words = align(2 * run->state_left + run->state_blocks + run->projection_left + run->projection_blocks + run->carried);
    run->bytes = (size_t)(packed + run->teams * run->words) * sizeof(float);
    if (!(run->scratch = scratch_alloc(run->bytes)))
        return ERR_MEMORY;
    run->state.panels = run->scratch + run->teams * run->words;
    run->projection.panels = run->state.panels + matrix_across(&run->state) * run->state.words;
    return OK;
}

static void run_end(Run *run) {
    scratch_free(run->scratch, run->bytes);
    scratch_free(run->order, run->order_bytes);
}

/* A team's part of the scratch, as a member sees it. Of the left panels one half is read while the other is written. */
typedef struct Part {
    Member who;
    Columns hidden, out; /* the member's */
    float *left[2], *blocks, *projection_left, *projection_blocks, *carried;
} Part;

static Part part_of(const Run *run, int team, Member who) {
    Part p = {.who = who, .left = {run->scratch + team * run->words}};
    Matrix hidden = {.cols = run->hidden}, out = {.cols = run->out};
    p.hidden = matrix_share(&hidden, who);
    p.out = matrix_share(&out, who);
    p.left[1] = p.left[0] + run->state_left;
    p.blocks = p.left[1] + run->state_left;
    p.projection_left = p.blocks + run->state_blocks;
    p.projection_blocks = p.projection_left + run->projection_left;
    p.carried = p.projection_blocks + run->projection_blocks;
    return p;
}

static int64_t token_at(const Run *run, const Sequence *s, int64_t t) { return run->r->reverse ? s->first + s->length - 1 - t : s->first + t; }
static float *row_of(const View *v, int64_t row) { return v ? (float *)v->data + row * view_step(v) : NULL; }
static void row_copy(View *to, int64_t row, const float *from, int64_t width) {
    if (!to)
        return;
    if (from)
        memcpy(row_of(to, row), from, (size_t)width * sizeof(float));
    else
        memset(row_of(to, row), 0, (size_t)width * sizeof(float));
}
/* Those of a group's sequences, the longest first, that have a step t. */
static int64_t active_at(const Sequence *s, int64_t rows, int64_t t) {
    while (rows > 0 && s[rows - 1].length <= t)
        rows--;
    return rows;
}

/* --- forward --------------------------------------------------------------------------------------------------------- */

/* One token: its state goes into y and the left panels, or with a projection into its left panels. */
INLINE void step_row(const Run *run, const Part *p, int64_t row, int64_t token, float *left, const Cell cell) {
    const int64_t H = run->hidden;
    const float *x = row_of(run->x, token), *bias = bias_of(run->r);
    float *kept = row_of(run->saved, token), *cells = row_of(run->cells, token), *y = row_of(run->y, token);
    float *carried = p->carried + row * align(H);
    for (int64_t j = p->hidden.from; j < p->hidden.to; j += LANES) {
        int64_t n = H - j;
        Vec gate[4], h;
        for (int g = 0; g < run->gates; g++) {
            gate[g] = matrix_get(&run->state, p->blocks, row, g, j);
            if (bias)
                gate[g] += vec_take(bias + g * H, F32, j, n);
            if (cell != CELL_gru || g < 2)
                gate[g] += vec_take(x + g * H, F32, j, n);
        }
        Vec old = vec_load(carried + j);
        if (cell == CELL_tanh) {
            h = vec_tanh(gate[0]);
        } else if (cell == CELL_relu) {
            h = vec_relu(gate[0]);
        } else if (cell == CELL_lstm) {
            gate[0] = vec_sigmoid(gate[0]), gate[1] = vec_sigmoid(gate[1]), gate[2] = vec_tanh(gate[2]), gate[3] = vec_sigmoid(gate[3]);
            Vec c = gate[1] * old + gate[0] * gate[2];
            vec_store(carried + j, c);
            if (cells)
                vec_give(cells, F32, j, n, c);
            h = gate[3] * vec_tanh(c);
        } else {
            gate[0] = vec_sigmoid(gate[0]), gate[1] = vec_sigmoid(gate[1]), gate[3] = gate[2];
            gate[2] = vec_tanh(vec_take(x + 2 * H, F32, j, n) + gate[0] * gate[3]);
            h = (1.0f - gate[1]) * gate[2] + gate[1] * old;
            vec_store(carried + j, h);
        }
        if (kept)
            for (int g = 0; g < run->kept; g++)
                vec_give(kept + g * H, F32, j, n, gate[g]);
        if (run->r->projection) {
            left_put(p->projection_left, H, row, j, n, h);
        } else {
            vec_give(y, F32, j, n, h);
            left_put(left, H, row, j, n, h);
        }
    }
}

static void step_any(const Run *run, const Part *p, int64_t row, int64_t token, float *left) {
    switch (run->r->cell) {
    case CELL_tanh: step_row(run, p, row, token, left, CELL_tanh); break;
    case CELL_relu: step_row(run, p, row, token, left, CELL_relu); break;
    case CELL_lstm: step_row(run, p, row, token, left, CELL_lstm); break;
    default: step_row(run, p, row, token, left, CELL_gru); break;
    }
}

/* State before the first token: zero, or what is given. */
static void begin_row(const Run *run, const Part *p, int64_t row, const Sequence *s) {
    const Recurrent *r = run->r;
    const float *first = r->first ? row_of(r->first, s->number) : NULL, *cell = r->first_cell ? row_of(r->first_cell, s->number) : NULL;
    const float *carried = r->cell == CELL_gru ? first : cell;
    memset(p->carried + row * align(run->hidden), 0, (size_t)align(run->hidden) * sizeof(float));
    if (carried)
        memcpy(p->carried + row * align(run->hidden), carried, (size_t)run->hidden * sizeof(float));
    for (int64_t k = 0; k < run->out; k += LANES)
        left_put(p->left[0], run->out, row, k, run->out - k, first ? vec_take(first, F32, k, run->out - k) : vec_set(0));
}

static void group_forward(const Run *run, const Part *p, const Sequence *s, int64_t rows) {
    for (int64_t i = p->who.number; i < rows; i += p->who.of)
        begin_row(run, p, i, s + i);
    meet(p->who);
    for (int64_t t = 0, active = rows; (active = active_at(s, active, t)) > 0; t++) {
        float *left = p->left[(t + 1) % 2];
        matrix_product(&run->state, p->who, p->blocks, p->left[t % 2], active);
        for (int64_t i = 0; i < active; i++)
            step_any(run, p, i, token_at(run, s + i, t), left);
        meet(p->who);
        if (!run->r->projection)
            continue;
        matrix_product(&run->projection, p->who, p->projection_blocks, p->projection_left, active);
        for (int64_t i = 0; i < active; i++)
            for (int64_t k = p->out.from; k < p->out.to; k += LANES) {
                Vec h = matrix_get(&run->projection, p->projection_blocks, i, 0, k);
                vec_give(row_of(run->y, token_at(run, s + i, t)), F32, k, run->out - k, h);
                left_put(left, run->out, i, k, run->out - k, h);
            }
        meet(p->who);
    }
    for (int64_t i = p->who.number; i < rows; i += p->who.of) {
        const View *first = run->r->first;
        const float *h = s[i].length ? row_of(run->y, token_at(run, s + i, s[i].length - 1)) : first ? row_of(first, s[i].number) : NULL;
        row_copy(run->last, s[i].number, h, run->out);
        row_copy(run->last_cell, s[i].number, p->carried + i * align(run->hidden), run->hidden);
    }
    meet(p->who);
}

/* --- backward -------------------------------------------------------------------------------------------------------- */

/* One token of the way back: dh of its state becomes gradients of its gates, in dx and the left panels. */
INLINE void back_row(const Run *run, const Part *p, int64_t row, const Sequence *s, int64_t t, int later, const Cell cell) {
    float *left = p->left[t % 2];
    const int64_t H = run->hidden, depth = run->state.depth, token = token_at(run, s, t);
    const Recurrent *r = run->r;
    const float *kept = row_of(run->saved_known, token), *dy = row_of(run->dy, token), *y = row_of(run->y_known, token);
    const float *c_now = row_of(run->cells_known, token), *before = NULL;
    const View *states = cell == CELL_lstm ? run->cells_known : run->y_known, *first = cell == CELL_lstm ? r->first_cell : r->first;
    float *dx = row_of(run->dx, token), *dstate = row_of(run->dstate, token), *carried = p->carried + row * align(H);
    float *projected = row_of(run->projected, token);
    if (t > 0)
        before = row_of(states, token_at(run, s, t - 1));
    else if (first)
        before = row_of(first, s->number);
    for (int64_t j = p->hidden.from; j < p->hidden.to; j += LANES) {
        int64_t n = H - j;
        Vec dh, old = before ? vec_take(before, F32, j, n) : vec_set(0), gate[4] = {{0}}, d[4] = {{0}};
        if (r->projection) {
            dh = matrix_get(&run->projection, p->projection_blocks, row, 0, j);
        } else {
            dh = vec_take(dy, F32, j, n);
            if (later)
                dh += matrix_get(&run->state, p->blocks, row, 0, j);
        }
        for (int g = 0; g < run->kept; g++)
            gate[g] = vec_take(kept + g * H, F32, j, n);
        if (cell == CELL_tanh || cell == CELL_relu) {
            Vec h = vec_take(y, F32, j, n);
            d[0] = cell == CELL_tanh ? dh * (1.0f - h * h) : dh * vec_relu_slope(h);
        } else if (cell == CELL_lstm) {
            Vec c = vec_tanh(vec_take(c_now, F32, j, n));
            Vec dc = dh * gate[3] * (1.0f - c * c) + vec_load(carried + j);
            d[3] = dh * c * gate[3] * (1.0f - gate[3]);
            d[0] = dc * gate[2] * gate[0] * (1.0f - gate[0]);
            d[1] = dc * old * gate[1] * (1.0f - gate[1]);
            d[2] = dc * gate[0] * (1.0f - gate[2] * gate[2]);
            vec_store(carried + j, dc * gate[1]);
            if (projected)
                vec_give(projected, F32, j, n, gate[3] * c);
        } else {
            dh += vec_load(carried + j);
            d[1] = dh * (old - gate[2]) * gate[1] * (1.0f - gate[1]);
            d[2] = dh * (1.0f - gate[1]) * (1.0f - gate[2] * gate[2]);
            d[0] = d[2] * gate[3] * gate[0] * (1.0f - gate[0]);
            vec_store(carried + j, dh * gate[1]);
        }
        for (int g = 0; g < run->gates; g++) {
            vec_give(dx + g * H, F32, j, n, d[g]);
            if (cell == CELL_gru && g == 2)
                d[g] *= gate[0];
            if (dstate)
                vec_give(dstate + g * H, F32, j, n, d[g]);
            left_put(left, depth, row, g * H + j, n, d[g]);
        }
    }
}

static void back_any(const Run *run, const Part *p, int64_t row, const Sequence *s, int64_t t, int later) {
    switch (run->r->cell) {
    case CELL_tanh: back_row(run, p, row, s, t, later, CELL_tanh); break;
    case CELL_relu: back_row(run, p, row, s, t, later, CELL_relu); break;
    case CELL_lstm: back_row(run, p, row, s, t, later, CELL_lstm); break;
    default: back_row(run, p, row, s, t, later, CELL_gru); break;
    }
}

/* dy and what comes from the later steps, into the projection's left panels and `dout`. */
static void back_projection(const Run *run, const Part *p, int64_t row, int64_t token, int later) {
    for (int64_t k = p->out.from; k < p->out.to; k += LANES) {
        Vec d = vec_take(row_of(run->dy, token), F32, k, run->out - k);
        if (later)
            d += matrix_get(&run->state, p->blocks, row, 0, k);
        if (run->dout)
            vec_give(row_of(run->dout, token), F32, k, run->out - k, d);
        left_put(p->projection_left, run->out, row, k, run->out - k, d);
    }
}

static void group_backward(const Run *run, const Part *p, const Sequence *s, int64_t rows) {
    int64_t later = 0;
    if (p->who.number == 0)
        memset(p->carried, 0, (size_t)(rows * align(run->hidden)) * sizeof(float));
    meet(p->who);
    for (int64_t t = rows ? s[0].length - 1 : -1; t >= 0; t--) {
        int64_t active = active_at(s, rows, t);
        if (run->r->projection) {
            for (int64_t i = 0; i < active; i++)
                back_projection(run, p, i, token_at(run, s + i, t), i < later);
            meet(p->who);
            matrix_product(&run->projection, p->who, p->projection_blocks, p->projection_left, active);
        }
        for (int64_t i = 0; i < active; i++)
            back_any(run, p, i, s + i, t, i < later);
        meet(p->who);
        if (t > 0)
            matrix_product(&run->state, p->who, p->blocks, p->left[t % 2], active);
        later = active;
    }
    for (int64_t i = p->who.number; run->previous && i < rows; i += p->who.of)
        for (int64_t t = 0; t < s[i].length; t++) {
            const View *first = run->r->first;
            const float *from = t ? row_of(run->y_known, token_at(run, s + i, t - 1)) : first ? row_of(first, s[i].number) : NULL;
            row_copy(run->previous, token_at(run, s + i, t), from, run->out);
        }
}

static void run_groups(const Run *run, void (*work)(const Run *, const Part *, const Sequence *, int64_t)) {
    int together = run->together;
#pragma omp parallel num_threads(together ? (int)backend_threads() : run->teams)
    {
        int number = omp_get_thread_num(), threads = omp_get_num_threads(), team = together ? 0 : number;
        Part part = part_of(run, team, together ? (Member){number, threads} : (Member){0, 1});
        int64_t stride = (together ? 1 : threads) * run->group;
        blocks_begin();
        for (int64_t first = team * run->group; first < run->sequences; first += stride)
            work(run, &part, run->order + first, least(run->group, run->sequences - first));
        blocks_end();
    }
}

static Run run_of(const Recurrent *r) {
    Run run = {.r = r, .gates = cell_gates(r->cell), .kept = cell_kept(r->cell), .out = r->w->shape[1]};
    run.hidden = r->w->shape[0] / run.gates;
    return run;
}

Status KERNEL(recurrent)(View *y, View *kept, View *cells, View *last, View *last_cell, const View *x, const Recurrent *r) {
    Run run = run_of(r);
    run.x = x, run.y = y, run.saved = kept, run.cells = cells, run.last = last, run.last_cell = last_cell;
    run.state = (Matrix){.sections = run.gates, .cols = run.hidden, .depth = run.out};
    if (r->projection)
        run.projection = (Matrix){.sections = 1, .cols = run.out, .depth = run.hidden};
    Status status = run_begin(&run);
    if (status == OK && !scratch_only()) {
        matrix_pack(&run.state, r->w, 0);
        if (r->projection)
            matrix_pack(&run.projection, r->projection, 0);
        run_groups(&run, group_forward);
    }
    run_end(&run);
    return status;
}

Status KERNEL(recurrent_backward)(View *dx, View *dstate, View *previous, View *projected, View *dout, const View *dy, const View *y,
                                  const View *kept, const View *cells, const Recurrent *r) {
    Run run = run_of(r);
    run.dx = dx, run.dstate = dstate, run.previous = previous, run.projected = projected, run.dout = dout;
    run.dy = dy, run.y_known = y, run.saved_known = kept, run.cells_known = cells;
    run.state = (Matrix){.sections = 1, .cols = run.out, .depth = run.gates * run.hidden};
    if (r->projection)
        run.projection = (Matrix){.sections = 1, .cols = run.hidden, .depth = run.out};
    Status status = run_begin(&run);
    if (status == OK && !scratch_only()) {
        matrix_pack(&run.state, r->w, 1);
        if (r->projection)
            matrix_pack(&run.projection, r->projection, 1);
        run_groups(&run, group_backward);
    }
    run_end(&run);
    return status;
}
