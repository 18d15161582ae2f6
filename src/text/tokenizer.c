/* Loading the vocabulary of a GGUF file, and the public face of the tokenizer.
 *
 * Every array is checked against the number of tokens before anything of it is used. Vocabularies of a kind that nibble
 * cannot tokenize with still load: their tokens can be looked at and turned into text. */
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

#define KEY(name) "tokenizer.ggml." name

/* ---- Kinds of vocabularies ------------------------------------------------------------------------------------------ */

enum spelling {
    SPELL_BYTES,  /* byte-level BPE: printable forms of bytes */
    SPELL_BLOCKS, /* U+2581 for a space */
    SPELL_PLAIN
};

static const struct model {
    const char *name;
    enum spelling spelling;
    int32_t bos, eos; /* where the file names none, if they exist */
    bool add_bos, add_eos;
    bool needs_ids; /* the defaults must exist */
} models[] = {
    {"gpt2", SPELL_BYTES, 11, 11, false, false, false},       {"llama", SPELL_BLOCKS, 1, 2, true, false, true},
    {"bert", SPELL_BLOCKS, 101, -1, true, false, false},      {"t5", SPELL_BLOCKS, -1, 1, false, true, false},
    {"rwkv", SPELL_PLAIN, -1, -1, false, false, false},       {"plamo2", SPELL_PLAIN, 1, 2, false, false, false},
    {"gemma4", SPELL_BLOCKS, -1, -1, true, false, false},     {"hybriddna", SPELL_BYTES, 11, 11, false, false, false},
    {"whitespace", SPELL_PLAIN, 11, 11, false, false, false}, {"none", SPELL_PLAIN, -1, -1, false, false, false},
    {"no_vocab", SPELL_PLAIN, -1, -1, false, false, false},
};

/* ---- Reading and checking the arrays -------------------------------------------------------------------------------- */

typedef struct source {
    const nib_gguf *gguf;
    const nib_gguf_kv *tokens, *types, *scores, *merges; /* NULL: the file has none */
    const struct model *model;
} source;

static nib_status corrupt(const source *from, const nib_gguf_kv *kv, const char *key, nib_error *error,
                          const char *what) {
    return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(from->gguf), kv ? kv->offset : -1, key, "%s: %s", key,
                       what);
}

/* An array of the asked element type(s), at least as long as the vocabulary; *out is NULL if the file has no such key. */
static nib_status find_array(const source *from, const char *key, uint64_t n_needed, nib_gguf_type type,
                             nib_gguf_type other_type, const nib_gguf_kv **out, nib_error *error) {
    const nib_gguf_kv *kv = nib_gguf_find(from->gguf, key);
    *out = kv;
    if (kv == NULL) return NIB_OK;
    if (kv->type != NIB_GGUF_ARRAY) return corrupt(from, kv, key, error, "not an array");
    if (kv->element_type != type && kv->element_type != other_type) {
        return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(from->gguf), kv->offset, key,
                           "%s: an array of %s, not of %s", key, nib_gguf_type_name(kv->element_type),
                           nib_gguf_type_name(type));
    }
    if (kv->n < n_needed) {
        return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(from->gguf), kv->offset, key,
                           "%s: %llu entries for %llu tokens", key, (unsigned long long)kv->n,
                           (unsigned long long)n_needed);
    }
    return NIB_OK;
}

/* A text value, NUL-terminated; `fallback` (may be NULL: required) if the key is absent. */
static nib_status read_name(const source *from, const char *key, const char *fallback, char **out, nib_error *error) {
    const nib_gguf_kv *kv = nib_gguf_find(from->gguf, key);
    nib_text text = {fallback, fallback ? strlen(fallback) : 0};
    if (kv == NULL && fallback == NULL) return corrupt(from, kv, key, error, "missing");
    if (kv != NULL && (kv->type != NIB_GGUF_STRING || !nib_gguf_kv_text(kv, 0, &text)))
        return corrupt(from, kv, key, error, "not a string");
    if (memchr(text.data, 0, text.n_bytes)) return corrupt(from, kv, key, error, "contains a NUL");
    *out = nib_strdup_n(text.data, text.n_bytes);
    return *out ? NIB_OK : nib_fail_memory(error, text.n_bytes);
}

