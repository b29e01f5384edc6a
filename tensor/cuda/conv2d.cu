/* tensor/cuda/conv2d.cu: convolution and its two gradients as tiled products whose second factor is never stored (implicit GEMM).
 *
 * Twin of ../cpu/conv2d.c. Each of the three is, per group, C (m,n) = sum over k of A (m,k) * B (k,n):
 *
 *            m                 n                        k                            A        B
 *   conv2d   output channel    pixel of all outputs     channel, kernel row, column  weights  x
 *   grad_x   input channel     pixel of all inputs      output channel, row, column  weights  gout
 *   grad_w   output channel    channel, row, column     pixel of all outputs         gout     x
 *
 * What an index says about places is worked out once per column (`column`, in registers) and once per tile of k (`term`, in shared memory);
 * an element of B lies at their sum, or is zero where that falls outside the image, or, in grad_x, between the strides. A block holds
 * BM x BN of C in registers and walks k in steps of BK through shared memory. With one or two channels per group (depthwise) tiles would
 * stand empty: there, and where all is small, a thread computes one element of C, or where
 * the sum is long a block does.
 *
 * Images lie as NCHW or NHWC, weights accordingly: one pair of strides each, of a channel and of a place, says it all. Tiles are made for
 * NCHW, where neighbours of n lie side by side; NHWC is right here, and fast in cuDNN (plugins/cuda/cudnn.c).
 *
 * f16 and bf16 are widened as they are read; sums are f32. The sum over k of grad_w is cut into parts by sizes alone, which are added in order by
 * a second kernel. So every result is the same on every run and device.
 */
#include "cuda.h"

extern "C" void td__cuda_sum(const td_reduce_loop *r, td_dtype t, void *out, const void *x, double scale, bool add);     /* reduce.cu */
extern "C" void td__cuda_add(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add);           /* elementwise.cu */
bool (*td__cuda_conv_library)(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add);

enum conv_mode { FORWARD, GRAD_X, GRAD_W };
enum { BK = 16, PAD = 4, FEW = 2, SMALL = 8192, SHORT = 512, WANTED_BLOCKS = 512, LEAST_PART = 512, BIAS_PART = 16384 };

struct conv_strides { int64_t channel, place; };        /* place: of a pixel, or in a window                                   */
/* One product for all groups. */
struct conv_job {
    td_conv2d_shape s;
    int64_t cg, og, m, n, k;         /* channels of a group; sizes of a group's product                                         */
    int64_t h, w;                    /* image that B reads: x, or gout for grad_x                                              */
    int64_t part, parts;             /* k of a part; how many (grad_w only)                                                     */
    int64_t tiles_m, tiles_n;
    conv_strides x, out, weights, b;      /* of x, of out and gout, of the weights; of what B reads                                   */
};
struct conv_place { int64_t a, b; int y, x; };         /* what k adds to the places in A, in B, to row and column              */

__device__ __forceinline__ void divide(int64_t i, int64_t d, int64_t &q, int64_t &r)
{
    if (i <= 0x7fffffff && d <= 0x7fffffff) {
        q = (int64_t)((uint32_t)i / (uint32_t)d);
        r = i - q * d;
    } else {
        q = i / d;
        r = i - q * d;
    }
}

/* Pixel i of all outputs: its image's place, and the row and column of x where its window begins. */
__device__ __forceinline__ void output_pixel(const td_conv2d_shape &s, int64_t i, int64_t &image, int64_t &at, int &y, int &x)
{
    int64_t oy, ox;
    divide(i, s.oh * s.ow, image, at);
    divide(at, s.ow, oy, ox);
    y = (int)(oy * s.stride - s.padding);
    x = (int)(ox * s.stride - s.padding);
}

__device__ __forceinline__ void kernel_place(const td_conv2d_shape &s, int64_t i, int64_t &channel, int64_t &row, int64_t &col)
{
    int64_t at;
    divide(i, s.kh * s.kw, channel, at);
    divide(at, s.kw, row, col);
}

