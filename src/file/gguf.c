/* Reading GGUF: one pass over the header of a mapped file.
 *
 *   magic version n_tensors n_kv | pairs ... | tensor descriptions ... | padding | payload, payload, ...
 *
 * Everything in the file is hostile. Invariants:
 *   - a count or length is compared with the bytes left before anything is allocated or skipped for it;
 *   - no sum or product of sizes can wrap;
 *   - arrays grow with what was really read, so memory follows the header, not its claims;
 *   - payloads lie back to back in the order of their descriptions (padded to the alignment), inside the file;
 *   - duplicates are found by sorting, so no choice of names makes it slow.
 * Facts of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#include "file/demo.h"
#include "file/gguf_file.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* The least bytes a pair takes: key length, 1 byte of key, type, 1 byte of value. */
#define MIN_KV_BYTES     (8u + 1u + 4u + 1u)
/* The least bytes a tensor description takes: name length, 1 byte of name, n_dims, ne[0], type, offset. */
#define MIN_TENSOR_BYTES (8u + 1u + 4u + 8u + 4u + 8u)
#define MAX_KEY_BYTES    65535u
#define MOST_SHARDS      999u /* all are open at once */

typedef struct cursor {
    const uint8_t *data;
    size_t n_bytes, at;
    const char *file;
    nib_error *error;
} cursor;

