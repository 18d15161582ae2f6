/* Speed: prompt processing (batches of 512 tokens) and generation (one token at a time) of several models.
 *
 *   round r:   model 1 pp, tg | model 2 pp, tg | ...      so that a disturbance hits all models alike
 *
 * Token ids are pseudo-random from a fixed seed: the work does not depend on them, and nothing is sampled. One warm-up of
 * each model is not counted. Only the last token of a prompt gets logits, as in use. */
#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "eval/divergence.h"
#include "nibble/cpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH_TOKENS = 512, DEFAULT_RUNS = 5, MAX_RUNS = 10000, MAX_TOKENS = 1 << 24, GENERATION_WEIGHT = 8 };

static const double bandwidth_seconds = 0.3;

typedef struct runner {
    const nib_model *model;
    nib_session *session;
    float *hidden, *logits;                /* (n_embd), (n_vocab) */
    int32_t *ids;                          /* (n_ids) */
    nib_bench_result *prompt, *generation; /* NULL = test not wanted */
} runner;

/* SplitMix64 (Steele, Lea, Flood 2014): one well-mixed number per step. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static nib_status open_runner(runner *r, nib_pool *pool, const nib_bench_params *bench, uint32_t n_ids, nib_error *error) {
    const nib_model_facts *facts = nib_model_facts_of(r->model);
    const uint32_t depth = bench->depth;
    const nib_session_params params = {
        .n_ctx = depth + n_ids, .n_seq = 1, .n_batch = BATCH_TOKENS, .kv = bench->kv};
    const uint32_t most = depth > n_ids ? depth : n_ids;
    uint64_t seed = 1;
    NIB_TRY(nib_session_new(r->model, pool, &params, &r->session, error));
    r->hidden = nib_alloc(facts->n_embd, sizeof *r->hidden);
    r->logits = nib_alloc(facts->n_vocab, sizeof *r->logits);
    r->ids = nib_alloc(most, sizeof *r->ids);
    if (r->hidden == NULL || r->logits == NULL || r->ids == NULL)
        return nib_fail_memory(error, ((uint64_t)facts->n_embd + facts->n_vocab + most) * sizeof(float));
    for (uint32_t i = 0; i < most; i++) r->ids[i] = (int32_t)(next_random(&seed) % facts->n_vocab);
    return NIB_OK;
}

static void runner_fini(runner *r) {
    nib_session_free(r->session);
    free(r->hidden);
    free(r->logits);
    free(r->ids);
}

/* Seconds to process n prompt tokens after depth cached ones. */
static nib_status time_prompt(runner *r, uint32_t depth, uint32_t n, double *seconds, nib_error *error) {
    const nib_segment segment = {.pos = depth, .n = n, .ids = r->ids, .out_from = n - 1};
    const double began = nib_now();
    NIB_TRY(nib_session_run(r->session, &segment, 1, r->hidden, error));
    NIB_TRY(nib_session_head(r->session, r->hidden, 1, r->logits, error));
    *seconds = nib_now() - began;
    return NIB_OK;
}

static nib_status time_generation(runner *r, uint32_t depth, uint32_t n, nib_meter *meter, double *seconds,
                                  nib_error *error) {
    const double began = nib_now();
    for (uint32_t i = 0; i < n; i++) {
        NIB_TRY(nib_session_next(r->session, depth + i, &r->ids[i], 1, r->logits, error));
        NIB_TRY(nib_meter_add(meter, GENERATION_WEIGHT, error));
    }
    *seconds = nib_now() - began;
    return NIB_OK;
}

/* Fills the cache up to the depth and wakes everything once. */
static nib_status warm_up(runner *r, const nib_bench_params *params, nib_meter *meter, nib_error *error) {
    double seconds;
    if (params->depth > 0) {
        const nib_segment segment = {.n = params->depth, .ids = r->ids, .out_from = params->depth};
        NIB_TRY(nib_session_run(r->session, &segment, 1, NULL, error));
        NIB_TRY(nib_meter_add(meter, params->depth, error));
    }
    if (params->n_prompt > 0) {
        NIB_TRY(time_prompt(r, params->depth, params->n_prompt, &seconds, error));
        NIB_TRY(nib_meter_add(meter, params->n_prompt, error));
    }
    return params->n_generate > 0 ? time_generation(r, params->depth, 1, meter, &seconds, error) : NIB_OK;
}

