/* Telling the caller where a long operation stands, seldom enough to cost nothing. */
#ifndef NIB_BASE_PROGRESS_H
#define NIB_BASE_PROGRESS_H

#include "base/error.h"

typedef struct nib_meter {
    const nib_watch *watch;
    const char *stage;
    double done, total, began, last_call;
} nib_meter;

void nib_meter_init(nib_meter *meter, const nib_watch *watch, const char *stage, double total);
/* Adds what was done and, at most ten times a second, calls the watch; NIB_ERR_INTERRUPTED when it asks to stop. */
nib_status nib_meter_add(nib_meter *meter, double amount, nib_error *error);

#endif
