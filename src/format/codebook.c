/* Expands the codebooks and prepares the search for the nearest point. Compiled once, not per level.
 *
 *   codebook_points.h -> level, value     when a block is first decoded
 *                     -> at, neighbours   when a block is first encoded
 *
 * The tables lie in memory that is zero until touched, so nothing can fail and a program that never meets such a format
 * pays nothing. Their sizes follow from the points and were counted; a test checks that they are full. */
#include "format/codebook.h"
#include "format/codebook_points.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

enum { SPOTS_2 = 6561 /* 3^8 */, SPOTS_3 = 4096 /* 8^4 */, MAX_POINTS = 2048, MAX_DISTANCE = 4 * 7 * 7 };

/* CODEBOOK(name, points, levels a point, values of a level, spots, distances a list holds, entries of all lists) */
#define CODEBOOKS                                          \
    CODEBOOK(PAIRS_256, 256, 8, 3, SPOTS_2, 2, 119462)     \
    CODEBOOK(PAIRS_512, 512, 8, 3, SPOTS_2, 2, 187770)     \
    CODEBOOK(PAIRS_1024, 1024, 8, 3, SPOTS_2, 1, 50253)    \
    CODEBOOK(TERNARY_2048, 2048, 8, 3, SPOTS_2, 3, 332234) \
    CODEBOOK(TRIPLES_256, 256, 4, 8, SPOTS_3, 2, 22825)    \
    CODEBOOK(TRIPLES_512, 512, 4, 8, SPOTS_3, 3, 28317)

static const int8_t MAGNITUDE_2[3] = {8, 25, 43}, TERNARY[3] = {-1, 0, 1};
static const int8_t MAGNITUDE_3[8] = {4, 12, 20, 28, 36, 44, 52, 62}, ODD[8] = {1, 3, 5, 7, 9, 11, 13, 15};
#define VALUES_PAIRS_256    MAGNITUDE_2
#define VALUES_PAIRS_512    MAGNITUDE_2
#define VALUES_PAIRS_1024   MAGNITUDE_2
#define VALUES_TERNARY_2048 TERNARY
#define VALUES_TRIPLES_256  MAGNITUDE_3
#define VALUES_TRIPLES_512  ODD

#define PLANE(n_points)     (2 * (n_points) + 3 * (n_points) / 16)
#define CODEBOOK(name, n_points, group, n_levels, n_spots, n_distances, n_entries) \
    static uint8_t level_##name[(n_points) * (group)];                             \
    static int8_t value_##name[(n_points) * (group)];                              \
    static _Alignas(64) uint8_t plane_##name[PLANE(n_points)];                     \
    static int32_t at_##name[n_spots];                                             \
    static uint16_t neighbours_##name[(n_entries) + NIB_CODEBOOK_SLACK];
CODEBOOKS
#undef CODEBOOK

/* How to make one codebook. */
typedef struct recipe {
    const uint16_t *packed;
    const int8_t *values; /* (n_levels) */
    unsigned n_points, group, n_levels, n_spots, n_distances, n_entries;
    uint8_t *level;
    int8_t *value;
    uint8_t *plane;
    int32_t *at;
    uint16_t *neighbours;
} recipe;

