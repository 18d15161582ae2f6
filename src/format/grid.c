/* The grid family q<bits><kind>[_<block>]: evenly spaced values, nothing clever. bits 2..8; block 32 (no suffix), 64, 128
 * or 256 weights.
 *
 *   kind s, symmetric               d f16 | codes                w = d * (c - 2^(bits-1))
 *   kind a, asymmetric              d f16 | z u8 | codes         w = d * (c - z)
 *   kind m, asymmetric              d f16 | m f16 | codes        w = d * c + m
 *
 *   codes: unsigned, least significant bit first, without gaps: code i in bits i*bits .. i*bits+bits-1 of a little-endian
 *   bit string; block*bits/8 bytes. Eight codes fill exactly `bits` bytes, so they are packed eight at a time.
 *
 * Ids: 0x4E420000 + kind * 0x1000 + bits * 0x10 + log2(block). Rounding is floor(x + 0.5). The 84 members are made by
 * macros at the end of this file; all code reads bits, kind and block from nib_format.parameter. 2 bits symmetric have
 * three values, -1, 0 and 1 times the scale: the fourth code is never written. */
#include "format/block.h"

#include <math.h>

enum { BITS, KIND, BLOCK };        /* places in nib_format.parameter */
enum { SYMMETRIC, ZERO, MINIMUM }; /* kinds s, a, m */
enum { MAX_BLOCK = 256, GROUP = 32 };

static const uint32_t HEAD_BYTES[] = {2, 3, 4};

#define GRID_BYTES(bits, kind, block) (2 + (kind) + (block) * (bits) / 8)
_Static_assert(GRID_BYTES(8, ZERO, 32) == 35, "a q8a block is 35 bytes");
_Static_assert(GRID_BYTES(2, SYMMETRIC, 32) == 10, "a q2s block is 10 bytes");

/* ---- Codes: eight of them <-> `bits` bytes ----------------------------------------------------------------------- */

/* GROUP codes of 3 to 7 bits as four words of eight fields; halving three times makes a byte of every field. Eight bytes
 * are loaded for each word, the last ones further to the front so as to stay within the group; what belongs to a
 * neighbour is shifted or masked away. */
static inline __attribute__((always_inline)) void spread_group(uint8_t *restrict code, const uint8_t *restrict packed,
                                                               unsigned bits) {
    const uint64_t of_4 = (UINT64_C(1) << 4 * bits) - 1, of_2 = ((UINT64_C(1) << 2 * bits) - 1) * 0x0000000100000001u;
    const uint64_t of_1 = ((UINT64_C(1) << bits) - 1) * 0x0001000100010001u;
    const unsigned last = 4 * bits - 8;
    words_32 words;
    for (unsigned k = 0; k < 4; k++) {
        const unsigned at = k * bits < last ? k * bits : last;
        words[k] = nib_load_u64(packed + at) >> 8 * (k * bits - at);
    }
    words = (words & of_4) | (words >> 4 * bits & of_4) << 32;
    words = (words & of_2) | (words >> 2 * bits & of_2) << 16;
    words = (words & of_1) | (words >> bits & of_1) << 8;
    memcpy(code, &words, sizeof words);
}

/* Four 2-bit codes lie in one byte: a simpler loop than halving. */
static inline void spread_pairs(uint8_t *restrict code, const uint8_t *restrict packed) {
    for (size_t i = 0; i < GROUP / 4; i++) {
        uint32_t word = packed[i];
        word = (word | word << 6 | word << 12 | word << 18) & 0x03030303u;
        memcpy(code + 4 * i, &word, sizeof word);
    }
}

