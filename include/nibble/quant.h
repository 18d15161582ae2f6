/* Importance matrices, recipes (which tensor gets which format), overrides and the quantizer.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_QUANT_H
#define NIBBLE_QUANT_H

#include "nibble/gguf.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Importance matrices ------------------------------------------------------------------------------------------- */

/* How much an error in each input column of each matrix costs: the mean square of what the column was multiplied with
 * while a model read a calibration text. Both formats of llama-imatrix are read: GGUF and the older .dat. */
typedef struct nib_imatrix nib_imatrix;

/* Values that no encoder could use (NaN, infinity, negative, all zero, experts that were never used) become ones: every
 * column counts the same. watch->warn hears of each such entry once.
 * NIB_ERR_IO; NIB_ERR_CORRUPT: not an importance matrix, or damaged (file, offset and field say where). */
NIB_API nib_status nib_imatrix_open(const char *path, const nib_watch *watch, nib_imatrix **out, nib_error *error);
NIB_API void nib_imatrix_free(nib_imatrix *imatrix);

typedef struct nib_imatrix_facts {
    const char *path;    /* as given to nib_imatrix_open */
    const char *dataset; /* the text it was measured on, NULL if the file does not say */
    uint64_t n_entries, n_chunks;
    bool is_legacy; /* .dat */
} nib_imatrix_facts;
NIB_API nib_imatrix_facts nib_imatrix_facts_of(const nib_imatrix *imatrix);

typedef enum nib_imatrix_match {
    NIB_IMATRIX_FOUND,
    NIB_IMATRIX_ABSENT,     /* no entry of that name */
    NIB_IMATRIX_WRONG_SIZE, /* an entry of that name for a matrix of another shape */
} nib_imatrix_match;
/* The importance of a tensor's columns. n_columns: its row length; n_matrices: its number of matrices (experts), each with
 * columns of its own. *out: (n_matrices, n_columns), finite, >= 0, borrowed; NULL unless found. */
NIB_API nib_imatrix_match nib_imatrix_find(const nib_imatrix *imatrix, const char *name, uint64_t n_columns,
                                           uint64_t n_matrices, const float **out);

/* ---- Overrides ------------------------------------------------------------------------------------------------------- */

/* What a user wants otherwise than the recipe says. A format is a plain number format ("q6_k"), not a recipe.
 * For a tensor the first that speaks of it counts: embedding or output, the tensor rules in the order they were added, the
 * role rules. */
typedef struct nib_overrides nib_overrides;
NIB_API nib_status nib_overrides_new(nib_overrides **out, nib_error *error);
NIB_API void nib_overrides_free(nib_overrides *overrides);
/* "REGEX=FORMAT": Perl's regular expressions, found anywhere in the tensor's name, in any case.
 * NIB_ERR_USAGE: no "=", a broken expression, an unknown format. */
NIB_API nib_status nib_overrides_add_tensor(nib_overrides *overrides, const char *rule, nib_error *error);
/* "ROLE=FORMAT": nib_tensor_role's words. */
NIB_API nib_status nib_overrides_add_role(nib_overrides *overrides, const char *rule, nib_error *error);
/* A file of rules separated by white space: REGEX=FORMAT or role:ROLE=FORMAT; # begins a comment. llama-quantize's
 * tensor-type files are such files. NIB_ERR_IO; NIB_ERR_CORRUPT: as NIB_ERR_USAGE above (file and offset). */
NIB_API nib_status nib_overrides_add_file(nib_overrides *overrides, const char *path, nib_error *error);
/* The format of the output matrix (or of the embedding in its place, where there is none), and of the embedding. */
NIB_API nib_status nib_overrides_set_output(nib_overrides *overrides, const char *format, nib_error *error);
NIB_API nib_status nib_overrides_set_embedding(nib_overrides *overrides, const char *format, nib_error *error);
/* watch->warn hears of each rule that no tensor of the file fits. */
NIB_API void nib_overrides_warn_unused(const nib_overrides *overrides, const nib_gguf *gguf, const nib_watch *watch);

/* ---- Recipes ------------------------------------------------------------------------------------------------------- */

/* A recipe is a name with llama-quantize's meaning (q4_0, q4_k = q4_k_m, q2_k, iq3_m, ...), or a format that
 * llama-quantize has no recipe for (mxfp4, nvfp4, nibble's own), which follows q4_0's rule. */
typedef struct nib_recipe nib_recipe;

/* All recipes in a fixed order, NULL past the last. */
NIB_API const nib_recipe *nib_recipe_at(unsigned index);
/* By name, any case. Unknown: NULL and NIB_ERR_USAGE in error, the hint naming the nearest. */
NIB_API const nib_recipe *nib_recipe_find(const char *name, nib_error *error);
NIB_API const char *nib_recipe_name(const nib_recipe *recipe);
/* The format most tensors get. */
NIB_API const nib_format *nib_recipe_format(const nib_recipe *recipe);

