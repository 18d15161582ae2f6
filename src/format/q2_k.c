/* q2_k: 256 weights as 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum; 2-bit codes.
 * w = d * scale[g] * q - d_min * min[g]
 *
 *   byte  0 .. 15               | 16 .. 47           | 48 .. 79       | 80 81 | 82 83
 *         min[g] : scale[g]     | codes 0 .. 127     | 128 .. 255     | d     | d_min
 *         high : low nibble     | byte l, bits 2j:   |                | f16   | f16
 *                               | code 32 j + l      |                        84 bytes, 2.625 bits per weight
 */
#include "format/dot.h"
#include "format/search.h"

enum { BLOCK = 256, N_SUB = 16, SUB = 16 };

typedef struct block {
    uint8_t scale_min[N_SUB], q[BLOCK / 4], d[2], d_min[2];
} block;
_Static_assert(sizeof(block) == 84, "a q2_k block is 84 bytes");

static const min_search PLAIN = {.n_max = 3, .first = -0.5f, .step = 0.1f, .n_steps = 15, .absolute = true};
static const min_search WEIGHTED = {.n_max = 3, .first = -0.9f, .step = 0.05f, .n_steps = 36};

static void read_scales(float scale[N_SUB], float min[N_SUB], const block *in) {
    const float d = load_half(in->d), d_min = load_half(in->d_min);
    for (unsigned g = 0; g < N_SUB; g++) {
        scale[g] = d * (float)(in->scale_min[g] & 15);
        min[g] = d_min * (float)(in->scale_min[g] >> 4);
    }
}

/* Scales and minimums rounded to 1/15 of the largest. false if one does not fit half precision. */
static bool encode_plain(block *out, uint8_t *code, const float *x) {
    float scale[N_SUB], min[N_SUB], max_scale = 0, max_min = 0;
    for (unsigned g = 0; g < N_SUB; g++) {
        float weight[SUB];
        for (unsigned i = 0; i < SUB; i++) weight[i] = fabsf(x[SUB * g + i]);
        scale[g] = fit_with_minimum(&PLAIN, SUB, x + SUB * g, weight, code + SUB * g, &min[g]);
        if (scale[g] > max_scale) max_scale = scale[g];
        if (min[g] > max_min) max_min = min[g];
    }
    memset(out->scale_min, 0, sizeof out->scale_min);
    if (max_scale > 0) {
        const float inverse = 15.0f / max_scale;
        for (unsigned g = 0; g < N_SUB; g++) out->scale_min[g] = (uint8_t)round_even(inverse * scale[g]);
    }
    if (max_min > 0) {
        const float inverse = 15.0f / max_min;
        for (unsigned g = 0; g < N_SUB; g++)
            out->scale_min[g] |= (uint8_t)((unsigned)round_even(inverse * min[g]) << 4);
    }
    const bool fits = store_half(out->d, max_scale > 0 ? max_scale / 15.0f : 0);
    return store_half(out->d_min, max_min > 0 ? max_min / 15.0f : 0) && fits;
}

static bool encode_weighted(block *out, uint8_t *code, const float *x, const float *importance) {
    const float sigma2 = sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SUB], min[N_SUB], sum_weight[N_SUB];
    for (unsigned g = 0; g < N_SUB; g++) {
        float weight[SUB];
        weigh(weight, SUB, x + SUB * g, importance + SUB * g, sigma2);
        sum_weight[g] = sum_in_order(weight, SUB);
        scale[g] = fit_with_minimum(&WEIGHTED, SUB, x + SUB * g, weight, code + SUB * g, &min[g]);
    }
    uint8_t scale_code[N_SUB], min_code[N_SUB];
    const bool fits = store_half(out->d, fit_positive(N_SUB, 15, scale, scale_code, sum_weight));
    const bool min_fits = store_half(out->d_min, fit_positive(N_SUB, 15, min, min_code, sum_weight));
    for (unsigned g = 0; g < N_SUB; g++) out->scale_min[g] = (uint8_t)(scale_code[g] | min_code[g] << 4);
    return fits && min_fits;
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
        float scale[N_SUB], min[N_SUB];
        read_scales(scale, min, out);
        for (unsigned g = 0; g < N_SUB; g++) {
            if (scale[g] != 0) requantize(code + SUB * g, SUB, src + i + SUB * g, scale[g], min[g], 3);
        }
        pack_pairs_256(out->q, code);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[N_SUB], min[N_SUB];
        cut_pairs_256(code, in->q);
        read_scales(scale, min, in);
        for (unsigned g = 0; g < N_SUB; g++) {
            for (unsigned l = 0; l < SUB; l++) dst[i + SUB * g + l] = scale[g] * (float)code[SUB * g + l] - min[g];
        }
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (!half_is_finite(in[i].d) || !half_is_finite(in[i].d_min)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    const block *in = src;
    cut_pairs_256(out->code, in->q);
    read_scales(out->scale, out->min, in);
}

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    words_16 bytes;
    memcpy(&bytes, in->scale_min, sizeof bytes);
    w->d = load_half(in->d);
    w->d_min = load_half(in->d_min);
    w->scale = vs_of_bytes(bytes & EACH_BYTE(15), 0);
    w->min = vs_of_bytes((bytes >> 4) & EACH_BYTE(15), 0);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) w->code[p] =
        vi_and(vi_down(vi_twice_32(in->q + p / 2 * 32), p % 2 * 4, p % 2 * 4 + 2), vi_of_byte(3));
}
NIB_DOT_WHOLE(dot, read_256, sizeof(block), SUB, 3)

NIB_FORMATS(q2_k,
            {.facts = {.name = "q2_k",
                       .gguf_name = "q2_K",
                       .gguf_type = 10,
                       .block = BLOCK,
                       .bytes = sizeof(block),
                       .kind = NIB_CLASS_SCALED,
                       .about = "2 bits, 16 sub-blocks of 16 with 4-bit scale and minimum: small, with a clear loss",
                       .can_encode = true,
                       .can_decode = true},
             .activation = NIB_ACT_Q8_256,
             .group = SUB,
             .encode = encode,
             .decode = decode,
             .check = check,
             .unpack = unpack,
             .dot = NIB_DOT(dot)});
