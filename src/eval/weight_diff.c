/* How far the weights of one file are from those of another of the same model, tensor by tensor.
 *
 *   tensors of A and B, paired by name -> pieces of 32768 weights, whole blocks of both formats
 *   per piece: sums of a*a, b*b, a*b, (a-b)^2; the largest |a-b|                   merged in file order
 *   per worker: which codes the tensor uses                                        sets: no order needed
 *
 * Which codes a format can store is found by unpacking random blocks: every format with integer codes is measured, and
 * none has to say so. Nothing depends on the number of threads; memory does not grow with the files' tensors. */
#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "cpu/pool.h"
#include "format/format.h"
#include "nibble/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 32768, WAVE = 256, LANES = 8, N_CODES = 256 };

typedef struct code_set {
    bool has[N_CODES];
} code_set;

typedef struct diff_sums {
    double aa, bb, ab, errors;
} diff_sums;

typedef struct diff_piece {
    diff_sums sums;
    double max_abs_error, value[2];
    uint64_t max_index;
    uint64_t bad; /* index of the first weight that is not finite, UINT64_MAX if none */
    int bad_side;
} diff_piece;

typedef struct diff_worker {
    float *weights[2]; /* (PIECE) of A and of B */
    code_set codes[2];
} diff_worker;

typedef struct comparison {
    const nib_gguf *gguf[2];
    nib_pool *pool;
    nib_error *error;
    nib_meter meter;
    diff_worker *workers;
    unsigned n_workers;
    diff_piece *pieces;          /* (WAVE) */
    const nib_tensor *tensor[2]; /* the pair at hand */
    uint64_t first_piece;        /* of the wave */
    diff_sums all;
    struct {
        const nib_format *format;
        uint32_t n_codes;
    } known[2]; /* the last count of each side */
} comparison;

/* ---- Codes ----------------------------------------------------------------------------------------------------------- */

static void add_codes(const nib_format *format, const uint8_t *data, size_t n, code_set *set) {
    const nib_format_facts *facts = nib_format_facts_of(format);
    const nib_format *fast = nib_format_fast(format);
    nib_codes codes;
    for (size_t i = 0; i < n; i += NIB_PANEL_K) {
        const size_t part = n - i < NIB_PANEL_K ? n - i : NIB_PANEL_K;
        fast->unpack(fast, &codes, data + i / facts->block * facts->bytes, part);
        for (size_t k = 0; k < part; k++) set->has[codes.code[k]] = true;
    }
}

static bool has_codes(const nib_format *format) {
    return nib_format_fast(format)->unpack != NULL && NIB_PANEL_K % nib_format_facts_of(format)->block == 0;
}

static uint32_t count_codes(const code_set *set) {
    uint32_t n = 0;
    for (int i = 0; i < N_CODES; i++) n += set->has[i];
    return n;
}

/* How many codes a format can store. 2048 panels: the chance to overlook one of 256 equally likely codes is e^-2048. */
static uint32_t n_possible_codes(const nib_format *format) {
    const nib_format_facts *facts = nib_format_facts_of(format);
    const size_t n_bytes = NIB_PANEL_K / facts->block * facts->bytes;
    uint8_t panel[4 * NIB_PANEL_K];
    uint64_t state = 0x9e3779b97f4a7c15u;
    code_set set = {{false}};
    if (n_bytes > sizeof panel) return 0;
    for (int i = 0; i < 2048; i++) {
        for (size_t k = 0; k < n_bytes; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            panel[k] = (uint8_t)(state >> 56);
        }
        add_codes(format, panel, NIB_PANEL_K, &set);
    }
    return count_codes(&set);
}

/* ---- One piece ------------------------------------------------------------------------------------------------------- */

static uint64_t first_not_finite(const float *x, size_t n) {
    bool all_finite = true;
    for (size_t i = 0; i < n; i++) all_finite &= x[i] - x[i] == 0;
    for (size_t i = 0; !all_finite && i < n; i++)
        if (!isfinite(x[i])) return i;
    return UINT64_MAX;
}

