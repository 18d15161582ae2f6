/* Attention and its cache against plain double arithmetic, on every level that runs here; and that a row's result depends on
 * nothing but what it sees. */
#include "unit.h"

#include "base/half.h"
#include "base/memory.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "kernel/kernel.h"
#include "levels.h"
#include <math.h>
#include <stdlib.h>

/* ---- what is attended to ---------------------------------------------------------------------------------------- */

enum { SEQS = 2, MAX_PARTS = 16 };

typedef struct shape {
    nib_path path;
    nib_kv_type type;
    uint32_t n_head, n_head_kv, dim, window;
    uint32_t n_ctx; /* positions of each sequence */
} shape;

/* Queries, keys, values and results of whole sequences: (SEQS, n_ctx, heads, dim). */
typedef struct tokens {
    float *q, *k, *v, *out;
    size_t q_width, k_width;
} tokens;

static uint64_t random_state;
static float random_float(void) { /* about normal, standard deviation 1 */
    float sum = -6;
    for (int i = 0; i < 12; i++) {
        random_state = random_state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(random_state >> 40) * 0x1p-24f;
    }
    return sum;
}

static float *floats(size_t n) {
    float *x = nib_alloc_aligned((n + 1) * sizeof *x);
    assert_non_null(x);
    return x;
}

