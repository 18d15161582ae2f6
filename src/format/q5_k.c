/* q5_k: 256 weights as 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum; 5-bit codes.
 * w = d * scale[b] * q - d_min * min[b]
 *
 *   byte  0  1 | 2  3  | 4 .. 15     | 16 .. 47          | 48 .. 79            | 80 .. 111 | 112 .. 143 | 176 .. 175
 *         d    | d_min | 8 scales,   | high[0..31]       | sub-block 1 : 0     | 3 : 2     | 5 : 4      | 7 : 6
 *         f16  | f16   | 8 minimums  | bit b of high[l]: | high : low nibble   |           |            |
 *              |       | (sub32.h)   | bit 4 of code     | of each byte: bits  |
 *              |       |             | 32 b + l          | 0-3 of the codes    176 bytes, 5.5 bits per weight
 */
#include "format/sub32.h"

enum { BLOCK = SUB32_BLOCK };

typedef struct block {
    sub32_head head;
    uint8_t high[BLOCK / 8], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 176, "a q5_k block is 176 bytes");

static const min_search SEARCH = {.n_max = 31, .first = -0.5f, .step = 0.1f, .n_steps = 15};

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        fits &= importance ? encode_sub32_weighted(&out->head, code, src + i, importance + i, 31, true)
                           : encode_sub32(&out->head, code, src + i, &SEARCH);
        for (unsigned b = 0; b < SUB32_N / 2; b++) {
            const uint8_t *low = code + 64 * b, *high = low + 32;
            for (unsigned l = 0; l < 32; l++) out->q[32 * b + l] = (uint8_t)((low[l] & 15) | (high[l] & 15) << 4);
        }
        memset(out->high, 0, sizeof out->high);
        for (unsigned b = 0; b < SUB32_N; b++) {
            for (unsigned l = 0; l < 32; l++) out->high[l] |= (uint8_t)(code[32 * b + l] >> 4 << b);
        }
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void read_codes(uint8_t *restrict code, const block *restrict in) {
    for (unsigned b = 0; b < SUB32_N; b++)
        cut_two_32(code + 32 * b, in->q + 32 * (b / 2), b % 2 * 4, 15, in->high, b, 1, 4);
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
    const vi high = vi_twice_32(in->high);
    dot_read_sub32(w, &in->head);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const vi low = vi_and(vi_down(vi_twice_32(in->q + 32 * p), 0, 4), vi_of_byte(15));
        w->code[p] = vi_and_or(vi_down(high, 2 * p - 4, 2 * p - 3), vi_of_byte(16), low);
    }
}
NIB_DOT_WHOLE(dot, read_256, sizeof(block), SUB32_WEIGHTS, 31)

NIB_FORMATS(q5_k, {.facts = {.name = "q5_k",
                             .gguf_name = "q5_K",
                             .gguf_type = 13,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "5 bits, 8 sub-blocks of 32 with 6-bit scale and minimum: little loss",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_256,
                   .group = SUB32_WEIGHTS,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .dot = NIB_DOT(dot)});
