/* tensor/cuda/rnn.cu: one step of an LSTM (Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000) and of a GRU (Cho et al. 2014, reset
 * gate after the product as in cuDNN and PyTorch), element by element, and their gradients.
 *
 * Twin of ../cpu/rnn.c. A thread has V neighbouring units of one row, with all their gates: 16 bytes of each where rows and pointers are
 * multiples of that, else one unit. What the gradients read (act) is kept in the tensors' own dtype.
 */
#include "pointwise.h"

namespace {
/* items of V units: item i is in row i / per, at column (i % per) * V */
template <int V> struct cell {
    int64_t n, per;
    __device__ __forceinline__ void at(int64_t i, int64_t *row, int64_t *column) const
    {
        const int64_t r = n <= 0x7fffffff ? (int64_t)((uint32_t)i / (uint32_t)per) : i / per;
        *row = r;
        *column = (i - r * per) * V;
    }
    __device__ __forceinline__ int64_t hidden() const { return per * V; }
};
template <int V, class T> __device__ __forceinline__ void take(td_wide<T> (&v)[V], const T *p)
{
    const td_vector<T, V> r = td_take<V>(p, false);
#pragma unroll
    for (int k = 0; k < V; k++)
        v[k] = td_load<T>(&r.v[k]);
}
#define EACH_UNIT _Pragma("unroll") for (int k = 0; k < V; k++)

/* ---- LSTM -------------------------------------------------------------------------------------------------------------------------------- */
template <int V, class T>
__global__ void __launch_bounds__(TD_THREADS) lstm_kernel(cell<V> units, T *h, T *c_out, T *act, const T *gates, const T *c)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(u, units.n) {
        const int64_t hidden = units.hidden();
        int64_t row, column;
        units.at(u, &row, &column);
        const int64_t state = row * hidden + column, gate = row * 4 * hidden + column;
        W i[V], f[V], g[V], o[V], t[V];
        take<V>(i, gates + gate);
        take<V>(f, gates + gate + hidden);
        take<V>(g, gates + gate + 2 * hidden);
        take<V>(o, gates + gate + 3 * hidden);
        take<V>(t, c + state);
        EACH_UNIT {
            i[k] = td_sigmoid(i[k]);
            f[k] = td_sigmoid(f[k]);
            g[k] = td_tanh(g[k]);
            o[k] = td_sigmoid(o[k]);
            t[k] = f[k] * t[k] + i[k] * g[k];
        }
        td_put_all<V, T>(c_out + state, t, false);
        EACH_UNIT t[k] = o[k] * td_tanh(t[k]);
        td_put_all<V, T>(h + state, t, false);
        if (act) {
            td_put_all<V, T>(act + gate, i, false);
            td_put_all<V, T>(act + gate + hidden, f, false);
            td_put_all<V, T>(act + gate + 2 * hidden, g, false);
            td_put_all<V, T>(act + gate + 3 * hidden, o, false);
        }
    }
}

/* with t = tanh(c'): dc = gc + gh * o * (1 - t^2) reaches i, f, g and c; gh * t reaches o */
template <int V, class T>
__global__ void __launch_bounds__(TD_THREADS) lstm_grad_kernel(cell<V> units, T *ggates, T *gc, const T *gh, const T *gc_out, const T *act, const T *c,
                                                               const T *c_out, bool add_gates, bool add_c)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(u, units.n) {
        const int64_t hidden = units.hidden();
        int64_t row, column;
        units.at(u, &row, &column);
        const int64_t state = row * hidden + column, gate = row * 4 * hidden + column;
        W i[V], f[V], g[V], o[V], t[V], d[V], a[V], q[V];
        take<V>(i, act + gate);
        take<V>(f, act + gate + hidden);
        take<V>(g, act + gate + 2 * hidden);
        take<V>(o, act + gate + 3 * hidden);
        take<V>(t, c_out + state);
        EACH_UNIT {
            t[k] = td_tanh(t[k]);
            d[k] = a[k] = 0;
        }
        if (gc_out)
            take<V>(d, gc_out + state);
        if (gh) {
            take<V>(a, gh + state);
            EACH_UNIT d[k] += a[k] * o[k] * ((W)1 - t[k] * t[k]);
        }
        if (ggates) {
            EACH_UNIT q[k] = d[k] * g[k] * i[k] * ((W)1 - i[k]);
            td_put_all<V, T>(ggates + gate, q, add_gates);
            take<V>(q, c + state);
            EACH_UNIT q[k] = d[k] * q[k] * f[k] * ((W)1 - f[k]);
            td_put_all<V, T>(ggates + gate + hidden, q, add_gates);
            EACH_UNIT q[k] = d[k] * i[k] * ((W)1 - g[k] * g[k]);
            td_put_all<V, T>(ggates + gate + 2 * hidden, q, add_gates);
            EACH_UNIT q[k] = gh ? a[k] * t[k] * o[k] * ((W)1 - o[k]) : (W)0;
            td_put_all<V, T>(ggates + gate + 3 * hidden, q, add_gates);
        }
        if (gc) {
            EACH_UNIT q[k] = d[k] * f[k];
            td_put_all<V, T>(gc + state, q, add_c);
        }
    }
}

