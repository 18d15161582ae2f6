/* The searches that find a block's scale and codes with the smallest weighted squared error, for 16 sub-blocks at once:
 * lane i works on sub-block i. The order of every float operation within a lane is part of the format's definition: the bytes
 * equal llama-quantize's. Sums run from the first element to the last; nothing is fused; what a sub-block would not do
 * alone is done and thrown away.
 *
 * x: (n) weights or scales; weight: (n) non-negative importance of each error; both are vectors of one element of each
 * sub-block. A search does not return codes but the numbers they follow from: most encoders need codes only for the scales
 * as stored, and make them from the weights in their natural order.
 * Methods: llama.cpp's quantizers (commit d32676d). */
#ifndef NIB_FORMAT_LANES_H
#define NIB_FORMAT_LANES_H

#include "cpu/vec.h"
#include "format/search.h"

enum { LANES_MAX = 32 }; /* elements of a sub-block */

/* Searches whose every step waits for the one before work on this many vectors side by side. Where vectors are of several
 * parts they fill the time already. */
#ifdef NIB_VEC_512
enum { LANES_AT_ONCE = 2 };
#else
enum { LANES_AT_ONCE = 1 };
#endif
#define EACH_VECTOR  _Pragma("GCC unroll 2") for (unsigned v = 0; v < LANES_AT_ONCE; v++)

/* Loops of known length, and sums in registers: searches are part of the loop that calls them. */
#define LANES_INLINE static inline __attribute__((always_inline))

/* ---- Lanes and rounding ------------------------------------------------------------------------------------------ */

/* to[j], lane i = from[i * stride + j], j < 16, for i < n; the other lanes are zero. */
static inline void load_lanes(vf to[16], const float *from, size_t stride, size_t n) {
    if (n >= NIB_LANES) {
        vf_transpose(to, from, stride);
        return;
    }
    float rows[NIB_LANES][16] = {0};
    for (size_t i = 0; i < n; i++) memcpy(rows[i], from + i * stride, sizeof rows[i]);
    vf_transpose(to, rows[0], 16);
}

/* n = 16 or 32 elements of each. */
LANES_INLINE void load_sub_blocks(vf *to, unsigned n, const float *from, size_t n_lanes) {
    for (unsigned j = 0; j < n; j += 16) load_lanes(to + j, from + j, n, n_lanes);
}

#define ROUNDING 12582912.0f /* 1.5 * 2^23 */

/* Rounded numbers as ROUNDING + integer: the integer's low bytes stand in the lowest bits. As in round_even(), what is out of
 * range keeps the mantissa of the sum. */
LANES_INLINE vf round_shifted(vf x) {
    const vi mantissa = vi_and(vi_bits(vf_add(x, vf_splat(ROUNDING))), vi_splat(0x007fffff));
    return vf_bits(vi_or(mantissa, vi_splat(0x4b000000)));
}

/* Rounded, and limited to integers low..high. in_range: |x| < 4194303 is known. */
LANES_INLINE vf round_between(vf x, float low, float high, bool in_range) {
    const vf level = in_range ? vf_round(x) : vf_sub(round_shifted(x), vf_splat(ROUNDING));
    return vf_max(vf_min(level, vf_splat(high)), vf_splat(low));
}

LANES_INLINE vf round_limited(vf x, float low, float high) {
    return vf_max(vf_min(round_shifted(x), vf_splat(ROUNDING + high)), vf_splat(ROUNDING + low));
}

LANES_INLINE vf round_below(vf x, float high) {
    return vf_sub(vf_min(round_shifted(x), vf_splat(ROUNDING + high)), vf_splat(ROUNDING));
}

/* The low byte of rounded numbers. */
LANES_INLINE vf byte_of(vf shifted) {
    return vi_to_f(vi_and(vi_bits(shifted), vi_splat(255)));
}

/* ---- Weights of errors --------------------------------------------------------------------------------------------- */

