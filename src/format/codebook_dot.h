/* Points of codebooks as vectors, for the products of a few tokens and for unpack: the tables are looked up in
 * registers where they fit there (the halves of points of 4, packed into bytes), else in memory. Signs are added as the
 * bits of masks; codes are `offset` + value or - value. Only for levels with byte permutations. */
#ifndef NIB_FORMAT_CODEBOOK_DOT_H
#define NIB_FORMAT_CODEBOOK_DOT_H

#include "format/codebook.h"
#include "format/dot.h"

#if defined(__AVX512VBMI__)
#define NIB_CODEBOOK_DOT 1

/* Seven signs and the eighth that makes their number even. */
#define SIGNS_1(n)       ((n) | (0x6996 >> (((n) ^ (n) >> 4) & 15) & 1) << 7)
#define SIGNS_4(n)       SIGNS_1(n), SIGNS_1((n) + 1), SIGNS_1((n) + 2), SIGNS_1((n) + 3)
#define SIGNS_16(n)      SIGNS_4(n), SIGNS_4((n) + 4), SIGNS_4((n) + 8), SIGNS_4((n) + 12)
static const _Alignas(64) uint8_t EVEN_SIGNS[128] = {SIGNS_16(0),  SIGNS_16(16), SIGNS_16(32), SIGNS_16(48),
                                                     SIGNS_16(64), SIGNS_16(80), SIGNS_16(96), SIGNS_16(112)};

/* Bits 0-6 of bytes are seven signs: all eight. */
DOT_INLINE vi signs_of_seven(vi sevens) {
    return _mm512_permutex2var_epi8(vi_load(EVEN_SIGNS), sevens, vi_load(EVEN_SIGNS + 64));
}
/* The masks of 32 bytes of such signs. */
DOT_INLINE void signs_of_sevens(uint64_t sign[DOT_PARTS], __m256i sevens) {
    _mm256_storeu_si256((void *)sign, _mm512_castsi512_si256(signs_of_seven(_mm512_castsi256_si512(sevens))));
}

/* offset + value becomes offset - value where sign has a bit. */
DOT_INLINE vi put_sign(vi code, uint64_t sign, int offset) {
    return _mm512_mask_sub_epi8(code, sign, vi_of_byte((uint8_t)(2 * offset)), code);
}

/* table[index + 256 high] of 256 or 512 bytes. */
DOT_INLINE vi natural_256(const uint8_t *table, vi index) {
    const vi low = _mm512_permutex2var_epi8(vi_load(table), index, vi_load(table + 64));
    const vi high = _mm512_permutex2var_epi8(vi_load(table + 128), index, vi_load(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}
DOT_INLINE vi natural_512(const uint8_t *table, vi index, uint64_t high) {
    return _mm512_mask_blend_epi8(high, natural_256(table, index), natural_256(table + 256, index));
}

/* 64 points of 4: byte k of first and second holds two levels of point k each. Lanes of 4 points are exchanged so that
 * interleaving within quarters of vectors leaves all in natural order. codes: 16 entries by level */
DOT_INLINE void spread_points(vi code[DOT_PARTS], vi first, vi second, const uint8_t *codes) {
    const vi turn = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0), low = vi_of_byte(15);
    first = _mm512_permutexvar_epi32(turn, first);
    second = _mm512_permutexvar_epi32(turn, second);
    const vi pairs[2] = {_mm512_unpacklo_epi8(first, second), _mm512_unpackhi_epi8(first, second)};
    for (int i = 0; i < 2; i++) {
        const vi even = vi_and(pairs[i], low), odd = vi_and(_mm512_srli_epi16(pairs[i], 4), low);
        code[2 * i] = vi_look_up(codes, _mm512_unpacklo_epi8(even, odd));
        code[2 * i + 1] = vi_look_up(codes, _mm512_unpackhi_epi8(even, odd));
    }
}

DOT_INLINE __m128i load_two(const int8_t *a, const int8_t *b) {
    return _mm_set_epi64x((long long)nib_load_u64((const uint8_t *)b), (long long)nib_load_u64((const uint8_t *)a));
}
/* Eight points of 8, values as they are in the book. */
DOT_INLINE vi points_of_8(const int8_t *value, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f,
                          unsigned g, unsigned h) {
    const int8_t *v = value;
    const __m128i ab = load_two(v + 8 * a, v + 8 * b), cd = load_two(v + 8 * c, v + 8 * d);
    const __m128i ef = load_two(v + 8 * e, v + 8 * f), gh = load_two(v + 8 * g, v + 8 * h);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(cd, ab)), _mm256_set_m128i(gh, ef), 1);
}
/* An index: eight low bits, and above them the bits from `first` on that mask leaves. (By way of vectors and memory this
 * would be slower: loads of a few bytes wait until a wide store is through.) */
DOT_INLINE unsigned index_of(uint8_t low, uint64_t bits, unsigned first, unsigned mask) {
    return low | ((unsigned)(first < 8 ? bits << (8 - first) : bits >> (first - 8)) & mask << 8);
}

/* offset + value, or offset - value where sign has a bit. */
DOT_INLINE vi with_sign(vi value, uint64_t sign, int offset) {
    const vi middle = vi_of_byte((uint8_t)offset);
    return _mm512_mask_sub_epi8(_mm512_add_epi8(middle, value), sign, middle, value);
}

