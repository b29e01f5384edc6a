/* tensor/cuda/attention_mma.h: what attention's tensor-core kernels share: tiles in shared memory, their products, the order of blocks. Internal.
 *
 * A tile is rows of HD 16-bit elements (HD 64 or 128; a smaller head is padded with zeroes as it is read) in chunks of 16 bytes. Chunk c of row r
 * lies at r * HD * 2 + (c ^ r % 8) * 16: the 8 rows of a matrix that ldmatrix reads at one column, and the 8 chunks that
 * neighbouring lanes copy into one row, each touch all 32 banks once (counted: tests/cuda/test_attention.c).
 *
 * Each warp has MT * 16 rows of its block's scores for itself, in registers: sums over them need no shared memory, and as 16-bit A fragments
 * they go straight into the next product.
 */
#ifndef TD_CUDA_ATTENTION_MMA_H
#define TD_CUDA_ATTENTION_MMA_H
#include "mma.h"
#include "packs.h"

extern "C" {
/* Attention of f16 or bf16 without a mask on tensor cores. false: not for this shape, these strides or places; nothing was done. */
bool td__cuda_attention_mma(td_dtype t, const td_attention_shape *a, void *out, void *lse, const void *q, const void *k, const void *v);
bool td__cuda_attention_mma_grad(td_dtype t, const td_attention_shape *a, void *gq, void *gk, void *gv, const void *gout, const void *out,
                                 const void *lse, const void *q, const void *k, const void *v, bool add_q, bool add_k, bool add_v);
}

/* Rows are read 16 bytes at a time; the largest raw score is taken for the largest scaled one. */
static inline bool att_mma_takes(td_dtype t, const td_attention_shape *a)
{
    int64_t odd = a->d;
    for (int i = 0; i < 3; i++)
        odd |= a->q[i] | a->k[i] | a->v[i] | a->out[i];
    for (int64_t step : { a->t, a->s, a->q[2], a->k[2], a->v[2] })
        if (step < 0 || step >= 1 << 22)       /* places within a head's rows, and within a tile, are int                   */
            return false;
    return (t == TD_F16 || t == TD_BF16) && a->d >= 8 && a->d <= 128 && odd % 8 == 0 && a->n < 65536 && a->h < 65536 && a->scale > 1e-30 && a->scale < 1e30;
}

#define ATT_LOG2E 1.4426950408889634

/* ---- the order of blocks --------------------------------------------------------------------------------------------------------------- */

/* A grid is tiles, h, n: the tiles of a head run together and share its other operands in the L2 cache; with causal the kernels take the longest
 * first. Coordinates in the grid are uniform, so addresses of a head take no registers of threads. */
static inline dim3 att_grid_of(const td_attention_shape *a, int64_t rows, int64_t tile)
{
    return dim3((unsigned)((rows + tile - 1) / tile), (unsigned)a->h, (unsigned)a->n);
}

static inline bool att_empty(dim3 grid)
{
    return grid.x == 0 || grid.y == 0 || grid.z == 0;
}

__device__ __forceinline__ int64_t att_head(const td_attention_shape &a) { return (int64_t)blockIdx.z * a.h + blockIdx.y; }

template <class T> __device__ __forceinline__ T *att_of_head(T *p, const int64_t (&stride)[3])
{
    return p + (blockIdx.z * stride[0] + blockIdx.y * stride[1]);
}

/* ---- tiles ----------------------------------------------------------------------------------------------------------------------------- */
typedef unsigned char att_bytes;

/* Begins to copy rows 0 … ROWS-1 of x into a tile; zeroes from row n and column d on. */
template <int HD, int ROWS, int THREADS, class T>
__device__ __forceinline__ void att_fetch(att_bytes *tile, const T *x, int64_t step, int n, int d)
{
    constexpr int CHUNKS = HD / 8, AT_ONCE = THREADS / CHUNKS;
    static_assert(ROWS % AT_ONCE == 0 && AT_ONCE % 8 == 0, "a thread's rows have one place in their swizzle");
    const int c = threadIdx.x % CHUNKS, r = threadIdx.x / CHUNKS;
    const bool column = c * 8 < d;
    const int first = r * (int)step + c * 8;
    att_bytes *into = tile + r * (HD * 2) + ((c ^ r % 8) << 4);
TD_UNROLL
    for (int i = 0; i < ROWS / AT_ONCE; i++) {
        const bool there = column && r + i * AT_ONCE < n;
        td_copy_async<16>(into + i * AT_ONCE * (HD * 2), x + (first + i * AT_ONCE * (int)step), there);
    }
}