/* Lane i: the sum of the squares of block i, 256 weights from left to right. */
static inline vf sums_of_squares_256(const float *x, size_t n_blocks) {
    vf sum = vf_zero();
    for (unsigned c = 0; c < 256; c += 16) {
        vf column[16];
        load_lanes(column, x + c, 256, n_blocks);
        for (unsigned j = 0; j < 16; j++) sum = vf_add(sum, vf_mul(column[j], column[j]));
    }
    return sum;
}

/* The weight of each error with an importance matrix: weight[i] holds the importances and becomes importance *
 * sqrt(sigma2 + x^2). Returns the sums. */
LANES_INLINE vf weigh_lanes(vf *weight, unsigned n, const vf *x, vf sigma2) {
    vf sum = vf_zero();
    for (unsigned i = 0; i < n; i++) {
        weight[i] = vf_mul(weight[i], vf_sqrt(vf_add(sigma2, vf_mul(x[i], x[i]))));
        sum = vf_add(sum, weight[i]);
    }
    return sum;
}

/* ---- Symmetric codes ----------------------------------------------------------------------------------------------- */

/* As extreme_number(): the first of largest magnitude, past NaN. */
LANES_INLINE vf extreme_lanes(unsigned n, const vf *x) {
    vf magnitude = vf_zero(), max = vf_zero();
    for (unsigned i = 0; i < n; i++) {
        const vf here = vf_abs(x[i]);
        const vm above = vf_lt(magnitude, here);
        magnitude = vf_choose(above, here, magnitude);
        max = vf_choose(above, x[i], max);
    }
    return max;
}

/* Codes are n_max + round(inverse * x) limited to 0 .. 2 n_max - 1; all 0 where is_zero (inverse and scale are 0 then). */
typedef struct symmetric_fit {
    vf scale, inverse;
    vm is_zero;
} symmetric_fit;

LANES_INLINE vf symmetric_level(vf inverse, vf x, int n_max, bool in_range) {
    return round_between(vf_mul(inverse, x), (float)-n_max, (float)(n_max - 1), in_range);
}

/* How well codes fit: numerator and denominator of the best scale, sum wxl / sum wll. */
typedef struct lane_sums {
    vf xl, ll;
} lane_sums;

LANES_INLINE lane_sums add_level(lane_sums sums, vf level, vf weight, vf weight_x) {
    return (lane_sums){vf_add(sums.xl, vf_mul(weight_x, level)), vf_add(sums.ll, vf_mul(vf_mul(weight, level), level))};
}

/* What codes may go beyond, and have to be limited at. */
typedef struct excess {
    bool low, high;
} excess;

typedef struct symmetric_search {
    unsigned n;
    int n_max;
    bool finite;
    const vf *x, *weight, *weight_x;
    vf max, inverse, scale, best; /* the last three: of the best so far */
} symmetric_search;

LANES_INLINE vf searched_level(const symmetric_search *s, vf inverse, vf x, excess beyond) {
    if (!s->finite) return symmetric_level(inverse, x, s->n_max, false);
    vf level = vf_round(vf_mul(inverse, x));
    if (beyond.high) level = vf_min(level, vf_splat((float)(s->n_max - 1)));
    if (beyond.low) level = vf_max(level, vf_splat((float)-s->n_max));
    return level;
}

LANES_INLINE vf inverse_of_step(const symmetric_search *s, int step) {
    return vf_div(vf_splat(-((float)s->n_max + 0.1f * (float)step)), s->max);
}

LANES_INLINE void keep_better(symmetric_search *s, vf inverse, lane_sums sums) {
    const vm better = vm_and(vf_lt(vf_zero(), sums.ll), vf_lt(vf_mul(s->best, sums.ll), vf_mul(sums.xl, sums.xl)));
    s->inverse = vf_choose(better, inverse, s->inverse);
    s->scale = vf_choose(better, vf_div(sums.xl, sums.ll), s->scale);
    s->best = vf_choose(better, vf_mul(s->scale, sums.xl), s->best);
}

