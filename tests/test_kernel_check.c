/* The kernel check: what every number format must do on every level, driven by the tables of formats and levels alone.
 *
 *     blocks    encode and decode give the bytes of the portable level, unpack and turn the values of decode; special blocks,
 *               any bytes, random blocks; nothing before or behind the buffers is touched (pages nobody may read)
 *     hash      one SHA-256 over encodings of rows made from a seed: a constant for every compiler, level, thread count
 *     products  nib_linear, rows and panels, both paths, odd sizes: within TOLERANCE of the double sum of its terms
 *
 * NIBBLE_CHECK_BLOCKS=N: N random blocks, spread over the formats; 20000 unless said, 10000000 for the long run. Below
 * 10000 the other lists are cut too: for emulators and compilers that do not optimize.
 * tests/standalone builds this without any library. */
#include "unit.h"

#include "base/memory.h"
#include "base/sha256.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "format/format.h"
#include "guard.h"
#include "kernel/kernel.h"
#include "reference.h"
#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* Of the sum of the magnitudes of the terms: 24 roundings of f32. */
#define TOLERANCE (24 * 0x1p-24)

enum { MAX_ROW = 2048, MAX_BYTES = 8 * MAX_ROW, MAX_THREADS = 8 };

static size_t n_random_blocks;
static bool is_short;

/* ---- failures --------------------------------------------------------------------------------------------------- */

/* What this thread is at, for the handler of faults. */
static _Thread_local struct place {
    const char *format, *level, *what;
    size_t n;
} place;

/* Workers cannot leave a test: the first failure is kept until they are done. */
static char failure[512];
static atomic_bool has_failed;

#define failed(...)                                                                              \
    do {                                                                                         \
        if (!atomic_exchange(&has_failed, true)) snprintf(failure, sizeof failure, __VA_ARGS__); \
    } while (0)

static void expect_no_failure(void) {
    if (has_failed) fail_msg("%s", failure);
}

static void at(const nib_format *format, unsigned level, const char *what, size_t n) {
    place = (struct place){format->facts.name, nib_cpu_level_name(level), what, n};
}

static void fault(int number) {
    printf("%s of %s, level %s, %zu weights: %s\n", place.what, place.format, place.level, place.n,
           number == SIGILL ? "an instruction that this processor lacks" : "touches memory that is not its own");
    fflush(stdout);
    _exit(1);
}

