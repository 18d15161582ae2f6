/* An invented study: small, complete, and with hostile texts where a model or a file could put them. */
#ifndef NIB_TESTS_REPORT_SAMPLE_H
#define NIB_TESTS_REPORT_SAMPLE_H

#include "nibble/study.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_HOSTILE "</svg><script>alert('1')</script> & \"<b>\" \xff\x01"
enum { SAMPLE_SCORED = 2000, SAMPLE_NEXT = 10, SAMPLE_PROMPTS = 3 };

typedef struct sample_level {
    const char *name;
    double bytes, ppl, kld, same_top, accuracy, speed;
} sample_level;

static const sample_level sample_levels[] = {
    {"q8_0", 6276384, 1.543745, 0.000044, 0.99395, 0.94, 410},
    {"q6_k", 4879648, 1.544127, 0.00027, 0.9839, 0.94, 480},
    {"q4_k_m", 3781408, 1.546784, 0.001461, 0.97413, 0.94, 560},
    {"q4_1", 3958048, 1.547899, 0.002011, 0.96828, 0.937, 575},
    {"q4_0", 3663136, 1.547953, 0.00271, 0.96546, 0.937, 600},
    {"q3_k_m", 3279648, 1.550511, 0.004388, 0.96133, 0.937, 570},
    {"q2_k", 2041120, 2.526296, 0.491446, 0.78376, 0.80, 590},
};

/* A reproducible number between 0 and 1. */
static double sample_random(void) {
    static uint64_t state = 42;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}
static double sample_normal(void) {
    return sqrt(-2 * log(sample_random() + 1e-300)) * cos(6.283185307179586 * sample_random());
}

static void sample_weights(nib_weight_stats *stats, double step) {
    stats->edge = 0.6;
    stats->std = 0.05;
    stats->n = 60000;
    for (uint64_t i = 0; i < stats->n; i++) {
        double value = sample_normal() * stats->std * (i % 50 == 0 ? 3 : 1);
        if (step > 0) value = step * (0.8 + 0.4 * sample_random()) * round(value / step);
        int bin = (int)((value + stats->edge) / (2 * stats->edge) * NIB_HISTOGRAM_BINS);
        stats->histogram[bin < 0 ? 0 : bin > 255 ? 255 : bin]++;
    }
    stats->n_top = NIB_TOP_WEIGHTS;
    for (uint32_t i = 0; i < NIB_TOP_WEIGHTS; i++) {
        stats->top[i].value = (i % 2 == 0 ? 1 : -1) * (0.9 - 0.02 * i);
        snprintf(stats->top[i].tensor, sizeof stats->top[i].tensor, "blk.%u.ffn_down.weight", i % 6);
    }
    stats->absmax = stats->max = 0.9;
    stats->min = -0.88;
}

static void sample_model(nib_eval_model *model, const sample_level *level, bool is_reference) {
    snprintf(model->model, sizeof model->model, "demo.%s.gguf", level->name);
    snprintf(model->format, sizeof model->format, "%s", level->name);
    strcpy(model->hash, "00112233445566778899aabbccddeeff");
    model->bytes = (uint64_t)level->bytes;
    model->bpw = level->bytes * 8 / 5.77e6;
    model->ppl = level->ppl;
    model->nll = log(level->ppl);
    model->nll_err = 0.0086;
    model->ppl_err = level->ppl * 0.0086;
    model->same_top = level->same_top;
    model->same_top_err = sqrt(level->same_top * (1 - level->same_top) / SAMPLE_SCORED);
    model->has_choice = true;
    model->accuracy = model->accuracy_norm = level->accuracy;
    model->accuracy_err = 0.0137;
    model->flips_to_wrong = (uint32_t)((0.94 - level->accuracy) * 300);
    model->mcnemar_p = level->accuracy < 0.9 ? 1e-6 : 0.9;
    model->weights_only_kld = model->weights_only_same_top = NAN;
    if (is_reference) return;
    model->kld_tokens = malloc(SAMPLE_SCORED * sizeof *model->kld_tokens);
    double sum = 0;
    for (int i = 0; i < SAMPLE_SCORED; i++) sum += model->kld_tokens[i] = (float)exp(2 * sample_normal());
    for (int i = 0; i < SAMPLE_SCORED; i++) model->kld_tokens[i] *= (float)(level->kld * SAMPLE_SCORED / sum);
    model->kld.mean = level->kld;
    model->kld.err = level->kld / 30;
    model->kld.median = level->kld / 8;
    model->kld.p90 = level->kld * 2;
    model->kld.p95 = level->kld * 4;
    model->kld.p99 = level->kld * 11;
    model->kld.max = level->kld * 60;
}

