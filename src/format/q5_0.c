/* q5_0: 32 weights, one scale, 5-bit codes. w = d * (q - 16); the weight of largest magnitude gets q = 0.
 *
 *   byte  0  1 | 2 .. 5            | 6             ..  21
 *         d    | high              | q[16]:q[0] .. q[31]:q[15]      22 bytes, 5.5 bits per weight
 *         f16  | bit i: bit 4 of   | bits 0-3 of two codes,
 *              | code i, u32       | high nibble : low nibble
 */
#include "format/decode.h"
#include "format/dot_halves.h"
#include "format/few.h"
#include "format/lanes.h"

enum { BLOCK = 32 };

typedef struct block {
    uint8_t d[2], high[4], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 22, "a q5_0 block is 22 bytes");

/* Scale and codes (0..31) of one block without an importance matrix. Returns the scale. */
static float quantize_block(uint8_t *restrict code, const float *restrict x) {
    const float d = extreme(x, BLOCK) / -16, inverse = d != 0 ? 1 / d : 0;
    if (fabsf(inverse) > FLT_MAX) { /* d is so small that 1/d overflows: the reference's conversions give 0 */
        memset(code, 0, BLOCK);
        return d;
    }
    codes_rounded_up(code, BLOCK, x, inverse, 16.5f, 31);
    return d;
}

/* Up to 16 blocks with an importance matrix, a block in each lane. */
static bool encode_weighted(block *out, const float *x, size_t n_blocks, const float *importance, float sigma2) {
    vf lane[BLOCK], weight[BLOCK];
    float scale[NIB_LANES], inverse[NIB_LANES];
    bool fits = true;
    load_sub_blocks(lane, BLOCK, x, n_blocks);
    load_sub_blocks(weight, BLOCK, importance, n_blocks);
    weigh_lanes(weight, BLOCK, lane, vf_splat(sigma2));
    const symmetric_fit fit = fit_symmetric(BLOCK, 16, lane, weight, true);
    vf_store(scale, fit.scale);
    vf_store(inverse, fit.inverse);
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t code[BLOCK];
        codes_around(code, BLOCK, x + b * BLOCK, inverse[b], 16);
        fits &= store_half(out[b].d, scale[b]);
        pack_fifth_bits_32(out[b].high, code);
        pack_nibbles_32(out[b].q, code);
    }
    return fits;
}

static bool encode_plain(block *out, const float *x) {
    uint8_t code[BLOCK];
    const float d = quantize_block(code, x);
    pack_fifth_bits_32(out->high, code);
    pack_nibbles_32(out->q, code);
    return store_half(out->d, d);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    const size_t n_blocks = n / BLOCK;
    bool fits = true;
    if (!importance) {
        for (size_t b = 0; b < n_blocks; b++) fits &= encode_plain(out + b, src + b * BLOCK);
        return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
    }
    const float sigma2 = sum_of_squares(src, n) / (float)n;
    for (size_t b = 0; b < n_blocks; b += NIB_LANES) {
        const size_t n_here = n_blocks - b < NIB_LANES ? n_blocks - b : NIB_LANES;
        fits &= encode_weighted(out + b, src + b * BLOCK, n_here, importance + b * BLOCK, sigma2);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        uint8_t code[BLOCK];
        const float d = load_half(in->d);
        cut_five_bits_32(code, in->q, in->high);
        scale_codes(dst, code, BLOCK, d, 16);
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
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++) {
        const float d = load_half(in->d);
        out->scale[i] = d;
        out->min[i] = 16 * d;
        cut_five_bits_32(out->code + i * BLOCK, in->q, in->high);
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[44];
    begin_words(sink, word, src, stride);
    PANEL_UNROLL for (unsigned b = 0; b < NIB_PANEL_K / BLOCK; b++) {
        const unsigned at = b * sizeof(block);
        vf_store(sink->panel->scale[b], half_at(word, at));
        give_five_bits_32(sink, b, word, 44, at + 6, word_at(word, at + 2));
    }
}
#define SHAPE \
    { .group = 32, .centre = 16 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, true, SHAPE)

/* Eight blocks. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    s->scale[0] = vhf_of_halves(in->d, sizeof *in, 1);
    s->min[0] = vhf_times(s->scale[0], 16);
}
DOT_INLINE void read_two(vh code[2], const void *src, int a, int b) {
    const block *in = src;
    const vh both = vh_join_16(in[a].q, in[b].q);
    const uint32_t of_a = nib_load_u32(in[a].high), of_b = nib_load_u32(in[b].high);
    code[0] = vh_set_bits(vh_low_halves(both), (of_a & 0xffff) | of_b << 16, 16);
    code[1] = vh_set_bits(vh_high_halves(both), of_a >> 16 | (of_b & 0xffff0000), 16);
}
NIB_DOT_CROSSED(dot, read_scales_256, read_two, 8 * sizeof(block), 32, 31)

NIB_FORMATS(q5_0, {.facts = {.name = "q5_0",
                             .gguf_name = "q5_0",
                             .gguf_type = 6,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "5 bits, a scale per 32: symmetric",
                             .can_encode = true,
                             .can_decode = true,
                             .weighs_rows = true},
                   .activation = NIB_ACT_Q8_32,
                   .group = BLOCK,
                   .centre = 16,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 4,
                   .dot = NIB_DOT(dot)});