static void catch_faults(void) {
    signal(SIGSEGV, fault);
    signal(SIGBUS, fault);
    signal(SIGILL, fault);
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* splitmix64 */
static uint64_t next_random(uint64_t *seed) {
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The same for a format whatever else is in the table. */
static uint64_t seed_of(const nib_format *format, uint64_t row) {
    uint64_t seed = row;
    for (const char *c = format->facts.name; *c; c++) seed = seed * 1099511628211u + (unsigned char)*c;
    return seed;
}

/* Bell-shaped, with an outlier in every hundred and all magnitudes from 1e-6 to 1e3 among the rows. */
static void random_row(uint64_t *seed, float *x, size_t n) {
    const float unit = ldexpf(1, (int)(next_random(seed) % 31) - 20);
    for (size_t i = 0; i < n; i++) {
        const uint64_t bits = next_random(seed);
        float sum = -2;
        for (unsigned k = 0; k < 4; k++) sum += (float)(bits >> 16 * k & 0xffff) * 0x1p-16f;
        x[i] = sum * unit * (bits % 97 == 0 ? 16.0f : 1.0f);
    }
}

static void random_importance(uint64_t *seed, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const int down = (int)(next_random(seed) % 12); /* first: compilers order arguments as they like */
        x[i] = ldexpf((float)(next_random(seed) & 0xff), -down);
    }
}

typedef enum special {
    ZEROS,
    MINUS_ZEROS,
    SUBNORMAL,
    SMALLEST,
    CONSTANT,
    ALTERNATING,
    OUTLIER,
    LAST_OUTLIER,
    ONE_SIGN,
    FEW_VALUES,
    HALVES, /* ties of rounding */
    HUGE_ONES,
    LARGEST,
    HAS_NAN,
    HAS_INFINITY,
    N_SPECIAL
} special;

static void special_row(special kind, uint64_t *seed, float *x, size_t n) {
    random_row(seed, x, n);
    const float sign = next_random(seed) & 1 ? 1 : -1;
    for (size_t i = 0; i < n; i++) {
        const uint64_t bits = next_random(seed);
        switch (kind) {
        case ZEROS:
            x[i] = 0;
            break;
        case MINUS_ZEROS:
            x[i] = bits % 5 ? -0.0f : 0.0f;
            break;
        case SUBNORMAL:
            x[i] = nib_float_of((uint32_t)(bits & 0x800fffff));
            break;
        case SMALLEST:
            x[i] = FLT_MIN * (float)(int)(bits % 7) * sign;
            break;
        case CONSTANT:
            x[i] = 0.7f * sign;
            break;
        case ALTERNATING:
            x[i] = i % 2 ? -0.3f : 0.3f;
            break;
        case OUTLIER:
            x[i] = i == n / 3 ? 900 * sign : x[i];
            break;
        case LAST_OUTLIER:
            x[i] = i == n - 1 ? 5 * sign : 0;
            break;
        case ONE_SIGN:
            x[i] = sign * (1 + 0.01f * (float)(bits % 64));
            break;
        case FEW_VALUES:
            x[i] = 0.25f * (float)((int)(bits % 4) - 2);
            break;
        case HALVES:
            x[i] = i % 32 == 0 ? 127 : (float)(int)(bits % 255) - 127.5f;
            break;
        case HUGE_ONES:
            x[i] = (i % 3 ? 3e9f : -1e10f) * (bits % 2 ? 1.0f : 0.5f);
            break;
        case LARGEST:
            x[i] = bits % 2 ? FLT_MAX : -FLT_MAX;
            break;
        case HAS_NAN:
            x[i] = i == n - 1 ? NAN : x[i];
            break;
        case HAS_INFINITY:
            x[i] = i == n / 2 ? sign * INFINITY : x[i];
            break;
        case N_SPECIAL:
            break;
        }
    }
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

/* One thread's buffers. */
typedef struct bench {
    guarded x, importance, packed, decoded, codes, rows, panel;
    uint8_t first_packed[MAX_BYTES];
    float first_decoded[MAX_ROW];
} bench;

static void bench_init(bench *b) {
    b->x = guard_new(MAX_ROW * sizeof(float));
    b->importance = guard_new(MAX_ROW * sizeof(float));
    b->packed = guard_new(MAX_BYTES);
    b->decoded = guard_new(MAX_ROW * sizeof(float));
    b->codes = guard_new(sizeof(nib_codes));
    b->rows = guard_new(MAX_BYTES);
    b->panel = guard_new(sizeof(nib_panel));
}
static void bench_fini(bench *b) {
    guard_free(&b->x);
    guard_free(&b->importance);
    guard_free(&b->packed);
    guard_free(&b->decoded);
    guard_free(&b->codes);
    guard_free(&b->rows);
    guard_free(&b->panel);
}

/* Same bits, except that any NaN equals any NaN. */
static bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (nib_bits_of(a[i]) != nib_bits_of(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* Codes of every 256 weights against what decode made of them; is_sound: check said that the bytes are. */
static void check_unpack(bench *b, unsigned level, const nib_format *format, const uint8_t *packed, size_t n,
                         bool is_sound) {
    nib_codes *codes = guard_place(&b->codes, sizeof *codes, false);
    for (size_t start = 0; start < n; start += NIB_PANEL_K) {
        const size_t n_here = n - start < NIB_PANEL_K ? n - start : NIB_PANEL_K;
        at(format, level, "unpack", n_here);
        memset(codes, 0xee, sizeof *codes);
        format->unpack(format, codes, packed + nib_format_row_bytes(format, start), n_here);
        for (size_t i = 0; i < n_here && is_sound; i++) {
            const float scale = codes->scale[i / format->group], min = codes->min[i / format->group];
            const float value = scale * (float)codes->code[i] - min, decoded = b->first_decoded[start + i];
            const float size = fabsf(scale) * 256 + fabsf(min);
            if (!(fabsf(value - decoded) <= size * 0x1p-22f) && isfinite(size) && isfinite(decoded))
                failed("%s, level %s: weight %zu of %zu: unpack %g, decode %g", format->facts.name, place.level,
                       start + i, n, value, decoded);
        }
        for (size_t i = n_here; i < NIB_PANEL_K; i++)
            if (codes->code[i] != 0xee)
                failed("%s, level %s: unpack of %zu writes code %zu", format->facts.name, place.level, n_here, i);
    }
}

/* What a panel says of one weight, and how large its terms are. */
typedef struct panel_weight {
    float value, size;
} panel_weight;

static panel_weight weight_in(const nib_panel *panel, const nib_format *format, size_t row, size_t column) {
    const nib_panel_shape *shape = &format->shape;
    const size_t g = column / shape->group, m = shape->min_group ? column / shape->min_group : 0;
    const float scale = shape->whole ? panel->d[row] * (float)panel->whole[g / 2][row][g % 2] : panel->scale[g][row];
    float minus_min = 0;
    if (shape->min_group)
        minus_min = format->activation == NIB_ACT_Q8_32
                        ? panel->minus_min[m][row]
                        : panel->minus_d_min[row] * (float)panel->min[m / 2][row][m % 2];
    return (panel_weight){scale * (float)(panel->code[column / 4][row][column % 4] - shape->centre) + minus_min,
                          fabsf(scale) * 256 + fabsf(minus_min)};
}

/* The same for 16 rows, which are the 256s of packed in turn. */
static void check_turn(bench *b, unsigned level, const nib_format *format, const uint8_t *packed, size_t n,
                       bool is_sound, bool at_front) {
    enum { ROWS = 16 };
    const size_t n_parts = n / NIB_PANEL_K, bytes = nib_format_row_bytes(format, NIB_PANEL_K);
    nib_panel *panel = guard_place(&b->panel, sizeof *panel, false);
    uint8_t *rows = guard_place(&b->rows, ROWS * bytes, at_front);
    if (!n_parts) return;
    for (size_t r = 0; r < ROWS; r++) memcpy(rows + r * bytes, packed + r % n_parts * bytes, bytes);
    at(format, level, "turn", n);
    format->turn(format, panel, rows, bytes);
    for (size_t r = 0; r < ROWS && is_sound; r++)
        for (size_t i = 0; i < NIB_PANEL_K; i++) {
            const panel_weight weight = weight_in(panel, format, r, i);
            const float decoded = b->first_decoded[r % n_parts * NIB_PANEL_K + i];
            if (!(fabsf(weight.value - decoded) <= weight.size * 0x1p-22f) && isfinite(weight.size) &&
                isfinite(decoded))
                failed("%s, level %s: weight %zu of row %zu: turn %g, decode %g", format->facts.name, place.level, i, r,
                       weight.value, decoded);
        }
}

/* Decodes, checks, unpacks and turns b->first_packed, whatever bytes they are, on every level. */
static void decode_everywhere(bench *b, unsigned index, size_t n, bool at_front) {
    const nib_format *lowest = nib_format_at_level(index, 0);
    const size_t n_bytes = nib_format_row_bytes(lowest, n);
    uint8_t *packed = guard_place(&b->packed, n_bytes, at_front);
    memcpy(packed, b->first_packed, n_bytes);
    const nib_verdict first = lowest->check ? lowest->check(lowest, packed, n) : NIB_VERDICT_OK;
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        const nib_format *format = nib_format_at_level(index, level);
        float *decoded = guard_place(&b->decoded, n * sizeof(float), at_front);
        at(format, level, "decode", n);
        memset(decoded, 0xee, n * sizeof *decoded);
        format->decode(format, decoded, packed, n);
        if (level == 0) memcpy(b->first_decoded, decoded, n * sizeof *decoded);
        if (!same_floats(decoded, b->first_decoded, n))
            failed("%s: level %s decodes other values, %zu weights", format->facts.name, place.level, n);
        at(format, level, "check", n);
        if (format->check && format->check(format, packed, n) != first)
            failed("%s: level %s has another verdict on %zu weights", format->facts.name, place.level, n);
        if (format->unpack) check_unpack(b, level, format, packed, n, first == NIB_VERDICT_OK);
        if (format->turn) check_turn(b, level, format, packed, n, first == NIB_VERDICT_OK, at_front);
    }
    if (memcmp(packed, b->first_packed, n_bytes) != 0) failed("%s: the source has changed", lowest->facts.name);
}

/* Encodes the row that lies in b->x on every level, and decodes it if it could be. */
static void encode_everywhere(bench *b, unsigned index, size_t n, bool has_importance, bool at_front) {
    const size_t n_bytes = nib_format_row_bytes(nib_format_at_level(index, 0), n);
    const float *x = guard_place(&b->x, n * sizeof(float), at_front);
    const float *importance = has_importance ? guard_place(&b->importance, n * sizeof(float), at_front) : NULL;
    nib_verdict first = NIB_VERDICT_OK;
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        const nib_format *format = nib_format_at_level(index, level);
        uint8_t *packed = guard_place(&b->packed, n_bytes, at_front);
        at(format, level, "encode", n);
        memset(packed, level % 2 ? 0x5a : 0xa5, n_bytes);
        const nib_verdict seen = format->encode(format, packed, x, n, importance);
        if (level == 0) first = seen;
        if (level == 0) memcpy(b->first_packed, packed, n_bytes);
        if (seen != first)
            failed("%s: level %s says %d, not %d", format->facts.name, place.level, (int)seen, (int)first);
        else if (seen == NIB_VERDICT_OK && memcmp(packed, b->first_packed, n_bytes) != 0)
            failed("%s: level %s encodes %zu weights to other bytes", format->facts.name, place.level, n);
    }
    if (first != NIB_VERDICT_OK) return;
    decode_everywhere(b, index, n, at_front);
    const nib_format *format = nib_format_at_level(index, 0);
    if (format->check && format->check(format, b->first_packed, n) != NIB_VERDICT_OK)
        failed("%s: its own encoding does not pass the check", format->facts.name);
}

/* Random blocks: three rows that are encoded, then one of any bytes. */
static void random_blocks(bench *b, unsigned index, uint64_t row, size_t n) {
    const nib_format *format = nib_format_at(index);
    uint64_t seed = seed_of(format, row);
    const bool at_front = row / 4 % 2;
    if (format->encode && row % 4 != 3) {
        random_row(&seed, guard_place(&b->x, n * sizeof(float), at_front), n);
        random_importance(&seed, guard_place(&b->importance, n * sizeof(float), at_front), n);
        encode_everywhere(b, index, n, row % 4 != 0, at_front);
    } else if (format->decode) {
        for (size_t i = 0; i < nib_format_row_bytes(format, n); i++) b->first_packed[i] = (uint8_t)next_random(&seed);
        decode_everywhere(b, index, n, at_front);
    }
}

static void special_blocks(bench *b, unsigned index) {
    const nib_format *format = nib_format_at(index);
    const size_t block = format->facts.block;
    const size_t lengths[] = {3 * block, block, (NIB_PANEL_K / block + 1) * block};
    for (int kind = 0; kind < N_SPECIAL && format->encode; kind++)
        for (unsigned i = 0; i < (is_short ? 2 : 6); i++) {
            uint64_t seed = seed_of(format, (uint64_t)kind);
            const size_t n = lengths[i / 2];
            const bool at_front = i % 2;
            special_row((special)kind, &seed, guard_place(&b->x, n * sizeof(float), at_front), n);
            float *importance = guard_place(&b->importance, n * sizeof(float), at_front);
            random_importance(&seed, importance, n);
            if (kind == ONE_SIGN) memset(importance, 0, n * sizeof *importance);
            encode_everywhere(b, index, n, i % 2, at_front);
        }
}

/* Pieces of work: first every format's special blocks, then rows of random ones. */
typedef struct block_job {
    bench *benches;
    size_t rows_per_format;
} block_job;

static size_t row_length(const nib_format *format, uint64_t row) {
    static const unsigned char n_blocks[] = {4, 1, 5, 2, 8, 3, 7, 4};
    return format->facts.block * (format->facts.block < 128 ? 2 : 1) * (size_t)n_blocks[row % 8];
}

static void check_some_blocks(void *arg, size_t begin, size_t end, unsigned worker) {
    const block_job *job = arg;
    const unsigned n_formats = nib_format_count();
    for (size_t i = begin; i < end && !has_failed; i++) {
        const unsigned index = (unsigned)(i % n_formats);
        const uint64_t row = i / n_formats;
        if (row == 0)
            special_blocks(job->benches + worker, index);
        else
            random_blocks(job->benches + worker, index, row - 1, row_length(nib_format_at(index), row - 1));
    }
}

static void test_blocks(void **state) {
    (void)state;
    catch_faults();
    nib_pool *pool;
    assert_int_equal(nib_pool_new(0, &pool, NULL), NIB_OK);
    block_job job = {.benches = nib_alloc(nib_pool_size(pool), sizeof *job.benches)};
    assert_non_null(job.benches);
    for (unsigned i = 0; i < nib_pool_size(pool); i++) bench_init(job.benches + i);
    job.rows_per_format = n_random_blocks / nib_format_count() / 4 + 4; /* a row has 4 blocks or more on average */
    nib_par_for(pool, (1 + job.rows_per_format) * nib_format_count(), 1, check_some_blocks, &job);
    for (unsigned i = 0; i < nib_pool_size(pool); i++) bench_fini(job.benches + i);
    free(job.benches);
    nib_pool_free(pool);
    expect_no_failure();
}

/* ---- the hash --------------------------------------------------------------------------------------------------- */

enum { HASH_ROWS = 6, HASH_WEIGHTS = 1024 };

/* Of everything below; and the first digits of each format's own, nibble's families taken together. */
static const char hash_of_all[] = "fcd7c0fbcb2488e432366417f0e864a5786c29cb60d0f9a434c34e921f5b991c";
static const struct recorded {
    const char *name, *digits;
} recorded[] = {
    {"f32", "8ef1b0636bcac902"},     {"f16", "95e38a45eb827ee7"},          {"bf16", "33d56748e4a14aa7"},
    {"q8_0", "45a8a558f79e193e"},    {"q4_0", "7e0716bc9433e4b3"},         {"q4_1", "f1ce9613ab349a5b"},
    {"q5_0", "24609cd4169b0d5c"},    {"q5_1", "2deb7e80bedcd17d"},         {"q2_k", "d96fa2bfa7f38ec6"},
    {"q3_k", "c4f2b225e5d27211"},    {"q4_k", "3c374ca43adbabc4"},         {"q5_k", "ffde1d7bea5bb7ca"},
    {"q6_k", "96ab50eeef8f0e40"},    {"iq4_nl", "9b8658abda0e051b"},       {"iq4_xs", "9dc24c1fdbc8b84d"},
    {"iq3_xxs", "adf6d2d2dc5307bd"}, {"iq3_s", "1bc6506d99fa3cd9"},        {"iq2_s", "9629e7cfab6ec59c"},
    {"iq2_xs", "2109cc128f8181db"},  {"iq2_xxs", "4b4d28c77f7fd886"},      {"iq1_m", "86ab32ef97a4d9b1"},
    {"iq1_s", "cb595347eed3721a"},   {"mxfp4", "491c7b887a13337a"},        {"nvfp4", "23cb1ad3fd522c15"},
    {"q1_0", "4424237d74ff8e3c"},    {"q2_0", "c64aeed280ee25f9"},         {"tq1_0", "e186e19e59e5ab78"},
    {"tq2_0", "8837b53cc946214b"},   {"q8_1", "bff738b0558889c5"},         {"q8_k", "8076ba165b5decba"},
    {"grid", "cfceb257605387c2"},    {"plain floats", "492b3e803958b24d"},
};

static const char *family_of(const nib_format *format) {
    const uint32_t family = format->facts.gguf_type >> 16;
    return family == 0x4E42 ? "grid" : family == 0x4E43 ? "plain floats" : format->facts.name;
}

static const char *recorded_digits(const char *name) {
    for (size_t i = 0; i < sizeof recorded / sizeof *recorded; i++)
        if (!strcmp(recorded[i].name, name)) return recorded[i].digits;
    return NULL;
}

typedef struct hash_job {
    unsigned level;
    uint8_t *out; /* (formats, HASH_ROWS, 4 * HASH_WEIGHTS) */
} hash_job;

static void encode_for_hash(void *arg, size_t begin, size_t end, unsigned worker) {
    const hash_job *job = arg;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const nib_format *format = nib_format_at_level((unsigned)(i / HASH_ROWS), job->level);
        const unsigned row = i % HASH_ROWS;
        float x[HASH_WEIGHTS], importance[HASH_WEIGHTS];
        if (!format->encode) continue;
        uint64_t seed = seed_of(format, row);
        if (row == 0)
            special_row(FEW_VALUES, &seed, x, HASH_WEIGHTS);
        else
            random_row(&seed, x, HASH_WEIGHTS);
        random_importance(&seed, importance, HASH_WEIGHTS);
        uint8_t *out = job->out + i * 4 * HASH_WEIGHTS;
        at(format, job->level, "encode", HASH_WEIGHTS);
        nib_verdict seen = format->encode(format, out, x, HASH_WEIGHTS, row % 2 ? importance : NULL);
        if (seen == NIB_VERDICT_NEEDS_IMPORTANCE) seen = format->encode(format, out, x, HASH_WEIGHTS, importance);
        if (seen != NIB_VERDICT_OK) failed("%s: row %u is refused: %d", format->facts.name, row, (int)seen);
    }
}

/* A format that is not among the recorded ones yet is said and counts for nothing. */
static unsigned compare_hashes(const uint8_t *encoded) {
    nib_sha256 all, own;
    char digest[65];
    unsigned n_wrong = 0;
    nib_sha256_init(&all);
    nib_sha256_init(&own);
    for (unsigned index = 0; index < nib_format_count(); index++) {
        const nib_format *format = nib_format_at(index), *next = nib_format_at(index + 1);
        const char *name = family_of(format), *digits = recorded_digits(name);
        if (!format->encode) continue;
        for (size_t row = 0; row < HASH_ROWS; row++) {
            const uint8_t *at = encoded + (index * HASH_ROWS + row) * 4 * HASH_WEIGHTS;
            nib_sha256_add(&own, at, nib_format_row_bytes(format, HASH_WEIGHTS));
            if (digits) nib_sha256_add(&all, at, nib_format_row_bytes(format, HASH_WEIGHTS));
        }
        if (next && !strcmp(family_of(next), name)) continue;
        nib_sha256_finish(&own, digest);
        nib_sha256_init(&own);
        const bool same = digits && !strncmp(digest, digits, 16);
        if (!same) printf("    {\"%s\", \"%.16s\"},%s\n", name, digest, digits ? "" : " /* not recorded */");
        n_wrong += digits && !same;
    }
    nib_sha256_finish(&all, digest);
    printf("SHA-256 of all encodings: %s\n", digest);
    return n_wrong + (strcmp(digest, hash_of_all) != 0);
}

static void test_hash(void **state) {
    (void)state;
    catch_faults();
    const size_t n_bytes = (size_t)nib_format_count() * HASH_ROWS * 4 * HASH_WEIGHTS;
    uint8_t *first = nib_alloc(n_bytes, 1), *encoded = nib_alloc(n_bytes, 1);
    assert_true(first && encoded);
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        for (unsigned n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
            if (is_short && n_threads != (level == 0 ? 1 : level + 2)) continue;
            nib_pool *pool;
            assert_int_equal(nib_pool_new(n_threads, &pool, NULL), NIB_OK);
            const bool is_first = level == 0 && n_threads == 1;
            hash_job job = {level, is_first ? first : encoded};
            nib_par_for(pool, (size_t)nib_format_count() * HASH_ROWS, 1, encode_for_hash, &job);
            nib_pool_free(pool);
            expect_no_failure();
            if (!is_first && memcmp(first, encoded, n_bytes) != 0)
                fail_msg("level %s, %u threads: other bytes", nib_cpu_level_name(level), n_threads);
        }
    }
    assert_int_equal(compare_hashes(first), 0);
    free(first);
    free(encoded);
}

