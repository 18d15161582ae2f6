/* The GGUF reader: a valid image read back, and what happens to everything that is not one. */
#include "unit.h"

#include "file/demo.h"
#include "gguf_builder.h"
#include <stdio.h>

/* ---- Images -------------------------------------------------------------------------------------------------------- */

enum { TYPE_F32 = 0, TYPE_Q8_0 = 8 };

static void put_f32_payload(builder *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float value = (float)i * 0.25f - 1;
        put_bytes(b, &value, sizeof value);
    }
    pad_image(b, 32);
}

/* One pair of every type, two tensors; returns the length of the header. */
static size_t make_valid(builder *b, uint32_t version) {
    static const uint8_t numbers[] = {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    const float f = 0.5f;
    const double d = -2.25;
    begin_image(b, version);
    put_kv_string(b, "general.architecture", "llama");
    put_key(b, "a.u8", NIB_GGUF_U8), put_bytes(b, numbers, 1);
    put_key(b, "a.i8", NIB_GGUF_I8), put_bytes(b, numbers, 1);
    put_key(b, "a.u16", NIB_GGUF_U16), put_bytes(b, numbers, 2);
    put_key(b, "a.i16", NIB_GGUF_I16), put_bytes(b, numbers, 2);
    put_kv_u32(b, "a.u32", 7);
    put_key(b, "a.i32", NIB_GGUF_I32), put_bytes(b, numbers, 4);
    put_key(b, "a.u64", NIB_GGUF_U64), put_bytes(b, numbers, 8);
    put_key(b, "a.i64", NIB_GGUF_I64), put_bytes(b, numbers, 8);
    put_key(b, "a.f32", NIB_GGUF_F32), put_bytes(b, &f, 4);
    put_key(b, "a.f64", NIB_GGUF_F64), put_bytes(b, &d, 8);
    put_key(b, "a.bool", NIB_GGUF_BOOL), put_bytes(b, "\7", 1);
    put_key(b, "a.texts", NIB_GGUF_ARRAY), put_u32(b, NIB_GGUF_STRING), put_u64(b, 3);
    put_string(b, "one"), put_string(b, ""), put_string(b, "three");
    put_key(b, "a.numbers", NIB_GGUF_ARRAY), put_u32(b, NIB_GGUF_I32), put_u64(b, 2), put_u32(b, 5), put_u32(b, ~0u);
    put_key(b, "a.nothing", NIB_GGUF_ARRAY), put_u32(b, NIB_GGUF_STRING), put_u64(b, 0);
    put_tensor(b, "token_embd.weight", 2, (uint64_t[]){8, 3}, TYPE_F32, 0);
    put_tensor(b, "blk.0.attn_norm.weight", 1, (uint64_t[]){4}, TYPE_F32, 96);
    end_header(b, 32);
    const size_t n_header = b->text.n_bytes;
    put_f32_payload(b, 24);
    put_f32_payload(b, 4);
    return n_header;
}

/* Opens a copy of exactly n bytes, so that a sanitizer sees every byte read too far. */
static nib_status open_copy(const void *data, size_t n_bytes, nib_gguf **out, void **copy, nib_error *error) {
    *copy = malloc(n_bytes ? n_bytes : 1);
    assert_non_null(*copy);
    memcpy(*copy, data, n_bytes);
    return nib_gguf_open_memory(*copy, n_bytes, "image", out, error);
}

/* Touches everything a reader offers. */
static uint64_t read_all(const nib_gguf *gguf) {
    uint64_t sum = 0, number;
    double real;
    for (uint64_t i = 0; i < nib_gguf_n_kv(gguf); i++) {
        const nib_gguf_kv *kv = nib_gguf_kv_at(gguf, i);
        sum += kv->key.data[0];
        for (uint64_t j = 0; j < kv->n; j++) {
            nib_text text;
            if (nib_gguf_kv_u64(kv, j, &number)) sum += number;
            if (nib_gguf_kv_f64(kv, j, &real)) sum += real > 0;
            if (nib_gguf_kv_text(kv, j, &text) && text.n_bytes) sum += (uint8_t)text.data[text.n_bytes - 1];
        }
    }
    for (uint64_t i = 0; i < nib_gguf_n_tensors(gguf); i++) {
        const nib_tensor *tensor = nib_gguf_tensor_at(gguf, i);
        sum += tensor->data[0] + tensor->data[tensor->n_bytes - 1];
        assert_ptr_equal(nib_gguf_tensor_find(gguf, tensor->name), tensor);
    }
    return sum;
}

/* The image must be refused as corrupt, naming the field. */
static void expect_refused(const builder *b, const char *field, const char *words) {
    nib_gguf *gguf;
    void *copy;
    nib_error error = {0};
    const nib_status status = open_copy(b->text.data, b->text.n_bytes, &gguf, &copy, &error);
    if (status != NIB_ERR_CORRUPT || strcmp(error.field, field) != 0 || !strstr(error.message, words))
        fail_msg("status %d, field \"%s\", message \"%s\"; expected field \"%s\", \"%s\"", status, error.field,
                 error.message, field, words);
    assert_null(gguf);
    assert_string_equal(error.file, "image");
    assert_true(error.offset >= 0 && error.hint[0] != 0);
    free(copy);
}

/* ---- Reading ------------------------------------------------------------------------------------------------------- */

static void read_version(uint32_t version) {
    builder b;
    nib_gguf *g;
    void *copy;
    nib_error error = {0};
    uint64_t u;
    int64_t i;
    double f;
    bool yes = false;
    nib_text text;
    make_valid(&b, version);
    assert_int_equal(open_copy(b.text.data, b.text.n_bytes, &g, &copy, &error), NIB_OK);
    assert_int_equal(nib_gguf_version(g), version);
    assert_int_equal(nib_gguf_alignment(g), 32);
    assert_int_equal(nib_gguf_trailing_bytes(g), 0);
    assert_true(nib_gguf_get_text(g, "general.architecture", &text) && text.n_bytes == 5);
    assert_true(nib_gguf_get_u64(g, "a.u8", &u) && u == 254);
    assert_true(nib_gguf_get_u64(g, "a.u16", &u) && u == 65534);
    assert_true(nib_gguf_get_u64(g, "a.u32", &u) && u == 7);
    assert_true(nib_gguf_get_u64(g, "a.u64", &u) && u == UINT64_MAX - 1);
    for (size_t k = 0; k < 4; k++) {
        const char *keys[] = {"a.i8", "a.i16", "a.i32", "a.i64"};
        assert_false(nib_gguf_get_u64(g, keys[k], &u));
        assert_true(nib_gguf_kv_i64(nib_gguf_find(g, keys[k]), 0, &i) && i == -2);
        assert_true(nib_gguf_get_f64(g, keys[k], &f) && f == -2);
    }
    assert_false(nib_gguf_kv_i64(nib_gguf_find(g, "a.u64"), 0, &i));
    assert_true(nib_gguf_get_f64(g, "a.f32", &f) && f == 0.5);
    assert_true(nib_gguf_get_f64(g, "a.f64", &f) && f == -2.25);
    assert_true(nib_gguf_get_bool(g, "a.bool", &yes) && yes);
    assert_false(nib_gguf_get_u64(g, "a.f32", &u) || nib_gguf_get_u64(g, "absent", &u));
    assert_false(nib_gguf_get_text(g, "a.texts", &text) || nib_gguf_get_u64(g, "a.numbers", &u));
    const nib_gguf_kv *texts = nib_gguf_find(g, "a.texts"), *numbers = nib_gguf_find(g, "a.numbers");
    assert_true(nib_gguf_kv_text(texts, 0, &text) && memcmp(text.data, "one", 3) == 0);
    assert_true(nib_gguf_kv_text(texts, 1, &text) && text.n_bytes == 0);
    assert_true(nib_gguf_kv_text(texts, 2, &text) && text.n_bytes == 5 && memcmp(text.data, "three", 5) == 0);
    assert_false(nib_gguf_kv_text(texts, 3, &text) || nib_gguf_kv_u64(numbers, 2, &u));
    assert_true(nib_gguf_kv_u64(numbers, 0, &u) && u == 5 && nib_gguf_kv_i64(numbers, 1, &i) && i == -1);
    const nib_tensor *tensor = nib_gguf_tensor_find(g, "token_embd.weight");
    assert_true(tensor && tensor->n_bytes == 96 && tensor->n_elements == 24 && tensor->ne[2] == 1);
    assert_true(nib_load_f32(tensor->data + 4) == -0.75f);
    assert_null(nib_gguf_tensor_find(g, "token_embd"));
    assert_int_equal(nib_gguf_check(g, NULL, NULL, &error), NIB_OK);
    nib_gguf_close(g);
    free(copy);
    free_image(&b);
}

static void test_reads_versions_2_and_3(void **state) {
    (void)state;
    read_version(2);
    read_version(3);
}

static void test_hash_follows_the_tensors(void **state) {
    (void)state;
    char first[33], second[33], third[33];
    builder b;
    nib_gguf *g;
    nib_error error = {0};
    const size_t n_header = make_valid(&b, 3);
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "a", &g, &error), NIB_OK);
    assert_int_equal(nib_gguf_hash(g, first, &error), NIB_OK);
    b.text.data[n_header + 5] ^= 1;
    assert_int_equal(nib_gguf_hash(g, second, &error), NIB_OK);
    nib_gguf_close(g);
    b.text.data[n_header + 5] ^= 1;
    b.text.data[4] = 2; /* another version, the same tensors */
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "b", &g, &error), NIB_OK);
    assert_int_equal(nib_gguf_hash(g, third, &error), NIB_OK);
    nib_gguf_close(g);
    assert_int_equal(strlen(first), 32);
    assert_string_not_equal(first, second);
    assert_string_equal(first, third);
    free_image(&b);
}

