/* q2_k: 256 weights as 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum; 2-bit codes.
 * w = d * scale[g] * q - d_min * min[g]
 *
 *   byte  0 .. 15               | 16 .. 47           | 48 .. 79       | 80 81 | 82 83
 *         min[g] : scale[g]     | codes 0 .. 127     | 128 .. 255     | d     | d_min
 *         high : low nibble     | byte l, bits 2j:   |                | f16   | f16
 *                               | code 32 j + l      |                        84 bytes, 2.625 bits per weight
 */
#include "format/decode.h"
#include "format/dot.h"
#include "format/few.h"
#include "format/lanes.h"

enum { BLOCK = 256, N_SUB = 16, SUB = 16, GROUP = 16 };

typedef struct block {
    uint8_t scale_min[N_SUB], q[BLOCK / 4], d[2], d_min[2];
} block;
_Static_assert(sizeof(block) == 84, "a q2_k block is 84 bytes");

static const min_search PLAIN = {.n_max = 3, .first = -0.5f, .step = 0.1f, .n_steps = 15, .absolute = true};
static const min_search WEIGHTED = {.n_max = 3, .first = -0.9f, .step = 0.05f, .n_steps = 36};

static void read_scales(float scale[N_SUB], float min[N_SUB], const block *in) {
    const float d = load_half(in->d), d_min = load_half(in->d_min);
    for (unsigned g = 0; g < N_SUB; g++) {
        scale[g] = d * (float)(in->scale_min[g] & 15);
        min[g] = d_min * (float)(in->scale_min[g] >> 4);
    }
}

/* What the searches of the sub-blocks of up to 16 blocks found. */
typedef struct fits {
    float scale[GROUP][N_SUB], negated_min[GROUP][N_SUB], sum_weight[GROUP][N_SUB];
    float inverse[GROUP][N_SUB], from[GROUP][N_SUB];
} fits;

/* The blocks of the group from b on that are searched at once; importance may be NULL. x: the first of the group. */
static void fit_blocks(fits *out, size_t b, size_t n_blocks, const float *x, const float *importance,
                       const float sigma2[GROUP]) {
    vf lane[LANES_AT_ONCE * SUB], weight[LANES_AT_ONCE * SUB];
    min_fit fit[LANES_AT_ONCE];
    EACH_VECTOR {
        const size_t n_lanes = b + v < n_blocks ? N_SUB : 0, at = (b + v) * BLOCK;
        vf *x_of = lane + v * SUB, *weight_of = weight + v * SUB;
        load_lanes(x_of, x + at, SUB, n_lanes);
        if (importance) {
            load_lanes(weight_of, importance + at, SUB, n_lanes);
            vf_store(out->sum_weight[b + v], weigh_lanes(weight_of, SUB, x_of, vf_splat(sigma2[b + v])));
        } else {
            for (unsigned i = 0; i < SUB; i++) weight_of[i] = vf_abs(x_of[i]);
        }
    }
    if (importance)
        fit_with_minimum(&WEIGHTED, SUB, lane, weight, fit);
    else
        fit_with_minimum(&PLAIN, SUB, lane, weight, fit);
    EACH_VECTOR {
        vf_store(out->scale[b + v], fit[v].scale);
        vf_store(out->negated_min[b + v], vf_negate(fit[v].min));
        vf_store(out->inverse[b + v], fit[v].inverse);
        vf_store(out->from[b + v], fit[v].from);
    }
}

/* Scales or minimums rounded to 1/15 of the largest, which is returned; lane i: block i. */
static vf round_scales(const vf x[N_SUB], vf code[N_SUB]) {
    vf max = vf_zero();
    for (unsigned g = 0; g < N_SUB; g++) max = vf_max(x[g], max);
    const vm any = vf_lt(vf_zero(), max);
    const vf inverse = vf_div(vf_splat(15), max);
    for (unsigned g = 0; g < N_SUB; g++)
        code[g] = vf_choose(any, byte_of(round_shifted(vf_mul(inverse, x[g]))), vf_zero());
    return vf_choose(any, vf_div(max, vf_splat(15)), vf_zero());
}

/* Stores the common factors and the codes of all scales and minimums. false if a factor does not fit half precision. */
static bool code_scales(block *out, const fits *found, size_t n_blocks, bool weighted) {
    vf scale[N_SUB], min[N_SUB], weight[N_SUB], scale_code[N_SUB], min_code[N_SUB];
    float d[GROUP], d_min[GROUP];
    uint8_t both[N_SUB][GROUP];
    bool fit_half = true;
    load_lanes(scale, found->scale[0], N_SUB, n_blocks);
    load_lanes(min, found->negated_min[0], N_SUB, n_blocks);
    if (weighted) load_lanes(weight, found->sum_weight[0], N_SUB, n_blocks);
    vf_store(d, weighted ? fit_positive_lanes(N_SUB, 15, scale, weight, scale_code) : round_scales(scale, scale_code));
    vf_store(d_min, weighted ? fit_positive_lanes(N_SUB, 15, min, weight, min_code) : round_scales(min, min_code));
    for (unsigned g = 0; g < N_SUB; g++)
        vi_store_bytes(both[g], vi_or(vf_to_i(scale_code[g]), vi_shl(vf_to_i(min_code[g]), 4)));
    for (size_t b = 0; b < n_blocks; b++) {
        for (unsigned g = 0; g < N_SUB; g++) out[b].scale_min[g] = both[g][b];
        fit_half &= store_half(out[b].d, d[b]);
        fit_half &= store_half(out[b].d_min, d_min[b]);
    }
    return fit_half;
}

