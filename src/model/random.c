/* Models of random weights, for tests and for measuring speed: any architecture, any shape, written as a stream.
 *
 *   "ARCH:items" -> values of the architecture's hyper table -> a header without tensors -> nib_hyper_read
 *                -> lengths of the dimensions of its tensor table -> a header with tensors, then payload piece by piece
 *
 * Names, shapes and bounds come from the tables in arch/; checking is done by the code that loads models.
 *
 * A weight is a function of (seed, name of its tensor, its index): 128 bits of a counter-based generator (splitmix64,
 * Steele, Lea, Flood 2014), whose eight 16-bit parts are added: nearly Gaussian, by integers alone. Sums become floats
 * exactly, two multiplications follow, and nothing of libm but sqrtf is used: the same bytes everywhere. */
#include "arch/arch.h"
#include "base/files.h"
#include "base/progress.h"
#include "cpu/pool.h"
#include "file/gguf_write.h"
#include "nibble/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 32768, WAVE = 64, MOST_HYPER = 64, MOST_ITEM = 128 };

/* ---- Shapes ---------------------------------------------------------------------------------------------------------- */

static const nib_random_preset presets[] = {
    {"llama", "1b", "layers=16,embd=2048,ff=8192,heads=32,kv=8,vocab=128256,ctx=131072,rope=500000,eps=1e-5,tied=1"},
    {"llama", "8b", "layers=32,embd=4096,ff=14336,heads=32,kv=8,vocab=128256,ctx=131072,rope=500000,eps=1e-5,tied=0"},
    {"qwen2", "0.5b", "layers=24,embd=896,ff=4864,heads=14,kv=2,vocab=151936,ctx=32768,rope=1000000,eps=1e-6,tied=1"},
    {"qwen3", "0.6b",
     "layers=28,embd=1024,ff=3072,heads=16,kv=8,head=128,vocab=151936,ctx=40960,rope=1000000,eps=1e-6,tied=1"},
    {"qwen3", "4b",
     "layers=36,embd=2560,ff=9728,heads=32,kv=8,head=128,vocab=151936,ctx=40960,rope=1000000,eps=1e-6,tied=1"},
    {"qwen3moe", "30b-a3b",
     "layers=48,embd=2048,ff=6144,heads=32,kv=4,head=128,experts=128,used=8,expert_ff=768,vocab=151936,ctx=40960,"
     "rope=1000000,eps=1e-6,tied=0"},
};

/* What a shape is where the caller says nothing; rows an architecture does not have are passed over. */
static const struct {
    const char *key;
    double value;
} defaults[] = {
    {"block_count", 4},
    {"context_length", 2048},
    {"embedding_length", 256},
    {"feed_forward_length", 768},
    {"attention.head_count", 4},
    {"attention.head_count_kv", 2},
    {"attention.layer_norm_rms_epsilon", 1e-6},
    {"attention.layer_norm_epsilon", 1e-5},
    {"vocab_size", 4096},
    {"expert_count", 8}, /* of architectures with experts */
    {"expert_used_count", 2},
    {"expert_feed_forward_length", 128},
};

static const struct {
    const char *name, *key;
} short_names[] = {
    {"layers", "block_count"},
    {"ctx", "context_length"},
    {"embd", "embedding_length"},
    {"ff", "feed_forward_length"},
    {"heads", "attention.head_count"},
    {"kv", "attention.head_count_kv"},
    {"head", "attention.key_length"},
    {"vocab", "vocab_size"},
    {"rope", "rope.freq_base"},
    {"eps", "attention.layer_norm_rms_epsilon"},
    {"experts", "expert_count"},
    {"used", "expert_used_count"},
    {"expert_ff", "expert_feed_forward_length"},
};

/* Optional tensors that models of an architecture have all the same. */
static const struct {
    const char *arch, *tensor;
} usual_tensors[] = {
    {"qwen2", "attn_q.bias"},
    {"qwen2", "attn_k.bias"},
    {"qwen2", "attn_v.bias"},
};

/* One value per row of the architecture's hyper table. */
typedef struct shape {
    const nib_arch *arch;
    double values[MOST_HYPER];
    bool known[MOST_HYPER]; /* written to the file */
    bool given[MOST_HYPER]; /* by the caller */
    bool tied;
} shape;

