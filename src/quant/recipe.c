/* Recipes: which tensor of a model gets which format. The rules and their order are llama-quantize's (llama.cpp commit
 * d32676d), so that a file made here has the same types, tensor by tensor; they stand below as data.
 *
 *   1. Only matrices whose name ends in "weight" are touched, and not the few named in untouched[].
 *   2. Tensors are visited in output order: by layer, then by name; names outside layers first.
 *   3. What the user says of a tensor (overrides.c) counts before the recipe.
 *   4. A tensor's part (part_names[]) and the conditions that hold for it select the first fitting row of mixes[].
 *   5. A row length that the format's block does not divide takes another format (shapes[]), or none.
 *
 * Conditions depend on how many tensors of a part came before, so the visit runs in order and keeps counters. */
#include "quant/recipe.h"

#include "base/error.h"
#include "quant/overrides.h"
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- The recipes ------------------------------------------------------------------------------------------------- */

typedef enum mix {
    MIX_FLOAT, /* every touched tensor in one float format */
    MIX_PLAIN, /* no rows of its own in mixes[] */
    MIX_OWN,   /* formats llama-quantize has no recipe for */
    MIX_Q2_K,
    MIX_Q2_K_S,
    MIX_Q3_K_S,
    MIX_Q3_K_M,
    MIX_Q3_K_L,
    MIX_Q4_0,
    MIX_Q4_K_S,
    MIX_Q4_K_M,
    MIX_Q5_0,
    MIX_Q5_K_M,
    MIX_IQ1,   /* iq1_s, iq1_m */
    MIX_IQ2_X, /* iq2_xxs, iq2_xs */
    MIX_IQ2_S, /* iq2_s, iq2_m */
    MIX_IQ3_XXS,
    MIX_IQ3_XS,
    MIX_IQ3_S,
    MIX_IQ3_M,
    MIX_IQ4,     /* iq4_nl, iq4_xs */
    MIX_TERNARY, /* tq1_0, tq2_0, q2_0 */
    MIX_MXFP4_MOE,
} mix;

struct nib_recipe {
    const char *name, *format;
    uint32_t file_type; /* of llama.cpp */
    mix mix;
};

static const nib_recipe recipes[] = {
    {"f32", "f32", 0, MIX_FLOAT},        {"f16", "f16", 1, MIX_FLOAT},
    {"bf16", "bf16", 32, MIX_FLOAT},     {"q8_0", "q8_0", 7, MIX_PLAIN},
    {"q6_k", "q6_k", 18, MIX_PLAIN},     {"q5_1", "q5_1", 9, MIX_PLAIN},
    {"q5_k", "q5_k", 17, MIX_Q5_K_M},    {"q5_k_m", "q5_k", 17, MIX_Q5_K_M},
    {"q5_k_s", "q5_k", 16, MIX_PLAIN},   {"q5_0", "q5_0", 8, MIX_Q5_0},
    {"q4_1", "q4_1", 3, MIX_PLAIN},      {"q4_k", "q4_k", 15, MIX_Q4_K_M},
    {"q4_k_m", "q4_k", 15, MIX_Q4_K_M},  {"q4_k_s", "q4_k", 14, MIX_Q4_K_S},
    {"q4_0", "q4_0", 2, MIX_Q4_0},       {"iq4_nl", "iq4_nl", 25, MIX_IQ4},
    {"iq4_xs", "iq4_xs", 30, MIX_IQ4},   {"mxfp4_moe", "mxfp4", 38, MIX_MXFP4_MOE},
    {"q3_k_l", "q3_k", 13, MIX_Q3_K_L},  {"q3_k", "q3_k", 12, MIX_Q3_K_M},
    {"q3_k_m", "q3_k", 12, MIX_Q3_K_M},  {"iq3_m", "iq3_s", 27, MIX_IQ3_M},
    {"iq3_s", "iq3_s", 26, MIX_IQ3_S},   {"q3_k_s", "q3_k", 11, MIX_Q3_K_S},
    {"iq3_xs", "iq3_s", 22, MIX_IQ3_XS}, {"iq3_xxs", "iq3_xxs", 23, MIX_IQ3_XXS},
    {"q2_k", "q2_k", 10, MIX_Q2_K},      {"q2_k_s", "q2_k", 21, MIX_Q2_K_S},
    {"iq2_m", "iq2_s", 29, MIX_IQ2_S},   {"iq2_s", "iq2_xs", 28, MIX_IQ2_S},
    {"iq2_xs", "iq2_xs", 20, MIX_IQ2_X}, {"q2_0", "q2_0", 41, MIX_TERNARY},
    {"tq2_0", "tq2_0", 37, MIX_TERNARY}, {"iq2_xxs", "iq2_xxs", 19, MIX_IQ2_X},
    {"iq1_m", "iq1_m", 31, MIX_IQ1},     {"tq1_0", "tq1_0", 36, MIX_TERNARY},
    {"iq1_s", "iq1_s", 24, MIX_IQ1},     {"q1_0", "q1_0", 40, MIX_PLAIN},
};
enum { N_RECIPES = sizeof recipes / sizeof *recipes, LONGEST_NAME = 31, MOST_OWN = 256 };

