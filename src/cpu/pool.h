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

/* Memory that a later call will read from one end to the other. */
typedef struct nib_span {
    const void *data;
    size_t bytes;
} nib_span;

enum { NIB_POOL_SPANS = 4 };

/* What will be read after the next call, at most NIB_POOL_SPANS spans, by pieces that share them out evenly: while workers
 * wait they fetch the beginning of their share into their caches, so that memory does not idle between two calls. */
void nib_pool_expect(nib_pool *pool, const nib_span *spans, unsigned n);
/* The rest, from the first byte of a worker's share on, of the span in which it begins; empty if there is none. */
nib_span nib_span_share(const nib_span *spans, unsigned n, unsigned worker, unsigned n_workers);

#endif
