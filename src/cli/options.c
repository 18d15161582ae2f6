/* Reading the command line by a command's table of options.
 *
 *   --name VALUE  --name=VALUE  -l VALUE  -lVALUE  --switch  --no-switch  -qv
 *
 * Options and words come in any order; "--" ends the options. The last occurrence wins, except where an option repeats.
 * Every mistake is NIB_ERR_USAGE with the nearest thing that would have been right. */
#include "cli.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nib_option common_options[] = {
    {.name = "threads",
     .letter = 't',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .min = 1,
     .max = 1e9,
     .about = "worker threads (default: one per physical core)",
     .more = "Results do not depend on it. Numbers far above what the machine has are reduced, with a warning."},
    {.name = "cpu",
     .kind = NIB_OPTION_TEXT,
     .value = "LEVEL",
     .about = "force an instruction-set level (nibble cpu lists them)",
     .more = "The environment variable NIBBLE_CPU does the same."},
    {.name = "json", .kind = NIB_OPTION_SWITCH, .about = "print one JSON document on stdout and nothing else there"},
    {.name = "quiet", .letter = 'q', .kind = NIB_OPTION_COUNT, .about = "no progress, notes or warnings"},
    {.name = "verbose", .letter = 'v', .kind = NIB_OPTION_COUNT, .about = "more detail"},
    {.name = "color",
     .kind = NIB_OPTION_CHOICE,
     .value = "auto|always|never",
     .fallback = "auto",
     .about = "colours (auto: on a terminal, unless NO_COLOR is set)"},
    {.name = "progress",
     .kind = NIB_OPTION_CHOICE,
     .value = "auto|always|never|json",
     .fallback = "auto",
     .about = "progress on stderr (auto: on a terminal)",
     .more = "json: one object a line, for programs."},
    {.name = NULL},
};

static const nib_option output_options[] = {
    {.name = "output", .letter = 'o', .kind = NIB_OPTION_TEXT, .value = "PATH", .about = "where the result goes"},
    {.name = "force", .kind = NIB_OPTION_SWITCH, .about = "replace an output that exists (never an input)"},
    {.name = NULL},
};

/* A command's own option takes the place of a common one of its name. */
static void collect(nib_args *args, const nib_option *options) {
    for (; options && options->name && args->n_options < NIB_MAX_OPTIONS; options++) {
        bool is_there = false;
        for (unsigned i = 0; i < args->n_options; i++)
            is_there = is_there || strcmp(args->options[i]->name, options->name) == 0;
        if (!is_there) args->options[args->n_options++] = options;
    }
}

void nib_cli_collect_options(const nib_command *command, nib_args *args) {
    args->n_options = 0;
    collect(args, command->options);
    if (command->output) collect(args, output_options);
    args->n_own = args->n_options;
    if (!command->plain) collect(args, common_options);
}

/* ---- Nearest names -------------------------------------------------------------------------------------------------- */

