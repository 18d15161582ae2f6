/* Three stages that overlap: one thread reads items, workers work on some side by side, one thread writes them in order. */
#ifndef NIB_QUANT_PIPELINE_H
#define NIB_QUANT_PIPELINE_H

#include "base/error.h"
#include "cpu/pool.h"

/* Item k lies in slot k % n_slots; every call has its slot to itself meanwhile. */
typedef struct nib_pipeline {
    void *user;
    nib_pool *pool;
    size_t n_slots; /* items under way at once; two more than workers keep all stages busy */
    /* In a thread of its own, items in order. Sets *end instead of filling the slot when there are no more. */
    nib_status (*read)(void *user, size_t slot, bool *end, nib_error *error);
    /* In the calling thread (worker 0) and the pool's: items are begun in order, but side by side. */
    nib_status (*work)(void *user, size_t slot, unsigned worker, nib_error *error);
    /* In a thread of its own, items in order. */
    nib_status (*write)(void *user, size_t slot, nib_error *error);
} nib_pipeline;

/* Runs to the end or to the first item (by number, not by time) at which a stage fails; every item before it is written.
 * Returns that failure, or NIB_ERR_MEMORY if threads cannot be started. */
nib_status nib_pipeline_run(const nib_pipeline *pipeline, nib_error *error);

#endif
