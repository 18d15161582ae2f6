/* iq1_m: 256 weights as 16 sub-blocks of 16, each with a 3-bit scale; a point of 2048 and a shift for every 8 weights.
 * w = d * (2 scale[g] + 1) * (level + shift[k] / 8), level -1, 0 or 1 (iq1.h)
 *
 *   byte  0 .. 31            | 32 .. 47                        | 48 .. 55: u16 a
 *         byte k: bits 0-7   | nibble k % 2 of byte k / 2:     | bits 3t .. 3t + 2: | bits 12-15: bits
 *         of the point of    | bits 0-2: bits 8-10 of point k, | scale[4 a + t]     | 4a .. 4a + 3 of
 *         weights 8 k ..     | bit 3: shift[k] is -1, else 1   |                    | d, an f16
 *                                                                               56 bytes, 1.75 bits per weight
 */
#include "format/codebook_turn.h"
#include "format/codebook_wide.h"
#include "format/iq1.h"

enum { BLOCK = IQ1_BLOCK, SUB = 16, N_SUB = BLOCK / SUB, N_POINTS = BLOCK / IQ1_POINT, N_WAYS = 4 };

typedef struct block {
    uint8_t low[N_POINTS], high[N_POINTS / 2], scales[4][2];
} block;
_Static_assert(sizeof(block) == 56, "an iq1_m block is 56 bytes");

/* What one weight adds to the sums of each way to shift both halves of a sub-block. */
typedef struct way_terms {
    vf xl[N_WAYS], ll[N_WAYS];
} way_terms;

static inline void add_terms(way_terms *sums, const way_terms *term) {
    for (unsigned k = 0; k < N_WAYS; k++) {
        sums->xl[k] = vf_add(sums->xl[k], term->xl[k]);
        sums->ll[k] = vf_add(sums->ll[k], term->ll[k]);
    }
}

/* The terms of a weight that becomes `level`. is_second: it stands in the second half. */
static inline way_terms terms_at(vf x, vf weight, vm is_second, unsigned level) {
    const vf up = vf_splat(IQ1_LEVEL[IQ1_UP][level]), down = vf_splat(IQ1_LEVEL[IQ1_DOWN][level]);
    const vf weighted_up = vf_mul(weight, up), weighted_down = vf_mul(weight, down);
    const vf up_xl = vf_mul(weighted_up, x), up_ll = vf_mul(weighted_up, up);
    const vf down_xl = vf_mul(weighted_down, x), down_ll = vf_mul(weighted_down, down);
    const vf first_xl = vf_choose(is_second, down_xl, up_xl), first_ll = vf_choose(is_second, down_ll, up_ll);
    const vf second_xl = vf_choose(is_second, up_xl, down_xl), second_ll = vf_choose(is_second, up_ll, down_ll);
    return (way_terms){{up_xl, first_xl, second_xl, down_xl}, {up_ll, first_ll, second_ll, down_ll}};
}

/* The split and the shifts with the smallest weighted error. Sums run from the lowest weight to the highest for every
 * split; what two splits have in common is summed once. */
static iq1_split find_split(const iq1_lanes *lanes) {
    vf x[SUB], weight[SUB], place[SUB];
    way_terms term[3][SUB], below;
    for (unsigned i = 0; i < SUB; i++) place[i] = vf_splat((float)i);
    iq1_put_in_order(x, lanes->rank, lanes->x, SUB);
    iq1_put_in_order(weight, lanes->rank, lanes->weight, SUB);
    iq1_put_in_order(place, lanes->rank, place, SUB);
    for (unsigned j = 0; j < SUB; j++) {
        const vm is_second = vf_lt(vf_splat(IQ1_POINT - 0.5f), place[j]);
        for (unsigned level = 0; level < 3; level++) term[level][j] = terms_at(x[j], weight[j], is_second, level);
    }
    for (unsigned k = 0; k < N_WAYS; k++) below.xl[k] = below.ll[k] = vf_zero();
    iq1_split split = iq1_no_split();
    for (unsigned i1 = 0; i1 <= SUB; i1++) {
        way_terms middle = below;
        for (unsigned i2 = i1; i2 <= SUB; i2++) {
            way_terms all = middle;
            for (unsigned j = i2; j < SUB; j++) add_terms(&all, &term[2][j]);
            for (unsigned k = 0; k < N_WAYS; k++) iq1_take_better(&split, all.xl[k], all.ll[k], i1, i2, k);
            if (i2 < SUB) add_terms(&middle, &term[1][i2]);
        }
        if (i1 < SUB) add_terms(&below, &term[0][i1]);
    }
    return split;
}

