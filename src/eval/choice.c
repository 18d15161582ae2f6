/* Choice questions: which of several continuations does a model find likeliest? The rules are lm-evaluation-harness's.
 *
 *   tokens      [ shared prefix ............ | tail of choice c ... last ]
 *   scored                          start ->   ^^^^^^^^^^^^^^^^^^^^^^^^^   sum of ln p(token | all before it)
 *
 * The choices of a question share their prefix: the first choice runs whole, the others copy the prefix out of its cache
 * and run their tails. Questions are packed until a batch is full. The last token of a sequence predicts nothing that is
 * scored and is never run. */
#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "cpu/pool.h"
#include "eval/head_tiles.h"
#include "kernel/kernel.h"
#include "nibble/eval.h"

#include <math.h>
#include <stdlib.h>

enum {
    MAX_SEQUENCES = 64,     /* in one batch, unless one question has more choices */
    BATCH_TOKENS = 512,     /* about so many tokens are run at once */
    CACHE_POSITIONS = 4096, /* n_seq * n_ctx is kept near this, the cache being as large as so many tokens' */
};

/* Prompt and one choice as tokens. */
typedef struct scored_text {
    nib_ids ids;
    uint32_t start; /* first scored token, at least 1 and below ids.n */
} scored_text;

typedef struct scorer {
    const nib_questions *questions;
    const nib_model *model;
    nib_pool *pool;
    nib_session *session;
    scored_text *sequences; /* (n_sequences) all choices of all questions, in order */
    uint32_t n_sequences;
    uint32_t *first;  /* (n + 1) a question's first sequence */
    uint32_t *shared; /* (n) tokens that all sequences of a question begin with and none scores */
    uint32_t n_seq;
    nib_segment *segments;
    uint32_t n_segments;
    uint32_t *row_sequence, *row_token; /* which scored token a row of hidden states predicts */
    float *hidden, *logits;             /* (n_rows, n_embd), one tile */
    nib_softmax *softmax;               /* (n_rows) */
    float *scored;                      /* (n_rows) logit of the scored token */
    uint32_t n_rows;
    uint32_t row, first_col, n_cols; /* the tile that passes by: its first row and its part of the vocabulary */
    double *sums;                    /* one per sequence */
    nib_error *error;
} scorer;

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Tokens of prompt + " " + choice, and where the scored ones begin. */
static nib_status tokenize_pair(const nib_tokenizer *tokenizer, const char *prompt, const char *choice,
                                scored_text *out, nib_error *error) {
    nib_status status = NIB_OK;
    nib_string text = {0};
    nib_ids alone = {0};
    size_t n_prompt = strlen(prompt);
    nib_string_addf(&text, "%s %s", prompt, choice);
    if (text.failed) NIB_TRY_GOTO(nib_fail_memory(error, n_prompt));
    /* The harness moves white space at the prompt's end to the scored text, which then owns its token. */
    while (n_prompt > 0 && is_space(prompt[n_prompt - 1])) n_prompt--;
    NIB_TRY_GOTO(nib_tokenize(tokenizer, text.data, text.n_bytes, false, false, &out->ids, error));
    NIB_TRY_GOTO(nib_tokenize(tokenizer, prompt, n_prompt, false, false, &alone, error));
    if (out->ids.n < 2 || out->ids.n > UINT32_MAX)
        NIB_TRY_GOTO(
            nib_fail(error, NIB_ERR_USAGE, "prompt and choice make %zu tokens; at least 2 are needed", out->ids.n));
    out->start = alone.n == 0 ? 1 : alone.n < out->ids.n ? (uint32_t)alone.n : (uint32_t)out->ids.n - 1;
fail:
    nib_string_fini(&text);
    nib_ids_fini(&alone);
    return status;
}

/* Cuts the beginning of what does not fit n_ctx tokens and the one that is predicted last. */
static nib_status fit_context(scored_text *sequence, uint32_t n_ctx, uint32_t question, nib_error *error) {
    if (sequence->ids.n <= (size_t)n_ctx + 1) return NIB_OK;
    const uint32_t cut = (uint32_t)(sequence->ids.n - n_ctx - 1);
    if (sequence->start <= cut) {
        nib_fail(error, NIB_ERR_USAGE, "a choice of question %u is longer than the model's context of %u tokens",
                 question + 1, n_ctx);
        return nib_hint(error, NIB_ERR_USAGE, "leave the question out");
    }
    memmove(sequence->ids.ids, sequence->ids.ids + cut, (sequence->ids.n - cut) * sizeof *sequence->ids.ids);
    sequence->ids.n -= cut;
    sequence->start -= cut;
    return NIB_OK;
}

