/* The pictures of size, speed and quality. Every picture answers one question, which is its heading; levels stand in order
 * of size with the original on top, and those over the cliff have another colour and a line above them. */
#include "study/pictures.h"

#include "study/markup.h"
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ROW_HEIGHT 25.0

/* ---- Rows: one line per model with a bar or a dot ------------------------------------------------------------------- */

typedef struct row {
    double value, lo, hi; /* lo, hi: ends of the error bar; NaN = none */
    char text[40];        /* written at the right end */
} row;

typedef struct row_chart {
    bool bars;           /* bars from the axis' start; else dots */
    bool whole_original; /* the original has a row of its own */
    const char *unit;    /* of the tick labels */
    const char *caption; /* under the axis */
    double rule;         /* a dashed line at this value; NaN = none */
    nib_axis axis;       /* lo, hi, log */
} row_chart;

double nib_picture_label_width(const nib_study *study) {
    size_t longest = 8;
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const size_t n = strlen(study->eval.models[i].format);
        if (n > longest) longest = n;
    }
    return fmin((double)longest * NIB_SVG_CHARACTER + 8, 130);
}

/* The dashed line that parts what is over the cliff from what is not. */
void nib_picture_cliff_line(nib_svg *svg, double y) {
    nib_svg_line(svg, 2, y, NIB_SVG_WIDTH - 2, y, "s1 dash thin");
}

/* rows: (1 + n_levels) in models' order. y: where the chart begins. Returns where it ends. */
static double draw_rows(nib_svg *svg, const nib_study *study, const row_chart *chart, const row *rows, double y) {
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    size_t longest = 0;
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        const size_t n = strlen(rows[i].text);
        if (n > longest) longest = n;
    }
    nib_axis axis = chart->axis;
    axis.from = nib_picture_label_width(study);
    axis.to = NIB_SVG_WIDTH - (double)longest * NIB_SVG_CHARACTER - 12;
    const uint32_t first = chart->whole_original ? 0 : 1;
    const double bottom = y + ROW_HEIGHT * (study->n_levels + 1 - first) + 4;
    nib_svg_x_axis(svg, &axis, y, bottom, chart->unit);
    if (!isnan(chart->rule)) {
        const double x = nib_axis_at(&axis, chart->rule);
        nib_svg_line(svg, x, y, x, bottom, "sr dash");
    }
    for (uint32_t i = first; i <= study->n_levels; i++) {
        const uint32_t model = i == 0 ? 0 : 1 + order[i - 1];
        const bool over = model > 0 && nib_study_is_over_cliff(study, model - 1);
        const double middle = y + ROW_HEIGHT / 2 + 2;
        if (over && model - 1 == (uint32_t)study->cliff) nib_picture_cliff_line(svg, y + 1);
        nib_svg_text(svg, axis.from - 6, middle + 4.5, NIB_ANCHOR_END, over ? "bad" : "",
                     nib_study_label(study, model));
        const row *at = &rows[model];
        const double x = nib_axis_at(&axis, at->value);
        if (isfinite(at->value) && chart->bars)
            nib_svg_rect(svg, axis.from, middle - 8, fmax(x - axis.from, 1), 16,
                         model == 0 ? "fr"
                         : over     ? "f1"
                                    : "f0");
        if (isfinite(at->lo))
            nib_svg_error_bar(svg, nib_axis_at(&axis, at->lo), nib_axis_at(&axis, at->hi), middle,
                              chart->bars  ? "axis err"
                              : model == 0 ? "sr err"
                              : over       ? "s1 err"
                                           : "s0 err");
        if (isfinite(at->value) && !chart->bars)
            nib_svg_dot(svg, x, middle, 4.5, model == 0 ? "fr" : over ? "f1" : "f0");
        nib_svg_text(svg, NIB_SVG_WIDTH - 4, middle + 4.5, NIB_ANCHOR_END, "", at->text);
        y += ROW_HEIGHT;
    }
    nib_svg_text(svg, (axis.from + axis.to) / 2, bottom + 34, NIB_ANCHOR_MIDDLE, "mut", chart->caption);
    return bottom + 42;
}

