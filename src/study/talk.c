/* Just talk to it. Prompts are chat turns in the model's own shape; models without one, and prompts of kind "completion",
 * are continued as plain text. */
#include "study/talk.h"

#include "base/memory.h"
#include "base/progress.h"
#include "file/demo.h"
#include "study/parts.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

uint32_t nib_talk_tokens(const nib_study_params *params) {
    return params->n_talk_tokens != 0 ? params->n_talk_tokens : 160;
}

/* ---- Prompts --------------------------------------------------------------------------------------------------------- */

static nib_status alloc_prompts(nib_study *study, size_t n, nib_error *error) {
    study->prompts = nib_alloc(n, sizeof *study->prompts);
    study->prompt_is_raw = nib_alloc(n, sizeof *study->prompt_is_raw);
    if (study->prompts == NULL || study->prompt_is_raw == NULL) return nib_fail_memory(error, n * sizeof(char *));
    study->n_prompts = (uint32_t)n;
    return NIB_OK;
}

static nib_status own_prompts(const nib_study_params *params, nib_study *study, nib_error *error) {
    NIB_TRY(alloc_prompts(study, params->n_prompts, error));
    for (uint32_t i = 0; i < params->n_prompts; i++) {
        study->prompts[i] = nib_strdup(params->prompts[i]);
        if (study->prompts[i] == NULL) return nib_fail_memory(error, strlen(params->prompts[i]));
    }
    return NIB_OK;
}

static nib_status built_in_prompts(nib_study *study, nib_error *error) {
    const uint8_t *data = NULL;
    size_t n_bytes = 0;
    nib_status status = NIB_OK;
    json_t *root = nib_demo_file("prompts", &data, &n_bytes) ? json_loadb((const char *)data, n_bytes, 0, NULL) : NULL;
    if (!json_is_array(root)) {
        json_decref(root);
        return nib_fail(error, NIB_ERR_BUG, "the built-in prompts cannot be read");
    }
    NIB_TRY_GOTO(alloc_prompts(study, json_array_size(root), error));
    for (uint32_t i = 0; i < study->n_prompts; i++) {
        const json_t *item = json_array_get(root, i);
        const char *kind = json_string_value(json_object_get(item, "kind"));
        const char *text = json_string_value(json_object_get(item, "prompt"));
        study->prompts[i] = nib_strdup(text != NULL ? text : "");
        study->prompt_is_raw[i] = kind == NULL || strcmp(kind, "chat") != 0;
        if (study->prompts[i] == NULL) {
            status = nib_fail_memory(error, 1);
            goto fail;
        }
    }
fail:
    json_decref(root);
    return status;
}

static nib_status prompt_tokens(const nib_tokenizer *tokenizer, nib_chat_shape shape, bool raw, const char *text,
                                nib_ids *out, nib_error *error) {
    if (raw) return nib_tokenize(tokenizer, text, strlen(text), true, false, out, error);
    NIB_TRY(nib_chat_add_turn(tokenizer, shape, true, "user", text, strlen(text), out, error));
    return nib_chat_open_answer(tokenizer, shape, out, error);
}

