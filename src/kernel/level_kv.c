/* Keys and values on their way into the cache, one head of consecutive tokens at a time. */
#include "kernel/kv.h"

/* 32 values as 8-bit codes, and their scale as f16. A value that is not finite must not become a number: it makes the scale
 * not finite, and with it the whole group. */
static uint16_t encode_group(const float *x, int8_t *codes) {
    const vf a = vf_load(x), b = vf_load(x + 16);
    const vf zero = vf_zero();
    const float most = vf_largest(vf_max(vf_max(a, vf_sub(zero, a)), vf_max(b, vf_sub(zero, b))));
    const float broken = vf_sum(vf_mul(vf_add(vf_sub(a, a), vf_sub(b, b)), zero)); /* 0, or NaN */
    const float scale = most / 127, inverse = scale > 0 ? 1 / scale : 0;
    int16_t wide[32];
    vi_to_i16(wide, vi_round(vf_mul(a, vf_splat(inverse))));
    vi_to_i16(wide + 16, vi_round(vf_mul(b, vf_splat(inverse))));
    for (int i = 0; i < KV_GROUP; i++) codes[i] = (int8_t)wide[i];
    return nib_f32_to_f16(scale + broken);
}

static void store_codes(const nib_kv_store_task *task, size_t position, const float *k, const float *v) {
    const size_t at = position / KV_TILE * kv_tile_bytes(task->type, task->head_dim), lane = position % KV_TILE;
    for (size_t d = 0; d < task->head_dim; d += KV_GROUP) {
        int8_t codes[KV_GROUP];
        ((uint16_t *)kv_scales(task->keys + at, d))[lane] = encode_group(k + d, codes);
        int8_t *to = (int8_t *)kv_codes(task->keys + at, d);
        for (size_t i = 0; i < KV_GROUP; i++) to[i * KV_TILE + lane] = codes[i];
        ((uint16_t *)kv_scales(task->values + at, d))[lane] = encode_group(v + d, codes);
        memcpy((int8_t *)kv_codes(task->values + at, d) + lane * KV_GROUP, codes, sizeof codes);
    }
}

static void store_halves(const nib_kv_store_task *task, size_t position, const float *k, const float *v) {
    const size_t n = task->head_dim, row = nib_kv_row_bytes(task->type, task->head_dim);
    uint16_t *keys = (uint16_t *)(task->keys + position / KV_TILE * KV_TILE * row) + position % KV_TILE;
    uint16_t *value = (uint16_t *)(task->values + position * row), halves[16];
    for (size_t d = 0; d < n; d += 16) {
        const size_t left = n - d;
        vf_to_f16(halves, left < 16 ? vf_load_n(k + d, left) : vf_load(k + d));
        for (size_t i = 0; i < 16 && i < left; i++) keys[(d + i) * KV_TILE] = halves[i];
        vf_to_f16(value + d, left < 16 ? vf_load_n(v + d, left) : vf_load(v + d));
    }
}

static void store_floats(const nib_kv_store_task *task, size_t position, const float *k, const float *v) {
    const size_t n = task->head_dim, row = nib_kv_row_bytes(task->type, task->head_dim);
    float *keys = (float *)(task->keys + position / KV_TILE * KV_TILE * row) + position % KV_TILE;
    float *value = (float *)(task->values + position * row);
    for (size_t d = 0; d < n; d++) keys[d * KV_TILE] = k[d];
    memcpy(value, v, n * sizeof *v);
    memset(value + n, 0, row - n * sizeof *v);
}

static void store(const nib_kv_store_task *task) {
    for (size_t i = 0; i < task->n_tokens; i++) {
        const size_t position = task->position + i;
        const float *k = task->k + i * task->token_stride, *v = task->v + i * task->token_stride;
        if (task->type == NIB_KV_TYPE_Q8_0)
            store_codes(task, position, k, v);
        else if (task->type == NIB_KV_TYPE_F16)
            store_halves(task, position, k, v);
        else
            store_floats(task, position, k, v);
    }
}

extern const nib_kv_kernels NIB_AT_LEVEL(nib_kv_kernels_);
const nib_kv_kernels NIB_AT_LEVEL(nib_kv_kernels_) = {.store = store};
