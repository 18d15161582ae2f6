/* What a loaded model is made of, for the files of this room. */
#ifndef NIB_MODEL_LOADED_H
#define NIB_MODEL_LOADED_H

#include "arch/arch.h"
#include "nibble/model.h"
#include "op/context.h"

/* The bytes of matrices stay in the mapped file; vectors (norms, biases) are decoded once, they are small. */
struct nib_model {
    nib_gguf *gguf;
    nib_tokenizer *tokenizer; /* NULL if the file has no vocabulary */
    const nib_arch *arch;
    nib_graph graph;
    nib_op_weight *weights;     /* (n_weights) what the graph's handles index */
    const nib_tensor **tensors; /* (n_weights) where they came from */
    uint32_t n_weights;
    float *vectors;  /* all decoded vectors */
    float *inv_freq; /* (n_rot / 2) */
    char *name;
    nib_model_facts facts;
};

/* As nib_model_open, over an open file, which is taken: closed with the model, or at once on error. */
nib_status nib_model_from_gguf(nib_gguf *gguf, const nib_watch *watch, nib_model **out, nib_error *error);

/* Positions per sequence. */
uint32_t nib_session_n_ctx(const nib_session *session);

#endif
