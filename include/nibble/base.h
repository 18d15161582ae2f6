/* Status codes, errors, progress and worker threads.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_BASE_H
#define NIBBLE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NIB_API                      __attribute__((visibility("default")))
#define NIB_PRINTF(fmt_index, first) __attribute__((format(printf, fmt_index, first)))
#else
#define NIB_API
#define NIB_PRINTF(fmt_index, first)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Frozen values; the command line uses them as exit codes. */
typedef enum nib_status {
    NIB_OK = 0,
    NIB_ERR_GATE = 1,        /* a quality gate the caller set was not met */
    NIB_ERR_USAGE = 2,       /* wrong arguments, an output that exists, an unknown level */
    NIB_ERR_CORRUPT = 3,     /* the content of an input is broken or hostile */
    NIB_ERR_IO = 4,          /* reading, writing, permission, space */
    NIB_ERR_MEMORY = 5,      /* not enough memory */
    NIB_ERR_NETWORK = 6,     /* network */
    NIB_ERR_UNSUPPORTED = 7, /* valid, but nibble cannot do it (yet) */
    NIB_ERR_BUG = 8,         /* a promise inside nibble was broken */
    NIB_ERR_INTERRUPTED = 130
} nib_status;

/* What happened, where, and what to do. Plain storage, no allocation: declare one, pass its address.
 * Texts are UTF-8, cut to fit; bytes that are not printable are replaced, so they are safe to show. */
typedef struct nib_error {
    nib_status code;
    int os_errno;      /* errno of the failed system call, 0 if none */
    int64_t offset;    /* byte offset in file, -1 if none */
    char message[512]; /* what happened */
    char file[1024];   /* file it happened in, "" if none */
    char field[128];   /* field, tensor or key, "" if none */
    char hint[256];    /* what to do, "" if nothing helps */
} nib_error;

/* One-word name of a status: "ok", "corrupt", ... Never NULL. */
NIB_API const char *nib_status_name(nib_status status);

/* "0.1.0" */
NIB_API const char *nib_version(void);

/* Where a long operation stands. */
typedef struct nib_progress {
    const char *stage;  /* "quantize q4_k", "perplexity": short, stable while total stays the same */
    double done, total; /* in one unit of the operation's own; total > 0 */
    double seconds;     /* since the operation began */
    double eta_seconds; /* estimated time left, < 0 while unknown */
} nib_progress;

/* How a caller listens to a long operation. Every member may be NULL, and so may a pointer to it.
 * progress: called at most about ten times a second from the calling thread; return false to stop the operation,
 *           which then cleans up and returns NIB_ERR_INTERRUPTED.
 * warn:     something the user should know that is not an error; one line of text, no newline. */
typedef struct nib_watch {
    void *user;
    bool (*progress)(void *user, const nib_progress *progress);
    void (*warn)(void *user, const char *message);
} nib_watch;

/* Worker threads. Created once, handed to every operation; idle workers sleep. */
typedef struct nib_pool nib_pool;

/* n_threads: 1..1024 workers, the calling thread counted; 0 = one per physical core this process may use. */
NIB_API nib_status nib_pool_new(unsigned n_threads, nib_pool **out, nib_error *error);
NIB_API void nib_pool_free(nib_pool *pool);
/* Number of workers; 1 for NULL. */
NIB_API unsigned nib_pool_size(const nib_pool *pool);

/* Binds every worker, and the calling thread as the first of them, to a processor of its own, cores before their second
 * hardware threads. For machines with several memories or kinds of cores and nothing else to do; beside other busy programs
 * it does harm. NIB_ERR_UNSUPPORTED if the system refuses. */
NIB_API nib_status nib_pool_pin(nib_pool *pool, nib_error *error);

/* Seconds of a monotonic clock. */
NIB_API double nib_now(void);

/* Peak resident memory of this process that is not file-backed, in bytes; 0 where unknown. */
NIB_API uint64_t nib_peak_anonymous_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
