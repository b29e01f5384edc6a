/* tensor/cpu/conv2d_winograd.c: 3x3 convolutions of many channels by Winograd's algorithm: 4 times fewer products (conv2d_winograd.h).
 *
 * A step of any of the three: tiles of the image become POINTS vectors of channels (V), at each point a matrix product over the channels, or for the
 * weights' gradient over the tiles, follows, and the products (M) become tiles of the result. All three lie as [point][block of LANES channels][tile][LANES],
 * so that products read broadcast values of one operand and vectors of the other from neighbouring places and sum nothing across lanes. The
 * transformed weights U lie as [point][strip of NB blocks][channel][NB*LANES].
 *
 * Two orders. Here: tiles are taken in chunks, bands of tile rows of one image or several whole images, whose V and M fit a core's second cache where
 * they can; U is made once per call. Where U is large, a strip of output channels after the other (conv2d_winograd_strips.h). A result is the same in
 * every chunk and in both orders (its sum runs over the channels in order) and so depends on neither threads nor batch; the weights' gradient
 * sums per chunk, and then its chunks depend on the shape alone.
 *
 * Which shapes: conv2d_by_tiles. It may look at nothing that differs between ranks, so not at the number of images.
 */
#include "cpu.h"
#include <omp.h>

/* Products may be fused with the addition of their results here (conv2d.c says why not elsewhere). */
#pragma GCC optimize("fp-contract=fast", "no-predictive-commoning")
#include "conv2d_lanes.h"
#include "conv2d_winograd.h"
#include "conv2d_winograd_tiles.h"
#include "conv2d_winograd_strips.h"

static int threads_for(const plan *p)
{
    return p->n * p->rows * p->cols * POINTS * p->c * p->o < PARALLEL || omp_in_parallel() ? 1 : omp_get_max_threads();
}

static void run(const plan *p, bool to_x, int threads, float *out, const float *x, const float *w, const float *bias, bool add)
{
    const int64_t u_point = weights_size(p), tiles = plan_tiles(p), v_size = POINTS * point_size(p->c_blocks, tiles),
                  m_size = POINTS * point_size(p->strips * NB, tiles), line = line_size(p, p->c), own = v_size + m_size + line, chunks = plan_chunks(p),
                  channels = p->c_blocks * LANES;
    float *u = td__alloc(sizeof(float) * (size_t)(POINTS * u_point + threads * own)), *spaces = u + POINTS * u_point;
    if (!u)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *v = spaces + omp_get_thread_num() % threads * own, *products_at = v + v_size, *mine = products_at + m_size;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < p->strips * NB; block++)
            weights(p, to_x, block, 0, channels, u + block / NB * channels * STRIP, u_point, mine, w);
        memset(mine, 0, sizeof(float) * (size_t)line);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < chunks; i++) {
            const chunk k = chunk_at(p, i);
            for (int64_t image = 0; image < k.images; image++)
                for (int64_t block = 0; block < p->c_blocks; block++)
                    image_tiles(p, &k, image, block, v, mine, x);
            for (int64_t point = 0; point < POINTS; point++)
                for (int64_t strip = 0; strip < p->strips; strip++)
                    products(products_at + point * point_size(p->strips * NB, k.tiles) + strip * NB * k.tiles * LANES,
                             u + point * u_point + strip * channels * STRIP, v + point * point_size(p->c_blocks, k.tiles), k.tiles, p->c_blocks, false);
            /* the pixels of the result take the frame's room, whose border is zeroed again */
            for (int64_t image = 0; image < k.images; image++)
                for (int64_t block = 0; block < up(p->o, LANES); block++)
                    output_tiles(p, &k, image, block, out, products_at + block * k.tiles * LANES, point_size(p->strips * NB, k.tiles), mine, bias, add);
            memset(mine, 0, sizeof(float) * (size_t)line);
        }
    }
    td__free(u);
}

