/* Matrix products over the pool. Activations are rounded and packed once for all products that want them the same way;
 * then the workers claim pieces of the weights: up to 4 x 32 rows (and at most 516 tokens) by panels, or some rows when
 * tokens are few. */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "format/format.h"
#include "kernel/level.h"
#include "nibble/kernel.h"

/* The three tables of one level. */
typedef struct linear_kernels {
    const nib_pack_kernels *pack;
    const nib_gemm_kernels *gemm;
    const nib_gemv_kernels *gemv;
} linear_kernels;

static const linear_kernels *kernels_in_use(void) {
#define LEVEL(name, needs) {&nib_pack_kernels_##name, &nib_gemm_kernels_##name, &nib_gemv_kernels_##name},
    static const linear_kernels levels[] = {
#include "cpu/levels.def"
    };
#undef LEVEL
    return &levels[nib_cpu_level_index()];
}

enum {
    MIN_ROWS = 16, /* by rows: a piece is so many, and more while the weights of a piece are few */
    MAX_ROWS = 64,
    PIECE_BYTES = 32 << 10,
    NEAR_BYTES = 512 << 10,  /* packed activations that the second cache keeps from panel to panel */
    AHEAD_BYTES = 160 << 10, /* by 16 rows: 32 read the activations once, if the next 32 are not more than this */
    PIECES_PER_WORKER = 4,   /* by panels: pieces are as tall as leaves so many of every product */
    PRODUCTS_AT_ONCE = 32,
};

/* One worker's memory. */
typedef struct worker_scratch {
    nib_panel_scratch panel;
    _Alignas(64) float sums[NIB_TASK_PANELS * NIB_TASK_TILES * NIB_TILE_TOKENS * NIB_PANEL_ROWS];
} worker_scratch;

/* How a product goes: products that go the same way share their activations. */
typedef struct way {
    nib_route route;
    nib_activation rounding;
    bool by_rows, by_16; /* by_16: rows, 16 at once */
} way;

/* A product, and what all its pieces need to know. */
typedef struct prepared {
    const nib_product *product;
    const nib_format *format; /* the level's own */
    way way;
    size_t row_bytes, n_pieces;
    size_t n_chunks, tile_bytes; /* of the tokens, by panels */
    uint32_t height;             /* rows of a piece */
    bool is_near;                /* by panels: the second cache keeps all activations */
} prepared;

typedef struct linear_job {
    const linear_kernels *kernels;
    nib_path path;
    const float *x;
    uint32_t n_tokens, n_cols;
    unsigned n_workers;
    way way; /* of the products that run now */
    const prepared *products;
    size_t n_products;
    void *packed;
    worker_scratch *workers;
} linear_job;

static size_t blocks_of(size_t n_cols) {
    return (n_cols + NIB_PANEL_K - 1) / NIB_PANEL_K;
}

/* The float layout is the largest, for tiles and for few rows. */
static size_t packed_bytes(uint32_t n_cols, uint32_t n_tokens) {
    const size_t tiles = nib_tiles_of(n_tokens) * nib_tile_bytes(NULL, NIB_ROUTE_F32);
    const size_t rows = (n_tokens < NIB_FEW_MOST ? n_tokens : NIB_FEW_MOST) * sizeof(nib_int_row);
    return blocks_of(n_cols) * (tiles > rows ? tiles : rows);
}

size_t nib_linear_scratch_bytes(uint32_t n_cols, uint32_t n_tokens, unsigned n_workers) {
    return packed_bytes(n_cols, n_tokens) + n_workers * sizeof(worker_scratch);
}

/* ---- which way -------------------------------------------------------------------------------------------------- */

