/* nibble help, man, completion: the program about itself. */
#include "cli.h"
#include <string.h>
#include <unistd.h>

static nib_status find_command(const char *name, const nib_command **out, nib_error *error) {
    nib_nearest nearest = {0};
    const nib_command *command;
    char hint[128];
    *out = nib_cli_command_find(name);
    if (*out) return NIB_OK;
    for (unsigned i = 0; (command = nib_cli_command_at(i)); i++) nib_cli_nearest_offer(&nearest, name, command->name);
    if (nearest.name)
        snprintf(hint, sizeof hint, "did you mean %s?", nearest.name);
    else
        snprintf(hint, sizeof hint, "nibble alone lists the commands");
    return nib_cli_fail(error, NIB_ERR_USAGE, hint, "there is no command %s", name);
}

static nib_status run_help(nib_cli *cli, nib_error *error) {
    const nib_command *command = NULL;
    if (cli->args.n_words == 0) {
        nib_cli_print_overview();
        return NIB_OK;
    }
    nib_status status = find_command(cli->args.words[0], &command, error);
    if (!status) nib_cli_print_help(command, true);
    return status;
}

static nib_status run_man(nib_cli *cli, nib_error *error) {
    const nib_command *command = NULL;
    if (cli->args.n_words) {
        nib_status status = find_command(cli->args.words[0], &command, error);
        if (status) return status;
    }
    FILE *pager = isatty(STDOUT_FILENO) ? popen("man -l -", "w") : NULL;
    nib_cli_print_man(command, pager ? pager : stdout);
    if (pager) pclose(pager);
    return NIB_OK;
}

static nib_status run_completion(nib_cli *cli, nib_error *error) {
    if (nib_cli_print_completion(cli->args.words[0])) return NIB_OK;
    return nib_cli_fail(error, NIB_ERR_USAGE, "bash, zsh or fish", "no completions for the shell %s",
                        cli->args.words[0]);
}

const nib_command nib_command_help = {
    .name = "help",
    .group = "self",
    .usage = "[COMMAND]",
    .about = "everything about a command",
    .examples = "nibble help study",
    .max_words = 1,
    .plain = true,
    .run = run_help,
};
const nib_command nib_command_man = {
    .name = "man",
    .group = "self",
    .usage = "[COMMAND]",
    .about = "the manual page",
    .more = "On a terminal it opens in man; otherwise it is written as roff.",
    .examples = "nibble man\nnibble man > ~/.local/share/man/man1/nibble.1",
    .max_words = 1,
    .plain = true,
    .run = run_man,
};
const nib_command nib_command_completion = {
    .name = "completion",
    .group = "self",
    .usage = "bash|zsh|fish",
    .about = "completions for your shell",
    .examples = "nibble completion bash\nsource <(nibble completion bash)",
    .min_words = 1,
    .max_words = 1,
    .plain = true,
    .run = run_completion,
};
