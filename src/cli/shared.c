/* What several commands need: models by name, outputs that are never half-written, JSON documents, sampling. */
#include "cli.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Models ------------------------------------------------------------------------------------------------------------- */

nib_status nib_cli_check_model(const char *path, nib_error *error) {
    struct stat info;
    if (strncmp(path, "hf:", 3) == 0)
        return nib_cli_fail(error, NIB_ERR_UNSUPPORTED, "download the .gguf file and give its path",
                            "nibble does not download models: %s", path);
    if (strcmp(path, "demo") != 0 && stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        nib_cli_fail(error, NIB_ERR_UNSUPPORTED, "give a .gguf file; folders of safetensors have to be converted first",
                     "a folder is not a model nibble can open");
        return nib_cli_fail_in(error, path, -1, NULL);
    }
    return NIB_OK;
}

nib_status nib_cli_open_gguf(const char *path, nib_gguf **out, nib_error *error) {
    nib_status status = nib_cli_check_model(path, error);
    return status ? status : nib_gguf_open(path, out, error);
}

nib_status nib_cli_open_model(nib_cli *cli, const char *path, nib_model **out, nib_error *error) {
    nib_status status = nib_cli_check_model(path, error);
    return status ? status : nib_model_open(path, &cli->watch, out, error);
}

nib_status nib_cli_open_models(nib_cli *cli, unsigned first, nib_model **out, unsigned n, nib_error *error) {
    nib_status status = NIB_OK;
    for (unsigned i = 0; i < n; i++) out[i] = NULL;
    for (unsigned i = 0; i < n && !status; i++)
        status = nib_cli_open_model(cli, cli->args.words[first + i], &out[i], error);
    return status;
}

nib_short_text nib_cli_model_label(const char *path) {
    nib_short_text out;
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".gguf") == 0) n -= 5;
    if (n <= 40)
        snprintf(out.s, sizeof out.s, "%.*s", (int)n, name);
    else
        snprintf(out.s, sizeof out.s, "%.18s...%.18s", name, name + n - 18);
    return out;
}

/* ---- Tensors by name ---------------------------------------------------------------------------------------------------- */

nib_status nib_cli_filter_open(const nib_cli *cli, nib_cli_filter *filter, nib_error *error) {
    const char *pattern = nib_cli_text(cli, "tensor");
    filter->is_set = false;
    if (!pattern) return NIB_OK;
    int rc = regcomp(&filter->regex, pattern, REG_EXTENDED | REG_NOSUB);
    if (rc == 0) {
        filter->is_set = true;
        return NIB_OK;
    }
    char why[128];
    regerror(rc, &filter->regex, why, sizeof why);
    return nib_cli_fail(error, NIB_ERR_USAGE, "an extended regular expression, such as 'ffn_(up|down)'",
                        "--tensor %s: %s", pattern, why);
}

bool nib_cli_filter_takes(void *filter, const nib_tensor *tensor) {
    const nib_cli_filter *f = filter;
    return !f->is_set || regexec(&f->regex, tensor->name, 0, NULL, 0) == 0;
}

void nib_cli_filter_fini(nib_cli_filter *filter) {
    if (filter->is_set) regfree(&filter->regex);
    filter->is_set = false;
}

/* ---- Files ---------------------------------------------------------------------------------------------------------------- */

static bool same_file(const char *a, const char *b) {
    struct stat info_a, info_b;
    return stat(a, &info_a) == 0 && stat(b, &info_b) == 0 && info_a.st_dev == info_b.st_dev &&
           info_a.st_ino == info_b.st_ino;
}

nib_status nib_cli_check_output(const char *path, bool force, const char *const *inputs, unsigned n_inputs,
                                nib_error *error) {
    struct stat info;
    nib_status status = NIB_OK;
    if (!*path) return nib_cli_fail(error, NIB_ERR_USAGE, "give a file name after -o", "the output has no name");
    if (strcmp(path, "-") == 0 || stat(path, &info) != 0) return NIB_OK;
    for (unsigned i = 0; i < n_inputs && !status; i++)
        if (same_file(path, inputs[i]))
            status = nib_cli_fail(error, NIB_ERR_USAGE, "choose another name for the output", "the output is an input");
    if (!status && !S_ISREG(info.st_mode))
        status = nib_cli_fail(error, NIB_ERR_USAGE, "give the name of a file",
                              "the output exists and is not a regular file");
    if (!status && !force) status = nib_cli_fail(error, NIB_ERR_USAGE, "--force replaces it", "the output exists");
    return status ? nib_cli_fail_in(error, path, -1, NULL) : NIB_OK;
}

