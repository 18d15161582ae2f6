/* Speed of the encoders on one thread, by its own processor time, without and with importances.
 * Usage: bench_encode [n_cols [seconds [format...]]] */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "nibble/format.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N_ROWS = 64 };

static const char *const usual[] = {"bf16", "f16",  "q8_0", "q4_0", "q4_1", "q5_0",   "q5_1",
                                    "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"};

static double seconds_of_thread(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sums of four uniform numbers: nearly normal, as weights are. */
static void fill(float *x, size_t n, float unit) {
    uint64_t state = 1;
    for (size_t i = 0; i < n; i++) {
        float sum = -2;
        for (unsigned k = 0; k < 4; k++) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
            sum += (float)(state >> 40) * 0x1p-24f;
        }
        x[i] = sum * unit;
    }
}

/* Weights per second in the best of many rounds; 0: this format needs importances, or has no encoder. */
static double speed(const nib_format *format, void *out, const float *x, size_t n_cols, const float *importance,
                    double seconds) {
    double best = 1e9;
    const double began = seconds_of_thread();
    do {
        const double before = seconds_of_thread();
        for (size_t r = 0; r < N_ROWS; r++)
            if (nib_format_encode(format, out, x + r * n_cols, n_cols, importance)) return 0;
        const double took = seconds_of_thread() - before;
        if (took < best) best = took;
    } while (seconds_of_thread() - began < seconds);
    return (double)(N_ROWS * n_cols) / best;
}

int main(int argc, char **argv) {
    const size_t n_cols = argc > 1 ? strtoull(argv[1], NULL, 10) : 4096;
    const double seconds = argc > 2 ? strtod(argv[2], NULL) : 0.2;
    const size_t n = argc > 3 ? (size_t)argc - 3 : sizeof usual / sizeof *usual;
    float *x = nib_alloc(n_cols, N_ROWS * sizeof *x), *importance = nib_alloc(n_cols, sizeof *importance);
    void *out = nib_alloc(n_cols, 16);
    if (!n_cols || !x || !importance || !out) return 2;
    fill(x, N_ROWS * n_cols, 0.03f);
    fill(importance, n_cols, 1);
    for (size_t i = 0; i < n_cols; i++) importance[i] *= importance[i];
    printf("%s, level %s, rows of %zu\n%-8s %25s %28s\n", nib_cpu_name(), nib_cpu_level(), n_cols, "format",
           "Mweights/s  ns/weight", "importances: M/s  ns/weight");
    for (size_t i = 0; i < n; i++) {
        const char *name = argc > 3 ? argv[3 + i] : usual[i];
        const nib_format *format = nib_format_find(name);
        if (!format || !nib_format_row_bytes(format, n_cols)) continue;
        const double plain = speed(format, out, x, n_cols, NULL, seconds);
        const double weighted = speed(format, out, x, n_cols, importance, seconds);
        printf("%-8s %14.1f %10.3f %17.1f %10.3f\n", name, plain / 1e6, plain > 0 ? 1e9 / plain : 0, weighted / 1e6,
               weighted > 0 ? 1e9 / weighted : 0);
    }
    free(x);
    free(importance);
    free(out);
    return 0;
}
