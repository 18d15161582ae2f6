/* Formats: bytes and values against recorded results of the reference encoders. With NIBBLE_SHARED the
 * recorded rows are used; the rest runs on data made here. Levels against each other: test_kernel_check.c. */
#include "base/sha256.h"
#include "unit.h"

#include "base/memory.h"
#include "cpu/cpu.h"
#include "format/codebook.h"
#include "format/format.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { NONE = UINT32_MAX, MAX_ROW = 512 };
enum { N_RECORDED = 29 }; /* formats that have recorded rows */
enum { Q8_1 = 9 };        /* a tensor type */

/* ---- Recorded rows ----------------------------------------------------------------------------------------------- */

typedef struct bytes {
    uint8_t *data;
    size_t n, at;
} bytes;

static bool read_shared(const char *name, bytes *out) {
    const char *shared = getenv("NIBBLE_SHARED");
    char path[1024];
    *out = (bytes){0};
    snprintf(path, sizeof path, "%s/fixtures/quant/%s", shared ? shared : "", name);
    FILE *file = shared ? fopen(path, "rb") : NULL;
    if (!file) return false;
    fseek(file, 0, SEEK_END);
    out->n = (size_t)ftell(file);
    rewind(file);
    out->data = malloc(out->n + 1);
    assert_non_null(out->data);
    assert_int_equal(fread(out->data, 1, out->n, file), out->n);
    out->data[out->n] = 0;
    fclose(file);
    return true;
}

static uint32_t next_u32(bytes *in) {
    assert_true(in->at + 4 <= in->n);
    in->at += 4;
    return nib_load_u32(in->data + in->at - 4);
}

static const uint8_t *next_bytes(bytes *in, size_t n) {
    assert_true(n <= in->n - in->at);
    in->at += n;
    return in->data + in->at - n;
}

typedef struct vectors {
    uint32_t n_rows, n_importances;
    uint32_t row_n[64], importance_n[16];
    float row[64][MAX_ROW], importance[16][MAX_ROW];
} vectors;
static vectors inputs;

static bool load_inputs(void) {
    bytes in;
    if (inputs.n_rows) return true;
    if (!read_shared("rows/input.bin", &in)) return false;
    assert_memory_equal(next_bytes(&in, 4), "NQI1", 4);
    const uint32_t n_rows = next_u32(&in);
    inputs.n_importances = next_u32(&in);
    (void)next_u32(&in);
    assert_true(n_rows <= 64 && inputs.n_importances <= 16);
    for (uint32_t i = 0; i < n_rows + inputs.n_importances; i++) {
        const uint32_t n = next_u32(&in);
        assert_true(n <= MAX_ROW);
        float *to = i < n_rows ? inputs.row[i] : inputs.importance[i - n_rows];
        memcpy(to, next_bytes(&in, 4 * n), 4 * n);
        *(i < n_rows ? &inputs.row_n[i] : &inputs.importance_n[i - n_rows]) = n;
    }
    inputs.n_rows = n_rows;
    free(in.data);
    return true;
}

static bool row_is_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return false;
    }
    return true;
}

/* Same bits, except that any NaN equals any NaN. */
static bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (nib_bits_of(a[i]) != nib_bits_of(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return false;
    }
    return true;
}

