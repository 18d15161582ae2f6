/* The journal of a quantization.
 *
 *   nibble-journal 1
 *   recipe q4_k              what the output depends on, one field a line
 *   ...
 *   tensors
 *   1824 4096 9f0c... 0x1p+3 0x1p-7 0x1p-9     offset, bytes, XXH3-64, sums of the error; one tensor a line, in order
 *
 * A line is written, in one call, after its tensor was handed to the system: what it claims survives the death of the
 * process. After a crash of the whole machine a claim may be wrong, so readers check the hashes. What does not parse, or is
 * torn, ends the journal there. The journal is protected by the lock of the output's partial file. */
#include "quant/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST_LINE       "nibble-journal 1\n"
#define LAST_LINE        "tensors\n"
#define MOST_BYTES       (64u << 20)
#define MOST_ENTRY_BYTES 200

struct nib_journal {
    int fd;
    char *path;
    size_t n_head; /* bytes before the first entry */
    size_t *ends;  /* (n) byte after each entry, from the start of the file */
    size_t n, capacity;
};

static char *path_of(const char *path_out) {
    nib_string text = {0};
    nib_string_addf(&text, "%s.journal", path_out);
    if (text.failed) nib_string_fini(&text);
    return text.data;
}

void nib_journal_remove(const char *path_out) {
    char *path = path_of(path_out);
    if (path) unlink(path);
    free(path);
}

void nib_journal_close(nib_journal *journal, bool keep) {
    if (!journal) return;
    if (journal->fd >= 0) {
        if (!keep) unlink(journal->path);
        close(journal->fd);
    }
    free(journal->path);
    free(journal->ends);
    free(journal);
}

