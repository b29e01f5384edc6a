/* launcher/head.c: the life of a job across hosts, on one libuv loop; job.c's sister, whose ranks are far away.
 *
 *   MEETING   the engine starts agents; each says hello
 *   RUNNING   all have come and were told to go: ranks work, their output is written
 *   GRACE     a rank has failed: every agent looks at its rank's black box, the others get a second to say their own sentence
 *   ENDING    agents end their ranks and go
 *   LEAVING   all agents have gone, or are lost: the engine ends by itself, or is ended
 *
 * An agent that has told nothing for TD_LOST_S is lost, and its host with it when all agents there are silent: the job ends at once. What
 * the engine itself prints is held back for a moment, because its account of a failure must not come before ours.
 */
#include "head.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GRACE_MS = 1000, ASKED_GRACE_MS = 30000, GIVE_UP_MS = 10000, ENGINE_END_MS = 2000 };
static const double HELLO_S = 120, HELD_S = 1;

void td__head_command(td__head *h, td__command_kind kind, int number)
{
    td__order order = { kind, number };
    char key[32];
    snprintf(key, sizeof key, "down/%lld", (long long)++h->commands);
    if (td__store_set(h->store, key, &order, sizeof order) != 0) {
        td__lines_say("the agents cannot be told anything any more: %s", td_error_message());
        td_error_clear();
    }
}

/* ---- verdict and end ------------------------------------------------------------------------------------------------------------------ */

void td__head_enter(td__head *h, td__head_phase next, uint64_t milliseconds)
{
    h->phase = next;
    h->phase_end = uv_now(&h->loop) + milliseconds;
}

static void say_verdict(td__head *h)
{
    if (h->said || h->cause < 0)
        return;
    h->said = true;
    td__verdict_say(&h->job, h->cause, h->asked_by, -1);
}

static void end_ranks(td__head *h)
{
    if (h->phase >= TD_ENDING)
        return;
    td__head_command(h, TD_DO_END, 0);
    /* an agent has so long for SIGTERM, then its rank is killed; after that it has no excuse */
    td__head_enter(h, TD_ENDING, (uint64_t)(h->job.options->kill_after_s * 1000) + ENGINE_END_MS);
}

void td__head_give_up(td__head *h, int status, const char *format, ...)
{
    char sentence[1800];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    if (!h->said && h->phase < TD_ENDING)
        td__lines_say("%s", sentence);
    if (h->cause < 0 && !h->given_up) {
        h->given_up = true;
        h->result = status;
    }
    h->said = true;
    for (int r = 0; r < h->job.size; r++)
        h->job.rank[r].asked_to_end |= !h->job.rank[r].ended;
    end_ranks(h);
}

static bool somebody_is_silent(const td__head *h, double seconds)
{
    for (int r = 0; r < h->job.size; r++)
        if (td__head_silence(h, r) > seconds)
            return true;
    return false;
}

/* The engine has ended, with or without our asking: an agent that is silent since then is one that it has killed. */
static void count_killed_agents(td__head *h)
{
    for (int r = 0; r < h->job.size && h->engine_ended && h->phase == TD_ENDING; r++)
        if (td__head_silence(h, r) > 2 * TD_BEAT_S) {
            h->gone[r] = true;
            h->agents--;
        }
}

static void begin_grace(td__head *h)
{
    td__cause cause = td__verdict_find(&h->job);
    h->cause = cause.rank;
    if (h->living == 0 || cause.certain)
        say_verdict(h);
    if (h->phase != TD_RUNNING)
        return;
    td__head_command(h, TD_DO_LOOK, 0);
    td__head_enter(h, TD_GRACE, h->asked_by ? ASKED_GRACE_MS : GRACE_MS);
}

/* All is known that will be. Ranks that were ended, and not by us, and none that failed: the engine has done it. */
static void judge(td__head *h)
{
    h->cause = td__verdict_find(&h->job).rank;
    if (h->cause >= 0)
        say_verdict(h);
    else
        td__head_give_up(h, 1, "%s has ended the ranks, and none of them had failed%s", td__engine_name(h->job.options), h->held_size ? "; it said:" : "");
}

