/* iq3_xxs: 256 weights as 8 sub-blocks of 32, each with a 4-bit scale; a point of 256 for every 4 weights; 7 signs for
 * every 8 weights. w = d * (2 scale[b] + 1) / 4 * magnitude, with its sign
 *
 *   byte  0  1 | 2 .. 65            | 66 .. 97: a word for each sub-block
 *         d    | byte 8 b + k:      | bits 7l .. 7l + 6: signs of    | bits 28..31:
 *         f16  | point of weights   | weights 8 l .. 8 l + 6         | scale[b]
 *              | 32 b + 4 k ..      |                              98 bytes, 3.0625 bits per weight
 */
#include "format/codebook_pairs.h"
#include "format/codebook_search.h"
#include "format/codebook_turn.h"

enum { BLOCK = 256, SUB = 32, N_SUB = BLOCK / SUB };

typedef struct block {
    uint8_t d[2], point[BLOCK / 4], signs[4 * N_SUB];
} block;
_Static_assert(sizeof(block) == 98, "an iq3_xxs block is 98 bytes");

static const point_search SEARCH = {.n = SUB,
                                    .group = 4,
                                    .n_levels = 8,
                                    .n_steps = 15,
                                    .step = 0.2f,
                                    .zero = 1e-8f,
                                    .even_signs = true,
                                    .redo = REDO_OFF_POINT};

/* false if no finite scale fits. importance may be NULL. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance) {
    const float sigma2 = 2 * sum_of_squares(x, BLOCK) / BLOCK;
    float scale[N_SUB];
    uint32_t word[N_SUB];
    memset(out, 0, sizeof *out);
    for (unsigned b = 0; b < N_SUB; b++) {
        fitted_points fit;
        float weight[SUB];
        weigh_or_square(weight, SUB, x + SUB * b, importance ? importance + SUB * b : NULL, sigma2);
        if (!fit_points(&SEARCH, book, x + SUB * b, weight, 0, &fit)) return false;
        scale[b] = fit.scale;
        for (unsigned k = 0; k < 8; k++) out->point[8 * b + k] = (uint8_t)fit.point[k];
        word[b] = 0;
        for (unsigned l = 0; l < 4; l++) word[b] |= (uint32_t)fit.sign[l] << 7 * l;
    }
    const float max = largest_scale(scale, N_SUB), d = max / 31;
    if (max == 0) {
        memset(out, 0, sizeof *out);
        return true;
    }
    uint8_t code[N_SUB];
    quantize_scales(code, scale, N_SUB, d);
    for (unsigned b = 0; b < N_SUB; b++) word[b] |= (uint32_t)code[b] << 28;
    memcpy(out->signs, word, sizeof word);
    return store_half(out->d, d * 1.0125f);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_TRIPLES_256);
    block *out = dst;
    for (size_t i = 0; i < n; i += BLOCK) {
        if (!encode_block(out++, book, src + i, importance ? importance + i : NULL)) return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_block(int8_t value[BLOCK], float scale[N_SUB], const block *in, const nib_codebook *book) {
    const float d = load_half(in->d);
    for (unsigned b = 0; b < N_SUB; b++) {
        const uint32_t word = nib_load_u32(in->signs + 4 * b);
        scale[b] = d * (0.5f + (float)(word >> 28)) * 0.5f;
        for (unsigned l = 0; l < 4; l++) {
            const uint8_t *point = in->point + 8 * b + 2 * l;
            const uint64_t low = nib_load_u32(book->value + 4 * point[0]),
                           high = nib_load_u32(book->value + 4 * point[1]);
            put_signs(value + SUB * b + 8 * l, low | high << 32, all_signs(word >> 7 * l));
        }
    }
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_256);
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
/* 64 +- 4, 12 .. 62 */
enum { OFFSET = 64 };
static const uint8_t ABOVE[16] = {68, 76, 84, 92, 100, 108, 116, 126, 60, 52, 44, 36, 28, 20, 12, 2};

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    const uint8_t *plane = nib_codebooks[NIB_CODEBOOK_TRIPLES_256].plane;
    const vi point = vi_load(in->point);
    const __m256i word = _mm256_loadu_si256((const void *)in->signs);
    _Alignas(64) uint64_t sign[DOT_PARTS];
    signs_of_sevens(sign, _mm256_multishift_epi64_epi8(_mm256_set1_epi64x(0x352e2720150e0700), word));
    spread_points(w->code, natural_256(plane, point), natural_256(plane + 256, point), ABOVE);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) w->code[p] = put_sign(w->code[p], sign[p], OFFSET);
    const __m128i twice = _mm256_cvtepi32_epi16(_mm256_srli_epi32(word, 27));
    w->scale = _mm256_or_si256(_mm256_broadcastsi128_si256(twice), _mm256_set1_epi16(1));
    w->d = load_half(in->d) * 0.25f;
    w->d_min = OFFSET * w->d;
}

