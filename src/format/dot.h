/* Products of a few tokens straight from the bytes of the file, without a detour through memory. A format with scales that
 * are small integers times one float, as k-quants store them, says how 256 of its weights become vectors of codes and of
 * scales; of that, NIB_DOT_WHOLE makes its `dot`, or NIB_DOT_WHOLE_CROSSED if codes lie in the order of crossed activations
 * (impl.h). Scales that are floats are in dot_halves.h.
 *
 *     code[p]: weights 64 p .. 64 p + 63, one byte each        lane i of code x activation: weights 64 p + 4 i ..
 *
 * Included by files that are compiled once per level. */
#ifndef NIB_FORMAT_DOT_H
#define NIB_FORMAT_DOT_H

#include "cpu/vec.h"
#include "format/block.h"

#define DOT_INLINE static inline __attribute__((always_inline, unused)) /* not every level uses all */
#define DOT_UNROLL NIB_UNROLL

/* Bytes are fetched so far ahead, and into the second cache: what the first cache waits for is few, and the processor's own
 * prefetching stops at every page. Half a page more than whole ones: else what is read and what is fetched come to a new page
 * at the same time. */
enum { DOT_PARTS = NIB_PANEL_K / 64, DOT_AHEAD = 6144 };

/* ---- vectors of codes ------------------------------------------------------------------------------------------- */

/* vs: 16 int16. They are made of 16 unsigned bytes, plus offset. */
#if defined(NIB_VEC_512) || defined(__AVX2__)
typedef __m256i vs;
typedef __m256 vhf; /* half a vf */

DOT_INLINE vs vs_of_bytes(words_16 bytes, int16_t offset) {
    const __m256i words = _mm256_cvtepu8_epi16((__m128i)bytes);
    return offset ? _mm256_add_epi16(words, _mm256_set1_epi16(offset)) : words;
}
/* Lane i: a[2i] b[2i] + a[2i+1] b[2i+1] */
DOT_INLINE __m256i vs_dot(vs a, const int16_t *b) {
    return _mm256_madd_epi16(a, _mm256_loadu_si256((const void *)b));
}
#endif

#if defined(NIB_VEC_512) || defined(__AVX2__)
DOT_INLINE __m128i vs_halves(const void *p, size_t stride, int repeat) {
    uint16_t half[8];
    for (int i = 0; i < 8; i++) half[i] = nib_load_u16((const uint8_t *)p + (size_t)(i / repeat) * stride);
    return _mm_setr_epi16((short)half[0], (short)half[1], (short)half[2], (short)half[3], (short)half[4],
                          (short)half[5], (short)half[6], (short)half[7]);
}
#endif

#if defined(NIB_VEC_512)
/* x, whose lower half loses y */
DOT_INLINE vf vf_minus_half(vf x, vhf y) {
    return _mm512_sub_ps(x, _mm512_zextps256_ps512(y));
}
/* x & mask | y */
DOT_INLINE vi vi_and_or(vi x, vi mask, vi y) {
    return _mm512_ternarylogic_epi32(x, mask, y, 0xea);
}
DOT_INLINE vi vi_of_byte(uint8_t x) {
    return _mm512_set1_epi8((char)x);
}
/* The same 32 bytes twice. */
DOT_INLINE vi vi_twice_32(const void *p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(p));
}
/* Bits of bytes to lower places, by `low` in the lower half and `high` in the upper (to higher places if both are negative).
 * What crosses into a neighbouring byte must be masked away. */
