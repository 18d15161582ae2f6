/* Logits are made a tile at a time, some rows times some of the vocabulary, and are read while the caches still have them:
 *
 *              vocabulary
 *       rows | tile 1 | tile 2 | tile 3 |        softmax and divergence of a row go on from tile to tile
 *            | tile 4 | tile 5 | tile 6 |
 *
 * As many rows as a batch has, so that the output matrix passes by as seldom as the other matrices. Tiles are of nearly equal
 * size, so the last one is not a lone row that takes another kernel. */
#ifndef NIB_EVAL_HEAD_TILES_H
#define NIB_EVAL_HEAD_TILES_H

#include <stddef.h>
#include <stdint.h>

#define NIB_TILE_LOGITS   (1u << 20)
#define NIB_TILE_MAX_ROWS 512u
#define NIB_TILE_COL_STEP 32u /* rows of the output matrix that are unpacked together */

typedef struct nib_head_tile {
    uint32_t rows, cols; /* of all tiles but the last ones, which may have fewer */
} nib_head_tile;

/* Length of equal parts of n > 0 that are no longer than `most` > 0, but for rounding up to step. */
static inline uint32_t nib_tile_part(uint32_t n, uint32_t most, uint32_t step) {
    const uint64_t n_parts = ((uint64_t)n + most - 1) / most, part = (n + n_parts - 1) / n_parts;
    const uint64_t rounded = (part + step - 1) / step * step;
    return rounded < n ? (uint32_t)rounded : n;
}

/* Tiles of n_rows > 0 rows of n_vocab > 0 logits. */
static inline nib_head_tile nib_head_tile_of(uint32_t n_rows, uint32_t n_vocab) {
    const uint32_t rows = nib_tile_part(n_rows, NIB_TILE_MAX_ROWS, 1);
    return (nib_head_tile){rows, nib_tile_part(n_vocab, NIB_TILE_LOGITS / rows, NIB_TILE_COL_STEP)};
}

/* No tile has more logits. */
#define NIB_TILE_MOST_LOGITS ((size_t)NIB_TILE_LOGITS + NIB_TILE_MAX_ROWS * NIB_TILE_COL_STEP)

#endif
