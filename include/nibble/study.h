/* The experiment: quantize at several levels, measure, talk, report.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_STUDY_H
#define NIBBLE_STUDY_H

#include "nibble/eval.h"
#include "nibble/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nib_study_params {
    const char *model;               /* path, or "demo" */
    const nib_recipe *const *levels; /* (n_levels) */
    uint32_t n_levels;
    bool pure;
    bool map;                   /* many levels side by side: size, divergence and weights; no questions, talk, speed */
    const char *text_path;      /* NULL = the built-in text */
    const char *choice_path;    /* NULL = the demo's questions for "demo", otherwise none; "" = none */
    const char *const *prompts; /* (n_prompts) chat prompts; NULL = the built-in ones */
    uint32_t n_prompts;
    uint32_t n_tries;       /* 0 = 1; above 1 the answers are sampled with seeds 1.. */
    uint32_t n_talk_tokens; /* 0 = 160 */
    uint32_t n_chunks;      /* of text; 0 = all */
    const char *out_dir;    /* NULL = "nibble-study-NAME" */
    bool force;             /* replace an existing out_dir that a study wrote */
    bool keep;              /* keep the quantized files in out_dir */
} nib_study_params;

/* The recipes of a named set: "default", "article", "grid" (the whole grid family, 84: a study of so many should be a map).
 * Returns how many there are, 0 for an unknown set; out: (capacity), those that fit are written. */
NIB_API uint32_t nib_study_levels(const char *set, const nib_recipe **out, uint32_t capacity);

/* What a study will take. */
typedef struct nib_study_plan {
    double seconds;        /* expected, from the measured speed of this machine */
    uint64_t disk_bytes;   /* most that is on disk at once */
    uint64_t memory_bytes; /* beyond mapped files */
    char out_dir[1024];
} nib_study_plan;
NIB_API nib_status nib_study_prepare(const nib_study_params *params, nib_pool *pool, nib_study_plan *out,
                                     nib_error *error);

typedef struct nib_try {
    char *text;
    uint32_t n_tokens;
    nib_stop stop;
} nib_try;

typedef struct nib_next_token { /* one of the likeliest next tokens of the probed prompt */
    char piece[64];
    double *probability; /* (1 + n_levels), reference first */
} nib_next_token;

typedef struct nib_study {
    char name[256], out_dir[1024];
    uint32_t n_levels, n_prompts, n_tries;
    nib_quantized *quantized;  /* (n_levels) */
    nib_eval eval;             /* reference and (n_levels) models */
    nib_bench bench;           /* results of the reference first, then each level */
    nib_weight_stats *weights; /* (1 + n_levels), reference first, all with the reference's edge */
    char **prompts;            /* (n_prompts) */
    bool *prompt_is_raw;       /* (n_prompts) plain completion instead of a chat turn */
    nib_try *talk;             /* (n_prompts, 1 + n_levels, n_tries) */
    char *probe;               /* prompt whose next token was probed */
    uint32_t n_next;
    nib_next_token *next; /* (n_next) */
    int32_t cliff; /* the level that is first over the cliff in order of size, -1 if none; an index into quantized */
    int32_t recommended;  /* level to use, -1 if none; an index into quantized */
    char verdict[2048];   /* in words, a sentence or two a line; the last line states the rules */
    bool kept;            /* the quantized files lie in out_dir */
    const nib_pool *pool; /* borrowed; for the threads in the report */
    double seconds;
    uint64_t peak_anonymous_bytes; /* before the speed test, which measures memory with a large buffer */
} nib_study;

/* Runs everything and writes out_dir (report.json, report.html, *.svg). The directory appears under its name only when
 * complete; on error or interruption nothing is left. Free out with nib_study_fini whatever is returned. */
NIB_API nib_status nib_study_run(const nib_study_params *params, nib_pool *pool, const nib_watch *watch, nib_study *out,
                                 nib_error *error);
NIB_API void nib_study_fini(nib_study *study);

/* A complete nibble.study/1 document. */
NIB_API void nib_study_write_json(const nib_study *study, nib_json *json);

#ifdef __cplusplus
}
#endif
#endif
