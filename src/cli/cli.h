/* What the subcommands of the program share: one table of options, one console, a few helpers.
 *
 *   main.c      finds the command, reads its options, prepares threads and console, turns the status into the exit code
 *   options.c   the parser over a command's table of options
 *   help.c      -h, --help, the man page and the completions, from the same tables
 *   console.c   everything that is printed: errors, warnings, progress, results; signals
 *   table.c     aligned columns, and numbers as people write them
 *   shared.c    opening models, refusing to overwrite, reading and writing whole files
 *   cmd_NAME.c  one subcommand: its options, its run function, and the nib_command at the end of the file
 *
 * stdout carries results and nothing else; everything said about them goes to stderr. The program uses only nibble.h. */
#ifndef NIB_CLI_H
#define NIB_CLI_H

#include "nibble.h"
#include <regex.h>
#include <stdio.h>

/* ---- Options ------------------------------------------------------------------------------------------------------ */

typedef enum nib_option_kind {
    NIB_OPTION_SWITCH, /* --x and --no-x; fallback "on" shows it as --no-x */
    NIB_OPTION_COUNT,  /* a switch that counts how often it is given */
    NIB_OPTION_TEXT,
    NIB_OPTION_UINT,   /* whole number, min..max, K M G Ki Mi Gi understood */
    NIB_OPTION_NUMBER, /* min..max */
    NIB_OPTION_TIME,   /* seconds; s m h understood */
    NIB_OPTION_CHOICE, /* one of values, separated by | */
} nib_option_kind;

/* One row of a command's table; the table ends with a row whose name is NULL. */
typedef struct nib_option {
    const char *name; /* without the dashes */
    char letter;      /* 0 = none */
    nib_option_kind kind;
    const char *value;    /* how its argument is called in help: "FILE"; for a choice "a|b|c" */
    const char *fallback; /* value when not given, NULL = none */
    double min, max;
    bool repeats;      /* every occurrence counts, not only the last */
    const char *about; /* one line */
    const char *more;  /* for --help and the manual; NULL = nothing to add */
} nib_option;

#define NIB_MAX_OPTIONS 48
#define NIB_MAX_REPEATS 64

typedef struct nib_option_value {
    bool given;
    const char *text; /* last occurrence or the fallback */
    double number;
    uint64_t whole;
    const char *all[NIB_MAX_REPEATS];
    unsigned n_all;
} nib_option_value;

typedef struct nib_args {
    const nib_option *options[NIB_MAX_OPTIONS];
    nib_option_value values[NIB_MAX_OPTIONS];
    unsigned n_options, n_own; /* the command's own come first */
    const char **words;        /* what is not an option; room for argc */
    unsigned n_words;
    int help; /* 1: -h, 2: --help was seen; the rest of the line was not read */
} nib_args;

/* ---- Commands ------------------------------------------------------------------------------------------------------- */

typedef struct nib_cli nib_cli;

typedef struct nib_command {
    const char *name, *group;
    const char *usage;       /* what follows "nibble NAME": "MODEL [--to FORMAT]" */
    const char *about;       /* one line */
    const char *more;        /* paragraphs for --help */
    const char *examples;    /* one a line; the first is the one that `nibble` alone shows */
    const char *output;      /* what -o is; NULL: the command takes neither -o nor --force */
    bool output_is_document; /* -o is the JSON document */
    const nib_option *options;
    unsigned min_words, max_words;
    bool plain;       /* documentation: no threads, no JSON */
    bool own_threads; /* -t is an option of its own: the pool at first has one thread per core */
    nib_status (*run)(nib_cli *cli, nib_error *error);
} nib_command;

/* In the order of commands.def; NULL past the last. */
const nib_command *nib_cli_command_at(unsigned index);
const nib_command *nib_cli_command_find(const char *name);