/* What all sequences begin with, up to before the position that predicts the earliest scored token. */
static uint32_t shared_prefix(const scored_text *sequences, uint32_t n) {
    uint32_t shared = sequences[0].start - 1;
    for (uint32_t i = 1; i < n; i++) {
        if (sequences[i].start - 1 < shared) shared = sequences[i].start - 1;
        uint32_t same = 0;
        while (same < shared && sequences[i].ids.ids[same] == sequences[0].ids.ids[same]) same++;
        shared = same;
    }
    return shared;
}

static nib_status tokenize_questions(scorer *s) {
    const nib_questions *questions = s->questions;
    const nib_tokenizer *tokenizer = nib_model_text_tokenizer(s->model, s->error);
    if (tokenizer == NULL) return s->error->code;
    const uint32_t n_ctx = nib_model_facts_of(s->model)->n_ctx_train;
    uint64_t total = 0;
    for (uint32_t q = 0; q < questions->n; q++) total += questions->items[q].n_choices;
    if (total > UINT32_MAX) return nib_fail_memory(s->error, total);
    s->sequences = nib_alloc(total, sizeof *s->sequences);
    s->first = nib_alloc((size_t)questions->n + 1, sizeof *s->first);
    s->shared = nib_alloc(questions->n, sizeof *s->shared);
    s->sums = nib_alloc(total, sizeof *s->sums);
    if (s->sequences == NULL || s->first == NULL || s->shared == NULL || s->sums == NULL)
        return nib_fail_memory(s->error, total * sizeof *s->sequences);
    s->n_sequences = (uint32_t)total;
    for (uint32_t q = 0; q < questions->n; q++) {
        const nib_question *question = &questions->items[q];
        scored_text *own = s->sequences + s->first[q];
        s->first[q + 1] = s->first[q] + question->n_choices;
        for (uint32_t c = 0; c < question->n_choices; c++) {
            const char *prompt = question->prompts != NULL ? question->prompts[c] : question->prompt;
            NIB_TRY(tokenize_pair(tokenizer, prompt, question->choices[c], &own[c], s->error));
            NIB_TRY(fit_context(&own[c], n_ctx > 0 ? n_ctx : 1, q, s->error));
        }
        s->shared[q] = shared_prefix(own, question->n_choices);
    }
    return NIB_OK;
}

/* Tokens that are run for a question, all choices together. */
static uint64_t tokens_of_question(const scorer *s, uint32_t q) {
    uint64_t n = s->shared[q];
    for (uint32_t i = s->first[q]; i < s->first[q + 1]; i++) n += s->sequences[i].ids.n - 1 - s->shared[q];
    return n;
}

/* The first question past the batch that begins with question `begin`: as many as fit its sequences and its tokens. */
static uint32_t batch_end(const scorer *s, uint32_t begin) {
    uint32_t end = begin;
    uint64_t n_tokens = 0;
    while (end < s->questions->n && s->first[end + 1] - s->first[begin] <= s->n_seq) {
        n_tokens += tokens_of_question(s, end);
        if (end > begin && n_tokens > BATCH_TOKENS) break;
        end++;
    }
    return end;
}

static uint64_t max_rows(const scorer *s) {
    uint64_t most = 0;
    for (uint32_t begin = 0, end; begin < s->questions->n; begin = end) {
        end = batch_end(s, begin);
        uint64_t rows = 0;
        for (uint32_t i = s->first[begin]; i < s->first[end]; i++)
            rows += s->sequences[i].ids.n - s->sequences[i].start;
        if (rows > most) most = rows;
    }
    return most;
}

