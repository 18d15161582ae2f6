/* nibble chat: talk to a model in the terminal. The whole conversation is laid out again for every turn, and what of it is
 * already in the cache is not run again. */
#include "cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct turn {
    const char *role;
    char *text;
    size_t n_bytes;
} turn;

typedef struct talk {
    nib_cli *cli;
    nib_model *model;
    const nib_tokenizer *tokenizer;
    nib_chat_shape shape;
    nib_session *session;
    nib_sampler *sampler;
    uint32_t n_ctx, n_max;
    turn *turns;
    size_t n_turns, capacity;
    nib_ids cached; /* what the cache holds */
} talk;

/* ---- The conversation ------------------------------------------------------------------------------------------------------ */

static nib_status add_turn(talk *t, const char *role, const char *text, size_t n_bytes, nib_error *error) {
    if (t->n_turns == t->capacity) {
        size_t capacity = t->capacity ? 2 * t->capacity : 16;
        turn *turns = realloc(t->turns, capacity * sizeof *turns);
        if (!turns) return nib_cli_no_memory(error);
        t->turns = turns;
        t->capacity = capacity;
    }
    char *copy = malloc(n_bytes + 1);
    if (!copy) return nib_cli_no_memory(error);
    memcpy(copy, text, n_bytes);
    copy[n_bytes] = '\0';
    t->turns[t->n_turns++] = (turn){role, copy, n_bytes};
    return NIB_OK;
}

/* Forgets everything said, but not what --system said. */
static nib_status start_over(talk *t, nib_error *error) {
    const char *system = nib_cli_text(t->cli, "system");
    while (t->n_turns) free(t->turns[--t->n_turns].text);
    return system ? add_turn(t, "system", system, strlen(system), error) : NIB_OK;
}

static nib_status lay_out(const talk *t, nib_ids *out, nib_error *error) {
    nib_status status = NIB_OK;
    out->n = 0;
    for (size_t i = 0; i < t->n_turns && !status; i++)
        status = nib_chat_add_turn(t->tokenizer, t->shape, i == 0, t->turns[i].role, t->turns[i].text,
                                   t->turns[i].n_bytes, out, error);
    return status ? status : nib_chat_open_answer(t->tokenizer, t->shape, out, error);
}

static nib_status remember(talk *t, const nib_ids *ids, const nib_ids *generated, nib_error *error) {
    /* The last generated token may not have been run. */
    size_t n_said = generated->n ? generated->n - 1 : 0, n = ids->n + n_said;
    int32_t *all = malloc((n ? n : 1) * sizeof *all);
    if (!all) return nib_cli_no_memory(error);
    memcpy(all, ids->ids, ids->n * sizeof *all);
    if (n_said) memcpy(all + ids->n, generated->ids, n_said * sizeof *all);
    nib_ids_fini(&t->cached);
    t->cached = (nib_ids){all, n, n};
    return NIB_OK;
}

/* One answer to the conversation so far; it becomes a turn. */
static nib_status answer(talk *t, nib_generated *out, nib_error *error) {
    nib_ids ids = {0};
    size_t n_past = 0;
    nib_status status = lay_out(t, &ids, error);
    if (!status && ids.n + 1 > t->n_ctx)
        status = nib_cli_fail(error, NIB_ERR_USAGE, "raise --ctx, or start over with /reset",
                              "the conversation has %zu tokens and the context holds %u", ids.n, t->n_ctx);
    if (status) goto done;
    while (n_past < t->cached.n && n_past + 1 < ids.n && t->cached.ids[n_past] == ids.ids[n_past]) n_past++;
    uint32_t room = t->n_ctx - (uint32_t)ids.n;
    const nib_watch quiet = {.progress = nib_console_watch_quietly};
    nib_generate_params params = {
        .n_max = t->n_max && t->n_max < room ? t->n_max : room,
        .sampler = t->sampler,
        .on_text = t->cli->json ? nib_cli_keep_going : nib_cli_stream_text,
        .watch = &quiet,
    };
    t->cached.n = 0;
    status =
        nib_generate(t->session, (uint32_t)n_past, ids.ids + n_past, (uint32_t)(ids.n - n_past), &params, out, error);
    if (!status) status = remember(t, &ids, &out->ids, error);
    if (!status) status = add_turn(t, "assistant", out->text ? out->text : "", out->n_bytes, error);
    if (!status && t->cli->verbose)
        nib_console_note("\n%zu tokens, %.1f tokens/s, stopped: %s; %zu of %u in the context", out->ids.n,
                         out->generate_seconds > 0 ? (double)out->ids.n / out->generate_seconds : 0.0,
                         nib_stop_name(out->stop), ids.n + out->ids.n, t->n_ctx);
done:
    nib_ids_fini(&ids);
    return status;
}