DOT_INLINE vi vi_down(vi x, int low, int high) {
    if (low == high)
        return low ? low > 0 ? _mm512_srli_epi16(x, (unsigned)low) : _mm512_slli_epi16(x, (unsigned)-low) : x;
    const long long a = low < 0 ? -low : low, b = high < 0 ? -high : high;
    const vi by = _mm512_set_epi64(b, b, b, b, a, a, a, a); /* rotating would do both, on the pipes that multiply */
    return low < 0 || high < 0 ? _mm512_sllv_epi64(x, by) : _mm512_srlv_epi64(x, by);
}
/* 128 bytes: the first 16 of every 32, then the last. */
DOT_INLINE void vi_cross_128(vi out[2], const void *p) {
    const vi low = vi_load(p), high = vi_load((const char *)p + 64);
    out[0] = _mm512_shuffle_i64x2(low, high, 0x88);
    out[1] = _mm512_shuffle_i64x2(low, high, 0xdd);
}
/* 64 bytes: the first 16 of every 32 twice, then the last. */
DOT_INLINE void vi_cross_64(vi out[2], const void *p) {
    const vi x = vi_load(p);
    out[0] = _mm512_shuffle_i64x2(x, x, 0xa0);
    out[1] = _mm512_shuffle_i64x2(x, x, 0xf5);
}
/* The same 16 bytes in every quarter, quarter k down by 2 k bits. */
DOT_INLINE vi vi_down_pairs(const void *p) {
    return _mm512_srlv_epi64(_mm512_broadcast_i32x4(_mm_loadu_si128(p)), _mm512_set_epi64(6, 6, 4, 4, 2, 2, 0, 0));
}
/* The second and fourth quarter down by 4 bits. */
DOT_INLINE vi vi_down_nibbles(vi x) {
    return _mm512_srlv_epi64(x, _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0));
}
/* sum + codes . activations, which may stay in memory. No code is above 128. */
DOT_INLINE vi dot_add_4(vi sum, vi code, vi activation) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(code), "vm"(activation));
    return sum;
#else
    const vi pairs = _mm512_maddubs_epi16(code, activation);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}
DOT_INLINE vi dot_4(vi code, vi activation) {
    return dot_add_4(_mm512_setzero_si512(), code, activation);
}

