/* Single numbers: the bits of a number in every number format, and a short list of numbers quantized in plain view.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_NUMBER_H
#define NIBBLE_NUMBER_H

#include "nibble/format.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- One number in every format -------------------------------------------------------------------------------------- */

/* How a number fits into a type. */
typedef enum nib_number_fit {
    NIB_NUMBER_EXACT,
    NIB_NUMBER_ROUNDED,
    NIB_NUMBER_UNDERFLOW, /* not zero, but nearer to zero than to anything else */
    NIB_NUMBER_SATURATED, /* beyond the range, became its end */
    NIB_NUMBER_OVERFLOW,  /* beyond the range, became infinity */
    NIB_NUMBER_NONE,      /* NaN where the type has none; value is NaN and code 0 */
} nib_number_fit;

/* A number as one type stores it. Floats round to nearest, ties to even; f64, f32, f16 and bf16 overflow to infinity, the 8 and
 * 4-bit floats stop at their largest value. Integers round halves up and stop at the ends of their range. */
typedef struct nib_number {
    const char *type;                                  /* "f16" */
    uint32_t n_bits, n_exponent_bits, n_mantissa_bits; /* floats: 1 + n_exponent_bits + n_mantissa_bits = n_bits */
    bool is_integer, is_signed;
    int bias;      /* of the exponent */
    uint64_t code; /* the bits; sign on top, then exponent, then mantissa; integers in two's complement */
    nib_number_fit fit;
    double value, error;              /* what is stored; value - x, NaN unless both are finite */
    double lowest, largest, smallest; /* ends of the finite range; the smallest value above zero */
    double smallest_normal;           /* below it, precision is lost bit by bit; integers: 1 */
    double digits;                    /* significant decimal digits: log10(2) * (n_mantissa_bits + 1) */
    double previous, next;            /* the stored value's neighbours; NaN where there is none */
} nib_number;

/* x in the type number `index` of: f64, f32, f16, bf16, the five plain floats, i8, u8. false past the last. */
NIB_API bool nib_number_at(unsigned index, double x, nib_number *out);
/* "exact", "rounded", "underflow", "saturated", "overflow", "none" */
NIB_API const char *nib_number_fit_name(nib_number_fit fit);

/* ---- A list of numbers as one block ------------------------------------------------------------------------------------ */

typedef struct nib_number_block {
    bool has_scale, has_zero, has_minimum;
    double scale, minimum; /* 1 and 0 if the format has none */
    int32_t zero;          /* the code of zero */
    int32_t lowest_code, largest_code;
    uint32_t n_codes_used, n_codes; /* different codes in the list; that there are */
    double mean_relative_error;     /* mean |decoded - x| / |x| over x that are not zero; NaN if all are */
} nib_number_block;

/* Quantizes a list as one block of a grid format or a plain float, in double arithmetic with a scale that is not rounded:
 * the scheme without the storage. Codes of kinds s and a are signed (-2^(bits-1)..2^(bits-1)-1, s without the lowest), those
 * of kind m are not; codes of floats are their bits.
 *   s   scale = max|x| / (2^(bits-1) - 1)                          code = round(x / scale)
 *   a   scale = (max - min) / (2^bits - 1), zero in the range      zero = -2^(bits-1) - round(min / scale)
 *                                                                  code = round(x / scale + zero)
 *   m   scale = (max - min) / (2^bits - 1)                         code = round((x - min) / scale)
 *   f   scale = max|x| / largest finite value                      code of x / scale
 * with round(x) = floor(x + 0.5). x, decoded: (n); codes: (n).
 * NIB_ERR_USAGE: n is 0 or above the format's block, a number is not finite. NIB_ERR_UNSUPPORTED: another format. */
NIB_API nib_status nib_number_quantize(const nib_format *format, const double *x, size_t n, int32_t *codes,
                                       double *decoded, nib_number_block *out, nib_error *error);

/* ---- FP8 weights as models are published ------------------------------------------------------------------------------- */

/* Decodes a matrix of 8-bit floats with float32 scales beside it: weight = value of the code * scale of its block.
 * format: f8_e4m3 or f8_e5m2 (the types safetensors calls F8_E4M3 and F8_E5M2). codes, out: (n_rows, n_cols), scales:
 * (ceil(n_rows / block_rows), ceil(n_cols / block_cols)). A block size of 0 is the whole dimension: 0 and 0 for one scale
 * per tensor, 1 and 0 for one per row, 128 and 128 for DeepSeek's blocks (whose weight_scale_inv is multiplied, too).
 * Returns NIB_VERDICT_NOT_FINITE if a decoded weight is NaN or infinite (out is complete nevertheless), and
 * NIB_VERDICT_BAD_CODE, with out untouched, for any other format. */
NIB_API nib_verdict nib_fp8_decode_blocks(const nib_format *format, const uint8_t *codes, size_t n_rows, size_t n_cols,
                                          const float *scales, size_t block_rows, size_t block_cols, float *out);

#ifdef __cplusplus
}
#endif
#endif