/* What decides about formats, and how the file is written. Only recipe is required. */
typedef struct nib_quantize_params {
    const nib_recipe *recipe;
    bool pure;                      /* the recipe's one format for every matrix that can hold it */
    const nib_imatrix *imatrix;     /* NULL: none */
    const nib_overrides *overrides; /* NULL: none */
    bool grid_search;               /* grid family: the scale of least squared error, without importance too */
    bool force;                     /* replace an existing output (never an input) */
    bool no_provenance;             /* leave nibble's own metadata out: version, recipe, hashes of all tensors */
    bool no_sync;                   /* do not fsync: for files thrown away after measuring */
    bool measure_error;             /* fill rel_rmse and max_abs_err: decodes what was written and compares */
    bool resume;                    /* go on where an earlier run of the same input and options was stopped */
    uint64_t split_bytes; /* 0: one file. Else files of at most so many bytes of tensors, at least one tensor each */
} nib_quantize_params;

/* What becomes of one tensor. */
typedef struct nib_choice_of_format {
    const nib_tensor *tensor;
    const nib_format *format; /* the tensor's own format if it is copied */
    bool grid_search;         /* without importance every column counts the same, instead of no search */
    bool copied;
    bool lacks_importance; /* such a format is garbage without an importance matrix, and there is none for the tensor */
    const float *importance; /* (ne[2], ne[0]) NULL: none, or copied */
    char fallback[96];       /* why another format than the recipe's was taken; "" if none */
} nib_choice_of_format;

/* Decides for every tensor of a file, in output order. out: (nib_gguf_n_tensors) entries of the caller's.
 * NIB_ERR_UNSUPPORTED: a row no fallback can hold, or a source type that cannot be decoded (tensor named). */
NIB_API nib_status nib_recipe_choose(const nib_quantize_params *params, const nib_gguf *gguf, nib_choice_of_format *out,
                                     nib_error *error);

/* ---- Quantizing ------------------------------------------------------------------------------------------------------ */

typedef struct nib_quantized_tensor {
    char name[64];
    const nib_format *from, *to;
    uint64_t n_bytes;
    double rel_rmse;    /* sqrt(sum (w - q)^2 / sum w^2); NaN if not measured or w is zero */
    double max_abs_err; /* NaN if not measured */
    char fallback[96];  /* "" if none */
} nib_quantized_tensor;

typedef struct nib_quantized {
    char input[1024], output[1024];
    char imatrix[1024]; /* path, "" if none */
    const nib_recipe *recipe;
    bool pure;
    uint64_t bytes_in, bytes_out; /* whole files */
    double bpw, seconds;
    uint64_t peak_rss; /* anonymous bytes */
    char hash[33];     /* nib_gguf_hash of the output */
    uint32_t n_tensors;
    nib_quantized_tensor *tensors;
    uint32_t n_files;   /* 1 unless split; output is the first */
    uint32_t n_resumed; /* tensors an earlier run had written */
} nib_quantized;

/* Reads gguf's file, writes path_out: streamed, reading, encoding and writing overlapping, so memory does not grow with the
 * model; written as path_out.partial, synced and renamed, so path_out is never half-written.
 * The bytes do not depend on threads or level. Free out with nib_quantized_fini whatever is returned.
 *
 * Resuming: what is done is kept in path_out.journal (not if no_sync). A run that is killed leaves both files; with resume,
 * the next one checks the hashes of what is there and makes at most one tensor again; the result is the same bytes. Without
 * resume it begins anew. A run that fails or is interrupted removes both, but with resume keeps them, unless the
 * input is corrupt. split_bytes: files path_out-00001-of-0000N.gguf (path_out less its ".gguf"), as llama.cpp reads them; just
 * path_out if one will do.
 *
 * NIB_ERR_USAGE: output exists, output is the input (also by another name), another run is writing it, the run to be resumed
 * had other options (field says which). NIB_ERR_CORRUPT: NaN or infinity in the weights, a scale that overflows (tensor,
 * row and column named), an importance matrix of another model. NIB_ERR_IO: space, permission, the input changed or shrank
 * meanwhile. NIB_ERR_UNSUPPORTED: a tensor whose format needs an importance matrix has none.
 * watch->warn hears of tensors without importance or quantized already, of overrides that no tensor fits, and of what an
 * earlier run left.
 * out->input may already be open elsewhere. */
NIB_API nib_status nib_quantize(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params,
                                nib_pool *pool, const nib_watch *watch, nib_quantized *out, nib_error *error);
/* Several outputs from one pass over the input: every piece is read and decoded once. paths_out, params, outs: (n), n at most
 * NIB_QUANTIZE_MOST; two outputs of one name: NIB_ERR_USAGE. The space for all is checked before the first byte. Outputs get
 * their names when all are complete. Each file has the bytes that nib_quantize would give it. */
#define NIB_QUANTIZE_MOST 128u
NIB_API nib_status nib_quantize_many(const nib_gguf *gguf, size_t n, const char *const paths_out[],
                                     const nib_quantize_params params[], nib_pool *pool, const nib_watch *watch,
                                     nib_quantized outs[], nib_error *error);
NIB_API void nib_quantized_fini(nib_quantized *quantized);
/* Exact size of the file nib_quantize would write; the errors of nib_recipe_choose and NIB_ERR_UNSUPPORTED above. */
NIB_API nib_status nib_quantize_plan(const nib_gguf *gguf, const nib_quantize_params *params, uint64_t *n_bytes,
                                     nib_error *error);
/* The members of a nibble.quantize/1 document into the open object. */
NIB_API void nib_quantized_write_json(const nib_quantized *quantized, nib_json *json);

#ifdef __cplusplus
}
#endif
#endif
