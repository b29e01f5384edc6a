/* base/meet.c: the ranks of a world meet at a store: one serves it, all connect, and everybody learns who is where. See meet.h.
 *
 * The secret is our launcher's, or derived from the user's key and the job (key.c); on one host the peers' user id is proof enough.
 *
 * One rank may already be in the next meeting of the job while another is still in the last: td_init may be called again, and a shell may run one
 * program after the other. So the how many-th meeting of the process goes into the secret, and each rank counts itself at the store: at a store
 * that a rank serves it must be the first, or it has come to an old one; our launcher's counts the meetings for everybody.
 */
#include "meet.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct {
    td__store *store;
    td__store_server *server;
    td__meeting_rank *ranks;
    unsigned number;                           /* meetings so far                                                         */
    int rank, size;
    char address[300];
    unsigned char secret[32];
} meeting;

td__store *td__meeting_store(void)
{
    return meeting.store;
}

const char *td__meeting_address(void)
{
    return meeting.address;
}

const unsigned char *td__meeting_secret(void)
{
    return meeting.secret;
}

unsigned td__meeting_number(void)
{
    return meeting.number;
}

const td__meeting_rank *td__meeting_peer(int rank)
{
    return meeting.ranks && rank >= 0 && rank < meeting.size ? &meeting.ranks[rank] : NULL;
}

bool td__meet_wanted(const td__world *w)
{
    const char *wanted = td__env(TD_ENV_COMM);
    bool one_host = w->local_size == w->size && w->local_rank >= 0;
    if (w->size == 1 || (wanted && (!strcmp(wanted, "mpi") || !strcmp(wanted, "hier"))))
        return false;
    return (wanted && !strcmp(wanted, "store")) || (!one_host && !w->offers_mpi);
}

/* ---- who is where ---------------------------------------------------------------------------------------------------------- */

/* Processes with the same number can reach each other by Unix sockets: one name, one kernel, one network. */
static uint64_t machine(const char *host)
{
    char boot[64] = "";
    struct stat net = { 0 };
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(boot, sizeof boot, f))
            boot[0] = '\0';
        fclose(f);
    }
    if (stat("/proc/self/ns/net", &net) != 0)
        net.st_ino = 0;
    char text[256];
    snprintf(text, sizeof text, "%s\n%s\n%llu", host, boot, (unsigned long long)net.st_ino);
    uint64_t hash = 1469598103934665603u;
    for (const char *c = text; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    return hash;
}

static void introduce(td__meeting_rank *me)
{
    char host[256] = "";
    if (gethostname(host, sizeof host - 1) != 0 || !*host)
        snprintf(host, sizeof host, "unknown");
    *me = (td__meeting_rank){ .pid = (int32_t)getpid(), .number = meeting.number, .machine = machine(host) };
    snprintf(me->host, sizeof me->host, "%.*s", (int)sizeof me->host - 1, host);
}

static void find_locals(td__world *w)
{
    if (w->local_rank >= 0 && w->local_size > 0)
        return;
    w->local_rank = w->local_size = 0;
    for (int i = 0; i < w->size; i++)
        if (meeting.ranks[i].machine == meeting.ranks[w->rank].machine) {
            w->local_rank += i < w->rank;
            w->local_size++;
        }
}

/* ---- who is missing -------------------------------------------------------------------------------------------------------- */

static size_t add(char *into, size_t size, size_t used, const char *text)
{
    int n = snprintf(into + used, size - used, "%s%s", used ? ", " : "", text);
    return used + (size_t)n < size ? used + (size_t)n : size - 1;
}

static void host_key(char *key, size_t size, const char *node)
{
    snprintf(key, size, "meet%u.host.%.200s", meeting.number, node);
}

/* Nodes of which no rank has come. */
static int silent_hosts(const td__meet_plan *plan, char *into, size_t size)
{
    int count = 0;
    size_t used = 0;
    for (size_t i = 0; i < plan->nodes.n; i++) {
        char key[256];
        host_key(key, sizeof key, plan->nodes.name[i]);
        int has = td__store_has(meeting.store, key);
        if (has < 0)
            return 0;
        if (has == 0 && count++ < 8)
            used = add(into, size, used, plan->nodes.name[i]);
    }
    if (count > 8)
        snprintf(into + used, size - used, " and %d more", count - 8);
    return count;
}

