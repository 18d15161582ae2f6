/* iq4_nl: 32 weights, one scale, 4-bit codes of 16 uneven levels (iq4.h). w = d * level[q]
 *
 *   byte  0  1 | 2             ..  17
 *         d    | q[16]:q[0] .. q[31]:q[15]      18 bytes, 4.5 bits per weight
 *         f16  | high nibble : low nibble
 */
#include "format/decode.h"
#include "format/dot_halves.h"
#include "format/few.h"
#include "format/iq4.h"

enum { BLOCK = 32 };

typedef struct block {
    uint8_t d[2], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 18, "an iq4_nl block is 18 bytes");

/* n <= 16 blocks; false if a scale does not fit half precision. importance may be NULL. */
static bool encode_blocks(block *restrict out, size_t n, const float *restrict x, const float *restrict importance) {
    iq4_lanes lanes;
    iq4_load(lanes.x, x, n);
    vf squares = vf_zero();
    for (unsigned i = 0; i < BLOCK; i++) squares = vf_add(squares, vf_mul(lanes.x[i], lanes.x[i]));
    iq4_weigh(&lanes, importance, n, vf_mul(squares, vf_splat(2.0f / BLOCK)));
    const vf scale = iq4_fit(&lanes);
    const vf inverse = vf_choose(vf_eq(scale, vf_zero()), vf_zero(), vf_div(vf_splat(1), scale));
    float d[NIB_LANES];
    uint32_t word[NIB_LANES][BLOCK / 8];
    vf_store(d, scale);
    iq4_quantize(word, lanes.x, inverse);
    bool fits = true;
    for (size_t k = 0; k < n; k++) {
        fits &= store_half(out[k].d, d[k]);
        memcpy(out[k].q, word[k], sizeof word[k]);
    }
    return fits;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0, n_blocks = n / BLOCK; i < n_blocks; i += NIB_LANES) {
        const size_t n_lanes = n_blocks - i < NIB_LANES ? n_blocks - i : NIB_LANES;
        fits &= encode_blocks(out + i, n_lanes, src + i * BLOCK, importance ? importance + i * BLOCK : NULL);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        int8_t level[BLOCK];
        const float d = load_half(in->d);
        look_up_nibbles_32(level, in->q, IQ4_LEVEL);
        scale_levels(dst, level, BLOCK, d);
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
        out->min[i] = 128 * d;
        look_up_nibbles_32(out->code + i * BLOCK, in->q, IQ4_ABOVE);
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[36];
    read_words(word, src, stride, 36);
    PANEL_UNROLL for (unsigned b = 0; b < NIB_PANEL_K / BLOCK; b++) {
        const unsigned at = b * sizeof(block);
        vf_store(sink->panel->scale[b], half_at(word, at));
        give_looked_up_32(sink, b, word, at + 2, IQ4_ABOVE);
    }
}
#define SHAPE \
    { .group = 32, .centre = 128 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, true, SHAPE)

/* Eight blocks. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    s->scale[0] = vhf_of_halves(in->d, sizeof *in, 1);
    s->min[0] = vhf_times(s->scale[0], 128);
}
DOT_INLINE void read_two(vh code[2], const void *src, int a, int b) {
    const block *in = src;
    const vh both = vh_join_16(in[a].q, in[b].q);
    code[0] = vh_look_up(IQ4_ABOVE, vh_low_halves(both));
    code[1] = vh_look_up(IQ4_ABOVE, vh_high_halves(both));
}
NIB_DOT_CROSSED(dot, read_scales_256, read_two, 8 * sizeof(block), 32, 241)

NIB_FORMATS(iq4_nl, {.facts = {.name = "iq4_nl",
                               .gguf_name = "iq4_nl",
                               .gguf_type = 20,
                               .block = BLOCK,
                               .bytes = sizeof(block),
                               .kind = NIB_CLASS_SCALED,
                               .about = "4 bits on 16 uneven levels, a scale per 32: better than q4_0 at its size",
                               .can_encode = true,
                               .can_decode = true},
                     .activation = NIB_ACT_Q8_32,
                     .group = BLOCK,
                     .centre = 128,
                     .shape = SHAPE,
                     .encode = encode,
                     .decode = decode,
                     .check = check,
                     .unpack = unpack,
                     .turn = turn,
                     .few = NIB_FEW_OF(few),
                     .dot_tokens = 3,
                     .dot = NIB_DOT(dot)});
