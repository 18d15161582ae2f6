/* The experiment, from top to bottom: quantize every level into a directory of its own, measure all of them together, look
 * at their weights, time them, talk to them, judge, write the report, and only then give the directory its name. */
#include "study/parts.h"
#include "study/plan.h"
#include "study/stages.h"
#include "study/talk.h"
#include "study/workdir.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* What a running study holds; closed in whatever state it is. */
typedef struct run {
    const nib_study_params *params;
    nib_pool *pool;
    nib_study *study;
    nib_workdir work;
    nib_stages stages;
    nib_study_costs costs;
    nib_questions questions;
    nib_ids *prompts; /* (n_prompts) */
    uint32_t n_prompt_lists;
    nib_model **models; /* (1 + n_levels), reference first */
    char (*names)[384]; /* (n_levels) "NAME.LEVEL.gguf" */
} run;

static const nib_model *const *models_of(const run *self) {
    return (const nib_model *const *)self->models;
}

/* ---- Parts ----------------------------------------------------------------------------------------------------------- */

static nib_status alloc_study(run *self, nib_error *error) {
    nib_study *study = self->study;
    const size_t n = (size_t)study->n_levels + 1;
    self->models = nib_alloc(n, sizeof *self->models);
    self->names = nib_alloc(n, sizeof *self->names);
    study->quantized = nib_alloc(n, sizeof *study->quantized);
    study->weights = nib_alloc(n, sizeof *study->weights);
    if (self->models == NULL || self->names == NULL || study->quantized == NULL || study->weights == NULL)
        return nib_fail_memory(error, n * (sizeof *study->weights + sizeof *study->quantized));
    return NIB_OK;
}

/* Everything that can be wrong with the order is found here, before anything takes time. */
static nib_status prepare(run *self, const nib_watch *watch, nib_error *error) {
    const nib_study_params *params = self->params;
    nib_study *study = self->study;
    NIB_TRY(nib_study_check_levels(params, error));
    nib_study_name(params->model, study->name);
    nib_study_out_dir(params, study->out_dir);
    NIB_TRY(nib_workdir_check(study->out_dir, params->force, &self->work, error));
    snprintf(study->out_dir, sizeof study->out_dir, "%s", self->work.final_path);
    study->n_levels = params->n_levels;
    study->n_tries = params->n_tries != 0 ? params->n_tries : 1;
    study->kept = params->keep;
    study->pool = self->pool;
    NIB_TRY(alloc_study(self, error));
    for (uint32_t i = 0; i < study->n_levels; i++)
        snprintf(self->names[i], sizeof self->names[i], "%s.%s.gguf", study->name, nib_recipe_name(params->levels[i]));
    NIB_TRY(nib_model_open(params->model, watch, &self->models[0], error));
    NIB_TRY(nib_study_read_questions(params, &self->questions, error));
    NIB_TRY(nib_prompts_make(params, self->models[0], study, &self->prompts, error));
    self->n_prompt_lists = study->n_prompts;
    const size_t n_tries = (size_t)study->n_prompts * (1 + study->n_levels) * study->n_tries;
    study->talk = nib_alloc(n_tries, sizeof *study->talk);
    if (study->talk == NULL) return nib_fail_memory(error, n_tries * sizeof *study->talk);
    return nib_study_cost(params, self->models[0], &self->questions, study->n_prompts, self->pool, &self->costs, error);
}

/* In one pass over the reference. */
static nib_status quantize_levels(run *self, nib_error *error) {
    const uint32_t n = self->study->n_levels;
    nib_status status = NIB_OK;
    nib_quantize_params *params = nib_alloc(n, sizeof *params);
    const char **paths = nib_alloc(n, sizeof *paths);
    char(*texts)[1536] = nib_alloc(n, sizeof *texts);
    if (params == NULL || paths == NULL || texts == NULL) {
        status = nib_fail_memory(error, n * (sizeof *params + sizeof *paths + sizeof *texts));
        goto fail;
    }
    for (uint32_t i = 0; i < n; i++) {
        params[i] = (nib_quantize_params){
            .recipe = self->params->levels[i],
            .pure = self->params->pure,
            .no_sync = !self->params->keep,
            .measure_error = true,
        };
        NIB_TRY_GOTO(nib_workdir_path(&self->work, self->names[i], texts[i], error));
        paths[i] = texts[i];
    }
    NIB_TRY_GOTO(nib_stages_next(&self->stages, n * self->costs.quantize, error, "quantize %u levels", n));
    NIB_TRY_GOTO(nib_quantize_many(nib_model_gguf(self->models[0]), n, paths, params, self->pool, &self->stages.inner,
                                   self->study->quantized, error));
    for (uint32_t i = 0; i < n; i++) NIB_TRY_GOTO(nib_model_open(paths[i], NULL, &self->models[1 + i], error));
fail:
    free(params);
    free(paths);
    free(texts);
    return status;
}

