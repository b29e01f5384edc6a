/* plugins/cuda/nccl_start.c: one collective as one call of NCCL (or one group of messages: nccl_parts.c), between two events.
 *
 * The communication stream waits for what the compute stream was given so far; the event behind the collective is what a wait makes the compute
 * stream wait for.
 *
 * Factors. pre * post (and 1/ranks for a mean) is one factor of this rank's part, multiplied by NCCL as it reads the part, in an operator made for
 * this call. Ranks' factors may differ, but the kind of operator may not, because NCCL chooses its algorithm by it: so only what every rank
 * knows decides. 16-bit types hold few factors exactly, and one that is off is off for every element: there the part is scaled by a
 * kernel (in f32, rounded once per element) when the factor is none of them. A factor of 0 means that the part must not be read, since it may
 * hold NaN: it is overwritten by zeros first.
 */
#include "nccl_impl.h"
#include <convert.h>
#include <stdio.h>

int nccl_type(td_dtype t)
{
    switch (t) {
    case TD_F64: return NCCL_FLOAT64;
    case TD_F32: return NCCL_FLOAT32;
    case TD_F16: return NCCL_FLOAT16;
    case TD_BF16: return NCCL_BFLOAT16;
    case TD_I64: return NCCL_INT64;
    case TD_I32: return NCCL_INT32;
    case TD_U8:
    case TD_BOOL: return NCCL_UINT8;
    default: return -1;
    }
}

/* What is to be done with this rank's part, and what NCCL is to multiply it by. */
typedef struct {
    bool   reduces, multiplies;                        /* the same on all ranks                                                   */
    bool   clear, scale;                               /* before: zeros, or times `factor`                                        */
    double factor, scalar;
} plan;

static double rounded(td_dtype t, double x)
{
    return t == TD_F16 ? (double)td__f16_to_f32(td__f32_to_f16((float)x)) : t == TD_BF16 ? (double)td__bf16_to_f32(td__f32_to_bf16((float)x)) : x;
}

static int make_plan(const nccl_state *s, const td_coll *coll, plan *p, char *error, size_t size)
{
    const bool sums = coll->op == TD_SUM || coll->op == TD_MEAN, whole = coll->dtype != TD_F64 && coll->dtype != TD_F32 && coll->dtype != TD_F16 &&
                      coll->dtype != TD_BF16;
    *p = (plan){ .reduces = coll->kind == TD_COLL_ALL_REDUCE || coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_REDUCE,
                  .factor = 1, .scalar = 1 };
    if (!p->reduces || !sums || (coll->plain && coll->op == TD_SUM))
        return 0;
    p->factor = coll->pre * coll->post;
    p->clear = p->factor == 0;
    if (whole && (coll->op == TD_MEAN || (p->factor != 1 && !p->clear))) {
        snprintf(error, size, "sums of %s on a GPU cannot be scaled", td_dtype_name(coll->dtype));
        return TD_ERR_DTYPE;
    }
    if (whole || coll->plain)
        return 0;
    p->multiplies = true;
    if (coll->op == TD_MEAN)
        p->factor /= s->ranks;
    p->scale = !p->clear && rounded(coll->dtype, p->factor) != p->factor;
    p->scalar = p->scale || p->clear ? 1 : p->factor;
    return 0;
}

static int operator_of(const nccl_state *s, const td_coll *coll, const plan *p, int *op)
{
    *op = coll->op == TD_MIN ? NCCL_MIN : coll->op == TD_MAX ? NCCL_MAX : coll->op == TD_PRODUCT ? NCCL_PRODUCT : coll->op == TD_MEAN ? NCCL_AVG : NCCL_SUM;
    if (!p->multiplies)
        return NCCL_OK;
    union { double f64; float f32; td_f16 f16; td_bf16 bf16; } scalar;
    switch (coll->dtype) {
    case TD_F64: scalar.f64 = p->scalar; break;
    case TD_F32: scalar.f32 = (float)p->scalar; break;
    case TD_F16: scalar.f16 = td__f32_to_f16((float)p->scalar); break;
    default: scalar.bf16 = td__f32_to_bf16((float)p->scalar); break;
    }
    return s->lib->premul(op, &scalar, nccl_type(coll->dtype), NCCL_SCALAR_HOST, s->comm);
}

static const char *const names[] = { "a barrier's ncclAllReduce", "ncclBroadcast", "ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclReduce" };

/* NCCL has one call for it. */
static bool has_call(const td_coll *coll)
{
    return coll->kind <= TD_COLL_REDUCE && !coll->counts;
}