template <int MODE> __device__ __forceinline__ conv_place term(const conv_job &j, int64_t k)
{
    const td_conv2d_shape &s = j.s;
    conv_place p;
    int64_t c, row, col;
    if (MODE == GRAD_W) {
        int64_t image, at;
        output_pixel(s, k, image, at, p.y, p.x);
        p.a = image * s.o * s.oh * s.ow + at * j.out.place;
        p.b = image * s.c * s.h * s.w;
    } else {
        kernel_place(s, k, c, row, col);
        const int sign = MODE == FORWARD ? 1 : -1;
        p.a = (MODE == FORWARD ? c * j.weights.channel : c * j.cg * s.kh * s.kw) + (row * s.kw + col) * j.weights.place;
        p.b = c * j.b.channel;
        p.y = sign * (int)row * s.dilation, p.x = sign * (int)col * s.dilation;
    }
    return p;
}

template <int MODE> __device__ __forceinline__ conv_place column(const conv_job &j, int64_t g, int64_t n)
{
    const td_conv2d_shape &s = j.s;
    conv_place p = { 0, 0, 0, 0 };
    int64_t image, at, c, row, col;
    if (MODE == FORWARD) {
        output_pixel(s, n, image, at, p.y, p.x);
        p.b = image * s.c * s.h * s.w + g * j.cg * j.b.channel;
    } else if (MODE == GRAD_X) {
        divide(n, s.h * s.w, image, at);
        divide(at, s.w, row, col);
        p.b = image * s.o * s.oh * s.ow + g * j.og * j.b.channel;
        p.y = (int)row + s.padding, p.x = (int)col + s.padding;
    } else {
        kernel_place(s, n, c, row, col);
        p.b = (g * j.cg + c) * j.b.channel;
        p.y = (int)row * s.dilation, p.x = (int)col * s.dilation;
    }
    return p;
}

/* where row m of A begins */
template <int MODE> __device__ __forceinline__ int64_t row_of(const conv_job &j, int64_t g, int64_t m)
{
    if (MODE == FORWARD)
        return (g * j.og + m) * j.k;
    if (MODE == GRAD_X)
        return g * j.og * j.cg * j.s.kh * j.s.kw + m * j.weights.channel;
    return (g * j.og + m) * j.out.channel;
}

template <int MODE, class T>
__device__ __forceinline__ td_wide<T> element_b(const conv_job &j, const T *b, const conv_place &c, const conv_place &t)
{
    int y = c.y + t.y, x = c.x + t.x;
    if (y < 0 || x < 0)
        return 0;
    if (MODE == GRAD_X && j.s.stride > 1) {
        const int qy = y / j.s.stride, qx = x / j.s.stride;
        if (qy * j.s.stride != y || qx * j.s.stride != x)
            return 0;
        y = qy, x = qx;
    }
    return y < j.h && x < j.w ? td_load<T>(b + c.b + t.b + ((int64_t)y * j.w + x) * j.b.place) : 0;
}

/* Where elements (…,n) of group g lie: (m,n) is m * step further. part: which of the partial sums. */
template <int MODE> __device__ __forceinline__ int64_t place_out(const conv_job &j, int64_t g, int64_t part, int64_t n, int64_t &step)
{
    int64_t image, at, c, row, col;
    if (MODE == GRAD_W) {
        step = j.n;
        kernel_place(j.s, n, c, row, col);
        return (part * j.s.groups + g) * j.m * j.n + c * j.weights.channel + (row * j.s.kw + col) * j.weights.place;
    }
    const int64_t pixels = MODE == FORWARD ? j.s.oh * j.s.ow : j.s.h * j.s.w, place = MODE == FORWARD ? j.out.place : j.x.place;
    step = MODE == FORWARD ? j.out.channel : j.x.channel;
    divide(n, pixels, image, at);
    return image * j.s.groups * j.m * pixels + g * j.m * step + at * place;
}

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

/* ---- tiles ------------------------------------------------------------------------------------------------------------------------- */

