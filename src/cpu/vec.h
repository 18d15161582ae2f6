/* Vectors of 16 lanes, the same on every level: one zmm, two ymm, or four 16-byte vectors (of NEON, or of
 * the compiler). Kernels written
 * with them add in the same order everywhere; what may differ between levels is one rounding per multiply-add where the
 * processor has no fused one.
 *
 *     vf 16 floats, vi 16 int32 (or 64 bytes), vd 16 doubles (for sums that must not lose digits), vm 16 truth values
 *
 * Loads and stores take any alignment. Included by files that are compiled once per level. */
#ifndef NIB_CPU_VEC_H
#define NIB_CPU_VEC_H

#include "base/half.h"
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NIB_LANES 16

#if defined(__AVX512F__) && defined(__AVX512BW__)
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
    return _mm512_add_epi32(acc, _mm512_madd_epi16(x, y));
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
/* 16 bytes of 16 rows: lane r of out[j] is word j of row r. */
static inline void vi_turn(vi out[4], const void *src, size_t stride) {
    const char *p = src;
    const vi a = vi_four_rows(p, stride), b = vi_four_rows(p + stride, stride),
             c = vi_four_rows(p + 2 * stride, stride), d = vi_four_rows(p + 3 * stride, stride);
    const vi ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const vi ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    out[2] = _mm512_unpacklo_epi64(ab2, cd2);
    out[3] = _mm512_unpackhi_epi64(ab2, cd2);
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
static inline vd vd_sub(vd x, vd y) {
    return (vd){_mm512_sub_pd(x.a, y.a), _mm512_sub_pd(x.b, y.b)};
}
static inline vd vd_mul(vd x, vd y) {
    return (vd){_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)};
}
/* x * y, and 0 where x is 0, whatever y is. */
static inline vd vd_mul_nonzero(vd x, vd y) {
    const __m512d zero = _mm512_setzero_pd();
    return (vd){_mm512_maskz_mul_pd(_mm512_cmp_pd_mask(x.a, zero, _CMP_NEQ_UQ), x.a, y.a),
                _mm512_maskz_mul_pd(_mm512_cmp_pd_mask(x.b, zero, _CMP_NEQ_UQ), x.b, y.b)};
}
static inline void vd_store(double *p, vd x) {
    _mm512_storeu_pd(p, x.a);
    _mm512_storeu_pd(p + 8, x.b);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

typedef struct vf {
    __m256 a, b;
} vf;
typedef struct vi {
    __m256i a, b;
} vi;
typedef struct vd {
    __m256d v[4];
} vd;
typedef struct vm {
    __m256 a, b;
} vm;

/* f(x) on both halves, with one, two or three operands. */
#define NIB_BOTH(type, f, x)        ((type){f((x).a), f((x).b)})
#define NIB_BOTH2(type, f, x, y)    ((type){f((x).a, (y).a), f((x).b, (y).b)})
#define NIB_BOTH3(type, f, x, y, z) ((type){f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b)})

static inline vf vf_splat(float x) {
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline vf vf_load(const float *p) {
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline vf vf_load_n(const float *p, size_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vf_load(lanes);
}
static inline void vf_store_n(float *p, vf x, size_t n) {
    float lanes[16];
    vf_store(lanes, x);
    memcpy(p, lanes, n * sizeof *p);
}
static inline vf vf_add(vf x, vf y) {
    return NIB_BOTH2(vf, _mm256_add_ps, x, y);
}
static inline vf vf_sub(vf x, vf y) {
    return NIB_BOTH2(vf, _mm256_sub_ps, x, y);
}
static inline vf vf_mul(vf x, vf y) {
    return NIB_BOTH2(vf, _mm256_mul_ps, x, y);
}
static inline vf vf_div(vf x, vf y) {
    return NIB_BOTH2(vf, _mm256_div_ps, x, y);
}
static inline vf vf_fma(vf x, vf y, vf z) {
    return NIB_BOTH3(vf, _mm256_fmadd_ps, x, y, z);
}
static inline vf vf_max(vf x, vf y) {
    return NIB_BOTH2(vf, _mm256_max_ps, x, y);
}
static inline vf vf_min(vf x, vf y) {
    return NIB_BOTH2(vf, _mm256_min_ps, x, y);
}
static inline __m128 vf_quarter_sum(vf x) {
    const __m256 y = _mm256_add_ps(x.a, x.b);
    return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline __m128 vf_quarter_max(vf x) {
    const __m256 y = _mm256_max_ps(x.a, x.b);
    return _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline __m128 vf_quarter_min(vf x) {
    const __m256 y = _mm256_min_ps(x.a, x.b);
    return _mm_min_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
static inline vf vf_from_f16(const uint16_t *p) {
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 8)))};
}
static inline __m256 vf_half_from_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
static inline vf vf_from_bf16(const uint16_t *p) {
    return (vf){vf_half_from_bf16(p), vf_half_from_bf16(p + 8)};
}
static inline void vf_to_f16(uint16_t *p, vf x) {
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((void *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vi vi_splat(int32_t x) {
    return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline vi vi_load(const void *p) {
    return (vi){_mm256_loadu_si256(p), _mm256_loadu_si256((const void *)((const char *)p + 32))};
}
static inline void vi_store(void *p, vi x) {
    _mm256_storeu_si256(p, x.a);
    _mm256_storeu_si256((void *)((char *)p + 32), x.b);
}
static inline vi vi_add(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_add_epi32, x, y);
}
static inline vi vi_sub(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_sub_epi32, x, y);
}
static inline vf vi_to_f(vi x) {
    return NIB_BOTH(vf, _mm256_cvtepi32_ps, x);
}
static inline vi vi_bits(vf x) {
    return NIB_BOTH(vi, _mm256_castps_si256, x);
}
static inline vf vf_bits(vi x) {
    return NIB_BOTH(vf, _mm256_castsi256_ps, x);
}
static inline vi vi_shl(vi x, int n) {
    return (vi){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
static inline vi vi_sar(vi x, int n) {
    return (vi){_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
static inline vf vf_sqrt(vf x) {
    return NIB_BOTH(vf, _mm256_sqrt_ps, x);
}
static inline __m256 vf_half_round(__m256 x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_round(vf x) {
    return NIB_BOTH(vf, vf_half_round, x);
}
static inline vm vf_lt(vf x, vf y) {
    return (vm){_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
static inline vm vf_eq(vf x, vf y) {
    return (vm){_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}
static inline vm vi_eq(vi x, vi y) {
    return (vm){_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.a, y.a)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(x.b, y.b))};
}
static inline vm vi_lt(vi x, vi y) {
    return (vm){_mm256_castsi256_ps(_mm256_cmpgt_epi32(y.a, x.a)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(y.b, x.b))};
}
static inline vm vm_and(vm x, vm y) {
    return NIB_BOTH2(vm, _mm256_and_ps, x, y);
}
static inline vm vm_or(vm x, vm y) {
    return NIB_BOTH2(vm, _mm256_or_ps, x, y);
}
static inline vm vm_except(vm x, vm y) {
    return NIB_BOTH2(vm, _mm256_andnot_ps, y, x);
}
static inline bool vm_any(vm x) {
    return _mm256_movemask_ps(_mm256_or_ps(x.a, x.b)) != 0;
}
static inline vf vf_choose(vm m, vf x, vf y) {
    return NIB_BOTH3(vf, _mm256_blendv_ps, y, x, m);
}
static inline vi vi_choose(vm m, vi x, vi y) {
    return vi_bits(vf_choose(m, vf_bits(x), vf_bits(y)));
}
static inline vi vi_and(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_and_si256, x, y);
}
static inline vi vi_or(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_or_si256, x, y);
}
static inline vi vi_max(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_max_epi32, x, y);
}
static inline vi vi_min(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_min_epi32, x, y);
}
static inline uint32_t vm_bits(vm x) {
    return (uint32_t)_mm256_movemask_ps(x.a) | (uint32_t)_mm256_movemask_ps(x.b) << 8;
}
static inline vf vf_twice(const float *p) {
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p)};
}
static inline vf vf_lookup8(vf table, vi index) {
    return NIB_BOTH2(vf, _mm256_permutevar8x32_ps, table, index);
}
static inline __m256 vf_half_lookup16(vf table, __m256i index) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.a, index), _mm256_permutevar8x32_ps(table.b, index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
static inline vf vf_lookup16(vf table, vi index) {
    return (vf){vf_half_lookup16(table, index.a), vf_half_lookup16(table, index.b)};
}
static inline vi vi_from_u16(const uint16_t *p) {
    return (vi){_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)),
                _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p + 8)))};
}
static inline vi vf_to_i(vf x) {
    return NIB_BOTH(vi, _mm256_cvttps_epi32, x);
}
static inline void vi_store_bytes(void *p, vi x) {
    const __m256i low = _mm256_set1_epi32(255);
    const __m256i pairs = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    const __m128i halves = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(p, _mm_shuffle_epi32(halves, 0xd8)); /* a0 b0 a1 b1 -> a0 a1 b0 b1 */
}
/* to[j], lane i = from[i * stride + j], i and j < 8 */
static inline void vf_transpose_8(__m256 to[8], const float *from, size_t stride) {
    __m256d pairs[8];
    for (size_t i = 0; i < 8; i += 4) {
        const __m256 r0 = _mm256_loadu_ps(from + i * stride), r1 = _mm256_loadu_ps(from + (i + 1) * stride);
        const __m256 r2 = _mm256_loadu_ps(from + (i + 2) * stride), r3 = _mm256_loadu_ps(from + (i + 3) * stride);
        const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1));
        const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
        const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
        const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
        pairs[i] = _mm256_unpacklo_pd(low01, low23);
        pairs[i + 1] = _mm256_unpackhi_pd(low01, low23);
        pairs[i + 2] = _mm256_unpacklo_pd(high01, high23);
        pairs[i + 3] = _mm256_unpackhi_pd(high01, high23);
    }
    for (size_t k = 0; k < 4; k++) {
        const __m256 r0 = _mm256_castpd_ps(pairs[k]), r4 = _mm256_castpd_ps(pairs[k + 4]);
        to[k] = _mm256_permute2f128_ps(r0, r4, 0x20);
        to[k + 4] = _mm256_permute2f128_ps(r0, r4, 0x31);
    }
}
static inline void vf_transpose(vf to[16], const float *from, size_t stride) {
    for (size_t half = 0; half < 2; half++) {
        __m256 above[8], below[8]; /* rows 0-7 and 8-15 of these 8 columns */
        vf_transpose_8(above, from + 8 * half, stride);
        vf_transpose_8(below, from + 8 * stride + 8 * half, stride);
        for (size_t k = 0; k < 8; k++) to[8 * half + k] = (vf){above[k], below[k]};
    }
}
static inline __m256i vi_half_dp4(__m256i acc, __m256i u, __m256i s) {
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
static inline vi vi_dp4(vi acc, vi u, vi s) {
    return NIB_BOTH3(vi, vi_half_dp4, acc, u, s);
}
static inline vi vi_xor(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_xor_si256, x, y);
}
static inline vi vi_shr(vi x, int n) {
    return (vi){_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
static inline vi vi_mul(vi x, vi y) {
    return NIB_BOTH2(vi, _mm256_mullo_epi32, x, y);
}
static inline vi vi_shl_by(vi x, vi n) {
    return NIB_BOTH2(vi, _mm256_sllv_epi32, x, n);
}
static inline vi vi_dp2(vi acc, vi x, vi y) {
    return vi_add(acc, NIB_BOTH2(vi, _mm256_madd_epi16, x, y));
}
static inline vi vi_look_up(const void *table, vi x) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
    return (vi){_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
}
/* The low halves of all lanes, which are below 2^16, next to each other. */
static inline __m256i vi_low_halves(vi x) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xd8);
}
static inline vf vf_from_low_f16(vi x) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    const __m256i halves = vi_low_halves((vi){_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)});
    return (vf){_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
static inline __m256i vi_two_rows(const char *p, size_t stride) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)p)),
                                   _mm_loadu_si128((const void *)(p + 4 * stride)), 1);
}
static inline void vi_turn(vi out[4], const void *src, size_t stride) {
    __m256i o[2][4];
    for (int half = 0; half < 2; half++) {
        const char *p = (const char *)src + (size_t)(8 * half) * stride;
        const __m256i a = vi_two_rows(p, stride), b = vi_two_rows(p + stride, stride);
        const __m256i c = vi_two_rows(p + 2 * stride, stride), d = vi_two_rows(p + 3 * stride, stride);
        const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
        const __m256i ab2 = _mm256_unpackhi_epi32(a, b), cd2 = _mm256_unpackhi_epi32(c, d);
        o[half][0] = _mm256_unpacklo_epi64(ab, cd);
        o[half][1] = _mm256_unpackhi_epi64(ab, cd);
        o[half][2] = _mm256_unpacklo_epi64(ab2, cd2);
        o[half][3] = _mm256_unpackhi_epi64(ab2, cd2);
    }
    for (int j = 0; j < 4; j++) out[j] = (vi){o[0][j], o[1][j]};
}
static inline vf vf_spread(const float *table, int part, int n_lanes) {
    const float *t = table + part * 16 / n_lanes;
    if (n_lanes == 8) return (vf){_mm256_set1_ps(t[0]), _mm256_set1_ps(t[1])};
    return (vf){_mm256_set_m128(_mm_set1_ps(t[1]), _mm_set1_ps(t[0])),
                _mm256_set_m128(_mm_set1_ps(t[3]), _mm_set1_ps(t[2]))};
}

