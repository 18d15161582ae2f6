/* Formats against whole files: every tensor of every recorded llama-quantize run, encoded anew, with the importance matrix
 * where the run had one. Which type a tensor has is taken from the record (recipes are tested elsewhere). */
#include "base/sha256.h"
#include "unit.h"

#include "base/memory.h"
#include "nibble/format.h"
#include "nibble/gguf.h"
#include <stdio.h>
#include <stdlib.h>

/* Columns of a line of the record. */
enum { MODEL, FTYPE, MODE, IMATRIX, OPTIONS, TENSOR, NE, TYPE, N_BYTES, DIGEST, N_COLUMNS };

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    const size_t n = (size_t)ftell(file);
    rewind(file);
    char *text = malloc(n + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, n, file), n);
    text[n] = 0;
    fclose(file);
    return text;
}

/* The importance of the columns of one matrix of a tensor: sums of squared inputs by their count; ones if it saw none.
 * false: there is nothing about the tensor. */
static bool read_importance(const nib_gguf *imatrix, const char *name, uint64_t matrix, uint64_t n_cols, float *out) {
    char key[160];
    snprintf(key, sizeof key, "%s.in_sum2", name);
    const nib_tensor *sums = imatrix ? nib_gguf_tensor_find(imatrix, key) : NULL;
    snprintf(key, sizeof key, "%s.counts", name);
    const nib_tensor *counts = imatrix ? nib_gguf_tensor_find(imatrix, key) : NULL;
    if (!sums || !counts) return false;
    assert_int_equal(sums->ne[0], n_cols);
    assert_true(matrix < counts->n_elements);
    const float count = nib_load_f32(counts->data + 4 * matrix);
    for (uint64_t i = 0; i < n_cols; i++)
        out[i] = count > 0 ? nib_load_f32(sums->data + 4 * (matrix * n_cols + i)) / count : 1;
    return true;
}

static void check_payload(const nib_tensor *tensor, const nib_gguf *imatrix, char *const *column) {
    const nib_format *format = nib_format_find(column[TYPE]);
    assert_non_null(format);
    const uint64_t n_cols = tensor->ne[0], n_rows = tensor->n_elements / n_cols;
    const size_t row_bytes = nib_format_row_bytes(format, n_cols),
                 from_bytes = nib_format_row_bytes(tensor->format, n_cols);
    assert_int_equal(row_bytes * n_rows, strtoull(column[N_BYTES], NULL, 10));
    uint8_t *payload = malloc(row_bytes * n_rows);
    float *row = malloc(2 * n_cols * sizeof *row), *importance = row + n_cols;
    assert_true(payload && row);
    const bool knows = read_importance(imatrix, tensor->name, 0, n_cols, importance);
    for (uint64_t r = 0; r < n_rows; r++) {
        if (knows && r % tensor->ne[1] == 0)
            read_importance(imatrix, tensor->name, r / tensor->ne[1], n_cols, importance);
        nib_format_decode(tensor->format, row, tensor->data + r * from_bytes, n_cols);
        const nib_verdict seen =
            nib_format_encode(format, payload + r * row_bytes, row, n_cols, knows ? importance : NULL);
        if (seen != NIB_VERDICT_OK)
            fail_msg("%s %s %s: verdict %d", column[MODEL], column[FTYPE], tensor->name, (int)seen);
    }
    char digest[65];
    nib_sha256_of(payload, row_bytes * n_rows, digest);
    if (strcmp(digest, column[DIGEST]) != 0)
        fail_msg("%s %s (importance: %s), %s as %s: the payload differs", column[MODEL], column[FTYPE], column[IMATRIX],
                 tensor->name, column[TYPE]);
    free(row);
    free(payload);
}

/* Returns the number of tensors compared. */
static unsigned check_record(const char *shared, const char *model, const char *mode) {
    char path[1024];
    nib_gguf *gguf = NULL, *imatrix = NULL;
    snprintf(path, sizeof path, "%s/fixtures/quant/%s.%s.tsv", shared, model, mode);
    char *text = read_text(path), *rest = text, *line;
    if (!text) return 0;
    snprintf(path, sizeof path, "%s/fixtures/gguf/%s.gguf", shared, model);
    assert_int_equal(nib_gguf_open(path, &gguf, NULL), NIB_OK);
    snprintf(path, sizeof path, "%s/fixtures/quant/%s.imatrix.gguf", shared, model);
    assert_int_equal(nib_gguf_open(path, &imatrix, NULL), NIB_OK);
    unsigned n = 0;
    (void)strsep(&rest, "\n"); /* the heading */
    while ((line = strsep(&rest, "\n")) && *line) {
        char *column[N_COLUMNS];
        for (unsigned i = 0; i < N_COLUMNS; i++) column[i] = strsep(&line, "\t");
        assert_non_null(column[DIGEST]);
        if (!strcmp(column[TENSOR], "REFUSED")) continue;
        const nib_tensor *tensor = nib_gguf_tensor_find(gguf, column[TENSOR]);
        assert_non_null(tensor);
        check_payload(tensor, strcmp(column[IMATRIX], "yes") == 0 ? imatrix : NULL, column);
        n++;
    }
    nib_gguf_close(imatrix);
    nib_gguf_close(gguf);
    free(text);
    return n;
}

static void test_recorded_files(void **state) {
    (void)state;
    static const char *const models[] = {"llama-256", "qwen3-tied-256", "mixtral"};
    const char *shared = getenv("NIBBLE_SHARED");
    unsigned n = 0;
    const unsigned n_models = UNIT_SANITIZED ? 1 : sizeof models / sizeof *models;
    for (unsigned i = 0; shared && i < n_models; i++) {
        n += check_record(shared, models[i], "pure");
        if (!UNIT_SANITIZED) n += check_record(shared, models[i], "mix");
    }
    if (n == 0) {
        puts("skipped: NIBBLE_SHARED has no fixtures/quant");
        skip();
    }
    assert_true(n > (UNIT_SANITIZED ? 400 : 1000));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recorded_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
