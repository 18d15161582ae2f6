/* Attention of one block of queries: up to 192 rows (token, head) that read the same kv head, against 64 keys at a time.
 *
 *     scores (rows, 64) = q x keys^T     p = exp(scores - running maximum)     out = out * rescale + p x values
 *
 * The keys are cut into pieces of 512 positions. Each piece starts with an empty maximum and sum, and pieces are folded one
 * after the other, by one worker or, when few rows see many keys, by merge() from the results of several. Blocks of keys
 * start at multiples of 64 positions, rows never mix, and what a row does not see changes nothing of it; so a row's result
 * does not depend on which rows share its block, nor on who computed the pieces.
 *
 * Two arithmetics:
 *     floats    f32 products straight from the cache, whatever is stored there: nothing is unpacked to memory, so few rows
 *               are bound by reading it
 *     integers  for many rows: 64 keys and values are rounded once for all rows to 16 bits with a scale per position, and
 *               the level's dot product of pairs does two multiply-adds where f32 does one */
#include "kernel/kv.h"
#include "kernel/tile.h"
#include <math.h>

enum {
    ROWS = NIB_ATTEND_ROWS,
    KEYS = NIB_ATTEND_KEYS,
    PIECE = NIB_ATTEND_PIECE,
    TILE_ROWS = 6,      /* of the integer tile */
    FLOAT_ROWS = 4,     /* at most, of the float tile */
    WEIGHT_SUM = 8184,  /* largest sum of a lane's 4 integer weights, so that 64 of them times values fit 31 bits: */
    VALUE_MOST = 16383, /* 16 * (8184 + 4 / 2) * 16383 < 2^31 */
};

/* Largest Euclidean norm of a query or key in integers: (46200 + rounding)^2 < 2^31, so no dot product overflows. */
static const float norm_most = 46200;

/* Results of the rows: weighted sums of values (rows, padded), maxima of the scores, sums of the weights. */
typedef struct row_states {
    float *out, *most, *total;
} row_states;

typedef struct work {
    size_t padded;         /* head_dim rounded up to 32 */
    size_t n_rows;         /* of the task */
    size_t pairs;          /* of dimensions */
    row_states piece, all; /* of the piece being read; of those before it */
    const char *ahead;     /* floats: the keys that are read after this block */
    float *q;              /* floats: (rows, padded), times the scale of the scores */
    int32_t *q_pairs;      /* integers: (rows, pairs) */
    float *q_scale; /* (rows) what one unit of q_pairs times one of key_pairs is worth, but for the key's scale */
    float *scores;  /* (6, 64), which become weights */
    float *scaled;  /* q8_0: (4, 64) weights times scales of the values */
    /* The block in integers. */
    int32_t *key_pairs;             /* (2 tiles, pairs, 32) */
    int32_t *value_pairs;           /* (32 pairs of positions, padded) */
    int32_t *weight_pairs;          /* (6, 32 pairs of positions) */
    float *key_scale, *value_scale; /* (64) */
    bool is_broken;                 /* a value that is not finite */
} work;

static work lay_out(const nib_attend_task *task, float *scratch) {
    work w = {.padded = ((size_t)task->head_dim + 31) / 32 * 32,
              .n_rows = (size_t)task->n_tokens * task->n_heads,
              .pairs = ((size_t)task->head_dim + 1) / 2};
    w.q = scratch;
    w.q_pairs = (int32_t *)w.q;
    w.piece.out = w.q + ROWS * w.padded;
    w.all.out = w.piece.out + ROWS * w.padded;
    w.key_pairs = (int32_t *)(w.all.out + ROWS * w.padded);
    w.value_pairs = w.key_pairs + KEYS / 2 * w.padded;
    w.scores = (float *)(w.value_pairs + KEYS / 2 * w.padded);
    w.scaled = w.scores + TILE_ROWS * KEYS;
    w.weight_pairs = (int32_t *)(w.scaled + FLOAT_ROWS * KEYS);
    w.key_scale = (float *)(w.weight_pairs + TILE_ROWS * KEYS / 2);
    w.value_scale = w.key_scale + KEYS;
    w.q_scale = w.value_scale + KEYS;
    w.piece.most = w.q_scale + ROWS;
    w.piece.total = w.piece.most + ROWS;
    w.all.most = w.piece.total + ROWS;
    w.all.total = w.all.most + ROWS;
    return w;
}

