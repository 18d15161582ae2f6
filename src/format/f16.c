/* f16: IEEE half precision. 11 significant bits; magnitudes from 6e-8 to 65504.
 *
 *   15 | 14..10   | 9..0
 *   s  | exponent | mantissa
 *
 * Levels whose processors convert by themselves use that; the plain loops give the same bits for all numbers. */
#include "format/block.h"
#include "format/dot.h"

_Static_assert(sizeof(uint16_t) == 2, "f16 is 2 bytes");

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (nib_load_u16(in + 2 * i) & 0x7c00) == 0x7c00;
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    uint8_t *out = dst;
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(out + 2 * i), halves);
    }
#endif
    for (; i < n; i++) {
        const uint16_t half = nib_f32_to_f16(src[i]);
        memcpy(out + 2 * i, &half, sizeof half);
    }
    return check(format, dst, n) == NIB_VERDICT_OK ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(in + 2 * i));
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(halves));
    }
#endif
    for (; i < n; i++) {
        const uint32_t half = nib_load_u16(in + 2 * i), rest = half & 0x7fff;
        const float value = nib_float_of(rest << 13) * 0x1p112f; /* right for subnormal and normal halves */
        const uint32_t special = rest >= 0x7c00 ? 0x7f800000u : 0;
        dst[i] = nib_float_of((half & 0x8000) << 16 | nib_bits_of(value) | special);
    }
}

DOT_INLINE vf read_16(const void *src) {
    return vf_from_f16(src);
}
NIB_DOT_FLOATS(dot, read_16, 32)

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
                  .dot = NIB_DOT(dot),
                  .check = check});