/* Lane i gets lane index[i / n] of the scales, n as many as share an index. */
DOT_INLINE vi dot_words(vs scale, int a, int b, int c, int d, int e, int f, int g, int h) {
    const vi index =
        _mm512_set_epi64(h * 0x1000100010001, g * 0x1000100010001, f * 0x1000100010001, e * 0x1000100010001,
                         d * 0x1000100010001, c * 0x1000100010001, b * 0x1000100010001, a * 0x1000100010001);
    return _mm512_permutexvar_epi16(index, _mm512_castsi256_si512(scale));
}
/* 16 scales as dot_scaled wants them. */
DOT_INLINE void dot_spread(vi out[DOT_PARTS], vs scale) {
#if defined(__AVX512VNNI__)
    out[0] = dot_words(scale, 0, 4, 1, 5, 2, 6, 3, 7);
    out[1] = dot_words(scale, 8, 12, 9, 13, 10, 14, 11, 15);
#else
    for (int p = 0; p < DOT_PARTS; p++) {
        const int a = 4 * p;
        out[p] = dot_words(scale, a, a, a + 1, a + 1, a + 2, a + 2, a + 3, a + 3);
    }
#endif
}
/* codes . activations times scale; no code is above 63, so that four products fit 16 bits. */
DOT_INLINE vi dot_scaled(const vi code[DOT_PARTS], const int8_t *activation, const vi scale[DOT_PARTS]) {
    vi sum[2];
    for (int p = 0; p < 2; p++) {
        const vi first = vi_load(activation + 128 * p), second = vi_load(activation + 128 * p + 64);
#if defined(__AVX512VNNI__)
        const vi both = _mm512_packs_epi32(dot_4(code[2 * p], first), dot_4(code[2 * p + 1], second));
        sum[p] = _mm512_madd_epi16(both, scale[p]);
#else
        sum[p] = _mm512_add_epi32(_mm512_madd_epi16(_mm512_maddubs_epi16(code[2 * p], first), scale[2 * p]),
                                  _mm512_madd_epi16(_mm512_maddubs_epi16(code[2 * p + 1], second), scale[2 * p + 1]));
#endif
    }
    return _mm512_add_epi32(sum[0], sum[1]);
}
/* Scales of crossed codes, as dot_scaled_crossed wants them. */
DOT_INLINE void dot_spread_crossed(vi out[2], vs scale, int group) {
    if (group == 32) {
        out[0] = dot_words(scale, 0, 1, 2, 3, 4, 5, 6, 7);
    } else {
        out[0] = dot_words(scale, 0, 1, 4, 5, 8, 9, 12, 13);
        out[1] = dot_words(scale, 2, 3, 6, 7, 10, 11, 14, 15);
    }
}
/* begin + crossed codes . activations times scale; no code is above 32. */
DOT_INLINE vi dot_scaled_crossed(vi begin, const vi code[DOT_PARTS], const int8_t *x, const vi scale[2], int group) {
    vi sum[DOT_PARTS];
    sum[0] = dot_4(code[0], vi_load(x));
    sum[2] = dot_4(code[2], vi_load(x + 128));
    if (group == 32) {
        sum[0] = dot_add_4(sum[0], code[1], vi_load(x + 64));
        sum[2] = dot_add_4(sum[2], code[3], vi_load(x + 192));
        return vi_dp2(begin, _mm512_packs_epi32(sum[0], sum[2]), scale[0]);
    }
    sum[1] = dot_4(code[1], vi_load(x + 64));
    sum[3] = dot_4(code[3], vi_load(x + 192));
    begin = vi_dp2(begin, _mm512_packs_epi32(sum[0], sum[1]), scale[0]);
    return vi_dp2(begin, _mm512_packs_epi32(sum[2], sum[3]), scale[1]);
}
/* The lower half of a vector. */
DOT_INLINE vi vi_of_half(__m256i x) {
    return _mm512_zextsi256_si512(x);
}
DOT_INLINE vf vf_spread_of(vf table, int part, int group) {
    const vi step = group == 32 ? _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
                                : _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(_mm512_add_epi32(step, _mm512_set1_epi32(part * (64 / group))), table);
}
#elif defined(__AVX2__)
DOT_INLINE vi vi_and_or(vi x, vi mask, vi y) {
    x = vi_and(x, mask);
    return NIB_BOTH2(vi, _mm256_or_si256, x, y);
}
DOT_INLINE vi vi_of_byte(uint8_t x) {
    return (vi){_mm256_set1_epi8((char)x), _mm256_set1_epi8((char)x)};
}
DOT_INLINE vi vi_twice_32(const void *p) {
    return (vi){_mm256_loadu_si256(p), _mm256_loadu_si256(p)};
}
DOT_INLINE __m256i half_down(__m256i x, int n) {
    return n == 0 ? x : n > 0 ? _mm256_srli_epi64(x, n) : _mm256_slli_epi64(x, -n);
}
DOT_INLINE vi vi_down(vi x, int low, int high) {
    return (vi){half_down(x.a, low), half_down(x.b, high)};
}
DOT_INLINE void vi_cross_128(vi out[2], const void *p) {
    const vi low = vi_load(p), high = vi_load((const char *)p + 64);
    out[0] = (vi){_mm256_permute2x128_si256(low.a, low.b, 0x20), _mm256_permute2x128_si256(high.a, high.b, 0x20)};
    out[1] = (vi){_mm256_permute2x128_si256(low.a, low.b, 0x31), _mm256_permute2x128_si256(high.a, high.b, 0x31)};
}
DOT_INLINE void vi_cross_64(vi out[2], const void *p) {
    const vi x = vi_load(p);
    out[0] = (vi){_mm256_permute2x128_si256(x.a, x.a, 0x00), _mm256_permute2x128_si256(x.b, x.b, 0x00)};
    out[1] = (vi){_mm256_permute2x128_si256(x.a, x.a, 0x11), _mm256_permute2x128_si256(x.b, x.b, 0x11)};
}
DOT_INLINE vi vi_down_pairs(const void *p) {
    const __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128(p));
    return (vi){_mm256_srlv_epi64(x, _mm256_set_epi64x(2, 2, 0, 0)),
                _mm256_srlv_epi64(x, _mm256_set_epi64x(6, 6, 4, 4))};
}
DOT_INLINE vi vi_down_nibbles(vi x) {
    const __m256i by = _mm256_set_epi64x(4, 4, 0, 0);
    return (vi){_mm256_srlv_epi64(x.a, by), _mm256_srlv_epi64(x.b, by)};
}
/* Lanes a and b of scale, each for 16 codes; both below 8, or neither. */
DOT_INLINE __m256i half_spread(vs scale, int a, int b) {
    const __m256i eight =
        a < 8 ? _mm256_permute2x128_si256(scale, scale, 0x00) : _mm256_permute2x128_si256(scale, scale, 0x11);
    const int first = 2 * (a % 8), second = 2 * (b % 8);
    const short low = (short)(first | (first + 1) << 8), high = (short)(second | (second + 1) << 8);
    return _mm256_shuffle_epi8(eight, _mm256_set_m128i(_mm_set1_epi16(high), _mm_set1_epi16(low)));
}
DOT_INLINE void dot_spread(vi out[DOT_PARTS], vs scale) {
    for (int p = 0; p < DOT_PARTS; p++)
        out[p] = (vi){half_spread(scale, 4 * p, 4 * p + 1), half_spread(scale, 4 * p + 2, 4 * p + 3)};
}
DOT_INLINE void dot_spread_crossed(vi out[DOT_PARTS], vs scale, int group) {
    for (int p = 0; p < DOT_PARTS; p++) {
        const int a = group == 32 ? p / 2 : p, step = 64 / group;
        out[p] = (vi){half_spread(scale, a, a + step), half_spread(scale, a + 2 * step, a + 3 * step)};
    }
}
DOT_INLINE __m256i half_scaled(__m256i code, __m256i activation, __m256i scale) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(code, activation), scale);
}
DOT_INLINE vi dot_scaled(const vi code[DOT_PARTS], const int8_t *activation, const vi scale[DOT_PARTS]) {
    vi sum = vi_splat(0);
    for (int p = 0; p < DOT_PARTS; p++) {
        const vi x = vi_load(activation + 64 * p);
        sum = vi_add(sum, (vi){half_scaled(code[p].a, x.a, scale[p].a), half_scaled(code[p].b, x.b, scale[p].b)});
    }
    return sum;
}
DOT_INLINE vi dot_scaled_crossed(vi begin, const vi code[DOT_PARTS], const int8_t *x, const vi scale[DOT_PARTS],
                                 int group) {
    (void)group;
    return vi_add(begin, dot_scaled(code, x, scale));
}
DOT_INLINE vf vf_minus_half(vf x, vhf y) {
    return (vf){_mm256_sub_ps(x.a, y), x.b};
}
DOT_INLINE vi vi_of_half(__m256i x) {
    return (vi){x, _mm256_setzero_si256()};
}
DOT_INLINE vf vf_spread_of(vf table, int part, int group) {
    if (group == 32)
        return (vf){_mm256_permutevar8x32_ps(table.a, _mm256_set1_epi32(2 * part)),
                    _mm256_permutevar8x32_ps(table.a, _mm256_set1_epi32(2 * part + 1))};
    const __m256 eight = part < 2 ? table.a : table.b;
    const int a = part % 2 * 4;
    return (vf){
        _mm256_permutevar8x32_ps(eight, _mm256_set_epi32(a + 1, a + 1, a + 1, a + 1, a, a, a, a)),
        _mm256_permutevar8x32_ps(eight, _mm256_set_epi32(a + 3, a + 3, a + 3, a + 3, a + 2, a + 2, a + 2, a + 2))};
}
#else
/* Levels without such vectors unpack; these names let the formats' readers stand as they are, none of which is used. */
#define NIB_NO_DOT 1
typedef struct vs {
    int16_t word[16];
} vs;
vs vs_of_bytes(words_16 bytes, int16_t offset);
vi vi_and_or(vi x, vi mask, vi y);
vi vi_of_byte(uint8_t x);
vi vi_twice_32(const void *p);
vi vi_down(vi x, int low, int high);
vi vi_down_pairs(const void *p);
void vi_cross_128(vi out[2], const void *p);
void vi_cross_64(vi out[2], const void *p);
vi vi_down_nibbles(vi x);

