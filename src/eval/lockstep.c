/* Perplexity and KL divergence of several models against a reference, in lock-step.
 *
 *   lanes           reference, exact | reference, deployed | model 1 | model 1, exact | model 2 | ...
 *   chunk of text   each lane runs it and keeps its final hidden states (n_rows, n_embd)
 *     tile of rows and vocabulary
 *                   logits of lane 0, then of each other lane in turn: added to the rows' sums and forgotten
 *
 * Nothing of the size of (text, vocabulary) ever exists. What is kept of a scored token is a few numbers; all statistics
 * are computed from them at the end, in text order, so neither tiles nor threads show in the results. */
#include "base/error.h"
#include "base/files.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/sha256.h"
#include "cpu/pool.h"
#include "eval/divergence.h"
#include "eval/head_tiles.h"
#include "file/demo.h"
#include "kernel/kernel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_N_CTX = 512, MIN_N_CTX = 8, MAX_N_CTX = 1 << 20, BATCH_TOKENS = 512 };

/* What is known of a row after some of the vocabulary. */
typedef struct row_sums {
    nib_softmax softmax;
    nib_divergence divergence; /* from lane 0 */
    float next;                /* logit of the true next token */
} row_sums;

/* One model on one path. Lane 0 is the reference on the exact path; everything is compared with it. */
typedef struct eval_lane {
    const nib_model *model;
    bool exact;
    nib_session *session;
    float *hidden;  /* (n_rows, n_embd) of the scored rows of the chunk */
    row_sums *rows; /* (tile.rows) of the rows that pass by now */
    nib_token_series series;
} eval_lane;

typedef struct lockstep {
    eval_lane *lanes;
    uint32_t n_lanes, n_ctx, first, n_rows; /* first: row of a chunk that predicts the first scored token */
    nib_kv kv;                              /* cache of the deployed lanes */
    uint32_t n_vocab;
    nib_head_tile tile;
    nib_ids tokens;
    int32_t bos;    /* takes the place of each chunk's first token; -1 = none does */
    int32_t *chunk; /* (n_ctx) as it is run */
    float *reference_logits, *reference_terms, *logits; /* one tile each */
    nib_pool *pool;
    const nib_watch *watch;
    nib_error *error;
} lockstep;

/* ---- The text -------------------------------------------------------------------------------------------------------- */

/* Copies or reads the text; *data is malloc'ed. */
static nib_status read_text(const char *path, char **data, size_t *n_bytes, nib_eval *out, nib_error *error) {
    if (path == NULL) {
        const uint8_t *built_in;
        if (!nib_demo_file("text", &built_in, n_bytes))
            return nib_fail(error, NIB_ERR_BUG, "the built-in text is missing");
        *data = nib_strdup_n((const char *)built_in, *n_bytes);
        if (*data == NULL) return nib_fail_memory(error, *n_bytes);
    } else {
        NIB_TRY(nib_read_file(path, data, n_bytes, error));
    }
    snprintf(out->text_file, sizeof out->text_file, "%s", path != NULL ? path : "built-in");
    nib_sha256 sha;
    nib_sha256_init(&sha);
    nib_sha256_add(&sha, *data, *n_bytes);
    nib_sha256_finish(&sha, out->text_sha256);
    return NIB_OK;
}

static nib_status check_text(const char *data, size_t n_bytes, const char *file, nib_error *error) {
    if (n_bytes == 0) {
        nib_fail_at(error, NIB_ERR_CORRUPT, file, -1, "", "the text is empty");
        return nib_hint(error, NIB_ERR_CORRUPT, "give a plain text file of at least a few thousand words");
    }
    const char *nul = memchr(data, '\0', n_bytes);
    if (nul != NULL) {
        nib_fail_at(error, NIB_ERR_CORRUPT, file, nul - data, "", "this is not a text: it has a NUL byte");
        return nib_hint(error, NIB_ERR_CORRUPT, "give a plain UTF-8 text file");
    }
    return NIB_OK;
}

