/* As much of cmocka as the checks of kernels use, for machines that have none. The first failure ends the program.
 * NIBBLE_ONLY: names of the tests to run, all unless said. */
#ifndef NIB_TESTS_STANDALONE_CMOCKA_H
#define NIB_TESTS_STANDALONE_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define fail_msg(...)      (printf("%s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), puts(""), exit(1))
#define print_message(...) printf(__VA_ARGS__)
#define assert_true(x)                \
    do {                              \
        if (!(x)) fail_msg("%s", #x); \
    } while (0)
#define assert_false(x)              assert_true(!(x))
#define assert_null(x)               assert_true((x) == NULL)
#define assert_non_null(x)           assert_true((x) != NULL)
#define assert_int_equal(x, y)       assert_true((long long)(x) == (long long)(y))
#define assert_ptr_equal(x, y)       assert_true((x) == (y))
#define assert_string_equal(x, y)    assert_true(!strcmp(x, y))
#define assert_memory_equal(x, y, n) assert_true(!memcmp(x, y, n))
#define cmocka_unit_test(test) \
    { #test, test }
#define cmocka_run_group_tests(tests, setup, teardown) run_all(tests, sizeof(tests) / sizeof *(tests))

static inline int run_all(const struct CMUnitTest *tests, size_t n) {
    const char *only = getenv("NIBBLE_ONLY");
    for (size_t i = 0; i < n; i++) {
        void *state = NULL;
        if (only && !strstr(only, tests[i].name)) continue;
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run(&state);
    }
    return 0;
}

#endif
