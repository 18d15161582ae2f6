/* qwen3moe: qwen3 with experts in place of the feed-forward network, in every layer.
 * Yang et al. 2025, arXiv:2505.09388. */
#include "arch/arch.h"

static const nib_hyper_row hyper[] = {NIB_DECODER_HYPER, NIB_EXPERT_HYPER};

static const nib_tensor_row tensors[] = {
    NIB_EXPERT_TENSORS,
    NIB_BLOCK(attn_q_norm, "attn_q_norm.weight", false, HEAD, NONE),
    NIB_BLOCK(attn_k_norm, "attn_k_norm.weight", false, HEAD, NONE),
};

static void block(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    const nib_hyper *h = &graph->hyper;
    const nib_block *w = &graph->blocks[layer];
    nib_value q, k, v;
    nib_decoder_qkv(context, graph, layer, x, &q, &k, &v);
    nib_op_norm_heads(context, q, w->attn_q_norm, h->head_dim, h->eps);
    nib_op_norm_heads(context, k, w->attn_k_norm, h->head_dim, h->eps);
    nib_op_rope(context, q, &graph->rope, h->head_dim);
    nib_op_rope(context, k, &graph->rope, h->head_dim);
    nib_decoder_attend(context, graph, layer, x, q, k, v);
    nib_decoder_experts(context, graph, layer, x);
}

const nib_arch nib_arch_qwen3moe = {
    .name = "qwen3moe",
    .hyper = hyper,
    .n_hyper = NIB_COUNT(hyper),
    .tensors = tensors,
    .n_tensors = NIB_COUNT(tensors),
    .rope_neox = true,
    .has_experts = true,
    .input = nib_decoder_input,
    .block = block,
    .output = nib_decoder_output,
    .head = nib_decoder_head,
};