/* Reads, checks and tokenizes; settles the number of chunks. */
static nib_status prepare_text(lockstep *l, const nib_eval_params *params, nib_eval *out) {
    nib_status status = NIB_OK;
    char *data = NULL;
    size_t n_bytes = 0;
    const nib_tokenizer *tokenizer = nib_model_text_tokenizer(l->lanes[0].model, l->error);
    if (tokenizer == NULL) return l->error->code;
    const nib_tokenizer_facts *facts = nib_tokenizer_facts_of(tokenizer);
    NIB_TRY_GOTO(read_text(params->text_path, &data, &n_bytes, out, l->error));
    NIB_TRY_GOTO(check_text(data, n_bytes, out->text_file, l->error));
    if (data[n_bytes - 1] == '\n') n_bytes--;
    NIB_TRY_GOTO(nib_tokenize(tokenizer, data, n_bytes, true, false, &l->tokens, l->error));
    if (facts->add_eos && l->tokens.n > 0 && l->tokens.ids[l->tokens.n - 1] == facts->eos) l->tokens.n--;
    l->bos = facts->add_bos ? facts->bos : -1;
    const size_t n_chunks = l->tokens.n / l->n_ctx;
    if (n_chunks < 2) {
        nib_fail_at(l->error, NIB_ERR_CORRUPT, out->text_file, -1, "",
                    "the text is too short: %zu tokens, at least %zu are needed for two chunks of %u", l->tokens.n,
                    (size_t)2 * l->n_ctx, l->n_ctx);
        status = nib_hint(l->error, NIB_ERR_CORRUPT, "give a longer text or a smaller context (--ctx)");
        goto fail;
    }
    out->n_tokens = l->tokens.n;
    out->n_ctx = l->n_ctx;
    out->n_chunks = params->n_chunks > 0 && params->n_chunks < n_chunks ? params->n_chunks : (uint32_t)n_chunks;
    out->n_scored = (uint64_t)out->n_chunks * l->n_rows;
fail:
    free(data);
    return status;
}

/* ---- Models ---------------------------------------------------------------------------------------------------------- */

static nib_status differing_vocabulary(const nib_model *a, const nib_model *b, nib_error *error, const char *how) {
    nib_fail_at(error, NIB_ERR_USAGE, nib_gguf_path(nib_model_gguf(b)), -1, "", "its vocabulary is not that of %s: %s",
                nib_gguf_path(nib_model_gguf(a)), how);
    return nib_hint(error, NIB_ERR_USAGE, "compare files made from one model");
}

/* Divergence only means something over the same tokens. A file without vocabulary is taken at its size. */
static nib_status check_same_vocabulary(const nib_model *a, const nib_model *b, nib_error *error) {
    char how[160];
    const uint32_t n = nib_model_facts_of(a)->n_vocab, m = nib_model_facts_of(b)->n_vocab;
    if (n != m) {
        snprintf(how, sizeof how, "%u tokens against %u", m, n);
        return differing_vocabulary(a, b, error, how);
    }
    const nib_tokenizer *s = nib_model_tokenizer(a), *t = nib_model_tokenizer(b);
    for (uint32_t i = 0; s != NULL && t != NULL && i < n; i++) {
        const nib_text x = nib_token_piece(s, (int32_t)i, true), y = nib_token_piece(t, (int32_t)i, true);
        if (x.n_bytes == y.n_bytes && (x.n_bytes == 0 || memcmp(x.data, y.data, x.n_bytes) == 0)) continue;
        snprintf(how, sizeof how, "token %u differs", i);
        return differing_vocabulary(a, b, error, how);
    }
    return NIB_OK;
}

static nib_status describe_model(const nib_model *model, nib_eval_model *out, nib_error *error) {
    const nib_gguf *gguf = nib_model_gguf(model);
    snprintf(out->model, sizeof out->model, "%s", nib_gguf_path(gguf));
    nib_format_label(gguf, out->format);
    out->bytes = nib_gguf_bytes(gguf);
    out->bpw = nib_model_facts_of(model)->bpw;
    out->weights_only_kld = out->weights_only_same_top = (double)NAN;
    return nib_gguf_hash(gguf, out->hash, error);
}

static nib_status open_lane(lockstep *l, eval_lane *lane, uint64_t n_scored) {
    const nib_session_params params = {
        .n_ctx = l->n_ctx, .n_seq = 1, .n_batch = BATCH_TOKENS, .exact = lane->exact, .kv = l->kv};
    const uint64_t n_hidden = (uint64_t)l->n_rows * nib_model_facts_of(lane->model)->n_embd;
    NIB_TRY(nib_session_new(lane->model, l->pool, &params, &lane->session, l->error));
    lane->hidden = nib_alloc(n_hidden, sizeof *lane->hidden);
    lane->rows = nib_alloc(l->tile.rows, sizeof *lane->rows);
    lane->series.nll = nib_alloc(n_scored, sizeof *lane->series.nll);
    lane->series.kld = nib_alloc(n_scored, sizeof *lane->series.kld);
    lane->series.dp = nib_alloc(n_scored, sizeof *lane->series.dp);
    lane->series.same_top = nib_alloc(n_scored, sizeof *lane->series.same_top);
    if (lane->hidden == NULL || lane->rows == NULL || lane->series.nll == NULL || lane->series.kld == NULL ||
        lane->series.dp == NULL || lane->series.same_top == NULL)
        return nib_fail_memory(l->error, n_hidden * sizeof(float) + n_scored * 17);
    return NIB_OK;
}

