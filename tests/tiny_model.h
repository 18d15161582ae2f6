/* Small random models made in memory, so that tests of models need no files. Seeded: the same bytes everywhere. */
#ifndef NIB_TESTS_TINY_MODEL_H
#define NIB_TESTS_TINY_MODEL_H

#include "base/memory.h"
#include "model/loaded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct tiny_model {
    const char *arch; /* NULL = no such key */
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab;
    float eps, rope_base;
    bool tied, biases;
    uint32_t n_expert, n_expert_used, n_ff_expert;
    const char *rope_scaling;  /* NULL = no such key */
    const char *without;       /* a tensor to leave out */
    const char *with;          /* a tensor to add */
    uint32_t embd_rows_off_by; /* rows missing from the embedding */
    uint32_t cycle;            /* above 0: a model that says tokens 0 .. cycle - 1 and begins again; cycle <= n_embd */
    const int32_t *script;     /* (cycle) it says these instead, all different; NULL = 0 .. cycle - 1 */
    bool vocabulary;           /* unknown, begin, end, then the 256 bytes: n_vocab must be 259 */
    uint64_t seed;
} tiny_model;

static inline tiny_model tiny_defaults(const char *arch) {
    return (tiny_model){
        .arch = arch,
        .n_layer = 3,
        .n_embd = 48,
        .n_ff = 80,
        .n_head = 4,
        .n_head_kv = 2,
        .head_dim = 16,
        .n_vocab = 96,
        .eps = 1e-6f,
        .rope_base = 10000,
        .biases = strcmp(arch, "qwen2") == 0,
        .n_expert = strcmp(arch, "qwen3moe") == 0 ? 5 : 0,
        .n_expert_used = strcmp(arch, "qwen3moe") == 0 ? 2 : 0,
        .n_ff_expert = 32,
        .seed = 1,
    };
}

/* A GGUF file under construction: pairs and tensor descriptions first, payloads behind. */
typedef struct tiny_file {
    nib_string pairs, infos, payload;
    uint64_t n_pairs, n_tensors, seed;
    const tiny_model *model;
} tiny_file;

static inline void tiny_add(nib_string *out, const void *data, size_t n_bytes) {
    nib_string_add(out, data, n_bytes);
}
static inline void tiny_text(nib_string *out, const char *text) {
    const uint64_t n = strlen(text);
    tiny_add(out, &n, sizeof n);
    tiny_add(out, text, n);
}
static inline void tiny_key(tiny_file *file, const char *key, uint32_t type) {
    char full[96];
    snprintf(full, sizeof full, "%s%s%s", *key == '.' && file->model->arch ? file->model->arch : "",
             *key == '.' && !file->model->arch ? "llama" : "", key);
    tiny_text(&file->pairs, full);
    tiny_add(&file->pairs, &type, sizeof type);
    file->n_pairs++;
}
static inline void tiny_u32(tiny_file *file, const char *key, uint32_t value) {
    tiny_key(file, key, 4);
    tiny_add(&file->pairs, &value, sizeof value);
}
static inline void tiny_f32(tiny_file *file, const char *key, float value) {
    tiny_key(file, key, 6);
    tiny_add(&file->pairs, &value, sizeof value);
}
static inline void tiny_string(tiny_file *file, const char *key, const char *value) {
    tiny_key(file, key, 8);
    tiny_text(&file->pairs, value);
}

/* Uniform in -1 .. 1 (Knuth's 64-bit multiplier). */
static inline float tiny_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*seed >> 32) * 0x1p-31f;
}

/* Which word of the script a token is; cycle if none. */
static inline uint64_t tiny_script_position(const tiny_model *m, uint64_t token) {
    if (m->script == NULL) return token < m->cycle ? token : m->cycle;
    for (uint32_t i = 0; i < m->cycle; i++) {
        if ((uint64_t)m->script[i] == token) return i;
    }
    return m->cycle;
}

/* A model with a script: one-hot embeddings, layers that add nothing, and an output matrix that goes one word on. */
static inline float tiny_script_value(const tiny_model *m, const char *name, uint64_t col, uint64_t row) {
    const uint64_t word = tiny_script_position(m, row);
    if (strcmp(name, "token_embd.weight") == 0) return word < m->cycle && col == word ? 1 : 0;
    if (strcmp(name, "output.weight") == 0) return word < m->cycle && (col + 1) % m->cycle == word ? 1 : 0;
    return strstr(name, "norm") != NULL ? 1 : 0;
}

