/* launcher/agent.c: `tandem agent ENGINE -- PROGRAM ARGS`: the guardian of one rank, started by an engine on the rank's host.
 *
 * It finds out who it is from the engine's variables, says hello to the head, starts the rank as its child when all have come (so the
 * rank inherits what MPI needs), tells how it goes, and ends it and everything that descends from it: when the head says so, when the
 * head is lost, and when the engine's daemon above it dies. It exits with 0 whatever became of the rank: the head judges, and an
 * engine that sees a bad exit would end the job in its own way and say its own word first.
 */
#include "across.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TICK_MS = 40, FAST_END_MS = 500, DRAIN_MS = 500, GIVE_UP_MS = 10000, LINGER_MS = 6000 };
static const int passed_signals[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 };

typedef enum { WAITING, RUNNING, ENDING, KILLING, LINGERING } phase;
typedef struct {
    uv_pipe_t pipe;
    td__tell_kind kind;
    int to, log;                               /* to: our own stdout or stderr, -1: the head's; log: -1: none */
    bool shown, open, paused;
} outlet;
typedef struct {
    uv_loop_t loop;
    uv_signal_t signal[TD_COUNT(passed_signals)], child_ended;
    uv_timer_t timer;
    td__link *link;
    td__orders orders;
    td__world world;
    td__division division;
    td__go *go;
    const char *engine;
    char **argv;
    char host[64];
    outlet out[2];
    phase phase;
    uint64_t phase_end;
    pid_t parent, pid;
    bool ended, asked, lost, started;
    int status, result;
    int64_t ended_ns;
} guard;

static int64_t real_time_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

TD_PRINTF(1, 2) static int complain(const char *format, ...)
{
    char line[1200] = "tandem agent: ";
    size_t n = strlen(line);
    va_list args;
    va_start(args, format);
    vsnprintf(line + n, sizeof line - n - 1, format, args);
    va_end(args);
    n = strlen(line);
    line[n] = '\n';
    if (write(STDERR_FILENO, line, n + 1) < 0)
        return 1;                              /* nobody listens: it ends all the same */
    return 1;
}

/* ---- what is told -------------------------------------------------------------------------------------------------------------------- */

static void fill_report(guard *g, td__report *report)
{
    char folder[300];
    *report = (td__report){ .pid = g->pid, .status = g->status, .ended = g->ended, .asked_to_end = g->asked,
                            .ended_age_ns = g->ended ? real_time_ns() - g->ended_ns : 0 };
    if (!td__runtime_dir(folder, sizeof folder))
        return;
    snprintf(report->box_path, sizeof report->box_path, "%s/%s.%d.box", folder, g->orders.job, g->world.rank);
    if (td__box_read(report->box_path, &report->box) != 0)
        return;
    bool dying = report->box.error_ns && report->box.state == TD_BOX_FAILED;
    report->has_box = true;
    report->kept = (g->ended && g->status != 0 && !g->asked) || dying;
    report->error_age_ns = report->box.error_ns ? real_time_ns() - report->box.error_ns : 0;
    td__site_in_file(report->box.module, report->box.offset, report->place, sizeof report->place);
    if (g->ended && !report->kept)
        unlink(report->box_path);
}

static void tell_report(guard *g, td__tell_kind kind)
{
    td__report *report = malloc(sizeof *report);
    if (report) {
        fill_report(g, report);
        td__link_tell(g->link, kind, report, sizeof *report);
    }
    free(report);
}

static int free_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int port = fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 &&
               getsockname(fd, (struct sockaddr *)&address, &size) == 0 ? ntohs(address.sin_port) : 0;
    if (fd >= 0)
        close(fd);
    return port;
}

static void say_hello(guard *g)
{
    td__hello hello = { .size = g->world.size, .local_rank = g->world.local_rank, .local_size = g->world.local_size, .port = free_port() };
    snprintf(hello.host, sizeof hello.host, "%s", g->host);
    td__link_address(g->link, hello.address, sizeof hello.address);
    td__place_text(&g->division, g->world.local_rank, hello.binding, sizeof hello.binding);
    td__link_tell(g->link, TD_TELL_HELLO, &hello, sizeof hello);
}

/* ---- ending ---------------------------------------------------------------------------------------------------------------------------- */