nib_status nib_prompts_make(const nib_study_params *params, const nib_model *model, nib_study *study, nib_ids **out,
                            nib_error *error) {
    const nib_tokenizer *tokenizer = nib_model_text_tokenizer(model, error);
    if (tokenizer == NULL) return error != NULL ? error->code : NIB_ERR_UNSUPPORTED;
    if (params->map) return alloc_prompts(study, 0, error);
    NIB_TRY(params->prompts != NULL ? own_prompts(params, study, error) : built_in_prompts(study, error));
    const nib_chat_shape shape = nib_chat_shape_of(nib_model_gguf(model), tokenizer);
    const uint32_t n_ctx = nib_model_facts_of(model)->n_ctx_train;
    nib_ids *prompts = nib_alloc(study->n_prompts, sizeof *prompts);
    if (prompts == NULL) return nib_fail_memory(error, study->n_prompts * sizeof *prompts);
    nib_status status = NIB_OK;
    for (uint32_t i = 0; i < study->n_prompts; i++) {
        if (shape == NIB_CHAT_NONE) study->prompt_is_raw[i] = true;
        NIB_TRY_GOTO(prompt_tokens(tokenizer, shape, study->prompt_is_raw[i], study->prompts[i], &prompts[i], error));
        if (prompts[i].n == 0) {
            status = nib_fail(error, NIB_ERR_USAGE, "prompt %u is empty", i + 1);
            goto fail;
        }
        if (n_ctx != 0 && prompts[i].n >= n_ctx) {
            status = nib_fail(error, NIB_ERR_USAGE, "prompt %u has %zu tokens; the model's context holds %u", i + 1,
                              prompts[i].n, n_ctx);
            goto fail;
        }
    }
    *out = prompts;
    return NIB_OK;
fail:
    nib_prompts_free(prompts, study->n_prompts);
    return status;
}

void nib_prompts_free(nib_ids *prompts, uint32_t n) {
    for (uint32_t i = 0; prompts != NULL && i < n; i++) nib_ids_fini(&prompts[i]);
    free(prompts);
}

/* ---- Answers --------------------------------------------------------------------------------------------------------- */

typedef struct listener {
    nib_meter meter;
    nib_status status;
    nib_error *error;
} listener;

static bool on_text(void *user, const char *text, size_t n_bytes) {
    (void)text;
    (void)n_bytes;
    listener *self = user;
    self->status = nib_meter_add(&self->meter, 1, self->error);
    return self->status == NIB_OK;
}

static bool is_blank(nib_text text) {
    for (size_t i = 0; i < text.n_bytes; i++)
        if (strchr(" \t\r\n", text.data[i]) == NULL) return false;
    return true;
}

static nib_status one_try(nib_session *session, const nib_ids *prompt, uint32_t n_max, uint32_t n_tries, uint32_t which,
                          listener *self, nib_try *out, nib_error *error) {
    nib_generated generated = {0};
    nib_sampler *sampler = NULL;
    nib_status status = NIB_OK;
    nib_generate_params params = {.n_max = n_max, .stop_at_loop = true, .user = self, .on_text = on_text};
    if (n_tries > 1) {
        nib_sampler_params sampling = nib_sampler_defaults();
        sampling.seed = 1 + which;
        NIB_TRY_GOTO(
            nib_sampler_new(&sampling, nib_model_facts_of(nib_session_model(session))->n_vocab, &sampler, error));
        params.sampler = sampler;
    }
    status = nib_generate(session, 0, prompt->ids, (uint32_t)prompt->n, &params, &generated, error);
    if (status == NIB_OK && self->status != NIB_OK) status = self->status;
    if (status != NIB_OK) goto fail;
    out->text = generated.text;
    generated.text = NULL;
    out->n_tokens = (uint32_t)generated.ids.n;
    out->stop = generated.stop;
    nib_text reasoning, answer;
    nib_study_split_answer(out->text != NULL ? out->text : "", &reasoning, &answer);
    if (out->stop == NIB_STOP_EOS && is_blank(answer)) out->stop = NIB_STOP_EMPTY;
fail:
    nib_sampler_free(sampler);
    nib_generated_fini(&generated);
    return status;
}

