/* Speed of matrix products by format, next to what the processor could do at most, measured in the same run.
 * With one thread its own processor time is measured, so that a busy machine disturbs less.
 * Usage: bench_linear [n_cols [n_rows [n_tokens [threads [seconds]]]]] */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "cpu/vec.h"
#include "kernel/kernel.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char *const names[] = {"q4_0", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "bf16", "f16", "f32"};

static double seconds_of(const nib_pool *pool) {
    struct timespec t;
    if (nib_pool_size(pool) > 1) return nib_now();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 12 independent chains, as in the register tiles. */
static void peak_ints(void *arg, size_t begin, size_t end, unsigned worker) {
    vi sum[12];
    const vi u = vi_splat(0x01020304), s = vi_splat((int32_t)begin);
    (void)worker;
    _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) sum[i] = vi_splat(i);
    for (size_t n = 0; n < (end - begin) * 1000; n++) {
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) sum[i] = vi_dp4(sum[i], u, s);
        __asm__ volatile("" : : : "memory");
    }
    _Pragma("GCC unroll 12") for (int i = 1; i < 12; i++) sum[0] = vi_add(sum[0], sum[i]);
    vi_store((char *)arg + 64 * worker, sum[0]);
}

static void peak_floats(void *arg, size_t begin, size_t end, unsigned worker) {
    vf sum[12];
    const vf x = vf_splat(0.5f), y = vf_splat((float)begin);
    _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) sum[i] = vf_splat((float)i);
    for (size_t n = 0; n < (end - begin) * 1000; n++) {
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) sum[i] = vf_fma(x, y, sum[i]);
        __asm__ volatile("" : : : "memory");
    }
    _Pragma("GCC unroll 12") for (int i = 1; i < 12; i++) sum[0] = vf_add(sum[0], sum[i]);
    vf_store((float *)arg + 16 * worker, sum[0]);
}

/* Multiply-adds per second of all threads. */
static double peak(nib_pool *pool, nib_work_fn fn, double per_round) {
    static _Alignas(64) char sink[64 * 1024];
    const size_t items = 200 * nib_pool_size(pool);
    double best = 0;
    for (int i = 0; i < 10; i++) {
        const double began = seconds_of(pool);
        nib_par_for(pool, items, 10, fn, sink);
        const double rate = (double)items * 1000 * per_round / (seconds_of(pool) - began);
        if (rate > best) best = rate;
    }
    return best;
}

static void bench(nib_pool *pool, const char *name, nib_path path, size_t n_cols, size_t n_rows, size_t n_tokens,
                  double seconds, double most) {
    const nib_format *format = nib_format_find(name);
    const size_t row_bytes = format ? nib_format_row_bytes(format, n_cols) : 0;
    if (!row_bytes) return;
    char *weights = nib_alloc_aligned(row_bytes * n_rows);
    float *x = nib_alloc_aligned(n_tokens * n_cols * 4), *out = nib_alloc_aligned(n_tokens * n_rows * 4);
    void *scratch =
        nib_alloc_aligned(nib_linear_scratch_bytes((uint32_t)n_cols, (uint32_t)n_tokens, nib_pool_size(pool)));
    if (!weights || !x || !out || !scratch) exit(5);
    for (size_t i = 0; i < n_tokens * n_cols; i++) x[i] = (float)(i * 2654435761u % 1000) * 0.002f - 1;
    for (size_t r = 0; r < n_rows; r++) {
        if (r < 8)
            nib_format_encode(format, weights + r * row_bytes, x + r % n_tokens * n_cols, n_cols, NULL);
        else
            memcpy(weights + r * row_bytes, weights + r % 8 * row_bytes, row_bytes);
    }
    const nib_product product = {{format, weights, (uint32_t)n_cols, (uint32_t)n_rows}, NULL, out};
    double best = 1e9;
    const double began = nib_now();
    do {
        const double before = seconds_of(pool);
        nib_linear(pool, path, x, (uint32_t)n_tokens, &product, 1, scratch);
        const double took = seconds_of(pool) - before;
        if (took < best) best = took;
    } while (nib_now() - began < seconds);
    const double rate = (double)n_cols * (double)n_rows * (double)n_tokens / best;
    printf("%-6s %-8s %8.1f GMAC/s %5.1f %% of peak %8.2f GB/s of weights\n", name,
           path == NIB_PATH_EXACT ? "exact" : "deployed", rate / 1e9, 100 * rate / most,
           (double)(row_bytes * n_rows) / best / 1e9);
    nib_free_aligned(weights);
    nib_free_aligned(x);
    nib_free_aligned(out);
    nib_free_aligned(scratch);
}

int main(int argc, char **argv) {
    const size_t n_cols = argc > 1 ? strtoull(argv[1], NULL, 10) : 2048;
    const size_t n_rows = argc > 2 ? strtoull(argv[2], NULL, 10) : n_cols;
    const size_t n_tokens = argc > 3 ? strtoull(argv[3], NULL, 10) : 512;
    const unsigned n_threads = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 0;
    const double seconds = argc > 5 ? strtod(argv[5], NULL) : 0.3;
    nib_pool *pool = NULL;
    if (!n_cols || !n_rows || !n_tokens || nib_pool_new(n_threads, &pool, NULL)) return 2;
    const double ints = peak(pool, peak_ints, 12 * 64), floats = peak(pool, peak_floats, 12 * 16);
    printf("%s, level %s, %u threads; peak of this build's vectors: %.0f GMAC/s int8, %.0f GMAC/s f32\n",
           nib_cpu_name(), nib_cpu_level(), nib_pool_size(pool), ints / 1e9, floats / 1e9);
    printf("%zu columns, %zu rows, %zu tokens\n", n_cols, n_rows, n_tokens);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        bench(pool, names[i], NIB_PATH_DEPLOYED, n_cols, n_rows, n_tokens, seconds, names[i][0] == 'q' ? ints : floats);
    bench(pool, "f32", NIB_PATH_EXACT, n_cols, n_rows, n_tokens, seconds, floats);
    bench(pool, "q4_k", NIB_PATH_EXACT, n_cols, n_rows, n_tokens, seconds, floats);
    nib_pool_free(pool);
    return 0;
}
