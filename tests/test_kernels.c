/* Kernels against plain double arithmetic, on every level that runs here. Products of every format: test_kernel_check.c. */
#include "unit.h"

#include "base/memory.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "format/format.h"
#include "guard.h"
#include "kernel/level.h"
#include "levels.h"
#include "reference.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

static uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) ^ (uint32_t)(random_state >> 12);
}
static float random_float(void) { /* about normal, standard deviation 1 */
    float sum = -6;
    for (int i = 0; i < 12; i++) sum += (float)(random_bits() & 0xffffff) * 0x1p-24f;
    return sum;
}
static float *random_floats(size_t n, float scale) {
    float *x = nib_alloc_aligned(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = random_float() * scale;
    return x;
}

/* Floats with a page behind them that nobody may touch, and a pattern before. */
enum { FENCE = 128 };
typedef struct fenced {
    guarded memory;
    float *values;
    size_t n;
} fenced;
static fenced fenced_new(size_t n) {
    fenced f = {guard_new(n * sizeof(float) + FENCE), NULL, n};
    f.values = guard_place(&f.memory, n * sizeof(float), false);
    memset((char *)f.values - FENCE, 0x5a, n * sizeof(float) + FENCE);
    return f;
}
static void fenced_check_and_free(fenced *f) {
    const unsigned char *before = (const unsigned char *)f->values - FENCE;
    for (size_t i = 0; i < FENCE; i++) assert_int_equal(before[i], 0x5a);
    guard_free(&f->memory);
}

static const nib_row_kernels *row_kernels(void) {
#define LEVEL(name, needs) &nib_row_kernels_##name,
    static const nib_row_kernels *const levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    return levels[nib_cpu_level_index()];
}

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

static void check_dp4(void) {
    static const uint8_t left[] = {255, 0, 255, 1, 128, 127};
    static const int8_t right[] = {-128, 127, -1, 0, 1, -127};
    for (int round = 0; round < 200; round++) {
        uint8_t u[64];
        int8_t s[64];
        int32_t acc[16], expected[16];
        for (int i = 0; i < 64; i++) {
            u[i] = round < 36 ? left[round / 6] : (uint8_t)random_bits();
            s[i] = round < 36 ? right[round % 6] : (int8_t)(random_bits() & 255);
        }
        for (int i = 0; i < 16; i++) {
            acc[i] = expected[i] = (int32_t)(random_bits() & 0xffff) - 0x8000;
            for (int j = 0; j < 4; j++) expected[i] += u[4 * i + j] * s[4 * i + j];
        }
        row_kernels()->dp4(acc, u, s);
        assert_memory_equal(acc, expected, sizeof acc);
    }
}

static void check_exp(void) {
    enum { N = 1000 };
    float x[N], y[N];
    for (int i = 0; i < N; i++) y[i] = x[i] = -87 + 175.7f * (float)i / N;
    row_kernels()->exp(y, N);
    for (int i = 0; i < N; i++) {
        const double expected = exp((double)x[i]);
        assert_true(fabs(y[i] - expected) <= 2 * expected * 0x1p-23);
    }
    float odd[] = {-INFINITY, -1000, -104, -100, 0, 89, INFINITY, NAN};
    row_kernels()->exp(odd, 8);
    assert_true(odd[0] == 0 && odd[1] == 0 && odd[2] <= 2e-45f);
    assert_true(fabs(odd[3] - exp(-100)) <= 0x1p-149); /* subnormal */
    assert_true(odd[4] == 1 && isinf(odd[5]) && isinf(odd[6]) && isnan(odd[7]));
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

static void check_norm(void) {
    static const uint32_t widths[] = {1, 15, 64, 576, 1000};
    for (size_t w = 0; w < 5; w++) {
        const uint32_t n = widths[w], n_rows = 3;
        float *x = random_floats((size_t)n * n_rows, 3), *weight = random_floats(n, 1);
        fenced out = fenced_new((size_t)n * n_rows);
        nib_norm_rows(NULL, x, n_rows, n, weight, 1e-5f, out.values);
        for (uint32_t r = 0; r < n_rows; r++) {
            double squares = 0;
            for (uint32_t i = 0; i < n; i++) squares += (double)x[r * n + i] * x[r * n + i];
            for (uint32_t i = 0; i < n; i++) {
                const double expected = x[r * n + i] / sqrt(squares / n + 1e-5f) * weight[i];
                assert_true(fabs(out.values[r * n + i] - expected) <= 3e-7 * fabs(expected));
            }
        }
        fenced_check_and_free(&out);
        nib_free_aligned(x);
        nib_free_aligned(weight);
    }
}

static void check_elements(void) {
    const size_t n = 20011;
    float *gate = random_floats(n, 8), *up = random_floats(n, 2);
    gate[0] = -200, gate[1] = 200, gate[2] = 0;
    fenced out = fenced_new(n);
    nib_swiglu_rows(NULL, gate, up, n, out.values);
    for (size_t i = 0; i < n; i++) {
        const double expected = gate[i] / (1 + exp(-(double)gate[i])) * up[i];
        assert_true(fabs(out.values[i] - expected) <= 1e-6 * fabs(expected) + 1e-37);
    }
    memcpy(out.values, gate, n * sizeof *gate);
    nib_add_rows(NULL, out.values, up, n);
    for (size_t i = 0; i < n; i++) assert_true(out.values[i] == gate[i] + up[i]);
    fenced_check_and_free(&out);
    nib_free_aligned(gate);
    nib_free_aligned(up);
}

static void check_rope(void) {
    enum { TOKENS = 4, HEADS = 3, DIM = 80, PAIRS = 36 };
    static const uint32_t positions[TOKENS] = {0, 7, 4095, 100000};
    float inv_freq[PAIRS];
    for (int i = 0; i < PAIRS; i++) inv_freq[i] = (float)pow(10000, -(double)i / PAIRS);
    for (int neox = 0; neox < 2; neox++) {
        const size_t n = TOKENS * HEADS * DIM;
        float *x = random_floats(n, 1);
        fenced out = fenced_new(n);
        memcpy(out.values, x, n * sizeof *x);
        nib_rope_rows(NULL, out.values, positions, TOKENS, HEADS, DIM, inv_freq, PAIRS, neox);
        for (size_t h = 0; h < TOKENS * HEADS; h++) {
            for (size_t i = 0; i < PAIRS; i++) {
                const size_t a = h * DIM + (neox ? i : 2 * i), b = h * DIM + (neox ? i + PAIRS : 2 * i + 1);
                const double angle = (double)positions[h / HEADS] * inv_freq[i];
                assert_true(fabs(out.values[a] - (x[a] * cos(angle) - x[b] * sin(angle))) < 1e-6);
                assert_true(fabs(out.values[b] - (x[a] * sin(angle) + x[b] * cos(angle))) < 1e-6);
            }
            for (size_t i = 2 * PAIRS; i < DIM; i++) assert_true(out.values[h * DIM + i] == x[h * DIM + i]);
        }
        fenced_check_and_free(&out);
        nib_free_aligned(x);
    }
}

static double log_sum_of(const float *x, uint32_t n) {
    double most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    for (uint32_t i = 0; i < n; i++) sum += exp(x[i] - most);
    return most + log(sum);
}

typedef struct compared {
    double base_sum, test_sum, kld;
    uint32_t argmax;
} compared;

static compared compare_rows(const float *base, const float *test, uint32_t n, uint32_t piece) {
    static float terms[50001];
    nib_softmax p = {0}, q = {0};
    nib_divergence divergence = {0};
    for (uint32_t i = 0; i < n; i += piece) {
        const uint32_t n_piece = n - i < piece ? n - i : piece;
        nib_softmax_add(&p, base + i, n_piece, terms);
        nib_divergence_add(&divergence, &p, base + i, terms, &q, test + i, n_piece);
    }
    return (compared){.base_sum = nib_softmax_log_sum(&p),
                      .test_sum = nib_softmax_log_sum(&q),
                      .kld = nib_divergence_of(&divergence, &p, &q),
                      .argmax = p.argmax};
}

static void check_logits(void) {
    static const uint32_t sizes[] = {1, 15, 16, 1000, 50001};
    for (size_t s = 0; s < 5; s++) {
        const uint32_t n = sizes[s];
        float *base = random_floats(n, 4), *test = random_floats(n, 4);
        for (uint32_t i = 0; i < n; i++) test[i] = base[i] + 0.1f * test[i];
        if (n > 20) {
            base[17] = base[5] = 30; /* first of equals */
            base[3] = test[3] = -INFINITY;
            base[4] = -INFINITY;
        }
        const double base_sum = log_sum_of(base, n), test_sum = log_sum_of(test, n);
        const compared whole = compare_rows(base, test, n, n), self = compare_rows(base, base, n, n);
        assert_true(fabs(whole.base_sum - base_sum) < 1e-7 && fabs(whole.test_sum - test_sum) < 1e-7);
        assert_true(n <= 20 || whole.argmax == 5);
        assert_true(self.kld == 0);
        double expected = 0;
        for (uint32_t i = 0; i < n; i++)
            if (base[i] > -INFINITY) expected += exp(base[i] - base_sum) * (base[i] - base_sum - test[i] + test_sum);
        assert_true(fabs(whole.kld - expected) < 1e-7 + 1e-6 * expected);
        for (uint32_t piece = 1; piece <= n; piece = 7 * piece + 9) {
            const compared pieces = compare_rows(base, test, n, piece);
            assert_true(fabs(pieces.kld - expected) < 1e-7 + 1e-6 * expected);
            assert_true(fabs(pieces.base_sum - base_sum) < 1e-7 && pieces.argmax == whole.argmax);
        }
        nib_free_aligned(base);
        nib_free_aligned(test);
    }
}

/* Nearly the same and nearly certain: what divides a good quantization from a very good one. */
static void check_small_divergence(void) {
    enum { N = 3000 };
    float *base = random_floats(N, 4), *test = nib_alloc_aligned(N * sizeof *test);
    for (int i = 0; i < N; i++) test[i] = base[i] + 1e-3f * (float)sin(i);
    base[1234] = 30.3f;
    test[1234] = 30.301f;
    base[1250] = 13.3f; /* 4e-8 of the first, and added in the same lane */
    test[1250] = 13.4f;
    const double base_sum = log_sum_of(base, N), test_sum = log_sum_of(test, N);
    double expected = 0;
    for (int i = 0; i < N; i++) expected += exp(base[i] - base_sum) * (base[i] - base_sum - test[i] + test_sum);
    for (uint32_t piece = 10; piece <= N; piece += 299)
        assert_true(fabs(compare_rows(base, test, N, piece).kld - expected) < 1e-10);
    nib_free_aligned(base);
    nib_free_aligned(test);
}

/* Each logit less the largest, to the power of e: to seven digits, and nothing where a float has no such numbers. */
static void check_terms(void) {
    enum { N = 70001 };
    float *logits = nib_alloc_aligned(N * sizeof *logits);
    fenced terms = fenced_new(N);
    for (int i = 0; i < N; i++) logits[i] = 2 - (float)i * 0x1p-9f;
    logits[N - 1] = -INFINITY;
    nib_softmax row = {0};
    nib_softmax_add(&row, logits, N, terms.values);
    assert_true(terms.values[0] == 1);
    for (int i = 0; i < N; i++) {
        const double x = (double)logits[i] - 2, e = exp(x);
        if (x < -88.1) assert_true(terms.values[i] == 0);
        if (x > -87) assert_true(fabs(terms.values[i] - e) <= (2e-7 - 6e-8 * x) * e);
    }
    fenced_check_and_free(&terms);
    nib_free_aligned(logits);
}

/* Logits that rise all the way, so that each piece has a new largest one; a shift of all, which is no divergence. */
static void check_rising_logits(void) {
    enum { N = 3000 };
    static float base[N], test[N];
    double expected = 0;
    for (int i = 0; i < N; i++) {
        base[i] = (float)i * 0x1p-8f;
        test[i] = base[i] + (float)(i % 7) * 0x1p-6f;
    }
    const double base_sum = log_sum_of(base, N), test_sum = log_sum_of(test, N);
    for (int i = 0; i < N; i++) expected += exp(base[i] - base_sum) * (base[i] - base_sum - test[i] + test_sum);
    for (uint32_t piece = 1; piece <= N; piece = 3 * piece + 5) {
        assert_true(fabs(compare_rows(base, test, N, piece).kld - expected) < 1e-8);
        assert_true(compare_rows(base, base, N, piece).kld == 0);
    }
    for (int i = 0; i < N; i++) test[i] = base[i] - 5;
    for (uint32_t piece = 1; piece <= N; piece = 3 * piece + 5)
        assert_true(fabs(compare_rows(base, test, N, piece).kld) < 1e-12);
}

/* Rows that no model should give. */
static void check_odd_logits(void) {
    enum { N = 40 };
    float base[N], test[N];
    for (int i = 0; i < N; i++) base[i] = test[i] = -INFINITY;
    for (uint32_t piece = 5; piece <= N; piece += 35) {
        compared row = compare_rows(base, test, N, piece);
        assert_true(row.argmax == 0 && row.kld == 0 && row.base_sum == -INFINITY);
    }
    /* Each larger than all before by more than e^x can say; nothing at first. */
    for (int i = 0; i < N; i++) base[i] = test[i] = i < 8 ? -INFINITY : (float)i * 1000 - 3e4f;
    test[N - 1] -= 2;
    for (uint32_t piece = 1; piece <= N; piece += 3) {
        compared row = compare_rows(base, test, N, piece);
        assert_true(row.argmax == N - 1 && fabs(row.base_sum - base[N - 1]) < 1e-6);
        assert_true(fabs(row.test_sum - test[N - 1]) < 1e-6 && fabs(row.kld) < 1e-6);
    }
    for (int i = 0; i < N; i++) base[i] = test[i] = (float)-i;
    test[3] = -INFINITY; /* impossible for test, not for base */
    assert_true(compare_rows(base, test, N, 16).kld == INFINITY);
    for (int i = 0; i < N; i++) test[i] = -INFINITY;
    assert_true(compare_rows(base, test, N, 16).kld == INFINITY && compare_rows(test, base, N, 16).kld == 0);
    for (int i = 0; i < N; i++) test[i] = base[i] + (float)(i % 2);
    const double expected = compare_rows(base + 17, test + 17, N - 17, N).kld - log_sum_of(test + 17, N - 17);
    for (int i = 0; i < 17; i++) base[i] = i % 2 ? -INFINITY : -3e38f; /* impossible for base, not all for test */
    test[0] = test[1] = -INFINITY;
    for (uint32_t piece = 1; piece <= N; piece += 3)
        assert_true(fabs(compare_rows(base, test, N, piece).kld - expected - log_sum_of(test, N)) < 1e-6);
    for (uint32_t at = 0; at < N; at += 13)
        for (int i = 0; i < 2; i++) {
            const float before = base[at], odd = i ? INFINITY : NAN;
            base[at] = odd;
            for (uint32_t piece = 1; piece <= N; piece += 13) {
                assert_true(isnan(compare_rows(base, base, N, piece).base_sum));
                assert_true(isnan(compare_rows(test, base, N, piece).kld));
                assert_true(isnan(compare_rows(base, test, N, piece).kld));
            }
            base[at] = before;
        }
    for (int i = 0; i < N; i++) test[i] = NAN;
    assert_true(isnan(compare_rows(base, test, N, 16).kld) && isnan(compare_rows(test, base, N, 16).kld));
}

/* ---- linear ----------------------------------------------------------------------------------------------------- */

typedef struct matrix {
    nib_matrix matrix;
    void *bytes;
    float *decoded; /* (n_rows, n_cols) */
} matrix;

static matrix matrix_new(const nib_format *format, uint32_t n_cols, uint32_t n_rows) {
    const size_t row_bytes = nib_format_row_bytes(format, n_cols);
    matrix m = {.bytes = nib_alloc_aligned(row_bytes * n_rows + 1),
                .decoded = nib_alloc_aligned((size_t)n_cols * n_rows * sizeof(float))};
    assert_true(m.bytes && m.decoded);
    char *data = (char *)m.bytes + (nib_format_facts_of(format)->block > 1); /* blocks lie at any address */
    float *row = random_floats(n_cols, 1), *importance = random_floats(n_cols, 1);
    for (uint32_t i = 0; i < n_cols; i++) importance[i] = 1;
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t i = 0; i < n_cols; i++) row[i] = random_float() * 0.1f + (r % 3 == 0 ? 0.05f : 0);
        nib_verdict seen = nib_format_encode(format, data + r * row_bytes, row, n_cols, NULL);
        if (seen == NIB_VERDICT_NEEDS_IMPORTANCE)
            seen = nib_format_encode(format, data + r * row_bytes, row, n_cols, importance);
        assert_int_equal(seen, NIB_VERDICT_OK);
        nib_format_decode(format, m.decoded + (size_t)r * n_cols, data + r * row_bytes, n_cols);
    }
    nib_free_aligned(row);
    nib_free_aligned(importance);
    m.matrix = (nib_matrix){format, data, n_cols, n_rows};
    return m;
}
static void matrix_free(matrix *m) {
    nib_free_aligned(m->bytes);
    nib_free_aligned(m->decoded);
}

