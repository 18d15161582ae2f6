/* Products of a few tokens for formats whose scales are floats, of 32 weights or of 16. Half a vector is 32 codes of one
 * group, or, crossed (impl.h), 16 of each of two groups, to which the next half adds 16 more. A format says how it reads the
 * scales of 256 weights and how those codes; NIB_DOT_HALVES or NIB_DOT_CROSSED makes its `dot` of that.
 *
 * Included by files that are compiled once per level. */
#ifndef NIB_FORMAT_DOT_HALVES_H
#define NIB_FORMAT_DOT_HALVES_H

#include "format/dot.h"

enum { DOT_HALVES = NIB_PANEL_K / 32 };

/* vh: 32 codes, one byte each, or 8 lanes; vhf: 8 floats. */
#if defined(NIB_NO_DOT)
typedef struct vh {
    int32_t lane[8];
} vh;
typedef struct vhf {
    float lane[8];
} vhf;
/* As with dot.h: names for the formats' readers, none of which is used. */
vh vh_zero(void);
vh vh_load(const void *p);
vh vh_join_16(const void *p, const void *q);
vh vh_join_16_4(const void *p, const void *q);
vh vh_low_halves(vh x);
vh vh_high_halves(vh x);
void vh_mix_8(vh x[2]);
vh vh_times(vh x, const uint16_t by[16]);
vh vh_triple(vh x);
vh vh_third(vh x);
vh vh_of_bytes(const void *p);
vh vh_look_up(const void *table, vh x);
vh vh_flip(vh x);
vh vh_set_bits(vh x, uint32_t bits, uint8_t value);
vh vh_spread_pairs(vh x);
vhf vhf_of_halves(const void *p, size_t stride, int repeat);
vh vh_splat_4(const void *p);
vh vh_down_by(vh x, int first, int step);
vh vh_join(vh x, int32_t x_mask, vh y, int32_t y_mask);
vhf vhf_of(vh x, int32_t offset);
vhf vhf_of_exponents(uint64_t bytes);
vhf vhf_of_bits(uint64_t bytes, int shift);
vhf vhf_times(vhf x, float y);
vhf vhf_splat(float x);
#else
typedef __m256i vh;

DOT_INLINE vh vh_zero(void) {
    return _mm256_setzero_si256();
}
DOT_INLINE vh vh_load(const void *p) {
    return _mm256_loadu_si256(p);
}
DOT_INLINE vh vh_low_halves(vh x) {
    return _mm256_and_si256(x, _mm256_set1_epi8(15));
}
DOT_INLINE vh vh_high_halves(vh x) {
    return vh_low_halves(_mm256_srli_epi16(x, 4));
}
/* 16 bytes from p, then 16 from q. */
DOT_INLINE vh vh_join_16(const void *p, const void *q) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(p)), _mm_loadu_si128(q), 1);
}
/* 16 bytes from p, then 4 from q four times. */
DOT_INLINE vh vh_join_16_4(const void *p, const void *q) {
    const __m128i four = _mm_set1_epi32((int32_t)nib_load_u32(q));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(p)), four, 1);
}
/* Every 8 bytes of x[0] and x[1] by turns: the first ones of each half to x[0], the others to x[1]. */
DOT_INLINE void vh_mix_8(vh x[2]) {
    const vh first = _mm256_unpacklo_epi64(x[0], x[1]);
    x[1] = _mm256_unpackhi_epi64(x[0], x[1]);
    x[0] = first;
}
/* Both bytes of each word times by, without what exceeds a byte. */
DOT_INLINE vh vh_times(vh x, const uint16_t by[16]) {
    const vh factor = vh_load(by), low = _mm256_set1_epi16(255);
    const vh odd = _mm256_slli_epi16(_mm256_mullo_epi16(_mm256_srli_epi16(x, 8), factor), 8);
    return _mm256_or_si256(_mm256_and_si256(_mm256_mullo_epi16(x, factor), low), odd);
}
/* Bytes times 3, without what exceeds a byte. */
DOT_INLINE vh vh_triple(vh x) {
    return _mm256_add_epi8(x, _mm256_add_epi8(x, x));
}
/* Which third of 0 .. 255 a byte is in: 0, 1 from 86 on, 2 from 171 on. */
DOT_INLINE vh vh_third(vh x) {
    const vh one = _mm256_set1_epi8(1);
    const vh first = _mm256_min_epu8(_mm256_subs_epu8(x, _mm256_set1_epi8(85)), one);
    return _mm256_add_epi8(first, _mm256_min_epu8(_mm256_subs_epu8(x, _mm256_set1_epi8((char)170)), one));
}
/* 8 bytes to lanes. */
DOT_INLINE vh vh_of_bytes(const void *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
}
/* Every byte b, which is below 16, becomes table[b]. */
DOT_INLINE vh vh_look_up(const void *table, vh x) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table)), x);
}
/* Signed bytes to unsigned ones with an offset of 128. */
DOT_INLINE vh vh_flip(vh x) {
    return _mm256_xor_si256(x, _mm256_set1_epi8((char)0x80));
}
/* Byte i gets value, whose bits it does not have, where bit i is set. */
DOT_INLINE vh vh_set_bits(vh x, uint32_t bits, uint8_t value) {
#if defined(NIB_VEC_512)
    return _mm256_mask_add_epi8(x, bits, x, _mm256_set1_epi8((char)value));
#else
    const vh which = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const vh bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const vh spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which), bit);
    return _mm256_or_si256(x, _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8((char)value)));
