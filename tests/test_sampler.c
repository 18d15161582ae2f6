/* Drawing tokens: what is kept, how often it is drawn, and that the same seed draws the same. */
#include "unit.h"

#include "nibble/text.h"

#include <math.h>
#include <stdlib.h>

#define N 8

static nib_sampler *sampler(float temperature, uint32_t top_k, float top_p, float min_p, uint64_t seed) {
    const nib_sampler_params params = {temperature, top_k, top_p, min_p, seed};
    nib_sampler *s = NULL;
    nib_error error = {0};
    assert_int_equal(nib_sampler_new(&params, N, &s, &error), NIB_OK);
    return s;
}

static void count(nib_sampler *s, const float *logits, int draws, int counts[N]) {
    for (int i = 0; i < N; i++) counts[i] = 0;
    for (int i = 0; i < draws; i++) {
        const int32_t id = nib_sampler_next(s, logits);
        assert_in_range(id, 0, N - 1);
        counts[id]++;
    }
    nib_sampler_free(s);
}

/* e^0, e^-1, ... shuffled: id 3 is the likeliest, then 1, 6, 0, ... */
static const float logits[N] = {-3, -1, -5, 0, -6, -4, -2, -7};

static void test_greedy(void **state) {
    (void)state;
    nib_sampler *s = sampler(0, 40, 0.95f, 0.05f, 1);
    const float equal[N] = {1, 2, 2, 0, 2}, broken[N] = {NAN, -1, NAN, 3, 2, -INFINITY};
    const float all_broken[N] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN}, endless[N] = {0, 1, INFINITY, 5, INFINITY};
    assert_int_equal(nib_sampler_next(s, logits), 3);
    assert_int_equal(nib_sampler_next(s, equal), 1); /* the first of the largest */
    assert_int_equal(nib_sampler_next(s, broken), 3);
    assert_int_equal(nib_sampler_next(s, all_broken), 0);
    assert_int_equal(nib_sampler_next(s, endless), 2);
    nib_sampler_free(s);
}

static void test_shares(void **state) {
    (void)state;
    enum { DRAWS = 100000 };
    int counts[N];
    double total = 0;
    count(sampler(1, 0, 1, 0, 42), logits, DRAWS, counts);
    for (int i = 0; i < N; i++) total += exp(logits[i]);
    for (int i = 0; i < N; i++) {
        const double p = exp(logits[i]) / total, spread = sqrt(p * (1 - p) / DRAWS);
        assert_true(fabs(counts[i] / (double)DRAWS - p) < 5 * spread + 1e-4);
    }
    total = 0;
    count(sampler(2, 0, 1, 0, 43), logits, DRAWS, counts);
    for (int i = 0; i < N; i++) total += exp(logits[i] / 2);
    assert_true(fabs(counts[3] / (double)DRAWS - 1 / total) < 0.01);
}

static void test_cuts(void **state) {
    (void)state;
    int counts[N];
    count(sampler(1, 2, 1, 0, 5), logits, 2000, counts);
    assert_int_equal(counts[3] + counts[1], 2000);
    assert_true(counts[1] > 0);
    /* Shares of the whole: 0.632, 0.233, 0.086, ...: 0.8 needs two. */
    count(sampler(1, 0, 0.8f, 0, 5), logits, 2000, counts);
    assert_int_equal(counts[3] + counts[1], 2000);
    assert_true(counts[1] > 0);
    count(sampler(1, 0, 0, 0, 5), logits, 100, counts); /* never fewer than one */
    assert_int_equal(counts[3], 100);
    count(sampler(1, 0, 1, 0.1f, 5), logits, 2000, counts); /* e^-2 = 0.135 stays, e^-3 = 0.050 goes */
    assert_int_equal(counts[3] + counts[1] + counts[6], 2000);
    assert_true(counts[6] > 0);
    count(sampler(1, 1, 1, 0, 5), logits, 100, counts);
    assert_int_equal(counts[3], 100);
}

static void test_seed(void **state) {
    (void)state;
    /* Fixed once: another system, compiler or library must draw the same. */
    static const int32_t want[12] = {3, 6, 1, 0, 3, 0, 3, 3, 1, 1, 1, 3};
    nib_sampler *a = sampler(1.5f, 0, 1, 0, 1234), *b = sampler(1.5f, 0, 1, 0, 1234), *c = sampler(1.5f, 0, 1, 0, 1235);
    int same = 0;
    for (int i = 0; i < 200; i++) {
        const int32_t id = nib_sampler_next(a, logits);
        if (i < 12) assert_int_equal(id, want[i]);
        assert_int_equal(id, nib_sampler_next(b, logits));
        same += id == nib_sampler_next(c, logits);
    }
    assert_true(same < 150);
    nib_sampler_free(a);
    nib_sampler_free(b);
    nib_sampler_free(c);
}

static void test_broken_logits(void **state) {
    (void)state;
    int counts[N];
    const float nan_and_one[N] = {NAN, NAN, 2, NAN, NAN, NAN, NAN, -INFINITY};
    const float all_nan[N] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    const float two_endless[N] = {0, INFINITY, 1, INFINITY, 3, NAN, 1e38f, -1e38f};
    count(sampler(0.8f, 40, 0.95f, 0.05f, 9), nan_and_one, 100, counts);
    assert_int_equal(counts[2], 100);
    count(sampler(0.8f, 40, 0.95f, 0.05f, 9), all_nan, 100, counts);
    count(sampler(0.8f, 40, 0.95f, 0.05f, 9), two_endless, 200, counts);
    assert_int_equal(counts[1] + counts[3], 200);
    assert_true(counts[1] > 50 && counts[3] > 50);
    count(sampler(1e-45f, 0, 1, 0, 9), logits, 100, counts);
    assert_int_equal(counts[3], 100);
}

static void test_parameters(void **state) {
    (void)state;
    nib_sampler *s = NULL;
    nib_error error = {0};
    nib_sampler_params p = nib_sampler_defaults();
    assert_int_equal(nib_sampler_new(&p, 0, &s, &error), NIB_ERR_USAGE);
    p.temperature = -1;
    assert_int_equal(nib_sampler_new(&p, N, &s, &error), NIB_ERR_USAGE);
    p.temperature = NAN;
    assert_int_equal(nib_sampler_new(&p, N, &s, &error), NIB_ERR_USAGE);
    p = nib_sampler_defaults();
    p.top_p = 1.5f;
    assert_int_equal(nib_sampler_new(&p, N, &s, &error), NIB_ERR_USAGE);
    p = nib_sampler_defaults();
    p.min_p = NAN;
    assert_int_equal(nib_sampler_new(&p, N, &s, &error), NIB_ERR_USAGE);
    assert_null(s);
    nib_sampler_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy), cmocka_unit_test(test_shares),        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_seed),   cmocka_unit_test(test_broken_logits), cmocka_unit_test(test_parameters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
