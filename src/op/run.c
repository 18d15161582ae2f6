/* The kind of context that computes: every operation is a kernel on the CPU. */
#include "base/memory.h"
#include "op/context.h"

static nib_op_run *run_of(nib_op_context *context) {
    return (nib_op_run *)context;
}

static void run_embed(nib_op_context *context, const nib_op_weight *weight, const nib_op_slot *out) {
    nib_embed_rows(run_of(context)->pool, &weight->matrix, context->batch->ids, out->n_rows, out->data);
}

static void run_norm(nib_op_context *context, const nib_op_slot *x, const nib_op_weight *weight, float eps,
                     const nib_op_slot *out) {
    nib_norm_rows(run_of(context)->pool, x->data, x->n_rows, x->n_cols, weight->vector, eps, out->data);
}

/* With more rows cores set the pace, not memory. */
enum { MOST_ROWS_AHEAD = 3 };

/* Remembers what follows what, and announces what followed these products the last time. */
static void foretell(nib_op_run *run, const nib_op_product *products, const nib_product *work, uint32_t n,
                     uint32_t n_rows) {
    if (run->followers == NULL || n_rows > MOST_ROWS_AHEAD) return;
    nib_op_reads *follower = &run->followers[products[0].weight - run->base.weights];
    if (run->last_follower != NULL) {
        run->last_follower->n = n;
        for (uint32_t i = 0; i < n; i++) {
            const nib_matrix *weight = &work[i].weight;
            run->last_follower->spans[i] =
                (nib_span){weight->data, weight->n_rows * nib_format_row_bytes(weight->format, weight->n_cols)};
        }
    }
    run->last_follower = follower;
    nib_pool_expect(run->pool, follower->spans, follower->n);
}

static void run_linears(nib_op_context *context, const nib_op_slot *x, const nib_op_product *products, uint32_t n) {
    nib_op_run *run = run_of(context);
    nib_product work[NIB_OP_MAX_PRODUCTS];
    for (uint32_t i = 0; i < n; i++) {
        const nib_op_slot *out = products[i].out;
        const nib_matrix *whole = &products[i].weight->matrix;
        work[i] = (nib_product){
            .weight = {.format = whole->format,
                       .data = (const char *)whole->data +
                               out->part_from * nib_format_row_bytes(whole->format, whole->n_cols),
                       .n_cols = whole->n_cols,
                       .n_rows = out->n_cols},
            .bias = products[i].bias != NULL ? products[i].bias->vector + out->part_from : NULL,
            .out = out->data,
        };
    }
    foretell(run, products, work, n, x->n_rows);
    nib_linear(run->pool, run->path, x->data, x->n_rows, work, n, run->scratch);
}

static void run_rope(nib_op_context *context, const nib_op_slot *x, const nib_rope *rope, uint32_t head_dim) {
    nib_rope_rows(run_of(context)->pool, x->data, context->batch->positions, x->n_rows, x->n_cols / head_dim, head_dim,
                  rope->inv_freq, rope->n_pairs, rope->neox);
}

static void run_attend(nib_op_context *context, uint32_t layer, const nib_op_slot *q, const nib_op_slot *k,
                       const nib_op_slot *v, uint32_t n_head, float scale, uint32_t window, const nib_op_slot *out) {
    nib_op_run *run = run_of(context);
    const nib_op_batch *batch = context->batch;
    const nib_kv_layer *kv = layer < run->n_layers ? &run->layers[layer] : NULL;
    if (kv == NULL || k->n_cols != kv->n_head_kv * kv->head_dim || q->n_cols != n_head * kv->head_dim) {
        context->failed_op = "attend";
        context->failed_why = "a layer whose cache has another shape";
        return;
    }
    nib_kv_store(run->pool, kv, batch->segments, batch->n_segments, k->data, v->data);
    nib_attend(run->pool, run->path, kv, batch->segments, batch->n_segments, q->data, n_head, scale, window, out->data,
               run->scratch);
}

static void run_experts(nib_op_context *context, const nib_op_slot *x, const nib_op_slot *logits,
                        const nib_op_experts_work *experts, const nib_op_slot *out) {
    nib_op_run *run = run_of(context);
    const nib_expert_work work = {
        .gate = experts->gate->matrix,
        .up = experts->up->matrix,
        .down = experts->down->matrix,
        .n_experts = logits->n_cols,
        .n_used = experts->n_used,
        .n_tokens = x->n_rows,
        .x = x->data,
        .logits = logits->data,
        .routes = experts->routes->data,
        .in = experts->in->data,
        .gates = experts->gates->data,
        .ups = experts->ups->data,
        .out = out->data,
    };
    nib_experts(run->pool, run->path, &work, run->scratch);
}

static void run_swiglu(nib_op_context *context, const nib_op_slot *gate, const nib_op_slot *up) {
    nib_swiglu_rows(run_of(context)->pool, gate->data, up->data, (size_t)gate->n_rows * gate->n_cols, gate->data);
}

static void run_add(nib_op_context *context, const nib_op_slot *x, const nib_op_slot *y) {
    nib_add_rows(run_of(context)->pool, x->data, y->data, (size_t)x->n_rows * x->n_cols);
}

/* Wanted rows ascend, so a row never lands on one still to be moved. */
static void run_keep_wanted(nib_op_context *context, const nib_op_slot *x) {
    const nib_op_batch *batch = context->batch;
    for (uint32_t i = 0; i < batch->n_wanted; i++) {
        if (batch->wanted[i] == i) continue;
        memcpy(x->data + (size_t)i * x->n_cols, x->data + (size_t)batch->wanted[i] * x->n_cols,
               x->n_cols * sizeof(float));
    }
}

static const nib_op_kind run_kind = {
    .embed = run_embed,
    .norm = run_norm,
    .linears = run_linears,
    .rope = run_rope,
    .attend = run_attend,
    .experts = run_experts,
    .swiglu = run_swiglu,
    .add = run_add,
    .keep_wanted = run_keep_wanted,
};

void nib_op_run_init(nib_op_run *run, const nib_op_run_params *params) {
    *run = (nib_op_run){
        .base =
            {
                .kind = &run_kind,
                .weights = params->weights,
                .n_weights = params->n_weights,
                .arena = params->arena,
                .arena_cols = params->arena_cols,
                .n_batch = params->n_batch,
            },
        .pool = params->pool,
        .path = params->path,
        .layers = params->layers,
        .n_layers = params->n_layers,
        .scratch = params->scratch,
        .followers = params->followers,
    };
}
