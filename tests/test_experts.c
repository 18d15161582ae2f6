/* Mixtures of experts against the formula in double arithmetic: routes with ties and NaN, experts without tokens, and
 * batches of every size give each token the same. */
#include "unit.h"

#include "base/memory.h"
#include "kernel/kernel.h"

#include <math.h>
#include <stdlib.h>

enum { EMBD = 48, FF = 32, EXPERTS = 7, USED = 3, TOKENS = 13 };

static float gate[EXPERTS][FF][EMBD], up[EXPERTS][FF][EMBD], down[EXPERTS][EMBD][FF];
static float x[TOKENS][EMBD], logits[TOKENS][EXPERTS];

static void fill(float *out, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        out[i] = (float)(int32_t)(seed >> 32) * 0x1p-32f;
    }
}

static void make_numbers(void) {
    fill(gate[0][0], sizeof gate / 4, 1);
    fill(up[0][0], sizeof up / 4, 2);
    fill(down[0][0], sizeof down / 4, 3);
    fill(x[0], sizeof x / 4, 4);
    fill(logits[0], sizeof logits / 4, 5);
    for (int t = 0; t < TOKENS; t++) logits[t][4] = -9; /* an expert that nobody asks */
    for (int e = 0; e < EXPERTS; e++) logits[2][e] = 0.25f;
    logits[3][1] = logits[3][5] = 2;
}

static void run(nib_pool *pool, uint32_t first, uint32_t n, float *out) {
    const nib_format *f32 = nib_format_find("f32");
    nib_expert_work work = {
        .gate = {f32, gate, EMBD, FF},
        .up = {f32, up, EMBD, FF},
        .down = {f32, down, FF, EMBD},
        .n_experts = EXPERTS,
        .n_used = USED,
        .n_tokens = n,
        .x = x[first],
        .logits = logits[first],
        .routes = calloc(n, nib_experts_route_words(EXPERTS, USED) * 4),
        .in = calloc(n, EMBD * sizeof(float)),
        .gates = calloc(n, USED * FF * sizeof(float)),
        .ups = calloc(n, USED * FF * sizeof(float)),
        .out = out,
    };
    void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(EMBD, n, nib_pool_size(pool)));
    assert_non_null(scratch);
    nib_experts(pool, NIB_PATH_EXACT, &work, scratch);
    nib_free_aligned(scratch);
    free(work.routes);
    free(work.in);
    free(work.gates);
    free(work.ups);
}

/* One token through the experts named. */
static void expect(uint32_t t, const int expert[USED], const float *out) {
    double want[EMBD] = {0}, all = 0;
    for (int i = 0; i < USED; i++) all += exp(logits[t][expert[i]]);
    for (int i = 0; i < USED; i++) {
        const int e = expert[i];
        double wide[FF];
        for (int f = 0; f < FF; f++) {
            double g = 0, u = 0;
            for (int c = 0; c < EMBD; c++) g += (double)gate[e][f][c] * x[t][c], u += (double)up[e][f][c] * x[t][c];
            wide[f] = g / (1 + exp(-g)) * u;
        }
        for (int c = 0; c < EMBD; c++)
            for (int f = 0; f < FF; f++) want[c] += exp(logits[t][e]) / all * down[e][c][f] * wide[f];
    }
    for (int c = 0; c < EMBD; c++)
        if (!(fabs(want[c] - out[c]) < 1e-6)) fail_msg("token %u, column %d: %g, not %g", t, c, out[c], want[c]);
}

/* The best by sorting: of equals the first. */
static void best(uint32_t t, int expert[USED]) {
    bool taken[EXPERTS] = {false};
    for (int i = 0; i < USED; i++) {
        expert[i] = -1;
        for (int e = 0; e < EXPERTS; e++)
            if (!taken[e] && (expert[i] < 0 || logits[t][e] > logits[t][expert[i]])) expert[i] = e;
        taken[expert[i]] = true;
    }
}

static void test_formula(void **state) {
    (void)state;
    static float out[TOKENS][EMBD];
    make_numbers();
    run(NULL, 0, TOKENS, out[0]);
    for (uint32_t t = 0; t < TOKENS; t++) {
        int expert[USED];
        best(t, expert);
        expect(t, expert, out[t]);
    }
    int tied[USED];
    best(2, tied);
    assert_int_equal(tied[0] + 10 * tied[1] + 100 * tied[2], 210);
}

static void test_batches(void **state) {
    (void)state;
    static float whole[TOKENS][EMBD], part[TOKENS][EMBD];
    nib_pool *pool = NULL;
    make_numbers();
    assert_int_equal(nib_pool_new(3, &pool, NULL), NIB_OK);
    run(NULL, 0, TOKENS, whole[0]);
    run(pool, 0, TOKENS, part[0]);
    assert_memory_equal(whole, part, sizeof whole);
    for (uint32_t n = 1; n < TOKENS; n++) {
        for (uint32_t t = 0; t < TOKENS; t += n) run(pool, t, n < TOKENS - t ? n : TOKENS - t, part[t]);
        for (int t = 0; t < TOKENS; t++)
            for (int c = 0; c < EMBD; c++)
                if (!(fabsf(whole[t][c] - part[t][c]) < 1e-6f)) fail_msg("batches of %u: token %d differs", n, t);
    }
    nib_pool_free(pool);
}

/* A router that says NaN still names experts there are, and the result says so. */
static void test_nan(void **state) {
    (void)state;
    float out[EMBD];
    make_numbers();
    for (int e = 0; e < EXPERTS; e++) logits[0][e] = NAN;
    run(NULL, 0, 1, out);
    for (int c = 0; c < EMBD; c++) assert_true(isnan(out[c]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
