/* The tables of inner loops. Every level_*.c is compiled once per level and exports one table named after the level; the
 * other files of this room spread the work over the pool and call through the table of the level in use.
 *
 *     level_rows.c    element by element and row by row          nib_row_kernels
 *     level_pack.c    activations on their way into a product    nib_pack_kernels
 *     level_gemm.c    matrix products by panels                  nib_gemm_kernels
 *     level_gemv.c    matrix products row by row                 nib_gemv_kernels
 *     level_kv.c      keys and values on their way into the cache nib_kv_kernels
 *     level_attend.c  attention of one block of queries          nib_attend_kernels */
#ifndef NIB_KERNEL_LEVEL_H
#define NIB_KERNEL_LEVEL_H

#include "cpu/cpu.h"
#include "format/impl.h"
#include "kernel/kernel.h"

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* Some of a row's logits, none of which is larger than max. */
typedef struct nib_logit_piece {
    const float *logits;
    size_t n;
    float max;
    float *terms; /* NULL, or (n) for e^(logit - max) */
    /* NULL, or the logits of another row, their terms, and what had been taken off. */
    const float *base, *base_terms;
    float base_max;
} nib_logit_piece;

typedef struct nib_logit_sums {
    double exp;         /* sum_i e^(logit_i - max) */
    double differences; /* sum_i base_term_i ((base_i - base_max) - (logit_i - max)) */
} nib_logit_sums;

typedef struct nib_row_kernels {
    /* One row; out may be x. */
    void (*norm)(const float *x, size_t n, const float *weight, float eps, float *out);
    void (*add)(float *x, const float *y, size_t n);
    void (*swiglu)(const float *gate, const float *up, size_t n, float *out);
    /* One token's heads x (n_head, head_dim). */
    void (*rope)(float *x, uint32_t position, uint32_t n_head, uint32_t head_dim, const float *inv_freq,
                 uint32_t n_pairs, bool neox);
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
    nib_row_error (*row_error)(const float *weights, const float *decoded, size_t n);
    /* Of logits; index: the first of equals, 0 if all are minus infinity. */
    float (*largest)(const float *x, size_t n, size_t *index);
    /* careful: so that a term of 1 leaves the others their digits. False if a logit may be as large as piece->max or
     * larger: then the sums are good for nothing unless careful. */
    bool (*sum_logits)(const nib_logit_piece *piece, bool careful, nib_logit_sums *sums);
    /* For tests: e^x, and 16 dot products of 4 bytes (u unsigned, s signed) added to acc. */
    void (*exp)(float *x, size_t n);
    void (*dp4)(int32_t acc[16], const uint8_t u[64], const int8_t s[64]);
} nib_row_kernels;

/* ---- linear ----------------------------------------------------------------------------------------------------- */

enum {
    NIB_PANEL_ROWS = 32, /* weight rows that are unpacked together */
    NIB_TASK_PANELS = 4, /* panels of one task at most: they share the tiles while the second cache has them */
    NIB_TILE_TOKENS = 6, /* tokens of one register tile */
    NIB_TASK_TILES = 86, /* tiles of one task at most: their sums, 64 KiB a panel, stay in the second cache */
    NIB_GEMV_TOKENS = NIB_DOT_TOKENS,
    /* Rows are quicker than panels up to so many tokens, which take turns: floats, and bf16 pairs. */
    NIB_FLOAT_TOKENS = 2 * NIB_GEMV_TOKENS,
    NIB_PAIR_TOKENS = 8 * NIB_GEMV_TOKENS,
};

/* How a product is computed. */
typedef enum nib_route {
    NIB_ROUTE_F32,     /* decoded weights, f32 activations (which may have been rounded) */
    NIB_ROUTE_BF16,    /* bf16 pairs against bf16 pairs; levels with that instruction */
    NIB_ROUTE_INT_32,  /* codes against NIB_ACT_Q8_32 */
    NIB_ROUTE_INT_256, /* codes against NIB_ACT_Q8_256 */
} nib_route;

/* Where the b-th 256 columns begin: integers that are left at the end make a whole block with some before them. */
static inline size_t nib_block_begin(nib_route route, size_t n_cols, size_t b) {
    const bool is_float = route == NIB_ROUTE_F32 || route == NIB_ROUTE_BF16;
    return is_float || (b + 1) * NIB_PANEL_K < n_cols ? b * NIB_PANEL_K : nib_last_block(n_cols);
}