static inline vd vd_splat(double x) {
    const __m256d v = _mm256_set1_pd(x);
    return (vd){{v, v, v, v}};
}
static inline vd vd_of(vf x) {
    return (vd){{_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
                 _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))}};
}
static inline vd vd_add(vd x, vd y) {
    for (int i = 0; i < 4; i++) x.v[i] = _mm256_add_pd(x.v[i], y.v[i]);
    return x;
}
static inline vd vd_sub(vd x, vd y) {
    for (int i = 0; i < 4; i++) x.v[i] = _mm256_sub_pd(x.v[i], y.v[i]);
    return x;
}
static inline vd vd_mul(vd x, vd y) {
    for (int i = 0; i < 4; i++) x.v[i] = _mm256_mul_pd(x.v[i], y.v[i]);
    return x;
}
static inline vd vd_mul_nonzero(vd x, vd y) {
    for (int i = 0; i < 4; i++)
        x.v[i] = _mm256_and_pd(_mm256_cmp_pd(x.v[i], _mm256_setzero_pd(), _CMP_NEQ_UQ), _mm256_mul_pd(x.v[i], y.v[i]));
    return x;
}
static inline void vd_store(double *p, vd x) {
    for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, x.v[i]);
}

#elif defined(NIB_VEC_NEON)
#include "cpu/vec_neon.h"

