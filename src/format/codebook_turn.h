/* Codebooks for many tokens: `turn` of formats with points. A lane of 32 bits has four points of one row, first their
 * indices, then half of their levels, one byte each; two such vectors, and one with the points' signs, become codes that lie
 * as the panel wants them, since a lane of the panel is four columns of one row. Only for levels with byte permutations.
 *
 *   lane of levels   .. l3 l2 l1 l0 ..  -> bytes that begin with a level     -> choose -> look up -> code
 *   lane of signs    .. s3 s2 s1 s0 ..  -> bytes with a sign in the bit above */
#ifndef NIB_FORMAT_CODEBOOK_TURN_H
#define NIB_FORMAT_CODEBOOK_TURN_H

#include "format/codebook_dot.h"
#include "format/few.h"

#if defined(NIB_CODEBOOK_DOT)

/* Byte i of each lane becomes the eight bits of this lane from first + i * step on; beyond it are other bits. */
DOT_INLINE vi cut_lanes(vi x, int first, int step) {
    uint64_t from = 0;
    for (int i = 0; i < 8; i++) from |= (uint64_t)((32 * (i / 4) + first + i % 4 * step) & 63) << 8 * i;
    return cut(_mm512_set1_epi64((long long)from), x);
}
/* table[byte % 16] of every byte. */
DOT_INLINE vi look_up_low_4(const uint8_t table[16], vi x) {
    return _mm512_permutexvar_epi8(x, _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)));
}

/* The 4 bits of lanes from `bit` on, a scale's code: d * (2 code + 1). */
DOT_INLINE vf scale_at(vi word, unsigned bit, vf d) {
    const vi twice = bit ? vi_shr(word, (int)bit - 1) : vi_shl(word, 1);
    return vf_mul(d, vi_to_f(vi_and_or(twice, vi_splat(30), vi_splat(1))));
}

/* 16 of 4 bits as whole numbers, 2 code + 1. */
DOT_INLINE void put_whole_scales(nib_panel *out, const vi word[2]) {
    DOT_UNROLL for (int i = 0; i < 8; i++) {
        const vi twice = cut_lanes(word[i / 4], i % 4 * 8 - 1, 2);
        vi_store(out->whole[i], vi_and_or(twice, vi_splat(0x001e001e), vi_splat(0x00010001)));
    }
}

/* Columns 32 part .. + 31, a group or two: four points of 8 with levels of 2 bits, two bits for each column of a point's first
 * half in a byte of first, its other half in second. Points 0 .. 3 follow each other, or, crossed, are 0, 2, 1, 3. table: by
 * level, 4 more for a sign */
DOT_INLINE void give_points_of_8(panel_sink *sink, unsigned part, bool crossed, vi first, vi second, vi sign,
                                 const uint8_t table[16]) {
    const unsigned n_groups = 32 / sink->shape.group;
    DOT_UNROLL for (unsigned slot = 0; slot < n_groups; slot++) open_group(sink, part * n_groups + slot, slot);
    DOT_UNROLL for (int j = 0; j < 4; j++) {
        const unsigned point = (unsigned)(crossed ? j % 2 * 2 + j / 2 : j), slot = n_groups == 2 ? point / 2 : 0;
        DOT_UNROLL for (int half = 0; half < 2; half++) {
            const vi level = cut_lanes(half ? second : first, 8 * j, 2), its = cut_lanes(sign, 8 * j + 4 * half - 2, 1);
            give_codes(sink, 8 * part + 2 * point + (unsigned)half, slot,
                       look_up_low_4(table, choose_bits(vi_of_byte(3), level, its)));
        }
    }
    DOT_UNROLL for (unsigned slot = 0; slot < n_groups; slot++) close_group(sink, part * n_groups + slot, slot);
}

/* Four points of 4 with levels of 3 bits, columns 4 k .. 4 k + 15: two levels, each with a bit to spare, in a byte of
 * first, two in second. Bit sign_at of lanes of sign belongs to the first column. table: by level, 8 more for a sign */
DOT_INLINE void give_points_of_4(panel_sink *sink, unsigned k, vi first, vi second, vi sign, int sign_at,
                                 const uint8_t table[16]) {
    const vi low = vi_splat(0x00ff00ff);
    const vi even = choose_bits(low, first, words_up(second, 8)), odd = choose_bits(low, words_down(first, 8), second);
    DOT_UNROLL for (int j = 0; j < 4; j++) {
        const vi level = cut_lanes(j % 2 ? odd : even, j / 2 * 16, 4), its = cut_lanes(sign, sign_at + 4 * j - 3, 1);
        give_codes(sink, k + (unsigned)j, 0, look_up_low_4(table, choose_bits(vi_of_byte(7), level, its)));
    }
}

