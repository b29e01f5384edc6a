/* tensor/cuda/index.cu: elements by index: whole slices (index_select; an embedding is one with outer 1) and single elements (gather).
 *
 * Twin of ../cpu/index.c. x is (outer, size, inner). What the gradient adds to one place is added in the order of the index, in double, without
 * atomics: the index is sorted with its positions (a bitonic sort of place and position in one word: no two are equal, so the order is one);
 * the sorted list is cut into runs of RUN, and each run sums, for every column, what of each place lies in it. A place that goes on in the
 * next run leaves its part in a table; a second kernel adds those in order. So a place that is named a thousand times costs no more than a thousand places.
 * A bad index goes to the trap (trap.h), reads place 0 and has no gradient.
 */
#include "packs.h"
#include "trap.h"

/* ---- checks ------------------------------------------------------------------------------------------------------------------------------ */
__global__ void __launch_bounds__(TD_THREADS) check_kernel(int64_t n, const int64_t *index, int64_t size, td_trap trap)
{
    TD_GRID_STRIDE(i, n)
        if (index[i] < 0 || index[i] >= size) {
            td_trap_meet(trap, i, index[i]);
            break;                                     /* what follows of this thread's comes later                                  */
        }
}

extern "C" void td__cuda_index_check(int64_t n, const int64_t *index, int64_t size, int64_t *bad)
{
    const td_trap trap = td_trap_of(bad);
    if (n > 0)
        TD_LAUNCH("index_check", td_blocks(n), TD_THREADS, 0, (check_kernel), n, index, size, trap);
}

/* a place that is there: a bad index was told of */
__device__ __forceinline__ int64_t place_of(int64_t index, int64_t size) { return index >= 0 && index < size ? index : 0; }

/* ---- slices: out[o,k,:] = x[o,index[k],:] ------------------------------------------------------------------------------------------------- */
/* `units` of U make a slice. I: uint32_t where all numbers of elements fit: division of 64 bits is a routine, with registers of its own to save. */
template <class U, class I>
__global__ void __launch_bounds__(TD_THREADS) select_kernel(int64_t n, int64_t size, int64_t count, int64_t units, U *out, const U *x, const int64_t *index)
{
    TD_GRID_STRIDE(i, n) {
        const int64_t row = (I)i / (I)units, o = (I)row / (I)count;
        out[i] = x[(o * size + place_of(index[row - o * count], size)) * units + (i - row * units)];
    }
}

template <class U> static void select(int64_t outer, int64_t size, int64_t count, int64_t bytes, void *out, const void *x, const int64_t *index)
{
    const int64_t units = bytes / (int64_t)sizeof(U), n = outer * count * units;
    if (n <= UINT32_MAX)
        TD_LAUNCH("index_select", td_blocks(n), TD_THREADS, 0, (select_kernel<U, uint32_t>), n, size, count, units, (U *)out, (const U *)x, index);
    else
        TD_LAUNCH("index_select", td_blocks(n), TD_THREADS, 0, (select_kernel<U, int64_t>), n, size, count, units, (U *)out, (const U *)x, index);
}

extern "C" void td__cuda_index_select(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index)
{
    const int64_t bytes = (int64_t)td_dtype_size(t) * inner;
    if (outer * count * inner <= 0 || size <= 0)
        return;
    if (bytes % 16 == 0 && td_packed(out) && td_packed(x))
        select<uint4>(outer, size, count, bytes, out, x, index);
    else
        TD_CUDA_SIZE(t, U, select<U>(outer, size, count, bytes, out, x, index))
}

/* ---- sorting: word = place << shift | position; what is left out, and the padding to a power of two, is OUT ---------------------------------- */
#define OUT (~(uint64_t)0)
enum { SORT_THREADS = 512, SORT_BLOCK = 2 * SORT_THREADS };

__global__ void __launch_bounds__(TD_THREADS) words_kernel(int64_t padded, int64_t count, int64_t size, int shift, const int64_t *index, int64_t skip,
                                                           uint64_t *word)
{
    TD_GRID_STRIDE(i, padded)
        word[i] = i < count && index[i] >= 0 && index[i] < size && index[i] != skip ? (uint64_t)index[i] << shift | (uint64_t)i : OUT;
}