static const recipe recipes[NIB_CODEBOOK_N] = {
#define CODEBOOK(name, n_points, group, n_levels, n_spots, n_distances, n_entries)                      \
    [NIB_CODEBOOK_##name] = {name,         VALUES_##name, n_points,         group,        n_levels,     \
                             n_spots,      n_distances,   n_entries,        level_##name, value_##name, \
                             plane_##name, at_##name,     neighbours_##name},
    CODEBOOKS
#undef CODEBOOK
};

const nib_codebook nib_codebooks[NIB_CODEBOOK_N] = {
#define CODEBOOK(name, n_points, group, n_levels, n_spots, n_distances, n_entries)                             \
    [NIB_CODEBOOK_##name] = {n_points,     group,     n_levels,          name,     level_##name, value_##name, \
                             plane_##name, at_##name, neighbours_##name, n_entries},
    CODEBOOKS
#undef CODEBOOK
};

/* ---- Expanding --------------------------------------------------------------------------------------------------- */

static void expand(const recipe *how) {
    const unsigned bits = how->n_levels == 8 ? 3 : 2, mask = (1u << bits) - 1;
    for (unsigned p = 0; p < how->n_points; p++) {
        for (unsigned i = 0; i < how->group; i++) {
            const unsigned level = how->packed[p] >> bits * i & mask;
            how->level[p * how->group + i] = (uint8_t)level;
            how->value[p * how->group + i] = how->values[level];
            const unsigned half = how->group / 2;
            how->plane[i / half * how->n_points + p] |= (uint8_t)(level << 8 / half * (i % half));
        }
    }
    const unsigned n = how->n_points / 16;
    for (unsigned g = 0; g < n; g++) {
        const uint8_t *second = how->plane + how->n_points + 16 * (size_t)g;
        uint8_t *out = how->plane + 2 * (size_t)how->n_points + g / 16 + g % 16 * (n / 16);
        unsigned from = 15;
        while (from > 0 && second[from - 1] == second[15]) from--;
        out[0] = second[0];
        out[n] = second[15];
        out[2 * (size_t)n] = (uint8_t)(16 * g + from);
    }
}

/* ---- Neighbours -------------------------------------------------------------------------------------------------- */

/* Squared distances of all points from a spot, and how many points are at each. */
typedef struct distances {
    uint8_t to[MAX_POINTS];
    unsigned n_at[MAX_DISTANCE + 1];
} distances;
_Static_assert(MAX_DISTANCE <= UINT8_MAX, "a squared distance fits a byte");

static void measure(distances *out, const recipe *how, unsigned spot) {
    uint8_t level[8];
    for (unsigned i = 0; i < how->group; i++, spot /= how->n_levels) level[i] = (uint8_t)(spot % how->n_levels);
    memset(out->n_at, 0, sizeof out->n_at);
    for (unsigned p = 0; p < how->n_points; p++) {
        const uint8_t *its = how->level + p * how->group;
        unsigned squared = 0;
        for (unsigned i = 0; i < how->group; i++) squared += (unsigned)((its[i] - level[i]) * (its[i] - level[i]));
        out->to[p] = (uint8_t)squared;
        out->n_at[squared]++;
    }
}

/* Appends the list of one spot at entry `first`: the points at its n_distances smallest distances. Returns the entry after
 * it, or `first` where the table is too small. */
static unsigned list_neighbours(const recipe *how, const distances *from, unsigned first) {
    unsigned n = 0, n_found = 0, next = first + 1;
    unsigned squared = 0;
    for (; n_found < how->n_distances && squared <= MAX_DISTANCE; squared++) {
        n += from->n_at[squared];
        n_found += from->n_at[squared] > 0;
    }
    if (n + 1 > how->n_entries - first) return first;
    how->neighbours[first] = (uint16_t)n;
    for (unsigned at = 0; at < squared; at++) {
        for (unsigned p = 0; from->n_at[at] > 0 && p < how->n_points; p++) {
            if (from->to[p] == at) how->neighbours[next++] = how->packed[p];
        }
    }
    return next;
}

static void find_neighbours(const recipe *how) {
    unsigned next = 0;
    for (unsigned spot = 0; spot < how->n_spots; spot++) how->at[spot] = -1;
    for (unsigned p = 0; p < how->n_points; p++) {
        unsigned spot = 0;
        for (unsigned i = how->group; i-- > 0;) spot = spot * how->n_levels + how->level[p * how->group + i];
        how->at[spot] = (int32_t)p;
    }
    for (unsigned spot = 0; spot < how->n_spots; spot++) {
        distances from;
        if (how->at[spot] >= 0) continue;
        measure(&from, how, spot);
        how->at[spot] = -1 - (int32_t)next;
        next = list_neighbours(how, &from, next);
    }
}

/* ---- Once -------------------------------------------------------------------------------------------------------- */

#define CODEBOOK(name, n_points, group, n_levels, n_spots, n_distances, n_entries) \
    static void expand_##name(void) {                                              \
        expand(&recipes[NIB_CODEBOOK_##name]);                                     \
    }                                                                              \
    static void find_##name(void) {                                                \
        find_neighbours(&recipes[NIB_CODEBOOK_##name]);                            \
    }
CODEBOOKS
#undef CODEBOOK

static struct once {
    pthread_once_t expanded, searchable;
    void (*expand)(void), (*find)(void);
} onces[NIB_CODEBOOK_N] = {
#define CODEBOOK(name, n_points, group, n_levels, n_spots, n_distances, n_entries) \
    [NIB_CODEBOOK_##name] = {PTHREAD_ONCE_INIT, PTHREAD_ONCE_INIT, expand_##name, find_##name},
    CODEBOOKS
#undef CODEBOOK
};

const nib_codebook *nib_codebook_to_decode(nib_codebook_id id) {
    pthread_once(&onces[id].expanded, onces[id].expand);
    return &nib_codebooks[id];
}

const nib_codebook *nib_codebook_to_encode(nib_codebook_id id) {
    pthread_once(&onces[id].expanded, onces[id].expand);
    pthread_once(&onces[id].searchable, onces[id].find);
    return &nib_codebooks[id];
}
