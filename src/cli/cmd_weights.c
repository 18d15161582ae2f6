/* nibble weights: how the weights of one or several models are distributed. */
#include "cli.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SPARK_COLUMNS 24

/* ---- For people ------------------------------------------------------------------------------------------------------ */

static void add_group(nib_table *table, const char *name, const nib_weight_group *group) {
    const nib_weight_stats *w = &group->stats;
    nib_table_add(table, "%s", name);
    nib_table_add(table, "%s", nib_show_count(w->n).s);
    nib_table_add(table, "%.2g", w->mean);
    nib_table_add(table, "%.3g", w->std);
    nib_table_add(table, "%.3g", w->min);
    nib_table_add(table, "%.3g", w->max);
    nib_table_add(table, isfinite(w->kurtosis) ? "%.1f" : "-", w->kurtosis);
    nib_table_add(table, "%llu", (unsigned long long)w->n_outliers_6sigma);
    nib_table_add(table, "%s", nib_show_histogram(w->histogram, NIB_HISTOGRAM_BINS, SPARK_COLUMNS).s);
}

static void begin_table(nib_table *table, const char *first) {
    char heads[128];
    snprintf(heads, sizeof heads, "%s|n|mean|std|min|max|kurt|>6s|-12s       log       +12s", first);
    nib_table_init(table, "lrrrrrrrl", heads);
}

/* The n largest of all groups' candidates, by group and place within it; what a group holds is sorted already. */
typedef struct place {
    size_t group;
    uint32_t at;
    double magnitude;
} place;