DOT_INLINE vf vf_spread_of(vf table, int part, int group) {
    float from[16];
    vf_store(from, table);
    return vf_spread(from, part, group / 4);
}
#endif

/* ---- rows of weights -------------------------------------------------------------------------------------------- */

/* weight i = d * scale[i / group] * code - d_min * min[i / group]. Groups of 32 have their 8 minimums in the upper half of
 * scale, and no min. */
typedef struct dot_whole {
    vi code[DOT_PARTS];
    vs scale, min;
    float d, d_min;
} dot_whole;

/* weight i = scale[i / group] * code - min[i / group], as unpack gives them */
typedef struct dot_groups {
    vi code[DOT_PARTS];
    vf scale, min; /* the first 256 / group; the others are finite, and do not count */
} dot_groups;

#if !defined(NIB_NO_DOT)
/* d and d_min next to each other. */
DOT_INLINE void dot_read_d(dot_whole *w, const void *halves) {
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128((int)nib_load_u32(halves)));
    w->d = _mm_cvtss_f32(both);
    w->d_min = _mm_cvtss_f32(_mm_movehdup_ps(both));
}
#else
void dot_read_d(dot_whole *w, const void *halves);
#endif

DOT_INLINE void dot_fetch(const char *at, size_t bytes) {
    DOT_UNROLL for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + DOT_AHEAD + i, 0, 2);
}

