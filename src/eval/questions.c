/* Choice questions from JSONL files: our own fields and those of files that people already have.
 *
 *   line --jansson--> object --fields--> one of three kinds --> prompt(s), choices, index of the answer
 *
 * Every line is judged by itself. What is wrong is said with the line's number, its byte offset and the field. */
#include "base/error.h"
#include "base/files.h"
#include "base/memory.h"
#include "file/demo.h"
#include "nibble/eval.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_LINE_BYTES = 1 << 20, MAX_QUESTIONS = 1000000, MAX_CHOICES = 64 };

/* Where we are in the file, for errors. */
typedef struct place {
    const char *file;
    uint32_t line;
    int64_t offset; /* of the line's first byte */
    nib_error *error;
} place;

static nib_status bad_field(const place *at, const char *field, const char *problem) {
    nib_fail_at(at->error, NIB_ERR_CORRUPT, at->file, at->offset, field, "line %u: '%s' %s", at->line, field, problem);
    return nib_hint(at->error, NIB_ERR_CORRUPT,
                    "one JSON object a line: {\"question\": TEXT, \"choices\": [TEXT, ...], \"answer\": INDEX}");
}

static nib_status no_memory(const place *at) {
    return nib_fail_memory(at->error, 0);
}

/* A member that must be text and not empty. */
static nib_status get_text(const place *at, const json_t *object, const char *field, const char **out) {
    const json_t *value = json_object_get(object, field);
    if (value == NULL) return bad_field(at, field, "is missing");
    if (!json_is_string(value)) return bad_field(at, field, "is not text");
    if (json_string_length(value) == 0) return bad_field(at, field, "is empty");
    *out = json_string_value(value);
    return NIB_OK;
}

/* The same, "" if the member is absent or empty. */
static nib_status get_optional_text(const place *at, const json_t *object, const char *field, const char **out) {
    const json_t *value = json_object_get(object, field);
    *out = "";
    if (value == NULL || json_is_null(value)) return NIB_OK;
    if (!json_is_string(value)) return bad_field(at, field, "is not text");
    *out = json_string_value(value);
    return NIB_OK;
}

/* An array of 2 to MAX_CHOICES texts, copied; out gets as many strings and *n their number, also on failure. */
static nib_status get_texts(const place *at, const json_t *object, const char *field, char ***out, uint32_t *n) {
    const json_t *array = json_object_get(object, field);
    if (array == NULL) return bad_field(at, field, "is missing");
    if (!json_is_array(array)) return bad_field(at, field, "is not an array");
    if (json_array_size(array) < 2) return bad_field(at, field, "has fewer than 2 entries");
    if (json_array_size(array) > MAX_CHOICES) return bad_field(at, field, "has more than 64 entries");
    *out = nib_alloc(json_array_size(array), sizeof **out);
    if (*out == NULL) return no_memory(at);
    *n = (uint32_t)json_array_size(array);
    for (uint32_t i = 0; i < *n; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_string(value)) return bad_field(at, field, "has an entry that is not text");
        if (json_string_length(value) == 0) return bad_field(at, field, "has an empty entry");
        (*out)[i] = nib_strdup(json_string_value(value));
        if ((*out)[i] == NULL) return no_memory(at);
    }
    return NIB_OK;
}

static nib_status get_index(const place *at, const json_t *object, const char *field, uint32_t n, uint32_t *out) {
    const json_t *value = json_object_get(object, field);
    if (value == NULL) return bad_field(at, field, "is missing");
    if (!json_is_integer(value)) return bad_field(at, field, "is not a whole number");
    const json_int_t index = json_integer_value(value);
    if (index < 0 || index >= (json_int_t)n)
        return bad_field(at, field, "is not the index of a choice (0 is the first)");
    *out = (uint32_t)index;
    return NIB_OK;
}

/* Copies what was put together in string, which is emptied. */
static nib_status take_string(const place *at, nib_string *string, char **out) {
    if (string->failed || string->data == NULL) {
        nib_string_fini(string);
        return no_memory(at);
    }
    *out = string->data;
    *string = (nib_string){0};
    return NIB_OK;
}

