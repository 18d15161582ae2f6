/* The numeric work behind the operations, spread over the pool. Everything here knows shapes and numbers, nothing of
 * models. Each level's inner loops live in one table (compiled once per level); these functions choose the level in use.
 * Results do not depend on the number of threads: every output is computed whole by one worker, in a fixed order. */
#ifndef NIB_KERNEL_KERNEL_H
#define NIB_KERNEL_KERNEL_H

#include "base/error.h"
#include "cpu/pool.h"
#include "nibble/format.h"

typedef enum nib_path {
    NIB_PATH_DEPLOYED, /* activations rounded as the format's kernels want them, f16 keys and values */
    NIB_PATH_EXACT,    /* decoded weights in f32, activations in f32, f32 keys and values */
} nib_path;

/* A weight matrix in file layout: n_rows rows of n_cols weights, rows packed one after the other. */
typedef struct nib_matrix {
    const nib_format *format;
    const void *data;
    uint32_t n_cols, n_rows;
} nib_matrix;

/* One product of a group that shares its input. */
typedef struct nib_product {
    nib_matrix weight;
    const float *bias; /* (weight.n_rows) or NULL */
    float *out;        /* (n_tokens, weight.n_rows) */
} nib_product;

/* Scratch for nib_linear with up to n_tokens tokens of up to n_cols columns, whatever the formats. 64-byte aligned. */
size_t nib_linear_scratch_bytes(uint32_t n_cols, uint32_t n_tokens, unsigned n_workers);
/* out[i] = x W_i^T + bias_i for every product; all weights have the same n_cols. x: (n_tokens, n_cols).
 * A few tokens (at most 5) go straight from file layout, where memory sets the pace, more through unpacked panels. */
void nib_linear(nib_pool *pool, nib_path path, const float *x, uint32_t n_tokens, const nib_product *products,
                uint32_t n_products, void *scratch);

/* What weights of a format are when the deployed path multiplies them with many tokens. */
typedef enum nib_multiply {
    NIB_MULTIPLY_INT8,
    NIB_MULTIPLY_BF16,
    NIB_MULTIPLY_F32,
    NIB_MULTIPLY_KINDS,
} nib_multiply;
nib_multiply nib_multiply_of(const nib_format *format);

/* Experts of a batch of tokens: see nib_op_experts. All memory but the weights is the caller's. */
typedef struct nib_expert_work {
    nib_matrix gate, up, down; /* of expert 0; the others follow it */
    uint32_t n_experts, n_used, n_tokens;
    const float *x, *logits; /* (n_tokens, gate.n_cols), (n_tokens, n_experts) */
    void *routes;            /* (n_tokens, nib_experts_route_words) words of 32 bits */
    float *in;               /* (n_tokens, gate.n_cols), its own */
    float *gates, *ups;      /* (n_tokens * n_used, gate.n_rows), its own */
    float *out;              /* (n_tokens, down.n_rows); down.n_rows = gate.n_cols */
} nib_expert_work;
size_t nib_experts_route_words(uint32_t n_experts, uint32_t n_used);
/* scratch: as for nib_linear with n_tokens. */
void nib_experts(nib_pool *pool, nib_path path, const nib_expert_work *work, void *scratch);

/* Decodes rows of an embedding: out (n, weight.n_cols). */
void nib_embed_rows(nib_pool *pool, const nib_matrix *weight, const int32_t *ids, uint32_t n, float *out);

/* y_i = x_i / sqrt(mean x^2 + eps) * w_i over each run of n_cols values; sums of squares in double.
 * x, out: (n_rows, n_cols), may be the same; weight: (n_cols). */
void nib_norm_rows(nib_pool *pool, const float *x, uint32_t n_rows, uint32_t n_cols, const float *weight, float eps,
                   float *out);
/* x += y, n values. */
void nib_add_rows(nib_pool *pool, float *x, const float *y, size_t n);
/* out = silu(gate) * up, n values; out may be gate. */
void nib_swiglu_rows(nib_pool *pool, const float *gate, const float *up, size_t n, float *out);

/* Rotary embedding in place. x: (n_tokens, n_head, head_dim); positions: (n_tokens); the first 2 * n_pairs values of each
 * head turn by positions[t] * inv_freq[i], i < n_pairs. neox: pairs (i, i + n_pairs), else (2i, 2i + 1). */
void nib_rope_rows(nib_pool *pool, float *x, const uint32_t *positions, uint32_t n_tokens, uint32_t n_head,
                   uint32_t head_dim, const float *inv_freq, uint32_t n_pairs, bool neox);

/* How keys and values are kept. */
typedef enum nib_kv_type {
    NIB_KV_TYPE_F32,
    NIB_KV_TYPE_F16,
    NIB_KV_TYPE_Q8_0, /* 8-bit codes, an f16 scale per 32 values of a head */
} nib_kv_type;

