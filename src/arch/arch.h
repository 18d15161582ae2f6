/* An architecture is one file and one row in archs.def: two tables and a function.
 *
 *   hyper    which metadata keys it has, their bounds and defaults   -> nib_hyper
 *   tensors  which weights it has, their names and shapes            -> handles in nib_trunk and nib_block
 *   block    what one layer computes, in operations of op/op.h
 *
 * The tables drive loading, shape checks and planning; nothing else knows an architecture's names. What several
 * architectures share stands in decoder.c, to be called, and in the macros below, to be listed. */
#ifndef NIB_ARCH_ARCH_H
#define NIB_ARCH_ARCH_H

#include "base/error.h"
#include "nibble/gguf.h"
#include "op/op.h"

/* ---- Hyper-parameters ------------------------------------------------------------------------------------------------- */

/* All of them, checked: after nib_hyper_read every product of two of these fits 64 bits and no derived value is missing. */
typedef struct nib_hyper {
    uint32_t n_layer, n_ctx_train, n_embd, n_ff;
    uint32_t n_head, n_head_kv;   /* n_head is a multiple of n_head_kv */
    uint32_t head_dim, value_dim; /* equal */
    uint32_t n_rot;               /* values of a head that turn; even, at most head_dim */
    uint32_t n_vocab;             /* as the metadata say, 0 if they do not; set to the vocabulary's size by the model */
    uint32_t n_expert, n_expert_used, n_ff_expert; /* 0: no experts */
    float eps;
    float rope_base, rope_factor, rope_attn_factor; /* positions are divided by rope_factor */
    float attn_scale;                               /* of q.k */
} nib_hyper;

typedef enum nib_hyper_kind {
    NIB_HYPER_U32,
    NIB_HYPER_U32_LAYERS, /* one for all layers, or an array of one per layer whose entries are equal */
    NIB_HYPER_F32,
} nib_hyper_kind;

typedef struct nib_hyper_row {
    const char *key; /* after "ARCH." */
    nib_hyper_kind kind;
    size_t offset; /* in nib_hyper */
    bool required;
    double otherwise; /* value if absent; 0 where nib_hyper_read derives one */
    double min, max;  /* bounds of a value that is present */
} nib_hyper_row;

#define NIB_REQUIRED(key, kind, member, min, max) \
    { key, kind, offsetof(nib_hyper, member), true, 0, min, max }
#define NIB_OPTIONAL(key, kind, member, otherwise, min, max) \
    { key, kind, offsetof(nib_hyper, member), false, otherwise, min, max }

/* Of every decoder with rotary attention and a gated feed-forward network. n_layer comes first: arrays are checked against
 * it. 512 layers is llama.cpp's limit; the others are far above any model and keep all products small. */
#define NIB_DECODER_HYPER                                                                        \
    NIB_REQUIRED("block_count", NIB_HYPER_U32, n_layer, 1, 512),                                 \
        NIB_REQUIRED("context_length", NIB_HYPER_U32, n_ctx_train, 1, INT32_MAX),                \
        NIB_REQUIRED("embedding_length", NIB_HYPER_U32, n_embd, 1, 1 << 20),                     \
        NIB_REQUIRED("feed_forward_length", NIB_HYPER_U32_LAYERS, n_ff, 1, 1 << 24),             \
        NIB_REQUIRED("attention.head_count", NIB_HYPER_U32_LAYERS, n_head, 1, 1 << 12),          \
        NIB_OPTIONAL("attention.head_count_kv", NIB_HYPER_U32_LAYERS, n_head_kv, 0, 1, 1 << 12), \
        NIB_OPTIONAL("attention.key_length", NIB_HYPER_U32, head_dim, 0, 1, 1 << 12),            \
        NIB_OPTIONAL("attention.value_length", NIB_HYPER_U32, value_dim, 0, 1, 1 << 12),         \
        NIB_OPTIONAL("attention.scale", NIB_HYPER_F32, attn_scale, 0, 0, 1e6),                   \
        NIB_REQUIRED("attention.layer_norm_rms_epsilon", NIB_HYPER_F32, eps, 0, 1),              \
        NIB_OPTIONAL("rope.freq_base", NIB_HYPER_F32, rope_base, 10000, 1, 1e15),                \
        NIB_OPTIONAL("rope.dimension_count", NIB_HYPER_U32, n_rot, 0, 2, 1 << 12),               \
        NIB_OPTIONAL("rope.scale_linear", NIB_HYPER_F32, rope_factor, 0, 0, 1e6),                \
        NIB_OPTIONAL("rope.scaling.factor", NIB_HYPER_F32, rope_factor, 0, 0, 1e6),              \
        NIB_OPTIONAL("rope.scaling.attn_factor", NIB_HYPER_F32, rope_attn_factor, 1, 0, 1e6),    \
        NIB_OPTIONAL("vocab_size", NIB_HYPER_U32, n_vocab, 0, 1, INT32_MAX),                     \
        NIB_OPTIONAL("expert_count", NIB_HYPER_U32, n_expert, 0, 0, 1 << 16),                    \
        NIB_OPTIONAL("expert_used_count", NIB_HYPER_U32, n_expert_used, 0, 0, 1 << 16)