static double add_lanes(const double lanes[LANES]) {
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/* LANES running sums each: a fixed order that vectorises. a, b: (n). */
static void compare_weights(const float *a, const float *b, size_t n, diff_piece *out) {
    double aa[LANES] = {0}, bb[LANES] = {0}, ab[LANES] = {0}, errors[LANES] = {0}, max[LANES] = {0}, largest = 0;
    for (size_t i = 0; i < n; i += LANES) {
        const size_t lanes = n - i < LANES ? n - i : LANES;
        for (size_t j = 0; j < lanes; j++) {
            const double x = (double)a[i + j], y = (double)b[i + j], error = x - y;
            aa[j] += x * x;
            bb[j] += y * y;
            ab[j] += x * y;
            errors[j] += error * error;
            max[j] = fabs(error) > max[j] ? fabs(error) : max[j];
        }
    }
    out->sums = (diff_sums){add_lanes(aa), add_lanes(bb), add_lanes(ab), add_lanes(errors)};
    for (size_t j = 0; j < LANES; j++) largest = max[j] > largest ? max[j] : largest;
    size_t at = 0;
    while (at + 1 < n && fabs((double)a[at] - (double)b[at]) != largest) at++;
    out->max_abs_error = largest;
    out->max_index = at;
    out->value[0] = (double)a[at];
    out->value[1] = (double)b[at];
}

static void work_on_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    comparison *c = arg;
    diff_worker *state = &c->workers[worker];
    for (size_t p = begin; p < end; p++) {
        const uint64_t first = (c->first_piece + p) * PIECE, left = c->tensor[0]->n_elements - first;
        const size_t n = left < PIECE ? (size_t)left : PIECE;
        diff_piece *piece = &c->pieces[p];
        piece->bad = UINT64_MAX;
        for (int side = 0; side < 2 && piece->bad == UINT64_MAX; side++) {
            const nib_format *format = c->tensor[side]->format;
            const nib_format_facts *facts = nib_format_facts_of(format);
            const uint8_t *data = c->tensor[side]->data + first / facts->block * facts->bytes;
            nib_format_decode(format, state->weights[side], data, n);
            piece->bad = first_not_finite(state->weights[side], n);
            piece->bad_side = side;
            if (has_codes(format)) add_codes(format, data, n, &state->codes[side]);
        }
        if (piece->bad != UINT64_MAX) continue;
        compare_weights(state->weights[0], state->weights[1], n, piece);
        piece->max_index += first;
    }
}

/* ---- A pair of tensors ----------------------------------------------------------------------------------------------- */

static nib_status not_finite(const comparison *c, int side, uint64_t index) {
    const nib_tensor *tensor = c->tensor[side];
    nib_fail_at(c->error, NIB_ERR_CORRUPT, nib_gguf_path(c->gguf[side]), (int64_t)tensor->offset, tensor->name,
                "a weight is NaN or infinite: row %llu, column %llu", (unsigned long long)(index / tensor->ne[0]),
                (unsigned long long)(index % tensor->ne[0]));
    return nib_hint(c->error, NIB_ERR_CORRUPT, "the file is damaged or was converted badly; make or fetch it again");
}

static nib_status merge_wave(comparison *c, size_t n, diff_sums *sums, nib_tensor_diff *out) {
    for (size_t p = 0; p < n; p++) {
        const diff_piece *piece = &c->pieces[p];
        if (piece->bad != UINT64_MAX) return not_finite(c, piece->bad_side, (c->first_piece + p) * PIECE + piece->bad);
        sums->aa += piece->sums.aa;
        sums->bb += piece->sums.bb;
        sums->ab += piece->sums.ab;
        sums->errors += piece->sums.errors;
        if (piece->max_abs_error <= out->max_abs_error && c->first_piece + p > 0) continue;
        out->max_abs_error = piece->max_abs_error;
        out->row = piece->max_index / c->tensor[0]->ne[0];
        out->column = piece->max_index % c->tensor[0]->ne[0];
        memcpy(out->value, piece->value, sizeof out->value);
    }
    return NIB_OK;
}

static double relative_rmse(const diff_sums *s) {
    return s->aa > 0 ? sqrt(s->errors / s->aa) : s->errors > 0 ? (double)INFINITY : 0;
}

static double cosine_of(const diff_sums *s) {
    return s->aa > 0 && s->bb > 0 ? s->ab / (sqrt(s->aa) * sqrt(s->bb)) : (double)NAN;
}

/* Equal weights have the cosine 1 and not one bit less. */
static void finish_sums(const diff_sums *s, double *rel_rmse, double *cosine) {
    *rel_rmse = relative_rmse(s);
    *cosine = s->errors == 0 && s->aa > 0 ? 1 : cosine_of(s);
}