/* Reports speak of NAME.LEVEL.gguf, wherever the file lay while it was measured. */
static void rename_in_reports(run *self) {
    nib_study *study = self->study;
    const size_t n = strlen(self->work.temporary);
    for (uint32_t i = 0; i < study->n_levels; i++) {
        nib_eval_model *model = &study->eval.models[i];
        const char *level = nib_recipe_name(self->params->levels[i]);
        for (uint32_t k = 0; k < study->bench.n; k++) {
            nib_bench_result *result = &study->bench.results[k];
            if (strncmp(result->model, self->work.temporary, n) != 0 ||
                strcmp(result->model + n + 1, self->names[i]) != 0)
                continue;
            snprintf(result->model, sizeof result->model, "%s", self->names[i]);
            snprintf(result->format, sizeof result->format, "%s", level);
        }
        snprintf(model->model, sizeof model->model, "%s", self->names[i]);
        snprintf(model->format, sizeof model->format, "%s", level);
        snprintf(study->quantized[i].output, sizeof study->quantized[i].output, "%s", self->names[i]);
    }
}

/* What a person would notice: answers and speed. */
static nib_status use(run *self, nib_error *error) {
    nib_study *study = self->study;
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        const char *level = i == 0 ? "the original" : nib_recipe_name(self->params->levels[i - 1]);
        NIB_TRY(nib_stages_next(&self->stages, self->costs.answers, error, "talk to %s", level));
        NIB_TRY(nib_talk_to(self->params, self->models[i], i, self->prompts, self->pool, &self->stages.inner, study,
                            error));
    }
    NIB_TRY(nib_probe(models_of(self), self->pool, study, error));
    /* Speed comes last: measuring the memory's speed takes a buffer larger than the caches, which says nothing of the model. */
    study->peak_anonymous_bytes = nib_peak_anonymous_bytes();
    NIB_TRY(nib_stages_next(&self->stages, (1 + study->n_levels) * self->costs.bench, error, "speed"));
    return nib_bench_run(models_of(self), 1 + study->n_levels, &self->costs.bench_params, self->pool,
                         &self->stages.inner, &study->bench, error);
}

static nib_status measure(run *self, nib_error *error) {
    nib_study *study = self->study;
    const nib_eval_params params = {
        .text_path = self->params->text_path,
        .n_chunks = self->params->n_chunks,
        .weights_only = !self->params->map,
        .questions = self->questions.n > 0 ? &self->questions : NULL,
    };
    NIB_TRY(nib_stages_next(&self->stages, self->costs.eval, error, "measure"));
    NIB_TRY(nib_eval_run(self->models[0], models_of(self) + 1, study->n_levels, &params, self->pool,
                         &self->stages.inner, &study->eval, error));
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        NIB_TRY(nib_stages_next(&self->stages, self->costs.weights, error, "weights"));
        NIB_TRY(nib_weights_measure(nib_model_gguf(self->models[i]), i == 0 ? 0 : study->weights[0].edge, self->pool,
                                    &self->stages.inner, &study->weights[i], error));
    }
    study->peak_anonymous_bytes = nib_peak_anonymous_bytes();
    return self->params->map ? NIB_OK : use(self, error);
}

