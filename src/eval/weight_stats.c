/* The distribution of the weights of a file: of all matrices, or of each role or tensor by itself. A group is a list of
 * tensors; groups are measured one after the other, each in two passes.
 *
 *   tensor  -> pieces of 32768 weights, whole blocks, rows ignored (blocks are packed one after the other)
 *   pass 1     per piece: minimum, maximum, mean, sum of squared deviations        merged in file order
 *   pass 2     per piece: fourth powers of deviations from the group's mean        merged in file order
 *              per worker: histogram, outliers, largest magnitudes and columns     counts and total orders: no order needed
 *
 * A wave of pieces is decoded in parallel, then merged by the caller's thread, so memory does not grow with the file and
 * nothing depends on the number of threads. */
#include "base/error.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/progress.h"
#include "cpu/pool.h"
#include "nibble/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 32768, WAVE = 256, LANES = 8 };

/* Column maxima of wider matrices are not kept, so that no file makes a worker's array large. */
#define MOST_CHANNELS ((uint64_t)1 << 20)

static const double default_edge_sigmas = 12, outlier_sigmas = 6;

/* Count, mean and sum of squared deviations, mergeable (Chan, Golub, LeVeque 1979). */
typedef struct moments {
    double n, mean, squares;
} moments;

typedef struct piece_result {
    moments moments;
    double min, max, fourth;
    uint64_t bad; /* index of the first weight that is not finite, UINT64_MAX if none */
} piece_result;

/* One of the largest weights. Larger magnitude goes first, then file order. */
typedef struct top_weight {
    double value;
    uint32_t tensor;
    uint64_t index;
} top_weight;

typedef struct worker_state {
    float *weights;  /* (PIECE) */
    float *channels; /* (n_channels) largest magnitude per column of the tensor at hand; NULL if not wanted */
    uint64_t histogram[NIB_HISTOGRAM_BINS], n_outliers;
    top_weight top[NIB_TOP_WEIGHTS]; /* sorted, largest first */
    uint32_t n_top;
} worker_state;

typedef struct survey {
    const nib_gguf *gguf;
    nib_pool *pool;
    const nib_watch *watch;
    nib_error *error;
    nib_meter meter;
    worker_state *workers;
    unsigned n_workers;
    piece_result *pieces; /* (WAVE) */
    uint32_t *members;    /* (n_members) tensors, by index, group by group, in file order within each */
    size_t n_members, n_channels;
    const nib_tensor *tensor;
    uint32_t tensor_index;
    uint64_t first_piece; /* of the wave */
    bool second_pass;
    moments all;
    double min, max, fourth, mean, edge, outlier;
} survey;

/* ---- One piece ------------------------------------------------------------------------------------------------------- */

static double add_lanes(const double lanes[LANES]) {
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/* LANES running sums each: a fixed order that vectorises. */
static double sum_of(const float *x, size_t n) {
    double sums[LANES] = {0};
    const size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t j = 0; j < LANES; j++) sums[j] += (double)x[i + j];
    for (size_t i = whole; i < n; i++) sums[i - whole] += (double)x[i];
    return add_lanes(sums);
}

/* Sums of (x - mean)^2 and of (x - mean)^4. */
static void sum_powers(const float *x, size_t n, double mean, double *squares, double *fourths) {
    double s2[LANES] = {0}, s4[LANES] = {0};
    const size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            const double deviation = (double)x[i + j] - mean, square = deviation * deviation;
            s2[j] += square;
            s4[j] += square * square;
        }
    for (size_t i = whole; i < n; i++) {
        const double deviation = (double)x[i] - mean, square = deviation * deviation;
        s2[i - whole] += square;
        s4[i - whole] += square * square;
    }
    *squares = add_lanes(s2);
    *fourths = add_lanes(s4);
}

static uint64_t first_not_finite(const float *x, size_t n) {
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) any |= (nib_bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
    for (size_t i = 0; any && i < n; i++)
        if (!isfinite(x[i])) return i;
    return UINT64_MAX;
}

