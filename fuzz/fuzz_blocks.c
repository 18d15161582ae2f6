/* Any bytes as blocks of any format, and as weights: every level checks, decodes, unpacks and encodes them to the same as
 * the portable one, inside its buffers. libFuzzer target; build with cmake --preset clang -B build/fuzz -DNIBBLE_FUZZ=ON
 * -DNIBBLE_TESTS=OFF, run with: build/fuzz/fuzz_blocks CORPUS_DIR; fuzz/seeds.py makes inputs to begin with.
 *
 *     input: format (2 bytes), number of weights / block (1), flags (1), then bytes, taken again from the start at their end */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "format/format.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

enum { HAS_IMPORTANCE = 1, AS_WEIGHTS = 2 };

/* Exactly as large as asked, so that the sanitizer sees the first byte past it. */
static void *exactly(size_t n_bytes) {
    void *p = malloc(n_bytes ? n_bytes : 1);
    if (!p) abort();
    return p;
}

static bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (nib_bits_of(a[i]) != nib_bits_of(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static void fill(void *to, size_t n, const uint8_t *data, size_t n_bytes) {
    for (size_t i = 0; i < n; i++) ((uint8_t *)to)[i] = n_bytes ? data[i % n_bytes] : 0;
}

static void unpack_all(const nib_format *format, const uint8_t *packed, size_t n) {
    nib_codes codes;
    for (size_t start = 0; start < n; start += NIB_PANEL_K)
        format->unpack(format, &codes, packed + nib_format_row_bytes(format, start),
                       n - start < NIB_PANEL_K ? n - start : NIB_PANEL_K);
}

/* Values of the portable level in out. */
static void decode_everywhere(unsigned index, const uint8_t *packed, size_t n, float *out) {
    float *decoded = exactly(n * sizeof *decoded);
    nib_verdict first = NIB_VERDICT_OK;
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        const nib_format *format = nib_format_at_level(index, level);
        const nib_verdict seen = format->check ? format->check(format, packed, n) : NIB_VERDICT_OK;
        format->decode(format, level == 0 ? out : decoded, packed, n);
        if (level == 0) first = seen;
        if (seen != first || (level > 0 && !same_floats(out, decoded, n))) abort();
        if (format->unpack) unpack_all(format, packed, n);
    }
    free(decoded);
}

static void encode_everywhere(unsigned index, const float *x, size_t n, const float *importance) {
    const size_t n_packed = nib_format_row_bytes(nib_format_at(index), n);
    uint8_t *first = exactly(n_packed), *packed = exactly(n_packed);
    nib_verdict verdict = NIB_VERDICT_OK;
    for (unsigned level = 0; level < NIB_CPU_N_LEVELS; level++) {
        if (!nib_cpu_level_runs(level)) continue;
        const nib_format *format = nib_format_at_level(index, level);
        const nib_verdict seen = format->encode(format, level == 0 ? first : packed, x, n, importance);
        if (level == 0) verdict = seen;
        if (seen != verdict) abort();
        if (level > 0 && seen == NIB_VERDICT_OK && memcmp(first, packed, n_packed) != 0) abort();
    }
    if (verdict == NIB_VERDICT_OK && nib_format_check(nib_format_at(index), first, n) != NIB_VERDICT_OK) abort();
    free(first);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 4) return 0;
    const unsigned index = nib_load_u16(data) % nib_format_count(), flags = data[3];
    const nib_format *format = nib_format_at(index);
    const size_t n = format->facts.block * (1 + data[2] % 8u), n_packed = nib_format_row_bytes(format, n);
    float *x = exactly(n * sizeof *x), *importance = exactly(n * sizeof *importance);
    uint8_t *packed = exactly(n_packed);
    data += 4;
    n_bytes -= 4;
    fill(packed, n_packed, data, n_bytes);
    if (format->decode) decode_everywhere(index, packed, n, x);
    if (flags & AS_WEIGHTS || !format->decode) fill(x, n * sizeof *x, data, n_bytes);
    for (size_t i = 0; i < n; i++) importance[i] = n_bytes ? data[(7 * i) % n_bytes] : 1;
    if (format->encode) encode_everywhere(index, x, n, flags & HAS_IMPORTANCE ? importance : NULL);
    free(x);
    free(importance);
    free(packed);
    return 0;
}