/* Two steps side by side, so that sums and divisions of one fill the waits of the other. */
LANES_INLINE void try_steps(symmetric_search *s, int first, int second, excess beyond) {
    const vf inverse[2] = {inverse_of_step(s, first), inverse_of_step(s, second)};
    lane_sums sums[2] = {{vf_zero(), vf_zero()}, {vf_zero(), vf_zero()}};
    for (unsigned i = 0; i < s->n; i++) {
        for (unsigned k = 0; k < 2; k++)
            sums[k] = add_level(sums[k], searched_level(s, inverse[k], s->x[i], beyond), s->weight[i], s->weight_x[i]);
    }
    for (unsigned k = 0; k < 2; k++) keep_better(s, inverse[k], sums[k]);
}

/* Tries 19 scales around the one that maps the extreme to -n_max: to -(n_max + step / 10), which no rounding takes beyond
 * -n_max up to step 4, nor the opposite beyond n_max - 1 below step -5. finite: x is known to be so. */
LANES_INLINE symmetric_fit fit_symmetric(unsigned n, int n_max, const vf *x, const vf *weight, bool finite) {
    const vf max = extreme_lanes(n, x), zero = vf_zero();
    const excess none = {false, false}, high = {false, true}, both = {true, true};
    vf weight_x[LANES_MAX];
    for (unsigned i = 0; i < n; i++) weight_x[i] = vf_mul(weight[i], x[i]);
    symmetric_search s = {n, n_max, finite, x, weight, weight_x, max, zero, zero, zero};
    s.inverse = vf_div(vf_splat((float)-n_max), max);
    lane_sums sums = {zero, zero};
    for (unsigned i = 0; i < n; i++)
        sums = add_level(sums, searched_level(&s, s.inverse, x[i], high), weight[i], weight_x[i]);
    s.scale = vf_choose(vf_eq(sums.ll, zero), zero, vf_div(sums.xl, sums.ll));
    s.best = vf_mul(s.scale, sums.xl);
    for (int step = -9; step < -5; step += 2) try_steps(&s, step, step + 1, none);
    for (int step = -5; step < -1; step += 2) try_steps(&s, step, step + 1, high);
    try_steps(&s, -1, 1, high);
    try_steps(&s, 2, 3, high);
    for (int step = 4; step < 9; step += 2) try_steps(&s, step, step + 1, both);
    const vm is_zero = vf_lt(vf_abs(max), vf_splat(SEARCH_ZERO));
    return (symmetric_fit){vf_choose(is_zero, zero, s.scale), vf_choose(is_zero, zero, s.inverse), is_zero};
}

/* Coordinate descent: one code at a time changes if that raises xl^2 / ll. */
typedef struct descent {
    lane_sums sums;
    vm changed;
} descent;

LANES_INLINE lane_sums sums_without(lane_sums sums, vf level, vf weight, vf weight_x) {
    return (lane_sums){vf_sub(sums.xl, vf_mul(weight_x, level)), vf_sub(sums.ll, vf_mul(vf_mul(weight, level), level))};
}

/* Where may is true and it is better, *level becomes to (trial as it is stored). rest: the sums without this element. */
LANES_INLINE void descend(descent *d, vf *level, vf trial, vf to, lane_sums rest, vm may, vf weight, vf weight_x) {
    const lane_sums sums = add_level(rest, trial, weight, weight_x);
    const vf before = vf_mul(vf_mul(d->sums.xl, d->sums.xl), sums.ll);
    const vf after = vf_mul(vf_mul(sums.xl, sums.xl), d->sums.ll);
    const vm differs = vm_except(may, vf_eq(trial, *level));
    const vm better = vm_and(vm_and(differs, vf_lt(vf_zero(), sums.ll)), vf_lt(before, after));
    *level = vf_choose(better, to, *level);
    d->sums.xl = vf_choose(better, sums.xl, d->sums.xl);
    d->sums.ll = vf_choose(better, sums.ll, d->sums.ll);
    d->changed = vm_or(d->changed, better);
}