static void run_weights(const plan *p, int threads, float *gw, const float *g, const float *x, bool add)
{
    const int64_t w_point = weights_size(p), tiles = plan_tiles(p), v_size = POINTS * point_size(p->c_blocks, tiles), blocks = p->strips * NB,
                  g_size = POINTS * point_size(blocks, tiles), line = line_size(p, p->c), chunks = plan_chunks(p);
    float *sums = td__alloc(sizeof(float) * (size_t)(POINTS * w_point + v_size + g_size + threads * 2 * line)), *v = sums + POINTS * w_point,
          *gv = v + v_size, *lines = gv + g_size;
    if (!sums)
        return;
    memset(sums, 0, sizeof(float) * (size_t)(POINTS * w_point));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = lines + omp_get_thread_num() % threads * 2 * line, *other = mine + line;   /* frames: of the image, of the gradient */
        memset(mine, 0, sizeof(float) * (size_t)(2 * line));
        for (int64_t i = 0; i < chunks; i++) {
            const chunk k = chunk_at(p, i);
#pragma omp for schedule(static)
            for (int64_t item = 0; item < k.images * (p->c_blocks + blocks); item++) {
                const int64_t image = item / (p->c_blocks + blocks), block = item % (p->c_blocks + blocks);
                if (block < p->c_blocks)
                    image_tiles(p, &k, image, block, v, mine, x);
                else
                    gradient_tiles(p, &k, image, block - p->c_blocks, gv, other, g);
            }
#pragma omp for schedule(static)
            for (int64_t item = 0; item < POINTS * p->strips; item++) {
                const int64_t point = item / p->strips, strip = item % p->strips;
                for (int64_t block = 0; block < p->c_blocks; block++)
                    summed(sums + point * w_point + (strip * p->c_blocks + block) * LANES * STRIP,
                           v + point * point_size(p->c_blocks, k.tiles) + block * k.tiles * LANES,
                           gv + point * point_size(blocks, k.tiles) + strip * NB * k.tiles * LANES, k.tiles * LANES, k.tiles, true);
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < up(p->o, LANES); block++)
            weights_gradient(p, block, 0, p->c, gw, sums + block / NB * p->c_blocks * LANES * STRIP, w_point, mine, add);
    }
    td__free(sums);
}

bool K(conv2d_by_tiles)(td_dtype t, const td_conv2d_shape *s)
{
    return t == TD_F32 && s->n > 0 && s->kh == 3 && s->kw == 3 && s->stride == 1 && s->dilation == 1 && s->groups == 1 && s->padding <= 2 &&
           s->c >= 16 && s->o >= 16 && s->oh >= 3 && s->ow >= 3 && s->oh == s->h + 2 * s->padding - 2 && s->ow == s->w + 2 * s->padding - 2 &&
           !td__conv_direct();
}

void K(conv2d_tiles)(const td_conv2d_shape *s, bool to_x, float *out, const float *in, const float *w, const float *bias, bool add)
{
    plan p = plan_new(s, to_x);
    const int threads = threads_for(&p);
    const int64_t share = up(p.n * p.rows * p.cols, threads), tile = POINTS * p.c_blocks * LANES * (int64_t)sizeof(float);
    if (by_strips(&p) && p.strips >= threads) {
        plan_cut(&p, ROOM / tile);
        run_strips(&p, to_x, threads, out, in, w, bias, add);
    } else {
        plan_cut(&p, smaller(tiles_wanted(&p, FEW), share));
        run(&p, to_x, threads, out, in, w, bias, add);
    }
}

void K(conv2d_tiles_weights)(const td_conv2d_shape *s, float *gw, const float *gout, const float *x, bool add)
{
    plan p = plan_new(s, false);
    plan_cut(&p, smaller(tiles_wanted(&p, FEW_SUMMED), p.n * p.rows * p.cols));
    (by_strips(&p) ? run_weights_strips : run_weights)(&p, threads_for(&p), gw, gout, x, add);
}
