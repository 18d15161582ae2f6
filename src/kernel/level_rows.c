/* Element by element and row by row: normalization, residual sum, activation, rotary embedding, log-softmax, divergence.
 * Sums run in 16 lanes and are folded in one order, so results depend on nothing but the numbers. */
#include "cpu/vec.h"
#include "kernel/level.h"
#include "kernel/tile.h"
#include <float.h>
#include <math.h>

static void norm(const float *x, size_t n, const float *weight, float eps, float *out) {
    vd squares = vd_splat(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const vd v = vd_of(vf_load(x + i));
        squares = vd_add(squares, vd_mul(v, v));
    }
    if (i < n) {
        const vd v = vd_of(vf_load_n(x + i, n - i));
        squares = vd_add(squares, vd_mul(v, v));
    }
    const vf factor = vf_splat((float)(1 / sqrt(vd_sum(squares) / (double)n + (double)eps)));
    for (i = 0; i + 16 <= n; i += 16) vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), factor), vf_load(weight + i)));
    if (i < n)
        vf_store_n(out + i, vf_mul(vf_mul(vf_load_n(x + i, n - i), factor), vf_load_n(weight + i, n - i)), n - i);
}

static void add(float *x, const float *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

static vf silu(vf x) {
    return vf_div(x, vf_add(vf_splat(1), vf_exp(vf_sub(vf_zero(), x))));
}

static void swiglu(const float *gate, const float *up, size_t n, float *out) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) vf_store(out + i, vf_mul(silu(vf_load(gate + i)), vf_load(up + i)));
    if (i < n) vf_store_n(out + i, vf_mul(silu(vf_load_n(gate + i, n - i)), vf_load_n(up + i, n - i)), n - i);
}

/* ---- rotary embedding ------------------------------------------------------------------------------------------- */

enum { ROPE_PAIRS = 64 };

/* cos and sin of position * inv_freq[i]. The angle is reduced in double to |r| <= pi/4 around quarter turns, then Taylor
 * polynomials (below 1e-10 there). Two-part pi/2: the first part has 33 bits, so its multiples are exact. */
static void turn_angles(uint32_t position, const float *inv_freq, uint32_t n, float *cosine, float *sine) {
    const double magic = 0x1.8p52;
    for (uint32_t i = 0; i < n; i++) {
        const double angle = (double)position * (double)inv_freq[i];
        const double shifted = angle * 0x1.45f306dc9c883p-1 + magic, quarters = shifted - magic;
        const double r = (angle - quarters * 0x1.921fb54400000p0) - quarters * 0x1.0b4611a626331p-34, rr = r * r;
        const double s = r * (1 + rr * (-1.0 / 6 + rr * (1.0 / 120 + rr * (-1.0 / 5040 + rr * (1.0 / 362880)))));
        const double c =
            1 + rr * (-0.5 + rr * (1.0 / 24 + rr * (-1.0 / 720 + rr * (1.0 / 40320 + rr * (-1.0 / 3628800)))));
        uint64_t quadrant;
        memcpy(&quadrant, &shifted, sizeof quadrant);
        const bool swap = quadrant & 1, minus_sin = quadrant & 2, minus_cos = (quadrant + 1) & 2;
        const double sin_part = swap ? c : s, cos_part = swap ? s : c;
        sine[i] = (float)(minus_sin ? -sin_part : sin_part);
        cosine[i] = (float)(minus_cos ? -cos_part : cos_part);
    }
}

static void turn_split(float *a, float *b, const float *cosine, const float *sine, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const float x = a[i], y = b[i];
        a[i] = x * cosine[i] - y * sine[i];
        b[i] = x * sine[i] + y * cosine[i];
    }
}

static void turn_interleaved(float *pairs, const float *cosine, const float *sine, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const float x = pairs[2 * i], y = pairs[2 * i + 1];
        pairs[2 * i] = x * cosine[i] - y * sine[i];
        pairs[2 * i + 1] = x * sine[i] + y * cosine[i];
    }
}

static void rope(float *x, uint32_t position, uint32_t n_head, uint32_t head_dim, const float *inv_freq,
                 uint32_t n_pairs, bool neox) {
    float cosine[ROPE_PAIRS], sine[ROPE_PAIRS];
    for (uint32_t first = 0; first < n_pairs; first += ROPE_PAIRS) {
        const uint32_t n = n_pairs - first < ROPE_PAIRS ? n_pairs - first : ROPE_PAIRS;
        turn_angles(position, inv_freq + first, n, cosine, sine);
        for (uint32_t h = 0; h < n_head; h++) {
            float *head = x + (size_t)h * head_dim;
            if (neox)
                turn_split(head + first, head + n_pairs + first, cosine, sine, n);
            else
                turn_interleaved(head + 2 * (size_t)first, cosine, sine, n);
        }
    }
}

/* ---- half precision --------------------------------------------------------------------------------------------- */