void td__head_rank_ended(td__head *h, td__rank *rank)
{
    rank->ended = true;
    h->living--;
    if (rank->status != 0 && (!rank->asked_to_end || h->phase == TD_RUNNING) && !h->given_up)
        begin_grace(h);
    if (h->living > 0)
        return;
    if ((h->cause >= 0 && !h->said) || h->phase == TD_GRACE)
        judge(h);
    end_ranks(h);
}

/* ---- the clock ------------------------------------------------------------------------------------------------------------------------------ */

static void stop_loop(td__head *h)
{
    td__signals_close(&h->signals);
    uv_close((uv_handle_t *)&h->timer, NULL);
    for (int i = 0; i < 2 && h->engine; i++)
        if (!uv_is_closing((uv_handle_t *)&h->engine_out[i]))
            uv_close((uv_handle_t *)&h->engine_out[i], NULL);
    td__inbox_close(h->inbox);
    td__lines_stop();
}

static void name_missing(const td__head *h, char *into, size_t size)
{
    int first = -1, missing = 0;
    for (int r = 0; r < h->job.size; r++)
        if (!h->came[r]) {
            first = first < 0 ? r : first;
            missing++;
        }
    snprintf(into, size, "rank %d%s", first, missing > 1 ? " and others" : "");
}

static void watch_engine(td__head *h)
{
    char missing[64];
    if (h->phase >= TD_ENDING || !h->engine_ended)
        return;
    int code = WIFSIGNALED(h->engine_status) ? TD_EXIT_SIGNAL + WTERMSIG(h->engine_status) : WEXITSTATUS(h->engine_status);
    name_missing(h, missing, sizeof missing);
    if (h->phase == TD_MEETING)
        td__head_give_up(h, code ? code : 1, "%s ended with code %d before all ranks had come: %s of %d did not%s", td__engine_name(h->job.options),
                code, missing, h->job.size, h->held_size ? "; it said:" : "");
    else if (h->agents > 0 && uv_now(&h->loop) > h->engine_ended_at + GRACE_MS)   /* its ranks' reports may be on their way */
        td__head_give_up(h, code ? code : 1, "%s ended with code %d while ranks were running%s", td__engine_name(h->job.options), code,
                h->held_size ? "; it said:" : "");
}

static void on_timer(uv_timer_t *timer)
{
    td__head *h = timer->data;
    bool late = uv_now(&h->loop) >= h->phase_end;
    char missing[64];
    if (h->held_size && (h->phase >= TD_LEAVING || (h->said && h->phase >= TD_ENDING) ||
                         (h->phase != TD_GRACE && td__now() - h->held_since > HELD_S)))
        td__head_show_held(h);
    watch_engine(h);
    count_killed_agents(h);
    td__head_find_lost(h);
    if (h->phase == TD_MEETING && h->hellos > 0 && td__now() - h->first_hello > HELLO_S) {
        name_missing(h, missing, sizeof missing);
        td__head_give_up(h, 1, "%s of %d has not come within %g s of the first", missing, h->job.size, HELLO_S);
    }
    if (h->phase == TD_GRACE && late) {
        td__cause cause = td__verdict_find(&h->job);
        /* all that is known may only follow from a host that is being lost: then wait for that */
        if (cause.certain || !somebody_is_silent(h, 2 * TD_BEAT_S + 0.3)) {
            judge(h);
            end_ranks(h);
        }
    } else if (h->phase == TD_ENDING && h->agents == 0) {
        td__head_enter(h, TD_LEAVING, ENGINE_END_MS);
    } else if (h->phase == TD_ENDING && late) {
        td__head_enter(h, TD_LEAVING, 0);
        td__tree_signal(SIGTERM);
    } else if (h->phase == TD_LEAVING && td__tree_signal(0) == 0) {
        stop_loop(h);
    } else if (h->phase == TD_LEAVING && late) {
        td__tree_signal(SIGTERM);
        td__head_enter(h, TD_KILLING, ENGINE_END_MS / 2);
    } else if (h->phase == TD_KILLING && late) {
        if (td__tree_signal(SIGKILL) == 0 || uv_now(&h->loop) > h->phase_end + GIVE_UP_MS)
            stop_loop(h);
    }
}

