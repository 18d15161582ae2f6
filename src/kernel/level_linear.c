/* Matrix products. Six tokens or more: 32 rows of weights are unpacked 256 columns at a time and turned so that a vector
 * holds one column (or four bytes of columns) of 16 rows; a register tile of 32 rows x 6 tokens then runs down the
 * columns. Five tokens or fewer: each row is unpacked as it lies and multiplied along its length.
 *
 *     weights (rows)            panel                         tile of activations
 *     row 0  c0 c1 c2 ..        k4=0: [row 0: c0..c3] ..      k4=0: [token 0: a0..a3] .. [token 5: a0..a3]
 *     row 1  ..           ->    k4=1: [row 0: c4..c7] ..  x   k4=1: ..
 *
 * Codes are unsigned, activations signed; with weight = scale * code - min the sum over a group of columns is
 *     scale * activation_scale * (codes . activations) - min * activation_scale * (sum of activations). */
#include "kernel/level.h"
#include "kernel/tile.h"

enum { K = NIB_PANEL_K, ROWS = NIB_PANEL_ROWS, TOKENS = NIB_TILE_TOKENS, GEMV_AHEAD = 8 };

/* Integer tiles need two sets of sums, so fewer columns fit the registers of the lower levels. */
#if defined(NIB_VEC_512)
enum { INT_VECTORS = 2, INT_COLUMNS = 6 };
#else
enum { INT_VECTORS = 1, INT_COLUMNS = 2 };
#endif

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* 256 columns from column k on, zeros past the end of the row, rounded as the weights' format wants them. */
static void load_block(nib_activation rounding, const float *x, size_t k, size_t n_cols, float out[K]) {
    const size_t n = n_cols - k < K ? n_cols - k : K;
    memcpy(out, x + k, n * sizeof *out);
    memset(out + n, 0, (K - n) * sizeof *out);
    if (rounding == NIB_ACT_F16) {
        uint16_t half[16];
        for (size_t i = 0; i < K; i += 16) {
            vf_to_f16(half, vf_load(out + i));
            vf_store(out + i, vf_from_f16(half));
        }
    } else if (rounding == NIB_ACT_BF16) {
        for (size_t i = 0; i < K; i++) out[i] = nib_bf16_to_f32(nib_f32_to_bf16(out[i]));
    }
}

/* 16 floats to the nearest integers, ties to even; their sum. |x| <= 127 unless it is not finite (any code will do). */
static int32_t round_codes(const float *x, vf factor, int8_t *code) {
    const vf magic = vf_splat(0x1.8p23f);
    int32_t whole[16], sum = 0;
    vi_store(whole, vi_sub(vi_bits(vf_add(vf_mul(vf_load(x), factor), magic)), vi_bits(magic)));
    for (int i = 0; i < 16; i++) {
        code[i] = (int8_t)(whole[i] & 255);
        sum += code[i];
    }
    return sum;
}

/* NaN if any of the values is not finite: the products will say so, instead of making a number up. */
static float largest_magnitude(const float *x, size_t n) {
    vf most = vf_zero(), poison = vf_zero();
    for (size_t i = 0; i < n; i += 16) {
        const vf v = vf_load(x + i);
        most = vf_max(most, vf_max(vf_sub(vf_zero(), v), v));
        poison = vf_fma(v, vf_zero(), poison);
    }
    return vf_largest(most) + vf_sum(poison);
}

/* The value of largest magnitude, with its sign; the first of equals. */
static float signed_extreme(const float *x) {
    const float most = largest_magnitude(x, K);
    for (size_t i = 0; i < K; i++)
        if (x[i] == most || x[i] == -most) return x[i];
    return most; /* NaN */
}