/* Stores 3-bit scales and the scale of the block that fits them best. false if it does not fit half precision. weight:
 * (256) */
static bool store_scales(block *restrict out, const iq1_fits *fits, float max, const float *restrict x,
                         const float *restrict weight) {
    float d = max / 15, xl = 0, ll = 0;
    const float inverse = 1 / d;
    uint16_t word[4] = {0};
    for (unsigned g = 0; g < N_SUB; g++) {
        const unsigned code = iq1_scale_code(fits->scale[g], inverse);
        word[g / 4] = (uint16_t)(word[g / 4] | code << 3 * (g % 4));
        for (unsigned i = 0; i < SUB; i++) {
            const unsigned at = SUB * g + i, level = fits->packed[i / IQ1_POINT][g] >> 2 * (i % IQ1_POINT) & 3;
            const unsigned shift = iq1_shift(SUB, (unsigned)fits->way[g], i / IQ1_POINT);
            const float q = IQ1_LEVEL[shift][level] * (float)(2 * code + 1);
            xl += weight[at] * q * x[at];
            ll += weight[at] * q * q;
        }
    }
    if (ll > 0) d = xl / ll;
    uint8_t half[2];
    const bool fits_half = store_half(half, d * 1.1125f);
    const unsigned bits = nib_load_u16(half);
    for (unsigned a = 0; a < 4; a++) word[a] = (uint16_t)(word[a] | (bits >> 4 * a & 15) << 12);
    memcpy(out->scales, word, sizeof word);
    return fits_half;
}

/* false if no finite scale fits. importance may be NULL. */
static bool encode_block(block *restrict out, const nib_codebook *book, const float *restrict x,
                         const float *restrict importance, float sigma2) {
    iq1_lanes lanes;
    iq1_fits fits;
    float weight[BLOCK], max = 0;
    weigh_or_square(weight, BLOCK, x, importance, sigma2);
    load_sub_blocks(lanes.x, SUB, x, N_SUB);
    load_sub_blocks(lanes.weight, SUB, weight, N_SUB);
    iq1_sort(&lanes, SUB);
    const iq1_split split = find_split(&lanes);
    if (!iq1_fit_points(&fits, book, &lanes, SUB, &split, 1e-7f, x, weight, N_SUB)) return false;
    for (unsigned g = 0; g < N_SUB; g++) max = max > fits.scale[g] ? max : fits.scale[g];
    memset(out, 0, sizeof *out);
    for (unsigned g = 0; g < N_SUB; g++) {
        unsigned high = 0;
        for (unsigned half = 0; half < 2; half++) {
            const unsigned down = max != 0 && iq1_shift(SUB, (unsigned)fits.way[g], half) == IQ1_DOWN;
            const unsigned point = (unsigned)look_at_spot(book, fits.packed[half][g], 2);
            out->low[2 * g + half] = (uint8_t)point;
            high |= (point >> 8 | down << 3) << 4 * half;
        }
        out->high[g] = (uint8_t)high;
    }
    return max == 0 || store_scales(out, &fits, max, x, weight);
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    const nib_codebook *book = nib_codebook_to_encode(NIB_CODEBOOK_TERNARY_2048);
    block *out = dst;
    const size_t n_blocks = n / BLOCK;
    float sigma2[NIB_LANES];
    for (size_t i = 0; i < n_blocks; i++) {
        const size_t at = i * BLOCK;
        if (i % NIB_LANES == 0) vf_store(sigma2, iq1_sigma2(src + at, n_blocks - i));
        if (!encode_block(out + i, book, src + at, importance ? importance + at : NULL, sigma2[i % NIB_LANES]))
            return NIB_VERDICT_SCALE_OVERFLOW;
    }
    return NIB_VERDICT_OK;
}

