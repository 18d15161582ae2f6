/* What the files of this room share: order of the levels, the verdict, the pictures, the pages. */
#ifndef NIB_STUDY_PARTS_H
#define NIB_STUDY_PARTS_H

#include "base/error.h"
#include "base/memory.h"
#include "nibble/study.h"

#define NIB_STUDY_MAX_LEVELS NIB_QUANTIZE_MOST

/* ---- verdict.c ------------------------------------------------------------------------------------------------------- */

#define NIB_CLIFF_SAME_TOP   0.80 /* below: over the cliff */
#define NIB_CLIFF_KLD_FACTOR 8.0  /* more times the divergence of the next larger level ... */
#define NIB_CLIFF_KLD_LEAST  0.1  /* ... while above this, nats: over the cliff */
#define NIB_GOOD_SAME_TOP    0.95 /* a level to recommend keeps at least this */
#define NIB_GOOD_P           0.05 /* and its accuracy is not lower with a p-value below this */

/* The rules in words, as printed. */
const char *nib_study_cliff_rule(void);
const char *nib_study_recommended_rule(void);

/* Levels by file size, largest first; equal sizes in the order given. order: (n_levels). */
void nib_study_order(const nib_study *study, uint32_t *order);
/* Is this level the cliff or smaller than it? */
bool nib_study_is_over_cliff(const nib_study *study, uint32_t level);
/* Fills cliff, recommended and verdict from the measurements. */
void nib_study_judge(nib_study *study);

/* Answers of a model (0 = reference, 1 + level) that looped or were empty. */
uint32_t nib_study_broken_answers(const nib_study *study, uint32_t model);

/* Splits an answer into what stands in <think>...</think> at its beginning and the rest; parts are borrowed. An unclosed
 * <think> is all reasoning. */
void nib_study_split_answer(const char *text, nib_text *reasoning, nib_text *answer);

/* The bench result of a model (0 = reference, 1 + level) whose test begins with `test` ("pp", "tg"); NULL if none. */
const nib_bench_result *nib_study_speed(const nib_study *study, uint32_t model, const char *test);

/* What is known of a model: 0 = reference, 1 + level. */
const nib_eval_model *nib_study_model(const nib_study *study, uint32_t model);
/* "original" or the level's name. */
const char *nib_study_label(const nib_study *study, uint32_t model);

/* ---- pictures.c, pictures_weights.c ----------------------------------------------------------------------------------- */

typedef struct nib_picture {
    const char *file;     /* "kld.svg" */
    const char *question; /* the heading */
    const char *help;     /* how to read it, one or two sentences */
    char *standalone;     /* the file, NUL-terminated */
    char *inlined;        /* the same element without its style sheet */
} nib_picture;

#define NIB_STUDY_MAX_PICTURES 16

/* Draws all pictures the study has data for. pictures: NIB_STUDY_MAX_PICTURES entries; free with nib_pictures_fini. */
nib_status nib_study_draw(const nib_study *study, nib_picture *pictures, uint32_t *n, nib_error *error);
/* Facts of the picture number `index` of the fixed list, undrawn; false if the study has no data for it or past the end. */
bool nib_study_picture_at(const nib_study *study, unsigned index, nib_picture *out);
void nib_pictures_fini(nib_picture *pictures, uint32_t n);

/* ---- report_html.c ---------------------------------------------------------------------------------------------------- */

nib_status nib_study_write_html(const nib_study *study, const nib_picture *pictures, uint32_t n_pictures,
                                nib_string *out, nib_error *error);

#endif
