/* q4_0: 32 weights, one scale, 4-bit codes. w = d * (q - 8); the weight of largest magnitude gets q = 0.
 *
 *   byte  0  1 | 2             ..  17
 *         d    | q[16]:q[0] .. q[31]:q[15]      18 bytes, 4.5 bits per weight
 *         f16  | high nibble : low nibble
 */
#include "format/dot.h"
#include "format/search.h"

enum { BLOCK = 32 };

typedef struct block {
    uint8_t d[2], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 18, "a q4_0 block is 18 bytes");

/* Scale and codes (0..15) of one block without an importance matrix. Returns the scale. */
static float quantize_block(uint8_t *restrict code, const float *restrict x) {
    const float d = extreme(x, BLOCK) / -8, inverse = d != 0 ? 1 / d : 0;
    if (fabsf(inverse) > FLT_MAX) { /* d is so small that 1/d overflows: the reference's conversions give 0 */
        memset(code, 0, BLOCK);
        return d;
    }
    for (unsigned j = 0; j < BLOCK; j++) {
        const int q = (int)(x[j] * inverse + 8.5f);
        code[j] = (uint8_t)(q < 15 ? q : 15);
    }
    return d;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    const float sigma2 = importance ? sum_of_squares(src, n) / (float)n : 0;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        float d, weight[BLOCK];
        if (importance) {
            weigh(weight, BLOCK, src + i, importance + i, sigma2);
            d = fit_symmetric(BLOCK, 8, src + i, code, weight);
        } else {
            d = quantize_block(code, src + i);
        }
        fits &= store_half(out->d, d);
        pack_nibbles_32(out->q, code);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        uint8_t code[BLOCK];
        const float d = load_half(in->d);
        cut_nibbles_32(code, in->q);
        for (unsigned j = 0; j < BLOCK; j++) dst[j] = (float)(code[j] - 8) * d;
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
        out->min[i] = 8 * d;
        cut_nibbles_32(out->code + i * BLOCK, in->q);
    }
}

/* Eight blocks. */
DOT_INLINE void read_256(dot_groups *w, const void *src) {
    const block *in = src;
    w->scale = vf_of_halves(in->d, sizeof *in, 1);
    w->min = vf_mul(w->scale, vf_splat(8));
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) w->code[p] =
        vi_and(vi_down_nibbles(vi_twice_16(in[2 * p].q, in[2 * p + 1].q)), vi_of_byte(15));
}
NIB_DOT_GROUPS(dot, read_256, 8 * sizeof(block), BLOCK, 15)

NIB_FORMATS(q4_0, {.facts = {.name = "q4_0",
                             .gguf_name = "q4_0",
                             .gguf_type = 2,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "4 bits, a scale per 32: the plainest 4-bit format, symmetric",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_32,
                   .group = BLOCK,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .dot = NIB_DOT(dot)});