#else
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

typedef float nib_f32x4 __attribute__((vector_size(16)));
typedef int32_t nib_i32x4 __attribute__((vector_size(16)));
typedef uint32_t nib_u32x4 __attribute__((vector_size(16)));
typedef struct vf {
    nib_f32x4 v[4];
} vf;
typedef struct vi {
    nib_i32x4 v[4];
} vi;
typedef struct vd {
    double v[16];
} vd;
typedef struct vm {
    nib_i32x4 v[4];
} vm;

#define NIB_EACH for (int i = 0; i < 4; i++)

static inline vf vf_splat(float x) {
    const nib_f32x4 v = {x, x, x, x};
    return (vf){{v, v, v, v}};
}
static inline vf vf_load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void vf_store(float *p, vf x) {
    memcpy(p, &x, sizeof x);
}
static inline vf vf_load_n(const float *p, size_t n) {
    vf x = {0};
    memcpy(&x, p, n * sizeof *p);
    return x;
}
static inline void vf_store_n(float *p, vf x, size_t n) {
    memcpy(p, &x, n * sizeof *p);
}
static inline vf vf_add(vf x, vf y) {
    NIB_EACH x.v[i] += y.v[i];
    return x;
}
static inline vf vf_sub(vf x, vf y) {
    NIB_EACH x.v[i] -= y.v[i];
    return x;
}
static inline vf vf_mul(vf x, vf y) {
    NIB_EACH x.v[i] *= y.v[i];
    return x;
}
static inline vf vf_div(vf x, vf y) {
    NIB_EACH x.v[i] /= y.v[i];
    return x;
}
static inline vf vf_fma(vf x, vf y, vf z) {
    NIB_EACH x.v[i] = x.v[i] * y.v[i] + z.v[i];
    return x;
}
static inline nib_f32x4 vf_pick(nib_i32x4 mask, nib_f32x4 x, nib_f32x4 y) {
    return (nib_f32x4)((mask & (nib_i32x4)x) | (~mask & (nib_i32x4)y));
}
static inline vf vf_max(vf x, vf y) {
    NIB_EACH x.v[i] = vf_pick(x.v[i] > y.v[i], x.v[i], y.v[i]);
    return x;
}
static inline vf vf_min(vf x, vf y) {
    NIB_EACH x.v[i] = vf_pick(x.v[i] < y.v[i], x.v[i], y.v[i]);
    return x;
}
static inline nib_f32x4 vf_quarter_sum(vf x) {
    return (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
}
static inline nib_f32x4 vf_larger(nib_f32x4 x, nib_f32x4 y) {
    return vf_pick(x > y, x, y);
}
static inline nib_f32x4 vf_quarter_max(vf x) {
    return vf_larger(vf_larger(x.v[0], x.v[2]), vf_larger(x.v[1], x.v[3]));
}
static inline nib_f32x4 vf_smaller(nib_f32x4 x, nib_f32x4 y) {
    return vf_pick(x < y, x, y);
}
static inline nib_f32x4 vf_quarter_min(vf x) {
    return vf_smaller(vf_smaller(x.v[0], x.v[2]), vf_smaller(x.v[1], x.v[3]));
}
static inline vf vf_from_f16(const uint16_t *p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = nib_f16_to_f32(p[i]);
    return vf_load(lanes);
}
static inline vf vf_from_bf16(const uint16_t *p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = nib_bf16_to_f32(p[i]);
    return vf_load(lanes);
}
static inline void vf_to_f16(uint16_t *p, vf x) {
    float lanes[16];
    vf_store(lanes, x);
    for (int i = 0; i < 16; i++) p[i] = nib_f32_to_f16(lanes[i]);
}

static inline vi vi_splat(int32_t x) {
    const nib_i32x4 v = {x, x, x, x};
    return (vi){{v, v, v, v}};
}
static inline vi vi_load(const void *p) {
    vi x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void vi_store(void *p, vi x) {
    memcpy(p, &x, sizeof x);
}
static inline vi vi_add(vi x, vi y) {
    NIB_EACH x.v[i] = (nib_i32x4)((nib_u32x4)x.v[i] + (nib_u32x4)y.v[i]);
    return x;
}
static inline vi vi_sub(vi x, vi y) {
    NIB_EACH x.v[i] = (nib_i32x4)((nib_u32x4)x.v[i] - (nib_u32x4)y.v[i]);
    return x;
}
static inline vf vi_to_f(vi x) {
    vf y;
    NIB_EACH y.v[i] = __builtin_convertvector(x.v[i], nib_f32x4);
    return y;
}
static inline vi vi_bits(vf x) {
    vi y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline vf vf_bits(vi x) {
    vf y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline vi vi_shl(vi x, int n) {
    NIB_EACH x.v[i] = (nib_i32x4)((nib_u32x4)x.v[i] << n);
    return x;
}
static inline vi vi_sar(vi x, int n) {
    NIB_EACH x.v[i] >>= n;
    return x;
}
static inline vf vf_sqrt(vf x) {
#if defined(__SSE2__)
    NIB_EACH x.v[i] = (nib_f32x4)_mm_sqrt_ps((__m128)x.v[i]);
#else
    NIB_EACH for (int k = 0; k < 4; k++) x.v[i][k] = sqrtf(x.v[i][k]);
#endif
    return x;
}
static inline vf vf_round(vf x) {
    return vf_sub(vf_add(x, vf_splat(0x1.8p23f)), vf_splat(0x1.8p23f));
}
static inline vm vf_lt(vf x, vf y) {
    vm m;
    NIB_EACH m.v[i] = x.v[i] < y.v[i];
    return m;
}
static inline vm vf_eq(vf x, vf y) {
    vm m;
    NIB_EACH m.v[i] = x.v[i] == y.v[i];
    return m;
}
static inline vm vi_eq(vi x, vi y) {
    vm m;
    NIB_EACH m.v[i] = x.v[i] == y.v[i];
    return m;
}
static inline vm vi_lt(vi x, vi y) {
    vm m;
    NIB_EACH m.v[i] = x.v[i] < y.v[i];
    return m;
}
static inline vm vm_and(vm x, vm y) {
    NIB_EACH x.v[i] &= y.v[i];
    return x;
}
static inline vm vm_or(vm x, vm y) {
    NIB_EACH x.v[i] |= y.v[i];
    return x;
}
static inline vm vm_except(vm x, vm y) {
    NIB_EACH x.v[i] &= ~y.v[i];
    return x;
}
static inline bool vm_any(vm x) {
    const nib_i32x4 all = (x.v[0] | x.v[1]) | (x.v[2] | x.v[3]);
    return (all[0] | all[1] | all[2] | all[3]) != 0;
}
static inline vf vf_choose(vm m, vf x, vf y) {
    NIB_EACH x.v[i] = vf_pick(m.v[i], x.v[i], y.v[i]);
    return x;
}
static inline vi vi_choose(vm m, vi x, vi y) {
    NIB_EACH x.v[i] = (m.v[i] & x.v[i]) | (~m.v[i] & y.v[i]);
    return x;
}
static inline vi vi_and(vi x, vi y) {
    NIB_EACH x.v[i] &= y.v[i];
    return x;
}
static inline vi vi_or(vi x, vi y) {
    NIB_EACH x.v[i] |= y.v[i];
    return x;
}
static inline vi vi_max(vi x, vi y) {
    vm m;
    NIB_EACH m.v[i] = x.v[i] > y.v[i];
    return vi_choose(m, x, y);
}
static inline vi vi_min(vi x, vi y) {
    vm m;
    NIB_EACH m.v[i] = x.v[i] < y.v[i];
    return vi_choose(m, x, y);
}
static inline uint32_t vm_bits(vm x) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++) bits |= ((uint32_t)x.v[i / 4][i % 4] & 1) << i;
    return bits;
}
static inline vf vf_twice(const float *p) {
    vf x;
    memcpy(&x, p, 32);
    memcpy((char *)&x + 32, p, 32);
    return x;
}
static inline vf vf_lookup16(vf table, vi index) {
    float from[16], lanes[16];
    vf_store(from, table);
    for (int i = 0; i < 16; i++) lanes[i] = from[index.v[i / 4][i % 4] & 15];
    return vf_load(lanes);
}
static inline vf vf_lookup8(vf table, vi index) {
    return vf_lookup16(table, index);
}
static inline vi vi_from_u16(const uint16_t *p) {
    int32_t lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = p[i];
    return vi_load(lanes);
}
static inline vi vf_to_i(vf x) {
    vi y;
    NIB_EACH y.v[i] = __builtin_convertvector(x.v[i], nib_i32x4);
    return y;
}
static inline void vi_store_bytes(void *p, vi x) {
    uint8_t bytes[16];
    for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)x.v[i / 4][i % 4];
    memcpy(p, bytes, sizeof bytes);
}
static inline void vf_transpose(vf to[16], const float *from, size_t stride) {
    float columns[16][16];
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < 16; j++) columns[j][i] = from[i * stride + j];
    for (size_t j = 0; j < 16; j++) to[j] = vf_load(columns[j]);
}
static inline vi vi_dp4(vi acc, vi u, vi s) {
    uint8_t left[64];
    int8_t right[64];
    int32_t sums[16];
    memcpy(left, &u, sizeof left);
    memcpy(right, &s, sizeof right);
    memcpy(sums, &acc, sizeof sums);
    for (int i = 0; i < 16; i++)
        sums[i] += left[4 * i] * right[4 * i] + left[4 * i + 1] * right[4 * i + 1] +
                   left[4 * i + 2] * right[4 * i + 2] + left[4 * i + 3] * right[4 * i + 3];
    return vi_load(sums);
}
static inline vi vi_xor(vi x, vi y) {
    NIB_EACH x.v[i] ^= y.v[i];
    return x;
}
static inline vi vi_shr(vi x, int n) {
    NIB_EACH x.v[i] = (nib_i32x4)((nib_u32x4)x.v[i] >> n);
    return x;
}
static inline vi vi_mul(vi x, vi y) {
    NIB_EACH x.v[i] = (nib_i32x4)((nib_u32x4)x.v[i] * (nib_u32x4)y.v[i]);
    return x;
}
static inline vi vi_shl_by(vi x, vi n) {
    NIB_EACH x.v[i] = (nib_i32x4)(((nib_u32x4)x.v[i] << (n.v[i] & 31)) & (nib_u32x4)(n.v[i] < 32));
    return x;
}
static inline vi vi_dp2(vi acc, vi x, vi y) {
#if defined(__SSE2__)
    NIB_EACH acc.v[i] += (nib_i32x4)_mm_madd_epi16((__m128i)x.v[i], (__m128i)y.v[i]);
#else
    NIB_EACH {
        const nib_i32x4 low_x = (nib_i32x4)((nib_u32x4)x.v[i] << 16) >> 16;
        const nib_i32x4 low_y = (nib_i32x4)((nib_u32x4)y.v[i] << 16) >> 16;
        acc.v[i] += low_x * low_y + (x.v[i] >> 16) * (y.v[i] >> 16);
    }
#endif
    return acc;
}
static inline vi vi_look_up(const void *table, vi x) {
    const uint8_t *values = table;
    uint8_t bytes[64];
    memcpy(bytes, &x, sizeof bytes);
    for (int i = 0; i < 64; i++) bytes[i] = values[bytes[i]];
    return vi_load(bytes);
}
static inline vf vf_from_low_f16(vi x) {
    int32_t words[16];
    uint16_t halves[16];
    vi_store(words, x);
    for (int i = 0; i < 16; i++) halves[i] = (uint16_t)(words[i] & 0xffff);
    return vf_from_f16(halves);
}
static inline void vi_turn(vi out[4], const void *src, size_t stride) {
    int32_t words[4][16];
    for (int r = 0; r < 16; r++) {
        int32_t row[4];
        memcpy(row, (const char *)src + (size_t)r * stride, sizeof row);
        for (int j = 0; j < 4; j++) words[j][r] = row[j];
    }
    for (int j = 0; j < 4; j++) out[j] = vi_load(words[j]);
}
static inline vf vf_spread(const float *table, int part, int n_lanes) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = table[(16 * part + i) / n_lanes];
    return vf_load(lanes);
}

