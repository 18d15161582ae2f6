/* Writing the header of a GGUF file. The counts at its start are filled in at the end, when they are known. */
#include "file/gguf_write.h"

enum { N_TENSORS_AT = 8, N_KV_AT = 16 };

static void put(nib_gguf_head *head, const void *data, size_t n_bytes) {
    nib_string_add(&head->text, data, n_bytes);
}

static void put_u32(nib_gguf_head *head, uint32_t value) {
    put(head, &value, sizeof value);
}

static void put_u64(nib_gguf_head *head, uint64_t value) {
    put(head, &value, sizeof value);
}

static void put_text(nib_gguf_head *head, const char *data, size_t n_bytes) {
    put_u64(head, n_bytes);
    put(head, data, n_bytes);
}

static void put_key(nib_gguf_head *head, const char *key, nib_gguf_type type) {
    put_text(head, key, strlen(key));
    put_u32(head, type);
    head->n_kv++;
}

void nib_gguf_head_begin(nib_gguf_head *head) {
    *head = (nib_gguf_head){0};
    put(head, "GGUF", 4);
    put_u32(head, 3);
    put_u64(head, 0);
    put_u64(head, 0);
}

void nib_gguf_head_copy(nib_gguf_head *head, const nib_gguf_kv *kv) {
    put_text(head, kv->key.data, kv->key.n_bytes);
    put_u32(head, kv->type);
    if (kv->type == NIB_GGUF_ARRAY) {
        put_u32(head, kv->element_type);
        put_u64(head, kv->n);
    }
    if (kv->type == NIB_GGUF_BOOL)
        put(head, *kv->data ? "\1" : "\0", 1);
    else
        put(head, kv->data, (size_t)nib_gguf_kv_bytes(kv));
    head->n_kv++;
}

void nib_gguf_head_u32(nib_gguf_head *head, const char *key, uint32_t value) {
    put_key(head, key, NIB_GGUF_U32);
    put_u32(head, value);
}

void nib_gguf_head_f32(nib_gguf_head *head, const char *key, float value) {
    put_key(head, key, NIB_GGUF_F32);
    put(head, &value, sizeof value);
}

void nib_gguf_head_u16(nib_gguf_head *head, const char *key, uint16_t value) {
    put_key(head, key, NIB_GGUF_U16);
    put(head, &value, sizeof value);
}

void nib_gguf_head_i32(nib_gguf_head *head, const char *key, int32_t value) {
    put_key(head, key, NIB_GGUF_I32);
    put(head, &value, sizeof value);
}

size_t nib_gguf_head_u64_array(nib_gguf_head *head, const char *key, uint64_t n) {
    put_key(head, key, NIB_GGUF_ARRAY);
    put_u32(head, NIB_GGUF_U64);
    put_u64(head, n);
    const size_t at = head->text.n_bytes;
    for (uint64_t i = 0; i < n; i++) put_u64(head, 0);
    return at;
}

void nib_gguf_head_bool(nib_gguf_head *head, const char *key, bool value) {
    put_key(head, key, NIB_GGUF_BOOL);
    put(head, value ? "\1" : "\0", 1);
}

void nib_gguf_head_text(nib_gguf_head *head, const char *key, const char *value) {
    put_key(head, key, NIB_GGUF_STRING);
    put_text(head, value, strlen(value));
}

void nib_gguf_head_tensor(nib_gguf_head *head, const char *name, const nib_format *format, const uint64_t ne[4],
                          uint64_t offset) {
    uint32_t n_dims = 4;
    while (n_dims > 1 && ne[n_dims - 1] == 1) n_dims--;
    put_text(head, name, strlen(name));
    put_u32(head, n_dims);
    for (uint32_t d = 0; d < n_dims; d++) put_u64(head, ne[d]);
    put_u32(head, nib_format_facts_of(format)->gguf_type);
    put_u64(head, offset);
    head->n_tensors++;
}

nib_status nib_gguf_head_end(nib_gguf_head *head, uint32_t alignment, nib_error *error) {
    while (!head->text.failed && head->text.n_bytes % alignment != 0) put(head, "\0", 1);
    if (head->text.failed) return nib_fail_memory(error, head->text.n_bytes);
    memcpy(head->text.data + N_TENSORS_AT, &head->n_tensors, sizeof head->n_tensors);
    memcpy(head->text.data + N_KV_AT, &head->n_kv, sizeof head->n_kv);
    return NIB_OK;
}

void nib_gguf_head_fini(nib_gguf_head *head) {
    nib_string_fini(&head->text);
    *head = (nib_gguf_head){0};
}
