/* tests/cuda/fake_nccl.c: libnccl-fake.so, as much of NCCL as plugins/cuda calls, between real processes, on the streams of fake_gpu.c.
 *
 * Ranks meet in a memfd whose number and process the unique id tells: nothing has a name in a file system. A collective runs when the stream gets
 * there: each rank lays what it called and its part (multiplied by its own factor, in the dtype) into the memfd, meets the others piece by
 * piece, and takes the result, summed in double in the order of the ranks. When ranks called different things NCCL hangs: so does this, until
 * abort. FAKE_NCCL=version|missing… makes it an old one; FAKE_NCCL=error: the second collective reports an asynchronous error; hang: it
 * never ends; nomem: there is no memory to give. Callers that break NCCL's rules (a call while another is in progress, an operator used after it was destroyed, finalize
 * without destroy) end the process.
 */
#include "fake_gpu.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <nccl.h>
#include <convert.h>

enum { RANKS = 8, PIECE = 1 << 16, MOST_OPS = 16 };
typedef struct {
    _Atomic uint64_t step[RANKS];              /* meeting points passed by each rank                                              */
    struct { int64_t kind, count, dtype, op, root; } call[RANKS];
    char data[RANKS][RANKS * PIECE];
    struct { _Atomic uint64_t laid, taken; int64_t count, dtype; char data[PIECE]; } mail[RANKS][RANKS];   /* pieces of messages, from, to   */
} place;

struct ncclComm {
    place *at;
    int rank, ranks;
    uint64_t step, collectives;
    _Atomic int busy;                          /* looks until what is in progress is done                                         */
    _Atomic bool aborted;
    _Atomic int running, async;
    bool finalized;
    struct { bool live; double by; } op[MOST_OPS];
    int registrations;
};

static bool told(const char *what)
{
    const char *fault = getenv("FAKE_NCCL");
    return fault && strstr(fault, what);
}

static void broken(const char *rule)
{
    fprintf(stderr, "fake NCCL: %s\n", rule);
    abort();
}

static ncclResult_t later(ncclComm_t c)
{
    c->busy = 3;
    return ncclInProgress;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------ */

ncclResult_t ncclGetVersion(int *version) { *version = told("version") ? 21805 : 22809; return ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t r) { return r == ncclRemoteError ? "remote process exited or there was a network error" : "unhandled error"; }
const char *ncclGetLastError(ncclComm_t c) { (void)c; return "fake detail"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    int fd = memfd_create("fake-nccl", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, sizeof(place)))
        return ncclSystemError;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/proc/%d/fd/%d", (int)getpid(), fd);
    return ncclSuccess;
}

static void meet(ncclComm_t c);