/* ---- GRU --------------------------------------------------------------------------------------------------------------------------------- */
template <int V, class T>
__global__ void __launch_bounds__(TD_THREADS) gru_kernel(cell<V> units, T *out, T *act, const T *gi, const T *gh, const T *h)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(u, units.n) {
        const int64_t hidden = units.hidden();
        int64_t row, column;
        units.at(u, &row, &column);
        const int64_t state = row * hidden + column, gate = row * 3 * hidden + column, kept = row * 4 * hidden + column;
        W r[V], z[V], c[V], part[V], q[V];
        take<V>(r, gi + gate);
        take<V>(q, gh + gate);
        EACH_UNIT r[k] = td_sigmoid(r[k] + q[k]);
        take<V>(z, gi + gate + hidden);
        take<V>(q, gh + gate + hidden);
        EACH_UNIT z[k] = td_sigmoid(z[k] + q[k]);
        take<V>(c, gi + gate + 2 * hidden);
        take<V>(part, gh + gate + 2 * hidden);
        take<V>(q, h + state);
        EACH_UNIT {
            c[k] = td_tanh(c[k] + r[k] * part[k]);
            q[k] = c[k] + z[k] * (q[k] - c[k]);
        }
        td_put_all<V, T>(out + state, q, false);
        if (act) {
            td_put_all<V, T>(act + kept, r, false);
            td_put_all<V, T>(act + kept + hidden, z, false);
            td_put_all<V, T>(act + kept + 2 * hidden, c, false);
            td_put_all<V, T>(act + kept + 3 * hidden, part, false);
        }
    }
}

/* act: r, z, the candidate n, and gh's part of it */
template <int V, class T>
__global__ void __launch_bounds__(TD_THREADS) gru_grad_kernel(cell<V> units, T *ggi, T *ggh, T *gprev, const T *g, const T *act, const T *h,
                                                              bool add_gi, bool add_gh, bool add_h)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(u, units.n) {
        const int64_t hidden = units.hidden();
        int64_t row, column;
        units.at(u, &row, &column);
        const int64_t state = row * hidden + column, gate = row * 3 * hidden + column, kept = row * 4 * hidden + column;
        W r[V], z[V], c[V], part[V], go[V], dc[V], dr[V], dz[V];
        take<V>(r, act + kept);
        take<V>(z, act + kept + hidden);
        take<V>(c, act + kept + 2 * hidden);
        take<V>(part, act + kept + 3 * hidden);
        take<V>(go, g + state);
        take<V>(dz, h + state);
        EACH_UNIT {
            dc[k] = go[k] * ((W)1 - z[k]) * ((W)1 - c[k] * c[k]);
            dr[k] = dc[k] * part[k] * r[k] * ((W)1 - r[k]);
            dz[k] = go[k] * (dz[k] - c[k]) * z[k] * ((W)1 - z[k]);
        }
        if (ggi) {
            td_put_all<V, T>(ggi + gate, dr, add_gi);
            td_put_all<V, T>(ggi + gate + hidden, dz, add_gi);
            td_put_all<V, T>(ggi + gate + 2 * hidden, dc, add_gi);
        }
        if (ggh) {
            td_put_all<V, T>(ggh + gate, dr, add_gh);
            td_put_all<V, T>(ggh + gate + hidden, dz, add_gh);
            EACH_UNIT dc[k] *= r[k];
            td_put_all<V, T>(ggh + gate + 2 * hidden, dc, add_gh);
        }
        if (gprev) {
            EACH_UNIT dz[k] = go[k] * z[k];
            td_put_all<V, T>(gprev + state, dz, add_h);
        }
    }
}

