/* nibble number: the bits of a number in every number format; a list of numbers quantized as one block. */
#include "cli.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_NUMBERS = 256, MOST_FORMATS = 32, MOST_TYPES = 32, FORMATS_SIDE_BY_SIDE = 3 };

/* A list quantized in one format. */
typedef struct quantized_list {
    const nib_format *format;
    nib_number_block block;
    int32_t codes[MOST_NUMBERS];
    double decoded[MOST_NUMBERS];
} quantized_list;

/* All that the command shows. */
typedef struct number_work {
    double x[MOST_NUMBERS];
    unsigned n, n_formats;
    quantized_list lists[MOST_FORMATS];
} number_work;

/* ---- Reading --------------------------------------------------------------------------------------------------------- */

static nib_status add_number(number_work *work, const char *text, size_t length, nib_error *error) {
    char copy[64], *end;
    if (work->n == MOST_NUMBERS) return nib_cli_fail(error, NIB_ERR_USAGE, NULL, "more than %d numbers", MOST_NUMBERS);
    snprintf(copy, sizeof copy, "%.*s", (int)(length < sizeof copy ? length : sizeof copy - 1), text);
    errno = 0;
    const double x = strtod(copy, &end);
    const bool too_large = errno == ERANGE && fabs(x) > 1;
    if (length == 0 || length >= sizeof copy || *end || too_large)
        return nib_cli_fail(error, NIB_ERR_USAGE, "numbers separated by commas, such as -0.89,0.16,8e-2",
                            too_large ? "\"%s\" is beyond the range of doubles" : "\"%s\" is not a number", copy);
    work->x[work->n++] = x;
    return NIB_OK;
}

static nib_status read_numbers(const nib_cli *cli, number_work *work, nib_error *error) {
    nib_status status = NIB_OK;
    for (unsigned i = 0; i < cli->args.n_words; i++) {
        for (const char *at = cli->args.words[i]; at && !status;) {
            const char *comma = strchr(at, ',');
            status = add_number(work, at, comma ? (size_t)(comma - at) : strlen(at), error);
            at = comma ? comma + 1 : NULL;
        }
    }
    const char *outlier = nib_cli_text(cli, "outlier");
    return status || !outlier ? status : add_number(work, outlier, strlen(outlier), error);
}

static nib_status quantize(const nib_cli *cli, number_work *work, nib_error *error) {
    for (const char *at = nib_cli_text(cli, "to"); at;) {
        const char *comma = strchr(at, ',');
        const size_t length = comma ? (size_t)(comma - at) : strlen(at);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), at);
        if (work->n_formats == MOST_FORMATS)
            return nib_cli_fail(error, NIB_ERR_USAGE, NULL, "more than %d formats", MOST_FORMATS);
        quantized_list *list = &work->lists[work->n_formats++];
        list->format = nib_format_find(name);
        if (!list->format)
            return nib_cli_fail(error, NIB_ERR_USAGE, "nibble formats lists them", "there is no format \"%s\"", name);
        nib_status status =
            nib_number_quantize(list->format, work->x, work->n, list->codes, list->decoded, &list->block, error);
        if (status) return status;
        at = comma ? comma + 1 : NULL;
    }
    return NIB_OK;
}

/* ---- Bits ------------------------------------------------------------------------------------------------------------- */

typedef struct bits_text {
    char s[72];
} bits_text;

/* "0 01111 1000000000": sign, exponent, significand; integers in one piece. */
static bits_text show_bits(const nib_number *number) {
    bits_text out;
    unsigned n = 0;
    for (unsigned bit = number->n_bits; bit-- > 0;) {
        out.s[n++] = number->code >> bit & 1 ? '1' : '0';
        const bool ends = bit == number->n_bits - 1 || bit == number->n_mantissa_bits;
        if (!number->is_integer && ends && bit) out.s[n++] = ' ';
    }
    out.s[n] = '\0';
    return out;
}

/* For a table: a significand that would fill the line in hexadecimal digits. */
static bits_text show_bits_shortly(const nib_number *number) {
    bits_text out = show_bits(number);
    const unsigned n_mantissa = number->n_mantissa_bits, at = number->n_exponent_bits + 3;
    if (n_mantissa > 23)
        snprintf(out.s + at, sizeof out.s - at, "0x%0*llx", (int)(n_mantissa + 3) / 4,
                 (unsigned long long)(number->code & ((UINT64_C(1) << n_mantissa) - 1)));
    return out;
}

