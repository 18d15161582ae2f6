/* iq1_s: 256 weights as 8 sub-blocks of 32, each with a 3-bit scale and a shift; a point of 2048 for every 8 weights.
 * w = d * (2 scale[b] + 1) * (level + shift[b] / 8), level -1, 0 or 1 (iq1.h). Encoding needs an importance matrix.
 *
 *   byte  0  1 | 2 .. 33              | 34 .. 49: u16 b
 *         d    | byte 4 b + l: bits   | bits 3l .. 3l + 2:   | 12 .. 14: | 15: shift[b] is -1,
 *         f16  | 0-7 of the point of  | bits 8-10 of that    | scale[b]  | else 1
 *              | weights 32 b + 8 l.. | point                |        50 bytes, 1.5625 bits per weight
 */
#include "format/codebook_turn.h"
#include "format/codebook_wide.h"
#include "format/iq1.h"

enum { BLOCK = IQ1_BLOCK, SUB = 32, N_SUB = BLOCK / SUB, N_POINTS = SUB / IQ1_POINT };

typedef struct block {
    uint8_t d[2], low[BLOCK / 8], high[N_SUB][2];
} block;
_Static_assert(sizeof(block) == 50, "an iq1_s block is 50 bytes");

/* The split and shift with the smallest weighted error, from sums over all weights up to each in ascending order. */
static iq1_split find_split(const iq1_lanes *lanes) {
    vf term_x[SUB], term_w[SUB], sum_x[SUB + 1], sum_w[SUB + 1];
    for (unsigned i = 0; i < SUB; i++) term_x[i] = vf_mul(lanes->weight[i], lanes->x[i]);
    iq1_put_in_order(term_x, lanes->rank, term_x, SUB);
    iq1_put_in_order(term_w, lanes->rank, lanes->weight, SUB);
    sum_x[0] = sum_w[0] = vf_zero();
    for (unsigned j = 0; j < SUB; j++) {
        sum_x[j + 1] = vf_add(sum_x[j], term_x[j]);
        sum_w[j + 1] = vf_add(sum_w[j], term_w[j]);
    }
    /* what the levels below the first boundary add, and those above the second, for both shifts */
    vf low_x[2][SUB + 1], low_w[2][SUB + 1], high_x[2][SUB + 1], high_w[2][SUB + 1];
    for (unsigned s = IQ1_UP; s <= IQ1_DOWN; s++) {
        const vf low = vf_splat(IQ1_LEVEL[s][0]), high = vf_splat(IQ1_LEVEL[s][2]);
        for (unsigned j = 0; j <= SUB; j++) {
            low_x[s][j] = vf_mul(sum_x[j], low);
            low_w[s][j] = vf_mul(vf_mul(sum_w[j], low), low);
            high_x[s][j] = vf_mul(vf_sub(sum_x[SUB], sum_x[j]), high);
            high_w[s][j] = vf_mul(vf_mul(vf_sub(sum_w[SUB], sum_w[j]), high), high);
        }
    }
    const vf middle = vf_splat(IQ1_LEVEL[IQ1_UP][1]); /* that of the other shift is its negative */
    iq1_split split = iq1_no_split();
    for (unsigned i1 = 0; i1 <= SUB; i1++) {
        for (unsigned i2 = i1; i2 <= SUB; i2++) {
            const vf x = vf_mul(vf_sub(sum_x[i2], sum_x[i1]), middle);
            const vf w = vf_mul(vf_mul(vf_sub(sum_w[i2], sum_w[i1]), middle), middle);
            const vf up = vf_add(vf_add(low_x[IQ1_UP][i1], x), high_x[IQ1_UP][i2]);
            const vf down = vf_add(vf_sub(low_x[IQ1_DOWN][i1], x), high_x[IQ1_DOWN][i2]);
            iq1_take_better(&split, up, vf_add(vf_add(low_w[IQ1_UP][i1], w), high_w[IQ1_UP][i2]), i1, i2, IQ1_UP);
            iq1_take_better(&split, down, vf_add(vf_add(low_w[IQ1_DOWN][i1], w), high_w[IQ1_DOWN][i2]), i1, i2,
                            IQ1_DOWN);
        }
    }
    return split;
}

/* One block from its lanes, the first of which is `lane`. false if its scale does not fit half precision. */
static bool store_block(block *restrict out, const nib_codebook *book, const iq1_fits *fits, unsigned lane) {
    float max = 0;
    for (unsigned b = 0; b < N_SUB; b++) max = max > fits->scale[lane + b] ? max : fits->scale[lane + b];
    const float d = max / 15, inverse = 1 / d;
    for (unsigned b = 0; b < N_SUB; b++) {
        unsigned word = 0;
        for (unsigned k = 0; k < N_POINTS; k++) {
            const unsigned point = (unsigned)look_at_spot(book, fits->packed[k][lane + b], 2);
            out->low[N_POINTS * b + k] = (uint8_t)point;
            word |= point >> 8 << 3 * k;
        }
        const bool is_down = iq1_shift(SUB, (unsigned)fits->way[lane + b], 0) == IQ1_DOWN;
        if (max != 0) word |= (iq1_scale_code(fits->scale[lane + b], inverse) | (is_down ? 8u : 0)) << 12;
        const uint16_t stored = (uint16_t)word;
        memcpy(out->high[b], &stored, sizeof stored);
    }
    return store_half(out->d, d * 1.125f);
}

