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
    int64_t mtime_ns; /* when it was last written to, as of opening */
    bool owned;       /* false: the bytes belong to someone else, and there is no descriptor */
    int fd;
} nib_map;

/* Regular files only; NIB_ERR_IO otherwise (missing, no permission, a directory: each said). */
nib_status nib_map_open(const char *path, nib_map *out, nib_error *error);
void nib_map_close(nib_map *map);
/* Copies a part of the file without touching the mapping: NIB_ERR_IO where that would be a SIGBUS. */
nib_status nib_map_read(const nib_map *map, const char *path, uint64_t offset, size_t n_bytes, void *out,
                        nib_error *error);
/* NIB_ERR_IO if size or time of the last change are not those of opening. */
nib_status nib_map_check_unchanged(const nib_map *map, const char *path, nib_error *error);
/* Asks the system to read ahead. */
void nib_map_expect_sequential(const nib_map *map);

/* Reads a whole text file into memory (NUL-terminated beyond n_bytes); free the data. At most 1 GiB. "-" is stdin. */
nib_status nib_read_file(const char *path, char **data, size_t *n_bytes, nib_error *error);

/* An output written as PATH.partial and renamed at the end. While it is open the partial file is locked. */
typedef struct nib_output nib_output;

/* Refuses an existing PATH unless force (NIB_ERR_USAGE), and always one that is the same file as `input` (device, inode;
 * may be NULL). n_bytes: size if known, else 0: space is checked and reserved where the system can. A character device
 * such as /dev/full is written directly. A partial file that another run is writing: NIB_ERR_USAGE; one that a dead run
 * left is replaced. */
nib_status nib_output_open(const char *path, bool force, const nib_map *input, uint64_t n_bytes, nib_output **out,
                           nib_error *error);
/* The same, but a partial file that is there keeps its bytes; writing begins at byte 0 unless rewound elsewhere. */
nib_status nib_output_open_partial(const char *path, bool force, const nib_map *input, uint64_t n_bytes,
                                   nib_output **out, nib_error *error);
nib_status nib_output_write(nib_output *output, const void *data, size_t n_bytes, nib_error *error);
/* The system brings to disk what is written while more is: little is left to the fsync at the end. */
void nib_output_write_behind(nib_output *output);
/* For files that will be mapped and read often: large pages are read faster, but take the system longer to find.
 * Before anything is written, or after a flush. */
void nib_output_prefer_large_pages(nib_output *output);
/* Hands what is buffered to the system, so that it survives this process; frees the buffer (2 MiB at most). */
nib_status nib_output_flush(nib_output *output, nib_error *error);
/* Over, or beyond, what was written; where nib_output_write goes on does not change. */
nib_status nib_output_write_at(nib_output *output, uint64_t offset, const void *data, size_t n_bytes, nib_error *error);
/* Reads back what was handed to the system; NIB_ERR_IO also if it ends before n_bytes. */
nib_status nib_output_read_at(nib_output *output, uint64_t offset, void *out, size_t n_bytes, nib_error *error);
/* Cuts (or extends with zeros) to n_bytes; the next write goes there. */
nib_status nib_output_rewind(nib_output *output, uint64_t n_bytes, nib_error *error);
bool nib_output_is_device(const nib_output *output);
/* A dead run's partial file was replaced. */
bool nib_output_replaced(const nib_output *output);
/* fsyncs (if sync), renames, fsyncs the directory; frees output whatever happens. */
nib_status nib_output_commit(nib_output *output, bool sync, nib_error *error);
/* Removes the partial file and frees output; NULL is fine. */
void nib_output_discard(nib_output *output);
/* Keeps the partial file and frees output; NULL is fine. */
void nib_output_suspend(nib_output *output);

/* Is there space for all these outputs at once? NIB_ERR_IO with the sums if not. Partial files that are there count as
 * space already taken. */
nib_status nib_outputs_check_space(const char *const paths[], const uint64_t n_bytes[], size_t n, nib_error *error);
/* Do two paths, existing or not, name one file? */
bool nib_same_output(const char *a, const char *b);
/* Is the path this very file, also by another name? NIB_ERR_USAGE if so. */
nib_status nib_output_refuse_input(const char *path, const nib_map *input, nib_error *error);

#endif