static inline vd vd_splat(double x) {
    vd y;
    for (int i = 0; i < 16; i++) y.v[i] = x;
    return y;
}
static inline vd vd_of(vf x) {
    float lanes[16];
    vd y;
    vf_store(lanes, x);
    for (int i = 0; i < 16; i++) y.v[i] = lanes[i];
    return y;
}
static inline vd vd_add(vd x, vd y) {
    for (int i = 0; i < 16; i++) x.v[i] += y.v[i];
    return x;
}
static inline vd vd_sub(vd x, vd y) {
    for (int i = 0; i < 16; i++) x.v[i] -= y.v[i];
    return x;
}
static inline vd vd_mul(vd x, vd y) {
    for (int i = 0; i < 16; i++) x.v[i] *= y.v[i];
    return x;
}
static inline vd vd_mul_nonzero(vd x, vd y) {
    for (int i = 0; i < 16; i++) x.v[i] = x.v[i] != 0 ? x.v[i] * y.v[i] : 0;
    return x;
}
static inline void vd_store(double *p, vd x) {
    memcpy(p, &x, sizeof x);
}

#endif

/* ---- the same text for every level ------------------------------------------------------------------------------ */

/* Four bytes at p in every lane. */
static inline vi vi_splat_4(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vi_splat(four);
}

