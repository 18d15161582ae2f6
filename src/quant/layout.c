/* What an output of the quantizer will be, decided in full before its first byte: formats, metadata, files, offsets. */
#include "quant/layout.h"

#include "quant/recipe.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST_FILES 999u /* of one output: all are open at once */

/* Metadata that is written anew, or that describes how the input was stored and not what it is. */
static bool is_left_out(nib_text key, bool with_imatrix) {
    static const char imatrix[] = "quantize.imatrix.";
    static const char *const keys[] = {
        "general.quantization_version", "general.file_type", "general.alignment", "split.no",    "split.count",
        "split.tensors.count",          "nibble.version",    "nibble.recipe",     "nibble.pure", "nibble.grid.version",
        "nibble.tensor_xxh3",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (key.n_bytes == strlen(keys[i]) && memcmp(key.data, keys[i], key.n_bytes) == 0) return true;
    return with_imatrix && key.n_bytes > strlen(imatrix) && memcmp(key.data, imatrix, strlen(imatrix)) == 0;
}

/* As llama-quantize writes them: texts cut to 127 bytes, no number of chunks if it is not known. */
static void put_imatrix(nib_gguf_head *head, const nib_imatrix *imatrix) {
    char text[128];
    const nib_imatrix_facts facts = nib_imatrix_facts_of(imatrix);
    snprintf(text, sizeof text, "%s", facts.path);
    nib_gguf_head_text(head, "quantize.imatrix.file", text);
    if (facts.dataset) {
        snprintf(text, sizeof text, "%s", facts.dataset);
        nib_gguf_head_text(head, "quantize.imatrix.dataset", text);
    }
    nib_gguf_head_u32(head, "quantize.imatrix.entries_count", (uint32_t)facts.n_entries);
    if (facts.n_chunks) nib_gguf_head_u32(head, "quantize.imatrix.chunks_count", (uint32_t)facts.n_chunks);
}

/* The order is llama-quantize's: the input's pairs, then those that say how it is quantized; ours come last. */
static void put_metadata(nib_layout *l, nib_gguf_head *head, const nib_gguf *gguf, const nib_quantize_params *params) {
    for (uint64_t i = 0; i < nib_gguf_n_kv(gguf); i++) {
        const nib_gguf_kv *kv = nib_gguf_kv_at(gguf, i);
        if (!is_left_out(kv->key, params->imatrix != NULL)) nib_gguf_head_copy(head, kv);
    }
    nib_gguf_head_u32(head, "general.quantization_version", 2);
    const uint32_t file_type = nib_recipe_file_type(params->recipe);
    if (file_type != UINT32_MAX) nib_gguf_head_u32(head, "general.file_type", file_type);
    if (params->imatrix) put_imatrix(head, params->imatrix);
    for (size_t i = 0; i < l->n; i++) {
        if (!nib_format_facts_of(l->choices[i].format)->is_nibbles_own) continue;
        nib_gguf_head_u32(head, "nibble.grid.version", 1);
        break;
    }
    if (params->no_provenance) return;
    nib_gguf_head_text(head, "nibble.version", nib_version());
    nib_gguf_head_text(head, "nibble.recipe", nib_recipe_name(params->recipe));
    nib_gguf_head_bool(head, "nibble.pure", params->pure);
    if (l->n) l->hashes_at = nib_gguf_head_u64_array(head, "nibble.tensor_xxh3", l->n);
}

static nib_status size_of_tensor(const nib_gguf *gguf, const nib_choice_of_format *choice, uint64_t *n_bytes,
                                 nib_error *error) {
    const nib_format_facts *facts = nib_format_facts_of(choice->format);
    const nib_tensor *tensor = choice->tensor;
    if (tensor->ne[0] % facts->block != 0 || NIB_PIECE_COLUMNS % facts->block != 0)
        return nib_fail_at(error, NIB_ERR_BUG, nib_gguf_path(gguf), -1, tensor->name,
                           "rows of %" PRIu64 " were given the format %s", tensor->ne[0], facts->name);
    if (!nib_mul_u64(tensor->n_elements / facts->block, facts->bytes, n_bytes) || *n_bytes > INT64_MAX)
        return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(gguf), -1, tensor->name,
                           "tensor %s would be larger than any file", tensor->name);
    return NIB_OK;
}

/* Whether a tensor would make use of importance. Embedding and output are not measured, so nobody misses theirs. */
static bool wants_importance(const nib_choice_of_format *choice) {
    const char *name = choice->tensor->name;
    if (choice->copied || nib_format_facts_of(choice->format)->kind == NIB_CLASS_FLOAT) return false;
    return choice->importance || (strcmp(name, "token_embd.weight") != 0 && strcmp(name, "output.weight") != 0 &&
                                  strcmp(name, "per_layer_token_embd.weight") != 0);
}

