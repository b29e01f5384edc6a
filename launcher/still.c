/* launcher/still.c: ranks that stand still on several hosts: what their own library sees on one host, agents and head see here.
 *
 * On one host the ranks look at each other through the control page, and name a peer that is stopped or has left. Across hosts nobody sees
 * the other's process. So each agent looks at its rank a few times a second: is it stopped by a signal, has it been in one and the same
 * collective for a while, has it been in td_finish for a while? The first is told as a sentence; the others as a look at the black box, and
 * the head puts two of them together: a rank that waits in the world's collective, and one that has left and never came to it.
 */
#include "across.h"
#include <stdio.h>
#include <string.h>

static const double STOPPED_FOR = 0.6, STILL_FOR = 0.5, LOOK_EVERY = 0.5, PAUSE = 0.5;

/* The letter of /proc/PID/stat: 'T' is stopped by a signal, 't' by a debugger. */
static char process_letter(pid_t pid)
{
    char path[40], text[400];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = '\0';
    const char *end = strrchr(text, ')');      /* the name may hold anything */
    return end && end[1] == ' ' ? end[2] : '\0';
}

td__stillness td__still_look(td__still *s, pid_t pid, const td__box *box, bool finished)
{
    double now = td__now();
    bool paused = now - s->last_look > PAUSE;  /* we have not been running ourselves: what we saw is of no use */
    s->last_look = now;
    bool stopped = process_letter(pid) == 'T';
    if (!stopped || paused)
        s->stopped_since = stopped ? now : 0;
    else if (s->stopped_since == 0)
        s->stopped_since = now;
    uint64_t collectives = box->collectives;
    bool waits = finished || box->doing[0] || box->state == TD_BOX_FINISHED;   /* finished, MPI may wait for others at the process's end */
    if (!waits || paused || collectives != s->collectives)
        s->still_since = now;
    s->collectives = collectives;
    if (stopped && now - s->stopped_since >= STOPPED_FOR && !s->stop_told) {
        s->stop_told = true;
        return TD_STOPPED;
    }
    if (waits && now - s->still_since >= STILL_FOR && now - s->told >= LOOK_EVERY) {
        s->told = now;
        return TD_WAITS;
    }
    return TD_MOVES;
}

/* Which of the world's collectives "all_reduce(f32, 100) #17" or "… #17 (label)" is; 0: none of the world's ("… #17 of group 2"). */
static unsigned long long world_number(const char *call)
{
    unsigned long long number = 0;
    int after = 0;
    const char *mark = strchr(call, '#');
    return mark && sscanf(mark, "#%llu%n", &number, &after) == 1 && strncmp(mark + after, " of ", 4) != 0 ? number : 0;
}

/* Has `rank` gone, or is it going, without having taken part in collective `number`? */
static bool has_left(const td__rank *rank, unsigned long long number, int64_t now_ns)
{
    const td__far *far = rank->far;
    bool ended = rank->ended && rank->status == 0 && now_ns - rank->ended_ns > (int64_t)(STILL_FOR * 1e9);
    bool going = !rank->ended && (far->finished || (far->has_box && far->box.state == TD_BOX_FINISHED && !far->box.doing[0]));
    return (ended || going) && far->box.magic[0] && world_number(far->box.last) < number;   /* no box at all: nothing is known */
}

bool td__still_left(const td__job *job, int waiting, int64_t now_ns, char *sentence, size_t size)
{
    const td__rank *w = &job->rank[waiting];
    unsigned long long number = w->ended || !w->far->has_box ? 0 : world_number(w->far->box.doing);
    for (int r = 0; r < job->size && number; r++) {
        const td__rank *rank = &job->rank[r];
        if (r == waiting || !has_left(rank, number, now_ns))
            continue;
        const char *last = rank->far->box.last, *place = w->far->place;
        snprintf(sentence, size, "rank %d on %s (pid %d) %s while rank %d on %s waits in %s%s%s%s%s", r, rank->far->host, (int)rank->pid,
                 rank->ended ? "ended with code 0" : "has called td_finish", waiting, w->far->host, w->far->box.doing, *place ? " at " : "", place,
                 *last ? "; its last was " : "", last);
        return true;
    }
    return false;
}
