/* Mapped inputs, and outputs that appear under their name only when complete. */
#include "base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

nib_status nib_map_open(const char *path, nib_map *out, nib_error *error) {
    *out = (nib_map){0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return nib_fail_errno(error, path, "cannot open the file");
    struct stat info;
    nib_status status = NIB_OK;
    if (fstat(fd, &info) != 0) {
        status = nib_fail_errno(error, path, "cannot look at the file");
    } else if (!S_ISREG(info.st_mode)) {
        status = nib_fail_at(error, NIB_ERR_IO, path, -1, NULL, "%s is not a regular file",
                             S_ISDIR(info.st_mode) ? "a folder" : "this");
        nib_hint(error, status, "give the path of a file");
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED)
            status = nib_fail_errno(error, path, "cannot map the file");
        else
            *out = (nib_map){.data = data, .n_bytes = (size_t)info.st_size, .owned = true};
    }
    out->device = (uint64_t)info.st_dev;
    out->inode = (uint64_t)info.st_ino;
    close(fd);
    return status;
}

void nib_map_close(nib_map *map) {
    if (map->owned && map->data) munmap((void *)(uintptr_t)map->data, map->n_bytes);
    *map = (nib_map){0};
}

nib_status nib_read_file(const char *path, char **data, size_t *n_bytes, nib_error *error) {
    enum { PIECE = 1 << 20 };
    const size_t most = (size_t)1 << 30;
    *data = NULL;
    *n_bytes = 0;
    const bool standard = strcmp(path, "-") == 0;
    const int fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return nib_fail_errno(error, path, "cannot open the file");
    nib_status status = NIB_OK;
    nib_string text = {0};
    char *piece = malloc(PIECE);
    if (!piece) status = nib_fail_memory(error, PIECE);
    while (status == NIB_OK) {
        const ssize_t got = read(fd, piece, PIECE);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) status = nib_fail_errno(error, path, "cannot read the file");
        if (got <= 0) break;
        nib_string_add(&text, piece, (size_t)got);
        if (text.failed) status = nib_fail_memory(error, text.n_bytes + (uint64_t)got);
        if (text.n_bytes > most) {
            status = nib_fail_at(error, NIB_ERR_UNSUPPORTED, path, -1, NULL, "the text is larger than 1 GiB");
            nib_hint(error, status, "use a part of it");
        }
    }
    if (status == NIB_OK) nib_string_add(&text, "", 0);
    if (status == NIB_OK && text.failed) status = nib_fail_memory(error, 1);
    free(piece);
    if (!standard) close(fd);
    if (status != NIB_OK) {
        nib_string_fini(&text);
        return status;
    }
    *data = text.data;
    *n_bytes = text.n_bytes;
    return NIB_OK;
}

enum { BUFFER_BYTES = 1 << 20 };

struct nib_output {
    int fd;
    bool renames; /* false: a device, written directly */
    char *path, *partial;
    uint8_t *buffer;
    size_t n_buffered;
};

static char *join(const char *a, const char *b) {
    nib_string text = {0};
    nib_string_addf(&text, "%s%s", a, b);
    if (text.failed) nib_string_fini(&text);
    return text.data;
}

static nib_status check_space(const char *path, uint64_t n_bytes, nib_error *error) {
    struct statvfs space;
    char *folder = nib_strdup(path);
    if (!folder) return nib_fail_memory(error, strlen(path) + 1);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = '\0';
    const bool known = statvfs(slash ? folder : ".", &space) == 0;
    free(folder);
    if (!known) return NIB_OK; /* opening will tell why */
    const uint64_t free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    if (free_bytes >= n_bytes) return NIB_OK;
    nib_fail_at(error, NIB_ERR_IO, path, -1, NULL, "not enough space on the disk: %llu bytes needed, %llu free",
                (unsigned long long)n_bytes, (unsigned long long)free_bytes);
    if (error) error->os_errno = ENOSPC;
    return nib_hint(error, NIB_ERR_IO, "free some space, or write to another disk");
}

