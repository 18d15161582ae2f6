/* The map of the grid family: drawn from a study of all members, and only from one with a good part of them. */
#include "unit.h"

#include "study/parts.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned count(const char *text, const char *part) {
    unsigned n = 0;
    for (; (text = strstr(text, part)) != NULL; text += strlen(part)) n++;
    return n;
}

/* An invented study of every member; half a bit more halves the divergence. */
static nib_study make_study(void) {
    const nib_recipe *levels[NIB_STUDY_MAX_LEVELS] = {NULL};
    nib_study study = {.cliff = -1, .recommended = -1};
    study.n_levels = nib_study_levels("grid", levels, NIB_STUDY_MAX_LEVELS);
    assert_int_equal(study.n_levels, 84);
    study.eval.models = calloc(study.n_levels, sizeof *study.eval.models);
    assert_non_null(study.eval.models);
    study.eval.noise_floor_kld = 1e-4;
    for (uint32_t i = 0; i < study.n_levels; i++) {
        nib_eval_model *model = &study.eval.models[i];
        snprintf(model->format, sizeof model->format, "%s", nib_recipe_name(levels[i]));
        model->bpw = nib_format_bpw(nib_recipe_format(levels[i]));
        model->bytes = (uint64_t)(model->bpw * 1e6);
        model->kld.mean = 10 * exp2(-2 * model->bpw);
        model->same_top = 0.99;
    }
    return study;
}

static void test_whole_family(void **state) {
    (void)state;
    nib_study study = make_study();
    nib_picture pictures[NIB_STUDY_MAX_PICTURES];
    uint32_t n = 0;
    assert_int_equal(nib_study_draw(&study, pictures, &n, NULL), NIB_OK);
    assert_int_equal(n, 1); /* no rows for 84 levels */
    assert_string_equal(pictures[0].file, "map.svg");
    const char *svg = pictures[0].standalone;
    assert_int_equal(count(svg, "<circle"),
                     21 + 1); /* 7 numbers of bits and 3 kinds with blocks of 32, and the legend */
    assert_int_equal(count(svg, "<path class=\"s0 thin\""), 4);
    assert_int_equal(count(svg, "<path class=\"f2\""), 2 * 7); /* triangles and diamonds */
    assert_int_equal(count(svg, "nan"), 0);
    nib_pictures_fini(pictures, n);
    /* a measurement that is missing leaves a gap */
    study.eval.models[0].kld.mean = NAN; /* q2s */
    assert_int_equal(nib_study_draw(&study, pictures, &n, NULL), NIB_OK);
    assert_int_equal(count(pictures[0].standalone, "<circle"), 20 + 1);
    nib_pictures_fini(pictures, n);
    free(study.eval.models);
}

static void test_verdict(void **state) {
    (void)state;
    nib_study study = make_study();
    for (uint32_t i = 0; i < study.n_levels; i++)
        if (study.eval.models[i].bpw < 3) study.eval.models[i].same_top = 0.5;
    nib_study_judge(&study);
    assert_true(study.cliff >= 0 && study.eval.models[study.cliff].bpw == 2.75); /* q2a is the largest below 3 */
    assert_true(study.recommended >= 0 && study.eval.models[study.recommended].bpw == 3);
    free(study.eval.models);
}

static void test_other_levels(void **state) {
    (void)state;
    nib_study study = make_study();
    nib_picture pictures[NIB_STUDY_MAX_PICTURES];
    uint32_t n = 0;
    for (uint32_t i = 7; i < study.n_levels; i++)
        snprintf(study.eval.models[i].format, sizeof study.eval.models[i].format, "q4_k");
    assert_int_equal(nib_study_draw(&study, pictures, &n, NULL), NIB_OK);
    assert_int_equal(n, 0);
    free(study.eval.models);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_family),
        cmocka_unit_test(test_verdict),
        cmocka_unit_test(test_other_levels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
