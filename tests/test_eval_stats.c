/* Statistics over scored tokens: known answers, and what llama-perplexity printed for two files of log-probabilities. */
#include "base/memory.h"
#include "base/sha256.h"
#include "eval/divergence.h"
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define assert_near(got, want, tolerance)                                                            \
    do {                                                                                             \
        const double got_ = (got), want_ = (want);                                                   \
        if (!(fabs(got_ - want_) <= (tolerance)))                                                    \
            fail_msg("%s: got %.9g, want %.9g within %.3g", #got, got_, want_, (double)(tolerance)); \
    } while (0)

static void test_sha256(void **state) {
    (void)state;
    char out[65];
    nib_sha256 sha;
    /* FIPS 180-4 examples */
    nib_sha256_init(&sha);
    nib_sha256_finish(&sha, out);
    assert_string_equal(out, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    nib_sha256_init(&sha);
    nib_sha256_add(&sha, "a", 1);
    nib_sha256_add(&sha, "bc", 2);
    nib_sha256_finish(&sha, out);
    assert_string_equal(out, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    nib_sha256_init(&sha);
    for (int i = 0; i < 1000000; i++) nib_sha256_add(&sha, "a", 1);
    nib_sha256_finish(&sha, out);
    assert_string_equal(out, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    /* padding that just does not fit the block */
    nib_sha256_init(&sha);
    nib_sha256_add(&sha, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56);
    nib_sha256_finish(&sha, out);
    assert_string_equal(out, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

static void test_distribution(void **state) {
    (void)state;
    float values[101];
    for (int i = 0; i <= 100; i++) values[(i * 37) % 101] = (float)i; /* 0 .. 100, shuffled */
    const nib_distribution d = nib_distribution_of(values, 101);
    assert_near(d.mean, 50, 1e-12);
    assert_near(d.err, sqrt(850.0 / 100), 1e-12); /* variance of 0..100 is (101^2 - 1) / 12 = 850 */
    assert_near(d.min, 0, 0);
    assert_near(d.p01, 1, 1e-12);
    assert_near(d.p05, 5, 1e-12);
    assert_near(d.p10, 10, 1e-12);
    assert_near(d.median, 50, 1e-12);
    assert_near(d.p90, 90, 1e-12);
    assert_near(d.p95, 95, 1e-12);
    assert_near(d.p99, 99, 1e-12);
    assert_near(d.p99_9, 99.9, 1e-9);
    assert_near(d.max, 100, 0);
    assert_near(values[37], 1, 0); /* untouched */
    const float two[2] = {3, 1};
    assert_near(nib_distribution_of(two, 2).median, 2, 0); /* the middle of the two middle ones */
    assert_near(nib_distribution_of(two, 2).p99, 2.98, 1e-6);
    const nib_distribution one = nib_distribution_of(two, 1), none = nib_distribution_of(two, 0);
    assert_near(one.mean, 3, 0);
    assert_near(one.p01, 3, 0);
    assert_true(isnan(one.err));
    assert_true(isnan(none.mean) && isnan(none.median));
    const float broken[3] = {1, NAN, 2};
    assert_true(isnan(nib_distribution_of(broken, 3).mean) && isnan(nib_distribution_of(broken, 3).median));
}

/* Far from zero the centred sums keep what raw sums of squares lose. */
static void test_error_without_cancellation(void **state) {
    (void)state;
    const double values[4] = {1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3};
    const nib_mean mean = nib_mean_of(values, 4);
    assert_near(mean.mean, 1e9 + 1.5, 0);
    assert_near(mean.err, sqrt(1.25 / 3), 1e-12);
}

static void test_pair(void **state) {
    (void)state;
    double base[4] = {1, 2, 3, 4}, test[4] = {1.5, 2.5, 3.5, 4.5};
    float kld[4] = {0.1f, 0.2f, 0.3f, 0.4f}, dp[4] = {0.1f, -0.1f, 0.3f, -0.3f};
    uint8_t same[4] = {1, 1, 1, 0};
    const nib_token_series series = {test, kld, dp, same};
    nib_eval_model out = {0};
    nib_summarise_pair(base, &series, 4, &out);
    assert_near(out.nll, 3, 1e-12);
    assert_near(out.ppl, exp(3), 1e-9);
    assert_near(out.ppl_err, exp(3) * sqrt(1.25 / 3), 1e-9);
    assert_near(out.ln_ppl_ratio, 0.5, 1e-12);
    assert_near(out.ln_ppl_ratio_err, 0, 1e-12); /* the same difference at every token: nothing is uncertain */
    assert_near(out.correlation, 1, 1e-12);
    assert_near(out.kld.mean, 0.25, 1e-7);
    assert_near(out.same_top, 0.75, 0);
    assert_near(out.same_top_err, sqrt(0.75 * 0.25 / 3), 1e-12);
    assert_near(out.dp.mean, 0, 1e-7);
    assert_near(out.dp_rms, sqrt(0.05), 1e-7);
    assert_near(out.dp_rms_err, 0.5 / sqrt(0.05) * sqrt(0.0016 / 3), 1e-7);
    base[0] = 4, base[1] = 3, base[2] = 2, base[3] = 1;
    nib_summarise_pair(base, &series, 4, &out);
    assert_near(out.correlation, -1, 1e-12);
}

static void test_mcnemar(void **state) {
    (void)state;
    assert_near(nib_mcnemar_p(0, 0), 1, 0);
    assert_near(nib_mcnemar_p(1, 0), 1, 1e-12);
    assert_near(nib_mcnemar_p(5, 0), 2.0 / 32, 1e-12);
    assert_near(nib_mcnemar_p(2, 8), 2 * (1 + 10 + 45) / 1024.0, 1e-12); /* binomial coefficients of 10 */
    assert_near(nib_mcnemar_p(8, 2), 2 * (1 + 10 + 45) / 1024.0, 1e-12);
    assert_near(nib_mcnemar_p(7, 7), 1, 0);
    const double far = nib_mcnemar_p(3000, 4000);
    assert_true(far > 0 && far < 1e-30);
}

static void test_flips(void **state) {
    (void)state;
    bool was[5] = {true, true, false, false, false}, is[5] = {true, false, true, false, false};
    uint32_t picked_before[5] = {0, 0, 1, 1, 2}, picked[5] = {0, 3, 0, 1, 3};
    const nib_choice_scores before = {.n = 5, .right = was, .picked = picked_before};
    const nib_choice_scores after = {.n = 5, .right = is, .picked = picked, .accuracy = 0.4};
    nib_eval_model out = {0};
    nib_summarise_flips(&before, &after, &out);
    assert_int_equal(out.flips_to_wrong, 1);
    assert_int_equal(out.flips_to_right, 1);
    assert_int_equal(out.flips_wrong_to_wrong, 1);
    assert_near(out.accuracy, 0.4, 0);
    assert_near(out.mcnemar_p, 1, 0);
}

/* ---- llama-perplexity's files ---------------------------------------------------------------------------------------- */

typedef struct kld_file {
    uint8_t *data;
    uint32_t n_ctx, n_vocab, n_chunk, n_rows; /* rows per chunk */
} kld_file;

static uint8_t *read_all(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = calloc(*n + 1, 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *n, file), *n);
    fclose(file);
    return data;
}

static bool kld_open(const char *name, kld_file *out) {
    const char *shared = getenv("NIBBLE_SHARED");
    char path[1024];
    size_t n;
    snprintf(path, sizeof path, "%s/fixtures/kld/%s", shared != NULL ? shared : "", name);
    out->data = shared != NULL ? read_all(path, &n) : NULL;
    if (out->data == NULL) return false;
    assert_memory_equal(out->data, "_logits_", 8);
    out->n_ctx = nib_load_u32(out->data + 8);
    out->n_vocab = nib_load_u32(out->data + 12);
    out->n_chunk = nib_load_u32(out->data + 16);
    out->n_rows = out->n_ctx - 1 - out->n_ctx / 2;
    const size_t row_bytes = 4 * ((out->n_vocab + 1) / 2) + 8;
    assert_int_equal(n, 20 + 4 * (size_t)out->n_chunk * out->n_ctx + row_bytes * out->n_chunk * out->n_rows);
    return true;
}

/* Log-probabilities of scored row r: (n_vocab). */
static void kld_row(const kld_file *file, uint32_t r, float *out) {
    const size_t row_bytes = 4 * ((file->n_vocab + 1) / 2) + 8;
    const uint8_t *row = file->data + 20 + 4 * (size_t)file->n_chunk * file->n_ctx + row_bytes * r;
    const float scale = nib_load_f32(row), least = nib_load_f32(row + 4);
    for (uint32_t i = 0; i < file->n_vocab; i++) out[i] = scale * nib_load_u16(row + 8 + 2 * i) + least;
}

static int32_t kld_next(const kld_file *file, uint32_t r) {
    const uint32_t chunk = r / file->n_rows, row = r % file->n_rows;
    return (int32_t)nib_load_u32(file->data + 20 + 4 * (chunk * file->n_ctx + file->n_ctx / 2 + row + 1));
}

/* The numbers on the report's line that begins with label: value and, after the sign, its error. */
static void printed(const char *report, const char *label, double *value, double *err) {
    const char *line = strstr(report, label);
    if (line == NULL) fail_msg("the report has no line '%s'", label);
    char *end;
    *value = strtod(strchr(line + strlen(label) - 1, ':') + 1, &end);
    *err = 0;
    const char *sign = strstr(end, "\xC2\xB1");
    if (sign != NULL && sign < strchr(line, '\n')) *err = strtod(sign + 2, NULL);
}

static void expect(const char *report, const char *label, double value, double err, double tolerance) {
    double want, want_err;
    printed(report, label, &want, &want_err);
    if (!(fabs(value - want) <= tolerance)) fail_msg("%s %.6f, printed %.6f", label, value, want);
    if (!(fabs(err - want_err) <= tolerance)) fail_msg("%s error %.6f, printed %.6f", label, err, want_err);
}

/* What the report prints, from the two files alone. KLD by that tool's own rule: parts of the base below -16 left out. */
static void against_report(const char *test_name, const char *report_name) {
    kld_file base, test;
    char path[1024];
    size_t n_report;
    if (!kld_open("demo-bf16-c128-4.kld", &base) || !kld_open(test_name, &test)) {
        print_message("skipped: shared material (fixtures/kld) is not here\n");
        skip();
    }
    snprintf(path, sizeof path, "%s/fixtures/kld/%s", getenv("NIBBLE_SHARED"), report_name);
    char *report = (char *)read_all(path, &n_report);
    assert_non_null(report);
    const uint32_t n = base.n_chunk * base.n_rows, n_vocab = base.n_vocab;
    double *base_nll = calloc(n, sizeof *base_nll), *nll = calloc(n, sizeof *nll);
    float *kld = calloc(n, sizeof *kld), *dp = calloc(n, sizeof *dp);
    float *p = calloc(n_vocab, sizeof *p), *q = calloc(n_vocab, sizeof *q);
    uint8_t *same = calloc(n, 1);
    assert_true(base_nll && nll && kld && dp && p && q && same);
    for (uint32_t r = 0; r < n; r++) {
        uint32_t top_p = 0, top_q = 0;
        double sum = 0;
        kld_row(&base, r, p);
        kld_row(&test, r, q);
        for (uint32_t i = 0; i < n_vocab; i++) {
            if (p[i] > p[top_p]) top_p = i;
            if (q[i] > q[top_q]) top_q = i;
            if (p[i] > -16) sum += (double)(expf(p[i]) * (p[i] - q[i]));
        }
        base_nll[r] = -(double)p[kld_next(&base, r)];
        nll[r] = -(double)q[kld_next(&base, r)];
        kld[r] = (float)sum;
        dp[r] = (float)(exp(-nll[r]) - exp(-base_nll[r]));
        same[r] = top_p == top_q;
    }
    nib_eval_model reference = {0}, out = {0};
    const nib_token_series series = {nll, kld, dp, same};
    nib_summarise_nll(base_nll, n, &reference);
    nib_summarise_pair(base_nll, &series, n, &out);
    /* The log-probabilities are rounded to at worst 1.2e-4; means are closer, extremes and percents (x 100) are not. */
    expect(report, "Mean PPL(Q)  ", out.ppl, out.ppl_err, 4e-5);
    expect(report, "Mean PPL(base)  ", reference.ppl, reference.ppl_err, 4e-5);
    expect(report, "Cor(ln(PPL(Q)), ln(PPL(base))):", 100 * out.correlation, 0, 6e-3);
    expect(report, "Mean ln(PPL(Q)/PPL(base)) ", out.ln_ppl_ratio, out.ln_ppl_ratio_err, 3e-5);
    expect(report, "Mean    KLD:", out.kld.mean, out.kld.err, 3e-5);
    expect(report, "Maximum KLD:", out.kld.max, 0, 4e-4);
    expect(report, "99.9%   KLD:", out.kld.p99_9, 0, 4e-4);
    expect(report, "99.0%   KLD:", out.kld.p99, 0, 4e-4);
    expect(report, "95.0%   KLD:", out.kld.p95, 0, 4e-4);
    expect(report, "90.0%   KLD:", out.kld.p90, 0, 4e-4);
    expect(report, "Median  KLD:", out.kld.median, 0, 1e-4);
    expect(report, "10.0%   KLD:", out.kld.p10, 0, 4e-5);
    expect(report, " 5.0%   KLD:", out.kld.p05, 0, 4e-5);
    expect(report, " 1.0%   KLD:", out.kld.p01, 0, 4e-5);
    expect(report, "Minimum KLD:", out.kld.min, 0, 4e-5);
    expect(report, "Mean    \xCE\x94p:", 100 * out.dp.mean, 100 * out.dp.err, 2e-3);
    expect(report, "Maximum \xCE\x94p:", 100 * out.dp.max, 0, 1.3e-2);
    expect(report, "99.0%   \xCE\x94p:", 100 * out.dp.p99, 0, 1.3e-2);
    expect(report, "95.0%   \xCE\x94p:", 100 * out.dp.p95, 0, 1.3e-2);
    expect(report, "90.0%   \xCE\x94p:", 100 * out.dp.p90, 0, 1.3e-2);
    expect(report, "Median  \xCE\x94p:", 100 * out.dp.median, 0, 1.3e-2);
    expect(report, "10.0%   \xCE\x94p:", 100 * out.dp.p10, 0, 1.3e-2);
    expect(report, " 5.0%   \xCE\x94p:", 100 * out.dp.p05, 0, 1.3e-2);
    expect(report, " 1.0%   \xCE\x94p:", 100 * out.dp.p01, 0, 1.3e-2);
    expect(report, "Minimum \xCE\x94p:", 100 * out.dp.min, 0, 1.3e-2);
    expect(report, "RMS \xCE\x94p    :", 100 * out.dp_rms, 100 * out.dp_rms_err, 2e-3);
    expect(report, "Same top p:", 100 * out.same_top, 100 * out.same_top_err, 6e-4);
    free(base_nll), free(nll), free(kld), free(dp), free(p), free(q), free(same);
    free(report), free(base.data), free(test.data);
}

static void test_report_q4_0(void **state) {
    (void)state;
    against_report("demo-Q4_0-c128-4.kld", "Q4_0.txt");
}

static void test_report_q2_k(void **state) {
    (void)state;
    against_report("demo-Q2_K-c128-4.kld", "Q2_K.txt");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),      cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_pair),        cmocka_unit_test(test_error_without_cancellation),
        cmocka_unit_test(test_mcnemar),     cmocka_unit_test(test_flips),
        cmocka_unit_test(test_report_q4_0), cmocka_unit_test(test_report_q2_k),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
