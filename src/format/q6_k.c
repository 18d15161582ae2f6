/* q6_k: 256 weights as 16 sub-blocks of 16, each with a signed 8-bit scale; 6-bit codes.
 * w = d * scale[g] * (q - 32)
 *
 *   byte  0 .. 127                      | 128 .. 191                 | 192 .. 207       | 208 209
 *         low[0..127]                   | high[0..63]                | scale[0..15]     | d
 *         bits 0-3 of the codes:        | bits 4-5 of the codes:     | int8             | f16
 *         byte 64 n + 32 k + l          | byte 32 n + l, bits 2j:    |
 *         low nibble:  128n + 32k + l   | code 128 n + 32 j + l      |
 *         high nibble: that + 64        |                            210 bytes, 6.5625 bits per weight
 */
#include "format/dot.h"
#include "format/search.h"

enum { BLOCK = 256, N_SUB = 16, SUB = 16 };

typedef struct block {
    uint8_t low[BLOCK / 2], high[BLOCK / 4];
    int8_t scale[N_SUB];
    uint8_t d[2];
} block;
_Static_assert(sizeof(block) == 210, "a q6_k block is 210 bytes");

static void read_scales(float scale[N_SUB], const block *in) {
    const float d = load_half(in->d);
    for (unsigned g = 0; g < N_SUB; g++) scale[g] = d * (float)in->scale[g];
}

static void pack_codes(block *restrict out, const uint8_t *restrict code) {
    for (unsigned n = 0; n < 2; n++) {
        for (unsigned l = 0; l < 64; l++)
            out->low[64 * n + l] = (uint8_t)((code[128 * n + l] & 15) | (code[128 * n + 64 + l] & 15) << 4);
        for (unsigned l = 0; l < 32; l++) {
            const uint8_t *at = code + 128 * n + l;
            out->high[32 * n + l] = (uint8_t)(at[0] >> 4 | at[32] >> 4 << 2 | at[64] >> 4 << 4 | at[96] >> 4 << 6);
        }
    }
}

static void read_codes(uint8_t *restrict code, const block *restrict in) {
    for (unsigned b = 0; b < 8; b++) {
        const unsigned n = b / 4, j = b % 4;
        cut_two_32(code + 32 * b, in->low + 64 * n + 32 * (j % 2), j / 2 * 4, 15, in->high + 32 * n, 2 * j, 3, 4);
    }
}

/* false if the scale does not fit half precision. importance may be NULL (weights x^2). */
static bool encode_block(block *restrict out, const float *restrict x, const float *restrict importance) {
    uint8_t code[BLOCK];
    float scale[N_SUB];
    for (unsigned g = 0; g < N_SUB; g++)
        scale[g] = fit_symmetric(SUB, 32, x + SUB * g, code + SUB * g, importance ? importance + SUB * g : NULL);
    const float max = extreme_number(scale, N_SUB);
    if (fabsf(max) < SEARCH_ZERO) {
        memset(out, 0, sizeof *out);
        return true;
    }
    const float inverse = -128.0f / max;
    const bool fits = store_half(out->d, 1 / inverse);
    for (unsigned g = 0; g < N_SUB; g++) {
        const int rounded = round_even(inverse * scale[g]);
        out->scale[g] = (int8_t)(rounded < 127 ? rounded : 127);
    }
    read_scales(scale, out);
    for (unsigned g = 0; g < N_SUB; g++) {
        if (scale[g] != 0) requantize_symmetric(code + SUB * g, SUB, x + SUB * g, scale[g], 32);
    }
    pack_codes(out, code);
    return fits;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK) fits &= encode_block(out++, src + i, importance ? importance + i : NULL);
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[N_SUB];
        read_codes(code, in);
        read_scales(scale, in);
        for (unsigned g = 0; g < N_SUB; g++) {
            for (unsigned l = 0; l < SUB; l++) dst[i + SUB * g + l] = scale[g] * (float)(code[SUB * g + l] - 32);
        }
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
    read_codes(out->code, in);
    read_scales(out->scale, in);
    for (unsigned g = 0; g < N_SUB; g++) out->min[g] = 32 * out->scale[g];
}

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    words_16 bytes;
    memcpy(&bytes, in->scale, sizeof bytes);
    w->d = load_half(in->d);
    w->d_min = 32 * w->d;
    w->scale = w->min = vs_of_bytes(bytes ^ EACH_BYTE(0x80), -128);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const vi low = vi_down(vi_load(in->low + p / 2 * 64), p % 2 * 4, p % 2 * 4);
        const vi high = vi_down(vi_twice_32(in->high + p / 2 * 32), p % 2 * 4 - 4, p % 2 * 4 - 2);
        w->code[p] = vi_and_or(high, vi_of_byte(0x30), vi_and(low, vi_of_byte(15)));
    }
}
NIB_DOT_WHOLE(dot, read_256, sizeof(block), SUB, 63)

NIB_FORMATS(q6_k, {.facts = {.name = "q6_k",
                             .gguf_name = "q6_K",
                             .gguf_type = 14,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "6 bits, 16 sub-blocks of 16 with an 8-bit scale, symmetric: next to no loss",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_256,
                   .group = SUB,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .dot = NIB_DOT(dot)});
