/* nibble, the program: finds the command, reads its options, prepares console, level and threads, runs it, and turns what
 * came of it into the exit code. */
#include "cli.h"
#include <errno.h>
#include <locale.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>

#define COMMAND(name) extern const nib_command nib_command_##name;
#include "commands.def"
#undef COMMAND

static const nib_command *const commands[] = {
#define COMMAND(name) &nib_command_##name,
#include "commands.def"
#undef COMMAND
    NULL,
};

const nib_command *nib_cli_command_at(unsigned index) {
    return index < sizeof commands / sizeof *commands ? commands[index] : NULL;
}

const nib_command *nib_cli_command_find(const char *name) {
    for (unsigned i = 0; commands[i]; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static nib_status unknown_command(const char *name, nib_error *error) {
    nib_nearest nearest = {0};
    char hint[128];
    for (unsigned i = 0; commands[i]; i++) nib_cli_nearest_offer(&nearest, name, commands[i]->name);
    if (nearest.name)
        snprintf(hint, sizeof hint, "did you mean nibble %s?", nearest.name);
    else
        snprintf(hint, sizeof hint, "nibble alone lists the commands");
    return nib_cli_fail(error, NIB_ERR_USAGE, hint, "there is no command %s", name);
}

/* Was --json asked for, even on a line with mistakes? */
static bool mentions_json(int argc, char **argv) {
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0) return true;
    return false;
}

static nib_status choose_level(const nib_cli *cli, nib_error *error) {
    const char *level = nib_cli_text(cli, "cpu"), *from_environment = getenv("NIBBLE_CPU");
    if (level) return nib_cpu_force_level(level, error);
    if (!from_environment || !*from_environment) return NIB_OK;
    nib_status status = nib_cpu_force_level(from_environment, error);
    if (status && error && !error->field[0]) snprintf(error->field, sizeof error->field, "NIBBLE_CPU");
    return status;
}

nib_status nib_cli_make_pool(nib_cli *cli, uint64_t n_threads, nib_error *error) {
    const unsigned n_cores = nib_cpu_cores();
    uint64_t most = n_cores > 64 ? 2 * (uint64_t)n_cores : 128;
    if (most > 1024) most = 1024;
    if (n_threads > most) {
        nib_console_warn("%llu threads are far more than this machine can use; taking %u",
                         (unsigned long long)n_threads, n_cores);
        n_threads = n_cores;
    }
    return nib_pool_new((unsigned)n_threads, &cli->pool, error);
}

static nib_status run_command(const nib_command *command, int argc, char **argv, nib_error *error) {
    nib_cli cli = {.command = command};
    cli.args.words = calloc((size_t)argc + 1, sizeof *cli.args.words);
    if (!cli.args.words) return nib_cli_no_memory(error);
    nib_status status = nib_cli_parse(command, argc, argv, &cli.args, error);
    if (status) goto done;
    if (cli.args.help) {
        nib_console_configure("auto", "never", false, false);
        nib_cli_print_help(command, cli.args.help == 2);
        goto done;
    }
    if (!command->plain) {
        cli.json = nib_cli_switch(&cli, "json");
        cli.quiet = nib_cli_switch(&cli, "quiet");
        cli.verbose = (unsigned)nib_cli_uint(&cli, "verbose");
        cli.document_output = command->output_is_document && nib_cli_given(&cli, "output");
        cli.wants_json = cli.json || cli.document_output;
        cli.watch = (nib_watch){.progress = nib_console_progress, .warn = nib_console_watch_warn};
        nib_console_configure(nib_cli_text(&cli, "color"), nib_cli_text(&cli, "progress"), cli.quiet, cli.json);
        if (cli.document_output)
            status = nib_cli_check_output(nib_cli_text(&cli, "output"), nib_cli_switch(&cli, "force"), cli.args.words,
                                          cli.args.n_words, error);
        if (!status) status = choose_level(&cli, error);
        const bool is_given = !command->own_threads && nib_cli_given(&cli, "threads");
        if (!status) status = nib_cli_make_pool(&cli, is_given ? nib_cli_uint(&cli, "threads") : 0, error);
    }
    if (!status) status = command->run(&cli, error);
done:
    nib_pool_free(cli.pool);
    free(cli.args.words);
    return status;
}

int main(int argc, char **argv) {
    nib_error error = {.offset = -1};
    nib_status status = NIB_OK;
    setlocale(LC_CTYPE, "");
#ifdef __GLIBC__
    /* Large blocks go back to the system when freed: glibc would raise this limit and keep a session's memory for ever. */
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
    nib_console_begin();
    nib_console_configure("auto", "auto", false, mentions_json(argc, argv));
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name || strcmp(name, "-h") == 0 || strcmp(name, "--help") == 0) {
        nib_cli_print_overview();
    } else if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("nibble %s\n", nib_version());
    } else {
        const nib_command *command = nib_cli_command_find(name);
        if (command)
            status = run_command(command, argc - 2, argv + 2, &error);
        else if (name[0] == '-')
            status = nib_cli_fail(&error, NIB_ERR_USAGE, "the command comes first: nibble COMMAND [options]",
                                  "there is no option %s without a command", name);
        else
            status = unknown_command(name, &error);
    }
    bool reader_gone = status == NIB_ERR_IO && error.os_errno == EPIPE;
    if (reader_gone) status = NIB_OK;
    if (status) {
        if (!error.message[0]) nib_cli_fail(&error, status, NULL, "failed: %s", nib_status_name(status));
        nib_console_error(&error);
    }
    nib_error at_end = {.offset = -1};
    nib_status finish = reader_gone ? NIB_OK : nib_console_finish(&at_end);
    if (finish && !status) {
        nib_console_configure("auto", "never", false, false); /* stdout cannot take the JSON form either */
        nib_console_error(&at_end);
        status = finish;
    }
    return (int)status;
}
