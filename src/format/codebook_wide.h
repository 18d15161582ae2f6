/* Products of a few tokens with codebooks of 512 points of 8 and more: rows as in codebook_dot.h, but comparing costs as much
 * as looking up, and so does what is loaded for it. Points of four blocks are looked up in two vectors, between the products of
 * the four blocks before: either alone would wait for one kind of unit.
 *
 *   index   bits 0-6: one of 128 bytes that are looked up at once; 7, 8: which of four such parts of a table, a mask for
 *           each; above: the table, of two or four, which are looked up with the same masks: the right one is chosen at last
 *   level   half a point in each byte, two bits a level
 *
 * Second halves of 2048 points need no such tables: points ascend, so there are few steps in them. Lanes are 16 weights in the
 * turned order of nib_int_row (impl.h) or, where a scale is for 32 and points have no signs, 32 of two blocks in the paired
 * one: halves of points are used as they are found. */
#ifndef NIB_FORMAT_CODEBOOK_WIDE_H
#define NIB_FORMAT_CODEBOOK_WIDE_H

#include "format/codebook_dot.h"

#if defined(NIB_CODEBOOK_DOT)

enum { WIDE_VECTORS = 2, WIDE_BLOCKS = 2 * WIDE_VECTORS, MOST_TABLES = 4 };

/* Points on their way. Their indices begin as eight low bits and, above, the others with anything around. */
typedef struct wide_points {
    vi above[WIDE_VECTORS];
    __mmask64 low[WIDE_VECTORS], high[WIDE_VECTORS]; /* bits 7 and 8 */
    vi from[WIDE_VECTORS][MOST_TABLES];              /* what is found in each table; the index until then */
    vi second[WIDE_VECTORS];                         /* of 2048 points */
    vi rest[WIDE_VECTORS];                           /* what a format keeps until it reads its blocks */
} wide_points;