/* Edits (insert, delete, replace, swap neighbours) between two short names. */
static unsigned edit_distance(const char *a, const char *b) {
    enum { LONGEST = 63 };
    size_t n_a = strlen(a), n_b = strlen(b);
    unsigned rows[3][LONGEST + 1];
    if (n_a > LONGEST || n_b > LONGEST) return LONGEST;
    for (unsigned j = 0; j <= n_b; j++) rows[0][j] = j;
    for (unsigned i = 1; i <= n_a; i++) {
        unsigned *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = i;
        for (unsigned j = 1; j <= n_b; j++) {
            unsigned best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && above2[j - 2] + 1 < best) best = above2[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[n_a % 3][n_b];
}

void nib_cli_nearest_offer(nib_nearest *nearest, const char *wanted, const char *offer) {
    size_t n_wanted = strlen(wanted), n_offer = strlen(offer);
    unsigned distance = edit_distance(wanted, offer);
    /* A beginning is near however much is missing. */
    if (n_wanted >= 2 && n_wanted < n_offer && strncmp(wanted, offer, n_wanted) == 0) distance = 1;
    size_t longest = n_wanted > n_offer ? n_wanted : n_offer;
    if (distance * 5 > longest * 2 + 2) return;
    if (!nearest->name || distance < nearest->distance) *nearest = (nib_nearest){offer, distance};
}

/* ---- Values -------------------------------------------------------------------------------------------------------------- */

/* A factor that may follow a number; 0 if the text is not one. */
static double suffix_factor(nib_option_kind kind, const char *s) {
    static const struct {
        const char *name;
        double factor;
    } sizes[] = {{"K", 1e3},     {"k", 1e3},        {"M", 1e6},          {"G", 1e9},
                 {"Ki", 1024.0}, {"Mi", 1048576.0}, {"Gi", 1073741824.0}},
      times[] = {{"s", 1.0}, {"m", 60.0}, {"min", 60.0}, {"h", 3600.0}};
    if (!*s) return 1.0;
    if (kind == NIB_OPTION_UINT) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            if (strcmp(s, sizes[i].name) == 0) return sizes[i].factor;
    } else if (kind == NIB_OPTION_TIME) {
        for (size_t i = 0; i < sizeof times / sizeof *times; i++)
            if (strcmp(s, times[i].name) == 0) return times[i].factor;
    }
    return 0.0;
}

/* Plain decimal digits, for seeds above 2^53. */
static bool parse_whole(const char *text, uint64_t *out) {
    uint64_t value = 0;
    if (!*text) return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    }
    *out = value;
    return true;
}

static bool parse_number(const nib_option *option, const char *text, nib_option_value *value) {
    char *end = NULL;
    if (!*text || strchr(" \t\n+", *text) || strpbrk(text, "xXpPnN")) return false;
    double number = strtod(text, &end);
    double factor = end == text ? 0.0 : suffix_factor(option->kind, end);
    if (factor == 0.0 || !isfinite(number)) return false;
    number *= factor;
    if (option->kind == NIB_OPTION_UINT && number != floor(number)) return false;
    if (option->max > option->min && (number < option->min || number > option->max)) return false;
    value->number = number;
    if (option->kind == NIB_OPTION_UINT && !parse_whole(text, &value->whole)) value->whole = (uint64_t)number;
    return true;
}

static bool parse_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *at = choices; n && at;) {
        const char *bar = strchr(at, '|');
        size_t length = bar ? (size_t)(bar - at) : strlen(at);
        if (length == n && memcmp(at, text, n) == 0) return true;
        at = bar ? bar + 1 : NULL;
    }
    return false;
}

static nib_status bad_value(const nib_option *option, const char *text, nib_error *error) {
    char want[200] = "";
    switch (option->kind) {
    case NIB_OPTION_CHOICE:
        snprintf(want, sizeof want, "one of %s", option->value);
        break;
    case NIB_OPTION_TIME:
        snprintf(want, sizeof want, "a time such as 90s, 10m or 1h");
        break;
    default:
        snprintf(want, sizeof want, "a %s%.15g%s",
                 option->kind == NIB_OPTION_UINT ? "whole number of at least " : "number from ", option->min, "");
        if (option->max > option->min && option->max < 1e9) {
            size_t used = strlen(want);
            snprintf(want + used, sizeof want - used, "%s%.15g",
                     option->kind == NIB_OPTION_UINT ? " and at most " : " to ", option->max);
        }
    }
    char hint[256];
    snprintf(hint, sizeof hint, "give %s", want);
    return nib_cli_fail(error, NIB_ERR_USAGE, hint, "--%s: \"%s\" will not do", option->name, text);
}

