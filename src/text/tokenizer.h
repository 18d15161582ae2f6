/* Inside the tokenizer: what the loader builds and the two halves of tokenizing share.
 *
 *   text --special.c--> fragments --pretokenize.c--> pieces --bpe.c--> ids
 *
 * After loading everything here is read-only, so one tokenizer serves any number of threads; what a call needs for itself
 * lies in nib_pieces and nib_bpe_scratch. */
#ifndef NIB_TEXT_TOKENIZER_H
#define NIB_TEXT_TOKENIZER_H

#include "base/error.h"
#include "base/memory.h"
#include "nibble/text.h"

/* The longest text one call takes, so that every position, even after repair (3 bytes for a broken one), fits 32 bits. */
#define NIB_TEXT_MAX_BYTES ((size_t)1 << 30)

/* ---- Strings with numbers ------------------------------------------------------------------------------------------ */

/* Distinct strings, numbered from 0 in the order they came. The first n_vocab are the tokens, so that a token's number is
 * its id; strings that only merges mention follow. */
typedef struct nib_strings {
    char *bytes; /* all strings, one after the other */
    size_t n_bytes, bytes_capacity;
    struct nib_span {
        uint32_t at, n; /* in bytes */
    } * spans;
    size_t n, spans_capacity;
    struct nib_slot {
        uint32_t tag, number; /* upper half of the hash; number + 1, 0 = empty */
    } * slots;
    size_t n_slots; /* a power of two, at most half full */
} nib_strings;

#define NIB_NO_STRING UINT32_MAX

bool nib_strings_init(nib_strings *strings, size_t n_expected);
void nib_strings_fini(nib_strings *strings);
/* The number of a string, NIB_NO_STRING if it is not there. */
uint32_t nib_strings_find(const nib_strings *strings, const char *text, size_t n_bytes);
/* The same, adding it if need be; NIB_NO_STRING without memory or past 4 GiB of text. *added may be NULL. */
uint32_t nib_strings_add(nib_strings *strings, const char *text, size_t n_bytes, bool *added);
/* Is string `number` (any value) this one? */
bool nib_strings_is(const nib_strings *strings, uint32_t number, const char *text, size_t n_bytes);

/* ---- Cutting text into pieces (pretokenize.c) ---------------------------------------------------------------------- */

typedef struct nib_pre nib_pre;

/* What the name of a pre-tokenizer implies besides its regexes. */
typedef struct nib_pre_facts {
    bool ignore_merges;  /* a piece that is a token is that token, whatever the merges say */
    bool add_bos;        /* unless the file says otherwise */
    bool no_default_bos; /* no BOS unless the file names one */
} nib_pre_facts;

/* *out stays NULL for a name nibble does not know. */
nib_status nib_pre_new(const char *name, nib_pre **out, nib_error *error);
void nib_pre_free(nib_pre *pre);
nib_pre_facts nib_pre_facts_of(const nib_pre *pre);

typedef struct nib_pieces {
    char *text; /* the text as UTF-8 with every undecodable byte replaced by U+FFFD */
    size_t n_bytes, text_capacity;
    uint32_t *ends; /* (n) end of each piece in text, ascending, the last n_bytes */
    size_t n, ends_capacity;
    uint32_t *spare; /* the other half of the ping-pong between regexes */
    size_t spare_capacity;
    uint8_t *classes; /* one byte per code point, what the regexes see */
    size_t classes_capacity;
} nib_pieces;

void nib_pieces_fini(nib_pieces *pieces);
nib_status nib_pre_split(const nib_pre *pre, const char *text, size_t n_bytes, nib_pieces *out, nib_error *error);

/* ---- Byte-level BPE (bpe.c) ---------------------------------------------------------------------------------------- */

