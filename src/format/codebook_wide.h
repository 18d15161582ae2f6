/* Products of a few tokens with codebooks of 512 points of 8 and more: rows as in codebook_dot.h, but comparing costs as much
 * as looking up, and so does what is loaded for it. Points of four blocks are looked up in two vectors, while the four blocks
 * before are multiplied.
 *
 *   index   bits 0-6: one of 128 bytes that are looked up at once; 7, 8: which of four such parts of a table, a mask for
 *           each; above: the table, of two or four, which are looked up with the same masks: the right one is chosen at last
 *   level   half a point in each byte, two bits a level
 *
 * Second halves of 2048 points need no such tables: points ascend, so there are few steps in them. */
#ifndef NIB_FORMAT_CODEBOOK_WIDE_H
#define NIB_FORMAT_CODEBOOK_WIDE_H

#include "format/codebook_dot.h"

#if defined(NIB_CODEBOOK_DOT)

enum { WIDE_VECTORS = 2, WIDE_BLOCKS = 2 * WIDE_VECTORS, MOST_TABLES = 4 };

/* Points on their way. Their indices begin as eight low bits and, above, the others from bit 1 on, with anything further up. */
typedef struct wide_points {
    vi above[WIDE_VECTORS];
    __mmask64 low[WIDE_VECTORS], high[WIDE_VECTORS]; /* bits 7 and 8 */
    vi from[WIDE_VECTORS][MOST_TABLES];              /* what is found in each table; the index until then */
    vi second[WIDE_VECTORS];                         /* of 2048 points */
} wide_points;

DOT_INLINE vi wide_choose(__mmask64 second, vi a, vi b) {
    return _mm512_mask_blend_epi8(second, a, b);
}
/* Where bit n of x is set. */
DOT_INLINE __mmask64 wide_bit(vi x, unsigned n) {
    return _mm512_test_epi8_mask(x, kept(vi_of_byte((uint8_t)(1 << n))));
}
/* Second halves of points of TERNARY_2048. */
DOT_INLINE vi wide_second(vi index, vi above, const uint8_t *steps) {
    const vi low = kept(vi_of_byte(15)), row = choose_bits(low, words_down(index, 4), words_up(above, 3));
    const vi first = _mm512_permutex2var_epi8(vi_load(steps), row, vi_load(steps + 64));
    const vi last = _mm512_permutex2var_epi8(vi_load(steps + 128), row, vi_load(steps + 192));
    const vi from = _mm512_permutex2var_epi8(vi_load(steps + 256), row, vi_load(steps + 320));
    return wide_choose(_mm512_cmple_epu8_mask(from, vi_and(index, low)), first, last);
}
DOT_INLINE void wide_begin(wide_points *x, int v, vi index, vi above) {
    x->above[v] = above;
    x->low[v] = _mm512_movepi8_mask(index);
    x->high[v] = wide_bit(above, 1);
    DOT_UNROLL for (int c = 0; c < MOST_TABLES; c++) x->from[v][c] = index;
}
/* Vector v of iq1: eight points' three high bits lie in 32 bits, at places + 1. */
DOT_INLINE void iq1_start(wide_points *x, int v, const void *low_1, const void *low_2, const void *high_1,
                          const void *high_2, uint64_t places) {
    const vi twice = _mm512_set_epi32(19, 19, 3, 3, 18, 18, 2, 2, 17, 17, 1, 1, 16, 16, 0, 0);
    const vi above =
        cut(in_steps(places, places, 0), _mm512_permutex2var_epi32(load_16(high_1), twice, load_16(high_2)));
    wide_begin(x, v, of_two_blocks(low_1, low_2), above);
}
/* Points whose bits 7 and 8 are q: 128 of each of the tables, which lie 512 apart. */
DOT_INLINE void wide_part(wide_points *x, int q, int n_tables, const uint8_t *table) {
    __mmask64 here[WIDE_VECTORS];
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        const __mmask64 low = x->low[v], high = x->high[v];
        here[v] = q == 3   ? _kand_mask64(low, high)
                  : q == 2 ? _kandn_mask64(low, high)
                  : q == 1 ? _kandn_mask64(high, low)
                           : _knot_mask64(_kor_mask64(low, high));
    }
    DOT_UNROLL for (int c = 0; c < n_tables; c++) {
        const vi a = kept(vi_load(table + 512 * c + 128 * q)), b = kept(vi_load(table + 512 * c + 128 * q + 64));
        DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) x->from[v][c] =
            _mm512_mask2_permutex2var_epi8(a, x->from[v][c], here[v], b);
    }
}
/* Levels of the blocks, from both halves of their points. */
DOT_INLINE void wide_finish(vi level[WIDE_BLOCKS], const wide_points *x, int n_points) {
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        const vi *from = x->from[v];
        vi first = from[0], second = from[1];
        if (n_points == 1024) {
            const __mmask64 upper = wide_bit(x->above[v], 2);
            first = wide_choose(upper, from[0], from[1]);
            second = wide_choose(upper, from[2], from[3]);
        } else if (n_points == 2048) {
            const __mmask64 odd = wide_bit(x->above[v], 2), upper = wide_bit(x->above[v], 3);
            first = wide_choose(upper, wide_choose(odd, from[0], from[1]), wide_choose(odd, from[2], from[3]));
            second = x->second[v];
        }
        level[2 * v] = _mm512_unpacklo_epi8(first, second);
        level[2 * v + 1] = _mm512_unpackhi_epi8(first, second);
    }
}
/* A plane that is read as it is used: compilers would copy it to where registers are saved, for every row anew. */
DOT_INLINE const uint8_t *wide_plane(nib_codebook_id book) {
    const uint8_t *plane = nib_codebooks[book].plane;
    __asm__("" : "+r"(plane));
    return plane;
}

