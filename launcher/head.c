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
#include "across.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GRACE_MS = 1000, ASKED_GRACE_MS = 30000, TICK_MS = 50, GIVE_UP_MS = 10000, ENGINE_END_MS = 2000, HELD_MAX = 65536 };
static const double HELLO_S = 120, HELD_S = 1;
static const int passed_signals[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 };

typedef enum { MEETING, RUNNING, GRACE, ENDING, LEAVING, KILLING } phase;
typedef struct {
    td__job job;
    uv_loop_t loop;
    uv_signal_t signal[TD_COUNT(passed_signals)], child_ended;
    uv_timer_t timer;
    td__inbox *inbox;
    td__store_server *server;
    td__store *store;                          /* our own connection to it: commands are keys like any other */
    td__hello *hello;
    td__lines **out, **err;                    /* one per rank; NULL: none, or its reader has gone */
    bool *came, *gone;
    int32_t *node_rank;
    phase phase;
    uint64_t phase_end, engine_ended_at;       /* uv_now */
    double first_hello;
    int64_t commands;
    int hellos, hosts, living, agents, asked_by, interrupts, cause, result;
    bool said, given_up, engine_ended, own_agents;
    pid_t engine;                              /* 0: agents are our own children (hand-started) */
    int engine_status;
    uv_pipe_t engine_out[2];
    char held[HELD_MAX];
    size_t held_size;
    double held_since;
} head;

static int64_t real_time_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void command(head *h, td__command_kind kind, int number)
{
    td__order order = { kind, number };
    char key[32];
    snprintf(key, sizeof key, "down/%lld", (long long)++h->commands);
    if (td__store_set(h->store, key, &order, sizeof order) != 0) {
        td__lines_say("the agents cannot be told anything any more: %s", td_error_message());
        td_error_clear();
    }
}

/* ---- what the engine prints ---------------------------------------------------------------------------------------------------------- */

static void show_held(head *h)
{
    for (size_t done = 0; done < h->held_size;) {
        ssize_t n = write(STDERR_FILENO, h->held + done, h->held_size - done);
        if (n < 0 && errno != EINTR)
            break;
        done += n > 0 ? (size_t)n : 0;
    }
    h->held_size = 0;
}

static void on_engine_room(uv_handle_t *handle, size_t wanted, uv_buf_t *into)
{
    static char chunk[4096];
    (void)handle, (void)wanted;
    *into = uv_buf_init(chunk, sizeof chunk);
}

static void on_engine_bytes(uv_stream_t *from, ssize_t n, const uv_buf_t *bytes)
{
    head *h = from->data;
    if (n < 0) {
        uv_close((uv_handle_t *)from, NULL);
        return;
    }
    if (h->held_size + (size_t)n > sizeof h->held)
        show_held(h);
    if (h->held_size == 0)
        h->held_since = td__now();
    memcpy(h->held + h->held_size, bytes->base, (size_t)n);
    h->held_size += (size_t)n;
}

/* ---- verdict and end ------------------------------------------------------------------------------------------------------------------ */

static void enter(head *h, phase next, uint64_t milliseconds)
{
    h->phase = next;
    h->phase_end = uv_now(&h->loop) + milliseconds;
}

static void say_verdict(head *h)
{
    if (h->said || h->cause < 0)
        return;
    h->said = true;
    td__verdict_say(&h->job, h->cause, h->asked_by, -1);
}

static void end_ranks(head *h)
{
    if (h->phase >= ENDING)
        return;
    command(h, TD_DO_END, 0);
    /* an agent has so long for SIGTERM, then its rank is killed; after that it has no excuse */
    enter(h, ENDING, (uint64_t)(h->job.options->kill_after_s * 1000) + ENGINE_END_MS);
}

