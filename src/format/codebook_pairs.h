/* Products of rows with one activation scale per 256, whose points have eight weights with their signs in a byte (or are two
 * points of four), 32 weights a scale: two blocks at once in the paired order of nib_int_row (impl.h). A lane is 32 weights,
 * its byte m eight of them.
 *
 *   indices -> four bytes looked up for every eight weights, two levels a byte -> signs put beside the levels -> two codes
 *   from each: the last tables do not mind what else is in a byte -> products
 *
 * Looking up goes in step with the products of the two blocks before: both wait for other units. Codes are 64 above their
 * values. Only for levels with byte permutations. */
#ifndef NIB_FORMAT_CODEBOOK_PAIRS_H
#define NIB_FORMAT_CODEBOOK_PAIRS_H

#include "format/codebook_dot.h"

#if defined(NIB_CODEBOOK_DOT)
/* What two blocks say, in the order of lanes. */
typedef struct pair_words {
    vi index[2], sign, rest;
    __mmask64 in_half[2][2], above[2]; /* the half of 256 points that an index is in; above the first 256 of 512 */
} pair_words;

/* 64 points each, as level bytes; and the codes by such a byte. */
typedef struct pair_tables {
    vi part[16], code[6];
} pair_tables;

/* What a format says: what to read of two blocks; levels of steps 2 half and 2 half + 1, with signs; codes of step i, about
 * weights 2 order[i] and 2 order[i] + 1 of eight; and scales of the lanes, times d. */
typedef void pair_begin(pair_words *w, const void *a, const void *b);
typedef void pair_load_tables(pair_tables *t);
typedef void pair_look_up(vi level[2], const pair_words *w, const pair_tables *t, int half);
typedef void pair_codes(vi code[2], vi level, const pair_tables *t, int i);
typedef vf pair_scales(vi rest, const void *a, const void *b);

DOT_INLINE vf plus_one(vi twice) {
    return vi_to_f(_mm512_or_si512(twice, kept(vi_splat(1))));
}
/* Bytes 0 .. 63. */
DOT_INLINE vi each_byte(void) {
    const vi lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return vi_add(vi_mul(lanes, vi_splat(0x04040404)), vi_splat(0x03020100));
}
/* part[index / 64][index % 64] */
DOT_INLINE vi look_up_256(const vi part[4], vi index, const __mmask64 in_half[2]) {
    const vi x = _mm512_mask2_permutex2var_epi8(part[0], index, in_half[0], part[1]);
    return in_order(_mm512_mask2_permutex2var_epi8(part[2], x, in_half[1], part[3]));
}
DOT_INLINE void find_halves(__mmask64 in_half[2], vi index) {
    in_half[1] = _mm512_movepi8_mask(index);
    in_half[0] = _knot_mask64(in_half[1]);
}

/* ---- points of eight levels of 2 bits ------------------------------------------------------------------------------ */

/* A byte looked up has four weights' levels. Of the first two, signs go to bits 4 and 5, so levels remain in bits 0-1 and
 * 2-3; of the others to bits 2 and 3, and all goes down by 2: signs in bits 0 and 1, levels in bits 2-3 and 4-5. */
static const int FOUR_ORDER[4] = {0, 1, 2, 3};

DOT_INLINE void load_codes_of_four(pair_tables *t) {
    const vi i = each_byte(), two = vi_of_byte(3), sign = vi_of_byte(4);
    const vi second = vi_and(words_down(i, 2), two);
    t->code[0] = vi_look_up(PAIRS_2, vi_and_or(words_down(i, 2), sign, vi_and(i, two)));
    t->code[1] = vi_look_up(PAIRS_2, vi_and_or(words_down(i, 3), sign, second));
    t->code[2] = vi_look_up(PAIRS_2, vi_and_or(words_up(i, 2), sign, second));
    t->code[3] = vi_look_up(PAIRS_2, vi_and_or(words_up(i, 1), sign, vi_and(words_down(i, 4), two)));
}
/* x: levels of the first four weights of eight, or of the last. */
DOT_INLINE void put_signs_to_four(vi level[2], vi x, vi sign, int half) {
    level[0] = choose_bits(kept(vi_of_byte(0x30)), half ? sign : words_up(sign, 4), x);
    level[1] = words_down(choose_bits(kept(vi_of_byte(12)), half ? words_down(sign, 4) : sign, x), 2);
}
DOT_INLINE void codes_of_four(vi code[2], vi level, const pair_tables *t, int i) {
    code[0] = in_order(_mm512_permutexvar_epi8(level, t->code[2 * (i % 2)]));
    code[1] = in_order(_mm512_permutexvar_epi8(level, t->code[2 * (i % 2) + 1]));
}

