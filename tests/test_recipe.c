/* Recipes: types and order of every recorded llama-quantize run that does not depend on an importance matrix, payloads of
 * those made without one (NIBBLE_SHARED); and the rules on small files made here. */
#include "base/sha256.h"
#include "unit.h"

#include "base/memory.h"
#include "quant/recipe.h"
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

/* ---- Recorded runs ------------------------------------------------------------------------------------------------ */

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    const size_t n = (size_t)ftell(file);
    rewind(file);
    char *text = malloc(n + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, n, file), n);
    text[n] = 0;
    fclose(file);
    return text;
}

/* Columns of a line of the record. */
enum { MODEL, FTYPE, MODE, IMATRIX, OPTIONS, TENSOR, NE, TYPE, N_BYTES, DIGEST, N_COLUMNS };

typedef struct run {
    const nib_recipe *recipe;
    char ftype[16], imatrix[4];
    bool pure, refused;
    nib_choice_of_format *choices; /* of our own */
    uint64_t n, at;                /* tensors, and how many lines were compared */
} run;

/* The payload as the choice says, encoded row by row; compared by digest. */
static void check_payload(const nib_choice_of_format *choice, uint64_t n_bytes, const char *digest) {
    const nib_tensor *tensor = choice->tensor;
    const uint64_t n_rows = tensor->n_elements / tensor->ne[0];
    const size_t row_bytes = nib_format_row_bytes(choice->format, tensor->ne[0]);
    const size_t from_bytes = nib_format_row_bytes(tensor->format, tensor->ne[0]);
    char seen[65];
    assert_int_equal(row_bytes * n_rows, n_bytes);
    uint8_t *payload = malloc(row_bytes * n_rows);
    float *row = malloc(tensor->ne[0] * sizeof *row);
    assert_true(payload && row);
    for (uint64_t r = 0; r < n_rows; r++) {
        if (choice->copied) {
            memcpy(payload + r * row_bytes, tensor->data + r * row_bytes, row_bytes);
            continue;
        }
        nib_format_decode(tensor->format, row, tensor->data + r * from_bytes, tensor->ne[0]);
        assert_int_equal(nib_format_encode(choice->format, payload + r * row_bytes, row, tensor->ne[0], NULL),
                         NIB_VERDICT_OK);
    }
    nib_sha256_of(payload, row_bytes * n_rows, seen);
    if (strcmp(seen, digest) != 0) fail_msg("%s: the payload differs", tensor->name);
    free(row);
    free(payload);
}

static void end_run(run *current) {
    if (current->recipe && !current->refused) assert_int_equal(current->at, current->n);
    free(current->choices);
    *current = (run){0};
}

/* Three mixes choose other types with an importance matrix; all others the same with and without. */
static bool depends_on_imatrix(const run *current) {
    return !strcmp(current->ftype, "Q4_0") || !strcmp(current->ftype, "Q5_0") || !strcmp(current->ftype, "Q2_K_S");
}

static void begin_run(run *current, char **column, const nib_gguf *gguf) {
    nib_error error = {0};
    snprintf(current->ftype, sizeof current->ftype, "%s", column[FTYPE]);
    snprintf(current->imatrix, sizeof current->imatrix, "%s", column[IMATRIX]);
    current->pure = !strcmp(column[MODE], "pure");
    current->refused = !strcmp(column[TENSOR], "REFUSED");
    current->recipe = nib_recipe_find(column[FTYPE], NULL);
    if (current->recipe && !strcmp(current->imatrix, "yes") && depends_on_imatrix(current)) current->recipe = NULL;
    if (!current->recipe) return;
    current->n = nib_gguf_n_tensors(gguf);
    current->choices = calloc(current->n, sizeof *current->choices);
    assert_non_null(current->choices);
    const nib_status status = nib_recipe_choose(current->recipe, current->pure, gguf, current->choices, &error);
    if (status != (current->refused ? NIB_ERR_UNSUPPORTED : NIB_OK))
        fail_msg("%s %s: status %d: %s", column[MODEL], column[FTYPE], status, error.message);
    if (current->refused) assert_true(error.field[0] && error.hint[0]);
}

