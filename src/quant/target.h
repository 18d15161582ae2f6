/* One output of the quantizer while it is written: its files, its hashes, its journal. */
#ifndef NIB_QUANT_TARGET_H
#define NIB_QUANT_TARGET_H

#include "file/gguf_write.h"
#include "nibble/quant.h"
#include "quant/journal.h"

/* Where a tensor's payload stands. */
typedef struct nib_place {
    uint32_t part;
    uint64_t offset, n_bytes; /* from the start of the part's file; without padding */
} nib_place;

/* One file of an output. */
typedef struct nib_part {
    char *path;
    nib_gguf_head head;
    uint64_t n_bytes;   /* of the whole file */
    nib_output *output; /* NULL: not open, or finished before */
    nib_map finished;   /* what an earlier run wrote to the end and renamed */
} nib_part;

/* Everything that is known before the first byte is written. */
typedef struct nib_layout {
    nib_choice_of_format *choices; /* (n) in output order */
    nib_place *places;             /* (n) */
    size_t n;
    nib_part *parts; /* (n_parts) */
    size_t n_parts;
    uint64_t n_bytes; /* of all files */
    size_t hashes_at; /* where the tensors' hashes stand in the first file; 0: nowhere */
} nib_layout;

typedef struct nib_target {
    const char *path_out;
    nib_layout layout;
    nib_string fields; /* what the output depends on, for the journal */
    bool resume, force, sync, has_journal;

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