static void measure_piece(const float *x, size_t n, piece_result *out) {
    double fourths;
    float min[LANES], max[LANES];
    out->bad = first_not_finite(x, n);
    if (out->bad != UINT64_MAX) return;
    for (size_t j = 0; j < LANES; j++) min[j] = max[j] = x[0];
    for (size_t i = 0; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            min[j] = x[i + j] < min[j] ? x[i + j] : min[j];
            max[j] = x[i + j] > max[j] ? x[i + j] : max[j];
        }
    for (size_t i = n - n % LANES; i < n; i++) {
        min[0] = x[i] < min[0] ? x[i] : min[0];
        max[0] = x[i] > max[0] ? x[i] : max[0];
    }
    for (size_t j = 1; j < LANES; j++) {
        min[0] = min[j] < min[0] ? min[j] : min[0];
        max[0] = max[j] > max[0] ? max[j] : max[0];
    }
    out->min = (double)min[0];
    out->max = (double)max[0];
    out->moments.n = (double)n;
    out->moments.mean = sum_of(x, n) / (double)n;
    sum_powers(x, n, out->moments.mean, &out->moments.squares, &fourths);
}

static bool goes_before(const top_weight *a, const top_weight *b) {
    const double x = fabs(a->value), y = fabs(b->value);
    if (x != y) return x > y;
    return a->tensor != b->tensor ? a->tensor < b->tensor : a->index < b->index;
}

/* Keeps top sorted; what falls off the end is forgotten. */
static void insert_top(top_weight *top, uint32_t *n_top, const top_weight *weight) {
    uint32_t at = *n_top;
    while (at > 0 && goes_before(weight, &top[at - 1])) at--;
    if (at >= NIB_TOP_WEIGHTS) return;
    if (*n_top < NIB_TOP_WEIGHTS) (*n_top)++;
    memmove(top + at + 1, top + at, (*n_top - 1 - at) * sizeof *top);
    top[at] = *weight;
}

/* Four histograms in turn, so that equal neighbours do not wait for each other's count. */
static void count_bins(const float *x, size_t n, double edge, uint64_t histogram[NIB_HISTOGRAM_BINS]) {
    uint32_t counts[4][NIB_HISTOGRAM_BINS] = {{0}};
    const float scale = (float)(NIB_HISTOGRAM_BINS / 2 / edge), half = NIB_HISTOGRAM_BINS / 2;
    for (size_t i = 0; i < n; i++) {
        float bin = x[i] * scale + half;
        bin = bin > 0 ? bin : 0;
        bin = bin < NIB_HISTOGRAM_BINS - 1 ? bin : NIB_HISTOGRAM_BINS - 1;
        counts[i % 4][(uint32_t)bin]++;
    }
    for (int b = 0; b < NIB_HISTOGRAM_BINS; b++)
        histogram[b] += (uint64_t)counts[0][b] + counts[1][b] + counts[2][b] + counts[3][b];
}

static void survey_piece(const survey *s, const float *x, size_t n, uint64_t first_index, worker_state *worker,
                         piece_result *out) {
    double squares;
    sum_powers(x, n, s->mean, &squares, &out->fourth);
    count_bins(x, n, s->edge, worker->histogram);
    uint32_t n_outliers = 0;
    for (size_t i = 0; i < n; i++) n_outliers += fabs((double)x[i] - s->mean) > s->outlier;
    worker->n_outliers += n_outliers;
    const bool is_full = worker->n_top == NIB_TOP_WEIGHTS;
    float least = is_full ? (float)fabs(worker->top[NIB_TOP_WEIGHTS - 1].value) : -1;
    for (size_t i = 0; i < n; i++) {
        if (fabsf(x[i]) < least) continue;
        const top_weight weight = {(double)x[i], s->tensor_index, first_index + i};
        insert_top(worker->top, &worker->n_top, &weight);
        if (worker->n_top == NIB_TOP_WEIGHTS) least = (float)fabs(worker->top[NIB_TOP_WEIGHTS - 1].value);
    }
}

