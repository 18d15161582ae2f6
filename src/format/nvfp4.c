/* nvfp4: 64 weights as 4 sub-blocks of 16; 4-bit floats (e2m1.h) with an 8-bit float as scale of each sub-block.
 * w = scale[s] * value[q]
 *
 *   byte  0 .. 3        | 4 .. 35
 *         scale[0..3]   | byte 8 s + j (j < 8):
 *         ue4m3         | q[16 s + 8 + j] : q[16 s + j]         36 bytes, 4.5 bits per weight
 *
 *   ue4m3: 4 exponent bits with bias 7, 3 mantissa bits, no sign; exponent 0: mantissa * 2^-9; 0x7f reads as 0.
 *   Scales stop at 448: weights beyond 6 * 448 are cut off. (The scale of the whole tensor that the format counts on is
 *   a tensor of its own.) */
#include "format/decode.h"
#include "format/dot_halves.h"
#include "format/e2m1.h"
#include "format/few.h"

enum { BLOCK = 64, SUB = 16, N_SUB = BLOCK / SUB, LARGEST = 0x7e };

typedef struct block {
    uint8_t scale[N_SUB], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 36, "an nvfp4 block is 36 bytes");

/* Half the value of a ue4m3. */
static inline float half_scale(uint8_t code) {
    const unsigned exponent = code >> 3 & 15, mantissa = code & 7;
    if (code == 0x7f) return 0;
    if (exponent == 0) return (float)mantissa * 0x1p-10f;
    return nib_float_of((exponent - 8 + 127) << 23 | mantissa << 20);
}

/* The nearest ue4m3, halves up; with the largest exponent always the largest value, as in the reference. */
static uint8_t store_scale(float x) {
    if (!(x > 0)) return 0;
    if (x >= 256) return LARGEST;
    if (x < 0x1p-6f) { /* subnormal */
        const int mantissa = (int)(x * 512 + 0.5f);
        return (uint8_t)(mantissa < 7 ? mantissa : 7);
    }
    const uint32_t rounded = (nib_bits_of(x) + (1u << 19)) >> 20; /* exponent : mantissa, bias 127 */
    const uint32_t code = rounded - ((127 - 7) << 3);
    return (uint8_t)(code < 15 << 3 ? code : LARGEST);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        for (unsigned s = 0; s < N_SUB; s++) {
            const float *x = src + i + SUB * s;
            uint8_t code[SUB];
            out->scale[s] = store_scale(largest_magnitude(x, SUB) / 6.0f);
            e2m1_quantize(code, x, SUB, half_scale(out->scale[s]));
            for (unsigned j = 0; j < 8; j++) out->q[8 * s + j] = (uint8_t)(code[j] | code[j + 8] << 4);
        }
    }
    return NIB_VERDICT_OK;
}

/* table[code] of all codes in natural order; 32 codes come as 0..7, 16..23, 8..15, 24..31. table: 16 bytes */
static inline void look_up(void *dst, const block *in, const void *table) {
    for (unsigned part = 0; part < 2; part++) {
        uint64_t word[4];
        look_up_nibbles_32(word, in->q + 16 * part, table);
        const uint64_t natural[4] = {word[0], word[2], word[1], word[3]};
        memcpy((uint8_t *)dst + 32 * part, natural, sizeof natural);
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        int8_t twice[BLOCK];
        look_up(twice, in, E2M1_DOUBLE);
        for (unsigned s = 0; s < N_SUB; s++)
            scale_levels(dst + SUB * s, twice + SUB * s, SUB, half_scale(in->scale[s]));
    }
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++) {
        look_up(out->code + i * BLOCK, in, E2M1_ABOVE);
        for (unsigned s = 0; s < N_SUB; s++) {
            const float half = half_scale(in->scale[s]);
            out->scale[i * N_SUB + s] = half;
            out->min[i * N_SUB + s] = E2M1_OFFSET * half;
        }
    }
}

/* half_scale of 16 rows, as read_scales_256 does it. scales: byte i is the one that is meant */
static inline vf half_scales(vi scales, unsigned i) {
    const vi moved = i < 3 ? vi_shl(scales, (int)(20 - 8 * i)) : vi_shr(scales, 4);
    const vf scale = vf_mul(vf_bits(vi_and(moved, vi_splat(0x7f << 20))), vf_splat(0x1p119f));
    return vf_choose(vi_eq(vi_and(moved, vi_splat(0xff << 20)), vi_splat(0x7f << 20)), vf_zero(), scale);
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    enum { WORDS = sizeof(block) / 4 };
    vi word[4 * WORDS];
    read_words(word, src, stride, 4 * WORDS);
    PANEL_UNROLL for (unsigned s = 0; s < NIB_PANEL_K / SUB; s++) {
        const vi *its = word + s / N_SUB * WORDS;
        vf_store(sink->panel->scale[s], half_scales(its[0], s % N_SUB));
        open_group(sink, s, 0);
        PANEL_UNROLL for (unsigned j = 0; j < 2; j++) {
            const vi both = its[1 + s % N_SUB * 2 + j];
            give_codes(sink, 4 * s + j, 0, vi_look_up(E2M1_ABOVE, cut_bytes(both, 0, 15)));
            give_codes(sink, 4 * s + 2 + j, 0, vi_look_up(E2M1_ABOVE, cut_bytes(both, 4, 15)));
        }
        close_group(sink, s, 0);
    }
}
#define SHAPE \
    { .group = SUB, .centre = E2M1_OFFSET }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, true, SHAPE)

/* Four blocks. The bits of a ue4m3, moved to those of a float, mean 2^-119 times its half, subnormal or not. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    for (unsigned i = 0; i < 2; i++, in += 2) {
        const uint64_t eight = nib_load_u32(in[0].scale) | (uint64_t)nib_load_u32(in[1].scale) << 32;
        s->scale[i] = vhf_times(vhf_of_bits(eight, 20), 0x1p119f);
        s->min[i] = vhf_times(s->scale[i], E2M1_OFFSET);
    }
}
DOT_INLINE void read_two(vh code[2], const void *src, int a, int b) {
    const block *in = src;
    const vh both = vh_join_16(in[a / 2].q + a % 2 * 16, in[b / 2].q + b % 2 * 16);
    code[0] = vh_look_up(E2M1_ABOVE, vh_low_halves(both));
    code[1] = vh_look_up(E2M1_ABOVE, vh_high_halves(both));
    vh_mix_8(code);
}
NIB_DOT_CROSSED(dot, read_scales_256, read_two, 4 * sizeof(block), SUB, 28)

NIB_FORMATS(nvfp4, {.facts = {.name = "nvfp4",
                              .gguf_name = "nvfp4",
                              .gguf_type = 40,
                              .block = BLOCK,
                              .bytes = sizeof(block),
                              .kind = NIB_CLASS_SCALED,
                              .about = "4-bit floats, an 8-bit float scale per 16",
                              .can_encode = true,
                              .can_decode = true},
                    .activation = NIB_ACT_Q8_32,
                    .group = SUB,
                    .centre = E2M1_OFFSET,
                    .shape = SHAPE,
                    .encode = encode,
                    .decode = decode,
                    .unpack = unpack,
                    .turn = turn,
                    .few = NIB_FEW_OF(few),
                    .dot_tokens = 4,
                    .dot = NIB_DOT(dot)});
