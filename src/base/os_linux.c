/* What differs by system: clock, sleeping on a word, pages, memory accounting. */
#include "base/os.h"

#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

double nib_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void nib_os_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

void nib_os_wake(_Atomic uint32_t *word, int n) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* A refusal costs speed alone: the answer is not looked at. */
void nib_os_prefer_large_pages(const void *memory, size_t n_bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), large = (uintptr_t)4 << 20;
    const uintptr_t first = ((uintptr_t)memory + page - 1) / page * page,
                    end = ((uintptr_t)memory + n_bytes) / page * page;
    if (first < end && end - first >= large) madvise((void *)first, end - first, MADV_HUGEPAGE);
}

/* The kernel keeps a high-water mark of all resident memory only (VmHWM), so the file-backed part of this moment is taken
 * off it: exact when the mapped files are resident at the peak, an upper bound otherwise. */
uint64_t nib_peak_anonymous_bytes(void) {
    FILE *status = fopen("/proc/self/status", "r");
    if (!status) return 0;
    unsigned long long peak = 0, file = 0, anonymous = 0, value;
    char line[256];
    while (fgets(line, sizeof line, status)) {
        if (sscanf(line, "VmHWM: %llu", &value) == 1) peak = value;
        if (sscanf(line, "RssFile: %llu", &value) == 1) file = value;
        if (sscanf(line, "RssAnon: %llu", &value) == 1) anonymous = value;
    }
    fclose(status);
    const unsigned long long estimate = peak > file ? peak - file : 0;
    return 1024 * (uint64_t)(estimate > anonymous ? estimate : anonymous);
}