/* Keys and values of one layer: (n_seq, n_head_kv) heads of n_ctx positions each, laid out as attention reads them. */
typedef struct nib_kv_layer {
    nib_kv_type type;
    void *keys, *values;
    uint32_t n_ctx, n_head_kv, head_dim;
} nib_kv_layer;

/* One sequence's share of a batch: rows first .. first + n - 1 of q, k, v hold positions pos .. pos + n - 1. */
typedef struct nib_attend_segment {
    uint32_t seq, first, n, pos;
} nib_attend_segment;

/* Can keys and values of this size be kept this way? q8_0: whole groups of 32 only. */
bool nib_kv_fits(nib_kv_type type, uint32_t head_dim);
/* Bytes of one position of one head's keys, or of its values. */
size_t nib_kv_position_bytes(nib_kv_type type, uint32_t head_dim);
/* Bytes of a layer's keys, or of its values. Contexts are padded to multiples of so many positions. */
#define NIB_KV_PAD 64
size_t nib_kv_bytes(nib_kv_type type, uint32_t n_seq, uint32_t n_ctx, uint32_t n_head_kv, uint32_t head_dim);
/* Stores k, v: (n_tokens, n_head_kv, head_dim) of every segment in the cache. */
void nib_kv_store(nib_pool *pool, const nib_kv_layer *kv, const nib_attend_segment *segments, uint32_t n_segments,
                  const float *k, const float *v);
/* Copies the first n positions of one sequence to another. */
void nib_kv_copy(const nib_kv_layer *kv, uint32_t from_seq, uint32_t to_seq, uint32_t n);

/* Scratch for nib_attend over batches of up to n_tokens tokens. */
size_t nib_attend_scratch_bytes(uint32_t n_ctx, uint32_t n_tokens, uint32_t n_head, uint32_t head_dim,
                                unsigned n_workers);
/* Causal attention over the cache, after nib_kv_store. q, out: (n_tokens, n_head, head_dim). Query head h reads kv head
 * h / (n_head / n_head_kv). window: positions a token sees, itself included; 0 = all before it.
 * Softmax in f32 with the maximum subtracted, by pieces of 512 positions that are folded in order. Products in f32 on the
 * exact path and for few queries, else in 16-bit integers, whose error is about that of rounding the queries to f16. So a
 * result does not depend on threads or on which queries share a block; on the deployed path it depends, within that
 * error, on whether its sequence has few or many queries in the batch. */
void nib_attend(nib_pool *pool, nib_path path, const nib_kv_layer *kv, const nib_attend_segment *segments,
                uint32_t n_segments, const float *q, uint32_t n_head, float scale, uint32_t window, float *out,
                void *scratch);

/* Index of the largest value, the first of equals; NaN counts as minus infinity. 0 if there is none larger than that. */
uint32_t nib_row_argmax(const float *x, uint32_t n, float *largest);

/* Softmax and divergence of rows of logits that pass by in pieces, from the first to the last of the vocabulary. Sums are
 * in double and in a fixed order, given the pieces. A row begins as {0}. */
typedef struct nib_softmax {
    double sum; /* of e^(l - max) */
    float max;
    uint32_t n, argmax; /* logits so far; the first of the largest */
} nib_softmax;
/* terms: NULL, or (n) for e^(l - max) of the piece, max being the largest so far. */
void nib_softmax_add(nib_softmax *row, const float *logits, uint32_t n, float *terms);
/* ln sum_i e^l_i; minus infinity if nothing has any probability. */
double nib_softmax_log_sum(const nib_softmax *row);

/* KL divergence of test from base: sum_i p_i (ln p_i - ln q_i) = (sum_i e^a_i (a_i - b_i)) / (sum_i e^a_i) - ln sum_i e^a_i
 * + ln sum_i e^b_i, where a and b are logits less the largest of their row. */
typedef struct nib_divergence {
    double sum;          /* of e^a (a - b) */
    double mass;         /* of e^a */
    float base_max, max; /* of the rows when the last piece was added */
} nib_divergence;
/* A piece of both rows: base_row is complete up to its end, which gave the terms; row is what the piece is added to. */
void nib_divergence_add(nib_divergence *divergence, const nib_softmax *base_row, const float *base,
                        const float *base_terms, nib_softmax *row, const float *logits, uint32_t n);
/* 0 if base has no probability anywhere. */
double nib_divergence_of(const nib_divergence *divergence, const nib_softmax *base_row, const nib_softmax *row);

/* What became of n weights; sums in double in a fixed order. */
typedef struct nib_row_error {
    double sum_squares, sum_squared_errors, max_abs_error;
} nib_row_error;
nib_row_error nib_row_error_of(const float *weights, const float *decoded, size_t n);

#endif
