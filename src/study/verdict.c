/* What the measurements mean, in words. Two rules, both printed with the verdict: where the cliff is, and which level is
 * small and still sound. Sizes decide the order; a tie keeps the order the user gave. */
#include "study/markup.h"
#include "study/parts.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

const char *nib_study_cliff_rule(void) {
    return "going down in size, the cliff is the first level whose likeliest next token agrees with the original's for "
           "less than 80% of the tokens, or whose KL divergence is above 0.1 and more than 8 times that of the next "
           "larger level";
}

const char *nib_study_recommended_rule(void) {
    return "the level to use is the smallest one before the cliff that agrees with the original on at least 95% of the "
           "tokens and does not answer significantly worse (p below 0.05)";
}

const nib_eval_model *nib_study_model(const nib_study *study, uint32_t model) {
    return model == 0 ? &study->eval.reference : &study->eval.models[model - 1];
}

const char *nib_study_label(const nib_study *study, uint32_t model) {
    return model == 0 ? "original" : study->eval.models[model - 1].format;
}

void nib_study_order(const nib_study *study, uint32_t *order) {
    for (uint32_t i = 0; i < study->n_levels; i++) {
        uint32_t at = i;
        while (at > 0 && study->eval.models[order[at - 1]].bytes < study->eval.models[i].bytes) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
    }
}

bool nib_study_is_over_cliff(const nib_study *study, uint32_t level) {
    if (study->cliff < 0) return false;
    uint32_t order[NIB_STUDY_MAX_LEVELS], i = 0;
    nib_study_order(study, order);
    while (order[i] != level && order[i] != (uint32_t)study->cliff) i++;
    return order[i] == (uint32_t)study->cliff;
}

uint32_t nib_study_broken_answers(const nib_study *study, uint32_t model) {
    uint32_t n = 0;
    for (uint32_t prompt = 0; prompt < study->n_prompts; prompt++) {
        for (uint32_t i = 0; i < study->n_tries; i++) {
            const size_t at = ((size_t)prompt * (1 + study->n_levels) + model) * study->n_tries + i;
            n += study->talk[at].stop == NIB_STOP_LOOP || study->talk[at].stop == NIB_STOP_EMPTY;
        }
    }
    return n;
}

const nib_bench_result *nib_study_speed(const nib_study *study, uint32_t model, const char *test) {
    const char *path = nib_study_model(study, model)->model;
    for (uint32_t i = 0; i < study->bench.n; i++) {
        const nib_bench_result *result = &study->bench.results[i];
        if (strcmp(result->model, path) == 0 && strncmp(result->test, test, strlen(test)) == 0) return result;
    }
    return NULL;
}

void nib_study_split_answer(const char *text, nib_text *reasoning, nib_text *answer) {
    const char *begin = text + strspn(text, " \t\r\n");
    *reasoning = (nib_text){begin, 0};
    *answer = (nib_text){text, strlen(text)};
    if (strncmp(begin, "<think>", 7) != 0) return;
    const char *end = strstr(begin, "</think>");
    const char *inside = begin + 7;
    *reasoning = (nib_text){inside, end != NULL ? (size_t)(end - inside) : strlen(inside)};
    const char *rest = end != NULL ? end + 8 : inside + strlen(inside);
    *answer = (nib_text){rest, strlen(rest)};
}

/* Answers of a model that are the original's, word for word. */
static uint32_t same_answers(const nib_study *study, uint32_t model) {
    const size_t n_models = 1 + (size_t)study->n_levels;
    uint32_t n = 0;
    for (uint32_t prompt = 0; prompt < study->n_prompts; prompt++) {
        for (uint32_t i = 0; i < study->n_tries; i++) {
            const char *original = study->talk[prompt * n_models * study->n_tries + i].text;
            const char *text = study->talk[(prompt * n_models + model) * study->n_tries + i].text;
            n += original != NULL && text != NULL && strcmp(original, text) == 0;
        }
    }
    return n;
}

/* ---- The rules ------------------------------------------------------------------------------------------------------- */

static int32_t find_cliff(const nib_study *study, const uint32_t *order) {
    for (uint32_t i = 0; i < study->n_levels; i++) {
        const nib_eval_model *level = &study->eval.models[order[i]];
        if (level->same_top < NIB_CLIFF_SAME_TOP) return (int32_t)order[i];
        if (i == 0 || !(level->kld.mean > NIB_CLIFF_KLD_LEAST)) continue;
        if (level->kld.mean > NIB_CLIFF_KLD_FACTOR * study->eval.models[order[i - 1]].kld.mean)
            return (int32_t)order[i];
    }
    return -1;
}

static bool answers_worse(const nib_eval_model *level) {
    return level->has_choice && level->flips_to_wrong > level->flips_to_right && level->mcnemar_p < NIB_GOOD_P;
}

static int32_t find_recommended(const nib_study *study, const uint32_t *order) {
    int32_t best = -1;
    for (uint32_t i = 0; i < study->n_levels && (int32_t)order[i] != study->cliff; i++) {
        const nib_eval_model *level = &study->eval.models[order[i]];
        if (level->same_top >= NIB_GOOD_SAME_TOP && !answers_worse(level)) best = (int32_t)order[i];
    }
    return best;
}

/* ---- The words ------------------------------------------------------------------------------------------------------- */

/* Appends to verdict, which cuts what does not fit. */
static void NIB_PRINTF(2, 3) say(nib_study *study, const char *format, ...) {
    const size_t used = strlen(study->verdict);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(study->verdict + used, sizeof study->verdict - used, format, arguments);
    va_end(arguments);
}

