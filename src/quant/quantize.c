/* The quantizer: one pass over a model, any number of outputs, tensor by tensor.
 *
 *   input file --> [ bytes of some pieces ] --> decode to f32, encode once per output --> hash, append to each output
 *        reader thread                       calling thread and pool, a batch each          writer thread
 *
 * Invariants:
 *   - a piece is at most 8192 columns of one row and a whole number of blocks, and what is under way at once is some
 *     batches of fixed size, two more than workers, so memory depends neither on the model nor on a tensor, only (a little)
 *     on the number of threads and outputs; but for formats that weigh rows (nib_format_facts) a piece is a row, and room
 *     is made for the longest such;
 *   - what is computed per piece is combined in the order of the pieces: nothing depends on the number of threads;
 *   - every size is known before the first byte is written, and what comes out has exactly that size;
 *   - payloads are read from the file, not through its mapping: a file that shrinks meanwhile is an error, not a signal;
 *   - weights that are NaN or infinite are refused, also in tensors that are only copied. */
#include "nibble/quant.h"

#include "base/progress.h"
#include "cpu/pool.h"
#include "kernel/kernel.h"
#include "quant/pipeline.h"
#include "quant/target.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* Of one batch: small enough for a core's cache, and of the slowest encoder a tenth of a second, which is how late an
 * interruption is noticed. */
#define BATCH_IN_BYTES  (1u << 20) /* at least, and a piece */
#define BATCH_OUT_BYTES (1u << 20) /* at least, and a piece of every output */
#define BATCH_WEIGHTS   (1u << 18)
#define BATCH_PIECES    4096u
#define BATCH_RESULTS   (1u << 15) /* pieces times outputs */
/* Of all batches under way; with very many workers some go without. */
#define MOST_BYTES      ((size_t)128 << 20)

/* ---- One piece ----------------------------------------------------------------------------------------------------- */

/* A run of pieces of one tensor on its way through the pipeline. */
typedef struct batch {
    size_t index;   /* of the tensor, in output order */
    uint64_t first; /* piece */
    size_t n;       /* pieces */
    size_t columns; /* of a piece */
    bool is_last;   /* of the tensor */
    uint8_t *in;    /* (in_bytes) the pieces as stored */
    size_t n_in;
    uint8_t *out;                      /* (out_bytes) encoded pieces of all outputs that do not copy, back to back */
    bool is_wanted[NIB_QUANTIZE_MOST]; /* by this output: false if an earlier run has written it */
    size_t out_at[NIB_QUANTIZE_MOST];  /* where each output's pieces begin in out; not for copies */
    size_t n_bytes[NIB_QUANTIZE_MOST]; /* what each output appends */
    nib_row_error *errors;             /* (n_targets, most_pieces) 0 if not measured */
} batch;

typedef struct run {
    const nib_gguf *gguf;
    const nib_quantize_params *params; /* (n_targets) */
    nib_target *targets;               /* (n_targets) */
    size_t n_targets, n_tensors;
    nib_pool *pool;
    char stage[96];
    size_t in_bytes, out_bytes, most_pieces; /* of a batch */
    size_t most_columns;                     /* of a piece */
    batch *batches;                          /* (n_batches) */
    size_t n_batches;

    size_t n_before[NIB_QUANTIZE_MOST]; /* tensors each output has from an earlier run */

    size_t next_tensor; /* the reader's */
    uint64_t next_piece;

    float *scratch;               /* (workers, 2, most_columns) the workers': weights, and what became of them */
    atomic_size_t n_worked_bytes; /* of the input, not yet reported */
    nib_meter meter;              /* the calling thread's */

    nib_journal_entry sums[NIB_QUANTIZE_MOST]; /* the writer's: of the tensor so far */
} run;

static const nib_choice_of_format *choice_of(const run *r, size_t target, size_t index) {
    return &r->targets[target].layout.choices[index];
}

static const nib_tensor *tensor_at(const run *r, size_t index) {
    return choice_of(r, 0, index)->tensor; /* every recipe has the same order */
}

static uint64_t columns_of_pieces(const run *r, size_t index) {
    const nib_tensor *tensor = tensor_at(r, index);
    if (tensor->ne[0] <= NIB_PIECE_COLUMNS) return tensor->ne[0];
    for (size_t t = 0; t < r->n_targets; t++) {
        const nib_choice_of_format *choice = choice_of(r, t, index);
        if (!choice->copied && choice->importance && nib_format_facts_of(choice->format)->weighs_rows)
            return tensor->ne[0];
    }
    return NIB_PIECE_COLUMNS;
}