/* 256 floats to integers; sums of codes, not yet times scale. */
static void quantize_block(nib_route route, const float x[K], nib_int_row *out) {
    memset(out->scale, 0, sizeof out->scale);
    memset(out->sum32, 0, sizeof out->sum32);
    float factor = 0, scale = 0;
    if (route == NIB_ROUTE_INT_256) {
        const float extreme = signed_extreme(x);
        factor = extreme != 0 ? -127 / extreme : 0;
        scale = extreme != 0 ? 1 / factor : 0;
    }
    for (size_t g = 0; g < K / 32; g++) {
        if (route == NIB_ROUTE_INT_32) {
            scale = largest_magnitude(x + 32 * g, 32) / 127;
            factor = scale != 0 ? 1 / scale : 0;
        }
        out->scale[g] = scale;
        for (size_t half = 2 * g; half < 2 * g + 2; half++) {
            const float sum = (float)round_codes(x + 16 * half, vf_splat(factor), out->code + 16 * half);
            out->sum16[half] = sum;
            out->sum32[g] += sum;
        }
    }
}

static void pack_row(nib_route route, nib_activation rounding, const float *x, uint32_t n_cols, void *row) {
    _Alignas(64) float block[K];
    for (size_t k = 0; k < n_cols; k += K) {
        if (route == NIB_ROUTE_F32) {
            load_block(rounding, x, k, n_cols, (float *)row + k);
            continue;
        }
        nib_int_row *out = (nib_int_row *)row + k / K;
        load_block(NIB_ACT_F32, x, k, n_cols, block);
        quantize_block(route, block, out);
        for (size_t i = 0; i < K / 16; i++) out->sum16[i] *= out->scale[i / 2];
        for (size_t i = 0; i < K / 32; i++) out->sum32[i] *= out->scale[i];
    }
}

static void put_ints(nib_route route, const float block[K], size_t token, nib_int_tile *tile) {
    nib_int_row row;
    quantize_block(route, block, &row);
    for (size_t i = 0; i < K / 4; i++) memcpy(tile->code[i][token], row.code + 4 * i, 4);
    for (size_t i = 0; i < K / 32; i++) {
        const float scale = row.scale[i], times = route == NIB_ROUTE_INT_32 ? scale : 1;
        tile->scale[i][token] = scale;
        tile->sum32[i][token] = row.sum32[i] * times;
        tile->sum16[2 * i][token] = row.sum16[2 * i] * times;
        tile->sum16[2 * i + 1][token] = row.sum16[2 * i + 1] * times;
    }
}

