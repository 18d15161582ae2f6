/* The searches that find a block's scale and codes with the smallest weighted squared error. The order of every float
 * operation is part of the format's definition: the bytes equal llama-quantize's. Sums run left to right.
 *
 * x: (n) weights or scales; weight: (n) non-negative importance of each error; code: (n) results.
 * Methods: llama.cpp's quantizers (commit d32676d). */
#ifndef NIB_FORMAT_SEARCH_H
#define NIB_FORMAT_SEARCH_H

#include "format/block.h"

#include <math.h>

#define SEARCH_ZERO 1e-15f /* blocks whose largest magnitude is below this count as zero */

/* As extreme(), but skipping NaN: scales of sub-blocks whose sums overflowed. */
static inline float extreme_number(const float *x, int n) {
    float magnitude = 0, max = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > magnitude) {
            magnitude = fabsf(x[i]);
            max = x[i];
        }
    }
    return max;
}

/* How well codes fit: numerator and denominator of the best scale, sum wxl / sum wll. */
typedef struct fit_sums {
    float xl, ll;
} fit_sums;

/* The weight of each error with an importance matrix: importance * sqrt(sigma2 + x^2). */
static inline void weigh(float *restrict weight, size_t n, const float *restrict x, const float *restrict importance,
                         float sigma2) {
    for (size_t i = 0; i < n; i++) weight[i] = importance[i] * sqrtf(sigma2 + x[i] * x[i]);
}

/* The same, or x^2 where there is no importance matrix. */
static inline void weigh_or_square(float *restrict weight, size_t n, const float *restrict x,
                                   const float *restrict importance, float sigma2) {
    if (importance) {
        weigh(weight, n, x, importance, sigma2);
        return;
    }
    for (size_t i = 0; i < n; i++) weight[i] = x[i] * x[i];
}

#endif
