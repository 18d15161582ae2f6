/* Lock-step evaluation and speed, on the demo model and on files quantized from it here. */
#include "nibble/eval.h"
#include "nibble/quant.h"
#include "unit.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define assert_near(got, want, tolerance)                                                            \
    do {                                                                                             \
        const double got_ = (got), want_ = (want);                                                   \
        if (!(fabs(got_ - want_) <= (tolerance)))                                                    \
            fail_msg("%s: got %.9g, want %.9g within %.3g", #got, got_, want_, (double)(tolerance)); \
    } while (0)

static const char *const scratch_text = "test_eval_scratch.txt", *const scratch_q4 = "test_eval_q4_0.gguf",
                         *const scratch_q2 = "test_eval_q2_k.gguf";

static nib_model *demo, *q4, *q2;
static nib_pool *pool;

static void make_model(const char *recipe, const char *path, nib_model **out) {
    nib_error error;
    nib_quantized quantized;
    const nib_quantize_params params = {.recipe = nib_recipe_find(recipe, &error), .force = true, .no_sync = true};
    if (nib_quantize(nib_model_gguf(demo), path, &params, pool, NULL, &quantized, &error) != NIB_OK)
        fail_msg("%s", error.message);
    nib_quantized_fini(&quantized);
    if (nib_model_open(path, NULL, out, &error) != NIB_OK) fail_msg("%s", error.message);
}

static int set_up(void **state) {
    (void)state;
    nib_error error;
    if (nib_pool_new(2, &pool, &error) != NIB_OK) return -1;
    if (nib_model_open("demo", NULL, &demo, &error) != NIB_OK) return -1;
    make_model("q4_0", scratch_q4, &q4);
    make_model("q2_k", scratch_q2, &q2);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    nib_model_close(q4);
    nib_model_close(q2);
    nib_model_close(demo);
    nib_pool_free(pool);
    unlink(scratch_q4);
    unlink(scratch_q2);
    return 0;
}

static void write_text(const char *data, size_t n) {
    FILE *file = fopen(scratch_text, "wb");
    assert_non_null(file);
    fwrite(data, 1, n, file);
    fclose(file);
}

/* The demo's card: torch in float32 over the whole text. */
static void test_perplexity_of_the_demo(void **state) {
    (void)state;
    nib_eval eval;
    nib_error error;
    const nib_eval_params params = {.exact = true, .n_chunks = UNIT_SANITIZED ? 2 : 0};
    if (nib_eval_run(demo, NULL, 0, &params, pool, NULL, &eval, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(eval.n_tokens, 29189);
    if (!UNIT_SANITIZED) {
        assert_int_equal(eval.n_chunks, 57);
        assert_int_equal(eval.n_scored, 14535);
        assert_near(eval.reference.ppl, 1.543697, 1e-6);
        assert_near(eval.reference.ppl_err, 0.01321, 5e-6);
    }
    assert_near(eval.reference.nll, log(eval.reference.ppl), 1e-12);
    assert_true(isnan(eval.noise_floor_kld));
    assert_string_equal(eval.reference.format, "bf16");
    assert_int_equal(eval.reference.bytes, 11683104);
    assert_near(eval.reference.bpw, 16.01, 0.005);
    assert_int_equal(strlen(eval.text_sha256), 64);
    nib_eval_fini(&eval);
}

/* llama-perplexity's report on its own files of the same formats, same text and chunks. Its products are rounded in other
 * places, so figures agree only to within what that does. */
static void test_against_llama_perplexity(void **state) {
    (void)state;
    nib_eval eval;
    nib_error error;
    const nib_model *models[2] = {q4, q2};
    const nib_eval_params params = {.n_ctx = 128, .n_chunks = 4, .weights_only = true};
    if (nib_eval_run(demo, models, 2, &params, pool, NULL, &eval, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(eval.n_scored, 4 * 63);
    assert_near(eval.reference.ppl, 1.486136, 2e-4);
    assert_near(eval.models[0].ppl, 1.481282, 5e-3);
    assert_near(eval.models[1].ppl, 1.577570, 2e-2);
    assert_near(eval.models[0].kld.mean, 0.003920, 8e-4);
    assert_near(eval.models[1].kld.mean, 0.059940, 8e-3);
    assert_near(eval.models[0].same_top, 0.96825, 0.013);
    assert_near(eval.models[1].same_top, 0.92857, 0.017);
    assert_near(eval.models[0].ln_ppl_ratio, -0.003272, 3e-3);
    assert_near(eval.models[1].dp_rms, 0.12481, 0.02);
    assert_near(eval.models[1].correlation, 0.9695, 0.01);
    assert_string_equal(eval.models[0].format, "q4_0");
    /* The weights alone lose most of it; the reference's own rounding is far below. */
    assert_near(eval.models[0].weights_only_kld, eval.models[0].kld.mean, 1e-3);
    assert_true(eval.models[0].weights_only_kld != eval.models[0].kld.mean);
    assert_true(eval.noise_floor_kld >= 0 && eval.noise_floor_kld < 1e-3);
    assert_true(eval.noise_floor_same_top > 0.98);
    double sum = 0;
    for (uint64_t i = 0; i < eval.n_scored; i++) sum += (double)eval.models[1].kld_tokens[i];
    assert_near(sum / (double)eval.n_scored, eval.models[1].kld.mean, 1e-12);
    nib_eval_fini(&eval);
}

static void test_a_model_against_itself(void **state) {
    (void)state;
    nib_eval eval;
    nib_error error;
    const nib_model *models[1] = {demo};
    const nib_eval_params params = {.n_ctx = 64, .n_chunks = 2, .exact = true};
    assert_int_equal(nib_eval_run(demo, models, 1, &params, pool, NULL, &eval, &error), NIB_OK);
    assert_near(eval.models[0].kld.max, 0, 1e-12);
    assert_near(eval.models[0].same_top, 1, 0);
    assert_near(eval.models[0].ln_ppl_ratio, 0, 0);
    assert_near(eval.models[0].dp_rms, 0, 0);
    assert_near(eval.models[0].weights_only_kld, 0, 1e-12);
    nib_eval_fini(&eval);
}

static void test_threads_do_not_show(void **state) {
    (void)state;
    nib_eval one, three;
    nib_error error;
    nib_pool *pool_of_3 = NULL;
    const nib_model *models[1] = {q4};
    const nib_eval_params params = {.n_ctx = 64, .n_chunks = 2};
    assert_int_equal(nib_pool_new(3, &pool_of_3, &error), NIB_OK);
    assert_int_equal(nib_eval_run(demo, models, 1, &params, NULL, NULL, &one, &error), NIB_OK);
    assert_int_equal(nib_eval_run(demo, models, 1, &params, pool_of_3, NULL, &three, &error), NIB_OK);
    assert_memory_equal(one.models[0].kld_tokens, three.models[0].kld_tokens, one.n_scored * sizeof(float));
    assert_true(one.reference.nll == three.reference.nll);
    assert_true(one.noise_floor_kld == three.noise_floor_kld);
    assert_true(one.models[0].dp_rms == three.models[0].dp_rms);
    nib_eval_fini(&one);
    nib_eval_fini(&three);
    nib_pool_free(pool_of_3);
}

static nib_status run_on(const char *path, uint32_t n_ctx, nib_error *error) {
    nib_eval eval;
    const nib_eval_params params = {.text_path = path, .n_ctx = n_ctx};
    const nib_status status = nib_eval_run(demo, NULL, 0, &params, pool, NULL, &eval, error);
    nib_eval_fini(&eval);
    return status;
}

static void test_refusals(void **state) {
    (void)state;
    nib_error error;
    static const char words[] = "Once upon a time there was a small mouse named Dot.\n";
    write_text(words, sizeof words - 1);
    assert_int_equal(run_on(scratch_text, 512, &error), NIB_ERR_CORRUPT);
    assert_string_equal(error.file, scratch_text);
    assert_non_null(strstr(error.message, "1024"));
    assert_true(error.hint[0] != '\0');
    write_text("", 0);
    assert_int_equal(run_on(scratch_text, 512, &error), NIB_ERR_CORRUPT);
    assert_non_null(strstr(error.message, "empty"));
    write_text("Once\0upon", 9);
    assert_int_equal(run_on(scratch_text, 8, &error), NIB_ERR_CORRUPT);
    assert_int_equal(error.offset, 4);
    write_text("\n", 1);
    assert_int_equal(run_on(scratch_text, 8, &error), NIB_ERR_CORRUPT);
    assert_int_equal(run_on("no/such/file.txt", 512, &error), NIB_ERR_IO);
    assert_int_equal(run_on(NULL, 3, &error), NIB_ERR_USAGE);
    unlink(scratch_text);
}

/* Exactly two chunks are enough, and the final newline is not counted. */
static void test_shortest_text(void **state) {
    (void)state;
    char text[64];
    nib_eval eval;
    nib_error error;
    nib_ids ids = {0};
    /* single digits are single tokens */
    snprintf(text, sizeof text, "1234567812345678\n");
    assert_int_equal(nib_tokenize(nib_model_tokenizer(demo), text, 16, true, false, &ids, &error), NIB_OK);
    assert_int_equal(ids.n, 16);
    nib_ids_fini(&ids);
    write_text(text, 17);
    const nib_eval_params params = {.text_path = scratch_text, .n_ctx = 8};
    assert_int_equal(nib_eval_run(demo, NULL, 0, &params, pool, NULL, &eval, &error), NIB_OK);
    assert_int_equal(eval.n_tokens, 16);
    assert_int_equal(eval.n_scored, 2 * 3); /* 8 - 1 - 4 per chunk */
    nib_eval_fini(&eval);
    write_text(text + 1, 16);
    assert_int_equal(nib_eval_run(demo, NULL, 0, &params, pool, NULL, &eval, &error), NIB_ERR_CORRUPT);
    unlink(scratch_text);
}

static void test_other_vocabulary(void **state) {
    (void)state;
    const char *shared = getenv("NIBBLE_SHARED");
    char path[1024];
    nib_model *other = NULL;
    nib_eval eval;
    nib_error error;
    snprintf(path, sizeof path, "%s/fixtures/gguf/qwen3.gguf", shared != NULL ? shared : "");
    if (shared == NULL || access(path, R_OK) != 0) {
        print_message("skipped: shared material (fixtures/gguf) is not here\n");
        skip();
    }
    if (nib_model_open(path, NULL, &other, &error) != NIB_OK) fail_msg("%s", error.message);
    const nib_model *models[1] = {other};
    const nib_eval_params params = {.n_ctx = 64, .n_chunks = 1};
    assert_int_equal(nib_eval_run(demo, models, 1, &params, pool, NULL, &eval, &error), NIB_ERR_USAGE);
    assert_non_null(strstr(error.message, "320 tokens against 4096"));
    assert_true(eval.models == NULL && eval.n_models == 0);
    nib_model_close(other);
}

static bool stop_later(void *user, const nib_progress *progress) {
    (void)user;
    return progress->done == 0;
}

static void test_interruption(void **state) {
    (void)state;
    nib_eval eval;
    nib_error error;
    const nib_model *models[1] = {q4};
    const nib_watch watch = {.progress = stop_later};
    const nib_eval_params params = {.n_ctx = 512};
    assert_int_equal(nib_eval_run(demo, models, 1, &params, pool, &watch, &eval, &error), NIB_ERR_INTERRUPTED);
    assert_null(eval.models);
}

static json_t *parse_document(nib_json *json) {
    const char *text;
    size_t n_bytes;
    nib_error error;
    json_error_t problem;
    assert_int_equal(nib_json_text(json, &text, &n_bytes, &error), NIB_OK);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &problem);
    if (root == NULL) fail_msg("%s in %s", problem.text, text);
    nib_json_free(json);
    return root;
}

static void assert_numbers(const json_t *object, const char *const *names) {
    for (; *names != NULL; names++)
        if (!json_is_number(json_object_get(object, *names))) fail_msg("'%s' is not a number", *names);
}

static void test_json(void **state) {
    (void)state;
    nib_questions questions;
    nib_eval eval;
    nib_error error;
    const nib_model *models[2] = {q2, q4};
    assert_int_equal(nib_questions_read("demo", &questions, &error), NIB_OK);
    const nib_eval_params params = {.n_ctx = 64, .n_chunks = 2, .questions = &questions};
    assert_int_equal(nib_eval_run(demo, models, 2, &params, pool, NULL, &eval, &error), NIB_OK);
    nib_json *json = nib_json_new();
    nib_json_begin_object(json, NULL);
    nib_eval_write_json(&eval, json);
    nib_json_end_object(json);
    json_t *root = parse_document(json);
    assert_int_equal(json_integer_value(json_object_get(root, "ctx")), 64);
    assert_int_equal(json_integer_value(json_object_get(root, "n_scored")), 62);
    const json_t *model = json_array_get(json_object_get(root, "models"), 0);
    assert_numbers(json_object_get(root, "noise_floor"), (const char *const[]){"kld_mean", "same_top", NULL});
    assert_numbers(json_object_get(root, "reference"), (const char *const[]){"bytes", "bpw", "ppl", "ppl_err", NULL});
    assert_numbers(model, (const char *const[]){"nll", "ppl", "ln_ppl_ratio", "ln_ppl_ratio_err", "correlation", NULL});
    assert_numbers(json_object_get(model, "kld"),
                   (const char *const[]){"mean", "err", "median", "p90", "p95", "p99", "p99_9", "max", "p10", "p05",
                                         "p01", "min", NULL});
    assert_numbers(json_object_get(model, "dp"),
                   (const char *const[]){"mean", "mean_err", "rms", "rms_err", "max", "median", "min", NULL});
    assert_true(json_is_null(json_object_get(json_object_get(model, "weights_only"), "kld_mean")));
    assert_true(json_is_string(json_object_get(json_object_get(model, "weights_only"), "note")));
    const json_t *choice = json_array_get(json_object_get(model, "choice"), 0);
    assert_int_equal(json_integer_value(json_object_get(choice, "n")), 300);
    /* Flips add up: right before - right after. The q2_k mix answers worse (89.3% by llama.cpp). */
    const long lost = json_integer_value(json_object_get(choice, "flips_to_wrong")),
               won = json_integer_value(json_object_get(choice, "flips_to_right"));
    assert_near(json_number_value(json_object_get(choice, "accuracy")), 0.893, 0.03);
    assert_near(json_number_value(json_object_get(choice, "accuracy")) * 300, 282.0 - lost + won, 1e-6);
    assert_near(json_number_value(json_object_get(choice, "mcnemar_p")), eval.models[0].mcnemar_p, 0);
    assert_near(eval.reference.accuracy, 0.94, 1e-12);
    json_decref(root);
    nib_eval_fini(&eval);
    nib_questions_fini(&questions);
}

static void test_speed(void **state) {
    (void)state;
    nib_bench bench;
    nib_error error;
    const nib_model *models[2] = {demo, q4};
    const nib_bench_params params = {.n_prompt = 32, .n_generate = 4, .runs = 2, .depth = 16}, none = {.runs = 1};
    if (nib_bench_run(models, 2, &params, pool, NULL, &bench, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(bench.n, 4);
    assert_true(bench.ceilings.read_bytes_per_s > 1e8);
    assert_true(bench.ceilings.int8_macs_per_s > 1e8 && bench.ceilings.bf16_macs_per_s > 1e8 &&
                bench.ceilings.f32_macs_per_s > 1e8);
    assert_string_equal(bench.results[0].test, "pp32 @ d16");
    assert_string_equal(bench.results[3].test, "tg4 @ d16");
    assert_string_equal(bench.results[3].format, "q4_0");
    assert_int_equal(bench.results[3].threads, 2);
    for (uint32_t i = 0; i < bench.n; i++) {
        const nib_bench_result *r = &bench.results[i];
        assert_int_equal(r->n_runs, 2);
        assert_near(r->tokens_per_s, (r->runs[0] + r->runs[1]) / 2, 1e-6 * r->tokens_per_s);
        assert_near(r->stddev, fabs(r->runs[0] - r->runs[1]) / sqrt(2), 1e-6 * r->tokens_per_s);
        assert_true(r->runs[0] > 0 && r->of_memory > 0 && r->of_compute > 0);
        assert_true(r->of_ceiling == fmax(r->of_memory, r->of_compute));
    }
    /* Generation reads the whole of a tied model: its share of the ceiling follows from its size. */
    const double read = bench.results[1].of_memory * bench.ceilings.read_bytes_per_s / bench.results[1].tokens_per_s;
    assert_true(read > 11e6 && read < 12.5e6);
    /* A prompt multiplies by the layers' weights (1 M of 5.8 M are the embedding, and most of the last layer sees one token
     * only), almost all of them as 8-bit integers. Every kind counts at its own peak; attention sees 32 positions. */
    const nib_model_facts *facts = nib_model_facts_of(q4);
    const nib_cpu_ceilings *c = &bench.ceilings;
    nib_token_cost each, wanted;
    assert_int_equal(nib_model_token_cost(q4, &each, &wanted, &error), NIB_OK);
    const double attention = 2.0 * facts->n_layer * facts->n_head * facts->head_dim * 32;
    const double int8 = (double)each.int8_macs + (double)wanted.int8_macs / 32;
    const double bf16 = (double)each.bf16_macs + (double)wanted.bf16_macs / 32;
    const double f32 = (double)each.f32_macs + (double)wanted.f32_macs / 32 + attention;
    const double at_peaks = int8 / c->int8_macs_per_s + bf16 / c->bf16_macs_per_s + f32 / c->f32_macs_per_s;
    assert_true(int8 > 4e6 && int8 < 4.5e6 && bf16 + f32 < 0.05 * int8);
    assert_string_equal(bench.results[2].peak, int8 / c->int8_macs_per_s >= f32 / c->f32_macs_per_s ? "int8" : "f32");
    assert_near(bench.results[2].of_compute / bench.results[2].tokens_per_s, at_peaks, 1e-9 * at_peaks);
    nib_json *json = nib_json_new();
    nib_json_begin_object(json, NULL);
    nib_bench_write_json(&bench, json);
    nib_json_end_object(json);
    json_t *root = parse_document(json);
    assert_int_equal(json_array_size(json_object_get(root, "results")), 4);
    json_decref(root);
    nib_bench_fini(&bench);
    assert_int_equal(nib_bench_run(models, 2, &none, pool, NULL, &bench, &error), NIB_ERR_USAGE);
    const nib_bench_params together = {.n_generate = 3, .runs = 1, .depth = 8, .batch = 4};
    assert_int_equal(nib_bench_run(models, 1, &together, pool, NULL, &bench, &error), NIB_OK);
    assert_string_equal(bench.results[0].test, "tg3 x4 @ d8");
    assert_int_equal(bench.results[0].batch, 4);
    nib_bench_fini(&bench);
    const nib_watch watch = {.progress = stop_later};
    const nib_bench_params longer = {.n_prompt = 512, .n_generate = 64};
    assert_int_equal(nib_bench_run(models, 2, &longer, pool, &watch, &bench, &error), NIB_ERR_INTERRUPTED);
    assert_null(bench.results);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_perplexity_of_the_demo),
        cmocka_unit_test(test_against_llama_perplexity),
        cmocka_unit_test(test_a_model_against_itself),
        cmocka_unit_test(test_threads_do_not_show),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_shortest_text),
        cmocka_unit_test(test_other_vocabulary),
        cmocka_unit_test(test_interruption),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
