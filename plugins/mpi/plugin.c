/* plugins/mpi/plugin.c: MPI found, initialised when nobody has, and left in peace when somebody has.
 *
 * MPI may be initialised once per process, so what we initialise is finalised at the process's end and not by td_finish: td_init may be
 * called again. After an error it is not finalised at all: MPI_Finalize would wait for ranks that are gone.
 */
#include "mpi_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static bool ours, well = true;

void mpi_text(int rc, char *into, size_t size)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    if (MPI_Error_string(rc, text, &length) != MPI_SUCCESS)
        snprintf(text, sizeof text, "error %d", rc);
    snprintf(into, size, "%s", text);
}

void mpi_ended(bool ended_well)
{
    static bool failed;                        /* also a group: its peers may be gone                                           */
    failed |= !ended_well;
    well = !failed;
}

static void finalise(void)
{
    int done = 0;
    MPI_Finalized(&done);
    if (ours && well && !done)
        MPI_Finalize();
}

/* Waiting ranks give up the core between two looks, unless the user has decided otherwise; an abort of ours has been
 * explained already and needs no backtrace of Open MPI's. */
static int initialise(char *error, size_t size)
{
    int provided, rc;
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    setenv("OMPI_MCA_opal_signal", "7,8,11", 0);
    rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided);
    if (rc != MPI_SUCCESS) {
        snprintf(error, size, "MPI_Init_thread failed (%d)", rc);
        return TD_ERR_LAUNCH;
    }
    ours = true;
    well = false;                              /* until a communicator has been closed well */
    atexit(finalise);
    return 0;
}

static int make_ready(bool given, char *error, size_t size)
{
    int done = 0, level = 0;
    MPI_Finalized(&done);
    if (done) {
        snprintf(error, size, "MPI has been finalised already");
        return TD_ERR_STATE;
    }
    MPI_Initialized(&done);
    if (!done && given) {
        snprintf(error, size, "td_init_mpi: MPI is not initialised; call MPI_Init_thread with MPI_THREAD_MULTIPLE first");
        return TD_ERR_STATE;
    }
    int code = done ? 0 : initialise(error, size);
    if (code)
        return code;
    MPI_Query_thread(&level);
    if (level < MPI_THREAD_MULTIPLE) {
        snprintf(error, size, "%sMPI was initialised with %s, but collectives run on a thread of their own: MPI_THREAD_MULTIPLE is needed "
                 "(MPI_Init_thread)", given ? "td_init_mpi: " : "",
                 level == MPI_THREAD_SINGLE ? "MPI_THREAD_SINGLE" : level == MPI_THREAD_FUNNELED ? "MPI_THREAD_FUNNELED" : "MPI_THREAD_SERIALIZED");
        return TD_ERR_STATE;
    }
    return 0;
}

/* A name and a secret for the ranks' meeting on each host, the same on all ranks and unlike any other job's. */
static int name_job(MPI_Comm comm, td__world *out)
{
    unsigned char random[16 + sizeof out->secret];
    if (out->rank == 0 && getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return MPI_ERR_OTHER;
    int rc = MPI_Bcast(random, sizeof random, MPI_BYTE, 0, comm);
    if (rc != MPI_SUCCESS)
        return rc;
    memcpy(out->job, "mpi-", 5);
    for (int i = 0; i < 16; i++)
        snprintf(out->job + 4 + 2 * i, 3, "%02x", random[i]);
    memcpy(out->secret, random + 16, sizeof out->secret);
    out->has_secret = true;
    snprintf(out->launcher, sizeof out->launcher, "mpi");
    return MPI_SUCCESS;
}

static int find(const td_host *host, void *world, td__world *out, char *error, size_t size)
{
    (void)host;
    int code = make_ready(world != NULL, error, size);
    if (code)
        return code;
    MPI_Comm comm = world ? *(MPI_Comm *)world : MPI_COMM_WORLD, here;
    int rc = comm == MPI_COMM_NULL ? MPI_ERR_COMM : MPI_Comm_rank(comm, &out->rank);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_size(comm, &out->size);
    if (rc == MPI_SUCCESS)
        rc = MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, out->rank, MPI_INFO_NULL, &here);
    if (rc == MPI_SUCCESS) {
        MPI_Comm_rank(here, &out->local_rank);
        MPI_Comm_size(here, &out->local_size);
        MPI_Comm_free(&here);
        if (world)
            rc = name_job(comm, out);
    }
    if (rc != MPI_SUCCESS) {
        char text[200];
        mpi_text(rc, text, sizeof text);
        snprintf(error, size, "td_init_mpi: the communicator cannot be used (%s)", text);
        return TD_ERR_ARGUMENT;
    }
    return 0;
}

static const char *describe(char *into, size_t size)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = '\0';
    snprintf(into, size, "%s", text);
    return into;
}

const td_comm_backend mpi_backend = {
    .name = "mpi",
    .on_thread = true,
    .find = find,
    .open = mpi_open,
    .run = mpi_run,
    .split = mpi_split,
    .wire = &mpi_wire,
    .abort = mpi_abort,
    .close = mpi_close,
};

static const td_plugin plugin = { .abi = TD_PLUGIN_ABI, .name = "mpi", .comm = &mpi_backend, .describe = describe };

TD_API const td_plugin *td_plugin_v1(const td_host *host);

const td_plugin *td_plugin_v1(const td_host *host)
{
    return host && host->abi == TD_PLUGIN_ABI ? &plugin : NULL;
}

int td_init_mpi(MPI_Comm comm)
{
    return td_init_plugin(&plugin, &comm);
}
