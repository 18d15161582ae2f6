/* The map of the grid family: bits x symmetry x block against bits per weight and divergence. */
#include "study/pictures.h"

#include <math.h>
#include <stdio.h>

enum { N_KINDS = 3, N_BLOCKS = 4, FEWEST_BITS = 2, MOST_BITS = 8 };

/* A place in the family, from the id that spec and file format fix: kind, bits and logarithm of the block. */
typedef struct place {
    unsigned kind, bits, block;
} place;

static bool place_of(const nib_eval_model *model, place *out) {
    const nib_format *format = nib_format_find(model->format);
    const uint32_t type = format != NULL ? nib_format_facts_of(format)->gguf_type : 0;
    *out = (place){type >> 12 & 15, type >> 4 & 15, (type & 15) - 5};
    return nib_format_is_grid(format) && isfinite(model->kld.mean) && model->kld.mean > 0;
}

/* One sign per block size, of about the same area. */
static void mark(nib_svg *svg, double x, double y, unsigned block, const char *class_names) {
    const double up[] = {x, y - 5, x - 4.6, y + 3.6, x + 4.6, y + 3.6};
    const double diamond[] = {x, y - 5, x + 4.4, y, x, y + 5, x - 4.4, y};
    if (block == 0)
        nib_svg_dot(svg, x, y, 3.8, class_names);
    else if (block == 1)
        nib_svg_rect(svg, x - 3.4, y - 3.4, 6.8, 6.8, class_names);
    else if (block == 2)
        nib_svg_path(svg, up, 3, true, class_names);
    else
        nib_svg_path(svg, diamond, 4, true, class_names);
}

static void draw_series(nib_svg *svg, const nib_study *study, unsigned kind, unsigned block, const nib_axis *x_axis,
                        const nib_axis *y_axis) {
    static const char *const lines[N_KINDS] = {"s0 thin", "s1 thin", "s2 thin"};
    static const char *const marks[N_KINDS] = {"f0", "f1", "f2"};
    double xy[2 * (MOST_BITS + 1)];
    size_t n = 0;
    for (unsigned bits = FEWEST_BITS; bits <= MOST_BITS; bits++) {
        for (uint32_t i = 0; i < study->n_levels; i++) {
            const nib_eval_model *model = &study->eval.models[i];
            place at;
            if (!place_of(model, &at) || at.kind != kind || at.block != block || at.bits != bits) continue;
            xy[2 * n] = nib_axis_at(x_axis, model->bpw);
            xy[2 * n + 1] = nib_axis_at(y_axis, model->kld.mean);
            n++;
            break;
        }
    }
    if (n > 1) nib_svg_path(svg, xy, n, false, lines[kind]);
    for (size_t i = 0; i < n; i++) mark(svg, xy[2 * i], xy[2 * i + 1], block, marks[kind]);
}

static void draw_legend(nib_svg *svg, double y) {
    static const char *const kinds[N_KINDS] = {"symmetric", "zero point", "minimum"};
    static const char *const colours[N_KINDS] = {"f0", "f1", "f2"};
    for (unsigned kind = 0; kind < N_KINDS; kind++) {
        nib_svg_rect(svg, 8 + 126 * kind, y - 5, 10, 10, colours[kind]);
        nib_svg_text(svg, 24 + 126 * kind, y + 4.5, NIB_ANCHOR_START, "", kinds[kind]);
    }
    nib_svg_text(svg, 8, y + 26.5, NIB_ANCHOR_START, "mut", "weights per scale");
    for (unsigned block = 0; block < N_BLOCKS; block++) {
        char number[16];
        snprintf(number, sizeof number, "%u", 32u << block);
        mark(svg, 146 + 62 * block, y + 22, block, "fr");
        nib_svg_text(svg, 156 + 62 * block, y + 26.5, NIB_ANCHOR_START, "", number);
    }
}

bool nib_draw_map(nib_svg *svg, const nib_study *study) {
    double left = INFINITY, right = 0, low = INFINITY, high = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const nib_eval_model *model = &study->eval.models[i];
        place at;
        if (!place_of(model, &at)) continue;
        left = fmin(left, model->bpw);
        right = fmax(right, model->bpw);
        low = fmin(low, model->kld.mean);
        high = fmax(high, model->kld.mean);
        n++;
    }
    if (n < 2 * N_BLOCKS) return false; /* too few for a map */
    const double top = 8, bottom = 330;
    nib_axis x_axis = {floor(left), ceil(right + 0.1), 56, NIB_SVG_WIDTH - 10, false};
    nib_axis y_axis = {low, high, bottom, top, true};
    nib_axis_round(&y_axis);
    nib_svg_x_axis(svg, &x_axis, top, bottom, "");
    nib_svg_y_axis(svg, &y_axis, x_axis.from, x_axis.to, "");
    const double floor_kld = study->eval.noise_floor_kld;
    if (isfinite(floor_kld) && floor_kld > y_axis.lo) {
        const double y = nib_axis_at(&y_axis, floor_kld);
        nib_svg_line(svg, x_axis.from, y, x_axis.to, y, "sr dash");
    }
    for (unsigned block = 0; block < N_BLOCKS; block++)
        for (unsigned kind = 0; kind < N_KINDS; kind++) draw_series(svg, study, kind, block, &x_axis, &y_axis);
    nib_svg_text(svg, (x_axis.from + x_axis.to) / 2, bottom + 34, NIB_ANCHOR_MIDDLE, "mut",
                 "bits per weight of the whole file");
    draw_legend(svg, bottom + 56);
    svg->height = bottom + 92;
    return true;
}
