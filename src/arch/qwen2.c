/* qwen2: llama with biases on q, k and v, and rotary pairs half a head apart (i, i + n_rot/2).
 * Yang et al. 2024, arXiv:2407.10671. */
#include "arch/arch.h"

static const nib_hyper_row hyper[] = {NIB_DECODER_HYPER};

static const nib_tensor_row tensors[] = {NIB_DECODER_TENSORS};

static void block(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    nib_value q, k, v;
    nib_decoder_qkv(context, graph, layer, x, &q, &k, &v);
    nib_op_rope(context, q, &graph->rope, graph->hyper.head_dim);
    nib_op_rope(context, k, &graph->rope, graph->hyper.head_dim);
    nib_decoder_attend(context, graph, layer, x, q, k, v);
    nib_decoder_feed_forward(context, graph, layer, x);
}

const nib_arch nib_arch_qwen2 = {
    .name = "qwen2",
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