/* Where this lane's address for ldmatrix lies in a tile. down: matrices 0, 1 below each other, 2, 3 to their right (A; B that is turned); else 0, 1
 * beside each other, 2, 3 below (B). */
template <int HD, bool DOWN> __device__ __forceinline__ int att_lane()
{
    const int lane = threadIdx.x % 32, m = lane / 8, r = (DOWN ? m % 2 : m / 2) * 8 + lane % 8, c = DOWN ? m / 2 : m % 2;
    return r * (HD * 2) + ((c ^ r % 8) << 4);
}

/* the same `step` times 16 columns to the right: the bits of a column above the swizzle of 8 rows' first two chunks */
__device__ __forceinline__ int att_right(int at, int step)
{
    return at ^ step << 5;
}

/* 16*MT rows of a tile as A fragments */
template <int HD, int MT> struct att_rows_a {
    uint32_t r[MT][HD / 16][4];
    __device__ __forceinline__ void load(const att_bytes *tile)    /* once it is there                                        */
    {
        const int at = att_lane<HD, true>();
TD_UNROLL
        for (int i = 0; i < MT; i++)
TD_UNROLL
            for (int k = 0; k < HD / 16; k++)
                td_ldmatrix(r[i][k], tile + i * 16 * (HD * 2) + att_right(at, k));
    }
    __device__ __forceinline__ void get(uint32_t (&into)[MT][4], int k) const
    {
TD_UNROLL
        for (int i = 0; i < MT; i++)
TD_UNROLL
            for (int x = 0; x < 4; x++)
                into[i][x] = r[i][k][x];
    }
};

/* the same, read again for each product: no registers */
template <int HD, int MT> struct att_rows_in_tile {
    const att_bytes *tile;
    __device__ __forceinline__ void load(const att_bytes *at) { tile = at; }
    __device__ __forceinline__ void get(uint32_t (&into)[MT][4], int k) const
    {
        const int at = att_lane<HD, true>();
TD_UNROLL
        for (int i = 0; i < MT; i++)
            td_ldmatrix(into[i], tile + i * 16 * (HD * 2) + att_right(at, k));
    }
};

/* s = a b^T: b are NT*8 rows of a tile */
template <class T, int HD, int MT, int NT, class A>
__device__ __forceinline__ void att_scores(float (&s)[MT][NT][4], const A &a, const att_bytes *b)
{
    const int at = att_lane<HD, false>();
TD_UNROLL
    for (int i = 0; i < MT; i++)
TD_UNROLL
        for (int n = 0; n < NT; n++)
            s[i][n][0] = s[i][n][1] = s[i][n][2] = s[i][n][3] = 0;
TD_UNROLL
    for (int k = 0; k < HD / 16; k++) {
        uint32_t x[MT][4];
        a.get(x, k);
TD_UNROLL
        for (int n = 0; n < NT; n += 2) {
            uint32_t y[4];
            td_ldmatrix(y, b + n * 8 * (HD * 2) + att_right(at, k));
TD_UNROLL
            for (int i = 0; i < MT; i++) {
                td_mma<T>(s[i][n], x[i], y[0], y[1]);
                td_mma<T>(s[i][n + 1], x[i], y[2], y[3]);
            }
        }
    }
}

