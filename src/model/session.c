/* Running a model: the cache of keys and values, cutting segments into batches, the head.
 *
 *   segments  [ seq 0: 700 tokens ][ seq 1: 40 ][ seq 2: 9 ]           n_batch = 512
 *   batches   [ seq 0: 512 ] [ seq 0: 188 | seq 1: 40 | seq 2: 9 ]     each goes through all layers at once
 *
 * Invariant: positions 0 .. n_cached[seq] - 1 of every layer hold the keys and values of the tokens run so far. All memory
 * is taken when the session is made, by the plan that is shown to the user. */
#include "model/loaded.h"

#include "base/memory.h"

#include <stdlib.h>

#define DEFAULT_BATCH 512
#define MAX_BATCH     (1u << 16)

struct nib_session {
    const nib_model *model;
    nib_pool *pool;
    nib_path path;
    uint32_t n_ctx, n_seq, n_batch;
    nib_kv_layer *layers; /* (n_layer) */
    uint32_t *n_cached;   /* (n_seq) */
    bool *in_run;         /* (n_seq) sequences seen while a run is checked */
    float *arena;
    void *scratch;
    nib_op_reads *followers; /* (n_weights) */
    float *last_hidden;      /* (n_embd) */
    nib_op_run run;
    /* The batch being put together: (n_batch) each. */
    nib_op_batch batch;
    int32_t *ids;
    uint32_t *positions, *wanted;
    nib_attend_segment *segments;
};

/* ---- Planning --------------------------------------------------------------------------------------------------------- */

/* Parameters with their defaults, and every size that follows from them. */
typedef struct layout {
    uint32_t n_ctx, n_seq, n_batch;
    nib_path path;
    nib_kv_type kv;
    uint64_t layer_bytes; /* keys of one layer; values take as much */
    uint64_t arena_cols, arena_bytes, scratch_bytes;
    uint64_t n_macs;
} layout;

/* One token through everything: what it multiplies, and how wide the arena must be. n_wanted: 0 if its logits are not
 * wanted, which ends it in the middle of the last layer, else 1. */
static nib_status measure(const nib_model *model, uint32_t n_wanted, nib_op_measure *out, nib_error *error) {
    static const int32_t id = 0;
    static const uint32_t zero = 0;
    const nib_attend_segment segment = {.n = 1};
    const nib_op_batch batch = {.ids = &id,
                                .positions = &zero,
                                .n_tokens = 1,
                                .segments = &segment,
                                .n_segments = 1,
                                .wanted = &zero,
                                .n_wanted = n_wanted};
    const nib_hyper *h = &model->graph.hyper;
    nib_op_measure_init(out, model->weights, model->n_weights);
    nib_op_begin(&out->base, &batch);
    const nib_value hidden = nib_arch_forward(model->arch, &out->base, &model->graph);
    const nib_value logits = nib_op_outside(&out->base, NULL, n_wanted, h->n_vocab, 0);
    model->arch->head(&out->base, &model->graph, hidden, logits);
    return nib_op_status(&out->base, error);
}

const char *nib_kv_name(nib_kv kv) {
    return kv == NIB_KV_Q8_0 ? "q8_0" : "f16";
}

static nib_status choose_kv(const nib_hyper *h, const nib_session_params *params, nib_kv_type *out, nib_error *error) {
    *out = params->exact ? NIB_KV_TYPE_F32 : params->kv == NIB_KV_Q8_0 ? NIB_KV_TYPE_Q8_0 : NIB_KV_TYPE_F16;
    if (nib_kv_fits(*out, h->head_dim)) return NIB_OK;
    nib_fail(error, NIB_ERR_UNSUPPORTED, "q8_0 keys and values need heads of whole 32s, this model's have %u values",
             h->head_dim);
    return nib_hint(error, NIB_ERR_UNSUPPORTED, "keep them in f16");
}

