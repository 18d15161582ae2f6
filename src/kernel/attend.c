/* Cache of keys and values, and attention over it, spread over the pool: one item is a block of consecutive tokens of one
 * segment and the query heads that share one kv head. When rows are few, as in generation, an item is one piece of the keys
 * only, and a second pass folds the pieces. */
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

static const nib_kv_kernels *kv_kernels(void) {
#define LEVEL(name, needs) &nib_kv_kernels_##name,
    static const nib_kv_kernels *const levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    return levels[nib_cpu_level_index()];
}

/* Work below these sizes is done by the caller: waking workers would cost more. */
enum { SMALL_STORE = 512 /* values, each a line of memory */, SMALL_ATTENTION = 1 << 17 /* multiply-adds */ };

/* ---- the cache -------------------------------------------------------------------------------------------------- */

bool nib_kv_fits(nib_kv_type type, uint32_t head_dim) {
    return type != NIB_KV_TYPE_Q8_0 || head_dim % NIB_KV_GROUP == 0;
}

size_t nib_kv_position_bytes(nib_kv_type type, uint32_t head_dim) {
    return nib_kv_row_bytes(type, head_dim);
}

static size_t head_bytes(nib_kv_type type, uint32_t n_ctx, uint32_t head_dim) {
    const size_t padded = ((size_t)n_ctx + NIB_ATTEND_KEYS - 1) / NIB_ATTEND_KEYS * NIB_ATTEND_KEYS;
    return padded * nib_kv_row_bytes(type, head_dim);
}

size_t nib_kv_bytes(nib_kv_type type, uint32_t n_seq, uint32_t n_ctx, uint32_t n_head_kv, uint32_t head_dim) {
    return (size_t)n_seq * n_head_kv * head_bytes(type, n_ctx, head_dim);
}

/* Byte of position 0 of a sequence and kv head. */
static size_t head_start(const nib_kv_layer *kv, uint32_t seq, uint32_t head) {
    return ((size_t)seq * kv->n_head_kv + head) * head_bytes(kv->type, kv->n_ctx, kv->head_dim);
}

void nib_kv_copy(const nib_kv_layer *kv, uint32_t from_seq, uint32_t to_seq, uint32_t n) {
    const size_t used = head_bytes(kv->type, n, kv->head_dim); /* whole tiles; what lies past n is forgotten anyway */
    for (uint32_t head = 0; head < kv->n_head_kv; head++) {
        const size_t from = head_start(kv, from_seq, head), to = head_start(kv, to_seq, head);
        memcpy((char *)kv->keys + to, (char *)kv->keys + from, used);
        memcpy((char *)kv->values + to, (char *)kv->values + from, used);
    }
}

typedef struct store_job {
    const nib_kv_kernels *kernels;
    const nib_kv_layer *kv;
    const nib_attend_segment *segments;
    const float *k, *v;
} store_job;

static void store_heads(void *arg, size_t begin, size_t end, unsigned worker) {
    const store_job *job = arg;
    const nib_kv_layer *kv = job->kv;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const nib_attend_segment *segment = job->segments + i / kv->n_head_kv;
        const uint32_t head = (uint32_t)(i % kv->n_head_kv);
        const size_t start = head_start(kv, segment->seq, head);
        const size_t from = ((size_t)segment->first * kv->n_head_kv + head) * kv->head_dim;
        const nib_kv_store_task task = {
            .type = kv->type,
            .head_dim = kv->head_dim,
            .keys = (char *)kv->keys + start,
            .values = (char *)kv->values + start,
            .position = segment->pos,
            .n_tokens = segment->n,
            .k = job->k + from,
            .v = job->v + from,
            .token_stride = (size_t)kv->n_head_kv * kv->head_dim,
        };
        job->kernels->store(&task);
    }
}

static size_t tokens_of(const nib_attend_segment *segments, uint32_t n_segments) {
    size_t n = 0;
    for (uint32_t i = 0; i < n_segments; i++) n += segments[i].n;
    return n;
}

void nib_kv_store(nib_pool *pool, const nib_kv_layer *kv, const nib_attend_segment *segments, uint32_t n_segments,
                  const float *k, const float *v) {
    store_job job = {kv_kernels(), kv, segments, k, v};
    const size_t n_items = (size_t)n_segments * kv->n_head_kv;
    const bool small = tokens_of(segments, n_segments) * kv->n_head_kv * kv->head_dim <= SMALL_STORE;
    nib_par_for(pool, n_items, small ? n_items : 1, store_heads, &job);
}

/* ---- attending -------------------------------------------------------------------------------------------------- */

