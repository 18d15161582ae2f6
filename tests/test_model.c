/* Models and sessions. On models made here: every way of cutting a text into runs gives the same results. On the shared
 * fixtures and the demo model: the logits of the reference implementation. */
#include "tiny_model.h"
#include "unit.h"

#include "base/files.h"

#include <jansson.h>

static const char *shared(void) {
    const char *path = getenv("NIBBLE_SHARED");
    return path != NULL ? path : "../shared";
}

static float max_diff(const float *a, const float *b, size_t n) {
    float most = 0;
    for (size_t i = 0; i < n; i++) {
        const float diff = fabsf(a[i] - b[i]);
        if (!(diff <= most)) most = diff; /* NaN stays */
    }
    return most;
}

/* Mean over rows of sum p (ln p - ln q), p = softmax of base, q of test. */
static double mean_kld(const float *base, const float *test, size_t n_rows, size_t n_vocab) {
    double total = 0;
    for (size_t r = 0; r < n_rows; r++) {
        const float *b = base + r * n_vocab, *t = test + r * n_vocab;
        double b_sum = 0, t_sum = 0, sum = 0;
        for (size_t i = 0; i < n_vocab; i++) b_sum += exp(b[i]), t_sum += exp(t[i]);
        for (size_t i = 0; i < n_vocab; i++) sum += exp(b[i]) / b_sum * (b[i] - log(b_sum) - t[i] + log(t_sum));
        total += sum;
    }
    return total / (double)n_rows;
}

static uint32_t argmax(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static void expect_ok(nib_status status, const nib_error *error) {
    if (status != NIB_OK) fail_msg("%s: %s (%s)", nib_status_name(status), error->message, error->field);
}

/* Logits of every token of ids (n), run in pieces of `piece` tokens (0: all at once). Free the result. */
static float *all_logits(const nib_model *model, const nib_session_params *params, unsigned n_threads,
                         const int32_t *ids, uint32_t n, uint32_t piece) {
    const nib_model_facts *facts = nib_model_facts_of(model);
    float *hidden = calloc((size_t)n * facts->n_embd, sizeof(float));
    float *logits = calloc((size_t)n * facts->n_vocab, sizeof(float));
    nib_pool *pool = NULL;
    nib_session *session = NULL;
    nib_error error;
    expect_ok(nib_pool_new(n_threads, &pool, &error), &error);
    expect_ok(nib_session_new(model, pool, params, &session, &error), &error);
    if (piece == 0) piece = n;
    for (uint32_t at = 0; at < n; at += piece) {
        const uint32_t now = n - at < piece ? n - at : piece;
        const nib_segment segment = {.pos = at, .n = now, .ids = ids + at};
        expect_ok(nib_session_run(session, &segment, 1, hidden + (size_t)at * facts->n_embd, &error), &error);
    }
    expect_ok(nib_session_head(session, hidden, n, logits, &error), &error);
    nib_session_free(session);
    nib_pool_free(pool);
    free(hidden);
    return logits;
}

/* ---- Models made here ------------------------------------------------------------------------------------------------- */

#define N_TINY 40

static void tiny_ids(int32_t *ids, uint32_t n, uint32_t n_vocab, uint64_t seed) {
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)((tiny_random(&seed) + 1) / 2 * (float)n_vocab) % (int32_t)n_vocab;
}

static nib_model *open_tiny(const tiny_model *tiny, nib_string *bytes) {
    nib_model *model = NULL;
    nib_error error;
    expect_ok(tiny_open(tiny, NULL, bytes, &model, &error), &error);
    return model;
}

