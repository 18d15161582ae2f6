/* The two shapes of conversation that most small open models speak.
 *
 *   ChatML    <|im_start|>user\nText<|im_end|>\n               <|im_start|>assistant\n
 *   Llama 3   <|start_header_id|>user<|end_header_id|>\n\nText<|eot_id|>
 *                                                              <|start_header_id|>assistant<|end_header_id|>\n\n
 *
 * Marks are added as ids; what people write is tokenized as plain text only, so a text that spells a mark stays text. */
#include "base/error.h"
#include "base/memory.h"
#include "text/tokenizer.h"

typedef struct shape {
    nib_chat_shape name;
    const char *open;        /* before the role */
    const char *after_role;  /* a control token, NULL if there is none */
    const char *before_text; /* plain */
    const char *close;       /* after the text */
    const char *after_turn;  /* plain */
    bool trims;              /* white space around the text is dropped, as the model's own template does */
} shape;

static const shape shapes[] = {
    {NIB_CHAT_CHATML, "<|im_start|>", NULL, "\n", "<|im_end|>", "\n", false},
    {NIB_CHAT_LLAMA3, "<|start_header_id|>", "<|end_header_id|>", "\n\n", "<|eot_id|>", "", true},
};

static const shape *shape_named(nib_chat_shape name) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shapes[i].name == name) return &shapes[i];
    return NULL;
}

static int32_t control_named(const nib_tokenizer *tokenizer, const char *text) {
    const int32_t id = nib_token_find(tokenizer, text, strlen(text));
    return nib_token_is_control(tokenizer, id) ? id : -1;
}

nib_chat_shape nib_chat_shape_of(const nib_gguf *gguf, const nib_tokenizer *tokenizer) {
    nib_text text;
    if (!nib_gguf_get_text(gguf, "tokenizer.chat_template", &text)) return NIB_CHAT_NONE;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        if (memmem(text.data, text.n_bytes, s->open, strlen(s->open)) && control_named(tokenizer, s->open) >= 0 &&
            control_named(tokenizer, s->close) >= 0 &&
            (s->after_role == NULL || control_named(tokenizer, s->after_role) >= 0))
            return s->name;
    }
    return NIB_CHAT_NONE;
}

static nib_status add_mark(const nib_tokenizer *tokenizer, const char *text, nib_ids *out, nib_error *error) {
    const int32_t id = control_named(tokenizer, text);
    if (id < 0) return nib_fail(error, NIB_ERR_UNSUPPORTED, "the vocabulary has no control token %s", text);
    return nib_ids_add(out, id, error);
}

/* Marks, role and text up to where the text ends. Stretches of plain text between marks are tokenized as one. */
static nib_status add_head(const nib_tokenizer *tokenizer, const shape *s, const char *role, const char *text,
                           size_t n_bytes, nib_ids *out, nib_error *error) {
    nib_status status = NIB_OK;
    nib_string plain = {0};
    nib_string_add(&plain, role, strlen(role));
    NIB_TRY_GOTO(add_mark(tokenizer, s->open, out, error));
    if (s->after_role) {
        NIB_TRY_GOTO(nib_tokenize(tokenizer, role, strlen(role), false, false, out, error));
        NIB_TRY_GOTO(add_mark(tokenizer, s->after_role, out, error));
        plain.n_bytes = 0;
    }
    nib_string_add(&plain, s->before_text, strlen(s->before_text));
    if (n_bytes > 0) nib_string_add(&plain, text, n_bytes);
    if (plain.failed) {
        status = nib_fail_memory(error, n_bytes);
        goto fail;
    }
    NIB_TRY_GOTO(nib_tokenize(tokenizer, plain.data, plain.n_bytes, false, false, out, error));
fail:
    nib_string_fini(&plain);
    return status;
}

static nib_status no_shape(nib_error *error) {
    (void)nib_fail(error, NIB_ERR_UNSUPPORTED, "this model's way of chatting is not known");
    return nib_hint(error, NIB_ERR_UNSUPPORTED, "give a plain prompt to be completed instead");
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

nib_status nib_chat_add_turn(const nib_tokenizer *tokenizer, nib_chat_shape name, bool first, const char *role,
                             const char *text, size_t n_bytes, nib_ids *out, nib_error *error) {
    nib_status status = NIB_OK;
    const shape *s = shape_named(name);
    const size_t n_before = out->n;
    const nib_tokenizer_facts *facts = nib_tokenizer_facts_of(tokenizer);
    if (s == NULL) return no_shape(error);
    while (s->trims && n_bytes > 0 && is_space(text[n_bytes - 1])) n_bytes--;
    while (s->trims && n_bytes > 0 && is_space(text[0])) text++, n_bytes--;
    if (first && facts->add_bos) NIB_TRY_GOTO(nib_ids_add(out, facts->bos, error));
    NIB_TRY_GOTO(add_head(tokenizer, s, role, text, n_bytes, out, error));
    NIB_TRY_GOTO(add_mark(tokenizer, s->close, out, error));
    NIB_TRY_GOTO(nib_tokenize(tokenizer, s->after_turn, strlen(s->after_turn), false, false, out, error));
    return NIB_OK;
fail:
    out->n = n_before;
    return status;
}

nib_status nib_chat_open_answer(const nib_tokenizer *tokenizer, nib_chat_shape name, nib_ids *out, nib_error *error) {
    const shape *s = shape_named(name);
    const size_t n_before = out->n;
    if (s == NULL) return no_shape(error);
    const nib_status status = add_head(tokenizer, s, "assistant", NULL, 0, out, error);
    if (status != NIB_OK) out->n = n_before;
    return status;
}
