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
    nib_decoder_attend_normed(context, graph, layer, x);
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
