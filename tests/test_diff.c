/* The difference of two files: against sums made the plain way, on files made here. */
#include "gguf_builder.h"
#include "nibble/eval.h"
#include "unit.h"

#include <math.h>
#include <string.h>

#define assert_near(got, want, tolerance)                                                              \
    do {                                                                                               \
        const double got_ = (got), want_ = (want);                                                     \
        if (!(fabs(got_ - want_) <= (tolerance)))                                                      \
            fail_msg("%s: got %.17g, want %.17g within %.3g", #got, got_, want_, (double)(tolerance)); \
    } while (0)

enum { COLUMNS = 512, ROWS = 75, N = COLUMNS * ROWS, N_VECTOR = 64 };

/* A file of up to three tensors: a matrix, a vector, and one only this file has. */
typedef struct parts {
    const char *format; /* of the matrix */
    uint64_t rows;
    const char *vector, *extra; /* names; NULL = none */
} parts;

static nib_gguf *make_file(builder *b, const parts *p, const float *weights, const float *vector) {
    const nib_format *format = nib_format_find(p->format);
    const uint64_t shape[2] = {COLUMNS, p->rows}, vector_shape[1] = {N_VECTOR};
    const size_t row_bytes = nib_format_row_bytes(format, COLUMNS), n_bytes = row_bytes * (size_t)p->rows;
    const size_t padded = (n_bytes + 31) / 32 * 32;
    uint8_t *encoded = malloc(n_bytes);
    nib_gguf *gguf = NULL;
    nib_error error;
    assert_non_null(encoded);
    for (uint64_t r = 0; r < p->rows; r++)
        assert_int_equal(nib_format_encode(format, encoded + r * row_bytes, weights + r * COLUMNS, COLUMNS, NULL),
                         NIB_VERDICT_OK);
    begin_image(b, 3);
    put_kv_string(b, "general.architecture", "llama");
    put_tensor(b, "blk.0.ffn_up.weight", 2, shape, nib_format_facts_of(format)->gguf_type, 0);
    if (p->vector) put_tensor(b, p->vector, 1, vector_shape, 0, padded);
    if (p->extra) put_tensor(b, p->extra, 1, vector_shape, 0, padded + (p->vector ? N_VECTOR * 4 : 0));
    end_header(b, 32);
    put_bytes(b, encoded, n_bytes);
    pad_image(b, 32);
    if (p->vector) put_bytes(b, vector, N_VECTOR * sizeof *vector);
    if (p->extra) put_bytes(b, vector, N_VECTOR * sizeof *vector);
    free(encoded);
    if (nib_gguf_open_memory(b->text.data, b->text.n_bytes, p->format, &gguf, &error) != NIB_OK)
        fail_msg("%s", error.message);
    return gguf;
}

typedef struct fixture {
    float weights[N], vector[N_VECTOR];
} fixture;

static int make_fixture(void **state) {
    fixture *f = calloc(1, sizeof *f);
    uint32_t seed = 7;
    if (f == NULL) return -1;
    for (int i = 0; i < N + N_VECTOR; i++) {
        float sum = 0;
        for (int j = 0; j < 4; j++) {
            seed = seed * 1664525 + 1013904223;
            sum += (float)(seed >> 8) / 16777216.0f - 0.5f;
        }
        *(i < N ? &f->weights[i] : &f->vector[i - N]) = sum;
    }
    *state = f;
    return 0;
}

static int free_fixture(void **state) {
    free(*state);
    return 0;
}

static nib_status compare(const fixture *f, const parts *a, const parts *b, unsigned n_threads, nib_weight_diff *out,
                          nib_error *error) {
    builder images[2];
    nib_pool *pool = NULL;
    assert_int_equal(nib_pool_new(n_threads, &pool, error), NIB_OK);
    nib_gguf *x = make_file(&images[0], a, f->weights, f->vector);
    nib_gguf *y = make_file(&images[1], b, f->weights, f->vector);
    const nib_status status = nib_weights_compare(x, y, NULL, NULL, pool, NULL, out, error);
    nib_gguf_close(x);
    nib_gguf_close(y);
    for (int i = 0; i < 2; i++) free_image(&images[i]);
    nib_pool_free(pool);
    return status;
}

static const parts original = {"f32", ROWS, "output_norm.weight", NULL};

static void check_against_plain_sums(const fixture *f, const char *name, uint32_t n_codes) {
    const nib_format *format = nib_format_find(name);
    const parts coarse = {name, ROWS, "output_norm.weight", NULL};
    uint8_t row[COLUMNS * 4];
    float decoded[COLUMNS];
    double aa = 0, bb = 0, ab = 0, errors = 0, largest = 0;
    size_t at = 0;
    nib_weight_diff diff;
    nib_error error;
    for (size_t r = 0; r < ROWS; r++) {
        nib_format_encode(format, row, f->weights + r * COLUMNS, COLUMNS, NULL);
        nib_format_decode(format, decoded, row, COLUMNS);
        for (size_t c = 0; c < COLUMNS; c++) {
            const double x = (double)f->weights[r * COLUMNS + c], y = (double)decoded[c];
            aa += x * x;
            bb += y * y;
            ab += x * y;
            errors += (x - y) * (x - y);
            if (fabs(x - y) > largest) {
                largest = fabs(x - y);
                at = r * COLUMNS + c;
            }
        }
    }
    if (compare(f, &original, &coarse, 2, &diff, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(diff.n, 2);
    assert_int_equal(diff.n_both, 2);
    assert_int_equal(diff.n_identical, 1);
    assert_int_equal(diff.n_weights, N + N_VECTOR);
    const nib_tensor_diff *t = &diff.tensors[0];
    assert_string_equal(t->name, "blk.0.ffn_up.weight"); /* the worse comes first */
    assert_string_equal(nib_format_facts_of(t->format[1])->name, name);
    assert_near(t->rel_rmse, sqrt(errors / aa), 1e-12);
    assert_near(t->cosine, ab / sqrt(aa * bb), 1e-12);
    assert_near(t->max_abs_error, largest, 0);
    assert_int_equal(t->row, at / COLUMNS);
    assert_int_equal(t->column, at % COLUMNS);
    assert_near(t->value[0], (double)f->weights[at], 0);
    assert_near(fabs(t->value[0] - t->value[1]), largest, 0);
    assert_int_equal(t->n_codes[0], 0);
    assert_true(isnan(t->codes_used[0]));
    assert_int_equal(t->n_codes[1], n_codes);
    if (n_codes > 0 && n_codes <= 16) assert_near(t->codes_used[1], 1, 0);
    if (n_codes > 0) assert_true(t->codes_used[1] > 0.5 && t->codes_used[1] <= 1);
    assert_near(diff.tensors[1].rel_rmse, 0, 0);
    assert_near(diff.tensors[1].cosine, 1, 0);
    assert_near(diff.max_abs_error, largest, 0);
    assert_int_equal(diff.max_at, 0);
    assert_true(diff.rel_rmse < t->rel_rmse && diff.rel_rmse > 0);
    nib_weight_diff_fini(&diff);
}

static void test_against_plain_sums(void **state) {
    check_against_plain_sums(*state, "q4_0", 16);
    check_against_plain_sums(*state, "q2_k", 4);
    check_against_plain_sums(*state, "q6_k", 64);
    check_against_plain_sums(*state, "q8_0", 256);
    check_against_plain_sums(*state, "bf16", 0);
}

/* Two codes of sixteen: a matrix of two values. */
static void test_unused_codes_show(void **state) {
    fixture *f = *state;
    const parts coarse = {"q4_0", ROWS, NULL, NULL};
    nib_weight_diff diff;
    nib_error error;
    for (int i = 0; i < N; i++) f->weights[i] = i % 2 ? 0.0f : -1.0f;
    assert_int_equal(compare(f, &original, &coarse, 1, &diff, &error), NIB_OK);
    assert_near(diff.tensors[0].codes_used[1], 2.0 / 16, 0);
    assert_near(diff.tensors[0].rel_rmse, 0, 0);
    nib_weight_diff_fini(&diff);
}

static void test_threads_do_not_show(void **state) {
    const parts coarse = {"q4_k", ROWS, "output_norm.weight", NULL};
    nib_weight_diff one, three;
    nib_error error;
    assert_int_equal(compare(*state, &original, &coarse, 1, &one, &error), NIB_OK);
    assert_int_equal(compare(*state, &original, &coarse, 3, &three, &error), NIB_OK);
    assert_int_equal(one.n, three.n);
    assert_memory_equal(&one.rel_rmse, &three.rel_rmse, sizeof one.rel_rmse);
    assert_memory_equal(&one.tensors[0].rel_rmse, &three.tensors[0].rel_rmse, sizeof(double));
    assert_memory_equal(&one.tensors[0].cosine, &three.tensors[0].cosine, sizeof(double));
    assert_int_equal(one.tensors[0].row, three.tensors[0].row);
    nib_weight_diff_fini(&one);
    nib_weight_diff_fini(&three);
}

static void test_missing_tensors(void **state) {
    const parts other = {"f32", ROWS, NULL, "rope_freqs.weight"};
    nib_weight_diff diff;
    nib_error error;
    assert_int_equal(compare(*state, &original, &other, 1, &diff, &error), NIB_OK);
    assert_int_equal(diff.n, 3);
    assert_int_equal(diff.n_both, 1);
    assert_int_equal(diff.n_only[0], 1);
    assert_int_equal(diff.n_only[1], 1);
    assert_string_equal(diff.tensors[1].name, "output_norm.weight");
    assert_null(diff.tensors[1].format[1]);
    assert_string_equal(diff.tensors[2].name, "rope_freqs.weight");
    assert_null(diff.tensors[2].format[0]);
    nib_json *json = nib_json_new();
    const char *text;
    size_t n_bytes;
    nib_json_begin_object(json, NULL);
    nib_weight_diff_write_json(&diff, json);
    nib_json_end_object(json);
    assert_int_equal(nib_json_text(json, &text, &n_bytes, &error), NIB_OK);
    assert_non_null(strstr(text, "only in A"));
    assert_non_null(strstr(text, "only in B"));
    assert_null(strstr(text, "nan"));
    nib_json_free(json);
    nib_weight_diff_fini(&diff);
}

static void test_refusals(void **state) {
    fixture *f = *state;
    const parts shorter = {"f32", ROWS - 1, "output_norm.weight", NULL};
    nib_weight_diff diff;
    nib_error error;
    assert_int_equal(compare(f, &original, &shorter, 1, &diff, &error), NIB_ERR_USAGE);
    assert_string_equal(error.field, "blk.0.ffn_up.weight");
    assert_non_null(strstr(error.message, "512 x 74"));
    assert_non_null(strstr(error.message, "512 x 75"));
    nib_weight_diff_fini(&diff);
    f->vector[9] = NAN;
    assert_int_equal(compare(f, &original, &original, 2, &diff, &error), NIB_ERR_CORRUPT);
    assert_string_equal(error.field, "output_norm.weight");
    assert_non_null(strstr(error.message, "column 9"));
    nib_weight_diff_fini(&diff);
}

static void test_zeros(void **state) {
    fixture *f = *state;
    nib_weight_diff diff;
    nib_error error;
    memset(f->weights, 0, sizeof f->weights);
    memset(f->vector, 0, sizeof f->vector);
    assert_int_equal(compare(f, &original, &original, 1, &diff, &error), NIB_OK);
    assert_near(diff.rel_rmse, 0, 0);
    assert_true(isnan(diff.cosine));
    assert_int_equal(diff.n_identical, 2);
    nib_weight_diff_fini(&diff);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_against_plain_sums, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_unused_codes_show, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_threads_do_not_show, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_missing_tensors, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_refusals, make_fixture, free_fixture),
        cmocka_unit_test_setup_teardown(test_zeros, make_fixture, free_fixture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
