/* iq2_xs: 256 weights as 16 sub-blocks of 16, each with a 4-bit scale; a point of 512 and 7 signs for every 8 weights.
 * w = d * (2 scale[g] + 1) / 8 * magnitude, with its sign. Encoding needs an importance matrix.
 *
 *   byte  0  1 | 2 .. 65: u16 k, weights 8 k .. 8 k + 7 | 66 .. 73
 *         d    | bits 0-8: point | bits 9-15: signs of  | byte b: scale[2b+1] : scale[2b]
 *         f16  |                 | the first 7          |                          74 bytes, 2.3125 bits per weight
 */
#include "format/codebook_search.h"
#include "format/codebook_turn.h"
#include "format/codebook_wide.h"

enum { BLOCK = 256, SUB = 16, N_SCALES = BLOCK / SUB };

typedef struct block {
    uint8_t d[2], points[BLOCK / 8][2], scale[N_SCALES / 2];
} block;
_Static_assert(sizeof(block) == 74, "an iq2_xs block is 74 bytes");

static const point_search SEARCH = {.n = SUB,
                                    .group = 8,
                                    .n_levels = 3,
                                    .n_steps = 9,
                                    .step = 0.1f,
                                    .zero = SEARCH_ZERO,
                                    .even_signs = true,
                                    .redo = REDO_OFF_POINT};

/* false if no finite scale fits. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance) {
    const float sigma2 = sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SCALES];
    memset(out, 0, sizeof *out);
    for (unsigned g = 0; g < N_SCALES; g++) {
        fitted_points fit;
        float weight[SUB];
        weigh(weight, SUB, x + SUB * g, importance + SUB * g, sigma2);
        if (!fit_points(&SEARCH, book, x + SUB * g, weight, 0, &fit)) return false;
        scale[g] = fit.scale;
        for (unsigned l = 0; l < 2; l++) {
            const uint16_t word = (uint16_t)(fit.point[l] | fit.sign[l] << 9);
            memcpy(out->points[2 * g + l], &word, sizeof word);
        }
    }
    const float max = largest_scale(scale, N_SCALES), d = max / 31;
    if (max == 0) {
        memset(out, 0, sizeof *out);
        return true;
    }
    uint8_t code[N_SCALES];
    quantize_scales(code, scale, N_SCALES, d);
    for (unsigned b = 0; b < N_SCALES / 2; b++) out->scale[b] = (uint8_t)(code[2 * b] | code[2 * b + 1] << 4);
    return store_half(out->d, d);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    if (!importance) return NIB_VERDICT_NEEDS_IMPORTANCE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_PAIRS_512);
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK) {
        if (!encode_block(out++, book, src + i, importance + i)) return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_block(int8_t value[BLOCK], float scale[N_SCALES], const block *in, const nib_codebook *book) {
    const float d = load_half(in->d);
    for (unsigned g = 0; g < N_SCALES; g++) scale[g] = d * (0.5f + (float)(in->scale[g / 2] >> g % 2 * 4 & 15)) * 0.25f;
    for (unsigned k = 0; k < BLOCK / 8; k++) {
        const unsigned word = nib_load_u16(in->points[k]);
        put_signs(value + 8 * k, nib_load_u64(book->value + 8 * (word & 511)), all_signs(word >> 9));
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_512);
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

#define SHAPE \
    { .group = SUB, .centre = OFFSET, .whole = 43 }

#if defined(NIB_CODEBOOK_DOT)
/* 64 +- 8, 25, 43 */
enum { OFFSET = 64 };

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    const int8_t *value = nib_codebooks[NIB_CODEBOOK_PAIRS_512].value;
    const vi words = vi_load(in->points);
    _Alignas(64) uint64_t sign[DOT_PARTS];
    signs_of_sevens(sign, _mm512_cvtepi16_epi8(_mm512_srli_epi16(words, 9)));
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const uint8_t(*at)[2] = in->points + 8 * p;
        const vi magnitude =
            points_of_8(value, nib_load_u16(at[0]) & 511, nib_load_u16(at[1]) & 511, nib_load_u16(at[2]) & 511,
                        nib_load_u16(at[3]) & 511, nib_load_u16(at[4]) & 511, nib_load_u16(at[5]) & 511,
                        nib_load_u16(at[6]) & 511, nib_load_u16(at[7]) & 511);
        w->code[p] = with_sign(magnitude, sign[p], OFFSET);
    }
    w->scale = w->min = scales_of_nibbles(in->scale);
    w->d = load_half(in->d) * 0.125f;
    w->d_min = OFFSET * w->d;
}

