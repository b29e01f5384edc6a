/* tandem/job.h: the life of a job.
 */
#ifndef TANDEM_JOB_H
#define TANDEM_JOB_H
#include <tandem/ddp.h>
#include <tandem/plugin.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Finds the world (order in docs/design/ranks.md): our launcher's variables, torchrun's, Open MPI's or PMI's, a Slurm step; else a
 * world of one. argc and argv are not changed today; NULL is fine. 0 or a negative code. A second call is an error. */
TD_API int td_init(int *argc, char ***argv);
/* As td_init, with a transport that the caller's program owns (td_init_mpi calls it). */
TD_API int td_init_plugin(const td_plugin *plugin, void *world);
/* Waits for started work, releases everything that lives (loaders, optimizers, ddps, modules, the tensors of this thread's scopes, threads),
 * closes the communicators. Tensors that td_keep holds stay yours. Returns the exit status: 0, or 1 when an error is or was pending. td_init
 * may be called again after it. */
TD_API int td_finish(void);

/* ---- progress of a training loop -----------------------------------------------------------------------------------------
 * Rank 0 prints: on a terminal one line that is rewritten (bar, samples/s over all ranks, loss, exposed communication), elsewhere a
 * plain line now and then. The loss is read only when something is printed. */
typedef struct td_progress td_progress;
typedef struct {
    const char *title;            /* default "train"                                                                  */
    int64_t     steps;            /* of the whole loop; default 0: not known, no bar                                   */
    double      every_s;          /* seconds between plain lines; default 2                                           */
    const char *log;              /* a file for the plain lines, appended to; default none                            */
    uint64_t    reserved[4];
} td_progress_opts;
TD_API td_progress *td_progress_new(const td_progress_opts *opts);
/* rows of this rank; ddp may be NULL */
TD_API void td_progress_step(td_progress *progress, int64_t rows, td_tensor *loss, const td_ddp *ddp);
TD_API double td_progress_end(td_progress *progress);   /* the last plain line; frees; returns the seconds since _new      */

#ifdef __cplusplus
}
#endif
#endif