static nib_status open_source(const nib_gguf *gguf, source *from, nib_tokenizer *tokenizer, nib_error *error) {
    *from = (source){.gguf = gguf};
    NIB_TRY(find_array(from, KEY("tokens"), 1, NIB_GGUF_STRING, NIB_GGUF_STRING, &from->tokens, error));
    if (from->tokens == NULL) {
        (void)corrupt(from, NULL, KEY("tokens"), error, "the file holds no vocabulary");
        return nib_hint(error, NIB_ERR_CORRUPT, "convert the model again, with its tokenizer");
    }
    if (from->tokens->n > INT32_MAX / 2)
        return corrupt(from, from->tokens, KEY("tokens"), error, "more tokens than ids can name");
    NIB_TRY(read_name(from, KEY("model"), NULL, &tokenizer->model, error));
    NIB_TRY(read_name(from, KEY("pre"), "default", &tokenizer->pre_name, error));
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (strcmp(models[i].name, tokenizer->model) == 0) from->model = &models[i];
    if (from->model == NULL) {
        return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(gguf), nib_gguf_find(gguf, KEY("model"))->offset,
                           KEY("model"), "unknown kind of vocabulary \"%s\"", tokenizer->model);
    }
    const uint64_t n = from->tokens->n;
    NIB_TRY(find_array(from, KEY("token_type"), n, NIB_GGUF_I32, NIB_GGUF_U32, &from->types, error));
    NIB_TRY(find_array(from, KEY("scores"), n, NIB_GGUF_F32, NIB_GGUF_F32, &from->scores, error));
    NIB_TRY(find_array(from, KEY("merges"), 0, NIB_GGUF_STRING, NIB_GGUF_STRING, &from->merges, error));
    if (from->merges && from->merges->n > INT32_MAX / 2)
        return corrupt(from, from->merges, KEY("merges"), error, "more merges than any vocabulary has tokens");
    /* kimi-k2 ranks its tokens by their ids and stores no merges. */
    if (strcmp(tokenizer->model, "gpt2") == 0 && from->merges == NULL && strcmp(tokenizer->pre_name, "kimi-k2") != 0)
        return corrupt(from, NULL, KEY("merges"), error, "missing, but byte-pair encoding needs it");
    return NIB_OK;
}

static uint8_t kind_of(const source *from, uint64_t id) {
    static const uint8_t kinds[] = {
        0, NIB_KIND_NORMAL, NIB_KIND_UNKNOWN, NIB_KIND_CONTROL, NIB_KIND_USER, NIB_KIND_UNUSED, NIB_KIND_BYTE};
    int64_t type = 1;
    if (from->types && !nib_gguf_kv_i64(from->types, id, &type)) return 0;
    return type < 0 || type >= (int64_t)sizeof kinds ? 0 : kinds[type];
}

static nib_status read_tokens(const source *from, nib_tokenizer *tokenizer, nib_error *error) {
    const uint64_t n = from->tokens->n;
    tokenizer->tokens = nib_alloc((size_t)n, sizeof *tokenizer->tokens);
    if (tokenizer->tokens == NULL || !nib_strings_init(&tokenizer->strings, (size_t)n + (size_t)n / 8))
        return nib_fail_memory(error, n * sizeof *tokenizer->tokens);
    tokenizer->facts.n_vocab = (uint32_t)n;
    for (uint64_t id = 0; id < n; id++) {
        nib_text text;
        char name[32];
        bool added;
        if (!nib_gguf_kv_text(from->tokens, id, &text))
            return corrupt(from, from->tokens, KEY("tokens"), error, "unreadable entry");
        if (text.n_bytes == 0) {
            text.n_bytes = (size_t)snprintf(name, sizeof name, "[EMPTY_%llu]", (unsigned long long)id);
            text.data = name;
        }
        const uint32_t number = nib_strings_add(&tokenizer->strings, text.data, text.n_bytes, &added);
        if (number == NIB_NO_STRING) return nib_fail_memory(error, text.n_bytes);
        if (!added) {
            return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(from->gguf), from->tokens->offset, KEY("tokens"),
                               "tokens %u and %llu have the same text", number, (unsigned long long)id);
        }
        tokenizer->tokens[id].kind = kind_of(from, id);
    }
    return NIB_OK;
}

