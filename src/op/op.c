/* Operations: handles become slots, shapes are checked, results get their place in the arena; then the kind does the work.
 * Invariant: what the kind is handed fits together, so kinds check nothing. */
#include "op/context.h"

static bool ok(const nib_op_context *context) {
    return context->failed_op == NULL;
}

static void fail(nib_op_context *context, const char *op, const char *why) {
    if (!ok(context)) return;
    context->failed_op = op;
    context->failed_why = why;
}

static nib_op_slot *slot_of(nib_op_context *context, const char *op, nib_value value) {
    if (value < NIB_OP_MAX_VALUES && context->slots[value].live) return &context->slots[value];
    fail(context, op, "a value that does not exist");
    return NULL;
}

static const nib_op_weight *weight_of(nib_op_context *context, const char *op, nib_weight weight) {
    if (weight < context->n_weights) return &context->weights[weight];
    fail(context, op, "a weight the model does not have");
    return NULL;
}

/* A one-dimensional weight of n values. */
static const nib_op_weight *vector_of(nib_op_context *context, const char *op, nib_weight weight, uint32_t n) {
    const nib_op_weight *found = weight_of(context, op, weight);
    if (found == NULL) return NULL;
    if (found->vector != NULL && found->matrix.n_cols == n) return found;
    fail(context, op, "a vector of another length");
    return NULL;
}

static nib_value free_handle(nib_op_context *context, const char *op) {
    for (nib_value i = 0; i < NIB_OP_MAX_VALUES; i++) {
        if (!context->slots[i].live) return i;
    }
    fail(context, op, "too many values at once");
    return NIB_NO_VALUE;
}

/* The first stripe wide enough between the live ones. */
static uint64_t free_stripe(const nib_op_context *context, uint64_t width) {
    uint64_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t i = 0; i < NIB_OP_MAX_VALUES; i++) {
            const nib_op_slot *slot = &context->slots[i];
            const uint64_t end = (uint64_t)slot->first_col + slot->width;
            if (!slot->live || slot->width == 0 || at >= end || at + width <= slot->first_col) continue;
            at = end;
            moved = true;
        }
    }
    return at;
}

static nib_value new_value(nib_op_context *context, const char *op, uint32_t n_rows, uint32_t n_cols) {
    const nib_value value = free_handle(context, op);
    if (value == NIB_NO_VALUE) return value;
    const uint64_t width = ((uint64_t)n_cols + NIB_OP_COL_STEP - 1) / NIB_OP_COL_STEP * NIB_OP_COL_STEP;
    const uint64_t at = free_stripe(context, width);
    const bool fits = context->arena == NULL || (at + width <= context->arena_cols && n_rows <= context->n_batch);
    if (!fits || at + width > UINT32_MAX) {
        fail(context, op, "more memory than was planned");
        return NIB_NO_VALUE;
    }
    if (at + width > context->peak_cols) context->peak_cols = at + width;
    context->slots[value] = (nib_op_slot){
        .data = context->arena == NULL ? NULL : context->arena + (size_t)at * context->n_batch,
        .n_rows = n_rows,
        .n_cols = n_cols,
        .first_col = (uint32_t)at,
        .width = (uint32_t)width,
        .live = true,
    };
    return value;
}

nib_value nib_op_embed(nib_op_context *context, nib_weight weight) {
    const nib_op_weight *w = ok(context) ? weight_of(context, "embed", weight) : NULL;
    if (w == NULL) return NIB_NO_VALUE;
    const nib_value out = new_value(context, "embed", context->batch->n_tokens, w->matrix.n_cols);
    if (ok(context) && context->batch->n_tokens > 0) context->kind->embed(context, w, &context->slots[out]);
    return out;
}

nib_value nib_op_norm(nib_op_context *context, nib_value x, nib_weight weight, float eps) {
    const nib_op_slot *in = ok(context) ? slot_of(context, "norm", x) : NULL;
    const nib_op_weight *w = in != NULL ? vector_of(context, "norm", weight, in->n_cols) : NULL;
    if (w == NULL) return NIB_NO_VALUE;
    const nib_value out = new_value(context, "norm", in->n_rows, in->n_cols);
    if (ok(context) && in->n_rows > 0) context->kind->norm(context, in, w, eps, &context->slots[out]);
    return out;
}

void nib_op_norm_heads(nib_op_context *context, nib_value x, nib_weight weight, uint32_t head_dim, float eps) {
    const nib_op_slot *in = ok(context) ? slot_of(context, "norm_heads", x) : NULL;
    const nib_op_weight *w = in != NULL ? vector_of(context, "norm_heads", weight, head_dim) : NULL;
    if (w == NULL) return;
    if (head_dim == 0 || in->n_cols % head_dim != 0) {
        fail(context, "norm_heads", "rows that are not whole heads");
    } else if (in->n_rows > 0) {
        nib_op_slot heads = *in;
        heads.n_rows *= in->n_cols / head_dim;
        heads.n_cols = head_dim;
        context->kind->norm(context, &heads, w, eps, &heads);
    }
}

