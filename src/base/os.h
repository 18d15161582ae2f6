/* What threads ask of the system and C cannot say. */
#ifndef NIB_BASE_OS_H
#define NIB_BASE_OS_H

#include "nibble/base.h"

#include <stdatomic.h>

/* Sleeps while *word == value, until somebody wakes it; may also return for no reason. */
void nib_os_wait(_Atomic uint32_t *word, uint32_t value);
/* Wakes up to n of those who sleep on the word. */
void nib_os_wake(_Atomic uint32_t *word, int n);

/* Asks for large pages for memory, or a mapped file, of more than some megabytes that is read from end to end, before it is
 * first touched: less time is spent on finding pages. Not for memory that may stay untouched: a byte takes 2 MiB then. */
void nib_os_prefer_large_pages(const void *memory, size_t n_bytes);

#endif