static nib_status plan_layout(const nib_model *model, const nib_session_params *params, unsigned n_workers, layout *out,
                              nib_error *error) {
    const nib_hyper *h = &model->graph.hyper;
    nib_op_measure measured;
    *out = (layout){.n_ctx = params->n_ctx, .n_seq = params->n_seq > 0 ? params->n_seq : 1};
    out->path = params->exact ? NIB_PATH_EXACT : NIB_PATH_DEPLOYED;
    NIB_TRY(choose_kv(h, params, &out->kv, error));
    if (out->n_ctx == 0 || out->n_ctx > INT32_MAX || out->n_seq > INT32_MAX) {
        return nib_fail(error, NIB_ERR_USAGE, "a session needs 1 to %d positions per sequence", INT32_MAX);
    }
    const uint64_t n_positions = (uint64_t)out->n_ctx * out->n_seq;
    out->n_batch = params->n_batch > 0 ? params->n_batch : DEFAULT_BATCH;
    if (out->n_batch > MAX_BATCH) out->n_batch = MAX_BATCH;
    if (out->n_batch > n_positions) out->n_batch = (uint32_t)n_positions;
    NIB_TRY(measure(model, 1, &measured, error));
    for (int i = 0; i < NIB_MULTIPLY_KINDS; i++) out->n_macs += measured.n_macs[i];
    /* Checked with heads and contexts padded and four bytes a value, so that nib_kv_bytes cannot overflow either. */
    uint64_t bytes;
    const uint64_t per_position = nib_kv_position_bytes(NIB_KV_TYPE_F32, h->head_dim) * h->n_head_kv;
    if (!nib_mul_u64(nib_round_up(out->n_ctx, NIB_KV_PAD) * out->n_seq, per_position, &bytes) ||
        !nib_mul_u64(bytes, 2 * (uint64_t)h->n_layer, &bytes) || bytes > SIZE_MAX / 2) {
        nib_fail(error, NIB_ERR_MEMORY, "a cache of %llu positions does not fit any memory",
                 (unsigned long long)n_positions);
        return nib_hint(error, NIB_ERR_MEMORY, "ask for a shorter context or fewer sequences");
    }
    out->layer_bytes = nib_kv_bytes(out->kv, out->n_seq, out->n_ctx, h->n_head_kv, h->head_dim);
    out->arena_cols = measured.base.peak_cols;
    /* peak_cols < 2^32, n_batch <= 2^16: fits. */
    out->arena_bytes = sizeof(float) * out->arena_cols * out->n_batch;
    const uint64_t linear = nib_linear_scratch_bytes(measured.max_linear_cols, out->n_batch, n_workers);
    const uint64_t attend = nib_attend_scratch_bytes(out->n_ctx, out->n_batch, h->n_head, h->head_dim, n_workers);
    out->scratch_bytes = linear > attend ? linear : attend;
    return NIB_OK;
}

static nib_token_cost cost_of(const nib_op_measure *measured) {
    return (nib_token_cost){.int8_macs = measured->n_macs[NIB_MULTIPLY_INT8],
                            .bf16_macs = measured->n_macs[NIB_MULTIPLY_BF16],
                            .f32_macs = measured->n_macs[NIB_MULTIPLY_F32],
                            .weight_bytes = measured->n_weight_bytes};
}

nib_status nib_model_token_cost(const nib_model *model, nib_token_cost *each, nib_token_cost *wanted,
                                nib_error *error) {
    nib_op_measure some, all;
    NIB_TRY(measure(model, 0, &some, error));
    NIB_TRY(measure(model, 1, &all, error));
    *each = cost_of(&some);
    *wanted = cost_of(&all);
    wanted->int8_macs -= each->int8_macs;
    wanted->bf16_macs -= each->bf16_macs;
    wanted->f32_macs -= each->f32_macs;
    wanted->weight_bytes -= each->weight_bytes;
    return NIB_OK;
}

nib_status nib_session_plan(const nib_model *model, const nib_session_params *params, unsigned n_threads,
                            nib_memory_plan *out, nib_error *error) {
    const nib_hyper *h = &model->graph.hyper;
    layout plan;
    NIB_TRY(plan_layout(model, params, n_threads > 0 ? n_threads : 1, &plan, error));
    *out = (nib_memory_plan){
        .weights = model->facts.weight_bytes,
        .kv_cache = 2 * h->n_layer * plan.layer_bytes,
        .kv_per_token = 2 * h->n_layer * h->n_head_kv * nib_kv_position_bytes(plan.kv, h->head_dim),
        .scratch = plan.arena_bytes + plan.scratch_bytes,
        .macs_per_token = plan.n_macs,
    };
    return NIB_OK;
}

