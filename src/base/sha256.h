/* SHA-256 (FIPS 180-4), for saying which file a result was measured on. */
#ifndef NIB_BASE_SHA256_H
#define NIB_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct nib_sha256 {
    uint32_t state[8];
    uint64_t n_bytes;  /* taken so far */
    uint8_t block[64]; /* what is left of the input, n_bytes mod 64 bytes of it */
} nib_sha256;

void nib_sha256_init(nib_sha256 *sha);
void nib_sha256_add(nib_sha256 *sha, const void *data, size_t n_bytes);
/* The digest as 64 lower-case hex digits. */
void nib_sha256_finish(nib_sha256 *sha, char out[65]);
/* All of it at once. */
void nib_sha256_of(const void *data, size_t n_bytes, char out[65]);

#endif