/* 256 threads, 16 x 16: thread (ty,tx) holds rows ty*TM … and, of every 64 columns, tx*4 …; TN is 4 or 8. O: T, or what partial sums are in. */
template <int MODE, class T, class O, int TM, int TN>
__global__ void __launch_bounds__(256, 2) tile_kernel(conv_job j, O *out, const T *a, const T *b, const T *bias, bool add)
{
    typedef td_wide<T> W;
    enum { BM = 16 * TM, BN = 16 * TN, A_EACH = BM * BK / 256, B_EACH = BN * BK / 256 };
    __shared__ __align__(16) W as[BK][BM + PAD];
    __shared__ __align__(16) W bs[BK][BN + PAD];
    __shared__ conv_place terms[2][BK];
    const int tid = threadIdx.x, tx = tid % 16, ty = tid / 16;
    int64_t tile = blockIdx.x, m0, n0, g, part;
    divide(tile, j.tiles_n, tile, n0);
    divide(tile, j.tiles_m, tile, m0);
    divide(tile, j.s.groups, part, g);
    m0 *= BM, n0 *= BN;
    const int64_t k_end = (part + 1) * j.part < j.k ? (part + 1) * j.part : j.k;

    /* Threads load neighbours along n where pixels are columns, along k where they are terms: pixels lie next to each other. */
    __shared__ conv_place columns[MODE == GRAD_W ? BN : 1];
    conv_place mine = { 0, 0, 0, 0 };
    if (MODE != GRAD_W)
        mine = column<MODE>(j, g, n0 + tid % BN < j.n ? n0 + tid % BN : j.n - 1);
    else if (tid < BN)                                 /* columns beyond the last repeat it; their sums are not stored        */
        columns[MODE == GRAD_W ? tid : 0] = column<MODE>(j, g, n0 + tid < j.n ? n0 + tid : j.n - 1);
    const int64_t row = row_of<MODE>(j, g, m0 + tid / BK), row_step = row_of<MODE>(j, g, 256 / BK) - row_of<MODE>(j, g, 0);
    const int64_t rows = (j.m - m0 - tid / BK + 256 / BK - 1) / (256 / BK);      /* of A that this thread loads, if they fit a tile */
    W acc[TM][TN];
    for (int r = 0; r < TM; r++)
        for (int c = 0; c < TN; c++)
            acc[r][c] = 0;

    int now = 0;
    if (tid < BK && part * j.part + tid < k_end)
        terms[0][tid] = term<MODE>(j, part * j.part + tid);
    for (int64_t k0 = part * j.part; k0 < k_end; k0 += BK, now ^= 1) {
        __syncthreads();                               /* the terms are there, and the tiles before are used up             */
        const bool ka = k0 + tid % BK < k_end;
        const int64_t at_a = row + (ka ? terms[now][tid % BK].a : 0);
#pragma unroll
        for (int i = 0; i < A_EACH; i++)
            as[tid % BK][tid / BK + i * (256 / BK)] = ka && i < rows ? td_load<T>(a + at_a + i * row_step) : (W)0;
#pragma unroll
        for (int i = 0; i < B_EACH; i++) {
            const int k = MODE == GRAD_W ? tid % BK : tid / BN + i * (256 / BN);
            const int n = MODE == GRAD_W ? tid / BK + i * (256 / BK) : tid % BN;
            bs[k][n] = k0 + k < k_end ? element_b<MODE, T>(j, b, MODE == GRAD_W ? columns[MODE == GRAD_W ? n : 0] : mine, terms[now][k]) : (W)0;
        }
        if (tid < BK && k0 + BK + tid < k_end)
            terms[now ^ 1][tid] = term<MODE>(j, k0 + BK + tid);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < BK; k++) {
            W x[TM], y[TN];
#pragma unroll
            for (int r = 0; r < TM; r++)
                x[r] = as[k][ty * TM + r];
#pragma unroll
            for (int c = 0; c < TN; c++)
                y[c] = bs[k][c / 4 * 64 + tx * 4 + c % 4];
#pragma unroll
            for (int r = 0; r < TM; r++)
#pragma unroll
                for (int c = 0; c < TN; c++)
                    acc[r][c] = fused(x[r], y[c], acc[r][c]);
        }
    }
#pragma unroll
    for (int c = 0; c < TN; c++) {
        const int64_t n = n0 + c / 4 * 64 + tx * 4 + c % 4, m = m0 + ty * TM;
        int64_t step, at = place_out<MODE>(j, g, part, n, step);
#pragma unroll
        for (int r = 0; r < TM; r++)
            if (m + r < j.m && n < j.n)
                td_put<O>(out + at + (m + r) * step, acc[r][c] + (bias ? td_load<T>(bias + g * j.m + m + r) : 0), add);
    }
}

/* ---- few channels: one element of C by a thread, or for grad_w by a block ------------------------------------------------------------- */

