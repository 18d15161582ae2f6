/* Cutting text into the pieces that byte-pair merges never cross.
 *
 * A pre-tokenizer is a list of regexes, part of how its model was trained. Each regex in turn splits every piece so far
 * into its matches and the gaps between them; nothing is dropped.
 *
 * The regexes never see the text itself but one byte per code point: ASCII as it is, anything else a stand-in of the same
 * Unicode category from Latin-1, chosen by our own table. So PCRE2 matches plain bytes with Unicode properties (UCP
 * without UTF): faster, indifferent to broken UTF-8, and the cuts are the same whichever Unicode version the installed
 * PCRE2 was built with. */
#include "text/tokenizer.h"
#include "text/unicode_table.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* ---- The rules ------------------------------------------------------------------------------------------------------ */

#define MAX_REGEXES       4

/* English contractions; the first form minds case, the second does not. */
#define CONTRACTION_LOWER "'s|'t|'re|'ve|'m|'ll|'d"
#define CONTRACTION       "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"

#define GPT2              CONTRACTION_LOWER "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define WORDS(digits)                                    \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
                "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

typedef struct rule {
    const char *regexes[MAX_REGEXES];
} rule;

static const rule rule_default = {{"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}};
static const rule rule_gpt2 = {{GPT2}};
static const rule rule_starcoder = {{"\\p{N}", GPT2}};
static const rule rule_llama3 = {{WORDS("\\p{N}{1,3}")}};
static const rule rule_qwen2 = {{WORDS("\\p{N}")}};

static const struct named_rule {
    const char *name;
    const rule *rule;
    nib_pre_facts facts; /* ignore_merges, add_bos, no_default_bos */
} named_rules[] = {
    {"default", &rule_default, {0}},
    {"gpt-2", &rule_gpt2, {0}},
    {"phi-2", &rule_gpt2, {0}},
    {"gigachat", &rule_gpt2, {0}},
    {"a.x-4.0", &rule_gpt2, {0}},
    {"mellum", &rule_gpt2, {0}},
    {"exaone4", &rule_gpt2, {0}},
    {"mpt", &rule_gpt2, {0}},
    {"olmo", &rule_gpt2, {0}},
    {"jais", &rule_gpt2, {0}},
    {"trillion", &rule_gpt2, {0}},
    {"granite-docling", &rule_gpt2, {0}},
    {"smollm", &rule_starcoder, {0}},
    {"starcoder", &rule_starcoder, {0}},
    {"refact", &rule_starcoder, {0}},
    {"command-r", &rule_starcoder, {0}},
    {"codeshell", &rule_starcoder, {0}},
    {"exaone", &rule_starcoder, {0}},
    {"minerva-7b", &rule_starcoder, {0}},
    {"mellum2", &rule_starcoder, {0}},
    {"llama-bpe", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"llama3", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"llama-v3", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"falcon3", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"falcon-h1", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"pixtral", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"midm-2.0", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"lfm2", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"jina-v5-nano", &rule_llama3, {.ignore_merges = true, .add_bos = true}},
    {"dbrx", &rule_llama3, {0}},
    {"smaug-bpe", &rule_llama3, {0}},
    {"glm4", &rule_llama3, {.no_default_bos = true}},
    {"chatglm-bpe", &rule_llama3, {.no_default_bos = true}},
    {"qwen2", &rule_qwen2, {0}},
    {"deepseek-r1-qwen", &rule_qwen2, {0}},
    {"kormo", &rule_qwen2, {0}},
    {"f2llmv2", &rule_qwen2, {0}},
    {"stablelm2", &rule_qwen2, {0}},
    {"megrez", &rule_qwen2, {0}},
    {"hunyuan", &rule_qwen2, {0}},
    {"grok-2", &rule_qwen2, {0}},
    {"solar-open", &rule_qwen2, {0}},
};

struct nib_pre {
    const struct named_rule *named;
    pcre2_code *codes[MAX_REGEXES];
    size_t n_codes;
};

nib_status nib_pre_new(const char *name, nib_pre **out, nib_error *error) {
    *out = NULL;
    const struct named_rule *named = NULL;
    for (size_t i = 0; i < sizeof named_rules / sizeof *named_rules && named == NULL; i++)
        if (strcmp(named_rules[i].name, name) == 0) named = &named_rules[i];
    if (named == NULL) return NIB_OK;

    nib_pre *pre = nib_alloc(1, sizeof *pre);
    if (pre == NULL) return nib_fail_memory(error, sizeof *pre);
    pre->named = named;
    for (; pre->n_codes < MAX_REGEXES && named->rule->regexes[pre->n_codes]; pre->n_codes++) {
        int code;
        PCRE2_SIZE at;
        pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)named->rule->regexes[pre->n_codes], PCRE2_ZERO_TERMINATED,
                                             PCRE2_UCP, &code, &at, NULL);
        if (compiled == NULL) {
            nib_pre_free(pre);
            return nib_fail(error, NIB_ERR_BUG, "pre-tokenizer %s: PCRE2 error %d at %zu of a regex", name, code, at);
        }
        pre->codes[pre->n_codes] = compiled;
        /* Where there is no JIT the interpreter gives the same matches. */
        (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    }
    *out = pre;
    return NIB_OK;
}

void nib_pre_free(nib_pre *pre) {
    if (pre == NULL) return;
    for (size_t i = 0; i < pre->n_codes; i++) pcre2_code_free(pre->codes[i]);
    free(pre);
}

nib_pre_facts nib_pre_facts_of(const nib_pre *pre) {
    return pre->named->facts;
}

/* ---- Text to classes ------------------------------------------------------------------------------------------------ */

/* The classes of unicode_table.py in order: other, letter, number, mark, punctuation, symbol, white space. Latin-1 has no
 * mark; no regex here asks for one. */
static const uint8_t stand_ins[] = {0xad, 0xe9, 0xb2, 0xad, 0xa1, 0xa6, 0xa0};

static uint8_t stand_in_of(uint32_t code_point) {
    if (code_point < 0x80) return (uint8_t)code_point;
    size_t low = 0, high = sizeof unicode_runs / sizeof *unicode_runs;
    while (high - low > 1) { /* the run of code_point is in [low, high) */
        const size_t middle = (low + high) / 2;
        if (unicode_runs[middle] >> 3 <= code_point) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return stand_ins[unicode_runs[low] & 7];
}

uint32_t nib_text_decode(const char *text, size_t n_bytes, size_t *n_used) {
    const uint8_t *p = (const uint8_t *)text;
    *n_used = 1;
    if (p[0] < 0x80) return p[0];
    const size_t n = p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf8 ? 4 : 0;
    if (n == 0 || n > n_bytes) return 0xfffd;
    uint32_t code_point = p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0xfffd;
        code_point = code_point << 6 | (p[i] & 0x3f);
    }
    if (code_point > 0x10ffff) return 0xfffd;
    *n_used = n;
    return code_point;
}

size_t nib_text_encode(uint32_t code_point, char out[4]) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    const size_t n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code_point & 0x3f));
        code_point >>= 6;
    }
    out[0] = (char)((0xf00u >> n & 0xff) | code_point);
    return n;
}

