/* The pool of workers: every piece once, whoever sleeps or is not scheduled; and how many processors there are to use. */
#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "unit.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_ITEMS = 1003, GRAIN = 7, MOST_THREADS = 9 };

typedef struct work {
    unsigned seen[N_ITEMS];        /* plain: a piece that two workers run is a race the thread sanitizer sees */
    unsigned in_use[MOST_THREADS]; /* likewise for worker numbers */
    unsigned sleep_us;             /* of worker 1, in every piece */
} work;

static void count_items(void *arg, size_t begin, size_t end, unsigned worker) {
    work *w = arg;
    assert_true(end - begin <= GRAIN && begin % GRAIN == 0 && (end - begin == GRAIN || end == N_ITEMS));
    w->in_use[worker]++;
    if (worker == 1 && w->sleep_us) usleep(w->sleep_us);
    for (size_t i = begin; i < end; i++) w->seen[i]++;
}

static void run_rounds(nib_pool *pool, unsigned n_rounds, unsigned sleep_us) {
    static work w;
    for (unsigned round = 0; round < n_rounds; round++) {
        memset(&w, 0, sizeof w);
        w.sleep_us = sleep_us;
        nib_par_for(pool, N_ITEMS, GRAIN, count_items, &w);
        for (size_t i = 0; i < N_ITEMS; i++) assert_int_equal(w.seen[i], 1);
        if (round % 100 == 99) usleep(3000); /* let the workers fall asleep */
    }
}

static nib_pool *pool_of(unsigned n_threads) {
    nib_pool *pool;
    assert_int_equal(nib_pool_new(n_threads, &pool, NULL), NIB_OK);
    assert_int_equal(nib_pool_size(pool), n_threads ? n_threads : nib_cpu_cores());
    return pool;
}

static void every_piece_once(void **state) {
    (void)state;
    static const unsigned sizes[] = {1, 2, 3, MOST_THREADS, 0};
    for (size_t s = 0; s < (sizeof sizes / sizeof *sizes); s++) {
        nib_pool *pool = pool_of(sizes[s]);
        run_rounds(pool, 300, 0);
        run_rounds(pool, 2, 50); /* the caller waits for a slow one, and falls asleep */
        nib_pool_free(pool);
    }
    run_rounds(NULL, 1, 0);
    nib_error error;
    nib_pool *pool;
    assert_int_equal(nib_pool_new(5000, &pool, &error), NIB_ERR_USAGE);
}

/* Calls without work in them follow each other as fast as they can: workers come late, enter and leave at every moment. */
static void late_workers_do_no_harm(void **state) {
    (void)state;
    static work w;
    for (unsigned n_threads = 2; n_threads <= 5; n_threads += 3) {
        nib_pool *pool = pool_of(n_threads);
        memset(&w, 0, sizeof w);
        for (unsigned call = 0; call < 3000; call++) nib_par_for(pool, 2 * GRAIN, GRAIN, count_items, &w);
        for (size_t i = 0; i < 2 * GRAIN; i++) assert_int_equal(w.seen[i], 3000);
        nib_pool_free(pool);
    }
}

static void pools_come_and_go(void **state) {
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        nib_pool *pool = pool_of(4);
        if (i % 2) run_rounds(pool, 1, 0);
        nib_pool_free(pool);
    }
}

/* The binding of the calling thread is undone at the end. */
static void pinned_workers_work(void **state) {
    (void)state;
    nib_pool *pool = pool_of(3);
    cpu_set_t before, after;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(nib_pool_pin(pool, NULL), NIB_OK);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_int_equal(CPU_COUNT(&after), 1);
    run_rounds(pool, 50, 0);
    assert_int_equal(nib_cpu_processors(),
                     CPU_COUNT(&before)); /* what the process may use, not what this thread kept */
    nib_pool_free(pool);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

/* ---- quotas ----------------------------------------------------------------------------------------------------- */

static void put(const char *root, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0 && fclose(file) == 0);
}