#endif
}
/* The four pairs of bits in the low byte of each lane become its bytes. */
DOT_INLINE vh vh_spread_pairs(vh x) {
    const vh half = _mm256_or_si256(x, _mm256_slli_epi32(x, 12)); /* nothing that counts overlaps */
    return _mm256_and_si256(_mm256_or_si256(half, _mm256_slli_epi32(half, 6)), _mm256_set1_epi8(3));
}

DOT_INLINE vhf vhf_splat(float x) {
    return _mm256_set1_ps(x);
}
DOT_INLINE vhf vhf_times(vhf x, float y) {
    return _mm256_mul_ps(x, _mm256_set1_ps(y));
}
/* Eight numbers in half precision, `stride` bytes apart, each `repeat` times. */
DOT_INLINE vhf vhf_of_halves(const void *p, size_t stride, int repeat) {
#if defined(NIB_VEC_512)
    const char *at = p;
    const short n = (short)(stride / 2);
    if (repeat == 1 && stride <= 24) { /* all or six lie within 128 bytes; beyond those the index means nothing */
        const __m128i index = _mm_setr_epi16(0, n, 2 * n, 3 * n, 4 * n, 5 * n, 6 * n, 7 * n);
        const vi found = _mm512_permutex2var_epi16(vi_load(at), _mm512_castsi128_si512(index), vi_load(at + 64));
        const __m128i halves = _mm512_castsi512_si128(found);
        if (7 * stride < 128) return _mm256_cvtph_ps(halves);
        const __m128i seven = _mm_insert_epi16(halves, nib_load_u16(at + 6 * stride), 6);
        return _mm256_cvtph_ps(_mm_insert_epi16(seven, nib_load_u16(at + 7 * stride), 7));
    }
#endif
    return _mm256_cvtph_ps(vs_halves(p, stride, repeat));
}
/* Four bytes at p in every lane. */
DOT_INLINE vh vh_splat_4(const void *p) {
    return _mm256_set1_epi32((int32_t)nib_load_u32(p));
}
/* Lane i down by first + step * i bits. */
DOT_INLINE vh vh_down_by(vh x, int first, int step) {
    const int f = first, s = step;
    return _mm256_srlv_epi32(
        x, _mm256_setr_epi32(f, f + s, f + 2 * s, f + 3 * s, f + 4 * s, f + 5 * s, f + 6 * s, f + 7 * s));
}
/* Bits of both, lane by lane. */
DOT_INLINE vh vh_join(vh x, int32_t x_mask, vh y, int32_t y_mask) {
    return _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi32(x_mask)),
                           _mm256_and_si256(y, _mm256_set1_epi32(y_mask)));
}
DOT_INLINE vhf vhf_of(vh x, int32_t offset) {
    return _mm256_cvtepi32_ps(_mm256_add_epi32(x, _mm256_set1_epi32(offset)));
}
/* 2^(byte - 128), the product of two powers of two that are no subnormal numbers. */
DOT_INLINE vhf vhf_of_exponents(uint64_t bytes) {
    const vh e = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
    const vh half = _mm256_srli_epi32(e, 1), bias = _mm256_set1_epi32(127 - 64);
    const vh low = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const vh high = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(e, half), bias), 23);
    return _mm256_mul_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
}
/* The low 7 bits of bytes moved up as the bits of floats; 0 where a byte is 0x7f. */
DOT_INLINE vhf vhf_of_bits(uint64_t bytes, int shift) {
    const vh all = _mm256_set1_epi32(0x7f);
    const vh x = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
    const vh low = _mm256_and_si256(x, all);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_andnot_si256(_mm256_cmpeq_epi32(x, all), low), shift));
}

/* sum + codes . activations */
DOT_INLINE vh vh_dp4(vh sum, vh code, vh activation) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(code), "vm"(activation));
    return sum;
