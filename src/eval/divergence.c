/* Statistics over scored tokens. Definitions are those of llama-perplexity's report, so that figures can be laid side by
 * side, with two differences that only remove error: sums are centred and in double, and divergences are neither cut off
 * nor rounded to 16 bits. Tokens are taken as independent, which underestimates the errors since tokens of a text
 * correlate. */
#include "eval/divergence.h"

#include "base/memory.h"
#include "kernel/kernel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

nib_mean nib_mean_of(const double *values, size_t n) {
    if (n == 0) return (nib_mean){NAN, NAN};
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += values[i];
    const double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) squares += (values[i] - mean) * (values[i] - mean);
    return (nib_mean){mean, n < 2 ? NAN : sqrt(squares / (double)n / (double)(n - 1))};
}

static int compare_floats(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* sorted: (n), n > 0. Linear interpolation at position fraction * (n - 1). */
static double percentile(const float *sorted, size_t n, double fraction) {
    const double position = fraction * (double)(n - 1);
    const size_t below = (size_t)position;
    if (below + 1 >= n) return sorted[n - 1];
    const double share = position - (double)below;
    return (1 - share) * (double)sorted[below] + share * (double)sorted[below + 1];
}

nib_distribution nib_distribution_of(const float *values, size_t n) {
    nib_distribution out = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n == 0) return out;
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += (double)values[i];
    out.mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) squares += ((double)values[i] - out.mean) * ((double)values[i] - out.mean);
    if (n > 1) out.err = sqrt(squares / (double)n / (double)(n - 1));
    if (isnan(out.mean)) return out; /* NaN has no place in an order */
    float *sorted = nib_alloc(n, sizeof *sorted);
    if (sorted == NULL) return out;
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare_floats);
    out.min = (double)sorted[0];
    out.p01 = percentile(sorted, n, 0.01);
    out.p05 = percentile(sorted, n, 0.05);
    out.p10 = percentile(sorted, n, 0.10);
    out.median = percentile(sorted, n, 0.50);
    out.p90 = percentile(sorted, n, 0.90);
    out.p95 = percentile(sorted, n, 0.95);
    out.p99 = percentile(sorted, n, 0.99);
    out.p99_9 = percentile(sorted, n, 0.999);
    out.max = (double)sorted[n - 1];
    free(sorted);
    return out;
}

nib_row_stats nib_row_compare(const float *base, const float *test, uint32_t n_vocab, int32_t next) {
    enum { PIECE = 1024 };
    float terms[PIECE];
    nib_softmax b = {0}, t = {0};
    nib_divergence divergence = {0};
    for (uint32_t i = 0; i < n_vocab; i += PIECE) {
        const uint32_t n = n_vocab - i < PIECE ? n_vocab - i : PIECE;
        nib_softmax_add(&b, base + i, n, terms);
        nib_divergence_add(&divergence, &b, base + i, terms, &t, test + i, n);
    }
    return (nib_row_stats){
        .kld = nib_divergence_of(&divergence, &b, &t),
        .nll_base = nib_softmax_log_sum(&b) - (double)base[next],
        .nll_test = nib_softmax_log_sum(&t) - (double)test[next],
        .same_top = b.argmax == t.argmax,
    };
}

void nib_summarise_nll(const double *nll, size_t n, nib_eval_model *out) {
    const nib_mean mean = nib_mean_of(nll, n);
    out->nll = mean.mean;
    out->nll_err = mean.err;
    out->ppl = exp(mean.mean);
    out->ppl_err = out->ppl * mean.err;
}

double nib_share_of_same_top(const nib_token_series *series, size_t n) {
    size_t same = 0;
    for (size_t i = 0; i < n; i++) same += series->same_top[i];
    return (double)same / (double)n;
}

double nib_mean_kld(const nib_token_series *series, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)series->kld[i];
    return sum / (double)n;
}

/* ln(ppl / reference's ppl) is the mean of the differences token by token; its error is that of the differences, which
 * takes into account that both models find the same tokens hard. */
static void summarise_ratio(const double *reference_nll, const double *nll, size_t n, nib_eval_model *out) {
    const nib_mean reference = nib_mean_of(reference_nll, n), own = nib_mean_of(nll, n);
    double squares = 0, products = 0, ref_squares = 0, own_squares = 0;
    out->ln_ppl_ratio = own.mean - reference.mean;
    for (size_t i = 0; i < n; i++) {
        const double a = reference_nll[i] - reference.mean, b = nll[i] - own.mean;
        squares += (b - a) * (b - a);
        products += a * b;
        ref_squares += a * a;
        own_squares += b * b;
    }
    out->ln_ppl_ratio_err = n < 2 ? (double)NAN : sqrt(squares / (double)n / (double)(n - 1));
    out->correlation = products / sqrt(ref_squares * own_squares);
}

