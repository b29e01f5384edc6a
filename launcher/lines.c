/* launcher/lines.c: the ranks' output, line by line.
 *
 * Whole lines are written with one write each time, "[rank] " before them, so that lines of different ranks never mix.
 * On a terminal an unfinished line (a progress bar that is rewritten with '\r', a prompt) is shown at once as the last
 * line of the screen; other ranks' lines go above it. Writing blocks: a reader that is slow slows the ranks down, as it
 * would without us. When the reader has gone, our ends of the pipes are closed and the ranks learn it as they would.
 */
#include "launcher.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 16 << 20 };            /* a "line" of more than this is broken */

typedef struct td__lines stream;
struct td__lines {
    uv_pipe_t pipe;
    bool fed;                                  /* by td__lines_feed: there is no pipe */
    struct td__lines *next;
    int to, log;                               /* -1: nowhere */
    char prefix[16];
    char *text;                                /* since the last line end */
    size_t size, room;
};

static uv_loop_t *loop;
static bool with_prefix, live_screen;
static stream *streams;
static const stream *shown;                    /* whose unfinished line is the last of the screen */
static char chunk[65536];

/* ---- writing -------------------------------------------------------------------------------------------------------------------- */

static bool write_all(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        if (n >= 0) {
            bytes += n;
            size -= (size_t)n;
        } else if (errno == EAGAIN) {          /* somebody made the terminal non-blocking */
            struct pollfd wait = { .fd = fd, .events = POLLOUT };
            poll(&wait, 1, -1);
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

static void clear_shown(void)
{
    if (!shown)
        return;
    write_all(shown->to, "\r\033[K", 4);
    shown = NULL;
}

/* What a terminal would show of a line in which '\r' goes back to its beginning: the last non-empty part. */
static const char *visible(const char *line, size_t size, size_t *visible_size)
{
    while (size > 0 && line[size - 1] == '\r')
        size--;
    const char *back = memrchr(line, '\r', size);
    *visible_size = back ? (size_t)(line + size - (back + 1)) : size;
    return back ? back + 1 : line;
}

static void show_unfinished(const stream *s)
{
    size_t size;
    const char *text = visible(s->text, s->size, &size);
    if (size == 0)
        return;
    clear_shown();
    char *line = malloc(size + sizeof s->prefix);
    if (!line)
        return;
    size_t n = strlen(s->prefix);
    memcpy(line, s->prefix, n);
    memcpy(line + n, text, size);
    write_all(s->to, line, n + size);
    free(line);
    shown = s;
}

/* ---- reading -------------------------------------------------------------------------------------------------------------------- */

static void remove_stream(stream *s)
{
    for (stream **p = &streams; *p; p = &(*p)->next)
        if (*p == s) {
            *p = s->next;
            break;
        }
    if (s->log >= 0)
        close(s->log);
    free(s->text);
    free(s);
}

static void on_closed(uv_handle_t *handle)
{
    remove_stream(handle->data);
}

static void close_stream(stream *s)
{
    if (shown == s)
        shown = NULL;
    if (s->fed)
        remove_stream(s);
    else if (!uv_is_closing((uv_handle_t *)&s->pipe))
        uv_close((uv_handle_t *)&s->pipe, on_closed);
}

static bool append(char **into, size_t *size, size_t *room, const char *bytes, size_t n)
{
    if (*size + n > *room) {
        size_t wanted = *room ? *room : 4096;
        while (wanted < *size + n)
            wanted *= 2;
        char *grown = realloc(*into, wanted);
        if (!grown)
            return false;
        *into = grown;
        *room = wanted;
    }
    if (n)
        memcpy(*into + *size, bytes, n);
    *size += n;
    return true;
}

/* All whole lines of the stream in one write; with `all`, what is left too, as a line. */
static bool pass_lines(stream *s, bool all)
{
    static char *out;
    static size_t room;
    size_t size = 0, done = 0, n = strlen(s->prefix);
    bool fits = true;
    while (done < s->size && fits) {
        const char *line = s->text + done, *end = memchr(line, '\n', s->size - done);
        if (!end && !all)
            break;
        size_t length = end ? (size_t)(end - line) : s->size - done, seen = length;
        const char *text = live_screen ? visible(line, length, &seen) : line;
        fits = append(&out, &size, &room, s->prefix, n) && append(&out, &size, &room, text, seen) &&
               append(&out, &size, &room, "\n", 1);
        done += length + (end ? 1 : 0);
    }
    if (done == 0)
        return true;
    memmove(s->text, s->text + done, s->size - done);
    s->size -= done;
    const stream *unfinished = shown == s ? NULL : shown;
    clear_shown();
    bool written = write_all(s->to, out, size);
    if (written && unfinished)
        show_unfinished(unfinished);
    return written && fits;
}

static void on_room(uv_handle_t *handle, size_t wanted, uv_buf_t *into)
{
    (void)handle, (void)wanted;
    *into = uv_buf_init(chunk, sizeof chunk);
}

/* false: the reader of our output has gone, or there is no memory. */
static bool take(stream *s, const char *bytes, size_t n)
{
    if (s->log >= 0 && !write_all(s->log, bytes, n)) {
        td__lines_say("a log file cannot be written any more: %s", strerror(errno));
        close(s->log);
        s->log = -1;
    }
    if (s->to < 0)
        return true;
    bool fine = append(&s->text, &s->size, &s->room, bytes, n);
    fine = pass_lines(s, !fine || s->size > LINE_MAX_BYTES) && fine;
    if (fine && live_screen && s->size > 0)
        show_unfinished(s);
    return fine;
}

static void on_bytes(uv_stream_t *from, ssize_t n, const uv_buf_t *bytes)
{
    stream *s = from->data;
    if (n == 0)
        return;
    if (n < 0)
        pass_lines(s, true);
    if (n < 0 || !take(s, bytes->base, (size_t)n))
        close_stream(s);
}

/* ---- the interface ---------------------------------------------------------------------------------------------------------------- */

void td__lines_begin(uv_loop_t *on, bool prefix, bool live)
{
    loop = on;
    with_prefix = prefix;
    live_screen = live;
}

static stream *new_stream(int rank, int to, int log)
{
    stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->to = to;
    s->log = log;
    if (with_prefix)
        snprintf(s->prefix, sizeof s->prefix, "[%d] ", rank);
    return s;
}

td__lines *td__lines_open_fed(int rank, int to)
{
    stream *s = new_stream(rank, to, -1);
    if (s) {
        s->fed = true;
        s->next = streams;
        streams = s;
    }
    return s;
}

bool td__lines_feed(td__lines *s, const char *bytes, size_t n)
{
    return take(s, bytes, n);
}

void td__lines_close_fed(td__lines *s)
{
    pass_lines(s, true);
    close_stream(s);
}

int td__lines_add(int rank, int from, int to, int log)
{
    stream *s = new_stream(rank, to, log);
    if (!s)
        return UV_ENOMEM;
    int error = uv_pipe_init(loop, &s->pipe, 0);
    if (error) {
        free(s);
        return error;
    }
    s->pipe.data = s;
    s->next = streams;
    streams = s;
    error = uv_pipe_open(&s->pipe, from);
    if (!error)
        error = uv_read_start((uv_stream_t *)&s->pipe, on_room, on_bytes);
    if (error)
        close_stream(s);
    return error;
}

bool td__lines_open(void)
{
    return streams != NULL;
}

void td__lines_stop(void)
{
    for (stream *s = streams, *next; s; s = next) {
        next = s->next;                        /* a fed one is freed at once */
        pass_lines(s, true);
        close_stream(s);
    }
}

void td__lines_say(const char *format, ...)
{
    char line[4096] = "tandem run: ";
    size_t n = strlen(line);
    va_list args;
    va_start(args, format);
    vsnprintf(line + n, sizeof line - n - 1, format, args);
    va_end(args);
    n = strlen(line);
    line[n++] = '\n';
    const stream *unfinished = shown;
    clear_shown();
    write_all(STDERR_FILENO, line, n);
    if (unfinished)
        show_unfinished(unfinished);
}
