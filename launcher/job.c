/* launcher/job.c: the life of a job, on one libuv loop.
 *
 *   RUNNING   ranks work; their output is passed on, our signals are passed down
 *   GRACE     a rank has failed: the others get a second to say their own sentence (what they were waiting for)
 *   ENDING    SIGTERM to every process that descends from us, also those that ranks started and left behind
 *   KILLING   SIGKILL, until none is left
 *
 * A job whose ranks all end goes straight to ENDING, for what they may have left behind. A signal that asks for the end
 * (SIGINT, SIGTERM, SIGHUP) is passed down and the ranks may take their time, to write a checkpoint; once one has ended
 * because of it the rest have half a minute. A second SIGINT kills.
 */
#include "launcher.h"
#include <errno.h>
#include <signal.h>
#include <store.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GRACE_MS = 1000, ASKED_GRACE_MS = 30000, TICK_MS = 20, LEFTOVER_LINES_MS = 500, GIVE_UP_MS = 10000 };

typedef enum { RUNNING, GRACE, ENDING, KILLING } phase;
typedef struct {
    td__job job;
    uv_loop_t loop;
    td__signals signals;
    uv_timer_t timer;
    phase phase;
    uint64_t phase_end;                        /* uv_now */
    int living, asked_by, interrupts;
    int cause;                                 /* the rank that the verdict names; -1: none yet */
    bool said;
    int64_t oom_before;
} life;

/* ---- ending everything ------------------------------------------------------------------------------------------------------------ */

static void say_verdict(life *l)
{
    if (l->said || l->cause < 0)
        return;
    l->said = true;
    td__verdict_say(&l->job, l->cause, l->asked_by, l->oom_before);
}

static void stop_loop(life *l)
{
    td__signals_close(&l->signals);
    uv_close((uv_handle_t *)&l->timer, NULL);
    td__lines_stop();
}

static void on_timer(uv_timer_t *timer);

static void enter(life *l, phase next, uint64_t milliseconds)
{
    l->phase = next;
    l->phase_end = uv_now(&l->loop) + milliseconds;
    uv_timer_start(&l->timer, on_timer, next == GRACE ? milliseconds : 0, TICK_MS);
}

/* Nothing of ours lives any more. Output that is still in the pipes is read to its end; a pipe that a process outside the
 * job holds open is not waited for. */
static void drain(life *l)
{
    if (!td__lines_open() || uv_now(&l->loop) >= l->phase_end + LEFTOVER_LINES_MS)
        stop_loop(l);
}

static void on_timer(uv_timer_t *timer)
{
    life *l = timer->data;
    bool late = uv_now(&l->loop) >= l->phase_end;
    if (l->phase == GRACE) {
        l->cause = td__verdict_find(&l->job).rank;
        say_verdict(l);
        td__tree_signal(SIGTERM);
        enter(l, ENDING, (uint64_t)(l->job.options->kill_after_s * 1000));
        return;
    }
    if (td__tree_signal(l->phase == KILLING ? SIGKILL : 0) == 0 && l->living == 0) {
        if (l->phase_end > uv_now(&l->loop))
            l->phase_end = uv_now(&l->loop);   /* from here on it counts how long pipes have been left open */
        drain(l);
    } else if (l->phase == ENDING && late) {
        enter(l, KILLING, GIVE_UP_MS);
    } else if (l->phase == KILLING && late) {
        td__lines_say("a process does not end although it was killed (it waits inside the kernel); left alone");
        stop_loop(l);
    }
}

/* ---- ends of ranks ------------------------------------------------------------------------------------------------------------------ */

static void begin_grace(life *l)
{
    td__cause cause = td__verdict_find(&l->job);
    l->cause = cause.rank;
    if (l->living == 0 || cause.certain)
        say_verdict(l);
    if (l->phase != RUNNING || l->living == 0)
        return;
    enter(l, GRACE, l->asked_by ? ASKED_GRACE_MS : GRACE_MS);
}

static void all_ended(life *l)
{
    if (l->cause >= 0 && !l->said)
        l->cause = td__verdict_find(&l->job).rank;
    say_verdict(l);
    if (l->phase >= ENDING)
        return;
    td__tree_signal(SIGTERM);
    enter(l, ENDING, (uint64_t)(l->job.options->kill_after_s * 1000));
}

static void rank_ended(life *l, td__rank *rank, int status)
{
    rank->ended = true;
    rank->status = status;
    rank->ended_ns = td__wall_ns();
    rank->asked_to_end = l->phase >= ENDING;
    l->living--;
    if (status != 0 && !rank->asked_to_end)
        begin_grace(l);
}

