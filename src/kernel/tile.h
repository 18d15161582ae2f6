/* The register tiles that matrix products and attention share, and the transposition that feeds them. Included by files
 * that are compiled once per level. */
#ifndef NIB_KERNEL_TILE_H
#define NIB_KERNEL_TILE_H

#include "cpu/vec.h"

#define NIB_INLINE static inline __attribute__((always_inline))
#define NIB_UNROLL _Pragma("GCC unroll 16")

/* How many of the tile's 2 x 16 rows and of its 6 columns fit the registers at once. */
#if defined(NIB_VEC_512)
enum { NIB_SUB_VECTORS = 2, NIB_SUB_COLUMNS = 6 };
#elif defined(__AVX2__) || defined(NIB_VEC_NEON)
enum { NIB_SUB_VECTORS = 1, NIB_SUB_COLUMNS = 6 };
#else
enum { NIB_SUB_VECTORS = 1, NIB_SUB_COLUMNS = 2 };
#endif

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

/* c[column][row] += sum over k of a(k, column) * b[k][row], 6 columns and 32 rows; a(k, column) at
 * a[k * a_step + column * a_column]. The sum over k is complete before it is added to c, which is overwritten if first. */
NIB_INLINE void tile_f32(const float *a, size_t a_step, size_t a_column, const float *b, size_t b_stride, size_t n_k,
                         float *c, size_t c_stride, bool first) {
    for (int row = 0; row < 2; row += NIB_SUB_VECTORS)
        for (int column = 0; column < 6; column += NIB_SUB_COLUMNS) {
            vf sum[NIB_SUB_COLUMNS][NIB_SUB_VECTORS];
            NIB_UNROLL for (int j = 0; j < NIB_SUB_COLUMNS; j++) NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++)
                sum[j][v] = vf_zero();
            const float *left = a + (size_t)column * a_column, *right = b + 16 * row;
            for (size_t k = 0; k < n_k; k++, left += a_step, right += b_stride) {
                vf w[NIB_SUB_VECTORS];
                NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++) w[v] = vf_load(right + 16 * v);
                NIB_UNROLL for (int j = 0; j < NIB_SUB_COLUMNS; j++) {
                    const vf x = vf_splat(left[(size_t)j * a_column]);
                    NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++) sum[j][v] = vf_fma(w[v], x, sum[j][v]);
                }
            }
            NIB_UNROLL for (int j = 0; j < NIB_SUB_COLUMNS; j++) NIB_UNROLL for (int v = 0; v < NIB_SUB_VECTORS; v++) {
                float *to = c + (size_t)(column + j) * c_stride + 16 * (row + v);
                vf_store(to, first ? sum[j][v] : vf_add(vf_load(to), sum[j][v]));
            }
        }
}

#endif