ncclResult_t ncclCommInitRankConfig(ncclComm_t *into, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    unsigned magic = 0xcafebeef;
    if (config->magic != magic || config->size > sizeof *config || config->version < 21400 || config->blocking != 0 ||
        config->cgaClusterSize != NCCL_CONFIG_UNDEF_INT || config->minCTAs != NCCL_CONFIG_UNDEF_INT || config->netName || config->splitShare != NCCL_CONFIG_UNDEF_INT)
        broken("the configuration is not what was meant");
    int fd = open(id.internal, O_RDWR | O_CLOEXEC);
    ncclComm_t c = calloc(1, sizeof *c);
    if (fd < 0 || !c || ranks > RANKS)
        return ncclSystemError;
    c->at = mmap(NULL, sizeof(place), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    c->rank = rank, c->ranks = ranks;
    *into = c;
    return later(c);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error)
{
    if (c->busy > 0)
        c->busy--;
    *error = c->busy ? ncclInProgress : (ncclResult_t)c->async;
    return ncclSuccess;
}

static void settled(ncclComm_t c)
{
    if (c->busy)
        broken("a call while another is in progress");
    if (c->finalized)
        broken("a call after ncclCommFinalize");
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    settled(c);
    if (c->registrations)
        broken("finalized with registered memory");
    c->finalized = true;
    while (c->running)
        usleep(100);
    return later(c);
}

ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    if (!c->finalized || c->busy)
        broken("destroyed before it was finalized");
    munmap(c->at, sizeof(place));
    free(c);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c)
{
    c->aborted = true;
    while (c->running)
        usleep(100);
    munmap(c->at, sizeof(place));
    free(c);
    return ncclSuccess;
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------------------- */
ncclResult_t ncclMemAlloc(void **p, size_t n) { return told("nomem") ? ncclSystemError : cudaMalloc(p, n) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError; }
ncclResult_t ncclMemFree(void *p) { cudaFree(p); return ncclSuccess; }
ncclResult_t ncclCommRegister(const ncclComm_t c, void *p, size_t n, void **handle)
{
    settled(c);
    c->registrations += p && n;
    *handle = c;
    return ncclSuccess;
}
ncclResult_t ncclCommDeregister(const ncclComm_t c, void *handle)
{
    settled(c);
    if (handle != c || !c->registrations--)
        broken("memory was deregistered that was not registered");
    return ncclSuccess;
}

/* ---- numbers --------------------------------------------------------------------------------------------------------------------------- */

static size_t size_of(ncclDataType_t t)
{
    return t == ncclFloat64 || t == ncclInt64 ? 8 : t == ncclFloat32 || t == ncclInt32 ? 4 : t == ncclFloat16 || t == ncclBfloat16 ? 2 : 1;
}

static double get(ncclDataType_t t, const void *p, int64_t i)
{
    switch (t) {
    case ncclFloat64: return ((const double *)p)[i];
    case ncclFloat32: return (double)((const float *)p)[i];
    case ncclFloat16: return (double)td__f16_to_f32(((const td_f16 *)p)[i]);
    case ncclBfloat16: return (double)td__bf16_to_f32(((const td_bf16 *)p)[i]);
    case ncclInt64: return (double)((const int64_t *)p)[i];
    case ncclInt32: return (double)((const int32_t *)p)[i];
    default: return (double)((const uint8_t *)p)[i];
    }
}

static void set(ncclDataType_t t, void *p, int64_t i, double v)
{
    switch (t) {
    case ncclFloat64: ((double *)p)[i] = v; break;
    case ncclFloat32: ((float *)p)[i] = (float)v; break;
    case ncclFloat16: ((td_f16 *)p)[i] = td__f32_to_f16((float)v); break;
    case ncclBfloat16: ((td_bf16 *)p)[i] = td__f32_to_bf16((float)v); break;
    case ncclInt64: ((int64_t *)p)[i] = (int64_t)v; break;
    case ncclInt32: ((int32_t *)p)[i] = (int32_t)v; break;
    default: ((uint8_t *)p)[i] = (uint8_t)v; break;
    }
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t t, ncclScalarResidence_t residence, ncclComm_t c)
{
    settled(c);
    int i = 0;
    while (i < MOST_OPS && c->op[i].live)
        i++;
    if (i == MOST_OPS || residence != ncclScalarHostImmediate)
        broken("operators are not destroyed");
    c->op[i].live = true;
    c->op[i].by = get(t, scalar, 0);
    *op = (ncclRedOp_t)(ncclNumOps + i);
    return ncclSuccess;
}
ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t c)
{
    c->op[op - ncclNumOps].live = false;
    return ncclSuccess;
}

/* ---- collectives ----------------------------------------------------------------------------------------------------------------------- */
enum { BROADCAST, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, REDUCE };
typedef struct {
    ncclComm_t c;
    int kind, root;
    const char *in;
    char *out;
    int64_t n;
    ncclDataType_t t;
    ncclRedOp_t op;                            /* of NCCL's own; operators that multiply: 99                                       */
    double by;
    bool fails, hangs;
} call;

/* On an abort everybody goes through. */
static void meet(ncclComm_t c)
{
    atomic_store(&c->at->step[c->rank], ++c->step);
    for (int r = 0; r < c->ranks; r++)
        while (atomic_load(&c->at->step[r]) < c->step && !c->aborted)
            usleep(50);
}

