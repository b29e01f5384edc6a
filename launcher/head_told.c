/* launcher/head_told.c: what agents tell the head, and what their silence means.
 *
 * Everything that comes is copied out of the message before it is looked at, and every text in it is ended: the sender has proved that it
 * belongs to the job, not that it is this build.
 */
#include "head.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

double td__head_silence(const td__head *h, int rank)
{
    return h->gone[rank] || !h->came[rank] ? 0 : td__inbox_silence(h->inbox, rank);
}

/* The ranks of a host as "4, 5"; whether all its agents are silent. One that has just said farewell is not: the engine may be ending them after the death
 * of the one that is missed. */
static bool silent_host(const td__head *h, int host, char *ranks, size_t size)
{
    bool all = true;
    size_t n = 0;
    ranks[0] = '\0';
    for (int r = 0; r < h->job.size; r++) {
        if (h->node_rank[r] != host)
            continue;
        all &= h->came[r] && td__inbox_silence(h->inbox, r) > TD_LOST_S - 2 * TD_BEAT_S;
        if (h->gone[r])
            continue;
        if (n + 8 < size)
            n += (size_t)snprintf(ranks + n, size - n, "%s%d", n ? ", " : "", r);
    }
    return all;
}

void td__head_find_lost(td__head *h)
{
    int first = -1;
    for (int r = 0; r < h->job.size && first < 0; r++)
        if (td__head_silence(h, r) > TD_LOST_S)
            first = r;
    if (first < 0)
        return;
    char ranks[200];
    h->some_lost = true;
    if (h->hosts == 0)
        h->hosts = td__map_hosts(h->hello, h->job.size, h->node_rank);
    int host = h->node_rank[first];
    if (silent_host(h, host, ranks, sizeof ranks))
        td__head_give_up(h, 1, "host %s (%s) is lost: no word from it for %g s; its rank%s %s %s", h->hello[first].host, h->hello[first].address,
                TD_LOST_S, strchr(ranks, ',') ? "s" : "", ranks, strchr(ranks, ',') ? "end there by themselves" : "ends there by itself");
    else
        td__head_give_up(h, 1, "the agent of rank %d on host %s (%s) is lost: no word from it for %g s, while others there were heard", first,
                h->hello[first].host, h->hello[first].address, TD_LOST_S);
    for (int r = 0; r < h->job.size; r++) {
        if (h->gone[r] || td__head_silence(h, r) <= TD_LOST_S - 2 * TD_BEAT_S)
            continue;
        h->gone[r] = true;
        h->agents--;
        if (!h->job.rank[r].ended) {
            h->job.rank[r].ended = true;
            h->living--;
        }
    }
}

/* ---- what agents tell -------------------------------------------------------------------------------------------------------------------- */

static void all_have_come(td__head *h)
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
    td__head_enter(h, TD_RUNNING, 0);
    size_t size = offsetof(td__go, node_rank) + (size_t)h->job.size * sizeof *h->node_rank;
    if (td__store_set(h->store, "go", &go, size) != 0) {
        td__head_give_up(h, 1, "the agents cannot be told to go: %s", td_error_message());
        td_error_clear();
    }
}

static void take_hello(td__head *h, int r, const td__told *m)
{
    if (m->size != sizeof *h->hello || h->came[r] || h->phase != TD_MEETING)
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
        td__head_give_up(h, 1, "rank %d on %s counts %d ranks: expected %d, as %s was told", r, hello->host, hello->size, h->job.size,
                td__engine_name(h->job.options));
    else if (h->hellos == h->job.size)
        all_have_come(h);
}

/* The times in it become ours: what was `age` ago when it was told is `age` before now. */
static void take_report(td__head *h, int r, const td__told *m)
{
    td__report report;
    td__rank *rank = &h->job.rank[r];
    if (m->size != sizeof report || rank->ended)
        return;
    memcpy(&report, m->bytes, sizeof report);
    td__far *far = rank->far;
    int64_t now = td__wall_ns();
    rank->pid = report.pid;
    far->has_box = report.has_box;
    far->kept = report.kept;
    far->finished = report.finished;
    far->box = report.box;
    far->box.error[sizeof far->box.error - 1] = far->box.doing[sizeof far->box.doing - 1] = far->box.last[sizeof far->box.last - 1] = '\0';
    far->box.error_ns = report.has_box && report.box.error_ns ? now - report.error_age_ns : 0;
    snprintf(far->place, sizeof far->place, "%.*s", (int)sizeof report.place - 1, report.place);
    snprintf(far->box_path, sizeof far->box_path, "%.*s", (int)sizeof report.box_path - 1, report.box_path);
    if (!report.ended) {
        char sentence[1500];
        if (h->phase == TD_RUNNING && td__still_left(&h->job, r, now, sentence, sizeof sentence))
            td__head_give_up(h, 1, "%s", sentence);
        return;
    }
    rank->status = report.status;
    rank->asked_to_end = report.asked_to_end;
    rank->ended_ns = now - report.ended_age_ns;
    td__head_rank_ended(h, rank);
}

static void take_output(td__head *h, int r, const td__told *m)
{
    td__lines **lines = m->kind == TD_TELL_OUT ? &h->out[r] : &h->err[r];
    if (*lines && !td__lines_feed(*lines, m->bytes, m->size)) {
        td__lines_close_fed(*lines);
        *lines = NULL;
        td__head_command(h, TD_DO_SIGNAL, SIGPIPE);     /* who writes for nobody learns it, as in a pipe */
    }
}

static void take_refusal(td__head *h, int r, const td__told *m)
{
    td__refusal refusal;
    if (m->size != sizeof refusal)
        return;
    memcpy(&refusal, m->bytes, sizeof refusal);
    refusal.sentence[sizeof refusal.sentence - 1] = '\0';
    td__head_give_up(h, refusal.status, "%s", refusal.sentence);
    if (!h->job.rank[r].ended) {
        h->job.rank[r].ended = h->job.rank[r].asked_to_end = true;
        h->living--;
    }
}

void td__head_told(void *user, const td__told *m)
{
    td__head *h = user;
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
        td__head_give_up(h, 1, "%.*s", (int)m->size, m->bytes);
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

