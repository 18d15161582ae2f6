/* Single numbers: the bits of a number in every type, a list quantized in double arithmetic, FP8 matrices with scales.
 * Nothing here is fast; everything is computed in double, where all the types' values are exact. */
#include "nibble/number.h"

#include "base/error.h"
#include "format/impl.h"
#include "format/small_float.h"

/* ---- Floats of any layout ---------------------------------------------------------------------------------------- */

typedef struct layout {
    const char *name;
    unsigned n_exponent_bits, n_mantissa_bits;
    int bias;
    uint64_t largest;  /* code of the largest finite value */
    bool has_infinity; /* code largest + 1 */
    uint64_t nan;      /* 0: there is none */
    bool overflows;    /* beyond the range lies infinity; else the range's end holds */
} layout;

static const layout layouts[] = {
    {"f64", 11, 52, 1023, 0x7fefffffffffffff, true, 0x7ff8000000000000, true},
    {"f32", 8, 23, 127, 0x7f7fffff, true, 0x7fc00000, true},
    {"f16", 5, 10, 15, 0x7bff, true, 0x7e00, true},
    {"bf16", 8, 7, 127, 0x7f7f, true, 0x7fc0, true},
    {"f8_e4m3", 4, 3, 7, 0x7e, false, 0x7f, false},
    {"f8_e4m3_ieee", 4, 3, 7, 0x77, true, 0x7c, false},
    {"f8_e5m2", 5, 2, 15, 0x7b, true, 0x7e, false},
    {"f4_e2m1", 2, 1, 1, 0x7, false, 0, false},
    {"f4_e2m1_ieee", 2, 1, 1, 0x5, true, 0x7, false},
};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts, FIRST_SMALL = 4 };

static uint64_t sign_bit_of(const layout *type) {
    return UINT64_C(1) << (type->n_exponent_bits + type->n_mantissa_bits);
}

static double decode(const layout *type, uint64_t code) {
    const uint64_t sign = sign_bit_of(type), rest = code & (sign - 1);
    const int exponent = (int)(rest >> type->n_mantissa_bits);
    const uint64_t one = UINT64_C(1) << type->n_mantissa_bits, mantissa = rest & (one - 1);
    double value = ldexp((double)(exponent ? one + mantissa : mantissa),
                         (exponent ? exponent : 1) - type->bias - (int)type->n_mantissa_bits);
    if (rest > type->largest) value = type->has_infinity && rest == type->largest + 1 ? INFINITY : NAN;
    return code & sign ? -value : value;
}

/* The nearest value's code, ties to even; x is not NaN. */
static uint64_t encode(const layout *type, double x) {
    const uint64_t sign = signbit(x) ? sign_bit_of(type) : 0;
    const double magnitude = fabs(x);
    const int lowest = 1 - type->bias, highest = (int)(type->largest >> type->n_mantissa_bits) - type->bias;
    const uint64_t beyond = type->overflows ? type->largest + 1 : type->largest;
    if (magnitude == 0) return sign;
    int exponent = isinf(magnitude) ? highest + 1 : ilogb(magnitude);
    if (exponent > highest) return sign | beyond;
    if (exponent < lowest) exponent = lowest;
    const double steps = rint(ldexp(magnitude, (int)type->n_mantissa_bits - exponent));
    const uint64_t code = ((uint64_t)(exponent - lowest) << type->n_mantissa_bits) + (uint64_t)steps;
    return sign | (code > type->largest ? beyond : code);
}

/* One step up (or down) from a stored value. */
static double neighbour(const layout *type, uint64_t code, bool up) {
    const uint64_t sign = sign_bit_of(type), rest = code & (sign - 1);
    const bool negative = code & sign;
    if (rest > type->largest + type->has_infinity) return NAN;
    if (rest == 0) return decode(type, up ? 1 : sign | 1);
    if (negative == up) return decode(type, code - 1);
    if (rest > type->largest || (rest == type->largest && !type->has_infinity)) return NAN;
    return decode(type, code + 1);
}

static nib_number_fit judge(double x, double stored) {
    if (isnan(x)) return isnan(stored) ? NIB_NUMBER_EXACT : NIB_NUMBER_NONE;
    if (stored == x) return NIB_NUMBER_EXACT;
    if (isinf(stored)) return NIB_NUMBER_OVERFLOW;
    return stored == 0 ? NIB_NUMBER_UNDERFLOW : NIB_NUMBER_ROUNDED;
}

