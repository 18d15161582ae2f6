/* The measurements as members of nibble's JSON documents. What was not measured is null, with a note. */
#include "nibble/eval.h"

#include <math.h>

/* ---- nibble.eval/1 ---------------------------------------------------------------------------------------------------- */

static void write_percentiles(nib_json *json, const nib_distribution *d) {
    nib_json_number(json, "median", d->median);
    nib_json_number(json, "p90", d->p90);
    nib_json_number(json, "p95", d->p95);
    nib_json_number(json, "p99", d->p99);
    nib_json_number(json, "p99_9", d->p99_9);
    nib_json_number(json, "max", d->max);
    nib_json_number(json, "p10", d->p10);
    nib_json_number(json, "p05", d->p05);
    nib_json_number(json, "p01", d->p01);
    nib_json_number(json, "min", d->min);
}

static void write_kld_share(nib_json *json, const char *key, double kld, double same_top, const char *why_not) {
    nib_json_begin_object(json, key);
    nib_json_number(json, "kld_mean", kld);
    nib_json_number(json, "same_top", same_top);
    if (isnan(kld)) nib_json_string(json, "note", why_not);
    nib_json_end_object(json);
}

/* A perplexity that is not a number has a reason worth saying. */
static void write_perplexity(nib_json *json, const nib_eval_model *model) {
    nib_json_uint(json, "bytes", model->bytes);
    nib_json_number(json, "bpw", model->bpw);
    nib_json_number(json, "nll", model->nll);
    nib_json_number(json, "nll_err", model->nll_err);
    nib_json_number(json, "ppl", model->ppl);
    nib_json_number(json, "ppl_err", model->ppl_err);
    if (!isfinite(model->ppl)) nib_json_string(json, "note", "the model's logits are not finite, or too large");
}

static void write_choice(nib_json *json, const nib_eval *eval, const nib_eval_model *model, bool is_reference) {
    nib_json_begin_array(json, "choice");
    if (model->has_choice) {
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "task", eval->task);
        nib_json_uint(json, "n", eval->n_questions);
        nib_json_number(json, "accuracy", model->accuracy);
        nib_json_number(json, "err", model->accuracy_err);
        if (isnan(model->accuracy_err)) nib_json_string(json, "note", "one question has no error");
        nib_json_number(json, "accuracy_norm", model->accuracy_norm);
        if (!is_reference) {
            nib_json_uint(json, "flips_to_wrong", model->flips_to_wrong);
            nib_json_uint(json, "flips_to_right", model->flips_to_right);
            nib_json_uint(json, "flips_wrong_to_wrong", model->flips_wrong_to_wrong);
            nib_json_number(json, "mcnemar_p", model->mcnemar_p);
        }
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

static void write_model(nib_json *json, const nib_eval *eval, const nib_eval_model *model) {
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "model", model->model);
    nib_json_string(json, "hash", model->hash);
    nib_json_string(json, "format", model->format);
    write_perplexity(json, model);
    nib_json_number(json, "ln_ppl_ratio", model->ln_ppl_ratio);
    nib_json_number(json, "ln_ppl_ratio_err", model->ln_ppl_ratio_err);
    nib_json_begin_object(json, "kld");
    nib_json_number(json, "mean", model->kld.mean);
    nib_json_number(json, "err", model->kld.err);
    write_percentiles(json, &model->kld);
    nib_json_end_object(json);
    nib_json_begin_object(json, "same_top");
    nib_json_number(json, "fraction", model->same_top);
    nib_json_number(json, "err", model->same_top_err);
    nib_json_end_object(json);
    nib_json_begin_object(json, "dp");
    nib_json_number(json, "mean", model->dp.mean);
    nib_json_number(json, "mean_err", model->dp.err);
    nib_json_number(json, "rms", model->dp_rms);
    nib_json_number(json, "rms_err", model->dp_rms_err);
    write_percentiles(json, &model->dp);
    nib_json_end_object(json);
    nib_json_number(json, "correlation", model->correlation);
    write_kld_share(json, "weights_only", model->weights_only_kld, model->weights_only_same_top, "not measured");
    write_choice(json, eval, model, false);
    nib_json_end_object(json);
}