/* Checks one product of x and completes it, but for its output. */
static bool product_of(nib_op_context *context, const nib_op_slot *in, nib_weight weight, nib_weight bias,
                       nib_op_product *out) {
    *out = (nib_op_product){.weight = weight_of(context, "linear", weight)};
    if (out->weight == NULL) return false;
    if (out->weight->matrix.n_cols != in->n_cols) {
        fail(context, "linear", "a matrix of another width");
        return false;
    }
    if (bias == NIB_NO_WEIGHT) return true;
    out->bias = vector_of(context, "linear", bias, out->weight->matrix.n_rows);
    return out->bias != NULL;
}

void nib_op_linears(nib_op_context *context, nib_value x, const nib_weight *weights, const nib_weight *biases,
                    uint32_t n, nib_value *out) {
    nib_op_product products[NIB_OP_MAX_PRODUCTS];
    for (uint32_t i = 0; i < n; i++) out[i] = NIB_NO_VALUE;
    const nib_op_slot *in = ok(context) ? slot_of(context, "linear", x) : NULL;
    if (in == NULL) return;
    if (n > NIB_OP_MAX_PRODUCTS) {
        fail(context, "linear", "too many products at once");
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!product_of(context, in, weights[i], biases != NULL ? biases[i] : NIB_NO_WEIGHT, &products[i])) return;
        out[i] = new_value(context, "linear", in->n_rows, products[i].weight->matrix.n_rows);
        if (out[i] == NIB_NO_VALUE) return;
        products[i].out = &context->slots[out[i]];
    }
    if (in->n_rows > 0) context->kind->linears(context, in, products, n);
}

nib_value nib_op_linear(nib_op_context *context, nib_value x, nib_weight weight, nib_weight bias) {
    nib_value out;
    nib_op_linears(context, x, &weight, &bias, 1, &out);
    return out;
}

void nib_op_linear_into(nib_op_context *context, nib_value x, nib_weight weight, nib_weight bias, nib_value out) {
    nib_op_product product;
    const nib_op_slot *in = ok(context) ? slot_of(context, "linear", x) : NULL;
    const nib_op_slot *to = in != NULL ? slot_of(context, "linear", out) : NULL;
    if (to == NULL || !product_of(context, in, weight, bias, &product)) return;
    product.out = to;
    const uint64_t end = (uint64_t)to->part_from + to->n_cols, n_cols = product.weight->matrix.n_rows;
    if (to->n_rows != in->n_rows || (to->width == 0 ? end > n_cols : end != n_cols)) {
        fail(context, "linear", "a result of another shape");
    } else if (in->n_rows > 0) {
        context->kind->linears(context, in, &product, 1);
    }
}

void nib_op_rope(nib_op_context *context, nib_value x, const nib_rope *rope, uint32_t head_dim) {
    const nib_op_slot *in = ok(context) ? slot_of(context, "rope", x) : NULL;
    if (in == NULL) return;
    if (in->n_rows != context->batch->n_tokens || head_dim == 0 || in->n_cols % head_dim != 0 ||
        rope->n_pairs > head_dim / 2) {
        fail(context, "rope", "rows that are not the batch's, or not whole heads");
    } else if (in->n_rows > 0) {
        context->kind->rope(context, in, rope, head_dim);
    }
}

nib_value nib_op_attend(nib_op_context *context, uint32_t layer, nib_value q, nib_value k, nib_value v, uint32_t n_head,
                        float scale, uint32_t window) {
    if (!ok(context)) return NIB_NO_VALUE;
    const nib_op_slot *query = slot_of(context, "attend", q), *key = slot_of(context, "attend", k);
    const nib_op_slot *value = slot_of(context, "attend", v);
    if (query == NULL || key == NULL || value == NULL) return NIB_NO_VALUE;
    const uint32_t n_tokens = context->batch->n_tokens, head_dim = n_head > 0 ? query->n_cols / n_head : 0;
    if (head_dim == 0 || query->n_cols % n_head != 0 || key->n_cols % head_dim != 0 || key->n_cols != value->n_cols ||
        query->n_rows != n_tokens || key->n_rows != n_tokens || value->n_rows != n_tokens) {
        fail(context, "attend", "queries, keys and values that do not fit together");
        return NIB_NO_VALUE;
    }
    const nib_value out = new_value(context, "attend", n_tokens, query->n_cols);
    if (ok(context) && n_tokens > 0) {
        context->kind->attend(context, layer, query, key, value, n_head, scale, window, &context->slots[out]);
    }
    return out;
}

/* A stack of n matrices of this shape. */
static const nib_op_weight *stack_of(nib_op_context *context, nib_weight weight, uint32_t n, uint32_t n_cols,
                                     uint32_t n_rows) {
    const nib_op_weight *w = weight_of(context, "experts", weight);
    if (w == NULL) return NULL;
    if (w->n_stack == n && w->matrix.n_cols == n_cols && w->matrix.n_rows == n_rows) return w;
    fail(context, "experts", "stacks of matrices that do not fit together");
    return NULL;
}

