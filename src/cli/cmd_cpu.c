/* nibble cpu: the machine, its levels, its measured ceilings, and how each format is multiplied here. */
#include "cli.h"
#include <string.h>

#define OWN_TYPES 0x4E000000u /* numbers of types that only nibble has begin here */

static void write_kernels(nib_json *json) {
    const nib_format *format;
    nib_json_begin_array(json, "kernels");
    for (unsigned i = 0; (format = nib_format_at(i)); i++) {
        const nib_format_kernels kernels = nib_format_kernels_of(format);
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "format", nib_format_facts_of(format)->name);
        nib_json_string(json, "many_tokens", kernels.many);
        nib_json_string(json, "few_tokens", kernels.few);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

static nib_status write_json(nib_cli *cli, const nib_cpu_ceilings *ceilings, nib_error *error) {
    const char *level;
    nib_json *json = nib_cli_json_begin(cli, "cpu", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_string(json, "cpu", nib_cpu_name());
    nib_json_uint(json, "cores", nib_cpu_cores());
    nib_json_uint(json, "threads", nib_pool_size(cli->pool));
    nib_json_string(json, "level", nib_cpu_level());
    nib_json_begin_array(json, "levels");
    for (unsigned i = 0; (level = nib_cpu_level_name(i)); i++) {
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "name", level);
        nib_json_bool(json, "runs", nib_cpu_level_runs(i));
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    if (ceilings) {
        nib_json_begin_object(json, "ceilings");
        nib_cpu_write_ceilings(ceilings, json);
        nib_json_end_object(json);
    } else {
        nib_json_null(json, "ceilings");
        nib_json_string(json, "note", "not measured: --no-measure");
    }
    write_kernels(json);
    return nib_cli_json_end(cli, json, error);
}

/* Formats that are multiplied the same way together; nibble's own, of which there are many, if all are wanted. */
static void print_kernels(bool all) {
    const nib_format *format, *other;
    printf("\nkernels\n");
    for (unsigned i = 0; (format = nib_format_at(i)); i++) {
        const nib_format_kernels kernels = nib_format_kernels_of(format);
        bool is_first = true;
        for (unsigned j = 0; j < i && is_first; j++) {
            const nib_format_kernels before = nib_format_kernels_of(nib_format_at(j));
            is_first = strcmp(before.many, kernels.many) != 0 || strcmp(before.few, kernels.few) != 0;
        }
        if (!is_first) continue;
        printf("%s; few tokens: %s\n ", kernels.many, kernels.few);
        size_t column = 1;
        for (unsigned j = i; (other = nib_format_at(j)); j++) {
            const nib_format_kernels its = nib_format_kernels_of(other);
            const char *name = nib_format_facts_of(other)->name;
            if (strcmp(its.many, kernels.many) || strcmp(its.few, kernels.few)) continue;
            if (!all && nib_format_facts_of(other)->gguf_type >= OWN_TYPES) continue;
            if (column + 1 + strlen(name) > 98) {
                printf("\n ");
                column = 1;
            }
            column += (size_t)printf(" %s", name);
        }
        printf("\n");
    }
}

static void print_ceilings(const nib_cpu_ceilings *c, unsigned n_threads) {
    if (c->read_bytes_per_s > 0)
        printf("memory     %.1f GB/s read with %u threads: a model of 1 GB cannot speak faster than %.0f tokens/s\n",
               c->read_bytes_per_s / 1e9, n_threads, c->read_bytes_per_s / 1e9);
    printf("compute    %.0f G multiply-adds/s of 8-bit integers, %.0f G/s of bf16, %.0f G/s of floats:\n"
           "           a model of 1 G parameters cannot read a prompt faster than %.0f tokens/s\n",
           c->int8_macs_per_s / 1e9, c->bf16_macs_per_s / 1e9, c->f32_macs_per_s / 1e9, c->int8_macs_per_s / 1e9);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    const char *level;
    nib_cpu_ceilings ceilings;
    const bool measured = nib_cli_switch(cli, "measure");
    if (measured) nib_cpu_measure_ceilings(cli->pool, 1.0, &ceilings);
    nib_status status = cli->wants_json ? write_json(cli, measured ? &ceilings : NULL, error) : NIB_OK;
    if (status || cli->json) return status;
    printf("processor  %s\n", nib_cpu_name());
    printf("cores      %u physical that nibble may use; %u threads in use\n", nib_cpu_cores(),
           nib_pool_size(cli->pool));
    printf("levels    ");
    for (unsigned i = 0; (level = nib_cpu_level_name(i)); i++) {
        bool in_use = strcmp(level, nib_cpu_level()) == 0;
        printf(" %s%s%s%s", in_use ? nib_console_bold() : "", level, in_use ? nib_console_plain() : "",
               in_use                  ? " (in use)"
               : nib_cpu_level_runs(i) ? ""
                                       : " (not on this processor)");
    }
    printf("\n");
    if (measured) print_ceilings(&ceilings, nib_pool_size(cli->pool));
    print_kernels(cli->verbose > 0);
    return NIB_OK;
}

static const nib_option options[] = {
    {.name = "measure", .kind = NIB_OPTION_SWITCH, .fallback = "on", .about = "do not measure the ceilings"},
    {.name = NULL},
};

const nib_command nib_command_cpu = {
    .name = "cpu",
    .group = "self",
    .usage = "",
    .about = "this machine and its measured ceilings",
    .examples = "nibble cpu\nnibble cpu --cpu avx2 -t 1",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .run = run,
};
