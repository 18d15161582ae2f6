/* Where the columns of a weight matrix lie in its file, and decoding them, for products by panels and by rows. Included by
 * files that are compiled once per level. */
#ifndef NIB_KERNEL_COLUMNS_H
#define NIB_KERNEL_COLUMNS_H

#include "cpu/vec.h"
#include "kernel/level.h"

/* Where the columns from k on begin in a row: blocks never straddle a multiple of 256. */
static inline const char *columns_at(const nib_linear_task *task, size_t row, size_t k) {
    return (const char *)task->weights + row * task->row_bytes +
           k / task->format->facts.block * task->format->facts.bytes;
}

/* n columns of a row as floats. Half precision has an instruction that loops over the format's decode cannot use. */
static inline void decode_columns(const nib_linear_task *task, size_t row, size_t k, size_t n, float *out) {
    const nib_format *format = task->format;
    const char *src = columns_at(task, row, k);
    if (format->activation != NIB_ACT_F16 || format->facts.block != 1 || format->facts.bytes != 2) {
        format->decode(format, out, src, n);
        return;
    }
    uint16_t halves[16];
    for (size_t i = 0; i < n; i += 16) {
        memcpy(halves, src + 2 * i, n - i < 16 ? 2 * (n - i) : sizeof halves);
        if (n - i < 16) memset(halves + (n - i), 0, 2 * (16 - (n - i)));
        vf_store(out + i, vf_from_f16(halves)); /* rows of K floats have room for the last 16 */
    }
}

#endif