static nib_route route_of(const linear_job *job, const nib_format *format) {
    if (job->path == NIB_PATH_EXACT) return NIB_ROUTE_F32;
    if (format->facts.kind == NIB_CLASS_FLOAT) {
        const bool stored_bf16 =
            format->activation == NIB_ACT_BF16 && format->facts.block == 1 && format->facts.bytes == 2;
        return stored_bf16 && job->kernels->gemm->has_bf16 ? NIB_ROUTE_BF16 : NIB_ROUTE_F32;
    }
    if (!format->unpack || (format->group != 16 && format->group != 32) || job->n_cols % format->group)
        return NIB_ROUTE_F32;
    if (format->activation == NIB_ACT_Q8_32) return NIB_ROUTE_INT_32;
    return format->activation == NIB_ACT_Q8_256 ? NIB_ROUTE_INT_256 : NIB_ROUTE_F32;
}

/* Up to how many tokens rows are quicker than panels. */
static uint32_t most_by_rows(const linear_job *job, const nib_format *format, nib_route route) {
    if (route == NIB_ROUTE_BF16) return NIB_PAIR_TOKENS;
    if (format->facts.kind == NIB_CLASS_FLOAT && format->dot) return NIB_FLOAT_TOKENS;
    if (route == NIB_ROUTE_F32 || !format->turn || !job->kernels->gemm->has_dp4) return NIB_GEMV_TOKENS;
    return format->dot_tokens ? format->dot_tokens : 1;
}

/* Are 16 rows at once quicker than both? Blocks of such formats are 32 or more, so that the last 256 columns are whole. */
static bool goes_by_16(const linear_job *job, const nib_matrix *weight, const nib_format *format, nib_route route) {
    return format->few && route != NIB_ROUTE_F32 && job->n_tokens >= format->few->from &&
           job->n_tokens <= format->few->to && weight->n_rows >= 16 && weight->n_cols >= NIB_PANEL_K;
}

static way way_of(const linear_job *job, const nib_matrix *weight, const nib_format *format) {
    const nib_route route = route_of(job, format);
    const bool rounds = job->path == NIB_PATH_DEPLOYED && format->facts.kind == NIB_CLASS_FLOAT;
    const bool by_16 = goes_by_16(job, weight, format, route);
    return (way){.route = route,
                 .rounding = rounds ? format->activation : NIB_ACT_F32,
                 .by_rows = by_16 || job->n_tokens <= most_by_rows(job, format, route),
                 .by_16 = by_16};
}

static bool is_same_way(way x, way y) {
    return x.route == y.route && x.rounding == y.rounding && x.by_rows == y.by_rows && x.by_16 == y.by_16;
}

/* The route on the deployed path. */
static nib_route usual_route(const nib_format *fast) {
    const linear_job job = {.kernels = kernels_in_use(), .path = NIB_PATH_DEPLOYED, .n_cols = NIB_PANEL_K};
    return route_of(&job, fast);
}

nib_multiply nib_multiply_of(const nib_format *format) {
    switch (usual_route(nib_format_fast(format))) {
    case NIB_ROUTE_INT_32:
    case NIB_ROUTE_INT_256:
        return NIB_MULTIPLY_INT8;
    case NIB_ROUTE_BF16:
        return NIB_MULTIPLY_BF16;
    case NIB_ROUTE_F32:
        break;
    }
    return NIB_MULTIPLY_F32;
}

