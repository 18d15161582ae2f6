/* Formats by number and level. A nib_format that leaves this room is always the lowest level's object, the same pointer
 * whatever level is in use; encode, decode and check find the fast one themselves. */
#ifndef NIB_FORMAT_FORMAT_H
#define NIB_FORMAT_FORMAT_H

#include "format/impl.h"

unsigned nib_format_count(void);
/* The format's object as compiled for one level (index into levels.def); NULL if either index is past the last. */
const nib_format *nib_format_at_level(unsigned index, unsigned level);
/* The object of the level in use, for kernels: its unpack and decode are the fastest that run here. */
const nib_format *nib_format_fast(const nib_format *format);

#endif
