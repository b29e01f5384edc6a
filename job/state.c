/* job/state.c: td_job_state: a signal that asks for the end becomes one decision of all ranks, a saved state and exit status 75.
 *
 * The handler only notes the first signal; everything else happens in td_job_state_step, in the program's own time. Ranks agree by a small
 * all-gather that one step starts and the next one reads: nobody waits for it, all see the same answers, and so all save after the same step.
 * A rank that has an error takes no part: ddp has told it to the others, or its leaving does.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include <ddp_impl.h>
#include "job_impl.h"

struct td_job_state {
    td_job_state   *next;
    td_train_state *state;
    char           *path;
    int64_t         save_every, calls;
    bool            quiet, resumed, ending;
    td_storage     *memory;       /* an answer for the others, then each rank's: a signal's number, or 0                 */
    td_work        *work;         /* of the last step                                                                 */
};

static td_job_state poison = { .ending = true };
static td_job_state *open_states;
static bool ended;                /* a loop of this job has been ended on request: td_finish's exit status              */

/* ---- signals ------------------------------------------------------------------------------------------------------------------ */

/* Handlers that were there before ours. Somebody may put one above ours that calls it, or replaces it: from here the two look alike. So when
 * signals are asked for anew ours goes on top once more, and `depth` says, when it is called from above, which of them is next below. (Not per thread:
 * a handler must not be the first to touch a thread's variables, which takes memory.) */
enum { LEVELS = 8 };
static struct hook {
    const int number;
    atomic_int levels;            /* how often ours is in the chain                                                   */
    atomic_int depth;
    struct sigaction before[LEVELS];
} hooks[] = { { .number = SIGTERM }, { .number = SIGUSR1 } };
static atomic_int asked;          /* the first signal that came; 0: none                                               */

/* Async-signal-safe: a lock-free store, and what the program itself wants to be called. */
static void on_signal(int number, siginfo_t *info, void *context)
{
    const int error = errno;
    struct hook *h = &hooks[number != hooks[0].number];
    int none = 0;
    atomic_compare_exchange_strong(&asked, &none, number);
    int levels = atomic_load(&h->levels), level = levels > 1 ? levels - 1 - atomic_fetch_add(&h->depth, 1) : levels - 1;
    if (level >= 0) {
        const struct sigaction *before = &h->before[level];
        if (before->sa_flags & SA_SIGINFO)
            before->sa_sigaction(number, info, context);
        else if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN)
            before->sa_handler(number);
    }
    if (levels > 1)
        atomic_fetch_sub(&h->depth, 1);
    errno = error;
}

static bool on_top(const struct hook *h, struct sigaction *now)
{
    return sigaction(h->number, NULL, now) == 0 && now->sa_flags & SA_SIGINFO && now->sa_sigaction == on_signal;
}

static int install(void)
{
    for (size_t i = 0; i < TD_COUNT(hooks); i++) {
        struct hook *h = &hooks[i];
        int level = atomic_load(&h->levels);
        struct sigaction now, ours = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
        if (on_top(h, &now))
            continue;
        if (level == LEVELS)
            return td__fail(TD_ERR_STATE, "td_job_state_open: the handler of SIG%s was put below another one %d times, expected fewer",
                            sigabbrev_np(h->number), LEVELS);
        ours.sa_mask = now.sa_mask;
        ours.sa_flags |= now.sa_flags & SA_ONSTACK;
        h->before[level] = now;                /* first: a signal may come as soon as ours is there */
        atomic_store(&h->levels, level + 1);
        if (sigaction(h->number, &ours, NULL) != 0) {
            atomic_store(&h->levels, level);
            return td__fail(TD_ERR_STATE, "td_job_state_open: a handler of SIG%s cannot be installed: %m", sigabbrev_np(h->number));
        }
    }
    return 0;
}

