/* Speed of matrix products by format, next to what the processor could do at most, measured in the same run.
 * With one thread its own processor time is measured, so that a busy machine disturbs less.
 * Usage: bench_linear [n_cols [n_rows [tokens,tokens,.. [threads [seconds [format,format,..]]]]]]
 * One number of tokens: a line per format. Several: a line per format with the share of the peak for each of them. */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "format/format.h"
#include "kernel/kernel.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/vec.h"

enum { MAX_BATCHES = 32, READ_BYTES = 256 << 20 };

typedef struct ceilings {
    double ints, pairs, floats; /* multiply-adds per second */
    double bandwidth;           /* bytes per second */
} ceilings;

static double seconds_of(const nib_pool *pool) {
    struct timespec t;
    if (nib_pool_size(pool) > 1) return nib_now();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 12 independent chains, as in the register tiles. */
#define EACH_CHAIN(first) _Pragma("GCC unroll 12") for (int i = first; i < 12; i++)
#define PEAK(name, type, begin_with, step, add, store)                       \
    static void name(void *arg, size_t begin, size_t end, unsigned worker) { \
        type sum[12];                                                        \
        EACH_CHAIN(0) sum[i] = begin_with;                                   \
        for (size_t n = 0; n < (end - begin) * 1000; n++) {                  \
            EACH_CHAIN(0) sum[i] = step;                                     \
            __asm__ volatile("" : : : "memory");                             \
        }                                                                    \
        EACH_CHAIN(1) sum[0] = add(sum[0], sum[i]);                          \
        store((void *)((char *)arg + 64 * (worker % 1024)), sum[0]);         \
    }
PEAK(peak_ints, vi, vi_splat(i), vi_dp4(sum[i], vi_splat(0x01020304), vi_splat((int32_t)begin)), vi_add, vi_store)
PEAK(peak_floats, vf, vf_splat((float)i), vf_fma(vf_splat(0.5f), vf_splat((float)begin), sum[i]), vf_add, vf_store)
#if defined(__AVX512BF16__)
PEAK(peak_pairs, vf, vf_splat((float)i),
     _mm512_dpbf16_ps(sum[i], (__m512bh)vi_splat(0x3f803f80), (__m512bh)vi_splat((int32_t)begin)), vf_add, vf_store)
#endif

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

typedef struct reading {
    const char *from;
    uint64_t sink[1024];
} reading;

static void read_through(void *arg, size_t begin, size_t end, unsigned worker) {
    reading *job = arg;
    vi sum[4] = {vi_splat(0), vi_splat(0), vi_splat(0), vi_splat(0)};
    for (const char *p = job->from + (begin << 16); p < job->from + (end << 16); p += 256)
        for (int i = 0; i < 4; i++) sum[i] = vi_add(sum[i], vi_load(p + 64 * i));
    int32_t lanes[16];
    vi_store(lanes, vi_add(vi_add(sum[0], sum[1]), vi_add(sum[2], sum[3])));
    job->sink[worker % 1024] += (uint64_t)lanes[0];
}

static double read_bandwidth(nib_pool *pool) {
    static reading job;
    char *memory = nib_alloc_aligned(READ_BYTES);
    if (!memory) exit(5);
    memset(memory, 1, READ_BYTES);
    job.from = memory;
    double best = 0;
    for (int i = 0; i < 5; i++) {
        const double began = nib_now();
        nib_par_for(pool, READ_BYTES >> 16, 16, read_through, &job);
        const double rate = READ_BYTES / (nib_now() - began);
        if (rate > best) best = rate;
    }
    nib_free_aligned(memory);
    return best;
}

/* One format's weights and the time that products with them take. */
typedef struct subject {
    const nib_format *format;
    nib_path path;
    size_t n_cols, n_rows, row_bytes;
    char *weights;
} subject;

static bool subject_new(subject *s) {
    const nib_format_facts *facts = nib_format_facts_of(s->format);
    s->row_bytes = nib_format_row_bytes(s->format, s->n_cols);
    if (!facts->can_encode || !s->row_bytes) return false;
    s->weights = nib_alloc_aligned(s->row_bytes * s->n_rows);
    float *x = nib_alloc_aligned(2 * s->n_cols * sizeof *x);
    if (!s->weights || !x) exit(5);
    for (size_t i = 0; i < s->n_cols; i++) x[i] = (float)(i * 2654435761u % 1000) * 0.002f - 1;
    for (size_t i = 0; i < s->n_cols; i++) x[s->n_cols + i] = 1;
    bool written = nib_format_encode(s->format, s->weights, x, s->n_cols, x + s->n_cols) == NIB_VERDICT_OK;
    for (size_t r = 1; r < s->n_rows; r++) memcpy(s->weights + r * s->row_bytes, s->weights, s->row_bytes);
    nib_free_aligned(x);
    if (!written) nib_free_aligned(s->weights);
    return written;
}

/* Activations as models have them: most are small beside the largest of a block. */
static float bell_shaped(size_t i) {
    uint64_t bits = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ bits >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    bits ^= bits >> 32;
    const uint64_t sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    return (float)sum * 0x1p-16f - 2;
}

/* Seconds of the quickest of many products. */
static double time_of(nib_pool *pool, const subject *s, size_t n_tokens, double seconds) {
    float *x = nib_alloc_aligned(n_tokens * s->n_cols * 4), *out = nib_alloc_aligned(n_tokens * s->n_rows * 4);
    void *scratch =
        nib_alloc_aligned(nib_linear_scratch_bytes((uint32_t)s->n_cols, (uint32_t)n_tokens, nib_pool_size(pool)));
    if (!x || !out || !scratch) exit(5);
    for (size_t i = 0; i < n_tokens * s->n_cols; i++) x[i] = bell_shaped(i);
    const nib_product product = {{s->format, s->weights, (uint32_t)s->n_cols, (uint32_t)s->n_rows}, NULL, out};
    double best = 1e9;
    const double began = nib_now();
    do {
        const double before = seconds_of(pool);
        nib_linear(pool, s->path, x, (uint32_t)n_tokens, &product, 1, scratch);
        const double took = seconds_of(pool) - before;
        if (took < best) best = took;
    } while (nib_now() - began < seconds);
    nib_free_aligned(x);
    nib_free_aligned(out);
    nib_free_aligned(scratch);
    return best;
}

/* What bounds a format: bytes for integer formats, bf16 pairs where there is such an instruction, else floats. */
static double ceiling_of(const subject *s, const ceilings *most) {
    if (s->path == NIB_PATH_EXACT) return most->floats;
    if (nib_format_facts_of(s->format)->kind != NIB_CLASS_FLOAT) return most->ints;
    return most->pairs > 0 && !strcmp(nib_format_facts_of(s->format)->name, "bf16") ? most->pairs : most->floats;
}

static void bench(nib_pool *pool, subject s, const size_t *batches, size_t n_batches, double seconds,
                  const ceilings *most) {
    if (!subject_new(&s)) return;
    printf("%-8s %-8s", nib_format_facts_of(s.format)->name, s.path == NIB_PATH_EXACT ? "exact" : "deployed");
    for (size_t i = 0; i < n_batches; i++) {
        const double took = time_of(pool, &s, batches[i], seconds);
        const double rate = (double)s.n_cols * (double)s.n_rows * (double)batches[i] / took;
        const double share = 100 * rate / ceiling_of(&s, most), bytes = (double)(s.row_bytes * s.n_rows) / took;
        if (n_batches == 1)
            printf(" %8.1f GMAC/s %5.1f %% of peak %8.2f GB/s of weights", rate / 1e9, share, bytes / 1e9);
        else
            printf(" %5.1f", share);
    }
    printf("\n");
    fflush(stdout);
    nib_free_aligned(s.weights);
}

/* Is name in the list "a,b,c"? An empty list holds everything. */
static bool is_listed(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && !strncmp(at, name, n)) return true;
    return !*list;
}