/* Products of one input with n matrices; every output compared with the double sum of its terms. */
static void check_products(nib_pool *pool, nib_path path, const matrix *matrices, uint32_t n, uint32_t n_tokens) {
    const uint32_t n_cols = matrices[0].matrix.n_cols;
    float *x = random_floats((size_t)n_tokens * n_cols, 1), *bias = random_floats(4096, 1);
    float *rounded = nib_alloc_aligned((size_t)n_tokens * n_cols * sizeof *x);
    void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(n_cols, n_tokens, nib_pool_size(pool)));
    nib_product products[4];
    fenced out[4];
    assert_true(n <= 4 && scratch && rounded);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = fenced_new((size_t)n_tokens * matrices[i].matrix.n_rows);
        products[i] = (nib_product){matrices[i].matrix, i % 2 ? NULL : bias, out[i].values};
    }
    nib_linear(pool, path, x, n_tokens, products, n, scratch);
    for (uint32_t i = 0; i < n; i++) {
        const nib_format *format = nib_format_fast(matrices[i].matrix.format);
        const uint32_t n_rows = matrices[i].matrix.n_rows;
        memcpy(rounded, x, (size_t)n_tokens * n_cols * sizeof *x);
        for (uint32_t t = 0; t < n_tokens && path == NIB_PATH_DEPLOYED && rounds_activations(format); t++)
            round_activations(format->activation, rounded + (size_t)t * n_cols, n_cols);
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t r = 0; r < n_rows; r++) {
                const float *w = matrices[i].decoded + (size_t)r * n_cols, *a = rounded + (size_t)t * n_cols;
                double sum = products[i].bias ? bias[r] : 0, terms = fabs(sum), most = 0;
                for (uint32_t k = 0; k < n_cols; k++) most = fabs(w[k]) > most ? fabs(w[k]) : most;
                for (uint32_t k = 0; k < n_cols; k++) {
                    sum += (double)w[k] * a[k];
                    terms += (fabs(w[k]) + most) * fabs(a[k]);
                }
                const double got = out[i].values[(size_t)t * n_rows + r];
                if (!(fabs(got - sum) <= 1e-6 * terms))
                    fail_msg("%s %s: %u tokens, %u x %u: row %u token %u: %.9g, expected %.9g", nib_cpu_level(),
                             format->facts.name, n_tokens, n_rows, n_cols, r, t, got, sum);
            }
        fenced_check_and_free(&out[i]);
    }
    nib_free_aligned(x);
    nib_free_aligned(bias);
    nib_free_aligned(rounded);
    nib_free_aligned(scratch);
}

