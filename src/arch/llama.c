/* llama: Llama 2 and 3, Mistral, SmolLM and everything made like them.
 *
 *   x --+-- norm -- q,k,v -- rope -- attention -- output --(+)--+-- norm -- gate,up -- silu(gate)*up -- down --(+)--
 *       '---------------------------------------------------'   '-------------------------------------------'
 *
 * Rotary pairs are neighbours (2i, 2i + 1): conversion permuted the rows of q and k to that order. Llama 3 carries divisors
 * of the rotary frequencies in rope_freqs. Mistral's sliding window has no key in GGUF and is not applied.
 * Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783. */
#include "arch/arch.h"

static const nib_hyper_row hyper[] = {NIB_DECODER_HYPER};

static const nib_tensor_row tensors[] = {
    NIB_DECODER_TENSORS,
    NIB_TRUNK(rope_freqs, "rope_freqs.weight", true, ROPE_PAIRS, NONE),
    NIB_BLOCK(attn_output_bias, "attn_output.bias", true, EMBD, NONE),
    NIB_BLOCK(ffn_gate_bias, "ffn_gate.bias", true, FF, NONE),
    NIB_BLOCK(ffn_up_bias, "ffn_up.bias", true, FF, NONE),
    NIB_BLOCK(ffn_down_bias, "ffn_down.bias", true, EMBD, NONE),
};

static void block(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    nib_value q, k, v;
    nib_decoder_qkv(context, graph, layer, x, &q, &k, &v);
    nib_op_rope(context, q, &graph->rope, graph->hyper.head_dim);
    nib_op_rope(context, k, &graph->rope, graph->hyper.head_dim);
    nib_decoder_attend(context, graph, layer, x, q, k, v);
    nib_decoder_feed_forward(context, graph, layer, x);
}

const nib_arch nib_arch_llama = {
    .name = "llama",
    .hyper = hyper,
    .n_hyper = NIB_COUNT(hyper),
    .tensors = tensors,
    .n_tensors = NIB_COUNT(tensors),
    .rope_neox = false,
    .input = nib_decoder_input,
    .block = block,
    .output = nib_decoder_output,
    .head = nib_decoder_head,
};
