/* bf16: the upper half of an f32, rounded to nearest even. 8 significant bits, the full range of f32.
 *
 *   15 | 14..7    | 6..0
 *   s  | exponent | mantissa */
#include "format/block.h"
#include "format/dot.h"

_Static_assert(sizeof(uint16_t) == 2, "bf16 is 2 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    uint8_t *out = dst;
    uint32_t overflow = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = nib_bits_of(src[i]);
        const uint16_t brain = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        overflow |= (brain & 0x7f80) == 0x7f80;
        memcpy(out + 2 * i, &brain, sizeof brain);
    }
    return overflow ? NIB_VERDICT_SCALE_OVERFLOW : NIB_VERDICT_OK;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i++) dst[i] = nib_float_of((uint32_t)nib_load_u16(in + 2 * i) << 16);
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (nib_load_u16(in + 2 * i) & 0x7f80) == 0x7f80;
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}

DOT_INLINE vf read_16(const void *src) {
    return vf_from_bf16(src);
}
NIB_DOT_FLOATS(dot, read_16, 32)

NIB_FORMATS(
    bf16, {.facts = {.name = "bf16",
                     .gguf_name = "bf16",
                     .gguf_type = 30,
                     .block = 1,
                     .bytes = 2,
                     .kind = NIB_CLASS_FLOAT,
                     .about = "16-bit brain float: 8 significant bits, the range of f32; how most models are published",
                     .can_encode = true,
                     .can_decode = true},
           .activation = NIB_ACT_BF16,
           .encode = encode,
           .decode = decode,
           .dot = NIB_DOT(dot),
           .check = check});
