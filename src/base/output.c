/* Outputs that appear under their name only when complete.
 *
 *   PATH.partial, locked --write--> flush --> fsync --> rename to PATH --> fsync of the folder
 *
 * Invariants:
 *   - PATH is only ever touched by the rename;
 *   - a partial file is opened by its own name only (no links followed), locked before anything happens to it, and one that
 *     has several names is not written to but replaced. */
#include "base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { SMALL_WRITE = 256 << 10, LARGE_WRITE = 2 << 20, BEHIND_BYTES = 16 << 20 };

struct nib_output {
    int fd;
    bool renames;  /* false: a device, written directly */
    bool replaced; /* another run's partial file */
    char *path, *partial;
    size_t write_bytes; /* SMALL_WRITE or LARGE_WRITE; writes begin and end at multiples of it where they can */
    uint8_t *buffer;    /* (write_bytes) NULL while nothing is buffered: there may be many outputs */
    size_t n_buffered;
    bool writes_behind;
    uint64_t n_written, n_begun; /* where the next write goes, and up to where the system was asked to write */
};

static char *join(const char *a, const char *b) {
    nib_string text = {0};
    nib_string_addf(&text, "%s%s", a, b);
    if (text.failed) nib_string_fini(&text);
    return text.data;
}

/* "." or the part before the last slash; free it. */
static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return nib_strdup(".");
    return nib_strdup_n(path, slash == path ? 1 : (size_t)(slash - path));
}

/* ---- Names and space ----------------------------------------------------------------------------------------------- */

bool nib_same_output(const char *a, const char *b) {
    struct stat info_a, info_b;
    if (strcmp(a, b) == 0) return true;
    const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
    if (strcmp(slash_a ? slash_a + 1 : a, slash_b ? slash_b + 1 : b) != 0) return false;
    char *folder_a = folder_of(a), *folder_b = folder_of(b);
    const bool same = folder_a && folder_b && stat(folder_a, &info_a) == 0 && stat(folder_b, &info_b) == 0 &&
                      info_a.st_dev == info_b.st_dev && info_a.st_ino == info_b.st_ino;
    free(folder_a);
    free(folder_b);
    return same;
}

nib_status nib_output_refuse_input(const char *path, const nib_map *input, nib_error *error) {
    struct stat info;
    if (!input || !input->inode || stat(path, &info) != 0 || (uint64_t)info.st_ino != input->inode ||
        (uint64_t)info.st_dev != input->device)
        return NIB_OK;
    nib_fail_at(error, NIB_ERR_USAGE, path, -1, NULL, "the output is the input itself");
    return nib_hint(error, NIB_ERR_USAGE, "give another output with -o");
}

/* Bytes that path still needs; false if it is no file (a device) or its folder cannot be looked at. */
static bool space_of(const char *path, uint64_t n_bytes, dev_t *device, uint64_t *needed, uint64_t *n_free) {
    struct stat info;
    struct statvfs space;
    if (stat(path, &info) == 0 && S_ISCHR(info.st_mode)) return false;
    char *folder = folder_of(path), *partial = join(path, ".partial");
    bool known = folder && stat(folder, &info) == 0 && statvfs(folder, &space) == 0;
    if (known) {
        *device = info.st_dev;
        *n_free = (uint64_t)space.f_bavail * space.f_frsize;
        *needed = n_bytes;
        if (partial && lstat(partial, &info) == 0 && S_ISREG(info.st_mode)) {
            const uint64_t taken = (uint64_t)info.st_blocks * 512;
            *needed -= taken < *needed ? taken : *needed;
        }
    }
    free(folder);
    free(partial);
    return known;
}