/* n blocks, 1 or 2: their sub-blocks fill the lanes. sigma2: (n). false if no finite scale fits. */
static bool encode_two(block *restrict out, unsigned n, const nib_codebook *book, const float *restrict x,
                       const float *restrict importance, const float *restrict sigma2) {
    iq1_lanes lanes;
    iq1_fits fits;
    float weight[2 * BLOCK];
    for (unsigned k = 0; k < n; k++) weigh(weight + k * BLOCK, BLOCK, x + k * BLOCK, importance + k * BLOCK, sigma2[k]);
    load_sub_blocks(lanes.x, SUB, x, n * N_SUB);
    load_sub_blocks(lanes.weight, SUB, weight, n * N_SUB);
    iq1_sort(&lanes, SUB);
    const iq1_split split = find_split(&lanes);
    if (!iq1_fit_points(&fits, book, &lanes, SUB, &split, 1e-12f, x, weight, n * N_SUB)) return false;
    bool is_finite = true;
    for (unsigned k = 0; k < n; k++) is_finite &= store_block(&out[k], book, &fits, k * N_SUB);
    return is_finite;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    if (!importance) return NIB_VERDICT_NEEDS_IMPORTANCE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_TERNARY_2048);
    block *out = dst;
    const size_t n_blocks = n / BLOCK;
    float sigma2[NIB_LANES];
    for (size_t i = 0; i < n_blocks; i += 2) {
        const size_t at = i * BLOCK;
        if (i % NIB_LANES == 0) vf_store(sigma2, iq1_sigma2(src + at, n_blocks - i));
        if (!encode_two(out + i, n_blocks - i < 2 ? 1 : 2, book, src + at, importance + at, sigma2 + i % NIB_LANES))
            return NIB_VERDICT_SCALE_OVERFLOW;
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

#define SHAPE \
    { .group = 256, .min_group = 16 }

#if defined(NIB_CODEBOOK_DOT)
/* Eighths: 9 and 8 * level + 1 or - 1. */
enum { OFFSET = 9 };

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

/* By the word's upper four bits: what to multiply the activations' negative sum with: 64 less or more 8. */
#define MOVE(i) ((i) < 8 ? 56 : 72)
static const _Alignas(64) int32_t MOVES[16] = {WIDE_16(MOVE, 0)};

DOT_INLINE void look_up_two(wide_points *x, int v, const void *first, const void *second) {
    const block *in[2] = {first, second};
    iq1_start(x, v, in[0]->low, in[1]->low, in[0]->high, in[1]->high, 0x1916131009060300);
}
/* words: two in each lane, of which the lower or the upper one is its own */
DOT_INLINE void read_two(wide_blocks *out, const vi level[2], vi words, const void *first, const void *second) {
    const vi tail =
        _mm512_srlv_epi32(words, _mm512_set1_epi64(0x1c0000000c)); /* three bits of scale and that of the shift */
    DOT_UNROLL for (int i = 0; i < 2; i++) out->from[i][0] = level[i];
    out->scale[0] =
        vf_mul(wide_scale(WIDE_SCALES_3, tail), d_of_pair(((const block *)first)->d, ((const block *)second)->d));
    out->times_sum[0] = _mm512_permutexvar_epi32(tail, vi_load(MOVES));
}
NIB_WIDE_DOT(NIB_CODEBOOK_TERNARY_2048, 2048, true)
NIB_BOOK_UNPACK(NIB_CODEBOOK_TERNARY_2048, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TERNARY_2048);
    vi head[4], high[4];
    vi_turn(head, in->d, stride);
    vi_turn(high, in->high, stride);
    iq1_put_d(sink->panel, half_at(head, 0));
    for (unsigned b = 0; b < N_SUB; b += 4) {
        vi level[2][4], low[4], above[4];
        vi_turn(low, in->low + 4 * b, stride);
        DOT_UNROLL for (int i = 0; i < 4; i++) above[i] = cut_lanes(high[b / 2 + (unsigned)i / 2], i % 2 * 16 - 1, 3);
        look_up_16(level, low, above, book->plane, 2048);
        DOT_UNROLL for (unsigned i = 0; i < 4; i++) {
            const vi word = high[(b + i) / 2];
            const int at = i % 2 * 16; /* the scale is three bits from bit 12 on, then the shift */
            const vi scale = vi_and_or(vi_shr(word, at + 11), vi_splat(14), vi_splat(1));
            const vi down = vi_sar(vi_shl(word, 16 - at), 31);
            const vi move = _mm512_andnot_si512(down, vi_mul(scale, vi_splat(0x01010101)));
            vi_store(sink->panel->min[b + i], vi_or(scale, vi_shl(scale, 16)));
            give_moved_points(sink, 8 * (b + i), level[0][i], level[1][i], (vi[4]){scale, scale, scale, scale},
                              (vi[4]){move, move, move, move});
        }
    }
}
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 5, 8, cut_rows, false, SHAPE)
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
             .shape = SHAPE,
             .encode = encode,
             .decode = decode,
             .check = check,
             .unpack = unpack,
             .turn = NIB_BOOK_DOT_OF(turn),
             .few = NIB_FEW_OF(few),
             .dot_tokens = 4,
             .dot = NIB_BOOK_DOT_OF(dot)});