DOT_INLINE vi wide_choose(__mmask64 second, vi a, vi b) {
    return _mm512_mask_blend_epi8(second, a, b);
}
/* Where bit n of x is set. */
DOT_INLINE __mmask64 wide_bit(vi x, unsigned n) {
    return _mm512_test_epi8_mask(x, kept(vi_of_byte((uint8_t)(1 << n))));
}
/* Second halves of points of TERNARY_2048. */
DOT_INLINE void wide_seconds(wide_points *x, const uint8_t *steps) {
    const vi low = kept(vi_of_byte(7));
    vi t[6];
    DOT_UNROLL for (int i = 0; i < 6; i++) t[i] = kept(vi_load(steps + 64 * i));
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        const vi index = x->from[v][0], row = choose_bits(low, x->above[v], words_down(index, 1));
        const vi first = _mm512_permutex2var_epi8(t[0], row, t[1]), last = _mm512_permutex2var_epi8(t[2], row, t[3]);
        const vi from = _mm512_permutex2var_epi8(t[4], row, t[5]);
        x->second[v] = wide_choose(_mm512_cmple_epu8_mask(from, index), first, last);
    }
}
DOT_INLINE void wide_begin(wide_points *x, int v, vi index, vi above, __mmask64 high) {
    x->above[v] = above;
    x->low[v] = _mm512_movepi8_mask(index);
    x->high[v] = high;
    DOT_UNROLL for (int c = 0; c < MOST_TABLES; c++) x->from[v][c] = index;
}
/* Vector v of iq1: eight points' three high bits lie in 32 bits, at places. */
DOT_INLINE void iq1_start(wide_points *x, int v, const void *low_1, const void *low_2, const void *high_1,
                          const void *high_2, uint64_t places) {
    const vi twice = _mm512_set_epi32(19, 19, 3, 3, 18, 18, 2, 2, 17, 17, 1, 1, 16, 16, 0, 0);
    x->rest[v] = _mm512_permutex2var_epi32(load_16(high_1), twice, load_16(high_2));
    const vi above = cut(in_steps(places, places, 0), x->rest[v]);
    wide_begin(x, v, of_two_blocks(low_1, low_2), above, wide_bit(above, 0));
}
/* Of points whose bits 7 and 8 are q, what table c says: 128 of each of the tables, which lie 512 apart. */
DOT_INLINE void wide_part(wide_points *x, int q, int c, const uint8_t *table) {
    const vi a = kept(vi_load(table + 512 * c + 128 * q)), b = kept(vi_load(table + 512 * c + 128 * q + 64));
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        const __mmask64 low = x->low[v], high = x->high[v];
        const __mmask64 here = q == 3   ? _kand_mask64(low, high)
                               : q == 2 ? _kandn_mask64(low, high)
                               : q == 1 ? _kandn_mask64(high, low)
                                        : _knot_mask64(_kor_mask64(low, high));
        x->from[v][c] = in_order(_mm512_mask2_permutex2var_epi8(a, x->from[v][c], here, b));
    }
}
/* Levels of the blocks, from both halves of their points; of lanes of 32 weights, the halves. */
DOT_INLINE void wide_finish(vi level[WIDE_BLOCKS], const wide_points *x, int n_points, bool per_32) {
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        const vi *from = x->from[v];
        vi first = from[0], second = from[1];
        if (n_points == 1024) {
            const __mmask64 upper = wide_bit(x->above[v], 5);
            first = wide_choose(upper, from[0], from[1]);
            second = wide_choose(upper, from[2], from[3]);
        } else if (n_points == 2048) {
            const __mmask64 odd = wide_bit(x->above[v], 1), upper = wide_bit(x->above[v], 2);
            first = wide_choose(upper, wide_choose(odd, from[0], from[1]), wide_choose(odd, from[2], from[3]));
            second = x->second[v];
        }
        level[2 * v] = per_32 ? first : _mm512_unpacklo_epi8(first, second);
        level[2 * v + 1] = per_32 ? second : _mm512_unpackhi_epi8(first, second);
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

/* Levels with signs, which are the upper four bits of each byte. */
DOT_INLINE void wide_pairs(vi both[2], vi level, vi sign) {
    const vi low = kept(vi_of_byte(15));
    both[0] = choose_bits(low, level, sign);
    both[1] = choose_bits(low, words_down(level, 4), words_down(sign, 2));
}

/* Signs for these from sevens: their lower four in even bytes, where they are to be, all seven in odd ones. */
DOT_INLINE vi wide_signs(vi sevens) {
    __mmask64 odd = 0xaaaaaaaaaaaaaaaa;
    __asm__("" : "+Yk"(odd)); /* as kept */
    return _mm512_mask2_permutex2var_epi8(vi_load(EVEN_SIGNS), sevens, odd, vi_load(EVEN_SIGNS + 64));
}

/* Codes p: 64 above the values or, of levels without signs, 64 times them. */
DOT_INLINE vi wide_code(const vi from[2], int p, bool are_pairs) {
    if (are_pairs) return _mm512_permutexvar_epi8(from[p / 2], kept(vi_load(WIDE_PAIRS[p % 2])));
    return vi_and(p < 3 ? words_up(from[0], 6 - 2 * (unsigned)p) : from[0], kept(vi_of_byte(192)));
}

/* By codes in the low bits of lanes, of which only four count: (2 code + 1) / 8; of three bits, whatever is above them,
 * (2 code + 1) / 64. The same 2^112 times larger, for scales of blocks from float_of_half. */
#define WIDE_SCALE(i)         (float)(2 * (i) + 1) * 0.125f
#define WIDE_LARGE_SCALE(i)   (float)(2 * (i) + 1) * 0x1p109f
#define WIDE_SCALE_8(i)       (float)(2 * ((i) % 8) + 1) * 0.015625f
#define WIDE_LARGE_SCALE_8(i) (float)(2 * ((i) % 8) + 1) * 0x1p106f
static const _Alignas(64) float WIDE_SCALES_4[16] = {WIDE_16(WIDE_SCALE, 0)},
                                WIDE_SCALES_3[16] = {WIDE_16(WIDE_SCALE_8, 0)},
                                WIDE_LARGE_SCALES_4[16] = {WIDE_16(WIDE_LARGE_SCALE, 0)},
                                WIDE_LARGE_SCALES_3[16] = {WIDE_16(WIDE_LARGE_SCALE_8, 0)};
DOT_INLINE vf wide_scale(const float table[16], vi code) {
    return _mm512_permutexvar_ps(code, vf_load(table));
}
/* 16 of 4 bits. */
DOT_INLINE vf wide_scales_of_16(const float table[16], const uint8_t packed[8]) {
    const uint64_t next = UINT64_C(4) << 32;
    const vi from = in_steps(next, EACH_BYTE(8) + next, EACH_BYTE(16));
    return wide_scale(table, cut(from, _mm512_set1_epi64((long long)nib_load_u64(packed))));
}

/* What a format says of two blocks. In lanes of 32 weights, from has both halves of their points, and of scale, which has the
 * blocks' d, and of times_sum there is one. */
typedef struct wide_blocks {
    vi from[2][2]; /* what codes are made of: levels with signs, or in the first one levels */
    vf scale[2];
    float d[2];
    uint32_t small_d[2]; /* instead, of more than 512 points: of float_of_half */
    vi times_sum[2];     /* of codes that are no pairs: what sums of 8 activations, or minus those
                      * of 32, are multiplied with, and added */
} wide_blocks;
typedef void wide_look_up(wide_points *x, int v, const void *first, const void *second);
typedef void wide_read(wide_blocks *out, const vi level[2], vi rest, const void *first, const void *second);

DOT_INLINE void wide_begin_sums(vi sum[2], const wide_blocks *w, const nib_int_row *const row[2], int n_points,
                                bool per_32) {
    if (per_32) {
        sum[0] = vi_mul(vi_sar(vi_load(row[0]->paired_minus), 6), w->times_sum[0]);
        sum[1] = vi_splat(0);
        return;
    }
    DOT_UNROLL for (int i = 0; i < 2; i++) sum[i] = n_points < 2048
                                                        ? vi_shl(vi_load(row[i]->in_order.minus_sum16), 6)
                                                        : vi_dp2(vi_splat(0), w->times_sum[i], vi_load(row[i]->sum8));
}
/* Activations are read by the product itself: compilers would load them first, and registers are short. */
DOT_INLINE vi wide_product(vi sum, vi code, const nib_int_row *const row[2], int i, int p, bool per_32) {
    const int8_t *by = per_32 ? row[0]->paired + 64 * (4 * i + p) : row[i]->turned + 64 * p;
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(code), "m"(*(const char(*)[64])by));
    return sum;
}
/* Scales get their blocks' d, once for all tokens; a block that stands for none counts nothing. */
DOT_INLINE void wide_end_scales(wide_blocks *w, bool is_alone, int n_points) {
    DOT_UNROLL for (int i = 0; i < 2; i++) w->scale[i] =
        n_points > 512 ? times_bits(w->scale[i], i && is_alone ? 0 : w->small_d[i])
                       : vf_mul(w->scale[i], vf_splat(i && is_alone ? 0 : w->d[i]));
}
DOT_INLINE vf wide_add(vf total, const vi sum[2], const wide_blocks *w, const nib_int_row *const row[2], bool per_32) {
    if (per_32) {
        const vf scale = vf_mul(w->scale[0], vf_load(row[0]->paired_scale));
        return vf_fma(vi_to_f(vi_add(sum[0], sum[1])), scale, total);
    }
    DOT_UNROLL for (int i = 0; i < 2; i++) total =
        vf_fma(vi_to_f(sum[i]), vf_mul(w->scale[i], vf_splat(row[i]->in_order.scale[0])), total);
    return total;
}