static void keep_warning(void *user, const char *message) {
    snprintf(user, 512, "%s", message);
}

static void test_check_warns_of_nan(void **state) {
    (void)state;
    char warning[512] = "";
    const nib_watch watch = {.user = warning, .warn = keep_warning};
    const uint32_t nan_bits = 0x7fc00000;
    builder b;
    nib_gguf *g;
    nib_error error = {0};
    const size_t n_header = make_valid(&b, 3);
    memcpy(b.text.data + n_header + 4 * (8 + 3), &nan_bits, 4);
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "a", &g, &error), NIB_OK);
    assert_int_equal(nib_gguf_check(g, NULL, &watch, &error), NIB_OK);
    assert_non_null(strstr(warning, "token_embd.weight"));
    assert_non_null(strstr(warning, "row 1, column 3"));
    nib_gguf_close(g);
    free_image(&b);
}

static void test_check_refuses_bad_scale(void **state) {
    (void)state;
    uint8_t block[34] = {0};
    builder b;
    nib_gguf *g;
    nib_error error = {0};
    begin_image(&b, 3);
    put_tensor(&b, "blk.0.ffn_up.weight", 2, (uint64_t[]){32, 2}, TYPE_Q8_0, 0);
    end_header(&b, 32);
    put_bytes(&b, block, sizeof block);
    block[1] = 0x7c; /* the second block's scale is infinite */
    put_bytes(&b, block, sizeof block);
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "a", &g, &error), NIB_OK);
    assert_int_equal(nib_gguf_check(g, NULL, NULL, &error), NIB_ERR_CORRUPT);
    assert_string_equal(error.field, "blk.0.ffn_up.weight");
    assert_non_null(strstr(error.message, "row 1"));
    nib_gguf_close(g);
    free_image(&b);
}

