/* iq2_xxs: 256 weights as 8 sub-blocks of 32, each with a 4-bit scale; a point of 256 and 7 signs for every 8 weights.
 * w = d * (2 scale[b] + 1) / 8 * magnitude, with its sign. Encoding needs an importance matrix.
 *
 *   byte  0  1 | 2 .. 65: two words for each sub-block
 *         d    | byte l: point of weights | bits 7l .. 7l + 6: signs of | bits 28..31:
 *         f16  | 32 b + 8 l ..            | weights 8 l .. 8 l + 6      | scale[b]     66 bytes, 2.0625 bits per weight
 */
#include "format/codebook_pairs.h"
#include "format/codebook_search.h"
#include "format/codebook_turn.h"

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

#define SHAPE \
    { .group = SUB, .centre = OFFSET }

#if defined(NIB_CODEBOOK_DOT)
/* 64 +- 8, 25, 43 */
enum { OFFSET = 64 };

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    const int8_t *value = nib_codebooks[NIB_CODEBOOK_PAIRS_256].value;
    const vi words = vi_load(in->words);
    _Alignas(64) uint64_t sign[DOT_PARTS];
    const vi sevens = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e2720), words);
    signs_of_sevens(sign, _mm512_cvtepi64_epi32(sevens));
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const uint8_t *a = in->words[2 * p], *b = in->words[2 * p + 1];
        const vi magnitude = points_of_8(value, a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]);
        w->code[p] = with_sign(magnitude, sign[p], OFFSET);
    }
    const __m128i twice = _mm512_cvtepi64_epi16(_mm512_srli_epi64(words, 59));
    w->scale = _mm256_or_si256(_mm256_broadcastsi128_si256(twice), _mm256_set1_epi16(1));
    w->d = load_half(in->d) * 0.125f;
    w->d_min = OFFSET * w->d;
}

/* ---- rows (format/codebook_pairs.h) ------------------------------------------------------------------------------ */

DOT_INLINE void load_tables(pair_tables *t) {
    const uint8_t *plane = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_256)->plane;
    for (int i = 0; i < 8; i++) t->part[i] = vi_load(plane + 64 * i);
    load_codes_of_four(t);
}
/* A block's words are in turn four indices, four sevens of signs with a scale. */
DOT_INLINE void begin(pair_words *w, const void *a, const void *b) {
    const vf one = (vf)vi_load(((const block *)a)->words), other = (vf)vi_load(((const block *)b)->words);
    w->index[0] = (vi)_mm512_shuffle_ps(one, other, 0x88);
    w->rest = (vi)_mm512_shuffle_ps(one, other, 0xdd);
    find_halves(w->in_half[0], w->index[0]);
    w->sign = signs_of_seven(cut(_mm512_set1_epi64(0x352e2720150e0700), w->rest));
}
DOT_INLINE void look_up(vi level[2], const pair_words *w, const pair_tables *t, int half) {
    put_signs_to_four(level, look_up_256(t->part + 4 * half, w->index[0], w->in_half[0]), w->sign, half);
}
DOT_INLINE vf scales(vi rest, const void *a, const void *b) {
    return vf_mul(plus_one(_mm512_srli_epi32(rest, 27)), d_of_pair(((const block *)a)->d, ((const block *)b)->d));
}
NIB_PAIRS_DOT(codes_of_four, FOUR_ORDER, 0.125f)
NIB_BOOK_UNPACK(NIB_CODEBOOK_PAIRS_256, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_256);
    vi head[4];
    vi_turn(head, in->d, stride);
    const vf d = vf_mul(half_at(head, 0), vf_splat(0.125f));
    for (unsigned b = 0; b < N_SCALES; b += 4) {
        vi level[2][4], index[4], word[8];
        read_words(word, in->words[b], stride, 8);
        DOT_UNROLL for (int i = 0; i < 4; i++) index[i] = word[2 * i];
        look_up_16(level, index, NULL, book->plane, 256);
        DOT_UNROLL for (unsigned i = 0; i < 4; i++) {
            const vi signs = word[2 * i + 1];
            vf_store(sink->panel->scale[b + i], scale_at(signs, 28, d));
            give_points_of_8(sink, b + i, false, level[0][i], level[1][i], signs_of_seven(cut_lanes(signs, 0, 7)),
                             PAIRS_2);
        }
    }
}
NIB_TURN(turn, cut_rows, SHAPE)
#else
enum { OFFSET = 128 };
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    int8_t value[BLOCK];
    read_block(value, out->scale, src, nib_codebook_to_decode(NIB_CODEBOOK_PAIRS_256));
    offset_codes(out, value, N_SCALES);
}
#endif

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
     .centre = OFFSET,
     .shape = SHAPE,
     .encode = encode,
     .decode = decode,
     .check = check,
     .unpack = unpack,
     .turn = NIB_BOOK_DOT_OF(turn),
     .dot_tokens = 5,
     .dot = NIB_BOOK_DOT_OF(dot)});
