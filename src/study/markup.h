/* Text that goes into HTML, XML and pictures: escaping, and numbers as people read them. */
#ifndef NIB_STUDY_MARKUP_H
#define NIB_STUDY_MARKUP_H

#include "base/memory.h"

/* Appends text so that it is content and never markup, in elements and in quoted attributes: & < > " ' are escaped,
 * invalid UTF-8 and characters XML forbids become U+FFFD. */
void nib_markup_escape(nib_string *out, const char *text);
void nib_markup_escape_n(nib_string *out, const char *text, size_t n_bytes);

/* Numbers as text; each returns out, which holds at least 32 bytes. */
const char *nib_text_of_bytes(char out[32], double n_bytes);    /* "11.7 MB" */
const char *nib_text_of_seconds(char out[32], double seconds);  /* "2 min 5 s" */
const char *nib_text_of_number(char out[32], double value);     /* three significant digits, two below 0.001 */
const char *nib_text_of_error(char out[32], double value);      /* two significant digits: "0.013" */
const char *nib_text_of_percent(char out[32], double fraction); /* "96.5%" */
const char *nib_text_of_rate(char out[32], double per_second);  /* "38.1", "1240" */

#endif