/* Largest magnitude per column; first: flat index of x[0], which lies in a matrix of n_columns. */
static void raise_channels(const float *x, size_t n, uint64_t first, uint64_t n_columns, float *channels) {
    size_t column = (size_t)(first % n_columns);
    for (size_t i = 0; i < n;) {
        const size_t left = (size_t)n_columns - column, run = left < n - i ? left : n - i;
        for (size_t j = 0; j < run; j++) {
            const float magnitude = fabsf(x[i + j]);
            channels[column + j] = magnitude > channels[column + j] ? magnitude : channels[column + j];
        }
        i += run;
        column = 0;
    }
}

/* ---- A group --------------------------------------------------------------------------------------------------------- */

static bool has_channels(const survey *s, const nib_tensor *tensor) {
    return s->n_channels > 0 && tensor->n_dims >= 2 && tensor->ne[0] <= MOST_CHANNELS;
}

static void work_on_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    survey *s = arg;
    const nib_format_facts *facts = nib_format_facts_of(s->tensor->format);
    worker_state *state = &s->workers[worker];
    for (size_t p = begin; p < end; p++) {
        const uint64_t first = (s->first_piece + p) * PIECE, left = s->tensor->n_elements - first;
        const size_t n = left < PIECE ? (size_t)left : PIECE;
        nib_format_decode(s->tensor->format, state->weights, s->tensor->data + first / facts->block * facts->bytes, n);
        if (!s->second_pass) {
            measure_piece(state->weights, n, &s->pieces[p]);
            continue;
        }
        survey_piece(s, state->weights, n, first, state, &s->pieces[p]);
        if (has_channels(s, s->tensor)) raise_channels(state->weights, n, first, s->tensor->ne[0], state->channels);
    }
}

static nib_status not_finite(const survey *s, uint64_t index) {
    const nib_tensor *tensor = s->tensor;
    nib_fail_at(s->error, NIB_ERR_CORRUPT, nib_gguf_path(s->gguf), (int64_t)tensor->offset, tensor->name,
                "a weight is NaN or infinite: row %llu, column %llu", (unsigned long long)(index / tensor->ne[0]),
                (unsigned long long)(index % tensor->ne[0]));
    return nib_hint(s->error, NIB_ERR_CORRUPT, "the file is damaged or was converted badly; make or fetch it again");
}

static void merge_moments(moments *all, const moments *part) {
    const double n = all->n + part->n, delta = part->mean - all->mean;
    all->squares += part->squares + delta * delta * all->n * part->n / n;
    all->mean += delta * part->n / n;
    all->n = n;
}

static nib_status merge_wave(survey *s, size_t n) {
    for (size_t p = 0; p < n; p++) {
        const piece_result *piece = &s->pieces[p];
        if (s->second_pass) {
            s->fourth += piece->fourth;
            continue;
        }
        if (piece->bad != UINT64_MAX) return not_finite(s, (s->first_piece + p) * PIECE + piece->bad);
        merge_moments(&s->all, &piece->moments);
        if (piece->min < s->min) s->min = piece->min;
        if (piece->max > s->max) s->max = piece->max;
    }
    return NIB_OK;
}

static nib_status survey_tensor(survey *s) {
    const nib_format_facts *facts = nib_format_facts_of(s->tensor->format);
    if (!facts->can_decode || PIECE % facts->block != 0)
        return nib_fail_at(s->error, NIB_ERR_UNSUPPORTED, nib_gguf_path(s->gguf), s->tensor->info_offset,
                           s->tensor->name, "weights of format %s cannot be decoded", facts->name);
    const uint64_t n_pieces = s->tensor->n_elements / PIECE + (s->tensor->n_elements % PIECE != 0);
    for (s->first_piece = 0; s->first_piece < n_pieces; s->first_piece += WAVE) {
        const uint64_t left = n_pieces - s->first_piece;
        const size_t n = left < WAVE ? (size_t)left : WAVE;
        nib_par_for(s->pool, n, 1, work_on_pieces, s);
        NIB_TRY(merge_wave(s, n));
        NIB_TRY(nib_meter_add(&s->meter, (double)n, s->error));
    }
    return NIB_OK;
}

