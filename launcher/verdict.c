/* launcher/verdict.c: which rank is the cause, how and why.
 *
 * One failure makes others: the ranks that waited for the guilty one report that it died, often before it has finished
 * dying itself. So the cause is not the first process to end but the earliest failure of its own, by the clock in the
 * black box where the rank wrote one, else by the moment at which we saw its end; a report about another rank (PEER,
 * ABORTED) counts only when nobody failed by itself (a rank that left early, with exit code 0).
 */
#include "launcher.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

typedef struct {
    td__box box;
    bool has_box;
    bool failed;                               /* ended badly by itself, or has written down an error it dies of */
    bool follows;                              /* only reports another rank's end */
    int64_t when;
} finding;

static void box_path(const td__job *job, int rank, char *into, size_t size)
{
    snprintf(into, size, "%s/%s.%d.box", job->folder, job->name, rank);
}

static bool read_box(const td__job *job, int rank, td__box *into)
{
    char path[512];
    const td__far *far = job->rank[rank].far;
    if (far) {
        *into = far->box;
        return far->has_box;
    }
    if (!job->folder[0])
        return false;
    box_path(job, rank, path, sizeof path);
    return td__box_read(path, into) == 0;
}

static finding examine(const td__job *job, int number)
{
    const td__rank *rank = &job->rank[number];
    finding f = { 0 };
    if (rank->pid == 0)                        /* was never started */
        return f;
    f.has_box = read_box(job, number, &f.box);
    int64_t error_ns = f.has_box ? f.box.error_ns : 0;
    bool ended_badly = rank->ended && rank->status != 0 && !rank->asked_to_end;
    bool dying = f.has_box && error_ns && f.box.state == TD_BOX_FAILED;
    f.failed = ended_badly || dying;
    bool by_itself = WIFEXITED(rank->status) || WTERMSIG(rank->status) == SIGABRT || !rank->ended;
    f.follows = error_ns && by_itself && (f.box.error_code == TD_ERR_PEER || f.box.error_code == TD_ERR_ABORTED);
    f.when = error_ns && by_itself ? error_ns : rank->ended_ns;
    return f;
}

td__cause td__verdict_find(const td__job *job)
{
    td__cause cause = { .rank = -1 };
    finding best = { 0 };
    for (int r = 0; r < job->size; r++) {
        finding f = examine(job, r);
        if (!f.failed)
            continue;
        bool better = cause.rank < 0 || (best.follows && !f.follows) || (best.follows == f.follows && f.when < best.when);
        if (better) {
            best = f;
            cause.rank = r;
        }
    }
    if (cause.rank >= 0) {
        /* a death from outside, or an error with its time; a bare exit code may yet turn out to be a consequence */
        const td__rank *rank = &job->rank[cause.rank];
        bool struck = rank->ended && WIFSIGNALED(rank->status) && WTERMSIG(rank->status) != SIGABRT;
        cause.certain = !best.follows && (struck || (best.has_box && best.box.error_ns != 0));
    }
    return cause;
}

int td__verdict_exit(const td__rank *rank)
{
    return WIFSIGNALED(rank->status) ? TD_EXIT_SIGNAL + WTERMSIG(rank->status) : WEXITSTATUS(rank->status);
}

/* ---- in words -------------------------------------------------------------------------------------------------------------------- */

static void signal_name(int number, char *into, size_t size)
{
    const char *name = sigabbrev_np(number);
    snprintf(into, size, name ? "signal %d (SIG%s)" : "signal %d", number, name ? name : "");
}

/* The rank's own error ends in " on rank N" when the world has several ranks; we have just named it. */
static void without_rank(const char *sentence, int rank, char *into, size_t size)
{
    char tail[32];
    size_t t = (size_t)snprintf(tail, sizeof tail, " on rank %d", rank), n = strlen(sentence);
    if (n > t && strcmp(sentence + n - t, tail) == 0)
        n -= t;
    snprintf(into, size, "%.*s", (int)n, sentence);
}

static void while_doing(const td__box *box, const td__far *far, char *into, size_t size)
{
    char place[320];
    into[0] = '\0';
    if (!box->doing[0] && !box->last[0])
        return;
    if (far)
        snprintf(place, sizeof place, "%s", far->place);
    else
        td__site_in_file(box->module, box->offset, place, sizeof place);
    const char *at = *place ? " at " : "";
    if (box->doing[0])
        snprintf(into, size, " while in %s%s%s, says its black box", box->doing, at, place);
    else
        snprintf(into, size, " after %s%s%s, says its black box", box->last, at, place);
}

