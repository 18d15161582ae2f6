/* Statistics over scored tokens: what perplexity, KL divergence and choice results are summarised with.
 * Every sum runs in text order in double, so the figures do not depend on threads. */
#ifndef NIB_EVAL_DIVERGENCE_H
#define NIB_EVAL_DIVERGENCE_H

#include "nibble/eval.h"

/* What is kept of every scored token of one run of a model; arrays of (n_scored), in text order. */
typedef struct nib_token_series {
    double *nll;       /* -ln p(true next token), nats */
    float *kld;        /* against the reference, nats */
    float *dp;         /* p(true next token) minus the reference's */
    uint8_t *same_top; /* 1 if the likeliest next token is the reference's */
} nib_token_series;

/* Mean and its standard error sqrt(variance / (n - 1)), variance over n; NaN where there are too few values. */
typedef struct nib_mean {
    double mean, err;
} nib_mean;
nib_mean nib_mean_of(const double *values, size_t n);

/* nll, nll_err, ppl, ppl_err of out. */
void nib_summarise_nll(const double *nll, size_t n, nib_eval_model *out);
/* The same and everything that is measured against the reference: paired errors, divergence, tokens' probabilities.
 * reference_nll: (n). */
void nib_summarise_pair(const double *reference_nll, const nib_token_series *series, size_t n, nib_eval_model *out);
double nib_share_of_same_top(const nib_token_series *series, size_t n);
double nib_mean_kld(const nib_token_series *series, size_t n);

/* Flips of the right and wrong answers against the reference's, and their exact two-sided McNemar test. */
void nib_summarise_flips(const nib_choice_scores *reference, const nib_choice_scores *scores, nib_eval_model *out);
/* Two-sided exact p of b and c discordant pairs: min(1, 2 P(X <= min(b, c))), X binomial (b + c, 1/2); 1 without any. */
double nib_mcnemar_p(uint32_t b, uint32_t c);

/* The best known name of what a file's matrices are stored as: nibble's recipe, else the file type that llama-quantize
 * writes, else the format that holds most matrix weights. */
void nib_format_label(const nib_gguf *gguf, char out[64]);

#endif