static nib_status io_error(nib_error *error, const char *what, const char *path, const char *hint) {
    int os_errno = errno;
    nib_cli_fail(error, NIB_ERR_IO, hint, "%s: %s", what, strerror(os_errno));
    if (error) error->os_errno = os_errno;
    return nib_cli_fail_in(error, path, -1, NULL);
}

nib_status nib_cli_read_file(const char *path, char **text, size_t *n_bytes, nib_error *error) {
    bool from_stdin = strcmp(path, "-") == 0;
    FILE *file = from_stdin ? stdin : fopen(path, "rb");
    size_t n = 0, capacity = 0;
    char *buffer = NULL;
    nib_status status = NIB_OK;
    if (!file) return io_error(error, "cannot open the file", path, "check the name and the permissions");
    for (;;) {
        if (capacity - n < 2) {
            size_t bigger = capacity ? 2 * capacity : 65536;
            char *moved = bigger > capacity ? realloc(buffer, bigger) : NULL;
            if (!moved) {
                status = nib_cli_no_memory(error);
                goto fail;
            }
            buffer = moved;
            capacity = bigger;
        }
        size_t got = fread(buffer + n, 1, capacity - n - 1, file);
        n += got;
        if (got == 0) break;
    }
    if (nib_console_interrupted())
        status = nib_cli_fail(error, NIB_ERR_INTERRUPTED, NULL, "interrupted");
    else if (ferror(file))
        status = io_error(error, "cannot read the file", path, "is it a file?");
    if (status) goto fail;
    buffer[n] = '\0';
    *text = buffer;
    *n_bytes = n;
    if (!from_stdin) fclose(file);
    return NIB_OK;
fail:
    free(buffer);
    if (!from_stdin) fclose(file);
    return status;
}

nib_status nib_cli_output_open(nib_cli_output *output, const char *path, nib_error *error) {
    *output = (nib_cli_output){.path = path};
    if (strcmp(path, "-") == 0) {
        output->stream = stdout;
        return NIB_OK;
    }
    if (asprintf(&output->partial, "%s.partial", path) < 0) {
        output->partial = NULL;
        return nib_cli_no_memory(error);
    }
    output->stream = fopen(output->partial, "wb");
    if (output->stream) return NIB_OK;
    nib_status status =
        io_error(error, "cannot create the output", output->partial, "check the folder and its permissions");
    free(output->partial);
    output->partial = NULL;
    return status;
}

nib_status nib_cli_output_write(nib_cli_output *output, const void *data, size_t n_bytes, nib_error *error) {
    if (fwrite(data, 1, n_bytes, output->stream) == n_bytes) return NIB_OK;
    /* On stdout a reader that went away is found, and forgiven, when the program ends. */
    return io_error(error, "cannot write", output->partial ? output->path : "standard output", "free some space");
}

nib_status nib_cli_output_commit(nib_cli_output *output, nib_error *error) {
    nib_status status = NIB_OK;
    if (!output->partial) return NIB_OK;
    bool failed = fflush(output->stream) != 0 || fsync(fileno(output->stream)) != 0;
    if (failed) status = io_error(error, "cannot write", output->path, "free some space");
    if (fclose(output->stream) != 0 && !status)
        status = io_error(error, "cannot write", output->path, "free some space");
    output->stream = NULL;
    if (!status && rename(output->partial, output->path) != 0)
        status = io_error(error, "cannot rename the finished output", output->path, NULL);
    if (status) unlink(output->partial);
    free(output->partial);
    output->partial = NULL;
    return status;
}

void nib_cli_output_discard(nib_cli_output *output) {
    if (!output->partial) return;
    if (output->stream) fclose(output->stream);
    unlink(output->partial);
    free(output->partial);
    *output = (nib_cli_output){0};
}

/* ---- JSON documents ----------------------------------------------------------------------------------------------------- */

nib_json *nib_cli_json_begin(nib_cli *cli, const char *name, nib_error *error) {
    nib_json *json = nib_json_new();
    if (json)
        nib_json_begin_document(json, name, cli->pool);
    else
        nib_cli_no_memory(error);
    return json;
}

nib_status nib_cli_json_end(nib_cli *cli, nib_json *json, nib_error *error) {
    const char *text = NULL;
    size_t n_bytes = 0;
    nib_cli_output output = {0};
    nib_json_end_object(json);
    nib_status status = nib_json_text(json, &text, &n_bytes, error);
    if (!status && cli->json) {
        nib_console_erase_progress();
        printf("%s\n", text);
    }
    if (!status && cli->document_output) {
        status = nib_cli_output_open(&output, nib_cli_text(cli, "output"), error);
        if (!status) status = nib_cli_output_write(&output, text, n_bytes, error);
        if (!status) status = nib_cli_output_write(&output, "\n", 1, error);
        if (!status) status = nib_cli_output_commit(&output, error);
        if (status) nib_cli_output_discard(&output);
    }
    nib_json_free(json);
    return status;
}

