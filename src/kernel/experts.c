/* Mixtures of experts: each token goes through a few of many small feed-forward networks.
 *
 *   logits (n_tokens, n_experts) --> pairs (token, expert), n_used a token --> the same, ordered by expert
 *   for each expert with tokens: gather their inputs --> gate, up        the weights of an expert are read once,
 *   all pairs: silu(gate) * up                                           however many tokens it has
 *   for each expert with tokens: down --> each token's sum, by its share
 *
 * A token's results are added in the order of the experts, so they do not depend on threads or on other tokens. */
#include "base/memory.h"
#include "kernel/kernel.h"

#include <math.h>
#include <string.h>

enum { ROWS_PER_CLAIM = 8, EXPERTS_AT_ONCE = 8 };

/* Shares are not blown up where the router gives the chosen next to nothing (spec of the reference: 2^-14). */
#define LEAST_SUM 6.103515625e-5f

typedef struct expert_job {
    const nib_expert_work *work;
    uint32_t *expert; /* (n_tokens, n_used) chosen, best first */
    float *share;     /* (n_tokens, n_used) */
    uint32_t *order;  /* (n_tokens * n_used) pairs by expert, then by token */
    uint32_t *start;  /* (n_experts + 1) where each expert's pairs begin in order */
    uint32_t first;   /* the expert at hand: its first pair in order */
} expert_job;

size_t nib_experts_route_words(uint32_t n_experts, uint32_t n_used) {
    return (size_t)3 * n_used + n_experts + 1;
}

/* ---- Routes ----------------------------------------------------------------------------------------------------- */

/* The n_used largest of a token's logits, largest first, of equals the first. NaN is never larger. */
static void choose(const float *logits, uint32_t n_experts, uint32_t n_used, uint32_t *expert) {
    uint32_t n = 0;
    for (uint32_t e = 0; e < n_experts; e++) {
        if (n == n_used && !(logits[e] > logits[expert[n - 1]])) continue;
        uint32_t at = n < n_used ? n++ : n - 1;
        for (; at > 0 && logits[e] > logits[expert[at - 1]]; at--) expert[at] = expert[at - 1];
        expert[at] = e;
    }
}

static void route_tokens(void *arg, size_t begin, size_t end, unsigned worker) {
    const expert_job *job = arg;
    const nib_expert_work *work = job->work;
    (void)worker;
    for (size_t t = begin; t < end; t++) {
        const float *logits = work->logits + t * work->n_experts;
        uint32_t *expert = job->expert + t * work->n_used;
        float *share = job->share + t * work->n_used;
        choose(logits, work->n_experts, work->n_used, expert);
        float all = 0, chosen = 0;
        for (uint32_t e = 0; e < work->n_experts; e++) all += expf(logits[e] - logits[expert[0]]);
        for (uint32_t i = 0; i < work->n_used; i++) {
            share[i] = expf(logits[expert[i]] - logits[expert[0]]) / all;
            chosen += share[i];
        }
        for (uint32_t i = 0; i < work->n_used; i++) share[i] /= chosen > LEAST_SUM ? chosen : LEAST_SUM;
    }
}

static void order_pairs(const expert_job *job) {
    const uint32_t n_pairs = job->work->n_tokens * job->work->n_used, n_experts = job->work->n_experts;
    memset(job->start, 0, ((size_t)n_experts + 1) * sizeof *job->start);
    for (uint32_t p = 0; p < n_pairs; p++) job->start[job->expert[p] + 1]++;
    for (uint32_t e = 0; e < n_experts; e++) job->start[e + 1] += job->start[e];
    for (uint32_t p = 0; p < n_pairs; p++) job->order[job->start[job->expert[p]]++] = p;
    memmove(job->start + 1, job->start, n_experts * sizeof *job->start); /* ends are the next one's beginnings */
    job->start[0] = 0;
}

/* ---- Networks --------------------------------------------------------------------------------------------------- */

static nib_matrix matrix_of(const nib_matrix *stack, uint32_t expert) {
    nib_matrix matrix = *stack;
    const size_t bytes = nib_format_row_bytes(stack->format, stack->n_cols) * stack->n_rows;
    matrix.data = (const char *)stack->data + expert * bytes;
    return matrix;
}