static void forget(const row_states *states, size_t n_rows, size_t padded) {
    memset(states->out, 0, n_rows * padded * sizeof *states->out);
    for (size_t r = 0; r < n_rows; r++) {
        states->most[r] = -INFINITY;
        states->total[r] = 0;
    }
}

static const float *query_of(const nib_attend_task *task, size_t row) {
    return task->q + row / task->n_heads * task->token_stride + row % task->n_heads * task->head_dim;
}

/* Keys from .. to - 1 of a block are seen by a row. */
typedef struct key_range {
    size_t from, to;
} key_range;

static key_range seen_by(const nib_attend_task *task, size_t row, size_t n_rows, size_t first) {
    if (row >= n_rows) return (key_range){0, 0};
    const size_t end = task->position + row / task->n_heads + 1;
    const size_t begin = task->window && end > task->window ? end - task->window : 0;
    const size_t to = end <= first ? 0 : end - first < KEYS ? end - first : KEYS;
    const size_t from = begin <= first ? 0 : begin - first;
    return from < to ? (key_range){from, to} : (key_range){0, 0};
}

/* ---- floats ----------------------------------------------------------------------------------------------------- */

static void load_float_queries(const nib_attend_task *task, const work *w) {
    for (size_t r = 0; r < w->n_rows; r++) {
        const float *q = query_of(task, r);
        for (size_t d = 0; d < task->head_dim; d++) w->q[r * w->padded + d] = q[d] * task->scale;
    }
}

/* How many vectors a float tile is wide, so that sums and operands fit the registers. */
NIB_INLINE int tile_vectors(int rows) {
#if defined(NIB_VEC_512)
    (void)rows;
    return 4;
#else
    return rows == 4 ? 1 : rows == 2 ? 2 : 4;
#endif
}

/* Few rows wait for memory: while they work on a block's keys they ask for its values, and then for the next keys. */
NIB_INLINE void ask_for(const char *at, size_t n) {
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(at + i, 0, 2);
}

/* Scores of some rows against a block's 64 keys; those past the last position are garbage that nobody sees. */
NIB_INLINE void score_rows(nib_kv_type type, int rows, const nib_attend_task *task, const work *w, const char *tiles,
                           const char *values, size_t row) {
    const size_t n = task->head_dim, tile_bytes = kv_tile_bytes(type, n),
                 group = type == NIB_KV_TYPE_Q8_0 ? KV_GROUP : n;
    const int vectors = tile_vectors(rows);
    const size_t step = 2 * tile_bytes / n / (KEYS / 16 / (size_t)vectors);
    const char *next = row ? tiles : values; /* asked for once; the keys at hand are there already */
    for (size_t begin = 0; begin < n; begin += group)
        for (int at = 0; at < KEYS / 16; at += vectors) {
            vf sum[FLOAT_ROWS][4];
            NIB_UNROLL for (int r = 0; r < rows; r++) NIB_UNROLL for (int v = 0; v < vectors; v++) sum[r][v] =
                vf_zero();
            const float *q = w->q + row * w->padded;
            for (size_t d = begin; d < begin + group; d++, next += step) {
                vf key[4];
                ask_for(next, step);
                NIB_UNROLL for (int v = 0; v < vectors; v++) key[v] =
                    kv_keys(type, tiles + (size_t)((at + v) / 2) * tile_bytes, d, (size_t)(at + v) % 2 * 16);
                NIB_UNROLL for (int r = 0; r < rows; r++) {
                    const vf x = vf_splat(q[(size_t)r * w->padded + d]);
                    NIB_UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = vf_fma(key[v], x, sum[r][v]);
                }
            }
            NIB_UNROLL for (int v = 0; v < vectors; v++) {
                vf scale = vf_splat(1);
                if (type == NIB_KV_TYPE_Q8_0)
                    scale =
                        vf_from_f16(kv_scales(tiles + (size_t)((at + v) / 2) * tile_bytes, begin) + (at + v) % 2 * 16);
                NIB_UNROLL for (int r = 0; r < rows; r++) {
                    float *to = w->scores + r * KEYS + 16 * (at + v);
                    if (type != NIB_KV_TYPE_Q8_0)
                        vf_store(to, sum[r][v]);
                    else
                        vf_store(to, vf_fma(sum[r][v], scale, begin ? vf_load(to) : vf_zero()));
                }
            }
        }
}