#if !defined(NIB_NO_DOT)
/* A token's sums: of codes, and of minimums. */
typedef struct dot_totals {
    vf code;
    vhf min;
} dot_totals;

/* What is constant in a format with blocks of 256. */
typedef struct dot_kind {
    int group;    /* weights per scale */
    bool crossed; /* codes lie like the activations of that name, up to 32; else in order, up to 63, and group is 16 */
    int centre;   /* crossed, and if not 0: the offset of all codes, and there are no minimums */
} dot_kind;

/* total[t] += 256 weights times those of token t; tokens are `stride` blocks apart. */
DOT_INLINE void dot_whole_step(const dot_whole *w, const nib_int_row *row, size_t stride, size_t n_tokens,
                               dot_kind kind, dot_totals total[NIB_DOT_TOKENS]) {
    vi scale[DOT_PARTS];
    vs min = kind.group == 16 ? w->min : w->scale;
    if (kind.centre) min = _mm256_mullo_epi16(w->scale, _mm256_set1_epi16((short)-kind.centre));
    if (kind.crossed)
        dot_spread_crossed(scale, w->scale, kind.group);
    else
        dot_spread(scale, w->scale);
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++, row += stride) {
        const __m256i of_min = vs_dot(min, kind.group == 16 ? row->in_order.whole16 : row->in_order.whole32);
        vi begin = vi_splat(0), sum;
        if (kind.centre)
            begin = vi_of_half(of_min);
        else
            total[t].min = _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_min),
                                           _mm256_set1_ps(w->d_min * row->in_order.scale[0]), total[t].min);
        sum = kind.crossed ? dot_scaled_crossed(begin, w->code, row->crossed, scale, kind.group)
                           : dot_scaled(w->code, row->in_order.code, scale);
        total[t].code = vf_fma(vi_to_f(sum), vf_splat(w->d * row->in_order.scale[0]), total[t].code);
    }
}
#endif

DOT_INLINE void dot_groups_step(const dot_groups *w, const nib_int_row *row, size_t stride, size_t n_tokens, int group,
                                vf total[NIB_DOT_TOKENS]) {
    const vf minus_min = vf_sub(vf_zero(), w->min);
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++, row += stride) {
        const vf other = vf_load(row->in_order.scale), both = group == 32 ? vf_mul(w->scale, other) : w->scale;
        vf part[DOT_PARTS], factor[DOT_PARTS]; /* sums of two, so that no sum waits long for the one before */
        DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) {
            part[p] = vi_to_f(vi_dp4(vi_splat(0), w->code[p], vi_load(row->in_order.code + 64 * p)));
            factor[p] = vf_spread_of(both, p, group);
            if (group == 16) factor[p] = vf_mul(factor[p], vf_spread_of(other, p, 32));
        }
        const vf even = vf_fma(part[2], factor[2], vf_mul(part[0], factor[0]));
        const vf odd = vf_fma(part[3], factor[3], vf_mul(part[1], factor[1]));
        total[t] = vf_fma(minus_min, vf_load(group == 16 ? row->sum16 : row->in_order.sum32), total[t]);
        total[t] = vf_add(total[t], vf_add(even, odd));
    }
}

