/* plugins/mpi/wire.c: td_wire over MPI: nonblocking messages on two duplicates of the communicator, so that neither the library's schedules and
 * users' messages nor MPI's own collectives can be taken for each other.
 *
 * MPI counts in int, so a long message goes as several of the same tag; MPI keeps their order. of[0] is the request of a short message; of a
 * long one of[1] holds an array of requests, of[2] how many, of[3] how many of them are done.
 */
#include "mpi_impl.h"
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static int failed(mpi_state *s, const char *call, int peer, int rc)
{
    char text[300];
    mpi_text(rc, text, sizeof text);
    return peer < 0 ? s->host->fail(s->comm, TD_ERR_PEER, "%s failed on rank %d: %s", call, s->rank, text)
                    : s->host->fail(s->comm, TD_ERR_PEER, "%s between ranks %d and %d failed: %s", call, s->rank, peer, text);
}

static MPI_Request request_of(const void *slot)
{
    MPI_Request request;
    memcpy(&request, slot, sizeof request);
    return request;
}

/* One part; data is only written to when receiving. */
static int post(mpi_state *s, bool send, int channel, int peer, int tag, char *data, int n, void *slot)
{
    MPI_Request request;
    int rc = send ? MPI_Isend(data, n, MPI_BYTE, peer, tag, s->channel[channel], &request)
                  : MPI_Irecv(data, n, MPI_BYTE, peer, tag, s->channel[channel], &request);
    if (rc != MPI_SUCCESS)
        return failed(s, send ? "MPI_Isend" : "MPI_Irecv", peer, rc);
    memcpy(slot, &request, sizeof request);
    return 0;
}

static int start(void *state, bool send, int channel, int peer, int tag, char *data, size_t n, td_wire_request *r)
{
    _Static_assert(sizeof(MPI_Request) <= sizeof(void *), "a request fits into a pointer");
    mpi_state *s = state;
    *r = (td_wire_request){ { NULL } };
    if (n <= TD_MPI_MOST)
        return post(s, send, channel, peer, tag, data, (int)n, &r->of[0]);
    size_t parts = (n + TD_MPI_MOST - 1) / TD_MPI_MOST;
    void **list = s->host->base->alloc(parts * sizeof *list);
    if (!list)
        return s->host->fail(s->comm, TD_ERR_MEMORY, "no memory for a message of %zu MiB between ranks %d and %d", n >> 20, s->rank, peer);
    r->of[1] = list;
    int code = 0;
    for (size_t i = 0; i < parts && !code; i++) {
        size_t left = n - i * TD_MPI_MOST;
        code = post(s, send, channel, peer, tag, data + i * TD_MPI_MOST, left < TD_MPI_MOST ? (int)left : TD_MPI_MOST, &list[i]);
        r->of[2] = (void *)(uintptr_t)(i + (code == 0));
    }
    return code;
}

static int send(void *state, int channel, int peer, int tag, const void *data, size_t n, td_wire_request *r)
{
    return start(state, true, channel, peer, tag, (char *)data, n, r);
}

static int recv(void *state, int channel, int peer, int tag, void *data, size_t n, td_wire_request *r)
{
    return start(state, false, channel, peer, tag, data, n, r);
}

static int test_one(mpi_state *s, void *slot)
{
    MPI_Request request = request_of(slot);
    MPI_Status status = { .MPI_SOURCE = -1 };
    int done = 0, rc = MPI_Test(&request, &done, &status);
    memcpy(slot, &request, sizeof request);
    if (rc != MPI_SUCCESS)
        return failed(s, "MPI_Test of a message", status.MPI_SOURCE, rc);
    return done;
}

static int test(void *state, td_wire_request *r)
{
    mpi_state *s = state;
    void **list = r->of[1];
    if (!list)
        return test_one(s, &r->of[0]);
    uintptr_t parts = (uintptr_t)r->of[2], done = (uintptr_t)r->of[3];
    int code = 1;
    while (done < parts && (code = test_one(s, &list[done])) == 1)
        done++;
    r->of[3] = (void *)done;
    if (done < parts)
        return code;
    s->host->base->free(list);
    *r = (td_wire_request){ { NULL } };
    MPI_Request none = MPI_REQUEST_NULL;       /* whoever asks again is told again that it is done                             */
    memcpy(&r->of[0], &none, sizeof none);
    return 1;
}

/* A receive that nothing has matched is taken back; what is under way goes on into memory that the caller keeps. */
static void drop_one(void *slot)
{
    MPI_Request request = request_of(slot);
    if (request == MPI_REQUEST_NULL)
        return;
    MPI_Cancel(&request);
    MPI_Request_free(&request);
}

static void drop(void *state, td_wire_request *r)
{
    mpi_state *s = state;
    void **list = r->of[1];
    uintptr_t parts = (uintptr_t)r->of[2];
    if (!list && r->of[0])
        drop_one(&r->of[0]);
    for (uintptr_t i = (uintptr_t)r->of[3]; list && i < parts; i++)
        drop_one(&list[i]);
    s->host->base->free(list);
    *r = (td_wire_request){ { NULL } };
}

int wire_open(mpi_state *s)
{
    for (int i = 0; i < 2; i++) {
        int rc = MPI_Comm_dup(s->mpi, &s->channel[i]);
        if (rc != MPI_SUCCESS) {
            char text[200];
            mpi_text(rc, text, sizeof text);
            return s->host->base->fail(TD_ERR_LAUNCH, "td_init: MPI_Comm_dup failed: %s", text);
        }
        MPI_Comm_set_errhandler(s->channel[i], MPI_ERRORS_RETURN);
    }
    return 0;
}

void wire_close(mpi_state *s)
{
    for (int i = 0; i < 2; i++)
        MPI_Comm_free(&s->channel[i]);
}

const td_wire mpi_wire = { .send = send, .recv = recv, .test = test, .drop = drop };