nib_format_kernels nib_format_kernels_of(const nib_format *format) {
    const nib_format *fast = nib_format_fast(format);
    const nib_route route = usual_route(fast);
    const bool is_integer = route == NIB_ROUTE_INT_32 || route == NIB_ROUTE_INT_256;
    nib_format_kernels kernels = {.few = fast->few ? "rows straight from the stored bytes, several tokens by 16 of them"
                                         : fast->dot  ? "rows straight from the stored bytes"
                                         : is_integer ? "rows unpacked first"
                                                      : "rows decoded first"};
    if (route == NIB_ROUTE_BF16)
        kernels.many = "bf16 panels";
    else if (!is_integer)
        kernels.many = "panels of floats";
    else if (fast->turn && fast->shape.group == NIB_PANEL_K)
        kernels.many = "8-bit panels, turned 16 rows at once, the sub-blocks' scales folded into the codes";
    else
        kernels.many = fast->turn ? "8-bit panels, turned 16 rows at once" : "8-bit panels, unpacked row by row";
    return kernels;
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

static void pack_tiles(void *arg, size_t begin, size_t end, unsigned worker) {
    const linear_job *job = arg;
    (void)worker;
    for (size_t i = begin; i < end; i++)
        job->kernels->pack->tile(job->way.route, job->way.rounding, job->x, job->n_tokens, job->n_cols, i, job->packed);
}

static void pack_rows(void *arg, size_t begin, size_t end, unsigned worker) {
    const linear_job *job = arg;
    (void)worker;
    const bool by_16 = job->way.by_16;
    const size_t token_bytes =
        by_16 ? sizeof(nib_few_row) : blocks_of(job->n_cols) * nib_row_block_bytes(job->way.route);
    for (size_t t = begin; t < end; t++)
        job->kernels->pack->row(job->way.route, job->way.rounding, job->x + t * job->n_cols, job->n_cols,
                                by_16 ? job->n_tokens : 0, (char *)job->packed + t * token_bytes);
}

/* ---- multiplying ------------------------------------------------------------------------------------------------ */

/* Panels of one piece: tiles that come from the third cache should serve more than one. */
static uint32_t panels_at_once(const linear_job *job, const prepared *of) {
    const uint32_t n_panels = of->product->weight.n_rows / NIB_PANEL_ROWS / (PIECES_PER_WORKER * job->n_workers);
    if (n_panels < 2 || of->is_near) return 1;
    return n_panels < NIB_TASK_PANELS ? n_panels : NIB_TASK_PANELS;
}

static prepared prepare(const linear_job *job, const nib_product *product) {
    const nib_matrix *weight = &product->weight;
    prepared of = {.product = product,
                   .format = nib_format_fast(weight->format),
                   .row_bytes = nib_format_row_bytes(weight->format, weight->n_cols),
                   .height = NIB_PANEL_ROWS,
                   .n_chunks = 1};
    of.way = way_of(job, weight, of.format);
    if (of.way.by_16) {
        of.height = 32 * of.row_bytes <= AHEAD_BYTES ? 32 : 16;
    } else if (of.way.by_rows) {
        for (of.height = MIN_ROWS; of.height < MAX_ROWS && 2 * of.height * of.row_bytes <= PIECE_BYTES;) of.height *= 2;
    } else {
        const size_t n_tiles = nib_tiles_of(job->n_tokens);
        of.tile_bytes = nib_tile_bytes(job->kernels->pack, of.way.route);
        of.is_near = blocks_of(job->n_cols) * n_tiles * of.tile_bytes <= NEAR_BYTES;
        of.n_chunks = (n_tiles + NIB_TASK_TILES - 1) / NIB_TASK_TILES;
        of.height *= panels_at_once(job, &of);
    }
    of.n_pieces = (weight->n_rows + of.height - 1) / of.height * of.n_chunks;
    return of;
}

/* The weights of a product's piece, or of the next product's first one. */
static const char *weights_of(const linear_job *job, const prepared *of, size_t piece) {
    if (piece == of->n_pieces && of + 1 < job->products + job->n_products) return (of + 1)->product->weight.data;
    return (const char *)of->product->weight.data + piece / of->n_chunks * of->height * of->row_bytes;
}

static uint32_t rows_of_piece(const prepared *of, uint32_t row) {
    const uint32_t left = of->product->weight.n_rows - row;
    return left < of->height ? left : of->height;
}

static void run_rows(const linear_job *job, const prepared *of, size_t piece, worker_scratch *scratch) {
    const nib_product *product = of->product;
    const uint32_t row = (uint32_t)piece * of->height;
    const nib_linear_task task = {
        .format = of->format,
        .route = of->way.route,
        .weights = weights_of(job, of, piece),
        .n_rows = rows_of_piece(of, row),
        .first_row = row,
        .row_bytes = of->row_bytes,
        .n_cols = job->n_cols,
        .tiles = job->packed,
        .n_tokens = job->n_tokens,
        .by_16 = of->way.by_16,
        .bias = product->bias ? product->bias + row : NULL,
        .out = product->out + row,
        .out_stride = product->weight.n_rows,
    };
    job->kernels->gemv->rows(&task, &scratch->panel);
}

static void run_panels(const linear_job *job, const prepared *of, size_t piece, worker_scratch *scratch) {
    const nib_product *product = of->product;
    const uint32_t n_rows = product->weight.n_rows, row = (uint32_t)(piece / of->n_chunks) * of->height;
    const size_t n_tiles = nib_tiles_of(job->n_tokens), first = piece % of->n_chunks * NIB_TASK_TILES;
    const size_t end = n_tiles - first < NIB_TASK_TILES ? n_tiles : first + NIB_TASK_TILES;
    const size_t token = nib_tile_begin(first, job->n_tokens);
    const nib_linear_task task = {
        .format = of->format,
        .route = of->way.route,
        .weights = weights_of(job, of, piece),
        .n_rows = rows_of_piece(of, row),
        .first_row = row,
        .row_bytes = of->row_bytes,
        .n_cols = job->n_cols,
        .tiles = job->packed,
        .tile_bytes = of->tile_bytes,
        .is_near = of->is_near,
        .following = weights_of(job, of, piece + 1),
        .n_tokens = (uint32_t)(nib_tile_begin(end, job->n_tokens) - token),
        .first_tile = (uint32_t)first,
        .n_tiles = (uint32_t)(end - first),
        .batch_tokens = job->n_tokens,
        .bias = product->bias ? product->bias + row : NULL,
        .out = product->out + token * n_rows + row,
        .out_stride = n_rows,
    };
    job->kernels->gemm->panels(&task, &scratch->panel, scratch->sums);
}

static void run_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    const linear_job *job = arg;
    for (size_t i = begin; i < end; i++) {
        const prepared *of = job->products;
        size_t piece = i;
        for (; piece >= of->n_pieces; of++) piece -= of->n_pieces;
        (job->way.by_rows ? run_rows : run_panels)(job, of, piece, job->workers + worker);
    }
}

