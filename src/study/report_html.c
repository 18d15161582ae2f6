/* report.html: one file, no scripts, nothing loaded from elsewhere. It reads from the verdict down to how it was measured.
 * Whatever comes from a model or a file goes through nib_markup_escape. */
#include "study/markup.h"
#include "study/parts.h"
#include "study/svg.h"

#include "nibble/cpu.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static const char page_css[] =
    ":root{color-scheme:light dark;--ink:#1a1a1a;--soft:#555;--page:#f6f6f4;--card:#fff;--line:#dcdcd8;--good:#00694d;"
    "--bad:#a83f00;--link:#005a8f}"
    "@media(prefers-color-scheme:dark){:root{--ink:#ececec;--soft:#b4b4b4;--page:#101214;--card:#17191c;--line:#34383d;"
    "--good:#4fd1a9;--bad:#ffb36b;--link:#7cc4f0}}"
    "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}"
    "body{margin:0;background:var(--page);color:var(--ink);font:17px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Noto Sans',sans-serif;overflow-wrap:break-word}"
    "main{max-width:1240px;margin:0 auto;padding:8px}h1{font-size:1.7rem;line-height:1.2;margin:.6em 0 .2em}"
    "h2{font-size:1.3rem;margin:2em 0 .6em}h3{font-size:1.05rem;line-height:1.3;margin:0 0 .5em}"
    "p{margin:.5em 0;max-width:46em}a{color:var(--link)}"
    ".soft{color:var(--soft)}.small{font-size:.88rem}.good{color:var(--good);font-weight:600}"
    ".bad{color:var(--bad);font-weight:600}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 8px}"
    ".verdict{border-left:6px solid var(--good);padding:14px 18px}.verdict p{font-size:1.08rem}"
    ".scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}"
    ".scroll:focus-visible{outline:3px solid var(--link)}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.86rem}"
    "td i{color:var(--soft);font-style:normal;font-size:.82em}"
    "caption{text-align:left;padding:10px 12px 4px;color:var(--soft)}"
    "th,td{padding:7px 8px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}"
    "thead "
    "th{border-top:0;vertical-align:bottom;white-space:normal}th:first-child{text-align:left;position:sticky;left:0;"
    "background:var(--card)}tr.use th,tr.use td{background:color-mix(in srgb,var(--good) 12%,var(--card))}"
    ".tag{display:block;font-size:.78rem;font-weight:600}"
    ".grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));align-items:start}"
    "figure{margin:0;min-width:0}figure svg{display:block;width:100%;height:auto}"
    "figcaption{color:var(--soft);font-size:.92rem;margin-top:.5em}"
    "details{margin:8px 0}summary{cursor:pointer;font-weight:600;padding:4px 0}"
    "details dl{margin:.4em 0 0}dt{font-weight:600;margin-top:.7em}dd{margin:.1em 0 0;padding-left:.8em;"
    "border-left:3px solid var(--line);white-space:pre-wrap}dd.note{border:0;white-space:normal;font-size:.88rem}"
    ".facts{display:grid;grid-template-columns:minmax(0,1fr);gap:0 1.2em}.facts dt{margin-top:.5em}.facts dd{border:0;"
    "padding:0;white-space:normal;overflow-wrap:anywhere}"
    "@media(min-width:700px){main{padding:20px 28px}.card{padding:14px}.facts{grid-template-columns:13em minmax(0,1fr)}"
    ".facts dd{margin-top:.5em}}";

static void add(nib_string *out, const char *text) {
    nib_string_add(out, text, strlen(text));
}

/* <p> for every line of the verdict; the last, the rules, in small print. */
static void write_verdict(nib_string *out, const nib_study *study) {
    add(out, "<section class=\"card verdict\" aria-labelledby=\"verdict\">\n<h2 id=\"verdict\" "
             "style=\"margin-top:0\">The verdict</h2>\n");
    const char *line = study->verdict;
    while (*line != '\0') {
        const size_t n = strcspn(line, "\n");
        add(out, line[n] == '\0' ? "<p class=\"soft small\" style=\"font-size:.88rem\">" : "<p>");
        nib_markup_escape_n(out, line, n);
        add(out, "</p>\n");
        line += n + (line[n] == '\n');
    }
    add(out, "</section>\n");
}

/* ---- The table ------------------------------------------------------------------------------------------------------- */

