/* iq3_s: 256 weights as 8 sub-blocks of 32, each with a 4-bit scale; a point of 512 for every 4 weights; all signs.
 * w = d * (2 scale[b] + 1) * magnitude, with its sign
 *
 *   byte  0  1 | 2 .. 65             | 66 .. 73             | 74 .. 105            | 106 .. 109
 *         d    | byte 8 b + k: bits  | bit k of byte b:     | bit i of byte g:     | byte b: scale[2b+1] :
 *         f16  | 0-7 of the point of | bit 8 of that point  | sign of weight       | scale[2b]
 *              | weights 32 b + 4 k  |                      | 8 g + i     110 bytes, 3.4375 bits per weight
 */
#include "format/codebook_pairs.h"
#include "format/codebook_search.h"
#include "format/codebook_turn.h"

enum { BLOCK = 256, SUB = 32, N_SUB = BLOCK / SUB };

typedef struct block {
    uint8_t d[2], low[BLOCK / 4], high[N_SUB], sign[BLOCK / 8], scale[N_SUB / 2];
} block;
_Static_assert(sizeof(block) == 110, "an iq3_s block is 110 bytes");

static const point_search SEARCH = {
    .n = SUB, .group = 4, .n_levels = 8, .n_steps = 9, .step = 0.2f, .zero = FLT_TRUE_MIN, .redo = REDO_ALL_IF_OFF};

/* false if no finite scale fits. importance may be NULL.
 * A sub-block of zeros takes no place among low bits and signs, though decoders expect one: those that follow move up.
 * The reference does so, and its bytes are the format's definition. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance) {
    const float sigma2 = 2 * sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SUB];
    uint8_t *low = out->low, *sign = out->sign;
    memset(out, 0, sizeof *out);
    for (unsigned b = 0; b < N_SUB; b++) {
        fitted_points fit;
        float weight[SUB];
        weigh_or_square(weight, SUB, x + SUB * b, importance ? importance + SUB * b : NULL, sigma2);
        if (!fit_points(&SEARCH, book, x + SUB * b, weight, 0, &fit)) return false;
        scale[b] = fit.scale;
        if (fit.is_zero) continue;
        for (unsigned k = 0; k < 8; k++) {
            *low++ = (uint8_t)fit.point[k];
            out->high[b] |= (uint8_t)(fit.point[k] >> 8 << k);
        }
        for (unsigned l = 0; l < 4; l++) *sign++ = fit.sign[l];
    }
    const float max = largest_scale(scale, N_SUB), d = max / 31;
    if (max == 0) return true;
    uint8_t code[N_SUB];
    quantize_scales(code, scale, N_SUB, d);
    for (unsigned b = 0; b < N_SUB; b += 2) out->scale[b / 2] = (uint8_t)(code[b] | code[b + 1] << 4);
    return store_half(out->d, d * 1.033f);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_TRIPLES_512);
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK) {
        if (!encode_block(out++, book, src + i, importance ? importance + i : NULL)) return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_block(int8_t value[BLOCK], float scale[N_SUB], const block *in, const nib_codebook *book) {
    const float d = load_half(in->d);
    for (unsigned b = 0; b < N_SUB; b++) {
        scale[b] = d * (float)(1 + 2 * (in->scale[b / 2] >> b % 2 * 4 & 15));
        for (unsigned l = 0; l < 4; l++) {
            const unsigned k = 2 * l;
            const unsigned first = in->low[8 * b + k] | (in->high[b] >> k & 1u) << 8;
            const unsigned second = in->low[8 * b + k + 1] | (in->high[b] >> (k + 1) & 1u) << 8;
            const uint64_t low = nib_load_u32(book->value + 4 * first), high = nib_load_u32(book->value + 4 * second);
            put_signs(value + SUB * b + 8 * l, low | high << 32, in->sign[4 * b + l]);
        }
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_512);
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        int8_t value[BLOCK];
        float scale[N_SUB];
        read_block(value, scale, in, book);
        scale_values(dst + i, value, scale, N_SUB);
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
    { .group = SUB, .centre = OFFSET }

#if defined(NIB_CODEBOOK_DOT)
/* 16 +- 1, 3 .. 15 */
enum { OFFSET = 16 };
static const uint8_t ABOVE[16] = {17, 19, 21, 23, 25, 27, 29, 31, 15, 13, 11, 9, 7, 5, 3, 1};

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    const uint8_t *plane = nib_codebooks[NIB_CODEBOOK_TRIPLES_512].plane;
    const uint64_t high = nib_load_u64(in->high);
    const vi low = vi_load(in->low);
    spread_points(w->code, natural_512(plane, low, high), natural_512(plane + 512, low, high), ABOVE);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) w->code[p] =
        put_sign(w->code[p], nib_load_u64(in->sign + 8 * p), OFFSET);
    uint64_t scale = nib_load_u32(in->scale);
    scale = (scale | scale << 16) & 0x0000ffff0000ffffu; /* halving gives each code a place of twice the width */
    scale = (scale | scale << 8) & 0x00ff00ff00ff00ffu;
    scale = (scale | scale << 4) & EACH_BYTE(15);
    scale = 2 * scale + EACH_BYTE(1);
    w->scale = vs_of_bytes((words_16){scale, scale}, 0);
    w->d = load_half(in->d);
    w->d_min = OFFSET * w->d;
}

