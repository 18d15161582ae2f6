/* The quantizer: bytes against llama-quantize's, independence of threads, and every way it must refuse or clean up. */
#include "unit.h"

#include "base/files.h"
#include "base/sha256.h"
#include "file/gguf_file.h"
#include "gguf_builder.h"
#include "nibble/quant.h"
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/nibble-test-quantize-XXXXXX";

static const char *in_folder(const char *name) {
    static char paths[8][256];
    static size_t turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static size_t n_files_in(const char *path) {
    size_t n = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

/* Before each test: a failed one may leave files. */
static int empty_folder(void **state) {
    (void)state;
    char path[512];
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    closedir(dir);
    return 0;
}

static const nib_recipe *recipe_of(const char *name) {
    nib_error error = {0};
    const nib_recipe *recipe = nib_recipe_find(name, &error);
    assert_non_null(recipe);
    return recipe;
}

/* Quantizes and forgets the report. */
static nib_status quantize(const nib_gguf *gguf, const char *path, const nib_quantize_params *params,
                           nib_error *error) {
    nib_quantized report;
    const nib_status status = nib_quantize(gguf, path, params, NULL, NULL, &report, error);
    nib_quantized_fini(&report);
    return status;
}

/* ---- Models made here ---------------------------------------------------------------------------------------------- */

enum { N_EMBD = 256, N_ROWS = 24 };

/* Repeatable weights of about +-0.1 with an outlier here and there. */
static float weight_at(size_t i) {
    const uint32_t x = (uint32_t)i * 2654435761u ^ (uint32_t)(i >> 7) * 40503u;
    const float value = (float)(int32_t)(x ^ x >> 13) * 0x1p-31f * 0.1f;
    return i % 97 == 0 ? value * 20 : value;
}

/* A llama of one layer as far as the quantizer can tell: embedding, a norm, two matrices, in f32.
 * ne0: row length of the matrices. */
static void make_model(builder *b, uint64_t ne0) {
    const uint64_t matrix = ne0 * N_ROWS, padded = nib_round_up(4 * matrix, 32);
    begin_image(b, 3);
    put_kv_string(b, "general.architecture", "llama");
    put_kv_u32(b, "general.file_type", 0);
    put_kv_u32(b, "llama.block_count", 1);
    put_kv_u32(b, "llama.attention.head_count", 2);
    put_kv_u32(b, "split.count", 1);
    put_kv_string(b, "general.name", "by hand");
    put_tensor(b, "token_embd.weight", 2, (uint64_t[]){ne0, N_ROWS}, 0, 0);
    put_tensor(b, "output_norm.weight", 1, (uint64_t[]){N_EMBD}, 0, padded);
    put_tensor(b, "blk.0.ffn_up.weight", 2, (uint64_t[]){ne0, N_ROWS}, 0, padded + 4 * N_EMBD);
    put_tensor(b, "output.weight", 3, (uint64_t[]){ne0, N_ROWS / 2, 2}, 0, 2 * padded + 4 * N_EMBD);
    end_header(b, 32);
    for (size_t part = 0; part < 4; part++) {
        for (size_t i = 0; i < (part == 1 ? N_EMBD : matrix); i++) {
            const float value = weight_at(i + part);
            put_bytes(b, &value, 4);
        }
        pad_image(b, 32);
    }
    assert_false(b->text.failed);
}

static nib_gguf *open_model(const builder *b) {
    nib_gguf *gguf;
    nib_error error = {0};
    if (nib_gguf_open_memory(b->text.data, b->text.n_bytes, "model", &gguf, &error) != NIB_OK)
        fail_msg("%s", error.message);
    return gguf;
}

/* Payload of a tensor of a model made here, to be spoilt. */
static float *payload(builder *b, const nib_gguf *gguf, const char *name) {
    return (float *)(void *)(b->text.data + nib_gguf_tensor_find(gguf, name)->offset);
}

/* ---- Against llama-quantize ---------------------------------------------------------------------------------------- */

typedef struct row {
    char model[64], ftype[32], mode[16], imatrix[8], options[128], tensor[80], ne[64], type[16];
    unsigned long long n_bytes;
    char sha256[80];
} row;

static bool read_row(FILE *file, row *out) {
    char line[4096];
    if (!fgets(line, sizeof line, file)) return false;
    *out = (row){0};
    const int n = sscanf(
        line, "%63[^\t]\t%31[^\t]\t%15[^\t]\t%7[^\t]\t%127[^\t]\t%79[^\t]\t%63[^\t]\t%15[^\t]\t%llu\t%79s", out->model,
        out->ftype, out->mode, out->imatrix, out->options, out->tensor, out->ne, out->type, &out->n_bytes, out->sha256);
    assert_true(n >= 6); /* a refusal has no numbers */
    return true;
}

static bool same_file(const row *a, const row *b) {
    return !strcmp(a->ftype, b->ftype) && !strcmp(a->mode, b->mode) && !strcmp(a->imatrix, b->imatrix) &&
           !strcmp(a->options, b->options);
}

static void compare_tensor(const nib_tensor *tensor, const row *r) {
    char ne[96] = "", sha256[65];
    assert_non_null(tensor);
    uint32_t n_dims = 4;
    while (n_dims > 1 && tensor->ne[n_dims - 1] == 1) n_dims--;
    for (uint32_t d = 0; d < n_dims; d++)
        snprintf(ne + strlen(ne), sizeof ne - strlen(ne), "%s%llu", d ? "x" : "", (unsigned long long)tensor->ne[d]);
    nib_sha256_of(tensor->data, (size_t)tensor->n_bytes, sha256);
    const char *type = nib_format_facts_of(tensor->format)->gguf_name;
    if (strcmp(tensor->name, r->tensor) || strcmp(ne, r->ne) || strcasecmp(type, r->type) ||
        tensor->n_bytes != r->n_bytes || strcmp(sha256, r->sha256))
        fail_msg("%s %s %s: expected %s %s %s, got %s %s %s", r->model, r->ftype, r->mode, r->tensor, r->ne, r->type,
                 tensor->name, ne, type);
}

/* Whether every format of the file can be written. */
static bool can_write(const nib_gguf *source, const nib_quantize_params *params) {
    const uint64_t n = nib_gguf_n_tensors(source);
    nib_choice_of_format *choices = nib_alloc(n, sizeof *choices);
    bool can = true;
    assert_non_null(choices);
    if (nib_recipe_choose(params, source, choices, NULL) == NIB_OK)
        for (uint64_t i = 0; i < n; i++) can &= choices[i].copied || nib_format_facts_of(choices[i].format)->can_encode;
    free(choices);
    return can;
}

/* Quantizes as the row says and returns the open output; NULL if the quantizer refuses.
 * *tried: whether it was asked to. */
static nib_gguf *make_file_of_row(const row *r, const nib_gguf *source, const nib_imatrix *imatrix, bool *tried) {
    nib_gguf *gguf = NULL;
    nib_overrides *overrides;
    nib_error error = {0};
    char embedding[16], output[16];
    assert_int_equal(nib_overrides_new(&overrides, &error), NIB_OK);
    if (sscanf(r->options, "--token-embedding-type %15s --output-tensor-type %15s", embedding, output) == 2) {
        assert_int_equal(nib_overrides_set_embedding(overrides, embedding, &error), NIB_OK);
        assert_int_equal(nib_overrides_set_output(overrides, output, &error), NIB_OK);
    } else {
        assert_string_equal(r->options, "-");
    }
    const nib_quantize_params params = {.recipe = recipe_of(r->ftype),
                                        .pure = !strcmp(r->mode, "pure"),
                                        .imatrix = strcmp(r->imatrix, "yes") ? NULL : imatrix,
                                        .overrides = overrides,
                                        .force = true,
                                        .no_sync = true,
                                        .no_provenance = true};
    *tried = can_write(source, &params);
    if (*tried && quantize(source, in_folder("row.gguf"), &params, &error) == NIB_OK &&
        nib_gguf_open(in_folder("row.gguf"), &gguf, &error) != NIB_OK)
        fail_msg("%s", error.message);
    nib_overrides_free(overrides);
    return gguf;
}

/* Returns the number of tensors compared. */
static size_t compare_table(const char *shared, const char *name) {
    char path[1024];
    const int n_model = (int)(strchr(name, '.') - name);
    snprintf(path, sizeof path, "%s/fixtures/quant/%s", shared, name);
    FILE *table = fopen(path, "r");
    assert_non_null(table);
    snprintf(path, sizeof path, "%s/fixtures/gguf/%.*s.gguf", shared, n_model, name);
    nib_gguf *source, *made = NULL;
    nib_imatrix *imatrix;
    nib_error error = {0};
    assert_int_equal(nib_gguf_open(path, &source, &error), NIB_OK);
    snprintf(path, sizeof path, "%s/fixtures/quant/%.*s.imatrix.gguf", shared, n_model, name);
    assert_int_equal(nib_imatrix_open(path, NULL, &imatrix, &error), NIB_OK);
    row r, group = {0};
    size_t n_tensors = 0, n_compared = 0;
    bool wanted = false;
    assert_non_null(fgets(path, sizeof path, table));
    while (read_row(table, &r)) {
        if (!same_file(&r, &group)) {
            if (wanted && made) assert_int_equal(n_tensors, nib_gguf_n_tensors(made));
            nib_gguf_close(made);
            group = r;
            n_tensors = 0;
            made = make_file_of_row(&r, source, imatrix, &wanted);
            const bool refused = !strcmp(r.tensor, "REFUSED");
            if (wanted && refused != (made == NULL))
                fail_msg("%s %s: %s", name, r.ftype, refused ? "should be refused" : "was refused");
            if (refused) wanted = false;
        }
        if (!wanted) continue;
        compare_tensor(nib_gguf_tensor_at(made, n_tensors++), &r); /* order and all */
        n_compared++;
    }
    nib_gguf_close(made);
    nib_gguf_close(source);
    nib_imatrix_free(imatrix);
    fclose(table);
    return n_compared;
}

static void test_equals_llama_quantize(void **state) {
    (void)state;
    const char *shared = getenv("NIBBLE_SHARED");
    if (!shared) shared = "../shared";
    char path[1024];
    snprintf(path, sizeof path, "%s/fixtures/quant", shared);
    DIR *dir = opendir(path);
    if (!dir) {
        print_message("skipped: %s is absent\n", path);
        skip();
    }
    size_t n_tensors = 0;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strstr(entry->d_name, ".mix.tsv") || strstr(entry->d_name, ".pure.tsv"))
            n_tensors += compare_table(shared, entry->d_name);
    closedir(dir);
    print_message("%zu tensors equal llama-quantize's\n", n_tensors);
    assert_true(n_tensors > 500);
}

/* ---- What is written ----------------------------------------------------------------------------------------------- */

static void test_same_bytes_for_any_threads(void **state) {
    (void)state;
    const unsigned threads[] = {1, 2, 5};
    const char *const recipes[] = {"q4_k", "q8_0", "q2s", "bf16"};
    nib_gguf *demo;
    nib_error error = {0};
    assert_int_equal(nib_gguf_open("demo", &demo, &error), NIB_OK);
    for (size_t k = 0; k < sizeof recipes / sizeof *recipes; k++) {
        char *first = NULL;
        size_t n_first = 0;
        double rmse[3][2];
        for (size_t t = 0; t < 3; t++) {
            nib_pool *pool;
            nib_quantized report;
            const nib_quantize_params params = {
                .recipe = recipe_of(recipes[k]), .force = true, .no_sync = true, .measure_error = true};
            uint64_t planned;
            char *data;
            size_t n;
            char hash[33];
            nib_gguf *made;
            assert_int_equal(nib_pool_new(threads[t], &pool, &error), NIB_OK);
            assert_int_equal(nib_quantize_plan(demo, &params, &planned, &error), NIB_OK);
            assert_int_equal(nib_quantize(demo, in_folder("t.gguf"), &params, pool, NULL, &report, &error), NIB_OK);
            assert_int_equal(nib_read_file(in_folder("t.gguf"), &data, &n, &error), NIB_OK);
            assert_int_equal(n, planned);
            assert_int_equal(n, report.bytes_out);
            if (!first) {
                first = data;
                n_first = n;
            } else {
                assert_int_equal(n, n_first);
                assert_memory_equal(data, first, n);
                free(data);
            }
            assert_int_equal(nib_gguf_open(in_folder("t.gguf"), &made, &error), NIB_OK);
            assert_int_equal(nib_gguf_hash(made, hash, &error), NIB_OK);
            assert_string_equal(hash, report.hash);
            assert_int_equal(nib_gguf_trailing_bytes(made), 0);
            assert_int_equal(nib_gguf_check(made, pool, NULL, &error), NIB_OK);
            assert_int_equal(report.n_tensors, nib_gguf_n_tensors(demo));
            rmse[t][0] = rmse[t][1] = 0;
            for (uint32_t i = 0; i < report.n_tensors; i++) {
                rmse[t][0] += report.tensors[i].rel_rmse;
                rmse[t][1] += report.tensors[i].max_abs_err;
            }
            assert_true(rmse[t][0] == rmse[0][0] && rmse[t][1] == rmse[0][1]); /* to the last bit */
            assert_true(k == 3 ? rmse[t][0] == 0 : rmse[t][0] > 0);
            nib_gguf_close(made);
            nib_quantized_fini(&report);
            nib_pool_free(pool);
        }
        free(first);
    }
    nib_gguf_close(demo);
    assert_int_equal(n_files_in(folder), 1); /* and no .partial */
}

/* Rows longer than a piece come out as if they had been encoded whole. */
static void test_long_rows(void **state) {
    (void)state;
    const uint64_t ne0 = 3 * NIB_PIECE_COLUMNS + 256;
    builder b;
    make_model(&b, ne0);
    nib_gguf *source = open_model(&b);
    nib_error error = {0};
    const nib_recipe *recipe;
    for (unsigned k = 0; (recipe = nib_recipe_at(k)); k++) {
        const nib_quantize_params params = {.recipe = recipe, .pure = true, .force = true, .no_sync = true};
        const nib_format *format = nib_recipe_format(recipe);
        nib_gguf *made;
        const nib_status status = quantize(source, in_folder("long.gguf"), &params, &error);
        if (status == NIB_ERR_UNSUPPORTED) continue; /* needs an importance matrix */
        if (status != NIB_OK) fail_msg("%s: %s", nib_recipe_name(recipe), error.message);
        assert_int_equal(nib_gguf_open(in_folder("long.gguf"), &made, &error), NIB_OK);
        const nib_tensor *from = nib_gguf_tensor_find(source, "blk.0.ffn_up.weight");
        const nib_tensor *to = nib_gguf_tensor_find(made, "blk.0.ffn_up.weight");
        assert_ptr_equal(to->format, format);
        const size_t n_row = nib_format_row_bytes(format, ne0);
        uint8_t *expected = nib_alloc(n_row, 1);
        for (size_t i = 0; i < N_ROWS; i += 11) {
            const float *weights = (const float *)(const void *)(from->data + 4 * ne0 * i);
            assert_int_equal(nib_format_encode(format, expected, weights, ne0, NULL), NIB_VERDICT_OK);
            assert_memory_equal(to->data + n_row * i, expected, n_row);
        }
        free(expected);
        nib_gguf_close(made);
    }
    nib_gguf_close(source);
    free_image(&b);
}

static void test_measured_error(void **state) {
    (void)state;
    const uint64_t ne0 = NIB_PIECE_COLUMNS + 512;
    builder b;
    nib_quantized report;
    nib_gguf *made;
    nib_error error = {0};
    make_model(&b, ne0);
    nib_gguf *source = open_model(&b);
    const nib_quantize_params params = {.recipe = recipe_of("q4_0"), .measure_error = true, .no_sync = true};
    assert_int_equal(nib_quantize(source, in_folder("e.gguf"), &params, NULL, NULL, &report, &error), NIB_OK);
    assert_int_equal(nib_gguf_open(in_folder("e.gguf"), &made, &error), NIB_OK);
    float *decoded = nib_alloc(ne0, sizeof *decoded);
    for (uint32_t t = 0; t < report.n_tensors; t++) {
        const nib_quantized_tensor *measured = &report.tensors[t];
        const nib_tensor *to = nib_gguf_tensor_find(made, measured->name);
        const float *weights = (const float *)(const void *)nib_gguf_tensor_find(source, measured->name)->data;
        const size_t n_row = nib_format_row_bytes(to->format, to->ne[0]);
        double squares = 0, errors = 0, most = 0;
        for (uint64_t i = 0; i < to->n_elements / to->ne[0]; i++) {
            nib_format_decode(to->format, decoded, to->data + n_row * i, to->ne[0]);
            for (uint64_t k = 0; k < to->ne[0]; k++) {
                const double w = weights[i * to->ne[0] + k], difference = w - (double)decoded[k];
                squares += w * w;
                errors += difference * difference;
                most = fmax(most, fabs(difference));
            }
        }
        assert_true(measured->max_abs_err == most);
        assert_true(fabs(measured->rel_rmse - sqrt(errors / squares)) <= 1e-12 * measured->rel_rmse);
        assert_true((most > 0) == (measured->from != measured->to));
        assert_int_equal(measured->n_bytes, to->n_bytes);
    }
    free(decoded);
    nib_gguf_close(made);
    nib_gguf_close(source);
    nib_quantized_fini(&report);
    free_image(&b);
}

static void test_metadata(void **state) {
    (void)state;
    builder b;
    nib_gguf *made;
    nib_error error = {0};
    uint64_t number;
    nib_text text;
    make_model(&b, N_EMBD);
    nib_gguf *source = open_model(&b);
    nib_quantize_params params = {.recipe = recipe_of("q8_0"), .no_provenance = true, .force = true};
    assert_int_equal(quantize(source, in_folder("m.gguf"), &params, &error), NIB_OK);
    assert_int_equal(nib_gguf_open(in_folder("m.gguf"), &made, &error), NIB_OK);
    const char *const expected[] = {"general.architecture",         "llama.block_count",
                                    "llama.attention.head_count",   "general.name",
                                    "general.quantization_version", "general.file_type"};
    assert_int_equal(nib_gguf_n_kv(made), 6);
    for (size_t i = 0; i < 6; i++) {
        const nib_text key = nib_gguf_kv_at(made, i)->key;
        assert_true(key.n_bytes == strlen(expected[i]) && memcmp(key.data, expected[i], key.n_bytes) == 0);
    }
    assert_true(nib_gguf_get_u64(made, "general.file_type", &number) && number == 7);
    assert_true(nib_gguf_get_u64(made, "general.quantization_version", &number) && number == 2);
    assert_string_equal(nib_gguf_tensor_at(made, 0)->name, "output.weight");
    assert_int_equal(nib_gguf_tensor_at(made, 0)->n_dims, 3);
    nib_gguf_close(made);

    params = (nib_quantize_params){.recipe = recipe_of("q2s"), .force = true};
    assert_int_equal(quantize(source, in_folder("m.gguf"), &params, &error), NIB_OK);
    assert_int_equal(nib_gguf_open(in_folder("m.gguf"), &made, &error), NIB_OK);
    assert_null(nib_gguf_find(made, "general.file_type"));
    assert_true(nib_gguf_get_u64(made, "nibble.grid.version", &number) && number == 1);
    assert_true(nib_gguf_get_text(made, "nibble.recipe", &text) && memcmp(text.data, "q2s", 3) == 0);
    assert_non_null(nib_gguf_find(made, "nibble.version"));
    nib_gguf_close(made);
    nib_gguf_close(source);
    free_image(&b);
}

/* An input aligned otherwise is written with the alignment every reader expects. */
static void test_other_alignment(void **state) {
    (void)state;
    builder b;
    nib_gguf *made;
    nib_error error = {0};
    const float ones[64] = {1};
    begin_image(&b, 3);
    put_kv_string(&b, "general.architecture", "llama");
    put_kv_u32(&b, "general.alignment", 1);
    put_tensor(&b, "a", 1, (uint64_t[]){3}, 0, 0);
    put_tensor(&b, "blk.0.ffn_gate.weight", 2, (uint64_t[]){32, 2}, 0, 12);
    end_header(&b, 1);
    put_bytes(&b, ones, 12);
    put_bytes(&b, ones, sizeof ones);
    nib_gguf *source = open_model(&b);
    const nib_quantize_params params = {.recipe = recipe_of("f16"), .no_provenance = true};
    assert_int_equal(quantize(source, in_folder("m.gguf"), &params, &error), NIB_OK);
    assert_int_equal(nib_gguf_open(in_folder("m.gguf"), &made, &error), NIB_OK);
    assert_int_equal(nib_gguf_alignment(made), 32);
    assert_memory_equal(nib_gguf_tensor_find(made, "a")->data, ones, 12);
    nib_gguf_close(made);
    nib_gguf_close(source);
    free_image(&b);
}

/* A model without tensors is unusual, not wrong. */
static void test_no_tensors(void **state) {
    (void)state;
    builder b;
    nib_gguf *made;
    nib_error error = {0};
    begin_image(&b, 3);
    put_kv_string(&b, "general.architecture", "llama");
    end_header(&b, 32);
    nib_gguf *source = open_model(&b);
    const nib_quantize_params params = {.recipe = recipe_of("q4_0")};
    assert_int_equal(quantize(source, in_folder("m.gguf"), &params, &error), NIB_OK);
    assert_int_equal(nib_gguf_open(in_folder("m.gguf"), &made, &error), NIB_OK);
    assert_int_equal(nib_gguf_n_tensors(made), 0);
    nib_gguf_close(made);
    nib_gguf_close(source);
    free_image(&b);
}

static void test_json(void **state) {
    (void)state;
    builder b;
    nib_quantized report;
    nib_error error = {0};
    const char *text;
    size_t n;
    make_model(&b, N_EMBD);
    nib_gguf *source = open_model(&b);
    const nib_quantize_params params = {.recipe = recipe_of("q4_0")};
    assert_int_equal(nib_quantize(source, in_folder("j.gguf"), &params, NULL, NULL, &report, &error), NIB_OK);
    nib_json *json = nib_json_new();
    nib_json_begin_object(json, NULL);
    nib_quantized_write_json(&report, json);
    nib_json_end_object(json);
    assert_int_equal(nib_json_text(json, &text, &n, &error), NIB_OK);
    const char *const members[] = {"\"input\"",     "\"output\"",    "\"format\"",  "\"recipe\"",  "\"imatrix\"",
                                   "\"n_tensors\"", "\"bytes_in\"",  "\"bpw\"",     "\"seconds\"", "\"peak_rss\"",
                                   "\"hash\"",      "\"bytes_out\"", "\"tensors\"", "\"note\"",    "\"max_abs_err\""};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) assert_non_null(strstr(text, members[i]));
    nib_json_free(json);
    nib_quantized_fini(&report);
    nib_gguf_close(source);
    free_image(&b);
}

