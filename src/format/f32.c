/* f32: IEEE single precision, as it is.
 *
 *   31 | 30..23   | 22..0
 *   s  | exponent | mantissa */
#include "format/block.h"
#include "format/dot.h"

_Static_assert(sizeof(float) == 4, "f32 is 4 bytes");

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    memcpy(dst, src, n * sizeof *src);
    return NIB_VERDICT_OK;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    memcpy(dst, src, n * sizeof *dst);
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const uint8_t *bytes = src;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (nib_load_u32(bytes + 4 * i) & 0x7f800000u) == 0x7f800000u;
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}

DOT_INLINE vf read_16(const void *src) {
    return vf_load(src);
}
NIB_DOT_FLOATS(dot, read_16, 64)

NIB_FORMATS(f32, {.facts = {.name = "f32",
                            .gguf_name = "f32",
                            .gguf_type = 0,
                            .block = 1,
                            .bytes = 4,
                            .kind = NIB_CLASS_FLOAT,
                            .about = "32-bit float; nothing is lost",
                            .can_encode = true,
                            .can_decode = true},
                  .activation = NIB_ACT_F32,
                  .encode = encode,
                  .decode = decode,
                  .dot = NIB_DOT(dot),
                  .check = check});
