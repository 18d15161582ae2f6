/* One output of the quantizer while it is written: its files, its hashes, its journal. */
#ifndef NIB_QUANT_TARGET_H
#define NIB_QUANT_TARGET_H

#include "quant/journal.h"
#include "quant/layout.h"

typedef struct nib_target {
    const char *path_out;
    nib_layout layout;
    nib_string fields; /* what the output depends on, for the journal */
    bool resume, force, sync, has_journal, is_open;

    nib_journal *journal;       /* NULL without one */
    nib_journal_entry *entries; /* (n) the first n_done of them filled */
    size_t n_done;              /* tensors written */
    XXH3_state_t *whole, *one;  /* all tensors so far; the payload of the one being written */
} nib_target;

/* Opens and locks the files; continues an earlier run if resume, and says so. n_done is where to go on. */
nib_status nib_target_open(nib_target *target, const nib_watch *watch, nib_error *error);
/* The next tensor: begin, its payload in as many pieces as wanted, end. sums: the three sums of a journal entry. */
void nib_target_begin_tensor(nib_target *target);
nib_status nib_target_write(nib_target *target, const void *data, size_t n_bytes, nib_error *error);
nib_status nib_target_end_tensor(nib_target *target, const nib_journal_entry *sums, nib_error *error);
/* Fills in the hashes and gives the files their names. The journal stays until nib_target_fini. */
nib_status nib_target_commit(nib_target *target, nib_error *error);
/* Frees everything. keep: what is unfinished stays, to be resumed. */
void nib_target_fini(nib_target *target, bool keep);

#endif