static void test_trailing_bytes_are_counted(void **state) {
    (void)state;
    builder b;
    nib_gguf *g;
    nib_error error = {0};
    make_valid(&b, 3);
    put_bytes(&b, "garbage", 7);
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "a", &g, &error), NIB_OK);
    assert_int_equal(nib_gguf_trailing_bytes(g), 7);
    nib_gguf_close(g);
    free_image(&b);
}

static void test_demo_is_built_in(void **state) {
    (void)state;
    nib_gguf *g;
    nib_error error = {0};
    const uint8_t *data;
    size_t n_bytes;
    nib_text text;
    const char *const names[] = {"model", "text", "choice", "prompts"};
    for (size_t i = 0; i < 4; i++) assert_true(nib_demo_file(names[i], &data, &n_bytes) && n_bytes > 1000);
    assert_false(nib_demo_file("other", &data, &n_bytes));
    assert_true(nib_demo_file("model", &data, &n_bytes) && (uintptr_t)data % 64 == 0);
    assert_int_equal(nib_gguf_open("demo", &g, &error), NIB_OK);
    assert_string_equal(nib_gguf_path(g), "demo");
    assert_int_equal(nib_gguf_bytes(g), n_bytes);
    assert_true(nib_gguf_get_text(g, "general.name", &text) && memcmp(text.data, "nibble-demo", 11) == 0);
    assert_int_equal(nib_gguf_check(g, NULL, NULL, &error), NIB_OK);
    nib_gguf_close(g);
}