static nib_status open_session(scorer *s, bool exact, nib_kv kv) {
    uint32_t longest = 1, most_choices = 1;
    for (uint32_t q = 0; q < s->questions->n; q++) {
        if (s->first[q + 1] - s->first[q] > most_choices) most_choices = s->first[q + 1] - s->first[q];
        for (uint32_t i = s->first[q]; i < s->first[q + 1]; i++)
            if (s->sequences[i].ids.n > (size_t)longest + 1) longest = (uint32_t)s->sequences[i].ids.n - 1;
    }
    s->n_seq = CACHE_POSITIONS / longest > MAX_SEQUENCES ? MAX_SEQUENCES : CACHE_POSITIONS / longest;
    if (s->n_seq < most_choices) s->n_seq = most_choices;
    const nib_session_params params = {
        .n_ctx = longest, .n_seq = s->n_seq, .n_batch = BATCH_TOKENS, .exact = exact, .kv = kv};
    NIB_TRY(nib_session_new(s->model, s->pool, &params, &s->session, s->error));
    const nib_model_facts *facts = nib_model_facts_of(s->model);
    const uint64_t rows = max_rows(s);
    if (rows > UINT32_MAX) return nib_fail_memory(s->error, rows);
    s->segments = nib_alloc(s->n_seq, sizeof *s->segments);
    s->row_sequence = nib_alloc(rows, sizeof *s->row_sequence);
    s->row_token = nib_alloc(rows, sizeof *s->row_token);
    s->softmax = nib_alloc(rows, sizeof *s->softmax);
    s->scored = nib_alloc(rows, sizeof *s->scored);
    s->hidden = nib_alloc(rows * facts->n_embd, sizeof *s->hidden);
    s->logits = nib_alloc(NIB_TILE_MOST_LOGITS, sizeof *s->logits);
    if (s->segments == NULL || s->row_sequence == NULL || s->row_token == NULL || s->softmax == NULL ||
        s->scored == NULL || s->hidden == NULL || s->logits == NULL)
        return nib_fail_memory(s->error, (rows * facts->n_embd + NIB_TILE_MOST_LOGITS) * sizeof(float));
    return NIB_OK;
}

/* Adds a sequence's tokens from position `from` to the batch, in cache slot `slot`. */
static void add_segment(scorer *s, uint32_t index, uint32_t slot, uint32_t from) {
    const scored_text *sequence = &s->sequences[index];
    const uint32_t n = (uint32_t)sequence->ids.n - 1 - from;
    s->segments[s->n_segments++] = (nib_segment){
        .seq = slot, .pos = from, .n = n, .ids = sequence->ids.ids + from, .out_from = sequence->start - 1 - from};
    for (uint32_t t = sequence->start; t < sequence->ids.n; t++) {
        s->row_sequence[s->n_rows] = index;
        s->row_token[s->n_rows++] = t;
    }
}

static void add_rows(void *arg, size_t begin, size_t end, unsigned worker) {
    scorer *s = arg;
    (void)worker;
    for (size_t r = begin; r < end; r++) {
        const float *logits = s->logits + r * s->n_cols;
        const size_t row = s->row + r;
        const int32_t next = s->sequences[s->row_sequence[row]].ids.ids[s->row_token[row]];
        const uint32_t col = (uint32_t)next - s->first_col;
        nib_softmax_add(&s->softmax[row], logits, s->n_cols, NULL);
        if (col < s->n_cols) s->scored[row] = logits[col];
    }
}

/* Runs the segments gathered and adds their scored tokens to the sums. */
static nib_status run_segments(scorer *s) {
    const nib_model_facts *facts = nib_model_facts_of(s->model);
    if (s->n_segments == 0) return NIB_OK;
    NIB_TRY(nib_session_run(s->session, s->segments, s->n_segments, s->hidden, s->error));
    const nib_head_tile tile = nib_head_tile_of(s->n_rows, facts->n_vocab);
    memset(s->softmax, 0, s->n_rows * sizeof *s->softmax);
    for (s->row = 0; s->row < s->n_rows; s->row += tile.rows) {
        const uint32_t left = s->n_rows - s->row, n = left < tile.rows ? left : tile.rows;
        const float *hidden = s->hidden + (size_t)s->row * facts->n_embd;
        for (s->first_col = 0; s->first_col < facts->n_vocab; s->first_col += tile.cols) {
            s->n_cols = facts->n_vocab - s->first_col < tile.cols ? facts->n_vocab - s->first_col : tile.cols;
            NIB_TRY(nib_session_head_part(s->session, hidden, n, s->first_col, s->n_cols, s->logits, s->error));
            nib_par_for(s->pool, n, 4, add_rows, s);
        }
    }
    for (uint32_t r = 0; r < s->n_rows; r++)
        s->sums[s->row_sequence[r]] += (double)s->scored[r] - nib_softmax_log_sum(&s->softmax[r]);
    s->n_segments = s->n_rows = 0;
    return NIB_OK;
}

static nib_status run_batch(scorer *s, uint32_t begin, uint32_t end) {
    const uint32_t first = s->first[begin];
    for (uint32_t q = begin; q < end; q++) add_segment(s, s->first[q], s->first[q] - first, 0);
    NIB_TRY(run_segments(s));
    for (uint32_t q = begin; q < end; q++)
        for (uint32_t i = s->first[q] + 1; i < s->first[q + 1]; i++) {
            if (s->shared[q] > 0)
                NIB_TRY(nib_session_copy(s->session, s->first[q] - first, i - first, s->shared[q], s->error));
            add_segment(s, i, i - first, s->shared[q]);
        }
    return run_segments(s);
}