/* Smallest and largest of what the rows show, error bars included. */
static void rows_range(const row *rows, uint32_t first, uint32_t n, double *lo, double *hi) {
    *lo = INFINITY;
    *hi = -INFINITY;
    for (uint32_t i = first; i < n; i++) {
        if (!isfinite(rows[i].value)) continue;
        *lo = fmin(*lo, isfinite(rows[i].lo) ? rows[i].lo : rows[i].value);
        *hi = fmax(*hi, isfinite(rows[i].hi) ? rows[i].hi : rows[i].value);
    }
    if (*lo > *hi) *lo = *hi = 0;
}

/* ---- The pictures ---------------------------------------------------------------------------------------------------- */

static void draw_size(nib_svg *svg, const nib_study *study, row *rows) {
    char number[32];
    double lo, hi;
    uint64_t largest = 1;
    for (uint32_t i = 0; i <= study->n_levels; i++)
        if (nib_study_model(study, i)->bytes > largest) largest = nib_study_model(study, i)->bytes;
    const bool giga = largest >= 2000000000u;
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        const nib_eval_model *model = nib_study_model(study, i);
        rows[i] = (row){(double)model->bytes / (giga ? 1e9 : 1e6), NAN, NAN, ""};
        snprintf(rows[i].text, sizeof rows[i].text, "%s, %.1f bit", nib_text_of_bytes(number, (double)model->bytes),
                 model->bpw);
    }
    rows_range(rows, 0, study->n_levels + 1, &lo, &hi);
    row_chart chart = {true, true, "", giga ? "file size, GB" : "file size, MB", NAN, {0, hi, 0, 0, false}};
    nib_axis_round(&chart.axis);
    svg->height = draw_rows(svg, study, &chart, rows, 4);
}

static bool draw_speed_of(nib_svg *svg, const nib_study *study, row *rows, const char *test, const char *heading) {
    double lo, hi;
    bool any = false;
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        const nib_bench_result *result = nib_study_speed(study, i, test);
        rows[i] = (row){NAN, NAN, NAN, "n/a"};
        if (result == NULL || !isfinite(result->tokens_per_s)) continue;
        char rate[32], spread[32];
        any = true;
        rows[i].value = result->tokens_per_s;
        nib_text_of_rate(rate, result->tokens_per_s);
        if (result->n_runs > 1) {
            rows[i].lo = result->tokens_per_s - result->stddev;
            rows[i].hi = result->tokens_per_s + result->stddev;
            snprintf(rows[i].text, sizeof rows[i].text, "%s ±%s", rate, nib_text_of_error(spread, result->stddev));
        } else {
            snprintf(rows[i].text, sizeof rows[i].text, "%s", rate);
        }
    }
    if (!any) return false;
    rows_range(rows, 0, study->n_levels + 1, &lo, &hi);
    row_chart chart = {true, true, "", "tokens per second", NAN, {0, hi, 0, 0, false}};
    nib_axis_round(&chart.axis);
    nib_svg_text(svg, 2, svg->height + 16, NIB_ANCHOR_START, "strong", heading);
    svg->height = draw_rows(svg, study, &chart, rows, svg->height + 24) + 6;
    return true;
}

static bool draw_speed(nib_svg *svg, const nib_study *study, row *rows) {
    const bool reads = draw_speed_of(svg, study, rows, "pp", "Reading a prompt");
    const bool writes = draw_speed_of(svg, study, rows, "tg", "Writing an answer");
    return reads || writes;
}

