/* Single numbers: bits against the compiler's own conversions and the formats' encoders, the article's lists, FP8 matrices. */
#include "unit.h"

#include "base/half.h"
#include "nibble/number.h"
#include <float.h>
#include <math.h>
#include <string.h>

static nib_number stored(const char *type, double x) {
    nib_number out;
    unsigned i = 0;
    while (nib_number_at(i, x, &out) && strcmp(out.type, type) != 0) i++;
    assert_string_equal(out.type, type);
    return out;
}

static void test_known_bits(void **state) {
    (void)state;
    static const struct {
        const char *type;
        double x, value;
        uint64_t code;
        nib_number_fit fit;
    } cases[] = {
        {"f64", 0.1, 0.1, 0x3fb999999999999a, NIB_NUMBER_EXACT},
        {"f64", -0x1p-1074, -0x1p-1074, 0x8000000000000001, NIB_NUMBER_EXACT},
        {"f64", DBL_MAX, DBL_MAX, 0x7fefffffffffffff, NIB_NUMBER_EXACT},
        {"f64", INFINITY, INFINITY, 0x7ff0000000000000, NIB_NUMBER_EXACT},
        {"f32", 1.5, 1.5, 0x3fc00000, NIB_NUMBER_EXACT},
        {"f32", 0.1, 0.100000001490116119384765625, 0x3dcccccd, NIB_NUMBER_ROUNDED},
        {"f32", 1e39, INFINITY, 0x7f800000, NIB_NUMBER_OVERFLOW},
        {"f32", -1e-60, -0.0, 0x80000000, NIB_NUMBER_UNDERFLOW},
        {"f16", 65504, 65504, 0x7bff, NIB_NUMBER_EXACT},
        {"f16", 65519.9, 65504, 0x7bff, NIB_NUMBER_SATURATED},
        {"f16", 65520, INFINITY, 0x7c00, NIB_NUMBER_OVERFLOW},
        {"f16", 0x1p-24, 0x1p-24, 1, NIB_NUMBER_EXACT},
        {"bf16", 3.14159, 3.140625, 0x4049, NIB_NUMBER_ROUNDED},
        {"f8_e4m3", 500, 448, 0x7e, NIB_NUMBER_SATURATED},
        {"f8_e4m3_ieee", -INFINITY, -240, 0xf7, NIB_NUMBER_SATURATED},
        {"f8_e5m2", 57344, 57344, 0x7b, NIB_NUMBER_EXACT},
        {"f4_e2m1", 2.5, 2, 4, NIB_NUMBER_ROUNDED},
        {"f4_e2m1_ieee", 0.16, 0, 0, NIB_NUMBER_UNDERFLOW},
        {"i8", -0.5, 0, 0, NIB_NUMBER_UNDERFLOW},
        {"i8", -3.6, -4, 0xfc, NIB_NUMBER_ROUNDED},
        {"i8", 1000, 127, 0x7f, NIB_NUMBER_SATURATED},
        {"u8", 255.4, 255, 0xff, NIB_NUMBER_ROUNDED},
        {"u8", -7, 0, 0, NIB_NUMBER_SATURATED},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        const nib_number number = stored(cases[i].type, cases[i].x);
        assert_true(number.value == cases[i].value);
        assert_true(number.code == cases[i].code);
        assert_string_equal(nib_number_fit_name(number.fit), nib_number_fit_name(cases[i].fit));
        if (isfinite(number.value) && isfinite(cases[i].x)) assert_true(number.error == number.value - cases[i].x);
    }
    assert_true(isnan(stored("f16", NAN).value) && stored("f16", NAN).code == 0x7e00);
    assert_int_equal(stored("f4_e2m1", NAN).fit, NIB_NUMBER_NONE);
    assert_int_equal(stored("u8", NAN).fit, NIB_NUMBER_NONE);
    nib_number out;
    assert_true(nib_number_at(10, 1, &out));
    assert_false(nib_number_at(11, 1, &out));
}

static void test_facts(void **state) {
    (void)state;
    const nib_number f32 = stored("f32", 1), f16 = stored("f16", 1), e5m2 = stored("f8_e5m2", 1), i8 = stored("i8", 1);
    assert_true(f32.largest == FLT_MAX && f32.smallest_normal == FLT_MIN && f32.smallest == 0x1p-149);
    assert_true(floor(f32.digits) == 7 && floor(f16.digits) == 3 && floor(stored("bf16", 1).digits) == 2);
    assert_true(f16.lowest == -65504 && e5m2.smallest == 0x1p-16);
    assert_true(f32.next == nextafterf(1, 2) && f32.previous == nextafterf(1, 0));
    assert_true(i8.lowest == -128 && i8.next == 2 && isnan(stored("i8", 127).next));
    const nib_number f64 = stored("f64", -1);
    assert_true(f64.largest == DBL_MAX && f64.smallest_normal == DBL_MIN && f64.smallest == 0x1p-1074);
    assert_true(f64.next == nextafter(-1, 2) && f64.previous == nextafter(-1, -2) && floor(f64.digits) == 15);
    assert_true(stored("f64", DBL_MAX).next == INFINITY && isnan(stored("f64", NAN).value));
    const nib_number zero = stored("f16", -0.0), top = stored("f8_e4m3", 448), end = stored("f8_e5m2", 57344);
    assert_true(zero.code == 0x8000 && zero.next == 0x1p-24 && zero.previous == -0x1p-24);
    assert_true(isnan(top.next) && top.previous == 416 && isinf(end.next));
    assert_true(stored("f8_e4m3", -448).next == -416 && isnan(stored("f8_e4m3", -448).previous));
}

