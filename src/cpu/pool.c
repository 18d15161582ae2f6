/* A pool of workers that sleep between calls.
 *
 *   state   | number of the call, odd while open : 21 bits | workers inside : 11 bits |
 *
 * A call opens its job by making the number odd; a worker enters by counting itself in, which works only while the job is
 * open. Pieces are claimed from one counter, several at a time while many are left; the caller claims too, as worker 0.
 * When nothing is left the caller closes the job (the number becomes even) and waits for those inside only: a worker the
 * system has not scheduled in time is not waited for, so a busy machine slows the work down but does not stall it.
 *
 * Who waits spins for a moment, since jobs follow each other within microseconds, then sleeps until the word changes. A
 * core taken away shows as a spin that took far too long: the next waits then sleep at once, which leaves the core to
 * whoever has work (often the worker this one waits for). With more threads than processors nobody spins. */
#include "cpu/pool.h"

#include "base/error.h"
#include "base/memory.h"
#include "base/os.h"
#include "cpu/cpu.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

enum { MAX_THREADS = 1024 };
static const uint32_t one_call = 1u << 11;

static const double spin_seconds = 50e-6;
enum {
    SPINS_PER_LOOK = 16, /* at the clock */
    WAITS_ASLEEP = 64,   /* that do not spin after a core was taken away */
};
/* A few looks at the clock further apart than this: this thread did not run in between. */
static const double taken_away_seconds = 200e-6;

typedef struct {
    nib_work_fn fn;
    void *arg;
    size_t n, grain, n_pieces;
} job;

struct nib_pool {
    unsigned n_threads, n_started;
    bool may_spin;
    pthread_t *threads;
    atomic_bool stop;
    atomic_uint n_named;                    /* hands out worker numbers */
    job job;                                /* written while the job is closed and nobody is inside */
    unsigned caller_no_spin;                /* waits of the caller that are not to spin */
    _Alignas(64) atomic_size_t next;        /* first piece nobody has claimed */
    _Alignas(64) _Atomic uint32_t state;    /* workers sleep on it */
    _Alignas(64) _Atomic uint32_t n_asleep; /* workers that sleep, or are about to look at state and sleep */
    _Atomic uint32_t caller_asleep;         /* 1: the caller waits for the last one inside */
};

static uint32_t call_of(uint32_t state) {
    return state / one_call;
}
static bool is_open(uint32_t state) {
    return (call_of(state) & 1) != 0;
}
static uint32_t inside_of(uint32_t state) {
    return state % one_call;
}

/* ---- Waiting ---------------------------------------------------------------------------------------------------------- */

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* What is waited for. seen: the last call this worker was in. */
typedef bool (*wait_fn)(nib_pool *pool, uint32_t seen);

/* Is there a job this worker has not seen, or an end? */
static bool has_work(nib_pool *pool, uint32_t seen) {
    const uint32_t state = atomic_load(&pool->state);
    return (is_open(state) && call_of(state) != seen) || atomic_load_explicit(&pool->stop, memory_order_relaxed);
}

static bool nobody_inside(nib_pool *pool, uint32_t seen) {
    (void)seen;
    return inside_of(atomic_load(&pool->state)) == 0;
}

/* true once there is what is waited for, false when it is time to sleep. no_spin counts down the waits that sleep at once. */
static bool spin(nib_pool *pool, wait_fn done, uint32_t seen, unsigned *no_spin) {
    if (done(pool, seen)) return true;
    if (!pool->may_spin) return false;
    if (*no_spin > 0) {
        --*no_spin;
        return false;
    }
    const double began = nib_now();
    for (double before = began, now; before - began < spin_seconds; before = now) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (done(pool, seen)) return true;
            relax();
        }
        now = nib_now();
        if (now - before > taken_away_seconds) *no_spin = WAITS_ASLEEP;
    }
    return false;
}

static void wait_for_work(nib_pool *pool, uint32_t seen, unsigned *no_spin) {
    if (spin(pool, has_work, seen, no_spin)) return;
    /* Whoever opens a job changes state, then looks whether somebody sleeps: one of the two sees the other. */
    atomic_fetch_add(&pool->n_asleep, 1);
    for (;;) {
        const uint32_t state = atomic_load(&pool->state);
        if (has_work(pool, seen)) break;
        nib_os_wait(&pool->state, state);
    }
    atomic_fetch_sub(&pool->n_asleep, 1);
}

