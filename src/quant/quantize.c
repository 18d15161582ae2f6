/* The quantizer: reads a mapped model, writes another one, tensor by tensor.
 *
 *   mapped payload --pieces--> decode to f32 --> encode --> one buffer --> output file
 *                   (workers, one piece each)     (8 MB)    (this thread, in order)
 *
 * Invariants:
 *   - a piece is at most 8192 columns of one row and a whole number of blocks, so memory depends neither on the model nor
 *     on a tensor, only (a little) on the number of threads;
 *   - what is computed per piece is combined in the order of the pieces: nothing depends on the number of threads;
 *   - every size is known before the first byte is written, and what comes out has exactly that size;
 *   - weights that are NaN or infinite are refused, also in tensors that are only copied. */
#include "nibble/quant.h"

#include "base/progress.h"
#include "cpu/pool.h"
#include "file/gguf_write.h"
#include "quant/recipe.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BATCH_BYTES             (8u << 20) /* of output encoded before it is written */
#define BATCH_PIECES            4096u
#define PIECE_WEIGHTS_PER_CLAIM 16384u

/* ---- What will be written ------------------------------------------------------------------------------------------ */

typedef struct layout {
    nib_choice_of_format *choices; /* (n) in output order */
    size_t n;
    nib_gguf_head head;
    uint64_t n_bytes; /* of the whole file */
} layout;

static void layout_fini(layout *l) {
    free(l->choices);
    nib_gguf_head_fini(&l->head);
    *l = (layout){0};
}