/* Refuses an importance matrix that fits no tensor. */
static nib_status check_imatrix(const nib_layout *l, const nib_imatrix *imatrix, nib_error *error) {
    bool wanted = false, found = false;
    for (size_t i = 0; i < l->n; i++) {
        wanted |= wants_importance(&l->choices[i]);
        found |= l->choices[i].importance != NULL;
    }
    if (!imatrix || !wanted || found) return NIB_OK;
    nib_fail_at(
        error, NIB_ERR_CORRUPT, nib_imatrix_facts_of(imatrix).path, -1, NULL,
        "the importance matrix is another model's: no entry has the name and size of one of this model's tensors");
    return nib_hint(error, NIB_ERR_CORRUPT, "measure one with this model");
}

/* What choosing allows and encoding cannot do. */
static nib_status check_choices(const nib_gguf *gguf, const nib_quantize_params *params, const nib_layout *l,
                                nib_error *error) {
    for (size_t i = 0; i < l->n; i++) {
        const nib_choice_of_format *choice = &l->choices[i];
        const nib_format_facts *facts = nib_format_facts_of(choice->format);
        if (choice->copied) continue;
        if (!facts->can_encode || facts->kind == NIB_CLASS_NONE) { /* of kind NONE: not for weights */
            nib_fail_at(error, NIB_ERR_UNSUPPORTED, nib_gguf_path(gguf), -1, choice->tensor->name,
                        "nibble does not write the format %s", facts->name);
            return nib_hint(error, NIB_ERR_UNSUPPORTED, "`nibble formats` lists the formats it writes");
        }
        if (!choice->lacks_importance) continue;
        nib_fail_at(error, NIB_ERR_UNSUPPORTED, nib_gguf_path(gguf), -1, choice->tensor->name,
                    "%s as %s needs an importance matrix%s", choice->tensor->name, facts->name,
                    params->imatrix ? ", and the one given has no entry that fits" : "");
        return nib_hint(error, NIB_ERR_UNSUPPORTED, "%s",
                        params->imatrix
                            ? "give this tensor another format, or use the importance matrix of this very model"
                            : "give one, or choose a format that does without: q2_k, q3_k_m, iq4_xs");
    }
    return NIB_OK;
}

/* Decides where every tensor goes: offsets count from the start of the data here, since heads are not made yet. */
static nib_status place_tensors(const nib_gguf *gguf, const nib_quantize_params *params, nib_layout *l,
                                nib_error *error) {
    uint64_t offset = 0, total = 0;
    uint32_t part = 0;
    for (size_t i = 0; i < l->n; i++) {
        const nib_tensor *tensor = l->choices[i].tensor;
        uint64_t n_bytes = 0;
        NIB_TRY(size_of_tensor(gguf, &l->choices[i], &n_bytes, error));
        const uint64_t padded = nib_round_up(n_bytes, NIB_GGUF_ALIGNMENT);
        if (!nib_add_u64(total, padded, &total) || total > (uint64_t)INT64_MAX / 2)
            return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(gguf), -1, tensor->name,
                               "the tensors up to %s would be larger than any file", tensor->name);
        if (params->split_bytes && offset && offset + padded > params->split_bytes) {
            part++;
            offset = 0;
        }
        l->places[i] = (nib_place){.part = part, .offset = offset, .n_bytes = n_bytes};
        offset += padded;
    }
    l->n_parts = (size_t)part + 1;
    if (l->n_parts <= MOST_FILES) return NIB_OK;
    nib_fail(error, NIB_ERR_USAGE, "the output would be split into %zu files, more than %u", l->n_parts, MOST_FILES);
    return nib_hint(error, NIB_ERR_USAGE, "split it into larger files");
}

/* "model.gguf" -> "model-00001-of-00003.gguf" */
static char *name_of_part(const char *path_out, size_t part, size_t n_parts) {
    nib_string text = {0};
    size_t n = strlen(path_out);
    if (n_parts == 1) return nib_strdup(path_out);
    if (n >= 5 && strcmp(path_out + n - 5, ".gguf") == 0) n -= 5;
    nib_string_addf(&text, "%.*s-%05zu-of-%05zu.gguf", (int)n, path_out, part + 1, n_parts);
    if (text.failed) nib_string_fini(&text);
    return text.data;
}

