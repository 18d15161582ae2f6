/* Files: mapping inputs, writing outputs that are never half there. */
#ifndef NIB_BASE_FILES_H
#define NIB_BASE_FILES_H

#include "base/error.h"
#include "base/memory.h"

/* A whole file, mapped read-only. */
typedef struct nib_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t n_bytes;
    uint64_t device, inode;
    bool owned; /* false: the bytes belong to someone else */
} nib_map;

/* Regular files only; NIB_ERR_IO otherwise (missing, no permission, a directory: each said). */
nib_status nib_map_open(const char *path, nib_map *out, nib_error *error);
void nib_map_close(nib_map *map);

/* Reads a whole text file into memory (NUL-terminated beyond n_bytes); free the data. At most 1 GiB. "-" is stdin. */
nib_status nib_read_file(const char *path, char **data, size_t *n_bytes, nib_error *error);

/* An output written as PATH.partial and renamed at the end. */
typedef struct nib_output nib_output;

/* Refuses an existing PATH unless force (NIB_ERR_USAGE), and always one that is the same file as `input` (device, inode;
 * may be NULL). n_bytes: size if known, else 0: space is checked and reserved where the system can. A character device
 * such as /dev/full is written directly. */
nib_status nib_output_open(const char *path, bool force, const nib_map *input, uint64_t n_bytes, nib_output **out,
                           nib_error *error);
nib_status nib_output_write(nib_output *output, const void *data, size_t n_bytes, nib_error *error);
/* fsyncs (if sync), renames, fsyncs the directory; frees output whatever happens. */
nib_status nib_output_commit(nib_output *output, bool sync, nib_error *error);
/* Removes the partial file and frees output; NULL is fine. */
void nib_output_discard(nib_output *output);

#endif