/* Of those with experts, after the others. */
#define NIB_EXPERT_HYPER NIB_REQUIRED("expert_feed_forward_length", NIB_HYPER_U32_LAYERS, n_ff_expert, 1, 1 << 24)

/* ---- Tensors ---------------------------------------------------------------------------------------------------------- */

/* Handles of the weights outside the layers. */
typedef struct nib_trunk {
    nib_weight token_embd, output_norm, output, rope_freqs;
} nib_trunk;

/* Handles of one layer's weights. */
typedef struct nib_block {
    nib_weight attn_norm, attn_q, attn_k, attn_v, attn_output, attn_q_norm, attn_k_norm;
    nib_weight attn_q_bias, attn_k_bias, attn_v_bias, attn_output_bias;
    nib_weight ffn_norm, ffn_gate, ffn_up, ffn_down;
    nib_weight ffn_gate_bias, ffn_up_bias, ffn_down_bias;
    nib_weight experts_router, experts_gate, experts_up, experts_down;
} nib_block;

/* What a dimension of a tensor is. */
typedef enum nib_dim {
    NIB_DIM_NONE, /* no such dimension */
    NIB_DIM_EMBD,
    NIB_DIM_VOCAB,
    NIB_DIM_HEAD,     /* head_dim */
    NIB_DIM_HEADS,    /* n_head * head_dim */
    NIB_DIM_HEADS_KV, /* n_head_kv * head_dim */
    NIB_DIM_FF,
    NIB_DIM_EXPERTS,
    NIB_DIM_FF_EXPERT,
    NIB_DIM_ROPE_PAIRS, /* n_rot / 2 */
} nib_dim;

typedef struct nib_tensor_row {
    const char *name; /* of layers: after "blk.N." */
    bool in_block;
    size_t offset; /* of the handle, in nib_block or nib_trunk */
    bool optional;
    nib_dim cols, rows; /* ne[0], ne[1]; rows NIB_DIM_NONE: a vector */
    nib_dim stack;      /* ne[2]: as many matrices; NIB_DIM_NONE: one */
} nib_tensor_row;

