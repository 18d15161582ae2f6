/* nibble bench: tokens per second of reading a prompt and of generating, beside what this machine's memory and vector units
 * allow, and in words what each result is bound by. Sweeps over threads, depths, batches and formats. */
#include "cli.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_VALUES = 32, MOST_FORMATS = 64 };

/* A comma-separated list of an option. */
typedef struct number_list {
    uint32_t values[MOST_VALUES];
    unsigned n;
} number_list;

typedef struct bench_work {
    nib_cli *cli;
    nib_model **models; /* (n_slots), n_models of them open */
    unsigned n_slots, n_models;
    number_list threads, depths, batches;
    nib_bench all; /* results of all settings, one after the other */
} bench_work;

static nib_status read_list(const nib_cli *cli, const char *name, double min, double max, number_list *out,
                            nib_error *error) {
    for (const char *at = nib_cli_text(cli, name); at;) {
        char *end;
        const double value = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(value >= min && value <= max) || value != floor(value))
            return nib_cli_fail(error, NIB_ERR_USAGE, "whole numbers separated by commas, such as 1,2,4",
                                "--%s: \"%s\" will not do (%.0f to %.0f)", name, at, min, max);
        if (out->n == MOST_VALUES)
            return nib_cli_fail(error, NIB_ERR_USAGE, NULL, "--%s: more than %d values", name, MOST_VALUES);
        out->values[out->n++] = (uint32_t)value;
        at = *end ? end + 1 : NULL;
    }
    return NIB_OK;
}

/* ---- Models ---------------------------------------------------------------------------------------------------------- */

/* The model in one more format, from a file that has no name any more once it is open. */
static nib_status open_quantized(bench_work *work, const nib_recipe *recipe, const char *dir, nib_model **out,
                                 nib_error *error) {
    const nib_quantize_params params = {.recipe = recipe, .no_sync = true, .no_provenance = true};
    const nib_gguf *gguf = nib_model_gguf(work->models[0]);
    nib_quantized quantized = {0};
    char path[4400];
    snprintf(path, sizeof path, "%s/%s-%s.gguf", dir, nib_cli_model_label(nib_gguf_path(gguf)).s,
             nib_recipe_name(recipe));
    nib_status status = nib_quantize(gguf, path, &params, work->cli->pool, &work->cli->watch, &quantized, error);
    nib_quantized_fini(&quantized);
    if (!status) status = nib_model_open(path, &work->cli->watch, out, error);
    unlink(path);
    return status;
}

static nib_status open_formats(bench_work *work, const nib_recipe *const *recipes, unsigned n, nib_error *error) {
    const char *temporary = getenv("TMPDIR");
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/nibble-bench-XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(dir))
        return nib_cli_fail(error, NIB_ERR_IO, "set TMPDIR to a folder with room for the quantized files",
                            "cannot make a temporary folder %s", dir);
    nib_status status = NIB_OK;
    for (unsigned i = 0; i < n && !status; i++) {
        status = open_quantized(work, recipes[i], dir, &work->models[work->n_models], error);
        if (!status) work->n_models++;
    }
    rmdir(dir);
    return status;
}

/* ---- Measuring ------------------------------------------------------------------------------------------------------- */

static nib_status append(nib_bench *all, nib_bench *part, nib_error *error) {
    nib_bench_result *results = realloc(all->results, (all->n + part->n) * sizeof *results);
    if (!results) return nib_cli_no_memory(error);
    memcpy(results + all->n, part->results, part->n * sizeof *results);
    all->results = results;
    all->n += part->n;
    part->n = 0; /* their runs have moved too */
    all->ceilings = part->ceilings;
    if (part->busy_others > all->busy_others) all->busy_others = part->busy_others;
    return NIB_OK;
}

