/* nibble inspect: what is in a model file. Works for every architecture and every file the reader accepts; only the memory
 * a run needs takes a model that nibble runs. */
#include "cli.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ROLES  64
#define SHORT_ARRAY 16 /* longer arrays are summarised unless -v */
#define FIRST_SHOWN 4

typedef struct role_sum {
    const char *name;
    uint64_t n_tensors, n_elements, n_bytes;
    char formats[64]; /* names, separated by spaces, as they come */
} role_sum;

typedef struct inspection {
    nib_gguf *gguf;
    nib_model *model;         /* NULL if nibble cannot run it */
    nib_tokenizer *tokenizer; /* NULL if there is none */
    nib_error no_model, no_tokenizer;
    nib_memory_plan memory;
    bool has_memory;
    uint32_t n_ctx;
    uint64_t n_params, weight_bytes;
    role_sum roles[MOST_ROLES];
    unsigned n_roles;
    nib_weight_stats *weights;
    nib_cli_filter filter;
} inspection;

/* ---- Gathering ------------------------------------------------------------------------------------------------------- */

static void add_to_role(inspection *in, const nib_tensor *tensor) {
    const char *role = nib_tensor_role(tensor->name, NULL), *format = nib_format_facts_of(tensor->format)->name;
    unsigned r = 0;
    while (r < in->n_roles && strcmp(in->roles[r].name, role) != 0) r++;
    if (r == MOST_ROLES) r--;
    if (r == in->n_roles) in->roles[in->n_roles++] = (role_sum){.name = role};
    role_sum *sum = &in->roles[r];
    sum->n_tensors++;
    sum->n_elements += tensor->n_elements;
    sum->n_bytes += tensor->n_bytes;
    size_t n_name = strlen(format), used = strlen(sum->formats);
    for (const char *at = sum->formats; (at = strstr(at, format)); at += n_name)
        if ((at == sum->formats || at[-1] == ' ') && (at[n_name] == ' ' || !at[n_name])) return;
    snprintf(sum->formats + used, sizeof sum->formats - used, "%s%s", used ? " " : "", format);
}