static unsigned check_record(const nib_format *format, bytes *in) {
    const uint32_t row = next_u32(in), importance = next_u32(in), n = next_u32(in), verdict = next_u32(in);
    const uint32_t n_bytes = next_u32(in);
    const uint8_t *stored = next_bytes(in, n_bytes);
    const uint32_t n_floats = next_u32(in);
    const uint8_t *floats = next_bytes(in, 4 * (size_t)n_floats);
    assert_true(row < inputs.n_rows && inputs.row_n[row] == n && n <= MAX_ROW);
    assert_int_equal(n_bytes, verdict == 2 ? 0 : nib_format_row_bytes(format, n));
    uint8_t encoded[MAX_ROW * 4];
    const nib_verdict seen =
        format->encode(format, encoded, inputs.row[row], n, importance == NONE ? NULL : inputs.importance[importance]);
    const bool finite = row_is_finite(inputs.row[row], n);
    if (!finite)
        assert_int_equal(seen, NIB_VERDICT_NOT_FINITE);
    else if (verdict != 0 &&
             seen != NIB_VERDICT_SCALE_OVERFLOW) /* 1: its validation refuses, 2: the reference aborts */
        fail_msg("%s: row %u, importance %d: not refused", format->facts.name, row, (int)importance);
    /* nothing validates what was recorded of q8_1 */
    const bool refused =
        finite && format->facts.gguf_type == Q8_1 && format->check(format, stored, n) != NIB_VERDICT_OK;
    if (refused) assert_int_equal(seen, NIB_VERDICT_SCALE_OVERFLOW);
    if (finite && verdict == 0 && !refused) {
        if (seen != NIB_VERDICT_OK || memcmp(encoded, stored, n_bytes) != 0)
            fail_msg("%s: row %u, importance %d: the bytes differ", format->facts.name, row, (int)importance);
        if (format->check) assert_int_equal(format->check(format, stored, n), NIB_VERDICT_OK);
    }
    if (n_floats) {
        float expected[MAX_ROW], decoded[MAX_ROW];
        memcpy(expected, floats, 4 * (size_t)n_floats);
        format->decode(format, decoded, stored, n);
        if (!same_floats(decoded, expected, n))
            fail_msg("%s: row %u, importance %d: the decoded values differ", format->facts.name, row, (int)importance);
    }
    return n_floats != 0;
}

static void test_recorded_rows(void **state) {
    (void)state;
    if (!load_inputs()) {
        puts("skipped: NIBBLE_SHARED has no fixtures/quant/rows");
        skip();
    }
    unsigned n_formats = 0;
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        for (unsigned i = 0; i < nib_format_count(); i++) {
            const nib_format *format = nib_format_at_level(i, level);
            char name[64];
            bytes in;
            const bool is_activation = !strcmp(format->facts.name, "q8_1") || !strcmp(format->facts.name, "q8_k");
            snprintf(name, sizeof name, is_activation ? "rows/activation/%s.ref.bin" : "rows/%s.bin",
                     format->facts.gguf_name);
            if (!format->encode || !read_shared(name, &in)) continue;
            assert_memory_equal(next_bytes(&in, 4), "NQR1", 4);
            assert_int_equal(next_u32(&in), format->facts.gguf_type);
            const uint32_t n_records = next_u32(&in);
            assert_true(n_records >= 50);
            for (uint32_t record = 0; record < n_records; record++) check_record(format, &in);
            assert_int_equal(in.at, in.n);
            free(in.data);
            n_formats += level == 0;
        }
    }
    assert_int_equal(n_formats, N_RECORDED);
}

/* ---- The grid family ---------------------------------------------------------------------------------------------- */

static unsigned from_hex(const char *hex, uint8_t *out) {
    unsigned n = 0, value;
    for (; hex[0] && sscanf(hex, "%2x", &value) == 1; hex += 2) out[n++] = (uint8_t)value;
    return n;
}

/* One line: format, row, n, verdict, bytes, sha256 of the decoded floats. */
static void check_grid_line(char *line, unsigned level) {
    char *field[6];
    for (unsigned i = 0; i < 6; i++) field[i] = strsep(&line, "\t");
    assert_non_null(field[5]);
    const nib_format *handle = nib_format_find(field[0]);
    if (!handle) fail_msg("there is no format %s", field[0]);
    unsigned index = 0;
    while (nib_format_at(index) != handle) index++;
    const nib_format *format = nib_format_at_level(index, level);
    const unsigned row = (unsigned)atoi(field[1]), n = (unsigned)atoi(field[2]);
    assert_true(row < inputs.n_rows && inputs.row_n[row] == n);
    uint8_t encoded[MAX_ROW * 4], expected[MAX_ROW * 4];
    const nib_verdict seen = format->encode(format, encoded, inputs.row[row], n, NULL);
    if (strcmp(field[3], "ok") != 0) {
        const bool overflow = !strcmp(field[3], "scale_overflow");
        assert_int_equal(seen, overflow ? NIB_VERDICT_SCALE_OVERFLOW : NIB_VERDICT_NOT_FINITE);
        return;
    }
    assert_int_equal(seen, NIB_VERDICT_OK);
    assert_int_equal(from_hex(field[4], expected), nib_format_row_bytes(format, n));
    if (memcmp(encoded, expected, nib_format_row_bytes(format, n)) != 0)
        fail_msg("%s: row %u: the bytes differ", field[0], row);
    float decoded[MAX_ROW];
    char digest[65];
    format->decode(format, decoded, encoded, n);
    nib_sha256_of(decoded, n * sizeof *decoded, digest);
    assert_string_equal(digest, field[5]);
    assert_int_equal(format->check(format, encoded, n), NIB_VERDICT_OK);
}

