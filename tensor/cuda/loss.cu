/* tensor/cuda/loss.cu: cross-entropy and mean squared error, each with its gradient.
 *
 * Twin of ../cpu/loss.c. Cross-entropy is fused: one pass over the logits keeps the largest so far and the sum of exponentials relative to it
 * (in f64), and leaves the log-sum-exp of each row; the gradient is a second pass, over flat elements. No probabilities are stored. Sums over
 * rows or elements are made in f64 in two launches (parts.h). No row kept: the mean is 0/0, NaN, and the gradient exactly zero.
 */
#include "parts.h"
#include "vector.h"

/* ---- cross-entropy ------------------------------------------------------------------------------------------------------------------------ */
/* What the neighbours of one load are summed in: f32 where that is more than the logits have; each step to f64 is dear. */
template <class T> struct few_of { typedef double type; };
template <> struct few_of<td_half> { typedef float type; };
template <> struct few_of<td_bfloat> { typedef float type; };

/* The sum of exp(x) seen so far is sum * exp(most). Nothing seen: -inf and 0. Once a NaN, always NaN. */
template <class W> struct running { W most; double sum, plain; };

template <class T, int V> __device__ __forceinline__ void run_on(running<td_wide<T>> &a, const td_vector<T, V> &v, bool smooth)
{
    typedef td_wide<T> W;
    W most = td_load<T>(&v.v[0]);
    for (int j = 1; j < V; j++)
        most = td_op_max()(most, td_load<T>(&v.v[j]));
    if (!(most <= a.most)) {
        a.sum *= (double)exp(a.most - most);
        a.most = most;
    }
    if (a.most != (W)-INFINITY) {              /* else all are -inf                                                              */
        typename few_of<T>::type few = 0;
        for (int j = 0; j < V; j++)
            few += exp(td_load<T>(&v.v[j]) - a.most);
        a.sum += (double)few;
    }
    if (smooth)
        for (int j = 0; j < V; j++)
            a.plain += (double)td_load<T>(&v.v[j]);
}

/* Over the threads of a row: 32, else the block. */
template <class A, class O> __device__ __forceinline__ A over_row(A a, O op, int lanes)
{
    return lanes == 32 ? td_warp_all(a, op) : td_block_all(a, op);
}

/* A block has the rows from blockIdx.x*size; each is `lanes` threads'. */
template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS, 3) cross_entropy_kernel(int64_t rows, int64_t n, int64_t size, int lanes, const T *logits,
                                                                   const int64_t *target, double smoothing, bool has_ignore, int64_t ignore,
                                                                   td_stat<T> *lse, td_part *part)
{
    typedef td_wide<T> W;
    const int lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
    const int64_t begin = (int64_t)blockIdx.x * size, end = begin + size < rows ? begin + size : rows;
    td_part mine = { 0, 0, INT64_MAX };
    for (int64_t first = begin; first < end; first += groups) {
        const int64_t r = first + threadIdx.x / lanes, t = r < end ? target[r] : 0;
        const bool ignored = r < end && has_ignore && t == ignore, wrong = r < end && !ignored && (t < 0 || t >= n);
        const bool counts = r < end && !ignored && !wrong;
        const T *x = logits + r * n;
        running<W> a = { (W)-INFINITY, 0, 0 };
        if (counts) {                          /* what is before the first 16 bytes of the row and after the last is a thread's each */
            const int64_t to_even = (int64_t)(-(uintptr_t)x % 16 / sizeof(T)), head = to_even < n ? to_even : n, last = head + (n - head) / V * V;
            if (lane < head)
                run_on<T, 1>(a, td_load_vector<T, 1>(x + lane), smoothing > 0);
            for (int64_t i = lane; i < (n - head) / V; i += lanes)
                run_on<T, V>(a, td_load_vector<T, V>(x + head + i * V), smoothing > 0);
            if (last + lane < n)
                run_on<T, 1>(a, td_load_vector<T, 1>(x + last + lane), smoothing > 0);
        }
        const W most = over_row(a.most, td_op_max(), lanes);
        double sum = a.most == (W)-INFINITY ? 0 : a.sum * (double)exp(a.most - most);
        sum = over_row(sum, td_op_sum(), lanes);
        const double plain = smoothing > 0 ? over_row(a.plain, td_op_sum(), lanes) : 0;
        if (lane != 0 || r >= end)
            continue;
        /* nothing but -inf has no softmax */
        const double log_sum = !counts ? 0 : most == (W)-INFINITY ? (double)NAN : (double)most + log(sum);
        lse[r] = (td_stat<T>)log_sum;
        if (wrong)
            mine.bad = r < mine.bad ? r : mine.bad;
        if (!counts)
            continue;
        double row = log_sum - (double)td_load<T>(x + t);
        if (smoothing > 0)
            row = (1 - smoothing) * row + smoothing * (log_sum - plain / (double)n);
        mine.sum += row;
        mine.kept++;
    }
    mine = td_block_part(mine);
    if (threadIdx.x == 0)
        part[blockIdx.x] = mine;
}

