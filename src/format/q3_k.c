/* q3_k: 256 weights as 16 sub-blocks of 16, each with a signed 6-bit scale; 3-bit codes.
 * w = d * (scale[g] - 32) * (q - 4)
 *
 *   byte  0 .. 31             | 32 .. 63            | 64 .. 95       | 96 .. 107          | 108 109
 *         high[0..31]         | codes 0 .. 127      | 128 .. 255     | 16 scales          | d
 *         bit 4n+j of high[l] | bits 0-1 of the     |                | (below)            | f16
 *         = bit 2 of code     | codes: byte l, bits |                |
 *         128 n + 32 j + l    | 2j: code 32 j + l   |                110 bytes, 3.4375 bits per weight
 *
 *   scales: byte b (0..7):   scale[b+8] bits 0-3 : scale[b] bits 0-3
 *           byte b+8 (0..3): bits 4-5 of scale[b+12] : scale[b+8] : scale[b+4] : scale[b]
 */
#include "format/dot.h"
#include "format/search.h"

enum { BLOCK = 256, N_SUB = 16, SUB = 16 };

typedef struct block {
    uint8_t high[BLOCK / 8], q[BLOCK / 4], scales[12], d[2];
} block;
_Static_assert(sizeof(block) == 110, "a q3_k block is 110 bytes");

static void pack_scales(uint8_t packed[12], const uint8_t scale[N_SUB]) {
    for (unsigned b = 0; b < 8; b++) packed[b] = (uint8_t)((scale[b] & 15) | (scale[b + 8] & 15) << 4);
    for (unsigned b = 0; b < 4; b++)
        packed[b + 8] = (uint8_t)((scale[b] >> 4 & 3) | (scale[b + 4] >> 4 & 3) << 2 | (scale[b + 8] >> 4 & 3) << 4 |
                                  (scale[b + 12] >> 4 & 3) << 6);
}

/* The 16 scales as bytes, 32 above what they mean. */
static inline void read_scale_codes(uint64_t words[2], const block *in) {
    const uint64_t low = nib_load_u64(in->scales), two = nib_load_u32(in->scales + 8);
    const uint64_t high = two | two << 30; /* bytes 4-7 are bytes 0-3 shifted right by 2 */
    words[0] = (low & EACH_BYTE(15)) | (high & EACH_BYTE(3)) << 4;
    words[1] = (low >> 4 & EACH_BYTE(15)) | (high >> 4 & EACH_BYTE(3)) << 4;
}

static void read_scales(float scale[N_SUB], const block *in) {
    const float d = load_half(in->d);
    uint64_t words[2];
    uint8_t code[N_SUB];
    read_scale_codes(words, in);
    memcpy(code, words, sizeof code);
    for (unsigned g = 0; g < N_SUB; g++) scale[g] = d * (float)(code[g] - 32);
}

/* Sub-blocks by coordinate descent; scales rounded to 1/32 of the largest. */
static bool encode_plain(block *out, uint8_t *code, const float *x) {
    float scale[N_SUB];
    for (unsigned g = 0; g < N_SUB; g++) scale[g] = fit_by_descent(SUB, 4, x + SUB * g, code + SUB * g);
    const float max = extreme_number(scale, N_SUB);
    memset(out->scales, 0, sizeof out->scales);
    if (max == 0) return store_half(out->d, 0);
    const float inverse = -32.0f / max;
    uint8_t scale_code[N_SUB];
    for (unsigned g = 0; g < N_SUB; g++)
        scale_code[g] = (uint8_t)(clamp_int((int8_t)round_even(inverse * scale[g]), -32, 31) + 32);
    pack_scales(out->scales, scale_code);
    return store_half(out->d, 1 / inverse);
}

static bool encode_weighted(block *out, uint8_t *code, const float *x, const float *importance) {
    const float sigma2 = 2 * sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SUB], sum_weight[N_SUB];
    for (unsigned g = 0; g < N_SUB; g++) {
        float weight[SUB];
        weigh(weight, SUB, x + SUB * g, importance + SUB * g, sigma2);
        sum_weight[g] = sum_in_order(weight, SUB);
        scale[g] = fit_symmetric(SUB, 4, x + SUB * g, code + SUB * g, weight);
    }
    uint8_t scale_code[N_SUB];
    const float d = fit_symmetric(N_SUB, 32, scale, scale_code, sum_weight);
    pack_scales(out->scales, scale_code);
    return store_half(out->d, d);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        fits &= importance ? encode_weighted(out, code, src + i, importance + i) : encode_plain(out, code, src + i);
        float scale[N_SUB];
        read_scales(scale, out);
        for (unsigned g = 0; g < N_SUB; g++) {
            if (scale[g] != 0) requantize_symmetric(code + SUB * g, SUB, src + i + SUB * g, scale[g], 4);
        }
        pack_pairs_256(out->q, code);
        memset(out->high, 0, sizeof out->high);
        for (unsigned b = 0; b < 8; b++) {
            for (unsigned l = 0; l < 32; l++) out->high[l] |= (uint8_t)(code[32 * b + l] >> 2 << b);
        }
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void read_codes(uint8_t *restrict code, const block *restrict in) {
    for (unsigned b = 0; b < 8; b++) cut_two_32(code + 32 * b, in->q + 32 * (b / 4), b % 4 * 2, 3, in->high, b, 1, 2);
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[N_SUB];
        read_codes(code, in);
        read_scales(scale, in);
        for (unsigned g = 0; g < N_SUB; g++) {
            for (unsigned l = 0; l < SUB; l++) dst[i + SUB * g + l] = scale[g] * (float)(code[SUB * g + l] - 4);
        }
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (!half_is_finite(in[i].d)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    const block *in = src;
    read_codes(out->code, in);
    read_scales(out->scale, in);
    for (unsigned g = 0; g < N_SUB; g++) out->min[g] = 4 * out->scale[g];
}

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    const vi high = vi_twice_32(in->high);
    uint64_t words[2];
    read_scale_codes(words, in);
    w->d = load_half(in->d);
    w->d_min = 4 * w->d;
    w->scale = w->min = vs_of_bytes((words_16){words[0], words[1]}, -32);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const vi low = vi_down(vi_twice_32(in->q + p / 2 * 32), p % 2 * 4, p % 2 * 4 + 2);
        w->code[p] = vi_and_or(vi_down(high, 2 * p - 2, 2 * p - 1), vi_of_byte(4), vi_and(low, vi_of_byte(3)));
    }
}
NIB_DOT_WHOLE(dot, read_256, sizeof(block), SUB, 7)

NIB_FORMATS(q3_k, {.facts = {.name = "q3_k",
                             .gguf_name = "q3_K",
                             .gguf_type = 11,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "3 bits, 16 sub-blocks of 16 with a 6-bit scale, symmetric",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_256,
                   .group = SUB,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .dot = NIB_DOT(dot)});
