/* Models split over several files: written by the quantizer, read back as one, and every way they can be wrong. */
#include "unit.h"

#include "base/files.h"
#include "file/gguf_file.h"
#include "gguf_builder.h"
#include "nibble/quant.h"
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/nibble-test-split-XXXXXX";

static const char *in_folder(const char *name) {
    static char paths[8][256];
    static size_t turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

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

static void quantize(const nib_gguf *gguf, const char *recipe, uint64_t split_bytes, const char *output,
                     nib_quantized *report) {
    nib_error error = {0};
    const nib_quantize_params params = {
        .recipe = nib_recipe_find(recipe, &error), .split_bytes = split_bytes, .no_sync = true, .no_provenance = true};
    if (nib_quantize(gguf, in_folder(output), &params, NULL, NULL, report, &error) != NIB_OK)
        fail_msg("%s", error.message);
}

static nib_gguf *open_gguf(const char *path) {
    nib_gguf *gguf;
    nib_error error = {0};
    if (nib_gguf_open(path, &gguf, &error) != NIB_OK) fail_msg("%s: %s", path, error.message);
    return gguf;
}

/* ---- There and back ------------------------------------------------------------------------------------------------ */

static void expect_same_tensors(const nib_gguf *a, const nib_gguf *b) {
    char hash_a[33], hash_b[33];
    nib_error error = {0};
    assert_int_equal(nib_gguf_n_tensors(a), nib_gguf_n_tensors(b));
    assert_int_equal(nib_gguf_hash(a, hash_a, &error), NIB_OK);
    assert_int_equal(nib_gguf_hash(b, hash_b, &error), NIB_OK);
    assert_string_equal(hash_a, hash_b);
}

static void test_there_and_back(void **state) {
    (void)state;
    const uint64_t split_bytes = 900000;
    nib_quantized whole, parts, again;
    uint64_t number, n_bytes = 0, largest = 0, planned;
    nib_error error = {0};
    nib_gguf *demo = open_gguf("demo");
    quantize(demo, "bf16", 0, "whole.gguf", &whole);
    quantize(demo, "bf16", split_bytes, "parts.gguf", &parts);
    nib_gguf *one = open_gguf(in_folder("whole.gguf")), *many = open_gguf(parts.output);
    assert_non_null(strstr(parts.output, "/parts-00001-of-000"));
    assert_true(parts.n_files > 5 && nib_gguf_n_files(many) == parts.n_files);
    expect_same_tensors(one, many);
    assert_string_equal(parts.hash, whole.hash);
    assert_int_equal(nib_gguf_check(many, NULL, NULL, &error), NIB_OK);
    assert_int_equal(nib_gguf_trailing_bytes(many), 0);

    for (unsigned i = 0; i < parts.n_files; i++) { /* each a file of its own, not too large */
        const nib_map *map = nib_gguf_map(many, i);
        nib_gguf *part;
        n_bytes += map->n_bytes;
        assert_int_equal(nib_gguf_open_memory(map->data, map->n_bytes, "part", &part, &error), NIB_ERR_UNSUPPORTED);
    }
    assert_int_equal(n_bytes, nib_gguf_bytes(many));
    assert_int_equal(n_bytes, parts.bytes_out);
    const nib_quantize_params params = {
        .recipe = nib_recipe_find("bf16", &error), .split_bytes = split_bytes, .no_provenance = true};
    assert_int_equal(nib_quantize_plan(demo, &params, &planned, &error), NIB_OK);
    assert_int_equal(planned, n_bytes);
    uint64_t of_part[32] = {0};
    unsigned n_of_part[32] = {0};
    for (uint64_t i = 0; i < nib_gguf_n_tensors(many); i++) {
        const nib_tensor *t = nib_gguf_tensor_at(many, i);
        of_part[t->shard] += nib_round_up(t->n_bytes, 32);
        n_of_part[t->shard]++;
        assert_ptr_equal(nib_gguf_tensor_find(many, t->name), t);
    }
    for (unsigned i = 0; i < parts.n_files; i++) {
        assert_true(n_of_part[i] > 0 && (of_part[i] <= split_bytes || n_of_part[i] == 1));
        if (of_part[i] > largest && of_part[i] <= split_bytes) largest = of_part[i];
    }
    assert_true(largest > split_bytes / 2); /* and not too small */
    assert_true(nib_gguf_get_u64(many, "split.count", &number) && number == parts.n_files);
    assert_true(nib_gguf_get_u64(many, "split.tensors.count", &number) && number == nib_gguf_n_tensors(one));
    assert_int_equal(nib_gguf_find(many, "split.no")->type, NIB_GGUF_U16);
    assert_int_equal(nib_gguf_find(many, "split.tensors.count")->type, NIB_GGUF_I32);

    quantize(many, "bf16", 0, "again.gguf", &again); /* from split to whole: nothing of the split is left */
    nib_gguf *merged = open_gguf(in_folder("again.gguf"));
    assert_int_equal(nib_gguf_bytes(merged), nib_gguf_bytes(one));
    assert_memory_equal(nib_gguf_map(merged, 0)->data, nib_gguf_map(one, 0)->data, nib_gguf_bytes(one));
    nib_gguf_close(merged);
    nib_gguf_close(one);
    nib_gguf_close(many);
    nib_gguf_close(demo);
    nib_quantized_fini(&whole);
    nib_quantized_fini(&parts);
    nib_quantized_fini(&again);
}

static void test_one_file_will_do(void **state) {
    (void)state;
    nib_quantized report;
    nib_gguf *demo = open_gguf("demo");
    quantize(demo, "q8_0", UINT64_C(1) << 40, "one.gguf", &report);
    assert_int_equal(report.n_files, 1);
    assert_string_equal(report.output, in_folder("one.gguf"));
    nib_gguf *one = open_gguf(report.output);
    assert_null(nib_gguf_find(one, "split.count"));
    nib_gguf_close(one);
    nib_gguf_close(demo);
    nib_quantized_fini(&report);
}

static void test_never_over_a_shard(void **state) {
    (void)state;
    nib_quantized report;
    nib_error error = {0};
    nib_gguf *demo = open_gguf("demo");
    quantize(demo, "q8_0", 3000000, "in.gguf", &report);
    nib_gguf *many = open_gguf(report.output);
    const uint64_t n_bytes = nib_gguf_bytes(many);
    const nib_quantize_params params = {.recipe = nib_recipe_find("q4_0", &error), .force = true};
    nib_quantized refused;
    assert_int_equal(nib_quantize(many, nib_gguf_file_path(many, 1), &params, NULL, NULL, &refused, &error),
                     NIB_ERR_USAGE);
    assert_non_null(strstr(error.message, "the input itself"));
    nib_quantized_fini(&refused);
    nib_gguf_close(many);
    many = open_gguf(report.output);
    assert_int_equal(nib_gguf_bytes(many), n_bytes);
    nib_gguf_close(many);
    nib_gguf_close(demo);
    nib_quantized_fini(&report);
}

/* ---- Wrong in every way ------------------------------------------------------------------------------------------------ */

/* A file with one tensor. total < 0: without split.tensors.count. */
static void write_shard(const char *name, uint16_t number, uint16_t count, int32_t total, const char *tensor) {
    static const float zeros[32];
    builder b;
    begin_image(&b, 3);
    put_kv_string(&b, "general.architecture", "llama");
    put_key(&b, "split.no", NIB_GGUF_U16), put_bytes(&b, &number, 2);
    put_key(&b, "split.count", NIB_GGUF_U16), put_bytes(&b, &count, 2);
    if (total >= 0) put_key(&b, "split.tensors.count", NIB_GGUF_I32), put_bytes(&b, &total, 4);
    put_tensor(&b, tensor, 1, (uint64_t[]){32}, 0, 0);
    end_header(&b, 32);
    put_bytes(&b, zeros, sizeof zeros);
    FILE *file = fopen(in_folder(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(b.text.data, 1, b.text.n_bytes, file), b.text.n_bytes);
    fclose(file);
    free_image(&b);
}

static void expect(const char *name, nib_status expected, const char *words) {
    nib_gguf *gguf;
    nib_error error = {0};
    const nib_status status = nib_gguf_open(in_folder(name), &gguf, &error);
    if (status != expected || (words && !strstr(error.message, words)))
        fail_msg("%s: status %d, %s", name, status, error.message);
    if (expected != NIB_OK) assert_true(gguf == NULL && error.hint[0] && error.file[0]);
    nib_gguf_close(gguf);
}

static void test_wrong_shards(void **state) {
    (void)state;
    write_shard("m-00001-of-00002.gguf", 0, 2, 2, "a");
    expect("m-00001-of-00002.gguf", NIB_ERR_IO, NULL); /* the second is missing */
    write_shard("m-00002-of-00002.gguf", 1, 2, 2, "b");
    expect("m-00001-of-00002.gguf", NIB_OK, NULL);
    expect("m-00002-of-00002.gguf", NIB_ERR_USAGE, "file 2 of"); /* not the first */
    write_shard("renamed.gguf", 0, 2, 2, "a");
    expect("renamed.gguf", NIB_ERR_USAGE, "NAME-00001-of-00002.gguf");
    write_shard("m-00002-of-00002.gguf", 0, 2, 2, "b"); /* swapped */
    expect("m-00001-of-00002.gguf", NIB_ERR_CORRUPT, "its name says 2 of 2");
    write_shard("m-00002-of-00002.gguf", 1, 3, 3, "b"); /* of another model */
    expect("m-00001-of-00002.gguf", NIB_ERR_CORRUPT, "its name says 2 of 2");
    write_shard("m-00002-of-00002.gguf", 1, 2, 2, "a"); /* one tensor twice */
    expect("m-00001-of-00002.gguf", NIB_ERR_CORRUPT, "stands twice");
    write_shard("m-00002-of-00002.gguf", 1, 2, 2, "b");
    write_shard("m-00001-of-00002.gguf", 0, 2, 3, "a"); /* a tensor is missing */
    expect("m-00001-of-00002.gguf", NIB_ERR_CORRUPT, "3 tensors in all, its files have 2");
    write_shard("m-00001-of-00002.gguf", 0, 2, -1, "a"); /* how many is not said */
    expect("m-00001-of-00002.gguf", NIB_OK, NULL);
    write_shard("n-00001-of-01000.gguf", 0, 1000, -1, "a");
    expect("n-00001-of-01000.gguf", NIB_ERR_UNSUPPORTED, "1000 files");
    FILE *file = fopen(in_folder("m-00002-of-00002.gguf"), "wb");
    assert_non_null(file);
    fputs("nonsense", file);
    fclose(file);
    expect("m-00001-of-00002.gguf", NIB_ERR_CORRUPT, "not a GGUF file");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_there_and_back, empty_folder),
        cmocka_unit_test_setup(test_one_file_will_do, empty_folder),
        cmocka_unit_test_setup(test_never_over_a_shard, empty_folder),
        cmocka_unit_test_setup(test_wrong_shards, empty_folder),
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
