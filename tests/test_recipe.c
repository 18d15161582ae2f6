/* Recipes: types and order of every recorded llama-quantize run, types of every recipe on six released models
 * (NIBBLE_SHARED); the rules, and overrides, on small files made here. Payloads: test_quantize.c. */
#include "unit.h"

#include "base/memory.h"
#include "quant/recipe.h"
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

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
    char key[160];
    bool refused;
    nib_choice_of_format *choices; /* of our own */
    uint64_t n, at;                /* tensors, and how many lines were compared */
} run;

static void end_run(run *current) {
    if (current->key[0] && !current->refused) assert_int_equal(current->at, current->n);
    free(current->choices);
    *current = (run){0};
}

/* "--token-embedding-type q8_0 --output-tensor-type q8_0" */
static nib_overrides *overrides_of(char *options) {
    nib_overrides *overrides = NULL;
    assert_int_equal(nib_overrides_new(&overrides, NULL), NIB_OK);
    for (char *word; strcmp(options, "-") != 0 && (word = strsep(&options, " "));) {
        const char *format = strsep(&options, " ");
        nib_status (*set)(nib_overrides *, const char *, nib_error *) =
            !strcmp(word, "--output-tensor-type") ? nib_overrides_set_output : nib_overrides_set_embedding;
        assert_non_null(format);
        assert_int_equal(set(overrides, format, NULL), NIB_OK);
        if (!options) break;
    }
    return overrides;
}

static bool any_lacks_importance(const run *current) {
    for (uint64_t i = 0; i < current->n; i++)
        if (current->choices[i].lacks_importance) return true;
    return false;
}

static void begin_run(run *current, char **column, const nib_gguf *gguf, const nib_imatrix *imatrix) {
    nib_error error = {0};
    snprintf(current->key, sizeof current->key, "%s %s %s", column[FTYPE], column[IMATRIX], column[OPTIONS]);
    current->refused = !strcmp(column[TENSOR], "REFUSED");
    current->n = nib_gguf_n_tensors(gguf);
    current->choices = calloc(current->n, sizeof *current->choices);
    assert_non_null(current->choices);
    nib_overrides *overrides = overrides_of(column[OPTIONS]);
    const nib_quantize_params params = {.recipe = nib_recipe_find(column[FTYPE], NULL),
                                        .pure = !strcmp(column[MODE], "pure"),
                                        .imatrix = strcmp(column[IMATRIX], "yes") ? NULL : imatrix,
                                        .overrides = overrides};
    if (!params.recipe) fail_msg("no recipe %s", column[FTYPE]);
    const nib_status status = nib_recipe_choose(&params, gguf, current->choices, &error);
    const bool refuses = status == NIB_ERR_UNSUPPORTED || any_lacks_importance(current);
    if ((status != NIB_OK && status != NIB_ERR_UNSUPPORTED) || refuses != current->refused)
        fail_msg("%s %s %s: status %d: %s", column[MODEL], current->key, column[MODE], status, error.message);
    if (status != NIB_OK) assert_true(error.field[0] && error.hint[0]);
    nib_overrides_free(overrides);
}

