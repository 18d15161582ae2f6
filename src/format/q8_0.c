/* q8_0: 32 weights, one scale, signed 8-bit codes. w = d * q, d = max|w| / 127, q in -127..127.
 *
 *   byte  0  1 | 2 .. 33
 *         d    | q[0] .. q[31]      34 bytes, 8.5 bits per weight
 *         f16  | int8 each
 */
#include "format/block.h"
#include "format/dot_halves.h"
#include "format/few.h"

enum { BLOCK = 32 };

typedef struct block {
    uint8_t d[2], q[BLOCK];
} block;
_Static_assert(sizeof(block) == 34, "a q8_0 block is 34 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n / BLOCK; i++, out++, src += BLOCK) {
        const float d = largest_magnitude(src, BLOCK) / 127, inverse = d != 0 ? 1 / d : 0;
        fits &= store_half(out->d, d);
        if (inverse > FLT_MAX) { /* d is so small that 1/d overflows: the reference's conversions give 0 */
            memset(out->q, 0, sizeof out->q);
            continue;
        }
        for (unsigned j = 0; j < BLOCK; j++) out->q[j] = (uint8_t)round_away(src[j] * inverse);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        const float d = load_half(in->d);
        for (unsigned j = 0; j < BLOCK; j++) dst[j] = (float)(int8_t)in->q[j] * d;
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
        for (unsigned j = 0; j < BLOCK; j++) out->code[i * BLOCK + j] = in->q[j] ^ 0x80;
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[68];
    begin_words(sink, word, src, stride);
    PANEL_UNROLL for (unsigned b = 0; b < NIB_PANEL_K / BLOCK; b++) {
        const unsigned at = b * sizeof(block);
        vf_store(sink->panel->scale[b], half_at(word, at));
        open_group(sink, b, 0);
        PANEL_UNROLL for (unsigned j = 0; j < BLOCK / 4; j++) {
            const unsigned k = b * BLOCK / 4 + j;
            turn_on(sink, word, 68, k);
            give_codes(sink, k, 0, vi_xor(word_at(word, at + 2 + 4 * j), vi_splat((int32_t)0x80808080)));
        }
        close_group(sink, b, 0);
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
DOT_INLINE vh read_32(const void *src, int i) {
    const block *in = src;
    return vh_flip(vh_load(in[i].q));
}
NIB_DOT_HALVES(dot, read_scales_256, read_32, 8 * sizeof(block), 255)

NIB_FORMATS(q8_0, {.facts = {.name = "q8_0",
                             .gguf_name = "q8_0",
                             .gguf_type = 8,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "8 bits, a scale per 32: next to no loss at half the size of 16 bits",
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