struct nib_cli {
    const nib_command *command;
    nib_args args;
    nib_pool *pool; /* NULL for plain commands */
    nib_watch watch;
    bool json;            /* the document goes to stdout, nothing else does */
    bool document_output; /* -o was given and is for the document */
    bool wants_json;      /* one of the two */
    bool quiet;
    unsigned verbose;
};

/* The pool of a command with so many threads, 0: one per core. Far too many are reduced, with a warning. */
nib_status nib_cli_make_pool(nib_cli *cli, uint64_t n_threads, nib_error *error);

/* Collects the command's own and the common options that apply to it. */
void nib_cli_collect_options(const nib_command *command, nib_args *args);
/* argv: (argc) arguments after the command's name. */
nib_status nib_cli_parse(const nib_command *command, int argc, char **argv, nib_args *args, nib_error *error);

bool nib_cli_given(const nib_cli *cli, const char *name);
bool nib_cli_switch(const nib_cli *cli, const char *name);
const char *nib_cli_text(const nib_cli *cli, const char *name); /* NULL if not given and without default */
uint64_t nib_cli_uint(const nib_cli *cli, const char *name);
double nib_cli_number(const nib_cli *cli, const char *name);
const nib_option_value *nib_cli_value(const nib_cli *cli, const char *name);

/* The nearest of n names, NULL if none is near. */
typedef struct nib_nearest {
    const char *name;
    unsigned distance;
} nib_nearest;
void nib_cli_nearest_offer(nib_nearest *nearest, const char *wanted, const char *offer);

/* ---- Help ------------------------------------------------------------------------------------------------------------- */

void nib_cli_print_overview(void);
void nib_cli_print_help(const nib_command *command, bool full);
void nib_cli_print_man(const nib_command *command, FILE *to); /* NULL: all commands */
bool nib_cli_print_completion(const char *shell);

/* ---- Console -------------------------------------------------------------------------------------------------------------- */

/* Signals, and what the streams are; before anything is printed. */
void nib_console_begin(void);
/* --color, --progress, -q, once known. */
void nib_console_configure(const char *color, const char *progress, bool quiet, bool json);
/* Three lines on stderr, and the same as JSON on stdout if json is set. */
void nib_console_error(const nib_error *error);
NIB_PRINTF(1, 2) void nib_console_warn(const char *format, ...);
/* Something worth knowing that is no result; not with -q. */
NIB_PRINTF(1, 2) void nib_console_note(const char *format, ...);
/* Members of a nib_watch. */
bool nib_console_progress(void *user, const nib_progress *progress);
void nib_console_watch_warn(void *user, const char *message);
/* Progress nobody sees, for work whose text is on the screen: only stops when interrupted. */
bool nib_console_watch_quietly(void *user, const nib_progress *progress);
void nib_console_erase_progress(void);
/* Was an interruption asked for? Forget it with _clear. */
bool nib_console_interrupted(void);
void nib_console_clear_interrupt(void);
/* Bold text for stdout ("" without colour). */
const char *nib_console_bold(void);
const char *nib_console_plain(void);
bool nib_console_utf8(void);
const char *nib_console_plus_minus(void);
/* Columns people see at once: the terminal's, at most 100. */
unsigned nib_console_columns(void);
/* Flushes stdout. NIB_ERR_IO if what was printed did not arrive; a reader that went away (closed pipe) is no error. */
nib_status nib_console_finish(nib_error *error);
/* Did stdout stop taking text? */
bool nib_console_stdout_gone(void);

/* Fills error. hint may be NULL. Returns status. */
NIB_PRINTF(4, 5)
nib_status nib_cli_fail(nib_error *error, nib_status status, const char *hint, const char *format, ...);
/* Names the file of an error that was just filled. */
nib_status nib_cli_fail_in(nib_error *error, const char *file, int64_t offset, const char *field);
nib_status nib_cli_no_memory(nib_error *error);

/* Prints text of unknown origin: control characters and broken UTF-8 replaced, cut to max columns (0 = no limit). */
void nib_print_safe(FILE *to, const char *text, size_t n_bytes, size_t max_columns);