__device__ __forceinline__ void order(uint64_t &a, uint64_t &b, bool up)
{
    if ((a > b) == up) {
        const uint64_t was = a;
        a = b;
        b = was;
    }
}

/* All steps of distance under SORT_BLOCK of the stages from `from` to `to` (runs of so many words become sorted) */
__global__ void __launch_bounds__(SORT_THREADS) sort_block(uint64_t *word, int64_t from, int64_t to)
{
    __shared__ uint64_t s[SORT_BLOCK];
    const int64_t base = (int64_t)blockIdx.x * SORT_BLOCK;
    const int i = threadIdx.x;
    s[i] = word[base + i];
    s[i + SORT_THREADS] = word[base + i + SORT_THREADS];
    for (int64_t k = from; k <= to; k *= 2)
        for (int j = k / 2 < SORT_THREADS ? (int)(k / 2) : (int)SORT_THREADS; j > 0; j /= 2) {
            const int a = 2 * i - (i & (j - 1));
            __syncthreads();
            order(s[a], s[a + j], ((base + a) & k) == 0);
        }
    __syncthreads();
    word[base + i] = s[i];
    word[base + i + SORT_THREADS] = s[i + SORT_THREADS];
}

__global__ void __launch_bounds__(TD_THREADS) sort_step(uint64_t *word, int64_t half, int64_t k, int64_t j)
{
    TD_GRID_STRIDE(i, half) {
        const int64_t a = 2 * i - (i & (j - 1));
        uint64_t p = word[a], q = word[a + j];
        order(p, q, (a & k) == 0);
        word[a] = p;
        word[a + j] = q;
    }
}

static void sort_words(const char *row, int64_t padded, uint64_t *word)
{
    const unsigned blocks = (unsigned)(padded / SORT_BLOCK);
    TD_LAUNCH(row, blocks, SORT_THREADS, 0, (sort_block), word, 2, SORT_BLOCK);
    for (int64_t k = 2 * SORT_BLOCK; k <= padded; k *= 2) {
        for (int64_t j = k / 2; j >= SORT_BLOCK; j /= 2)
            TD_LAUNCH(row, td_blocks(padded / 2), TD_THREADS, 0, (sort_step), word, padded / 2, k, j);
        TD_LAUNCH(row, blocks, SORT_THREADS, 0, (sort_block), word, k, k);
    }
}

/* ---- the gradient of slices ------------------------------------------------------------------------------------------------------------- */
enum { RUN = 32 };

template <class T> __global__ void __launch_bounds__(TD_THREADS) zero_kernel(int64_t n, T *x)
{
    TD_GRID_STRIDE(i, n)
        td_store<T>(x + i, 0);
}

/* One thread for each run and column (of outer*inner). A place that began in an earlier run leaves its sum in head, one that begins here and goes
 * on in tail; any other is written. */
template <class T>
__global__ void __launch_bounds__(TD_THREADS) run_kernel(int64_t tasks, int64_t columns, int64_t size, int64_t count, int64_t inner, int shift, T *gx,
                                                         const T *g, const uint64_t *word, double *head, double *tail, bool add)
{
    TD_GRID_STRIDE(task, tasks) {
        const int64_t run = task / columns, column = task - run * columns, o = column / inner, i = column - o * inner;
        const int64_t begin = run * RUN, end = begin + RUN < count ? begin + RUN : count;
        const T *from = g + o * count * inner + i;
        T *to = gx + o * size * inner + i;
        uint64_t now = word[begin], next;
        bool began = run > 0 && now != OUT && word[begin - 1] >> shift == now >> shift;
        double sum = 0;
        for (int64_t k = begin; k < end && now != OUT; k++, now = next) {
            const int64_t place = (int64_t)(now >> shift);
            sum += (double)td_load<T>(from + (int64_t)(now & (((uint64_t)1 << shift) - 1)) * inner);
            next = k + 1 < count ? word[k + 1] : OUT;
            const bool goes_on = next != OUT && (int64_t)(next >> shift) == place;
            if (goes_on && k + 1 < end)
                continue;
            if (began)
                head[task] = sum;
            else if (goes_on)
                tail[task] = sum;
            else
                td_store<T>(to + place * inner, (td_wide<T>)((add ? (double)td_load<T>(to + place * inner) : 0) + sum));
            began = false;
            sum = 0;
        }
    }
}