bool nib_random_preset_at(unsigned index, nib_random_preset *out) {
    if (index >= NIB_COUNT(presets)) return false;
    *out = presets[index];
    return true;
}

static nib_status unknown_arch(const char *spec, size_t n, nib_error *error) {
    char list[160] = "";
    for (unsigned i = 0; nib_arch_at(i) != NULL; i++) {
        const size_t at = strlen(list);
        snprintf(list + at, sizeof list - at, "%s%s", i > 0 ? ", " : "", nib_arch_at(i)->name);
    }
    nib_fail(error, NIB_ERR_USAGE, "there is no architecture '%.*s'", (int)(n < 64 ? n : 64), spec);
    return nib_hint(error, NIB_ERR_USAGE, "these there are: %s", list);
}

static nib_status unknown_item(const shape *s, const char *item, nib_error *error) {
    char list[160] = "";
    for (size_t i = 0; i < NIB_COUNT(presets); i++) {
        const size_t at = strlen(list);
        if (strcmp(presets[i].arch, s->arch->name) == 0) snprintf(list + at, sizeof list - at, "%s, ", presets[i].name);
    }
    nib_fail(error, NIB_ERR_USAGE, "'%s' is not part of a shape of %s", item, s->arch->name);
    return nib_hint(error, NIB_ERR_USAGE,
                    "%slayers=, embd=, ff=, heads=, kv=, head=, vocab=, ctx=, rope=, eps=, tied=%s", list,
                    s->arch->has_experts ? ", experts=, used=, expert_ff=" : "");
}

/* Row of the hyper table; n_hyper if it has none of this key. */
static uint32_t find_row(const nib_arch *arch, const char *key) {
    uint32_t i = 0;
    while (i < arch->n_hyper && strcmp(arch->hyper[i].key, key) != 0) i++;
    return i;
}

static nib_status set_value(shape *s, const char *name, const char *text, bool given, nib_error *error) {
    char *end;
    const double value = strtod(text, &end);
    const char *key = name;
    if (end == text || *end != '\0') return nib_fail(error, NIB_ERR_USAGE, "%s=%s: this is not a number", name, text);
    if (strcmp(name, "tied") == 0) {
        if (value != 0 && value != 1) return nib_fail(error, NIB_ERR_USAGE, "tied is 0 or 1, not %s", text);
        s->tied = value == 1;
        return NIB_OK;
    }
    for (size_t i = 0; i < NIB_COUNT(short_names); i++)
        if (strcmp(short_names[i].name, name) == 0) key = short_names[i].key;
    const uint32_t row = find_row(s->arch, key);
    if (row == s->arch->n_hyper || row >= MOST_HYPER) return unknown_item(s, name, error);
    const nib_hyper_row *hyper = &s->arch->hyper[row];
    /* Written so that NaN fails. */
    if (!(value >= hyper->min && value <= hyper->max))
        return nib_fail(error, NIB_ERR_USAGE, "%s is %.10g, outside %.10g to %.10g", name, value, hyper->min,
                        hyper->max);
    if (hyper->kind != NIB_HYPER_F32 && value != floor(value))
        return nib_fail(error, NIB_ERR_USAGE, "%s is %s, which is not a whole number", name, text);
    s->values[row] = value;
    s->known[row] = true;
    s->given[row] = given;
    return NIB_OK;
}

/* item: "NAME=NUMBER" or, if presets may stand here, the name of one. */
static nib_status read_items(shape *s, const char *items, bool given, nib_error *error) {
    for (const char *at = items; at != NULL;) {
        const char *comma = strchr(at, ',');
        const size_t n = comma != NULL ? (size_t)(comma - at) : strlen(at);
        char item[MOST_ITEM];
        snprintf(item, sizeof item, "%.*s", (int)(n < MOST_ITEM ? n : MOST_ITEM - 1), at);
        char *equals = strchr(item, '=');
        if (equals != NULL) {
            *equals = '\0';
            NIB_TRY(set_value(s, item, equals + 1, given, error));
        } else {
            size_t p = 0;
            while (p < NIB_COUNT(presets) &&
                   (strcmp(presets[p].arch, s->arch->name) != 0 || strcmp(presets[p].name, item) != 0))
                p++;
            if (p == NIB_COUNT(presets) || !given) return unknown_item(s, item, error);
            NIB_TRY(read_items(s, presets[p].shape, false, error));
        }
        at = comma != NULL ? comma + 1 : NULL;
    }
    return NIB_OK;
}

