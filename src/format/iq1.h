/* What iq1_s and iq1_m share: levels -1, 0, 1, all moved by +1/8 or -1/8, eight at a time from a codebook of 2048 points.
 * Encoders first find the best codes without the codebook: the optimal split of a sub-block's weights, in ascending order,
 * into those that become -1, 0 and 1. Then groups that have no point take their best neighbour.
 * The order of every float operation is part of the format's definition: the bytes equal llama-quantize's (which sorts
 * equal weights in any order; here the earlier one comes first). */
#ifndef NIB_FORMAT_IQ1_H
#define NIB_FORMAT_IQ1_H

#include "format/neighbours.h"

enum { IQ1_POINT = 8, IQ1_BLOCK = 256 };
enum { IQ1_UP, IQ1_DOWN }; /* the two shifts */

static const float IQ1_LEVEL[2][3] = {{-1 + 0.125f, 0.125f, 1 + 0.125f}, {-1 - 0.125f, -0.125f, 1 - 0.125f}};

/* Twice the mean squares of up to 16 blocks. */
static inline vf iq1_sigma2(const float *x, size_t n_blocks) {
    return vf_mul(vf_mul(vf_splat(2), sums_of_squares_256(x, n_blocks)), vf_splat(1.0f / IQ1_BLOCK));
}

/* 16 sub-blocks on their way, one a lane: a vector for each of the places in them. */
enum { IQ1_SUB_MAX = 32 };
typedef struct iq1_lanes {
    vf x[IQ1_SUB_MAX], weight[IQ1_SUB_MAX];
    vi rank[IQ1_SUB_MAX]; /* how many weights of the sub-block come before this one in ascending order */
} iq1_lanes;

LANES_INLINE void iq1_sort(iq1_lanes *lanes, unsigned n) {
    for (unsigned j = 0; j < n; j++) {
        vi rank = vi_splat((int)j);
        for (unsigned i = 0; i < j; i++) {
            const vi before = vi_choose(vf_lt(lanes->x[j], lanes->x[i]), vi_splat(1), vi_splat(0));
            lanes->rank[i] = vi_add(lanes->rank[i], before);
            rank = vi_sub(rank, before);
        }
        lanes->rank[j] = rank;
    }
}

/* to[rank[i]] = from[i] in each lane. */
LANES_INLINE void iq1_put_in_order(vf *to, const vi *rank, const vf *from, unsigned n) {
    float sorted[IQ1_SUB_MAX][NIB_LANES];
    for (unsigned i = 0; i < n; i++) {
        float its[NIB_LANES];
        int32_t place[NIB_LANES];
        vf_store(its, from[i]);
        vi_store(place, rank[i]);
        for (unsigned k = 0; k < NIB_LANES; k++) sorted[place[k]][k] = its[k];
    }
    for (unsigned j = 0; j < n; j++) to[j] = vf_load(sorted[j]);
}

/* The best split so far: weights of rank below `first` become 0, those below `second` 1, the others 2. scale is negative
 * if levels must be mirrored. second < first: there is none. way: how levels are shifted */
typedef struct iq1_split {
    vf scale, best;
    vi first, second, way;
} iq1_split;

static inline iq1_split iq1_no_split(void) {
    return (iq1_split){vf_zero(), vf_splat(-FLT_MAX), vi_splat(1), vi_splat(0), vi_splat(0)};
}

LANES_INLINE void iq1_take_better(iq1_split *split, vf xl, vf ll, unsigned first, unsigned second, unsigned way) {
    const vm better = vm_and(vf_lt(vf_zero(), ll), vf_lt(vf_mul(split->best, ll), vf_mul(xl, xl)));
    if (!vm_any(better)) return;
    split->scale = vf_choose(better, vf_div(xl, ll), split->scale);
    split->best = vf_choose(better, vf_mul(split->scale, xl), split->best);
    split->first = vi_choose(better, vi_splat((int)first), split->first);
    split->second = vi_choose(better, vi_splat((int)second), split->second);
    split->way = vi_choose(better, vi_splat((int)way), split->way);
}

/* The best neighbour of 8 levels that are no point: packed, or -1. shifted: (3) what the levels mean. */
static inline int iq1_nearest(const nib_codebook *book, int32_t at, const float *x, const float *weight, float scale,
                              const float *shifted) {
    const float level[8] = {shifted[0], shifted[1], shifted[2], 0, shifted[0], shifted[1], shifted[2], 0};
    const vf scaled = vf_mul(vf_splat(scale), vf_twice(level));
    vf error[IQ1_POINT];
    for (unsigned i = 0; i < IQ1_POINT; i++) {
        const vf off = vf_sub(scaled, vf_splat(x[i]));
        error[i] = vf_mul(vf_mul(vf_splat(weight[i]), off), off);
    }
    return best_neighbour(book, at, error, IQ1_POINT, 2);
}

/* A sub-block of 32 has one shift, one of 16 has one for each of its groups: bits of `way`. */
LANES_INLINE unsigned iq1_shift(unsigned n, unsigned way, unsigned group) {
    return n == 32 ? way : way >> (1 - group) & 1;
}

