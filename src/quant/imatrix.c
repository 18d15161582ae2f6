/* Importance matrices: per weight matrix and input column, how much an error in that column costs (the mean square of what
 * the column was multiplied with while a model read a text). Two file formats, told apart by the first four bytes:
 *
 *   GGUF     NAME.in_sum2 (columns, matrices) sums of squares, NAME.counts (1, matrices) how many rows were summed
 *   legacy   i32 n, then n times: i32 length, name, i32 calls, i32 n_values, f32 values[n_values] (mean square * calls);
 *            then perhaps i32 chunks, i32 length, name of the text
 *
 * Both become one table sorted by name whose values are mean squares, ready for the encoders: finite, not negative, and
 * never all zero. What was not so in the file was replaced, and said once per entry; every size is checked against the file
 * before anything is read or allocated. */
#include "nibble/quant.h"

#include "base/files.h"
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Above this, squared weights times importance could overflow a float. */
#define LARGEST_IMPORTANCE 1e25f
#define LONGEST_NAME       4096u

typedef struct entry {
    char *name;
    float *values; /* (n_values) all matrices of a stack of experts one after the other */
    uint64_t n_values;
} entry;

struct nib_imatrix {
    char *path, *dataset; /* dataset NULL: not said */
    uint64_t n_chunks;
    bool is_legacy;
    entry *entries; /* (n) sorted by name */
    size_t n, capacity;
};

void nib_imatrix_free(nib_imatrix *imatrix) {
    if (!imatrix) return;
    for (size_t i = 0; i < imatrix->n; i++) {
        free(imatrix->entries[i].name);
        free(imatrix->entries[i].values);
    }
    free(imatrix->entries);
    free(imatrix->path);
    free(imatrix->dataset);
    free(imatrix);
}

/* ---- Putting the table together ------------------------------------------------------------------------------------ */

/* Appends an entry of n_values zeros; *values is where they go. */
static nib_status add_entry(nib_imatrix *imatrix, const char *name, size_t n_name, uint64_t n_values, float **values,
                            nib_error *error) {
    if (!nib_grow((void **)&imatrix->entries, &imatrix->capacity, imatrix->n + 1, sizeof *imatrix->entries))
        return nib_fail_memory(error, sizeof *imatrix->entries);
    entry *added = &imatrix->entries[imatrix->n];
    *added = (entry){.name = nib_strdup_n(name, n_name), .n_values = n_values};
    added->values = nib_alloc((size_t)n_values, sizeof *added->values);
    imatrix->n++; /* what is half there is freed with the rest */
    if (!added->name || !added->values) return nib_fail_memory(error, n_values * sizeof *added->values);
    *values = added->values;
    return NIB_OK;
}

/* What the values of one entry needed. */
typedef struct repairs {
    uint64_t n_matrices, n_broken, n_zero, n_unseen;
} repairs;

/* values: (n) of one matrix. Columns that all count the same take the place of what no encoder could use. */
static void repair_matrix(float *values, uint64_t n, repairs *done) {
    bool broken = false, zero = true;
    for (uint64_t i = 0; i < n; i++) {
        broken |= !(values[i] >= 0 && values[i] <= LARGEST_IMPORTANCE);
        zero &= values[i] == 0;
    }
    done->n_matrices++;
    done->n_broken += broken;
    done->n_zero += zero;
    for (uint64_t i = 0; (broken || zero) && i < n; i++) values[i] = 1;
}

