/* What every format's file needs: scales in half precision, extremes of a block, rounding, and cutting packed codes apart
 * many bytes at a time.
 *
 * Invariants: nothing here depends on the order of float additions except where a loop says so; every conversion from
 * float to integer is defined for every input. */
#ifndef NIB_FORMAT_BLOCK_H
#define NIB_FORMAT_BLOCK_H

#include "base/memory.h"
#include "format/impl.h"

#include <float.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

/* ---- Scales: two bytes at any address ---------------------------------------------------------------------------- */

static inline float load_half(const uint8_t *src) {
#ifdef __F16C__
    return _cvtsh_ss(nib_load_u16(src));
#else
    return nib_f16_to_f32(nib_load_u16(src));
#endif
}

/* false if what was stored is not a finite number. */
static inline bool store_half(uint8_t *dst, float value) {
    const uint16_t half = nib_f32_to_f16(value);
    memcpy(dst, &half, sizeof half);
    return (half & 0x7c00) != 0x7c00;
}

static inline bool half_is_finite(const uint8_t *src) {
    return (nib_load_u16(src) & 0x7c00) != 0x7c00;
}

/* ---- Looking at weights ------------------------------------------------------------------------------------------ */

static inline bool all_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (nib_bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
    return bad == 0;
}

/* max |x|. Magnitudes are compared as integers, which have the same order and let the compiler use vectors. */
static inline float largest_magnitude(const float *x, size_t n) {
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t magnitude = (int32_t)(nib_bits_of(x[i]) & 0x7fffffffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return nib_float_of((uint32_t)largest);
}

/* The element with the largest magnitude, with its sign; the first of equals; +0 if all are zero. */
static inline float extreme(const float *x, size_t n) {
    int32_t above = 0, below = 0; /* largest magnitudes among positive and negative elements */
    for (size_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)nib_bits_of(x[i]), flipped = (int32_t)(nib_bits_of(x[i]) ^ 0x80000000u);
        above = bits > above ? bits : above;
        below = flipped > below ? flipped : below;
    }
    if (above > below) return nib_float_of((uint32_t)above);
    if (below > above) return -nib_float_of((uint32_t)below);
    const float magnitude = nib_float_of((uint32_t)above);
    for (size_t i = 0; i < n && magnitude > 0; i++) {
        if (x[i] == magnitude || x[i] == -magnitude) return x[i];
    }
    return 0;
}

/* Smallest and largest element; of zeros with different signs the first stays. */
static inline void find_range(const float *x, size_t n, float *min, float *max) {
    float low = FLT_MAX, high = -FLT_MAX;
    for (size_t i = 0; i < n; i++) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
    }
    *min = low;
    *max = high;
}

