/* vec.h for any processor: 16 lanes in four of the compiler's vectors of 16 bytes. What is said of each function stands in
 * vec_avx512.h. */
#ifndef NIB_CPU_VEC_PORTABLE_H
#define NIB_CPU_VEC_PORTABLE_H

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
static inline vi vi_from_u8(const uint8_t *p) {
    int32_t lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = p[i];
    return vi_load(lanes);
}
static inline vi vi_from_i8(const int8_t *p) {
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
static inline vd vd_mul(vd x, vd y) {
    for (int i = 0; i < 16; i++) x.v[i] *= y.v[i];
    return x;
}
static inline void vd_store(double *p, vd x) {
    memcpy(p, &x, sizeof x);
}

#endif