/* Scores of a row to weights in place; those outside the range weigh exactly 0. Returns what the row's earlier output is to
 * be multiplied with. */
static float weigh_row(float *scores, key_range seen, float *most, float *total) {
    if (!seen.to) {
        memset(scores, 0, KEYS * sizeof *scores);
        return 1;
    }
    for (size_t i = 0; i < seen.from; i++) scores[i] = -INFINITY;
    for (size_t i = seen.to; i < KEYS; i++) scores[i] = -INFINITY;
    vf largest = vf_splat(*most);
    for (size_t i = 0; i < KEYS; i += 16) largest = vf_max(vf_load(scores + i), largest);
    const float new_most = vf_largest(largest);
    const vf shift = vf_splat(new_most);
    vf sum = vf_zero();
    for (size_t i = 0; i < KEYS; i += 16) {
        const vf p = vf_exp(vf_sub(vf_load(scores + i), shift));
        vf_store(scores + i, p);
        sum = vf_add(sum, p);
    }
    float factor[16] = {1};
    if (new_most != *most) vf_store(factor, vf_exp(vf_splat(*most - new_most)));
    *most = new_most;
    *total = *total * factor[0] + vf_sum(sum);
    return factor[0];
}

/* out = out * rescale + weights x values for some rows and 16 * vectors dimensions from d on. */
NIB_INLINE void add_values(nib_kv_type type, int rows, int vectors, const nib_attend_task *task, const work *w,
                           const char *tiles, size_t n_keys, const float *weights, size_t row, size_t d,
                           const float *rescale) {
    const size_t tile_bytes = kv_tile_bytes(type, task->head_dim), padded = ((size_t)task->head_dim + 15) / 16 * 16;
    const size_t row_bytes = tile_bytes / KV_TILE, width = row_bytes * 16 * (size_t)vectors / padded;
    const char *next = (row ? tiles : w->ahead) + d * row_bytes / padded;
    vf sum[FLOAT_ROWS][4];
    NIB_UNROLL for (int r = 0; r < rows; r++) NIB_UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = vf_zero();
    for (size_t first = 0; first < n_keys; first += KV_TILE, tiles += tile_bytes) {
        const size_t n = n_keys - first < KV_TILE ? n_keys - first : KV_TILE;
        for (size_t i = 0; i < n; i++, next += row_bytes) {
            vf value[4];
            ask_for(next, width);
            NIB_UNROLL for (int v = 0; v < vectors; v++) value[v] =
                kv_values(type, tiles, padded, i, d + 16 * (size_t)v);
            NIB_UNROLL for (int r = 0; r < rows; r++) {
                const vf p = vf_splat(weights[(size_t)r * KEYS + first + i]);
                NIB_UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = vf_fma(value[v], p, sum[r][v]);
            }
        }
    }
    NIB_UNROLL for (int r = 0; r < rows; r++) NIB_UNROLL for (int v = 0; v < vectors; v++) {
        float *out = w->piece.out + (row + (size_t)r) * w->padded + d + 16 * (size_t)v;
        vf_store(out, vf_fma(vf_load(out), vf_splat(rescale[r]), sum[r][v]));
    }
}

/* The weights times the scales of the values of one group. */
static void scale_weights(const work *w, int rows, const char *tiles, size_t tile_bytes, size_t n_keys, size_t d) {
    for (size_t i = 0; i < n_keys; i += 16) {
        const vf scale = vf_from_f16(kv_scales(tiles + i / KV_TILE * tile_bytes, d) + i % KV_TILE);
        for (int r = 0; r < rows; r++)
            vf_store(w->scaled + r * KEYS + i, vf_mul(vf_load(w->scores + r * KEYS + i), scale));
    }
}

