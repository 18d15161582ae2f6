/* Measuring: perplexity, KL divergence, choice questions, speed, and the weights themselves.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_EVAL_H
#define NIBBLE_EVAL_H

#include "nibble/cpu.h"
#include "nibble/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Choice questions ------------------------------------------------------------------------------------------------ */

typedef struct nib_question {
    char *prompt;   /* scored continuation follows this text: " " + choice */
    char **prompts; /* (n_choices) a prompt per choice, where these differ (Winogrande); NULL = prompt for all */
    char *category; /* "" if none */
    char **choices;
    uint32_t n_choices, answer;
} nib_question;

typedef struct nib_questions {
    char name[128]; /* file name without directory and extension */
    nib_question *items;
    uint32_t n;
} nib_questions;

/* Reads JSONL, one object a line, recognised by its fields; fields not named are ignored, blank lines skipped:
 *   question, choices, answer   prompt "Question: {question}\nAnswer:"; optional: context (stands before it, on lines of
 *                               its own), prompt (used verbatim instead, then question may be absent), category, id
 *   query, choices, gold        prompt "{query}\nAnswer:" if query begins with "Question: ", else "{query}"
 *   context_options, continuation, gold   every option is a prompt of its own, the continuation is scored after each
 * answer and gold: index of the right choice. 2 to 64 choices, at most 1 MiB a line and 1 000 000 questions.
 * path "demo": the built-in questions. A broken line is NIB_ERR_CORRUPT with its number, offset and field. */
NIB_API nib_status nib_questions_read(const char *path, nib_questions *out, nib_error *error);
NIB_API void nib_questions_fini(nib_questions *questions);

/* One model's answers. */
typedef struct nib_choice_scores {
    uint32_t n;
    double **sums;            /* (n)(n_choices) sum of log-probabilities of each choice, nats */
    bool *right, *right_norm; /* (n) argmax of sum / of sum over characters equals the answer; first of equals */
    uint32_t *picked;         /* (n) argmax of sum */
    double accuracy, accuracy_err, accuracy_norm; /* fractions; err = sqrt(p(1-p)/(n-1)) */
} nib_choice_scores;

/* Rules of lm-evaluation-harness: prompt and " " + choice are tokenized together, without BOS and without control tokens;
 * as many tokens as the prompt has alone are not scored (white space at its end counts with the choice). Texts longer than
 * the trained context lose their beginning. Characters are Unicode code points of the choice.
 * exact and kv as in nib_session_params. NIB_ERR_CORRUPT, NIB_ERR_UNSUPPORTED: no usable tokenizer; NIB_ERR_USAGE: a choice alone
 * is longer than the context. */
NIB_API nib_status nib_choice_score(const nib_model *model, bool exact, nib_kv kv, nib_pool *pool,
                                    const nib_questions *questions, const nib_watch *watch, nib_choice_scores *out,
                                    nib_error *error);
NIB_API void nib_choice_scores_fini(nib_choice_scores *scores);

/* ---- Perplexity and KL divergence, in lock-step --------------------------------------------------------------------- */

/* Statistics of a per-token quantity. Percentiles by linear interpolation between sorted values. */
typedef struct nib_distribution {
    double mean, err; /* standard error of the mean, tokens taken as independent */
    double min, p01, p05, p10, median, p90, p95, p99, p99_9, max;
} nib_distribution;

typedef struct nib_eval_model {
    char model[1024]; /* path */
    char format[64];  /* recipe or format name, best known */
    char hash[33];
    uint64_t bytes; /* file */
    double bpw;
    double nll, nll_err; /* mean negative log-likelihood, nats per token */
    double ppl, ppl_err; /* exp(nll); ppl * nll_err */
    /* Against the reference; unused for the reference itself. */
    double ln_ppl_ratio, ln_ppl_ratio_err; /* paired */
    double correlation;                    /* of the per-token nll with the reference's */
    nib_distribution kld;                  /* nats, over the whole vocabulary */
    double same_top, same_top_err;         /* fraction of tokens with the same likeliest next token */
    nib_distribution dp;                   /* probability of the true next token, minus the reference's */
    double dp_rms, dp_rms_err;
    double weights_only_kld, weights_only_same_top; /* on the exact path; NaN if not measured */
    /* Choice questions, if any. */
    bool has_choice;
    double accuracy, accuracy_err, accuracy_norm;
    uint32_t flips_to_wrong, flips_to_right, flips_wrong_to_wrong;
    double mcnemar_p;  /* two-sided exact test on the flips between right and wrong */
    float *kld_tokens; /* (n_scored) per-token divergence, in text order; NULL for the reference */
} nib_eval_model;

typedef struct nib_eval_params {
    const char *text_path;          /* file; NULL = the built-in text */
    uint32_t n_ctx;                 /* 0 = 512 */
    uint32_t n_chunks;              /* 0 = all */
    bool exact;                     /* everything on the exact path, the quantized models too */
    bool weights_only;              /* also measure the quantized models on the exact path */
    nib_kv kv;                      /* cache of everything on the deployed path */
    const nib_questions *questions; /* NULL = none */
} nib_eval_params;

