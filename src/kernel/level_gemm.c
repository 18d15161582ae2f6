/* Matrix products of more than a few tokens: 32 rows of weights are unpacked 256 columns at a time and turned so that a
 * vector holds one column (or four bytes of columns) of 16 rows; a register tile of 32 rows x at most 6 tokens then runs
 * down the columns.
 *
 *     weights (rows)            panel                         tile of activations
 *     row 0  c0 c1 c2 ..        k4=0: [row 0: c0..c3] ..      k4=0: [token 0: a0..a3] .. [token 5: a0..a3]
 *     row 1  ..           ->    k4=1: [row 0: c4..c7] ..  x   k4=1: ..
 *
 * Codes are unsigned, activations signed; with weight = scale * (code - centre) - min the sum over a group of columns is
 *     scale * activation_scale * (codes . activations - centre * sum of activations) - min * activation_scale * (sum ..)
 * where -centre * sum is what the integer sum begins with. Minimums that are whole numbers are multiplied with the sums of
 * activations in pairs, like codes. */
#include "kernel/columns.h"
#include "kernel/tile.h"

enum { K = NIB_PANEL_K, ROWS = NIB_PANEL_ROWS, TOKENS = NIB_TILE_TOKENS };
enum { FETCHING_TILES = 8 }; /* with so many tiles the next panel's rows are fetched */

/* Integer tiles need two sets of sums, so fewer columns fit the registers of the lower levels. */
#if defined(NIB_VEC_512)
enum { INT_VECTORS = 2, INT_COLUMNS = 6 };
#elif defined(__AVX2__)
enum { INT_VECTORS = 1, INT_COLUMNS = 3 };
#else
enum { INT_VECTORS = 1, INT_COLUMNS = 2 };
#endif

/* Every loop over columns runs to a constant, so that the sums stay in registers. */
#define EACH_COLUMN NIB_UNROLL for (size_t j = 0; j < n; j++)
#define EACH_VECTOR NIB_UNROLL for (size_t v = 0; v < INT_VECTORS; v++)

/* In whole lines. */
static inline size_t lines_of(size_t n_bytes) {
    return (n_bytes + 63) / 64 * 64;
}

