/* Matrix products of a few tokens: each row of weights is multiplied along its length as it lies in the file, so
 * that the weights pass by once, at the speed of memory. Formats that have a `dot` (format/dot.h) do so in registers, the
 * others are unpacked or decoded into memory first. */
#include "format/dot.h"
#include "kernel/columns.h"
#include "kernel/tile.h"

enum { K = NIB_PANEL_K, GEMV_AHEAD = 8 };

/* One row of codes against n_tokens (a constant at every call) rows of integers. A few blocks are unpacked before the
 * first is read: narrow stores read back at once by wide loads would stall. */
NIB_INLINE void row_ints(const nib_linear_task *task, size_t r, size_t n_tokens, int group, nib_codes codes[GEMV_AHEAD],
                         vf total[NIB_GEMV_TOKENS]) {
    const nib_format *format = task->format;
    const size_t n_blocks = ((size_t)task->n_cols + K - 1) / K;
    for (size_t first = 0; first < n_blocks; first += GEMV_AHEAD) {
        const size_t end = first + GEMV_AHEAD < n_blocks ? first + GEMV_AHEAD : n_blocks;
        for (size_t b = first; b < end; b++) {
            const size_t k = b + 1 < n_blocks ? b * K : nib_last_block(task->n_cols);
            const size_t n = task->n_cols - k < K ? task->n_cols - k : K;
            if (n < K) memset(&codes[b - first], 0, sizeof *codes); /* what an earlier block left must not count */
            format->unpack(format, &codes[b - first], columns_at(task, r, k), n);
        }
        for (size_t b = first; b < end; b++) {
            dot_groups w;
            dot_read_codes(&w, &codes[b - first]);
            dot_groups_step(&w, (const nib_int_row *)task->tiles + b, n_blocks, n_tokens, group, total);
        }
    }
}

NIB_INLINE void row_floats(const nib_linear_task *task, size_t r, size_t n_tokens, float decoded[K],
                           vf sum[NIB_GEMV_TOKENS]) {
    const size_t padded = ((size_t)task->n_cols + K - 1) / K * K;
    vf other[NIB_GEMV_TOKENS];
    NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) other[t] = vf_zero();
    for (size_t k = 0; k < task->n_cols; k += K) {
        const size_t n = task->n_cols - k < K ? task->n_cols - k : K;
        if (n < K) memset(decoded, 0, K * sizeof *decoded);
        decode_columns(task, r, k, n, decoded);
        const float *x = (const float *)task->tiles + k;
        for (size_t i = 0; i < K; i += 32) {
            const vf w0 = vf_load(decoded + i), w1 = vf_load(decoded + i + 16);
            NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) {
                sum[t] = vf_fma(w0, vf_load(x + t * padded + i), sum[t]);
                other[t] = vf_fma(w1, vf_load(x + t * padded + i + 16), other[t]);
            }
        }
    }
    NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) sum[t] = vf_add(sum[t], other[t]);
}

NIB_INLINE void rows_of(const nib_linear_task *task, const nib_dot_task *dot, size_t n_tokens,
                        nib_panel_scratch *scratch) {
    dot_rows rows;
    memset(scratch->rows.codes, 0, GEMV_AHEAD * sizeof *scratch->rows.codes);
    for (size_t r = 0; r < task->n_rows; r++) {
        vf sum[NIB_GEMV_TOKENS];
        NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) sum[t] = vf_zero();
        if (task->route == NIB_ROUTE_F32)
            row_floats(task, r, n_tokens, scratch->rows.decoded[0], sum);
        else if (task->format->group == 16)
            row_ints(task, r, n_tokens, 16, scratch->rows.codes, sum);
        else
            row_ints(task, r, n_tokens, 32, scratch->rows.codes, sum);
        dot_store(dot, &rows, r, n_tokens, sum);
    }
}

static void rows(const nib_linear_task *task, nib_panel_scratch *scratch) {
    const nib_format *format = task->format;
    const nib_dot_task dot = {
        .weights = task->weights,
        .row_bytes = task->row_bytes,
        .n_cols = task->n_cols,
        .n_rows = task->n_rows,
        .n_tokens = task->n_tokens,
        .packed = task->tiles,
        .bias = task->bias,
        .out = task->out,
        .out_stride = task->out_stride,
    };
    if (format->dot && (format->facts.kind == NIB_CLASS_FLOAT) == (task->route == NIB_ROUTE_F32)) {
        format->dot(format, &dot);
        return;
    }
    NIB_DOT_EACH(task, n, rows_of(task, &dot, n, scratch))
}

extern const nib_gemv_kernels NIB_AT_LEVEL(nib_gemv_kernels_);
const nib_gemv_kernels NIB_AT_LEVEL(nib_gemv_kernels_) = {.rows = rows};