template <int MODE, class T>
__global__ void __launch_bounds__(TD_THREADS) few_kernel(conv_job j, T *out, const T *a, const T *b, const T *bias, bool add)
{
    TD_GRID_STRIDE(i, j.s.groups * j.m * j.n) {
        int64_t g, m, n;
        divide(i, j.n, m, n);
        divide(m, j.m, g, m);
        const conv_place c = column<MODE>(j, g, n);
        const int64_t row = row_of<MODE>(j, g, m);
        td_wide<T> sum = 0;
        for (int64_t k = 0; k < j.k; k++) {
            const conv_place t = term<MODE>(j, k);
            sum = fused(td_load<T>(a + row + t.a), element_b<MODE, T>(j, b, c, t), sum);
        }
        int64_t step, at = place_out<MODE>(j, g, 0, n, step);
        td_put<T>(out + at + m * step, sum + (bias ? td_load<T>(bias + g * j.m + m) : 0), add);
    }
}

/* A block per element and part. */
template <class T, class O>
__global__ void __launch_bounds__(TD_THREADS) few_weights_kernel(conv_job j, O *out, const T *gout, const T *x, bool add)
{
    int64_t m, n, g, part;
    divide(blockIdx.x, j.n, m, n);
    divide(m, j.m, g, m);
    divide(g, j.s.groups, part, g);
    const conv_place c = column<GRAD_W>(j, g, n);
    const int64_t row = row_of<GRAD_W>(j, g, m), end = (part + 1) * j.part < j.k ? (part + 1) * j.part : j.k;
    td_wide<T> sum = 0;
    for (int64_t k = part * j.part + threadIdx.x; k < end; k += TD_THREADS) {
        const conv_place t = term<GRAD_W>(j, k);
        sum = fused(td_load<T>(gout + row + t.a), element_b<GRAD_W, T>(j, x, c, t), sum);
    }
    sum = td_block_all(sum, td_op_sum());
    int64_t step, at = place_out<GRAD_W>(j, g, part, n, step);
    if (threadIdx.x == 0)
        td_put<O>(out + at + m * step, sum, add);
}

/* out[i] = the sum of partial[p][i] over the parts, in order */
template <class T, class W>
__global__ void __launch_bounds__(TD_THREADS) parts_kernel(int64_t n, int64_t parts, T *out, const W *partial, bool add)
{
    TD_GRID_STRIDE(i, n) {
        W sum = 0;
        for (int64_t p = 0; p < parts; p++)
            sum += partial[p * n + i];
        td_put<T>(out + i, (td_wide<T>)sum, add);
    }
}

/* One part of a channel's sum over images and pixels, in double. */
template <class T> __global__ void __launch_bounds__(TD_THREADS) bias_kernel(int64_t n, int64_t o, int64_t pixels, int64_t part, double *out, const T *gout)
{
    const int64_t channel = blockIdx.x % o, first = blockIdx.x / o * part, end = first + part < n * pixels ? first + part : n * pixels;
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += TD_THREADS) {
        int64_t image, at;
        divide(i, pixels, image, at);
        sum += (double)td_load<T>(gout + (image * o + channel) * pixels + at);
    }
    sum = td_block_all(sum, td_op_sum());
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

/* ---- launching --------------------------------------------------------------------------------------------------------------------- */

static conv_job job_of(const td_conv2d_shape *s, int mode)
{
    conv_job j = { *s, s->c / s->groups, s->o / s->groups, 0, 0, 0, s->h, s->w, 0, 1, 0, 0, { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } };
    const int64_t window = s->kh * s->kw, out_pixels = s->n * s->oh * s->ow;
    j.x = { s->nhwc ? 1 : s->h * s->w, s->nhwc ? s->c : 1 };
    j.out = { s->nhwc ? 1 : s->oh * s->ow, s->nhwc ? s->o : 1 };
    j.weights = { s->nhwc ? 1 : window, s->nhwc ? j.cg : 1 };
    j.b = mode == GRAD_X ? j.out : j.x;
    j.m = mode == GRAD_X ? j.cg : j.og;
    j.n = mode == FORWARD ? out_pixels : mode == GRAD_X ? s->n * s->h * s->w : j.cg * window;
    j.k = mode == FORWARD ? j.cg * window : mode == GRAD_X ? j.og * window : out_pixels;
    if (mode == GRAD_X)
        j.h = s->oh, j.w = s->ow;
    j.part = j.k > 0 ? j.k : 1;
    return j;
}

