/* The most multiply-adds a level can do: 12 independent chains, as many as hide the latency of every such instruction, on
 * registers alone. Compiled once per level. */
#include "cpu/at_level.h"
#include "cpu/peak.h"
#include "cpu/vec.h"

enum { CHAINS = 12, ROUNDS = NIB_PEAK_ROUNDS };
#define EACH_CHAIN _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++)

/* Keeps the compiler from computing sums ahead. */
#define STEP_ENDS  __asm__ volatile("" : : : "memory")

static double ints(uint32_t seed, float *sink) {
    vi sum[CHAINS];
    const vi u = vi_splat(0x01020304), s = vi_splat((int32_t)seed);
    EACH_CHAIN sum[i] = vi_splat(i);
    for (int n = 0; n < ROUNDS; n++) {
        EACH_CHAIN sum[i] = vi_dp4(sum[i], u, s);
        STEP_ENDS;
    }
    _Pragma("GCC unroll 12") for (int i = 1; i < CHAINS; i++) sum[0] = vi_add(sum[0], sum[i]);
    vf_store(sink, vi_to_f(sum[0]));
    return (double)ROUNDS * CHAINS * 4 * NIB_LANES;
}

static double floats(uint32_t seed, float *sink) {
    vf sum[CHAINS];
    const vf x = vf_splat(0.5f), y = vf_splat((float)seed);
    EACH_CHAIN sum[i] = vf_splat((float)i);
    for (int n = 0; n < ROUNDS; n++) {
        EACH_CHAIN sum[i] = vf_fma(x, y, sum[i]);
        STEP_ENDS;
    }
    _Pragma("GCC unroll 12") for (int i = 1; i < CHAINS; i++) sum[0] = vf_add(sum[0], sum[i]);
    vf_store(sink, sum[0]);
    return (double)ROUNDS * CHAINS * NIB_LANES;
}

#if defined(__AVX512BF16__)
static double bf16_pairs(uint32_t seed, float *sink) {
    vf sum[CHAINS];
    const __m512bh x = (__m512bh)vi_splat(0x3f003f00), y = (__m512bh)vi_splat((int32_t)seed);
    EACH_CHAIN sum[i] = vf_splat((float)i);
    for (int n = 0; n < ROUNDS; n++) {
        EACH_CHAIN sum[i] = _mm512_dpbf16_ps(sum[i], x, y);
        STEP_ENDS;
    }
    _Pragma("GCC unroll 12") for (int i = 1; i < CHAINS; i++) sum[0] = vf_add(sum[0], sum[i]);
    vf_store(sink, sum[0]);
    return (double)ROUNDS * CHAINS * 2 * NIB_LANES;
}
#else
#define bf16_pairs floats
#endif

extern const nib_peak_loops NIB_AT_LEVEL(nib_peak_loops_);
const nib_peak_loops NIB_AT_LEVEL(nib_peak_loops_) = {.ints = ints, .bf16 = bf16_pairs, .floats = floats};
