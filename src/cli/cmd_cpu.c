/* nibble cpu: the machine, the instruction-set levels, and the read bandwidth that bounds generation. */
#include "cli.h"
#include <string.h>

static nib_status write_json(nib_cli *cli, double bandwidth, nib_error *error) {
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
    nib_json_begin_object(json, "ceilings");
    if (bandwidth > 0)
        nib_json_number(json, "read_bytes_per_s", bandwidth);
    else
        nib_json_null(json, "read_bytes_per_s");
    nib_json_end_object(json);
    return nib_cli_json_end(cli, json, error);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    const char *level;
    double bandwidth = nib_cli_switch(cli, "measure") ? nib_cpu_measure_read_bandwidth(cli->pool, 0.5) : 0;
    nib_status status = cli->wants_json ? write_json(cli, bandwidth, error) : NIB_OK;
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
    if (bandwidth > 0)
        printf("memory     %.1f GB/s read with %u threads: a model of 1 GB cannot speak faster than %.0f tokens/s\n",
               bandwidth / 1e9, nib_pool_size(cli->pool), bandwidth / 1e9);
    return NIB_OK;
}

static const nib_option options[] = {
    {.name = "measure",
     .kind = NIB_OPTION_SWITCH,
     .fallback = "on",
     .about = "do not measure the memory's read bandwidth"},
    {.name = NULL},
};

const nib_command nib_command_cpu = {
    .name = "cpu",
    .group = "self",
    .usage = "",
    .about = "this machine and its measured ceiling",
    .examples = "nibble cpu\nnibble cpu --cpu avx2 -t 1",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .run = run,
};