/* One for each format without a recipe of llama-quantize's, in the order of formats. */
static nib_recipe own_recipes[MOST_OWN];
static unsigned n_own_recipes;
static pthread_once_t own_recipes_once = PTHREAD_ONCE_INIT;

static void make_own_recipes(void) {
    const nib_format *format;
    for (unsigned i = 0; (format = nib_format_at(i)) && n_own_recipes < MOST_OWN; i++) {
        const nib_format_facts *facts = nib_format_facts_of(format);
        if (!facts->is_nibbles_own && strcmp(facts->name, "mxfp4") != 0 && strcmp(facts->name, "nvfp4") != 0) continue;
        own_recipes[n_own_recipes++] = (nib_recipe){facts->name, facts->name, UINT32_MAX, MIX_OWN};
    }
}

/* Levenshtein's distance, case ignored; both names at most LONGEST_NAME bytes. */
static unsigned distance_between(const char *a, const char *b) {
    unsigned row[LONGEST_NAME + 1];
    const size_t n = strlen(b);
    for (unsigned j = 0; j <= n; j++) row[j] = j;
    for (unsigned i = 1; *a; i++, a++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= n; j++) {
            const unsigned change = diagonal + (strncasecmp(a, b + j - 1, 1) != 0);
            diagonal = row[j];
            const unsigned gap = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = change < gap ? change : gap;
        }
    }
    return row[n];
}

const nib_recipe *nib_recipe_at(unsigned index) {
    if (index < N_RECIPES) return &recipes[index];
    (void)pthread_once(&own_recipes_once, make_own_recipes);
    return index - N_RECIPES < n_own_recipes ? &own_recipes[index - N_RECIPES] : NULL;
}

const nib_recipe *nib_recipe_find(const char *name, nib_error *error) {
    const nib_recipe *nearest = &recipes[0];
    unsigned shortest = UINT_MAX;
    const nib_recipe *recipe;
    for (unsigned i = 0; name && (recipe = nib_recipe_at(i)); i++) {
        if (!strcasecmp(name, recipe->name)) return recipe;
        const bool too_long = strlen(name) > LONGEST_NAME || strlen(recipe->name) > LONGEST_NAME;
        const unsigned distance = too_long ? UINT_MAX : distance_between(name, recipe->name);
        if (distance < shortest) {
            shortest = distance;
            nearest = recipe;
        }
    }
    nib_fail(error, NIB_ERR_USAGE, "there is no quantization named \"%s\"", name ? name : "");
    if (shortest <= 3)
        nib_hint(error, NIB_ERR_USAGE, "did you mean %s? `nibble formats` lists all", nearest->name);
    else
        nib_hint(error, NIB_ERR_USAGE, "`nibble formats` lists all; q4_k is the usual choice");
    return NULL;
}

const char *nib_recipe_name(const nib_recipe *recipe) {
    return recipe->name;
}

const nib_format *nib_recipe_format(const nib_recipe *recipe) {
    return nib_format_find(recipe->format);
}

uint32_t nib_recipe_file_type(const nib_recipe *recipe) {
    return recipe->file_type;
}

/* ---- Parts of a model -------------------------------------------------------------------------------------------- */

typedef enum part {
    PART_OUTPUT,
    PART_EMBEDDING,
    PART_V, /* attention values, also fused with queries and keys or compressed */
    PART_K,
    PART_Q,
    PART_O,
    PART_UP,
    PART_GATE,
    PART_DOWN,
    PART_OTHER,
} part;