/* Where a piece begins in its tensor if that is stored in this format. */
static uint64_t position_in(const nib_format *format, const nib_tensor *tensor, const nib_piece *piece) {
    const nib_format_facts *facts = nib_format_facts_of(format);
    return (piece->row * tensor->ne[0] + piece->column) / facts->block * facts->bytes;
}

/* Bytes of a batch's pieces. */
static size_t bytes_of_pieces(const nib_format *format, const nib_tensor *tensor, const batch *b) {
    const nib_piece begin = nib_tensor_piece(tensor, b->columns, b->first);
    const nib_piece last = nib_tensor_piece(tensor, b->columns, b->first + b->n - 1);
    return (size_t)(position_in(format, tensor, &last) - position_in(format, tensor, &begin)) +
           nib_format_row_bytes(format, last.n);
}

static nib_status refuse_piece(const run *r, const nib_choice_of_format *choice, const nib_piece *piece,
                               const nib_finding *found, nib_error *error) {
    const nib_tensor *tensor = choice->tensor;
    const char *file = nib_gguf_file_path(r->gguf, tensor->shard), *to = nib_format_facts_of(choice->format)->name;
    const int64_t offset = (int64_t)(tensor->offset + position_in(tensor->format, tensor, piece));
    if (found->has_column) {
        nib_fail_at(error, NIB_ERR_CORRUPT, file, offset, tensor->name,
                    "tensor %s has NaN or infinity at row %" PRIu64 ", column %" PRIu64, tensor->name, piece->row,
                    found->column);
        return nib_hint(error, NIB_ERR_CORRUPT,
                        "the model is damaged or overflowed when it was converted; convert or "
                        "download it again");
    }
    if (choice->copied) {
        nib_fail_at(error, NIB_ERR_CORRUPT, file, offset, tensor->name, "tensor %s (%s), row %" PRIu64 ": %s",
                    tensor->name, to, piece->row,
                    found->verdict == NIB_VERDICT_BAD_CODE ? "a code that no encoder writes" : "a scale is not finite");
        return nib_hint(error, NIB_ERR_CORRUPT, "the file is damaged; download it again");
    }
    nib_fail_at(error, NIB_ERR_CORRUPT, file, offset, tensor->name,
                "tensor %s, row %" PRIu64 ": the weights are too large for %s, whose numbers or scales would overflow",
                tensor->name, piece->row, to);
    return nib_hint(error, NIB_ERR_CORRUPT, "keep such weights in a format with a wide range: --to bf16 or f32");
}

/* weights: (piece->n), decoded from the input. scratch: (piece->n). error: left alone if not measured. */
static nib_finding encode_piece(const nib_choice_of_format *choice, bool measure, const nib_piece *piece,
                                const float *weights, uint8_t *out, float *scratch, nib_row_error *error) {
    nib_finding found = {0};
    /* each matrix of a stack (of experts) has importance of its own */
    const uint64_t matrix = piece->row / choice->tensor->ne[1] % choice->tensor->ne[2];
    const float *importance =
        choice->importance ? choice->importance + matrix * choice->tensor->ne[0] + piece->column : NULL;
    if (!importance && choice->grid_search) {
        for (size_t i = 0; i < piece->n; i++) scratch[i] = 1; /* its turn comes later */
        importance = scratch;
    }
    found.verdict = nib_format_encode(choice->format, out, weights, piece->n, importance);
    if (found.verdict == NIB_VERDICT_NOT_FINITE) {
        const size_t column = nib_first_not_finite(weights, piece->n);
        found.has_column = column < piece->n;
        found.column = piece->column + column;
    }
    if (found.verdict != NIB_VERDICT_OK || !measure) return found;
    nib_format_decode(choice->format, scratch, out, piece->n);
    *error = nib_row_error_of(weights, scratch, piece->n);
    return found;
}

