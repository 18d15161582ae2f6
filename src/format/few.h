/* Products of a few tokens with 16 rows of weights at once. A format says once how 256 columns of 16 rows are cut from the
 * words of the file (its `cut_rows`): `turn` writes them to a panel in memory, which pays with many tokens, and `few` multiplies
 * every vector of codes as soon as it is in a register, so that neither storing panels nor reading them back takes time.
 *
 * The arithmetic is that of the panels' register tiles (kernel/level_gemm.c), and so are the results, bit for bit.
 * Included by files that are compiled once per level; levels that take more than an instruction for the products of four
 * bytes, or have fewer registers, have no `few`. */
#ifndef NIB_FORMAT_FEW_H
#define NIB_FORMAT_FEW_H

#include "format/panel.h"

#define FEW_INLINE static inline __attribute__((always_inline, unused))

enum { FEW_AHEAD = 8 }; /* words turned before any products */

/* Where `cut_rows` puts what it finds. */
typedef struct panel_sink {
    nib_panel *panel; /* scales and minimums, and, if n_tokens is 0, codes */
    nib_panel_shape shape;
    bool per_32; /* activations have a scale per 32 columns */
    size_t n_tokens;
    const nib_few_row *row; /* one for every token */
    const char *ahead;      /* what memory is asked for meanwhile, a step with every vector of codes */
    size_t ahead_step;
    const char *next; /* and what the first cache is, four steps for every row */
    size_t next_stride, next_step;
    const uint8_t *src; /* rows whose words are turned meanwhile */
    size_t src_stride;
    vi dot[2][NIB_FEW_TOKENS], whole[NIB_FEW_TOKENS];
    vf total[NIB_FEW_TOKENS];
} panel_sink;

#define EACH_TOKEN PANEL_UNROLL for (size_t t = 0; t < sink->n_tokens; t++)

/* sum + codes . the same four activations in every lane */
FEW_INLINE vi few_dot(vi sum, vi codes, const int8_t *activation) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*(const int32_t *)(const void *)activation));
    return sum;
#else
    return vi_dp4(sum, codes, vi_splat_4(activation));
#endif
}

/* Two groups of columns at most are open at once, one in each slot. */
FEW_INLINE void open_group(panel_sink *sink, unsigned group, unsigned slot) {
    const nib_panel_shape shape = sink->shape;
    EACH_TOKEN {
        const nib_few_row *row = sink->row + t;
        sink->dot[slot][t] = vi_splat(0);
        if (!shape.centre) continue;
        const int32_t *minus_sum = shape.group == 16   ? row->minus_sum16 + group
                                   : shape.group == 32 ? row->minus_sum32 + group
                                                       : &row->minus_sum256;
        sink->dot[slot][t] = vi_shl(vi_splat(*minus_sum), __builtin_ctz(shape.centre));
    }
}

/* Words are turned between the products, which would have to wait if they were turned in a row: the processor looks no
 * further ahead than one group. A step for every word, and before the k-th vector of codes is cut there have been so many;
 * formats cut codes at an even pace. */
FEW_INLINE unsigned words_before(unsigned n_words, unsigned k) {
    const unsigned n = FEW_AHEAD + (k * n_words + 63) / 64;
    return n < n_words ? n : n_words;
}
FEW_INLINE void turn_word(const panel_sink *sink, vi *word, unsigned i) {
    turn_step(word + i / 4 * 4, sink->src + i / 4 * 16, sink->src_stride, i % 4);
}
/* Before the k-th vector of codes is cut. */
FEW_INLINE void turn_on(const panel_sink *sink, vi *word, unsigned n_words, unsigned k) {
    const unsigned from = words_before(n_words, k), n = words_before(n_words, k + 1) - from;
    if (n > 0) turn_word(sink, word, from);
    if (n > 1) turn_word(sink, word, from + 1);
}
FEW_INLINE void begin_words(panel_sink *sink, vi *word, const void *src, size_t stride) {
    sink->src = src;
    sink->src_stride = stride;
    PANEL_UNROLL for (unsigned i = 0; i < FEW_AHEAD; i++) turn_word(sink, word, i);
}