/* Several formats behind one input, and more tokens than one piece takes. */
static void check_groups(void) {
    static const char *const names[] = {"q4_0", "f32", "q6_k", "bf16"};
    matrix matrices[4];
    for (uint32_t i = 0; i < 4; i++) {
        assert_non_null(nib_format_find(names[i]));
        matrices[i] = matrix_new(nib_format_find(names[i]), 512, 32 + 9 * i);
    }
    check_products(NULL, NIB_PATH_DEPLOYED, matrices, 4, 1);
    check_products(NULL, NIB_PATH_DEPLOYED, matrices, 4, 8);
    check_products(NULL, NIB_PATH_DEPLOYED, matrices, 4, 523);
    for (uint32_t i = 0; i < 4; i++) matrix_free(&matrices[i]);
}

/* Tiles of every width: whole and broken panels, columns that end within a block of 256, batches of 1 to 40. */
static void check_widths(void) {
    static const char *const names[] = {"q4_0", "q4_1", "q5_0", "q8_0",  "iq4_nl", "mxfp4", "nvfp4", "q2_k", "q3_k",
                                        "q4_k", "q5_k", "q6_k", "iq3_s", "iq4_xs", "tq1_0", "q3a",   "bf16", "f16"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const nib_format *format = nib_format_find(names[i]);
        assert_non_null(format);
        const uint32_t block = nib_format_facts_of(format)->block;
        const uint32_t n_cols = block == 256 ? 512 : block == 1 ? 519 : 512 + block;
        matrix m = matrix_new(format, n_cols, i % 2 ? 37 : 64);
        for (uint32_t n_tokens = 1; n_tokens <= 40; n_tokens += i % 3 ? 1 + n_tokens % 5 : 1)
            check_products(NULL, NIB_PATH_DEPLOYED, &m, 1, n_tokens);
        for (uint32_t n_tokens = 6; n_tokens <= 12; n_tokens++) check_products(NULL, NIB_PATH_EXACT, &m, 1, n_tokens);
        matrix_free(&m);
    }
}

