/* bench/gpu/worker.h: a training step that is driven from outside, so that run.py can let this program and a peer take turns in one run.
 *
 * Commands, one a line on standard input; each is answered by one line on standard output:
 *     steps N      N steps, then the device is waited for        ms X
 *     losses N     N steps, each one's loss read                 losses X X …
 *     kernels N    N steps with every kernel timed               kernels {"name": [calls, ms], …}       (a GPU only)
 *     memory       the most bytes of device memory so far        bytes N
 *     quit
 * "ready" is written before the first command is read.
 */
#ifndef BENCH_WORKER_H
#define BENCH_WORKER_H
#include <tandem.h>

/* One step; the loss is not waited for. The tensor belongs to the caller's scope. */
typedef td_tensor *worker_step(void *user);
/* Serves until quit. 0, or 1 after an error, which is printed. */
int worker_serve(worker_step *step, void *user);
#endif
