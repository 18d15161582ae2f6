/* vec.h for ARM: 16 lanes in four registers of NEON. What is said of each function stands in vec_avx512.h. Lanes that
 * compare, pick and fold do it as the other levels do, also with NaN; byte products use the dot-product instructions of
 * the level. */
#ifndef NIB_CPU_VEC_NEON_H
#define NIB_CPU_VEC_NEON_H

#include <arm_neon.h>

#if defined(__ARM_FEATURE_DOTPROD)
#define NIB_VEC_DP4 1 /* vi_dp4 is cheaper than two of vi_dp2 */
#endif

typedef struct vf {
    float32x4_t v[4];
} vf;
typedef struct vi {
    int32x4_t v[4];
} vi;
typedef struct vd {
    float64x2_t v[8];
} vd;
typedef struct vm {
    uint32x4_t v[4];
} vm;

/* f(x) on all quarters, with one, two or three operands. */
#define NIB_ALL(type, f, x) ((type){{f((x).v[0]), f((x).v[1]), f((x).v[2]), f((x).v[3])}})
#define NIB_ALL2(type, f, x, y) \
    ((type){{f((x).v[0], (y).v[0]), f((x).v[1], (y).v[1]), f((x).v[2], (y).v[2]), f((x).v[3], (y).v[3])}})
#define NIB_ALL3(type, f, x, y, z)                                                                              \
    ((type){{f((x).v[0], (y).v[0], (z).v[0]), f((x).v[1], (y).v[1], (z).v[1]), f((x).v[2], (y).v[2], (z).v[2]), \
             f((x).v[3], (y).v[3], (z).v[3])}})

static inline vf vf_splat(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return (vf){{v, v, v, v}};
}
static inline vf vf_load(const float *p) {
    return (vf){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
static inline void vf_store(float *p, vf x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
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
    return NIB_ALL2(vf, vaddq_f32, x, y);
}
static inline vf vf_sub(vf x, vf y) {
    return NIB_ALL2(vf, vsubq_f32, x, y);
}
static inline vf vf_mul(vf x, vf y) {
    return NIB_ALL2(vf, vmulq_f32, x, y);
}
static inline vf vf_div(vf x, vf y) {
    return NIB_ALL2(vf, vdivq_f32, x, y);
}
static inline vf vf_sqrt(vf x) {
    return NIB_ALL(vf, vsqrtq_f32, x);
}
static inline vf vf_fma(vf x, vf y, vf z) {
    return NIB_ALL3(vf, vfmaq_f32, z, x, y);
}
static inline vf vf_round(vf x) {
    return NIB_ALL(vf, vrndnq_f32, x);
}
static inline float32x4_t vf_larger(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(x, y), x, y);
}
static inline float32x4_t vf_smaller(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcltq_f32(x, y), x, y);
}
static inline vf vf_max(vf x, vf y) {
    return NIB_ALL2(vf, vf_larger, x, y);
}
static inline vf vf_min(vf x, vf y) {
    return NIB_ALL2(vf, vf_smaller, x, y);
}
static inline float32x4_t vf_quarter_sum(vf x) {
    return vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
}
static inline float32x4_t vf_quarter_max(vf x) {
    return vf_larger(vf_larger(x.v[0], x.v[2]), vf_larger(x.v[1], x.v[3]));
}
static inline float32x4_t vf_quarter_min(vf x) {
    return vf_smaller(vf_smaller(x.v[0], x.v[2]), vf_smaller(x.v[1], x.v[3]));
}
static inline vf vf_from_f16(const uint16_t *p) {
    vf x;
    for (int i = 0; i < 4; i++) x.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return x;
}
static inline vf vf_from_bf16(const uint16_t *p) {
    vf x;
    for (int i = 0; i < 4; i++) x.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    return x;
}
static inline void vf_to_f16(uint16_t *p, vf x) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}

