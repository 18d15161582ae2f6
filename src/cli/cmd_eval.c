/* nibble eval: perplexity of a reference, and how far other models are from it, in lock-step over one text. */
#include "cli.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void add_pm(nib_table *table, double value, double err) {
    nib_table_add(table, "%s", nib_show_pm(value, err).s);
}

static void add_percent(nib_table *table, double fraction, double err) {
    if (!isfinite(fraction))
        nib_table_add(table, "-");
    else if (!isfinite(err) || err <= 0)
        nib_table_add(table, "%.2f%%", 100 * fraction);
    else
        nib_table_add(table, "%.2f %s %.2f%%", 100 * fraction, nib_console_plus_minus(), 100 * err);
}

static void add_model(nib_table *table, const nib_eval *eval, const nib_eval_model *m, bool is_reference) {
    nib_table_add(table, "%s", nib_cli_model_label(m->model).s);
    nib_table_add(table, "%s", nib_show_bytes(m->bytes).s);
    nib_table_add(table, "%.2f", m->bpw);
    add_pm(table, m->ppl, m->ppl_err);
    if (is_reference) {
        nib_table_add(table, "reference");
        nib_table_add(table, " ");
        nib_table_add(table, " ");
    } else {
        add_pm(table, m->kld.mean, m->kld.err);
        nib_table_add(table, "%.3g", m->kld.p99);
        add_percent(table, m->same_top, m->same_top_err);
    }
    if (eval->n_questions) {
        if (m->has_choice)
            add_percent(table, m->accuracy, m->accuracy_err);
        else
            nib_table_add(table, "-");
    }
}

static void print_details(const nib_eval *eval) {
    for (uint32_t i = 0; i < eval->n_models; i++) {
        const nib_eval_model *m = &eval->models[i];
        printf("\n%s%s%s\n", nib_console_bold(), nib_cli_model_label(m->model).s, nib_console_plain());
        printf("  ln(PPL/PPL ref)  %s   correlation %.4f\n", nib_show_pm(m->ln_ppl_ratio, m->ln_ppl_ratio_err).s,
               m->correlation);
        printf("  KL divergence    median %.3g  p90 %.3g  p95 %.3g  p99 %.3g  p99.9 %.3g  max %.3g\n", m->kld.median,
               m->kld.p90, m->kld.p95, m->kld.p99, m->kld.p99_9, m->kld.max);
        printf("  change of p      mean %s  rms %s  p01 %.3g  p99 %.3g\n", nib_show_pm(m->dp.mean, m->dp.err).s,
               nib_show_pm(m->dp_rms, m->dp_rms_err).s, m->dp.p01, m->dp.p99);
        if (isfinite(m->weights_only_kld))
            printf("  weights alone    KL divergence %.4g, same top %.2f%%\n", m->weights_only_kld,
                   100 * m->weights_only_same_top);
        if (m->has_choice)
            printf("  answers changed  %u right to wrong, %u wrong to right, %u wrong to another; McNemar p = %.3g\n",
                   m->flips_to_wrong, m->flips_to_right, m->flips_wrong_to_wrong, m->mcnemar_p);
    }
}

static void print_table(const nib_eval *eval, unsigned verbose) {
    nib_table table;
    bool choice = eval->n_questions > 0;
    printf("text  %s: %llu tokens, %u chunks of %u, %llu scored%s\n", eval->text_file[0] ? eval->text_file : "built-in",
           (unsigned long long)eval->n_tokens, eval->n_chunks, eval->n_ctx, (unsigned long long)eval->n_scored,
           eval->exact              ? ", exact path"
           : eval->kv != NIB_KV_F16 ? ", keys and values in q8_0"
                                    : "");
    if (choice) printf("task  %s: %u questions\n", eval->task, eval->n_questions);
    fputc('\n', stdout);
    nib_table_init(&table, choice ? "lrrrrrrr" : "lrrrrrr",
                   choice ? "model|size|bpw|perplexity|KL divergence (nats)|p99|same top|accuracy"
                          : "model|size|bpw|perplexity|KL divergence (nats)|p99|same top");
    add_model(&table, eval, &eval->reference, true);
    for (uint32_t i = 0; i < eval->n_models; i++) add_model(&table, eval, &eval->models[i], false);
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    if (isfinite(eval->noise_floor_kld))
        printf("\nnoise floor: the reference against its own exact path: KL divergence %.3g, same top %.2f%%\n",
               eval->noise_floor_kld, 100 * eval->noise_floor_same_top);
    if (verbose) print_details(eval);
    if (eval->n_models) printf("%s%s\n", verbose ? "\n" : "", verbose ? "" : "-v: percentiles, changed answers");
}

