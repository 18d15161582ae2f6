/* nibble formats: all number formats, what they store and when to use them. */
#include "cli.h"
#include <string.h>

static const char *kernel_of(const nib_format_facts *facts) {
    switch (facts->kind) {
    case NIB_CLASS_FLOAT:
        return "float";
    case NIB_CLASS_SCALED:
        return "integer";
    default:
        return facts->can_decode ? "decode" : "-";
    }
}

/* The formats that a model is most often made with; the list shows these, and the others of llama.cpp by name. */
static bool is_usual(const nib_format_facts *facts) {
    static const char *const usual[] = {"f32",  "f16",  "bf16", "q8_0", "q4_0", "q4_1", "q5_0",
                                        "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"};
    for (unsigned i = 0; i < sizeof usual / sizeof *usual; i++)
        if (strcmp(facts->name, usual[i]) == 0) return true;
    return false;
}

static bool is_listed(const nib_cli *cli, const nib_format_facts *facts) {
    if (cli->args.n_words) {
        for (unsigned i = 0; i < cli->args.n_words; i++) {
            const nib_format *named = nib_format_find(cli->args.words[i]);
            if (named && nib_format_facts_of(named) == facts) return true;
        }
        return false;
    }
    return cli->verbose || nib_cli_switch(cli, "all") || is_usual(facts);
}