NIB_INLINE void step_rows(nib_kv_type type, int rows, const nib_attend_task *task, const work *w, size_t first,
                          size_t n_keys, size_t row) {
    const size_t tile_bytes = kv_tile_bytes(type, task->head_dim), at = first / KV_TILE * tile_bytes;
    float rescale[FLOAT_ROWS];
    size_t end = 0; /* of the keys that any of the rows sees */
    for (int r = 0; r < rows; r++) {
        const size_t to = seen_by(task, row + (size_t)r, w->n_rows, first).to;
        if (to > end) end = to;
    }
    if (!end) return;
    if (end > n_keys) end = n_keys;
    score_rows(type, rows, task, w, task->keys + at, task->values + at, row);
    for (int r = 0; r < rows; r++)
        rescale[r] = weigh_row(w->scores + r * KEYS, seen_by(task, row + (size_t)r, w->n_rows, first),
                               w->piece.most + row + r, w->piece.total + row + r);
    size_t d = 0;
    if (type == NIB_KV_TYPE_Q8_0) {
        for (; d < task->head_dim; d += KV_GROUP) {
            scale_weights(w, rows, task->values + at, tile_bytes, end, d);
            add_values(type, rows, 2, task, w, task->values + at, end, w->scaled, row, d, rescale);
        }
        return;
    }
    for (; d + 64 <= task->head_dim; d += 16 * (size_t)tile_vectors(rows))
        add_values(type, rows, tile_vectors(rows), task, w, task->values + at, end, w->scores, row, d, rescale);
    for (; d < task->head_dim; d += 16)
        add_values(type, rows, 1, task, w, task->values + at, end, w->scores, row, d, rescale);
}

NIB_INLINE void step_of_type(nib_kv_type type, const nib_attend_task *task, const work *w, size_t first,
                             size_t n_keys) {
    size_t row = 0;
    for (; row + 4 <= w->n_rows; row += 4) step_rows(type, 4, task, w, first, n_keys, row);
    if (row + 2 <= w->n_rows) {
        step_rows(type, 2, task, w, first, n_keys, row);
        row += 2;
    }
    if (row < w->n_rows) step_rows(type, 1, task, w, first, n_keys, row);
}

static void step_floats(const nib_attend_task *task, const work *w, size_t first, size_t n_keys) {
    if (task->type == NIB_KV_TYPE_F32)
        step_of_type(NIB_KV_TYPE_F32, task, w, first, n_keys);
    else if (task->type == NIB_KV_TYPE_F16)
        step_of_type(NIB_KV_TYPE_F16, task, w, first, n_keys);
    else
        step_of_type(NIB_KV_TYPE_Q8_0, task, w, first, n_keys);
}

/* ---- integers --------------------------------------------------------------------------------------------------- */

/* A query or key of n dimensions becomes 16-bit integers x / scale. The scale follows the norm, so that no dot product
 * overflows, and the largest magnitude. With everything else that is rounded here, results are off by 0.7 to 1.1 times
 * what rounding the queries to f16 alone would do (tests/test_attend.c). */
static vf scale_of(vf most, vf squares) {
    return vf_max(vf_mul(most, vf_splat(1.0f / 32767)), vf_mul(vf_sqrt(squares), vf_splat(1 / norm_most)));
}
static vf magnitude(vf x) {
    return vf_max(vf_sub(vf_zero(), x), x);
}

