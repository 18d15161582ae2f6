/* iq4_xs: 256 weights as 8 sub-blocks of 32, each with a signed 6-bit scale; 4-bit codes of 16 uneven levels (iq4.h).
 * w = d * (scale[b] - 32) * level[q]
 *
 *   byte  0  1 | 2 3               | 4 .. 7                  | 8 .. 135
 *         d    | bits 2b, 2b+1:    | byte b:                 | byte 16 b + j:
 *         f16  | bits 4-5 of       | scale[2b+1] : scale[2b] | code 32 b + j + 16 : code 32 b + j
 *              | scale[b]          | bits 0-3                |          136 bytes, 4.25 bits per weight
 */
#include "format/decode.h"
#include "format/dot_halves.h"
#include "format/few.h"
#include "format/iq4.h"

enum { BLOCK = 256, N_SUB = BLOCK / IQ4_SUB };

typedef struct block {
    uint8_t d[2], scale_high[2], scale_low[N_SUB / 2], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 136, "an iq4_xs block is 136 bytes");

/* The 8 scales, 32 above what they mean, one in each byte. */
static inline uint64_t read_scale_codes(const block *in) {
    uint64_t low = nib_load_u32(in->scale_low), high = nib_load_u16(in->scale_high);
    low = (low | low << 16) & 0x0000ffff0000ffffu; /* halving gives each code a place of twice the width */
    high = (high | high << 24) & 0x000000ff000000ffu;
    low = (low | low << 8) & 0x00ff00ff00ff00ffu;
    high = (high | high << 12) & 0x000f000f000f000fu;
    low = (low | low << 4) & EACH_BYTE(15);
    high = (high | high << 6) & EACH_BYTE(3);
    return low | high << 4;
}

static void read_scales(float scale[N_SUB], const block *in) {
    const float d = load_half(in->d);
    const uint64_t codes = read_scale_codes(in);
    for (unsigned b = 0; b < N_SUB; b++) scale[b] = d * (float)((int)(codes >> 8 * b & 63) - 32);
}

/* The scales of a block: the largest becomes -32. Codes follow d before it is rounded: sub_scale gets what they are for.
 * false if d does not fit half precision. */
static bool store_scales(block *restrict out, float sub_scale[N_SUB], const float scale[N_SUB]) {
    const float d = -extreme_number(scale, N_SUB) / 32, inverse = d != 0 ? 1 / d : 0;
    uint16_t high = 0;
    memset(out->scale_low, 0, sizeof out->scale_low);
    for (unsigned b = 0; b < N_SUB; b++) {
        const int level = clamp_int(round_even(inverse * scale[b]), -32, 31);
        const unsigned stored = (unsigned)(level + 32);
        sub_scale[b] = d * (float)level;
        out->scale_low[b / 2] |= (uint8_t)((stored & 15) << b % 2 * 4);
        high = (uint16_t)(high | stored >> 4 << 2 * b);
    }
    memcpy(out->scale_high, &high, sizeof high);
    return store_half(out->d, d);
}