/* ---- products --------------------------------------------------------------------------------------------------- */

enum { MAX_ROWS = 70, MAX_TOKENS = 13, MAX_COLS = 3 * NIB_PANEL_K };
_Static_assert(NIB_FEW_MOST * 48 <= MAX_TOKENS * MAX_ROWS && NIB_FEW_MOST * NIB_PANEL_K <= MAX_TOKENS * MAX_COLS,
               "the products of 48 rows with all tokens that go by 16 rows fit");

typedef struct shape {
    uint32_t n_cols, n_rows, n_tokens;
} shape;

static struct product_memory {
    guarded weights, x, out, bias, scratch;
    uint8_t stored[MAX_ROWS * MAX_COLS * sizeof(float)];
    float decoded[MAX_ROWS * MAX_COLS], rounded[MAX_TOKENS * MAX_COLS];
    double expected[MAX_TOKENS * MAX_ROWS], terms[MAX_TOKENS * MAX_ROWS];
    double worst; /* of all errors, in units of the terms */
} memory;

/* Rows of all kinds, encoded and decoded again. */
static void make_weights(const nib_format *format, uint32_t n_cols, uint32_t n_rows) {
    static const special kinds[] = {ONE_SIGN, ZEROS, OUTLIER, ALTERNATING};
    const size_t row_bytes = nib_format_row_bytes(format, n_cols);
    uint64_t seed = seed_of(format, n_cols);
    for (uint32_t r = 0; r < n_rows; r++) {
        float row[MAX_COLS], importance[MAX_COLS];
        if (r % 4 == 3)
            special_row(kinds[r / 4 % 4], &seed, row, n_cols);
        else
            random_row(&seed, row, n_cols);
        for (uint32_t i = 0; i < n_cols; i++) importance[i] = 1;
        if (format->facts.kind == NIB_CLASS_FLOAT) /* small plain floats have no scale: bring all within their range */
            for (uint32_t i = 0; i < n_cols; i++) row[i] = row[i] > 4 ? 4 : row[i] < -4 ? -4 : row[i];
        uint8_t *to = memory.stored + r * row_bytes;
        assert_int_equal(nib_format_encode(format, to, row, n_cols, importance), NIB_VERDICT_OK);
        nib_format_decode(format, memory.decoded + (size_t)r * n_cols, to, n_cols);
    }
}