static void pack_tile(nib_route route, nib_activation rounding, const float *x, uint32_t n_tokens, uint32_t n_cols,
                      uint32_t first, void *tiles) {
    _Alignas(64) float block[K];
    const size_t n_tiles = ((size_t)n_tokens + TOKENS - 1) / TOKENS, tile_bytes = nib_tile_bytes(route);
    for (size_t k = 0; k < n_cols; k += K) {
        void *tile = (char *)tiles + (k / K * n_tiles + first / TOKENS) * tile_bytes;
        if (n_tokens - first < TOKENS) memset(tile, 0, tile_bytes);
        for (size_t t = 0; t < TOKENS && first + t < n_tokens; t++) {
            load_block(route == NIB_ROUTE_F32 ? rounding : NIB_ACT_F32, x + (first + t) * n_cols, k, n_cols, block);
            if (route == NIB_ROUTE_F32) {
                for (size_t i = 0; i < K; i++) ((float *)tile)[TOKENS * i + t] = block[i];
            } else if (route == NIB_ROUTE_BF16) {
                for (size_t i = 0; i < K / 2; i++)
                    ((uint32_t *)tile)[TOKENS * i + t] =
                        nib_f32_to_bf16(block[2 * i]) | (uint32_t)nib_f32_to_bf16(block[2 * i + 1]) << 16;
            } else {
                put_ints(route, block, t, tile);
            }
        }
    }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* sums[token][row] += n_groups groups of the panel times the tile. group and per_32 are constants at every call. */
NIB_INLINE void tile_ints(const nib_panel_scratch *scratch, const nib_int_tile *tile, size_t n_groups, size_t group,
                          bool per_32, float *sums, bool first) {
    for (int row = 0; row < 2; row += INT_VECTORS)
        for (int column = 0; column < TOKENS; column += INT_COLUMNS) {
            vf total[INT_COLUMNS][INT_VECTORS];
            NIB_UNROLL for (int j = 0; j < INT_COLUMNS; j++) NIB_UNROLL for (int v = 0; v < INT_VECTORS; v++)
                total[j][v] = vf_zero();
            for (size_t g = 0; g < n_groups; g++) {
                vi dot[INT_COLUMNS][INT_VECTORS];
                NIB_UNROLL for (int j = 0; j < INT_COLUMNS; j++) NIB_UNROLL for (int v = 0; v < INT_VECTORS; v++)
                    dot[j][v] = vi_splat(0);
                const uint8_t *w = scratch->panel.ints.code[g * group / 4][16 * row];
                const int8_t *a = tile->code[g * group / 4][column];
                NIB_UNROLL for (size_t k = 0; k < group / 4; k++) {
                    vi codes[INT_VECTORS];
                    NIB_UNROLL for (int v = 0; v < INT_VECTORS; v++) codes[v] = vi_load(w + 128 * k + 64 * v);
                    NIB_UNROLL for (int j = 0; j < INT_COLUMNS; j++) {
                        int32_t four;
                        memcpy(&four, a + 4 * TOKENS * k + 4 * j, sizeof four);
                        const vi x = vi_splat(four);
                        NIB_UNROLL for (int v = 0; v < INT_VECTORS; v++) dot[j][v] = vi_dp4(dot[j][v], codes[v], x);
                    }
                }
                const float *act_scale = tile->scale[g * group / 32] + column;
                const float *act_sum = (group == 32 ? tile->sum32[g] : tile->sum16[g]) + column;
                NIB_UNROLL for (int v = 0; v < INT_VECTORS; v++) {
                    const vf scale = vf_load(scratch->panel.ints.scale[g] + 16 * (row + v));
                    const vf minus_min = vf_load(scratch->panel.ints.minus_min[g] + 16 * (row + v));
                    NIB_UNROLL for (int j = 0; j < INT_COLUMNS; j++) {
                        const vf factor = per_32 ? vf_mul(scale, vf_splat(act_scale[j])) : scale;
                        total[j][v] = vf_fma(vi_to_f(dot[j][v]), factor, total[j][v]);
                        total[j][v] = vf_fma(minus_min, vf_splat(act_sum[j]), total[j][v]);
                    }
                }
            }
            NIB_UNROLL for (int j = 0; j < INT_COLUMNS; j++) NIB_UNROLL for (int v = 0; v < INT_VECTORS; v++) {
                float *to = sums + ROWS * (column + j) + 16 * (row + v);
                const vf factor = vf_splat(per_32 ? 1 : tile->scale[0][column + j]);
                vf_store(to, vf_fma(total[j][v], factor, first ? vf_zero() : vf_load(to)));
            }
        }
}

static __attribute__((noinline)) void tile_32_32(const nib_panel_scratch *panel, const nib_int_tile *tile,
                                                 size_t n_groups, float *sums, bool first) {
    tile_ints(panel, tile, n_groups, 32, true, sums, first);
}
static __attribute__((noinline)) void tile_16_32(const nib_panel_scratch *panel, const nib_int_tile *tile,
                                                 size_t n_groups, float *sums, bool first) {
    tile_ints(panel, tile, n_groups, 16, true, sums, first);
}
static __attribute__((noinline)) void tile_32_256(const nib_panel_scratch *panel, const nib_int_tile *tile,
                                                  size_t n_groups, float *sums, bool first) {
    tile_ints(panel, tile, n_groups, 32, false, sums, first);
}
static __attribute__((noinline)) void tile_16_256(const nib_panel_scratch *panel, const nib_int_tile *tile,
                                                  size_t n_groups, float *sums, bool first) {
    tile_ints(panel, tile, n_groups, 16, false, sums, first);
}

static __attribute__((noinline)) void tile_floats(const float *tile, const float *panel, size_t n_k, float *sums,
                                                  bool first) {
    tile_f32(tile, TOKENS, 1, panel, ROWS, n_k, sums, ROWS, first);
}

#if defined(__AVX512BF16__)
static __attribute__((noinline)) void tile_bf16(const uint32_t *tile, const uint32_t (*panel)[ROWS], size_t n_pairs,
                                                float *sums, bool first) {
    __m512 sum[TOKENS][2];
    NIB_UNROLL for (int j = 0; j < TOKENS; j++) sum[j][0] = sum[j][1] = vf_zero();
    for (size_t k = 0; k < n_pairs; k++) {
        const __m512bh w0 = (__m512bh)vi_load(panel[k]), w1 = (__m512bh)vi_load(panel[k] + 16);
        NIB_UNROLL for (int j = 0; j < TOKENS; j++) {
            const __m512bh x = (__m512bh)vi_splat((int32_t)tile[TOKENS * k + (size_t)j]);
            sum[j][0] = _mm512_dpbf16_ps(sum[j][0], w0, x);
            sum[j][1] = _mm512_dpbf16_ps(sum[j][1], w1, x);
        }
    }
    NIB_UNROLL for (int j = 0; j < TOKENS; j++) NIB_UNROLL for (int v = 0; v < 2; v++) {
        float *to = sums + ROWS * j + 16 * v;
        vf_store(to, first ? sum[j][v] : vf_add(vf_load(to), sum[j][v]));
    }
}
#endif

/* ---- panels ----------------------------------------------------------------------------------------------------- */

/* Where the columns from k on begin in a row: blocks never straddle a multiple of 256. */
static const char *columns_at(const nib_linear_task *task, size_t row, size_t k) {
    return (const char *)task->weights + row * task->row_bytes +
           k / task->format->facts.block * task->format->facts.bytes;
}

/* n columns of a row as floats. Half precision has an instruction that loops over the format's decode cannot use. */
static void decode_columns(const nib_linear_task *task, size_t row, size_t k, size_t n, float *out) {
    const nib_format *format = task->format;
    const char *src = columns_at(task, row, k);
    if (format->activation != NIB_ACT_F16 || format->facts.block != 1 || format->facts.bytes != 2) {
        format->decode(format, out, src, n);
        return;
    }
    uint16_t halves[16];
    for (size_t i = 0; i < n; i += 16) {
        memcpy(halves, src + 2 * i, n - i < 16 ? 2 * (n - i) : sizeof halves);
        if (n - i < 16) memset(halves + (n - i), 0, 2 * (16 - (n - i)));
        vf_store(out + i, vf_from_f16(halves)); /* rows of K floats have room for the last 16 */
    }
}

/* src (32, stride words) to dst (n_words, 32). */
static void transpose_words(const void *src, size_t src_stride, size_t n_words, void *dst) {
    for (size_t i = 0; i < n_words; i += 16)
        for (size_t r = 0; r < ROWS; r += 16)
            transpose_16x16((const char *)src + r * src_stride + 4 * i, src_stride, (char *)dst + 4 * (i * ROWS + r),
                            4 * ROWS);
}

static void panel_ints(const nib_linear_task *task, size_t k, size_t n, const nib_int_tile *tiles,
                       nib_panel_scratch *scratch, float *sums) {
    const nib_format *format = task->format;
    const size_t group = format->group, n_groups = n / group;
    for (size_t r = 0; r < task->n_rows; r++)
        format->unpack(format, &scratch->rows.codes[r], columns_at(task, r, k), n);
    transpose_words(scratch->rows.codes[0].code, sizeof(nib_codes), (n + 63) / 64 * 16, scratch->panel.ints.code);
    transpose_words(scratch->rows.codes[0].scale, sizeof(nib_codes), 16, scratch->panel.ints.scale);
    transpose_words(scratch->rows.codes[0].min, sizeof(nib_codes), 16, scratch->panel.ints.minus_min);
    for (size_t g = 0; g < n_groups; g++)
        for (size_t r = 0; r < ROWS; r++) scratch->panel.ints.minus_min[g][r] = -scratch->panel.ints.minus_min[g][r];
    for (size_t t = 0; t < task->n_tokens; t += TOKENS) {
        const nib_int_tile *tile = tiles + t / TOKENS;
        float *to = sums + ROWS * t;
        if (task->route == NIB_ROUTE_INT_32)
            (group == 32 ? tile_32_32 : tile_16_32)(scratch, tile, n_groups, to, k == 0);
        else
            (group == 32 ? tile_32_256 : tile_16_256)(scratch, tile, n_groups, to, k == 0);
    }
}

/* Half a panel of floats is 16 KiB and stays in the first cache while the tiles pass by. */
static void panel_floats(const nib_linear_task *task, size_t k, size_t n, const float *tiles,
                         nib_panel_scratch *scratch, float *sums) {
    const size_t tile_floats_each = (size_t)K * TOKENS;
    for (size_t r = 0; r < task->n_rows; r++) decode_columns(task, r, k, n, scratch->rows.decoded[r]);
    transpose_words(scratch->rows.decoded, sizeof *scratch->rows.decoded, (n + 15) / 16 * 16, scratch->panel.floats);
    for (size_t i = 0; i < n; i += K / 2)
        for (size_t t = 0; t < task->n_tokens; t += TOKENS)
            tile_floats(tiles + t / TOKENS * tile_floats_each + TOKENS * i, scratch->panel.floats[i],
                        n - i < K / 2 ? n - i : K / 2, sums + ROWS * t, k + i == 0);
}

#if defined(__AVX512BF16__)
static void panel_bf16(const nib_linear_task *task, size_t k, size_t n, const uint32_t *tiles,
                       nib_panel_scratch *scratch, float *sums) {
    const size_t n_pairs = (n + 1) / 2;
    for (size_t r = 0; r < task->n_rows; r++) {
        char *row = (char *)scratch->rows.decoded[r];
        memcpy(row, columns_at(task, r, k), 2 * n);
        memset(row + 2 * n, 0, 4 * n_pairs - 2 * n);
    }
    transpose_words(scratch->rows.decoded, sizeof *scratch->rows.decoded, (n_pairs + 15) / 16 * 16,
                    scratch->panel.pairs);
    for (size_t t = 0; t < task->n_tokens; t += TOKENS)
        tile_bf16(tiles + t * (K / 2), scratch->panel.pairs, n_pairs, sums + ROWS * t, k == 0);
}
#endif

static void store_sums(const nib_linear_task *task, const float *sums) {
    _Alignas(64) float bias[ROWS] = {0};
    if (task->bias) memcpy(bias, task->bias, task->n_rows * sizeof *bias);
    for (size_t t = 0; t < task->n_tokens; t++) {
        float *out = task->out + t * task->out_stride;
        const float *sum = sums + ROWS * t;
        if (task->n_rows == ROWS) {
            vf_store(out, vf_add(vf_load(sum), vf_load(bias)));
            vf_store(out + 16, vf_add(vf_load(sum + 16), vf_load(bias + 16)));
        } else {
            for (size_t r = 0; r < task->n_rows; r++) out[r] = sum[r] + bias[r];
        }
    }
}

static void panel(const nib_linear_task *task, size_t tile_stride, nib_panel_scratch *scratch, float *sums) {
    const size_t tile_bytes = nib_tile_bytes(task->route);
    if (task->n_rows < ROWS) memset(&scratch->rows, 0, sizeof scratch->rows);
    for (size_t k = 0; k < task->n_cols; k += K) {
        const size_t n = task->n_cols - k < K ? task->n_cols - k : K;
        const void *tiles = (const char *)task->tiles + k / K * tile_stride * tile_bytes;
        switch (task->route) {
        case NIB_ROUTE_BF16:
#if defined(__AVX512BF16__)
            panel_bf16(task, k, n, tiles, scratch, sums);
            break;
#endif
        case NIB_ROUTE_F32:
            panel_floats(task, k, n, tiles, scratch, sums);
            break;
        case NIB_ROUTE_INT_32:
        case NIB_ROUTE_INT_256:
            panel_ints(task, k, n, tiles, scratch, sums);
            break;
        }
    }
    store_sums(task, sums);
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

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

extern const nib_linear_kernels NIB_AT_LEVEL(nib_linear_kernels_);
const nib_linear_kernels NIB_AT_LEVEL(nib_linear_kernels_) = {
#if defined(__AVX512BF16__)
    .has_bf16 = true,
#endif
    .pack_tile = pack_tile,
    .pack_row = pack_row,
    .panel = panel,
    .rows = rows,
};
