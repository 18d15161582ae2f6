/* Everything that is said about the commands, from their tables: the overview, -h, --help, the manual page and the
 * completions of three shells. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

static const char *const groups[] = {"whole job", "look", "make", "measure", "use", "self"};
#define N_GROUPS (sizeof groups / sizeof *groups)

static const struct {
    int code;
    const char *meaning;
} exit_codes[] = {
    {0, "ok"},
    {1, "a quality gate failed"},
    {2, "usage: anything wrong with the command line, an output that exists"},
    {3, "the content of an input is broken"},
    {4, "reading, writing, permission, disk space"},
    {5, "not enough memory"},
    {6, "network"},
    {7, "valid, but nibble cannot do it"},
    {8, "a bug in nibble"},
    {130, "interrupted"},
};
#define N_EXIT_CODES (sizeof exit_codes / sizeof *exit_codes)

static int first_line(const char *text) {
    return (int)strcspn(text, "\n");
}

static bool is_switch(const nib_option *option) {
    return option->kind == NIB_OPTION_SWITCH || option->kind == NIB_OPTION_COUNT;
}

static bool is_on_by_default(const nib_option *option) {
    return option->kind == NIB_OPTION_SWITCH && option->fallback && strcmp(option->fallback, "on") == 0;
}

void nib_cli_print_overview(void) {
    const char *bold = nib_console_bold(), *plain = nib_console_plain();
    printf("nibble %s: make large language models small, and know what it cost.\n", nib_version());
    printf("usage: nibble COMMAND [options] [arguments]; MODEL is a .gguf file, or demo, the model inside nibble\n\n");
    for (size_t g = 0; g < N_GROUPS; g++) {
        const char *group = groups[g];
        const nib_command *command;
        for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) {
            if (strcmp(command->group, groups[g]) != 0) continue;
            printf("%-10s%s%-11s%s%-40s%.*s\n", group, bold, command->name, plain, command->about,
                   first_line(command->examples), command->examples);
            group = "";
        }
    }
    printf("\nnibble COMMAND -h: one screen; --help: everything. nibble --version\n");
}

/* "-t, --threads N", and the dashes of a switch that is on by default as --no-x. */
static int format_option(const nib_option *option, char *out, size_t n) {
    char letter[8] = "    ";
    if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
    bool no_value = is_switch(option);
    return snprintf(out, n, "%s--%s%s%s%s", letter, is_on_by_default(option) ? "no-" : "", option->name,
                    no_value ? "" : " ", no_value ? "" : option->value);
}

static const char *about_of(const nib_command *command, const nib_option *option) {
    return command->output && strcmp(option->name, "output") == 0 ? command->output : option->about;
}

static void print_option(const nib_command *command, const nib_option *option, bool full) {
    char left[96];
    format_option(option, left, sizeof left);
    printf("  %-26s %s", left, about_of(command, option));
    bool says_default = option->fallback && !is_switch(option) && *option->fallback;
    if (says_default) printf(" [%s]", option->fallback);
    if (full && option->repeats) printf(" (repeatable)");
    putchar('\n');
    if (full && option->more) printf("  %-26s %s\n", "", option->more);
    if (full && is_switch(option) && !is_on_by_default(option)) printf("  %-26s --no-%s undoes it\n", "", option->name);
}

/* Indents every line. */
static void print_lines(const char *text, const char *indent) {
    while (*text) {
        int n = first_line(text);
        printf("%s%.*s\n", n ? indent : "", n, text);
        text += n;
        if (*text) text++;
    }
}

void nib_cli_print_help(const nib_command *command, bool full) {
    const char *bold = nib_console_bold(), *plain = nib_console_plain();
    nib_args *args = calloc(1, sizeof *args);
    if (!args) return;
    nib_cli_collect_options(command, args);
    printf("%snibble %s%s %s\n%s\n", bold, command->name, plain, command->usage, command->about);
    if (full && command->more) printf("\n"), print_lines(command->more, "");
    if (args->n_options) putchar('\n');
    bool common = false;
    for (unsigned i = 0; i < args->n_options; i++) {
        if (i == args->n_own) {
            common = true;
            if (!full) break;
            printf("\n%scommon to all commands%s\n", bold, plain);
        }
        print_option(command, args->options[i], full);
    }
    if (common && !full) {
        const bool has_threads = strcmp(args->options[args->n_own]->name, "threads") == 0;
        printf("  common: %s--cpu LEVEL, --json, -q, -v, --color WHEN, --progress WHEN\n",
               has_threads ? "-t N threads, " : "");
    }
    if (full) {
        printf("  %-26s %s\n", "-h, --help", "one screen; everything");
        printf("\n%sexamples%s\n", bold, plain);
        print_lines(command->examples, "  ");
        printf("\n%sexit codes%s\n ", bold, plain);
        for (size_t i = 0; i < N_EXIT_CODES; i++)
            printf("%s %d %s%s", i && i % 3 == 0 ? "\n " : "", exit_codes[i].code, exit_codes[i].meaning,
                   i + 1 < N_EXIT_CODES ? ";" : "\n");
    } else {
        printf("\nexample: %.*s      (--help: everything)\n", first_line(command->examples), command->examples);
    }
    free(args);
}

