/* cmocka with what it needs before it, in the order it needs. */
#ifndef NIB_TESTS_UNIT_H
#define NIB_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
