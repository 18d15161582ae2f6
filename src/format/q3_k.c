/* q3_k: 256 weights as 16 sub-blocks of 16, each with a signed 6-bit scale; 3-bit codes.
 * w = d * (scale[g] - 32) * (q - 4)
 *
 *   byte  0 .. 31             | 32 .. 63            | 64 .. 95       | 96 .. 107          | 108 109
 *         high[0..31]         | codes 0 .. 127      | 128 .. 255     | 16 scales          | d
 *         bit 4n+j of high[l] | bits 0-1 of the     |                | (below)            | f16
 *         = bit 2 of code     | codes: byte l, bits |                |
 *         128 n + 32 j + l    | 2j: code 32 j + l   |                110 bytes, 3.4375 bits per weight
 *
 *   scales: byte b (0..7):   scale[b+8] bits 0-3 : scale[b] bits 0-3
 *           byte b+8 (0..3): bits 4-5 of scale[b+12] : scale[b+8] : scale[b+4] : scale[b]
 */
#include "format/decode.h"
#include "format/dot.h"
#include "format/few.h"
#include "format/lanes.h"

enum { BLOCK = 256, N_SUB = 16, SUB = 16, GROUP = 16 };

typedef struct block {
    uint8_t high[BLOCK / 8], q[BLOCK / 4], scales[12], d[2];
} block;
_Static_assert(sizeof(block) == 110, "a q3_k block is 110 bytes");

static void pack_scales(uint8_t packed[12], const uint8_t scale[N_SUB]) {
    for (unsigned b = 0; b < 8; b++) packed[b] = (uint8_t)((scale[b] & 15) | (scale[b + 8] & 15) << 4);
    for (unsigned b = 0; b < 4; b++)
        packed[b + 8] = (uint8_t)((scale[b] >> 4 & 3) | (scale[b + 4] >> 4 & 3) << 2 | (scale[b + 8] >> 4 & 3) << 4 |
                                  (scale[b + 12] >> 4 & 3) << 6);
}

/* The 16 scales as bytes, 32 above what they mean. */
static inline void read_scale_codes(uint64_t words[2], const block *in) {
    const uint64_t low = nib_load_u64(in->scales), two = nib_load_u32(in->scales + 8);
    const uint64_t high = two | two << 30; /* bytes 4-7 are bytes 0-3 shifted right by 2 */
    words[0] = (low & EACH_BYTE(15)) | (high & EACH_BYTE(3)) << 4;
    words[1] = (low >> 4 & EACH_BYTE(15)) | (high >> 4 & EACH_BYTE(3)) << 4;
}

static void read_scales(float scale[N_SUB], const block *in) {
    const float d = load_half(in->d);
    uint64_t words[2];
    uint8_t code[N_SUB];
    read_scale_codes(words, in);
    memcpy(code, words, sizeof code);
    for (unsigned g = 0; g < N_SUB; g++) scale[g] = d * (float)(code[g] - 32);
}

/* What the searches of the sub-blocks of up to 16 blocks found. The plain one leaves codes, transposed. */
typedef struct fits {
    float scale[GROUP][N_SUB], sum_weight[GROUP][N_SUB], inverse[GROUP][N_SUB];
    uint8_t code[GROUP][SUB][N_SUB];
} fits;

/* The blocks of the group from b on that are searched at once. x: the first of the group */
static void fit_plain(fits *out, size_t b, size_t n_blocks, const float *x) {
    vf lane[LANES_AT_ONCE * SUB], level[LANES_AT_ONCE * SUB], scale[LANES_AT_ONCE];
    EACH_VECTOR load_lanes(lane + v * SUB, x + (b + v) * BLOCK, SUB, b + v < n_blocks ? N_SUB : 0);
    fit_by_descent(SUB, 4, lane, level, scale);
    EACH_VECTOR {
        vf_store(out->scale[b + v], scale[v]);
        for (unsigned i = 0; i < SUB; i++)
            vi_store_bytes(out->code[b + v][i], vf_to_i(vf_add(level[v * SUB + i], vf_splat(4))));
    }
}

static void fit_weighted(fits *out, size_t b, const float *x, const float *importance, float sigma2) {
    vf lane[SUB], weight[SUB];
    load_lanes(lane, x, SUB, N_SUB);
    load_lanes(weight, importance, SUB, N_SUB);
    vf_store(out->sum_weight[b], weigh_lanes(weight, SUB, lane, vf_splat(sigma2)));
    const symmetric_fit fit = fit_symmetric(SUB, 4, lane, weight, true);
    vf_store(out->scale[b], fit.scale);
    vf_store(out->inverse[b], fit.inverse);
}