/* As many digits as it takes to tell the type's values apart. */
static nib_short_text show_value(double value, double digits) {
    nib_short_text out;
    if (isnan(value))
        snprintf(out.s, sizeof out.s, "-");
    else
        snprintf(out.s, sizeof out.s, "%.*g", (int)ceil(digits) + 1 < 4 ? 4 : (int)ceil(digits) + 1, value);
    return out;
}

/* The shortest text that reads back as the same number. */
static nib_short_text show_exactly(double value) {
    nib_short_text out;
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out.s, sizeof out.s, "%.*g", digits, value);
        if (strtod(out.s, NULL) == value) break;
    }
    return out;
}

/* Of numbers with many digits, how far away it is. */
static nib_short_text show_neighbour(const nib_number *number, double neighbour) {
    nib_short_text out = show_value(neighbour, number->digits);
    if (number->digits > 15 && isfinite(neighbour) && isfinite(number->value))
        snprintf(out.s, sizeof out.s, "x%+.2g", neighbour - number->value);
    return out;
}

static nib_short_text show_error(const nib_number *number, double x) {
    nib_short_text out;
    if (isnan(number->error))
        snprintf(out.s, sizeof out.s, "%s", nib_number_fit_name(number->fit));
    else if (number->error == 0)
        snprintf(out.s, sizeof out.s, "0");
    else
        snprintf(out.s, sizeof out.s, "%.2g%%", 100 * fabs(number->error / x));
    return out;
}

