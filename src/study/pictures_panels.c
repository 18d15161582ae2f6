/* Pictures made of small panels, one per level, two side by side: histograms of the weights and next-token probabilities.
 * Every panel has the same scales, so that panels can be compared by eye. */
#include "study/pictures.h"

#include "study/markup.h"
#include <math.h>
#include <stdio.h>

typedef struct panel {
    double left, right, top, bottom; /* of the data */
} panel;

static panel panel_at(uint32_t index, double height, double below) {
    const double width = 184, left = index % 2 == 0 ? 6 : NIB_SVG_WIDTH - 6 - width;
    const double top = 22 + (index / 2) * (height + 22 + below);
    return (panel){left, left + width, top, top + height};
}

static void panel_title(nib_svg *svg, const nib_study *study, const panel *at, uint32_t level, const char *more) {
    char title[128];
    snprintf(title, sizeof title, "%s%s", study->eval.models[level].format, more);
    nib_svg_text(svg, at->left, at->top - 6, NIB_ANCHOR_START, nib_study_is_over_cliff(study, level) ? "bad" : "strong",
                 title);
}

/* ---- Histograms of the weights --------------------------------------------------------------------------------------- */

/* Steps of a histogram as a polyline, ends on the bottom. xy: (2 * bins + 2, 2). lowest: the count at the bottom. */
static size_t histogram_path(const nib_weight_stats *stats, const panel *at, double most, bool log_scale, double *xy) {
    size_t n = 0;
    double before = at->bottom;
    for (unsigned bin = 0; bin < NIB_HISTOGRAM_BINS; bin++) {
        const double x = at->left + (at->right - at->left) * bin / NIB_HISTOGRAM_BINS;
        const double count = (double)stats->histogram[bin];
        const double share = log_scale ? (count > 0 ? (log10(count) + 0.3) / (log10(most) + 0.3) : 0) : count / most;
        const double y = at->bottom - share * (at->bottom - at->top);
        if (bin == 0 || y != before) {
            xy[2 * n] = x, xy[2 * n + 1] = before, n++;
            xy[2 * n] = x, xy[2 * n + 1] = y, n++;
        }
        before = y;
    }
    xy[2 * n] = at->right, xy[2 * n + 1] = before, n++;
    xy[2 * n] = at->right, xy[2 * n + 1] = at->bottom, n++;
    return n;
}

static void mark_outliers(nib_svg *svg, const nib_weight_stats *stats, const nib_axis *axis, double y) {
    double last = -1e9;
    double sorted[NIB_TOP_WEIGHTS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < stats->n_top; i++) {
        uint32_t at = n++;
        for (; at > 0 && sorted[at - 1] > stats->top[i].value; at--) sorted[at] = sorted[at - 1];
        sorted[at] = stats->top[i].value;
    }
    for (uint32_t i = 0; i < n; i++) {
        const double x = nib_axis_at(axis, sorted[i]);
        if (x - last < 1) continue; /* marks on the same spot */
        const double triangle[] = {x, y + 1, x - 3.5, y + 8, x + 3.5, y + 8};
        nib_svg_path(svg, triangle, 3, true, "f3");
        last = x;
    }
}