LANES_INLINE vf scale_of(lane_sums sums) {
    return vf_choose(vf_lt(vf_zero(), sums.ll), vf_div(sums.xl, sums.ll), vf_zero());
}

/* Symmetric codes by coordinate descent: starts as above with weights x^2, at most five sweeps. x: (LANES_AT_ONCE, n);
 * level: (LANES_AT_ONCE, n) the codes less n_max. */
LANES_INLINE void fit_by_descent(unsigned n, int n_max, const vf *x, vf *level, vf scale[LANES_AT_ONCE]) {
    const vf zero = vf_zero();
    descent d[LANES_AT_ONCE];
    vf max[LANES_AT_ONCE];
    EACH_VECTOR {
        d[v].sums = (lane_sums){zero, zero};
        max[v] = extreme_lanes(n, x + v * n);
        const vf inverse = vf_div(vf_splat((float)-n_max), max[v]);
        for (unsigned i = v * n; i < (v + 1) * n; i++) {
            const vf weight = vf_mul(x[i], x[i]);
            level[i] = symmetric_level(inverse, x[i], n_max, true);
            d[v].sums = add_level(d[v].sums, level[i], weight, vf_mul(weight, x[i]));
        }
    }
    for (int sweep = 0; sweep < 5; sweep++) {
        vm changed = vf_lt(zero, zero);
        EACH_VECTOR d[v].changed = changed;
        for (unsigned i = 0; i < n; i++) {
            EACH_VECTOR {
                const vf here = x[v * n + i], weight = vf_mul(here, here), weight_x = vf_mul(weight, here);
                const lane_sums rest = sums_without(d[v].sums, level[v * n + i], weight, weight_x);
                const vf wanted = vf_div(vf_mul(here, rest.ll), rest.xl);
                const vf l = round_between(wanted, (float)-n_max, (float)(n_max - 1), false);
                descend(&d[v], &level[v * n + i], l, l, rest, vf_lt(zero, rest.xl), weight, weight_x);
            }
        }
        EACH_VECTOR changed = vm_or(changed, d[v].changed);
        if (!vm_any(changed)) break;
    }
    EACH_VECTOR {
        const vm is_zero = vf_lt(vf_abs(max[v]), vf_splat(SEARCH_ZERO));
        for (unsigned i = v * n; i < (v + 1) * n; i++) level[i] = vf_choose(is_zero, vf_splat((float)-n_max), level[i]);
        scale[v] = vf_choose(is_zero, zero, scale_of(d[v].sums));
    }
}

/* ---- Codes with a minimum ------------------------------------------------------------------------------------------ */

/* How fit_with_minimum searches: scales (first + step * k + n_max) / range for k = 0..n_steps. */
typedef struct min_search {
    int n_max;
    float first, step;
    int n_steps;
    bool absolute; /* errors are |e|, not e^2 */
} min_search;

/* Codes are round(inverse * (x - from)) limited to 0 .. n_max. */
typedef struct min_fit {
    vf scale, min, inverse, from;
} min_fit;

/* What is known of sub-blocks while they are searched. */
typedef struct min_state {
    vf low, high, sum_w, sum_x;
    vm has_range; /* if not, all weights equal the minimum */
    vf best;      /* the error of: */
    min_fit fit;
} min_state;

/* Sums over the codes of one trial. */
typedef struct min_sums {
    vf l, ll, xl;
} min_sums;

LANES_INLINE vf level_above(vf inverse, vf from, vf x, int n_max, bool in_range) {
    return round_between(vf_mul(inverse, vf_sub(x, from)), 0, (float)n_max, in_range);
}

/* The error of one more element. */
LANES_INLINE vf add_error(vf error, bool absolute, vf x, vf weight, vf level, vf scale, vf min) {
    const vf e = vf_sub(vf_add(vf_mul(scale, level), min), x);
    return vf_add(error, vf_mul(weight, absolute ? vf_abs(e) : vf_mul(e, e)));
}

