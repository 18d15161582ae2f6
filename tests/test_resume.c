/* The quantizer when things go wrong on the way: killed, interrupted, resumed, disturbed by others; and several outputs
 * from one pass. */
#include "unit.h"

#include "base/files.h"
#include "gguf_builder.h"
#include "nibble/quant.h"
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

static char folder[] = "/tmp/nibble-test-resume-XXXXXX";

static const char *in_folder(const char *name) {
    static char paths[8][256];
    static size_t turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static bool exists(const char *name) {
    struct stat info;
    return lstat(in_folder(name), &info) == 0;
}

static size_t n_files(void) {
    size_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
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

static const nib_recipe *recipe_of(const char *name) {
    nib_error error = {0};
    const nib_recipe *recipe = nib_recipe_find(name, &error);
    assert_non_null(recipe);
    return recipe;
}

static void expect_same_files(const char *a, const char *b) {
    char *data_a, *data_b;
    size_t n_a, n_b;
    nib_error error = {0};
    assert_int_equal(nib_read_file(in_folder(a), &data_a, &n_a, &error), NIB_OK);
    assert_int_equal(nib_read_file(in_folder(b), &data_b, &n_b, &error), NIB_OK);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(data_a, data_b, n_a);
    free(data_a);
    free(data_b);
}

static void write_file(const char *name, const void *data, size_t n_bytes, const char *mode) {
    FILE *file = fopen(in_folder(name), mode);
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

/* ---- A model of six tensors, each a batch of its own ----------------------------------------------------------------- */

enum { N_COLUMNS = 256, N_ROWS = 64, N_TENSORS = 6 };

static void write_model(const char *name) {
    static const char *const names[N_TENSORS] = {"token_embd.weight",   "output.weight",       "blk.0.attn_q.weight",
                                                 "blk.0.attn_v.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"};
    builder b;
    begin_image(&b, 3);
    put_kv_string(&b, "general.architecture", "llama");
    put_kv_u32(&b, "llama.block_count", 1);
    for (size_t t = 0; t < N_TENSORS; t++)
        put_tensor(&b, names[t], 2, (uint64_t[]){N_COLUMNS, N_ROWS}, 0, t * 4 * N_COLUMNS * N_ROWS);
    end_header(&b, 32);
    for (size_t i = 0; i < (size_t)N_TENSORS * N_COLUMNS * N_ROWS; i++) {
        const float value = (float)(int32_t)((uint32_t)i * 2654435761u) * 0x1p-31f;
        put_bytes(&b, &value, 4);
    }
    assert_false(b.text.failed);
    write_file(name, b.text.data, b.text.n_bytes, "wb");
    free_image(&b);
}

/* For one of the model's tensors, in the older format. */
static void write_imatrix(const char *name) {
    static const char tensor[] = "blk.0.attn_q.weight";
    nib_string text = {0};
    const int32_t head[] = {1, (int32_t)strlen(tensor)}, counts[] = {1, N_COLUMNS};
    nib_string_add(&text, (const char *)head, sizeof head);
    nib_string_add(&text, tensor, strlen(tensor));
    nib_string_add(&text, (const char *)counts, sizeof counts);
    for (unsigned i = 0; i < N_COLUMNS; i++) {
        const float value = (float)(1 + i % 7);
        nib_string_add(&text, (const char *)&value, sizeof value);
    }
    assert_false(text.failed);
    write_file(name, text.data, text.n_bytes, "wb");
    nib_string_fini(&text);
}

static nib_gguf *open_model(const char *name) {
    nib_gguf *gguf;
    nib_error error = {0};
    if (nib_gguf_open(in_folder(name), &gguf, &error) != NIB_OK) fail_msg("%s", error.message);
    return gguf;
}

/* Listens, and does something at the n-th call. Sleeps so that every batch is reported. */
typedef struct listener {
    int calls, stop_at;
    const char *truncate; /* this file, then */
    char warning[512];
} listener;

static bool on_progress(void *user, const nib_progress *progress) {
    (void)progress;
    listener *l = user;
    usleep(101000);
    if (++l->calls != l->stop_at) return true;
    if (!l->truncate) return false;
    assert_int_equal(truncate(l->truncate, 70000), 0);
    return true;
}

static void on_warning(void *user, const char *message) {
    listener *l = user;
    snprintf(l->warning, sizeof l->warning, "%s", message);
}

static nib_status run(const char *input, const char *output, const nib_quantize_params *params, listener *l,
                      uint32_t *n_resumed, nib_error *error) {
    nib_gguf *gguf = open_model(input);
    nib_quantized report;
    const nib_watch watch = {.user = l, .progress = on_progress, .warn = on_warning};
    const nib_status status = nib_quantize(gguf, in_folder(output), params, NULL, l ? &watch : NULL, &report, error);
    if (n_resumed) *n_resumed = report.n_resumed;
    nib_quantized_fini(&report);
    nib_gguf_close(gguf);
    return status;
}

/* Leaves out.gguf.partial and .journal with some tensors done. */
static void leave_unfinished(const nib_quantize_params *params) {
    nib_error error = {0};
    listener l = {.stop_at = 4};
    assert_int_equal(run("in.gguf", "out.gguf", params, &l, NULL, &error), NIB_ERR_INTERRUPTED);
    assert_true(exists("out.gguf.partial") && exists("out.gguf.journal") && !exists("out.gguf"));
}

static void expect_resumes(const nib_quantize_params *params, uint32_t n_at_least, uint32_t n_at_most) {
    uint32_t n_resumed;
    nib_error error = {0};
    const nib_status status = run("in.gguf", "out.gguf", params, NULL, &n_resumed, &error);
    if (status != NIB_OK) fail_msg("%s", error.message);
    if (n_resumed < n_at_least || n_resumed > n_at_most) fail_msg("%u tensors were resumed", n_resumed);
    expect_same_files("out.gguf", "whole.gguf");
    assert_false(exists("out.gguf.partial") || exists("out.gguf.journal"));
    assert_int_equal(unlink(in_folder("out.gguf")), 0);
}

/* in.gguf, and whole.gguf made from it without disturbance. */
static void prepare(const nib_quantize_params *params) {
    nib_error error = {0};
    nib_quantize_params plain = *params;
    plain.resume = false;
    write_model("in.gguf");
    assert_int_equal(run("in.gguf", "whole.gguf", &plain, NULL, NULL, &error), NIB_OK);
    assert_int_equal(n_files(), 2);
}

/* ---- Killed ---------------------------------------------------------------------------------------------------------- */

static void quantize_demo(const char *output, bool resume, nib_quantized *report) {
    nib_gguf *gguf;
    nib_error error = {0};
    const nib_quantize_params params = {.recipe = recipe_of("q3_k"), .resume = resume, .measure_error = true};
    assert_int_equal(nib_gguf_open("demo", &gguf, &error), NIB_OK);
    const nib_status status = nib_quantize(gguf, in_folder(output), &params, NULL, NULL, report, &error);
    if (status != NIB_OK) fail_msg("%s", error.message);
    nib_gguf_close(gguf);
}

/* Tensors the journal claims. */
static uint32_t n_claimed(const char *name) {
    char line[512];
    uint32_t n = 0;
    bool in_tensors = false;
    FILE *file = fopen(in_folder(name), "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        n += in_tensors;
        in_tensors = in_tensors || strcmp(line, "tensors\n") == 0;
    }
    fclose(file);
    return n;
}

/* Runs in a process of its own, killed after so many microseconds; true if it was done before. */
static bool run_and_kill(bool resume, unsigned microseconds) {
    nib_quantized report;
    int status;
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        quantize_demo("out.gguf", resume, &report);
        _exit(0);
    }
    usleep(microseconds);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void test_killed_at_any_moment(void **state) {
    (void)state;
    nib_quantized whole, report;
    uint32_t random = 1, n_resumed = 0;
    const double began = nib_now();
    quantize_demo("whole.gguf", false, &whole);
    const double seconds = nib_now() - began;
    for (unsigned i = 0; i < 30; i++) {
        bool is_done = false;
        for (unsigned k = 0; k < 3 && !is_done; k++) { /* killed up to three times on the way */
            random = random * 1664525u + 1013904223u;
            const double part = (double)(random >> 8) * 0x1p-24 * (k ? 0.4 : 1.0);
            is_done = run_and_kill(k > 0, (unsigned)(part * seconds * 1e6));
            is_done |= exists("out.gguf") && !exists("out.gguf.journal"); /* killed on its way out */
            assert_true(is_done || !exists("out.gguf") || exists("out.gguf.journal") || !exists("out.gguf.partial"));
        }
        if (exists("out.gguf") && !exists("out.gguf.journal")) {
            expect_same_files("out.gguf", "whole.gguf"); /* the last kill came after the end */
        } else {
            const uint32_t claimed = n_claimed("out.gguf.journal");
            quantize_demo("out.gguf", true, &report);
            assert_int_equal(report.n_resumed, claimed); /* so at most the one being written is made again */
            n_resumed += report.n_resumed > 0;
            assert_string_equal(report.hash, whole.hash);
            for (uint32_t t = 0; t < whole.n_tensors; t++)
                assert_true(report.tensors[t].rel_rmse == whole.tensors[t].rel_rmse);
            nib_quantized_fini(&report);
            expect_same_files("out.gguf", "whole.gguf");
        }
        assert_int_equal(n_files(), 2);
        assert_int_equal(unlink(in_folder("out.gguf")), 0);
    }
    print_message("%u of 30 killed runs were resumed with something done\n", n_resumed);
    assert_true(n_resumed > 3); /* how often depends on the machine; never would prove nothing */
    nib_quantized_fini(&whole);
}

/* ---- Interrupted ----------------------------------------------------------------------------------------------------- */

static void test_interrupted_and_resumed(void **state) {
    (void)state;
    nib_quantize_params params = {.recipe = recipe_of("q8_0"), .resume = true};
    prepare(&params);
    leave_unfinished(&params);
    expect_resumes(&params, 2, 4);
    expect_resumes(&params, 0, 0); /* nothing there: from the beginning */
    params.split_bytes = 20000;    /* the first file is another one then */
    nib_error error = {0};
    listener l = {.stop_at = 4};
    assert_int_equal(run("in.gguf", "cut.gguf", &params, &l, NULL, &error), NIB_ERR_INTERRUPTED);
    uint32_t n_resumed;
    assert_int_equal(run("in.gguf", "cut.gguf", &params, NULL, &n_resumed, &error), NIB_OK);
    assert_in_range(n_resumed, 2, 4);
    params.resume = false;
    assert_int_equal(run("in.gguf", "cut2.gguf", &params, NULL, NULL, &error), NIB_OK);
    for (unsigned i = 1; i <= N_TENSORS; i++) {
        char a[64], b[64];
        snprintf(a, sizeof a, "cut-%05u-of-00006.gguf", i);
        snprintf(b, sizeof b, "cut2-%05u-of-00006.gguf", i);
        expect_same_files(a, b);
    }
    assert_int_equal(n_files(), 2 + 2 * N_TENSORS);
}

static void test_plain_runs_leave_nothing(void **state) {
    (void)state;
    nib_error error = {0};
    nib_quantize_params params = {.recipe = recipe_of("q8_0"), .resume = true};
    prepare(&params);
    leave_unfinished(&params);
    params.resume = false; /* replaces what is there, and says so */
    listener l = {.stop_at = 4};
    assert_int_equal(run("in.gguf", "out.gguf", &params, &l, NULL, &error), NIB_ERR_INTERRUPTED);
    assert_non_null(strstr(l.warning, "out.gguf.partial"));
    assert_int_equal(n_files(), 2);
    expect_resumes(&params, 0, 0);
}

static void expect_refused(const char *input, const nib_quantize_params *params, const char *field) {
    nib_error error = {0};
    assert_int_equal(run(input, "out.gguf", params, NULL, NULL, &error), NIB_ERR_USAGE);
    assert_string_equal(error.field, field);
    assert_true(error.hint[0] != 0);
}

static void test_resumed_with_other_options(void **state) {
    (void)state;
    nib_quantize_params params = {.recipe = recipe_of("q8_0"), .resume = true};
    prepare(&params);
    leave_unfinished(&params);
    nib_quantize_params other = params;
    other.recipe = recipe_of("q4_0");
    expect_refused("in.gguf", &other, "recipe");
    other = params;
    other.pure = true;
    expect_refused("in.gguf", &other, "pure");
    other = params;
    other.no_provenance = true;
    expect_refused("in.gguf", &other, "provenance");
    other = params;
    other.split_bytes = 20000;
    expect_refused("in.gguf", &other, "split_bytes");
    other = params;
    other.measure_error = true;
    expect_refused("in.gguf", &other, "measure_error");
    other = params;
    other.grid_search = true;
    expect_refused("in.gguf", &other, "grid_search");
    nib_error error = {0};
    nib_overrides *overrides;
    assert_int_equal(nib_overrides_new(&overrides, &error), NIB_OK);
    assert_int_equal(nib_overrides_add_tensor(overrides, "attn_v=q4_0", &error), NIB_OK);
    other = params;
    other.overrides = overrides;
    expect_refused("in.gguf", &other, "formats");
    nib_overrides_free(overrides);
    nib_imatrix *imatrix;
    write_imatrix("imatrix.dat");
    assert_int_equal(nib_imatrix_open(in_folder("imatrix.dat"), NULL, &imatrix, &error), NIB_OK);
    other = params;
    other.imatrix = imatrix;
    expect_refused("in.gguf", &other, "imatrix");
    nib_imatrix_free(imatrix);
    assert_int_equal(unlink(in_folder("imatrix.dat")), 0);
    usleep(20000);
    write_model("in2.gguf");
    expect_refused("in2.gguf", &params, "input_mtime");
    write_file("in2.gguf", "more", 4, "ab");
    expect_refused("in2.gguf", &params, "input_bytes");
    assert_int_equal(unlink(in_folder("in2.gguf")), 0);
    expect_resumes(&params, 2, 4); /* refusing has harmed nothing */
}

static void test_damaged_leftovers(void **state) {
    (void)state;
    const nib_quantize_params params = {.recipe = recipe_of("q8_0"), .resume = true};
    struct stat info;
    prepare(&params);
    leave_unfinished(&params);
    assert_int_equal(truncate(in_folder("out.gguf.partial"), 30000), 0);
    expect_resumes(&params, 1, 1);

    leave_unfinished(&params); /* a byte of the second tensor */
    assert_int_equal(stat(in_folder("out.gguf.partial"), &info), 0);
    FILE *file = fopen(in_folder("out.gguf.partial"), "r+b");
    assert_int_equal(fseek(file, 20000, SEEK_SET), 0);
    const int byte = fgetc(file);
    assert_int_equal(fseek(file, 20000, SEEK_SET), 0);
    fputc(byte ^ 1, file);
    fclose(file);
    expect_resumes(&params, 1, 1);

    leave_unfinished(&params); /* a torn line */
    assert_int_equal(stat(in_folder("out.gguf.journal"), &info), 0);
    assert_int_equal(truncate(in_folder("out.gguf.journal"), info.st_size - 3), 0);
    expect_resumes(&params, 1, 3);

    leave_unfinished(&params);
    write_file("out.gguf.journal", "17 zebras\n", 10, "ab");
    expect_resumes(&params, 2, 4);

    leave_unfinished(&params);
    write_file("out.gguf.journal", "nonsense", 8, "wb");
    expect_resumes(&params, 0, 0);

    leave_unfinished(&params);
    assert_int_equal(unlink(in_folder("out.gguf.partial")), 0);
    expect_resumes(&params, 0, 0);

    leave_unfinished(&params); /* links are not followed */
    write_file("precious", "precious", 8, "wb");
    assert_int_equal(unlink(in_folder("out.gguf.partial")), 0);
    assert_int_equal(unlink(in_folder("out.gguf.journal")), 0);
    assert_int_equal(symlink("precious", in_folder("out.gguf.partial")), 0);
    assert_int_equal(link(in_folder("precious"), in_folder("out.gguf.journal")), 0);
    expect_resumes(&params, 0, 0);
    assert_int_equal(stat(in_folder("precious"), &info), 0);
    assert_int_equal(info.st_size, 8);
}

/* Killed between giving the file its name and removing the journal. */
static void test_all_but_the_journal_was_done(void **state) {
    (void)state;
    nib_gguf *gguf;
    nib_error error = {0};
    char line[128];
    struct stat before, after;
    uint32_t n_resumed;
    const nib_quantize_params params = {.recipe = recipe_of("q8_0"), .resume = true};
    prepare(&params);
    leave_unfinished(&params);
    assert_int_equal(rename(in_folder("whole.gguf"), in_folder("out.gguf")), 0);
    assert_int_equal(unlink(in_folder("out.gguf.partial")), 0);
    assert_int_equal(nib_gguf_open(in_folder("out.gguf"), &gguf, &error), NIB_OK);
    for (uint64_t i = n_claimed("out.gguf.journal"); i < nib_gguf_n_tensors(gguf); i++) {
        const nib_tensor *t = nib_gguf_tensor_at(gguf, i);
        const int n =
            snprintf(line, sizeof line, "%llu %llu %016llx 0x0p+0 0x0p+0 0x0p+0\n", (unsigned long long)t->offset,
                     (unsigned long long)t->n_bytes, (unsigned long long)XXH3_64bits(t->data, (size_t)t->n_bytes));
        write_file("out.gguf.journal", line, (size_t)n, "ab");
    }
    nib_gguf_close(gguf);
    assert_int_equal(stat(in_folder("out.gguf"), &before), 0);
    assert_int_equal(run("in.gguf", "out.gguf", &params, NULL, &n_resumed, &error), NIB_OK);
    assert_int_equal(n_resumed, N_TENSORS);
    assert_int_equal(stat(in_folder("out.gguf"), &after), 0);
    assert_true(before.st_ino == after.st_ino && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
    assert_int_equal(n_files(), 2);
    /* Without a journal a file of that name is somebody's. */
    assert_int_equal(run("in.gguf", "out.gguf", &params, NULL, NULL, &error), NIB_ERR_USAGE);
    assert_int_equal(n_files(), 2);
}

/* XXH3-64 of every payload, in the order of the tensors. */
static void test_hashes_in_the_file(void **state) {
    (void)state;
    uint64_t number;
    const nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    prepare(&params);
    nib_gguf *gguf = open_model("whole.gguf");
    const nib_gguf_kv *hashes = nib_gguf_find(gguf, "nibble.tensor_xxh3");
    assert_non_null(hashes);
    assert_int_equal(hashes->n, N_TENSORS);
    for (uint64_t i = 0; i < N_TENSORS; i++) {
        const nib_tensor *t = nib_gguf_tensor_at(gguf, i);
        assert_true(nib_gguf_kv_u64(hashes, i, &number) && number == XXH3_64bits(t->data, (size_t)t->n_bytes));
    }
    nib_gguf_close(gguf);
}

/* ---- Others ---------------------------------------------------------------------------------------------------------- */

static void test_two_writers(void **state) {
    (void)state;
    nib_error error = {0};
    nib_output *first;
    nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    prepare(&params);
    assert_int_equal(nib_output_open(in_folder("out.gguf"), false, NULL, 5, &first, &error), NIB_OK);
    for (unsigned k = 0; k < 2; k++) {
        params.resume = k;
        assert_int_equal(run("in.gguf", "out.gguf", &params, NULL, NULL, &error), NIB_ERR_USAGE);
        assert_non_null(strstr(error.message, "another run"));
    }
    assert_int_equal(nib_output_write(first, "first", 5, &error), NIB_OK);
    assert_int_equal(nib_output_commit(first, true, &error), NIB_OK);
    assert_int_equal(n_files(), 3);
    params.resume = false;
    params.force = true;
    assert_int_equal(run("in.gguf", "out.gguf", &params, NULL, NULL, &error), NIB_OK);
    expect_same_files("out.gguf", "whole.gguf");
}

static void test_input_changes(void **state) {
    (void)state;
    nib_error error = {0};
    nib_quantized report;
    char input[256];
    const nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    snprintf(input, sizeof input, "%s", in_folder("in.gguf"));
    for (int stop_at = 1; stop_at < 3; stop_at++) { /* shorter while it is read */
        listener l = {.stop_at = stop_at, .truncate = input};
        write_model("in.gguf");
        assert_int_equal(run("in.gguf", "out.gguf", &params, &l, NULL, &error), NIB_ERR_IO);
        assert_non_null(strstr(error.message, "shorter"));
        assert_string_equal(error.file, input);
        assert_int_equal(n_files(), 1);
    }
    write_model("in.gguf"); /* empty before it is read */
    nib_gguf *gguf = open_model("in.gguf");
    assert_int_equal(truncate(input, 0), 0);
    assert_int_equal(nib_quantize(gguf, in_folder("out.gguf"), &params, NULL, NULL, &report, &error), NIB_ERR_IO);
    nib_quantized_fini(&report);
    nib_gguf_close(gguf);
    write_model("in.gguf"); /* written to */
    gguf = open_model("in.gguf");
    usleep(20000);
    write_model("in.gguf");
    assert_int_equal(nib_quantize(gguf, in_folder("out.gguf"), &params, NULL, NULL, &report, &error), NIB_ERR_IO);
    nib_quantized_fini(&report);
    nib_gguf_close(gguf);
    assert_int_equal(n_files(), 1);
}

/* ---- No space left ------------------------------------------------------------------------------------------------- */

/* A limit on the size of files stands in for a disk that is full after so many bytes of the output. */
static nib_status run_with_limit(const nib_quantize_params *params, rlim_t n_bytes, nib_error *error) {
    struct rlimit was, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    limit = (struct rlimit){.rlim_cur = n_bytes, .rlim_max = was.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const nib_status status = run("in.gguf", "out.gguf", params, NULL, NULL, error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    return status;
}

static void test_no_space_at_any_point(void **state) {
    (void)state;
    struct stat info;
    nib_error error = {0};
    nib_quantize_params params = {.recipe = recipe_of("q8_0")};
    prepare(&params);
    assert_int_equal(stat(in_folder("whole.gguf"), &info), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (off_t n_bytes = 0; n_bytes < info.st_size; n_bytes += n_bytes < 2000 ? 111 : 3333) {
        params.resume = false;
        assert_int_equal(run_with_limit(&params, (rlim_t)n_bytes, &error), NIB_ERR_IO);
        assert_int_equal(n_files(), 2);
        params.resume = true; /* what is written stays, and is not written again when there is space */
        assert_int_equal(run_with_limit(&params, (rlim_t)n_bytes, &error), NIB_ERR_IO);
        const uint32_t claimed = n_claimed("out.gguf.journal");
        assert_true(n_bytes < info.st_size * 9 / 10 || claimed > 3);
        expect_resumes(&params, claimed, claimed);
    }
    params.resume = false;
    assert_int_equal(run_with_limit(&params, (rlim_t)info.st_size, &error), NIB_OK);
    expect_same_files("out.gguf", "whole.gguf");
    assert_int_equal(n_files(), 3);
    signal(SIGXFSZ, SIG_DFL);
}

/* ---- Several outputs --------------------------------------------------------------------------------------------------- */

static void test_many_equal_single(void **state) {
    (void)state;
    static const char *const recipes[] = {"q8_0", "q4_k", "bf16", "q2s"}; /* the demo is bf16: copies among them */
    const char *paths[4];
    char names[4][64];
    nib_quantize_params params[4];
    nib_quantized many[4], single;
    nib_gguf *demo;
    nib_pool *pool;
    nib_error error = {0};
    assert_int_equal(nib_gguf_open("demo", &demo, &error), NIB_OK);
    assert_int_equal(nib_pool_new(3, &pool, &error), NIB_OK);
    for (size_t i = 0; i < 4; i++) {
        snprintf(names[i], sizeof names[i], "many-%s.gguf", recipes[i]);
        paths[i] = in_folder(names[i]);
        params[i] = (nib_quantize_params){.recipe = recipe_of(recipes[i]), .no_sync = true, .measure_error = i != 1};
    }
    assert_int_equal(nib_quantize_many(demo, 4, paths, params, pool, NULL, many, &error), NIB_OK);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(nib_quantize(demo, in_folder("single.gguf"), &params[i], NULL, NULL, &single, &error), NIB_OK);
        expect_same_files(names[i], "single.gguf");
        assert_int_equal(unlink(in_folder("single.gguf")), 0);
        assert_string_equal(many[i].hash, single.hash);
        assert_int_equal(many[i].bytes_out, single.bytes_out);
        for (uint32_t t = 0; t < single.n_tensors; t++) {
            assert_string_equal(many[i].tensors[t].name, single.tensors[t].name);
            assert_ptr_equal(many[i].tensors[t].to, single.tensors[t].to);
            if (i != 1) assert_true(many[i].tensors[t].rel_rmse == single.tensors[t].rel_rmse);
        }
        nib_quantized_fini(&single);
        nib_quantized_fini(&many[i]);
    }
    assert_int_equal(n_files(), 4);
    nib_pool_free(pool);
    nib_gguf_close(demo);
}

static void test_two_outputs_of_one_name(void **state) {
    (void)state;
    char second[300];
    nib_error error = {0};
    nib_quantized reports[2];
    write_model("in.gguf");
    nib_gguf *gguf = open_model("in.gguf");
    const nib_quantize_params params[2] = {{.recipe = recipe_of("q8_0")}, {.recipe = recipe_of("q4_0")}};
    snprintf(second, sizeof second, "%s/./out.gguf", folder);
    for (unsigned k = 0; k < 2; k++) {
        const char *const paths[2] = {in_folder("out.gguf"), k ? second : in_folder("out.gguf")};
        assert_int_equal(nib_quantize_many(gguf, 2, paths, params, NULL, NULL, reports, &error), NIB_ERR_USAGE);
        assert_non_null(strstr(error.message, "two outputs"));
        for (unsigned i = 0; i < 2; i++) nib_quantized_fini(&reports[i]);
    }
    assert_int_equal(n_files(), 1);
    /* One that cannot be made, and none is. */
    write_file("there.gguf", "x", 1, "wb");
    const char *const paths[2] = {in_folder("out.gguf"), in_folder("there.gguf")};
    assert_int_equal(nib_quantize_many(gguf, 2, paths, params, NULL, NULL, reports, &error), NIB_ERR_USAGE);
    for (unsigned i = 0; i < 2; i++) nib_quantized_fini(&reports[i]);
    assert_int_equal(n_files(), 2);
    nib_gguf_close(gguf);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_killed_at_any_moment, empty_folder),
        cmocka_unit_test_setup(test_interrupted_and_resumed, empty_folder),
        cmocka_unit_test_setup(test_plain_runs_leave_nothing, empty_folder),
        cmocka_unit_test_setup(test_resumed_with_other_options, empty_folder),
        cmocka_unit_test_setup(test_damaged_leftovers, empty_folder),
        cmocka_unit_test_setup(test_all_but_the_journal_was_done, empty_folder),
        cmocka_unit_test_setup(test_hashes_in_the_file, empty_folder),
        cmocka_unit_test_setup(test_two_writers, empty_folder),
        cmocka_unit_test_setup(test_input_changes, empty_folder),
        cmocka_unit_test_setup(test_no_space_at_any_point, empty_folder),
        cmocka_unit_test_setup(test_many_equal_single, empty_folder),
        cmocka_unit_test_setup(test_two_outputs_of_one_name, empty_folder),
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
