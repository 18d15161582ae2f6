#include "base/progress.h"

void nib_meter_init(nib_meter *meter, const nib_watch *watch, const char *stage, double total) {
    *meter = (nib_meter){.watch = watch, .stage = stage, .total = total > 0 ? total : 1, .began = nib_now()};
}

nib_status nib_meter_add(nib_meter *meter, double amount, nib_error *error) {
    meter->done += amount;
    if (meter->done > meter->total) meter->done = meter->total;
    if (!meter->watch || !meter->watch->progress) return NIB_OK;
    const double now = nib_now();
    if (meter->done < meter->total && now - meter->last_call < 0.1) return NIB_OK;
    meter->last_call = now;
    const double seconds = now - meter->began;
    const nib_progress progress = {
        .stage = meter->stage,
        .done = meter->done,
        .total = meter->total,
        .seconds = seconds,
        /* too early to tell in the first half second */
        .eta_seconds = seconds < 0.5 || meter->done <= 0 ? -1 : seconds / meter->done * (meter->total - meter->done),
    };
    if (meter->watch->progress(meter->watch->user, &progress)) return NIB_OK;
    return nib_fail(error, NIB_ERR_INTERRUPTED, "interrupted during %s", meter->stage);
}
