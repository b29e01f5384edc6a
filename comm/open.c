/* comm/open.c: which transport carries the world, and the world's life.
 *
 * A world of one needs none. All ranks on one host: shared memory, and MPI is not even initialised, also under mpirun. Else, or when
 * TANDEM_COMM says so, MPI where the launcher offers it, else the store at which the ranks meet, for small ones. With any transport the
 * ranks of one host share the control page, through which each notices that another died, stopped or left.
 */
#include <errno.h>
#include <meet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "comm_hier.h"

static td_comm *world_comm;

static td_comm self = { .size = 1, .backend = &td__comm_self };
static pthread_once_t self_once = PTHREAD_ONCE_INIT;

static void init_self(void)
{
    td__comm_init(&self);
    self.timeout = td__host.timeout();
}

td_comm *td_world(void)
{
    if (world_comm)
        return world_comm;
    pthread_once(&self_once, init_self);
    return &self;
}

/* ---- services for plug-ins -------------------------------------------------------------------------------------------------------- */

static int host_mismatch(td_comm *comm, const td_fingerprint *prints, const char (*texts)[TD_CALL_TEXT])
{
    char sentence[TD_SENTENCE];
    int *rank = td__alloc((size_t)comm->size * sizeof *rank);
    for (int i = 0; rank && i < comm->size; i++)
        rank[i] = td__comm_world_rank(comm, i);
    snprintf(sentence, sizeof sentence, "ranks called different collectives");
    if (rank)
        td__mismatch_sentence(comm->size, rank, prints, texts, sentence, sizeof sentence);
    td__free(rank);
    return td__verdict(comm->control, TD_ERR_MISMATCH, sentence);
}

static void host_combine(td_dtype t, int op, int64_t n, int k, const void *const *in, const double *pre, double post, void *const *out, int outs)
{
    td__cpu_kernels()->combine(t, (td_combine)op, n, k, in, pre, post, out, outs);
}

const td_comm_host td__comm_host = {
    .base = &td__host,
    .fail = td__comm_fail,
    .fingerprint = td__coll_fingerprint,
    .call_text = td__coll_call_text,
    .mismatch = host_mismatch,
    .combine = host_combine,
};

/* ---- this process is about to end by an error ---------------------------------------------------------------------------------------- */

/* Under `tandem run` the launcher names the black boxes. */
static void name_boxes(const td__control *c)
{
    const td__world *w = td__world_now();
    char folder[300], text[1400] = "", path[512];
    size_t used = 0;
    if (!strcmp(w->launcher, "tandem") || !td__runtime_dir(folder, sizeof folder))
        return;
    for (int i = 0; i < c->n; i++) {
        snprintf(path, sizeof path, "%s/%s.%d.box", folder, w->job, c->slot[i].rank);
        if (access(path, F_OK) == 0 && used + strlen(path) + 2 < sizeof text)
            used += (size_t)snprintf(text + used, sizeof text - used, " %s", path);
    }
    if (used && c->whole)
        td__say("what each rank did last is in%s", text);
    else if (used)                             /* whoever could name them there may be gone by now */
        td__say("what each rank did last is in%s; of ranks on other hosts, there in %s/%s.RANK.box", text, folder, w->job);
}

/* To one communicator. */
static void tell(td_comm *comm, void *of)
{
    const char *sentence = of;
    td__control *c = comm->control;
    if (!c)
        return;
    if (!atomic_load(&c->head->verdict)) {
        char text[TD_SENTENCE];
        snprintf(text, sizeof text, "rank %d (pid %d) failed: %.900s", c->mine->rank, (int)getpid(), sentence);
        td__verdict(c, TD_ERR_PEER, text);
    }
}

