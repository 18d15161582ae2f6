/* What an output of the quantizer will be. */
#ifndef NIB_QUANT_LAYOUT_H
#define NIB_QUANT_LAYOUT_H

#include "file/gguf_write.h"
#include "nibble/quant.h"

/* Where a tensor's payload stands. */
typedef struct nib_place {
    uint32_t part;
    uint64_t offset, n_bytes; /* from the start of the part's file; without padding */
} nib_place;

/* One file of an output. */
typedef struct nib_part {
    char *path;
    nib_gguf_head head;
    uint64_t n_bytes;   /* of the whole file */
    nib_output *output; /* NULL: not open, or finished before */
    nib_map finished;   /* what an earlier run wrote to the end and renamed */
} nib_part;

/* Everything that is known before the first byte is written. */
typedef struct nib_layout {
    nib_choice_of_format *choices; /* (n) in output order */
    nib_place *places;             /* (n) */
    size_t n;
    nib_part *parts; /* (n_parts) */
    size_t n_parts;
    uint64_t n_bytes; /* of all files */
    size_t hashes_at; /* where the tensors' hashes stand in the first file; 0: nowhere */
} nib_layout;

/* Chooses formats and places; the errors of nib_quantize_plan. Free it with nib_layout_fini whatever is returned. */
nib_status nib_layout_make(const nib_gguf *gguf, const char *path_out, const nib_quantize_params *params,
                           nib_layout *layout, nib_error *error);
void nib_layout_fini(nib_layout *layout);
/* watch->warn hears of tensors without importance, and of those that were quantized before. imatrix: NULL if there is none. */
void nib_layout_warn(const nib_layout *layout, const nib_imatrix *imatrix, const nib_watch *watch);

#endif