/* All at once, in pieces, token by token, small batches and several threads agree. */
static void check_cuts(const char *arch, bool tied) {
    tiny_model tiny = tiny_defaults(arch);
    tiny.tied = tied;
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    int32_t ids[N_TINY];
    tiny_ids(ids, N_TINY, tiny.n_vocab, 7);
    const nib_session_params exact = {.n_ctx = N_TINY, .exact = true},
                             small = {.n_ctx = 64, .n_batch = 7, .exact = true};
    const size_t n = (size_t)N_TINY * tiny.n_vocab;
    float *whole = all_logits(model, &exact, 1, ids, N_TINY, 0);
    const struct {
        const nib_session_params *params;
        unsigned n_threads;
        uint32_t piece;
        float tolerance;
    } cuts[] = {
        {&exact, 3, 0, 0}, {&exact, 1, 1, 2e-5f}, {&exact, 1, 9, 2e-5f}, {&small, 2, 0, 2e-5f}, {&small, 1, 23, 2e-5f}};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        float *cut = all_logits(model, cuts[i].params, cuts[i].n_threads, ids, N_TINY, cuts[i].piece);
        const float diff = max_diff(whole, cut, n);
        if (!(diff <= cuts[i].tolerance)) fail_msg("%s, cut %zu: differs by %g", arch, i, diff);
        free(cut);
    }
    /* The logits say something: another first token changes the last row. */
    ids[0] = (ids[0] + 1) % (int32_t)tiny.n_vocab;
    float *other = all_logits(model, &exact, 1, ids, N_TINY, 0);
    assert_true(max_diff(whole + n - tiny.n_vocab, other + n - tiny.n_vocab, tiny.n_vocab) > 1e-3f);
    free(other);
    free(whole);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

static void cuts_agree(void **state) {
    (void)state;
    check_cuts("llama", false);
    check_cuts("llama", true);
    check_cuts("qwen2", false);
    check_cuts("qwen3", true);
    check_cuts("qwen3moe", false);
}