static nib_status run(nib_cli *cli, nib_error *error) {
    unsigned n = cli->args.n_words;
    nib_questions questions = {0};
    nib_eval eval = {0};
    nib_json *json = NULL;
    nib_model **models = calloc(n, sizeof *models);
    if (!models) return nib_cli_no_memory(error);
    const char *choice = nib_cli_text(cli, "choice");
    nib_eval_params params = {
        .text_path = nib_cli_text(cli, "text"),
        .n_ctx = (uint32_t)nib_cli_uint(cli, "ctx"),
        .n_chunks = (uint32_t)nib_cli_uint(cli, "chunks"),
        .exact = nib_cli_switch(cli, "exact"),
        .weights_only = nib_cli_switch(cli, "weights-only"),
        .kv = nib_cli_kv(cli),
    };
    if (params.text_path && strcmp(params.text_path, "demo") == 0) params.text_path = NULL;
    nib_status status = choice ? nib_questions_read(choice, &questions, error) : NIB_OK;
    if (choice) params.questions = &questions;
    if (!status) status = nib_cli_open_models(cli, 0, models, n, error);
    if (!status && !params.text_path) nib_console_note("no --text: measuring on the demo model's own text");
    if (!status)
        status = nib_eval_run(models[0], (const nib_model *const *)models + 1, n - 1, &params, cli->pool, &cli->watch,
                              &eval, error);
    nib_console_erase_progress();
    if (!status && cli->wants_json) {
        json = nib_cli_json_begin(cli, "eval", error);
        if (!json)
            status = NIB_ERR_MEMORY;
        else {
            nib_eval_write_json(&eval, json);
            status = nib_cli_json_end(cli, json, error);
        }
    }
    if (!status && !cli->json) print_table(&eval, cli->verbose);
    nib_eval_fini(&eval);
    for (unsigned i = 0; i < n; i++) nib_model_close(models[i]);
    nib_questions_fini(&questions);
    free(models);
    return status;
}

static const nib_option options[] = {
    {.name = "text",
     .letter = 'f',
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "text to measure on (default: the built-in one)"},
    {.name = "choice",
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "questions with choices, JSONL; demo = the built-in ones",
     .more = "One object a line: question, choices, answer (index); optional id, context, category, prompt."},
    {.name = "ctx",
     .letter = 'c',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "512",
     .min = 4,
     .max = 1048576,
     .about = "tokens per chunk; the second half of each is scored"},
    {.name = "chunks",
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "0",
     .min = 0,
     .max = 4e9,
     .about = "chunks to measure; 0 = all"},
    {.name = "exact",
     .kind = NIB_OPTION_SWITCH,
     .about = "everything in f32 on the decoded weights, the other models too"},
    {.name = "weights-only",
     .kind = NIB_OPTION_SWITCH,
     .about = "also measure the loss of the weights alone (exact path)"},
    NIB_KV_OPTION,
    {.name = NULL},
};

const nib_command nib_command_eval = {
    .name = "eval",
    .group = "measure",
    .usage = "REFERENCE [MODEL...] [--text FILE] [--choice FILE]",
    .about = "perplexity, KL divergence, accuracy",
    .more =
        "The reference runs on the exact path, the other models as they are used; all advance over the text together,\n"
        "so nothing is stored. Perplexity is llama-perplexity's: the second half of every chunk is scored.",
    .examples = "nibble eval ref.gguf q4.gguf --text t.txt\nnibble eval demo small.gguf --choice demo\n"
                "nibble eval model.gguf --text wiki.test.raw --ctx 512\nnibble eval a.gguf b.gguf c.gguf --text t.txt "
                "-o result.json",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 1,
    .max_words = 64,
    .run = run,
};