static nib_status read_own_kind(const place *at, const json_t *object, nib_question *out) {
    const char *context, *prompt, *question;
    nib_string text = {0};
    NIB_TRY(get_optional_text(at, object, "context", &context));
    NIB_TRY(get_optional_text(at, object, "prompt", &prompt));
    if (prompt[0] == '\0') NIB_TRY(get_text(at, object, "question", &question));
    NIB_TRY(get_texts(at, object, "choices", &out->choices, &out->n_choices));
    NIB_TRY(get_index(at, object, "answer", out->n_choices, &out->answer));
    if (context[0] != '\0') nib_string_addf(&text, "%s\n", context);
    if (prompt[0] != '\0')
        nib_string_addf(&text, "%s", prompt);
    else
        nib_string_addf(&text, "Question: %s\nAnswer:", question);
    return take_string(at, &text, &out->prompt);
}

/* ARC, PIQA ("Question: " stands in the query already) and OpenBookQA (it is a sentence to be continued). */
static nib_status read_query_kind(const place *at, const json_t *object, nib_question *out) {
    const char *query;
    nib_string text = {0};
    NIB_TRY(get_text(at, object, "query", &query));
    NIB_TRY(get_texts(at, object, "choices", &out->choices, &out->n_choices));
    NIB_TRY(get_index(at, object, "gold", out->n_choices, &out->answer));
    const bool is_question = strncmp(query, "Question: ", 10) == 0;
    nib_string_addf(&text, "%s%s", query, is_question ? "\nAnswer:" : "");
    return take_string(at, &text, &out->prompt);
}

/* Winogrande: the sentence up to the blank with each name in it; what is scored is the rest of it. */
static nib_status read_options_kind(const place *at, const json_t *object, nib_question *out) {
    const char *continuation;
    NIB_TRY(get_texts(at, object, "context_options", &out->prompts, &out->n_choices));
    NIB_TRY(get_text(at, object, "continuation", &continuation));
    NIB_TRY(get_index(at, object, "gold", out->n_choices, &out->answer));
    out->choices = nib_alloc(out->n_choices, sizeof *out->choices);
    out->prompt = nib_strdup(out->prompts[0]);
    if (out->choices == NULL || out->prompt == NULL) return no_memory(at);
    for (uint32_t i = 0; i < out->n_choices; i++)
        if ((out->choices[i] = nib_strdup(continuation)) == NULL) return no_memory(at);
    return NIB_OK;
}

static bool is_blank(const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (text[i] == '\0' || strchr(" \t\r\n", text[i]) == NULL) return false;
    return true;
}

static nib_status read_kind(const place *at, const json_t *object, nib_question *out) {
    if (json_object_get(object, "query") != NULL) return read_query_kind(at, object, out);
    if (json_object_get(object, "context_options") != NULL) return read_options_kind(at, object, out);
    return read_own_kind(at, object, out);
}

static nib_status read_object(const place *at, const json_t *object, nib_question *out) {
    const char *category;
    if (!json_is_object(object)) {
        nib_fail_at(at->error, NIB_ERR_CORRUPT, at->file, at->offset, "", "line %u is not a JSON object", at->line);
        return nib_hint(at->error, NIB_ERR_CORRUPT, "one JSON object a line, each in braces");
    }
    NIB_TRY(get_optional_text(at, object, "category", &category));
    out->category = nib_strdup(category);
    if (out->category == NULL) return no_memory(at);
    NIB_TRY(read_kind(at, object, out));
    bool has_prompts = !is_blank(out->prompt, strlen(out->prompt));
    for (uint32_t i = 0; out->prompts != NULL && i < out->n_choices; i++)
        if (is_blank(out->prompts[i], strlen(out->prompts[i]))) has_prompts = false;
    return has_prompts ? NIB_OK : bad_field(at, "prompt", "is blank: a choice is scored after something");
}