/* Columns 4 k .. 4 k + 3, of the group in this slot. */
FEW_INLINE void give_codes(panel_sink *sink, unsigned k, unsigned slot, vi codes) {
    if (!sink->n_tokens) {
        vi_store(sink->panel->code[k], codes);
        return;
    }
    __builtin_prefetch(sink->ahead + k * sink->ahead_step, 0, 2);
    __builtin_prefetch(sink->next + k / 4 * sink->next_stride + k % 4 * sink->next_step, 0, 3);
    EACH_TOKEN sink->dot[slot][t] = few_dot(sink->dot[slot][t], codes, sink->row[t].code + 4 * (size_t)k);
}

/* Its scale must be in the panel by now. */
FEW_INLINE void close_group(panel_sink *sink, unsigned group, unsigned slot) {
    if (!sink->n_tokens) return;
    if (sink->shape.whole) {
        const vi both = vi_load(sink->panel->whole[group / 2]), scale = vi_sar(group % 2 ? both : vi_shl(both, 16), 16);
        EACH_TOKEN {
            sink->whole[t] = vi_add(sink->whole[t], vi_mul(sink->dot[slot][t], scale));
            NIB_PIN(sink->whole[t]);
        }
        return;
    }
    const vf scale = vf_load(sink->panel->scale[group]);
    EACH_TOKEN {
        const float activation = sink->row[t].scale[group * sink->shape.group / 32];
        const vf factor = sink->per_32 ? vf_mul(scale, vf_splat(activation)) : scale;
        sink->total[t] = vf_fma(vi_to_f(sink->dot[slot][t]), factor, sink->total[t]);
        NIB_PIN(sink->total[t]);
    }
}

/* Sixteen bytes of nibbles (from `byte` on) are a group's 32 codes: low halves the first 16, high halves the others. The words
 * that follow are turned meanwhile. */
FEW_INLINE void give_nibbles_32(panel_sink *sink, unsigned group, vi *word, unsigned n_words, unsigned byte) {
    open_group(sink, group, 0);
    PANEL_UNROLL for (unsigned j = 0; j < 8; j++) {
        turn_on(sink, word, n_words, 8 * group + j);
        give_codes(sink, 8 * group + j % 2 * 4 + j / 2, 0,
                   cut_bytes(word_at(word, byte + 4 * (j / 2)), j % 2 ? 4 : 0, 15));
    }
    close_group(sink, group, 0);
}
/* The same through a table of 16 bytes, of words that have been turned. */
FEW_INLINE void give_looked_up_32(panel_sink *sink, unsigned group, const vi *word, unsigned byte, const void *table) {
    open_group(sink, group, 0);
    PANEL_UNROLL for (unsigned j = 0; j < 4; j++) {
        const vi both = word_at(word, byte + 4 * j);
        give_codes(sink, 8 * group + j, 0, vi_look_up(table, cut_bytes(both, 0, 15)));
        give_codes(sink, 8 * group + 4 + j, 0, vi_look_up(table, cut_bytes(both, 4, 15)));
    }
    close_group(sink, group, 0);
}
/* Nibbles with fifth bits: bit i of `high` belongs to code i. */
FEW_INLINE void give_five_bits_32(panel_sink *sink, unsigned group, vi *word, unsigned n_words, unsigned byte,
                                  vi high) {
    open_group(sink, group, 0);
    PANEL_UNROLL for (unsigned j = 0; j < 8; j++) {
        turn_on(sink, word, n_words, 8 * group + j);
        const vi four = cut_bytes(word_at(word, byte + 4 * (j % 4)), j < 4 ? 0 : 4, 15);
        give_codes(sink, 8 * group + j, 0, vi_or(four, fifth_bits_at(high, j)));
    }
    close_group(sink, group, 0);
}

/* total -= minimums * sums of activations, or d_min times that */
FEW_INLINE void few_float_minimums(panel_sink *sink) {
    for (size_t g = 0; g < NIB_PANEL_K / 32; g++) {
        const vf minus_min = vf_load(sink->panel->minus_min[g]);
        EACH_TOKEN sink->total[t] = vf_fma(minus_min, vf_splat(sink->row[t].sum32[g]), sink->total[t]);
    }
}
FEW_INLINE void few_minimums(panel_sink *sink) {
    const bool by_16 = sink->shape.min_group == 16;
    vi min[NIB_FEW_TOKENS];
    EACH_TOKEN min[t] = vi_splat(0);
    for (size_t i = 0; i < (by_16 ? 8 : 4); i++) {
        const vi of_rows = vi_load(sink->panel->min[i]);
        EACH_TOKEN {
            const nib_few_row *row = sink->row + t;
            const int16_t *pair = by_16 ? row->whole16 + 2 * i : row->whole32 + NIB_PANEL_K / 32 + 2 * i;
            min[t] = vi_dp2(min[t], of_rows, vi_splat_4(pair));
        }
    }
    const vf minus_d_min = vf_load(sink->panel->minus_d_min);
    EACH_TOKEN sink->total[t] = vf_fma(vi_to_f(min[t]), minus_d_min, sink->total[t]);
}

