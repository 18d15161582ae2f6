/* How the iq2 and iq3 encoders choose points for a sub-block: signs are set apart, then many scales are tried; for each,
 * every group of magnitudes is rounded to a spot, and to the best of its neighbours where the codebook has no point there.
 * The order of every float operation is part of the format's definition: the bytes equal llama-quantize's.
 *
 * In the units of the search a level l stands for the magnitude 2 l + 1. */
#ifndef NIB_FORMAT_CODEBOOK_SEARCH_H
#define NIB_FORMAT_CODEBOOK_SEARCH_H

#include "format/decode.h"
#include "format/neighbours.h"

/* Which groups are chosen anew for the scale that was found. */
typedef enum redo {
    REDO_OFF_POINT,  /* those that were rounded to a spot without a point */
    REDO_ALL_IF_OFF, /* all, if one of them was */
    REDO_ALL,
} redo;

typedef struct point_search {
    unsigned n, group;       /* weights a sub-block (at most 32), weights a point */
    int n_levels;            /* values a level can have */
    int n_steps;             /* inverse scales tried: (2 n_levels - 1 + step k) / max for k = -n_steps..n_steps */
    float step, zero;        /* sub-blocks whose largest magnitude is below zero are not searched */
    bool even_signs;         /* only 7 signs of 8 are stored: the number of minus signs is made even */
    bool starts_from_search; /* max is the largest magnitude of a search over evenly spaced codes */
    redo redo;
} point_search;

enum { POINTS_MAX_SUB = 32 };

/* A sub-block on its way. */
typedef struct fitted_points {
    float scale;       /* >= 0; w = scale * (2 level + 1), with signs */
    uint16_t point[8]; /* (n / group) */
    uint8_t sign[4];   /* (n / 8) bit i: weight i is negative */
    bool is_zero;      /* all else is 0 */
} fitted_points;

/* Magnitudes and signs. With even signs the weight that matters least changes sides if it must, and its "magnitude" is
 * negative. */
static inline void set_signs_apart(const point_search *how, float *restrict magnitude, uint8_t *restrict sign,
                                   const float *restrict x, const float *restrict weight) {
    for (unsigned k = 0; k < how->n; k += 8) {
        unsigned bits = 0;
        for (unsigned i = 0; i < 8; i++) {
            magnitude[k + i] = fabsf(x[k + i]);
            bits |= (unsigned)(x[k + i] < 0) << i;
        }
        if (how->even_signs) {
            unsigned least = 0;
            float error = weight[k] * x[k] * x[k];
            for (unsigned i = 1; i < 8; i++) {
                const float its = weight[k + i] * x[k + i] * x[k + i];
                if (its < error) {
                    error = its;
                    least = i;
                }
            }
            if (__builtin_parity(bits)) {
                magnitude[k + least] = -magnitude[k + least];
                bits ^= 1u << least;
            }
            bits &= 127;
        }
        sign[k / 8] = (uint8_t)bits;
    }
}

/* What scales are tried on a sub-block at once: one a lane. */
enum { TRIALS_MAX = 32 };
typedef struct trials {
    unsigned n;
    float inverse[TRIALS_MAX], scale[TRIALS_MAX];
    uint32_t packed[8][TRIALS_MAX]; /* (n / group, n) the points chosen */
    uint32_t is_off[8];             /* (n / group) bit k: there was no point at the spot for scale k */
    float xl[TRIALS_MAX], ll[TRIALS_MAX];
} trials;

/* A sub-block while it is searched. */
typedef struct magnitudes {
    float x[POINTS_MAX_SUB], weight[POINTS_MAX_SUB], root[POINTS_MAX_SUB]; /* root: square root of the weight */
} magnitudes;

/* What a level stands for, as a table for vf_lookup8. */
LANES_INLINE vf level_table(int n_bits) {
    static const float odd[2][8] = {{1, 3, 5, 7, 1, 3, 5, 7}, {1, 3, 5, 7, 9, 11, 13, 15}};
    return vf_twice(odd[n_bits - 2]);
}

/* The levels of one group for 16 scales, packed. The rounding is that of round_even(). */
LANES_INLINE vi round_to_spots(const point_search *how, const float *x, vf inverse) {
    const int n_bits = how->n_levels == 8 ? 3 : 2;
    const vi least = vi_splat(0x400000), most = vi_splat(0x400000 + how->n_levels - 1);
    vi packed = vi_splat(0);
    for (unsigned i = 0; i < how->group; i++) {
        const vf y = vf_mul(vf_splat(0.5f), vf_sub(vf_mul(inverse, vf_splat(x[i])), vf_splat(1)));
        const vi rounded = vi_and(vi_bits(vf_add(y, vf_splat(12582912.0f))), vi_splat(0x7fffff));
        const vi level = vi_sub(vi_min(vi_max(rounded, least), most), least);
        packed = vi_or(packed, vi_shl(level, n_bits * (int)i));
    }
    return packed;
}

