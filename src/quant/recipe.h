/* What the quantizer asks of a recipe beyond the public header. */
#ifndef NIB_QUANT_RECIPE_H
#define NIB_QUANT_RECIPE_H

#include "nibble/quant.h"

/* The value of general.file_type; UINT32_MAX for nibble's own formats, whose files carry none. */
uint32_t nib_recipe_file_type(const nib_recipe *recipe);

#endif