/* One loop reaps the ranks and whatever they left to us. */
static void on_child_ended(uv_signal_t *handle, int number)
{
    (void)number;
    life *l = handle->data;
    int status;
    int before = l->living;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int r = 0; r < l->job.size; r++)
            if (l->job.rank[r].pid == pid && !l->job.rank[r].ended)
                rank_ended(l, &l->job.rank[r], status);
    if (before > 0 && l->living == 0)
        all_ended(l);
}

/* ---- signals that we get -------------------------------------------------------------------------------------------------------------- */

static void pass_down(life *l, int number)
{
    bool to_groups = number == SIGINT || number == SIGTERM || number == SIGHUP;   /* as a terminal would */
    for (int r = 0; r < l->job.size; r++)
        if (!l->job.rank[r].ended)             /* not reaped: the number is still its own */
            kill(to_groups ? -l->job.rank[r].pid : l->job.rank[r].pid, number);
}

static void on_signal(uv_signal_t *handle, int number)
{
    life *l = handle->data;
    if (number == SIGINT && ++l->interrupts > 1) {
        if (l->interrupts == 2)
            td__lines_say("interrupted again: killing all ranks");
        td__tree_signal(SIGKILL);
        for (int r = 0; r < l->job.size; r++)
            l->job.rank[r].asked_to_end |= !l->job.rank[r].ended;
        if (l->cause < 0 && l->living > 0)
            l->said = true;                    /* who asked for it need not be told who died */
        enter(l, KILLING, GIVE_UP_MS);
        return;
    }
    if (number == SIGINT || number == SIGTERM || number == SIGHUP)
        l->asked_by = number;
    pass_down(l, number);
}

/* ---- from beginning to end ------------------------------------------------------------------------------------------------------------ */

/* A rank that cannot be started ends the ones before it. */
static int start_ranks(life *l)
{
    bool piped = l->job.size > 1 || l->job.prefix;    /* a lone rank keeps our own output, a terminal perhaps */
    for (int r = 0; r < l->job.size; r++) {
        int error = td__job_start_rank(&l->job, r, piped);
        if (error == 0) {
            l->living++;
            continue;
        }
        td__lines_say("rank %d cannot be started: \"%s\": %s", r, l->job.options->path, strerror(-error));
        for (int k = r; k < l->job.size; k++)
            l->job.rank[k].ended = l->job.rank[k].asked_to_end = true;
        enter(l, KILLING, GIVE_UP_MS);
        return error == -EACCES || error == -ENOEXEC || error == -ENOENT || error == -E2BIG ? TD_EXIT_NOT_EXECUTABLE : 1;
    }
    return 0;
}

/* A rank that we ended although it was the cause (it hung after its error) has no exit code of its own. */
static int exit_status(const life *l)
{
    if (l->cause >= 0) {
        const td__rank *rank = &l->job.rank[l->cause];
        int status = rank->asked_to_end ? 1 : td__verdict_exit(rank);
        return status ? status : 1;
    }
    return l->interrupts > 1 ? TD_EXIT_SIGNAL + SIGINT : 0;
}

static void report_bindings(const td__job *job)
{
    char text[512];
    for (int r = 0; r < job->size; r++)
        td__lines_say("rank %d: %s", r, td__place_text(&job->division, r, text, sizeof text));
}

int td__job_run(const td__run_options *options)
{
    life l = { .job.options = options, .cause = -1 };
    td__store_server *server = NULL;
    l.job.prefix = (options->ranks > 1 || options->tag_output) && !options->no_prefix;
    int status = td__job_prepare(&l.job, &server), error = 0;
    l.timer.data = &l;
    if (status == 0 && ((error = uv_loop_init(&l.loop)) || (error = uv_timer_init(&l.loop, &l.timer)) ||
                         (error = td__signals_watch(&l.signals, &l.loop, &l, on_signal, on_child_ended, false)))) {
        td__lines_say("there is no event loop: %s", uv_strerror(error));
        status = 1;
    }
    if (status == 0) {
        td__lines_begin(&l.loop, l.job.prefix, l.job.columns > 0);
        l.oom_before = td__verdict_oom_kills();
        if (options->report_bindings)
            report_bindings(&l.job);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        status = start_ranks(&l);
        uv_run(&l.loop, UV_RUN_DEFAULT);
        uv_loop_close(&l.loop);
        td__verdict_boxes(&l.job, l.cause);
        if (status == 0)
            status = exit_status(&l);
    }
    td__store_stop(server);
    td__division_free(&l.job.division);
    free(l.job.rank);
    return status;
}