/* ---- Once -------------------------------------------------------------------------------------------------------------------- */

static nib_status say_once(talk *t, const char *prompt, nib_error *error) {
    nib_generated g = {0};
    nib_status status = add_turn(t, "user", prompt, strlen(prompt), error);
    if (!status) status = answer(t, &g, error);
    if (!t->cli->json && g.n_bytes) putchar('\n');
    if (!status && nib_console_interrupted()) status = nib_cli_fail(error, NIB_ERR_INTERRUPTED, NULL, "interrupted");
    if (!status && g.stop == NIB_STOP_EMPTY) nib_console_warn("the model said nothing");
    if (!status && t->cli->json) {
        nib_json *json = nib_cli_json_begin(t->cli, "chat", error);
        if (!json)
            status = NIB_ERR_MEMORY;
        else {
            nib_json_string(json, "model", t->cli->args.words[0]);
            nib_json_string(json, "prompt", prompt);
            nib_json_string_n(json, "text", g.text ? g.text : "", g.n_bytes);
            nib_json_uint(json, "n_tokens", g.ids.n);
            nib_json_string(json, "stopped", nib_stop_name(g.stop));
            nib_json_number(json, "prompt_seconds", g.prompt_seconds);
            nib_json_number(json, "generate_seconds", g.generate_seconds);
            status = nib_cli_json_end(t->cli, json, error);
        }
    }
    nib_generated_fini(&g);
    return status;
}

/* ---- Line by line -------------------------------------------------------------------------------------------------------------- */

/* One line of the user's: true if the talk goes on. */
static nib_status take_line(talk *t, const char *line, size_t n, bool *goes_on, nib_error *error) {
    nib_generated g = {0};
    if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0) {
        *goes_on = false;
        return NIB_OK;
    }
    if (strcmp(line, "/reset") == 0) return start_over(t, error);
    nib_status status = add_turn(t, "user", line, n, error);
    if (!status) status = answer(t, &g, error);
    putchar('\n');
    fflush(stdout);
    if (status == NIB_ERR_USAGE) {
        /* The context is full: say so and go on without what was said before. */
        nib_console_warn("%s; starting over", error->message);
        status = start_over(t, error);
    }
    if (nib_console_interrupted()) nib_console_clear_interrupt(); /* the answer was stopped, not the talk */
    nib_generated_fini(&g);
    return status;
}

static nib_status converse(talk *t, nib_error *error) {
    char *line = NULL;
    size_t capacity = 0;
    bool goes_on = true, by_hand = isatty(STDIN_FILENO);
    nib_status status = NIB_OK;
    if (by_hand) nib_console_note("%s; /reset starts over, /exit or Ctrl-D ends", nib_model_facts_of(t->model)->name);
    while (goes_on && !status && !nib_console_stdout_gone()) {
        if (by_hand) fputs("> ", stderr);
        errno = 0;
        ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0) break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = '\0';
        if (n > 0) status = take_line(t, line, (size_t)n, &goes_on, error);
    }
    if (by_hand) fputc('\n', stderr);
    if (!status && nib_console_interrupted()) status = nib_cli_fail(error, NIB_ERR_INTERRUPTED, NULL, "interrupted");
    free(line);
    return status;
}

