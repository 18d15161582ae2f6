/* Worker threads behind one call. */
#ifndef NIB_CPU_POOL_H
#define NIB_CPU_POOL_H

#include "nibble/base.h"

/* Work on items begin .. end-1. worker: 0 .. nib_pool_size-1, this call's alone: index per-worker scratch with it. */
typedef void (*nib_work_fn)(void *arg, size_t begin, size_t end, unsigned worker);

/* Splits n items into pieces of `grain` (the last may be shorter), which the workers share out; returns when all are
 * done. The pieces are the same for any number of threads; only who runs them differs. pool may be NULL (runs here).
 * Not reentrant: never call it from inside a work function. */
void nib_par_for(nib_pool *pool, size_t n, size_t grain, nib_work_fn fn, void *arg);

#endif
