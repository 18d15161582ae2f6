/* Any bytes as a GGUF file: parsing, checking every byte, vocabulary, model. libFuzzer target; build with
 * cmake --preset clang -B build/fuzz -DNIBBLE_FUZZ=ON, run with: build/fuzz/fuzz_gguf CORPUS_DIR */
#include "model/loaded.h"

#include "base/memory.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void tokenize_something(const nib_gguf *gguf) {
    static const char text[] = "Hello, w\xc3\xb6rld!  12345\n<|endoftext|> \xff";
    nib_tokenizer *tokenizer;
    nib_ids ids = {0};
    if (nib_tokenizer_new(gguf, &tokenizer, NULL) != NIB_OK) return;
    nib_tokenize(tokenizer, text, sizeof text, true, true, &ids, NULL);
    for (size_t i = 0; i < ids.n; i++) nib_token_piece(tokenizer, ids.ids[i], true);
    nib_ids_fini(&ids);
    nib_tokenizer_free(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    nib_gguf *gguf;
    nib_model *model;
    nib_error error;
    if (nib_gguf_open_memory(data, n_bytes, "fuzz", &gguf, &error) != NIB_OK) return 0;
    nib_gguf_check(gguf, NULL, NULL, &error);
    tokenize_something(gguf);
    if (nib_model_from_gguf(gguf, NULL, &model, &error) != NIB_OK) return 0; /* the file is closed either way */
    const nib_session_params params = {.n_ctx = 8, .n_batch = 8, .exact = n_bytes % 2 == 0};
    nib_memory_plan plan;
    nib_session *session;
    if (nib_session_plan(model, &params, 1, &plan, &error) == NIB_OK && plan.kv_cache + plan.scratch < 64 << 20 &&
        nib_session_new(model, NULL, &params, &session, &error) == NIB_OK) {
        static const int32_t ids[] = {0, 1, 2};
        float *logits = nib_alloc(nib_model_facts_of(model)->n_vocab, sizeof *logits);
        if (logits != NULL) nib_session_next(session, 0, ids, 3, logits, &error);
        free(logits);
        nib_session_free(session);
    }
    nib_model_close(model);
    return 0;
}