/* Bytes that have to be read for one generated token: every matrix but an embedding table that is only looked up (it is
 * read whole where it serves as the output matrix too), and the keys and values of half the positions on average. */
static nib_status bytes_per_token(const runner *r, const nib_bench_params *params, double *out, nib_error *error) {
    const nib_session_params session = {
        .n_ctx = params->depth + params->n_generate, .n_seq = 1, .n_batch = BATCH_TOKENS, .kv = params->kv};
    const nib_gguf *gguf = nib_model_gguf(r->model);
    const bool is_tied = nib_gguf_tensor_find(gguf, "output.weight") == NULL;
    nib_memory_plan plan;
    uint64_t bytes = 0;
    NIB_TRY(nib_session_plan(r->model, &session, 1, &plan, error));
    for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(gguf, i);
        const bool is_table = strcmp(tensor->name, "token_embd.weight") == 0;
        bytes += is_table && !is_tied ? tensor->n_bytes / tensor->ne[1] : tensor->n_bytes;
    }
    *out = (double)bytes + (double)plan.kv_per_token * (params->depth + params->n_generate / 2.0);
    return NIB_OK;
}

static nib_status open_result(const nib_model *model, const char *test, uint32_t n, const nib_bench_params *params,
                              const nib_pool *pool, nib_bench_result *out, nib_error *error) {
    const nib_gguf *gguf = nib_model_gguf(model);
    snprintf(out->model, sizeof out->model, "%s", nib_gguf_path(gguf));
    nib_format_label(gguf, out->format);
    if (params->depth > 0)
        snprintf(out->test, sizeof out->test, "%s%u @ d%u", test, n, params->depth);
    else
        snprintf(out->test, sizeof out->test, "%s%u", test, n);
    out->bytes = nib_gguf_bytes(gguf);
    out->bpw = nib_model_facts_of(model)->bpw;
    out->depth = params->depth;
    out->kv = params->kv;
    out->threads = nib_pool_size(pool);
    out->of_ceiling = (double)NAN;
    out->runs = nib_alloc(params->runs, sizeof *out->runs);
    return out->runs != NULL ? NIB_OK : nib_fail_memory(error, params->runs * sizeof *out->runs);
}

static nib_status run_round(runner *r, const nib_bench_params *params, nib_meter *meter, nib_error *error) {
    double seconds;
    if (r->prompt != NULL) {
        NIB_TRY(time_prompt(r, params->depth, params->n_prompt, &seconds, error));
        r->prompt->runs[r->prompt->n_runs++] = params->n_prompt / seconds;
        NIB_TRY(nib_meter_add(meter, params->n_prompt, error));
    }
    if (r->generation != NULL) {
        NIB_TRY(time_generation(r, params->depth, params->n_generate, meter, &seconds, error));
        r->generation->runs[r->generation->n_runs++] = params->n_generate / seconds;
    }
    return NIB_OK;
}

static void summarise_runs(nib_bench_result *result) {
    const uint32_t n = result->n_runs;
    double squares = 0;
    for (uint32_t i = 0; i < n; i++) result->tokens_per_s += result->runs[i] / n;
    for (uint32_t i = 0; i < n; i++)
        squares += (result->runs[i] - result->tokens_per_s) * (result->runs[i] - result->tokens_per_s);
    result->stddev = n > 1 ? sqrt(squares / (n - 1)) : 0;
}

static nib_status check_params(const nib_bench_params *params, uint32_t n_models, nib_error *error) {
    if (n_models == 0 || (params->n_prompt == 0 && params->n_generate == 0))
        return nib_fail(error, NIB_ERR_USAGE,
                        "there is nothing to measure: no model, or neither prompt nor generation");
    if (params->runs > MAX_RUNS || params->n_prompt > MAX_TOKENS || params->n_generate > MAX_TOKENS ||
        params->depth > MAX_TOKENS)
        return nib_fail(error, NIB_ERR_USAGE, "at most %d runs and %d tokens", MAX_RUNS, MAX_TOKENS);
    return NIB_OK;
}

