/* The machine: name of the processor, cores this process may use, bandwidth of its memory. */
#include "base/memory.h"
#include "base/os.h"
#include "cpu/cpu.h"
#include "cpu/pool.h"

#include <ctype.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- name ------------------------------------------------------------------------------------------------------- */

static char processor_name[128] = "unknown";
static pthread_once_t name_once = PTHREAD_ONCE_INIT;

/* The first "model name" of /proc/cpuinfo, blanks at the ends removed, odd bytes replaced. */
static void find_name(void) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "model name", 10) && strncmp(line, "Model", 5)) continue;
        const char *text = strchr(line, ':');
        if (!text) continue;
        text++;
        while (isspace((unsigned char)*text)) text++;
        size_t n = strlen(text);
        while (n && isspace((unsigned char)text[n - 1])) n--;
        if (!n) continue;
        if (n >= sizeof processor_name) n = sizeof processor_name - 1;
        for (size_t i = 0; i < n; i++) processor_name[i] = isprint((unsigned char)text[i]) ? text[i] : '?';
        processor_name[n] = 0;
        break;
    }
    if (file) fclose(file);
}

const char *nib_cpu_name(void) {
    pthread_once(&name_once, find_name);
    return processor_name;
}

/* ---- cores ------------------------------------------------------------------------------------------------------ */

static bool read_line(const char *path, char *line, size_t capacity) {
    FILE *file = fopen(path, "r");
    const bool read = file && fgets(line, (int)capacity, file);
    if (file) fclose(file);
    return read;
}

/* Is cpu the first one we may use among the hardware threads of its core? Unknown topology: every cpu is a core. */
static bool leads_core(unsigned cpu, const cpu_set_t *set, size_t set_bytes) {
    char path[128], line[1024];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    if (!read_line(path, line, sizeof line)) return true;
    for (char *at = line; isdigit((unsigned char)*at);) { /* "0,64" or "0-1" */
        const unsigned long first = strtoul(at, &at, 10), last = *at == '-' ? strtoul(at + 1, &at, 10) : first;
        for (unsigned long i = first; i <= last && i < cpu; i++)
            if (CPU_ISSET_S(i, set_bytes, set)) return false;
        if (*at == ',') at++;
    }
    return true;
}

/* The processors this process may use as it starts to ask, the first of every core before the others. */
static struct {
    unsigned *numbers; /* NULL if the system does not say */
    unsigned n, n_cores;
} usable;
static pthread_once_t usable_once = PTHREAD_ONCE_INIT;

static void find_usable(void) {
    enum { MAX_CPUS = 8192 };
    cpu_set_t *set = CPU_ALLOC(MAX_CPUS);
    const size_t set_bytes = CPU_ALLOC_SIZE(MAX_CPUS);
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    if (set && !sched_getaffinity(0, set_bytes, set))
        usable.numbers = nib_alloc((size_t)CPU_COUNT_S(set_bytes, set), sizeof *usable.numbers);
    for (int leading = 1; usable.numbers && leading >= 0; leading--) {
        for (unsigned i = 0; i < MAX_CPUS; i++)
            if (CPU_ISSET_S(i, set_bytes, set) && leads_core(i, set, set_bytes) == leading)
                usable.numbers[usable.n++] = i;
        if (leading) usable.n_cores = usable.n;
    }
    if (set) CPU_FREE(set);
    if (!usable.n) usable.n = usable.n_cores = online > 0 ? (unsigned)online : 1;
}

unsigned nib_cpu_processors(void) {
    pthread_once(&usable_once, find_usable);
    return usable.n;
}

bool nib_cpu_bind(pthread_t thread, unsigned index) {
    pthread_once(&usable_once, find_usable);
    if (!usable.numbers) return false;
    const unsigned number = usable.numbers[index % usable.n];
    cpu_set_t *set = CPU_ALLOC(number + 1);
    if (!set) return false;
    const size_t set_bytes = CPU_ALLOC_SIZE(number + 1);
    CPU_ZERO_S(set_bytes, set);
    CPU_SET_S(number, set_bytes, set);
    const bool bound = pthread_setaffinity_np(thread, set_bytes, set) == 0;
    CPU_FREE(set);
    return bound;
}

/* Whole cores that one cgroup directory allows; 0 = no limit there. */
static double quota_of_directory(const char *directory, bool v2) {
    char path[4608], line[128];
    double quota, period;
    if (v2) {
        snprintf(path, sizeof path, "%s/cpu.max", directory);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lf %lf", &quota, &period) != 2) return 0;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lf", &quota) != 1) return 0;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lf", &period) != 1) return 0;
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

