/* iq2_xxs: 256 weights as 8 sub-blocks of 32, each with a 4-bit scale; a point of 256 and 7 signs for every 8 weights.
 * w = d * (2 scale[b] + 1) / 8 * magnitude, with its sign. Encoding needs an importance matrix.
 *
 *   byte  0  1 | 2 .. 65: two words for each sub-block
 *         d    | byte l: point of weights | bits 7l .. 7l + 6: signs of | bits 28..31:
 *         f16  | 32 b + 8 l ..            | weights 8 l .. 8 l + 6      | scale[b]     66 bytes, 2.0625 bits per weight
 */
#include "format/codebook_search.h"

enum { BLOCK = 256, SUB = 32, N_SCALES = BLOCK / SUB };

typedef struct block {
    uint8_t d[2], words[N_SCALES][8];
} block;
_Static_assert(sizeof(block) == 66, "an iq2_xxs block is 66 bytes");

static const point_search SEARCH = {.n = SUB,
                                    .group = 8,
                                    .n_levels = 3,
                                    .n_steps = 6,
                                    .step = 0.1f,
                                    .zero = SEARCH_ZERO,
                                    .even_signs = true,
                                    .starts_from_search = true,
                                    .redo = REDO_ALL};

/* false if no finite scale fits. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance) {
    const float sigma2 = sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SCALES], weight[BLOCK], start[NIB_LANES];
    uint32_t word[N_SCALES];
    memset(out, 0, sizeof *out);
    weigh(weight, BLOCK, x, importance, sigma2);
    find_starts(start, &SEARCH, x, weight, N_SCALES);
    for (unsigned b = 0; b < N_SCALES; b++) {
        fitted_points fit;
        if (!fit_points(&SEARCH, book, x + SUB * b, weight + SUB * b, start[b], &fit)) return false;
        scale[b] = fit.scale;
        word[b] = 0;
        for (unsigned l = 0; l < 4; l++) {
            out->words[b][l] = (uint8_t)fit.point[l];
            word[b] |= (uint32_t)fit.sign[l] << 7 * l;
        }
    }
    const float max = largest_scale(scale, N_SCALES), d = max / 31;
    if (max == 0) {
        memset(out, 0, sizeof *out);
        return true;
    }
    uint8_t code[N_SCALES];
    quantize_scales(code, scale, N_SCALES, d);
    for (unsigned b = 0; b < N_SCALES; b++) {
        word[b] |= (uint32_t)code[b] << 28;
        memcpy(out->words[b] + 4, &word[b], sizeof word[b]);
    }
    return store_half(out->d, d);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    if (!importance) return NIB_VERDICT_NEEDS_IMPORTANCE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_PAIRS_256);
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK) {
        if (!encode_block(out++, book, src + i, importance + i)) return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_block(int8_t value[BLOCK], float scale[N_SCALES], const block *in, const nib_codebook *book) {
    const float d = load_half(in->d);
    for (unsigned b = 0; b < N_SCALES; b++) {
        const uint32_t word = nib_load_u32(in->words[b] + 4);
        scale[b] = d * (0.5f + (float)(word >> 28)) * 0.25f;
        for (unsigned l = 0; l < 4; l++)
            put_signs(value + SUB * b + 8 * l, nib_load_u64(book->value + 8 * in->words[b][l]),
                      all_signs(word >> 7 * l));
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_256);
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        int8_t value[BLOCK];
        float scale[N_SCALES];
        read_block(value, scale, in, book);
        scale_values(dst + i, value, scale, N_SCALES);
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
    int8_t value[BLOCK];
    read_block(value, out->scale, src, nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_256));
    offset_codes(out, value, N_SCALES);
}

NIB_FORMATS(
    iq2_xxs,
    {.facts = {.name = "iq2_xxs",
               .gguf_name = "iq2_xxs",
               .gguf_type = 16,
               .block = BLOCK,
               .bytes = sizeof(block),
               .kind = NIB_CLASS_SCALED,
               .about =
                   "2 bits from a codebook of 256 points: the least that keeps most models usable; needs importance",
               .can_encode = true,
               .can_decode = true},
     .activation = NIB_ACT_Q8_256,
     .group = BLOCK / N_SCALES,
     .centre = 128,
     .encode = encode,
     .decode = decode,
     .check = check,
     .unpack = unpack});
