/* Loading: which architecture, its hyper-parameters, the vocabulary, every tensor by its table. Nothing is believed: what
 * a forward function relies on has been compared with the file before a model exists. */
#include "model/loaded.h"

#include "base/memory.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Unused tensors named one by one; the rest is counted. */
#define MAX_NAMED_EXTRAS 8

static nib_status set_name(nib_model *model, nib_error *error) {
    const char *path = nib_gguf_path(model->gguf), *slash = strrchr(path, '/');
    nib_text text;
    if (!nib_gguf_get_text(model->gguf, "general.name", &text) || text.n_bytes == 0) {
        text.data = slash != NULL ? slash + 1 : path;
        text.n_bytes = strlen(text.data);
    }
    if (text.n_bytes > 255) text.n_bytes = 255;
    model->name = nib_strdup_n(text.data, text.n_bytes);
    if (model->name == NULL) return nib_fail_memory(error, text.n_bytes);
    /* A name is shown on terminals: no control characters from files. */
    for (size_t i = 0; i < text.n_bytes; i++) {
        const unsigned char c = (unsigned char)model->name[i];
        if (c < 0x20 || c == 0x7f) model->name[i] = '?';
    }
    return NIB_OK;
}

/* ---- Vocabulary ------------------------------------------------------------------------------------------------------- */

static bool has_vocabulary(const nib_gguf *gguf) {
    nib_text kind;
    if (nib_gguf_find(gguf, "tokenizer.ggml.tokens") != NULL) return true;
    if (!nib_gguf_get_text(gguf, "tokenizer.ggml.model", &kind)) {
        return nib_gguf_find(gguf, "tokenizer.ggml.model") != NULL;
    }
    return (kind.n_bytes != 4 || memcmp(kind.data, "none", 4) != 0) &&
           (kind.n_bytes != 8 || memcmp(kind.data, "no_vocab", 8) != 0);
}

static nib_status load_vocabulary(nib_model *model, nib_error *error) {
    uint32_t *n_vocab = &model->graph.hyper.n_vocab;
    if (has_vocabulary(model->gguf)) {
        NIB_TRY(nib_tokenizer_new(model->gguf, &model->tokenizer, error));
        *n_vocab = nib_tokenizer_facts_of(model->tokenizer)->n_vocab;
    } else if (*n_vocab == 0) {
        const nib_tensor *embedding = nib_gguf_tensor_find(model->gguf, "token_embd.weight");
        if (embedding != NULL && embedding->ne[1] <= INT32_MAX) *n_vocab = (uint32_t)embedding->ne[1];
    }
    if (*n_vocab > 0 && *n_vocab <= INT32_MAX) return NIB_OK;
    return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(model->gguf), -1, "tokenizer.ggml.tokens",
                       "the model has no vocabulary and no embedding");
}

/* ---- Tensors ---------------------------------------------------------------------------------------------------------- */

static void shape_text(char *out, size_t n_bytes, const uint64_t *ne, uint32_t n_dims) {
    size_t at = 0;
    for (uint32_t i = 0; i < n_dims && at < n_bytes; i++) {
        at += (size_t)snprintf(out + at, n_bytes - at, "%s%llu", i > 0 ? " x " : "", (unsigned long long)ne[i]);
    }
}

static nib_status check_shape(const nib_model *model, const nib_tensor *tensor, const nib_tensor_row *row,
                              nib_error *error) {
    const nib_hyper *h = &model->graph.hyper;
    const uint64_t want[4] = {nib_dim_of(h, row->cols), nib_dim_of(h, row->rows), nib_dim_of(h, row->stack), 1};
    const nib_format_facts *facts = nib_format_facts_of(tensor->format);
    const char *path = nib_gguf_path(model->gguf);
    if (memcmp(want, tensor->ne, sizeof want) != 0) {
        char wanted[64], found[96];
        shape_text(wanted, sizeof wanted, want, row->rows == NIB_DIM_NONE ? 1 : row->stack == NIB_DIM_NONE ? 2 : 3);
        shape_text(found, sizeof found, tensor->ne, tensor->n_dims);
        nib_fail_at(error, NIB_ERR_CORRUPT, path, tensor->info_offset, tensor->name,
                    "tensor %s has the shape %s, expected %s", tensor->name, found, wanted);
        return nib_hint(error, NIB_ERR_CORRUPT, "tensors and hyper-parameters disagree; download or convert it again");
    }
    if (!facts->can_decode) {
        nib_fail_at(error, NIB_ERR_UNSUPPORTED, path, tensor->info_offset, tensor->name,
                    "tensor %s is stored as %s, which cannot be decoded yet", tensor->name, facts->name);
        return nib_hint(error, NIB_ERR_UNSUPPORTED, "use a file of another type of the same model");
    }
    return NIB_OK;
}