static void test_grid(void **state) {
    (void)state;
    bytes in;
    if (!load_inputs() || !read_shared("grid.tsv", &in)) {
        puts("skipped: NIBBLE_SHARED has no fixtures/quant/grid.tsv");
        skip();
    }
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        char *copy = strdup((char *)in.data), *rest = copy, *line;
        unsigned n_checked = 0;
        assert_non_null(copy);
        (void)strsep(&rest, "\n"); /* the heading */
        for (; (line = strsep(&rest, "\n")) && *line; n_checked++) check_grid_line(line, level);
        assert_int_equal(n_checked, 109 * 56);
        free(copy);
    }
    free(in.data);
}

static void test_grid_refuses_unwritten_code(void **state) {
    (void)state;
    const nib_format *format = nib_format_find("q2s");
    float x[32];
    uint8_t block[10];
    for (unsigned i = 0; i < 32; i++) x[i] = (float)i - 16;
    assert_int_equal(nib_format_encode(format, block, x, 32, NULL), NIB_VERDICT_OK);
    assert_int_equal(nib_format_check(format, block, 32), NIB_VERDICT_OK);
    block[5] &= (uint8_t)~0x0c; /* code 13 becomes 0 */
    assert_int_equal(nib_format_check(format, block, 32), NIB_VERDICT_BAD_CODE);
    format = nib_format_find("q4a");
    uint8_t wider[19];
    assert_int_equal(nib_format_encode(format, wider, x, 32, NULL), NIB_VERDICT_OK);
    assert_int_equal(nib_format_check(format, wider, 32), NIB_VERDICT_OK);
    wider[2] = 16; /* the zero point */
    assert_int_equal(nib_format_check(format, wider, 32), NIB_VERDICT_BAD_CODE);
}

/* The family is complete, and every member is what its name says. */
static void test_grid_members(void **state) {
    (void)state;
    static const char kinds[] = "sam";
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (unsigned kind = 0; kind < 3; kind++) {
            for (unsigned log2_block = 5; log2_block <= 8; log2_block++) {
                char name[16];
                int n = snprintf(name, sizeof name, "q%u%c", bits, kinds[kind]);
                if (log2_block > 5) snprintf(name + n, sizeof name - (size_t)n, "_%u", 1u << log2_block);
                const nib_format *format = nib_format_find(name);
                assert_non_null(format);
                assert_int_equal(format->facts.gguf_type, 0x4E420000 + kind * 0x1000 + bits * 0x10 + log2_block);
                assert_int_equal(format->facts.block, 1u << log2_block);
                assert_int_equal(format->facts.bytes, 2 + kind + (bits << log2_block) / 8);
                assert_true(format->unpack != NULL && format->facts.is_nibbles_own);
            }
        }
    }
}

