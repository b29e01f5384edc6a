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

static int free_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int port = fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 &&
               getsockname(fd, (struct sockaddr *)&address, &size) == 0 ? ntohs(address.sin_port) : 0;
    if (fd >= 0)
        close(fd);
    return port;
}

static void to_hex(const unsigned char *bytes, size_t n, char *into)
{
    for (size_t i = 0; i < n; i++)
        snprintf(into + 2 * i, 3, "%02x", bytes[i]);
}

/* The terminal's columns that are left for a rank's line; 0: nobody watches. A variable that is already set was set by
 * somebody who shows our output on a terminal (a script with `tee`, an outer launcher). */
static int columns_for_ranks(const td__run_options *options, bool prefix)
{
    struct winsize size;
    int columns = 0, taken = 0;
    const char *said = td__env(TD_ENV_TERMINAL);
    if (said)
        columns = atoi(said);
    else if (isatty(STDOUT_FILENO))
        columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    if (prefix)
        taken = snprintf(NULL, 0, "[%d] ", options->ranks - 1);
    return columns > taken ? columns - taken : 0;
}

int td__job_prepare(td__job *job, td__store_server **server)
{
    unsigned char random[8], secret[32];
    if (getrandom(random, sizeof random, 0) != sizeof random || getrandom(secret, sizeof secret, 0) != sizeof secret)
        return complain("no random numbers for the job's secret", strerror(errno));
    job->columns = columns_for_ranks(job->options, job->prefix);
    char hex[17], where[128];
    to_hex(random, sizeof random, hex);
    to_hex(secret, sizeof secret, job->secret);
    snprintf(job->name, sizeof job->name, "%d-%s", (int)getpid(), hex);
    snprintf(where, sizeof where, "unix:@tandem-%s", job->name);
    *server = td__store_serve(where, secret);
    if (!*server)
        return complain("the ranks' meeting point cannot be opened", td_error_message());
    job->store = td__store_address(*server);
    job->port = free_port();
    if (!td__runtime_dir(job->folder, sizeof job->folder))
        job->folder[0] = '\0';
    job->rank = calloc((size_t)job->options->ranks, sizeof *job->rank);
    if (!job->rank)
        return complain("memory cannot be had", strerror(ENOMEM));
    for (int r = 0; r < job->options->ranks; r++)
        job->rank[r].rank = r;
    td__place_here(job->options->ranks, false, &job->division);
    return 0;
}

int td__job_start_rank(td__job *job, int rank, bool piped)
{
    int out[2] = { -1, -1 }, err[2] = { -1, -1 }, none = -1, error = 0;
    td__start start = { .path = job->options->path, .argv = job->options->argv, .in = STDIN_FILENO, .out = STDOUT_FILENO,
                        .err = STDERR_FILENO, .cores = job->division.set ? job->division.set[rank] : NULL,
                        .nodes = job->division.nodes ? job->division.nodes[rank] : NULL };
    if (rank > 0) {
        start.in = none = open("/dev/null", O_RDONLY | O_CLOEXEC);
        error = none < 0 ? -errno : 0;
    }
    if (piped && !error) {
        if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
            error = -errno;
        start.out = out[1];
        start.err = err[1];
    }
    start.variables = error ? NULL : td__environ_make(job, rank);
    if (!error)
        error = start.variables ? td__spawn(&start, &job->rank[rank].pid) : -ENOMEM;
    td__environ_free(start.variables);
    if (none >= 0)
        close(none);
    for (int i = 0; i < 2 && piped; i++) {
        int *pipe = i ? err : out, to = i ? STDERR_FILENO : STDOUT_FILENO;
        if (pipe[1] >= 0)
            close(pipe[1]);
        if (pipe[0] >= 0 && !error) {
            fcntl(pipe[0], F_SETFL, O_NONBLOCK);
            int refused = td__lines_add(rank, pipe[0], to);
            if (refused)
                td__lines_say("the output of rank %d cannot be read: %s", rank, uv_strerror(refused));
        } else if (pipe[0] >= 0) {
            close(pipe[0]);
        }
    }
    return error;
}
