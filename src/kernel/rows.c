/* Row by row work, spread over the pool: embedding, normalization, sums, activations, rotary embedding, softmax of logits. */
#include "cpu/cpu.h"
#include "format/format.h"
#include "kernel/level.h"

#include <math.h>

static const nib_row_kernels *kernels(void) {
#define LEVEL(name, needs) &nib_row_kernels_##name,
    static const nib_row_kernels *const levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    return levels[nib_cpu_level_index()];
}

/* Values one worker claims at a time: enough to cost more than the claim, few enough to share. */
enum { GRAIN_VALUES = 16384 };

static size_t rows_per_claim(size_t n_cols) {
    return n_cols >= GRAIN_VALUES ? 1 : GRAIN_VALUES / (n_cols ? n_cols : 1);
}

/* ---- embedding -------------------------------------------------------------------------------------------------- */

typedef struct embed_job {
    const nib_format *format;
    const char *rows;
    size_t row_bytes, n_cols;
    const int32_t *ids;
    float *out;
} embed_job;

static void embed_rows(void *arg, size_t begin, size_t end, unsigned worker) {
    const embed_job *job = arg;
    (void)worker;
    for (size_t i = begin; i < end; i++)
        job->format->decode(job->format, job->out + i * job->n_cols, job->rows + (size_t)job->ids[i] * job->row_bytes,
                            job->n_cols);
}

void nib_embed_rows(nib_pool *pool, const nib_matrix *weight, const int32_t *ids, uint32_t n, float *out) {
    embed_job job = {nib_format_fast(weight->format),
                     weight->data,
                     nib_format_row_bytes(weight->format, weight->n_cols),
                     weight->n_cols,
                     ids,
                     out};
    nib_par_for(pool, n, rows_per_claim(weight->n_cols), embed_rows, &job);
}

/* ---- normalization ---------------------------------------------------------------------------------------------- */

typedef struct norm_job {
    const nib_row_kernels *kernels;
    const float *x, *weight;
    size_t n_cols;
    float eps, *out;
} norm_job;

static void norm_rows(void *arg, size_t begin, size_t end, unsigned worker) {
    const norm_job *job = arg;
    (void)worker;
    for (size_t i = begin; i < end; i++)
        job->kernels->norm(job->x + i * job->n_cols, job->n_cols, job->weight, job->eps, job->out + i * job->n_cols);
}

void nib_norm_rows(nib_pool *pool, const float *x, uint32_t n_rows, uint32_t n_cols, const float *weight, float eps,
                   float *out) {
    norm_job job = {kernels(), x, weight, n_cols, eps, out};
    nib_par_for(pool, n_rows, rows_per_claim(n_cols), norm_rows, &job);
}

/* ---- element by element ----------------------------------------------------------------------------------------- */

typedef struct values_job {
    const nib_row_kernels *kernels;
    const float *x, *y;
    float *out;
} values_job;

static void add_values(void *arg, size_t begin, size_t end, unsigned worker) {
    const values_job *job = arg;
    (void)worker;
    job->kernels->add(job->out + begin, job->y + begin, end - begin);
}

void nib_add_rows(nib_pool *pool, float *x, const float *y, size_t n) {
    values_job job = {kernels(), x, y, x};
    nib_par_for(pool, n, GRAIN_VALUES, add_values, &job);
}

static void swiglu_values(void *arg, size_t begin, size_t end, unsigned worker) {
    const values_job *job = arg;
    (void)worker;
    job->kernels->swiglu(job->x + begin, job->y + begin, end - begin, job->out + begin);
}

void nib_swiglu_rows(nib_pool *pool, const float *gate, const float *up, size_t n, float *out) {
    values_job job = {kernels(), gate, up, out};
    nib_par_for(pool, n, GRAIN_VALUES / 4, swiglu_values, &job);
}

/* ---- rotary embedding ------------------------------------------------------------------------------------------- */

typedef struct rope_job {
    const nib_row_kernels *kernels;
    float *x;
    const uint32_t *positions;
    uint32_t n_head, head_dim, n_pairs;
    const float *inv_freq;
    bool neox;
} rope_job;

