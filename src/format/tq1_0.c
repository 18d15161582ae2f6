/* tq1_0: 256 weights, one scale, ternary codes, five in a byte. w = d * (t - 1), t in 0..2
 *
 *   byte  0 .. 31               | 32 .. 47               | 48 .. 51              | 52 53
 *         weights 0 .. 159:     | 160 .. 239:            | 240 .. 255:           | d
 *         byte m: m + 32 n,     | byte m: 160 + m + 16 n,| byte m: 240 + m + 4 n,| f16
 *         n = 0..4              | n = 0..4               | n = 0..3     54 bytes, 1.6875 bits per weight
 *
 *   A byte holds the fraction 0.t0 t1 t2 t3 t4 in base 3, scaled to 256 and rounded up: multiplying by 3 moves the next
 *   digit above the byte. */
#include "format/dot_halves.h"

enum { BLOCK = 256, PACKED = 48 + 4 };

typedef struct block {
    uint8_t packed[PACKED], d[2];
} block;
_Static_assert(sizeof(block) == 54, "a tq1_0 block is 54 bytes");

/* Three runs of bytes; digit n of byte m of a run is weight start + m + n_bytes * n. */
static const struct run {
    unsigned start, n_bytes, n_digits, byte;
} RUNS[] = {{0, 32, 5, 0}, {160, 16, 5, 32}, {240, 4, 4, 48}};
enum { N_RUNS = 3 };

static void pack(uint8_t packed[PACKED], const uint8_t code[BLOCK]) {
    for (unsigned r = 0; r < N_RUNS; r++) {
        for (unsigned m = 0; m < RUNS[r].n_bytes; m++) {
            unsigned number = 0;
            for (unsigned n = 0; n < 5; n++)
                number = number * 3 + (n < RUNS[r].n_digits ? code[RUNS[r].start + m + RUNS[r].n_bytes * n] : 0);
            packed[RUNS[r].byte + m] = (uint8_t)((number * 256 + 242) / 243);
        }
    }
}

/* One run: the digit above a byte is 2 from 171 on (3 * 171 > 512), 1 from 86 on; then the byte is multiplied by 3. */
static inline void cut_run(uint8_t *restrict code, const uint8_t *restrict packed, unsigned n_bytes,
                           unsigned n_digits) {
    uint8_t left[32];
    memcpy(left, packed, n_bytes);
    for (unsigned n = 0; n < n_digits; n++, code += n_bytes) {
        for (unsigned m = 0; m < n_bytes; m++) {
            code[m] = (uint8_t)((left[m] > 85) + (left[m] > 170));
            left[m] = (uint8_t)(3 * left[m]);
        }
    }
}

static void cut(uint8_t code[BLOCK], const uint8_t packed[PACKED]) {
    cut_run(code, packed, 32, 5);
    cut_run(code + 160, packed + 32, 16, 5);
    cut_run(code + 240, packed + 48, 4, 4);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format, (void)importance;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += BLOCK, out++) {
        uint8_t code[BLOCK];
        fits &= store_half(out->d, quantize_ternary(code, src + i, BLOCK));
        pack(out->packed, code);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        const float d = load_half(in->d);
        cut(code, in->packed);
        for (unsigned j = 0; j < BLOCK; j++) dst[i + j] = (float)(code[j] - 1) * d;
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (!half_is_finite(in[i].d)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    const block *in = src;
    const float d = load_half(in->d);
    for (unsigned g = 0; g < BLOCK / 32; g++) out->scale[g] = out->min[g] = d;
    cut(out->code, in->packed);
}

#define TIMES_8(n) n, n, n, n, n, n, n, n
/* By how much the bytes after the first 32 must be multiplied so that the digits of 32 weights are their highest. */
static const uint16_t POWERS[3][16] = {
    {TIMES_8(1), TIMES_8(3)}, {TIMES_8(9), TIMES_8(27)}, {TIMES_8(81), 1, 1, 3, 3, 9, 9, 27, 27}};

DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    s->scale[0] = s->min[0] = vhf_splat(load_half(in->d));
}
DOT_INLINE vh read_32(const void *src, int i) {
    const block *in = src;
    if (i < 5) {
        vh packed = vh_load(in->packed);
        DOT_UNROLL for (int n = 0; n < i; n++) packed = vh_triple(packed);
        return vh_third(packed);
    }
    const uint8_t *middle = in->packed + 32, *last = middle + 16;
    return vh_third(vh_times(i < 7 ? vh_join_16(middle, middle) : vh_join_16_4(middle, last), POWERS[i - 5]));
}
NIB_DOT_HALVES(dot, read_scales_256, read_32, sizeof(block), 2)

NIB_FORMATS(tq1_0, {.facts = {.name = "tq1_0",
                              .gguf_name = "tq1_0",
                              .gguf_type = 34,
                              .block = BLOCK,
                              .bytes = sizeof(block),
                              .kind = NIB_CLASS_SCALED,
                              .about = "ternary, five weights in a byte: only for models trained with weights -1, 0, 1",
                              .can_encode = true,
                              .can_decode = true},
                    .activation = NIB_ACT_Q8_256,
                    .group = 32,
                    .centre = 1,
                    .encode = encode,
                    .decode = decode,
                    .check = check,
                    .unpack = unpack,
                    .dot = NIB_DOT(dot)});
