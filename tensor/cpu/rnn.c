/* tensor/cpu/rnn.c: one step of an LSTM (Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000) and of a GRU (Cho et al. 2014, reset
 * gate after the product as in cuDNN and PyTorch), element by element, and their gradients.
 *
 * Products come before: rows hold the gates' sums side by side. Work is cut into pieces of a row; each gate of a piece is brought to the stack,
 * goes through the vector routine whole (vecmath.h) and is combined, so that a value gives the same bits wherever it stands and whatever the
 * number of threads. `act`, where it is not NULL, receives what the gradients read. NaN in, NaN out.
 */
#include "vecmath.h"

/* Usually a whole row of each gate. In pieces of 256 the four gates' streams are left and taken up again every 1 KB: rows of 512 and 2048 took a third longer. */
enum { PIECE = 1024 };

/* for all rows r and columns [at, at+m) of `hidden`: what a thread does next */
#define PIECES(n, hidden)                                                                                    \
    const int64_t per = (hidden + PIECE - 1) / PIECE;                                                        \
    _Pragma("omp parallel for schedule(static) if (n * hidden >= TD_PARALLEL / 4)")                          \
    for (int64_t p = 0; p < n * per; p++)
#define WHERE(hidden)                                                                                        \
    const int64_t r = p / per, at = p % per * PIECE, m = hidden - at < PIECE ? hidden - at : PIECE;
#define EACH_OF(m) _Pragma("omp simd") for (int64_t k = 0; k < m; k++)