static tokens tokens_new(const shape *s) {
    tokens t = {.q_width = (size_t)s->n_head * s->dim, .k_width = (size_t)s->n_head_kv * s->dim};
    const size_t n = (size_t)SEQS * s->n_ctx;
    random_state = 11;
    t.q = floats(n * t.q_width);
    t.k = floats(n * t.k_width);
    t.v = floats(n * t.k_width);
    t.out = floats(n * t.q_width);
    for (size_t i = 0; i < n * t.q_width; i++) t.q[i] = 2 * random_float();
    for (size_t i = 0; i < n * t.k_width; i++) {
        t.k[i] = random_float() * (i % s->dim == 3 ? 9 : 1); /* one dimension is strong, as in trained models */
        t.v[i] = random_float();
    }
    return t;
}
static void tokens_free(tokens *t) {
    nib_free_aligned(t->q);
    nib_free_aligned(t->k);
    nib_free_aligned(t->v);
    nib_free_aligned(t->out);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

/* The next n tokens of a sequence, in a batch with its neighbours of the same number. A list of them is a way of cutting
 * two sequences into batches; it ends with n = 0. */
typedef struct part {
    int batch;
    uint32_t seq, n;
} part;

/* Runs the sequences through a cache of their own and leaves the results in t->out. */
static void run(const shape *s, tokens *t, const part *parts, unsigned n_threads) {
    const size_t kv_bytes = nib_kv_bytes(s->type, SEQS, s->n_ctx, s->n_head_kv, s->dim),
                 n_most = (size_t)SEQS * s->n_ctx;
    nib_kv_layer kv = {s->type, nib_alloc_aligned(kv_bytes), nib_alloc_aligned(kv_bytes), s->n_ctx, s->n_head_kv,
                       s->dim};
    void *scratch =
        nib_alloc_aligned(nib_attend_scratch_bytes(s->n_ctx, (uint32_t)n_most, s->n_head, s->dim, n_threads));
    float *q = floats(n_most * t->q_width), *k = floats(n_most * t->k_width), *v = floats(n_most * t->k_width);
    float *out = floats(n_most * t->q_width);
    nib_pool *pool = NULL;
    uint32_t n_done[SEQS] = {0};
    assert_true(kv.keys && kv.values && scratch);
    assert_int_equal(nib_pool_new(n_threads, &pool, NULL), NIB_OK);
    memset(kv.keys, 0xff, kv_bytes); /* NaN: what was never stored must not be read into a result */
    memset(kv.values, 0xff, kv_bytes);
    memset(t->out, 0, n_most * t->q_width * sizeof *t->out);
    while (parts->n) {
        nib_attend_segment segments[SEQS];
        uint32_t n_segments = 0, n_tokens = 0;
        for (const int batch = parts->batch; parts->n && parts->batch == batch; parts++) {
            const size_t from = (size_t)parts->seq * s->n_ctx + n_done[parts->seq];
            segments[n_segments++] = (nib_attend_segment){parts->seq, n_tokens, parts->n, n_done[parts->seq]};
            memcpy(q + n_tokens * t->q_width, t->q + from * t->q_width, parts->n * t->q_width * sizeof *q);
            memcpy(k + n_tokens * t->k_width, t->k + from * t->k_width, parts->n * t->k_width * sizeof *k);
            memcpy(v + n_tokens * t->k_width, t->v + from * t->k_width, parts->n * t->k_width * sizeof *v);
            n_done[parts->seq] += parts->n;
            n_tokens += parts->n;
        }
        out[n_tokens * t->q_width] = 7;
        nib_kv_store(pool, &kv, segments, n_segments, k, v);
        nib_attend(pool, s->path, &kv, segments, n_segments, q, s->n_head, 1 / sqrtf((float)s->dim), s->window, out,
                   scratch);
        assert_true(out[n_tokens * t->q_width] == 7);
        for (uint32_t i = 0; i < n_segments; i++)
            memcpy(t->out + ((size_t)segments[i].seq * s->n_ctx + segments[i].pos) * t->q_width,
                   out + segments[i].first * t->q_width, segments[i].n * t->q_width * sizeof *out);
    }
    nib_pool_free(pool);
    nib_free_aligned(kv.keys);
    nib_free_aligned(kv.values);
    nib_free_aligned(scratch);
    nib_free_aligned(q);
    nib_free_aligned(k);
    nib_free_aligned(v);
    nib_free_aligned(out);
}

/* ---- against doubles -------------------------------------------------------------------------------------------- */

/* n values of a head as the cache keeps them. */
static void as_cached(nib_kv_type type, float *x, size_t n) {
    for (size_t i = 0; i < n && type == NIB_KV_TYPE_F16; i++) x[i] = nib_f16_to_f32(nib_f32_to_f16(x[i]));
    for (size_t first = 0; first < n && type == NIB_KV_TYPE_Q8_0; first += 32) {
        float most = 0;
        for (size_t i = first; i < first + 32; i++) most = fmaxf(most, fabsf(x[i]));
        const float scale = most / 127, kept = nib_f16_to_f32(nib_f32_to_f16(scale));
        for (size_t i = first; i < first + 32; i++) x[i] = rintf(x[i] * (1 / scale)) * kept;
    }
}

/* Attention by its definition: q (dim) sees keys begin .. end - 1, k_width apart. */
static void define(const float *q, const float *key, const float *value, size_t k_width, uint32_t dim, uint32_t begin,
                   uint32_t end, double *out) {
    double *score = malloc(end * sizeof *score), most = -INFINITY, total = 0;
    assert_non_null(score);
    for (uint32_t j = begin; j < end; j++) {
        score[j] = 0;
        for (uint32_t d = 0; d < dim; d++) score[j] += (double)q[d] * key[j * k_width + d];
        score[j] /= (double)sqrtf((float)dim);
        most = fmax(most, score[j]);
    }
    for (uint32_t j = begin; j < end; j++) total += score[j] = exp(score[j] - most);
    for (uint32_t d = 0; d < dim; d++) {
        out[d] = 0;
        for (uint32_t j = begin; j < end; j++) out[d] += score[j] / total * value[j * k_width + d];
    }
    free(score);
}

/* How far n results are from the definition: the largest, the sum of squares, and the sum of squares that rounding the
 * queries to f16 would cause. */
typedef struct errors {
    double n, worst, squares, squares_of_f16;
} errors;

static errors errors_of(const shape *s, const tokens *t, const uint32_t lengths[SEQS]) {
    const size_t n_kv = (size_t)SEQS * s->n_ctx * s->n_head_kv, shared = s->n_head / s->n_head_kv;
    float *k = floats(n_kv * s->dim), *v = floats(n_kv * s->dim), rounded[256];
    double expected[256], of_f16[256];
    errors e = {0};
    memcpy(k, t->k, n_kv * s->dim * sizeof *k);
    memcpy(v, t->v, n_kv * s->dim * sizeof *v);
    for (size_t i = 0; i < n_kv; i++) {
        as_cached(s->type, k + i * s->dim, s->dim);
        as_cached(s->type, v + i * s->dim, s->dim);
    }
    for (uint32_t seq = 0; seq < SEQS; seq++)
        for (uint32_t i = 0; i < lengths[seq]; i++)
            for (uint32_t h = 0; h < s->n_head; h++) {
                if (i % (lengths[seq] > 300 ? 61 : 7) && i + 5 < lengths[seq]) continue; /* samples, and the end */
                const size_t row = (size_t)seq * s->n_ctx + i;
                const float *q = t->q + row * t->q_width + h * s->dim, *got = t->out + row * t->q_width + h * s->dim;
                const float *key = k + (size_t)seq * s->n_ctx * t->k_width + h / shared * s->dim;
                const float *value = v + (key - k);
                const uint32_t begin = s->window && i + 1 > s->window ? i + 1 - s->window : 0;
                memcpy(rounded, q, s->dim * sizeof *q);
                as_cached(NIB_KV_TYPE_F16, rounded, s->dim);
                define(q, key, value, t->k_width, s->dim, begin, i + 1, expected);
                define(rounded, key, value, t->k_width, s->dim, begin, i + 1, of_f16);
                for (uint32_t d = 0; d < s->dim; d++) {
                    const double off = fabs(got[d] - expected[d]);
                    e.worst = off <= e.worst ? e.worst : off; /* a NaN stays */
                    e.n++;
                    e.squares += off * off;
                    e.squares_of_f16 += (of_f16[d] - expected[d]) * (of_f16[d] - expected[d]);
                }
            }
    nib_free_aligned(k);
    nib_free_aligned(v);
    return e;
}

/* Products in f32 are off by rounding alone; 16-bit integers by about what rounding the queries to f16 would be, and by the
 * 15 bits of the values: about a third of 3 / 16383 here. */
static void check(const shape *s, const part *parts, bool in_floats) {
    tokens t = tokens_new(s);
    uint32_t lengths[SEQS] = {0};
    run(s, &t, parts, 1);
    for (; parts->n; parts++) lengths[parts->seq] += parts->n;
    const errors e = errors_of(s, &t, lengths);
    if (!(e.worst <= (in_floats ? 1e-5 : 3e-3)) || (!in_floats && !(e.squares <= 1.25 * e.squares_of_f16 + 4e-9 * e.n)))
        fail_msg("%s: path %d, kept as %d, %u heads of %u over %u, window %u: off by %g, of f16's squares %g",
                 nib_cpu_level(), s->path, s->type, s->n_head, s->dim, s->n_head_kv, s->window, e.worst,
                 e.squares / e.squares_of_f16);
    tokens_free(&t);
}

/* Two sequences in one batch, then a second batch that continues both, one of them by a single token. */
static const part mixed[] = {{0, 0, 70}, {0, 1, 33}, {1, 1, 1}, {1, 0, 75}, {2, 0, 1}, {2, 1, 2}, {0}};
/* One that grows over several pieces, in the end by single tokens. */
static const part pieces[] = {{0, 0, 509}, {1, 0, 2}, {2, 0, 1}, {3, 0, 1}, {4, 0, 520}, {5, 0, 1}, {5, 1, 3}, {0}};

static const nib_kv_type kept[] = {NIB_KV_TYPE_F32, NIB_KV_TYPE_F16, NIB_KV_TYPE_Q8_0};

static void check_shapes(void) {
    static const uint32_t heads[][3] = {{4, 4, 64}, {6, 2, 40}, {3, 1, 80}, {8, 2, 96},  {5, 1, 128}, {6, 1, 256},
                                        {7, 1, 32}, {8, 1, 64}, {2, 2, 36}, {50, 1, 33}, {4, 2, 7}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (size_t type = 0; type < 3; type++) {
            const shape s = {type ? NIB_PATH_DEPLOYED : NIB_PATH_EXACT,
                             kept[type],
                             heads[i][0],
                             heads[i][1],
                             heads[i][2],
                             i == 3 ? 20 : 0,
                             150};
            if (nib_kv_fits(s.type, s.dim))
                check(&s, mixed, type == 0);
            else
                assert_true(type == 2 && s.dim % 32);
        }
}

static void check_pieces(void) {
    static const uint32_t windows[] = {0, 1, 64, 100, 700};
    for (size_t type = 0; type < 3; type++)
        for (size_t i = 0; i < sizeof windows / sizeof *windows; i += UNIT_SANITIZED ? 3 : 1) {
            const shape s = {type ? NIB_PATH_DEPLOYED : NIB_PATH_EXACT, kept[type], 4, 2, 32, windows[i], 1040};
            check(&s, pieces, type == 0);
        }
}

/* Few queries are computed in f32 on the deployed path too. */
static void check_few(void) {
    static const part few[] = {{0, 0, 1}, {1, 0, 2}, {2, 0, 1}, {2, 1, 2}, {0}};
    for (size_t type = 1; type < 3; type++)
        for (uint32_t shared = 1; shared <= 4; shared++) {
            const shape s = {NIB_PATH_DEPLOYED, kept[type], 2 * shared, 2, 64, 0, 4};
            check(&s, few, true);
        }
}

/* ---- what a result does not depend on --------------------------------------------------------------------------- */

static void check_same(const shape *s, const part *a, unsigned a_threads, const part *b, unsigned b_threads) {
    tokens first = tokens_new(s), second = tokens_new(s);
    run(s, &first, a, a_threads);
    run(s, &second, b, b_threads);
    assert_memory_equal(first.out, second.out, (size_t)SEQS * s->n_ctx * first.q_width * sizeof *first.out);
    tokens_free(&first);
    tokens_free(&second);
}

static void check_independence(void) {
    static const part whole[] = {{0, 0, 530}, {0, 1, 40}, {0}},
                      cut[] = {{0, 0, 60}, {1, 0, 300}, {2, 1, 40}, {3, 0, 170}, {0}},
                      ends[] = {{0, 0, 527}, {1, 0, 1}, {2, 0, 1}, {2, 1, 38}, {3, 0, 1}, {3, 1, 2}, {0}},
                      alone[] = {{0, 0, 527}, {1, 1, 38}, {2, 0, 1}, {3, 0, 1}, {4, 0, 1}, {5, 1, 1}, {6, 1, 1}, {0}};
    for (uint32_t window = 0; window <= 90; window += 90)
        for (size_t type = 0; type < 3; type++) {
            const shape s = {type ? NIB_PATH_DEPLOYED : NIB_PATH_EXACT, kept[type], 6, 2, 64, window, 530};
            check_same(&s, whole, 1, whole, 3);
            check_same(&s, whole, 1, cut, 1);
            check_same(&s, ends, 2, alone, 1);
            if (type == 0) check_same(&s, whole, 1, ends, 1);
        }
}

/* What is not finite shows in every result that sees it, and in no earlier one of another block. */
static void check_not_finite(void) {
    enum { N = 150, BAD = 100 };
    static const part whole[] = {{0, 0, N}, {0}}, ends[] = {{0, 0, N - 1}, {1, 0, 1}, {0}};
    static const float bad[] = {NAN, INFINITY};
    for (size_t type = 0; type < 3; type++)
        for (int what = 0; what < 6; what++) {
            const shape s = {type ? NIB_PATH_DEPLOYED : NIB_PATH_EXACT, kept[type], 2, 1, 64, 0, N};
            tokens t = tokens_new(&s);
            float *x = what % 3 == 0 ? t.q : what % 3 == 1 ? t.k : t.v;
            const size_t width = what % 3 == 0 ? t.q_width : t.k_width;
            x[BAD * width + 5] = bad[what / 3];
            if (what % 3 == 1 && bad[what / 3] > 1)
                x[BAD * width + 6] = -INFINITY; /* else it may rightly weigh nothing */
            for (int way = 0; way < 2; way++) {
                run(&s, &t, way ? ends : whole, 1);
                for (size_t i = 0; i < N; i++) {
                    float sum = 0;
                    for (size_t d = 0; d < s.dim; d++) sum += t.out[i * t.q_width + d] - t.out[i * t.q_width + d];
                    const bool is_broken = !(sum == 0);
                    if (i < 64 || i >= BAD) {
                        const bool expected = what % 3 == 0 ? i == BAD : i >= BAD;
                        if (what % 3 == 2 || type) assert_int_equal(is_broken, expected);
                    }
                }
            }
            tokens_free(&t);
        }
}

/* ---- the cache -------------------------------------------------------------------------------------------------- */

static void test_copy(void **state) {
    (void)state;
    enum { CTX = 100, DIM = 32, N = 70 };
    for (size_t type = 0; type < 3; type++) {
        const size_t bytes = nib_kv_bytes(kept[type], 3, CTX, 2, DIM);
        nib_kv_layer kv = {kept[type], nib_alloc_aligned(bytes), nib_alloc_aligned(bytes), CTX, 2, DIM};
        float *k = floats(N * 2 * DIM), *out[2] = {floats(DIM * 2), floats(DIM * 2)};
        void *scratch = nib_alloc_aligned(nib_attend_scratch_bytes(CTX, 1, 2, DIM, 1));
        const nib_attend_segment segment = {0, 0, N, 0};
        assert_true(kv.keys && kv.values && scratch);
        assert_int_equal(bytes, (size_t)3 * 2 * 128 * nib_kv_position_bytes(kept[type], DIM));
        for (size_t i = 0; i < N * 2 * DIM; i++) k[i] = random_float();
        nib_kv_store(NULL, &kv, &segment, 1, k, k);
        nib_kv_copy(&kv, 0, 2, N);
        for (uint32_t i = 0; i < 2; i++) {
            const nib_attend_segment last = {2 * i, 0, 1, N - 1};
            nib_attend(NULL, NIB_PATH_DEPLOYED, &kv, &last, 1, k, 2, 1, 0, out[i], scratch);
        }
        assert_memory_equal(out[0], out[1], 2 * DIM * sizeof(float));
        assert_true(out[0][0] != 0);
        nib_free_aligned(kv.keys);
        nib_free_aligned(kv.values);
        nib_free_aligned(k);
        nib_free_aligned(out[0]);
        nib_free_aligned(out[1]);
        nib_free_aligned(scratch);
    }
    assert_int_equal(nib_kv_position_bytes(NIB_KV_TYPE_F16, 64), 128);
    assert_int_equal(nib_kv_position_bytes(NIB_KV_TYPE_Q8_0, 64), 68);
    assert_false(nib_kv_fits(NIB_KV_TYPE_Q8_0, 80));
    assert_true(nib_kv_fits(NIB_KV_TYPE_F16, 80));
}

ON_EACH_LEVEL(shapes)
ON_EACH_LEVEL(pieces)
ON_EACH_LEVEL(few)
ON_EACH_LEVEL(independence)
ON_EACH_LEVEL(not_finite)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),       cmocka_unit_test(test_pieces),     cmocka_unit_test(test_few),
        cmocka_unit_test(test_independence), cmocka_unit_test(test_not_finite), cmocka_unit_test(test_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