/* 64 +- 8, 25, 43: levels in bits 0 .. 3, signs in bits 4 and 5. */
#define WIDE_LOW(i)    PAIR_CODE((i)&3, (i) >> 4 & 1)
#define WIDE_HIGH(i)   PAIR_CODE((i) >> 2 & 3, (i) >> 5 & 1)
#define WIDE_4(at, i)  at(i), at((i) + 1), at((i) + 2), at((i) + 3)
#define WIDE_16(at, i) WIDE_4(at, i), WIDE_4(at, (i) + 4), WIDE_4(at, (i) + 8), WIDE_4(at, (i) + 12)
#define WIDE_64(at)    WIDE_16(at, 0), WIDE_16(at, 16), WIDE_16(at, 32), WIDE_16(at, 48)
static const _Alignas(64) uint8_t WIDE_PAIRS[2][64] = {{WIDE_64(WIDE_LOW)}, {WIDE_64(WIDE_HIGH)}};

/* Codes of points with signs, which are the upper four bits of each byte. */
DOT_INLINE void wide_pairs(vi code[DOT_PARTS], vi level, vi sign) {
    const vi low = kept(vi_of_byte(15)),
             both[2] = {choose_bits(low, level, sign), choose_bits(low, words_down(level, 4), words_down(sign, 2))};
    const vi table[2] = {kept(vi_load(WIDE_PAIRS[0])), kept(vi_load(WIDE_PAIRS[1]))};
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) code[p] = _mm512_permutexvar_epi8(both[p / 2], table[p % 2]);
}

/* Signs for these from sevens: their lower four in even bytes, where they are to be, all seven in odd ones. */
DOT_INLINE vi wide_signs(vi sevens) {
    __mmask64 odd = 0xaaaaaaaaaaaaaaaa;
    __asm__("" : "+Yk"(odd)); /* as kept */
    return _mm512_mask2_permutex2var_epi8(vi_load(EVEN_SIGNS), sevens, odd, vi_load(EVEN_SIGNS + 64));
}

/* Codes 8 * level. */
DOT_INLINE void wide_eights(vi code[DOT_PARTS], vi level) {
    const vi place = kept(vi_of_byte(24));
    code[0] = vi_and(words_up(level, 3), place);
    code[1] = vi_and(words_up(level, 1), place);
    code[2] = vi_and(words_down(level, 1), place);
    code[3] = vi_and(words_down(level, 3), place);
}

/* (2 code + 1) / 8 of codes in the low bits of lanes, of which only four count. */
#define WIDE_SCALE(i) (float)(2 * (i) + 1) * 0.125f
static const _Alignas(64) float WIDE_SCALES_4[16] = {WIDE_4(WIDE_SCALE, 0), WIDE_4(WIDE_SCALE, 4),
                                                     WIDE_4(WIDE_SCALE, 8), WIDE_4(WIDE_SCALE, 12)},
                                WIDE_SCALES_3[16] = {WIDE_4(WIDE_SCALE, 0), WIDE_4(WIDE_SCALE, 4),
                                                     WIDE_4(WIDE_SCALE, 0), WIDE_4(WIDE_SCALE, 4)};
DOT_INLINE vf wide_scale(const float table[16], vi code) {
    return _mm512_permutexvar_ps(code, vf_load(table));
}
/* 16 of 4 bits. */
DOT_INLINE vf wide_scales_of_16(const uint8_t packed[8]) {
    const uint64_t next = UINT64_C(4) << 32;
    const vi from = in_steps(next, EACH_BYTE(8) + next, EACH_BYTE(16));
    return wide_scale(WIDE_SCALES_4, cut(from, _mm512_set1_epi64((long long)nib_load_u64(packed))));
}

/* What a format says of two blocks: the levels of their points; their codes, 64 above the values, and scales. */
typedef struct wide_blocks {
    vi code[2][DOT_PARTS];
    vf scale[2];
    float d[2];
    vi times_sum[2]; /* of codes that are no pairs: what sums of 8 activations are multiplied with, and added */
} wide_blocks;
typedef void wide_look_up(wide_points *x, int v, const void *first, const void *second);
typedef void wide_read(wide_blocks *out, const vi level[2], const void *first, const void *second);