static void rope_tokens(void *arg, size_t begin, size_t end, unsigned worker) {
    const rope_job *job = arg;
    (void)worker;
    for (size_t t = begin; t < end; t++)
        job->kernels->rope(job->x + t * job->n_head * job->head_dim, job->positions[t], job->n_head, job->head_dim,
                           job->inv_freq, job->n_pairs, job->neox);
}

void nib_rope_rows(nib_pool *pool, float *x, const uint32_t *positions, uint32_t n_tokens, uint32_t n_head,
                   uint32_t head_dim, const float *inv_freq, uint32_t n_pairs, bool neox) {
    rope_job job = {kernels(), x, positions, n_head, head_dim, n_pairs, inv_freq, neox};
    nib_par_for(pool, n_tokens, rows_per_claim((size_t)n_head * head_dim), rope_tokens, &job);
}

/* ---- logits ----------------------------------------------------------------------------------------------------- */

uint32_t nib_row_argmax(const float *x, uint32_t n, float *largest) {
    size_t index;
    *largest = kernels()->largest(x, n, &index);
    return (uint32_t)index;
}

static float or_zero(float max) {
    return max > -INFINITY ? max : 0;
}

static void raise_max(nib_softmax *row, const float *logits, size_t n) {
    float largest;
    const uint32_t index = nib_row_argmax(logits, (uint32_t)n, &largest);
    if (!(largest > row->max)) return;
    row->sum *= exp((double)row->max - (double)largest);
    row->max = largest;
    row->argmax = row->n + index;
}

/* The largest logit is subtracted although sums in double need no such thing: its own term, most often nearly all of the
 * sum, is then exactly 1, and divergences of 1e-8 do not drown in the rounding of e^x. Few pieces have a new largest one,
 * so it is looked for only when a piece turns out to have one. */
static nib_logit_sums add_piece(nib_softmax *row, nib_logit_piece piece) {
    nib_logit_sums sums;
    if (row->n == 0) row->max = -INFINITY;
    piece.max = row->max;
    if (!(row->max > -INFINITY && kernels()->sum_logits(&piece, false, &sums))) {
        raise_max(row, piece.logits, piece.n);
        piece.max = or_zero(row->max);
        kernels()->sum_logits(&piece, true, &sums);
    }
    row->n += (uint32_t)piece.n;
    row->sum += sums.exp;
    return sums;
}

void nib_softmax_add(nib_softmax *row, const float *logits, uint32_t n, float *terms) {
    add_piece(row, (nib_logit_piece){.logits = logits, .n = n, .terms = terms});
}

double nib_softmax_log_sum(const nib_softmax *row) {
    return (double)or_zero(row->max) + log(row->sum);
}

/* Differences are those of logits less the largest, as rounded for e^x: then what is computed is the divergence of two rows
 * of slightly rounded logits, and a divergence that is small stays so. */
void nib_divergence_add(nib_divergence *divergence, const nib_softmax *base_row, const float *base,
                        const float *base_terms, nib_softmax *row, const float *logits, uint32_t n) {
    const float base_max = or_zero(base_row->max);
    const nib_logit_sums sums = add_piece(
        row, (nib_logit_piece){.logits = logits, .n = n, .base = base, .base_terms = base_terms, .base_max = base_max});
    const float max = or_zero(row->max);
    if (divergence->mass != 0) {
        const double step = (double)divergence->base_max - (double)base_max;
        const double change = step - ((double)divergence->max - (double)max), factor = exp(step);
        divergence->sum = factor != 0 ? factor * (divergence->sum + divergence->mass * change) : 0;
    }
    *divergence = (nib_divergence){divergence->sum + sums.differences, base_row->sum, base_max, max};
}

double nib_divergence_of(const nib_divergence *divergence, const nib_softmax *base_row, const nib_softmax *row) {
    if (base_row->sum == 0) return 0;
    if (row->sum == 0) return INFINITY;
    return divergence->sum / base_row->sum - log(base_row->sum) + log(row->sum);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

nib_row_error nib_row_error_of(const float *weights, const float *decoded, size_t n) {
    return kernels()->row_error(weights, decoded, n);
}