static bool read_text(const char *text, size_t n_bytes, nib_pieces *out, size_t *n_code_points) {
    out->n_bytes = 0;
    *n_code_points = 0;
    if (!nib_grow((void **)&out->classes, &out->classes_capacity, n_bytes, 1) ||
        !nib_grow((void **)&out->text, &out->text_capacity, n_bytes + 4, 1))
        return false;
    for (size_t at = 0, used; at < n_bytes; at += used) {
        const uint32_t code_point = nib_text_decode(text + at, n_bytes - at, &used);
        /* Repair makes the text longer than it was: room is kept for what is left and one more code point. */
        if (!nib_grow((void **)&out->text, &out->text_capacity, out->n_bytes + (n_bytes - at) + 4, 1)) return false;
        out->n_bytes += nib_text_encode(code_point, out->text + out->n_bytes);
        out->classes[(*n_code_points)++] = stand_in_of(code_point);
    }
    return true;
}

/* ---- Splitting ------------------------------------------------------------------------------------------------------ */

static bool add_end(uint32_t **ends, size_t *n, size_t *capacity, size_t end) {
    if (!nib_grow((void **)ends, capacity, *n + 1, sizeof **ends)) return false;
    (*ends)[(*n)++] = (uint32_t)end;
    return true;
}

/* Splits every piece of out->ends with one regex. Ends count code points here. */
static nib_status split(pcre2_code *code, pcre2_match_data *match, pcre2_match_context *context, nib_pieces *out,
                        nib_error *error) {
    size_t n = 0, begin = 0;
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
    for (size_t i = 0; i < out->n; i++) {
        const size_t end = out->ends[i];
        /* A piece is a subject of its own: look-ahead stops at its end. */
        PCRE2_SPTR subject = out->classes + begin;
        const size_t length = end - begin;
        size_t at = 0;
        while (at < length) {
            int found = pcre2_match(code, subject, length, at, 0, match, context);
            if (found == PCRE2_ERROR_JIT_STACKLIMIT)
                found = pcre2_match(code, subject, length, at, PCRE2_NO_JIT, match, context);
            if (found == PCRE2_ERROR_NOMATCH) break;
            if (found == PCRE2_ERROR_NOMEMORY || found == PCRE2_ERROR_HEAPLIMIT) return nib_fail_memory(error, length);
            if (found < 0)
                return nib_fail(error, NIB_ERR_BUG, "PCRE2 error %d in a text of %zu characters", found, length);
            if (range[1] == range[0]) return nib_fail(error, NIB_ERR_BUG, "a pre-tokenizer's regex matched nothing");
            if (range[0] > at && !add_end(&out->spare, &n, &out->spare_capacity, begin + range[0]))
                return nib_fail_memory(error, n * sizeof *out->spare);
            if (!add_end(&out->spare, &n, &out->spare_capacity, begin + range[1]))
                return nib_fail_memory(error, n * sizeof *out->spare);
            at = range[1];
        }
        if (at < length && !add_end(&out->spare, &n, &out->spare_capacity, end))
            return nib_fail_memory(error, n * sizeof *out->spare);
        begin = end;
    }
    uint32_t *const ends = out->ends;
    const size_t capacity = out->ends_capacity;
    out->ends = out->spare;
    out->ends_capacity = out->spare_capacity;
    out->spare = ends;
    out->spare_capacity = capacity;
    out->n = n;
    return NIB_OK;
}