/* An id by key; the model's default if the file names none and it exists. Out of range is an error: the file would stop
 * or start generations at a token that cannot occur. */
static nib_status read_id(const source *from, const char *key, int32_t fallback, int32_t *out, nib_error *error) {
    const nib_gguf_kv *kv = nib_gguf_find(from->gguf, key);
    const uint64_t n = from->tokens->n;
    uint64_t id;
    *out = -1;
    if (kv == NULL) {
        if (fallback >= 0 && (uint64_t)fallback < n) *out = fallback;
        if (from->model->needs_ids && *out < 0)
            return corrupt(from, NULL, key, error, "missing, and the vocabulary is too small for the usual one");
        return NIB_OK;
    }
    if (!nib_gguf_get_u64(from->gguf, key, &id)) return corrupt(from, kv, key, error, "not a token id");
    if (id >= n) {
        return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(from->gguf), kv->offset, key,
                           "%s: token %llu of a vocabulary of %llu", key, (unsigned long long)id,
                           (unsigned long long)n);
    }
    *out = (int32_t)id;
    return NIB_OK;
}

static nib_status read_flag(const source *from, const char *key, bool fallback, bool *out, nib_error *error) {
    *out = fallback;
    const nib_gguf_kv *kv = nib_gguf_find(from->gguf, key);
    if (kv != NULL && !nib_gguf_get_bool(from->gguf, key, out)) return corrupt(from, kv, key, error, "not a boolean");
    return NIB_OK;
}

static nib_status read_facts(const source *from, nib_tokenizer *tokenizer, nib_error *error) {
    nib_tokenizer_facts *facts = &tokenizer->facts;
    const struct model *model = from->model;
    facts->model = tokenizer->model;
    facts->pre = tokenizer->pre_name;
    facts->can_tokenize = tokenizer->pre != NULL;
    NIB_TRY(
        read_id(from, KEY("bos_token_id"), tokenizer->pre_facts.no_default_bos ? -1 : model->bos, &facts->bos, error));
    NIB_TRY(read_id(from, KEY("eos_token_id"), model->eos, &facts->eos, error));
    NIB_TRY(
        read_flag(from, KEY("add_bos_token"), tokenizer->pre_facts.add_bos || model->add_bos, &facts->add_bos, error));
    NIB_TRY(read_flag(from, KEY("add_eos_token"), model->add_eos, &facts->add_eos, error));
    facts->add_bos = facts->add_bos && facts->bos >= 0;
    facts->add_eos = facts->add_eos && facts->eos >= 0;
    return NIB_OK;
}

/* ---- Pieces --------------------------------------------------------------------------------------------------------- */

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

static void add_with_spaces(nib_string *out, const char *text, size_t n_bytes) {
    size_t begin = 0;
    for (size_t at = 0; at + 3 <= n_bytes;) {
        if (memcmp(text + at, "\xe2\x96\x81", 3) != 0) {
            at++;
            continue;
        }
        nib_string_add(out, text + begin, at - begin);
        nib_string_add(out, " ", 1);
        at += 3;
        begin = at;
    }
    nib_string_add(out, text + begin, n_bytes - begin);
}