/* The places that go on: the run where one begins adds up the heads after it. */
template <class T>
__global__ void __launch_bounds__(TD_THREADS) join_kernel(int64_t tasks, int64_t columns, int64_t size, int64_t count, int64_t inner, int shift, T *gx,
                                                          const uint64_t *word, const double *head, const double *tail, bool add)
{
    TD_GRID_STRIDE(task, tasks) {
        const int64_t run = task / columns, column = task - run * columns, o = column / inner, i = column - o * inner;
        int64_t end = (run + 1) * RUN;
        if (end >= count || word[end] == OUT)
            continue;
        const uint64_t place = word[end] >> shift;
        if (word[end - 1] >> shift != place || (run > 0 && word[run * RUN - 1] >> shift == place))
            continue;
        double sum = tail[task];
        for (int64_t next = task + columns; end < count && word[end] != OUT && word[end] >> shift == place; end += RUN, next += columns)
            sum += head[next];
        T *to = gx + ((int64_t)o * size + (int64_t)place) * inner + i;
        td_store<T>(to, (td_wide<T>)((add ? (double)td_load<T>(to) : 0) + sum));
    }
}

template <class T>
static void add_slices(const char *row, int64_t outer, int64_t size, int64_t count, int64_t inner, T *gx, const T *g, const int64_t *index, int64_t skip,
                       bool add)
{
    const int64_t columns = outer * inner, runs = (count + RUN - 1) / RUN, tasks = runs * columns;
    int64_t padded = SORT_BLOCK;
    int shift = 0;
    if (!add && columns * size > 0)
        TD_LAUNCH(row, td_blocks(columns * size), TD_THREADS, 0, (zero_kernel<T>), columns * size, gx);
    if (tasks == 0)
        return;
    while (padded < count)
        padded *= 2;
    while ((int64_t)1 << shift < count)
        shift++;
    uint64_t *word = (uint64_t *)td__cuda_scratch(sizeof *word * (size_t)padded + sizeof(double) * 2 * (size_t)tasks);
    if (!word)
        return;
    double *head = (double *)(word + padded), *tail = head + tasks;
    TD_LAUNCH(row, td_blocks(padded), TD_THREADS, 0, (words_kernel), padded, count, size, shift, index, skip, word);
    sort_words(row, padded, word);
    TD_LAUNCH(row, td_blocks(tasks), TD_THREADS, 0, (run_kernel<T>), tasks, columns, size, count, inner, shift, gx, g, (const uint64_t *)word, head, tail,
              add);
    TD_LAUNCH(row, td_blocks(tasks), TD_THREADS, 0, (join_kernel<T>), tasks, columns, size, count, inner, shift, gx, (const uint64_t *)word,
              (const double *)head, (const double *)tail, add);
    td__cuda_scratch_free(word);
}

extern "C" void td__cuda_index_select_grad(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *gx, const void *g,
                                           const int64_t *index, int64_t skip, bool add)
{
    TD_CUDA_FLOAT(t, T, add_slices<T>("index_select_grad", outer, size, count, inner, (T *)gx, (const T *)g, index, skip, add))
}

/* ---- elements: out[o,k,i] = x[o,index[o,k,i],i] -------------------------------------------------------------------------------------------- */
template <class U, class I>
__global__ void __launch_bounds__(TD_THREADS) gather_kernel(int64_t n, int64_t size, int64_t count, int64_t inner, U *out, const U *x, const int64_t *index)
{
    TD_GRID_STRIDE(at, n) {
        const int64_t row = (I)at / (I)inner, o = (I)row / (I)count;
        out[at] = x[(o * size + place_of(index[at], size)) * inner + (at - row * inner)];
    }
}

template <class U> static void gather(int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index)
{
    const int64_t n = outer * count * inner;
    if (n <= UINT32_MAX)
        TD_LAUNCH("gather", td_blocks(n), TD_THREADS, 0, (gather_kernel<U, uint32_t>), n, size, count, inner, (U *)out, (const U *)x, index);
    else
        TD_LAUNCH("gather", td_blocks(n), TD_THREADS, 0, (gather_kernel<U, int64_t>), n, size, count, inner, (U *)out, (const U *)x, index);
}

