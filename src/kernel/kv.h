/* How keys and values lie in memory, and reading them. Positions come in tiles of 32:
 *
 *   keys    f32, f16   [tile][head_dim][32 positions]      a vector of keys at one dimension is one load
 *   values  f32, f16   [position][head_dim padded to 16]   a vector of dimensions of one value is one load
 *   both    q8_0       [tile][group of 32 dimensions] { f16 scale [32 positions]; int8 code [32][32] as above }
 *
 * Included by files that are compiled once per level. */
#ifndef NIB_KERNEL_KV_H
#define NIB_KERNEL_KV_H

#include "kernel/level.h"
#include "kernel/pairs.h"

enum {
    KV_TILE = NIB_KV_TILE,
    KV_GROUP = NIB_KV_GROUP,
    KV_GROUP_BYTES = KV_TILE * (KV_GROUP + 2),
};

/* Bytes of one tile: 32 rows. */
static inline size_t kv_tile_bytes(nib_kv_type type, size_t head_dim) {
    return KV_TILE * nib_kv_row_bytes(type, (uint32_t)head_dim);
}

/* q8_0: the 32 scales of the group of dimension d, and its codes. */
static inline const uint16_t *kv_scales(const char *tile, size_t d) {
    return (const uint16_t *)(tile + d / KV_GROUP * KV_GROUP_BYTES);
}
static inline const int8_t *kv_codes(const char *tile, size_t d) {
    return (const int8_t *)(tile + d / KV_GROUP * KV_GROUP_BYTES + 2 * KV_TILE);
}

/* Positions lane .. lane + 15 of the tile at dimension d; q8_0: the codes. */
static inline vf kv_keys(nib_kv_type type, const char *tile, size_t d, size_t lane) {
    if (type == NIB_KV_TYPE_F32) return vf_load((const float *)tile + d * KV_TILE + lane);
    if (type == NIB_KV_TYPE_F16) return vf_from_f16((const uint16_t *)tile + d * KV_TILE + lane);
    return vf_from_i8(kv_codes(tile, d) + d % KV_GROUP * KV_TILE + lane);
}
/* Dimensions d .. d + 15 of position i of the tile; q8_0: the codes. */
static inline vf kv_values(nib_kv_type type, const char *tile, size_t padded, size_t i, size_t d) {
    if (type == NIB_KV_TYPE_F32) return vf_load((const float *)tile + i * padded + d);
    if (type == NIB_KV_TYPE_F16) return vf_from_f16((const uint16_t *)tile + i * padded + d);
    return vf_from_i8(kv_codes(tile, d) + i * KV_GROUP + d % KV_GROUP);
}

#endif