/* Scales rounded to 1/32 of the largest, with 8 bits before they are limited; lane i: block i. Returns the common factors. */
static vf round_scales(const vf x[N_SUB], vi code[N_SUB]) {
    const vf max = extreme_lanes(N_SUB, x), zero = vf_zero(), inverse = vf_div(vf_splat(-32), max);
    const vm none = vf_eq(max, zero);
    for (unsigned g = 0; g < N_SUB; g++) {
        const vi rounded = vi_bits(round_shifted(vf_mul(inverse, x[g])));
        const vi level = vi_min(vi_max(vi_sar(vi_shl(rounded, 24), 24), vi_splat(-32)), vi_splat(31));
        code[g] = vi_choose(none, vi_splat(0), vi_add(level, vi_splat(32)));
    }
    return vf_choose(none, zero, vf_div(vf_splat(1), inverse));
}

/* The same by search. */
static vf fit_scales(const vf x[N_SUB], const vf weight[N_SUB], vi code[N_SUB]) {
    const symmetric_fit fit = fit_symmetric(N_SUB, 32, x, weight, false);
    for (unsigned g = 0; g < N_SUB; g++)
        code[g] = vi_choose(fit.is_zero, vi_splat(0),
                            vi_add(vf_to_i(symmetric_level(fit.inverse, x[g], 32, false)), vi_splat(32)));
    return fit.scale;
}

/* Stores the common factors and the codes of all scales. false if a factor does not fit half precision. */
static bool code_scales(block *out, const fits *found, size_t n_blocks, bool weighted) {
    vf scale[N_SUB], weight[N_SUB];
    vi code[N_SUB];
    float d[GROUP];
    uint8_t packed[N_SUB][GROUP];
    bool fits_half = true;
    load_lanes(scale, found->scale[0], N_SUB, n_blocks);
    if (weighted) load_lanes(weight, found->sum_weight[0], N_SUB, n_blocks);
    vf_store(d, weighted ? fit_scales(scale, weight, code) : round_scales(scale, code));
    for (unsigned g = 0; g < N_SUB; g++) vi_store_bytes(packed[g], code[g]);
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t of_block[N_SUB];
        for (unsigned g = 0; g < N_SUB; g++) of_block[g] = packed[g][b];
        pack_scales(out[b].scales, of_block);
        fits_half &= store_half(out[b].d, d[b]);
    }
    return fits_half;
}

static void pack_codes(block *restrict out, const uint8_t *restrict code) {
    words_32 high = {0};
    for (unsigned b = 0; b < 8; b++) {
        words_32 word;
        memcpy(&word, code + 32 * b, sizeof word);
        high |= ((word >> 2) & EACH_BYTE(1)) << b;
    }
    memcpy(out->high, &high, sizeof high);
    pack_pairs_256(out->q, code);
}

