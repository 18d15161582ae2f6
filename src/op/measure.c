/* The kind of context that only counts: what a pass would multiply, and (through the base) how wide its arena must be. */
#include "op/context.h"

static void count_linears(nib_op_context *context, const nib_op_slot *x, const nib_op_product *products, uint32_t n) {
    nib_op_measure *measure = (nib_op_measure *)context;
    if (x->n_cols > measure->max_linear_cols) measure->max_linear_cols = x->n_cols;
    for (uint32_t i = 0; i < n; i++) {
        measure->n_macs += (uint64_t)x->n_rows * x->n_cols * products[i].weight->matrix.n_rows;
    }
}

static void skip_embed(nib_op_context *context, const nib_op_weight *weight, const nib_op_slot *out) {
    (void)context, (void)weight, (void)out;
}
static void skip_norm(nib_op_context *context, const nib_op_slot *x, const nib_op_weight *weight, float eps,
                      const nib_op_slot *out) {
    (void)context, (void)x, (void)weight, (void)eps, (void)out;
}
static void skip_rope(nib_op_context *context, const nib_op_slot *x, const nib_rope *rope, uint32_t head_dim) {
    (void)context, (void)x, (void)rope, (void)head_dim;
}
static void skip_attend(nib_op_context *context, uint32_t layer, const nib_op_slot *q, const nib_op_slot *k,
                        const nib_op_slot *v, uint32_t n_head, float scale, uint32_t window,
                        const nib_op_slot *out) {
    (void)context, (void)layer, (void)q, (void)k, (void)v, (void)n_head, (void)scale, (void)window, (void)out;
}
static void skip_pair(nib_op_context *context, const nib_op_slot *x, const nib_op_slot *y) {
    (void)context, (void)x, (void)y;
}
static void skip_one(nib_op_context *context, const nib_op_slot *x) {
    (void)context, (void)x;
}

static const nib_op_kind measure_kind = {
    .embed = skip_embed,
    .norm = skip_norm,
    .linears = count_linears,
    .rope = skip_rope,
    .attend = skip_attend,
    .swiglu = skip_pair,
    .add = skip_pair,
    .keep_wanted = skip_one,
};

void nib_op_measure_init(nib_op_measure *measure, const nib_op_weight *weights, uint32_t n_weights) {
    *measure = (nib_op_measure){.base = {.kind = &measure_kind, .weights = weights, .n_weights = n_weights}};
}