static void fill_float(const layout *type, double x, nib_number *out) {
    const bool fits = !isnan(x) || type->nan;
    *out = (nib_number){.type = type->name,
                        .n_bits = 1 + type->n_exponent_bits + type->n_mantissa_bits,
                        .n_exponent_bits = type->n_exponent_bits,
                        .n_mantissa_bits = type->n_mantissa_bits,
                        .is_signed = true,
                        .bias = type->bias,
                        .lowest = -decode(type, type->largest),
                        .largest = decode(type, type->largest),
                        .smallest = decode(type, 1),
                        .smallest_normal = ldexp(1, 1 - type->bias),
                        .digits = log10(2) * (type->n_mantissa_bits + 1)};
    out->code = !isnan(x) ? encode(type, x) : type->nan;
    out->value = fits ? decode(type, out->code) : NAN;
    out->fit = fits ? judge(x, out->value) : NIB_NUMBER_NONE;
    if (out->fit == NIB_NUMBER_ROUNDED && fabs(x) > out->largest) out->fit = NIB_NUMBER_SATURATED;
    out->previous = fits ? neighbour(type, out->code, false) : NAN;
    out->next = fits ? neighbour(type, out->code, true) : NAN;
}

/* ---- Integers ---------------------------------------------------------------------------------------------------- */

/* Halves up, as JavaScript's Math.round. */
static double round_up(double x) {
    return floor(x + 0.5);
}

static double limit(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

static void fill_integer(const char *name, int low, int high, double x, nib_number *out) {
    *out = (nib_number){.type = name,
                        .n_bits = 8,
                        .is_integer = true,
                        .is_signed = low < 0,
                        .lowest = low,
                        .largest = high,
                        .smallest = 1,
                        .smallest_normal = 1,
                        .digits = log10(high - low + 1)};
    if (isnan(x)) {
        out->value = out->previous = out->next = NAN;
        out->fit = NIB_NUMBER_NONE;
        return;
    }
    const int stored = (int)limit(round_up(x), low, high);
    out->code = (uint32_t)stored & 0xff;
    out->value = stored;
    out->fit = x < low - 0.5 || x >= high + 0.5 ? NIB_NUMBER_SATURATED : judge(x, stored);
    out->previous = stored > low ? stored - 1 : NAN;
    out->next = stored < high ? stored + 1 : NAN;
}

bool nib_number_at(unsigned index, double x, nib_number *out) {
    if (index < N_LAYOUTS)
        fill_float(&layouts[index], x, out);
    else if (index == N_LAYOUTS)
        fill_integer("i8", -128, 127, x, out);
    else if (index == N_LAYOUTS + 1)
        fill_integer("u8", 0, 255, x, out);
    else
        return false;
    out->error = isfinite(x) && isfinite(out->value) ? out->value - x : NAN;
    return true;
}

const char *nib_number_fit_name(nib_number_fit fit) {
    static const char *const names[] = {"exact", "rounded", "underflow", "saturated", "overflow", "none"};
    return (unsigned)fit < sizeof names / sizeof *names ? names[fit] : "";
}

/* ---- Lists ------------------------------------------------------------------------------------------------------- */

/* What the ids of nibble's own formats say (spread over grid.c and plain_float.c, frozen in files). */
enum { GRID = 0x4E42, PLAIN_FLOATS = 0x4E43 };

static void find_ends(const double *x, size_t n, double *low, double *high, double *magnitude) {
    *low = *high = x[0];
    *magnitude = 0;
    for (size_t i = 0; i < n; i++) {
        *low = fmin(*low, x[i]);
        *high = fmax(*high, x[i]);
        *magnitude = fmax(*magnitude, fabs(x[i]));
    }
}

static void quantize_grid(uint32_t type, const double *x, size_t n, int32_t *codes, double *decoded,
                          nib_number_block *out) {
    const unsigned bits = type >> 4 & 0xff, kind = type >> 12 & 0xf;
    const int half = 1 << (bits - 1);
    double low, high, magnitude;
    find_ends(x, n, &low, &high, &magnitude);
    out->has_scale = true;
    out->has_zero = kind == 1;
    out->has_minimum = kind == 2;
    out->lowest_code = kind == 0 ? 1 - half : kind == 1 ? -half : 0;
    out->largest_code = kind == 2 ? 2 * half - 1 : half - 1;
    if (kind == 1) low = fmin(low, 0), high = fmax(high, 0);
    out->scale = kind == 0 ? magnitude / (half - 1) : (high - low) / (2 * half - 1);
    const bool flat = out->scale == 0;
    if (kind == 1) out->zero = flat ? -half : -half - (int32_t)round_up(low / out->scale);
    if (kind == 2) out->minimum = low;
    for (size_t i = 0; i < n; i++) {
        const double place = flat ? 0 : (x[i] - out->minimum) / out->scale;
        codes[i] = (int32_t)limit(round_up(place + out->zero), out->lowest_code, out->largest_code);
        decoded[i] = out->scale * (codes[i] - out->zero) + out->minimum;
    }
}

static void quantize_floats(const nib_format_facts *facts, const double *x, size_t n, int32_t *codes, double *decoded,
                            nib_number_block *out) {
    const layout *type = &layouts[FIRST_SMALL + (facts->gguf_type >> 4 & 0xf)];
    double low, high, magnitude;
    find_ends(x, n, &low, &high, &magnitude);
    out->has_scale = (facts->gguf_type & 0xf) != 0;
    if (out->has_scale) out->scale = magnitude / decode(type, type->largest);
    out->largest_code = (int32_t)(type->largest | sign_bit_of(type));
    for (size_t i = 0; i < n; i++) {
        codes[i] = out->scale > 0 ? (int32_t)encode(type, x[i] / out->scale) : 0;
        decoded[i] = out->scale * decode(type, (uint64_t)codes[i]);
    }
}

static void count_and_compare(const double *x, size_t n, const int32_t *codes, const double *decoded,
                              nib_number_block *out) {
    bool seen[256] = {false};
    double sum = 0;
    size_t n_terms = 0;
    for (size_t i = 0; i < n; i++) {
        bool *mark = &seen[(unsigned)codes[i] & 0xff]; /* signed codes too: all differ in their last 8 bits */
        out->n_codes_used += !*mark;
        *mark = true;
        if (x[i] == 0) continue;
        sum += fabs(decoded[i] - x[i]) / fabs(x[i]);
        n_terms++;
    }
    out->mean_relative_error = n_terms ? sum / (double)n_terms : NAN;
}

nib_status nib_number_quantize(const nib_format *format, const double *x, size_t n, int32_t *codes, double *decoded,
                               nib_number_block *out, nib_error *error) {
    const nib_format_facts *facts = nib_format_facts_of(format);
    const uint32_t family = facts->gguf_type >> 16;
    *out = (nib_number_block){.scale = 1};
    if (family != GRID && family != PLAIN_FLOATS) {
        nib_fail(error, NIB_ERR_UNSUPPORTED, "%s cannot be shown number by number", facts->name);
        return nib_hint(error, NIB_ERR_UNSUPPORTED,
                        "the grid family and the plain floats can: q4s, q4a_64, q2m, f8_e4m3, f4_e2m1_ieee");
    }
    if (n == 0) return nib_fail(error, NIB_ERR_USAGE, "there are no numbers to quantize");
    if (n > facts->block && facts->block > 2) {
        nib_fail(error, NIB_ERR_USAGE, "%zu numbers are more than a block of %s: %u", n, facts->name, facts->block);
        return nib_hint(error, NIB_ERR_USAGE, "give fewer, or take a format with larger blocks");
    }
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return nib_fail(error, NIB_ERR_USAGE, "NaN and infinity cannot be quantized");
        if (fabs(x[i]) > 1e300) return nib_fail(error, NIB_ERR_USAGE, "%g is too large to be quantized", x[i]);
    }
    if (family == GRID)
        quantize_grid(facts->gguf_type, x, n, codes, decoded, out);
    else
        quantize_floats(facts, x, n, codes, decoded, out);
    const unsigned index = facts->gguf_type >> 4 & 0xf;
    out->n_codes = family == GRID ? (uint32_t)(out->largest_code - out->lowest_code + 1)
                                  : 2 * ((uint32_t)layouts[FIRST_SMALL + index].largest + 1);
    count_and_compare(x, n, codes, decoded, out);
    return NIB_OK;
}