/* The tensor's largest columns into the group's, largest first, then file order; the workers' arrays begin anew. */
static void take_channels(survey *s, nib_weight_group *out) {
    for (uint64_t column = 0; column < s->tensor->ne[0]; column++) {
        float absmax = 0;
        for (unsigned w = 0; w < s->n_workers; w++) {
            const float part = s->workers[w].channels[column];
            absmax = part > absmax ? part : absmax;
            s->workers[w].channels[column] = 0;
        }
        uint32_t at = out->n_channels;
        while (at > 0 && (double)absmax > out->channels[at - 1].absmax) at--;
        if (at >= NIB_TOP_CHANNELS) continue;
        if (out->n_channels < NIB_TOP_CHANNELS) out->n_channels++;
        memmove(out->channels + at + 1, out->channels + at, (out->n_channels - 1 - at) * sizeof *out->channels);
        out->channels[at] = (nib_channel){.column = column, .absmax = (double)absmax};
        snprintf(out->channels[at].tensor, sizeof out->channels[at].tensor, "%s", s->tensor->name);
    }
}

static void take_stats(const survey *s, nib_weight_stats *out) {
    top_weight top[NIB_TOP_WEIGHTS];
    const double variance = s->all.squares / s->all.n;
    *out = (nib_weight_stats){
        .n = (uint64_t)s->all.n,
        .mean = s->all.mean,
        .std = sqrt(variance),
        .min = s->min,
        .max = s->max,
        .absmax = fmax(fabs(s->min), fabs(s->max)),
        .kurtosis = variance > 0 ? s->fourth / s->all.n / (variance * variance) : (double)NAN,
        .edge = s->edge,
    };
    for (unsigned w = 0; w < s->n_workers; w++) {
        const worker_state *worker = &s->workers[w];
        out->n_outliers_6sigma += worker->n_outliers;
        for (int b = 0; b < NIB_HISTOGRAM_BINS; b++) out->histogram[b] += worker->histogram[b];
        for (uint32_t i = 0; i < worker->n_top; i++) insert_top(top, &out->n_top, &worker->top[i]);
    }
    for (uint32_t i = 0; i < out->n_top; i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(s->gguf, top[i].tensor);
        out->top[i].value = top[i].value;
        out->top[i].index = top[i].index;
        out->top[i].row = top[i].index / tensor->ne[0];
        out->top[i].column = top[i].index % tensor->ne[0];
        snprintf(out->top[i].tensor, sizeof out->top[i].tensor, "%s", tensor->name);
    }
}

static void forget_group(survey *s) {
    s->all = (moments){0};
    s->fourth = 0;
    s->min = INFINITY;
    s->max = -INFINITY;
    for (unsigned w = 0; w < s->n_workers; w++) {
        worker_state *worker = &s->workers[w];
        memset(worker->histogram, 0, sizeof worker->histogram);
        worker->n_outliers = 0;
        worker->n_top = 0;
    }
}

/* members: (n) tensors of the group. edge: 0 = by its deviation. */
static nib_status survey_group(survey *s, const uint32_t *members, size_t n, double edge, nib_weight_group *out) {
    forget_group(s);
    for (int pass = 0; pass < 2; pass++) {
        s->second_pass = pass == 1;
        for (size_t i = 0; i < n; i++) {
            s->tensor_index = members[i];
            s->tensor = nib_gguf_tensor_at(s->gguf, members[i]);
            NIB_TRY(survey_tensor(s));
            if (s->second_pass && has_channels(s, s->tensor)) take_channels(s, out);
        }
        const double std = sqrt(s->all.squares / s->all.n);
        s->mean = s->all.mean;
        s->outlier = outlier_sigmas * std;
        s->edge = edge > 0 ? edge : std > 0 ? default_edge_sigmas * std : 1;
    }
    take_stats(s, &out->stats);
    return NIB_OK;
}