/* Importance changes the scale where it pays and never makes the weighted error larger. */
static void test_grid_search(void **state) {
    (void)state;
    static float x[256], importance[256], plain[256], searched[256];
    static uint8_t packed[2][4 * 256];
    unsigned n_better = 0, n_tried = 0;
    for (unsigned index = 0; index < nib_format_count(); index++) {
        const nib_format *format = nib_format_at(index);
        if (format->facts.gguf_type >> 16 != 0x4E42) continue;
        for (unsigned i = 0; i < 256; i++) {
            x[i] = sinf((float)(i * i)) + (i % 37 == 0 ? 2.0f : 0.0f);
            importance[i] = i % 37 == 0 ? 0.001f : 1.0f + (float)(i % 5);
        }
        assert_int_equal(nib_format_encode(format, packed[0], x, 256, NULL), NIB_VERDICT_OK);
        assert_int_equal(nib_format_encode(format, packed[1], x, 256, importance), NIB_VERDICT_OK);
        nib_format_decode(format, plain, packed[0], 256);
        nib_format_decode(format, searched, packed[1], 256);
        double errors[2] = {0};
        for (unsigned i = 0; i < 256; i++) {
            errors[0] += (double)importance[i] * (plain[i] - x[i]) * (plain[i] - x[i]);
            errors[1] += (double)importance[i] * (searched[i] - x[i]) * (searched[i] - x[i]);
        }
        assert_true(errors[1] <= errors[0] * (1 + 1e-6));
        n_better += errors[1] < 0.95 * errors[0];
        n_tried++;
    }
    assert_int_equal(n_tried, 84);
    assert_true(n_better > 60);
}

/* ---- Plain floats ------------------------------------------------------------------------------------------------- */

/* Every finite code comes back as itself; a value in the middle between two goes to the even one, its neighbours to the
 * nearer one; beyond the largest value everything stops there. */
static void test_plain_floats(void **state) {
    (void)state;
    static const struct {
        const char *name;
        unsigned largest;
        float value;
    } types[] = {{"f8_e4m3", 0x7e, 448},
                 {"f8_e4m3_ieee", 0x77, 240},
                 {"f8_e5m2", 0x7b, 57344},
                 {"f4_e2m1", 7, 6},
                 {"f4_e2m1_ieee", 5, 3}};
    for (unsigned t = 0; t < 5; t++) {
        const nib_format *format = nib_format_find(types[t].name);
        assert_non_null(format);
        const unsigned per_byte = format->facts.block, sign = per_byte == 1 ? 0x80 : 8;
        float below[2] = {0}, value[2], x[2];
        uint8_t code;
        for (unsigned c = 0; c <= types[t].largest; c++) {
            code = (uint8_t)(per_byte == 1 ? c | sign : c | (c | sign) << 4);
            nib_format_decode(format, value, &code, per_byte);
            if (per_byte == 1) value[1] = value[0], value[0] = -value[0];
            assert_true(value[1] == -value[0] && signbit(value[1]) && !signbit(value[0]));
            const float middle = (below[0] + value[0]) / 2;
            const float cases[] = {value[0], middle, nextafterf(middle, 0), nextafterf(middle, INFINITY)};
            const unsigned expected[] = {c, c % 2 ? c - 1 : c, c - 1, c};
            for (unsigned k = 0; k < (c ? 4 : 1); k++) {
                x[0] = -cases[k];
                x[1] = cases[k];
                assert_int_equal(nib_format_encode(format, &code, x, per_byte, NULL), NIB_VERDICT_OK);
                assert_int_equal(code, per_byte == 1 ? (expected[k] | sign) : (expected[k] | sign | expected[k] << 4));
            }
            below[0] = value[0];
        }
        assert_true(below[0] == types[t].value);
        x[0] = 3e38f;
        x[1] = -3e38f;
        assert_int_equal(nib_format_encode(format, &code, x, per_byte, NULL), NIB_VERDICT_OK);
        const unsigned largest = types[t].largest;
        assert_int_equal(code, per_byte == 1 ? largest : largest | (largest | sign) << 4);
        code = (uint8_t)(largest + 1); /* infinity or NaN, but for the type whose codes are all numbers */
        const bool special = strcmp(types[t].name, "f4_e2m1") != 0;
        assert_int_equal(nib_format_check(format, &code, per_byte), special ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK);
        nib_format_decode(format, value, &code, per_byte);
        if (special) assert_true(strcmp(types[t].name, "f8_e4m3") == 0 ? isnan(value[0]) : isinf(value[0]));
    }
}

