/* The list of architectures, and reading their hyper-parameters by their tables. */
#include "arch/arch.h"
#include "base/memory.h"

#include <math.h>
#include <stdio.h>

#define ARCH(name) extern const nib_arch nib_arch_##name;
#include "arch/archs.def"
#undef ARCH

static const nib_arch *const archs[] = {
#define ARCH(name) &nib_arch_##name,
#include "arch/archs.def"
#undef ARCH
};

/* llama.cpp's names are all shorter. */
#define MAX_ARCH_NAME 64
#define MAX_KEY       128

const nib_arch *nib_arch_at(unsigned index) {
    return index < NIB_COUNT(archs) ? archs[index] : NULL;
}

const nib_arch *nib_arch_find(nib_text name) {
    for (uint32_t i = 0; i < NIB_COUNT(archs); i++) {
        if (strlen(archs[i]->name) == name.n_bytes && memcmp(archs[i]->name, name.data, name.n_bytes) == 0) {
            return archs[i];
        }
    }
    return NULL;
}

nib_status nib_arch_of(const nib_gguf *gguf, const nib_arch **out, nib_error *error) {
    static const char key[] = "general.architecture";
    const char *path = nib_gguf_path(gguf);
    const nib_gguf_kv *kv = nib_gguf_find(gguf, key);
    nib_text name;
    if (kv == NULL) {
        nib_fail_at(error, NIB_ERR_CORRUPT, path, -1, key, "the file does not say what architecture it is of");
        return nib_hint(error, NIB_ERR_CORRUPT, "a model needs this key; the download may be broken or not be a model");
    }
    if (!nib_gguf_get_text(gguf, key, &name) || name.n_bytes == 0 || name.n_bytes > MAX_ARCH_NAME) {
        return nib_fail_at(error, NIB_ERR_CORRUPT, path, kv->offset, key, "the architecture is not a short name");
    }
    *out = nib_arch_find(name);
    if (*out != NULL) return NIB_OK;
    nib_fail_at(error, NIB_ERR_UNSUPPORTED, path, kv->offset, key, "architecture '%.*s' does not run yet",
                (int)name.n_bytes, name.data);
    char list[128] = "";
    for (size_t i = 0, at = 0; i < NIB_COUNT(archs) && at < sizeof list; i++) {
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i > 0 ? ", " : "", archs[i]->name);
    }
    return nib_hint(error, NIB_ERR_UNSUPPORTED, "these run: %s; quantize and inspect work for any", list);
}

uint64_t nib_dim_of(const nib_hyper *h, nib_dim dim) {
    switch (dim) {
    case NIB_DIM_NONE:
        return 1;
    case NIB_DIM_EMBD:
        return h->n_embd;
    case NIB_DIM_VOCAB:
        return h->n_vocab;
    case NIB_DIM_HEAD:
        return h->head_dim;
    case NIB_DIM_HEADS:
        return (uint64_t)h->n_head * h->head_dim;
    case NIB_DIM_HEADS_KV:
        return (uint64_t)h->n_head_kv * h->head_dim;
    case NIB_DIM_FF:
        return h->n_ff;
    case NIB_DIM_EXPERTS:
        return h->n_expert;
    case NIB_DIM_FF_EXPERT:
        return h->n_ff_expert;
    case NIB_DIM_ROPE_PAIRS:
        return h->n_rot / 2;
    }
    return 1;
}

/* ---- Reading ---------------------------------------------------------------------------------------------------------- */

typedef struct reader {
    const nib_arch *arch;
    const nib_gguf *gguf;
    nib_error *error;
    char key[MAX_KEY]; /* last looked for */
} reader;

static const nib_gguf_kv *find(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch->name, suffix);
    return nib_gguf_find(r->gguf, r->key);
}

static nib_status fail(reader *r, nib_status code, const nib_gguf_kv *kv, const char *message) {
    return nib_fail_at(r->error, code, nib_gguf_path(r->gguf), kv != NULL ? kv->offset : -1, r->key, "%s %s", r->key,
                       message);
}

/* A number, or an array of n_layer equal numbers. */
static nib_status read_layers(reader *r, const nib_gguf_kv *kv, uint32_t n_layer, double *out) {
    if (kv->n != n_layer) return fail(r, NIB_ERR_CORRUPT, kv, "does not have one entry per layer");
    uint64_t first = 0, other;
    for (uint64_t i = 0; i < kv->n; i++) {
        if (!nib_gguf_kv_u64(kv, i, &other)) return fail(r, NIB_ERR_CORRUPT, kv, "is not an array of counts");
        if (i == 0) first = other;
        if (other != first)
            return fail(r, NIB_ERR_UNSUPPORTED, kv, "differs from layer to layer, which does not run yet");
    }
    *out = (double)first;
    return NIB_OK;
}

