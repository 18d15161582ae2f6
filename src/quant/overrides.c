/* Overrides: formats a user names for some tensors, in place of the recipe's.
 *
 *   "attn_v=q6_k"   "blk\.[0-3]\..*ffn_down=q5_k"   role: "experts_down=q4_k"   a file of such rules
 *
 * Expressions are compiled once, ignore case (llama-quantize lowers them, and names are lower-case), and match within a
 * fixed number of steps. */
#include "quant/overrides.h"

#include "base/files.h"
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define MOST_STEPS 1000000u /* of one match: a name has at most 63 bytes */

typedef struct rule {
    char *text;        /* as it was given */
    char *role;        /* NULL: by expression */
    pcre2_code *regex; /* NULL: by role */
    const nib_format *format;
} rule;

struct nib_overrides {
    const nib_format *output, *embedding;
    rule *rules;
    size_t n, capacity;
    pcre2_match_context *limits;
};

nib_status nib_overrides_new(nib_overrides **out, nib_error *error) {
    nib_overrides *overrides = nib_alloc(1, sizeof *overrides);
    *out = NULL;
    if (!overrides || !(overrides->limits = pcre2_match_context_create(NULL))) {
        nib_overrides_free(overrides);
        return nib_fail_memory(error, sizeof *overrides);
    }
    pcre2_set_match_limit(overrides->limits, MOST_STEPS);
    *out = overrides;
    return NIB_OK;
}

void nib_overrides_free(nib_overrides *overrides) {
    if (!overrides) return;
    for (size_t i = 0; i < overrides->n; i++) {
        free(overrides->rules[i].text);
        free(overrides->rules[i].role);
        pcre2_code_free(overrides->rules[i].regex);
    }
    free(overrides->rules);
    pcre2_match_context_free(overrides->limits);
    free(overrides);
}

/* ---- Adding ------------------------------------------------------------------------------------------------------------ */

static nib_status find_format(const char *name, const nib_format **out, nib_error *error) {
    *out = nib_format_find(name);
    if (*out) return NIB_OK;
    nib_fail(error, NIB_ERR_USAGE, "there is no format named \"%s\"", name);
    return nib_hint(error, NIB_ERR_USAGE, "a plain format such as q6_k, not a mix; `nibble formats` lists them");
}

static nib_status compile(const char *text, size_t n, pcre2_code **out, nib_error *error) {
    int code;
    PCRE2_SIZE at;
    *out = pcre2_compile((PCRE2_SPTR)text, n, PCRE2_CASELESS, &code, &at, NULL);
    if (*out) return NIB_OK;
    PCRE2_UCHAR why[128] = "";
    pcre2_get_error_message(code, why, sizeof why);
    nib_fail(error, NIB_ERR_USAGE, "\"%.*s\" is not a regular expression: %s at character %zu", (int)n, text,
             (const char *)why, (size_t)at + 1);
    return nib_hint(error, NIB_ERR_USAGE, "such as attn_v=q6_k or 'blk\\.[0-3]\\..*ffn_down=q5_k'");
}

/* text: (n) bytes, "WHICH=FORMAT". */
static nib_status add_rule(nib_overrides *overrides, const char *text, size_t n, bool is_role, nib_error *error) {
    rule added = {0};
    nib_status status;
    const char *equals = memchr(text, '=', n);
    if (!equals || equals == text || equals + 1 == text + n) {
        nib_fail(error, NIB_ERR_USAGE, "\"%.*s\" is not of the form %s=FORMAT", (int)(n < 200 ? n : 200), text,
                 is_role ? "ROLE" : "REGEX");
        return nib_hint(error, NIB_ERR_USAGE, "such as %s=q6_k", is_role ? "ffn_down" : "attn_v");
    }
    const size_t n_which = (size_t)(equals - text);
    char format[64] = "";
    if (n - n_which - 1 < sizeof format) memcpy(format, equals + 1, n - n_which - 1);
    NIB_TRY_GOTO(find_format(format, &added.format, error));
    if (!is_role) NIB_TRY_GOTO(compile(text, n_which, &added.regex, error));
    if (is_role) added.role = nib_strdup_n(text, n_which);
    added.text = nib_strdup_n(text, n);
    const bool grown =
        nib_grow((void **)&overrides->rules, &overrides->capacity, overrides->n + 1, sizeof *overrides->rules);
    if (!added.text || (is_role && !added.role) || !grown) {
        status = nib_fail_memory(error, n);
        goto fail;
    }
    overrides->rules[overrides->n++] = added;
    return NIB_OK;
fail:
    free(added.text);
    free(added.role);
    pcre2_code_free(added.regex);
    return status;
}

