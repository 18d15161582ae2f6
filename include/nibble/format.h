/* Number formats: how a block of weights becomes bytes and back.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_FORMAT_H
#define NIBBLE_FORMAT_H

#include "nibble/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which kernels multiply with the format. */
typedef enum nib_class {
    NIB_CLASS_NONE,   /* not for weights: integers and rounded activations */
    NIB_CLASS_FLOAT,  /* f32, f16, bf16, plain floats: multiplied as floats */
    NIB_CLASS_SCALED, /* integer codes, a scale (and perhaps a minimum) per 16 or 32 of them: multiplied as integers */
} nib_class;

/* What a codec says of a row it was given. */
typedef enum nib_verdict {
    NIB_VERDICT_OK,
    NIB_VERDICT_NOT_FINITE,       /* NaN or infinity among the weights */
    NIB_VERDICT_SCALE_OVERFLOW,   /* a block scale does not fit its type */
    NIB_VERDICT_BAD_CODE,         /* decode side (check): a code the encoder never writes */
    NIB_VERDICT_NEEDS_IMPORTANCE, /* the encoder works with an importance matrix only: iq1_s, iq2_xs, iq2_xxs */
} nib_verdict;

/* One format. The facts a person or a planner needs; everything here is constant and lives forever.
 * A row of n weights, n a multiple of block, takes n / block * bytes bytes. */
typedef struct nib_format nib_format;

typedef struct nib_format_facts {
    const char *name;      /* "q4_k": nibble's and the command line's name, lower case */
    const char *gguf_name; /* "q4_K": llama.cpp's spelling; same as name where llama.cpp has none */
    uint32_t gguf_type;    /* tensor type id in GGUF files */
    uint32_t block;        /* weights per block */
    uint32_t bytes;        /* bytes per block */
    nib_class kind;
    const char *about; /* one line: what is stored, when to use it */
    bool can_encode, can_decode;
    bool is_nibbles_own; /* only nibble reads it */
    bool weighs_rows;    /* with importance the whole row counts for every block: encode no row in parts */
} nib_format_facts;

/* All formats in a fixed order; NULL past the last. */
NIB_API const nib_format *nib_format_at(unsigned index);
/* By name in either spelling, any case; NULL if unknown. */
NIB_API const nib_format *nib_format_find(const char *name);
/* By GGUF tensor type id; NULL if unknown. */
NIB_API const nib_format *nib_format_by_type(uint32_t gguf_type);
/* Is it one of the grid family, q<bits><kind>[_<block>]? false for NULL. */
NIB_API bool nib_format_is_grid(const nib_format *format);
NIB_API const nib_format_facts *nib_format_facts_of(const nib_format *format);
/* Bits per weight: 8 * bytes / block. */
NIB_API double nib_format_bpw(const nib_format *format);
/* Bytes of a row of n weights; 0 if n is not a multiple of the block. */
NIB_API size_t nib_format_row_bytes(const nib_format *format, size_t n);

/* Encode one row. src: (n) floats, n a multiple of block; dst: nib_format_row_bytes(n) bytes, any alignment.
 * importance: (n) non-negative weights of the squared error per column, or NULL.
 * The bytes are the same for every level, compiler and thread count; for llama.cpp's formats they equal llama-quantize's.
 * Returns what it saw; unless NIB_VERDICT_OK, dst is unspecified. Thread-safe. */
NIB_API nib_verdict nib_format_encode(const nib_format *format, void *dst, const float *src, size_t n,
                                      const float *importance);
/* Decode one row: dst (n) floats. Bit-identical to llama.cpp's dequantization. Thread-safe. */
NIB_API void nib_format_decode(const nib_format *format, float *dst, const void *src, size_t n);
/* Looks at stored bytes without decoding: non-finite scales or codes no encoder writes. Thread-safe. */
NIB_API nib_verdict nib_format_check(const nib_format *format, const void *src, size_t n);

#ifdef __cplusplus
}
#endif
#endif