static void write_speed_cell(nib_string *out, const nib_bench_result *result) {
    char rate[32], spread[32];
    if (result == NULL)
        add(out, "<td>–</td>");
    else if (result->n_runs > 1)
        nib_string_addf(out, "<td>%s <i>±%s</i></td>", nib_text_of_rate(rate, result->tokens_per_s),
                        nib_text_of_error(spread, result->stddev));
    else
        nib_string_addf(out, "<td>%s</td>", nib_text_of_rate(rate, result->tokens_per_s));
}

static void write_row(nib_string *out, const nib_study *study, uint32_t index) {
    const nib_eval_model *model = nib_study_model(study, index);
    const bool use = index > 0 && study->recommended == (int32_t)index - 1;
    const bool over = index > 0 && nib_study_is_over_cliff(study, index - 1);
    char a[32], b[32], c[32];
    nib_string_addf(out, "<tr%s><th scope=\"row\">", use ? " class=\"use\"" : "");
    nib_markup_escape(out, nib_study_label(study, index));
    if (use) add(out, "<span class=\"tag good\">use this one</span>");
    if (over)
        add(out, study->cliff == (int32_t)index - 1 ? "<span class=\"tag bad\">the cliff</span>"
                                                    : "<span class=\"tag bad\">over the cliff</span>");
    nib_string_addf(out, "</th><td>%s</td><td>%.2f</td>", nib_text_of_bytes(a, (double)model->bytes), model->bpw);
    nib_string_addf(out, "<td>%.1f×</td>", (double)study->eval.reference.bytes / fmax((double)model->bytes, 1));
    if (model->ppl < 10)
        nib_string_addf(out, "<td>%.4f <i>±%s</i></td>", model->ppl, nib_text_of_error(b, model->ppl_err));
    else
        nib_string_addf(out, "<td>%s <i>±%s</i></td>", nib_text_of_number(a, model->ppl),
                        nib_text_of_error(b, model->ppl_err));
    if (index == 0)
        add(out, "<td>0</td><td>0</td><td>100%</td>");
    else
        nib_string_addf(out, "<td>%s <i>±%s</i></td><td>%s</td><td>%.1f%% <i>±%.1f</i></td>",
                        nib_text_of_number(a, model->kld.mean), nib_text_of_error(c, model->kld.err),
                        nib_text_of_number(b, model->kld.p99), 100 * model->same_top, 100 * model->same_top_err);
    if (study->eval.reference.has_choice)
        nib_string_addf(out, "<td>%.1f%% <i>±%.1f</i></td>", 100 * model->accuracy, 100 * model->accuracy_err);
    if (study->bench.n > 0) write_speed_cell(out, nib_study_speed(study, index, "pp"));
    if (study->bench.n > 0) write_speed_cell(out, nib_study_speed(study, index, "tg"));
    if (study->n_prompts > 0)
        nib_string_addf(out, "<td>%u of %u</td>", nib_study_broken_answers(study, index),
                        study->n_prompts * study->n_tries);
    add(out, "</tr>\n");
}

static void write_table(nib_string *out, const nib_study *study) {
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    add(out,
        "<h2 id=\"numbers\">The numbers</h2>\n<div class=\"scroll\" role=\"region\" tabindex=\"0\" "
        "aria-labelledby=\"numbers\">\n<table><caption>Largest file first. ± is one standard error; for speeds it is "
        "the spread of the runs.</caption>\n<thead><tr><th scope=\"col\">Level</th><th scope=\"col\">File</th>"
        "<th scope=\"col\">Bits per weight</th><th scope=\"col\">Smaller</th><th scope=\"col\">Perplexity</th>"
        "<th scope=\"col\">KL divergence, mean</th><th scope=\"col\">KL divergence, 99%</th>"
        "<th scope=\"col\">Same next token</th>");
    if (study->eval.reference.has_choice) add(out, "<th scope=\"col\">Questions right</th>");
    if (study->bench.n > 0)
        add(out, "<th scope=\"col\">Reading, tokens/s</th><th scope=\"col\">Writing, tokens/s</th>");
    if (study->n_prompts > 0) add(out, "<th scope=\"col\">Answers that looped or were empty</th>");
    add(out, "</tr></thead>\n<tbody>\n");
    write_row(out, study, 0);
    for (uint32_t i = 0; i < study->n_levels; i++) write_row(out, study, 1 + order[i]);
    add(out, "</tbody></table>\n</div>\n");
}

/* ---- Pictures -------------------------------------------------------------------------------------------------------- */