static inline vf vf_zero(void) {
    return vf_splat(0);
}

static inline vf vf_negate(vf x) {
    return vf_mul(x, vf_splat(-1));
}
static inline vf vf_abs(vf x) {
    return vf_bits(vi_and(vi_bits(x), vi_splat(0x7fffffff)));
}

/* Horizontal sums and maxima: the upper half of the lanes onto the lower, again and again; always in this order. */
static inline float vf_sum(vf x) {
    const __typeof__(vf_quarter_sum(x)) y = vf_quarter_sum(x);
    return (y[0] + y[2]) + (y[1] + y[3]);
}
static inline float vf_largest(vf x) {
    const __typeof__(vf_quarter_max(x)) y = vf_quarter_max(x);
    const float even = y[0] > y[2] ? y[0] : y[2], odd = y[1] > y[3] ? y[1] : y[3];
    return even > odd ? even : odd;
}
static inline float vf_least(vf x) {
    const __typeof__(vf_quarter_min(x)) y = vf_quarter_min(x);
    const float even = y[0] < y[2] ? y[0] : y[2], odd = y[1] < y[3] ? y[1] : y[3];
    return even < odd ? even : odd;
}
static inline double vd_sum(vd x) {
    double lanes[16];
    vd_store(lanes, x);
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
    return lanes[0];
}

