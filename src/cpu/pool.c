/* A pool of workers that sleep between calls.
 *
 *   state   | number of the call, odd while open : 21 bits | workers inside : 11 bits |
 *
 * A call opens its job by making the number odd; a worker enters by counting itself in, which works only while the job is
 * open. Every worker begins with an equal share of the pieces, one after the other, so that it reads memory in one stream;
 * one whose share is done takes half of what another has left, from its end. The caller works too, as worker 0. When
 * nothing is left it closes the job (the number becomes even) and waits for those inside only: a worker the system has not
 * scheduled in time is not waited for, so a busy machine slows the work down but does not stall it.
 *
 * Who waits fetches the beginning of what is expected next into its cache, so that memory is busy between two calls too,
 * spins for a moment, since jobs follow each other within microseconds, then sleeps until the word changes. A core taken
 * away shows as a spin that took far too long: the next waits then sleep at once, which leaves the core to whoever has work
 * (often the worker this one waits for). With more threads than processors nobody spins. */
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
static const size_t most_pieces = UINT32_MAX; /* of a call, so that a share fits one word */

/* What is fetched ahead, at most: a good part of a second cache. Where a worker's whole share is small, as in models that fit
 * the caches, fetching it would only make the worker late. */
static const size_t most_ahead = (size_t)256 << 10, small_share = (size_t)128 << 10;
static const double spin_seconds = 50e-6;
enum {
    SPINS_PER_LOOK = 16, /* at the clock */
    WAITS_ASLEEP = 64,   /* that do not spin after a core was taken away */
    LINES_AT_ONCE = 16,  /* that are fetched between two looks at what is waited for */
    LINE_BYTES = 64,
};
/* A few looks at the clock further apart than this: this thread did not run in between. */
static const double taken_away_seconds = 200e-6;

/* What a thread fetches while it waits. */
typedef struct {
    const char *at, *end;
} ahead;

/* What comes after a job. */
typedef struct {
    nib_span spans[NIB_POOL_SPANS];
    unsigned n;
} expected;

typedef struct {
    nib_work_fn fn;
    void *arg;
    size_t first, n, grain;
    expected next;
} job;

/* Pieces begin .. end - 1 that a worker has still to do: end * 2^32 + begin. Within a call no value ever comes back. */
typedef struct {
    _Alignas(64) _Atomic uint64_t left;
} share;

