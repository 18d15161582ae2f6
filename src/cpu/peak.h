/* Loops that do nothing but multiply and add, one table per level (level_peak.c). */
#ifndef NIB_CPU_PEAK_H
#define NIB_CPU_PEAK_H

#include <stdint.h>

enum { NIB_PEAK_ROUNDS = 2000 };

/* Each runs NIB_PEAK_ROUNDS rounds, writes 16 floats so that nothing is left out, and returns its multiply-adds. */
typedef struct nib_peak_loops {
    double (*ints)(uint32_t seed, float sink[16]);   /* unsigned by signed bytes into 32 bits */
    double (*bf16)(uint32_t seed, float sink[16]);   /* without such an instruction: as floats */
    double (*floats)(uint32_t seed, float sink[16]); /* 32 bits */
} nib_peak_loops;

#define LEVEL(name, needs) extern const nib_peak_loops nib_peak_loops_##name;
#include "cpu/levels.def"
#undef LEVEL

#endif
