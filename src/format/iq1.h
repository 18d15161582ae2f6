/* What iq1_s and iq1_m share: levels -1, 0, 1, all moved by +1/8 or -1/8, eight at a time from a codebook of 2048 points.
 * Encoders first find the best codes without the codebook: the optimal split of a sub-block's weights, in ascending order,
 * into those that become -1, 0 and 1. Then groups that have no point take their best neighbour.
 * The order of every float operation is part of the format's definition: the bytes equal llama-quantize's (which sorts
 * equal weights in any order; here the earlier one comes first). */
#ifndef NIB_FORMAT_IQ1_H
#define NIB_FORMAT_IQ1_H

#include "format/codebook.h"
#include "format/search.h"

enum { IQ1_POINT = 8, IQ1_BLOCK = 256 };
enum { IQ1_UP, IQ1_DOWN }; /* the two shifts */

static const float IQ1_LEVEL[2][3] = {{-1 + 0.125f, 0.125f, 1 + 0.125f}, {-1 - 0.125f, -0.125f, 1 - 0.125f}};

/* order[j]: which weight is the j-th in ascending order. n <= 32 */
static inline void iq1_sort(uint8_t *restrict order, const float *restrict x, unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        unsigned at = i;
        for (; at > 0 && x[order[at - 1]] > x[i]; at--) order[at] = order[at - 1];
        order[at] = (uint8_t)i;
    }
}

/* Levels of the split: order[0..first) become 0, order[first..second) 1, the others 2; the other way round if mirrored. */
static inline void iq1_split(uint8_t *restrict level, const uint8_t *restrict order, unsigned n, unsigned first,
                             unsigned second, bool mirrored) {
    for (unsigned j = 0; j < n; j++) {
        const uint8_t its = (uint8_t)((j >= first) + (j >= second));
        level[order[j]] = mirrored ? (uint8_t)(2 - its) : its;
    }
}

/* The point of 8 levels, or the neighbour with the smallest weighted squared error; -1: none is at a finite distance.
 * shifted: (3) what the levels mean. *is_off: the levels have no point. */
static inline int iq1_nearest(const nib_codebook *book, const uint8_t *level, const float *x, const float *weight,
                              float scale, const float *shifted, bool *is_off) {
    unsigned spot = 0;
    for (unsigned i = IQ1_POINT; i-- > 0;) spot = 3 * spot + level[i];
    const int32_t at = book->at[spot];
    if (at >= 0) return at;
    *is_off = true;
    float error[IQ1_POINT][4];
    for (unsigned i = 0; i < IQ1_POINT; i++) {
        for (unsigned k = 0; k < 3; k++) {
            const float off = scale * shifted[k] - x[i];
            error[i][k] = weight[i] * off * off;
        }
    }
    const uint16_t *list = book->neighbours + (-1 - at);
    float least = FLT_MAX;
    int best = -1;
    for (unsigned j = 1; j <= list[0]; j++) {
        const uint8_t *its = book->level + list[j] * IQ1_POINT;
        float squared = 0;
        for (unsigned i = 0; i < IQ1_POINT; i++) squared += error[i][its[i]];
        if (squared < least) {
            least = squared;
            best = list[j];
        }
    }
    return best;
}

/* Adds the sums of one point, whose levels are multiplied by `factor`. */
static inline void iq1_add(fit_sums *sums, const nib_codebook *book, unsigned point, const float *x,
                           const float *weight, const float *shifted, float factor) {
    for (unsigned i = 0; i < IQ1_POINT; i++) {
        const float q = shifted[book->level[point * IQ1_POINT + i]] * factor;
        sums->xl += weight[i] * q * x[i];
        sums->ll += weight[i] * q * q;
    }
}

/* 3-bit code of a sub-block's scale: scale = d * (2 code + 1). */
static inline unsigned iq1_scale_code(float scale, float inverse_d) {
    return (unsigned)clamp_int(round_even(0.5f * (inverse_d * scale - 1)), 0, 7);
}

/* ---- Decoding: blocks as scales and levels in eighths ------------------------------------------------------------- */

/* dst (8): 8 * level + 1 or - 1 */
static inline void iq1_read_point(int8_t *restrict dst, const nib_codebook *book, unsigned point, bool down) {
    const int8_t *value = book->value + point * IQ1_POINT;
    const int shift = down ? -1 : 1;
    for (unsigned i = 0; i < IQ1_POINT; i++) dst[i] = (int8_t)(8 * value[i] + shift);
}

static inline void iq1_decode_block(float *restrict dst, const int8_t *restrict eighths, const float *restrict scale,
                                    unsigned n_scales) {
    const unsigned group = IQ1_BLOCK / n_scales;
    for (unsigned g = 0; g < n_scales; g++) {
        for (unsigned j = 0; j < group; j++) dst[group * g + j] = scale[g] * ((float)eighths[group * g + j] * 0.125f);
    }
}

static inline void iq1_unpack_block(nib_codes *restrict out, const int8_t *restrict eighths,
                                    const float *restrict scale, unsigned n_scales) {
    for (unsigned i = 0; i < IQ1_BLOCK; i++) out->code[i] = (uint8_t)(eighths[i] + 9);
    for (unsigned g = 0; g < n_scales; g++) {
        out->scale[g] = scale[g] * 0.125f;
        out->min[g] = 9 * out->scale[g];
    }
}

#endif