static void draw_perplexity(nib_svg *svg, const nib_study *study, row *rows) {
    char number[32], error[32];
    double lo, hi;
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        const nib_eval_model *model = nib_study_model(study, i);
        rows[i] = (row){model->ppl, model->ppl - model->ppl_err, model->ppl + model->ppl_err, ""};
        snprintf(rows[i].text, sizeof rows[i].text, "%s ±%s",
                 model->ppl < 10 ? (snprintf(number, sizeof number, "%.3f", model->ppl), number)
                                 : nib_text_of_number(number, model->ppl),
                 nib_text_of_error(error, model->ppl_err));
    }
    rows_range(rows, 0, study->n_levels + 1, &lo, &hi);
    const bool log = lo > 0 && hi > 3 * lo;
    if (log && hi < 30 * lo) hi *= 1.1; /* few decades: not rounded to a power of ten */
    row_chart chart = {false, true, "", log ? "perplexity (log scale)" : "perplexity", NAN, {lo, hi, 0, 0, log}};
    if (!log)
        nib_axis_round(&chart.axis);
    else
        chart.axis.lo = lo * 0.9;
    svg->height = draw_rows(svg, study, &chart, rows, 4);
}

static void draw_same_top(nib_svg *svg, const nib_study *study, row *rows) {
    double lo, hi;
    rows[0] = (row){100, NAN, NAN, "100%"};
    for (uint32_t i = 1; i <= study->n_levels; i++) {
        const nib_eval_model *model = nib_study_model(study, i);
        rows[i] = (row){100 * model->same_top, 100 * (model->same_top - model->same_top_err),
                        100 * (model->same_top + model->same_top_err), ""};
        snprintf(rows[i].text, sizeof rows[i].text, "%.1f%% ±%.1f", 100 * model->same_top, 100 * model->same_top_err);
    }
    rows_range(rows, 0, study->n_levels + 1, &lo, &hi);
    row_chart chart = {false, true, "%", "same likeliest next token", 80, {fmin(lo, 78), 100, 0, 0, false}};
    nib_axis_round(&chart.axis);
    svg->height = draw_rows(svg, study, &chart, rows, 4);
}

static bool draw_choice(nib_svg *svg, const nib_study *study, row *rows) {
    double lo, hi;
    if (!study->eval.reference.has_choice) return false;
    for (uint32_t i = 0; i <= study->n_levels; i++) {
        const nib_eval_model *model = nib_study_model(study, i);
        rows[i] = (row){100 * model->accuracy, 100 * (model->accuracy - model->accuracy_err),
                        100 * (model->accuracy + model->accuracy_err), ""};
        snprintf(rows[i].text, sizeof rows[i].text, "%.1f%% ±%.1f", 100 * model->accuracy, 100 * model->accuracy_err);
    }
    rows_range(rows, 0, study->n_levels + 1, &lo, &hi);
    row_chart chart = {false, true, "%", "questions answered right", NAN, {fmax(lo, 0), fmin(hi, 100), 0, 0, false}};
    nib_axis_round(&chart.axis);
    svg->height = draw_rows(svg, study, &chart, rows, 4);
    return true;
}

static bool draw_tensor_error(nib_svg *svg, const nib_study *study, row *rows) {
    double lo, hi;
    rows[0] = (row){NAN, NAN, NAN, ""};
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const nib_quantized *quantized = &study->quantized[i];
        double least = INFINITY, most = 0, squares = 0, bytes = 0;
        for (uint32_t k = 0; k < quantized->n_tensors; k++) {
            const nib_quantized_tensor *tensor = &quantized->tensors[k];
            if (tensor->from == tensor->to || !isfinite(tensor->rel_rmse) || tensor->rel_rmse <= 0) continue;
            const double size = (double)tensor->n_bytes;
            least = fmin(least, tensor->rel_rmse);
            most = fmax(most, tensor->rel_rmse);
            squares += size * tensor->rel_rmse * tensor->rel_rmse;
            bytes += size;
        }
        rows[1 + i] = (row){NAN, NAN, NAN, "n/a"};
        if (most == 0) continue;
        rows[1 + i] = (row){100 * sqrt(squares / bytes), 100 * least, 100 * most, ""};
        snprintf(rows[1 + i].text, sizeof rows[1 + i].text, "%.1f%%", rows[1 + i].value);
    }
    rows_range(rows, 1, study->n_levels + 1, &lo, &hi);
    if (!(lo > 0)) return false;
    row_chart chart = {false, false, "%", "error of a weight (log scale)", NAN, {lo * 0.9, hi * 1.1, 0, 0, true}};
    svg->height = draw_rows(svg, study, &chart, rows, 4);
    return true;
}

