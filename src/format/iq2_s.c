/* iq2_s: 256 weights as 16 sub-blocks of 16, each with a 4-bit scale; a point of 1024 for every 8 weights; all signs.
 * w = d * (2 scale[g] + 1) / 8 * magnitude, with its sign
 *
 *   byte  0  1 | 2 .. 33             | 34 .. 65             | 66 .. 73             | 74 .. 81
 *         d    | byte k: bits 0-7 of | bit i of byte k:     | bits 2(k%4) .. + 1   | byte b: scale[2b+1] :
 *         f16  | the point of        | sign of weight       | of byte k/4: bits    | scale[2b]
 *              | weights 8 k ..      | 8 k + i              | 8-9 of point k       |  82 bytes, 2.5625 bits per weight
 */
#include "format/codebook_search.h"
#include "format/codebook_turn.h"
#include "format/codebook_wide.h"

enum { BLOCK = 256, SUB = 16, N_SCALES = BLOCK / SUB };

typedef struct block {
    uint8_t d[2], low[BLOCK / 8], sign[BLOCK / 8], high[BLOCK / 32], scale[N_SCALES / 2];
} block;
_Static_assert(sizeof(block) == 82, "an iq2_s block is 82 bytes");

static const point_search SEARCH = {
    .n = SUB, .group = 8, .n_levels = 3, .n_steps = 9, .step = 0.1f, .zero = 1e-8f, .redo = REDO_OFF_POINT};

/* false if no finite scale fits. importance may be NULL. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance) {
    const float sigma2 = 2 * sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SCALES];
    memset(out, 0, sizeof *out);
    for (unsigned g = 0; g < N_SCALES; g++) {
        const float *sub = x + SUB * g;
        fitted_points fit;
        float weight[SUB];
        if (importance) {
            weigh(weight, SUB, sub, importance + SUB * g, sigma2);
        } else {
            for (unsigned i = 0; i < SUB; i++) weight[i] = 0.25f * sigma2 + sub[i] * sub[i];
        }
        if (!fit_points(&SEARCH, book, sub, weight, 0, &fit)) return false;
        scale[g] = fit.scale;
        for (unsigned l = 0; l < 2; l++) {
            const unsigned k = 2 * g + l;
            out->low[k] = (uint8_t)fit.point[l];
            out->high[k / 4] |= (uint8_t)(fit.point[l] >> 8 << 2 * (k % 4));
            out->sign[k] = fit.sign[l];
        }
    }
    const float max = largest_scale(scale, N_SCALES), d = max / 31;
    if (max == 0) return true;
    uint8_t code[N_SCALES];
    quantize_scales(code, scale, N_SCALES, d);
    for (unsigned b = 0; b < N_SCALES / 2; b++) out->scale[b] = (uint8_t)(code[2 * b] | code[2 * b + 1] << 4);
    return store_half(out->d, d * 0.9875f);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_PAIRS_1024);
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK) {
        if (!encode_block(out++, book, src + i, importance ? importance + i : NULL)) return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_block(int8_t value[BLOCK], float scale[N_SCALES], const block *in, const nib_codebook *book) {
    const float d = load_half(in->d);
    for (unsigned g = 0; g < N_SCALES; g++) scale[g] = d * (0.5f + (float)(in->scale[g / 2] >> g % 2 * 4 & 15)) * 0.25f;
    for (unsigned k = 0; k < BLOCK / 8; k++) {
        const unsigned point = in->low[k] | (in->high[k / 4] >> k % 4 * 2 & 3u) << 8;
        put_signs(value + 8 * k, nib_load_u64(book->value + 8 * point), in->sign[k]);
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_1024);
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
    const int8_t *value = nib_codebooks[NIB_CODEBOOK_PAIRS_1024].value;
    const uint64_t high = nib_load_u64(in->high);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const uint8_t *low = in->low + 8 * p;
        const unsigned first = 16 * (unsigned)p;
        const vi magnitude = points_of_8(value, index_of(low[0], high, first, 3), index_of(low[1], high, first + 2, 3),
                                         index_of(low[2], high, first + 4, 3), index_of(low[3], high, first + 6, 3),
                                         index_of(low[4], high, first + 8, 3), index_of(low[5], high, first + 10, 3),
                                         index_of(low[6], high, first + 12, 3), index_of(low[7], high, first + 14, 3));
        w->code[p] = with_sign(magnitude, nib_load_u64(in->sign + 8 * p), OFFSET);
    }
    w->scale = w->min = scales_of_nibbles(in->scale);
    w->d = load_half(in->d) * 0.125f;
    w->d_min = OFFSET * w->d;
}

DOT_INLINE void look_up_two(wide_points *x, int v, const void *first, const void *second) {
    const block *in[2] = {first, second};
    const uint64_t from = 0x0a08060402003e3c; /* bits 8 and 9, four bits up */
    const vi high = _mm512_mask_set1_epi64(_mm512_set1_epi64((long long)nib_load_u64(in[0]->high)), 0xaa,
                                           (long long)nib_load_u64(in[1]->high));
    const vi above = cut(in_steps(from, from, EACH_BYTE(16)), high);
    wide_begin(x, v, of_two_blocks(in[0]->low, in[1]->low), above, wide_bit(above, 4));
}
DOT_INLINE void read_two(wide_blocks *out, const vi level[2], vi rest, const void *first, const void *second) {
    (void)rest;
    const block *in[2] = {first, second};
    /* the nibble of signs of each byte, four bits up */
    const vi from = in_steps(0x1814100c0804003c, 0x1814100c0804003c, 0);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        wide_pairs(out->from[i], level[i], cut(from, eight_dwords(in[i]->sign)));
        out->scale[i] = wide_scales_of_16(WIDE_LARGE_SCALES_4, in[i]->scale);
        out->small_d[i] = float_of_half(nib_load_u16(in[i]->d));
    }
}
NIB_WIDE_DOT(NIB_CODEBOOK_PAIRS_1024, 1024, false)
NIB_BOOK_UNPACK(NIB_CODEBOOK_PAIRS_1024, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_1024);
    vi head[4], tail[4];
    vi_turn(head, in->d, stride);
    vi_turn(tail, in->high, stride); /* and the scales */
    vf_store(sink->panel->d, vf_mul(half_at(head, 0), vf_splat(0.125f)));
    put_whole_scales(sink->panel, tail + 2);
    for (unsigned b = 0; b < 8; b += 4) {
        vi level[2][4], low[4], above[4], sign[4];
        vi_turn(low, in->low + 4 * b, stride);
        vi_turn(sign, in->sign + 4 * b, stride);
        DOT_UNROLL for (int i = 0; i < 4; i++) above[i] = cut_lanes(tail[b / 4], 8 * i - 1, 2);
        look_up_16(level, low, above, book->plane, 1024);
        DOT_UNROLL for (unsigned i = 0; i < 4; i++)
            give_points_of_8(sink, b + i, false, level[0][i], level[1][i], sign[i], PAIRS_2);
    }
}
NIB_TURN(turn, cut_rows, SHAPE)
#else
enum { OFFSET = 128 };
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    int8_t value[BLOCK];
    read_block(value, out->scale, src, nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_1024));
    offset_codes(out, value, N_SCALES);
}
#endif

NIB_FORMATS(iq2_s,
            {.facts = {.name = "iq2_s",
                       .gguf_name = "iq2_s",
                       .gguf_type = 22,
                       .block = BLOCK,
                       .bytes = sizeof(block),
                       .kind = NIB_CLASS_SCALED,
                       .about = "2 bits from a codebook of 1024 points, scales per 16, best with an importance matrix",
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
