/* q6_k: 256 weights as 16 sub-blocks of 16, each with a signed 8-bit scale; 6-bit codes.
 * w = d * scale[g] * (q - 32)
 *
 *   byte  0 .. 127                      | 128 .. 191                 | 192 .. 207       | 208 209
 *         low[0..127]                   | high[0..63]                | scale[0..15]     | d
 *         bits 0-3 of the codes:        | bits 4-5 of the codes:     | int8             | f16
 *         byte 64 n + 32 k + l          | byte 32 n + l, bits 2j:    |
 *         low nibble:  128n + 32k + l   | code 128 n + 32 j + l      |
 *         high nibble: that + 64        |                            210 bytes, 6.5625 bits per weight
 */
#include "format/decode.h"
#include "format/dot.h"
#include "format/few.h"
#include "format/lanes.h"

enum { BLOCK = 256, N_SUB = 16, SUB = 16, GROUP = 16 };

typedef struct block {
    uint8_t low[BLOCK / 2], high[BLOCK / 4];
    int8_t scale[N_SUB];
    uint8_t d[2];
} block;
_Static_assert(sizeof(block) == 210, "a q6_k block is 210 bytes");

static void read_scales(float scale[N_SUB], const block *in) {
    const float d = load_half(in->d);
    for (unsigned g = 0; g < N_SUB; g++) scale[g] = d * (float)in->scale[g];
}

static void pack_codes(block *restrict out, const uint8_t *restrict code) {
    for (unsigned n = 0; n < 2; n++, code += 128) {
        words_32 high = {0};
        for (unsigned j = 0; j < 4; j++) {
            words_32 word;
            memcpy(&word, code + 32 * j, sizeof word);
            high |= ((word >> 4) & EACH_BYTE(3)) << 2 * j;
        }
        memcpy(out->high + 32 * n, &high, sizeof high);
        for (unsigned j = 0; j < 2; j++) join_nibbles_32(out->low + 64 * n + 32 * j, code + 32 * j, code + 64 + 32 * j);
    }
}

static void read_codes(uint8_t *restrict code, const block *restrict in) {
    for (unsigned b = 0; b < 8; b++) {
        const unsigned n = b / 4, j = b % 4;
        cut_two_32(code + 32 * b, in->low + 64 * n + 32 * (j % 2), j / 2 * 4, 15, in->high + 32 * n, 2 * j, 3, 4);
    }
}

/* What the searches of the sub-blocks of up to 16 blocks found. */
typedef struct fits {
    float scale[GROUP][N_SUB], inverse[GROUP][N_SUB];
} fits;

/* importance may be NULL (weights x^2). */
static void fit_block(fits *out, size_t b, const float *x, const float *importance) {
    vf lane[SUB], weight[SUB];
    load_lanes(lane, x, SUB, N_SUB);
    if (importance)
        load_lanes(weight, importance, SUB, N_SUB);
    else
        for (unsigned i = 0; i < SUB; i++) weight[i] = vf_mul(lane[i], lane[i]);
    const symmetric_fit fit = fit_symmetric(SUB, 32, lane, weight, true);
    vf_store(out->scale[b], fit.scale);
    vf_store(out->inverse[b], fit.inverse);
}

/* The common factors, and the codes of all scales: rounded to 1/128 of the largest. Blocks of zeros get the factor 0. */
static void code_scales(float d[GROUP], uint8_t code[N_SUB][GROUP], const fits *found, size_t n_blocks) {
    vf scale[N_SUB];
    load_lanes(scale, found->scale[0], N_SUB, n_blocks);
    const vf max = extreme_lanes(N_SUB, scale), inverse = vf_div(vf_splat(-128), max);
    const vm is_zero = vf_lt(vf_abs(max), vf_splat(SEARCH_ZERO));
    vf_store(d, vf_choose(is_zero, vf_zero(), vf_div(vf_splat(1), inverse)));
    for (unsigned g = 0; g < N_SUB; g++) vi_store_bytes(code[g], vf_to_i(round_below(vf_mul(inverse, scale[g]), 127)));
}