static size_t signal_all(int number)
{
    pid_t *list;
    size_t n = td__tree_below(&list);
    for (size_t i = 0; list && number && i < n; i++)
        kill(list[i], number);
    free(list);
    return n;
}

static void close_outlet(outlet *o)
{
    if (!o->open)
        return;
    o->open = false;
    uv_close((uv_handle_t *)&o->pipe, NULL);
    if (o->log >= 0)
        close(o->log);
}

/* An open link holds the loop; the process ends with it. */
static void leave(guard *g)
{
    for (size_t i = 0; i < TD_COUNT(g->out); i++)
        close_outlet(&g->out[i]);
    uv_stop(&g->loop);
}

static void on_timer(uv_timer_t *timer);
static void enter(guard *g, phase next, uint64_t milliseconds)
{
    g->phase = next;
    g->phase_end = uv_now(&g->loop) + milliseconds;
    uv_timer_start(&g->timer, on_timer, 0, TICK_MS);
}

static void end_all(guard *g, uint64_t milliseconds)
{
    if (g->phase >= ENDING)
        return;
    g->asked |= !g->ended;
    signal_all(SIGTERM);
    enter(g, ENDING, milliseconds);
}

static bool draining(guard *g)
{
    return (g->out[0].open || g->out[1].open) && uv_now(&g->loop) < g->phase_end + DRAIN_MS && !g->lost;
}

/* With a cut link mpirun's daemon is to find it out by itself, by its keepalives. The report of our end, which could not be delivered,
 * would keep it from that: so we stay until it has gone, and when it does not go, end it: it is our own job's. */
static bool daemon_stays(const guard *g)
{
    return g->lost && strcmp(g->engine, "mpirun") == 0 && getppid() == g->parent && g->parent > 1;
}

static void nothing_left(guard *g)
{
    uint64_t now = uv_now(&g->loop);
    if (g->phase_end > now)
        g->phase_end = now;
    if (draining(g))
        return;
    if (daemon_stays(g) && g->phase != LINGERING)
        enter(g, LINGERING, LINGER_MS);
    else
        leave(g);
}

static void on_timer(uv_timer_t *timer)
{
    guard *g = timer->data;
    bool late = uv_now(&g->loop) >= g->phase_end;
    if (g->phase == LINGERING) {
        if (daemon_stays(g) && late)
            kill(g->parent, SIGKILL);
        if (!daemon_stays(g) || late)
            leave(g);
    } else if (signal_all(g->phase == KILLING ? SIGKILL : 0) == 0 && (g->ended || !g->started)) {
        nothing_left(g);
    } else if (g->phase == ENDING && late) {
        enter(g, KILLING, GIVE_UP_MS);
    } else if (g->phase == KILLING && late) {
        leave(g);
    }
}

static void on_child_ended(uv_signal_t *handle, int number)
{
    (void)number;
    guard *g = handle->data;
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != g->pid || g->ended)
            continue;
        g->ended = true;
        g->status = status;
        g->ended_ns = real_time_ns();
        tell_report(g, TD_TELL_ENDED);
    }
}

static void pass_down(guard *g, int number)
{
    bool to_group = number == SIGINT || number == SIGTERM || number == SIGHUP;
    if (g->started && !g->ended)
        kill(to_group ? -g->pid : g->pid, number);
}

/* SIGTERM comes from the engine, or because our parent has died (we asked for it). mpirun sends SIGKILL a second later, so what has to be
 * ended is ended now; Slurm gives time for a checkpoint. */
