/* vec.h for AVX2: 16 lanes in two registers. What is said of each function stands in vec_avx512.h. */
#ifndef NIB_CPU_VEC_AVX2_H
#define NIB_CPU_VEC_AVX2_H

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
static inline vi vi_from_u8(const uint8_t *p) {
    return (vi){_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p + 8)))};
}
static inline vi vi_from_i8(const int8_t *p) {
    return (vi){_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p + 8)))};
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
static inline vd vd_mul(vd x, vd y) {
    for (int i = 0; i < 4; i++) x.v[i] = _mm256_mul_pd(x.v[i], y.v[i]);
    return x;
}
static inline void vd_store(double *p, vd x) {
    for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, x.v[i]);
}

#endif
