/* Talking to the models: the prompts, the answers, and what one prompt's next token could be. */
#ifndef NIB_STUDY_TALK_H
#define NIB_STUDY_TALK_H

#include "nibble/study.h"

/* Fills study's prompts and gives their tokens: (n_prompts) lists, free with nib_prompts_free. */
nib_status nib_prompts_make(const nib_study_params *params, const nib_model *model, nib_study *study, nib_ids **out,
                            nib_error *error);
void nib_prompts_free(nib_ids *prompts, uint32_t n);

/* Most tokens of an answer. */
uint32_t nib_talk_tokens(const nib_study_params *params);

/* Every prompt to one model (index 0 = reference, 1 + level). */
nib_status nib_talk_to(const nib_study_params *params, const nib_model *model, uint32_t index, const nib_ids *prompts,
                       nib_pool *pool, const nib_watch *watch, nib_study *study, nib_error *error);

/* Probabilities of the token that follows "2 + 2 =", for all models: (1 + n_levels), reference first. Shown are the ten
 * digits if the model has them as tokens and thinks of them, else its ten likeliest tokens. */
nib_status nib_probe(const nib_model *const *models, nib_pool *pool, nib_study *study, nib_error *error);

#endif