/* o += p b: b are NT*8 rows of a tile; p is rounded to 16 bits */
template <class T, int HD, int MT, int NT>
__device__ __forceinline__ void att_gather(float (&o)[MT][HD / 8][4], const float (&p)[MT][NT][4], const att_bytes *b)
{
    const int at = att_lane<HD, true>();
TD_UNROLL
    for (int k = 0; k < NT; k += 2) {
        uint32_t x[MT][4];
TD_UNROLL
        for (int i = 0; i < MT; i++)
TD_UNROLL
            for (int half = 0; half < 2; half++) {
                x[i][2 * half] = td_pair<T>(p[i][k + half][0], p[i][k + half][1]);
                x[i][2 * half + 1] = td_pair<T>(p[i][k + half][2], p[i][k + half][3]);
            }
TD_UNROLL
        for (int c = 0; c < HD / 16; c++) {
            uint32_t y[4];
            td_ldmatrix_turned(y, b + k * 8 * (HD * 2) + att_right(at, c));
TD_UNROLL
            for (int i = 0; i < MT; i++) {
                td_mma<T>(o[i][2 * c], x[i], y[0], y[1]);
                td_mma<T>(o[i][2 * c + 1], x[i], y[2], y[3]);
            }
        }
    }
}

template <int A, int B> __device__ __forceinline__ void att_zero(float (&x)[A][B][4])
{
TD_UNROLL
    for (int i = 0; i < A; i++)
TD_UNROLL
        for (int j = 0; j < B; j++)
            x[i][j][0] = x[i][j][1] = x[i][j][2] = x[i][j][3] = 0;
}

/* x = value where this warp's columns, from `column` on, are not below `columns`, or a key comes after its query. KEYS_DOWN: rows are keys, columns
 * queries; else rows are queries. */
template <bool KEYS_DOWN, int MT, int NT>
__device__ __forceinline__ void att_hide(float (&x)[MT][NT][4], float value, bool causal, int row, int column, int columns)
{
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, last = columns - column - 2 * t, diagonal = row + g - column - 2 * t;
TD_UNROLL
    for (int i = 0; i < MT; i++)
TD_UNROLL
        for (int n = 0; n < NT; n++)
TD_UNROLL
            for (int e = 0; e < 4; e++) {
                const int c = n * 8 + e % 2, ahead = c - (i * 16 + e / 2 * 8);
                if (c >= last || (causal && (KEYS_DOWN ? ahead < diagonal : ahead > diagonal)))
                    x[i][n][e] = value;
            }
}

/* This warp's rows into `into` (rows `step` apart, n of them there), or added to what is there, rounded once. `tile`: as many rows of shared memory
 * that only this warp still uses; through them whole rows are written at a time. */
template <class T, int HD, int MT>
__device__ __forceinline__ void att_put(T *into, int64_t step, int n, int d, const float (&x)[MT][HD / 8][4], att_bytes *tile, bool add)
{
    constexpr int CHUNKS = HD / 8;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (add) {
TD_UNROLL
        for (int i = 0; i < MT; i++)
TD_UNROLL
            for (int c = 0; c < CHUNKS; c++)
TD_UNROLL
                for (int e = 0; e < 4; e++)
                    if (i * 16 + g + e / 2 * 8 < n && c * 8 < d)
                        td_put<T>(into + (i * 16 + g + e / 2 * 8) * step + c * 8 + 2 * t + e % 2, x[i][c][e], true);
        return;
    }
    __syncwarp();                              /* other lanes may still read the tile                                       */
TD_UNROLL
    for (int i = 0; i < MT; i++)
TD_UNROLL
        for (int c = 0; c < CHUNKS; c++)
TD_UNROLL
            for (int half = 0; half < 2; half++)
                *(uint32_t *)(tile + (i * 16 + half * 8 + g) * (HD * 2) + ((c ^ g) << 4) + 4 * t) = td_pair<T>(x[i][c][2 * half], x[i][c][2 * half + 1]);
    __syncwarp();
    const int c = lane % CHUNKS;
TD_UNROLL
    for (int r = lane / CHUNKS; r < MT * 16; r += 32 / CHUNKS)
        if (r < n && c * 8 < d)
            *(uint4 *)(into + r * step + c * 8) = *(const uint4 *)(tile + r * (HD * 2) + ((c ^ r % 8) << 4));
}
#endif
