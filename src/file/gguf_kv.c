/* Typed reads of GGUF metadata. The reader has already made sure that kv->data holds kv->n whole elements; what is left to
 * do here is to see whether the asked type can hold the stored value. */
#include "file/gguf_file.h"

static const struct {
    const char *name;
    size_t n_bytes;
} types[NIB_GGUF_N_TYPES] = {
    [NIB_GGUF_U8] = {"u8", 1},       [NIB_GGUF_I8] = {"i8", 1},     [NIB_GGUF_U16] = {"u16", 2},
    [NIB_GGUF_I16] = {"i16", 2},     [NIB_GGUF_U32] = {"u32", 4},   [NIB_GGUF_I32] = {"i32", 4},
    [NIB_GGUF_F32] = {"f32", 4},     [NIB_GGUF_BOOL] = {"bool", 1}, [NIB_GGUF_STRING] = {"string", 0},
    [NIB_GGUF_ARRAY] = {"array", 0}, [NIB_GGUF_U64] = {"u64", 8},   [NIB_GGUF_I64] = {"i64", 8},
    [NIB_GGUF_F64] = {"f64", 8},
};

const char *nib_gguf_type_name(nib_gguf_type type) {
    return (unsigned)type < NIB_GGUF_N_TYPES ? types[type].name : "unknown";
}

size_t nib_gguf_scalar_bytes(nib_gguf_type type) {
    return (unsigned)type < NIB_GGUF_N_TYPES ? types[type].n_bytes : 0;
}

uint64_t nib_gguf_kv_bytes(const nib_gguf_kv *kv) {
    if (kv->element_type != NIB_GGUF_STRING) return kv->n * nib_gguf_scalar_bytes(kv->element_type);
    if (kv->n == 0) return 0;
    const uint64_t last = kv->strings ? kv->strings[kv->n - 1] : 0;
    return last + 8 + nib_load_u64(kv->data + last);
}

/* An integer as magnitude and sign; false if the element is not an integer. */
static bool integer_at(const nib_gguf_kv *kv, uint64_t index, uint64_t *magnitude, bool *negative) {
    if (index >= kv->n) return false;
    const uint8_t *p = kv->data + index * nib_gguf_scalar_bytes(kv->element_type);
    int64_t value;
    *negative = false;
    switch (kv->element_type) {
    case NIB_GGUF_BOOL:
        *magnitude = *p != 0;
        return true;
    case NIB_GGUF_U8:
        *magnitude = *p;
        return true;
    case NIB_GGUF_U16:
        *magnitude = nib_load_u16(p);
        return true;
    case NIB_GGUF_U32:
        *magnitude = nib_load_u32(p);
        return true;
    case NIB_GGUF_U64:
        *magnitude = nib_load_u64(p);
        return true;
    case NIB_GGUF_I8:
        value = (int8_t)*p;
        break;
    case NIB_GGUF_I16:
        value = (int16_t)nib_load_u16(p);
        break;
    case NIB_GGUF_I32:
        value = (int32_t)nib_load_u32(p);
        break;
    case NIB_GGUF_I64:
        value = (int64_t)nib_load_u64(p);
        break;
    default:
        return false;
    }
    *negative = value < 0;
    *magnitude = *negative ? 0 - (uint64_t)value : (uint64_t)value;
    return true;
}

bool nib_gguf_kv_u64(const nib_gguf_kv *kv, uint64_t index, uint64_t *out) {
    bool negative;
    uint64_t magnitude;
    if (!integer_at(kv, index, &magnitude, &negative) || negative) return false;
    *out = magnitude;
    return true;
}

bool nib_gguf_kv_i64(const nib_gguf_kv *kv, uint64_t index, int64_t *out) {
    bool negative;
    uint64_t magnitude;
    if (!integer_at(kv, index, &magnitude, &negative)) return false;
    if (!negative && magnitude > INT64_MAX) return false;
    *out = (int64_t)(negative ? 0 - magnitude : magnitude);
    return true;
}

bool nib_gguf_kv_f64(const nib_gguf_kv *kv, uint64_t index, double *out) {
    bool negative;
    uint64_t magnitude;
    if (index >= kv->n) return false;
    if (kv->element_type == NIB_GGUF_F32) {
        *out = nib_load_f32(kv->data + 4 * index);
        return true;
    }
    if (kv->element_type == NIB_GGUF_F64) {
        memcpy(out, kv->data + 8 * index, sizeof *out);
        return true;
    }
    if (kv->element_type == NIB_GGUF_BOOL || !integer_at(kv, index, &magnitude, &negative)) return false;
    *out = negative ? -(double)magnitude : (double)magnitude;
    return true;
}

bool nib_gguf_kv_text(const nib_gguf_kv *kv, uint64_t index, nib_text *out) {
    if (kv->element_type != NIB_GGUF_STRING || index >= kv->n) return false;
    const uint8_t *p = kv->data + (kv->strings ? kv->strings[index] : 0);
    *out = (nib_text){(const char *)p + 8, (size_t)nib_load_u64(p)};
    return true;
}

/* The pair if it is there and a scalar. */
static const nib_gguf_kv *find_scalar(const nib_gguf *gguf, const char *key) {
    const nib_gguf_kv *kv = nib_gguf_find(gguf, key);
    return kv && kv->type != NIB_GGUF_ARRAY ? kv : NULL;
}

bool nib_gguf_get_u64(const nib_gguf *gguf, const char *key, uint64_t *out) {
    const nib_gguf_kv *kv = find_scalar(gguf, key);
    return kv && kv->type != NIB_GGUF_BOOL && nib_gguf_kv_u64(kv, 0, out);
}

bool nib_gguf_get_f64(const nib_gguf *gguf, const char *key, double *out) {
    const nib_gguf_kv *kv = find_scalar(gguf, key);
    return kv && nib_gguf_kv_f64(kv, 0, out);
}

bool nib_gguf_get_bool(const nib_gguf *gguf, const char *key, bool *out) {
    const nib_gguf_kv *kv = find_scalar(gguf, key);
    if (!kv || kv->type != NIB_GGUF_BOOL) return false;
    *out = *kv->data != 0;
    return true;
}

bool nib_gguf_get_text(const nib_gguf *gguf, const char *key, nib_text *out) {
    const nib_gguf_kv *kv = find_scalar(gguf, key);
    return kv && nib_gguf_kv_text(kv, 0, out);
}