static nib_status read_spec(const char *spec, shape *s, nib_error *error) {
    const char *colon = strchr(spec, ':');
    const nib_text name = {spec, colon != NULL ? (size_t)(colon - spec) : strlen(spec)};
    *s = (shape){.arch = nib_arch_find(name)};
    if (s->arch == NULL) return unknown_arch(spec, name.n_bytes, error);
    for (size_t i = 0; i < NIB_COUNT(defaults); i++) {
        const uint32_t row = find_row(s->arch, defaults[i].key);
        if (row == s->arch->n_hyper || row >= MOST_HYPER) continue;
        if (!s->arch->has_experts && strncmp(defaults[i].key, "expert", 6) == 0) continue;
        s->values[row] = defaults[i].value;
        s->known[row] = true;
    }
    if (colon != NULL) NIB_TRY(read_items(s, colon + 1, true, error));
    const uint32_t heads = find_row(s->arch, "attention.head_count"), kv = find_row(s->arch, "attention.head_count_kv");
    if (heads < MOST_HYPER && kv < s->arch->n_hyper && kv < MOST_HYPER && s->given[heads] && !s->given[kv])
        s->values[kv] = s->values[heads];
    const uint32_t key = find_row(s->arch, "attention.key_length"), value = find_row(s->arch, "attention.value_length");
    if (key < s->arch->n_hyper && value < s->arch->n_hyper && key < MOST_HYPER && value < MOST_HYPER && s->known[key] &&
        !s->known[value]) {
        s->values[value] = s->values[key];
        s->known[value] = true;
    }
    for (uint32_t i = 0; i < s->arch->n_hyper && i < MOST_HYPER; i++) {
        if (s->known[i] || !s->arch->hyper[i].required) continue;
        return nib_fail(error, NIB_ERR_USAGE, "a shape of %s needs %s=", s->arch->name, s->arch->hyper[i].key);
    }
    return NIB_OK;
}

/* ---- What will be written ------------------------------------------------------------------------------------------ */

typedef enum random_kind { RANDOM_MATRIX, RANDOM_VECTOR, RANDOM_NORM, RANDOM_ONES } random_kind;

typedef struct random_tensor {
    char name[96];
    const nib_format *format;
    uint64_t ne[4], n_elements, n_bytes;
    random_kind kind;
    float std;
} random_tensor;

typedef struct maker {
    const nib_random_params *params;
    nib_pool *pool;
    nib_error *error;
    nib_meter meter;
    shape shape;
    nib_hyper hyper;
    random_tensor *tensors; /* (n) in file order */
    size_t n;
    nib_gguf_head head;
    uint64_t n_bytes, n_params;
    nib_output *output;

    const random_tensor *tensor; /* at hand */
    uint64_t key, first_piece;
    float *channels;  /* (ne[0]) strength of each column */
    float *scratch;   /* (workers, PIECE) */
    uint8_t *encoded; /* (WAVE, piece) */
    size_t piece_bytes;
} maker;

static const nib_format *matrix_format(const maker *m) {
    return m->params->format != NULL ? m->params->format : nib_format_find("bf16");
}

/* llama.cpp's number of a file whose matrices are all of one plain type. */
static uint32_t file_type_of(const nib_format *format) {
    const uint32_t type = nib_format_facts_of(format)->gguf_type;
    return type == 30 ? 32 : type;
}

static void put_metadata(maker *m) {
    const nib_arch *arch = m->shape.arch;
    char text[160];
    nib_gguf_head_begin(&m->head);
    nib_gguf_head_text(&m->head, "general.architecture", arch->name);
    snprintf(text, sizeof text, "random %.100s", m->params->spec);
    nib_gguf_head_text(&m->head, "general.name", text);
    snprintf(text, sizeof text, "random weights, seed %llu", (unsigned long long)m->params->seed);
    nib_gguf_head_text(&m->head, "general.description", text);
    nib_gguf_head_u32(&m->head, "general.file_type", file_type_of(matrix_format(m)));
    for (uint32_t i = 0; i < arch->n_hyper && i < MOST_HYPER; i++) {
        if (!m->shape.known[i]) continue;
        snprintf(text, sizeof text, "%s.%s", arch->name, arch->hyper[i].key);
        if (arch->hyper[i].kind == NIB_HYPER_F32)
            nib_gguf_head_f32(&m->head, text, (float)m->shape.values[i]);
        else
            nib_gguf_head_u32(&m->head, text, (uint32_t)m->shape.values[i]);
    }
    nib_gguf_head_text(&m->head, "tokenizer.ggml.model", "none");
}