static void restore(void)
{
    for (size_t i = 0; i < TD_COUNT(hooks); i++) {
        struct sigaction now;
        struct hook *h = &hooks[i];
        for (int level; (level = atomic_load(&h->levels)) > 0 && on_top(h, &now); atomic_store(&h->levels, level - 1))
            if (sigaction(h->number, &h->before[level - 1], NULL) != 0)
                break;
    }
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------- */

/* Groups that train models of their own have files of their own. */
static int go_on_from(td_job_state *job)
{
    td_comm *comm = job->state->ddp ? job->state->ddp->comm : td_world();
    int32_t there = td_rank(comm) == 0 && access(job->path, F_OK) == 0;
    int code = td__comm_bytes(comm, &there, sizeof there, 0, "td_job_state_open");
    if (code || !there)
        return code;
    code = td_train_state_load(job->state, job->path);
    job->resumed = code == 0;
    if (job->resumed && !job->quiet && td_rank(td_world()) == 0)
        td__info("going on from %s, step %lld", job->path, (long long)job->state->step);
    return code;
}

static int begin(td_job_state *job)
{
    td_comm *world = td_world();
    if (td_size(world) > 1 && !(job->memory = td__comm_storage(world, (td_device){ TD_CPU, 0 }, sizeof(int32_t) * (size_t)(td_size(world) + 1))))
        return td__pending();
    return job->state ? go_on_from(job) : 0;
}

td_job_state *td_job_state_open(td_train_state *state, const char *path, const td_job_state_opts *opts)
{
    TD_ENTER();
    static const td_job_state_opts standard;
    opts = opts ? opts : &standard;
    if (td__pending())
        return &poison;
    if (!state != !path || (path && !*path) || opts->save_every < 0 || (opts->save_every && !state)) {
        td__fail(TD_ERR_ARGUMENT, "td_job_state_open: the state is %s, the path %s%.200s, save_every %lld; expected a state and the path of its file, or "
                 "neither", state ? "given" : "NULL", !path ? "NULL" : *path ? "" : "empty", path ? path : "", (long long)opts->save_every);
        return &poison;
    }
    td_job_state *job = td__calloc(sizeof *job);
    if (!job)
        return &poison;
    *job = (td_job_state){ .next = open_states, .state = state, .save_every = opts->save_every, .quiet = opts->quiet };
    if (!open_states && !ended)
        atomic_store(&asked, 0);
    open_states = job;
    if ((path && !(job->path = td__strdup(path))) || install() || begin(job)) {
        td_job_state_free(job);
        return &poison;
    }
    return job;
}

void td_job_state_free(td_job_state *job)
{
    TD_ENTER();
    if (!job || job == &poison)
        return;
    if (job->work)
        td__work_wait(job->work, NULL);
    td_job_state **at = &open_states;
    while (*at && *at != job)
        at = &(*at)->next;
    if (*at)
        *at = job->next;
    if (job->memory)
        td__storage_unref(job->memory);
    td__free(job->path);
    td__free(job);
    if (!open_states && !ended)
        restore();
}

/* ---- between two steps ---------------------------------------------------------------------------------------------------------- */

static int ask_others(td_job_state *job)
{
    int32_t *answer = job->memory->data;
    answer[0] = atomic_load(&asked);
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_I32, .in = answer, .out = answer + 1, .count = 1, .pre = 1, .post = 1, .site = td__site,
                     .label = "td_job_state_step" };
    job->work = td__coll_start(td_world(), &coll);
    return job->work ? 0 : td__pending();
}

/* The signal that the lowest rank with one has got, known to all; 0: none. *rank: who. Negative: an error. */
static int agreed(td_job_state *job, int *rank)
{
    const int size = td_size(td_world());
    *rank = 0;
    if (size == 1)
        return atomic_load(&asked);
    if (job->work) {
        int code = td__work_wait(job->work, NULL);
        job->work = NULL;
        if (code)
            return code;
        const int32_t *answer = job->memory->data;
        for (*rank = 0; *rank < size; ++*rank)
            if (answer[1 + *rank])
                return answer[1 + *rank];
    }
    return ask_others(job);
}

static int save(td_job_state *job)
{
    return job->state ? td_train_state_save(job->state, job->path) : 0;
}

static void say(const td_job_state *job, int number, int rank)
{
    if (job->quiet || td_rank(td_world()) != 0)
        return;
    const char *name = sigabbrev_np(number);
    if (job->state)
        td__info("SIG%s reached rank %d: the state after step %lld is in %s; exit status %d asks for another start", name, rank,
                 (long long)job->state->step, job->path, TD_EXIT_AGAIN);
    else
        td__info("SIG%s reached rank %d: all ranks end after this step; exit status %d asks for another start", name, rank, TD_EXIT_AGAIN);
}

bool td_job_state_step(td_job_state *job)
{
    TD_ENTER();
    if (!job)
        td__fail(TD_ERR_ARGUMENT, "td_job_state_step: the job's state is NULL");
    if (!job || job->ending)
        return false;
    int rank, request = td__pending() ? -1 : agreed(job, &rank);
    bool due = request > 0 || (request == 0 && job->save_every && ++job->calls % job->save_every == 0);
    bool well = request >= 0 && (!due || save(job) == 0);
    if (request > 0 && well) {
        ended = true;
        say(job, request, rank);
    }
    job->ending = request != 0 || !well;
    return !job->ending;
}

bool td_job_state_ending(const td_job_state *job)
{
    TD_ENTER();
    if (!job)
        td__fail(TD_ERR_ARGUMENT, "td_job_state_ending: the job's state is NULL");
    return !job || job->ending;
}

bool td_job_state_resumed(const td_job_state *job)
{
    TD_ENTER();
    if (!job)
        td__fail(TD_ERR_ARGUMENT, "td_job_state_resumed: the job's state is NULL");
    return job && job->resumed;
}

/* ---- td_finish ------------------------------------------------------------------------------------------------------------------- */

void td__job_state_free_all(void)
{
    while (open_states)
        td_job_state_free(open_states);
}

bool td__job_state_ended(void)
{
    bool now = ended;
    ended = false;
    return now;
}
