/* What a run has done so far, in OUT.journal, so that another one can go on where it was killed. */
#ifndef NIB_QUANT_JOURNAL_H
#define NIB_QUANT_JOURNAL_H

#include "base/error.h"
#include "base/memory.h"

/* One tensor that is written in full. */
typedef struct nib_journal_entry {
    uint64_t offset, n_bytes; /* in its file */
    uint64_t xxh3;            /* of the payload */
    /* Sums of the measured error, 0 if it was not measured. */
    double sum_squares, sum_squared_errors, max_abs_error;
} nib_journal_entry;

typedef struct nib_journal nib_journal;

/* What the file depends on: "NAME VALUE\n" lines, of printable characters, at most 64 KiB.
 * begin: a new journal in place of any old one.
 * resume: reads the old one, and goes on after its whole entries. entries: (most), the first *n_entries filled.
 * *n_entries is 0 without an old journal, or if its beginning is torn: then as begin.
 * NIB_ERR_USAGE: the old one was written with other fields; the first that differs is named. */
nib_status nib_journal_begin(const char *path_out, const char *fields, nib_journal **out, nib_error *error);
nib_status nib_journal_resume(const char *path_out, const char *fields, nib_journal_entry *entries, size_t most,
                              size_t *n_entries, nib_journal **out, nib_error *error);
/* Forgets all entries but the first n. */
nib_status nib_journal_cut(nib_journal *journal, size_t n, nib_error *error);
nib_status nib_journal_add(nib_journal *journal, const nib_journal_entry *entry, nib_error *error);
/* Frees it; the file stays or goes. NULL is fine. */
void nib_journal_close(nib_journal *journal, bool keep);
/* Removes a journal of an earlier run. */
void nib_journal_remove(const char *path_out);

#endif
