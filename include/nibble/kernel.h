/* How weights are multiplied.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_KERNEL_H
#define NIBBLE_KERNEL_H

#include "nibble/format.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the level in use does with a format on the deployed path, in words: for many tokens at once, and for few. */
typedef struct nib_format_kernels {
    const char *many, *few;
} nib_format_kernels;
NIB_API nib_format_kernels nib_format_kernels_of(const nib_format *format);

#ifdef __cplusplus
}
#endif
#endif