template <int MODE, class T, class O, int TM, int TN>
static void launch_tiles(const char *row, const conv_job &j, O *out, const T *a, const T *b, const T *bias, bool add)
{
    TD_LAUNCH(row, (unsigned)(j.tiles_m * j.tiles_n * j.s.groups * j.parts), 256, 0, (tile_kernel<MODE, T, O, TM, TN>), j, out, a, b, bias, add);
}

/* f32 tiles: 64 x 128, or 16 x 128 where m is small. Those of f64 are 64 x 64. */
template <int MODE, class T, class O> struct tiles {
    static void measure(conv_job &j) { j.tiles_m = (j.m + (j.m > 16 ? 63 : 15)) / (j.m > 16 ? 64 : 16), j.tiles_n = (j.n + 127) / 128; }
    static void launch(const char *row, const conv_job &j, O *out, const T *a, const T *b, const T *bias, bool add)
    {
        if (j.m > 16)
            launch_tiles<MODE, T, O, 4, 8>(row, j, out, a, b, bias, add);
        else
            launch_tiles<MODE, T, O, 1, 8>(row, j, out, a, b, bias, add);
    }
};
template <int MODE, class O> struct tiles<MODE, double, O> {
    static void measure(conv_job &j) { j.tiles_m = (j.m + 63) / 64, j.tiles_n = (j.n + 63) / 64; }
    static void launch(const char *row, const conv_job &j, O *out, const double *a, const double *b, const double *bias, bool add)
    {
        launch_tiles<MODE, double, O, 4, 4>(row, j, out, a, b, bias, add);
    }
};

/* No tiles: they would stand empty, or there is nothing to gain from them. */
static bool few(const conv_job &j)
{
    return j.m <= FEW || (j.s.groups * j.m * j.n <= SMALL && j.k <= SHORT);
}

/* The forward and the gradient of x. */
template <int MODE, class T> static void convolve(const char *row, const td_conv2d_shape *s, T *out, const T *a, const T *b, const T *bias, bool add)
{
    conv_job j = job_of(s, MODE);
    if (j.m <= 0 || j.n <= 0)
        return;
    if (few(j)) {
        TD_LAUNCH(row, td_blocks(s->groups * j.m * j.n), TD_THREADS, 0, (few_kernel<MODE, T>), j, out, a, b, bias, add);
        return;
    }
    tiles<MODE, T, T>::measure(j);
    tiles<MODE, T, T>::launch(row, j, out, a, b, bias, add);
}

/* How k is cut: into as many parts as fill a device with the blocks there are, none of less than LEAST_PART terms. */
static void cut(conv_job &j, int64_t blocks)
{
    const int64_t most = j.k / LEAST_PART > 1 ? j.k / LEAST_PART : 1, want = (WANTED_BLOCKS + blocks - 1) / blocks;
    const int64_t parts = want < most ? want : most;
    j.part = ((j.k + parts - 1) / parts + BK - 1) / BK * BK;
    if (j.part < BK)
        j.part = BK;
    j.parts = j.k > 0 ? (j.k + j.part - 1) / j.part : 1;
}

template <class T, class O> static void weights_launch(const conv_job &j, O *out, const T *gout, const T *x, bool add)
{
    if (j.m <= FEW)
        TD_LAUNCH("conv2d_grad_w", (unsigned)(j.m * j.n * j.s.groups * j.parts), TD_THREADS, 0, (few_weights_kernel<T, O>), j, out, gout, x, add);
    else
        tiles<GRAD_W, T, O>::launch("conv2d_grad_w", j, out, gout, x, (const T *)NULL, add);
}

template <class T> static void weights(const td_conv2d_shape *s, T *gw, const T *gout, const T *x, bool add)
{
    typedef td_wide<T> W;
    conv_job j = job_of(s, GRAD_W);
    const int64_t all = s->groups * j.m * j.n;
    if (all <= 0)
        return;
    if (few(j) && j.k <= SHORT) {
        TD_LAUNCH("conv2d_grad_w", td_blocks(all), TD_THREADS, 0, (few_kernel<GRAD_W, T>), j, gw, gout, x, (const T *)NULL, add);
        return;
    }
    tiles<GRAD_W, T, T>::measure(j);
    cut(j, j.m <= FEW ? all : j.tiles_m * j.tiles_n * s->groups);
    if (j.parts == 1) {
        weights_launch<T, T>(j, gw, gout, x, add);
        return;
    }
    W *partial = (W *)td__cuda_scratch(sizeof(W) * (size_t)(all * j.parts));
    if (!partial)
        return;
    weights_launch<T, W>(j, partial, gout, x, false);
    TD_LAUNCH("conv2d_grad_w", td_blocks(all), TD_THREADS, 0, (parts_kernel<T, W>), all, j.parts, gw, partial, add);
    td__cuda_scratch_free(partial);
}