static uint32_t count_characters(const char *utf8) {
    uint32_t n = 0;
    for (; *utf8 != '\0'; utf8++) n += ((unsigned char)*utf8 & 0xC0) != 0x80;
    return n;
}

/* Index of the largest score, the first of equals. by_length: divided by the characters of the choice. */
static uint32_t pick(const nib_question *question, const double *sums, bool by_length) {
    uint32_t best = 0;
    double best_score = 0;
    for (uint32_t c = 0; c < question->n_choices; c++) {
        const double score = by_length ? sums[c] / count_characters(question->choices[c]) : sums[c];
        if (c == 0 || score > best_score) {
            best = c;
            best_score = score;
        }
    }
    return best;
}

static nib_status take_scores(const scorer *s, nib_choice_scores *out) {
    const uint32_t n = s->questions->n;
    uint32_t n_right = 0, n_right_norm = 0;
    out->sums = nib_alloc(n, sizeof *out->sums);
    out->right = nib_alloc(n, sizeof *out->right);
    out->right_norm = nib_alloc(n, sizeof *out->right_norm);
    out->picked = nib_alloc(n, sizeof *out->picked);
    if (out->sums == NULL || out->right == NULL || out->right_norm == NULL || out->picked == NULL)
        return nib_fail_memory(s->error, (uint64_t)n * sizeof *out->sums);
    out->n = n;
    for (uint32_t q = 0; q < n; q++) {
        const nib_question *question = &s->questions->items[q];
        out->sums[q] = nib_alloc(question->n_choices, sizeof **out->sums);
        if (out->sums[q] == NULL) return nib_fail_memory(s->error, question->n_choices * sizeof **out->sums);
        memcpy(out->sums[q], s->sums + s->first[q], question->n_choices * sizeof **out->sums);
        out->picked[q] = pick(question, out->sums[q], false);
        out->right[q] = out->picked[q] == question->answer;
        out->right_norm[q] = pick(question, out->sums[q], true) == question->answer;
        n_right += out->right[q];
        n_right_norm += out->right_norm[q];
    }
    out->accuracy = (double)n_right / n;
    out->accuracy_norm = (double)n_right_norm / n;
    out->accuracy_err = n > 1 ? sqrt(out->accuracy * (1 - out->accuracy) / (n - 1.0)) : (double)NAN;
    return NIB_OK;
}

static void scorer_fini(scorer *s) {
    for (uint32_t i = 0; i < s->n_sequences; i++) nib_ids_fini(&s->sequences[i].ids);
    free(s->sequences);
    free(s->first);
    free(s->shared);
    free(s->sums);
    free(s->segments);
    free(s->row_sequence);
    free(s->row_token);
    free(s->softmax);
    free(s->scored);
    free(s->hidden);
    free(s->logits);
    nib_session_free(s->session);
}

nib_status nib_choice_score(const nib_model *model, bool exact, nib_kv kv, nib_pool *pool,
                            const nib_questions *questions, const nib_watch *watch, nib_choice_scores *out,
                            nib_error *error) {
    nib_status status = NIB_OK;
    nib_error own;
    nib_meter meter;
    scorer s = {.questions = questions, .model = model, .pool = pool, .error = error != NULL ? error : &own};
    *out = (nib_choice_scores){0};
    if (questions->n == 0) return nib_fail(error, NIB_ERR_USAGE, "there are no questions");
    NIB_TRY_GOTO(tokenize_questions(&s));
    NIB_TRY_GOTO(open_session(&s, exact, kv));
    nib_meter_init(&meter, watch, "choice", (double)questions->n);
    for (uint32_t begin = 0, end; begin < questions->n; begin = end) {
        end = batch_end(&s, begin);
        NIB_TRY_GOTO(run_batch(&s, begin, end));
        NIB_TRY_GOTO(nib_meter_add(&meter, (double)(end - begin), error));
    }
    NIB_TRY_GOTO(take_scores(&s, out));
fail:
    scorer_fini(&s);
    if (status != NIB_OK) nib_choice_scores_fini(out);
    return status;
}

void nib_choice_scores_fini(nib_choice_scores *scores) {
    if (scores == NULL) return;
    for (uint32_t i = 0; i < scores->n; i++) free(scores->sums[i]);
    free(scores->sums);
    free(scores->right);
    free(scores->right_norm);
    free(scores->picked);
    *scores = (nib_choice_scores){0};
}
