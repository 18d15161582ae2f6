/* Allocation with checked sizes; growing strings. */
#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void *nib_alloc(size_t count, size_t item_bytes) {
    size_t n_bytes;
    if (__builtin_mul_overflow(count, item_bytes, &n_bytes)) return NULL;
    return calloc(n_bytes ? n_bytes : 1, 1);
}

/* calloc, since the system's fresh pages are zero already: what is never written takes no memory. The pointer that free
 * wants stands before the one that is given out. */
void *nib_alloc_aligned(size_t n_bytes) {
    enum { ALIGNMENT = 64 };
    if (n_bytes > SIZE_MAX - 2 * ALIGNMENT) return NULL;
    char *block = calloc(nib_round_up(n_bytes ? n_bytes : 1, ALIGNMENT) + ALIGNMENT, 1);
    if (!block) return NULL;
    char *aligned =
        block + ALIGNMENT - (uintptr_t)block % ALIGNMENT; /* malloc aligns to 16: there is room for a pointer */
    memcpy(aligned - sizeof block, &block, sizeof block);
    return aligned;
}

void nib_free_aligned(void *pointer) {
    void *block;
    if (!pointer) return;
    memcpy(&block, (char *)pointer - sizeof block, sizeof block);
    free(block);
}

char *nib_strdup_n(const char *text, size_t n_bytes) {
    char *copy = n_bytes < SIZE_MAX ? malloc(n_bytes + 1) : NULL;
    if (!copy) return NULL;
    if (n_bytes) memcpy(copy, text, n_bytes);
    copy[n_bytes] = '\0';
    return copy;
}

char *nib_strdup(const char *text) {
    return nib_strdup_n(text, strlen(text));
}

bool nib_grow(void **items, size_t *capacity, size_t needed, size_t item_bytes) {
    if (needed <= *capacity) return true;
    size_t larger = *capacity < 8 ? 8 : *capacity, n_bytes;
    while (larger < needed)
        if (__builtin_mul_overflow(larger, (size_t)2, &larger)) return false;
    if (__builtin_mul_overflow(larger, item_bytes, &n_bytes)) return false;
    void *moved = realloc(*items, n_bytes);
    if (!moved) return false;
    *items = moved;
    *capacity = larger;
    return true;
}

void nib_string_add(nib_string *string, const char *data, size_t n_bytes) {
    if (string->failed) return;
    size_t needed;
    void *items = string->data;
    if (__builtin_add_overflow(string->n_bytes, n_bytes, &needed) || needed == SIZE_MAX ||
        !nib_grow(&items, &string->capacity, needed + 1, 1)) {
        string->failed = true;
        return;
    }
    string->data = items;
    if (n_bytes) memcpy(string->data + string->n_bytes, data, n_bytes);
    string->n_bytes = needed;
    string->data[needed] = '\0';
}

void nib_string_addf(nib_string *string, const char *format, ...) {
    if (string->failed) return;
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    void *items = string->data;
    if (length < 0 || !nib_grow(&items, &string->capacity, string->n_bytes + (size_t)length + 1, 1)) {
        string->failed = true;
    } else {
        string->data = items;
        vsnprintf(string->data + string->n_bytes, (size_t)length + 1, format, again);
        string->n_bytes += (size_t)length;
    }
    va_end(again);
}

void nib_string_fini(nib_string *string) {
    free(string->data);
    *string = (nib_string){0};
}
