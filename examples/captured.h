/* examples/captured.h: how the examples' --capture runs a step: its first call is recorded, later ones are replays of that.
 *
 * The step is a function of its inputs: it reads nothing on the host, and what changes from step to step (the batch, the learning rate) is
 * made before it or read anew by a replay (tandem/capture.h). Its result is read afterwards.
 */
#ifndef EXAMPLES_CAPTURED_H
#define EXAMPLES_CAPTURED_H
#include <tandem.h>

typedef struct {
    td_tensor *(*step)(td_tensors inputs, void *user);
    void     *user;
    bool      on;              /* --capture; otherwise the step is called each time                  */
    td_graph *graph;
    td_shape  shape;           /* of input 0 when the step was captured                                */
} captured;

static inline td_tensor *captured_step(captured *c, td_tensors inputs)
{
    td_shape shape = td_shape_of(inputs.list[0]);
    if (!c->on)
        return c->step(inputs, c->user);
    if (!c->graph) {
        c->graph = td_capture(c->step, c->user, inputs, NULL);
        c->shape = shape;
        return td_graph_result(c->graph);
    }
    /* A graph has the shapes that it was captured with: the last batch of an epoch may be smaller, and is stepped as it comes. */
    bool same = shape.ndim == c->shape.ndim;
    for (int i = 0; same && i < shape.ndim; i++)
        same = shape.dim[i] == c->shape.dim[i];
    return same ? td_replay(c->graph, inputs) : c->step(inputs, c->user);
}

static inline void captured_end(captured *c)
{
    if (c->graph)
        td_log0("--capture: %lld steps were replays", (long long)td_graph_replays(c->graph));
    td_graph_free(c->graph);
    c->graph = NULL;
}
#endif