/* ---- The command ---------------------------------------------------------------------------------------------------------------- */

static nib_status prepare(talk *t, nib_error *error) {
    nib_cli *cli = t->cli;
    nib_status status = nib_cli_open_model(cli, cli->args.words[0], &t->model, error);
    if (status) return status;
    t->tokenizer = nib_model_text_tokenizer(t->model, error);
    if (!t->tokenizer) return error && error->code ? error->code : NIB_ERR_CORRUPT;
    t->shape = nib_chat_shape_of(nib_model_gguf(t->model), t->tokenizer);
    if (t->shape == NIB_CHAT_NONE) {
        nib_cli_fail(error, NIB_ERR_UNSUPPORTED, "nibble generate continues plain text with it",
                     "nibble does not know how this model chats");
        return nib_cli_fail_in(error, cli->args.words[0], -1, "tokenizer.chat_template");
    }
    uint32_t n_train = nib_model_facts_of(t->model)->n_ctx_train;
    t->n_ctx = nib_cli_given(cli, "ctx")   ? (uint32_t)nib_cli_uint(cli, "ctx")
               : n_train && n_train < 4096 ? n_train
                                           : 4096;
    t->n_max = (uint32_t)nib_cli_uint(cli, "tokens");
    nib_session_params params = {.n_ctx = t->n_ctx, .kv = nib_cli_kv(cli)};
    status = nib_session_new(t->model, cli->pool, &params, &t->session, error);
    if (!status) status = nib_cli_new_sampler(cli, nib_model_facts_of(t->model)->n_vocab, &t->sampler, error);
    return status ? status : start_over(t, error);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    talk t = {.cli = cli};
    const char *prompt = nib_cli_text(cli, "prompt");
    nib_status status = NIB_OK;
    if (cli->json && !prompt)
        status =
            nib_cli_fail(error, NIB_ERR_USAGE, "give -p TEXT with --json", "a conversation is not one JSON document");
    if (!status) status = prepare(&t, error);
    if (!status) status = prompt ? say_once(&t, prompt, error) : converse(&t, error);
    while (t.n_turns) free(t.turns[--t.n_turns].text);
    free(t.turns);
    nib_ids_fini(&t.cached);
    nib_sampler_free(t.sampler);
    nib_session_free(t.session);
    nib_model_close(t.model);
    return status;
}

static const nib_option options[] = {
    {.name = "prompt",
     .letter = 'p',
     .kind = NIB_OPTION_TEXT,
     .value = "TEXT",
     .about = "say this once, print the answer and exit"},
    {.name = "system", .kind = NIB_OPTION_TEXT, .value = "TEXT", .about = "instructions before the conversation"},
    {.name = "tokens",
     .letter = 'n',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "0",
     .min = 0,
     .max = 16777216,
     .about = "most tokens of an answer; 0 = what the context holds"},
    {.name = "ctx",
     .letter = 'c',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .min = 16,
     .max = 16777216,
     .about = "tokens the conversation may have (default: the model's, at most 4096)"},
    NIB_KV_OPTION,
    NIB_SAMPLING_OPTIONS,
    {.name = NULL},
};

const nib_command nib_command_chat = {
    .name = "chat",
    .group = "use",
    .usage = "MODEL [-p TEXT]",
    .about = "talk to a model in the terminal",
    .more = "Every line is a turn; Ctrl-C stops an answer, /reset starts over, /exit or Ctrl-D ends.\n"
            "Speaks ChatML and Llama-3. What you type is never read as control tokens.",
    .examples = "nibble chat demo\nnibble chat model.gguf -p \"What is the capital city of England, UK?\"\n"
                "nibble chat model.gguf --temp 0.8 --system \"Answer briefly.\"",
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