static inline vi vi_splat(int32_t x) {
    const int32x4_t v = vdupq_n_s32(x);
    return (vi){{v, v, v, v}};
}
static inline vi vi_load(const void *p) {
    vi x;
    for (int i = 0; i < 4; i++) x.v[i] = vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)p + 16 * i));
    return x;
}
static inline void vi_store(void *p, vi x) {
    for (int i = 0; i < 4; i++) vst1q_u8((uint8_t *)p + 16 * i, vreinterpretq_u8_s32(x.v[i]));
}
static inline vi vi_add(vi x, vi y) {
    return NIB_ALL2(vi, vaddq_s32, x, y);
}
static inline vi vi_sub(vi x, vi y) {
    return NIB_ALL2(vi, vsubq_s32, x, y);
}
static inline vf vi_to_f(vi x) {
    return NIB_ALL(vf, vcvtq_f32_s32, x);
}
static inline vi vi_bits(vf x) {
    return NIB_ALL(vi, vreinterpretq_s32_f32, x);
}
static inline vf vf_bits(vi x) {
    return NIB_ALL(vf, vreinterpretq_f32_s32, x);
}
static inline vi vi_shl(vi x, int n) {
    for (int i = 0; i < 4; i++) x.v[i] = vshlq_s32(x.v[i], vdupq_n_s32(n));
    return x;
}
static inline vi vi_sar(vi x, int n) {
    return vi_shl(x, -n);
}
static inline vi vi_shr(vi x, int n) {
    for (int i = 0; i < 4; i++)
        x.v[i] = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x.v[i]), vdupq_n_s32(-n)));
    return x;
}
static inline vi vi_mul(vi x, vi y) {
    return NIB_ALL2(vi, vmulq_s32, x, y);
}
/* The shift looks at the low byte alone, and shifts by 32 to 127 give 0. */
static inline vi vi_shl_by(vi x, vi n) {
    return NIB_ALL2(vi, vshlq_s32, x, n);
}
static inline int32x4_t vi_quarter_dp2(int32x4_t acc, int32x4_t x, int32x4_t y) {
    const int16x8_t left = vreinterpretq_s16_s32(x), right = vreinterpretq_s16_s32(y);
    const int32x4_t low = vmull_s16(vget_low_s16(left), vget_low_s16(right)), high = vmull_high_s16(left, right);
    return vaddq_s32(acc, vpaddq_s32(low, high));
}
static inline vi vi_dp2(vi acc, vi x, vi y) {
    return NIB_ALL3(vi, vi_quarter_dp2, acc, x, y);
}
static inline vi vi_look_up(const void *table, vi x) {
    const uint8x16_t values = vld1q_u8(table);
    for (int i = 0; i < 4; i++) x.v[i] = vreinterpretq_s32_u8(vqtbl1q_u8(values, vreinterpretq_u8_s32(x.v[i])));
    return x;
}
static inline vf vf_from_low_f16(vi x) {
    vf y;
    for (int i = 0; i < 4; i++) y.v[i] = vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(x.v[i])));
    return y;
}
static inline void vi_turn(vi out[4], const void *src, size_t stride) {
    for (int i = 0; i < 4; i++) {
        const uint8_t *p = (const uint8_t *)src + (size_t)(4 * i) * stride;
        const int32x4_t r0 = vreinterpretq_s32_u8(vld1q_u8(p)), r1 = vreinterpretq_s32_u8(vld1q_u8(p + stride));
        const int32x4_t r2 = vreinterpretq_s32_u8(vld1q_u8(p + 2 * stride));
        const int32x4_t r3 = vreinterpretq_s32_u8(vld1q_u8(p + 3 * stride));
        const int32x4x2_t a = vtrnq_s32(r0, r1), b = vtrnq_s32(r2, r3);
        out[0].v[i] = vcombine_s32(vget_low_s32(a.val[0]), vget_low_s32(b.val[0]));
        out[1].v[i] = vcombine_s32(vget_low_s32(a.val[1]), vget_low_s32(b.val[1]));
        out[2].v[i] = vcombine_s32(vget_high_s32(a.val[0]), vget_high_s32(b.val[0]));
        out[3].v[i] = vcombine_s32(vget_high_s32(a.val[1]), vget_high_s32(b.val[1]));
    }
}
/* Pairs of 16-bit integers: kernel/pairs.h says what these do. */
static inline vi vi_pair(vi low, vi high) {
    vi x;
    for (int i = 0; i < 4; i++) x.v[i] = vsliq_n_s32(low.v[i], high.v[i], 16);
    return x;
}
static inline vi vi_round(vf x) {
    return NIB_ALL(vi, vcvtnq_s32_f32, x);
}
static inline void vi_to_i16(void *p, vi x) {
    for (int i = 0; i < 4; i++) vst1_u8((uint8_t *)p + 8 * i, vreinterpret_u8_s16(vmovn_s32(x.v[i])));
}
static inline vf vf_from_i8(const int8_t *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return (vf){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
static inline vm vf_lt(vf x, vf y) {
    return NIB_ALL2(vm, vcltq_f32, x, y);
}
static inline vm vf_eq(vf x, vf y) {
    return NIB_ALL2(vm, vceqq_f32, x, y);
}
static inline vm vi_lt(vi x, vi y) {
    return NIB_ALL2(vm, vcltq_s32, x, y);
}
static inline vm vi_eq(vi x, vi y) {
    return NIB_ALL2(vm, vceqq_s32, x, y);
}
static inline vm vm_and(vm x, vm y) {
    return NIB_ALL2(vm, vandq_u32, x, y);
}
static inline vm vm_or(vm x, vm y) {
    return NIB_ALL2(vm, vorrq_u32, x, y);
}
static inline vm vm_except(vm x, vm y) {
    return NIB_ALL2(vm, vbicq_u32, x, y);
}
static inline bool vm_any(vm x) {
    return vmaxvq_u32(vorrq_u32(vorrq_u32(x.v[0], x.v[1]), vorrq_u32(x.v[2], x.v[3]))) != 0;
}
static inline vf vf_choose(vm m, vf x, vf y) {
    return NIB_ALL3(vf, vbslq_f32, m, x, y);
}
static inline vi vi_choose(vm m, vi x, vi y) {
    return NIB_ALL3(vi, vbslq_s32, m, x, y);
}
static inline vi vi_and(vi x, vi y) {
    return NIB_ALL2(vi, vandq_s32, x, y);
}
static inline vi vi_or(vi x, vi y) {
    return NIB_ALL2(vi, vorrq_s32, x, y);
}
static inline vi vi_xor(vi x, vi y) {
    return NIB_ALL2(vi, veorq_s32, x, y);
}
static inline vi vi_max(vi x, vi y) {
    return NIB_ALL2(vi, vmaxq_s32, x, y);
}
static inline vi vi_min(vi x, vi y) {
    return NIB_ALL2(vi, vminq_s32, x, y);
}
static inline uint32_t vm_bits(vm x) {
    static const uint32_t weights[4] = {1, 2, 4, 8};
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) bits |= vaddvq_u32(vandq_u32(x.v[i], vld1q_u32(weights))) << 4 * i;
    return bits;
}
static inline vf vf_twice(const float *p) {
    return (vf){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p), vld1q_f32(p + 4)}};
}
/* The table is 64 bytes; a lane's index becomes the places of its four. */
static inline float32x4_t vf_quarter_lookup16(vf table, int32x4_t index) {
    const uint8x16x4_t bytes = {{vreinterpretq_u8_f32(table.v[0]), vreinterpretq_u8_f32(table.v[1]),
                                 vreinterpretq_u8_f32(table.v[2]), vreinterpretq_u8_f32(table.v[3])}};
    const uint32x4_t first = vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(15));
    const uint32x4_t places = vmlaq_u32(vdupq_n_u32(0x03020100), first, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(places)));
}
static inline vf vf_lookup16(vf table, vi index) {
    vf x;
    for (int i = 0; i < 4; i++) x.v[i] = vf_quarter_lookup16(table, index.v[i]);
    return x;
}
static inline vf vf_lookup8(vf table, vi index) {
    return vf_lookup16(table, index);
}
static inline vi vi_from_u16(const uint16_t *p) {
    vi x;
    for (int i = 0; i < 4; i++) x.v[i] = vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p + 4 * i)));
    return x;
}
static inline vi vi_from_u8(const uint8_t *p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    return (vi){
        {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
         vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
static inline vi vi_from_i8(const int8_t *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (vi){{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                 vmovl_s16(vget_high_s16(high))}};
}
static inline vi vf_to_i(vf x) {
    return NIB_ALL(vi, vcvtq_s32_f32, x);
}
static inline void vi_store_bytes(void *p, vi x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3]));
    vst1q_u8(p, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high))));
}
/* Four rows of four at a time: a load that takes every fourth float apart would want them behind each other. */
static inline void vf_transpose(vf to[16], const float *from, size_t stride) {
    for (size_t row = 0; row < 4; row++)
        for (size_t column = 0; column < 4; column++) {
            const float *p = from + 4 * row * stride + 4 * column;
            const float32x4x2_t a = vtrnq_f32(vld1q_f32(p), vld1q_f32(p + stride));
            const float32x4x2_t b = vtrnq_f32(vld1q_f32(p + 2 * stride), vld1q_f32(p + 3 * stride));
            to[4 * column].v[row] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
            to[4 * column + 1].v[row] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
            to[4 * column + 2].v[row] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
            to[4 * column + 3].v[row] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
        }
}
/* Dot products of signed with signed bytes take the unsigned ones less 128, and what that took away is added again. */
static inline int32x4_t vi_quarter_dp4(int32x4_t acc, int32x4_t u, int32x4_t s) {
    const uint8x16_t left = vreinterpretq_u8_s32(u);
    const int8x16_t right = vreinterpretq_s8_s32(s);
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return vusdotq_s32(acc, left, right);
#elif defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t shifted = vreinterpretq_s8_u8(veorq_u8(left, vdupq_n_u8(128)));
    const int32x4_t taken = vdotq_s32(vdupq_n_s32(0), right, vdupq_n_s8(-128));
    return vsubq_s32(vdotq_s32(acc, shifted, right), taken);
#else
    const int16x8_t low = vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(left))), vmovl_s8(vget_low_s8(right)));
    const int16x8_t high = vmulq_s16(vreinterpretq_s16_u16(vmovl_high_u8(left)), vmovl_high_s8(right));
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
static inline vi vi_dp4(vi acc, vi u, vi s) {
    return NIB_ALL3(vi, vi_quarter_dp4, acc, u, s);
}
static inline vf vf_spread(const float *table, int part, int n_lanes) {
    const float *t = table + part * 16 / n_lanes;
    vf x;
    for (int i = 0; i < 4; i++) x.v[i] = vdupq_n_f32(t[4 * i / n_lanes]);
    return x;
}

static inline vd vd_splat(double x) {
    vd y;
    for (int i = 0; i < 8; i++) y.v[i] = vdupq_n_f64(x);
    return y;
}
static inline vd vd_of(vf x) {
    vd y;
    for (int i = 0; i < 4; i++) {
        y.v[2 * i] = vcvt_f64_f32(vget_low_f32(x.v[i]));
        y.v[2 * i + 1] = vcvt_high_f64_f32(x.v[i]);
    }
    return y;
}
static inline vd vd_add(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.v[i] = vaddq_f64(x.v[i], y.v[i]);
    return x;
}
static inline vd vd_mul(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.v[i] = vmulq_f64(x.v[i], y.v[i]);
    return x;
}
static inline void vd_store(double *p, vd x) {
    for (int i = 0; i < 8; i++) vst1q_f64(p + 2 * i, x.v[i]);
}

#endif
