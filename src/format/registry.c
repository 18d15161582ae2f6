/* The table of formats: formats.def x levels.def, and the public functions that look things up in it.
 *
 *   levels[level] -> nib_format_table_<level>[file] -> items[member]
 *
 * The tables of all levels have the same shape; a format is one (file, member) place in every one of them. */
#include "cpu/cpu.h"
#include "format/format.h"

#include <strings.h>

#define LEVEL(name, needs) extern const nib_format_set *const nib_format_table_##name[];
#include "cpu/levels.def"
#undef LEVEL

static const nib_format_set *const *const levels[] = {
#define LEVEL(name, needs) nib_format_table_##name,
#include "cpu/levels.def"
#undef LEVEL
};

enum {
#define FORMAT_FILE(file) FILE_##file,
#include "format/formats.def"
#undef FORMAT_FILE
    N_FILES
};
enum { N_LEVELS = sizeof levels / sizeof *levels };

unsigned nib_format_count(void) {
    size_t n = 0;
    for (unsigned file = 0; file < N_FILES; file++) n += levels[0][file]->n;
    return (unsigned)n;
}

const nib_format *nib_format_at_level(unsigned index, unsigned level) {
    if (level >= N_LEVELS) return NULL;
    size_t left = index;
    for (unsigned file = 0; file < N_FILES; file++) {
        const nib_format_set *set = levels[level][file];
        if (left < set->n) return &set->items[left];
        left -= set->n;
    }
    return NULL;
}

const nib_format *nib_format_fast(const nib_format *format) {
    const unsigned level = nib_cpu_level_index();
    if (level == 0 || level >= N_LEVELS) return format;
    const uintptr_t at = (uintptr_t)format;
    for (unsigned file = 0; file < N_FILES; file++) {
        const nib_format_set *set = levels[0][file];
        if (at >= (uintptr_t)set->items && at < (uintptr_t)(set->items + set->n))
            return &levels[level][file]->items[format - set->items];
    }
    return format; /* already an object of a level */
}

const nib_format *nib_format_at(unsigned index) {
    return nib_format_at_level(index, 0);
}

const nib_format *nib_format_find(const char *name) {
    for (unsigned file = 0; name && file < N_FILES; file++) {
        for (size_t i = 0; i < levels[0][file]->n; i++) {
            const nib_format *format = &levels[0][file]->items[i];
            if (!strcasecmp(name, format->facts.name) || !strcasecmp(name, format->facts.gguf_name)) return format;
        }
    }
    return NULL;
}

const nib_format *nib_format_by_type(uint32_t gguf_type) {
    for (unsigned file = 0; file < N_FILES; file++) {
        for (size_t i = 0; i < levels[0][file]->n; i++) {
            const nib_format *format = &levels[0][file]->items[i];
            if (format->facts.gguf_type == gguf_type) return format;
        }
    }
    return NULL;
}

bool nib_format_is_grid(const nib_format *format) {
    return format && format->facts.gguf_type >> 16 == 0x4E42;
}

const nib_format_facts *nib_format_facts_of(const nib_format *format) {
    return &format->facts;
}

double nib_format_bpw(const nib_format *format) {
    return 8.0 * format->facts.bytes / format->facts.block;
}

size_t nib_format_row_bytes(const nib_format *format, size_t n) {
    const size_t blocks = n / format->facts.block;
    if (n % format->facts.block != 0 || blocks > SIZE_MAX / format->facts.bytes) return 0;
    return blocks * format->facts.bytes;
}

nib_verdict nib_format_encode(const nib_format *format, void *dst, const float *src, size_t n,
                              const float *importance) {
    const nib_format *fast = nib_format_fast(format);
    return fast->encode ? fast->encode(fast, dst, src, n, importance) : NIB_VERDICT_BAD_CODE;
}

void nib_format_decode(const nib_format *format, float *dst, const void *src, size_t n) {
    const nib_format *fast = nib_format_fast(format);
    if (fast->decode) fast->decode(fast, dst, src, n);
}

nib_verdict nib_format_check(const nib_format *format, const void *src, size_t n) {
    const nib_format *fast = nib_format_fast(format);
    return fast->check ? fast->check(fast, src, n) : NIB_VERDICT_OK;
}