/* 16 scales of 4 bits, twice plus one. */
DOT_INLINE vs scales_of_nibbles(const uint8_t packed[8]) {
    const __m128i x = _mm_cvtsi64_si128((long long)nib_load_u64(packed)), low = _mm_set1_epi8(15);
    const words_16 code = (words_16)_mm_unpacklo_epi8(_mm_and_si128(x, low), _mm_and_si128(_mm_srli_epi16(x, 4), low));
    return vs_of_bytes((code << 1) | EACH_BYTE(1), 0);
}

/* Lanes of 64 bits, in turn first and second, both plus `step` for each two before. */
DOT_INLINE vi in_steps(uint64_t first, uint64_t second, uint64_t step) {
    return _mm512_set_epi64((long long)(second + 3 * step), (long long)(first + 3 * step),
                            (long long)(second + 2 * step), (long long)(first + 2 * step), (long long)(second + step),
                            (long long)(first + step), (long long)second, (long long)first);
}
/* Byte k of each 64 bits becomes the eight bits from `from` byte k on, in a circle. */
DOT_INLINE vi cut(vi from, vi x) {
    return _mm512_multishift_epi64_epi8(from, x);
}
/* A constant that stays in its register: compilers think that making it again is free. */
DOT_INLINE vi kept(vi x) {
    __asm__("" : "+v"(x));
    return x;
}
/* Made here and not where the compiler sees fit: its order brings lookups and products together again. */
DOT_INLINE vi in_order(vi x) {
    __asm__ volatile("" : "+v"(x));
    return x;
}

/* x & mask | y & ~mask */
DOT_INLINE vi choose_bits(vi mask, vi x, vi y) {
    return _mm512_ternarylogic_epi32(mask, x, y, 0xca);
}
/* x | y & mask */
DOT_INLINE vi or_and(vi x, vi y, vi mask) {
    return _mm512_ternarylogic_epi32(x, y, mask, 0xf8);
}
DOT_INLINE vi words_down(vi x, unsigned n) {
    return _mm512_srli_epi16(x, n);
}
DOT_INLINE vi words_up(vi x, unsigned n) {
    return _mm512_slli_epi16(x, n);
}
/* Eight numbers of 32 bits as lanes of 64. */
DOT_INLINE vi eight_dwords(const void *p) {
    return _mm512_cvtepu32_epi64(_mm256_loadu_si256(p));
}

DOT_INLINE vi load_32(const void *p) {
    return _mm512_castsi256_si512(_mm256_loadu_si256(p));
}
DOT_INLINE vi load_16(const void *p) {
    return _mm512_castsi128_si512(_mm_loadu_si128(p));
}
/* 32 bytes of each of two blocks, eight by eight in turn. */
DOT_INLINE vi of_two_blocks(const void *first, const void *second) {
    return _mm512_permutex2var_epi64(load_32(first), _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), load_32(second));
}

/* A half that is followed by more: read in one go. */
DOT_INLINE float half_before(const uint8_t *src) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_loadl_epi64((const void *)src)));
}

/* A half's bits as those of a float 2^112 times smaller; what is no number stays none. Done by units that have no vectors. */
DOT_INLINE uint32_t float_of_half(unsigned half) {
    const uint32_t bits = (uint32_t)((int32_t)(half << 16) >> 3) & 0x8fffe000u;
    return (half & 0x7c00u) == 0x7c00u ? bits | 0x7f800000u : bits;
}
/* x times a float that is in memory: it must not come by way of a vector register, which takes two more operations. */
DOT_INLINE vf times_bits(vf x, uint32_t bits) {
    vf product;
    __asm__("vmulps %2%{1to16%}, %1, %0" : "=v"(product) : "v"(x), "m"(bits));
    return product;
}

/* Two blocks' d in the lanes of each. */
DOT_INLINE vf d_of_pair(const uint8_t a[2], const uint8_t b[2]) {
    const __m256i one = _mm256_set1_epi16((short)nib_load_u16(a));
    return _mm512_cvtph_ps(_mm256_mask_set1_epi16(one, 0xcccc, (short)nib_load_u16(b)));
}

/* 64 +- 8, 25, 43 by level (two bits) and sign above it. */
#define PAIR_CODE(level, sign) (uint8_t)(64 + ((sign) ? -1 : 1) * ((level) == 0 ? 8 : (level) == 1 ? 25 : 43))
#define PAIR_CODES(at)                                                                                                \
    {                                                                                                                 \
        at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10), at(11), at(12), at(13), at(14), \
            at(15)                                                                                                    \
    }
#define SIGN_AT_2(i) PAIR_CODE((i)&3, (i) >> 2 & 1)
static const uint8_t PAIRS_2[16] = PAIR_CODES(SIGN_AT_2);

/* `unpack` of a format with this book, from read_256, which reads one block in natural order. */
#define NIB_BOOK_UNPACK(book, group)                                                                            \
    static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) { \
        dot_whole w;                                                                                            \
        (void)format, (void)n; /* n is one whole block */                                                       \
        nib_codebook_to_decode(book);                                                                           \
        read_256(&w, src);                                                                                      \
        dot_write_codes(out, &w, group);                                                                        \
    }
#define NIB_BOOK_DOT_OF(name) name
#else
#define NIB_BOOK_DOT_OF(name) NULL
#endif

#endif
