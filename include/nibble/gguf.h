/* Reading GGUF files (versions 2 and 3). The file is mapped and treated as hostile: every count, offset, size, alignment
 * and string is checked against the file before it is used. Format: the ggml project's specification.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_GGUF_H
#define NIBBLE_GGUF_H

#include "nibble/format.h"
#include "nibble/json.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nib_gguf_type {
    NIB_GGUF_U8,
    NIB_GGUF_I8,
    NIB_GGUF_U16,
    NIB_GGUF_I16,
    NIB_GGUF_U32,
    NIB_GGUF_I32,
    NIB_GGUF_F32,
    NIB_GGUF_BOOL,
    NIB_GGUF_STRING,
    NIB_GGUF_ARRAY,
    NIB_GGUF_U64,
    NIB_GGUF_I64,
    NIB_GGUF_F64
} nib_gguf_type;

/* Borrowed text, not NUL-terminated, not necessarily UTF-8. */
typedef struct nib_text {
    const char *data;
    size_t n_bytes;
} nib_text;

/* One key-value pair; borrowed from the file. */
typedef struct nib_gguf_kv {
    nib_text key;
    nib_gguf_type type;         /* of the value */
    nib_gguf_type element_type; /* of the elements if type is NIB_GGUF_ARRAY, else equal to type */
    uint64_t n;                 /* elements, 1 for scalars */
    const uint8_t *data;        /* the packed value(s), little-endian, unaligned */
    const uint64_t *strings;    /* array of strings only: (n) offsets of each string's length field from data */
    int64_t offset;             /* byte offset of the pair in the file */
} nib_gguf_kv;

/* One tensor; borrowed from the file. */
typedef struct nib_tensor {
    const char *name; /* NUL-terminated, at most 63 bytes, unique */
    const nib_format *format;
    uint32_t n_dims;     /* 1..4, as stored */
    uint64_t ne[4];      /* ne[0] is the contiguous dimension; 1 past n_dims */
    uint64_t n_elements; /* product of ne */
    uint64_t n_bytes;    /* payload without padding */
    uint64_t offset;     /* from the start of the file */
    const uint8_t *data; /* mapped payload */
    unsigned shard;      /* file it lies in, 0 = first */
    int64_t info_offset; /* byte offset of its description in the file */
} nib_tensor;

typedef struct nib_gguf nib_gguf;

/* Opens a file. path "demo" is the model built into nibble (a file of that name: "./demo"). Given the first file of a split
 * model (NAME-00001-of-0000N.gguf), opens them all: the tensors of all, the metadata of the first.
 * Errors: NIB_ERR_IO (cannot open or map), NIB_ERR_CORRUPT (file, offset and field say where), NIB_ERR_MEMORY,
 * NIB_ERR_USAGE (a split model's other than first file, or renamed), NIB_ERR_UNSUPPORTED (more than 999 files).
 * Takes memory in proportion to the header only. */
NIB_API nib_status nib_gguf_open(const char *path, nib_gguf **out, nib_error *error);
/* The same over bytes that stay valid until close; name appears in errors. NIB_ERR_UNSUPPORTED: a split model. */
NIB_API nib_status nib_gguf_open_memory(const void *data, size_t n_bytes, const char *name, nib_gguf **out,
                                        nib_error *error);
NIB_API void nib_gguf_close(nib_gguf *gguf);

NIB_API const char *nib_gguf_path(const nib_gguf *gguf);
NIB_API uint64_t nib_gguf_bytes(const nib_gguf *gguf); /* of all its files */
NIB_API uint32_t nib_gguf_version(const nib_gguf *gguf);
NIB_API uint32_t nib_gguf_alignment(const nib_gguf *gguf);
/* Bytes after the last payload that no tensor uses (allowed; worth a warning). */
NIB_API uint64_t nib_gguf_trailing_bytes(const nib_gguf *gguf);

NIB_API uint64_t nib_gguf_n_kv(const nib_gguf *gguf);
NIB_API const nib_gguf_kv *nib_gguf_kv_at(const nib_gguf *gguf, uint64_t index);
NIB_API const nib_gguf_kv *nib_gguf_find(const nib_gguf *gguf, const char *key); /* NULL if absent */

/* Typed reads. false if the key is absent or its value does not fit the asked type (integers of any width and signedness
 * are accepted as long as the value fits; f64 also takes integers). A scalar of an array key is absent. */
NIB_API bool nib_gguf_get_u64(const nib_gguf *gguf, const char *key, uint64_t *out);
NIB_API bool nib_gguf_get_f64(const nib_gguf *gguf, const char *key, double *out);
NIB_API bool nib_gguf_get_bool(const nib_gguf *gguf, const char *key, bool *out);
NIB_API bool nib_gguf_get_text(const nib_gguf *gguf, const char *key, nib_text *out);
/* Element `index` of an array (or the scalar itself for index 0). Booleans read as the integers 0 and 1. */
NIB_API bool nib_gguf_kv_u64(const nib_gguf_kv *kv, uint64_t index, uint64_t *out);
NIB_API bool nib_gguf_kv_i64(const nib_gguf_kv *kv, uint64_t index, int64_t *out);
NIB_API bool nib_gguf_kv_f64(const nib_gguf_kv *kv, uint64_t index, double *out);
NIB_API bool nib_gguf_kv_text(const nib_gguf_kv *kv, uint64_t index, nib_text *out);
/* "u32", "string", ... */
NIB_API const char *nib_gguf_type_name(nib_gguf_type type);

NIB_API uint64_t nib_gguf_n_tensors(const nib_gguf *gguf);
NIB_API const nib_tensor *nib_gguf_tensor_at(const nib_gguf *gguf, uint64_t index);
NIB_API const nib_tensor *nib_gguf_tensor_find(const nib_gguf *gguf, const char *name); /* NULL if absent */

/* The part a tensor plays, from its name alone: "embedding", "output", "attn_q", "ffn_down", "norm", ... ; "other" if the
 * name is not one of the known stems. layer: its block number, -1 outside blocks. */
NIB_API const char *nib_tensor_role(const char *name, int *layer);

/* Reads every byte of every tensor: codes no encoder writes and scales that are not finite. NaN and infinity in float
 * tensors are reported through watch->warn (the first of each tensor, with row and column), not as an error. */
NIB_API nib_status nib_gguf_check(const nib_gguf *gguf, nib_pool *pool, const nib_watch *watch, nib_error *error);

/* XXH3-128 over all tensors (name, type, shape, payload) in file order, as 32 hex digits. */
NIB_API nib_status nib_gguf_hash(const nib_gguf *gguf, char out[33], nib_error *error);

#ifdef __cplusplus
}
#endif
#endif
