/* What iq4_nl and iq4_xs share: 16 uneven levels, close where weights are many, and the search for the scale, which runs
 * for 16 sub-blocks at once, one a lane. The order of every float operation in a lane is part of the formats' definition:
 * the bytes equal llama-quantize's.
 *
 *   code   0    1   2   3   4   5   6   7 | 8  9 10 11 12 13 14  15
 *   level -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113      w = scale * level[code] */
#ifndef NIB_FORMAT_IQ4_H
#define NIB_FORMAT_IQ4_H

#include "format/lanes.h"

enum { IQ4_LEVELS = 16, IQ4_SUB = 32 };

static const int8_t IQ4_LEVEL[IQ4_LEVELS] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The same with an offset of 128, for unpack. */
static const uint8_t IQ4_ABOVE[IQ4_LEVELS] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

/* ---- Encoding: 16 sub-blocks, one a lane -------------------------------------------------------------------------- */

static const float IQ4_LEVEL_F[IQ4_LEVELS] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The middle between each level and the next. */
static const float IQ4_MIDDLE[IQ4_LEVELS] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                             7,       19,     31.5f, 45.5f, 61,  79,     101, FLT_MAX};

/* A vector for each place in the sub-blocks. */
typedef struct iq4_lanes {
    vf x[IQ4_SUB], weight[IQ4_SUB];
} iq4_lanes;

/* Reads n <= 16 sub-blocks that follow each other; the other lanes are zeros. */
static inline void iq4_load(vf to[IQ4_SUB], const float *from, size_t n) {
    load_sub_blocks(to, IQ4_SUB, from, n);
}

/* Weights of errors, also where there are no importances. importance: like x, or NULL */
static inline void iq4_weigh(iq4_lanes *restrict lanes, const float *restrict importance, size_t n, vf sigma2) {
    if (importance) {
        iq4_load(lanes->weight, importance, n);
        (void)weigh_lanes(lanes->weight, IQ4_SUB, lanes->x, sigma2);
    } else {
        for (unsigned i = 0; i < IQ4_SUB; i++) lanes->weight[i] = vf_mul(lanes->x[i], lanes->x[i]);
    }
}

/* The code of the level nearest to x, the higher of two equally near: how many middles x is not below. NaN: 15. */
static inline vi iq4_nearest(vf x) {
    static const float step[3][8] = {{-57, 45.5f, -57, 45.5f, -57, 45.5f, -57, 45.5f},
                                     {-93.5f, -28.5f, 19, 79, -93.5f, -28.5f, 19, 79},
                                     {-115.5f, -74, -42, -16, 7, 31.5f, 61, 101}};
    const vi zero = vi_splat(0), one = vi_splat(1);
    vi code = vi_choose(vf_lt(x, vf_splat(-4.5f)), zero, one);
    for (unsigned k = 0; k < 3; k++) {
        const vm below = vf_lt(x, vf_lookup8(vf_twice(step[k]), code));
        code = vi_add(vi_add(code, code), vi_choose(below, zero, one));
    }
    return code;
}

/* Codes as blocks store them: those of lane k go to word[k]. */
static inline void iq4_quantize(uint32_t word[NIB_LANES][IQ4_SUB / 8], const vf x[IQ4_SUB], vf inverse) {
    for (unsigned w = 0; w < IQ4_SUB / 8; w++) {
        vi packed = vi_splat(0);
        uint32_t lane[NIB_LANES];
        for (unsigned j = 0; j < 4; j++) {
            const vi low = iq4_nearest(vf_mul(inverse, x[4 * w + j]));
            const vi high = iq4_nearest(vf_mul(inverse, x[4 * w + j + 16]));
            packed = vi_or(packed, vi_shl(vi_or(low, vi_shl(high, 4)), 8 * (int)j));
        }
        vi_store(lane, packed);
        for (unsigned k = 0; k < NIB_LANES; k++) word[k][w] = lane[k];
    }
}

/* What each weight may add to the sums while the extreme is mapped to -120, then further up to -134. On this way its level
 * changes once at most, as middles are more than 134 / 120 apart: below `middle` it adds `low`, else `high`. */
typedef struct iq4_terms {
    vf middle[IQ4_SUB], low_xl[IQ4_SUB], high_xl[IQ4_SUB], low_ll[IQ4_SUB], high_ll[IQ4_SUB];
} iq4_terms;

