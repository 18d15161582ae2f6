/* nibble.study/1: one document of each measurement per level, what was said, and the verdict. The parts are the same
 * documents that the single commands print. */
#include "study/parts.h"

#include "nibble/json.h"
#include <stdlib.h>
#include <string.h>

static void begin_part(nib_json *json, const char *key, const char *schema) {
    nib_json_begin_object(json, key);
    nib_json_string(json, "schema", schema);
}

static void write_weights(const nib_weight_stats *stats, const char *model, nib_json *json) {
    begin_part(json, "inspect", "nibble.inspect/1");
    nib_json_string(json, "file", model);
    nib_json_begin_array(json, "weights");
    nib_json_begin_object(json, NULL);
    nib_weight_stats_write_json(stats, json);
    nib_json_end_object(json);
    nib_json_end_array(json);
    nib_json_end_object(json);
}

/* The part of the bench that concerns one model. */
static void write_bench(const nib_study *study, uint32_t model, nib_json *json) {
    const char *path = nib_study_model(study, model)->model;
    begin_part(json, "bench", "nibble.bench/1");
    nib_bench part = study->bench;
    nib_bench_result *results = nib_alloc((size_t)study->bench.n + 1, sizeof *results);
    part.n = 0;
    if (results != NULL) {
        part.results = results;
        for (uint32_t i = 0; i < study->bench.n; i++)
            if (strcmp(study->bench.results[i].model, path) == 0) results[part.n++] = study->bench.results[i];
    }
    nib_bench_write_json(&part, json);
    free(results);
    nib_json_end_object(json);
}

static void write_level(const nib_study *study, uint32_t level, nib_json *json) {
    const nib_eval_model *model = &study->eval.models[level];
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "level", model->format);
    nib_json_bool(json, "over_cliff", nib_study_is_over_cliff(study, level));
    begin_part(json, "quantize", "nibble.quantize/1");
    nib_quantized_write_json(&study->quantized[level], json);
    nib_json_end_object(json);
    write_weights(&study->weights[1 + level], model->model, json);
    nib_eval eval = study->eval;
    eval.n_models = 1;
    eval.models = &study->eval.models[level];
    begin_part(json, "eval", "nibble.eval/1");
    nib_eval_write_json(&eval, json);
    nib_json_end_object(json);
    write_bench(study, 1 + level, json);
    nib_json_end_object(json);
}

static void write_talk(const nib_study *study, nib_json *json) {
    nib_json_begin_array(json, "talk");
    for (uint32_t prompt = 0; prompt < study->n_prompts; prompt++) {
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "prompt", study->prompts[prompt]);
        nib_json_bool(json, "completion", study->prompt_is_raw[prompt]);
        nib_json_begin_array(json, "answers");
        for (uint32_t model = 0; model <= study->n_levels; model++) {
            nib_json_begin_object(json, NULL);
            nib_json_string(json, "model", nib_study_model(study, model)->model);
            nib_json_string(json, "level", nib_study_label(study, model));
            nib_json_begin_array(json, "tries");
            for (uint32_t i = 0; i < study->n_tries; i++) {
                const nib_try *try =
                    &study->talk[((size_t)prompt * (1 + study->n_levels) + model) * study->n_tries + i];
                nib_text reasoning, answer;
                nib_study_split_answer(try->text != NULL ? try->text : "", &reasoning, &answer);
                nib_json_begin_object(json, NULL);
                nib_json_string_n(json, "text", answer.data, answer.n_bytes);
                nib_json_string_n(json, "reasoning", reasoning.data, reasoning.n_bytes);
                nib_json_uint(json, "n_tokens", try->n_tokens);
                nib_json_string(json, "stopped", nib_stop_name(try->stop));
                nib_json_end_object(json);
            }
            nib_json_end_array(json);
            nib_json_end_object(json);
        }
        nib_json_end_array(json);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

static void write_next_tokens(const nib_study *study, nib_json *json) {
    nib_json_begin_object(json, "next_tokens");
    nib_json_string(json, "prompt", study->probe != NULL ? study->probe : "");
    nib_json_begin_array(json, "tokens");
    for (uint32_t i = 0; i < study->n_next; i++) {
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "piece", study->next[i].piece);
        nib_json_begin_array(json, "probability");
        for (uint32_t model = 0; model <= study->n_levels; model++)
            nib_json_number(json, NULL, study->next[i].probability[model]);
        nib_json_end_array(json);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    nib_json_end_object(json);
}

static void write_level_name(const nib_study *study, const char *key, int32_t level, nib_json *json) {
    if (level < 0)
        nib_json_null(json, key);
    else
        nib_json_string(json, key, study->eval.models[level].format);
}

static void write_files(const nib_study *study, nib_json *json) {
    nib_json_begin_array(json, "pictures");
    for (unsigned i = 0; i < NIB_STUDY_MAX_PICTURES; i++) {
        nib_picture picture;
        if (!nib_study_picture_at(study, i, &picture)) continue;
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "file", picture.file);
        nib_json_string(json, "question", picture.question);
        nib_json_string(json, "help", picture.help);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    nib_json_begin_array(json, "files"); /* all that the study wrote, which is what --force may replace */
    nib_json_string(json, NULL, "report.json");
    nib_json_string(json, NULL, "report.html");
    for (unsigned i = 0; i < NIB_STUDY_MAX_PICTURES; i++) {
        nib_picture picture;
        if (nib_study_picture_at(study, i, &picture)) nib_json_string(json, NULL, picture.file);
    }
    for (uint32_t i = 0; study->kept && i < study->n_levels; i++)
        nib_json_string(json, NULL, study->quantized[i].output);
    nib_json_end_array(json);
}

void nib_study_write_json(const nib_study *study, nib_json *json) {
    nib_json_begin_document(json, "study", study->pool);
    nib_json_string(json, "model", study->eval.reference.model);
    nib_json_string(json, "name", study->name);
    nib_json_string(json, "verdict", study->verdict);
    write_level_name(study, "cliff", study->cliff, json);
    nib_json_string(json, "cliff_rule", nib_study_cliff_rule());
    write_level_name(study, "recommended", study->recommended, json);
    nib_json_string(json, "recommended_rule", nib_study_recommended_rule());
    nib_json_number(json, "seconds", study->seconds);
    nib_json_uint(json, "peak_anonymous_bytes", study->peak_anonymous_bytes);
    nib_json_begin_object(json, "reference");
    write_weights(&study->weights[0], study->eval.reference.model, json);
    write_bench(study, 0, json);
    nib_json_end_object(json);
    nib_json_begin_array(json, "levels");
    for (uint32_t i = 0; i < study->n_levels; i++) write_level(study, i, json);
    nib_json_end_array(json);
    write_talk(study, json);
    write_next_tokens(study, json);
    write_files(study, json);
    nib_json_end_object(json);
}