/* ---- Manual page -------------------------------------------------------------------------------------------------------- */

static void roff(FILE *to, const char *text, size_t n) {
    bool line_start = true;
    for (size_t i = 0; i < n; i++) {
        if (line_start && (text[i] == '.' || text[i] == '\'')) fputs("\\&", to);
        if (text[i] == '\\')
            fputs("\\e", to);
        else if (text[i] == '-')
            fputs("\\-", to);
        else
            fputc(text[i], to);
        line_start = text[i] == '\n';
    }
}

static void roff_text(FILE *to, const char *text) {
    roff(to, text, strlen(text));
}

static void man_options(const nib_command *command, FILE *to, bool common) {
    nib_args *args = calloc(1, sizeof *args);
    if (!args) return;
    nib_cli_collect_options(command, args);
    for (unsigned i = 0; i < args->n_options; i++) {
        const nib_option *option = args->options[i];
        char left[96];
        if ((i >= args->n_own) != common) continue;
        format_option(option, left, sizeof left);
        fputs(".TP\n.B ", to);
        roff_text(to, left + strspn(left, " "));
        fputc('\n', to);
        roff_text(to, about_of(command, option));
        if (option->fallback && !is_switch(option) && *option->fallback) {
            fputs(" [", to);
            roff_text(to, option->fallback);
            fputc(']', to);
        }
        if (option->repeats) fputs(" (repeatable)", to);
        fputs(".\n", to);
        if (option->more) roff_text(to, option->more), fputc('\n', to);
    }
    free(args);
}

static void man_command(const nib_command *command, FILE *to, bool alone) {
    fprintf(to, alone ? ".SH SYNOPSIS\n.B nibble %s\n" : ".SS nibble %s ", command->name);
    roff_text(to, command->usage);
    fputs(alone ? "\n.SH DESCRIPTION\n" : "\n", to);
    roff_text(to, command->about);
    fputs(".\n", to);
    if (command->more) fputs(".PP\n", to), roff_text(to, command->more), fputc('\n', to);
    if (alone) fputs(".SH OPTIONS\n", to);
    man_options(command, to, false);
    if (alone)
        fputs(".SH EXAMPLES\n", to);
    else
        fputs(".PP\nExamples:\n", to);
    fputs(".nf\n", to);
    roff_text(to, command->examples);
    fputs("\n.fi\n", to);
}

void nib_cli_print_man(const nib_command *only, FILE *to) {
    const nib_command *command;
    if (only)
        fprintf(to, ".TH NIBBLE\\-%s 1 \"\" \"nibble %s\"\n", only->name, nib_version());
    else
        fprintf(to, ".TH NIBBLE 1 \"\" \"nibble %s\"\n", nib_version());
    fprintf(to, ".SH NAME\nnibble%s%s \\- ", only ? "\\-" : "", only ? only->name : "");
    roff_text(to, only ? only->about : "make large language models small, and know what it cost");
    fputc('\n', to);
    if (only) {
        man_command(only, to, true);
    } else {
        fputs(".SH SYNOPSIS\n.B nibble\nCOMMAND [options] [arguments]\n.SH DESCRIPTION\n"
              "MODEL is a .gguf file, or demo, the model inside nibble.\n"
              "Results go to standard output, everything said about them to standard error.\n.SH COMMANDS\n",
              to);
        for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) man_command(command, to, false);
    }
    if (!only || !only->plain) {
        fputs(".SH COMMON OPTIONS\n", to);
        man_options(only ? only : nib_cli_command_at(0), to, true);
    }
    fputs(".SH EXIT STATUS\n", to);
    for (size_t i = 0; i < N_EXIT_CODES; i++)
        fprintf(to, ".TP\n.B %d\n%s\n", exit_codes[i].code, exit_codes[i].meaning);
    fputs(".SH ENVIRONMENT\n.TP\n.B NIBBLE_CPU\nas \\-\\-cpu\n.TP\n.B NO_COLOR\nno colours if set\n", to);
}

/* ---- Completions -------------------------------------------------------------------------------------------------------------- */

static void print_spaced(const char *choices) {
    for (; *choices; choices++) putchar(*choices == '|' ? ' ' : *choices);
}

static bool takes_file(const nib_option *option) {
    return option->kind == NIB_OPTION_TEXT &&
           (strstr(option->value, "FILE") || strstr(option->value, "DIR") || strstr(option->value, "PATH"));
}

