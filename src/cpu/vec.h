/* Vectors of 16 lanes, the same on every level: one zmm, two ymm, or four 16-byte vectors (of NEON, or of the
 * compiler). Kernels written with them add in the same order everywhere; what may differ between levels is one rounding
 * per multiply-add where the processor has no fused one.
 *
 *     vf 16 floats, vi 16 int32 (or 64 bytes), vd 16 doubles (for sums that must not lose digits), vm 16 truth values
 *
 * Loads and stores take any alignment. What each function does is said in vec_avx512.h. Included by files that are compiled
 * once per level. */
#ifndef NIB_CPU_VEC_H
#define NIB_CPU_VEC_H

#include "base/half.h"
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Loops with constant counts that must become straight code, so that vectors stay in registers. Sanitizers leave them as
 * loops: speed is nothing there, and the compiler would take minutes. */
#if defined(NIB_SANITIZED)
#define NIB_UNROLL
#else
#define NIB_UNROLL _Pragma("GCC unroll 16")
#endif

#define NIB_LANES 16

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include "cpu/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "cpu/vec_avx2.h"
#elif defined(NIB_VEC_NEON)
#include "cpu/vec_neon.h"
#else
#include "cpu/vec_portable.h"
#endif

/* Where every register is taken: the compiler would load and compute ahead, or put sums off that are not needed yet. */
#if defined(NIB_VEC_512)
#define NIB_PIN(x) __asm__ volatile("" : "+v"(x) : : "memory")
#else
#define NIB_PIN(x)
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

/* e^r of r = x - n ln 2, |r| <= ln 2 / 2, by the minimax polynomial of Cephes' expf. */
static inline vf vf_exp_of_rest(vf x, vf n) {
    vf r = vf_fma(n, vf_splat(-0.693359375f), x);
    r = vf_fma(n, vf_splat(2.12194440e-4f), r);
    vf p = vf_splat(1.9875691500e-4f);
    p = vf_fma(p, r, vf_splat(1.3981999507e-3f));
    p = vf_fma(p, r, vf_splat(8.3334519073e-3f));
    p = vf_fma(p, r, vf_splat(4.1665795894e-2f));
    p = vf_fma(p, r, vf_splat(1.6666665459e-1f));
    p = vf_fma(p, r, vf_splat(5.0000001201e-1f));
    return vf_add(vf_fma(p, vf_mul(r, r), r), vf_splat(1));
}

/* e^x within 2 units in the last place; 0 below -104, infinity above 88.73, NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by the minimax polynomial of Cephes' expf; 2^n in two factors, since n reaches
 * from subnormal results to 128. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
static inline vf vf_exp(vf x) {
    const vf magic = vf_splat(0x1.8p23f);
    x = vf_max(vf_splat(-104.0f), x);
    x = vf_min(vf_splat(89.0f), x);
    const vf shifted = vf_fma(x, vf_splat(0x1.715476p0f), magic), n = vf_sub(shifted, magic);
    const vf p = vf_exp_of_rest(x, n);
    const vi whole = vi_sub(vi_bits(shifted), vi_bits(magic)), half = vi_sar(whole, 1), rest = vi_sub(whole, half);
    const vf scale = vf_bits(vi_shl(vi_add(half, vi_splat(127)), 23));
    return vf_mul(vf_mul(p, scale), vf_bits(vi_shl(vi_add(rest, vi_splat(127)), 23)));
}

#endif