#else
    const vh low = _mm256_set1_epi16(255), s = activation;
    const vh even = _mm256_madd_epi16(_mm256_and_si256(code, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const vh odd = _mm256_madd_epi16(_mm256_srli_epi16(code, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
}
/* codes . activations; no code is above `most`, a constant. */
DOT_INLINE vh vh_dot_4(vh code, vh activation, int most) {
#if !defined(__AVX512VNNI__)
    if (most <= 128) return _mm256_madd_epi16(_mm256_maddubs_epi16(code, activation), _mm256_set1_epi16(1));
#endif
    (void)most;
    return vh_dp4(vh_zero(), code, activation);
}
/* The same of two vectors together. */
DOT_INLINE vh vh_dot_8(const vh code[2], const int8_t *activation, int most) {
    const vh low = vh_load(activation), high = vh_load(activation + 64);
#if !defined(__AVX512VNNI__)
    if (most <= 64) {
        const vh both = _mm256_add_epi16(_mm256_maddubs_epi16(code[0], low), _mm256_maddubs_epi16(code[1], high));
        return _mm256_madd_epi16(both, _mm256_set1_epi16(1));
    }
#endif
    (void)most;
    return vh_dp4(vh_dp4(vh_zero(), code[0], low), code[1], high);
}
#endif

/* weight i = scale[i / group] * code - min[i / group]; groups of 32 have 8 of them. */
typedef struct dot_scales {
    vhf scale[2], min[2];
} dot_scales;

typedef void dot_read_scales(dot_scales *s, const void *src);
typedef vh dot_read_32(const void *src, int i); /* of weights 32 i .. */
/* Groups a and b of 32 weights: the first 16 of both, then the last. */
typedef void dot_read_two(vh code[2], const void *src, int a, int b);

#if !defined(NIB_NO_DOT)
/* Independent sums of a token: one alone would be waited for. */
#if defined(NIB_VEC_512)
enum { DOT_CHAINS = 4 };
#else
enum { DOT_CHAINS = 2 };
#endif

/* total[t] -= the minimums times the sums of activations; factor[t]: scales times those of token t, for groups of 16 in two
 * vectors. */
DOT_INLINE void dot_scale_halves(vhf factor[NIB_DOT_TOKENS][2], const dot_scales *s, const nib_int_row *row,
                                 size_t stride, size_t n_tokens, int group, vhf total[NIB_DOT_TOKENS][DOT_CHAINS]) {
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++, row += stride) {
        const vhf other = _mm256_load_ps(row->in_order.scale);
        if (group == 32) {
            factor[t][0] = _mm256_mul_ps(s->scale[0], other);
            total[t][0] = _mm256_fnmadd_ps(s->min[0], _mm256_load_ps(row->in_order.sum32), total[t][0]);
            continue;
        }
        DOT_UNROLL for (int i = 0; i < 2; i++) {
            const int k = 4 * i;
            const vh twice = _mm256_setr_epi32(k, k, k + 1, k + 1, k + 2, k + 2, k + 3, k + 3);
            factor[t][i] = _mm256_mul_ps(s->scale[i], _mm256_permutevar8x32_ps(other, twice));
            total[t][i] = _mm256_fnmadd_ps(s->min[i], _mm256_load_ps(row->sum16 + 8 * i), total[t][i]);
        }
    }
}
/* Lane a of x in one half, lane b in the other. Compilers would make the index anew for every row. */
DOT_INLINE vhf vhf_spread(vhf x, int a, int b) {
    vh index = _mm256_setr_epi32(a, a, a, a, b, b, b, b);
    __asm__("" : "+v"(index));
    return _mm256_permutevar8x32_ps(x, index);
}

/* total[t] += 256 weights times those of token t. */
DOT_INLINE void dot_halves_step(const void *src, dot_read_scales *scales, dot_read_32 *codes, const nib_int_row *row,
                                size_t stride, size_t n_tokens, int group, int most,
                                vhf total[NIB_DOT_TOKENS][DOT_CHAINS]) {
    vhf factor[NIB_DOT_TOKENS][2];
    dot_scales s;
    scales(&s, src);
    dot_scale_halves(factor, &s, row, stride, n_tokens, group, total);
    DOT_UNROLL for (int i = 0; i < DOT_HALVES; i++) {
        const vh code = codes(src, i);
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
            const vhf sum = _mm256_cvtepi32_ps(vh_dot_4(code, vh_load(row[t * stride].in_order.code + 32 * i), most));
            vhf *to = &total[t][i % DOT_CHAINS];
            *to = _mm256_fmadd_ps(sum, vhf_spread(factor[t][0], i, i), *to);
        }
    }
}
/* The same for codes in the order of crossed activations. */
DOT_INLINE void dot_crossed_step(const void *src, dot_read_scales *scales, dot_read_two *codes, const nib_int_row *row,
                                 size_t stride, size_t n_tokens, int group, int most,
                                 vhf total[NIB_DOT_TOKENS][DOT_CHAINS]) {
    vhf factor[NIB_DOT_TOKENS][2];
    dot_scales s;
    scales(&s, src);
    dot_scale_halves(factor, &s, row, stride, n_tokens, group, total);
    DOT_UNROLL for (int i = 0; i < DOT_HALVES / 2; i++) {
        const int a = i / 2 + i % 2 * 4, b = a + 2;
        vh code[2];
        codes(code, src, a, b);
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
            const int8_t *x = row[t * stride].crossed + i / 2 * 128 + i % 2 * 32;
            if (group == 32) {
                vhf *to = &total[t][(i + 1) % DOT_CHAINS];
                *to = _mm256_fmadd_ps(_mm256_cvtepi32_ps(vh_dot_8(code, x, most)), vhf_spread(factor[t][0], a, b), *to);
                continue;
            }
            DOT_UNROLL for (int h = 0; h < 2; h++) {
                const vhf by = vhf_spread(factor[t][a / 4], 2 * a % 8 + h, 2 * b % 8 + h);
                vhf *to = &total[t][(2 * i + h) % DOT_CHAINS];
                *to = _mm256_fmadd_ps(_mm256_cvtepi32_ps(vh_dot_4(code[h], vh_load(x + 64 * h), most)), by, *to);
            }
        }
    }
}

