/* Text to token ids and back, choosing the next token, and the shapes of a chat.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_TEXT_H
#define NIBBLE_TEXT_H

#include "nibble/gguf.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Tokenizer --------------------------------------------------------------------------------------------------- */

typedef struct nib_tokenizer nib_tokenizer;

typedef struct nib_tokenizer_facts {
    const char *model; /* "gpt2" (byte-level BPE), "llama" (SentencePiece), ... as stored */
    const char *pre;   /* pre-tokenizer name as stored; "default" if absent */
    bool can_tokenize; /* false: ids and pieces work, text to ids is NIB_ERR_UNSUPPORTED */
    uint32_t n_vocab;
    int32_t bos, eos; /* -1 if none */
    bool add_bos, add_eos;
} nib_tokenizer_facts;

/* Builds the tokenizer stored in a GGUF file's metadata (a vocabulary-only file of any architecture will do); copies what
 * it needs. NIB_ERR_CORRUPT if the vocabulary is broken (every array checked) or if there is none: field says which. */
NIB_API nib_status nib_tokenizer_new(const nib_gguf *gguf, nib_tokenizer **out, nib_error *error);
NIB_API void nib_tokenizer_free(nib_tokenizer *tokenizer);
NIB_API const nib_tokenizer_facts *nib_tokenizer_facts_of(const nib_tokenizer *tokenizer);

/* A growing list of token ids. {0} is empty; free ids with nib_ids_fini. */
typedef struct nib_ids {
    int32_t *ids;
    size_t n, capacity;
} nib_ids;
NIB_API void nib_ids_fini(nib_ids *ids);

/* Appends the tokens of text to out. add_special: BOS/EOS as the vocabulary asks; parse_special: the texts of control
 * tokens in the text become those tokens. Same ids as llama.cpp. Thread-safe on one tokenizer.
 * NIB_ERR_UNSUPPORTED: this kind of vocabulary or pre-tokenizer cannot tokenize yet (named). */
NIB_API nib_status nib_tokenize(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes, bool add_special,
                                bool parse_special, nib_ids *out, nib_error *error);

/* The bytes of a token as it appears in running text, borrowed; control tokens are empty unless special.
 * {NULL, 0} if id is out of range. */
NIB_API nib_text nib_token_piece(const nib_tokenizer *tokenizer, int32_t id, bool special);
/* The id whose stored text is exactly this; -1 if none. */
NIB_API int32_t nib_token_find(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes);
/* Does this token end a generation (EOS, end of turn, ...)? */
NIB_API bool nib_token_ends(const nib_tokenizer *tokenizer, int32_t id);
/* Is this a control token (never plain text)? */
NIB_API bool nib_token_is_control(const nib_tokenizer *tokenizer, int32_t id);

/* ---- Sampling ----------------------------------------------------------------------------------------------------- */

typedef struct nib_sampler_params {
    float temperature; /* 0 = greedy (first of the largest) */
    uint32_t top_k;    /* 0 = all */
    float top_p;       /* 1 = all */
    float min_p;       /* 0 = off: drop what is less likely than min_p times the likeliest */
    uint64_t seed;
} nib_sampler_params;

/* { temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, seed 0 } */
NIB_API nib_sampler_params nib_sampler_defaults(void);

typedef struct nib_sampler nib_sampler;
NIB_API nib_status nib_sampler_new(const nib_sampler_params *params, uint32_t n_vocab, nib_sampler **out,
                                   nib_error *error);
NIB_API void nib_sampler_free(nib_sampler *sampler);
/* logits: (n_vocab), unchanged. The same seed, parameters and logits give the same ids. */
NIB_API int32_t nib_sampler_next(nib_sampler *sampler, const float *logits);

/* ---- Chat --------------------------------------------------------------------------------------------------------- */

typedef enum nib_chat_shape { NIB_CHAT_NONE, NIB_CHAT_CHATML, NIB_CHAT_LLAMA3 } nib_chat_shape;

/* Which shape the model speaks, judged by its stored template and the control tokens it has. */
NIB_API nib_chat_shape nib_chat_shape_of(const nib_gguf *gguf, const nib_tokenizer *tokenizer);

/* Appends the tokens of one turn ("system", "user", "assistant") and its end; text is never parsed for control tokens,
 * so a user cannot forge one. first: this is the first turn (BOS if the vocabulary wants it). */
NIB_API nib_status nib_chat_add_turn(const nib_tokenizer *tokenizer, nib_chat_shape shape, bool first, const char *role,
                                     const char *text, size_t n_bytes, nib_ids *out, nib_error *error);
/* Appends the opening of the assistant's turn, after which the model speaks. */
NIB_API nib_status nib_chat_open_answer(const nib_tokenizer *tokenizer, nib_chat_shape shape, nib_ids *out,
                                        nib_error *error);

#ifdef __cplusplus
}
#endif
#endif
