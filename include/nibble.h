/* nibble: make large language models small, and know what it cost.
 * SPDX-License-Identifier: MIT
 *
 * This header is the whole public API; each header below is one room of the library and reads as its manual.
 *
 *   base.h    status codes, errors, progress, worker threads
 *   json.h    writing JSON
 *   cpu.h     the processor and the instruction-set level in use
 *   format.h  number formats: encode and decode rows
 *   kernel.h  how formats are multiplied here
 *   number.h  single numbers: their bits in every format, a list quantized in plain view, FP8 matrices
 *   gguf.h    reading GGUF files, which are treated as hostile
 *   text.h    tokenizers, sampling, chat shapes
 *   model.h   models, sessions, logits
 *   quant.h   recipes and the quantizer
 *   eval.h    perplexity, divergence, choice questions, speed, weights
 *   study.h   the experiment that ties them together, and its report
 *
 * Rules that hold everywhere:
 *   - The library never prints, never exits, never aborts. Functions that can fail return nib_status and fill the
 *     nib_error they were given (which may be NULL).
 *   - open/close own a file, new/free own heap memory, init/fini work on the caller's storage, view_ borrows.
 *     close and free accept NULL.
 *   - Objects may be used from one thread at a time unless their header says otherwise; work inside a call is
 *     spread over the nib_pool it was given. Results never depend on the number of threads.
 */
#ifndef NIBBLE_H
#define NIBBLE_H

#include "nibble/base.h"
#include "nibble/cpu.h"
#include "nibble/eval.h"
#include "nibble/format.h"
#include "nibble/gguf.h"
#include "nibble/json.h"
#include "nibble/kernel.h"
#include "nibble/model.h"
#include "nibble/number.h"
#include "nibble/quant.h"
#include "nibble/study.h"
#include "nibble/text.h"

#endif