/* The first row whose text is the name (exact) or occurs in it. */
static const struct part_name {
    const char *text;
    bool exact;
    part part;
} part_names[] = {
    {"output.weight", true, PART_OUTPUT},
    {"token_embd.weight", true, PART_EMBEDDING},
    {"per_layer_token_embd.weight", true, PART_EMBEDDING},
    {"attn_qkv.weight", false, PART_V},
    {"attn_kv_b.weight", false, PART_V},
    {"attn_v.weight", false, PART_V},
    {"attn_k.weight", false, PART_K},
    {"attn_q.weight", false, PART_Q},
    {"attn_output.weight", false, PART_O},
    {"ffn_up", false, PART_UP},
    {"ffn_gate", false, PART_GATE},
    {"ffn_down", false, PART_DOWN},
};

static part part_of(const char *name) {
    for (size_t i = 0; i < sizeof part_names / sizeof *part_names; i++) {
        const struct part_name *row = &part_names[i];
        if (row->exact ? !strcmp(name, row->text) : strstr(name, row->text) != NULL) return row->part;
    }
    return PART_OTHER;
}

/* Names that contain one of these are copied: small, or more sensitive than their size is worth. */
static const char *const untouched[] = {
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    ".position_embd",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    "a.rvq.codebook",
    "mm.a.code_embd",
};

static bool is_touched(const nib_tensor *tensor) {
    static const char suffix[] = "weight";
    const size_t n = strlen(tensor->name), n_suffix = sizeof suffix - 1;
    if (tensor->ne[1] <= 1 && tensor->ne[2] <= 1 && tensor->ne[3] <= 1) return false;
    if (n < n_suffix || strcmp(tensor->name + n - n_suffix, suffix) != 0) return false;
    if (!strcmp(tensor->name, "position_embd.weight") || !strcmp(tensor->name, "token_types.weight")) return false;
    for (size_t i = 0; i < sizeof untouched / sizeof *untouched; i++) {
        if (strstr(tensor->name, untouched[i])) return false;
    }
    return true;
}

/* The layer in "blk.<layer>.": -1 if the name has none. */
static int layer_of(const char *name) {
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9') return -1;
    const long layer = strtol(name + 4, NULL, 10);
    return layer < INT_MAX ? (int)layer : INT_MAX;
}

static int compare_tensors(const void *a, const void *b) {
    const char *left = ((const nib_choice_of_format *)a)->tensor->name;
    const char *right = ((const nib_choice_of_format *)b)->tensor->name;
    const int left_layer = layer_of(left), right_layer = layer_of(right);
    if (left_layer != right_layer) return left_layer < right_layer ? -1 : 1;
    return strcmp(left, right);
}

/* ---- Mixes ------------------------------------------------------------------------------------------------------- */

/* Conditions. i: index of the tensor among its part, n: their number (values) or the number of layers (feed-forward). */
enum {
    GQA_4 = 1,         /* at least 4 query heads share a key and value head */
    FIRST_2 = 2,       /* i < 2 */
    FIRST_4 = 4,       /* i < 4 */
    SIXTEENTH = 8,     /* i < n / 16 */
    EIGHTH = 16,       /* i < n / 8 */
    MIDDLE = 32,       /* n / 8 <= i < 7 n / 8 */
    MORE = 64,         /* i < n / 8, i >= 7 n / 8, or every third between */
    EXPERTS_4 = 128,   /* at least 4 experts */
    EXPERTS_8 = 256,   /* exactly 8 experts */
    EXPERTS_X = 512,   /* any other number, none too */
    FALCON = 1024,     /* the falcon architecture */
    OTHERS = 2048,     /* any other architecture */
    IMPORTANCE = 4096, /* with an importance matrix */
    UNWEIGHED = 8192,  /* without one */
};