/* Three sequences in one run, longer together than a batch, equal each by itself; only wanted rows come back. */
static void sequences_are_independent(void **state) {
    (void)state;
    const tiny_model tiny = tiny_defaults("qwen3");
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    int32_t ids[3][20];
    for (uint32_t s = 0; s < 3; s++) tiny_ids(ids[s], 20, tiny.n_vocab, s + 3);
    nib_error error;
    nib_session *session = NULL;
    const nib_session_params params = {.n_ctx = 24, .n_seq = 3, .n_batch = 16, .exact = true};
    expect_ok(nib_session_new(model, NULL, &params, &session, &error), &error);
    const nib_segment segments[] = {{.seq = 2, .n = 20, .ids = ids[2], .out_from = 18},
                                    {.seq = 0, .n = 11, .ids = ids[0], .out_from = 11},
                                    {.seq = 1, .n = 5, .ids = ids[1]}};
    float hidden[7 * 48], logits[7 * 96], *alone;
    expect_ok(nib_session_run(session, segments, 3, hidden, &error), &error);
    expect_ok(nib_session_head(session, hidden, 7, logits, &error), &error);
    alone = all_logits(model, &(nib_session_params){.n_ctx = 20, .exact = true}, 1, ids[2], 20, 0);
    assert_true(max_diff(alone + 18 * 96, logits, 2 * 96) <= 2e-5f);
    free(alone);
    alone = all_logits(model, &(nib_session_params){.n_ctx = 20, .exact = true}, 1, ids[1], 5, 0);
    assert_true(max_diff(alone, logits + 2 * 96, 5 * 96) <= 2e-5f);
    free(alone);
    /* Sequence 0 gave nothing back but was cached: it goes on, and a copy of it goes on the same way. */
    alone = all_logits(model, &(nib_session_params){.n_ctx = 20, .exact = true}, 1, ids[0], 20, 0);
    const nib_segment on = {.seq = 0, .pos = 11, .n = 9, .ids = ids[0] + 11, .out_from = 8};
    nib_segment copied = on;
    copied.seq = 1;
    expect_ok(nib_session_copy(session, 0, 1, 11, &error), &error);
    expect_ok(nib_session_run(session, &on, 1, hidden, &error), &error);
    expect_ok(nib_session_run(session, &copied, 1, hidden + 48, &error), &error);
    expect_ok(nib_session_head(session, hidden, 2, logits, &error), &error);
    assert_true(max_diff(alone + 19 * 96, logits, 96) <= 2e-5f);
    assert_memory_equal(logits, logits + 96, 96 * sizeof(float));
    /* Going back: position 11 again, with other tokens, then the right ones. */
    const nib_segment wrong = {.seq = 0, .pos = 11, .n = 3, .ids = ids[1], .out_from = 3};
    expect_ok(nib_session_run(session, &wrong, 1, NULL, &error), &error);
    expect_ok(nib_session_run(session, &on, 1, hidden, &error), &error);
    expect_ok(nib_session_head(session, hidden, 1, logits, &error), &error);
    assert_memory_equal(logits, logits + 96, 96 * sizeof(float));
    free(alone);
    nib_session_free(session);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

static void wrong_runs_are_refused(void **state) {
    (void)state;
    const tiny_model tiny = tiny_defaults("llama");
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    nib_error error;
    nib_session *session = NULL;
    float hidden[16 * 48];
    static const int32_t ids[16] = {1, 2, 3}, high[] = {96}, negative[] = {-1};
    assert_int_equal(nib_session_new(model, NULL, &(nib_session_params){0}, &session, &error), NIB_ERR_USAGE);
    const nib_session_params huge = {.n_ctx = INT32_MAX, .n_seq = INT32_MAX};
    assert_int_equal(nib_session_new(model, NULL, &huge, &session, &error), NIB_ERR_MEMORY);
    const nib_session_params params = {.n_ctx = 8, .n_seq = 2};
    expect_ok(nib_session_new(model, NULL, &params, &session, &error), &error);
    const nib_segment bad[] = {
        {.n = 0, .ids = ids},
        {.n = 9, .ids = ids},
        {.n = 2, .ids = ids, .seq = 2},
        {.n = 2, .ids = ids, .pos = 1},
        {.n = 2, .ids = ids, .out_from = 3},
        {.n = 1, .ids = high},
        {.n = 1, .ids = negative},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(nib_session_run(session, &bad[i], 1, hidden, &error), NIB_ERR_USAGE);
        assert_int_equal(error.code, NIB_ERR_USAGE);
    }
    const nib_segment twice[] = {{.n = 2, .ids = ids}, {.n = 2, .ids = ids}};
    assert_int_equal(nib_session_run(session, twice, 2, hidden, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_session_run(session, twice, 1, NULL, &error), NIB_ERR_USAGE);
    expect_ok(nib_session_run(session, twice, 1, hidden, &error), &error);
    assert_int_equal(nib_session_copy(session, 0, 1, 3, &error), NIB_ERR_USAGE);
    assert_int_equal(nib_session_copy(session, 0, 2, 1, &error), NIB_ERR_USAGE);
    nib_session_free(session);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

static void plans_say_what_is_taken(void **state) {
    (void)state;
    const tiny_model tiny = tiny_defaults("qwen3");
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    nib_error error;
    nib_memory_plan exact, deployed;
    expect_ok(
        nib_session_plan(model, &(nib_session_params){.n_ctx = 100, .n_seq = 2, .exact = true}, 2, &exact, &error),
        &error);
    expect_ok(nib_session_plan(model, &(nib_session_params){.n_ctx = 100, .n_seq = 2}, 2, &deployed, &error), &error);
    /* 3 layers, keys and values, 2 heads of 16 */
    assert_int_equal(exact.kv_per_token, 3 * 2 * 2 * 16 * 4);
    assert_int_equal(deployed.kv_per_token, 3 * 2 * 2 * 16 * 2);
    assert_int_equal(exact.kv_cache, 256 * exact.kv_per_token); /* contexts are padded to 64s */
    const nib_session_params eight_bits = {.n_ctx = 100, .kv = NIB_KV_Q8_0};
    assert_int_equal(nib_session_plan(model, &eight_bits, 2, &deployed, &error), NIB_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.hint, "f16"));
    /* q 64x48, k and v 32x48, output 48x64, three of 80x48, head 96x48 */
    assert_int_equal(exact.macs_per_token, 3 * (64 * 48 + 2 * 32 * 48 + 48 * 64 + 3 * 80 * 48) + 96 * 48);
    /* at the widest: the residual stream, its norm and the two halves of the feed-forward, 200 tokens */
    assert_true(exact.scratch >= 200u * 4 * (48 + 48 + 80 + 80));
    assert_int_equal(exact.weights, nib_model_facts_of(model)->weight_bytes);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

static void count_warning(void *user, const char *message) {
    (void)message;
    ++*(int *)user;
}

static void broken_models_are_refused(void **state) {
    (void)state;
    const struct {
        tiny_model change;
        nib_status status;
        const char *field; /* "" = any */
    } cases[] = {
        {{.arch = "llama"}, NIB_OK, ""},
        {{.arch = NULL}, NIB_ERR_CORRUPT, "general.architecture"},
        {{.arch = "nosuch"}, NIB_ERR_UNSUPPORTED, "general.architecture"},
        {{.arch = "qwen3", .n_head_kv = 3}, NIB_ERR_CORRUPT, "qwen3.attention.head_count_kv"},
        {{.arch = "llama", .eps = NAN}, NIB_ERR_CORRUPT, "llama.attention.layer_norm_rms_epsilon"},
        {{.arch = "llama", .n_layer = 513}, NIB_ERR_CORRUPT, "llama.block_count"},
        {{.arch = "llama", .rope_base = 0.5f}, NIB_ERR_CORRUPT, "llama.rope.freq_base"},
        {{.arch = "llama", .n_expert = 4}, NIB_ERR_UNSUPPORTED, "llama.expert_count"},
        {{.arch = "qwen3moe"}, NIB_OK, ""},
        {{.arch = "qwen3moe", .n_expert_used = 6}, NIB_ERR_CORRUPT, "qwen3moe.expert_used_count"},
        {{.arch = "qwen3moe", .n_expert = 9}, NIB_OK, ""},
        {{.arch = "qwen3moe", .without = "blk.1.ffn_gate_inp.weight"}, NIB_ERR_CORRUPT, "blk.1.ffn_gate_inp.weight"},
        {{.arch = "qwen3moe", .without = "blk.2.ffn_up_exps.weight"}, NIB_ERR_CORRUPT, "blk.2.ffn_up_exps.weight"},
        {{.arch = "llama", .rope_scaling = "yarn"}, NIB_ERR_UNSUPPORTED, "llama.rope.scaling.type"},
        {{.arch = "llama", .rope_scaling = "none"}, NIB_OK, ""},
        {{.arch = "llama", .without = "blk.2.ffn_up.weight"}, NIB_ERR_CORRUPT, "blk.2.ffn_up.weight"},
        {{.arch = "llama", .without = "output.weight"}, NIB_OK, ""},
        {{.arch = "qwen3", .without = "blk.0.attn_k_norm.weight"}, NIB_ERR_CORRUPT, "blk.0.attn_k_norm.weight"},
        {{.arch = "llama", .embd_rows_off_by = 1}, NIB_ERR_CORRUPT, "token_embd.weight"},
        {{.arch = "llama", .with = "rope_freqs.weight"}, NIB_ERR_CORRUPT, "rope_freqs.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const tiny_model *c = &cases[i].change;
        tiny_model tiny = tiny_defaults(c->arch != NULL ? c->arch : "llama");
        tiny.arch = c->arch;
        if (c->n_expert > 0) tiny.n_expert = c->n_expert;
        if (c->n_expert_used > 0) tiny.n_expert_used = c->n_expert_used;
        tiny.rope_scaling = c->rope_scaling;
        tiny.without = c->without;
        tiny.with = c->with;
        tiny.embd_rows_off_by = c->embd_rows_off_by;
        if (c->n_head_kv > 0) tiny.n_head_kv = c->n_head_kv;
        if (c->n_layer > 0) tiny.n_layer = c->n_layer, tiny.n_embd = tiny.n_ff = tiny.n_vocab = 16;
        if (c->eps != 0) tiny.eps = c->eps;
        if (c->rope_base != 0) tiny.rope_base = c->rope_base;
        nib_string bytes;
        nib_model *model = NULL;
        nib_error error = {0};
        const nib_status status = tiny_open(&tiny, NULL, &bytes, &model, &error);
        if (status != cases[i].status) fail_msg("case %zu: %s %s", i, nib_status_name(status), error.message);
        if (status != NIB_OK) {
            assert_null(model);
            assert_string_equal(error.field, cases[i].field);
        }
        nib_model_close(model);
        nib_string_fini(&bytes);
    }
}

static void extra_tensors_are_named(void **state) {
    (void)state;
    tiny_model tiny = tiny_defaults("llama");
    tiny.with = "surplus";
    int n_warnings = 0;
    const nib_watch watch = {.user = &n_warnings, .warn = count_warning};
    nib_string bytes;
    nib_model *model = NULL;
    nib_error error;
    expect_ok(tiny_open(&tiny, &watch, &bytes, &model, &error), &error);
    assert_int_equal(n_warnings, 1);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

/* A model that goes round `cycle` tokens: after how many tokens is the loop seen? 0: never within 300. */
static size_t loop_seen_after(uint32_t cycle) {
    tiny_model tiny = tiny_defaults("llama");
    tiny.cycle = cycle;
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    nib_session *session = NULL;
    nib_generated out;
    nib_error error;
    const int32_t id = 0;
    expect_ok(nib_session_new(model, NULL, &(nib_session_params){.n_ctx = 400, .exact = true}, &session, &error),
              &error);
    expect_ok(
        nib_generate(session, 0, &id, 1, &(nib_generate_params){.n_max = 300, .stop_at_loop = true}, &out, &error),
        &error);
    const size_t n = out.ids.n;
    for (size_t i = 0; i < n; i++) assert_int_equal(out.ids.ids[i], (i + 1) % cycle);
    assert_int_equal(out.stop, n < 300 ? NIB_STOP_LOOP : NIB_STOP_LIMIT);
    assert_string_equal(out.text, "");
    nib_generated_fini(&out);
    nib_session_free(session);
    nib_model_close(model);
    nib_string_fini(&bytes);
    return n < 300 ? n : 0;
}

static void loops_are_seen(void **state) {
    (void)state;
    assert_int_equal(loop_seen_after(1), 64);
    assert_int_equal(loop_seen_after(3), 66);
    assert_int_equal(loop_seen_after(16), 64);
    assert_int_equal(loop_seen_after(32), 128);
    assert_int_equal(loop_seen_after(33), 0);
}

static void generation_ends_at_the_limits(void **state) {
    (void)state;
    tiny_model tiny = tiny_defaults("qwen3");
    tiny.cycle = 40;
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    nib_session *session = NULL;
    nib_generated out;
    nib_error error;
    static const int32_t prompt[12] = {0, 1, 2, 3};
    expect_ok(nib_session_new(model, NULL, &(nib_session_params){.n_ctx = 10}, &session, &error), &error);
    /* 4 of 10 positions are taken: 6 more tokens are run, and the 7th is said without being run. */
    expect_ok(nib_generate(session, 0, prompt, 4, &(nib_generate_params){.n_max = 100}, &out, &error), &error);
    assert_int_equal(out.ids.n, 7);
    assert_int_equal(out.ids.ids[0], 4);
    assert_int_equal(out.stop, NIB_STOP_LIMIT);
    nib_generated_fini(&out);
    /* It can be gone back into. */
    expect_ok(nib_generate(session, 2, prompt + 2, 1, &(nib_generate_params){.n_max = 3}, &out, &error), &error);
    assert_int_equal(out.ids.n, 3);
    assert_int_equal(out.ids.ids[2], 5);
    nib_generated_fini(&out);
    assert_int_equal(nib_generate(session, 0, prompt, 11, &(nib_generate_params){.n_max = 3}, &out, &error),
                     NIB_ERR_USAGE);
    nib_generated_fini(&out);
    assert_int_equal(nib_generate(session, 0, prompt, 0, &(nib_generate_params){.n_max = 3}, &out, &error),
                     NIB_ERR_USAGE);
    nib_generated_fini(&out);
    nib_session_free(session);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

/* What was streamed: the pieces, with bars between them. */
typedef struct stream {
    char pieces[64];
    int stop_after; /* pieces; 0 = never */
} stream;

static bool on_piece(void *user, const char *text, size_t n_bytes) {
    stream *s = user;
    strncat(s->pieces, text, n_bytes);
    strcat(s->pieces, "|");
    return s->stop_after == 0 || --s->stop_after > 0;
}

/* Lets a model say the bytes of `text` and then end, after a prompt of one token. */
static void check_speech(const char *text, int stop_after, const char *pieces, const char *whole, nib_stop stop) {
    int32_t script[32] = {3 + 'a'};
    tiny_model tiny = tiny_defaults("llama");
    tiny.n_vocab = 259;
    tiny.vocabulary = true;
    tiny.script = script;
    tiny.cycle = (uint32_t)strlen(text) + 2;
    for (size_t i = 0; text[i] != '\0'; i++) script[i + 1] = 3 + (unsigned char)text[i];
    script[tiny.cycle - 1] = 2;
    nib_string bytes;
    nib_model *model = open_tiny(&tiny, &bytes);
    nib_session *session = NULL;
    nib_generated out;
    nib_error error;
    stream got = {.stop_after = stop_after};
    const nib_generate_params params = {.n_max = 40, .user = &got, .on_text = on_piece};
    expect_ok(nib_session_new(model, NULL, &(nib_session_params){.n_ctx = 64}, &session, &error), &error);
    expect_ok(nib_generate(session, 0, script, 1, &params, &out, &error), &error);
    assert_string_equal(got.pieces, pieces);
    assert_string_equal(out.text, whole);
    assert_int_equal(out.n_bytes, strlen(whole));
    assert_string_equal(nib_stop_name(out.stop), nib_stop_name(stop));
    nib_generated_fini(&out);
    nib_session_free(session);
    nib_model_close(model);
    nib_string_fini(&bytes);
}

static void text_comes_in_whole_characters(void **state) {
    (void)state;
    check_speech("no", 0, "n|o|", "no", NIB_STOP_EOS);
    check_speech("x\xc3\xa9\xe2\x82\xacz", 0, "x|\xc3\xa9|\xe2\x82\xac|z|", "x\xc3\xa9\xe2\x82\xacz", NIB_STOP_EOS);
    check_speech("\xf0\x9f\x90\xad", 0, "\xf0\x9f\x90\xad|", "\xf0\x9f\x90\xad", NIB_STOP_EOS);
    /* Half a character at the end is flushed; bytes that begin none are not held back. */
    check_speech("x\xe2\x82", 0, "x|\xe2\x82|", "x\xe2\x82", NIB_STOP_EOS);
    check_speech("\xff\x80z", 0, "\xff|\x80|z|", "\xff\x80z", NIB_STOP_EOS);
    check_speech("mouse", 2, "m|o|", "mo", NIB_STOP_CALLER);
    check_speech("", 0, "", "", NIB_STOP_EMPTY);
    check_speech(" \n\t", 0, " |\n|\t|", " \n\t", NIB_STOP_EMPTY);
}

/* ---- Reference logits ------------------------------------------------------------------------------------------------- */

/* Integers of a JSON array, of arrays nested once as well; free the result. */
static int32_t *read_ids(const json_t *array, uint32_t *n) {
    if (json_is_array(json_array_get(array, 0))) array = json_array_get(array, 0);
    *n = (uint32_t)json_array_size(array);
    int32_t *ids = calloc(*n, sizeof *ids);
    for (uint32_t i = 0; i < *n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static float *read_floats(const char *path, size_t n) {
    nib_map map;
    nib_error error;
    expect_ok(nib_map_open(path, &map, &error), &error);
    assert_int_equal(map.n_bytes, n * sizeof(float));
    float *floats = malloc(n * sizeof(float));
    memcpy(floats, map.data, n * sizeof(float));
    nib_map_close(&map);
    return floats;
}

static void check_golden(const char *what, const float *golden, const float *logits, uint32_t n, uint32_t n_vocab,
                         float tolerance, double kld_tolerance) {
    const float diff = max_diff(golden, logits, (size_t)n * n_vocab);
    const double kld = mean_kld(golden, logits, n, n_vocab);
    print_message("%-32s max |diff| %.2g, mean KLD %.2g\n", what, diff, kld);
    if (!(diff <= tolerance) || !(kld <= kld_tolerance)) fail_msg("%s: too far from the reference", what);
}

static void check_fixture(const char *name, const char *logits_file) {
    char path[1024], what[64];
    uint32_t n, n_greedy;
    nib_model *model = NULL;
    nib_error error;
    snprintf(path, sizeof path, "%s/fixtures/hf/%s/golden.json", shared(), name);
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    int32_t *ids = read_ids(json_object_get(root, "ids"), &n);
    int32_t *greedy = read_ids(json_object_get(root, "greedy_ids"), &n_greedy);
    snprintf(path, sizeof path, "%s/fixtures/gguf/%s.gguf", shared(), name);
    expect_ok(nib_model_open(path, NULL, &model, &error), &error);
    const uint32_t n_vocab = nib_model_facts_of(model)->n_vocab;
    const size_t n_floats = (size_t)n * n_vocab;
    snprintf(path, sizeof path, "%s/fixtures/hf/%s/%s", shared(), name, logits_file);
    float *golden = read_floats(path, n_floats);
    const nib_session_params exact = {.n_ctx = n + n_greedy, .exact = true}, deployed = {.n_ctx = n + n_greedy};
    const uint32_t pieces[] = {0, 1, 13};
    float *first = NULL;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        float *logits = all_logits(model, &exact, 1, ids, n, pieces[i]);
        snprintf(what, sizeof what, "%s exact by %u", name, pieces[i]);
        check_golden(what, golden, logits, n, n_vocab, 1e-4f, 1e-9);
        if (i == 0)
            first = logits;
        else
            free(logits);
    }
    float *threads = all_logits(model, &exact, 3, ids, n, 0);
    assert_memory_equal(first, threads, n_floats * sizeof(float));
    free(threads);
    float *one = all_logits(model, &deployed, 1, ids, n, 0), *three = all_logits(model, &deployed, 3, ids, n, 0);
    snprintf(what, sizeof what, "%s deployed", name);
    check_golden(what, golden, one, n, n_vocab, 0.2f, 2e-4);
    assert_memory_equal(one, three, n_floats * sizeof(float));
    free(one);
    free(three);
    /* Greedy, as the reference went on; a mistral of GGUF has no window, so its own golden greedy does not apply. */
    if (strcmp(logits_file, "golden_logits.f32") == 0) {
        nib_session *session = NULL;
        nib_generated out;
        expect_ok(nib_session_new(model, NULL, &exact, &session, &error), &error);
        expect_ok(nib_generate(session, 0, ids, n, &(nib_generate_params){.n_max = n_greedy}, &out, &error), &error);
        for (uint32_t i = 0; i < out.ids.n; i++) assert_int_equal(out.ids.ids[i], greedy[i]);
        assert_true(out.ids.n == n_greedy || out.stop == NIB_STOP_EOS);
        nib_generated_fini(&out);
        nib_session_free(session);
    }
    free(first);
    free(golden);
    free(ids);
    free(greedy);
    json_decref(root);
    nib_model_close(model);
}

static void fixtures_match_the_reference(void **state) {
    (void)state;
    char path[1024];
    nib_map map;
    nib_error error;
    snprintf(path, sizeof path, "%s/fixtures/hf/llama/golden.json", shared());
    if (nib_map_open(path, &map, &error) != NIB_OK) {
        print_message("skipped: no fixtures at %s\n", shared());
        skip();
    }
    nib_map_close(&map);
    check_fixture("llama", "golden_logits.f32");
    check_fixture("llama-256", "golden_logits.f32");
    check_fixture("llama3-rope-tied", "golden_logits.f32");
    check_fixture("mistral-swa", "golden_logits_nowindow.f32");
    check_fixture("qwen2", "golden_logits.f32");
    check_fixture("qwen3", "golden_logits.f32");
    check_fixture("qwen3-tied-256", "golden_logits.f32");
    check_fixture("qwen3moe", "golden_logits.f32");
}

/* The demo model's prompts; in the second round all at once, as sequences of one session. */
static void demo_matches_the_reference(void **state) {
    (void)state;
    json_t *root = json_load_file("models/demo/golden.json", 0, NULL);
    assert_non_null(root);
    const json_t *prompts = json_object_get(root, "prompts");
    const uint32_t n_vocab = (uint32_t)json_integer_value(json_object_get(root, "vocab"));
    const uint32_t n_rows = (uint32_t)json_integer_value(json_object_get(root, "total_rows"));
    const uint32_t n_prompts = (uint32_t)json_array_size(prompts);
    float *golden = read_floats("models/demo/golden_logits.f32", (size_t)n_rows * n_vocab);
    nib_model *model = NULL;
    nib_error error;
    nib_pool *pool = NULL;
    expect_ok(nib_pool_new(2, &pool, &error), &error);
    expect_ok(nib_model_open("demo", NULL, &model, &error), &error);
    assert_int_equal(nib_model_facts_of(model)->n_vocab, n_vocab);
    nib_segment segments[8];
    int32_t *ids[8];
    assert_true(n_prompts <= 8);
    for (uint32_t i = 0; i < n_prompts; i++) {
        segments[i] = (nib_segment){.seq = i};
        ids[i] = read_ids(json_object_get(json_array_get(prompts, i), "tokens"), &segments[i].n);
        segments[i].ids = ids[i];
    }
    float *hidden = calloc((size_t)n_rows * nib_model_facts_of(model)->n_embd, sizeof(float));
    float *logits = calloc((size_t)n_rows * n_vocab, sizeof(float));
    for (int exact = 1; exact >= 0; exact--) {
        nib_session *session = NULL;
        const nib_session_params params = {.n_ctx = 256, .n_seq = n_prompts, .n_batch = 200, .exact = exact == 1};
        expect_ok(nib_session_new(model, pool, &params, &session, &error), &error);
        expect_ok(nib_session_run(session, segments, n_prompts, hidden, &error), &error);
        expect_ok(nib_session_head(session, hidden, n_rows, logits, &error), &error);
        check_golden(exact ? "demo exact" : "demo deployed", golden, logits, n_rows, n_vocab, exact ? 2e-4f : 1.0f,
                     exact ? 1e-9 : 2e-4);
        for (uint32_t r = 0; exact && r < n_rows; r++) {
            assert_int_equal(argmax(golden + (size_t)r * n_vocab, n_vocab),
                             argmax(logits + (size_t)r * n_vocab, n_vocab));
        }
        nib_session_free(session);
    }
    for (uint32_t i = 0; i < n_prompts; i++) free(ids[i]);
    free(hidden);
    free(logits);
    free(golden);
    json_decref(root);
    nib_model_close(model);
    nib_pool_free(pool);
}

/* ---- Files that mean harm --------------------------------------------------------------------------------------------- */

/* Every row of the table says which statuses opening the file as a model may give. */
static void bad_files_are_refused(void **state) {
    (void)state;
    char path[1024], line[1024];
    snprintf(path, sizeof path, "%s/data/badinput/gguf_expect.tsv", shared());
    FILE *table = fopen(path, "r");
    if (table == NULL) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    int n_wrong = 0, n_files = 0;
    while (fgets(line, sizeof line, table) != NULL) {
        const char *name = strtok(line, "\t\n"), *exits = strrchr(line, '\0');
        for (const char *field = name; field != NULL; field = strtok(NULL, "\t\n")) exits = field;
        if (name == NULL || strstr(name, ".gguf") == NULL) continue;
        nib_model *model = NULL;
        nib_error error = {0};
        snprintf(path, sizeof path, "%s/data/badinput/gguf/%s", shared(), name);
        const nib_status status = nib_model_open(path, NULL, &model, &error);
        char code[16];
        snprintf(code, sizeof code, "%d", (int)status);
        if (strstr(exits, code) == NULL) {
            print_message("%s: status %s, expected %s: %s\n", name, code, exits, error.message);
            n_wrong++;
        }
        n_files++;
        nib_model_close(model);
    }
    fclose(table);
    assert_true(n_files > 60);
    assert_int_equal(n_wrong, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_agree),
        cmocka_unit_test(sequences_are_independent),
        cmocka_unit_test(wrong_runs_are_refused),
        cmocka_unit_test(plans_say_what_is_taken),
        cmocka_unit_test(broken_models_are_refused),
        cmocka_unit_test(extra_tensors_are_named),
        cmocka_unit_test(loops_are_seen),
        cmocka_unit_test(generation_ends_at_the_limits),
        cmocka_unit_test(text_comes_in_whole_characters),
        cmocka_unit_test(fixtures_match_the_reference),
        cmocka_unit_test(demo_matches_the_reference),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