typedef struct nib_bpe {
    struct nib_merge {
        uint32_t left, right, result; /* numbers of strings */
    } * merges;                       /* by rank */
    struct nib_slot *slots;           /* rank + 1 by hash of (left, right), 0 = empty */
    size_t n_slots;                   /* a power of two, at most half full */
    uint32_t byte_strings[256];       /* string number of each byte's printable form */
    int32_t byte_tokens[256];         /* token whose stored text is this single byte, -1 if none */
} nib_bpe;

typedef struct nib_bpe_scratch {
    uint32_t *symbols, *previous, *next; /* a chain of symbols over the bytes of a piece */
    uint64_t *heap;                      /* rank << 32 | left: the smallest key is the next merge */
    size_t capacity;                     /* bytes of a piece that fit */
    char *mapped;
    size_t mapped_capacity;
} nib_bpe_scratch;

/* merges: array of strings "left right". Adds the strings it needs. */
nib_status nib_bpe_init(nib_bpe *bpe, nib_strings *strings, const nib_gguf_kv *merges, const char *file,
                        nib_error *error);
void nib_bpe_fini(nib_bpe *bpe);
void nib_bpe_scratch_fini(nib_bpe_scratch *scratch);
/* Appends the tokens of one piece. */
nib_status nib_bpe_encode(const nib_tokenizer *tokenizer, const char *piece, size_t n_bytes, nib_bpe_scratch *scratch,
                          nib_ids *out, nib_error *error);
/* Appends the bytes a stored token stands for. */
void nib_bpe_decode(const char *text, size_t n_bytes, nib_string *out);

/* Decodes one code point at text[0] (n_bytes > 0) and says how many bytes it took; overlong forms and surrogates pass, as
 * in llama.cpp. A byte that starts nothing valid gives U+FFFD and 1. */
uint32_t nib_text_decode(const char *text, size_t n_bytes, size_t *n_used);
/* Writes 1..4 bytes. */
size_t nib_text_encode(uint32_t code_point, char out[4]);

/* ---- The tokenizer -------------------------------------------------------------------------------------------------- */

/* Bits: the file's type is one of them; what is recognised by its text may add to it. */
enum nib_kind {
    NIB_KIND_NORMAL = 1,
    NIB_KIND_UNKNOWN = 2,
    NIB_KIND_CONTROL = 4,
    NIB_KIND_USER = 8,
    NIB_KIND_UNUSED = 16,
    NIB_KIND_BYTE = 32
};

typedef struct nib_token {
    uint32_t piece_at, piece_n; /* in pieces; control and unknown tokens: their text */
    uint8_t kind;               /* enum nib_kind */
    bool ends;                  /* ends a generation */
} nib_token;

struct nib_tokenizer {
    nib_tokenizer_facts facts;
    char *model, *pre_name;
    nib_strings strings; /* tokens first */
    nib_token *tokens;   /* (n_vocab) */
    nib_string pieces;   /* bytes of all tokens */
    nib_pre *pre;        /* NULL: cannot tokenize */
    nib_pre_facts pre_facts;
    nib_bpe bpe;
    bool special_first[256];   /* first bytes of the tokens that are cut out of text before anything else */
    uint32_t *special_lengths; /* their distinct lengths in bytes */
    size_t n_special_lengths;
};

/* Reads the special ids, marks what is special by its text, finds what ends a generation, prepares the cutting (special.c). */
nib_status nib_special_init(nib_tokenizer *tokenizer, const nib_gguf *gguf, nib_error *error);

/* A stretch of text, or the token found in it. */
typedef struct nib_fragment {
    uint32_t begin, end; /* bytes */
    int32_t id;          /* -1: plain text */
} nib_fragment;

/* Cuts text at special tokens, longest first, leftmost among equals. Free *fragments. */
nib_status nib_special_cut(const nib_tokenizer *tokenizer, const char *text, size_t n_bytes, bool parse_special,
                           nib_fragment **fragments, size_t *n_fragments, nib_error *error);

/* Appends one id. */
nib_status nib_ids_add(nib_ids *ids, int32_t id, nib_error *error);

#endif
