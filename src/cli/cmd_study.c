/* nibble study: the experiment in one command. Says first what it will take, shows where it is, and ends with a table, a
 * verdict in words, and the place of the report. */
#include "cli.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_LEVELS   128
#define MOST_ROWS     16
#define ASK_SECONDS   600.0
#define FEWEST_CHUNKS 2

/* ---- Options -------------------------------------------------------------------------------------------------------------- */

static nib_status read_levels(nib_cli *cli, const nib_recipe **levels, unsigned *n, nib_error *error) {
    const char *list = nib_cli_text(cli, "to");
    return nib_cli_parse_recipes(list ? list : "default", levels, MOST_LEVELS, n, error);
}

/* Expected seconds with this much text. */
static nib_status time_of(nib_cli *cli, nib_study_params *params, uint32_t n_chunks, nib_study_plan *plan,
                          nib_error *error) {
    params->n_chunks = n_chunks;
    return nib_study_prepare(params, cli->pool, plan, error);
}

/* Chooses the amount of text that fits the budget, taking time as linear in it. */
static nib_status fit_budget(nib_cli *cli, nib_study_params *params, double budget, nib_study_plan *plan,
                             nib_error *error) {
    enum { PROBE_CHUNKS = 10 };
    nib_study_plan few, more;
    if (plan->seconds <= budget) return NIB_OK;
    nib_status status = time_of(cli, params, FEWEST_CHUNKS, &few, error);
    if (!status) status = time_of(cli, params, PROBE_CHUNKS, &more, error);
    if (status) return status;
    double per_chunk = (more.seconds - few.seconds) / (PROBE_CHUNKS - FEWEST_CHUNKS);
    double fits = per_chunk > 0 ? FEWEST_CHUNKS + (budget - few.seconds) / per_chunk : FEWEST_CHUNKS;
    uint32_t n_chunks = fits > FEWEST_CHUNKS && fits < 1e6 ? (uint32_t)fits : FEWEST_CHUNKS;
    status = time_of(cli, params, n_chunks, plan, error);
    if (status) return status;
    nib_console_note("%s: measuring on %u chunks of text", nib_show_seconds(budget).s, n_chunks);
    if (plan->seconds > 1.2 * budget)
        nib_console_warn("even with little text it takes about %s; fewer levels take less",
                         nib_show_seconds(plan->seconds).s);
    return NIB_OK;
}

static bool person_agrees(void) {
    char answer[16] = "";
    fprintf(stderr, "Go on? [Y/n] ");
    fflush(stderr);
    if (!fgets(answer, sizeof answer, stdin)) return false;
    return answer[0] == '\n' || answer[0] == 'y' || answer[0] == 'Y';
}

static nib_status agree_on_plan(nib_cli *cli, nib_study_params *params, nib_error *error) {
    nib_study_plan plan;
    nib_status status = nib_study_prepare(params, cli->pool, &plan, error);
    if (!status && nib_cli_given(cli, "budget"))
        status = fit_budget(cli, params, nib_cli_number(cli, "budget"), &plan, error);
    if (status) return status;
    nib_console_note("%s at %u levels: about %s, %s of disk, %s of memory; report in %s",
                     nib_cli_model_label(params->model).s, params->n_levels, nib_show_seconds(plan.seconds).s,
                     nib_show_bytes(plan.disk_bytes).s, nib_show_bytes(plan.memory_bytes).s, plan.out_dir);
    bool long_one = plan.seconds > ASK_SECONDS && !nib_cli_given(cli, "budget");
    if (long_one && isatty(STDIN_FILENO) && isatty(STDERR_FILENO) && !person_agrees())
        return nib_cli_fail(error, NIB_ERR_INTERRUPTED, "--budget 10m makes it fit ten minutes",
                            "stopped before it began");
    return NIB_OK;
}

/* ---- What came of it ---------------------------------------------------------------------------------------------------------- */

static const nib_bench_result *speed_of(const nib_study *study, unsigned model, bool generation) {
    const nib_bench_result *first = NULL;
    unsigned at = 0;
    for (uint32_t i = 0; i < study->bench.n; i++) {
        const nib_bench_result *r = &study->bench.results[i];
        if ((strncmp(r->test, "tg", 2) == 0) != generation) continue;
        if (at++ == model) first = r;
    }
    return first;
}

