/* One output while it is written.
 *
 *   head | tensor, padding | tensor, padding | ...     one file or several; tensors in order, each followed by its line in
 *                                                      the journal
 *
 * Resuming reads back every tensor the journal claims, and goes on behind the last of those whose hashes agree, so what an
 * earlier run left can be wrong in any way without harm: the result is the same bytes. The head is written anew. */
#include "quant/target.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define READ_BYTES (256u << 10)

static uint64_t end_of_place(const nib_place *place) {
    return place->offset + nib_round_up(place->n_bytes, NIB_GGUF_ALIGNMENT);
}

/* ---- Going on after an earlier run --------------------------------------------------------------------------------- */

static bool path_exists(const char *path, const char *suffix, bool *is_regular) {
    struct stat info;
    nib_string name = {0};
    nib_string_addf(&name, "%s%s", path, suffix);
    const bool exists = !name.failed && lstat(name.data, &info) == 0;
    *is_regular = exists && S_ISREG(info.st_mode);
    nib_string_fini(&name);
    return exists;
}

/* A file under its final name is part of an earlier run only if that left its journal. */
static nib_status open_parts_of_earlier_run(nib_target *target, nib_error *error) {
    bool unused;
    const bool has_journal = path_exists(target->path_out, ".journal", &unused);
    for (size_t p = 0; p < target->layout.n_parts; p++) {
        nib_part *part = &target->layout.parts[p];
        bool is_regular;
        if (has_journal && !path_exists(part->path, ".partial", &unused) && path_exists(part->path, "", &is_regular) &&
            is_regular)
            NIB_TRY(nib_map_open(part->path, &part->finished, error));
        else
            NIB_TRY(nib_output_open_partial(part->path, target->force, NULL, part->n_bytes, &part->output, error));
    }
    return NIB_OK;
}

/* Feeds the payload to both hashes; false if it cannot be read in full. */
static bool hash_payload(nib_target *target, const nib_place *place, uint8_t *buffer) {
    nib_part *part = &target->layout.parts[place->part];
    for (uint64_t done = 0, n; done < place->n_bytes; done += n) {
        nib_error error;
        const uint64_t rest = place->n_bytes - done, at = place->offset + done;
        n = rest < READ_BYTES ? rest : READ_BYTES;
        if (part->output) {
            if (nib_output_read_at(part->output, at, buffer, (size_t)n, &error) != NIB_OK) return false;
        } else if (at + n > part->finished.n_bytes ||
                   nib_map_read(&part->finished, part->path, at, (size_t)n, buffer, &error) != NIB_OK) {
            return false;
        }
        XXH3_128bits_update(target->whole, buffer, (size_t)n);
        XXH3_64bits_update(target->one, buffer, (size_t)n);
    }
    return true;
}

/* Counts the tensors that are as the journal claims. */
static nib_status verify(nib_target *target, size_t n_claimed, nib_error *error) {
    uint8_t *buffer = malloc(READ_BYTES);
    XXH3_state_t *before = XXH3_createState();
    nib_status status = NIB_OK;
    if (!buffer || !before) status = nib_fail_memory(error, READ_BYTES);
    for (size_t i = 0; i < n_claimed && status == NIB_OK; i++) {
        const nib_place *place = &target->layout.places[i];
        const nib_journal_entry *entry = &target->entries[i];
        if (entry->offset != place->offset || entry->n_bytes != place->n_bytes) break;
        XXH3_copyState(before, target->whole);
        nib_target_begin_tensor(target);
        if (!hash_payload(target, place, buffer) || XXH3_64bits_digest(target->one) != entry->xxh3) {
            XXH3_copyState(target->whole, before);
            break;
        }
        target->n_done++;
    }
    XXH3_freeState(before);
    free(buffer);
    return status;
}

