/* autograd/capture_tape.c: what a captured step does with tensors: operations forward, and backward through them.
 *
 * A forward keeps its call (a node of the graph, or a copy where no gradient is wanted) and the tensors it read and made: a replay runs the
 * kernels again on these. Nodes of a captured step keep their edges, so a backward keeps nothing but its plan: which nodes in which order,
 * which leaves with how many contributions each. Weights, groups, ranks and buckets are found anew each time, by the same lines as ever.
 */
#include "capture.h"
#include "ops_list.h"
#include <string.h>

/* ---- operations -------------------------------------------------------------------------------------------------------------------- */

static int forward_run(void *state)
{
    td__forward *f = state;
    return f->call ? td__call_again(f->call, f->in, f->out) : 0;
}

static int forward_host(void *state)
{
    td__forward *f = state;
    if (!f->call || f->call->op != &td__op_dropout)
        return 0;
    td_shape s = f->in[0]->shape;
    return td__dropout_host(s.ndim > 0 ? s.dim[0] : 1);
}

static void forward_drop(void *state)
{
    td__forward *f = state;
    for (int i = 0; i < f->n_in; i++)
        td__tensor_unref(f->in[i]);
    for (int i = 0; i < f->n_out; i++)
        td__tensor_unref(f->out[i]);
    if (f->call == &f->own)
        td__saved_drop(&f->own);
    else if (f->call)
        td__node_unref(f->call);
    td__free(f->attr);
    td__free(f->in);
    td__free(f->version);
}

static void forward_visit(void *state, td__visitor *v)
{
    td__forward *f = state;
    for (int i = 0; i < f->n_in && f->changed; i++)
        if (f->changed >> i & 1)
            v->storage(v, f->in[i]->storage, td__leaf_name(f->in[i]));
}

static void forward_uses(void *state, td__uses *u)
{
    td__forward *f = state;
    for (int i = 0; i < f->n_in; i++) {
        if (!f->in[i])
            continue;
        u->tensor(u, f->in[i], TD__READS | (f->changed >> i & 1 ? TD__WRITES : 0));
        if (f->saved_in >> i & 1)
            u->saved(u, f->in[i], f->call);
    }
    if (f->call->over)
        u->saved(u, f->in[0], f->call->over_until);
    for (int i = 0; i < f->n_out; i++) {
        u->tensor(u, f->out[i], f->call->view && i == 0 ? 0 : TD__FILLS);
        if (f->saved_out >> i & 1)
            u->saved(u, f->out[i], f->call);
    }
}

const td__record_kind td__forward_kind = { "an operation", sizeof(td__forward), forward_run, forward_host, forward_drop, forward_visit, forward_uses };

td__forward *td__forward_begin(td_tensor *const *in, size_t n)
{
    td__empty(NULL);
    td__forward *f = td__record_begin(&td__forward_kind);
    if (!f)
        return NULL;
    f->version = td__calloc((n + 1) * sizeof *f->version);
    for (size_t i = 0; i < n && f->version; i++)
        f->version[i] = in[i] ? in[i]->storage->version : 0;
    return f;
}

static bool keep_call(td__forward *f, const td_call *call)
{
    if (call->recording) {
        f->call = (td_call *)(uintptr_t)call;
        td__node_ref(f->call);
        f->call->captured = true;
        return true;
    }
    f->own = *call;
    f->own.saved = f->own.saved_here;
    f->own.room_saved = SAVED_HERE;
    f->own.n_saved = 0;
    f->own.in = NULL;
    if (call->op->attr_size && !(f->attr = td__alloc(call->op->attr_size)))
        return false;
    if (f->attr)
        f->own.attr = memcpy(f->attr, call->attr, call->op->attr_size);
    f->call = &f->own;
    return true;
}