/* One piece for all outputs. weights, scratch: (b->columns) */
static nib_status work_on_piece(const run *r, const batch *b, size_t index, float *weights, float *scratch,
                                nib_error *error) {
    const nib_tensor *tensor = tensor_at(r, b->index);
    const nib_piece first = nib_tensor_piece(tensor, b->columns, b->first);
    nib_piece piece = nib_tensor_piece(tensor, b->columns, b->first + index);
    piece.data = b->in + (position_in(tensor->format, tensor, &piece) - position_in(tensor->format, tensor, &first));
    bool is_decoded = false;
    for (size_t t = 0; t < r->n_targets; t++) {
        const nib_choice_of_format *choice = choice_of(r, t, b->index);
        nib_row_error *measured = &b->errors[t * r->most_pieces + index];
        nib_finding found;
        if (!b->is_wanted[t]) continue;
        *measured = (nib_row_error){0};
        if (choice->copied) {
            found = nib_piece_check(tensor, &piece, scratch);
        } else {
            const uint64_t at =
                position_in(choice->format, tensor, &piece) - position_in(choice->format, tensor, &first);
            if (!is_decoded) nib_format_decode(tensor->format, weights, piece.data, piece.n);
            is_decoded = true;
            found = encode_piece(choice, r->params[t].measure_error, &piece, weights, b->out + b->out_at[t] + at,
                                 scratch, measured);
        }
        if (found.verdict != NIB_VERDICT_OK) return refuse_piece(r, choice, &piece, &found, error);
    }
    return NIB_OK;
}

/* ---- The three stages ---------------------------------------------------------------------------------------------- */

/* Of a full piece of this tensor, in all outputs that do not copy it. */
static size_t out_bytes_of_piece(const run *r, size_t index) {
    const size_t columns = (size_t)columns_of_pieces(r, index);
    size_t n = 0;
    for (size_t t = 0; t < r->n_targets; t++)
        if (!choice_of(r, t, index)->copied) n += nib_format_row_bytes(choice_of(r, t, index)->format, columns);
    return n;
}

/* Pieces that a batch of this tensor takes: at least one, which fits. */
static size_t batch_length(const run *r, size_t index) {
    const size_t columns = (size_t)columns_of_pieces(r, index), n_out = out_bytes_of_piece(r, index);
    size_t n = r->in_bytes / nib_format_row_bytes(tensor_at(r, index)->format, columns);
    if (n_out && n > r->out_bytes / n_out) n = r->out_bytes / n_out;
    if (n > BATCH_WEIGHTS / columns) n = BATCH_WEIGHTS / columns;
    if (n > r->most_pieces) n = r->most_pieces;
    return n ? n : 1;
}

static nib_status read_batch(void *user, size_t slot, bool *end, nib_error *error) {
    run *r = user;
    batch *b = &r->batches[slot];
    if (r->next_tensor == r->n_tensors) {
        *end = true;
        return NIB_OK;
    }
    const nib_tensor *tensor = tensor_at(r, r->next_tensor);
    const nib_map *map = nib_gguf_map(r->gguf, tensor->shard);
    const char *path = nib_gguf_file_path(r->gguf, tensor->shard);
    const size_t length = batch_length(r, r->next_tensor);
    b->columns = (size_t)columns_of_pieces(r, r->next_tensor);
    const uint64_t rest = nib_tensor_n_pieces(tensor, b->columns) - r->next_piece;
    b->index = r->next_tensor;
    b->first = r->next_piece;
    b->n = rest < length ? (size_t)rest : length;
    b->is_last = b->n == rest;
    for (size_t t = 0; t < r->n_targets; t++) b->is_wanted[t] = b->index >= r->n_before[t];
    b->n_in = bytes_of_pieces(tensor->format, tensor, b);
    const nib_piece first = nib_tensor_piece(tensor, b->columns, b->first);
    const uint64_t offset = tensor->offset + position_in(tensor->format, tensor, &first);
    NIB_TRY(nib_map_read(map, path, offset, b->n_in, b->in, error));
    NIB_TRY(nib_map_check_unchanged(map, path, error)); /* after: what was read is what the header described */
    r->next_piece += b->n;
    if (b->is_last) {
        r->next_piece = 0;
        r->next_tensor++;
    }
    return NIB_OK;
}

