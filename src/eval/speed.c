/* Speed: prompt processing (batches of 512 tokens) and generation (one token at a time, of one or several sequences) of
 * several models, beside what the machine could do.
 *
 *   round r:   model 1 pp, tg | model 2 pp, tg | ...      so that a disturbance hits all models alike
 *
 * Token ids are pseudo-random from a fixed seed: the work does not depend on them, and nothing is sampled. One warm-up of
 * each model is not counted. Only the last token of a prompt gets logits, as in use. */
#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "cpu/cpu.h"
#include "eval/divergence.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    BATCH_TOKENS = 512,
    DEFAULT_RUNS = 5,
    MAX_RUNS = 10000,
    MAX_TOKENS = 1 << 24,
    MAX_BATCH = 512,
    GENERATION_WEIGHT = 8
};

static const double ceiling_seconds = 0.6;

typedef struct runner {
    const nib_model *model;
    nib_session *session;
    uint32_t n_seq;
    nib_segment *segments;                 /* (n_seq) */
    float *hidden, *logits;                /* (n_seq, n_embd), (n_seq, n_vocab) */
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

static nib_status open_runner(runner *r, nib_pool *pool, const nib_bench_params *p, uint32_t n_ids, nib_error *error) {
    const nib_model_facts *facts = nib_model_facts_of(r->model);
    const nib_session_params params = {
        .n_ctx = p->depth + n_ids, .n_seq = p->batch, .n_batch = BATCH_TOKENS, .kv = p->kv};
    const uint32_t most = p->depth > n_ids ? p->depth : n_ids;
    uint64_t seed = 1;
    r->n_seq = p->batch;
    NIB_TRY(nib_session_new(r->model, pool, &params, &r->session, error));
    r->segments = nib_alloc(r->n_seq, sizeof *r->segments);
    r->hidden = nib_alloc((size_t)r->n_seq * facts->n_embd, sizeof *r->hidden);
    r->logits = nib_alloc((size_t)r->n_seq * facts->n_vocab, sizeof *r->logits);
    r->ids = nib_alloc(most, sizeof *r->ids);
    if (r->segments == NULL || r->hidden == NULL || r->logits == NULL || r->ids == NULL)
        return nib_fail_memory(error, (((uint64_t)facts->n_embd + facts->n_vocab) * r->n_seq + most) * sizeof(float));
    for (uint32_t i = 0; i < most; i++) r->ids[i] = (int32_t)(next_random(&seed) % facts->n_vocab);
    return NIB_OK;
}

static void runner_fini(runner *r) {
    nib_session_free(r->session);
    free(r->segments);
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

/* Seconds to add n tokens to every sequence. */
static nib_status time_generation(runner *r, uint32_t depth, uint32_t n, nib_meter *meter, double *seconds,
                                  nib_error *error) {
    const double began = nib_now();
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t s = 0; s < r->n_seq; s++)
            r->segments[s] = (nib_segment){.seq = s, .pos = depth + i, .n = 1, .ids = &r->ids[(i + s) % n]};
        NIB_TRY(nib_session_run(r->session, r->segments, r->n_seq, r->hidden, error));
        NIB_TRY(nib_session_head(r->session, r->hidden, r->n_seq, r->logits, error));
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
        for (uint32_t s = 1; s < r->n_seq; s++) NIB_TRY(nib_session_copy(r->session, 0, s, params->depth, error));
        NIB_TRY(nib_meter_add(meter, params->depth, error));
    }
    if (params->n_prompt > 0) {
        NIB_TRY(time_prompt(r, params->depth, params->n_prompt, &seconds, error));
        NIB_TRY(nib_meter_add(meter, params->n_prompt, error));
    }
    return params->n_generate > 0 ? time_generation(r, params->depth, 1, meter, &seconds, error) : NIB_OK;
}

/* ---- Ceilings ---------------------------------------------------------------------------------------------------------- */

/* What one step takes: so many tokens through the layers, some of them through the head too. */
typedef struct step_cost {
    double n_tokens;
    double bytes; /* read from memory */
    double int8_macs, bf16_macs, f32_macs;
} step_cost;

static void add_cost(step_cost *out, const nib_token_cost *cost, double n_tokens) {
    out->bytes += (double)cost->weight_bytes;
    out->int8_macs += (double)cost->int8_macs * n_tokens;
    out->bf16_macs += (double)cost->bf16_macs * n_tokens;
    out->f32_macs += (double)cost->f32_macs * n_tokens;
}

/* n_tokens of n_seq sequences, n_positions of cache seen by each token on average. */
static nib_status cost_of_step(const runner *r, double n_tokens, double n_wanted, double n_seq, double n_positions,
                               nib_kv kv, step_cost *out, nib_error *error) {
    const nib_model_facts *facts = nib_model_facts_of(r->model);
    const nib_session_params session = {.n_ctx = 1, .kv = kv};
    nib_memory_plan plan;
    nib_token_cost each, wanted;
    NIB_TRY(nib_session_plan(r->model, &session, 1, &plan, error));
    NIB_TRY(nib_model_token_cost(r->model, &each, &wanted, error));
    *out = (step_cost){.n_tokens = n_tokens, .bytes = (double)plan.kv_per_token * n_positions * n_seq};
    add_cost(out, &each, n_tokens);
    add_cost(out, &wanted, n_wanted);
    out->f32_macs += 2.0 * facts->n_layer * facts->n_head * facts->head_dim * n_positions * n_tokens; /* attention */
    return NIB_OK;
}