/* Where the node's saved tensors lie. Those that it made itself come and go with each replay. */
static void note_saved(td__forward *f, const td_call *call)
{
    f->made = call->n_saved > SAVED_HERE;
    for (int s = 0; s < call->n_saved && call->recording; s++) {
        const td__saved *saved = &call->saved[s];
        const td_storage *at = saved->tensor->storage;
        if (f->n_saved < SAVED_HERE)
            f->saved[f->n_saved++] = saved->inputs ? (int8_t)__builtin_ctz(saved->inputs) : (int8_t)~saved->output;
        f->made |= !saved->inputs && saved->output < 0;
        for (int i = 0; i < f->n_in; i++)
            f->saved_in |= (uint32_t)(f->in[i] && f->in[i]->storage == at) << i;
        for (int i = 0; i < f->n_out; i++)
            f->saved_out |= (uint8_t)((f->out[i]->storage == at) << i);
    }
}

void td__forward_end(td__forward *f, const td_call *call, td_tensor *const *in, td_tensor *const *out)
{
    if (f && out) {
        int n = call->n_in;
        f->in = f->version ? td__calloc(((size_t)n + 1) * sizeof *f->in) : NULL;
        if (!f->in || !keep_call(f, call)) {
            td__record_refuse("there is no memory to note td_%s", call->op->name);
            td__record_end();
            return;
        }
        f->n_in = n;
        f->n_out = call->n_out;
        for (int i = 0; i < n; i++) {
            f->in[i] = in[i];
            if (!in[i])
                continue;
            td__tensor_ref(in[i]);
            f->changed |= (uint32_t)(in[i]->storage->version != f->version[i]) << i;
        }
        for (int i = 0; i < f->n_out; i++) {
            f->out[i] = out[i];
            td__tensor_ref(out[i]);
        }
        note_saved(f, call);
    }
    td__record_end();
}

/* ---- backward ---------------------------------------------------------------------------------------------------------------------------- */

int td__plan_keep(const td__plan *p, td__plan_kept *kept)
{
    size_t nodes = 0, leaves = 0;
    for (const td_call *node = p->first; node; node = node->next, nodes++) {
        if (!node->captured)
            td__record_refuse("the loss depends on a result of td_%s that was made before td_capture; pass it as an input (td_detach)", node->op->name);
        if (node->hooks)
            td__record_refuse("a result of td_%s has a td_hook, whose function a replay cannot call", node->op->name);
    }
    for (const td__leaf *leaf = p->leaf; leaf; leaf = leaf->next, leaves++)
        if (leaf->hooks)
            td__record_refuse("parameter \"%s\" has a td_hook, whose function a replay cannot call", td__leaf_name(leaf->value));
    kept->node = td__alloc((nodes + 1) * sizeof *kept->node);
    kept->leaf = td__alloc((leaves + 1) * sizeof *kept->leaf);
    kept->expected = td__alloc((leaves + 1) * sizeof *kept->expected);
    if (!kept->node || !kept->leaf || !kept->expected)
        return TD_ERR_MEMORY;
    for (td_call *node = p->first; node; node = node->next) {
        td__node_ref(node);
        kept->node[kept->nodes++] = node;
    }
    for (const td__leaf *leaf = p->leaf; leaf; leaf = leaf->next) {
        td__tensor_ref(leaf->value);
        kept->leaf[kept->leaves] = leaf->value;
        kept->expected[kept->leaves++] = leaf->expected;
    }
    return 0;
}

static int frozen(const td_tensor *leaf)
{
    return td__fail(TD_ERR_STATE, "td_replay: parameter \"%s\" was frozen since the step was captured; capture it anew", td__leaf_name(leaf));
}

int td__plan_again(td__plan *p, const td__plan_kept *kept)
{
    int code = 0;
    for (size_t i = 0; i < kept->leaves && !code; i++) {
        td__leaf *leaf = td__leaf_of(kept->leaf[i]);
        if (!leaf || !leaf->requires)
            code = frozen(kept->leaf[i]);
        else
            code = td__plan_leaf(p, leaf, kept->expected[i]);
    }
    for (size_t i = 0; i < kept->nodes && !code; i++)
        td__plan_append(p, kept->node[i]);
    return code;
}

static int backward_run(void *state)
{
    td__backward_state *b = state;
    return b->loss ? td__backward_again(b) : 0;
}