/* A panel's memory of one worker. */
typedef struct nib_panel_scratch {
    union {
        nib_codes codes[NIB_PANEL_ROWS];
        _Alignas(64) float decoded[NIB_PANEL_ROWS][NIB_PANEL_K];
    } rows;
    union {
        struct {
            nib_panel half[NIB_PANEL_ROWS / 16];
            float minus_min[NIB_PANEL_K / 16][NIB_PANEL_ROWS];   /* of formats without turn */
            float scaled_sum[NIB_PANEL_K / 32][NIB_TILE_TOKENS]; /* for minimums that are floats */
        } ints;
        _Alignas(64) float floats[NIB_PANEL_K][NIB_PANEL_ROWS];
        _Alignas(64) uint32_t pairs[NIB_PANEL_K / 2][NIB_PANEL_ROWS];
    } panel;
} nib_panel_scratch;

/* Some rows of one product. */
typedef struct nib_linear_task {
    const nib_format *format; /* the level's own */
    nib_route route;
    const void *weights; /* row 0 of the rows below */
    size_t row_bytes;
    uint32_t n_cols, n_rows; /* columns; rows here: by panels at most 4 x 32 */
    uint32_t first_row;      /* in the matrix: so many rows lie before these */
    const void *tiles;       /* packed activations: see pack_tile, pack_row */
    uint32_t n_tokens;
    /* Panels: these tiles of all the batch's; bytes of a tile of 256 columns. */
    uint32_t first_tile, n_tiles, batch_tokens;
    size_t tile_bytes;
    bool is_near;          /* panels: the second cache keeps all the batch's tiles */
    const void *following; /* panels: the weights of the task that most likely follows, to be fetched meanwhile */
    bool by_16;            /* rows: 16 of them at once, of which the matrix has so many */
    const float *bias;     /* (n_rows) or NULL */
    float *out;            /* token t, row r at out[t * out_stride + r] */
    size_t out_stride;
} nib_linear_task;

typedef struct nib_pack_kernels {
    size_t int_tile_bytes;
    /* Packs the tokens of one tile of x (n_tokens, n_cols) for panels, all columns: blocks [256 columns][tile];
     * nib_int_tile for integers, float[256][6], or bf16 pairs uint32_t[128][6]. */
    void (*tile)(nib_route route, nib_activation rounding, const float *x, uint32_t n_tokens, uint32_t n_cols,
                 size_t tile, void *tiles);
    /* Packs one token for rows: nib_int_row[blocks of 256], or floats or bf16 padded with zeros to a multiple of 256.
     * n_together: if not 0, for `few`: so many nib_few_row lie from block to block, one for every token */
    void (*row)(nib_route route, nib_activation rounding, const float *x, uint32_t n_cols, size_t n_together,
                void *row);
} nib_pack_kernels;

typedef struct nib_gemm_kernels {
    bool has_bf16;
    bool has_dp4; /* four bytes are multiplied and added in one instruction */
    /* sums: (n_tokens, 32) floats for each panel. */
    void (*panels)(const nib_linear_task *task, nib_panel_scratch *scratch, float *sums);
} nib_gemm_kernels;

typedef struct nib_gemv_kernels {
    /* Few tokens: more than NIB_GEMV_TOKENS take turns. Any number of rows. */
    void (*rows)(const nib_linear_task *task, nib_panel_scratch *scratch);
} nib_gemv_kernels;

/* A batch's tokens in tiles of at most six, as even as can be (8 = 4 + 4): the first token of a tile. */
static inline size_t nib_tiles_of(size_t n_tokens) {
    return (n_tokens + NIB_TILE_TOKENS - 1) / NIB_TILE_TOKENS;
}
static inline size_t nib_tile_begin(size_t tile, size_t n_tokens) {
    return tile * n_tokens / nib_tiles_of(n_tokens);
}