static void load_integer_queries(const nib_attend_task *task, const work *w) {
    const size_t n = task->head_dim, tiled = (w->n_rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    memset(w->q_pairs, 0, tiled * w->pairs * sizeof *w->q_pairs);
    for (size_t r = 0; r < w->n_rows; r++) {
        const float *q = query_of(task, r);
        int16_t *to = (int16_t *)(w->q_pairs + r * w->pairs), last[16];
        vf most = vf_zero(), squares = vf_zero();
        for (size_t d = 0; d < n; d += 16) {
            const vf x = n - d < 16 ? vf_load_n(q + d, n - d) : vf_load(q + d);
            most = vf_max(magnitude(x), most);
            squares = vf_fma(x, x, squares);
        }
        float scale[16];
        vf_store(scale, scale_of(vf_splat(vf_largest(most)), vf_splat(vf_sum(squares))));
        const vf inverse = vf_splat(scale[0] > 0 ? 1 / scale[0] : 0);
        for (size_t d = 0; d < n; d += 16) {
            const size_t left = n - d < 16 ? n - d : 16;
            vi_to_i16(last, vi_round(vf_mul(left < 16 ? vf_load_n(q + d, left) : vf_load(q + d), inverse)));
            memcpy(to + d, last, left * sizeof *to);
        }
        w->q_scale[r] = scale[0] * task->scale;
    }
}

/* 16 keys at dimension d, as numbers. */
NIB_INLINE vf key_numbers(nib_kv_type type, const char *tile, size_t d, size_t lane) {
    const vf x = kv_keys(type, tile, d, lane);
    return type == NIB_KV_TYPE_Q8_0 ? vf_mul(x, vf_from_f16(kv_scales(tile, d) + lane)) : x;
}

NIB_INLINE void load_keys(nib_kv_type type, const nib_attend_task *task, const work *w, size_t first) {
    const size_t n = task->head_dim, tile_bytes = kv_tile_bytes(type, n);
    for (size_t lane = 0; lane < KEYS; lane += 16) {
        const char *tile = task->keys + (first + lane) / KV_TILE * tile_bytes;
        const size_t in = lane % KV_TILE;
        int32_t *to = w->key_pairs + lane / KV_TILE * w->pairs * KV_TILE + in;
        vf most = vf_zero(), squares = vf_zero();
        for (size_t d = 0; d < n; d++) {
            const vf x = key_numbers(type, tile, d, in);
            most = vf_max(magnitude(x), most);
            squares = vf_fma(x, x, squares);
        }
        const vf scale = scale_of(most, squares), inverse = vf_div(vf_splat(1), scale);
        vf_store(w->key_scale + lane, scale);
        for (size_t d = 0; d + 1 < n; d += 2, to += KV_TILE)
            vi_store(to, vi_pair(vi_round(vf_mul(key_numbers(type, tile, d, in), inverse)),
                                 vi_round(vf_mul(key_numbers(type, tile, d + 1, in), inverse))));
        if (n % 2) vi_store(to, vi_pair(vi_round(vf_mul(key_numbers(type, tile, n - 1, in), inverse)), vi_splat(0)));
    }
}

NIB_INLINE vf value_numbers(nib_kv_type type, const nib_attend_task *task, size_t position, size_t d) {
    const size_t n = task->head_dim, i = position % KV_TILE;
    const char *tile = task->values + position / KV_TILE * kv_tile_bytes(type, n);
    const vf x = kv_values(type, tile, (n + 15) / 16 * 16, i, d);
    return type == NIB_KV_TYPE_Q8_0 ? vf_mul(x, vf_splat(nib_f16_to_f32(kv_scales(tile, d)[i]))) : x;
}

/* Values become integers of 15 bits with a scale per position, in pairs of positions; a last odd one is paired with itself
 * and weighs 0. */
NIB_INLINE void load_values(nib_kv_type type, const nib_attend_task *task, work *w, size_t first, size_t n_keys) {
    const size_t n = task->head_dim;
    w->is_broken = false;
    for (size_t i = 0; i < n_keys; i += 2) {
        const size_t at[2] = {first + i, first + (i + 1 < n_keys ? i + 1 : i)};
        int32_t *to = w->value_pairs + i / 2 * w->padded;
        vf inverse[2];
        for (size_t j = 0; j < 2; j++) {
            vf most = vf_zero(), broken = vf_zero(); /* 0, or NaN */
            for (size_t d = 0; d < n; d += 16) {
                const vf x = value_numbers(type, task, at[j], d);
                most = vf_max(magnitude(x), most);
                broken = vf_fma(x, vf_zero(), broken);
            }
            const float scale = vf_largest(most) * (1.0f / VALUE_MOST) + vf_sum(broken);
            w->value_scale[i + j] = scale;
            w->is_broken |= !(scale < INFINITY);
            inverse[j] = vf_splat(scale > 0 ? 1 / scale : 0);
        }
        for (size_t d = 0; d < n; d += 16)
            vi_store(to + d, vi_pair(vi_round(vf_mul(value_numbers(type, task, at[0], d), inverse[0])),
                                     vi_round(vf_mul(value_numbers(type, task, at[1], d), inverse[1]))));
        if (n % 32 && n % 32 <= 16) vi_store(to + w->padded - 16, vi_splat(0));
    }
}

/* e^x for x <= 0, within 3e-6, 0 below -88: enough for weights of 14 bits. */
static vf exp_of_negative(vf x) {
    const vf magic = vf_splat(0x1.8p23f + 127); /* leaves the biased exponent in the low bits */
    x = vf_max(vf_splat(-88.0f), x);
    const vf shifted = vf_fma(x, vf_splat(0x1.715476p0f), magic);
    const vf r = vf_fma(vf_sub(shifted, magic), vf_splat(-0x1.62e43p-1f), x);
    vf p = vf_fma(vf_splat(0.0414585672f), r, vf_splat(0.167909319f));
    p = vf_fma(p, r, vf_splat(0.500043604f));
    p = vf_fma(p, r, vf_splat(0.999963390f));
    p = vf_fma(p, r, vf_splat(0.999999261f));
    return vf_mul(p, vf_bits(vi_shl(vi_bits(shifted), 23)));
}

/* sum[row][v] = sum over k of a[row][k] . b[k][16 v ..], pairs of integers. */
NIB_INLINE void dot_tile(int rows, const int32_t *a, size_t a_stride, const int32_t *b, size_t b_stride, size_t n,
                         vi sum[NIB_SUB_COLUMNS][NIB_SUB_VECTORS]) {
    NIB_UNROLL for (int r = 0; r < rows; r++) NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++) sum[r][v] =
        vi_splat(0);
    for (size_t k = 0; k < n; k++, a++, b += b_stride) {
        vi right[NIB_SUB_VECTORS];
        NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++) right[v] = vi_load(b + 16 * v);
        NIB_UNROLL for (int r = 0; r < rows; r++) {
            const vi left = vi_splat(a[(size_t)r * a_stride]);
            NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++) sum[r][v] = vi_dp2(sum[r][v], left, right[v]);
        }
    }
}

