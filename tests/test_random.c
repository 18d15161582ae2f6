/* Random models: the same bytes every time, a distribution that looks trained, and files that load and run. */
#include "base/files.h"
#include "base/sha256.h"
#include "file/gguf_write.h"
#include "nibble/eval.h"
#include "nibble/model.h"
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/nibble-test-random-XXXXXX", path[64];

static nib_status make(const char *spec, const char *type, uint64_t seed, unsigned n_threads, nib_random_made *made,
                       nib_error *error) {
    nib_pool *pool = NULL;
    const nib_random_params params = {.spec = spec, .format = nib_format_find(type), .seed = seed, .force = true};
    assert_int_equal(nib_pool_new(n_threads, &pool, error), NIB_OK);
    const nib_status status = nib_random_model(path, &params, pool, NULL, made, error);
    nib_pool_free(pool);
    return status;
}

static void hash_file(char out[65]) {
    nib_map map;
    nib_error error;
    if (nib_map_open(path, &map, &error) != NIB_OK) fail_msg("%s", error.message);
    nib_sha256_of(map.data, map.n_bytes, out);
    nib_map_close(&map);
}

/* Found once and written down: another compiler, processor or number of threads must find the same. */
static void test_same_bytes_everywhere(void **state) {
    static const struct {
        const char *spec, *type, *sha256;
    } known[] = {
        {"llama:layers=2,embd=96,ff=200,heads=6,kv=3,vocab=501,ctx=64", "bf16",
         "4aad938e10b0fd14ad3f485fe9b374700f65acc3584f41bf7ccda3c11beb59a5"},
        {"qwen2:layers=1,embd=64,ff=128,heads=4,kv=2,vocab=96,tied=1", "f16",
         "0c710b6248c3dd270defb3fa80ee849b4af10eb27c2185736a3a8f294e8f0f18"},
        {"qwen3:layers=1,embd=64,ff=128,heads=4,kv=2,head=32,vocab=96", "f32",
         "5103125b26828246e97eab1a335f385fd5828b1ffb44cb5847cc4297697696b7"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        for (unsigned n_threads = 1; n_threads <= 3; n_threads += 2) {
            nib_random_made made;
            nib_error error;
            char sha256[65];
            if (make(known[i].spec, known[i].type, 7, n_threads, &made, &error) != NIB_OK)
                fail_msg("%s", error.message);
            hash_file(sha256);
            assert_string_equal(sha256, known[i].sha256);
        }
}

static void test_seeds_differ(void **state) {
    static const char spec[] = "llama:layers=1,embd=64,ff=64,heads=2,vocab=64";
    nib_random_made made;
    nib_error error;
    char one[65], two[65];
    (void)state;
    assert_int_equal(make(spec, "bf16", 1, 1, &made, &error), NIB_OK);
    hash_file(one);
    assert_int_equal(make(spec, "bf16", 2, 1, &made, &error), NIB_OK);
    hash_file(two);
    assert_string_not_equal(one, two);
}

/* Every architecture there is, by its default shape: it opens without a warning and computes. */
static void fail_on_warning(void *user, const char *message) {
    (void)user;
    fail_msg("%s", message);
}

static void test_every_architecture_runs(void **state) {
    const nib_watch watch = {.warn = fail_on_warning};
    (void)state;
    for (unsigned i = 0; nib_model_arch_at(i) != NULL; i++) {
        nib_random_made made;
        nib_model *model = NULL;
        nib_session *session = NULL;
        nib_error error;
        char spec[128];
        snprintf(spec, sizeof spec, "%s:layers=2,embd=64,ff=128,heads=4,kv=2,vocab=300,ctx=32", nib_model_arch_at(i));
        if (make(spec, "bf16", 3, 2, &made, &error) != NIB_OK) fail_msg("%s: %s", spec, error.message);
        if (nib_model_open(path, &watch, &model, &error) != NIB_OK) fail_msg("%s: %s", spec, error.message);
        const nib_model_facts *facts = nib_model_facts_of(model);
        assert_string_equal(facts->arch, nib_model_arch_at(i));
        assert_int_equal(facts->n_params, made.n_params);
        assert_int_equal(facts->n_vocab, 300);
        assert_int_equal(nib_gguf_bytes(nib_model_gguf(model)), made.n_bytes);
        assert_int_equal(nib_gguf_n_tensors(nib_model_gguf(model)), made.n_tensors);
        assert_null(nib_model_tokenizer(model));
        assert_null(nib_model_text_tokenizer(model, &error));
        assert_int_equal(error.code, NIB_ERR_CORRUPT);
        const nib_session_params params = {.n_ctx = 8};
        const int32_t ids[3] = {1, 299, 17};
        float logits[300];
        double squares = 0;
        assert_int_equal(nib_session_new(model, NULL, &params, &session, &error), NIB_OK);
        assert_int_equal(nib_session_next(session, 0, ids, 3, logits, &error), NIB_OK);
        for (int k = 0; k < 300; k++) {
            assert_true(isfinite(logits[k]));
            squares += (double)logits[k] * (double)logits[k];
        }
        assert_true(squares > 0);
        nib_session_free(session);
        nib_model_close(model);
    }
}

/* "no_vocab" is another way to say that there is none. */
static void test_no_vocabulary_by_another_name(void **state) {
    static const char key[] = "tokenizer.ggml.model";
    nib_random_made made;
    nib_gguf *gguf = NULL;
    nib_gguf_head head;
    nib_output *output = NULL;
    nib_model *model = NULL;
    nib_error error;
    (void)state;
    assert_int_equal(make("llama:layers=1,embd=32,ff=32,heads=2,vocab=40", "f32", 0, 1, &made, &error), NIB_OK);
    assert_int_equal(nib_gguf_open(path, &gguf, &error), NIB_OK);
    nib_gguf_head_begin(&head);
    for (uint64_t i = 0; i < nib_gguf_n_kv(gguf); i++) {
        const nib_gguf_kv *kv = nib_gguf_kv_at(gguf, i);
        if (kv->key.n_bytes != strlen(key) || memcmp(kv->key.data, key, strlen(key)) != 0)
            nib_gguf_head_copy(&head, kv);
        else
            nib_gguf_head_text(&head, key, "no_vocab");
    }
    const uint64_t data_begin = nib_gguf_tensor_at(gguf, 0)->offset;
    for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
        const nib_tensor *t = nib_gguf_tensor_at(gguf, i);
        nib_gguf_head_tensor(&head, t->name, t->format, t->ne, t->offset - data_begin);
    }
    assert_int_equal(nib_gguf_head_end(&head, NIB_GGUF_ALIGNMENT, &error), NIB_OK);
    assert_int_equal(nib_output_open(path, true, NULL, 0, &output, &error), NIB_OK);
    assert_int_equal(nib_output_write(output, head.text.data, head.text.n_bytes, &error), NIB_OK);
    assert_int_equal(nib_output_write(output, nib_gguf_tensor_at(gguf, 0)->data,
                                      (size_t)(nib_gguf_bytes(gguf) - data_begin), &error),
                     NIB_OK);
    assert_int_equal(nib_output_commit(output, false, &error), NIB_OK);
    nib_gguf_head_fini(&head);
    nib_gguf_close(gguf);
    if (nib_model_open(path, NULL, &model, &error) != NIB_OK) fail_msg("%s", error.message);
    assert_int_equal(nib_model_facts_of(model)->n_vocab, 40);
    assert_null(nib_model_tokenizer(model));
    nib_model_close(model);
}

static void test_distribution(void **state) {
    nib_random_made made;
    nib_gguf *gguf = NULL;
    nib_weight_groups groups;
    nib_error error;
    const nib_weights_params params = {.by = NIB_WEIGHTS_BY_TENSOR, .vectors = true};
    (void)state;
    assert_int_equal(make("qwen2:layers=2,embd=512,ff=1024,heads=8,kv=4,vocab=1000", "f32", 0, 2, &made, &error),
                     NIB_OK);
    assert_int_equal(nib_gguf_open(path, &gguf, &error), NIB_OK);
    assert_int_equal(nib_weights_measure_groups(gguf, &params, NULL, NULL, &groups, &error), NIB_OK);
    assert_int_equal(groups.n, made.n_tensors);
    for (size_t i = 0; i < groups.n; i++) {
        const nib_weight_group *group = &groups.items[i];
        const nib_weight_stats *w = &group->stats;
        const nib_tensor *tensor = nib_gguf_tensor_find(gguf, group->tensor);
        const bool to_stream = strcmp(group->role, "attn_output") == 0 || strcmp(group->role, "ffn_down") == 0;
        const double std = 1 / sqrt((double)tensor->ne[0] * (to_stream ? 4 : 1)); /* 2 layers */
        if (tensor->n_dims < 2) {
            assert_true(fabs(w->mean - (strcmp(group->role, "norm") == 0)) < 0.05);
            assert_true(w->std > 0.08 && w->std < 0.12);
            continue;
        }
        assert_true(fabs(w->mean) < 5 * std / sqrt((double)w->n));
        assert_true(w->std > 0.95 * std && w->std < 1.15 * std);
        if (!(w->kurtosis > 2.9 && w->kurtosis < 8)) fail_msg("%s: kurtosis %g", group->tensor, w->kurtosis);
        assert_true(w->absmax > 6 * w->std);
        assert_true(group->channels[0].absmax > 1.2 * group->channels[8].absmax);
    }
    /* The strong channel of the stream is the same one everywhere. */
    assert_int_equal(groups.items[0].channels[0].column, groups.items[groups.n - 3].channels[0].column);
    nib_weight_groups_fini(&groups);
    nib_gguf_close(gguf);
}

static void test_shapes(void **state) {
    nib_random_preset preset;
    nib_random_made made;
    nib_error error;
    (void)state;
    for (unsigned i = 0; nib_random_preset_at(i, &preset); i++) {
        nib_model *model = NULL;
        char spec[128];
        snprintf(spec, sizeof spec, "%s:%s,layers=1,embd=64,ff=64,vocab=64,heads=2", preset.arch, preset.name);
        if (make(spec, "bf16", 0, 1, &made, &error) != NIB_OK) fail_msg("%s: %s", spec, error.message);
        if (nib_model_open(path, NULL, &model, &error) != NIB_OK) fail_msg("%s: %s", spec, error.message);
        const nib_model_facts *facts = nib_model_facts_of(model);
        assert_int_equal(facts->n_layer, 1);
        assert_int_equal(facts->n_head, 2);
        assert_int_equal(facts->n_head_kv, 2);
        assert_int_equal(facts->head_dim, strncmp(preset.arch, "qwen3", 5) == 0 ? 128 : 32);
        assert_true(facts->n_ctx_train >= 32768);
        const bool tied = strstr(preset.shape, "tied=1") != NULL;
        assert_int_equal(nib_gguf_tensor_find(nib_model_gguf(model), "output.weight") == NULL, tied);
        assert_int_equal(nib_gguf_tensor_find(nib_model_gguf(model), "blk.0.attn_q.bias") != NULL,
                         strcmp(preset.arch, "qwen2") == 0);
        nib_model_close(model);
    }
    assert_int_equal(make("llama:rope.freq_base=5000,embd=64,layers=1", "bf16", 0, 1, &made, &error), NIB_OK);
    nib_gguf *gguf = NULL;
    double base;
    assert_int_equal(nib_gguf_open(path, &gguf, &error), NIB_OK);
    assert_true(nib_gguf_get_f64(gguf, "llama.rope.freq_base", &base) && base == 5000);
    nib_gguf_close(gguf);
}

static void test_refusals(void **state) {
    static const char *const broken[] = {
        "",
        "nope",
        "llama:nope",
        "llama:",
        "llama:embd",
        "llama:embd=",
        "llama:embd=x",
        "llama:embd=1e9",
        "llama:embd=-4",
        "llama:embd=64.5",
        "llama:embd=nan",
        "llama:heads=3",
        "llama:kv=3",
        "llama:tied=2",
        "llama:layers=0",
        "llama:expert_count=4",
        "llama:embd=64,,ff=8",
    };
    nib_random_made made;
    nib_error error;
    (void)state;
    unlink(path);
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        if (make(broken[i], "bf16", 0, 1, &made, &error) != NIB_ERR_USAGE) fail_msg("accepted: %s", broken[i]);
        assert_int_equal(error.code, NIB_ERR_USAGE);
        assert_true(error.message[0] != '\0');
    }
    assert_int_equal(make("llama", "q4_0", 0, 1, &made, &error), NIB_ERR_USAGE);
    assert_int_equal(make("llama:layers=512,embd=1048576,ff=16777216", "f32", 0, 1, &made, &error), NIB_ERR_IO);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(make("llama:layers=1,embd=32,vocab=32", "f32", 0, 1, &made, &error), NIB_OK);
    const nib_random_params again = {.spec = "llama"};
    assert_int_equal(nib_random_model(path, &again, NULL, NULL, &made, &error), NIB_ERR_USAGE);
}

static bool stop_at_once(void *user, const nib_progress *progress) {
    (void)user;
    (void)progress;
    return false;
}

static void test_interrupted(void **state) {
    const nib_watch watch = {.progress = stop_at_once};
    const nib_random_params params = {.spec = "llama"};
    nib_random_made made;
    nib_error error;
    (void)state;
    unlink(path);
    assert_int_equal(nib_random_model(path, &params, NULL, &watch, &made, &error), NIB_ERR_INTERRUPTED);
    assert_int_not_equal(access(path, F_OK), 0);
}

static int make_folder(void **state) {
    (void)state;
    if (mkdtemp(folder) == NULL) return -1;
    snprintf(path, sizeof path, "%s/m.gguf", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes_everywhere),
        cmocka_unit_test(test_seeds_differ),
        cmocka_unit_test(test_every_architecture_runs),
        cmocka_unit_test(test_no_vocabulary_by_another_name),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_interrupted),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