DOT_INLINE void look_up_two(wide_points *x, int v, const void *first, const void *second) {
    const block *in[2] = {first, second};
    const uint64_t even = 0x0e0c0a0806040200, odd = even + EACH_BYTE(1);
    const vi low = in_steps(even, even + EACH_BYTE(64), EACH_BYTE(16));
    const vi high = in_steps(odd, odd + EACH_BYTE(64), EACH_BYTE(16));
    const vi words[2] = {vi_load(in[0]->points), vi_load(in[1]->points)};
    const vi above = _mm512_permutex2var_epi8(words[0], high, words[1]);
    wide_begin(x, v, _mm512_permutex2var_epi8(words[0], low, words[1]), above, wide_bit(above, 0));
}
DOT_INLINE void read_two(wide_blocks *out, const vi level[2], vi rest, const void *first, const void *second) {
    (void)rest;
    const block *in[2] = {first, second};
    /* sevens are from bits 9, 25, 41 and 57 on: their lower four, four bits up, and all of them */
    const vi from = in_steps(0x3935292519150905, 0x3935292519150905, 0);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        wide_pairs(out->from[i], level[i], wide_signs(cut(from, vi_load(in[i]->points))));
        out->scale[i] = wide_scales_of_16(WIDE_SCALES_4, in[i]->scale);
        out->d[i] = half_before(in[i]->d);
    }
}
NIB_WIDE_DOT(NIB_CODEBOOK_PAIRS_512, 512, false)
NIB_BOOK_UNPACK(NIB_CODEBOOK_PAIRS_512, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_512);
    const vi low = vi_splat(0x00ff00ff);
    vi head[4], scale[4];
    vi_turn(head, in->d, stride);
    vi_turn(scale, in->scale - 8, stride);
    vf_store(sink->panel->d, vf_mul(half_at(head, 0), vf_splat(0.125f)));
    put_whole_scales(sink->panel, scale + 2);
    for (unsigned b = 0; b < 8; b += 4) {
        vi level[2][4], index[4], above[4], word[8], high[4];
        read_words(word, in->points[4 * b], stride, 8);
        DOT_UNROLL for (int i = 0; i < 4; i++) { /* points 0, 2, 1, 3 of each four */
            const vi even = word[2 * i], odd = word[2 * i + 1];
            high[i] = choose_bits(low, words_down(even, 8), odd);
            index[i] = choose_bits(low, even, words_up(odd, 8));
            above[i] = words_up(high[i], 1);
        }
        look_up_16(level, index, above, book->plane, 512);
        DOT_UNROLL for (unsigned i = 0; i < 4; i++) give_points_of_8(sink, b + i, true, level[0][i], level[1][i],
                                                                     signs_of_seven(words_down(high[i], 1)), PAIRS_2);
    }
}
NIB_TURN(turn, cut_rows, SHAPE)
#else
enum { OFFSET = 128 };
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    int8_t value[BLOCK];
    read_block(value, out->scale, src, nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_512));
    offset_codes(out, value, N_SCALES);
}
#endif

NIB_FORMATS(iq2_xs, {.facts = {.name = "iq2_xs",
                               .gguf_name = "iq2_xs",
                               .gguf_type = 17,
                               .block = BLOCK,
                               .bytes = sizeof(block),
                               .kind = NIB_CLASS_SCALED,
                               .about = "2 bits from a codebook of 512 points, scales per 16; needs importance",
                               .can_encode = true,
                               .can_decode = true},
                     .activation = NIB_ACT_Q8_256,
                     .group = BLOCK / N_SCALES,
                     .centre = OFFSET,
                     .shape = SHAPE,
                     .encode = encode,
                     .decode = decode,
                     .check = check,
                     .unpack = unpack,
                     .turn = NIB_BOOK_DOT_OF(turn),
                     .dot_tokens = 5,
                     .dot = NIB_BOOK_DOT_OF(dot)});
