/* comm/make.c: what may be passed to a public collective, and what becomes of it: a td__call in, a td_coll out.
 */
#include "comm_room.h"

/* The public name of a call, for sentences. */
static const char *name_of(const td__call *call)
{
    static const char *const tensors[] = { "td_barrier", "td_broadcast", "td_all_reduce", "td_reduce_scatter", "td_all_gather", "td_reduce_to",
                                           "td_gather_to", "td_scatter_from", "td_all_to_all" };
    static const char *const raw[] = { "td_barrier", "td_raw_broadcast", "td_raw_all_reduce", "td_raw_reduce_scatter", "td_raw_all_gather",
                                       "td_raw_reduce", "td_raw_gather", "td_raw_scatter", "td_raw_all_to_all" };
    if (call->uneven && call->kind == TD_COLL_ALL_GATHER)
        return call->raw ? "td_raw_all_gather_uneven" : "td_all_gather_uneven";
    if (call->uneven)
        return call->raw ? "td_raw_all_to_all_uneven" : "td_all_to_all_uneven";
    return (call->raw ? raw : tensors)[call->kind];
}

static bool reduces(td_coll_kind kind)
{
    return kind == TD_COLL_ALL_REDUCE || kind == TD_COLL_REDUCE_SCATTER || kind == TD_COLL_REDUCE;
}

static bool has_root(td_coll_kind kind)
{
    return kind == TD_COLL_BROADCAST || kind == TD_COLL_REDUCE || kind == TD_COLL_GATHER || kind == TD_COLL_SCATTER;
}

/* ---- what tensors and memory have in common ------------------------------------------------------------------------------------------ */

static int check_reduction(const char *who, td_reduce op, td_dtype dtype)
{
    if ((int)op < TD_SUM || (int)op > TD_PRODUCT)
        return td__fail(TD_ERR_ARGUMENT, "%s: %d is no reduction; expected TD_SUM, TD_MEAN, TD_MIN, TD_MAX or TD_PRODUCT", who, (int)op);
    if (dtype == TD_BOOL && op != TD_MIN && op != TD_MAX)
        return td__fail(TD_ERR_DTYPE, "%s: of bool there are TD_MAX (or) and TD_MIN (and), no sum, mean or product; td_cast converts", who);
    if (op == TD_MEAN && !td__is_real(dtype))
        return td__fail(TD_ERR_DTYPE, "%s: the mean of %s is no %s; use TD_SUM and divide", who, td_dtype_name(dtype), td_dtype_name(dtype));
    return 0;
}

static int check_call(const char *who, const td__call *call)
{
    if (!call->comm)
        return td__fail(TD_ERR_ARGUMENT, "%s: the communicator is NULL", who);
    if (has_root(call->kind) && (call->root < 0 || call->root >= call->comm->size))
        return td__fail(TD_ERR_ARGUMENT, "%s: root %d is none of the ranks 0 to %d", who, call->root, call->comm->size - 1);
    return 0;
}

/* Numbers of rows or elements of every rank: their sum, or -1 after td__fail. */
static int64_t check_counts(const char *who, const char *name, const int64_t *counts, int n)
{
    int64_t sum = 0;
    if (!counts)
        return td__fail(TD_ERR_ARGUMENT, "%s: %s is NULL; expected %d numbers, one a rank", who, name, n), -1;
    for (int i = 0; i < n; i++)
        if (counts[i] < 0 || __builtin_add_overflow(sum, counts[i], &sum))
            return td__fail(TD_ERR_ARGUMENT, "%s: %s[%d] is %lld", who, name, i, (long long)counts[i]), -1;
    return sum;
}

