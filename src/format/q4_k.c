/* q4_k: 256 weights as 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum; 4-bit codes.
 * w = d * scale[b] * q - d_min * min[b]
 *
 *   byte  0  1 | 2  3  | 4 .. 15     | 16 .. 47            | 48 .. 79     | 80 .. 111    | 112 .. 143
 *         d    | d_min | 8 scales,   | sub-block 1 : 0     | 3 : 2        | 5 : 4        | 7 : 6
 *         f16  | f16   | 8 minimums  | high : low nibble   |              |              |
 *              |       | (sub32.h)   | of each byte        |              144 bytes, 4.5 bits per weight
 */
#include "format/decode.h"
#include "format/panel.h"
#include "format/sub32.h"

enum { BLOCK = SUB32_BLOCK };

typedef struct block {
    sub32_head head;
    uint8_t q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 144, "a q4_k block is 144 bytes");

static const sub32_format FORMAT = {.plain = {.n_max = 15, .first = -1.0f, .step = 0.1f, .n_steps = 20},
                                    .weighted = {.n_max = 15, .first = -0.9f, .step = 0.05f, .n_steps = 36},
                                    .clamp = false};

static bool encode_group(block *out, const float *x, size_t n_blocks, const float *importance) {
    sub32_group group;
    const bool fits = encode_sub32(&group, &FORMAT, x, n_blocks, importance);
    for (size_t i = 0; i < n_blocks; i++) {
        const uint8_t *code = group.code[i];
        out[i].head = group.head[i];
        for (unsigned b = 0; b < SUB32_N / 2; b++)
            join_nibbles_32(out[i].q + 32 * b, code + 64 * b, code + 64 * b + 32);
    }
    return fits;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += SUB32_GROUP * BLOCK, out += SUB32_GROUP) {
        const size_t n_blocks = n - i < SUB32_GROUP * BLOCK ? (n - i) / BLOCK : SUB32_GROUP;
        fits &= encode_group(out, src + i, n_blocks, importance ? importance + i : NULL);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void read_codes(uint8_t *restrict code, const block *restrict in) {
    for (unsigned b = 0; b < SUB32_N / 2; b++) {
        cut_32(code + 64 * b, in->q + 32 * b, 0, 15);
        cut_32(code + 64 * b + 32, in->q + 32 * b, 4, 15);
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[SUB32_N], min[SUB32_N];
        read_codes(code, in);
        read_sub32(scale, min, &in->head);
        for (unsigned b = 0; b < SUB32_N; b++) scale_codes_from(dst + i + 32 * b, code + 32 * b, 32, scale[b], -min[b]);
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (!half_is_finite(in[i].head.d) || !half_is_finite(in[i].head.d_min)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    const block *in = src;
    read_codes(out->code, in);
    read_sub32(out->scale, out->min, &in->head);
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    vi word[8], next[8];
    vi_turn(word, &in->head, stride);
    turn_sub32(sink->panel, word);
    read_words(word, in->q, stride, 8);
    for (unsigned b = 0; b < SUB32_N; b += 2) {
        const uint8_t *after = in->q + (16 * b + 32) % sizeof in->q; /* turned meanwhile, the last time in vain */
        open_group(sink, b, 0);
        PANEL_UNROLL for (unsigned i = 0; i < 8; i++) {
            if (i % 2) turn_step(next, after, stride, i / 2);
            give_codes(sink, 8 * b + i, 0, cut_bytes(word[i], 0, 15));
        }
        close_group(sink, b, 0);
        open_group(sink, b + 1, 0);
        PANEL_UNROLL for (unsigned i = 0; i < 8; i++) {
            if (i >= 4) turn_step(next + 4, after + 16, stride, i % 4);
            give_codes(sink, 8 * b + 8 + i, 0, cut_bytes(word[i], 4, 15));
        }
        close_group(sink, b + 1, 0);
        PANEL_UNROLL for (unsigned i = 0; i < 8; i++) word[i] = next[i];
    }
}
#define SHAPE \
    { .group = 32, .min_group = 32, .whole = 15 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, false, SHAPE)

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    dot_read_sub32(w, &in->head);
    vi both[2];
    vi_cross_128(both, in->q);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        w->code[i] = vi_and(both[i], vi_of_byte(15));
        w->code[i + 2] = vi_and(vi_down(both[i], 4, 4), vi_of_byte(15));
    }
}
NIB_DOT_WHOLE_CROSSED(dot, read_256, sizeof(block), SUB32_WEIGHTS, 0)

NIB_FORMATS(q4_k, {.facts = {.name = "q4_k",
                             .gguf_name = "q4_K",
                             .gguf_type = 12,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "4 bits, 8 sub-blocks of 32 with 6-bit scale and minimum: the usual choice",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_256,
                   .group = SUB32_WEIGHTS,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 3,
                   .dot = NIB_DOT(dot)});