static nib_status write_json(nib_cli *cli, nib_error *error) {
    const nib_format *format;
    const nib_recipe *recipe;
    nib_json *json = nib_cli_json_begin(cli, "formats", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_begin_array(json, "formats");
    for (unsigned i = 0; (format = nib_format_at(i)); i++) {
        const nib_format_facts *facts = nib_format_facts_of(format);
        if (cli->args.n_words && !is_listed(cli, facts)) continue;
        nib_json_begin_object(json, NULL);
        nib_json_string(json, "name", facts->name);
        nib_json_string(json, "gguf_name", facts->gguf_name);
        nib_json_uint(json, "gguf_type", facts->gguf_type);
        nib_json_number(json, "bpw", nib_format_bpw(format));
        nib_json_uint(json, "block", facts->block);
        nib_json_uint(json, "bytes", facts->bytes);
        nib_json_string(json, "kernel", kernel_of(facts));
        nib_json_bool(json, "can_encode", facts->can_encode);
        nib_json_bool(json, "can_decode", facts->can_decode);
        nib_json_bool(json, "nibbles_own", facts->is_nibbles_own);
        nib_json_string(json, "about", facts->about);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    nib_json_begin_array(json, "recipes");
    for (unsigned i = 0; (recipe = nib_recipe_at(i)); i++) nib_json_string(json, NULL, nib_recipe_name(recipe));
    nib_json_end_array(json);
    return nib_cli_json_end(cli, json, error);
}

/* Names in lines of at most 100 columns. */
static void print_names(const char *label, const char *const *names, unsigned n) {
    size_t column = strlen(label);
    fputs(label, stdout);
    for (unsigned i = 0; i < n; i++) {
        size_t width = strlen(names[i]) + 1;
        if (column + width > 99) {
            fputs("\n   ", stdout);
            column = 3;
        }
        printf(" %s", names[i]);
        column += width;
    }
    fputc('\n', stdout);
}

/* Nibble's own formats: ids of one kind are equal but for their last 12 bits. Names with a block size at their end are left
 * to the line above them. */
static unsigned names_of_kind(uint32_t kind, const char **names, unsigned most) {
    unsigned n = 0;
    const nib_format *format;
    for (unsigned i = 0; (format = nib_format_at(i)) && n < most; i++) {
        const nib_format_facts *facts = nib_format_facts_of(format);
        const bool names_its_kind = facts->block <= 32 && !strstr(facts->name, "_32");
        if (facts->gguf_type >> 12 == kind && names_its_kind) names[n++] = facts->name;
    }
    return n;
}

static void print_own(void) {
    enum { MOST = 32 };
    static const char *const labels[] = {"symmetric", "zero point", "minimum"};
    const char *names[MOST];
    printf("nibble's own, a scale per 32 weights, or as many as _64 _128 _256 say; floats none, or by _32 too\n  ");
    for (unsigned kind = 0; kind < 3; kind++) {
        const unsigned n = names_of_kind(0x4E420 + kind, names, MOST);
        if (n) printf("%s %s..%s %s", kind ? ";" : "", names[0], names[n - 1], labels[kind]);
    }
    putchar('\n');
    print_names("  ", names, names_of_kind(0x4E430, names, MOST));
}

static void print_rest(void) {
    enum { MOST = 256 };
    const char *recipes[MOST];
    unsigned n_recipes = 0;
    const nib_recipe *recipe;
    for (unsigned i = 0; (recipe = nib_recipe_at(i)) && n_recipes < MOST; i++) {
        const nib_format_facts *facts = nib_format_facts_of(nib_recipe_format(recipe));
        if (!facts->is_nibbles_own) recipes[n_recipes++] = nib_recipe_name(recipe);
    }
    unsigned n_others = 0;
    const nib_format *format;
    const char *others[MOST];
    for (unsigned i = 0; (format = nib_format_at(i)) && n_others < MOST; i++) {
        const nib_format_facts *facts = nib_format_facts_of(format);
        if (facts->can_encode && !facts->is_nibbles_own && !is_usual(facts)) others[n_others++] = facts->name;
    }
    if (n_others) print_names("others:", others, n_others);
    print_own();
    print_names("recipes for --to:", recipes, n_recipes);
    printf("nibble formats NAME tells more of one; --all lists every format\n");
}

static nib_status check_names(const nib_cli *cli, nib_error *error) {
    for (unsigned i = 0; i < cli->args.n_words; i++) {
        nib_nearest nearest = {0};
        const nib_format *format;
        char hint[128];
        if (nib_format_find(cli->args.words[i])) continue;
        for (unsigned k = 0; (format = nib_format_at(k)); k++)
            nib_cli_nearest_offer(&nearest, cli->args.words[i], nib_format_facts_of(format)->name);
        snprintf(hint, sizeof hint, nearest.name ? "did you mean %s?" : "nibble formats --all lists them%s",
                 nearest.name ? nearest.name : "");
        return nib_cli_fail(error, NIB_ERR_USAGE, hint, "there is no format %s", cli->args.words[i]);
    }
    return NIB_OK;
}

static nib_status run(nib_cli *cli, nib_error *error) {
    const nib_format *format;
    nib_table table;
    nib_status status = check_names(cli, error);
    if (!status && cli->wants_json) status = write_json(cli, error);
    if (status || cli->json) return status;
    const bool brief = !cli->args.n_words && !cli->verbose && !nib_cli_switch(cli, "all");
    if (brief)
        nib_table_init(&table, "lrrll", "format|bits|block|kernel|what is stored");
    else
        nib_table_init(&table, "lrrrrll", "format|bits|block|bytes|type|kernel|what is stored, when to use it");
    for (unsigned i = 0; (format = nib_format_at(i)); i++) {
        const nib_format_facts *facts = nib_format_facts_of(format);
        if (!is_listed(cli, facts)) continue;
        nib_table_add(&table, "%s", facts->name);
        nib_table_add(&table, "%.4g", nib_format_bpw(format));
        nib_table_add(&table, "%u", facts->block);
        if (!brief) nib_table_add(&table, "%u", facts->bytes);
        if (!brief) nib_table_add(&table, "%u", facts->gguf_type);
        nib_table_add(&table, "%s", kernel_of(facts));
        /* the list says what is stored, up to the colon; all of it for one that is asked for */
        const int n_about = brief ? (int)strcspn(facts->about, ":;") : (int)strlen(facts->about);
        nib_table_add(&table, "%.*s", n_about, facts->about);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    if (brief) print_rest();
    return NIB_OK;
}

static const nib_option options[] = {
    {.name = "all", .letter = 'a', .kind = NIB_OPTION_SWITCH, .about = "every format, each on its own line"},
    {.name = NULL},
};

const nib_command nib_command_formats = {
    .name = "formats",
    .group = "look",
    .usage = "[FORMAT...]",
    .about = "all formats and when to use them",
    .more = "bits: per weight. kernel: integer = multiplied as integers, float = as floats, decode = decoded first.",
    .examples = "nibble formats\nnibble formats q4_k\nnibble formats --all",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .max_words = 32,
    .run = run,
};
