/* Writing SVG. The invariants: every number printed is finite, every text is escaped, every element is closed. */
#include "study/svg.h"

#include "study/markup.h"
#include <math.h>
#include <stdio.h>

static double plain(double value) {
    return isfinite(value) ? value : 0;
}

static void add(nib_string *out, const char *text) {
    nib_string_add(out, text, strlen(text));
}

void nib_svg_text(nib_svg *svg, double x, double y, nib_anchor anchor, const char *class_names, const char *text) {
    static const char *const anchors[] = {"", " text-anchor=\"middle\"", " text-anchor=\"end\""};
    nib_string_addf(&svg->body, "<text x=\"%.1f\" y=\"%.1f\"%s class=\"%s\">", plain(x), plain(y), anchors[anchor],
                    class_names);
    nib_markup_escape(&svg->body, text);
    add(&svg->body, "</text>\n");
}

void nib_svg_text_up(nib_svg *svg, double x, double y, const char *class_names, const char *text) {
    nib_string_addf(&svg->body, "<text transform=\"translate(%.1f %.1f) rotate(-90)\" class=\"%s\">", plain(x),
                    plain(y), class_names);
    nib_markup_escape(&svg->body, text);
    add(&svg->body, "</text>\n");
}

void nib_svg_line(nib_svg *svg, double x1, double y1, double x2, double y2, const char *class_names) {
    nib_string_addf(&svg->body, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", plain(x1),
                    plain(y1), plain(x2), plain(y2), class_names);
}

void nib_svg_rect(nib_svg *svg, double x, double y, double width, double height, const char *class_names) {
    nib_string_addf(&svg->body, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"%s\"/>\n", plain(x),
                    plain(y), fmax(plain(width), 0), fmax(plain(height), 0), class_names);
}

void nib_svg_dot(nib_svg *svg, double x, double y, double radius, const char *class_names) {
    nib_string_addf(&svg->body, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" class=\"%s\"/>\n", plain(x), plain(y),
                    radius, class_names);
}

void nib_svg_path(nib_svg *svg, const double *xy, size_t n, bool closed, const char *class_names) {
    if (n == 0) return;
    nib_string_addf(&svg->body, "<path class=\"%s\" d=\"", class_names);
    for (size_t i = 0; i < n; i++)
        nib_string_addf(&svg->body, "%s%.1f %.1f", i == 0 ? "M" : "L", plain(xy[2 * i]), plain(xy[2 * i + 1]));
    nib_string_addf(&svg->body, "%s\"/>\n", closed ? "Z" : "");
}

void nib_svg_error_bar(nib_svg *svg, double x1, double x2, double y, const char *class_names) {
    nib_svg_line(svg, x1, y, x2, y, class_names);
    nib_svg_line(svg, x1, y - 4, x1, y + 4, class_names);
    nib_svg_line(svg, x2, y - 4, x2, y + 4, class_names);
}

/* ---- Axes ------------------------------------------------------------------------------------------------------------ */

double nib_axis_at(const nib_axis *axis, double value) {
    if (isnan(value)) value = axis->lo;
    value = fmin(fmax(value, axis->lo), axis->hi);
    const double span = axis->log ? log(axis->hi / axis->lo) : axis->hi - axis->lo;
    if (!(span > 0)) return axis->from;
    const double share = (axis->log ? log(value / axis->lo) : value - axis->lo) / span;
    return axis->from + share * (axis->to - axis->from);
}

/* The smallest of 1, 2, 5 times a power of ten that is at least `least`. */
static double round_step(double least) {
    const double power = pow(10, floor(log10(least)));
    const double lead = least / power;
    return power * (lead <= 1.0000001 ? 1 : lead <= 2.0000001 ? 2 : lead <= 5.0000001 ? 5 : 10);
}

static unsigned log_ticks(const nib_axis *axis, unsigned max, double *out) {
    const int first = (int)floor(log10(axis->lo) + 1e-9), last = (int)ceil(log10(axis->hi) - 1e-9);
    const bool finer = last - first <= 2; /* few decades: 2 and 5 as well */
    const int stride = 1 + (last - first) / (int)max;
    static const double leads[] = {1, 2, 5};
    unsigned n = 0;
    for (int power = first; power <= last && n < max; power += stride) {
        for (int lead = 0; lead < (finer ? 3 : 1) && n < max; lead++) {
            const double value = leads[lead] * pow(10, power);
            if (value >= axis->lo * (1 - 1e-9) && value <= axis->hi * (1 + 1e-9)) out[n++] = value;
        }
    }
    return n;
}

unsigned nib_axis_ticks(const nib_axis *axis, unsigned max, double *out) {
    if (max < 2 || !(axis->hi > axis->lo)) return 0;
    if (axis->log) return log_ticks(axis, max, out);
    const double step = round_step((axis->hi - axis->lo) / (max - 1));
    unsigned n = 0;
    for (double k = ceil(axis->lo / step - 1e-9); k * step <= axis->hi + 1e-9 * step && n < max; k++)
        out[n++] = k == 0 ? 0 : k * step;
    return n;
}

void nib_axis_round(nib_axis *axis) {
    if (axis->log) {
        axis->lo = pow(10, floor(log10(axis->lo) + 1e-9));
        axis->hi = pow(10, ceil(log10(axis->hi) - 1e-9));
        if (!(axis->hi > axis->lo)) axis->hi = axis->lo * 10;
        return;
    }
    if (!(axis->hi > axis->lo)) axis->hi = axis->lo + (axis->lo == 0 ? 1 : fabs(axis->lo) * 0.01);
    const double step = round_step((axis->hi - axis->lo) / 5);
    axis->lo = floor(axis->lo / step + 1e-9) * step;
    axis->hi = ceil(axis->hi / step - 1e-9) * step;
}

