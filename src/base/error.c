/* Errors are filled in place; nothing here allocates, so running out of memory can be reported too. */
#include "base/error.h"
#include "base/utf8.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *nib_status_name(nib_status status) {
    switch (status) {
    case NIB_OK:
        return "ok";
    case NIB_ERR_GATE:
        return "gate";
    case NIB_ERR_USAGE:
        return "usage";
    case NIB_ERR_CORRUPT:
        return "corrupt";
    case NIB_ERR_IO:
        return "io";
    case NIB_ERR_MEMORY:
        return "memory";
    case NIB_ERR_NETWORK:
        return "network";
    case NIB_ERR_UNSUPPORTED:
        return "unsupported";
    case NIB_ERR_BUG:
        return "bug";
    case NIB_ERR_INTERRUPTED:
        return "interrupted";
    }
    return "unknown";
}

const char *nib_version(void) {
    return NIBBLE_VERSION;
}

/* Replaces what could confuse a terminal (control bytes, broken UTF-8, a character cut at the end) with '?'. */
static void make_printable(char *text) {
    const size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        const size_t length = nib_utf8_decode(text + i, n - i, &code);
        if (length == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0)) memset(text + i, '?', length ? length : 1);
        i += length ? length : 1;
    }
}

static void copy_text(char *dst, size_t size, const char *text) {
    snprintf(dst, size, "%s", text ? text : "");
    make_printable(dst);
}

static void fill(nib_error *error, nib_status code, int os_errno, const char *file, int64_t offset, const char *field,
                 const char *format, va_list arguments) {
    nib_error filled = {.code = code, .os_errno = os_errno, .offset = offset};
    copy_text(filled.file, sizeof filled.file, file);
    copy_text(filled.field, sizeof filled.field, field);
    vsnprintf(filled.message, sizeof filled.message, format, arguments);
    make_printable(filled.message);
    *error = filled;
}

nib_status nib_fail(nib_error *error, nib_status code, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        fill(error, code, 0, NULL, -1, NULL, format, arguments);
        va_end(arguments);
    }
    return code;
}

nib_status nib_fail_at(nib_error *error, nib_status code, const char *file, int64_t offset, const char *field,
                       const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        fill(error, code, 0, file, offset, field, format, arguments);
        va_end(arguments);
    }
    return code;
}

static const char *hint_for(int os_errno) {
    switch (os_errno) {
    case ENOENT:
        return "check the path";
    case EACCES:
    case EPERM:
        return "check the permissions of the file and its folder";
    case ENOSPC:
    case EDQUOT:
        return "free some space, or write to another disk";
    case EROFS:
        return "this file system is read-only: write somewhere else";
    case EISDIR:
        return "give a file, not a folder";
    case ENOTDIR:
        return "a part of the path is not a folder";
    case ENOMEM:
        return "close other programs, or use fewer threads";
    case EMFILE:
    case ENFILE:
        return "raise the limit of open files (ulimit -n)";
    default:
        return "";
    }
}

nib_status nib_fail_errno(nib_error *error, const char *file, const char *format, ...) {
    const int os_errno = errno;
    const nib_status code = os_errno == ENOMEM ? NIB_ERR_MEMORY : NIB_ERR_IO;
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        fill(error, code, os_errno, file, -1, NULL, format, arguments);
        va_end(arguments);
        const size_t used = strlen(error->message);
        snprintf(error->message + used, sizeof error->message - used, ": %s", strerror(os_errno));
        copy_text(error->hint, sizeof error->hint, hint_for(os_errno));
    }
    return code;
}

nib_status nib_fail_memory(nib_error *error, uint64_t n_bytes) {
    nib_fail(error, NIB_ERR_MEMORY, "not enough memory for %llu bytes", (unsigned long long)n_bytes);
    if (error) copy_text(error->hint, sizeof error->hint, hint_for(ENOMEM));
    return NIB_ERR_MEMORY;
}

nib_status nib_hint(nib_error *error, nib_status code, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->hint, sizeof error->hint, format, arguments);
        va_end(arguments);
        make_printable(error->hint);
    }
    return code;
}

void nib_warn(const nib_watch *watch, const char *format, ...) {
    if (!watch || !watch->warn) return;
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    make_printable(message);
    watch->warn(watch->user, message);
}