/* ---- A file ---------------------------------------------------------------------------------------------------------- */

static bool is_chosen(const nib_weights_params *params, const nib_tensor *tensor) {
    return tensor->n_elements > 0 && (tensor->n_dims >= 2 || params->vectors) &&
           (params->wants == NULL || params->wants(params->user, tensor));
}

/* Lists the chosen tensors in file order and prepares the workers; channels: also keep column maxima. */
static nib_status survey_init(survey *s, const nib_weights_params *params, bool channels) {
    const uint64_t n_tensors = nib_gguf_n_tensors(s->gguf);
    double n_pieces = 0;
    s->members = nib_alloc((size_t)n_tensors, sizeof *s->members);
    if (s->members == NULL) return nib_fail_memory(s->error, n_tensors * sizeof *s->members);
    for (uint64_t i = 0; i < n_tensors; i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(s->gguf, i);
        if (!is_chosen(params, tensor)) continue;
        s->members[s->n_members++] = (uint32_t)i;
        n_pieces += (double)(tensor->n_elements / PIECE + (tensor->n_elements % PIECE != 0));
        if (channels && tensor->ne[0] > s->n_channels && tensor->ne[0] <= MOST_CHANNELS)
            s->n_channels = (size_t)tensor->ne[0];
    }
    if (n_pieces == 0 && params->wants != NULL)
        return nib_fail_at(s->error, NIB_ERR_USAGE, nib_gguf_path(s->gguf), -1, "", "no tensor was chosen");
    if (n_pieces == 0)
        return nib_fail_at(s->error, NIB_ERR_CORRUPT, nib_gguf_path(s->gguf), -1, "",
                           "there are no matrices in the file");
    nib_meter_init(&s->meter, s->watch, "weights", 2 * n_pieces);
    s->n_workers = nib_pool_size(s->pool);
    s->workers = nib_alloc(s->n_workers, sizeof *s->workers);
    s->pieces = nib_alloc(WAVE, sizeof *s->pieces);
    if (s->workers == NULL || s->pieces == NULL) return nib_fail_memory(s->error, s->n_workers * sizeof *s->workers);
    for (unsigned w = 0; w < s->n_workers; w++) {
        s->workers[w].weights = nib_alloc_aligned(PIECE * sizeof(float));
        if (s->n_channels > 0) s->workers[w].channels = nib_alloc_aligned(s->n_channels * sizeof(float));
        if (s->workers[w].weights == NULL || (s->n_channels > 0 && s->workers[w].channels == NULL))
            return nib_fail_memory(s->error, (PIECE + s->n_channels) * sizeof(float));
    }
    return NIB_OK;
}

static void survey_fini(survey *s) {
    for (unsigned w = 0; s->workers != NULL && w < s->n_workers; w++) {
        nib_free_aligned(s->workers[w].weights);
        nib_free_aligned(s->workers[w].channels);
    }
    free(s->workers);
    free(s->pieces);
    free(s->members);
}

nib_status nib_weights_measure(const nib_gguf *gguf, double edge, nib_pool *pool, const nib_watch *watch,
                               nib_weight_stats *out, nib_error *error) {
    nib_status status = NIB_OK;
    const nib_weights_params params = {.edge = edge};
    survey s = {.gguf = gguf, .pool = pool, .watch = watch, .error = error};
    *out = (nib_weight_stats){0};
    nib_weight_group *group = nib_alloc(1, sizeof *group);
    if (group == NULL) return nib_fail_memory(error, sizeof *group);
    NIB_TRY_GOTO(survey_init(&s, &params, false));
    NIB_TRY_GOTO(survey_group(&s, s.members, s.n_members, edge, group));
    *out = group->stats;
fail:
    survey_fini(&s);
    free(group);
    return status;
}