static void tell_the_others(const char *sentence)
{
    td_comm *comm = world_comm;
    const td__world *w = td__world_now();
    if (!comm || !comm->control) {             /* in td_init, or alone: the sentence has said everything                      */
        if (w->size == 1 || strcmp(w->launcher, "tandem"))
            td__box_close(true);
        return;
    }
    td__control *c = comm->control;
    td__groups_each(tell, (void *)sentence);
    if (atomic_load(&c->head->verdict) == 2 && c->head->verdict_slot == c->me)
        name_boxes(c);
    if (!c->whole && comm->backend->abort)
        comm->backend->abort(comm->state);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------ */

/* Meets the other ranks of the host; each brings an arena. */
static int join_host(td_comm *comm, const td__world *w)
{
    char error[600] = "";
    size_t bytes = td__control_bytes(w->local_size);
    td__meeting met = { .control = -1 };
    td__reach *reach = &comm->reach;
    void *memory;
    int code = td__arena_open(&reach->arena, w->local_size, error, sizeof error);
    if (!code) {
        reach->n = w->local_size;
        reach->base = td__calloc((size_t)w->local_size * sizeof *reach->base);
        reach->bytes = td__calloc((size_t)w->local_size * sizeof *reach->bytes);
        code = reach->base && reach->bytes ? 0 : td__pending();
    }
    if (!code && w->local_size > 1)
        code = td__bootstrap(w, comm->timeout, bytes, td__arena_fd(reach->arena), &met, error, sizeof error);
    if (code)
        return td__pending() ? td__pending() : td__fail(code, "%s", error);
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, met.control < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, met.control, 0);
    if (memory == MAP_FAILED)
        code = td__fail(TD_ERR_MEMORY, "td_init: %zu KiB of shared memory cannot be mapped (%s)", bytes >> 10, strerror(errno));
    for (int i = 0; i < w->local_size && !code; i++) {
        if (i == w->local_rank || w->local_size == 1) {
            reach->base[i] = td__arena_base(reach->arena, &reach->bytes[i]);
            continue;
        }
        off_t end = lseek(met.arena[i], 0, SEEK_END);
        void *at = end <= 0 ? MAP_FAILED : mmap(NULL, (size_t)end, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, met.arena[i], 0);
        if (at == MAP_FAILED) {
            code = td__fail(TD_ERR_MEMORY, "td_init: address space for the memory of %d ranks (%lld MiB each) cannot be had (%s; see ulimit -v)",
                            w->local_size, (long long)end >> 20, strerror(errno));
        } else {
            reach->base[i] = at;
            reach->bytes[i] = (size_t)end;
            madvise(at, (size_t)end, MADV_DONTDUMP);
        }
    }
    for (int i = 0; met.arena && i < w->local_size; i++)
        if (met.arena[i] >= 0)
            close(met.arena[i]);
    if (met.control >= 0)
        close(met.control);
    td__free(met.arena);
    if (code)
        return code;
    comm->control = &comm->page;
    code = td__control_attach(comm->control, comm, memory, w->local_rank, w->local_size, w->rank, "td_init", NULL);
    return code ? td__comm_report(comm, code) : 0;
}

static int open_shm(td_comm *comm, const td__world *w)
{
    comm->backend = &td__comm_shm;
    int code = join_host(comm, w);
    return code ? code : td__comm_shm.open(&td__comm_host, NULL, comm, &comm->state);
}

bool td__comm_asked_for(const char *transport)
{
    const char *wanted = td__env(TD_ENV_COMM);
    return wanted && !strcmp(wanted, transport);
}

/* TANDEM_PRETEND_HOSTS=0,0,1: tests on one machine see several hosts, here rank 2 on one of its own. */
static int pretend_hosts(td__world *w)
{
    const char *text = td__env(TD_ENV_PRETEND_HOSTS), *at = text;
    long mine = -1, host;
    char *end;
    int n = 0;
    if (!text)
        return 0;
    for (int pass = 0; pass < 2; pass++) {
        w->local_rank = w->local_size = n = 0;
        for (at = text; *at; at = end + (*end == ',')) {
            host = strtol(at, &end, 10);
            if (end == at || host < 0 || (*end && *end != ','))
                break;
            mine = n == w->rank ? host : mine;
            w->local_rank += host == mine && n < w->rank;
            w->local_size += host == mine;
            n++;
        }
    }
    if (*at || n != w->size)
        return td__fail(TD_ERR_ARGUMENT, "td_init: TANDEM_PRETEND_HOSTS is \"%.60s\"; expected %d numbers of hosts, one for each rank", text, w->size);
    td__world_set(w);
    size_t used = strlen(w->job);              /* each meets at a place of its own                                                */
    snprintf(w->job + used, sizeof w->job - used, ".%ld", mine);
    return 0;
}