/* ---- Tables and numbers ------------------------------------------------------------------------------------------------- */

typedef struct nib_table {
    unsigned n_columns;
    const char *align; /* one of l r a column */
    char **cells;      /* (n_cells), the first n_columns are the heads */
    size_t n_cells, capacity;
    bool failed;
} nib_table;

/* heads: separated by '|'. */
void nib_table_init(nib_table *table, const char *align, const char *heads);
void nib_table_fini(nib_table *table);
/* The next cell, row by row. */
NIB_PRINTF(2, 3) void nib_table_add(nib_table *table, const char *format, ...);
void nib_table_print(const nib_table *table, FILE *to);
typedef enum nib_table_style { NIB_TABLE_PLAIN, NIB_TABLE_CSV, NIB_TABLE_MARKDOWN } nib_table_style;
void nib_table_print_as(const nib_table *table, nib_table_style style, FILE *to);

typedef struct nib_short_text {
    char s[48];
} nib_short_text;
nib_short_text nib_show_bytes(uint64_t n); /* "11.7 MB" */
nib_short_text nib_show_count(uint64_t n); /* "5.77 M" */
nib_short_text nib_show_seconds(double s); /* "41 s", "3 min 20 s" */
/* Value and uncertainty with the digits the uncertainty warrants: "1.5437 ± 0.0074"; "-" for NaN. */
nib_short_text nib_show_pm(double value, double err);

/* A histogram on a log scale, one character a column of at most 64: eighth blocks, or ASCII where the locale has none. */
typedef struct nib_sparkline {
    char s[4 * 64];
} nib_sparkline;
nib_sparkline nib_show_histogram(const uint64_t *counts, unsigned n_bins, unsigned n_columns);

/* ---- Shared by the commands ----------------------------------------------------------------------------------------------- */

/* Is this something nibble opens? NIB_ERR_UNSUPPORTED for hf: names and folders. */
nib_status nib_cli_check_model(const char *path, nib_error *error);
nib_status nib_cli_open_gguf(const char *path, nib_gguf **out, nib_error *error);
nib_status nib_cli_open_model(nib_cli *cli, const char *path, nib_model **out, nib_error *error);
/* Opens words first..last of the command line; out: (n), NULL entries on failure. */
nib_status nib_cli_open_models(nib_cli *cli, unsigned first, nib_model **out, unsigned n, nib_error *error);
/* Short name of a model for tables: its file without folder and ".gguf". */
nib_short_text nib_cli_model_label(const char *path);

/* Tensors whose name matches --tensor; all if it was not given. NIB_ERR_USAGE: not a regular expression. */
typedef struct nib_cli_filter {
    regex_t regex;
    bool is_set;
} nib_cli_filter;
nib_status nib_cli_filter_open(const nib_cli *cli, nib_cli_filter *filter, nib_error *error);
bool nib_cli_filter_takes(void *filter, const nib_tensor *tensor);
void nib_cli_filter_fini(nib_cli_filter *filter);

/* May this path be written? NIB_ERR_USAGE if it exists (unless force), is an input, or is not a regular file. */
nib_status nib_cli_check_output(const char *path, bool force, const char *const *inputs, unsigned n_inputs,
                                nib_error *error);
/* Reads a whole file or, for "-", stdin. text is NUL-terminated and malloc'ed. */
nib_status nib_cli_read_file(const char *path, char **text, size_t *n_bytes, nib_error *error);

/* Output that appears under its name only when complete. "-" is stdout. */
typedef struct nib_cli_output {
    FILE *stream;
    const char *path;
    char *partial; /* NULL for stdout */
} nib_cli_output;
nib_status nib_cli_output_open(nib_cli_output *output, const char *path, nib_error *error);
nib_status nib_cli_output_write(nib_cli_output *output, const void *data, size_t n_bytes, nib_error *error);
nib_status nib_cli_output_commit(nib_cli_output *output, nib_error *error);
void nib_cli_output_discard(nib_cli_output *output);