static nib_status set_value(const nib_option *option, nib_option_value *value, const char *text, nib_error *error) {
    bool ok = true;
    if (option->kind == NIB_OPTION_CHOICE)
        ok = parse_choice(option->value, text);
    else if (option->kind != NIB_OPTION_TEXT)
        ok = parse_number(option, text, value);
    if (!ok) return bad_value(option, text, error);
    value->text = text;
    if (option->repeats) {
        if (value->n_all == NIB_MAX_REPEATS)
            return nib_cli_fail(error, NIB_ERR_USAGE, NULL, "--%s can be given at most %d times", option->name,
                                NIB_MAX_REPEATS);
        value->all[value->n_all++] = text;
    }
    return NIB_OK;
}

static bool is_switch(const nib_option *option) {
    return option->kind == NIB_OPTION_SWITCH || option->kind == NIB_OPTION_COUNT;
}

static void set_switch(const nib_option *option, nib_option_value *value, bool on) {
    value->given = true;
    if (!on)
        value->whole = 0;
    else
        value->whole = option->kind == NIB_OPTION_COUNT ? value->whole + 1 : 1;
}

/* ---- Finding options ------------------------------------------------------------------------------------------------------ */

static int find_long(const nib_args *args, const char *name, size_t n_bytes) {
    for (unsigned i = 0; i < args->n_options; i++)
        if (strlen(args->options[i]->name) == n_bytes && memcmp(args->options[i]->name, name, n_bytes) == 0)
            return (int)i;
    return -1;
}

static int find_short(const nib_args *args, char letter) {
    for (unsigned i = 0; i < args->n_options; i++)
        if (args->options[i]->letter == letter) return (int)i;
    return -1;
}

static nib_status unknown_option(const nib_command *command, const nib_args *args, const char *word, nib_error *error) {
    nib_nearest nearest = {0};
    char name[64], negated[NIB_MAX_OPTIONS][64], hint[256];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word + 2, "="), word + 2);
    if (word[1] == '-') {
        for (unsigned i = 0; i < args->n_options; i++) {
            nib_cli_nearest_offer(&nearest, name, args->options[i]->name);
            if (!is_switch(args->options[i])) continue;
            snprintf(negated[i], sizeof negated[i], "no-%s", args->options[i]->name);
            nib_cli_nearest_offer(&nearest, name, negated[i]);
        }
    }
    if (nearest.name)
        snprintf(hint, sizeof hint, "did you mean --%s?", nearest.name);
    else
        snprintf(hint, sizeof hint, "nibble %s -h lists the options", command->name);
    return nib_cli_fail(error, NIB_ERR_USAGE, hint, "%s does not know the option %.*s", command->name,
                        (int)strcspn(word, "="), word);
}

/* ---- Parsing -------------------------------------------------------------------------------------------------------------- */

typedef struct cursor {
    const nib_command *command;
    int argc, at;
    char **argv;
    nib_args *args;
    nib_error *error;
} cursor;

static nib_status take_value(cursor *c, int index, const char *attached) {
    const nib_option *option = c->args->options[index];
    nib_option_value *value = &c->args->values[index];
    if (!attached) {
        if (c->at + 1 >= c->argc)
            return nib_cli_fail(c->error, NIB_ERR_USAGE, option->about, "--%s needs a value (%s)", option->name,
                                option->value);
        attached = c->argv[++c->at];
    }
    value->given = true;
    return set_value(option, value, attached, c->error);
}

static nib_status parse_long(cursor *c, const char *word) {
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    int index = find_long(c->args, name, n);
    bool on = true;
    if (index < 0 && n > 3 && memcmp(name, "no-", 3) == 0) {
        index = find_long(c->args, name + 3, n - 3);
        on = false;
        if (index >= 0 && !is_switch(c->args->options[index])) index = -1;
    }
    if (index < 0) return unknown_option(c->command, c->args, word, c->error);
    if (!is_switch(c->args->options[index])) return take_value(c, index, equals ? equals + 1 : NULL);
    if (equals)
        return nib_cli_fail(c->error, NIB_ERR_USAGE, "it is a switch: on with --x, off with --no-x",
                            "--%s takes no value", c->args->options[index]->name);
    set_switch(c->args->options[index], &c->args->values[index], on);
    return NIB_OK;
}