/* ---- FP8 matrices ------------------------------------------------------------------------------------------------ */

nib_verdict nib_fp8_decode_blocks(const nib_format *format, const uint8_t *codes, size_t n_rows, size_t n_cols,
                                  const float *scales, size_t block_rows, size_t block_cols, float *out) {
    const nib_format_facts *facts = nib_format_facts_of(format);
    const bool is_e4m3 = facts->gguf_type == nib_format_facts_of(nib_format_find("f8_e4m3"))->gguf_type;
    const bool is_e5m2 = facts->gguf_type == nib_format_facts_of(nib_format_find("f8_e5m2"))->gguf_type;
    if (!is_e4m3 && !is_e5m2) return NIB_VERDICT_BAD_CODE;
    float values[256];
    for (unsigned code = 0; code < 256; code++)
        values[code] = small_float_decode(&SMALL_FLOATS[is_e4m3 ? SMALL_E4M3 : SMALL_E5M2], (uint8_t)code);
    if (block_rows == 0) block_rows = n_rows;
    if (block_cols == 0) block_cols = n_cols;
    bool bad = false;
    for (size_t r = 0; r < n_rows; r++) {
        const size_t n_scales = n_cols / block_cols + (n_cols % block_cols != 0); /* in a row of blocks */
        const float *row_scales = scales + r / block_rows * n_scales;
        for (size_t c = 0; c < n_cols; c++) {
            const float weight = values[codes[r * n_cols + c]] * row_scales[c / block_cols];
            bad |= !isfinite(weight);
            out[r * n_cols + c] = weight;
        }
    }
    return bad ? NIB_VERDICT_NOT_FINITE : NIB_VERDICT_OK;
}