/* Elements from..from+m of every part. */
static void piece(const call *k, int64_t from, int64_t m)
{
    ncclComm_t c = k->c;
    const size_t size = size_of(k->t);
    const int parts = k->kind == REDUCE_SCATTER ? c->ranks : 1;
    for (int part = 0; part < parts && (k->kind != BROADCAST || c->rank == k->root); part++)
        for (int64_t i = 0; i < m; i++)
            set(k->t, c->at->data[c->rank] + part * PIECE, i, get(k->t, k->in, part * k->n + from + i) * (k->op == 99 ? k->by : 1));
    meet(c);
    const int base = (k->kind == REDUCE_SCATTER ? c->rank : 0) * PIECE;
    for (int64_t i = 0; i < m && !c->aborted; i++) {
        if (k->kind == BROADCAST)
            memcpy(k->out + (size_t)(from + i) * size, c->at->data[k->root] + (size_t)i * size, size);
        for (int r = 0; r < c->ranks && k->kind == ALL_GATHER; r++)
            memcpy(k->out + (size_t)(r * k->n + from + i) * size, c->at->data[r] + (size_t)i * size, size);
        if (k->kind != ALL_REDUCE && k->kind != REDUCE_SCATTER && (k->kind != REDUCE || k->root != c->rank))
            continue;
        double v = get(k->t, c->at->data[0] + base, i);
        for (int r = 1; r < c->ranks; r++) {
            double x = get(k->t, c->at->data[r] + base, i);
            v = k->op == ncclMax ? (x > v ? x : v) : k->op == ncclMin ? (x < v ? x : v) : k->op == ncclProd ? v * x : v + x;
        }
        set(k->t, k->out, from + i, k->op == ncclAvg ? v / c->ranks : v);
    }
    meet(c);
}

static void collective(void *of)
{
    const call *k = of;
    ncclComm_t c = k->c;
    c->at->call[c->rank].kind = k->kind, c->at->call[c->rank].count = k->n, c->at->call[c->rank].dtype = k->t;
    c->at->call[c->rank].op = k->op, c->at->call[c->rank].root = k->root;
    if (k->fails)
        c->async = ncclRemoteError;
    meet(c);
    bool same = !k->fails && !k->hangs;
    for (int r = 0; r < c->ranks; r++)
        same &= memcmp(&c->at->call[r], &c->at->call[c->rank], sizeof c->at->call[r]) == 0;
    while (!same && !c->aborted)
        usleep(100);
    meet(c);
    const int64_t most = PIECE / (int64_t)size_of(k->t);
    for (int64_t from = 0; from < k->n && !c->aborted; from += most)
        piece(k, from, k->n - from < most ? k->n - from : most);
    c->running--;
}

static bool grouped;

static ncclResult_t enqueue(call k, cudaStream_t stream)
{
    ncclComm_t c = k.c;
    settled(c);
    if (grouped)
        broken("a collective in a group: not made up here");
    if ((int)k.op >= ncclNumOps) {
        if (!c->op[k.op - ncclNumOps].live)
            broken("an operator was used after it was destroyed");
        k.by = c->op[k.op - ncclNumOps].by;
        k.op = (ncclRedOp_t)99;
    }
    c->collectives++;
    k.fails = told("error") && c->collectives == 2;
    k.hangs = told("hang") && c->collectives == 2;
    call *made = malloc(sizeof *made);
    *made = k;
    c->running++;
    fake_gpu_enqueue(stream, collective, made);
    return later(c);
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    return enqueue((call){ .c = c, .kind = ALL_REDUCE, .in = in, .out = out, .n = (int64_t)n, .t = t, .op = op }, s);
}
ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t s)
{
    return enqueue((call){ .c = c, .kind = BROADCAST, .in = in, .out = out, .n = (int64_t)n, .t = t, .root = root }, s);
}
ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    return enqueue((call){ .c = c, .kind = REDUCE_SCATTER, .in = in, .out = out, .n = (int64_t)n, .t = t, .op = op }, s);
}
ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t s)
{
    return enqueue((call){ .c = c, .kind = ALL_GATHER, .in = in, .out = out, .n = (int64_t)n, .t = t }, s);
}
ncclResult_t ncclReduce(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, int root, ncclComm_t c, cudaStream_t s)
{
    return enqueue((call){ .c = c, .kind = REDUCE, .in = in, .out = out, .n = (int64_t)n, .t = t, .op = op, .root = root }, s);
}

