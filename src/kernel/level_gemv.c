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
            const size_t k = nib_block_begin(task->route, task->n_cols, b);
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

#if defined(__AVX512BF16__)
enum { PAIR_CHAINS = 2, PAIR_STEP = 32 * PAIR_CHAINS, PAIR_ROWS = 4 };
#define EACH_ROW   NIB_UNROLL for (size_t r = 0; r < n_rows; r++)
#define EACH_TOKEN NIB_UNROLL for (size_t t = 0; t < n_tokens; t++)
#define EACH_CHAIN NIB_UNROLL for (size_t c = 0; c < PAIR_CHAINS; c++)

typedef float pair_sums[NIB_GEMV_TOKENS][PAIR_CHAINS][16]; /* of a row */

/* Activations are read once for n_rows rows. */
NIB_INLINE void pairs_step(const char *const w[PAIR_ROWS], const uint16_t *const x[NIB_GEMV_TOKENS], size_t k,
                           size_t n_rows, size_t n_tokens, __m512 sum[PAIR_ROWS][NIB_GEMV_TOKENS][PAIR_CHAINS]) {
    __m512bh weights[PAIR_ROWS][PAIR_CHAINS];
    EACH_ROW EACH_CHAIN weights[r][c] = (__m512bh)vi_load(w[r] + 64 * c);
    EACH_TOKEN EACH_CHAIN {
        const __m512bh activations = (__m512bh)vi_load(x[t] + k + 32 * c);
        EACH_ROW sum[r][t][c] = _mm512_dpbf16_ps(sum[r][t][c], weights[r][c], activations);
    }
}

/* Some columns of n_rows rows, added to their sums; what is `ahead` bytes from them is fetched. */
NIB_INLINE void add_pairs(const nib_dot_task *task, size_t row, size_t n_rows, size_t k, size_t n, ptrdiff_t ahead,
                          const uint16_t *const x[NIB_GEMV_TOKENS], size_t n_tokens, pair_sums *sums) {
    const size_t end = k + n / PAIR_STEP * PAIR_STEP, n_rest = n % PAIR_STEP;
    const char *w[PAIR_ROWS];
    __m512 sum[PAIR_ROWS][NIB_GEMV_TOKENS][PAIR_CHAINS];
    EACH_ROW w[r] = (const char *)task->weights + (row + r) * task->row_bytes + 2 * k;
    EACH_ROW EACH_TOKEN EACH_CHAIN sum[r][t][c] = vf_load(sums[r][t][c]);
    for (; k < end; k += PAIR_STEP) {
        EACH_ROW EACH_CHAIN __builtin_prefetch(w[r] + ahead + 64 * c, 0, 2);
        pairs_step(w, x, k, n_rows, n_tokens, sum);
        EACH_ROW w[r] += 2 * PAIR_STEP;
    }
    if (n_rest > 0) {
        uint16_t rest[PAIR_ROWS][PAIR_STEP] = {0};
        EACH_ROW {
            memcpy(rest[r], w[r], 2 * n_rest);
            w[r] = (const char *)rest[r];
        }
        pairs_step(w, x, end, n_rows, n_tokens, sum);
    }
    EACH_ROW EACH_TOKEN EACH_CHAIN vf_store(sums[r][t][c], sum[r][t][c]);
}

/* Pairs of bf16 as they lie in the file, `rows_at_once` rows and `block_cols` columns at a time, and the other rows of
 * a block before its next columns. All but the task is a constant at every call. */
