/* A small study of the built-in model, and what must not happen to the user's directories. */
#include "base/files.h"
#include "nibble.h"
#include "unit.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct fixture {
    char directory[64], out[96];
    nib_pool *pool;
    const nib_recipe *levels[2];
    const char *prompts[1];
    nib_study_params params;
} fixture;

static int setup(void **state) {
    fixture *self = calloc(1, sizeof *self);
    strcpy(self->directory, "/tmp/nibble-test-study-XXXXXX");
    if (mkdtemp(self->directory) == NULL || nib_pool_new(2, &self->pool, NULL) != NIB_OK) return -1;
    snprintf(self->out, sizeof self->out, "%s/out", self->directory);
    self->levels[0] = nib_recipe_find("q2_k", NULL);
    self->levels[1] = nib_recipe_find("q4_0", NULL);
    self->prompts[0] = "What is 7 + 5?";
    self->params = (nib_study_params){.model = "demo",
                                      .levels = self->levels,
                                      .n_levels = 2,
                                      .choice_path = "",
                                      .prompts = self->prompts,
                                      .n_prompts = 1,
                                      .n_talk_tokens = 12,
                                      .n_chunks = 2,
                                      .out_dir = self->out};
    *state = self;
    return 0;
}

static unsigned count_files(const char *path) {
    DIR *directory = opendir(path);
    unsigned n = 0;
    if (directory == NULL) return 0;
    while (readdir(directory) != NULL) n++;
    closedir(directory);
    return n - 2;
}

static void remove_files(const char *path) {
    DIR *directory = opendir(path);
    if (directory == NULL) return;
    for (const struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory))
        unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
    rmdir(path);
}

static int teardown(void **state) {
    fixture *self = *state;
    remove_files(self->out);
    remove_files(self->directory);
    nib_pool_free(self->pool);
    free(self);
    return 0;
}

static bool exists(const char *directory, const char *name) {
    char path[256];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return lstat(path, &info) == 0;
}

