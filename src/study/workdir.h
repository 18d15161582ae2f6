/* The directory of a study: filled under another name, renamed when complete. */
#ifndef NIB_STUDY_WORKDIR_H
#define NIB_STUDY_WORKDIR_H

#include "base/error.h"

typedef struct nib_workdir {
    char final_path[1024]; /* without trailing slashes */
    char temporary[1088];  /* beside it */
    bool made;             /* temporary exists and is ours */
    bool replaces;         /* final_path holds an earlier study, to be replaced */
} nib_workdir;

/* May a study be written to path? NIB_ERR_USAGE if it exists, unless force and it holds an earlier study and nothing else. */
nib_status nib_workdir_check(const char *path, bool force, nib_workdir *work, nib_error *error);
/* Makes the temporary directory. */
nib_status nib_workdir_make(nib_workdir *work, nib_error *error);
/* Path of a file in the temporary directory. */
nib_status nib_workdir_path(const nib_workdir *work, const char *name, char out[1536], nib_error *error);
nib_status nib_workdir_write(const nib_workdir *work, const char *name, const char *text, size_t n_bytes,
                             nib_error *error);
/* Gives the temporary directory its final name. */
nib_status nib_workdir_publish(nib_workdir *work, nib_error *error);
/* Removes the temporary directory with the files in it, if it still exists; nothing else is ever touched. */
void nib_workdir_remove(nib_workdir *work);

#endif
