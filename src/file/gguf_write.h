/* Writing the header of a GGUF file (version 3) into memory: pairs first, then tensors, then padding. */
#ifndef NIB_FILE_GGUF_WRITE_H
#define NIB_FILE_GGUF_WRITE_H

#include "file/gguf_file.h"

/* A header being put together. {0}-initialised by begin; text.failed is set, and stays, when memory runs out. */
typedef struct nib_gguf_head {
    nib_string text;
    uint64_t n_tensors, n_kv;
} nib_gguf_head;

void nib_gguf_head_begin(nib_gguf_head *head);
/* A pair of another file, value bytes unchanged but for booleans, which become 0 or 1. */
void nib_gguf_head_copy(nib_gguf_head *head, const nib_gguf_kv *kv);
void nib_gguf_head_u32(nib_gguf_head *head, const char *key, uint32_t value);
void nib_gguf_head_f32(nib_gguf_head *head, const char *key, float value);
void nib_gguf_head_bool(nib_gguf_head *head, const char *key, bool value);
void nib_gguf_head_text(nib_gguf_head *head, const char *key, const char *value);
void nib_gguf_head_u16(nib_gguf_head *head, const char *key, uint16_t value);
void nib_gguf_head_i32(nib_gguf_head *head, const char *key, int32_t value);
/* An array of n zeros, to be filled in later. Returns where its first value stands in the text. */
size_t nib_gguf_head_u64_array(nib_gguf_head *head, const char *key, uint64_t n);
/* After all pairs. Trailing dimensions of 1 are left out, as llama.cpp does. offset: from the start of the data. */
void nib_gguf_head_tensor(nib_gguf_head *head, const char *name, const nib_format *format, const uint64_t ne[4],
                          uint64_t offset);
/* Pads and fills in the counts; NIB_ERR_MEMORY if anything failed. The text is what a file begins with. */
nib_status nib_gguf_head_end(nib_gguf_head *head, uint32_t alignment, nib_error *error);
void nib_gguf_head_fini(nib_gguf_head *head);

#endif