static void add_row(nib_table *table, const nib_study *study, unsigned model) {
    bool is_reference = model == 0;
    const nib_eval_model *m = is_reference ? &study->eval.reference : &study->eval.models[model - 1];
    int32_t level = (int32_t)model - 1;
    const char *mark = is_reference ? "" : level == study->recommended ? " *" : level == study->cliff ? " !" : "";
    nib_table_add(table, "%s%s",
                  is_reference ? (m->format[0] ? m->format : "reference")
                               : nib_recipe_name(study->quantized[level].recipe),
                  mark);
    nib_table_add(table, "%s", nib_show_bytes(m->bytes).s);
    nib_table_add(table, "%.2f", m->bpw);
    nib_table_add(table, "%s", nib_show_pm(m->ppl, m->ppl_err).s);
    if (is_reference)
        nib_table_add(table, "-"), nib_table_add(table, "-");
    else {
        nib_table_add(table, "%s", nib_show_pm(m->kld.mean, m->kld.err).s);
        nib_table_add(table, "%.1f%%", 100 * m->same_top);
    }
    if (study->eval.n_questions) {
        if (m->has_choice)
            nib_table_add(table, "%.1f %s %.1f%%", 100 * m->accuracy, nib_console_plus_minus(), 100 * m->accuracy_err);
        else
            nib_table_add(table, "-");
    }
    for (int generation = 0; generation < 2 && study->bench.n > 0; generation++) {
        const nib_bench_result *r = speed_of(study, model, generation);
        if (r)
            nib_table_add(table, "%.0f", r->tokens_per_s);
        else
            nib_table_add(table, "-");
    }
}

/* Text in lines of at most 96 columns, breaking at spaces. */
static void print_wrapped(const char *text) {
    enum { WIDTH = 96 };
    while (*text) {
        size_t n = strcspn(text, "\n");
        if (n > WIDTH) {
            n = WIDTH;
            while (n > 1 && text[n] != ' ') n--;
            if (n == 1) n = WIDTH;
        }
        nib_print_safe(stdout, text, n, 0);
        putchar('\n');
        text += n;
        if (*text == ' ' || *text == '\n') text++;
    }
}

/* For a screenful of very many levels: going up in size, those that at least halve the divergence of the last one taken.
 * take: (n_levels). */
static void choose_rows(const nib_study *study, bool *take) {
    bool seen[MOST_LEVELS] = {false};
    double last = INFINITY;
    for (uint32_t round = 0; round < study->n_levels && round < MOST_LEVELS; round++) {
        uint32_t next = 0;
        while (seen[next]) next++;
        for (uint32_t i = next + 1; i < study->n_levels; i++)
            if (!seen[i] && study->eval.models[i].bytes < study->eval.models[next].bytes) next = i;
        seen[next] = true;
        take[next] = (int32_t)next == study->recommended || (int32_t)next == study->cliff ||
                     study->eval.models[next].kld.mean <= last / 2;
        if (take[next]) last = fmin(last, study->eval.models[next].kld.mean);
    }
}

static void print_study(const nib_study *study) {
    nib_table table;
    char align[16], heads[128];
    const bool choice = study->eval.n_questions > 0, speed = study->bench.n > 0;
    snprintf(align, sizeof align, "lrrrrr%s%s", choice ? "r" : "", speed ? "rr" : "");
    snprintf(heads, sizeof heads, "level|size|bpw|perplexity|KL divergence|same top%s%s", choice ? "|accuracy" : "",
             speed ? "|prompt/s|tokens/s" : "");
    nib_table_init(&table, align, heads);
    bool take[MOST_LEVELS] = {false};
    if (study->n_levels > MOST_ROWS) choose_rows(study, take);
    for (unsigned m = 0; m <= study->n_levels; m++)
        if (m == 0 || study->n_levels <= MOST_ROWS || take[m - 1]) add_row(&table, study, m);
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    if (study->n_levels > MOST_ROWS)
        printf("steps that at least halve the divergence; all %u levels are in the report\n", study->n_levels);
    if (study->recommended >= 0 || study->cliff >= 0)
        printf("%s%s%s\n", study->recommended >= 0 ? "* the one to use" : "",
               study->recommended >= 0 && study->cliff >= 0 ? "   " : "", study->cliff >= 0 ? "! over the cliff" : "");
    putchar('\n');
    print_wrapped(study->verdict);
    printf("\n%sreport  %s/report.html%s   (%s)\n", nib_console_bold(), study->out_dir, nib_console_plain(),
           nib_show_seconds(study->seconds).s);
}

