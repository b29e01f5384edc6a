/* tandem/job.h: the life of a job.
 */
#ifndef TANDEM_JOB_H
#define TANDEM_JOB_H
#include <tandem/comm.h>
#include <tandem/plugin.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Finds the world (order in docs/design/ranks.md): our launcher's variables, torchrun's, Open MPI's or PMI's, a Slurm step; else a
 * world of one. argc and argv are not changed today; NULL is fine. 0 or a negative code. A second call is an error. */
TD_API int td_init(int *argc, char ***argv);
/* As td_init, with a transport that the caller's program owns (td_init_mpi calls it). */
TD_API int td_init_plugin(const td_plugin *plugin, void *world);
/* Waits for started work, releases everything that lives (loaders, optimizers, ddps, modules, tensors, threads), closes the
 * communicators. Returns the exit status: 0, or 1 when an error is or was pending. td_init may be called again after it. */
TD_API int td_finish(void);

#ifdef __cplusplus
}
#endif
#endif