nib_kv nib_cli_kv(const nib_cli *cli) {
    return strcmp(nib_cli_text(cli, "kv"), nib_kv_name(NIB_KV_Q8_0)) == 0 ? NIB_KV_Q8_0 : NIB_KV_F16;
}

/* ---- Sampling --------------------------------------------------------------------------------------------------------------- */

nib_status nib_cli_new_sampler(const nib_cli *cli, uint32_t n_vocab, nib_sampler **out, nib_error *error) {
    nib_sampler_params params = nib_sampler_defaults();
    params.temperature = (float)nib_cli_number(cli, "temp");
    params.top_k = (uint32_t)nib_cli_uint(cli, "top-k");
    params.top_p = (float)nib_cli_number(cli, "top-p");
    params.min_p = (float)nib_cli_number(cli, "min-p");
    params.seed = nib_cli_uint(cli, "seed");
    return nib_sampler_new(&params, n_vocab, out, error);
}

/* ---- Token ids as text ------------------------------------------------------------------------------------------------------ */

nib_status nib_cli_parse_ids(const char *text, size_t n_bytes, const char *name, uint32_t n_vocab, nib_ids *out,
                             nib_error *error) {
    for (size_t i = 0; i < n_bytes;) {
        if (strchr(" \t\r\n\v\f", text[i]) && text[i]) {
            i++;
            continue;
        }
        uint64_t id = 0;
        size_t start = i;
        while (i < n_bytes && text[i] >= '0' && text[i] <= '9' && id < n_vocab)
            id = 10 * id + (uint64_t)(text[i++] - '0');
        bool ends = i == n_bytes || (text[i] && strchr(" \t\r\n\v\f", text[i]));
        if (i == start || !ends || id >= n_vocab) {
            size_t n = 0;
            while (n < 24 && start + n < n_bytes && text[start + n] && !strchr(" \t\r\n\v\f", text[start + n])) n++;
            char hint[128];
            snprintf(hint, sizeof hint, "ids are whole numbers from 0 to %u, separated by white space", n_vocab - 1);
            nib_cli_fail(error, NIB_ERR_CORRUPT, hint,
                         "\"%.*s\" is not a token id of this model (token %zu of the list)", (int)n, text + start,
                         out->n + 1);
            return nib_cli_fail_in(error, name, (int64_t)start, NULL);
        }
        if (out->n == out->capacity) {
            size_t capacity = out->capacity ? 2 * out->capacity : 1024;
            int32_t *ids = realloc(out->ids, capacity * sizeof *ids);
            if (!ids) return nib_cli_no_memory(error);
            out->ids = ids;
            out->capacity = capacity;
        }
        out->ids[out->n++] = (int32_t)id;
    }
    return NIB_OK;
}

/* ---- Recipes ------------------------------------------------------------------------------------------------------------------ */

nib_status nib_cli_parse_recipes(const char *list, const nib_recipe **out, unsigned most, unsigned *n,
                                 nib_error *error) {
    *n = 0;
    for (const char *at = list; at;) {
        const char *comma = strchr(at, ',');
        size_t length = comma ? (size_t)(comma - at) : strlen(at);
        char name[64];
        if (length == 0 || length >= sizeof name)
            return nib_cli_fail(error, NIB_ERR_USAGE, "names separated by commas, such as q8_0,q4_k",
                                "\"%s\" is not a list of formats", list);
        snprintf(name, sizeof name, "%.*s", (int)length, at);
        for (char *c = name; *c; c++) *c = (char)tolower((unsigned char)*c);
        const unsigned first = *n, n_set = nib_study_levels(name, out + first, most - first);
        if (n_set > most - first || (!n_set && first == most))
            return nib_cli_fail(error, NIB_ERR_USAGE, NULL, "more than %u formats", most);
        if (!n_set && !(out[first] = nib_recipe_find(name, error))) return NIB_ERR_USAGE;
        *n += n_set ? n_set : 1;
        for (unsigned k = first; k < *n; k++)
            for (unsigned i = 0; i < first; i++)
                if (out[i] == out[k])
                    return nib_cli_fail(error, NIB_ERR_USAGE, "leave one out", "%s is in the list twice",
                                        nib_recipe_name(out[k]));
        at = comma ? comma + 1 : NULL;
    }
    return NIB_OK;
}