/* Rows of bf16 longer than what is added up at a time, and not a whole number of steps; an odd row is left over. Some are so
 * long that one token meets several at once; its results are those it has beside another. */
static void check_long_pairs(void) {
    static const uint32_t tokens[] = {1, 2, 3, 5, 6, NIB_FLOAT_TOKENS, 13, NIB_PAIR_TOKENS, NIB_PAIR_TOKENS + 5};
    static const uint32_t n_cols[] = {4297, 8777};
    enum { ROWS = 37 };
    for (size_t c = 0; c < sizeof n_cols / sizeof *n_cols; c++) {
        matrix m = matrix_new(nib_format_find("bf16"), n_cols[c], ROWS);
        for (size_t i = 0; i < (c == 0 ? sizeof tokens / sizeof *tokens : 2); i++)
            check_products(NULL, NIB_PATH_DEPLOYED, &m, 1, tokens[i]);
        float *x = random_floats(2 * (size_t)n_cols[c], 1), alone[ROWS], both[2 * ROWS];
        void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(n_cols[c], 2, 1));
        assert_non_null(scratch);
        nib_product product = {m.matrix, NULL, alone};
        nib_linear(NULL, NIB_PATH_DEPLOYED, x, 1, &product, 1, scratch);
        product.out = both;
        nib_linear(NULL, NIB_PATH_DEPLOYED, x, 2, &product, 1, scratch);
        assert_memory_equal(alone, both, sizeof alone);
        nib_free_aligned(x);
        nib_free_aligned(scratch);
        matrix_free(&m);
    }
}

