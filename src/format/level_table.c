/* The sets of all format files as this level compiled them, in the order of formats.def: the one symbol through which the
 * rest of the program reaches a level's formats. */
#include "format/impl.h"

#define FORMAT_FILE(file) extern const nib_format_set NIB_AT_LEVEL(nib_formats_##file##_);
#include "format/formats.def"
#undef FORMAT_FILE

extern const nib_format_set *const NIB_AT_LEVEL(nib_format_table_)[];
const nib_format_set *const NIB_AT_LEVEL(nib_format_table_)[] = {
#define FORMAT_FILE(file) &NIB_AT_LEVEL(nib_formats_##file##_),
#include "format/formats.def"
#undef FORMAT_FILE
};