/* From the third cache or memory to the second. */
static inline void fetch_lines(const char *from, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/* ---- tiles of floats -------------------------------------------------------------------------------------------- */

#if defined(__AVX512BF16__)
NIB_INLINE void tile_pairs(size_t n, const uint32_t *tile, const uint32_t (*panel)[ROWS], size_t n_pairs, float *sums,
                           bool first) {
    __m512 sum[TOKENS][2];
    EACH_COLUMN sum[j][0] = sum[j][1] = vf_zero();
    for (size_t k = 0; k < n_pairs; k++) {
        const __m512bh w0 = (__m512bh)vi_load(panel[k]), w1 = (__m512bh)vi_load(panel[k] + 16);
        EACH_COLUMN {
            const __m512bh x = (__m512bh)vi_splat((int32_t)tile[TOKENS * k + j]);
            sum[j][0] = _mm512_dpbf16_ps(sum[j][0], w0, x);
            sum[j][1] = _mm512_dpbf16_ps(sum[j][1], w1, x);
        }
    }
    EACH_COLUMN NIB_UNROLL for (size_t v = 0; v < 2; v++) {
        float *to = sums + ROWS * j + 16 * v;
        vf_store(to, first ? sum[j][v] : vf_add(vf_load(to), sum[j][v]));
    }
}
#endif

#define EACH_WIDTH(call) \
    switch (n_columns) { \
    case 1:              \
        call(1);         \
        break;           \
    case 2:              \
        call(2);         \
        break;           \
    case 3:              \
        call(3);         \
        break;           \
    case 4:              \
        call(4);         \
        break;           \
    case 5:              \
        call(5);         \
        break;           \
    case 6:              \
        call(6);         \
        break;           \
    }

static __attribute__((noinline)) void tile_floats(size_t n_columns, const float *tile, const float *panel, size_t n_k,
                                                  float *sums, bool first) {
#define CALL(n) tile_f32_columns(n, tile, TOKENS, 1, panel, ROWS, n_k, sums, ROWS, first)
    EACH_WIDTH(CALL)
#undef CALL
}

#if defined(__AVX512BF16__)
static __attribute__((noinline)) void tile_bf16(size_t n_columns, const uint32_t *tile, const uint32_t (*panel)[ROWS],
                                                size_t n_pairs, float *sums, bool first) {
#define CALL(n) tile_pairs(n, tile, panel, n_pairs, sums, first)
    EACH_WIDTH(CALL)
#undef CALL
}
#endif

/* ---- tiles of integers ------------------------------------------------------------------------------------------ */

typedef enum scale_kind {
    SCALES_PER_32,  /* floats, and activations have a scale per 32 columns, else per 256 */
    SCALES_PER_256, /* floats */
    SCALES_WHOLE,   /* whole numbers */
} scale_kind;

typedef struct int_work {
    const nib_panel *half; /* two */
    const nib_int_tile *tile;
    const float (*scaled_sum)[TOKENS]; /* of activations per 32, where minimums are floats */
    size_t first_group, n_groups;
    vi centre;       /* its logarithm; 32: there is none */
    int32_t largest; /* of |code - centre|, where scales are whole */
    /* What to fetch from the third cache to the second, so much per 32 columns: in a row it would hold the sums up. */
    const char *fetch;
    size_t fetch_bytes;
    /* Some rows of the next panel and the one after it, a line of each per 32 columns. */
    const char *next, *after;
    size_t n_rows, row_bytes, row_lines;
} int_work;

/* The next panel's rows come to the first cache, which drops no requests, but has no room to wait for many of them at once:
 * memory has been asked for them a panel before, for the second. */
NIB_INLINE void fetch_part(const int_work *work, size_t part) {
    fetch_lines(work->fetch + part * work->fetch_bytes, work->fetch_bytes);
    if (part >= work->row_lines) return;
    for (size_t r = 0, at = 64 * part; r < work->n_rows; r++, at += work->row_bytes) {
        __builtin_prefetch(work->next + at, 0, 3);
        __builtin_prefetch(work->after + at, 0, 2);
    }
}

/* Four bytes of 4 * n_k columns. row: in vectors */
NIB_INLINE void dot_codes(vi dot[INT_COLUMNS][INT_VECTORS], const int_work *work, size_t row, size_t column, size_t n,
                          size_t k, size_t n_k) {
    const nib_panel *panel = work->half + row;
    NIB_UNROLL for (size_t i = k; i < k + n_k; i++) {
        vi codes[INT_VECTORS];
        EACH_VECTOR codes[v] = vi_load(panel[v].code[i]);
#if defined(NIB_VEC_DP4)
        EACH_COLUMN {
            const vi x = vi_splat_4(work->tile->code[i][column + j]);
            EACH_VECTOR dot[j][v] = vi_dp4(dot[j][v], codes[v], x);
        }
#else
        /* Even bytes of all columns, then odd ones: fewer vectors are alive at once. */
        NIB_UNROLL for (size_t half = 0; half < 2; half++) {
            vi bytes[INT_VECTORS];
            EACH_VECTOR bytes[v] = vi_and(half ? vi_shr(codes[v], 8) : codes[v], vi_splat(0x00ff00ff));
            EACH_COLUMN {
                const vi x = vi_splat_4(work->tile->code[i][column + j][half]);
                EACH_VECTOR dot[j][v] = vi_dp2(dot[j][v], bytes[v], x);
            }
        }
#endif
    }
}

/* What the sums of group g begin with: -centre * sum of activations. */
NIB_INLINE vi begin_of(const int_work *work, size_t group, size_t g, size_t column) {
    const nib_int_tile *tile = work->tile;
    const int32_t(*minus_sum)[TOKENS] = group == 16   ? tile->minus_sum16
                                        : group == 32 ? tile->minus_sum32
                                                      : tile->minus_sum256;
    return vi_shl_by(vi_splat(minus_sum[g][column]), work->centre);
}

/* total -= d_min * minimums * sums of activations */
NIB_INLINE void add_minimums(vf total[INT_COLUMNS][INT_VECTORS], const int_work *work, size_t min_group, size_t row,
                             size_t column, size_t n) {
    const nib_panel *half = work->half + row;
    vi min[INT_COLUMNS][INT_VECTORS];
    EACH_COLUMN EACH_VECTOR min[j][v] = vi_splat(0);
    for (size_t i = 0; i < K / 2 / min_group; i++) {
        const int16_t(*pair)[2] = min_group == 16 ? work->tile->sum16[i] : work->tile->sum32[i];
        vi of_rows[INT_VECTORS];
        EACH_VECTOR of_rows[v] = vi_load(half[v].min[i]);
        EACH_COLUMN EACH_VECTOR min[j][v] = vi_dp2(min[j][v], of_rows[v], vi_splat_4(pair[column + j]));
    }
    EACH_VECTOR {
        const vf minus_d_min = vf_load(half[v].minus_d_min);
        EACH_COLUMN total[j][v] = vf_fma(vi_to_f(min[j][v]), minus_d_min, total[j][v]);
    }
}

/* Sums of activations with their scales, for minimums that are floats. */
static inline void find_scaled_sums(float out[K / 32][TOKENS], const nib_int_tile *tile) {
    _Static_assert(K / 32 * TOKENS % 16 == 0, "whole vectors");
    for (size_t i = 0; i < K / 32 * TOKENS; i += 16) {
        const vi sums = vi_sub(vi_splat(0), vi_load(tile->minus_sum32[0] + i));
        vf_store(out[0] + i, vf_mul(vi_to_f(sums), vf_load(tile->scale[0] + i)));
    }
}

/* total -= minimums (floats) * sums of activations */
NIB_INLINE void add_float_minimums(vf total[INT_COLUMNS][INT_VECTORS], const int_work *work, size_t row, size_t column,
                                   size_t n) {
    for (size_t g = 0; g < K / 32; g++) {
        vf minus_min[INT_VECTORS];
        EACH_VECTOR minus_min[v] = vf_load(work->half[row + v].minus_min[g]);
        EACH_COLUMN EACH_VECTOR total[j][v] =
            vf_fma(minus_min[v], vf_splat(work->scaled_sum[g][column + j]), total[j][v]);
    }
}

/* scaled: the activations' scale is in the totals already. */
NIB_INLINE void add_to_sums(vf total[INT_COLUMNS][INT_VECTORS], const int_work *work, bool scaled, size_t row,
                            size_t column, size_t n, float *sums, bool first) {
    EACH_COLUMN {
        const vf factor = vf_splat(scaled ? 1 : work->tile->scale[0][column + j]);
        float *to = sums + ROWS * (column + j) + 16 * row;
        EACH_VECTOR {
            const vf before = first ? vf_zero() : vf_load(to + 16 * v);
            vf_store(to + 16 * v, scaled ? vf_add(total[j][v], before) : vf_fma(total[j][v], factor, before));
        }
    }
}

/* total = the products with scales that are floats; per_32: activations have a scale per 32 columns. */
NIB_INLINE void sum_scaled(vf total[INT_COLUMNS][INT_VECTORS], const int_work *work, size_t group, bool per_32,
                           bool has_centre, size_t row, size_t column, size_t n) {
    const nib_panel *half = work->half + row;
    EACH_COLUMN EACH_VECTOR total[j][v] = vf_zero();
    const size_t first = group == 256 ? 0 : work->first_group, n_groups = group == 256 ? 1 : work->n_groups;
    for (size_t g = first; g < n_groups; g++) {
        vi dot[INT_COLUMNS][INT_VECTORS];
        EACH_COLUMN {
            const vi begin = has_centre ? begin_of(work, group, g, column + j) : vi_splat(0);
            EACH_VECTOR {
                dot[j][v] = begin;
                NIB_PIN(dot[j][v]);
            }
        }
        if (group == 256)
            for (size_t k = 0; k < K / 4; k += 8) {
                dot_codes(dot, work, row, column, n, k, 8);
                fetch_part(work, k / 8);
            }
        else
            dot_codes(dot, work, row, column, n, g * group / 4, group / 4);
        if (group != 256 && g * group % 32 == 0) fetch_part(work, (g - first) * group / 32);
        EACH_VECTOR {
            const vf scale = vf_load(half[v].scale[g]);
            EACH_COLUMN {
                const float act_scale = work->tile->scale[per_32 ? g * group / 32 : 0][column + j];
                const vf factor = per_32 ? vf_mul(scale, vf_splat(act_scale)) : scale;
                total[j][v] = vf_fma(vi_to_f(dot[j][v]), factor, total[j][v]);
            }
        }
    }
}

/* The same where scales are whole numbers. If the sums over a group fit 16 bits, those of two groups are multiplied with
 * their scales at once: the second group's sum is put into the upper half, then the first one's is added up in the lower
 * half, with an offset that keeps it positive. Else each is multiplied by itself; the results are equal. */
NIB_INLINE void sum_whole(vi total[INT_COLUMNS][INT_VECTORS], const int_work *work, size_t group, bool has_centre,
                          bool fits, size_t row, size_t column, size_t n) {
    const nib_panel *half = work->half + row;
    const int32_t(*minus_sum)[TOKENS] = group == 16 ? work->tile->minus_sum16 : work->tile->minus_sum32;
#define BEGIN(g) (has_centre ? vi_shl_by(vi_splat(minus_sum[g][column + j]), work->centre) : vi_splat(0))
    EACH_COLUMN EACH_VECTOR total[j][v] = vi_splat(0);
    for (size_t pair = 0; pair < K / group / 2; pair++) {
        vi dot[INT_COLUMNS][INT_VECTORS], scales[INT_VECTORS];
        EACH_COLUMN {
            const vi begin = BEGIN(2 * pair + 1);
            EACH_VECTOR dot[j][v] = begin;
        }
        dot_codes(dot, work, row, column, n, (2 * pair + 1) * group / 4, group / 4);
        EACH_COLUMN EACH_VECTOR NIB_PIN(dot[j][v]);
        EACH_VECTOR if (!fits) scales[v] = vi_sar(vi_load(half[v].whole[pair]), 16);
        EACH_COLUMN {
            const vi begin = fits ? vi_add(BEGIN(2 * pair), vi_splat(0x8000)) : BEGIN(2 * pair);
            EACH_VECTOR {
                if (!fits) total[j][v] = vi_add(total[j][v], vi_mul(dot[j][v], scales[v]));
                dot[j][v] = fits ? vi_add(vi_shl(dot[j][v], 16), begin) : begin;
                NIB_PIN(dot[j][v]);
            }
        }
        dot_codes(dot, work, row, column, n, 2 * pair * group / 4, group / 4);
        EACH_COLUMN EACH_VECTOR NIB_PIN(dot[j][v]);
        for (size_t i = 0; i < 2 * group; i += 32) fetch_part(work, (2 * pair * group + i) / 32);
        EACH_VECTOR {
            scales[v] = vi_load(half[v].whole[pair]);
            if (!fits) scales[v] = vi_sar(vi_shl(scales[v], 16), 16);
            EACH_COLUMN total[j][v] = fits ? vi_dp2(total[j][v], vi_xor(dot[j][v], vi_splat(0x8000)), scales[v])
                                           : vi_add(total[j][v], vi_mul(dot[j][v], scales[v]));
        }
    }
#undef BEGIN
}

/* sums[token][row] += panel x tile for n columns and INT_VECTORS rows. group, scales, min_group and n are constants at
 * every call. */
NIB_INLINE void tile_ints_part(const int_work *work, size_t group, scale_kind scales, size_t min_group, size_t row,
                               size_t column, size_t n, float *sums, bool first) {
    vf total[INT_COLUMNS][INT_VECTORS];
    if (scales == SCALES_WHOLE) {
        const int32_t most = group == 16 ? work->tile->most16 : work->tile->most32;
        vi whole[INT_COLUMNS][INT_VECTORS];
        if (most * work->largest <= INT16_MAX)
            sum_whole(whole, work, group, !min_group, true, row, column, n);
        else
            sum_whole(whole, work, group, !min_group, false, row, column, n);
        EACH_VECTOR {
            const vf d = vf_load(work->half[row + v].d);
            EACH_COLUMN total[j][v] = vf_mul(vi_to_f(whole[j][v]), d);
        }
    } else {
        sum_scaled(total, work, group, scales == SCALES_PER_32, !min_group, row, column, n);
    }
    if (min_group && scales == SCALES_PER_32)
        add_float_minimums(total, work, row, column, n);
    else if (min_group)
        add_minimums(total, work, min_group, row, column, n);
    add_to_sums(total, work, scales == SCALES_PER_32, row, column, n, sums, first);
}

NIB_INLINE void tile_ints(const int_work *work, size_t group, scale_kind scales, size_t min_group, size_t n_columns,
                          float *sums, bool first) {
    const size_t whole = n_columns / INT_COLUMNS * INT_COLUMNS, rest = n_columns - whole;
    for (size_t row = 0; row < 2; row += INT_VECTORS) {
        for (size_t column = 0; column < whole; column += INT_COLUMNS)
            tile_ints_part(work, group, scales, min_group, row, column, INT_COLUMNS, sums, first);
        if (rest) tile_ints_part(work, group, scales, min_group, row, whole, rest, sums, first);
    }
}

typedef void int_tile_fn(const int_work *work, float *sums, bool first);

#define INT_TILE(name, n, ...)                                                                               \
    static __attribute__((noinline)) void tile_##name##_##n(const int_work *work, float *sums, bool first) { \
        tile_ints(work, __VA_ARGS__, n, sums, first);                                                        \
    }
