/* tq2_0: 256 weights, one scale, ternary codes of 2 bits. w = d * (q - 1); q = 3 is never written and reads as 2 d.
 *
 *   byte  0 .. 63                                | 64 65
 *         byte 32 h + m, bits 2l, 2l+1:          | d
 *         code 128 h + 32 l + m                  | f16        66 bytes, 2.0625 bits per weight
 */
#include "format/block.h"
#include "format/dot.h"
#include "format/few.h"

enum { BLOCK = 256 };

typedef struct block {
    uint8_t q[BLOCK / 4], d[2];
} block;
_Static_assert(sizeof(block) == 66, "a tq2_0 block is 66 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        fits &= store_half(out->d, quantize_ternary(code, src + i, BLOCK));
        pack_pairs_256(out->q, code);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        const float d = load_half(in->d);
        cut_pairs_256(code, in->q);
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
    (void)format, (void)n; /* n is one whole block */
    const block *in = src;
    const float d = load_half(in->d);
    for (unsigned g = 0; g < BLOCK / 32; g++) out->scale[g] = out->min[g] = d;
    cut_pairs_256(out->code, in->q);
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    vi tail[4];
    vi_turn(tail, in->d - 14, stride);
    vf_store(sink->panel->scale[0], half_at(tail, 14));
    vi codes[4], next[4];
    vi_turn(codes, in->q, stride);
    PANEL_UNROLL for (unsigned j = 0; j < 4; j++) next[j] =
        codes[j];                                   /* for compilers that do not see through the rest */
    PANEL_UNROLL for (unsigned i = 0; i < 4; i++) { /* columns as in q6_k */
        const unsigned first = i / 2 * 32 + i % 2 * 4;
        PANEL_UNROLL for (unsigned part = 0; part < 4; part++) PANEL_UNROLL for (unsigned j = 0; j < 4; j++) {
            if (i < 3 && part == j) turn_step(next, in->q + 16 * (i + 1), stride, j);
            give_codes(sink, first + 8 * part + j, 0, cut_bytes(codes[j], (int)(2 * part), 3));
        }
        if (i < 3) PANEL_UNROLL for (unsigned j = 0; j < 4; j++) codes[j] = next[j];
    }
}
#define SHAPE \
    { .group = 256, .centre = 1 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 16, cut_rows, false, SHAPE)

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    w->d = load_half(in->d);
    w->scale = vs_of_bytes((words_16){EACH_BYTE(1), EACH_BYTE(1)}, 0);
    vi both[2];
    vi_cross_64(both, in->q);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        const vi pairs = vi_down_nibbles(both[i]);
        w->code[i] = vi_and(pairs, vi_of_byte(3));
        w->code[i + 2] = vi_and(vi_down(pairs, 2, 2), vi_of_byte(3));
    }
}
NIB_DOT_WHOLE_CROSSED(dot, read_256, sizeof(block), 32, 1)

NIB_FORMATS(tq2_0, {.facts = {.name = "tq2_0",
                              .gguf_name = "tq2_0",
                              .gguf_type = 35,
                              .block = BLOCK,
                              .bytes = sizeof(block),
                              .kind = NIB_CLASS_SCALED,
                              .about = "ternary, four weights in a byte: larger than tq1_0 and quicker to read",
                              .can_encode = true,
                              .can_decode = true},
                    .activation = NIB_ACT_Q8_256,
                    .group = 32,
                    .centre = 1,
                    .shape = SHAPE,
                    .encode = encode,
                    .decode = decode,
                    .check = check,
                    .unpack = unpack,
                    .turn = turn,
                    .few = NIB_FEW_OF(few),
                    .dot_tokens = 4,
                    .dot = NIB_DOT(dot)});
