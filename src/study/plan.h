/* What each part of a study is expected to take. */
#ifndef NIB_STUDY_PLAN_H
#define NIB_STUDY_PLAN_H

#include "nibble/study.h"

typedef struct nib_study_costs {
    double quantize, weights, answers, bench; /* seconds, of one model */
    double eval;                              /* seconds, of all models, which advance together */
    nib_bench_params bench_params;
} nib_study_costs;

/* Measures the reference for a moment and works out the rest. */
nib_status nib_study_cost(const nib_study_params *params, const nib_model *reference, const nib_questions *questions,
                          uint32_t n_prompts, nib_pool *pool, nib_study_costs *out, nib_error *error);
double nib_study_total_cost(const nib_study_costs *costs, uint32_t n_levels);

/* "demo", or the file's name without directory and ".gguf", fit for a file name. */
void nib_study_name(const char *model, char out[256]);
/* params->out_dir, or "nibble-study-NAME". */
void nib_study_out_dir(const nib_study_params *params, char out[1024]);
/* Levels given, none twice, not too many. */
nib_status nib_study_check_levels(const nib_study_params *params, nib_error *error);
/* The questions params asks for; n = 0 if none. */
nib_status nib_study_read_questions(const nib_study_params *params, nib_questions *out, nib_error *error);

#endif
