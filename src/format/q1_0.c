/* q1_0: 128 weights, one scale, signs. w = +d for bit 1, -d for bit 0; d is the mean magnitude.
 *
 *   byte  0  1 | 2 .. 17
 *         d    | bit j % 8 of byte j / 8: weight j       18 bytes, 1.125 bits per weight
 *         f16  |
 */
#include "format/block.h"
#include "format/dot_halves.h"
#include "format/few.h"

#include <math.h>

enum { BLOCK = 128 };

typedef struct block {
    uint8_t d[2], q[BLOCK / 8];
} block;
_Static_assert(sizeof(block) == 18, "a q1_0 block is 18 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        float sum = 0;
        for (unsigned j = 0; j < BLOCK; j++) sum += fabsf(src[i + j]);
        fits &= store_half(out->d, sum / BLOCK);
        for (unsigned b = 0; b < BLOCK / 8; b++) {
            unsigned bits = 0;
            for (unsigned k = 0; k < 8; k++) bits |= (unsigned)(src[i + 8 * b + k] >= 0) << k;
            out->q[b] = (uint8_t)bits;
        }
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static inline void cut_bits(uint8_t *restrict code, const uint8_t *restrict packed) {
    for (unsigned b = 0; b < BLOCK / 8; b++) {
        const uint64_t sixteens = fifth_bits(packed[b]) >> 4;
        memcpy(code + 8 * b, &sixteens, sizeof sixteens);
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        const uint32_t minus_d = nib_bits_of(load_half(in->d)) ^ 0x80000000u;
        cut_bits(code, in->q);
        for (unsigned j = 0; j < BLOCK; j++) dst[i + j] = nib_float_of(minus_d ^ (uint32_t)code[j] << 31);
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
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        const float d = load_half(in->d);
        for (size_t g = i / 32; g < (i + BLOCK) / 32; g++) {
            out->scale[g] = 2 * d;
            out->min[g] = d;
        }
        cut_bits(out->code + i, in->q);
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[12];
    read_words(word, src, stride, 8);
    vi_turn(word + 8, (const uint8_t *)src + 20, stride); /* ends with the last word */
    word[8] = word[11];
    PANEL_UNROLL for (unsigned g = 0; g < NIB_PANEL_K / 32; g++) { /* codes are 0 and 16 */
        const unsigned at = g / 4 * sizeof(block);
        const vf d = half_at(word, at);
        const vi bits = word_at(word, at + 2 + g % 4 * 4);
        vf_store(sink->panel->scale[g], vf_mul(d, vf_splat(0.125f)));
        vf_store(sink->panel->minus_min[g], vf_sub(vf_zero(), d));
        open_group(sink, g, 0);
        PANEL_UNROLL for (unsigned j = 0; j < 8; j++) give_codes(sink, 8 * g + j, 0, fifth_bits_at(bits, j));
        close_group(sink, g, 0);
    }
}
#define SHAPE \
    { .group = 32, .min_group = 32 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, true, SHAPE)

/* Two blocks. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    s->min[0] = vhf_of_halves(in->d, sizeof *in, 4);
    s->scale[0] = vhf_times(s->min[0], 2);
}
DOT_INLINE vh read_32(const void *src, int i) {
    const block *in = src;
    return vh_set_bits(vh_zero(), nib_load_u32(in[i / 4].q + i % 4 * 4), 1);
}
NIB_DOT_HALVES(dot, read_scales_256, read_32, 2 * sizeof(block), 1)

NIB_FORMATS(q1_0, {.facts = {.name = "q1_0",
                             .gguf_name = "q1_0",
                             .gguf_type = 41,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "1 bit, a scale per 128: only for models trained with weights -1 and 1",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_32,
                   .group = 32,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 4,
                   .dot = NIB_DOT(dot)});