static void quotas_are_found(void **state) {
    (void)state;
    static const struct {
        const char *groups;
        double quota;
    } cases[] = {
        {"0::/free\n", 0},
        {"0::/half/inner\n", 0.5},                   /* of the group around it */
        {"0::/elsewhere/in/the/host\n", 0},          /* a path this container does not see */
        {"3:cpuset:/\n4:cpu,cpuacct:/old\n", 3},     /* version 1 */
        {"4:cpuacct,cpu:/old/wider\n0::/free\n", 3}, /* the least on the way up */
        {"4:cpuset:/old\n5:memory:/old\n", 0},       /* other controllers */
        {"", 0},
        {"no colons\n::\n0:\n", 0},
    };
    char root[] = "/tmp/nibble-test-XXXXXX", groups[64], command[64];
    assert_non_null(mkdtemp(root));
    put(root, "free/cpu.max", "max 100000\n");
    put(root, "half/cpu.max", "50000 100000\n");
    put(root, "half/inner/cpu.max", "max 100000\n");
    put(root, "cpu/old/cpu.cfs_quota_us", "300000\n");
    put(root, "cpu/old/cpu.cfs_period_us", "100000\n");
    put(root, "cpu/old/wider/cpu.cfs_quota_us", "800000\n");
    put(root, "cpu/old/wider/cpu.cfs_period_us", "100000\n");
    snprintf(groups, sizeof groups, "%s/groups", root);
    for (size_t i = 0; i < (sizeof cases / sizeof *cases); i++) {
        put(root, "groups", cases[i].groups);
        assert_true(nib_cpu_quota(groups, root) == cases[i].quota);
    }
    assert_true(nib_cpu_quota("/nonexistent", root) == 0);
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
    assert_in_range(nib_cpu_cores(), 1, nib_cpu_processors());
}

/* Workers that fetch ahead do their pieces as ever, and begin to fetch where their share begins. */
static void what_is_expected_is_shared_out(void **state) {
    (void)state;
    enum { BYTES = 1 << 20 };
    char *memory = calloc(BYTES, 1);
    assert_non_null(memory);
    const nib_span spans[] = {{NULL, 0}, {memory, 600}, {memory + 1000, BYTES - 1000}, {memory + 700, 100}, {NULL, 0}};
    static const unsigned sizes[] = {1, 2, 3, MOST_THREADS};
    for (size_t s = 0; s < (sizeof sizes / sizeof *sizes); s++) {
        nib_pool *pool = pool_of(sizes[s]);
        for (unsigned n = 0; n <= (sizeof spans / sizeof *spans); n++) {
            nib_pool_expect(pool, spans, n);
            run_rounds(pool, 20, 0);
        }
        nib_pool_free(pool);
    }
    nib_pool_expect(NULL, spans, 1);
    free(memory);

    static const struct {
        unsigned worker, n_workers;
        size_t from, bytes; /* counted through spans of 100, 0 and 300 bytes */
    } cases[] = {{0, 1, 0, 100}, {0, 2, 0, 100}, {1, 2, 200, 200}, {1, 4, 100, 300}, {3, 4, 300, 100}, {8, 9, 352, 48}};
    static const char bytes[400];
    const nib_span few[] = {{bytes, 100}, {NULL, 0}, {bytes + 100, 300}};
    for (size_t i = 0; i < (sizeof cases / sizeof *cases); i++) {
        const nib_span share = nib_span_share(few, 3, cases[i].worker, cases[i].n_workers);
        assert_ptr_equal(share.data, bytes + cases[i].from);
        assert_int_equal(share.bytes, cases[i].bytes);
    }
    assert_int_equal(nib_span_share(few, 0, 1, 2).bytes, 0);
    assert_int_equal(nib_span_share(few + 1, 1, 0, 1).bytes, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_piece_once),
        cmocka_unit_test(late_workers_do_no_harm),
        cmocka_unit_test(pools_come_and_go),
        cmocka_unit_test(pinned_workers_work),
        cmocka_unit_test(what_is_expected_is_shared_out),
        cmocka_unit_test(quotas_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
