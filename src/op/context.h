/* How a context is built, for those who run models and those who add a kind of context.
 *
 *   architecture --> nib_op_*()            op.c: handles, shapes and memory of values, the same for every kind
 *                       |
 *                  nib_op_kind             run.c: kernels on the CPU      measure.c: counts only
 *
 * Values lie in one arena, in stripes of columns: a value of c columns takes columns first .. first + c - 1 of every one of
 * the arena's n_batch rows, whatever the batch's size. So the layout depends on the order of operations alone, and the
 * width that a measuring pass found is the width every later pass needs: nothing is allocated while a model runs.
 *
 *   arena  | x ....... | h ....... | q ..... | k .. | v .. |        width = peak_cols, height = n_batch
 *            (each stripe is stored whole: a value's rows follow each other without gaps) */
#ifndef NIB_OP_CONTEXT_H
#define NIB_OP_CONTEXT_H

#include "op/op.h"

/* A weight as operations see it. */
typedef struct nib_op_weight {
    nib_matrix matrix;   /* file layout; a vector is a matrix of one row */
    uint32_t n_stack;    /* matrices of this shape one after the other */
    const float *vector; /* (matrix.n_cols) decoded; vectors only, else NULL */
} nib_op_weight;

/* What one pass works on. */
typedef struct nib_op_batch {
    const int32_t *ids;        /* (n_tokens) */
    const uint32_t *positions; /* (n_tokens) */
    uint32_t n_tokens;
    const nib_attend_segment *segments; /* (n_segments) cover all tokens, in order */
    uint32_t n_segments;
    const uint32_t *wanted; /* (n_wanted) rows, ascending */
    uint32_t n_wanted;
} nib_op_batch;

/* A value. */
typedef struct nib_op_slot {
    float *data; /* (n_rows, n_cols); NULL where nothing is computed */
    uint32_t n_rows, n_cols;
    uint32_t first_col, width; /* stripe in the arena; width 0: memory from outside */
    uint32_t part_from;        /* memory from outside that takes columns part_from .. of a wider result */
    bool live;
} nib_op_slot;

/* One product of a group. */
typedef struct nib_op_product {
    const nib_op_weight *weight, *bias; /* bias may be NULL */
    const nib_op_slot *out;
} nib_op_product;

/* Experts and their room. */
typedef struct nib_op_experts_work {
    const nib_op_weight *gate, *up, *down;
    uint32_t n_used;
    const nib_op_slot *routes;      /* (n_rows, nib_experts_route_words) */
    const nib_op_slot *in;          /* (n_rows, n_cols of x) */
    const nib_op_slot *gates, *ups; /* (n_rows, n_used * rows of gate) */
} nib_op_experts_work;

/* What a kind does with each operation, after handles and shapes were checked. Values without rows never get here. */
typedef struct nib_op_kind {
    void (*embed)(nib_op_context *context, const nib_op_weight *weight, const nib_op_slot *out);
    /* Runs of n_cols values each; out may be x. */
    void (*norm)(nib_op_context *context, const nib_op_slot *x, const nib_op_weight *weight, float eps,
                 const nib_op_slot *out);
    void (*linears)(nib_op_context *context, const nib_op_slot *x, const nib_op_product *products, uint32_t n);
    void (*rope)(nib_op_context *context, const nib_op_slot *x, const nib_rope *rope, uint32_t head_dim);
    void (*attend)(nib_op_context *context, uint32_t layer, const nib_op_slot *q, const nib_op_slot *k,
                   const nib_op_slot *v, uint32_t n_head, float scale, uint32_t window, const nib_op_slot *out);
    void (*experts)(nib_op_context *context, const nib_op_slot *x, const nib_op_slot *logits,
                    const nib_op_experts_work *experts, const nib_op_slot *out);
    void (*swiglu)(nib_op_context *context, const nib_op_slot *gate, const nib_op_slot *up);
    void (*add)(nib_op_context *context, const nib_op_slot *x, const nib_op_slot *y);
    void (*keep_wanted)(nib_op_context *context, const nib_op_slot *x);
} nib_op_kind;

#define NIB_OP_MAX_VALUES 16
/* Stripes begin at multiples of this many columns: 64 bytes. */
#define NIB_OP_COL_STEP   16

/* Every kind's storage begins with this. */
struct nib_op_context {
    const nib_op_kind *kind;
    const nib_op_weight *weights; /* (n_weights) */
    uint32_t n_weights;
    float *arena; /* (arena_cols * n_batch); NULL where nothing is computed */
    uint64_t arena_cols;
    uint32_t n_batch;
    const nib_op_batch *batch;
    nib_op_slot slots[NIB_OP_MAX_VALUES];
    uint64_t peak_cols;    /* widest the arena was since init */
    const char *failed_op; /* first operation that failed, NULL if none */
    const char *failed_why;
};

/* Begins a pass: forgets all values. The batch must stay until the pass ends. */
void nib_op_begin(nib_op_context *context, const nib_op_batch *batch);
/* How the pass went. */
nib_status nib_op_status(const nib_op_context *context, nib_error *error);
/* A value that lies in the caller's memory: data (n_rows, n_cols). As the result of a product it takes columns part_from ..
 * part_from + n_cols - 1 of it. */
nib_value nib_op_outside(nib_op_context *context, float *data, uint32_t n_rows, uint32_t n_cols, uint32_t part_from);
/* The numbers of a value and how many rows it has; NULL if there is none. */
const float *nib_op_data(const nib_op_context *context, nib_value value, uint32_t *n_rows);

/* ---- Running on the CPU ----------------------------------------------------------------------------------------------- */

/* The matrices of a group of products, as they lie in memory. */
typedef struct nib_op_reads {
    nib_span spans[NIB_OP_MAX_PRODUCTS];
    uint32_t n;
} nib_op_reads;

typedef struct nib_op_run {
    nib_op_context base;
    nib_pool *pool;
    nib_path path;
    const nib_kv_layer *layers; /* (n_layers) */
    uint32_t n_layers;
    void *scratch; /* for nib_linear of n_batch tokens and nib_attend */
    /* (n_weights) What was multiplied after the group that a weight leads: one pass foretells the next. */
    nib_op_reads *followers, *last_follower;
} nib_op_run;

/* Everything pointed to belongs to the caller and must outlive the context. arena: 64-byte aligned, arena_cols * n_batch. */
typedef struct nib_op_run_params {
    const nib_op_weight *weights;
    uint32_t n_weights;
    float *arena;
    uint64_t arena_cols;
    uint32_t n_batch;
    nib_pool *pool;
    nib_path path;
    const nib_kv_layer *layers;
    uint32_t n_layers;
    void *scratch;
    nib_op_reads *followers; /* (n_weights), zero at first, or NULL */
} nib_op_run_params;
void nib_op_run_init(nib_op_run *run, const nib_op_run_params *params);

/* ---- Measuring -------------------------------------------------------------------------------------------------------- */

typedef struct nib_op_measure {
    nib_op_context base;                 /* base.peak_cols: width of the arena a run needs */
    uint32_t max_linear_cols;            /* widest input of a product */
    uint64_t n_macs[NIB_MULTIPLY_KINDS]; /* multiply-adds of all products, by what the deployed path multiplies */
    uint64_t n_weight_bytes;             /* of their matrices; of experts as many as a token uses */
} nib_op_measure;

void nib_op_measure_init(nib_op_measure *measure, const nib_op_weight *weights, uint32_t n_weights);

#endif
