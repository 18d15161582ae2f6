/* One progress for the whole study out of the progress of its parts. The unit is the second each part was expected to take. */
#ifndef NIB_STUDY_STAGES_H
#define NIB_STUDY_STAGES_H

#include "base/error.h"

typedef struct nib_stages {
    const nib_watch *outer;
    nib_watch inner; /* hand this to the parts */
    char name[96];
    double total, before; /* expected seconds: of all, of what is done */
    double share;         /* of the part under way */
    double began;
} nib_stages;

void nib_stages_init(nib_stages *stages, const nib_watch *outer, double total);
/* The next part begins. NIB_ERR_INTERRUPTED when the caller asks to stop. */
nib_status nib_stages_next(nib_stages *stages, double share, nib_error *error, const char *format, ...)
    NIB_PRINTF(4, 5);

#endif
