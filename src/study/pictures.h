/* What the two files of pictures share. */
#ifndef NIB_STUDY_PICTURES_H
#define NIB_STUDY_PICTURES_H

#include "study/parts.h"
#include "study/svg.h"

/* Width of the column of the levels' names. */
double nib_picture_label_width(const nib_study *study);
void nib_picture_cliff_line(nib_svg *svg, double y);

/* Small panels, one per level. false if the study has no such data. */
bool nib_draw_weights(nib_svg *svg, const nib_study *study, bool log);
/* The grid family as a map, for studies that hold a good part of it. */
bool nib_draw_map(nib_svg *svg, const nib_study *study);
bool nib_draw_next_tokens(nib_svg *svg, const nib_study *study);

#endif
