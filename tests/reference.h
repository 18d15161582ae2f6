/* What the deployed path makes of activations, as plainly as it can be said. */
#ifndef NIB_TESTS_REFERENCE_H
#define NIB_TESTS_REFERENCE_H

#include "format/format.h"
#include <math.h>

static inline void round_activations(nib_activation kind, float *x, size_t n) {
    const size_t length = kind == NIB_ACT_Q8_256 ? 256 : 32;
    for (size_t i = 0; i < n; i++) {
        if (kind == NIB_ACT_F16) x[i] = nib_f16_to_f32(nib_f32_to_f16(x[i]));
        if (kind == NIB_ACT_BF16) x[i] = nib_bf16_to_f32(nib_f32_to_bf16(x[i]));
    }
    if (kind != NIB_ACT_Q8_32 && kind != NIB_ACT_Q8_256) return;
    for (size_t first = 0; first < n; first += length) {
        const size_t end = first + length < n ? first + length : n;
        float extreme = 0;
        for (size_t i = first; i < end; i++)
            if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
        const float scale = kind == NIB_ACT_Q8_32 ? fabsf(extreme) / 127 : 1 / (-127 / extreme);
        const float factor = kind == NIB_ACT_Q8_32 ? 1 / scale : -127 / extreme;
        for (size_t i = first; i < end; i++) x[i] = extreme == 0 ? 0 : rintf(x[i] * factor) * scale;
    }
}

/* Formats that have to be decoded to be multiplied meet activations as they are. */
static inline bool rounds_activations(const nib_format *format) {
    return format->facts.kind != NIB_CLASS_SCALED || format->unpack != NULL;
}

#endif
