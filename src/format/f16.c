/* f16: IEEE half precision. 11 significant bits; magnitudes from 6e-8 to 65504.
 *
 *   15 | 14..10   | 9..0
 *   s  | exponent | mantissa
 *
 * The loops compute every case and choose, so that compilers turn them into vector code. */
#include "format/block.h"

_Static_assert(sizeof(uint16_t) == 2, "f16 is 2 bytes");

static uint16_t to_half(float value) {
    const uint32_t bits = nib_bits_of(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000u) >> 13;
    const uint32_t subnormal = nib_bits_of(nib_float_of(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00 : half;
    return (uint16_t)(sign | half);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    uint8_t *out = dst;
    uint32_t overflow = 0;
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = to_half(src[i]);
        overflow |= (half & 0x7c00) == 0x7c00;
        memcpy(out + 2 * i, &half, sizeof half);
    }
    return overflow ? NIB_VERDICT_SCALE_OVERFLOW : NIB_VERDICT_OK;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i++) {
        const uint32_t half = nib_load_u16(in + 2 * i), sign = (half & 0x8000) << 16, rest = half & 0x7fff;
        const uint32_t normal = (rest << 13) + 0x38000000u, special = 0x7f800000u | (rest & 0x3ff) << 13;
        const uint32_t subnormal = nib_bits_of((float)(int32_t)rest * 0x1p-24f);
        uint32_t bits = rest < 0x0400 ? subnormal : normal;
        bits = rest >= 0x7c00 ? special : bits;
        dst[i] = nib_float_of(sign | bits);
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (nib_load_u16(in + 2 * i) & 0x7c00) == 0x7c00;
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}

NIB_FORMATS(f16, {.facts = {.name = "f16",
                            .gguf_name = "f16",
                            .gguf_type = 1,
                            .block = 1,
                            .bytes = 2,
                            .kind = NIB_CLASS_FLOAT,
                            .about = "16-bit IEEE float: 11 significant bits, largest value 65504",
                            .can_encode = true,
                            .can_decode = true},
                  .activation = NIB_ACT_F16,
                  .encode = encode,
                  .decode = decode,
                  .check = check});