/* Makes a part ready for the first tensor that is not done. */
static nib_status rewind_part(nib_target *target, uint32_t index, nib_error *error) {
    const nib_layout *l = &target->layout;
    nib_part *part = &l->parts[index];
    uint64_t end = part->head.text.n_bytes;
    bool is_done = l->n > 0;
    for (size_t i = 0; i < l->n; i++) {
        if (l->places[i].part != index) continue;
        if (i < target->n_done)
            end = end_of_place(&l->places[i]);
        else
            is_done = false;
    }
    if (!part->output) {
        if (is_done && part->finished.n_bytes == part->n_bytes) return NIB_OK;
        nib_map_close(&part->finished);
        NIB_TRY(nib_output_open(part->path, target->force, NULL, part->n_bytes, &part->output, error));
    }
    NIB_TRY(nib_output_write_at(part->output, 0, part->head.text.data, part->head.text.n_bytes, error));
    return nib_output_rewind(part->output, end, error);
}

static nib_status resume(nib_target *target, const nib_watch *watch, nib_error *error) {
    const nib_layout *l = &target->layout;
    size_t n_claimed = 0;
    NIB_TRY(open_parts_of_earlier_run(target, error));
    NIB_TRY(nib_journal_resume(target->path_out, target->fields.data, target->entries, l->n, &n_claimed,
                               &target->journal, error));
    NIB_TRY(verify(target, n_claimed, error));
    NIB_TRY(nib_journal_cut(target->journal, target->n_done, error));
    for (uint32_t p = 0; p < l->n_parts; p++) NIB_TRY(rewind_part(target, p, error));
    if (target->n_done < n_claimed)
        nib_warn(watch, "%s: %zu tensors of the earlier run are not as it left them and are made again",
                 target->path_out, n_claimed - target->n_done);
    if (target->n_done) nib_warn(watch, "%s: resumed after %zu of %zu tensors", target->path_out, target->n_done, l->n);
    return NIB_OK;
}

/* ---- From the beginning -------------------------------------------------------------------------------------------- */

static nib_status begin(nib_target *target, const nib_watch *watch, nib_error *error) {
    const nib_layout *l = &target->layout;
    for (size_t p = 0; p < l->n_parts; p++) {
        nib_part *part = &l->parts[p];
        NIB_TRY(nib_output_open(part->path, target->force, NULL, part->n_bytes, &part->output, error));
        if (nib_output_replaced(part->output))
            nib_warn(watch, "%s.partial was left by a run that ended early; it is replaced", part->path);
        NIB_TRY(nib_output_write(part->output, part->head.text.data, part->head.text.n_bytes, error));
        NIB_TRY(nib_output_flush(part->output, error));
        if (nib_output_is_device(part->output)) return NIB_OK;
    }
    if (target->has_journal) return nib_journal_begin(target->path_out, target->fields.data, &target->journal, error);
    nib_journal_remove(target->path_out);
    return NIB_OK;
}

/* Such files are run; floats are mostly quantized, which reads them once. */
static bool is_quantized(const nib_layout *layout) {
    for (size_t i = 0; i < layout->n; i++)
        if (nib_format_facts_of(layout->choices[i].format)->block > 1) return true;
    return false;
}

nib_status nib_target_open(nib_target *target, const nib_watch *watch, nib_error *error) {
    const size_t n = target->layout.n;
    target->entries = nib_alloc(n, sizeof *target->entries);
    target->whole = XXH3_createState();
    target->one = XXH3_createState();
    if (!target->entries || !target->whole || !target->one || target->fields.failed)
        return nib_fail_memory(error, n * sizeof *target->entries);
    XXH3_128bits_reset(target->whole);
    NIB_TRY(target->resume ? resume(target, watch, error) : begin(target, watch, error));
    const bool is_run = is_quantized(&target->layout);
    for (size_t p = 0; p < target->layout.n_parts; p++) {
        nib_output *output = target->layout.parts[p].output;
        if (output && target->sync) nib_output_write_behind(output);
        if (output && is_run) nib_output_prefer_large_pages(output);
    }
    target->is_open = true;
    return NIB_OK;
}