/* ---- Codebooks ---------------------------------------------------------------------------------------------------- */

/* Every spot has its point or the points nearest to it, in order; the lists follow each other and fill their table. */
static void check_codebook(nib_codebook_id id, unsigned n_spots, unsigned n_distances) {
    const nib_codebook *book = nib_codebook_to_encode(id);
    int32_t next = 0;
    unsigned n_with_point = 0;
    for (unsigned spot = 0; spot < n_spots; spot++) {
        uint8_t level[8];
        unsigned rest = spot;
        for (unsigned i = 0; i < book->group; i++, rest /= book->n_levels) level[i] = (uint8_t)(rest % book->n_levels);
        if (book->at[spot] >= 0) {
            unsigned packed = 0;
            for (unsigned i = 0; i < book->group; i++)
                packed |= (unsigned)level[i] << (book->n_levels == 8 ? 3 : 2) * i;
            assert_int_equal(book->packed[book->at[spot]], packed);
            assert_memory_equal(book->level + (unsigned)book->at[spot] * book->group, level, book->group);
            n_with_point++;
            continue;
        }
        assert_int_equal(book->at[spot], -1 - next);
        const uint16_t *list = book->neighbours + next;
        next += 1 + list[0];
        if (spot % 41 != 0) continue; /* the rest is slow */
        unsigned n = 0, last = 0, n_seen = 0;
        for (unsigned squared = 0; squared <= 196 && n_seen < n_distances; squared++) {
            for (unsigned p = 0; p < book->n_points; p++) {
                unsigned sum = 0;
                for (unsigned i = 0; i < book->group; i++) {
                    const int off = book->level[p * book->group + i] - level[i];
                    sum += (unsigned)(off * off);
                }
                if (sum != squared) continue;
                n_seen += last != squared;
                last = squared;
                assert_true(n < list[0]);
                assert_int_equal(list[1 + n++], book->packed[p]);
            }
        }
        assert_int_equal(n, list[0]);
    }
    assert_int_equal(n_with_point, book->n_points);
    assert_int_equal(next, book->n_entries);
}

static void test_codebooks(void **state) {
    (void)state;
    check_codebook(NIB_CODEBOOK_PAIRS_256, 6561, 2);
    check_codebook(NIB_CODEBOOK_PAIRS_512, 6561, 2);
    check_codebook(NIB_CODEBOOK_PAIRS_1024, 6561, 1);
    check_codebook(NIB_CODEBOOK_TERNARY_2048, 6561, 3);
    check_codebook(NIB_CODEBOOK_TRIPLES_256, 4096, 2);
    check_codebook(NIB_CODEBOOK_TRIPLES_512, 4096, 3);
}

/* ---- Formats with something of their own -------------------------------------------------------------------------- */

/* The exponent is that of the logarithm rounded to float, also right below powers of two. */
static void test_mxfp4_exponent(void **state) {
    (void)state;
    const nib_format *format = nib_format_find("mxfp4");
    for (int k = -124; k <= 127; k++) {
        for (int j = -60; j <= 2; j++) {
            float x[32] = {0};
            uint8_t block[17];
            x[7] = nib_float_of(nib_bits_of(ldexpf(1, k)) + (uint32_t)j);
            assert_int_equal(nib_format_encode(format, block, x, 32, NULL), NIB_VERDICT_OK);
            const int expected = (int)floorf((float)log2(x[7])) - 2 + 127;
            if (block[0] != expected) fail_msg("2^%d, %d units: %d, expected %d", k, j, block[0], expected);
        }
    }
}

static void test_needs_importance(void **state) {
    (void)state;
    static const char *const names[] = {"iq1_s", "iq2_xs", "iq2_xxs"};
    for (unsigned index = 0; index < nib_format_count(); index++) {
        const nib_format *format = nib_format_at(index);
        float x[256] = {1, -1};
        uint8_t packed[4 * 256];
        bool needs = false;
        for (unsigned i = 0; i < sizeof names / sizeof *names; i++) needs |= !strcmp(format->facts.name, names[i]);
        if (!format->encode) continue;
        assert_int_equal(nib_format_encode(format, packed, x, 256, NULL),
                         needs ? NIB_VERDICT_NEEDS_IMPORTANCE : NIB_VERDICT_OK);
    }
}