/* Reads the hyper-parameters back as a loader will, from a header without tensors. */
static nib_status check_shape(maker *m) {
    nib_status status = NIB_OK;
    nib_gguf *gguf = NULL;
    put_metadata(m);
    NIB_TRY_GOTO(nib_gguf_head_end(&m->head, NIB_GGUF_ALIGNMENT, m->error));
    NIB_TRY_GOTO(nib_gguf_open_memory(m->head.text.data, m->head.text.n_bytes, "", &gguf, m->error));
    status = nib_hyper_read(m->shape.arch, gguf, &m->hyper, m->error);
    if (status != NIB_OK && status != NIB_ERR_MEMORY) {
        /* What a file has wrong there, the caller has wrong here. */
        if (m->error != NULL) {
            m->error->code = status = NIB_ERR_USAGE;
            m->error->offset = -1;
            m->error->file[0] = '\0';
        }
        status = nib_hint(m->error, NIB_ERR_USAGE, "other numbers in the shape help: heads=, kv=, head=, embd=");
    }
fail:
    nib_gguf_close(gguf);
    nib_gguf_head_fini(&m->head);
    return status;
}

static bool is_wanted(const maker *m, const nib_tensor_row *row) {
    if (!row->optional) return true;
    if (strcmp(row->name, "output.weight") == 0) return !m->shape.tied;
    for (size_t i = 0; i < NIB_COUNT(usual_tensors); i++)
        if (strcmp(usual_tensors[i].arch, m->shape.arch->name) == 0 && strcmp(usual_tensors[i].tensor, row->name) == 0)
            return true;
    return false;
}

static void set_distribution(const maker *m, random_tensor *t) {
    const char *role = nib_tensor_role(t->name, NULL);
    const bool adds_to_stream =
        strcmp(role, "attn_output") == 0 || strcmp(role, "ffn_down") == 0 || strcmp(role, "experts_down") == 0;
    t->kind = strstr(role, "norm") != NULL      ? RANDOM_NORM
              : strcmp(role, "rope_freqs") == 0 ? RANDOM_ONES
              : t->ne[1] > 1                    ? RANDOM_MATRIX
                                                : RANDOM_VECTOR;
    t->std = 0.1f;
    if (t->kind == RANDOM_MATRIX)
        t->std = 1.0f / sqrtf((float)t->ne[0] * (adds_to_stream ? 2.0f * (float)m->hyper.n_layer : 1.0f));
}

static nib_status add_tensor(maker *m, const nib_tensor_row *row, uint32_t layer, uint64_t *offset) {
    random_tensor *t = &m->tensors[m->n++];
    if (row->in_block)
        snprintf(t->name, sizeof t->name, "blk.%u.%s", layer, row->name);
    else
        snprintf(t->name, sizeof t->name, "%s", row->name);
    t->ne[0] = nib_dim_of(&m->hyper, row->cols);
    t->ne[1] = nib_dim_of(&m->hyper, row->rows);
    t->ne[2] = nib_dim_of(&m->hyper, row->stack);
    t->ne[3] = 1;
    /* Vectors and routers are f32 in every published model. */
    t->format = row->rows == NIB_DIM_NONE || row->rows == NIB_DIM_EXPERTS ? nib_format_find("f32") : matrix_format(m);
    if (t->ne[0] == 0 || t->ne[1] == 0) return nib_fail(m->error, NIB_ERR_USAGE, "tensor %s would be empty", t->name);
    set_distribution(m, t);
    if (!nib_mul_u64(t->ne[0], t->ne[1], &t->n_elements) || !nib_mul_u64(t->n_elements, t->ne[2], &t->n_elements) ||
        !nib_mul_u64(t->n_elements, nib_format_facts_of(t->format)->bytes, &t->n_bytes) ||
        !nib_add_u64(*offset, t->n_bytes, &m->n_bytes) || m->n_bytes > INT64_MAX / 2)
        return nib_fail(m->error, NIB_ERR_USAGE, "tensor %s would be larger than any file", t->name);
    nib_gguf_head_tensor(&m->head, t->name, t->format, t->ne, *offset);
    *offset = nib_round_up(m->n_bytes, NIB_GGUF_ALIGNMENT);
    m->n_params += t->n_elements;
    return NIB_OK;
}