/* Writes what each token stands for; after the kinds are final. */
static nib_status write_pieces(const source *from, nib_tokenizer *tokenizer, nib_error *error) {
    nib_string *out = &tokenizer->pieces;
    for (uint32_t id = 0; id < tokenizer->facts.n_vocab; id++) {
        nib_token *token = &tokenizer->tokens[id];
        const struct nib_span span = tokenizer->strings.spans[id];
        const char *text = tokenizer->strings.bytes + span.at;
        const size_t begin = out->n_bytes;
        if (token->kind & NIB_KIND_BYTE) {
            const int high = span.n == 6 ? hex_digit(text[3]) : -1, low = span.n == 6 ? hex_digit(text[4]) : -1;
            if (high < 0 || low < 0 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
                return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(from->gguf), from->tokens->offset,
                                   KEY("tokens"), "token %u is of type byte, but its text names none", id);
            }
        }
        if (token->kind & (NIB_KIND_CONTROL | NIB_KIND_UNKNOWN | NIB_KIND_USER)) {
            nib_string_add(out, text, span.n);
        } else if (token->kind & NIB_KIND_BYTE) {
            nib_string_add(out, &(const char){(char)(hex_digit(text[3]) << 4 | hex_digit(text[4]))}, 1);
        } else if (token->kind & NIB_KIND_NORMAL) {
            if (from->model->spelling == SPELL_BYTES) nib_bpe_decode(text, span.n, out);
            if (from->model->spelling == SPELL_BLOCKS) add_with_spaces(out, text, span.n);
            if (from->model->spelling == SPELL_PLAIN) nib_string_add(out, text, span.n);
        }
        if (out->failed || out->n_bytes > UINT32_MAX) return nib_fail_memory(error, out->n_bytes);
        token->piece_at = (uint32_t)begin;
        token->piece_n = (uint32_t)(out->n_bytes - begin);
    }
    return NIB_OK;
}

/* ---- Public --------------------------------------------------------------------------------------------------------- */

nib_status nib_tokenizer_new(const nib_gguf *gguf, nib_tokenizer **out, nib_error *error) {
    nib_status status = NIB_OK;
    source from;
    *out = NULL;
    nib_tokenizer *tokenizer = nib_alloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) return nib_fail_memory(error, sizeof *tokenizer);
    NIB_TRY_GOTO(open_source(gguf, &from, tokenizer, error));
    NIB_TRY_GOTO(read_tokens(&from, tokenizer, error));
    if (strcmp(tokenizer->model, "gpt2") == 0 && from.merges)
        NIB_TRY_GOTO(nib_pre_new(tokenizer->pre_name, &tokenizer->pre, error));
    if (tokenizer->pre) {
        tokenizer->pre_facts = nib_pre_facts_of(tokenizer->pre);
        NIB_TRY_GOTO(nib_bpe_init(&tokenizer->bpe, &tokenizer->strings, from.merges, nib_gguf_path(gguf), error));
    }
    NIB_TRY_GOTO(read_facts(&from, tokenizer, error));
    NIB_TRY_GOTO(nib_special_init(tokenizer, gguf, error));
    NIB_TRY_GOTO(write_pieces(&from, tokenizer, error));
    *out = tokenizer;
    return NIB_OK;
fail:
    nib_tokenizer_free(tokenizer);
    return status;
}

void nib_tokenizer_free(nib_tokenizer *tokenizer) {
    if (tokenizer == NULL) return;
    nib_strings_fini(&tokenizer->strings);
    nib_string_fini(&tokenizer->pieces);
    nib_pre_free(tokenizer->pre);
    nib_bpe_fini(&tokenizer->bpe);
    free(tokenizer->special_lengths);
    free(tokenizer->tokens);
    free(tokenizer->model);
    free(tokenizer->pre_name);
    free(tokenizer);
}

const nib_tokenizer_facts *nib_tokenizer_facts_of(const nib_tokenizer *tokenizer) {
    return &tokenizer->facts;
}

void nib_ids_fini(nib_ids *ids) {
    free(ids->ids);
    *ids = (nib_ids){0};
}

nib_status nib_ids_add(nib_ids *ids, int32_t id, nib_error *error) {
    if (!nib_grow((void **)&ids->ids, &ids->capacity, ids->n + 1, sizeof *ids->ids))
        return nib_fail_memory(error, (ids->n + 1) * sizeof *ids->ids);
    ids->ids[ids->n++] = id;
    return NIB_OK;
}