/* The smallest batch that goes by panels, or by 16 rows at once, which gives the same. */
static uint32_t smallest_by_panels(const nib_format *format) {
    const nib_few *few = nib_format_fast(format)->few;
    return few && few->from <= NIB_GEMV_TOKENS ? few->from : NIB_GEMV_TOKENS + 1;
}

/* A token's result does not depend on the others of its batch, where batches go the same way: of whole blocks of 256
 * columns, and with half a block left. */
static void check_batches(void) {
    static const char *const names[] = {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "nvfp4",
                                        "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "bf16",  "f32"};
    enum { COLS = 640, ROWS = 69, TOKENS = NIB_PAIR_TOKENS + 9 };
    for (size_t f = 0; f < 2 * sizeof names / sizeof *names; f++) {
        const nib_format *format = nib_format_find(names[f / 2]);
        const uint32_t n_cols = f % 2 ? COLS : 512;
        if (n_cols % nib_format_facts_of(format)->block) continue;
        matrix m = matrix_new(format, n_cols, ROWS);
        float *x = random_floats((size_t)TOKENS * n_cols, 1), *bias = random_floats(ROWS, 1), more[TOKENS * ROWS],
              some[TOKENS * ROWS];
        void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(n_cols, TOKENS, 1));
        assert_non_null(scratch);
        nib_product product = {m.matrix, bias, more};
        const uint32_t first = smallest_by_panels(format);
        for (uint32_t n = first; n <= TOKENS; n++) {
            nib_linear(NULL, NIB_PATH_DEPLOYED, x, n, &product, 1, scratch);
            const bool is_float = nib_format_facts_of(m.matrix.format)->kind == NIB_CLASS_FLOAT;
            const bool other_way = is_float && (n == NIB_FLOAT_TOKENS + 1 || n == NIB_PAIR_TOKENS + 1);
            if (n > first && !other_way) assert_memory_equal(more, some, (n - 1) * ROWS * sizeof *some);
            memcpy(some, more, n * ROWS * sizeof *some);
        }
        nib_free_aligned(x);
        nib_free_aligned(bias);
        nib_free_aligned(scratch);
        matrix_free(&m);
    }
}