/* Ranges and sums, and the fit that maps the range to 0..n_max. */
LANES_INLINE min_state start_with_minimum(const min_search *how, unsigned n, const vf *x, const vf *weight) {
    const vf zero = vf_zero();
    min_state s = {.low = x[0], .high = x[0], .sum_w = weight[0], .sum_x = vf_mul(weight[0], x[0]), .best = zero};
    for (unsigned i = 1; i < n; i++) {
        s.low = vf_min(x[i], s.low);
        s.high = vf_max(x[i], s.high);
        s.sum_w = vf_add(s.sum_w, weight[i]);
        s.sum_x = vf_add(s.sum_x, vf_mul(weight[i], x[i]));
    }
    const vf min = vf_choose(vf_lt(zero, s.low), zero, s.low);
    s.has_range = vf_lt(min, s.high);
    const vf inverse = vf_div(vf_splat((float)how->n_max), vf_sub(s.high, min));
    s.fit = (min_fit){.scale = vf_div(vf_splat(1), inverse), .min = min, .inverse = inverse, .from = min};
    for (unsigned i = 0; i < n; i++) {
        const vf level = level_above(inverse, min, x[i], how->n_max, false);
        s.best = add_error(s.best, how->absolute, x[i], weight[i], level, s.fit.scale, min);
    }
    return s;
}

/* The least-squares scale and minimum of a trial's codes. Returns where there is one. */
LANES_INLINE vm solve_with_minimum(const min_state *s, const min_sums *sums, vf *scale, vf *min) {
    const vf zero = vf_zero();
    const vf determinant = vf_sub(vf_mul(s->sum_w, sums->ll), vf_mul(sums->l, sums->l));
    *scale = vf_div(vf_sub(vf_mul(s->sum_w, sums->xl), vf_mul(s->sum_x, sums->l)), determinant);
    *min = vf_div(vf_sub(vf_mul(sums->ll, s->sum_x), vf_mul(sums->l, sums->xl)), determinant);
    const vm above = vf_lt(zero, *min);
    if (vm_any(above)) {
        *scale = vf_choose(above, vf_div(sums->xl, sums->ll), *scale);
        *min = vf_choose(above, zero, *min);
    }
    return vm_and(s->has_range, vf_lt(zero, determinant));
}

/* Where the ends of the range, and so all between, will be in the range of round_between. */
LANES_INLINE vm trial_in_range(const min_state *s, vf inverse, vf from) {
    const vf low = vf_mul(inverse, vf_sub(s->low, from)), high = vf_mul(inverse, vf_sub(s->high, from));
    const vf most = vf_splat(4194303.0f); /* past it, round_shifted does not round */
    return vm_and(vf_lt(vf_abs(low), most), vf_lt(vf_abs(high), most));
}

/* A trial's codes, and the sums over them. level, x, weight: (LANES_AT_ONCE, n) */
LANES_INLINE void try_levels(vf *level, min_sums sums[LANES_AT_ONCE], unsigned n, int n_max, const vf *x,
                             const vf *weight, const vf inverse[LANES_AT_ONCE], const vf from[LANES_AT_ONCE],
                             bool in_range) {
    EACH_VECTOR sums[v] = (min_sums){vf_zero(), vf_zero(), vf_zero()};
    for (unsigned i = 0; i < n; i++) {
        EACH_VECTOR {
            const vf here = x[v * n + i], l = level_above(inverse[v], from[v], here, n_max, in_range);
            const vf weighted = vf_mul(weight[v * n + i], l);
            level[v * n + i] = l;
            sums[v].l = vf_add(sums[v].l, weighted);
            sums[v].ll = vf_add(sums[v].ll, vf_mul(weighted, l));
            sums[v].xl = vf_add(sums[v].xl, vf_mul(weighted, here));
        }
    }
}

/* Codes 0..n_max with a scale and a minimum <= 0: for each scale tried, codes by rounding, then the least-squares scale
 * and minimum of those codes. x, weight: (LANES_AT_ONCE, n) */
