/* What mxfp4 and nvfp4 share: 4-bit floats with a sign, 2 exponent bits and 1 mantissa bit, taken twice so that they are
 * integers. The block's scale is halved for it.
 *
 *   code    0 1 2 3 4 5 6  7   8  9 ..  15
 *   double  0 1 2 3 4 6 8 12   0 -1 .. -12 */
#ifndef NIB_FORMAT_E2M1_H
#define NIB_FORMAT_E2M1_H

#include "format/block.h"

#include <math.h>

enum { E2M1_OFFSET = 16 };

static const int8_t E2M1_DOUBLE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* The same with the offset, for unpack. */
static const uint8_t E2M1_ABOVE[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

/* Codes nearest to x / half, the lowest of equally near ones. half: half the block's scale. */
static inline void e2m1_quantize(uint8_t *restrict code, const float *restrict x, size_t n, float half) {
    for (size_t i = 0; i < n; i++) {
        unsigned best = 0;
        float error = fabsf(0 * half - x[i]);
        for (unsigned k = 1; k < 16; k++) {
            const float trial = fabsf((float)E2M1_DOUBLE[k] * half - x[i]);
            best = trial < error ? k : best;
            error = trial < error ? trial : error;
        }
        code[i] = (uint8_t)best;
    }
}

#endif