/* Appends the decimal ids of a text, separated by white space; name: where the text is from.
 * NIB_ERR_CORRUPT with the position of what is not an id below n_vocab. */
nib_status nib_cli_parse_ids(const char *text, size_t n_bytes, const char *name, uint32_t n_vocab, nib_ids *out,
                             nib_error *error);

/* A list of recipes and sets of them (nib_study_levels), separated by commas. NIB_ERR_USAGE if one is unknown or there twice. */
nib_status nib_cli_parse_recipes(const char *list, const nib_recipe **out, unsigned most, unsigned *n,
                                 nib_error *error);

/* Begins the command's document "nibble.NAME/1"; NULL and the error without memory. */
nib_json *nib_cli_json_begin(nib_cli *cli, const char *name, nib_error *error);
/* Ends the document and sends it where the options say: stdout, the file of -o, or both. Frees json. */
nib_status nib_cli_json_end(nib_cli *cli, nib_json *json, nib_error *error);

/* How keys and values are kept: for every command that runs a model as it is used. */
#define NIB_KV_OPTION                                                                                         \
    {                                                                                                         \
        .name = "kv", .kind = NIB_OPTION_CHOICE, .value = "f16|q8_0", .fallback = "f16",                      \
        .about = "format of the cached keys and values",                                                      \
        .more = "q8_0 takes about half the memory and is not lossless. Heads must be multiples of 32 values." \
    }
nib_kv nib_cli_kv(const nib_cli *cli);

/* Options of chat and generate that shape the choice of the next token. */
#define NIB_SAMPLING_OPTIONS                                                                                  \
    {.name = "temp",                                                                                          \
     .kind = NIB_OPTION_NUMBER,                                                                               \
     .value = "T",                                                                                            \
     .fallback = "0",                                                                                         \
     .min = 0,                                                                                                \
     .max = 100,                                                                                              \
     .about = "temperature; 0 = always the likeliest token",                                                  \
     .more = "Above 0 tokens are drawn at random, from fewer candidates with --top-k, --top-p and --min-p."}, \
        {.name = "top-k",                                                                                     \
         .kind = NIB_OPTION_UINT,                                                                             \
         .value = "K",                                                                                        \
         .fallback = "40",                                                                                    \
         .min = 0,                                                                                            \
         .max = 1e9,                                                                                          \
         .about = "draw from the K likeliest tokens; 0 = all"},                                               \
        {.name = "top-p",                                                                                     \
         .kind = NIB_OPTION_NUMBER,                                                                           \
         .value = "P",                                                                                        \
         .fallback = "0.95",                                                                                  \
         .min = 0,                                                                                            \
         .max = 1,                                                                                            \
         .about = "draw from the likeliest tokens that together reach probability P"},                        \
        {.name = "min-p",                                                                                     \
         .kind = NIB_OPTION_NUMBER,                                                                           \
         .value = "P",                                                                                        \
         .fallback = "0.05",                                                                                  \
         .min = 0,                                                                                            \
         .max = 1,                                                                                            \
         .about = "drop tokens less likely than P times the likeliest"},                                      \
    {                                                                                                         \
        .name = "seed", .kind = NIB_OPTION_UINT, .value = "N", .fallback = "0", .min = 0, .max = 9e18,        \
        .about = "seed of the draw; the same seed gives the same text"                                        \
    }
nib_status nib_cli_new_sampler(const nib_cli *cli, uint32_t n_vocab, nib_sampler **out, nib_error *error);
/* nib_generate_params.on_text: streams to stdout; stops when interrupted or when nobody reads. */
bool nib_cli_stream_text(void *user, const char *text, size_t n_bytes);
/* The same without printing. */
bool nib_cli_keep_going(void *user, const char *text, size_t n_bytes);

#endif