/* "0.001", "2000", "1e-6": what needs no more than six characters. */
static void tick_text(char out[32], double value, const char *unit) {
    const double size = fabs(value);
    if (size != 0 && (size < 0.999e-4 || size >= 1e6)) {
        const int power = (int)floor(log10(size) + 1e-9);
        snprintf(out, 32, "%.3ge%d%s", value / pow(10, power), power, unit);
    } else {
        snprintf(out, 32, "%.6g%s", value, unit);
    }
}

void nib_svg_x_axis(nib_svg *svg, const nib_axis *axis, double y_top, double y_bottom, const char *unit) {
    double ticks[8];
    const unsigned n = nib_axis_ticks(axis, axis->log ? 8 : 6, ticks);
    double free_from = -1e9;
    for (unsigned i = 0; i < n; i++) {
        char text[32];
        tick_text(text, ticks[i], unit);
        const double x = nib_axis_at(axis, ticks[i]), half = NIB_SVG_CHARACTER * (double)strlen(text) / 2;
        nib_svg_line(svg, x, y_top, x, y_bottom, "grid");
        if (x - half < free_from || x + half > NIB_SVG_WIDTH) continue;
        nib_svg_text(svg, x, y_bottom + 16, NIB_ANCHOR_MIDDLE, "mut", text);
        free_from = x + half + 6;
    }
    nib_svg_line(svg, axis->from, y_bottom, axis->to, y_bottom, "axis");
}

void nib_svg_y_axis(nib_svg *svg, const nib_axis *axis, double x_left, double x_right, const char *unit) {
    double ticks[8];
    const unsigned n = nib_axis_ticks(axis, axis->log ? 8 : 6, ticks);
    double free_below = 1e9;
    for (unsigned i = 0; i < n; i++) {
        char text[32];
        tick_text(text, ticks[i], unit);
        const double y = nib_axis_at(axis, ticks[i]);
        nib_svg_line(svg, x_left, y, x_right, y, "grid");
        if (y > free_below) continue;
        nib_svg_text(svg, x_left - 5, y + 4.5, NIB_ANCHOR_END, "mut", text);
        free_below = y - 15;
    }
    nib_svg_line(svg, x_left, axis->from, x_left, axis->to, "axis");
}

/* ---- The document ---------------------------------------------------------------------------------------------------- */

/* Okabe and Ito's colours, which people with any colour vision tell apart; lighter ones of them in the dark. */
const char *nib_svg_css(void) {
    return ".nib text{font:14px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;fill:#1a1a1a}"
           ".nib text.mut{fill:#555}.nib text.strong{font-weight:600}.nib text.bad{fill:#a83f00;font-weight:600}"
           ".nib .grid{stroke:#e2e2e2}.nib .axis{stroke:#777}.nib .back{fill:#fff}"
           ".nib .f0{fill:#0072b2}.nib .f1{fill:#d55e00}.nib .f2{fill:#008060}.nib .f3{fill:#b0558a}.nib "
           ".fr{fill:#8a8a8a}"
           ".nib .s0,.nib .s1,.nib .s2,.nib .s3,.nib .sr{fill:none;stroke-width:1.8;stroke-linejoin:round}"
           ".nib .s0{stroke:#0072b2}.nib .s1{stroke:#d55e00}.nib .s2{stroke:#008060}.nib .s3{stroke:#b0558a}"
           ".nib .sr{stroke:#767676}.nib .dash{stroke-dasharray:5 4}.nib .thin{stroke-width:1}.nib "
           ".err{stroke-width:1.5}"
           ".nib .area{fill-opacity:.32}.nib .soft{fill:#c9ccd1}"
           "@media(prefers-color-scheme:dark){.nib text{fill:#ececec}.nib text.mut{fill:#b4b4b4}"
           ".nib text.bad{fill:#ffb36b}.nib .grid{stroke:#3a3d42}.nib .axis{stroke:#999}.nib .back{fill:#17191c}"
           ".nib .f0{fill:#56b4e9}.nib .f1{fill:#f0902a}.nib .f2{fill:#2fc49a}.nib .f3{fill:#e09ac2}.nib "
           ".fr{fill:#9a9a9a}"
           ".nib .s0{stroke:#56b4e9}.nib .s1{stroke:#f0902a}.nib .s2{stroke:#2fc49a}.nib .s3{stroke:#e09ac2}"
           ".nib .sr{stroke:#a8a8a8}.nib .soft{fill:#4b5058}}";
}

void nib_svg_write(const nib_svg *svg, const char *id, const char *title, const char *description, bool standalone,
                   nib_string *out) {
    if (svg->body.failed) out->failed = true;
    nib_string_addf(out,
                    "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"nib\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
                    "aria-labelledby=\"%s-title %s-desc\">\n<title id=\"%s-title\">",
                    NIB_SVG_WIDTH, svg->height, id, id, id);
    nib_markup_escape(out, title);
    nib_string_addf(out, "</title>\n<desc id=\"%s-desc\">", id);
    nib_markup_escape(out, description);
    add(out, "</desc>\n");
    if (standalone) {
        nib_string_addf(out, "<style>%s</style>\n", nib_svg_css());
        nib_string_addf(out, "<rect width=\"100%%\" height=\"100%%\" class=\"back\"/>\n");
    }
    if (svg->body.n_bytes > 0) nib_string_add(out, svg->body.data, svg->body.n_bytes);
    add(out, "</svg>\n");
}

void nib_svg_fini(nib_svg *svg) {
    nib_string_fini(&svg->body);
    *svg = (nib_svg){0};
}