int main(int argc, char **argv) {
    const size_t n_cols = argc > 1 ? strtoull(argv[1], NULL, 10) : 2048;
    const size_t n_rows = argc > 2 ? strtoull(argv[2], NULL, 10) : n_cols;
    const char *batch_list = argc > 3 ? argv[3] : "512", *formats = argc > 6 ? argv[6] : "";
    const unsigned n_threads = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 0;
    const double seconds = argc > 5 ? strtod(argv[5], NULL) : 0.3;
    size_t batches[MAX_BATCHES], n_batches = 0;
    for (char *end; *batch_list && n_batches < MAX_BATCHES; batch_list = end + (*end == ',')) {
        batches[n_batches] = strtoull(batch_list, &end, 10);
        if (!batches[n_batches++]) return 2;
    }
    nib_pool *pool = NULL;
    if (!n_cols || !n_rows || !n_batches || nib_pool_new(n_threads, &pool, NULL)) return 2;
    ceilings most = {.ints = peak(pool, peak_ints, 12 * 64), .floats = peak(pool, peak_floats, 12 * 16)};
#if defined(__AVX512BF16__)
    most.pairs = peak(pool, peak_pairs, 12 * 32);
#endif
    most.bandwidth = read_bandwidth(pool);
    printf("%s, level %s, %u threads; peak of this build's vectors: %.0f GMAC/s int8, %.0f bf16, %.0f f32; reads %.1f "
           "GB/s\n%zu columns, %zu rows, tokens",
           nib_cpu_name(), nib_cpu_level(), nib_pool_size(pool), most.ints / 1e9, most.pairs / 1e9, most.floats / 1e9,
           most.bandwidth / 1e9, n_cols, n_rows);
    for (size_t i = 0; i < n_batches; i++) printf(" %zu", batches[i]);
    printf("%s\n", n_batches > 1 ? ": percent of the peak" : "");
    for (unsigned i = 0; nib_format_at(i); i++) {
        const nib_format_facts *facts = nib_format_facts_of(nib_format_at(i));
        if (*formats ? !is_listed(formats, facts->name) : facts->is_nibbles_own) continue;
        const subject s = {.format = nib_format_at(i), .path = NIB_PATH_DEPLOYED, .n_cols = n_cols, .n_rows = n_rows};
        bench(pool, s, batches, n_batches, seconds, &most);
    }
    const subject exact = {
        .format = nib_format_find("f32"), .path = NIB_PATH_EXACT, .n_cols = n_cols, .n_rows = n_rows};
    if (is_listed(formats, "exact")) bench(pool, exact, batches, n_batches, seconds, &most);
    nib_pool_free(pool);
    return 0;
}
