/* q8_1: 32 numbers, one scale, signed 8-bit codes and their sum times the scale. w = d * q, d = max|w| / 127
 * Other programs round activations to it before multiplying with formats that have a minimum; files do not hold it.
 *
 *   byte  0  1 | 2  3        | 4 .. 35
 *         d    | d * sum q   | q[0] .. q[31]      36 bytes, 9 bits per weight
 *         f16  | f16         | int8 each
 */
#include "format/block.h"

enum { BLOCK = 32 };

typedef struct block {
    uint8_t d[2], sum[2], q[BLOCK];
} block;
_Static_assert(sizeof(block) == 36, "a q8_1 block is 36 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        const float d = largest_magnitude(src + i, BLOCK) / 127, inverse = d != 0 ? 1 / d : 0;
        int sum = 0;
        for (unsigned j = 0; j < BLOCK; j++) {
            /* where d is so small that 1/d overflows the reference's conversions give 0 */
            const int q = inverse > FLT_MAX ? 0 : round_away(src[i + j] * inverse);
            out->q[j] = (uint8_t)q;
            sum += q;
        }
        fits &= store_half(out->d, d);
        fits &= store_half(out->sum, (float)sum * d);
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
        if (!half_is_finite(in[i].d) || !half_is_finite(in[i].sum)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

NIB_FORMATS(q8_1, {.facts = {.name = "q8_1",
                             .gguf_name = "q8_1",
                             .gguf_type = 9,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_NONE,
                             .about = "8 bits and the sum of a block of 32: for activations, not for files",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_F32,
                   .encode = encode,
                   .decode = decode,
                   .check = check});
