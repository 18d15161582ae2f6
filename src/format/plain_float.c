/* Plain floats of 8 and 4 bits, without a scale or with one in half precision per 32, 64, 128 or 256 weights.
 *
 *   f8_*    one weight a byte                            without a scale: blocks of 1 weight
 *   f4_*    two weights a byte, the low half first                       blocks of 2
 *   *_32 .. d f16 | codes                                w = d * value of the code
 *
 * Layouts and rounding: small_float.h. With a scale, d = max|w| / largest finite value. Ids: 0x4E430000 + type * 0x10 +
 * log2(block), 0 in place of the logarithm without a scale. All code reads type and block from nib_format.parameter. */
#include "format/block.h"
#include "format/small_float.h"

enum { TYPE, BLOCK }; /* places in nib_format.parameter; BLOCK is 0 without a scale */
enum { HEAD_BYTES = 2 };

static void write_codes(const small_float *type, uint8_t *restrict out, const float *restrict x, size_t n, float d) {
    if (type->bits == 8) {
        for (size_t i = 0; i < n; i++) out[i] = small_float_encode(type, x[i] / d);
        return;
    }
    for (size_t i = 0; i < n; i += 2) {
        const uint8_t low = small_float_encode(type, x[i] / d), high = small_float_encode(type, x[i + 1] / d);
        out[i / 2] = (uint8_t)(low | high << 4);
    }
}