/* Sums that do not fit 16 bits, beside tokens whose sums do: those come out the same as among their like. */
static void check_large_sums(void) {
    static const char *const names[] = {"q4_k", "q5_k", "q6_k"};
    enum { COLS = 512, ROWS = 32, TOKENS = 6, LARGE = 3 };
    for (size_t f = 0; f < sizeof names / sizeof *names; f++) {
        matrix m = matrix_new(nib_format_find(names[f]), COLS, ROWS);
        float *x = random_floats(TOKENS * COLS, 1), among_like[TOKENS * ROWS], out[TOKENS * ROWS];
        for (uint32_t i = 0; i < TOKENS; i++) x[i * COLS + 7] = x[i * COLS + 300] = 4; /* the rest is small beside it */
        void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(COLS, TOKENS, 1));
        assert_non_null(scratch);
        nib_product product = {m.matrix, NULL, among_like};
        nib_linear(NULL, NIB_PATH_DEPLOYED, x, TOKENS, &product, 1, scratch);
        for (uint32_t k = 0; k < COLS; k++) {
            x[k] = 1;
            x[COLS + k] = -1;
            x[2 * COLS + k] = m.decoded[k] < 0 ? -1 : 1;
        }
        product.out = out;
        nib_linear(NULL, NIB_PATH_DEPLOYED, x, TOKENS, &product, 1, scratch);
        for (uint32_t t = 0; t < LARGE; t++)
            for (uint32_t r = 0; r < ROWS; r++) {
                double sum = 0;
                for (uint32_t k = 0; k < COLS; k++) sum += (double)m.decoded[r * COLS + k] * x[t * COLS + k];
                assert_true(fabs(out[t * ROWS + r] - sum) <= 1e-4);
            }
        assert_memory_equal(out + LARGE * ROWS, among_like + LARGE * ROWS, (TOKENS - LARGE) * ROWS * sizeof *out);
        nib_free_aligned(x);
        nib_free_aligned(scratch);
        matrix_free(&m);
    }
}

