/* Choice questions: reading them, and scores against lm-evaluation-harness's on the demo model. */
#include "nibble/eval.h"
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const scratch_path = "test_choice_scratch.jsonl";

static nib_status read_text(const char *text, nib_questions *out, nib_error *error) {
    FILE *file = fopen(scratch_path, "wb");
    assert_non_null(file);
    fwrite(text, 1, strlen(text), file);
    fclose(file);
    const nib_status status = nib_questions_read(scratch_path, out, error);
    unlink(scratch_path);
    return status;
}

static void test_fields(void **state) {
    (void)state;
    nib_questions q;
    nib_error error;
    const nib_status status = read_text(
        "\xEF\xBB\xBF{\"id\":1,\"question\":\"Q?\",\"choices\":[\"a\",\"b\"],\"answer\":1,\"category\":\"c\"}\r\n"
        "  \n"
        "{\"question\":\"Q?\",\"context\":\"C.\",\"choices\":[\"a\",\"b\",\"c\"],\"answer\":2}\n"
        "{\"prompt\":\"P\",\"choices\":[\"a\",\"b\"],\"answer\":0,\"unknown\":[1,{}]}\n"
        "{\"query\":\"Question: Why?\\n\",\"choices\":[\"a\",\"b\"],\"gold\":0}\n"
        "{\"query\":\"It is\",\"choices\":[\"a\",\"b\"],\"gold\":1}\n"
        "{\"context_options\":[\"so A\",\"so B\"],\"continuation\":\"ran.\",\"gold\":1}",
        &q, &error);
    if (status != NIB_OK) fail_msg("%s", error.message);
    assert_string_equal(q.name, "test_choice_scratch");
    assert_int_equal(q.n, 6);
    assert_string_equal(q.items[0].prompt, "Question: Q?\nAnswer:");
    assert_string_equal(q.items[0].category, "c");
    assert_string_equal(q.items[0].choices[1], "b");
    assert_int_equal(q.items[0].answer, 1);
    assert_string_equal(q.items[1].prompt, "C.\nQuestion: Q?\nAnswer:");
    assert_string_equal(q.items[1].category, "");
    assert_int_equal(q.items[1].n_choices, 3);
    assert_string_equal(q.items[2].prompt, "P");
    assert_string_equal(q.items[3].prompt, "Question: Why?\n\nAnswer:");
    assert_string_equal(q.items[4].prompt, "It is");
    assert_int_equal(q.items[4].answer, 1);
    assert_null(q.items[4].prompts);
    assert_string_equal(q.items[5].prompts[1], "so B");
    assert_string_equal(q.items[5].choices[0], "ran.");
    assert_string_equal(q.items[5].choices[1], "ran.");
    nib_questions_fini(&q);
}