static nib_status write_json_file(run *self, nib_error *error) {
    nib_json *json = nib_json_new();
    if (json == NULL) return nib_fail_memory(error, 1);
    const char *text = NULL;
    size_t n_bytes = 0;
    nib_study_write_json(self->study, json);
    nib_status status = nib_json_text(json, &text, &n_bytes, error);
    if (status == NIB_OK) status = nib_workdir_write(&self->work, "report.json", text, n_bytes, error);
    nib_json_free(json);
    return status;
}

static nib_status write_reports(run *self, nib_error *error) {
    nib_picture pictures[NIB_STUDY_MAX_PICTURES];
    nib_string page = {0};
    uint32_t n = 0;
    NIB_TRY(nib_study_draw(self->study, pictures, &n, error));
    nib_status status = NIB_OK;
    for (uint32_t i = 0; i < n; i++)
        NIB_TRY_GOTO(nib_workdir_write(&self->work, pictures[i].file, pictures[i].standalone,
                                       strlen(pictures[i].standalone), error));
    NIB_TRY_GOTO(nib_study_write_html(self->study, pictures, n, &page, error));
    NIB_TRY_GOTO(nib_workdir_write(&self->work, "report.html", page.data, page.n_bytes, error));
    NIB_TRY_GOTO(write_json_file(self, error));
fail:
    nib_pictures_fini(pictures, n);
    nib_string_fini(&page);
    return status;
}

/* ---- The whole ------------------------------------------------------------------------------------------------------- */

static void close_models(run *self) {
    for (uint32_t i = 0; self->models != NULL && i <= self->study->n_levels; i++) {
        nib_model_close(self->models[i]);
        self->models[i] = NULL;
    }
}

static nib_status finish(run *self, double began, nib_error *error) {
    nib_study *study = self->study;
    close_models(self);
    rename_in_reports(self);
    nib_study_judge(study);
    for (uint32_t i = 0; !self->params->keep && i < study->n_levels; i++) {
        char path[1536];
        NIB_TRY(nib_workdir_path(&self->work, self->names[i], path, error));
        if (unlink(path) != 0) return nib_fail_errno(error, path, "cannot remove the quantized file");
    }
    study->seconds = nib_now() - began;
    NIB_TRY(nib_stages_next(&self->stages, 0, error, "report"));
    NIB_TRY(write_reports(self, error));
    return nib_workdir_publish(&self->work, error);
}

nib_status nib_study_run(const nib_study_params *params, nib_pool *pool, const nib_watch *watch, nib_study *out,
                         nib_error *error) {
    const double began = nib_now();
    *out = (nib_study){.cliff = -1, .recommended = -1};
    run self = {.params = params, .pool = pool, .study = out};
    nib_status status = NIB_OK;
    NIB_TRY_GOTO(prepare(&self, watch, error));
    NIB_TRY_GOTO(nib_workdir_make(&self.work, error));
    nib_stages_init(&self.stages, watch, nib_study_total_cost(&self.costs, out->n_levels));
    NIB_TRY_GOTO(quantize_levels(&self, error));
    NIB_TRY_GOTO(measure(&self, error));
    NIB_TRY_GOTO(finish(&self, began, error));
fail:
    close_models(&self);
    nib_workdir_remove(&self.work);
    nib_prompts_free(self.prompts, self.n_prompt_lists);
    nib_questions_fini(&self.questions);
    free(self.models);
    free(self.names);
    return status;
}

void nib_study_fini(nib_study *study) {
    for (uint32_t i = 0; study->quantized != NULL && i < study->n_levels; i++) nib_quantized_fini(&study->quantized[i]);
    const size_t n_tries = (size_t)study->n_prompts * (1 + study->n_levels) * study->n_tries;
    for (size_t i = 0; study->talk != NULL && i < n_tries; i++) free(study->talk[i].text);
    for (uint32_t i = 0; study->prompts != NULL && i < study->n_prompts; i++) free(study->prompts[i]);
    for (uint32_t i = 0; i < study->n_next; i++) free(study->next[i].probability);
    nib_eval_fini(&study->eval);
    nib_bench_fini(&study->bench);
    free(study->quantized);
    free(study->weights);
    free(study->prompts);
    free(study->prompt_is_raw);
    free(study->talk);
    free(study->probe);
    free(study->next);
    *study = (nib_study){.cliff = -1, .recommended = -1};
}
