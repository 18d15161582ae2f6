/* Recipes (which tensor gets which format) and the quantizer.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_QUANT_H
#define NIBBLE_QUANT_H

#include "nibble/gguf.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Recipes ------------------------------------------------------------------------------------------------------- */

/* A recipe is a name with llama-quantize's meaning (q4_0, q4_k = q4_k_m, q2_k, ...) or one of nibble's own formats, which
 * follow q4_0's rule. */
typedef struct nib_recipe nib_recipe;

/* All recipes in a fixed order, NULL past the last. */
NIB_API const nib_recipe *nib_recipe_at(unsigned index);
/* By name, any case. Unknown: NULL and NIB_ERR_USAGE in error, the hint naming the nearest. */
NIB_API const nib_recipe *nib_recipe_find(const char *name, nib_error *error);
NIB_API const char *nib_recipe_name(const nib_recipe *recipe);
/* The format most tensors get. */
NIB_API const nib_format *nib_recipe_format(const nib_recipe *recipe);

/* What becomes of one tensor. */
typedef struct nib_choice_of_format {
    const nib_tensor *tensor;
    const nib_format *format; /* the tensor's own format if it is copied */
    bool copied;
    char fallback[96]; /* why another format than the recipe's was taken; "" if none */
} nib_choice_of_format;

/* Decides for every tensor of a file, in output order. out: (nib_gguf_n_tensors) entries of the caller's.
 * pure: the recipe's one format for every matrix that can hold it.
 * NIB_ERR_UNSUPPORTED: a row no fallback can hold, or a source type that cannot be decoded yet (tensor named). */
NIB_API nib_status nib_recipe_choose(const nib_recipe *recipe, bool pure, const nib_gguf *gguf,
                                     nib_choice_of_format *out, nib_error *error);

/* ---- Quantizing ------------------------------------------------------------------------------------------------------ */

typedef struct nib_quantize_params {
    const nib_recipe *recipe;
    bool pure;
    bool force;           /* replace an existing output (never an input) */
    bool no_provenance;   /* leave nibble's own metadata out */
    bool no_sync;         /* do not fsync: for files thrown away after measuring */
    bool measure_error;   /* fill rel_rmse and max_abs_err: decodes what was written and compares */
    bool resume;          /* go on where an earlier run of the same input and options was killed or stopped */
    uint64_t split_bytes; /* 0: one file. Else files of at most so many bytes of tensors, at least one tensor each */
} nib_quantize_params;

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
 * had other options (field says which). NIB_ERR_CORRUPT: NaN or infinity in the weights, or a scale that overflows (tensor,
 * row and column named). NIB_ERR_IO: space, permission, the input changed or shrank meanwhile.
 * out->input may already be open elsewhere. */
NIB_API nib_status nib_quantize(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params,
                                nib_pool *pool, const nib_watch *watch, nib_quantized *out, nib_error *error);
/* Several outputs from one pass over the input: every piece is read and decoded once. paths_out, params, outs: (n), n at most
 * NIB_QUANTIZE_MOST; two outputs of one name: NIB_ERR_USAGE. The space for all is checked before the first byte. Outputs get
 * their names when all are complete. Each file has the bytes that nib_quantize would give it. */
#define NIB_QUANTIZE_MOST 64u
NIB_API nib_status nib_quantize_many(const nib_gguf *gguf, size_t n, const char *const paths_out[],
                                     const nib_quantize_params params[], nib_pool *pool, const nib_watch *watch,
                                     nib_quantized outs[], nib_error *error);
NIB_API void nib_quantized_fini(nib_quantized *quantized);
/* Exact size of the file nib_quantize would write. */
NIB_API nib_status nib_quantize_plan(const nib_gguf *gguf, const nib_quantize_params *params, uint64_t *n_bytes,
                                     nib_error *error);
/* The members of a nibble.quantize/1 document into the open object. */
NIB_API void nib_quantized_write_json(const nib_quantized *quantized, nib_json *json);

#ifdef __cplusplus
}
#endif
#endif