static void test_roles(void **state) {
    (void)state;
    static const struct {
        const char *name, *role;
        int layer;
    } expected[] = {
        {"token_embd.weight", "embedding", -1},
        {"output.weight", "output", -1},
        {"output_norm.weight", "norm", -1},
        {"blk.0.attn_q.weight", "attn_q", 0},
        {"blk.12.attn_q.bias", "bias", 12},
        {"blk.12.attn_q_norm.weight", "qk_norm", 12},
        {"blk.3.ffn_down.weight", "ffn_down", 3},
        {"blk.3.ffn_down_exps.weight", "experts_down", 3},
        {"blk.3.ffn_gate_inp.weight", "router", 3},
        {"blk.3.ffn_gate_inp_shexp.weight", "router", 3},
        {"blk.3.exp_probs_b.bias", "router", 3},
        {"blk.3.ssm_a", "ssm_a", 3},
        {"blk.3.ssm_dt.bias", "ssm_dt", 3},
        {"blk.4.nextn.eh_proj.weight", "nextn", 4},
        {"rope_freqs.weight", "rope_freqs", -1},
        {"rope_factors_long.weight", "rope_freqs", -1},
        {"blk.4.ffn_up_exps.input_scale", "scale", 4},
        {"blk.weight", "other", -1},
        {"blk.99999999999999999999.attn_q.weight", "other", -1},
        {"blk.1.attn_qq.weight", "other", 1},
        {"", "other", -1},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int layer = 77;
        assert_string_equal(nib_tensor_role(expected[i].name, &layer), expected[i].role);
        assert_int_equal(layer, expected[i].layer);
    }
    assert_string_equal(nib_tensor_role("output.weight", NULL), "output");
}

/* ---- Refusing ------------------------------------------------------------------------------------------------------ */

static void test_every_truncation_is_refused(void **state) {
    (void)state;
    builder b;
    make_valid(&b, 3);
    const size_t n_needed = b.text.n_bytes - 16; /* the last tensor has 16 bytes and 16 of padding */
    for (size_t n = 0; n <= b.text.n_bytes; n++) {
        nib_gguf *gguf;
        void *copy;
        nib_error error = {0};
        const nib_status status = open_copy(b.text.data, n, &gguf, &copy, &error);
        if (n < n_needed) {
            assert_int_equal(status, NIB_ERR_CORRUPT);
            assert_true(error.message[0] && error.field[0] && error.hint[0]);
            assert_true(error.offset >= 0 && (size_t)error.offset <= n);
        } else {
            assert_int_equal(status, NIB_OK);
            read_all(gguf);
        }
        nib_gguf_close(gguf);
        free(copy);
    }
    free_image(&b);
}