static int others_failed(const td__job *job, int cause)
{
    int n = 0;
    for (int r = 0; r < job->size; r++) {
        finding f = examine(job, r);
        n += r != cause && f.failed && !f.follows;
    }
    return n;
}

void td__verdict_say(const td__job *job, int number, int passed_on, int64_t oom_before)
{
    const td__rank *rank = &job->rank[number];
    finding f = examine(job, number);
    char how[128], why[1600] = "", name[48], doing[800] = "", more[64] = "";
    bool has_error = f.has_box && f.box.error_ns != 0;
    int number_of_signal = rank->ended && WIFSIGNALED(rank->status) ? WTERMSIG(rank->status) : 0;
    bool again = rank->ended && !has_error && WIFEXITED(rank->status) && WEXITSTATUS(rank->status) == EX_TEMPFAIL;   /* td_job_state's end */
    signal_name(number_of_signal, name, sizeof name);
    if (!rank->ended)
        snprintf(how, sizeof how, "failed");
    else if (number_of_signal == SIGABRT && has_error)
        snprintf(how, sizeof how, "gave up with %s", name);
    else if (number_of_signal)
        snprintf(how, sizeof how, "was killed by %s%s", name, WCOREDUMP(rank->status) ? ", core dumped" : "");
    else
        snprintf(how, sizeof how, "exited with code %d%s", WEXITSTATUS(rank->status), again ? ", which asks for another start" : "");
    if (number_of_signal && number_of_signal == passed_on)
        snprintf(doing, sizeof doing, ", which was passed on to all ranks");
    else if (has_error && (!number_of_signal || number_of_signal == SIGABRT))
        without_rank(f.box.error, number, why, sizeof why);
    else if (f.has_box && number_of_signal)
        while_doing(&f.box, rank->far, doing, sizeof doing);
    int others = again || (number_of_signal == passed_on && passed_on) ? 0 : others_failed(job, number);
    if (others)
        snprintf(more, sizeof more, " (%d other rank%s failed too)", others, others > 1 ? "s" : "");
    td__lines_say("rank %d%s%s (pid %d) %s%s%s%s%s", number, rank->far ? " on " : "", rank->far ? rank->far->host : "", (int)rank->pid, how,
                  *why ? ": " : "", why, doing, more);
    if (number_of_signal == SIGKILL && !rank->asked_to_end && !rank->far) {
        int64_t oom = td__verdict_oom_kills();
        if (oom > oom_before && oom_before >= 0)
            td__lines_say("the kernel has ended a process for want of memory in the meantime: probably this one; use a smaller "
                          "batch or fewer ranks");
        else if (oom < 0)
            td__lines_say("if nobody sent this signal, memory may have run out (see dmesg)");
    }
}

/* /proc/vmstat counts the whole machine; a container may hide it. */
int64_t td__verdict_oom_kills(void)
{
    long long n = -1;
    char line[128];
    FILE *f = fopen("/proc/vmstat", "re");
    while (f && n < 0 && fgets(line, sizeof line, f))
        sscanf(line, "oom_kill %lld", &n);
    if (f)
        fclose(f);
    return n;
}

/* ---- the boxes afterwards ---------------------------------------------------------------------------------------------------------- */

/* Kept are those of ranks that failed, and the message names each; the others have nothing to tell. */
void td__verdict_boxes(const td__job *job, int cause)
{
    char kept[2048] = "", path[512];
    int n = 0;
    if (!job->rank)
        return;
    for (int r = 0; r < job->size; r++) {
        const td__far *far = job->rank[r].far;
        if (far) {                             /* its agent has kept or removed it */
            if (far->kept && strlen(kept) + strlen(far->host) + strlen(far->box_path) + 3 < sizeof kept) {
                strcat(strcat(strcat(strcat(kept, " "), far->host), ":"), far->box_path);
                n++;
            }
            continue;
        }
        if (!job->folder[0])
            continue;
        box_path(job, r, path, sizeof path);
        finding f = examine(job, r);
        bool keep = cause >= 0 && f.has_box && (r == cause || f.failed) && strlen(kept) + strlen(path) + 2 < sizeof kept;
        if (!keep) {
            unlink(path);
            continue;
        }
        strcat(strcat(kept, " "), path);
        n++;
    }
    if (n)
        td__lines_say("black box%s kept:%s", n > 1 ? "es" : "", kept);
}