nib_status nib_outputs_check_space(const char *const paths[], const uint64_t n_bytes[], size_t n, nib_error *error) {
    for (size_t i = 0; i < n; i++) {
        dev_t device, other;
        uint64_t sum = 0, needed, n_free, unused;
        if (!space_of(paths[i], n_bytes[i], &device, &needed, &n_free)) continue; /* opening will tell why */
        for (size_t k = 0; k < n; k++)
            if (space_of(paths[k], n_bytes[k], &other, &needed, &unused) && other == device &&
                !nib_add_u64(sum, needed, &sum))
                sum = UINT64_MAX;
        if (sum <= n_free) continue;
        nib_fail_at(error, NIB_ERR_IO, paths[i], -1, NULL, "not enough space on the disk: %llu bytes needed, %llu free",
                    (unsigned long long)sum, (unsigned long long)n_free);
        if (error) error->os_errno = ENOSPC;
        return nib_hint(error, NIB_ERR_IO, "free some space, or write to another disk");
    }
    return NIB_OK;
}

/* ---- The partial file ---------------------------------------------------------------------------------------------- */

static nib_status check_name(const char *path, bool force, const nib_map *input, bool *is_device, nib_error *error) {
    struct stat info;
    const bool exists = stat(path, &info) == 0;
    *is_device = exists && S_ISCHR(info.st_mode);
    NIB_TRY(nib_output_refuse_input(path, input, error));
    if (exists && !*is_device && !S_ISREG(info.st_mode)) {
        nib_fail_at(error, NIB_ERR_USAGE, path, -1, NULL, "the output exists and is not a regular file");
        return nib_hint(error, NIB_ERR_USAGE, "give another output with -o");
    }
    if (exists && !*is_device && !force) {
        nib_fail_at(error, NIB_ERR_USAGE, path, -1, NULL, "the output exists");
        return nib_hint(error, NIB_ERR_USAGE, "use --force to replace it, or give another output with -o");
    }
    return NIB_OK;
}

static nib_status refuse_second_writer(const nib_output *output, nib_error *error) {
    nib_fail_at(error, NIB_ERR_USAGE, output->path, -1, NULL, "another run is writing this output");
    return nib_hint(error, NIB_ERR_USAGE, "wait for it to end, or give another output with -o");
}

/* true unless someone else holds it; file systems without locks have none to respect. */
static bool lock(int fd) {
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR) continue;
        return errno != EWOULDBLOCK;
    }
    return true;
}

/* Opens and locks a partial file that is there. fd: -1 if there is none, or none that may be kept or replaced in place. */
static nib_status open_old(nib_output *output, bool keep, nib_error *error) {
    struct stat info, named;
    const int fd = open(output->partial, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        output->replaced = errno != ENOENT;
        unlink(output->partial); /* a link, perhaps; what cannot be removed makes creating fail */
        return NIB_OK;
    }
    if (!lock(fd)) {
        close(fd);
        return refuse_second_writer(output, error);
    }
    /* Only now is it sure that nobody else replaces it. */
    const bool is_named = fstat(fd, &info) == 0 && lstat(output->partial, &named) == 0 && info.st_ino == named.st_ino &&
                          info.st_dev == named.st_dev;
    if (keep && is_named && S_ISREG(info.st_mode) && info.st_nlink == 1 && info.st_uid == geteuid()) {
        output->fd = fd;
        return NIB_OK;
    }
    output->replaced = true;
    if (is_named) unlink(output->partial);
    close(fd);
    return NIB_OK;
}

static nib_status create_new(nib_output *output, bool is_device, nib_error *error) {
    output->fd = is_device ? open(output->path, O_WRONLY | O_CLOEXEC)
                           : open(output->partial, O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0666);
    if (output->fd < 0) {
        output->renames = false; /* not ours to remove */
        if (errno == EEXIST && !is_device) return refuse_second_writer(output, error);
        return nib_fail_errno(error, output->path, "cannot create the output");
    }
    if (is_device || lock(output->fd)) return NIB_OK;
    output->renames = false;
    return refuse_second_writer(output, error);
}