LANES_INLINE void fit_with_minimum(const min_search *how, unsigned n, const vf *x, const vf *weight,
                                   min_fit fit[LANES_AT_ONCE]) {
    const vf zero = vf_zero();
    min_state state[LANES_AT_ONCE];
    vf level[LANES_AT_ONCE * LANES_MAX];
    EACH_VECTOR state[v] = start_with_minimum(how, n, x + v * n, weight + v * n);
    for (int k = 0; k <= how->n_steps; k++) {
        const vf range = vf_splat(how->first + how->step * (float)k + (float)how->n_max);
        vf inverse[LANES_AT_ONCE], from[LANES_AT_ONCE], scale[LANES_AT_ONCE], min[LANES_AT_ONCE], error[LANES_AT_ONCE];
        min_sums sums[LANES_AT_ONCE];
        vm valid[LANES_AT_ONCE], out_of_range = vf_lt(zero, zero);
        EACH_VECTOR {
            from[v] = state[v].fit.min; /* of the best so far */
            inverse[v] = vf_div(range, vf_sub(state[v].high, from[v]));
            error[v] = zero;
            const vm far = vm_except(state[v].has_range, trial_in_range(&state[v], inverse[v], from[v]));
            out_of_range = vm_or(out_of_range, far);
        }
        if (!vm_any(out_of_range))
            try_levels(level, sums, n, how->n_max, x, weight, inverse, from, true);
        else
            try_levels(level, sums, n, how->n_max, x, weight, inverse, from, false);
        EACH_VECTOR valid[v] = solve_with_minimum(&state[v], &sums[v], &scale[v], &min[v]);
        for (unsigned i = 0; i < n; i++) {
            EACH_VECTOR error[v] =
                add_error(error[v], how->absolute, x[v * n + i], weight[v * n + i], level[v * n + i], scale[v], min[v]);
        }
        EACH_VECTOR {
            const vm better = vm_and(valid[v], vf_lt(error[v], state[v].best));
            min_fit *best = &state[v].fit;
            state[v].best = vf_choose(better, error[v], state[v].best);
            best->scale = vf_choose(better, scale[v], best->scale);
            best->min = vf_choose(better, min[v], best->min);
            best->inverse = vf_choose(better, inverse[v], best->inverse);
            best->from = vf_choose(better, from[v], best->from);
        }
    }
    EACH_VECTOR {
        fit[v] = state[v].fit;
        fit[v].scale = vf_choose(state[v].has_range, fit[v].scale, zero);
        fit[v].inverse = vf_choose(state[v].has_range, fit[v].inverse, zero);
    }
}

/* ---- Scales of sub-blocks -------------------------------------------------------------------------------------------- */

/* Codes 0..n_max of non-negative x (the scales of sub-blocks): nine scales, then coordinate descent. code: (n) as stored
 * in a byte. Returns the scales. */