static nib_status encode_batch(void *user, size_t slot, unsigned worker, nib_error *error) {
    run *r = user;
    batch *b = &r->batches[slot];
    const nib_tensor *tensor = tensor_at(r, b->index);
    float *weights = r->scratch + worker * 2 * r->most_columns;
    size_t out_at = 0;
    for (size_t t = 0; t < r->n_targets; t++) {
        const nib_choice_of_format *choice = choice_of(r, t, b->index);
        b->n_bytes[t] = bytes_of_pieces(choice->format, tensor, b);
        b->out_at[t] = out_at;
        if (!choice->copied) out_at += b->n_bytes[t];
    }
    for (size_t i = 0; i < b->n; i++) NIB_TRY(work_on_piece(r, b, i, weights, weights + r->most_columns, error));
    atomic_fetch_add(&r->n_worked_bytes, b->n_in);
    if (worker != 0) return NIB_OK; /* the calling thread tells how far all are */
    return nib_meter_add(&r->meter, (double)atomic_exchange(&r->n_worked_bytes, 0), error);
}

/* In the order of the pieces, whoever measured them. */
static void add_errors(nib_journal_entry *sums, const nib_row_error *errors, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sums->sum_squares += errors[i].sum_squares;
        sums->sum_squared_errors += errors[i].sum_squared_errors;
        if (errors[i].max_abs_error > sums->max_abs_error) sums->max_abs_error = errors[i].max_abs_error;
    }
}

static nib_status write_batch(void *user, size_t slot, nib_error *error) {
    run *r = user;
    const batch *b = &r->batches[slot];
    for (size_t t = 0; t < r->n_targets; t++) {
        if (!b->is_wanted[t]) continue;
        if (b->first == 0) {
            nib_target_begin_tensor(&r->targets[t]);
            r->sums[t] = (nib_journal_entry){0};
        }
        add_errors(&r->sums[t], b->errors + t * r->most_pieces, b->n);
        const uint8_t *bytes = choice_of(r, t, b->index)->copied ? b->in : b->out + b->out_at[t];
        NIB_TRY(nib_target_write(&r->targets[t], bytes, b->n_bytes[t], error));
        if (b->is_last) NIB_TRY(nib_target_end_tensor(&r->targets[t], &r->sums[t], error));
    }
    return NIB_OK;
}

/* ---- The whole job ------------------------------------------------------------------------------------------------- */

static nib_status take_room(run *r, nib_error *error) {
    r->in_bytes = BATCH_IN_BYTES;
    r->out_bytes = BATCH_OUT_BYTES;
    r->most_columns = NIB_PIECE_COLUMNS;
    for (size_t i = 0; i < r->n_tensors; i++) {
        const size_t columns = (size_t)columns_of_pieces(r, i), n_out = out_bytes_of_piece(r, i);
        const size_t n_in = nib_format_row_bytes(tensor_at(r, i)->format, columns);
        if (columns > r->most_columns) r->most_columns = columns;
        if (n_in > r->in_bytes) r->in_bytes = n_in;
        if (n_out > r->out_bytes) r->out_bytes = n_out;
    }
    const size_t n_workers = nib_pool_size(r->pool), scratch_bytes = n_workers * 2 * r->most_columns * sizeof(float);
    r->most_pieces = BATCH_RESULTS / r->n_targets < BATCH_PIECES ? BATCH_RESULTS / r->n_targets : BATCH_PIECES;
    const size_t n_errors = r->n_targets * r->most_pieces;
    const size_t batch_bytes = r->in_bytes + r->out_bytes + n_errors * sizeof(nib_row_error);
    r->n_batches = n_workers + 2; /* one is read, one written meanwhile */
    if (r->n_batches > MOST_BYTES / batch_bytes) r->n_batches = MOST_BYTES / batch_bytes;
    if (r->n_batches < 3) r->n_batches = 3;
    r->scratch = nib_alloc_aligned(scratch_bytes);
    r->batches = nib_alloc(r->n_batches, sizeof *r->batches);
    bool has_all = r->scratch && r->batches;
    for (size_t i = 0; has_all && i < r->n_batches; i++) {
        batch *b = &r->batches[i];
        b->in = nib_alloc_aligned(r->in_bytes);
        b->out = nib_alloc_aligned(r->out_bytes);
        b->errors = nib_alloc(n_errors, sizeof *b->errors);
        has_all = b->in && b->out && b->errors;
    }
    return has_all ? NIB_OK : nib_fail_memory(error, r->n_batches * batch_bytes + scratch_bytes);
}

static void release_room(run *r) {
    nib_free_aligned(r->scratch);
    for (size_t i = 0; r->batches && i < r->n_batches; i++) {
        nib_free_aligned(r->batches[i].in);
        nib_free_aligned(r->batches[i].out);
        free(r->batches[i].errors);
    }
    free(r->batches);
}