static nib_status write_line(nib_journal *journal, const char *data, size_t n_bytes, nib_error *error) {
    while (n_bytes) {
        const ssize_t written = write(journal->fd, data, n_bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return nib_fail_errno(error, journal->path, "cannot write the journal");
        data += written;
        n_bytes -= (size_t)written;
    }
    return NIB_OK;
}

static nib_status remember_end(nib_journal *journal, size_t end, nib_error *error) {
    if (!nib_grow((void **)&journal->ends, &journal->capacity, journal->n + 1, sizeof *journal->ends))
        return nib_fail_memory(error, (journal->n + 1) * sizeof *journal->ends);
    journal->ends[journal->n++] = end;
    return NIB_OK;
}

static size_t end_of(const nib_journal *journal, size_t n) {
    return n ? journal->ends[n - 1] : journal->n_head;
}

static nib_journal *new_journal(const char *path_out) {
    nib_journal *journal = nib_alloc(1, sizeof *journal);
    if (!journal) return NULL;
    journal->fd = -1;
    journal->path = path_of(path_out);
    if (journal->path) return journal;
    free(journal);
    return NULL;
}

nib_status nib_journal_begin(const char *path_out, const char *fields, nib_journal **out, nib_error *error) {
    nib_status status;
    nib_string head = {0};
    nib_journal *journal = new_journal(path_out);
    *out = NULL;
    if (!journal) return nib_fail_memory(error, sizeof *journal);
    nib_string_addf(&head, FIRST_LINE "%s" LAST_LINE, fields);
    if (head.failed) {
        status = nib_fail_memory(error, strlen(fields));
        goto fail;
    }
    journal->n_head = head.n_bytes;
    unlink(journal->path); /* a link planted under this name must not be followed */
    journal->fd = open(journal->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (journal->fd < 0) {
        status = nib_fail_errno(error, journal->path, "cannot create the journal");
        goto fail;
    }
    NIB_TRY_GOTO(write_line(journal, head.data, head.n_bytes, error));
    nib_string_fini(&head);
    *out = journal;
    return NIB_OK;
fail:
    nib_string_fini(&head);
    nib_journal_close(journal, false);
    return status;
}

/* ---- Reading an old one -------------------------------------------------------------------------------------------- */

/* Reads the file; text stays empty if there is none worth reading. */
static nib_status read_old(nib_journal *journal, nib_string *text, nib_error *error) {
    struct stat info;
    char piece[4096];
    journal->fd = open(journal->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (journal->fd < 0) return NIB_OK;
    if (fstat(journal->fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_nlink != 1 || info.st_size > MOST_BYTES)
        return NIB_OK;
    for (;;) {
        const ssize_t got = read(journal->fd, piece, sizeof piece);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return nib_fail_errno(error, journal->path, "cannot read the journal");
        if (got == 0) return NIB_OK;
        nib_string_add(text, piece, (size_t)got);
        if (text->failed) return nib_fail_memory(error, text->n_bytes + (uint64_t)got);
    }
}

/* Length of the line at `at` with its newline; 0 if it is torn. */
static size_t line_length(const char *text, size_t n_bytes, size_t at) {
    const char *newline = at < n_bytes ? memchr(text + at, '\n', n_bytes - at) : NULL;
    return newline ? (size_t)(newline - text) - at + 1 : 0;
}

/* Compares the fields line by line. *end: where the entries begin, 0 if the beginning is torn. */
static nib_status compare_fields(const nib_journal *journal, const nib_string *text, const char *fields, size_t *end,
                                 nib_error *error) {
    const size_t n_first = strlen(FIRST_LINE), n_last = strlen(LAST_LINE), n_fields = strlen(fields);
    size_t at = n_first;
    *end = 0;
    if (text->n_bytes < n_first || memcmp(text->data, FIRST_LINE, n_first) != 0) return NIB_OK;
    for (size_t k = 0; k < n_fields;) {
        const size_t now = line_length(fields, n_fields, k), then = line_length(text->data, text->n_bytes, at);
        if (then == 0 || now == 0) return NIB_OK;
        if (now != then || memcmp(fields + k, text->data + at, now) != 0) {
            char name[64] = "";
            const size_t n_name = strcspn(fields + k, " \n");
            snprintf(name, sizeof name, "%.*s", (int)(n_name < 63 ? n_name : 63), fields + k);
            const bool same_name = then > n_name && memcmp(text->data + at, fields + k, n_name + 1) == 0;
            nib_fail_at(error, NIB_ERR_USAGE, journal->path, (int64_t)at, name,
                        "the run to be resumed had another %s: %.*s then, %.*s now", name,
                        same_name ? (int)(then - n_name - 2) : 7, same_name ? text->data + at + n_name + 1 : "unknown",
                        (int)(now - n_name - 2), fields + k + n_name + 1);
            return nib_hint(error, NIB_ERR_USAGE, "give the same input and options as then, or leave out --resume");
        }
        k += now;
        at += now;
    }
    if (line_length(text->data, text->n_bytes, at) == n_last && memcmp(text->data + at, LAST_LINE, n_last) == 0)
        *end = at + n_last;
    return NIB_OK;
}

static bool parse_entry(const char *line, size_t n_line, nib_journal_entry *entry) {
    char text[MOST_ENTRY_BYTES + 1];
    int n = 0;
    if (n_line > MOST_ENTRY_BYTES) return false;
    memcpy(text, line, n_line);
    text[n_line] = '\0';
    return sscanf(text, "%" SCNu64 " %" SCNu64 " %" SCNx64 " %lf %lf %lf%n", &entry->offset, &entry->n_bytes,
                  &entry->xxh3, &entry->sum_squares, &entry->sum_squared_errors, &entry->max_abs_error, &n) == 6 &&
           text[n] == '\n';
}

nib_status nib_journal_resume(const char *path_out, const char *fields, nib_journal_entry *entries, size_t most,
                              size_t *n_entries, nib_journal **out, nib_error *error) {
    nib_status status;
    nib_string text = {0};
    nib_journal *journal = new_journal(path_out);
    *out = NULL;
    *n_entries = 0;
    if (!journal) return nib_fail_memory(error, sizeof *journal);
    NIB_TRY_GOTO(read_old(journal, &text, error));
    NIB_TRY_GOTO(compare_fields(journal, &text, fields, &journal->n_head, error));
    if (journal->n_head == 0) {
        nib_string_fini(&text);
        nib_journal_close(journal, true);
        return nib_journal_begin(path_out, fields, out, error);
    }
    for (size_t at = journal->n_head, length; journal->n < most; at += length) {
        length = line_length(text.data, text.n_bytes, at);
        if (length == 0 || !parse_entry(text.data + at, length, &entries[journal->n])) break;
        NIB_TRY_GOTO(remember_end(journal, at + length, error));
    }
    NIB_TRY_GOTO(nib_journal_cut(journal, journal->n, error));
    *n_entries = journal->n;
    nib_string_fini(&text);
    *out = journal;
    return NIB_OK;
fail:
    nib_string_fini(&text);
    nib_journal_close(journal, true);
    return status;
}

/* ---- Writing ------------------------------------------------------------------------------------------------------- */

nib_status nib_journal_cut(nib_journal *journal, size_t n, nib_error *error) {
    journal->n = n;
    const off_t end = (off_t)end_of(journal, n);
    if (ftruncate(journal->fd, end) != 0 || lseek(journal->fd, end, SEEK_SET) < 0)
        return nib_fail_errno(error, journal->path, "cannot go back in the journal");
    return NIB_OK;
}

nib_status nib_journal_add(nib_journal *journal, const nib_journal_entry *entry, nib_error *error) {
    char line[MOST_ENTRY_BYTES + 1];
    const int n =
        snprintf(line, sizeof line, "%" PRIu64 " %" PRIu64 " %016" PRIx64 " %a %a %a\n", entry->offset, entry->n_bytes,
                 entry->xxh3, entry->sum_squares, entry->sum_squared_errors, entry->max_abs_error);
    if (n < 0 || (size_t)n >= sizeof line)
        return nib_fail(error, NIB_ERR_BUG, "a line of the journal would be %d bytes long", n);
    NIB_TRY(remember_end(journal, end_of(journal, journal->n) + (size_t)n, error));
    return write_line(journal, line, (size_t)n, error);
}