static void sample_bench(nib_study *study) {
    const uint32_t n = 1 + study->n_levels;
    study->bench.ceilings.read_bytes_per_s = 2.1e10;
    study->bench.n = 2 * n;
    study->bench.results = calloc(2 * n, sizeof *study->bench.results);
    for (uint32_t i = 0; i < 2 * n; i++) {
        nib_bench_result *result = &study->bench.results[i];
        const nib_eval_model *model = i / 2 == 0 ? &study->eval.reference : &study->eval.models[i / 2 - 1];
        const double speed = i / 2 == 0 ? 300 : sample_levels[(i / 2 - 1) % 7].speed;
        snprintf(result->model, sizeof result->model, "%s", model->model);
        strcpy(result->format, model->format);
        strcpy(result->test, i % 2 == 0 ? "pp512" : "tg128");
        result->tokens_per_s = i % 2 == 0 ? speed * 8 : speed;
        result->stddev = result->tokens_per_s * 0.03;
        result->threads = 2;
        result->n_runs = 5;
        result->runs = calloc(5, sizeof *result->runs);
    }
}

static void sample_talk(nib_study *study) {
    static const char *const prompts[] = {"What is the capital of England?", "2 + 2 =", ("Say " SAMPLE_HOSTILE)};
    const uint32_t n = 1 + study->n_levels;
    study->n_prompts = SAMPLE_PROMPTS;
    study->n_tries = 1;
    study->prompts = calloc(SAMPLE_PROMPTS, sizeof *study->prompts);
    study->prompt_is_raw = calloc(SAMPLE_PROMPTS, sizeof *study->prompt_is_raw);
    study->talk = calloc((size_t)SAMPLE_PROMPTS * n, sizeof *study->talk);
    for (uint32_t p = 0; p < SAMPLE_PROMPTS; p++) {
        study->prompts[p] = strdup(prompts[p]);
        study->prompt_is_raw[p] = p == 1;
        for (uint32_t i = 0; i < n; i++) {
            nib_try *try = &study->talk[p * n + i];
            const bool broken = i == n - 1;
            try->text = strdup(p == 2   ? "<think>" SAMPLE_HOSTILE "</think>\n\n" SAMPLE_HOSTILE
                               : broken ? "The capital of the capital of the capital of the capital of the"
                               : p == 1 ? " 4\n1"
                               : i == 4 ? "London."
                                        : "The capital of England is London.");
            try->n_tokens = 7;
            try->stop = broken ? NIB_STOP_LOOP : p == 1 ? NIB_STOP_LIMIT : NIB_STOP_EOS;
        }
    }
    study->probe = strdup("2 + 2 = ");
    study->n_next = SAMPLE_NEXT;
    study->next = calloc(SAMPLE_NEXT, sizeof *study->next);
    for (uint32_t k = 0; k < SAMPLE_NEXT; k++) {
        snprintf(study->next[k].piece, sizeof study->next[k].piece, "%u", k);
        study->next[k].probability = calloc(n, sizeof(double));
        for (uint32_t i = 0; i < n; i++)
            study->next[k].probability[i] = k == 4 ? 0.92 - 0.09 * i * i / 10 : 0.008 + 0.001 * i * i * (k % 3) / 5;
    }
}

/* levels: the first n_levels of them. Free with nib_study_fini. */
static void sample_study(nib_study *study, const sample_level *levels, uint32_t n_levels) {
    static const sample_level original = {"bf16", 11683104, 1.543697, 0, 1, 0.94, 300};
    memset(study, 0, sizeof *study);
    strcpy(study->name, "demo");
    study->n_levels = n_levels;
    sample_model(&study->eval.reference, &original, true);
    study->eval.n_models = n_levels;
    study->eval.models = calloc(n_levels, sizeof *study->eval.models);
    study->quantized = calloc(n_levels, sizeof *study->quantized);
    study->weights = calloc(1 + (size_t)n_levels, sizeof *study->weights);
    sample_weights(&study->weights[0], 0);
    for (uint32_t i = 0; i < n_levels; i++) {
        sample_model(&study->eval.models[i], &levels[i], false);
        sample_weights(&study->weights[1 + i], 0.01 + 0.012 * i);
        nib_quantized *quantized = &study->quantized[i];
        snprintf(quantized->output, sizeof quantized->output, "demo.%s.gguf", levels[i].name);
        quantized->n_tensors = 3;
        quantized->tensors = calloc(3, sizeof *quantized->tensors);
        for (int k = 0; k < 3; k++) {
            quantized->tensors[k].from = nib_format_find("bf16");
            quantized->tensors[k].to = nib_format_find("q4_0");
            quantized->tensors[k].n_bytes = 1000;
            quantized->tensors[k].rel_rmse = 0.004 * (1 << i) * (1 + 0.3 * k);
            quantized->tensors[k].max_abs_err = NAN;
        }
    }
    strcpy(study->eval.text_file, "eval " SAMPLE_HOSTILE ".txt");
    strcpy(study->eval.text_sha256, "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff");
    study->eval.n_tokens = 29189;
    study->eval.n_scored = SAMPLE_SCORED;
    study->eval.n_ctx = 512;
    study->eval.n_chunks = 57;
    strcpy(study->eval.task, "choice");
    study->eval.n_questions = 300;
    study->eval.noise_floor_kld = 0.000012;
    study->eval.noise_floor_same_top = 0.9987;
    sample_bench(study);
    sample_talk(study);
    study->seconds = 93;
    study->peak_anonymous_bytes = 120000000;
}

#endif