/* ---- messages --------------------------------------------------------------------------------------------------------------------------- */
enum { MOST_MESSAGES = 64 };
typedef struct { bool sends; char *data; int64_t n, done; ncclDataType_t t; int peer; } message;
typedef struct { ncclComm_t c; int n; message m[MOST_MESSAGES]; bool fails, hangs; } group;
static group open_group;
static cudaStream_t group_stream;

static bool first_to_peer(const group *g, int i)
{
    for (int k = 0; k < i; k++)
        if (g->m[k].peer == g->m[i].peer && g->m[k].sends == g->m[i].sends && g->m[k].done < g->m[k].n)
            return false;
    return true;
}

/* A piece of a message, if it is its turn. Those whose sizes differ wait for ever. */
static void go_on(group *g, message *m)
{
    const size_t size = size_of(m->t);
    const int me = g->c->rank, from = m->sends ? me : m->peer, to = m->sends ? m->peer : me;
    const int64_t most = PIECE / (int64_t)size, left = m->n - m->done, n = left < most ? left : most;
    if (atomic_load(&g->c->at->mail[from][to].laid) == atomic_load(&g->c->at->mail[from][to].taken)) {
        if (!m->sends)
            return;
        memcpy(g->c->at->mail[from][to].data, m->data + (size_t)m->done * size, (size_t)n * size);
        g->c->at->mail[from][to].count = m->n, g->c->at->mail[from][to].dtype = m->t;
        m->done += n;
        atomic_fetch_add(&g->c->at->mail[from][to].laid, 1);
    } else if (!m->sends && g->c->at->mail[from][to].count == m->n && g->c->at->mail[from][to].dtype == (int64_t)m->t) {
        memcpy(m->data + (size_t)m->done * size, g->c->at->mail[from][to].data, (size_t)n * size);
        m->done += n;
        atomic_fetch_add(&g->c->at->mail[from][to].taken, 1);
    }
}

static void exchange(void *of)
{
    group *g = of;
    if (g->fails)
        g->c->async = ncclRemoteError;
    for (bool all = false; !all && !g->c->aborted; usleep(all ? 0 : 20)) {
        all = !g->fails && !g->hangs;
        for (int i = 0; i < g->n && !g->fails && !g->hangs; i++) {
            if (g->m[i].done < g->m[i].n && first_to_peer(g, i))
                go_on(g, &g->m[i]);
            all &= g->m[i].done == g->m[i].n;
        }
    }
    g->c->running--;
}

ncclResult_t ncclGroupStart(void);             /* the header has no prototypes of these two                                       */
ncclResult_t ncclGroupEnd(void);

ncclResult_t ncclGroupStart(void)
{
    if (grouped)
        broken("a group in a group: not made up here");
    grouped = true;
    open_group = (group){ 0 };
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (!grouped)
        broken("a group ends that was not begun");
    grouped = false;
    ncclComm_t c = open_group.c;
    if (!c)
        return ncclSuccess;
    c->collectives++;
    open_group.fails = told("error") && c->collectives == 2;
    open_group.hangs = told("hang") && c->collectives == 2;
    group *made = malloc(sizeof *made);
    *made = open_group;
    c->running++;
    fake_gpu_enqueue(group_stream, exchange, made);
    return later(c);
}

static ncclResult_t add(message m, ncclComm_t c, cudaStream_t s)
{
    const bool alone = !grouped;
    settled(c);
    if (m.peer < 0 || m.peer >= c->ranks)
        broken("a message with a rank that is none");
    if (alone)
        ncclGroupStart();
    if (open_group.n == MOST_MESSAGES)
        broken("more messages in a group than are made up here");
    open_group.c = c;
    open_group.m[open_group.n++] = m;
    group_stream = s;
    return alone ? ncclGroupEnd() : ncclSuccess;
}

ncclResult_t ncclSend(const void *data, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return add((message){ true, (char *)(uintptr_t)data, (int64_t)n, 0, t, peer }, c, s);
}
ncclResult_t ncclRecv(void *data, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return add((message){ false, data, (int64_t)n, 0, t, peer }, c, s);
}
