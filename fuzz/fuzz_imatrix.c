/* Any bytes as an importance matrix (GGUF and .dat) and as a file of rules for tensors. libFuzzer target; build with
 * cmake --preset clang -B build/fuzz -DNIBBLE_FUZZ=ON -DNIBBLE_TESTS=OFF, run with: build/fuzz/fuzz_imatrix CORPUS_DIR;
 * fuzz/seeds.py makes inputs to begin with. */
#include "nibble/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void hear(void *user, const char *message) {
    (void)user;
    (void)message;
}

/* Everything that is found must be usable. */
static void look_up(const nib_imatrix *imatrix) {
    static const char *const names[] = {"blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight", "output.weight", ""};
    static const uint64_t widths[] = {1, 4, 32, 256}, counts[] = {1, 2, 8};
    for (size_t i = 0; i < 4 * 4 * 3; i++) {
        const float *found;
        const uint64_t width = widths[i / 4 % 4], count = counts[i / 16];
        if (nib_imatrix_find(imatrix, names[i % 4], width, count, &found) != NIB_IMATRIX_FOUND) continue;
        for (uint64_t k = 0; k < width * count; k++)
            if (!(found[k] >= 0) || !isfinite(found[k])) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static int file = -1;
    static char path[64];
    if (file < 0) {
        file = memfd_create("fuzz", 0);
        if (file < 0) abort();
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    }
    if (ftruncate(file, 0) || pwrite(file, data, n_bytes, 0) != (ssize_t)n_bytes) abort();
    const nib_watch watch = {.warn = hear};
    nib_error error;
    nib_imatrix *imatrix;
    if (nib_imatrix_open(path, &watch, &imatrix, &error) == NIB_OK) {
        nib_imatrix_facts_of(imatrix);
        look_up(imatrix);
        nib_imatrix_free(imatrix);
    }
    nib_overrides *overrides;
    if (nib_overrides_new(&overrides, &error) == NIB_OK) {
        nib_overrides_add_file(overrides, path, &error);
        nib_overrides_free(overrides);
    }
    return 0;
}
