/* The seam between models and machines. An architecture's forward function calls these and nothing below them: weights are
 * handles into the model's table, values are handles of the context. What an operation does is the context's kind:
 * run it on the CPU, or measure shapes (memory plans, multiply-adds). Observing, swapping a weight, streaming layers or
 * another machine are further kinds (op/context.h); none of them may touch an architecture file.
 *
 * Operations do not return errors: a failed context ignores the rest and reports at the end (nib_op_status). */
#ifndef NIB_OP_OP_H
#define NIB_OP_OP_H

#include "kernel/kernel.h"

typedef struct nib_op_context nib_op_context;

/* A weight of the model: index into its table of tensors; NIB_NO_WEIGHT where an optional tensor is absent. */
typedef uint32_t nib_weight;
#define NIB_NO_WEIGHT UINT32_MAX

/* An activation of the current batch: (n_rows, n_cols) floats owned by the context; n_rows is the batch's tokens, or after
 * nib_op_keep_wanted the wanted ones. */
typedef uint32_t nib_value;
#define NIB_NO_VALUE        UINT32_MAX

/* Most products nib_op_linears takes at once. */
#define NIB_OP_MAX_PRODUCTS 4

typedef struct nib_rope {
    const float *inv_freq; /* (n_pairs) */
    uint32_t n_pairs;
    bool neox;
} nib_rope;

/* A new value holding the embedding rows of the batch's tokens. */
nib_value nib_op_embed(nib_op_context *context, nib_weight weight);
/* A new value: RMSNorm(x; weight). */
nib_value nib_op_norm(nib_op_context *context, nib_value x, nib_weight weight, float eps);
/* In place, over each head of x by itself. */
void nib_op_norm_heads(nib_op_context *context, nib_value x, nib_weight weight, uint32_t head_dim, float eps);
/* A new value: x W^T + bias; bias may be NIB_NO_WEIGHT. */
nib_value nib_op_linear(nib_op_context *context, nib_value x, nib_weight weight, nib_weight bias);
/* Several products of one input: out[i] = x W_i^T + b_i. biases may be NULL. */
void nib_op_linears(nib_op_context *context, nib_value x, const nib_weight *weights, const nib_weight *biases,
                    uint32_t n, nib_value *out);
/* The same into a value that exists. */
void nib_op_linear_into(nib_op_context *context, nib_value x, nib_weight weight, nib_weight bias, nib_value out);
/* In place, by the positions of the batch's tokens. */
void nib_op_rope(nib_op_context *context, nib_value x, const nib_rope *rope, uint32_t head_dim);
/* Stores k and v of `layer` in the cache and attends: (n_tokens, n_head * head_dim). window: positions a token sees, itself
 * included; 0 = all before it. */
nib_value nib_op_attend(nib_op_context *context, uint32_t layer, nib_value q, nib_value k, nib_value v, uint32_t n_head,
                        float scale, uint32_t window);
/* Stacks of feed-forward networks, one per expert. */
typedef struct nib_expert_stacks {
    nib_weight gate, up, down; /* stacks of n_experts matrices */
    uint32_t n_used;           /* experts of a token */
} nib_expert_stacks;
/* A new value: sum over a token's n_used experts e of the largest probability p_e of p_e / (their sum) *
 * down_e(silu(gate_e x) * up_e x), p the softmax of the router's logits (n_rows, n_experts). Of equals the first. */
nib_value nib_op_experts(nib_op_context *context, nib_value x, nib_value logits, const nib_expert_stacks *experts);
/* silu(gate) * up, into gate. */
void nib_op_swiglu(nib_op_context *context, nib_value gate, nib_value up);
/* x += y */
void nib_op_add(nib_op_context *context, nib_value x, nib_value y);
/* In place: keeps only the rows whose results are wanted. */
void nib_op_keep_wanted(nib_op_context *context, nib_value x);
/* The value is not needed any more; its memory serves the next. */
void nib_op_free(nib_op_context *context, nib_value x);

#endif