static nib_status make_part(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params,
                            nib_layout *l, uint32_t index, nib_error *error) {
    nib_part *part = &l->parts[index];
    uint64_t n_payload = 0;
    part->path = name_of_part(path_out, index, l->n_parts);
    if (!part->path) return nib_fail_memory(error, strlen(path_out) + 20);
    nib_gguf_head_begin(&part->head);
    if (index == 0) put_metadata(l, &part->head, gguf, params);
    if (l->n_parts > 1) {
        nib_gguf_head_u16(&part->head, "split.no", (uint16_t)index);
        nib_gguf_head_u16(&part->head, "split.count", (uint16_t)l->n_parts);
        nib_gguf_head_i32(&part->head, "split.tensors.count", (int32_t)l->n);
    }
    for (size_t i = 0; i < l->n; i++) {
        if (l->places[i].part != index) continue;
        const nib_tensor *tensor = l->choices[i].tensor;
        nib_gguf_head_tensor(&part->head, tensor->name, l->choices[i].format, tensor->ne, l->places[i].offset);
        n_payload = nib_round_up(l->places[i].offset + l->places[i].n_bytes, NIB_GGUF_ALIGNMENT);
    }
    NIB_TRY(nib_gguf_head_end(&part->head, NIB_GGUF_ALIGNMENT, error));
    for (size_t i = 0; i < l->n; i++)
        if (l->places[i].part == index) l->places[i].offset += part->head.text.n_bytes;
    part->n_bytes = part->head.text.n_bytes + n_payload;
    l->n_bytes += part->n_bytes;
    return NIB_OK;
}

nib_status nib_layout_make(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params, nib_layout *l,
                           nib_error *error) {
    *l = (nib_layout){.n = (size_t)nib_gguf_n_tensors(gguf)};
    l->choices = nib_alloc(l->n, sizeof *l->choices);
    l->places = nib_alloc(l->n, sizeof *l->places);
    if (!l->choices || !l->places) return nib_fail_memory(error, l->n * (sizeof *l->choices + sizeof *l->places));
    NIB_TRY(nib_recipe_choose(params, gguf, l->choices, error));
    NIB_TRY(check_imatrix(l, params->imatrix, error));
    NIB_TRY(check_choices(gguf, params, l, error));
    NIB_TRY(place_tensors(gguf, params, l, error));
    l->parts = nib_alloc(l->n_parts, sizeof *l->parts);
    if (!l->parts) return nib_fail_memory(error, l->n_parts * sizeof *l->parts);
    for (uint32_t p = 0; p < l->n_parts; p++) NIB_TRY(make_part(gguf, path_out, params, l, p, error));
    return NIB_OK;
}

void nib_layout_fini(nib_layout *l) {
    for (size_t p = 0; l->parts && p < l->n_parts; p++) {
        nib_gguf_head_fini(&l->parts[p].head);
        free(l->parts[p].path);
    }
    free(l->parts);
    free(l->places);
    free(l->choices);
    *l = (nib_layout){0};
}

nib_status nib_quantize_plan(const nib_gguf *gguf, const nib_quantize_params *params, uint64_t *n_bytes,
                             nib_error *error) {
    nib_layout layout;
    const nib_status status = nib_layout_make(gguf, "", params, &layout, error);
    if (status == NIB_OK) *n_bytes = layout.n_bytes;
    nib_layout_fini(&layout);
    return status;
}

/* ---- What is unusual about it -------------------------------------------------------------------------------------- */

/* What was lost when the input was quantized cannot be seen here, and comes on top. */
static void warn_of_loss(const nib_layout *l, const nib_watch *watch) {
    const nib_format *most = NULL;
    uint64_t n_bytes = 0;
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++) {
        const nib_choice_of_format *choice = &l->choices[i];
        const nib_format_facts *from = nib_format_facts_of(choice->tensor->format);
        if (choice->copied || (from->kind == NIB_CLASS_FLOAT && from->bytes >= 2 * from->block)) continue;
        n++;
        if (choice->tensor->n_bytes <= n_bytes) continue;
        n_bytes = choice->tensor->n_bytes;
        most = choice->tensor->format;
    }
    if (n)
        nib_warn(watch,
                 "%zu of %zu tensors are quantized already (%s): their errors come on top of what was lost then; "
                 "quantize the original model if you can",
                 n, l->n, nib_format_facts_of(most)->name);
}

void nib_layout_warn(const nib_layout *l, const nib_imatrix *imatrix, const nib_watch *watch) {
    warn_of_loss(l, watch);
    for (size_t i = 0; imatrix && i < l->n; i++) {
        const nib_tensor *tensor = l->choices[i].tensor;
        const float *values;
        if (l->choices[i].importance || !wants_importance(&l->choices[i])) continue;
        const bool absent =
            nib_imatrix_find(imatrix, tensor->name, tensor->ne[0], tensor->ne[2], &values) == NIB_IMATRIX_ABSENT;
        nib_warn(watch, "%s: %s; it is quantized without importance", tensor->name,
                 absent ? "the importance matrix has no such entry"
                        : "its entry in the importance matrix is for another shape");
    }
}