LANES_INLINE vf fit_positive_lanes(unsigned n, int n_max, const vf *x, const vf *weight, vf *code) {
    const vf zero = vf_zero(), one = vf_splat(1);
    const float most = (float)n_max;
    vf max = zero, best = zero;
    for (unsigned i = 0; i < n; i++) max = vf_max(max, x[i]);
    vf inverse = vf_div(vf_splat(most), max), scale = vf_div(one, inverse);
    for (unsigned i = 0; i < n; i++) {
        const vf l = byte_of(round_shifted(vf_mul(inverse, x[i])));
        const vf e = vf_sub(x[i], vf_mul(scale, l));
        best = vf_add(best, vf_mul(vf_mul(weight[i], e), e));
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0) continue;
        const vf trial = vf_div(vf_splat(0.1f * (float)step + most), max);
        vf error = zero;
        scale = vf_div(one, trial);
        for (unsigned i = 0; i < n; i++) {
            const vf e = vf_sub(x[i], vf_mul(scale, round_below(vf_mul(trial, x[i]), most)));
            error = vf_add(error, vf_mul(vf_mul(weight[i], e), e));
        }
        const vm better = vf_lt(error, best);
        best = vf_choose(better, error, best);
        inverse = vf_choose(better, trial, inverse);
    }
    descent d = {.sums = {zero, zero}};
    for (unsigned i = 0; i < n; i++) {
        const vf l = round_below(vf_mul(inverse, x[i]), most);
        code[i] = byte_of(vf_add(l, vf_splat(ROUNDING)));
        d.sums = add_level(d.sums, l, weight[i], vf_mul(weight[i], x[i]));
    }
    for (int sweep = 0; sweep < 5; sweep++) {
        d.changed = vf_lt(zero, zero);
        for (unsigned i = 0; i < n; i++) {
            const vf weight_x = vf_mul(weight[i], x[i]);
            const lane_sums rest = sums_without(d.sums, code[i], weight[i], weight_x);
            const vm may = vm_and(vf_lt(zero, rest.xl), vf_lt(zero, rest.ll));
            const vf l = round_below(vf_div(vf_mul(x[i], rest.ll), rest.xl), most);
            descend(&d, &code[i], l, byte_of(vf_add(l, vf_splat(ROUNDING))), rest, may, weight[i], weight_x);
        }
        if (!vm_any(d.changed)) break;
    }
    const vm is_zero = vf_lt(max, vf_splat(SEARCH_ZERO));
    for (unsigned i = 0; i < n; i++) code[i] = vf_choose(is_zero, zero, code[i]);
    return vf_choose(is_zero, zero, scale_of(d.sums));
}

/* ---- Codes of one sub-block, in natural order; n is a multiple of 16 -------------------------------------------- */

/* For a scale and minimum that are fixed by now. */
static inline void requantize(uint8_t *restrict code, size_t n, const float *restrict x, float scale, float min,
                              int n_max) {
    for (size_t i = 0; i < n; i += 16) {
        const vf level = vf_div(vf_add(vf_load(x + i), vf_splat(min)), vf_splat(scale));
        vi_store_bytes(code + i, vi_bits(round_limited(level, 0, (float)n_max)));
    }
}

/* The same for codes stored with an offset, without minimum. */
static inline void requantize_symmetric(uint8_t *restrict code, size_t n, const float *restrict x, float scale,
                                        int n_max) {
    for (size_t i = 0; i < n; i += 16) {
        const vf shifted = round_limited(vf_div(vf_load(x + i), vf_splat(scale)), (float)-n_max, (float)(n_max - 1));
        vi_store_bytes(code + i, vi_add(vi_bits(shifted), vi_splat(n_max)));
    }
}

/* code[i] = x[i] * inverse + middle without its fraction, at most last. Nothing is below 0. */
static inline void codes_rounded_up(uint8_t *restrict code, size_t n, const float *restrict x, float inverse,
                                    float middle, int last) {
    for (size_t i = 0; i < n; i += 16) {
        const vf level = vf_add(vf_mul(vf_load(x + i), vf_splat(inverse)), vf_splat(middle));
        vi_store_bytes(code + i, vf_to_i(vf_min(level, vf_splat((float)last))));
    }
}

/* What fit_with_minimum chose. */
static inline void codes_above(uint8_t *restrict code, size_t n, const float *restrict x, float inverse, float from,
                               int n_max) {
    for (size_t i = 0; i < n; i += 16) {
        const vf level = vf_mul(vf_splat(inverse), vf_sub(vf_load(x + i), vf_splat(from)));
        vi_store_bytes(code + i, vi_bits(round_limited(level, 0, (float)n_max)));
    }
}

/* What fit_symmetric chose; its inverse is 0 for a sub-block of zeros. */
static inline void codes_around(uint8_t *restrict code, size_t n, const float *restrict x, float inverse, int n_max) {
    if (inverse == 0) {
        memset(code, 0, n);
        return;
    }
    for (size_t i = 0; i < n; i += 16) {
        const vf shifted = round_limited(vf_mul(vf_splat(inverse), vf_load(x + i)), (float)-n_max, (float)(n_max - 1));
        vi_store_bytes(code + i, vi_add(vi_bits(shifted), vi_splat(n_max)));
    }
}

#endif