/* No rank is the cause: something around them is. Says so as the first line. */
TD_PRINTF(3, 4) static void give_up(head *h, int status, const char *format, ...)
{
    char sentence[1800];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    if (!h->said && h->phase < ENDING)
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

static double silence(const head *h, int rank)
{
    return h->gone[rank] || !h->came[rank] ? 0 : td__inbox_silence(h->inbox, rank);
}

static bool somebody_is_silent(const head *h, double seconds)
{
    for (int r = 0; r < h->job.size; r++)
        if (silence(h, r) > seconds)
            return true;
    return false;
}

/* The ranks of a host as "4, 5"; whether all its agents are silent. */
static bool silent_host(const head *h, int host, char *ranks, size_t size)
{
    bool all = true;
    size_t n = 0;
    ranks[0] = '\0';
    for (int r = 0; r < h->job.size; r++) {
        if (h->node_rank[r] != host || h->gone[r])
            continue;
        all &= silence(h, r) > TD_LOST_S - 2 * TD_BEAT_S;
        if (n + 8 < size)
            n += (size_t)snprintf(ranks + n, size - n, "%s%d", n ? ", " : "", r);
    }
    return all;
}

static void look_for_the_lost(head *h)
{
    int first = -1;
    for (int r = 0; r < h->job.size && first < 0; r++)
        if (silence(h, r) > TD_LOST_S)
            first = r;
    if (first < 0)
        return;
    char ranks[200];
    if (h->hosts == 0)
        h->hosts = td__map_hosts(h->hello, h->job.size, h->node_rank);
    int host = h->node_rank[first];
    if (silent_host(h, host, ranks, sizeof ranks))
        give_up(h, 1, "host %s (%s) is lost: no word from it for %g s; its rank%s %s %s", h->hello[first].host, h->hello[first].address,
                TD_LOST_S, strchr(ranks, ',') ? "s" : "", ranks, strchr(ranks, ',') ? "end there by themselves" : "ends there by itself");
    else
        give_up(h, 1, "the agent of rank %d on host %s (%s) is lost: no word from it for %g s, while others there are well", first,
                h->hello[first].host, h->hello[first].address, TD_LOST_S);
    for (int r = 0; r < h->job.size; r++) {
        if (h->gone[r] || silence(h, r) <= TD_LOST_S - 2 * TD_BEAT_S)
            continue;
        h->gone[r] = true;
        h->agents--;
        if (!h->job.rank[r].ended) {
            h->job.rank[r].ended = true;
            h->living--;
        }
    }
}

/* The engine has ended, with or without our asking: an agent that is silent since then is one that it has killed. */
static void count_killed_agents(head *h)
{
    for (int r = 0; r < h->job.size && h->engine_ended && h->phase == ENDING; r++)
        if (silence(h, r) > 2 * TD_BEAT_S) {
            h->gone[r] = true;
            h->agents--;
        }
}

static void begin_grace(head *h)
{
    td__cause cause = td__verdict_find(&h->job);
    h->cause = cause.rank;
    if (h->living == 0 || cause.certain)
        say_verdict(h);
    if (h->phase != RUNNING)
        return;
    command(h, TD_DO_LOOK, 0);
    enter(h, GRACE, h->asked_by ? ASKED_GRACE_MS : GRACE_MS);
}

/* All is known that will be. Ranks that were ended, and not by us, and none that failed: the engine has done it. */
static void judge(head *h)
{
    h->cause = td__verdict_find(&h->job).rank;
    if (h->cause >= 0)
        say_verdict(h);
    else
        give_up(h, 1, "%s has ended the ranks, and none of them had failed%s", td__engine_name(h->job.options), h->held_size ? "; it said:" : "");
}

static void rank_ended(head *h, td__rank *rank)
{
    rank->ended = true;
    h->living--;
    if (rank->status != 0 && (!rank->asked_to_end || h->phase == RUNNING) && !h->given_up)
        begin_grace(h);
    if (h->living > 0)
        return;
    if ((h->cause >= 0 && !h->said) || h->phase == GRACE)
        judge(h);
    end_ranks(h);
}

/* ---- what agents tell -------------------------------------------------------------------------------------------------------------------- */

static void all_have_come(head *h)
{
    td__go go;
    h->hosts = td__map_hosts(h->hello, h->job.size, h->node_rank);
    if (!td__env(TD_ENV_QUIET) || strcmp(td__env(TD_ENV_QUIET), "1") != 0)
        td__map_say(h->hello, h->node_rank, h->job.size, h->hosts);
    go.hosts = h->hosts;
    go.master_port = h->hello[0].port;
    snprintf(go.master_addr, sizeof go.master_addr, "%s", h->hello[0].address);
    memcpy(go.node_rank, h->node_rank, (size_t)h->job.size * sizeof *h->node_rank);
    h->living = h->job.size;
    enter(h, RUNNING, 0);
    size_t size = offsetof(td__go, node_rank) + (size_t)h->job.size * sizeof *h->node_rank;
    if (td__store_set(h->store, "go", &go, size) != 0) {
        give_up(h, 1, "the agents cannot be told to go: %s", td_error_message());
        td_error_clear();
    }
}

static void take_hello(head *h, int r, const td__told *m)
{
    if (m->size != sizeof *h->hello || h->came[r] || h->phase != MEETING)
        return;
    memcpy(&h->hello[r], m->bytes, sizeof *h->hello);
    td__hello *hello = &h->hello[r];
    hello->host[sizeof hello->host - 1] = hello->address[sizeof hello->address - 1] = hello->binding[sizeof hello->binding - 1] = '\0';
    h->came[r] = true;
    h->agents++;
    if (h->hellos++ == 0)
        h->first_hello = td__now();
    snprintf(h->job.rank[r].far->host, sizeof h->job.rank[r].far->host, "%s", hello->host);
    if (hello->size != h->job.size)
        give_up(h, 1, "rank %d on %s counts %d ranks: expected %d, as %s was told", r, hello->host, hello->size, h->job.size,
                td__engine_name(h->job.options));
    else if (h->hellos == h->job.size)
        all_have_come(h);
}

/* The times in it become ours: what was `age` ago when it was told is `age` before now. */
static void take_report(head *h, int r, const td__told *m)
{
    td__report report;
    td__rank *rank = &h->job.rank[r];
    if (m->size != sizeof report || rank->ended)
        return;
    memcpy(&report, m->bytes, sizeof report);
    td__far *far = rank->far;
    int64_t now = real_time_ns();
    rank->pid = report.pid;
    far->has_box = report.has_box;
    far->kept = report.kept;
    far->box = report.box;
    far->box.error[sizeof far->box.error - 1] = far->box.doing[sizeof far->box.doing - 1] = far->box.last[sizeof far->box.last - 1] = '\0';
    far->box.error_ns = report.has_box && report.box.error_ns ? now - report.error_age_ns : 0;
    snprintf(far->place, sizeof far->place, "%.*s", (int)sizeof report.place - 1, report.place);
    snprintf(far->box_path, sizeof far->box_path, "%.*s", (int)sizeof report.box_path - 1, report.box_path);
    if (!report.ended)
        return;
    rank->status = report.status;
    rank->asked_to_end = report.asked_to_end;
    rank->ended_ns = now - report.ended_age_ns;
    rank_ended(h, rank);
}

static void take_output(head *h, int r, const td__told *m)
{
    td__lines **lines = m->kind == TD_TELL_OUT ? &h->out[r] : &h->err[r];
    if (*lines && !td__lines_feed(*lines, m->bytes, m->size)) {
        td__lines_close_fed(*lines);
        *lines = NULL;
        command(h, TD_DO_SIGNAL, SIGPIPE);     /* who writes for nobody learns it, as in a pipe */
    }
}

static void take_refusal(head *h, int r, const td__told *m)
{
    td__refusal refusal;
    if (m->size != sizeof refusal)
        return;
    memcpy(&refusal, m->bytes, sizeof refusal);
    refusal.sentence[sizeof refusal.sentence - 1] = '\0';
    give_up(h, refusal.status, "%s", refusal.sentence);
    if (!h->job.rank[r].ended) {
        h->job.rank[r].ended = h->job.rank[r].asked_to_end = true;
        h->living--;
    }
}

static void on_told(void *user, const td__told *m)
{
    head *h = user;
    int r = m->rank;
    int32_t pid;
    switch (m->kind) {
    case TD_TELL_HELLO:
        take_hello(h, r, m);
        break;
    case TD_TELL_STARTED:
        memcpy(&pid, m->bytes, sizeof pid);
        h->job.rank[r].pid = pid;
        break;
    case TD_TELL_OUT:
    case TD_TELL_ERR:
        take_output(h, r, m);
        break;
    case TD_TELL_LOOK:
    case TD_TELL_ENDED:
        take_report(h, r, m);
        break;
    case TD_TELL_REFUSED:
        take_refusal(h, r, m);
        break;
    case TD_TELL_SAYS:
        give_up(h, 1, "%.*s", (int)m->size, m->bytes);
        break;
    case TD_TELL_GONE:
        if (!h->gone[r]) {
            h->gone[r] = true;
            h->agents--;
        }
        break;
    case TD_TELL_BEAT:
        break;
    }
}

/* ---- the clock ------------------------------------------------------------------------------------------------------------------------------ */

static void stop_loop(head *h)
{
    for (size_t i = 0; i < TD_COUNT(passed_signals); i++)
        uv_close((uv_handle_t *)&h->signal[i], NULL);
    uv_close((uv_handle_t *)&h->child_ended, NULL);
    uv_close((uv_handle_t *)&h->timer, NULL);
    for (int i = 0; i < 2 && h->engine; i++)
        if (!uv_is_closing((uv_handle_t *)&h->engine_out[i]))
            uv_close((uv_handle_t *)&h->engine_out[i], NULL);
    td__inbox_close(h->inbox);
    td__lines_stop();
}

static size_t signal_below(int number)
{
    pid_t *list;
    size_t n = td__tree_below(&list);
    for (size_t i = 0; list && number && i < n; i++)
        kill(list[i], number);
    free(list);
    return n;
}

static void name_missing(const head *h, char *into, size_t size)
{
    int first = -1, missing = 0;
    for (int r = 0; r < h->job.size; r++)
        if (!h->came[r]) {
            first = first < 0 ? r : first;
            missing++;
        }
    snprintf(into, size, "rank %d%s", first, missing > 1 ? " and others" : "");
}

static void watch_engine(head *h)
{
    char missing[64];
    if (h->phase >= ENDING || !h->engine_ended)
        return;
    int code = WIFSIGNALED(h->engine_status) ? TD_EXIT_SIGNAL + WTERMSIG(h->engine_status) : WEXITSTATUS(h->engine_status);
    name_missing(h, missing, sizeof missing);
    if (h->phase == MEETING)
        give_up(h, code ? code : 1, "%s ended with code %d before all ranks had come: %s of %d did not%s", td__engine_name(h->job.options),
                code, missing, h->job.size, h->held_size ? "; it said:" : "");
    else if (h->agents > 0 && uv_now(&h->loop) > h->engine_ended_at + GRACE_MS)   /* its ranks' reports may be on their way */
        give_up(h, code ? code : 1, "%s ended with code %d while ranks were running%s", td__engine_name(h->job.options), code,
                h->held_size ? "; it said:" : "");
}

static void on_timer(uv_timer_t *timer)
{
    head *h = timer->data;
    bool late = uv_now(&h->loop) >= h->phase_end;
    char missing[64];
    if (h->held_size && (h->phase >= LEAVING || (h->said && h->phase >= ENDING) ||
                         (h->phase != GRACE && td__now() - h->held_since > HELD_S)))
        show_held(h);
    watch_engine(h);
    count_killed_agents(h);
    look_for_the_lost(h);
    if (h->phase == MEETING && h->hellos > 0 && td__now() - h->first_hello > HELLO_S) {
        name_missing(h, missing, sizeof missing);
        give_up(h, 1, "%s of %d has not come within %g s of the first", missing, h->job.size, HELLO_S);
    }
    if (h->phase == GRACE && late) {
        td__cause cause = td__verdict_find(&h->job);
        /* all that is known may only follow from a host that is being lost: then wait for that */
        if (cause.certain || !somebody_is_silent(h, 2 * TD_BEAT_S + 0.3)) {
            judge(h);
            end_ranks(h);
        }
    } else if (h->phase == ENDING && h->agents == 0) {
        enter(h, LEAVING, ENGINE_END_MS);
    } else if (h->phase == ENDING && late) {
        enter(h, LEAVING, 0);
        signal_below(SIGTERM);
    } else if (h->phase == LEAVING && signal_below(0) == 0) {
        stop_loop(h);
    } else if (h->phase == LEAVING && late) {
        signal_below(SIGTERM);
        enter(h, KILLING, ENGINE_END_MS / 2);
    } else if (h->phase == KILLING && late) {
        if (signal_below(SIGKILL) == 0 || uv_now(&h->loop) > h->phase_end + GIVE_UP_MS)
            stop_loop(h);
    }
}

static void on_child_ended(uv_signal_t *handle, int number)
{
    (void)number;
    head *h = handle->data;
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
    head *h = handle->data;
    if (number == SIGINT && ++h->interrupts > 1) {
        if (h->interrupts == 2)
            td__lines_say("interrupted again: killing all ranks");
        command(h, TD_DO_KILL, 0);
        h->said |= h->cause < 0 && h->living > 0;
        for (int r = 0; r < h->job.size; r++)
            h->job.rank[r].asked_to_end |= !h->job.rank[r].ended;
        enter(h, ENDING, ENGINE_END_MS);
        return;
    }
    if (number == SIGINT || number == SIGTERM || number == SIGHUP)
        h->asked_by = number;
    if (h->phase == MEETING && h->asked_by)
        give_up(h, TD_EXIT_SIGNAL + number, "ended by signal %d before all ranks had come", number);
    else
        command(h, TD_DO_SIGNAL, number);
}

/* ---- the beginning ---------------------------------------------------------------------------------------------------------------------------- */

static bool was_ignored(int number)
{
    struct sigaction now;
    return sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}

static int open_loop(head *h)
{
    int error = uv_loop_init(&h->loop);
    if (!error)
        error = uv_timer_init(&h->loop, &h->timer);
    if (!error)
        error = uv_signal_init(&h->loop, &h->child_ended);
    if (!error)
        error = uv_signal_start(&h->child_ended, on_child_ended, SIGCHLD);
    for (size_t i = 0; i < TD_COUNT(passed_signals) && !error; i++) {
        error = uv_signal_init(&h->loop, &h->signal[i]);
        h->signal[i].data = h;
        if (!error && !was_ignored(passed_signals[i]))
            error = uv_signal_start(&h->signal[i], on_signal, passed_signals[i]);
    }
    h->child_ended.data = h->timer.data = h;
    if (!error)
        error = uv_timer_start(&h->timer, on_timer, TICK_MS, TICK_MS);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);                  /* stopped, we would be lost to the agents */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    return error;
}