/* Bytes of one packed block: a tile of 256 columns, or 256 columns of one token. */
static inline size_t nib_tile_bytes(const nib_pack_kernels *pack, nib_route route) {
    if (route == NIB_ROUTE_F32) return sizeof(float) * NIB_PANEL_K * NIB_TILE_TOKENS;
    if (route == NIB_ROUTE_BF16) return sizeof(uint32_t) * NIB_PANEL_K / 2 * NIB_TILE_TOKENS;
    return pack->int_tile_bytes;
}
static inline size_t nib_row_block_bytes(nib_route route) {
    if (route == NIB_ROUTE_F32) return sizeof(float) * NIB_PANEL_K;
    if (route == NIB_ROUTE_BF16) return sizeof(uint16_t) * NIB_PANEL_K;
    return sizeof(nib_int_row);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

enum {
    NIB_KV_TILE = 32,             /* positions that are stored together */
    NIB_KV_GROUP = 32,            /* q8_0: dimensions that share a scale */
    NIB_ATTEND_KEYS = NIB_KV_PAD, /* keys of one step */
    NIB_ATTEND_PIECE = 512,       /* keys of one piece: each has a softmax of its own, pieces are folded in order */
    NIB_ATTEND_ROWS = 192,        /* query rows (token, head) that share a pass over the keys, at most */
};

/* Bytes of one position's key, or value, of one head. */
static inline size_t nib_kv_row_bytes(nib_kv_type type, uint32_t head_dim) {
    const size_t padded = ((size_t)head_dim + 15) / 16 * 16;
    if (type == NIB_KV_TYPE_Q8_0) return head_dim / NIB_KV_GROUP * (NIB_KV_GROUP + sizeof(uint16_t));
    return padded * (type == NIB_KV_TYPE_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* One head's keys and values of some consecutive tokens on their way into the cache. */
typedef struct nib_kv_store_task {
    nib_kv_type type;
    uint32_t head_dim;
    char *keys, *values; /* position 0 of the sequence and head */
    uint32_t position, n_tokens;
    const float *k, *v;  /* first token */
    size_t token_stride; /* floats from token to token in k and v */
} nib_kv_store_task;

typedef struct nib_kv_kernels {
    void (*store)(const nib_kv_store_task *task);
} nib_kv_kernels;

/* Queries of some consecutive tokens and of some heads that share one kv head. */
typedef struct nib_attend_task {
    nib_kv_type type;
    const char *keys, *values; /* position 0 of the sequence and kv head */
    const char *keys_ahead;    /* what this worker will most likely read next */
    bool integers;             /* how scores and sums are computed: see level_attend.c */
    uint32_t head_dim;
    uint32_t n_tokens, n_heads; /* n_tokens * n_heads <= NIB_ATTEND_ROWS */
    uint32_t position;          /* of the first token */
    uint32_t window;            /* a token sees so many positions, itself included; 0 = all */
    float scale;
    const float *q;      /* first token, first head; (.., n_head_total, head_dim) */
    float *out;          /* likewise */
    size_t token_stride; /* floats from token to token in q and out */
    /* If part is not NULL: only this piece of the keys, and its unfinished result goes to part (.., n_head_total,
     * nib_attend_part_floats) instead of out. */
    uint32_t piece;
    float *part;
    size_t part_stride; /* floats from token to token in part */
} nib_attend_task;

typedef struct nib_attend_kernels {
    void (*attend)(const nib_attend_task *task, float *scratch);
    /* Folds the results of n consecutive pieces for one row, part_step floats apart, and finishes it. */
    void (*merge)(const float *parts, size_t n, size_t part_step, uint32_t head_dim, float *out);
} nib_attend_kernels;

/* Floats of one row's result over a piece: weighted sum of values, maximum, sum of weights. */
static inline size_t nib_attend_part_floats(uint32_t head_dim) {
    return ((size_t)head_dim + 31) / 32 * 32 + 16;
}
/* Floats of one worker's scratch. */
static inline size_t nib_attend_floats(uint32_t head_dim) {
    const size_t row = ((size_t)head_dim + 31) / 32 * 32;
    return NIB_ATTEND_ROWS * (3 * row + 16) + NIB_ATTEND_KEYS * (row + 16) + 8 * NIB_ATTEND_KEYS * 4;
}

#define LEVEL(name, needs)                                 \
    extern const nib_row_kernels nib_row_kernels_##name;   \
    extern const nib_pack_kernels nib_pack_kernels_##name; \
    extern const nib_gemm_kernels nib_gemm_kernels_##name; \
    extern const nib_gemv_kernels nib_gemv_kernels_##name; \
    extern const nib_kv_kernels nib_kv_kernels_##name;     \
    extern const nib_attend_kernels nib_attend_kernels_##name;
#include "cpu/levels.def"
#undef LEVEL

#endif
