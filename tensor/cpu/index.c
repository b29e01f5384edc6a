/* tensor/cpu/index.c: elements by index: whole slices (index_select; an embedding is one with outer 1) and single elements (gather).
 *
 * x is (outer, size, inner). The gradients add what goes to one place in the order of the index, in double, and round once: the index is sorted by
 * place first (counting, stable), then threads take places. Every index has been checked by index_check.
 */
#include "cpu.h"

enum { SIDE = 128, CHUNK = 64 };

void K(index_check)(int64_t n, const int64_t *index, int64_t size, int64_t *bad)
{
    *bad = -1;
    for (int64_t i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= size) {
            *bad = i;
            return;
        }
}

/* ---- slices: out[o,k,:] = x[o,index[k],:] -------------------------------------------------------------------------------------- */

void K(index_select)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index)
{
    const size_t bytes = td_dtype_size(t) * (size_t)inner;
#pragma omp parallel for schedule(static) if (outer * count * inner >= TD_PARALLEL)
    for (int64_t row = 0; row < outer * count; row++) {
        const char *from = (const char *)x + (size_t)(row / count * size + index[row % count]) * bytes;
        char *to = (char *)out + (size_t)row * bytes;
        switch (bytes) {                                   /* single elements: no call                                        */
        case 4: memcpy(to, from, 4); break;
        case 8: memcpy(to, from, 8); break;
        default: memcpy(to, from, bytes);
        }
    }
}

/* order: 0 … count-1 by place, those of one place as they come; place v has order[start[v]] … order[start[v+1]-1]. start has size+2. */
static void sort_by_place(int64_t size, int64_t count, const int64_t *index, int64_t skip, int64_t *start, int64_t *order)
{
    memset(start, 0, sizeof *start * (size_t)(size + 2));
    for (int64_t k = 0; k < count; k++)
        start[index[k] + 2] += index[k] != skip;
    for (int64_t v = 0; v < size; v++)
        start[v + 2] += start[v + 1];
    for (int64_t k = 0; k < count; k++)
        if (index[k] != skip)
            order[start[index[k] + 1]++] = k;
}

#define ADD_SLICES(T, name)                                                                                  \
    static void add_slices_##name(int64_t outer, int64_t size, int64_t count, int64_t inner, T *gx, const T *g, const int64_t *start,  \
                                  const int64_t *order, bool add)                                            \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(dynamic, CHUNK) if (outer * (size + count) * inner >= TD_PARALLEL)")  \
        for (int64_t place = 0; place < outer * size; place++) {                                             \
            const int64_t o = place / size, from = start[place % size], end = start[place % size + 1];       \
            T *to = gx + place * inner;                                                                      \
            if (from == end) {                                                                               \
                if (!add)                                                                                    \
                    memset(to, 0, sizeof *to * (size_t)inner);                                               \
                continue;                                                                                    \
            }                                                                                                \
            if (end == from + 1) {                             /* one alone: adding in T rounds as adding in double and rounding once */ \
                const T *restrict only = g + (o * count + order[from]) * inner;                              \
                if (!add)                                                                                    \
                    memcpy(to, only, sizeof *to * (size_t)inner);                                            \
                else                                                                                         \
                    for (int64_t j = 0; j < inner; j++)                                                      \
                        to[j] += only[j];                                                                    \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t begin = 0; begin < inner; begin += SIDE) {                                          \
                const int64_t m = inner - begin < SIDE ? inner - begin : SIDE;                               \
                double sum[SIDE] = { 0 };                                                                    \
                for (int64_t k = from; k < end; k++) {                                                       \
                    const T *restrict gk = g + (o * count + order[k]) * inner + begin;                       \
                    _Pragma("omp simd")                                                                      \
                    for (int64_t j = 0; j < m; j++)                                                          \
                        sum[j] += (double)gk[j];                                                             \
                }                                                                                            \
                if (add)                                                                                     \
                    for (int64_t j = 0; j < m; j++)                                                          \
                        to[begin + j] = (T)((double)to[begin + j] + sum[j]);                                 \
                else                                                                                         \
                    for (int64_t j = 0; j < m; j++)                                                          \
                        to[begin + j] = (T)sum[j];                                                           \
            }                                                                                                \
        }                                                                                                    \
    }