static nib_status compare_pair(comparison *c, nib_tensor_diff *out) {
    diff_sums sums = {0};
    const uint64_t n_pieces = out->n / PIECE + (out->n % PIECE != 0);
    for (unsigned w = 0; w < c->n_workers; w++) memset(c->workers[w].codes, 0, sizeof c->workers[w].codes);
    for (c->first_piece = 0; c->first_piece < n_pieces; c->first_piece += WAVE) {
        const uint64_t left = n_pieces - c->first_piece;
        const size_t n = left < WAVE ? (size_t)left : WAVE;
        nib_par_for(c->pool, n, 1, work_on_pieces, c);
        NIB_TRY(merge_wave(c, n, &sums, out));
        NIB_TRY(nib_meter_add(&c->meter, (double)n, c->error));
    }
    finish_sums(&sums, &out->rel_rmse, &out->cosine);
    for (int side = 0; side < 2; side++) {
        code_set used = {{false}};
        for (unsigned w = 0; w < c->n_workers; w++)
            for (int i = 0; i < N_CODES; i++) used.has[i] |= c->workers[w].codes[side].has[i];
        if (!has_codes(out->format[side])) continue;
        if (c->known[side].format != out->format[side]) {
            c->known[side].format = out->format[side];
            c->known[side].n_codes = n_possible_codes(out->format[side]);
        }
        out->n_codes[side] = c->known[side].n_codes;
        if (out->n_codes[side] > 0) out->codes_used[side] = (double)count_codes(&used) / out->n_codes[side];
    }
    c->all.aa += sums.aa;
    c->all.bb += sums.bb;
    c->all.ab += sums.ab;
    c->all.errors += sums.errors;
    return NIB_OK;
}

/* ---- Two files ------------------------------------------------------------------------------------------------------- */

static void shape_text(char out[96], const nib_tensor *tensor) {
    size_t at = 0;
    for (uint32_t d = 0; d < tensor->n_dims && at < 96; d++)
        at += (size_t)snprintf(out + at, 96 - at, "%s%llu", d > 0 ? " x " : "", (unsigned long long)tensor->ne[d]);
}

static nib_status check_pair(const comparison *c, const nib_tensor *a, const nib_tensor *b) {
    const nib_tensor *const pair[2] = {a, b};
    if (memcmp(a->ne, b->ne, sizeof a->ne) != 0) {
        char shapes[2][96];
        for (int side = 0; side < 2; side++) shape_text(shapes[side], pair[side]);
        nib_fail_at(c->error, NIB_ERR_USAGE, nib_gguf_path(c->gguf[1]), b->info_offset, b->name,
                    "tensor %s is %s here and %s in %s", b->name, shapes[1], shapes[0], nib_gguf_path(c->gguf[0]));
        return nib_hint(c->error, NIB_ERR_USAGE, "compare files made from one model");
    }
    for (int side = 0; side < 2; side++) {
        const nib_format_facts *facts = nib_format_facts_of(pair[side]->format);
        if (facts->can_decode && PIECE % facts->block == 0) continue;
        return nib_fail_at(c->error, NIB_ERR_UNSUPPORTED, nib_gguf_path(c->gguf[side]), pair[side]->info_offset,
                           pair[side]->name, "weights of format %s cannot be decoded", facts->name);
    }
    return NIB_OK;
}

static void begin_tensor(nib_tensor_diff *out, const nib_tensor *a, const nib_tensor *b) {
    const nib_tensor *any = a != NULL ? a : b;
    *out = (nib_tensor_diff){
        .format = {a != NULL ? a->format : NULL, b != NULL ? b->format : NULL},
        .n = any->n_elements,
        .rel_rmse = (double)NAN,
        .cosine = (double)NAN,
        .max_abs_error = (double)NAN,
        .codes_used = {(double)NAN, (double)NAN},
    };
    snprintf(out->name, sizeof out->name, "%s", any->name);
    if (a != NULL && b != NULL) out->max_abs_error = 0;
}

/* Lists the tensors: pairs in A's order, then what only A has, then what only B has. */
static nib_status list_tensors(comparison *c, bool (*wants)(void *user, const nib_tensor *tensor), void *user,
                               nib_weight_diff *out) {
    const uint64_t n_a = nib_gguf_n_tensors(c->gguf[0]), n_b = nib_gguf_n_tensors(c->gguf[1]);
    double n_pieces = 0;
    out->tensors = nib_alloc((size_t)(n_a + n_b), sizeof *out->tensors);
    if (out->tensors == NULL) return nib_fail_memory(c->error, (n_a + n_b) * sizeof *out->tensors);
    for (int alone = 0; alone < 2; alone++)
        for (uint64_t i = 0; i < n_a; i++) {
            const nib_tensor *a = nib_gguf_tensor_at(c->gguf[0], i);
            const nib_tensor *b = nib_gguf_tensor_find(c->gguf[1], a->name);
            if ((b == NULL) != alone || a->n_elements == 0 || (wants != NULL && !wants(user, a))) continue;
            if (b != NULL) NIB_TRY(check_pair(c, a, b));
            begin_tensor(&out->tensors[out->n++], a, b);
            out->n_both += b != NULL;
            out->n_only[0] += b == NULL;
            if (b != NULL) n_pieces += (double)(a->n_elements / PIECE + (a->n_elements % PIECE != 0));
        }
    for (uint64_t i = 0; i < n_b; i++) {
        const nib_tensor *b = nib_gguf_tensor_at(c->gguf[1], i);
        if (nib_gguf_tensor_find(c->gguf[0], b->name) != NULL || (wants != NULL && !wants(user, b))) continue;
        begin_tensor(&out->tensors[out->n++], NULL, b);
        out->n_only[1]++;
    }
    if (out->n_both > 0) {
        c->meter.total = n_pieces;
        return NIB_OK;
    }
    nib_fail_at(c->error, NIB_ERR_USAGE, nib_gguf_path(c->gguf[1]), -1, "", "no tensor asked for is in %s as well",
                nib_gguf_path(c->gguf[0]));
    return nib_hint(c->error, NIB_ERR_USAGE, "compare files made from one model");
}

