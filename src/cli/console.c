/* Everything people see, and the signals that stop a command.
 *
 * stderr: errors in three lines, warnings, notes, and one progress line that is redrawn in place and erased before
 * anything else is printed. stdout: results; what could not be written is found at the end by nib_console_finish.
 * SIGINT and SIGTERM set a flag that stops the library at its next look, so that it can clean up; a second one ends the
 * program at once. A closed pipe and a limit on the size of files are noticed as a failed write, not by a signal. */
#include "cli.h"
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define REDRAW_SECONDS (1.0 / 6.0) /* zstd's rate */

static struct {
    bool colour_out, colour_err, quiet, json;
    enum { PROGRESS_NEVER, PROGRESS_LINE, PROGRESS_JSON } progress;
    bool line_shown;
    bool stdout_gone;
    double last_drawn;
} console;

static volatile sig_atomic_t n_interrupts;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    n_interrupts = n_interrupts + 1;
    if (n_interrupts > 1) _exit(NIB_ERR_INTERRUPTED);
}

void nib_console_begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    sigemptyset(&action.sa_mask);
    action.sa_handler = on_interrupt; /* no SA_RESTART: waiting for a line of input ends too */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
}

static bool wants_colour(const char *when, int fd) {
    const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
    if (strcmp(when, "always") == 0) return true;
    if (strcmp(when, "never") == 0) return false;
    return isatty(fd) && !(no_colour && *no_colour) && !(term && strcmp(term, "dumb") == 0);
}

void nib_console_configure(const char *color, const char *progress, bool quiet, bool json) {
    console.colour_out = wants_colour(color, STDOUT_FILENO);
    console.colour_err = wants_colour(color, STDERR_FILENO);
    console.quiet = quiet;
    console.json = json;
    if (strcmp(progress, "json") == 0)
        console.progress = PROGRESS_JSON;
    else if (strcmp(progress, "always") == 0)
        console.progress = PROGRESS_LINE;
    else if (strcmp(progress, "auto") == 0 && !quiet && isatty(STDERR_FILENO))
        console.progress = PROGRESS_LINE;
    else
        console.progress = PROGRESS_NEVER;
}

bool nib_console_interrupted(void) {
    return n_interrupts > 0;
}
void nib_console_clear_interrupt(void) {
    n_interrupts = 0;
}
const char *nib_console_bold(void) {
    return console.colour_out ? "\033[1m" : "";
}
const char *nib_console_plain(void) {
    return console.colour_out ? "\033[0m" : "";
}
bool nib_console_stdout_gone(void) {
    return console.stdout_gone || ferror(stdout);
}

bool nib_console_utf8(void) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return strcasestr(value, "utf-8") || strcasestr(value, "utf8");
    }
    return false;
}

const char *nib_console_plus_minus(void) {
    return nib_console_utf8() ? "±" : "+-";
}

unsigned nib_console_columns(void) {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20 && size.ws_col < 100) return size.ws_col;
    return 100;
}

/* ---- Errors, warnings, notes ----------------------------------------------------------------------------------------- */

static const char *paint(const char *code) {
    return console.colour_err ? code : "";
}

void nib_console_erase_progress(void) {
    if (!console.line_shown) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    console.line_shown = false;
}

static void error_as_json(const nib_error *error) {
    const char *text = NULL;
    size_t n_bytes = 0;
    nib_json *json = nib_json_new();
    if (!json) return;
    nib_json_begin_object(json, NULL);
    nib_json_begin_object(json, "error");
    nib_json_int(json, "code", error->code);
    nib_json_string(json, "name", nib_status_name(error->code));
    nib_json_string(json, "message", error->message);
    if (error->file[0])
        nib_json_string(json, "file", error->file);
    else
        nib_json_null(json, "file");
    if (error->offset >= 0)
        nib_json_int(json, "offset", error->offset);
    else
        nib_json_null(json, "offset");
    if (error->field[0])
        nib_json_string(json, "field", error->field);
    else
        nib_json_null(json, "field");
    if (error->hint[0])
        nib_json_string(json, "hint", error->hint);
    else
        nib_json_null(json, "hint");
    nib_json_end_object(json);
    nib_json_end_object(json);
    if (nib_json_text(json, &text, &n_bytes, NULL) == NIB_OK) printf("%s\n", text);
    nib_json_free(json);
}