static void complete_bash(void) {
    const nib_command *command;
    printf("# nibble completion for bash: nibble completion bash > ~/.local/share/bash-completion/completions/nibble\n"
           "_nibble() {\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} options= values=\n"
           "  if [ \"$COMP_CWORD\" -eq 1 ]; then COMPREPLY=($(compgen -W '");
    for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) printf("%s ", command->name);
    printf("--help --version' -- \"$cur\")); return; fi\n  case ${COMP_WORDS[1]} in\n");
    for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) {
        nib_args *args = calloc(1, sizeof *args);
        if (!args) return;
        nib_cli_collect_options(command, args);
        printf("  %s)\n    options='--help", command->name);
        for (unsigned k = 0; k < args->n_options; k++) {
            printf(" --%s", args->options[k]->name);
            if (is_switch(args->options[k])) printf(" --no-%s", args->options[k]->name);
        }
        printf("'\n    case $prev in\n");
        for (unsigned k = 0; k < args->n_options; k++) {
            const nib_option *option = args->options[k];
            if (option->kind != NIB_OPTION_CHOICE) continue;
            printf("    --%s) values='", option->name);
            print_spaced(option->value);
            printf("' ;;\n");
        }
        printf("    esac ;;\n");
        free(args);
    }
    printf("  esac\n  if [ -n \"$values\" ]; then COMPREPLY=($(compgen -W \"$values\" -- \"$cur\"))\n"
           "  elif [[ $cur == -* ]]; then COMPREPLY=($(compgen -W \"$options\" -- \"$cur\"))\n"
           "  else COMPREPLY=($(compgen -f -- \"$cur\") $(compgen -W 'demo' -- \"$cur\")); fi\n}\n"
           "complete -o filenames -F _nibble nibble\n");
}

/* Text inside '...[...]:...:' of zsh's _arguments. */
static void print_zsh(const char *text) {
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void complete_zsh(void) {
    const nib_command *command;
    printf("#compdef nibble\n# nibble completion for zsh: save as _nibble in a folder of $fpath\n_nibble() {\n"
           "  local -a commands\n  commands=(\n");
    for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) {
        printf("    '%s:", command->name);
        print_zsh(command->about);
        printf("'\n");
    }
    printf("  )\n  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
           "  local command=$words[2]\n  shift words; (( CURRENT-- ))\n  case $command in\n");
    for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) {
        nib_args *args = calloc(1, sizeof *args);
        if (!args) return;
        nib_cli_collect_options(command, args);
        printf("  %s) _arguments", command->name);
        for (unsigned k = 0; k < args->n_options; k++) {
            const nib_option *option = args->options[k];
            printf(" \\\n    '%s--%s%s[", option->repeats ? "*" : "", option->name, is_switch(option) ? "" : "=");
            print_zsh(about_of(command, option));
            printf("]");
            if (option->kind == NIB_OPTION_CHOICE) {
                printf(":value:(");
                print_spaced(option->value);
                printf(")");
            } else if (!is_switch(option)) {
                printf(":value:%s", takes_file(option) ? "_files" : "");
            }
            printf("'");
        }
        printf(" \\\n    '*:file:_files' ;;\n");
        free(args);
    }
    printf("  esac\n}\n_nibble \"$@\"\n");
}

static void print_fish(const char *text) {
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') putchar('\\');
        putchar(*text);
    }
}

static void complete_fish(void) {
    const nib_command *command;
    printf("# nibble completion for fish: nibble completion fish > ~/.config/fish/completions/nibble.fish\n");
    for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) {
        nib_args *args = calloc(1, sizeof *args);
        if (!args) return;
        nib_cli_collect_options(command, args);
        printf("complete -c nibble -n __fish_use_subcommand -f -a %s -d '", command->name);
        print_fish(command->about);
        printf("'\n");
        for (unsigned k = 0; k < args->n_options; k++) {
            const nib_option *option = args->options[k];
            printf("complete -c nibble -n '__fish_seen_subcommand_from %s' -l %s", command->name, option->name);
            if (option->letter) printf(" -s %c", option->letter);
            if (!is_switch(option)) printf(takes_file(option) ? " -r" : " -x");
            if (option->kind == NIB_OPTION_CHOICE) {
                printf(" -a '");
                print_spaced(option->value);
                printf("'");
            }
            printf(" -d '");
            print_fish(about_of(command, option));
            printf("'\n");
        }
        free(args);
    }
}

bool nib_cli_print_completion(const char *shell) {
    if (strcmp(shell, "bash") == 0)
        complete_bash();
    else if (strcmp(shell, "zsh") == 0)
        complete_zsh();
    else if (strcmp(shell, "fish") == 0)
        complete_fish();
    else
        return false;
    return true;
}
