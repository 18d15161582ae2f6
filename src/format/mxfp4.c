/* mxfp4: 32 weights as 4-bit floats (e2m1.h) with a power of two as scale: the OCP Microscaling format MXFP4.
 * w = 2^(e - 127) * value[q]
 *
 *   byte  0  | 1             ..  16
 *         e  | q[16]:q[0] .. q[31]:q[15]      17 bytes, 4.25 bits per weight
 */
#include "format/decode.h"
#include "format/dot_halves.h"
#include "format/e2m1.h"
#include "format/few.h"

enum { BLOCK = 32, NO_NUMBER = 255 };

typedef struct block {
    uint8_t e, q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 17, "an mxfp4 block is 17 bytes");

/* 2^(e - 128), the smallest two as subnormal numbers. */
static inline float half_scale(uint8_t e) {
    return nib_float_of(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* floor(log2(x)) for x > 0, where log2(x) is rounded to float first as in the reference: numbers so close below a power
 * of two that their logarithm rounds up to a whole number count as that power. Just below 2^k by j units of 2^(k-24) the
 * logarithm is k - j 2^-24 / ln 2, and numbers below k (in magnitude, at and above -k) are spaced 2^(p-23), where
 * 2^p < k <= 2^(p+1) for k > 0 and 2^p <= -k < 2^(p+1) for k < 0. */
static int floor_log2(float x) {
    uint32_t bits = nib_bits_of(x);
    int down = 0;
    if (bits < 0x00800000u) {
        bits = nib_bits_of(x * 0x1p24f);
        down = 24;
    }
    const int whole = (int)(bits >> 23) - 127 - down, next = whole + 1;
    if (next == 0) return whole;
    int spaced = 1; /* 2^(p+1) */
    if (next > 0) {
        while (spaced < next) spaced *= 2;
    } else {
        while (spaced <= -next) spaced *= 2;
    }
    const int below = (int)(0x00800000u - (bits & 0x007fffffu)); /* j */
    return (float)below <= 0.69314718f * 0.5f * (float)spaced ? next : whole;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        const float magnitude = largest_magnitude(src + i, BLOCK);
        out->e = magnitude > 0 ? (uint8_t)(floor_log2(magnitude) - 2 + 127) : 0; /* wraps around, as the reference */
        fits &= out->e != NO_NUMBER;
        e2m1_quantize(code, src + i, BLOCK, half_scale(out->e));
        pack_nibbles_32(out->q, code);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        int8_t twice[BLOCK];
        const float half = half_scale(in->e);
        look_up_nibbles_32(twice, in->q, E2M1_DOUBLE);
        scale_levels(dst, twice, BLOCK, half);
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (in[i].e == NO_NUMBER) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++) {
        const float half = half_scale(in->e);
        out->scale[i] = half;
        out->min[i] = E2M1_OFFSET * half;
        look_up_nibbles_32(out->code + i * BLOCK, in->q, E2M1_ABOVE);
    }
}

/* half_scale of 16 rows: below 2 the first term is not a positive number and the second is the subnormal one. */
static inline vf half_scales(vi e) {
    const vi subnormal = vi_shl(vi_add(vi_and(e, vi_splat(1)), vi_splat(1)), 21);
    return vf_max(vf_bits(vi_shl(vi_sub(e, vi_splat(1)), 23)), vf_bits(subnormal));
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[36];
    read_words(word, src, stride, 32);
    vi_turn(word + 32, (const uint8_t *)src + 120, stride); /* ends with the last two words */
    word[32] = word[34];
    word[33] = word[35];
    PANEL_UNROLL for (unsigned b = 0; b < NIB_PANEL_K / BLOCK; b++) {
        const unsigned at = b * sizeof(block);
        vf_store(sink->panel->scale[b], half_scales(byte_at(word, at)));
        give_looked_up_32(sink, b, word, at + 1, E2M1_ABOVE);
    }
}
#define SHAPE \
    { .group = 32, .centre = E2M1_OFFSET }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, true, SHAPE)

/* Eight blocks. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    const uint64_t low = in[0].e | (uint64_t)in[1].e << 8 | (uint64_t)in[2].e << 16 | (uint64_t)in[3].e << 24;
    const uint64_t high = in[4].e | (uint64_t)in[5].e << 8 | (uint64_t)in[6].e << 16 | (uint64_t)in[7].e << 24;
    s->scale[0] = vhf_of_exponents(low | high << 32);
    s->min[0] = vhf_times(s->scale[0], E2M1_OFFSET);
}
DOT_INLINE void read_two(vh code[2], const void *src, int a, int b) {
    const block *in = src;
    const vh both = vh_join_16(in[a].q, in[b].q);
    code[0] = vh_look_up(E2M1_ABOVE, vh_low_halves(both));
    code[1] = vh_look_up(E2M1_ABOVE, vh_high_halves(both));
}
NIB_DOT_CROSSED(dot, read_scales_256, read_two, 8 * sizeof(block), 32, 28)

NIB_FORMATS(mxfp4, {.facts = {.name = "mxfp4",
                              .gguf_name = "mxfp4",
                              .gguf_type = 39,
                              .block = BLOCK,
                              .bytes = sizeof(block),
                              .kind = NIB_CLASS_SCALED,
                              .about = "4-bit floats, a power-of-two scale per 32: for models trained in it",
                              .can_encode = true,
                              .can_decode = true},
                    .activation = NIB_ACT_Q8_32,
                    .group = BLOCK,
                    .centre = E2M1_OFFSET,
                    .shape = SHAPE,
                    .encode = encode,
                    .decode = decode,
                    .check = check,
                    .unpack = unpack,
                    .turn = turn,
                    .few = NIB_FEW_OF(few),
                    .dot_tokens = 3,
                    .dot = NIB_DOT(dot)});
