/* Three stages over a ring of slots, one thread each.
 *
 *   n_done[READ] >= n_done[WORK] >= n_done[WRITE], and n_done[READ] - n_done[WRITE] <= slots
 *
 * A stage may take item k when the stage before it has done k (the reader: when the writer has freed the slot) and k < end.
 * `end` only falls: the reader sets it when the items run out, a failure at item k sets it to k. So what fails first in the
 * order of the items wins, whatever the threads do. */
#include "quant/pipeline.h"

#include <limits.h>
#include <pthread.h>

/* The stages do not nest deeply, and a limit on memory counts every stack. */
#define STACK_BYTES (256u << 10)

enum { READ, WORK, WRITE, N_STAGES };

typedef struct ring {
    const nib_pipeline *pipeline;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    uint64_t n_done[N_STAGES], end;
    nib_status status; /* of the failure at `end` */
    nib_error error;
} ring;

static bool may_take(const ring *r, int stage, uint64_t item) {
    if (stage == READ) return item - r->n_done[WRITE] < NIB_PIPELINE_SLOTS;
    return item < r->n_done[stage - 1];
}

/* Waits for an item; false if it will never come. */
static bool take(ring *r, int stage, uint64_t item) {
    pthread_mutex_lock(&r->lock);
    while (item < r->end && !may_take(r, stage, item)) pthread_cond_wait(&r->changed, &r->lock);
    const bool is_there = item < r->end;
    pthread_mutex_unlock(&r->lock);
    return is_there;
}

static void finish(ring *r, int stage, uint64_t item, bool is_end, nib_status status, const nib_error *error) {
    pthread_mutex_lock(&r->lock);
    if (status != NIB_OK || is_end) {
        if (item < r->end) {
            r->end = item;
            r->status = status;
            if (status != NIB_OK) r->error = *error;
        }
    } else {
        r->n_done[stage] = item + 1;
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void run_stage(ring *r, int stage) {
    const nib_pipeline *p = r->pipeline;
    for (uint64_t item = 0; take(r, stage, item); item++) {
        const unsigned slot = (unsigned)(item % NIB_PIPELINE_SLOTS);
        nib_error error = {0};
        bool is_end = false;
        const nib_status status = stage == READ   ? p->read(p->user, slot, &is_end, &error)
                                  : stage == WORK ? p->work(p->user, slot, &error)
                                                  : p->write(p->user, slot, &error);
        finish(r, stage, item, is_end, status, &error);
        if (status != NIB_OK || is_end) return;
    }
}

static void *read_main(void *argument) {
    run_stage(argument, READ);
    return NULL;
}

static void *write_main(void *argument) {
    run_stage(argument, WRITE);
    return NULL;
}

nib_status nib_pipeline_run(const nib_pipeline *pipeline, nib_error *error) {
    ring r = {.pipeline = pipeline, .end = UINT64_MAX};
    pthread_attr_t attributes;
    pthread_t reader, writer;
    if (pthread_attr_init(&attributes) != 0) return nib_fail_memory(error, sizeof attributes);
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.changed, NULL);
    const size_t stack_bytes = STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : (size_t)PTHREAD_STACK_MIN;
    pthread_attr_setstacksize(&attributes, stack_bytes);
    const bool reads = pthread_create(&reader, &attributes, read_main, &r) == 0;
    const bool writes = reads && pthread_create(&writer, &attributes, write_main, &r) == 0;
    if (!writes) {
        nib_error why;
        finish(&r, READ, 0, false, nib_fail_memory(&why, 2 * (uint64_t)stack_bytes), &why);
    } else {
        run_stage(&r, WORK);
    }
    if (reads) pthread_join(reader, NULL);
    if (writes) pthread_join(writer, NULL);
    pthread_cond_destroy(&r.changed);
    pthread_mutex_destroy(&r.lock);
    pthread_attr_destroy(&attributes);
    if (r.status != NIB_OK && error) *error = r.error;
    return r.status;
}