extern "C" void td__cuda_gather(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index)
{
    if (outer * count * inner > 0 && size > 0)
        TD_CUDA_SIZE(t, U, gather<U>(outer, size, count, inner, out, x, index))
}

/* A thread for each line (o, i): it alone writes there. count 1: nothing can meet. */
template <class T>
__global__ void __launch_bounds__(TD_THREADS) lines_kernel(int64_t lines, int64_t size, int64_t count, int64_t inner, double *sum, const T *g,
                                                           const int64_t *index)
{
    TD_GRID_STRIDE(line, lines) {
        const int64_t o = line / inner, i = line - o * inner;
        for (int64_t k = 0; k < count; k++) {
            const int64_t from = (o * count + k) * inner + i;
            if (index[from] >= 0 && index[from] < size)
                sum[(o * size + index[from]) * inner + i] += (double)td_load<T>(g + from);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(TD_THREADS) single_kernel(int64_t lines, int64_t size, int64_t inner, T *gx, const T *g, const int64_t *index)
{
    TD_GRID_STRIDE(line, lines) {
        const int64_t o = line / inner, i = line - o * inner;
        if (index[line] >= 0 && index[line] < size)
            td_put<T>(gx + (o * size + index[line]) * inner + i, td_load<T>(g + line), true);
    }
}

template <class T> __global__ void __launch_bounds__(TD_THREADS) round_kernel(int64_t n, T *gx, const double *sum, bool add)
{
    TD_GRID_STRIDE(i, n)
        td_store<T>(gx + i, (td_wide<T>)((add ? (double)td_load<T>(gx + i) : 0) + sum[i]));
}

__global__ void __launch_bounds__(TD_THREADS) places_kernel(int64_t n, int64_t size, int64_t count, int64_t inner, int64_t *place, const int64_t *index)
{
    TD_GRID_STRIDE(at, n) {
        const int64_t row = at / inner;
        place[at] = index[at] >= 0 && index[at] < size ? (row / count * size + index[at]) * inner + (at - row * inner) : -1;
    }
}

/* Few lines with many elements each have too few threads: there every element of x is a place, and the index is sorted. */
enum { FEW_LINES = 8192, LONG = 32 };

template <class T>
static void gather_grad(int64_t outer, int64_t size, int64_t count, int64_t inner, T *gx, const T *g, const int64_t *index, bool add)
{
    const char *row = "gather_grad";
    const int64_t lines = outer * inner, n = lines * count, all = lines * size;
    if (all == 0)
        return;
    if (n == 0 || count == 1) {
        if (!add)
            TD_LAUNCH(row, td_blocks(all), TD_THREADS, 0, (zero_kernel<T>), all, gx);
        if (n)
            TD_LAUNCH(row, td_blocks(lines), TD_THREADS, 0, (single_kernel<T>), lines, size, inner, gx, g, index);
    } else if (lines < FEW_LINES && count > LONG) {
        int64_t *place = (int64_t *)td__cuda_scratch(sizeof *place * (size_t)n);
        if (!place)
            return;
        TD_LAUNCH(row, td_blocks(n), TD_THREADS, 0, (places_kernel), n, size, count, inner, place, index);
        add_slices<T>(row, 1, all, n, 1, gx, g, place, -1, add);
        td__cuda_scratch_free(place);
    } else {
        double *sum = (double *)td__cuda_scratch(sizeof *sum * (size_t)all);
        if (!sum)
            return;
        TD_LAUNCH(row, td_blocks(all), TD_THREADS, 0, (zero_kernel<double>), all, sum);
        TD_LAUNCH(row, td_blocks(lines), TD_THREADS, 0, (lines_kernel<T>), lines, size, count, inner, sum, g, index);
        TD_LAUNCH(row, td_blocks(all), TD_THREADS, 0, (round_kernel<T>), all, gx, (const double *)sum, add);
        td__cuda_scratch_free(sum);
    }
}

extern "C" void td__cuda_gather_grad(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *gx, const void *g, const int64_t *index,
                                     bool add)
{
    TD_CUDA_FLOAT(t, T, gather_grad<T>(outer, size, count, inner, (T *)gx, (const T *)g, index, add))
}