/* Tokens of ordinary size, then of all kinds. */
static void make_activations(shape s, bool at_front, uint64_t *seed) {
    static const special kinds[] = {FEW_VALUES, ZEROS, OUTLIER, ALTERNATING, LAST_OUTLIER};
    float *x = guard_place(&memory.x, (size_t)s.n_tokens * s.n_cols * sizeof *x, at_front);
    for (uint32_t t = 0; t < s.n_tokens; t++) {
        random_row(seed, x + (size_t)t * s.n_cols, s.n_cols);
        if (t % 2) special_row(kinds[t / 2 % 5], seed, x + (size_t)t * s.n_cols, s.n_cols);
    }
}

/* Double sums of the products, and of the magnitudes of what is added: a weight is scale * code - min, each at most as large
 * as the largest weight of its 256 columns and itself. */
static void sum_terms(const nib_format *format, nib_path path, shape s, const float *x, const float *bias) {
    memcpy(memory.rounded, x, (size_t)s.n_tokens * s.n_cols * sizeof *x);
    for (uint32_t t = 0; t < s.n_tokens && path == NIB_PATH_DEPLOYED && rounds_activations(format); t++)
        round_activations(format->activation, memory.rounded + (size_t)t * s.n_cols, s.n_cols);
    for (uint32_t r = 0; r < s.n_rows; r++) {
        const float *w = memory.decoded + (size_t)r * s.n_cols;
        float most[MAX_COLS / NIB_PANEL_K] = {0};
        for (uint32_t k = 0; k < s.n_cols; k++) most[k / NIB_PANEL_K] = fmaxf(most[k / NIB_PANEL_K], fabsf(w[k]));
        for (uint32_t t = 0; t < s.n_tokens; t++) {
            const float *a = memory.rounded + (size_t)t * s.n_cols;
            double sum = bias[r], terms = fabs(sum);
            for (uint32_t k = 0; k < s.n_cols; k++) {
                sum += (double)w[k] * a[k];
                terms += (fabs((double)w[k]) + most[k / NIB_PANEL_K]) * fabs((double)a[k]);
            }
            memory.expected[t * s.n_rows + r] = sum;
            memory.terms[t * s.n_rows + r] = terms;
        }
    }
}

