/* nibble tokenize: text to token ids and back. */
#include "cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The text: the word, the file of -f, or stdin. *owned is what to free. */
static nib_status get_text(nib_cli *cli, const char **text, size_t *n_bytes, char **owned, nib_error *error) {
    const char *file = nib_cli_text(cli, "file");
    bool detokenize = nib_cli_switch(cli, "detokenize");
    if (file && cli->args.n_words > 1)
        return nib_cli_fail(error, NIB_ERR_USAGE, "give one of the two", "both a text and -f FILE were given");
    if (cli->args.n_words > 2 && !detokenize)
        return nib_cli_fail(error, NIB_ERR_USAGE, "put quotes around the text", "more than one text was given");
    if (cli->args.n_words > 1) {
        size_t n = 0;
        for (unsigned i = 1; i < cli->args.n_words; i++) n += strlen(cli->args.words[i]) + 1;
        if (!(*owned = malloc(n))) return nib_cli_no_memory(error);
        char *end = *owned;
        for (unsigned i = 1; i < cli->args.n_words; i++) {
            if (i > 1) *end++ = ' ';
            end = stpcpy(end, cli->args.words[i]);
        }
        *text = *owned;
        *n_bytes = (size_t)(end - *owned);
        return NIB_OK;
    }
    if (!file && isatty(STDIN_FILENO))
        return nib_cli_fail(error, NIB_ERR_USAGE, "give TEXT, or -f FILE, or pipe it in", "there is no text");
    nib_status status = nib_cli_read_file(file ? file : "-", owned, n_bytes, error);
    *text = *owned;
    return status;
}

static void print_pieces(const nib_tokenizer *tokenizer, const nib_ids *ids) {
    for (size_t i = 0; i < ids->n; i++) {
        nib_text piece = nib_token_piece(tokenizer, ids->ids[i], true);
        printf("%d\t", ids->ids[i]);
        for (size_t k = 0; k < piece.n_bytes; k++) {
            unsigned char c = (unsigned char)piece.data[k];
            if (c == '\n')
                fputs("\\n", stdout);
            else if (c == '\t')
                fputs("\\t", stdout);
            else if (c == '\\')
                fputs("\\\\", stdout);
            else if (c < 0x20 || c == 0x7f)
                printf("\\x%02x", c);
            else
                putchar(c);
        }
        putchar('\n');
    }
}

static nib_status write_json(nib_cli *cli, const nib_tokenizer *tokenizer, const nib_ids *ids, nib_error *error) {
    nib_json *json = nib_cli_json_begin(cli, "tokenize", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_string(json, "model", cli->args.words[0]);
    nib_json_begin_array(json, "ids");
    for (size_t i = 0; i < ids->n; i++) nib_json_int(json, NULL, ids->ids[i]);
    nib_json_end_array(json);
    if (nib_cli_switch(cli, "pieces")) {
        nib_json_begin_array(json, "pieces");
        for (size_t i = 0; i < ids->n; i++) {
            nib_text piece = nib_token_piece(tokenizer, ids->ids[i], true);
            nib_json_string_n(json, NULL, piece.data ? piece.data : "", piece.n_bytes);
        }
        nib_json_end_array(json);
    }
    return nib_cli_json_end(cli, json, error);
}

static nib_status detokenize(nib_cli *cli, const nib_tokenizer *tokenizer, const char *text, size_t n_bytes,
                             nib_error *error) {
    nib_ids ids = {0};
    const char *name = nib_cli_text(cli, "file") ? nib_cli_text(cli, "file") : "TEXT";
    nib_status status = nib_cli_parse_ids(text, n_bytes, name, nib_tokenizer_facts_of(tokenizer)->n_vocab, &ids, error);
    nib_json *json = NULL;
    size_t n = 0;
    char *all = NULL;
    if (!status && cli->json) {
        for (size_t i = 0; i < ids.n; i++)
            n += nib_token_piece(tokenizer, ids.ids[i], nib_cli_switch(cli, "special")).n_bytes;
        all = malloc(n + 1);
        if (!all) status = nib_cli_no_memory(error);
        n = 0;
    }
    for (size_t i = 0; i < ids.n && !status; i++) {
        nib_text piece = nib_token_piece(tokenizer, ids.ids[i], nib_cli_switch(cli, "special"));
        if (!piece.n_bytes) continue;
        if (!cli->json)
            fwrite(piece.data, 1, piece.n_bytes, stdout);
        else
            memcpy(all + n, piece.data, piece.n_bytes), n += piece.n_bytes;
    }
    if (!status && !cli->json && isatty(STDOUT_FILENO)) putchar('\n');
    if (!status && cli->json && !(json = nib_cli_json_begin(cli, "tokenize", error))) status = NIB_ERR_MEMORY;
    if (!status && cli->json) {
        nib_json_string_n(json, "text", all, n);
        status = nib_cli_json_end(cli, json, error);
    }
    free(all);
    nib_ids_fini(&ids);
    return status;
}

static nib_status run(nib_cli *cli, nib_error *error) {
    nib_gguf *gguf = NULL;
    nib_tokenizer *tokenizer = NULL;
    nib_ids ids = {0};
    char *owned = NULL;
    const char *text = NULL;
    size_t n_bytes = 0;
    bool special = nib_cli_switch(cli, "special");
    nib_status status = nib_cli_open_gguf(cli->args.words[0], &gguf, error);
    if (!status) status = nib_tokenizer_new(gguf, &tokenizer, error);
    if (!status) status = get_text(cli, &text, &n_bytes, &owned, error);
    if (status) goto done;
    if (nib_cli_switch(cli, "detokenize")) {
        status = detokenize(cli, tokenizer, text, n_bytes, error);
        goto done;
    }
    status = nib_tokenize(tokenizer, text, n_bytes, special, special, &ids, error);
    if (!status && cli->json)
        status = write_json(cli, tokenizer, &ids, error);
    else if (!status && nib_cli_switch(cli, "pieces"))
        print_pieces(tokenizer, &ids);
    else if (!status) {
        for (size_t i = 0; i < ids.n; i++) printf("%s%d", i ? " " : "", ids.ids[i]);
        putchar('\n');
    }
done:
    nib_ids_fini(&ids);
    free(owned);
    nib_tokenizer_free(tokenizer);
    nib_gguf_close(gguf);
    return status;
}

static const nib_option options[] = {
    {.name = "file",
     .letter = 'f',
     .kind = NIB_OPTION_TEXT,
     .value = "FILE",
     .about = "read the text from FILE, - = standard input"},
    {.name = "special",
     .kind = NIB_OPTION_SWITCH,
     .about = "add BOS/EOS as the model asks, and parse control tokens",
     .more = "By default neither happens. With --detokenize: show control tokens."},
    {.name = "pieces", .kind = NIB_OPTION_SWITCH, .about = "one line per token: id and text"},
    {.name = "detokenize", .letter = 'd', .kind = NIB_OPTION_SWITCH, .about = "the other way: ids to text"},
    {.name = NULL},
};

const nib_command nib_command_tokenize = {
    .name = "tokenize",
    .group = "use",
    .usage = "MODEL [TEXT|-f FILE]",
    .about = "text to token ids, and back",
    .more = "Ids come on one line, separated by spaces. Any GGUF file with a vocabulary will do.",
    .examples = "nibble tokenize demo \"Hello there\"\nnibble tokenize demo --pieces -f text.txt\n"
                "nibble tokenize demo \"Hello\" | nibble tokenize demo --detokenize -f -",
    .options = options,
    .min_words = 1,
    .max_words = 4096,
    .run = run,
};