/* ---- rows (format/codebook_pairs.h) ------------------------------------------------------------------------------ */

/* 64 +- 1, 3 .. 15 */
static const uint8_t ABOVE_64[16] = {65, 67, 69, 71, 73, 75, 77, 79, 63, 61, 59, 57, 55, 53, 51, 49};

DOT_INLINE void load_tables(pair_tables *t) {
    load_triples(t, nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_512)->plane, 512, ABOVE_64);
}
/* Bit k of a lane's byte of high bits is that of point k. */
DOT_INLINE void begin(pair_words *w, const void *a, const void *b) {
    const block *one = a, *other = b;
    const vi both = _mm512_castsi128_si512(load_two((const int8_t *)one->high, (const int8_t *)other->high));
    const vi lanes = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x07070707, 0x06060606, 0x0d0d0d0d, 0x0c0c0c0c,
                                      0x05050505, 0x04040404, 0x0b0b0b0b, 0x0a0a0a0a, 0x03030303, 0x02020202,
                                      0x09090909, 0x08080808, 0x01010101, 0x00000000);
    const vi high = _mm512_permutexvar_epi8(lanes, both);
    DOT_UNROLL for (int odd = 0; odd < 2; odd++) {
        w->index[odd] = points_of_pair(one->low, other->low, odd);
        find_halves(w->in_half[odd], w->index[odd]);
        w->above[odd] = _mm512_test_epi8_mask(high, kept(vi_splat(odd ? (int)0x80200802 : 0x40100401)));
    }
    w->sign = of_two_blocks(one->sign, other->sign);
    const uint64_t scale = nib_load_u32(one->scale) | (uint64_t)nib_load_u32(other->scale) << 32;
    w->rest = _mm512_set1_epi64((long long)scale);
}
DOT_INLINE void look_up(vi level[2], const pair_words *w, const pair_tables *t, int half) {
    look_up_triples(level, w, t, half, 512);
}
DOT_INLINE vf scales(vi rest, const void *a, const void *b) {
    const vi from = _mm512_set_epi64(0x3b00000037, 0x1b00000017, 0x330000002f, 0x130000000f, 0x2b00000027, 0x0b00000007,
                                     0x230000001f, 0x030000003f); /* a bit before the lanes' nibbles */
    return vf_mul(plus_one(vi_and(cut(from, rest), kept(vi_splat(30)))),
                  d_of_pair(((const block *)a)->d, ((const block *)b)->d));
}
NIB_PAIRS_DOT(codes_of_triples, TRIPLES_ORDER, 1.0f)
NIB_BOOK_UNPACK(NIB_CODEBOOK_TRIPLES_512, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_512);
    vi head[4], high[4], tail[4], sign[N_SUB];
    vi_turn(head, in->d, stride);
    vi_turn(high, in->high, stride); /* two words */
    high[3] = vi_shr(high[1], 16);
    high[2] = high[1];
    high[1] = vi_shr(high[0], 16);
    vi_turn(tail, in->scale - 12, stride);
    read_words(sign, in->sign, stride, N_SUB);
    const vf d = half_at(head, 0);
    for (unsigned b = 0; b < N_SUB; b++) vf_store(sink->panel->scale[b], scale_at(tail[3], 4 * b, d));
    for (unsigned k = 0; k < 16; k += 4) {
        vi level[2][4], low[4], above[4];
        vi_turn(low, in->low + 4 * k, stride);
        DOT_UNROLL for (int i = 0; i < 4; i++) above[i] = cut_lanes(high[k / 4], 4 * i - 1, 1);
        look_up_16(level, low, above, book->plane, 512);
        give_groups_of_4(sink, k / 4, level[0], level[1], sign + k / 2, ABOVE);
    }
}
NIB_TURN(turn, cut_rows, SHAPE)
#else
enum { OFFSET = 128 };
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    int8_t value[BLOCK];
    read_block(value, out->scale, src, nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_512));
    offset_codes(out, value, N_SUB);
}
#endif

NIB_FORMATS(iq3_s, {.facts = {.name = "iq3_s",
                              .gguf_name = "iq3_s",
                              .gguf_type = 21,
                              .block = BLOCK,
                              .bytes = sizeof(block),
                              .kind = NIB_CLASS_SCALED,
                              .about = "3 bits from a codebook of 512 points: better than q3_k at its size",
                              .can_encode = true,
                              .can_decode = true},
                    .activation = NIB_ACT_Q8_256,
                    .group = SUB,
                    .centre = OFFSET,
                    .shape = SHAPE,
                    .encode = encode,
                    .decode = decode,
                    .check = check,
                    .unpack = unpack,
                    .turn = NIB_BOOK_DOT_OF(turn),
                    .dot_tokens = 5,
                    .dot = NIB_BOOK_DOT_OF(dot)});
