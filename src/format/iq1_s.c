/* iq1_s: 256 weights as 8 sub-blocks of 32, each with a 3-bit scale and a shift; a point of 2048 for every 8 weights.
 * w = d * (2 scale[b] + 1) * (level + shift[b] / 8), level -1, 0 or 1 (iq1.h). Encoding needs an importance matrix.
 *
 *   byte  0  1 | 2 .. 33              | 34 .. 49: u16 b
 *         d    | byte 4 b + l: bits   | bits 3l .. 3l + 2:   | 12 .. 14: | 15: shift[b] is -1,
 *         f16  | 0-7 of the point of  | bits 8-10 of that    | scale[b]  | else 1
 *              | weights 32 b + 8 l.. | point                |        50 bytes, 1.5625 bits per weight
 */
#include "format/codebook_dot.h"
#include "format/iq1.h"

enum { BLOCK = IQ1_BLOCK, SUB = 32, N_SUB = BLOCK / SUB, N_POINTS = SUB / IQ1_POINT };

typedef struct block {
    uint8_t d[2], low[BLOCK / 8], high[N_SUB][2];
} block;
_Static_assert(sizeof(block) == 50, "an iq1_s block is 50 bytes");

/* A sub-block on its way. */
typedef struct fitted {
    float scale; /* >= 0 */
    unsigned shift;
    uint16_t point[N_POINTS];
} fitted;

/* The split and shift with the smallest weighted error, from sums over all weights up to each in ascending order. Returns
 * the scale, negative if the codes must be mirrored; *second < *first: there is none. */
static float find_split(const float *x, const float *weight, const uint8_t *order, unsigned *first, unsigned *second,
                        unsigned *shift) {
    float sum_x[SUB + 1] = {0}, sum_w[SUB + 1] = {0}, best = -FLT_MAX, scale = 0;
    for (unsigned j = 0; j < SUB; j++) {
        const unsigned i = order[j];
        sum_x[j + 1] = sum_x[j] + weight[i] * x[i];
        sum_w[j + 1] = sum_w[j] + weight[i];
    }
    *first = 1;
    *second = 0;
    for (unsigned i1 = 0; i1 <= SUB; i1++) {
        for (unsigned i2 = i1; i2 <= SUB; i2++) {
            for (unsigned s = IQ1_UP; s <= IQ1_DOWN; s++) {
                const float *q = IQ1_LEVEL[s];
                const float xl = sum_x[i1] * q[0] + (sum_x[i2] - sum_x[i1]) * q[1] + (sum_x[SUB] - sum_x[i2]) * q[2];
                const float ll = sum_w[i1] * q[0] * q[0] + (sum_w[i2] - sum_w[i1]) * q[1] * q[1] +
                                 (sum_w[SUB] - sum_w[i2]) * q[2] * q[2];
                if (!(ll > 0 && xl * xl > best * ll)) continue;
                scale = xl / ll;
                best = scale * xl;
                *first = i1;
                *second = i2;
                *shift = s;
            }
        }
    }
    return scale;
}

/* false: the sums overflowed, and no scale can be stored. */
static bool fit_sub(fitted *out, const nib_codebook *book, const float *x, const float *weight) {
    *out = (fitted){.shift = IQ1_UP};
    if (largest_magnitude(x, SUB) < 1e-12f) return true;
    uint8_t order[SUB], level[SUB];
    unsigned first, second;
    iq1_sort(order, x, SUB);
    float scale = find_split(x, weight, order, &first, &second, &out->shift);
    if (second < first) return true;
    const bool mirrored = scale < 0;
    iq1_split(level, order, SUB, first, second, mirrored);
    if (mirrored) {
        scale = -scale;
        out->shift ^= IQ1_UP ^ IQ1_DOWN;
    }
    const float *shifted = IQ1_LEVEL[out->shift];
    bool any_off = false;
    fit_sums sums = {0, 0};
    for (unsigned k = 0; k < N_POINTS; k++) {
        const unsigned at = k * IQ1_POINT;
        const int point = iq1_nearest(book, level + at, x + at, weight + at, scale, shifted, &any_off);
        if (point < 0) return false;
        out->point[k] = (uint16_t)point;
        iq1_add(&sums, book, out->point[k], x + at, weight + at, shifted, 1);
    }
    if (any_off && sums.xl > 0 && sums.ll > 0) scale = sums.xl / sums.ll;
    out->scale = scale;
    return scale >= 0;
}

