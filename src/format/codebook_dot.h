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

/* Byte i is value where bit i is set, else 0. */
DOT_INLINE vi vi_of_bits(uint64_t bits, uint8_t value) {
    return _mm512_maskz_set1_epi8(bits, (char)value);
}

/* Bits 0-6 of each byte are seven signs; the masks of all 256. */
DOT_INLINE void signs_of_sevens(uint64_t sign[DOT_PARTS], __m256i sevens) {
    const vi all =
        _mm512_permutex2var_epi8(vi_load(EVEN_SIGNS), _mm512_castsi256_si512(sevens), vi_load(EVEN_SIGNS + 64));
    _mm256_storeu_si256((void *)sign, _mm512_castsi512_si256(all));
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

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Products in the turned order of nib_int_row: lane i is about weights 16 i .. 16 i + 15 of 256, its byte m about weights
 * 4 m .. 4 m + 3 of these, so that one chain of dot products sums up what shares a scale, and nothing is spread or turned.
 *
 *   indices ->  levels     some blocks at once, in step with the products of the blocks before: both wait for other units
 *   signs, scales          as each block's turn comes
 *   levels, signs -> codes -> products
 *
 * Levels of `vectors` times 64 points on their way: first and second begin as the points' indices (eight low bits) and end
 * with a half of the points' levels each. Looking up goes by quarters, 128 points at a time. */
enum { MOST_VECTORS = 4 };
typedef struct dot_levels {
    vi first[MOST_VECTORS], second[MOST_VECTORS];
    vi which[MOST_VECTORS], quarter; /* the points' quarters, and the one whose turn it is; of two, the index says it */
} dot_levels;

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

/* Signs from sevens, which stand twice: the lower time their lower half is right, the upper time it must be the upper. */
#define UPPER_1(n)  (SIGNS_1(n) >> 4)
#define UPPER_4(n)  UPPER_1(n), UPPER_1((n) + 1), UPPER_1((n) + 2), UPPER_1((n) + 3)
#define UPPER_16(n) UPPER_4(n), UPPER_4((n) + 4), UPPER_4((n) + 8), UPPER_4((n) + 12)
static const _Alignas(64) uint8_t UPPER_SIGNS[128] = {UPPER_16(0),  UPPER_16(16), UPPER_16(32), UPPER_16(48),
                                                      UPPER_16(64), UPPER_16(80), UPPER_16(96), UPPER_16(112)};
DOT_INLINE vi signs_of_twice_seven(vi sevens) {
    __mmask64 upper_times = 0xaaaaaaaaaaaaaaaa;
    __asm__("" : "+Yk"(upper_times)); /* as kept */
    const vi upper =
        _mm512_maskz_permutex2var_epi8(upper_times, vi_load(UPPER_SIGNS), sevens, vi_load(UPPER_SIGNS + 64));
    return vi_and_or(sevens, kept(_mm512_set1_epi16(15)), upper);
}

/* Codes of scales, in bits 1 .. n of lanes (mask), as scales: twice plus one. */
DOT_INLINE vi scales_of(vi code, int mask) {
    return vi_and_or(code, kept(vi_splat(mask)), kept(vi_splat(1)));
}

/* Vector n of indices: eight low bits, and from bit 1 on those above, with anything further up. */
DOT_INLINE void begin_look_up(dot_levels *x, int n, vi index, vi high, int n_points) {
    x->first[n] = x->second[n] = index;
    x->which[n] = index;
    if (n_points == 256) return;
    x->which[n] = choose_bits(kept(vi_of_byte(1)), words_down(index, 7), high);
    x->which[n] = vi_and(x->which[n], kept(vi_of_byte((uint8_t)(n_points / 128 - 1))));
}
/* The next n_quarters, where table points to. What is elsewhere stays an index. Tables are loaded once for all vectors,
 * which compilers would not do: loads are half of the work. */
DOT_INLINE void look_up_next(dot_levels *x, int n_vectors, int n_quarters, const uint8_t *table, int n_points) {
    DOT_UNROLL for (int q = 0; q < n_quarters; q++, table += 128) {
        const vi a = kept(vi_load(table)), b = kept(vi_load(table + 64));
        const vi c = kept(vi_load(table + n_points)), d = kept(vi_load(table + n_points + 64));
        DOT_UNROLL for (int i = 0; i < n_vectors; i++) {
            __mmask64 is_here;
            if (n_points > 256) {
                is_here = _mm512_cmpeq_epi8_mask(x->which[i], x->quarter);
            } else {
                const __mmask64 odd = _mm512_movepi8_mask(x->which[i]);
                is_here = q ? odd : _knot_mask64(odd);
            }
            x->first[i] = _mm512_mask2_permutex2var_epi8(a, x->first[i], is_here, b);
            x->second[i] = _mm512_mask2_permutex2var_epi8(c, x->second[i], is_here, d);
        }
        x->quarter = _mm512_add_epi8(x->quarter, kept(vi_of_byte(1)));
    }
}
/* A half that is followed by more: read in one go. */
DOT_INLINE float half_before(const uint8_t *src) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_loadl_epi64((const void *)src)));
}

