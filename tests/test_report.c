/* The report on invented data: pictures and page are well-formed whatever a model says, the document parses, and the rules
 * of the verdict hold. */
#include "report_sample.h"
#include "study/markup.h"
#include "study/parts.h"
#include "study/svg.h"
#include "unit.h"

#include <ctype.h>
#include <jansson.h>

#define N_SAMPLE (sizeof sample_levels / sizeof *sample_levels)

/* ---- A checker of tags: every element closed in order, no stray "<", attributes quoted, only known entities ----------- */

static bool is_void(const char *name) {
    return strcmp(name, "meta") == 0 || strcmp(name, "!doctype") == 0;
}

static const char *skip_tag(const char *at, bool *self_closed) {
    char quote = '\0';
    *self_closed = false;
    for (; *at != '\0'; at++) {
        if (quote == '\0' && *at == '<') return NULL;
        if (quote == '\0' && *at == '>') {
            *self_closed = at[-1] == '/';
            return at + 1;
        }
        if (quote == '\0' && *at == '"')
            quote = '"';
        else if (*at == quote)
            quote = '\0';
    }
    return NULL;
}

static bool entity_is_known(const char *at) {
    static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(at, known[i], strlen(known[i])) == 0) return true;
    return false;
}

/* NULL, or where it breaks. */
static const char *find_break(const char *text) {
    static char open[64][32];
    unsigned depth = 0;
    for (const char *at = text; *at != '\0';) {
        if (*at == '&' && !entity_is_known(at)) return at;
        if (*at != '<') {
            at++;
            continue;
        }
        const char *tag = at;
        const bool closes = at[1] == '/';
        char name[32] = "";
        at += closes ? 2 : 1;
        for (size_t n = 0; n < sizeof name - 1 && (isalnum((unsigned char)*at) || *at == '!'); at++)
            name[n++] = *at, name[n] = '\0';
        bool self_closed;
        at = skip_tag(at, &self_closed);
        if (at == NULL || name[0] == '\0') return tag;
        if (closes) {
            if (depth == 0 || strcmp(open[--depth], name) != 0) return tag;
        } else if (!self_closed && !is_void(name)) {
            if (depth == 64) return tag;
            strcpy(open[depth++], name);
            if (strcmp(name, "style") == 0) at = strstr(at, "</style>");
        }
    }
    return depth == 0 ? NULL : "unclosed element";
}

static void assert_well_formed(const char *what, const char *text) {
    const char *at = find_break(text);
    if (at != NULL) fail_msg("%s is broken at: %.80s", what, at);
    assert_null(strstr(text, "<script"));
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf\""));
    assert_null(strchr(text, '\x01'));
}

static void test_checker_finds_breaks(void **state) {
    (void)state;
    assert_null(find_break("<a><b x=\"<\"/>&amp;</a>"));
    assert_non_null(find_break("<a><b></a></b>"));
    assert_non_null(find_break("<a>"));
    assert_non_null(find_break("<a>&nbsp;</a>"));
    assert_non_null(find_break("a < b"));
}

/* ---- Markup and axes ----------------------------------------------------------------------------------------------------- */