#define RNN(T, name)                                                                                         \
    static void sigmoid_##name(int64_t m, T *restrict y, const T *restrict x)                                \
    {                                                                                                        \
        EACH_OF(m) y[k] = -x[k];                                                                             \
        td__vexp_##name(m, y, y);                                                                            \
        EACH_OF(m) y[k] = (T)1 / ((T)1 + y[k]);                                                              \
    }                                                                                                        \
    static void lstm_##name(int64_t n, int64_t hidden, T *h, T *c_out, T *act, const T *gates, const T *c)   \
    {                                                                                                        \
        PIECES(n, hidden) {                                                                                  \
            WHERE(hidden)                                                                                    \
            const T *x = gates + r * 4 * hidden + at, *cr = c + r * hidden + at;                             \
            T *hr = h + r * hidden + at, *co = c_out + r * hidden + at;                                      \
            T i[PIECE], f[PIECE], g[PIECE], o[PIECE], t[PIECE];                                              \
            sigmoid_##name(m, i, x);                                                                         \
            sigmoid_##name(m, f, x + hidden);                                                                \
            td__vtanh_##name(m, g, x + 2 * hidden);                                                          \
            sigmoid_##name(m, o, x + 3 * hidden);                                                            \
            EACH_OF(m) t[k] = f[k] * cr[k] + i[k] * g[k];                                                    \
            memcpy(co, t, (size_t)m * sizeof(T));                                                            \
            td__vtanh_##name(m, t, t);                                                                       \
            EACH_OF(m) hr[k] = o[k] * t[k];                                                                  \
            if (act) {                                                                                       \
                T *a = act + r * 4 * hidden + at;                                                            \
                memcpy(a, i, (size_t)m * sizeof(T));                                                         \
                memcpy(a + hidden, f, (size_t)m * sizeof(T));                                                \
                memcpy(a + 2 * hidden, g, (size_t)m * sizeof(T));                                            \
                memcpy(a + 3 * hidden, o, (size_t)m * sizeof(T));                                            \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    /* with t = tanh(c'): dc = gc + gh * o * (1 - t^2) reaches i, f, g and c; gh * t reaches o */            \
    static void lstm_grad_##name(int64_t n, int64_t hidden, T *ggates, T *gc, const T *gh, const T *gc_out, const T *act, const T *c, \
                                 const T *c_out, bool add_gates, bool add_c)                                 \
    {                                                                                                        \
        PIECES(n, hidden) {                                                                                  \
            WHERE(hidden)                                                                                    \
            const int64_t row = r * hidden + at;                                                             \
            const T *i = act + 4 * r * hidden + at, *f = i + hidden, *g = f + hidden, *o = g + hidden;       \
            T t[PIECE], d[PIECE], q[PIECE];                                                                  \
            td__vtanh_##name(m, t, c_out + row);                                                             \
            EACH_OF(m) d[k] = gc_out ? gc_out[row + k] : 0;                                                  \
            if (gh)                                                                                          \
                EACH_OF(m) d[k] += gh[row + k] * o[k] * ((T)1 - t[k] * t[k]);                                \
            if (ggates) {                                                                                    \
                T *into = ggates + 4 * r * hidden + at;                                                      \
                EACH_OF(m) q[k] = d[k] * g[k] * i[k] * ((T)1 - i[k]);                                        \
                put_##name(m, into, q, add_gates);                                                           \
                EACH_OF(m) q[k] = d[k] * c[row + k] * f[k] * ((T)1 - f[k]);                                  \
                put_##name(m, into + hidden, q, add_gates);                                                  \
                EACH_OF(m) q[k] = d[k] * i[k] * ((T)1 - g[k] * g[k]);                                        \
                put_##name(m, into + 2 * hidden, q, add_gates);                                              \
                EACH_OF(m) q[k] = gh ? gh[row + k] * t[k] * o[k] * ((T)1 - o[k]) : 0;                        \
                put_##name(m, into + 3 * hidden, q, add_gates);                                              \
            }                                                                                                \
            if (gc) {                                                                                        \
                EACH_OF(m) q[k] = d[k] * f[k];                                                               \
                put_##name(m, gc + row, q, add_c);                                                           \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    static void gru_##name(int64_t n, int64_t hidden, T *out, T *act, const T *gi, const T *gh, const T *h)  \
    {                                                                                                        \
        PIECES(n, hidden) {                                                                                  \
            WHERE(hidden)                                                                                    \
            const T *x = gi + 3 * r * hidden + at, *y = gh + 3 * r * hidden + at, *hr = h + r * hidden + at; \
            T *to = out + r * hidden + at, reset[PIECE], z[PIECE], c[PIECE], t[PIECE];                       \
            EACH_OF(m) t[k] = x[k] + y[k];                                                                   \
            sigmoid_##name(m, reset, t);                                                                     \
            EACH_OF(m) t[k] = x[hidden + k] + y[hidden + k];                                                 \
            sigmoid_##name(m, z, t);                                                                         \
            EACH_OF(m) t[k] = x[2 * hidden + k] + reset[k] * y[2 * hidden + k];                              \
            td__vtanh_##name(m, c, t);                                                                       \
            EACH_OF(m) to[k] = c[k] + z[k] * (hr[k] - c[k]);                                                 \
            if (act) {                                                                                       \
                T *a = act + 4 * r * hidden + at;                                                            \
                memcpy(a, reset, (size_t)m * sizeof(T));                                                     \
                memcpy(a + hidden, z, (size_t)m * sizeof(T));                                                \
                memcpy(a + 2 * hidden, c, (size_t)m * sizeof(T));                                            \
                memcpy(a + 3 * hidden, y + 2 * hidden, (size_t)m * sizeof(T));                               \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    /* act: r, z, the candidate n, and gh's part of it */                                                    \
    static void gru_grad_##name(int64_t n, int64_t hidden, T *ggi, T *ggh, T *gprev, const T *g, const T *act, const T *h, bool add_gi, \
                                bool add_gh, bool add_h)                                                     \
    {                                                                                                        \
        PIECES(n, hidden) {                                                                                  \
            WHERE(hidden)                                                                                    \
            const int64_t row = r * hidden + at;                                                             \
            const T *reset = act + 4 * r * hidden + at, *z = reset + hidden, *c = z + hidden, *part = c + hidden; \
            T dc[PIECE], dr[PIECE], dz[PIECE];                                                               \
            EACH_OF(m) dc[k] = g[row + k] * ((T)1 - z[k]) * ((T)1 - c[k] * c[k]);                            \
            EACH_OF(m) dr[k] = dc[k] * part[k] * reset[k] * ((T)1 - reset[k]);                               \
            EACH_OF(m) dz[k] = g[row + k] * (h[row + k] - c[k]) * z[k] * ((T)1 - z[k]);                      \
            if (ggi) {                                                                                       \
                T *into = ggi + 3 * r * hidden + at;                                                         \
                put_##name(m, into, dr, add_gi);                                                             \
                put_##name(m, into + hidden, dz, add_gi);                                                    \
                put_##name(m, into + 2 * hidden, dc, add_gi);                                                \
            }                                                                                                \
            if (ggh) {                                                                                       \
                T *into = ggh + 3 * r * hidden + at;                                                         \
                put_##name(m, into, dr, add_gh);                                                             \
                put_##name(m, into + hidden, dz, add_gh);                                                    \
                EACH_OF(m) dc[k] *= reset[k];                                                                \
                put_##name(m, into + 2 * hidden, dc, add_gh);                                                \
            }                                                                                                \
            if (gprev) {                                                                                     \
                EACH_OF(m) dz[k] = g[row + k] * z[k];                                                        \
                put_##name(m, gprev + row, dz, add_h);                                                       \
            }                                                                                                \
        }                                                                                                    \
    }

#define PUT(T, name)                                                                                         \
    static void put_##name(int64_t m, T *restrict into, const T *restrict x, bool add)                       \
    {                                                                                                        \
        if (add)                                                                                             \
            EACH_OF(m) into[k] += x[k];                                                                      \
        else                                                                                                 \
            memcpy(into, x, (size_t)m * sizeof(T));                                                          \
    }
PUT(float, f32)
PUT(double, f64)
RNN(float, f32)
RNN(double, f64)

void K(lstm_cell)(td_dtype t, int64_t n, int64_t hidden, void *h, void *c_out, void *act, const void *gates, const void *c)
{
    if (t == TD_F32)
        lstm_f32(n, hidden, h, c_out, act, gates, c);
    else
        lstm_f64(n, hidden, h, c_out, act, gates, c);
}

void K(lstm_cell_grad)(td_dtype t, int64_t n, int64_t hidden, void *ggates, void *gc, const void *gh, const void *gc_out, const void *act,
                       const void *c, const void *c_out, bool add_gates, bool add_c)
{
    if (t == TD_F32)
        lstm_grad_f32(n, hidden, ggates, gc, gh, gc_out, act, c, c_out, add_gates, add_c);
    else
        lstm_grad_f64(n, hidden, ggates, gc, gh, gc_out, act, c, c_out, add_gates, add_c);
}

void K(gru_cell)(td_dtype t, int64_t n, int64_t hidden, void *out, void *act, const void *gi, const void *gh, const void *h)
{
    if (t == TD_F32)
        gru_f32(n, hidden, out, act, gi, gh, h);
    else
        gru_f64(n, hidden, out, act, gi, gh, h);
}

void K(gru_cell_grad)(td_dtype t, int64_t n, int64_t hidden, void *ggi, void *ggh, void *gprev, const void *g, const void *act, const void *h,
                      bool add_gi, bool add_gh, bool add_h)
{
    if (t == TD_F32)
        gru_grad_f32(n, hidden, ggi, ggh, gprev, g, act, h, add_gi, add_gh, add_h);
    else
        gru_grad_f64(n, hidden, ggi, ggh, gprev, g, act, h, add_gi, add_gh, add_h);
}
