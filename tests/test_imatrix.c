/* Importance matrices: both formats made here value by value, what is repaired and said, hostile files, what the quantizer
 * does with them; real files against each other (NIBBLE_SHARED). Bytes against llama-quantize's: test_quantize.c. */
#include "unit.h"

#include "base/files.h"
#include "file/gguf_file.h"
#include "gguf_builder.h"
#include "nibble/quant.h"
#include <math.h>
#include <stdio.h>
#include <unistd.h>

static char folder[] = "/tmp/nibble-test-imatrix-XXXXXX";

static const char *in_folder(const char *name) {
    static char paths[4][256];
    static size_t turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static const char *put_file(const char *name, const void *data, size_t n_bytes) {
    const char *path = in_folder(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
    return path;
}

/* ---- What was said --------------------------------------------------------------------------------------------------- */

static char said[4096];

static void hear(void *user, const char *message) {
    (void)user;
    const size_t n = strlen(said);
    snprintf(said + n, sizeof said - n, "%s\n", message);
}

static const nib_watch watch = {.warn = hear};

static size_t n_said(const char *text) {
    size_t n = 0;
    for (const char *at = said; (at = strstr(at, text)); at++) n++;
    return n;
}

static nib_imatrix *open_imatrix(const char *path) {
    nib_imatrix *imatrix;
    nib_error error = {0};
    said[0] = 0;
    if (nib_imatrix_open(path, &watch, &imatrix, &error) != NIB_OK) fail_msg("%s: %s", path, error.message);
    return imatrix;
}

static void expect_refusal(const char *path, nib_status expected, const char *words) {
    nib_imatrix *imatrix;
    nib_error error = {0};
    assert_int_equal(nib_imatrix_open(path, &watch, &imatrix, &error), expected);
    assert_null(imatrix);
    if (!strstr(error.message, words)) fail_msg("\"%s\" does not say \"%s\"", error.message, words);
    assert_string_equal(error.file, path);
}

static void expect_values(const nib_imatrix *imatrix, const char *name, uint64_t n_columns, uint64_t n_matrices,
                          const float *expected) {
    const float *values;
    assert_int_equal(nib_imatrix_find(imatrix, name, n_columns, n_matrices, &values), NIB_IMATRIX_FOUND);
    for (uint64_t i = 0; i < n_columns * n_matrices; i++)
        if (values[i] != expected[i]) fail_msg("%s[%u]: %g, not %g", name, (unsigned)i, values[i], expected[i]);
}

/* ---- Files made here --------------------------------------------------------------------------------------------------- */

/* One weight matrix, or a stack of them. */
typedef struct made_entry {
    const char *name;
    uint64_t n_columns, n_matrices;
    const float *sums, *counts; /* (n_matrices, n_columns), (n_matrices) */
} made_entry;

static void begin_gguf(builder *b) {
    begin_image(b, 3);
    put_kv_string(b, "general.type", "imatrix");
    put_key(b, "imatrix.datasets", NIB_GGUF_ARRAY);
    put_u32(b, NIB_GGUF_STRING);
    put_u64(b, 2);
    put_string(b, "one.txt");
    put_string(b, "two.txt");
    put_kv_u32(b, "imatrix.chunk_count", 7);
    put_kv_u32(b, "imatrix.chunk_size", 512);
}

static void put_floats(builder *b, const float *values, uint64_t n) {
    put_bytes(b, values, (size_t)n * 4);
    pad_image(b, 32);
}

static void put_entries(builder *b, const made_entry *entries, size_t n) {
    uint64_t offset = 0;
    for (size_t i = 0; i < n; i++) {
        const made_entry *e = &entries[i];
        char name[128];
        snprintf(name, sizeof name, "%s.in_sum2", e->name);
        put_tensor(b, name, 2, (uint64_t[]){e->n_columns, e->n_matrices}, 0, offset);
        offset += nib_round_up(4 * e->n_columns * e->n_matrices, 32);
        if (!e->counts) continue;
        snprintf(name, sizeof name, "%s.counts", e->name);
        put_tensor(b, name, 2, (uint64_t[]){1, e->n_matrices}, 0, offset);
        offset += nib_round_up(4 * e->n_matrices, 32);
    }
    end_header(b, 32);
    for (size_t i = 0; i < n; i++) {
        put_floats(b, entries[i].sums, entries[i].n_columns * entries[i].n_matrices);
        if (entries[i].counts) put_floats(b, entries[i].counts, entries[i].n_matrices);
    }
}

static const char *put_gguf(const char *name, const made_entry *entries, size_t n) {
    builder b;
    begin_gguf(&b);
    put_entries(&b, entries, n);
    const char *path = put_file(name, b.text.data, b.text.n_bytes);
    free_image(&b);
    return path;
}

static void put_legacy_entry(builder *b, const char *name, uint32_t n_calls, const float *values, uint32_t n) {
    put_u32(b, (uint32_t)strlen(name));
    put_bytes(b, name, strlen(name));
    put_u32(b, n_calls);
    put_u32(b, n);
    put_bytes(b, values, 4 * (size_t)n);
}

/* "a.weight" 1 2 3 over 4 calls, "b.weight" 5 6 over none; 9 chunks of "text" */
static void make_legacy(builder *b, bool trailer) {
    *b = (builder){0};
    put_u32(b, 2);
    put_legacy_entry(b, "b.weight", 0, (const float[]){5, 6}, 2);
    put_legacy_entry(b, "a.weight", 4, (const float[]){4, 8, 12}, 3);
    if (!trailer) return;
    put_u32(b, 9);
    put_u32(b, 4);
    put_bytes(b, "text", 4);
}

static void test_gguf(void **state) {
    (void)state;
    const made_entry entries[] = {
        {"blk.0.b.weight", 4, 1, (const float[]){2, 4, 0, 8}, (const float[]){2}},
        {"blk.0.a.weight", 2, 3, (const float[]){3, 6, 1, 2, 10, 20}, (const float[]){3, 0, 10}},
    };
    nib_imatrix *imatrix = open_imatrix(put_gguf("a.gguf", entries, 2));
    const float *values;
    const nib_imatrix_facts facts = nib_imatrix_facts_of(imatrix);
    assert_string_equal(facts.path, in_folder("a.gguf"));
    assert_string_equal(facts.dataset, "one.txt");
    assert_int_equal(facts.n_entries, 2);
    assert_int_equal(facts.n_chunks, 7);
    assert_false(facts.is_legacy);
    expect_values(imatrix, "blk.0.b.weight", 4, 1, (const float[]){1, 2, 0, 4});
    expect_values(imatrix, "blk.0.a.weight", 2, 3, (const float[]){1, 2, 1, 1, 1, 2});
    assert_int_equal(n_said("1 of 3 matrices were never used"), 1);
    assert_int_equal(n_said("\n"), 1);
    assert_int_equal(nib_imatrix_find(imatrix, "blk.0.c.weight", 4, 1, &values), NIB_IMATRIX_ABSENT);
    assert_int_equal(nib_imatrix_find(imatrix, "blk.0.b.weight", 5, 1, &values), NIB_IMATRIX_WRONG_SIZE);
    assert_int_equal(nib_imatrix_find(imatrix, "blk.0.b.weight", UINT64_MAX / 2, 4, &values), NIB_IMATRIX_WRONG_SIZE);
    assert_null(values);
    nib_imatrix_free(imatrix);
    nib_imatrix_free(NULL);
}

static void test_legacy(void **state) {
    (void)state;
    for (unsigned trailer = 0; trailer < 2; trailer++) {
        builder b;
        make_legacy(&b, trailer == 1);
        nib_imatrix *imatrix = open_imatrix(put_file("a.dat", b.text.data, b.text.n_bytes));
        const nib_imatrix_facts facts = nib_imatrix_facts_of(imatrix);
        assert_true(facts.is_legacy);
        assert_int_equal(facts.n_entries, 2);
        assert_int_equal(facts.n_chunks, trailer ? 9 : 0);
        if (trailer)
            assert_string_equal(facts.dataset, "text");
        else
            assert_null(facts.dataset);
        expect_values(imatrix, "a.weight", 3, 1, (const float[]){1, 2, 3});
        expect_values(imatrix, "b.weight", 1, 2, (const float[]){5, 6});
        assert_string_equal(said, "");
        nib_imatrix_free(imatrix);
        free_image(&b);
    }
}

/* What no encoder could use becomes ones, matrix by matrix, and is said once per entry. */
static void test_repairs(void **state) {
    (void)state;
    static const float sums[][4] = {{1, NAN, 1, 2}, {1, -1, 3, 4}, {INFINITY, 1, 1, 2}, {0, 0, 0, 0}, {1e30f, 1, 1, 2}};
    static const float ones[4] = {1, 1, 1, 1};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) {
        /* one matrix of four columns; then two of two columns, of which the second may be fine */
        const made_entry entries[] = {{"whole", 4, 1, sums[i], (const float[]){1}},
                                      {"halves", 2, 2, sums[i], (const float[]){1, 1}}};
        const float *values;
        nib_imatrix *imatrix = open_imatrix(put_gguf("r.gguf", entries, 2));
        expect_values(imatrix, "whole", 4, 1, ones);
        assert_int_equal(n_said("whole"), 1);
        assert_int_equal(n_said("halves"), 1);
        assert_int_equal(nib_imatrix_find(imatrix, "halves", 2, 2, &values), NIB_IMATRIX_FOUND);
        assert_true(values[0] == 1 && values[1] == 1);
        if (i != 3) assert_true(values[2] == sums[i][2] && values[3] == sums[i][3]);
        nib_imatrix_free(imatrix);
    }
    for (size_t i = 0; i < 4; i++) { /* counts that are no counts */
        static const float counts[] = {0, -3, NAN, INFINITY};
        const made_entry entry = {"whole", 4, 1, (const float[]){1, 2, 3, 4}, &counts[i]};
        nib_imatrix *imatrix = open_imatrix(put_gguf("r.gguf", &entry, 1));
        expect_values(imatrix, "whole", 4, 1, ones);
        assert_int_equal(n_said("never used"), 1);
        nib_imatrix_free(imatrix);
    }
}

/* ---- Hostile files ----------------------------------------------------------------------------------------------------- */

static void test_refusals(void **state) {
    (void)state;
    builder b;
    const made_entry good = {"a", 2, 1, (const float[]){1, 2}, (const float[]){1}};
    const made_entry lonely = {"a", 2, 1, (const float[]){1, 2}, NULL};
    expect_refusal(in_folder("absent"), NIB_ERR_IO, "");
    expect_refusal(put_file("empty", "", 0), NIB_ERR_CORRUPT, "too early");
    expect_refusal(put_file("text", "once upon a time there was", 26), NIB_ERR_CORRUPT, "more is announced");
    expect_refusal(put_gguf("lonely", &lonely, 1), NIB_ERR_CORRUPT, "without counts");
    expect_refusal(put_gguf("nothing", &good, 0), NIB_ERR_CORRUPT, "no entries");
    begin_image(&b, 3); /* a model */
    put_kv_string(&b, "general.architecture", "llama");
    put_entries(&b, &good, 1);
    expect_refusal(put_file("model", b.text.data, b.text.n_bytes), NIB_ERR_CORRUPT, "not an importance matrix");
    free_image(&b);
    begin_gguf(&b); /* 5 sums for 2 counts */
    put_tensor(&b, "a.in_sum2", 1, (uint64_t[]){5}, 0, 0);
    put_tensor(&b, "a.counts", 1, (uint64_t[]){2}, 0, 32);
    end_header(&b, 32);
    put_floats(&b, (const float[]){1, 2, 3, 4, 5}, 5);
    put_floats(&b, (const float[]){1, 2}, 2);
    expect_refusal(put_file("odd", b.text.data, b.text.n_bytes), NIB_ERR_CORRUPT, "multiple");
    free_image(&b);
    b = (builder){0}; /* the same name twice */
    put_u32(&b, 2);
    put_legacy_entry(&b, "a", 1, (const float[]){1}, 1);
    put_legacy_entry(&b, "a", 1, (const float[]){2}, 1);
    expect_refusal(put_file("twice", b.text.data, b.text.n_bytes), NIB_ERR_CORRUPT, "same name");
    free_image(&b);
}

/* Opening damaged bytes ends with a status, whatever they are; what opens can be used. */
static void try_bytes(const char *name, const char *data, size_t n_bytes) {
    nib_imatrix *imatrix;
    nib_error error = {0};
    said[0] = 0;
    const nib_status status = nib_imatrix_open(put_file(name, data, n_bytes), &watch, &imatrix, &error);
    if (status != NIB_OK) {
        assert_true(status == NIB_ERR_CORRUPT || status == NIB_ERR_UNSUPPORTED || status == NIB_ERR_MEMORY);
        assert_true(error.message[0] != 0);
        return;
    }
    const float *values;
    (void)nib_imatrix_find(imatrix, "a.weight", 3, 1, &values);
    for (size_t i = 0; values && i < 3; i++) assert_true(values[i] >= 0 && isfinite(values[i]));
    assert_true(nib_imatrix_facts_of(imatrix).n_entries > 0);
    nib_imatrix_free(imatrix);
}

static void test_damage(void **state) {
    (void)state;
    const made_entry entry = {"a.weight", 3, 1, (const float[]){1, 2, 3}, (const float[]){1}};
    for (unsigned legacy = 0; legacy < 2; legacy++) {
        const char *name = legacy ? "f.dat" : "f.gguf";
        builder b;
        uint32_t random = 1;
        if (legacy) {
            make_legacy(&b, true);
        } else {
            begin_gguf(&b);
            put_entries(&b, &entry, 1);
        }
        for (size_t n = 0; n < b.text.n_bytes; n++) try_bytes(name, b.text.data, n);
        for (size_t i = 0; i < b.text.n_bytes; i++) {
            static const uint8_t bytes[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
            const char before = b.text.data[i];
            for (size_t k = 0; k < sizeof bytes; k++) {
                b.text.data[i] = (char)bytes[k];
                try_bytes(name, b.text.data, b.text.n_bytes);
            }
            b.text.data[i] = before;
        }
        char *copy = nib_strdup_n(b.text.data, b.text.n_bytes);
        assert_non_null(copy);
        for (unsigned turn = 0; turn < 500; turn++) {
            memcpy(copy, b.text.data, b.text.n_bytes);
            for (unsigned k = 0; k < 1 + turn % 5; k++) {
                random = random * 1664525u + 1013904223u;
                copy[(random >> 8) % b.text.n_bytes] ^= (char)(1u << (random >> 29));
            }
            try_bytes(name, copy, b.text.n_bytes);
        }
        free(copy);
        free_image(&b);
    }
}

/* ---- In the quantizer ---------------------------------------------------------------------------------------------------- */

enum { N_COLUMNS = 256, N_ROWS = 3, N_MATRICES = 2 };

/* token_embd, output, a matrix and a stack of two, in f32; its metadata say that it was made with another imatrix. */
static nib_gguf *make_model(builder *b) {
    nib_gguf *gguf;
    nib_error error = {0};
    const uint64_t flat[] = {N_COLUMNS, N_ROWS}, stack[] = {N_COLUMNS, N_ROWS, N_MATRICES};
    const uint64_t n_bytes = 4 * N_COLUMNS * N_ROWS;
    begin_image(b, 3);
    put_kv_string(b, "general.architecture", "llama");
    put_kv_string(b, "quantize.imatrix.file", "old");
    put_kv_u32(b, "llama.block_count", 1);
    put_kv_u32(b, "llama.expert_count", 2);
    put_tensor(b, "token_embd.weight", 2, flat, 0, 0);
    put_tensor(b, "output.weight", 2, flat, 0, n_bytes);
    put_tensor(b, "blk.0.attn_q.weight", 2, flat, 0, 2 * n_bytes);
    put_tensor(b, "blk.0.ffn_up_exps.weight", 3, stack, 0, 3 * n_bytes);
    end_header(b, 32);
    for (unsigned i = 0; i < 5 * N_COLUMNS * N_ROWS; i++) {
        const float value = sinf((float)i * 0.7f) * (float)(1 + i % 7);
        put_bytes(b, &value, 4);
    }
    if (nib_gguf_open_memory(b->text.data, b->text.n_bytes, "model", &gguf, &error) != NIB_OK)
        fail_msg("%s", error.message);
    return gguf;
}

static nib_status quantize(const nib_gguf *gguf, const char *recipe, const nib_imatrix *imatrix, nib_gguf **made,
                           nib_error *error) {
    nib_quantized report;
    uint64_t n_bytes = 0;
    const nib_quantize_params params = {.recipe = nib_recipe_find(recipe, NULL),
                                        .imatrix = imatrix,
                                        .pure = true,
                                        .force = true,
                                        .no_sync = true,
                                        .no_provenance = true};
    said[0] = 0;
    const nib_status status = nib_quantize(gguf, in_folder("out.gguf"), &params, NULL, &watch, &report, error);
    if (status == NIB_OK) {
        assert_string_equal(report.imatrix, nib_imatrix_facts_of(imatrix).path);
        assert_int_equal(nib_gguf_open(in_folder("out.gguf"), made, error), NIB_OK);
        assert_int_equal(nib_quantize_plan(gguf, &params, &n_bytes, NULL), NIB_OK);
        assert_int_equal(n_bytes, nib_gguf_bytes(*made));
    } else {
        assert_int_equal(nib_quantize_plan(gguf, &params, &n_bytes, NULL), status);
    }
    nib_quantized_fini(&report);
    return status;
}

/* Every row is encoded with the importance of its own matrix. */
static void test_importance_reaches_rows(void **state) {
    (void)state;
    float sums[N_MATRICES * N_COLUMNS], counts[N_MATRICES] = {1, 1};
    for (unsigned i = 0; i < N_MATRICES * N_COLUMNS; i++) sums[i] = (float)(1 + i * 37 % 101);
    const made_entry entries[] = {{"blk.0.attn_q.weight", N_COLUMNS, 1, sums + 100, counts},
                                  {"blk.0.ffn_up_exps.weight", N_COLUMNS, N_MATRICES, sums, counts}};
    builder b;
    nib_gguf *source = make_model(&b), *made = NULL;
    nib_imatrix *imatrix = open_imatrix(put_gguf("i.gguf", entries, 2));
    nib_error error = {0};
    assert_int_equal(quantize(source, "q4_k", imatrix, &made, &error), NIB_OK);
    assert_string_equal(said, "");
    for (uint64_t t = 0; t < 4; t++) {
        const nib_tensor *to = nib_gguf_tensor_at(made, t), *from = nib_gguf_tensor_find(source, to->name);
        const size_t n_row = nib_format_row_bytes(to->format, N_COLUMNS);
        for (uint64_t row = 0; row < to->n_elements / N_COLUMNS; row++) {
            uint8_t expected[256], plain[256];
            const float *weights = (const float *)(const void *)(from->data + 4 * N_COLUMNS * row);
            const float *importance = strstr(to->name, "exps")     ? sums + row / N_ROWS * N_COLUMNS
                                      : strstr(to->name, "attn_q") ? sums + 100
                                                                   : NULL;
            assert_int_equal(nib_format_encode(to->format, expected, weights, N_COLUMNS, importance), NIB_VERDICT_OK);
            assert_memory_equal(to->data + n_row * row, expected, n_row);
            assert_int_equal(nib_format_encode(to->format, plain, weights, N_COLUMNS, NULL), NIB_VERDICT_OK);
            assert_int_equal(importance != NULL, memcmp(plain, expected, n_row) != 0);
        }
    }
    nib_gguf_close(made);
    nib_imatrix_free(imatrix);
    nib_gguf_close(source);
    free_image(&b);
}

/* Rows longer than a piece of the quantizer's come out as if they had been encoded whole, also where importance is weighed
 * by all of a row; alone, and beside an output that is cut up. */
static void test_long_rows(void **state) {
    (void)state;
    enum { N_LONG = 2 * NIB_PIECE_COLUMNS + 512, N = N_LONG * N_ROWS };
    const uint64_t ne[] = {N_LONG, N_ROWS};
    float *values = nib_alloc(N, sizeof *values), *sums = nib_alloc(N_LONG, sizeof *sums), counts[1] = {1};
    for (unsigned i = 0; i < N; i++) values[i] = sinf((float)i * 0.7f) * (float)(1 + i / NIB_PIECE_COLUMNS);
    for (unsigned i = 0; i < N_LONG; i++) sums[i] = (float)(1 + i * 37 % 101);
    builder b;
    nib_gguf *source, *made;
    nib_error error = {0};
    begin_image(&b, 3);
    put_kv_string(&b, "general.architecture", "llama");
    put_tensor(&b, "blk.0.ffn_down.weight", 2, ne, 0, 0);
    end_header(&b, 32);
    put_bytes(&b, values, N * sizeof *values);
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "model", &source, &error), NIB_OK);
    const made_entry entry = {"blk.0.ffn_down.weight", N_LONG, 1, sums, counts};
    nib_imatrix *imatrix = open_imatrix(put_gguf("i.gguf", &entry, 1));
    const nib_recipe *recipe;
    unsigned n_weigh_rows = 0;
    for (unsigned k = 0; (recipe = nib_recipe_at(k)); k++) {
        const nib_format *format = nib_recipe_format(recipe);
        const nib_quantize_params one = {
            .recipe = recipe, .imatrix = imatrix, .pure = true, .force = true, .no_sync = true};
        nib_quantize_params both[2] = {one, one};
        nib_quantized reports[2];
        both[0].recipe = nib_recipe_find("q8_0", NULL);
        const char *const paths[] = {in_folder("first.gguf"), in_folder("second.gguf")};
        const size_t n_row = nib_format_row_bytes(format, N_LONG);
        uint8_t *expected = nib_alloc(n_row, N_ROWS);
        for (size_t i = 0; i < N_ROWS; i++)
            assert_int_equal(nib_format_encode(format, expected + n_row * i, values + i * N_LONG, N_LONG, sums),
                             NIB_VERDICT_OK);
        for (size_t n = 1; n <= 2; n++) {
            assert_int_equal(nib_quantize_many(source, n, paths + 2 - n, both + 2 - n, NULL, NULL, reports, &error),
                             NIB_OK);
            assert_int_equal(nib_gguf_open(paths[1], &made, &error), NIB_OK);
            assert_memory_equal(nib_gguf_tensor_at(made, 0)->data, expected, n_row * N_ROWS);
            nib_gguf_close(made);
            for (size_t i = 0; i < n; i++) nib_quantized_fini(&reports[i]);
        }
        n_weigh_rows += nib_format_facts_of(format)->weighs_rows;
        free(expected);
    }
    assert_int_equal(n_weigh_rows, 4); /* q4_0, q4_1, q5_0, q5_1 */
    nib_imatrix_free(imatrix);
    nib_gguf_close(source);
    free_image(&b);
    free(values);
    free(sums);
}