/* ---- points of four levels of 3 bits ------------------------------------------------------------------------------- */

/* Index 0 are even points, index 1 odd ones: a byte of both is eight weights. Level bytes of their first two weights have
 * signs in bits 0 and 1, levels in bits 2-4 and 5-7; of the last two signs in bits 2 and 3, levels in bits 0, 1, 4 and 5-7.
 * So a nibble of signs is where it must be. The second codes' tables are of 128. */
enum { TRIPLES_CODES_64 = 2 };
static const int TRIPLES_ORDER[4] = {0, 2, 1, 3};

DOT_INLINE void load_triples(pair_tables *t, const uint8_t *plane, int n_points, const uint8_t codes[16]) {
    const vi three = vi_of_byte(7), two = vi_of_byte(3), upper = vi_of_byte(0xe0), i = each_byte();
    for (int q = 0; q < n_points / 64; q++) {
        const vi x = vi_load(plane + 64 * q), y = vi_load(plane + n_points + 64 * q);
        t->part[q] = vi_and_or(words_up(x, 1), upper, words_up(vi_and(x, three), 2));
        t->part[n_points / 64 + q] =
            or_and(vi_and_or(words_up(y, 1), upper, vi_and(y, two)), words_up(y, 2), vi_of_byte(16));
    }
    const vi sign = vi_of_byte(8), first_of_two = vi_and_or(words_down(i, 2), three, vi_and(words_up(i, 3), sign));
    const vi last_of_two = or_and(vi_and_or(i, two, vi_and(words_up(i, 1), sign)), words_down(i, 2), vi_of_byte(4));
    t->code[0] = vi_look_up(codes, first_of_two);
    t->code[1] = vi_look_up(codes, last_of_two);
    const vi level = vi_and(words_down(i, 4), two), even = vi_and(words_up(i, 3), sign),
             other = vi_and(words_up(i, 1), sign);
    t->code[2] = vi_look_up(codes, vi_or(level, even));
    t->code[3] = vi_look_up(codes, vi_or(vi_or(level, even), vi_of_byte(4)));
    t->code[4] = vi_look_up(codes, vi_or(level, other));
    t->code[5] = vi_look_up(codes, vi_or(vi_or(level, other), vi_of_byte(4)));
}
/* Even or odd ones of two blocks' 64 points, in the order of lanes. */
DOT_INLINE vi points_of_pair(const void *a, const void *b, int odd) {
    const long long first = 0x0e0c0a0806040200 + odd * 0x0101010101010101, next = 0x1010101010101010;
    const vi from = _mm512_set_epi64(
        first + 3 * next + 0x4040404040404040, first + 3 * next, first + 2 * next + 0x4040404040404040,
        first + 2 * next, first + next + 0x4040404040404040, first + next, first + 0x4040404040404040, first);
    return _mm512_permutex2var_epi8(vi_load(a), from, vi_load(b));
}
DOT_INLINE void look_up_triples(vi level[2], const pair_words *w, const pair_tables *t, int half, int n_points) {
    const vi *part = t->part + n_points / 64 * half;
    const vi here = kept(vi_of_byte(half ? 12 : 3));
    vi x[2];
    DOT_UNROLL for (int k = 0; k < 2; k++) {
        x[k] = look_up_256(part, w->index[k], w->in_half[k]);
        if (n_points > 256)
            x[k] = _mm512_mask_blend_epi8(w->above[k], x[k], look_up_256(part + 4, w->index[k], w->in_half[k]));
    }
    level[0] = kept(choose_bits(here, w->sign, x[0]));
    level[1] = kept(choose_bits(here, words_down(w->sign, 4), x[1]));
}
DOT_INLINE void codes_of_triples(vi code[2], vi level, const pair_tables *t, int i) {
    const vi *second = t->code + TRIPLES_CODES_64 + 2 * (i / 2);
    code[0] = in_order(_mm512_permutexvar_epi8(level, t->code[i / 2]));
    code[1] = in_order(_mm512_permutex2var_epi8(second[0], words_down(level, 1), second[1]));
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Rows are one sequence of blocks; the last one of an odd number is a pair with itself, times zeros. Everything but the task
 * is a constant at every call. */
DOT_INLINE void dot_rows_pairs(const nib_dot_task *task, size_t n_tokens, pair_load_tables *load_tables,
                               pair_begin *begin, pair_look_up *look_up, pair_codes *codes, pair_scales *scales,
                               size_t bytes, const int order[4], float factor) {
    const size_t n_blocks = task->n_cols / NIB_PANEL_K;
    const char *a = task->weights, *const end = a + n_blocks * task->n_rows * bytes;
    pair_tables t;
    pair_words w;
    vi level[4];
    dot_rows rows;
    load_tables(&t);
    begin(&w, a, a + (n_blocks > 1 ? bytes : 0));
    look_up(level, &w, &t, 0);
    look_up(level + 2, &w, &t, 1);
    for (size_t r = 0; r < task->n_rows; r++) {
        const nib_int_row *row = task->packed;
        vf total[NIB_DOT_TOKENS];
        DOT_UNROLL for (size_t k = 0; k < n_tokens; k++) total[k] = vf_zero();
        for (size_t left = n_blocks; left > 0; row += 2) {
            const size_t n = left > 1 ? 2 : 1;
            const char *b = a + (n - 1) * bytes, *next = b + bytes;
            const vi rest = w.rest;
            vi sum[NIB_DOT_TOKENS], more[NIB_DOT_TOKENS];
            DOT_UNROLL for (size_t k = 0; k < n_tokens; k++) {
                sum[k] = vi_load(row[k * n_blocks].paired_minus);
                more[k] = vi_splat(0);
            }
            left -= n;
            if (next == end) next = task->weights; /* in vain */
            dot_fetch(a, 2 * bytes);
            begin(&w, next, next + ((left ? left : n_blocks) > 1 ? bytes : 0));
            const vf scale = scales(rest, a, b);
            DOT_UNROLL for (int half = 0; half < 2; half++) {
                vi code[2][2], now[2] = {level[2 * half], level[2 * half + 1]};
                DOT_UNROLL for (int i = 0; i < 2; i++) codes(code[i], now[i], &t, 2 * half + i);
                DOT_UNROLL for (int i = 0; i < 2; i++) DOT_UNROLL for (size_t k = 0; k < n_tokens; k++) {
                    const int8_t *by = row[k * n_blocks].paired + 128 * order[2 * half + i];
                    sum[k] = dot_add_4(sum[k], code[i][0], vi_load(by));
                    more[k] = dot_add_4(more[k], code[i][1], vi_load(by + 64));
                }
                look_up(level + 2 * half, &w, &t, half);
            }
            DOT_UNROLL for (size_t k = 0; k < n_tokens; k++) {
                const vf both = vf_mul(scale, vf_load(row[k * n_blocks].paired_scale));
                total[k] = vf_fma(vi_to_f(vi_add(sum[k], more[k])), both, total[k]);
            }
            a = next;
        }
        DOT_UNROLL for (size_t k = 0; k < n_tokens; k++) total[k] = vf_mul(total[k], vf_splat(factor));
        dot_store(task, &rows, r, n_tokens, total);
    }
}
/* The `dot` of a format, from load_tables, begin, look_up and scales. */
#define NIB_PAIRS_DOT(codes, order, factor)                                                                    \
    static void dot(const nib_format *format, const nib_dot_task *task) {                                      \
        (void)format;                                                                                          \
        NIB_DOT_EACH(                                                                                          \
            task, n,                                                                                           \
            dot_rows_pairs(task, n, load_tables, begin, look_up, codes, scales, sizeof(block), order, factor)) \
    }
#endif

#endif