static nib_status refuse(const cursor *c, size_t offset, const char *field, const char *format, ...) NIB_PRINTF(4, 5);
static nib_status refuse(const cursor *c, size_t offset, const char *field, const char *format, ...) {
    char message[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    nib_fail_at(c->error, NIB_ERR_CORRUPT, c->file, (int64_t)offset, field, "%s", message);
    return nib_hint(c->error, NIB_ERR_CORRUPT,
                    "the file is damaged or was written wrongly; download or convert it again");
}

static uint64_t left(const cursor *c) {
    return c->n_bytes - c->at;
}

static nib_status take(cursor *c, uint64_t n_bytes, const char *field, const char *what, const uint8_t **out) {
    if (n_bytes > left(c)) {
        refuse(c, c->at, field, "the file ends inside %s: %" PRIu64 " bytes needed, %" PRIu64 " left", what, n_bytes,
               left(c));
        return NIB_ERR_CORRUPT; /* a constant, so that the compiler sees *out set on success */
    }
    *out = c->data + c->at;
    c->at += (size_t)n_bytes;
    return NIB_OK;
}

static nib_status take_u32(cursor *c, const char *field, const char *what, uint32_t *out) {
    const uint8_t *bytes;
    NIB_TRY(take(c, 4, field, what, &bytes));
    *out = nib_load_u32(bytes);
    return NIB_OK;
}

static nib_status take_u64(cursor *c, const char *field, const char *what, uint64_t *out) {
    const uint8_t *bytes;
    NIB_TRY(take(c, 8, field, what, &bytes));
    *out = nib_load_u64(bytes);
    return NIB_OK;
}

/* ---- Start of the file ------------------------------------------------------------------------------------------- */

static nib_status read_magic(cursor *c, uint32_t *version) {
    const uint8_t *magic;
    if (c->n_bytes < 4 || memcmp(c->data, "GGUF", 4) != 0) {
        if (c->n_bytes < 4)
            nib_fail_at(c->error, NIB_ERR_CORRUPT, c->file, 0, "magic", "not a GGUF file: only %zu bytes", c->n_bytes);
        else
            nib_fail_at(c->error, NIB_ERR_CORRUPT, c->file, 0, "magic",
                        "not a GGUF file: it begins with %02x %02x %02x %02x, not with \"GGUF\"", c->data[0],
                        c->data[1], c->data[2], c->data[3]);
        return nib_hint(c->error, NIB_ERR_CORRUPT, "give a .gguf file, version 2 or 3");
    }
    NIB_TRY(take(c, 4, "magic", "the magic", &magic));
    const size_t at = c->at;
    NIB_TRY(take_u32(c, "version", "the version", version));
    if (*version == 2 || *version == 3) return NIB_OK;
    if (*version != 0 && (*version & 0xffff) == 0) {
        nib_fail_at(c->error, NIB_ERR_CORRUPT, c->file, (int64_t)at, "version",
                    "the file is in big-endian byte order (version reads as %" PRIu32 ")", *version);
        return nib_hint(c->error, NIB_ERR_CORRUPT, "convert it to little-endian, as every common machine writes it");
    }
    nib_fail_at(c->error, NIB_ERR_CORRUPT, c->file, (int64_t)at, "version",
                "GGUF version %" PRIu32 " is not one of those that exist and are read: 2 and 3", *version);
    return nib_hint(c->error, NIB_ERR_CORRUPT, "convert the model again with a current converter");
}

static nib_status read_counts(cursor *c, uint64_t *n_tensors, uint64_t *n_kv) {
    const size_t at = c->at;
    NIB_TRY(take_u64(c, "n_tensors", "the number of tensors", n_tensors));
    NIB_TRY(take_u64(c, "n_kv", "the number of metadata pairs", n_kv));
    if (*n_tensors > left(c) / MIN_TENSOR_BYTES)
        return refuse(c, at, "n_tensors", "%" PRIu64 " tensors cannot be described in the %" PRIu64 " bytes left",
                      *n_tensors, left(c));
    if (*n_kv > (left(c) - *n_tensors * MIN_TENSOR_BYTES) / MIN_KV_BYTES)
        return refuse(c, at + 8, "n_kv", "%" PRIu64 " metadata pairs cannot stand in the %" PRIu64 " bytes left", *n_kv,
                      left(c));
    return NIB_OK;
}

/* ---- Metadata ---------------------------------------------------------------------------------------------------- */

static nib_status read_string(cursor *c, const char *field, const char *what, nib_text *out) {
    const size_t at = c->at;
    uint64_t n_bytes;
    const uint8_t *bytes;
    NIB_TRY(take_u64(c, field, what, &n_bytes));
    if (n_bytes > left(c))
        return refuse(c, at, field, "the length of %s is %" PRIu64 " bytes, only %" PRIu64 " are left", what, n_bytes,
                      left(c));
    NIB_TRY(take(c, n_bytes, field, what, &bytes));
    *out = (nib_text){(const char *)bytes, (size_t)n_bytes};
    return NIB_OK;
}

/* Steps over kv->n strings, keeping where each begins. */
static nib_status read_string_array(cursor *c, const char *field, nib_gguf_kv *kv) {
    if (kv->n > left(c) / 8)
        return refuse(c, c->at - 8, field, "an array of %" PRIu64 " strings cannot stand in the %" PRIu64 " bytes left",
                      kv->n, left(c));
    uint64_t *offsets = nib_alloc((size_t)kv->n, sizeof *offsets);
    if (!offsets) return nib_fail_memory(c->error, kv->n * sizeof *offsets);
    kv->strings = offsets; /* owned by the pair from here on */
    const size_t begin = c->at;
    for (uint64_t i = 0; i < kv->n; i++) {
        nib_text text;
        offsets[i] = c->at - begin;
        NIB_TRY(read_string(c, field, "a string in the array", &text));
    }
    return NIB_OK;
}

static nib_status read_array(cursor *c, const char *field, nib_gguf_kv *kv) {
    const size_t at = c->at;
    uint32_t element_type;
    NIB_TRY(take_u32(c, field, "an array's element type", &element_type));
    if (element_type >= NIB_GGUF_N_TYPES || element_type == NIB_GGUF_ARRAY)
        return refuse(c, at, field, "array of element type %" PRId32 "%s", (int32_t)element_type,
                      element_type == NIB_GGUF_ARRAY ? ": arrays of arrays are not allowed" : ", which does not exist");
    kv->element_type = (nib_gguf_type)element_type;
    NIB_TRY(take_u64(c, field, "an array's length", &kv->n));
    kv->data = c->data + c->at;
    if (element_type == NIB_GGUF_STRING) return read_string_array(c, field, kv);
    const size_t item_bytes = nib_gguf_scalar_bytes(kv->element_type);
    if (kv->n > left(c) / item_bytes)
        return refuse(c, at + 4, field, "an array of %" PRIu64 " %s cannot stand in the %" PRIu64 " bytes left", kv->n,
                      nib_gguf_type_name(kv->element_type), left(c));
    return take(c, kv->n * item_bytes, field, "an array", &kv->data);
}

static nib_status read_kv(cursor *c, nib_gguf_kv *kv) {
    char field[128];
    const size_t at = c->at;
    kv->offset = (int64_t)at;
    NIB_TRY(read_string(c, "metadata", "a key", &kv->key));
    if (kv->key.n_bytes == 0) return refuse(c, at, "metadata", "a key is empty");
    if (kv->key.n_bytes > MAX_KEY_BYTES)
        return refuse(c, at, "metadata", "a key is %zu bytes long, at most %u are allowed", kv->key.n_bytes,
                      MAX_KEY_BYTES);
    snprintf(field, sizeof field, "%.*s", (int)(kv->key.n_bytes < 127 ? kv->key.n_bytes : 127), kv->key.data);
    const size_t type_at = c->at;
    uint32_t type;
    NIB_TRY(take_u32(c, field, "a value's type", &type));
    if (type >= NIB_GGUF_N_TYPES)
        return refuse(c, type_at, field, "value type %" PRId32 " does not exist", (int32_t)type);
    kv->type = kv->element_type = (nib_gguf_type)type;
    kv->n = 1;
    kv->data = c->data + c->at;
    if (kv->type == NIB_GGUF_ARRAY) return read_array(c, field, kv);
    if (kv->type == NIB_GGUF_STRING) {
        nib_text text;
        return read_string(c, field, "a string", &text);
    }
    return take(c, nib_gguf_scalar_bytes(kv->type), field, "a value", &kv->data);
}

static int compare_text(nib_text a, nib_text b) {
    const size_t n = a.n_bytes < b.n_bytes ? a.n_bytes : b.n_bytes;
    const int order = n ? memcmp(a.data, b.data, n) : 0;
    return order ? order : (a.n_bytes > b.n_bytes) - (a.n_bytes < b.n_bytes);
}

static int compare_kv(const void *a, const void *b) {
    const nib_gguf_kv *x = *(const nib_gguf_kv *const *)a, *y = *(const nib_gguf_kv *const *)b;
    const int order = compare_text(x->key, y->key);
    return order ? order : (x->offset > y->offset) - (x->offset < y->offset);
}

static nib_status read_metadata(cursor *c, nib_gguf *g, uint64_t n_kv) {
    for (uint64_t i = 0; i < n_kv; i++) {
        if (!nib_grow((void **)&g->kv, &g->kv_capacity, g->n_kv + 1, sizeof *g->kv))
            return nib_fail_memory(c->error, (g->n_kv + 1) * sizeof *g->kv);
        nib_gguf_kv *kv = &g->kv[g->n_kv++];
        *kv = (nib_gguf_kv){0};
        NIB_TRY(read_kv(c, kv));
    }
    g->kv_by_key = nib_alloc(g->n_kv, sizeof *g->kv_by_key);
    if (!g->kv_by_key) return nib_fail_memory(c->error, g->n_kv * sizeof *g->kv_by_key);
    for (size_t i = 0; i < g->n_kv; i++) g->kv_by_key[i] = &g->kv[i];
    if (g->n_kv) qsort(g->kv_by_key, g->n_kv, sizeof *g->kv_by_key, compare_kv);
    for (size_t i = 1; i < g->n_kv; i++) {
        const nib_gguf_kv *first = g->kv_by_key[i - 1], *second = g->kv_by_key[i];
        if (compare_text(first->key, second->key) == 0) {
            char field[128];
            snprintf(field, sizeof field, "%.*s", (int)(first->key.n_bytes < 127 ? first->key.n_bytes : 127),
                     first->key.data);
            return refuse(c, (size_t)second->offset, field, "the key stands twice, first at byte %" PRId64,
                          first->offset);
        }
    }
    return NIB_OK;
}

static nib_status read_alignment(const cursor *c, nib_gguf *g) {
    g->alignment = NIB_GGUF_ALIGNMENT;
    const nib_gguf_kv *kv = nib_gguf_find(g, "general.alignment");
    if (!kv) return NIB_OK;
    if (kv->type != NIB_GGUF_U32)
        return refuse(c, (size_t)kv->offset, "general.alignment", "the alignment is of type %s, not u32",
                      nib_gguf_type_name(kv->type));
    g->alignment = nib_load_u32(kv->data);
    if (g->alignment == 0 || (g->alignment & (g->alignment - 1)) != 0)
        return refuse(c, (size_t)kv->offset, "general.alignment",
                      "the alignment is %" PRIu32 ", which is not a power of two", g->alignment);
    return NIB_OK;
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------ */

static nib_status read_tensor_name(cursor *c, char name[64]) {
    const size_t at = c->at;
    nib_text text;
    NIB_TRY(read_string(c, "tensor", "a tensor's name", &text));
    if (text.n_bytes == 0) return refuse(c, at, "tensor", "a tensor's name is empty");
    if (text.n_bytes > 63)
        return refuse(c, at, "tensor", "a tensor's name is %zu bytes long, at most 63 are allowed: %.*s", text.n_bytes,
                      64, text.data);
    if (memchr(text.data, 0, text.n_bytes)) return refuse(c, at, "tensor", "a tensor's name contains a zero byte");
    memset(name, 0, 64);
    memcpy(name, text.data, text.n_bytes);
    return NIB_OK;
}

static nib_status read_shape(cursor *c, const char *name, nib_tensor *t) {
    const size_t at = c->at;
    NIB_TRY(take_u32(c, name, "a tensor's number of dimensions", &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        return refuse(c, at, name, "tensor %s has %" PRIu32 " dimensions; 1 to 4 are allowed", name, t->n_dims);
    t->n_elements = 1;
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d >= t->n_dims) continue;
        const size_t ne_at = c->at;
        NIB_TRY(take_u64(c, name, "a tensor's shape", &t->ne[d]));
        if ((int64_t)t->ne[d] < 1)
            return refuse(c, ne_at, name, "tensor %s: dimension %" PRIu32 " is %" PRId64 "; it must be 1 or more", name,
                          d, (int64_t)t->ne[d]);
        if (!nib_mul_u64(t->n_elements, t->ne[d], &t->n_elements) || t->n_elements > INT64_MAX)
            return refuse(c, ne_at, name, "tensor %s: its dimensions multiply to more than 2^63 elements", name);
    }
    return NIB_OK;
}

static nib_status read_tensor(cursor *c, const char *name, uint64_t expected_offset, nib_tensor *t) {
    NIB_TRY(read_shape(c, name, t));
    const size_t type_at = c->at;
    uint32_t type;
    NIB_TRY(take_u32(c, name, "a tensor's type", &type));
    t->format = nib_format_by_type(type);
    if (!t->format) {
        nib_fail_at(c->error, NIB_ERR_CORRUPT, c->file, (int64_t)type_at, name,
                    "tensor %s has type id %" PRId32 ", which is unknown, so its size cannot be known", name,
                    (int32_t)type);
        return nib_hint(c->error, NIB_ERR_CORRUPT,
                        "`nibble formats` lists the types that are read; the file may be "
                        "meant for another program, or be damaged");
    }
    const nib_format_facts *facts = nib_format_facts_of(t->format);
    if (t->ne[0] % facts->block != 0)
        return refuse(c, type_at, name, "tensor %s: rows of %" PRIu64 " are not a multiple of %s's block of %" PRIu32,
                      name, t->ne[0], facts->name, facts->block);
    if (!nib_mul_u64(t->n_elements / facts->block, facts->bytes, &t->n_bytes) || t->n_bytes > INT64_MAX)
        return refuse(c, type_at, name, "tensor %s: its size in bytes overflows", name);
    const size_t offset_at = c->at;
    NIB_TRY(take_u64(c, name, "a tensor's offset", &t->offset));
    if (t->offset != expected_offset)
        return refuse(c, offset_at, name,
                      "tensor %s begins at offset %" PRIu64 " of the data, but the tensors before it end at %" PRIu64,
                      name, t->offset, expected_offset);
    return NIB_OK;
}

static int compare_tensors(const void *a, const void *b) {
    const nib_tensor *x = *(const nib_tensor *const *)a, *y = *(const nib_tensor *const *)b;
    const int order = strcmp(x->name, y->name);
    return order ? order : (x->info_offset > y->info_offset) - (x->info_offset < y->info_offset);
}

/* Sorts by name, and so finds what stands twice. */
static nib_status index_tensors(const cursor *c, nib_gguf *g) {
    g->tensor_by_name = nib_alloc(g->n_tensors, sizeof *g->tensor_by_name);
    if (!g->tensor_by_name) return nib_fail_memory(c->error, g->n_tensors * sizeof *g->tensor_by_name);
    for (size_t i = 0; i < g->n_tensors; i++) g->tensor_by_name[i] = &g->tensors[i];
    if (g->n_tensors) qsort(g->tensor_by_name, g->n_tensors, sizeof *g->tensor_by_name, compare_tensors);
    for (size_t i = 1; i < g->n_tensors; i++) {
        const nib_tensor *first = g->tensor_by_name[i - 1], *second = g->tensor_by_name[i];
        if (strcmp(first->name, second->name) == 0)
            return refuse(c, (size_t)second->info_offset, first->name, "tensor %s stands twice, first at byte %" PRId64,
                          first->name, first->info_offset);
    }
    return NIB_OK;
}

static nib_status read_tensors(cursor *c, nib_gguf *g, uint64_t n_tensors) {
    uint64_t end = 0; /* of the payloads so far, padded, from the start of the data */
    for (uint64_t i = 0; i < n_tensors; i++) {
        const size_t needed = g->n_tensors + 1;
        if (!nib_grow((void **)&g->tensors, &g->tensor_capacity, needed, sizeof *g->tensors) ||
            !nib_grow((void **)&g->names, &g->name_capacity, needed, sizeof *g->names))
            return nib_fail_memory(c->error, needed * (sizeof *g->tensors + sizeof *g->names));
        nib_tensor *t = &g->tensors[i];
        *t = (nib_tensor){.info_offset = (int64_t)c->at};
        NIB_TRY(read_tensor_name(c, g->names[i]));
        NIB_TRY(read_tensor(c, g->names[i], end, t));
        g->n_tensors = needed;
        if (!nib_add_u64(end, t->n_bytes, &end) || !nib_add_u64(end, g->alignment - 1, &end) || end > INT64_MAX)
            return refuse(c, (size_t)t->info_offset, g->names[i], "the sizes of the tensors up to %s overflow",
                          g->names[i]);
        end &= ~(uint64_t)(g->alignment - 1);
    }
    for (size_t i = 0; i < g->n_tensors; i++) g->tensors[i].name = g->names[i]; /* the names have stopped moving */
    return index_tensors(c, g);
}

/* Turns offsets within the data into places in the file, now that it is known where the data begins. */
static nib_status place_tensors(const cursor *c, nib_gguf *g) {
    uint64_t end = c->at;
    const uint64_t data_begin = nib_round_up(c->at, g->alignment);
    for (size_t i = 0; i < g->n_tensors; i++) {
        nib_tensor *t = &g->tensors[i];
        if (!nib_add_u64(t->offset, data_begin, &t->offset) || t->offset > c->n_bytes ||
            t->n_bytes > c->n_bytes - t->offset)
            return refuse(c, (size_t)t->info_offset, t->name,
                          "tensor %s needs %" PRIu64 " bytes from byte %" PRIu64 ", but the file ends at byte %zu",
                          t->name, t->n_bytes, t->offset, c->n_bytes);
        t->data = c->data + t->offset;
        end = t->offset + t->n_bytes;
    }
    end = nib_round_up(end, g->alignment);
    g->trailing_bytes = c->n_bytes > end ? c->n_bytes - end : 0;
    return NIB_OK;
}

/* ---- Split models -------------------------------------------------------------------------------------------------- */

static nib_status read_split_key(const cursor *c, const nib_gguf *g, const char *key, bool *present, uint64_t *out) {
    const nib_gguf_kv *kv = nib_gguf_find(g, key);
    *present = kv != NULL;
    *out = 0;
    if (kv && !nib_gguf_get_u64(g, key, out))
        return refuse(c, (size_t)kv->offset, key, "%s is not a non-negative integer", key);
    return NIB_OK;
}

static nib_status read_split(const cursor *c, nib_gguf *g) {
    bool has_count, has_number;
    nib_split *split = &g->split;
    NIB_TRY(read_split_key(c, g, "split.count", &has_count, &split->count));
    NIB_TRY(read_split_key(c, g, "split.no", &has_number, &split->number));
    NIB_TRY(read_split_key(c, g, "split.tensors.count", &split->has_total, &split->n_tensors));
    if (split->count < 2) return NIB_OK;
    const size_t at = (size_t)nib_gguf_find(g, "split.count")->offset;
    if (!has_number)
        return refuse(c, at, "split.no", "split.count is %" PRIu64 ", but split.no is missing", split->count);
    if (split->number >= split->count)
        return refuse(c, (size_t)nib_gguf_find(g, "split.no")->offset, "split.no",
                      "split.no is %" PRIu64 " in a model of %" PRIu64 " files", split->number, split->count);
    if (split->has_total && split->n_tensors < g->n_tensors)
        return refuse(c, (size_t)nib_gguf_find(g, "split.tensors.count")->offset, "split.tensors.count",
                      "the model has %" PRIu64 " tensors in all, this file alone %zu", split->n_tensors, g->n_tensors);
    if (split->has_total && split->count - 1 > split->n_tensors) /* the first file may hold metadata only */
        return refuse(c, at, "split.count", "%" PRIu64 " files for %" PRIu64 " tensors", split->count,
                      split->n_tensors);
    return NIB_OK;
}

static nib_status refuse_split(const nib_gguf *g, nib_status code, const char *hint, nib_error *error) {
    nib_fail_at(error, code, g->path, nib_gguf_find(g, "split.count")->offset, "split.count",
                "this is file %" PRIu64 " of a model split over %" PRIu64 " files", g->split.number + 1,
                g->split.count);
    return nib_hint(error, code, "%s", hint);
}

/* "model-00001-of-00003.gguf" -> "model-00002-of-00003.gguf"; NULL if it does not end so, or without memory. */
static char *name_of_shard(const nib_gguf *g, uint64_t number) {
    char first[64];
    nib_string text = {0};
    const size_t n_first = (size_t)snprintf(first, sizeof first, "-%05u-of-%05" PRIu64 ".gguf", 1u, g->split.count);
    const size_t n_path = strlen(g->path);
    if (n_path < n_first || strcmp(g->path + n_path - n_first, first) != 0) return NULL;
    nib_string_addf(&text, "%.*s-%05" PRIu64 "-of-%05" PRIu64 ".gguf", (int)(n_path - n_first), g->path, number + 1,
                    g->split.count);
    if (text.failed) nib_string_fini(&text);
    return text.data;
}

static nib_status open_map(nib_map map, const char *name, nib_gguf **out, nib_error *error);

static nib_status open_shard(nib_gguf *g, uint64_t number, nib_gguf **out, nib_error *error) {
    nib_map map;
    nib_status status;
    char *path = name_of_shard(g, number);
    *out = NULL;
    if (!path) {
        nib_fail_at(error, NIB_ERR_USAGE, g->path, -1, "split.count",
                    "a split model's first file has to be called NAME-00001-of-%05" PRIu64 ".gguf", g->split.count);
        return nib_hint(error, NIB_ERR_USAGE, "give the files back their names");
    }
    status = nib_map_open(path, &map, error);
    if (status != NIB_OK) nib_hint(error, status, "all %" PRIu64 " files have to lie in one folder", g->split.count);
    if (status == NIB_OK) status = open_map(map, path, out, error);
    free(path);
    if (status != NIB_OK) return status;
    const nib_split *split = &(*out)->split;
    if (split->count == g->split.count && split->number == number) return NIB_OK;
    nib_fail_at(error, NIB_ERR_CORRUPT, (*out)->path, -1, "split.no",
                "the file says it is number %" PRIu64 " of %" PRIu64 ", its name says %" PRIu64 " of %" PRIu64,
                split->number + 1, split->count, number + 1, g->split.count);
    return nib_hint(error, NIB_ERR_CORRUPT, "give the files back their names, or download this one again");
}

/* Opens the other files and makes their tensors ours; their metadata says nothing new. */
static nib_status join_shards(nib_gguf *g, nib_error *error) {
    size_t n = g->n_tensors;
    if (g->split.number != 0) return refuse_split(g, NIB_ERR_USAGE, "give the first of them", error);
    if (g->split.count > MOST_SHARDS)
        return refuse_split(g, NIB_ERR_UNSUPPORTED, "merge it into fewer files: llama-gguf-split --merge", error);
    g->others = nib_alloc((size_t)g->split.count, sizeof *g->others);
    if (!g->others) return nib_fail_memory(error, g->split.count * sizeof *g->others);
    for (uint64_t k = 1; k < g->split.count; k++) {
        const nib_status status = open_shard(g, k, &g->others[k - 1], error);
        if (g->others[k - 1]) g->n_others++; /* closed with us, whatever comes */
        if (status != NIB_OK) return status;
        n += g->others[k - 1]->n_tensors;
    }
    if (g->split.has_total && n != g->split.n_tensors) {
        nib_fail_at(error, NIB_ERR_CORRUPT, g->path, nib_gguf_find(g, "split.tensors.count")->offset,
                    "split.tensors.count", "the model has %" PRIu64 " tensors in all, its files have %zu",
                    g->split.n_tensors, n);
        return nib_hint(error, NIB_ERR_CORRUPT, "download the files again");
    }
    if (!nib_grow((void **)&g->tensors, &g->tensor_capacity, n, sizeof *g->tensors))
        return nib_fail_memory(error, n * sizeof *g->tensors);
    for (unsigned k = 0; k < g->n_others; k++)
        for (size_t i = 0; i < g->others[k]->n_tensors; i++) {
            g->tensors[g->n_tensors] = g->others[k]->tensors[i];
            g->tensors[g->n_tensors++].shard = k + 1;
        }
    free(g->tensor_by_name);
    g->tensor_by_name = NULL;
    const cursor c = {.file = g->path, .error = error};
    return index_tensors(&c, g);
}

/* ---- Open and close ------------------------------------------------------------------------------------------------ */

/* One file by itself. Takes over map, also when it fails. */
static nib_status open_map(nib_map map, const char *name, nib_gguf **out, nib_error *error) {
    nib_status status = NIB_OK;
    uint64_t n_tensors, n_kv;
    nib_gguf *g = nib_alloc(1, sizeof *g);
    *out = NULL;
    if (!g) {
        nib_map_close(&map);
        return nib_fail_memory(error, sizeof *g);
    }
    g->map = map;
    g->path = nib_strdup(name);
    if (!g->path) {
        status = nib_fail_memory(error, strlen(name) + 1);
        goto fail;
    }
    cursor c = {.data = map.data, .n_bytes = map.n_bytes, .file = g->path, .error = error};
    NIB_TRY_GOTO(read_magic(&c, &g->version));
    NIB_TRY_GOTO(read_counts(&c, &n_tensors, &n_kv));
    NIB_TRY_GOTO(read_metadata(&c, g, n_kv));
    NIB_TRY_GOTO(read_alignment(&c, g));
    NIB_TRY_GOTO(read_tensors(&c, g, n_tensors));
    NIB_TRY_GOTO(place_tensors(&c, g));
    NIB_TRY_GOTO(read_split(&c, g));
    *out = g;
    return NIB_OK;
fail:
    nib_gguf_close(g);
    return status;
}

nib_status nib_gguf_open(const char *path, nib_gguf **out, nib_error *error) {
    nib_map map;
    *out = NULL;
    if (strcmp(path, "demo") == 0) {
        const uint8_t *data;
        size_t n_bytes;
        if (!nib_demo_file("model", &data, &n_bytes)) return nib_fail(error, NIB_ERR_BUG, "no demo model is built in");
        return nib_gguf_open_memory(data, n_bytes, "demo", out, error);
    }
    NIB_TRY(nib_map_open(path, &map, error));
    nib_gguf *g;
    NIB_TRY(open_map(map, path, &g, error));
    const nib_status status = g->split.count > 1 ? join_shards(g, error) : NIB_OK;
    if (status == NIB_OK)
        *out = g;
    else
        nib_gguf_close(g);
    return status;
}

nib_status nib_gguf_open_memory(const void *data, size_t n_bytes, const char *name, nib_gguf **out, nib_error *error) {
    nib_gguf *g;
    *out = NULL;
    NIB_TRY(open_map((nib_map){.data = data, .n_bytes = n_bytes, .owned = false, .fd = -1}, name, &g, error));
    if (g->split.count > 1) {
        refuse_split(g, NIB_ERR_UNSUPPORTED, "open it by the name of its first file", error);
        nib_gguf_close(g);
        return NIB_ERR_UNSUPPORTED;
    }
    *out = g;
    return NIB_OK;
}

void nib_gguf_close(nib_gguf *gguf) {
    if (!gguf) return;
    for (size_t i = 0; i < gguf->n_kv; i++) free((void *)(uintptr_t)gguf->kv[i].strings);
    free(gguf->kv);
    free(gguf->kv_by_key);
    free(gguf->tensors);
    free(gguf->names);
    free(gguf->tensor_by_name);
    for (unsigned k = 0; k < gguf->n_others; k++) nib_gguf_close(gguf->others[k]);
    free(gguf->others);
    free(gguf->path);
    nib_map_close(&gguf->map);
    free(gguf);
}

/* ---- Looking at an open file --------------------------------------------------------------------------------------- */

const char *nib_gguf_path(const nib_gguf *gguf) {
    return gguf->path;
}
uint64_t nib_gguf_bytes(const nib_gguf *gguf) {
    uint64_t n_bytes = gguf->map.n_bytes;
    for (unsigned k = 0; k < gguf->n_others; k++) n_bytes += gguf->others[k]->map.n_bytes;
    return n_bytes;
}
uint32_t nib_gguf_version(const nib_gguf *gguf) {
    return gguf->version;
}
uint32_t nib_gguf_alignment(const nib_gguf *gguf) {
    return gguf->alignment;
}
uint64_t nib_gguf_trailing_bytes(const nib_gguf *gguf) {
    uint64_t n_bytes = gguf->trailing_bytes;
    for (unsigned k = 0; k < gguf->n_others; k++) n_bytes += gguf->others[k]->trailing_bytes;
    return n_bytes;
}
unsigned nib_gguf_n_files(const nib_gguf *gguf) {
    return 1 + gguf->n_others;
}
const nib_map *nib_gguf_map(const nib_gguf *gguf, unsigned file) {
    return file ? &gguf->others[file - 1]->map : &gguf->map;
}
const char *nib_gguf_file_path(const nib_gguf *gguf, unsigned file) {
    return file ? gguf->others[file - 1]->path : gguf->path;
}
uint64_t nib_gguf_n_kv(const nib_gguf *gguf) {
    return gguf->n_kv;
}
const nib_gguf_kv *nib_gguf_kv_at(const nib_gguf *gguf, uint64_t index) {
    return index < gguf->n_kv ? &gguf->kv[index] : NULL;
}
uint64_t nib_gguf_n_tensors(const nib_gguf *gguf) {
    return gguf->n_tensors;
}
const nib_tensor *nib_gguf_tensor_at(const nib_gguf *gguf, uint64_t index) {
    return index < gguf->n_tensors ? &gguf->tensors[index] : NULL;
}

const nib_gguf_kv *nib_gguf_find(const nib_gguf *gguf, const char *key) {
    const nib_text wanted = {key, strlen(key)};
    size_t low = 0, high = gguf->n_kv;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = compare_text(wanted, gguf->kv_by_key[middle]->key);
        if (order == 0) return gguf->kv_by_key[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const nib_tensor *nib_gguf_tensor_find(const nib_gguf *gguf, const char *name) {
    size_t low = 0, high = gguf->n_tensors;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(name, gguf->tensor_by_name[middle]->name);
        if (order == 0) return gguf->tensor_by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}