LANES_INLINE int nearest_neighbour(const point_search *how, const nib_codebook *book, int32_t at, const float *x,
                                   const float *root, float scale) {
    const int n_bits = how->n_levels == 8 ? 3 : 2;
    const vf levels = vf_mul(vf_splat(scale), level_table(n_bits));
    vf error[GROUP_MAX];
    for (unsigned i = 0; i < how->group; i++) {
        const vf off = vf_sub(levels, vf_splat(x[i]));
        error[i] = vf_mul(vf_mul(vf_splat(root[i]), off), off);
    }
    return best_neighbour(book, at, error, how->group, n_bits);
}

/* Chooses points for all scales: those at the spots that magnitudes round to, or the best of the spots' neighbours. false
 * if a group has none. */
LANES_INLINE bool choose_points(const point_search *how, const nib_codebook *book, const magnitudes *sub, trials *to) {
    const int n_bits = how->n_levels == 8 ? 3 : 2;
    for (unsigned g = 0; g < how->n / how->group; g++) {
        const float *x = sub->x + g * how->group, *root = sub->root + g * how->group;
        uint32_t *packed = to->packed[g], spot = UINT32_MAX;
        int32_t at = 0;
        for (unsigned k = 0; k < to->n; k += NIB_LANES)
            vi_store(packed + k, round_to_spots(how, x, vf_load(to->inverse + k)));
        to->is_off[g] = 0;
        for (unsigned k = 0; k < to->n; k++) {
            if (packed[k] != spot) {
                spot = packed[k];
                at = look_at_spot(book, spot, n_bits);
            }
            if (at >= 0) continue;
            const int best = nearest_neighbour(how, book, at, x, root, to->scale[k]);
            if (best < 0) return false;
            packed[k] = (uint32_t)best;
            to->is_off[g] |= 1u << k;
        }
    }
    return true;
}

/* The sums of the points chosen for all scales. */
LANES_INLINE void add_points(const point_search *how, const magnitudes *sub, trials *to) {
    const int n_bits = how->n_levels == 8 ? 3 : 2;
    const vf levels = level_table(n_bits);
    for (unsigned k = 0; k < to->n; k += NIB_LANES) {
        vf xl = vf_zero(), ll = vf_zero();
        for (unsigned i = 0; i < how->n; i++) {
            const vf weight = vf_splat(sub->weight[i]);
            const vf its_xl = vf_mul(vf_mul(weight, vf_splat(sub->x[i])), levels);
            const vf its_ll = vf_mul(vf_mul(weight, levels), levels);
            const vi packed = vi_sar(vi_load(to->packed[i / how->group] + k), n_bits * (int)(i % how->group));
            xl = vf_add(xl, vf_lookup8(its_xl, packed));
            ll = vf_add(ll, vf_lookup8(its_ll, packed));
        }
        vf_store(to->xl + k, xl);
        vf_store(to->ll + k, ll);
    }
}

/* Where the search starts from another one: scales of evenly spaced codes for n_sub sub-blocks. x, weight: (n_sub, n) */
LANES_INLINE void find_starts(float start[NIB_LANES], const point_search *how, const float *x, const float *weight,
                              unsigned n_sub) {
    float magnitude[NIB_LANES * POINTS_MAX_SUB];
    uint8_t sign[4];
    vf lanes[POINTS_MAX_SUB], weights[POINTS_MAX_SUB], code[POINTS_MAX_SUB];
    for (unsigned b = 0; b < n_sub; b++)
        set_signs_apart(how, magnitude + b * how->n, sign, x + b * how->n, weight + b * how->n);
    load_sub_blocks(lanes, how->n, magnitude, n_sub);
    load_sub_blocks(weights, how->n, weight, n_sub);
    vf_store(start, fit_positive_lanes(how->n, how->n_levels + 1, lanes, weights, code));
}