#define NIB_TRUNK(member, name, optional, cols, rows) \
    { name, false, offsetof(nib_trunk, member), optional, NIB_DIM_##cols, NIB_DIM_##rows, NIB_DIM_NONE }
#define NIB_BLOCK(member, name, optional, cols, rows) \
    { name, true, offsetof(nib_block, member), optional, NIB_DIM_##cols, NIB_DIM_##rows, NIB_DIM_NONE }
/* One matrix per expert. */
#define NIB_EXPERTS(member, name, cols, rows) \
    { name, true, offsetof(nib_block, member), false, NIB_DIM_##cols, NIB_DIM_##rows, NIB_DIM_EXPERTS }

/* Of every such decoder: an absent output matrix is tied to the embedding; biases of q, k, v are taken where they are. */
#define NIB_ATTENTION_TENSORS                                             \
    NIB_TRUNK(token_embd, "token_embd.weight", false, EMBD, VOCAB),       \
        NIB_TRUNK(output_norm, "output_norm.weight", false, EMBD, NONE),  \
        NIB_TRUNK(output, "output.weight", true, EMBD, VOCAB),            \
        NIB_BLOCK(attn_norm, "attn_norm.weight", false, EMBD, NONE),      \
        NIB_BLOCK(attn_q, "attn_q.weight", false, EMBD, HEADS),           \
        NIB_BLOCK(attn_k, "attn_k.weight", false, EMBD, HEADS_KV),        \
        NIB_BLOCK(attn_v, "attn_v.weight", false, EMBD, HEADS_KV),        \
        NIB_BLOCK(attn_q_bias, "attn_q.bias", true, HEADS, NONE),         \
        NIB_BLOCK(attn_k_bias, "attn_k.bias", true, HEADS_KV, NONE),      \
        NIB_BLOCK(attn_v_bias, "attn_v.bias", true, HEADS_KV, NONE),      \
        NIB_BLOCK(attn_output, "attn_output.weight", false, HEADS, EMBD), \
        NIB_BLOCK(ffn_norm, "ffn_norm.weight", false, EMBD, NONE)
#define NIB_DECODER_TENSORS                                                         \
    NIB_ATTENTION_TENSORS, NIB_BLOCK(ffn_gate, "ffn_gate.weight", false, EMBD, FF), \
        NIB_BLOCK(ffn_up, "ffn_up.weight", false, EMBD, FF), NIB_BLOCK(ffn_down, "ffn_down.weight", false, FF, EMBD)
/* Instead of one feed-forward network many small ones, of which a router chooses a few for each token. */
#define NIB_EXPERT_TENSORS                                                                         \
    NIB_ATTENTION_TENSORS, NIB_BLOCK(experts_router, "ffn_gate_inp.weight", false, EMBD, EXPERTS), \
        NIB_EXPERTS(experts_gate, "ffn_gate_exps.weight", EMBD, FF_EXPERT),                        \
        NIB_EXPERTS(experts_up, "ffn_up_exps.weight", EMBD, FF_EXPERT),                            \
        NIB_EXPERTS(experts_down, "ffn_down_exps.weight", FF_EXPERT, EMBD)

/* ---- Architecture ----------------------------------------------------------------------------------------------------- */

/* What a forward function needs to know of the model; the numbers stay behind the handles. */
typedef struct nib_graph {
    nib_hyper hyper;
    nib_trunk trunk;
    nib_block *blocks; /* (n_layer) */
    nib_rope rope;
} nib_graph;

typedef struct nib_arch {
    const char *name;
    const nib_hyper_row *hyper;
    uint32_t n_hyper;
    const nib_tensor_row *tensors;
    uint32_t n_tensors;
    bool rope_neox;   /* pairs (i, i + n_rot/2) turn together, else (2i, 2i + 1) */
    bool has_experts; /* in every layer */
    /* The residual stream before the first layer: (n_tokens, n_embd). */
    nib_value (*input)(nib_op_context *context, const nib_graph *graph);
    /* One layer, in place; after the last one only the wanted rows are left. */
    void (*block)(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x);
    /* Final hidden states, normalised: a new value, x is freed. */
    nib_value (*output)(nib_op_context *context, const nib_graph *graph, nib_value x);
    /* hidden (n_rows, n_embd) -> logits (n_rows, n_vocab), both there already. */
    void (*head)(nib_op_context *context, const nib_graph *graph, nib_value hidden, nib_value logits);
} nib_arch;

#define NIB_COUNT(array) ((uint32_t)(sizeof(array) / sizeof *(array)))

/* NULL if unknown; index: in the order of archs.def, NULL past the last. */
const nib_arch *nib_arch_find(nib_text name);
const nib_arch *nib_arch_at(unsigned index);

/* Which architecture a file is of. NIB_ERR_CORRUPT if it does not say, NIB_ERR_UNSUPPORTED if it is not one of these. */
nib_status nib_arch_of(const nib_gguf *gguf, const nib_arch **out, nib_error *error);
/* Reads and checks the hyper-parameters. NIB_ERR_CORRUPT: missing, of the wrong type or out of bounds (key named).
 * NIB_ERR_UNSUPPORTED: experts, layers that differ, ways of stretching positions that are not computed. */
nib_status nib_hyper_read(const nib_arch *arch, const nib_gguf *gguf, nib_hyper *out, nib_error *error);
/* Length of a dimension; 1 for NIB_DIM_NONE. */
uint64_t nib_dim_of(const nib_hyper *hyper, nib_dim dim);

/* The whole model but the head: final hidden states of the wanted tokens. */
nib_value nib_arch_forward(const nib_arch *arch, nib_op_context *context, const nib_graph *graph);

/* ---- Shared pieces of forward functions ------------------------------------------------------------------------------- */

/* Embedding rows as they are. */
nib_value nib_decoder_input(nib_op_context *context, const nib_graph *graph);
/* Queries, keys and values of RMSNorm(x; attn_norm), biases added where there are any. */
void nib_decoder_qkv(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x, nib_value *q,
                     nib_value *k, nib_value *v);
/* x += attn_output * attention(q, k, v); frees q, k, v. In the last layer x keeps its wanted rows only. */
void nib_decoder_attend(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x, nib_value q,
                        nib_value k, nib_value v);
/* All of attention where each head of q and k has an RMSNorm before it turns. */
void nib_decoder_attend_normed(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x);
/* x += down(silu(gate h) * up h), h = RMSNorm(x; ffn_norm). */
void nib_decoder_feed_forward(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x);
/* The same with experts: each token's n_expert_used best by softmax over the router's logits, weighted by these
 * probabilities made to sum to 1. */
void nib_decoder_experts(nib_op_context *context, const nib_graph *graph, uint32_t layer, nib_value x);
/* RMSNorm(x; output_norm). */
nib_value nib_decoder_output(nib_op_context *context, const nib_graph *graph, nib_value x);
/* The output matrix. */
void nib_decoder_head(nib_op_context *context, const nib_graph *graph, nib_value hidden, nib_value logits);

#endif