/* What the journal must agree on. Last the layout, which covers whatever has no line of its own. */
static nib_status describe(const nib_gguf *gguf, const nib_quantize_params *params, nib_target *target,
                           nib_error *error) {
    nib_string *fields = &target->fields;
    const nib_layout *l = &target->layout;
    XXH3_state_t *state = XXH3_createState();
    if (!state) return nib_fail_memory(error, sizeof(XXH64_hash_t) * 64);
    nib_string_addf(fields, "version %s\n", nib_version());
    for (unsigned i = 0; i < nib_gguf_n_files(gguf); i++) {
        const nib_map *map = nib_gguf_map(gguf, i);
        nib_string_addf(fields, "input_bytes %zu\ninput_mtime %" PRId64 "\n", map->n_bytes, map->mtime_ns);
    }
    nib_string_addf(fields,
                    "recipe %s\npure %d\nprovenance %d\nsplit_bytes %" PRIu64 "\nmeasure_error %d\ngrid_search %d\n",
                    nib_recipe_name(params->recipe), params->pure, !params->no_provenance, params->split_bytes,
                    params->measure_error, params->grid_search);
    XXH3_64bits_reset(state);
    for (size_t i = 0; i < l->n; i++) {
        const nib_tensor *tensor = l->choices[i].tensor;
        if (l->choices[i].importance)
            XXH3_64bits_update(state, l->choices[i].importance,
                               (size_t)(tensor->ne[0] * tensor->ne[2]) * sizeof *l->choices[i].importance);
    }
    nib_string_addf(fields, "imatrix %016" PRIx64 "\n", (uint64_t)XXH3_64bits_digest(state));
    XXH3_64bits_reset(state);
    for (size_t i = 0; i < l->n; i++) {
        const char *name = nib_format_facts_of(l->choices[i].format)->name;
        XXH3_64bits_update(state, name, strlen(name) + 1);
    }
    nib_string_addf(fields, "formats %016" PRIx64 "\n", (uint64_t)XXH3_64bits_digest(state));
    XXH3_64bits_reset(state);
    for (size_t p = 0; p < l->n_parts; p++)
        XXH3_64bits_update(state, l->parts[p].head.text.data, l->parts[p].head.text.n_bytes);
    nib_string_addf(fields, "header %016" PRIx64 "\n", (uint64_t)XXH3_64bits_digest(state));
    XXH3_freeState(state);
    return fields->failed ? nib_fail_memory(error, 1024) : NIB_OK;
}

static nib_status check_names(const nib_gguf *gguf, const nib_target *targets, size_t n, nib_error *error) {
    for (size_t t = 0; t < n; t++) {
        for (size_t k = 0; k < t; k++)
            if (nib_same_output(targets[t].path_out, targets[k].path_out)) {
                nib_fail_at(error, NIB_ERR_USAGE, targets[t].path_out, -1, NULL, "two outputs have this name");
                return nib_hint(error, NIB_ERR_USAGE, "give every output a name of its own");
            }
        for (size_t p = 0; p < targets[t].layout.n_parts; p++)
            for (unsigned i = 0; i < nib_gguf_n_files(gguf); i++)
                NIB_TRY(nib_output_refuse_input(targets[t].layout.parts[p].path, nib_gguf_map(gguf, i), error));
    }
    return NIB_OK;
}

static nib_status check_space(const nib_target *targets, size_t n, nib_error *error) {
    nib_status status = NIB_OK;
    size_t n_parts = 0, k = 0;
    for (size_t t = 0; t < n; t++) n_parts += targets[t].layout.n_parts;
    const char **paths = nib_alloc(n_parts, sizeof *paths);
    uint64_t *n_bytes = nib_alloc(n_parts, sizeof *n_bytes);
    if (!paths || !n_bytes) {
        status = nib_fail_memory(error, n_parts * (sizeof *paths + sizeof *n_bytes));
        goto fail;
    }
    for (size_t t = 0; t < n; t++)
        for (size_t p = 0; p < targets[t].layout.n_parts; p++, k++) {
            paths[k] = targets[t].layout.parts[p].path;
            n_bytes[k] = targets[t].layout.parts[p].n_bytes;
        }
    status = nib_outputs_check_space(paths, n_bytes, n_parts, error);
fail:
    free(paths);
    free(n_bytes);
    return status;
}

