/* base/log.c: lines for people.
 *
 * td__say is the library's own voice: stderr, always with the name in front, one write(2) for each line so that lines of
 * many ranks never mix. td_log is the user's voice: stdout through stdio, so that it keeps its place among the user's own
 * printf calls. Neither allocates while a line fits its buffer, so both can report that memory has run out.
 */
#include "base.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 4096 };

/* One line with its newline in `line`: prefix, text; a text too long for the buffer ends in "…". */
static size_t compose(char line[static LINE_SIZE], const char *prefix, const char *format, va_list args)
{
    static const char cut[] = "...";
    size_t head = strlen(prefix);
    memcpy(line, prefix, head);
    size_t room = LINE_SIZE - head;                            /* the newline takes the place of the final zero */
    int wanted = vsnprintf(line + head, room, format, args);
    size_t length = wanted < 0 ? 0 : (size_t)wanted;
    if (length >= room) {
        length = room - 1;
        memcpy(line + head + length - (sizeof cut - 1), cut, sizeof cut - 1);
    }
    length += head;
    if (line[length - 1] != '\n' || length == head)
        line[length++] = '\n';
    return length;
}

static void write_all(int fd, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, text, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;                                            /* stderr is gone: nobody is left to be told */
        text += n;
        size -= (size_t)n;
    }
}

static void say(const char *format, va_list args)
{
    int kept = errno;
    const td__world *world = td__world_now();
    char line[LINE_SIZE], prefix[48];
    if (world->size > 1)
        snprintf(prefix, sizeof prefix, "[tandem rank %d] ", world->rank);
    else
        snprintf(prefix, sizeof prefix, "[tandem] ");
    write_all(STDERR_FILENO, line, compose(line, prefix, format, args));
    errno = kept;
}

void td__say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(format, args);
    va_end(args);
}

void td__info(const char *format, ...)
{
    const char *quiet = td__env(TD_ENV_QUIET);
    if (quiet && strcmp(quiet, "0") != 0)
        return;
    va_list args;
    va_start(args, format);
    say(format, args);
    va_end(args);
}

static void log_line(const char *prefix, const char *format, va_list args)
{
    char line[LINE_SIZE];
    size_t size = compose(line, prefix, format, args);
    flockfile(stdout);
    fwrite_unlocked(line, 1, size, stdout);
    fflush_unlocked(stdout);                                   /* a line that only a later crash would show is no log line */
    funlockfile(stdout);
}

void td_log(const char *format, ...)
{
    const td__world *world = td__world_now();
    char prefix[32] = "";
    /* `tandem run` puts the rank before every line itself */
    if (world->size > 1 && strcmp(world->launcher, "tandem") != 0)
        snprintf(prefix, sizeof prefix, "[rank %d] ", world->rank);
    va_list args;
    va_start(args, format);
    log_line(prefix, format, args);
    va_end(args);
}

void td_log0(const char *format, ...)
{
    if (td__world_now()->rank != 0)
        return;
    va_list args;
    va_start(args, format);
    log_line("", format, args);
    va_end(args);
}

const char *td_version(void)
{
    return TD_VERSION;
}
