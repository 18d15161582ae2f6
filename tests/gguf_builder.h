/* GGUF images made by hand in memory, valid or not: nothing is checked here. */
#ifndef NIB_TESTS_GGUF_BUILDER_H
#define NIB_TESTS_GGUF_BUILDER_H

#include "base/memory.h"
#include "nibble/gguf.h"
#include <stdlib.h>

typedef struct builder {
    nib_string text;
    uint64_t n_tensors, n_kv;
} builder;

static inline void put_bytes(builder *b, const void *data, size_t n_bytes) {
    nib_string_add(&b->text, data, n_bytes);
}
static inline void put_u32(builder *b, uint32_t value) {
    put_bytes(b, &value, sizeof value);
}
static inline void put_u64(builder *b, uint64_t value) {
    put_bytes(b, &value, sizeof value);
}
static inline void put_string(builder *b, const char *text) {
    put_u64(b, strlen(text));
    put_bytes(b, text, strlen(text));
}

/* The counts are filled in by end_header from what was put; set them afterwards to lie. */
static inline void begin_image(builder *b, uint32_t version) {
    *b = (builder){0};
    put_bytes(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, 0);
    put_u64(b, 0);
}
static inline void put_key(builder *b, const char *key, uint32_t type) {
    put_string(b, key);
    put_u32(b, type);
    b->n_kv++;
}
static inline void put_kv_u32(builder *b, const char *key, uint32_t value) {
    put_key(b, key, NIB_GGUF_U32);
    put_u32(b, value);
}
static inline void put_kv_string(builder *b, const char *key, const char *value) {
    put_key(b, key, NIB_GGUF_STRING);
    put_string(b, value);
}
static inline void put_tensor(builder *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
                              uint64_t offset) {
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t d = 0; d < n_dims; d++) put_u64(b, ne[d]);
    put_u32(b, type);
    put_u64(b, offset);
    b->n_tensors++;
}
static inline void pad_image(builder *b, size_t alignment) {
    while (!b->text.failed && b->text.n_bytes % alignment) put_bytes(b, "", 1);
}
static inline void end_header(builder *b, size_t alignment) {
    memcpy(b->text.data + 8, &b->n_tensors, 8);
    memcpy(b->text.data + 16, &b->n_kv, 8);
    pad_image(b, alignment);
}
static inline void free_image(builder *b) {
    nib_string_fini(&b->text);
}

#endif
