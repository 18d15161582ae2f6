/* The kind of context that only counts: what a pass would multiply, and (through the base) how wide its arena must be. */
#include "op/context.h"

/* n matrices like this one, each against as many rows. */
static void count_matrices(nib_op_measure *measure, const nib_matrix *matrix, uint64_t n, uint32_t n_rows) {
    if (matrix->n_cols > measure->max_linear_cols) measure->max_linear_cols = matrix->n_cols;
    measure->n_macs[nib_multiply_of(matrix->format)] += n * n_rows * matrix->n_cols * matrix->n_rows;
    measure->n_weight_bytes += n * nib_format_row_bytes(matrix->format, matrix->n_cols) * matrix->n_rows;
}

static void count_linears(nib_op_context *context, const nib_op_slot *x, const nib_op_product *products, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        count_matrices((nib_op_measure *)context, &products[i].weight->matrix, 1, x->n_rows);
}

static void count_experts(nib_op_context *context, const nib_op_slot *x, const nib_op_slot *logits,
                          const nib_op_experts_work *experts, const nib_op_slot *out) {
    const nib_op_weight *stacks[] = {experts->gate, experts->up, experts->down};
    (void)logits, (void)out;
    for (int i = 0; i < 3; i++)
        count_matrices((nib_op_measure *)context, &stacks[i]->matrix, experts->n_used, x->n_rows);
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
                        const nib_op_slot *v, uint32_t n_head, float scale, uint32_t window, const nib_op_slot *out) {
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
    .experts = count_experts,
    .swiglu = skip_pair,
    .add = skip_pair,
    .keep_wanted = skip_one,
};

void nib_op_measure_init(nib_op_measure *measure, const nib_op_weight *weights, uint32_t n_weights) {
    *measure = (nib_op_measure){.base = {.kind = &measure_kind, .weights = weights, .n_weights = n_weights}};
}