static inline void tiny_stack(tiny_file *file, const char *name, uint64_t cols, uint64_t rows, uint64_t n) {
    const tiny_model *m = file->model;
    const uint32_t n_dims = n > 1 ? 3 : rows > 0 ? 2 : 1, f32 = 0;
    const uint64_t offset = file->payload.n_bytes, ne[3] = {cols, rows, n};
    const float scale = 1.5f / sqrtf((float)cols);
    if (m->without != NULL && strcmp(name, m->without) == 0) return;
    tiny_text(&file->infos, name);
    tiny_add(&file->infos, &n_dims, sizeof n_dims);
    tiny_add(&file->infos, ne, n_dims * sizeof *ne);
    tiny_add(&file->infos, &f32, sizeof f32);
    tiny_add(&file->infos, &offset, sizeof offset);
    file->n_tensors++;
    for (uint64_t row = 0; row < n * (rows > 0 ? rows : 1); row++) {
        for (uint64_t col = 0; col < cols; col++) {
            float value = rows > 0 ? 2 * scale * tiny_random(&file->seed) : 0.3f * tiny_random(&file->seed);
            if (strstr(name, "norm") != NULL) value += 1;
            if (m->cycle > 0) value = tiny_script_value(m, name, col, row);
            tiny_add(&file->payload, &value, sizeof value);
        }
    }
    while (file->payload.n_bytes % 32 != 0) tiny_add(&file->payload, "", 1);
}

static inline void tiny_tensor(tiny_file *file, const char *name, uint64_t cols, uint64_t rows) {
    tiny_stack(file, name, cols, rows, 1);
}

static inline void tiny_experts(tiny_file *file, uint32_t layer, const char *stem, uint64_t cols, uint64_t rows) {
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", layer, stem);
    tiny_stack(file, name, cols, rows, file->model->n_expert);
}

static inline void tiny_block(tiny_file *file, uint32_t layer, const char *stem, uint64_t cols, uint64_t rows) {
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", layer, stem);
    tiny_tensor(file, name, cols, rows);
}

static inline void tiny_tensors(tiny_file *file) {
    const tiny_model *m = file->model;
    const uint64_t heads = (uint64_t)m->n_head * m->head_dim, kv = (uint64_t)m->n_head_kv * m->head_dim;
    tiny_tensor(file, "token_embd.weight", m->n_embd, m->n_vocab - m->embd_rows_off_by);
    for (uint32_t i = 0; i < m->n_layer; i++) {
        tiny_block(file, i, "attn_norm.weight", m->n_embd, 0);
        tiny_block(file, i, "attn_q.weight", m->n_embd, heads);
        tiny_block(file, i, "attn_k.weight", m->n_embd, kv);
        tiny_block(file, i, "attn_v.weight", m->n_embd, kv);
        tiny_block(file, i, "attn_output.weight", heads, m->n_embd);
        if (m->biases) {
            tiny_block(file, i, "attn_q.bias", heads, 0);
            tiny_block(file, i, "attn_k.bias", kv, 0);
            tiny_block(file, i, "attn_v.bias", kv, 0);
        }
        if (m->arch != NULL && strncmp(m->arch, "qwen3", 5) == 0) {
            tiny_block(file, i, "attn_q_norm.weight", m->head_dim, 0);
            tiny_block(file, i, "attn_k_norm.weight", m->head_dim, 0);
        }
        tiny_block(file, i, "ffn_norm.weight", m->n_embd, 0);
        if (m->n_expert > 0) {
            tiny_block(file, i, "ffn_gate_inp.weight", m->n_embd, m->n_expert);
            tiny_experts(file, i, "ffn_gate_exps.weight", m->n_embd, m->n_ff_expert);
            tiny_experts(file, i, "ffn_up_exps.weight", m->n_embd, m->n_ff_expert);
            tiny_experts(file, i, "ffn_down_exps.weight", m->n_ff_expert, m->n_embd);
            continue;
        }
        tiny_block(file, i, "ffn_gate.weight", m->n_embd, m->n_ff);
        tiny_block(file, i, "ffn_up.weight", m->n_embd, m->n_ff);
        tiny_block(file, i, "ffn_down.weight", m->n_ff, m->n_embd);
    }
    tiny_tensor(file, "output_norm.weight", m->n_embd, 0);
    if (!m->tied) tiny_tensor(file, "output.weight", m->n_embd, m->n_vocab);
    if (m->with != NULL) tiny_tensor(file, m->with, 4, 0);
}

