/* Writing text: run the prompt, then one token after the other until the model, the limit, a loop or the caller ends it. */
#include "base/memory.h"
#include "base/progress.h"
#include "model/loaded.h"

#include <stdlib.h>

/* A loop: at least this many tokens at the end are one piece of at most so many, repeated at least so often. */
#define LOOP_TOKENS  64
#define LOOP_PIECE   32
#define LOOP_REPEATS 4

const char *nib_stop_name(nib_stop stop) {
    switch (stop) {
    case NIB_STOP_EOS:
        return "eos";
    case NIB_STOP_LIMIT:
        return "limit";
    case NIB_STOP_LOOP:
        return "loop";
    case NIB_STOP_EMPTY:
        return "empty";
    case NIB_STOP_CALLER:
        return "caller";
    }
    return "unknown";
}

static bool loops(const int32_t *ids, size_t n) {
    for (size_t piece = 1; piece <= LOOP_PIECE; piece++) {
        size_t repeats = (LOOP_TOKENS + piece - 1) / piece;
        if (repeats < LOOP_REPEATS) repeats = LOOP_REPEATS;
        const size_t span = repeats * piece;
        if (span > n) continue;
        size_t i = n - span + piece;
        while (i < n && ids[i] == ids[i - piece]) i++;
        if (i == n) return true;
    }
    return false;
}

/* How many of the n bytes may be shown: all but the beginning of a character that is still to come. */
static size_t whole_characters(const char *text, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const unsigned char c = (unsigned char)text[n - back];
        if ((c & 0xc0) == 0x80) continue;
        const size_t length = c >= 0xf0 && c < 0xf8 ? 4 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xc0 && c < 0xe0 ? 2 : 1;
        return length > back ? n - back : n;
    }
    return n;
}

/* Nothing but white space outside of one leading block of reasoning. */
static bool says_nothing(const char *text, size_t n) {
    static const char open[] = "<think>", close[] = "</think>";
    size_t at = 0;
    while (at < n && memchr(" \t\r\n\f\v", text[at], 6) != NULL) at++;
    if (n - at >= sizeof open - 1 && memcmp(text + at, open, sizeof open - 1) == 0) {
        const char *end = memmem(text + at, n - at, close, sizeof close - 1);
        at = end != NULL ? (size_t)(end - text) + sizeof close - 1 : n;
    }
    while (at < n && memchr(" \t\r\n\f\v", text[at], 6) != NULL) at++;
    return at == n;
}

/* One generation under way. */
typedef struct writer {
    const nib_generate_params *params;
    const nib_tokenizer *tokenizer; /* may be NULL: ids without text */
    nib_generated *out;
    nib_string text;
    size_t n_shown; /* bytes of text the caller has seen */
} writer;

/* Shows the caller what is complete, or all; false: the caller has had enough. */
static bool show(writer *w, bool all) {
    const size_t n = all ? w->text.n_bytes : whole_characters(w->text.data, w->text.n_bytes);
    if (w->params->on_text == NULL || n <= w->n_shown) return true;
    const size_t from = w->n_shown;
    w->n_shown = n;
    return w->params->on_text(w->params->user, w->text.data + from, n - from);
}

static nib_status append(writer *w, int32_t id, nib_error *error) {
    nib_ids *ids = &w->out->ids;
    if (!nib_grow((void **)&ids->ids, &ids->capacity, ids->n + 1, sizeof *ids->ids)) {
        return nib_fail_memory(error, (ids->n + 1) * sizeof *ids->ids);
    }
    ids->ids[ids->n++] = id;
    if (w->tokenizer != NULL) {
        const nib_text piece = nib_token_piece(w->tokenizer, id, false);
        if (piece.n_bytes > 0) nib_string_add(&w->text, piece.data, piece.n_bytes);
    }
    return w->text.failed ? nib_fail_memory(error, w->text.n_bytes) : NIB_OK;
}