/* One sub-block. x, weight: (n); start: from find_starts, if the search starts from it. false: the sums overflowed, and no scale can be stored. */
LANES_INLINE bool fit_points(const point_search *how, const nib_codebook *book, const float *x, const float *weight,
                             float start, fitted_points *out) {
    const unsigned n_groups = how->n / how->group, top = 2 * (unsigned)how->n_levels - 1;
    const int n_bits = how->n_levels == 8 ? 3 : 2;
    magnitudes sub;
    uint8_t sign[4];
    *out = (fitted_points){.is_zero = true};
    set_signs_apart(how, sub.x, sign, x, weight);
    float max = sub.x[0];
    for (unsigned i = 1; i < how->n; i++) max = max > sub.x[i] ? max : sub.x[i];
    if (max < how->zero) return true;
    float scale = max / (float)top;
    if (how->starts_from_search) {
        scale = start;
        max = scale * (float)how->n_levels;
        if (max <= 0) return true;
    }
    for (unsigned i = 0; i < how->n; i += NIB_LANES) {
        vf_store(sub.weight + i, vf_load(weight + i));
        vf_store(sub.root + i, vf_sqrt(vf_load(weight + i)));
    }

    trials all;
    memset(&all, 0, sizeof all);
    all.n = 2 * (unsigned)how->n_steps + 1;
    for (unsigned k = 0; k < all.n; k++) {
        all.inverse[k] = ((float)top + (float)((int)k - how->n_steps) * how->step) / max;
        all.scale[k] = 1 / all.inverse[k];
    }
    if (!choose_points(how, book, &sub, &all)) return false;
    add_points(how, &sub, &all);
    float best = 0;
    int chosen = -1;
    for (unsigned k = 0; k < all.n; k++) {
        if (!(all.ll[k] > 0 && all.xl[k] * all.xl[k] > best * all.ll[k])) continue;
        scale = all.xl[k] / all.ll[k];
        best = scale * all.xl[k];
        chosen = (int)k;
    }
    uint32_t point[8] = {0};
    bool off[8], any_off = how->redo == REDO_ALL;
    for (unsigned g = 0; g < n_groups; g++) {
        point[g] = chosen < 0 ? book->packed[0] : all.packed[g][chosen];
        off[g] = chosen < 0 ? how->redo != REDO_OFF_POINT : all.is_off[g] >> chosen & 1;
        any_off |= off[g];
    }
    if (any_off && scale > 0) {
        all.n = 1;
        all.inverse[0] = 1 / scale;
        all.scale[0] = scale;
        if (!choose_points(how, book, &sub, &all)) return false;
        for (unsigned g = 0; g < n_groups; g++) {
            if (how->redo != REDO_OFF_POINT || off[g]) point[g] = all.packed[g][0];
            all.packed[g][0] = point[g];
        }
        add_points(how, &sub, &all);
        if (all.ll[0] > 0) scale = all.xl[0] / all.ll[0];
    }
    out->is_zero = false;
    const unsigned flip = scale < 0 ? how->even_signs ? 127 : 255 : 0;
    for (unsigned k = 0; k < how->n / 8; k++) out->sign[k] = (uint8_t)(sign[k] ^ flip);
    for (unsigned g = 0; g < n_groups; g++) out->point[g] = (uint16_t)look_at_spot(book, point[g], n_bits);
    out->scale = fabsf(scale);
    return scale == scale;
}

/* 4-bit codes of the sub-blocks' scales: scale = d * (2 code + 1). */
static inline void quantize_scales(uint8_t *restrict code, const float *restrict scale, unsigned n, float d) {
    const float inverse = 1 / d;
    for (unsigned b = 0; b < n; b++) code[b] = (uint8_t)clamp_int(round_even(0.5f * (inverse * scale[b] - 1)), 0, 15);
}

static inline float largest_scale(const float *scale, unsigned n) {
    float max = 0;
    for (unsigned b = 0; b < n; b++) max = max > scale[b] ? max : scale[b];
    return max;
}

/* ---- Decoding ---------------------------------------------------------------------------------------------------- */

/* The eighth sign makes the number of minus signs even. */
static inline uint8_t all_signs(unsigned seven) {
    seven &= 127;
    return (uint8_t)(seven | (unsigned)__builtin_parity(seven) << 7);
}

/* dst[i] = -value[i] where bit i of sign is set. Values lie in 1..127. */
static inline void put_signs(int8_t *restrict dst, uint64_t values, uint8_t sign) {
    const uint64_t ones = fifth_bits(sign) >> 4;
    const uint64_t word = (values ^ ones * 255) + ones;
    memcpy(dst, &word, sizeof word);
}

/* Signed values and scales as unpack gives them. groups of 256 / n_groups weights share a scale. */
static inline void offset_codes(nib_codes *restrict out, const int8_t *restrict value, unsigned n_groups) {
    for (unsigned i = 0; i < NIB_PANEL_K; i++) out->code[i] = (uint8_t)((uint8_t)value[i] ^ 0x80);
    for (unsigned g = 0; g < n_groups; g++) out->min[g] = 128 * out->scale[g];
}

static inline void scale_values(float *restrict dst, const int8_t *restrict value, const float *restrict scale,
                                unsigned n_groups) {
    const unsigned group = NIB_PANEL_K / n_groups;
    for (unsigned g = 0; g < n_groups; g++) scale_levels(dst + group * g, value + group * g, group, scale[g]);
}

#endif
