/* Checked sizes, allocation, growing byte strings. */
#ifndef NIB_BASE_MEMORY_H
#define NIB_BASE_MEMORY_H

#include "nibble/base.h"

#include <string.h>

/* true and the result if it fits 64 bits. */
static inline bool nib_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool nib_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
static inline uint64_t nib_round_up(uint64_t value, uint64_t power_of_two) {
    return (value + power_of_two - 1) & ~(power_of_two - 1);
}

/* Zeroed array of count items; NULL on overflow, without memory, and for 0 bytes never (at least one byte is taken). */
void *nib_alloc(size_t count, size_t item_bytes);
/* Zeroed, 64-byte aligned, for vectors; free with nib_free_aligned. */
void *nib_alloc_aligned(size_t n_bytes);
void nib_free_aligned(void *pointer);
char *nib_strdup_n(const char *text, size_t n_bytes);
char *nib_strdup(const char *text);
/* Grows *items (item_bytes each) so that at least `needed` fit, doubling; false without memory (nothing changed). */
bool nib_grow(void **items, size_t *capacity, size_t needed, size_t item_bytes);

/* A growing string, always NUL-terminated once written to. {0} is empty. A failed write sets `failed` and is sticky. */
typedef struct nib_string {
    char *data;
    size_t n_bytes, capacity;
    bool failed;
} nib_string;
void nib_string_add(nib_string *string, const char *data, size_t n_bytes);
void nib_string_addf(nib_string *string, const char *format, ...) NIB_PRINTF(2, 3);
void nib_string_fini(nib_string *string);

static inline uint16_t nib_load_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint32_t nib_load_u32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t nib_load_u64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline float nib_load_f32(const void *p) {
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