#if defined(NIB_VEC_512)
/* The same weights for unpack. */
DOT_INLINE void dot_write_codes(nib_codes *out, const dot_whole *w, int group) {
    const vf word = vi_to_f(_mm512_cvtepi16_epi32(w->scale));
    const __mmask16 used = group == 16 ? 0xffff : 0xff;
    for (int p = 0; p < DOT_PARTS; p++) vi_store(out->code + 64 * p, w->code[p]);
    _mm512_mask_storeu_ps(out->scale, used, vf_mul(word, vf_splat(w->d)));
    _mm512_mask_storeu_ps(out->min, used, vf_mul(word, vf_splat(w->d_min)));
}
#endif

/* What unpack left in memory. */
DOT_INLINE void dot_read_codes(dot_groups *w, const nib_codes *codes) {
    DOT_UNROLL for (int p = 0; p < DOT_PARTS; p++) w->code[p] = vi_load(codes->code + 64 * p);
    w->scale = vf_load(codes->scale);
    w->min = vf_load(codes->min);
}

/* Rows' totals, lane by lane, until there are 16 to be added up at once: then a row costs a fraction of a sum of its own,
 * which counts where rows are short. */
typedef struct dot_rows {
    _Alignas(64) float lanes[NIB_DOT_TOKENS][NIB_LANES][NIB_LANES];
} dot_rows;

/* Adds up the first n_lanes (a constant, 8 or 16) of the rows since the last time, up to row r, and puts out the sums. */
DOT_INLINE void dot_put(const nib_dot_task *task, const dot_rows *rows, size_t r, size_t n_tokens, size_t n_lanes) {
    const size_t first = r / NIB_LANES * NIB_LANES, n = r - first + 1;
    if (n < NIB_LANES && r + 1 < task->n_rows) return;
    const vf bias = task->bias ? vf_load_n(task->bias + first, n) : vf_zero();
    for (size_t t = 0; t < n_tokens; t++) {
        vf sum = bias;
        DOT_UNROLL for (size_t i = 0; i < n_lanes; i += 4) {
            vi four[4];
            vi_turn(four, rows->lanes[t][0] + i, sizeof rows->lanes[t][0]);
            sum = vf_add(
                sum, vf_add(vf_add(vf_bits(four[0]), vf_bits(four[1])), vf_add(vf_bits(four[2]), vf_bits(four[3]))));
        }
        vf_store_n(task->out + t * task->out_stride + first, sum, n);
    }
}

/* The totals of row r, the next one. */
DOT_INLINE void dot_store(const nib_dot_task *task, dot_rows *rows, size_t r, size_t n_tokens,
                          const vf total[NIB_DOT_TOKENS]) {
    DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) vf_store(rows->lanes[t][r % NIB_LANES], total[t]);
    dot_put(task, rows, r, n_tokens, NIB_LANES);
}

typedef void dot_read_whole(dot_whole *w, const void *src);

#if !defined(NIB_NO_DOT)
/* Rows of formats with blocks of 256. Everything but the task is a constant at every call. */
DOT_INLINE void dot_rows_whole(const nib_dot_task *task, size_t n_tokens, dot_read_whole *read, size_t bytes,
                               dot_kind kind) {
    const size_t n_blocks = task->n_cols / NIB_PANEL_K;
    dot_rows rows;
    for (size_t r = 0; r < task->n_rows; r++) {
        const char *at = (const char *)task->weights + r * task->row_bytes;
        const nib_int_row *row = task->packed;
        dot_totals total[NIB_DOT_TOKENS];
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = (dot_totals){vf_zero(), _mm256_setzero_ps()};
        for (size_t b = 0; b < n_blocks; b++, at += bytes, row++) {
            dot_whole w;
            dot_fetch(at, bytes);
            read(&w, at);
            dot_whole_step(&w, row, n_blocks, n_tokens, kind, total);
        }
        vf sum[NIB_DOT_TOKENS];
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) sum[t] =
            kind.centre ? total[t].code : vf_minus_half(total[t].code, total[t].min);
        dot_store(task, &rows, r, n_tokens, sum);
    }
}
#endif

typedef vf dot_read_floats(const void *src);