static const struct mix_row {
    mix mix;
    part part;
    unsigned needs; /* all of them */
    const char *format;
} mixes[] = {
    {MIX_Q2_K, PART_V, GQA_4, "q4_k"},
    {MIX_Q2_K, PART_V, 0, "q3_k"},
    {MIX_Q2_K, PART_DOWN, 0, "q3_k"},
    {MIX_Q2_K, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_Q2_K, PART_O, OTHERS, "q3_k"},
    {MIX_Q2_K_S, PART_V, GQA_4, "q4_k"},
    {MIX_Q2_K_S, PART_DOWN, EIGHTH, "q4_k"},
    {MIX_Q3_K_S, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_Q3_K_M, PART_V, FIRST_2, "q5_k"},
    {MIX_Q3_K_M, PART_V, 0, "q4_k"},
    {MIX_Q3_K_M, PART_DOWN, SIXTEENTH, "q5_k"},
    {MIX_Q3_K_M, PART_DOWN, OTHERS, "q4_k"},
    {MIX_Q3_K_M, PART_DOWN, MORE, "q4_k"},
    {MIX_Q3_K_M, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_Q3_K_M, PART_O, OTHERS, "q4_k"},
    {MIX_Q3_K_L, PART_V, 0, "q5_k"},
    {MIX_Q3_K_L, PART_DOWN, FALCON, "q4_k"},
    {MIX_Q3_K_L, PART_DOWN, 0, "q5_k"},
    {MIX_Q3_K_L, PART_O, FALCON, "q4_k"},
    {MIX_Q3_K_L, PART_O, EXPERTS_X, "q5_k"},
    {MIX_Q4_0, PART_DOWN, IMPORTANCE | EIGHTH, "q4_1"},
    {MIX_Q4_K_S, PART_V, FIRST_4, "q5_k"},
    {MIX_Q4_K_S, PART_DOWN, OTHERS | EIGHTH, "q5_k"},
    {MIX_Q4_K_S, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_Q4_K_M, PART_V, MORE, "q6_k"},
    {MIX_Q4_K_M, PART_DOWN, FALCON | SIXTEENTH, "q6_k"},
    {MIX_Q4_K_M, PART_DOWN, FALCON | MORE, "q5_k"},
    {MIX_Q4_K_M, PART_DOWN, OTHERS | MORE, "q6_k"},
    {MIX_Q4_K_M, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_Q5_0, PART_DOWN, IMPORTANCE | EIGHTH, "q5_1"},
    {MIX_Q5_K_M, PART_V, MORE, "q6_k"},
    {MIX_Q5_K_M, PART_DOWN, MORE, "q6_k"},

    {MIX_IQ1, PART_OUTPUT, 0, "q5_k"},
    {MIX_IQ1, PART_EMBEDDING, 0, "q2_k"},
    {MIX_IQ1, PART_V, GQA_4, "q4_k"},
    {MIX_IQ1, PART_V, EXPERTS_4, "q4_k"},
    {MIX_IQ1, PART_V, 0, "q2_k"},
    {MIX_IQ1, PART_K, EXPERTS_8, "q4_k"},
    {MIX_IQ1, PART_DOWN, EIGHTH, "q2_k"},
    {MIX_IQ1, PART_O, EXPERTS_8, "q5_k"},
    {MIX_IQ1, PART_O, 0, "iq2_xxs"},
    {MIX_IQ2_X, PART_OUTPUT, 0, "q5_k"},
    {MIX_IQ2_X, PART_EMBEDDING, 0, "q2_k"},
    {MIX_IQ2_X, PART_V, GQA_4, "q4_k"},
    {MIX_IQ2_X, PART_V, EXPERTS_4, "q4_k"},
    {MIX_IQ2_X, PART_V, 0, "q2_k"},
    {MIX_IQ2_X, PART_K, EXPERTS_8, "q4_k"},
    {MIX_IQ2_X, PART_DOWN, EIGHTH, "q2_k"},
    {MIX_IQ2_X, PART_O, EXPERTS_8, "q5_k"},
    {MIX_IQ2_S, PART_OUTPUT, 0, "q5_k"},
    {MIX_IQ2_S, PART_EMBEDDING, 0, "iq3_s"},
    {MIX_IQ2_S, PART_V, GQA_4, "q4_k"},
    {MIX_IQ2_S, PART_V, EXPERTS_4, "q4_k"},
    {MIX_IQ2_S, PART_V, 0, "iq3_s"},
    {MIX_IQ2_S, PART_K, EXPERTS_8, "q4_k"},
    {MIX_IQ2_S, PART_DOWN, EIGHTH, "iq3_s"},
    {MIX_IQ2_S, PART_O, EXPERTS_8, "q5_k"},
    {MIX_IQ2_S, PART_O, 0, "iq3_s"},

    {MIX_IQ3_XXS, PART_OUTPUT, 0, "q5_k"},
    {MIX_IQ3_XXS, PART_EMBEDDING, 0, "iq3_s"},
    {MIX_IQ3_XXS, PART_V, GQA_4, "q4_k"},
    {MIX_IQ3_XXS, PART_V, UNWEIGHED, "iq3_s"},
    {MIX_IQ3_XXS, PART_K, 0, "iq2_s"},
    {MIX_IQ3_XXS, PART_Q, 0, "iq2_s"},
    {MIX_IQ3_XXS, PART_DOWN, UNWEIGHED | EIGHTH, "q4_k"},
    {MIX_IQ3_XXS, PART_DOWN, UNWEIGHED, "q3_k"},
    {MIX_IQ3_XXS, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_IQ3_XXS, PART_O, OTHERS, "iq3_s"},
    {MIX_IQ3_XS, PART_V, GQA_4, "q4_k"},
    {MIX_IQ3_XS, PART_K, 0, "iq3_xxs"},
    {MIX_IQ3_XS, PART_Q, 0, "iq3_xxs"},
    {MIX_IQ3_XS, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_IQ3_XS, PART_GATE, MIDDLE, "iq3_xxs"},
    {MIX_IQ3_XS, PART_UP, MIDDLE, "iq3_xxs"},
    {MIX_IQ3_S, PART_V, GQA_4, "q4_k"},
    {MIX_IQ3_S, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_IQ3_M, PART_V, 0, "q4_k"},
    {MIX_IQ3_M, PART_DOWN, EIGHTH, "q4_k"},
    {MIX_IQ3_M, PART_DOWN, EXPERTS_8 | MORE, "q4_k"},
    {MIX_IQ3_M, PART_O, OTHERS | EXPERTS_8, "q5_k"},
    {MIX_IQ3_M, PART_O, OTHERS, "q4_k"},
    {MIX_IQ4, PART_V, GQA_4, "q5_k"},
    {MIX_IQ4, PART_DOWN, UNWEIGHED | EIGHTH, "q5_k"},
    {MIX_IQ4, PART_O, OTHERS | EXPERTS_8, "q5_k"},

    {MIX_TERNARY, PART_EMBEDDING, 0, "q4_k"},
};