typedef void panel_cut_fn(panel_sink *sink, const void *src, size_t stride);

/* All but the task are constants at every call. */
FEW_INLINE void few_columns(panel_cut_fn *cut_rows, nib_panel_shape shape, bool per_32, size_t n_tokens,
                            const nib_few_task *task) {
    nib_panel panel;
    panel_sink here = {.panel = &panel,
                       .shape = shape,
                       .per_32 = per_32,
                       .n_tokens = n_tokens,
                       .row = task->row,
                       .ahead = task->ahead,
                       .ahead_step = task->ahead_step,
                       .next = task->next,
                       .next_stride = task->stride,
                       .next_step = task->next_step},
               *sink = &here;
    EACH_TOKEN {
        sink->whole[t] = vi_splat(0);
        sink->total[t] = vf_zero();
    }
    if (shape.group == NIB_PANEL_K) open_group(sink, 0, 0);
    cut_rows(sink, task->src, task->stride);
    if (shape.group == NIB_PANEL_K) close_group(sink, 0, 0);
    if (shape.whole) {
        const vf d = vf_load(panel.d);
        EACH_TOKEN sink->total[t] = vf_mul(vi_to_f(sink->whole[t]), d);
    }
    if (shape.min_group && per_32)
        few_float_minimums(sink);
    else if (shape.min_group)
        few_minimums(sink);
    EACH_TOKEN {
        const vf before = vf_load(task->sums[t]), factor = vf_splat(sink->row[t].scale[0]);
        vf_store(task->sums[t], per_32 ? vf_add(sink->total[t], before) : vf_fma(sink->total[t], factor, before));
    }
}

/* The `turn` of a format that has `few` too: how it cuts, and the panel's shape. */
#define NIB_TURN(name, cut_rows, ...)                                                                              \
    static void name(const nib_format *format, nib_panel *restrict out, const void *restrict src, size_t stride) { \
        panel_sink sink;                                                                                           \
        (void)format;                                                                                              \
        sink.panel = out;                                                                                          \
        sink.shape = (nib_panel_shape)__VA_ARGS__;                                                                 \
        sink.n_tokens = 0;                                                                                         \
        cut_rows(&sink, src, stride);                                                                              \
    }

/* The `few` of a format: from how many tokens to how many it is fastest, how the format cuts, whether activations have a
 * scale per 32 columns, and the panel's shape. */
#if defined(NIB_VEC_512) && defined(__AVX512VNNI__)
#define FEW_WIDTH(name, n, cut_rows, per_32, ...)                             \
    static void name##_##n(const nib_few_task *task) {                        \
        few_columns(cut_rows, (nib_panel_shape)__VA_ARGS__, per_32, n, task); \
    }
#define NIB_FEW(name, from, to, cut_rows, per_32, ...) \
    FEW_WIDTH(name, 2, cut_rows, per_32, __VA_ARGS__)  \
    FEW_WIDTH(name, 3, cut_rows, per_32, __VA_ARGS__)  \
    FEW_WIDTH(name, 4, cut_rows, per_32, __VA_ARGS__)  \
    FEW_WIDTH(name, 5, cut_rows, per_32, __VA_ARGS__)  \
    FEW_WIDTH(name, 6, cut_rows, per_32, __VA_ARGS__)  \
    FEW_WIDTH(name, 7, cut_rows, per_32, __VA_ARGS__)  \
    FEW_WIDTH(name, 8, cut_rows, per_32, __VA_ARGS__)  \
    static const nib_few name = {                      \
        from, to, {NULL, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}};
#define NIB_FEW_OF(name) &name
#else
#define NIB_FEW(name, from, to, cut_rows, per_32, ...)
#define NIB_FEW_OF(name) NULL
#endif

#endif
