/* vec.h for AVX-512: 16 lanes in one register. What each function does is said here; the other levels do the same. */
#ifndef NIB_CPU_VEC_AVX512_H
#define NIB_CPU_VEC_AVX512_H

#include <immintrin.h>
#define NIB_VEC_512 1
#if defined(__AVX512VNNI__)
#define NIB_VEC_DP4 1 /* vi_dp4 is one instruction */
#endif

typedef __m512 vf;
typedef __m512i vi;
typedef struct vd {
    __m512d a, b;
} vd;
typedef __mmask16 vm;

static inline vf vf_splat(float x) {
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
/* The first n < 16 lanes; the others are zero. */
static inline vf vf_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void vf_store_n(float *p, vf x, size_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x);
}
static inline vf vf_add(vf x, vf y) {
    return _mm512_add_ps(x, y);
}
static inline vf vf_sub(vf x, vf y) {
    return _mm512_sub_ps(x, y);
}
static inline vf vf_mul(vf x, vf y) {
    return _mm512_mul_ps(x, y);
}
static inline vf vf_div(vf x, vf y) {
    return _mm512_div_ps(x, y);
}
/* x * y + z, rounded once where the level can. */
static inline vf vf_fma(vf x, vf y, vf z) {
    return _mm512_fmadd_ps(x, y, z);
}
/* x > y ? x : y, so a NaN in y wins. */
static inline vf vf_max(vf x, vf y) {
    return _mm512_max_ps(x, y);
}
static inline vf vf_min(vf x, vf y) {
    return _mm512_min_ps(x, y);
}
/* Quarters of a vector folded onto one: 16 lanes to 4. */
static inline __m128 vf_quarter_sum(vf x) {
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline __m128 vf_quarter_max(vf x) {
    const __m256 y = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline __m128 vf_quarter_min(vf x) {
    const __m256 y = _mm256_min_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_min_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline vf vf_from_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
static inline vf vf_from_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
static inline void vf_to_f16(uint16_t *p, vf x) {
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vi vi_splat(int32_t x) {
    return _mm512_set1_epi32(x);
}
static inline vi vi_load(const void *p) {
    return _mm512_loadu_si512(p);
}
static inline void vi_store(void *p, vi x) {
    _mm512_storeu_si512(p, x);
}
static inline vi vi_add(vi x, vi y) {
    return _mm512_add_epi32(x, y);
}
static inline vi vi_sub(vi x, vi y) {
    return _mm512_sub_epi32(x, y);
}
static inline vf vi_to_f(vi x) {
    return _mm512_cvtepi32_ps(x);
}
static inline vi vi_bits(vf x) {
    return _mm512_castps_si512(x);
}
static inline vf vf_bits(vi x) {
    return _mm512_castsi512_ps(x);
}
static inline vi vi_shl(vi x, int n) {
    return _mm512_slli_epi32(x, (unsigned)n);
}
static inline vi vi_sar(vi x, int n) {
    return _mm512_srai_epi32(x, (unsigned)n);
}
static inline vf vf_sqrt(vf x) {
    return _mm512_sqrt_ps(x);
}
/* To the nearest integer, ties to even; |x| < 2^22 - 1. A zero may have either sign. */
static inline vf vf_round(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Comparisons with a NaN are false. */
static inline vm vf_lt(vf x, vf y) {
    return _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ);
}
static inline vm vf_eq(vf x, vf y) {
    return _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ);
}
static inline vm vi_eq(vi x, vi y) {
    return _mm512_cmpeq_epi32_mask(x, y);
}
static inline vm vi_lt(vi x, vi y) {
    return _mm512_cmplt_epi32_mask(x, y);
}
static inline vm vm_and(vm x, vm y) {
    return (vm)(x & y);
}
static inline vm vm_or(vm x, vm y) {
    return (vm)(x | y);
}
/* x and not y */
static inline vm vm_except(vm x, vm y) {
    return (vm)(x & ~y);
}
static inline bool vm_any(vm x) {
    return x != 0;
}
/* m ? x : y, lane by lane */
static inline vf vf_choose(vm m, vf x, vf y) {
    return _mm512_mask_blend_ps(m, y, x);
}
static inline vi vi_choose(vm m, vi x, vi y) {
    return _mm512_mask_blend_epi32(m, y, x);
}
static inline vi vi_and(vi x, vi y) {
    return _mm512_and_si512(x, y);
}
static inline vi vi_or(vi x, vi y) {
    return _mm512_or_si512(x, y);
}
static inline vi vi_max(vi x, vi y) {
    return _mm512_max_epi32(x, y);
}
static inline vi vi_min(vi x, vi y) {
    return _mm512_min_epi32(x, y);
}
/* Bit i: lane i. */
static inline uint32_t vm_bits(vm x) {
    return x;
}
/* 8 numbers twice, a table for vf_lookup8. */
static inline vf vf_twice(const float *p) {
    return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
}
/* table[index % 8], lane by lane; the table's halves are equal. */
static inline vf vf_lookup8(vf table, vi index) {
    return _mm512_permutexvar_ps(index, table);
}
/* table[index % 16] */
static inline vf vf_lookup16(vf table, vi index) {
    return _mm512_permutexvar_ps(index, table);
}
static inline vi vi_from_u16(const uint16_t *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
}
/* 16 bytes, without and with sign. */
static inline vi vi_from_u8(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
}
static inline vi vi_from_i8(const int8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p));
}
/* Towards zero; |x| < 2^31. */
static inline vi vf_to_i(vf x) {
    return _mm512_cvttps_epi32(x);
}
/* The low byte of every lane: 16 bytes. */
static inline void vi_store_bytes(void *p, vi x) {
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(x));
}
/* to[j], lane i = from[i * stride + j], i and j < 16 */
static inline void vf_transpose(vf to[16], const float *from, size_t stride) {
    __m512d pairs[16];
    for (size_t i = 0; i < 16; i += 4) {
        const vf r0 = vf_load(from + i * stride), r1 = vf_load(from + (i + 1) * stride);
        const vf r2 = vf_load(from + (i + 2) * stride), r3 = vf_load(from + (i + 3) * stride);
        const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
        const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
        const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
        const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
        /* pairs[i + k]: in each quarter q, column 4 q + k of rows i to i + 3 */
        pairs[i] = _mm512_unpacklo_pd(low01, low23);
        pairs[i + 1] = _mm512_unpackhi_pd(low01, low23);
        pairs[i + 2] = _mm512_unpacklo_pd(high01, high23);
        pairs[i + 3] = _mm512_unpackhi_pd(high01, high23);
    }
    for (size_t k = 0; k < 4; k++) {
        const vf r0 = _mm512_castpd_ps(pairs[k]), r4 = _mm512_castpd_ps(pairs[k + 4]);
        const vf r8 = _mm512_castpd_ps(pairs[k + 8]), r12 = _mm512_castpd_ps(pairs[k + 12]);
        const vf even0 = _mm512_shuffle_f32x4(r0, r4, 0x88), odd0 = _mm512_shuffle_f32x4(r0, r4, 0xdd);
        const vf even8 = _mm512_shuffle_f32x4(r8, r12, 0x88), odd8 = _mm512_shuffle_f32x4(r8, r12, 0xdd);
        to[k] = _mm512_shuffle_f32x4(even0, even8, 0x88);
        to[k + 4] = _mm512_shuffle_f32x4(odd0, odd8, 0x88);
        to[k + 8] = _mm512_shuffle_f32x4(even0, even8, 0xdd);
        to[k + 12] = _mm512_shuffle_f32x4(odd0, odd8, 0xdd);
    }
}
/* acc[i] += sum over j < 4 of u[4 i + j] * s[4 i + j], u unsigned and s signed bytes; exact for all values. */
static inline vi vi_dp4(vi acc, vi u, vi s) {
#if defined(__AVX512VNNI__)
    /* Not the intrinsic: gcc 12 copies accumulators from register to register around it. */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
#else
    const vi even =
        _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    const vi odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
    return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
#endif
}
static inline vi vi_xor(vi x, vi y) {
    return _mm512_xor_si512(x, y);
}
static inline vi vi_shr(vi x, int n) {
    return _mm512_srli_epi32(x, (unsigned)n);
}
static inline vi vi_mul(vi x, vi y) {
    return _mm512_mullo_epi32(x, y);
}
/* x << n lane by lane; 0 where n is 32 or more. */
static inline vi vi_shl_by(vi x, vi n) {
    return _mm512_sllv_epi32(x, n);
}
/* acc[i] += x[2 i] * y[2 i] + x[2 i + 1] * y[2 i + 1] over halves of 16 bits. */
static inline vi vi_dp2(vi acc, vi x, vi y) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y));
    return acc;
