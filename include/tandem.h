/* tandem.h: Tandem's public face, and a one-page tour.
 *
 *     td_init(&argc, &argv);                                 finds the ranks: alone, tandem run, mpirun, srun, torchrun
 *     td_module *net = td_nn_sequential(…);                  nn.h      modules own parameters
 *     td_ddp_new(net, NULL);                                 ddp.h     replicas in step; reduces while backward runs
 *     td_optim *opt = td_adamw_new(td_parameters(net), …);   optim.h   a step consumes the gradients
 *     td_loader *data = td_loader_new(…);                    data.h    every rank its share of each global batch
 *     while (td_loader_next(data, &b)) {
 *         TD_SCOPE();                                        scope.h   tensors made below die at the closing brace
 *         TD_AUTOCAST(TD_BF16);                              autograd.h if you like: 16 bits where that is safe
 *         td_tensor *loss = td_cross_entropy(td_forward(net, b.x), b.y, NULL);   ops.h
 *         td_backward(loss);                                 autograd.h
 *         td_optim_step(opt);
 *     }
 *     td_save(net, "net.safetensors");                       io.h      td_load; PyTorch reads it too
 *     return td_finish();                                    job.h     the exit status
 *
 *   In one call       td_fit(net, &(td_fit_opts){ .optim = opt, .train = data, .epochs = 10 }): the loop above, with validation, best
 *                     weights and more (fit.h)
 *   Without calling   td_capture(step, user, inputs, NULL) records a step, td_replay runs it again; one launch on a GPU (capture.h)
 *   To go on later    td_train_state_save, td_train_state_load (io.h); when a batch system warns: td_job_state (job.h)
 *   Who owns what     a td_tensor* returned by an operation    the innermost scope
 *                     anything from a _new, td_nn_* or         you, until something takes it; td_finish releases
 *                     td_dataset_*                             what you left
 *                     an argument said to be taken             the callee
 *                     a getter's result                        its parent
 *   Errors            handles are never NULL but for optional getters; the first error sticks; by default one sentence is
 *                     printed and the job aborts; td_errors(TD_ERRORS_RETURN) for embedders (error.h)
 *   Options           pointer to a literal; NULL, or zero in a field, means the default; TD_ZERO says zero
 *   Threads           objects are not shared between threads without your lock; a thread with its own objects is safe
 *   One's own         operation: op.h    module: nn.h    MPI program: mpi.h
 */
#ifndef TANDEM_H
#define TANDEM_H
#include <tandem/error.h>
#include <tandem/scope.h>
#include <tandem/tensor.h>
#include <tandem/ops.h>
#include <tandem/autograd.h>
#include <tandem/op.h>
#include <tandem/capture.h>
#include <tandem/nn.h>
#include <tandem/optim.h>
#include <tandem/data.h>
#include <tandem/comm.h>
#include <tandem/comm_raw.h>
#include <tandem/ddp.h>
#include <tandem/ddp_hook.h>
#include <tandem/io.h>
#include <tandem/fit.h>
#include <tandem/job.h>
#endif