enum {
    SPLIT_ROWS = 256, /* rows (token, head) of a batch up to which an item is one piece of the keys */
    FEW_ROWS = 8,     /* rows of a segment that share a kv head up to which products are in f32 */
    MIN_ROWS = 24,    /* of an item, when more of them would leave workers idle */
};

typedef struct attend_job {
    nib_path path;
    const nib_attend_kernels *kernels;
    const nib_kv_layer *kv;
    const nib_attend_segment *segments;
    uint32_t n_segments;
    const float *q;
    uint32_t n_head;
    uint32_t heads_per_item, n_groups; /* query heads of an item; items per kv head */
    uint32_t tokens_per_item;
    uint32_t window;
    float scale;
    float *out, *scratch;
    size_t scratch_floats; /* of one worker */
    float *parts;          /* (pieces, tokens, n_head, part_floats), if items are pieces, else NULL */
    size_t part_floats, n_tokens;
} attend_job;

/* The first piece of the keys that the token at a position sees, and the one after the last. */
static uint32_t first_piece(const attend_job *job, size_t position) {
    return (uint32_t)(job->window && position + 1 > job->window ? (position + 1 - job->window) / NIB_ATTEND_PIECE : 0);
}
static uint32_t end_piece(size_t position) {
    return (uint32_t)(position / NIB_ATTEND_PIECE + 1);
}

static size_t blocks_of(const attend_job *job, const nib_attend_segment *segment) {
    return ((size_t)segment->n + job->tokens_per_item - 1) / job->tokens_per_item;
}
/* Pieces that each block of a segment is cut into. Some may lie outside of what a block sees; they cost nothing. */
static size_t cuts_of(const attend_job *job, const nib_attend_segment *segment) {
    return job->parts ? end_piece((size_t)segment->pos + segment->n - 1) - first_piece(job, segment->pos) : 1;
}
static size_t items_of(const attend_job *job, const nib_attend_segment *segment) {
    return blocks_of(job, segment) * job->kv->n_head_kv * job->n_groups * cuts_of(job, segment);
}

/* The keys that an item begins with: piece, then group and kv head, then block. */
static const char *keys_of(const attend_job *job, const nib_attend_segment *segment, size_t item) {
    const nib_kv_layer *kv = job->kv;
    const size_t n_cuts = cuts_of(job, segment);
    const uint32_t head_kv = (uint32_t)(item / n_cuts / job->n_groups % kv->n_head_kv);
    const size_t piece = first_piece(job, segment->pos) + item % n_cuts;
    return (const char *)kv->keys + head_start(kv, segment->seq, head_kv) +
           piece * NIB_ATTEND_PIECE * nib_kv_row_bytes(kv->type, kv->head_dim);
}

/* item: within the segment; later tokens, which see more keys, come first so that no worker ends with the longest. */
static void attend_item(const attend_job *job, const nib_attend_segment *segment, size_t item, float *scratch) {
    const nib_kv_layer *kv = job->kv;
    const uint32_t piece = first_piece(job, segment->pos) + (uint32_t)(item % cuts_of(job, segment));
    const char *keys_ahead = keys_of(job, segment, item + 1);
    item /= cuts_of(job, segment);
    const size_t per_block = (size_t)kv->n_head_kv * job->n_groups;
    const uint32_t block = (uint32_t)(blocks_of(job, segment) - 1 - item / per_block);
    const uint32_t head_kv = (uint32_t)(item % per_block / job->n_groups), group = (uint32_t)(item % job->n_groups);
    const uint32_t shared = job->n_head / kv->n_head_kv, first_head = group * job->heads_per_item;
    const uint32_t first_token = block * job->tokens_per_item, left = segment->n - first_token;
    const size_t start = head_start(kv, segment->seq, head_kv);
    const size_t row = (size_t)(segment->first + first_token) * job->n_head + (size_t)head_kv * shared + first_head;
    const nib_attend_task task = {
        .type = kv->type,
        .keys = (const char *)kv->keys + start,
        .values = (const char *)kv->values + start,
        .keys_ahead = keys_ahead,
        .integers =
            job->path != NIB_PATH_EXACT && kv->type != NIB_KV_TYPE_F32 && (size_t)segment->n * shared > FEW_ROWS,
        .head_dim = kv->head_dim,
        .n_tokens = left < job->tokens_per_item ? left : job->tokens_per_item,
        .n_heads = shared - first_head < job->heads_per_item ? shared - first_head : job->heads_per_item,
        .position = segment->pos + first_token,
        .window = job->window,
        .scale = job->scale,
        .q = job->q + row * kv->head_dim,
        .out = job->out + row * kv->head_dim,
        .token_stride = (size_t)job->n_head * kv->head_dim,
        .piece = piece,
        .part = job->parts ? job->parts + (piece * job->n_tokens * job->n_head + row) * job->part_floats : NULL,
        .part_stride = job->n_head * job->part_floats,
    };
    job->kernels->attend(&task, scratch);
}