/* Binds one row of the table (of one layer) to its tensor and writes the handle. */
static nib_status bind_tensor(nib_model *model, const nib_tensor_row *row, uint32_t layer, nib_error *error) {
    char name[96];
    char *owner = row->in_block ? (char *)&model->graph.blocks[layer] : (char *)&model->graph.trunk;
    nib_weight handle = NIB_NO_WEIGHT;
    if (row->in_block) {
        snprintf(name, sizeof name, "blk.%u.%s", layer, row->name);
    } else {
        snprintf(name, sizeof name, "%s", row->name);
    }
    const nib_tensor *tensor = nib_gguf_tensor_find(model->gguf, name);
    if (tensor != NULL) {
        NIB_TRY(check_shape(model, tensor, row, error));
        handle = model->n_weights++;
        model->tensors[handle] = tensor;
        model->weights[handle].n_stack = (uint32_t)tensor->ne[2];
        model->weights[handle].matrix = (nib_matrix){
            .format = tensor->format,
            .data = tensor->data,
            .n_cols = (uint32_t)tensor->ne[0],
            .n_rows = (uint32_t)tensor->ne[1],
        };
    } else if (!row->optional) {
        nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(model->gguf), -1, name, "tensor %s is missing", name);
        return nib_hint(error, NIB_ERR_CORRUPT, "every %s model has it; download or convert it again",
                        model->arch->name);
    }
    memcpy(owner + row->offset, &handle, sizeof handle);
    return NIB_OK;
}

static nib_status bind_tensors(nib_model *model, nib_error *error) {
    const nib_arch *arch = model->arch;
    const uint32_t n_layer = model->graph.hyper.n_layer;
    const size_t most = (size_t)arch->n_tensors * (n_layer + 1);
    model->weights = nib_alloc(most, sizeof *model->weights);
    model->tensors = nib_alloc(most, sizeof(*model->tensors));
    model->graph.blocks = nib_alloc(n_layer, sizeof *model->graph.blocks);
    if (model->weights == NULL || model->tensors == NULL || model->graph.blocks == NULL) {
        return nib_fail_memory(error, most * sizeof *model->weights);
    }
    /* Tensors that an architecture's table does not list are absent. */
    memset(&model->graph.trunk, 0xff, sizeof model->graph.trunk);
    memset(model->graph.blocks, 0xff, n_layer * sizeof *model->graph.blocks);
    for (uint32_t i = 0; i < arch->n_tensors; i++) {
        const uint32_t n = arch->tensors[i].in_block ? n_layer : 1;
        for (uint32_t layer = 0; layer < n; layer++) NIB_TRY(bind_tensor(model, &arch->tensors[i], layer, error));
    }
    if (model->graph.trunk.output == NIB_NO_WEIGHT) model->graph.trunk.output = model->graph.trunk.token_embd;
    return NIB_OK;
}

