/* How much of the machine others take: the system's count of busy time less this process's own. */
#include "base/error.h"
#include "cpu/cpu.h"

#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

/* Seconds of all cores that were not idle since the system started, time stolen by other guests included; negative where
 * the system does not say. */
static double busy_seconds(void) {
    FILE *file = fopen("/proc/stat", "r");
    unsigned long long user, nice, system, idle, waiting, irq, soft, steal;
    const long ticks = sysconf(_SC_CLK_TCK);
    const bool read = file != NULL && fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system,
                                             &idle, &waiting, &irq, &soft, &steal) == 8;
    if (file != NULL) fclose(file);
    return read && ticks > 0 ? (double)(user + nice + system + irq + soft + steal) / (double)ticks : -1;
}

static double own_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
           1e-6 * ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec);
}

void nib_cpu_busy_begin(nib_cpu_busy *busy) {
    *busy = (nib_cpu_busy){.all = busy_seconds(), .own = own_seconds(), .began = nib_now()};
}

double nib_cpu_busy_others(const nib_cpu_busy *busy) {
    const double all = busy_seconds() - busy->all, own = own_seconds() - busy->own, took = nib_now() - busy->began;
    if (busy->all < 0 || took <= 0 || all <= own) return 0;
    return (all - own) / took;
}