static inline void read_scale_of_block(uint8_t half[2], const block *in) {
    unsigned bits = 0;
    for (unsigned a = 0; a < 4; a++) bits |= (unsigned)(in->scales[a][1] >> 4) << 4 * a;
    const uint16_t stored = (uint16_t)bits;
    memcpy(half, &stored, sizeof stored);
}

static inline void read_block(int8_t eighths[BLOCK], float scale[N_SUB], const block *in, const nib_codebook *book) {
    uint8_t half[2];
    read_scale_of_block(half, in);
    const float d = load_half(half);
    for (unsigned g = 0; g < N_SUB; g++)
        scale[g] = d * (float)(2 * (nib_load_u16(in->scales[g / 4]) >> 3 * (g % 4) & 7) + 1);
    for (unsigned k = 0; k < N_POINTS; k++) {
        const unsigned high = in->high[k / 2] >> 4 * (k % 2);
        iq1_read_point(eighths + IQ1_POINT * k, book, in->low[k] | (high & 7) << 8, high & 8);
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
        uint8_t half[2];
        read_scale_of_block(half, &in[i]);
        if (!half_is_finite(half)) return NIB_VERDICT_NOT_FINITE;
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
    const uint64_t down = _pext_u64(nib_load_u64(in->high), EACH_BYTE(0x88)) |
                          _pext_u64(nib_load_u64(in->high + 8), EACH_BYTE(0x88)) << 16;
    const uint64_t up = ~down;
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const uint8_t *low = in->low + 8 * p;
        const uint64_t high = nib_load_u32(in->high + 4 * p);
        const vi point =
            points_of_8(value, index_of(low[0], high, 0, 7), index_of(low[1], high, 4, 7), index_of(low[2], high, 8, 7),
                        index_of(low[3], high, 12, 7), index_of(low[4], high, 16, 7), index_of(low[5], high, 20, 7),
                        index_of(low[6], high, 24, 7), index_of(low[7], high, 28, 7));
        const vi level = _mm512_add_epi8(point, vi_of_byte(1));
        const uint64_t which = _pdep_u64(up >> 8 * p, EACH_BYTE(1)) * 255;
        const vi code = _mm512_slli_epi16(level, 3);
        w->code[p] = _mm512_mask_add_epi8(code, which, code, vi_of_byte(2));
    }
    uint8_t half[2];
    read_scale_of_block(half, in);
    const uint64_t scales = nib_load_u64((const uint8_t *)in->scales), ones = EACH_BYTE(1);
    const __m128i codes = _mm_multishift_epi64_epi8(_mm_set_epi64x(0x3936333029262320, 0x1916131009060300),
                                                    _mm_set1_epi64x((long long)scales));
    w->scale = w->min = vs_of_bytes((((words_16)codes & (7 * ones)) << 1) | ones, 0);
    w->d = load_half(half) * 0.125f;
    w->d_min = OFFSET * w->d;
}

/* By a point's shift in bit 3: the lower byte of the word to multiply the sum of its activations with: -64 and 8 or -8. */
#define MOVE(i) (uint8_t)(-64 + ((i)&8 ? -8 : 8))
static const _Alignas(64) uint8_t MOVES[64] = {WIDE_64(MOVE)};