/* Row lengths a block does not divide. */
static const struct shape_row {
    const char *wanted, *instead;
} shapes[] = {
    {"q2_k", "q4_0"},    {"q3_k", "q4_0"},      {"q4_k", "q5_0"},      {"q5_k", "q5_1"},
    {"q6_k", "q8_0"},    {"q2_0", "q4_0"},      {"tq1_0", "q4_0"},     {"tq2_0", "q4_0"},
    {"iq1_s", "iq4_nl"}, {"iq1_m", "iq4_nl"},   {"iq2_xxs", "iq4_nl"}, {"iq2_xs", "iq4_nl"},
    {"iq2_s", "iq4_nl"}, {"iq3_xxs", "iq4_nl"}, {"iq3_s", "iq4_nl"},   {"iq4_xs", "iq4_nl"},
};

/* Formats whose codes are chosen by what matters: without importance a model is garbage. */
static const char *const needy[] = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"};
/* Of these, the ones that cannot even be encoded without. */
static const char *const neediest[] = {"iq1_s", "iq2_xxs", "iq2_xs"};

/* What the rules ask about the model, and how far the visit has come. */
typedef struct visit {
    const nib_quantize_params *params;
    const nib_recipe *recipe;
    const nib_format *format; /* the recipe's */
    bool tied;                /* no output matrix, the embedding takes its place */
    bool falcon, is_70b;
    uint64_t n_experts, gqa;
    int n_layers, n_v, i_v, i_down, i_gate, i_up;
} visit;

static uint64_t number_of(const nib_gguf *gguf, nib_text arch, const char *key, uint64_t otherwise) {
    char full[192];
    const int n_arch = arch.n_bytes < 64 ? (int)arch.n_bytes : 64;
    snprintf(full, sizeof full, "%.*s.%s", n_arch, arch.data, key);
    const nib_gguf_kv *kv = nib_gguf_find(gguf, full);
    uint64_t value;
    return kv && nib_gguf_kv_u64(kv, 0, &value) ? value : otherwise;
}