static void test_wide_numbers(void **state) {
    (void)state;
    const int8_t i8[] = {-128, 127};
    const int16_t i16[] = {-32768, 32767};
    const int32_t i32[] = {INT32_MIN, 16777217};
    const int64_t i64[] = {INT64_MIN, 1};
    const double f64[] = {0.1, -1e300};
    float x[2];
    nib_format_decode(nib_format_find("i8"), x, i8, 2);
    assert_true(x[0] == -128 && x[1] == 127);
    nib_format_decode(nib_format_find("i16"), x, i16, 2);
    assert_true(x[0] == -32768 && x[1] == 32767);
    nib_format_decode(nib_format_find("i32"), x, i32, 2);
    assert_true(x[0] == -2147483648.0f && x[1] == 16777216);
    nib_format_decode(nib_format_find("i64"), x, i64, 2);
    assert_true(x[0] == -9223372036854775808.0f && x[1] == 1);
    nib_format_decode(nib_format_find("f64"), x, f64, 2);
    assert_true(x[0] == 0.1f && isinf(x[1]) && x[1] < 0);
    assert_int_equal(nib_format_check(nib_format_find("f64"), f64, 2), NIB_VERDICT_OK);
}

/* ---- Data made here ----------------------------------------------------------------------------------------------- */

static uint64_t seed;

/* splitmix64 */
static uint64_t next_random(void) {
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Bell-shaped, with an outlier in every hundred and all magnitudes from 1e-6 to 1e3 among the rows. */
static void random_row(float *x, size_t n) {
    const float unit = ldexpf(1, (int)(next_random() % 31) - 20);
    for (size_t i = 0; i < n; i++) {
        const uint64_t bits = next_random();
        float sum = -2;
        for (unsigned k = 0; k < 4; k++) sum += (float)(bits >> 16 * k & 0xffff) * 0x1p-16f;
        x[i] = sum * unit * (bits % 97 == 0 ? 16.0f : 1.0f);
    }
}

static void random_importance(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const int down = (int)(next_random() % 12); /* first: compilers order arguments as they like */
        x[i] = ldexpf((float)(next_random() & 0xff), -down);
    }
}

/* Encoders work on many blocks at once; a block's bytes do not depend on its neighbours or on how many there are. */
static void test_blocks_alone(void **state) {
    (void)state;
    enum { N = 4096, BLOCK = 256 };
    static float x[N], importance[N];
    static uint8_t together[4 * N], alone[4 * BLOCK];
    seed = 7;
    random_row(x, N);
    random_importance(importance, N);
    for (unsigned i = 0; i < BLOCK; i++) x[3 * BLOCK + i] = x[9 * BLOCK + i % 16] = 0;
    for (unsigned i = 0; i < nib_format_count() * NIB_CPU_N_LEVELS; i++) {
        const unsigned level = i % NIB_CPU_N_LEVELS;
        const nib_format *format = nib_format_at_level(i / NIB_CPU_N_LEVELS, level);
        if (!format->encode || format->facts.block != BLOCK || !nib_cpu_level_runs(level)) continue;
        const bool needs = format->encode(format, together, x, N, NULL) == NIB_VERDICT_NEEDS_IMPORTANCE;
        for (unsigned weighted = needs; weighted < 2; weighted++) {
            assert_int_equal(format->encode(format, together, x, N, weighted ? importance : NULL), NIB_VERDICT_OK);
            for (unsigned b = 0; b < N; b += BLOCK) {
                format->encode(format, alone, x + b, BLOCK, weighted ? importance + b : NULL);
                assert_memory_equal(alone, together + b / BLOCK * format->facts.bytes, format->facts.bytes);
            }
        }
    }
}