/* One function for every number of columns. */
#define INT_TILES(name, ...)                                                                     \
    INT_TILE(name, 1, __VA_ARGS__)                                                               \
    INT_TILE(name, 2, __VA_ARGS__)                                                               \
    INT_TILE(name, 3, __VA_ARGS__)                                                               \
    INT_TILE(name, 4, __VA_ARGS__)                                                               \
    INT_TILE(name, 5, __VA_ARGS__)                                                               \
    INT_TILE(name, 6, __VA_ARGS__)                                                               \
    static int_tile_fn *const name[TOKENS] = {tile_##name##_1, tile_##name##_2, tile_##name##_3, \
                                              tile_##name##_4, tile_##name##_5, tile_##name##_6};

INT_TILES(per_32_group_16, 16, SCALES_PER_32, 0)
INT_TILES(per_32_group_32, 32, SCALES_PER_32, 0)
INT_TILES(per_32_min_32, 32, SCALES_PER_32, 32)
INT_TILES(group_16, 16, SCALES_PER_256, 0)
INT_TILES(group_32, 32, SCALES_PER_256, 0)
INT_TILES(whole_16, 16, SCALES_WHOLE, 0)
INT_TILES(whole_32_min_32, 32, SCALES_WHOLE, 32)
INT_TILES(folded, 256, SCALES_PER_256, 0)
INT_TILES(folded_min_16, 256, SCALES_PER_256, 16)

static int_tile_fn *const *int_tiles_for(nib_route route, const nib_panel_shape *shape) {
    if (route == NIB_ROUTE_INT_32)
        return shape->group == 16 ? per_32_group_16 : shape->min_group ? per_32_min_32 : per_32_group_32;
    if (shape->whole) return shape->group == 16 ? whole_16 : whole_32_min_32;
    if (shape->group == 256) return shape->min_group ? folded_min_16 : folded;
    return shape->group == 16 ? group_16 : group_32;
}

/* sums -= minimums (floats, of formats that only unpack) * sums of activations. */
static void subtract_minimums(const nib_panel_scratch *scratch, const int_work *work, size_t group, size_t n_columns,
                              float *sums) {
    const nib_int_tile *tile = work->tile;
    const int32_t(*minus_sum)[TOKENS] = group == 16 ? tile->minus_sum16 : tile->minus_sum32;
    const size_t first = work->first_group;
    float sum[K / 16][TOKENS];
    for (size_t g = first; g < work->n_groups; g++)
        for (size_t j = 0; j < TOKENS; j++) sum[g][j] = -(float)minus_sum[g][j] * tile->scale[g * group / 32][j];
    tile_floats(n_columns, sum[first], scratch->panel.ints.minus_min[first], work->n_groups - first, sums, false);
}

/* ---- panels ----------------------------------------------------------------------------------------------------- */

/* One panel's turn: 256 columns (or the rest) of 32 rows (or the rest) with all the task's tiles. */
typedef struct panel_step {
    const nib_linear_task *task; /* of this panel's rows alone */
    size_t k, n, n_before;       /* columns k .. k + n - 1, of which an earlier step had the first ones */
    const void *tiles;           /* the first one's of these columns */
    float *sums;
    const uint16_t *begin; /* (n_tiles + 1) every tile's first token, counted from the task's first */
    /* What later steps want is fetched meanwhile, a share with every tile: the weights of the next step and the one after
     * it, and, if the second cache does not keep the tiles, a tile's next columns. */
    const char *next, *after;
    size_t next_bytes;  /* per row, of both */
    ptrdiff_t to_next;  /* from a tile */
    size_t fetch_bytes; /* per tile, in whole lines */
} panel_step;

/* One tile of the batch. */
typedef struct tile_at {
    const void *packed;
    size_t n_columns;
    float *sums;
} tile_at;

/* The i-th tile of the task. */
static inline tile_at find_tile(const panel_step *step, size_t i) {
    return (tile_at){.packed = (const char *)step->tiles + i * step->task->tile_bytes,
                     .n_columns = step->begin[i + 1] - step->begin[i],
                     .sums = step->sums + ROWS * step->begin[i]};
}

/* Where the sums will go: written at once they would have to wait. */
static inline void fetch_out(const panel_step *step, const tile_at *tile) {
    const nib_linear_task *task = step->task;
    const float *out = task->out + (size_t)(tile->sums - step->sums) / ROWS * task->out_stride;
    for (size_t t = 0; t < tile->n_columns; t++, out += task->out_stride) {
        __builtin_prefetch(out, 1, 2);
        __builtin_prefetch(out + 16, 1, 2);
    }
}

/* A share of the next step's weights, with every tile: the rows are too many streams for the processor to follow by itself,
 * and in a row their lines would hold the products up. */
static void fetch_rows(const panel_step *step, size_t i) {
    const size_t n_rows = step->task->n_rows, n_tiles = step->task->n_tiles;
    for (size_t r = n_rows * i / n_tiles; r < n_rows * (i + 1) / n_tiles; r++)
        fetch_lines(step->next + r * step->task->row_bytes, step->next_bytes);
}

/* src (32, stride words) to dst (n_words, 32). */
static void transpose_words(const void *src, size_t src_stride, size_t n_words, void *dst) {
    for (size_t i = 0; i < n_words; i += 16)
        for (size_t r = 0; r < ROWS; r += 16)
            transpose_16x16((const char *)src + r * src_stride + 4 * i, src_stride, (char *)dst + 4 * (i * ROWS + r),
                            4 * ROWS);
}

/* n_words (a multiple of 4) words of 16 codes to dst, whose rows are dst_stride words. */
static inline void turn_words(const void *src, size_t n_words, void *dst, size_t dst_stride) {
    for (size_t i = 0; i < n_words; i += 4) {
        vi words[4];
        vi_turn(words, (const char *)src + 4 * i, sizeof(nib_codes));
        for (size_t j = 0; j < 4; j++) vi_store((char *)dst + 4 * dst_stride * (i + j), words[j]);
    }
}

/* Fills the panel by unpacking row by row. */
static void fill_from_rows(const nib_linear_task *task, size_t k, size_t n, nib_panel_scratch *scratch) {
    const nib_format *format = task->format;
    const size_t n_scales = (n / format->group + 3) / 4 * 4;
    nib_codes *codes = scratch->rows.codes;
    for (size_t r = 0; r < task->n_rows; r++) format->unpack(format, &codes[r], columns_at(task, r, k), n);
    for (size_t v = 0; v < 2; v++) {
        nib_panel *half = &scratch->panel.ints.half[v];
        float(*minus_min)[ROWS] = scratch->panel.ints.minus_min;
        turn_words(codes[16 * v].code, n / 4, half->code, 16);
        turn_words(codes[16 * v].scale, n_scales, half->scale, 16);
        if (format->centre) continue;
        turn_words(codes[16 * v].min, n_scales, minus_min[0] + 16 * v, ROWS);
        for (size_t g = 0; g < n_scales; g++)
            vf_store(minus_min[g] + 16 * v, vf_sub(vf_zero(), vf_load(minus_min[g] + 16 * v)));
    }
}

static void panel_ints(const panel_step *step, nib_panel_scratch *scratch) {
    const nib_linear_task *task = step->task;
    const nib_format *format = task->format;
    const size_t k = step->k, n = step->n;
    const bool turns = format->turn && n == K && task->n_rows == ROWS;
    const nib_panel_shape shape =
        turns ? format->shape : (nib_panel_shape){.group = (uint16_t)format->group, .centre = (uint16_t)format->centre};
    if (turns)
        for (size_t v = 0; v < 2; v++)
            format->turn(format, &scratch->panel.ints.half[v], columns_at(task, 16 * v, k), task->row_bytes);
    else
        fill_from_rows(task, k, n, scratch);
    int_tile_fn *const *fn = int_tiles_for(task->route, &shape);
    const bool has_float_minimums = shape.min_group && task->route == NIB_ROUTE_INT_32;
    int_work work = {.half = scratch->panel.ints.half,
                     .scaled_sum = scratch->panel.ints.scaled_sum,
                     .first_group = step->n_before / shape.group,
                     .n_groups = n / shape.group,
                     .centre = vi_splat(shape.centre ? __builtin_ctz(shape.centre) : 32),
                     .largest = shape.whole,
                     .fetch_bytes = (step->fetch_bytes + 8 * 64 - 1) / (8 * 64) * 64,
                     .row_bytes = task->row_bytes,
                     .row_lines = lines_of(step->next_bytes + 62) / 64}; /* wherever in a line they begin */
    /* Before the last tiles it would be too early: the first cache would have lost the rows again, and more. */
    const size_t n_others = task->n_tiles > FETCHING_TILES ? task->n_tiles - FETCHING_TILES : 0;
    for (size_t i = 0; i < task->n_tiles; i++) {
        const tile_at tile = find_tile(step, i);
        if (i >= n_others) {
            const size_t row = task->n_rows * (i - n_others) / (task->n_tiles - n_others);
            work.next = step->next + row * task->row_bytes;
            work.after = step->after + row * task->row_bytes;
            work.n_rows = task->n_rows * (i + 1 - n_others) / (task->n_tiles - n_others) - row;
        }
        work.tile = tile.packed;
        work.fetch = (const char *)tile.packed + step->to_next;
        if (k + K >= task->n_cols) fetch_out(step, &tile);
        if (has_float_minimums) find_scaled_sums(scratch->panel.ints.scaled_sum, work.tile);
        fn[tile.n_columns - 1](&work, tile.sums, k == 0);
        if (!turns && !format->centre) subtract_minimums(scratch, &work, shape.group, tile.n_columns, tile.sums);
    }
}

/* Half a panel of floats is 16 KiB and stays in the first cache while the tiles pass by. */
static void panel_floats(const panel_step *step, nib_panel_scratch *scratch) {
    const nib_linear_task *task = step->task;
    const size_t k = step->k, n = step->n;
    for (size_t r = 0; r < task->n_rows; r++) decode_columns(task, r, k, n, scratch->rows.decoded[r]);
    transpose_words(scratch->rows.decoded, sizeof *scratch->rows.decoded, (n + 15) / 16 * 16, scratch->panel.floats);
    for (size_t i = 0; i < n; i += K / 2)
        for (size_t t = 0; t < task->n_tiles; t++) {
            const tile_at tile = find_tile(step, t);
            if (i == 0) {
                fetch_rows(step, t);
                fetch_lines((const char *)tile.packed + step->to_next, step->fetch_bytes);
            }
            tile_floats(tile.n_columns, (const float *)tile.packed + TOKENS * i, scratch->panel.floats[i],
                        n - i < K / 2 ? n - i : K / 2, tile.sums, k + i == 0);
        }
}

#if defined(__AVX512BF16__)
static void panel_bf16(const panel_step *step, nib_panel_scratch *scratch) {
    const nib_linear_task *task = step->task;
    const size_t k = step->k, n = step->n, n_pairs = (n + 1) / 2;
    for (size_t r = 0; r < task->n_rows; r++) {
        char *row = (char *)scratch->rows.decoded[r];
        memcpy(row, columns_at(task, r, k), 2 * n);
        memset(row + 2 * n, 0, 4 * n_pairs - 2 * n);
    }
    transpose_words(scratch->rows.decoded, sizeof *scratch->rows.decoded, (n_pairs + 15) / 16 * 16,
                    scratch->panel.pairs);
    for (size_t i = 0; i < task->n_tiles; i++) {
        const tile_at tile = find_tile(step, i);
        fetch_rows(step, i);
        fetch_lines((const char *)tile.packed + step->to_next, step->fetch_bytes);
        tile_bf16(tile.n_columns, tile.packed, scratch->panel.pairs, n_pairs, tile.sums, k == 0);
    }
}
#endif

/* What is left of the matrix's rows makes a whole panel with rows before them, if there are enough: how many of a panel's
 * n_rows, from the task's row `row` on, are such. */
static size_t rows_before(const nib_linear_task *task, size_t row, size_t n_rows) {
    return ROWS - n_rows <= task->first_row + row ? ROWS - n_rows : 0;
}

/* sums: panel after panel. */
static void store_sums(const nib_linear_task *task, const float *sums) {
    for (size_t t = 0; t < task->n_tokens; t++)
        for (size_t row = 0; row < task->n_rows; row += ROWS) {
            const size_t n = task->n_rows - row < ROWS ? task->n_rows - row : ROWS;
            const float *sum = sums + row * task->n_tokens + ROWS * t + rows_before(task, row, n);
            const float *bias = task->bias ? task->bias + row : NULL;
            float *out = task->out + t * task->out_stride + row;
            __builtin_prefetch(sum + 4 * ROWS); /* the panels' sums are more streams than the processor follows */
            __builtin_prefetch(sum + 4 * ROWS + 16);
            if (n == ROWS && !bias) {
                vf_store(out, vf_load(sum));
                vf_store(out + 16, vf_load(sum + 16));
            } else {
                for (size_t r = 0; r < n; r++) out[r] = sum[r] + (bias ? bias[r] : 0);
            }
        }
}

static void multiply_panel(const panel_step *step, nib_panel_scratch *scratch) {
    switch (step->task->route) {
    case NIB_ROUTE_BF16:
#if defined(__AVX512BF16__)
        panel_bf16(step, scratch);
        break;
#endif
    case NIB_ROUTE_F32:
        panel_floats(step, scratch);
        break;
    case NIB_ROUTE_INT_32:
    case NIB_ROUTE_INT_256:
        panel_ints(step, scratch);
        break;
    }
}

/* Where the weights of the i-th step begin: every panel at the first 256 columns, then at the next. Beyond the last step
 * there are those of the task that most likely follows. */
static const char *weights_of_step(const nib_linear_task *task, size_t i) {
    const size_t n_panels = (task->n_rows + ROWS - 1) / ROWS, n_steps = n_panels * ((task->n_cols + K - 1) / K);
    nib_linear_task of = *task;
    if (i >= n_steps) of.weights = task->following;
    return columns_at(&of, ROWS * (i % n_panels), nib_block_begin(task->route, task->n_cols, i % n_steps / n_panels));
}

/* All panels at every 256 columns before the next ones, so that the tiles, which come from the third cache, serve all of
 * them while the second has them. */
static void panels(const nib_linear_task *task, nib_panel_scratch *scratch, float *sums) {
    nib_linear_task part[NIB_TASK_PANELS];
    uint16_t begin[NIB_TASK_TILES + 1];
    const size_t n_parts = (task->n_rows + ROWS - 1) / ROWS, n_blocks = (task->n_cols + K - 1) / K;
    const ptrdiff_t block_bytes = (ptrdiff_t)(nib_tiles_of(task->batch_tokens) * task->tile_bytes);
    for (size_t i = 0; i <= task->n_tiles; i++)
        begin[i] = (uint16_t)(nib_tile_begin(task->first_tile + i, task->batch_tokens) -
                              nib_tile_begin(task->first_tile, task->batch_tokens));
    for (size_t p = 0; p < n_parts; p++) {
        const size_t left = task->n_rows - ROWS * p, n = left < ROWS ? left : ROWS,
                     before = rows_before(task, ROWS * p, n);
        part[p] = *task;
        part[p].weights = columns_at(task, ROWS * p, 0) - before * task->row_bytes;
        part[p].n_rows = (uint32_t)(n + before);
        part[p].out = task->out + ROWS * p;
    }
    if (part[n_parts - 1].n_rows < ROWS) memset(&scratch->rows, 0, sizeof scratch->rows);
    const size_t tile_bytes = task->is_near ? 0 : task->tile_bytes / n_parts;
    for (size_t b = 0, i = 0; b < n_blocks; b++) {
        const size_t k = nib_block_begin(task->route, task->n_cols, b);
        const char *tiles =
            (const char *)task->tiles + (ptrdiff_t)b * block_bytes + task->first_tile * task->tile_bytes;
        for (size_t p = 0; p < n_parts; p++, i++) {
            const panel_step step = {
                .task = &part[p],
                .k = k,
                .n = task->n_cols - k < K ? task->n_cols - k : K,
                .n_before = b * K - k,
                .tiles = tiles,
                .sums = sums + ROWS * p * task->n_tokens,
                .begin = begin,
                .next = weights_of_step(task, i + 1),
                .after = weights_of_step(task, i + 2),
                .next_bytes = K / task->format->facts.block * task->format->facts.bytes,
                .to_next = (b + 1 < n_blocks ? block_bytes : -block_bytes * (ptrdiff_t)b) + (ptrdiff_t)(p * tile_bytes),
                .fetch_bytes = lines_of(tile_bytes),
            };
            multiply_panel(&step, scratch);
        }
    }
    store_sums(task, sums);
}

extern const nib_gemm_kernels NIB_AT_LEVEL(nib_gemm_kernels_);
const nib_gemm_kernels NIB_AT_LEVEL(nib_gemm_kernels_) = {
#if defined(__AVX512BF16__)
    .has_bf16 = true,
#endif
#if defined(NIB_VEC_DP4)
    .has_dp4 = true,
#endif
    .panels = panels,
};
