/* nibble quantize: one model file into smaller ones. Several formats are made in one pass over the input. */
#include "cli.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MOST_FORMATS NIB_QUANTIZE_MOST
#define FEW_OUTPUTS  4 /* told one by one */

typedef struct job {
    nib_cli *cli;
    nib_gguf *gguf;
    const nib_recipe *recipes[MOST_FORMATS];
    char *paths[MOST_FORMATS];
    unsigned n;
    nib_quantize_params params;
    nib_imatrix *imatrix;
    nib_overrides *overrides;
} job;

/* ---- Names ------------------------------------------------------------------------------------------------------------- */

/* "path/Model-BF16.gguf" -> "Model": without folder, extension and the float type people put at the end. */
static void stem_of(const char *path, char *out, size_t n) {
    static const char *const endings[] = {".gguf", "bf16", "f16", "f32", "fp16", "fp32"};
    const char *slash = strrchr(path, '/');
    snprintf(out, n, "%s", strcmp(path, "demo") == 0 ? "nibble-demo" : slash ? slash + 1 : path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t length = strlen(out), n_ending = strlen(endings[i]);
        if (length <= n_ending + 1 || strcasecmp(out + length - n_ending, endings[i]) != 0) continue;
        char before = out[length - n_ending - 1];
        if (i == 0)
            out[length - n_ending] = '\0';
        else if (before == '.' || before == '-' || before == '_')
            out[length - n_ending - 1] = '\0';
    }
}

static bool is_folder(const char *path) {
    struct stat info;
    size_t n = strlen(path);
    return (n && path[n - 1] == '/') || (stat(path, &info) == 0 && S_ISDIR(info.st_mode));
}

static nib_status choose_paths(job *j, nib_error *error) {
    const char *output = nib_cli_text(j->cli, "output"), *input = j->cli->args.words[0];
    bool folder = output && is_folder(output);
    char stem[512];
    stem_of(input, stem, sizeof stem);
    if (output && j->n > 1 && !folder)
        return nib_cli_fail(error, NIB_ERR_USAGE, "end it with / or leave -o out",
                            "-o has to be a folder for several formats");
    for (unsigned i = 0; i < j->n; i++) {
        int rc;
        if (output && !folder)
            rc = asprintf(&j->paths[i], "%s", output);
        else
            rc = asprintf(&j->paths[i], "%s%s%s-%s.gguf", folder ? output : "",
                          folder && output[strlen(output) - 1] != '/' ? "/" : "", stem, nib_recipe_name(j->recipes[i]));
        if (rc < 0) {
            j->paths[i] = NULL;
            return nib_cli_no_memory(error);
        }
        nib_status status = nib_cli_check_output(j->paths[i], j->params.force || j->params.resume, &input, 1, error);
        if (status) return status;
        if (strcmp(j->paths[i], "-") == 0)
            return nib_cli_fail(error, NIB_ERR_USAGE, "give -o FILE", "a model cannot be written to standard output");
    }
    return NIB_OK;
}

static nib_status read_recipes(job *j, nib_error *error) {
    const char *list = nib_cli_text(j->cli, "to");
    if (!list)
        return nib_cli_fail(error, NIB_ERR_USAGE, "such as --to q4_k; nibble formats lists them",
                            "--to FORMAT is missing");
    return nib_cli_parse_recipes(list, j->recipes, MOST_FORMATS, &j->n, error);
}

/* ---- What goes with the formats ------------------------------------------------------------------------------------------- */

static nib_status read_overrides(job *j, nib_error *error) {
    const nib_option_value *tensors = nib_cli_value(j->cli, "tensor"), *roles = nib_cli_value(j->cli, "role");
    const char *output = nib_cli_text(j->cli, "output-type"), *embedding = nib_cli_text(j->cli, "embedding-type");
    const char *file = nib_cli_text(j->cli, "recipe");
    nib_status status = nib_overrides_new(&j->overrides, error);
    for (unsigned i = 0; i < tensors->n_all && !status; i++)
        status = nib_overrides_add_tensor(j->overrides, tensors->all[i], error);
    for (unsigned i = 0; i < roles->n_all && !status; i++)
        status = nib_overrides_add_role(j->overrides, roles->all[i], error);
    if (!status && file) status = nib_overrides_add_file(j->overrides, file, error);
    if (!status && output) status = nib_overrides_set_output(j->overrides, output, error);
    if (!status && embedding) status = nib_overrides_set_embedding(j->overrides, embedding, error);
    j->params.overrides = j->overrides;
    return status;
}

