/* q8_k: 256 numbers, one scale, signed 8-bit codes and their sums by 16. w = d * q; the number of largest magnitude gets
 * q = -127. Other programs round activations to it before multiplying with blocks of 256; files do not hold it.
 *
 *   byte  0 .. 3 | 4 .. 259            | 260 .. 291
 *         d      | q[0] .. q[255]      | sums of q[16 g] .. q[16 g + 15]      292 bytes, 9.125 bits per weight
 *         f32    | int8 each           | int16 each
 */
#include "format/search.h"

enum { BLOCK = 256, N_SUMS = 16, SUB = BLOCK / N_SUMS };

typedef struct block {
    uint8_t d[4], q[BLOCK], sum[2 * N_SUMS];
} block;
_Static_assert(sizeof(block) == 292, "a q8_k block is 292 bytes");

static bool encode_block(block *out, const float *x) {
    const float max = extreme_number(x, BLOCK);
    memset(out, 0, sizeof *out);
    if (max == 0) return true;
    const float inverse = -127.0f / max, d = 1 / inverse;
    for (unsigned g = 0; g < N_SUMS; g++) {
        int sum = 0;
        for (unsigned j = 0; j < SUB; j++) {
            const int rounded = round_even(inverse * x[SUB * g + j]);
            const int8_t q = (int8_t)(rounded < 127 ? rounded : 127);
            out->q[SUB * g + j] = (uint8_t)q;
            sum += q;
        }
        const int16_t stored = (int16_t)sum;
        memcpy(out->sum + 2 * g, &stored, sizeof stored);
    }
    memcpy(out->d, &d, sizeof d);
    return all_finite(&d, 1);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK) fits &= encode_block(out++, src + i);
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        const float d = nib_load_f32(in->d);
        for (unsigned j = 0; j < BLOCK; j++) dst[i + j] = d * (float)(int8_t)in->q[j];
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        const float d = nib_load_f32(in[i].d);
        if (!all_finite(&d, 1)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

NIB_FORMATS(q8_k, {.facts = {.name = "q8_k",
                             .gguf_name = "q8_K",
                             .gguf_type = 15,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_NONE,
                             .about = "8 bits and sums of 16: for activations, not for files",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_F32,
                   .encode = encode,
                   .decode = decode,
                   .check = check});