/* Returns the number of runs compared. */
static unsigned check_record(const char *shared, const char *model, const char *mode, bool payloads) {
    char path[1024];
    nib_gguf *gguf = NULL;
    snprintf(path, sizeof path, "%s/fixtures/quant/%s.%s.tsv", shared, model, mode);
    char *text = read_text(path), *rest = text, *line;
    if (!text) return 0;
    snprintf(path, sizeof path, "%s/fixtures/gguf/%s.gguf", shared, model);
    assert_int_equal(nib_gguf_open(path, &gguf, NULL), NIB_OK);
    unsigned n_runs = 0;
    run current = {0};
    (void)strsep(&rest, "\n"); /* the heading */
    while ((line = strsep(&rest, "\n")) && *line) {
        char *column[N_COLUMNS];
        for (unsigned i = 0; i < N_COLUMNS; i++) column[i] = strsep(&line, "\t");
        assert_non_null(column[DIGEST]);
        if (strcmp(column[OPTIONS], "-") != 0) continue;
        if (strcmp(column[FTYPE], current.ftype) != 0 || strcmp(column[IMATRIX], current.imatrix) != 0) {
            end_run(&current);
            begin_run(&current, column, gguf);
            n_runs += current.recipe != NULL;
        }
        if (!current.recipe || current.refused) continue;
        assert_true(current.at < current.n);
        const nib_choice_of_format *choice = &current.choices[current.at++];
        const nib_format_facts *facts = nib_format_facts_of(choice->format);
        if (strcmp(choice->tensor->name, column[TENSOR]) != 0 || strcasecmp(facts->gguf_name, column[TYPE]) != 0)
            fail_msg("%s %s: %s %s instead of %s %s", model, column[FTYPE], choice->tensor->name, facts->gguf_name,
                     column[TENSOR], column[TYPE]);
        if (payloads && !strcmp(current.imatrix, "no"))
            check_payload(choice, strtoull(column[N_BYTES], NULL, 10), column[DIGEST]);
    }
    end_run(&current);
    nib_gguf_close(gguf);
    free(text);
    return n_runs;
}

static void test_recorded_runs(void **state) {
    (void)state;
    static const char *const models[] = {"qwen3-tied-256", "llama-256", "deepseek-v2", "gemma3",
                                         "gpt-oss",        "mixtral",   "phi-fused",   "qwen3_5",
                                         "qwen3_5_moe",    "qwen3moe",  "qwen3next"};
    const char *shared = getenv("NIBBLE_SHARED");
    unsigned n_runs = 0;
    for (size_t i = 0; shared && i < sizeof models / sizeof *models; i++) {
        const unsigned n_mix = check_record(shared, models[i], "mix", i < 2);
        const unsigned n_pure = check_record(shared, models[i], "pure", i < 2);
        printf("%s: %u mixed and %u pure runs\n", models[i], n_mix, n_pure);
        if (i < 2 && n_mix) assert_true(n_mix >= 14 && n_pure >= 14);
        n_runs += n_mix + n_pure;
    }
    if (!n_runs) {
        puts("skipped: NIBBLE_SHARED has no fixtures/quant");
        skip();
    }
    printf("%u runs compared\n", n_runs);
}

/* ---- Files made here ----------------------------------------------------------------------------------------------- */

static void add_u32(nib_string *s, uint32_t value) {
    nib_string_add(s, (const char *)&value, 4);
}
static void add_u64(nib_string *s, uint64_t value) {
    nib_string_add(s, (const char *)&value, 8);
}
static void add_text(nib_string *s, const char *text) {
    add_u64(s, strlen(text));
    nib_string_add(s, text, strlen(text));
}
static void add_key_u32(nib_string *s, const char *key, uint32_t value) {
    add_text(s, key);
    add_u32(s, NIB_GGUF_U32);
    add_u32(s, value);
}

typedef struct made_tensor {
    const char *name;
    uint64_t n_row, n_rows;
} made_tensor;