/* ---- Making ----------------------------------------------------------------------------------------------------------- */

static nib_status take_memory(nib_session *session, const layout *plan, nib_error *error) {
    const nib_hyper *h = &session->model->graph.hyper;
    session->layers = nib_alloc(h->n_layer, sizeof *session->layers);
    session->n_cached = nib_alloc(plan->n_seq, sizeof *session->n_cached);
    session->in_run = nib_alloc(plan->n_seq, sizeof *session->in_run);
    session->last_hidden = nib_alloc(h->n_embd, sizeof(float));
    session->followers = nib_alloc(session->model->n_weights, sizeof *session->followers);
    session->ids = nib_alloc(plan->n_batch, sizeof *session->ids);
    session->positions = nib_alloc(plan->n_batch, sizeof *session->positions);
    session->wanted = nib_alloc(plan->n_batch, sizeof *session->wanted);
    session->segments = nib_alloc(plan->n_batch, sizeof *session->segments);
    session->arena = nib_alloc_aligned(plan->arena_bytes);
    session->scratch = nib_alloc_aligned(plan->scratch_bytes);
    if (session->layers == NULL || session->n_cached == NULL || session->in_run == NULL ||
        session->last_hidden == NULL || session->ids == NULL || session->positions == NULL || session->wanted == NULL ||
        session->segments == NULL || session->followers == NULL || session->arena == NULL || session->scratch == NULL) {
        return nib_fail_memory(error, plan->arena_bytes + plan->scratch_bytes);
    }
    for (uint32_t i = 0; i < h->n_layer; i++) {
        nib_kv_layer *layer = &session->layers[i];
        *layer =
            (nib_kv_layer){.type = plan->kv, .n_ctx = plan->n_ctx, .n_head_kv = h->n_head_kv, .head_dim = h->head_dim};
        layer->keys = nib_alloc_aligned(plan->layer_bytes);
        layer->values = nib_alloc_aligned(plan->layer_bytes);
        if (layer->keys != NULL && layer->values != NULL) continue;
        nib_fail_memory(error, 2 * h->n_layer * plan->layer_bytes);
        return nib_hint(error, NIB_ERR_MEMORY, "ask for a shorter context or fewer sequences");
    }
    return NIB_OK;
}

nib_status nib_session_new(const nib_model *model, nib_pool *pool, const nib_session_params *params, nib_session **out,
                           nib_error *error) {
    nib_status status = NIB_OK;
    layout plan;
    *out = NULL;
    NIB_TRY(plan_layout(model, params, nib_pool_size(pool), &plan, error));
    nib_session *session = nib_alloc(1, sizeof *session);
    if (session == NULL) return nib_fail_memory(error, sizeof *session);
    session->model = model;
    session->pool = pool;
    session->path = plan.path;
    session->n_ctx = plan.n_ctx;
    session->n_seq = plan.n_seq;
    session->n_batch = plan.n_batch;
    NIB_TRY_GOTO(take_memory(session, &plan, error));
    session->batch = (nib_op_batch){
        .ids = session->ids,
        .positions = session->positions,
        .segments = session->segments,
        .wanted = session->wanted,
    };
    nib_op_run_init(&session->run, &(nib_op_run_params){
                                       .weights = model->weights,
                                       .n_weights = model->n_weights,
                                       .arena = session->arena,
                                       .arena_cols = plan.arena_cols,
                                       .n_batch = plan.n_batch,
                                       .pool = pool,
                                       .path = plan.path,
                                       .layers = session->layers,
                                       .n_layers = model->graph.hyper.n_layer,
                                       .scratch = session->scratch,
                                       .followers = session->followers,
                                   });
    *out = session;
    return NIB_OK;
fail:
    nib_session_free(session);
    return status;
}

