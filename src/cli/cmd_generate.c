/* nibble generate: a text continued by one or several models, or the likeliest next tokens side by side. */
#include "cli.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_PROBS 100

typedef struct likely {
    int32_t id;
    double probability;
} likely;

typedef struct run_of {
    nib_cli *cli;
    nib_model **models;
    unsigned n_models;
    char *owned; /* prompt read from a file */
    const char *prompt;
    size_t n_prompt;
    uint32_t n_probs, n_max;
} run_of;

/* ---- The prompt ---------------------------------------------------------------------------------------------------------- */

static nib_status get_prompt(run_of *r, nib_error *error) {
    const char *text = nib_cli_text(r->cli, "prompt"), *file = nib_cli_text(r->cli, "file");
    if (text && file) return nib_cli_fail(error, NIB_ERR_USAGE, "give one of the two", "both -p and -f were given");
    if (!text && !file) return nib_cli_fail(error, NIB_ERR_USAGE, "give -p TEXT or -f FILE", "there is no prompt");
    if (file) {
        nib_status status = nib_cli_read_file(file, &r->owned, &r->n_prompt, error);
        r->prompt = r->owned;
        return status;
    }
    r->prompt = text;
    r->n_prompt = strlen(text);
    return NIB_OK;
}

static nib_status prompt_ids(const run_of *r, const nib_model *model, nib_ids *ids, nib_error *error) {
    const nib_tokenizer *tokenizer = nib_model_text_tokenizer(model, error);
    if (!tokenizer) return error && error->code ? error->code : NIB_ERR_CORRUPT;
    nib_status status = nib_tokenize(tokenizer, r->prompt, r->n_prompt, true, true, ids, error);
    if (!status && ids->n == 0)
        status = nib_cli_fail(error, NIB_ERR_USAGE, "give a prompt with some text in it", "the prompt is empty");
    if (!status && ids->n > 16777216)
        status = nib_cli_fail(error, NIB_ERR_USAGE, "give a shorter prompt", "the prompt has %zu tokens", ids->n);
    return status;
}

/* ---- Likeliest next tokens ------------------------------------------------------------------------------------------------ */

/* The n likeliest of logits (n_vocab), likeliest first, the lower id first among equals. */
static void likeliest(const float *logits, uint32_t n_vocab, likely *out, uint32_t n) {
    double largest = -INFINITY, sum = 0;
    uint32_t filled = 0;
    for (uint32_t i = 0; i < n_vocab; i++)
        if (logits[i] > largest) largest = logits[i];
    for (uint32_t i = 0; i < n_vocab; i++) sum += exp(logits[i] - largest);
    for (uint32_t i = 0; i < n_vocab; i++) {
        double p = exp(logits[i] - largest) / sum;
        uint32_t at = filled < n ? filled++ : n;
        while (at > 0 && out[at - 1].probability < p) {
            if (at < n) out[at] = out[at - 1];
            at--;
        }
        if (at < n) out[at] = (likely){(int32_t)i, p};
    }
}

static nib_status probe(const run_of *r, const nib_model *model, likely *out, uint32_t *n, nib_error *error) {
    nib_ids ids = {0};
    nib_session *session = NULL;
    float *logits = NULL;
    uint32_t n_vocab = nib_model_facts_of(model)->n_vocab;
    nib_status status = prompt_ids(r, model, &ids, error);
    nib_session_params params = {.n_ctx = (uint32_t)ids.n, .kv = nib_cli_kv(r->cli)};
    if (!status) status = nib_session_new(model, r->cli->pool, &params, &session, error);
    if (!status && !(logits = calloc(n_vocab, sizeof *logits))) status = nib_cli_no_memory(error);
    if (!status) status = nib_session_next(session, 0, ids.ids, (uint32_t)ids.n, logits, error);
    *n = r->n_probs < n_vocab ? r->n_probs : n_vocab;
    if (!status) likeliest(logits, n_vocab, out, *n);
    free(logits);
    nib_session_free(session);
    nib_ids_fini(&ids);
    return status;
}

/* A token's text between quotes, with what would not print escaped, cut to fit. */
static nib_short_text quoted(const nib_model *model, int32_t id) {
    nib_short_text out;
    nib_text piece = nib_token_piece(nib_model_tokenizer(model), id, true);
    size_t used = 0;
    out.s[used++] = '"';
    for (size_t i = 0; i < piece.n_bytes && used < sizeof out.s - 8; i++) {
        unsigned char c = (unsigned char)piece.data[i];
        if (c == '\n')
            used += (size_t)snprintf(out.s + used, 8, "\\n");
        else if (c == '\t')
            used += (size_t)snprintf(out.s + used, 8, "\\t");
        else if (c < 0x20 || c == 0x7f)
            used += (size_t)snprintf(out.s + used, 8, "\\x%02x", c);
        else
            out.s[used++] = (char)c;
    }
    out.s[used++] = '"';
    out.s[used] = '\0';
    return out;
}