#else
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(x, y));
    __asm__("" : "+v"(acc)); /* else gcc turns a chain of these into a tree, whose leaves fill the registers */
    return acc;
#endif
}
/* Every byte b, which is below 16, becomes table[b]. */
static inline vi vi_look_up(const void *table, vi x) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table)), x);
}
/* Lanes whose low halves are half-precision numbers. */
static inline vf vf_from_low_f16(vi x) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
}
static inline __m256i vi_two_rows(const char *p, size_t stride) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)p)),
                                   _mm_loadu_si128((const void *)(p + 4 * stride)), 1);
}
static inline vi vi_four_rows(const char *p, size_t stride) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(vi_two_rows(p, stride)), vi_two_rows(p + 8 * stride, stride), 1);
}
/* 16 bytes of 16 rows: lane r of out[j] is word j of row r. Step 0 .. 3 of four, which stay where they are in the program. */
static inline __attribute__((always_inline)) void vi_turn_step(vi out[4], const void *src, size_t stride,
                                                               unsigned step) {
    out[step] = vi_four_rows((const char *)src + step * stride, stride);
    __asm__("" : "+v"(out[step]));
    if (step % 2 == 0) return;
    const vi even = out[step - 1], odd = out[step];
    out[step - 1] = _mm512_unpacklo_epi32(even, odd);
    out[step] = _mm512_unpackhi_epi32(even, odd);
    if (step == 1) return;
    const vi ab = out[0], ab2 = out[1], cd = out[2], cd2 = out[3];
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    out[2] = _mm512_unpacklo_epi64(ab2, cd2);
    out[3] = _mm512_unpackhi_epi64(ab2, cd2);
}
static inline void vi_turn(vi out[4], const void *src, size_t stride) {
    for (unsigned step = 0; step < 4; step++) vi_turn_step(out, src, stride, step);
}
/* Lane i gets table[(16 * part + i) / n_lanes]: scales of groups, spread over the lanes of the group's dot products. */
static inline vf vf_spread(const float *table, int part, int n_lanes) {
    const vi step = n_lanes == 8 ? _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
                                 : _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(_mm512_add_epi32(step, _mm512_set1_epi32(part * 16 / n_lanes)), vf_load(table));
}

static inline vd vd_splat(double x) {
    return (vd){_mm512_set1_pd(x), _mm512_set1_pd(x)};
}
static inline vd vd_of(vf x) {
    return (vd){_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
}
static inline vd vd_add(vd x, vd y) {
    return (vd){_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)};
}
static inline vd vd_mul(vd x, vd y) {
    return (vd){_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)};
}
static inline void vd_store(double *p, vd x) {
    _mm512_storeu_pd(p, x.a);
    _mm512_storeu_pd(p + 8, x.b);
}

#endif