static void on_signal(uv_signal_t *handle, int number)
{
    guard *g = handle->data;
    bool orphan = getppid() != g->parent;
    if (number != SIGTERM || (!orphan && strcmp(g->engine, "mpirun") != 0)) {
        pass_down(g, number);
        if (number == SIGTERM && !g->started)
            end_all(g, FAST_END_MS);
        return;
    }
    if (orphan && !g->lost && !g->ended && g->phase < ENDING) {
        char sentence[300];
        int n = snprintf(sentence, sizeof sentence, "what had started rank %d's agent on %s has died", g->world.rank, g->host);
        td__link_tell(g->link, TD_TELL_SAYS, sentence, (size_t)n);
    }
    end_all(g, FAST_END_MS);
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

static guard *the_guard;                       /* a pipe's data is its outlet */

static void on_bytes(uv_stream_t *from, ssize_t n, const uv_buf_t *bytes)
{
    outlet *o = from->data;
    guard *g = the_guard;
    if (n == 0)
        return;
    if (n < 0) {
        close_outlet(o);
        return;
    }
    if (o->log >= 0 && !write_all(o->log, bytes->base, (size_t)n)) {
        complain("a log file of rank %d cannot be written any more: %s", g->world.rank, strerror(errno));
        close(o->log);
        o->log = -1;
    }
    if (o->shown && o->to >= 0 && !write_all(o->to, bytes->base, (size_t)n))
        close_outlet(o);                       /* nobody reads it any more: the rank learns it */
    if (!o->shown || o->to >= 0 || g->lost)
        return;
    td__link_tell(g->link, o->kind, bytes->base, (size_t)n);
    if (td__link_full(g->link)) {
        o->paused = true;
        uv_read_stop(from);
    }
}

static void on_room(void *user)
{
    guard *g = user;
    for (size_t i = 0; i < TD_COUNT(g->out); i++)
        if (g->out[i].open && g->out[i].paused) {
            g->out[i].paused = false;
            uv_read_start((uv_stream_t *)&g->out[i].pipe, on_room_for_bytes, on_bytes);
        }
}

/* The rank's end of a stream; a negative errno. *ours: the end that we read, or -1. */
static int open_stream(guard *g, const td__streams *streams, int stream, int *ours, char *why, size_t size)
{
    int lr = g->world.local_rank, own = stream == TD_STREAM_OUT ? STDOUT_FILENO : STDERR_FILENO, both[2];
    outlet *o = &g->out[stream == TD_STREAM_ERR];
    bool kept = td__stream_kept(streams, lr, stream);
    *o = (outlet){ .kind = stream == TD_STREAM_OUT ? TD_TELL_OUT : TD_TELL_ERR, .to = g->orders.own_output ? own : -1, .log = -1,
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

static void read_stream(guard *g, int i, int rank_end, int ours)
{
    outlet *o = &g->out[i];
    if (rank_end > STDERR_FILENO)
        close(rank_end);
    if (ours < 0)
        return;
    fcntl(ours, F_SETFL, O_NONBLOCK);
    uv_pipe_init(&g->loop, &o->pipe, 0);
    o->pipe.data = o;
    o->open = true;
    if (uv_pipe_open(&o->pipe, ours) != 0 || uv_read_start((uv_stream_t *)&o->pipe, on_room_for_bytes, on_bytes) != 0)
        close_outlet(o);
}

/* ---- the start ------------------------------------------------------------------------------------------------------------------------------ */

static void refuse(guard *g, int status, const char *sentence)
{
    td__refusal refusal = { .status = status };
    snprintf(refusal.sentence, sizeof refusal.sentence, "rank %d on %s cannot be started: %s", g->world.rank, g->host, sentence);
    td__link_tell(g->link, TD_TELL_REFUSED, &refusal, sizeof refusal);
}

static void start_rank(guard *g, const td__go *go)
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
        g->phase = RUNNING;
        int32_t pid = g->pid;
        td__link_tell(g->link, TD_TELL_STARTED, &pid, sizeof pid);
    }
    free(path);
}

/* ---- what the head says ------------------------------------------------------------------------------------------------------------------------ */

static void on_go(void *user, const td__go *go)
{
    guard *g = user;
    if (g->phase == WAITING)
        start_rank(g, go);
}

static void on_command(void *user, const td__order *order)
{
    guard *g = user;
    switch ((td__command_kind)order->kind) {
    case TD_DO_SIGNAL:
        pass_down(g, order->number);
        break;
    case TD_DO_LOOK:
        if (g->started && !g->ended)
            tell_report(g, TD_TELL_LOOK);
        break;
    case TD_DO_END:
        end_all(g, (uint64_t)(g->orders.kill_after_s * 1000));
        break;
    case TD_DO_KILL:
        g->asked |= !g->ended;
        signal_all(SIGKILL);
        enter(g, KILLING, GIVE_UP_MS);
        break;
    }
}

static void on_lost(void *user, bool silent, const char *why)
{
    guard *g = user;
    if (g->phase < ENDING) {
        (void)why;
        complain("rank %d on %s has lost tandem run (%s): the rank is ended", g->world.rank, g->host,
                 silent ? "no word from it for 3 s: the link is cut, or its host is down" : "it has ended");
        g->result = 1;
    }
    g->lost = true;
    if (silent && g->phase == WAITING)
        g->phase = RUNNING;
    end_all(g, FAST_END_MS);
}

/* ---- who am I ------------------------------------------------------------------------------------------------------------------------------------ */

/* What an outer launcher of another kind has left is not the engine's. */
static const char *engine_variable(const char *name)
{
    static const char *const outer[] = { "TANDEM_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE" };
    for (size_t i = 0; i < TD_COUNT(outer); i++)
        if (strncmp(name, outer[i], strlen(outer[i])) == 0)
            return NULL;
    return td__getenv(name);
}

static bool read_secret(unsigned char secret[32])
{
    const char *hex = td__env(TD_ENV_SECRET);
    for (int i = 0; i < 32; i++)
        if (!hex || strlen(hex) != 64 || sscanf(hex + 2 * i, "%2hhx", &secret[i]) != 1)
            return false;
    return true;
}

static int find_self(guard *g, unsigned char secret[32])
{
    char why[300];
    bool by_hand = strcmp(g->engine, "hand") == 0;
    if (!td__env(TD_ENV_STORE) || !read_secret(secret))
        return complain("TANDEM_STORE or TANDEM_SECRET has not come with the engine; this is a part of tandem run and not started by hand");
    if (td__world_find(by_hand ? td__getenv : engine_variable, &g->world, why, sizeof why) != 0)
        return complain("%s has not said which rank this is: %s", g->engine, why);
    if (g->world.local_size < 1 || g->world.local_rank < 0)
        return complain("%s has not said which of a host's ranks this is", g->engine);
    gethostname(g->host, sizeof g->host - 1);
    return 0;
}

static int watch_signals(guard *g)
{
    int error = uv_loop_init(&g->loop);
    if (!error)
        error = uv_timer_init(&g->loop, &g->timer);
    if (!error)
        error = uv_signal_init(&g->loop, &g->child_ended);
    g->child_ended.data = g->timer.data = g;
    if (!error)
        error = uv_signal_start(&g->child_ended, on_child_ended, SIGCHLD);
    for (size_t i = 0; i < TD_COUNT(passed_signals) && !error; i++) {
        error = uv_signal_init(&g->loop, &g->signal[i]);
        g->signal[i].data = g;
        if (!error)
            error = uv_signal_start(&g->signal[i], on_signal, passed_signals[i]);
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    g->parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    return error;
}

static int guard_rank(guard *g)
{
    static const td__link_events events = { on_go, on_command, on_lost, on_room };
    unsigned char secret[32];
    if (find_self(g, secret) != 0)
        return 1;
    g->link = td__link_open(td__env(TD_ENV_STORE), secret, g->world.rank, &g->orders);
    if (!g->link)
        return complain("rank %d on %s cannot reach tandem run: %s", g->world.rank, g->host, td_error_message());
    td__place_here(g->world.local_size, true, &g->division);
    if (g->orders.no_binding)
        td__division_unbind(&g->division);
    int error = watch_signals(g);
    if (!error)
        error = td__link_start(g->link, &g->loop, &events, g);
    if (error)
        return complain("rank %d on %s: there is no event loop: %s", g->world.rank, g->host, uv_strerror(error));
    the_guard = g;
    say_hello(g);
    uv_run(&g->loop, UV_RUN_DEFAULT);
    td__link_tell(g->link, TD_TELL_GONE, NULL, 0);
    td__link_close(g->link, 2);
    td__division_free(&g->division);
    return g->result;
}

static int run(int argc, char **argv)
{
    if (argc < 4 || strcmp(argv[2], "--") != 0)
        return td__usage("agent", "expected ENGINE -- PROGRAM ARGS; it is a part of tandem run and not started by hand");
    static guard g;                            /* its loop and link stay to the end of the process: a thread may be in its last wait */
    g.engine = argv[1];
    g.argv = argv + 3;
    return guard_rank(&g);
}

const td__command td__command_agent = { .name = "agent", .usage = "agent ENGINE -- program [args]", .hidden = true, .run = run,
    .summary = "A part of tandem run on several hosts, not started by hand", .details = "" };