void nib_eval_write_json(const nib_eval *eval, nib_json *json) {
    nib_json_begin_object(json, "text");
    nib_json_string(json, "file", eval->text_file);
    nib_json_string(json, "sha256", eval->text_sha256);
    nib_json_uint(json, "n_tokens", eval->n_tokens);
    nib_json_end_object(json);
    nib_json_uint(json, "ctx", eval->n_ctx);
    nib_json_uint(json, "n_chunks", eval->n_chunks);
    nib_json_uint(json, "n_scored", eval->n_scored);
    nib_json_bool(json, "exact", eval->exact);
    nib_json_string(json, "kv", eval->exact ? "f32" : nib_kv_name(eval->kv));
    nib_json_begin_object(json, "reference");
    nib_json_string(json, "model", eval->reference.model);
    nib_json_string(json, "hash", eval->reference.hash);
    nib_json_string(json, "format", eval->reference.format);
    write_perplexity(json, &eval->reference);
    write_choice(json, eval, &eval->reference, true);
    nib_json_end_object(json);
    write_kld_share(json, "noise_floor", eval->noise_floor_kld, eval->noise_floor_same_top,
                    "everything ran on the exact path, which has none");
    nib_json_begin_array(json, "models");
    for (uint32_t m = 0; m < eval->n_models; m++) write_model(json, eval, &eval->models[m]);
    nib_json_end_array(json);
    nib_json_number(json, "seconds", eval->seconds);
}

/* ---- nibble.bench/1 --------------------------------------------------------------------------------------------------- */

static void write_bench_result(nib_json *json, const nib_bench_result *result) {
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "model", result->model);
    nib_json_string(json, "format", result->format);
    nib_json_uint(json, "bytes", result->bytes);
    nib_json_number(json, "bpw", result->bpw);
    nib_json_string(json, "test", result->test);
    nib_json_uint(json, "depth", result->depth);
    nib_json_uint(json, "batch", result->batch);
    nib_json_string(json, "kv", nib_kv_name(result->kv));
    nib_json_uint(json, "threads", result->threads);
    nib_json_number(json, "tokens_per_s", result->tokens_per_s);
    nib_json_number(json, "stddev", result->stddev);
    nib_json_begin_array(json, "runs");
    for (uint32_t r = 0; r < result->n_runs; r++) nib_json_number(json, NULL, result->runs[r]);
    nib_json_end_array(json);
    nib_json_number(json, "of_memory", result->of_memory);
    nib_json_number(json, "of_compute", result->of_compute);
    nib_json_number(json, "of_ceiling", result->of_ceiling);
    if (isnan(result->of_ceiling)) nib_json_string(json, "note", "no ceiling was measured for this test");
    nib_json_string(json, "bound_by", result->of_memory > result->of_compute ? "memory" : "compute");
    nib_json_end_object(json);
}

void nib_bench_write_json(const nib_bench *bench, nib_json *json) {
    nib_json_begin_object(json, "ceilings");
    nib_cpu_write_ceilings(&bench->ceilings, json);
    nib_json_end_object(json);
    nib_json_number(json, "busy_others", bench->busy_others);
    nib_json_begin_array(json, "results");
    for (uint32_t i = 0; i < bench->n; i++) write_bench_result(json, &bench->results[i]);
    nib_json_end_array(json);
}

/* ---- "weights" of nibble.inspect/1 ------------------------------------------------------------------------------------ */

