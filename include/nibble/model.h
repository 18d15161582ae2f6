/* Models and sessions: from a GGUF file to logits.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_MODEL_H
#define NIBBLE_MODEL_H

#include "nibble/gguf.h"
#include "nibble/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Model: hyper-parameters and weights, checked; weights stay in the mapped file ---------------------------------- */

typedef struct nib_model nib_model;

typedef struct nib_model_facts {
    const char *arch; /* "llama", "qwen2", ... */
    const char *name; /* general.name or the file's name */
    uint32_t n_vocab, n_ctx_train, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff;
    uint32_t n_expert, n_expert_used, n_ff_expert; /* 0 without experts */
    uint64_t n_params;                             /* all elements of all tensors */
    uint64_t weight_bytes;                         /* all payloads */
    double bpw;                                    /* 8 * weight_bytes / n_params */
} nib_model_facts;

/* Opens and validates a model of an architecture nibble runs. The GGUF stays open inside.
 * NIB_ERR_UNSUPPORTED: unknown architecture, or a tensor type that cannot be decoded yet (named).
 * NIB_ERR_CORRUPT: hyper-parameters out of bounds, tensors missing or of the wrong shape (named), broken vocabulary.
 * Tensors no part uses are reported through watch->warn. */
NIB_API nib_status nib_model_open(const char *path, const nib_watch *watch, nib_model **out, nib_error *error);
NIB_API void nib_model_close(nib_model *model);
NIB_API const nib_model_facts *nib_model_facts_of(const nib_model *model);
NIB_API const nib_gguf *nib_model_gguf(const nib_model *model);
/* NULL if the file has no vocabulary. */
NIB_API const nib_tokenizer *nib_model_tokenizer(const nib_model *model);
/* The tokenizer if it can turn text into ids; otherwise NULL and the error that says why: NIB_ERR_CORRUPT (none in the
 * file) or NIB_ERR_UNSUPPORTED. */
NIB_API const nib_tokenizer *nib_model_text_tokenizer(const nib_model *model, nib_error *error);
/* Architectures that run, NULL past the last. */
NIB_API const char *nib_model_arch_at(unsigned index);

/* What one token costs on the deployed path, attention aside. */
typedef struct nib_token_cost {
    uint64_t int8_macs, bf16_macs, f32_macs; /* multiply-adds of the matrices, by what is multiplied */
    uint64_t weight_bytes;                   /* of these matrices; of experts only as many as a token uses */
} nib_token_cost;
/* each: of every token; wanted: what those whose logits are wanted cost on top, the rest of the last layer and the output
 * matrix. */
NIB_API nib_status nib_model_token_cost(const nib_model *model, nib_token_cost *each, nib_token_cost *wanted,
                                        nib_error *error);

/* ---- Session: a KV cache and the scratch to run batches -------------------------------------------------------------- */

typedef struct nib_session nib_session;

/* How the deployed path keeps keys and values. */
typedef enum nib_kv {
    NIB_KV_F16,
    NIB_KV_Q8_0, /* 8-bit codes with a scale per 32 values: about half the memory, not lossless; heads of whole 32s only */
} nib_kv;
/* "f16", "q8_0" */
NIB_API const char *nib_kv_name(nib_kv kv);

typedef struct nib_session_params {
    uint32_t n_ctx;   /* positions per sequence; at least 1 */
    uint32_t n_seq;   /* independent sequences; 0 = 1 */
    uint32_t n_batch; /* most tokens run at once; longer runs are cut; 0 = 512 */
    bool exact;       /* exact path: decoded weights in f32 times f32 activations, f32 KV cache, sums in a fixed order.
                         Otherwise the deployed path: integer activations where the format's kernels want them. */
    nib_kv kv;        /* deployed path: format of the KV cache */
} nib_session_params;

/* What a session takes, by category, before it is taken. */
typedef struct nib_memory_plan {
    uint64_t weights;        /* mapped file bytes, shared, not anonymous */
    uint64_t kv_cache;       /* n_seq * n_ctx positions */
    uint64_t kv_per_token;   /* one position */
    uint64_t scratch;        /* activations and per-worker buffers */
    uint64_t macs_per_token; /* multiply-adds of the matrices for one token, head included */
} nib_memory_plan;

/* NIB_ERR_UNSUPPORTED: a KV format that does not fit the model's heads. */
NIB_API nib_status nib_session_plan(const nib_model *model, const nib_session_params *params, unsigned n_threads,
                                    nib_memory_plan *out, nib_error *error);
/* The model and the pool must outlive the session. */
NIB_API nib_status nib_session_new(const nib_model *model, nib_pool *pool, const nib_session_params *params,
                                   nib_session **out, nib_error *error);
NIB_API void nib_session_free(nib_session *session);

/* A run of consecutive tokens of one sequence. */
typedef struct nib_segment {
    uint32_t seq;       /* < n_seq */
    uint32_t pos;       /* position of the first token; everything cached at and after it is forgotten */
    uint32_t n;         /* tokens, at least 1; pos + n <= n_ctx; pos <= positions cached so far */
    const int32_t *ids; /* (n), each in the vocabulary */
    uint32_t out_from;  /* final hidden states are wanted of tokens out_from .. n-1; n = of none */
} nib_segment;

