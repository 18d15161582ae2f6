/* Three stages over a ring of slots.
 *
 *   n_read >= n_taken >= n_written, and n_read - n_written <= n_slots
 *
 * A worker takes item n_taken when it is read; the writer takes item n_written when its slot is marked as worked on; the
 * reader takes item n_read when the writer has freed the slot. Nobody takes an item at or past `end`, which only falls: the
 * reader sets it when the items run out, a failure at item k sets it to k. So what fails first in the order of the items
 * wins, whatever the threads do. Workers wait for items, never for one another: one that the system does not let run holds
 * up nobody while slots are free. */
#include "quant/pipeline.h"

#include "base/memory.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

/* The stages do not nest deeply, and a limit on memory counts every stack. */
#define STACK_BYTES (256u << 10)

typedef struct ring {
    const nib_pipeline *pipeline;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t for_reader, for_workers, for_writer;
    uint64_t n_read, n_taken, n_written, end;
    bool *is_worked;   /* (n_slots) and not yet written */
    nib_status status; /* of the failure at `end` */
    nib_error error;
} ring;

static void end_at(ring *r, uint64_t item, nib_status status, const nib_error *error) {
    if (item >= r->end) return;
    r->end = item;
    r->status = status;
    if (status != NIB_OK) r->error = *error;
    pthread_cond_signal(&r->for_reader);
    pthread_cond_broadcast(&r->for_workers);
    pthread_cond_signal(&r->for_writer);
}

static void *read_items(void *argument) {
    ring *r = argument;
    const nib_pipeline *p = r->pipeline;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (r->n_read < r->end && r->n_read - r->n_written >= p->n_slots)
            pthread_cond_wait(&r->for_reader, &r->lock);
        if (r->n_read >= r->end) break;
        pthread_mutex_unlock(&r->lock);
        nib_error error = {0};
        bool is_end = false;
        const nib_status status = p->read(p->user, (size_t)(r->n_read % p->n_slots), &is_end, &error);
        pthread_mutex_lock(&r->lock);
        if (status != NIB_OK || is_end) {
            end_at(r, r->n_read, status, &error);
            break;
        }
        r->n_read++;
        pthread_cond_signal(&r->for_workers);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* One call is as many workers as the pool has; each goes on until nothing is left. */
static void work_on_items(void *argument, size_t begin, size_t end, unsigned worker) {
    ring *r = argument;
    const nib_pipeline *p = r->pipeline;
    (void)begin, (void)end;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (r->n_taken < r->end && r->n_taken >= r->n_read) pthread_cond_wait(&r->for_workers, &r->lock);
        if (r->n_taken >= r->end) break;
        const uint64_t item = r->n_taken++;
        const size_t slot = (size_t)(item % p->n_slots);
        pthread_mutex_unlock(&r->lock);
        nib_error error = {0};
        const nib_status status = p->work(p->user, slot, worker, &error);
        pthread_mutex_lock(&r->lock);
        if (status != NIB_OK) end_at(r, item, status, &error);
        r->is_worked[slot] = true;
        if (item == r->n_written) pthread_cond_signal(&r->for_writer);
    }
    pthread_mutex_unlock(&r->lock);
}

static void *write_items(void *argument) {
    ring *r = argument;
    const nib_pipeline *p = r->pipeline;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        const size_t slot = (size_t)(r->n_written % p->n_slots);
        while (r->n_written < r->end && !r->is_worked[slot]) pthread_cond_wait(&r->for_writer, &r->lock);
        if (r->n_written >= r->end) break;
        pthread_mutex_unlock(&r->lock);
        nib_error error = {0};
        const nib_status status = p->write(p->user, slot, &error);
        pthread_mutex_lock(&r->lock);
        if (status != NIB_OK) {
            end_at(r, r->n_written, status, &error);
            break;
        }
        r->is_worked[slot] = false;
        r->n_written++;
        pthread_cond_signal(&r->for_reader);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

nib_status nib_pipeline_run(const nib_pipeline *pipeline, nib_error *error) {
    ring r = {.pipeline = pipeline, .end = UINT64_MAX};
    pthread_attr_t attributes;
    pthread_t reader, writer;
    r.is_worked = nib_alloc(pipeline->n_slots, sizeof *r.is_worked);
    if (!r.is_worked || pthread_attr_init(&attributes) != 0) {
        free(r.is_worked);
        return nib_fail_memory(error, sizeof attributes + pipeline->n_slots);
    }
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.for_reader, NULL);
    pthread_cond_init(&r.for_workers, NULL);
    pthread_cond_init(&r.for_writer, NULL);
    const size_t stack_bytes = STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : (size_t)PTHREAD_STACK_MIN;
    pthread_attr_setstacksize(&attributes, stack_bytes);
    const bool reads = pthread_create(&reader, &attributes, read_items, &r) == 0;
    const bool writes = reads && pthread_create(&writer, &attributes, write_items, &r) == 0;
    if (!writes) {
        nib_error why;
        const nib_status status = nib_fail_memory(&why, 2 * (uint64_t)stack_bytes);
        pthread_mutex_lock(&r.lock);
        end_at(&r, 0, status, &why);
        pthread_mutex_unlock(&r.lock);
    } else {
        nib_par_for(pipeline->pool, nib_pool_size(pipeline->pool), 1, work_on_items, &r);
    }
    if (reads) pthread_join(reader, NULL);
    if (writes) pthread_join(writer, NULL);
    pthread_cond_destroy(&r.for_reader);
    pthread_cond_destroy(&r.for_workers);
    pthread_cond_destroy(&r.for_writer);
    pthread_mutex_destroy(&r.lock);
    pthread_attr_destroy(&attributes);
    free(r.is_worked);
    if (r.status != NIB_OK && error) *error = r.error;
    return r.status;
}