/* A broken activation must show in the result, not be rounded to a number. */
static void check_not_finite(void) {
    static const char *const names[] = {"q8_0", "q4_k", "f32"};
    for (int f = 0; f < 3; f++)
        for (uint32_t n_tokens = 1; n_tokens < 8; n_tokens += 6) {
            matrix m = matrix_new(nib_format_find(names[f]), 256, 3);
            float *x = random_floats(7 * 256, 1), out[7 * 3];
            x[(n_tokens - 1) * 256 + 77] = f == 1 ? INFINITY : NAN;
            void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(256, n_tokens, 1));
            assert_non_null(scratch);
            const nib_product product = {m.matrix, NULL, out};
            nib_linear(NULL, NIB_PATH_DEPLOYED, x, n_tokens, &product, 1, scratch);
            for (uint32_t i = 0; i < 3 * n_tokens; i++) assert_true(!isfinite(out[i]) == (i >= 3 * (n_tokens - 1)));
            nib_free_aligned(x);
            nib_free_aligned(scratch);
            matrix_free(&m);
        }
}

/* A block's scale that is no number makes none of its row, and numbers of the others; some formats read scales bit by bit. */
static void check_broken_scales(void) {
    static const struct {
        const char *name;
        size_t at, n; /* where in a block its d is */
    } cases[] = {{"q8_0", 0, 2}, {"q4_k", 0, 2}, {"iq2_xs", 0, 2}, {"iq2_s", 0, 2}, {"iq1_s", 0, 2}, {"iq1_m", 48, 8}};
    for (size_t f = 0; f < sizeof cases / sizeof *cases; f++)
        for (uint32_t n_tokens = 1; n_tokens < 8; n_tokens += 6) {
            matrix m = matrix_new(nib_format_find(cases[f].name), 512, 3);
            float *x = random_floats(7 * 512, 1), out[7 * 3];
            memset((char *)m.bytes + 1 + cases[f].at, 0xff, cases[f].n);
            void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(512, n_tokens, 1));
            assert_non_null(scratch);
            const nib_product product = {m.matrix, NULL, out};
            nib_linear(NULL, NIB_PATH_DEPLOYED, x, n_tokens, &product, 1, scratch);
            for (uint32_t i = 0; i < 3 * n_tokens; i++) assert_true(!isfinite(out[i]) == (i % 3 == 0));
            nib_free_aligned(x);
            nib_free_aligned(scratch);
            matrix_free(&m);
        }
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static void check_threads(void) {
    static const unsigned counts[] = {1, 2, 5};
    static const char *const names[] = {"q4_k", "q5_0", "f16"};
    enum { ROWS = 100, TOKENS = 13, COLS = 512 };
    float *first[3] = {0};
    for (size_t c = 0; c < 3; c++) {
        nib_pool *pool = NULL;
        assert_int_equal(nib_pool_new(counts[c], &pool, NULL), NIB_OK);
        random_state = 7;
        for (size_t f = 0; f < 3; f++) {
            matrix m = matrix_new(nib_format_find(names[f]), COLS, ROWS);
            float *x = random_floats(TOKENS * COLS, 1), *out = nib_alloc_aligned(2 * TOKENS * ROWS * sizeof *out);
            void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(COLS, TOKENS, counts[c]));
            assert_true(out && scratch);
            nib_product product = {m.matrix, NULL, out};
            nib_linear(pool, NIB_PATH_DEPLOYED, x, TOKENS, &product, 1, scratch);
            product.out += TOKENS * ROWS;
            nib_linear(pool, NIB_PATH_DEPLOYED, x, 3, &product, 1, scratch);
            if (first[f])
                assert_memory_equal(out, first[f], 2 * TOKENS * ROWS * sizeof *out);
            else
                first[f] = out;
            if (out != first[f]) nib_free_aligned(out);
            nib_free_aligned(x);
            nib_free_aligned(scratch);
            matrix_free(&m);
        }
        nib_pool_free(pool);
    }
    for (size_t f = 0; f < 3; f++) nib_free_aligned(first[f]);
}