static void open_report(const char *folder) {
    char *path = NULL;
    if (asprintf(&path, "%s/report.html", folder) < 0) return;
    pid_t child = fork();
    if (child == 0) {
        execlp("xdg-open", "xdg-open", path, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
        nib_console_warn("xdg-open could not show %s", path);
    free(path);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    const nib_recipe *levels[MOST_LEVELS] = {NULL};
    unsigned n_levels = 0;
    const nib_option_value *prompts = nib_cli_value(cli, "prompt");
    const char *choice = nib_cli_text(cli, "choice"), *to = nib_cli_text(cli, "to");
    nib_study_params params = {
        .model = cli->args.n_words ? cli->args.words[0] : "demo",
        .levels = levels,
        .pure = nib_cli_switch(cli, "pure"),
        .map = to && strcmp(to, "grid") == 0,
        .text_path = nib_cli_text(cli, "text"),
        .choice_path = choice && strcmp(choice, "none") == 0 ? "" : choice,
        .prompts = prompts->n_all ? prompts->all : NULL,
        .n_prompts = prompts->n_all,
        .n_tries = (uint32_t)nib_cli_uint(cli, "tries"),
        .n_talk_tokens = (uint32_t)nib_cli_uint(cli, "tokens"),
        .n_chunks = (uint32_t)nib_cli_uint(cli, "chunks"),
        .out_dir = nib_cli_text(cli, "output"),
        .force = nib_cli_switch(cli, "force"),
        .keep = nib_cli_switch(cli, "keep"),
    };
    nib_study *study = calloc(1, sizeof *study);
    if (!study) return nib_cli_no_memory(error);
    nib_status status = nib_cli_check_model(params.model, error);
    if (!status) status = read_levels(cli, levels, &n_levels, error);
    params.n_levels = n_levels;
    if (!status) status = agree_on_plan(cli, &params, error);
    if (!status) status = nib_study_run(&params, cli->pool, &cli->watch, study, error);
    nib_console_erase_progress();
    if (!status && cli->json) {
        nib_json *json = nib_json_new();
        if (!json)
            status = nib_cli_no_memory(error);
        else {
            const char *text = NULL;
            size_t n_bytes = 0;
            nib_study_write_json(study, json);
            status = nib_json_text(json, &text, &n_bytes, error);
            if (!status) printf("%s\n", text);
        }
        nib_json_free(json);
    }
    if (!status && !cli->json) print_study(study);
    if (!status && nib_cli_switch(cli, "open")) open_report(study->out_dir);
    nib_study_fini(study);
    free(study);
    return status;
}

static const nib_option options[] = {
    {.name = "to",
     .kind = NIB_OPTION_TEXT,
     .value = "LIST",
     .about = "levels to study: formats, or default, article, grid",
     .more =
         "default: q8_0,q6_k,q4_k,q4_1,q4_0,q3_k,q2_k. article: q8_0,q8a,q4_1,q4_0,q2_k,q2s. grid: all 84 members of\n"
         "the grid family as a map of size and divergence, without questions, talk and speed."},
    {.name = "pure", .kind = NIB_OPTION_SWITCH, .about = "one format for every matrix, no mixes"},
    {.name = "text",
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "text to measure on (default: the built-in one)"},
    {.name = "choice",
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "questions with choices, JSONL; none = no questions"},
    {.name = "prompt",
     .kind = NIB_OPTION_TEXT,
     .value = "TEXT",
     .repeats = true,
     .about = "what every level is asked (repeatable)"},
    {.name = "tries",
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "1",
     .min = 1,
     .max = 100,
     .about = "answers per prompt; above 1 they are sampled"},
    {.name = "tokens",
     .letter = 'n',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "160",
     .min = 1,
     .max = 65536,
     .about = "most tokens of an answer"},
    {.name = "chunks",
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "0",
     .min = 0,
     .max = 4e9,
     .about = "chunks of text to measure; 0 = all"},
    {.name = "budget",
     .kind = NIB_OPTION_TIME,
     .value = "TIME",
     .min = 1,
     .max = 1e9,
     .about = "fit the amount of text to a time such as 5m"},
    {.name = "keep", .kind = NIB_OPTION_SWITCH, .about = "keep the quantized files beside the report"},
    {.name = "open", .kind = NIB_OPTION_SWITCH, .about = "show the report in the browser"},
    {.name = NULL},
};

const nib_command nib_command_study = {
    .name = "study",
    .group = "whole job",
    .usage = "[MODEL] [--to LIST]",
    .about = "quantize, measure, talk, report",
    .more =
        "Quantizes at several levels; measures size, weights, perplexity, KL divergence, choice accuracy and speed of\n"
        "each; talks to each; writes report.html, report.json and SVG pictures. No MODEL: demo.",
    .examples = "nibble study\nnibble study model.gguf --budget 10m\nnibble study model.gguf --to q8_0,q4_k,q2_k "
                "--text t.txt --open\n"
                "nibble study demo --to article --force",
    .output = "folder of the report (default: nibble-study-NAME)",
    .options = options,
    .max_words = 1,
    .run = run,
};