/* ---- KL divergence against size -------------------------------------------------------------------------------------- */

/* Positions of labels in order, moved apart to at least `apart`, inside lo..hi. x: (n), increasing. */
static void spread(double *x, uint32_t n, double apart, double lo, double hi) {
    for (uint32_t i = 0; i < n; i++) x[i] = fmax(x[i], i == 0 ? lo : x[i - 1] + apart);
    for (uint32_t i = n; i-- > 0;) x[i] = fmin(x[i], i == n - 1 ? hi : x[i + 1] - apart);
}

static void draw_kld_series(nib_svg *svg, const nib_study *study, const uint32_t *order, const nib_axis *x_axis,
                            const nib_axis *y_axis, unsigned which) {
    static const char *const lines[] = {"s1 thin", "s0", "s2 thin"}, *const dots[] = {"f1", "f0", "f2"};
    double xy[2 * NIB_STUDY_MAX_LEVELS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const nib_eval_model *model = &study->eval.models[order[i]];
        const double value = which == 0 ? model->kld.p99 : which == 1 ? model->kld.mean : model->kld.median;
        if (!isfinite(value)) continue;
        xy[2 * n] = nib_axis_at(x_axis, (double)model->bytes);
        xy[2 * n + 1] = nib_axis_at(y_axis, value);
        n++;
    }
    nib_svg_path(svg, xy, n, false, lines[which]);
    for (uint32_t i = 0; i < n; i++) nib_svg_dot(svg, xy[2 * i], xy[2 * i + 1], which == 1 ? 4.5 : 3, dots[which]);
}

