/* launcher/agent.c: `tandem agent ENGINE -- PROGRAM ARGS`: the guardian of one rank, started by an engine on the rank's host.
 *
 * It finds out who it is from the engine's variables, says hello to the head, starts the rank as its child when all have come (so the
 * rank inherits what MPI needs), tells how it goes, and ends it and everything that descends from it: when the head says so, when the
 * head is lost, and when the engine's daemon above it dies. It exits with 0 whatever became of the rank: the head judges, and an
 * engine that sees a bad exit would end the job in its own way and say its own word first.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TICK_MS = 40, FAST_END_MS = 500, DRAIN_MS = 500, GIVE_UP_MS = 10000, LINGER_MS = 6000 };

int td__agent_complain(const char *format, ...)
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

/* A rank that has finished well removes its box; what it did last is then still to be read through our descriptor. */
static bool read_box(td__agent *g, char *path, size_t size, td__box *box)
{
    char folder[300];
    if (!td__runtime_dir(folder, sizeof folder))
        return false;
    snprintf(path, size, "%s/%s.%d.box", folder, g->orders.job, g->world.rank);
    if (td__box_read(path, box) == 0) {
        if (g->box < 0)
            g->box = open(path, O_RDONLY | O_CLOEXEC);
        return true;
    }
    if (g->box < 0 || pread(g->box, box, sizeof *box, 0) != (ssize_t)sizeof *box)   /* it was sound when we opened it */
        *box = (td__box){ 0 };
    box->doing[sizeof box->doing - 1] = box->last[sizeof box->last - 1] = '\0';
    return false;
}

static void fill_report(td__agent *g, td__report *report)
{
    *report = (td__report){ .pid = g->pid, .status = g->status, .ended = g->ended, .asked_to_end = g->asked,
                            .ended_age_ns = g->ended ? td__wall_ns() - g->ended_ns : 0 };
    if (!read_box(g, report->box_path, sizeof report->box_path, &report->box)) {
        report->finished = g->box >= 0;
        return;
    }
    bool dying = report->box.error_ns && report->box.state == TD_BOX_FAILED;
    report->has_box = true;
    report->kept = (g->ended && g->status != 0 && !g->asked) || dying;
    report->error_age_ns = report->box.error_ns ? td__wall_ns() - report->box.error_ns : 0;
    td__site_in_file(report->box.module, report->box.offset, report->place, sizeof report->place);
    if (g->ended && !report->kept)
        unlink(report->box_path);
}

static void tell_report(td__agent *g, td__tell_kind kind)
{
    td__report *report = malloc(sizeof *report);
    if (report) {
        fill_report(g, report);
        td__link_tell(g->link, kind, report, sizeof *report);
    }
    free(report);
}

static void on_look(uv_timer_t *timer)
{
    td__agent *g = timer->data;
    char path[600], sentence[400];
    td__box box;
    if (g->phase != TD_AGENT_RUNNING || g->ended || g->lost)
        return;
    if (g->box >= 0 || ++g->looks == TD_FIRST_LOOKS)             /* often at first: a rank may be done soon after it has begun */
        uv_timer_set_repeat(timer, TD_STILL_MS);
    bool finished = !read_box(g, path, sizeof path, &box) && g->box >= 0;
    switch (td__still_look(&g->still, g->pid, &box, finished)) {
    case TD_STOPPED: {
        int n = snprintf(sentence, sizeof sentence, "rank %d on %s (pid %d) is stopped by a signal (kill -CONT %d continues it)", g->world.rank,
                         g->host, (int)g->pid, (int)g->pid);
        td__link_tell(g->link, TD_TELL_SAYS, sentence, (size_t)n);
        break;
    }
    case TD_WAITS:
        tell_report(g, TD_TELL_LOOK);
        break;
    case TD_MOVES:
        break;
    }
}

static void say_hello(td__agent *g)
{
    td__hello hello = { .size = g->world.size, .local_rank = g->world.local_rank, .local_size = g->world.local_size, .port = td__free_port(false) };
    snprintf(hello.host, sizeof hello.host, "%s", g->host);
    td__link_address(g->link, hello.address, sizeof hello.address);
    td__place_text(&g->division, g->world.local_rank, hello.binding, sizeof hello.binding);
    td__link_tell(g->link, TD_TELL_HELLO, &hello, sizeof hello);
}

