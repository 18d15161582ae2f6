/* What decoders share: the pieces around the parts that differ. */
#include "arch/arch.h"

nib_value nib_decoder_input(nib_op_context *context, const nib_graph *graph) {
    return nib_op_embed(context, graph->trunk.token_embd);
}

void nib_decoder_qkv(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x, nib_value *q,
                     nib_value *k, nib_value *v) {
    const nib_block *w = &graph->blocks[layer];
    const nib_weight weights[] = {w->attn_q, w->attn_k, w->attn_v};
    const nib_weight biases[] = {w->attn_q_bias, w->attn_k_bias, w->attn_v_bias};
    nib_value out[3];
    const nib_value h = nib_op_norm(context, x, w->attn_norm, graph->hyper.eps);
    nib_op_linears(context, h, weights, biases, 3, out);
    nib_op_free(context, h);
    *q = out[0];
    *k = out[1];
    *v = out[2];
}

void nib_decoder_attend(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x, nib_value q,
                        nib_value k, nib_value v) {
    const nib_block *w = &graph->blocks[layer];
    const nib_value heads = nib_op_attend(context, layer, q, k, v, graph->hyper.n_head, graph->hyper.attn_scale, 0);
    nib_op_free(context, q);
    nib_op_free(context, k);
    nib_op_free(context, v);
    if (layer + 1 == graph->hyper.n_layer) {
        nib_op_keep_wanted(context, heads);
        nib_op_keep_wanted(context, x);
    }
    const nib_value mixed = nib_op_linear(context, heads, w->attn_output, w->attn_output_bias);
    nib_op_free(context, heads);
    nib_op_add(context, x, mixed);
    nib_op_free(context, mixed);
}

void nib_decoder_attend_normed(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    const nib_hyper *h = &graph->hyper;
    const nib_block *w = &graph->blocks[layer];
    nib_value q, k, v;
    nib_decoder_qkv(context, graph, layer, x, &q, &k, &v);
    nib_op_norm_heads(context, q, w->attn_q_norm, h->head_dim, h->eps);
    nib_op_norm_heads(context, k, w->attn_k_norm, h->head_dim, h->eps);
    nib_op_rope(context, q, &graph->rope, h->head_dim);
    nib_op_rope(context, k, &graph->rope, h->head_dim);
    nib_decoder_attend(context, graph, layer, x, q, k, v);
}

void nib_decoder_feed_forward(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    const nib_block *w = &graph->blocks[layer];
    const nib_weight weights[] = {w->ffn_gate, w->ffn_up}, biases[] = {w->ffn_gate_bias, w->ffn_up_bias};
    nib_value wide[2];
    const nib_value h = nib_op_norm(context, x, w->ffn_norm, graph->hyper.eps);
    nib_op_linears(context, h, weights, biases, 2, wide);
    nib_op_free(context, h);
    nib_op_swiglu(context, wide[0], wide[1]);
    nib_op_free(context, wide[1]);
    const nib_value down = nib_op_linear(context, wide[0], w->ffn_down, w->ffn_down_bias);
    nib_op_free(context, wide[0]);
    nib_op_add(context, x, down);
    nib_op_free(context, down);
}

void nib_decoder_experts(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x) {
    const nib_block *w = &graph->blocks[layer];
    const nib_expert_stacks experts = {
        .gate = w->experts_gate, .up = w->experts_up, .down = w->experts_down, .n_used = graph->hyper.n_expert_used};
    const nib_value h = nib_op_norm(context, x, w->ffn_norm, graph->hyper.eps);
    const nib_value logits = nib_op_linear(context, h, w->experts_router, NIB_NO_WEIGHT);
    const nib_value mixed = nib_op_experts(context, h, logits, &experts);
    nib_op_free(context, h);
    nib_op_free(context, logits);
    nib_op_add(context, x, mixed);
    nib_op_free(context, mixed);
}

nib_value nib_decoder_output(nib_op_context *context, const nib_graph *graph, nib_value x) {
    const nib_value hidden = nib_op_norm(context, x, graph->trunk.output_norm, graph->hyper.eps);
    nib_op_free(context, x);
    return hidden;
}

void nib_decoder_head(nib_op_context *context, const nib_graph *graph, nib_value hidden, nib_value logits) {
    nib_op_linear_into(context, hidden, graph->trunk.output, NIB_NO_WEIGHT, logits);
}

nib_value nib_arch_forward(const nib_arch *arch, nib_op_context *context, const nib_graph *graph) {
    const nib_value x = arch->input(context, graph);
    for (uint32_t layer = 0; layer < graph->hyper.n_layer; layer++) arch->block(context, graph, layer, x);
    return arch->output(context, graph, x);
}
