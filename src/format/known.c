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

NIB_FORMATS(known, KNOWN(9, "q8_1", "q8_1", 32, 36, "8 bits with the sum of a block; activations only"),
            KNOWN(15, "q8_K", "q8_k", 256, 292, "8 bits with sums of 16; activations only"),
            KNOWN(16, "iq2_xxs", "iq2_xxs", 256, 66, "2-bit codebook of 256 points"),
            KNOWN(17, "iq2_xs", "iq2_xs", 256, 74, "2-bit codebook of 512 points"),
            KNOWN(22, "iq2_s", "iq2_s", 256, 82, "2-bit codebook of 1024 points"),
            KNOWN(18, "iq3_xxs", "iq3_xxs", 256, 98, "3-bit codebook of 256 points"),
            KNOWN(21, "iq3_s", "iq3_s", 256, 110, "3-bit codebook of 512 points"),
            KNOWN(19, "iq1_s", "iq1_s", 256, 50, "1-bit codebook of 2048 points"),
            KNOWN(29, "iq1_m", "iq1_m", 256, 56, "1-bit codebook of 2048 points, finer scales"),
            KNOWN(20, "iq4_nl", "iq4_nl", 32, 18, "4 bits on 16 uneven levels"),
            KNOWN(23, "iq4_xs", "iq4_xs", 256, 136, "4 bits on 16 uneven levels, blocks of 256"),
            KNOWN(34, "tq1_0", "tq1_0", 256, 54, "ternary, five weights in a byte"),
            KNOWN(35, "tq2_0", "tq2_0", 256, 66, "ternary, four weights in a byte"),
            KNOWN(39, "mxfp4", "mxfp4", 32, 17, "4-bit floats with a power-of-two scale per 32"),
            KNOWN(40, "nvfp4", "nvfp4", 64, 36, "4-bit floats with an 8-bit float scale per 16"),
            KNOWN(41, "q1_0", "q1_0", 128, 18, "1 bit, a scale per 128"),
            KNOWN(42, "q2_0", "q2_0", 64, 18, "2 bits, a scale per 64"), KNOWN(24, "i8", "i8", 1, 1, "8-bit integers"),
            KNOWN(25, "i16", "i16", 1, 2, "16-bit integers"), KNOWN(26, "i32", "i32", 1, 4, "32-bit integers"),
            KNOWN(27, "i64", "i64", 1, 8, "64-bit integers"), KNOWN(28, "f64", "f64", 1, 8, "64-bit floats"));