static bool draw_kld(nib_svg *svg, const nib_study *study) {
    uint32_t order[NIB_STUDY_MAX_LEVELS], upward[NIB_STUDY_MAX_LEVELS];
    const uint32_t n = study->n_levels;
    nib_study_order(study, order);
    double lo = INFINITY, hi = 0, labels[NIB_STUDY_MAX_LEVELS], at[NIB_STUDY_MAX_LEVELS];
    size_t longest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const nib_eval_model *model = &study->eval.models[order[i]];
        const double low = model->kld.median > 0 ? model->kld.median : model->kld.mean;
        if (low > 0) lo = fmin(lo, low);
        hi = fmax(hi, fmax(model->kld.p99, model->kld.mean));
        upward[n - 1 - i] = order[i];
        if (strlen(model->format) > longest) longest = strlen(model->format);
    }
    if (!(lo < INFINITY) || !(hi > 0)) return false;
    const double floor_kld = study->eval.noise_floor_kld;
    const bool has_floor = isfinite(floor_kld) && floor_kld > 0;
    if (has_floor) lo = fmin(lo, floor_kld);
    const double top = (double)longest * NIB_SVG_CHARACTER + 30, bottom = top + 230;
    const double smallest = (double)study->eval.models[upward[0]].bytes,
                 largest = (double)study->eval.models[order[0]].bytes;
    const double unit = largest >= 2e9 ? 1e9 : 1e6, room = fmax((largest - smallest) * 0.08, largest * 0.01);
    nib_axis x_axis = {fmax(smallest - room, 0), largest + room, 52, NIB_SVG_WIDTH - 10, false};
    nib_axis y_axis = {lo, hi, bottom, top, true};
    nib_axis_round(&y_axis);
    if (y_axis.lo < 1e-9) y_axis.lo = 1e-9;
    const nib_axis x_units = {x_axis.lo / unit, x_axis.hi / unit, x_axis.from, x_axis.to, false};
    nib_svg_x_axis(svg, &x_units, top, bottom, "");
    nib_svg_y_axis(svg, &y_axis, x_axis.from, x_axis.to, "");
    if (has_floor) {
        const double y = nib_axis_at(&y_axis, floor_kld);
        nib_svg_line(svg, x_axis.from, y, x_axis.to, y, "sr dash");
    }
    for (uint32_t i = 0; i < n; i++)
        labels[i] = at[i] = nib_axis_at(&x_axis, (double)study->eval.models[upward[i]].bytes);
    spread(labels, n, 15.5, x_axis.from + 8, NIB_SVG_WIDTH - 8);
    for (uint32_t i = 0; i < n; i++) {
        const bool over = nib_study_is_over_cliff(study, upward[i]);
        nib_svg_line(svg, labels[i], top - 20, at[i], top - 2, "axis");
        nib_svg_text_up(svg, labels[i] + 4.5, top - 23, over ? "bad" : "", study->eval.models[upward[i]].format);
    }
    for (unsigned which = 0; which < 3; which++) draw_kld_series(svg, study, order, &x_axis, &y_axis, which);
    nib_svg_text(svg, (x_axis.from + x_axis.to) / 2, bottom + 34, NIB_ANCHOR_MIDDLE, "mut",
                 unit == 1e9 ? "file size, GB" : "file size, MB");
    static const char *const names[] = {"99% of tokens are below", "mean", "half are below"};
    static const char *const dots[] = {"f1", "f0", "f2"};
    static const double columns[] = {8, 205, 268};
    for (unsigned which = 0; which < 3; which++) {
        nib_svg_dot(svg, columns[which], bottom + 54, 4.5, dots[which]);
        nib_svg_text(svg, columns[which] + 9, bottom + 58.5, NIB_ANCHOR_START, "", names[which]);
    }
    if (has_floor) {
        nib_svg_line(svg, 2, bottom + 74, 24, bottom + 74, "sr dash");
        nib_svg_text(svg, 30, bottom + 78.5, NIB_ANCHOR_START, "", "noise floor: the original run at its normal speed");
    }
    svg->height = bottom + (has_floor ? 86 : 66);
    return true;
}

/* ---- Divergence of each token ----------------------------------------------------------------------------------------- */

#define TOKEN_BINS 72
static const double token_lo = 1e-7, token_hi = 30; /* nats */

static bool draw_kld_tokens(nib_svg *svg, const nib_study *study) {
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    const double left = nib_picture_label_width(study), height = 40;
    const nib_axis axis = {token_lo, token_hi, left, NIB_SVG_WIDTH - 12, true};
    const double bottom = 8 + height * study->n_levels + 6;
    bool any = false;
    nib_svg_x_axis(svg, &axis, 8, bottom, "");
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const nib_eval_model *model = &study->eval.models[order[i]];
        const double base = 8 + height * (i + 1);
        const bool over = nib_study_is_over_cliff(study, order[i]);
        if ((int32_t)order[i] == study->cliff) nib_picture_cliff_line(svg, base - height + 3);
        nib_svg_text(svg, left - 6, base - 6, NIB_ANCHOR_END, over ? "bad" : "", model->format);
        if (model->kld_tokens == NULL || study->eval.n_scored == 0) continue;
        any = true;
        double counts[TOKEN_BINS] = {0}, most = 1;
        for (uint64_t k = 0; k < study->eval.n_scored; k++) {
            const double value = model->kld_tokens[k];
            const double share = value > token_lo ? log(value / token_lo) / log(token_hi / token_lo) : 0;
            int bin = (int)(fmin(share, 0.9999) * TOKEN_BINS);
            counts[bin]++;
        }
        for (int bin = 0; bin < TOKEN_BINS; bin++) most = fmax(most, counts[bin]);
        double xy[2 * (TOKEN_BINS * 2 + 2)];
        size_t n = 0;
        for (int bin = 0; bin <= TOKEN_BINS; bin++) {
            const double x = axis.from + (axis.to - axis.from) * bin / TOKEN_BINS;
            const double before = bin == 0 ? 0 : counts[bin - 1], after = bin == TOKEN_BINS ? 0 : counts[bin];
            xy[2 * n] = x, xy[2 * n + 1] = base - before / most * (height - 8), n++;
            xy[2 * n] = x, xy[2 * n + 1] = base - after / most * (height - 8), n++;
        }
        nib_svg_path(svg, xy, n, true, over ? "f1 area" : "f0 area");
        nib_svg_path(svg, xy, n, false, over ? "s1 thin" : "s0 thin");
        const double median = nib_axis_at(&axis, model->kld.median), p99 = nib_axis_at(&axis, model->kld.p99);
        nib_svg_line(svg, median, base - height + 8, median, base + 3, over ? "s1" : "s0");
        nib_svg_line(svg, p99, base - height + 8, p99, base + 3, over ? "s1 dash" : "s0 dash");
    }
    nib_svg_text(svg, (axis.from + axis.to) / 2, bottom + 34, NIB_ANCHOR_MIDDLE, "mut",
                 "KL divergence of one token, nats (log scale)");
    svg->height = bottom + 42;
    return any;
}

