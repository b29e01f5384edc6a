/* job/init.c: from a process to a rank: the world, the black box, threads, the device, the communicator.
 */
#include <omp.h>
#include <string.h>
#include <sched.h>
#include <unistd.h>
#include <stdlib.h>
#include <data_impl.h>
#include <meet.h>
#include <tandem/ops.h>
#include "job_impl.h"

bool td__job_running;

/* Cores that this rank may count as its own: its share of those that all ranks of the host may use. Launchers that bind have cut the mask
 * already; then all of it is ours. */
static int share_of_cores(const td__world *w)
{
    cpu_set_t mine;
    int cores = sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine) : 1;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    if (w->local_size > 1 && (cores >= online || cores >= w->local_size))
        cores /= w->local_size;
    return cores > 0 ? cores : 1;
}

static int set_threads(const td__world *w)
{
    int threads = (int)td__env_number(TD_ENV_THREADS, 0, 1, 4096);
    if (threads == 0 && td__pending())
        return td__pending();
    const char *omp = td__getenv("OMP_NUM_THREADS");
    if (threads > 0)
        omp_set_num_threads(threads);
    else if (!(omp && *omp) && w->local_size > 1)
        omp_set_num_threads(share_of_cores(w));
    return 0;
}

static int start(const td__world *w, const td_plugin *plugin, void *given)
{
    td__world_set(w);
    td__box_open();                            /* without a file everything works, but for the story of a death */
    int code = set_threads(w);
    code = code ? code : td__device_set_default((td_device){ TD_DEFAULT, 0 });
    code = code ? code : td__comm_open_world(plugin, given);
    if (code) {
        td__meet_end(false);
        td__box_close(true);                   /* the error has said it; there is nothing more in the box                    */
        td__world_set(&(td__world){ .size = 1, .local_size = 1, .launcher = "none" });
        return code;
    }
    td__on_batch = td_samples;
    td__job_running = true;
    return 0;
}

static int check_first(const char *who)
{
    if (td__job_running)
        return td__fail(TD_ERR_STATE, "%s: the job is running already; td_finish ends it, and then it may be called again", who);
    return td__pending();
}

/* Ranks on several hosts that MPI does not carry meet at a store, and so do those whose launcher does not say which of them share a host. */
static int meet(td__world *w)
{
    if (!td__meet_wanted(w))
        return 0;
    int code = td__meet(w);
    const char *wanted = td__env(TD_ENV_COMM);
    if (code == 0 && w->local_size == w->size && !(wanted && !strcmp(wanted, "store")))
        td__meet_end(true);                    /* they are all here: nothing more is needed                                  */
    return code;
}

int td_init(int *argc, char ***argv)
{
    TD_ENTER();
    (void)argc, (void)argv;
    td__world w;
    char error[400];
    int code = check_first("td_init");
    if (code)
        return code;
    code = td__world_find(td__getenv, &w, error, sizeof error);
    if (code)
        return td__fail(code, "td_init: %s", error);
    code = meet(&w);
    return code ? code : start(&w, NULL, NULL);
}

int td_init_plugin(const td_plugin *plugin, void *world)
{
    TD_ENTER();
    td__world w = *td__world_now();
    char error[400];
    int code = check_first("td_init_plugin");
    if (code)
        return code;
    if (!plugin || plugin->abi != TD_PLUGIN_ABI || !plugin->comm || !plugin->comm->find)
        return td__fail(TD_ERR_ARGUMENT, "td_init_plugin: the plug-in brings no transport for this version of Tandem");
    code = plugin->comm->find(&td__host, world, &w, error, sizeof error);
    return code ? td__fail(code, "%s", error) : start(&w, plugin, world);
}