static void print_probs(const run_of *r, likely (*all)[MOST_PROBS], const uint32_t *n) {
    enum { SIDE_BY_SIDE = 5 };
    for (unsigned first = 0; first < r->n_models; first += SIDE_BY_SIDE) {
        unsigned last = first + SIDE_BY_SIDE < r->n_models ? first + SIDE_BY_SIDE : r->n_models;
        char align[2 * SIDE_BY_SIDE + 2] = "r", heads[SIDE_BY_SIDE * 64 + 8] = "";
        for (unsigned m = first; m < last; m++) {
            size_t used = strlen(heads);
            strcat(align, "lr");
            snprintf(heads + used, sizeof heads - used, "|%.16s|p", nib_cli_model_label(r->cli->args.words[m]).s);
        }
        nib_table table;
        nib_table_init(&table, align, heads);
        for (uint32_t k = 0; k < r->n_probs; k++) {
            nib_table_add(&table, "%u", k + 1);
            for (unsigned m = first; m < last; m++) {
                bool there = k < n[m];
                nib_table_add(&table, "%s", there ? quoted(r->models[m], all[m][k].id).s : "");
                if (there)
                    nib_table_add(&table, "%.2f%%", 100 * all[m][k].probability);
                else
                    nib_table_add(&table, "%s", "");
            }
        }
        nib_table_print(&table, stdout);
        nib_table_fini(&table);
    }
}

