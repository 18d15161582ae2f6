/* What a format's file provides. A format is one file in this folder and one row in formats.def.
 *
 * Format files are compiled once per instruction-set level (see cpu/levels.def) from the same plain C; everything in them
 * is static but the one set that NIB_FORMATS defines, whose name carries the level. */
#ifndef NIB_FORMAT_IMPL_H
#define NIB_FORMAT_IMPL_H

#include "base/half.h"
#include "cpu/at_level.h"
#include "nibble/format.h"

/* How the deployed path rounds activations before multiplying with the format, as llama.cpp does (its "vec_dot type"). */
typedef enum nib_activation {
    NIB_ACT_F32,
    NIB_ACT_F16,
    NIB_ACT_BF16,
    NIB_ACT_Q8_32,  /* int8, one scale per 32: max|x| / 127, nearest even */
    NIB_ACT_Q8_256, /* int8, one scale per 256: llama.cpp's q8_K */
} nib_activation;

#define NIB_PANEL_K 256

/* 256 weights of one row (or the rest of a row) as integers, in natural order:
 * weight i = scale[i / group] * code[i] - min[i / group]. Signed formats store the offset in min. */
typedef struct nib_codes {
    _Alignas(64) uint8_t code[NIB_PANEL_K];
    float scale[NIB_PANEL_K / 16];
    float min[NIB_PANEL_K / 16];
} nib_codes;

struct nib_format {
    nib_format_facts facts;
    nib_activation activation;
    uint32_t group;        /* NIB_CLASS_SCALED: weights per scale, 16 or 32 */
    uint32_t parameter[3]; /* for families of formats in one file: what tells this member from the others */

    /* n is a multiple of facts.block. NULL: this format cannot be written. */
    nib_verdict (*encode)(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance);
    void (*decode)(const nib_format *format, float *restrict dst, const void *restrict src, size_t n);
    /* NULL: nothing can be wrong with stored bytes. */
    nib_verdict (*check)(const nib_format *format, const void *src, size_t n);
    /* NIB_CLASS_SCALED only, and optional (without it the format runs through decode): n <= 256 weights from the start of
     * a block; entries past n are left alone. */
    void (*unpack)(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n);
};

typedef struct nib_format_set {
    const nib_format *items;
    size_t n;
} nib_format_set;

/* Ends a format's file: NIB_FORMATS(q4_k, { .facts = {...}, .encode = encode, ... }) */
#define NIB_FORMATS(file, ...)                                       \
    static const nib_format items_[] = {__VA_ARGS__};                \
    extern const nib_format_set NIB_AT_LEVEL(nib_formats_##file##_); \
    const nib_format_set NIB_AT_LEVEL(nib_formats_##file##_) = {items_, sizeof items_ / sizeof *items_}

#endif