static int64_t before(const int64_t *counts, int rank)
{
    int64_t sum = 0;
    for (int i = 0; i < rank; i++)
        sum += counts[i];
    return sum;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------------------------------- */

static int check_tensor(const char *who, const char *name, td_tensor *x)
{
    int code = td__tensor_check(who, x);
    char shape[128];
    if (code)
        return code;
    if (!td_is_contiguous(x))
        return td__fail(TD_ERR_SHAPE, "%s: %s %s is not contiguous; pass td_contiguous of it", who, name, td__shape_text(x->shape, shape));
    return 0;
}

static int check_alike(const char *who, const char *whole_name, td_tensor *whole, const char *part_name, td_tensor *part)
{
    char one[24], other[24];
    if (!td__device_equal(whole->storage->device, part->storage->device))
        return td__fail(TD_ERR_DEVICE, "%s: %s lies on %s and %s on %s", who, whole_name, td__device_text(whole->storage->device, one), part_name,
                        td__device_text(part->storage->device, other));
    if (whole->dtype != part->dtype)
        return td__fail(TD_ERR_DTYPE, "%s: %s is %s and %s is %s", who, whole_name, td_dtype_name(whole->dtype), part_name,
                        td_dtype_name(part->dtype));
    return 0;
}

static int check_memory(const char *who, const char *whole_name, td_tensor *whole, const char *part_name, td_tensor *part, int64_t elements_before)
{
    const char *own = (const char *)td__ptr(whole) + (size_t)elements_before * td_dtype_size(part->dtype);
    if (td_numel(part) && td__overlaps(whole, part) && td__ptr(part) != (const void *)own)
        return td__fail(TD_ERR_ARGUMENT, "%s: %s and %s share memory; they may only when %s is this rank's part of %s", who, whole_name,
                        part_name, part_name, whole_name);
    return 0;
}

/* whole (size*n, …) and part (n, …); a scalar part goes with a whole of (size). */
static int check_parts(const char *who, const td_comm *comm, const char *whole_name, td_tensor *whole, const char *part_name, td_tensor *part)
{
    char a[128], b[128];
    int code = check_alike(who, whole_name, whole, part_name, part);
    if (code)
        return code;
    int dims = part->shape.ndim ? part->shape.ndim : 1;
    bool fits = whole->shape.ndim == dims && whole->shape.dim[0] == (part->shape.ndim ? part->shape.dim[0] : 1) * comm->size;
    for (int i = 1; i < dims && fits; i++)
        fits = whole->shape.dim[i] == part->shape.dim[i];
    if (!fits)
        return td__fail(TD_ERR_SHAPE, "%s: with %d ranks the first dimension of %s %s must be %d times that of %s %s, and the others equal", who,
                        comm->size, whole_name, td__shape_text(whole->shape, a), comm->size, part_name, td__shape_text(part->shape, b));
    return check_memory(who, whole_name, whole, part_name, part, comm->rank * td_numel(part));
}

static int check_exchange(const char *who, const td_comm *comm, td_tensor *out, td_tensor *in)
{
    char a[128], b[128];
    int code = check_alike(who, "out", out, "in", in);
    if (code)
        return code;
    if (!td__shape_equal(out->shape, in->shape) || in->shape.ndim == 0 || in->shape.dim[0] % comm->size)
        return td__fail(TD_ERR_SHAPE, "%s: with %d ranks out %s and in %s must have the same shape, and a first dimension that is a multiple of %d", who,
                        comm->size, td__shape_text(out->shape, a), td__shape_text(in->shape, b), comm->size);
    if (td_numel(in) && td__overlaps(out, in) && td__ptr(out) != td__ptr(in))
        return td__fail(TD_ERR_ARGUMENT, "%s: out and in share memory; they may only when they are the same", who);
    return 0;
}

/* x must have `rows` rows; the elements of one of them, or -1 after td__fail. */
static int64_t check_rows(const char *who, const char *name, td_tensor *x, int64_t rows, const char *what)
{
    char a[128];
    if (x->shape.ndim == 0 || x->shape.dim[0] != rows)
        return td__fail(TD_ERR_SHAPE, "%s: %s %s must have %lld rows, %s", who, name, td__shape_text(x->shape, a), (long long)rows, what), -1;
    int64_t row = 1;
    for (int i = 1; i < x->shape.ndim; i++)
        row *= x->shape.dim[i];
    return row;
}

static int check_rest(const char *who, td_tensor *out, td_tensor *in)
{
    char a[128], b[128];
    bool same = out->shape.ndim == in->shape.ndim;
    for (int i = 1; i < out->shape.ndim && same; i++)
        same = out->shape.dim[i] == in->shape.dim[i];
    return same ? 0 : td__fail(TD_ERR_SHAPE, "%s: out %s and in %s may differ in the first dimension alone", who, td__shape_text(out->shape, a),
                               td__shape_text(in->shape, b));
}

/* counts of elements from rows; the caller's */
static int64_t *in_elements(const int64_t *rows, int n, int64_t row)
{
    int64_t *counts = td__alloc((size_t)n * sizeof *counts);
    for (int i = 0; counts && i < n; i++)
        counts[i] = rows[i] * row;
    return counts;
}

static int make_uneven(const char *who, td__call *call, td_coll *coll)
{
    td_tensor *out = call->out, *in = call->in;
    const int n = call->comm->size, me = call->comm->rank;
    const bool gather = call->kind == TD_COLL_ALL_GATHER;
    int code = check_alike(who, "out", out, "in", in);
    int64_t sum = code ? -1 : check_counts(who, gather ? "rows" : "out_rows", call->rows, n);
    int64_t in_sum = sum < 0 || gather ? 0 : check_counts(who, "in_rows", call->in_rows, n);
    int64_t row = sum < 0 || in_sum < 0 ? -1 : check_rows(who, "out", out, sum, gather ? "the sum of rows" : "the sum of out_rows");
    if (row < 0 || check_rows(who, "in", in, gather ? call->rows[me] : in_sum, gather ? "its number in rows" : "the sum of in_rows") < 0 ||
        check_rest(who, out, in))
        return td__pending();
    if (gather)
        code = check_memory(who, "out", out, "in", in, row * before(call->rows, me));
    else if (td_numel(in) && td_numel(out) && td__overlaps(out, in) &&
             (td__ptr(out) != td__ptr(in) || memcmp(call->rows, call->in_rows, (size_t)n * sizeof *call->rows)))
        code = td__fail(TD_ERR_ARGUMENT, "%s: out and in share memory; they may only when they are the same, with equal numbers of rows", who);
    if (code)
        return code;
    coll->counts = call->made[0] = in_elements(call->rows, n, row);
    if (!gather)
        coll->in_counts = call->made[1] = in_elements(call->in_rows, n, row);
    if (!coll->counts || (!gather && !coll->in_counts))
        return td__pending();
    coll->count = gather ? sum * row : 0;
    return 0;
}

static int may_write(td_tensor *x)
{
    return td__tensor_inplace_check ? td__tensor_inplace_check(x) : 0;
}

static int make_from_tensors(const char *who, td__call *call, td_coll *coll)
{
    const td_coll_kind kind = call->kind;
    const td_comm *comm = call->comm;
    const bool at_root = !has_root(kind) || comm->rank == call->root;
    const bool one = kind == TD_COLL_BROADCAST || kind == TD_COLL_ALL_REDUCE || kind == TD_COLL_REDUCE;
    td_tensor *in = kind == TD_COLL_SCATTER && !at_root ? NULL : call->in;
    td_tensor *out = kind == TD_COLL_GATHER && !at_root ? NULL : call->out;
    const bool scatters = kind == TD_COLL_SCATTER || kind == TD_COLL_REDUCE_SCATTER;
    const bool written = kind == TD_COLL_BROADCAST ? !at_root : kind == TD_COLL_REDUCE || kind == TD_COLL_GATHER ? at_root : true;
    int code = kind == TD_COLL_SCATTER && !at_root ? 0 : check_tensor(who, one ? "x" : "in", in);
    if (!code && !one && !(kind == TD_COLL_GATHER && !at_root))
        code = check_tensor(who, "out", out);
    td_tensor *part = scatters ? out : in;
    if (!code && reduces(kind))
        code = check_reduction(who, call->op, part->dtype);
    if (code)
        return code;
    *coll = (td_coll){ .kind = kind, .dtype = part->dtype, .device = part->storage->device, .count = td_numel(part) };
    if (call->uneven)
        code = make_uneven(who, call, coll);
    else if (kind == TD_COLL_ALL_TO_ALL)
        code = check_exchange(who, comm, out, in), coll->count /= comm->size;
    else if (!one && in && out)
        code = scatters ? check_parts(who, comm, "in", in, "out", out) : check_parts(who, comm, "out", out, "in", in);
    if (!code && (written || one))             /* the same refusal on every rank, also where x is only read */
        code = may_write(out);
    if (code)
        return code;
    coll->in = in ? td__ptr(in) : NULL;
    coll->out = out && !(kind == TD_COLL_REDUCE && !at_root) ? td__ptr(out) : NULL;
    if (written)
        out->storage->version++;
    return 0;
}

/* ---- plain memory -------------------------------------------------------------------------------------------------------------------------- */

static bool apart(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes)
{
    return !a_bytes || !b_bytes || (const char *)a + a_bytes <= (const char *)b || (const char *)b + b_bytes <= (const char *)a;
}

/* How many elements the two hold, and where in the larger the smaller may lie (in elements; -1: nowhere). */
typedef struct { int64_t in, out, at; } extent;

static int check_pointers(const char *who, const td__call *call, size_t size, extent e)
{
    const char *in = call->raw_in, *out = call->raw_out;
    const int64_t in_bytes = e.in * (int64_t)size, out_bytes = e.out * (int64_t)size, at = e.at * (int64_t)size;
    if ((!in && in_bytes) || (!out && out_bytes))
        return td__fail(TD_ERR_ARGUMENT, "%s: %s is NULL; expected %lld elements", who, !in && in_bytes ? "in" : "out",
                        (long long)(!in && in_bytes ? e.in : e.out));
    const bool own = e.at >= 0 && (e.in > e.out ? out == in + at : in == out + at);
    const bool same = in == out && (e.in == e.out || call->kind == TD_COLL_REDUCE_SCATTER);
    if (!apart(in, in_bytes, out, out_bytes) && !own && !same)
        return td__fail(TD_ERR_ARGUMENT, "%s: in and out share memory; they may only %s", who,
                        e.at >= 0 ? "where one is this rank's part of the other" : "when they are the same");
    return 0;
}

static int make_from_memory(const char *who, td__call *call, td_coll *coll)
{
    const td_coll_kind kind = call->kind;
    const int n = call->comm->size, me = call->comm->rank;
    const bool at_root = !has_root(kind) || me == call->root;
    int code = td__dtype_check(who, call->dtype);
    if (!code && reduces(kind))
        code = check_reduction(who, call->op, call->dtype);
    const size_t size = code ? 1 : td_dtype_size(call->dtype);
    extent e = { call->count, call->count, -1 };
    int64_t all;
    if (!code && (call->count < 0 || __builtin_mul_overflow(call->count, (int64_t)size * n, &all)))
        code = td__fail(TD_ERR_ARGUMENT, "%s: the count is %lld", who, (long long)call->count);
    if (code)
        return code;
    *coll = (td_coll){ .kind = kind, .dtype = call->dtype, .count = call->count, .in = call->raw_in, .out = call->raw_out };
    switch (kind) {
    case TD_COLL_REDUCE: e.out = at_root ? e.out : 0; break;
    case TD_COLL_REDUCE_SCATTER: e.in *= n, e.at = call->count * me; break;
    case TD_COLL_ALL_GATHER: e.out *= n, e.at = call->count * me; break;
    case TD_COLL_GATHER: e.out = at_root ? e.out * n : 0, e.at = call->count * me; break;
    case TD_COLL_SCATTER: e.in = at_root ? e.in * n : 0, e.at = call->count * me; break;
    case TD_COLL_ALL_TO_ALL: e.in *= n, e.out *= n; break;
    default: break;
    }
    if (call->uneven) {
        const bool gather = kind == TD_COLL_ALL_GATHER;
        e.out = check_counts(who, gather ? "counts" : "out_counts", call->rows, n);
        e.in = e.out < 0 ? -1 : gather ? call->rows[me] : check_counts(who, "in_counts", call->in_rows, n);
        if (e.out < 0 || e.in < 0)
            return td__pending();
        e.at = gather ? before(call->rows, me) : -1;
        coll->counts = call->rows;
        coll->in_counts = call->in_rows;
        coll->count = gather ? e.out : 0;
        if (!gather && call->raw_in == call->raw_out && e.in && memcmp(call->rows, call->in_rows, (size_t)n * sizeof *call->rows))
            return td__fail(TD_ERR_ARGUMENT, "%s: in and out share memory; they may only when in_counts and out_counts are equal", who);
    }
    if (!e.in)
        coll->in = NULL;
    if (!e.out)
        coll->out = NULL;
    return check_pointers(who, call, size, e);
}

int td__call_make(td__call *call, td_coll *coll)
{
    const char *who = name_of(call);
    int code = check_call(who, call);
    *coll = (td_coll){ .kind = call->kind };
    if (!code && call->kind != TD_COLL_BARRIER)
        code = (call->raw ? make_from_memory : make_from_tensors)(who, call, coll);
    if (code)
        return code;
    coll->op = reduces(call->kind) ? call->op : TD_SUM;
    coll->root = has_root(call->kind) ? call->root : 0;
    coll->pre = coll->post = 1;
    coll->plain = true;
    coll->site = td__site;
    if (call->uneven) {
        coll->parts = call->comm->size;
        coll->uneven = td__uneven_hash(coll);
        if (coll->in_counts && coll->parts == 1 && coll->counts[0] != coll->in_counts[0])
            return td__fail(TD_ERR_MISMATCH, "%s: rank 0 sends %lld elements to rank 0, which expects %lld from it", who,
                            (long long)coll->in_counts[0], (long long)coll->counts[0]);
    }
    return 0;
}

void td__call_end(td__call *call)
{
    td__free(call->made[0]);
    td__free(call->made[1]);
}