static nib_status make_layout(maker *m) {
    const nib_arch *arch = m->shape.arch;
    uint64_t offset = 0;
    const size_t most = (size_t)arch->n_tensors * (m->hyper.n_layer + 1);
    m->tensors = nib_alloc(most, sizeof *m->tensors);
    if (m->tensors == NULL) return nib_fail_memory(m->error, most * sizeof *m->tensors);
    put_metadata(m);
    for (int in_block = 0; in_block < 2; in_block++)
        for (uint32_t layer = 0; layer < (in_block ? m->hyper.n_layer : 1); layer++)
            for (uint32_t i = 0; i < arch->n_tensors; i++) {
                if (arch->tensors[i].in_block != in_block || !is_wanted(m, &arch->tensors[i])) continue;
                NIB_TRY(add_tensor(m, &arch->tensors[i], layer, &offset));
            }
    NIB_TRY(nib_gguf_head_end(&m->head, NIB_GGUF_ALIGNMENT, m->error));
    m->n_bytes = m->head.text.n_bytes + offset;
    return NIB_OK;
}

/* ---- Numbers --------------------------------------------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static const uint64_t golden = 0x9e3779b97f4a7c15u;

/* FNV-1a. */
static uint64_t hash_name(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *p = name; *p != '\0'; p++) hash = (hash ^ (uint8_t)*p) * 0x100000001b3u;
    return hash;
}

/* Nearly Gaussian, mean 0, deviation 53509.92: eight 16-bit numbers added, in four lanes of 32 bits. */
static inline int32_t bell(uint64_t key, uint64_t index) {
    const uint64_t lanes = 0x0000ffff0000ffffu;
    const uint64_t a = mix(key + 2 * index * golden), b = mix(key + (2 * index + 1) * golden);
    const uint64_t sums = (a & lanes) + (a >> 16 & lanes) + (b & lanes) + (b >> 16 & lanes);
    return (int32_t)((uint32_t)sums + (uint32_t)(sums >> 32)) - 8 * 65535 / 2;
}

static const float bell_std = 53509.92f;

/* Strengths of the columns: the same for every tensor with as many, as channels of a stream are. */
static void make_channels(const maker *m, uint64_t n, float *channels) {
    const uint64_t key = mix(m->params->seed + mix(n));
    const uint64_t always = key % n;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t bits = mix(key + (i + 1) * golden);
        channels[i] = 0.75f + (float)(bits & 0xffff) * (0.5f / 65536);
        if (i == always || (bits >> 16 & 0x1ff) == 0)
            channels[i] *= 2.0f + (float)(bits >> 32 & 0xffff) * (3.0f / 65536);
    }
}