/* Vectors are used as f32 wherever they lie and however they are stored. */
static nib_status decode_vectors(nib_model *model, nib_error *error) {
    uint64_t n = 0, n_bytes;
    for (uint32_t i = 0; i < model->n_weights; i++) {
        if (model->weights[i].matrix.n_rows == 1) n += nib_round_up(model->weights[i].matrix.n_cols, NIB_OP_COL_STEP);
    }
    if (!nib_mul_u64(n, sizeof(float), &n_bytes)) return nib_fail_memory(error, UINT64_MAX);
    model->vectors = nib_alloc_aligned(n_bytes);
    if (model->vectors == NULL) return nib_fail_memory(error, n_bytes);
    float *at = model->vectors;
    for (uint32_t i = 0; i < model->n_weights; i++) {
        nib_op_weight *weight = &model->weights[i];
        if (weight->matrix.n_rows != 1) continue;
        nib_format_decode(weight->matrix.format, at, weight->matrix.data, weight->matrix.n_cols);
        weight->vector = at;
        at += nib_round_up(weight->matrix.n_cols, NIB_OP_COL_STEP);
    }
    return NIB_OK;
}

static int compare_pointers(const void *a, const void *b) {
    const uintptr_t x = (uintptr_t) * (const nib_tensor *const *)a, y = (uintptr_t) * (const nib_tensor *const *)b;
    return x < y ? -1 : x > y;
}

static nib_status warn_of_extras(const nib_model *model, const nib_watch *watch, nib_error *error) {
    const uint64_t n_tensors = nib_gguf_n_tensors(model->gguf);
    uint64_t n_extras = 0;
    if (n_tensors == model->n_weights) return NIB_OK;
    const nib_tensor **used = nib_alloc(model->n_weights, sizeof(*used));
    if (used == NULL) return nib_fail_memory(error, model->n_weights * sizeof(*used));
    memcpy(used, model->tensors, model->n_weights * sizeof(*used));
    qsort(used, model->n_weights, sizeof(*used), compare_pointers);
    for (uint64_t i = 0; i < n_tensors; i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(model->gguf, i);
        if (bsearch(&tensor, used, model->n_weights, sizeof(*used), compare_pointers) != NULL) continue;
        if (n_extras++ < MAX_NAMED_EXTRAS) {
            nib_warn(watch, "tensor %s is no part of a %s model and is not used", tensor->name, model->arch->name);
        }
    }
    if (n_extras > MAX_NAMED_EXTRAS) {
        nib_warn(watch, "%llu more tensors are not used", (unsigned long long)(n_extras - MAX_NAMED_EXTRAS));
    }
    free(used);
    return NIB_OK;
}

/* inv_freq_i = base^(-2i / n_rot) / (factor * divisor_i), the divisors from rope_freqs where there are any. */
static nib_status make_rope(nib_model *model, nib_error *error) {
    const nib_hyper *h = &model->graph.hyper;
    const nib_weight freqs = model->graph.trunk.rope_freqs;
    const uint32_t n_pairs = h->n_rot / 2;
    model->inv_freq = nib_alloc(n_pairs, sizeof *model->inv_freq);
    if (model->inv_freq == NULL) return nib_fail_memory(error, n_pairs * sizeof *model->inv_freq);
    for (uint32_t i = 0; i < n_pairs; i++) {
        const double divisor = freqs != NIB_NO_WEIGHT ? model->weights[freqs].vector[i] : 1;
        if (!(divisor > 0 && divisor < 1e9)) {
            return nib_fail_at(error, NIB_ERR_CORRUPT, nib_gguf_path(model->gguf),
                               (int64_t)model->tensors[freqs]->offset, model->tensors[freqs]->name,
                               "divisor %u of the rotary frequencies is %g", i, divisor);
        }
        model->inv_freq[i] = (float)(pow(h->rope_base, -2.0 * i / h->n_rot) / (h->rope_factor * divisor));
    }
    model->graph.rope = (nib_rope){.inv_freq = model->inv_freq, .n_pairs = n_pairs, .neox = model->arch->rope_neox};
    return NIB_OK;
}

/* ---- The model -------------------------------------------------------------------------------------------------------- */

