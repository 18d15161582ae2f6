/* nibble diff: how far the weights of two files of one model are apart, tensor by tensor. */
#include "cli.h"
#include <math.h>
#include <string.h>

#define SHOWN 12 /* tensors, without -v */

/* A share of codes: "16/16", "-" without integer codes. */
static nib_short_text codes_text(const nib_tensor_diff *t, int side) {
    nib_short_text out = {"-"};
    if (t->n_codes[side])
        snprintf(out.s, sizeof out.s, "%.0f/%u", t->codes_used[side] * t->n_codes[side], t->n_codes[side]);
    return out;
}

static const char *format_name(const nib_format *format) {
    return format ? nib_format_facts_of(format)->name : "-";
}

static void add_error(nib_table *table, double rel_rmse, double cosine, double max_abs_error) {
    nib_table_add(table, isfinite(rel_rmse) ? "%.3f%%" : "-", 100 * rel_rmse);
    nib_table_add(table, isfinite(cosine) ? "%.6f" : "-", cosine);
    nib_table_add(table, "%.3g", max_abs_error);
}

static void print_tensors(const nib_weight_diff *diff, size_t n) {
    nib_table table;
    nib_table_init(&table, "lllrrrrrr", "tensor|A|B|error|cosine|largest|at row|column|codes");
    for (size_t i = 0; i < n; i++) {
        const nib_tensor_diff *t = &diff->tensors[i];
        nib_table_add(&table, "%s", t->name);
        for (int side = 0; side < 2; side++) nib_table_add(&table, "%s", format_name(t->format[side]));
        add_error(&table, t->rel_rmse, t->cosine, t->max_abs_error);
        nib_table_add(&table, t->max_abs_error > 0 ? "%llu" : "-", (unsigned long long)t->row);
        nib_table_add(&table, t->max_abs_error > 0 ? "%llu" : "-", (unsigned long long)t->column);
        nib_table_add(&table, "%s", codes_text(t, t->n_codes[1] ? 1 : 0).s);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

static void print_missing(const nib_weight_diff *diff, bool all) {
    for (size_t i = diff->n_both; i < diff->n; i++) {
        const nib_tensor_diff *t = &diff->tensors[i];
        if (!all && i - diff->n_both >= SHOWN) {
            printf("(%zu more tensors in one file only: -v shows them)\n", diff->n - i);
            return;
        }
        printf("only in %s: %s, %s\n", t->format[0] ? "A" : "B", t->name, format_name(t->format[t->format[0] ? 0 : 1]));
    }
}

static void print_all(const nib_cli *cli, const nib_weight_diff *diff) {
    const size_t n_differing = diff->n_both - diff->n_identical;
    const size_t n = cli->verbose ? diff->n_both : n_differing < SHOWN ? n_differing : SHOWN;
    if (n) print_tensors(diff, n);
    if (n < n_differing) printf("(%zu tensors with smaller errors: -v shows them)\n", n_differing - n);
    print_missing(diff, cli->verbose > 0);
    printf("%swhole%s  %s weights in %zu tensors, %zu of them identical", nib_console_bold(), nib_console_plain(),
           nib_show_count(diff->n_weights).s, diff->n_both, diff->n_identical);
    if (n_differing && isfinite(diff->rel_rmse))
        printf("; error %.3f%%, cosine %.6f, largest %.3g in %s", 100 * diff->rel_rmse, diff->cosine,
               diff->max_abs_error, diff->tensors[diff->max_at].name);
    fputc('\n', stdout);
}

static nib_status write_json(nib_cli *cli, const nib_weight_diff *diff, nib_error *error) {
    nib_json *json = nib_cli_json_begin(cli, "diff", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_string(json, "a", cli->args.words[0]);
    nib_json_string(json, "b", cli->args.words[1]);
    nib_weight_diff_write_json(diff, json);
    return nib_cli_json_end(cli, json, error);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    nib_gguf *files[2] = {NULL, NULL};
    nib_weight_diff diff = {0};
    nib_cli_filter filter = {.is_set = false};
    nib_status status = nib_cli_filter_open(cli, &filter, error);
    for (int side = 0; side < 2 && !status; side++)
        status = nib_cli_open_gguf(cli->args.words[side], &files[side], error);
    if (!status)
        status = nib_weights_compare(files[0], files[1], nib_cli_filter_takes, &filter, cli->pool, &cli->watch, &diff,
                                     error);
    nib_console_erase_progress();
    if (!status && cli->wants_json) status = write_json(cli, &diff, error);
    if (!status && !cli->json) print_all(cli, &diff);
    nib_weight_diff_fini(&diff);
    for (int side = 0; side < 2; side++) nib_gguf_close(files[side]);
    nib_cli_filter_fini(&filter);
    return status;
}

static const nib_option options[] = {
    {.name = "tensor", .kind = NIB_OPTION_TEXT, .value = "REGEX", .about = "only tensors whose name matches"},
    {.name = NULL},
};

const nib_command nib_command_diff = {
    .name = "diff",
    .group = "look",
    .usage = "A B [--tensor REGEX]",
    .about = "error per tensor between two files",
    .more =
        "A is the reference. error: root mean square of A - B over that of A. largest: the largest |A - B| and where "
        "it\n"
        "is. codes: how many of the codes its format can store the tensor uses, B's or else A's. The worst tensors\n"
        "come first; -v shows all.",
    .examples = "nibble diff model.gguf model-q4_k.gguf\nnibble diff a.gguf b.gguf -v --tensor ffn\n"
                "nibble diff a.gguf b.gguf --json | jq .whole",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 2,
    .max_words = 2,
    .run = run,
};
