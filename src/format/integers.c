/* i8, i16, i32, i64: plain signed integers, as tables and indices are stored. Read only; the nearest float of each number
 * (exact up to 2^24). */
#include "format/block.h"

/* decode for one width: the bytes of every number may lie at any address. */
#define DECODE(name, type)                                                                                \
    static void name(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) { \
        (void)format;                                                                                     \
        const uint8_t *in = src;                                                                          \
        for (size_t i = 0; i < n; i++) {                                                                  \
            type value;                                                                                   \
            memcpy(&value, in + sizeof value * i, sizeof value);                                          \
            dst[i] = (float)value;                                                                        \
        }                                                                                                 \
    }
DECODE(decode_8, int8_t)
DECODE(decode_16, int16_t)
DECODE(decode_32, int32_t)
DECODE(decode_64, int64_t)

#define MEMBER(own_name, id, n_bytes, function, text)    \
    {                                                    \
        .facts = {.name = own_name,                      \
                  .gguf_name = own_name,                 \
                  .gguf_type = (id),                     \
                  .block = 1,                            \
                  .bytes = (n_bytes),                    \
                  .kind = NIB_CLASS_NONE,                \
                  .about = text,                         \
                  .can_decode = true},                   \
        .activation = NIB_ACT_F32, .decode = (function), \
    }

NIB_FORMATS(integers, MEMBER("i8", 24, 1, decode_8, "8-bit integers; read only"),
            MEMBER("i16", 25, 2, decode_16, "16-bit integers; read only"),
            MEMBER("i32", 26, 4, decode_32, "32-bit integers; read only"),
            MEMBER("i64", 27, 8, decode_64, "64-bit integers; read only"));
