/* Activations on their way into a matrix product: rounded as the weights' format wants them, and laid out as the panels'
 * register tiles (level_gemm.c) or the rows' vectors (level_gemv.c) read them. */
#include "kernel/level.h"
#include "kernel/tile.h"
#include <stdlib.h>

extern const nib_pack_kernels NIB_AT_LEVEL(nib_pack_kernels_);

enum { K = NIB_PANEL_K, TOKENS = NIB_TILE_TOKENS };

/* Rows take turns, so the processor does not see by itself that this one will go on. */
static void fetch_block(const float *x, size_t k, size_t n_cols) {
    for (size_t i = k; i < k + K && i < n_cols; i += 16) __builtin_prefetch(x + i);
}

/* 256 columns from column k on, zeros past the end of the row, rounded as the weights' format wants them. */
static void load_block(nib_activation rounding, const float *x, size_t k, size_t n_cols, float out[K]) {
    const size_t n = n_cols - k < K ? n_cols - k : K;
    fetch_block(x, k + K, n_cols);
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

/* The same, but where they are if nothing is to be done to them. */
static const float *find_block(nib_activation rounding, const float *x, size_t k, size_t n_cols, float copy[K]) {
    if (rounding == NIB_ACT_F32 && n_cols - k >= K) {
        fetch_block(x, k + K, n_cols);
        return x + k;
    }
    load_block(rounding, x, k, n_cols, copy);
    return copy;
}

/* 16 floats to the nearest integers, ties to even. |x| <= 127 unless it is not finite (any code will do). */
static void round_codes(const float *x, vf factor, int8_t *code) {
    const vf magic = vf_splat(0x1.8p23f);
    vi_store_bytes(code, vi_sub(vi_bits(vf_add(vf_mul(vf_load(x), factor), magic)), vi_bits(magic)));
}

static inline vf magnitude(vf x) {
    return vf_bits(vi_and(vi_bits(x), vi_splat(0x7fffffff)));
}

/* 0, or NaN if any of the values is not finite: the products will say so, instead of making a number up. */
static float poison_of(const float x[K]) {
    vf poison[2] = {vf_zero(), vf_zero()};
    for (size_t i = 0; i < K; i += 32) {
        poison[0] = vf_fma(vf_load(x + i), vf_zero(), poison[0]);
        poison[1] = vf_fma(vf_load(x + i + 16), vf_zero(), poison[1]);
    }
    return vf_sum(vf_add(poison[0], poison[1]));
}

/* The value of largest magnitude, with its sign; the first of equals. */
static float signed_extreme(const float x[K]) {
    vf most = vf_load(x), least = most;
    for (size_t i = 16; i < K; i += 16) {
        most = vf_max(most, vf_load(x + i));
        least = vf_min(least, vf_load(x + i));
    }
    const float above = vf_largest(most), below = vf_largest(vf_sub(vf_zero(), least));
    if (above != below) return above > below ? above : -below;
    for (size_t i = 0; i < K; i++)
        if (x[i] == above || x[i] == -above) return x[i];
    return above;
}

/* The largest magnitudes of 32 values each. */
static void largest_of_32(const float x[K], float largest[K / 32]) {
    float lanes[16][16], most[16];
    memset(lanes + K / 32, 0, sizeof lanes / 2);
    for (size_t g = 0; g < K / 32; g++)
        vf_store(lanes[g], vf_max(magnitude(vf_load(x + 32 * g)), magnitude(vf_load(x + 32 * g + 16))));
    vf all = vf_zero();
    for (size_t i = 0; i < 16; i += 4) {
        vi turned[4];
        vi_turn(turned, lanes[0] + i, sizeof lanes[0]);
        const vf two = vf_max(vf_bits(turned[0]), vf_bits(turned[1]));
        all = vf_max(all, vf_max(two, vf_max(vf_bits(turned[2]), vf_bits(turned[3]))));
    }
    vf_store(most, all);
    memcpy(largest, most, K / 32 * sizeof *largest);
}

/* Sums of four neighbours each: of codes, of sums. */
static void sum_fours(const int8_t code[K], int32_t sum4[K / 4]) {
    for (size_t i = 0; i < K; i += 64)
        vi_store(sum4 + i / 4, vi_dp4(vi_splat(0), vi_splat(0x01010101), vi_load(code + i)));
}
static void add_fours(const int32_t sum4[K / 4], int32_t sum16[K / 16]) {
    vi turned[4];
    vi_turn(turned, sum4, 16);
    vi_store(sum16, vi_add(vi_add(turned[0], turned[1]), vi_add(turned[2], turned[3])));
}

/* Sums of the magnitudes of 16 codes each. */
static void sum_magnitudes(const int8_t code[K], int32_t sum16[K / 16]) {
    int32_t sum4[K / 4];
    for (size_t i = 0; i < K; i += 64) {
        const vi x = vi_load(code + i), negative = vi_and(vi_shr(x, 7), vi_splat(0x01010101));
        const vi flip = vi_sub(vi_shl(negative, 8), negative); /* all bits of negative bytes */
        const vi magnitudes = vi_add(vi_xor(x, flip), negative);
        vi_store(sum4 + i / 4, vi_dp4(vi_splat(0), magnitudes, vi_splat(0x01010101)));
    }
    add_fours(sum4, sum16);
}

/* 256 floats to integers, and the sums of 16 codes each. */
static void quantize_block(nib_route route, const float x[K], int8_t code[K], float scale[K / 32],
                           int32_t sum16[K / 16]) {
    const float poison = poison_of(x);
    if (route == NIB_ROUTE_INT_256) {
        const float extreme = signed_extreme(x), factor = extreme != 0 ? -127 / extreme : 0;
        for (size_t g = 0; g < K / 32; g++) scale[g] = (extreme != 0 ? 1 / factor : 0) + poison;
        for (size_t i = 0; i < K; i += 16) round_codes(x + i, vf_splat(factor), code + i);
    } else {
        float factor[K / 32];
        largest_of_32(x, scale);
        for (size_t g = 0; g < K / 32; g++) {
            scale[g] = scale[g] / 127;
            factor[g] = scale[g] != 0 ? 1 / scale[g] : 0;
            scale[g] += poison;
        }
        for (size_t i = 0; i < K; i += 16) round_codes(x + i, vf_splat(factor[i / 32]), code + i);
    }
    int32_t sum4[K / 4];
    sum_fours(code, sum4);
    add_fours(sum4, sum16);
}

/* The first n codes, which an earlier block has, count as zero. */
static void forget_codes(int8_t code[K], int32_t sum16[K / 16], size_t n) {
    memset(code, 0, n);
    memset(sum16, 0, n / 16 * sizeof *sum16);
}

/* (16, 4, 4) -> (4, 16, 4): from each 16 codes, their first fours' first, and so on. */
static void turn_codes(int8_t *restrict out, const int8_t *restrict code) {
    const vi byte = vi_splat(255);
    vi four[4];
    vi_turn(four, code, 16);
    for (int j = 0; j < 4; j++) {
        vi turned = vi_splat(0);
        for (int m = 0; m < 4; m++) turned = vi_or(turned, vi_shl(vi_and(vi_shr(four[m], 8 * j), byte), 8 * m));
        vi_store(out + 64 * j, turned);
    }
}

/* What belongs to a block's codes and their sums by 16. */
static void finish_few_row(nib_few_row *out, const int32_t sum[K / 16]) {
    out->minus_sum256 = 0;
    for (size_t i = 0; i < K / 16; i++) {
        out->whole16[i] = (int16_t)sum[i];
        out->minus_sum16[i] = -sum[i];
    }
    for (size_t i = 0; i < K / 32; i++) {
        const int32_t both = sum[2 * i] + sum[2 * i + 1];
        out->whole32[i] = 0;
        out->whole32[K / 32 + i] = (int16_t)both;
        out->scale[K / 32 + i] = 0;
        out->sum32[i] = (float)both * out->scale[i];
        out->sum32[K / 32 + i] = 0;
        out->minus_sum32[i] = -both;
        out->minus_sum256 -= both;
    }
}

/* The other orders of a block's codes, and the sums that belong to them. */
static void finish_row(nib_int_row *out, const int32_t sum[K / 16]) {
    const int8_t *code = out->in_order.code;
    for (size_t i = 0; i < K / 16; i++)
        memcpy(out->crossed + i / 2 % 2 * 128 + i % 2 * 64 + i / 4 * 16, code + 16 * i, 16);
    turn_codes(out->turned, code);
    int32_t sum4[K / 4];
    sum_fours(code, sum4);
    for (size_t i = 0; i < K / 8; i++) out->sum8[i] = (int16_t)(sum4[2 * i] + sum4[2 * i + 1]);
    for (size_t i = 0; i < K / 16; i++) out->sum16[i] = (float)sum[i] * out->in_order.scale[i / 2];
}

#if defined(__AVX512VBMI__)
/* first->paired and what belongs to it; second: NULL if there is none. */
static void pair_blocks(nib_int_row *first, const nib_few_row *second) {
    _Alignas(64) uint8_t order[64], lane[16][32]; /* of each 32 codes: all eights' first, all eights' second, .. */
    for (int i = 0; i < 64; i++) order[i] = (uint8_t)(i / 32 * 32 + i % 4 * 8 + i % 32 / 4);
    for (int b = 0; b < 2; b++) {
        const nib_few_row *block = b ? second : &first->in_order;
        for (int i = 0; i < 4; i++) {
            const int at = 4 * i + 2 * b;
            const vi codes = block ? vi_load(block->code + 64 * i) : vi_splat(0);
            vi_store(lane[at], _mm512_permutexvar_epi8(vi_load(order), codes));
            for (int k = 0; k < 2; k++) {
                first->paired_minus[at + k] = block ? 64 * block->minus_sum32[2 * i + k] : 0;
                first->paired_scale[at + k] = block ? block->scale[0] : 0;
            }
        }
    }
    for (int j = 0; j < 8; j += 4) {
        vi four[4];
        vi_turn(four, lane[0] + 4 * j, sizeof lane[0]);
        for (int i = 0; i < 4; i++) vi_store(first->paired + 64 * (j + i), four[i]);
    }
}
#endif

static void pack_row(nib_route route, nib_activation rounding, const float *x, uint32_t n_cols, size_t n_together,
                     void *row) {
    _Alignas(64) float copy[K];
    for (size_t k = 0; k < n_cols; k += K) {
        if (route == NIB_ROUTE_F32) {
            load_block(rounding, x, k, n_cols, (float *)row + k);
            continue;
        }
        if (route == NIB_ROUTE_BF16) {
            const float *block = find_block(NIB_ACT_F32, x, k, n_cols, copy);
            for (size_t i = 0; i < K; i++) ((uint16_t *)row)[k + i] = nib_f32_to_bf16(block[i]);
            continue;
        }
        nib_int_row *alone = n_together ? NULL : (nib_int_row *)row + k / K;
        nib_few_row *out = alone ? &alone->in_order : (nib_few_row *)row + k / K * n_together;
        int32_t sum[K / 16];
        const size_t begin = nib_block_begin(route, n_cols, k / K);
        quantize_block(route, find_block(NIB_ACT_F32, x, begin, n_cols, copy), out->code, out->scale, sum);
        forget_codes(out->code, sum, k - begin);
        finish_few_row(out, sum);
        if (!alone) continue;
        finish_row(alone, sum);
#if defined(__AVX512VBMI__)
        const bool is_second = k / K % 2;
        if (route == NIB_ROUTE_INT_256 && (is_second || k + K >= n_cols))
            pair_blocks(alone - is_second, is_second ? out : NULL);
#endif
    }
}

static int32_t larger(int32_t x, int32_t y) {
    return x > y ? x : y;
}

/* The first n_before columns count as zero. */
static void put_ints(nib_route route, const float block[K], size_t n_before, size_t token, nib_int_tile *tile) {
    _Alignas(64) int8_t code[K];
    int32_t sum[K / 16], magnitudes[K / 16], all = 0;
    float scale[K / 32];
    quantize_block(route, block, code, scale, sum);
    forget_codes(code, sum, n_before);
    sum_magnitudes(code, magnitudes);
    if (token == 0) tile->most16 = tile->most32 = 0;
#if defined(NIB_VEC_DP4)
    for (size_t i = 0; i < K / 4; i++) memcpy(tile->code[i][token], code + 4 * i, 4);
#else
    for (size_t i = 0; i < K; i++) tile->code[i / 4][token][i % 2][i / 2 % 2] = code[i];
#endif
    for (size_t i = 0; i < K / 32; i++) {
        const int32_t both = sum[2 * i] + sum[2 * i + 1];
        tile->scale[i][token] = scale[i];
        tile->sum16[i][token][0] = (int16_t)sum[2 * i];
        tile->sum16[i][token][1] = (int16_t)sum[2 * i + 1];
        tile->sum32[i / 2][token][i % 2] = (int16_t)both;
        tile->minus_sum16[2 * i][token] = -sum[2 * i];
        tile->minus_sum16[2 * i + 1][token] = -sum[2 * i + 1];
        tile->minus_sum32[i][token] = -both;
        all += both;
        tile->most16 = larger(tile->most16, larger(magnitudes[2 * i], magnitudes[2 * i + 1]));
        tile->most32 = larger(tile->most32, (magnitudes[2 * i] + magnitudes[2 * i + 1] + abs(both)) / 2);
    }
    tile->minus_sum256[0][token] = -all;
}

/* bf16 pairs of 256 columns. */
static void put_pairs(const float block[K], size_t token, uint32_t *tile) {
    uint32_t half[K];
    for (size_t i = 0; i < K; i++) half[i] = nib_f32_to_bf16(block[i]);
    for (size_t i = 0; i < K / 2; i++) tile[TOKENS * i + token] = half[2 * i] | half[2 * i + 1] << 16;
}

static void pack_tile(nib_route route, nib_activation rounding, const float *x, uint32_t n_tokens, uint32_t n_cols,
                      size_t index, void *tiles) {
    _Alignas(64) float copy[K];
    const size_t n_tiles = nib_tiles_of(n_tokens), first = nib_tile_begin(index, n_tokens);
    const size_t n = nib_tile_begin(index + 1, n_tokens) - first;
    const size_t tile_bytes = nib_tile_bytes(&NIB_AT_LEVEL(nib_pack_kernels_), route);
    for (size_t k = 0; k < n_cols; k += K) {
        const size_t begin = nib_block_begin(route, n_cols, k / K);
        void *tile = (char *)tiles + (k / K * n_tiles + index) * tile_bytes;
        for (size_t t = 0; t < n; t++) {
            const float *block = find_block(route == NIB_ROUTE_F32 ? rounding : NIB_ACT_F32, x + (first + t) * n_cols,
                                            begin, n_cols, copy);
            if (route == NIB_ROUTE_F32) {
                for (size_t i = 0; i < K; i++) ((float *)tile)[TOKENS * i + t] = block[i];
            } else if (route == NIB_ROUTE_BF16) {
                put_pairs(block, t, tile);
            } else {
                put_ints(route, block, k - begin, t, tile);
            }
        }
    }
}

const nib_pack_kernels NIB_AT_LEVEL(nib_pack_kernels_) = {
    .int_tile_bytes = sizeof(nib_int_tile), .tile = pack_tile, .row = pack_row};