static int vain(const td__world *w, const td__meet_plan *plan, const td__store_absent *absent, double timeout)
{
    char ranks[160] = "", hosts[600] = "", one[16];
    size_t used = 0;
    for (int i = 0; i < absent->count && i < 8; i++) {
        snprintf(one, sizeof one, "%d", absent->rank[i]);
        used = add(ranks, sizeof ranks, used, one);
    }
    if (absent->count > 8)
        snprintf(ranks + used, sizeof ranks - used, " and %d more", absent->count - 8);
    const char *s = absent->count == 1 ? "" : "s";
    switch (absent->why) {
    case TD__ABSENT_LATE: {
        int silent = silent_hosts(plan, hosts, sizeof hosts);
        if (silent)
            return td__fail(TD_ERR_TIMEOUT, "td_init: no rank of host%s %s has come to the meeting at %s within %g s (TANDEM_TIMEOUT); missing of %d: "
                            "rank%s %s", silent == 1 ? "" : "s", hosts, meeting.address, timeout, w->size, s, ranks);
        return td__fail(TD_ERR_TIMEOUT, "td_init: rank%s %s of %d did not come to the meeting at %s within %g s (TANDEM_TIMEOUT)", s, ranks, w->size,
                        meeting.address, timeout);
    }
    case TD__ABSENT_TWICE:
        return td__fail(TD_ERR_LAUNCH, "td_init: two processes of job %s both are rank %s", w->job, ranks);
    case TD__ABSENT_SIZE:
        return td__fail(TD_ERR_LAUNCH, "td_init: the ranks of job %s believe in different numbers of ranks; this one in %d", w->job, w->size);
    case TD__ABSENT_FAILED:
    case TD__ABSENT_LEFT:
    case TD__ABSENT_LOST:
        return td__fail(TD_ERR_PEER, "td_init: rank %s ended, or its host cannot be reached, while the ranks met at %s", ranks, meeting.address);
    default:
        return td__fail(TD_ERR_PEER, "td_init: the meeting at %s has broken off: %s", meeting.address, absent->text);
    }
}

/* ---- meeting --------------------------------------------------------------------------------------------------------------- */

static int find_secret(const td__world *w, const td__meet_plan *plan, char *error, size_t size)
{
    char job[160];
    snprintf(job, sizeof job, "%s\n%u", w->job, meeting.number);
    memset(meeting.secret, 0, sizeof meeting.secret);
    if (plan->launcher)
        memcpy(meeting.secret, w->secret, sizeof meeting.secret);
    else if (!plan->one_host)
        return td__key_secret(job, meeting.secret, error, size);
    else if (w->has_secret)
        memcpy(meeting.secret, w->secret, sizeof meeting.secret);
    if (plan->one_host)
        meeting.secret[0] ^= (unsigned char)meeting.number;
    return 0;
}

/* Is an address that only this host sees good enough? Who says it by TANDEM_STORE knows. */
static bool loopback_will_do(const td__world *w, const td__meet_plan *plan)
{
    bool several = w->local_size > 0 && w->local_size < w->size;
    return !several || !strcmp(plan->from, "TANDEM_STORE");
}

static int start_server(const td__world *w, const td__meet_plan *plan, double timeout, char *error, size_t size)
{
    int code = 0;
    double end = td__now() + timeout;
    if (!plan->one_host) {
        meeting.server = td__meet_serve(plan->host, plan->port, w->job, meeting.secret, loopback_will_do(w, plan), &code, error, size);
        return code;
    }
    /* the name is taken for a moment when the meeting before this one in these processes has not quite ended */
    while (!(meeting.server = td__store_try_serve(plan->address, meeting.secret, &code, error, size)) && code == TD_ERR_STATE && td__now() < end)
        nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
    return code;
}

static td__store *connect_once(const td__world *w, const td__meet_plan *plan, double timeout, int *code, char *error, size_t size)
{
    if (!meeting.server && !plan->launcher && !plan->one_host)
        return td__meet_connect(plan->host, plan->port, w->job, meeting.secret, loopback_will_do(w, plan), timeout, code, error, size);
    return td__store_try(meeting.server ? td__store_address(meeting.server) : plan->address, meeting.secret, timeout, code, error, size);
}