/* Returns the number of runs compared. */
static unsigned check_record(const char *shared, const char *model, const char *mode) {
    char path[1024];
    nib_gguf *gguf = NULL;
    nib_imatrix *imatrix = NULL;
    snprintf(path, sizeof path, "%s/fixtures/quant/%s.%s.tsv", shared, model, mode);
    char *text = read_text(path), *rest = text, *line;
    if (!text) return 0;
    snprintf(path, sizeof path, "%s/fixtures/gguf/%s.gguf", shared, model);
    assert_int_equal(nib_gguf_open(path, &gguf, NULL), NIB_OK);
    snprintf(path, sizeof path, "%s/fixtures/quant/%s.imatrix.gguf", shared, model);
    assert_int_equal(nib_imatrix_open(path, NULL, &imatrix, NULL), NIB_OK);
    unsigned n_runs = 0;
    run current = {0};
    (void)strsep(&rest, "\n"); /* the heading */
    while ((line = strsep(&rest, "\n")) && *line) {
        char *column[N_COLUMNS], key[sizeof current.key];
        for (unsigned i = 0; i < N_COLUMNS; i++) column[i] = strsep(&line, "\t");
        assert_non_null(column[DIGEST]);
        snprintf(key, sizeof key, "%s %s %s", column[FTYPE], column[IMATRIX], column[OPTIONS]);
        if (strcmp(key, current.key) != 0) {
            end_run(&current);
            begin_run(&current, column, gguf, imatrix);
            n_runs++;
        }
        if (current.refused) continue;
        assert_true(current.at < current.n);
        const nib_choice_of_format *choice = &current.choices[current.at++];
        const nib_format_facts *facts = nib_format_facts_of(choice->format);
        if (strcmp(choice->tensor->name, column[TENSOR]) != 0 || strcasecmp(facts->gguf_name, column[TYPE]) != 0)
            fail_msg("%s %s %s: %s %s instead of %s %s", model, mode, key, choice->tensor->name, facts->gguf_name,
                     column[TENSOR], column[TYPE]);
    }
    end_run(&current);
    nib_imatrix_free(imatrix);
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
        const unsigned n_mix = check_record(shared, models[i], "mix");
        const unsigned n_pure = check_record(shared, models[i], "pure");
        printf("%s: %u mixed and %u pure runs\n", models[i], n_mix, n_pure);
        if (i < 2 && n_mix) assert_true(n_mix >= 30 && n_pure >= 30);
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

static const nib_overrides *given; /* by expect_choice */

/* Chooses and expects "name=type name=type ..." in output order, * after a fallback, ? where importance is lacking;
 * "!" first: NIB_ERR_UNSUPPORTED. */
static void expect_choice(const nib_gguf *gguf, const char *recipe_name, bool pure, const char *expected) {
    const uint64_t n = nib_gguf_n_tensors(gguf);
    nib_choice_of_format *choices = calloc(n, sizeof *choices);
    nib_string seen = {0};
    nib_error error = {0};
    const nib_quantize_params params = {.recipe = nib_recipe_find(recipe_name, NULL), .pure = pure, .overrides = given};
    assert_true(params.recipe && choices);
    const nib_status status = nib_recipe_choose(&params, gguf, choices, &error);
    if (*expected == '!') {
        assert_int_equal(status, NIB_ERR_UNSUPPORTED);
        assert_non_null(strstr(error.field, expected + 1));
    } else {
        assert_int_equal(status, NIB_OK);
        for (uint64_t i = 0; i < n; i++) {
            const char *type = nib_format_facts_of(choices[i].format)->name;
            nib_string_addf(&seen, "%s%s=%s%s%s", i ? " " : "", choices[i].tensor->name, type,
                            choices[i].fallback[0] ? "*" : "", choices[i].lacks_importance ? "?" : "");
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
    expect_choice(gguf, "q2_k_s", false,
                  "output.weight=q6_k token_embd.weight=q2_k " REST
                  "blk.2.attn_q.weight=q4_0* blk.2.ffn_down.weight=q4_k "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=q2_k?");
    expect_choice(gguf, "iq2_s", false,
                  "output.weight=q5_k token_embd.weight=iq3_s " REST
                  "blk.2.attn_q.weight=iq4_nl* blk.2.ffn_down.weight=iq3_s "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=iq3_s");
    expect_choice(gguf, "iq1_s", true,
                  "output.weight=iq1_s? token_embd.weight=iq1_s? " REST
                  "blk.2.attn_q.weight=iq4_nl* blk.2.ffn_down.weight=iq1_s? "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=iq1_s?");
    expect_choice(gguf, "iq1_m", true,
                  "output.weight=iq1_m token_embd.weight=iq1_m " REST
                  "blk.2.attn_q.weight=iq4_nl* blk.2.ffn_down.weight=iq1_m? "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=iq1_m?");
    expect_choice(gguf, "tq2_0", false,
                  "output.weight=q6_k token_embd.weight=q4_k " REST "blk.2.attn_q.weight=q4_0* blk.2.ffn_down.weight="
                  "tq2_0 blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=tq2_0");
    expect_choice(gguf, "mxfp4", false,
                  "output.weight=q6_k token_embd.weight=mxfp4 " REST
                  "blk.2.attn_q.weight=mxfp4 blk.2.ffn_down.weight=mxfp4 "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=mxfp4");
    expect_choice(gguf, "nvfp4", true,
                  "output.weight=nvfp4 token_embd.weight=nvfp4 " REST
                  "blk.2.attn_q.weight=f16* blk.2.ffn_down.weight=nvfp4 "
                  "blk.2.ffn_gate_inp.weight=f32 blk.10.attn_v.weight=nvfp4");
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
    const nib_quantize_params params = {.recipe = nib_recipe_find("q4_k", NULL)};
    assert_int_equal(nib_recipe_choose(&params, gguf, choices, NULL), NIB_ERR_CORRUPT);
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
        const bool follows_q4_0 = facts->is_nibbles_own || !strcmp(nib_recipe_name(recipe), "mxfp4") ||
                                  !strcmp(nib_recipe_name(recipe), "nvfp4");
        assert_int_equal(nib_recipe_file_type(recipe) == UINT32_MAX, follows_q4_0);
    }
    const nib_format *format;
    for (unsigned i = 0; (format = nib_format_at(i)); i++) {
        const nib_format_facts *facts = nib_format_facts_of(format);
        if (facts->can_encode && facts->kind == NIB_CLASS_SCALED) assert_non_null(nib_recipe_find(facts->name, NULL));
    }
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

/* ---- Overrides ------------------------------------------------------------------------------------------------------- */

static void test_overrides(void **state) {
    (void)state;
    static const made_tensor tensors[] = {
        {"token_embd.weight", 256, 2},     {"output.weight", 256, 2},       {"blk.0.attn_norm.weight", 256, 0},
        {"blk.0.attn_v.weight", 256, 2},   {"blk.0.attn_q.weight", 288, 2}, {"blk.0.ffn_down.weight", 256, 2},
        {"blk.1.ffn_down.weight", 256, 2},
    };
    char path[] = "/tmp/nibble-test-recipe-XXXXXX";
    static const char rules[] = "# rules\n ffn_down=q5_1\tATTN_V=q8_0 role:attn_q=iq4_xs # more\nblk=q4_1";
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 2, 0, tensors, sizeof tensors / sizeof *tensors);
    nib_overrides *overrides;
    const int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, rules, sizeof rules - 1), sizeof rules - 1);
    close(file);
    assert_int_equal(nib_overrides_new(&overrides, NULL), NIB_OK);
    given = overrides;
    assert_int_equal(nib_overrides_add_role(overrides, "ffn_down=q3_k", NULL), NIB_OK);
    assert_int_equal(nib_overrides_add_role(overrides, "attn_q=q3_k", NULL), NIB_OK);
    assert_int_equal(nib_overrides_add_tensor(overrides, "BLK\\.1\\..*=Q6_K", NULL), NIB_OK);
    /* rules, then roles, then the recipe; norms are never touched; shapes still have to fit */
    expect_choice(gguf, "q4_k", false,
                  "output.weight=q6_k token_embd.weight=q4_k blk.0.attn_norm.weight=f32 blk.0.attn_q.weight=q4_0* "
                  "blk.0.attn_v.weight=q6_k blk.0.ffn_down.weight=q3_k blk.1.ffn_down.weight=q6_k");
    assert_int_equal(nib_overrides_add_file(overrides, path, NULL), NIB_OK);
    assert_int_equal(nib_overrides_set_embedding(overrides, "f16", NULL), NIB_OK);
    expect_choice(gguf, "q8_0", true,
                  "output.weight=q8_0 token_embd.weight=f16 blk.0.attn_norm.weight=f32 blk.0.attn_q.weight=q4_1 "
                  "blk.0.attn_v.weight=q8_0 blk.0.ffn_down.weight=q5_1 blk.1.ffn_down.weight=q6_k");
    assert_int_equal(nib_overrides_set_output(overrides, "q5_0", NULL), NIB_OK);
    expect_choice(gguf, "bf16", false,
                  "output.weight=q5_0 token_embd.weight=f16 blk.0.attn_norm.weight=f32 blk.0.attn_q.weight=q4_1 "
                  "blk.0.attn_v.weight=q8_0 blk.0.ffn_down.weight=q5_1 blk.1.ffn_down.weight=q6_k");
    given = NULL;
    nib_overrides_free(overrides);
    nib_gguf_close(gguf);
    nib_string_fini(&image);
    unlink(path);
}

/* An embedding that serves as output takes the output's format, unless it was given one of its own. */
static void test_override_of_tied(void **state) {
    (void)state;
    static const made_tensor tensors[] = {{"token_embd.weight", 256, 2}};
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 2, 0, tensors, 1);
    nib_overrides *overrides;
    assert_int_equal(nib_overrides_new(&overrides, NULL), NIB_OK);
    given = overrides;
    assert_int_equal(nib_overrides_set_output(overrides, "q5_0", NULL), NIB_OK);
    expect_choice(gguf, "q4_k", false, "token_embd.weight=q5_0");
    expect_choice(gguf, "q4_k", true, "token_embd.weight=q4_k");
    assert_int_equal(nib_overrides_set_embedding(overrides, "q4_1", NULL), NIB_OK);
    expect_choice(gguf, "q4_k", false, "token_embd.weight=q4_1");
    given = NULL;
    nib_overrides_free(overrides);
    nib_gguf_close(gguf);
    nib_string_fini(&image);
}

static void test_bad_overrides(void **state) {
    (void)state;
    static const char *const bad[] = {"", "=", "a=", "=q8_0", "a", "(a=q8_0", "a=q4_k_m", "a=no such format", "[=q8_0"};
    nib_overrides *overrides;
    nib_error error = {0};
    assert_int_equal(nib_overrides_new(&overrides, &error), NIB_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(nib_overrides_add_tensor(overrides, bad[i], &error), NIB_ERR_USAGE);
        assert_true(error.message[0] && error.hint[0]);
    }
    assert_int_equal(nib_overrides_add_role(overrides, "ffn_down", &error), NIB_ERR_USAGE);
    assert_int_equal(nib_overrides_set_output(overrides, "q9", &error), NIB_ERR_USAGE);
    assert_int_equal(nib_overrides_add_file(overrides, "/nowhere", &error), NIB_ERR_IO);
    assert_int_equal(nib_overrides_add_file(overrides, "tests/test_recipe.c", &error), NIB_ERR_CORRUPT);
    assert_string_equal(error.file, "tests/test_recipe.c");
    /* an expression that never ends is stopped */
    static const made_tensor tensors[] = {{"blk.0.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.weight", 256, 2}};
    nib_string image = {0};
    nib_gguf *gguf = make_model(&image, "llama", 2, 0, tensors, 1);
    nib_choice_of_format choice;
    const nib_quantize_params params = {.recipe = nib_recipe_find("q4_k", NULL), .overrides = overrides};
    assert_int_equal(nib_recipe_choose(&params, gguf, &choice, &error), NIB_OK);
    assert_int_equal(nib_overrides_add_tensor(overrides, "(a+)+(a+)+(a+)+[!?]=q8_0", &error), NIB_OK);
    assert_int_equal(nib_recipe_choose(&params, gguf, &choice, &error), NIB_ERR_USAGE);
    nib_gguf_close(gguf);
    nib_string_fini(&image);
    nib_overrides_free(overrides);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),         cmocka_unit_test(test_rules),
        cmocka_unit_test(test_odd_rows),      cmocka_unit_test(test_experts),
        cmocka_unit_test(test_70b),           cmocka_unit_test(test_recorded_runs),
        cmocka_unit_test(test_overrides),     cmocka_unit_test(test_override_of_tied),
        cmocka_unit_test(test_bad_overrides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
