/* Escaping and number texts. Everything that comes from a model or a file passes nib_markup_escape on its way into a
 * report: a hostile model may answer "</svg><script>". */
#include "study/markup.h"

#include "base/utf8.h"
#include <math.h>
#include <stdio.h>

/* Bytes of the well-formed character at text that XML 1.0 also allows and a person can see; 0 if there is none. */
static size_t character_bytes(const char *text, size_t n) {
    uint32_t code = 0;
    const size_t length = nib_utf8_decode(text, n, &code);
    const bool control = (code < 0x20 && code != '\t' && code != '\n') || (code >= 0x7f && code < 0xa0);
    return control || (code & 0xfffe) == 0xfffe ? 0 : length;
}

void nib_markup_escape_n(nib_string *out, const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes;) {
        const size_t length = character_bytes(text + i, n_bytes - i);
        if (length == 0) {
            nib_string_add(out, "\xef\xbf\xbd", 3);
            i++;
            continue;
        }
        switch (text[i]) {
        case '&':
            nib_string_add(out, "&amp;", 5);
            break;
        case '<':
            nib_string_add(out, "&lt;", 4);
            break;
        case '>':
            nib_string_add(out, "&gt;", 4);
            break;
        case '"':
            nib_string_add(out, "&quot;", 6);
            break;
        case '\'':
            nib_string_add(out, "&#39;", 5);
            break;
        default:
            nib_string_add(out, text + i, length);
        }
        i += length;
    }
}

void nib_markup_escape(nib_string *out, const char *text) {
    nib_markup_escape_n(out, text, strlen(text));
}

const char *nib_text_of_number(char out[32], double value) {
    const double size = fabs(value);
    if (!isfinite(value))
        snprintf(out, 32, "n/a");
    else if (size >= 100 || size == 0)
        snprintf(out, 32, "%.0f", value);
    else if (size >= 1e-6)
        snprintf(out, 32, "%.*f",
                 size >= 10  ? 1
                 : size >= 1 ? 2
                             : (int)((size >= 1e-3 ? 2 : 1) - floor(log10(size))),
                 value);
    else
        snprintf(out, 32, "%.1e", value);
    return out;
}

const char *nib_text_of_error(char out[32], double value) {
    const double size = fabs(value);
    if (!isfinite(value))
        snprintf(out, 32, "n/a");
    else if (size >= 10 || size == 0)
        snprintf(out, 32, "%.0f", value);
    else if (size >= 1e-7)
        snprintf(out, 32, "%.*f", (int)(1 - floor(log10(size))), value);
    else
        snprintf(out, 32, "%.0e", value);
    return out;
}

const char *nib_text_of_bytes(char out[32], double n_bytes) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    unsigned unit = 0;
    while (n_bytes >= 999.5 && unit < 4) {
        n_bytes /= 1000;
        unit++;
    }
    snprintf(out, 32, "%.*f %s", unit == 0 || n_bytes >= 100 ? 0 : n_bytes >= 10 ? 1 : 2, n_bytes, units[unit]);
    return out;
}

const char *nib_text_of_seconds(char out[32], double seconds) {
    if (!(seconds >= 0) || seconds > 1e9)
        snprintf(out, 32, "n/a");
    else if (seconds < 9.95)
        snprintf(out, 32, "%.1f s", seconds);
    else if (seconds < 90)
        snprintf(out, 32, "%.0f s", seconds);
    else if (seconds < 5400)
        snprintf(out, 32, "%d min %d s", (int)(seconds / 60), (int)seconds % 60);
    else
        snprintf(out, 32, "%d h %d min", (int)(seconds / 3600), (int)(seconds / 60) % 60);
    return out;
}

const char *nib_text_of_percent(char out[32], double fraction) {
    if (!isfinite(fraction))
        snprintf(out, 32, "n/a");
    else
        snprintf(out, 32, "%.1f%%", 100 * fraction);
    return out;
}

const char *nib_text_of_rate(char out[32], double per_second) {
    if (!isfinite(per_second))
        snprintf(out, 32, "n/a");
    else
        snprintf(out, 32, "%.*f", per_second >= 100 ? 0 : per_second >= 10 ? 1 : 2, per_second);
    return out;
}
