/* Vectors of pairs of 16-bit integers: attention's integer arithmetic, and reading stored 8-bit codes. Lane i of a vector of
 * pairs holds (low, high). All of it is exact, so every level gives the same integers. Included by files that are compiled
 * once per level. */
#ifndef NIB_KERNEL_PAIRS_H
#define NIB_KERNEL_PAIRS_H

#include "cpu/vec.h"
#include <math.h>

/* vi_pair: lane i of (low[i], high[i]), each between -32768 and 32767
 * vi_round: to the nearest integer, ties to even, for |x| < 2^22; what becomes of others, NaN too, is not defined
 * vi_to_i16: 16 lanes, each between -32768 and 32767, as 16 integers of 16 bits */
#if defined(NIB_VEC_NEON) /* vec_neon.h has them */
#elif defined(NIB_VEC_512)
static inline vi vi_pair(vi low, vi high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}
static inline vi vi_round(vf x) {
    return _mm512_cvtps_epi32(x);
}
static inline void vi_to_i16(void *p, vi x) {
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(x));
}
static inline vf vf_from_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
static inline vi vi_pair(vi low, vi high) {
    return (vi){_mm256_blend_epi16(low.a, _mm256_slli_epi32(high.a, 16), 0xaa),
                _mm256_blend_epi16(low.b, _mm256_slli_epi32(high.b, 16), 0xaa)};
}
static inline vi vi_round(vf x) {
    return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}
static inline void vi_to_i16(void *p, vi x) {
    const __m256i packed = _mm256_packs_epi32(x.a, x.b); /* quarters 0 2 1 3 */
    _mm256_storeu_si256(p, _mm256_permute4x64_epi64(packed, 0xd8));
}
static inline vf vf_from_i8(const int8_t *p) {
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p + 8))))};
}
#else
static inline vi vi_pair(vi low, vi high) {
    NIB_EACH high.v[i] = (nib_i32x4)((nib_u32x4)high.v[i] << 16) | (low.v[i] & 0xffff);
    return high;
}
static inline vi vi_round(vf x) {
    const vf magic = vf_splat(0x1.8p23f);
    return vi_sub(vi_bits(vf_add(x, magic)), vi_bits(magic));
}
static inline void vi_to_i16(void *p, vi x) {
    int32_t lanes[16];
    int16_t narrow[16];
    vi_store(lanes, x);
    for (int i = 0; i < 16; i++) narrow[i] = (int16_t)lanes[i];
    memcpy(p, narrow, sizeof narrow);
}
static inline vf vf_from_i8(const int8_t *p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = p[i];
    return vf_load(lanes);
}
#endif

#endif
