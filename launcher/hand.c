/* launcher/hand.c: nodes that are started by hand, with the same `tandem run --nnodes …` on each.
 *
 * Node 0 is the head. Its store is where the nodes meet, at --master-addr; the port is --master-port, or one that all find by the job's
 * name (base/ports.c). Nothing of the job is on all nodes beforehand but what the user has put there, so the secret comes from the user's key
 * (base/key.c). Each node starts agents for its own ranks, and shows their output itself, as torchrun does. What a node's launcher does
 * beside that is little: the agents obey the head, and end when this launcher dies.
 */
#include "across.h"
#include <errno.h>
#include <fcntl.h>
#include <meet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const double FAREWELL_S = 5;
enum { TICK_MS = 50, KILL_MS = 3000 };

typedef struct {
    uv_loop_t loop;
    td__signals signals;
    uv_timer_t timer;
    pid_t *pid;
    int ranks, living;
    uint64_t empty_since;
} node;

/* What all nodes of this job have in common, and no other job at that address. */
static void job_label(const td__run_options *o, char *into, size_t size)
{
    snprintf(into, size, "tandem run %s\n%s\n%d\n%d", o->job_id ? o->job_id : "", o->master_addr, o->master_port, o->nodes);
}

/* All nodes on this machine, for a trial. A name that only this machine takes for a loopback address (127.0.1.1 in many /etc/hosts) is not meant. */
static bool only_here(const td__run_options *o)
{
    return strncmp(o->master_addr, "127.", 4) == 0 || strcmp(o->master_addr, "localhost") == 0 || strcmp(o->master_addr, "::1") == 0;
}

static int find_secret(const td__run_options *o, char *label, size_t size, unsigned char secret[32])
{
    char why[500];
    job_label(o, label, size);
    if (td__key_secret(label, secret, why, sizeof why) == 0)
        return 0;
    td__lines_say("%s", why);
    return 1;
}

td__store_server *td__hand_serve(const td__run_options *o, unsigned char secret[32])
{
    char label[700], why[700];
    int code;
    if (find_secret(o, label, sizeof label, secret) != 0)
        return NULL;
    td__store_server *server = td__meet_serve(o->master_addr, o->master_port, label, secret, only_here(o), &code, why, sizeof why);
    if (!server)
        td__lines_say("this is node 0 and the nodes cannot meet here: %s", why);
    return server;
}

/* ---- who is there ---------------------------------------------------------------------------------------------------------------------- */

static int failed(const char *what)
{
    td__lines_say("%s: %s", what, td_error_message());
    td_error_clear();
    return 1;
}

/* What a node says about itself. Two nodes with the same `machine` run on one: one name, one kernel, one network. */
typedef struct {
    int32_t ranks;
    char machine[200];
} self_told;

static void tell_self(const td__run_options *o, self_told *self)
{
    char host[65] = "", boot[64] = "";
    struct stat network = { 0 };
    gethostname(host, sizeof host - 1);
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(boot, sizeof boot, f))
            boot[0] = '\0';
        fclose(f);
    }
    if (stat("/proc/self/ns/net", &network) != 0)
        network.st_ino = 0;
    *self = (self_told){ .ranks = o->ranks };
    snprintf(self->machine, sizeof self->machine, "%s %.40s %llu", host, boot, (unsigned long long)network.st_ino);
}

