/* Tokens that are not plain text: which they are, which of them end a generation, and cutting text at them.
 *
 * GGUF stores a type for each token and the ids of a few roles, but files in the wild get both wrong; as in llama.cpp, a
 * token with a well-known text is what its text says. */
#include "text/tokenizer.h"

#include <stdlib.h>

/* ---- Roles ---------------------------------------------------------------------------------------------------------- */

/* A role is named by a key, or else by the first of its texts that the vocabulary has. */
typedef struct role {
    const char *key, *old_key;
    bool ends; /* a generation */
    const char *texts[12];
} role;

static const role roles[] = {
    {"tokenizer.ggml.eot_token_id",
     NULL,
     true,
     {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
      "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"}},
    {"tokenizer.ggml.eom_token_id", NULL, true, {"<|eom_id|>"}},
    {"tokenizer.ggml.fim_pre_token_id",
     "tokenizer.ggml.prefix_token_id",
     false,
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
      "<|prefix|>"}},
    {"tokenizer.ggml.fim_suf_token_id",
     "tokenizer.ggml.suffix_token_id",
     false,
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
      "<|suffix|>"}},
    {"tokenizer.ggml.fim_mid_token_id",
     "tokenizer.ggml.middle_token_id",
     false,
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
      "<|middle|>"}},
    {"tokenizer.ggml.fim_pad_token_id", NULL, true, {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {"tokenizer.ggml.fim_rep_token_id",
     NULL,
     true,
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {"tokenizer.ggml.fim_sep_token_id", NULL, true, {"<|file_sep|>"}},
};

static const char *const ending_texts[] = {"<|eot_id|>",
                                           "<|im_end|>",
                                           "<|end|>",
                                           "<|return|>",
                                           "<|call|>",
                                           "<|flush|>",
                                           "<|calls|>",
                                           "<end_of_turn>",
                                           "<|endoftext|>",
                                           "</s>",
                                           "<|eom_id|>",
                                           "<EOT>",
                                           "_<EOT>",
                                           "[EOT]",
                                           "[EOS]",
                                           "<|end_of_text|>",
                                           "<end_of_utterance>",
                                           "<eos>",
                                           "<turn|>",
                                           "<|tool_response>",
                                           "<｜end▁of▁sentence｜>",
                                           "[e~["};

/* Channel marks that must be seen in the output. */
static const char *const shown_texts[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static nib_token *token_of(nib_tokenizer *tokenizer, const char *text) {
    const int32_t id = nib_token_find(tokenizer, text, strlen(text));
    return id < 0 ? NULL : &tokenizer->tokens[id];
}

static bool ends_with(nib_tokenizer *tokenizer, const char *text) {
    const nib_token *token = token_of(tokenizer, text);
    return token && token->ends;
}

static void find_role(nib_tokenizer *tokenizer, const nib_gguf *gguf, const role *r) {
    uint64_t id;
    nib_token *token = NULL;
    /* Ids past the vocabulary occur in the wild and mean nothing. */
    if (nib_gguf_get_u64(gguf, r->key, &id) && id < tokenizer->facts.n_vocab) token = &tokenizer->tokens[id];
    if (r->old_key && nib_gguf_get_u64(gguf, r->old_key, &id) && id < tokenizer->facts.n_vocab)
        token = &tokenizer->tokens[id];
    for (size_t i = 0; token == NULL && i < COUNT(r->texts) && r->texts[i]; i++) {
        token = token_of(tokenizer, r->texts[i]);
        if (token) token->kind |= NIB_KIND_CONTROL;
    }
    if (token && r->ends) token->ends = true;
}

static void find_endings(nib_tokenizer *tokenizer, const nib_gguf *gguf) {
    for (size_t i = 0; i < COUNT(roles); i++) find_role(tokenizer, gguf, &roles[i]);
    for (size_t i = 0; i < COUNT(ending_texts); i++) {
        nib_token *token = token_of(tokenizer, ending_texts[i]);
        if (token == NULL) continue;
        token->ends = true;
        token->kind |= NIB_KIND_CONTROL;
    }
    for (size_t i = 0; i < COUNT(shown_texts); i++) {
        nib_token *token = token_of(tokenizer, shown_texts[i]);
        if (token) token->kind = NIB_KIND_USER;
    }
    if (tokenizer->facts.eos >= 0) tokenizer->tokens[tokenizer->facts.eos].ends = true;

    /* Where a message has an end of its own, <|end|> only ends a part of it. */
    const bool call = ends_with(tokenizer, "<|call|>") || ends_with(tokenizer, "<|calls|>");
    if (call && ends_with(tokenizer, "<|end|>") &&
        (ends_with(tokenizer, "<|return|>") || ends_with(tokenizer, "<|flush|>"))) {
        nib_token *end = token_of(tokenizer, "<|end|>");
        end->ends = false;
        end->kind = NIB_KIND_USER;
    }
    if (ends_with(tokenizer, "<|tool_response>") && ends_with(tokenizer, "</s>")) {
        nib_token *end = token_of(tokenizer, "</s>");
        end->ends = false;
        end->kind = NIB_KIND_NORMAL;
    }
}

/* ---- What is cut out of text ---------------------------------------------------------------------------------------- */

#define CUT_KINDS     (NIB_KIND_CONTROL | NIB_KIND_USER | NIB_KIND_UNKNOWN)

/* Real ones have a tenth of that; a hostile vocabulary full of long ones must not make every byte of a text expensive. */
#define CUT_MAX_BYTES 512

static bool is_cut(const nib_tokenizer *tokenizer, uint32_t id) {
    return (tokenizer->tokens[id].kind & CUT_KINDS) && tokenizer->strings.spans[id].n <= CUT_MAX_BYTES;
}

static int compare_u32(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

nib_status nib_special_init(nib_tokenizer *tokenizer, const nib_gguf *gguf, nib_error *error) {
    find_endings(tokenizer, gguf);
    size_t n = 0;
    for (uint32_t id = 0; id < tokenizer->facts.n_vocab; id++) n += is_cut(tokenizer, id);
    tokenizer->special_lengths = nib_alloc(n, sizeof *tokenizer->special_lengths);
    if (tokenizer->special_lengths == NULL) return nib_fail_memory(error, n * sizeof *tokenizer->special_lengths);
    n = 0;
    for (uint32_t id = 0; id < tokenizer->facts.n_vocab; id++) {
        if (!is_cut(tokenizer, id)) continue;
        const struct nib_span span = tokenizer->strings.spans[id];
        tokenizer->special_first[(uint8_t)tokenizer->strings.bytes[span.at]] = true;
        tokenizer->special_lengths[n++] = span.n;
    }
    if (n > 0) qsort(tokenizer->special_lengths, n, sizeof *tokenizer->special_lengths, compare_u32);
    for (size_t i = 0; i < n; i++) {
        const uint32_t length = tokenizer->special_lengths[i];
        if (i == 0 || length != tokenizer->special_lengths[i - 1])
            tokenizer->special_lengths[tokenizer->n_special_lengths++] = length;
    }
    return NIB_OK;
}

typedef struct matches {
    nib_fragment *items;
    size_t n, capacity;
} matches;

/* Every place where the text of a special token stands. */
static nib_status find_all(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes, bool parse_special,
                           matches *out, nib_error *error) {
    for (size_t at = 0; at < n_bytes; at++) {
        if (!tokenizer->special_first[(uint8_t)text[at]]) continue;
        for (size_t i = 0; i < tokenizer->n_special_lengths; i++) {
            const uint32_t length = tokenizer->special_lengths[i];
            if (length > n_bytes - at) break;
            const int32_t id = nib_token_find(tokenizer, text + at, length);
            if (id < 0) continue;
            const uint8_t kind = tokenizer->tokens[id].kind;
            if (!(kind & CUT_KINDS)) continue;
            if (!parse_special && (kind & (NIB_KIND_CONTROL | NIB_KIND_UNKNOWN))) continue;
            if (!nib_grow((void **)&out->items, &out->capacity, out->n + 1, sizeof *out->items))
                return nib_fail_memory(error, out->n * sizeof *out->items);
            out->items[out->n++] = (nib_fragment){(uint32_t)at, (uint32_t)at + length, id};
        }
    }
    return NIB_OK;
}

static int compare_turn(const void *a, const void *b) {
    const nib_fragment *x = a, *y = b;
    const uint32_t n_x = x->end - x->begin, n_y = y->end - y->begin;
    if (n_x != n_y) return n_x > n_y ? -1 : 1;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static int compare_place(const void *a, const void *b) {
    return compare_u32(&((const nib_fragment *)a)->begin, &((const nib_fragment *)b)->begin);
}

/* Longest first, then by id, then from the left: a match stands unless an earlier one took some of its bytes. What took
 * them is at least as long, so it covers the first or the last byte. Keeps those that stand, by place. */
static nib_status keep_standing(matches *found, size_t n_bytes, nib_error *error) {
    uint8_t *taken = nib_alloc(n_bytes, 1);
    if (taken == NULL) return nib_fail_memory(error, n_bytes);
    size_t n = 0;
    qsort(found->items, found->n, sizeof *found->items, compare_turn);
    for (size_t i = 0; i < found->n; i++) {
        const nib_fragment match = found->items[i];
        if (taken[match.begin] || taken[match.end - 1]) continue;
        memset(taken + match.begin, 1, match.end - match.begin);
        found->items[n++] = match;
    }
    found->n = n;
    qsort(found->items, n, sizeof *found->items, compare_place);
    free(taken);
    return NIB_OK;
}

nib_status nib_special_cut(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes, bool parse_special,
                           nib_fragment **fragments, size_t *n_fragments, nib_error *error) {
    nib_status status = NIB_OK;
    matches found = {0};
    nib_fragment *out = NULL;
    size_t n = 0;
    uint32_t at = 0;
    NIB_TRY_GOTO(find_all(tokenizer, text, n_bytes, parse_special, &found, error));
    if (found.n > 0) NIB_TRY_GOTO(keep_standing(&found, n_bytes, error));
    out = nib_alloc(2 * found.n + 1, sizeof *out);
    if (out == NULL) {
        status = nib_fail_memory(error, (2 * found.n + 1) * sizeof *out);
        goto fail;
    }
    for (size_t i = 0; i < found.n; i++) {
        if (found.items[i].begin > at) out[n++] = (nib_fragment){at, found.items[i].begin, -1};
        out[n++] = found.items[i];
        at = found.items[i].end;
    }
    if (at < n_bytes) out[n++] = (nib_fragment){at, (uint32_t)n_bytes, -1};
    *fragments = out;
    *n_fragments = n;
fail:
    free(found.items);
    return status;
}
