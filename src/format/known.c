/* Tensor types that files may hold and nibble can name and measure but not read: they can be inspected, listed and copied
 * unchanged. Ids that llama.cpp has removed (4, 5, 31-33, 36-38) are unknown on purpose. */
#include "format/impl.h"

#define KNOWN(id, file_name, own_name, block_weights, block_bytes, text) \
    {                                                                    \
        .facts = {                                                       \
            .name = own_name,                                            \
            .gguf_name = file_name,                                      \
            .gguf_type = (id),                                           \
            .block = (block_weights),                                    \
            .bytes = (block_bytes),                                      \
            .kind = NIB_CLASS_NONE,                                      \
            .about = text                                                \
        }                                                                \
    }

NIB_FORMATS(known, KNOWN(19, "iq1_s", "iq1_s", 256, 50, "1-bit codebook of 2048 points"),
            KNOWN(29, "iq1_m", "iq1_m", 256, 56, "1-bit codebook of 2048 points, finer scales"));