/* Every depth and batch with the threads at hand; prompts once per depth. */
static nib_status run_with_threads(bench_work *work, nib_error *error) {
    const nib_cli *cli = work->cli;
    nib_status status = NIB_OK;
    for (unsigned d = 0; d < work->depths.n && !status; d++)
        for (unsigned b = 0; b < work->batches.n && !status; b++) {
            const nib_bench_params params = {
                .n_prompt = b == 0 ? (uint32_t)nib_cli_uint(cli, "prompt-tokens") : 0,
                .n_generate = (uint32_t)nib_cli_uint(cli, "tokens"),
                .runs = (uint32_t)nib_cli_uint(cli, "runs"),
                .depth = work->depths.values[d],
                .batch = work->batches.values[b],
                .kv = nib_cli_kv(cli),
            };
            nib_bench part = {0};
            if (!params.n_prompt && !params.n_generate) continue;
            status = nib_bench_run((const nib_model *const *)work->models, work->n_models, &params, cli->pool,
                                   &cli->watch, &part, error);
            if (!status) status = append(&work->all, &part, error);
            nib_bench_fini(&part);
        }
    return status;
}

static nib_status run_all(bench_work *work, nib_error *error) {
    nib_status status = NIB_OK;
    if (!work->threads.n) return run_with_threads(work, error);
    for (unsigned t = 0; t < work->threads.n && !status; t++) {
        nib_pool_free(work->cli->pool);
        work->cli->pool = NULL;
        status = nib_cli_make_pool(work->cli, work->threads.values[t], error);
        if (!status) status = run_with_threads(work, error);
    }
    return status;
}

/* ---- Showing --------------------------------------------------------------------------------------------------------- */

static nib_short_text show_bound(const nib_bench_result *r, const nib_cpu_ceilings *ceilings) {
    nib_short_text out = {"-"};
    if (!isfinite(r->of_ceiling)) return out;
    if (r->of_memory > r->of_compute)
        snprintf(out.s, sizeof out.s, "memory: %.0f%% of %.0f GB/s", 100 * r->of_memory,
                 ceilings->read_bytes_per_s / 1e9);
    else
        snprintf(out.s, sizeof out.s, "compute: %.0f%% of the %s peak", 100 * r->of_compute, r->peak);
    return out;
}

static void print_table(const nib_bench *bench, nib_table_style style) {
    nib_table table;
    nib_table_init(&table, "lrrlrrl", "model|size|bpw|test|threads|tokens/s|bound by");
    for (uint32_t i = 0; i < bench->n; i++) {
        const nib_bench_result *r = &bench->results[i];
        nib_table_add(&table, "%s", nib_cli_model_label(r->model).s);
        nib_table_add(&table, "%s", nib_show_bytes(r->bytes).s);
        nib_table_add(&table, "%.2f", r->bpw);
        nib_table_add(&table, "%s", r->test);
        nib_table_add(&table, "%u", r->threads);
        nib_table_add(&table, "%s", nib_show_pm(r->tokens_per_s, r->stddev).s);
        nib_table_add(&table, "%s", show_bound(r, &bench->ceilings).s);
    }
    nib_table_print_as(&table, style, stdout);
    nib_table_fini(&table);
}

/* A cell that is empty where the share is not known. */
static void add_share(nib_table *table, double share) {
    if (isfinite(share))
        nib_table_add(table, "%.4g", share);
    else
        nib_table_add(table, "%s", "");
}

/* For programs: plain numbers in base units. */
static void print_csv(const nib_bench *bench) {
    nib_table table;
    nib_table_init(&table, "llllllllllll",
                   "model|format|bytes|bpw|test|depth|batch|threads|tokens_per_s|stddev|of_memory|of_compute");
    for (uint32_t i = 0; i < bench->n; i++) {
        const nib_bench_result *r = &bench->results[i];
        nib_table_add(&table, "%s", r->model);
        nib_table_add(&table, "%s", r->format);
        nib_table_add(&table, "%llu", (unsigned long long)r->bytes);
        nib_table_add(&table, "%.6g", r->bpw);
        nib_table_add(&table, "%s", r->test);
        nib_table_add(&table, "%u", r->depth);
        nib_table_add(&table, "%u", r->batch);
        nib_table_add(&table, "%u", r->threads);
        nib_table_add(&table, "%.6g", r->tokens_per_s);
        nib_table_add(&table, "%.6g", r->stddev);
        add_share(&table, r->of_memory);
        add_share(&table, r->of_compute);
    }
    nib_table_print_as(&table, NIB_TABLE_CSV, stdout);
    nib_table_fini(&table);
}

/* The runs differ by more than a tenth. */
static bool differs(const nib_bench_result *r) {
    return r->tokens_per_s > 0 && r->stddev > 0.1 * r->tokens_per_s;
}