static nib_status gather(nib_cli *cli, inspection *in, nib_error *error) {
    const char *path = cli->args.words[0];
    nib_status status = nib_cli_open_gguf(path, &in->gguf, error);
    if (status) return status;
    for (uint64_t i = 0; i < nib_gguf_n_tensors(in->gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(in->gguf, i);
        in->n_params += tensor->n_elements;
        in->weight_bytes += tensor->n_bytes;
        add_to_role(in, tensor);
    }
    if (nib_gguf_trailing_bytes(in->gguf))
        nib_console_warn("%llu bytes after the last tensor are used by nothing",
                         (unsigned long long)nib_gguf_trailing_bytes(in->gguf));
    nib_tokenizer_new(in->gguf, &in->tokenizer, &in->no_tokenizer);
    if (nib_gguf_n_tensors(in->gguf) && nib_model_open(path, &cli->watch, &in->model, &in->no_model) == NIB_OK) {
        uint32_t n_train = nib_model_facts_of(in->model)->n_ctx_train;
        in->n_ctx = nib_cli_given(cli, "ctx")   ? (uint32_t)nib_cli_uint(cli, "ctx")
                    : n_train && n_train < 4096 ? n_train
                                                : 4096;
        nib_session_params params = {.n_ctx = in->n_ctx, .kv = nib_cli_kv(cli)};
        in->has_memory = nib_session_plan(in->model, &params, nib_pool_size(cli->pool), &in->memory, NULL) == NIB_OK;
    } else if (in->no_model.code == NIB_ERR_CORRUPT) {
        nib_console_warn("nibble cannot run it: %s%s%s", in->no_model.message, in->no_model.field[0] ? ": " : "",
                         in->no_model.field);
    }
    return NIB_OK;
}

static double bits_per_weight(uint64_t n_bytes, uint64_t n) {
    return n ? 8.0 * (double)n_bytes / (double)n : 0.0;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------------- */

static void json_scalar(nib_json *json, const char *key, const nib_gguf_kv *kv, uint64_t index) {
    uint64_t u;
    int64_t i;
    double f;
    nib_text text;
    if (kv->element_type == NIB_GGUF_BOOL)
        nib_json_bool(json, key, kv->data[index] != 0);
    else if (kv->element_type == NIB_GGUF_STRING && nib_gguf_kv_text(kv, index, &text))
        nib_json_string_n(json, key, text.data, text.n_bytes);
    else if (kv->element_type == NIB_GGUF_F32 || kv->element_type == NIB_GGUF_F64)
        nib_json_number(json, key, nib_gguf_kv_f64(kv, index, &f) ? f : NAN);
    else if (nib_gguf_kv_u64(kv, index, &u))
        nib_json_uint(json, key, u);
    else if (nib_gguf_kv_i64(kv, index, &i))
        nib_json_int(json, key, i);
    else
        nib_json_null(json, key);
}

static void json_metadata(nib_json *json, const nib_gguf *gguf, bool whole) {
    nib_json_begin_object(json, "metadata");
    for (uint64_t i = 0; i < nib_gguf_n_kv(gguf); i++) {
        const nib_gguf_kv *kv = nib_gguf_kv_at(gguf, i);
        char key[256];
        snprintf(key, sizeof key, "%.*s", kv->key.n_bytes < 255 ? (int)kv->key.n_bytes : 255, kv->key.data);
        bool is_array = kv->type == NIB_GGUF_ARRAY, summary = is_array && kv->n > SHORT_ARRAY && !whole;
        if (!is_array) {
            json_scalar(json, key, kv, 0);
            continue;
        }
        if (summary) {
            nib_json_begin_object(json, key);
            nib_json_string(json, "type", nib_gguf_type_name(kv->element_type));
            nib_json_uint(json, "n", kv->n);
        }
        nib_json_begin_array(json, summary ? "first" : key);
        for (uint64_t k = 0; k < (summary ? FIRST_SHOWN : kv->n); k++) json_scalar(json, NULL, kv, k);
        nib_json_end_array(json);
        if (summary) nib_json_end_object(json);
    }
    nib_json_end_object(json);
}

static void json_token(nib_json *json, const char *key, int32_t id) {
    if (id < 0)
        nib_json_null(json, key);
    else
        nib_json_int(json, key, id);
}

static void json_tokenizer(nib_json *json, const inspection *in) {
    if (!in->tokenizer) {
        nib_json_null(json, "tokenizer");
        return;
    }
    const nib_tokenizer_facts *facts = nib_tokenizer_facts_of(in->tokenizer);
    nib_json_begin_object(json, "tokenizer");
    nib_json_string(json, "model", facts->model);
    nib_json_string(json, "pre", facts->pre);
    nib_json_uint(json, "n_vocab", facts->n_vocab);
    json_token(json, "bos", facts->bos);
    json_token(json, "eos", facts->eos);
    nib_json_bool(json, "add_bos", facts->add_bos);
    nib_json_bool(json, "add_eos", facts->add_eos);
    nib_json_bool(json, "can_tokenize", facts->can_tokenize);
    nib_json_end_object(json);
}

static void json_tensors(nib_json *json, inspection *in) {
    nib_json_begin_array(json, "tensors");
    for (uint64_t i = 0; i < nib_gguf_n_tensors(in->gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(in->gguf, i);
        if (!nib_cli_filter_takes(&in->filter, tensor)) continue;
        int layer = -1;
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "name", tensor->name);
        nib_json_string(json, "role", nib_tensor_role(tensor->name, &layer));
        if (layer >= 0)
            nib_json_int(json, "layer", layer);
        else
            nib_json_null(json, "layer");
        nib_json_string(json, "type", nib_format_facts_of(tensor->format)->name);
        nib_json_begin_array(json, "shape");
        for (uint32_t d = 0; d < tensor->n_dims; d++) nib_json_uint(json, NULL, tensor->ne[d]);
        nib_json_end_array(json);
        nib_json_uint(json, "offset", tensor->offset);
        nib_json_uint(json, "bytes", tensor->n_bytes);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

static const char *model_name(const inspection *in, nib_text *out) {
    if (nib_gguf_get_text(in->gguf, "general.name", out)) return out->data;
    *out = (nib_text){"", 0};
    return out->data;
}

static nib_status write_json(nib_cli *cli, inspection *in, nib_error *error) {
    nib_text text;
    nib_json *json = nib_cli_json_begin(cli, "inspect", error);
    if (!json) return error ? error->code : NIB_ERR_MEMORY;
    nib_json_string(json, "file", nib_gguf_path(in->gguf));
    nib_json_uint(json, "bytes", nib_gguf_bytes(in->gguf));
    nib_json_uint(json, "gguf_version", nib_gguf_version(in->gguf));
    if (nib_gguf_get_text(in->gguf, "general.architecture", &text))
        nib_json_string_n(json, "arch", text.data, text.n_bytes);
    else
        nib_json_null(json, "arch");
    model_name(in, &text);
    nib_json_string_n(json, "name", text.data, text.n_bytes);
    nib_json_uint(json, "n_params", in->n_params);
    nib_json_number(json, "bpw", bits_per_weight(in->weight_bytes, in->n_params));
    json_metadata(json, in->gguf, cli->verbose > 0);
    json_tokenizer(json, in);
    json_tensors(json, in);
    nib_json_begin_array(json, "by_role");
    for (unsigned r = 0; r < in->n_roles; r++) {
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "role", in->roles[r].name);
        nib_json_uint(json, "n_tensors", in->roles[r].n_tensors);
        nib_json_uint(json, "n_params", in->roles[r].n_elements);
        nib_json_uint(json, "bytes", in->roles[r].n_bytes);
        nib_json_number(json, "bpw", bits_per_weight(in->roles[r].n_bytes, in->roles[r].n_elements));
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    nib_json_begin_object(json, "memory");
    nib_json_uint(json, "weights", in->weight_bytes);
    if (in->has_memory) {
        nib_json_uint(json, "kv_per_token", in->memory.kv_per_token);
        nib_json_uint(json, "scratch", in->memory.scratch);
        nib_json_uint(json, "ctx", in->n_ctx);
        nib_json_uint(json, "kv_cache", in->memory.kv_cache);
    } else {
        nib_json_null(json, "kv_per_token");
        nib_json_null(json, "scratch");
        nib_json_string(json, "note", in->no_model.message);
    }
    nib_json_end_object(json);
    nib_json_begin_array(json, "weights");
    if (in->weights) {
        nib_json_begin_object(json, NULL);
        nib_weight_stats_write_json(in->weights, json);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    return nib_cli_json_end(cli, json, error);
}

/* ---- For people ------------------------------------------------------------------------------------------------------------- */

static void print_head(const inspection *in) {
    nib_text arch = {"?", 1}, name;
    nib_gguf_get_text(in->gguf, "general.architecture", &arch);
    model_name(in, &name);
    fputs(nib_console_bold(), stdout);
    nib_print_safe(stdout, nib_gguf_path(in->gguf), strlen(nib_gguf_path(in->gguf)), 60);
    printf("%s  %s, GGUF %u\n", nib_console_plain(), nib_show_bytes(nib_gguf_bytes(in->gguf)).s,
           nib_gguf_version(in->gguf));
    printf("%-10s ", "model");
    nib_print_safe(stdout, name.data, name.n_bytes, 50);
    fputs(name.n_bytes ? ", " : "", stdout);
    nib_print_safe(stdout, arch.data, arch.n_bytes, 30);
    printf(", %s parameters, %.2f bits per weight\n", nib_show_count(in->n_params).s,
           bits_per_weight(in->weight_bytes, in->n_params));
    if (!in->model) return;
    const nib_model_facts *facts = nib_model_facts_of(in->model);
    printf("%-10s %u layers, hidden %u, ", "shape", facts->n_layer, facts->n_embd);
    if (facts->n_expert)
        printf("%u of %u experts of %u, ", facts->n_expert_used, facts->n_expert, facts->n_ff_expert);
    else
        printf("FFN %u, ", facts->n_ff);
    printf("%u query and %u key/value heads of %u, context %u\n", facts->n_head, facts->n_head_kv, facts->head_dim,
           facts->n_ctx_train);
}

static void print_tokenizer(const inspection *in) {
    if (!in->tokenizer) {
        printf("%-10s none usable: %s\n", "tokenizer", in->no_tokenizer.message);
        return;
    }
    const nib_tokenizer_facts *facts = nib_tokenizer_facts_of(in->tokenizer);
    printf("%-10s ", "tokenizer");
    nib_print_safe(stdout, facts->model, strlen(facts->model), 24);
    fputc('/', stdout);
    nib_print_safe(stdout, facts->pre, strlen(facts->pre), 24);
    printf(", %u tokens", facts->n_vocab);
    if (facts->bos >= 0) printf(", BOS %d%s", facts->bos, facts->add_bos ? " (added)" : "");
    if (facts->eos >= 0) printf(", EOS %d", facts->eos);
    printf("%s\n", facts->can_tokenize ? "" : " (decoding only)");
}

static void print_memory(const inspection *in) {
    if (!in->has_memory) {
        printf("%-10s weights %s; %s\n", "memory", nib_show_bytes(in->weight_bytes).s,
               in->no_model.message[0] ? in->no_model.message : "no more is known");
        return;
    }
    const nib_memory_plan *m = &in->memory;
    printf("%-10s weights %s + cache %s (%u tokens of %s) + scratch %s\n", "memory", nib_show_bytes(m->weights).s,
           nib_show_bytes(m->kv_cache).s, in->n_ctx, nib_show_bytes(m->kv_per_token).s, nib_show_bytes(m->scratch).s);
}

static int larger_role(const void *a, const void *b) {
    const role_sum *x = a, *y = b;
    return x->n_bytes < y->n_bytes ? 1 : x->n_bytes > y->n_bytes ? -1 : strcmp(x->name, y->name);
}

static void print_roles(inspection *in, bool all) {
    enum { SHOWN = 12 };
    nib_table table;
    qsort(in->roles, in->n_roles, sizeof *in->roles, larger_role);
    nib_table_init(&table, "lrrrrl", "role|tensors|parameters|size|share|formats");
    for (unsigned r = 0; r < in->n_roles && (all || r < SHOWN); r++) {
        const role_sum *sum = &in->roles[r];
        nib_table_add(&table, "%s", sum->name);
        nib_table_add(&table, "%llu", (unsigned long long)sum->n_tensors);
        nib_table_add(&table, "%s", nib_show_count(sum->n_elements).s);
        nib_table_add(&table, "%s", nib_show_bytes(sum->n_bytes).s);
        nib_table_add(&table, "%.1f%%",
                      in->weight_bytes ? 100.0 * (double)sum->n_bytes / (double)in->weight_bytes : 0.0);
        nib_table_add(&table, "%s", sum->formats);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    if (!all && in->n_roles > SHOWN) printf("(%u smaller roles: -v shows them)\n", in->n_roles - SHOWN);
}

static uint64_t print_tensors(inspection *in) {
    uint64_t n_shown = 0;
    nib_table table;
    nib_table_init(&table, "lllrrr", "tensor|role|type|shape|bytes|offset");
    for (uint64_t i = 0; i < nib_gguf_n_tensors(in->gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(in->gguf, i);
        char shape[96] = "";
        if (!nib_cli_filter_takes(&in->filter, tensor)) continue;
        for (uint32_t d = 0; d < tensor->n_dims; d++) {
            size_t used = strlen(shape);
            snprintf(shape + used, sizeof shape - used, "%s%llu", d ? " x " : "", (unsigned long long)tensor->ne[d]);
        }
        nib_table_add(&table, "%s", tensor->name);
        nib_table_add(&table, "%s", nib_tensor_role(tensor->name, NULL));
        nib_table_add(&table, "%s", nib_format_facts_of(tensor->format)->name);
        nib_table_add(&table, "%s", shape);
        nib_table_add(&table, "%llu", (unsigned long long)tensor->n_bytes);
        nib_table_add(&table, "%llu", (unsigned long long)tensor->offset);
        n_shown++;
    }
    if (n_shown) nib_table_print(&table, stdout);
    nib_table_fini(&table);
    return n_shown;
}

static void print_metadata(const nib_gguf *gguf) {
    for (uint64_t i = 0; i < nib_gguf_n_kv(gguf); i++) {
        const nib_gguf_kv *kv = nib_gguf_kv_at(gguf, i);
        uint64_t u;
        int64_t s;
        double f;
        nib_text text;
        nib_print_safe(stdout, kv->key.data, kv->key.n_bytes, 60);
        fputs(" = ", stdout);
        if (kv->type == NIB_GGUF_ARRAY)
            printf("%llu of %s", (unsigned long long)kv->n, nib_gguf_type_name(kv->element_type));
        else if (kv->type == NIB_GGUF_BOOL)
            fputs(kv->data[0] ? "true" : "false", stdout);
        else if (kv->type == NIB_GGUF_STRING && nib_gguf_kv_text(kv, 0, &text))
            nib_print_safe(stdout, text.data, text.n_bytes, 70);
        else if (kv->type != NIB_GGUF_F32 && kv->type != NIB_GGUF_F64 && nib_gguf_kv_u64(kv, 0, &u))
            printf("%llu", (unsigned long long)u);
        else if (kv->type != NIB_GGUF_F32 && kv->type != NIB_GGUF_F64 && nib_gguf_kv_i64(kv, 0, &s))
            printf("%lld", (long long)s);
        else if (nib_gguf_kv_f64(kv, 0, &f))
            printf("%g", f);
        fputc('\n', stdout);
    }
}

static void print_weights(const nib_weight_stats *w) {
    printf(
        "weights    %s in matrices: mean %.3g, deviation %.3g, largest %.3g, kurtosis %.1f, %llu beyond 6 deviations\n",
        nib_show_count(w->n).s, w->mean, w->std, w->absmax, w->kurtosis, (unsigned long long)w->n_outliers_6sigma);
    printf("%10.3g %s %.3g (counts on a log scale)\n", -w->edge,
           nib_show_histogram(w->histogram, NIB_HISTOGRAM_BINS, 64).s, w->edge);
}

/* ---- The command ---------------------------------------------------------------------------------------------------------------- */

static void print_all(nib_cli *cli, inspection *in) {
    if (in->filter.is_set) {
        if (print_tensors(in) == 0) nib_console_warn("no tensor matches %s", nib_cli_text(cli, "tensor"));
        return;
    }
    print_head(in);
    print_tokenizer(in);
    print_memory(in);
    if (in->weights) print_weights(in->weights);
    if (cli->verbose) fputc('\n', stdout), print_metadata(in->gguf);
    fputc('\n', stdout);
    print_roles(in, cli->verbose > 0);
    if (cli->verbose) fputc('\n', stdout), print_tensors(in);
}

static nib_status run(nib_cli *cli, nib_error *error) {
    inspection *in = calloc(1, sizeof *in);
    if (!in) return nib_cli_no_memory(error);
    nib_status status = nib_cli_filter_open(cli, &in->filter, error);
    if (!status) status = gather(cli, in, error);
    if (!status && nib_cli_switch(cli, "check")) status = nib_gguf_check(in->gguf, cli->pool, &cli->watch, error);
    if (!status && nib_cli_switch(cli, "weights")) {
        in->weights = calloc(1, sizeof *in->weights);
        status = in->weights ? nib_weights_measure(in->gguf, 0, cli->pool, &cli->watch, in->weights, error)
                             : nib_cli_no_memory(error);
    }
    nib_console_erase_progress();
    if (!status && cli->wants_json) status = write_json(cli, in, error);
    if (!status && !cli->json) print_all(cli, in);
    if (!status && nib_cli_switch(cli, "check"))
        nib_console_note("checked: every byte of %llu tensors", (unsigned long long)nib_gguf_n_tensors(in->gguf));
    nib_cli_filter_fini(&in->filter);
    nib_tokenizer_free(in->tokenizer);
    nib_model_close(in->model);
    nib_gguf_close(in->gguf);
    free(in->weights);
    free(in);
    return status;
}

static const nib_option options[] = {
    {.name = "tensor", .kind = NIB_OPTION_TEXT, .value = "REGEX", .about = "list the tensors whose name matches"},
    {.name = "check",
     .kind = NIB_OPTION_SWITCH,
     .about = "read and validate every byte",
     .more = "Codes no encoder writes and scales that are not finite are errors; NaN in plain floats is a warning."},
    {.name = "weights", .kind = NIB_OPTION_SWITCH, .about = "histogram and moments of all matrix weights"},
    {.name = "ctx",
     .letter = 'c',
     .kind = NIB_OPTION_UINT,
     .value = "N",
     .min = 1,
     .max = 16777216,
     .about = "context length for the memory needed (default: the model's, to 4096)"},
    NIB_KV_OPTION,
    {.name = NULL},
};

const nib_command nib_command_inspect = {
    .name = "inspect",
    .group = "look",
    .usage = "MODEL [--tensor REGEX] [--check]",
    .about = "metadata, tokenizer, tensors, memory",
    .more = "Prints a summary; -v adds all metadata and tensors. Works for models nibble cannot run, too.",
    .examples =
        "nibble inspect model.gguf\nnibble inspect demo --tensor 'blk.0.*' \nnibble inspect model.gguf --check\n"
        "nibble inspect demo --json | jq .by_role",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