/* ---- Memory -------------------------------------------------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED
#endif
#endif

/* What RLIMIT_DATA counts. */
static uint64_t private_bytes(void) {
    unsigned long long kilobytes = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    assert_non_null(status);
    while (fgets(line, sizeof line, status) && sscanf(line, "VmData: %llu", &kilobytes) != 1) {
    }
    fclose(status);
    return 1024 * (uint64_t)kilobytes;
}

static void test_memory_does_not_grow_with_a_tensor(void **state) {
    (void)state;
#ifdef SANITIZED
    print_message("skipped: a sanitizer counts its own memory\n");
    skip();
#endif
    const uint64_t ne0 = 4096, ne1 = 12288, n_bytes = 2 * ne0 * ne1; /* 96 MiB of bf16, 192 as f32 */
    builder b;
    nib_gguf *source;
    nib_error error = {0};
    begin_image(&b, 3);
    put_kv_string(&b, "general.architecture", "llama");
    put_tensor(&b, "blk.0.ffn_up.weight", 2, (uint64_t[]){ne0, ne1}, 30, 0);
    end_header(&b, 32);
    FILE *file = fopen(in_folder("big.gguf"), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(b.text.data, 1, b.text.n_bytes, file), b.text.n_bytes);
    assert_int_equal(ftruncate(fileno(file), (off_t)(b.text.n_bytes + n_bytes)), 0); /* a hole: zeros */
    fclose(file);
    assert_int_equal(nib_gguf_open(in_folder("big.gguf"), &source, &error), NIB_OK);
    const nib_quantize_params params = {.recipe = recipe_of("q4_0"), .no_sync = true, .measure_error = true};
    struct rlimit was, limit;
    assert_int_equal(getrlimit(RLIMIT_DATA, &was), 0);
    limit = (struct rlimit){.rlim_cur = private_bytes() + (32u << 20), .rlim_max = was.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_DATA, &limit), 0);
    const nib_status status = quantize(source, in_folder("small.gguf"), &params, &error);
    assert_int_equal(setrlimit(RLIMIT_DATA, &was), 0);
    if (status != NIB_OK) fail_msg("with 32 MiB: %s", error.message);
    nib_gguf_close(source);
    free_image(&b);
}