static void to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) vf_to_f16(out + i, vf_load(x + i));
    for (; i < n; i++) out[i] = nib_f32_to_f16(x[i]);
}

/* ---- rows of logits --------------------------------------------------------------------------------------------- */

/* The 16 values at x + i; past the end of the row, minus infinity. */
static vf logits_at(const float *x, size_t i, size_t n) {
    if (i + 16 <= n) return vf_load(x + i);
    float lanes[16];
    for (size_t j = 0; j < 16; j++) lanes[j] = i + j < n ? x[i + j] : -INFINITY;
    return vf_load(lanes);
}

/* Blocks whose largest value is no new record are not looked at again. */
static float largest(const float *x, size_t n, size_t *index) {
    enum { BLOCK = 256 };
    float best = -INFINITY;
    size_t block = 0;
    for (size_t first = 0; first < n; first += BLOCK) {
        vf most = vf_splat(-INFINITY);
        for (size_t i = first; i < first + BLOCK && i < n; i += 16) most = vf_max(logits_at(x, i, n), most);
        const float record = vf_largest(most);
        if (!(record > best)) continue;
        best = record;
        block = first;
    }
    for (*index = block; *index + 1 < n && x[*index] != best;) ++*index;
    if (n && x[*index] != best) *index = 0;
    return best;
}

/* The bits of 2^(k/16), less k << 19. */
static const uint32_t powers_of_two[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d,
};

/* Logits are taken so many at a time, step by step, so that no vector waits for its own last step. */
enum { LOGITS = 64 };
#define EACH_VECTOR NIB_UNROLL for (size_t j = 0; j < LOGITS / 16; j++)

/* e^x within 2e-7 for x <= 0, exactly 1 for 0 and 0 below -88: no step for numbers too small for a float, which vf_exp has.
 * x = (n + k / 16) ln 2 + r. Adding 1.5 * 2^19 rounds to sixteenths and leaves 16 n + k in the low bits; moved to where n
 * is an exponent, they are added to the bits of 2^(k/16), of which k has been taken off. Half the multiplications of
 * vf_exp. Where a multiply-add is rounded twice r is off by up to 6e-8 |x| more, about as much as x itself, a difference. */
NIB_INLINE void exp_of_logits(vf e[LOGITS / 16], const vf x[LOGITS / 16]) {
    const vf magic = vf_splat(0x1.8p19f), powers = vf_load((const float *)powers_of_two);
    vf clamped[LOGITS / 16], r[LOGITS / 16], square[LOGITS / 16];
    vi bits[LOGITS / 16], power[LOGITS / 16];
    EACH_VECTOR clamped[j] = vf_max(vf_splat(-88.03f), x[j]);
    EACH_VECTOR bits[j] = vi_bits(vf_fma(clamped[j], vf_splat(0x1.715476p0f), magic));
    EACH_VECTOR r[j] = vf_sub(magic, vf_bits(bits[j]));
    EACH_VECTOR r[j] = vf_fma(r[j], vf_splat(0x1.62e43p-1f), clamped[j]);
    EACH_VECTOR power[j] = vi_bits(vf_lookup16(powers, bits[j]));
    EACH_VECTOR power[j] = vi_add(power[j], vi_shl(bits[j], 19));
    EACH_VECTOR square[j] = vf_mul(r[j], r[j]);
    EACH_VECTOR e[j] = vf_fma(r[j], vf_splat(0x1.555556p-3f), vf_splat(0.5f));
    EACH_VECTOR e[j] = vf_fma(e[j], square[j], r[j]);
    EACH_VECTOR e[j] = vf_fma(vf_bits(power[j]), e[j], vf_bits(power[j]));
}

typedef struct logit_totals {
    vd exp, differences;
    vi signs; /* bits that all differences from the maximum have */
} logit_totals;

/* The first 64 of a piece. Where the base's term is 0 (a logit of minus infinity, or far below) the difference counts for
 * nothing, whatever it is. */
NIB_INLINE void add_logits(logit_totals *totals, const nib_logit_piece *piece, bool careful, bool compares) {
    vf x[LOGITS / 16], e[LOGITS / 16];
    EACH_VECTOR x[j] = vf_sub(vf_load(piece->logits + 16 * j), vf_splat(piece->max));
    EACH_VECTOR totals->signs = vi_and(vi_bits(x[j]), totals->signs);
    if (compares) {
        vf sum = vf_zero();
        EACH_VECTOR {
            const vf term = vf_load(piece->base_terms + 16 * j);
            const vf base = vf_sub(vf_load(piece->base + 16 * j), vf_splat(piece->base_max));
            sum = vf_fma(term, vf_choose(vf_lt(vf_zero(), term), vf_sub(base, x[j]), vf_zero()), sum);
        }
        totals->differences = vd_add(totals->differences, vd_of(sum));
    }
    exp_of_logits(e, x);
    if (piece->terms != NULL) EACH_VECTOR vf_store(piece->terms + 16 * j, e[j]);
    if (careful)
        EACH_VECTOR totals->exp = vd_add(totals->exp, vd_of(e[j]));
    else
        totals->exp = vd_add(totals->exp, vd_of(vf_add(vf_add(e[0], e[1]), vf_add(e[2], e[3]))));
}

