/* Aligned columns, and numbers the way people write them: decimal units, three digits, uncertainty beside the value. */
#include "cli.h"
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Columns a text takes on screen: its UTF-8 characters. */
static size_t width_of(const char *s) {
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void push(nib_table *table, const char *text, size_t n_bytes) {
    if (table->n_cells == table->capacity) {
        size_t capacity = table->capacity ? 2 * table->capacity : 64;
        char **cells = realloc(table->cells, capacity * sizeof *cells);
        if (!cells) {
            table->failed = true;
            return;
        }
        table->cells = cells;
        table->capacity = capacity;
    }
    char *copy = strndup(text, n_bytes);
    if (!copy)
        table->failed = true;
    else
        table->cells[table->n_cells++] = copy;
}

void nib_table_init(nib_table *table, const char *align, const char *heads) {
    *table = (nib_table){.n_columns = (unsigned)strlen(align), .align = align};
    for (const char *at = heads; at;) {
        const char *bar = strchr(at, '|');
        push(table, at, bar ? (size_t)(bar - at) : strlen(at));
        at = bar ? bar + 1 : NULL;
    }
}

void nib_table_fini(nib_table *table) {
    for (size_t i = 0; i < table->n_cells; i++) free(table->cells[i]);
    free(table->cells);
    *table = (nib_table){0};
}

void nib_table_add(nib_table *table, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    push(table, text, strlen(text));
}

/* RFC 4180: quoted where it has a comma, a quote or a line break. */
static void print_csv_cell(const char *cell, FILE *to) {
    if (!strpbrk(cell, ",\"\r\n")) {
        fputs(cell, to);
        return;
    }
    fputc('"', to);
    for (; *cell; cell++) fprintf(to, *cell == '"' ? "\"\"" : "%c", *cell);
    fputc('"', to);
}

static void print_csv(const nib_table *table, FILE *to) {
    for (size_t i = 0; i < table->n_cells; i++) {
        print_csv_cell(table->cells[i], to);
        fputc((i + 1) % table->n_columns ? ',' : '\n', to);
    }
}

static void print_markdown(const nib_table *table, FILE *to) {
    for (size_t i = 0; i < table->n_cells; i++) {
        fputs("| ", to);
        for (const char *c = table->cells[i]; *c; c++) fprintf(to, *c == '|' ? "\\%c" : "%c", *c);
        fputs((i + 1) % table->n_columns ? " " : " |\n", to);
        if (i + 1 != table->n_columns) continue;
        for (unsigned column = 0; column < table->n_columns; column++)
            fputs(table->align[column] == 'r' ? "|---:" : "|---", to);
        fputs("|\n", to);
    }
}

void nib_table_print_as(const nib_table *table, nib_table_style style, FILE *to) {
    if (style == NIB_TABLE_PLAIN || table->failed)
        nib_table_print(table, to);
    else
        (style == NIB_TABLE_CSV ? print_csv : print_markdown)(table, to);
}

void nib_table_print(const nib_table *table, FILE *to) {
    enum { MOST_COLUMNS = 16 };
    size_t widths[MOST_COLUMNS] = {0};
    if (table->failed || table->n_columns > MOST_COLUMNS) {
        fputs("(out of memory: the table cannot be shown)\n", to);
        return;
    }
    for (size_t i = 0; i < table->n_cells; i++) {
        size_t width = width_of(table->cells[i]);
        if (width > widths[i % table->n_columns]) widths[i % table->n_columns] = width;
    }
    for (size_t i = 0; i < table->n_cells; i++) {
        unsigned column = (unsigned)(i % table->n_columns);
        bool head = i < table->n_columns, last = column + 1 == table->n_columns;
        size_t pad = widths[column] - width_of(table->cells[i]);
        if (head && column == 0) fputs(nib_console_bold(), to);
        fprintf(to, "%s%*s", column ? "  " : "", table->align[column] == 'r' ? (int)pad : 0, "");
        nib_print_safe(to, table->cells[i], strlen(table->cells[i]), 0);
        if (table->align[column] == 'l' && !last) fprintf(to, "%*s", (int)pad, "");
        if (head && last) fputs(nib_console_plain(), to);
        if (last) fputc('\n', to);
    }
}

/* ---- Numbers ---------------------------------------------------------------------------------------------------------- */

static nib_short_text scaled(double value, const char *const *units, unsigned n_units, const char *tail) {
    nib_short_text out;
    unsigned unit = 0;
    for (; unit + 1 < n_units && value >= 999.5; unit++) value /= 1000;
    int decimals = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(out.s, sizeof out.s, "%.*f%s%s%s", decimals, value, *units[unit] || *tail ? " " : "", units[unit], tail);
    return out;
}

nib_short_text nib_show_bytes(uint64_t n) {
    static const char *const units[] = {"", "k", "M", "G", "T", "P", "E"};
    return scaled((double)n, units, 7, "B");
}

nib_short_text nib_show_count(uint64_t n) {
    static const char *const units[] = {"", "k", "M", "G", "T", "P", "E"};
    return scaled((double)n, units, 7, "");
}

nib_short_text nib_show_seconds(double s) {
    nib_short_text out;
    uint64_t whole = s > 0 && s < 1e15 ? (uint64_t)(s + 0.5) : 0;
    if (s < 9.95)
        snprintf(out.s, sizeof out.s, "%.1f s", s);
    else if (whole < 60)
        snprintf(out.s, sizeof out.s, "%llu s", (unsigned long long)whole);
    else if (whole < 3600)
        snprintf(out.s, sizeof out.s, "%llu min %llu s", (unsigned long long)whole / 60,
                 (unsigned long long)whole % 60);
    else
        snprintf(out.s, sizeof out.s, "%llu h %llu min", (unsigned long long)whole / 3600,
                 (unsigned long long)whole / 60 % 60);
    return out;
}

nib_short_text nib_show_pm(double value, double err) {
    nib_short_text out = {"-"};
    if (!isfinite(value)) return out;
    if (!isfinite(err) || err <= 0) {
        snprintf(out.s, sizeof out.s, fabs(value) < 1000 ? "%.4g" : "%.0f", value); /* no powers of ten */
        return out;
    }
    /* Two significant digits of the uncertainty. */
    int decimals = 1 - (int)floor(log10(err));
    if (decimals < 0) decimals = 0;
    if (decimals > 9) decimals = 9;
    snprintf(out.s, sizeof out.s, "%.*f %s %.*f", decimals, value, nib_console_plus_minus(), decimals, err);
    return out;
}

nib_sparkline nib_show_histogram(const uint64_t *counts, unsigned n_bins, unsigned n_columns) {
    static const char *const bars[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static const char *const plain_bars[] = {" ", ".", ".", ":", ":", "+", "*", "#", "#"};
    enum { MOST_COLUMNS = 64, LEVELS = 8 };
    nib_sparkline out = {""};
    double heights[MOST_COLUMNS] = {0}, highest = 0;
    if (n_columns > MOST_COLUMNS) n_columns = MOST_COLUMNS;
    for (unsigned c = 0; c < n_columns; c++) {
        uint64_t n = 0;
        for (unsigned b = c * n_bins / n_columns; b < (c + 1) * n_bins / n_columns; b++) n += counts[b];
        heights[c] = log10(1.0 + (double)n);
        if (heights[c] > highest) highest = heights[c];
    }
    for (unsigned c = 0; c < n_columns; c++) {
        unsigned level = highest > 0 ? (unsigned)(heights[c] / highest * LEVELS + 0.5) : 0;
        if (level == 0 && heights[c] > 0) level = 1; /* one weight far out is what one looks for */
        strcat(out.s, nib_console_utf8() ? bars[level] : plain_bars[level]);
    }
    return out;
}