/* Changes every byte of the header to several values; whatever opens must be readable to the last byte. */
static void sweep_mutations(uint8_t *data, size_t n_bytes, size_t n_header, bool check) {
    size_t n_opened = 0;
    uint64_t sum = 0;
    for (size_t at = 0; at < n_header; at++) {
        const uint8_t was = data[at];
        const uint8_t values[] = {
            0, 1, 0x20, 0x7f, 0x80, 0xff, was ^ 1, was ^ 8, (uint8_t)(was + 1), (uint8_t)(was - 1)};
        for (size_t v = 0; v < sizeof values; v++) {
            nib_gguf *gguf;
            nib_error error = {0};
            data[at] = values[v];
            const nib_status status = nib_gguf_open_memory(data, n_bytes, "mutated", &gguf, &error);
            if (status == NIB_OK) {
                n_opened++;
                if (check) {
                    sum += read_all(gguf);
                    nib_gguf_check(gguf, NULL, NULL, &error);
                }
            } else {
                assert_true(status == NIB_ERR_CORRUPT || status == NIB_ERR_UNSUPPORTED);
            }
            nib_gguf_close(gguf);
        }
        data[at] = was;
    }
    assert_true(n_opened > 0);
    (void)sum;
}

static void test_mutated_headers_do_no_harm(void **state) {
    (void)state;
    builder b;
    const size_t n_header = make_valid(&b, 3), n_bytes = b.text.n_bytes;
    uint8_t *data = malloc(n_bytes);
    assert_non_null(data);
    memcpy(data, b.text.data, n_bytes);
    sweep_mutations(data, n_bytes, n_header, true);
    free(data);
    free_image(&b);
}

static void test_refuses_lying_counts(void **state) {
    (void)state;
    const uint64_t lies[] = {100, 1u << 31, (uint64_t)1 << 60, INT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        builder b;
        make_valid(&b, 3);
        memcpy(b.text.data + 8, &lies[i], 8);
        expect_refused(&b, "n_tensors", "tensors");
        free_image(&b);
        make_valid(&b, 3);
        memcpy(b.text.data + 16, &lies[i], 8);
        expect_refused(&b, "n_kv", "pairs");
        free_image(&b);
    }
}

static void test_refuses_versions(void **state) {
    (void)state;
    const struct {
        uint32_t version;
        const char *words;
    } cases[] = {{0, "version 0"}, {1, "version 1"}, {4, "version 4"}, {0x03000000, "big-endian"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        builder b;
        make_valid(&b, cases[i].version);
        expect_refused(&b, "version", cases[i].words);
        free_image(&b);
    }
}

/* A header with one pair whose value is the given bytes. */
static void expect_pair_refused(uint32_t type, const void *value, size_t n_bytes, const char *words) {
    builder b;
    begin_image(&b, 3);
    put_key(&b, "the.key", type);
    put_bytes(&b, value, n_bytes);
    end_header(&b, 32);
    put_bytes(&b, (char[64]){0}, 64);
    expect_refused(&b, "the.key", words);
    free_image(&b);
}

static void test_refuses_bad_pairs(void **state) {
    (void)state;
    const uint64_t huge = UINT64_MAX, wraps = ((uint64_t)1 << 62) + 1;
    uint8_t array[12];
    expect_pair_refused(13, "", 0, "type 13");
    expect_pair_refused(0xffffffff, "", 0, "type -1");
    expect_pair_refused(NIB_GGUF_STRING, &huge, 8, "length");
    memcpy(array, &(uint32_t){NIB_GGUF_ARRAY}, 4), memcpy(array + 4, &huge, 8);
    expect_pair_refused(NIB_GGUF_ARRAY, array, 12, "arrays of arrays");
    memcpy(array, &(uint32_t){99}, 4);
    expect_pair_refused(NIB_GGUF_ARRAY, array, 12, "element type 99");
    for (uint32_t type = 0; type <= NIB_GGUF_F64; type++) {
        if (type == NIB_GGUF_ARRAY) continue;
        memcpy(array, &type, 4), memcpy(array + 4, &wraps, 8);
        expect_pair_refused(NIB_GGUF_ARRAY, array, 12, "cannot stand");
    }
    builder b;
    begin_image(&b, 3);
    put_kv_u32(&b, "", 1);
    end_header(&b, 32);
    expect_refused(&b, "metadata", "empty");
    free_image(&b);
}

static void test_refuses_bad_alignment(void **state) {
    (void)state;
    const uint32_t wrong[] = {0, 3, 33, 0xffffffff};
    builder b;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        begin_image(&b, 3);
        put_kv_u32(&b, "general.alignment", wrong[i]);
        end_header(&b, 32);
        expect_refused(&b, "general.alignment", "power of two");
        free_image(&b);
    }
    begin_image(&b, 3);
    put_kv_string(&b, "general.alignment", "32");
    end_header(&b, 32);
    expect_refused(&b, "general.alignment", "type string");
    free_image(&b);
}

