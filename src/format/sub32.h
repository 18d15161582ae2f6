/* What q4_k and q5_k share: 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum packed into 12 bytes.
 *
 *   byte b    (0..3)   scale[b+4] bits 4-5 : scale[b]            2 + 6 bits
 *   byte b+4           min[b+4]   bits 4-5 : min[b]              2 + 6 bits
 *   byte b+8           min[b+4]   bits 0-3 : scale[b+4] bits 0-3 4 + 4 bits
 */
#ifndef NIB_FORMAT_SUB32_H
#define NIB_FORMAT_SUB32_H

#include "format/dot.h"
#include "format/few.h"
#include "format/lanes.h"

enum { SUB32_N = 8, SUB32_WEIGHTS = 32, SUB32_BLOCK = 256 };

static inline void pack_sub32(uint8_t packed[12], const uint8_t scale[SUB32_N], const uint8_t min[SUB32_N]) {
    for (unsigned b = 0; b < 4; b++) {
        packed[b] = (uint8_t)(scale[b] | (scale[b + 4] >> 4) << 6);
        packed[b + 4] = (uint8_t)(min[b] | (min[b + 4] >> 4) << 6);
        packed[b + 8] = (uint8_t)((scale[b + 4] & 15) | (min[b + 4] & 15) << 4);
    }
}

static inline void unpack_sub32(uint8_t scale[SUB32_N], uint8_t min[SUB32_N], const uint8_t packed[12]) {
    const uint32_t s = nib_load_u32(packed), m = nib_load_u32(packed + 4), low = nib_load_u32(packed + 8);
    const uint32_t parts[4] = {s & 0x3f3f3f3fu, (low & 0x0f0f0f0fu) | (s >> 6 & 0x03030303u) << 4, m & 0x3f3f3f3fu,
                               (low >> 4 & 0x0f0f0f0fu) | (m >> 6 & 0x03030303u) << 4};
    memcpy(scale, parts, 8);
    memcpy(min, parts + 2, 8);
}

/* The head both blocks begin with. */
typedef struct sub32_head {
    uint8_t d[2], d_min[2], packed[12];
} sub32_head;

/* Scales and minimums of all sub-blocks as floats: weight = scale * code - min. */
static inline void read_sub32(float scale[SUB32_N], float min[SUB32_N], const sub32_head *head) {
    const float d = load_half(head->d), d_min = load_half(head->d_min);
    uint8_t scale_code[SUB32_N], min_code[SUB32_N];
    unpack_sub32(scale_code, min_code, head->packed);
    for (unsigned b = 0; b < SUB32_N; b++) {
        scale[b] = d * (float)scale_code[b];
        min[b] = d_min * (float)min_code[b];
    }
}

/* The same for products. */
DOT_INLINE void dot_read_sub32(dot_whole *w, const sub32_head *head) {
    const uint64_t s = nib_load_u32(head->packed), m = nib_load_u32(head->packed + 4);
    const uint64_t low = nib_load_u32(head->packed + 8);
    const uint64_t scale = (s & 0x3f3f3f3fu) | ((low & 0x0f0f0f0fu) | (s >> 2 & 0x30303030u)) << 32;
    const uint64_t min = (m & 0x3f3f3f3fu) | ((low >> 4 & 0x0f0f0f0fu) | (m >> 2 & 0x30303030u)) << 32;
    dot_read_d(w, head->d);
    w->scale = vs_of_bytes((words_16){scale, min}, 0);
}

/* The same of 16 rows; word: the head. */
static inline void turn_sub32(nib_panel *out, const vi word[4]) {
    const vi scale[2] = {cut_bytes(word[1], 0, 63),
                         vi_or(cut_bytes(word[3], 0, 15), vi_shl(cut_bytes(word[1], 6, 3), 4))};
    const vi min[2] = {cut_bytes(word[2], 0, 63),
                       vi_or(cut_bytes(word[3], 4, 15), vi_shl(cut_bytes(word[2], 6, 3), 4))};
    PANEL_UNROLL for (unsigned i = 0; i < SUB32_N / 2; i++) {
        vi_store(out->whole[i], pair_at(scale, i));
        vi_store(out->min[i], pair_at(min, i));
    }
    vf_store(out->d, half_at(word, 0));
    vf_store(out->minus_d_min, vf_sub(vf_zero(), half_at(word, 2)));
}