static bool encode_group(block *out, const float *x, size_t n_blocks, const float *importance) {
    fits found = {0}; /* compilers do not see that every block's entries are written */
    float sigma2[GROUP];
    if (importance) vf_store(sigma2, vf_div(vf_mul(vf_splat(2), sums_of_squares_256(x, n_blocks)), vf_splat(BLOCK)));
    for (size_t b = 0; importance && b < n_blocks; b++)
        fit_weighted(&found, b, x + b * BLOCK, importance + b * BLOCK, sigma2[b]);
    for (size_t b = 0; !importance && b < n_blocks; b += LANES_AT_ONCE) fit_plain(&found, b, n_blocks, x);
    const bool fits_half = code_scales(out, &found, n_blocks, importance);
    for (size_t b = 0; b < n_blocks; b++, x += BLOCK) {
        uint8_t code[BLOCK];
        float scale[N_SUB];
        read_scales(scale, &out[b]);
        for (unsigned g = 0; g < N_SUB; g++) {
            uint8_t *at = code + SUB * g;
            if (scale[g] != 0)
                requantize_symmetric(at, SUB, x + SUB * g, scale[g], 4);
            else if (importance)
                codes_around(at, SUB, x + SUB * g, found.inverse[b][g], 4);
            else
                for (unsigned i = 0; i < SUB; i++) at[i] = found.code[b][i][g];
        }
        pack_codes(&out[b], code);
    }
    return fits_half;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    bool fits_half = true;
    for (size_t i = 0; i < n; i += GROUP * BLOCK, out += GROUP) {
        const size_t n_blocks = n - i < GROUP * BLOCK ? (n - i) / BLOCK : GROUP;
        fits_half &= encode_group(out, src + i, n_blocks, importance ? importance + i : NULL);
    }
    return fits_half ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void read_codes(uint8_t *restrict code, const block *restrict in) {
    for (unsigned b = 0; b < 8; b++) cut_two_32(code + 32 * b, in->q + 32 * (b / 4), b % 4 * 2, 3, in->high, b, 1, 2);
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[N_SUB];
        read_codes(code, in);
        read_scales(scale, in);
        for (unsigned g = 0; g < N_SUB; g++) scale_codes(dst + i + SUB * g, code + SUB * g, SUB, scale[g], 4);
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
    read_codes(out->code, in);
    read_scales(out->scale, in);
    for (unsigned g = 0; g < N_SUB; g++) out->min[g] = 4 * out->scale[g];
}

/* The scales of the sub-blocks go into the codes. With s = 32 - scale, -31 .. 32: w = -d * (s * (q - 4)), and
 * s * (q - 4) + 128 is 0 .. 252; a product with s is right in every byte once the whole word's sum is made. */
FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    vi high[8], tail[4], low[3], scale[4];
    vi_turn(tail, in->scales - 2, stride); /* two bytes of codes, the scales, d */
    vf_store(sink->panel->scale[0], vf_sub(vf_zero(), half_at(tail, 14)));
    PANEL_UNROLL for (unsigned i = 0; i < 3; i++) low[i] = word_at(tail, 2 + 4 * i);
    PANEL_UNROLL for (unsigned i = 0; i < 4; i++) scale[i] =
        vi_or(cut_bytes(low[i % 2], i < 2 ? 0 : 4, 15), vi_shl(cut_bytes(low[2], (int)(2 * i), 3), 4));
    read_words(high, in->high, stride, 8);
    PANEL_UNROLL for (unsigned i = 0; i < 4; i++) { /* columns as in q6_k */
        const unsigned first = i / 2 * 32 + i % 2 * 4;
        vi codes[4];
        vi_turn(codes, in->q + 16 * i, stride);
        PANEL_UNROLL for (unsigned part = 0; part < 4; part++) {
            const vi s = vi_sub(vi_splat(32), byte_at(scale, (first + 8 * part) / 4));
            const vi zero = vi_mul(vi_sub(vi_splat(128), vi_shl(s, 2)), vi_splat(0x01010101));
            PANEL_UNROLL for (unsigned j = 0; j < 4; j++) {
                const vi third = cut_bytes(high[i % 2 * 4 + j], (int)(i / 2 * 4 + part), 1);
                const vi q = vi_or(cut_bytes(codes[j], (int)(2 * part), 3), vi_shl(third, 2));
                give_codes(sink, first + 8 * part + j, 0, vi_add(vi_mul(q, s), zero));
            }
        }
    }
}
#define SHAPE \
    { .group = 256, .centre = 128 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, false, SHAPE)

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    uint64_t words[2];
    read_scale_codes(words, in);
    w->d = load_half(in->d);
    w->scale = vs_of_bytes((words_16){words[0], words[1]}, -32);
    vi both[2];
    vi_cross_64(both, in->q);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        const vi pairs = vi_down_nibbles(both[i]);
        const vi high = vi_down_pairs(in->high + 16 * i), low = vi_of_byte(3);
        w->code[i] = vi_and_or(vi_down(high, -2, -2), vi_of_byte(4), vi_and(pairs, low));
        w->code[i + 2] = vi_and_or(vi_down(high, -1, -1), vi_of_byte(4), vi_and(vi_down(pairs, 2, 2), low));
    }
}
NIB_DOT_WHOLE_CROSSED(dot, read_256, sizeof(block), SUB, 4)

NIB_FORMATS(q3_k, {.facts = {.name = "q3_k",
                             .gguf_name = "q3_K",
                             .gguf_type = 11,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "3 bits, 16 sub-blocks of 16 with a 6-bit scale, symmetric",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_256,
                   .group = SUB,
                   .centre = 4,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 3,
                   .dot = NIB_DOT(dot)});
