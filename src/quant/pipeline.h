/* Three stages that overlap: read item k + 2, work on item k + 1, write item k. */
#ifndef NIB_QUANT_PIPELINE_H
#define NIB_QUANT_PIPELINE_H

#include "base/error.h"

/* Items under way at once; item k lies in slot k % NIB_PIPELINE_SLOTS. */
enum { NIB_PIPELINE_SLOTS = 3 };

/* Every stage is called for items 0, 1, 2, ... in order, never twice at once, and has its slot to itself meanwhile. */
typedef struct nib_pipeline {
    void *user;
    /* In a thread of its own. Sets *end instead of filling the slot when there are no more items. */
    nib_status (*read)(void *user, unsigned slot, bool *end, nib_error *error);
    /* In the calling thread. */
    nib_status (*work)(void *user, unsigned slot, nib_error *error);
    /* In a thread of its own. */
    nib_status (*write)(void *user, unsigned slot, nib_error *error);
} nib_pipeline;

/* Runs to the end or to the first item (by number, not by time) at which a stage fails; every item before it is written.
 * Returns that failure, or NIB_ERR_MEMORY if threads cannot be started. */
nib_status nib_pipeline_run(const nib_pipeline *pipeline, nib_error *error);

#endif
