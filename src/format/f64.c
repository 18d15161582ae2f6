/* f64: IEEE double precision. Read only: weights are rounded to float, and no model needs more when written. */
#include "format/block.h"

_Static_assert(sizeof(double) == 8, "f64 is 8 bytes");

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i++) {
        double value;
        memcpy(&value, in + 8 * i, sizeof value);
        dst[i] = (float)value;
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const uint8_t *in = src;
    uint64_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (nib_load_u64(in + 8 * i) & UINT64_C(0x7ff0000000000000)) == UINT64_C(0x7ff0000000000000);
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}

NIB_FORMATS(f64, {.facts = {.name = "f64",
                            .gguf_name = "f64",
                            .gguf_type = 28,
                            .block = 1,
                            .bytes = 8,
                            .kind = NIB_CLASS_FLOAT,
                            .about = "64-bit float; read only",
                            .can_decode = true},
                  .activation = NIB_ACT_F32,
                  .decode = decode,
                  .check = check});