static void say_repairs(const nib_imatrix *imatrix, const char *name, const repairs *done, const nib_watch *watch) {
    static const char meaning[] = "all columns count the same there";
    if (done->n_unseen)
        nib_warn(watch, "%s: %s: %" PRIu64 " of %" PRIu64 " matrices were never used while measuring; %s",
                 imatrix->path, name, done->n_unseen, done->n_matrices, meaning);
    if (done->n_broken)
        nib_warn(watch,
                 "%s: %s: values that are negative, too large or not numbers in %" PRIu64 " of %" PRIu64
                 " matrices; %s",
                 imatrix->path, name, done->n_broken, done->n_matrices, meaning);
    if (done->n_zero)
        nib_warn(watch, "%s: %s: only zeros in %" PRIu64 " of %" PRIu64 " matrices; %s", imatrix->path, name,
                 done->n_zero, done->n_matrices, meaning);
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static nib_status sort_entries(nib_imatrix *imatrix, nib_error *error) {
    if (!imatrix->n) {
        nib_fail_at(error, NIB_ERR_CORRUPT, imatrix->path, -1, NULL, "the importance matrix has no entries");
        return nib_hint(error, NIB_ERR_CORRUPT, "measure one with a text of the kind the model will read");
    }
    qsort(imatrix->entries, imatrix->n, sizeof *imatrix->entries, compare_entries);
    for (size_t i = 1; i < imatrix->n; i++) {
        if (strcmp(imatrix->entries[i - 1].name, imatrix->entries[i].name) != 0) continue;
        return nib_fail_at(error, NIB_ERR_CORRUPT, imatrix->path, -1, imatrix->entries[i].name,
                           "two entries of the importance matrix have the same name");
    }
    return NIB_OK;
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------------ */

/* "NAME.in_sum2" -> length of NAME; 0 if the name ends otherwise. */
static size_t stem_length(const char *name, const char *suffix) {
    const size_t n = strlen(name), n_suffix = strlen(suffix);
    return n > n_suffix && !strcmp(name + n - n_suffix, suffix) ? n - n_suffix : 0;
}

static nib_status refuse_tensor(const nib_imatrix *imatrix, const nib_tensor *tensor, const char *why,
                                nib_error *error) {
    return nib_fail_at(error, NIB_ERR_CORRUPT, imatrix->path, tensor->info_offset, tensor->name, "%s: %s", tensor->name,
                       why);
}

/* sums: "NAME.in_sum2". Each matrix's sums are divided by its count. */
static nib_status read_sums(nib_imatrix *imatrix, const nib_gguf *gguf, const nib_tensor *sums, size_t n_name,
                            const nib_watch *watch, nib_error *error) {
    char name[64], counts_name[80];
    const nib_format *f32 = nib_format_by_type(0);
    snprintf(name, sizeof name, "%.*s", (int)n_name, sums->name);
    snprintf(counts_name, sizeof counts_name, "%s.counts", name);
    const nib_tensor *counts = nib_gguf_tensor_find(gguf, counts_name);
    if (!counts) return refuse_tensor(imatrix, sums, "sums without counts", error);
    if (sums->format != f32 || counts->format != f32) return refuse_tensor(imatrix, sums, "not stored as f32", error);
    if (!sums->n_elements || !counts->n_elements || sums->n_elements % counts->n_elements != 0)
        return refuse_tensor(imatrix, sums, "the number of sums is not a multiple of the number of counts", error);
    float *values;
    NIB_TRY(add_entry(imatrix, name, strlen(name), sums->n_elements, &values, error));
    const uint64_t n = sums->n_elements / counts->n_elements;
    repairs done = {0};
    for (uint64_t m = 0; m < counts->n_elements; m++) {
        /* counts are whole numbers stored as floats */
        const float stored = nib_load_f32(counts->data + 4 * m);
        const float count = stored > 0 && stored < 0x1p62f ? (float)llroundf(stored) : 0;
        for (uint64_t i = 0; i < n; i++)
            values[m * n + i] = count > 0 ? nib_load_f32(sums->data + 4 * (m * n + i)) / count : 1;
        done.n_unseen += !(count > 0);
        repair_matrix(values + m * n, n, &done);
    }
    say_repairs(imatrix, name, &done, watch);
    return NIB_OK;
}

static nib_status read_gguf(nib_imatrix *imatrix, const nib_map *map, const nib_watch *watch, nib_error *error) {
    nib_gguf *gguf = NULL;
    nib_status status;
    NIB_TRY_GOTO(nib_gguf_open_memory(map->data, map->n_bytes, imatrix->path, &gguf, error));
    const nib_gguf_kv *datasets = nib_gguf_find(gguf, "imatrix.datasets");
    uint64_t chunk_size;
    if (!datasets || !nib_gguf_get_u64(gguf, "imatrix.chunk_count", &imatrix->n_chunks) ||
        !nib_gguf_get_u64(gguf, "imatrix.chunk_size", &chunk_size)) {
        nib_fail_at(error, NIB_ERR_CORRUPT, imatrix->path, datasets ? datasets->offset : -1, "imatrix.datasets",
                    "imatrix.datasets, .chunk_count or .chunk_size is missing: not an importance matrix");
        status = nib_hint(error, NIB_ERR_CORRUPT, "the model and the importance matrix are two files");
        goto fail;
    }
    nib_text text;
    if (datasets->n && nib_gguf_kv_text(datasets, 0, &text) &&
        !(imatrix->dataset = nib_strdup_n(text.data, text.n_bytes))) {
        status = nib_fail_memory(error, text.n_bytes);
        goto fail;
    }
    for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(gguf, i);
        const size_t n_name = stem_length(tensor->name, ".in_sum2");
        if (n_name) NIB_TRY_GOTO(read_sums(imatrix, gguf, tensor, n_name, watch, error));
    }
    status = NIB_OK;
fail:
    nib_gguf_close(gguf);
    return status;
}

/* ---- The legacy format --------------------------------------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *data;
    size_t n_bytes, at;
    const char *path;
    nib_error *error;
} reader;

static nib_status refuse_bytes(const reader *r, size_t at, const char *field, const char *why) {
    nib_fail_at(r->error, NIB_ERR_CORRUPT, r->path, (int64_t)at, field, "not an importance matrix: %s", why);
    return nib_hint(r->error, NIB_ERR_CORRUPT, "give a file made by llama-imatrix, or make it again if it is damaged");
}

/* A number of at least `least` and items of item_bytes that the rest of the file can hold (0: any number). */
static nib_status read_count(reader *r, const char *field, int32_t least, size_t item_bytes, uint32_t *out) {
    if (r->n_bytes - r->at < 4) return refuse_bytes(r, r->at, field, "the file ends too early");
    const int32_t value = (int32_t)nib_load_u32(r->data + r->at);
    if (value < least) return refuse_bytes(r, r->at, field, "a number that cannot be");
    r->at += 4;
    if (item_bytes && (uint32_t)value > (r->n_bytes - r->at) / item_bytes)
        return refuse_bytes(r, r->at - 4, field, "more is announced than the file holds");
    *out = (uint32_t)value;
    return NIB_OK;
}

static nib_status read_legacy_entry(nib_imatrix *imatrix, reader *r, const nib_watch *watch) {
    uint32_t n_name = 0, n_calls = 0, n_values = 0;
    float *values;
    NIB_TRY(read_count(r, "name", 1, 1, &n_name));
    const char *name = (const char *)r->data + r->at;
    if (n_name > LONGEST_NAME || memchr(name, 0, n_name))
        return refuse_bytes(r, r->at, "name", "a name that cannot be");
    r->at += n_name;
    NIB_TRY(read_count(r, "calls", 0, 0, &n_calls));
    NIB_TRY(read_count(r, "values", 1, sizeof *values, &n_values));
    NIB_TRY(add_entry(imatrix, name, n_name, n_values, &values, r->error));
    for (uint32_t i = 0; i < n_values; i++) {
        const float stored = nib_load_f32(r->data + r->at + 4 * (size_t)i);
        values[i] = n_calls ? stored / (float)n_calls : stored;
    }
    r->at += 4 * (size_t)n_values;
    repairs done = {0};
    repair_matrix(values, n_values, &done); /* how many matrices there are is not in the file */
    say_repairs(imatrix, imatrix->entries[imatrix->n - 1].name, &done, watch);
    return NIB_OK;
}

static nib_status read_legacy(nib_imatrix *imatrix, const nib_map *map, const nib_watch *watch, nib_error *error) {
    reader r = {.data = map->data, .n_bytes = map->n_bytes, .path = imatrix->path, .error = error};
    uint32_t n_entries = 0, number = 0;
    imatrix->is_legacy = true;
    NIB_TRY(read_count(&r, "entries", 1, 13, &n_entries)); /* 13: the shortest entry less its value */
    for (uint32_t i = 0; i < n_entries; i++) NIB_TRY(read_legacy_entry(imatrix, &r, watch));
    if (r.at == r.n_bytes) return NIB_OK; /* old files end here */
    NIB_TRY(read_count(&r, "chunks", 0, 0, &number));
    imatrix->n_chunks = number;
    if (r.at == r.n_bytes) return NIB_OK;
    NIB_TRY(read_count(&r, "dataset", 0, 1, &number));
    if (number && !(imatrix->dataset = nib_strdup_n((const char *)r.data + r.at, number)))
        return nib_fail_memory(error, number);
    return NIB_OK;
}

/* ---- Open ------------------------------------------------------------------------------------------------------------ */

nib_status nib_imatrix_open(const char *path, const nib_watch *watch, nib_imatrix **out, nib_error *error) {
    nib_map map = {0};
    nib_status status;
    *out = NULL;
    nib_imatrix *imatrix = nib_alloc(1, sizeof *imatrix);
    if (!imatrix || !(imatrix->path = nib_strdup(path))) {
        status = nib_fail_memory(error, sizeof *imatrix);
        goto fail;
    }
    NIB_TRY_GOTO(nib_map_open(path, &map, error));
    const bool is_gguf = map.n_bytes >= 4 && memcmp(map.data, "GGUF", 4) == 0;
    NIB_TRY_GOTO((is_gguf ? read_gguf : read_legacy)(imatrix, &map, watch, error));
    NIB_TRY_GOTO(sort_entries(imatrix, error));
    nib_map_close(&map);
    *out = imatrix;
    return NIB_OK;
fail:
    nib_map_close(&map);
    nib_imatrix_free(imatrix);
    return status;
}

nib_imatrix_facts nib_imatrix_facts_of(const nib_imatrix *imatrix) {
    return (nib_imatrix_facts){.path = imatrix->path,
                               .dataset = imatrix->dataset,
                               .n_entries = imatrix->n,
                               .n_chunks = imatrix->n_chunks,
                               .is_legacy = imatrix->is_legacy};
}

/* ---- Look up --------------------------------------------------------------------------------------------------------- */

nib_imatrix_match nib_imatrix_find(const nib_imatrix *imatrix, const char *name, uint64_t n_columns,
                                   uint64_t n_matrices, const float **out) {
    const entry key = {.name = (char *)(uintptr_t)name};
    const entry *found = bsearch(&key, imatrix->entries, imatrix->n, sizeof *imatrix->entries, compare_entries);
    uint64_t n_values;
    *out = NULL;
    if (!found) return NIB_IMATRIX_ABSENT;
    if (!nib_mul_u64(n_columns, n_matrices, &n_values) || n_values != found->n_values) return NIB_IMATRIX_WRONG_SIZE;
    *out = found->values;
    return NIB_IMATRIX_FOUND;
}
