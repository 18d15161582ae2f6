/* A study appears under its name only when complete. Until then it lies in OUT.partial-PID, a directory made here and so
 * ours to remove. An earlier study is replaced only if report.json says that a study wrote every file in it. */
#include "study/workdir.h"

#include "base/files.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The files an earlier study wrote, as its report.json lists them; NULL if this is no study. */
static json_t *files_of_study(const char *path) {
    char report[1100];
    char *text = NULL;
    size_t n_bytes = 0;
    json_t *root = NULL, *files = NULL;
    snprintf(report, sizeof report, "%s/report.json", path);
    if (nib_read_file(report, &text, &n_bytes, NULL) != NIB_OK) return NULL;
    root = json_loadb(text, n_bytes, 0, NULL);
    free(text);
    const char *schema = json_string_value(json_object_get(root, "schema"));
    if (schema != NULL && strncmp(schema, "nibble.study/", 13) == 0) {
        files = json_incref(json_object_get(root, "files"));
        if (!json_is_array(files)) {
            json_decref(files);
            files = NULL;
        }
    }
    json_decref(root);
    return files;
}

static bool lists(const json_t *files, const char *name) {
    for (size_t i = 0; i < json_array_size(files); i++) {
        const char *listed = json_string_value(json_array_get(files, i));
        if (listed != NULL && strcmp(listed, name) == 0) return true;
    }
    return false;
}

static bool is_dots(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* First file in a directory that the list lacks; "" if none. */
static nib_status find_foreign(const char *path, const json_t *files, char out[256], nib_error *error) {
    DIR *directory = opendir(path);
    if (directory == NULL) return nib_fail_errno(error, path, "cannot read the directory");
    out[0] = '\0';
    for (const struct dirent *entry = readdir(directory); entry != NULL && out[0] == '\0'; entry = readdir(directory))
        if (!is_dots(entry->d_name) && !lists(files, entry->d_name)) snprintf(out, 256, "%s", entry->d_name);
    closedir(directory);
    return NIB_OK;
}

static nib_status check_replaceable(const char *path, nib_error *error) {
    char foreign[256];
    json_t *files = files_of_study(path);
    if (files == NULL) {
        nib_fail_at(error, NIB_ERR_USAGE, path, -1, "", "the output exists and is not a study: it is left alone");
        return nib_hint(error, NIB_ERR_USAGE, "choose another directory with -o");
    }
    nib_status status = find_foreign(path, files, foreign, error);
    json_decref(files);
    if (status != NIB_OK || foreign[0] == '\0') return status;
    nib_fail_at(error, NIB_ERR_USAGE, path, -1, "", "the output holds a file that no study wrote: %s", foreign);
    return nib_hint(error, NIB_ERR_USAGE, "move that file away, or choose another directory with -o");
}

nib_status nib_workdir_check(const char *path, bool force, nib_workdir *work, nib_error *error) {
    *work = (nib_workdir){0};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    if (n == 0 || n >= sizeof work->final_path - 8)
        return nib_fail(error, NIB_ERR_USAGE, "the name of the output directory is %s", n == 0 ? "empty" : "too long");
    memcpy(work->final_path, path, n);
    struct stat info;
    if (lstat(work->final_path, &info) != 0) {
        if (errno == ENOENT) return NIB_OK;
        return nib_fail_errno(error, work->final_path, "cannot look at the output directory");
    }
    if (!force) {
        nib_fail_at(error, NIB_ERR_USAGE, work->final_path, -1, "", "the output directory exists already");
        return nib_hint(error, NIB_ERR_USAGE, "choose another with -o, or replace an earlier study with --force");
    }
    if (!S_ISDIR(info.st_mode))
        return nib_fail_at(error, NIB_ERR_USAGE, work->final_path, -1, "", "the output exists and is not a directory");
    NIB_TRY(check_replaceable(work->final_path, error));
    work->replaces = true;
    return NIB_OK;
}

nib_status nib_workdir_make(nib_workdir *work, nib_error *error) {
    for (unsigned attempt = 0; attempt < 100; attempt++) {
        if (attempt == 0)
            snprintf(work->temporary, sizeof work->temporary, "%s.partial-%ld", work->final_path, (long)getpid());
        else
            snprintf(work->temporary, sizeof work->temporary, "%s.partial-%ld-%u", work->final_path, (long)getpid(),
                     attempt);
        if (mkdir(work->temporary, 0777) == 0) {
            work->made = true;
            return NIB_OK;
        }
        if (errno != EEXIST) break;
    }
    return nib_fail_errno(error, work->temporary, "cannot make the directory");
}

nib_status nib_workdir_path(const nib_workdir *work, const char *name, char out[1536], nib_error *error) {
    const int n = snprintf(out, 1536, "%s/%s", work->temporary, name);
    if (n < 0 || n >= 1536) return nib_fail(error, NIB_ERR_USAGE, "the path of %s is too long", name);
    return NIB_OK;
}

nib_status nib_workdir_write(const nib_workdir *work, const char *name, const char *text, size_t n_bytes,
                             nib_error *error) {
    char path[1536];
    nib_output *output = NULL;
    NIB_TRY(nib_workdir_path(work, name, path, error));
    NIB_TRY(nib_output_open(path, false, NULL, n_bytes, &output, error));
    const nib_status status = nib_output_write(output, text, n_bytes, error);
    if (status != NIB_OK) {
        nib_output_discard(output);
        return status;
    }
    return nib_output_commit(output, true, error);
}

/* Removes the files of a directory, of a list if there is one, and then the directory. */
static void remove_directory(const char *path, const json_t *only) {
    DIR *directory = opendir(path);
    if (directory == NULL) return;
    for (const struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory))
        if (!is_dots(entry->d_name) && (only == NULL || lists(only, entry->d_name)))
            unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
    rmdir(path);
}

nib_status nib_workdir_publish(nib_workdir *work, nib_error *error) {
    char old[1088];
    if (!work->replaces) {
        if (rename(work->temporary, work->final_path) != 0)
            return nib_fail_errno(error, work->final_path, "cannot give the finished study its name");
        work->made = false;
        return NIB_OK;
    }
    snprintf(old, sizeof old, "%s.old-%ld", work->final_path, (long)getpid());
    if (rename(work->final_path, old) != 0)
        return nib_fail_errno(error, work->final_path, "cannot move the earlier study out of the way");
    if (rename(work->temporary, work->final_path) != 0) {
        nib_fail_errno(error, work->final_path, "cannot give the finished study its name");
        rename(old, work->final_path);
        return error != NULL ? error->code : NIB_ERR_IO;
    }
    work->made = false;
    json_t *files = files_of_study(old);
    if (files != NULL) remove_directory(old, files);
    json_decref(files);
    return NIB_OK;
}

void nib_workdir_remove(nib_workdir *work) {
    if (!work->made) return;
    remove_directory(work->temporary, NULL);
    work->made = false;
}
