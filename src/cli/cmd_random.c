/* nibble random: a model of random weights, of any architecture and shape. */
#include "cli.h"
#include <string.h>

static nib_status write_json(nib_cli *cli, const nib_random_params *params, const nib_random_made *made, double seconds,
                             nib_error *error) {
    nib_json *json = nib_cli_json_begin(cli, "random", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_string(json, "output", nib_cli_text(cli, "output"));
    nib_json_string(json, "arch", made->arch);
    nib_json_string(json, "spec", params->spec);
    nib_json_string(json, "type", nib_format_facts_of(params->format)->name);
    nib_json_uint(json, "seed", params->seed);
    nib_json_uint(json, "n_tensors", made->n_tensors);
    nib_json_uint(json, "n_params", made->n_params);
    nib_json_uint(json, "bytes", made->n_bytes);
    nib_json_number(json, "seconds", seconds);
    return nib_cli_json_end(cli, json, error);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    const char *path = nib_cli_text(cli, "output");
    const nib_random_params params = {
        .spec = cli->args.words[0],
        .format = nib_format_find(nib_cli_text(cli, "type")),
        .seed = nib_cli_uint(cli, "seed"),
        .force = nib_cli_switch(cli, "force"),
    };
    nib_random_made made;
    if (!path) return nib_cli_fail(error, NIB_ERR_USAGE, "such as -o random.gguf", "-o OUT.gguf is missing");
    if (strcmp(path, "-") == 0)
        return nib_cli_fail(error, NIB_ERR_USAGE, "give -o FILE", "a model cannot be written to standard output");
    nib_status status = nib_cli_check_output(path, params.force, NULL, 0, error);
    if (status) return status;
    const double began = nib_now();
    status = nib_random_model(path, &params, cli->pool, &cli->watch, &made, error);
    const double seconds = nib_now() - began;
    nib_console_erase_progress();
    if (!status && cli->json) return write_json(cli, &params, &made, seconds, error);
    if (!status && !cli->quiet)
        printf("wrote      %s  %s, %s, %s parameters in %llu tensors   %s\n", path, made.arch,
               nib_show_bytes(made.n_bytes).s, nib_show_count(made.n_params).s, (unsigned long long)made.n_tensors,
               nib_show_seconds(seconds).s);
    return status;
}

static const nib_option options[] = {
    {.name = "type",
     .kind = NIB_OPTION_CHOICE,
     .value = "bf16|f16|f32",
     .fallback = "bf16",
     .about = "format of the matrices; vectors are f32"},
    {.name = "seed",
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .fallback = "0",
     .min = 0,
     .max = 9e18,
     .about = "the same seed gives the same file, everywhere"},
    {.name = NULL},
};

const nib_command nib_command_random = {
    .name = "random",
    .group = "make",
    .usage = "ARCH[:SHAPE] -o OUT.gguf",
    .about = "a random model of any architecture and shape",
    .more =
        "SHAPE: presets and NAME=NUMBER, separated by commas. Presets: llama:1b, llama:8b, qwen2:0.5b, qwen3:0.6b,\n"
        "qwen3:4b, qwen3moe:30b-a3b. Names: layers, embd, ff, heads, kv, head, vocab, ctx, rope, eps, tied (1: no "
        "output\n"
        "matrix), of qwen3moe also experts, used, expert_ff, and the architecture's own keys as in GGUF. Weights are "
        "distributed roughly like trained ones. The model has no\n"
        "vocabulary, so it takes token ids and no text: logits, bench.",
    .examples = "nibble random qwen3:0.6b -o random.gguf\n"
                "nibble random llama:layers=2,embd=256,ff=512,heads=4,kv=2,vocab=4096,ctx=2048 -o tiny.gguf\n"
                "nibble random llama:8b,layers=4 --type f16 --seed 7 -o part.gguf",
    .output = "file to write",
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
