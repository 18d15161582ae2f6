/* Writing JSON: a small streaming writer. Results of every room know how to write themselves with it.
 * SPDX-License-Identifier: MIT */
#ifndef NIBBLE_JSON_H
#define NIBBLE_JSON_H

#include "nibble/base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nib_json nib_json;

/* Writes into memory; take the text with nib_json_take. Returns NULL only without memory. */
NIB_API nib_json *nib_json_new(void);
NIB_API void nib_json_free(nib_json *json);

/* key: member name inside an object, NULL inside an array and at the top.
 * Text need not be UTF-8: invalid bytes become U+FFFD. NaN and infinity are written as null. */
NIB_API void nib_json_begin_object(nib_json *json, const char *key);
NIB_API void nib_json_end_object(nib_json *json);
NIB_API void nib_json_begin_array(nib_json *json, const char *key);
NIB_API void nib_json_end_array(nib_json *json);
NIB_API void nib_json_string(nib_json *json, const char *key, const char *text);
NIB_API void nib_json_string_n(nib_json *json, const char *key, const char *text, size_t n_bytes);
NIB_API void nib_json_int(nib_json *json, const char *key, int64_t value);
NIB_API void nib_json_uint(nib_json *json, const char *key, uint64_t value);
NIB_API void nib_json_number(nib_json *json, const char *key, double value); /* shortest text that reads back equal */
NIB_API void nib_json_bool(nib_json *json, const char *key, bool value);
NIB_API void nib_json_null(nib_json *json, const char *key);

/* Begins a top-level object with the members every document has: schema "nibble.NAME/1", nibble, created, machine. */
NIB_API void nib_json_begin_document(nib_json *json, const char *name, const nib_pool *pool);

/* The text so far, NUL-terminated, owned by json; n_bytes may be NULL; NIB_ERR_MEMORY if any write failed, NIB_ERR_BUG if brackets are open. */
NIB_API nib_status nib_json_text(nib_json *json, const char **text, size_t *n_bytes, nib_error *error);

#ifdef __cplusplus
}
#endif
#endif