static nib_status open_lanes(lockstep *l, uint64_t n_scored) {
    l->tile = nib_head_tile_of(l->n_rows, l->n_vocab);
    for (uint32_t i = 0; i < l->n_lanes; i++) NIB_TRY(open_lane(l, &l->lanes[i], n_scored));
    const size_t n_logits = (size_t)l->tile.rows * l->tile.cols;
    l->chunk = nib_alloc(l->n_ctx, sizeof *l->chunk);
    l->reference_logits = nib_alloc_aligned(n_logits * sizeof *l->reference_logits);
    l->reference_terms = nib_alloc_aligned(n_logits * sizeof *l->reference_terms);
    l->logits = nib_alloc_aligned(n_logits * sizeof *l->logits);
    if (l->chunk == NULL || l->reference_logits == NULL || l->reference_terms == NULL || l->logits == NULL)
        return nib_fail_memory(l->error, 3 * n_logits * sizeof(float));
    return NIB_OK;
}

static void lockstep_fini(lockstep *l) {
    for (uint32_t i = 0; l->lanes != NULL && i < l->n_lanes; i++) {
        nib_session_free(l->lanes[i].session);
        free(l->lanes[i].hidden);
        free(l->lanes[i].rows);
        free(l->lanes[i].series.nll);
        free(l->lanes[i].series.kld);
        free(l->lanes[i].series.dp);
        free(l->lanes[i].series.same_top);
    }
    free(l->lanes);
    nib_ids_fini(&l->tokens);
    free(l->chunk);
    nib_free_aligned(l->reference_logits);
    nib_free_aligned(l->reference_terms);
    nib_free_aligned(l->logits);
}

/* ---- Running --------------------------------------------------------------------------------------------------------- */

/* A tile, for the workers. */
typedef struct tile_work {
    lockstep *l;
    eval_lane *lane;
    const int32_t *next; /* (tile.rows) the true next token of each row */
    const float *logits;
    uint32_t first, n; /* tokens of the vocabulary */
} tile_work;

static void add_rows(void *arg, size_t begin, size_t end, unsigned worker) {
    const tile_work *work = arg;
    const eval_lane *reference = &work->l->lanes[0];
    (void)worker;
    for (size_t r = begin; r < end; r++) {
        row_sums *row = &work->lane->rows[r];
        const float *logits = work->logits + r * work->n, *base = work->l->reference_logits + r * work->n;
        float *terms = work->l->reference_terms + r * work->n;
        const uint32_t next = (uint32_t)work->next[r] - work->first;
        if (work->lane == reference)
            nib_softmax_add(&row->softmax, logits, work->n, terms);
        else
            nib_divergence_add(&row->divergence, &reference->rows[r].softmax, base, terms, &row->softmax, logits,
                               work->n);
        if (next < work->n) row->next = logits[next];
    }
}

/* Numbers of the scored tokens `at` .. at + n - 1, of which all the vocabulary has passed. */
static void take_rows(const lockstep *l, eval_lane *lane, size_t at, uint32_t n) {
    const eval_lane *reference = &l->lanes[0];
    for (uint32_t r = 0; r < n; r++) {
        const row_sums *row = &lane->rows[r], *base = &reference->rows[r];
        const double nll = nib_softmax_log_sum(&row->softmax) - (double)row->next;
        const size_t i = at + r;
        lane->series.nll[i] = nll;
        if (lane == reference) continue;
        lane->series.kld[i] = (float)nib_divergence_of(&row->divergence, &base->softmax, &row->softmax);
        lane->series.dp[i] = (float)(exp(-nll) - exp(-reference->series.nll[i]));
        lane->series.same_top[i] = row->softmax.argmax == base->softmax.argmax;
    }
}