struct nib_pool {
    unsigned n_threads, n_started;
    bool may_spin;
    pthread_t *threads;
    share *shares; /* (n_threads) */
    atomic_bool stop;
    atomic_uint n_named; /* hands out worker numbers */
    expected next;       /* of the caller's next job */
    ahead caller_ahead;
    job job;                                /* written while the job is closed and nobody is inside */
    unsigned caller_no_spin;                /* waits of the caller that are not to spin */
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

static inline void fetch(ahead *next) {
    for (int i = 0; i < LINES_AT_ONCE && next->at < next->end; i++, next->at += LINE_BYTES)
        __builtin_prefetch(next->at, 0, 2);
}

/* true once there is what is waited for, false when it is time to sleep. no_spin counts down the waits that sleep at once. */
static bool spin(nib_pool *pool, wait_fn done, uint32_t seen, unsigned *no_spin, ahead *next) {
    if (done(pool, seen)) return true;
    if (!pool->may_spin) return false;
    if (*no_spin > 0) {
        --*no_spin;
        return false;
    }
    for (; next->at < next->end; fetch(next))
        if (done(pool, seen)) return true;
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

static void wait_for_work(nib_pool *pool, uint32_t seen, unsigned *no_spin, ahead *next) {
    if (spin(pool, has_work, seen, no_spin, next)) return;
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
    if (spin(pool, nobody_inside, 0, &pool->caller_no_spin, &pool->caller_ahead)) return;
    for (;;) {
        atomic_store(&pool->caller_asleep, 1);
        if (nobody_inside(pool, 0)) break;
        nib_os_wait(&pool->caller_asleep, 1);
    }
    atomic_store(&pool->caller_asleep, 0);
}

/* ---- Working ---------------------------------------------------------------------------------------------------------- */

static uint64_t pack_share(uint64_t begin, uint64_t end) {
    return end << 32 | begin;
}
static uint64_t begin_of(uint64_t left) {
    return left & UINT32_MAX;
}
static uint64_t end_of(uint64_t left) {
    return left >> 32;
}

/* The first piece of a worker's own share; false if there is none. */
static bool take_own(share *own, uint64_t *piece) {
    uint64_t left = atomic_load_explicit(&own->left, memory_order_relaxed);
    do {
        *piece = begin_of(left);
        if (*piece == end_of(left)) return false;
    } while (!atomic_compare_exchange_weak_explicit(&own->left, &left, left + 1, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* The second half of another's share, the larger one: its first piece, and the rest for a worker who has none. */
static bool take_over(share *own, share *from, uint64_t *piece) {
    uint64_t left = atomic_load_explicit(&from->left, memory_order_relaxed);
    do {
        if (begin_of(left) == end_of(left)) return false;
        *piece = begin_of(left) + (end_of(left) - begin_of(left)) / 2;
    } while (!atomic_compare_exchange_weak_explicit(&from->left, &left, pack_share(begin_of(left), *piece),
                                                    memory_order_relaxed, memory_order_relaxed));
    atomic_store_explicit(&own->left, pack_share(*piece + 1, end_of(left)), memory_order_relaxed);
    return true;
}

static bool claim(nib_pool *pool, unsigned worker, uint64_t *piece) {
    share *own = &pool->shares[worker];
    bool found = take_own(own, piece);
    for (unsigned i = 1; !found && i < pool->n_threads; i++)
        found = take_over(own, &pool->shares[(worker + i) % pool->n_threads], piece);
    return found;
}

static void work(nib_pool *pool, unsigned worker, ahead *next) {
    const job of = pool->job;
    for (uint64_t piece; claim(pool, worker, &piece);) {
        const size_t at = (size_t)piece * of.grain, left = of.n - at, begin = of.first + at;
        of.fn(of.arg, begin, begin + (left < of.grain ? left : of.grain), worker);
    }
    const nib_span begin = nib_span_share(of.next.spans, of.next.n, worker, pool->n_threads);
    if (begin.bytes) {
        next->at = begin.data;
        next->end = next->at + (begin.bytes < most_ahead ? begin.bytes : most_ahead);
    }
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
    ahead next = {NULL, NULL};
    for (uint32_t seen = 0;;) {
        wait_for_work(pool, seen, &no_spin, &next);
        if (atomic_load(&pool->stop)) return NULL;
        if (!enter(pool, &seen)) continue;
        work(pool, worker, &next);
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
    pool->shares = nib_alloc_aligned(n_threads * sizeof *pool->shares);
    if (!pool->threads || !pool->shares) {
        nib_pool_free(pool);
        return nib_fail_memory(error, n_threads * (sizeof *pool->threads + sizeof *pool->shares));
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
    nib_free_aligned(pool->shares);
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

/* One call of at most most_pieces. */
static void run(nib_pool *pool, const job *of) {
    const uint64_t n_pieces = of->n / of->grain + (of->n % of->grain != 0);
    pool->job = *of;
    pool->job.next = pool->next;
    pool->next.n = 0;
    for (uint64_t i = 0; i < pool->n_threads; i++)
        atomic_store_explicit(&pool->shares[i].left,
                              pack_share(n_pieces * i / pool->n_threads, n_pieces * (i + 1) / pool->n_threads),
                              memory_order_relaxed);
    atomic_fetch_add(&pool->state, one_call);
    if (atomic_load(&pool->n_asleep)) nib_os_wake(&pool->state, INT_MAX);
    work(pool, 0, &pool->caller_ahead);
    atomic_fetch_add(&pool->state, one_call);
    wait_for_workers(pool);
}

void nib_par_for(nib_pool *pool, size_t n, size_t grain, nib_work_fn fn, void *arg) {
    if (n == 0) return;
    if (grain == 0) grain = 1;
    if (!pool || pool->n_threads == 1 || n <= grain) { /* the same pieces, one after the other */
        for (size_t begin = 0; begin < n; begin += grain) fn(arg, begin, n - begin < grain ? n : begin + grain, 0);
        return;
    }
    const size_t most = grain <= SIZE_MAX / most_pieces ? grain * most_pieces : SIZE_MAX;
    for (size_t first = 0; first < n;) {
        const size_t n_now = n - first < most ? n - first : most;
        run(pool, &(job){.fn = fn, .arg = arg, .first = first, .n = n_now, .grain = grain});
        first += n_now;
    }
}

void nib_pool_expect(nib_pool *pool, const nib_span *spans, unsigned n) {
    if (!pool) return;
    if (n > NIB_POOL_SPANS) n = NIB_POOL_SPANS;
    size_t all = 0;
    for (unsigned i = 0; i < n; i++) all += (pool->next.spans[i] = spans[i]).bytes;
    pool->next.n = all / pool->n_threads < small_share ? 0 : n;
}

nib_span nib_span_share(const nib_span *spans, unsigned n, unsigned worker, unsigned n_workers) {
    size_t all = 0;
    for (unsigned i = 0; i < n; i++) all += spans[i].bytes;
    size_t skip = all / n_workers * worker;
    for (; n > 0; spans++, n--) {
        if (skip < spans->bytes) return (nib_span){(const char *)spans->data + skip, spans->bytes - skip};
        skip -= spans->bytes;
    }
    return (nib_span){NULL, 0};
}