void nib_session_free(nib_session *session) {
    if (session == NULL) return;
    for (uint32_t i = 0; session->layers != NULL && i < session->model->graph.hyper.n_layer; i++) {
        nib_free_aligned(session->layers[i].keys);
        nib_free_aligned(session->layers[i].values);
    }
    free(session->layers);
    free(session->n_cached);
    free(session->in_run);
    free(session->followers);
    free(session->last_hidden);
    free(session->ids);
    free(session->positions);
    free(session->wanted);
    free(session->segments);
    nib_free_aligned(session->arena);
    nib_free_aligned(session->scratch);
    free(session);
}

const nib_model *nib_session_model(const nib_session *session) {
    return session->model;
}

uint32_t nib_session_n_ctx(const nib_session *session) {
    return session->n_ctx;
}

/* ---- Running ---------------------------------------------------------------------------------------------------------- */

static nib_status check_segment(const nib_session *session, const nib_segment *segment, nib_error *error) {
    const uint32_t n_vocab = session->model->graph.hyper.n_vocab;
    if (segment->seq >= session->n_seq) {
        return nib_fail(error, NIB_ERR_USAGE, "sequence %u of a session of %u", segment->seq, session->n_seq);
    }
    if (session->in_run[segment->seq]) {
        return nib_fail(error, NIB_ERR_USAGE, "sequence %u is run twice at once", segment->seq);
    }
    if (segment->n == 0 || segment->out_from > segment->n) {
        return nib_fail(error, NIB_ERR_USAGE, "a run of no tokens, or results wanted past its end");
    }
    if (segment->pos > session->n_cached[segment->seq]) {
        return nib_fail(error, NIB_ERR_USAGE, "position %u of a sequence that has %u tokens", segment->pos,
                        session->n_cached[segment->seq]);
    }
    if (segment->n > session->n_ctx - segment->pos) {
        nib_fail(error, NIB_ERR_USAGE, "%u tokens from position %u do not fit a context of %u", segment->n,
                 segment->pos, session->n_ctx);
        return nib_hint(error, NIB_ERR_USAGE, "ask for a longer context");
    }
    for (uint32_t i = 0; i < segment->n; i++) {
        if (segment->ids[i] >= 0 && (uint32_t)segment->ids[i] < n_vocab) continue;
        return nib_fail(error, NIB_ERR_USAGE, "token %u has id %d, the vocabulary has 0 to %u", i, segment->ids[i],
                        n_vocab - 1);
    }
    return NIB_OK;
}

static nib_status check_segments(nib_session *session, const nib_segment *segments, uint32_t n_segments,
                                 const float *hidden, nib_error *error) {
    nib_status status = NIB_OK;
    uint64_t n_wanted = 0;
    memset(session->in_run, 0, session->n_seq * sizeof *session->in_run);
    for (uint32_t i = 0; i < n_segments && status == NIB_OK; i++) {
        status = check_segment(session, &segments[i], error);
        if (status != NIB_OK) break;
        session->in_run[segments[i].seq] = true;
        n_wanted += segments[i].n - segments[i].out_from;
    }
    if (status == NIB_OK && n_wanted > 0 && hidden == NULL) {
        return nib_fail(error, NIB_ERR_USAGE, "results are wanted but there is no place for them");
    }
    return status;
}

/* Adds tokens from .. from + n - 1 of a segment to the batch. */
static void add_piece(nib_session *session, const nib_segment *segment, uint32_t from, uint32_t n) {
    nib_op_batch *batch = &session->batch;
    session->segments[batch->n_segments++] =
        (nib_attend_segment){.seq = segment->seq, .first = batch->n_tokens, .n = n, .pos = segment->pos + from};
    for (uint32_t i = from; i < from + n; i++) {
        if (i >= segment->out_from) session->wanted[batch->n_wanted++] = batch->n_tokens;
        session->ids[batch->n_tokens] = segment->ids[i];
        session->positions[batch->n_tokens++] = segment->pos + i;
    }
    session->n_cached[segment->seq] = segment->pos + from + n;
}

