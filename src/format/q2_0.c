/* q2_0: 64 weights, one scale, 2-bit codes. w = d * (q - 1): -d, 0, d or 2 d; the encoder writes the first three.
 *
 *   byte  0  1 | 2 .. 17
 *         d    | bits 2 (j % 4), 2 (j % 4) + 1 of byte j / 4: code j       18 bytes, 2.25 bits per weight
 *         f16  |
 */
#include "format/block.h"
#include "format/dot_halves.h"
#include "format/few.h"

enum { BLOCK = 64 };

typedef struct block {
    uint8_t d[2], q[BLOCK / 4];
} block;
_Static_assert(sizeof(block) == 18, "a q2_0 block is 18 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        const float d = largest_magnitude(src + i, BLOCK), inverse = d != 0 ? 1 / d : 0;
        fits &= store_half(out->d, d);
        if (inverse > FLT_MAX) { /* d is so small that 1/d overflows: the reference's conversions give -1 */
            memset(out->q, 0, sizeof out->q);
            continue;
        }
        for (unsigned b = 0; b < BLOCK / 4; b++) {
            const float *x = src + i + 4 * b;
            unsigned bits = 0;
            for (unsigned k = 0; k < 4; k++) bits |= (unsigned)clamp_int(round_away(x[k] * inverse) + 1, 0, 3) << 2 * k;
            out->q[b] = (uint8_t)bits;
        }
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static inline void cut_codes(uint8_t *restrict code, const uint8_t *restrict packed) {
    for (unsigned b = 0; b < BLOCK / 4; b++) {
        uint32_t word = packed[b];
        word = (word | word << 6 | word << 12 | word << 18) & 0x03030303u;
        memcpy(code + 4 * b, &word, sizeof word);
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        const float d = load_half(in->d);
        cut_codes(code, in->q);
        for (unsigned j = 0; j < BLOCK; j++) dst[i + j] = (float)(code[j] - 1) * d;
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
        for (size_t g = i / 32; g < (i + BLOCK) / 32; g++) out->scale[g] = out->min[g] = d;
        cut_codes(out->code + i, in->q);
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[18];
    read_words(word, src, stride, 16);
    vi_turn(word + 14, (const uint8_t *)src + 56, stride); /* ends with the last word */
    for (unsigned b = 0; b < NIB_PANEL_K / BLOCK; b++) {
        const unsigned at = b * sizeof(block);
        const vf d = half_at(word, at);
        vf_store(sink->panel->scale[2 * b], d);
        vf_store(sink->panel->scale[2 * b + 1], d);
        PANEL_UNROLL for (unsigned i = 0; i < BLOCK / 4; i++) { /* one byte, four codes */
            if (i % 8 == 0) open_group(sink, 2 * b + i / 8, 0);
            const vi four = byte_at(word, at + 2 + i);
            const vi halves = vi_and(vi_or(four, vi_shl(four, 12)), vi_splat(0x000f000f));
            give_codes(sink, b * BLOCK / 4 + i, 0, vi_and(vi_or(halves, vi_shl(halves, 6)), vi_splat(0x03030303)));
            if (i % 8 == 7) close_group(sink, 2 * b + i / 8, 0);
        }
    }
}
#define SHAPE \
    { .group = 32, .centre = 1 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, true, SHAPE)

/* Four blocks; the four codes of a byte are spread over the bytes of a lane. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    s->scale[0] = s->min[0] = vhf_of_halves(in->d, sizeof *in, 2);
}
DOT_INLINE vh read_32(const void *src, int i) {
    const block *in = src;
    return vh_spread_pairs(vh_of_bytes(in[i / 2].q + i % 2 * 8));
}
NIB_DOT_HALVES(dot, read_scales_256, read_32, 4 * sizeof(block), 3)

NIB_FORMATS(q2_0, {.facts = {.name = "q2_0",
                             .gguf_name = "q2_0",
                             .gguf_type = 42,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "2 bits, a scale per 64: only for models trained with weights -1, 0, 1",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_32,
                   .group = 32,
                   .centre = 1,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 3,
                   .dot = NIB_DOT(dot)});
