/* Parts report done/total of their own; the listener hears where the whole stands. */
#include "study/stages.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static bool tell(nib_stages *stages, double fraction) {
    if (stages->outer == NULL || stages->outer->progress == NULL) return true;
    const double seconds = nib_now() - stages->began;
    const double done = fmin(stages->before + stages->share * fmin(fmax(fraction, 0), 1), stages->total);
    /* What was expected counts until something is measured. */
    const double trust = fmin(done / (0.1 * stages->total), 1), pace = done > 0 ? seconds / done : 1;
    const nib_progress progress = {
        .stage = stages->name,
        .done = done,
        .total = stages->total,
        .seconds = seconds,
        .eta_seconds = (stages->total - done) * (trust * pace + (1 - trust)),
    };
    return stages->outer->progress(stages->outer->user, &progress);
}

static bool on_progress(void *user, const nib_progress *progress) {
    return tell(user, progress->total > 0 ? progress->done / progress->total : 0);
}

static void on_warn(void *user, const char *message) {
    const nib_stages *stages = user;
    if (stages->outer != NULL && stages->outer->warn != NULL) stages->outer->warn(stages->outer->user, message);
}

void nib_stages_init(nib_stages *stages, const nib_watch *outer, double total) {
    *stages = (nib_stages){.outer = outer, .total = fmax(total, 1e-3), .began = nib_now()};
    stages->inner = (nib_watch){stages, on_progress, on_warn};
}

nib_status nib_stages_next(nib_stages *stages, double share, nib_error *error, const char *format, ...) {
    va_list arguments;
    stages->before += stages->share;
    stages->share = share;
    va_start(arguments, format);
    vsnprintf(stages->name, sizeof stages->name, format, arguments);
    va_end(arguments);
    if (tell(stages, 0)) return NIB_OK;
    return nib_fail(error, NIB_ERR_INTERRUPTED, "interrupted");
}
