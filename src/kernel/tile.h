/* The register tiles that matrix products and attention share, and the transposition that feeds them. Included by files
 * that are compiled once per level. */
#ifndef NIB_KERNEL_TILE_H
#define NIB_KERNEL_TILE_H

#include "cpu/vec.h"
#include "kernel/level.h"

#define NIB_INLINE static inline __attribute__((always_inline))

/* How many of the tile's 2 x 16 rows and of its 6 columns fit the registers at once. */
#if defined(NIB_VEC_512)
enum { NIB_SUB_VECTORS = 2, NIB_SUB_COLUMNS = 6 };
#elif defined(__AVX2__) || defined(NIB_VEC_NEON)
enum { NIB_SUB_VECTORS = 1, NIB_SUB_COLUMNS = 6 };
#else
enum { NIB_SUB_VECTORS = 1, NIB_SUB_COLUMNS = 2 };
#endif

/* Six tokens' activations, 256 columns, as integers, and the sums of the codes for the weights' minimums and centres.
 * Where multiplying bytes takes more than one instruction, codes are kept as halves of 16 bits: even bytes, odd bytes. */
typedef struct nib_int_tile {
#if defined(NIB_VEC_DP4)
    _Alignas(64) int8_t code[NIB_PANEL_K / 4][NIB_TILE_TOKENS][4];
#else
    _Alignas(64) int16_t code[NIB_PANEL_K / 4][NIB_TILE_TOKENS][2][2];
#endif
    float scale[NIB_PANEL_K / 32][NIB_TILE_TOKENS]; /* Q8_256: all rows the same */
    int16_t sum16[NIB_PANEL_K / 32][NIB_TILE_TOKENS][2], sum32[NIB_PANEL_K / 64][NIB_TILE_TOKENS][2];
    int32_t minus_sum16[NIB_PANEL_K / 16][NIB_TILE_TOKENS], minus_sum32[NIB_PANEL_K / 32][NIB_TILE_TOKENS];
    int32_t minus_sum256[1][NIB_TILE_TOKENS];
    /* The largest of all sums of magnitudes over 16 columns, and over 32 columns of one sign: times the largest code they
     * bound a product's sums, whose codes have both signs in the first case and one in the second. */
    int32_t most16, most32;
} nib_int_tile;

/* dst[j][i] = src[i][j], 16 x 16 words of 32 bits; strides in bytes. */
NIB_INLINE void transpose_16x16(const void *src, size_t src_stride, void *dst, size_t dst_stride) {
#if defined(NIB_VEC_512)
    __m512i r[16], t[16];
    NIB_UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512((const char *)src + (size_t)i * src_stride);
    NIB_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    NIB_UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    NIB_UNROLL for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88),
                      b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd),
                      d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        char *to = (char *)dst + (size_t)j * dst_stride;
        _mm512_storeu_si512(to, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(to + 4 * dst_stride, _mm512_shuffle_i32x4(c, d, 0x88));
        _mm512_storeu_si512(to + 8 * dst_stride, _mm512_shuffle_i32x4(a, b, 0xdd));
        _mm512_storeu_si512(to + 12 * dst_stride, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
#else
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < 16; j++)
            memcpy((char *)dst + j * dst_stride + 4 * i, (const char *)src + i * src_stride + 4 * j, 4);
#endif
}

NIB_INLINE void tile_f32_part(size_t n, const float *a, size_t a_step, size_t a_column, const float *b, size_t b_stride,
                              size_t n_k, float *c, size_t c_stride, bool first) {
    vf sum[NIB_SUB_COLUMNS][NIB_SUB_VECTORS];
    NIB_UNROLL for (size_t j = 0; j < n; j++) NIB_UNROLL for (size_t v = 0; v < NIB_SUB_VECTORS; v++) sum[j][v] =
        vf_zero();
    for (size_t k = 0; k < n_k; k++, a += a_step, b += b_stride) {
        vf w[NIB_SUB_VECTORS];
        NIB_UNROLL for (size_t v = 0; v < NIB_SUB_VECTORS; v++) w[v] = vf_load(b + 16 * v);
        NIB_UNROLL for (size_t j = 0; j < n; j++) {
            const vf x = vf_splat(a[j * a_column]);
            NIB_UNROLL for (size_t v = 0; v < NIB_SUB_VECTORS; v++) sum[j][v] = vf_fma(w[v], x, sum[j][v]);
        }
    }
    NIB_UNROLL for (size_t j = 0; j < n; j++) NIB_UNROLL for (size_t v = 0; v < NIB_SUB_VECTORS; v++) {
        float *to = c + j * c_stride + 16 * v;
        vf_store(to, first ? sum[j][v] : vf_add(vf_load(to), sum[j][v]));
    }
}

/* c[column][row] += sum over k of a(k, column) * b[k][row], n_columns (a constant) and 32 rows; a(k, column) at
 * a[k * a_step + column * a_column]. The sum over k is complete before it is added to c, which is overwritten if first. */
NIB_INLINE void tile_f32_columns(size_t n_columns, const float *a, size_t a_step, size_t a_column, const float *b,
                                 size_t b_stride, size_t n_k, float *c, size_t c_stride, bool first) {
    const size_t whole = n_columns / NIB_SUB_COLUMNS * NIB_SUB_COLUMNS, rest = n_columns - whole;
    for (size_t row = 0; row < 2; row += NIB_SUB_VECTORS) {
        for (size_t j = 0; j < whole; j += NIB_SUB_COLUMNS)
            tile_f32_part(NIB_SUB_COLUMNS, a + j * a_column, a_step, a_column, b + 16 * row, b_stride, n_k,
                          c + j * c_stride + 16 * row, c_stride, first);
        if (rest)
            tile_f32_part(rest, a + whole * a_column, a_step, a_column, b + 16 * row, b_stride, n_k,
                          c + whole * c_stride + 16 * row, c_stride, first);
    }
}

#endif