/* Scores of six rows, without the scale of the query. */
static void score_tile(const work *w, size_t row) {
    vi sum[NIB_SUB_COLUMNS][NIB_SUB_VECTORS];
    for (int key = 0; key < KEYS; key += 16 * NIB_SUB_VECTORS)
        for (int r = 0; r < TILE_ROWS; r += NIB_SUB_COLUMNS) {
            dot_tile(NIB_SUB_COLUMNS, w->q_pairs + (row + (size_t)r) * w->pairs, w->pairs,
                     w->key_pairs + (size_t)(key / KV_TILE) * w->pairs * KV_TILE + key % KV_TILE, KV_TILE, w->pairs,
                     sum);
            NIB_UNROLL for (int i = 0; i < NIB_SUB_COLUMNS; i++) NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++)
                vf_store(w->scores + (r + i) * KEYS + key + 16 * v,
                         vf_mul(vi_to_f(sum[i][v]), vf_load(w->key_scale + key + 16 * v)));
        }
}

/* What a row's earlier output, and its new sums of integers, are to be multiplied with. */
typedef struct row_factors {
    float earlier, now;
} row_factors;

/* Scores of row r of the tile to integer weights, in pairs of positions. A weight is p times the value's scale; the unit is
 * chosen for each row and block so that the sums over 64 keys cannot overflow. */
