/* plugins/cuda/nccl.c: a communicator of NCCL, from the first collective of GPU memory of the world or a group to its end.
 *
 * It is non-blocking: what takes NCCL long on the host (meeting, connecting) is polled, so that a dead peer or the deadline ends it. An error ends
 * in ncclCommAbort, which also lets kernels on the GPU come to an end; a good end is ncclCommFinalize, then ncclCommDestroy. Abort may come
 * from another thread, so every use of the communicator is under the state's lock, and nobody sleeps with it.
 */
#include "nccl_impl.h"
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int nccl_failed(const nccl_state *s, int result, const char *call, char *error, size_t size)
{
    const char *more = s->comm ? s->lib->last_error(s->comm) : NULL;
    snprintf(error, size, "%s failed: %s%s%.200s", call, s->lib->error_string(result), more && *more ? ": " : "", more ? more : "");
    return result == NCCL_REMOTE_ERROR ? TD_ERR_PEER : TD_ERR_DEVICE;
}

int nccl_settle(nccl_state *s, int result, const char *call, const td_patience *patience, char *error, size_t size)
{
    int code = 0;
    for (int64_t looks = 0; result == NCCL_IN_PROGRESS; looks++) {
        pthread_mutex_unlock(&s->lock);
        if (looks < 200)                               /* enqueueing takes microseconds, meeting seconds                          */
            sched_yield();
        else
            usleep(looks < 1000 ? 20 : 500);
        code = looks % 64 == 63 ? patience->ask(patience->of) : 0;
        pthread_mutex_lock(&s->lock);
        if (!s->comm && !code)
            code = TD_ERR_ABORTED;
        if (code) {
            snprintf(error, size, "%s was given up", call);
            return code;
        }
        int asked = s->lib->async_error(s->comm, &result);
        if (asked != NCCL_OK)
            result = asked;
    }
    return result == NCCL_OK ? 0 : nccl_failed(s, result, call, error, size);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------------ */

static int load(char *error, size_t size)
{
    return nccl_open_library(error, size) ? 0 : TD_ERR_UNSUPPORTED;
}

static int make_id(char id[TD_COMM_ID], char *error, size_t size)
{
    nccl_state none = { .lib = nccl_open_library(error, size) };
    nccl_id made;
    int result = none.lib ? none.lib->get_id(&made) : NCCL_OK;
    if (!none.lib)
        return TD_ERR_UNSUPPORTED;
    memcpy(id, made.bytes, sizeof made.bytes);
    return result == NCCL_OK ? 0 : nccl_failed(&none, result, "ncclGetUniqueId", error, size);
}

static void free_state(nccl_state *s)
{
    if (s->stream)
        cuda_stream_free(s->index, s->stream);
    cuda_event_free(s->index, s->ready);
    if (s->byte)
        cuda_free(s->index, s->byte);
    pthread_mutex_destroy(&s->lock);
    cuda_host->free(s);
}

static int connect_ranks(nccl_state *s, const char id[TD_COMM_ID], const td_patience *patience, char *error, size_t size)
{
    nccl_id given;
    nccl_config config = { .size = sizeof config, .magic = 0xcafebeef, .version = NCCL_CONFIG_SINCE, .blocking = 0, .cga_cluster_size = INT_MIN,
                           .min_ctas = INT_MIN, .max_ctas = INT_MIN, .split_share = INT_MIN };
    memcpy(given.bytes, id, sizeof given.bytes);
    pthread_mutex_lock(&s->lock);
    int result = s->lib->init(&s->comm, s->ranks, given, s->rank, &config);
    int code = nccl_settle(s, result, "ncclCommInitRankConfig", patience, error, size);
    if (code && s->comm) {
        s->lib->abort(s->comm);
        s->comm = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    return code;
}

static int open_state(int index, const char id[TD_COMM_ID], int rank, int ranks, const td_patience *patience, void **state, char *error, size_t size)
{
    nccl_state *s = cuda_host->alloc(sizeof *s);
    if (!s || cuda_use(index)) {
        snprintf(error, size, "no memory");
        cuda_host->free(s);
        return TD_ERR_MEMORY;
    }
    *s = (nccl_state){ .lib = nccl_open_library(error, size), .index = index, .rank = rank, .ranks = ranks };
    pthread_mutex_init(&s->lock, NULL);
    s->stream = cuda_stream_new(index, true);
    s->ready = cuda_event_new(index);
    s->byte = cuda_alloc(index, 1);
    int code = s->stream && s->ready && s->byte ? 0 : cuda_host->pending();
    code = code ? code : connect_ranks(s, id, patience, error, size);
    if (code) {
        free_state(s);
        return code;
    }
    nccl_memory_enroll(s);
    *state = s;
    return 0;
}

/* ---- errors and the end ----------------------------------------------------------------------------------------------------------------- */

static int check(void *state, char *error, size_t size)
{
    nccl_state *s = state;
    int result = NCCL_OK, code = 0;
    pthread_mutex_lock(&s->lock);
    if (s->comm) {
        int asked = s->lib->async_error(s->comm, &result);
        result = asked != NCCL_OK ? asked : result;
        if (result != NCCL_OK && result != NCCL_IN_PROGRESS)
            code = nccl_failed(s, result, "NCCL", error, size);
    }
    pthread_mutex_unlock(&s->lock);
    return code;
}

static void abort_state(void *state)
{
    nccl_state *s = state;
    cuda_use(s->index);
    pthread_mutex_lock(&s->lock);
    if (s->comm) {
        s->lib->abort(s->comm);                        /* its registrations go with it                                            */
        s->comm = NULL;
        nccl_memory_resign(s);
    }
    pthread_mutex_unlock(&s->lock);
}

static int close_state(void *state, bool well, const td_patience *patience, char *error, size_t size)
{
    nccl_state *s = state;
    int code = 0;
    cuda_use(s->index);
    pthread_mutex_lock(&s->lock);
    if (well && s->comm) {
        nccl_memory_resign(s);
        code = nccl_settle(s, s->lib->finalize(s->comm), "ncclCommFinalize", patience, error, size);
        if (!code) {
            s->lib->destroy(s->comm);
            s->comm = NULL;
        }
    }
    pthread_mutex_unlock(&s->lock);
    abort_state(s);
    nccl_memory_leave(s);
    free_state(s);
    return code;
}

/* ---- time ------------------------------------------------------------------------------------------------------------------------------- */

static void *timer_new(int index)
{
    cudaEvent_t event = NULL;
    cudaError_t e = cuda_use(index) ? cudaErrorInvalidDevice : cudaEventCreate(&event);
    if (e != cudaSuccess)
        cuda_failed(e, "an event cannot be made");
    return e == cudaSuccess ? event : NULL;
}

static double elapsed(int index, void *from, void *to)
{
    float ms = 0;
    if (cuda_use(index) || cudaEventElapsedTime(&ms, from, to) != cudaSuccess)
        ms = 0;
    return (double)ms;
}

const td_device_comm nccl_comm_ops = {
    .name = "nccl",
    .load = load,
    .make_id = make_id,
    .open = open_state,
    .start = nccl_start,
    .check = check,
    .abort = abort_state,
    .close = close_state,
    .alloc = nccl_alloc,
    .free = nccl_free,
    .timer_new = timer_new,
    .elapsed = elapsed,
};