nib_status nib_talk_to(const nib_study_params *params, const nib_model *model, uint32_t index, const nib_ids *prompts,
                       nib_pool *pool, const nib_watch *watch, nib_study *study, nib_error *error) {
    if (study->n_prompts == 0) return NIB_OK;
    const uint32_t trained = nib_model_facts_of(model)->n_ctx_train, n_max = nib_talk_tokens(params);
    size_t longest = 0;
    for (uint32_t i = 0; i < study->n_prompts; i++)
        if (prompts[i].n > longest) longest = prompts[i].n;
    size_t n_ctx = longest + n_max;
    if (trained != 0 && n_ctx > trained) n_ctx = trained;
    nib_session *session = NULL;
    const nib_session_params session_params = {.n_ctx = (uint32_t)n_ctx, .n_batch = 128};
    NIB_TRY(nib_session_new(model, pool, &session_params, &session, error));
    listener self = {.error = error};
    const double total = (double)study->n_prompts * study->n_tries * n_max;
    nib_meter_init(&self.meter, watch, "talk", total);
    nib_status status = NIB_OK;
    for (uint32_t i = 0; i < study->n_prompts * study->n_tries && status == NIB_OK; i++) {
        const nib_ids *prompt = &prompts[i / study->n_tries];
        const uint32_t room = (uint32_t)(n_ctx - prompt->n);
        const size_t at = ((size_t)(i / study->n_tries) * (1 + study->n_levels) + index) * study->n_tries;
        status = one_try(session, prompt, n_max < room ? n_max : room, study->n_tries, i % study->n_tries, &self,
                         &study->talk[at + i % study->n_tries], error);
        if (status == NIB_OK)
            status = nib_meter_add(&self.meter, fmax((double)(i + 1) * n_max - self.meter.done, 0), error);
    }
    nib_session_free(session);
    return status;
}

/* ---- The probe ------------------------------------------------------------------------------------------------------- */

#define PROBE_SHOWN 10

/* Ways to ask for the digit: with the space before it in the prompt or in the token. */
static const struct probe_way {
    const char *prompt, *before_digit; /* stored text before the digit of the token */
} probe_ways[] = {
    {"2 + 2 =", "\xc4\xa0"},     /* byte-level BPE: a space is stored as U+0120 */
    {"2 + 2 =", "\xe2\x96\x81"}, /* SentencePiece: U+2581 */
    {"2 + 2 =", ""},
    {"2 + 2 = ", ""},
};

static bool find_digits(const nib_tokenizer *tokenizer, const char *before, int32_t ids[PROBE_SHOWN]) {
    for (int digit = 0; digit < PROBE_SHOWN; digit++) {
        char text[8];
        const int n = snprintf(text, sizeof text, "%s%d", before, digit);
        ids[digit] = nib_token_find(tokenizer, text, (size_t)n);
        if (ids[digit] < 0) return false;
    }
    return true;
}

/* Probabilities of all tokens after the prompt. probabilities: (n_vocab). */
static nib_status next_probabilities(const nib_model *model, nib_pool *pool, const nib_ids *prompt, float *logits,
                                     double *probabilities, nib_error *error) {
    const uint32_t n_vocab = nib_model_facts_of(model)->n_vocab;
    nib_session *session = NULL;
    const nib_session_params params = {.n_ctx = (uint32_t)prompt->n, .n_batch = (uint32_t)prompt->n};
    NIB_TRY(nib_session_new(model, pool, &params, &session, error));
    const nib_status status = nib_session_next(session, 0, prompt->ids, (uint32_t)prompt->n, logits, error);
    nib_session_free(session);
    if (status != NIB_OK) return status;
    double largest = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n_vocab; i++) largest = fmax(largest, logits[i]);
    for (uint32_t i = 0; i < n_vocab; i++) sum += probabilities[i] = exp(logits[i] - largest);
    for (uint32_t i = 0; i < n_vocab; i++) probabilities[i] /= sum;
    return NIB_OK;
}

static void likeliest(const double *probabilities, uint32_t n_vocab, int32_t ids[PROBE_SHOWN], uint32_t *n) {
    *n = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        uint32_t at = *n;
        while (at > 0 && probabilities[i] > probabilities[ids[at - 1]]) at--;
        if (at == PROBE_SHOWN) continue;
        if (*n < PROBE_SHOWN) ++*n;
        for (uint32_t k = *n - 1; k > at; k--) ids[k] = ids[k - 1];
        ids[at] = (int32_t)i;
    }
}

typedef struct probe {
    nib_ids prompt;
    const char *text;
    int32_t shown[PROBE_SHOWN];
    uint32_t n_shown;
} probe;

