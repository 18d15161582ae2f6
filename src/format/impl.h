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

/* 256 columns of 16 rows as integers, turned so that lane r of every vector belongs to row r (format/panel.h):
 *
 *     weight = scale[column / group] * (code - centre)  -  d_min * min[column / min_group]
 *
 * Scales are floats, or whole numbers times a float d; minimums are whole numbers, for the k-quants' kind of formats, or
 * floats without d_min where activations have a scale per 32. Whole numbers stand in pairs. */
typedef struct nib_panel_shape {
    uint16_t group;     /* 16, 32 or 256 (the sub-blocks' scales are in the codes) */
    uint16_t centre;    /* 0 or a power of two */
    uint16_t min_group; /* 16 or 32; 0: there are no minimums */
    uint16_t whole;     /* 0: scales are floats; else they are whole, and this is the largest |code - centre| */
} nib_panel_shape;

typedef struct nib_panel {
    _Alignas(64) uint8_t code[NIB_PANEL_K / 4][16][4];
    union {
        float scale[NIB_PANEL_K / 16][16];
        struct {
            int16_t whole[NIB_PANEL_K / 32][16][2];
            float d[16];
        };
    };
    union {
        struct {
            int16_t min[NIB_PANEL_K / 32][16][2];
            float minus_d_min[16];
        };
        float minus_min[NIB_PANEL_K / 32][16];
    };
} nib_panel;

enum {
    NIB_DOT_TOKENS = 5, /* products of more never go row by row */
    NIB_FEW_TOKENS = 8, /* `few` takes so many at once */
    NIB_FEW_MOST = 16,  /* products of more never go by 16 rows without panels */
};

/* Rows are cut into blocks of 256 columns; where the last one begins. If columns are left, it is the last 256 of all, of
 * which those that an earlier block has count as zero: so no block but an only one is broken. Rounding goes by 32 columns,
 * so they must not be cut apart. */
static inline size_t nib_last_block(size_t n_cols) {
    const size_t rest = n_cols % NIB_PANEL_K;
    if (rest && n_cols > NIB_PANEL_K && n_cols % 32 == 0) return n_cols - NIB_PANEL_K;
    return n_cols - (rest ? rest : NIB_PANEL_K);
}

/* 256 activations of one token as integers, rounded as NIB_ACT_Q8_32 or NIB_ACT_Q8_256 says, and their sums: what `few` reads
 * of several tokens at once, so that the second cache should have room for many. */
typedef struct nib_few_row {
    _Alignas(64) int8_t code[NIB_PANEL_K];
    float scale[NIB_PANEL_K / 16],
        sum32[NIB_PANEL_K / 16]; /* per 32, and sums of codes times it; upper halves are zero */
    int16_t whole16[NIB_PANEL_K / 16],
        whole32[NIB_PANEL_K / 16]; /* sums of codes; whole32 has its 8 in the upper half */
    int32_t minus_sum16[NIB_PANEL_K / 16], minus_sum32[NIB_PANEL_K / 32], minus_sum256; /* sums of codes, negative */
} nib_few_row;

/* The same and its codes in other orders, for `dot`. Crossed: 16 of each of groups 0, 2, 4, 6 of 32, then the other 16 of
 * each; the same of groups 1, 3, 5, 7. So nibbles lie that share a byte with others of their group, and a lane's products of
 * two vectors belong to one group. */
typedef struct nib_int_row {
    nib_few_row in_order;
    _Alignas(64) int8_t crossed[NIB_PANEL_K];
    int8_t turned[NIB_PANEL_K]; /* (4, 16, 4), code 16 i + 4 m + j at [j][i][m] */
    /* Of even blocks, for levels with byte permutations and NIB_ACT_Q8_256: this block and the next (zeros if it was the
     * last) in lanes of 32 codes, two of this block, two of the next, and so on: code 8 m + j of a lane at [j][lane][m]. */
    int8_t paired[2 * NIB_PANEL_K];
    int32_t paired_minus[NIB_PANEL_K / 16]; /* -64 times the lanes' sums of codes */
    float paired_scale[NIB_PANEL_K / 16];
    int16_t sum8[NIB_PANEL_K / 8]; /* of 8 codes each */
    float sum16[NIB_PANEL_K / 16]; /* sums of codes times scale */
} nib_int_row;

/* Some rows of weights times at most NIB_DOT_TOKENS tokens. */
typedef struct nib_dot_task {
    const void *weights;
    size_t row_bytes;
    uint32_t n_cols, n_rows, n_tokens;
    const void
        *packed;       /* token after token: nib_int_row[blocks of 256], or floats padded with zeros to blocks of 256 */
    const float *bias; /* (n_rows) or NULL */
    float *out;        /* token t, row r at out[t * out_stride + r] */
    size_t out_stride;
} nib_dot_task;

/* 256 weights of 16 rows times a few tokens. */
typedef struct nib_few_task {
    const void *src; /* row r of weights: src + r * stride */
    size_t stride;
    const nib_few_row *row; /* one for every token */
    const char
        *ahead; /* memory is asked for 64 steps of so many bytes meanwhile: in a row they would hold the products up */
    size_t ahead_step;
    const char *next; /* these rows' next columns, which the first cache is to have by then: four such steps a row */
    size_t next_step;
    float (*sums)[16]; /* sums[t][r] grows */
} nib_few_task;

/* One function for every number of tokens, at place n - 1. */
typedef struct nib_few {
    uint32_t from, to; /* it is the fastest way from so many tokens to so many */
    void (*products[NIB_FEW_TOKENS])(const nib_few_task *task);
} nib_few;

struct nib_format {
    nib_format_facts facts;
    nib_activation activation;
    uint32_t group;        /* NIB_CLASS_SCALED: weights per scale, 16 or 32 */
    uint32_t centre;       /* unpack: a power of two if min is always centre * scale, else 0 */
    nib_panel_shape shape; /* what turn gives */
    uint32_t dot_tokens;   /* where bytes are multiplied in one instruction: up to how many dot beats turn; 0: 1 */
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
    /* Optional where there is unpack, which serves instead: 256 weights of 16 rows, stride bytes apart, for products with
     * many columns. */
    void (*turn)(const nib_format *format, nib_panel *restrict out, const void *restrict src, size_t stride);
    /* Optional: products straight from the stored bytes (dot.h), faster than by way of unpack or decode. Activations are
     * nib_int_row for NIB_CLASS_SCALED, which has unpack too, and floats for NIB_CLASS_FLOAT. */
    void (*dot)(const nib_format *format, const nib_dot_task *task);
    /* Optional, beside turn (few.h): faster than by way of panels while tokens are few. */
    const nib_few *few;
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
