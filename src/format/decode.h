/* Codes become floats, 16 at a time. Written as vectors, since from loops of constant length the compiler makes shuffles.
 *
 * n: a multiple of 16. Included by files that are compiled once per level. */
#ifndef NIB_FORMAT_DECODE_H
#define NIB_FORMAT_DECODE_H

#include "cpu/vec.h"

/* dst[j] = (code[j] - centre) * scale */
static inline void scale_codes(float *restrict dst, const uint8_t *restrict code, unsigned n, float scale, int centre) {
    for (unsigned j = 0; j < n; j += 16)
        vf_store(dst + j, vf_mul(vi_to_f(vi_sub(vi_from_u8(code + j), vi_splat(centre))), vf_splat(scale)));
}

/* dst[j] = code[j] * scale + from */
static inline void scale_codes_from(float *restrict dst, const uint8_t *restrict code, unsigned n, float scale,
                                    float from) {
    for (unsigned j = 0; j < n; j += 16)
        vf_store(dst + j, vf_add(vf_mul(vi_to_f(vi_from_u8(code + j)), vf_splat(scale)), vf_splat(from)));
}

/* dst[j] = level[j] * scale */
static inline void scale_levels(float *restrict dst, const int8_t *restrict level, unsigned n, float scale) {
    for (unsigned j = 0; j < n; j += 16) vf_store(dst + j, vf_mul(vi_to_f(vi_from_i8(level + j)), vf_splat(scale)));
}

#endif