typedef struct nib_eval {
    char text_file[1024], text_sha256[65];
    uint64_t n_tokens, n_scored;
    uint32_t n_ctx, n_chunks;
    bool exact;
    nib_kv kv;
    char task[128];
    uint32_t n_questions;
    nib_eval_model reference;                     /* on the exact path */
    double noise_floor_kld, noise_floor_same_top; /* reference's deployed path against its exact path; NaN if exact */
    uint32_t n_models;
    nib_eval_model *models;
    double seconds;
} nib_eval;

/* Method: spec of llama-perplexity: text tokenized once, cut into chunks of n_ctx, the second half of each scored, BOS in
 * place of each chunk's first token if the vocabulary adds one. The reference and all models advance chunk by chunk
 * together, so nothing is stored. Memory: a tile of logits, not a chunk's.
 * NIB_ERR_CORRUPT: the text has fewer than two chunks of tokens, is empty or binary (has NUL bytes).
 * NIB_ERR_USAGE: vocabularies differ. */
NIB_API nib_status nib_eval_run(const nib_model *reference, const nib_model *const *models, uint32_t n_models,
                                const nib_eval_params *params, nib_pool *pool, const nib_watch *watch, nib_eval *out,
                                nib_error *error);
NIB_API void nib_eval_fini(nib_eval *eval);
/* The members of a nibble.eval/1 document into the open object. */
NIB_API void nib_eval_write_json(const nib_eval *eval, nib_json *json);

/* Statistics over plain arrays, as the reports print them. base, test: (n) nll per token. */
NIB_API nib_distribution nib_distribution_of(const float *values, size_t n);

/* Divergence of two rows of logits (n_vocab): sum p_base (ln p_base - ln p_test), in nats, double sums. The parts that are
 * wanted may be NULL. */
typedef struct nib_row_stats {
    double kld, nll_base, nll_test; /* of token `next` */
    bool same_top;
} nib_row_stats;
NIB_API nib_row_stats nib_row_compare(const float *base, const float *test, uint32_t n_vocab, int32_t next);

/* ---- Speed ----------------------------------------------------------------------------------------------------------- */

typedef struct nib_bench_params {
    uint32_t n_prompt;   /* 0 = no prompt test */
    uint32_t n_generate; /* 0 = no generation test */
    uint32_t runs;       /* 0 = 5 */
    uint32_t depth;      /* tokens in the cache before timing */
    nib_kv kv;           /* format of the cache */
    uint32_t batch;      /* generation: sequences that go on together, a token each; 0 = 1 */
} nib_bench_params;

typedef struct nib_bench_result {
    char model[1024], format[64], test[32]; /* "pp512", "tg128", "tg128 x4" of 4 sequences, " @ d4096" at that depth */
    uint64_t bytes;
    double bpw;
    uint32_t depth, batch, threads, n_runs;
    nib_kv kv;
    double tokens_per_s, stddev; /* mean and sample deviation of the runs */
    double *runs;                /* (n_runs) tokens per second */
    /* Shares of the ceilings. Memory: weights and cache that have to be read, once per step, over the bandwidth; above 1
     * when the model fits the caches. Compute: the time its multiply-adds would take at the peaks of their kinds, over the
     * time they took. of_ceiling is the larger, and what the test is bound by, if by either; NaN without memory. */
    double of_memory, of_compute, of_ceiling;
    const char *peak; /* kind most of the computing time goes to: "int8", "bf16", "f32" */
} nib_bench_result;

typedef struct nib_bench {
    nib_cpu_ceilings ceilings; /* measured in this run */
    double busy_others;        /* cores that other programs kept busy meanwhile */
    uint32_t n;
    nib_bench_result *results;
} nib_bench;

/* Runs every test of every model, rounds interleaved over the models. */
NIB_API nib_status nib_bench_run(const nib_model *const *models, uint32_t n_models, const nib_bench_params *params,
                                 nib_pool *pool, const nib_watch *watch, nib_bench *out, nib_error *error);
NIB_API void nib_bench_fini(nib_bench *bench);
/* The members of a nibble.bench/1 document into the open object. */
NIB_API void nib_bench_write_json(const nib_bench *bench, nib_json *json);

/* ---- Weights ---------------------------------------------------------------------------------------------------------- */

#define NIB_HISTOGRAM_BINS 256
#define NIB_TOP_WEIGHTS    32
#define NIB_TOP_CHANNELS   16

/* The distribution of the weights of one or several tensors, decoded. */
typedef struct nib_weight_stats {
    uint64_t n;
    double mean, std, min, max, absmax, kurtosis; /* kurtosis: fourth standardised moment, 3 for a Gaussian */
    uint64_t n_outliers_6sigma;
    double edge; /* histogram spans -edge .. edge, equal bins, the ends take what is outside */
    uint64_t histogram[NIB_HISTOGRAM_BINS];
    struct {
        double value;
        char tensor[64];
        uint64_t index;       /* flat element index */
        uint64_t row, column; /* column = index % ne[0] */
    } top[NIB_TOP_WEIGHTS];   /* largest magnitudes, largest first */
    uint32_t n_top;
} nib_weight_stats;