static void expect_text(const nib_gguf *gguf, const char *key, const char *expected, size_t n) {
    nib_text text;
    assert_true(nib_gguf_get_text(gguf, key, &text));
    assert_int_equal(text.n_bytes, n);
    assert_memory_equal(text.data, expected, n);
}

static void test_metadata(void **state) {
    (void)state;
    char dataset[300];
    memset(dataset, 'x', sizeof dataset);
    builder b, file = {0};
    const float ones[N_COLUMNS] = {1};
    put_u32(&file, 1);
    put_legacy_entry(&file, "blk.0.attn_q.weight", 1, ones, N_COLUMNS);
    put_u32(&file, 5);
    put_u32(&file, sizeof dataset);
    put_bytes(&file, dataset, sizeof dataset);
    nib_gguf *source = make_model(&b), *made = NULL;
    nib_imatrix *imatrix = open_imatrix(put_file("m.dat", file.text.data, file.text.n_bytes));
    nib_error error = {0};
    uint64_t number;
    assert_int_equal(quantize(source, "q4_0", imatrix, &made, &error), NIB_OK);
    const char *path = nib_imatrix_facts_of(imatrix).path;
    expect_text(made, "quantize.imatrix.file", path, strlen(path));
    expect_text(made, "quantize.imatrix.dataset", dataset, 127);
    assert_true(nib_gguf_get_u64(made, "quantize.imatrix.entries_count", &number) && number == 1);
    assert_true(nib_gguf_get_u64(made, "quantize.imatrix.chunks_count", &number) && number == 5);
    assert_int_equal(n_said("blk.0.ffn_up_exps.weight: the importance matrix has no such entry"), 1);
    assert_int_equal(n_said("\n"), 1); /* nothing about embedding and output */
    nib_gguf_close(made);
    nib_imatrix_free(imatrix);
    nib_gguf_close(source);
    free_image(&file);
    free_image(&b);
}