/* Every case has a constant to build on, which is worth more than the jump costs. */
static inline __attribute__((always_inline)) void read_group(uint8_t *restrict code, const uint8_t *restrict packed,
                                                             unsigned bits) {
    switch (bits) {
    case 2:
        spread_pairs(code, packed);
        break;
    case 3:
        spread_group(code, packed, 3);
        break;
    case 4:
        spread_group(code, packed, 4);
        break;
    case 5:
        spread_group(code, packed, 5);
        break;
    case 6:
        spread_group(code, packed, 6);
        break;
    case 7:
        spread_group(code, packed, 7);
        break;
    default:
        memcpy(code, packed, GROUP);
    }
}

static void read_codes(uint8_t *restrict code, const uint8_t *restrict packed, size_t n, unsigned bits) {
    for (size_t i = 0; i < n; i += GROUP) read_group(code + i, packed + i / 8 * bits, bits);
}

static void write_codes(uint8_t *restrict packed, const uint8_t *restrict code, size_t n, unsigned bits) {
    for (size_t i = 0; i < n; i += 8, packed += bits) {
        uint64_t word = 0;
        for (unsigned k = 0; k < 8; k++) word |= (uint64_t)code[i + k] << k * bits;
        memcpy(packed, &word, bits);
    }
}

/* ---- Encoding ---------------------------------------------------------------------------------------------------- */

/* floor(x + 0.5) between low and high; low for NaN. */
static inline int round_up(float x, int low, int high) {
    float value = x + 0.5f;
    value = value > (float)low ? value : (float)low;
    value = value < (float)high ? value : (float)high;
    const int whole = (int)value;
    return whole - ((float)whole > value);
}

/* A block on its way: the stored head and the codes. */
typedef struct fitted {
    uint8_t head[4], code[MAX_BLOCK];
    bool fits; /* scale and minimum are finite */
} fitted;

static void fit_symmetric_range(fitted *out, const float *x, unsigned block, unsigned bits, float magnitude) {
    const int largest = (1 << (bits - 1)) - 1, zero = largest + 1;
    out->fits = store_half(out->head, magnitude / (float)largest);
    const float d = load_half(out->head);
    for (unsigned i = 0; i < block; i++)
        out->code[i] = (uint8_t)(zero + (d != 0 ? round_up(x[i] / d, -largest, largest) : 0));
}

static void fit_zero_range(fitted *out, const float *x, unsigned block, unsigned bits, float low, float high) {
    const int largest = (1 << bits) - 1;
    out->fits = store_half(out->head, (high - low) / (float)largest);
    const float d = load_half(out->head);
    const int zero = d != 0 ? round_up(-low / d, 0, largest) : 0;
    out->head[2] = (uint8_t)zero;
    for (unsigned i = 0; i < block; i++)
        out->code[i] = (uint8_t)(d != 0 ? round_up(x[i] / d, -zero, largest - zero) + zero : 0);
}

static void fit_minimum_range(fitted *out, const float *x, unsigned block, unsigned bits, float low, float high) {
    const int largest = (1 << bits) - 1;
    out->fits = store_half(out->head + 2, low);
    const float min = load_half(out->head + 2), range = high - min;
    out->fits &= store_half(out->head, (range > 0 ? range : 0) / (float)largest);
    const float d = load_half(out->head);
    for (unsigned i = 0; i < block; i++) out->code[i] = (uint8_t)(d != 0 ? round_up((x[i] - min) / d, 0, largest) : 0);
}

/* How many steps there are between the middle (s) or the lowest value (a, m) and the largest. */
static float steps_of(const nib_format *format) {
    const unsigned bits = format->parameter[BITS];
    return (float)(format->parameter[KIND] == SYMMETRIC ? (1 << (bits - 1)) - 1 : (1 << bits) - 1);
}

/* Fits one block to its range times `factor` (1: the plain values). */
static void fit_block(fitted *out, const nib_format *format, const float *x, float factor) {
    const unsigned bits = format->parameter[BITS], block = format->parameter[BLOCK];
    if (format->parameter[KIND] == SYMMETRIC) {
        fit_symmetric_range(out, x, block, bits, largest_magnitude(x, block) * factor);
        return;
    }
    float low, high;
    find_range(x, block, &low, &high);
    if (format->parameter[KIND] == ZERO) {
        low = low < 0 ? low : 0;
        high = high > 0 ? high : 0;
        fit_zero_range(out, x, block, bits, low * factor, high * factor);
    } else {
        const float margin = (1 - factor) / 2 * (high - low);
        const bool whole = margin == 0; /* the minimum -0 stays */
        fit_minimum_range(out, x, block, bits, whole ? low : low + margin, whole ? high : high - margin);
    }
}

