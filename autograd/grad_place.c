/* autograd/grad_place.c: gradients of pieces are written where they belong in the gradient of the whole.
 *
 * A tensor cut by td_narrow (queries, keys and values of one product) has a gradient that is put together from the pieces': cleared, then each piece
 * written or added, after it was turned and reshaped somewhere else. Instead, a gradient function that can write to any strides (permute's) gets
 * the piece of the whole itself, seen through the reshape and the narrow between; their nodes have nothing left to do (`placed`).
 *
 * The whole is memory that nothing was written to yet but a range along one dimension (`whole`), which grows as pieces come next to it; what is left out
 * is cleared before anybody else looks at or adds to it. A piece that does not come next to the range goes the old way. What lies in place is
 * added to in place: its handles and the whole share memory on purpose, so make_own (node_grad.c) leaves them alone.
 */
#include "plan.h"
#include "ops_shared.h"

enum { CHAIN = 4 };

static bool can_be_placed(td__graph g)
{
    if (!g || td__graph_is_leaf(g))
        return false;
    const td_call *node = td__graph_node(g);
    return (node->op == &td__op_reshape || node->op == &td__op_narrow) && !node->grad[0] && !node->hooks && !node->shared && !node->light && node->edge[0].graph &&
           !td__graph_is_leaf(node->edge[0].graph) && !node->edge[0].channels_last;
}

/* The gradient of what is cut, with [start, start + length) of `dim` about to be written; NULL: not in this way. */
static td_tensor *whole_of(const td_call *cut, int dim, int64_t start, int64_t length, td__graph g)
{
    td_call *from = td__graph_node(g);
    const int output = td__graph_output(g);
    td__whole_grad *w = &from->whole;
    if (from->op == &td__op_checkpoint || from->placed)
        return NULL;
    if (from->grad[output]) {
        if (w->low >= w->high || w->output != output || w->dim != dim || (start != w->high && start + length != w->low))
            return NULL;
        w->low = start < w->low ? start : w->low;
        w->high = start + length > w->high ? start + length : w->high;
        return from->grad[output];
    }
    td_tensor *made = td__tensor_new(cut->edge[0].shape, cut->edge[0].dtype, cut->device);
    if (made->poisoned)
        return made;
    *w = (td__whole_grad){ .output = output, .dim = dim, .low = start, .high = start + length };
    return from->grad[output] = made;
}

td_tensor *td__grad_place(td__graph g, td_shape shape)
{
    td_call *chain[CHAIN];
    td_shape seen[CHAIN];                              /* of each one's output                                                     */
    int n = 0;
    if (td__anomaly || td__shape_numel(shape) == 0)
        return NULL;
    for (; n < CHAIN && can_be_placed(g); n++) {
        chain[n] = td__graph_node(g);
        seen[n] = n ? chain[n - 1]->edge[0].shape : shape;
        g = chain[n]->edge[0].graph;
        if (chain[n]->op == &td__op_narrow) {
            n++;
            break;
        }
    }
    if (n == 0 || chain[n - 1]->op != &td__op_narrow)
        return NULL;
    const td_call *cut = chain[n - 1];
    int64_t start;
    const int dim = td__narrow_of(cut, &start);
    /* nothing is promised before all strides are found */
    int64_t stride[CHAIN][TD_MAX_DIMS];
    td__shape_strides(cut->edge[0].shape, stride[n - 1]);
    for (int i = n - 2; i >= 0; i--)
        if (!td__reshape_strides(seen[i + 1], stride[i + 1], seen[i], stride[i]))
            return NULL;
    td_tensor *whole = whole_of(cut, dim, start, seen[n - 1].dim[dim], g);
    if (!whole || whole->poisoned)
        return whole;
    for (int i = n - 1; i >= 0; i--) {
        td_tensor *piece = td__tensor_view(whole, seen[i], stride[i], whole->offset + start * whole->stride[dim]);
        if (piece->poisoned)
            return piece;
        chain[i]->grad[0] = piece;
        chain[i]->placed = true;
    }
    return chain[0]->grad[0];
}

int td__grad_complete(td_call *node)
{
    td__whole_grad *w = &node->whole;
    if (w->low >= w->high)
        return 0;
    td_tensor *g = node->grad[w->output];
    int64_t before[TD_MAX_DIMS] = { 0 };
    td_shape inside = g->shape;
    before[w->dim] = w->low;
    inside.dim[w->dim] = w->high - w->low;
    w->low = 0;
    w->high = g->shape.dim[w->dim];
    return td__op_fill_around("td_narrow", g, before, inside, 0.0);
}