static nib_status check_inputs(const nib_gguf *gguf, nib_error *error) {
    for (unsigned i = 0; i < nib_gguf_n_files(gguf); i++)
        NIB_TRY(nib_map_check_unchanged(nib_gguf_map(gguf, i), nib_gguf_file_path(gguf, i), error));
    return NIB_OK;
}

/* All that can be refused before the first byte is written. */
static nib_status plan_targets(run *r, const char *const paths_out[], nib_error *error) {
    NIB_TRY(check_inputs(r->gguf, error));
    for (size_t t = 0; t < r->n_targets; t++) {
        const nib_quantize_params *params = &r->params[t];
        r->targets[t] = (nib_target){.path_out = paths_out[t],
                                     .resume = params->resume,
                                     .force = params->force,
                                     .sync = !params->no_sync,
                                     .has_journal = !params->no_sync || params->resume};
        NIB_TRY(nib_layout_make(r->gguf, paths_out[t], params, &r->targets[t].layout, error));
        NIB_TRY(describe(r->gguf, params, &r->targets[t], error));
    }
    NIB_TRY(check_names(r->gguf, r->targets, r->n_targets, error));
    return check_space(r->targets, r->n_targets, error);
}

/* Opens the outputs, sets what is left to do, and does it. */
static nib_status write_targets(run *r, const nib_watch *watch, nib_error *error) {
    double n_in = 0, n_in_before = 0;
    const nib_pipeline pipeline = {.user = r,
                                   .pool = r->pool,
                                   .n_slots = r->n_batches,
                                   .read = read_batch,
                                   .work = encode_batch,
                                   .write = write_batch};
    r->next_tensor = r->n_tensors;
    for (size_t t = 0; t < r->n_targets; t++) {
        NIB_TRY(nib_target_open(&r->targets[t], watch, error));
        r->n_before[t] = r->targets[t].n_done;
        if (r->n_before[t] < r->next_tensor) r->next_tensor = r->n_before[t];
    }
    for (size_t i = 0; i < r->n_tensors; i++) {
        n_in += (double)tensor_at(r, i)->n_bytes;
        if (i < r->next_tensor) n_in_before += (double)tensor_at(r, i)->n_bytes;
    }
    for (unsigned i = 0; i < nib_gguf_n_files(r->gguf); i++) nib_map_expect_sequential(nib_gguf_map(r->gguf, i));
    nib_meter_init(&r->meter, watch, r->stage, n_in);
    r->meter.done = n_in_before;
    NIB_TRY(nib_pipeline_run(&pipeline, error));
    NIB_TRY(check_inputs(r->gguf, error)); /* also what was changed after it was read */
    NIB_TRY(nib_meter_add(&r->meter, (double)atomic_exchange(&r->n_worked_bytes, 0), error));
    for (size_t t = 0; t < r->n_targets; t++) NIB_TRY(nib_target_commit(&r->targets[t], error));
    return NIB_OK;
}

/* Before targets open (n_resumed then is 0), and after they are written. */
static nib_status begin_report(const run *r, size_t t, nib_quantized *out, nib_error *error) {
    const nib_layout *l = &r->targets[t].layout;
    snprintf(out->output, sizeof out->output, "%s", l->parts[0].path);
    out->bytes_out = l->n_bytes;
    out->n_files = (uint32_t)l->n_parts;
    out->tensors = nib_alloc(l->n, sizeof *out->tensors);
    if (!out->tensors) return nib_fail_memory(error, l->n * sizeof *out->tensors);
    out->n_tensors = (uint32_t)l->n;
    return NIB_OK;
}

static void end_report(const run *r, size_t t, double seconds, nib_quantized *out) {
    const nib_target *target = &r->targets[t];
    uint64_t n_payload = 0, n_weights = 0;
    for (size_t i = 0; i < target->layout.n; i++) {
        const nib_choice_of_format *choice = &target->layout.choices[i];
        const nib_journal_entry *entry = &target->entries[i];
        nib_quantized_tensor *tensor = &out->tensors[i];
        *tensor = (nib_quantized_tensor){
            .from = choice->tensor->format, .to = choice->format, .rel_rmse = NAN, .max_abs_err = NAN};
        snprintf(tensor->name, sizeof tensor->name, "%s", choice->tensor->name);
        snprintf(tensor->fallback, sizeof tensor->fallback, "%s", choice->fallback);
        tensor->n_bytes = target->layout.places[i].n_bytes;
        n_payload += tensor->n_bytes;
        n_weights += choice->tensor->n_elements;
        if (!r->params[t].measure_error) continue;
        tensor->max_abs_err = entry->max_abs_error;
        if (choice->copied)
            tensor->rel_rmse = 0;
        else if (entry->sum_squares > 0)
            tensor->rel_rmse = sqrt(entry->sum_squared_errors / entry->sum_squares);
    }
    out->bpw = n_weights ? 8.0 * (double)n_payload / (double)n_weights : 0;
    out->n_resumed = (uint32_t)r->n_before[t];
    out->seconds = seconds;
    out->peak_rss = nib_peak_anonymous_bytes();
    nib_gguf_hash_text(target->whole, out->hash);
}