static void gather(void *arg, size_t begin, size_t end, unsigned worker) {
    const expert_job *job = arg;
    const size_t n = job->work->gate.n_cols;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const size_t token = job->order[job->first + i] / job->work->n_used;
        memcpy(job->work->in + i * n, job->work->x + token * n, n * sizeof(float));
    }
}

/* out[token] += share * result */
static void scatter(void *arg, size_t begin, size_t end, unsigned worker) {
    const expert_job *job = arg;
    const size_t n = job->work->down.n_rows;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const uint32_t pair = job->order[job->first + i];
        const float share = job->share[pair], *result = job->work->in + i * n;
        float *out = job->work->out + (size_t)(pair / job->work->n_used) * n;
        for (size_t c = 0; c < n; c++) out[c] += share * result[c];
    }
}

static void put_products(const expert_job *job, uint32_t expert, nib_product *products) {
    const nib_expert_work *work = job->work;
    const size_t at = (size_t)job->start[expert] * work->gate.n_rows;
    products[0] = (nib_product){.weight = matrix_of(&work->gate, expert), .out = work->gates + at};
    products[1] = (nib_product){.weight = matrix_of(&work->up, expert), .out = work->ups + at};
}

/* Gates and ups of all pairs, in the order of the pairs. */
static void widen(expert_job *job, nib_pool *pool, nib_path path, void *scratch) {
    const nib_expert_work *work = job->work;
    nib_product products[2];
    for (uint32_t e = 0; e < work->n_experts; e++) {
        const uint32_t n = job->start[e + 1] - job->start[e];
        if (n == 0) continue;
        job->first = job->start[e];
        put_products(job, e, products);
        nib_par_for(pool, n, ROWS_PER_CLAIM, gather, job);
        nib_linear(pool, path, work->in, n, products, 2, scratch);
    }
}

/* The same for a lone token: its experts have one input and go together. */
static void widen_one(const expert_job *job, nib_pool *pool, nib_path path, void *scratch) {
    const nib_expert_work *work = job->work;
    nib_product products[2 * EXPERTS_AT_ONCE];
    for (uint32_t first = 0; first < work->n_used; first += EXPERTS_AT_ONCE) {
        const uint32_t left = work->n_used - first, n = left < EXPERTS_AT_ONCE ? left : EXPERTS_AT_ONCE;
        for (uint32_t i = 0; i < n; i++) put_products(job, job->expert[first + i], products + 2 * i);
        nib_linear(pool, path, work->x, 1, products, 2 * n, scratch);
    }
}

static void narrow(expert_job *job, nib_pool *pool, nib_path path, void *scratch) {
    const nib_expert_work *work = job->work;
    for (uint32_t e = 0; e < work->n_experts; e++) {
        const uint32_t n = job->start[e + 1] - job->start[e];
        if (n == 0) continue;
        job->first = job->start[e];
        const nib_product product = {.weight = matrix_of(&work->down, e), .out = work->in};
        nib_linear(pool, path, work->gates + (size_t)job->first * work->down.n_cols, n, &product, 1, scratch);
        nib_par_for(pool, n, ROWS_PER_CLAIM, scatter, job);
    }
}

void nib_experts(nib_pool *pool, nib_path path, const nib_expert_work *work, void *scratch) {
    const size_t n_pairs = (size_t)work->n_tokens * work->n_used;
    expert_job job = {.work = work, .expert = work->routes, .share = (float *)work->routes + n_pairs};
    job.order = (uint32_t *)work->routes + 2 * n_pairs;
    job.start = (uint32_t *)work->routes + 3 * n_pairs;
    nib_par_for(pool, work->n_tokens, ROWS_PER_CLAIM, route_tokens, &job);
    order_pairs(&job);
    if (work->n_tokens == 1)
        widen_one(&job, pool, path, scratch);
    else
        widen(&job, pool, path, scratch);
    nib_swiglu_rows(pool, work->gates, work->ups, n_pairs * work->gate.n_rows, work->gates);
    memset(work->out, 0, (size_t)work->n_tokens * work->down.n_rows * sizeof(float));
    narrow(&job, pool, path, scratch);
}