static void test_what_does_not_fit(void **state) {
    (void)state;
    const float ones[2 * N_COLUMNS] = {1};
    const made_entry odd[] = {{"blk.0.attn_q.weight", N_COLUMNS, 1, ones, ones},
                              {"blk.0.ffn_up_exps.weight", N_COLUMNS, 1, ones, ones}};
    const made_entry other[] = {{"blk.0.attn_q.weight", 2 * N_COLUMNS, 1, ones, ones}};
    builder b;
    nib_gguf *source = make_model(&b), *made = NULL;
    nib_error error = {0};
    nib_imatrix *imatrix = open_imatrix(put_gguf("odd.gguf", odd, 2));
    assert_int_equal(quantize(source, "q3_k_s", imatrix, &made, &error), NIB_OK);
    assert_int_equal(n_said("blk.0.ffn_up_exps.weight: its entry in the importance matrix is for another shape"), 1);
    nib_gguf_close(made);
    /* a format that is garbage without importance is refused, the tensor named */
    assert_int_equal(quantize(source, "q2_k_s", imatrix, &made, &error), NIB_ERR_UNSUPPORTED);
    assert_string_equal(error.field, "blk.0.ffn_up_exps.weight");
    assert_int_equal(quantize(source, "q2_k_s", NULL, &made, &error), NIB_ERR_UNSUPPORTED);
    assert_string_equal(error.field, "blk.0.attn_q.weight");
    nib_imatrix_free(imatrix);
    imatrix = open_imatrix(put_gguf("other.gguf", other, 1));
    assert_int_equal(quantize(source, "q4_k", imatrix, &made, &error), NIB_ERR_CORRUPT);
    assert_non_null(strstr(error.message, "another model"));
    assert_int_equal(quantize(source, "q2_k_s", imatrix, &made, &error), NIB_ERR_CORRUPT);
    assert_int_equal(quantize(source, "bf16", imatrix, &made, &error), NIB_OK); /* nothing to weigh */
    nib_gguf_close(made);
    nib_imatrix_free(imatrix);
    nib_gguf_close(source);
    free_image(&b);
}