/* false if no finite scale fits. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance) {
    const float sigma2 = 2 * sum_of_squares(x, BLOCK) / BLOCK;
    fitted fit[N_SUB];
    float max = 0;
    memset(out, 0, sizeof *out);
    for (unsigned b = 0; b < N_SUB; b++) {
        float weight[SUB];
        weigh(weight, SUB, x + SUB * b, importance + SUB * b, sigma2);
        if (!fit_sub(&fit[b], book, x + SUB * b, weight)) return false;
        max = max > fit[b].scale ? max : fit[b].scale;
    }
    const float d = max / 15, inverse = 1 / d;
    for (unsigned b = 0; b < N_SUB; b++) {
        unsigned word = 0;
        for (unsigned k = 0; k < N_POINTS; k++) {
            out->low[N_POINTS * b + k] = (uint8_t)fit[b].point[k];
            word |= (unsigned)fit[b].point[k] >> 8 << 3 * k;
        }
        if (max != 0) word |= (iq1_scale_code(fit[b].scale, inverse) | (fit[b].shift == IQ1_DOWN ? 8u : 0)) << 12;
        const uint16_t stored = (uint16_t)word;
        memcpy(out->high[b], &stored, sizeof stored);
    }
    return store_half(out->d, d * 1.125f);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    if (!importance) return NIB_VERDICT_NEEDS_IMPORTANCE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_TERNARY_2048);
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK) {
        if (!encode_block(out++, book, src + i, importance + i)) return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_block(int8_t eighths[BLOCK], float scale[N_SUB], const block *in, const nib_codebook *book) {
    const float d = load_half(in->d);
    for (unsigned b = 0; b < N_SUB; b++) {
        const unsigned word = nib_load_u16(in->high[b]);
        scale[b] = d * (float)(2 * (word >> 12 & 7) + 1);
        for (unsigned l = 0; l < N_POINTS; l++) {
            const unsigned point = in->low[N_POINTS * b + l] | (word >> 3 * l & 7) << 8;
            iq1_read_point(eighths + SUB * b + IQ1_POINT * l, book, point, word >> 15);
        }
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TERNARY_2048);
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        int8_t eighths[BLOCK];
        float scale[N_SUB];
        read_block(eighths, scale, in, book);
        iq1_decode_block(dst + i, eighths, scale, N_SUB);
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

#if defined(NIB_CODEBOOK_DOT)
/* Eighths: 9 and 8 * level + 1 or - 1. */
enum { OFFSET = 9, CODES = 19 };

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    const int8_t *value = nib_codebooks[NIB_CODEBOOK_TERNARY_2048].value;
    const __m128i high = _mm_loadu_si128((const void *)in->high);
    const uint64_t up = _pdep_u64(~(unsigned)_mm_movepi16_mask(high) & 255, 0x11111111u) * 15;
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const uint8_t *low = in->low + 8 * p;
        const unsigned a = nib_load_u16(in->high[2 * p]), b = nib_load_u16(in->high[2 * p + 1]);
        const vi point = points_of_8(value, index_of(low[0], a, 0, 7), index_of(low[1], a, 3, 7),
                                     index_of(low[2], a, 6, 7), index_of(low[3], a, 9, 7), index_of(low[4], b, 0, 7),
                                     index_of(low[5], b, 3, 7), index_of(low[6], b, 6, 7), index_of(low[7], b, 9, 7));
        const vi level = _mm512_add_epi8(point, vi_of_byte(1));
        const uint64_t which = _pdep_u64(up >> 8 * p, EACH_BYTE(1)) * 255;
        const vi code = _mm512_slli_epi16(level, 3);
        w->code[p] = _mm512_mask_add_epi8(code, which, code, vi_of_byte(2));
    }
    const __m128i scale = _mm_and_si128(_mm_srli_epi16(high, 11), _mm_set1_epi16(14));
    w->scale = _mm256_broadcastsi128_si256(_mm_or_si128(scale, _mm_set1_epi16(1)));
    w->d = load_half(in->d) * 0.125f;
    w->d_min = OFFSET * w->d;
}
NIB_BOOK_DOT(NIB_CODEBOOK_TERNARY_2048, SUB, CODES - 1)
#else
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    int8_t eighths[BLOCK];
    float scale[N_SUB];
    read_block(eighths, scale, src, nib_codebook_to_decode(NIB_CODEBOOK_TERNARY_2048));
    iq1_unpack_block(out, eighths, scale, N_SUB);
}
#endif

NIB_FORMATS(iq1_s,
            {.facts = {.name = "iq1_s",
                       .gguf_name = "iq1_s",
                       .gguf_type = 19,
                       .block = BLOCK,
                       .bytes = sizeof(block),
                       .kind = NIB_CLASS_SCALED,
                       .about = "1.6 bits from a codebook of 2048 points: for very large models; needs importance",
                       .can_encode = true,
                       .can_decode = true},
             .activation = NIB_ACT_Q8_256,
             .group = SUB,
             .encode = encode,
             .decode = decode,
             .check = check,
             .unpack = unpack,
             .dot = NIB_BOOK_DOT_OF(dot)});
