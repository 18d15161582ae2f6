/* Tests that run once on every level of this processor. */
#ifndef NIB_TESTS_LEVELS_H
#define NIB_TESTS_LEVELS_H

#include "cpu/cpu.h"
#include "unit.h"

static void on_each_level(void (*fn)(void)) {
    for (unsigned i = 0; nib_cpu_level_name(i); i++) {
        if (!nib_cpu_level_runs(i)) {
            print_message("skipped: level %s does not run here\n", nib_cpu_level_name(i));
            continue;
        }
        assert_int_equal(nib_cpu_force_level(nib_cpu_level_name(i), NULL), NIB_OK);
        fn();
    }
}

/* test_name runs check_name on each. */
#define ON_EACH_LEVEL(name)                 \
    static void test_##name(void **state) { \
        (void)state;                        \
        on_each_level(check_##name);        \
    }

#endif
