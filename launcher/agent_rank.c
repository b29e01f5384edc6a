/* launcher/agent_rank.c: an agent starts its rank, and passes on what the rank writes: to the head, to files, or to its own stdout and stderr.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void td__outlet_close(td__outlet *o)
{
    if (!o->open)
        return;
    o->open = false;
    uv_close((uv_handle_t *)&o->pipe, NULL);
    if (o->log >= 0)
        close(o->log);
}

/* ---- the rank's output -------------------------------------------------------------------------------------------------------------------- */

static char chunk[TD_TELL_BYTES];

static void on_room_for_bytes(uv_handle_t *handle, size_t wanted, uv_buf_t *into)
{
    (void)handle, (void)wanted;
    *into = uv_buf_init(chunk, sizeof chunk);
}

static bool write_all(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno != EINTR)
            return false;
        bytes += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

static void on_bytes(uv_stream_t *from, ssize_t n, const uv_buf_t *bytes)
{
    td__outlet *o = from->data;
    td__agent *g = from->loop->data;
    if (n == 0)
        return;
    if (n < 0) {
        td__outlet_close(o);
        return;
    }
    if (o->log >= 0 && !write_all(o->log, bytes->base, (size_t)n)) {
        td__agent_complain("a log file of rank %d cannot be written any more: %s", g->world.rank, strerror(errno));
        close(o->log);
        o->log = -1;
    }
    if (o->shown && o->to >= 0 && !write_all(o->to, bytes->base, (size_t)n))
        td__outlet_close(o);                       /* nobody reads it any more: the rank learns it */
    if (!o->shown || o->to >= 0 || g->lost)
        return;
    td__link_tell(g->link, o->kind, bytes->base, (size_t)n);
    if (td__link_full(g->link)) {
        o->paused = true;
        uv_read_stop(from);
    }
}

void td__agent_room(void *user)
{
    td__agent *g = user;
    for (size_t i = 0; i < TD_COUNT(g->out); i++)
        if (g->out[i].open && g->out[i].paused) {
            g->out[i].paused = false;
            uv_read_start((uv_stream_t *)&g->out[i].pipe, on_room_for_bytes, on_bytes);
        }
}

/* The rank's end of a stream; a negative errno. *ours: the end that we read, or -1. */
static int open_stream(td__agent *g, const td__streams *streams, int stream, int *ours, char *why, size_t size)
{
    int lr = g->world.local_rank, own = stream == TD_STREAM_OUT ? STDOUT_FILENO : STDERR_FILENO, both[2];
    td__outlet *o = &g->out[stream == TD_STREAM_ERR];
    bool kept = td__stream_kept(streams, lr, stream);
    *o = (td__outlet){ .kind = stream == TD_STREAM_OUT ? TD_TELL_OUT : TD_TELL_ERR, .to = g->orders.own_output ? own : -1, .log = -1,
                   .shown = td__stream_shown(streams, lr, stream) };
    *ours = -1;
    if (kept && (o->log = td__stream_open(streams, g->orders.job, g->world.rank, stream, why, size)) < 0)
        return -EIO;
    if (kept && !o->shown)
        return o->log;
    if (!kept && o->shown && g->orders.own_output)
        return own;
    if (pipe2(both, O_CLOEXEC) != 0)
        return -errno;
    *ours = both[0];
    return both[1];
}

static void read_stream(td__agent *g, int i, int rank_end, int ours)
{
    td__outlet *o = &g->out[i];
    if (rank_end > STDERR_FILENO)
        close(rank_end);
    if (ours < 0)
        return;
    fcntl(ours, F_SETFL, O_NONBLOCK);
    uv_pipe_init(&g->loop, &o->pipe, 0);
    o->pipe.data = o;
    o->open = true;
    if (uv_pipe_open(&o->pipe, ours) != 0 || uv_read_start((uv_stream_t *)&o->pipe, on_room_for_bytes, on_bytes) != 0)
        td__outlet_close(o);
}

/* ---- the start ------------------------------------------------------------------------------------------------------------------------------ */

static void refuse(td__agent *g, int status, const char *sentence)
{
    td__refusal refusal = { .status = status };
    snprintf(refusal.sentence, sizeof refusal.sentence, "rank %d on %s cannot be started: %s", g->world.rank, g->host, sentence);
    td__link_tell(g->link, TD_TELL_REFUSED, &refusal, sizeof refusal);
}

void td__agent_start_rank(td__agent *g, const td__go *go)
{
    char why[TD_LOG_DIR_MAX + 2600] = "";
    char *path = NULL;
    td__streams streams = { .log_dir = g->orders.log_dir, .tee = g->orders.tee[0] ? g->orders.tee : NULL,
                            .redirects = g->orders.redirects[0] ? g->orders.redirects : NULL,
                            .filter = g->orders.filter[0] ? g->orders.filter : NULL };
    td__identity who = { .rank = g->world.rank, .size = g->world.size, .local_rank = g->world.local_rank, .local_size = g->world.local_size,
                         .node_rank = go->node_rank[g->world.rank], .hosts = go->hosts, .job = g->orders.job,
                         .secret = td__env(TD_ENV_SECRET), .store = td__env(TD_ENV_STORE), .master_addr = go->master_addr,
                         .master_port = go->master_port, .columns = g->orders.columns, .threads = g->orders.threads,
                         .share = g->division.threads };
    int lr = g->world.local_rank, ours[2] = { -1, -1 }, none = -1;
    td__start start = { .argv = g->argv, .in = STDIN_FILENO, .cores = g->division.set ? g->division.set[lr] : NULL,
                        .nodes = g->division.nodes ? g->division.nodes[lr] : NULL };
    int status = td__program_look(g->argv[0], &path, why, sizeof why);
    if (status) {
        refuse(g, status, why);
        return;
    }
    if (g->world.rank > 0)
        start.in = none = open("/dev/null", O_RDONLY | O_CLOEXEC);
    start.path = path;
    start.out = open_stream(g, &streams, TD_STREAM_OUT, &ours[0], why, sizeof why);
    start.err = start.out < 0 ? -1 : open_stream(g, &streams, TD_STREAM_ERR, &ours[1], why, sizeof why);
    start.variables = td__environ_make(&who);
    int error = start.out < 0 ? start.out : start.err < 0 ? start.err : start.in < 0 ? -EMFILE : !start.variables ? -ENOMEM :
                td__spawn(&start, &g->pid);
    td__environ_free(start.variables);
    if (none >= 0)
        close(none);
    read_stream(g, 0, start.out, ours[0]);
    read_stream(g, 1, start.err, ours[1]);
    if (error) {
        if (!why[0])
            snprintf(why, sizeof why, "\"%s\": %s", path, strerror(-error));
        refuse(g, error == -EACCES || error == -ENOEXEC || error == -ENOENT || error == -E2BIG ? TD_EXIT_NOT_EXECUTABLE : 1, why);
    } else {
        g->started = true;
        g->phase = TD_AGENT_RUNNING;
        int32_t pid = g->pid;
        td__link_tell(g->link, TD_TELL_STARTED, &pid, sizeof pid);
    }
    free(path);
}
