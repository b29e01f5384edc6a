/* comm/tensors.c: the public collectives: what may be passed, and what becomes of it.
 */
#include "comm_room.h"

/* ---- checks --------------------------------------------------------------------------------------------------------------------- */

static int check_tensor(const char *who, const char *name, td_tensor *x, bool arith)
{
    int code = td__tensor_check(who, x);
    char shape[128];
    bool half;
    if (code)
        return code;
    if (!td_is_contiguous(x))
        return td__fail(TD_ERR_SHAPE, "%s: %s %s is not contiguous; pass td_contiguous of it", who, name, td__shape_text(x->shape, shape));
    half = x->storage->device.kind == TD_CUDA && td__is_half(x->dtype);
    if (arith && !td__is_arith(x->dtype) && !half)
        return td__fail(TD_ERR_DTYPE, "%s: %s is %s; sums, means, minima and maxima take f32, f64, i64 and i32, on a GPU f16 and bf16 too", who, name,
                        td_dtype_name(x->dtype));
    return 0;
}

static int check_comm(const char *who, const td_comm *comm)
{
    return comm ? 0 : td__fail(TD_ERR_ARGUMENT, "%s: the communicator is NULL", who);
}

static int check_op(const char *who, td_reduce op, const td_tensor *x)
{
    if ((int)op < TD_SUM || (int)op > TD_MAX)
        return td__fail(TD_ERR_ARGUMENT, "%s: %d is no reduction; expected TD_SUM, TD_MEAN, TD_MIN or TD_MAX", who, (int)op);
    if (op == TD_MEAN && !td__is_real(x->dtype))
        return td__fail(TD_ERR_DTYPE, "%s: the mean of %s is no %s; use TD_SUM and divide", who, td_dtype_name(x->dtype), td_dtype_name(x->dtype));
    return 0;
}

/* whole (size*n, …) and part (n, …); a scalar part goes with a whole of (size). */
static int check_parts(const char *who, const td_comm *comm, const char *whole_name, td_tensor *whole, const char *part_name, td_tensor *part)
{
    char a[128], b[128], one[24], other[24];
    if (!td__device_equal(whole->storage->device, part->storage->device))
        return td__fail(TD_ERR_DEVICE, "%s: %s lies on %s and %s on %s", who, whole_name, td__device_text(whole->storage->device, one), part_name,
                        td__device_text(part->storage->device, other));
    if (whole->dtype != part->dtype)
        return td__fail(TD_ERR_DTYPE, "%s: %s is %s and %s is %s", who, whole_name, td_dtype_name(whole->dtype), part_name,
                        td_dtype_name(part->dtype));
    int dims = part->shape.ndim ? part->shape.ndim : 1;
    bool fits = whole->shape.ndim == dims && whole->shape.dim[0] == (part->shape.ndim ? part->shape.dim[0] : 1) * comm->size;
    for (int i = 1; i < dims && fits; i++)
        fits = whole->shape.dim[i] == part->shape.dim[i];
    if (!fits)
        return td__fail(TD_ERR_SHAPE, "%s: with %d ranks the first dimension of %s %s must be %d times that of %s %s, and the others equal", who,
                        comm->size, whole_name, td__shape_text(whole->shape, a), comm->size, part_name, td__shape_text(part->shape, b));
    const char *own = (const char *)td__ptr(whole) + (size_t)comm->rank * (size_t)td_numel(part) * td_dtype_size(part->dtype);
    if (td_numel(part) && td__overlaps(whole, part) && td__ptr(part) != (const void *)own)
        return td__fail(TD_ERR_ARGUMENT, "%s: %s and %s share memory; they may only when %s is this rank's part of %s", who, whole_name,
                        part_name, part_name, whole_name);
    return 0;
}

static int may_write(td_tensor *x)
{
    return td__tensor_inplace_check ? td__tensor_inplace_check(x) : 0;
}

/* ---- from tensors to a td_coll ---------------------------------------------------------------------------------------------------- */

static td_coll basic(td_coll_kind kind, td_tensor *out, td_tensor *in)
{
    return (td_coll){ .kind = kind, .dtype = in->dtype, .device = in->storage->device, .out = td__ptr(out), .in = td__ptr(in), .count = td_numel(in),
                      .pre = 1, .post = 1, .plain = true, .site = td__site };
}

static int make_all_reduce(td_comm *comm, td_tensor *x, td_reduce op, td_coll *coll)
{
    int code = check_comm("td_all_reduce", comm);
    code = code ? code : check_tensor("td_all_reduce", "x", x, true);
    code = code ? code : check_op("td_all_reduce", op, x);
    code = code ? code : may_write(x);
    if (code)
        return code;
    *coll = basic(TD_COLL_ALL_REDUCE, x, x);
    coll->op = op;
    x->storage->version++;
    return 0;
}

static int make_broadcast(td_comm *comm, td_tensor *x, int root, td_coll *coll)
{
    int code = check_comm("td_broadcast", comm);
    code = code ? code : check_tensor("td_broadcast", "x", x, false);
    if (!code && (root < 0 || root >= comm->size))
        code = td__fail(TD_ERR_ARGUMENT, "td_broadcast: root %d is none of the ranks 0 to %d", root, comm->size - 1);
    code = code ? code : may_write(x);
    if (code)
        return code;
    *coll = basic(TD_COLL_BROADCAST, x, x);
    coll->root = root;
    if (comm->rank != root)
        x->storage->version++;
    return 0;
}