static bool encode_group(block *out, const float *x, size_t n_blocks, const float *importance) {
    fits found;
    float d[GROUP];
    uint8_t scale_code[N_SUB][GROUP];
    bool fits_half = true;
    for (size_t b = 0; b < n_blocks; b++)
        fit_block(&found, b, x + b * BLOCK, importance ? importance + b * BLOCK : NULL);
    code_scales(d, scale_code, &found, n_blocks);
    for (size_t b = 0; b < n_blocks; b++, out++, x += BLOCK) {
        uint8_t code[BLOCK];
        float scale[N_SUB];
        if (d[b] == 0) {
            memset(out, 0, sizeof *out);
            continue;
        }
        fits_half &= store_half(out->d, d[b]);
        for (unsigned g = 0; g < N_SUB; g++) out->scale[g] = (int8_t)scale_code[g][b];
        read_scales(scale, out);
        for (unsigned g = 0; g < N_SUB; g++) {
            if (scale[g] != 0)
                requantize_symmetric(code + SUB * g, SUB, x + SUB * g, scale[g], 32);
            else
                codes_around(code + SUB * g, SUB, x + SUB * g, found.inverse[b][g], 32);
        }
        pack_codes(out, code);
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

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n; i += BLOCK, in++) {
        uint8_t code[BLOCK];
        float scale[N_SUB];
        read_codes(code, in);
        read_scales(scale, in);
        for (unsigned g = 0; g < N_SUB; g++) scale_codes(dst + i + SUB * g, code + SUB * g, SUB, scale[g], 32);
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
    for (unsigned g = 0; g < N_SUB; g++) out->min[g] = 32 * out->scale[g];
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    const block *in = src;
    vi scale[4], tail[4];
    vi_turn(scale, in->scale, stride);
    vi_turn(tail, in->scale + 2, stride); /* d is the last half */
    PANEL_UNROLL for (unsigned i = 0; i < N_SUB / 2; i++) vi_store(sink->panel->whole[i], signed_pair_at(scale, i));
    vf_store(sink->panel->d, half_at(tail, 14));
    vi high[4], low[2][4], next[2][4];
    vi_turn(high, in->high, stride);
    vi_turn(low[0], in->low, stride);
    PANEL_UNROLL for (unsigned i = 0; i < 4; i++) {
        /* columns 128 (i / 2) + 16 (i % 2) .. + 15, and those 64, 32 and 96 further; what is cut next is turned meanwhile */
        const uint8_t *its = in->low + i / 2 * 64 + i % 2 * 16;
        PANEL_UNROLL for (unsigned k = 0; k < 16; k++) {
            const unsigned part = k / 4 % 2 * 2 + k / 8, j = k % 4, group = 8 * (i / 2) + i % 2 + 2 * part;
            if (k < 8 && k % 2) turn_step(low[1], its + 32, stride, k / 2);
            if (i < 3 && k >= 8 && k < 12) turn_step(next[0], i == 1 ? in->low + 64 : its + 16, stride, j);
            if (i < 3 && k >= 12) turn_step(next[1], in->high + 16 * i + 16, stride, j);
            const vi four = cut_bytes(low[part % 2][j], part < 2 ? 0 : 4, 15);
            const vi two = part < 2 ? vi_shl(high[j], (int)(4 - 2 * part)) : vi_shr(high[j], (int)(2 * part - 4));
            if (j == 0) open_group(sink, group, 0);
            give_codes(sink, 4 * group + j, 0, vi_or(four, vi_and(two, vi_splat(0x30303030))));
            if (j == 3) close_group(sink, group, 0);
        }
        if (i < 3) PANEL_UNROLL for (unsigned j = 0; j < 4; j++) {
                low[0][j] = next[0][j];
                high[j] = next[1][j];
            }
    }
}
#define SHAPE \
    { .group = 16, .centre = 32, .whole = 32 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 3, 8, cut_rows, false, SHAPE)

DOT_INLINE void read_256(dot_whole *w, const void *src) {
    const block *in = src;
    words_16 bytes;
    memcpy(&bytes, in->scale, sizeof bytes);
    w->d = load_half(in->d);
    w->d_min = 32 * w->d;
    w->scale = w->min = vs_of_bytes(bytes ^ EACH_BYTE(0x80), -128);
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
        const vi low = vi_down(vi_load(in->low + p / 2 * 64), p % 2 * 4, p % 2 * 4);
        const vi high = vi_down(vi_twice_32(in->high + p / 2 * 32), p % 2 * 4 - 4, p % 2 * 4 - 2);
        w->code[p] = vi_and_or(high, vi_of_byte(0x30), vi_and(low, vi_of_byte(15)));
    }
}
NIB_DOT_WHOLE(dot, read_256, sizeof(block))

NIB_FORMATS(q6_k, {.facts = {.name = "q6_k",
                             .gguf_name = "q6_K",
                             .gguf_type = 14,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "6 bits, 16 sub-blocks of 16 with an 8-bit scale, symmetric: next to no loss",
                             .can_encode = true,
                             .can_decode = true},
                   .activation = NIB_ACT_Q8_256,
                   .group = SUB,
                   .centre = 32,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 4,
                   .dot = NIB_DOT(dot)});
