/* tandem/job.h: the life of a job.
 */
#ifndef TANDEM_JOB_H
#define TANDEM_JOB_H
#include <tandem/io.h>
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
 * closes the communicators. Tensors that td_keep holds stay yours. Returns the exit status: 0; 1 when an error is or was pending; TD_EXIT_AGAIN
 * when a td_job_state has ended the loop on request. td_init may be called again after it. */
TD_API int td_finish(void);

/* ---- ending on request, and going on later ------------------------------------------------------------------------------
 * Batch systems send SIGTERM or SIGUSR1 before they end a job. A td_job_state is the request to be told: all ranks save the training state
 * after the same step and leave their loops, td_finish returns TD_EXIT_AGAIN (75, sysexits.h's EX_TEMPFAIL), and the batch script puts the
 * job back into the queue. Started again, the program goes on bit for bit. See docs/design/job.md and cluster/.
 *
 *     td_train_state all = { .model = net, .optims = &opt, .n_optims = 1, .loader = data, .ddp = ddp };
 *     td_job_state *job = td_job_state_open(&all, "run.state", NULL);               goes on from the file where there is one
 *     for (int64_t epoch = td_loader_epoch(data); epoch < 10 && !td_job_state_ending(job); epoch++)
 *         while (td_job_state_step(job) && td_loader_next(data, &b)) {
 *             TD_SCOPE();
 *             td_backward(td_cross_entropy(td_forward(net, b.x), b.y, NULL));
 *             td_optim_step(opt);
 *             all.step++;
 *         }
 *     return td_finish();
 *
 * Signals. Handlers of both are installed by td_job_state_open, not before. They note the signal and call the handler that was there before,
 * if there was one. A signal may reach one rank alone or all, once or more often: it is one request. The handlers that were there before
 * return with td_job_state_free; after a request they do not (a signal that comes while the program ends changes nothing).
 * Agreement. In each td_job_state_step the ranks exchange a few bytes without waiting for them; the next one reads what came, so a request
 * is met one step after it. A rank inside a long step, or a validation, asks nobody meanwhile. */
#define TD_EXIT_AGAIN 75
typedef struct td_job_state td_job_state;
typedef struct {
    int64_t  save_every;          /* default 0: only on request; else also after every so many steps (calls of td_job_state_step) */
    bool     quiet;               /* default false: rank 0 says when it goes on from the file, and when a request has come */
    uint64_t reserved[4];
} td_job_state_opts;
/* Collective over the world, as td_job_state_step. Where the file `path` exists (rank 0 of the state's ddp looks, without a ddp the world's)
 * the state is loaded, its `step` too; groups that train models of their own have a path each. The state stays yours and must live until
 * td_job_state_free; it may change. state and path NULL: nothing is loaded or saved; when td_job_state_step returns false you save.
 * Yours to free (td_finish frees what you left). */
TD_API td_job_state *td_job_state_open(td_train_state *state, const char *path, const td_job_state_opts *opts);
TD_API void td_job_state_free(td_job_state *job);         /* NULL is fine                                                      */
/* Between two steps (not between accumulating backwards, where nothing can be saved), as often on every rank. true: go on. false: the state
 * is saved on request, or there was an error; from then on always. The file is replaced by rename: an end at any moment leaves a whole one. */
TD_API bool td_job_state_step(td_job_state *job);
TD_API bool td_job_state_ending(const td_job_state *job); /* has td_job_state_step returned false? Not collective             */
TD_API bool td_job_state_resumed(const td_job_state *job);/* was the state loaded from the file?                              */

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
