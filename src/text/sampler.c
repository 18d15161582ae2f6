/* Choosing the next token: the largest logit, or a draw from what top-k, top-p and min-p leave.
 *
 *   logits -> top_k largest, sorted -> top_p -> min_p -> temperature -> draw
 *
 * The same seed gives the same ids on every system: the generator (xoshiro256**, Blackman and Vigna 2018, seeded through
 * splitmix64) and the exponential are written here in plain double arithmetic. NaN counts as minus infinity. */
#include "base/error.h"
#include "base/memory.h"
#include "kernel/kernel.h"
#include "nibble/text.h"

#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct nib_sampler {
    nib_sampler_params params;
    uint32_t n_vocab;
    uint64_t state[4];
    candidate *candidates; /* (n_vocab) */
    double *weights;       /* (n_vocab) */
};

nib_sampler_params nib_sampler_defaults(void) {
    return (nib_sampler_params){.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .seed = 0};
}

/* ---- Numbers -------------------------------------------------------------------------------------------------------- */

static uint64_t splitmix64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t rotate_left(uint64_t x, int k) {
    return x << k | x >> (64 - k);
}

/* xoshiro256** */
static uint64_t next_u64(uint64_t s[4]) {
    const uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* e^x for x <= 0, the same bits everywhere; about 1e-15 relative. */
static double exp_of(double x) {
    if (!(x > -700)) return 0;
    const double n = floor(x * 1.4426950408889634 + 0.5);
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10; /* ln 2 in two parts */
    double sum = 1;
    for (int k = 14; k > 0; k--) sum = 1 + sum * r / k; /* Taylor: |r| <= 0.35 */
    const uint64_t bits = (uint64_t)(1023 + (int64_t)n) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* ---- Candidates ----------------------------------------------------------------------------------------------------- */

/* Does a come after b, i.e. is it the worse one? Equal logits: the lower id is better. */
static bool worse(candidate a, candidate b) {
    return a.logit < b.logit || (a.logit == b.logit && a.id > b.id);
}

/* Restores the heap (worst first) below i. */
static void sift_down(candidate *heap, size_t n, size_t i) {
    const candidate item = heap[i];
    for (size_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && worse(heap[child + 1], heap[child])) child++;
        if (!worse(heap[child], item)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
}

static candidate candidate_of(const float *logits, uint32_t id) {
    return (candidate){isnan(logits[id]) ? -INFINITY : logits[id], (int32_t)id};
}

/* The k best in falling order. Once k are found, blocks that have nothing better than the worst of them are passed over:
 * later ids lose against equal ones. */
static void take_best(candidate *out, uint32_t k, const float *logits, uint32_t n_vocab) {
    enum { BLOCK = 256 };
    for (uint32_t id = 0; id < k; id++) out[id] = candidate_of(logits, id);
    for (size_t i = k / 2; i-- > 0;) sift_down(out, k, i);
    for (uint32_t first = k, n; first < n_vocab; first += n) {
        float largest;
        n = n_vocab - first < BLOCK ? n_vocab - first : BLOCK;
        nib_row_argmax(logits + first, n, &largest);
        if (!(largest > out[0].logit)) continue;
        for (uint32_t id = first; id < first + n; id++) {
            const candidate item = candidate_of(logits, id);
            if (!worse(out[0], item)) continue;
            out[0] = item;
            sift_down(out, k, 0);
        }
    }
    for (size_t n = k; n > 1; n--) {
        const candidate worst = out[0];
        out[0] = out[n - 1];
        sift_down(out, n - 1, 0);
        out[n - 1] = worst;
    }
}

/* How far candidate i lies below the best (<= 0), also where infinities meet. */
static double below(const candidate *items, size_t i) {
    return items[i].logit == items[0].logit ? 0 : (double)items[i].logit - (double)items[0].logit;
}

static size_t apply_top_p(const candidate *items, double *weights, size_t n, float top_p) {
    double total = 0, sum = 0;
    if (top_p >= 1) return n;
    for (size_t i = 0; i < n; i++) total += weights[i] = exp_of(below(items, i));
    for (size_t i = 0; i < n; i++) {
        sum += weights[i];
        if (sum >= (double)top_p * total) return i + 1;
    }
    return n;
}

static size_t apply_min_p(const candidate *items, size_t n, float min_p) {
    size_t kept = 1;
    while (kept < n && exp_of(below(items, kept)) >= (double)min_p) kept++;
    return kept;
}

/* ---- Public --------------------------------------------------------------------------------------------------------- */

nib_status nib_sampler_new(const nib_sampler_params *params, uint32_t n_vocab, nib_sampler **out, nib_error *error) {
    *out = NULL;
    if (n_vocab == 0 || n_vocab > INT32_MAX) return nib_fail(error, NIB_ERR_USAGE, "a sampler needs a vocabulary");
    if (!(params->temperature >= 0) || isinf(params->temperature))
        return nib_fail(error, NIB_ERR_USAGE, "temperature %g: want 0 or more", (double)params->temperature);
    if (!(params->top_p >= 0 && params->top_p <= 1))
        return nib_fail(error, NIB_ERR_USAGE, "top-p %g: want 0 to 1", (double)params->top_p);
    if (!(params->min_p >= 0 && params->min_p <= 1))
        return nib_fail(error, NIB_ERR_USAGE, "min-p %g: want 0 to 1", (double)params->min_p);
    nib_sampler *sampler = nib_alloc(1, sizeof *sampler);
    if (sampler == NULL) return nib_fail_memory(error, sizeof *sampler);
    sampler->params = *params;
    sampler->n_vocab = n_vocab;
    sampler->candidates = nib_alloc(n_vocab, sizeof *sampler->candidates);
    sampler->weights = nib_alloc(n_vocab, sizeof *sampler->weights);
    if (sampler->candidates == NULL || sampler->weights == NULL) {
        nib_sampler_free(sampler);
        return nib_fail_memory(error, n_vocab * (uint64_t)(sizeof(candidate) + sizeof(double)));
    }
    uint64_t seed = params->seed;
    for (int i = 0; i < 4; i++) sampler->state[i] = splitmix64(&seed);
    *out = sampler;
    return NIB_OK;
}

void nib_sampler_free(nib_sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->candidates);
    free(sampler->weights);
    free(sampler);
}

int32_t nib_sampler_next(nib_sampler *sampler, const float *logits) {
    const nib_sampler_params *p = &sampler->params;
    if (p->temperature == 0) {
        float largest;
        return (int32_t)nib_row_argmax(logits, sampler->n_vocab, &largest);
    }
    candidate *items = sampler->candidates;
    const uint32_t k = p->top_k == 0 || p->top_k > sampler->n_vocab ? sampler->n_vocab : p->top_k;
    take_best(items, k, logits, sampler->n_vocab);
    size_t n = apply_top_p(items, sampler->weights, k, p->top_p);
    if (p->min_p > 0) n = apply_min_p(items, n, p->min_p);

    double total = 0;
    for (size_t i = 0; i < n; i++) total += sampler->weights[i] = exp_of(below(items, i) / (double)p->temperature);
    double left = (double)(next_u64(sampler->state) >> 11) * 0x1p-53 * total;
    for (size_t i = 0; i + 1 < n; i++) {
        if (left < sampler->weights[i]) return items[i].id;
        left -= sampler->weights[i];
    }
    return items[n - 1].id;
}
