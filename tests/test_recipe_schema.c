/* Recipes on released models: the type of every matrix for every recipe, against lists made with llama-quantize's own rules
 * and no importance matrix. Only names, row lengths and numbers of experts matter, so the models are stood in for by files
 * with the same tensors of two rows each. */
#include "unit.h"

#include "base/files.h"
#include "gguf_builder.h"
#include "nibble/quant.h"
#include <stdio.h>
#include <strings.h>

/* ---- Models ---------------------------------------------------------------------------------------------------------- */

/* What the head of a list does not say. */
typedef struct model {
    const char *file, *arch;
    uint64_t head_dim;
    bool tied;
    bool experts;        /* the feed-forward matrices are stacks of experts */
    unsigned full_every; /* every so many layers have attention, the others are linear; 1: all */
    uint64_t n_inner;    /* of the linear layers */
} model;

static const model models[] = {
    {"qwen3-0.6b", "qwen3", 128, false, false, 1, 0},
    {"qwen3-14b", "qwen3", 128, false, false, 1, 0},
    {"gemma-3-4b-it", "gemma3", 256, true, false, 1, 0},
    {"meta-llama-3.1-70b-instruct", "llama", 128, false, false, 1, 0},
    {"gpt-oss-120b", "gpt-oss", 64, false, true, 1, 0},
    {"qwen3.6-27b", "qwen35", 256, false, false, 4, 6144},
};

/* What the head of a list says. */
typedef struct sizes {
    unsigned n_embd, n_ff, n_vocab, n_layer, n_head, n_head_kv, n_expert;
} sizes;

enum columns { EMBD, HEADS, FF, INNER };
enum where { EVERY_LAYER, FULL_LAYER, LINEAR_LAYER };

static const struct matrix {
    const char *name;
    enum columns columns;
    enum where where;
} matrices[] = {
    {"attn_q", EMBD, FULL_LAYER},       {"attn_k", EMBD, FULL_LAYER},     {"attn_v", EMBD, FULL_LAYER},
    {"attn_output", HEADS, FULL_LAYER}, {"ffn_gate", EMBD, EVERY_LAYER},  {"ffn_up", EMBD, EVERY_LAYER},
    {"ffn_down", FF, EVERY_LAYER},      {"attn_qkv", EMBD, LINEAR_LAYER}, {"attn_gate", EMBD, LINEAR_LAYER},
    {"ssm_alpha", EMBD, LINEAR_LAYER},  {"ssm_beta", EMBD, LINEAR_LAYER}, {"ssm_out", INNER, LINEAR_LAYER},
};

enum { BF16 = 30, N_ROWS = 2 };

static void put_matrix(builder *b, const char *name, uint64_t n_columns, uint64_t n_matrices, uint64_t *offset) {
    put_tensor(b, name, 3, (uint64_t[]){n_columns, N_ROWS, n_matrices}, BF16, *offset);
    *offset += nib_round_up(2 * n_columns * N_ROWS * n_matrices, 32);
}

/* Puts the matrices, or only counts them if b is NULL. */
static uint64_t put_matrices(builder *b, const model *m, const sizes *s, uint64_t *offset) {
    uint64_t n = 1;
    if (b) put_matrix(b, "token_embd.weight", s->n_embd, 1, offset);
    n += !m->tied;
    if (b && !m->tied) put_matrix(b, "output.weight", s->n_embd, 1, offset);
    for (unsigned layer = 0; layer < s->n_layer; layer++) {
        const bool full = layer % m->full_every == m->full_every - 1;
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
            const struct matrix *matrix = &matrices[i];
            const uint64_t n_columns[] = {s->n_embd, s->n_head * m->head_dim, s->n_ff, m->n_inner};
            const bool experts = m->experts && strncmp(matrix->name, "ffn", 3) == 0;
            char name[64];
            if (matrix->where == (full ? LINEAR_LAYER : FULL_LAYER)) continue;
            snprintf(name, sizeof name, "blk.%u.%s%s.weight", layer, matrix->name, experts ? "_exps" : "");
            if (b) put_matrix(b, name, n_columns[matrix->columns], experts ? 2 : 1, offset);
            n++;
        }
    }
    return n;
}

static void put_number(builder *b, const model *m, const char *key, unsigned value) {
    char full[96];
    snprintf(full, sizeof full, "%s.%s", m->arch, key);
    put_kv_u32(b, full, value);
}