static uint64_t next_random(uint64_t *seed) {
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The same codes as the formats that quantizing uses; f32 as the compiler rounds. */
static void test_same_as_formats(void **state) {
    (void)state;
    static const char *const names[] = {"f8_e4m3", "f8_e4m3_ieee", "f8_e5m2", "f4_e2m1", "f4_e2m1_ieee"};
    uint64_t seed = 1;
    for (unsigned i = 0; i < 20000; i++) {
        const uint64_t random = next_random(&seed);
        const float x = nib_float_of((uint32_t)random);
        if (!isfinite(x)) continue;
        /* half of them near enough for small floats */
        const float near = i % 2 ? x : ldexpf((float)(int32_t)(uint32_t)random, -(int)(random >> 33) % 64);
        assert_int_equal(stored("f16", near).code, nib_f32_to_f16(near));
        assert_int_equal(stored("bf16", near).code, nib_f32_to_bf16(near));
        double value;
        memcpy(&value, &random, sizeof value);
        if (!isnan(value)) assert_true(stored("f64", value).code == random && stored("f64", value).value == value);
        const double wide = (double)near * (1 + 0x1p-30);
        assert_int_equal(stored("f32", wide).code, nib_bits_of((float)wide));
        for (unsigned k = 0; k < 5; k++) {
            const float pair[2] = {near, near};
            uint8_t code = 0;
            assert_int_equal(nib_format_encode(nib_format_find(names[k]), &code, pair, k < 3 ? 1 : 2, NULL),
                             NIB_VERDICT_OK);
            const nib_number number = stored(names[k], near);
            assert_int_equal(k < 3 ? code : code & 15, number.code);
            float decoded[2];
            nib_format_decode(nib_format_find(names[k]), decoded, &code, k < 3 ? 1 : 2);
            assert_true(decoded[0] == number.value && !signbit(decoded[0]) == !signbit(number.value));
        }
    }
}

/* ---- Lists -------------------------------------------------------------------------------------------------------- */

static const double parameters[7] = {-0.89, 0.16, 0.08, -0.13, 0.16, -0.54, 10};

static nib_number_block quantize(const char *format, const double *x, size_t n, int32_t *codes, double *decoded) {
    nib_number_block out;
    nib_error error = {0};
    if (nib_number_quantize(nib_format_find(format), x, n, codes, decoded, &out, &error) != NIB_OK)
        fail_msg("%s: %s", format, error.message);
    return out;
}

static void expect_codes(const int32_t *codes, const int32_t *expected, size_t n) {
    for (size_t i = 0; i < n; i++) assert_int_equal(codes[i], expected[i]);
}

static void expect_near(const double *values, const double *expected, size_t n, double most) {
    for (size_t i = 0; i < n; i++) assert_true(fabs(values[i] - expected[i]) <= most);
}

static void test_article(void **state) {
    (void)state;
    int32_t codes[7];
    double decoded[7];
    nib_number_block seen = quantize("q4s", parameters, 6, codes, decoded);
    assert_true(seen.scale == 0.12714285714285714 && !seen.has_zero);
    expect_codes(codes, (const int32_t[]){-7, 1, 1, -1, 1, -4}, 6);
    expect_near(decoded, (const double[]){-0.89, 0.1271, 0.1271, -0.1271, 0.1271, -0.5086}, 6, 5e-5);
    assert_true(fabs(seen.mean_relative_error - 0.180) < 5e-4);
    assert_int_equal(seen.n_codes_used, 4);
    assert_int_equal(seen.n_codes, 15);

    seen = quantize("q4a", parameters, 6, codes, decoded);
    assert_true(fabs(seen.scale - 0.07) < 1e-15 && seen.has_zero);
    assert_int_equal(seen.zero, 5);
    expect_codes(codes, (const int32_t[]){-8, 7, 6, 3, 7, -3}, 6);
    expect_near(decoded, (const double[]){-0.91, 0.14, 0.07, -0.14, 0.14, -0.56}, 6, 1e-12);
    assert_true(fabs(seen.mean_relative_error - 0.085) < 5e-4);

    /* one outlier takes nearly all the range */
    seen = quantize("q4s", parameters, 7, codes, decoded);
    assert_true(seen.n_codes_used == 2 || seen.n_codes_used == 3);
    /* rounding to 4-bit floats without a scale leaves almost nothing */
    seen = quantize("f4_e2m1_ieee", parameters, 6, codes, decoded);
    assert_false(seen.has_scale);
    expect_near(decoded, (const double[]){-1, 0, 0, 0, 0, -0.5}, 6, 0);
}

static void test_lists(void **state) {
    (void)state;
    int32_t codes[33];
    double decoded[33], x[33] = {1, 2, 3};
    nib_number_block seen = quantize("q2m", x, 3, codes, decoded);
    assert_true(seen.has_minimum && seen.minimum == 1 && fabs(seen.scale - 2.0 / 3) < 1e-15);
    expect_codes(codes, (const int32_t[]){0, 2, 3}, 3);
    /* zero stays in the range, as in the stored format */
    seen = quantize("q4a", x, 3, codes, decoded);
    assert_true(seen.scale == 3.0 / 15 && seen.zero == -8);
    expect_codes(codes, (const int32_t[]){-3, 2, 7}, 3);
    seen = quantize("f8_e4m3_32", x, 3, codes, decoded);
    assert_true(seen.has_scale && seen.scale == 3.0 / 448 && decoded[2] == 3);
    seen = quantize("q2s", x + 3, 3, codes, decoded);
    assert_true(seen.scale == 0 && decoded[0] == 0 && isnan(seen.mean_relative_error));
    seen = quantize("q8a", x + 3, 3, codes, decoded);
    assert_true(decoded[0] == 0 && codes[0] == seen.zero);
    nib_error error = {0};
    assert_int_equal(nib_number_quantize(nib_format_find("q4s"), x, 33, codes, decoded, &seen, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_number_quantize(nib_format_find("q4s"), x, 0, codes, decoded, &seen, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_number_quantize(nib_format_find("q4_0"), x, 3, codes, decoded, &seen, &error),
                     NIB_ERR_UNSUPPORTED);
    x[1] = INFINITY;
    assert_int_equal(nib_number_quantize(nib_format_find("q4s"), x, 3, codes, decoded, &seen, &error), NIB_ERR_USAGE);
}

/* ---- FP8 matrices --------------------------------------------------------------------------------------------------- */

enum { ROWS = 200, COLS = 300 };

static void test_fp8_blocks(void **state) {
    (void)state;
    static uint8_t codes[ROWS * COLS];
    static float out[ROWS * COLS], scales[ROWS * COLS];
    static const struct { size_t rows, cols; } blocks[] = {{0, 0}, {1, 0}, {128, 128}, {0, 1}, {7, 64}};
    for (unsigned i = 0; i < ROWS * COLS; i++) {
        codes[i] = (uint8_t)(i * 37 + i / 256);
        if ((codes[i] & 0x7f) == 0x7f) codes[i] = 0x38;
        scales[i] = 0.001f * (float)(i % 101 + 1);
    }
    const nib_format *format = nib_format_find("f8_e4m3");
    for (unsigned b = 0; b < sizeof blocks / sizeof *blocks; b++) {
        const size_t rows = blocks[b].rows ? blocks[b].rows : ROWS, cols = blocks[b].cols ? blocks[b].cols : COLS;
        const size_t n_across = (COLS + cols - 1) / cols;
        assert_int_equal(nib_fp8_decode_blocks(format, codes, ROWS, COLS, scales, blocks[b].rows, blocks[b].cols, out),
                         NIB_VERDICT_OK);
        for (size_t r = 0; r < ROWS; r++) {
            for (size_t c = 0; c < COLS; c++) {
                float value;
                nib_format_decode(format, &value, &codes[r * COLS + c], 1);
                assert_true(out[r * COLS + c] == value * scales[r / rows * n_across + c / cols]);
            }
        }
    }
    codes[5] = 0x7f;
    assert_int_equal(nib_fp8_decode_blocks(format, codes, 1, COLS, scales, 0, 0, out), NIB_VERDICT_NOT_FINITE);
    assert_true(isnan(out[5]) && out[6] != 0);
    format = nib_format_find("f8_e5m2");
    codes[5] = 0x3c;
    assert_int_equal(nib_fp8_decode_blocks(format, codes + 5, 1, 1, scales, 128, 128, out), NIB_VERDICT_OK);
    assert_true(out[0] == scales[0]);
    assert_int_equal(nib_fp8_decode_blocks(nib_format_find("q8a"), codes, 1, 1, scales, 0, 0, out),
                     NIB_VERDICT_BAD_CODE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_bits), cmocka_unit_test(test_facts), cmocka_unit_test(test_same_as_formats),
        cmocka_unit_test(test_article),    cmocka_unit_test(test_lists), cmocka_unit_test(test_fp8_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