/* Rows begin .. begin + n - 1 of the chunk, all lanes. */
static nib_status score_rows(lockstep *l, uint32_t chunk, uint32_t begin, uint32_t n) {
    const int32_t *next = l->tokens.ids + (size_t)chunk * l->n_ctx + l->first + begin + 1;
    for (uint32_t i = 0; i < l->n_lanes; i++) memset(l->lanes[i].rows, 0, n * sizeof *l->lanes[i].rows);
    for (uint32_t first = 0; first < l->n_vocab; first += l->tile.cols) {
        const uint32_t left = l->n_vocab - first, n_cols = left < l->tile.cols ? left : l->tile.cols;
        for (uint32_t i = 0; i < l->n_lanes; i++) {
            eval_lane *lane = &l->lanes[i];
            const float *hidden = lane->hidden + (size_t)begin * nib_model_facts_of(lane->model)->n_embd;
            float *logits = i == 0 ? l->reference_logits : l->logits;
            tile_work work = {l, lane, next, logits, first, n_cols};
            NIB_TRY(nib_session_head_part(lane->session, hidden, n, first, n_cols, logits, l->error));
            nib_par_for(l->pool, n, 4, add_rows, &work);
        }
    }
    for (uint32_t i = 0; i < l->n_lanes; i++) take_rows(l, &l->lanes[i], (size_t)chunk * l->n_rows + begin, n);
    return NIB_OK;
}

static nib_status run_chunks(lockstep *l, uint32_t n_chunks) {
    nib_meter meter;
    nib_meter_init(&meter, l->watch, "perplexity", (double)n_chunks * l->n_ctx * l->n_lanes);
    for (uint32_t c = 0; c < n_chunks; c++) {
        memcpy(l->chunk, l->tokens.ids + (size_t)c * l->n_ctx, l->n_ctx * sizeof *l->chunk);
        if (l->bos >= 0) l->chunk[0] = l->bos;
        /* The chunk's last token predicts nothing that is scored. */
        const nib_segment segment = {.n = l->n_ctx - 1, .ids = l->chunk, .out_from = l->first};
        for (uint32_t i = 0; i < l->n_lanes; i++) {
            NIB_TRY(nib_session_run(l->lanes[i].session, &segment, 1, l->lanes[i].hidden, l->error));
            NIB_TRY(nib_meter_add(&meter, l->n_ctx, l->error));
        }
        for (uint32_t begin = 0; begin < l->n_rows; begin += l->tile.rows) {
            const uint32_t left = l->n_rows - begin;
            NIB_TRY(score_rows(l, c, begin, left < l->tile.rows ? left : l->tile.rows));
        }
    }
    return NIB_OK;
}

/* ---- Choice ---------------------------------------------------------------------------------------------------------- */

static nib_status run_choice(const lockstep *l, const nib_model *const *models, const nib_eval_params *params,
                             nib_eval *out) {
    nib_status status = NIB_OK;
    nib_choice_scores reference = {0}, scores = {0};
    snprintf(out->task, sizeof out->task, "%s", params->questions->name);
    out->n_questions = params->questions->n;
    NIB_TRY_GOTO(nib_choice_score(l->lanes[0].model, true, NIB_KV_F16, l->pool, params->questions, l->watch, &reference,
                                  l->error));
    nib_summarise_flips(&reference, &reference, &out->reference);
    for (uint32_t m = 0; m < out->n_models; m++) {
        NIB_TRY_GOTO(nib_choice_score(models[m], params->exact, params->kv, l->pool, params->questions, l->watch,
                                      &scores, l->error));
        nib_summarise_flips(&reference, &scores, &out->models[m]);
        nib_choice_scores_fini(&scores);
    }
fail:
    nib_choice_scores_fini(&reference);
    nib_choice_scores_fini(&scores);
    return status;
}

/* ---- All of it ------------------------------------------------------------------------------------------------------- */