/* ---- The registry -------------------------------------------------------------------------------------------------- */

static void test_registry(void **state) {
    (void)state;
    static const uint32_t removed[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, 99, 0x4E420000u, UINT32_MAX};
    assert_null(nib_format_at(nib_format_count()));
    for (unsigned i = 0; i < nib_format_count(); i++) {
        const nib_format *format = nib_format_at(i);
        const nib_format_facts *facts = nib_format_facts_of(format);
        assert_ptr_equal(nib_format_find(facts->name), format);
        assert_ptr_equal(nib_format_find(facts->gguf_name), format);
        assert_ptr_equal(nib_format_by_type(facts->gguf_type), format);
        assert_int_equal(facts->can_encode, format->encode != NULL);
        assert_int_equal(facts->can_decode, format->decode != NULL);
        assert_int_equal(nib_format_row_bytes(format, 3 * (size_t)facts->block), 3 * facts->bytes);
        if (facts->block > 1) assert_int_equal(nib_format_row_bytes(format, facts->block + 1), 0);
        for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++)
            assert_string_equal(nib_format_at_level(i, level)->facts.name, facts->name);
    }
    for (unsigned i = 0; i < sizeof removed / sizeof *removed; i++) assert_null(nib_format_by_type(removed[i]));
    assert_ptr_equal(nib_format_find("Q4_K"), nib_format_by_type(12));
    assert_null(nib_format_find("q4_x"));
    assert_null(nib_format_find(NULL));
    assert_true(nib_format_bpw(nib_format_find("q6_k")) == 6.5625);
}

static void test_bad_weights(void **state) {
    (void)state;
    static float x[512], importance[512];
    static uint8_t packed[4 * 512];
    for (unsigned index = 0; index < nib_format_count(); index++) {
        const nib_format *format = nib_format_at(index);
        if (!format->encode) continue;
        for (unsigned at = 0; at < 512; at += 73) {
            for (unsigned i = 0; i < 512; i++) x[i] = 0.01f * (float)(int)(i % 17) - 0.08f;
            x[at] = at % 2 ? NAN : -INFINITY;
            assert_int_equal(nib_format_encode(format, packed, x, 512, NULL), NIB_VERDICT_NOT_FINITE);
        }
        for (unsigned i = 0; i < 512; i++) x[i] = i % 3 ? 1e10f : -1e10f;
        static const char *const large[] = {"f32", "bf16", "mxfp4", "nvfp4", "q8_k"}; /* no half-precision scale */
        bool fits = false;
        for (unsigned i = 0; i < sizeof large / sizeof *large; i++) fits |= !strcmp(format->facts.name, large[i]);
        const bool stops = format->facts.is_nibbles_own && format->facts.block <= 2; /* plain floats without scale */
        for (unsigned i = 0; i < 512; i++) importance[i] = 1;
        nib_verdict seen = nib_format_encode(format, packed, x, 512, NULL);
        if (seen == NIB_VERDICT_NEEDS_IMPORTANCE) seen = nib_format_encode(format, packed, x, 512, importance);
        assert_int_equal(seen, fits || stops ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW);
        if (fits) continue;
        memset(packed, 0xff, sizeof packed);
        const bool all_numbers = !strcmp(format->facts.name, "f4_e2m1");
        assert_int_equal(nib_format_check(format, packed, 512), all_numbers ? NIB_VERDICT_OK : NIB_VERDICT_NOT_FINITE);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_registry),
        cmocka_unit_test(test_blocks_alone),
        cmocka_unit_test(test_recorded_rows),
        cmocka_unit_test(test_grid),
        cmocka_unit_test(test_grid_refuses_unwritten_code),
        cmocka_unit_test(test_bad_weights),
        cmocka_unit_test(test_codebooks),
        cmocka_unit_test(test_mxfp4_exponent),
        cmocka_unit_test(test_needs_importance),
        cmocka_unit_test(test_wide_numbers),
        cmocka_unit_test(test_grid_members),
        cmocka_unit_test(test_grid_search),
        cmocka_unit_test(test_plain_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
