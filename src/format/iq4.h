/* What iq4_nl and iq4_xs share: 16 uneven levels, close where weights are many, and the search for the scale.
 *
 *   code   0    1   2   3   4   5   6   7 | 8  9 10 11 12 13 14  15
 *   level -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113      w = scale * level[code] */
#ifndef NIB_FORMAT_IQ4_H
#define NIB_FORMAT_IQ4_H

#include "format/search.h"

enum { IQ4_LEVELS = 16, IQ4_SUB = 32 };

static const int8_t IQ4_LEVEL[IQ4_LEVELS] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The same with an offset of 128, for unpack. */
static const uint8_t IQ4_ABOVE[IQ4_LEVELS] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

/* The code of the level nearest to x, the higher of two equally near: how many midpoints x is not below. NaN: 15. */
static inline uint8_t iq4_nearest(float x) {
    unsigned code = 0;
    for (unsigned k = 0; k + 1 < IQ4_LEVELS; k++) code += !(x < 0.5f * (float)(IQ4_LEVEL[k] + IQ4_LEVEL[k + 1]));
    return (uint8_t)code;
}

static inline void iq4_quantize(uint8_t *restrict code, const float *restrict x, float inverse) {
    for (unsigned i = 0; i < IQ4_SUB; i++) code[i] = iq4_nearest(inverse * x[i]);
}

static inline fit_sums iq4_sums_at(float inverse, const float *x, const float *weight) {
    uint8_t code[IQ4_SUB];
    iq4_quantize(code, x, inverse);
    fit_sums sums = {0, 0};
    for (unsigned i = 0; i < IQ4_SUB; i++) {
        const float q = IQ4_LEVEL[code[i]];
        sums.xl += weight[i] * q * x[i];
        sums.ll += weight[i] * q * q;
    }
    return sums;
}

/* The scale of 32 weights: tries the one that maps the extreme to 127 and 15 that map it to -120..-134. Returns 0 for
 * all-zero weights. */
static inline float iq4_fit(const float *x, const float *weight) {
    const float max = extreme_number(x, IQ4_SUB);
    if (fabsf(max) < SEARCH_ZERO) return 0;
    const float first = -max / IQ4_LEVEL[0];
    fit_sums sums = iq4_sums_at(1 / first, x, weight);
    float scale = sums.ll > 0 ? sums.xl / sums.ll : 0.0f;
    float best = scale * sums.xl;
    for (int step = -7; step <= 7; step++) {
        sums = iq4_sums_at((float)(step + IQ4_LEVEL[0]) / max, x, weight);
        if (sums.ll > 0 && sums.xl * sums.xl > best * sums.ll) {
            scale = sums.xl / sums.ll;
            best = scale * sums.xl;
        }
    }
    return scale;
}

#endif
