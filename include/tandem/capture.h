/* tandem/capture.h: a training step, recorded once and replayed without calling it.
 *
 *     static td_tensor *step(td_tensors in, void *user)            one whole step: forward, backward, optimizer
 *     {
 *         td_tensor *loss = td_cross_entropy(td_forward(net, in.list[0]), in.list[1], NULL);
 *         td_backward(loss);
 *         td_optim_step(opt);
 *         return loss;
 *     }
 *     td_graph *graph = td_capture(step, NULL, inputs, NULL);      the first step, for real
 *     while (…) {
 *         td_optim_set_lr(opt, -1, …);                             read by the next replay
 *         td_tensor *loss = td_replay(graph, inputs);              every later one
 *     }
 *     td_graph_free(graph);
 *
 * On the CPU a replay runs what was recorded in order, on the same memory, with the same bits as the step itself; nothing is planned, checked or
 * put on a tape again. On a GPU the list becomes one CUDA graph, and a replay is one launch. What a step made has no place of its own between replays,
 * except what it returns and what the program keeps (td_keep inside the step): these are written anew by each replay.
 *
 * What a replay reads anew: its inputs, the sample numbers (td_samples, td_loader_next), the step counter, the seed, learning rates, the loss scale,
 * and the loss's divisor. Everything else is what it was in the recorded call: shapes, attributes, which branch of the step was taken,
 * numbers that the step computed itself. So while it is recorded a step may not read tensors or the numbers above on the host (td_item, td_data,
 * td_copy_out, td_step_get, …), nor call what has no place in a list: td_checkpoint, td_hook's functions, td_loader_next, td_grad.
 * The first such call is named with its line; the call of the step counts all the same, and td_capture returns the poisoned graph.
 */
#ifndef TANDEM_CAPTURE_H
#define TANDEM_CAPTURE_H
#include <tandem/tensor.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_graph td_graph;
typedef struct {
    int64_t verify;               /* k: every k-th replay also calls the step, from the same state, and compares all bits; default 0: never */
    uint64_t reserved[4];
} td_capture_opts;

/* Figures of a graph. Of memory: bytes, on the CPU; on a GPU, whose graphs keep what their recording took, these are 0. */
typedef struct {
    int64_t planned;              /* the one stretch of memory in which replays put the step's results, gradients, copies and scratch, each where nothing
                                     else lives at that time: of results alone in the first replay, of all after it, 0 before              */
    int64_t apart;                /* the same things side by side                                                                        */
    int64_t eager;                /* what the step itself takes at most from the pool, above what lived before the call and without what outlives it */
    int64_t entries;              /* in the list: operations, backwards, steps of optimizers, …                                           */
    int64_t fused;                /* element-wise operations that run in chains, each chain one entry                                    */
    int64_t fell;                 /* requests for memory in the last replay that were not planned, or differed, and went to the pool           */
    uint64_t reserved[10];
} td_graph_figures;

/* Calls step(inputs, user) once, with copies of the inputs that the graph keeps, and records what it does. The step returns a tensor (its loss), or
 * NULL. Modules, optimizers and what `user` points to outlive the graph. Never NULL: yours to td_graph_free. */
TD_API td_graph *td_capture(td_tensor *(*step)(td_tensors inputs, void *user), void *user, td_tensors inputs, const td_capture_opts *opts);

/* Once more, with these inputs: as many, of the same shapes, dtypes and devices. Returns what the step returned: the graph's, its contents
 * valid until the next replay. Poison after an error. */
TD_API td_tensor *td_replay(td_graph *graph, td_tensors inputs);

TD_API td_tensor *td_graph_result(const td_graph *graph);   /* of the last replay, or of the recorded call; the graph's      */
TD_API int64_t    td_graph_replays(const td_graph *graph);  /* so far                                                       */
TD_API td_graph_figures td_graph_stats(const td_graph *graph);
TD_API void       td_graph_free(td_graph *graph);           /* NULL is fine                                                 */

#ifdef __cplusplus
}
#endif
#endif