static void test_escape(void **state) {
    (void)state;
    nib_string out = {0};
    nib_markup_escape(&out, "a<b>&\"'\n\x01\xff\xed\xa0\x80é\xef\xbf\xbf");
    assert_string_equal(out.data,
                        "a&lt;b&gt;&amp;&quot;&#39;\n\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                        "é\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    nib_string_fini(&out);
}

static void test_numbers(void **state) {
    (void)state;
    char text[32];
    assert_string_equal(nib_text_of_bytes(text, 11683104), "11.7 MB");
    assert_string_equal(nib_text_of_bytes(text, 999), "999 bytes");
    assert_string_equal(nib_text_of_bytes(text, 1.594e11), "159 GB");
    assert_string_equal(nib_text_of_number(text, 1.54370), "1.54");
    assert_string_equal(nib_text_of_number(text, 0.002714), "0.00271");
    assert_string_equal(nib_text_of_number(text, 0.0000437), "0.000044");
    assert_string_equal(nib_text_of_number(text, 8706.4), "8706");
    assert_string_equal(nib_text_of_number(text, NAN), "n/a");
    assert_string_equal(nib_text_of_error(text, 0.01321), "0.013");
    assert_string_equal(nib_text_of_seconds(text, 125), "2 min 5 s");
    assert_string_equal(nib_text_of_percent(text, 0.96546), "96.5%");
}

static void test_axes(void **state) {
    (void)state;
    double ticks[8];
    nib_axis linear = {0, 11.7, 0, 100, false};
    nib_axis_round(&linear);
    assert_true(linear.lo == 0 && linear.hi >= 11.7 && linear.hi <= 15);
    unsigned n = nib_axis_ticks(&linear, 6, ticks);
    assert_in_range(n, 3, 6);
    for (unsigned i = 1; i < n; i++) assert_true(fabs(ticks[i] - ticks[i - 1] - ticks[1] + ticks[0]) < 1e-9);
    nib_axis decades = {3e-5, 5, 100, 0, true};
    nib_axis_round(&decades);
    assert_true(fabs(decades.lo / 1e-5 - 1) < 1e-9 && fabs(decades.hi / 10 - 1) < 1e-9);
    n = nib_axis_ticks(&decades, 8, ticks);
    assert_int_equal(n, 7);
    assert_true(fabs(nib_axis_at(&decades, 1e-5) - 100) < 1e-9 && fabs(nib_axis_at(&decades, 10)) < 1e-9);
    assert_true(fabs(nib_axis_at(&decades, 0.01) - 50) < 1e-9); /* halfway between 1e-5 and 1e1 */
    assert_true(nib_axis_at(&decades, 0) == 100 && nib_axis_at(&decades, NAN) == 100);
}

/* ---- The verdict -------------------------------------------------------------------------------------------------------- */

typedef struct verdict_case {
    const char *why;
    sample_level levels[4];
    uint32_t n;
    int32_t cliff, recommended;
} verdict_case;

static const verdict_case verdict_cases[] = {
    {"nothing breaks", {{"a", 400, 1.5, 0.001, 0.99, 0.9, 1}, {"b", 300, 1.5, 0.09, 0.96, 0.9, 1}}, 2, -1, 1},
    {"same-top just below 80%", {{"a", 400, 1.5, 0.01, 0.97, 0.9, 1}, {"b", 300, 1.5, 0.05, 0.799, 0.9, 1}}, 2, 1, 0},
    {"same-top at 80%", {{"a", 400, 1.5, 0.05, 0.97, 0.9, 1}, {"b", 300, 1.5, 0.05, 0.80, 0.9, 1}}, 2, -1, 0},
    {"divergence more than 8 times",
     {{"a", 400, 1.5, 0.02, 0.97, 0.9, 1}, {"b", 300, 1.5, 0.17, 0.9, 0.9, 1}},
     2,
     1,
     0},
    {"divergence 8 times, not more",
     {{"a", 400, 1.5, 0.125, 0.97, 0.9, 1}, {"b", 300, 1.5, 1.0, 0.9, 0.9, 1}},
     2,
     -1,
     0},
    {"more than 8 times but not above 0.1",
     {{"a", 400, 1.5, 0.001, 0.97, 0.9, 1}, {"b", 300, 1.5, 0.1, 0.9, 0.9, 1}},
     2,
     -1,
     0},
    {"order of size, not of asking",
     {{"small", 100, 9, 2, 0.3, 0.3, 1}, {"big", 400, 1.5, 0.001, 0.99, 0.9, 1}, {"mid", 300, 1.5, 0.05, 0.96, 0.9, 1}},
     3,
     0,
     2},
    {"the first over it counts",
     {{"a", 400, 1.5, 0.01, 0.97, 0.9, 1}, {"b", 300, 2, 0.5, 0.79, 0.9, 1}, {"c", 200, 1.5, 0.01, 0.99, 0.9, 1}},
     3,
     1,
     0},
    {"even the largest is over it", {{"a", 400, 9, 3, 0.2, 0.3, 1}, {"b", 300, 9, 4, 0.1, 0.3, 1}}, 2, 0, -1},
    {"alone, with a divergence but no larger level", {{"a", 400, 1.6, 0.3, 0.85, 0.9, 1}}, 1, -1, -1},
    {"answers significantly worse",
     {{"a", 400, 1.5, 0.01, 0.97, 0.94, 1}, {"b", 300, 1.5, 0.05, 0.96, 0.80, 1}},
     2,
     -1,
     0},
};

static void test_verdict_rules(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof verdict_cases / sizeof *verdict_cases; i++) {
        const verdict_case *at = &verdict_cases[i];
        nib_study study;
        sample_study(&study, at->levels, at->n);
        for (uint32_t k = 0; k < at->n; k++)
            study.eval.models[k].mcnemar_p = at->levels[k].accuracy == 0.80 ? 0.001 : 0.9;
        nib_study_judge(&study);
        if (study.cliff != at->cliff || study.recommended != at->recommended)
            fail_msg("%s: cliff %d, recommended %d", at->why, study.cliff, study.recommended);
        assert_non_null(strstr(study.verdict, nib_study_recommended_rule())); /* the last words: nothing was cut */
        nib_study_fini(&study);
    }
}