template <class T> static void biases(td_dtype t, const td_conv2d_shape *s, T *gbias, const T *gout, bool add)
{
    const int64_t pixels = s->oh * s->ow, all = s->n * pixels;
    if (s->o <= 0)
        return;
    if (s->nhwc) {                   /* columns                                                                                */
        td_reduce_loop r = {};
        r.keep.ndim = r.red.ndim = 1;
        r.keep.dim[0] = s->o, r.keep.stride[0][0] = r.keep.stride[1][0] = 1;
        r.red.dim[0] = all, r.red.stride[1][0] = s->o;
        td__cuda_sum(&r, t, gbias, gout, 1.0, add);
        return;
    }
    int64_t parts = all > BIAS_PART ? (all + BIAS_PART - 1) / BIAS_PART : 1;
    parts = parts < 256 ? parts : 256;
    const int64_t part = (all + parts - 1) / parts;
    double *partial = (double *)td__cuda_scratch(sizeof(double) * (size_t)(s->o * parts));
    if (!partial)
        return;
    TD_LAUNCH("conv2d_grad_w", (unsigned)(s->o * parts), TD_THREADS, 0, (bias_kernel<T>), s->n, s->o, pixels, part, partial, gout);
    TD_LAUNCH("conv2d_grad_w", td_blocks(s->o), TD_THREADS, 0, (parts_kernel<T, double>), s->o, parts, gbias, partial, add);
    td__cuda_scratch_free(partial);
}

/* ---- rows -------------------------------------------------------------------------------------------------------------------------- */
static bool by_library(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add)
{
    return td__cuda_conv_library && td__cuda_conv_library(row, mode, t, s, out, a, b, add);
}

/* An image of c channels += bias. */
static void add_bias(td_dtype t, const td_conv2d_shape *s, int64_t c, int64_t pixels, void *image, const void *bias)
{
    td_loop l = {};
    if (!bias)
        return;
    l.ndim = s->nhwc ? 2 : 3;
    l.dim[0] = s->nhwc ? s->n * pixels : s->n, l.dim[1] = c, l.dim[2] = pixels;
    for (int k = 0; k < 2; k++) {
        l.stride[k][0] = s->nhwc ? c : c * pixels;
        l.stride[k][1] = s->nhwc ? 1 : pixels;
        l.stride[k][2] = 1;
    }
    l.stride[2][1] = 1;
    td__cuda_add(&l, t, image, image, bias, false);
}

extern "C" {
void td__cuda_conv2d(td_dtype t, const td_conv2d_shape *s, void *out, const void *x, const void *w, const void *bias, bool add)
{
    if (by_library("conv2d", FORWARD, t, s, out, w, x, add))
        add_bias(t, s, s->o, s->oh * s->ow, out, bias);
    else
        TD_CUDA_FLOAT(t, T, convolve<FORWARD, T>("conv2d", s, (T *)out, (const T *)w, (const T *)x, (const T *)bias, add));
}

void td__cuda_conv2d_grad_x(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const void *w, const void *bias, bool add)
{
    if (by_library("conv2d_grad_x", GRAD_X, t, s, gx, w, gout, add))
        add_bias(t, s, s->c, s->h * s->w, gx, bias);
    else
        TD_CUDA_FLOAT(t, T, convolve<GRAD_X, T>("conv2d_grad_x", s, (T *)gx, (const T *)w, (const T *)gout, (const T *)bias, add));
}

void td__cuda_conv2d_grad_w(td_dtype t, const td_conv2d_shape *s, void *gw, void *gbias, const void *gout, const void *x, bool add_w, bool add_b)
{
    if (gw && by_library("conv2d_grad_w", GRAD_W, t, s, gw, gout, x, add_w))
        gw = NULL;
    TD_CUDA_FLOAT(t, T, {
        if (gw)
            weights<T>(s, (T *)gw, (const T *)gout, (const T *)x, add_w);
        if (gbias)
            biases<T>(t, s, (T *)gbias, (const T *)gout, add_b);
    });
}
}