static row_factors weigh_tile_row(const work *w, int r, size_t row, key_range seen) {
    float *scores = w->scores + r * KEYS, *most = w->piece.most + row, *total = w->piece.total + row;
    int16_t *weights = (int16_t *)(w->weight_pairs + r * (KEYS / 2));
    if (!seen.to) {
        memset(weights, 0, KEYS * sizeof *weights);
        return (row_factors){1, 0};
    }
    const bool some = seen.from > 0 || seen.to < KEYS;
    for (size_t i = 0; some && i < seen.from; i++) scores[i] = -INFINITY;
    for (size_t i = seen.to; some && i < KEYS; i++) scores[i] = -INFINITY;
    vf largest = vf_load(scores), sum = vf_zero(), lanes = vf_zero(), p[KEYS / 16];
    for (size_t i = 16; i < KEYS; i += 16) largest = vf_max(vf_load(scores + i), largest);
    const float here = vf_largest(largest) * w->q_scale[row], new_most = here > *most ? here : *most;
    const vf scale = vf_splat(w->q_scale[row]), shift = vf_splat(-new_most);
    for (size_t i = 0; i < KEYS / 16; i++) {
        p[i] = exp_of_negative(vf_fma(vf_load(scores + 16 * i), scale, shift));
        sum = vf_add(sum, p[i]);
        p[i] = vf_mul(p[i], vf_load(w->value_scale + 16 * i));
    }
    if (some) { /* 0 times a value that is not finite */
        for (size_t i = 0; i < KEYS / 16; i++) vf_store(scores + 16 * i, p[i]);
        for (size_t i = 0; i < seen.from; i++) scores[i] = 0;
        for (size_t i = seen.to; i < KEYS; i++) scores[i] = 0;
        for (size_t i = 0; i < KEYS / 16; i++) p[i] = vf_load(scores + 16 * i);
    }
    for (size_t i = 0; i < KEYS / 16; i++) lanes = vf_add(lanes, p[i]);
    const float lane = vf_largest(lanes);
    const vf unit = vf_splat(lane > 0 ? WEIGHT_SUM / lane : 0);
    for (size_t i = 0; i < KEYS / 16; i++) vi_to_i16(weights + 16 * i, vi_round(vf_mul(p[i], unit)));
    float factor[16] = {1}, broken = w->is_broken ? vf_sum(vf_mul(lanes, vf_zero())) : 0;
    if (new_most != *most) vf_store(factor, vf_exp(vf_splat(*most - new_most)));
    *most = new_most;
    *total = *total * factor[0] + (vf_sum(sum) + broken);
    return (row_factors){factor[0], lane * (1.0f / WEIGHT_SUM)};
}

/* out = out * earlier + (weights x values) * now for six rows. */
static void add_tile(const work *w, size_t row, size_t n_pairs, const row_factors *factors) {
    vi sum[NIB_SUB_COLUMNS][NIB_SUB_VECTORS];
    for (size_t d = 0; d < w->padded; d += 16 * NIB_SUB_VECTORS)
        for (int r = 0; r < TILE_ROWS; r += NIB_SUB_COLUMNS) {
            dot_tile(NIB_SUB_COLUMNS, w->weight_pairs + r * (KEYS / 2), KEYS / 2, w->value_pairs + d, w->padded,
                     n_pairs, sum);
            NIB_UNROLL for (int i = 0; i < NIB_SUB_COLUMNS; i++) {
                float *out = w->piece.out + (row + (size_t)(r + i)) * w->padded + d;
                const vf earlier = vf_splat(factors[r + i].earlier), now = vf_splat(factors[r + i].now);
                NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++)
                    vf_store(out + 16 * v, vf_fma(vf_load(out + 16 * v), earlier, vf_mul(vi_to_f(sum[i][v]), now)));
            }
        }
}