/* Runs the segments (each sequence at most once) through all layers and writes the final normalised hidden states of the
 * wanted tokens, in order of segments: hidden (sum of n - out_from, n_embd). hidden may be NULL if none are wanted.
 * Errors: NIB_ERR_USAGE (ids, positions or sequences out of range), NIB_ERR_MEMORY. */
NIB_API nib_status nib_session_run(nib_session *session, const nib_segment *segments, uint32_t n_segments,
                                   float *hidden, nib_error *error);
/* Logits of hidden states: hidden (n_rows, n_embd) -> logits (n_rows, n_vocab). */
NIB_API nib_status nib_session_head(nib_session *session, const float *hidden, uint32_t n_rows, float *logits,
                                    nib_error *error);
/* Those of tokens first .. first + n - 1 of the vocabulary only: logits (n_rows, n). */
NIB_API nib_status nib_session_head_part(nib_session *session, const float *hidden, uint32_t n_rows, uint32_t first,
                                         uint32_t n, float *logits, nib_error *error);
/* Convenience: runs n tokens of sequence 0 from pos and gives the logits of the last one. logits: (n_vocab). */
NIB_API nib_status nib_session_next(nib_session *session, uint32_t pos, const int32_t *ids, uint32_t n, float *logits,
                                    nib_error *error);
/* Copies the first n cached positions of one sequence to another. */
NIB_API nib_status nib_session_copy(nib_session *session, uint32_t from_seq, uint32_t to_seq, uint32_t n,
                                    nib_error *error);
NIB_API const nib_model *nib_session_model(const nib_session *session);

/* ---- Generation ------------------------------------------------------------------------------------------------------- */

typedef enum nib_stop { NIB_STOP_EOS, NIB_STOP_LIMIT, NIB_STOP_LOOP, NIB_STOP_EMPTY, NIB_STOP_CALLER } nib_stop;
/* "eos", "limit", "loop", "empty", "caller" */
NIB_API const char *nib_stop_name(nib_stop stop);

typedef struct nib_generate_params {
    uint32_t n_max;       /* most tokens to generate */
    nib_sampler *sampler; /* NULL = greedy */
    bool stop_at_loop;    /* stop when the last 64 tokens or more are one piece of at most 32 tokens repeated at
                                    least 4 times */
    /* Called with each piece of text, complete UTF-8 characters only (what is left is flushed at the end); return false
     * to stop (NIB_STOP_CALLER). May be NULL. */
    void *user;
    bool (*on_text)(void *user, const char *text, size_t n_bytes);
    const nib_watch *watch; /* told how far a long prompt is (stage "prompt"); may be NULL */
} nib_generate_params;

typedef struct nib_generated {
    nib_ids ids; /* generated tokens without the one that ended it */
    char *text;  /* NUL-terminated, malloc'ed */
    size_t n_bytes;
    nib_stop stop; /* NIB_STOP_EMPTY: it ended by itself having said nothing but white space */
    double prompt_seconds, generate_seconds;
} nib_generated;

/* Continues the prompt in sequence 0 from position n_past: ids (n) are run first, then tokens are generated. Free out with
 * nib_generated_fini whatever is returned. NIB_ERR_USAGE if the prompt does not fit n_ctx. */
NIB_API nib_status nib_generate(nib_session *session, uint32_t n_past, const int32_t *ids, uint32_t n,
                                const nib_generate_params *params, nib_generated *out, nib_error *error);
NIB_API void nib_generated_fini(nib_generated *generated);

/* ---- Random models ---------------------------------------------------------------------------------------------------- */

typedef struct nib_random_params {
    /* "ARCH[:ITEM,ITEM...]": an architecture that runs; items are presets (nib_random_preset_at) or NAME=NUMBER, later
     * ones replace earlier ones. Names: layers, embd, ff, heads, kv, head (values of one head), vocab, ctx, rope, eps,
     * tied (1: no output matrix of its own), and every key of the architecture as GGUF spells it ("rope.freq_base").
     * Without items: 4 layers of 256, 4096 tokens. heads without kv: as many keys and values as queries. */
    const char *spec;
    const nib_format *format; /* of the matrices; a format whose block is one weight; NULL = bf16. Vectors are f32. */
    uint64_t seed;
    bool force; /* replace an existing file */
} nib_random_params;

typedef struct nib_random_made {
    char arch[64];
    uint64_t n_tensors, n_params, n_bytes; /* bytes of the file */
} nib_random_made;

/* Presets: the shapes of models people know. false past the last. shape: what the preset stands for. */
typedef struct nib_random_preset {
    const char *arch, *name, *shape;
} nib_random_preset;
NIB_API bool nib_random_preset_at(unsigned index, nib_random_preset *out);

/* Writes a model of random weights, distributed roughly like those of trained ones: matrices nearly Gaussian with a
 * standard deviation of about 1/sqrt(columns), less by sqrt(2 layers) where they add to the residual stream, columns of
 * different strength, one in 512 two to five times as strong, the same ones in every layer; norms near 1. It has no
 * vocabulary (tokenizer.ggml.model "none"). The bytes depend on spec, format and seed alone, not on threads, processor or
 * compiler. Takes a few megabytes of memory whatever the size.
 * NIB_ERR_USAGE: unknown architecture or name, a value out of its bounds, shapes that do not fit; NIB_ERR_IO: no space. */
NIB_API nib_status nib_random_model(const char *path, const nib_random_params *params, nib_pool *pool,
                                    const nib_watch *watch, nib_random_made *out, nib_error *error);

#ifdef __cplusplus
}
#endif
#endif