static int open_memory(head *h)
{
    size_t n = (size_t)h->job.size;
    td__far *far = calloc(n, sizeof *far);
    h->job.rank = calloc(n, sizeof *h->job.rank);
    h->hello = calloc(n, sizeof *h->hello);
    h->out = calloc(n, sizeof *h->out);
    h->err = calloc(n, sizeof *h->err);
    h->came = calloc(n, sizeof *h->came);
    h->gone = calloc(n, sizeof *h->gone);
    h->node_rank = calloc(n, sizeof *h->node_rank);
    if (!far || !h->job.rank || !h->hello || !h->out || !h->err || !h->came || !h->gone || !h->node_rank)
        return 1;
    for (size_t r = 0; r < n; r++) {
        h->job.rank[r] = (td__rank){ .rank = (int)r, .far = &far[r] };
        h->node_rank[r] = -1;
    }
    return 0;
}

static int set_orders(head *h)
{
    const td__run_options *o = h->job.options;
    td__orders *orders = calloc(1, sizeof *orders);
    if (!orders)
        return 1;
    *orders = (td__orders){ .magic = TD_ORDERS_MAGIC, .bytes = sizeof *orders, .size = h->job.size, .threads = o->threads,
                            .columns = h->job.columns, .no_binding = o->no_binding, .own_output = h->own_agents,
                            .kill_after_s = o->kill_after_s };
    snprintf(orders->job, sizeof orders->job, "%s", h->job.name);
    snprintf(orders->log_dir, sizeof orders->log_dir, "%s", o->streams.log_dir ? o->streams.log_dir : "");
    snprintf(orders->tee, sizeof orders->tee, "%s", o->streams.tee ? o->streams.tee : "");
    snprintf(orders->redirects, sizeof orders->redirects, "%s", o->streams.redirects ? o->streams.redirects : "");
    snprintf(orders->filter, sizeof orders->filter, "%s", o->streams.filter ? o->streams.filter : "");
    int code = td__store_set(h->store, "orders", orders, sizeof *orders);
    free(orders);
    return code;
}

