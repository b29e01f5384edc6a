/* comm/tensors.c: the public collectives on tensors, and tensors that all ranks of a host reach. make.c says what may be passed.
 */
#include "comm_room.h"

/* ---- the two ways to call one --------------------------------------------------------------------------------------------------------- */

int td__call_now(td__call call)
{
    td_coll coll;
    td__note_begin(&call, false);
    int code = td__call_make(&call, &coll);
    code = code ? code : td__coll_run(call.comm, &coll);
    td__call_end(&call);
    td__record_end();
    return code;
}

td_work *td__call_start(td__call call)
{
    td_coll coll;
    void *note = td__note_begin(&call, true);
    int code = td__call_make(&call, &coll);
    td_work *work = code ? td__work_failed(call.comm, code) : td__coll_start_holding(call.comm, &coll, call.in, call.out != call.in ? call.out : NULL);
    td__call_end(&call);
    td__note_started(note, work);
    td__record_end();
    return work;
}

#define ONE(...) (td__call){ .comm = comm, .out = x, .in = x, .kind = __VA_ARGS__ }
#define TWO(...) (td__call){ .comm = comm, .out = out, .in = in, .kind = __VA_ARGS__ }

/* ---- blocking ---------------------------------------------------------------------------------------------------------------------- */

int td_all_reduce(td_comm *comm, td_tensor *x, td_reduce op)
{
    TD_ENTER();
    return td__call_now(ONE(TD_COLL_ALL_REDUCE, .op = op));
}

int td_broadcast(td_comm *comm, td_tensor *x, int root)
{
    TD_ENTER();
    return td__call_now(ONE(TD_COLL_BROADCAST, .root = root));
}

int td_reduce_scatter(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_REDUCE_SCATTER, .op = op));
}

int td_all_gather(td_comm *comm, td_tensor *out, td_tensor *in)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_ALL_GATHER));
}

int td_barrier(td_comm *comm)
{
    TD_ENTER();
    return td__call_now((td__call){ .kind = TD_COLL_BARRIER, .comm = comm });
}

int td_reduce_to(td_comm *comm, td_tensor *x, td_reduce op, int root)
{
    TD_ENTER();
    return td__call_now(ONE(TD_COLL_REDUCE, .op = op, .root = root));
}

int td_gather_to(td_comm *comm, td_tensor *out, td_tensor *in, int root)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_GATHER, .root = root));
}

int td_scatter_from(td_comm *comm, td_tensor *out, td_tensor *in, int root)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_SCATTER, .root = root));
}

int td_all_to_all(td_comm *comm, td_tensor *out, td_tensor *in)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_ALL_TO_ALL));
}

int td_all_gather_uneven(td_comm *comm, td_tensor *out, td_tensor *in, const int64_t *rows)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_ALL_GATHER, .uneven = true, .rows = rows));
}

int td_all_to_all_uneven(td_comm *comm, td_tensor *out, const int64_t *out_rows, td_tensor *in, const int64_t *in_rows)
{
    TD_ENTER();
    return td__call_now(TWO(TD_COLL_ALL_TO_ALL, .uneven = true, .rows = out_rows, .in_rows = in_rows));
}

/* ---- started ------------------------------------------------------------------------------------------------------------------------ */

td_work *td_all_reduce_start(td_comm *comm, td_tensor *x, td_reduce op)
{
    TD_ENTER();
    return td__call_start(ONE(TD_COLL_ALL_REDUCE, .op = op));
}

td_work *td_broadcast_start(td_comm *comm, td_tensor *x, int root)
{
    TD_ENTER();
    return td__call_start(ONE(TD_COLL_BROADCAST, .root = root));
}

td_work *td_reduce_scatter_start(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_REDUCE_SCATTER, .op = op));
}

td_work *td_all_gather_start(td_comm *comm, td_tensor *out, td_tensor *in)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_ALL_GATHER));
}

td_work *td_barrier_start(td_comm *comm)
{
    TD_ENTER();
    return td__call_start((td__call){ .kind = TD_COLL_BARRIER, .comm = comm });
}

td_work *td_reduce_to_start(td_comm *comm, td_tensor *x, td_reduce op, int root)
{
    TD_ENTER();
    return td__call_start(ONE(TD_COLL_REDUCE, .op = op, .root = root));
}

td_work *td_gather_to_start(td_comm *comm, td_tensor *out, td_tensor *in, int root)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_GATHER, .root = root));
}

td_work *td_scatter_from_start(td_comm *comm, td_tensor *out, td_tensor *in, int root)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_SCATTER, .root = root));
}

td_work *td_all_to_all_start(td_comm *comm, td_tensor *out, td_tensor *in)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_ALL_TO_ALL));
}

td_work *td_all_gather_uneven_start(td_comm *comm, td_tensor *out, td_tensor *in, const int64_t *rows)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_ALL_GATHER, .uneven = true, .rows = rows));
}

td_work *td_all_to_all_uneven_start(td_comm *comm, td_tensor *out, const int64_t *out_rows, td_tensor *in, const int64_t *in_rows)
{
    TD_ENTER();
    return td__call_start(TWO(TD_COLL_ALL_TO_ALL, .uneven = true, .rows = out_rows, .in_rows = in_rows));
}

/* ---- memory that all ranks reach ------------------------------------------------------------------------------------------------------ */

typedef struct {
    void (*free)(void *arena, void *block);
    void *arena;
} arena_owner;

static void release_block(void *owner, void *data)
{
    arena_owner *o = owner;
    o->free(o->arena, data);
    td__free(o);
}

td_storage *td__comm_storage(td_comm *comm, td_device device, size_t bytes)
{
    const td_device cpu = { TD_CPU, 0 };
    if (device.kind > TD_CPU)
        return td__device_storage(comm, device, bytes);
    if (!comm->backend->alloc) {
        td_storage *s = td__storage_new(cpu, bytes);
        if (s)
            memset(s->data, 0, bytes);
        return s;
    }
    arena_owner *owner = td__alloc(sizeof *owner);
    void *memory = owner ? comm->backend->alloc(comm->state, bytes) : NULL;
    if (memory) {
        *owner = (arena_owner){ comm->backend->free, comm->backend->arena(comm->state) };
        td_storage *s = td__storage_foreign(cpu, memory, bytes, release_block, owner);
        if (s)
            return s;
        comm->backend->free(owner->arena, memory);
    }
    td__free(owner);
    return NULL;
}

td_tensor *td_zeros_shared(td_comm *comm, td_shape shape, td_dtype dtype)
{
    TD_ENTER();
    if (!comm)
        td__fail(TD_ERR_ARGUMENT, "td_zeros_shared: the communicator is NULL");
    if (!comm || td__shape_check("td_zeros_shared", shape) || td__dtype_check("td_zeros_shared", dtype))
        return td__poison();
    td_storage *s = td__comm_storage(comm, td_device_default(), (size_t)td__shape_numel(shape) * td_dtype_size(dtype));
    if (!s)
        return td__poison();
    td_tensor *x = td__tensor_on(s, shape, dtype, 0);
    td__storage_unref(s);
    return td__scoped_tensor(x);
}