/* n blocks, 1 or 2: their sub-blocks fill the lanes. sigma2: (n); importance may be NULL. */
static bool encode_two(block *restrict out, size_t n, const float *restrict x, const float *restrict importance,
                       const float *restrict sigma2) {
    iq4_lanes lanes;
    float scale[NIB_LANES], sub_scale[NIB_LANES] = {0}, sigma2_of[NIB_LANES];
    for (unsigned k = 0; k < NIB_LANES; k++) sigma2_of[k] = sigma2[k / N_SUB];
    iq4_load(lanes.x, x, n * N_SUB);
    iq4_weigh(&lanes, importance, n * N_SUB, vf_load(sigma2_of));
    vf_store(scale, iq4_fit(&lanes));
    bool fits = true;
    for (size_t k = 0; k < n; k++) fits &= store_scales(&out[k], sub_scale + k * N_SUB, scale + k * N_SUB);
    const vf its = vf_load(sub_scale);
    uint32_t word[NIB_LANES][IQ4_SUB / 8];
    iq4_quantize(word, lanes.x, vf_choose(vf_eq(its, vf_zero()), vf_zero(), vf_div(vf_splat(1), its)));
    for (size_t k = 0; k < n; k++) memcpy(out[k].q, word[k * N_SUB], sizeof out[k].q);
    return fits;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    const size_t n_blocks = n / BLOCK;
    float sigma2[NIB_LANES];
    bool fits = true;
    for (size_t i = 0; i < n_blocks; i += 2) {
        const size_t at = i * BLOCK;
        if (i % NIB_LANES == 0)
            vf_store(sigma2, vf_mul(sums_of_squares_256(src + at, n_blocks - i), vf_splat(2.0f / BLOCK)));
        fits &= encode_two(out + i, n_blocks - i < 2 ? 1 : 2, src + at, importance ? importance + at : NULL,
                           sigma2 + i % NIB_LANES);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        float scale[N_SUB];
        read_scales(scale, in);
        for (unsigned b = 0; b < N_SUB; b++) {
            int8_t level[IQ4_SUB];
            look_up_nibbles_32(level, in->q + 16 * b, IQ4_LEVEL);
            scale_levels(dst + i + IQ4_SUB * b, level, IQ4_SUB, scale[b]);
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
    read_scales(out->scale, in);
    for (unsigned b = 0; b < N_SUB; b++) {
        out->min[b] = 128 * out->scale[b];
        look_up_nibbles_32(out->code + IQ4_SUB * b, in->q + 16 * b, IQ4_ABOVE);
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    vi word[4];
    vi_turn(word, in, stride);
    const vf d = half_at(word, 0);
    PANEL_UNROLL for (unsigned b = 0; b < N_SUB; b++) {
        const vi low = vi_and(vi_shr(word[1], (int)(4 * b)), vi_splat(15));
        const vi high = vi_and(vi_shr(word[0], (int)(16 + 2 * b)), vi_splat(3));
        vf_store(sink->panel->scale[b], vf_mul(d, vi_to_f(vi_sub(vi_or(low, vi_shl(high, 4)), vi_splat(32)))));
    }
    for (unsigned b = 0; b < N_SUB; b++) {
        vi_turn(word, in->q + 16 * b, stride);
        give_looked_up_32(sink, b, word, 0, IQ4_ABOVE);
    }
}
#define SHAPE \
    { .group = 32, .centre = 128 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 6, cut_rows, false, SHAPE)

DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    const vh low = vh_down_by(vh_splat_4(in->scale_low), 0, 4), high = vh_down_by(vh_splat_4(in), 12, 2);
    s->scale[0] = vhf_times(vhf_of(vh_join(low, 15, high, 0x30), -32), load_half(in->d));
    s->min[0] = vhf_times(s->scale[0], 128);
}
DOT_INLINE void read_two(vh code[2], const void *src, int a, int b) {
    const block *in = src;
    const vh both = vh_join_16(in->q + 16 * a, in->q + 16 * b);
    code[0] = vh_look_up(IQ4_ABOVE, vh_low_halves(both));
    code[1] = vh_look_up(IQ4_ABOVE, vh_high_halves(both));
}
NIB_DOT_CROSSED(dot, read_scales_256, read_two, sizeof(block), 32, 241)

NIB_FORMATS(iq4_xs, {.facts = {.name = "iq4_xs",
                               .gguf_name = "iq4_xs",
                               .gguf_type = 23,
                               .block = BLOCK,
                               .bytes = sizeof(block),
                               .kind = NIB_CLASS_SCALED,
                               .about = "4 bits on 16 uneven levels, 6-bit scales per 32: q4_k's quality in less space",
                               .can_encode = true,
                               .can_decode = true},
                     .activation = NIB_ACT_Q8_256,
                     .group = IQ4_SUB,
                     .centre = 128,
                     .shape = SHAPE,
                     .encode = encode,
                     .decode = decode,
                     .check = check,
                     .unpack = unpack,
                     .turn = turn,
                     .few = NIB_FEW_OF(few),
                     .dot_tokens = 2,
                     .dot = NIB_DOT(dot)});
