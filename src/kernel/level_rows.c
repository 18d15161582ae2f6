/* Element by element and row by row: normalization, residual sum, activation, rotary embedding, log-softmax, divergence.
 * Sums run in 16 lanes and are folded in one order, so results depend on nothing but the numbers. */
#include "cpu/vec.h"
#include "kernel/level.h"
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

static float largest(const float *x, uint32_t n) {
    vf most = vf_splat(-INFINITY);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) most = vf_max(vf_load(x + i), most);
    float best = vf_largest(most);
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* The 16 values at x + i; past the end of the row, lanes that count for nothing. */
static vf logits_at(const float *x, uint32_t i, uint32_t n, float padding) {
    if (i + 16 <= n) return vf_load(x + i);
    float lanes[16];
    for (uint32_t j = 0; j < 16; j++) lanes[j] = i + j < n ? x[i + j] : padding;
    return vf_load(lanes);
}

static nib_row_norm row_norm(const float *logits, uint32_t n) {
    nib_row_norm norm_of = {.max = largest(logits, n)};
    while (norm_of.argmax + 1 < n && logits[norm_of.argmax] != norm_of.max) norm_of.argmax++;
    if (n && logits[norm_of.argmax] != norm_of.max) norm_of.argmax = 0;
    if (!(norm_of.max > -INFINITY)) return norm_of; /* nothing has any probability */
    vd sum = vd_splat(0);
    for (uint32_t i = 0; i < n; i += 16)
        sum = vd_add(sum, vd_of(vf_exp(vf_sub(logits_at(logits, i, n, -INFINITY), vf_splat(norm_of.max)))));
    norm_of.log_sum = log(vd_sum(sum));
    return norm_of;
}

/* Where p is 0 (a logit of minus infinity, or far below) the term is 0, whatever q is. */
static double row_kld(const float *base, const nib_row_norm *base_norm, const float *test,
                      const nib_row_norm *test_norm, uint32_t n) {
    if (!(base_norm->max > -INFINITY)) return 0;
    const double constant = (double)base_norm->max + base_norm->log_sum - ((double)test_norm->max + test_norm->log_sum);
    const vf shift = vf_splat(base_norm->max);
    vd sum = vd_splat(0);
    for (uint32_t i = 0; i < n; i += 16) {
        const vf a = logits_at(base, i, n, -INFINITY), b = logits_at(test, i, n, 0);
        const vd p = vd_of(vf_exp(vf_sub(a, shift)));
        const vd ratio = vd_sub(vd_sub(vd_of(a), vd_of(b)), vd_splat(constant));
        sum = vd_add(sum, vd_mul_nonzero(p, ratio));
    }
    return vd_sum(sum) / exp(base_norm->log_sum);
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
    .row_norm = row_norm,
    .row_kld = row_kld,
    .row_error = row_error,
    .exp = exp_each,
    .dp4 = dp4,
};