/* 16 sub-blocks as the search leaves them. */
typedef struct iq1_fits {
    float scale[NIB_LANES];                              /* >= 0 */
    int32_t way[NIB_LANES];                              /* see iq1_shift */
    uint32_t packed[IQ1_SUB_MAX / IQ1_POINT][NIB_LANES]; /* points */
} iq1_fits;

/* The levels of the splits, packed; mirrored where the scale is negative. */
LANES_INLINE void iq1_pack_levels(iq1_fits *out, const iq1_lanes *lanes, unsigned n, const iq1_split *split) {
    const vi one = vi_splat(1), zero = vi_splat(0);
    const vm mirrored = vf_lt(split->scale, vf_zero());
    for (unsigned g = 0; g < n / IQ1_POINT; g++) {
        vi packed = zero;
        for (unsigned i = 0; i < IQ1_POINT; i++) {
            const vi rank = lanes->rank[g * IQ1_POINT + i];
            const vi down = vi_add(vi_choose(vi_lt(rank, split->first), one, zero),
                                   vi_choose(vi_lt(rank, split->second), one, zero));
            const vi level = vi_choose(mirrored, down, vi_sub(vi_splat(2), down));
            packed = vi_or(packed, vi_shl(level, 2 * (int)i));
        }
        vi_store(out->packed[g], packed);
    }
    vi_store(out->way, vi_choose(mirrored, vi_sub(vi_splat(n == 32 ? 1 : 3), split->way), split->way));
    vf_store(out->scale, vf_choose(mirrored, vf_sub(vf_zero(), split->scale), split->scale));
}

/* Scales that fit the points, where these are not the levels of the split. */
LANES_INLINE void iq1_refit(iq1_fits *out, const iq1_lanes *lanes, unsigned n, vm may) {
    static const float levels[2][8] = {{-0.875f, 0.125f, 1.125f, 0, -0.875f, 0.125f, 1.125f, 0},
                                       {-1.125f, -0.125f, 0.875f, 0, -1.125f, -0.125f, 0.875f, 0}};
    const vf up = vf_twice(levels[IQ1_UP]), down = vf_twice(levels[IQ1_DOWN]), zero = vf_zero();
    vf xl = zero, ll = zero;
    for (unsigned i = 0; i < n; i++) {
        const unsigned g = i / IQ1_POINT;
        const vi packed = vi_sar(vi_load(out->packed[g]), 2 * (int)(i % IQ1_POINT));
        const vi shift = vi_and(vi_load(out->way), vi_splat(n == 32 || g == 1 ? 1 : 2));
        const vf q = vf_choose(vi_eq(shift, vi_splat(0)), vf_lookup8(up, packed), vf_lookup8(down, packed));
        const vf weighted = vf_mul(lanes->weight[i], q);
        xl = vf_add(xl, vf_mul(weighted, lanes->x[i]));
        ll = vf_add(ll, vf_mul(weighted, q));
    }
    const vm fits = vm_and(may, vm_and(vf_lt(zero, xl), vf_lt(zero, ll)));
    vf_store(out->scale, vf_choose(fits, vf_div(xl, ll), vf_load(out->scale)));
}

/* From splits to points: those that the levels are, or their best neighbours. x, weight: the n_lanes sub-blocks one after
 * the other. Sub-blocks whose largest magnitude is below `zero`, or without a split, become 0. false: the sums overflowed,
 * and no scale can be stored. */
LANES_INLINE bool iq1_fit_points(iq1_fits *out, const nib_codebook *book, const iq1_lanes *lanes, unsigned n,
                                 const iq1_split *split, float zero, const float *x, const float *weight,
                                 unsigned n_lanes) {
    const vm is_zero = vf_lt(vf_abs(extreme_lanes(n, lanes->x)), vf_splat(zero));
    const uint32_t none = vm_bits(vm_or(is_zero, vi_lt(split->second, split->first)));
    float is_off[NIB_LANES] = {0};
    iq1_pack_levels(out, lanes, n, split);
    for (unsigned k = 0; k < n_lanes; k++) {
        if (none >> k & 1) {
            for (unsigned g = 0; g < n / IQ1_POINT; g++) out->packed[g][k] = book->packed[0];
            out->way[k] = 0;
            out->scale[k] = 0;
            continue;
        }
        for (unsigned g = 0; g < n / IQ1_POINT; g++) {
            const unsigned first = k * n + g * IQ1_POINT;
            const int32_t at = look_at_spot(book, out->packed[g][k], 2);
            if (at >= 0) continue;
            const float *shifted = IQ1_LEVEL[iq1_shift(n, (unsigned)out->way[k], g)];
            const int best = iq1_nearest(book, at, x + first, weight + first, out->scale[k], shifted);
            if (best < 0) return false;
            out->packed[g][k] = (uint32_t)best;
            is_off[k] = 1;
        }
    }
    iq1_refit(out, lanes, n, vf_lt(vf_zero(), vf_load(is_off)));
    for (unsigned k = 0; k < n_lanes; k++) {
        if (!(out->scale[k] >= 0)) return false;
    }
    return true;
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