static int make_reduce_scatter(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op, td_coll *coll)
{
    int code = check_comm("td_reduce_scatter", comm);
    code = code ? code : check_tensor("td_reduce_scatter", "in", in, true);
    code = code ? code : check_tensor("td_reduce_scatter", "out", out, true);
    code = code ? code : check_op("td_reduce_scatter", op, in);
    code = code ? code : check_parts("td_reduce_scatter", comm, "in", in, "out", out);
    code = code ? code : may_write(out);
    if (code)
        return code;
    *coll = basic(TD_COLL_REDUCE_SCATTER, out, in);
    coll->count = td_numel(out);
    coll->op = op;
    out->storage->version++;
    return 0;
}

static int make_all_gather(td_comm *comm, td_tensor *out, td_tensor *in, td_coll *coll)
{
    int code = check_comm("td_all_gather", comm);
    code = code ? code : check_tensor("td_all_gather", "in", in, false);
    code = code ? code : check_tensor("td_all_gather", "out", out, false);
    code = code ? code : check_parts("td_all_gather", comm, "out", out, "in", in);
    code = code ? code : may_write(out);
    if (code)
        return code;
    *coll = basic(TD_COLL_ALL_GATHER, out, in);
    out->storage->version++;
    return 0;
}

/* ---- blocking ---------------------------------------------------------------------------------------------------------------------- */

int td_all_reduce(td_comm *comm, td_tensor *x, td_reduce op)
{
    TD_ENTER();
    td_coll coll;
    td__note_begin(TD_NOTE_ALL_REDUCE, false, comm, x, NULL, (int)op);
    int code = make_all_reduce(comm, x, op, &coll);
    code = code ? code : td__coll_run(comm, &coll);
    td__record_end();
    return code;
}

int td_broadcast(td_comm *comm, td_tensor *x, int root)
{
    TD_ENTER();
    td_coll coll;
    td__note_begin(TD_NOTE_BROADCAST, false, comm, x, NULL, root);
    int code = make_broadcast(comm, x, root, &coll);
    code = code ? code : td__coll_run(comm, &coll);
    td__record_end();
    return code;
}

int td_reduce_scatter(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op)
{
    TD_ENTER();
    td_coll coll;
    td__note_begin(TD_NOTE_REDUCE_SCATTER, false, comm, out, in, (int)op);
    int code = make_reduce_scatter(comm, out, in, op, &coll);
    code = code ? code : td__coll_run(comm, &coll);
    td__record_end();
    return code;
}

int td_all_gather(td_comm *comm, td_tensor *out, td_tensor *in)
{
    TD_ENTER();
    td_coll coll;
    td__note_begin(TD_NOTE_ALL_GATHER, false, comm, out, in, 0);
    int code = make_all_gather(comm, out, in, &coll);
    code = code ? code : td__coll_run(comm, &coll);
    td__record_end();
    return code;
}

int td_barrier(td_comm *comm)
{
    TD_ENTER();
    int code = check_comm("td_barrier", comm);
    td_coll coll = { .kind = TD_COLL_BARRIER, .pre = 1, .post = 1, .site = td__site };
    td__note_begin(TD_NOTE_BARRIER, false, comm, NULL, NULL, 0);
    code = code ? code : td__coll_run(comm, &coll);
    td__record_end();
    return code;
}

/* ---- started ------------------------------------------------------------------------------------------------------------------------ */

td_work *td_all_reduce_start(td_comm *comm, td_tensor *x, td_reduce op)
{
    TD_ENTER();
    td_coll coll;
    void *note = td__note_begin(TD_NOTE_ALL_REDUCE, true, comm, x, NULL, (int)op);
    int code = make_all_reduce(comm, x, op, &coll);
    td_work *work = code ? td__work_failed(comm, code) : td__coll_start_holding(comm, &coll, x, NULL);
    td__note_started(note, work);
    td__record_end();
    return work;
}

td_work *td_broadcast_start(td_comm *comm, td_tensor *x, int root)
{
    TD_ENTER();
    td_coll coll;
    void *note = td__note_begin(TD_NOTE_BROADCAST, true, comm, x, NULL, root);
    int code = make_broadcast(comm, x, root, &coll);
    td_work *work = code ? td__work_failed(comm, code) : td__coll_start_holding(comm, &coll, x, NULL);
    td__note_started(note, work);
    td__record_end();
    return work;
}

td_work *td_reduce_scatter_start(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op)
{
    TD_ENTER();
    td_coll coll;
    void *note = td__note_begin(TD_NOTE_REDUCE_SCATTER, true, comm, out, in, (int)op);
    int code = make_reduce_scatter(comm, out, in, op, &coll);
    td_work *work = code ? td__work_failed(comm, code) : td__coll_start_holding(comm, &coll, out, in);
    td__note_started(note, work);
    td__record_end();
    return work;
}

td_work *td_all_gather_start(td_comm *comm, td_tensor *out, td_tensor *in)
{
    TD_ENTER();
    td_coll coll;
    void *note = td__note_begin(TD_NOTE_ALL_GATHER, true, comm, out, in, 0);
    int code = make_all_gather(comm, out, in, &coll);
    td_work *work = code ? td__work_failed(comm, code) : td__coll_start_holding(comm, &coll, out, in);
    td__note_started(note, work);
    td__record_end();
    return work;
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
    if (check_comm("td_zeros_shared", comm) || td__shape_check("td_zeros_shared", shape) || td__dtype_check("td_zeros_shared", dtype))
        return td__poison();
    td_storage *s = td__comm_storage(comm, td_device_default(), (size_t)td__shape_numel(shape) * td_dtype_size(dtype));
    if (!s)
        return td__poison();
    td_tensor *x = td__tensor_on(s, shape, dtype, 0);
    td__storage_unref(s);
    return td__scoped_tensor(x);
}