/* The least quota from this process's group up to the root of the hierarchy; 0 = none. */
static double quota_of_group(const char *root, const char *group, bool v2) {
    char directory[4480];
    double least = 0;
    const size_t n_root = strlen(root);
    snprintf(directory, sizeof directory, "%s%s", root, group);
    for (;;) {
        const double quota = quota_of_directory(directory, v2);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
        char *slash = strrchr(directory, '/');
        if (!slash || slash < directory + n_root) return least;
        *slash = 0;
    }
}

double nib_cpu_quota(const char *groups_path, const char *root) {
    FILE *file = fopen(groups_path, "r");
    char line[4200], cpu_root[256];
    snprintf(cpu_root, sizeof cpu_root, "%s/cpu", root);
    double least = 0;
    while (file && fgets(line, sizeof line, file)) { /* "0::/path" or "4:cpu,cpuacct:/path" */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        controllers++;
        const bool v2 = !*controllers;
        if (!v2 && strcmp(controllers, "cpu") && strncmp(controllers, "cpu,", 4) && !strstr(controllers, ",cpu"))
            continue;
        const double quota = quota_of_group(v2 ? root : cpu_root, group, v2);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
    }
    if (file) fclose(file);
    return least;
}

unsigned nib_cpu_cores(void) {
    pthread_once(&usable_once, find_usable);
    const double quota = nib_cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota <= 0 || quota >= usable.n_cores) return usable.n_cores;
    return quota < 1 ? 1 : (unsigned)quota;
}

/* ---- bandwidth -------------------------------------------------------------------------------------------------- */

enum { PIECE_BYTES = 1 << 20, SLOTS = 1024 };

typedef struct read_job {
    uint64_t *words;
    uint64_t sums[SLOTS]; /* by worker, so that no read can be left out */
} read_job;

/* Fresh memory is one shared page of zeros until written; only then does reading it mean reading memory. */
static void fill_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    read_job *job = arg;
    (void)worker;
    memset((char *)job->words + begin * PIECE_BYTES, 0x55, (end - begin) * PIECE_BYTES);
}

static void read_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    read_job *job = arg;
    enum { LANES = 16 };
    uint64_t lanes[LANES] = {0};
    const uint64_t *at = job->words + begin * (PIECE_BYTES / 8), *stop = job->words + end * (PIECE_BYTES / 8);
    for (; at < stop; at += LANES)
        for (int i = 0; i < LANES; i++) lanes[i] ^= at[i];
    uint64_t sum = 0;
    for (int i = 0; i < LANES; i++) sum ^= lanes[i];
    job->sums[worker % SLOTS] ^= sum;
}

/* Bytes of all last-level caches this process may use. The system's own sum (sysconf) counts those of other guests too. */
static size_t last_cache_bytes(void) {
    cpu_set_t set;
    size_t total = 0;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[128], line[256];
        unsigned long first, kilobytes;
        if (!CPU_ISSET(cpu, &set)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/cache/index3/shared_cpu_list", cpu);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lu", &first) != 1) continue;
        if (first != cpu && CPU_ISSET(first, &set)) continue; /* counted with its first core */
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/cache/index3/size", cpu);
        if (read_line(path, line, sizeof line) && sscanf(line, "%luK", &kilobytes) == 1) total += kilobytes << 10;
    }
    return total;
}

double nib_cpu_measure_read_bandwidth(nib_pool *pool, double seconds) {
    /* Caches keep part of what is read in a circle: of twice their size a third and more, of eight times next to nothing. */
    size_t n_bytes = 8 * last_cache_bytes();
    if (n_bytes < (size_t)64 << 20) n_bytes = (size_t)64 << 20;
    if (n_bytes > (size_t)512 << 20) n_bytes = (size_t)512 << 20;
    const size_t n_pieces = n_bytes / PIECE_BYTES;
    read_job *job = nib_alloc(1, sizeof *job);
    double best = 0;
    if (job) job->words = nib_alloc_aligned(n_pieces * PIECE_BYTES);
    if (job && job->words) {
        nib_os_prefer_large_pages(job->words, n_pieces * PIECE_BYTES);
        nib_par_for(pool, n_pieces, 1, fill_pieces, job);
        const double began = nib_now();
        double now = began;
        do {
            const double before = now;
            nib_par_for(pool, n_pieces, 4, read_pieces, job);
            now = nib_now();
            const double rate = (double)n_pieces * PIECE_BYTES / (now - before);
            if (rate > best) best = rate;
        } while (now - began < seconds);
    }
    if (job) nib_free_aligned(job->words);
    free(job);
    return best;
}
