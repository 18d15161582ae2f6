/* Rows of logits are made a tile at a time: few enough to stay small beside the model, enough that the output matrix is
 * unpacked seldom. Tiles are of nearly equal size, so the last one is not a lone row that takes another kernel. */
#ifndef NIB_EVAL_HEAD_TILES_H
#define NIB_EVAL_HEAD_TILES_H

#include <stdint.h>

#define NIB_TILE_BYTES (32u << 20)

/* Rows per tile of n_rows > 0 rows of n_vocab floats. */
static inline uint32_t nib_tile_rows(uint32_t n_rows, uint32_t n_vocab) {
    const uint32_t fit = NIB_TILE_BYTES / sizeof(float) / (n_vocab > 0 ? n_vocab : 1), most = fit < 16 ? 16 : fit;
    const uint32_t n_tiles = n_rows / most + (n_rows % most != 0);
    return n_rows / n_tiles + (n_rows % n_tiles != 0);
}

#endif