void nib_summarise_pair(const double *reference_nll, const nib_token_series *series, size_t n, nib_eval_model *out) {
    nib_summarise_nll(series->nll, n, out);
    summarise_ratio(reference_nll, series->nll, n, out);
    out->kld = nib_distribution_of(series->kld, n);
    out->same_top = nib_share_of_same_top(series, n);
    out->same_top_err = sqrt(out->same_top * (1 - out->same_top) / (double)(n - 1));
    out->dp = nib_distribution_of(series->dp, n);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += (double)series->dp[i] * (double)series->dp[i];
    const double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) {
        const double deviation = (double)series->dp[i] * (double)series->dp[i] - mean;
        squares += deviation * deviation;
    }
    out->dp_rms = sqrt(mean);
    /* error of a square root: d sqrt(x) = dx / (2 sqrt(x)) */
    out->dp_rms_err = mean > 0 ? 0.5 / out->dp_rms * sqrt(squares / (double)n / (double)(n - 1)) : 0;
}

double nib_mcnemar_p(uint32_t b, uint32_t c) {
    const double n = (double)b + (double)c;
    const uint32_t least = b < c ? b : c;
    double sum = 0;
    for (uint32_t k = 0; k <= least; k++)
        sum += exp(lgamma(n + 1) - lgamma(k + 1.0) - lgamma(n - k + 1) - n * log(2.0));
    return fmin(1, 2 * sum);
}

void nib_summarise_flips(const nib_choice_scores *reference, const nib_choice_scores *scores, nib_eval_model *out) {
    out->has_choice = true;
    out->accuracy = scores->accuracy;
    out->accuracy_err = scores->accuracy_err;
    out->accuracy_norm = scores->accuracy_norm;
    out->flips_to_wrong = out->flips_to_right = out->flips_wrong_to_wrong = 0;
    for (uint32_t i = 0; i < scores->n; i++) {
        const bool was_right = reference->right[i], is_right = scores->right[i];
        if (was_right && !is_right) out->flips_to_wrong++;
        if (!was_right && is_right) out->flips_to_right++;
        if (!was_right && !is_right && reference->picked[i] != scores->picked[i]) out->flips_wrong_to_wrong++;
    }
    out->mcnemar_p = nib_mcnemar_p(out->flips_to_wrong, out->flips_to_right);
}

/* llama-quantize's names of general.file_type; the gaps are numbers no longer in use. */
static const char *const file_type_names[] = {
    "f32",    "f16",     "q4_0",   "q4_1",   NULL,     NULL,        NULL,     "q8_0",  "q5_0",    "q5_1",   "q2_k",
    "q3_k_s", "q3_k_m",  "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s",    "q5_k_m", "q6_k",  "iq2_xxs", "iq2_xs", "q2_k_s",
    "iq3_xs", "iq3_xxs", "iq1_s",  "iq4_nl", "iq3_s",  "iq3_m",     "iq2_s",  "iq2_m", "iq4_xs",  "iq1_m",  "bf16",
    NULL,     NULL,      NULL,     "tq1_0",  "tq2_0",  "mxfp4_moe", "nvfp4",  "q1_0",  "q2_0",
};

/* The format that holds most weights of the matrices; NULL without any. */
static const nib_format *most_used_format(const nib_gguf *gguf) {
    const nib_format *best = NULL;
    uint64_t most = 0;
    for (unsigned f = 0; nib_format_at(f) != NULL; f++) {
        uint64_t sum = 0;
        for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
            const nib_tensor *tensor = nib_gguf_tensor_at(gguf, i);
            if (tensor->n_dims >= 2 && tensor->format == nib_format_at(f)) sum += tensor->n_elements;
        }
        if (sum > most) {
            most = sum;
            best = nib_format_at(f);
        }
    }
    return best;
}

void nib_format_label(const nib_gguf *gguf, char out[64]) {
    nib_text recipe;
    uint64_t file_type;
    const nib_format *format = most_used_format(gguf);
    if (nib_gguf_get_text(gguf, "nibble.recipe", &recipe) && recipe.n_bytes > 0 && recipe.n_bytes < 64) {
        for (size_t i = 0; i < recipe.n_bytes; i++)
            out[i] = recipe.data[i] > ' ' && recipe.data[i] < 127 ? recipe.data[i] : '?';
        out[recipe.n_bytes] = '\0';
    } else if (nib_gguf_get_u64(gguf, "general.file_type", &file_type) &&
               file_type < sizeof file_type_names / sizeof *file_type_names && file_type_names[file_type] != NULL) {
        snprintf(out, 64, "%s", file_type_names[file_type]);
    } else {
        snprintf(out, 64, "%s", format != NULL ? nib_format_facts_of(format)->name : "");
    }
}