ADD_SLICES(float, f32)
ADD_SLICES(double, f64)

void K(index_select_grad)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *gx, const void *g, const int64_t *index,
                          int64_t skip, bool add)
{
    int64_t *start = td__alloc(sizeof *start * (size_t)(size + 2 + count));
    if (!start)
        return;
    sort_by_place(size, count, index, skip, start, start + size + 2);
    if (t == TD_F32)
        add_slices_f32(outer, size, count, inner, gx, g, start, start + size + 2, add);
    else
        add_slices_f64(outer, size, count, inner, gx, g, start, start + size + 2, add);
    td__free(start);
}

/* ---- elements: out[o,k,i] = x[o,index[o,k,i],i] ----------------------------------------------------------------------------------- */

#define GATHER(T, bytes)                                                                                     \
    static void gather_##bytes(int64_t outer, int64_t size, int64_t count, int64_t inner, T *out, const T *x, const int64_t *index)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (outer * count * inner >= TD_PARALLEL)")               \
        for (int64_t row = 0; row < outer * count; row++)                                                    \
            for (int64_t i = 0; i < inner; i++)                                                              \
                out[row * inner + i] = x[(row / count * size + index[row * inner + i]) * inner + i];         \
    }
GATHER(uint8_t, 1)
GATHER(uint16_t, 2)
GATHER(uint32_t, 4)
GATHER(uint64_t, 8)

void K(gather)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index)
{
    switch (td_dtype_size(t)) {
    case 1: gather_1(outer, size, count, inner, out, x, index); break;
    case 2: gather_2(outer, size, count, inner, out, x, index); break;
    case 4: gather_4(outer, size, count, inner, out, x, index); break;
    default: gather_8(outer, size, count, inner, out, x, index);
    }
}

/* sum: doubles in gx's shape, or NULL where adding in T loses nothing (double, or at most one element for each place). */
#define ADD_ELEMENTS(T, name)                                                                                \
    static void add_elements_##name(int64_t outer, int64_t size, int64_t count, int64_t inner, T *gx, const T *g, const int64_t *index,  \
                                    double *sum, bool add)                                                   \
    {                                                                                                        \
        const int64_t blocks = (inner + SIDE - 1) / SIDE;                                                    \
        _Pragma("omp parallel for schedule(static) if (outer * (size + count) * inner >= TD_PARALLEL)")      \
        for (int64_t task = 0; task < outer * blocks; task++) {                                              \
            const int64_t o = task / blocks, begin = task % blocks * SIDE;                                   \
            const int64_t end = begin + SIDE < inner ? begin + SIDE : inner;                                 \
            T *to = gx + o * size * inner;                                                                   \
            double *s = sum ? sum + o * size * inner : NULL;                                                 \
            for (int64_t v = 0; v < size && (s || !add); v++)                                                \
                for (int64_t at = v * inner + begin; at < v * inner + end; at++)                             \
                    if (s)                                                                                   \
                        s[at] = add ? (double)to[at] : 0;                                                    \
                    else                                                                                     \
                        to[at] = 0;                                                                          \
            for (int64_t k = 0; k < count; k++)                                                              \
                for (int64_t i = begin; i < end; i++) {                                                      \
                    const int64_t from = (o * count + k) * inner + i, at = index[from] * inner + i;          \
                    if (s)                                                                                   \
                        s[at] += (double)g[from];                                                            \
                    else                                                                                     \
                        to[at] += g[from];                                                                   \
                }                                                                                            \
            for (int64_t v = 0; v < size && s; v++)                                                          \
                for (int64_t at = v * inner + begin; at < v * inner + end; at++)                             \
                    to[at] = (T)s[at];                                                                       \
        }                                                                                                    \
    }
ADD_ELEMENTS(float, f32)
ADD_ELEMENTS(double, f64)

void K(gather_grad)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *gx, const void *g, const int64_t *index, bool add)
{
    if (t == TD_F64) {
        add_elements_f64(outer, size, count, inner, gx, g, index, NULL, add);
        return;
    }
    double *sum = NULL;
    if (count > 1 && !(sum = td__alloc(sizeof *sum * (size_t)(outer * size * inner))))
        return;
    add_elements_f32(outer, size, count, inner, gx, g, index, sum, add);
    td__free(sum);
}