/* Codes of points of 4: two levels of 3 bits a byte. codes: 8 without sign, 8 with */
DOT_INLINE void codes_of_4(vi code[DOT_PARTS], const vi level[2], vi sign, const uint8_t *codes) {
    const vi bit = kept(vi_of_byte(8));
    code[0] = vi_look_up(codes, or_and(level[0], words_up(sign, 3), bit));
    code[1] = vi_look_up(codes, or_and(words_down(level[0], 4), words_up(sign, 2), bit));
    code[2] = vi_look_up(codes, or_and(level[1], words_up(sign, 1), bit));
    code[3] = vi_look_up(codes, or_and(words_down(level[1], 4), sign, bit));
}

/* 64 +- 8, 25, 43 at places that have the level and the sign at two of the four bits each. */
#define PAIR_CODE(level, sign) (uint8_t)(64 + ((sign) ? -1 : 1) * ((level) == 0 ? 8 : (level) == 1 ? 25 : 43))
#define PAIR_CODES(at)                                                                                                \
    {                                                                                                                 \
        at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10), at(11), at(12), at(13), at(14), \
            at(15)                                                                                                    \
    }
#define SIGN_AT_2(i) PAIR_CODE((i)&3, (i) >> 2 & 1)
#define SIGN_AT_1(i) PAIR_CODE((i) >> 2, (i) >> 1 & 1)
#define SIGN_AT_3(i) PAIR_CODE((i)&3, (i) >> 3)
static const uint8_t PAIRS_2[16] = PAIR_CODES(SIGN_AT_2), PAIRS_1[16] = PAIR_CODES(SIGN_AT_1),
                     PAIRS_3[16] = PAIR_CODES(SIGN_AT_3);

/* Codes of points of 8 with signs. */
DOT_INLINE void codes_of_pairs(vi code[DOT_PARTS], const vi *level, vi sign) {
    const vi low = kept(vi_of_byte(3)), high = kept(vi_of_byte(12)), x = *level;
    code[0] = vi_look_up(PAIRS_2, choose_bits(low, x, words_up(sign, 2)));
    code[1] = vi_look_up(PAIRS_1, choose_bits(high, x, sign));
    code[2] = vi_look_up(PAIRS_2, choose_bits(low, words_down(x, 4), sign));
    code[3] = vi_look_up(PAIRS_3, choose_bits(low, words_down(x, 6), sign));
}

/* What a format says: its indices; the rest of a block: signs (byte m has those of weights 4 m .. 4 m + 3 in its lowest four
 * bits) and scales, times d; how levels and signs become codes, `offset` above the values. */
typedef void look_up_blocks(dot_levels *x, const void *src);
typedef void read_rest(vi *sign, vi *scale, float *d, const void *src);
typedef void codes_of(vi code[DOT_PARTS], const vi *level, vi sign);