/* The group a tensor belongs to, begun if it is new. Groups have room for one per tensor, or one per role. */
static size_t group_of(nib_weight_groups *groups, nib_weights_by by, const nib_tensor *tensor) {
    const char *role = by == NIB_WEIGHTS_WHOLE ? "*" : nib_tensor_role(tensor->name, NULL);
    size_t g = by == NIB_WEIGHTS_BY_TENSOR ? groups->n : 0;
    while (g < groups->n && strcmp(groups->items[g].role, role) != 0) g++;
    nib_weight_group *group = &groups->items[g];
    if (g == groups->n) {
        *group = (nib_weight_group){.role = role, .format = tensor->format};
        snprintf(group->tensor, sizeof group->tensor, "%s", by == NIB_WEIGHTS_BY_TENSOR ? tensor->name : "*");
        groups->n++;
    }
    if (group->format != tensor->format) group->format = NULL;
    group->n_tensors++;
    return g;
}

/* Sorts the members by group, keeping file order: counts, then places. */
static nib_status sort_members(survey *s, const uint32_t *group_of_member, const nib_weight_groups *groups) {
    nib_status status = NIB_OK;
    uint32_t *sorted = nib_alloc(s->n_members, sizeof *sorted);
    size_t *next = nib_alloc(groups->n, sizeof *next), first = 0;
    if (sorted == NULL || next == NULL) {
        status = nib_fail_memory(s->error, s->n_members * sizeof *sorted + groups->n * sizeof *next);
        goto fail;
    }
    for (size_t g = 0; g < groups->n; first += (size_t)groups->items[g].n_tensors, g++) next[g] = first;
    for (size_t i = 0; i < s->n_members; i++) sorted[next[group_of_member[i]]++] = s->members[i];
    memcpy(s->members, sorted, s->n_members * sizeof *sorted);
fail:
    free(sorted);
    free(next);
    return status;
}

/* There are fewer different roles than this. */
enum { MOST_ROLES = 128 };

nib_status nib_weights_measure_groups(const nib_gguf *gguf, const nib_weights_params *params, nib_pool *pool,
                                      const nib_watch *watch, nib_weight_groups *out, nib_error *error) {
    nib_status status = NIB_OK;
    survey s = {.gguf = gguf, .pool = pool, .watch = watch, .error = error};
    uint32_t *group_of_member = NULL;
    size_t first = 0;
    *out = (nib_weight_groups){0};
    NIB_TRY_GOTO(survey_init(&s, params, true));
    const size_t most = params->by == NIB_WEIGHTS_BY_TENSOR || s.n_members < MOST_ROLES ? s.n_members : MOST_ROLES;
    out->items = nib_alloc(most, sizeof *out->items);
    group_of_member = nib_alloc(s.n_members, sizeof *group_of_member);
    if (out->items == NULL || group_of_member == NULL) {
        status = nib_fail_memory(error, most * sizeof *out->items);
        goto fail;
    }
    for (size_t i = 0; i < s.n_members; i++)
        group_of_member[i] = (uint32_t)group_of(out, params->by, nib_gguf_tensor_at(gguf, s.members[i]));
    NIB_TRY_GOTO(sort_members(&s, group_of_member, out));
    for (size_t g = 0; g < out->n; g++) {
        const size_t n = (size_t)out->items[g].n_tensors;
        NIB_TRY_GOTO(survey_group(&s, s.members + first, n, params->edge, &out->items[g]));
        first += n;
    }
fail:
    survey_fini(&s);
    free(group_of_member);
    return status;
}

void nib_weight_groups_fini(nib_weight_groups *groups) {
    free(groups->items);
    *groups = (nib_weight_groups){0};
}
