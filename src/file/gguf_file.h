/* What the rooms above may know of an open GGUF file beyond nibble/gguf.h: the layout arithmetic shared by reader and
 * writer, the mapping (to refuse writing over it), and the pieces of checking and hashing. */
#ifndef NIB_FILE_GGUF_FILE_H
#define NIB_FILE_GGUF_FILE_H

#include "base/files.h"
#include "nibble/gguf.h"

#include <xxhash.h>

#define NIB_GGUF_ALIGNMENT 32u /* when general.alignment is absent */
#define NIB_GGUF_N_TYPES   13u

/* What the split.* keys say. */
typedef struct nib_split {
    uint64_t count, number, n_tensors; /* files, this file from 0, tensors in all */
    bool has_total;
} nib_split;

struct nib_gguf {
    nib_map map;
    char *path;
    uint32_t version, alignment;
    uint64_t trailing_bytes;

    nib_gguf_kv *kv; /* (n_kv) in file order */
    size_t n_kv, kv_capacity;
    const nib_gguf_kv **kv_by_key; /* (n_kv) sorted by key bytes */

    nib_tensor *tensors; /* (n_tensors) in file order */
    size_t n_tensors, tensor_capacity;
    char (*names)[64]; /* (n_tensors) what the tensors' names point to */
    size_t name_capacity;
    const nib_tensor **tensor_by_name; /* (n_tensors) sorted by name bytes */

    nib_split split;
    nib_gguf **others; /* (n_others) the further files of a split model, whose tensors are among ours */
    unsigned n_others;
};

/* Bytes of one value of a scalar type; 0 for strings and arrays. */
size_t nib_gguf_scalar_bytes(nib_gguf_type type);
/* Bytes of a pair's packed value as it stands in the file (without type and array header). */
uint64_t nib_gguf_kv_bytes(const nib_gguf_kv *kv);
/* The files of the model: one, or the shards of a split one. */
unsigned nib_gguf_n_files(const nib_gguf *gguf);
const nib_map *nib_gguf_map(const nib_gguf *gguf, unsigned file);
const char *nib_gguf_file_path(const nib_gguf *gguf, unsigned file);

/* Feeds one tensor's name, type and shape to a running hash; the payload follows by the caller. */
void nib_gguf_hash_head(XXH3_state_t *state, const char *name, const nib_format *format, const uint64_t ne[4]);
/* Ends the hash: 32 hex digits. */
void nib_gguf_hash_text(const XXH3_state_t *state, char out[33]);

/* A piece of a tensor: `n` columns of one row, from `column`, both multiples of the format's block. The pieces of a
 * tensor are numbered row by row; their length is fixed, so that nothing computed per piece depends on threads:
 * `columns`, of which the last piece of a row has what is left; NIB_PIECE_COLUMNS, or ne[0] for whole rows. */
#define NIB_PIECE_COLUMNS 8192u
typedef struct nib_piece {
    uint64_t row, column;
    size_t n;
    const uint8_t *data;
    size_t n_bytes;
} nib_piece;
uint64_t nib_tensor_n_pieces(const nib_tensor *tensor, uint64_t columns);
nib_piece nib_tensor_piece(const nib_tensor *tensor, uint64_t columns, uint64_t index);
/* First NaN or infinity of (n) floats; n if there is none. */
size_t nib_first_not_finite(const float *values, size_t n);

/* What one piece was found to be. */
typedef struct nib_finding {
    nib_verdict verdict;
    bool is_damage;  /* what no encoder writes, as against NaN and infinity stored as values */
    bool has_column; /* of the first value that is not finite */
    uint64_t column;
} nib_finding;
/* scratch: (piece->n) floats. */
nib_finding nib_piece_check(const nib_tensor *tensor, const nib_piece *piece, float *scratch);

#endif
