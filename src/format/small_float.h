/* Floats of 8 and 4 bits: their layouts, and the way there and back from float32.
 *
 *   s | exponent | mantissa      value = 1.mantissa * 2^(exponent - bias); exponent 0: 0.mantissa * 2^(1 - bias)
 *
 * Codes above the largest finite one are infinity (at most one of them) and NaN; the encoder never writes them: it rounds
 * to nearest, ties to even, and stops at the largest finite value. */
#ifndef NIB_FORMAT_SMALL_FLOAT_H
#define NIB_FORMAT_SMALL_FLOAT_H

#include "base/half.h"

#include <math.h>
#include <stdbool.h>

typedef struct small_float {
    unsigned bits, mantissa_bits;
    int bias;
    uint8_t largest;   /* code of the largest finite value, without sign */
    bool has_infinity; /* it is largest + 1 */
} small_float;

enum { SMALL_E4M3, SMALL_E4M3_IEEE, SMALL_E5M2, SMALL_E2M1, SMALL_E2M1_IEEE, N_SMALL_FLOATS };

static const small_float SMALL_FLOATS[N_SMALL_FLOATS] = {
    [SMALL_E4M3] = {8, 3, 7, 0x7e, false},     /* OCP: 448 */
    [SMALL_E4M3_IEEE] = {8, 3, 7, 0x77, true}, /* 240 */
    [SMALL_E5M2] = {8, 2, 15, 0x7b, true},     /* OCP: 57344 */
    [SMALL_E2M1] = {4, 1, 1, 0x7, false},      /* OCP: 6, no special codes at all */
    [SMALL_E2M1_IEEE] = {4, 1, 1, 0x5, true},  /* 3 */
};

static inline float small_float_decode(const small_float *type, uint8_t code) {
    const unsigned sign_bit = type->bits - 1, sign = (unsigned)code >> sign_bit & 1;
    const uint32_t rest = code & ((1u << sign_bit) - 1);
    /* The code in place of a float's exponent and mantissa, then the difference of the biases: right for subnormals too. */
    const float unit = nib_float_of((uint32_t)(127 + 127 - type->bias) << 23);
    float value = nib_float_of(rest << (23 - type->mantissa_bits)) * unit;
    if (rest > type->largest) value = type->has_infinity && rest == type->largest + 1u ? INFINITY : NAN;
    return nib_float_of(nib_bits_of(value) | (uint32_t)sign << 31);
}

/* value is not NaN. */
static inline uint8_t small_float_encode(const small_float *type, float value) {
    const unsigned shift = 23 - type->mantissa_bits;
    const uint32_t bits = nib_bits_of(value), magnitude = bits & 0x7fffffffu;
    const uint32_t smallest_normal = (uint32_t)(127 + 1 - type->bias) << 23;
    /* Below the smallest normal value: adding 2^23 times the smallest subnormal one rounds at its place. */
    const uint32_t magic = (uint32_t)(127 + 1 - type->bias + (int)shift) << 23;
    const uint32_t subnormal = nib_bits_of(nib_float_of(magnitude) + nib_float_of(magic)) - magic;
    const uint32_t rounded = (magnitude + (1u << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;
    const uint32_t normal = rounded - ((uint32_t)(127 - type->bias) << type->mantissa_bits);
    const uint32_t code = magnitude < smallest_normal ? subnormal : normal;
    return (uint8_t)((code < type->largest ? code : type->largest) | bits >> 31 << (type->bits - 1));
}

#endif
