/* Codebooks: formats of 1 to 3 bits store not one code a weight but the index of a point, a group of 4 or 8 levels that
 * were found to be common. This header is what the format files use; the tables behind it are expanded once, at first use,
 * by whichever thread comes first, and shared by all levels.
 *
 *   book             points  levels a point   a level is stored as      used by
 *   PAIRS_256/512/1024       8 of 0..2        magnitudes 8, 25, 43      iq2_xxs, iq2_xs, iq2_s
 *   TERNARY_2048             8 of 0..2        -1, 0, 1                  iq1_s, iq1_m
 *   TRIPLES_256              4 of 0..7        magnitudes 4 12 20 28 36 44 52 62   iq3_xxs
 *   TRIPLES_512              4 of 0..7        magnitudes 1 3 5 .. 15    iq3_s
 *
 * A group of levels as a number, its "spot": level 0 is the lowest digit, in base 3 or 8. Encoders round a group to a spot;
 * if no point is there, they choose among its neighbours: all points at the smallest few distances from it. */
#ifndef NIB_FORMAT_CODEBOOK_H
#define NIB_FORMAT_CODEBOOK_H

#include <stdint.h>

typedef enum nib_codebook_id {
    NIB_CODEBOOK_PAIRS_256,
    NIB_CODEBOOK_PAIRS_512,
    NIB_CODEBOOK_PAIRS_1024,
    NIB_CODEBOOK_TERNARY_2048,
    NIB_CODEBOOK_TRIPLES_256,
    NIB_CODEBOOK_TRIPLES_512,
    NIB_CODEBOOK_N
} nib_codebook_id;

/* Entries of neighbours behind the last list that can be read, whatever they are. */
enum { NIB_CODEBOOK_SLACK = 15 };

typedef struct nib_codebook {
    unsigned n_points, group, n_levels; /* points, levels a point, values a level can have */
    const uint16_t *packed;             /* (n_points) the levels, level i in bits 2i, 2i + 1 or 3i .. 3i + 2 */
    const uint8_t *level;               /* (n_points, group) 0 .. n_levels - 1 */
    const int8_t *value;                /* (n_points, group) what decoders multiply with the scale */
    const uint8_t *plane; /* (2, n_points) levels, each half of a point in one byte, the first one lowest; then (3, 16,
                           * n_points / 256): the second halves of the first and the last of 16 points, and the low byte
                           * of the one from which on it is the latter, [i][j] of those whose index is 256 j + 16 i and
                           * more. Points ascend, and 16 of TERNARY_2048 have no third one */
    const int32_t *at;    /* (spots) the point there, or -1 - p: its neighbours begin at neighbours[p] */
    const uint16_t *neighbours; /* lists: how many, then the packed points by distance, equally far ones by index */
    unsigned n_entries;         /* of neighbours */
} nib_codebook;

/* For decoding: at and neighbours must not be used. Thread-safe, never fails. */
const nib_codebook *nib_codebook_to_decode(nib_codebook_id id);
/* The same without the check, for inner loops. */
extern const nib_codebook nib_codebooks[NIB_CODEBOOK_N];
/* For encoding: everything is there. The first call takes some ten milliseconds. Thread-safe, never fails. */
const nib_codebook *nib_codebook_to_encode(nib_codebook_id id);

#endif
