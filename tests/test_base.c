/* The ground everything stands on: half precision, JSON, outputs. */
#include "base/files.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/progress.h"
#include "nibble/json.h"
#include "unit.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void half_round_trips(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const float value = nib_f16_to_f32((uint16_t)bits);
        if (isnan(value)) {
            assert_true((bits & 0x7fff) > 0x7c00);
            assert_int_equal(nib_f32_to_f16(value) & 0x7fff, 0x7e00);
        } else {
            assert_int_equal(nib_f32_to_f16(value), bits);
        }
        const float brain = nib_bf16_to_f32((uint16_t)bits);
        if (!isnan(brain)) assert_int_equal(nib_f32_to_bf16(brain), bits);
    }
}

/* Between two neighbouring halves the nearer wins, and the even one in the middle. */
static void half_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 0x7bff; bits++) {
        const float low = nib_f16_to_f32((uint16_t)bits), high = nib_f16_to_f32((uint16_t)(bits + 1));
        const float middle = (float)(((double)low + high) / 2);
        assert_int_equal(nib_f32_to_f16(middle), bits & 1 ? bits + 1 : bits);
        assert_int_equal(nib_f32_to_f16(nextafterf(middle, low)), bits);
        assert_int_equal(nib_f32_to_f16(nextafterf(middle, high)), bits + 1);
    }
    assert_int_equal(nib_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(nib_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(nib_f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(nib_f32_to_bf16(nib_float_of(0x7f800001)), 0x7fc0);
}

static void json_is_valid_and_escaped(void **state) {
    (void)state;
    nib_json *json = nib_json_new();
    assert_non_null(json);
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "te\"xt", "line\nbreak \x01 \xff end \xe2\x82\xac \xed\xa0\x80");
    nib_json_number(json, "third", 1.0 / 3);
    nib_json_number(json, "nan", NAN);
    nib_json_uint(json, "large", UINT64_C(9007199254740993));
    nib_json_begin_array(json, "list");
    nib_json_int(json, NULL, -1);
    nib_json_bool(json, NULL, true);
    nib_json_begin_object(json, NULL);
    nib_json_end_object(json);
    nib_json_end_array(json);
    nib_json_end_object(json);
    const char *text;
    size_t n;
    assert_int_equal(nib_json_text(json, &text, &n, NULL), NIB_OK);
    json_error_t problem;
    json_t *read = json_loadb(text, n, JSON_REJECT_DUPLICATES, &problem);
    assert_non_null(read);
    assert_string_equal(json_string_value(json_object_get(read, "te\"xt")),
                        "line\nbreak \x01 \xef\xbf\xbd end \xe2\x82\xac \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    assert_true(json_real_value(json_object_get(read, "third")) == 1.0 / 3);
    assert_true(json_is_null(json_object_get(read, "nan")));
    assert_int_equal(json_integer_value(json_object_get(read, "large")), 9007199254740993);
    assert_int_equal(json_array_size(json_object_get(read, "list")), 3);
    json_decref(read);
    nib_json_free(json);
}

static void json_refuses_open_brackets(void **state) {
    (void)state;
    nib_json *json = nib_json_new();
    nib_json_begin_array(json, NULL);
    const char *text;
    size_t n;
    nib_error error;
    assert_int_equal(nib_json_text(json, &text, &n, &error), NIB_ERR_BUG);
    nib_json_end_object(json);
    nib_json_end_array(json);
    assert_int_equal(nib_json_text(json, &text, &n, &error), NIB_ERR_BUG);
    nib_json_free(json);
}

static void output_appears_only_when_complete(void **state) {
    (void)state;
    char folder[] = "/tmp/nibble-test-XXXXXX", path[64], partial[80];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/out", folder);
    snprintf(partial, sizeof partial, "%s.partial", path);
    struct stat info;
    nib_error error;
    nib_output *output;
    nib_map input;

    assert_int_equal(nib_output_open(path, false, NULL, 5, &output, &error), NIB_OK);
    assert_int_equal(nib_output_write(output, "hello", 5, &error), NIB_OK);
    assert_int_not_equal(stat(path, &info), 0);
    assert_int_equal(stat(partial, &info), 0);
    nib_output_discard(output);
    assert_int_not_equal(stat(partial, &info), 0);

    assert_int_equal(nib_output_open(path, false, NULL, 5, &output, &error), NIB_OK);
    assert_int_equal(nib_output_write(output, "hello", 5, &error), NIB_OK);
    assert_int_equal(nib_output_commit(output, true, &error), NIB_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, 5);
    assert_int_not_equal(stat(partial, &info), 0);

    assert_int_equal(nib_output_open(path, false, NULL, 5, &output, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_map_open(path, &input, &error), NIB_OK);
    assert_memory_equal(input.data, "hello", 5);
    assert_int_equal(nib_output_open(path, true, &input, 5, &output, &error), NIB_ERR_USAGE);
    nib_map_close(&input);
    assert_int_equal(nib_output_open(path, false, NULL, UINT64_C(1) << 60, &output, &error), NIB_ERR_USAGE);
    unlink(path);
    assert_int_equal(nib_output_open(path, false, NULL, UINT64_C(1) << 60, &output, &error), NIB_ERR_IO);
    assert_int_equal(nib_map_open(folder, &input, &error), NIB_ERR_IO);
    assert_int_equal(nib_map_open(path, &input, &error), NIB_ERR_IO);
    rmdir(folder);

    static const char zeros[3 << 20];
    assert_int_equal(nib_output_open("/dev/full", false, NULL, 0, &output, &error), NIB_OK);
    assert_int_equal(nib_output_write(output, zeros, sizeof zeros, &error), NIB_ERR_IO);
    assert_int_not_equal(error.os_errno, 0);
    nib_output_discard(output);
    assert_int_equal(stat("/dev/full", &info), 0);
}

/* Parts of every size around those in which an output hands its bytes on, in small writes and in large ones. */
static void output_keeps_the_order_of_parts(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 100, 256 << 10, 3, (2 << 20) - 1, 5 << 20, 70000, 2 << 20, 1, 6 << 20};
    enum { N_SIZES = sizeof sizes / sizeof *sizes };
    char folder[] = "/tmp/nibble-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/out", folder);
    size_t n_bytes = 0;
    for (size_t i = 0; i < N_SIZES; i++) n_bytes += sizes[i];
    uint8_t *bytes = malloc(n_bytes);
    assert_non_null(bytes);
    for (size_t i = 0; i < n_bytes; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    for (int large = 0; large < 2; large++) {
        nib_output *output;
        nib_error error;
        nib_map map;
        assert_int_equal(nib_output_open(path, true, NULL, n_bytes, &output, &error), NIB_OK);
        if (large) nib_output_prefer_large_pages(output);
        size_t at = 0;
        for (size_t i = 0; i < N_SIZES; at += sizes[i++])
            assert_int_equal(nib_output_write(output, bytes + at, sizes[i], &error), NIB_OK);
        assert_int_equal(nib_output_commit(output, false, &error), NIB_OK);
        assert_int_equal(nib_map_open(path, &map, &error), NIB_OK);
        assert_int_equal(map.n_bytes, n_bytes);
        assert_memory_equal(map.data, bytes, n_bytes);
        nib_map_close(&map);
    }
    free(bytes);
    unlink(path);
    rmdir(folder);
}

static bool stop_at_once(void *user, const nib_progress *progress) {
    (void)progress;
    ++*(int *)user;
    return false;
}

static void meter_can_stop_the_work(void **state) {
    (void)state;
    int calls = 0;
    const nib_watch watch = {.user = &calls, .progress = stop_at_once};
    nib_meter meter;
    nib_meter_init(&meter, &watch, "test", 10);
    assert_int_equal(nib_meter_add(&meter, 10, NULL), NIB_ERR_INTERRUPTED);
    assert_int_equal(calls, 1);
    nib_meter_init(&meter, NULL, "test", 10);
    assert_int_equal(nib_meter_add(&meter, 10, NULL), NIB_OK);
}

static void errors_are_safe_to_show(void **state) {
    (void)state;
    nib_error error;
    assert_int_equal(nib_fail_at(&error, NIB_ERR_CORRUPT, "a\033[31mb", 7, "k\x9b\nx", "bad %s", "\xff\xfe\xe2\x82"),
                     NIB_ERR_CORRUPT);
    assert_string_equal(error.file, "a?[31mb");
    assert_string_equal(error.field, "k??x");
    assert_string_equal(error.message, "bad ????");
    assert_int_equal(error.offset, 7);
    assert_int_equal(nib_fail(NULL, NIB_ERR_IO, "no one listens"), NIB_ERR_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half_round_trips),
        cmocka_unit_test(half_rounds_to_nearest_even),
        cmocka_unit_test(json_is_valid_and_escaped),
        cmocka_unit_test(json_refuses_open_brackets),
        cmocka_unit_test(output_appears_only_when_complete),
        cmocka_unit_test(output_keeps_the_order_of_parts),
        cmocka_unit_test(meter_can_stop_the_work),
        cmocka_unit_test(errors_are_safe_to_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