bool nib_draw_weights(nib_svg *svg, const nib_study *study, bool log_scale) {
    const nib_weight_stats *original = study->weights;
    if (original == NULL || original->n == 0 || !(original->edge > 0)) return false;
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    double most = 1, xy[2 * (2 * NIB_HISTOGRAM_BINS + 2)];
    for (unsigned bin = 0; bin < NIB_HISTOGRAM_BINS; bin++) {
        most = fmax(most, (double)original->histogram[bin]);
        for (uint32_t i = 0; log_scale && i < study->n_levels; i++)
            most = fmax(most, (double)study->weights[1 + i].histogram[bin]);
    }
    most *= 1.02;
    const double height = 84, below = 34;
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const panel at = panel_at(i, height, below);
        const nib_weight_stats *stats = &study->weights[1 + order[i]];
        const bool over = nib_study_is_over_cliff(study, order[i]);
        const nib_axis axis = {-original->edge, original->edge, at.left, at.right, false};
        panel_title(svg, study, &at, order[i], "");
        size_t n = histogram_path(original, &at, most, log_scale, xy);
        nib_svg_path(svg, xy, n, true, "soft");
        for (int side = -1; log_scale && side <= 1; side += 2) {
            const double x = nib_axis_at(&axis, side * 6 * original->std);
            nib_svg_line(svg, x, at.top, x, at.bottom, "sr dash thin");
        }
        n = histogram_path(stats, &at, most, log_scale, xy);
        for (size_t k = 0; k < n; k++) /* a zero in the middle of two values reaches far above */
            xy[2 * k + 1] = fmax(xy[2 * k + 1], at.top);
        nib_svg_path(svg, xy, n, false, over ? "s1 thin" : "s0 thin");
        nib_svg_line(svg, at.left, at.bottom, at.right, at.bottom, "axis");
        if (log_scale) mark_outliers(svg, stats, &axis, at.bottom);
        char text[40], edge[32];
        snprintf(edge, sizeof edge, "%.2g", original->edge);
        snprintf(text, sizeof text, "−%s", edge);
        nib_svg_text(svg, at.left, at.bottom + 21, NIB_ANCHOR_START, "mut", text);
        nib_svg_text(svg, (at.left + at.right) / 2, at.bottom + 21, NIB_ANCHOR_MIDDLE, "mut", "0");
        nib_svg_text(svg, at.right, at.bottom + 21, NIB_ANCHOR_END, "mut", edge);
        svg->height = at.bottom + below;
    }
    return true;
}

/* ---- Next-token probabilities ----------------------------------------------------------------------------------------- */

/* A token as a label: short, with its spaces and line ends visible. */
static void piece_label(const char *piece, char out[16]) {
    const char *text = piece;
    if (*text == ' ' && text[1] != '\0') text++;
    if (*text == '\0' || strcmp(text, " ") == 0)
        snprintf(out, 16, "␣");
    else if (*text == '\n')
        snprintf(out, 16, "⏎");
    else
        snprintf(out, 16, "%.12s", text);
}

bool nib_draw_next_tokens(nib_svg *svg, const nib_study *study) {
    if (study->n_next == 0) return false;
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    bool single = true; /* labels fit side by side; otherwise they stand upright */
    size_t longest = 1;
    for (uint32_t i = 0; i < study->n_next; i++) {
        char label[16];
        piece_label(study->next[i].piece, label);
        if (strlen(label) > longest) longest = strlen(label);
        single = single && (strlen(label) <= 1 || (label[0] & 0x80) != 0);
    }
    const double height = 72, below = single ? 26 : 16 + 7.0 * (double)longest;
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const panel at = panel_at(i, height, below);
        const bool over = nib_study_is_over_cliff(study, order[i]);
        const double slot = (at.right - at.left) / study->n_next;
        double lost = 0, other = 0; /* probability that went elsewhere, tokens not shown taken as one */
        for (uint32_t k = 0; k < study->n_next; k++) {
            const double change = study->next[k].probability[1 + order[i]] - study->next[k].probability[0];
            lost += fabs(change) / 2;
            other -= change;
        }
        lost += fabs(other) / 2;
        char more[48];
        snprintf(more, sizeof more, ": %.0f%% moved", 100 * lost);
        panel_title(svg, study, &at, order[i], more);
        for (uint32_t k = 0; k < study->n_next; k++) {
            const double x = at.left + slot * k + 2, width = slot - 4;
            const double p = study->next[k].probability[1 + order[i]], was = study->next[k].probability[0];
            nib_svg_rect(svg, x, at.bottom - p * height, width, p * height, over ? "f1" : "f0");
            nib_svg_rect(svg, x - 1, at.bottom - was * height, width + 2, was * height, "sr thin");
            char label[16];
            piece_label(study->next[k].piece, label);
            if (single)
                nib_svg_text(svg, x + width / 2, at.bottom + 15, NIB_ANCHOR_MIDDLE, "mut", label);
            else
                nib_svg_text_up(svg, x + width / 2 + 4.5, at.bottom + 5 + 7.0 * (double)strlen(label), "mut", label);
        }
        nib_svg_line(svg, at.left, at.bottom, at.right, at.bottom, "axis");
        svg->height = at.bottom + below;
    }
    return true;
}