NIB_INLINE void rows_pairs_by(const nib_dot_task *task, size_t n_tokens, size_t rows_at_once, size_t block_rows,
                              size_t block_cols) {
    enum { MOST_ROWS = 16 };
    const size_t n_cols = task->n_cols, padded = (n_cols + K - 1) / K * K;
    const uint16_t *x[NIB_GEMV_TOKENS];
    dot_rows rows;
    EACH_TOKEN {
        x[t] = (const uint16_t *)task->packed + t * padded;
        __asm__("" : "+r"(x[t])); /* else the compiler keeps an address for every load */
    }
    for (size_t first = 0; first < task->n_rows; first += block_rows) {
        const size_t n_rows = task->n_rows - first < block_rows ? task->n_rows - first : block_rows;
        _Alignas(64) pair_sums sums[MOST_ROWS];
        for (size_t r = 0; r < n_rows; r++) EACH_TOKEN EACH_CHAIN vf_store(sums[r][t][c], vf_zero());
        for (size_t k = 0; k < n_cols; k += block_cols) {
            const size_t n = n_cols - k < block_cols ? n_cols - k : block_cols;
            const bool ends = k + n == n_cols;
            for (size_t r = 0; r < n_rows; r += rows_at_once) {
                /* what comes next: columns of these rows, or of the others of the block, or the next block's */
                ptrdiff_t ahead = (ptrdiff_t)(rows_at_once * task->row_bytes);
                if (block_rows == rows_at_once)
                    ahead = 2 * (ptrdiff_t)block_cols + (ends ? ahead - (ptrdiff_t)task->row_bytes : 0);
                else if (r + rows_at_once >= n_rows)
                    ahead =
                        ends ? ahead - 2 * (ptrdiff_t)k : 2 * (ptrdiff_t)block_cols - (ptrdiff_t)(r * task->row_bytes);
                if (r + rows_at_once <= n_rows)
                    add_pairs(task, first + r, rows_at_once, k, n, ahead, x, n_tokens, sums + r);
                else
                    for (size_t i = r; i < n_rows; i++)
                        add_pairs(task, first + i, 1, k, n, ahead, x, n_tokens, sums + i);
            }
        }
        for (size_t r = 0; r < n_rows; r++) {
            vf total[NIB_GEMV_TOKENS];
            EACH_TOKEN total[t] = vf_add(vf_load(sums[r][t][0]), vf_load(sums[r][t][1]));
            dot_store(task, &rows, first + r, n_tokens, total);
        }
    }
}

/* What is read again and again are the activations. The first cache keeps those of one token beside a row that passes by, if
 * they are not many; else they should serve four rows; and of more tokens only so many columns. */
NIB_INLINE void rows_pairs(const nib_dot_task *task, size_t n_tokens) {
    enum { NEAR_COLS = 8192, AHEAD_COLS = 1024 };
    if (n_tokens > 1)
        rows_pairs_by(task, n_tokens, 2, 16, 2048);
    else if (task->n_cols <= NEAR_COLS)
        rows_pairs_by(task, n_tokens, 1, 1, AHEAD_COLS);
    else
        rows_pairs_by(task, n_tokens, PAIR_ROWS, PAIR_ROWS, AHEAD_COLS);
}
#endif

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

/* The task from row `first` on, which may lie before its own. */
static nib_linear_task rows_from(const nib_linear_task *task, ptrdiff_t first) {
    nib_linear_task from = *task;
    from.weights = (const char *)task->weights + first * (ptrdiff_t)task->row_bytes;
    from.out += first;
    if (from.bias) from.bias += first;
    return from;
}

/* The task's first 16 or 32 rows by all tokens; of 16, the first `skip` are not put out. More than `few` takes at once go in
 * equal shares while the first cache has the columns. Meanwhile the rows that follow are fetched in one stream: those at hand
 * are too many for the processor to follow. It drops some of what the second cache is asked for, so the first one is asked
 * for the columns that come next. */
