/* A pool of workers that sleep between calls.
 *
 * A call publishes one job and bumps `generation`; workers spin for a short while, since the next job usually follows
 * within microseconds, then sleep on a condition. Pieces are claimed from one atomic counter. The caller works too, as
 * worker 0, and returns when the counter is used up and every worker has left the job. */
#include "cpu/pool.h"

#include "base/error.h"
#include "base/memory.h"
#include "nibble/cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_THREADS = 1024, SPINS = 4000 };

typedef struct {
    nib_work_fn fn;
    void *arg;
    size_t n, grain;
} job;

struct nib_pool {
    unsigned n_threads, n_started;
    pthread_t *threads;
    job job;
    _Alignas(64) atomic_size_t next;     /* first item nobody has claimed */
    _Alignas(64) atomic_uint generation; /* bumped once a job */
    _Alignas(64) atomic_uint n_busy;     /* workers that have not left the current job */
    _Alignas(64) pthread_mutex_t lock;   /* guards sleeping only */
    pthread_cond_t wake;
    unsigned n_asleep;
    atomic_bool stop;
    atomic_uint n_named; /* hands out worker numbers */
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(nib_pool *pool, unsigned worker) {
    const job current = pool->job;
    for (;;) {
        const size_t begin = atomic_fetch_add_explicit(&pool->next, current.grain, memory_order_relaxed);
        if (begin >= current.n) return;
        const size_t left = current.n - begin;
        current.fn(current.arg, begin, begin + (left < current.grain ? left : current.grain), worker);
    }
}

static void wait_for_job(nib_pool *pool, unsigned seen) {
    for (unsigned spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
        relax();
    }
    pthread_mutex_lock(&pool->lock);
    pool->n_asleep++;
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    pool->n_asleep--;
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument) {
    nib_pool *pool = argument;
    const unsigned worker = 1 + atomic_fetch_add(&pool->n_named, 1);
    for (unsigned seen = 0;; seen++) {
        wait_for_job(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        work(pool, worker);
        atomic_fetch_sub_explicit(&pool->n_busy, 1, memory_order_release);
    }
}

static void publish(nib_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->generation, 1);
    if (pool->n_asleep) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

nib_status nib_pool_new(unsigned n_threads, nib_pool **out, nib_error *error) {
    *out = NULL;
    if (n_threads > MAX_THREADS)
        return nib_fail(error, NIB_ERR_USAGE, "%u threads are too many (at most %d)", n_threads, MAX_THREADS);
    if (n_threads == 0) n_threads = nib_cpu_cores();
    nib_pool *pool = nib_alloc_aligned(sizeof *pool);
    if (!pool) return nib_fail_memory(error, sizeof *pool);
    pool->n_threads = n_threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = nib_alloc(n_threads, sizeof *pool->threads);
    if (!pool->threads) {
        nib_pool_free(pool);
        return nib_fail_memory(error, n_threads * sizeof *pool->threads);
    }
    for (; pool->n_started + 1 < n_threads; pool->n_started++)
        if (pthread_create(&pool->threads[pool->n_started], NULL, worker_main, pool)) {
            nib_pool_free(pool);
            nib_fail(error, NIB_ERR_MEMORY, "cannot start %u threads", n_threads);
            return nib_hint(error, NIB_ERR_MEMORY, "use fewer threads");
        }
    *out = pool;
    return NIB_OK;
}

void nib_pool_free(nib_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    publish(pool);
    for (unsigned i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
    nib_free_aligned(pool);
}

unsigned nib_pool_size(const nib_pool *pool) {
    return pool ? pool->n_threads : 1;
}

void nib_par_for(nib_pool *pool, size_t n, size_t grain, nib_work_fn fn, void *arg) {
    if (n == 0) return;
    if (grain == 0) grain = 1;
    if (!pool || pool->n_threads == 1 || n <= grain) { /* the same pieces, one after the other */
        for (size_t begin = 0; begin < n; begin += grain) fn(arg, begin, n - begin < grain ? n : begin + grain, 0);
        return;
    }
    pool->job = (job){fn, arg, n, grain};
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->n_busy, pool->n_started, memory_order_relaxed);
    publish(pool);
    work(pool, 0);
    for (unsigned spin = 0; atomic_load_explicit(&pool->n_busy, memory_order_acquire) != 0; spin++) {
        relax();
        if (spin % 1024 == 1023) sched_yield(); /* more threads than cores */
    }
}
