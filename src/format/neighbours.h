/* The spots and neighbours of a codebook (codebook.h), for encoders: 16 neighbours are weighed up at once, one a lane.
 *
 * A group of levels that may be a point is handled packed, as in codebook_points.h: 2 or 3 bits a level. So a table of what
 * each level costs at one place in the group is looked up with the packed points themselves, moved down to that place. */
#ifndef NIB_FORMAT_NEIGHBOURS_H
#define NIB_FORMAT_NEIGHBOURS_H

#include "format/codebook.h"
#include "format/lanes.h"

enum { GROUP_MAX = 8 }; /* places a group has at most */

static const int32_t LANE[NIB_LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* What stands at the spot of packed levels: a point, or below 0 what best_neighbour must know. n_bits: of a level */
static inline int32_t look_at_spot(const nib_codebook *book, unsigned packed, int n_bits) {
    if (n_bits == 3) return book->at[packed];
    /* digits of base 4 to digits of base 3, in pairs, in fours, in eights */
    const unsigned pairs = (packed & 0x3333) + 3 * (packed >> 2 & 0x3333);
    const unsigned fours = (pairs & 0x0f0f) + 9 * (pairs >> 4 & 0x0f0f);
    return book->at[(fours & 0xff) + 81 * (fours >> 8)];
}

/* What neighbour has the smallest error, the first of equals: packed; -1 if none has a finite one. at: what
 * look_at_spot said. error[i]: a table for vf_lookup8 of the errors of all levels at place i; with two bits a level, of
 * 4 levels twice. Errors are added from place 0 on. */
LANES_INLINE int best_neighbour(const nib_codebook *book, int32_t at, const vf *error, unsigned group, int n_bits) {
    const uint16_t *list = book->neighbours + (-1 - at), *first = list + 1;
    const int n = list[0];
    const vi lane = vi_load(LANE);
    vf least = vf_splat(FLT_MAX);
    vi place = lane;
    for (int k = 0; k < n; k += NIB_LANES) {
        const vi packed = vi_from_u16(first + k), here = vi_add(lane, vi_splat(k));
        vf sum = vf_lookup8(error[0], packed);
        for (unsigned i = 1; i < group; i++) sum = vf_add(sum, vf_lookup8(error[i], vi_sar(packed, n_bits * (int)i)));
        const vm less = vm_and(vi_lt(here, vi_splat(n)), vf_lt(sum, least));
        least = vf_choose(less, sum, least);
        place = vi_choose(less, here, place);
    }
    const float smallest = vf_least(least);
    if (!(smallest < FLT_MAX)) return -1;
    uint32_t equals = vm_bits(vf_eq(least, vf_splat(smallest)));
    if (n <= NIB_LANES) return first[__builtin_ctz(equals)];
    int32_t places[NIB_LANES];
    vi_store(places, place);
    int best = places[__builtin_ctz(equals)];
    while (equals &= equals - 1) {
        const int its = places[__builtin_ctz(equals)];
        best = its < best ? its : best;
    }
    return first[best];
}

#endif
