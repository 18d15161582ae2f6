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

/* Formats that share a line of the short list instead of having one each. */
static const struct {
    const char *label, *prefixes;
} families[] = {{"codebooks:", "iq"}, {"small floats, ternary, one bit:", "mxfp nvfp tq q1_ q2_0"}};
enum { N_FAMILIES = sizeof families / sizeof *families };

/* Label of the family the format belongs to, NULL if it stands alone. */
static const char *family_of(const nib_format_facts *facts) {
    for (unsigned i = 0; i < N_FAMILIES; i++)
        for (const char *prefix = families[i].prefixes; *prefix;) {
            const size_t n = strcspn(prefix, " ");
            if (!strncmp(facts->name, prefix, n)) return families[i].label;
            prefix += n + (prefix[n] == ' ');
        }
    return NULL;
}

static bool is_listed(const nib_cli *cli, const nib_format_facts *facts) {
    if (cli->args.n_words) {
        for (unsigned i = 0; i < cli->args.n_words; i++) {
            const nib_format *named = nib_format_find(cli->args.words[i]);
            if (named && nib_format_facts_of(named) == facts) return true;
        }
        return false;
    }
    if (cli->verbose || nib_cli_switch(cli, "all")) return true;
    return facts->can_encode && facts->kind != NIB_CLASS_NONE && !facts->is_nibbles_own && !family_of(facts);
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

/* Nibble's own formats, one line a kind: ids of one kind are equal but for their last 12 bits. Names with a block size at
 * their end are left to the line above them. */
static void print_own(void) {
    static const struct {
        uint32_t kind;
        const char *label;
    } kinds[] = {{0x4E420, "   symmetric: "},
                 {0x4E421, "   zero point:"},
                 {0x4E422, "   minimum:   "},
                 {0x4E430, "   floats:    "}};
    printf("nibble's own, a scale per 32 weights, or as many as _64 _128 _256 say; floats none, or by _32 too\n");
    for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const char *names[32];
        unsigned n = 0;
        const nib_format *format;
        for (unsigned i = 0; (format = nib_format_at(i)) && n < 32; i++) {
            const nib_format_facts *facts = nib_format_facts_of(format);
            const bool names_its_kind = facts->block <= 32 && !strstr(facts->name, "_32");
            if (facts->gguf_type >> 12 == kinds[k].kind && names_its_kind) names[n++] = facts->name;
        }
        print_names(kinds[k].label, names, n);
    }
}

static void print_families(void) {
    for (unsigned i = 0; i < N_FAMILIES; i++) {
        const char *names[32];
        unsigned n = 0;
        const nib_format *format;
        for (unsigned k = 0; (format = nib_format_at(k)) && n < 32; k++) {
            const nib_format_facts *facts = nib_format_facts_of(format);
            if (family_of(facts) == families[i].label) names[n++] = facts->name;
        }
        print_names(families[i].label, names, n);
    }
}

/* The recipes that are not a format's own name. */
static void print_mixes(void) {
    enum { MOST = 256 };
    const char *mixes[MOST];
    unsigned n = 0;
    const nib_recipe *recipe;
    for (unsigned i = 0; (recipe = nib_recipe_at(i)) && n < MOST; i++)
        if (!nib_format_find(nib_recipe_name(recipe))) mixes[n++] = nib_recipe_name(recipe);
    print_names("mixes for --to, besides all these names:", mixes, n);
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
    if (!brief) return NIB_OK;
    print_families();
    print_own();
    print_mixes();
    printf("nibble formats NAME tells more of one; --all lists every format, also those only known by name\n");
    return NIB_OK;
}

static const nib_option options[] = {
    {.name = "all", .letter = 'a', .kind = NIB_OPTION_SWITCH, .about = "every format, also those only known by name"},
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