/* The models that llama.cpp calls "70B": few value heads, which therefore get more bits. */
static bool is_70b(nib_text arch, uint64_t n_layers, uint64_t n_heads, uint64_t n_heads_kv, uint64_t n_experts) {
    static const struct {
        const char *arch;
        uint64_t n_layers;
    } models[] = {{"llama", 80}, {"deci", 80}, {"olmo", 80}, {"qwen2", 80}, {"jais2", 68}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (arch.n_bytes != strlen(models[i].arch) || memcmp(arch.data, models[i].arch, arch.n_bytes) != 0) continue;
        if (n_layers != models[i].n_layers) return false;
        return i != 0 || (n_heads != n_heads_kv && n_experts != 8);
    }
    return false;
}

static void begin_visit(visit *v, const nib_quantize_params *params, const nib_gguf *gguf) {
    nib_text arch = {.data = "", .n_bytes = 0};
    (void)nib_gguf_get_text(gguf, "general.architecture", &arch);
    const uint64_t n_layers = number_of(gguf, arch, "block_count", 0);
    const uint64_t n_heads = number_of(gguf, arch, "attention.head_count", 0);
    const uint64_t n_heads_kv = number_of(gguf, arch, "attention.head_count_kv", n_heads);
    *v = (visit){.params = params, .recipe = params->recipe, .format = nib_recipe_format(params->recipe), .tied = true};
    v->n_experts = number_of(gguf, arch, "expert_count", 0);
    v->gqa = n_heads_kv ? n_heads / n_heads_kv : 0;
    v->n_layers = n_layers < INT_MAX / 8 ? (int)n_layers : INT_MAX / 8;
    v->falcon = arch.n_bytes == 6 && !memcmp(arch.data, "falcon", 6);
    v->is_70b = is_70b(arch, n_layers, n_heads, n_heads_kv, v->n_experts);
    for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
        const part its_part = part_of(nib_gguf_tensor_at(gguf, i)->name);
        v->n_v += its_part == PART_V;
        if (its_part == PART_OUTPUT) v->tied = false;
    }
}

/* The conditions that hold for the i-th of n tensors. */
static unsigned conditions_of(const visit *v, int i, int n) {
    unsigned have = v->falcon ? FALCON : OTHERS;
    have |= v->params->imatrix ? IMPORTANCE : UNWEIGHED;
    have |= v->n_experts == 8 ? EXPERTS_8 : EXPERTS_X;
    if (v->n_experts >= 4) have |= EXPERTS_4;
    if (v->gqa >= 4) have |= GQA_4;
    if (i < 2) have |= FIRST_2;
    if (i < 4) have |= FIRST_4;
    if (i < n / 16) have |= SIXTEENTH;
    if (i < n / 8) have |= EIGHTH;
    if (i >= n / 8 && i < 7 * n / 8) have |= MIDDLE;
    if (i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2) have |= MORE;
    return have;
}

/* The mix's format for the i-th of n tensors of a part. */
static const nib_format *look_up(const visit *v, part its_part, int i, int n, const nib_format *otherwise) {
    const unsigned have = conditions_of(v, i, n);
    for (size_t row = 0; row < sizeof mixes / sizeof *mixes; row++) {
        if (mixes[row].mix != v->recipe->mix || mixes[row].part != its_part) continue;
        if ((mixes[row].needs & ~have) == 0) return nib_format_find(mixes[row].format);
    }
    return otherwise;
}

/* The output matrix, or the embedding that serves as one. */
static const nib_format *choose_output(const visit *v, const nib_tensor *tensor) {
    const nib_format_facts *facts = nib_format_facts_of(v->format);
    const bool divides = tensor->ne[0] % facts->block == 0;
    const nib_format *wanted = nib_overrides_output(v->params->overrides);
    if (wanted) return wanted;
    if (v->recipe->mix == MIX_OWN && (!divides || nib_format_bpw(v->format) >= 8)) return v->format;
    if (v->recipe->mix == MIX_MXFP4_MOE || v->falcon || !divides || !strcmp(facts->name, "q8_0"))
        return nib_format_find("q8_0");
    return look_up(v, PART_OUTPUT, 0, 1, nib_format_find("q6_k"));
}