static int open_plugin(td_comm *comm, const td_plugin *plugin, void *given)
{
    char why[400], error[400];
    bool ours = !plugin;
    if (ours)
        plugin = td__plugin_open("mpi", why, sizeof why);
    if (!plugin || !plugin->comm)
        return td__fail(TD_ERR_UNSUPPORTED, "td_init: %d ranks %s need the MPI plug-in: %s", comm->size,
                        td__comm_asked_for("mpi") ? "with TANDEM_COMM=mpi" : td__comm_asked_for("hier") ? "with TANDEM_COMM=hier" : "on several hosts", plugin ? "it brings no transport" : why);
    comm->backend = plugin->comm;
    td__world w = *td__world_now();
    if (ours && plugin->comm->find) {
        td__world found = w;
        int code = plugin->comm->find(&td__host, NULL, &found, error, sizeof error);
        if (code)
            return td__fail(code, "td_init: %s", error);
        if (found.size != w.size || found.rank != w.rank)
            return td__fail(TD_ERR_LAUNCH, "td_init: %s says rank %d of %d, but MPI says rank %d of %d; with MPI start the program by mpirun or srun",
                            w.launcher, w.rank, w.size, found.rank, found.size);
        w.local_rank = found.local_rank, w.local_size = found.local_size;
        td__world_set(&w);
    }
    int code = pretend_hosts(&w);
    code = code ? code : join_host(comm, &w);
    if (code || td__comm_asked_for("mpi") || !plugin->comm->wire)
        return code ? code : comm->backend->open(&td__comm_host, given, comm, &comm->state);
    td__hier_parts parts = { .plug = plugin->comm };
    code = plugin->comm->open(&td__comm_host, given, comm, &parts.plug_state);
    comm->backend = &td__comm_hier;
    return code ? code : comm->backend->open(&td__comm_host, &parts, comm, &comm->state);
}

/* Ranks that nobody has asked for the store have met in td_init already, as far as it was needed. */
static int open_store(td_comm *comm)
{
    td__world w = *td__world_now();
    int code = td__meeting_store() ? 0 : td__meet(&w);
    td__world_set(&w);
    comm->backend = &td__comm_store;
    code = code ? code : join_host(comm, &w);
    return code ? code : comm->backend->open(&td__comm_host, NULL, comm, &comm->state);
}

typedef enum { OVER_SHM, OVER_MPI, OVER_STORE } transport;

static int choose(const td__world *w, bool given, transport *over)
{
    const char *wanted = td__env(TD_ENV_COMM);
    bool one_host = w->local_size == w->size && w->local_rank >= 0;
    if (wanted && strcmp(wanted, "auto") && strcmp(wanted, "shm") && strcmp(wanted, "hier") && strcmp(wanted, "mpi") && strcmp(wanted, "nccl") &&
        strcmp(wanted, "store"))
        return td__fail(TD_ERR_ARGUMENT, "td_init: TANDEM_COMM is \"%.60s\"; expected auto, shm, hier, mpi, store or nccl", wanted);
    if (td__comm_asked_for("shm") && !one_host)
        return td__fail(TD_ERR_LAUNCH, "td_init: TANDEM_COMM=shm needs all %d ranks on one host; %d are on this one", w->size, w->local_size);
    const bool mpi = td__comm_asked_for("mpi") || td__comm_asked_for("hier");
    if (mpi && !given && !strcmp(w->launcher, "slurm"))   /* MPI_Init would end the process with a page of its own */
        return td__fail(TD_ERR_LAUNCH, "td_init: TANDEM_COMM=%s, but this Slurm step offers MPI no way to find its %d ranks: use srun --mpi=pmix", wanted, w->size);
    if (mpi || td__comm_asked_for("store"))
        *over = mpi ? OVER_MPI : OVER_STORE;
    else
        *over = one_host ? OVER_SHM : given || w->offers_mpi ? OVER_MPI : OVER_STORE;
    return 0;
}

