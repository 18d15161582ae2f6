/* Cache of keys and values, and attention over it, spread over the pool: one item is a block of consecutive tokens of one
 * segment and the query heads that share one kv head. */
#include "cpu/cpu.h"
#include "kernel/level.h"

static const nib_attend_kernels *attend_kernels(void) {
#define LEVEL(name, needs) &nib_attend_kernels_##name,
    static const nib_attend_kernels *const levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    return levels[nib_cpu_level_index()];
}

static const nib_row_kernels *row_kernels(void) {
#define LEVEL(name, needs) &nib_row_kernels_##name,
    static const nib_row_kernels *const levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    return levels[nib_cpu_level_index()];
}

static size_t element_bytes(nib_path path) {
    return path == NIB_PATH_EXACT ? sizeof(float) : sizeof(uint16_t);
}

/* Element of position 0 of a sequence and kv head. */
static size_t head_start(const nib_kv_layer *kv, uint32_t seq, uint32_t head) {
    return ((size_t)seq * kv->n_head_kv + head) * kv->n_ctx * kv->head_dim;
}

/* ---- storing ---------------------------------------------------------------------------------------------------- */

typedef struct store_job {
    nib_path path;
    const nib_row_kernels *kernels;
    const nib_kv_layer *kv;
    const nib_attend_segment *segments;
    uint32_t n_segments;
    const float *k, *v;
} store_job;

static void store_rows(const store_job *job, const nib_attend_segment *segment, uint32_t head) {
    const nib_kv_layer *kv = job->kv;
    const size_t n = kv->head_dim;
    for (uint32_t i = 0; i < segment->n; i++) {
        const size_t from = ((size_t)(segment->first + i) * kv->n_head_kv + head) * n;
        const size_t to = head_start(kv, segment->seq, head) + (size_t)(segment->pos + i) * n;
        if (job->path == NIB_PATH_EXACT) {
            memcpy((float *)kv->keys + to, job->k + from, n * sizeof(float));
            memcpy((float *)kv->values + to, job->v + from, n * sizeof(float));
        } else {
            job->kernels->to_f16((uint16_t *)kv->keys + to, job->k + from, n);
            job->kernels->to_f16((uint16_t *)kv->values + to, job->v + from, n);
        }
    }
}

static void store_heads(void *arg, size_t begin, size_t end, unsigned worker) {
    const store_job *job = arg;
    (void)worker;
    for (size_t i = begin; i < end; i++)
        store_rows(job, job->segments + i / job->kv->n_head_kv, (uint32_t)(i % job->kv->n_head_kv));
}

size_t nib_kv_bytes(nib_path path, uint32_t n_seq, uint32_t n_ctx, uint32_t n_head_kv, uint32_t head_dim) {
    return (size_t)n_seq * n_ctx * n_head_kv * head_dim * element_bytes(path);
}

void nib_kv_store(nib_pool *pool, nib_path path, const nib_kv_layer *kv, const nib_attend_segment *segments,
                  uint32_t n_segments, const float *k, const float *v) {
    store_job job = {path, row_kernels(), kv, segments, n_segments, k, v};
    nib_par_for(pool, (size_t)n_segments * kv->n_head_kv, 1, store_heads, &job);
}

/* ---- attending -------------------------------------------------------------------------------------------------- */

typedef struct attend_job {
    nib_path path;
    const nib_attend_kernels *kernels;
    const nib_kv_layer *kv;
    const nib_attend_segment *segments;
    const float *q;
    uint32_t n_head;
    uint32_t heads_per_item, n_groups; /* query heads of an item; items per kv head */
    uint32_t tokens_per_item;
    float scale;
    float *out, *scratch;
    size_t scratch_floats; /* of one worker */
} attend_job;

static size_t blocks_of(const attend_job *job, const nib_attend_segment *segment) {
    return ((size_t)segment->n + job->tokens_per_item - 1) / job->tokens_per_item;
}

/* item: within the segment; later tokens, which see more keys, come first so that no worker ends with the longest. */
static void attend_item(const attend_job *job, const nib_attend_segment *segment, size_t item, float *scratch) {
    const nib_kv_layer *kv = job->kv;
    const size_t per_block = (size_t)kv->n_head_kv * job->n_groups;
    const uint32_t block = (uint32_t)(blocks_of(job, segment) - 1 - item / per_block);
    const uint32_t head_kv = (uint32_t)(item % per_block / job->n_groups), group = (uint32_t)(item % job->n_groups);
    const uint32_t shared = job->n_head / kv->n_head_kv, first_head = group * job->heads_per_item;
    const uint32_t first_token = block * job->tokens_per_item, left = segment->n - first_token;
    const size_t start = head_start(kv, segment->seq, head_kv) * element_bytes(job->path);
    const size_t row = (size_t)(segment->first + first_token) * job->n_head + (size_t)head_kv * shared + first_head;
    const nib_attend_task task = {
        .keys = (const char *)kv->keys + start,
        .values = (const char *)kv->values + start,
        .is_f16 = job->path != NIB_PATH_EXACT,
        .head_dim = kv->head_dim,
        .n_tokens = left < job->tokens_per_item ? left : job->tokens_per_item,
        .n_heads = shared - first_head < job->heads_per_item ? shared - first_head : job->heads_per_item,
        .position = segment->pos + first_token,
        .scale = job->scale,
        .q = job->q + row * kv->head_dim,
        .out = job->out + row * kv->head_dim,
        .token_stride = (size_t)job->n_head * kv->head_dim,
    };
    job->kernels->attend(&task, scratch);
}

static void attend_items(void *arg, size_t begin, size_t end, unsigned worker) {
    const attend_job *job = arg;
    for (size_t i = begin; i < end; i++) {
        const nib_attend_segment *segment = job->segments;
        size_t item = i;
        for (size_t n; item >= (n = blocks_of(job, segment) * job->kv->n_head_kv * job->n_groups); segment++) item -= n;
        attend_item(job, segment, item, job->scratch + worker * job->scratch_floats);
    }
}

size_t nib_attend_scratch_bytes(uint32_t n_ctx, uint32_t head_dim, unsigned n_workers) {
    (void)n_ctx; /* keys pass by in blocks */
    return nib_attend_floats(head_dim) * sizeof(float) * n_workers;
}

void nib_attend(nib_pool *pool, nib_path path, const nib_kv_layer *kv, const nib_attend_segment *segments,
                uint32_t n_segments, const float *q, uint32_t n_head, float scale, float *out, void *scratch) {
    const uint32_t shared = n_head / kv->n_head_kv;
    const uint32_t heads = shared < NIB_ATTEND_ROWS ? shared : NIB_ATTEND_ROWS;
    attend_job job = {
        .path = path,
        .kernels = attend_kernels(),
        .kv = kv,
        .segments = segments,
        .q = q,
        .n_head = n_head,
        .heads_per_item = heads,
        .n_groups = (shared + heads - 1) / heads,
        .tokens_per_item = NIB_ATTEND_ROWS / heads,
        .scale = scale,
        .out = out,
        .scratch = scratch,
        .scratch_floats = nib_attend_floats(kv->head_dim),
    };
    size_t n_items = 0;
    for (uint32_t i = 0; i < n_segments; i++) n_items += blocks_of(&job, segments + i) * kv->n_head_kv * job.n_groups;
    nib_par_for(pool, n_items, 1, attend_items, &job);
}