int td__hand_meet(const td__run_options *o, td__store *store, const char *job, td__hand_place *place)
{
    char key[64];
    int64_t claims = 0;
    double timeout = td__env_number(TD_ENV_TIMEOUT, 300, 1, 1e6);
    snprintf(key, sizeof key, "claims/%d", o->node_rank);
    if (td__store_add(store, key, 1, &claims) != 0)
        return failed("the nodes cannot meet");
    if (claims > 1) {
        td__lines_say("another node has come as --node-rank %d, too: each of the %d nodes needs its own", o->node_rank, o->nodes);
        return 1;
    }
    snprintf(key, sizeof key, "node/%d", o->node_rank);
    self_told self, other;
    tell_self(o, &self);
    if (td__store_set(store, key, &self, sizeof self) != 0 || (job && td__store_set(store, "job", job, strlen(job)) != 0))
        return failed("the nodes cannot meet");
    *place = (td__hand_place){ 0 };
    for (int n = 0; n < o->nodes; n++) {
        size_t size = sizeof other;
        snprintf(key, sizeof key, "node/%d", n);
        if (td__store_get(store, key, &other, &size, timeout) != 0) {
            if (td_error_pending() != TD_ERR_TIMEOUT)
                return failed("the nodes cannot meet");
            td_error_clear();
            td__lines_say("node %d of %d has not come within %g s (TANDEM_TIMEOUT)", n, o->nodes, timeout);
            return 1;
        }
        bool same = strncmp(other.machine, self.machine, sizeof self.machine) == 0;
        place->first += n < o->node_rank ? other.ranks : 0;
        place->size += other.ranks;
        place->local_first += same && n < o->node_rank ? other.ranks : 0;
        place->local_size += same ? other.ranks : 0;
        if (place->size > TD_RANKS_MAX) {
            td__lines_say("the nodes have more than %d ranks together", TD_RANKS_MAX);
            return 1;
        }
    }
    size_t size = sizeof place->job - 1;
    return td__store_get(store, "job", place->job, &size, timeout) == 0 ? 0 : failed("the nodes cannot meet");
}

/* ---- this node's agents ------------------------------------------------------------------------------------------------------------------ */

