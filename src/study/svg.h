/* A small writer of SVG pictures: shapes, text, axes. Pictures are 400 units wide with text of 14 units, so that text
 * is still 11 pixels high on a phone 360 pixels wide. Colours are classes, which follow light and dark. */
#ifndef NIB_STUDY_SVG_H
#define NIB_STUDY_SVG_H

#include "base/memory.h"

#define NIB_SVG_WIDTH     400.0
#define NIB_SVG_CHARACTER 8.1 /* generous width of one character of text */

typedef struct nib_svg {
    nib_string body;
    double height;
} nib_svg;

typedef enum nib_anchor { NIB_ANCHOR_START, NIB_ANCHOR_MIDDLE, NIB_ANCHOR_END } nib_anchor;

/* class: names from nib_svg_css, space-separated. */
void nib_svg_text(nib_svg *svg, double x, double y, nib_anchor anchor, const char *class_names, const char *text);
/* Reads upwards from (x, y). */
void nib_svg_text_up(nib_svg *svg, double x, double y, const char *class_names, const char *text);
void nib_svg_line(nib_svg *svg, double x1, double y1, double x2, double y2, const char *class_names);
void nib_svg_rect(nib_svg *svg, double x, double y, double width, double height, const char *class_names);
void nib_svg_dot(nib_svg *svg, double x, double y, double radius, const char *class_names);
/* xy: (n, 2). closed: an area. */
void nib_svg_path(nib_svg *svg, const double *xy, size_t n, bool closed, const char *class_names);
/* A line from x1 to x2 with caps, for standard errors. */
void nib_svg_error_bar(nib_svg *svg, double x1, double x2, double y, const char *class_names);

/* Values lo..hi onto positions from..to; values outside are moved to the ends, and so is what a logarithm cannot take. */
typedef struct nib_axis {
    double lo, hi, from, to;
    bool log;
} nib_axis;
double nib_axis_at(const nib_axis *axis, double value);
/* Round values inside the axis, at most max of them (max <= 32). Returns how many. */
unsigned nib_axis_ticks(const nib_axis *axis, unsigned max, double *out);
/* Widens lo..hi to round values. */
void nib_axis_round(nib_axis *axis);
/* Grid lines across y_top..y_bottom, tick labels below; unit is appended to each label ("%"); labels that would touch
 * are left out. */
void nib_svg_x_axis(nib_svg *svg, const nib_axis *axis, double y_top, double y_bottom, const char *unit);
/* Grid lines across x_left..x_right, tick labels on the left. */
void nib_svg_y_axis(nib_svg *svg, const nib_axis *axis, double x_left, double x_right, const char *unit);

/* Style sheet of all pictures; put once into a page that inlines them. */
const char *nib_svg_css(void);
/* The whole element. id: unique in the page, [a-z0-9-]. standalone: a file of its own, with the style sheet. */
void nib_svg_write(const nib_svg *svg, const char *id, const char *title, const char *description, bool standalone,
                   nib_string *out);
void nib_svg_fini(nib_svg *svg);

#endif
