/* nibble bench: tokens per second of reading a prompt and of generating, beside what this machine's memory allows. */
#include "cli.h"
#include <math.h>
#include <stdlib.h>

static void print_table(const nib_bench *bench) {
    nib_table table;
    nib_table_init(&table, "lrrlrrr", "model|size|bpw|test|threads|tokens/s|of bandwidth");
    for (uint32_t i = 0; i < bench->n; i++) {
        const nib_bench_result *r = &bench->results[i];
        nib_table_add(&table, "%s", nib_cli_model_label(r->model).s);
        nib_table_add(&table, "%s", nib_show_bytes(r->bytes).s);
        nib_table_add(&table, "%.2f", r->bpw);
        nib_table_add(&table, "%s", r->test);
        nib_table_add(&table, "%u", r->threads);
        nib_table_add(&table, "%s", nib_show_pm(r->tokens_per_s, r->stddev).s);
        if (isfinite(r->of_ceiling) && r->of_ceiling > 0)
            nib_table_add(&table, "%.0f%%", 100 * r->of_ceiling);
        else
            nib_table_add(&table, "-");
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    if (bench->n > 0 && bench->results[0].kv != NIB_KV_F16)
        printf("\nkeys and values in %s\n", nib_kv_name(bench->results[0].kv));
    if (bench->read_bytes_per_s > 0)
        printf("\nmemory reads %.1f GB/s in this run; the share says how much of it generation used\n",
               bench->read_bytes_per_s / 1e9);
    for (uint32_t i = 0; i < bench->n; i++) {
        const nib_bench_result *r = &bench->results[i];
        if (r->tokens_per_s > 0 && r->stddev > 0.1 * r->tokens_per_s)
            nib_console_warn("%s %s: the runs differ by more than a tenth; is the machine busy with something else?",
                             nib_cli_model_label(r->model).s, r->test);
    }
}

static nib_status run(nib_cli *cli, nib_error *error) {
    unsigned n = cli->args.n_words;
    nib_bench bench = {0};
    nib_model **models = calloc(n, sizeof *models);
    if (!models) return nib_cli_no_memory(error);
    nib_bench_params params = {
        .n_prompt = (uint32_t)nib_cli_uint(cli, "prompt-tokens"),
        .n_generate = (uint32_t)nib_cli_uint(cli, "tokens"),
        .runs = (uint32_t)nib_cli_uint(cli, "runs"),
        .depth = (uint32_t)nib_cli_uint(cli, "depth"),
        .kv = nib_cli_kv(cli),
    };
    nib_status status = NIB_OK;
    if (!params.n_prompt && !params.n_generate)
        status = nib_cli_fail(error, NIB_ERR_USAGE, "leave -p or -n above 0", "there is nothing to measure");
    if (!status) status = nib_cli_open_models(cli, 0, models, n, error);
    if (!status)
        status = nib_bench_run((const nib_model *const *)models, n, &params, cli->pool, &cli->watch, &bench, error);
    nib_console_erase_progress();
    if (!status && cli->wants_json) {
        nib_json *json = nib_cli_json_begin(cli, "bench", error);
        if (!json)
            status = NIB_ERR_MEMORY;
        else {
            nib_bench_write_json(&bench, json);
            status = nib_cli_json_end(cli, json, error);
        }
    }
    if (!status && !cli->json) print_table(&bench);
    nib_bench_fini(&bench);
    for (unsigned i = 0; i < n; i++) nib_model_close(models[i]);
    free(models);
    return status;
}

static const nib_option options[] = {
    {.name = "prompt-tokens",
     .letter = 'p',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "512",
     .min = 0,
     .max = 1048576,
     .about = "tokens of the prompt test; 0 = none"},
    {.name = "tokens",
     .letter = 'n',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "128",
     .min = 0,
     .max = 1048576,
     .about = "tokens of the generation test; 0 = none"},
    {.name = "runs",
     .letter = 'r',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "5",
     .min = 1,
     .max = 10000,
     .about = "times each test is run"},
    {.name = "depth",
     .letter = 'd',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "0",
     .min = 0,
     .max = 1048576,
     .about = "tokens already in the cache when timing starts"},
    NIB_KV_OPTION,
    {.name = NULL},
};

const nib_command nib_command_bench = {
    .name = "bench",
    .group = "measure",
    .usage = "MODEL... [-p N] [-n N] [-r N]",
    .about = "speed of prompts and generation",
    .more = "Mean and deviation over the runs. Rounds alternate between the models, so a slow minute hits all of them.",
    .examples =
        "nibble bench model.gguf\nnibble bench a.gguf b.gguf -p 512 -n 128 -r 10\nnibble bench demo -t 1 --depth 256",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 1,
    .max_words = 64,
    .run = run,
};