/* The first rows of what make_weights made, with s.n_tokens tokens. */
static void check_product(unsigned index, nib_path path, shape s, bool at_front) {
    const nib_format *format = nib_format_at(index);
    const size_t n_bytes = nib_format_row_bytes(format, s.n_cols) * s.n_rows;
    void *weights = guard_place(&memory.weights, n_bytes, at_front);
    uint64_t seed = seed_of(format, s.n_tokens);
    const size_t n_out = (size_t)s.n_tokens * s.n_rows, n_scratch = nib_linear_scratch_bytes(s.n_cols, s.n_tokens, 1);
    memcpy(weights, memory.stored, n_bytes);
    make_activations(s, at_front, &seed);
    const float *x = guard_place(&memory.x, (size_t)s.n_tokens * s.n_cols * sizeof *x, at_front);
    float *bias = guard_place(&memory.bias, s.n_rows * sizeof *bias, at_front);
    random_row(&seed, bias, s.n_rows);
    sum_terms(format, path, s, x, bias);
    float *out = guard_place(&memory.out, n_out * sizeof *out, at_front);
    const nib_product product = {{format, weights, s.n_cols, s.n_rows}, bias, out};
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        assert_int_equal(nib_cpu_force_level(nib_cpu_level_name(level), NULL), NIB_OK);
        at(format, level, "product", s.n_cols);
        memset(out, 0xff, n_out * sizeof *out);
        nib_linear(NULL, path, x, s.n_tokens, &product, 1,
                   guard_place(&memory.scratch, (n_scratch + 63) / 64 * 64, at_front));
        for (size_t i = 0; i < n_out; i++) {
            const double error = fabs(out[i] - memory.expected[i]);
            if (error > memory.worst * memory.terms[i] + 1e-36) memory.worst = error / memory.terms[i];
            if (!(error <= TOLERANCE * memory.terms[i] + 1e-36))
                fail_msg("%s, level %s, %s path, %u x %u, %u tokens: row %zu of token %zu: %.9g, expected %.9g",
                         format->facts.name, place.level, path == NIB_PATH_EXACT ? "exact" : "deployed", s.n_rows,
                         s.n_cols, s.n_tokens, i % s.n_rows, i / s.n_rows, out[i], memory.expected[i]);
        }
    }
}