/* ---- All of them ------------------------------------------------------------------------------------------------------ */

enum { THE_MAP = 11, MOST_ROWS = 24 };

/* Pictures with a row or a panel for every level are no help when there are very many. */
static bool draw(unsigned which, nib_svg *svg, const nib_study *study, row *rows) {
    if (study->n_levels > MOST_ROWS && which != THE_MAP) return false;
    switch (which) {
    case 0:
        draw_size(svg, study, rows);
        return true;
    case 1:
        draw_perplexity(svg, study, rows);
        return true;
    case 2:
        return draw_kld(svg, study);
    case 3:
        draw_same_top(svg, study, rows);
        return true;
    case 4:
        return draw_choice(svg, study, rows);
    case 5:
        return draw_speed(svg, study, rows);
    case 6:
        return nib_draw_next_tokens(svg, study);
    case 7:
        return draw_kld_tokens(svg, study);
    case 8:
        return nib_draw_weights(svg, study, false);
    case 9:
        return nib_draw_weights(svg, study, true);
    case 10:
        return draw_tensor_error(svg, study, rows);
    default:
        return nib_draw_map(svg, study);
    }
}

static const struct {
    const char *file, *id, *question, *help;
} pictures_table[] = {
    {"size.svg", "size", "How much smaller does it get?",
     "The size of each file, and how many bits it spends on a weight. Levels are in order of size; orange ones are "
     "over the cliff."},
    {"perplexity.svg", "perplexity", "Does it still expect the right word?",
     "Perplexity: among how many tokens the model is torn, on average. Further right is worse. The bar is one standard "
     "error; since "
     "all levels read the same text, their errors move together."},
    {"kld.svg", "kld", "How far has its mind moved, for the bytes saved?",
     "KL divergence compares all probabilities of the next token with the original's: 0 is the same, higher is worse. "
     "One step up "
     "is ten times worse."},
    {"same_top.svg", "same-top", "How often does it still pick the same word?",
     "Share of tokens whose likeliest next token is the original's, with one standard error. Left of the dashed line, "
     "80%, is over "
     "the cliff."},
    {"choice.svg", "choice", "Does it still answer questions?",
     "Share of choice questions answered right, with one standard error. Bars that overlap are not a difference."},
    {"speed.svg", "speed", "How fast does it run?",
     "Tokens per second on this machine: reading a prompt is limited by arithmetic, writing an answer by how many "
     "bytes must be "
     "read. The thin bar is the spread of the runs."},
    {"next_tokens.svg", "next-tokens", "What would it say next?",
     "Probability of each next token after the prompt. The outline is the original; a bar that leaves its outline is "
     "damage."},
    {"kld_tokens.svg", "kld-tokens", "Is the damage everywhere, or in a few words?",
     "How many tokens have which divergence: further right is worse. Solid line: half of the tokens are below; dashed: "
     "99% are."},
    {"weights.svg", "weights", "What do the weights look like, before and after?",
     "How many weights have which value. Grey is the original, the line is the level. Almost all weights are close to "
     "zero."},
    {"weights_log.svg", "weights-log", "Where are the outliers?",
     "The same with a logarithmic scale, which shows the rare large weights. Triangles mark the 32 largest; dashed "
     "lines stand at 6 "
     "standard deviations."},
    {"tensor_error.svg", "tensor-error", "How far did the numbers move?",
     "Typical error of a weight as a share of the typical weight. The dot is the whole model, the bar spans its "
     "tensors from best to "
     "worst."},
    {"map.svg", "map", "Bits, symmetry, block: what is each worth?",
     "Every point is one way to store the weights: lower is closer to the original, further left is smaller. A line "
     "joins 2 "
     "to 8 bits of one kind and block. The dashed line is the noise floor."},
};