/* Two models generating under the same conditions, the first with fewer bytes. */
typedef struct contest {
    const nib_bench_result *small, *large;
} contest;

/* The smaller model that is slower by the widest margin; else the smallest and the largest. */
static contest find_contest(const nib_bench *bench) {
    contest found = {NULL, NULL};
    double least = 0.97, widest = 1.02;
    bool inverted = false;
    for (uint32_t i = 0; i < bench->n; i++)
        for (uint32_t j = 0; j < bench->n; j++) {
            const nib_bench_result *s = &bench->results[i], *l = &bench->results[j];
            const double bytes = (double)l->bytes / (double)s->bytes, speed = s->tokens_per_s / l->tokens_per_s;
            if (s->test[0] != 't' || strcmp(s->test, l->test) || s->threads != l->threads || bytes < 1.02) continue;
            if (differs(s) || differs(l)) continue; /* nothing follows from that */
            if (speed < least) {
                least = speed;
                inverted = true;
                found = (contest){s, l};
            } else if (!inverted && bytes > widest) {
                widest = bytes;
                found = (contest){s, l};
            }
        }
    return found;
}

/* Why is fewer bits faster here, or not? */
static void print_answer(const nib_bench *bench) {
    const contest c = find_contest(bench);
    if (!c.small || !isfinite(c.small->of_ceiling) || !isfinite(c.large->of_ceiling)) return;
    const nib_short_text small = nib_cli_model_label(c.small->model), large = nib_cli_model_label(c.large->model);
    const double size = (double)c.small->bytes / (double)c.large->bytes;
    const double speed = c.small->tokens_per_s / c.large->tokens_per_s;
    printf("\n%s has %.2f times the bytes of %s and generates %.2f times as fast.\n", small.s, size, large.s, speed);
    if (c.small->of_memory > 0.6 && c.large->of_memory > 0.6)
        printf("Both wait for memory (%.0f%% and %.0f%% of its speed), so fewer bytes are faster.\n",
               100 * c.small->of_memory, 100 * c.large->of_memory);
    else if (c.small->of_compute > 0.5)
        printf("%s waits for its multiply-adds (%.0f%% of the %s peak), whose number does not shrink with the bits.\n",
               small.s, 100 * c.small->of_compute, c.small->peak);
    else
        printf(
            "%s waits neither for memory (%.0f%%; %s: %.0f%%) nor for multiply-adds (%.0f%%): taking codes apart and\n"
            "the steps between products cost as much with fewer bits.\n",
            small.s, 100 * c.small->of_memory, large.s, 100 * c.large->of_memory, 100 * c.small->of_compute);
}

static void print_all(const nib_cli *cli, const nib_bench *bench) {
    const nib_cpu_ceilings *c = &bench->ceilings;
    if (nib_cli_switch(cli, "csv")) {
        print_csv(bench);
    } else {
        print_table(bench, nib_cli_switch(cli, "md") ? NIB_TABLE_MARKDOWN : NIB_TABLE_PLAIN);
        if (c->read_bytes_per_s > 0)
            printf(
                "\nceilings of this run: memory %.1f GB/s; multiply-adds %.0f G/s int8, %.0f G/s bf16, %.0f G/s f32\n",
                c->read_bytes_per_s / 1e9, c->int8_macs_per_s / 1e9, c->bf16_macs_per_s / 1e9, c->f32_macs_per_s / 1e9);
        if (bench->n > 0 && bench->results[0].kv != NIB_KV_F16)
            printf("keys and values in %s\n", nib_kv_name(bench->results[0].kv));
        print_answer(bench);
    }
    if (bench->busy_others > 0.1)
        nib_console_warn("other programs kept %.1f cores busy meanwhile: figures may be too low", bench->busy_others);
    for (uint32_t i = 0; i < bench->n; i++) {
        const nib_bench_result *r = &bench->results[i];
        if (differs(r))
            nib_console_warn("%s %s: the runs differ by more than a tenth; is the machine busy with something else?",
                             nib_cli_model_label(r->model).s, r->test);
    }
}

/* ---- The command ----------------------------------------------------------------------------------------------------- */