/* w = scale * code - min, for the family's three heads. */
static inline void read_head(const uint8_t *head, unsigned kind, unsigned bits, float *scale, float *min) {
    const float d = load_half(head);
    *scale = d;
    if (kind == SYMMETRIC)
        *min = d * (float)(1 << (bits - 1));
    else if (kind == ZERO)
        *min = d * (float)head[2];
    else
        *min = -load_half(head + 2);
}

static float error_of(const nib_format *format, const fitted *fit, const float *x, const float *importance) {
    float scale, min, error = 0;
    read_head(fit->head, format->parameter[KIND], format->parameter[BITS], &scale, &min);
    for (unsigned i = 0; i < format->parameter[BLOCK]; i++) {
        const float e = scale * (float)fit->code[i] - min - x[i];
        error += importance[i] * (e * e);
    }
    return error;
}

/* With an importance matrix: the best of eight ranges, the first of equals. The range is multiplied by n / (n + t), n
 * steps in the plain range, for these t: t = 1 leaves the outermost value one step outside, where it is clamped, and all
 * others get finer steps. */
static const float CANDIDATES[] = {0, -0.25f, 0.25f, 0.5f, 1, 1.5f, 2, 3};

static void search_block(fitted *best, const nib_format *format, const float *x, const float *importance) {
    const float n = steps_of(format);
    fit_block(best, format, x, 1);
    float best_error = error_of(format, best, x, importance);
    for (unsigned i = 1; i < sizeof CANDIDATES / sizeof *CANDIDATES; i++) {
        fitted trial;
        fit_block(&trial, format, x, n / (n + CANDIDATES[i]));
        const float error = error_of(format, &trial, x, importance);
        if (error < best_error) {
            best_error = error;
            *best = trial;
        }
    }
}

static nib_verdict encode(const nib_format *format, void *restrict dst, const float *restrict src, size_t n,
                          const float *restrict importance) {
    if (!all_finite(src, n)) return NIB_VERDICT_NOT_FINITE;
    const unsigned block = format->parameter[BLOCK], bits = format->parameter[BITS];
    const size_t head_bytes = HEAD_BYTES[format->parameter[KIND]];
    uint8_t *out = dst;
    bool fits = true;
    for (size_t i = 0; i < n; i += block, out += format->facts.bytes) {
        fitted fit;
        if (importance)
            search_block(&fit, format, src + i, importance + i);
        else
            fit_block(&fit, format, src + i, 1);
        fits &= fit.fits;
        memcpy(out, fit.head, head_bytes);
        write_codes(out + head_bytes, fit.code, block, bits);
    }
    return fits ? NIB_VERDICT_OK : NIB_VERDICT_SCALE_OVERFLOW;
}

/* ---- Decoding ---------------------------------------------------------------------------------------------------- */

static void decode(const nib_format *format, float *restrict dst, const void *restrict src, size_t n) {
    const unsigned block = format->parameter[BLOCK], bits = format->parameter[BITS], kind = format->parameter[KIND];
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i += block, in += format->facts.bytes) {
        uint8_t code[MAX_BLOCK];
        read_codes(code, in + HEAD_BYTES[kind], block, bits);
        const float d = load_half(in);
        if (kind == MINIMUM) {
            const float min = load_half(in + 2);
            for (unsigned j = 0; j < block; j++) dst[i + j] = d * (float)code[j] + min;
        } else {
            const int zero = kind == ZERO ? in[2] : 1 << (bits - 1);
            for (unsigned j = 0; j < block; j++) dst[i + j] = d * (float)(code[j] - zero);
        }
    }
}