/* Up to 16 blocks on their way: what the searches of the sub-blocks found, and what will be stored. Sub-block b of block i
 * stands at 8 i + b; 16 of them, two blocks, are searched at once. */
enum { SUB32_GROUP = 16, SUB32_GROUP_SUBS = SUB32_GROUP * SUB32_N };
typedef struct sub32_group {
    float scale[SUB32_GROUP_SUBS + SUB32_N], negated_min[SUB32_GROUP_SUBS + SUB32_N]; /* rows are read 16 wide */
    float sum_weight[SUB32_GROUP_SUBS + SUB32_N];
    float inverse[SUB32_GROUP_SUBS], from[SUB32_GROUP_SUBS];
    sub32_head head[SUB32_GROUP];
    uint8_t code[SUB32_GROUP][SUB32_BLOCK];
} sub32_group;

/* How a format differs from the other one. */
typedef struct sub32_format {
    min_search plain, weighted; /* without and with an importance matrix */
    bool clamp;                 /* with one, scales that the search left outside 6 bits are cut */
} sub32_format;

/* Without an importance matrix: rms + |x| of a sub-block. */
static inline void weigh_sub32(vf weight[SUB32_WEIGHTS], const vf x[SUB32_WEIGHTS]) {
    vf sum = vf_zero();
    for (unsigned i = 0; i < SUB32_WEIGHTS; i++) sum = vf_add(sum, vf_mul(x[i], x[i]));
    const vf rms = vf_sqrt(vf_div(sum, vf_splat(32)));
    for (unsigned i = 0; i < SUB32_WEIGHTS; i++) weight[i] = vf_add(rms, vf_abs(x[i]));
}

/* The sub-blocks from `at` on that are searched at once; importance may be NULL. x: the first block of the group. */
static inline void fit_sub32(sub32_group *g, const sub32_format *format, const float *x, size_t n_blocks, size_t at,
                             const float *importance, const float sigma2[SUB32_GROUP]) {
    vf lane[LANES_AT_ONCE * SUB32_WEIGHTS], weight[LANES_AT_ONCE * SUB32_WEIGHTS];
    min_fit fit[LANES_AT_ONCE];
    EACH_VECTOR {
        const size_t first = at + v * NIB_LANES, end = n_blocks * SUB32_N, n_lanes = first < end ? end - first : 0;
        vf *x_of = lane + v * SUB32_WEIGHTS, *weight_of = weight + v * SUB32_WEIGHTS;
        load_sub_blocks(x_of, SUB32_WEIGHTS, x + first * SUB32_WEIGHTS, n_lanes);
        if (importance) {
            float sigma2_of[NIB_LANES];
            for (unsigned i = 0; i < NIB_LANES; i++) sigma2_of[i] = sigma2[(first + i) / SUB32_N];
            load_sub_blocks(weight_of, SUB32_WEIGHTS, importance + first * SUB32_WEIGHTS, n_lanes);
            vf_store(g->sum_weight + first, weigh_lanes(weight_of, SUB32_WEIGHTS, x_of, vf_load(sigma2_of)));
        } else {
            weigh_sub32(weight_of, x_of);
        }
    }
    if (importance)
        fit_with_minimum(&format->weighted, SUB32_WEIGHTS, lane, weight, fit);
    else
        fit_with_minimum(&format->plain, SUB32_WEIGHTS, lane, weight, fit);
    EACH_VECTOR {
        const size_t first = at + v * NIB_LANES;
        vf_store(g->scale + first, fit[v].scale);
        vf_store(g->negated_min + first, vf_negate(fit[v].min));
        vf_store(g->inverse + first, fit[v].inverse);
        vf_store(g->from + first, fit[v].from);
    }
}