/* Values cost little and matter much where few heads share them out. */
static const nib_format *choose_values(visit *v) {
    const nib_format *format = look_up(v, PART_V, v->i_v, v->n_v, v->format);
    v->i_v++;
    if (v->is_70b && (format == nib_format_find("q3_k") || format == nib_format_find("q4_k")))
        format = nib_format_find("q5_k");
    return v->n_experts == 8 ? nib_format_find("q8_0") : format;
}

/* A feed-forward matrix. *counter: how many of its part came before; with experts the layer is in the name instead.
 * NULL: it is not. */
static const nib_format *choose_feed_forward(visit *v, const nib_tensor *tensor, part its_part, int *counter) {
    const int i = v->n_experts > 1 ? layer_of(tensor->name) : *counter;
    if (v->n_experts > 1 && (i < 0 || i >= v->n_layers)) return NULL;
    ++*counter;
    return look_up(v, its_part, i, v->n_layers, v->format);
}

/* The mixes for about 2 bits and less have rules of their own: no more than 4 bits for keys and values, and the layer is
 * counted whether there are experts or not. */
static const nib_format *choose_small(visit *v, part its_part) {
    const int i = its_part == PART_V ? v->i_v++ : its_part == PART_DOWN ? v->i_down++ : 0;
    return look_up(v, its_part, i, its_part == PART_V ? v->n_v : v->n_layers, v->format);
}

/* The format the mix gives a touched tensor, whatever its shape. NULL: its layer cannot be told. */
static const nib_format *choose_mixed(visit *v, const nib_tensor *tensor) {
    const part its_part = part_of(tensor->name);
    const mix its_mix = v->recipe->mix;
    if (its_part == PART_OUTPUT || (its_part == PART_EMBEDDING && v->tied)) return choose_output(v, tensor);
    if (its_mix == MIX_MXFP4_MOE) return tensor->ne[2] > 1 ? v->format : nib_format_find("q8_0");
    if (its_part != PART_EMBEDDING && (its_mix == MIX_IQ1 || its_mix == MIX_IQ2_X || its_mix == MIX_IQ2_S))
        return choose_small(v, its_part);
    switch (its_part) {
    case PART_V:
        return choose_values(v);
    case PART_K:
        return v->n_experts == 8 ? nib_format_find("q8_0") : look_up(v, its_part, 0, v->n_layers, v->format);
    case PART_DOWN:
        return choose_feed_forward(v, tensor, its_part, &v->i_down);
    case PART_GATE:
        return choose_feed_forward(v, tensor, its_part, &v->i_gate);
    case PART_UP:
        return choose_feed_forward(v, tensor, its_part, &v->i_up);
    default:
        return look_up(v, its_part, 0, v->n_layers, v->format);
    }
}

/* The format that takes the place of one whose block does not divide the row. NULL: there is none. */
static const nib_format *fit_shape(const nib_format *format, uint64_t n_row) {
    const nib_format_facts *facts = nib_format_facts_of(format);
    if (n_row % facts->block == 0) return format;
    const nib_format *best = NULL;
    const nib_format *other;
    for (unsigned i = 0; facts->is_nibbles_own && (other = nib_format_at(i));
         i++) { /* same bits and kind, smaller block */
        const nib_format_facts *its = nib_format_facts_of(other);
        if ((its->gguf_type & ~0xfu) != (facts->gguf_type & ~0xfu) || n_row % its->block != 0) continue;
        if (!best || its->block > nib_format_facts_of(best)->block) best = other;
    }
    if (facts->is_nibbles_own) return best ? best : nib_format_find("f16");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].wanted, facts->name) != 0) continue;
        const nib_format *instead = nib_format_find(shapes[i].instead);
        return n_row % nib_format_facts_of(instead)->block == 0 ? instead : nib_format_find("f16");
    }
    return NULL;
}