static nib_status read_imatrix(job *j, nib_error *error) {
    const char *path = nib_cli_text(j->cli, "imatrix");
    if (!path) return NIB_OK;
    nib_status status = nib_imatrix_open(path, &j->cli->watch, &j->imatrix, error);
    j->params.imatrix = j->imatrix;
    return status;
}

/* ---- Dry run -------------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of(const nib_choice_of_format *c) {
    uint64_t rows = c->tensor->ne[0] ? c->tensor->n_elements / c->tensor->ne[0] : 0;
    return rows * nib_format_row_bytes(c->format, (size_t)c->tensor->ne[0]);
}

static void json_choices(nib_json *json, const nib_choice_of_format *choices, uint64_t n) {
    nib_json_begin_array(json, "tensors");
    for (uint64_t i = 0; i < n; i++) {
        const nib_choice_of_format *c = &choices[i];
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "name", c->tensor->name);
        nib_json_string(json, "from", nib_format_facts_of(c->tensor->format)->name);
        nib_json_string(json, "to", nib_format_facts_of(c->format)->name);
        nib_json_string(json, "role", nib_tensor_role(c->tensor->name, NULL));
        nib_json_uint(json, "bytes", bytes_of(c));
        if (c->fallback[0])
            nib_json_string(json, "fallback", c->fallback);
        else
            nib_json_null(json, "fallback");
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

/* Tensors of one role that get one format. */
typedef struct sum_of_role {
    const char *role;
    const nib_format *format;
    uint64_t n_tensors, n_elements, n_bytes;
} sum_of_role;