nib_status nib_output_open(const char *path, bool force, const nib_map *input, uint64_t n_bytes, nib_output **out,
                           nib_error *error) {
    *out = NULL;
    struct stat info;
    const bool exists = stat(path, &info) == 0;
    const bool is_device = exists && S_ISCHR(info.st_mode);
    if (exists && input && input->inode && (uint64_t)info.st_ino == input->inode &&
        (uint64_t)info.st_dev == input->device) {
        nib_fail_at(error, NIB_ERR_USAGE, path, -1, NULL, "the output is the input itself");
        return nib_hint(error, NIB_ERR_USAGE, "give another output with -o");
    }
    if (exists && !is_device && !S_ISREG(info.st_mode)) {
        nib_fail_at(error, NIB_ERR_USAGE, path, -1, NULL, "the output exists and is not a regular file");
        return nib_hint(error, NIB_ERR_USAGE, "give another output with -o");
    }
    if (exists && !is_device && !force) {
        nib_fail_at(error, NIB_ERR_USAGE, path, -1, NULL, "the output exists");
        return nib_hint(error, NIB_ERR_USAGE, "use --force to replace it, or give another output with -o");
    }
    if (!is_device) NIB_TRY(check_space(path, n_bytes, error));
    nib_output *output = nib_alloc(1, sizeof *output);
    if (!output) return nib_fail_memory(error, sizeof *output);
    output->fd = -1;
    output->renames = !is_device;
    output->path = nib_strdup(path);
    output->partial = is_device ? nib_strdup(path) : join(path, ".partial");
    output->buffer = malloc(BUFFER_BYTES);
    if (!output->path || !output->partial || !output->buffer) {
        nib_output_discard(output);
        return nib_fail_memory(error, BUFFER_BYTES);
    }
    /* A link planted under the partial name must not be followed, so an old one goes first. */
    if (output->renames) unlink(output->partial);
    output->fd = open(output->partial, O_WRONLY | O_CLOEXEC | (is_device ? 0 : O_CREAT | O_EXCL), 0666);
    if (output->fd < 0) {
        const nib_status status = nib_fail_errno(error, path, "cannot create the output");
        output->renames = false; /* not ours to remove */
        nib_output_discard(output);
        return status;
    }
    *out = output;
    return NIB_OK;
}

static nib_status write_all(nib_output *output, const uint8_t *data, size_t n_bytes, nib_error *error) {
    while (n_bytes) {
        const ssize_t written = write(output->fd, data, n_bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return nib_fail_errno(error, output->path, "cannot write the output");
        data += written;
        n_bytes -= (size_t)written;
    }
    return NIB_OK;
}

static nib_status flush(nib_output *output, nib_error *error) {
    const size_t n_bytes = output->n_buffered;
    output->n_buffered = 0;
    return write_all(output, output->buffer, n_bytes, error);
}

nib_status nib_output_write(nib_output *output, const void *data, size_t n_bytes, nib_error *error) {
    if (output->n_buffered + n_bytes > BUFFER_BYTES) NIB_TRY(flush(output, error));
    if (n_bytes >= BUFFER_BYTES) return write_all(output, data, n_bytes, error);
    if (n_bytes) memcpy(output->buffer + output->n_buffered, data, n_bytes);
    output->n_buffered += n_bytes;
    return NIB_OK;
}

static void sync_folder(const char *path) {
    char *folder = nib_strdup(path);
    if (!folder) return;
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = '\0';
    const int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd); /* best effort: some file systems refuse it, and the file itself is safe already */
        close(fd);
    }
    free(folder);
}

nib_status nib_output_commit(nib_output *output, bool sync, nib_error *error) {
    nib_status status = flush(output, error);
    if (status == NIB_OK && sync && output->renames && fsync(output->fd) != 0)
        status = nib_fail_errno(error, output->path, "cannot bring the output to disk");
    if (close(output->fd) != 0 && status == NIB_OK)
        status = nib_fail_errno(error, output->path, "cannot finish the output");
    output->fd = -1;
    if (status == NIB_OK && output->renames) {
        if (rename(output->partial, output->path) != 0)
            status = nib_fail_errno(error, output->path, "cannot rename the finished output");
        else
            output->renames = false; /* nothing left to remove */
    }
    if (status == NIB_OK && sync) sync_folder(output->path);
    nib_output_discard(output);
    return status;
}

void nib_output_discard(nib_output *output) {
    if (!output) return;
    if (output->fd >= 0) close(output->fd);
    if (output->renames && output->partial) unlink(output->partial);
    free(output->path);
    free(output->partial);
    free(output->buffer);
    free(output);
}
