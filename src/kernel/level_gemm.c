/* Matrix products of six tokens or more: 32 rows of weights are unpacked 256 columns at a time and turned so that a vector
 * holds one column (or four bytes of columns) of 16 rows; a register tile of 32 rows x 6 tokens then runs down the
 * columns.
 *
 *     weights (rows)            panel                         tile of activations
 *     row 0  c0 c1 c2 ..        k4=0: [row 0: c0..c3] ..      k4=0: [token 0: a0..a3] .. [token 5: a0..a3]
 *     row 1  ..           ->    k4=1: [row 0: c4..c7] ..  x   k4=1: ..
 *
 * Codes are unsigned, activations signed; with weight = scale * code - min the sum over a group of columns is
 *     scale * activation_scale * (codes . activations) - min * activation_scale * (sum of activations). */
#include "kernel/columns.h"
#include "kernel/tile.h"

enum { K = NIB_PANEL_K, ROWS = NIB_PANEL_ROWS, TOKENS = NIB_TILE_TOKENS };

/* Integer tiles need two sets of sums, so fewer columns fit the registers of the lower levels. */
#if defined(NIB_VEC_512)
enum { INT_VECTORS = 2, INT_COLUMNS = 6 };
#else
enum { INT_VECTORS = 1, INT_COLUMNS = 2 };
#endif

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

extern const nib_gemm_kernels NIB_AT_LEVEL(nib_gemm_kernels_);
const nib_gemm_kernels NIB_AT_LEVEL(nib_gemm_kernels_) = {
#if defined(__AVX512BF16__)
    .has_bf16 = true,
#endif
    .panel = panel,
};