static nib_status comparison_init(comparison *c) {
    c->n_workers = nib_pool_size(c->pool);
    c->workers = nib_alloc(c->n_workers, sizeof *c->workers);
    c->pieces = nib_alloc(WAVE, sizeof *c->pieces);
    if (c->workers == NULL || c->pieces == NULL) return nib_fail_memory(c->error, c->n_workers * sizeof *c->workers);
    for (unsigned w = 0; w < c->n_workers; w++)
        for (int side = 0; side < 2; side++) {
            c->workers[w].weights[side] = nib_alloc_aligned(PIECE * sizeof(float));
            if (c->workers[w].weights[side] == NULL) return nib_fail_memory(c->error, PIECE * sizeof(float));
        }
    return NIB_OK;
}

static void comparison_fini(comparison *c) {
    for (unsigned w = 0; c->workers != NULL && w < c->n_workers; w++)
        for (int side = 0; side < 2; side++) nib_free_aligned(c->workers[w].weights[side]);
    free(c->workers);
    free(c->pieces);
}

/* Worst first; equal ones stay in file order. */
typedef struct rank {
    double rel_rmse;
    size_t index;
} rank;

static int worse_first(const void *x, const void *y) {
    const rank *a = x, *b = y;
    if (a->rel_rmse != b->rel_rmse) return a->rel_rmse > b->rel_rmse ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static nib_status sort_pairs(nib_weight_diff *diff, nib_error *error) {
    nib_status status = NIB_OK;
    rank *ranks = nib_alloc(diff->n_both, sizeof *ranks);
    nib_tensor_diff *sorted = nib_alloc(diff->n_both, sizeof *sorted);
    if (ranks == NULL || sorted == NULL) {
        status = nib_fail_memory(error, diff->n_both * sizeof *sorted);
        goto fail;
    }
    for (size_t i = 0; i < diff->n_both; i++) ranks[i] = (rank){diff->tensors[i].rel_rmse, i};
    qsort(ranks, diff->n_both, sizeof *ranks, worse_first);
    for (size_t i = 0; i < diff->n_both; i++) sorted[i] = diff->tensors[ranks[i].index];
    memcpy(diff->tensors, sorted, diff->n_both * sizeof *sorted);
fail:
    free(ranks);
    free(sorted);
    return status;
}

static void sum_up(const comparison *c, nib_weight_diff *diff) {
    for (size_t i = 0; i < diff->n_both; i++) {
        diff->n_weights += diff->tensors[i].n;
        diff->n_identical += diff->tensors[i].max_abs_error == 0;
        if (diff->tensors[i].max_abs_error <= diff->max_abs_error) continue;
        diff->max_abs_error = diff->tensors[i].max_abs_error;
        diff->max_at = i;
    }
    finish_sums(&c->all, &diff->rel_rmse, &diff->cosine);
}

nib_status nib_weights_compare(const nib_gguf *a, const nib_gguf *b,
                               bool (*wants)(void *user, const nib_tensor *tensor), void *user, nib_pool *pool,
                               const nib_watch *watch, nib_weight_diff *out, nib_error *error) {
    nib_status status;
    comparison c = {.gguf = {a, b}, .pool = pool, .error = error};
    *out = (nib_weight_diff){0};
    nib_meter_init(&c.meter, watch, "compare", 1);
    NIB_TRY_GOTO(list_tensors(&c, wants, user, out));
    NIB_TRY_GOTO(comparison_init(&c));
    for (size_t i = 0; i < out->n_both; i++) {
        c.tensor[0] = nib_gguf_tensor_find(a, out->tensors[i].name);
        c.tensor[1] = nib_gguf_tensor_find(b, out->tensors[i].name);
        NIB_TRY_GOTO(compare_pair(&c, &out->tensors[i]));
    }
    NIB_TRY_GOTO(sort_pairs(out, error));
    sum_up(&c, out);
fail:
    comparison_fini(&c);
    return status;
}

void nib_weight_diff_fini(nib_weight_diff *diff) {
    free(diff->tensors);
    *diff = (nib_weight_diff){0};
}