/* "1 next token in 3", for what does not agree. */
static void one_in(char out[48], double share_lost) {
    if (share_lost >= 0.67)
        snprintf(out, 48, "most of its next tokens");
    else
        snprintf(out, 48, "1 next token in %.0f", 1 / share_lost);
}

static void say_cliff(nib_study *study, const uint32_t *order) {
    char number[32], percent[32], larger_number[32], share[48];
    if (study->cliff < 0) {
        const nib_eval_model *last = &study->eval.models[order[study->n_levels - 1]];
        say(study,
            "No cliff: %s%s at %.2f bits per weight, picks the same next token as the original "
            "for %s of the tokens (KL divergence %s).\n",
            study->n_levels > 1 ? "even the smallest level, " : "", last->format, last->bpw,
            nib_text_of_percent(percent, last->same_top), nib_text_of_number(number, last->kld.mean));
        return;
    }
    const nib_eval_model *over = &study->eval.models[study->cliff];
    one_in(share, 1 - over->same_top);
    say(study,
        "The cliff is at %s: with %.2f bits per weight the model changes its mind about %s (%s agree with the "
        "original) "
        "and its KL divergence is %s",
        over->format, over->bpw, share, nib_text_of_percent(percent, over->same_top),
        nib_text_of_number(number, over->kld.mean));
    const uint32_t *at = order;
    while (*at != (uint32_t)study->cliff) at++;
    if (at > order) {
        const nib_eval_model *larger = &study->eval.models[at[-1]];
        say(study, ", where %s, the next larger level, has %s", larger->format,
            nib_text_of_number(larger_number, larger->kld.mean));
        const double times = over->kld.mean / larger->kld.mean;
        if (times > 1000)
            say(study, " (more than a thousand times less)");
        else if (times >= 2)
            say(study, " (%s times less)", nib_text_of_number(larger_number, times));
    }
    say(study, ".\n");
    const uint32_t model = 1 + (uint32_t)study->cliff, n = study->n_prompts * study->n_tries;
    const uint32_t broken = nib_study_broken_answers(study, model), before = nib_study_broken_answers(study, 0);
    const uint32_t same = study->n_tries == 1 ? same_answers(study, model) : n;
    if (broken > before)
        say(study,
            "Talking to it shows the same: %u of its %u answers ran in circles or came out empty (original: %u).\n",
            broken, n, before);
    else if (2 * same < n)
        /* %.0u prints nothing for 0 */
        say(study, "Talking to it shows the same: %s%.0u of its %u answers %s what the original says.\n",
            same == 0 ? "none" : "", same, n, same <= 1 ? "is" : "are");
    if (over->has_choice && answers_worse(over))
        say(study, "It shows in the questions too: %s right instead of %s.\n",
            nib_text_of_percent(percent, over->accuracy), nib_text_of_percent(number, study->eval.reference.accuracy));
}

static void say_recommended(nib_study *study, const uint32_t *order) {
    char small[32], large[32], percent[32], number[32];
    const nib_eval_model *reference = &study->eval.reference;
    if (study->recommended < 0) {
        const nib_eval_model *first = &study->eval.models[order[0]];
        say(study,
            "None of these levels is recommended: the largest, %s, agrees with the original on %s of the tokens. Try a "
            "level "
            "with more bits.\n",
            first->format, nib_text_of_percent(percent, first->same_top));
        return;
    }
    const nib_eval_model *use = &study->eval.models[study->recommended];
    say(study, "Use %s: it is the smallest level that still picks the same next token for %s of the tokens",
        use->format, nib_text_of_percent(percent, use->same_top));
    if (use->has_choice)
        say(study, " and answers %s of the questions right (original: %s)", nib_text_of_percent(number, use->accuracy),
            nib_text_of_percent(percent, reference->accuracy));
    nib_text_of_number(small, reference->ppl);
    nib_text_of_number(large, use->ppl);
    if (strcmp(small, large) == 0)
        say(study, "; perplexity stays at %s.\n", small);
    else
        say(study, "; perplexity goes from %s to %s.\n", small, large);

    say(study, "It saves: %s become %s, %.1f times smaller", nib_text_of_bytes(large, (double)reference->bytes),
        nib_text_of_bytes(small, (double)use->bytes), (double)reference->bytes / fmax((double)use->bytes, 1));
    const nib_bench_result *old = nib_study_speed(study, 0, "tg");
    const nib_bench_result *new = nib_study_speed(study, 1 + (uint32_t)study->recommended, "tg");
    if (old != NULL && new != NULL && old->tokens_per_s > 0) {
        const double times = new->tokens_per_s / old->tokens_per_s;
        const double noise =
            2 * hypot(old->stddev / old->tokens_per_s, new->stddev / fmax(new->tokens_per_s, 1e-9)) * times;
        if (fabs(times - 1) <= noise)
            say(study, ", and it writes about as fast (%s against %s tokens per second)",
                nib_text_of_rate(small, new->tokens_per_s), nib_text_of_rate(large, old->tokens_per_s));
        else
            say(study, ", and it writes %.1f times as fast (%s instead of %s tokens per second)", times,
                nib_text_of_rate(small, new->tokens_per_s), nib_text_of_rate(large, old->tokens_per_s));
    }
    say(study, ".\n");
}

void nib_study_judge(nib_study *study) {
    uint32_t order[NIB_STUDY_MAX_LEVELS];
    study->cliff = study->recommended = -1;
    study->verdict[0] = '\0';
    if (study->n_levels == 0 || study->n_levels > NIB_STUDY_MAX_LEVELS) return;
    nib_study_order(study, order);
    study->cliff = find_cliff(study, order);
    study->recommended = find_recommended(study, order);
    say_cliff(study, order);
    say_recommended(study, order);
    say(study, "The rules: %s; %s.", nib_study_cliff_rule(), nib_study_recommended_rule());
}