typedef void dot_halves_fn(const void *src, const nib_int_row *row, size_t stride, size_t n_tokens,
                           vhf total[NIB_DOT_TOKENS][DOT_CHAINS]);
/* Rows: `bytes` hold 256 weights; what is left at the end is read as nib_last_block says, and a row of less is copied and
 * followed by zeros. Everything but the task is a constant at every call. */
DOT_INLINE void dot_rows_halves(const nib_dot_task *task, size_t n_tokens, dot_halves_fn *step, size_t bytes) {
    const size_t n_whole = task->n_cols / NIB_PANEL_K, rest = task->n_cols % NIB_PANEL_K;
    const size_t stride = n_whole + (rest > 0);
    char tail[2 * NIB_PANEL_K] = {0};
    dot_rows rows;
    for (size_t r = 0; r < task->n_rows; r++) {
        const char *at = (const char *)task->weights + r * task->row_bytes;
        const nib_int_row *row = task->packed;
        vhf total[NIB_DOT_TOKENS][DOT_CHAINS];
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) DOT_UNROLL for (size_t c = 0; c < DOT_CHAINS; c++)
            total[t][c] = _mm256_setzero_ps();
        for (size_t b = 0; b < n_whole; b++, at += bytes, row++) {
            dot_fetch(at, bytes);
            step(at, row, stride, n_tokens, total);
        }
        if (rest) {
            dot_fetch(at, rest * bytes / NIB_PANEL_K);
            if (!n_whole) memcpy(tail, at, task->row_bytes);
            step(n_whole ? at + rest * bytes / NIB_PANEL_K - bytes : tail, row, stride, n_tokens, total);
        }
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
            vhf sum = _mm256_add_ps(total[t][0], total[t][1]);
            if (DOT_CHAINS == 4)
                sum = _mm256_add_ps(sum, _mm256_add_ps(total[t][2 % DOT_CHAINS], total[t][3 % DOT_CHAINS]));
            _mm256_store_ps(rows.lanes[t][r % NIB_LANES], sum);
        }
        dot_put(task, &rows, r, n_tokens, 8);
    }
}
#endif

/* The `dot` of a format: name; how it reads scales and codes, and how many bytes 256 weights are; weights per scale (of
 * halves 32); the largest code. */
#if defined(NIB_NO_DOT)
#define NIB_DOT_HALVES(...)
#define NIB_DOT_CROSSED(...)
#else
#define NIB_DOT_STEPS(name, kind, scales, codes, bytes, group, most)                                     \
    DOT_INLINE void name##_step(const void *src, const nib_int_row *row, size_t stride, size_t n_tokens, \
                                vhf total[NIB_DOT_TOKENS][DOT_CHAINS]) {                                 \
        kind(src, scales, codes, row, stride, n_tokens, group, most, total);                             \
    }                                                                                                    \
    static void name(const nib_format *format, const nib_dot_task *task) {                               \
        (void)format;                                                                                    \
        NIB_DOT_EACH(task, n, dot_rows_halves(task, n, name##_step, bytes))                              \
    }
#define NIB_DOT_HALVES(name, scales, codes, bytes, most) \
    NIB_DOT_STEPS(name, dot_halves_step, scales, codes, bytes, 32, most)
#define NIB_DOT_CROSSED(name, scales, codes, bytes, group, most) \
    NIB_DOT_STEPS(name, dot_crossed_step, scales, codes, bytes, group, most)
#endif

#endif