/* total[t] += 256 weights times those of token t; tokens are `stride` blocks apart. */
DOT_INLINE void dot_points_step(const vi code[DOT_PARTS], vi scale, float d, const nib_int_row *row, size_t stride,
                                size_t n_tokens, int offset, vf total[NIB_DOT_TOKENS]) {
    const vi minus = vi_splat(-offset & 0xffff);
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++, row += stride) {
        vi sum = vi_dp2(vi_splat(0), minus, vi_load(row->turned_sum));
        DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) sum = vi_dp4(sum, code[p], vi_load(row->turned + 64 * p));
        total[t] = vf_fma(vi_to_f(vi_mul(sum, scale)), vf_splat(d * row->scale[0]), total[t]);
    }
}

/* Rows are one sequence of blocks, which are taken at_once: `vectors` of 64 points. Where fewer are left, some before are
 * read again; fewer in all are copied behind zeros. Everything but task and plane is a constant at every call. */
DOT_INLINE void dot_rows_points(const nib_dot_task *task, size_t n_tokens, look_up_blocks *look_up, read_rest *rest,
                                codes_of *codes, size_t bytes, int point, int n_points, int vectors,
                                const uint8_t *plane, int offset) {
    enum { MOST_BYTES = 2 * MOST_VECTORS * 82 };
    const size_t n_blocks = task->n_cols / NIB_PANEL_K, n_all = n_blocks * task->n_rows;
    const size_t at_once = (size_t)vectors * (size_t)point / 4;
    const int all_quarters = n_points / 128;
    const int n_quarters = n_points > 256 ? all_quarters / (int)at_once : 0; /* with each block */
    const int n_before = all_quarters - n_quarters * (int)at_once;
    char copy[MOST_BYTES] = {0};
    const char *here = task->weights;
    if (n_all < at_once) {
        memcpy(copy + (at_once - n_all) * bytes, here, n_all * bytes);
        here = copy;
    }
    dot_levels next;
    look_up(&next, here);
    next.quarter = vi_splat(0);
    look_up_next(&next, vectors, all_quarters, plane, n_points);
    const nib_int_row *row = task->packed;
    dot_rows rows;
    vf total[NIB_DOT_TOKENS];
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
    for (size_t left = n_all, b = 0, r = 0; left > 0;) {
        const size_t n_again = left < at_once ? at_once - left : 0;
        left -= at_once - n_again;
        const char *then = here + (left < at_once ? left : at_once) * bytes;
        vi level[2 * MOST_VECTORS];
        for (int i = 0; i < vectors; i++) {
            const vi first = next.first[i], second = next.second[i];
            level[2 * i] = point == 4 ? first : _mm512_unpacklo_epi8(first, second);
            level[2 * i + 1] = point == 4 ? second : _mm512_unpackhi_epi8(first, second);
        }
        dot_fetch(here, at_once * bytes);
        look_up(&next, then);
        next.quarter = vi_splat(0);
        look_up_next(&next, vectors, n_before, plane, n_points);
        const uint8_t *table = plane + 128 * n_before;
        for (size_t i = 0; i < at_once; i++, table += 128 * n_quarters) {
            vi sign, scale, code[DOT_PARTS];
            float d;
            look_up_next(&next, vectors, n_quarters, table, n_points);
            if (i < n_again) continue;
            rest(&sign, &scale, &d, here + i * bytes);
            codes(code, level + (point == 4 ? 2 * i : i), sign);
            dot_points_step(code, scale, d, row++, n_blocks, n_tokens, offset, total);
            if (++b < n_blocks) continue;
            dot_store(task, &rows, r++, n_tokens, total);
            DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
            row = task->packed;
            b = 0;
        }
        here = then;
    }
}

/* `dot` and `unpack` of a format with this book, from look_up, VECTORS, rest, codes and OFFSET (see above), and from read_256,
 * which reads one block in natural order. */
#define NIB_BOOK_DOT(book, point, n_points, group, codes)                                                       \
    static void dot(const nib_format *format, const nib_dot_task *task) {                                       \
        (void)format;                                                                                           \
        nib_codebook_to_decode(book);                                                                           \
        NIB_DOT_EACH(task, n,                                                                                   \
                     dot_rows_points(task, n, look_up, rest, codes, sizeof(block), point, n_points, VECTORS,    \
                                     nib_codebooks[book].plane, OFFSET))                                        \
    }                                                                                                           \
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