static void write_pictures(nib_string *out, const nib_study *study, const nib_picture *pictures, uint32_t n) {
    add(out, "<h2 id=\"pictures\">The pictures</h2>\n<div class=\"grid\">\n");
    for (uint32_t i = 0; i < n; i++) {
        add(out, "<figure class=\"card\">\n<h3>");
        nib_markup_escape(out, pictures[i].question);
        add(out, "</h3>\n");
        add(out, pictures[i].inlined);
        add(out, "<figcaption>");
        nib_markup_escape(out, pictures[i].help);
        if (strcmp(pictures[i].file, "next_tokens.svg") == 0 && study->probe != NULL) {
            add(out, " The prompt: <q>");
            nib_markup_escape(out, study->probe);
            add(out, "</q>.");
        }
        nib_string_addf(out, " <a href=\"%s\">Picture alone</a></figcaption>\n</figure>\n", pictures[i].file);
    }
    add(out, "</div>\n");
}

/* ---- Talk ------------------------------------------------------------------------------------------------------------ */

static const char *stop_words(nib_stop stop) {
    switch (stop) {
    case NIB_STOP_LIMIT:
        return "Cut off at the limit of tokens.";
    case NIB_STOP_LOOP:
        return "It went round in circles and was stopped.";
    case NIB_STOP_EMPTY:
        return "It ended without an answer.";
    default:
        return "";
    }
}

static void write_try(nib_string *out, const nib_try *try) {
    nib_text reasoning, answer;
    nib_study_split_answer(try->text != NULL ? try->text : "", &reasoning, &answer);
    if (reasoning.n_bytes > 0) {
        add(out, "<dd class=\"soft\">");
        nib_markup_escape_n(out, reasoning.data, reasoning.n_bytes);
        add(out, "</dd>\n");
    }
    add(out, "<dd>");
    while (answer.n_bytes > 0 && (answer.data[0] == '\n' || answer.data[0] == ' ')) {
        answer.data++;
        answer.n_bytes--;
    }
    nib_markup_escape_n(out, answer.data, answer.n_bytes);
    add(out, "</dd>\n");
    if (*stop_words(try->stop) != '\0')
        nib_string_addf(out, "<dd class=\"note %s\">%s</dd>\n", try->stop == NIB_STOP_LIMIT ? "soft" : "bad",
                        stop_words(try->stop));
}

static void write_answers(nib_string *out, const nib_study *study, uint32_t prompt, uint32_t model) {
    const nib_try *tries = &study->talk[((size_t)prompt * (1 + study->n_levels) + model) * study->n_tries];
    const nib_try *original = &study->talk[(size_t)prompt * (1 + study->n_levels) * study->n_tries];
    add(out, "<dt>");
    nib_markup_escape(out, nib_study_label(study, model));
    const bool same = model > 0 && study->n_tries == 1 && tries->text != NULL && original->text != NULL &&
                      strcmp(tries->text, original->text) == 0;
    add(out, same ? " <span class=\"soft small\">the same, word for word</span></dt>\n" : "</dt>\n");
    if (same) return;
    for (uint32_t i = 0; i < study->n_tries; i++) write_try(out, &tries[i]);
}

static void write_talk(nib_string *out, const nib_study *study) {
    if (study->n_prompts == 0 || study->talk == NULL) return;
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    add(out, "<h2 id=\"talk\">Just talk to it</h2>\n<p>The same prompts to every level. ");
    add(out, study->n_tries == 1 ? "Each always says its likeliest next token.</p>\n"
                                 : "Answers are drawn by chance.</p>\n");
    for (uint32_t prompt = 0; prompt < study->n_prompts; prompt++) {
        nib_string_addf(out, "<details class=\"card\"%s><summary>", prompt == 0 ? " open" : "");
        nib_markup_escape(out, study->prompts[prompt]);
        if (study->prompt_is_raw[prompt]) add(out, " <span class=\"soft small\">(to be continued)</span>");
        add(out, "</summary>\n<dl>\n");
        write_answers(out, study, prompt, 0);
        for (uint32_t i = 0; i < study->n_levels; i++) write_answers(out, study, prompt, 1 + order[i]);
        add(out, "</dl></details>\n");
    }
}

/* ---- How it was measured ----------------------------------------------------------------------------------------------- */

static void fact(nib_string *out, const char *name, const char *text) {
    nib_string_addf(out, "<dt>%s</dt><dd>", name);
    nib_markup_escape(out, text);
    add(out, "</dd>\n");
}

static void NIB_PRINTF(3, 4) factf(nib_string *out, const char *name, const char *format, ...) {
    char text[1536];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fact(out, name, text);
}