static nib_status reserve(nib_output *output, uint64_t n_bytes, nib_error *error) {
    if (!output->renames || n_bytes == 0) return NIB_OK;
    if (fallocate(output->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)n_bytes) == 0) return NIB_OK;
    if (errno != ENOSPC && errno != EDQUOT) return NIB_OK; /* cannot reserve: writing will tell */
    return nib_fail_errno(error, output->path, "cannot reserve %llu bytes for the output", (unsigned long long)n_bytes);
}

static nib_status open_output(const char *path, bool force, bool keep, const nib_map *input, uint64_t n_bytes,
                              nib_output **out, nib_error *error) {
    nib_status status;
    bool is_device;
    *out = NULL;
    NIB_TRY(check_name(path, force, input, &is_device, error));
    NIB_TRY(nib_outputs_check_space(&path, &n_bytes, 1, error));
    nib_output *output = nib_alloc(1, sizeof *output);
    if (!output) return nib_fail_memory(error, sizeof *output);
    output->fd = -1;
    output->write_bytes = SMALL_WRITE;
    output->path = nib_strdup(path);
    output->partial = is_device ? nib_strdup(path) : join(path, ".partial");
    if (!output->path || !output->partial) {
        status = nib_fail_memory(error, strlen(path) + 10);
        goto fail;
    }
    if (!is_device) NIB_TRY_GOTO(open_old(output, keep, error));
    output->renames = !is_device;
    const bool is_kept = output->fd >= 0;
    if (!is_kept) NIB_TRY_GOTO(create_new(output, is_device, error));
    status = reserve(output, n_bytes, error);
    if (status != NIB_OK && is_kept) output->renames = false; /* what was done stays */
    if (status != NIB_OK) goto fail;
    *out = output;
    return NIB_OK;
fail:
    nib_output_discard(output);
    return status;
}

nib_status nib_output_open(const char *path, bool force, const nib_map *input, uint64_t n_bytes, nib_output **out,
                           nib_error *error) {
    return open_output(path, force, false, input, n_bytes, out, error);
}

nib_status nib_output_open_partial(const char *path, bool force, const nib_map *input, uint64_t n_bytes,
                                   nib_output **out, nib_error *error) {
    return open_output(path, force, true, input, n_bytes, out, error);
}

bool nib_output_is_device(const nib_output *output) {
    return !output->renames;
}

bool nib_output_replaced(const nib_output *output) {
    return output->replaced;
}

/* ---- Writing ------------------------------------------------------------------------------------------------------- */