static void check_products(unsigned index) {
    static const uint32_t tokens[] = {1, 5, 6, 2, 7, 3, 4, MAX_TOKENS};
    const nib_format *format = nib_format_at(index);
    const uint32_t block = format->facts.block;
    const uint32_t odd = block == 1 ? 173 : block * (block < 128 ? 5 : 3),
                   past_panel = (NIB_PANEL_K / block + 1) * block;
    const size_t n_tokens = is_short ? 3 : 8;
    make_weights(format, odd, is_short ? 37 : MAX_ROWS);
    for (size_t t = 0; t < n_tokens; t++) {
        check_product(index, NIB_PATH_DEPLOYED, (shape){odd, 37, tokens[t]}, t % 2);
        check_product(index, NIB_PATH_EXACT, (shape){odd, t % 4 || is_short ? 33 : MAX_ROWS, tokens[t]}, !(t % 2));
    }
    make_weights(format, past_panel, 2);
    for (size_t t = 0; t < n_tokens; t++)
        check_product(index, NIB_PATH_DEPLOYED, (shape){past_panel, 2, tokens[t]}, t % 2);
    make_weights(format, block, 1);
    for (size_t t = 0; t < n_tokens; t++)
        check_product(index, NIB_PATH_DEPLOYED, (shape){block, 1, tokens[t]}, !(t % 2));
    const nib_few *few = nib_format_fast(format)->few; /* of whole sixteens of rows and whole panels' columns */
    if (!few) return;
    make_weights(format, NIB_PANEL_K, 48);
    for (uint32_t n = few->from; n <= few->to; n += is_short ? 3 : 1)
        check_product(index, NIB_PATH_DEPLOYED, (shape){NIB_PANEL_K, 48, n}, n % 2);
}