/* Vector j of points is looked up and two blocks are multiplied. Codes that cost little to make are made, and with them points
 * are looked up, between the products. */
DOT_INLINE void wide_in_step(vf total[], wide_blocks *w, bool is_alone, const nib_int_row *const two[2],
                             size_t n_blocks, size_t n_tokens, wide_points *next, int j, const uint8_t *plane,
                             bool per_32) {
    vi sum[NIB_DOT_TOKENS][2];
    if (!per_32) wide_end_scales(w, is_alone, 2048);
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
        const nib_int_row *const its[2] = {two[0] + t * n_blocks, two[1] + t * n_blocks};
        wide_begin_sums(sum[t], w, its, 2048, per_32);
    }
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        vi code[2];
        DOT_UNROLL for (int i = 0; i < 2; i++) code[i] = in_order(wide_code(w->from[i], p, false));
        DOT_UNROLL for (int c = 2 * p; c < 2 * p + 2; c++) wide_part(next, 2 * j + c / 4, c % 4, plane);
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
            const nib_int_row *const its[2] = {two[0] + t * n_blocks, two[1] + t * n_blocks};
            DOT_UNROLL for (int i = 0; i < 2; i++) sum[t][i] =
                in_order(wide_product(sum[t][i], code[i], its, i, p, per_32));
        }
    }
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
        const nib_int_row *const its[2] = {two[0] + t * n_blocks, two[1] + t * n_blocks};
        total[t] = wide_add(total[t], sum[t], w, its, per_32);
    }
}
/* The same of pairs, whose codes are looked up themselves: all lookups come before the products of a token after the other. */
DOT_INLINE void wide_in_turn(vf total[], wide_blocks *w, bool is_alone, const nib_int_row *const two[2],
                             size_t n_blocks, size_t n_tokens, wide_points *next, int j, const uint8_t *plane,
                             int n_points) {
    const int n_tables = n_points / 256;
    vi code[2][DOT_PARTS];
    DOT_UNROLL for (int i = 0; i < 2; i++) DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) code[i][p] =
        wide_code(w->from[i], p, true);
    wide_end_scales(w, is_alone, n_points);
    DOT_UNROLL for (int s = 0; s < 2 * n_tables; s++) wide_part(next, 2 * j + s / n_tables, s % n_tables, plane);
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
        const nib_int_row *const its[2] = {two[0] + t * n_blocks, two[1] + t * n_blocks};
        vi sum[2];
        wide_begin_sums(sum, w, its, n_points, false);
        DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) DOT_UNROLL for (int i = 0; i < 2; i++) sum[i] =
            wide_product(sum[i], code[i][p], its, i, p, false);
        total[t] = wide_add(total[t], sum, w, its, false);
    }
}

