/* Half precision (IEEE binary16) and bfloat16, bit-exact on every level: no compiler conversion is trusted. */
#ifndef NIB_BASE_HALF_H
#define NIB_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t nib_bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float nib_float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float nib_f16_to_f32(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return nib_float_of(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    if (rest < 0x0400) return nib_float_of(nib_bits_of((float)rest * 0x1p-24f) | sign);
    return nib_float_of(sign | ((rest << 13) + 0x38000000u));
}

/* Round to nearest even; overflow to infinity; a NaN becomes the quiet NaN 0x7e00 with its sign. */
static inline uint16_t nib_f32_to_f16(float value) {
    const uint32_t bits = nib_bits_of(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above */
    if (magnitude < 0x38800000u) { /* subnormal half: adding 0.5 rounds at bit 2^-24, ties to even */
        const float shifted = nib_float_of(magnitude) + 0.5f;
        return (uint16_t)(sign | (nib_bits_of(shifted) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000u) >> 13));
}

static inline float nib_bf16_to_f32(uint16_t brain) {
    return nib_float_of((uint32_t)brain << 16);
}

/* Round to nearest even; a NaN keeps its upper bits with bit 6 set, as llama.cpp does. */
static inline uint16_t nib_f32_to_bf16(float value) {
    const uint32_t bits = nib_bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000u) return (uint16_t)((bits >> 16) | 64);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#endif