static void name_stage(run *r) {
    size_t n = (size_t)snprintf(r->stage, sizeof r->stage, "quantize ");
    for (size_t t = 0; t < r->n_targets && n < sizeof r->stage; t++)
        n += (size_t)snprintf(r->stage + n, sizeof r->stage - n, "%s%s", t ? "," : "",
                              nib_recipe_name(r->params[t].recipe));
}

nib_status nib_quantize_many(const nib_gguf *gguf, size_t n, const char *const paths_out[],
                             const nib_quantize_params params[], nib_pool *pool, const nib_watch *watch,
                             nib_quantized outs[], nib_error *error) {
    nib_status status;
    const double began = nib_now();
    for (size_t t = 0; t < n; t++) {
        outs[t] = (nib_quantized){.recipe = params[t].recipe, .pure = params[t].pure, .bytes_in = nib_gguf_bytes(gguf)};
        snprintf(outs[t].input, sizeof outs[t].input, "%s", nib_gguf_path(gguf));
        snprintf(outs[t].output, sizeof outs[t].output, "%s", paths_out[t]);
        if (params[t].imatrix)
            snprintf(outs[t].imatrix, sizeof outs[t].imatrix, "%s", nib_imatrix_facts_of(params[t].imatrix).path);
    }
    if (n == 0 || n > NIB_QUANTIZE_MOST)
        return nib_fail(error, NIB_ERR_USAGE, "%zu outputs at once; 1 to %u are possible", n, NIB_QUANTIZE_MOST);
    run *r = nib_alloc(1, sizeof *r);
    if (!r) return nib_fail_memory(error, sizeof *r);
    *r = (run){.gguf = gguf, .params = params, .n_targets = n, .pool = pool};
    r->n_tensors = (size_t)nib_gguf_n_tensors(gguf);
    name_stage(r);
    r->targets = nib_alloc(n, sizeof *r->targets);
    if (!r->targets) {
        status = nib_fail_memory(error, n * sizeof *r->targets);
        goto fail;
    }
    NIB_TRY_GOTO(plan_targets(r, paths_out, error));
    if (nib_gguf_trailing_bytes(gguf))
        nib_warn(watch, "%s: %" PRIu64 " bytes after the last tensor are left out", nib_gguf_path(gguf),
                 nib_gguf_trailing_bytes(gguf));
    for (size_t t = 0; t < n; t++) {
        nib_layout_warn(&r->targets[t].layout, params[t].imatrix, watch);
        if (t == 0 || params[t].overrides != params[0].overrides)
            nib_overrides_warn_unused(params[t].overrides, gguf, watch);
    }
    for (size_t t = 0; t < n; t++) NIB_TRY_GOTO(begin_report(r, t, &outs[t], error));
    NIB_TRY_GOTO(take_room(r, error));
    NIB_TRY_GOTO(write_targets(r, watch, error));
    for (size_t t = 0; t < n; t++) end_report(r, t, nib_now() - began, &outs[t]);
fail:
    for (size_t t = 0; r->targets && t < n; t++)
        nib_target_fini(&r->targets[t],
                        status != NIB_OK && params[t].resume && status != NIB_ERR_CORRUPT && status != NIB_ERR_BUG);
    free(r->targets);
    release_room(r);
    free(r);
    return status;
}

nib_status nib_quantize(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params, nib_pool *pool,
                        const nib_watch *watch, nib_quantized *out, nib_error *error) {
    return nib_quantize_many(gguf, 1, &path_out, params, pool, watch, out, error);
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
    nib_json_uint(json, "n_files", quantized->n_files);
    nib_json_uint(json, "n_resumed", quantized->n_resumed);
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