static int start_engine(head *h)
{
    int out[2][2] = { { -1, -1 }, { -1, -1 } };
    td__words words = { 0 };
    char *path = NULL;
    int status = td__engine_words(h->job.options, &words);
    if (status == 0)
        status = td__program_find(words.word[0], &path);
    if (status == 0 && (pipe2(out[0], O_CLOEXEC) != 0 || pipe2(out[1], O_CLOEXEC) != 0))
        status = 1;
    td__start start = { .path = path, .argv = words.word, .variables = environ, .in = STDIN_FILENO, .out = out[0][1], .err = out[1][1],
                        .death_signal = SIGTERM };
    int error = status ? 0 : td__spawn(&start, &h->engine);
    if (error) {
        td__lines_say("%s cannot be started: %s", path, strerror(-error));
        status = 1;
    }
    for (int i = 0; i < 2; i++) {
        if (out[i][1] >= 0)
            close(out[i][1]);
        if (status) {
            if (out[i][0] >= 0)
                close(out[i][0]);
            continue;
        }
        fcntl(out[i][0], F_SETFL, O_NONBLOCK);
        uv_pipe_init(&h->loop, &h->engine_out[i], 0);
        h->engine_out[i].data = h;
        uv_pipe_open(&h->engine_out[i], out[i][0]);
        uv_read_start((uv_stream_t *)&h->engine_out[i], on_engine_room, on_engine_bytes);
    }
    td__words_free(&words);
    free(path);
    return status;
}

