/* A streaming JSON writer: two-space indentation, short arrays of numbers on one line. */
#include "nibble/json.h"

#include "base/error.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_DEPTH = 64 };

struct nib_json {
    nib_string text;
    int depth;
    bool is_array[MAX_DEPTH];
    bool has_items[MAX_DEPTH];
    bool broken; /* brackets that do not match */
};

nib_json *nib_json_new(void) {
    return nib_alloc(1, sizeof(nib_json));
}

void nib_json_free(nib_json *json) {
    if (!json) return;
    nib_string_fini(&json->text);
    free(json);
}

static void add(nib_json *json, const char *text) {
    nib_string_add(&json->text, text, strlen(text));
}

static void add_quoted(nib_json *json, const char *text, size_t n_bytes) {
    nib_string *out = &json->text;
    add(json, "\"");
    for (size_t i = 0; i < n_bytes;) {
        const unsigned char *p = (const unsigned char *)text + i;
        uint32_t code;
        const size_t length = nib_utf8_decode(text + i, n_bytes - i, &code);
        if (length == 0)
            add(json, "\xef\xbf\xbd");
        else if (p[0] == '"' || p[0] == '\\')
            nib_string_addf(out, "\\%c", p[0]);
        else if (p[0] == '\n')
            add(json, "\\n");
        else if (p[0] < 0x20 || p[0] == 0x7f)
            nib_string_addf(out, "\\u%04x", p[0]);
        else
            nib_string_add(out, (const char *)p, length);
        i += length ? length : 1;
    }
    add(json, "\"");
}

static void new_line(nib_json *json) {
    add(json, "\n");
    for (int i = 0; i < json->depth; i++) add(json, "  ");
}

/* What comes before every value: comma, line, key. Numbers in arrays stay on one line. */
static void begin_value(nib_json *json, const char *key, bool is_number) {
    if (json->depth > 0) {
        const int level = json->depth - 1;
        if (json->has_items[level]) add(json, ",");
        if (json->is_array[level] && is_number)
            add(json, json->has_items[level] ? " " : "");
        else
            new_line(json);
        json->has_items[level] = true;
        if (json->is_array[level] != (key == NULL)) json->broken = true;
    }
    if (key) {
        add_quoted(json, key, strlen(key));
        add(json, ": ");
    }
}

static void open_bracket(nib_json *json, const char *key, bool is_array) {
    begin_value(json, key, false);
    add(json, is_array ? "[" : "{");
    if (json->depth == MAX_DEPTH) {
        json->broken = true;
        return;
    }
    json->is_array[json->depth] = is_array;
    json->has_items[json->depth++] = false;
}

static void close_bracket(nib_json *json, bool is_array) {
    if (json->depth == 0 || json->is_array[json->depth - 1] != is_array) {
        json->broken = true;
        return;
    }
    const char *end = json->text.n_bytes ? json->text.data + json->text.n_bytes - 1 : "";
    const bool ends_in_bracket = *end == '}' || *end == ']' || *end == '"';
    json->depth--;
    if (json->has_items[json->depth] && (!is_array || ends_in_bracket)) new_line(json);
    add(json, is_array ? "]" : "}");
}

void nib_json_begin_object(nib_json *json, const char *key) {
    open_bracket(json, key, false);
}
void nib_json_end_object(nib_json *json) {
    close_bracket(json, false);
}
void nib_json_begin_array(nib_json *json, const char *key) {
    open_bracket(json, key, true);
}
void nib_json_end_array(nib_json *json) {
    close_bracket(json, true);
}

void nib_json_string_n(nib_json *json, const char *key, const char *text, size_t n_bytes) {
    begin_value(json, key, false);
    add_quoted(json, text, n_bytes);
}
void nib_json_string(nib_json *json, const char *key, const char *text) {
    if (text)
        nib_json_string_n(json, key, text, strlen(text));
    else
        nib_json_null(json, key);
}
void nib_json_int(nib_json *json, const char *key, int64_t value) {
    begin_value(json, key, true);
    nib_string_addf(&json->text, "%lld", (long long)value);
}
void nib_json_uint(nib_json *json, const char *key, uint64_t value) {
    begin_value(json, key, true);
    nib_string_addf(&json->text, "%llu", (unsigned long long)value);
}
void nib_json_number(nib_json *json, const char *key, double value) {
    begin_value(json, key, true);
    if (!isfinite(value)) {
        add(json, "null");
        return;
    }
    char text[32];
    for (int digits = 6; digits <= 17; digits++) { /* the shortest that reads back equal */
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    add(json, text);
}
void nib_json_bool(nib_json *json, const char *key, bool value) {
    begin_value(json, key, true);
    add(json, value ? "true" : "false");
}
void nib_json_null(nib_json *json, const char *key) {
    begin_value(json, key, true);
    add(json, "null");
}

nib_status nib_json_text(nib_json *json, const char **text, size_t *n_bytes, nib_error *error) {
    if (json->broken || json->depth != 0)
        return nib_fail(error, NIB_ERR_BUG, "a JSON document was not closed properly");
    if (json->text.failed) return nib_fail_memory(error, json->text.n_bytes);
    *text = json->text.data ? json->text.data : "";
    if (n_bytes) *n_bytes = json->text.n_bytes;
    return NIB_OK;
}