static inline float sum_of_squares(const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* ---- Rounding ---------------------------------------------------------------------------------------------------- */

/* Nearest integer, ties to even, by adding 1.5 * 2^23: right for |x| <= 4194303, and a fixed value for everything else
 * (the reference encoders let such values occur in blocks whose scale is refused later). */
static inline int round_even(float x) {
    return (int)(nib_bits_of(x + 12582912.0f) & 0x007fffff) - 0x00400000;
}

/* Nearest integer, ties away from zero, |x| < 2^23. */
static inline int round_away(float x) {
    const int whole = (int)x;
    const float rest = x - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

static inline int clamp_int(int value, int low, int high) {
    const int capped = value < high ? value : high;
    return capped > low ? capped : low;
}

/* Ternary codes 0, 1, 2 for -d, 0, d, where d is the largest magnitude. Returns d. */
static inline float quantize_ternary(uint8_t *restrict code, const float *restrict x, size_t n) {
    const float d = largest_magnitude(x, n), inverse = d != 0 ? 1 / d : 0;
    if (inverse > FLT_MAX) { /* d is so small that 1/d overflows: the reference's conversions give 0 */
        memset(code, 1, n);
        return d;
    }
    for (size_t i = 0; i < n; i++) code[i] = (uint8_t)(round_away(x[i] * inverse) + 1);
    return d;
}

/* ---- Cutting codes apart ------------------------------------------------------------------------------------------ */

#define EACH_BYTE(value) (UINT64_C(0x0101010101010101) * (value))

/* Vectors that every level has in some width; always loaded and stored with memcpy, at any address. */
typedef uint64_t words_16 __attribute__((vector_size(16)));
typedef uint64_t words_32 __attribute__((vector_size(32)));

/* dst[i] = (src[i] >> shift) & mask for 32 bytes. */
static inline void cut_32(uint8_t *restrict dst, const uint8_t *restrict src, unsigned shift, uint8_t mask) {
    words_32 word;
    memcpy(&word, src, sizeof word);
    word = (word >> shift) & EACH_BYTE(mask);
    memcpy(dst, &word, sizeof word);
}

/* The same with more bits above: dst[i] = (low[i] >> low_shift) & low_mask | ((high[i] >> high_shift) & high_mask) << up. */
static inline void cut_two_32(uint8_t *restrict dst, const uint8_t *restrict low, unsigned low_shift, uint8_t low_mask,
                              const uint8_t *restrict high, unsigned high_shift, uint8_t high_mask, unsigned up) {
    words_32 below, above;
    memcpy(&below, low, sizeof below);
    memcpy(&above, high, sizeof above);
    below = (below >> low_shift) & EACH_BYTE(low_mask);
    above = ((above >> high_shift) & EACH_BYTE(high_mask)) << up;
    below |= above;
    memcpy(dst, &below, sizeof below);
}

/* 16 bytes of nibbles -> 32 codes: byte j holds code j in its low half and code j + 16 in its high half. */
static inline void cut_nibbles_32(uint8_t *restrict code, const uint8_t *restrict packed) {
    words_16 word;
    memcpy(&word, packed, sizeof word);
    const words_16 low = word & EACH_BYTE(15), high = (word >> 4) & EACH_BYTE(15);
    memcpy(code, &low, sizeof low);
    memcpy(code + 16, &high, sizeof high);
}
static inline void pack_nibbles_32(uint8_t *restrict packed, const uint8_t *restrict code) {
    words_16 low, high;
    memcpy(&low, code, sizeof low);
    memcpy(&high, code + 16, sizeof high);
    low = (low & EACH_BYTE(15)) | (high & EACH_BYTE(15)) << 4;
    memcpy(packed, &low, sizeof low);
}

/* The same from codes that stand apart: byte j holds the nibbles of low[j] and high[j]. */
static inline void join_nibbles_32(uint8_t *restrict packed, const uint8_t *restrict low,
                                   const uint8_t *restrict high) {
    words_32 below, above;
    memcpy(&below, low, sizeof below);
    memcpy(&above, high, sizeof above);
    below = (below & EACH_BYTE(15)) | (above & EACH_BYTE(15)) << 4;
    memcpy(packed, &below, sizeof below);
}

/* The fifth bits of 32 codes as one word, code j at bit j. */
static inline void pack_fifth_bits_32(uint8_t *dst, const uint8_t *code) {
    uint32_t bits = 0;
    for (unsigned j = 0; j < 32; j++) bits |= (uint32_t)(code[j] >> 4 & 1) << j;
    memcpy(dst, &bits, sizeof bits);
}
/* Bit i of bits becomes byte i, 0 or 16. */
static inline uint64_t fifth_bits(uint8_t bits) {
    const uint64_t chosen = EACH_BYTE(bits) & UINT64_C(0x8040201008040201);
    return ((chosen + EACH_BYTE(0x7f)) >> 3) & EACH_BYTE(0x10);
}

/* 32 five-bit codes: 16 bytes of nibbles as above, and 4 bytes of which bit i is the fifth bit of code i. */
static inline void cut_five_bits_32(uint8_t *restrict code, const uint8_t *restrict packed,
                                    const uint8_t *restrict high) {
    for (unsigned i = 0; i < 2; i++) {
        const uint64_t nibbles = nib_load_u64(packed + 8 * i);
        const uint64_t first = (nibbles & EACH_BYTE(15)) | fifth_bits(high[i]);
        const uint64_t second = (nibbles >> 4 & EACH_BYTE(15)) | fifth_bits(high[i + 2]);
        memcpy(code + 8 * i, &first, sizeof first);
        memcpy(code + 8 * i + 16, &second, sizeof second);
    }
}

/* 16 bytes of nibbles -> table[code] of 32 codes, in the order of cut_nibbles_32. table: 16 bytes */
static inline void look_up_nibbles_32(void *restrict dst, const uint8_t *restrict packed, const void *restrict table) {
#ifdef __AVX2__
    const __m128i values = _mm_loadu_si128(table), mask = _mm_set1_epi8(15);
    const __m128i both = _mm_loadu_si128((const __m128i *)(const void *)packed);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
    _mm_storeu_si128(dst, _mm_shuffle_epi8(values, _mm_and_si128(both, mask)));
    _mm_storeu_si128((__m128i *)dst + 1, _mm_shuffle_epi8(values, high));
#else
    const uint8_t *values = table;
    uint8_t *out = dst;
    for (unsigned j = 0; j < 16; j++) {
        out[j] = values[packed[j] & 15];
        out[j + 16] = values[packed[j] >> 4];
    }
#endif
}

/* 64 bytes of 2-bit codes -> 256 codes, the order of q2_k and q3_k: code 128n + 32j + l in bits 2j of byte 32n + l. */
static inline void cut_pairs_256(uint8_t *restrict code, const uint8_t *restrict packed) {
    for (unsigned n = 0; n < 2; n++) {
        for (unsigned j = 0; j < 4; j++) cut_32(code + 128 * n + 32 * j, packed + 32 * n, 2 * j, 3);
    }
}
static inline void pack_pairs_256(uint8_t *restrict packed, const uint8_t *restrict code) {
    for (unsigned n = 0; n < 2; n++) {
        const uint8_t *from = code + 128 * n;
        for (unsigned l = 0; l < 32; l++)
            packed[32 * n + l] =
                (uint8_t)((from[l] & 3) | (from[l + 32] & 3) << 2 | (from[l + 64] & 3) << 4 | (from[l + 96] & 3) << 6);
    }
}

#endif
