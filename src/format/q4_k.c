/* q4_k: 256 weights as 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum; 4-bit codes.
 * w = d * scale[b] * q - d_min * min[b]
 *
 *   byte  0  1 | 2  3  | 4 .. 15     | 16 .. 47            | 48 .. 79     | 80 .. 111    | 112 .. 143
 *         d    | d_min | 8 scales,   | sub-block 1 : 0     | 3 : 2        | 5 : 4        | 7 : 6
 *         f16  | f16   | 8 minimums  | high : low nibble   |              |              |
 *              |       | (sub32.h)   | of each byte        |              144 bytes, 4.5 bits per weight
 */
#include "format/sub32.h"

enum { BLOCK = SUB32_BLOCK };

typedef struct block {
    sub32_head head;
    uint8_t q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 144, "a q4_k block is 144 bytes");

static const min_search SEARCH = {.n_max = 15, .first = -1.0f, .step = 0.1f, .n_steps = 20};

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        fits &= importance ? encode_sub32_weighted(&out->head, code, src + i, importance + i, 15, false)
                           : encode_sub32(&out->head, code, src + i, &SEARCH);
        for (unsigned b = 0; b < SUB32_N / 2; b++) {
            for (unsigned l = 0; l < 32; l++)
                out->q[32 * b + l] = (uint8_t)(code[64 * b + l] | code[64 * b + 32 + l] << 4);
        }
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
        for (unsigned b = 0; b < SUB32_N; b++) {
            for (unsigned l = 0; l < 32; l++) dst[i + 32 * b + l] = scale[b] * (float)code[32 * b + l] - min[b];
        }
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

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    dot_read_sub32(w, &in->head);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) w->code[p] =
        vi_and(vi_down(vi_twice_32(in->q + 32 * p), 0, 4), vi_of_byte(15));
}
NIB_DOT_WHOLE(dot, read_256, sizeof(block), SUB32_WEIGHTS, 15)

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
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .dot = NIB_DOT(dot)});