/* part[i]: block i times its activations, but for d and their scale */
DOT_INLINE void wide_products(vf part[2], const wide_blocks *w, const nib_int_row *const row[2], bool are_pairs) {
    vi sum[2];
    DOT_UNROLL for (int i = 0; i < 2; i++) sum[i] = are_pairs
                                                        ? vi_shl(vi_load(row[i]->in_order.minus_sum16), 6)
                                                        : vi_dp2(vi_splat(0), w->times_sum[i], vi_load(row[i]->sum8));
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        DOT_UNROLL for (int i = 0; i < 2; i++) sum[i] = vi_dp4(sum[i], w->code[i][p], vi_load(row[i]->turned + 64 * p));
    }
    DOT_UNROLL for (int i = 0; i < 2; i++) part[i] = vf_mul(vi_to_f(sum[i]), w->scale[i]);
}

DOT_INLINE void wide_end_row(const nib_dot_task *task, dot_rows *rows, size_t r, size_t n_tokens, vf total[]) {
    dot_store(task, rows, r, n_tokens, total);
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
}

/* Block i of those from here on, or the last one. */
DOT_INLINE const char *wide_block(const char *here, size_t left, size_t i, size_t bytes) {
    return here + (i < left ? i : left - 1) * bytes;
}
DOT_INLINE void wide_begin_all(wide_points *x, wide_look_up *look_up, const char *here, size_t left, size_t bytes,
                               const uint8_t *plane, int n_points) {
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        look_up(x, v, wide_block(here, left, 2 * (size_t)v, bytes), wide_block(here, left, 2 * (size_t)v + 1, bytes));
        if (n_points == 2048) x->second[v] = wide_second(x->from[v][0], x->above[v], plane + 2 * n_points);
    }
}

/* Rows are one sequence of blocks, which are taken by fours; of fewer, the last stands for the others. Everything but task is
 * a constant at every call. */
DOT_INLINE void dot_rows_wide(const nib_dot_task *task, size_t n_tokens, wide_look_up *look_up, wide_read *read,
                              size_t bytes, nib_codebook_id book, int n_points) {
    const size_t n_blocks = task->n_cols / NIB_PANEL_K;
    const int n_tables = n_points == 2048 ? 4 : n_points / 256;
    const nib_int_row *const begin = task->packed, *row = begin;
    const char *here = task->weights;
    dot_rows rows;
    wide_points next;
    vf total[NIB_DOT_TOKENS];
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
    size_t left = n_blocks * task->n_rows, b = 0, r = 0;
    wide_begin_all(&next, look_up, here, left, bytes, wide_plane(book), n_points);
    DOT_UNROLL for (int q = 0; q < 4; q++) wide_part(&next, q, n_tables, wide_plane(book));
    while (left > 0) {
        vi level[WIDE_BLOCKS];
        wide_finish(level, &next, n_points);
        dot_fetch(here, WIDE_BLOCKS * bytes);
        const uint8_t *plane = wide_plane(book);
        if (left > WIDE_BLOCKS)
            wide_begin_all(&next, look_up, here + WIDE_BLOCKS * bytes, left - WIDE_BLOCKS, bytes, plane, n_points);
        DOT_UNROLL for (int j = 0; j < WIDE_VECTORS; j++) {
            wide_blocks w;
            read(&w, level + 2 * j, here, left > 1 ? here + bytes : here);
            DOT_UNROLL for (int q = 2 * j; q < 2 * j + 2; q++) wide_part(&next, q, n_tables, plane);
            const bool is_last = b + 1 == n_blocks; /* the first of the two is the last of a row */
            const nib_int_row *const other = is_last ? begin : row + 1;
            vf part[NIB_DOT_TOKENS][2];
            DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
                const nib_int_row *const its[2] = {row + t * n_blocks, other + t * n_blocks};
                wide_products(part[t], &w, its, n_points < 2048);
                total[t] = vf_fma(part[t][0], vf_splat(w.d[0] * its[0]->in_order.scale[0]), total[t]);
            }
            b++;
            if (is_last) {
                wide_end_row(task, &rows, r++, n_tokens, total);
                b = 0;
                if (left == 1) return;
            }
            DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] =
                vf_fma(part[t][1], vf_splat(w.d[1] * other[t * n_blocks].in_order.scale[0]), total[t]);
            left -= 2;
            here += 2 * bytes;
            row = other + 1;
            if (++b == n_blocks) {
                wide_end_row(task, &rows, r++, n_tokens, total);
                b = 0;
                row = begin;
                if (left == 0) return;
            }
        }
    }
}

/* The `dot` of a format with this book, from look_up_two and read_two. */
#define NIB_WIDE_DOT(book, n_points)                                                                        \
    static void dot(const nib_format *format, const nib_dot_task *task) {                                   \
        (void)format;                                                                                       \
        nib_codebook_to_decode(book);                                                                       \
        NIB_DOT_EACH(task, n, dot_rows_wide(task, n, look_up_two, read_two, sizeof(block), book, n_points)) \
    }

#endif
#endif
