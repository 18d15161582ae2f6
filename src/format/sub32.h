/* What q4_k and q5_k share: 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum packed into 12 bytes.
 *
 *   byte b    (0..3)   scale[b+4] bits 4-5 : scale[b]            2 + 6 bits
 *   byte b+4           min[b+4]   bits 4-5 : min[b]              2 + 6 bits
 *   byte b+8           min[b+4]   bits 0-3 : scale[b+4] bits 0-3 4 + 4 bits
 */
#ifndef NIB_FORMAT_SUB32_H
#define NIB_FORMAT_SUB32_H

#include "format/dot.h"
#include "format/search.h"

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
    w->d = load_half(head->d);
    w->d_min = load_half(head->d_min);
    w->scale = vs_of_bytes((words_16){scale, min}, 0);
}

/* Codes of the sub-blocks for the scales as stored; those whose scale became 0 keep what the search gave them. */
static inline void requantize_sub32(const sub32_head *head, const float *x, uint8_t *code, int n_max) {
    float scale[SUB32_N], min[SUB32_N];
    read_sub32(scale, min, head);
    for (unsigned b = 0; b < SUB32_N; b++) {
        if (scale[b] == 0) continue;
        requantize(code + b * SUB32_WEIGHTS, SUB32_WEIGHTS, x + b * SUB32_WEIGHTS, scale[b], min[b], n_max);
    }
}

/* One block without importance matrix: every sub-block by its own search, then its scale and minimum rounded to 1/63 of
 * the largest. false if a scale does not fit half precision. */
static inline bool encode_sub32(sub32_head *head, uint8_t *code, const float *x, const min_search *how) {
    float scale[SUB32_N], min[SUB32_N], max_scale = 0, max_min = 0;
    for (unsigned b = 0; b < SUB32_N; b++) {
        const float *sub = x + b * SUB32_WEIGHTS;
        const float rms = sqrtf(sum_of_squares(sub, SUB32_WEIGHTS) / 32);
        float weight[SUB32_WEIGHTS];
        for (unsigned i = 0; i < SUB32_WEIGHTS; i++) weight[i] = rms + fabsf(sub[i]);
        scale[b] = fit_with_minimum(how, SUB32_WEIGHTS, sub, weight, code + b * SUB32_WEIGHTS, &min[b]);
        if (scale[b] > max_scale) max_scale = scale[b];
        if (min[b] > max_min) max_min = min[b];
    }
    const float per_scale = max_scale > 0 ? 63.0f / max_scale : 0, per_min = max_min > 0 ? 63.0f / max_min : 0;
    uint8_t scale_code[SUB32_N], min_code[SUB32_N];
    for (unsigned b = 0; b < SUB32_N; b++) {
        const uint8_t s = (uint8_t)round_even(per_scale * scale[b]), m = (uint8_t)round_even(per_min * min[b]);
        scale_code[b] = s < 63 ? s : 63;
        min_code[b] = m < 63 ? m : 63;
    }
    pack_sub32(head->packed, scale_code, min_code);
    bool fits = store_half(head->d, max_scale / 63.0f);
    fits &= store_half(head->d_min, max_min / 63.0f);
    requantize_sub32(head, x, code, how->n_max);
    return fits;
}

/* The same with an importance matrix: weighted searches, also for the scales of the sub-blocks. clamp: scales that the
 * search left outside 6 bits are cut (the two formats differ in it). */
static inline bool encode_sub32_weighted(sub32_head *head, uint8_t *code, const float *x, const float *importance,
                                         int n_max, bool clamp) {
    const min_search how = {.n_max = n_max, .first = -0.9f, .step = 0.05f, .n_steps = 36};
    const float sigma2 = 2 * sum_of_squares(x, SUB32_BLOCK) / SUB32_BLOCK;
    float scale[SUB32_N], min[SUB32_N], sum_weight[SUB32_N];
    for (unsigned b = 0; b < SUB32_N; b++) {
        const size_t at = (size_t)b * SUB32_WEIGHTS;
        float weight[SUB32_WEIGHTS];
        weigh(weight, SUB32_WEIGHTS, x + at, importance + at, sigma2);
        sum_weight[b] = sum_in_order(weight, SUB32_WEIGHTS);
        scale[b] = fit_with_minimum(&how, SUB32_WEIGHTS, x + at, weight, code + at, &min[b]);
    }
    uint8_t scale_code[SUB32_N], min_code[SUB32_N];
    const float d = fit_positive(SUB32_N, 63, scale, scale_code, sum_weight);
    const float d_min = fit_positive(SUB32_N, 63, min, min_code, sum_weight);
    for (unsigned b = 0; clamp && b < SUB32_N; b++) {
        scale_code[b] = scale_code[b] < 63 ? scale_code[b] : 63;
        min_code[b] = min_code[b] < 63 ? min_code[b] : 63;
    }
    pack_sub32(head->packed, scale_code, min_code);
    bool fits = store_half(head->d, d);
    fits &= store_half(head->d_min, d_min);
    requantize_sub32(head, x, code, n_max);
    return fits;
}

#endif