/* Which lanes there are. The order is that of take_results. */
static nib_status plan_lanes(lockstep *l, const nib_model *reference, const nib_model *const *models,
                             const nib_eval_params *params, nib_eval *out) {
    l->lanes = nib_alloc(2 + (size_t)out->n_models * 2, sizeof *l->lanes);
    if (l->lanes == NULL) return nib_fail_memory(l->error, out->n_models * sizeof *l->lanes);
    NIB_TRY(describe_model(reference, &out->reference, l->error));
    l->lanes[l->n_lanes++] = (eval_lane){.model = reference, .exact = true};
    if (!params->exact) l->lanes[l->n_lanes++] = (eval_lane){.model = reference};
    for (uint32_t m = 0; m < out->n_models; m++) {
        NIB_TRY(check_same_vocabulary(reference, models[m], l->error));
        NIB_TRY(describe_model(models[m], &out->models[m], l->error));
        l->lanes[l->n_lanes++] = (eval_lane){.model = models[m], .exact = params->exact};
        if (params->weights_only && !params->exact)
            l->lanes[l->n_lanes++] = (eval_lane){.model = models[m], .exact = true};
    }
    return NIB_OK;
}

static void take_results(lockstep *l, const nib_eval_params *params, nib_eval *out) {
    const size_t n = out->n_scored;
    eval_lane *lane = l->lanes;
    const double *reference_nll = (lane++)->series.nll;
    nib_summarise_nll(reference_nll, n, &out->reference);
    out->noise_floor_kld = out->noise_floor_same_top = (double)NAN;
    if (!params->exact) {
        out->noise_floor_kld = nib_mean_kld(&lane->series, n);
        out->noise_floor_same_top = nib_share_of_same_top(&lane->series, n);
        lane++;
    }
    for (uint32_t m = 0; m < out->n_models; m++) {
        nib_eval_model *model = &out->models[m];
        nib_summarise_pair(reference_nll, &lane->series, n, model);
        model->kld_tokens = lane->series.kld;
        lane->series.kld = NULL;
        lane++;
        if (params->exact) {
            model->weights_only_kld = model->kld.mean;
            model->weights_only_same_top = model->same_top;
        } else if (params->weights_only) {
            model->weights_only_kld = nib_mean_kld(&lane->series, n);
            model->weights_only_same_top = nib_share_of_same_top(&lane->series, n);
            lane++;
        }
    }
}

static nib_status check_context(const lockstep *l, const nib_model *reference) {
    const uint32_t trained = nib_model_facts_of(reference)->n_ctx_train;
    if (l->n_ctx < MIN_N_CTX || l->n_ctx > MAX_N_CTX)
        return nib_fail(l->error, NIB_ERR_USAGE, "a context of %u tokens; it must be %d to %d", l->n_ctx, MIN_N_CTX,
                        MAX_N_CTX);
    if (trained > 0 && l->n_ctx > trained)
        nib_warn(l->watch, "chunks of %u tokens are longer than the %u the model was trained with", l->n_ctx, trained);
    return NIB_OK;
}

nib_status nib_eval_run(const nib_model *reference, const nib_model *const *models, uint32_t n_models,
                        const nib_eval_params *params, nib_pool *pool, const nib_watch *watch, nib_eval *out,
                        nib_error *error) {
    nib_status status = NIB_OK;
    nib_error own;
    const double began = nib_now();
    lockstep l = {.pool = pool, .watch = watch, .error = error != NULL ? error : &own};
    l.n_ctx = params->n_ctx > 0 ? params->n_ctx : DEFAULT_N_CTX;
    l.first = l.n_ctx / 2;
    l.kv = params->kv;
    l.n_rows = l.n_ctx - 1 - l.first;
    l.n_vocab = nib_model_facts_of(reference)->n_vocab;
    *out = (nib_eval){.exact = params->exact, .kv = params->kv};
    NIB_TRY_GOTO(check_context(&l, reference));
    out->models = nib_alloc(n_models, sizeof *out->models);
    if (out->models == NULL) NIB_TRY_GOTO(nib_fail_memory(error, n_models * sizeof *out->models));
    out->n_models = n_models;
    NIB_TRY_GOTO(plan_lanes(&l, reference, models, params, out));
    NIB_TRY_GOTO(prepare_text(&l, params, out));
    NIB_TRY_GOTO(open_lanes(&l, out->n_scored));
    NIB_TRY_GOTO(run_chunks(&l, out->n_chunks));
    take_results(&l, params, out);
    if (params->questions != NULL) NIB_TRY_GOTO(run_choice(&l, models, params, out));
    out->seconds = nib_now() - began;
fail:
    lockstep_fini(&l);
    if (status != NIB_OK) nib_eval_fini(out);
    return status;
}

void nib_eval_fini(nib_eval *eval) {
    if (eval == NULL) return;
    for (uint32_t m = 0; m < eval->n_models; m++) free(eval->models[m].kld_tokens);
    free(eval->models);
    *eval = (nib_eval){0};
}