static void test_other_alignments_work(void **state) {
    (void)state;
    const uint32_t alignments[] = {1, 8, 64, 4096};
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        builder b;
        nib_gguf *g;
        nib_error error = {0};
        begin_image(&b, 3);
        put_kv_u32(&b, "general.alignment", alignments[i]);
        put_tensor(&b, "a", 1, (uint64_t[]){1}, TYPE_F32, 0);
        put_tensor(&b, "b", 1, (uint64_t[]){1}, TYPE_F32, nib_round_up(4, alignments[i]));
        end_header(&b, alignments[i]);
        put_u32(&b, 1), pad_image(&b, alignments[i]), put_u32(&b, 2);
        assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "a", &g, &error), NIB_OK);
        assert_int_equal(nib_load_u32(nib_gguf_tensor_find(g, "b")->data), 2);
        nib_gguf_close(g);
        free_image(&b);
    }
}

/* A header with one tensor, then plenty of payload. */
static void expect_tensor_refused(const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset,
                                  const char *words) {
    builder b;
    begin_image(&b, 3);
    put_tensor(&b, name, n_dims, ne, type, offset);
    end_header(&b, 32);
    put_bytes(&b, (char[4096]){0}, 4096);
    expect_refused(&b, strlen(name) == 0 || strlen(name) > 63 ? "tensor" : name, words);
    free_image(&b);
}

static void test_refuses_bad_tensors(void **state) {
    (void)state;
    char name[65];
    memset(name, 'x', 64), name[64] = 0;
    const uint64_t five[5] = {1, 1, 1, 1, 1};
    expect_tensor_refused("", 1, five, TYPE_F32, 0, "empty");
    expect_tensor_refused(name, 1, five, TYPE_F32, 0, "64 bytes");
    expect_tensor_refused("t", 0, five, TYPE_F32, 0, "0 dimensions");
    expect_tensor_refused("t", 5, five, TYPE_F32, 0, "5 dimensions");
    expect_tensor_refused("t", 2, (uint64_t[]){4, 0}, TYPE_F32, 0, "dimension 1 is 0");
    expect_tensor_refused("t", 2, (uint64_t[]){UINT64_MAX, 1}, TYPE_F32, 0, "is -1");
    expect_tensor_refused("t", 2, (uint64_t[]){(uint64_t)1 << 32, (uint64_t)1 << 32}, TYPE_F32, 0, "multiply");
    expect_tensor_refused("t", 4, (uint64_t[]){1u << 16, 1u << 16, 1u << 16, 1u << 15}, TYPE_F32, 0, "multiply");
    expect_tensor_refused("t", 1, (uint64_t[]){(uint64_t)1 << 62}, TYPE_F32, 0, "overflows");
    expect_tensor_refused("t", 1, (uint64_t[]){2048}, TYPE_F32, 0, "file ends");
    expect_tensor_refused("t", 1, (uint64_t[]){33}, TYPE_Q8_0, 0, "block of 32");
    expect_tensor_refused("t", 1, (uint64_t[]){32}, 999, 0, "type id 999");
    expect_tensor_refused("t", 1, (uint64_t[]){32}, 31, 0, "size cannot be known");
    expect_tensor_refused("t", 1, (uint64_t[]){32}, 0xffffffff, 0, "type id -1");
    expect_tensor_refused("t", 1, (uint64_t[]){32}, TYPE_F32, 32, "offset 32");
    expect_tensor_refused("t", 1, (uint64_t[]){32}, TYPE_F32, UINT64_MAX, "offset");
}