/* ---- Tensor by tensor ---------------------------------------------------------------------------------------------- */

void nib_target_begin_tensor(nib_target *target) {
    const nib_choice_of_format *choice = &target->layout.choices[target->n_done];
    nib_gguf_hash_head(target->whole, choice->tensor->name, choice->format, choice->tensor->ne);
    XXH3_64bits_reset(target->one);
}

static nib_output *output_of(const nib_target *target) {
    const nib_layout *l = &target->layout;
    return l->parts[l->places[target->n_done].part].output;
}

nib_status nib_target_write(nib_target *target, const void *data, size_t n_bytes, nib_error *error) {
    XXH3_128bits_update(target->whole, data, n_bytes);
    XXH3_64bits_update(target->one, data, n_bytes);
    return nib_output_write(output_of(target), data, n_bytes, error);
}

nib_status nib_target_end_tensor(nib_target *target, const nib_journal_entry *sums, nib_error *error) {
    static const uint8_t zeros[NIB_GGUF_ALIGNMENT] = {0};
    const nib_place *place = &target->layout.places[target->n_done];
    nib_journal_entry *entry = &target->entries[target->n_done];
    *entry = *sums;
    entry->offset = place->offset;
    entry->n_bytes = place->n_bytes;
    entry->xxh3 = XXH3_64bits_digest(target->one);
    NIB_TRY(nib_output_write(output_of(target), zeros, (size_t)(end_of_place(place) - place->offset - place->n_bytes),
                             error));
    /* Before the journal claims it; and no file keeps a buffer it is done with. */
    const bool is_last_of_part = target->n_done + 1 == target->layout.n || place[1].part != place->part;
    if (target->journal || is_last_of_part) NIB_TRY(nib_output_flush(output_of(target), error));
    if (target->journal) NIB_TRY(nib_journal_add(target->journal, entry, error));
    target->n_done++;
    return NIB_OK;
}

/* ---- The end ------------------------------------------------------------------------------------------------------- */

static nib_status fill_in_hashes(nib_target *target, nib_error *error) {
    const nib_layout *l = &target->layout;
    nib_output *output = l->parts[0].output;
    if (!l->hashes_at || !output || nib_output_is_device(output)) return NIB_OK;
    uint64_t *hashes = nib_alloc(l->n, sizeof *hashes);
    if (!hashes) return nib_fail_memory(error, l->n * sizeof *hashes);
    for (size_t i = 0; i < l->n; i++) hashes[i] = target->entries[i].xxh3;
    const nib_status status = nib_output_write_at(output, l->hashes_at, hashes, l->n * sizeof *hashes, error);
    free(hashes);
    return status;
}

nib_status nib_target_commit(nib_target *target, nib_error *error) {
    NIB_TRY(fill_in_hashes(target, error));
    for (size_t p = 0; p < target->layout.n_parts; p++) {
        nib_part *part = &target->layout.parts[p];
        nib_output *output = part->output;
        part->output = NULL; /* freed whatever happens */
        if (output) NIB_TRY(nib_output_commit(output, target->sync, error));
    }
    return NIB_OK;
}

void nib_target_fini(nib_target *target, bool keep) {
    nib_layout *l = &target->layout;
    if (target->is_open && target->n_done == 0) keep = false; /* nothing worth keeping */
    /* The journal goes first: the lock of the partial file protects it. */
    nib_journal_close(target->journal, keep);
    for (size_t p = 0; l->parts && p < l->n_parts; p++) {
        nib_part *part = &l->parts[p];
        if (keep)
            nib_output_suspend(part->output);
        else
            nib_output_discard(part->output);
        nib_map_close(&part->finished);
    }
    nib_layout_fini(l);
    nib_string_fini(&target->fields);
    free(target->entries);
    XXH3_freeState(target->whole);
    XXH3_freeState(target->one);
    *target = (nib_target){0};
}