/* Two blocks of a row; of an odd number, the last one twice. */
typedef struct wide_place {
    const char *first, *second;
} wide_place;
typedef struct wide_places {
    const char *at, *end;
    size_t left, n_blocks; /* in this row, in each */
} wide_places;
/* The next ones, or the last again. */
DOT_INLINE wide_place wide_next(wide_places *p, size_t bytes) {
    const size_t n = p->left > 1 ? 2 : 1;
    const wide_place place = {p->at, p->at + (n - 1) * bytes};
    if (p->at + n * bytes == p->end) return place;
    p->at += n * bytes;
    p->left = p->left > n ? p->left - n : p->n_blocks;
    return place;
}
DOT_INLINE void wide_begin_all(wide_points *x, wide_place place[WIDE_VECTORS], wide_places *places,
                               wide_look_up *look_up, size_t bytes, const uint8_t *plane, int n_points) {
    DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) {
        place[v] = wide_next(places, bytes);
        look_up(x, v, place[v].first, place[v].second);
    }
    if (n_points == 2048) wide_seconds(x, plane + 2 * n_points);
}

/* Everything but task is a constant at every call. */
DOT_INLINE void dot_rows_wide(const nib_dot_task *task, size_t n_tokens, wide_look_up *look_up, wide_read *read,
                              size_t bytes, nib_codebook_id book, int n_points, bool per_32) {
    const size_t n_blocks = task->n_cols / NIB_PANEL_K;
    const int n_tables = n_points == 2048 ? 4 : n_points / 256;
    const char *const weights = task->weights;
    wide_places places = {weights, weights + n_blocks * task->n_rows * bytes, n_blocks, n_blocks};
    const nib_int_row *row = task->packed;
    size_t left = n_blocks, r = 0;
    dot_rows rows;
    wide_points next;
    wide_place now[WIDE_VECTORS];
    vf total[NIB_DOT_TOKENS];
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
    wide_begin_all(&next, now, &places, look_up, bytes, wide_plane(book), n_points);
    DOT_UNROLL for (int s = 0; s < 4 * n_tables; s++) wide_part(&next, s / n_tables, s % n_tables, wide_plane(book));
    for (;;) {
        wide_place ahead[WIDE_VECTORS];
        vi level[WIDE_BLOCKS], rest[WIDE_VECTORS];
        wide_finish(level, &next, n_points, per_32);
        DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) rest[v] = next.rest[v];
        dot_fetch(now[0].first, WIDE_BLOCKS * bytes);
        const uint8_t *plane = wide_plane(book);
        wide_begin_all(&next, ahead, &places, look_up, bytes, plane, n_points);
        DOT_UNROLL for (int j = 0; j < WIDE_VECTORS; j++) {
            wide_blocks w;
            read(&w, level + 2 * j, rest[j], now[j].first, now[j].second);
            const bool is_alone = left == 1;
            const nib_int_row *const two[2] = {row, is_alone ? row : row + 1};
            if (n_points == 2048)
                wide_in_step(total, &w, is_alone, two, n_blocks, n_tokens, &next, j, plane, per_32);
            else
                wide_in_turn(total, &w, is_alone, two, n_blocks, n_tokens, &next, j, plane, n_points);
            left -= is_alone ? 1 : 2;
            row += 2;
            if (left == 0) {
                dot_store(task, &rows, r, n_tokens, total);
                if (++r == task->n_rows) return;
                DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = vf_zero();
                left = n_blocks;
                row = task->packed;
            }
        }
        DOT_UNROLL for (int v = 0; v < WIDE_VECTORS; v++) now[v] = ahead[v];
    }
}

/* The `dot` of a format with this book, from look_up_two and read_two. per_32: lanes are of so many weights */
#define NIB_WIDE_DOT(book, n_points, per_32)                                                                        \
    static void dot(const nib_format *format, const nib_dot_task *task) {                                           \
        (void)format;                                                                                               \
        nib_codebook_to_decode(book);                                                                               \
        NIB_DOT_EACH(task, n, dot_rows_wide(task, n, look_up_two, read_two, sizeof(block), book, n_points, per_32)) \
    }

#endif
#endif
