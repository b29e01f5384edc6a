/* job/finish.c: the end of a job: wait, release everything that lives, tell the others, report.
 *
 * The order matters: started work may still use memory; loaders have threads that use datasets; ddps hold modules' parameters and wait for
 * buckets; optimizers hold flats; scopes hold the rest. Only when nothing uses the arena any more does the communicator close.
 */
#include <string.h>
#include <data_impl.h>
#include <ddp_impl.h>
#include <io_impl.h>
#include <nn_impl.h>
#include <optim_impl.h>
#include <tandem/ops.h>
#include "job_impl.h"

static void release_objects(void)
{
    td__job_state_free_all();
    td__data_free_all();
    td__on_batch = NULL;
    td_samples(NULL);
    td__graphs_free_all();                             /* they hold on to parameters and batches                                 */
    td__autocast_drop();
    td__ddp_free_all();
    td__optim_free_all();
    td__nn_free_all();
    td__io_free_all();
    td__scope_close_root();
}

static int exit_status(bool well)
{
    bool again = td__job_state_ended();
    return !well ? 1 : again ? TD_EXIT_AGAIN : 0;
}

int td_finish(void)
{
    TD_ENTER();
    td__trap_look(true);                       /* of the last steps                                                           */
    if (!td__job_running) {
        release_objects();
        td__comm_close_world(true);            /* the world of one that exists without td_init                             */
        return exit_status(!td__pending() && !td__had_error());
    }
    td__comm_drain();
    release_objects();
    bool well = !td__pending() && !td__had_error();
    if (well)                                  /* closing may wait for the others: the launcher sees who has come to its end */
        atomic_store(&td__box_get()->state, TD_BOX_FINISHED);
    td__comm_close_world(well);
    if (!well && *td__box_path() && strcmp(td__world_now()->launcher, "tandem"))   /* our launcher names it itself */
        td__info("there was an error; what this rank did last is in %s", td__box_path());
    td__box_close(well);
    td__world_set(&(td__world){ .size = 1, .local_size = 1, .launcher = "none" });
    td__job_running = false;
    return exit_status(well);
}