/* ---- rows (format/codebook_pairs.h) ------------------------------------------------------------------------------ */

DOT_INLINE void load_tables(pair_tables *t) {
    load_triples(t, nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_256)->plane, 256, ABOVE);
}
DOT_INLINE void begin(pair_words *w, const void *a, const void *b) {
    const block *one = a, *other = b;
    DOT_UNROLL for (int odd = 0; odd < 2; odd++) {
        w->index[odd] = points_of_pair(one->point, other->point, odd);
        find_halves(w->in_half[odd], w->index[odd]);
    }
    w->rest = of_two_blocks(one->signs, other->signs);
    w->sign = signs_of_seven(cut(_mm512_set1_epi64(0x352e2720150e0700), w->rest));
}
DOT_INLINE void look_up(vi level[2], const pair_words *w, const pair_tables *t, int half) {
    look_up_triples(level, w, t, half, 256);
}
DOT_INLINE vf scales(vi rest, const void *a, const void *b) {
    return vf_mul(plus_one(_mm512_srli_epi32(rest, 27)), d_of_pair(((const block *)a)->d, ((const block *)b)->d));
}
NIB_PAIRS_DOT(codes_of_triples, TRIPLES_ORDER, 0.25f)
NIB_BOOK_UNPACK(NIB_CODEBOOK_TRIPLES_256, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_256);
    vi head[4], signs[N_SUB];
    vi_turn(head, in->d, stride);
    read_words(signs, in->signs, stride, N_SUB);
    const vf d = vf_mul(half_at(head, 0), vf_splat(0.25f));
    for (unsigned b = 0; b < N_SUB; b++) {
        vf_store(sink->panel->scale[b], scale_at(signs[b], 28, d));
        signs[b] = signs_of_seven(cut_lanes(signs[b], 0, 7));
    }
    for (unsigned k = 0; k < 16; k += 4) {
        vi level[2][4], point[4];
        vi_turn(point, in->point + 4 * k, stride);
        look_up_16(level, point, NULL, book->plane, 256);
        give_groups_of_4(sink, k / 4, level[0], level[1], signs + k / 2, ABOVE);
    }
}
NIB_TURN(turn, cut_rows, SHAPE)
#else
enum { OFFSET = 128 };
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    int8_t value[BLOCK];
    read_block(value, out->scale, src, nib_codebook_to_decode(NIB_CODEBOOK_TRIPLES_256));
    offset_codes(out, value, N_SUB);
}
#endif

NIB_FORMATS(iq3_xxs, {.facts = {.name = "iq3_xxs",
                                .gguf_name = "iq3_xxs",
                                .gguf_type = 18,
                                .block = BLOCK,
                                .bytes = sizeof(block),
                                .kind = NIB_CLASS_SCALED,
                                .about = "3 bits from a codebook of 256 points, best with an importance matrix",
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