static nib_status parse_letters(cursor *c, const char *word) {
    for (const char *letter = word + 1; *letter; letter++) {
        int index = find_short(c->args, *letter);
        if (index < 0) return unknown_option(c->command, c->args, word, c->error);
        if (!is_switch(c->args->options[index])) {
            const char *attached = letter[1] == '=' ? letter + 2 : letter[1] ? letter + 1 : NULL;
            return take_value(c, index, attached);
        }
        set_switch(c->args->options[index], &c->args->values[index], true);
    }
    return NIB_OK;
}

static nib_status set_fallbacks(nib_args *args, nib_error *error) {
    for (unsigned i = 0; i < args->n_options; i++) {
        const nib_option *option = args->options[i];
        nib_option_value *value = &args->values[i];
        if (is_switch(option)) {
            value->whole = option->fallback && strcmp(option->fallback, "on") == 0;
        } else if (option->fallback) {
            nib_status status = set_value(option, value, option->fallback, error);
            if (status) return nib_cli_fail(error, NIB_ERR_BUG, NULL, "default of --%s", option->name);
            value->n_all = 0;
        }
    }
    return NIB_OK;
}

/* No option begins with a digit or a point: "-0.89,0.16" is a word. */
static bool is_number(const char *word) {
    return isdigit((unsigned char)word[1]) || (word[1] == '.' && isdigit((unsigned char)word[2]));
}

nib_status nib_cli_parse(const nib_command *command, int argc, char **argv, nib_args *args, nib_error *error) {
    cursor c = {command, argc, 0, argv, args, error};
    nib_cli_collect_options(command, args);
    nib_status status = set_fallbacks(args, error);
    bool words_only = false;
    for (; !status && c.at < argc; c.at++) {
        char *word = argv[c.at];
        if (words_only || word[0] != '-' || !word[1] || is_number(word))
            args->words[args->n_words++] = word;
        else if (strcmp(word, "--") == 0)
            words_only = true;
        else if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0)
            return args->help = word[1] == '-' ? 2 : 1, NIB_OK;
        else
            status = word[1] == '-' ? parse_long(&c, word) : parse_letters(&c, word);
    }
    if (status) return status;
    char hint[256];
    snprintf(hint, sizeof hint, "usage: nibble %s %s", command->name, command->usage);
    if (args->n_words < command->min_words)
        return nib_cli_fail(error, NIB_ERR_USAGE, hint, "%s needs %s", command->name,
                            args->n_words ? "one more argument" : "an argument");
    if (args->n_words > command->max_words)
        return nib_cli_fail(error, NIB_ERR_USAGE, hint, "%s has no use for \"%s\"", command->name,
                            args->words[command->max_words]);
    return NIB_OK;
}

/* ---- What was given ------------------------------------------------------------------------------------------------------- */

const nib_option_value *nib_cli_value(const nib_cli *cli, const char *name) {
    static const nib_option_value none;
    int index = find_long(&cli->args, name, strlen(name));
    return index < 0 ? &none : &cli->args.values[index];
}
bool nib_cli_given(const nib_cli *cli, const char *name) {
    return nib_cli_value(cli, name)->given;
}
bool nib_cli_switch(const nib_cli *cli, const char *name) {
    return nib_cli_value(cli, name)->whole != 0;
}
const char *nib_cli_text(const nib_cli *cli, const char *name) {
    return nib_cli_value(cli, name)->text;
}
uint64_t nib_cli_uint(const nib_cli *cli, const char *name) {
    return nib_cli_value(cli, name)->whole;
}
double nib_cli_number(const nib_cli *cli, const char *name) {
    return nib_cli_value(cli, name)->number;
}