static void *own_base(const td__reach *reach)
{
    size_t bytes;
    return reach->arena ? td__arena_base(reach->arena, &bytes) : NULL;
}

/* What the communicator holds besides its thread. The world unmaps the host's memory; a group's page is in it, or its own. */
void td__comm_close_parts(td_comm *comm, bool well)
{
    td__device_close(comm, well);
    td__reach *reach = &comm->reach;
    void *memory = comm->control ? comm->control->head : NULL;
    size_t bytes = comm->control ? comm->control->bytes : 0;
    if (comm->control)
        td__control_detach(comm->control, well);
    if (comm->state)
        comm->backend->close(comm->state, well);
    comm->state = NULL;
    comm->control = NULL;
    if (memory && !comm->page_elsewhere)
        munmap(memory, bytes);
    for (int i = 0; i < reach->n && !comm->world_rank && reach->base; i++)
        if (reach->base[i] && reach->base[i] != own_base(reach))
            munmap(reach->base[i], reach->bytes[i]);
    if (reach->arena && !comm->world_rank)
        td__arena_close(reach->arena);
    td__free(reach->base);
    td__free(reach->bytes);
    td__free(comm->world_rank);
    td__comm_destroy(comm);
    td__free(comm);
}

int td__comm_open_world(const td_plugin *plugin, void *world)
{
    const td__world *w = td__world_now();
    transport over = OVER_SHM;
    td__on_abort(tell_the_others);
    int code = choose(w, plugin != NULL, &over);
    if (code || w->size == 1)
        return code;
    td_comm *comm = td__calloc(sizeof *comm);
    if (!comm)
        return td__pending();
    td__comm_init(comm);
    comm->rank = w->rank, comm->size = w->size;
    comm->timeout = td__host.timeout();
    code = over == OVER_SHM ? open_shm(comm, w) : over == OVER_STORE ? open_store(comm) : open_plugin(comm, plugin, world);
    if (!code && comm->backend->on_thread)
        code = td__comm_thread_start(comm);
    if (code) {
        td__comm_close_parts(comm, false);
        td__meet_end(false);
        return code;
    }
    world_comm = comm;
    td__group_enlist(comm);
    return 0;
}

/* ---- closing --------------------------------------------------------------------------------------------------------------------------------- */

int td__comm_drain_one(td_comm *comm)
{
    int device = td__device_drain(comm), post = td__post_drain(comm);
    device = device ? device : post;
    if (device || !comm->control || !comm->thread_up)
        return device;
    double end = td__now() + comm->timeout + 10;
    while (atomic_load(&comm->pending) && !atomic_load(&comm->code) && td__now() < end) {
        td_coll last = { .kind = TD_COLL_BARRIER, .seq = comm->seq, .turn = comm->turn, .label = "td_finish" };
        if (comm->backend->on_thread && td__control_check(comm->control, &last, end - comm->timeout))
            break;
        usleep(500);
    }
    int code = atomic_load(&comm->code);
    return code ? td__comm_report(comm, code) : 0;
}

int td__comm_drain(void)
{
    int code = world_comm ? 0 : td__comm_drain_one(&self), groups = td__groups_drain();
    return code ? code : groups;
}

void td__comm_close_world(bool well)
{
    td_comm *comm = world_comm;
    td__groups_close(well);
    td__device_close(&self, well);
    td__comm_trim(&self);
    td__on_abort(NULL);
    td__post_close(&self, true);
    if (!comm)
        return;
    td__post_close(comm, true);                /* the arena goes, too: nothing in it is used for something else                */
    bool ended = td__comm_thread_stop(comm);
    world_comm = NULL;
    if (ended)
        td__comm_trim(comm);
    td__group_delist(comm);
    well = well && !atomic_load(&comm->code);
    if (ended) {
        td__comm_close_parts(comm, well);
        td__meet_end(well);
    } else {                                   /* a thread hangs inside the transport: what it uses stays as it is */
        td__control_detach(comm->control, false);
    }
}