static void write_stats(const nib_weight_stats *stats, nib_json *json) {
    nib_json_uint(json, "n", stats->n);
    nib_json_number(json, "mean", stats->mean);
    nib_json_number(json, "std", stats->std);
    nib_json_number(json, "min", stats->min);
    nib_json_number(json, "max", stats->max);
    nib_json_number(json, "absmax", stats->absmax);
    nib_json_number(json, "kurtosis", stats->kurtosis);
    if (isnan(stats->kurtosis)) nib_json_string(json, "note", "all weights are equal");
    nib_json_uint(json, "n_outliers_6sigma", stats->n_outliers_6sigma);
    nib_json_begin_object(json, "histogram");
    nib_json_begin_array(json, "edges");
    for (int i = 0; i <= NIB_HISTOGRAM_BINS; i++)
        nib_json_number(json, NULL, stats->edge * (2.0 * i / NIB_HISTOGRAM_BINS - 1));
    nib_json_end_array(json);
    nib_json_begin_array(json, "counts");
    for (int i = 0; i < NIB_HISTOGRAM_BINS; i++) nib_json_uint(json, NULL, stats->histogram[i]);
    nib_json_end_array(json);
    nib_json_end_object(json);
    nib_json_begin_array(json, "top");
    for (uint32_t i = 0; i < stats->n_top; i++) {
        nib_json_begin_object(json, NULL);
        nib_json_number(json, "value", stats->top[i].value);
        nib_json_string(json, "tensor", stats->top[i].tensor);
        nib_json_uint(json, "index", stats->top[i].index);
        nib_json_uint(json, "row", stats->top[i].row);
        nib_json_uint(json, "column", stats->top[i].column);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

void nib_weight_stats_write_json(const nib_weight_stats *stats, nib_json *json) {
    nib_json_string(json, "tensor", "*");
    write_stats(stats, json);
}

static void write_format(nib_json *json, const char *key, const nib_format *format) {
    if (format != NULL)
        nib_json_string(json, key, nib_format_facts_of(format)->name);
    else
        nib_json_null(json, key);
}

void nib_weight_group_write_json(const nib_weight_group *group, nib_json *json) {
    nib_json_string(json, "tensor", group->tensor);
    nib_json_string(json, "role", group->role);
    write_format(json, "type", group->format);
    nib_json_uint(json, "n_tensors", group->n_tensors);
    write_stats(&group->stats, json);
    nib_json_begin_array(json, "channels");
    for (uint32_t i = 0; i < group->n_channels; i++) {
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "tensor", group->channels[i].tensor);
        nib_json_uint(json, "column", group->channels[i].column);
        nib_json_number(json, "absmax", group->channels[i].absmax);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
}

/* ---- nibble.diff/1 ----------------------------------------------------------------------------------------------------- */

static void write_tensor_diff(const nib_tensor_diff *t, nib_json *json) {
    static const char *const types[2] = {"type_a", "type_b"}, *const codes[2] = {"codes_used_a", "codes_used_b"};
    const bool in_both = t->format[0] != NULL && t->format[1] != NULL;
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "name", t->name);
    nib_json_uint(json, "n", t->n);
    for (int side = 0; side < 2; side++) write_format(json, types[side], t->format[side]);
    nib_json_number(json, "rel_rmse", t->rel_rmse);
    nib_json_number(json, "cosine", t->cosine);
    nib_json_number(json, "max_abs_error", t->max_abs_error);
    if (in_both) {
        nib_json_uint(json, "row", t->row);
        nib_json_uint(json, "column", t->column);
        nib_json_number(json, "value_a", t->value[0]);
        nib_json_number(json, "value_b", t->value[1]);
    }
    for (int side = 0; side < 2; side++) nib_json_number(json, codes[side], t->codes_used[side]);
    if (!in_both)
        nib_json_string(json, "note", t->format[0] != NULL ? "only in A" : "only in B");
    else if (!isfinite(t->rel_rmse) || !isfinite(t->cosine))
        nib_json_string(json, "note", "one of the two is all zeros");
    nib_json_end_object(json);
}

void nib_weight_diff_write_json(const nib_weight_diff *diff, nib_json *json) {
    nib_json_uint(json, "n_weights", diff->n_weights);
    nib_json_uint(json, "n_tensors", diff->n_both);
    nib_json_uint(json, "n_identical", diff->n_identical);
    nib_json_uint(json, "n_only_a", diff->n_only[0]);
    nib_json_uint(json, "n_only_b", diff->n_only[1]);
    nib_json_begin_object(json, "whole");
    nib_json_number(json, "rel_rmse", diff->rel_rmse);
    nib_json_number(json, "cosine", diff->cosine);
    nib_json_number(json, "max_abs_error", diff->max_abs_error);
    nib_json_string(json, "max_tensor", diff->tensors[diff->max_at].name);
    if (!isfinite(diff->rel_rmse) || !isfinite(diff->cosine))
        nib_json_string(json, "note", "one of the two is all zeros");
    nib_json_end_object(json);
    nib_json_begin_array(json, "tensors");
    for (size_t i = 0; i < diff->n; i++) write_tensor_diff(&diff->tensors[i], json);
    nib_json_end_array(json);
}
