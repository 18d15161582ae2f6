/* Reading every byte of a GGUF file: is what it stores sane (nib_gguf_check), and which file is it (nib_gguf_hash).
 * Work is cut into pieces of fixed length, so messages and results do not depend on the number of threads. */
#include "base/progress.h"
#include "cpu/pool.h"
#include "file/gguf_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- Pieces -------------------------------------------------------------------------------------------------------- */

/* Blocks are powers of two, at most 256 weights, in every format there is: pieces never split one. */
static uint64_t pieces_per_row(const nib_tensor *tensor, uint64_t columns) {
    return (tensor->ne[0] - 1) / columns + 1;
}

uint64_t nib_tensor_n_pieces(const nib_tensor *tensor, uint64_t columns) {
    return tensor->n_elements / tensor->ne[0] * pieces_per_row(tensor, columns);
}

nib_piece nib_tensor_piece(const nib_tensor *tensor, uint64_t columns, uint64_t index) {
    const nib_format_facts *facts = nib_format_facts_of(tensor->format);
    const uint64_t per_row = pieces_per_row(tensor, columns);
    nib_piece piece = {.row = index / per_row, .column = index % per_row * columns};
    const uint64_t n = tensor->ne[0] - piece.column;
    piece.n = (size_t)(n < columns ? n : columns);
    piece.data = tensor->data + (piece.row * tensor->ne[0] + piece.column) / facts->block * facts->bytes;
    piece.n_bytes = piece.n / facts->block * facts->bytes;
    return piece;
}

size_t nib_first_not_finite(const float *values, size_t n) {
    uint32_t any = 0; /* vectorizes: most rows are clean */
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        any |= (bits & 0x7fffffffu) >= 0x7f800000u;
    }
    if (!any) return n;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        if ((bits & 0x7fffffffu) >= 0x7f800000u) return i;
    }
    return n;
}

/* ---- Check --------------------------------------------------------------------------------------------------------- */

#define BATCH_PIECES 4096u

typedef struct check_job {
    const nib_tensor *tensor;
    uint64_t first;        /* piece of the batch's first finding */
    nib_finding *findings; /* (BATCH_PIECES) */
    float *scratch;        /* (workers, NIB_PIECE_COLUMNS) */
} check_job;

nib_finding nib_piece_check(const nib_tensor *tensor, const nib_piece *piece, float *scratch) {
    const nib_format_facts *facts = nib_format_facts_of(tensor->format);
    nib_finding found = {.verdict = nib_format_check(tensor->format, piece->data, piece->n)};
    const bool has_scales = facts->kind == NIB_CLASS_SCALED || facts->block > 2;
    if (found.verdict == NIB_VERDICT_NOT_FINITE && !has_scales && facts->kind == NIB_CLASS_FLOAT && facts->can_decode) {
        nib_format_decode(tensor->format, scratch, piece->data, piece->n);
        const size_t column = nib_first_not_finite(scratch, piece->n);
        if (column < piece->n) {
            found = (nib_finding){.verdict = NIB_VERDICT_NOT_FINITE, .has_column = true};
            found.column = piece->column + column;
        }
    }
    /* NaN and infinity can stand in plain float tensors; a scale that is not finite is damage. */
    found.is_damage = found.verdict == NIB_VERDICT_BAD_CODE || found.verdict == NIB_VERDICT_SCALE_OVERFLOW ||
                      (found.verdict == NIB_VERDICT_NOT_FINITE && has_scales);
    return found;
}

static void check_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    const check_job *job = arg;
    for (size_t i = begin; i < end; i++) {
        const nib_piece piece = nib_tensor_piece(job->tensor, NIB_PIECE_COLUMNS, job->first + i);
        job->findings[i] = nib_piece_check(job->tensor, &piece, job->scratch + (size_t)worker * NIB_PIECE_COLUMNS);
    }
}