static int backward_host(void *state)
{
    const td__backward_state *b = state;
    for (size_t i = 0; i < b->plan.leaves; i++) {
        const td__leaf *leaf = td__leaf_of(b->plan.leaf[i]);
        if (!leaf || !leaf->requires)
            return frozen(b->plan.leaf[i]);
    }
    td__random_restart();
    return 0;
}

static void backward_drop(void *state)
{
    td__backward_state *b = state;
    td__tensor_unref(b->loss);
    td__tensor_unref(b->weight);
    for (size_t i = 0; i < b->plan.nodes; i++)
        td__node_unref(b->plan.node[i]);
    for (size_t i = 0; i < b->plan.leaves; i++)
        td__tensor_unref(b->plan.leaf[i]);
    td__free(b->plan.node);
    td__free(b->plan.leaf);
    td__free(b->plan.expected);
}

static void backward_visit(void *state, td__visitor *v)
{
    td__backward_state *b = state;
    for (size_t i = 0; i < b->plan.leaves; i++)
        v->storage(v, b->plan.leaf[i]->storage, td__leaf_name(b->plan.leaf[i]));
}

/* What its nodes read was shown where it is saved; the leaves are parameters. */
static void backward_uses(void *state, td__uses *u)
{
    td__backward_state *b = state;
    if (b->loss)
        u->tensor(u, b->loss, TD__READS);
    if (b->weight)
        u->tensor(u, b->weight, TD__READS);
}

const td__record_kind td__backward_kind = { "td_backward", sizeof(td__backward_state), backward_run, backward_host, backward_drop, backward_visit, backward_uses };

/* ---- may it be a graph of the device? ----------------------------------------------------------------------------------------------------- */

static int check_forward(const td__record *r, td_device device)
{
    const td__forward *f = (const void *)r->state;
    char a[24], b[24], site[256];
    if (!f->call)
        return 0;
    td__site_text(r->site, site, sizeof site);
    if (!td__device_equal(f->out[0]->storage->device, device))
        return td__fail(TD_ERR_DEVICE, "td_capture: td_%s at %s computes on %s in a step on %s, and a graph of the one cannot hold what the other does",
                        f->call->op->name, site, td__device_text(f->out[0]->storage->device, a), td__device_text(device, b));
    if (f->call->op->flags & TD_OP_RANDOM && f->call->op != &td__op_dropout)
        return td__fail(TD_ERR_UNSUPPORTED, "td_capture: td_%s at %s draws random numbers on the host, and a graph of %s would repeat them", f->call->op->name,
                        site, td__device_text(device, b));
    return 0;
}

/* What a backward leaves must be taken in the same step: a graph writes gradients, where the next replay would have to add. */
static int check_backward(const td__record *r, td_device device)
{
    const td__backward_state *b = (const void *)r->state;
    char text[24];
    for (size_t i = 0; i < b->plan.leaves; i++) {
        const td__leaf *leaf = td__leaf_of(b->plan.leaf[i]);
        if (leaf && leaf->has_grad)
            return td__fail(TD_ERR_STATE, "td_capture: the gradient of \"%s\" is left over at the end of the step; on %s a captured step takes all its "
                            "gradients (td_optim_step, td_zero_grad)", td__leaf_name(leaf->value), td__device_text(device, text));
    }
    return 0;
}

int td__records_device(const td__record *first, td_device *device)
{
    const td_device_ops *ops = NULL;
    for (const td__record *r = first; r && !ops; r = r->next) {
        const td__forward *f = (const void *)r->state;
        if (r->kind == &td__forward_kind && f->call && f->out[0]->storage->ops->graph_begin) {
            ops = f->out[0]->storage->ops;
            *device = f->out[0]->storage->device;
        }
    }
    if (!ops)
        return 1;
    int code = 0;
    for (const td__record *r = first; r && !code; r = r->next) {
        if (r->kind == &td__forward_kind)
            code = check_forward(r, *device);
        else if (r->kind == &td__backward_kind)
            code = check_backward(r, *device);
    }
    return code;
}