/* ---- Refusing ------------------------------------------------------------------------------------------------------ */

/* The spoilt model must be refused with these words, leaving nothing behind. */
static void expect_refused(nib_gguf *gguf, const char *recipe, const char *tensor, const char *words) {
    nib_error error = {0};
    const nib_quantize_params params = {.recipe = recipe_of(recipe), .no_sync = true};
    assert_int_equal(quantize(gguf, in_folder("bad.gguf"), &params, &error), NIB_ERR_CORRUPT);
    if (!strstr(error.message, words) || strcmp(error.field, tensor) != 0)
        fail_msg("%s: %s", error.field, error.message);
    assert_true(error.hint[0] && error.offset > 0);
    assert_int_equal(n_files_in(folder), 0);
}

static void test_refuses_weights_that_are_not_finite(void **state) {
    (void)state;
    const char *const recipes[] = {"q4_0", "q4_k", "f16", "q2s"};
    builder b;
    make_model(&b, N_EMBD);
    nib_gguf *gguf = open_model(&b);
    float *weights = payload(&b, gguf, "blk.0.ffn_up.weight"), *norm = payload(&b, gguf, "output_norm.weight");
    for (size_t k = 0; k < sizeof recipes / sizeof *recipes; k++) {
        weights[5 * N_EMBD + 77] = k % 2 ? NAN : -INFINITY;
        expect_refused(gguf, recipes[k], "blk.0.ffn_up.weight", "row 5, column 77");
    }
    weights[5 * N_EMBD + 77] = 0;
    norm[3] = NAN; /* copied, not encoded */
    expect_refused(gguf, "q4_0", "output_norm.weight", "column 3");
    nib_gguf_close(gguf);
    free_image(&b);
}