/* Rows of floats, 16 of which are `bytes`; the rest of a row is decoded to memory. */
DOT_INLINE void dot_rows_floats(const nib_format *format, const nib_dot_task *task, size_t n_tokens,
                                dot_read_floats *read, size_t bytes) {
    enum { CHAINS = 4 };
    const size_t stride = (task->n_cols + (size_t)NIB_PANEL_K - 1) / NIB_PANEL_K * NIB_PANEL_K;
    const size_t step = (size_t)CHAINS * NIB_LANES, n_whole = task->n_cols / step * step;
    dot_rows rows;
    for (size_t r = 0; r < task->n_rows; r++) {
        const char *at = (const char *)task->weights + r * task->row_bytes;
        const float *x = task->packed;
        vf total[NIB_DOT_TOKENS], chain[CHAINS - 1][NIB_DOT_TOKENS];
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] = chain[0][t] = chain[1][t] = chain[2][t] = vf_zero();
        for (size_t k = 0; k < n_whole; k += step, at += CHAINS * bytes, x += step) {
            dot_fetch(at, CHAINS * bytes);
            const vf w[CHAINS] = {read(at), read(at + bytes), read(at + 2 * bytes), read(at + 3 * bytes)};
            DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) {
                total[t] = vf_fma(w[0], vf_load(x + t * stride), total[t]);
                chain[0][t] = vf_fma(w[1], vf_load(x + t * stride + 16), chain[0][t]);
                chain[1][t] = vf_fma(w[2], vf_load(x + t * stride + 32), chain[1][t]);
                chain[2][t] = vf_fma(w[3], vf_load(x + t * stride + 48), chain[2][t]);
            }
        }
        if (n_whole < task->n_cols) {
            float rest[CHAINS * NIB_LANES] = {0};
            format->decode(format, rest, at, task->n_cols - n_whole);
            for (size_t i = 0; i < step; i += NIB_LANES)
                DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] =
                    vf_fma(vf_load(rest + i), vf_load(x + t * stride + i), total[t]);
        }
        DOT_UNROLL for (size_t t = 0; t < n_tokens; t++) total[t] =
            vf_add(vf_add(total[t], chain[0][t]), vf_add(chain[1][t], chain[2][t]));
        dot_store(task, &rows, r, n_tokens, total);
    }
}

/* The call with n a constant: the task's number of tokens. */
#define NIB_DOT_EACH(task, n, call) \
    switch ((task)->n_tokens) {     \
    case 1: {                       \
        enum { n = 1 };             \
        call;                       \
        break;                      \
    }                               \
    case 2: {                       \
        enum { n = 2 };             \
        call;                       \
        break;                      \
    }                               \
    case 3: {                       \
        enum { n = 3 };             \
        call;                       \
        break;                      \
    }                               \
    case 4: {                       \
        enum { n = 4 };             \
        call;                       \
        break;                      \
    }                               \
    case 5: {                       \
        enum { n = 5 };             \
        call;                       \
        break;                      \
    }                               \
    }

/* The `dot` of a format: name; how 256 weights are read and how many bytes they are; crossed: weights per scale, and the offset
 * of all codes, 0 if there are minimums. Not crossed: see dot_kind. */
#if defined(NIB_NO_DOT)
#define NIB_DOT_WHOLE(...)
#define NIB_DOT_WHOLE_CROSSED(...)
#define NIB_DOT_FLOATS(...)
#define NIB_DOT(name) NULL
#else
#define NIB_DOT(name) name
#define NIB_DOT_KIND(name, read, bytes, ...)                               \
    static void name(const nib_format *format, const nib_dot_task *task) { \
        const dot_kind kind = {__VA_ARGS__};                               \
        (void)format;                                                      \
        NIB_DOT_EACH(task, n, dot_rows_whole(task, n, read, bytes, kind))  \
    }
#define NIB_DOT_WHOLE(name, read, bytes)                        NIB_DOT_KIND(name, read, bytes, 16, false, 0)
#define NIB_DOT_WHOLE_CROSSED(name, read, bytes, group, centre) NIB_DOT_KIND(name, read, bytes, group, true, centre)
#define NIB_DOT_FLOATS(name, read, bytes)                                    \
    static void name(const nib_format *format, const nib_dot_task *task) {   \
        NIB_DOT_EACH(task, n, dot_rows_floats(format, task, n, read, bytes)) \
    }
#endif

#endif