/* At most PRODUCTS_AT_ONCE products, one way after the other. */
static void run_products(nib_pool *pool, linear_job *job, const nib_product *products, size_t n) {
    prepared all[PRODUCTS_AT_ONCE], now[PRODUCTS_AT_ONCE];
    for (size_t i = 0; i < n; i++) all[i] = prepare(job, products + i);
    for (size_t left = n; left;) {
        size_t n_now = 0, n_later = 0, n_pieces = 0;
        job->way = all[0].way;
        for (size_t i = 0; i < left; i++) {
            if (!is_same_way(all[i].way, job->way)) {
                all[n_later++] = all[i];
                continue;
            }
            n_pieces += all[i].n_pieces;
            now[n_now++] = all[i];
        }
        left = n_later;
        job->products = now;
        job->n_products = n_now;
        if (job->way.by_rows)
            nib_par_for(pool, job->n_tokens, job->n_tokens < 4 ? job->n_tokens : 1, pack_rows, job);
        else
            nib_par_for(pool, nib_tiles_of(job->n_tokens), 1, pack_tiles, job);
        nib_par_for(pool, n_pieces, 1, run_pieces, job);
    }
}

void nib_linear(nib_pool *pool, nib_path path, const float *x, uint32_t n_tokens, const nib_product *products,
                uint32_t n_products, void *scratch) {
    if (!n_tokens || !n_products) return;
    linear_job job = {
        .kernels = kernels_in_use(),
        .path = path,
        .x = x,
        .n_tokens = n_tokens,
        .n_cols = products[0].weight.n_cols,
        .n_workers = nib_pool_size(pool),
        .packed = scratch,
    };
    job.workers = (worker_scratch *)((char *)scratch + packed_bytes(job.n_cols, n_tokens));
    for (uint32_t i = 0; i < n_products; i += PRODUCTS_AT_ONCE) {
        const uint32_t left = n_products - i;
        run_products(pool, &job, products + i, left < PRODUCTS_AT_ONCE ? left : PRODUCTS_AT_ONCE);
    }
}