/* ---- Real files ---------------------------------------------------------------------------------------------------------- */

/* Both formats of one measurement say the same up to the rounding of a division more. */
static void test_formats_agree(void **state) {
    (void)state;
    static const char *const models[] = {"qwen3-tied-256", "llama-256"};
    const char *shared = getenv("NIBBLE_SHARED");
    char path[1024];
    snprintf(path, sizeof path, "%s/fixtures/quant/llama-256.imatrix.dat", shared ? shared : "");
    if (access(path, R_OK) != 0) {
        print_message("skipped: NIBBLE_SHARED has no fixtures/quant\n");
        skip();
    }
    for (size_t m = 0; m < 2; m++) {
        nib_gguf *gguf;
        size_t n_found = 0;
        snprintf(path, sizeof path, "%s/fixtures/quant/%s.imatrix.gguf", shared, models[m]);
        nib_imatrix *now = open_imatrix(path);
        snprintf(path, sizeof path, "%s/fixtures/quant/%s.imatrix.dat", shared, models[m]);
        nib_imatrix *legacy = open_imatrix(path);
        assert_string_equal(said, "");
        const nib_imatrix_facts a = nib_imatrix_facts_of(now), b = nib_imatrix_facts_of(legacy);
        assert_true(!a.is_legacy && b.is_legacy && a.n_entries == b.n_entries && a.n_chunks == b.n_chunks);
        assert_int_equal(a.n_chunks, 24);
        assert_string_equal(a.dataset, b.dataset);
        snprintf(path, sizeof path, "%s/fixtures/gguf/%s.gguf", shared, models[m]);
        assert_int_equal(nib_gguf_open(path, &gguf, NULL), NIB_OK);
        for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
            const nib_tensor *tensor = nib_gguf_tensor_at(gguf, i);
            const float *x, *y;
            if (nib_imatrix_find(now, tensor->name, tensor->ne[0], 1, &x) != NIB_IMATRIX_FOUND) continue;
            assert_int_equal(nib_imatrix_find(legacy, tensor->name, tensor->ne[0], 1, &y), NIB_IMATRIX_FOUND);
            for (uint64_t k = 0; k < tensor->ne[0]; k++) assert_true(fabsf(x[k] - y[k]) <= 1e-6f * x[k]);
            n_found++;
        }
        assert_int_equal(n_found, a.n_entries);
        nib_gguf_close(gguf);
        nib_imatrix_free(now);
        nib_imatrix_free(legacy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf),          cmocka_unit_test(test_legacy),
        cmocka_unit_test(test_repairs),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_damage),        cmocka_unit_test(test_importance_reaches_rows),
        cmocka_unit_test(test_metadata),      cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_formats_agree), cmocka_unit_test(test_long_rows),
    };
    if (!mkdtemp(folder)) {
        print_message("skipped: no temporary folder\n");
        return 77;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) == 0 ? failed : 1;
}
