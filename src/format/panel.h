/* Sixteen rows at once, for `turn`: lane r of every vector belongs to row r. A block's bytes are read as words of 32 bits,
 * so what cuts codes and scales apart works on four bytes of sixteen rows in one operation. */
#ifndef NIB_FORMAT_PANEL_H
#define NIB_FORMAT_PANEL_H

#include "cpu/vec.h"
#include "format/block.h"

#define PANEL_UNROLL NIB_UNROLL

/* Every byte of every lane, shifted right and masked. */
static inline vi cut_bytes(vi word, int shift, uint8_t mask) {
    return vi_and(vi_shr(word, shift), vi_splat((int32_t)(mask * 0x01010101u)));
}

/* The byte-th byte of a row of words as a number. */
static inline vi byte_at(const vi *word, unsigned byte) {
    return vi_and(vi_shr(word[byte / 4], (int)(byte % 4 * 8)), vi_splat(255));
}
static inline vf half_at(const vi *word, unsigned byte) { /* does not straddle words */
    return vf_from_low_f16(vi_shr(word[byte / 4], (int)(byte % 4 * 8)));
}
/* Four bytes from any byte on. */
static inline vi word_at(const vi *word, unsigned byte) {
    const int shift = (int)(byte % 4 * 8);
    if (!shift) return word[byte / 4];
    return vi_or(vi_shr(word[byte / 4], shift), vi_shl(word[byte / 4 + 1], 32 - shift));
}

/* n_words (a multiple of 4) words of every row. */
static inline void read_words(vi *word, const void *src, size_t stride, unsigned n_words) {
    PANEL_UNROLL for (unsigned i = 0; i < n_words; i += 4) vi_turn(word + i, (const uint8_t *)src + 4 * i, stride);
}

/* vi_turn in four steps, where the processor can turn some rows while it multiplies others. */
static inline __attribute__((always_inline)) void turn_step(vi word[4], const void *src, size_t stride, unsigned step) {
#if defined(NIB_VEC_512)
    vi_turn_step(word, src, stride, step);
#else
    if (step == 3) vi_turn(word, src, stride);
#endif
}

/* Bit 4 j + i of lanes becomes bit 4 of byte i, a code's fifth. */
static inline vi fifth_bits_at(vi bits, unsigned j) {
    const vi eight = vi_shr(bits, (int)(j / 2 * 8));
    const vi spread = j % 2 ? vi_mul(vi_and(eight, vi_splat(0xf0)), vi_splat(0x00204081))
                            : vi_mul(vi_and(eight, vi_splat(0x0f)), vi_splat(0x02040810));
    return vi_and(spread, vi_splat(0x10101010));
}

/* Bytes 2 i and 2 i + 1 of the words, as two numbers of 16 bits. */
static inline vi pair_at(const vi *word, unsigned i) {
    const vi two = vi_shr(word[i / 2], (int)(i % 2 * 16));
    return vi_or(vi_and(two, vi_splat(0xff)), vi_shl(vi_and(two, vi_splat(0xff00)), 8));
}
static inline vi signed_pair_at(const vi *word, unsigned i) {
    const vi two = vi_shr(word[i / 2], (int)(i % 2 * 16));
    const vi low = vi_sar(vi_shl(two, 24), 24), high = vi_sar(vi_shl(two, 16), 24);
    return vi_or(vi_and(low, vi_splat(0xffff)), vi_shl(high, 16));
}

#endif