static void json_probs(nib_json *json, const nib_model *model, const likely *all, uint32_t n) {
    nib_json_begin_array(json, "next");
    for (uint32_t k = 0; k < n; k++) {
        nib_text piece = nib_token_piece(nib_model_tokenizer(model), all[k].id, true);
        nib_json_begin_object(json, NULL);
        nib_json_int(json, "id", all[k].id);
        nib_json_string_n(json, "piece", piece.data ? piece.data : "", piece.n_bytes);
        nib_json_number(json, "probability", all[k].probability);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

/* ---- Text -------------------------------------------------------------------------------------------------------------------- */

static nib_status continue_text(const run_of *r, const nib_model *model, nib_generated *out, uint32_t *n_prompt_tokens,
                                nib_error *error) {
    nib_ids ids = {0};
    nib_session *session = NULL;
    nib_sampler *sampler = NULL;
    nib_status status = prompt_ids(r, model, &ids, error);
    if (!status) {
        nib_session_params params = {.n_ctx = (uint32_t)ids.n + r->n_max, .kv = nib_cli_kv(r->cli)};
        status = nib_session_new(model, r->cli->pool, &params, &session, error);
    }
    if (!status) status = nib_cli_new_sampler(r->cli, nib_model_facts_of(model)->n_vocab, &sampler, error);
    const nib_watch quiet = {.progress = nib_console_watch_quietly};
    nib_generate_params params = {
        .n_max = r->n_max,
        .sampler = sampler,
        .on_text = r->cli->json ? nib_cli_keep_going : nib_cli_stream_text,
        .watch = &quiet,
    };
    if (!status) status = nib_generate(session, 0, ids.ids, (uint32_t)ids.n, &params, out, error);
    if (!status && nib_console_interrupted()) status = nib_cli_fail(error, NIB_ERR_INTERRUPTED, NULL, "interrupted");
    *n_prompt_tokens = (uint32_t)ids.n;
    nib_sampler_free(sampler);
    nib_session_free(session);
    nib_ids_fini(&ids);
    return status;
}

static void json_text(nib_json *json, const nib_generated *g, uint32_t n_prompt_tokens) {
    nib_json_string_n(json, "text", g->text ? g->text : "", g->n_bytes);
    nib_json_begin_array(json, "ids");
    for (size_t i = 0; i < g->ids.n; i++) nib_json_int(json, NULL, g->ids.ids[i]);
    nib_json_end_array(json);
    nib_json_uint(json, "n_tokens", g->ids.n);
    nib_json_string(json, "stopped", nib_stop_name(g->stop));
    nib_json_uint(json, "n_prompt_tokens", n_prompt_tokens);
    nib_json_number(json, "prompt_seconds", g->prompt_seconds);
    nib_json_number(json, "generate_seconds", g->generate_seconds);
}

static nib_status text_of_model(const run_of *r, unsigned m, nib_json *json, nib_error *error) {
    nib_generated g = {0};
    uint32_t n_prompt_tokens = 0;
    if (!json && r->n_models > 1)
        printf("%s%s== %s%s\n", m ? "\n" : "", nib_console_bold(), nib_cli_model_label(r->cli->args.words[m]).s,
               nib_console_plain());
    nib_status status = continue_text(r, r->models[m], &g, &n_prompt_tokens, error);
    if (!json && g.n_bytes) putchar('\n'), fflush(stdout);
    if (!status && json) json_text(json, &g, n_prompt_tokens);
    if (!status && r->cli->verbose)
        nib_console_note("%zu tokens in %s (%.1f tokens/s), prompt of %u in %s, stopped: %s", g.ids.n,
                         nib_show_seconds(g.generate_seconds).s,
                         g.generate_seconds > 0 ? (double)g.ids.n / g.generate_seconds : 0.0, n_prompt_tokens,
                         nib_show_seconds(g.prompt_seconds).s, nib_stop_name(g.stop));
    nib_generated_fini(&g);
    return status;
}

/* ---- The command ---------------------------------------------------------------------------------------------------------- */

static nib_status run_all(run_of *r, likely (*probs)[MOST_PROBS], uint32_t *n_probs, nib_error *error) {
    nib_json *json = NULL;
    bool wants_text = !r->n_probs || nib_cli_given(r->cli, "tokens");
    nib_status status = NIB_OK;
    for (unsigned m = 0; m < r->n_models && r->n_probs && !status; m++)
        status = probe(r, r->models[m], probs[m], &n_probs[m], error);
    if (status) return status;
    if (!r->cli->json && r->n_probs) print_probs(r, probs, n_probs);
    if (r->cli->json) {
        if (!(json = nib_cli_json_begin(r->cli, "generate", error))) return NIB_ERR_MEMORY;
        nib_json_string_n(json, "prompt", r->prompt, r->n_prompt);
        nib_json_begin_array(json, "models");
    }
    for (unsigned m = 0; m < r->n_models && !status; m++) {
        if (json) {
            nib_json_begin_object(json, NULL);
            nib_json_string(json, "model", r->cli->args.words[m]);
            if (r->n_probs) json_probs(json, r->models[m], probs[m], n_probs[m]);
        }
        if (wants_text) status = text_of_model(r, m, json, error);
        if (json) nib_json_end_object(json);
    }
    if (json && !status) {
        nib_json_end_array(json);
        return nib_cli_json_end(r->cli, json, error);
    }
    nib_json_free(json);
    return status;
}

static nib_status run(nib_cli *cli, nib_error *error) {
    run_of r = {.cli = cli, .n_models = cli->args.n_words};
    r.n_probs = (uint32_t)nib_cli_uint(cli, "probs");
    r.n_max = (uint32_t)nib_cli_uint(cli, "tokens");
    r.models = calloc(r.n_models, sizeof(nib_model *));
    likely(*probs)[MOST_PROBS] = calloc(r.n_models, sizeof *probs);
    uint32_t *n_probs = calloc(r.n_models, sizeof *n_probs);
    nib_status status = r.models && probs && n_probs ? get_prompt(&r, error) : nib_cli_no_memory(error);
    if (!status) status = nib_cli_open_models(cli, 0, r.models, r.n_models, error);
    if (!status) status = run_all(&r, probs, n_probs, error);
    for (unsigned m = 0; r.models && m < r.n_models; m++) nib_model_close(r.models[m]);
    free(r.models);
    free(probs);
    free(n_probs);
    free(r.owned);
    return status;
}

static const nib_option options[] = {
    {.name = "prompt", .letter = 'p', .kind = NIB_OPTION_TEXT, .value = "TEXT", .about = "text to continue"},
    {.name = "file",
     .letter = 'f',
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "read the text from FILE, - = standard input"},
    {.name = "tokens",
     .letter = 'n',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "128",
     .min = 1,
     .max = 16777216,
     .about = "most tokens to generate"},
    {.name = "probs",
     .kind = NIB_OPTION_UINT,
     .value = "K",
     .min = 1,
     .max = MOST_PROBS,
     .about = "show the K likeliest next tokens instead (with -n: also the text)"},
    NIB_KV_OPTION,
    NIB_SAMPLING_OPTIONS,
    {.name = NULL},
};

const nib_command nib_command_generate = {
    .name = "generate",
    .group = "use",
    .usage = "MODEL... -p TEXT [-n N] [--probs K]",
    .about = "continue a text; likeliest next tokens",
    .more = "The prompt gets BOS as the model asks, and control tokens in it count. Only the new text is printed.",
    .examples =
        "nibble generate demo -p \"Once upon a time\"\nnibble generate model.gguf -p \"The capital of France is\" -n "
        "8\n"
        "nibble generate a.gguf b.gguf -p \"2 + 2 =\" --probs 5\nnibble generate demo -p Hello --temp 0.8 --seed 7",
    .options = options,
    .min_words = 1,
    .max_words = 64,
    .run = run,
};
