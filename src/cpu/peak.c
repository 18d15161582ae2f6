/* Ceilings of the machine: what its memory delivers and what its vector units multiply, with all threads at once. */
#include "cpu/peak.h"
#include "base/memory.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"

enum { LOOPS_PER_CLAIM = 4, CLAIMS = 16 };

typedef double (*peak_loop)(uint32_t seed, float sink[16]);

typedef struct peak_job {
    peak_loop loop;
    double per_loop; /* multiply-adds; every worker writes the same */
} peak_job;

/* The best level of the processor, whatever level is in use: a ceiling belongs to the machine. */
static const nib_peak_loops *best_loops(void) {
#define LEVEL(name, needs) &nib_peak_loops_##name,
    static const nib_peak_loops *const levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    unsigned best = 0;
    for (unsigned i = 0; i < NIB_CPU_N_LEVELS; i++)
        if (nib_cpu_level_runs(i)) best = i;
    return levels[best];
}

static void run_loops(void *arg, size_t begin, size_t end, unsigned worker) {
    const peak_job *job = arg;
    float sink[16];
    (void)worker;
    for (size_t i = begin; i < end; i++) job->loop((uint32_t)i, sink);
}

static double measure_peak(nib_pool *pool, peak_loop loop, double seconds) {
    float sink[16];
    peak_job job = {.loop = loop, .per_loop = loop(1, sink)};
    const size_t n = (size_t)CLAIMS * LOOPS_PER_CLAIM * nib_pool_size(pool);
    const double began = nib_now();
    double best = 0, now = began;
    do {
        const double before = now;
        nib_par_for(pool, n, LOOPS_PER_CLAIM, run_loops, &job);
        now = nib_now();
        const double rate = (double)n * job.per_loop / (now - before);
        if (rate > best) best = rate;
    } while (now - began < seconds);
    return best;
}

void nib_cpu_measure_ceilings(nib_pool *pool, double seconds, nib_cpu_ceilings *out) {
    const nib_peak_loops *loops = best_loops();
    out->read_bytes_per_s = nib_cpu_measure_read_bandwidth(pool, seconds / 2);
    out->int8_macs_per_s = measure_peak(pool, loops->ints, seconds / 6);
    out->bf16_macs_per_s = measure_peak(pool, loops->bf16, seconds / 6);
    out->f32_macs_per_s = measure_peak(pool, loops->floats, seconds / 6);
}
