/* Speed of attention, next to what the processor and its memory could do at most, measured in the same run: reading a
 * prompt of n tokens after `depth` others, and generating one token there.
 * Usage: bench_attend [head_dim [n_head [n_head_kv [depth [threads [n_tokens]]]]]] */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "cpu/vec.h"
#include "kernel/kernel.h"
#include "nibble/cpu.h"
#include <stdio.h>
#include <stdlib.h>

/* 12 independent chains, as in the register tiles. */
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
static double peak(nib_pool *pool) {
    static _Alignas(64) char sink[64 * 1024];
    const size_t items = 200 * nib_pool_size(pool);
    double best = 0;
    for (int i = 0; i < 10; i++) {
        const double began = nib_now();
        nib_par_for(pool, items, 10, peak_floats, sink);
        const double rate = (double)items * 1000 * 12 * 16 / (nib_now() - began);
        if (rate > best) best = rate;
    }
    return best;
}

typedef struct setup {
    nib_pool *pool;
    uint32_t dim, n_head, n_head_kv, depth, n_tokens;
    double flops, bytes; /* per second, at most */
} setup;

/* Layers' caches together are larger than the processor's, as in a model. */
static void bench(const setup *s, const char *name, nib_path path, nib_kv_type type, uint32_t n_tokens) {
    const uint32_t n_ctx = s->depth + n_tokens;
    const size_t bytes = nib_kv_fits(type, s->dim) ? nib_kv_bytes(type, 1, n_ctx, s->n_head_kv, s->dim) : 0;
    const size_t n_layers = bytes ? ((size_t)128 << 20) / (2 * bytes) + 1 : 0, width = (size_t)s->n_head_kv * s->dim;
    nib_kv_layer *layers = nib_alloc(n_layers, sizeof *layers);
    float *k = nib_alloc_aligned(512 * width * 4), *q = nib_alloc_aligned((size_t)n_tokens * s->n_head * s->dim * 4);
    float *out = nib_alloc_aligned((size_t)n_tokens * s->n_head * s->dim * 4);
    void *scratch =
        nib_alloc_aligned(nib_attend_scratch_bytes(n_ctx, n_tokens, s->n_head, s->dim, nib_pool_size(s->pool)));
    if (!layers || !k || !q || !out || !scratch) exit(5);
    for (size_t i = 0; i < 512 * width; i++) k[i] = (float)(i * 2654435761u % 1000) * 0.002f - 1;
    for (size_t i = 0; i < (size_t)n_tokens * s->n_head * s->dim; i++)
        q[i] = (float)(i * 2246822519u % 1000) * 0.002f - 1;
    for (size_t l = 0; l < n_layers; l++) {
        layers[l] =
            (nib_kv_layer){type, nib_alloc_aligned(bytes), nib_alloc_aligned(bytes), n_ctx, s->n_head_kv, s->dim};
        if (!layers[l].keys || !layers[l].values) exit(5);
        for (uint32_t pos = 0; pos < n_ctx; pos += 512) {
            const nib_attend_segment segment = {.n = n_ctx - pos < 512 ? n_ctx - pos : 512, .pos = pos};
            nib_kv_store(s->pool, &layers[l], &segment, 1, k, k);
        }
    }
    const nib_attend_segment segment = {.n = n_tokens, .pos = s->depth};
    double best = 1e9;
    const double began = nib_now();
    for (size_t l = 0; nib_now() - began < 1; l = (l + 1) % n_layers) {
        const double before = nib_now();
        nib_attend(s->pool, path, &layers[l], &segment, 1, q, s->n_head, 0.1f, 0, out, scratch);
        if (nib_now() - before < best) best = nib_now() - before;
    }
    if (n_layers) {
        const double seen = ((double)s->depth + (n_tokens + 1) / 2.0) * n_tokens;
        const double macs = 2 * seen * s->n_head * s->dim / best;
        const double read =
            2 * (double)(s->depth + n_tokens) * s->n_head_kv * (double)nib_kv_position_bytes(type, s->dim);
        printf("%-8s %5u tokens %9.1f us %7.1f GMAC/s %4.0f%% of f32 peak %6.1f GB/s %4.0f%% of reading\n", name,
               n_tokens, best * 1e6, macs / 1e9, 100 * macs / s->flops, read / best / 1e9,
               100 * read / best / s->bytes);
    }
    for (size_t l = 0; l < n_layers; l++) {
        nib_free_aligned(layers[l].keys);
        nib_free_aligned(layers[l].values);
    }
    free(layers);
    nib_free_aligned(k);
    nib_free_aligned(q);
    nib_free_aligned(out);
    nib_free_aligned(scratch);
}

int main(int argc, char **argv) {
    const unsigned long given[] = {128, 32, 8, 8192, 0, 512};
    unsigned long n[6];
    for (int i = 0; i < 6; i++) n[i] = argc > i + 1 ? strtoul(argv[i + 1], NULL, 10) : given[i];
    setup s = {NULL, (uint32_t)n[0], (uint32_t)n[1], (uint32_t)n[2], (uint32_t)n[3], (uint32_t)n[5], 0, 0};
    if (!n[0] || !n[2] || n[1] < n[2] || n[1] % n[2] || !n[5] || nib_pool_new((unsigned)n[4], &s.pool, NULL)) return 2;
    s.flops = peak(s.pool);
    s.bytes = nib_cpu_measure_read_bandwidth(s.pool, 0.5);
    printf("%s, level %s, %u threads; at most %.0f GMAC/s f32, %.1f GB/s\n", nib_cpu_name(), nib_cpu_level(),
           nib_pool_size(s.pool), s.flops / 1e9, s.bytes / 1e9);
    printf("%u heads of %u, %u of keys and values, depth %u\n", s.n_head, s.dim, s.n_head_kv, s.depth);
    static const struct {
        const char *name;
        nib_path path;
        nib_kv_type type;
    } ways[] = {{"exact", NIB_PATH_EXACT, NIB_KV_TYPE_F32},
                {"f16", NIB_PATH_DEPLOYED, NIB_KV_TYPE_F16},
                {"q8_0", NIB_PATH_DEPLOYED, NIB_KV_TYPE_Q8_0}};
    for (int prompt = 1; prompt >= 0; prompt--)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
            bench(&s, ways[i].name, ways[i].path, ways[i].type, prompt ? s.n_tokens : 1);
    nib_pool_free(s.pool);
    return 0;
}