static inline void tiny_array(tiny_file *file, const char *key, uint32_t element_type, uint64_t n) {
    tiny_key(file, key, 9);
    tiny_add(&file->pairs, &element_type, sizeof element_type);
    tiny_add(&file->pairs, &n, sizeof n);
}

static inline void tiny_vocabulary(tiny_file *file) {
    static const char *const control[] = {"<unk>", "<s>", "</s>"};
    char text[16];
    tiny_string(file, "tokenizer.ggml.model", "llama");
    tiny_array(file, "tokenizer.ggml.tokens", 8, 259);
    for (unsigned i = 0; i < 259; i++) {
        snprintf(text, sizeof text, "<0x%02X>", i >= 3 ? i - 3 : 0);
        tiny_text(&file->pairs, i < 3 ? control[i] : text);
    }
    tiny_array(file, "tokenizer.ggml.scores", 6, 259);
    for (int i = 0; i < 259; i++) tiny_add(&file->pairs, &(float){(float)-i}, sizeof(float));
    tiny_array(file, "tokenizer.ggml.token_type", 5, 259);
    for (int i = 0; i < 259; i++) tiny_add(&file->pairs, &(int32_t){i == 0 ? 2 : i < 3 ? 3 : 6}, sizeof(int32_t));
    tiny_u32(file, "tokenizer.ggml.unknown_token_id", 0);
    tiny_u32(file, "tokenizer.ggml.bos_token_id", 1);
    tiny_u32(file, "tokenizer.ggml.eos_token_id", 2);
}

/* The bytes of the file; free data. */
static inline nib_string tiny_bytes(const tiny_model *m) {
    tiny_file file = {.model = m, .seed = m->seed};
    nib_string out = {0};
    if (m->arch != NULL) tiny_string(&file, "general.architecture", m->arch);
    tiny_u32(&file, ".block_count", m->n_layer);
    tiny_u32(&file, ".context_length", 128);
    tiny_u32(&file, ".embedding_length", m->n_embd);
    tiny_u32(&file, ".feed_forward_length", m->n_ff);
    tiny_u32(&file, ".attention.head_count", m->n_head);
    tiny_u32(&file, ".attention.head_count_kv", m->n_head_kv);
    tiny_u32(&file, ".attention.key_length", m->head_dim);
    tiny_u32(&file, ".attention.value_length", m->head_dim);
    tiny_u32(&file, ".vocab_size", m->n_vocab);
    tiny_f32(&file, ".attention.layer_norm_rms_epsilon", m->eps);
    tiny_f32(&file, ".rope.freq_base", m->rope_base);
    if (m->n_expert > 0) {
        tiny_u32(&file, ".expert_count", m->n_expert);
        tiny_u32(&file, ".expert_used_count", m->n_expert_used);
        tiny_u32(&file, ".expert_feed_forward_length", m->n_ff_expert);
    }
    if (m->rope_scaling != NULL) tiny_string(&file, ".rope.scaling.type", m->rope_scaling);
    if (m->vocabulary) tiny_vocabulary(&file);
    tiny_tensors(&file);
    const uint32_t version = 3;
    tiny_add(&out, "GGUF", 4);
    tiny_add(&out, &version, sizeof version);
    tiny_add(&out, &file.n_tensors, sizeof file.n_tensors);
    tiny_add(&out, &file.n_pairs, sizeof file.n_pairs);
    tiny_add(&out, file.pairs.data, file.pairs.n_bytes);
    tiny_add(&out, file.infos.data, file.infos.n_bytes);
    while (out.n_bytes % 32 != 0) tiny_add(&out, "", 1);
    tiny_add(&out, file.payload.data, file.payload.n_bytes);
    nib_string_fini(&file.pairs);
    nib_string_fini(&file.infos);
    nib_string_fini(&file.payload);
    return out;
}

/* Opens the model; bytes must be freed after it is closed. */
static inline nib_status tiny_open(const tiny_model *m, const nib_watch *watch, nib_string *bytes, nib_model **out,
                                   nib_error *error) {
    nib_gguf *gguf = NULL;
    *bytes = tiny_bytes(m);
    *out = NULL;
    const nib_status status = nib_gguf_open_memory(bytes->data, bytes->n_bytes, "tiny", &gguf, error);
    return status == NIB_OK ? nib_model_from_gguf(gguf, watch, out, error) : status;
}

#endif