static nib_status report(const nib_gguf *gguf, const check_job *job, uint64_t index, const nib_finding *found,
                         const nib_watch *watch, bool *warned, nib_error *error) {
    const nib_tensor *tensor = job->tensor;
    const nib_piece piece = nib_tensor_piece(tensor, NIB_PIECE_COLUMNS, index);
    const char *format = nib_format_facts_of(tensor->format)->name;
    const char *path = nib_gguf_file_path(gguf, tensor->shard);
    if (found->is_damage) {
        nib_fail_at(error, NIB_ERR_CORRUPT, path, (int64_t)(tensor->offset + (uint64_t)(piece.data - tensor->data)),
                    tensor->name, "tensor %s (%s), row %" PRIu64 ": %s", tensor->name, format, piece.row,
                    found->verdict == NIB_VERDICT_BAD_CODE ? "a code that no encoder writes" : "a scale is not finite");
        return nib_hint(error, NIB_ERR_CORRUPT, "the file is damaged; download it or quantize the model again");
    }
    if (found->verdict == NIB_VERDICT_NOT_FINITE && !*warned) {
        *warned = true;
        if (found->has_column)
            nib_warn(watch, "%s: tensor %s (%s) has NaN or infinity at row %" PRIu64 ", column %" PRIu64, path,
                     tensor->name, format, piece.row, found->column);
        else
            nib_warn(watch, "%s: tensor %s (%s) has NaN or infinity in row %" PRIu64, path, tensor->name, format,
                     piece.row);
    }
    return NIB_OK;
}

static nib_status check_tensor(const nib_gguf *gguf, check_job *job, nib_pool *pool, nib_meter *meter,
                               nib_error *error) {
    const uint64_t n_pieces = nib_tensor_n_pieces(job->tensor, NIB_PIECE_COLUMNS);
    bool warned = false;
    for (job->first = 0; job->first < n_pieces; job->first += BATCH_PIECES) {
        const uint64_t rest = n_pieces - job->first;
        const size_t n = rest < BATCH_PIECES ? (size_t)rest : BATCH_PIECES;
        nib_par_for(pool, n, 16, check_pieces, job);
        uint64_t n_bytes = 0;
        for (size_t i = 0; i < n; i++) {
            NIB_TRY(report(gguf, job, job->first + i, &job->findings[i], meter->watch, &warned, error));
            n_bytes += nib_tensor_piece(job->tensor, NIB_PIECE_COLUMNS, job->first + i).n_bytes;
        }
        NIB_TRY(nib_meter_add(meter, (double)n_bytes, error));
    }
    return NIB_OK;
}

nib_status nib_gguf_check(const nib_gguf *gguf, nib_pool *pool, const nib_watch *watch, nib_error *error) {
    nib_status status = NIB_OK;
    nib_meter meter;
    uint64_t total = 0;
    for (size_t i = 0; i < gguf->n_tensors; i++) total += gguf->tensors[i].n_bytes;
    check_job job = {.findings = nib_alloc(BATCH_PIECES, sizeof *job.findings)};
    const size_t scratch_bytes = (size_t)nib_pool_size(pool) * NIB_PIECE_COLUMNS * sizeof *job.scratch;
    job.scratch = nib_alloc_aligned(scratch_bytes);
    if (!job.findings || !job.scratch) {
        status = nib_fail_memory(error, BATCH_PIECES * sizeof *job.findings + scratch_bytes);
        goto fail;
    }
    if (gguf->trailing_bytes)
        nib_warn(watch, "%s: %" PRIu64 " bytes after the last tensor belong to nothing", gguf->path,
                 gguf->trailing_bytes);
    nib_meter_init(&meter, watch, "check", total ? (double)total : 1);
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        job.tensor = &gguf->tensors[i];
        NIB_TRY_GOTO(check_tensor(gguf, &job, pool, &meter, error));
    }
fail:
    free(job.findings);
    nib_free_aligned(job.scratch);
    return status;
}

/* ---- Hash ---------------------------------------------------------------------------------------------------------- */

void nib_gguf_hash_head(XXH3_state_t *state, const char *name, const nib_format *format, const uint64_t ne[4]) {
    const uint32_t type = nib_format_facts_of(format)->gguf_type;
    XXH3_128bits_update(state, name, strlen(name) + 1);
    XXH3_128bits_update(state, &type, sizeof type);
    XXH3_128bits_update(state, ne, 4 * sizeof *ne);
}

void nib_gguf_hash_text(const XXH3_state_t *state, char out[33]) {
    const XXH128_hash_t hash = XXH3_128bits_digest(state);
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64, (uint64_t)hash.low64);
}

nib_status nib_gguf_hash(const nib_gguf *gguf, char out[33], nib_error *error) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) return nib_fail_memory(error, sizeof(XXH64_hash_t) * 64);
    XXH3_128bits_reset(state);
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const nib_tensor *tensor = &gguf->tensors[i];
        nib_gguf_hash_head(state, tensor->name, tensor->format, tensor->ne);
        XXH3_128bits_update(state, tensor->data, (size_t)tensor->n_bytes);
    }
    nib_gguf_hash_text(state, out);
    XXH3_freeState(state);
    return NIB_OK;
}