/* The importance of columns has no say: a float's steps follow its magnitude, whatever the scale. */
static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    const small_float *type = &SMALL_FLOATS[format->parameter[TYPE]];
    const unsigned block = format->parameter[BLOCK];
    if (block == 0) {
        write_codes(type, dst, src, n, 1);
        return NIB_VERDICT_OK;
    }
    const float largest = small_float_decode(type, type->largest);
    uint8_t *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += block, out += format->facts.bytes) {
        fits &= store_half(out, largest_magnitude(src + i, block) / largest);
        const float d = load_half(out);
        if (d != 0 && half_is_finite(out))
            write_codes(type, out + HEAD_BYTES, src + i, block, d);
        else
            memset(out + HEAD_BYTES, 0, format->facts.bytes - HEAD_BYTES);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

/* n codes, one a byte; the type is a constant wherever this is used. */
static inline __attribute__((always_inline)) void read_bytes(float *restrict dst, const uint8_t *restrict codes,
                                                             size_t n, float d, small_float type) {
    for (size_t i = 0; i < n; i++) dst[i] = d * small_float_decode(&type, codes[i]);
}

/* n codes, two a byte; taken apart first, so that both loops are ones for vectors. */
static inline __attribute__((always_inline)) void read_halves(float *restrict dst, const uint8_t *restrict in, size_t n,
                                                              float d, small_float type) {
    enum { STEP = 64 };
    uint8_t codes[STEP];
    for (size_t i = 0; i < n; i += STEP) {
        const size_t n_here = n - i < STEP ? n - i : STEP;
        for (size_t k = 0; k < n_here / 2; k++) {
            codes[2 * k] = in[i / 2 + k] & 15;
            codes[2 * k + 1] = in[i / 2 + k] >> 4;
        }
        read_bytes(dst + i, codes, n_here, d, type);
    }
}

static void read_codes(unsigned type, float *restrict dst, const uint8_t *restrict in, size_t n, float d) {
    switch (type) {
    case SMALL_E4M3:
        read_bytes(dst, in, n, d, SMALL_FLOATS[SMALL_E4M3]);
        break;
    case SMALL_E4M3_IEEE:
        read_bytes(dst, in, n, d, SMALL_FLOATS[SMALL_E4M3_IEEE]);
        break;
    case SMALL_E5M2:
        read_bytes(dst, in, n, d, SMALL_FLOATS[SMALL_E5M2]);
        break;
    case SMALL_E2M1:
        read_halves(dst, in, n, d, SMALL_FLOATS[SMALL_E2M1]);
        break;
    default:
        read_halves(dst, in, n, d, SMALL_FLOATS[SMALL_E2M1_IEEE]);
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    const unsigned type = format->parameter[TYPE], block = format->parameter[BLOCK];
    const uint8_t *in = src;
    if (block == 0) read_codes(type, dst, in, n, 1);
    for (size_t i = 0; block && i < n; i += block, in += format->facts.bytes)
        read_codes(type, dst + i, in + HEAD_BYTES, block, load_half(in));
}

/* Neither scales nor codes that stand for infinity or NaN. */
static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    const small_float *type = &SMALL_FLOATS[format->parameter[TYPE]];
    const bool has_scale = format->parameter[BLOCK] != 0;
    const size_t n_codes = format->facts.bytes - (has_scale ? HEAD_BYTES : 0);
    const uint8_t *in = src;
    unsigned bad = 0;
    for (size_t i = 0; i < n; i += format->facts.block, in += format->facts.bytes) {
        if (has_scale && !half_is_finite(in)) return NIB_VERDICT_NOT_FINITE;
        const uint8_t *codes = has_scale ? in + HEAD_BYTES : in;
        for (size_t k = 0; k < n_codes; k++) {
            bad |= type->bits == 8 ? (codes[k] & 0x7f) > type->largest
                                   : (codes[k] & 7) > type->largest || (codes[k] >> 4 & 7) > type->largest;
        }
    }
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}

/* ---- Members ----------------------------------------------------------------------------------------------------- */

#define MEMBER(member_name, type, scale_block, member_block, member_bytes, log2_block, text)                 \
    {                                                                                                        \
        .facts = {.name = member_name,                                                                       \
                  .gguf_name = member_name,                                                                  \
                  .gguf_type = 0x4E430000u + (type)*0x10u + (log2_block),                                    \
                  .block = (member_block),                                                                   \
                  .bytes = (member_bytes),                                                                   \
                  .kind = NIB_CLASS_FLOAT,                                                                   \
                  .about = text,                                                                             \
                  .can_encode = true,                                                                        \
                  .can_decode = true,                                                                        \
                  .is_nibbles_own = true},                                                                   \
        .activation = NIB_ACT_F32, .parameter = {(type), (scale_block)}, .encode = encode, .decode = decode, \
        .check = check                                                                                       \
    }
#define SCALED(name, type, bits, block, log2_block, text)                                      \
    MEMBER(name "_" #block, type, block, block, HEAD_BYTES + (block) * (bits) / 8, log2_block, \
           text ", a scale per " #block)
#define TYPE_WITH_BLOCKS(name, type, bits, text)                                          \
    MEMBER(name, type, 0, 8 / (bits), 1, 0, text), SCALED(name, type, bits, 32, 5, text), \
        SCALED(name, type, bits, 64, 6, text), SCALED(name, type, bits, 128, 7, text),    \
        SCALED(name, type, bits, 256, 8, text)

NIB_FORMATS(plain_float, TYPE_WITH_BLOCKS("f8_e4m3", SMALL_E4M3, 8, "8-bit float, OCP E4M3: up to 448"),
            TYPE_WITH_BLOCKS("f8_e4m3_ieee", SMALL_E4M3_IEEE, 8, "8-bit float, 4 exponent bits, IEEE rules: up to 240"),
            TYPE_WITH_BLOCKS("f8_e5m2", SMALL_E5M2, 8, "8-bit float, OCP E5M2: up to 57344"),
            TYPE_WITH_BLOCKS("f4_e2m1", SMALL_E2M1, 4, "4-bit float, OCP E2M1: 0 .5 1 1.5 2 3 4 6"),
            TYPE_WITH_BLOCKS("f4_e2m1_ieee", SMALL_E2M1_IEEE, 4, "4-bit float, IEEE rules: 0 .5 1 1.5 2 3"));