static void free_texts(char **texts, uint32_t n) {
    for (uint32_t i = 0; texts != NULL && i < n; i++) free(texts[i]);
    free(texts);
}

static void question_fini(nib_question *question) {
    free_texts(question->choices, question->n_choices);
    free_texts(question->prompts, question->n_choices);
    free(question->prompt);
    free(question->category);
    *question = (nib_question){0};
}

static nib_status read_line(const place *at, const char *text, size_t n_bytes, nib_question *out) {
    json_error_t problem;
    if (n_bytes > MAX_LINE_BYTES)
        return nib_fail_at(at->error, NIB_ERR_CORRUPT, at->file, at->offset, "", "line %u is longer than 1 MiB",
                           at->line);
    json_t *object = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &problem);
    if (object == NULL) {
        nib_fail_at(at->error, NIB_ERR_CORRUPT, at->file, at->offset + (problem.position > 0 ? problem.position : 0),
                    "", "line %u is broken JSON: %s", at->line, problem.text);
        return nib_hint(at->error, NIB_ERR_CORRUPT, "one complete JSON object a line, member names not repeated");
    }
    const nib_status status = read_object(at, object, out);
    json_decref(object);
    if (status != NIB_OK) question_fini(out);
    return status;
}

static nib_status read_lines(const char *file, const char *data, size_t n_bytes, nib_questions *out, nib_error *error) {
    place at = {file, 0, 0, error};
    size_t capacity = 0;
    if (n_bytes >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) at.offset = 3; /* a byte order mark some editors write */
    for (size_t begin = (size_t)at.offset, end; begin < n_bytes; begin = end + 1) {
        const char *newline = memchr(data + begin, '\n', n_bytes - begin);
        end = newline == NULL ? n_bytes : (size_t)(newline - data);
        at.line++;
        at.offset = (int64_t)begin;
        if (is_blank(data + begin, end - begin)) continue;
        if (out->n >= MAX_QUESTIONS)
            return nib_fail_at(error, NIB_ERR_CORRUPT, file, at.offset, "", "more than %d questions", MAX_QUESTIONS);
        if (!nib_grow((void **)&out->items, &capacity, (size_t)out->n + 1, sizeof *out->items)) return no_memory(&at);
        out->items[out->n] = (nib_question){0};
        NIB_TRY(read_line(&at, data + begin, end - begin, &out->items[out->n]));
        out->n++;
    }
    if (out->n == 0) return nib_fail_at(error, NIB_ERR_CORRUPT, file, 0, "", "there are no questions in the file");
    return NIB_OK;
}

/* "dir/arc_easy.jsonl" -> "arc_easy" */
static void name_of_path(const char *path, char out[128]) {
    const char *slash = strrchr(path, '/'), *base = slash != NULL ? slash + 1 : path, *dot = strrchr(base, '.');
    const int n = dot != NULL && dot > base ? (int)(dot - base) : (int)strlen(base);
    snprintf(out, 128, "%.*s", n, base);
}

nib_status nib_questions_read(const char *path, nib_questions *out, nib_error *error) {
    nib_status status = NIB_OK;
    char *owned = NULL;
    const char *data = NULL;
    size_t n_bytes = 0;
    *out = (nib_questions){0};
    name_of_path(path, out->name);
    if (strcmp(path, "demo") == 0) {
        const uint8_t *built_in;
        if (!nib_demo_file("choice", &built_in, &n_bytes))
            return nib_fail(error, NIB_ERR_BUG, "the built-in questions are missing");
        data = (const char *)built_in;
    } else {
        NIB_TRY(nib_read_file(path, &owned, &n_bytes, error));
        data = owned;
    }
    status = read_lines(path, data, n_bytes, out, error);
    free(owned);
    if (status != NIB_OK) nib_questions_fini(out);
    return status;
}

void nib_questions_fini(nib_questions *questions) {
    if (questions == NULL) return;
    for (uint32_t i = 0; i < questions->n; i++) question_fini(&questions->items[i]);
    free(questions->items);
    *questions = (nib_questions){0};
}