static void test_over_cliff_is_everything_smaller(void **state) {
    (void)state;
    nib_study study;
    sample_study(&study, verdict_cases[7].levels, 3);
    nib_study_judge(&study);
    assert_false(nib_study_is_over_cliff(&study, 0));
    assert_true(nib_study_is_over_cliff(&study, 1));
    assert_true(nib_study_is_over_cliff(&study, 2));
    nib_study_fini(&study);
}

static void test_split_answer(void **state) {
    (void)state;
    nib_text reasoning, answer;
    nib_study_split_answer("\n<think>a</think>b", &reasoning, &answer);
    assert_int_equal(reasoning.n_bytes, 1);
    assert_string_equal(answer.data, "b");
    nib_study_split_answer("<think>never ends", &reasoning, &answer);
    assert_int_equal(reasoning.n_bytes, 10);
    assert_int_equal(answer.n_bytes, 0);
    nib_study_split_answer("b <think>", &reasoning, &answer);
    assert_int_equal(reasoning.n_bytes, 0);
    assert_int_equal(answer.n_bytes, 9);
}

/* ---- Pictures, page, document --------------------------------------------------------------------------------------------- */

static void test_pictures(void **state) {
    (void)state;
    nib_study study;
    nib_picture pictures[NIB_STUDY_MAX_PICTURES];
    uint32_t n = 0;
    sample_study(&study, sample_levels, N_SAMPLE);
    nib_study_judge(&study);
    assert_int_equal(nib_study_draw(&study, pictures, &n, NULL), NIB_OK);
    assert_int_equal(n, 11);
    for (uint32_t i = 0; i < n; i++) {
        assert_well_formed(pictures[i].file, pictures[i].standalone);
        assert_non_null(strstr(pictures[i].standalone, "role=\"img\""));
        assert_non_null(strstr(pictures[i].standalone, "<title "));
        assert_non_null(strstr(pictures[i].standalone, "<style>"));
        assert_null(strstr(pictures[i].inlined, "<style>"));
        if (strcmp(pictures[i].file, "weights.svg") != 0) assert_non_null(strstr(pictures[i].standalone, "q4_k_m"));
    }
    nib_pictures_fini(pictures, n);
    nib_study_fini(&study);
}

/* Values at the edges of what a picture can show: nothing scored, zero divergence, one level, no questions, no runs. */
static void test_pictures_of_little(void **state) {
    (void)state;
    static const sample_level one[] = {{"<&>", 100, INFINITY, 0, 1, 0, 0}};
    nib_study study;
    nib_picture pictures[NIB_STUDY_MAX_PICTURES];
    nib_string page = {0};
    uint32_t n = 0;
    sample_study(&study, one, 1);
    study.eval.reference.has_choice = study.eval.models[0].has_choice = false;
    study.eval.models[0].kld = (nib_distribution){0};
    study.eval.noise_floor_kld = study.eval.noise_floor_same_top = NAN;
    study.eval.models[0].ppl_err = NAN;
    for (uint32_t i = 0; i < study.bench.n; i++) study.bench.results[i].tokens_per_s = NAN;
    for (uint32_t i = 0; i < 3; i++) study.quantized[0].tensors[i].rel_rmse = NAN;
    study.weights[1].n_top = 0;
    nib_study_judge(&study);
    assert_int_equal(nib_study_draw(&study, pictures, &n, NULL), NIB_OK);
    for (uint32_t i = 0; i < n; i++) {
        assert_well_formed(pictures[i].file, pictures[i].standalone);
        assert_string_not_equal(pictures[i].file, "choice.svg");
        assert_string_not_equal(pictures[i].file, "speed.svg");
        assert_string_not_equal(pictures[i].file, "tensor_error.svg");
    }
    assert_int_equal(nib_study_write_html(&study, pictures, n, &page, NULL), NIB_OK);
    assert_well_formed("page", page.data);
    nib_string_fini(&page);
    nib_pictures_fini(pictures, n);
    nib_study_fini(&study);
}

