/* The head of every JSON document: what it is, who made it, when, and on which machine. */
#include "nibble/cpu.h"
#include "nibble/json.h"

#include <stdio.h>
#include <time.h>

void nib_cpu_write_ceilings(const nib_cpu_ceilings *ceilings, nib_json *json) {
    nib_json_number(json, "read_bytes_per_s", ceilings->read_bytes_per_s);
    nib_json_number(json, "int8_macs_per_s", ceilings->int8_macs_per_s);
    nib_json_number(json, "bf16_macs_per_s", ceilings->bf16_macs_per_s);
    nib_json_number(json, "f32_macs_per_s", ceilings->f32_macs_per_s);
}

void nib_json_begin_document(nib_json *json, const char *name, const nib_pool *pool) {
    char text[64];
    nib_json_begin_object(json, NULL);
    snprintf(text, sizeof text, "nibble.%s/1", name);
    nib_json_string(json, "schema", text);
    nib_json_string(json, "nibble", nib_version());
    const time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    nib_json_string(json, "created", text);
    nib_json_begin_object(json, "machine");
    nib_json_string(json, "cpu", nib_cpu_name());
    nib_json_uint(json, "cores", nib_cpu_cores());
    nib_json_uint(json, "threads", nib_pool_size(pool));
    nib_json_string(json, "level", nib_cpu_level());
    nib_json_end_object(json);
}