/* Secret, store, who is there; afterwards only agents are missing. */
static int prepare(head *h, td__hand_place *place)
{
    const td__run_options *o = h->job.options;
    unsigned char random[8], secret[32];
    char address[256], where[300], hex[17];
    int status = 0;
    if (getrandom(random, sizeof random, 0) != sizeof random || getrandom(secret, sizeof secret, 0) != sizeof secret) {
        td__lines_say("no random numbers for the job's secret: %s", strerror(errno));
        return 1;
    }
    td__to_hex(random, sizeof random, hex);
    snprintf(h->job.name, sizeof h->job.name, "%d-%s", (int)getpid(), hex);
    if (h->own_agents) {
        h->server = td__hand_serve(o, secret);
    } else if ((status = td__address_for(o, address, sizeof address)) == 0) {
        snprintf(where, sizeof where, strchr(address, ':') ? "tcp:[%s]:%d" : "tcp:%s:%d", address, o->master_port);
        h->server = td__store_serve(where, secret);
        if (!h->server)
            td__lines_say("the job's meeting point cannot be opened: %s", td_error_message());
    }
    if (!h->server)
        return status ? status : 1;
    td__to_hex(secret, sizeof secret, h->job.secret);
    h->job.store = td__store_address(h->server);
    h->store = td__store_connect(h->job.store, secret, 10);
    if (!h->store) {
        td__lines_say("the job's meeting point cannot be reached: %s", td_error_message());
        return 1;
    }
    setenv("TANDEM_STORE", h->job.store, 1);   /* what the engine forwards */
    setenv("TANDEM_SECRET", h->job.secret, 1);
    h->job.size = o->ranks;
    if (h->own_agents && (status = td__hand_meet(o, h->store, h->job.name, place)) == 0)
        h->job.size = place->size;
    return status;
}

