/* The processor, and which of the compiled instruction-set levels is in use.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_CPU_H
#define NIBBLE_CPU_H

#include "nibble/json.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Levels compiled into this library, lowest first; the first is "portable". NULL past the last. */
NIB_API const char *nib_cpu_level_name(unsigned index);
/* Can this processor run the level? */
NIB_API bool nib_cpu_level_runs(unsigned index);

/* Name of the level in use: the highest that runs here, or the one that was forced. */
NIB_API const char *nib_cpu_level(void);

/* Forces a level for the whole process; call before any other work and from one thread. NIB_ERR_USAGE with the list of
 * levels if unknown, NIB_ERR_UNSUPPORTED if this processor cannot run it. The environment variable NIBBLE_CPU does the
 * same at first use; a value that cannot be used there is ignored by the library (the command line refuses it). */
NIB_API nib_status nib_cpu_force_level(const char *name, nib_error *error);

/* Marketing name of the processor; "unknown" if it has none. */
NIB_API const char *nib_cpu_name(void);
/* Physical cores this process may use: affinity and the container's quota respected; at least 1. */
NIB_API unsigned nib_cpu_cores(void);

/* Read bandwidth of main memory with the pool's threads, bytes per second; measured for about `seconds`.
 * The best of several passes over a buffer larger than the caches. 0 without memory. */
NIB_API double nib_cpu_measure_read_bandwidth(nib_pool *pool, double seconds);

/* What no program can exceed here: bytes read from main memory, and multiply-adds of the processor's best level (bytes into
 * 32-bit integers, pairs of bfloat16, floats), all per second, with the pool's threads. Measured for about `seconds`. */
typedef struct nib_cpu_ceilings {
    double read_bytes_per_s, int8_macs_per_s, bf16_macs_per_s, f32_macs_per_s;
} nib_cpu_ceilings;
NIB_API void nib_cpu_measure_ceilings(nib_pool *pool, double seconds, nib_cpu_ceilings *out);
/* As members of the open object. */
NIB_API void nib_cpu_write_ceilings(const nib_cpu_ceilings *ceilings, nib_json *json);

#ifdef __cplusplus
}
#endif
#endif