/* out: (n) weights from flat index `first`. */
static void fill(const maker *m, uint64_t first, size_t n, float *out) {
    const random_tensor *t = m->tensor;
    const float scale = t->std / bell_std, center = t->kind == RANDOM_NORM || t->kind == RANDOM_ONES ? 1.0f : 0.0f;
    if (t->kind == RANDOM_MATRIX) {
        uint64_t column = first % t->ne[0];
        for (size_t i = 0; i < n; i++) {
            out[i] = (float)bell(m->key, first + i) * scale * m->channels[column];
            column = column + 1 < t->ne[0] ? column + 1 : 0;
        }
        return;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = t->kind == RANDOM_ONES ? center : center + (float)bell(m->key, first + i) * scale;
}

/* ---- Writing --------------------------------------------------------------------------------------------------------- */

static void work_on_pieces(void *arg, size_t begin, size_t end, unsigned worker) {
    const maker *m = arg;
    float *weights = m->scratch + (size_t)worker * PIECE;
    for (size_t p = begin; p < end; p++) {
        const uint64_t first = (m->first_piece + p) * PIECE, left = m->tensor->n_elements - first;
        const size_t n = left < PIECE ? (size_t)left : PIECE;
        fill(m, first, n, weights);
        nib_format_encode(m->tensor->format, m->encoded + p * m->piece_bytes, weights, n, NULL);
    }
}

static nib_status write_tensor(maker *m) {
    const random_tensor *t = m->tensor;
    static const uint8_t zeros[NIB_GGUF_ALIGNMENT] = {0};
    const uint64_t n_pieces = t->n_elements / PIECE + (t->n_elements % PIECE != 0);
    m->key = mix(m->params->seed * golden + hash_name(t->name));
    m->piece_bytes = (size_t)PIECE * nib_format_facts_of(t->format)->bytes;
    if (t->kind == RANDOM_MATRIX) {
        float *channels = realloc(m->channels, (size_t)t->ne[0] * sizeof *channels);
        if (channels == NULL) return nib_fail_memory(m->error, t->ne[0] * sizeof *channels);
        m->channels = channels;
        make_channels(m, t->ne[0], channels);
    }
    for (m->first_piece = 0; m->first_piece < n_pieces; m->first_piece += WAVE) {
        const uint64_t left = n_pieces - m->first_piece, rest = t->n_bytes - m->first_piece * m->piece_bytes;
        const size_t n = left < WAVE ? (size_t)left : WAVE, most = n * m->piece_bytes;
        const size_t n_bytes = rest < most ? (size_t)rest : most;
        nib_par_for(m->pool, n, 1, work_on_pieces, m);
        NIB_TRY(nib_output_write(m->output, m->encoded, n_bytes, m->error));
        NIB_TRY(nib_meter_add(&m->meter, (double)n_bytes, m->error));
    }
    return nib_output_write(m->output, zeros, (size_t)(nib_round_up(t->n_bytes, NIB_GGUF_ALIGNMENT) - t->n_bytes),
                            m->error);
}

static nib_status write_file(maker *m, const char *path, const nib_watch *watch) {
    const unsigned n_workers = nib_pool_size(m->pool);
    const uint64_t scratch_bytes = (uint64_t)n_workers * PIECE * sizeof(float);
    uint64_t encoded_bytes = (uint64_t)WAVE * PIECE * nib_format_facts_of(matrix_format(m))->bytes;
    if (encoded_bytes < (uint64_t)WAVE * PIECE * sizeof(float)) encoded_bytes = (uint64_t)WAVE * PIECE * sizeof(float);
    m->scratch = nib_alloc_aligned(scratch_bytes);
    m->encoded = nib_alloc_aligned(encoded_bytes);
    if (m->scratch == NULL || m->encoded == NULL) return nib_fail_memory(m->error, scratch_bytes + encoded_bytes);
    NIB_TRY(nib_output_open(path, m->params->force, NULL, m->n_bytes, &m->output, m->error));
    nib_output_prefer_large_pages(m->output);
    nib_meter_init(&m->meter, watch, "random weights", (double)m->n_bytes);
    NIB_TRY(nib_output_write(m->output, m->head.text.data, m->head.text.n_bytes, m->error));
    for (size_t i = 0; i < m->n; i++) {
        m->tensor = &m->tensors[i];
        NIB_TRY(write_tensor(m));
    }
    nib_output *output = m->output;
    m->output = NULL;
    return nib_output_commit(output, false, m->error);
}

static void maker_fini(maker *m) {
    nib_output_discard(m->output);
    nib_gguf_head_fini(&m->head);
    nib_free_aligned(m->scratch);
    nib_free_aligned(m->encoded);
    free(m->channels);
    free(m->tensors);
}

nib_status nib_random_model(const char *path, const nib_random_params *params, nib_pool *pool, const nib_watch *watch,
                            nib_random_made *out, nib_error *error) {
    nib_status status = NIB_OK;
    maker m = {.params = params, .pool = pool, .error = error};
    *out = (nib_random_made){0};
    NIB_TRY_GOTO(read_spec(params->spec, &m.shape, error));
    const nib_format_facts *facts = nib_format_facts_of(matrix_format(&m));
    if (!facts->can_encode || facts->block != 1) {
        status = nib_fail(error, NIB_ERR_USAGE, "random weights are not made as %s", facts->name);
        nib_hint(error, status, "f32, f16, bf16; quantize the file for other formats");
        goto fail;
    }
    NIB_TRY_GOTO(check_shape(&m));
    NIB_TRY_GOTO(make_layout(&m));
    NIB_TRY_GOTO(write_file(&m, path, watch));
    snprintf(out->arch, sizeof out->arch, "%s", m.shape.arch->name);
    out->n_tensors = m.n;
    out->n_params = m.n_params;
    out->n_bytes = m.n_bytes;
fail:
    maker_fini(&m);
    return status;
}