void nib_console_error(const nib_error *error) {
    nib_console_erase_progress();
    fflush(stdout);
    fprintf(stderr, "%serror:%s %s\n", paint("\033[1;31m"), paint("\033[0m"), error->message);
    if (error->file[0]) {
        fprintf(stderr, "  in: %s", error->file);
        if (error->offset >= 0) fprintf(stderr, " @ %lld", (long long)error->offset);
        if (error->field[0]) fprintf(stderr, " (%s)", error->field);
        fputc('\n', stderr);
    } else if (error->field[0]) {
        fprintf(stderr, "  in: %s\n", error->field);
    }
    if (error->hint[0]) fprintf(stderr, "  %shint:%s %s\n", paint("\033[36m"), paint("\033[0m"), error->hint);
    if (console.json) error_as_json(error);
}

static void event_as_json(const char *event, const char *message, const nib_progress *progress) {
    const char *text = NULL;
    size_t n_bytes = 0;
    nib_json *json = nib_json_new();
    if (!json) return;
    nib_json_begin_object(json, NULL);
    nib_json_string(json, "event", event);
    if (message) nib_json_string(json, "message", message);
    if (progress) {
        nib_json_string(json, "stage", progress->stage);
        nib_json_number(json, "done", progress->done);
        nib_json_number(json, "total", progress->total);
        nib_json_number(json, "seconds", progress->seconds);
        if (progress->eta_seconds >= 0)
            nib_json_number(json, "eta_seconds", progress->eta_seconds);
        else
            nib_json_null(json, "eta_seconds");
    }
    nib_json_end_object(json);
    if (nib_json_text(json, &text, &n_bytes, NULL) == NIB_OK) {
        /* One line whatever the writer's layout: no string in it can hold a line break. */
        for (; *text; text++)
            if (*text != '\n') fputc(*text, stderr);
        fputc('\n', stderr);
    }
    nib_json_free(json);
}

static void say(const char *label, const char *colour, const char *message) {
    if (console.quiet) return;
    if (console.progress == PROGRESS_JSON) {
        event_as_json(*label ? "warning" : "note", message, NULL);
        return;
    }
    nib_console_erase_progress();
    if (*label) fprintf(stderr, "%s%s%s ", paint(colour), label, paint("\033[0m"));
    nib_print_safe(stderr, message, strlen(message), 0);
    fputc('\n', stderr);
}

void nib_console_warn(const char *format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    say("warning:", "\033[1;33m", message);
}

void nib_console_note(const char *format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    say("", "", message);
}

void nib_console_watch_warn(void *user, const char *message) {
    (void)user;
    say("warning:", "\033[1;33m", message);
}

bool nib_console_watch_quietly(void *user, const nib_progress *progress) {
    (void)user;
    (void)progress;
    return n_interrupts == 0;
}

/* ---- Progress ------------------------------------------------------------------------------------------------------------- */

static void draw_line(const nib_progress *progress) {
    enum { BAR = 24 };
    double fraction = progress->total > 0 ? progress->done / progress->total : 0;
    if (!(fraction >= 0)) fraction = 0;
    if (fraction > 1) fraction = 1;
    char bar[BAR + 1], left[64] = "";
    unsigned filled = (unsigned)(fraction * BAR);
    for (unsigned i = 0; i < BAR; i++) bar[i] = i < filled ? '=' : i == filled ? '>' : ' ';
    bar[BAR] = '\0';
    if (progress->eta_seconds >= 0) snprintf(left, sizeof left, "  %s left", nib_show_seconds(progress->eta_seconds).s);
    char line[256];
    int n = snprintf(line, sizeof line, "%.40s [%s] %3.0f%%%s", progress->stage ? progress->stage : "", bar,
                     100 * fraction, left);
    unsigned columns = nib_console_columns();
    if (n >= (int)columns) line[columns - 1] = '\0';
    fprintf(stderr, "\r\033[K%s", line);
    fflush(stderr);
    console.line_shown = true;
}

bool nib_console_progress(void *user, const nib_progress *progress) {
    (void)user;
    double now = nib_now();
    if (console.progress != PROGRESS_NEVER &&
        (now - console.last_drawn >= REDRAW_SECONDS || progress->done >= progress->total)) {
        console.last_drawn = now;
        if (console.progress == PROGRESS_JSON)
            event_as_json("progress", NULL, progress);
        else
            draw_line(progress);
    }
    return n_interrupts == 0;
}

