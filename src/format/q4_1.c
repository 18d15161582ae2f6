/* q4_1: 32 weights, one scale and one minimum, 4-bit codes. w = d * q + m.
 *
 *   byte  0  1 | 2  3 | 4             ..  19
 *         d    | m    | q[16]:q[0] .. q[31]:q[15]      20 bytes, 5 bits per weight
 *         f16  | f16  | high nibble : low nibble
 */
#include "format/decode.h"
#include "format/dot_halves.h"
#include "format/few.h"
#include "format/lanes.h"

enum { BLOCK = 32 };

typedef struct block {
    uint8_t d[2], m[2], q[BLOCK / 2];
} block;
_Static_assert(sizeof(block) == 20, "a q4_1 block is 20 bytes");

static const min_search SEARCH = {.n_max = 15, .first = -0.9f, .step = 0.05f, .n_steps = 36};

/* Scale, minimum and codes (0..15) of one block without an importance matrix. Returns the scale. */
static float quantize_block(uint8_t *restrict code, float *restrict min, const float *restrict x) {
    float low, high;
    find_range(x, BLOCK, &low, &high);
    const float d = (high - low) / 15, inverse = d != 0 ? 1 / d : 0;
    *min = low;
    if (inverse > FLT_MAX || d > FLT_MAX) { /* the reference's conversions give 0 */
        memset(code, 0, BLOCK);
        return d;
    }
    for (unsigned j = 0; j < BLOCK; j++) {
        const int q = (int)((x[j] - low) * inverse + 0.5f);
        code[j] = (uint8_t)(q < 15 ? q : 15);
    }
    return d;
}

enum { GROUP = LANES_AT_ONCE * NIB_LANES };

/* Up to GROUP blocks with an importance matrix, a block in each lane. */
static bool encode_weighted(block *out, const float *x, size_t n_blocks, const float *importance, float sigma2) {
    vf lane[LANES_AT_ONCE * BLOCK], weight[LANES_AT_ONCE * BLOCK];
    float scale[GROUP], min[GROUP], inverse[GROUP], from[GROUP];
    min_fit fit[LANES_AT_ONCE];
    bool fits = true;
    EACH_VECTOR {
        const size_t first = v * NIB_LANES, n_lanes = first < n_blocks ? n_blocks - first : 0;
        load_sub_blocks(lane + v * BLOCK, BLOCK, x + first * BLOCK, n_lanes);
        load_sub_blocks(weight + v * BLOCK, BLOCK, importance + first * BLOCK, n_lanes);
        weigh_lanes(weight + v * BLOCK, BLOCK, lane + v * BLOCK, vf_splat(sigma2));
    }
    fit_with_minimum(&SEARCH, BLOCK, lane, weight, fit);
    EACH_VECTOR {
        vf_store(scale + v * NIB_LANES, fit[v].scale);
        vf_store(min + v * NIB_LANES, fit[v].min);
        vf_store(inverse + v * NIB_LANES, fit[v].inverse);
        vf_store(from + v * NIB_LANES, fit[v].from);
    }
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t code[BLOCK];
        codes_above(code, BLOCK, x + b * BLOCK, inverse[b], from[b], 15);
        fits &= store_half(out[b].d, scale[b]);
        fits &= store_half(out[b].m, min[b]);
        pack_nibbles_32(out[b].q, code);
    }
    return fits;
}

static bool encode_plain(block *out, const float *x) {
    uint8_t code[BLOCK];
    float min;
    const float d = quantize_block(code, &min, x);
    pack_nibbles_32(out->q, code);
    const bool fits = store_half(out->d, d);
    return store_half(out->m, min) && fits;
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    (void)format;
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    block *out = dst;
    const size_t n_blocks = n / BLOCK;
    bool fits = true;
    if (!importance) {
        for (size_t b = 0; b < n_blocks; b++) fits &= encode_plain(out + b, src + b * BLOCK);
        return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
    }
    const float sigma2 = sum_of_squares(src, n) / (float)n;
    for (size_t b = 0; b < n_blocks; b += GROUP) {
        const size_t n_here = n_blocks - b < GROUP ? n_blocks - b : GROUP;
        fits &= encode_weighted(out + b, src + b * BLOCK, n_here, importance + b * BLOCK, sigma2);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++, dst += BLOCK) {
        uint8_t code[BLOCK];
        const float d = load_half(in->d), m = load_half(in->m);
        cut_nibbles_32(code, in->q);
        scale_codes_from(dst, code, BLOCK, d, m);
    }
}

static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++) {
        if (!half_is_finite(in[i].d) || !half_is_finite(in[i].m)) return NIB_VERDICT_NOT_FINITE;
    }
    return NIB_VERDICT_OK;
}

static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    (void)format;
    const block *in = src;
    for (size_t i = 0; i < n / BLOCK; i++, in++) {
        out->scale[i] = load_half(in->d);
        out->min[i] = -load_half(in->m);
        cut_nibbles_32(out->code + i * BLOCK, in->q);
    }
}

FEW_INLINE void cut_rows(panel_sink *sink, const void *src, size_t stride) {
    vi word[40];
    begin_words(sink, word, src, stride);
    PANEL_UNROLL for (unsigned b = 0; b < NIB_PANEL_K / BLOCK; b++) {
        const unsigned at = b * sizeof(block);
        vf_store(sink->panel->scale[b], half_at(word, at));
        vf_store(sink->panel->minus_min[b], half_at(word, at + 2));
        give_nibbles_32(sink, b, word, 40, at + 4);
    }
}
#define SHAPE \
    { .group = 32, .min_group = 32 }
NIB_TURN(turn, cut_rows, SHAPE)
NIB_FEW(few, 2, 16, cut_rows, true, SHAPE)

/* Eight blocks. */
DOT_INLINE void read_scales_256(dot_scales *s, const void *src) {
    const block *in = src;
    s->scale[0] = vhf_of_halves(in->d, sizeof *in, 1);
    s->min[0] = vhf_times(vhf_of_halves(in->m, sizeof *in, 1), -1);
}
DOT_INLINE void read_two(vh code[2], const void *src, int a, int b) {
    const block *in = src;
    const vh both = vh_join_16(in[a].q, in[b].q);
    code[0] = vh_low_halves(both);
    code[1] = vh_high_halves(both);
}
NIB_DOT_CROSSED(dot, read_scales_256, read_two, 8 * sizeof(block), 32, 15)

NIB_FORMATS(q4_1, {.facts = {.name = "q4_1",
                             .gguf_name = "q4_1",
                             .gguf_type = 3,
                             .block = BLOCK,
                             .bytes = sizeof(block),
                             .kind = NIB_CLASS_SCALED,
                             .about = "4 bits, a scale and a minimum per 32: the plainest asymmetric format",
                             .can_encode = true,
                             .can_decode = true,
                             .weighs_rows = true},
                   .activation = NIB_ACT_Q8_32,
                   .group = BLOCK,
                   .shape = SHAPE,
                   .encode = encode,
                   .decode = decode,
                   .check = check,
                   .unpack = unpack,
                   .turn = turn,
                   .few = NIB_FEW_OF(few),
                   .dot_tokens = 4,
                   .dot = NIB_DOT(dot)});