/* What the model says next; sampled or greedy. */
static int32_t choose(const writer *w, const float *logits, uint32_t n_vocab) {
    float largest;
    if (w->params->sampler != NULL) return nib_sampler_next(w->params->sampler, logits);
    return (int32_t)nib_row_argmax(logits, n_vocab, &largest);
}

/* Generates from the logits of the token before position pos until something ends it. */
static nib_status write_on(writer *w, nib_session *session, uint32_t pos, float *logits, nib_error *error) {
    nib_ids *ids = &w->out->ids;
    const uint32_t n_vocab = nib_session_model(session)->facts.n_vocab;
    w->out->stop = NIB_STOP_LIMIT;
    while (ids->n < w->params->n_max) {
        const int32_t id = choose(w, logits, n_vocab);
        if (w->tokenizer != NULL && nib_token_ends(w->tokenizer, id)) {
            w->out->stop = says_nothing(w->text.data, w->text.n_bytes) ? NIB_STOP_EMPTY : NIB_STOP_EOS;
            break;
        }
        NIB_TRY(append(w, id, error));
        if (!show(w, false)) {
            w->out->stop = NIB_STOP_CALLER;
            return NIB_OK;
        }
        if (w->params->stop_at_loop && loops(ids->ids, ids->n)) {
            w->out->stop = NIB_STOP_LOOP;
            break;
        }
        if (ids->n == w->params->n_max || pos == nib_session_n_ctx(session)) break;
        NIB_TRY(nib_session_next(session, pos++, &id, 1, logits, error));
    }
    if (!show(w, true)) w->out->stop = NIB_STOP_CALLER;
    return NIB_OK;
}

/* Runs the prompt in pieces, so that a long one can be watched and stopped. logits: of its last token. */
static nib_status read_prompt(nib_session *session, uint32_t pos, const int32_t *ids, uint32_t n,
                              const nib_watch *watch, float *logits, nib_error *error) {
    enum { PIECE = 512 };
    nib_meter meter;
    nib_meter_init(&meter, watch, "prompt", n);
    for (; n > PIECE; pos += PIECE, ids += PIECE, n -= PIECE) {
        const nib_segment piece = {.pos = pos, .n = PIECE, .ids = ids, .out_from = PIECE};
        NIB_TRY(nib_session_run(session, &piece, 1, NULL, error));
        NIB_TRY(nib_meter_add(&meter, PIECE, error));
    }
    return nib_session_next(session, pos, ids, n, logits, error);
}

nib_status nib_generate(nib_session *session, uint32_t n_past, const int32_t *ids, uint32_t n,
                        const nib_generate_params *params, nib_generated *out, nib_error *error) {
    const nib_model *model = nib_session_model(session);
    const size_t n_vocab = model->facts.n_vocab;
    writer w = {.params = params, .tokenizer = model->tokenizer, .out = out};
    nib_status status = NIB_OK;
    *out = (nib_generated){.stop = NIB_STOP_LIMIT};
    if (n == 0) return nib_fail(error, NIB_ERR_USAGE, "a prompt of no tokens");
    float *logits = nib_alloc(n_vocab, sizeof *logits);
    if (logits == NULL) return nib_fail_memory(error, n_vocab * sizeof *logits);
    const double began = nib_now();
    NIB_TRY_GOTO(read_prompt(session, n_past, ids, n, params->watch, logits, error));
    out->prompt_seconds = nib_now() - began;
    status = write_on(&w, session, n_past + n, logits, error);
    out->generate_seconds = nib_now() - began - out->prompt_seconds;
    if (w.text.data == NULL) nib_string_add(&w.text, "", 0);
    if (status == NIB_OK && w.text.failed) status = nib_fail_memory(error, 1);
    out->text = w.text.data;
    out->n_bytes = w.text.n_bytes;
fail:
    free(logits);
    return status;
}

void nib_generated_fini(nib_generated *generated) {
    nib_ids_fini(&generated->ids);
    free(generated->text);
    *generated = (nib_generated){0};
}