/* Columns 64 part .. + 63, two groups; sign: one vector for each. */
DOT_INLINE void give_groups_of_4(panel_sink *sink, unsigned part, const vi first[4], const vi second[4],
                                 const vi sign[2], const uint8_t table[16]) {
    DOT_UNROLL for (unsigned i = 0; i < 4; i++) {
        const unsigned group = 2 * part + i / 2;
        if (i % 2 == 0) open_group(sink, group, 0);
        give_points_of_4(sink, 16 * part + 4 * i, first[i], second[i], sign[i / 2], i % 2 * 16, table);
        if (i % 2 == 1) close_group(sink, group, 0);
    }
}

/* Four points of 8 that move, levels as above: (9 + eighths) / 2, which is 4 * level or one more, times the sub-block's scale.
 * move: of each point, 0 or the scale in every byte */
DOT_INLINE void give_moved_points(panel_sink *sink, unsigned k, vi first, vi second, const vi scale[4],
                                  const vi move[4]) {
    DOT_UNROLL for (int j = 0; j < 4; j++) {
        DOT_UNROLL for (int half = 0; half < 2; half++) {
            const vi level = vi_and(cut_lanes(half ? second : first, 8 * j - 2, 2), vi_of_byte(12));
            give_codes(sink, k + 2 * (unsigned)j + (unsigned)half, 0, vi_add(vi_mul(level, scale[j]), move[j]));
        }
    }
}

/* The scale of such codes, and of minimums that are scales: weight = d / 4 * code - 9 d / 8 * scale. */
DOT_INLINE void iq1_put_d(nib_panel *out, vf d) {
    vf_store(out->scale[0], vf_mul(d, vf_splat(0.25f)));
    vf_store(out->minus_d_min, vf_mul(d, vf_splat(-1.125f)));
}

/* table[index] of 256 bytes in four vectors. */
DOT_INLINE vi pick_256(const vi table[4], vi index) {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), _mm512_permutex2var_epi8(table[0], index, table[1]),
                                  _mm512_permutex2var_epi8(table[2], index, table[3]));
}
/* Levels of 16 points of every row, whose indices are eight low bits and, of more than 256 points, those of high from bit 1
 * on. Tables are loaded once for all: whole planes of small books, of large ones 128 points at a time. */
DOT_INLINE void look_up_16(vi level[2][4], const vi index[4], const vi *high, const uint8_t *plane, int n_points) {
    if (n_points > 512) {
        vi part[4], here = vi_splat(0);
        DOT_UNROLL for (int i = 0; i < 4; i++) {
            part[i] = vi_and(choose_bits(kept(vi_of_byte(1)), words_down(index[i], 7), high[i]),
                             kept(vi_of_byte((uint8_t)(n_points / 128 - 1))));
            level[0][i] = level[1][i] = index[i]; /* until they are found */
        }
        _Pragma("GCC unroll 1") for (int q = 0; q < n_points / 128;
                                     q++, plane += 128) { /* unrolled, vectors would leave
                                                                                            registers */
            const vi a = kept(vi_load(plane)), b = kept(vi_load(plane + 64));
            const vi c = kept(vi_load(plane + n_points)), d = kept(vi_load(plane + n_points + 64));
            DOT_UNROLL for (int i = 0; i < 4; i++) {
                const __mmask64 is_here = _mm512_cmpeq_epi8_mask(part[i], here);
                level[0][i] = _mm512_mask2_permutex2var_epi8(a, level[0][i], is_here, b);
                level[1][i] = _mm512_mask2_permutex2var_epi8(c, level[1][i], is_here, d);
            }
            here = _mm512_add_epi8(here, kept(vi_of_byte(1)));
        }
        return;
    }
    DOT_UNROLL for (int half = 0; half < 2; half++, plane += n_points) {
        vi table[8];
        DOT_UNROLL for (int i = 0; i < n_points / 64; i++) table[i] = kept(vi_load(plane + 64 * i));
        DOT_UNROLL for (int i = 0; i < 4; i++) {
            level[half][i] = pick_256(table, index[i]);
            if (n_points == 256) continue;
            const __mmask64 is_above = _mm512_test_epi8_mask(high[i], vi_of_byte(2));
            level[half][i] = _mm512_mask_blend_epi8(is_above, level[half][i], pick_256(table + 4, index[i]));
        }
    }
}

#endif
#endif