static nib_gguf *make_model(builder *b, const model *m, const sizes *s) {
    nib_gguf *gguf = NULL;
    nib_error error = {0};
    uint64_t offset = 0;
    begin_image(b, 3);
    put_kv_string(b, "general.architecture", m->arch);
    put_number(b, m, "block_count", s->n_layer);
    put_number(b, m, "attention.head_count", s->n_head);
    put_number(b, m, "attention.head_count_kv", s->n_head_kv);
    put_number(b, m, "expert_count", s->n_expert);
    (void)put_matrices(b, m, s, &offset);
    end_header(b, 32);
    char *zeros = nib_alloc((size_t)offset, 1);
    assert_non_null(zeros);
    put_bytes(b, zeros, (size_t)offset);
    free(zeros);
    if (nib_gguf_open_memory(b->text.data, b->text.n_bytes, m->file, &gguf, &error) != NIB_OK)
        fail_msg("%s: %s", m->file, error.message);
    assert_int_equal(nib_gguf_n_tensors(gguf), put_matrices(NULL, m, s, &offset));
    return gguf;
}

/* ---- Lists ------------------------------------------------------------------------------------------------------------- */

/* Compares one section: rest begins after its heading and ends after its last line. Every tensor has the default type but
 * for those that are listed, and these come in output order. */
static void check_section(const nib_gguf *gguf, const char *file, const char *recipe, const char *otherwise,
                          char **rest) {
    const uint64_t n = nib_gguf_n_tensors(gguf);
    nib_choice_of_format *choices = nib_alloc(n, sizeof *choices);
    nib_error error = {0};
    uint64_t at = 0;
    const nib_quantize_params params = {.recipe = nib_recipe_find(recipe, &error)};
    if (!params.recipe || !choices || nib_recipe_choose(&params, gguf, choices, &error) != NIB_OK)
        fail_msg("%s %s: %s", file, recipe, error.message);
    assert_string_equal(nib_format_facts_of(nib_recipe_format(params.recipe))->gguf_name, otherwise);
    for (;;) {
        char *line = **rest && **rest != '[' && **rest != '\n' ? strsep(rest, "\n") : NULL;
        const char *name = line ? strsep(&line, " ") : NULL;
        for (; at < n && (!name || strcmp(choices[at].tensor->name, name) != 0); at++) {
            const char *type = nib_format_facts_of(choices[at].format)->gguf_name;
            if (strcmp(type, otherwise) != 0)
                fail_msg("%s %s: %s is %s instead of %s", file, recipe, choices[at].tensor->name, type, otherwise);
        }
        if (!name) break;
        if (at == n) fail_msg("%s %s: no tensor %s", file, recipe, name);
        const char *type = nib_format_facts_of(choices[at].format)->gguf_name;
        if (strcmp(type, line) != 0) fail_msg("%s %s: %s is %s instead of %s", file, recipe, name, type, line);
        at++;
    }
    free(choices);
}

/* Returns the number of sections compared; 0 if the list is absent. */
static unsigned check_list(const char *shared, const model *m) {
    char path[1024], *text = NULL;
    size_t n_bytes;
    unsigned n_sections = 0;
    sizes s = {0};
    builder b;
    snprintf(path, sizeof path, "%s/data/quant_schema/%s.schema", shared, m->file);
    if (nib_read_file(path, &text, &n_bytes, NULL) != NIB_OK) return 0;
    char *rest = text;
    (void)strsep(&rest, "\n");
    const int n_sizes = sscanf(strsep(&rest, "\n"),
                               "# n_embd=%u, n_ff=%u, n_vocab=%u, n_layer=%u, n_head=%u, n_head_kv=%u, n_expert=%u",
                               &s.n_embd, &s.n_ff, &s.n_vocab, &s.n_layer, &s.n_head, &s.n_head_kv, &s.n_expert);
    assert_int_equal(n_sizes, m->experts ? 7 : 6);
    nib_gguf *gguf = make_model(&b, m, &s);
    while (rest && *rest) {
        char *line = strsep(&rest, "\n"), recipe[32], otherwise[32];
        if (!*line) continue;
        assert_int_equal(sscanf(line, "[%31[^]]] %31s", recipe, otherwise), 2);
        check_section(gguf, m->file, recipe, otherwise, &rest);
        n_sections++;
    }
    nib_gguf_close(gguf);
    free_image(&b);
    free(text);
    return n_sections;
}

static void test_released_models(void **state) {
    (void)state;
    const char *shared = getenv("NIBBLE_SHARED");
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const unsigned n = shared ? check_list(shared, &models[i]) : 0;
        if (!n) {
            print_message("skipped: NIBBLE_SHARED has no data/quant_schema/%s.schema\n", models[i].file);
            skip();
        }
        print_message("%s: %u recipes\n", models[i].file, n);
        assert_true(n >= 33);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_released_models)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