/* What the user says, else what the recipe says; shapes are seen to later. */
static nib_status choose_wanted(visit *v, const nib_gguf *gguf, const nib_tensor *tensor, const nib_format **out,
                                nib_error *error) {
    const nib_overrides *overrides = v->params->overrides;
    const part its_part = part_of(tensor->name);
    *out = NULL;
    if (its_part == PART_EMBEDDING) *out = nib_overrides_embedding(overrides);
    if (its_part == PART_OUTPUT) *out = nib_overrides_output(overrides);
    if (!*out) NIB_TRY(nib_overrides_find(overrides, tensor->name, out, error));
    if (!*out) *out = v->params->pure || v->recipe->mix == MIX_FLOAT ? v->format : choose_mixed(v, tensor);
    if (*out) return NIB_OK;
    return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(gguf), tensor->info_offset, tensor->name,
                       "the model has %d layers, and the tensor's name does not say which of them is its own",
                       v->n_layers);
}

static bool is_one_of(const char *name, const char *const *names, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

/* Whether the tensor would be garbage without importance. Embedding and output never have any. */
static bool needs_importance(const visit *v, const nib_choice_of_format *choice) {
    const char *name = nib_format_facts_of(choice->format)->name;
    const part its_part = part_of(choice->tensor->name);
    if (is_one_of(name, neediest, sizeof neediest / sizeof *neediest)) return true;
    if (its_part == PART_OUTPUT || its_part == PART_EMBEDDING) return false;
    if (v->recipe->mix == MIX_Q2_K_S && !strcmp(name, "q2_k")) return true;
    return is_one_of(name, needy, sizeof needy / sizeof *needy);
}

static nib_status choose_one(visit *v, const nib_gguf *gguf, nib_choice_of_format *choice, nib_error *error) {
    const nib_tensor *tensor = choice->tensor;
    const char *path = nib_gguf_path(gguf);
    const nib_format *wanted;
    choice->format = tensor->format;
    choice->copied = true;
    if (!is_touched(tensor)) return NIB_OK;
    NIB_TRY(choose_wanted(v, gguf, tensor, &wanted, error));
    const char *wanted_name = nib_format_facts_of(wanted)->name;
    const nib_format *format = fit_shape(wanted, tensor->ne[0]);
    if (!format && v->recipe->mix == MIX_OWN) format = nib_format_find("f16");
    if (!format) {
        nib_fail_at(error, NIB_ERR_UNSUPPORTED, path, tensor->info_offset, tensor->name,
                    "rows of %llu weights are not a multiple of %s's block of %u, and no format takes its place",
                    (unsigned long long)tensor->ne[0], wanted_name, (unsigned)nib_format_facts_of(wanted)->block);
        return nib_hint(error, NIB_ERR_UNSUPPORTED, "choose a k type such as q4_k or q6_k, or bf16");
    }
    choice->format = format;
    choice->copied = format == tensor->format;
    if (format != wanted)
        snprintf(choice->fallback, sizeof choice->fallback, "rows of %llu are not a multiple of %u: %s instead of %s",
                 (unsigned long long)tensor->ne[0], (unsigned)nib_format_facts_of(wanted)->block,
                 nib_format_facts_of(format)->name, wanted_name);
    if (choice->copied) return NIB_OK;
    if (v->params->imatrix)
        (void)nib_imatrix_find(v->params->imatrix, tensor->name, tensor->ne[0], tensor->ne[2], &choice->importance);
    choice->lacks_importance = !choice->importance && needs_importance(v, choice);
    const nib_format_facts *source = nib_format_facts_of(tensor->format);
    if (source->can_decode) return NIB_OK;
    nib_fail_at(error, NIB_ERR_UNSUPPORTED, path, tensor->info_offset, tensor->name,
                "the tensor is stored as %s, which nibble cannot decode", source->name);
    return nib_hint(error, NIB_ERR_UNSUPPORTED, "start from a bf16, f16 or f32 file of the model");
}

nib_status nib_recipe_choose(const nib_quantize_params *params, const nib_gguf *gguf, nib_choice_of_format *out,
                             nib_error *error) {
    const uint64_t n = nib_gguf_n_tensors(gguf);
    visit v;
    begin_visit(&v, params, gguf);
    for (uint64_t i = 0; i < n; i++) out[i] = (nib_choice_of_format){.tensor = nib_gguf_tensor_at(gguf, i)};
    qsort(out, n, sizeof *out, compare_tensors);
    for (uint64_t i = 0; i < n; i++) NIB_TRY(choose_one(&v, gguf, &out[i], error));
    return NIB_OK;
}