/* Scales or minimums rounded to 1/63 of the largest, which is returned; lane i: block i. */
static inline vf round_sub32(const vf x[SUB32_N], vf code[SUB32_N]) {
    vf max = vf_zero();
    for (unsigned b = 0; b < SUB32_N; b++) max = vf_max(x[b], max);
    const vf inverse = vf_choose(vf_lt(vf_zero(), max), vf_div(vf_splat(63), max), vf_zero());
    for (unsigned b = 0; b < SUB32_N; b++) code[b] = byte_of(round_shifted(vf_mul(inverse, x[b])));
    return vf_div(max, vf_splat(63));
}

/* The scales (or minimums) of all blocks: their common factors, and their codes. lane i: block i */
static inline vf code_sub32(const sub32_group *g, const float *values, size_t n_blocks, bool weighted, bool clamp,
                            uint8_t code[SUB32_N][SUB32_GROUP]) {
    vf x[NIB_LANES], weight[NIB_LANES], level[SUB32_N];
    load_lanes(x, values, SUB32_N, n_blocks);
    if (weighted) load_lanes(weight, g->sum_weight, SUB32_N, n_blocks);
    const vf d = weighted ? fit_positive_lanes(SUB32_N, 63, x, weight, level) : round_sub32(x, level);
    for (unsigned b = 0; b < SUB32_N; b++) {
        if (clamp) level[b] = vf_min(level[b], vf_splat(63));
        vi_store_bytes(code[b], vf_to_i(level[b]));
    }
    return d;
}

/* Codes of the sub-blocks for the scales as stored; those whose scale became 0 keep what the search gave them. */
static inline void requantize_sub32(sub32_group *g, size_t i, const float *x, int n_max) {
    float scale[SUB32_N], min[SUB32_N];
    read_sub32(scale, min, &g->head[i]);
    for (size_t b = 0; b < SUB32_N; b++, x += SUB32_WEIGHTS) {
        uint8_t *code = g->code[i] + b * SUB32_WEIGHTS;
        if (scale[b] != 0)
            requantize(code, SUB32_WEIGHTS, x, scale[b], min[b], n_max);
        else
            codes_above(code, SUB32_WEIGHTS, x, g->inverse[i * SUB32_N + b], g->from[i * SUB32_N + b], n_max);
    }
}

/* Heads and codes of up to 16 blocks. false if a scale does not fit half precision. */
static inline bool encode_sub32(sub32_group *g, const sub32_format *format, const float *x, size_t n_blocks,
                                const float *importance) {
    float sigma2[SUB32_GROUP], d[NIB_LANES], d_min[NIB_LANES];
    uint8_t scale[SUB32_N][SUB32_GROUP], min[SUB32_N][SUB32_GROUP];
    bool fits = true;
    if (importance)
        vf_store(sigma2, vf_div(vf_mul(vf_splat(2), sums_of_squares_256(x, n_blocks)), vf_splat(SUB32_BLOCK)));
    for (size_t at = 0; at < n_blocks * SUB32_N; at += LANES_AT_ONCE * NIB_LANES)
        fit_sub32(g, format, x, n_blocks, at, importance, sigma2);
    const bool clamp = !importance || format->clamp;
    vf_store(d, code_sub32(g, g->scale, n_blocks, importance, clamp, scale));
    vf_store(d_min, code_sub32(g, g->negated_min, n_blocks, importance, clamp, min));
    for (size_t i = 0; i < n_blocks; i++) {
        uint8_t scale_code[SUB32_N], min_code[SUB32_N];
        for (unsigned b = 0; b < SUB32_N; b++) {
            scale_code[b] = scale[b][i];
            min_code[b] = min[b][i];
        }
        pack_sub32(g->head[i].packed, scale_code, min_code);
        fits &= store_half(g->head[i].d, d[i]);
        fits &= store_half(g->head[i].d_min, d_min[i]);
        requantize_sub32(g, i, x + i * SUB32_BLOCK, format->plain.n_max);
    }
    return fits;
}

#endif