#define N_PICTURES (sizeof pictures_table / sizeof *pictures_table)
static_assert(N_PICTURES == THE_MAP + 1, "the map comes last");
static_assert(N_PICTURES <= NIB_STUDY_MAX_PICTURES, "callers give room for so many");

static nib_status draw_one(const nib_study *study, unsigned which, row *rows, nib_picture *pictures, uint32_t *n,
                           nib_error *error) {
    nib_svg svg = {0};
    nib_string file = {0}, inlined = {0};
    nib_status status = NIB_OK;
    if (draw(which, &svg, study, rows)) {
        nib_svg_write(&svg, pictures_table[which].id, pictures_table[which].question, pictures_table[which].help, true,
                      &file);
        nib_svg_write(&svg, pictures_table[which].id, pictures_table[which].question, pictures_table[which].help, false,
                      &inlined);
        if (file.failed || inlined.failed) {
            status = nib_fail_memory(error, svg.body.n_bytes);
            goto fail;
        }
        pictures[(*n)++] = (nib_picture){pictures_table[which].file, pictures_table[which].question,
                                         pictures_table[which].help, file.data, inlined.data};
        file = inlined = (nib_string){0};
    }
fail:
    nib_string_fini(&file);
    nib_string_fini(&inlined);
    nib_svg_fini(&svg);
    return status;
}

nib_status nib_study_draw(const nib_study *study, nib_picture *pictures, uint32_t *n, nib_error *error) {
    *n = 0;
    row *rows = nib_alloc((size_t)study->n_levels + 1, sizeof *rows);
    if (rows == NULL) return nib_fail_memory(error, ((uint64_t)study->n_levels + 1) * sizeof *rows);
    nib_status status = NIB_OK;
    for (unsigned which = 0; which < N_PICTURES && status == NIB_OK; which++)
        status = draw_one(study, which, rows, pictures, n, error);
    free(rows);
    if (status != NIB_OK) {
        nib_pictures_fini(pictures, *n);
        *n = 0;
    }
    return status;
}

bool nib_study_picture_at(const nib_study *study, unsigned index, nib_picture *out) {
    nib_svg svg = {0};
    row *rows = nib_alloc((size_t)study->n_levels + 1, sizeof *rows);
    const bool drawn = rows != NULL && index < N_PICTURES && draw(index, &svg, study, rows);
    free(rows);
    nib_svg_fini(&svg);
    if (drawn)
        *out = (nib_picture){pictures_table[index].file, pictures_table[index].question, pictures_table[index].help,
                             NULL, NULL};
    return drawn;
}

void nib_pictures_fini(nib_picture *pictures, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        free(pictures[i].standalone);
        free(pictures[i].inlined);
        pictures[i] = (nib_picture){0};
    }
}