static bool encode_group(block *out, const float *x, size_t n_blocks, const float *importance) {
    fits found = {0};
    float sigma2[GROUP] = {0};
    if (importance) vf_store(sigma2, vf_div(sums_of_squares_256(x, n_blocks), vf_splat(BLOCK)));
    for (size_t b = 0; b < n_blocks; b += LANES_AT_ONCE) fit_blocks(&found, b, n_blocks, x, importance, sigma2);
    const bool fit_half = code_scales(out, &found, n_blocks, importance);
    for (size_t b = 0; b < n_blocks; b++, x += BLOCK) {
        uint8_t code[BLOCK];
        float scale[N_SUB], min[N_SUB];
        read_scales(scale, min, &out[b]);
        for (unsigned g = 0; g < N_SUB; g++) {
            if (scale[g] != 0)
                requantize(code + SUB * g, SUB, x + SUB * g, scale[g], min[g], 3);
            else
                codes_above(code + SUB * g, SUB, x + SUB * g, found.inverse[b][g], found.from[b][g], 3);
        }
        pack_pairs_256(out[b].q, code);
    }
    return fit_half;
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

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[N_SUB], min[N_SUB];
        cut_pairs_256(code, in->q);
        read_scales(scale, min, in);
        for (unsigned g = 0; g < N_SUB; g++)
            scale_codes_from(dst + i + SUB * g, code + SUB * g, SUB, scale[g], -min[g]);
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (!half_is_finite(in[i].d) || !half_is_finite(in[i].d_min)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format, (void)n; /* n is one whole block */
    const block *in = src;
    cut_pairs_256(out->code, in->q);
    read_scales(out->scale, out->min, in);
}

/* The scales of the sub-blocks go into the codes: 0 .. 45. */
FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    vi scale_min[4], scale[4], min[4], tail[4];
    vi_turn(scale_min, in->scale_min, stride);
    vi_turn(tail, in->q + 52, stride); /* ends with d and d_min */
    vf_store(sink->panel->scale[0], half_at(tail, 12));
    vf_store(sink->panel->minus_d_min, vf_sub(vf_zero(), half_at(tail, 14)));
    PANEL_UNROLL for (unsigned i = 0; i < 4; i++) {
        scale[i] = cut_bytes(scale_min[i], 0, 15);
        min[i] = cut_bytes(scale_min[i], 4, 15);
    }
    PANEL_UNROLL for (unsigned i = 0; i < N_SUB / 2; i++) vi_store(sink->panel->min[i], pair_at(min, i));
    PANEL_UNROLL for (unsigned i = 0; i < 4; i++) { /* columns as in q6_k */
        const unsigned first = i / 2 * 32 + i % 2 * 4;
        vi codes[4];
        vi_turn(codes, in->q + 16 * i, stride);
        PANEL_UNROLL for (unsigned part = 0; part < 4; part++) {
            const vi its = byte_at(scale, (first + 8 * part) / 4);
            PANEL_UNROLL for (unsigned j = 0; j < 4; j++)
                give_codes(sink, first + 8 * part + j, 0, vi_mul(cut_bytes(codes[j], (int)(2 * part), 3), its));
        }
    }
}
#define SHAPE \
    { .group = 256, .min_group = 16 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 8, cut_rows, false, SHAPE)

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    words_16 bytes;
    memcpy(&bytes, in->scale_min, sizeof bytes);
    dot_read_d(w, in->d);
    w->scale = vs_of_bytes(bytes & EACH_BYTE(15), 0);
    w->min = vs_of_bytes((bytes >> 4) & EACH_BYTE(15), 0);
    vi both[2];
    vi_cross_64(both, in->q);
    DOT_UNROLL for (int i = 0; i < 2; i++) {
        const vi pairs = vi_down_nibbles(both[i]);
        w->code[i] = vi_and(pairs, vi_of_byte(3));
        w->code[i + 2] = vi_and(vi_down(pairs, 2, 2), vi_of_byte(3));
    }
}
NIB_DOT_WHOLE_CROSSED(dot, read_256, sizeof(block), SUB, 0)

NIB_FORMATS(q2_k,
            {.facts = {.name = "q2_k",
                       .gguf_name = "q2_K",
                       .gguf_type = 10,
                       .block = BLOCK,
                       .bytes = sizeof(block),
                       .kind = NIB_CLASS_SCALED,
                       .about = "2 bits, 16 sub-blocks of 16 with 4-bit scale and minimum: small, with a clear loss",
                       .can_encode = true,
                       .can_decode = true},
             .activation = NIB_ACT_Q8_256,
             .group = SUB,
             .shape = SHAPE,
             .encode = encode,
             .decode = decode,
             .check = check,
             .unpack = unpack,
             .turn = turn,
             .few = NIB_FEW_OF(few),
             .dot_tokens = 3,
             .dot = NIB_DOT(dot)});