static void print_every_choice(const nib_choice_of_format *choices, uint64_t n) {
    nib_table table;
    nib_table_init(&table, "llrl", "tensor|to|bytes|why");
    for (uint64_t i = 0; i < n; i++) {
        nib_table_add(&table, "%s", choices[i].tensor->name);
        nib_table_add(&table, "%s", nib_format_facts_of(choices[i].format)->name);
        nib_table_add(&table, "%llu", (unsigned long long)bytes_of(&choices[i]));
        nib_table_add(&table, "%s", choices[i].fallback);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

/* Roles in the order of the file's tensors, a role's formats one after the other. */
static unsigned sum_up(const nib_choice_of_format *choices, uint64_t n, sum_of_role *sums, unsigned most) {
    unsigned n_sums = 0;
    for (uint64_t i = 0; i < n; i++) {
        const char *role = nib_tensor_role(choices[i].tensor->name, NULL);
        unsigned s = 0, after = n_sums;
        for (; s < n_sums; s++) {
            if (strcmp(sums[s].role, role) != 0) continue;
            if (sums[s].format == choices[i].format) break;
            after = s + 1;
        }
        if (s == n_sums) {
            if (n_sums == most) continue;
            memmove(sums + after + 1, sums + after, (n_sums - after) * sizeof *sums);
            sums[after] = (sum_of_role){.role = role, .format = choices[i].format};
            n_sums++;
            s = after;
        }
        sums[s].n_tensors++;
        sums[s].n_elements += choices[i].tensor->n_elements;
        sums[s].n_bytes += bytes_of(&choices[i]);
    }
    return n_sums;
}

static void print_choices(const nib_choice_of_format *choices, uint64_t n, uint64_t bytes_in, uint64_t bytes_out,
                          const char *path, bool verbose) {
    sum_of_role sums[128];
    unsigned n_fallbacks = 0;
    nib_table table;
    printf("%s%s%s  %s -> %s\n", nib_console_bold(), path, nib_console_plain(), nib_show_bytes(bytes_in).s,
           nib_show_bytes(bytes_out).s);
    if (verbose) {
        print_every_choice(choices, n);
        return;
    }
    unsigned n_sums = sum_up(choices, n, sums, sizeof sums / sizeof *sums);
    nib_table_init(&table, "llrrr", "role|format|tensors|parameters|bytes");
    for (unsigned s = 0; s < n_sums; s++) {
        nib_table_add(&table, "%s", s && !strcmp(sums[s].role, sums[s - 1].role) ? "" : sums[s].role);
        nib_table_add(&table, "%s", nib_format_facts_of(sums[s].format)->name);
        nib_table_add(&table, "%llu", (unsigned long long)sums[s].n_tensors);
        nib_table_add(&table, "%s", nib_show_count(sums[s].n_elements).s);
        nib_table_add(&table, "%llu", (unsigned long long)sums[s].n_bytes);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    for (uint64_t i = 0; i < n; i++) n_fallbacks += choices[i].fallback[0] != 0;
    if (n_fallbacks) printf("%u tensors take another format than asked: -v says why\n", n_fallbacks);
}

static nib_status dry_run(job *j, nib_json *json, unsigned i, nib_error *error) {
    uint64_t n = nib_gguf_n_tensors(j->gguf), bytes_out = 0;
    nib_choice_of_format *choices = calloc(n ? n : 1, sizeof *choices);
    if (!choices) return nib_cli_no_memory(error);
    nib_status status = nib_recipe_choose(&j->params, j->gguf, choices, error);
    if (!status) status = nib_quantize_plan(j->gguf, &j->params, &bytes_out, error);
    if (!status) nib_overrides_warn_unused(j->params.overrides, j->gguf, &j->cli->watch);
    if (!status && json) {
        nib_json_bool(json, "dry_run", true);
        nib_json_string(json, "input", nib_gguf_path(j->gguf));
        nib_json_string(json, "output", j->paths[i]);
        nib_json_string(json, "format", nib_format_facts_of(nib_recipe_format(j->recipes[i]))->name);
        nib_json_string(json, "recipe", nib_recipe_name(j->recipes[i]));
        if (j->imatrix)
            nib_json_string(json, "imatrix", nib_imatrix_facts_of(j->imatrix).path);
        else
            nib_json_null(json, "imatrix");
        nib_json_uint(json, "n_tensors", n);
        nib_json_uint(json, "bytes_in", nib_gguf_bytes(j->gguf));
        nib_json_uint(json, "bytes_out", bytes_out);
        json_choices(json, choices, n);
    }
    if (!status && !j->cli->json)
        print_choices(choices, n, nib_gguf_bytes(j->gguf), bytes_out, j->paths[i], j->cli->verbose > 0);
    free(choices);
    return status;
}

/* ---- For real --------------------------------------------------------------------------------------------------------------- */

static void print_tensors(const nib_quantized *q) {
    nib_table table;
    nib_table_init(&table, "lllrrrl", "tensor|from|to|bytes|error|largest|why");
    for (uint32_t i = 0; i < q->n_tensors; i++) {
        const nib_quantized_tensor *t = &q->tensors[i];
        nib_table_add(&table, "%s", t->name);
        nib_table_add(&table, "%s", nib_format_facts_of(t->from)->name);
        nib_table_add(&table, "%s", nib_format_facts_of(t->to)->name);
        nib_table_add(&table, "%llu", (unsigned long long)t->n_bytes);
        nib_table_add(&table, isfinite(t->rel_rmse) ? "%.2f%%" : "-", 100 * t->rel_rmse);
        nib_table_add(&table, isfinite(t->max_abs_err) ? "%.3g" : "-", t->max_abs_err);
        nib_table_add(&table, "%s", t->fallback);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

/* The most frequent source format of what was quantized, for "bf16 1.19 GB -> 0.40 GB". */
static const char *source_name(const nib_quantized *q) {
    const nib_format *best = NULL;
    uint64_t best_bytes = 0;
    for (uint32_t i = 0; i < q->n_tensors; i++) {
        uint64_t n_bytes = 0;
        for (uint32_t k = 0; k < q->n_tensors; k++)
            if (q->tensors[k].from == q->tensors[i].from) n_bytes += q->tensors[k].n_bytes;
        if (n_bytes > best_bytes) {
            best_bytes = n_bytes;
            best = q->tensors[i].from;
        }
    }
    return best ? nib_format_facts_of(best)->name : "";
}

static void print_summary(const nib_quantized *q, unsigned verbose) {
    const nib_quantized_tensor *worst = NULL;
    unsigned n_fallbacks = 0;
    for (uint32_t i = 0; i < q->n_tensors; i++) {
        const nib_quantized_tensor *t = &q->tensors[i];
        n_fallbacks += t->fallback[0] != 0;
        if (isfinite(t->rel_rmse) && (!worst || t->rel_rmse > worst->rel_rmse)) worst = t;
    }
    if (verbose) print_tensors(q);
    printf("quantized  %s  %s %s -> %s %s  (%.2f bpw)   %s, peak memory %s\n", nib_cli_model_label(q->input).s,
           source_name(q), nib_show_bytes(q->bytes_in).s, nib_recipe_name(q->recipe), nib_show_bytes(q->bytes_out).s,
           q->bpw, nib_show_seconds(q->seconds).s, nib_show_bytes(q->peak_rss).s);
    if (worst) printf("worst      %s  relative error %.2f%%\n", worst->name, 100 * worst->rel_rmse);
    if (q->n_resumed) printf("resumed    %u of %u tensors were there already\n", q->n_resumed, q->n_tensors);
    if (n_fallbacks) printf("fallback   %u tensors have another format than asked: -v says why\n", n_fallbacks);
    printf("wrote      %s", q->output);
    if (q->n_files > 1) printf(" and %u more", q->n_files - 1);
    printf("\n");
}

/* Of many outputs a line each. */
static void print_summaries(const nib_quantized *q, unsigned n) {
    nib_table table;
    printf("quantized  %s  %s %s -> %u files   %s, peak memory %s\n", nib_cli_model_label(q->input).s, source_name(q),
           nib_show_bytes(q->bytes_in).s, n, nib_show_seconds(q->seconds).s, nib_show_bytes(q->peak_rss).s);
    nib_table_init(&table, "lrrrl", "recipe|size|bpw|worst tensor|file");
    for (unsigned i = 0; i < n; i++) {
        double worst = NAN;
        for (uint32_t t = 0; t < q[i].n_tensors; t++) worst = fmax(worst, q[i].tensors[t].rel_rmse); /* ignores NaN */
        nib_table_add(&table, "%s", nib_recipe_name(q[i].recipe));
        nib_table_add(&table, "%s", nib_show_bytes(q[i].bytes_out).s);
        nib_table_add(&table, "%.2f", q[i].bpw);
        nib_table_add(&table, isnan(worst) ? "-" : "%.2f%%", 100 * worst);
        nib_table_add(&table, "%s", q[i].output);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

static nib_status quantize_all(job *j, nib_json *json, nib_error *error) {
    nib_quantize_params params[MOST_FORMATS];
    nib_quantized *q = calloc(j->n, sizeof *q);
    if (!q) return nib_cli_no_memory(error);
    for (unsigned i = 0; i < j->n; i++) {
        params[i] = j->params;
        params[i].recipe = j->recipes[i];
    }
    nib_status status =
        nib_quantize_many(j->gguf, j->n, (const char *const *)j->paths, params, j->cli->pool, &j->cli->watch, q, error);
    nib_console_erase_progress();
    for (unsigned i = 0; i < j->n && !status; i++) {
        if (json && j->n > 1) nib_json_begin_object(json, NULL);
        if (json) nib_quantized_write_json(&q[i], json);
        if (json && j->n > 1) nib_json_end_object(json);
        if (!j->cli->json && j->n <= FEW_OUTPUTS) print_summary(&q[i], j->cli->verbose);
    }
    if (!status && !j->cli->json && j->n > FEW_OUTPUTS) print_summaries(q, j->n);
    for (unsigned i = 0; i < j->n; i++) nib_quantized_fini(&q[i]);
    free(q);
    return status;
}

static nib_status dry_run_all(job *j, nib_json *json, nib_error *error) {
    nib_status status = NIB_OK;
    for (unsigned i = 0; i < j->n && !status; i++) {
        j->params.recipe = j->recipes[i];
        if (json && j->n > 1) nib_json_begin_object(json, NULL);
        status = dry_run(j, json, i, error);
        if (json && j->n > 1) nib_json_end_object(json);
    }
    return status;
}

static nib_status make_folder(const char *path, nib_error *error) {
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return NIB_OK;
    nib_cli_fail(error, NIB_ERR_IO, "make the folders above it first", "cannot make the folder: %s", strerror(errno));
    return nib_cli_fail_in(error, path, -1, NULL);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    job j = {.cli = cli};
    nib_json *json = NULL;
    bool dry = nib_cli_switch(cli, "dry-run");
    const char *output = nib_cli_text(cli, "output");
    j.params.grid_search = nib_cli_switch(cli, "grid-search");
    j.params.pure = nib_cli_switch(cli, "pure");
    j.params.force = nib_cli_switch(cli, "force");
    j.params.no_provenance = !nib_cli_switch(cli, "provenance");
    j.params.measure_error = nib_cli_switch(cli, "error");
    j.params.resume = nib_cli_switch(cli, "resume");
    j.params.split_bytes = (uint64_t)nib_cli_number(cli, "split-size");
    nib_status status = read_recipes(&j, error);
    if (!status) status = choose_paths(&j, error);
    if (!status) status = read_overrides(&j, error);
    if (!status) status = read_imatrix(&j, error);
    if (!status) status = nib_cli_open_gguf(cli->args.words[0], &j.gguf, error);
    if (!status && !dry && output && is_folder(output)) status = make_folder(output, error);
    if (!status && cli->json && !(json = nib_cli_json_begin(cli, "quantize", error))) status = NIB_ERR_MEMORY;
    bool several = j.n > 1;
    if (!status && json && several) nib_json_begin_array(json, "outputs");
    if (!status) status = dry ? dry_run_all(&j, json, error) : quantize_all(&j, json, error);
    if (!status && json && several) nib_json_end_array(json);
    if (!status && json) {
        status = nib_cli_json_end(cli, json, error);
        json = NULL;
    }
    nib_json_free(json);
    nib_gguf_close(j.gguf);
    nib_imatrix_free(j.imatrix);
    nib_overrides_free(j.overrides);
    for (unsigned i = 0; i < j.n; i++) free(j.paths[i]);
    return status;
}

static const nib_option options[] = {
    {.name = "to",
     .kind = NIB_OPTION_TEXT,
     .value = "FORMAT[,FORMAT...]",
     .about = "the format or mix to make (nibble formats)",
     .more =
         "Names mean what they mean to llama-quantize: q4_k is q4_k_m, a mix of formats. article: q8_0,q8a,q4_1,q4_0,\n"
         "q2_k,q2s. grid: all 84 members of the grid family; take -o FOLDER/ then."},
    {.name = "pure", .kind = NIB_OPTION_SWITCH, .about = "one format for every matrix that can hold it, no mix"},
    {.name = "grid-search",
     .kind = NIB_OPTION_SWITCH,
     .about = "grid family: search every block's scale for the least squared error",
     .more = "With --imatrix it is searched anyway, by weighted error. Other formats search by their own rules."},
    {.name = "imatrix",
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "importance matrix: which columns matter most",
     .more = "Made by llama-imatrix, as GGUF or .dat. Some formats of 3 bits and less cannot do without."},
    {.name = "tensor",
     .kind = NIB_OPTION_TEXT,
     .value = "REGEX=FORMAT",
     .repeats = true,
     .about = "another format for tensors whose name fits",
     .more = "A plain format, not a mix. May be given several times; the first that fits counts, before --role."},
    {.name = "role",
     .kind = NIB_OPTION_TEXT,
     .value = "ROLE=FORMAT",
     .repeats = true,
     .about = "another format for a role (nibble inspect shows them)"},
    {.name = "output-type", .kind = NIB_OPTION_TEXT, .value = "FORMAT", .about = "format of the output matrix"},
    {.name = "embedding-type", .kind = NIB_OPTION_TEXT, .value = "FORMAT", .about = "format of the token embedding"},
    {.name = "recipe",
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "file of REGEX=FORMAT and role:ROLE=FORMAT rules",
     .more = "Separated by white space, # begins a comment; used after --tensor and --role of the command line.\n"
             "llama-quantize's tensor-type files are such files."},
    {.name = "resume",
     .kind = NIB_OPTION_SWITCH,
     .about = "go on where an earlier run of this command was stopped",
     .more =
         "The output is the same, byte for byte. With it, what is done stays in OUT.partial and OUT.journal when the\n"
         "run is interrupted; without it, only a run that was killed leaves them."},
    {.name = "split-size",
     .kind = NIB_OPTION_UINT,
     .value = "SIZE",
     .fallback = "0",
     .min = 0,
     .max = 9e18,
     .about = "several files of at most this many bytes of tensors each",
     .more = "Such as 4G. They are called OUT-00001-of-0000N.gguf, and the first is what other commands are given."},
    {.name = "dry-run", .kind = NIB_OPTION_SWITCH, .about = "say what would come out, write nothing"},
    {.name = "error", .kind = NIB_OPTION_SWITCH, .fallback = "on", .about = "do not measure the error of every tensor"},
    {.name = "provenance", .kind = NIB_OPTION_SWITCH, .fallback = "on", .about = "leave nibble's own metadata out"},
    {.name = NULL},
};

const nib_command nib_command_quantize = {
    .name = "quantize",
    .group = "make",
    .usage = "MODEL --to FORMAT[,FORMAT...] [-o OUT.gguf]",
    .about = "make a model file smaller",
    .more = "The file appears under its name only when complete. Without -o it is called MODEL-FORMAT.gguf.\n"
            "The bytes do not depend on the processor or the number of threads.",
    .examples =
        "nibble quantize model.gguf --to q4_k\nnibble quantize demo --to q8_0 -o small.gguf\n"
        "nibble quantize model.gguf --to q8_0,q4_k,q2_k -o out/\nnibble quantize model.gguf --to grid --pure -o "
        "grid/\nnibble quantize model.gguf --to q4_0 --pure "
        "--dry-run\n"
        "nibble quantize model.gguf --to q3_k_m --imatrix imatrix.gguf --tensor attn_v=q6_k",
    .output = "file to write; a folder for several formats",
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
