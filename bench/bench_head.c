/* Softmax and divergence of rows of logits by themselves: milliseconds a token against plain loops in the manner of a
 * textbook, one thread.
 *
 *   usage: bench_head [VOCABULARY] */
#include "base/memory.h"
#include "kernel/kernel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 4, PIECE = 4096 }; /* as much as the tiles of an evaluation: it stays in the caches */

/* Three passes over each row with the C library's functions, as it is written down first. */
static double plain(const float *base, const float *test, uint32_t n) {
    double base_sum = 0, test_sum = 0, kld = 0;
    float base_max = base[0], test_max = test[0];
    for (uint32_t i = 1; i < n; i++) base_max = base[i] > base_max ? base[i] : base_max;
    for (uint32_t i = 1; i < n; i++) test_max = test[i] > test_max ? test[i] : test_max;
    for (uint32_t i = 0; i < n; i++) base_sum += expf(base[i] - base_max);
    for (uint32_t i = 0; i < n; i++) test_sum += expf(test[i] - test_max);
    const double base_log = base_max + log(base_sum), test_log = test_max + log(test_sum);
    for (uint32_t i = 0; i < n; i++) {
        const float p = expf((float)(base[i] - base_log));
        if (p > 0) kld += p * (base[i] - base_log - (test[i] - test_log));
    }
    return kld;
}

static double ours(const float *base, const float *test, uint32_t n) {
    static float terms[PIECE];
    nib_softmax p = {0}, q = {0};
    nib_divergence divergence = {0};
    for (uint32_t i = 0; i < n; i += PIECE) {
        const uint32_t piece = n - i < PIECE ? n - i : PIECE;
        nib_softmax_add(&p, base + i, piece, terms);
        nib_divergence_add(&divergence, &p, base + i, terms, &q, test + i, piece);
    }
    return nib_divergence_of(&divergence, &p, &q);
}

static double milliseconds(double (*fn)(const float *, const float *, uint32_t), const float *base, const float *test,
                           uint32_t n, double *mean) {
    double best = INFINITY;
    for (int round = 0; round < 5; round++) {
        const double began = nib_now();
        *mean = 0;
        for (size_t r = 0; r < ROWS; r++) *mean += fn(base + r * n, test + r * n, n) / ROWS;
        const double ms = 1e3 * (nib_now() - began) / ROWS;
        best = ms < best ? ms : best;
    }
    return best;
}

int main(int argc, char **argv) {
    const uint32_t n = argc > 1 ? (uint32_t)atoi(argv[1]) : 151936;
    float *base = nib_alloc_aligned((size_t)ROWS * n * sizeof *base),
          *test = nib_alloc_aligned((size_t)ROWS * n * sizeof *test);
    if (!base || !test) return 1;
    uint64_t state = 1;
    for (size_t i = 0; i < (size_t)ROWS * n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        base[i] = (float)(state >> 40) * 0x1p-24f * 16 - 8;
        test[i] = base[i] + ((float)(state >> 20 & 0xfffff) * 0x1p-20f - 0.5f) * 0.1f;
    }
    double kld_plain, kld_ours;
    const double a = milliseconds(plain, base, test, n, &kld_plain), b = milliseconds(ours, base, test, n, &kld_ours);
    printf("%u tokens: plain %.3f ms (%.9g), ours %.4f ms (%.9g): %.1f x\n", n, a, kld_plain, b, kld_ours, a / b);
    nib_free_aligned(base);
    nib_free_aligned(test);
    return 0;
}