/* ---- ending ---------------------------------------------------------------------------------------------------------------------------- */

/* An open link holds the loop; the process ends with it. */
static void leave(td__agent *g)
{
    for (size_t i = 0; i < TD_COUNT(g->out); i++)
        td__outlet_close(&g->out[i]);
    uv_stop(&g->loop);
}

static void on_timer(uv_timer_t *timer);
static void enter(td__agent *g, td__agent_phase next, uint64_t milliseconds)
{
    g->phase = next;
    g->phase_end = uv_now(&g->loop) + milliseconds;
    uv_timer_start(&g->timer, on_timer, 0, TICK_MS);
}

static void end_all(td__agent *g, uint64_t milliseconds)
{
    if (g->phase >= TD_AGENT_ENDING)
        return;
    g->asked |= !g->ended;
    td__tree_signal(SIGTERM);
    if (g->still.stop_told)                    /* a stopped process does not end by it before it goes on */
        td__tree_signal(SIGCONT);
    enter(g, TD_AGENT_ENDING, milliseconds);
}

static bool draining(td__agent *g)
{
    return (g->out[0].open || g->out[1].open) && uv_now(&g->loop) < g->phase_end + DRAIN_MS && !g->lost;
}

/* With a cut link mpirun's daemon is to find it out by itself, by its keepalives. The report of our end, which could not be delivered,
 * would keep it from that: so we stay until it has gone, and when it does not go, end it: it is our own job's. */
static bool daemon_stays(const td__agent *g)
{
    return g->lost && strcmp(g->engine, "mpirun") == 0 && getppid() == g->parent && g->parent > 1;
}

static void nothing_left(td__agent *g)
{
    uint64_t now = uv_now(&g->loop);
    if (g->phase_end > now)
        g->phase_end = now;
    if (draining(g))
        return;
    if (daemon_stays(g) && g->phase != TD_AGENT_LINGERING)
        enter(g, TD_AGENT_LINGERING, LINGER_MS);
    else
        leave(g);
}

static void on_timer(uv_timer_t *timer)
{
    td__agent *g = timer->data;
    bool late = uv_now(&g->loop) >= g->phase_end;
    if (g->phase == TD_AGENT_LINGERING) {
        if (daemon_stays(g) && late)
            kill(g->parent, SIGKILL);
        if (!daemon_stays(g) || late)
            leave(g);
    } else if (td__tree_signal(g->phase == TD_AGENT_KILLING ? SIGKILL : 0) == 0 && (g->ended || !g->started)) {
        nothing_left(g);
    } else if (g->phase == TD_AGENT_ENDING && late) {
        enter(g, TD_AGENT_KILLING, GIVE_UP_MS);
    } else if (g->phase == TD_AGENT_KILLING && late) {
        leave(g);
    }
}

static void on_child_ended(uv_signal_t *handle, int number)
{
    (void)number;
    td__agent *g = handle->data;
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != g->pid || g->ended)
            continue;
        g->ended = true;
        g->status = status;
        g->ended_ns = td__wall_ns();
        tell_report(g, TD_TELL_ENDED);
    }
}

static void pass_down(td__agent *g, int number)
{
    bool to_group = number == SIGINT || number == SIGTERM || number == SIGHUP;
    if (g->started && !g->ended)
        kill(to_group ? -g->pid : g->pid, number);
}

/* SIGTERM comes from the engine, or because our parent has died (we asked for it). mpirun sends SIGKILL a second later, so what has to be
 * ended is ended now; Slurm gives time for a checkpoint. */
