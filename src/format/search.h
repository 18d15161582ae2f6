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

/* Codes 0..n_max of non-negative x (the scales of sub-blocks): nine scales, then coordinate descent. */
static inline float fit_positive(int n, int n_max, const float *x, uint8_t *code, const float *weight) {
    float max = 0;
    for (int i = 0; i < n; i++) max = max > x[i] ? max : x[i];
    if (max < SEARCH_ZERO) {
        memset(code, 0, (size_t)n);
        return 0;
    }
    float inverse = (float)n_max / max, best = 0;
    for (int i = 0; i < n; i++) {
        const float e = x[i] - 1 / inverse * (float)(uint8_t)round_even(inverse * x[i]);
        best += weight[i] * e * e;
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0) continue;
        const float trial = (0.1f * (float)step + (float)n_max) / max, scale = 1 / trial;
        float error = 0;
        for (int i = 0; i < n; i++) {
            const int l = round_even(trial * x[i]);
            const float e = x[i] - scale * (float)(l < n_max ? l : n_max);
            error += weight[i] * e * e;
        }
        if (error < best) {
            best = error;
            inverse = trial;
        }
    }
    float xl = 0, ll = 0;
    for (int i = 0; i < n; i++) {
        const int rounded = round_even(inverse * x[i]), l = rounded < n_max ? rounded : n_max;
        code[i] = (uint8_t)l;
        xl += weight[i] * x[i] * (float)l;
        ll += weight[i] * (float)l * (float)l;
    }
    bool changed = true;
    for (int sweep = 0; sweep < 5 && changed; sweep++) {
        changed = false;
        for (int i = 0; i < n; i++) {
            const float w = weight[i];
            float rest_xl = xl - w * x[i] * (float)code[i], rest_ll = ll - w * (float)code[i] * (float)code[i];
            if (!(rest_xl > 0 && rest_ll > 0)) continue;
            const int rounded = round_even(x[i] * rest_ll / rest_xl), l = rounded < n_max ? rounded : n_max;
            if (l == code[i]) continue;
            rest_xl += w * x[i] * (float)l;
            rest_ll += w * (float)l * (float)l;
            if (rest_xl * rest_xl * ll > xl * xl * rest_ll) {
                code[i] = (uint8_t)l;
                xl = rest_xl;
                ll = rest_ll;
                changed = true;
            }
        }
    }
    return ll > 0 ? xl / ll : 0.0f;
}

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

static inline float sum_in_order(const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

#endif
