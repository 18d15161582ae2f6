/* Matrix products of five tokens or fewer: each row of weights is unpacked as it lies in the file and multiplied along its
 * length, so that the weights pass by once, at the speed of memory. */
#include "kernel/columns.h"
#include "kernel/tile.h"

enum { K = NIB_PANEL_K, GEMV_AHEAD = 8 };

/* One row of codes against n_tokens (a constant at every call) rows of integers. A few blocks are unpacked before the
 * first is read: narrow stores read back at once by wide loads would stall. */
NIB_INLINE void row_ints(const nib_linear_task *task, size_t r, size_t n_tokens, nib_codes codes[GEMV_AHEAD],
                         float *result) {
    const nib_format *format = task->format;
    const size_t n_blocks = ((size_t)task->n_cols + K - 1) / K;
    const int lanes = (int)format->group / 4;
    vf total[NIB_GEMV_TOKENS];
    NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
    for (size_t first = 0; first < n_blocks; first += GEMV_AHEAD) {
        const size_t end = first + GEMV_AHEAD < n_blocks ? first + GEMV_AHEAD : n_blocks;
        for (size_t b = first; b < end; b++) {
            const size_t n = task->n_cols - b * K < K ? task->n_cols - b * K : K;
            if (n < K) memset(&codes[b - first], 0, sizeof *codes); /* what an earlier block left must not count */
            format->unpack(format, &codes[b - first], columns_at(task, r, b * K), n);
        }
        for (size_t b = first; b < end; b++) {
            const nib_codes *block = &codes[b - first];
            const nib_int_row *rows = (const nib_int_row *)task->tiles + b;
            for (int part = 0; part < 4; part++) {
                const vi w = vi_load(block->code + 64 * part);
                const vf scale = vf_spread(block->scale, part, lanes);
                NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) {
                    const nib_int_row *row = rows + t * n_blocks;
                    const vi dot = vi_dp4(vi_splat(0), w, vi_load(row->code + 64 * part));
                    total[t] = vf_fma(vi_to_f(dot), vf_mul(scale, vf_spread(row->scale, part, 8)), total[t]);
                }
            }
            const vf minus_min = vf_sub(vf_zero(), vf_load(block->min));
            NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) {
                const nib_int_row *row = rows + t * n_blocks;
                total[t] = vf_fma(minus_min, vf_load(lanes == 8 ? row->sum32 : row->sum16), total[t]);
            }
        }
    }
    NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) result[t] = vf_sum(total[t]);
}

NIB_INLINE void row_floats(const nib_linear_task *task, size_t r, size_t n_tokens, float decoded[K], float *result) {
    const size_t padded = ((size_t)task->n_cols + K - 1) / K * K;
    vf total[NIB_GEMV_TOKENS][2];
    NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t][0] = total[t][1] = vf_zero();
    for (size_t k = 0; k < task->n_cols; k += K) {
        const size_t n = task->n_cols - k < K ? task->n_cols - k : K;
        if (n < K) memset(decoded, 0, K * sizeof *decoded);
        decode_columns(task, r, k, n, decoded);
        const float *x = (const float *)task->tiles + k;
        for (size_t i = 0; i < K; i += 32) {
            const vf w0 = vf_load(decoded + i), w1 = vf_load(decoded + i + 16);
            NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) {
                total[t][0] = vf_fma(w0, vf_load(x + t * padded + i), total[t][0]);
                total[t][1] = vf_fma(w1, vf_load(x + t * padded + i + 16), total[t][1]);
            }
        }
    }
    NIB_UNROLL for (size_t t = 0; t < n_tokens; t++) result[t] = vf_sum(vf_add(total[t][0], total[t][1]));
}

NIB_INLINE void rows_of(const nib_linear_task *task, size_t n_tokens, nib_panel_scratch *scratch) {
    memset(scratch->rows.codes, 0, GEMV_AHEAD * sizeof *scratch->rows.codes);
    for (size_t r = 0; r < task->n_rows; r++) {
        float result[NIB_GEMV_TOKENS];
        if (task->route == NIB_ROUTE_F32)
            row_floats(task, r, n_tokens, scratch->rows.decoded[0], result);
        else
            row_ints(task, r, n_tokens, scratch->rows.codes, result);
        for (size_t t = 0; t < n_tokens; t++)
            task->out[t * task->out_stride + r] = result[t] + (task->bias ? task->bias[r] : 0);
    }
}

static void rows(const nib_linear_task *task, nib_panel_scratch *scratch) {
    switch (task->n_tokens) {
    case 1:
        rows_of(task, 1, scratch);
        break;
    case 2:
        rows_of(task, 2, scratch);
        break;
    case 3:
        rows_of(task, 3, scratch);
        break;
    case 4:
        rows_of(task, 4, scratch);
        break;
    case 5:
        rows_of(task, 5, scratch);
        break;
    }
}

extern const nib_gemv_kernels NIB_AT_LEVEL(nib_gemv_kernels_);
const nib_gemv_kernels NIB_AT_LEVEL(nib_gemv_kernels_) = {.rows = rows};