static nib_status unsupported(const nib_tokenizer *tokenizer, nib_error *error) {
    const bool bpe = strcmp(tokenizer->model, "gpt2") == 0;
    (void)nib_fail_at(error, NIB_ERR_UNSUPPORTED, NULL, -1, bpe ? KEY("pre") : KEY("model"),
                      "nibble cannot tokenize text with %s \"%s\"", bpe ? "the pre-tokenizer" : "a vocabulary of kind",
                      bpe ? tokenizer->pre_name : tokenizer->model);
    return nib_hint(error, NIB_ERR_UNSUPPORTED,
                    "give token ids instead of text, or use a model with another tokenizer");
}

nib_status nib_tokenize(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes, bool add_special,
                        bool parse_special, nib_ids *out, nib_error *error) {
    nib_status status = NIB_OK;
    nib_pieces pieces = {0};
    nib_bpe_scratch scratch = {0};
    nib_fragment *fragments = NULL;
    size_t n_fragments = 0;
    const size_t n_before = out->n;
    const nib_tokenizer_facts *facts = &tokenizer->facts;
    if (!facts->can_tokenize) return unsupported(tokenizer, error);
    if (n_bytes > NIB_TEXT_MAX_BYTES) {
        (void)nib_fail(error, NIB_ERR_USAGE, "a text of %zu bytes is too long to tokenize", n_bytes);
        return nib_hint(error, NIB_ERR_USAGE, "split it: at most 1 GiB at once");
    }

    if (n_bytes > 0)
        NIB_TRY_GOTO(nib_special_cut(tokenizer, text, n_bytes, parse_special, &fragments, &n_fragments, error));
    if (add_special && facts->add_bos) NIB_TRY_GOTO(nib_ids_add(out, facts->bos, error));
    for (size_t i = 0; i < n_fragments; i++) {
        const nib_fragment fragment = fragments[i];
        if (fragment.id >= 0) {
            NIB_TRY_GOTO(nib_ids_add(out, fragment.id, error));
            continue;
        }
        NIB_TRY_GOTO(
            nib_pre_split(tokenizer->pre, text + fragment.begin, fragment.end - fragment.begin, &pieces, error));
        for (size_t k = 0, begin = 0; k < pieces.n; begin = pieces.ends[k++])
            NIB_TRY_GOTO(nib_bpe_encode(tokenizer, pieces.text + begin, pieces.ends[k] - begin, &scratch, out, error));
    }
    if (add_special && facts->add_eos) NIB_TRY_GOTO(nib_ids_add(out, facts->eos, error));
fail:
    if (status != NIB_OK) out->n = n_before;
    free(fragments);
    nib_pieces_fini(&pieces);
    nib_bpe_scratch_fini(&scratch);
    return status;
}

static const nib_token *token_at(const nib_tokenizer *tokenizer, int32_t id) {
    return id < 0 || (uint32_t)id >= tokenizer->facts.n_vocab ? NULL : &tokenizer->tokens[id];
}

nib_text nib_token_piece(const nib_tokenizer *tokenizer, int32_t id, bool special) {
    const nib_token *token = token_at(tokenizer, id);
    if (token == NULL) return (nib_text){NULL, 0};
    const bool hidden = !special && (token->kind & (NIB_KIND_CONTROL | NIB_KIND_UNKNOWN));
    if (hidden || token->piece_n == 0) return (nib_text){"", 0};
    return (nib_text){tokenizer->pieces.data + token->piece_at, token->piece_n};
}

int32_t nib_token_find(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes) {
    const uint32_t number = nib_strings_find(&tokenizer->strings, text, n_bytes);
    return number < tokenizer->facts.n_vocab ? (int32_t)number : -1;
}

bool nib_token_ends(const nib_tokenizer *tokenizer, int32_t id) {
    const nib_token *token = token_at(tokenizer, id);
    return token && token->ends;
}

bool nib_token_is_control(const nib_tokenizer *tokenizer, int32_t id) {
    const nib_token *token = token_at(tokenizer, id);
    return token && (token->kind & NIB_KIND_CONTROL);
}
