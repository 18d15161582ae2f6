/* qwen3: qwen2 with an RMSNorm over each head of q and k before they turn (one weight vector of head_dim for all heads), and
 * a head size of its own: n_head * head_dim need not be n_embd.
 * Yang et al. 2025, arXiv:2505.09388. */
#include "arch/arch.h"

static const nib_hyper_row hyper[] = {NIB_DECODER_HYPER};

static const nib_tensor_row tensors[] = {
    NIB_DECODER_TENSORS,
    NIB_BLOCK(attn_q_norm, "attn_q_norm.weight", false, HEAD, NONE),
    NIB_BLOCK(attn_k_norm, "attn_k_norm.weight", false, HEAD, NONE),
};

static void block(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    nib_decoder_attend_normed(context, graph, layer, x);
    nib_decoder_feed_forward(context, graph, layer, x);
}

const nib_arch nib_arch_qwen3 = {
    .name = "qwen3",
    .hyper = hyper,
    .n_hyper = NIB_COUNT(hyper),
    .tensors = tensors,
    .n_tensors = NIB_COUNT(tensors),
    .rope_neox = true,
    .input = nib_decoder_input,
    .block = block,
    .output = nib_decoder_output,
    .head = nib_decoder_head,
};
