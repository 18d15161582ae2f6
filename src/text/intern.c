/* Distinct strings with numbers: one arena of bytes, spans into it, and a hash table of open addressing over the numbers.
 *
 *   slots: [tag|number+1] ... --> spans[number] = {at, n} --> bytes[at .. at + n)
 *
 * The upper half of the hash lies beside the number, so nearly every wrong slot is passed without touching the strings. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <xxhash.h>

bool nib_strings_init(nib_strings *strings, size_t n_expected) {
    if (n_expected > (size_t)1 << 31) return false;
    memset(strings, 0, sizeof *strings);
    strings->n_slots = 16;
    while (strings->n_slots < n_expected * 2) strings->n_slots *= 2;
    strings->slots = nib_alloc(strings->n_slots, sizeof *strings->slots);
    return strings->slots != NULL;
}

void nib_strings_fini(nib_strings *strings) {
    free(strings->bytes);
    free(strings->spans);
    free(strings->slots);
    memset(strings, 0, sizeof *strings);
}

bool nib_strings_is(const nib_strings *strings, uint32_t number, const char *text, size_t n_bytes) {
    if (number >= strings->n || strings->spans[number].n != n_bytes) return false;
    return memcmp(strings->bytes + strings->spans[number].at, text, n_bytes) == 0;
}

/* The slot that holds the string, or the empty one where it belongs. */
static struct nib_slot *slot_of(const nib_strings *strings, const char *text, size_t n_bytes, uint64_t hash) {
    const size_t mask = strings->n_slots - 1;
    const uint32_t tag = (uint32_t)(hash >> 32);
    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        struct nib_slot *slot = &strings->slots[i];
        if (slot->number == 0) return slot;
        if (slot->tag != tag) continue;
        if (nib_strings_is(strings, slot->number - 1, text, n_bytes)) return slot;
    }
}

static bool double_slots(nib_strings *strings) {
    const size_t n_slots = strings->n_slots * 2, mask = n_slots - 1;
    struct nib_slot *slots = nib_alloc(n_slots, sizeof *slots);
    if (slots == NULL) return false;
    for (size_t number = 0; number < strings->n; number++) {
        const struct nib_span span = strings->spans[number];
        const uint64_t hash = XXH3_64bits(strings->bytes + span.at, span.n);
        size_t i = (size_t)hash & mask;
        while (slots[i].number != 0) i = (i + 1) & mask;
        slots[i] = (struct nib_slot){(uint32_t)(hash >> 32), (uint32_t)number + 1};
    }
    free(strings->slots);
    strings->slots = slots;
    strings->n_slots = n_slots;
    return true;
}

uint32_t nib_strings_find(const nib_strings *strings, const char *text, size_t n_bytes) {
    if (strings->n == 0 || n_bytes == 0) return NIB_NO_STRING;
    const struct nib_slot *slot = slot_of(strings, text, n_bytes, XXH3_64bits(text, n_bytes));
    return slot->number == 0 ? NIB_NO_STRING : slot->number - 1;
}

uint32_t nib_strings_add(nib_strings *strings, const char *text, size_t n_bytes, bool *added) {
    const uint64_t hash = XXH3_64bits(text, n_bytes);
    struct nib_slot *slot = slot_of(strings, text, n_bytes, hash);
    if (added) *added = slot->number == 0;
    if (slot->number != 0) return slot->number - 1;

    if (n_bytes > UINT32_MAX || strings->n_bytes > UINT32_MAX - n_bytes || strings->n >= INT32_MAX)
        return NIB_NO_STRING;
    if (strings->n + 1 > strings->n_slots / 2) {
        if (!double_slots(strings)) return NIB_NO_STRING;
        slot = slot_of(strings, text, n_bytes, hash);
    }
    if (!nib_grow((void **)&strings->bytes, &strings->bytes_capacity, strings->n_bytes + n_bytes + 1, 1) ||
        !nib_grow((void **)&strings->spans, &strings->spans_capacity, strings->n + 1, sizeof *strings->spans))
        return NIB_NO_STRING;
    memcpy(strings->bytes + strings->n_bytes, text, n_bytes);
    strings->spans[strings->n] = (struct nib_span){(uint32_t)strings->n_bytes, (uint32_t)n_bytes};
    strings->n_bytes += n_bytes;
    *slot = (struct nib_slot){(uint32_t)(hash >> 32), (uint32_t)strings->n + 1};
    return (uint32_t)strings->n++;
}