static void write_method(nib_string *out, const nib_study *study) {
    const nib_eval *eval = &study->eval;
    char a[32], b[32], when[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc) != NULL) strftime(when, sizeof when, "%Y-%m-%d %H:%M UTC", &utc);
    add(out, "<h2 id=\"method\">How it was measured</h2>\n<div class=\"card\"><dl class=\"facts\">\n");
    factf(out, "Model", "%s, %s, %.2f bits per weight, hash %s", study->name,
          nib_text_of_bytes(a, (double)eval->reference.bytes), eval->reference.bpw, eval->reference.hash);
    factf(out, "Text", "%s, %llu tokens, sha256 %s", eval->text_file, (unsigned long long)eval->n_tokens,
          eval->text_sha256);
    factf(out, "Perplexity, KL divergence",
          "%u chunks of %u tokens; the second half of each is scored, %llu tokens in all. The original is computed "
          "exactly "
          "in 32-bit floats, the levels as they really run.",
          eval->n_chunks, eval->n_ctx, (unsigned long long)eval->n_scored);
    if (isfinite(eval->noise_floor_kld))
        factf(out, "Noise floor",
              "KL divergence %s, same next token %s: the original as it really runs against itself computed exactly. "
              "What is "
              "below it is not the quantization's doing.",
              nib_text_of_number(a, eval->noise_floor_kld), nib_text_of_percent(b, eval->noise_floor_same_top));
    if (eval->reference.has_choice)
        factf(out, "Questions", "%u of %s; the choice with the largest sum of log-probabilities is the answer.",
              eval->n_questions, eval->task);
    if (study->bench.n > 0)
        factf(out, "Speed",
              "%u threads, up to %u runs of each test, rounds interleaved over the levels; memory reads at %.1f GB/s.",
              study->bench.results[0].threads, study->bench.results[0].n_runs,
              study->bench.ceilings.read_bytes_per_s / 1e9);
    factf(out, "Machine", "%s, %u cores, instruction set %s", nib_cpu_name(), nib_cpu_cores(), nib_cpu_level());
    factf(out, "Took", "%s, at most %s of memory beyond the mapped files", nib_text_of_seconds(a, study->seconds),
          nib_text_of_bytes(b, (double)study->peak_anonymous_bytes));
    factf(out, "Made by", "nibble %s, %s", nib_version(), when);
    add(out,
        "</dl></div>\n<h2 id=\"words\">What the words mean</h2>\n<div class=\"card\"><dl class=\"facts\">\n"
        "<dt>Level</dt><dd>A way to store the weights with fewer bits. Each weight is rounded to one of a few values; "
        "a "
        "scale is kept for every small block of them.</dd>\n"
        "<dt>Perplexity</dt><dd>Among how many equally likely tokens the model seems to choose, on average, when it "
        "reads the text. It looks only at the token that really came next.</dd>\n"
        "<dt>KL divergence</dt><dd>How far the probabilities of <em>all</em> next tokens have moved from the "
        "original's, "
        "in nats. 0 is no difference. Compare it only between levels of one model.</dd>\n"
        "<dt>Same next token</dt><dd>How often the likeliest next token is still the original's.</dd>\n"
        "<dt>Cliff</dt><dd>Where going smaller stops costing little and starts costing nearly everything.</dd>\n"
        "</dl></div>\n<p class=\"small soft\">All figures for programs: <a "
        "href=\"report.json\">report.json</a>.</p>\n");
}

nib_status nib_study_write_html(const nib_study *study, const nib_picture *pictures, uint32_t n_pictures,
                                nib_string *out, nib_error *error) {
    char large[32], small[32];
    add(out, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>");
    nib_markup_escape(out, study->name);
    add(out, ": what quantization cost</title>\n<style>");
    add(out, page_css);
    add(out, nib_svg_css());
    add(out, "</style>\n</head>\n<body>\n<main>\n<header>\n<h1>");
    nib_markup_escape(out, study->name);
    add(out, ": what quantization cost</h1>\n<p class=\"soft\">");
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    nib_study_order(study, order);
    nib_string_addf(out, "One model of %s, made smaller in %u %s, down to %s, and measured.</p>\n</header>\n",
                    nib_text_of_bytes(large, (double)study->eval.reference.bytes), study->n_levels,
                    study->n_levels == 1 ? "way" : "ways",
                    nib_text_of_bytes(small, (double)study->eval.models[order[study->n_levels - 1]].bytes));
    write_verdict(out, study);
    write_table(out, study);
    write_pictures(out, study, pictures, n_pictures);
    write_talk(out, study);
    write_method(out, study);
    add(out, "</main>\n</body>\n</html>\n");
    return out->failed ? nib_fail_memory(error, out->n_bytes) : NIB_OK;
}
