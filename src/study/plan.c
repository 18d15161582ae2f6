/* Foretelling a study: a short run of the reference gives this machine's speed, sizes give the rest. */
#include "study/plan.h"

#include "base/files.h"
#include "file/demo.h"
#include "study/parts.h"
#include "study/talk.h"
#include "study/workdir.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

/* Rules of thumb, seconds on one thread; they only weigh the parts against each other. */
#define QUANTIZE_SECONDS_PER_WEIGHT 1e-7
#define WEIGHTS_SECONDS_PER_WEIGHT  1e-8
#define TOKENS_PER_QUESTION         80  /* four choices of twenty tokens */
#define SHARE_OF_ANSWER             0.5 /* of the most tokens an answer may have, what it takes on average */
#define EVAL_CTX                    512

/* The recipes named after a format of the grid family. */
static uint32_t grid_levels(const nib_recipe **out, uint32_t capacity) {
    const nib_recipe *recipe;
    uint32_t n = 0;
    for (unsigned i = 0; (recipe = nib_recipe_at(i)) != NULL; i++) {
        if (!nib_format_is_grid(nib_recipe_format(recipe))) continue;
        if (n < capacity) out[n] = recipe;
        n++;
    }
    return n;
}

uint32_t nib_study_levels(const char *set, const nib_recipe **out, uint32_t capacity) {
    static const char *const by_default[] = {"q8_0", "q6_k", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k", NULL};
    static const char *const article[] = {"q8_0", "q8a", "q4_1", "q4_0", "q2_k", "q2s", NULL};
    const char *const *names = strcmp(set, "default") == 0 ? by_default : strcmp(set, "article") == 0 ? article : NULL;
    uint32_t n = 0;
    if (strcmp(set, "grid") == 0) return grid_levels(out, capacity);
    for (; names != NULL && names[n] != NULL; n++) {
        const nib_recipe *recipe = nib_recipe_find(names[n], NULL);
        if (recipe == NULL) return 0;
        if (n < capacity) out[n] = recipe;
    }
    return n;
}

void nib_study_name(const char *model, char out[256]) {
    const char *slash = strrchr(model, '/');
    snprintf(out, 256, "%s", slash != NULL ? slash + 1 : model);
    const size_t n = strlen(out);
    if (n > 5 && strcmp(out + n - 5, ".gguf") == 0) out[n - 5] = '\0';
    for (char *at = out; *at != '\0'; at++)
        if (!isalnum((unsigned char)*at) && strchr("._-+", *at) == NULL) *at = '_';
    if (out[0] == '\0' || out[0] == '.') snprintf(out, 256, "model");
}

void nib_study_out_dir(const nib_study_params *params, char out[1024]) {
    char name[256];
    nib_study_name(params->model, name);
    if (params->out_dir != NULL)
        snprintf(out, 1024, "%s", params->out_dir);
    else
        snprintf(out, 1024, "nibble-study-%s", name);
}

nib_status nib_study_check_levels(const nib_study_params *params, nib_error *error) {
    if (params->n_levels == 0) return nib_fail(error, NIB_ERR_USAGE, "a study needs at least one level");
    if (params->n_levels > NIB_STUDY_MAX_LEVELS)
        return nib_fail(error, NIB_ERR_USAGE, "%u levels are too many for one study; %d is the most", params->n_levels,
                        NIB_STUDY_MAX_LEVELS);
    for (uint32_t i = 0; i < params->n_levels; i++)
        for (uint32_t k = 0; k < i; k++)
            if (params->levels[i] == params->levels[k])
                return nib_fail(error, NIB_ERR_USAGE, "the level %s is asked for twice",
                                nib_recipe_name(params->levels[i]));
    return NIB_OK;
}

nib_status nib_study_read_questions(const nib_study_params *params, nib_questions *out, nib_error *error) {
    *out = (nib_questions){0};
    if (params->map) return NIB_OK;
    const char *path = params->choice_path;
    if (path == NULL && strcmp(params->model, "demo") == 0) path = "demo";
    if (path == NULL || *path == '\0') return NIB_OK;
    return nib_questions_read(path, out, error);
}

/* ---- Speed ----------------------------------------------------------------------------------------------------------- */

#define PROBE_TOKENS 32

/* Seconds of a token while reading and while writing, after a first run that brings the weights into memory. A slow first
 * run is taken as it is. write may be NULL. */
static nib_status measure_speed(const nib_model *model, nib_pool *pool, bool exact, double *read, double *write,
                                nib_error *error) {
    const uint32_t n_vocab = nib_model_facts_of(model)->n_vocab, n_trained = nib_model_facts_of(model)->n_ctx_train;
    const uint32_t n = n_trained != 0 && n_trained < PROBE_TOKENS + 4 ? 1 : PROBE_TOKENS;
    int32_t ids[PROBE_TOKENS];
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 7 + 1) % n_vocab);
    nib_session *session = NULL;
    const nib_session_params params = {.n_ctx = n + 4, .n_batch = n, .exact = exact};
    NIB_TRY(nib_session_new(model, pool, &params, &session, error));
    nib_status status = NIB_OK;
    double seconds = INFINITY;
    for (unsigned run = 0; run < 3 && status == NIB_OK && (run == 0 || seconds < 1); run++) {
        const nib_segment segment = {.n = n, .ids = ids, .out_from = n};
        const double began = nib_now();
        status = nib_session_run(session, &segment, 1, NULL, error);
        seconds = fmin(seconds, nib_now() - began);
    }
    *read = seconds / n;
    double slowest = 0;
    for (uint32_t i = 0; write != NULL && i < 3 && status == NIB_OK; i++) {
        const nib_segment segment = {.pos = n + i, .n = 1, .ids = ids, .out_from = 1};
        const double began = nib_now();
        status = nib_session_run(session, &segment, 1, NULL, error);
        slowest = fmax(slowest, nib_now() - began);
    }
    if (write != NULL) *write = slowest;
    nib_session_free(session);
    return status;
}