static void on_child_ended(uv_signal_t *handle, int number)
{
    (void)number;
    td__head *h = handle->data;
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == h->engine) {
            h->engine_ended = true;
            h->engine_status = status;
            h->engine_ended_at = uv_now(&h->loop);
        }
}

static void on_signal(uv_signal_t *handle, int number)
{
    td__head *h = handle->data;
    if (number == SIGINT && ++h->interrupts > 1) {
        if (h->interrupts == 2)
            td__lines_say("interrupted again: killing all ranks");
        td__head_command(h, TD_DO_KILL, 0);
        h->said |= h->cause < 0 && h->living > 0;
        for (int r = 0; r < h->job.size; r++)
            h->job.rank[r].asked_to_end |= !h->job.rank[r].ended;
        td__head_enter(h, TD_ENDING, ENGINE_END_MS);
        return;
    }
    if (number == SIGINT || number == SIGTERM || number == SIGHUP)
        h->asked_by = number;
    if (h->phase == TD_MEETING && h->asked_by)
        td__head_give_up(h, TD_EXIT_SIGNAL + number, "ended by signal %d before all ranks had come", number);
    else
        td__head_command(h, TD_DO_SIGNAL, number);
}

/* ---- from beginning to end ------------------------------------------------------------------------------------------------------------ */

int td__head_open_loop(td__head *h)
{
    int error = uv_loop_init(&h->loop);
    if (!error)
        error = uv_timer_init(&h->loop, &h->timer);
    if (!error)
        error = td__signals_watch(&h->signals, &h->loop, h, on_signal, on_child_ended, false);
    h->timer.data = h;
    if (!error)
        error = uv_timer_start(&h->timer, on_timer, TD_HEAD_TICK_MS, TD_HEAD_TICK_MS);
    signal(SIGTSTP, SIG_IGN);                  /* stopped, we would be lost to the agents */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    return error;
}

/* A rank that we ended although it was the cause (it hung after its error) has no exit code of its own. */
static int exit_status(const td__head *h)
{
    if (h->given_up)
        return h->result;
    if (h->cause >= 0) {
        const td__rank *rank = &h->job.rank[h->cause];
        int status = rank->asked_to_end ? 1 : td__verdict_exit(rank);
        return status ? status : 1;
    }
    return h->interrupts > 1 ? TD_EXIT_SIGNAL + SIGINT : 0;
}

int td__head_run(const td__run_options *o)
{
    if (o->engine == TD_ENGINE_HAND && o->node_rank > 0)
        return td__hand_node(o);
    static td__head h;                         /* its buffer is large; there is one job */
    td__hand_place place = { 0 };
    h = (td__head){ .job.options = o, .cause = -1, .own_agents = o->engine == TD_ENGINE_HAND };
    int status = td__head_prepare(&h, &place);
    if (status == 0) {
        status = td__head_begin(&h, &place);
        if (status && h.inbox) {
            h.given_up = h.said = true;
            td__head_enter(&h, TD_LEAVING, 0);
        }
        if (h.inbox) {
            uv_run(&h.loop, UV_RUN_DEFAULT);
            uv_loop_close(&h.loop);
            td__head_show_held(&h);
            td__verdict_boxes(&h.job, h.cause);
        }
        if (status == 0)
            status = exit_status(&h);
        if (h.own_agents && h.store)
            td__hand_farewell(o, h.store, status, h.some_lost ? 0.3 : 1);
    }
    td__store_close(h.store);
    td__store_stop(h.server);
    if (h.inbox)
        td__inbox_free(h.inbox);
    td__head_free(&h);
    return status;
}