/* The rest of a piece, filled up with logits that count for nothing. */
NIB_INLINE void add_last_logits(logit_totals *totals, const nib_logit_piece *piece, bool careful, bool compares) {
    _Alignas(64) float logits[LOGITS], base[LOGITS] = {0}, base_terms[LOGITS] = {0}, terms[LOGITS];
    const nib_logit_piece whole = {logits, LOGITS, piece->max, terms, base, base_terms, piece->base_max};
    for (size_t i = 0; i < LOGITS; i++) logits[i] = i < piece->n ? piece->logits[i] : -INFINITY;
    if (compares) {
        memcpy(base, piece->base, piece->n * sizeof *base);
        memcpy(base_terms, piece->base_terms, piece->n * sizeof *base_terms);
    }
    add_logits(totals, &whole, careful, compares);
    if (piece->terms != NULL) memcpy(piece->terms, terms, piece->n * sizeof *terms);
}

NIB_INLINE bool sum_logits_so(nib_logit_piece piece, bool careful, bool compares, nib_logit_sums *sums) {
    logit_totals totals = {vd_splat(0), vd_splat(0), vi_splat(-1)};
    for (; piece.n >= LOGITS; piece.n -= LOGITS) {
        add_logits(&totals, &piece, careful, compares);
        piece.logits += LOGITS;
        if (piece.terms != NULL) piece.terms += LOGITS;
        if (compares) piece.base += LOGITS, piece.base_terms += LOGITS;
    }
    if (piece.n > 0) add_last_logits(&totals, &piece, careful, compares);
    *sums = (nib_logit_sums){vd_sum(totals.exp), vd_sum(totals.differences)};
    return !vm_any(vi_lt(vi_splat(-1), totals.signs));
}

static bool sum_logits(const nib_logit_piece *piece, bool careful, nib_logit_sums *sums) {
    if (piece->base != NULL)
        return careful ? sum_logits_so(*piece, true, true, sums) : sum_logits_so(*piece, false, true, sums);
    return careful ? sum_logits_so(*piece, true, false, sums) : sum_logits_so(*piece, false, false, sums);
}

/* ---- rows of weights -------------------------------------------------------------------------------------------- */

enum { ERROR_LANES = 16 };

/* Lanes past n are left as they are. Plain loops, which every compiler turns into vectors. */
static void add_errors(const float *weights, const float *decoded, size_t n, double *restrict squares,
                       double *restrict errors, double *restrict most) {
    for (size_t j = 0; j < n; j++) {
        const double weight = (double)weights[j], difference = weight - (double)decoded[j];
        const double error = difference * difference;
        squares[j] += weight * weight;
        errors[j] += error;
        most[j] = error > most[j] ? error : most[j];
    }
}

static double fold(const double lanes[ERROR_LANES]) {
    double sums[4];
    for (unsigned j = 0; j < 4; j++) sums[j] = (lanes[j] + lanes[j + 4]) + (lanes[j + 8] + lanes[j + 12]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static nib_row_error row_error(const float *weights, const float *decoded, size_t n) {
    double squares[ERROR_LANES] = {0}, errors[ERROR_LANES] = {0}, most[ERROR_LANES] = {0};
    size_t i = 0;
    for (; i + ERROR_LANES <= n; i += ERROR_LANES)
        add_errors(weights + i, decoded + i, ERROR_LANES, squares, errors, most);
    add_errors(weights + i, decoded + i, n - i, squares, errors, most);
    for (unsigned j = 1; j < ERROR_LANES; j++) most[0] = most[j] > most[0] ? most[j] : most[0];
    return (nib_row_error){fold(squares), fold(errors), sqrt(most[0])}; /* the root of a rounded square is exact */
}

/* ---- for tests -------------------------------------------------------------------------------------------------- */

static void exp_each(float *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) vf_store(x + i, vf_exp(vf_load(x + i)));
    if (i < n) vf_store_n(x + i, vf_exp(vf_load_n(x + i, n - i)), n - i);
}

static void dp4(int32_t acc[16], const uint8_t u[64], const int8_t s[64]) {
    vi_store(acc, vi_dp4(vi_load(acc), vi_load(u), vi_load(s)));
}

extern const nib_row_kernels NIB_AT_LEVEL(nib_row_kernels_);
const nib_row_kernels NIB_AT_LEVEL(nib_row_kernels_) = {
    .norm = norm,
    .add = add,
    .swiglu = swiglu,
    .rope = rope,
    .to_f16 = to_f16,
    .row_error = row_error,
    .largest = largest,
    .sum_logits = sum_logits,
    .exp = exp_each,
    .dp4 = dp4,
};