static void print_bits(double x) {
    nib_table table;
    nib_number number;
    nib_table_init(&table, "llrrrr", "type|sign, exponent, significand|stored|error|previous|next");
    for (unsigned i = 0; nib_number_at(i, x, &number); i++) {
        nib_table_add(&table, "%s", number.type);
        nib_table_add(&table, "%s", show_bits_shortly(&number).s);
        nib_table_add(&table, "%s",
                      number.digits > 15 ? show_exactly(number.value).s : show_value(number.value, number.digits).s);
        nib_table_add(&table, "%s", show_error(&number, x).s);
        nib_table_add(&table, "%s", show_neighbour(&number, number.previous).s);
        nib_table_add(&table, "%s", show_neighbour(&number, number.next).s);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

static void print_ranges(void) {
    nib_table table;
    nib_number number;
    nib_table_init(&table, "lrrrrrr", "type|bits|from|to|smallest above 0|precise above|significant digits");
    for (unsigned i = 0; nib_number_at(i, 1, &number); i++) {
        nib_table_add(&table, "%s", number.type);
        nib_table_add(&table, "%u", number.n_bits);
        nib_table_add(&table, "%.6g", number.lowest);
        nib_table_add(&table, "%.6g", number.largest);
        nib_table_add(&table, "%.3g", number.smallest);
        nib_table_add(&table, "%.3g", number.smallest_normal);
        nib_table_add(&table, "%.1f", number.digits);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

/* A line a number, a column a type. */
static void print_stored(const number_work *work) {
    char align[MOST_TYPES], heads[16 * MOST_TYPES] = "number";
    nib_table table;
    nib_number number;
    unsigned n_types = 0;
    const unsigned first = 1; /* f64 is the number itself */
    for (; n_types + 2 < MOST_TYPES && nib_number_at(first + n_types, 0, &number); n_types++) {
        const size_t at = strlen(heads);
        snprintf(heads + at, sizeof heads - at, "|%s", number.type);
    }
    memset(align, 'r', n_types + 1);
    align[n_types + 1] = '\0';
    nib_table_init(&table, align, heads);
    for (unsigned i = 0; i < work->n; i++) {
        nib_table_add(&table, "%.6g", work->x[i]);
        for (unsigned t = 0; t < n_types && nib_number_at(first + t, work->x[i], &number); t++)
            nib_table_add(&table, "%.4g", number.value);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

static void print_numbers(const nib_cli *cli, const number_work *work) {
    if (work->n > 1) {
        print_stored(work);
        if (!cli->verbose) printf("\n-v shows the bits of each; --to q4s,q4a quantizes the list\n");
    }
    for (unsigned i = 0; i < work->n && (work->n == 1 || cli->verbose); i++) {
        if (work->n > 1) printf("\n%s%s%s\n", nib_console_bold(), show_exactly(work->x[i]).s, nib_console_plain());
        print_bits(work->x[i]);
    }
    if (work->n == 1 || cli->verbose) print_ranges();
}

/* ---- Lists ------------------------------------------------------------------------------------------------------------ */

/* A line a number; code, decoded value and error of each format side by side. */
static void print_codes(const number_work *work, unsigned first, unsigned last) {
    char heads[256] = "number", align[3 * FORMATS_SIDE_BY_SIDE + 2];
    nib_table table;
    for (unsigned f = first; f < last; f++) {
        const size_t at = strlen(heads);
        snprintf(heads + at, sizeof heads - at, "|%s|decoded|error", nib_format_facts_of(work->lists[f].format)->name);
    }
    memset(align, 'r', 1 + 3 * (last - first));
    align[1 + 3 * (last - first)] = '\0';
    nib_table_init(&table, align, heads);
    for (unsigned i = 0; i < work->n; i++) {
        nib_table_add(&table, "%.6g", work->x[i]);
        for (unsigned f = first; f < last; f++) {
            const double decoded = work->lists[f].decoded[i], off = fabs(decoded - work->x[i]);
            nib_table_add(&table, "%d", work->lists[f].codes[i]);
            nib_table_add(&table, "%.4g", decoded);
            if (off == 0 || work->x[i] == 0)
                nib_table_add(&table, "%.2g", off);
            else
                nib_table_add(&table, "%.1f%%", 100 * off / fabs(work->x[i]));
        }
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
    putchar('\n');
}

static void print_lists(const number_work *work) {
    for (unsigned first = 0; first < work->n_formats; first += FORMATS_SIDE_BY_SIDE) {
        const unsigned left = work->n_formats - first;
        print_codes(work, first, first + (left < FORMATS_SIDE_BY_SIDE ? left : FORMATS_SIDE_BY_SIDE));
    }
    nib_table table;
    nib_table_init(&table, "lrrrrr", "format|scale|zero|minimum|codes in use|mean relative error");
    for (unsigned f = 0; f < work->n_formats; f++) {
        const nib_number_block *block = &work->lists[f].block;
        nib_table_add(&table, "%s", nib_format_facts_of(work->lists[f].format)->name);
        nib_table_add(&table, "%s", block->has_scale ? show_exactly(block->scale).s : "-");
        nib_table_add(&table, block->has_zero ? "%d" : "-", block->zero);
        nib_table_add(&table, block->has_minimum ? "%.6g" : "-", block->minimum);
        nib_table_add(&table, "%u of %u", block->n_codes_used, block->n_codes);
        nib_table_add(&table, isnan(block->mean_relative_error) ? "-" : "%.1f%%", 100 * block->mean_relative_error);
    }
    nib_table_print(&table, stdout);
    nib_table_fini(&table);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------- */

static void write_number(nib_json *json, const nib_number *number) {
    const unsigned n_mantissa = number->n_mantissa_bits;
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "type", number->type);
    nib_json_string(json, "bits", show_bits(number).s);
    nib_json_uint(json, "code", number->code);
    if (!number->is_integer) {
        nib_json_uint(json, "sign", number->code >> (number->n_bits - 1));
        nib_json_uint(json, "exponent", number->code >> n_mantissa & ((UINT64_C(1) << number->n_exponent_bits) - 1));
        nib_json_uint(json, "significand", number->code & ((UINT64_C(1) << n_mantissa) - 1));
        nib_json_int(json, "bias", number->bias);
    }
    nib_json_number(json, "value", number->value);
    nib_json_number(json, "error", number->error);
    nib_json_string(json, "fit", nib_number_fit_name(number->fit));
    nib_json_number(json, "lowest", number->lowest);
    nib_json_number(json, "largest", number->largest);
    nib_json_number(json, "smallest", number->smallest);
    nib_json_number(json, "smallest_normal", number->smallest_normal);
    nib_json_number(json, "significant_digits", number->digits);
    nib_json_number(json, "previous", number->previous);
    nib_json_number(json, "next", number->next);
    nib_json_end_object(json);
}

static void write_list(nib_json *json, const number_work *work, const quantized_list *list) {
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "format", nib_format_facts_of(list->format)->name);
    if (list->block.has_scale) nib_json_number(json, "scale", list->block.scale);
    if (list->block.has_zero) nib_json_int(json, "zero", list->block.zero);
    if (list->block.has_minimum) nib_json_number(json, "minimum", list->block.minimum);
    nib_json_begin_array(json, "codes");
    for (unsigned i = 0; i < work->n; i++) nib_json_int(json, NULL, list->codes[i]);
    nib_json_end_array(json);
    nib_json_begin_array(json, "decoded");
    for (unsigned i = 0; i < work->n; i++) nib_json_number(json, NULL, list->decoded[i]);
    nib_json_end_array(json);
    nib_json_begin_array(json, "errors");
    for (unsigned i = 0; i < work->n; i++) nib_json_number(json, NULL, list->decoded[i] - work->x[i]);
    nib_json_end_array(json);
    nib_json_number(json, "mean_relative_error", list->block.mean_relative_error);
    nib_json_uint(json, "codes_used", list->block.n_codes_used);
    nib_json_uint(json, "codes_available", list->block.n_codes);
    nib_json_end_object(json);
}

static nib_status write_json(nib_cli *cli, const number_work *work, nib_error *error) {
    nib_number number;
    nib_json *json = nib_cli_json_begin(cli, "number", error);
    if (!json) return NIB_ERR_MEMORY;
    nib_json_begin_array(json, "numbers");
    for (unsigned i = 0; i < work->n; i++) {
        nib_json_begin_object(json, NULL);
        nib_json_number(json, "x", work->x[i]);
        nib_json_begin_array(json, "stored");
        for (unsigned t = 0; nib_number_at(t, work->x[i], &number); t++) write_number(json, &number);
        nib_json_end_array(json);
        nib_json_end_object(json);
    }
    nib_json_end_array(json);
    nib_json_begin_array(json, "quantized");
    for (unsigned f = 0; f < work->n_formats; f++) write_list(json, work, &work->lists[f]);
    nib_json_end_array(json);
    return nib_cli_json_end(cli, json, error);
}

/* ---- The command ------------------------------------------------------------------------------------------------------- */

static nib_status run(nib_cli *cli, nib_error *error) {
    number_work *all = calloc(1, sizeof *all);
    if (!all) return nib_cli_no_memory(error);
    nib_status status = read_numbers(cli, all, error);
    if (!status) status = quantize(cli, all, error);
    if (!status && cli->wants_json) status = write_json(cli, all, error);
    if (!status && !cli->json) {
        if (all->n_formats)
            print_lists(all);
        else
            print_numbers(cli, all);
    }
    free(all);
    return status;
}

static const nib_option options[] = {
    {.name = "to",
     .kind = NIB_OPTION_TEXT,
     .value = "LIST",
     .about = "quantize the list as one block: formats such as q4s,q4a,f4_e2m1_ieee",
     .more = "The grid family and the plain floats; in double arithmetic, with a scale that is not rounded."},
    {.name = "outlier", .kind = NIB_OPTION_TEXT, .value = "X", .about = "one more number at the end of the list"},
    {.name = NULL},
};

const nib_command nib_command_number = {
    .name = "number",
    .group = "look",
    .usage = "X[,X...] [--to LIST]",
    .about = "the bits of a number in every format",
    .more = "error: relative to X. previous, next: the neighbours of what is stored; f64's as distances. With --to: "
            "code, decoded value and\n"
            "relative error of every number, and the block's scale and zero point.",
    .examples = "nibble number 1.5\nnibble number -0.89,0.16,0.08,-0.13,0.16,-0.54 --to q4s,q4a --outlier 10",
    .output = "also write the JSON document to PATH",
    .output_is_document = true,
    .options = options,
    .min_words = 1,
    .max_words = MOST_NUMBERS,
    .run = run,
};