/* gx = gloss/kept * (softmax - (1-smoothing)*[i == target] - smoothing/n), and exactly zero for rows that do not count. A thread has V
 * neighbours, which may lie in several rows: classes are seldom a multiple of 16 bytes. */
template <class T> struct row_grad {
    td_wide<T> lse;
    int64_t target;
    bool counts;
    __device__ __forceinline__ row_grad(int64_t r, int64_t n, const int64_t *targets, const td_stat<T> *lses, bool any, bool has_ignore, int64_t ignore)
        : lse((td_wide<T>)lses[r]), target(targets[r])
    {
        counts = any && !(has_ignore && target == ignore) && target >= 0 && target < n;
    }
};

template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS, 3) cross_entropy_grad_kernel(int64_t first, int64_t end, int64_t n, T *gx, const td_stat<T> *gloss,
                                                                        const T *logits, const int64_t *target, const td_stat<T> *lse,
                                                                        const td_stat<T> *kept, double smoothing, bool has_ignore, int64_t ignore,
                                                                        bool add)
{
    typedef td_wide<T> W;
    const bool any = *kept > 0;
    const W scale = any ? *gloss / *kept : 0, low = (W)(smoothing / (double)n), high = (W)(1 - smoothing);
    const bool narrow = end <= 0xffffffff;
    TD_GRID_STRIDE(i, (end - first) / V) {
        const int64_t at = first + i * V;
        int64_t r = narrow ? (int64_t)((uint32_t)at / (uint32_t)n) : at / n, c = at - r * n;
        const td_vector<T, V> x = td_load_vector<T, V>(logits + at);
        row_grad<T> row(r, n, target, lse, any, has_ignore, ignore);
        td_vector<T, V> o;
        if (add)
            o = td_load_vector<T, V>(gx + at);
        TD_UNROLLED
        for (int j = 0; j < V; j++, c++) {
            if (c == n) {
                c = 0;
                row = row_grad<T>(++r, n, target, lse, any, has_ignore, ignore);
            }
            W d = 0;
            if (row.counts) {
                W p = exp(td_load<T>(&x.v[j]) - row.lse);
                if (c == row.target)
                    p -= high;
                d = scale * (p - low);
            }
            if (!add || row.counts)
                td_put<T>(&o.v[j], d, add);
        }
        td_store_vector<T, V>(gx + at, o);
    }
}

template <class T, int V>
static void cross_entropy(int64_t rows, int64_t n, const T *logits, const int64_t *target, double smoothing, bool has_ignore, int64_t ignore,
                          td_stat<T> *loss, td_stat<T> *lse, td_stat<T> *kept, const td_trap &trap)
{
    const int lanes = n / V <= 2048 ? 32 : (int)TD_THREADS;
    const int64_t size = td_part_size(rows, 1), parts = (rows + size - 1) / size;
    const unsigned threads = lanes == 32 && size < TD_THREADS / 32 ? 32 * (unsigned)size : (unsigned)TD_THREADS;
    td_part *part = (td_part *)td__cuda_scratch((size_t)(parts > 0 ? parts : 1) * sizeof *part);
    if (!part)
        return;
    if (parts)
        TD_LAUNCH("cross_entropy", (unsigned)parts, threads, 0, (cross_entropy_kernel<T, V>), rows, n, size, lanes, logits, target, smoothing,
                  has_ignore, ignore, lse, part);
    TD_LAUNCH("cross_entropy", 1, td_threads_for(parts), 0, (td_parts_kernel<td_stat<T>, td_stat<T>>), parts, part, loss, kept, trap, target);
    td__cuda_scratch_free(part);
}