static nib_status read_settings(bench_work *work, nib_error *error) {
    const nib_cli *cli = work->cli;
    nib_status status = read_list(cli, "threads", 1, 1024, &work->threads, error);
    if (!status) status = read_list(cli, "depth", 0, 1 << 20, &work->depths, error);
    if (!status) status = read_list(cli, "batch", 1, 512, &work->batches, error);
    if (!status && !nib_cli_uint(cli, "prompt-tokens") && !nib_cli_uint(cli, "tokens"))
        status = nib_cli_fail(error, NIB_ERR_USAGE, "leave -p or -n above 0", "there is nothing to measure");
    return status;
}

static nib_status open_all(bench_work *work, nib_error *error) {
    const nib_cli *cli = work->cli;
    const nib_recipe *recipes[MOST_FORMATS];
    unsigned n = 0;
    const char *to = nib_cli_text(cli, "to");
    if (to && cli->args.n_words > 1)
        return nib_cli_fail(error, NIB_ERR_USAGE, "give one MODEL, or quantized files and no --to",
                            "--to makes further formats of one model, not of %u", cli->args.n_words);
    nib_status status = to ? nib_cli_parse_recipes(to, recipes, MOST_FORMATS, &n, error) : NIB_OK;
    work->models = status ? NULL : calloc(cli->args.n_words + n, sizeof *work->models);
    if (!status && !work->models) status = nib_cli_no_memory(error);
    if (!status) work->n_slots = cli->args.n_words + n;
    if (!status) status = nib_cli_open_models(work->cli, 0, work->models, cli->args.n_words, error);
    if (!status) work->n_models = cli->args.n_words;
    return status || !n ? status : open_formats(work, recipes, n, error);
}

static nib_status write_json(bench_work *work, nib_error *error) {
    nib_json *json = nib_cli_json_begin(work->cli, "bench", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_bench_write_json(&work->all, json);
    return nib_cli_json_end(work->cli, json, error);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    bench_work work = {.cli = cli};
    nib_status status = read_settings(&work, error);
    if (!status) status = open_all(&work, error);
    if (!status) status = run_all(&work, error);
    nib_console_erase_progress();
    if (!status && cli->wants_json) status = write_json(&work, error);
    if (!status && !cli->json) print_all(cli, &work.all);
    nib_bench_fini(&work.all);
    for (unsigned i = 0; i < work.n_slots; i++) nib_model_close(work.models[i]);
    free(work.models);
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
     .kind = NIB_OPTION_TEXT,
     .value = "N[,N...]",
     .fallback = "0",
     .about = "tokens already in the cache when timing starts"},
    NIB_KV_OPTION,
    {.name = "batch",
     .letter = 'b',
     .kind = NIB_OPTION_TEXT,
     .value = "N[,N...]",
     .fallback = "1",
     .about = "sequences that generate together, a token each at a time",
     .more = "Their tokens are added up. Weights are read once for all of them."},
    {.name = "to",
     .kind = NIB_OPTION_TEXT,
     .value = "FORMAT[,FORMAT...]",
     .about = "measure the one MODEL in these formats too",
     .more = "Quantized into a temporary folder (TMPDIR)."},
    {.name = "threads",
     .letter = 't',
     .kind = NIB_OPTION_TEXT,
     .value = "N[,N...]",
     .about = "worker threads (default: one per physical core)"},
    {.name = "csv", .kind = NIB_OPTION_SWITCH, .about = "results as comma-separated values, in base units"},
    {.name = "md", .kind = NIB_OPTION_SWITCH, .about = "results as a Markdown table"},
    {.name = NULL},
};

const nib_command nib_command_bench = {
    .name = "bench",
    .group = "measure",
    .usage = "MODEL... [-p N] [-n N] [-r N]",
    .about = "speed of prompts and generation",
    .more =
        "Mean and deviation over the runs. Rounds alternate between the models, so a slow minute hits all of them.\n"
        "Lists sweep: every combination of threads, depths and batches is measured. Each result stands beside the\n"
        "ceiling it is nearest to, measured in the same run: what memory can deliver, or the multiply-adds of the\n"
        "processor at their peak. Above 100% of memory the model lies in the caches.",
    .examples = "nibble bench model.gguf\nnibble bench a.gguf b.gguf -p 512 -n 128 -r 10\n"
                "nibble bench demo -t 1,2 --depth 0,256\nnibble bench demo --to q4_k,q2_k --batch 1,4,16 --md",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 1,
    .max_words = 64,
    .own_threads = true,
    .run = run,
};
