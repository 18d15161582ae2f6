/* Attention of one block of queries: up to 48 rows (token, head) that read the same kv head, against 64 keys at a time.
 *
 *     scores (48, 64) = q (48, head_dim) x keys^T     p = exp(scores - running maximum)     out = out * rescale + p x values
 *
 * Keys and values are widened to f32 once per block and serve all rows. Blocks of keys start at multiples of 64 positions
 * and a masked key weighs exactly 0, so a query's result does not depend on which queries share its block. */
#include "kernel/level.h"
#include "kernel/tile.h"
#include <math.h>

enum { ROWS = NIB_ATTEND_ROWS, KEYS = NIB_ATTEND_KEYS };

typedef struct work {
    size_t padded;       /* head_dim rounded up to 32 */
    float *q;            /* (rows / 6, padded, 6), times the scale of the scores */
    float *keys;         /* (2, padded, 32) transposed */
    float *values;       /* (64, padded) */
    float *strip;        /* (16, padded) keys on their way to be transposed */
    float *out;          /* (48, padded) */
    float *scores;       /* (48, 64) */
    float *most, *total; /* (48) running maximum and sum */
} work;

static work lay_out(float *scratch, size_t padded) {
    work w = {.padded = padded};
    w.q = scratch;
    w.out = w.q + ROWS * padded;
    w.keys = w.out + ROWS * padded;
    w.values = w.keys + KEYS * padded;
    w.strip = w.values + KEYS * padded;
    w.scores = w.strip + 16 * padded;
    w.most = w.scores + ROWS * KEYS;
    w.total = w.most + ROWS;
    return w;
}

/* One key or value as floats, zeros up to padded. */
static void widen(const nib_attend_task *task, const void *cache, size_t position, float *out, size_t padded) {
    const size_t n = task->head_dim;
    size_t i = 0;
    if (task->is_f16) {
        const uint16_t *row = (const uint16_t *)cache + position * n;
        for (; i + 16 <= n; i += 16) vf_store(out + i, vf_from_f16(row + i));
        for (; i < n; i++) out[i] = nib_f16_to_f32(row[i]);
    } else {
        memcpy(out, (const float *)cache + position * n, n * sizeof *out);
        i = n;
    }
    for (; i < padded; i++) out[i] = 0;
}

static void load_queries(const nib_attend_task *task, const work *w) {
    const size_t rows = (size_t)task->n_tokens * task->n_heads, tiles = (rows + 5) / 6;
    memset(w->q, 0, tiles * 6 * w->padded * sizeof *w->q);
    memset(w->out, 0, tiles * 6 * w->padded * sizeof *w->out);
    for (size_t r = 0; r < rows; r++) {
        const float *q = task->q + r / task->n_heads * task->token_stride + r % task->n_heads * task->head_dim;
        float *to = w->q + r / 6 * 6 * w->padded + r % 6;
        for (size_t d = 0; d < task->head_dim; d++)
            to[6 * d] = (task->is_f16 ? nib_f16_to_f32(nib_f32_to_f16(q[d])) : q[d]) * task->scale;
        w->most[r] = -INFINITY;
        w->total[r] = 0;
    }
}

static void load_keys(const nib_attend_task *task, const work *w, size_t first, size_t n) {
    for (size_t i = 0; i < KEYS; i += 16) {
        for (size_t j = 0; j < 16; j++) {
            if (i + j < n)
                widen(task, task->keys, first + i + j, w->strip + j * w->padded, w->padded);
            else
                memset(w->strip + j * w->padded, 0, w->padded * sizeof *w->strip);
        }
        float *to = w->keys + i / 32 * 32 * w->padded + i % 32;
        for (size_t d = 0; d < w->padded; d += 16)
            transpose_16x16(w->strip + d, w->padded * sizeof(float), to + 32 * d, 32 * sizeof(float));
    }
    for (size_t i = 0; i < n; i++) widen(task, task->values, first + i, w->values + i * w->padded, w->padded);
}

/* Scores of a row to weights in place, of which the first n_seen count; the row's sums and output follow the maximum. */
static void softmax_step(const work *w, size_t row, size_t n_seen) {
    float *scores = w->scores + row * KEYS;
    if (!n_seen) {
        memset(scores, 0, KEYS * sizeof *scores);
        return;
    }
    for (size_t i = n_seen; i < KEYS; i++) scores[i] = -INFINITY;
    vf most = vf_splat(w->most[row]);
    for (size_t i = 0; i < KEYS; i += 16) most = vf_max(vf_load(scores + i), most);
    const float new_most = vf_largest(most);
    const vf shift = vf_splat(new_most);
    vf sum = vf_zero();
    for (size_t i = 0; i < KEYS; i += 16) {
        const vf p = vf_exp(vf_sub(vf_load(scores + i), shift));
        vf_store(scores + i, p);
        sum = vf_add(sum, p);
    }
    if (new_most != w->most[row]) {
        float factor[16];
        vf_store(factor, vf_exp(vf_splat(w->most[row] - new_most)));
        w->most[row] = new_most;
        w->total[row] *= factor[0];
        float *out = w->out + row * w->padded;
        for (size_t d = 0; d < w->padded; d += 16) vf_store(out + d, vf_mul(vf_load(out + d), vf_splat(factor[0])));
    }
    w->total[row] += vf_sum(sum);
}

static void attend(const nib_attend_task *task, float *scratch) {
    const size_t padded = ((size_t)task->head_dim + 31) / 32 * 32, rows = (size_t)task->n_tokens * task->n_heads;
    const size_t n_keys = (size_t)task->position + task->n_tokens;
    const work w = lay_out(scratch, padded);
    load_queries(task, &w);
    for (size_t first = 0; first < n_keys; first += KEYS) {
        const size_t n = n_keys - first < KEYS ? n_keys - first : KEYS;
        load_keys(task, &w, first, n);
        for (size_t r = 0; r < rows; r += 6) {
            for (size_t i = 0; i < n; i += 32)
                tile_f32(w.q + r * padded, 6, 1, w.keys + i * padded, 32, task->head_dim, w.scores + r * KEYS + i, KEYS,
                         true);
            for (size_t j = r; j < r + 6; j++) {
                const size_t end = j < rows ? task->position + j / task->n_heads + 1 : 0; /* keys this row sees */
                softmax_step(&w, j, end > first ? (end - first < n ? end - first : n) : 0);
            }
            for (size_t d = 0; d < padded; d += 32)
                tile_f32(w.scores + r * KEYS, 1, KEYS, w.values + d, padded, n, w.out + r * padded + d, padded, false);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        float *out = task->out + r / task->n_heads * task->token_stride + r % task->n_heads * task->head_dim;
        for (size_t d = 0; d < task->head_dim; d++) out[d] = w.out[r * padded + d] / w.total[r];
    }
}

extern const nib_attend_kernels NIB_AT_LEVEL(nib_attend_kernels_);
const nib_attend_kernels NIB_AT_LEVEL(nib_attend_kernels_) = {.attend = attend};