static void attend_items(void *arg, size_t begin, size_t end, unsigned worker) {
    const attend_job *job = arg;
    for (size_t i = begin; i < end; i++) {
        const nib_attend_segment *segment = job->segments;
        size_t item = i;
        for (size_t n; item >= (n = items_of(job, segment)); segment++) item -= n;
        attend_item(job, segment, item, job->scratch + worker * job->scratch_floats);
    }
}

/* Folds the pieces of rows (token, head). */
static void merge_rows(void *arg, size_t begin, size_t end, unsigned worker) {
    const attend_job *job = arg;
    const size_t step = job->n_tokens * job->n_head * job->part_floats;
    (void)worker;
    for (size_t row = begin; row < end; row++) {
        const nib_attend_segment *segment = job->segments;
        const size_t token = row / job->n_head;
        while (token >= (size_t)segment->first + segment->n) segment++;
        const size_t position = segment->pos + (token - segment->first);
        const size_t first = first_piece(job, position), n = end_piece(position) - first;
        job->kernels->merge(job->parts + first * step + row * job->part_floats, n, step, job->kv->head_dim,
                            job->out + row * job->kv->head_dim);
    }
}

/* Items as large as possible, since a block's keys are read once for all its rows, but enough for all workers. */
static void size_items(attend_job *job, unsigned n_workers) {
    const uint32_t shared = job->n_head / job->kv->n_head_kv;
    uint32_t rows = NIB_ATTEND_ROWS;
    for (;; rows /= 2) {
        size_t n = 0;
        job->heads_per_item = shared < rows ? shared : rows;
        job->n_groups = (shared + job->heads_per_item - 1) / job->heads_per_item;
        job->tokens_per_item = rows / job->heads_per_item;
        for (uint32_t i = 0; i < job->n_segments; i++) n += items_of(job, job->segments + i);
        if (n >= 4 * (size_t)n_workers || rows <= MIN_ROWS) return;
    }
}

static size_t split_floats(uint32_t n_ctx, size_t n_rows, uint32_t head_dim) {
    return n_ctx <= NIB_ATTEND_PIECE ? 0 : end_piece(n_ctx - 1) * n_rows * nib_attend_part_floats(head_dim);
}

size_t nib_attend_scratch_bytes(uint32_t n_ctx, uint32_t n_tokens, uint32_t n_head, uint32_t head_dim,
                                unsigned n_workers) {
    const size_t n_rows = (size_t)n_tokens * n_head < SPLIT_ROWS ? (size_t)n_tokens * n_head : SPLIT_ROWS;
    return (nib_attend_floats(head_dim) * n_workers + split_floats(n_ctx, n_rows, head_dim)) * sizeof(float);
}

void nib_attend(nib_pool *pool, nib_path path, const nib_kv_layer *kv, const nib_attend_segment *segments,
                uint32_t n_segments, const float *q, uint32_t n_head, float scale, uint32_t window, float *out,
                void *scratch) {
    attend_job job = {
        .path = path,
        .kernels = attend_kernels(),
        .kv = kv,
        .segments = segments,
        .n_segments = n_segments,
        .q = q,
        .n_head = n_head,
        .window = window,
        .scale = scale,
        .out = out,
        .scratch = scratch,
        .scratch_floats = nib_attend_floats(kv->head_dim),
        .part_floats = nib_attend_part_floats(kv->head_dim),
        .n_tokens = tokens_of(segments, n_segments),
    };
    size_t n_items = 0, n_seen = 0;
    bool is_cut = false; /* does any block see more than a piece? */
    for (uint32_t i = 0; i < n_segments; i++) {
        const size_t last = (size_t)segments[i].pos + segments[i].n - 1;
        is_cut |= end_piece(last) - first_piece(&job, segments[i].pos) > 1;
        n_seen += segments[i].n * (window && window <= last ? window : last + 1);
    }
    if (is_cut && job.n_tokens * n_head <= SPLIT_ROWS)
        job.parts = job.scratch + job.scratch_floats * nib_pool_size(pool);
    size_items(&job, nib_pool_size(pool));
    for (uint32_t i = 0; i < n_segments; i++) n_items += items_of(&job, segments + i);
    const bool small = 2 * n_seen * n_head * kv->head_dim <= SMALL_ATTENTION;
    nib_par_for(pool, n_items, small ? n_items : 1, attend_items, &job);
    if (job.parts) nib_par_for(pool, job.n_tokens * n_head, 16, merge_rows, &job);
}