/* Runs the batch and empties it; *hidden moves past what was written. */
static nib_status run_batch(nib_session *session, float **hidden, nib_error *error) {
    nib_op_context *context = &session->run.base;
    const nib_model *model = session->model;
    const uint32_t n_embd = model->graph.hyper.n_embd, n_wanted = session->batch.n_wanted;
    uint32_t n_rows = 0;
    nib_op_begin(context, &session->batch);
    const nib_value last = nib_arch_forward(model->arch, context, &model->graph);
    const float *data = nib_op_data(context, last, &n_rows);
    session->batch.n_tokens = session->batch.n_segments = session->batch.n_wanted = 0;
    NIB_TRY(nib_op_status(context, error));
    if (data == NULL || n_rows != n_wanted) {
        return nib_fail(error, NIB_ERR_BUG, "%s gave %u results instead of %u", model->arch->name, n_rows, n_wanted);
    }
    if (n_rows == 0) return NIB_OK;
    memcpy(*hidden, data, (size_t)n_rows * n_embd * sizeof(float));
    *hidden += (size_t)n_rows * n_embd;
    return NIB_OK;
}

nib_status nib_session_run(nib_session *session, const nib_segment *segments, uint32_t n_segments, float *hidden,
                           nib_error *error) {
    NIB_TRY(check_segments(session, segments, n_segments, hidden, error));
    nib_op_batch *batch = &session->batch;
    for (uint32_t s = 0; s < n_segments; s++) {
        for (uint32_t from = 0; from < segments[s].n;) {
            const uint32_t room = session->n_batch - batch->n_tokens, left = segments[s].n - from;
            const uint32_t n = left < room ? left : room;
            add_piece(session, &segments[s], from, n);
            from += n;
            if (batch->n_tokens == session->n_batch) NIB_TRY(run_batch(session, &hidden, error));
        }
    }
    return batch->n_tokens > 0 ? run_batch(session, &hidden, error) : NIB_OK;
}

nib_status nib_session_head_part(nib_session *session, const float *hidden, uint32_t n_rows, uint32_t first, uint32_t n,
                                 float *logits, nib_error *error) {
    nib_op_context *context = &session->run.base;
    const nib_graph *graph = &session->model->graph;
    const size_t n_embd = graph->hyper.n_embd;
    static const nib_op_batch nothing = {0};
    for (uint32_t from = 0; from < n_rows; from += session->n_batch) {
        const uint32_t rows = n_rows - from < session->n_batch ? n_rows - from : session->n_batch;
        nib_op_begin(context, &nothing);
        /* A head reads its input and writes only its output. */
        const nib_value in =
            nib_op_outside(context, (float *)(uintptr_t)(hidden + from * n_embd), rows, (uint32_t)n_embd, 0);
        const nib_value out = nib_op_outside(context, logits + (size_t)from * n, rows, n, first);
        session->model->arch->head(context, graph, in, out);
        NIB_TRY(nib_op_status(context, error));
    }
    return NIB_OK;
}

nib_status nib_session_head(nib_session *session, const float *hidden, uint32_t n_rows, float *logits,
                            nib_error *error) {
    return nib_session_head_part(session, hidden, n_rows, 0, session->model->graph.hyper.n_vocab, logits, error);
}

nib_status nib_session_next(nib_session *session, uint32_t pos, const int32_t *ids, uint32_t n, float *logits,
                            nib_error *error) {
    const nib_segment segment = {.pos = pos, .n = n, .ids = ids, .out_from = n > 0 ? n - 1 : 0};
    NIB_TRY(nib_session_run(session, &segment, 1, session->last_hidden, error));
    return nib_session_head(session, session->last_hidden, 1, logits, error);
}

nib_status nib_session_copy(nib_session *session, uint32_t from_seq, uint32_t to_seq, uint32_t n, nib_error *error) {
    if (from_seq >= session->n_seq || to_seq >= session->n_seq) {
        return nib_fail(error, NIB_ERR_USAGE, "sequence %u copied to %u in a session of %u", from_seq, to_seq,
                        session->n_seq);
    }
    if (n > session->n_cached[from_seq]) {
        return nib_fail(error, NIB_ERR_USAGE, "%u positions of a sequence that has %u", n, session->n_cached[from_seq]);
    }
    session->n_cached[to_seq] = n;
    if (from_seq == to_seq || n == 0) return NIB_OK;
    for (uint32_t i = 0; i < session->model->graph.hyper.n_layer; i++)
        nib_kv_copy(&session->layers[i], from_seq, to_seq, n);
    return NIB_OK;
}