/* Finite scales; a zero point among the codes; and with 2 bits symmetric, where only -1, 0 and 1 are written, no code 0. */
static nib_verdict check(const nib_format *format, const void *src, size_t n) {
    const unsigned block = format->parameter[BLOCK], bits = format->parameter[BITS], kind = format->parameter[KIND];
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i += block, in += format->facts.bytes) {
        if (!half_is_finite(in) || (kind == MINIMUM && !half_is_finite(in + 2))) return NIB_VERDICT_NOT_FINITE;
        if (kind == ZERO && in[2] >> bits != 0) return NIB_VERDICT_BAD_CODE;
        if (kind != SYMMETRIC || bits != 2) continue;
        uint8_t code[MAX_BLOCK];
        read_codes(code, in + HEAD_BYTES[kind], block, bits);
        unsigned unknown = 0;
        for (unsigned j = 0; j < block; j++) unknown |= code[j] == 0;
        if (unknown) return NIB_VERDICT_BAD_CODE;
    }
    return NIB_VERDICT_OK;
}

/* Larger blocks repeat their scale in every group. */
static void unpack(const nib_format *format, nib_codes *restrict out, const void *restrict src, size_t n) {
    const unsigned block = format->parameter[BLOCK], bits = format->parameter[BITS], kind = format->parameter[KIND];
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i += block) {
        float scale, min;
        read_head(in, kind, bits, &scale, &min);
        in += HEAD_BYTES[kind];
        for (size_t group = i / GROUP; group < (i + block) / GROUP; group++, in += GROUP / 8 * bits) {
            out->scale[group] = scale;
            out->min[group] = min;
            read_group(out->code + group * GROUP, in, bits);
        }
    }
}

/* ---- Members ----------------------------------------------------------------------------------------------------- */

#define MEMBER(member_name, member_bits, member_kind, member_block, log2_block, text)                    \
    {                                                                                                    \
        .facts = {.name = member_name,                                                                   \
                  .gguf_name = member_name,                                                              \
                  .gguf_type = 0x4E420000u + (member_kind)*0x1000u + (member_bits)*0x10u + (log2_block), \
                  .block = (member_block),                                                               \
                  .bytes = GRID_BYTES(member_bits, member_kind, member_block),                           \
                  .kind = NIB_CLASS_SCALED,                                                              \
                  .about = text #member_block,                                                           \
                  .can_encode = true,                                                                    \
                  .can_decode = true,                                                                    \
                  .is_nibbles_own = true},                                                               \
        .activation = NIB_ACT_Q8_32, .group = GROUP,                                                     \
        .centre = (member_kind) == SYMMETRIC ? 1u << ((member_bits)-1) : 0,                              \
        .parameter = {(member_bits), (member_kind), (member_block)}, .encode = encode, .decode = decode, \
        .check = check, .unpack = unpack                                                                 \
    }

/* All blocks of a kind, all kinds of a number of bits. */
#define BLOCKS(name, bits, kind, text)                                                  \
    MEMBER(name, bits, kind, 32, 5, text), MEMBER(name "_64", bits, kind, 64, 6, text), \
        MEMBER(name "_128", bits, kind, 128, 7, text), MEMBER(name "_256", bits, kind, 256, 8, text)
#define KINDS(bits)                                                                                          \
    BLOCKS("q" #bits "s", bits, SYMMETRIC, #bits " bits symmetric, a scale per "),                           \
        BLOCKS("q" #bits "a", bits, ZERO, #bits " bits asymmetric, a scale and an integer zero point per "), \
        BLOCKS("q" #bits "m", bits, MINIMUM, #bits " bits asymmetric, a scale and a minimum per ")

NIB_FORMATS(grid, KINDS(2), KINDS(3), KINDS(4), KINDS(5), KINDS(6), KINDS(7), KINDS(8));
