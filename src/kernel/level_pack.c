/* Activations on their way into a matrix product: rounded as the weights' format wants them, and laid out as the panels'
 * register tiles (level_gemm.c) or the rows' vectors (level_gemv.c) read them. */
#include "kernel/level.h"
#include "kernel/tile.h"

enum { K = NIB_PANEL_K, TOKENS = NIB_TILE_TOKENS };

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
        for (size_t i = 0; i < K / 16; i++) {
            out->whole16[i] = (int16_t)out->sum16[i];
            out->whole32[i] = i < K / 32 ? 0 : (int16_t)out->sum32[i - K / 32];
        }
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

extern const nib_pack_kernels NIB_AT_LEVEL(nib_pack_kernels_);
const nib_pack_kernels NIB_AT_LEVEL(nib_pack_kernels_) = {.tile = pack_tile, .row = pack_row};