/* From counts of code points to bytes of out->text. */
static void ends_to_bytes(nib_pieces *out) {
    size_t at = 0;
    uint32_t code_points = 0;
    for (size_t i = 0; i < out->n; i++) {
        for (; code_points < out->ends[i]; code_points++) {
            const uint8_t lead = (uint8_t)out->text[at];
            at += lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        }
        out->ends[i] = (uint32_t)at;
    }
}

nib_status nib_pre_split(const nib_pre *pre, const char *text, size_t n_bytes, nib_pieces *out, nib_error *error) {
    nib_status status = NIB_OK;
    pcre2_match_data *match = NULL;
    pcre2_match_context *context = NULL;
    size_t n_code_points;
    out->n = 0;
    if (!read_text(text, n_bytes, out, &n_code_points)) return nib_fail_memory(error, n_bytes);
    if (n_code_points == 0) return NIB_OK;
    if (!add_end(&out->ends, &out->n, &out->ends_capacity, n_code_points))
        return nib_fail_memory(error, sizeof *out->ends);

    match = pcre2_match_data_create(1, NULL);
    context = pcre2_match_context_create(NULL);
    if (match == NULL || context == NULL) {
        status = nib_fail_memory(error, 256);
        goto fail;
    }
    /* These regexes go back over a run of white space a few times at most. */
    const size_t limit = 10000000 + 8 * n_code_points;
    pcre2_set_match_limit(context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    for (size_t i = 0; i < pre->n_codes; i++) NIB_TRY_GOTO(split(pre->codes[i], match, context, out, error));
    ends_to_bytes(out);
fail:
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    return status;
}

void nib_pieces_fini(nib_pieces *pieces) {
    free(pieces->text);
    free(pieces->ends);
    free(pieces->spare);
    free(pieces->classes);
    memset(pieces, 0, sizeof *pieces);
}