/* Under the lock. */
static int call(nccl_state *s, const td_coll *coll, const plan *p, const void *in, const td_patience *patience, char *error, size_t size)
{
    const size_t n = (size_t)coll->count;
    const int t = nccl_type(coll->dtype);
    const char *name = has_call(coll) ? names[coll->kind] : "";
    int op, result = operator_of(s, coll, p, &op);
    if (result != NCCL_OK)
        return nccl_failed(s, result, "ncclRedOpCreatePreMulSum", error, size);
    switch (coll->kind) {
    case TD_COLL_BARRIER: result = s->lib->all_reduce(s->byte, s->byte, 1, NCCL_UINT8, NCCL_MAX, s->comm, s->stream); break;
    case TD_COLL_BROADCAST: result = s->lib->broadcast(in, coll->out, n, t, coll->root, s->comm, s->stream); break;
    case TD_COLL_ALL_REDUCE: result = s->lib->all_reduce(in, coll->out, n, t, op, s->comm, s->stream); break;
    case TD_COLL_REDUCE_SCATTER: result = s->lib->reduce_scatter(in, coll->out, n, t, op, s->comm, s->stream); break;
    case TD_COLL_REDUCE: result = s->lib->reduce(in, coll->out, n, t, op, coll->root, s->comm, s->stream); break;
    case TD_COLL_ALL_GATHER:
        if (!coll->counts) {
            result = s->lib->all_gather(in, coll->out, n, t, s->comm, s->stream);
            break;
        }
        /* fall through */
    default: result = nccl_parts(s, coll, in, &name); break;
    }
    int code = nccl_settle(s, result, name, patience, error, size);
    if (p->multiplies && s->comm)
        s->lib->premul_free(op, s->comm);
    return code;
}

static int cuda_error(cudaError_t e, char *error, size_t size)
{
    if (e == cudaSuccess)
        return 0;
    snprintf(error, size, "%s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
    return TD_ERR_DEVICE;
}

static int64_t sent(const nccl_state *s, const td_coll *coll)
{
    int64_t n = coll->count * (coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_ALL_TO_ALL ? s->ranks : 1);
    for (int r = 0; r < s->ranks && coll->in_counts; r++)
        n += coll->in_counts[r];
    return n;
}

/* This rank's part as it is to be sent, made on the compute stream: the tensor itself, changed where the collective overwrites it anyway, else a
 * copy (*copy, the caller's): factors must not show in what the user passed, and messages of an exchange in place would overwrite each other. */
static const void *prepare(const nccl_state *s, const td_coll *coll, const plan *p, void **copy)
{
    const int64_t n = sent(s, coll);
    const size_t bytes = (size_t)n * td_dtype_size(coll->dtype);
    const bool exchange = coll->kind == TD_COLL_ALL_TO_ALL && coll->in == coll->out && n;
    if (!p->clear && !p->scale && !exchange)
        return coll->in;
    void *into = coll->kind == TD_COLL_ALL_REDUCE ? coll->out : (*copy = cuda_alloc(s->index, bytes));
    if (into && exchange)
        return cudaMemcpyAsync(into, coll->in, bytes, cudaMemcpyDeviceToDevice, cuda_compute) == cudaSuccess ? into : NULL;
    if (into && p->clear)
        return cudaMemsetAsync(into, 0, bytes, cuda_compute) == cudaSuccess ? into : NULL;
    if (into)
        td__cuda_kernels.combine(coll->dtype, TD_COMBINE_SUM, n, 1, &coll->in, &p->factor, 1, &into, 1);
    return into && !cuda_host->pending() ? into : NULL;
}

int nccl_start(void *state, const td_coll *coll, void *begin, void *end, const td_patience *patience, char *error, size_t size)
{
    nccl_state *s = state;
    plan p;
    void *copy = NULL;
    enum cudaStreamCaptureStatus captured = cudaStreamCaptureStatusNone;
    int code = cuda_use(s->index);
    if (!code && coll->kind != TD_COLL_BARRIER && nccl_type(coll->dtype) < 0) {
        snprintf(error, size, "NCCL has no type for %s", td_dtype_name(coll->dtype));
        code = TD_ERR_DTYPE;
    }
    code = code ? code : make_plan(s, coll, &p, error, size);
    const bool moves = coll->kind == TD_COLL_BARRIER || (coll->in_counts ? coll->most : coll->count) > 0;
    const void *in = code || !moves ? NULL : prepare(s, coll, &p, &copy);
    if (!code && moves && !in && coll->in && coll->kind != TD_COLL_BARRIER)
        code = cuda_host->pending() ? cuda_host->pending() : TD_ERR_DEVICE;
    if (!code)
        code = cuda_error(cudaStreamIsCapturing(cuda_compute, &captured), error, size);
    if (!code)
        code = cuda_error(cudaEventRecord(s->ready, cuda_compute), error, size);
    if (!code)
        code = cuda_error(cudaStreamWaitEvent(s->stream, s->ready, 0), error, size);
    if (!code)
        code = cuda_error(cudaEventRecord(begin, s->stream), error, size);
    if (!code && moves) {
        pthread_mutex_lock(&s->lock);
        code = s->comm ? call(s, coll, &p, in, patience, error, size) : TD_ERR_ABORTED;
        pthread_mutex_unlock(&s->lock);
    }
    if (!code)
        code = cuda_error(cudaEventRecord(end, s->stream), error, size);
    if (copy) {                                        /* the allocator knows the compute stream alone                              */
        if (!code)
            code = cuda_error(cudaStreamWaitEvent(cuda_compute, end, 0), error, size);
        cuda_free(s->index, copy);
    }
    return code ? code : captured != cudaStreamCaptureStatusNone;
}