/* All matrices of a file together (tensors with two or more dimensions).
 * edge: half the histogram's width; 0 = 12 standard deviations of this file. Sums in a fixed order: the same figures for
 * any number of threads. Equal magnitudes in `top` keep file order.
 * NIB_ERR_CORRUPT: no matrices, or a weight that is NaN or infinite (field: the tensor); NIB_ERR_UNSUPPORTED: a format
 * that cannot be decoded. */
NIB_API nib_status nib_weights_measure(const nib_gguf *gguf, double edge, nib_pool *pool, const nib_watch *watch,
                                       nib_weight_stats *out, nib_error *error);
/* The members of one entry of "weights" in nibble.inspect/1 into the open object. */
NIB_API void nib_weight_stats_write_json(const nib_weight_stats *stats, nib_json *json);

/* The largest magnitude in one column of one matrix: a channel of its input. */
typedef struct nib_channel {
    char tensor[64];
    uint64_t column;
    double absmax;
} nib_channel;

typedef enum nib_weights_by { NIB_WEIGHTS_WHOLE, NIB_WEIGHTS_BY_ROLE, NIB_WEIGHTS_BY_TENSOR } nib_weights_by;

typedef struct nib_weight_group {
    char tensor[64];          /* "*" unless it is one tensor */
    const char *role;         /* "*" if it is the whole file */
    const nib_format *format; /* NULL if there are several */
    uint64_t n_tensors;
    nib_weight_stats stats;
    nib_channel channels[NIB_TOP_CHANNELS]; /* largest first; of matrices with at most 2^20 columns */
    uint32_t n_channels;
} nib_weight_group;

typedef struct nib_weight_groups {
    nib_weight_group *items; /* in file order of their first tensor */
    size_t n;
} nib_weight_groups;

typedef struct nib_weights_params {
    nib_weights_by by;
    double edge;  /* as in nib_weights_measure; 0 = 12 standard deviations of each group */
    bool vectors; /* tensors of one dimension too */
    void *user;
    bool (*wants)(void *user, const nib_tensor *tensor); /* which tensors to look at; NULL = all */
} nib_weights_params;

/* As nib_weights_measure, of every group of tensors by itself. Every weight is read twice.
 * NIB_ERR_USAGE: wants chose nothing. Free out with nib_weight_groups_fini whatever is returned. */
NIB_API nib_status nib_weights_measure_groups(const nib_gguf *gguf, const nib_weights_params *params, nib_pool *pool,
                                              const nib_watch *watch, nib_weight_groups *out, nib_error *error);
NIB_API void nib_weight_groups_fini(nib_weight_groups *groups);
/* As nib_weight_stats_write_json, with role, format and channels. */
NIB_API void nib_weight_group_write_json(const nib_weight_group *group, nib_json *json);

/* ---- Difference of two files of one model ------------------------------------------------------------------------------ */

/* One tensor of A and B. Formats and codes say NULL or NaN where a side has no such tensor or no integer codes. */
typedef struct nib_tensor_diff {
    char name[64];
    const nib_format *format[2]; /* of A and of B; NULL: that file has no such tensor */
    uint64_t n;                  /* weights; of the side that has it */
    double rel_rmse;             /* |A - B| / |A| (Frobenius); 0 if both are zero, infinite if only A is */
    double cosine;               /* A.B / (|A| |B|); NaN if either is zero */
    double max_abs_error;        /* largest |a - b| */
    uint64_t row, column;        /* of the first such weight */
    double value[2];             /* there */
    double codes_used[2];        /* share of the codes a format can store that the tensor does store */
    uint32_t n_codes[2];         /* codes the format can store; 0 without integer codes */
} nib_tensor_diff;

typedef struct nib_weight_diff {
    nib_tensor_diff
        *tensors; /* (n) in both files, largest rel_rmse first; then those of A alone, then those of B alone */
    size_t n, n_both, n_only[2], n_identical; /* identical: every decoded weight is equal */
    uint64_t n_weights;                       /* compared */
    double rel_rmse, cosine, max_abs_error;   /* over all compared tensors */
    size_t max_at;                            /* index of the tensor with the largest error */
} nib_weight_diff;

/* Decodes both files, tensor by tensor. Sums in a fixed order: the same figures for any number of threads.
 * wants (may be NULL): which tensors, by name.
 * NIB_ERR_USAGE: a tensor has another shape in B (named), or nothing is in both; NIB_ERR_CORRUPT: NaN or infinity;
 * NIB_ERR_UNSUPPORTED: a format that cannot be decoded. Free out with nib_weight_diff_fini whatever is returned. */
NIB_API nib_status nib_weights_compare(const nib_gguf *a, const nib_gguf *b,
                                       bool (*wants)(void *user, const nib_tensor *tensor), void *user, nib_pool *pool,
                                       const nib_watch *watch, nib_weight_diff *out, nib_error *error);
NIB_API void nib_weight_diff_fini(nib_weight_diff *diff);
/* The members of a nibble.diff/1 document into the open object. */
NIB_API void nib_weight_diff_write_json(const nib_weight_diff *diff, nib_json *json);

#ifdef __cplusplus
}
#endif
#endif