/* ---- The parts ------------------------------------------------------------------------------------------------------- */

/* A token of text is four bytes or so. */
static nib_status text_tokens(const nib_study_params *params, double *n_tokens, nib_error *error) {
    double n_bytes = 0;
    if (params->text_path == NULL) {
        const uint8_t *data = NULL;
        size_t n = 0;
        if (nib_demo_file("text", &data, &n)) n_bytes = (double)n;
    } else if (strcmp(params->text_path, "-") != 0) {
        struct stat info;
        if (stat(params->text_path, &info) != 0)
            return nib_fail_errno(error, params->text_path, "cannot read the text");
        n_bytes = (double)info.st_size;
    }
    *n_tokens = n_bytes / 4;
    if (params->n_chunks != 0) *n_tokens = fmin(*n_tokens, (double)params->n_chunks * EVAL_CTX);
    return NIB_OK;
}

/* Fewer and shorter runs where each takes long. */
static nib_bench_params fit_bench(uint32_t n_ctx_train, uint32_t n_models, double read, double write) {
    nib_bench_params out = {.n_prompt = 512, .n_generate = 128, .runs = 5};
    if (n_models * (512 * read + 128 * write) > 60) {
        out.n_prompt = 128;
        out.n_generate = 32;
    }
    if (n_ctx_train != 0 && out.n_prompt > n_ctx_train) out.n_prompt = n_ctx_train;
    if (n_ctx_train != 0 && out.n_generate > n_ctx_train) out.n_generate = n_ctx_train;
    const double round = n_models * (out.n_prompt * read + out.n_generate * write);
    out.runs = round > 40 ? 2 : round > 20 ? 3 : 5;
    return out;
}

nib_status nib_study_cost(const nib_study_params *params, const nib_model *reference, const nib_questions *questions,
                          uint32_t n_prompts, nib_pool *pool, nib_study_costs *out, nib_error *error) {
    const nib_model_facts *facts = nib_model_facts_of(reference);
    const double threads = nib_pool_size(pool), n_models = 1 + params->n_levels;
    double read = 0, write = 0, exact = 0, n_tokens = 0;
    nib_memory_plan plan;
    const nib_session_params session = {.n_ctx = EVAL_CTX};
    NIB_TRY(nib_session_plan(reference, &session, nib_pool_size(pool), &plan, error));
    NIB_TRY(text_tokens(params, &n_tokens, error));
    NIB_TRY(measure_speed(reference, pool, false, &read, &write, error));
    NIB_TRY(measure_speed(reference, pool, true, &exact, NULL, error));
    /* Runs above have no head; half of the tokens of a text are scored. */
    const double head = (double)facts->n_vocab * facts->n_embd;
    const double body = fmax((double)plan.macs_per_token - head, head * 0.01);
    out->quantize = (double)facts->n_params * QUANTIZE_SECONDS_PER_WEIGHT / threads;
    out->weights = (double)facts->n_params * WEIGHTS_SECONDS_PER_WEIGHT / threads;
    const double n_exact = params->map ? 1 : n_models; /* a map leaves out the loss of the weights alone */
    out->eval = n_tokens * (n_models * read + n_exact * exact) * (1 + 0.5 * head / body) +
                n_models * (double)questions->n * TOKENS_PER_QUESTION * read * (1 + 0.3 * head / body);
    write *= 1 + head / body;
    out->bench_params = fit_bench(facts->n_ctx_train, (uint32_t)n_models, read, write);
    const uint32_t tries = params->n_tries != 0 ? params->n_tries : 1;
    out->answers = n_prompts * tries * (20 * read + SHARE_OF_ANSWER * nib_talk_tokens(params) * write);
    const nib_bench_params *bench = &out->bench_params;
    if (params->map) return NIB_OK;
    out->bench = (bench->runs + 1) * (bench->n_prompt * read + bench->n_generate * write);
    return NIB_OK;
}

