/* launcher/streams.c: torchrun's small languages for streams: "3" or "0:3,1:2" says which of a rank's streams, "0,2" which
 * local ranks. The texts travel to other hosts as they are and are asked there, so they are checked once, at the options.
 */
#include "launcher.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool local_rank_at(const char **p, int *rank)
{
    char *end;
    if (**p < '0' || **p > '9')
        return false;
    long n = strtol(*p, &end, 10);
    *p = end;
    *rank = (int)n;
    return n >= 0 && n < TD_RANKS_MAX;
}

/* Reads all pairs, and what the wanted rank has. false: the text is none. */
static bool pairs(const char *text, int wanted, int *found)
{
    int rank;
    if (text[0] >= '0' && text[0] <= '3' && text[1] == '\0') {
        *found = text[0] - '0';
        return true;
    }
    for (const char *p = text;; p++) {
        if (!local_rank_at(&p, &rank) || p[0] != ':' || p[1] < '0' || p[1] > '3')
            return false;
        if (rank == wanted)
            *found = p[1] - '0';
        p += 2;
        if (*p == '\0')
            return true;
        if (*p != ',')
            return false;
    }
}

bool td__streams_valid(const char *text)
{
    int ignored;
    return strlen(text) < TD_STREAMS_TEXT && pairs(text, -1, &ignored);
}

static int streams_of(const char *text, int local_rank)
{
    int found = 0;
    return text && pairs(text, local_rank, &found) ? found : 0;
}

static bool listed(const char *text, int wanted, bool *found)
{
    int rank;
    for (const char *p = text;; p++) {
        if (!local_rank_at(&p, &rank))
            return false;
        *found |= rank == wanted;
        if (*p == '\0')
            return true;
        if (*p != ',')
            return false;
    }
}

bool td__filter_valid(const char *text)
{
    bool ignored = false;
    return strlen(text) < TD_STREAMS_TEXT && listed(text, -1, &ignored);
}

static bool filter_shows(const char *text, int local_rank)
{
    bool found = false;
    return !text || (listed(text, local_rank, &found) && found);
}

/* A stream that is teed is shown also when it is redirected, as with torchrun. */
bool td__stream_shown(const td__streams *s, int local_rank, int stream)
{
    int only_kept = streams_of(s->redirects, local_rank) & ~streams_of(s->tee, local_rank);
    return !(only_kept & stream) && filter_shows(s->filter, local_rank);
}

bool td__stream_kept(const td__streams *s, int local_rank, int stream)
{
    return (streams_of(s->redirects, local_rank) | streams_of(s->tee, local_rank)) & stream;
}

int td__stream_open(const td__streams *s, const char *job, int rank, int stream, char *why, size_t size)
{
    char path[TD_LOG_DIR_MAX + 256];
    size_t n = (size_t)snprintf(path, sizeof path, "%s/%s/%d/%s.log", s->log_dir, job, rank, stream == TD_STREAM_OUT ? "stdout" : "stderr");
    for (size_t i = 1; i < n; i++) {
        if (path[i] != '/')
            continue;
        path[i] = '\0';
        int made = mkdir(path, 0777);
        path[i] = '/';
        if (made != 0 && errno != EEXIST)
            break;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0)
        snprintf(why, size, "%s cannot be written: %s", path, strerror(errno));
    return fd;
}
