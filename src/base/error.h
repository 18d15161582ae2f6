/* Filling nib_error, and passing statuses on. */
#ifndef NIB_BASE_ERROR_H
#define NIB_BASE_ERROR_H

#include "nibble/base.h"

/* Forwards a failure to the caller; for functions that have nothing to clean up. */
#define NIB_TRY(expression)                                    \
    do {                                                       \
        nib_status nib_try_status_ = (expression);             \
        if (nib_try_status_ != NIB_OK) return nib_try_status_; \
    } while (0)

/* Forwards a failure to the function's one `fail:` label, leaving it in the local variable `status`. */
#define NIB_TRY_GOTO(expression)         \
    do {                                 \
        status = (expression);           \
        if (status != NIB_OK) goto fail; \
    } while (0)

/* All of these overwrite *error (which may be NULL) and return `code`. Texts from files may be passed to %s: what is not
 * printable is replaced. */
nib_status nib_fail(nib_error *error, nib_status code, const char *format, ...) NIB_PRINTF(3, 4);
nib_status nib_fail_at(nib_error *error, nib_status code, const char *file, int64_t offset, const char *field,
                       const char *format, ...) NIB_PRINTF(6, 7);
/* From errno: NIB_ERR_MEMORY for ENOMEM, NIB_ERR_IO otherwise; the system's words and a fitting hint are appended. */
nib_status nib_fail_errno(nib_error *error, const char *file, const char *format, ...) NIB_PRINTF(3, 4);
nib_status nib_fail_memory(nib_error *error, uint64_t n_bytes);
/* Adds the advice; returns error's code (NIB_ERR_BUG if error is NULL is never wanted: pass the code). */
nib_status nib_hint(nib_error *error, nib_status code, const char *format, ...) NIB_PRINTF(3, 4);

void nib_warn(const nib_watch *watch, const char *format, ...) NIB_PRINTF(2, 3);

#endif
