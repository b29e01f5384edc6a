/* launcher/start.c: what a job needs before its first rank, and how one rank is started with its pipes.
 *
 * Nothing here outlives a failure: what was opened for a rank that cannot be started is closed again.
 */
#include "launcher.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <store.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

static int complain(const char *what, const char *why)
{
    td__lines_say("%s: %s", what, why);
    return 1;
}

int td__free_port(bool loopback)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY) };
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int port = fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 &&
               getsockname(fd, (struct sockaddr *)&address, &size) == 0 ? ntohs(address.sin_port) : 0;
    if (fd >= 0)
        close(fd);
    return port;
}

void td__to_hex(const unsigned char *bytes, size_t n, char *into)
{
    for (size_t i = 0; i < n; i++)
        snprintf(into + 2 * i, 3, "%02x", bytes[i]);
}

/* The terminal's columns that are left for a rank's line; 0: nobody watches. A variable that is already set was set by
 * somebody who shows our output on a terminal (a script with `tee`, an outer launcher). */
int td__columns_for_ranks(bool prefix, int size_of_job)
{
    struct winsize size;
    int columns = 0, taken = 0;
    const char *said = td__env(TD_ENV_TERMINAL);
    if (said)
        columns = atoi(said);
    else if (isatty(STDOUT_FILENO))
        columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    if (prefix)
        taken = snprintf(NULL, 0, "[%d] ", size_of_job - 1);
    return columns > taken ? columns - taken : 0;
}

int td__job_prepare(td__job *job, td__store_server **server)
{
    unsigned char random[8], secret[32];
    if (getrandom(random, sizeof random, 0) != sizeof random || getrandom(secret, sizeof secret, 0) != sizeof secret)
        return complain("no random numbers for the job's secret", strerror(errno));
    job->size = job->options->ranks;
    job->columns = td__columns_for_ranks(job->prefix, job->size);
    char hex[17], where[128];
    td__to_hex(random, sizeof random, hex);
    td__to_hex(secret, sizeof secret, job->secret);
    snprintf(job->name, sizeof job->name, "%d-%s", (int)getpid(), hex);
    snprintf(where, sizeof where, "unix:@tandem-%s", job->name);
    *server = td__store_serve(where, secret);
    if (!*server)
        return complain("the ranks' meeting point cannot be opened", td_error_message());
    job->store = td__store_address(*server);
    job->port = td__free_port(true);
    if (!td__runtime_dir(job->folder, sizeof job->folder))
        job->folder[0] = '\0';
    job->rank = calloc((size_t)job->options->ranks, sizeof *job->rank);
    if (!job->rank)
        return complain("memory cannot be had", strerror(ENOMEM));
    for (int r = 0; r < job->options->ranks; r++)
        job->rank[r].rank = r;
    td__place_here(job->size, false, &job->division);
    if (job->options->no_binding)
        td__division_unbind(&job->division);
    return 0;
}

/* Where one of a rank's streams goes: `end` is the rank's. A file alone is the rank's own descriptor, without us. */
typedef struct {
    int end, pipe, log;                        /* pipe: our end, -1: none */
    bool shown;
} outlet;

static int open_outlet(const td__job *job, int rank, bool piped, int stream, outlet *o)
{
    const td__streams *streams = &job->options->streams;
    bool kept = td__stream_kept(streams, rank, stream);
    char why[TD_LOG_DIR_MAX + 300];
    int both[2];
    *o = (outlet){ .end = stream == TD_STREAM_OUT ? STDOUT_FILENO : STDERR_FILENO, .pipe = -1, .log = -1,
                   .shown = td__stream_shown(streams, rank, stream) };
    if (kept && (o->log = td__stream_open(streams, job->name, rank, stream, why, sizeof why)) < 0) {
        int error = errno;
        td__lines_say("%s", why);
        return -error;
    }
    if (kept && !o->shown) {
        o->end = o->log;
        o->log = -1;
        return 0;
    }
    if (!piped && !kept && o->shown)
        return 0;
    if (pipe2(both, O_CLOEXEC) != 0)
        return -errno;
    o->pipe = both[0];
    o->end = both[1];
    return 0;
}

/* After the rank has been started, or not: our end is read, what was only the rank's is closed. */
static void settle_outlet(int rank, int stream, int error, outlet *o)
{
    int ours = stream == TD_STREAM_OUT ? STDOUT_FILENO : STDERR_FILENO;
    if (o->end != ours && o->end >= 0)
        close(o->end);
    if (o->pipe >= 0 && !error) {
        fcntl(o->pipe, F_SETFL, O_NONBLOCK);
        int refused = td__lines_add(rank, o->pipe, o->shown ? ours : -1, o->log);
        if (refused)
            td__lines_say("the output of rank %d cannot be read: %s", rank, uv_strerror(refused));
        return;
    }
    if (o->pipe >= 0)
        close(o->pipe);
    if (o->log >= 0)
        close(o->log);
}

int td__job_start_rank(td__job *job, int rank, bool piped)
{
    outlet out = { -1, -1, -1, false }, err = out;
    int none = -1, error = 0;
    td__identity who = { .rank = rank, .size = job->size, .local_rank = rank, .local_size = job->size, .hosts = 1, .job = job->name,
                         .secret = job->secret, .store = job->store, .master_addr = "127.0.0.1", .master_port = job->port,
                         .columns = job->columns, .threads = job->options->threads, .share = job->division.threads };
    td__start start = { .path = job->options->path, .argv = job->options->argv, .in = STDIN_FILENO,
                        .cores = job->division.set ? job->division.set[rank] : NULL,
                        .nodes = job->division.nodes ? job->division.nodes[rank] : NULL };
    if (rank > 0) {
        start.in = none = open("/dev/null", O_RDONLY | O_CLOEXEC);
        error = none < 0 ? -errno : 0;
    }
    if (!error)
        error = open_outlet(job, rank, piped, TD_STREAM_OUT, &out);
    if (!error)
        error = open_outlet(job, rank, piped, TD_STREAM_ERR, &err);
    start.out = out.end;
    start.err = err.end;
    start.variables = error ? NULL : td__environ_make(&who);
    if (!error)
        error = start.variables ? td__spawn(&start, &job->rank[rank].pid) : -ENOMEM;
    td__environ_free(start.variables);
    if (none >= 0)
        close(none);
    settle_outlet(rank, TD_STREAM_OUT, error, &out);
    settle_outlet(rank, TD_STREAM_ERR, error, &err);
    return error;
}