/* 0: agents are on their way. */
static int begin(head *h, const td__hand_place *place)
{
    const td__run_options *o = h->job.options;
    int error = 0;
    h->job.prefix = (h->job.size > 1 || o->tag_output) && !o->no_prefix;
    h->job.columns = td__columns_for_ranks(h->job.prefix, h->job.size);
    if (open_memory(h) != 0) {
        td__lines_say("memory cannot be had");
        return 1;
    }
    if ((error = open_loop(h)) || !(h->inbox = td__inbox_new(&h->loop, h->job.size, on_told, h))) {
        td__lines_say("there is no event loop: %s", error ? uv_strerror(error) : "no memory");
        return 1;
    }
    td__lines_begin(&h->loop, h->job.prefix, h->job.columns > 0);
    for (int r = 0; r < h->job.size && !h->own_agents; r++) {
        h->out[r] = td__lines_open_fed(r, STDOUT_FILENO);
        h->err[r] = td__lines_open_fed(r, STDERR_FILENO);
    }
    td__store_listen(h->server, td__inbox_hear, h->inbox);
    if (set_orders(h) != 0) {
        td__lines_say("the agents' orders cannot be written: %s", td_error_message());
        return 1;
    }
    if (!h->own_agents)
        return start_engine(h);
    error = td__hand_start(o, place, NULL);
    if (error)
        td__lines_say("the agents cannot be started: %s", strerror(-error));
    return error ? 1 : 0;
}