static void wait_for_workers(nib_pool *pool) {
    if (spin(pool, nobody_inside, 0, &pool->caller_no_spin)) return;
    for (;;) {
        atomic_store(&pool->caller_asleep, 1);
        if (nobody_inside(pool, 0)) break;
        nib_os_wait(&pool->caller_asleep, 1);
    }
    atomic_store(&pool->caller_asleep, 0);
}

/* ---- Working ---------------------------------------------------------------------------------------------------------- */

/* While many pieces are left a claim takes several, so that workers seldom meet at the counter; the last ones go one by
 * one, so that a slow core ends about when the others do. */
static size_t claim(nib_pool *pool, size_t n_pieces, size_t *n) {
    size_t first = atomic_load_explicit(&pool->next, memory_order_relaxed);
    do {
        if (first >= n_pieces) return n_pieces;
        *n = (n_pieces - first) / (4 * (size_t)pool->n_threads);
        if (*n == 0) *n = 1;
    } while (!atomic_compare_exchange_weak_explicit(&pool->next, &first, first + *n, memory_order_relaxed,
                                                    memory_order_relaxed));
    return first;
}

static void run_pieces(const job *of, size_t first, size_t n, unsigned worker) {
    for (size_t i = first; i < first + n; i++) {
        const size_t begin = i * of->grain, left = of->n - begin;
        of->fn(of->arg, begin, begin + (left < of->grain ? left : of->grain), worker);
    }
}

static void work(nib_pool *pool, unsigned worker) {
    const job current = pool->job;
    for (size_t first, n = 0; (first = claim(pool, current.n_pieces, &n)) < current.n_pieces;)
        run_pieces(&current, first, n, worker);
}

/* Counts this worker in; false if the job closed meanwhile. */
static bool enter(nib_pool *pool, uint32_t *seen) {
    uint32_t state = atomic_load(&pool->state);
    do {
        if (!is_open(state)) return false;
    } while (!atomic_compare_exchange_weak(&pool->state, &state, state + 1));
    *seen = call_of(state);
    return true;
}

static void leave(nib_pool *pool) {
    const uint32_t before = atomic_fetch_sub(&pool->state, 1);
    if (inside_of(before) == 1 && atomic_load(&pool->caller_asleep)) {
        atomic_store(&pool->caller_asleep, 0);
        nib_os_wake(&pool->caller_asleep, 1);
    }
}

static void *worker_main(void *argument) {
    nib_pool *pool = argument;
    const unsigned worker = 1 + atomic_fetch_add(&pool->n_named, 1);
    unsigned no_spin = 0;
    for (uint32_t seen = 0;;) {
        wait_for_work(pool, seen, &no_spin);
        if (atomic_load(&pool->stop)) return NULL;
        if (!enter(pool, &seen)) continue;
        work(pool, worker);
        leave(pool);
    }
}

/* ---- Public ----------------------------------------------------------------------------------------------------------- */

nib_status nib_pool_new(unsigned n_threads, nib_pool **out, nib_error *error) {
    *out = NULL;
    if (n_threads > MAX_THREADS)
        return nib_fail(error, NIB_ERR_USAGE, "%u threads are too many (at most %d)", n_threads, MAX_THREADS);
    if (n_threads == 0) n_threads = nib_cpu_cores();
    nib_pool *pool = nib_alloc_aligned(sizeof *pool);
    if (!pool) return nib_fail_memory(error, sizeof *pool);
    pool->n_threads = n_threads;
    pool->may_spin = n_threads <= nib_cpu_processors();
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
    atomic_fetch_add(&pool->state, 2 * one_call); /* so that nobody falls asleep on what it was */
    nib_os_wake(&pool->state, INT_MAX);
    for (unsigned i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    free(pool->threads);
    nib_free_aligned(pool);
}

nib_status nib_pool_pin(nib_pool *pool, nib_error *error) {
    bool bound = nib_cpu_bind(pthread_self(), 0);
    for (unsigned i = 0; bound && i < pool->n_started; i++) bound = nib_cpu_bind(pool->threads[i], i + 1);
    if (bound) return NIB_OK;
    return nib_fail(error, NIB_ERR_UNSUPPORTED, "the system does not let threads be bound to processors");
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
    pool->job = (job){fn, arg, n, grain, n / grain + (n % grain != 0)};
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_fetch_add(&pool->state, one_call);
    if (atomic_load(&pool->n_asleep)) nib_os_wake(&pool->state, INT_MAX);
    work(pool, 0);
    atomic_fetch_add(&pool->state, one_call);
    wait_for_workers(pool);
}