static void set_facts(nib_model *model) {
    const nib_hyper *h = &model->graph.hyper;
    nib_model_facts *facts = &model->facts;
    *facts = (nib_model_facts){
        .arch = model->arch->name,
        .name = model->name,
        .n_vocab = h->n_vocab,
        .n_ctx_train = h->n_ctx_train,
        .n_embd = h->n_embd,
        .n_layer = h->n_layer,
        .n_head = h->n_head,
        .n_head_kv = h->n_head_kv,
        .head_dim = h->head_dim,
        .n_ff = h->n_ff,
        .n_expert = h->n_expert,
        .n_expert_used = h->n_expert_used,
        .n_ff_expert = h->n_ff_expert,
    };
    for (uint64_t i = 0; i < nib_gguf_n_tensors(model->gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(model->gguf, i);
        facts->n_params += tensor->n_elements;
        facts->weight_bytes += tensor->n_bytes;
    }
    facts->bpw = facts->n_params > 0 ? 8.0 * (double)facts->weight_bytes / (double)facts->n_params : 0;
}

nib_status nib_model_from_gguf(nib_gguf *gguf, const nib_watch *watch, nib_model **out, nib_error *error) {
    nib_status status = NIB_OK;
    nib_model *model = nib_alloc(1, sizeof *model);
    *out = NULL;
    if (model == NULL) {
        nib_gguf_close(gguf);
        return nib_fail_memory(error, sizeof *model);
    }
    model->gguf = gguf;
    NIB_TRY_GOTO(nib_arch_of(gguf, &model->arch, error));
    NIB_TRY_GOTO(nib_hyper_read(model->arch, gguf, &model->graph.hyper, error));
    NIB_TRY_GOTO(load_vocabulary(model, error));
    NIB_TRY_GOTO(bind_tensors(model, error));
    NIB_TRY_GOTO(decode_vectors(model, error));
    NIB_TRY_GOTO(make_rope(model, error));
    NIB_TRY_GOTO(warn_of_extras(model, watch, error));
    NIB_TRY_GOTO(set_name(model, error));
    set_facts(model);
    *out = model;
    return NIB_OK;
fail:
    nib_model_close(model);
    return status;
}

nib_status nib_model_open(const char *path, const nib_watch *watch, nib_model **out, nib_error *error) {
    nib_gguf *gguf = NULL;
    *out = NULL;
    NIB_TRY(nib_gguf_open(path, &gguf, error));
    return nib_model_from_gguf(gguf, watch, out, error);
}

void nib_model_close(nib_model *model) {
    if (model == NULL) return;
    nib_tokenizer_free(model->tokenizer);
    free(model->graph.blocks);
    free(model->weights);
    free(model->tensors);
    nib_free_aligned(model->vectors);
    free(model->inv_freq);
    free(model->name);
    nib_gguf_close(model->gguf);
    free(model);
}

const nib_model_facts *nib_model_facts_of(const nib_model *model) {
    return &model->facts;
}

const nib_gguf *nib_model_gguf(const nib_model *model) {
    return model->gguf;
}

const nib_tokenizer *nib_model_tokenizer(const nib_model *model) {
    return model->tokenizer;
}

const nib_tokenizer *nib_model_text_tokenizer(const nib_model *model, nib_error *error) {
    const char *path = nib_gguf_path(model->gguf);
    if (model->tokenizer == NULL) {
        nib_fail_at(error, NIB_ERR_CORRUPT, path, -1, "tokenizer.ggml.tokens", "the model has no vocabulary");
        nib_hint(error, NIB_ERR_CORRUPT, "text needs one; give token ids, or convert the model with its tokenizer");
        return NULL;
    }
    const nib_tokenizer_facts *facts = nib_tokenizer_facts_of(model->tokenizer);
    if (facts->can_tokenize) return model->tokenizer;
    nib_fail_at(error, NIB_ERR_UNSUPPORTED, path, -1, "tokenizer.ggml.pre",
                "vocabulary '%s' with pre-tokenizer '%s' cannot turn text into tokens yet", facts->model, facts->pre);
    nib_hint(error, NIB_ERR_UNSUPPORTED, "commands that take token ids work");
    return NULL;
}

const char *nib_model_arch_at(unsigned index) {
    const nib_arch *arch = nib_arch_at(index);
    return arch != NULL ? arch->name : NULL;
}
