/* nibble logits: raw float32 logits of every token, (n_tokens, n_vocab), little-endian, for comparing implementations. */
#include "cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS_RUN  512 /* tokens through the layers at once */
#define ROWS_HEAD 32  /* tokens through the head at once: bounds memory for large vocabularies */

typedef struct buffers {
    float *hidden; /* (ROWS_RUN, n_embd) */
    float *logits; /* (ROWS_HEAD, n_vocab) */
} buffers;

static nib_status run_piece(nib_session *session, const nib_model_facts *facts, const nib_ids *ids, uint32_t first,
                            uint32_t n, buffers *b, nib_cli_output *output, nib_error *error) {
    nib_segment segment = {.pos = first, .n = n, .ids = ids->ids + first};
    nib_status status = nib_session_run(session, &segment, 1, b->hidden, error);
    for (uint32_t row = 0; row < n && !status; row += ROWS_HEAD) {
        uint32_t n_rows = n - row < ROWS_HEAD ? n - row : ROWS_HEAD;
        status = nib_session_head(session, b->hidden + (size_t)row * facts->n_embd, n_rows, b->logits, error);
        if (!status)
            status = nib_cli_output_write(output, b->logits, (size_t)n_rows * facts->n_vocab * sizeof(float), error);
        if (!status && nib_console_interrupted())
            status = nib_cli_fail(error, NIB_ERR_INTERRUPTED, NULL, "interrupted");
    }
    return status;
}

static nib_status write_all(nib_cli *cli, const nib_model *model, const nib_ids *ids, const char *path,
                            nib_error *error) {
    const nib_model_facts *facts = nib_model_facts_of(model);
    uint32_t n = (uint32_t)ids->n;
    nib_session_params params = {.n_ctx = n, .n_batch = ROWS_RUN, .exact = nib_cli_switch(cli, "exact")};
    nib_session *session = NULL;
    nib_cli_output output = {0};
    double began = nib_now();
    buffers b = {
        .hidden = calloc((size_t)ROWS_RUN * facts->n_embd, sizeof(float)),
        .logits = calloc((size_t)ROWS_HEAD * facts->n_vocab, sizeof(float)),
    };
    nib_status status = b.hidden && b.logits ? NIB_OK : nib_cli_no_memory(error);
    if (!status) status = nib_session_new(model, cli->pool, &params, &session, error);
    if (!status) status = nib_cli_output_open(&output, path, error);
    for (uint32_t done = 0; done < n && !status;) {
        uint32_t piece = n - done < ROWS_RUN ? n - done : ROWS_RUN;
        status = run_piece(session, facts, ids, done, piece, &b, &output, error);
        done += piece;
        double seconds = nib_now() - began;
        nib_progress progress = {"logits", done, n, seconds, seconds / done * (n - done)};
        nib_console_progress(NULL, &progress);
    }
    if (!status) status = nib_cli_output_commit(&output, error);
    if (status) nib_cli_output_discard(&output);
    nib_console_erase_progress();
    nib_session_free(session);
    free(b.hidden);
    free(b.logits);
    return status;
}

static nib_status read_ids(nib_cli *cli, const nib_model *model, nib_ids *ids, nib_error *error) {
    const char *path = nib_cli_text(cli, "ids");
    char *text = NULL;
    size_t n_bytes = 0;
    nib_status status = nib_cli_read_file(path, &text, &n_bytes, error);
    if (!status) status = nib_cli_parse_ids(text, n_bytes, path, nib_model_facts_of(model)->n_vocab, ids, error);
    free(text);
    if (!status && (ids->n == 0 || ids->n > 16777216)) {
        nib_cli_fail(error, NIB_ERR_CORRUPT, "decimal ids separated by white space",
                     ids->n ? "more than 16777216 token ids" : "there are no token ids in the file");
        status = nib_cli_fail_in(error, path, -1, NULL);
    }
    return status;
}

static nib_status check_options(nib_cli *cli, const char *path, nib_error *error) {
    const char *inputs[] = {cli->args.words[0], nib_cli_text(cli, "ids")};
    if (!inputs[1])
        return nib_cli_fail(error, NIB_ERR_USAGE, "a file of token ids, or - for standard input",
                            "--ids FILE is missing");
    if (strcmp(path, "-") != 0) return nib_cli_check_output(path, nib_cli_switch(cli, "force"), inputs, 2, error);
    if (isatty(STDOUT_FILENO))
        return nib_cli_fail(error, NIB_ERR_USAGE, "give -o OUT.f32", "logits are binary and not for a terminal");
    if (cli->json)
        return nib_cli_fail(error, NIB_ERR_USAGE, "give -o OUT.f32", "logits and --json cannot share standard output");
    return NIB_OK;
}

static nib_status run(nib_cli *cli, nib_error *error) {
    nib_model *model = NULL;
    nib_ids ids = {0};
    const char *path = nib_cli_text(cli, "output") ? nib_cli_text(cli, "output") : "-";
    nib_status status = check_options(cli, path, error);
    if (!status) status = nib_cli_open_model(cli, cli->args.words[0], &model, error);
    if (!status) status = read_ids(cli, model, &ids, error);
    if (status) goto done;
    const nib_model_facts *facts = nib_model_facts_of(model);
    if (facts->n_ctx_train && ids.n > facts->n_ctx_train)
        nib_console_warn("%zu tokens are more than the %u the model was made for", ids.n, facts->n_ctx_train);
    status = write_all(cli, model, &ids, path, error);
    if (!status && cli->json) {
        nib_json *json = nib_cli_json_begin(cli, "logits", error);
        if (!json)
            status = NIB_ERR_MEMORY;
        else {
            nib_json_string(json, "model", cli->args.words[0]);
            nib_json_string(json, "output", path);
            nib_json_uint(json, "n_tokens", ids.n);
            nib_json_uint(json, "n_vocab", facts->n_vocab);
            nib_json_bool(json, "exact", nib_cli_switch(cli, "exact"));
            nib_json_uint(json, "bytes", (uint64_t)ids.n * facts->n_vocab * sizeof(float));
            status = nib_cli_json_end(cli, json, error);
        }
    } else if (!status && strcmp(path, "-") != 0) {
        printf("wrote %s: %zu tokens x %u logits, float32 (%s)\n", path, ids.n, facts->n_vocab,
               nib_show_bytes((uint64_t)ids.n * facts->n_vocab * sizeof(float)).s);
    }
done:
    nib_ids_fini(&ids);
    nib_model_close(model);
    return status;
}

static const nib_option options[] = {
    {.name = "ids",
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "token ids, decimal, separated by white space; - = stdin"},
    {.name = "exact", .kind = NIB_OPTION_SWITCH, .about = "decoded weights in f32, f32 cache, sums in a fixed order"},
    {.name = NULL},
};

const nib_command nib_command_logits = {
    .name = "logits",
    .group = "measure",
    .usage = "MODEL --ids FILE [-o OUT.f32] [--exact]",
    .about = "raw logits of every token",
    .more = "Row i holds the logits after token i: float32, little-endian, (n_tokens, n_vocab), no header.",
    .examples = "nibble logits demo --ids ids.txt -o out.f32\n"
                "nibble tokenize demo \"Hello there\" | nibble logits demo --ids - --exact -o out.f32",
    .output = "file of the logits (default: standard output)",
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