/* A model file of f32 zeros. Close gguf, then free image. */
static nib_gguf *make_model(nib_string *image, const char *arch, uint32_t n_layers, uint32_t n_experts,
                            const made_tensor *tensors, size_t n) {
    char key[96];
    nib_gguf *gguf = NULL;
    uint64_t offset = 0;
    nib_string_add(image, "GGUF", 4);
    add_u32(image, 3);
    add_u64(image, n);
    add_u64(image, 5);
    add_text(image, "general.architecture");
    add_u32(image, NIB_GGUF_STRING);
    add_text(image, arch);
    snprintf(key, sizeof key, "%s.block_count", arch);
    add_key_u32(image, key, n_layers);
    snprintf(key, sizeof key, "%s.expert_count", arch);
    add_key_u32(image, key, n_experts);
    snprintf(key, sizeof key, "%s.attention.head_count", arch);
    add_key_u32(image, key, 8);
    snprintf(key, sizeof key, "%s.attention.head_count_kv", arch);
    add_key_u32(image, key, 4);
    for (size_t i = 0; i < n; i++) {
        add_text(image, tensors[i].name);
        add_u32(image, tensors[i].n_rows ? 2 : 1);
        add_u64(image, tensors[i].n_row);
        if (tensors[i].n_rows) add_u64(image, tensors[i].n_rows);
        add_u32(image, 0);
        add_u64(image, offset);
        offset += nib_round_up(4 * tensors[i].n_row * (tensors[i].n_rows ? tensors[i].n_rows : 1), 32);
    }
    const size_t end = nib_round_up(image->n_bytes, 32) + offset;
    while (image->n_bytes < end)
        nib_string_add(image, "\0\0\0\0\0\0\0", end - image->n_bytes < 7 ? end - image->n_bytes : 7);
    nib_error error = {0};
    if (nib_gguf_open_memory(image->data, image->n_bytes, "made", &gguf, &error) != NIB_OK)
        fail_msg("%s", error.message);
    return gguf;
}

/* Chooses and expects "name=type name=type ..." in output order; "!" first: NIB_ERR_UNSUPPORTED. */
static void expect_choice(const nib_gguf *gguf, const char *recipe_name, bool pure, const char *expected) {
    const uint64_t n = nib_gguf_n_tensors(gguf);
    nib_choice_of_format *choices = calloc(n, sizeof *choices);
    nib_string seen = {0};
    nib_error error = {0};
    const nib_recipe *recipe = nib_recipe_find(recipe_name, NULL);
    assert_true(recipe && choices);
    const nib_status status = nib_recipe_choose(recipe, pure, gguf, choices, &error);
    if (*expected == '!') {
        assert_int_equal(status, NIB_ERR_UNSUPPORTED);
        assert_non_null(strstr(error.field, expected + 1));
    } else {
        assert_int_equal(status, NIB_OK);
        for (uint64_t i = 0; i < n; i++) {
            const char *type = nib_format_facts_of(choices[i].format)->name;
            nib_string_addf(&seen, "%s%s=%s%s", i ? " " : "", choices[i].tensor->name, type,
                            choices[i].fallback[0] ? "*" : "");
            assert_int_equal(choices[i].copied, choices[i].format == choices[i].tensor->format);
        }
        assert_string_equal(seen.data, expected);
    }
    nib_string_fini(&seen);
    free(choices);
}

