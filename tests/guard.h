/* Memory with a page behind it and before it that nobody may touch: a read or write past either end is a fault. */
#ifndef NIB_TESTS_GUARD_H
#define NIB_TESTS_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct guarded {
    char *begin, *end; /* whole pages; what stands before and behind is out of bounds */
} guarded;

static inline guarded guard_new(size_t n_bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (n_bytes + page) / page * page;
    char *all = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + page, inside, PROT_READ | PROT_WRITE)) abort();
    return (guarded){all + page, all + page + inside};
}
static inline void guard_free(guarded *g) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(g->begin - page, (size_t)(g->end - g->begin) + 2 * page);
}
/* n bytes of it that end where it ends, or begin where it begins. */
static inline void *guard_place(const guarded *g, size_t n_bytes, bool at_front) {
    return at_front ? g->begin : g->end - n_bytes;
}

#endif
