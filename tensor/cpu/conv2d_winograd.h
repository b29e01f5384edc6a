/* tensor/cpu/conv2d_winograd.h: what Winograd's convolution does to a tile, for conv2d_winograd.c: lanes are channels throughout.
 *
 * F(4 x 4, 3 x 3): 16 outputs of a 3x3 window need 36 products per pair of channels, 2.25 per output, where the direct sum needs 9:
 *
 *     y = At ((G g Gt) * (Bt d B)) A          d: 6*6 of the image, g: the 3x3 weights, *: element by element, summed over the channels
 *     gradient of g = Gt ((A gy At) * (Bt d B)) G                                              summed over the tiles
 *
 * Bt d B is evaluated at 0, ±P, ±Q and infinity with P = 3/4, Q = 3/2. The usual 1 and 2 would round 1.7 times worse; these have exact squares. Every
 * one-dimensional step below works on whole vectors, first down the columns, then along the rows.
 */
enum { SIDE = 4, ALONG = SIDE + 2, POINTS = ALONG * ALONG };   /* outputs along a tile's side, points along it, points       */
#define P 0.75f
#define Q 1.5f
#define PP (P * P)
#define QQ (Q * Q)
#define NP (2 * PP * (PP - QQ))      /* what G's rows of ±P and ±Q are divided by                                            */
#define NQ (2 * QQ * (QQ - PP))

/* Bt: six of the image to points */
ALWAYS image_line(vec *t, const vec *x)
{
    const vec ep = x[4] - QQ * x[2], op = P * (x[3] - QQ * x[1]), eq = x[4] - PP * x[2], oq = Q * (x[3] - PP * x[1]);
    t[0] = (PP * QQ) * x[0] + (x[4] - (PP + QQ) * x[2]);
    t[1] = ep + op;
    t[2] = ep - op;
    t[3] = eq + oq;
    t[4] = eq - oq;
    t[5] = (PP * QQ) * x[1] + (x[5] - (PP + QQ) * x[3]);
}

/* G: three weights to points */
ALWAYS weight_line(vec *t, const vec *g)
{
    const vec ep = (1 / NP) * (g[0] + PP * g[2]), op = (P / NP) * g[1], eq = (1 / NQ) * (g[0] + QQ * g[2]), oq = (Q / NQ) * g[1];
    t[0] = (1 / (PP * QQ)) * g[0];
    t[1] = ep + op;
    t[2] = ep - op;
    t[3] = eq + oq;
    t[4] = eq - oq;
    t[5] = g[2];
}

/* At: points to outputs */
ALWAYS output_line(vec *y, const vec *t)
{
    const vec sp = t[1] + t[2], dp = t[1] - t[2];
    const vec sq = t[3] + t[4], dq = t[3] - t[4];
    y[0] = t[0] + (sp + sq);
    y[1] = P * dp + Q * dq;
    y[2] = PP * sp + QQ * sq;
    y[3] = (P * PP) * dp + ((Q * QQ) * dq + t[5]);
}

/* A: four of the output's gradient to points */
ALWAYS gradient_line(vec *t, const vec *g)
{
    const vec ep = g[0] + PP * g[2], op = P * (g[1] + PP * g[3]), eq = g[0] + QQ * g[2], oq = Q * (g[1] + QQ * g[3]);
    t[0] = g[0];
    t[1] = ep + op;
    t[2] = ep - op;
    t[3] = eq + oq;
    t[4] = eq - oq;
    t[5] = g[3];
}

/* Gt: points to three weights' gradients */
ALWAYS weight_gradient_line(vec *g, const vec *t)
{
    const vec sp = (1 / NP) * (t[1] + t[2]), dp = (P / NP) * (t[1] - t[2]), sq = (1 / NQ) * (t[3] + t[4]), dq = (Q / NQ) * (t[3] - t[4]);
    g[0] = (1 / (PP * QQ)) * t[0] + (sp + sq);
    g[1] = dp + dq;
    g[2] = PP * sp + (QQ * sq + t[5]);
}

/* Both directions: `from` n*n vectors in rows of `pitch` elements, one `step` elements after the other; LINE makes k of n. To to[(i*k + j) * apart]. */
#define BOTH(name, LINE, N, K)                                                                               \
    ALWAYS name(float *to, int64_t apart, const float *from, int64_t pitch, int64_t step)       \
    {                                                                                                        \
        enum { n = N, k = K };                                                                               \
        vec half[k][n];                                                                                      \
        _Pragma("GCC unroll 8") for (int j = 0; j < n; j++)                                                  \
        {                                                                                                    \
            vec in[n], out[k];                                                                               \
            _Pragma("GCC unroll 8") for (int i = 0; i < n; i++)                                              \
                in[i] = *(const vec_at *)(from + i * pitch + j * step);                                      \
            LINE(out, in);                                                                                \
            _Pragma("GCC unroll 8") for (int i = 0; i < k; i++)                                              \
                half[i][j] = out[i];                                                                         \
        }                                                                                                    \
        _Pragma("GCC unroll 8") for (int i = 0; i < k; i++)                                                  \
        {                                                                                                    \
            vec out[k];                                                                                      \
            LINE(out, half[i]);                                                                           \
            _Pragma("GCC unroll 8") for (int j = 0; j < k; j++)                                              \
                *(vec_at *)(to + (i * k + j) * apart) = out[j];                                              \
        }                                                                                                    \
    }
BOTH(image_tile, image_line, ALONG, ALONG)
BOTH(weight_tile, weight_line, 3, ALONG)
BOTH(output_tile, output_line, ALONG, SIDE)
BOTH(gradient_tile, gradient_line, SIDE, ALONG)
BOTH(weight_gradient_tile, weight_gradient_line, ALONG, 3)
#undef BOTH
#undef P
#undef Q
#undef PP
#undef QQ
#undef NP
#undef NQ