static nib_status read_row(reader *r, const nib_hyper_row *row, nib_hyper *out) {
    const nib_gguf_kv *kv = find(r, row->key);
    double value = row->otherwise;
    if (kv == NULL) {
        if (row->required) return fail(r, NIB_ERR_CORRUPT, NULL, "is missing");
        /* Two keys may stand for one value, the older first: an absent one leaves what was read. */
        uint32_t already;
        memcpy(&already, (char *)out + row->offset, sizeof already);
        if (already != 0) return NIB_OK;
    } else if (kv->type == NIB_GGUF_ARRAY && row->kind == NIB_HYPER_U32_LAYERS) {
        NIB_TRY(read_layers(r, kv, out->n_layer, &value));
    } else if (row->kind == NIB_HYPER_F32) {
        if (!nib_gguf_get_f64(r->gguf, r->key, &value)) return fail(r, NIB_ERR_CORRUPT, kv, "is not a number");
    } else {
        uint64_t count;
        if (!nib_gguf_get_u64(r->gguf, r->key, &count)) return fail(r, NIB_ERR_CORRUPT, kv, "is not a count");
        value = (double)count;
    }
    /* Written so that NaN fails. */
    if (kv != NULL && !(value >= row->min && value <= row->max)) {
        return nib_fail_at(r->error, NIB_ERR_CORRUPT, nib_gguf_path(r->gguf), kv->offset, r->key,
                           "%s is %g, outside %g to %g", r->key, value, row->min, row->max);
    }
    if (row->kind == NIB_HYPER_F32) {
        const float real = (float)value;
        memcpy((char *)out + row->offset, &real, sizeof real);
    } else {
        const uint32_t count = (uint32_t)value;
        memcpy((char *)out + row->offset, &count, sizeof count);
    }
    return NIB_OK;
}

/* How positions are stretched beyond the trained context: evenly or not at all. */
static nib_status read_rope_scaling(reader *r, nib_hyper *out) {
    const nib_gguf_kv *kv = find(r, "rope.scaling.type");
    nib_text type = {"linear", 6};
    if (kv != NULL && !nib_gguf_get_text(r->gguf, r->key, &type)) return fail(r, NIB_ERR_CORRUPT, kv, "is not text");
    if (type.n_bytes == 4 && memcmp(type.data, "none", 4) == 0) {
        out->rope_factor = 1;
    } else if (type.n_bytes != 6 || memcmp(type.data, "linear", 6) != 0) {
        return nib_fail_at(r->error, NIB_ERR_UNSUPPORTED, nib_gguf_path(r->gguf), kv->offset, r->key,
                           "position scaling '%.*s' does not run yet", type.n_bytes < 64 ? (int)type.n_bytes : 64,
                           type.data);
    }
    if (out->rope_factor == 0) out->rope_factor = 1;
    if (out->rope_attn_factor != 1) {
        return fail(r, NIB_ERR_UNSUPPORTED, find(r, "rope.scaling.attn_factor"), "other than 1 does not run yet");
    }
    return NIB_OK;
}

/* Values that follow from others, and those that must fit together. */
static nib_status derive(reader *r, nib_hyper *h) {
    if (h->n_expert_used > h->n_expert) {
        return fail(r, NIB_ERR_CORRUPT, find(r, "expert_used_count"), "is more than there are experts");
    }
    if (h->n_expert > 0 && !r->arch->has_experts) {
        return fail(r, NIB_ERR_UNSUPPORTED, find(r, "expert_count"),
                    "above 0: mixtures of experts of this architecture do not run yet");
    }
    if (r->arch->has_experts && h->n_expert_used == 0) {
        return fail(r, NIB_ERR_CORRUPT, find(r, "expert_used_count"), "is missing or 0");
    }
    if (h->n_head_kv == 0) h->n_head_kv = h->n_head;
    if (h->n_head % h->n_head_kv != 0) {
        return fail(r, NIB_ERR_CORRUPT, find(r, "attention.head_count_kv"), "does not divide the number of heads");
    }
    if (h->head_dim == 0) {
        if (h->n_embd % h->n_head != 0) {
            return fail(r, NIB_ERR_CORRUPT, find(r, "attention.head_count"), "does not divide the embedding length");
        }
        h->head_dim = h->n_embd / h->n_head;
    }
    if (h->value_dim == 0) h->value_dim = h->head_dim;
    if (h->value_dim != h->head_dim) {
        return fail(r, NIB_ERR_UNSUPPORTED, find(r, "attention.value_length"),
                    "other than the key length does not run yet");
    }
    if (h->n_rot == 0) h->n_rot = h->head_dim;
    if (h->n_rot % 2 != 0 || h->n_rot > h->head_dim) {
        return fail(r, NIB_ERR_CORRUPT, find(r, "rope.dimension_count"), "is not an even part of a head");
    }
    if (h->attn_scale == 0) h->attn_scale = 1.0f / sqrtf((float)h->head_dim);
    return read_rope_scaling(r, h);
}

nib_status nib_hyper_read(const nib_arch *arch, const nib_gguf *gguf, nib_hyper *out, nib_error *error) {
    reader r = {.arch = arch, .gguf = gguf, .error = error};
    *out = (nib_hyper){0};
    for (uint32_t i = 0; i < arch->n_hyper; i++) NIB_TRY(read_row(&r, &arch->hyper[i], out));
    return derive(&r, out);
}