/* Metadata that is written anew, or that describes how the input was stored and not what it is. */
static bool is_left_out(nib_text key, bool with_imatrix) {
    static const char imatrix[] = "quantize.imatrix.";
    static const char *const keys[] = {
        "general.quantization_version", "general.file_type", "general.alignment", "split.no",    "split.count",
        "split.tensors.count",          "nibble.version",    "nibble.recipe",     "nibble.pure", "nibble.grid.version",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (key.n_bytes == strlen(keys[i]) && memcmp(key.data, keys[i], key.n_bytes) == 0) return true;
    return with_imatrix && key.n_bytes > strlen(imatrix) && memcmp(key.data, imatrix, strlen(imatrix)) == 0;
}

/* As llama-quantize writes them: texts cut to 127 bytes, no number of chunks if it is not known. */
static void put_imatrix(layout *l, const nib_imatrix *imatrix) {
    char text[128];
    const nib_imatrix_facts facts = nib_imatrix_facts_of(imatrix);
    snprintf(text, sizeof text, "%s", facts.path);
    nib_gguf_head_text(&l->head, "quantize.imatrix.file", text);
    if (facts.dataset) {
        snprintf(text, sizeof text, "%s", facts.dataset);
        nib_gguf_head_text(&l->head, "quantize.imatrix.dataset", text);
    }
    nib_gguf_head_u32(&l->head, "quantize.imatrix.entries_count", (uint32_t)facts.n_entries);
    if (facts.n_chunks) nib_gguf_head_u32(&l->head, "quantize.imatrix.chunks_count", (uint32_t)facts.n_chunks);
}

/* The order is llama-quantize's: the input's pairs, then those that say how it is quantized; ours come last. */
static void put_metadata(layout *l, const nib_gguf *gguf, const nib_quantize_params *params) {
    nib_gguf_head_begin(&l->head);
    for (uint64_t i = 0; i < nib_gguf_n_kv(gguf); i++) {
        const nib_gguf_kv *kv = nib_gguf_kv_at(gguf, i);
        if (!is_left_out(kv->key, params->imatrix != NULL)) nib_gguf_head_copy(&l->head, kv);
    }
    nib_gguf_head_u32(&l->head, "general.quantization_version", 2);
    const uint32_t file_type = nib_recipe_file_type(params->recipe);
    if (file_type != UINT32_MAX) nib_gguf_head_u32(&l->head, "general.file_type", file_type);
    if (params->imatrix) put_imatrix(l, params->imatrix);
    for (size_t i = 0; i < l->n; i++) {
        if (!nib_format_facts_of(l->choices[i].format)->is_nibbles_own) continue;
        nib_gguf_head_u32(&l->head, "nibble.grid.version", 1);
        break;
    }
    if (params->no_provenance) return;
    nib_gguf_head_text(&l->head, "nibble.version", nib_version());
    nib_gguf_head_text(&l->head, "nibble.recipe", nib_recipe_name(params->recipe));
    nib_gguf_head_bool(&l->head, "nibble.pure", params->pure);
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
static nib_status check_imatrix(const layout *l, const nib_imatrix *imatrix, nib_error *error) {
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
static nib_status check_choices(const nib_gguf *gguf, const nib_quantize_params *params, const layout *l,
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

static nib_status make_layout(const nib_gguf *gguf, const nib_quantize_params *params, layout *l, nib_error *error) {
    nib_status status;
    uint64_t offset = 0;
    *l = (layout){.n = (size_t)nib_gguf_n_tensors(gguf)};
    l->choices = nib_alloc(l->n, sizeof *l->choices);
    if (!l->choices) return nib_fail_memory(error, l->n * sizeof *l->choices);
    NIB_TRY_GOTO(nib_recipe_choose(params, gguf, l->choices, error));
    NIB_TRY_GOTO(check_imatrix(l, params->imatrix, error));
    NIB_TRY_GOTO(check_choices(gguf, params, l, error));
    put_metadata(l, gguf, params);
    for (size_t i = 0; i < l->n; i++) {
        const nib_tensor *tensor = l->choices[i].tensor;
        uint64_t n_bytes;
        NIB_TRY_GOTO(size_of_tensor(gguf, &l->choices[i], &n_bytes, error));
        nib_gguf_head_tensor(&l->head, tensor->name, l->choices[i].format, tensor->ne, offset);
        if (!nib_add_u64(offset, n_bytes, &offset) || offset > (uint64_t)INT64_MAX / 2) {
            status = nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(gguf), -1, tensor->name,
                                 "the tensors up to %s would be larger than any file", tensor->name);
            goto fail;
        }
        offset = nib_round_up(offset, NIB_GGUF_ALIGNMENT);
    }
    NIB_TRY_GOTO(nib_gguf_head_end(&l->head, NIB_GGUF_ALIGNMENT, error));
    l->n_bytes = l->head.text.n_bytes + offset;
    return NIB_OK;
fail:
    layout_fini(l);
    return status;
}

nib_status nib_quantize_plan(const nib_gguf *gguf, const nib_quantize_params *params, uint64_t *n_bytes,
                             nib_error *error) {
    layout l;
    NIB_TRY(make_layout(gguf, params, &l, error));
    *n_bytes = l.n_bytes;
    layout_fini(&l);
    return NIB_OK;
}

/* ---- One piece ----------------------------------------------------------------------------------------------------- */

/* What a piece leaves behind besides its bytes. */
typedef struct piece_result {
    nib_finding found;
    double sum_squares, sum_squared_errors, max_abs_error; /* of this piece; 0 if not measured */
} piece_result;

/* A run of pieces of one tensor, and the room its workers need. */
typedef struct batch {
    const nib_choice_of_format *choice;
    uint64_t first; /* piece */
    bool measure;
    uint8_t *out;          /* encoded pieces back to back; unused for copies */
    piece_result *results; /* (BATCH_PIECES) */
    float *scratch;        /* (workers, 2, NIB_PIECE_COLUMNS): weights, and what became of them */
} batch;

/* Where a piece begins in the tensor as written. */
static uint64_t out_position(const nib_choice_of_format *choice, const nib_piece *piece) {
    const nib_format_facts *facts = nib_format_facts_of(choice->format);
    return (piece->row * choice->tensor->ne[0] + piece->column) / facts->block * facts->bytes;
}

/* weights, decoded: (n). Four sums side by side: quick, and in a fixed order. */
static void measure_piece(const float *weights, const float *decoded, size_t n, piece_result *result) {
    double squares[4] = {0}, errors[4] = {0}, most = 0;
    for (size_t i = 0; i < n; i++) {
        const double weight = weights[i], difference = weight - (double)decoded[i];
        squares[i % 4] += weight * weight;
        errors[i % 4] += difference * difference;
        if (fabs(difference) > most) most = fabs(difference);
    }
    result->sum_squares = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    result->sum_squared_errors = (errors[0] + errors[1]) + (errors[2] + errors[3]);
    result->max_abs_error = most;
}

static void encode_piece(const batch *b, const nib_piece *piece, uint8_t *out, float *weights, float *decoded,
                         piece_result *result) {
    const nib_choice_of_format *choice = b->choice;
    *result = (piece_result){0};
    nib_format_decode(choice->tensor->format, weights, piece->data, piece->n);
    const size_t column = nib_first_not_finite(weights, piece->n);
    if (column < piece->n) {
        result->found = (nib_finding){.verdict = NIB_VERDICT_NOT_FINITE, .has_column = true};
        result->found.column = piece->column + column;
        return;
    }
    /* each matrix of a stack (of experts) has importance of its own */
    const uint64_t matrix = piece->row / choice->tensor->ne[1] % choice->tensor->ne[2];
    const float *importance =
        choice->importance ? choice->importance + matrix * choice->tensor->ne[0] + piece->column : NULL;
    if (!importance && choice->grid_search) {
        for (size_t i = 0; i < piece->n; i++) decoded[i] = 1; /* its turn comes later */
        importance = decoded;
    }
    result->found.verdict = nib_format_encode(choice->format, out, weights, piece->n, importance);
    if (result->found.verdict != NIB_VERDICT_OK || !b->measure) return;
    nib_format_decode(choice->format, decoded, out, piece->n);
    measure_piece(weights, decoded, piece->n, result);
}

static void work_on_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    const batch *b = arg;
    const nib_tensor *tensor = b->choice->tensor;
    float *weights = b->scratch + (size_t)worker * 2 * NIB_PIECE_COLUMNS, *decoded = weights + NIB_PIECE_COLUMNS;
    const nib_piece first = nib_tensor_piece(tensor, b->first);
    const uint64_t base = out_position(b->choice, &first);
    for (size_t i = begin; i < end; i++) {
        const nib_piece piece = nib_tensor_piece(tensor, b->first + i);
        if (b->choice->copied)
            b->results[i] = (piece_result){.found = nib_piece_check(tensor, &piece, weights)};
        else
            encode_piece(b, &piece, b->out + (out_position(b->choice, &piece) - base), weights, decoded,
                         &b->results[i]);
    }
}

/* ---- One tensor ---------------------------------------------------------------------------------------------------- */

typedef struct run {
    const nib_gguf *gguf;
    const nib_quantize_params *params;
    nib_pool *pool;
    nib_output *output;
    nib_meter meter;
    char stage[96];
    XXH3_state_t *hash;
    batch batch;
    nib_error *error;
} run;

static nib_status refuse_piece(const run *r, const nib_piece *piece, const nib_finding *found) {
    const nib_choice_of_format *choice = r->batch.choice;
    const nib_tensor *tensor = choice->tensor;
    const char *file = nib_gguf_path(r->gguf), *to = nib_format_facts_of(choice->format)->name;
    const int64_t offset = (int64_t)(tensor->offset + (uint64_t)(piece->data - tensor->data));
    if (found->has_column) {
        nib_fail_at(r->error, NIB_ERR_CORRUPT, file, offset, tensor->name,
                    "tensor %s has NaN or infinity at row %" PRIu64 ", column %" PRIu64, tensor->name, piece->row,
                    found->column);
        return nib_hint(r->error, NIB_ERR_CORRUPT,
                        "the model is damaged or overflowed when it was converted; convert or "
                        "download it again");
    }
    if (choice->copied) {
        nib_fail_at(r->error, NIB_ERR_CORRUPT, file, offset, tensor->name, "tensor %s (%s), row %" PRIu64 ": %s",
                    tensor->name, to, piece->row,
                    found->verdict == NIB_VERDICT_BAD_CODE ? "a code that no encoder writes" : "a scale is not finite");
        return nib_hint(r->error, NIB_ERR_CORRUPT, "the file is damaged; download it again");
    }
    nib_fail_at(r->error, NIB_ERR_CORRUPT, file, offset, tensor->name,
                "tensor %s, row %" PRIu64 ": the weights are too large for %s, whose numbers or scales would overflow",
                tensor->name, piece->row, to);
    return nib_hint(r->error, NIB_ERR_CORRUPT, "keep such weights in a format with a wide range: --to bf16 or f32");
}

/* Pieces that a batch of this tensor takes. */
static size_t batch_length(const nib_choice_of_format *choice) {
    const nib_format_facts *facts = nib_format_facts_of(choice->format);
    const uint64_t ne0 = choice->tensor->ne[0], columns = ne0 < NIB_PIECE_COLUMNS ? ne0 : NIB_PIECE_COLUMNS;
    const uint64_t fits = BATCH_BYTES / (columns / facts->block * facts->bytes);
    return fits < BATCH_PIECES ? (size_t)fits : BATCH_PIECES;
}

/* Encodes (or looks through) n pieces from b->first on and writes them. */
static nib_status write_batch(run *r, size_t n, piece_result *sums) {
    batch *b = &r->batch;
    const nib_choice_of_format *choice = b->choice;
    const nib_tensor *tensor = choice->tensor;
    const uint64_t columns = tensor->ne[0] < NIB_PIECE_COLUMNS ? tensor->ne[0] : NIB_PIECE_COLUMNS;
    nib_par_for(r->pool, n, (size_t)(PIECE_WEIGHTS_PER_CLAIM / columns ? PIECE_WEIGHTS_PER_CLAIM / columns : 1),
                work_on_pieces, b);
    for (size_t i = 0; i < n; i++) {
        const piece_result *result = &b->results[i];
        if (result->found.verdict != NIB_VERDICT_OK) {
            const nib_piece piece = nib_tensor_piece(tensor, b->first + i);
            return refuse_piece(r, &piece, &result->found);
        }
        sums->sum_squares += result->sum_squares;
        sums->sum_squared_errors += result->sum_squared_errors;
        if (result->max_abs_error > sums->max_abs_error) sums->max_abs_error = result->max_abs_error;
    }
    const nib_piece first = nib_tensor_piece(tensor, b->first), last = nib_tensor_piece(tensor, b->first + n - 1);
    const size_t n_in = (size_t)(last.data + last.n_bytes - first.data);
    const nib_format_facts *facts = nib_format_facts_of(choice->format);
    const uint64_t begin = out_position(choice, &first);
    const size_t n_out = (size_t)(out_position(choice, &last) + last.n / facts->block * facts->bytes - begin);
    const uint8_t *bytes = choice->copied ? first.data : b->out;
    XXH3_128bits_update(r->hash, bytes, n_out);
    NIB_TRY(nib_output_write(r->output, bytes, n_out, r->error));
    b->first += n;
    return nib_meter_add(&r->meter, (double)n_in, r->error);
}

static nib_status write_tensor(run *r, const nib_choice_of_format *choice, nib_quantized_tensor *report) {
    static const uint8_t zeros[NIB_GGUF_ALIGNMENT] = {0};
    const nib_tensor *tensor = choice->tensor;
    const uint64_t n_pieces = nib_tensor_n_pieces(tensor);
    const size_t length = batch_length(choice);
    piece_result sums = {0};
    r->batch.choice = choice;
    r->batch.first = 0;
    nib_gguf_hash_head(r->hash, tensor->name, choice->format, tensor->ne);
    while (r->batch.first < n_pieces) {
        const uint64_t rest = n_pieces - r->batch.first;
        NIB_TRY(write_batch(r, rest < length ? (size_t)rest : length, &sums));
    }
    *report = (nib_quantized_tensor){.from = tensor->format, .to = choice->format, .rel_rmse = NAN, .max_abs_err = NAN};
    snprintf(report->name, sizeof report->name, "%s", tensor->name);
    snprintf(report->fallback, sizeof report->fallback, "%s", choice->fallback);
    NIB_TRY(size_of_tensor(r->gguf, choice, &report->n_bytes, r->error));
    if (r->params->measure_error) {
        report->max_abs_err = sums.max_abs_error;
        if (choice->copied)
            report->rel_rmse = 0;
        else if (sums.sum_squares > 0)
            report->rel_rmse = sqrt(sums.sum_squared_errors / sums.sum_squares);
    }
    const uint64_t padding = nib_round_up(report->n_bytes, NIB_GGUF_ALIGNMENT) - report->n_bytes;
    return nib_output_write(r->output, zeros, (size_t)padding, r->error);
}

/* ---- The whole file ------------------------------------------------------------------------------------------------ */

static nib_status take_room(run *r) {
    batch *b = &r->batch;
    const size_t scratch_bytes = (size_t)nib_pool_size(r->pool) * 2 * NIB_PIECE_COLUMNS * sizeof *b->scratch;
    b->out = nib_alloc_aligned(BATCH_BYTES);
    b->results = nib_alloc(BATCH_PIECES, sizeof *b->results);
    b->scratch = nib_alloc_aligned(scratch_bytes);
    r->hash = XXH3_createState();
    if (!b->out || !b->results || !b->scratch || !r->hash)
        return nib_fail_memory(r->error, BATCH_BYTES + scratch_bytes + BATCH_PIECES * sizeof *b->results);
    XXH3_128bits_reset(r->hash);
    return NIB_OK;
}

static void release_room(run *r) {
    nib_free_aligned(r->batch.out);
    free(r->batch.results);
    nib_free_aligned(r->batch.scratch);
    XXH3_freeState(r->hash);
}

static nib_status write_file(run *r, const layout *l, nib_quantized *out) {
    uint64_t n_in = 0, n_payload = 0, n_weights = 0;
    for (size_t i = 0; i < l->n; i++) n_in += l->choices[i].tensor->n_bytes;
    snprintf(r->stage, sizeof r->stage, "quantize %s", nib_recipe_name(r->params->recipe));
    nib_meter_init(&r->meter, r->meter.watch, r->stage, (double)n_in);
    NIB_TRY(nib_output_write(r->output, l->head.text.data, l->head.text.n_bytes, r->error));
    for (size_t i = 0; i < l->n; i++) {
        NIB_TRY(write_tensor(r, &l->choices[i], &out->tensors[i]));
        n_payload += out->tensors[i].n_bytes;
        n_weights += l->choices[i].tensor->n_elements;
    }
    out->bpw = n_weights ? 8.0 * (double)n_payload / (double)n_weights : 0;
    nib_gguf_hash_text(r->hash, out->hash);
    return NIB_OK;
}

static void warn_about_importance(const layout *l, const nib_imatrix *imatrix, const nib_watch *watch) {
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

nib_status nib_quantize(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params, nib_pool *pool,
                        const nib_watch *watch, nib_quantized *out, nib_error *error) {
    nib_status status;
    const double began = nib_now();
    layout l = {0};
    run r = {.gguf = gguf, .params = params, .pool = pool, .meter = {.watch = watch}, .error = error};
    r.batch.measure = params->measure_error;
    *out = (nib_quantized){.recipe = params->recipe, .pure = params->pure, .bytes_in = nib_gguf_bytes(gguf)};
    snprintf(out->input, sizeof out->input, "%s", nib_gguf_path(gguf));
    snprintf(out->output, sizeof out->output, "%s", path_out);
    if (params->imatrix) snprintf(out->imatrix, sizeof out->imatrix, "%s", nib_imatrix_facts_of(params->imatrix).path);
    NIB_TRY_GOTO(make_layout(gguf, params, &l, error));
    warn_about_importance(&l, params->imatrix, watch);
    nib_overrides_warn_unused(params->overrides, gguf, watch);
    if (nib_gguf_trailing_bytes(gguf))
        nib_warn(watch, "%s: %" PRIu64 " bytes after the last tensor are left out", nib_gguf_path(gguf),
                 nib_gguf_trailing_bytes(gguf));
    out->bytes_out = l.n_bytes;
    out->tensors = nib_alloc(l.n, sizeof *out->tensors);
    if (!out->tensors) {
        status = nib_fail_memory(error, l.n * sizeof *out->tensors);
        goto fail;
    }
    out->n_tensors = (uint32_t)l.n;
    NIB_TRY_GOTO(take_room(&r));
    NIB_TRY_GOTO(nib_output_open(path_out, params->force, nib_gguf_map(gguf), l.n_bytes, &r.output, error));
    NIB_TRY_GOTO(write_file(&r, &l, out));
    status = nib_output_commit(r.output, !params->no_sync, error);
    r.output = NULL; /* freed whatever happened */
    if (status != NIB_OK) goto fail;
    out->seconds = nib_now() - began;
    out->peak_rss = nib_peak_anonymous_bytes();
fail:
    nib_output_discard(r.output);
    release_room(&r);
    layout_fini(&l);
    return status;
}

void nib_quantized_fini(nib_quantized *quantized) {
    if (!quantized) return;
    free(quantized->tensors);
    *quantized = (nib_quantized){0};
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------- */

void nib_quantized_write_json(const nib_quantized *quantized, nib_json *json) {
    bool measured = true;
    nib_json_string(json, "input", quantized->input);
    nib_json_string(json, "output", quantized->output);
    nib_json_string(json, "format", nib_format_facts_of(nib_recipe_format(quantized->recipe))->name);
    nib_json_string(json, "recipe", nib_recipe_name(quantized->recipe));
    nib_json_bool(json, "pure", quantized->pure);
    if (quantized->imatrix[0])
        nib_json_string(json, "imatrix", quantized->imatrix);
    else
        nib_json_null(json, "imatrix");
    nib_json_uint(json, "n_tensors", quantized->n_tensors);
    nib_json_uint(json, "bytes_in", quantized->bytes_in);
    nib_json_uint(json, "bytes_out", quantized->bytes_out);
    nib_json_number(json, "bpw", quantized->bpw);
    nib_json_number(json, "seconds", quantized->seconds);
    nib_json_uint(json, "peak_rss", quantized->peak_rss);
    nib_json_string(json, "hash", quantized->hash);
    nib_json_begin_array(json, "tensors");
    for (uint32_t i = 0; i < quantized->n_tensors; i++) {
        const nib_quantized_tensor *tensor = &quantized->tensors[i];
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "name", tensor->name);
        nib_json_string(json, "from", nib_format_facts_of(tensor->from)->name);
        nib_json_string(json, "to", nib_format_facts_of(tensor->to)->name);
        nib_json_uint(json, "bytes", tensor->n_bytes);
        nib_json_number(json, "rel_rmse", tensor->rel_rmse);
        nib_json_number(json, "max_abs_err", tensor->max_abs_err);
        if (tensor->fallback[0])
            nib_json_string(json, "fallback", tensor->fallback);
        else
            nib_json_null(json, "fallback");
        nib_json_end_object(json);
        measured = measured && !isnan(tensor->rel_rmse);
    }
    nib_json_end_array(json);
    if (!measured)
        nib_json_string(json, "note",
                        "rel_rmse and max_abs_err are null if not measured, rel_rmse also if all weights are zero");
}