static void test_broken_lines(void **state) {
    (void)state;
    static const char good[] = "{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":0}\n";
    static const struct {
        const char *line, *field, *words;
    } cases[] = {
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":2}", "answer", "line 2"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":-1}", "answer", "index"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":\"a\"}", "answer", "whole number"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":0.0}", "answer", "whole number"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"]}", "answer", "missing"},
        {"{\"question\":\"Q\",\"choices\":[\"a\"],\"answer\":0}", "choices", "fewer than 2"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"\"],\"answer\":0}", "choices", "empty"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",7],\"answer\":0}", "choices", "not text"},
        {"{\"question\":\"Q\",\"choices\":\"ab\",\"answer\":0}", "choices", "not an array"},
        {"{\"question\":\"Q\",\"answer\":0}", "choices", "missing"},
        {"{\"question\":7,\"choices\":[\"a\",\"b\"],\"answer\":0}", "question", "not text"},
        {"{\"question\":\"\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "question", "empty"},
        {"{\"choices\":[\"a\",\"b\"],\"answer\":0}", "question", "missing"},
        {"{\"prompt\":\" \\n\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "prompt", "blank"},
        {"{\"question\":\"Q\",\"question\":\"R\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "", "broken JSON"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":0", "", "broken JSON"},
        {"{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":0} x", "", "broken JSON"},
        {"{\"question\":\"\\u0000\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "", "broken JSON"},
        {"{\"question\":\"\xFF\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "", "broken JSON"},
        {"[1]", "", "not a JSON object"},
        {"{\"context\":\"C\",\"continuation\":\"word\"}", "question", "missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        nib_questions q;
        nib_error error;
        snprintf(text, sizeof text, "%s%s\n%s", good, cases[i].line, good);
        if (read_text(text, &q, &error) != NIB_ERR_CORRUPT) fail_msg("accepted: %s", cases[i].line);
        assert_string_equal(error.file, scratch_path);
        assert_string_equal(error.field, cases[i].field);
        if (strstr(error.message, "line 2") == NULL || strstr(error.message, cases[i].words) == NULL)
            fail_msg("%s: %s", cases[i].line, error.message);
        assert_true(error.offset >= (int64_t)strlen(good) && error.offset <= (int64_t)strlen(text));
        assert_true(q.n == 0 && q.items == NULL);
    }
    nib_questions q;
    nib_error error;
    assert_int_equal(read_text("\n \n", &q, &error), NIB_ERR_CORRUPT);
    assert_int_equal(nib_questions_read("there/is/no/such.jsonl", &q, &error), NIB_ERR_IO);
}

/* ---- Scores ---------------------------------------------------------------------------------------------------------- */

static int open_demo(void **state) {
    nib_error error;
    nib_model *model = NULL;
    if (nib_model_open("demo", NULL, &model, &error) != NIB_OK) {
        print_message("%s\n", error.message);
        return -1;
    }
    *state = model;
    return 0;
}

static int close_demo(void **state) {
    nib_model_close(*state);
    return 0;
}

static nib_pool *new_pool(unsigned n_threads) {
    nib_pool *pool = NULL;
    nib_error error;
    assert_int_equal(nib_pool_new(n_threads, &pool, &error), NIB_OK);
    return pool;
}

/* Compares the first n scores with the rows of a table: index, gold, sums, greedy, acc, acc_norm. */
static void against_table(const nib_choice_scores *scores, const nib_questions *questions, FILE *table, uint32_t n,
                          double tolerance) {
    char line[1024];
    assert_non_null(fgets(line, sizeof line, table)); /* the heading */
    for (uint32_t q = 0; q < n; q++) {
        assert_non_null(fgets(line, sizeof line, table));
        char *index = strtok(line, "\t"), *gold = strtok(NULL, "\t"), *sums = strtok(NULL, "\t");
        strtok(NULL, "\t");
        char *acc = strtok(NULL, "\t"), *acc_norm = strtok(NULL, "\t");
        assert_int_equal(strtoul(index, NULL, 10), q);
        assert_int_equal(strtoul(gold, NULL, 10), questions->items[q].answer);
        for (uint32_t c = 0; c < questions->items[q].n_choices; c++) {
            const double want = strtod(sums, &sums);
            if (!(fabs(scores->sums[q][c] - want) <= tolerance))
                fail_msg("question %u choice %u: %.6f, the harness says %.6f", q, c, scores->sums[q][c], want);
        }
        assert_int_equal(scores->right[q], acc[0] == '1');
        if (acc_norm[0] != '-') assert_int_equal(scores->right_norm[q], acc_norm[0] == '1');
    }
}

/* questions_path: under the shared material, or "demo". n: questions scored, the first ones. */
static void score_task(const nib_model *model, const char *questions_path, const char *table_name, uint32_t n) {
    const char *shared = getenv("NIBBLE_SHARED");
    char path[1024], data_path[1024];
    snprintf(path, sizeof path, "%s/fixtures/choice/%s.tsv", shared != NULL ? shared : "", table_name);
    snprintf(data_path, sizeof data_path, "%s/%s", shared != NULL ? shared : "", questions_path);
    FILE *table = shared != NULL ? fopen(path, "r") : NULL;
    if (table == NULL) {
        print_message("skipped: shared material (fixtures/choice) is not here\n");
        skip();
    }
    nib_questions questions;
    nib_choice_scores scores;
    nib_error error;
    nib_pool *pool = new_pool(2);
    if (nib_questions_read(strcmp(questions_path, "demo") == 0 ? "demo" : data_path, &questions, &error) != NIB_OK)
        fail_msg("%s", error.message);
    assert_true(questions.n >= n);
    nib_questions part = questions;
    part.n = n;
    if (nib_choice_score(model, true, NIB_KV_F16, pool, &part, NULL, &scores, &error) != NIB_OK)
        fail_msg("%s", error.message);
    against_table(&scores, &part, table, n, 1e-3);
    nib_choice_scores_fini(&scores);
    nib_questions_fini(&questions);
    nib_pool_free(pool);
    fclose(table);
}

static void test_demo_sums(void **state) {
    score_task(*state, "demo", "demo_choice", UNIT_SANITIZED ? 20 : 300);
}

static void test_arc_easy_sums(void **state) {
    score_task(*state, "data/mc/arc_easy.jsonl", "arc_easy", UNIT_SANITIZED ? 4 : 20);
}

static void test_piqa_sums(void **state) {
    score_task(*state, "data/mc/piqa.jsonl", "piqa", UNIT_SANITIZED ? 4 : 16);
}

static void test_openbook_sums(void **state) {
    score_task(*state, "data/mc/openbook_qa.jsonl", "openbook_qa", UNIT_SANITIZED ? 4 : 24);
}

static void test_winogrande_sums(void **state) {
    score_task(*state, "data/mc/winogrande.jsonl", "winogrande", UNIT_SANITIZED ? 4 : 24);
}

/* Needs nothing shared: the demo's card says 282 of 300, both ways. */
static void test_demo_accuracy(void **state) {
    if (UNIT_SANITIZED) skip();
    nib_questions questions;
    nib_choice_scores exact, deployed;
    nib_error error;
    nib_pool *pool = new_pool(2);
    if (nib_questions_read("demo", &questions, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(questions.n, 300);
    if (nib_choice_score(*state, true, NIB_KV_F16, pool, &questions, NULL, &exact, &error) != NIB_OK)
        fail_msg("%s", error.message);
    assert_float_equal(exact.accuracy, 0.94, 1e-12);
    assert_float_equal(exact.accuracy_norm, 0.94, 1e-12);
    assert_float_equal(exact.accuracy_err, sqrt(0.94 * 0.06 / 299), 1e-12);
    if (nib_choice_score(*state, false, NIB_KV_F16, pool, &questions, NULL, &deployed, &error) != NIB_OK)
        fail_msg("%s", error.message);
    assert_float_equal(deployed.accuracy, 0.94, 0.01);
    assert_true(deployed.sums[0][0] != exact.sums[0][0]); /* another path */
    nib_choice_scores_fini(&exact);
    nib_choice_scores_fini(&deployed);
    nib_questions_fini(&questions);
    nib_pool_free(pool);
}

/* A question's sums depend neither on what is scored with it nor on the threads. */
static void test_packing_does_not_show(void **state) {
    nib_questions questions;
    nib_choice_scores all, one;
    nib_error error;
    nib_pool *pool = new_pool(2);
    assert_int_equal(nib_questions_read("demo", &questions, &error), NIB_OK);
    nib_questions part = questions;
    part.n = 40;
    assert_int_equal(nib_choice_score(*state, true, NIB_KV_F16, pool, &part, NULL, &all, &error), NIB_OK);
    for (uint32_t q = 0; q < part.n; q += 13) {
        nib_questions single = questions;
        single.items = questions.items + q;
        single.n = 1;
        assert_int_equal(nib_choice_score(*state, true, NIB_KV_F16, NULL, &single, NULL, &one, &error), NIB_OK);
        for (uint32_t c = 0; c < single.items->n_choices; c++) assert_float_equal(one.sums[0][c], all.sums[q][c], 2e-5);
        assert_true(isnan(one.accuracy_err));
        nib_choice_scores_fini(&one);
    }
    nib_choice_scores_fini(&all);
    nib_questions_fini(&questions);
    nib_pool_free(pool);
}

/* A text longer than the context loses its beginning, not its end. */
static void test_long_prompt(void **state) {
    nib_error error;
    nib_questions q;
    nib_choice_scores scores;
    char *text = malloc(40000), *at = text;
    assert_non_null(text);
    at += sprintf(at, "{\"prompt\":\"");
    for (int i = 0; i < 3000; i++) at += sprintf(at, "dog %d ", i % 7);
    sprintf(at,
            "Question: What is the capital of England?\\nAnswer:\",\"choices\":[\"Paris\",\"London\"],\"answer\":1}");
    assert_int_equal(read_text(text, &q, &error), NIB_OK);
    if (nib_choice_score(*state, false, NIB_KV_F16, NULL, &q, NULL, &scores, &error) != NIB_OK)
        fail_msg("%s", error.message);
    assert_true(isfinite(scores.sums[0][0]) && isfinite(scores.sums[0][1]));
    nib_choice_scores_fini(&scores);
    nib_questions_fini(&q);
    at = text;
    at += sprintf(at, "{\"prompt\":\"A\",\"choices\":[\"a\",\"");
    for (int i = 0; i < 3000; i++) at += sprintf(at, "dog %d ", i % 7);
    sprintf(at, "\"],\"answer\":1}");
    assert_int_equal(read_text(text, &q, &error), NIB_OK);
    assert_int_equal(nib_choice_score(*state, false, NIB_KV_F16, NULL, &q, NULL, &scores, &error), NIB_ERR_USAGE);
    nib_questions_fini(&q);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_broken_lines),
        cmocka_unit_test_setup_teardown(test_demo_sums, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_arc_easy_sums, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_piqa_sums, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_openbook_sums, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_winogrande_sums, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_demo_accuracy, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_packing_does_not_show, open_demo, close_demo),
        cmocka_unit_test_setup_teardown(test_long_prompt, open_demo, close_demo),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
