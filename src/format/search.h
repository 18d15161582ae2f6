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

static inline fit_sums sums_at(float inverse, int n, int n_max, const float *x, const float *weight) {
    fit_sums sums = {0, 0};
    for (int i = 0; i < n; i++) {
        const int l = clamp_int(round_even(inverse * x[i]), -n_max, n_max - 1);
        const float w = weight ? weight[i] : x[i] * x[i];
        sums.xl += w * x[i] * (float)l;
        sums.ll += w * (float)l * (float)l;
    }
    return sums;
}

/* Symmetric codes l in [-n_max, n_max-1], stored as l + n_max; tries 19 scales around the one that maps the extreme to
 * -n_max. weight NULL: x^2. Returns the scale; 0 and codes 0 for an all-zero block. */
static inline float fit_symmetric(int n, int n_max, const float *x, uint8_t *code, const float *weight) {
    const float max = extreme_number(x, n);
    if (fabsf(max) < SEARCH_ZERO) {
        memset(code, 0, (size_t)n);
        return 0;
    }
    float chosen = (float)-n_max / max;
    fit_sums sums = sums_at(chosen, n, n_max, x, weight);
    float scale = sums.ll != 0 ? sums.xl / sums.ll : 0.0f;
    float best = scale * sums.xl;
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        const float inverse = -((float)n_max + 0.1f * (float)step) / max;
        sums = sums_at(inverse, n, n_max, x, weight);
        if (sums.ll > 0 && sums.xl * sums.xl > best * sums.ll) {
            chosen = inverse;
            scale = sums.xl / sums.ll;
            best = scale * sums.xl;
        }
    }
    for (int i = 0; i < n; i++) code[i] = (uint8_t)(n_max + clamp_int(round_even(chosen * x[i]), -n_max, n_max - 1));
    return scale;
}

/* Symmetric codes by coordinate descent: starts as above with weights x^2 and changes one code at a time, at most five
 * sweeps. n <= 16. */
static inline float fit_by_descent(int n, int n_max, const float *x, uint8_t *code) {
    const float max = extreme_number(x, n);
    if (fabsf(max) < SEARCH_ZERO) {
        memset(code, 0, (size_t)n);
        return 0;
    }
    const float inverse = (float)-n_max / max;
    int level[16];
    float xl = 0, ll = 0;
    for (int i = 0; i < n; i++) {
        level[i] = clamp_int(round_even(inverse * x[i]), -n_max, n_max - 1);
        const float w = x[i] * x[i];
        xl += w * x[i] * (float)level[i];
        ll += w * (float)level[i] * (float)level[i];
    }
    bool changed = true;
    for (int sweep = 0; sweep < 5 && changed; sweep++) {
        changed = false;
        for (int i = 0; i < n; i++) {
            const float w = x[i] * x[i];
            float rest_xl = xl - w * x[i] * (float)level[i];
            if (!(rest_xl > 0)) continue;
            float rest_ll = ll - w * (float)level[i] * (float)level[i];
            const int l = clamp_int(round_even(x[i] * rest_ll / rest_xl), -n_max, n_max - 1);
            if (l == level[i]) continue;
            rest_xl += w * x[i] * (float)l;
            rest_ll += w * (float)l * (float)l;
            if (rest_ll > 0 && rest_xl * rest_xl * ll > xl * xl * rest_ll) {
                level[i] = l;
                xl = rest_xl;
                ll = rest_ll;
                changed = true;
            }
        }
    }
    for (int i = 0; i < n; i++) code[i] = (uint8_t)(level[i] + n_max);
    return ll > 0 ? xl / ll : 0.0f;
}

/* How fit_with_minimum searches: scales (first + step * k + n_max) / range for k = 0..n_steps. */
typedef struct min_search {
    int n_max;
    float first, step;
    int n_steps;
    bool absolute; /* errors are |e|, not e^2 */
} min_search;

static inline float error_of(const min_search *how, int n, const float *x, const float *weight, const uint8_t *code,
                             float scale, float min) {
    float error = 0;
    for (int i = 0; i < n; i++) {
        const float e = scale * (float)code[i] + min - x[i];
        error += weight[i] * (how->absolute ? fabsf(e) : e * e);
    }
    return error;
}

/* Codes 0..n_max with a scale and a minimum <= 0: for each scale tried, codes by rounding, then the least-squares scale
 * and minimum of those codes. n <= 32. Returns the scale, and the negated minimum in *negated_min. */
static inline float fit_with_minimum(const min_search *how, int n, const float *x, const float *weight, uint8_t *code,
                                     float *negated_min) {
    const int n_max = how->n_max;
    float min = x[0], max = x[0], sum_w = weight[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; i++) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    if (min > 0) min = 0;
    if (max <= min) {
        memset(code, 0, (size_t)n);
        *negated_min = -min;
        return 0;
    }
    float inverse = (float)n_max / (max - min), scale = 1 / inverse;
    for (int i = 0; i < n; i++) code[i] = (uint8_t)clamp_int(round_even(inverse * (x[i] - min)), 0, n_max);
    float best = error_of(how, n, x, weight, code, scale, min);
    for (int k = 0; k <= how->n_steps; k++) {
        uint8_t trial[32];
        float sum_l = 0, sum_ll = 0, sum_xl = 0;
        inverse = (how->first + how->step * (float)k + (float)n_max) / (max - min);
        for (int i = 0; i < n; i++) {
            const int l = clamp_int(round_even(inverse * (x[i] - min)), 0, n_max);
            trial[i] = (uint8_t)l;
            sum_l += weight[i] * (float)l;
            sum_ll += weight[i] * (float)l * (float)l;
            sum_xl += weight[i] * (float)l * x[i];
        }
        const float determinant = sum_w * sum_ll - sum_l * sum_l;
        if (!(determinant > 0)) continue;
        float trial_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        float trial_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        if (trial_min > 0) {
            trial_min = 0;
            trial_scale = sum_xl / sum_ll;
        }
        const float error = error_of(how, n, x, weight, trial, trial_scale, trial_min);
        if (error < best) {
            memcpy(code, trial, (size_t)n);
            best = error;
            scale = trial_scale;
            min = trial_min; /* the next trials start from it */
        }
    }
    *negated_min = -min;
    return scale;
}

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

/* Codes of one sub-block for a scale and minimum that are fixed by now. */
static inline void requantize(uint8_t *restrict code, size_t n, const float *restrict x, float scale, float min,
                              int n_max) {
    for (size_t i = 0; i < n; i++) code[i] = (uint8_t)clamp_int(round_even((x[i] + min) / scale), 0, n_max);
}

/* The same for codes stored with an offset, without minimum. */
static inline void requantize_symmetric(uint8_t *restrict code, size_t n, const float *restrict x, float scale,
                                        int n_max) {
    for (size_t i = 0; i < n; i++) code[i] = (uint8_t)(n_max + clamp_int(round_even(x[i] / scale), -n_max, n_max - 1));
}

#endif