static nib_status choose_probe(const nib_model *reference, nib_pool *pool, float *logits, double *probabilities,
                               probe *out, nib_error *error) {
    const nib_tokenizer *tokenizer = nib_model_text_tokenizer(reference, error);
    if (tokenizer == NULL) return error != NULL ? error->code : NIB_ERR_UNSUPPORTED;
    double best = 0.1; /* digits the model does not think of are not worth showing */
    const char *chosen = NULL;
    for (size_t way = 0; way < sizeof probe_ways / sizeof *probe_ways; way++) {
        int32_t digits[PROBE_SHOWN];
        if (!find_digits(tokenizer, probe_ways[way].before_digit, digits)) continue;
        const char *text = probe_ways[way].prompt;
        out->prompt.n = 0;
        NIB_TRY(nib_tokenize(tokenizer, text, strlen(text), true, false, &out->prompt, error));
        NIB_TRY(next_probabilities(reference, pool, &out->prompt, logits, probabilities, error));
        double sum = 0;
        for (int digit = 0; digit < PROBE_SHOWN; digit++) sum += probabilities[digits[digit]];
        if (sum <= best) continue;
        best = sum;
        chosen = text;
        memcpy(out->shown, digits, sizeof digits);
        out->n_shown = PROBE_SHOWN;
    }
    out->text = chosen != NULL ? chosen : probe_ways[0].prompt;
    out->prompt.n = 0;
    NIB_TRY(nib_tokenize(tokenizer, out->text, strlen(out->text), true, false, &out->prompt, error));
    if (chosen != NULL) return NIB_OK;
    NIB_TRY(next_probabilities(reference, pool, &out->prompt, logits, probabilities, error));
    likeliest(probabilities, nib_model_facts_of(reference)->n_vocab, out->shown, &out->n_shown);
    return NIB_OK;
}

nib_status nib_probe(const nib_model *const *models, nib_pool *pool, nib_study *study, nib_error *error) {
    const uint32_t n_vocab = nib_model_facts_of(models[0])->n_vocab;
    const nib_tokenizer *tokenizer = nib_model_tokenizer(models[0]);
    float *logits = nib_alloc(n_vocab, sizeof *logits);
    double *probabilities = nib_alloc(n_vocab, sizeof *probabilities);
    probe chosen = {0};
    nib_status status = NIB_OK;
    if (logits == NULL || probabilities == NULL) {
        status = nib_fail_memory(error, (uint64_t)n_vocab * 12);
        goto fail;
    }
    NIB_TRY_GOTO(choose_probe(models[0], pool, logits, probabilities, &chosen, error));
    study->probe = nib_strdup(chosen.text);
    study->next = nib_alloc(chosen.n_shown, sizeof *study->next);
    if (study->probe == NULL || study->next == NULL) {
        status = nib_fail_memory(error, sizeof *study->next * chosen.n_shown);
        goto fail;
    }
    study->n_next = chosen.n_shown;
    for (uint32_t k = 0; k < study->n_next; k++) {
        const nib_text piece = nib_token_piece(tokenizer, chosen.shown[k], true);
        const size_t room = sizeof study->next[k].piece - 1, n = piece.n_bytes < room ? piece.n_bytes : room;
        if (n > 0) memcpy(study->next[k].piece, piece.data, n);
        study->next[k].probability = nib_alloc((size_t)study->n_levels + 1, sizeof(double));
        if (study->next[k].probability == NULL) {
            status = nib_fail_memory(error, ((uint64_t)study->n_levels + 1) * sizeof(double));
            goto fail;
        }
    }
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        NIB_TRY_GOTO(next_probabilities(models[i], pool, &chosen.prompt, logits, probabilities, error));
        for (uint32_t k = 0; k < study->n_next; k++) study->next[k].probability[i] = probabilities[chosen.shown[k]];
    }
fail:
    free(logits);
    free(probabilities);
    nib_ids_fini(&chosen.prompt);
    return status;
}
