/* The demo files built into the program. */
#ifndef NIB_FILE_DEMO_H
#define NIB_FILE_DEMO_H

#include "nibble/base.h"

/* name: "model" (a GGUF file), "text" (evaluation text), "choice" (JSONL questions), "prompts" (JSON). The bytes live
 * forever, read-only; the model is aligned to 64 bytes. false for any other name. */
bool nib_demo_file(const char *name, const uint8_t **data, size_t *n_bytes);

#endif