/* Until the deadline: the server may come late, and an old one may still be there. */
static int connect_to(const td__world *w, const td__meet_plan *plan, double timeout, char *error, size_t size)
{
    int code = 0;
    double end = td__now() + timeout;
    bool twice = false;
    char key[32];
    snprintf(key, sizeof key, "meet.count.%d", w->rank);
    for (;;) {
        double left = end - td__now();
        meeting.store = connect_once(w, plan, left > 0.001 ? left : 0.001, &code, error, size);
        int64_t count = meeting.store ? td__store_count(meeting.store, key) : 0;
        if (count > 0 && plan->launcher)
            meeting.number = (unsigned)count;
        if (count > 0 && (plan->launcher || count == 1)) {
            snprintf(meeting.address, sizeof meeting.address, "%s", td__store_where(meeting.store));
            return 0;
        }
        twice |= count > 1;
        td__store_close(meeting.store);
        meeting.store = NULL;
        if (td__now() >= end || meeting.server || (code && code != TD_ERR_IO && code != TD_ERR_MISMATCH && code != TD_ERR_PEER))
            break;
        nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
    }
    if (twice)
        snprintf(error, size, "another process of job %s is rank %d already", w->job, w->rank);
    return twice ? TD_ERR_LAUNCH : code ? code : TD_ERR_PEER;
}

static int gather(const td__world *w, const td__meet_plan *plan, double left, double timeout)
{
    td__meeting_rank me;
    td__store_absent absent;
    char scope[32], key[256];
    uint64_t turn = 0;
    meeting.ranks = td__calloc((size_t)w->size * sizeof *meeting.ranks);
    if (!meeting.ranks)
        return td__pending();
    introduce(&me);
    host_key(key, sizeof key, plan->node);
    if (plan->nodes.n && td__store_set(meeting.store, key, "", 0))
        return td__pending();
    snprintf(scope, sizeof scope, "meet%u", meeting.number);
    int code = td__store_gather(meeting.store, scope, &turn, w->rank, w->size, &me, sizeof me, meeting.ranks, left, NULL, &absent);
    if (code)
        return vain(w, plan, &absent, timeout);
    for (int i = 0; i < w->size; i++)
        meeting.ranks[i].host[sizeof me.host - 1] = '\0';
    return 0;
}

int td__meet(td__world *w)
{
    char error[700] = "";
    td__meet_plan plan;
    double timeout = td__env_number(TD_ENV_TIMEOUT, 300, 0.001, 1e9), begun = td__now();
    td__meet_end(false);
    meeting.number++;
    meeting.rank = w->rank, meeting.size = w->size;
    int code = td__meet_find(td__getenv, w, &plan, error, sizeof error);
    code = code ? code : find_secret(w, &plan, error, sizeof error);
    if (code)
        return td__fail(code, "td_init: rank %d of %d (%s) has no way to meet the others without MPI: %s; or start it with mpirun, srun --mpi=pmix or tandem run",
                        w->rank, w->size, w->launcher, error);
    code = plan.serve ? start_server(w, &plan, timeout, error, sizeof error) : 0;
    code = code ? code : connect_to(w, &plan, timeout, error, sizeof error);
    if (code)
        td__fail(code == TD_ERR_STATE || code == TD_ERR_MISMATCH || code == TD_ERR_IO ? TD_ERR_LAUNCH : code, "td_init: rank %d of %d cannot meet the others: %s%s%s%s",
                 w->rank, w->size, error, *plan.from ? " (" : "", plan.from, *plan.from ? " names the host)" : "");
    else
        code = gather(w, &plan, timeout > td__now() - begun ? timeout - (td__now() - begun) : 0.001, timeout);
    td__nodelist_free(&plan.nodes);
    if (code) {
        td__meet_end(false);
        return code;
    }
    find_locals(w);
    return 0;
}

/* A server that goes at once would take the others' last answers with it. */
static void let_leave(td__store_server *server)
{
    double end = td__now() + 5;
    while (td__store_server_members(server) > 0 && td__now() < end)
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

void td__meet_end(bool well)
{
    char scope[32];
    snprintf(scope, sizeof scope, "meet%u", meeting.number);
    if (meeting.store && well)
        td__store_leave(meeting.store, scope, meeting.rank, NULL);
    td__store_close(meeting.store);
    if (meeting.server && well)
        let_leave(meeting.server);
    td__store_stop(meeting.server);
    td__free(meeting.ranks);
    meeting.store = NULL;
    meeting.server = NULL;
    meeting.ranks = NULL;
}
