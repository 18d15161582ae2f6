/* What the compiled levels ask of the processor, and which level is in use. */
#ifndef NIB_CPU_CPU_H
#define NIB_CPU_CPU_H

#include "nibble/cpu.h"

/* What a row of levels.def may ask for; the system's saving of the wide registers is part of it. */
enum {
    NIB_CPU_AVX2 = 1,   /* x86-64-v3: AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE */
    NIB_CPU_AVX512 = 2, /* x86-64-v4: AVX-512 F, BW, CD, DQ, VL */
    NIB_CPU_VNNI = 4,   /* AVX-512 VNNI and VBMI */
    NIB_CPU_BF16 = 8,   /* AVX-512 BF16 */
};

/* Number of levels compiled in. */
#define LEVEL(name, needs) +1
enum {
    NIB_CPU_N_LEVELS = 0
#include "cpu/levels.def"
};
#undef LEVEL

/* Cores that others kept busy on average since begin; 0 where the system does not say. */
typedef struct nib_cpu_busy {
    double all, own, began;
} nib_cpu_busy;
void nib_cpu_busy_begin(nib_cpu_busy *busy);
double nib_cpu_busy_others(const nib_cpu_busy *busy);

/* Index into levels.def of the level in use: tables with one entry a level are indexed with it. Thread-safe. */
unsigned nib_cpu_level_index(void);

#endif