static void put_file(const char *directory, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static json_t *read_report(const char *directory) {
    char path[256];
    json_error_t where;
    snprintf(path, sizeof path, "%s/report.json", directory);
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    if (root == NULL) fail_msg("%s at %d", where.text, where.position);
    return root;
}

typedef struct listener {
    unsigned calls, stop_after; /* 0 = never */
    double last_done;
    bool went_back;
} listener;

static bool on_progress(void *user, const nib_progress *progress) {
    listener *self = user;
    if (progress->done < self->last_done - 1e-9 || progress->done > progress->total * (1 + 1e-9))
        self->went_back = true;
    self->last_done = progress->done;
    return ++self->calls != self->stop_after;
}

static void test_study(void **state) {
    fixture *self = *state;
    nib_study study;
    nib_error error = {0};
    listener heard = {0};
    const nib_watch watch = {&heard, on_progress, NULL};
    self->params.keep = true;
    if (nib_study_run(&self->params, self->pool, &watch, &study, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_false(heard.went_back);
    assert_true(heard.calls > 4);
    assert_int_equal(count_files(self->directory), 1);
    assert_true(exists(self->out, "report.html") && exists(self->out, "kld.svg"));
    assert_true(exists(self->out, "demo.q2_k.gguf") && exists(self->out, "demo.q4_0.gguf"));
    assert_true(study.eval.models[1].kld.mean < study.eval.models[0].kld.mean); /* 4 bits lose less than 2 */
    assert_true(study.eval.models[0].bytes < study.eval.models[1].bytes);
    assert_non_null(strstr(study.talk[0].text, "12"));
    double sum = 0;
    for (uint32_t i = 0; i < study.n_next; i++) sum += study.next[i].probability[0];
    assert_int_equal(study.n_next, 10);
    assert_true(sum > 0.1 && sum <= 1.000001);
    assert_true(study.next[4].probability[0] > 0.5); /* the demo model can add 2 and 2 */
    json_t *root = read_report(self->out);
    const json_t *level = json_array_get(json_object_get(root, "levels"), 1);
    assert_string_equal(json_string_value(json_object_get(level, "level")), "q4_0");
    assert_int_equal(json_array_size(json_object_get(json_object_get(level, "bench"), "results")), 2);
    assert_string_equal(json_string_value(json_object_get(json_object_get(level, "quantize"), "output")),
                        "demo.q4_0.gguf");
    const json_t *files = json_object_get(root, "files");
    assert_int_equal(json_array_size(files), count_files(self->out));
    for (size_t i = 0; i < json_array_size(files); i++)
        assert_true(exists(self->out, json_string_value(json_array_get(files, i))));
    json_decref(root);
    nib_study_fini(&study);
    nib_study_fini(&study); /* twice does no harm */

    /* Again, into the same directory: refused, then replaced; the quantized files of before are gone. */
    assert_int_equal(nib_study_run(&self->params, self->pool, NULL, &study, &error), NIB_ERR_USAGE);
    nib_study_fini(&study);
    self->params.force = true;
    self->params.keep = false;
    if (nib_study_run(&self->params, self->pool, NULL, &study, &error) != NIB_OK) fail_msg("%s", error.message);
    nib_study_fini(&study);
    assert_int_equal(count_files(self->directory), 1);
    assert_false(exists(self->out, "demo.q2_k.gguf"));
    assert_true(exists(self->out, "report.json"));

    /* A file of the user's in it: refused, and all is left as it was. */
    const unsigned before = count_files(self->out);
    put_file(self->out, "notes.txt", "mine");
    assert_int_equal(nib_study_run(&self->params, self->pool, NULL, &study, &error), NIB_ERR_USAGE);
    assert_non_null(strstr(error.message, "notes.txt"));
    nib_study_fini(&study);
    assert_int_equal(count_files(self->out), before + 1);
}

static void test_foreign_directories_are_left_alone(void **state) {
    fixture *self = *state;
    nib_study study;
    nib_error error = {0};
    self->params.force = true;
    assert_int_equal(mkdir(self->out, 0777), 0);
    put_file(self->out, "precious.txt", "mine");
    assert_int_equal(nib_study_run(&self->params, self->pool, NULL, &study, &error), NIB_ERR_USAGE);
    nib_study_fini(&study);
    put_file(self->out, "report.json", "{\"schema\":\"other/1\",\"files\":[\"report.json\",\"precious.txt\"]}");
    assert_int_equal(nib_study_run(&self->params, self->pool, NULL, &study, &error), NIB_ERR_USAGE);
    nib_study_fini(&study);
    assert_true(exists(self->out, "precious.txt"));
    assert_int_equal(count_files(self->directory), 1);
}

/* Stopped early, in the middle, late: nothing is left. */
static void test_interruption_leaves_nothing(void **state) {
    fixture *self = *state;
    static const unsigned moments[] = {1, 3, 12};
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        nib_study study;
        nib_error error = {0};
        listener heard = {.stop_after = moments[i]};
        const nib_watch watch = {&heard, on_progress, NULL};
        assert_int_equal(nib_study_run(&self->params, self->pool, &watch, &study, &error), NIB_ERR_INTERRUPTED);
        assert_int_equal(heard.calls, moments[i]);
        nib_study_fini(&study);
        assert_int_equal(count_files(self->directory), 0);
    }
}

static void test_what_is_wrong_is_said_first(void **state) {
    fixture *self = *state;
    nib_study study;
    nib_error error = {0};
    nib_study_params params = self->params;
    const nib_recipe *twice[] = {self->levels[0], self->levels[0]};
    params.levels = twice;
    assert_int_equal(nib_study_run(&params, self->pool, NULL, &study, &error), NIB_ERR_USAGE);
    nib_study_fini(&study);
    params = self->params;
    params.n_levels = 0;
    assert_int_equal(nib_study_run(&params, self->pool, NULL, &study, &error), NIB_ERR_USAGE);
    nib_study_fini(&study);
    params = self->params;
    params.text_path = "/nonexistent/text";
    assert_int_equal(nib_study_run(&params, self->pool, NULL, &study, &error), NIB_ERR_IO);
    nib_study_fini(&study);
    params = self->params;
    params.out_dir = "/nonexistent/out";
    assert_int_equal(nib_study_run(&params, self->pool, NULL, &study, &error), NIB_ERR_IO);
    nib_study_fini(&study);
    assert_int_equal(count_files(self->directory), 0);
}

static void test_prepare(void **state) {
    fixture *self = *state;
    nib_study_plan plan;
    nib_error error = {0};
    if (nib_study_prepare(&self->params, self->pool, &plan, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_true(plan.seconds > 0);
    assert_in_range(plan.disk_bytes, 5000000, 8000000); /* 2.7 and 3.7 MB, and the reports */
    assert_true(plan.memory_bytes > 0);
    assert_string_equal(plan.out_dir, self->out);
    self->params.out_dir = NULL;
    self->params.force = true; /* a study of the demo may stand in the working directory */
    assert_int_equal(nib_study_prepare(&self->params, self->pool, &plan, &error), NIB_OK);
    assert_string_equal(plan.out_dir, "nibble-study-demo");
}

static void test_sets_of_levels(void **state) {
    (void)state;
    const nib_recipe *levels[16];
    assert_int_equal(nib_study_levels("default", levels), 7);
    assert_ptr_equal(levels[2], nib_recipe_find("q4_k", NULL));
    assert_int_equal(nib_study_levels("article", levels), 6);
    assert_ptr_equal(levels[5], nib_recipe_find("q2s", NULL));
    assert_int_equal(nib_study_levels("other", levels), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_study, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_directories_are_left_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interruption_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_wrong_is_said_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prepare, setup, teardown),
        cmocka_unit_test(test_sets_of_levels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
