/* Weight statistics: against sums made the plain way, on a file made here and on the demo model. */
#include "base/half.h"
#include "nibble/eval.h"
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define assert_near(got, want, tolerance)                                                              \
    do {                                                                                               \
        const double got_ = (got), want_ = (want);                                                     \
        if (!(fabs(got_ - want_) <= (tolerance)))                                                      \
            fail_msg("%s: got %.17g, want %.17g within %.3g", #got, got_, want_, (double)(tolerance)); \
    } while (0)

/* ---- A GGUF file of two matrices and a vector, in memory ------------------------------------------------------------- */

enum { ROWS_A = 37, COLUMNS_A = 1111, ROWS_B = 3, COLUMNS_B = 64, N_VECTOR = 64 };
enum { N_A = ROWS_A * COLUMNS_A, N_B = ROWS_B * COLUMNS_B, MOST_BYTES = 1 << 20 };

typedef struct bytes {
    uint8_t *data;
    size_t n;
} bytes;

static void put(bytes *out, const void *data, size_t n) {
    memcpy(out->data + out->n, data, n);
    out->n += n;
}

static void put_u32(bytes *out, uint32_t value) {
    put(out, &value, sizeof value);
}

static void put_u64(bytes *out, uint64_t value) {
    put(out, &value, sizeof value);
}

static void put_text(bytes *out, const char *text) {
    put_u64(out, strlen(text));
    put(out, text, strlen(text));
}

static void put_tensor(bytes *out, const char *name, uint32_t n_dims, uint64_t ne0, uint64_t ne1, uint32_t type,
                       uint64_t offset) {
    put_text(out, name);
    put_u32(out, n_dims);
    put_u64(out, ne0);
    if (n_dims > 1) put_u64(out, ne1);
    put_u32(out, type);
    put_u64(out, offset);
}

static void pad(bytes *out) {
    while (out->n % 32 != 0) out->data[out->n++] = 0;
}

/* a: (ROWS_A, COLUMNS_A) stored as f32; b: (ROWS_B, COLUMNS_B) stored as f16; vector: f32. */
static bytes make_file(const float *a, const float *b, const float *vector) {
    const size_t bytes_a = (N_A * 4 + 31) / 32 * 32, bytes_b = N_B * 2;
    bytes out = {calloc(MOST_BYTES, 1), 0};
    assert_non_null(out.data);
    put(&out, "GGUF", 4);
    put_u32(&out, 3);
    put_u64(&out, a != NULL ? 3 : 1);
    put_u64(&out, 1);
    put_text(&out, "general.architecture");
    put_u32(&out, 8);
    put_text(&out, "llama");
    if (a != NULL) put_tensor(&out, "blk.0.ffn_up.weight", 2, COLUMNS_A, ROWS_A, 0, 0);
    if (a != NULL) put_tensor(&out, "blk.0.ffn_down.weight", 2, COLUMNS_B, ROWS_B, 1, bytes_a);
    put_tensor(&out, "output_norm.weight", 1, N_VECTOR, 1, 0, a != NULL ? bytes_a + bytes_b : 0);
    pad(&out);
    if (a != NULL) {
        put(&out, a, N_A * sizeof *a);
        pad(&out);
        for (int i = 0; i < N_B; i++) {
            const uint16_t half = nib_f32_to_f16(b[i]);
            put(&out, &half, sizeof half);
        }
        pad(&out);
    }
    put(&out, vector, N_VECTOR * sizeof *vector);
    pad(&out);
    return out;
}

/* Roughly bell-shaped, different from zero in the mean, from a fixed seed. b in values f16 holds exactly. */
static void make_weights(float *a, float *b, float *vector) {
    uint32_t state = 12345;
    for (int i = 0; i < N_A + N_B + N_VECTOR; i++) {
        float sum = 0.25f;
        for (int j = 0; j < 4; j++) {
            state = state * 1664525 + 1013904223;
            sum += (float)(state >> 8) / 16777216.0f - 0.5f;
        }
        if (i < N_A)
            a[i] = sum;
        else if (i < N_A + N_B)
            b[i - N_A] = nib_f16_to_f32(nib_f32_to_f16(sum));
        else
            vector[i - N_A - N_B] = 1e6f; /* must not show: vectors are not counted */
    }
}

typedef struct fixture {
    float weights[N_A + N_B]; /* of the first matrix, then of the second */
    float vector[N_VECTOR];
} fixture;

static nib_status measure(const fixture *f, double edge, unsigned n_threads, nib_weight_stats *out, nib_error *error) {
    bytes file = make_file(f->weights, f->weights + N_A, f->vector);
    nib_pool *pool = NULL;
    nib_gguf *gguf = NULL;
    assert_int_equal(nib_pool_new(n_threads, &pool, error), NIB_OK);
    if (nib_gguf_open_memory(file.data, file.n, "test", &gguf, error) != NIB_OK) fail_msg("%s", error->message);
    const nib_status status = nib_weights_measure(gguf, edge, pool, NULL, out, error);
    nib_gguf_close(gguf);
    nib_pool_free(pool);
    free(file.data);
    return status;
}

static void test_against_plain_sums(void **state) {
    fixture *f = *state;
    nib_weight_stats stats;
    nib_error error;
    const int n = N_A + N_B;
    f->weights[40000] = -9;  /* an outlier, past the first piece */
    f->weights[N_A + 5] = 9; /* as large: stays behind the earlier one */
    f->weights[N_A + 6] = 8.5f;
    if (measure(f, 0, 2, &stats, &error) != NIB_OK) fail_msg("%s", error.message);
    double sum = 0, squares = 0, fourths = 0;
    for (int i = 0; i < n; i++) sum += (double)f->weights[i];
    const double mean = sum / n;
    for (int i = 0; i < n; i++) squares += pow((double)f->weights[i] - mean, 2);
    for (int i = 0; i < n; i++) fourths += pow((double)f->weights[i] - mean, 4);
    const double std = sqrt(squares / n);
    uint64_t outliers = 0, total = 0;
    for (int i = 0; i < n; i++) outliers += fabs((double)f->weights[i] - mean) > 6 * std;
    assert_int_equal(stats.n, n);
    assert_near(stats.mean, mean, 1e-14);
    assert_near(stats.std, std, 1e-13);
    assert_near(stats.kurtosis, fourths / n / pow(std, 4), 1e-11);
    assert_near(stats.min, -9, 0);
    assert_near(stats.max, 9, 0);
    assert_near(stats.absmax, 9, 0);
    assert_int_equal(stats.n_outliers_6sigma, outliers);
    assert_int_equal(outliers, 3);
    assert_near(stats.edge, 12 * std, 1e-12);
    for (int b = 0; b < NIB_HISTOGRAM_BINS; b++) total += stats.histogram[b];
    assert_int_equal(total, n);
    assert_int_equal(stats.histogram[0], 1); /* -9 is outside -edge .. edge */
    assert_int_equal(stats.histogram[NIB_HISTOGRAM_BINS - 1], 2);
    assert_int_equal(stats.n_top, NIB_TOP_WEIGHTS);
    assert_near(stats.top[0].value, -9, 0);
    assert_string_equal(stats.top[0].tensor, "blk.0.ffn_up.weight");
    assert_int_equal(stats.top[0].index, 40000);
    assert_near(stats.top[1].value, 9, 0);
    assert_string_equal(stats.top[1].tensor, "blk.0.ffn_down.weight");
    assert_int_equal(stats.top[1].index, 5);
    assert_near(stats.top[2].value, 8.5, 0);
    for (uint32_t i = 1; i < stats.n_top; i++) assert_true(fabs(stats.top[i].value) <= fabs(stats.top[i - 1].value));
    int larger = 0; /* nothing was overlooked */
    for (int i = 0; i < n; i++) larger += fabs((double)f->weights[i]) > fabs(stats.top[NIB_TOP_WEIGHTS - 1].value);
    assert_true(larger < NIB_TOP_WEIGHTS);
}

static void test_threads_do_not_show(void **state) {
    nib_weight_stats one, three;
    nib_error error;
    memset(&one, 0, sizeof one);
    memset(&three, 0, sizeof three);
    assert_int_equal(measure(*state, 0, 1, &one, &error), NIB_OK);
    assert_int_equal(measure(*state, 0, 3, &three, &error), NIB_OK);
    assert_memory_equal(&one, &three, sizeof one);
}

static void test_histogram(void **state) {
    fixture *f = *state;
    nib_weight_stats stats;
    nib_error error;
    uint64_t want[NIB_HISTOGRAM_BINS] = {0};
    assert_int_equal(measure(f, 1, 2, &stats, &error), NIB_OK);
    assert_near(stats.edge, 1, 0);
    for (int i = 0; i < N_A + N_B; i++) {
        const double bin = floor(((double)f->weights[i] + 1) * 128);
        want[bin < 0 ? 0 : bin > 255 ? 255 : (int)bin]++;
    }
    uint64_t differing = 0; /* a weight within rounding of a bin's edge may fall on either side */
    for (int b = 0; b < NIB_HISTOGRAM_BINS; b++)
        differing += want[b] > stats.histogram[b] ? want[b] - stats.histogram[b] : stats.histogram[b] - want[b];
    assert_true(differing <= 2);
}

static void test_constant(void **state) {
    fixture *f = *state;
    nib_weight_stats stats;
    nib_error error;
    for (int i = 0; i < N_A + N_B; i++) f->weights[i] = 0.5f;
    assert_int_equal(measure(f, 0, 2, &stats, &error), NIB_OK);
    assert_near(stats.mean, 0.5, 0);
    assert_near(stats.std, 0, 0);
    assert_true(isnan(stats.kurtosis));
    assert_int_equal(stats.n_outliers_6sigma, 0);
    assert_int_equal(stats.histogram[192], N_A + N_B); /* edge 1: 0.5 begins bin 3/4 of the way */
    for (uint32_t i = 0; i < stats.n_top; i++) assert_int_equal(stats.top[i].index, i);
    nib_json *json = nib_json_new();
    const char *text;
    size_t n_bytes;
    nib_json_begin_object(json, NULL);
    nib_weight_stats_write_json(&stats, json);
    nib_json_end_object(json);
    assert_int_equal(nib_json_text(json, &text, &n_bytes, &error), NIB_OK);
    assert_non_null(strstr(text, "\"kurtosis\""));
    assert_non_null(strstr(text, "\"note\""));
    assert_null(strstr(text, "nan"));
    nib_json_free(json);
}

static void test_refusals(void **state) {
    fixture *f = *state;
    nib_weight_stats stats;
    nib_error error;
    f->weights[33000] = NAN;
    f->weights[33001] = INFINITY;
    assert_int_equal(measure(f, 0, 2, &stats, &error), NIB_ERR_CORRUPT);
    assert_string_equal(error.field, "blk.0.ffn_up.weight");
    assert_non_null(strstr(error.message, "row 29, column 781"));
    bytes file = make_file(NULL, NULL, f->vector);
    nib_gguf *gguf = NULL;
    assert_int_equal(nib_gguf_open_memory(file.data, file.n, "test", &gguf, &error), NIB_OK);
    assert_int_equal(nib_weights_measure(gguf, 0, NULL, NULL, &stats, &error), NIB_ERR_CORRUPT);
    nib_gguf_close(gguf);
    free(file.data);
}

static nib_status measure_groups(const fixture *f, const nib_weights_params *params, unsigned n_threads,
                                 nib_weight_groups *out, nib_error *error) {
    bytes file = make_file(f->weights, f->weights + N_A, f->vector);
    nib_pool *pool = NULL;
    nib_gguf *gguf = NULL;
    assert_int_equal(nib_pool_new(n_threads, &pool, error), NIB_OK);
    if (nib_gguf_open_memory(file.data, file.n, "test", &gguf, error) != NIB_OK) fail_msg("%s", error->message);
    const nib_status status = nib_weights_measure_groups(gguf, params, pool, NULL, out, error);
    nib_gguf_close(gguf);
    nib_pool_free(pool);
    free(file.data);
    return status;
}

/* The columns of one matrix by their largest magnitude, found one by one. */
static void check_channels(const nib_weight_group *group, const float *x, size_t rows, size_t columns) {
    bool *taken = calloc(columns, sizeof *taken);
    assert_non_null(taken);
    assert_int_equal(group->n_channels, columns < NIB_TOP_CHANNELS ? columns : NIB_TOP_CHANNELS);
    for (uint32_t i = 0; i < group->n_channels; i++) {
        double best = -1;
        size_t best_column = 0;
        for (size_t c = 0; c < columns; c++) {
            double absmax = 0;
            for (size_t r = 0; r < rows; r++) absmax = fmax(absmax, fabs((double)x[r * columns + c]));
            if (taken[c] || absmax <= best) continue;
            best = absmax;
            best_column = c;
        }
        taken[best_column] = true;
        assert_int_equal(group->channels[i].column, best_column);
        assert_near(group->channels[i].absmax, best, 0);
        assert_string_equal(group->channels[i].tensor, group->tensor);
    }
    free(taken);
}

static void test_by_tensor(void **state) {
    fixture *f = *state;
    nib_weight_groups groups;
    nib_error error;
    f->weights[40000] = -9;
    f->weights[N_A + COLUMNS_B + 5] = 1;
    const nib_weights_params params = {.by = NIB_WEIGHTS_BY_TENSOR, .vectors = true};
    if (measure_groups(f, &params, 2, &groups, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(groups.n, 3);
    const nib_weight_group *up = &groups.items[0], *down = &groups.items[1], *norm = &groups.items[2];
    assert_string_equal(up->tensor, "blk.0.ffn_up.weight");
    assert_string_equal(up->role, "ffn_up");
    assert_string_equal(nib_format_facts_of(down->format)->name, "f16");
    assert_string_equal(norm->role, "norm");
    assert_int_equal(up->stats.n, N_A);
    assert_int_equal(down->stats.n, N_B);
    assert_int_equal(norm->stats.n, N_VECTOR);
    assert_near(norm->stats.mean, 1e6, 0);
    assert_int_equal(norm->n_channels, 0);
    double sum = 0, squares = 0;
    for (int i = 0; i < N_B; i++) sum += (double)f->weights[N_A + i];
    for (int i = 0; i < N_B; i++) squares += pow((double)f->weights[N_A + i] - sum / N_B, 2);
    assert_near(down->stats.mean, sum / N_B, 1e-14);
    assert_near(down->stats.std, sqrt(squares / N_B), 1e-13);
    assert_near(down->stats.edge, 12 * sqrt(squares / N_B), 1e-12);
    assert_int_equal(up->stats.top[0].row, 40000 / COLUMNS_A);
    assert_int_equal(up->stats.top[0].column, 40000 % COLUMNS_A);
    assert_int_equal(up->stats.n_outliers_6sigma, 1);
    check_channels(up, f->weights, ROWS_A, COLUMNS_A);
    check_channels(down, f->weights + N_A, ROWS_B, COLUMNS_B);
    nib_weight_groups_fini(&groups);
}

static void test_whole_and_roles(void **state) {
    fixture *f = *state;
    nib_weight_groups groups, again;
    nib_weight_stats stats;
    nib_error error;
    memset(&stats, 0, sizeof stats);
    assert_int_equal(measure(f, 0, 2, &stats, &error), NIB_OK);
    nib_weights_params params = {.by = NIB_WEIGHTS_WHOLE};
    assert_int_equal(measure_groups(f, &params, 2, &groups, &error), NIB_OK);
    assert_int_equal(groups.n, 1);
    assert_string_equal(groups.items[0].tensor, "*");
    assert_null(groups.items[0].format);
    assert_int_equal(groups.items[0].n_tensors, 2);
    assert_near(groups.items[0].stats.mean, stats.mean, 0);
    assert_near(groups.items[0].stats.kurtosis, stats.kurtosis, 0);
    assert_memory_equal(groups.items[0].stats.histogram, stats.histogram, sizeof stats.histogram);
    nib_weight_groups_fini(&groups);
    params.by = NIB_WEIGHTS_BY_ROLE;
    assert_int_equal(measure_groups(f, &params, 1, &groups, &error), NIB_OK);
    assert_int_equal(measure_groups(f, &params, 3, &again, &error), NIB_OK);
    assert_int_equal(groups.n, 2);
    assert_int_equal(again.n, 2);
    assert_string_equal(groups.items[1].role, "ffn_down");
    assert_memory_equal(&groups.items[0].stats, &again.items[0].stats, sizeof stats);
    assert_memory_equal(&groups.items[1].stats, &again.items[1].stats, sizeof stats);
    assert_memory_equal(groups.items[0].channels, again.items[0].channels, sizeof again.items[0].channels);
    nib_weight_groups_fini(&groups);
    nib_weight_groups_fini(&again);
}

static bool takes_none(void *user, const nib_tensor *tensor) {
    (void)user;
    (void)tensor;
    return false;
}

static void test_nothing_chosen(void **state) {
    nib_weight_groups groups;
    nib_error error;
    const nib_weights_params params = {.wants = takes_none};
    assert_int_equal(measure_groups(*state, &params, 1, &groups, &error), NIB_ERR_USAGE);
    nib_weight_groups_fini(&groups);
}

static bool stop_at_once(void *user, const nib_progress *progress) {
    (void)user;
    (void)progress;
    return false;
}

static void test_demo_model(void **state) {
    (void)state;
    nib_gguf *gguf = NULL;
    nib_error error;
    nib_weight_stats stats;
    if (nib_gguf_open("demo", &gguf, &error) != NIB_OK) fail_msg("%s", error.message);
    if (nib_weights_measure(gguf, 0, NULL, NULL, &stats, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(stats.n, 4718592 + 1048576); /* its card */
    assert_true(stats.std > 0.01 && stats.std < 1);
    assert_true(stats.kurtosis > 2 && stats.kurtosis < 100);
    assert_near(stats.absmax, fabs(stats.top[0].value), 0);
    const nib_tensor *tensor = nib_gguf_tensor_find(gguf, stats.top[0].tensor);
    assert_non_null(tensor);
    assert_int_equal(nib_format_facts_of(tensor->format)->gguf_type, 30); /* bf16 */
    uint16_t stored;
    memcpy(&stored, tensor->data + 2 * stats.top[0].index, sizeof stored);
    assert_near((double)nib_bf16_to_f32(stored), stats.top[0].value, 0);
    const nib_watch watch = {.progress = stop_at_once};
    assert_int_equal(nib_weights_measure(gguf, 0, NULL, &watch, &stats, &error), NIB_ERR_INTERRUPTED);
    nib_gguf_close(gguf);
}

static int make_fixture(void **state) {
    fixture *f = malloc(sizeof *f);
    if (f == NULL) return -1;
    make_weights(f->weights, f->weights + N_A, f->vector);
    *state = f;
    return 0;
}

static int free_fixture(void **state) {
    free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_against_plain_sums, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_threads_do_not_show, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_histogram, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_constant, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_refusals, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_by_tensor, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_whole_and_roles, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_nothing_chosen, make_fixture, free_fixture),
        cmocka_unit_test(test_demo_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