nib_status nib_overrides_add_tensor(nib_overrides *overrides, const char *text, nib_error *error) {
    return add_rule(overrides, text, strlen(text), false, error);
}

nib_status nib_overrides_add_role(nib_overrides *overrides, const char *text, nib_error *error) {
    return add_rule(overrides, text, strlen(text), true, error);
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

nib_status nib_overrides_add_file(nib_overrides *overrides, const char *path, nib_error *error) {
    static const char role[] = "role:";
    const size_t n_role = sizeof role - 1;
    char *text = NULL;
    size_t n = 0;
    nib_status status = nib_read_file(path, &text, &n, error);
    for (size_t i = 0; i < n && status == NIB_OK;) {
        const size_t begin = i;
        if (text[i] == '#') {
            while (i < n && text[i] != '\n') i++;
        } else if (is_space(text[i])) {
            i++;
        } else {
            while (i < n && !is_space(text[i])) i++;
            const bool is_role = i - begin > n_role && memcmp(text + begin, role, n_role) == 0;
            const size_t skip = is_role ? n_role : 0;
            status = add_rule(overrides, text + begin + skip, i - begin - skip, is_role, error);
        }
        if (status == NIB_ERR_USAGE) {
            nib_error cause = error ? *error : (nib_error){0};
            status = nib_fail_at(error, NIB_ERR_CORRUPT, path, (int64_t)begin, NULL, "%s", cause.message);
            nib_hint(error, NIB_ERR_CORRUPT, "%s", cause.hint);
        }
    }
    free(text);
    return status;
}

nib_status nib_overrides_set_output(nib_overrides *overrides, const char *format, nib_error *error) {
    return find_format(format, &overrides->output, error);
}

nib_status nib_overrides_set_embedding(nib_overrides *overrides, const char *format, nib_error *error) {
    return find_format(format, &overrides->embedding, error);
}

/* ---- Asking ------------------------------------------------------------------------------------------------------------- */

const nib_format *nib_overrides_output(const nib_overrides *overrides) {
    return overrides ? overrides->output : NULL;
}

const nib_format *nib_overrides_embedding(const nib_overrides *overrides) {
    return overrides ? overrides->embedding : NULL;
}

/* *out: whether the rule speaks of the tensor. */
static nib_status fits(const nib_overrides *overrides, const rule *r, const char *name, bool *out, nib_error *error) {
    *out = false;
    if (r->role) {
        *out = strcmp(r->role, nib_tensor_role(name, NULL)) == 0;
        return NIB_OK;
    }
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match) return nib_fail_memory(error, 64);
    const int found = pcre2_match(r->regex, (PCRE2_SPTR)name, strlen(name), 0, 0, match, overrides->limits);
    pcre2_match_data_free(match);
    *out = found >= 0;
    if (found >= 0 || found == PCRE2_ERROR_NOMATCH) return NIB_OK;
    nib_fail(error, NIB_ERR_USAGE, "the rule %s takes too long on the name %s", r->text, name);
    return nib_hint(error, NIB_ERR_USAGE, "use a simpler expression, without nested repetitions");
}

nib_status nib_overrides_find(const nib_overrides *overrides, const char *name, const nib_format **out,
                              nib_error *error) {
    *out = NULL;
    for (unsigned by_role = 0; by_role < 2; by_role++) {
        for (size_t i = 0; overrides && i < overrides->n; i++) {
            const rule *r = &overrides->rules[i];
            bool found;
            if ((r->role != NULL) != (by_role == 1)) continue;
            NIB_TRY(fits(overrides, r, name, &found, error));
            if (!found) continue;
            *out = r->format;
            return NIB_OK;
        }
    }
    return NIB_OK;
}

void nib_overrides_warn_unused(const nib_overrides *overrides, const nib_gguf *gguf, const nib_watch *watch) {
    for (size_t r = 0; overrides && r < overrides->n; r++) {
        bool used = false;
        for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf) && !used; i++) {
            /* what cannot be matched was an error when formats were chosen */
            if (fits(overrides, &overrides->rules[r], nib_gguf_tensor_at(gguf, i)->name, &used, NULL) != NIB_OK) return;
        }
        if (!used) nib_warn(watch, "no tensor fits %s", overrides->rules[r].text);
    }
}
