/* Vocabulary-only GGUF files built in memory. */
#ifndef NIB_TESTS_VOCAB_GGUF_H
#define NIB_TESTS_VOCAB_GGUF_H

#include "base/memory.h"
#include "nibble/gguf.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct gguf_builder {
    nib_string kvs;
    uint64_t n;
} gguf_builder;

static inline void put_u32(nib_string *s, uint32_t v) {
    nib_string_add(s, (const char *)&v, sizeof v);
}
static inline void put_u64(nib_string *s, uint64_t v) {
    nib_string_add(s, (const char *)&v, sizeof v);
}
static inline void put_text(nib_string *s, const char *text, size_t n) {
    put_u64(s, n);
    nib_string_add(s, text, n);
}
static inline void put_key(gguf_builder *b, const char *key, nib_gguf_type type) {
    put_text(&b->kvs, key, strlen(key));
    put_u32(&b->kvs, type);
    b->n++;
}
static inline void kv_text(gguf_builder *b, const char *key, const char *text) {
    put_key(b, key, NIB_GGUF_STRING);
    put_text(&b->kvs, text, strlen(text));
}
static inline void kv_u32(gguf_builder *b, const char *key, uint32_t value) {
    put_key(b, key, NIB_GGUF_U32);
    put_u32(&b->kvs, value);
}
static inline void kv_bool(gguf_builder *b, const char *key, bool value) {
    put_key(b, key, NIB_GGUF_BOOL);
    nib_string_add(&b->kvs, &(const char){value}, 1);
}
static inline void kv_array(gguf_builder *b, const char *key, nib_gguf_type element, uint64_t n) {
    put_key(b, key, NIB_GGUF_ARRAY);
    put_u32(&b->kvs, element);
    put_u64(&b->kvs, n);
}
static inline void kv_texts(gguf_builder *b, const char *key, const char *const *texts, size_t n) {
    kv_array(b, key, NIB_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) put_text(&b->kvs, texts[i], strlen(texts[i]));
}
static inline void kv_u32s(gguf_builder *b, const char *key, nib_gguf_type element, const uint32_t *values, size_t n) {
    kv_array(b, key, element, n);
    for (size_t i = 0; i < n; i++) put_u32(&b->kvs, values[i]);
}

/* The finished file; the builder is empty afterwards. Free data. */
static inline nib_string build(gguf_builder *b) {
    nib_string file = {0};
    nib_string_add(&file, "GGUF", 4);
    put_u32(&file, 3);
    put_u64(&file, 0);
    put_u64(&file, b->n);
    nib_string_add(&file, b->kvs.data, b->kvs.n_bytes);
    nib_string_fini(&b->kvs);
    b->n = 0;
    return file;
}

#endif