/* So much that one worker takes several panels at once; of five, each takes one. */
static void check_panels(void) {
    enum { ROWS = 300, TOKENS = 246, COLS = 1280 };
    matrix m = matrix_new(nib_format_find("q4_k"), COLS, ROWS);
    float *x = random_floats(TOKENS * COLS, 1), *bias = random_floats(ROWS, 1), *out[2];
    for (unsigned i = 0; i < 2; i++) {
        const unsigned n_threads = i ? 5 : 1;
        nib_pool *pool = NULL;
        assert_int_equal(nib_pool_new(n_threads, &pool, NULL), NIB_OK);
        out[i] = nib_alloc_aligned(TOKENS * ROWS * sizeof *out[i]);
        void *scratch = nib_alloc_aligned(nib_linear_scratch_bytes(COLS, TOKENS, n_threads));
        assert_true(out[i] && scratch);
        const nib_product product = {m.matrix, bias, out[i]};
        nib_linear(pool, NIB_PATH_DEPLOYED, x, TOKENS, &product, 1, scratch);
        nib_free_aligned(scratch);
        nib_pool_free(pool);
    }
    assert_memory_equal(out[0], out[1], TOKENS * ROWS * sizeof *out[0]);
    nib_free_aligned(out[0]);
    nib_free_aligned(out[1]);
    nib_free_aligned(x);
    nib_free_aligned(bias);
    matrix_free(&m);
}

static void check_embedding(void) {
    matrix m = matrix_new(nib_format_find("q8_0"), 96, 11);
    static const int32_t ids[] = {10, 0, 3, 3};
    fenced out = fenced_new(4 * 96);
    nib_embed_rows(NULL, &m.matrix, ids, 4, out.values);
    for (int i = 0; i < 4; i++) assert_memory_equal(out.values + 96 * i, m.decoded + 96 * ids[i], 96 * sizeof(float));
    fenced_check_and_free(&out);
    matrix_free(&m);
}

ON_EACH_LEVEL(dp4)
ON_EACH_LEVEL(exp)
ON_EACH_LEVEL(norm)
ON_EACH_LEVEL(elements)
ON_EACH_LEVEL(rope)
ON_EACH_LEVEL(logits)
ON_EACH_LEVEL(small_divergence)
ON_EACH_LEVEL(terms)
ON_EACH_LEVEL(rising_logits)
ON_EACH_LEVEL(odd_logits)
ON_EACH_LEVEL(embedding)
ON_EACH_LEVEL(groups)
ON_EACH_LEVEL(widths)
ON_EACH_LEVEL(long_pairs)
ON_EACH_LEVEL(batches)
ON_EACH_LEVEL(not_finite)
ON_EACH_LEVEL(broken_scales)
ON_EACH_LEVEL(large_sums)
ON_EACH_LEVEL(threads)
ON_EACH_LEVEL(panels)

static void test_levels(void **state) {
    (void)state;
    nib_error error;
    assert_string_equal(nib_cpu_level_name(0), "portable");
    assert_true(nib_cpu_level_runs(0));
    assert_int_equal(nib_cpu_force_level("no such level", &error), NIB_ERR_USAGE);
    assert_non_null(strstr(error.hint, "portable"));
    for (unsigned i = 0; nib_cpu_level_name(i); i++)
        assert_int_equal(nib_cpu_force_level(nib_cpu_level_name(i), &error),
                         nib_cpu_level_runs(i) ? NIB_OK : NIB_ERR_UNSUPPORTED);
    assert_true(nib_cpu_cores() >= 1);
    assert_true(strlen(nib_cpu_name()) > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels),     cmocka_unit_test(test_dp4),
        cmocka_unit_test(test_exp),        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_elements),   cmocka_unit_test(test_rope),
        cmocka_unit_test(test_logits),     cmocka_unit_test(test_small_divergence),
        cmocka_unit_test(test_terms),      cmocka_unit_test(test_rising_logits),
        cmocka_unit_test(test_odd_logits), cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_widths),     cmocka_unit_test(test_groups),
        cmocka_unit_test(test_long_pairs), cmocka_unit_test(test_batches),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_broken_scales),
        cmocka_unit_test(test_large_sums), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_panels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