static void test_page(void **state) {
    (void)state;
    nib_study study;
    nib_picture pictures[NIB_STUDY_MAX_PICTURES];
    nib_string page = {0};
    uint32_t n = 0;
    sample_study(&study, sample_levels, N_SAMPLE);
    strcpy(study.name, "<i>demo</i>");
    nib_study_judge(&study);
    assert_int_equal(nib_study_draw(&study, pictures, &n, NULL), NIB_OK);
    assert_int_equal(nib_study_write_html(&study, pictures, n, &page, NULL), NIB_OK);
    assert_well_formed("page", page.data);
    assert_null(strstr(page.data, "<i>demo"));
    assert_non_null(strstr(page.data, "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp;"));
    assert_null(strstr(page.data, "src=")); /* nothing is loaded from elsewhere */
    assert_null(strstr(page.data, "url("));
    assert_non_null(strstr(page.data, "use this one"));
    assert_non_null(strstr(page.data, "the cliff"));
    assert_non_null(strstr(page.data, "went round in circles"));
    for (uint32_t i = 0; i < n; i++) assert_non_null(strstr(page.data, pictures[i].inlined));
    nib_string_fini(&page);
    nib_pictures_fini(pictures, n);
    nib_study_fini(&study);
}

static void test_document(void **state) {
    (void)state;
    nib_study study;
    const char *text = NULL;
    size_t n_bytes = 0;
    sample_study(&study, sample_levels, N_SAMPLE);
    for (uint32_t i = 0; i < study.n_levels; i++) study.quantized[i].recipe = nib_recipe_find("q4_0", NULL);
    nib_study_judge(&study);
    nib_json *json = nib_json_new();
    nib_study_write_json(&study, json);
    assert_int_equal(nib_json_text(json, &text, &n_bytes, NULL), NIB_OK);
    json_error_t where;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &where);
    if (root == NULL) fail_msg("%s at %d", where.text, where.position);
    assert_string_equal(json_string_value(json_object_get(root, "schema")), "nibble.study/1");
    assert_string_equal(json_string_value(json_object_get(root, "cliff")), "q2_k");
    assert_string_equal(json_string_value(json_object_get(root, "recommended")), "q3_k_m");
    assert_int_equal(json_array_size(json_object_get(root, "pictures")), 11);
    const json_t *levels = json_object_get(root, "levels");
    assert_int_equal(json_array_size(levels), N_SAMPLE);
    for (size_t i = 0; i < N_SAMPLE; i++) {
        static const char *const parts[] = {"quantize", "inspect", "eval", "bench"};
        const json_t *level = json_array_get(levels, i);
        assert_string_equal(json_string_value(json_object_get(level, "level")), sample_levels[i].name);
        for (size_t k = 0; k < 4; k++) {
            char schema[32];
            snprintf(schema, sizeof schema, "nibble.%s/1", parts[k]);
            assert_string_equal(json_string_value(json_object_get(json_object_get(level, parts[k]), "schema")), schema);
        }
        assert_int_equal(json_array_size(json_object_get(json_object_get(level, "eval"), "models")), 1);
        assert_int_equal(json_array_size(json_object_get(json_object_get(level, "bench"), "results")), 2);
    }
    const json_t *answer =
        json_array_get(json_object_get(json_array_get(json_object_get(root, "talk"), 2), "answers"), 0);
    const json_t *try = json_array_get(json_object_get(answer, "tries"), 0);
    assert_non_null(strstr(json_string_value(json_object_get(try, "reasoning")), "<script>"));
    assert_string_equal(json_string_value(json_object_get(try, "stopped")), "eos");
    json_decref(root);
    nib_json_free(json);
    nib_study_fini(&study);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checker_finds_breaks),
        cmocka_unit_test(test_escape),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_axes),
        cmocka_unit_test(test_verdict_rules),
        cmocka_unit_test(test_over_cliff_is_everything_smaller),
        cmocka_unit_test(test_split_answer),
        cmocka_unit_test(test_pictures),
        cmocka_unit_test(test_pictures_of_little),
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_document),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