extern "C" void td__cuda_cross_entropy(td_dtype t, int64_t rows, int64_t n, const void *logits, const int64_t *target, double smoothing,
                                       bool has_ignore, int64_t ignore, void *loss, void *lse, void *kept, int64_t *bad)
{
    const td_trap trap = td_trap_of(bad);
    TD_CUDA_FLOAT(t, T, {
        typedef td_stat<T> S;
        enum { V = td_widest<T>::N };
        cross_entropy<T, V>(rows, n, (const T *)logits, target, smoothing, has_ignore, ignore, (S *)loss, (S *)lse, (S *)kept, trap);
    })
}

extern "C" void td__cuda_cross_entropy_grad(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gloss, const void *logits,
                                            const int64_t *target, const void *lse, const void *kept, double smoothing, bool has_ignore,
                                            int64_t ignore, bool add)
{
    if (rows <= 0 || n <= 0)
        return;
    TD_CUDA_FLOAT(t, T, {
        typedef td_stat<T> S;
        enum { V = td_widest<T>::N };
        const bool packed = ((uintptr_t)logits | (uintptr_t)gx) % 16 == 0;
        const int64_t all = rows * n, last = packed ? all / V * V : 0;
        if (last)
            TD_LAUNCH("cross_entropy_grad", td_blocks(last / V), TD_THREADS, 0, (cross_entropy_grad_kernel<T, V>), 0, last, n, (T *)gx,
                      (const S *)gloss, (const T *)logits, target, (const S *)lse, (const S *)kept, smoothing, has_ignore, ignore, add);
        if (last < all)
            TD_LAUNCH("cross_entropy_grad", td_blocks(all - last), TD_THREADS, 0, (cross_entropy_grad_kernel<T, 1>), last, all, n, (T *)gx,
                      (const S *)gloss, (const T *)logits, target, (const S *)lse, (const S *)kept, smoothing, has_ignore, ignore, add);
    })
}

/* ---- mean squared error -------------------------------------------------------------------------------------------------------------------- */
template <class T> struct mse_of {
    const T *x, *y;
    __device__ __forceinline__ void operator()(int64_t i, td_part &p) const
    {
        const double d = (double)td_load<T>(x + i) - (double)td_load<T>(y + i);
        p.sum += d * d;
        p.kept++;
    }
};

template <class T>
__global__ void __launch_bounds__(TD_THREADS) mse_grad_kernel(int64_t n, T *gx, const T *gloss, const T *x, const T *y, double sign, bool add)
{
    typedef td_wide<T> W;
    const W scale = (W)(sign * 2 / (double)n) * td_load<T>(gloss);
    TD_GRID_STRIDE(i, n)
        td_put<T>(gx + i, scale * (td_load<T>(x + i) - td_load<T>(y + i)), add);
}

extern "C" void td__cuda_mse(td_dtype t, int64_t n, const void *x, const void *y, void *loss)
{
    TD_CUDA_FLOAT(t, T, {
        const mse_of<T> f = { (const T *)x, (const T *)y };
        td_mean_of<T>("mse", n, f, (T *)loss, NULL, td_trap(), NULL);
    })
}

extern "C" void td__cuda_mse_grad(td_dtype t, int64_t n, void *gx, const void *gloss, const void *x, const void *y, double sign, bool add)
{
    if (n <= 0)
        return;
    TD_CUDA_FLOAT(t, T, TD_LAUNCH("mse_grad", td_blocks(n), TD_THREADS, 0, (mse_grad_kernel<T>), n, (T *)gx, (const T *)gloss, (const T *)x,
                                  (const T *)y, sign, add))
}