DOT_INLINE void look_up_two(wide_points *x, int v, const void *first, const void *second) {
    const block *in[2] = {first, second};
    iq1_start(x, v, in[0]->low, in[1]->low, in[0]->high, in[1]->high, 0x1c1814100c080400);
    x->rest[v] = _mm512_permutexvar_epi8(x->above[v], vi_load(MOVES));
}

DOT_INLINE void read_two(wide_blocks *out, const vi level[2], vi moves, const void *first, const void *second) {
    const block *in[2] = {first, second};
    const uint64_t next = UINT64_C(3) << 32;
    const vi from = in_steps(next, EACH_BYTE(6) + next, EACH_BYTE(16));
    const vi above = vi_of_byte(255);
    out->times_sum[0] = _mm512_unpacklo_epi8(moves, above);
    out->times_sum[1] = _mm512_unpackhi_epi8(moves, above);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        const uint64_t scales = nib_load_u64((const uint8_t *)in[i]->scales);
        out->from[i][0] = level[i];
        out->scale[i] = wide_scale(WIDE_LARGE_SCALES_3, cut(from, _mm512_set1_epi64((long long)scales)));
        out->small_d[i] = float_of_half((unsigned)_pext_u64(scales, 0xf000f000f000f000));
    }
}
NIB_WIDE_DOT(NIB_CODEBOOK_TERNARY_2048, 2048, false)
NIB_BOOK_UNPACK(NIB_CODEBOOK_TERNARY_2048, SUB)

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    const nib_codebook *book = nib_codebook_to_decode(NIB_CODEBOOK_TERNARY_2048);
    vi high[4], tail[4], d = vi_splat(0);
    vi_turn(high, in->high, stride);
    vi_turn(tail, in->high + 8, stride); /* ends with the scales */
    DOT_UNROLL for (int a = 0; a < 4; a++) d =
        vi_or(d, vi_shl(vi_and(vi_shr(tail[2 + a / 2], a % 2 * 16 + 12), vi_splat(15)), 4 * a));
    iq1_put_d(sink->panel, vf_from_low_f16(d));
    for (unsigned b = 0; b < 8; b += 4) {
        vi level[2][4], low[4], above[4];
        vi_turn(low, in->low + 4 * b, stride);
        DOT_UNROLL for (int i = 0; i < 4; i++) above[i] = cut_lanes(high[b / 2 + (unsigned)i / 2], i % 2 * 16 - 1, 4);
        look_up_16(level, low, above, book->plane, 2048);
        DOT_UNROLL for (unsigned i = 0; i < 4; i++) {
            vi scale[2], of[4], move[4];
            DOT_UNROLL for (unsigned s = 0; s < 2; s++) { /* 2 (b + i) + s */
                const int at = (int)(i / 2 * 16 + (i % 2 * 2 + s) * 3);
                const vi word = tail[2 + b / 4];
                scale[s] = vi_and_or(at ? vi_shr(word, at - 1) : vi_shl(word, 1), vi_splat(14), vi_splat(1));
            }
            vi_store(sink->panel->min[b + i], vi_or(scale[0], vi_shl(scale[1], 16)));
            DOT_UNROLL for (int j = 0; j < 4; j++) {
                const vi down = vi_sar(vi_shl(high[b / 2 + i / 2], 28 - (int)(i % 2 * 16) - 4 * j), 31);
                of[j] = scale[j / 2];
                move[j] = _mm512_andnot_si512(down, vi_mul(of[j], vi_splat(0x01010101)));
            }
            give_moved_points(sink, 8 * (b + i), level[0][i], level[1][i], of, move);
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

NIB_FORMATS(iq1_m, {.facts = {.name = "iq1_m",
                              .gguf_name = "iq1_m",
                              .gguf_type = 29,
                              .block = BLOCK,
                              .bytes = sizeof(block),
                              .kind = NIB_CLASS_SCALED,
                              .about = "1.75 bits from a codebook of 2048 points, scales per 16: for very large models",
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