static void rows_by_16(const nib_linear_task *task, size_t n_halves, size_t skip) {
    const size_t n_tokens = task->n_tokens, n_blocks = (task->n_cols + K - 1) / K;
    const size_t bytes = K / task->format->facts.block * task->format->facts.bytes;
    const size_t n_shares = (n_tokens + NIB_FEW_TOKENS - 1) / NIB_FEW_TOKENS, ahead = 16 * bytes / n_shares;
    const size_t step = ahead < 64 * (K / 4) ? (ahead + K / 4 - 1) / (K / 4) : 64; /* so that no line is left out */
    _Alignas(64) float sums[2][NIB_FEW_MOST][16];
    memset(sums, 0, n_halves * sizeof *sums);
    for (size_t b = 0; b < n_blocks; b++)
        for (size_t i = 0; i < n_halves * n_shares; i++) {
            const size_t h = i / n_shares, share = i % n_shares;
            const size_t begin = share * n_tokens / n_shares, end = (share + 1) * n_tokens / n_shares;
            const size_t row = 16 * h, after = row + 16 * n_halves;
            const nib_few_task few = {
                .src = columns_at(task, row, nib_block_begin(task->route, task->n_cols, b)),
                .stride = task->row_bytes,
                .row = (const nib_few_row *)task->tiles + b * n_tokens + begin,
                .ahead = columns_at(task, after, 0) + 16 * b * bytes + share * ahead,
                .ahead_step = step,
                .next = b + 1 < n_blocks ? columns_at(task, row, nib_block_begin(task->route, task->n_cols, b + 1))
                                         : columns_at(task, after, 0),
                .next_step = (bytes + 3) / 4,
                .sums = sums[h] + begin,
            };
            for (size_t at = 64 * (K / 4); at < ahead; at += 64) __builtin_prefetch(few.ahead + at, 0, 2);
            task->format->few->products[end - begin - 1](&few);
        }
    for (size_t h = 0; h < n_halves; h++)
        for (size_t t = 0; t < n_tokens; t++) {
            const size_t r = 16 * h + skip, n = 16 - skip;
            const vf sum = vf_load_n(sums[h][t] + skip, n);
            vf_store_n(task->out + t * task->out_stride + r,
                       task->bias ? vf_add(sum, vf_load_n(task->bias + r, n)) : sum, n);
        }
}

static void rows_of_few(const nib_linear_task *task, nib_panel_scratch *scratch) {
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
#if defined(__AVX512BF16__)
    if (task->route == NIB_ROUTE_BF16) {
        NIB_DOT_EACH(task, n, rows_pairs(&dot, n))
        return;
    }
#endif
    if (format->dot && (format->facts.kind == NIB_CLASS_FLOAT) == (task->route == NIB_ROUTE_F32)) {
        format->dot(format, &dot);
        return;
    }
    NIB_DOT_EACH(task, n, rows_of(task, &dot, n, scratch))
}

/* More tokens than the registers have room for take turns: the second cache still has the rows. */
static void rows(const nib_linear_task *task, nib_panel_scratch *scratch) {
    if (task->by_16) {
        const ptrdiff_t n_rows = task->n_rows, rest = n_rows % 16, whole = n_rows - rest;
        for (ptrdiff_t r = 0; r < whole; r += 32) {
            const nib_linear_task from = rows_from(task, r);
            rows_by_16(&from, whole - r < 32 ? 1 : 2, 0);
        }
        if (rest) { /* the last 16, of which some have been */
            const nib_linear_task from = rows_from(task, n_rows - 16);
            rows_by_16(&from, 1, (size_t)(16 - rest));
        }
        return;
    }
    const size_t n = task->n_tokens, n_turns = (n + NIB_GEMV_TOKENS - 1) / NIB_GEMV_TOKENS;
    const size_t token_bytes = ((size_t)task->n_cols + K - 1) / K * nib_row_block_bytes(task->route);
    for (size_t i = 0; i < n_turns; i++) {
        const size_t begin = i * n / n_turns, end = (i + 1) * n / n_turns;
        nib_linear_task turn = *task;
        turn.n_tokens = (uint32_t)(end - begin);
        turn.tiles = (const char *)task->tiles + begin * token_bytes;
        turn.out += begin * task->out_stride;
        rows_of_few(&turn, scratch);
    }
}

extern const nib_gemv_kernels NIB_AT_LEVEL(nib_gemv_kernels_);
const nib_gemv_kernels NIB_AT_LEVEL(nib_gemv_kernels_) = {.rows = rows};