/* A rank that we ended although it was the cause (it hung after its error) has no exit code of its own. */
static int exit_status(const head *h)
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

static void free_memory(head *h)
{
    if (h->job.rank)
        free(h->job.rank[0].far);
    free(h->job.rank);
    free(h->hello);
    free(h->out);
    free(h->err);
    free(h->came);
    free(h->gone);
    free(h->node_rank);
}

int td__head_run(const td__run_options *o)
{
    if (o->engine == TD_ENGINE_HAND && o->node_rank > 0)
        return td__hand_node(o);
    static head h;                             /* its buffer is large; there is one job */
    td__hand_place place = { 0 };
    h = (head){ .job.options = o, .cause = -1, .own_agents = o->engine == TD_ENGINE_HAND };
    int status = prepare(&h, &place);
    if (status == 0) {
        status = begin(&h, &place);
        if (status && h.inbox) {
            h.given_up = h.said = true;
            enter(&h, LEAVING, 0);
        }
        if (h.inbox) {
            uv_run(&h.loop, UV_RUN_DEFAULT);
            uv_loop_close(&h.loop);
            show_held(&h);
            td__verdict_boxes(&h.job, h.cause);
        }
        if (status == 0)
            status = exit_status(&h);
        if (h.own_agents && h.store)
            td__hand_farewell(o, h.store, status);
    }
    td__store_close(h.store);
    td__store_stop(h.server);
    if (h.inbox)
        td__inbox_free(h.inbox);
    free_memory(&h);
    return status;
}