static int start_agent(const td__run_options *o, const td__hand_place *place, int i, char *const *words, pid_t *pid)
{
    int out[2] = { -1, -1 }, err[2] = { -1, -1 }, none = -1, rank = place->first + i;
    td__identity who = { .rank = rank, .size = place->size, .local_rank = place->local_first + i, .local_size = place->local_size, .node_rank = o->node_rank,
                         .hosts = o->nodes, .job = place->job, .secret = td__env(TD_ENV_SECRET), .store = td__env(TD_ENV_STORE),
                         .master_addr = o->master_addr, .share = 1 };
    td__start start = { .path = words[0], .argv = (char **)words, .in = STDIN_FILENO, .death_signal = SIGTERM };
    int error = pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0 ? -errno : 0;
    if (!error && rank > 0 && (start.in = none = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
        error = -errno;
    start.out = out[1];
    start.err = err[1];
    start.variables = td__environ_make(&who);
    /* how many threads a rank gets is its agent's to say; only the user's own word is passed on */
    for (char **v = start.variables; v && *v && !td__getenv("OMP_NUM_THREADS"); v++)
        if (strncmp(*v, "OMP_NUM_THREADS=", 16) == 0)
            (*v)[16] = '\0';
    if (!error)
        error = start.variables ? td__spawn(&start, pid) : -ENOMEM;
    td__environ_free(start.variables);
    if (none >= 0)
        close(none);
    for (int k = 0; k < 2; k++) {
        int *pipe = k ? err : out;
        if (pipe[1] >= 0)
            close(pipe[1]);
        if (pipe[0] < 0)
            continue;
        if (error) {
            close(pipe[0]);
            continue;
        }
        fcntl(pipe[0], F_SETFL, O_NONBLOCK);
        if (td__lines_add(rank, pipe[0], k ? STDERR_FILENO : STDOUT_FILENO, -1) != 0)
            td__lines_say("the output of rank %d cannot be read", rank);
    }
    return error;
}

int td__hand_start(const td__run_options *o, const td__hand_place *place, pid_t *pid)
{
    td__words words = { 0 };
    int error = 0;
    td__agent_words(o, &words);
    for (int i = 0; i < o->ranks && !error; i++) {
        pid_t one;
        error = start_agent(o, place, i, words.word, &one);
        if (pid)
            pid[i] = error ? 0 : one;
    }
    td__words_free(&words);
    return error;
}

/* ---- the end -------------------------------------------------------------------------------------------------------------------------------- */

void td__hand_farewell(const td__run_options *o, td__store *store, int status, double seconds)
{
    int32_t code = status;
    double until = td__now() + seconds;
    int64_t left = 0;
    if (td__store_set(store, "exit", &code, sizeof code) == 0)
        while (left < o->nodes - 1 && td__now() < until && td__store_add(store, "left", 0, &left) == 0)
            usleep(10000);
    td_error_clear();
}

/* The head's word; without one (it is dead, or the link is cut) the job has failed. */
static int learn_exit(td__store *store)
{
    int32_t code = 1;
    size_t size = sizeof code;
    td__store_answer_within(store, 0.5);
    if (td__store_get(store, "exit", &code, &size, FAREWELL_S) == 0)
        td__store_add(store, "left", 1, NULL);
    td_error_clear();
    return code;
}

/* ---- a node that is not the first ------------------------------------------------------------------------------------------------------------ */

static void stop_loop(node *n)
{
    td__signals_close(&n->signals);
    uv_close((uv_handle_t *)&n->timer, NULL);
    td__lines_stop();
}

/* Agents end their ranks and themselves. What is left of an agent that was killed is ours to end. */
static void on_timer(uv_timer_t *timer)
{
    node *n = timer->data;
    if (n->living > 0)
        return;
    if (n->empty_since == 0)
        n->empty_since = uv_now(&n->loop);
    size_t left = td__tree_signal(uv_now(&n->loop) - n->empty_since > KILL_MS ? SIGKILL : SIGTERM);
    if (left == 0 && (!td__lines_open() || uv_now(&n->loop) - n->empty_since > KILL_MS / 6))
        stop_loop(n);
}

static void on_child_ended(uv_signal_t *handle, int number)
{
    (void)number;
    node *n = handle->data;
    for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
        for (int i = 0; i < n->ranks; i++)
            if (n->pid[i] == pid) {
                n->pid[i] = 0;
                n->living--;
            }
}

static void on_signal(uv_signal_t *handle, int number)
{
    node *n = handle->data;
    for (int i = 0; i < n->ranks; i++)
        if (n->pid[i] > 0)
            kill(n->pid[i], number);
}

static int open_loop(node *n)
{
    int error = uv_loop_init(&n->loop);
    if (!error)
        error = uv_timer_init(&n->loop, &n->timer);
    if (!error)
        error = td__signals_watch(&n->signals, &n->loop, n, on_signal, on_child_ended, false);
    n->timer.data = n;
    if (!error)
        error = uv_timer_start(&n->timer, on_timer, TICK_MS, TICK_MS);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    return error;
}

static int run_node(const td__run_options *o, const td__hand_place *place)
{
    node n = { .ranks = o->ranks, .pid = calloc((size_t)o->ranks, sizeof *n.pid) };
    int error = n.pid ? open_loop(&n) : UV_ENOMEM;
    if (error) {
        td__lines_say("there is no event loop: %s", uv_strerror(error));
        free(n.pid);
        return 1;
    }
    bool prefix = (place->size > 1 || o->tag_output) && !o->no_prefix;
    td__lines_begin(&n.loop, prefix, td__columns_for_ranks(prefix, place->size) > 0);
    error = td__hand_start(o, place, n.pid);
    for (int i = 0; i < n.ranks; i++)
        n.living += n.pid[i] > 0;
    if (error) {
        td__lines_say("the agents cannot be started: %s", strerror(-error));
        on_signal(&n.signals.passed[1], SIGTERM);
    }
    uv_run(&n.loop, UV_RUN_DEFAULT);
    uv_loop_close(&n.loop);
    free(n.pid);
    return error ? 1 : 0;
}

int td__hand_node(const td__run_options *o)
{
    unsigned char secret[32];
    char label[700], why[700], hex[65];
    int code, status = find_secret(o, label, sizeof label, secret);
    if (status)
        return status;
    double timeout = td__env_number(TD_ENV_TIMEOUT, 300, 1, 1e6);
    td__store *store = td__meet_connect(o->master_addr, o->master_port, label, secret, only_here(o), timeout, &code, why, sizeof why);
    if (!store) {
        td__lines_say("node 0 cannot be found: %s", why);
        return 1;
    }
    td__hand_place place;
    status = td__hand_meet(o, store, NULL, &place);
    if (status == 0) {
        td__to_hex(secret, sizeof secret, hex);
        setenv("TANDEM_STORE", td__store_where(store), 1);
        setenv("TANDEM_SECRET", hex, 1);
        status = run_node(o, &place);
        int all = learn_exit(store);
        status = status ? status : all;
    }
    td__store_close(store);
    return status;
}