static void test_refuses_scales_that_overflow(void **state) {
    (void)state;
    const char *const recipes[] = {"q4_0", "q4_k", "f16", "q2s"};
    builder b;
    make_model(&b, N_EMBD);
    nib_gguf *gguf = open_model(&b);
    payload(&b, gguf, "blk.0.ffn_up.weight")[7 * N_EMBD + 130] = 3e38f;
    for (size_t k = 0; k < sizeof recipes / sizeof *recipes; k++)
        expect_refused(gguf, recipes[k], "blk.0.ffn_up.weight", "row 7");
    nib_error error = {0};
    const nib_quantize_params params = {.recipe = recipe_of("bf16"), .no_sync = true};
    assert_int_equal(quantize(gguf, in_folder("good.gguf"), &params, &error), NIB_OK);
    nib_gguf_close(gguf);
    free_image(&b);
}

static void test_never_over_the_input(void **state) {
    (void)state;
    builder b;
    nib_gguf *gguf;
    nib_error error = {0};
    char *data;
    size_t n;
    make_model(&b, N_EMBD);
    FILE *file = fopen(in_folder("in.gguf"), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(b.text.data, 1, b.text.n_bytes, file), b.text.n_bytes);
    fclose(file);
    assert_int_equal(symlink("in.gguf", in_folder("soft.gguf")), 0);
    assert_int_equal(link(in_folder("in.gguf"), in_folder("hard.gguf")), 0);
    assert_int_equal(nib_gguf_open(in_folder("in.gguf"), &gguf, &error), NIB_OK);
    const nib_quantize_params params = {.recipe = recipe_of("q8_0"), .force = true};
    const char *const outputs[] = {"in.gguf", "soft.gguf", "hard.gguf"};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(quantize(gguf, in_folder(outputs[i]), &params, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_read_file(in_folder("in.gguf"), &data, &n, &error), NIB_OK);
    assert_int_equal(n, b.text.n_bytes);
    assert_memory_equal(data, b.text.data, n);
    assert_int_equal(n_files_in(folder), 3);
    free(data);
    nib_gguf_close(gguf);
    free_image(&b);
}

static void test_existing_output(void **state) {
    (void)state;
    builder b;
    char *data;
    size_t n;
    nib_error error = {0};
    make_model(&b, N_EMBD);
    nib_gguf *gguf = open_model(&b);
    FILE *file = fopen(in_folder("out.gguf"), "wb");
    assert_non_null(file);
    fputs("precious", file);
    fclose(file);
    nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    assert_int_equal(quantize(gguf, in_folder("out.gguf"), &params, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_read_file(in_folder("out.gguf"), &data, &n, &error), NIB_OK);
    assert_string_equal(data, "precious");
    free(data);
    params.force = true;
    assert_int_equal(quantize(gguf, in_folder("out.gguf"), &params, &error), NIB_OK);
    assert_int_equal(nib_read_file(in_folder("out.gguf"), &data, &n, &error), NIB_OK);
    assert_memory_equal(data, "GGUF", 4);
    free(data);
    assert_int_equal(n_files_in(folder), 1);
    nib_gguf_close(gguf);
    free_image(&b);
}

static bool stop_after_some(void *user, const nib_progress *progress) {
    int *calls = user;
    assert_true(progress->done <= progress->total && strncmp(progress->stage, "quantize ", 9) == 0);
    return ++*calls < 1;
}

static void test_interruption_leaves_nothing(void **state) {
    (void)state;
    builder b;
    nib_quantized report;
    nib_error error = {0};
    int calls = 0;
    const nib_watch watch = {.user = &calls, .progress = stop_after_some};
    make_model(&b, N_EMBD);
    nib_gguf *gguf = open_model(&b);
    const nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    assert_int_equal(nib_quantize(gguf, in_folder("out.gguf"), &params, NULL, &watch, &report, &error),
                     NIB_ERR_INTERRUPTED);
    nib_quantized_fini(&report);
    assert_int_equal(calls, 1);
    assert_int_equal(n_files_in(folder), 0);
    nib_gguf_close(gguf);
    free_image(&b);
}

static void test_nowhere_to_write(void **state) {
    (void)state;
    builder b;
    nib_error error = {0};
    make_model(&b, N_EMBD);
    nib_gguf *gguf = open_model(&b);
    const nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    assert_int_equal(quantize(gguf, "/dev/full", &params, &error), NIB_ERR_IO);
    assert_true(error.os_errno != 0 && error.hint[0]);
    assert_int_equal(quantize(gguf, in_folder("absent/out.gguf"), &params, &error), NIB_ERR_IO);
    if (geteuid() == 0) {
        print_message("skipped: root may write into any folder\n");
    } else {
        assert_int_equal(chmod(folder, 0500), 0);
        assert_int_equal(quantize(gguf, in_folder("out.gguf"), &params, &error), NIB_ERR_IO);
        assert_int_equal(chmod(folder, 0700), 0);
    }
    assert_int_equal(n_files_in(folder), 0);
    nib_gguf_close(gguf);
    free_image(&b);
}

static void test_full_disk(void **state) {
    (void)state;
    const char *disk = in_folder("disk");
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("tmpfs", disk, "tmpfs", 0, "size=64k") != 0) {
        rmdir(disk);
        print_message("skipped: may not mount a small disk\n");
        skip();
    }
    builder b;
    nib_error error = {0};
    char path[300];
    make_model(&b, N_EMBD);
    nib_gguf *gguf = open_model(&b);
    snprintf(path, sizeof path, "%s/out.gguf", disk);
    nib_quantize_params params = {.recipe = recipe_of("f32")};
    const nib_status too_large = quantize(gguf, path, &params, &error);
    const size_t n_left = n_files_in(disk);
    params.recipe = recipe_of("q8_0");
    const nib_status fits = quantize(gguf, path, &params, &error);
    umount(disk);
    rmdir(disk);
    assert_int_equal(too_large, NIB_ERR_IO);
    assert_int_equal(n_left, 0);
    assert_int_equal(fits, NIB_OK);
    nib_gguf_close(gguf);
    free_image(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_equals_llama_quantize, empty_folder),
        cmocka_unit_test_setup(test_same_bytes_for_any_threads, empty_folder),
        cmocka_unit_test_setup(test_long_rows, empty_folder),
        cmocka_unit_test_setup(test_measured_error, empty_folder),
        cmocka_unit_test_setup(test_metadata, empty_folder),
        cmocka_unit_test_setup(test_other_alignment, empty_folder),
        cmocka_unit_test_setup(test_no_tensors, empty_folder),
        cmocka_unit_test_setup(test_json, empty_folder),
        cmocka_unit_test_setup(test_memory_does_not_grow_with_a_tensor, empty_folder),
        cmocka_unit_test_setup(test_refuses_weights_that_are_not_finite, empty_folder),
        cmocka_unit_test_setup(test_refuses_scales_that_overflow, empty_folder),
        cmocka_unit_test_setup(test_never_over_the_input, empty_folder),
        cmocka_unit_test_setup(test_existing_output, empty_folder),
        cmocka_unit_test_setup(test_interruption_leaves_nothing, empty_folder),
        cmocka_unit_test_setup(test_nowhere_to_write, empty_folder),
        cmocka_unit_test_setup(test_full_disk, empty_folder),
    };
    if (!mkdtemp(folder)) {
        print_message("skipped: no temporary folder\n");
        return 77;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    empty_folder(NULL);
    rmdir(folder);
    return failed;
}