static void test_rules(void **state) {
    (void)state;
    static const made_tensor tensors[] = {
        {"blk.10.attn_v.weight", 256, 2}, {"blk.2.ffn_down.weight", 512, 2},     {"blk.2.attn_norm.weight", 256, 0},
        {"output.weight", 256, 2},        {"blk.2.attn_q.weight", 288, 2},       {"token_embd.weight", 256, 2},
        {"blk.2.attn_q.bias", 256, 2},    {"blk.2.ffn_gate_inp.weight", 256, 2},
    };
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 11, 0, tensors, sizeof tensors / sizeof *tensors);
#define REST "blk.2.attn_norm.weight=f32 blk.2.attn_q.bias=f32 "
    expect_choice(gguf, "q4_k", false,
                  "output.weight=q6_k token_embd.weight=q4_k " REST
                  "blk.2.attn_q.weight=q5_0* blk.2.ffn_down.weight=q6_k "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=q6_k");
    expect_choice(gguf, "Q4_K_M", true,
                  "output.weight=q4_k token_embd.weight=q4_k " REST
                  "blk.2.attn_q.weight=q5_0* blk.2.ffn_down.weight=q4_k "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=q4_k");
    expect_choice(gguf, "q8a", false,
                  "output.weight=q8a token_embd.weight=q8a " REST "blk.2.attn_q.weight=q8a blk.2.ffn_down.weight=q8a "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=q8a");
    expect_choice(gguf, "q2s", false,
                  "output.weight=q6_k token_embd.weight=q2s " REST "blk.2.attn_q.weight=q2s blk.2.ffn_down.weight=q2s "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=q2s");
    expect_choice(gguf, "f16", false,
                  "output.weight=f16 token_embd.weight=f16 " REST "blk.2.attn_q.weight=f16 blk.2.ffn_down.weight=f16 "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=f16");
    expect_choice(gguf, "f32", false,
                  "output.weight=f32 token_embd.weight=f32 " REST "blk.2.attn_q.weight=f32 blk.2.ffn_down.weight=f32 "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=f32");
    expect_choice(gguf, "q2_k_s", false, "!blk.10.attn_v");
    nib_gguf_close(gguf);
    nib_string_fini(&image);
}

static void test_odd_rows(void **state) {
    (void)state;
    static const made_tensor tensors[] = {{"blk.0.ffn_up.weight", 40, 2}, {"output.weight", 40, 2}};
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 1, 0, tensors, 2);
    expect_choice(gguf, "q4_0", false, "!output.weight");
    expect_choice(gguf, "q8_0", true, "!output.weight");
    expect_choice(gguf, "q4_k", true, "output.weight=f16* blk.0.ffn_up.weight=f16*");
    expect_choice(gguf, "q2s", false, "output.weight=f16* blk.0.ffn_up.weight=f16*");
    nib_gguf_close(gguf);
    nib_string_fini(&image);
}

/* With 8 experts values and keys get q8_0; with any number of experts the layer comes from the name. */
static void test_experts(void **state) {
    (void)state;
    static const made_tensor tensors[] = {
        {"blk.0.attn_k.weight", 256, 2},         {"blk.0.attn_v.weight", 256, 2},
        {"blk.0.attn_output.weight", 256, 2},    {"blk.3.ffn_down_exps.weight", 256, 2},
        {"blk.15.ffn_down_exps.weight", 256, 2},
    };
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 16, 8, tensors, 5);
    expect_choice(gguf, "q4_k", false,
                  "blk.0.attn_k.weight=q8_0 blk.0.attn_output.weight=q5_k blk.0.attn_v.weight=q8_0 "
                  "blk.3.ffn_down_exps.weight=q4_k blk.15.ffn_down_exps.weight=q6_k");
    nib_gguf_close(gguf);
    nib_string_fini(&image);
    image = (nib_string){0};
    gguf = make_model(&image, "llama", 15, 8, tensors, 5);
    nib_choice_of_format choices[5];
    assert_int_equal(nib_recipe_choose(nib_recipe_find("q4_k", NULL), false, gguf, choices, NULL), NIB_ERR_CORRUPT);
    nib_gguf_close(gguf);
    nib_string_fini(&image);
}

/* Nibble's own formats where their block does not divide the row: a smaller one of the same kind, else f16. */
static void test_own_blocks(void **state) {
    (void)state;
    static const made_tensor tensors[] = {{"output.weight", 320, 2},
                                          {"token_embd.weight", 320, 2},
                                          {"blk.0.attn_k.weight", 256, 2},
                                          {"blk.0.attn_q.weight", 384, 2},
                                          {"blk.0.ffn_up.weight", 48, 2}};
    static const struct {
        const char *recipe, *expected;
    } cases[] = {
        {"q4a_256", "output.weight=q8_0* token_embd.weight=q4a_64* blk.0.attn_k.weight=q4a_256 "
                    "blk.0.attn_q.weight=q4a_128* blk.0.ffn_up.weight=f16*"},
        {"q8m_128", "output.weight=q8m_64* token_embd.weight=q8m_64* blk.0.attn_k.weight=q8m_128 "
                    "blk.0.attn_q.weight=q8m_128 blk.0.ffn_up.weight=f16*"},
        {"q3s", "output.weight=q8_0* token_embd.weight=q3s blk.0.attn_k.weight=q3s blk.0.attn_q.weight=q3s "
                "blk.0.ffn_up.weight=f16*"},
        {"f4_e2m1_256", "output.weight=q8_0* token_embd.weight=f4_e2m1_64* blk.0.attn_k.weight=f4_e2m1_256 "
                        "blk.0.attn_q.weight=f4_e2m1_128* blk.0.ffn_up.weight=f16*"},
        {"F8_E4M3", "output.weight=f8_e4m3 token_embd.weight=f8_e4m3 blk.0.attn_k.weight=f8_e4m3 "
                    "blk.0.attn_q.weight=f8_e4m3 blk.0.ffn_up.weight=f8_e4m3"},
    };
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 1, 0, tensors, 5);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_choice(gguf, cases[i].recipe, false, cases[i].expected);
    expect_choice(gguf, "q4a_256", true,
                  "output.weight=q4a_64* token_embd.weight=q4a_64* blk.0.attn_k.weight=q4a_256 "
                  "blk.0.attn_q.weight=q4a_128* blk.0.ffn_up.weight=f16*");
    nib_gguf_close(gguf);
    nib_string_fini(&image);
}

/* Value matrices of an 80-layer llama with fewer value heads get 5 bits. */
static void test_70b(void **state) {
    (void)state;
    static const made_tensor tensors[] = {{"blk.0.attn_k.weight", 256, 2}, {"blk.0.attn_v.weight", 256, 2}};
    static const char *const archs[] = {"llama", "qwen3"};
    for (unsigned i = 0; i < 2; i++) {
        nib_string image = {0};
        nib_gguf *gguf = make_model(&image, archs[i], 80, 0, tensors, 2);
        expect_choice(gguf, "q3_k_s", false,
                      i == 0 ? "blk.0.attn_k.weight=q3_k blk.0.attn_v.weight=q5_k"
                             : "blk.0.attn_k.weight=q3_k blk.0.attn_v.weight=q3_k");
        nib_gguf_close(gguf);
        nib_string_fini(&image);
    }
}

static void test_names(void **state) {
    (void)state;
    nib_error error = {0};
    unsigned n = 0;
    for (const nib_recipe *recipe; (recipe = nib_recipe_at(n)); n++) {
        const nib_format_facts *facts = nib_format_facts_of(nib_recipe_format(recipe));
        assert_ptr_equal(nib_recipe_find(nib_recipe_name(recipe), NULL), recipe);
        assert_true(facts->can_encode && facts->can_decode);
        assert_int_equal(nib_recipe_file_type(recipe) == UINT32_MAX, facts->is_nibbles_own);
    }
    assert_int_equal(n, 21 + 84 + 25); /* llama-quantize's, the grid family, the plain floats */
    assert_int_equal(nib_recipe_file_type(nib_recipe_find("q4_k_m", NULL)), 15);
    assert_int_equal(nib_recipe_file_type(nib_recipe_find("Q4_K", NULL)), 15);
    assert_null(nib_recipe_find("q4_l", &error));
    assert_int_equal(error.code, NIB_ERR_USAGE);
    assert_non_null(strstr(error.hint, "q4_"));
    assert_null(nib_recipe_find("q44_k_m", &error));
    assert_non_null(strstr(error.hint, "q4_k_m"));
    assert_null(nib_recipe_find("a name that is far longer than any recipe's and near to none of them", &error));
    assert_null(nib_recipe_find("", &error));
    assert_null(nib_recipe_find(NULL, &error));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),         cmocka_unit_test(test_rules), cmocka_unit_test(test_odd_rows),
        cmocka_unit_test(test_experts),       cmocka_unit_test(test_70b),   cmocka_unit_test(test_own_blocks),
        cmocka_unit_test(test_recorded_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