/* e^x within 2 units in the last place; 0 below -104, infinity above 88.73, NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by the minimax polynomial of Cephes' expf; 2^n in two factors, since n reaches
 * from subnormal results to 128. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
static inline vf vf_exp(vf x) {
    const vf magic = vf_splat(0x1.8p23f);
    x = vf_max(vf_splat(-104.0f), x);
    x = vf_min(vf_splat(89.0f), x);
    const vf shifted = vf_fma(x, vf_splat(0x1.715476p0f), magic), n = vf_sub(shifted, magic);
    vf r = vf_fma(n, vf_splat(-0.693359375f), x);
    r = vf_fma(n, vf_splat(2.12194440e-4f), r);
    vf p = vf_splat(1.9875691500e-4f);
    p = vf_fma(p, r, vf_splat(1.3981999507e-3f));
    p = vf_fma(p, r, vf_splat(8.3334519073e-3f));
    p = vf_fma(p, r, vf_splat(4.1665795894e-2f));
    p = vf_fma(p, r, vf_splat(1.6666665459e-1f));
    p = vf_fma(p, r, vf_splat(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_splat(1));
    const vi whole = vi_sub(vi_bits(shifted), vi_bits(magic)), half = vi_sar(whole, 1), rest = vi_sub(whole, half);
    const vf scale = vf_bits(vi_shl(vi_add(half, vi_splat(127)), 23));
    return vf_mul(vf_mul(p, scale), vf_bits(vi_shl(vi_add(rest, vi_splat(127)), 23)));
}

#endif
