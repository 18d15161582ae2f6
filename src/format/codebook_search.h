/* How the iq2 and iq3 encoders choose points for a sub-block: signs are set apart, then many scales are tried; for each,
 * every group of magnitudes is rounded to a spot, and to the best of its neighbours where the codebook has no point there.
 * The order of every float operation is part of the format's definition: the bytes equal llama-quantize's.
 *
 * In the units of the search a level l stands for the magnitude 2 l + 1. */
#ifndef NIB_FORMAT_CODEBOOK_SEARCH_H
#define NIB_FORMAT_CODEBOOK_SEARCH_H

#include "format/codebook.h"
#include "format/search.h"

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

/* The point nearest to a group: the spot it rounds to, or the best of the spot's neighbours. -1: none is at a finite
 * distance. *is_off: there was no point at the spot. magnitude, root: (group), root is the square root of the weights. */
static inline int nearest_point(const point_search *how, const nib_codebook *book, const float *magnitude,
                                const float *root, float inverse, float scale, bool *is_off) {
    unsigned spot = 0;
    for (unsigned i = how->group; i-- > 0;) {
        const int level = clamp_int(round_even(0.5f * (inverse * magnitude[i] - 1)), 0, how->n_levels - 1);
        spot = spot * (unsigned)how->n_levels + (unsigned)level;
    }
    const int32_t at = book->at[spot];
    *is_off = at < 0;
    if (at >= 0) return at;
    /* the error of every level at every place, then sums of them for each neighbour */
    float error[8][8];
    for (unsigned i = 0; i < how->group; i++) {
        for (int level = 0; level < how->n_levels; level++) {
            const float off = scale * (float)(2 * level + 1) - magnitude[i];
            error[i][level] = root[i] * off * off;
        }
    }
    const uint16_t *list = book->neighbours + (-1 - at);
    float least = FLT_MAX;
    int best = -1;
    for (unsigned j = 1; j <= list[0]; j++) {
        const uint8_t *level = book->level + list[j] * how->group;
        float squared = 0;
        for (unsigned i = 0; i < how->group; i++) squared += error[i][level[i]];
        if (squared < least) {
            least = squared;
            best = list[j];
        }
    }
    return best;
}

static inline fit_sums sums_of_points(const point_search *how, const nib_codebook *book, const uint16_t *point,
                                      const float *magnitude, const float *weight) {
    fit_sums sums = {0, 0};
    for (unsigned i = 0; i < how->n; i++) {
        const float q = (float)(2 * book->level[point[i / how->group] * how->group + i % how->group] + 1);
        sums.xl += weight[i] * magnitude[i] * q;
        sums.ll += weight[i] * q * q;
    }
    return sums;
}

/* Points for one scale; false if a group has none. off: (n / group) */
static inline bool choose_points(const point_search *how, const nib_codebook *book, const float *magnitude,
                                 const float *root, float inverse, float scale, uint16_t *point, bool *off) {
    for (unsigned k = 0; k < how->n / how->group; k++) {
        const int nearest =
            nearest_point(how, book, magnitude + k * how->group, root + k * how->group, inverse, scale, &off[k]);
        if (nearest < 0) return false;
        point[k] = (uint16_t)nearest;
    }
    return true;
}

/* One sub-block. x, weight: (n). false: the sums overflowed, and no scale can be stored. */
static inline bool fit_points(const point_search *how, const nib_codebook *book, const float *x, const float *weight,
                              fitted_points *out) {
    const unsigned n_groups = how->n / how->group, top = 2 * (unsigned)how->n_levels - 1;
    float magnitude[POINTS_MAX_SUB], root[POINTS_MAX_SUB];
    *out = (fitted_points){.is_zero = true};
    for (unsigned i = 0; i < how->n; i++) root[i] = sqrtf(weight[i]);
    uint8_t sign[4];
    set_signs_apart(how, magnitude, sign, x, weight);
    float max = magnitude[0];
    for (unsigned i = 1; i < how->n; i++) max = max > magnitude[i] ? max : magnitude[i];
    if (max < how->zero) return true;
    float scale = max / (float)top;
    if (how->starts_from_search) {
        uint8_t code[POINTS_MAX_SUB];
        scale = fit_positive((int)how->n, how->n_levels + 1, magnitude, code, weight);
        max = scale * (float)how->n_levels;
        if (max <= 0) return true;
    }
    bool off[8];
    for (unsigned k = 0; k < n_groups; k++) off[k] = how->redo != REDO_OFF_POINT;
    float best = 0;
    for (int k = -how->n_steps; k <= how->n_steps; k++) {
        const float inverse = ((float)top + (float)k * how->step) / max;
        uint16_t point[8];
        bool is_off[8];
        if (!choose_points(how, book, magnitude, root, inverse, 1 / inverse, point, is_off)) return false;
        const fit_sums sums = sums_of_points(how, book, point, magnitude, weight);
        if (sums.ll > 0 && sums.xl * sums.xl > best * sums.ll) {
            scale = sums.xl / sums.ll;
            best = scale * sums.xl;
            memcpy(out->point, point, sizeof point);
            memcpy(off, is_off, sizeof off);
        }
    }
    bool any_off = how->redo == REDO_ALL;
    for (unsigned k = 0; k < n_groups; k++) any_off |= off[k];
    if (any_off && scale > 0) {
        uint16_t point[8];
        bool is_off[8];
        if (!choose_points(how, book, magnitude, root, 1 / scale, scale, point, is_off)) return false;
        for (unsigned k = 0; k < n_groups; k++) {
            if (how->redo != REDO_OFF_POINT || off[k]) out->point[k] = point[k];
        }
        const fit_sums sums = sums_of_points(how, book, out->point, magnitude, weight);
        if (sums.ll > 0) scale = sums.xl / sums.ll;
    }
    out->is_zero = false;
    const unsigned flip = scale < 0 ? how->even_signs ? 127 : 255 : 0;
    for (unsigned k = 0; k < how->n / 8; k++) out->sign[k] = (uint8_t)(sign[k] ^ flip);
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
    for (unsigned g = 0; g < n_groups; g++) {
        for (unsigned j = 0; j < group; j++) dst[group * g + j] = scale[g] * (float)value[group * g + j];
    }
}

#endif