/* ---- launches: several units at a time if all pointers and rows allow. More than four, or two doubles, would not fit into registers ------ */
template <class T, size_t N> bool wide(int64_t hidden, int units, const T *const (&p)[N])
{
    bool yes = hidden % units == 0;
    for (const T *x : p)
        yes = yes && td_aligned(x, sizeof(T) * (size_t)units);
    return yes;
}
template <int V> cell<V> units_of(int64_t n, int64_t hidden) { return cell<V>{ n * (hidden / V), hidden / V }; }

#define LAUNCH(row, kernel, V, ...)                                                                          \
    TD_LAUNCH(row, td_blocks(n * (hidden / V)), TD_THREADS, 0, (kernel<V, T>), units_of<V>(n, hidden), __VA_ARGS__)
#define LAUNCH_CELL(row, kernel, pointers, ...)                                                              \
    constexpr int V = sizeof(T) == 8 ? 1 : 4;                                                                \
    if (n * hidden == 0)                                                                                     \
        return;                                                                                              \
    if (wide(hidden, V, pointers))                                                                           \
        LAUNCH(row, kernel, V, __VA_ARGS__);                                                                 \
    else                                                                                                     \
        LAUNCH(row, kernel, 1, __VA_ARGS__)

template <class T> void lstm(int64_t n, int64_t hidden, T *h, T *c_out, T *act, const T *gates, const T *c)
{
    const T *const all[] = { h, c_out, act, gates, c };
    LAUNCH_CELL("lstm_cell", lstm_kernel, all, h, c_out, act, gates, c);
}

template <class T>
void lstm_grad(int64_t n, int64_t hidden, T *ggates, T *gc, const T *gh, const T *gc_out, const T *act, const T *c, const T *c_out, bool add_gates,
               bool add_c)
{
    const T *const all[] = { ggates, gc, gh, gc_out, act, c, c_out };
    LAUNCH_CELL("lstm_cell_grad", lstm_grad_kernel, all, ggates, gc, gh, gc_out, act, c, c_out, add_gates, add_c);
}

template <class T> void gru(int64_t n, int64_t hidden, T *out, T *act, const T *gi, const T *gh, const T *h)
{
    const T *const all[] = { out, act, gi, gh, h };
    LAUNCH_CELL("gru_cell", gru_kernel, all, out, act, gi, gh, h);
}

template <class T>
void gru_grad(int64_t n, int64_t hidden, T *ggi, T *ggh, T *gprev, const T *g, const T *act, const T *h, bool add_gi, bool add_gh, bool add_h)
{
    const T *const all[] = { ggi, ggh, gprev, g, act, h };
    LAUNCH_CELL("gru_cell_grad", gru_grad_kernel, all, ggi, ggh, gprev, g, act, h, add_gi, add_gh, add_h);
}
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" {
void td__cuda_lstm_cell(td_dtype t, int64_t n, int64_t hidden, void *h, void *c_out, void *act, const void *gates, const void *c)
{
    TD_CUDA_FLOAT(t, T, lstm<T>(n, hidden, (T *)h, (T *)c_out, (T *)act, (const T *)gates, (const T *)c))
}

void td__cuda_lstm_cell_grad(td_dtype t, int64_t n, int64_t hidden, void *ggates, void *gc, const void *gh, const void *gc_out, const void *act,
                             const void *c, const void *c_out, bool add_gates, bool add_c)
{
    TD_CUDA_FLOAT(t, T, lstm_grad<T>(n, hidden, (T *)ggates, (T *)gc, (const T *)gh, (const T *)gc_out, (const T *)act, (const T *)c,
                                     (const T *)c_out, add_gates, add_c))
}

void td__cuda_gru_cell(td_dtype t, int64_t n, int64_t hidden, void *out, void *act, const void *gi, const void *gh, const void *h)
{
    TD_CUDA_FLOAT(t, T, gru<T>(n, hidden, (T *)out, (T *)act, (const T *)gi, (const T *)gh, (const T *)h))
}

void td__cuda_gru_cell_grad(td_dtype t, int64_t n, int64_t hidden, void *ggi, void *ggh, void *gprev, const void *g, const void *act, const void *h,
                            bool add_gi, bool add_gh, bool add_h)
{
    TD_CUDA_FLOAT(t, T, gru_grad<T>(n, hidden, (T *)ggi, (T *)ggh, (T *)gprev, (const T *)g, (const T *)act, (const T *)h, add_gi, add_gh, add_h))
}
}
