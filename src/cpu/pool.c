/* A pool of workers that sleep between calls.
 *
 * One word holds the number of the call and how many workers are inside it. A call opens its job by making the number odd;
 * a worker enters by counting itself in, which works only while the job is open. Pieces are claimed from one counter, the
 * caller claims too, as worker 0. When nothing is left the caller closes the job (the number becomes even) and waits for
 * those inside only: a worker the system has not scheduled in time is not waited for, so a busy machine slows the work
 * down but does not stall it. Between jobs workers spin for a moment, since the next usually follows within microseconds,
 * then sleep. */
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
    job job;                         /* written while the job is closed and nobody is inside */
    _Alignas(64) atomic_size_t next; /* first item nobody has claimed */
    _Alignas(
        64) _Atomic uint64_t state;    /* upper half: number of the call, odd while open; lower half: workers inside */
    _Alignas(64) pthread_mutex_t lock; /* guards sleeping only */
    pthread_cond_t wake;
    unsigned n_asleep;
    atomic_bool stop;
    atomic_uint n_named; /* hands out worker numbers */
};

static const uint64_t one_call = UINT64_C(1) << 32;

static uint32_t call_of(uint64_t state) {
    return (uint32_t)(state >> 32);
}

/* Is there a job this worker has not seen? seen: the last one it was in. */
static bool is_new(const nib_pool *pool, uint32_t seen) {
    const uint32_t call = call_of(atomic_load_explicit(&pool->state, memory_order_acquire));
    return (call & 1) != 0 && call != seen;
}

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

static void wait_for_job(nib_pool *pool, uint32_t seen) {
    for (unsigned spin = 0; spin < SPINS; spin++) {
        if (is_new(pool, seen)) return;
        relax();
    }
    pthread_mutex_lock(&pool->lock);
    pool->n_asleep++;
    while (!is_new(pool, seen) && !atomic_load(&pool->stop)) pthread_cond_wait(&pool->wake, &pool->lock);
    pool->n_asleep--;
    pthread_mutex_unlock(&pool->lock);
}

/* Counts this worker in; false if the job closed meanwhile. */
static bool enter(nib_pool *pool, uint32_t *seen) {
    uint64_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
    do {
        if ((call_of(state) & 1) == 0) return false;
    } while (!atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1, memory_order_acquire,
                                                    memory_order_acquire));
    *seen = call_of(state);
    return true;
}

static void *worker_main(void *argument) {
    nib_pool *pool = argument;
    const unsigned worker = 1 + atomic_fetch_add(&pool->n_named, 1);
    for (uint32_t seen = 0;;) {
        wait_for_job(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        if (!enter(pool, &seen)) continue;
        work(pool, worker);
        atomic_fetch_sub_explicit(&pool->state, 1, memory_order_release);
    }
}

/* The lock makes sure that a worker about to sleep either sees what was stored before or is woken. */
static void wake_workers(nib_pool *pool) {
    pthread_mutex_lock(&pool->lock);
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
    wake_workers(pool);
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
    atomic_fetch_add_explicit(&pool->state, one_call, memory_order_release);
    wake_workers(pool);
    work(pool, 0);
    atomic_fetch_add_explicit(&pool->state, one_call, memory_order_relaxed);
    for (unsigned spin = 0; (uint32_t)atomic_load_explicit(&pool->state, memory_order_acquire) != 0; spin++) {
        relax();
        if (spin % 1024 == 1023) sched_yield(); /* more threads than cores */
    }
}