static int larger_first(const void *a, const void *b) {
    const place *x = a, *y = b;
    if (x->magnitude != y->magnitude) return x->magnitude > y->magnitude ? -1 : 1;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* How far out a value is, in deviations of its own group. */
static double in_deviations(const nib_weight_group *group, double value) {
    return group->stats.std > 0 ? fabs(value - group->stats.mean) / group->stats.std : 0;
}

static nib_status print_largest(const nib_weight_groups *groups, size_t n_shown, nib_error *error) {
    place *places = calloc(groups->n ? groups->n * (NIB_TOP_WEIGHTS + NIB_TOP_CHANNELS) : 1, sizeof *places);
    size_t n = 0;
    if (!places) return nib_cli_no_memory(error);
    for (size_t g = 0; g < groups->n; g++)
        for (uint32_t i = 0; i < groups->items[g].stats.n_top; i++) {
            const double out = in_deviations(&groups->items[g], groups->items[g].stats.top[i].value);
            if (out > 6) places[n++] = (place){g, i, out};
        }
    qsort(places, n, sizeof *places, larger_first);
    if (n && n_shown) printf("furthest out, in deviations of its row above\n");
    for (size_t i = 0; i < n && i < n_shown; i++) {
        const nib_weight_group *group = &groups->items[places[i].group];
        const uint32_t at = places[i].at;
        printf("  %7.1f  %10.4g  %s, row %llu, column %llu\n", places[i].magnitude, group->stats.top[at].value,
               group->stats.top[at].tensor, (unsigned long long)group->stats.top[at].row,
               (unsigned long long)group->stats.top[at].column);
    }
    n = 0;
    for (size_t g = 0; g < groups->n; g++)
        for (uint32_t i = 0; i < groups->items[g].n_channels; i++)
            places[n++] = (place){g, i, in_deviations(&groups->items[g], groups->items[g].channels[i].absmax)};
    qsort(places, n, sizeof *places, larger_first);
    if (n && n_shown) printf("largest channels: the column's largest magnitude\n");
    for (size_t i = 0; i < n && i < n_shown; i++) {
        const nib_channel *channel = &groups->items[places[i].group].channels[places[i].at];
        printf("  %7.1f  %10.4g  %s, column %llu\n", places[i].magnitude, channel->absmax, channel->tensor,
               (unsigned long long)channel->column);
    }
    free(places);
    return NIB_OK;
}

static nib_status print_model(const nib_cli *cli, const char *path, nib_weights_by by, const nib_weight_groups *groups,
                              nib_error *error) {
    nib_table table;
    printf("%s%s%s\n", nib_console_bold(), nib_cli_model_label(path).s, nib_console_plain());
    begin_table(&table, by == NIB_WEIGHTS_BY_TENSOR ? "tensor" : by == NIB_WEIGHTS_BY_ROLE ? "role" : "tensors");
    for (size_t g = 0; g < groups->n; g++) {
        const nib_weight_group *group = &groups->items[g];
        add_group(&table,
                  by == NIB_WEIGHTS_BY_TENSOR ? group->tensor
                  : by == NIB_WEIGHTS_WHOLE   ? "all"
                                              : group->role,
                  group);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    return print_largest(groups, (size_t)nib_cli_uint(cli, "top"), error);
}

/* One row a model. */
static void print_whole(const nib_cli *cli, const nib_weight_groups *models) {
    nib_table table;
    begin_table(&table, "model");
    for (unsigned m = 0; m < cli->args.n_words; m++)
        if (models[m].n) add_group(&table, nib_cli_model_label(cli->args.words[m]).s, &models[m].items[0]);
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

/* ---- The command ----------------------------------------------------------------------------------------------------- */

static nib_status write_json(nib_cli *cli, const nib_weight_groups *models, nib_error *error) {
    nib_json *json = nib_cli_json_begin(cli, "weights", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_begin_array(json, "weights");
    for (unsigned m = 0; m < cli->args.n_words; m++)
        for (size_t g = 0; g < models[m].n; g++) {
            nib_json_begin_object(json, NULL);
            nib_json_string(json, "model", cli->args.words[m]);
            nib_weight_group_write_json(&models[m].items[g], json);
            nib_json_end_object(json);
        }
    nib_json_end_array(json);
    return nib_cli_json_end(cli, json, error);
}

static nib_weights_by grouping(const nib_cli *cli) {
    const char *by = nib_cli_text(cli, "by");
    if (!nib_cli_given(cli, "by") && cli->verbose) return NIB_WEIGHTS_BY_TENSOR;
    return strcmp(by, "tensor") == 0  ? NIB_WEIGHTS_BY_TENSOR
           : strcmp(by, "whole") == 0 ? NIB_WEIGHTS_WHOLE
                                      : NIB_WEIGHTS_BY_ROLE;
}

static nib_status measure(nib_cli *cli, const char *path, const nib_weights_params *params, nib_weight_groups *out,
                          nib_error *error) {
    nib_gguf *gguf = NULL;
    nib_status status = nib_cli_open_gguf(path, &gguf, error);
    if (!status) status = nib_weights_measure_groups(gguf, params, cli->pool, &cli->watch, out, error);
    if (status == NIB_ERR_USAGE && params->wants) {
        nib_cli_fail(error, status, "nibble inspect MODEL -v lists the tensors", "no tensor matches %s",
                     nib_cli_text(cli, "tensor"));
        nib_cli_fail_in(error, path, -1, NULL);
    }
    nib_gguf_close(gguf);
    return status;
}

static nib_status run(nib_cli *cli, nib_error *error) {
    const unsigned n = cli->args.n_words;
    nib_cli_filter filter = {.is_set = false};
    nib_weight_groups *models = calloc(n, sizeof *models);
    if (!models) return nib_cli_no_memory(error);
    nib_status status = nib_cli_filter_open(cli, &filter, error);
    nib_weights_params params = {.by = grouping(cli), .edge = nib_cli_number(cli, "edge")};
    if (filter.is_set) {
        params.vectors = true;
        params.user = &filter;
        params.wants = nib_cli_filter_takes;
    }
    for (unsigned m = 0; m < n && !status; m++) status = measure(cli, cli->args.words[m], &params, &models[m], error);
    nib_console_erase_progress();
    if (!status && cli->wants_json) status = write_json(cli, models, error);
    const bool one_table = params.by == NIB_WEIGHTS_WHOLE && n > 1;
    if (!status && !cli->json && one_table) print_whole(cli, models);
    for (unsigned m = 0; m < n && !status && !cli->json && !one_table; m++) {
        if (m) fputc('\n', stdout);
        status = print_model(cli, cli->args.words[m], params.by, &models[m], error);
    }
    for (unsigned m = 0; m < n; m++) nib_weight_groups_fini(&models[m]);
    nib_cli_filter_fini(&filter);
    free(models);
    return status;
}

static const nib_option options[] = {
    {.name = "by",
     .kind = NIB_OPTION_CHOICE,
     .value = "role|tensor|whole",
     .fallback = "role",
     .about = "what is measured together; -v is --by tensor"},
    {.name = "tensor",
     .kind = NIB_OPTION_TEXT,
     .value = "REGEX",
     .about = "only tensors whose name matches, vectors too"},
    {.name = "edge",
     .kind = NIB_OPTION_NUMBER,
     .value = "X",
     .fallback = "0",
     .min = 0,
     .max = 1e30,
     .about = "histograms from -X to X; 0 = 12 deviations of each row"},
    {.name = "top",
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "3",
     .min = 0,
     .max = 1000,
     .about = "weights and channels furthest out to name"},
    {.name = NULL},
};

const nib_command nib_command_weights = {
    .name = "weights",
    .group = "look",
    .usage = "MODEL... [--by role|tensor|whole] [--tensor REGEX]",
    .about = "histograms, moments and outliers",
    .more =
        "Without --tensor only matrices count. kurt: kurtosis, 3 for a Gaussian. >6s: weights more than six standard\n"
        "deviations from the mean. The histogram's counts are on a log scale.",
    .examples = "nibble weights demo\nnibble weights model.gguf -v --tensor ffn_down\n"
                "nibble weights a.gguf b.gguf --by whole\nnibble weights demo --json | jq '.weights[].kurtosis'",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 1,
    .max_words = 32,
    .run = run,
};