double nib_study_total_cost(const nib_study_costs *costs, uint32_t n_levels) {
    return n_levels * costs->quantize + (1 + n_levels) * (costs->weights + costs->answers + costs->bench) + costs->eval;
}

/* ---- nib_study_prepare ------------------------------------------------------------------------------------------------ */

static nib_status plan_disk(const nib_study_params *params, const nib_gguf *gguf, uint64_t *out, nib_error *error) {
    *out = 1 << 20; /* the reports */
    for (uint32_t i = 0; i < params->n_levels; i++) {
        const nib_quantize_params quantize = {.recipe = params->levels[i], .pure = params->pure};
        uint64_t n_bytes = 0;
        NIB_TRY(nib_quantize_plan(gguf, &quantize, &n_bytes, error));
        if (!nib_add_u64(*out, n_bytes, out))
            return nib_fail(error, NIB_ERR_CORRUPT, "the sizes of the levels overflow");
    }
    return NIB_OK;
}

/* Every model keeps its sessions while all read the text together. */
static nib_status plan_memory(const nib_study_params *params, const nib_model *model, nib_pool *pool, uint64_t *out,
                              nib_error *error) {
    *out = 0;
    for (unsigned exact = 0; exact < 2; exact++) {
        nib_memory_plan plan;
        const nib_session_params session = {.n_ctx = EVAL_CTX, .exact = exact != 0};
        NIB_TRY(nib_session_plan(model, &session, nib_pool_size(pool), &plan, error));
        uint64_t both, all;
        if (!nib_add_u64(plan.kv_cache, plan.scratch, &both) || !nib_mul_u64(both, 1 + params->n_levels, &all) ||
            !nib_add_u64(*out, all, out))
            return nib_fail(error, NIB_ERR_CORRUPT, "the sizes of the model overflow");
    }
    return NIB_OK;
}

nib_status nib_study_prepare(const nib_study_params *params, nib_pool *pool, nib_study_plan *out, nib_error *error) {
    nib_workdir work;
    nib_model *model = NULL;
    nib_questions questions = {0};
    nib_study study = {0};
    nib_ids *prompts = NULL;
    nib_study_costs costs;
    nib_status status = NIB_OK;
    *out = (nib_study_plan){0};
    nib_study_out_dir(params, out->out_dir);
    NIB_TRY_GOTO(nib_study_check_levels(params, error));
    NIB_TRY_GOTO(nib_workdir_check(out->out_dir, params->force, &work, error));
    NIB_TRY_GOTO(nib_model_open(params->model, NULL, &model, error));
    NIB_TRY_GOTO(nib_study_read_questions(params, &questions, error));
    NIB_TRY_GOTO(nib_prompts_make(params, model, &study, &prompts, error));
    NIB_TRY_GOTO(plan_disk(params, nib_model_gguf(model), &out->disk_bytes, error));
    NIB_TRY_GOTO(plan_memory(params, model, pool, &out->memory_bytes, error));
    NIB_TRY_GOTO(nib_study_cost(params, model, &questions, study.n_prompts, pool, &costs, error));
    out->seconds = nib_study_total_cost(&costs, params->n_levels);
fail:
    nib_prompts_free(prompts, study.n_prompts);
    nib_study_fini(&study);
    nib_questions_fini(&questions);
    nib_model_close(model);
    return status;
}
