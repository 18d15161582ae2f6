/* The demo files built into the program: demo.S places the bytes, this file names them. */
#include "file/demo.h"

#include <string.h>

#define DEMO_FILE(name)                                                                   \
    extern const uint8_t nib_demo_##name##_begin[] __attribute__((visibility("hidden"))); \
    extern const uint8_t nib_demo_##name##_end[] __attribute__((visibility("hidden")));
DEMO_FILE(model)
DEMO_FILE(text)
DEMO_FILE(choice)
DEMO_FILE(prompts)

bool nib_demo_file(const char *name, const uint8_t **data, size_t *n_bytes) {
    static const struct {
        const char *name;
        const uint8_t *begin, *end;
    } files[] = {
        {"model", nib_demo_model_begin, nib_demo_model_end},
        {"text", nib_demo_text_begin, nib_demo_text_end},
        {"choice", nib_demo_choice_begin, nib_demo_choice_end},
        {"prompts", nib_demo_prompts_begin, nib_demo_prompts_end},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (strcmp(name, files[i].name) != 0) continue;
        *data = files[i].begin;
        *n_bytes = (size_t)(files[i].end - files[i].begin);
        return true;
    }
    return false;
}
