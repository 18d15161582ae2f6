/* The pool by itself: what an empty parallel call costs, and whether it collapses when threads outnumber the cores that are
 * there for them.
 *
 *   usage: bench_pool [THREADS]
 *
 * The second part runs calls of small pieces with 1, THREADS and 4 * THREADS workers, alone and beside one process that
 * never rests. "of fair" is the speed relative to what an even share of the machine among all runnable threads would give
 * a pool of THREADS; 1 thread of its own is the unit. */
#include "cpu/pool.h"
#include "nibble/cpu.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void nothing(void *arg, size_t begin, size_t end, unsigned worker) {
    (void)arg, (void)begin, (void)end, (void)worker;
}

/* About a microsecond a piece: a few rows of a small matrix. */
static void piece(void *arg, size_t begin, size_t end, unsigned worker) {
    float *sums = arg, x = 1;
    for (size_t i = begin; i < end; i++)
        for (int k = 0; k < 1000; k++) x = x * 0.999f + (float)i;
    sums[worker * 16] = x;
}

static double call_seconds(nib_pool *pool, size_t n_pieces, nib_work_fn fn, double for_seconds) {
    static float sums[1024 * 16];
    size_t n = 0;
    const double began = nib_now();
    double now;
    do {
        for (int i = 0; i < 20; i++) nib_par_for(pool, n_pieces, 1, fn, sums);
        n += 20;
        now = nib_now();
    } while (now - began < for_seconds);
    return (now - began) / (double)n;
}

static double with_threads(unsigned n_threads, size_t n_pieces, nib_work_fn fn, double for_seconds) {
    nib_pool *pool;
    if (nib_pool_new(n_threads, &pool, NULL)) exit(1);
    call_seconds(pool, n_pieces, fn, 0.05);
    const double seconds = call_seconds(pool, n_pieces, fn, for_seconds);
    nib_pool_free(pool);
    return seconds;
}

static pid_t start_restless(void) {
    const pid_t child = fork();
    if (child == 0)
        for (volatile unsigned long i = 0;;) i++;
    return child;
}

int main(int argc, char **argv) {
    const unsigned n_threads = argc > 1 ? (unsigned)atoi(argv[1]) : nib_cpu_cores();
    printf("empty call, %u pieces: %.2f us with %u threads\n", n_threads,
           1e6 * with_threads(n_threads, n_threads, nothing, 0.5), n_threads);
    printf("empty call, 200 pieces: %.2f us with %u threads, %.2f us with 1\n",
           1e6 * with_threads(n_threads, 200, nothing, 0.5), n_threads, 1e6 * with_threads(1, 200, nothing, 0.2));
    const double alone = with_threads(1, 100, piece, 0.3);
    for (int rivals = 0; rivals < 2; rivals++) {
        const pid_t child = rivals ? start_restless() : 0;
        for (unsigned times = 0; times < 3; times++) {
            const unsigned n = times == 0 ? 1 : times == 1 ? n_threads : 4 * n_threads;
            const double seconds = with_threads(n, 100, piece, 1);
            printf("%d busy processes beside %2u threads: %7.1f us a call, %.2f x one thread alone\n", rivals, n,
                   1e6 * seconds, alone / seconds);
        }
        if (child > 0) kill(child, SIGKILL), waitpid(child, NULL, 0);
    }
    return 0;
}