static nib_status write_all(nib_output *output, const uint8_t *data, size_t n_bytes, nib_error *error) {
    while (n_bytes) {
        const ssize_t written = write(output->fd, data, n_bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return nib_fail_errno(error, output->path, "cannot write the output");
        data += written;
        n_bytes -= (size_t)written;
        output->n_written += (uint64_t)written;
    }
    if (output->writes_behind && output->n_written - output->n_begun >= BEHIND_BYTES) {
        /* a hint: fsync will do what is not done by then */
        sync_file_range(output->fd, (off_t)output->n_begun, (off_t)(output->n_written - output->n_begun),
                        SYNC_FILE_RANGE_WRITE);
        output->n_begun = output->n_written;
    }
    return NIB_OK;
}

static nib_status empty_buffer(nib_output *output, nib_error *error) {
    const size_t n_bytes = output->n_buffered;
    output->n_buffered = 0;
    return write_all(output, output->buffer, n_bytes, error);
}

nib_status nib_output_flush(nib_output *output, nib_error *error) {
    const nib_status status = empty_buffer(output, error);
    free(output->buffer);
    output->buffer = NULL;
    return status;
}

void nib_output_write_behind(nib_output *output) {
    output->writes_behind = true;
}

/* A file that reaches the system in aligned 2 MiB is kept in pages of that size, and mapped so. */
void nib_output_prefer_large_pages(nib_output *output) {
    if (!output->buffer) output->write_bytes = LARGE_WRITE;
}

nib_status nib_output_write(nib_output *output, const void *data, size_t n_bytes, nib_error *error) {
    const size_t whole = output->write_bytes;
    for (const uint8_t *from = data; n_bytes;) {
        const size_t room = whole - (size_t)((output->n_written + output->n_buffered) % whole);
        size_t n = n_bytes < room ? n_bytes : room;
        if (n == room && output->n_buffered == 0) {
            n += (n_bytes - n) / whole * whole;
            NIB_TRY(write_all(output, from, n, error));
        } else {
            if (!output->buffer && !(output->buffer = malloc(whole))) return nib_fail_memory(error, whole);
            memcpy(output->buffer + output->n_buffered, from, n);
            output->n_buffered += n;
            if (n == room) NIB_TRY(empty_buffer(output, error));
        }
        from += n;
        n_bytes -= n;
    }
    return NIB_OK;
}

nib_status nib_output_write_at(nib_output *output, uint64_t offset, const void *data, size_t n_bytes,
                               nib_error *error) {
    const uint8_t *from = data;
    NIB_TRY(nib_output_flush(output, error));
    while (n_bytes) {
        const ssize_t written = pwrite(output->fd, from, n_bytes, (off_t)offset);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return nib_fail_errno(error, output->path, "cannot write the output");
        from += written;
        offset += (uint64_t)written;
        n_bytes -= (size_t)written;
    }
    return NIB_OK;
}

nib_status nib_output_read_at(nib_output *output, uint64_t offset, void *out, size_t n_bytes, nib_error *error) {
    uint8_t *to = out;
    while (n_bytes) {
        const ssize_t got = pread(output->fd, to, n_bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return nib_fail_errno(error, output->path, "cannot read back the output");
        if (got == 0)
            return nib_fail_at(error, NIB_ERR_IO, output->path, (int64_t)offset, NULL, "the unfinished output ends");
        to += got;
        offset += (uint64_t)got;
        n_bytes -= (size_t)got;
    }
    return NIB_OK;
}

nib_status nib_output_rewind(nib_output *output, uint64_t n_bytes, nib_error *error) {
    output->n_buffered = 0;
    if (ftruncate(output->fd, (off_t)n_bytes) != 0 || lseek(output->fd, (off_t)n_bytes, SEEK_SET) < 0)
        return nib_fail_errno(error, output->path, "cannot go back in the output");
    output->n_written = output->n_begun = n_bytes;
    return NIB_OK;
}

/* ---- The end ------------------------------------------------------------------------------------------------------- */

static void sync_folder(const char *path) {
    char *folder = folder_of(path);
    if (!folder) return;
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd); /* best effort: some file systems refuse it, and the file itself is safe already */
        close(fd);
    }
    free(folder);
}

/* The lock is held until after the rename, so a second run either finds this one writing or the finished output. */
nib_status nib_output_commit(nib_output *output, bool sync, nib_error *error) {
    nib_status status = nib_output_flush(output, error);
    if (status == NIB_OK && sync && output->renames && fsync(output->fd) != 0)
        status = nib_fail_errno(error, output->path, "cannot bring the output to disk");
    if (status == NIB_OK && output->renames) {
        if (rename(output->partial, output->path) != 0)
            status = nib_fail_errno(error, output->path, "cannot rename the finished output");
        else
            output->renames = false; /* nothing left to remove */
    }
    if (status == NIB_OK && close(output->fd) != 0)
        status = nib_fail_errno(error, output->path, "cannot finish the output");
    else if (status != NIB_OK)
        close(output->fd);
    output->fd = -1;
    if (status == NIB_OK && sync) sync_folder(output->path);
    nib_output_discard(output);
    return status;
}

/* Removed before the lock goes, so that nobody else's file is. */
void nib_output_discard(nib_output *output) {
    if (!output) return;
    if (output->renames && output->partial) unlink(output->partial);
    if (output->fd >= 0) close(output->fd);
    free(output->path);
    free(output->partial);
    free(output->buffer);
    free(output);
}

void nib_output_suspend(nib_output *output) {
    if (!output) return;
    output->renames = false;
    nib_output_discard(output);
}