static void test_products(void **state) {
    (void)state;
    catch_faults();
    memory.weights = guard_new(MAX_ROWS * MAX_COLS * sizeof(float));
    memory.x = guard_new(MAX_TOKENS * MAX_COLS * sizeof(float));
    memory.out = guard_new(MAX_TOKENS * MAX_ROWS * sizeof(float));
    memory.bias = guard_new(MAX_ROWS * sizeof(float));
    memory.scratch = guard_new(nib_linear_scratch_bytes(MAX_COLS, MAX_TOKENS, 1));
    for (unsigned index = 0; nib_format_at(index); index++)
        if (nib_format_facts_of(nib_format_at(index))->can_encode) check_products(index);
    printf("largest error of a product: %.1f half units of its terms\n", memory.worst * 0x1p24);
    guard_free(&memory.weights);
    guard_free(&memory.x);
    guard_free(&memory.out);
    guard_free(&memory.bias);
    guard_free(&memory.scratch);
}

int main(void) {
    const char *wish = getenv("NIBBLE_CHECK_BLOCKS");
    n_random_blocks = wish ? strtoull(wish, NULL, 10) : UNIT_SANITIZED ? 5000 : 20000;
    is_short = n_random_blocks < 10000;
    printf("%zu random blocks; levels:", n_random_blocks);
    for (unsigned i = 0; nib_cpu_level_name(i); i++)
        printf(" %s%s", nib_cpu_level_name(i), nib_cpu_level_runs(i) ? "" : " (does not run here)");
    printf("; chosen: %s\n", nib_cpu_level());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