static void compare_with_ceilings(const step_cost *cost, const nib_cpu_ceilings *ceilings, nib_bench_result *result) {
    if (!(ceilings->read_bytes_per_s > 0)) return;
    const double seconds = cost->n_tokens / result->tokens_per_s;
    const double int8 = cost->int8_macs / ceilings->int8_macs_per_s;
    const double bf16 = cost->bf16_macs / ceilings->bf16_macs_per_s, f32 = cost->f32_macs / ceilings->f32_macs_per_s;
    result->of_memory = cost->bytes / ceilings->read_bytes_per_s / seconds;
    result->of_compute = (int8 + bf16 + f32) / seconds;
    result->of_ceiling = fmax(result->of_memory, result->of_compute);
    result->peak = int8 >= bf16 && int8 >= f32 ? "int8" : bf16 >= f32 ? "bf16" : "f32";
}

/* ---- Results ----------------------------------------------------------------------------------------------------------- */

static nib_status open_result(const nib_model *model, const char *test, uint32_t n, uint32_t batch,
                              const nib_bench_params *params, const nib_pool *pool, nib_bench_result *out,
                              nib_error *error) {
    const nib_gguf *gguf = nib_model_gguf(model);
    snprintf(out->model, sizeof out->model, "%s", nib_gguf_path(gguf));
    nib_format_label(gguf, out->format);
    size_t at = (size_t)snprintf(out->test, sizeof out->test, "%s%u", test, n);
    if (batch > 1) at += (size_t)snprintf(out->test + at, sizeof out->test - at, " x%u", batch);
    if (params->depth > 0) snprintf(out->test + at, sizeof out->test - at, " @ d%u", params->depth);
    out->batch = batch;
    out->bytes = nib_gguf_bytes(gguf);
    out->bpw = nib_model_facts_of(model)->bpw;
    out->depth = params->depth;
    out->kv = params->kv;
    out->threads = nib_pool_size(pool);
    out->of_memory = out->of_compute = out->of_ceiling = (double)NAN;
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
        r->generation->runs[r->generation->n_runs++] = (double)params->n_generate * r->n_seq / seconds;
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
        params->depth > MAX_TOKENS || params->batch > MAX_BATCH)
        return nib_fail(error, NIB_ERR_USAGE, "at most %d runs, %d tokens and %d sequences", MAX_RUNS, MAX_TOKENS,
                        MAX_BATCH);
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
            NIB_TRY(open_result(r->model, "pp", params->n_prompt, 1, params, pool, r->prompt, error));
        }
        if (params->n_generate > 0) {
            r->generation = &out->results[out->n++];
            NIB_TRY(open_result(r->model, "tg", params->n_generate, params->batch, params, pool, r->generation, error));
        }
    }
    return NIB_OK;
}

static nib_status summarise(runner *runners, uint32_t n_models, const nib_bench_params *params, nib_bench *out,
                            nib_error *error) {
    const double n = params->n_prompt, depth = params->depth, n_seq = params->batch;
    step_cost cost;
    for (uint32_t i = 0; i < out->n; i++) summarise_runs(&out->results[i]);
    for (uint32_t m = 0; m < n_models; m++) {
        const runner *r = &runners[m];
        if (r->prompt != NULL) { /* weights pass by once per batch of tokens, the cache once per batch too */
            const double per_batch = fmin(n, BATCH_TOKENS);
            NIB_TRY(cost_of_step(r, per_batch, per_batch / n, 1, depth + n / 2, params->kv, &cost, error));
            compare_with_ceilings(&cost, &out->ceilings, r->prompt);
        }
        if (r->generation != NULL) {
            NIB_TRY(cost_of_step(r, n_seq, n_seq, n_seq, depth + params->n_generate / 2.0, params->kv, &cost, error));
            compare_with_ceilings(&cost, &out->ceilings, r->generation);
        }
    }
    return NIB_OK;
}

nib_status nib_bench_run(const nib_model *const *models, uint32_t n_models, const nib_bench_params *params,
                         nib_pool *pool, const nib_watch *watch, nib_bench *out, nib_error *error) {
    nib_status status = NIB_OK;
    nib_bench_params p = *params;
    nib_meter meter;
    runner *runners = NULL;
    nib_cpu_busy busy;
    if (p.runs == 0) p.runs = DEFAULT_RUNS;
    if (p.batch == 0) p.batch = 1;
    *out = (nib_bench){0};
    NIB_TRY(check_params(&p, n_models, error));
    runners = nib_alloc(n_models, sizeof *runners);
    out->results = nib_alloc((size_t)n_models * 2, sizeof *out->results);
    if (runners == NULL || out->results == NULL)
        NIB_TRY_GOTO(nib_fail_memory(error, (uint64_t)n_models * 2 * sizeof *out->results));
    NIB_TRY_GOTO(prepare(runners, models, n_models, &p, pool, out, error));
    nib_cpu_busy_begin(&busy);
    nib_cpu_measure_ceilings(pool, ceiling_seconds, &out->ceilings);
    const double per_round = p.n_prompt + (double)GENERATION_WEIGHT * p.n_generate;
    const double per_model = p.depth + p.n_prompt + (p.n_generate > 0 ? GENERATION_WEIGHT : 0) + p.runs * per_round;
    nib_meter_init(&meter, watch, "speed", n_models * per_model);
    for (uint32_t m = 0; m < n_models; m++) NIB_TRY_GOTO(warm_up(&runners[m], &p, &meter, error));
    for (uint32_t r = 0; r < p.runs; r++)
        for (uint32_t m = 0; m < n_models; m++) NIB_TRY_GOTO(run_round(&runners[m], &p, &meter, error));
    out->busy_others = nib_cpu_busy_others(&busy);
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