static void on_signal(uv_signal_t *handle, int number)
{
    td__agent *g = handle->data;
    bool orphan = getppid() != g->parent;
    if (number != SIGTERM || (!orphan && strcmp(g->engine, "mpirun") != 0)) {
        pass_down(g, number);
        if (number == SIGTERM && !g->started)
            end_all(g, FAST_END_MS);
        return;
    }
    if (orphan && !g->lost && !g->ended && g->phase < TD_AGENT_ENDING) {
        char sentence[300];
        int n = snprintf(sentence, sizeof sentence, "what had started rank %d's agent on %s has died", g->world.rank, g->host);
        td__link_tell(g->link, TD_TELL_SAYS, sentence, (size_t)n);
    }
    end_all(g, FAST_END_MS);
}

/* ---- what the head says ------------------------------------------------------------------------------------------------------------------------ */

static void on_go(void *user, const td__go *go)
{
    td__agent *g = user;
    if (g->phase == TD_AGENT_WAITING)
        td__agent_start_rank(g, go);
    if (g->started && !uv_is_active((uv_handle_t *)&g->look))
        uv_timer_start(&g->look, on_look, TD_FIRST_MS, TD_FIRST_MS);
}

static void on_command(void *user, const td__order *order)
{
    td__agent *g = user;
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
        td__tree_signal(SIGKILL);
        enter(g, TD_AGENT_KILLING, GIVE_UP_MS);
        break;
    }
}

static void on_lost(void *user, bool silent, const char *why)
{
    td__agent *g = user;
    if (g->phase < TD_AGENT_ENDING) {
        (void)why;
        td__agent_complain("rank %d on %s has lost tandem run (%s): the rank is ended", g->world.rank, g->host,
                 silent ? "no word from it for 3 s: the link is cut, or its host is down" : "it has ended");
        g->result = 1;
    }
    g->lost = true;
    if (silent && g->phase == TD_AGENT_WAITING)
        g->phase = TD_AGENT_RUNNING;
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

static int find_self(td__agent *g, unsigned char secret[32])
{
    char why[300];
    bool by_hand = strcmp(g->engine, "hand") == 0;
    if (!td__env(TD_ENV_STORE) || !read_secret(secret))
        return td__agent_complain("TANDEM_STORE or TANDEM_SECRET has not come with the engine; this is a part of tandem run and not started by hand");
    if (td__world_find(by_hand ? td__getenv : engine_variable, &g->world, why, sizeof why) != 0)
        return td__agent_complain("%s has not said which rank this is: %s", g->engine, why);
    if (g->world.local_size < 1 || g->world.local_rank < 0)
        return td__agent_complain("%s has not said which of a host's ranks this is", g->engine);
    gethostname(g->host, sizeof g->host - 1);
    return 0;
}

static int watch_signals(td__agent *g)
{
    int error = uv_loop_init(&g->loop);
    if (!error)
        error = uv_timer_init(&g->loop, &g->timer);
    if (!error)
        error = uv_timer_init(&g->loop, &g->look);
    g->timer.data = g->look.data = g->loop.data = g;
    if (!error)
        error = td__signals_watch(&g->signals, &g->loop, g, on_signal, on_child_ended, true);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    g->parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    return error;
}

static int guard_rank(td__agent *g)
{
    static const td__link_events events = { on_go, on_command, on_lost, td__agent_room };
    unsigned char secret[32];
    if (find_self(g, secret) != 0)
        return 1;
    g->link = td__link_open(td__env(TD_ENV_STORE), secret, g->world.rank, &g->orders);
    if (!g->link)
        return td__agent_complain("rank %d on %s cannot reach tandem run: %s", g->world.rank, g->host, td_error_message());
    td__place_here(g->world.local_size, true, &g->division);
    if (g->orders.no_binding)
        td__division_unbind(&g->division);
    int error = watch_signals(g);
    if (!error)
        error = td__link_start(g->link, &g->loop, &events, g);
    if (error)
        return td__agent_complain("rank %d on %s: there is no event loop: %s", g->world.rank, g->host, uv_strerror(error));
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
    static td__agent g;                            /* its loop and link stay to the end of the process: a thread may be in its last wait */
    g.engine = argv[1];
    g.argv = argv + 3;
    g.box = -1;
    return guard_rank(&g);
}

const td__command td__command_agent = { .name = "agent", .usage = "agent ENGINE -- program [args]", .hidden = true, .run = run,
    .summary = "A part of tandem run on several hosts, not started by hand", .details = "" };