static void test_refuses_duplicates_among_many(void **state) {
    (void)state;
    enum { N = 20000 };
    builder b;
    char name[32];
    begin_image(&b, 3);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "key.%d", i == N - 1 ? 5 : i);
        put_kv_u32(&b, name, 0);
    }
    end_header(&b, 32);
    expect_refused(&b, "key.5", "twice");
    free_image(&b);
    begin_image(&b, 3);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "blk.%d.x", i == N - 1 ? 7 : i);
        put_tensor(&b, name, 1, (uint64_t[]){8}, TYPE_F32, (uint64_t)i * 32);
    }
    end_header(&b, 32);
    expect_refused(&b, "blk.7.x", "twice");
    free_image(&b);
}

static void test_refuses_overlaps_and_sums_that_wrap(void **state) {
    (void)state;
    builder b;
    begin_image(&b, 3);
    put_tensor(&b, "a", 1, (uint64_t[]){16}, TYPE_F32, 0);
    put_tensor(&b, "b", 1, (uint64_t[]){16}, TYPE_F32, 32);
    end_header(&b, 32);
    put_f32_payload(&b, 64);
    expect_refused(&b, "b", "end at 64");
    free_image(&b);
    begin_image(&b, 3);
    put_tensor(&b, "a", 1, (uint64_t[]){0x1FFFFFFFFFFFFFF0}, TYPE_F32, 0);
    put_tensor(&b, "b", 1, (uint64_t[]){0x1FFFFFFFFFFFFFF0}, TYPE_F32, 0x7FFFFFFFFFFFFFC0);
    end_header(&b, 32);
    put_f32_payload(&b, 64);
    expect_refused(&b, "b", "overflow");
    free_image(&b);
}

static void expect_split(uint16_t number, uint16_t count, uint32_t total, bool has_number, nib_status expected) {
    builder b;
    nib_gguf *g;
    nib_error error = {0};
    begin_image(&b, 3);
    put_key(&b, "split.count", NIB_GGUF_U16), put_bytes(&b, &count, 2);
    if (has_number) put_key(&b, "split.no", NIB_GGUF_U16), put_bytes(&b, &number, 2);
    put_key(&b, "split.tensors.count", NIB_GGUF_I32), put_u32(&b, total);
    put_tensor(&b, "a", 1, (uint64_t[]){8}, TYPE_F32, 0);
    end_header(&b, 32);
    put_f32_payload(&b, 8);
    assert_int_equal(nib_gguf_open_memory(b.text.data, b.text.n_bytes, "a", &g, &error), expected);
    if (expected != NIB_OK) assert_true(error.hint[0] && strncmp(error.field, "split.", 6) == 0);
    nib_gguf_close(g);
    free_image(&b);
}

static void test_split_models(void **state) {
    (void)state;
    expect_split(0, 0, 1, true, NIB_OK);
    expect_split(0, 1, 1, true, NIB_OK);
    expect_split(0, 2, 2, true, NIB_ERR_UNSUPPORTED);
    expect_split(1, 2, 2, true, NIB_ERR_UNSUPPORTED);
    expect_split(2, 2, 2, true, NIB_ERR_CORRUPT);
    expect_split(0, 2, 2, false, NIB_ERR_CORRUPT);
    expect_split(0, 65535, 12, true, NIB_ERR_CORRUPT);
    expect_split(0, 2, 0, true, NIB_ERR_CORRUPT);
    expect_split(0, 2, 0x80000000, true, NIB_ERR_CORRUPT);
}

static void test_refuses_what_is_no_file(void **state) {
    (void)state;
    nib_gguf *g;
    nib_error error = {0};
    assert_int_equal(nib_gguf_open("/nonexistent/model.gguf", &g, &error), NIB_ERR_IO);
    assert_int_equal(nib_gguf_open("/", &g, &error), NIB_ERR_IO);
    assert_int_equal(nib_gguf_open("/dev/null", &g, &error), NIB_ERR_IO);
    assert_int_equal(nib_gguf_open_memory("not a model", 11, "a", &g, &error), NIB_ERR_CORRUPT);
    assert_string_equal(error.field, "magic");
    assert_int_equal(nib_gguf_open_memory(NULL, 0, "a", &g, &error), NIB_ERR_CORRUPT);
}

/* ---- The collection of bad files ----------------------------------------------------------------------------------- */