/* Opens sessions and results of all models. */
static nib_status prepare(runner *runners, const nib_model *const *models, uint32_t n_models,
                          const nib_bench_params *params, nib_pool *pool, nib_bench *out, nib_error *error) {
    const uint32_t n_ids = params->n_prompt > params->n_generate ? params->n_prompt : params->n_generate;
    for (uint32_t m = 0; m < n_models; m++) {
        runner *r = &runners[m];
        r->model = models[m];
        NIB_TRY(open_runner(r, pool, params, n_ids, error));
        if (params->n_prompt > 0) {
            r->prompt = &out->results[out->n++];
            NIB_TRY(open_result(r->model, "pp", params->n_prompt, params, pool, r->prompt, error));
        }
        if (params->n_generate > 0) {
            r->generation = &out->results[out->n++];
            NIB_TRY(open_result(r->model, "tg", params->n_generate, params, pool, r->generation, error));
        }
    }
    return NIB_OK;
}

static nib_status summarise(runner *runners, uint32_t n_models, const nib_bench_params *params, nib_bench *out,
                            nib_error *error) {
    for (uint32_t i = 0; i < out->n; i++) summarise_runs(&out->results[i]);
    for (uint32_t m = 0; params->n_generate > 0 && m < n_models; m++) {
        double bytes;
        NIB_TRY(bytes_per_token(&runners[m], params, &bytes, error));
        if (out->read_bytes_per_s > 0)
            runners[m].generation->of_ceiling = bytes * runners[m].generation->tokens_per_s / out->read_bytes_per_s;
    }
    return NIB_OK;
}

nib_status nib_bench_run(const nib_model *const *models, uint32_t n_models, const nib_bench_params *params,
                         nib_pool *pool, const nib_watch *watch, nib_bench *out, nib_error *error) {
    nib_status status = NIB_OK;
    nib_bench_params p = *params;
    nib_meter meter;
    runner *runners = NULL;
    if (p.runs == 0) p.runs = DEFAULT_RUNS;
    *out = (nib_bench){0};
    NIB_TRY(check_params(&p, n_models, error));
    runners = nib_alloc(n_models, sizeof *runners);
    out->results = nib_alloc((size_t)n_models * 2, sizeof *out->results);
    if (runners == NULL || out->results == NULL)
        NIB_TRY_GOTO(nib_fail_memory(error, (uint64_t)n_models * 2 * sizeof *out->results));
    NIB_TRY_GOTO(prepare(runners, models, n_models, &p, pool, out, error));
    out->read_bytes_per_s = nib_cpu_measure_read_bandwidth(pool, bandwidth_seconds);
    const double per_round = p.n_prompt + (double)GENERATION_WEIGHT * p.n_generate;
    const double per_model = p.depth + p.n_prompt + (p.n_generate > 0 ? GENERATION_WEIGHT : 0) + p.runs * per_round;
    nib_meter_init(&meter, watch, "speed", n_models * per_model);
    for (uint32_t m = 0; m < n_models; m++) NIB_TRY_GOTO(warm_up(&runners[m], &p, &meter, error));
    for (uint32_t r = 0; r < p.runs; r++)
        for (uint32_t m = 0; m < n_models; m++) NIB_TRY_GOTO(run_round(&runners[m], &p, &meter, error));
    NIB_TRY_GOTO(summarise(runners, n_models, &p, out, error));
fail:
    for (uint32_t m = 0; runners != NULL && m < n_models; m++) runner_fini(&runners[m]);
    free(runners);
    if (status != NIB_OK) nib_bench_fini(out);
    return status;
}

void nib_bench_fini(nib_bench *bench) {
    if (bench == NULL) return;
    for (uint32_t i = 0; i < bench->n; i++) free(bench->results[i].runs);
    free(bench->results);
    *bench = (nib_bench){0};
}