static inline void iq4_find_terms(iq4_terms *restrict terms, const iq4_lanes *restrict lanes, vf inverse) {
    const vi one = vi_splat(1), last = vi_splat(IQ4_LEVELS - 1);
    const vf level = vf_load(IQ4_LEVEL_F), middle = vf_load(IQ4_MIDDLE);
    for (unsigned i = 0; i < IQ4_SUB; i++) {
        const vf x = lanes->x[i], weight = lanes->weight[i], y = vf_mul(inverse, x);
        const vi code = iq4_nearest(y), below = vi_max(vi_sub(code, one), vi_splat(0));
        const vi lower = vi_choose(vf_lt(y, vf_zero()), below, code); /* the way leads away from zero */
        const vf low = vf_lookup16(level, lower), high = vf_lookup16(level, vi_min(vi_add(lower, one), last));
        const vf low_w = vf_mul(weight, low), high_w = vf_mul(weight, high);
        terms->middle[i] = vf_lookup16(middle, lower);
        terms->low_xl[i] = vf_mul(low_w, x);
        terms->low_ll[i] = vf_mul(low_w, low);
        terms->high_xl[i] = vf_mul(high_w, x);
        terms->high_ll[i] = vf_mul(high_w, high);
    }
}

typedef struct iq4_best {
    vf scale, best;
} iq4_best;

static inline void iq4_take_better(iq4_best *best, vf xl, vf ll) {
    const vm better = vm_and(vf_lt(vf_zero(), ll), vf_lt(vf_mul(best->best, ll), vf_mul(xl, xl)));
    best->scale = vf_choose(better, vf_div(xl, ll), best->scale);
    best->best = vf_choose(better, vf_mul(best->scale, xl), best->best);
}

/* The scale that maps the extreme to 127. */
static inline iq4_best iq4_start(const iq4_lanes *restrict lanes, vf max) {
    const vf inverse = vf_div(vf_splat(1), vf_div(max, vf_splat(127))), level = vf_load(IQ4_LEVEL_F);
    vf xl = vf_zero(), ll = vf_zero();
    for (unsigned i = 0; i < IQ4_SUB; i++) {
        const vf q = vf_lookup16(level, iq4_nearest(vf_mul(inverse, lanes->x[i])));
        const vf wq = vf_mul(lanes->weight[i], q);
        xl = vf_add(xl, vf_mul(wq, lanes->x[i]));
        ll = vf_add(ll, vf_mul(wq, q));
    }
    const vf scale = vf_choose(vf_lt(vf_zero(), ll), vf_div(xl, ll), vf_zero());
    return (iq4_best){scale, vf_mul(scale, xl)};
}

/* The scales: tries the one that maps the extreme to 127 and 15 that map it to -134..-120. 0 for all-zero weights. */
static inline vf iq4_fit(const iq4_lanes *restrict lanes) {
    enum { FIRST = -134, LAST = -120, AT_ONCE = 5 };
    const vf extreme = extreme_lanes(IQ4_SUB, lanes->x);
    const vm is_zero = vf_lt(vf_abs(extreme), vf_splat(SEARCH_ZERO));
    const vf max = vf_choose(is_zero, vf_splat(1), extreme);
    iq4_best best = iq4_start(lanes, max);
    iq4_terms terms;
    iq4_find_terms(&terms, lanes, vf_div(vf_splat(LAST), max));
    for (int first = FIRST; first <= LAST; first += AT_ONCE) {
        vf inverse[AT_ONCE], xl[AT_ONCE], ll[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            inverse[k] = vf_div(vf_splat((float)(first + k)), max);
            xl[k] = ll[k] = vf_zero();
        }
        for (unsigned i = 0; i < IQ4_SUB; i++) {
            for (int k = 0; k < AT_ONCE; k++) {
                const vm low = vf_lt(vf_mul(inverse[k], lanes->x[i]), terms.middle[i]);
                xl[k] = vf_add(xl[k], vf_choose(low, terms.low_xl[i], terms.high_xl[i]));
                ll[k] = vf_add(ll[k], vf_choose(low, terms.low_ll[i], terms.high_ll[i]));
            }
        }
        for (int k = 0; k < AT_ONCE; k++) iq4_take_better(&best, xl[k], ll[k]);
    }
    return vf_choose(is_zero, vf_zero(), best.scale);
}

#endif
