/* Which instruction-set levels the processor can run, and the one in use. The choice is made once, at first use. */
#include "base/error.h"
#include "cpu/cpu.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

typedef struct level {
    const char *name;
    unsigned needs;
} level;

#define LEVEL(name, needs) {#name, needs},
static const level levels[] = {
#include "cpu/levels.def"
};
#undef LEVEL

/* 0: not chosen yet; else index + 1. */
static atomic_uint chosen;

#if defined(__x86_64__)
static bool has(unsigned bits, unsigned wanted) {
    return (bits & wanted) == wanted;
}

/* Register state the system saves on a context switch: without it wide registers must not be touched. */
static unsigned saved_state(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned abilities(void) {
    unsigned a, b, c, d, leaf1_c = 0, ext_c = 0, leaf7_b = 0, leaf7_c = 0, leaf71_a = 0, found = 0;
    if (!__get_cpuid(1, &a, &b, &leaf1_c, &d) || !has(leaf1_c, bit_OSXSAVE | bit_AVX)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &leaf7_b, &leaf7_c, &d)) return 0;
    if (a >= 1) __get_cpuid_count(7, 1, &leaf71_a, &b, &c, &d);
    __get_cpuid(0x80000001, &a, &b, &ext_c, &d);
    const unsigned state = saved_state();
    if (has(state, 0x6) && has(leaf1_c, bit_FMA | bit_F16C | bit_MOVBE) && has(ext_c, bit_LZCNT) &&
        has(leaf7_b, bit_AVX2 | bit_BMI | bit_BMI2))
        found |= NIB_CPU_AVX2;
    if (has(state, 0xe6) && has(leaf7_b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL)) {
        found |= NIB_CPU_AVX512;
        if (has(leaf7_c, bit_AVX512VNNI | bit_AVX512VBMI)) found |= NIB_CPU_VNNI;
        if (has(leaf71_a, bit_AVX512BF16)) found |= NIB_CPU_BF16;
    }
    return found;
}
#elif defined(__aarch64__) && defined(__linux__)
static unsigned abilities(void) {
    enum { DOTPROD = 1 << 20, I8MM = 1 << 13 }; /* Linux: HWCAP_ASIMDDP of AT_HWCAP, HWCAP2_I8MM of AT_HWCAP2 */
    return (getauxval(AT_HWCAP) & DOTPROD ? NIB_CPU_DOTPROD : 0) | (getauxval(AT_HWCAP2) & I8MM ? NIB_CPU_I8MM : 0);
}
#else
static unsigned abilities(void) {
    return 0;
}
#endif

static int find_level(const char *name) {
    for (int i = 0; i < NIB_CPU_N_LEVELS; i++)
        if (!strcmp(levels[i].name, name)) return i;
    return -1;
}

unsigned nib_cpu_level_index(void) {
    unsigned known = atomic_load_explicit(&chosen, memory_order_acquire);
    if (known) return known - 1;
    unsigned best = 0;
    for (unsigned i = 0; i < NIB_CPU_N_LEVELS; i++)
        if (nib_cpu_level_runs(i)) best = i;
    const char *wish = getenv("NIBBLE_CPU");
    const int wished = wish ? find_level(wish) : -1;
    if (wished >= 0 && nib_cpu_level_runs((unsigned)wished)) best = (unsigned)wished;
    /* Two threads may get here together; both find the same, and whoever stored first is believed. */
    if (!atomic_compare_exchange_strong(&chosen, &known, best + 1)) return known - 1;
    return best;
}

const char *nib_cpu_level_name(unsigned index) {
    return index < NIB_CPU_N_LEVELS ? levels[index].name : NULL;
}

bool nib_cpu_level_runs(unsigned index) {
    return index < NIB_CPU_N_LEVELS && (levels[index].needs & ~abilities()) == 0;
}

const char *nib_cpu_level(void) {
    return levels[nib_cpu_level_index()].name;
}

nib_status nib_cpu_force_level(const char *name, nib_error *error) {
    const int index = find_level(name);
    if (index < 0) {
        char list[256] = "";
        size_t used = 0;
        for (unsigned i = 0; i < NIB_CPU_N_LEVELS && used < sizeof list; i++)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", levels[i].name);
        const nib_status status = nib_fail(error, NIB_ERR_USAGE, "unknown CPU level '%s'", name);
        return nib_hint(error, status, "levels: %s", list);
    }
    if (!nib_cpu_level_runs((unsigned)index)) {
        const nib_status status =
            nib_fail(error, NIB_ERR_UNSUPPORTED, "this processor cannot run CPU level '%s'", name);
        return nib_hint(error, status, "leave the level to nibble, or choose a lower one");
    }
    atomic_store(&chosen, (unsigned)index + 1);
    return NIB_OK;
}