nib_value nib_op_experts(nib_op_context *context, nib_value x, nib_value logits, const nib_expert_stacks *experts) {
    const nib_op_slot *in = ok(context) ? slot_of(context, "experts", x) : NULL;
    const nib_op_slot *scores = in != NULL ? slot_of(context, "experts", logits) : NULL;
    const nib_op_weight *gate = scores != NULL ? weight_of(context, "experts", experts->gate) : NULL;
    if (gate == NULL) return NIB_NO_VALUE;
    const uint32_t n = scores->n_cols, n_embd = in->n_cols, n_ff = gate->matrix.n_rows, n_used = experts->n_used;
    nib_op_experts_work work = {.gate = stack_of(context, experts->gate, n, n_embd, n_ff),
                                .up = stack_of(context, experts->up, n, n_embd, n_ff),
                                .down = stack_of(context, experts->down, n, n_ff, n_embd),
                                .n_used = n_used};
    if (scores->n_rows != in->n_rows || n_used == 0 || n_used > n || n_used > UINT32_MAX / 2 / n_ff)
        fail(context, "experts", "scores of other rows, or more experts than there are");
    const uint32_t n_rows = in->n_rows;
    nib_value room[5] = {NIB_NO_VALUE, NIB_NO_VALUE, NIB_NO_VALUE, NIB_NO_VALUE, NIB_NO_VALUE};
    const uint32_t cols[5] = {n_embd, (uint32_t)nib_experts_route_words(n, n_used), n_embd, n_used * n_ff,
                              n_used * n_ff};
    for (int i = 0; i < 5 && ok(context); i++) room[i] = new_value(context, "experts", n_rows, cols[i]);
    if (!ok(context)) return NIB_NO_VALUE;
    work.routes = &context->slots[room[1]];
    work.in = &context->slots[room[2]];
    work.gates = &context->slots[room[3]];
    work.ups = &context->slots[room[4]];
    if (n_rows > 0) context->kind->experts(context, in, scores, &work, &context->slots[room[0]]);
    for (int i = 1; i < 5; i++) nib_op_free(context, room[i]);
    return room[0];
}

/* Two values of one shape, or NULL in both. */
static bool pair_of(nib_op_context *context, const char *op, nib_value x, nib_value y, const nib_op_slot **a,
                    const nib_op_slot **b) {
    if (!ok(context)) return false;
    *a = slot_of(context, op, x);
    *b = slot_of(context, op, y);
    if (*a == NULL || *b == NULL) return false;
    if ((*a)->n_rows == (*b)->n_rows && (*a)->n_cols == (*b)->n_cols) return true;
    fail(context, op, "two values of different shapes");
    return false;
}

void nib_op_swiglu(nib_op_context *context, nib_value gate, nib_value up) {
    const nib_op_slot *a, *b;
    if (pair_of(context, "swiglu", gate, up, &a, &b) && a->n_rows > 0) context->kind->swiglu(context, a, b);
}

void nib_op_add(nib_op_context *context, nib_value x, nib_value y) {
    const nib_op_slot *a, *b;
    if (pair_of(context, "add", x, y, &a, &b) && a->n_rows > 0) context->kind->add(context, a, b);
}

void nib_op_keep_wanted(nib_op_context *context, nib_value x) {
    nib_op_slot *in = ok(context) ? slot_of(context, "keep_wanted", x) : NULL;
    if (in == NULL) return;
    if (in->n_rows != context->batch->n_tokens) {
        fail(context, "keep_wanted", "rows that are not the batch's");
        return;
    }
    if (context->batch->n_wanted > 0) context->kind->keep_wanted(context, in);
    in->n_rows = context->batch->n_wanted;
}

void nib_op_free(nib_op_context *context, nib_value x) {
    nib_op_slot *in = ok(context) ? slot_of(context, "free", x) : NULL;
    if (in != NULL) in->live = false;
}

void nib_op_begin(nib_op_context *context, const nib_op_batch *batch) {
    context->batch = batch;
    context->failed_op = context->failed_why = NULL;
    for (uint32_t i = 0; i < NIB_OP_MAX_VALUES; i++) context->slots[i].live = false;
}

nib_status nib_op_status(const nib_op_context *context, nib_error *error) {
    if (ok(context)) return NIB_OK;
    return nib_fail(error, NIB_ERR_BUG, "operation %s was given %s", context->failed_op, context->failed_why);
}

nib_value nib_op_outside(nib_op_context *context, float *data, uint32_t n_rows, uint32_t n_cols, uint32_t part_from) {
    const nib_value value = ok(context) ? free_handle(context, "outside") : NIB_NO_VALUE;
    if (value == NIB_NO_VALUE) return value;
    context->slots[value] =
        (nib_op_slot){.data = data, .n_rows = n_rows, .n_cols = n_cols, .part_from = part_from, .live = true};
    return value;
}

const float *nib_op_data(const nib_op_context *context, nib_value value, uint32_t *n_rows) {
    if (!ok(context) || value >= NIB_OP_MAX_VALUES || !context->slots[value].live) return NULL;
    *n_rows = context->slots[value].n_rows;
    return context->slots[value].data;
}