static bool shared_path(char *path, size_t n, const char *name) {
    const char *shared = getenv("NIBBLE_SHARED");
    snprintf(path, n, "%s/%s", shared ? shared : "../shared", name);
    FILE *file = fopen(path, "r");
    if (!file) {
        print_message("skipped: %s is absent\n", path);
        return false;
    }
    fclose(file);
    return true;
}

/* expected: "3", "0" or "0,3" of the table's last column. */
static void try_bad_file(const char *path, bool at_load, const char *expected) {
    nib_gguf *gguf;
    nib_error error = {0};
    nib_status status = nib_gguf_open(path, &gguf, &error);
    if (status == NIB_OK) read_all(gguf);
    if (status == NIB_OK && !at_load) status = nib_gguf_check(gguf, NULL, NULL, &error);
    nib_gguf_close(gguf);
    char digit[2] = {(char)('0' + (int)status), 0};
    if (at_load ? status != NIB_OK && status != NIB_ERR_CORRUPT : !strstr(expected, digit))
        fail_msg("%s: status %d, expected %s: %s", path, status, expected, error.message);
    if (status != NIB_OK) assert_true(error.file[0] && error.field[0] && error.offset >= 0 && error.message[0]);
}

static void test_bad_files(void **state) {
    (void)state;
    char path[1024], line[1024];
    if (!shared_path(path, sizeof path, "data/badinput/gguf_expect.tsv")) skip();
    FILE *table = fopen(path, "r");
    assert_non_null(table);
    size_t n_files = 0;
    for (bool header = true; fgets(line, sizeof line, table); header = false) {
        if (header) continue;
        char *tab = strchr(line, '\t'), *last = strrchr(line, '\t');
        assert_non_null(tab);
        *tab = '\0';
        char file[1200];
        snprintf(file, sizeof file, "%.*s/gguf/%s", (int)(strrchr(path, '/') - path), path, line);
        try_bad_file(file, strstr(tab + 1, "model load") != NULL, last + 1);
        n_files++;
    }
    fclose(table);
    assert_true(n_files > 50);
}

static void test_real_file_sweeps(void **state) {
    (void)state;
    char path[1024];
    if (!shared_path(path, sizeof path, "data/badinput/gguf/ok_valid.gguf")) skip();
    nib_gguf *gguf;
    nib_error error = {0};
    assert_int_equal(nib_gguf_open(path, &gguf, &error), NIB_OK);
    const size_t n_bytes = (size_t)nib_gguf_bytes(gguf), n_header = (size_t)nib_gguf_tensor_at(gguf, 0)->offset;
    uint8_t *data = malloc(n_bytes);
    assert_non_null(data);
    memcpy(data, nib_gguf_tensor_at(gguf, 0)->data - n_header, n_bytes);
    nib_gguf_close(gguf);
    for (size_t n = 0; n < n_bytes; n += n < n_header ? 7 : 997) {
        void *copy;
        assert_int_equal(open_copy(data, n, &gguf, &copy, &error), NIB_ERR_CORRUPT);
        free(copy);
    }
    sweep_mutations(data, n_bytes, n_header, false);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_versions_2_and_3),
        cmocka_unit_test(test_hash_follows_the_tensors),
        cmocka_unit_test(test_check_warns_of_nan),
        cmocka_unit_test(test_check_refuses_bad_scale),
        cmocka_unit_test(test_trailing_bytes_are_counted),
        cmocka_unit_test(test_demo_is_built_in),
        cmocka_unit_test(test_roles),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_mutated_headers_do_no_harm),
        cmocka_unit_test(test_refuses_lying_counts),
        cmocka_unit_test(test_refuses_versions),
        cmocka_unit_test(test_refuses_bad_pairs),
        cmocka_unit_test(test_refuses_bad_alignment),
        cmocka_unit_test(test_other_alignments_work),
        cmocka_unit_test(test_refuses_bad_tensors),
        cmocka_unit_test(test_refuses_duplicates_among_many),
        cmocka_unit_test(test_refuses_overlaps_and_sums_that_wrap),
        cmocka_unit_test(test_split_models),
        cmocka_unit_test(test_refuses_what_is_no_file),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_real_file_sweeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
