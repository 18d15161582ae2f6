/* Inputs: mapped whole, or read into memory. A mapped file that shrinks kills whoever touches its end (SIGBUS), so those who
 * go through all of a large file read it through nib_map_read, which reports an error instead. */
#include "base/files.h"
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t mtime_of(const struct stat *info) {
    return (int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec;
}

nib_status nib_map_open(const char *path, nib_map *out, nib_error *error) {
    *out = (nib_map){.fd = -1};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return nib_fail_errno(error, path, "cannot open the file");
    struct stat info = {0};
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
        else {
            nib_os_prefer_large_pages(data, (size_t)info.st_size);
            *out = (nib_map){.data = data, .n_bytes = (size_t)info.st_size, .owned = true, .fd = fd};
        }
    }
    out->device = (uint64_t)info.st_dev;
    out->inode = (uint64_t)info.st_ino;
    out->mtime_ns = mtime_of(&info);
    if (!out->owned) close(fd);
    return status;
}

void nib_map_close(nib_map *map) {
    if (map->owned && map->data) {
        munmap((void *)(uintptr_t)map->data, map->n_bytes);
        close(map->fd);
    }
    *map = (nib_map){.fd = -1};
}

nib_status nib_map_check_unchanged(const nib_map *map, const char *path, nib_error *error) {
    struct stat info;
    if (!map->owned) return NIB_OK;
    if (fstat(map->fd, &info) != 0) return nib_fail_errno(error, path, "cannot look at the file");
    if ((uint64_t)info.st_size == map->n_bytes && mtime_of(&info) == map->mtime_ns) return NIB_OK;
    if ((uint64_t)info.st_size < map->n_bytes)
        nib_fail_at(error, NIB_ERR_IO, path, (int64_t)info.st_size, NULL,
                    "the file became shorter while it was read: %" PRIu64 " bytes of %zu are left",
                    (uint64_t)info.st_size, map->n_bytes);
    else
        nib_fail_at(error, NIB_ERR_IO, path, -1, NULL, "the file was changed while it was read");
    return nib_hint(error, NIB_ERR_IO, "begin again when nothing writes to it any more");
}

nib_status nib_map_read(const nib_map *map, const char *path, uint64_t offset, size_t n_bytes, void *out,
                        nib_error *error) {
    uint8_t *to = out;
    if (offset > map->n_bytes || n_bytes > map->n_bytes - offset)
        return nib_fail_at(error, NIB_ERR_BUG, path, (int64_t)offset, NULL, "a read beyond the end of the file");
    if (!map->owned) {
        if (n_bytes) memcpy(to, map->data + offset, n_bytes);
        return NIB_OK;
    }
    while (n_bytes) {
        const ssize_t got = pread(map->fd, to, n_bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return nib_fail_errno(error, path, "cannot read the file");
        if (got == 0) {
            NIB_TRY(nib_map_check_unchanged(map, path, error));
            return nib_fail_at(error, NIB_ERR_IO, path, (int64_t)offset, NULL, "the file ended while it was read");
        }
        to += got;
        offset += (uint64_t)got;
        n_bytes -= (size_t)got;
    }
    return NIB_OK;
}

void nib_map_expect_sequential(const nib_map *map) {
    if (map->owned) posix_fadvise(map->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint: nothing is lost if refused */
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
