/* What the recipe and the quantizer ask of overrides. */
#ifndef NIB_QUANT_OVERRIDES_H
#define NIB_QUANT_OVERRIDES_H

#include "nibble/quant.h"

/* All take NULL for "no overrides"; NULL is also "nothing said". */
const nib_format *nib_overrides_output(const nib_overrides *overrides);
const nib_format *nib_overrides_embedding(const nib_overrides *overrides);
/* By the tensor rules, then the role rules. NIB_ERR_USAGE: an expression takes too long. */
nib_status nib_overrides_find(const nib_overrides *overrides, const char *name, const nib_format **out,
                              nib_error *error);
#endif
