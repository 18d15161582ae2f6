/* Byte-level byte-pair encoding (Sennrich et al. 2016; over bytes as in GPT-2).
 *
 * Every byte has a printable form, a code point (space is U+0120, "Ġ"), and vocabularies and merges are written in these.
 * A piece starts as the chain of its bytes' strings; the adjacent pair with the lowest rank merges, leftmost first, until
 * no pair is in the table:
 *
 *   heap: (rank, left) ...        h e l l o  ->  h e ll o  ->  he ll o  ->  hello
 *
 * Merging works on numbers of strings, never on text: (left, right) -> rank -> result. An entry of the heap is out of date
 * when the chain at its left no longer holds the pair of its rank; it is then dropped, so a piece of n bytes takes
 * O(n log n). */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <xxhash.h>

#define NONE UINT32_MAX

/* ---- Bytes and their printable forms -------------------------------------------------------------------------------- */

static bool prints_as_itself(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* The other 68 bytes, in order, are U+0100, U+0101, ... */
static uint32_t printable_of(uint8_t byte) {
    if (prints_as_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    if (byte <= 0xa0) return 0x100u + 33 + (byte - 0x7f);
    return 0x100u + 67; /* 0xad */
}

/* -1: not the form of any byte. */
static int byte_of(uint32_t code_point) {
    if (code_point < 0x100) return prints_as_itself(code_point) ? (int)code_point : -1;
    if (code_point <= 0x120) return (int)(code_point - 0x100);
    if (code_point <= 0x142) return (int)(code_point - 0x121 + 0x7f);
    return code_point == 0x143 ? 0xad : -1;
}

void nib_bpe_decode(const char *text, size_t n_bytes, nib_string *out) {
    for (size_t at = 0, used; at < n_bytes; at += used) {
        const uint32_t code_point = nib_text_decode(text + at, n_bytes - at, &used);
        const int byte = byte_of(code_point);
        if (byte >= 0) {
            nib_string_add(out, &(const char){(char)byte}, 1);
            continue;
        }
        char encoded[4];
        const size_t n = nib_text_encode(code_point, encoded);
        nib_string_addf(out, "[UNK_BYTE_0x");
        for (size_t i = 0; i < n; i++) nib_string_addf(out, "%02x", (unsigned)(uint8_t)encoded[i]);
        nib_string_add(out, "]", 1);
    }
}

/* ---- The table of merges -------------------------------------------------------------------------------------------- */

/* The slot that holds the pair, or the empty one where it belongs. */
static struct nib_slot *slot_of(const nib_bpe *bpe, uint32_t left, uint32_t right, uint32_t *tag) {
    const uint64_t key = (uint64_t)left << 32 | right, hash = XXH3_64bits(&key, sizeof key);
    const size_t mask = bpe->n_slots - 1;
    *tag = (uint32_t)(hash >> 32);
    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        struct nib_slot *slot = &bpe->slots[i];
        if (slot->number == 0) return slot;
        if (slot->tag != *tag) continue;
        const struct nib_merge *merge = &bpe->merges[slot->number - 1];
        if (merge->left == left && merge->right == right) return slot;
    }
}

/* One-byte tokens are looked up as each byte comes, its own form is added after: both are tokens if the file has them. */
static nib_status read_bytes(nib_bpe *bpe, nib_strings *strings, nib_error *error) {
    for (unsigned byte = 0; byte < 256; byte++) {
        char form[4];
        const char itself = (char)byte;
        const size_t n = nib_text_encode(printable_of((uint8_t)byte), form);
        const uint32_t token = nib_strings_find(strings, &itself, 1);
        bpe->byte_tokens[byte] = token == NIB_NO_STRING ? -1 : (int32_t)token;
        bpe->byte_strings[byte] = nib_strings_add(strings, form, n, NULL);
        if (bpe->byte_strings[byte] == NIB_NO_STRING) return nib_fail_memory(error, n);
    }
    return NIB_OK;
}

/* Reads one merge; `guess` is the result of the one before it. */
static nib_status read_merge(nib_strings *strings, nib_text entry, const char *space, uint32_t guess,
                             nib_string *joined, struct nib_merge *out, nib_error *error) {
    const size_t n_left = (size_t)(space - entry.data), n_right = entry.n_bytes - n_left - 1;
    joined->n_bytes = 0;
    nib_string_add(joined, entry.data, n_left);
    nib_string_add(joined, space + 1, n_right);
    if (joined->failed) return nib_fail_memory(error, entry.n_bytes);
    out->left = nib_strings_add(strings, entry.data, n_left, NULL);
    out->right = nib_strings_add(strings, space + 1, n_right, NULL);
    /* Tokens mostly come in the order of the merges that make them, which saves the look-up. */
    if (nib_strings_is(strings, guess, joined->data, joined->n_bytes)) {
        out->result = guess;
    } else if (nib_strings_is(strings, guess + 1, joined->data, joined->n_bytes)) {
        out->result = guess + 1;
    } else {
        out->result = nib_strings_add(strings, joined->data, joined->n_bytes, NULL);
    }
    const bool all = out->left != NONE && out->right != NONE && out->result != NONE;
    return all ? NIB_OK : nib_fail_memory(error, entry.n_bytes);
}

nib_status nib_bpe_init(nib_bpe *bpe, nib_strings *strings, const nib_gguf_kv *merges, const char *file,
                        nib_error *error) {
    nib_status status = NIB_OK;
    nib_string joined = {0};
    NIB_TRY_GOTO(read_bytes(bpe, strings, error));
    bpe->n_slots = 16;
    while (bpe->n_slots < merges->n * 2) bpe->n_slots *= 2;
    bpe->slots = nib_alloc(bpe->n_slots, sizeof *bpe->slots);
    bpe->merges = nib_alloc((size_t)merges->n, sizeof *bpe->merges);
    if (bpe->slots == NULL || bpe->merges == NULL) {
        status = nib_fail_memory(error, bpe->n_slots * sizeof *bpe->slots);
        goto fail;
    }
    for (uint64_t rank = 0; rank < merges->n; rank++) {
        nib_text entry;
        const char *space = NULL;
        struct nib_merge *merge = &bpe->merges[rank];
        uint32_t tag;
        /* A pair is cut at the first space that leaves something on its left. */
        if (nib_gguf_kv_text(merges, rank, &entry) && entry.n_bytes > 2)
            space = memchr(entry.data + 1, ' ', entry.n_bytes - 1);
        if (space == NULL || space + 1 == entry.data + entry.n_bytes) {
            status = nib_fail_at(error, NIB_ERR_CORRUPT, file, merges->offset, "tokenizer.ggml.merges",
                                 "merge %llu is not a pair of strings", (unsigned long long)rank);
            goto fail;
        }
        NIB_TRY_GOTO(read_merge(strings, entry, space, rank > 0 ? merge[-1].result : NONE - 1, &joined, merge, error));
        struct nib_slot *slot = slot_of(bpe, merge->left, merge->right, &tag);
        if (slot->number == 0) *slot = (struct nib_slot){tag, (uint32_t)rank + 1}; /* the first of equal pairs counts */
    }
fail:
    nib_string_fini(&joined);
    return status;
}

void nib_bpe_fini(nib_bpe *bpe) {
    free(bpe->merges);
    free(bpe->slots);
    memset(bpe, 0, sizeof *bpe);
}

/* ---- Merging a piece ------------------------------------------------------------------------------------------------ */

typedef struct heap {
    uint64_t *keys; /* a binary heap, smallest first */
    size_t n;
} heap;

static void heap_push(heap *h, uint64_t key) {
    size_t i = h->n++;
    while (i > 0 && h->keys[(i - 1) / 2] > key) {
        h->keys[i] = h->keys[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->keys[i] = key;
}

static uint64_t heap_pop(heap *h) {
    const uint64_t top = h->keys[0], key = h->keys[--h->n];
    size_t i = 0;
    for (size_t child = 1; child < h->n; child = 2 * i + 1) {
        if (child + 1 < h->n && h->keys[child + 1] < h->keys[child]) child++;
        if (h->keys[child] >= key) break;
        h->keys[i] = h->keys[child];
        i = child;
    }
    h->keys[i] = key;
    return top;
}

static bool make_room(nib_bpe_scratch *scratch, size_t n_bytes) {
    if (n_bytes <= scratch->capacity) return true;
    size_t capacity = n_bytes < 64 ? 64 : n_bytes * 2;
    nib_bpe_scratch_fini(scratch);
    scratch->symbols = nib_alloc(capacity, sizeof *scratch->symbols);
    scratch->previous = nib_alloc(capacity, sizeof *scratch->previous);
    scratch->next = nib_alloc(capacity, sizeof *scratch->next);
    /* n - 1 pairs to begin with; each of at most n - 1 merges takes one entry and adds at most two. */
    scratch->heap = nib_alloc(capacity, 2 * sizeof *scratch->heap);
    if (!scratch->symbols || !scratch->previous || !scratch->next || !scratch->heap) {
        nib_bpe_scratch_fini(scratch);
        return false;
    }
    scratch->capacity = capacity;
    return true;
}

void nib_bpe_scratch_fini(nib_bpe_scratch *scratch) {
    free(scratch->symbols);
    free(scratch->previous);
    free(scratch->next);
    free(scratch->heap);
    free(scratch->mapped);
    memset(scratch, 0, sizeof *scratch);
}

/* Queues the pair that begins at left, if it merges at all. */
static void push_pair(const nib_bpe *bpe, const nib_bpe_scratch *s, uint32_t left, heap *h) {
    if (left == NONE || s->next[left] == NONE) return;
    uint32_t tag;
    const uint32_t rank = slot_of(bpe, s->symbols[left], s->symbols[s->next[left]], &tag)->number - 1;
    if (rank != NONE) heap_push(h, (uint64_t)rank << 32 | left);
}

/* Leaves the merged chain in the scratch; it begins at 0. */
static void merge_piece(const nib_bpe *bpe, const uint8_t *piece, uint32_t n_bytes, nib_bpe_scratch *s) {
    heap h = {s->heap, 0};
    for (uint32_t i = 0; i < n_bytes; i++) {
        s->symbols[i] = bpe->byte_strings[piece[i]];
        s->previous[i] = i - 1; /* NONE before the first */
        s->next[i] = i + 1 < n_bytes ? i + 1 : NONE;
    }
    for (uint32_t i = 0; i < n_bytes; i++) push_pair(bpe, s, i, &h);
    while (h.n > 0) {
        const uint64_t key = heap_pop(&h);
        const struct nib_merge *merge = &bpe->merges[key >> 32];
        const uint32_t left = (uint32_t)key, right = s->next[left];
        if (s->symbols[left] != merge->left || right == NONE || s->symbols[right] != merge->right) continue;
        s->symbols[left] = merge->result;
        s->symbols[right] = NONE; /* no merge begins with it, so entries at right are out of date */
        s->next[left] = s->next[right];
        if (s->next[left] != NONE) s->previous[s->next[left]] = left;
        push_pair(bpe, s, s->previous[left], &h);
        push_pair(bpe, s, left, &h);
    }
}

/* Is the piece, in printable form, one token? NIB_NO_STRING if not. */
static nib_status find_whole(const nib_strings *strings, const uint8_t *piece, size_t n_bytes, nib_bpe_scratch *scratch,
                             uint32_t *out, nib_error *error) {
    size_t n = 0;
    if (!nib_grow((void **)&scratch->mapped, &scratch->mapped_capacity, n_bytes * 2 + 4, 1))
        return nib_fail_memory(error, n_bytes * 2);
    for (size_t i = 0; i < n_bytes; i++) n += nib_text_encode(printable_of(piece[i]), scratch->mapped + n);
    *out = nib_strings_find(strings, scratch->mapped, n);
    return NIB_OK;
}

nib_status nib_bpe_encode(const nib_tokenizer *tokenizer, const char *piece, size_t n_bytes, nib_bpe_scratch *scratch,
                          nib_ids *out, nib_error *error) {
    const nib_bpe *bpe = &tokenizer->bpe;
    const nib_strings *strings = &tokenizer->strings;
    if (n_bytes == 0) return NIB_OK;
    if (!make_room(scratch, n_bytes)) return nib_fail_memory(error, n_bytes * 28);
    if (tokenizer->pre_facts.ignore_merges) {
        uint32_t whole = NIB_NO_STRING;
        NIB_TRY(find_whole(strings, (const uint8_t *)piece, n_bytes, scratch, &whole, error));
        if (whole < tokenizer->facts.n_vocab) return nib_ids_add(out, (int32_t)whole, error);
    }
    merge_piece(bpe, (const uint8_t *)piece, (uint32_t)n_bytes, scratch);
    for (uint32_t i = 0; i != NONE; i = scratch->next[i]) {
        const uint32_t symbol = scratch->symbols[i];
        if (symbol < tokenizer->facts.n_vocab) {
            NIB_TRY(nib_ids_add(out, (int32_t)symbol, error));
            continue;
        }
        /* A string that is no token falls apart into the tokens of its single bytes; bytes without one vanish. */
        const struct nib_span span = strings->spans[symbol];
        for (uint32_t k = 0; k < span.n; k++) {
            const int32_t token = bpe->byte_tokens[(uint8_t)strings->bytes[span.at + k]];
            if (token >= 0) NIB_TRY(nib_ids_add(out, token, error));
        }
    }
    return NIB_OK;
}