static void step_integers(const nib_attend_task *task, work *w, size_t first, size_t n_keys) {
    if (task->type == NIB_KV_TYPE_F16) {
        load_keys(NIB_KV_TYPE_F16, task, w, first);
        load_values(NIB_KV_TYPE_F16, task, w, first, n_keys);
    } else {
        load_keys(NIB_KV_TYPE_Q8_0, task, w, first);
        load_values(NIB_KV_TYPE_Q8_0, task, w, first, n_keys);
    }
    for (size_t row = 0; row < w->n_rows; row += TILE_ROWS) {
        key_range seen[TILE_ROWS];
        row_factors factors[TILE_ROWS];
        size_t end = 0; /* of the keys that any of the rows sees */
        for (size_t r = 0; r < TILE_ROWS; r++) {
            seen[r] = seen_by(task, row + r, w->n_rows, first);
            if (seen[r].to > end) end = seen[r].to;
        }
        if (!end) continue;
        score_tile(w, row);
        for (size_t r = 0; r < TILE_ROWS; r++) factors[r] = weigh_tile_row(w, (int)r, row + r, seen[r]);
        add_tile(w, row, (end + 1) / 2, factors);
    }
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

/* Folds a row's result over the next piece into that over those before. */
static void fold_row(float *out, float *most, float *total, const float *next, float next_most, float next_total,
                     size_t padded) {
    if (next_total == 0) return; /* the piece showed it nothing */
    if (*total == 0) {
        memcpy(out, next, padded * sizeof *out);
        *most = next_most;
        *total = next_total;
        return;
    }
    const float new_most = next_most > *most ? next_most : *most;
    float factors[16] = {*most - new_most, next_most - new_most};
    vf_store(factors, vf_exp(vf_load(factors)));
    const vf a = vf_splat(factors[0]), b = vf_splat(factors[1]);
    for (size_t d = 0; d < padded; d += 16)
        vf_store(out + d, vf_fma(vf_load(out + d), a, vf_mul(vf_load(next + d), b)));
    *most = new_most;
    *total = *total * factors[0] + next_total * factors[1];
}

static void read_piece(const nib_attend_task *task, work *w, size_t piece) {
    const size_t last = (size_t)task->position + task->n_tokens, first_end = (size_t)task->position + 1;
    const size_t seen_from = task->window && first_end > task->window ? first_end - task->window : 0;
    const size_t begin = piece * PIECE, end = last < begin + PIECE ? last : begin + PIECE;
    const size_t tiled = (w->n_rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    forget(&w->piece, tiled, w->padded);
    for (size_t first = seen_from > begin ? seen_from / KEYS * KEYS : begin; first < end; first += KEYS) {
        const size_t n = end - first < KEYS ? end - first : KEYS;
        if (task->integers) {
            step_integers(task, w, first, n);
            continue;
        }
        w->ahead = first + KEYS < end
                       ? task->keys + (first + KEYS) / KV_TILE * kv_tile_bytes(task->type, task->head_dim)
                       : task->keys_ahead;
        step_floats(task, w, first, n);
    }
}

static void finish_row(const float *sum, float total, size_t n, float *out) {
    for (size_t d = 0; d < n; d++) out[d] = sum[d] / total;
}

static void attend(const nib_attend_task *task, float *scratch) {
    const size_t last = (size_t)task->position + task->n_tokens, first_end = (size_t)task->position + 1;
    const size_t seen_from = task->window && first_end > task->window ? first_end - task->window : 0;
    work w = lay_out(task, scratch);
    if (task->integers)
        load_integer_queries(task, &w);
    else
        load_float_queries(task, &w);
    if (task->part) {
        read_piece(task, &w, task->piece);
        for (size_t r = 0; r < w.n_rows; r++) {
            float *part = task->part + r / task->n_heads * task->part_stride +
                          r % task->n_heads * nib_attend_part_floats(task->head_dim);
            memcpy(part, w.piece.out + r * w.padded, w.padded * sizeof *part);
            part[w.padded] = w.piece.most[r];
            part[w.padded + 1] = w.piece.total[r];
        }
        return;
    }
    forget(&w.all, w.n_rows, 0);
    for (size_t piece = seen_from / PIECE; piece * PIECE < last; piece++) {
        read_piece(task, &w, piece);
        for (size_t r = 0; r < w.n_rows; r++)
            fold_row(w.all.out + r * w.padded, w.all.most + r, w.all.total + r, w.piece.out + r * w.padded,
                     w.piece.most[r], w.piece.total[r], w.padded);
    }
    for (size_t r = 0; r < w.n_rows; r++)
        finish_row(w.all.out + r * w.padded, w.all.total[r], task->head_dim,
                   task->out + r / task->n_heads * task->token_stride + r % task->n_heads * task->head_dim);
}

static void merge(const float *parts, size_t n, size_t part_step, uint32_t head_dim, float *out) {
    enum { STEP = 256 }; /* dimensions at a time */
    const size_t padded = ((size_t)head_dim + 31) / 32 * 32;
    float sum[STEP] = {0};
    for (size_t d = 0; d < head_dim; d += STEP) {
        const size_t width = padded - d < STEP ? padded - d : STEP, left = head_dim - d < STEP ? head_dim - d : STEP;
        float most = -INFINITY, total = 0;
        for (size_t i = 0; i < n; i++) {
            const float *part = parts + i * part_step;
            fold_row(sum, &most, &total, part + d, part[padded], part[padded + 1], width);
        }
        finish_row(sum, total, left, out + d);
    }
}

extern const nib_attend_kernels NIB_AT_LEVEL(nib_attend_kernels_);
const nib_attend_kernels NIB_AT_LEVEL(nib_attend_kernels_) = {.attend = attend, .merge = merge};