/* ---- The end of stdout ------------------------------------------------------------------------------------------------------ */

nib_status nib_console_finish(nib_error *error) {
    nib_console_erase_progress();
    errno = 0;
    bool failed = fflush(stdout) != 0;
    int os_errno = errno;
    if (!failed && !ferror(stdout)) return NIB_OK;
    /* Whoever closed the pipe has read enough; an error that was not noted by the flush is looked for once more. */
    if (!failed) {
        clearerr(stdout);
        if (write(STDOUT_FILENO, "", 0) < 0) os_errno = errno;
    }
    if (os_errno == EPIPE || console.stdout_gone) return NIB_OK;
    nib_status status = nib_cli_fail(error, NIB_ERR_IO, "is the disk full, or the output closed?",
                                     "cannot write the result to standard output%s%s", os_errno ? ": " : "",
                                     os_errno ? strerror(os_errno) : "");
    if (error) error->os_errno = os_errno;
    return status;
}

bool nib_cli_stream_text(void *user, const char *text, size_t n_bytes) {
    (void)user;
    nib_console_erase_progress();
    if (isatty(STDOUT_FILENO))
        nib_print_safe(stdout, text, n_bytes, 0);
    else
        fwrite(text, 1, n_bytes, stdout);
    if (fflush(stdout) != 0 && errno == EPIPE) console.stdout_gone = true;
    return n_interrupts == 0 && !ferror(stdout);
}

bool nib_cli_keep_going(void *user, const char *text, size_t n_bytes) {
    (void)user, (void)text, (void)n_bytes;
    return n_interrupts == 0;
}

/* ---- Text of unknown origin ------------------------------------------------------------------------------------------------- */

/* Length of the well-formed UTF-8 character at s, 0 if it is broken or a control character. */
static size_t printable_length(const unsigned char *s, size_t n) {
    if (s[0] < 0x80) return s[0] >= 0x20 && s[0] != 0x7f ? 1 : 0;
    size_t length = s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc2 ? 2 : 0;
    if (s[0] > 0xf4 || length == 0 || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (s[0] == 0xc2 && s[1] < 0xa0) return 0; /* C1 control characters */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90)) return 0;
    if ((s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return length;
}

void nib_print_safe(FILE *to, const char *text, size_t n_bytes, size_t max_columns) {
    size_t columns = 0;
    for (size_t i = 0; i < n_bytes; columns++) {
        if (max_columns && columns + 3 >= max_columns && n_bytes - i > 3) {
            fputs("...", to);
            return;
        }
        size_t length = printable_length((const unsigned char *)text + i, n_bytes - i);
        bool break_or_tab = text[i] == '\n' || text[i] == '\t';
        if (length)
            fwrite(text + i, 1, length, to);
        else if (break_or_tab && !max_columns)
            fputc(text[i], to);
        else
            fputc(break_or_tab ? ' ' : '?', to);
        i += length ? length : 1;
    }
}

/* ---- Filling errors ----------------------------------------------------------------------------------------------------------- */

static void make_safe(char *text) {
    for (size_t i = 0, n = strlen(text); i < n;) {
        size_t length = printable_length((unsigned char *)text + i, n - i);
        if (!length) text[i] = '?';
        i += length ? length : 1;
    }
}

nib_status nib_cli_fail(nib_error *error, nib_status status, const char *hint, const char *format, ...) {
    va_list arguments;
    if (!error) return status;
    memset(error, 0, sizeof *error);
    error->code = status;
    error->offset = -1;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    if (hint) snprintf(error->hint, sizeof error->hint, "%s", hint);
    make_safe(error->message);
    make_safe(error->hint);
    return status;
}

nib_status nib_cli_fail_in(nib_error *error, const char *file, int64_t offset, const char *field) {
    if (!error) return NIB_ERR_BUG;
    snprintf(error->file, sizeof error->file, "%s", file);
    if (field) snprintf(error->field, sizeof error->field, "%s", field);
    error->offset = offset;
    make_safe(error->file);
    make_safe(error->field);
    return error->code;
}

nib_status nib_cli_no_memory(nib_error *error) {
    return nib_cli_fail(error, NIB_ERR_MEMORY, "close other programs, or give the machine more memory",
                        "out of memory");
}
