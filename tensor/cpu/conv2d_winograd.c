/* tensor/cpu/conv2d_winograd.c: 3x3 convolutions of many channels by Winograd's algorithm: 2.25 or 4 times fewer products (conv2d_winograd.h).
 *
 * A step of any of the three: tiles of the image become `points` vectors of channels (V), at each point a matrix product over the channels, or for the
 * weights' gradient over the tiles, follows, and the products become tiles of the result. All three lie as [point][block of LANES channels][tile][LANES],
 * so that products read broadcast values of one operand and vectors of the other from neighbouring places and sum nothing across lanes. The
 * transformed weights U lie as [point][strip of NB blocks][channel][NB*LANES] and are made once per call, not per image.
 *
 * Tiles are taken in chunks: bands of tile rows of one image, or several whole images. A chunk's V and M fit a core's second cache where they can. A result
 * is the same in every chunk (its sum runs over the channels in order) and so depends on neither threads nor batch; the weights' gradient
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
enum {
    CACHE = 768 * 1024,              /* bytes of V and M that a core's second cache holds beside the rest                     */
    ROOM = 8 * 1024 * 1024,          /* of V and M, at most, where a chunk grows for U's sake                                */
    FEW = 56,                        /* tiles of a chunk, at least                                                           */
    FEW_SUMMED = 128,                /* the same where whole sums are read and written                                       */
    PARALLEL = 1 << 18,
};

/* One product of images with windows: in (n,c,h,w) with `pad` zeroes around to out (n,o,oh,ow). */
typedef struct {
    int m, points;                   /* outputs along a tile's side; a*a                                                     */
    int64_t n, c, h, w, o, oh, ow, pad;
    int64_t c_blocks, strips, rows, cols;      /* of LANES channels; of STRIP output channels; tiles                            */
    int64_t images, band;            /* of a chunk: whole images (then band == rows), or rows of tiles of one                 */
} plan;

static plan plan_new(const td_conv2d_shape *s, bool to_x)
{
    plan p = { .n = s->n, .c = s->c, .h = s->h, .w = s->w, .o = s->o, .oh = s->oh, .ow = s->ow, .pad = s->padding };
    if (to_x)
        p = (plan){ .n = s->n, .c = s->o, .h = s->oh, .w = s->ow, .o = s->c, .oh = s->h, .ow = s->w, .pad = 2 - s->padding };
    p.m = up(p.oh, 4) * up(p.ow, 4) >= 4 ? 4 : 2;
    p.points = (p.m + 2) * (p.m + 2);
    p.c_blocks = up(p.c, LANES);
    p.strips = up(p.o, STRIP);
    p.rows = up(p.oh, p.m);
    p.cols = up(p.ow, p.m);
    return p;
}

/* Cuts the tiles into chunks of about `few` tiles, or more: where V and M still fit the cache, or as many as make streaming U, which every chunk does,
 * cheap beside them. `share`: no larger than this many tiles. */
static void plan_cut(plan *p, int64_t few, int64_t share)
{
    const int64_t in = p->c_blocks * LANES, out = p->strips * STRIP, per_tile = p->points * (in + out) * (int64_t)sizeof(float);
    int64_t want = larger(larger(few, CACHE / per_tile), smaller(2 * in * out / (in + out), ROOM / per_tile));
    want = want > share ? share : want;
    p->images = want / (p->rows * p->cols);
    p->images = p->images > p->n ? p->n : p->images;
    p->band = p->rows;
    if (p->images == 0) {
        p->images = 1;
        p->band = up(p->rows, up(p->rows, want >= p->cols ? want / p->cols : 1));
    }
}

static int64_t plan_tiles(const plan *p)
{
    return p->images * p->band * p->cols;
}

static int64_t plan_chunks(const plan *p)
{
    return up(p->n, p->images) * up(p->rows, p->band);
}

typedef struct { int64_t image, images, row, rows, tiles; } chunk;

static chunk chunk_at(const plan *p, int64_t i)
{
    const int64_t bands = up(p->rows, p->band);
    chunk k = { .image = i / bands * p->images, .row = i % bands * p->band };
    k.images = p->n - k.image < p->images ? p->n - k.image : p->images;
    k.rows = p->rows - k.row < p->band ? p->rows - k.row : p->band;
    k.tiles = k.images * k.rows * p->cols;
    return k;
}

/* ---- tiles of an operand ---- */

/* Elements between two points of V, M or a gradient: one vector more, lest all lie in the same sets of a cache. */
static int64_t point_size(int64_t blocks, int64_t tiles)
{
    return (blocks * tiles + 1) * LANES;
}

static inline __attribute__((always_inline)) void image_tiles(const int m, const plan *p, const chunk *k, int64_t image, int64_t block, float *v, float *frame,
                                                              const float *x)
{
    const int64_t frame_cols = p->cols * m + 2, apart = point_size(p->c_blocks, k->tiles);
    float *to = v + (block * k->tiles + image * k->rows * p->cols) * LANES;
    place(frame, frame_cols, p->pad, x + ((k->image + image) * p->c + block * LANES) * p->h * p->w, p->c - block * LANES, p->h, p->w, k->row * m - p->pad,
          k->rows * m + 2);
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t c = 0; c < p->cols; c++, to += LANES)
            image_tile(m, to, apart, frame + (r * m * frame_cols + c * m) * LANES, frame_cols * LANES, LANES);
}

static inline __attribute__((always_inline)) void gradient_tiles(const int m, const plan *p, const chunk *k, int64_t image, int64_t block, float *v,
                                                                 float *frame, const float *g)
{
    const int64_t frame_cols = p->cols * m, apart = point_size(p->strips * NB, k->tiles);
    float *to = v + (block * k->tiles + image * k->rows * p->cols) * LANES;
    if (block * LANES >= p->o)       /* the last strip's blocks beyond the channels                                          */
        memset(frame, 0, sizeof(float) * (size_t)(k->rows * m * frame_cols * LANES));
    else
        place(frame, frame_cols, 0, g + ((k->image + image) * p->o + block * LANES) * p->oh * p->ow, p->o - block * LANES, p->oh, p->ow, k->row * m,
              k->rows * m);
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t c = 0; c < p->cols; c++, to += LANES)
            gradient_tile(m, to, apart, frame + (r * m * frame_cols + c * m) * LANES, frame_cols * LANES, LANES);
}

/* Products of a chunk to the pixels of one image and block; `line`: the band's pixels, [pixel][LANES] */
static inline __attribute__((always_inline)) void output_tiles(const int m, const plan *p, const chunk *k, int64_t image, int64_t block, float *out,
                                                               const float *products, float *line, const float *bias, bool add)
{
    const int64_t apart = point_size(p->strips * NB, k->tiles), top = k->row * m, rows = smaller(k->rows * m, p->oh - top), pixels = rows * p->ow;
    const float *from = products + (block * k->tiles + image * k->rows * p->cols) * LANES;
    for (int64_t r = 0; r < k->rows * m; r += m)
        for (int64_t c = 0; c < p->cols * m; c += m, from += LANES) {
            vec tile[4 * 4];
            output_tile(m, (float *)tile, LANES, from, (m + 2) * apart, apart);
            for (int64_t i = 0; i < m && r + i < rows; i++)
                for (int64_t j = 0; j < m && c + j < p->ow; j++)
                    *(vec_at *)(line + ((r + i) * p->ow + c + j) * LANES) = tile[i * m + j];
        }
    float *to = out + ((k->image + image) * p->o + block * LANES) * p->oh * p->ow + top * p->ow;
    for (int64_t q = 0; q < pixels; q += LANES) {
        vec v[LANES];
        for (int j = 0; j < LANES; j++)
            v[j] = *(const vec_at *)(line + (q + j) * LANES);
        store_turned(to, p->oh * p->ow, p->o - block * LANES, q, pixels, v, bias ? bias + block * LANES : NULL, add);
    }
}

/* ---- weights ---- */

static int64_t weights_size(const plan *p)   /* of U at one point                                                               */
{
    return (p->strips * p->c_blocks * LANES + 1) * STRIP;
}

/* The weights that one block of output channels shares with all inputs, [channel][3x3][LANES]: for the forward w (o,c,3,3) as it lies, for the gradient of
 * x with both channels exchanged and the window turned round (`to_x`: then the rows of w are this plan's inputs). */
static void weights_line(const plan *p, bool to_x, int64_t block, float *line, const float *w)
{
    const int64_t rows = smaller(p->o - block * LANES, LANES);
    if (!to_x) {
        for (int64_t e = 0; e < p->c * 9; e += LANES) {
            vec v[LANES];
            load_turned(v, w + block * LANES * p->c * 9, p->c * 9, rows, e, p->c * 9);
            for (int64_t j = 0; j < LANES && e + j < p->c * 9; j++)
                *(vec_at *)(line + (e + j) * LANES) = v[j];
        }
        return;
    }
    float few[LANES * 9 + LANES] = { 0 };
    for (int64_t c = 0; c < p->c; c++) {
        memcpy(few, w + (c * p->o + block * LANES) * 9, sizeof(float) * (size_t)(rows * 9));
        for (int e = 0; e < 9; e += LANES) {
            vec v[LANES];
            load_turned(v, few, 9, rows, e, e + LANES);
            for (int j = 0; j < LANES && e + j < 9; j++)
                *(vec_at *)(line + (c * 9 + 8 - e - j) * LANES) = v[j];
        }
    }
}

static inline __attribute__((always_inline)) void weights(const int m, const plan *p, bool to_x, int64_t block, float *u, float *line, const float *w)
{
    const int64_t apart = weights_size(p), size = p->c_blocks * LANES * STRIP;
    float *to = u + block / NB * size + block % NB * LANES;
    if (block * LANES >= p->o) {
        for (int64_t i = 0; i < p->points; i++)
            for (int64_t c = 0; c < p->c_blocks * LANES; c++)
                *(vec_at *)(to + i * apart + c * STRIP) = (vec){ 0 };
        return;
    }
    weights_line(p, to_x, block, line, w);
    for (int64_t c = 0; c < p->c; c++)
        weight_tile(m, to + c * STRIP, apart, line + c * 9 * LANES, 3 * LANES, LANES);
    for (int64_t i = 0; i < p->points; i++)
        for (int64_t c = p->c; c < p->c_blocks * LANES; c++)
            *(vec_at *)(to + i * apart + c * STRIP) = (vec){ 0 };
}

/* The sums at all points to the gradients of one block's weights (o,c,3,3) */
static inline __attribute__((always_inline)) void weights_gradient(const int m, const plan *p, int64_t block, float *gw, const float *sums, float *line, bool add)
{
    const float *from = sums + block / NB * p->c_blocks * LANES * STRIP + block % NB * LANES;
    const int64_t apart = weights_size(p);
    for (int64_t c = 0; c < p->c; c++)
        weight_gradient_tile(m, line + c * 9 * LANES, LANES, from + c * STRIP, (m + 2) * apart, apart);
    for (int64_t e = 0; e < p->c * 9; e += LANES) {
        vec v[LANES];
        for (int j = 0; j < LANES; j++)
            v[j] = *(const vec_at *)(line + (e + j) * LANES);
        store_turned(gw + block * LANES * p->c * 9, p->c * 9, p->o - block * LANES, e, p->c * 9, v, NULL, add);
    }
}

/* ---- the three ---- */

static int64_t line_size(const plan *p)      /* enough for a band's pixels, with or without a border, and for a block's weights */
{
    const int64_t pixels = (p->band * p->m + 2) * (p->cols * p->m + 2), weights = p->c * 9;
    return (larger(pixels, weights) + LANES) * LANES;
}

static int threads_for(const plan *p)
{
    return p->n * p->rows * p->cols * p->points * p->c * p->o < PARALLEL || omp_in_parallel() ? 1 : omp_get_max_threads();
}

static void run(const plan *p, bool to_x, int threads, float *out, const float *x, const float *w, const float *bias, bool add)
{
    const int64_t u_point = weights_size(p), tiles = plan_tiles(p), v_size = p->points * point_size(p->c_blocks, tiles),
                  m_size = p->points * point_size(p->strips * NB, tiles), line = line_size(p), own = v_size + m_size + line, chunks = plan_chunks(p);
    float *u = td__alloc(sizeof(float) * (size_t)(p->points * u_point + threads * own)), *spaces = u + p->points * u_point;
    if (!u)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *v = spaces + omp_get_thread_num() % threads * own, *products_at = v + v_size, *mine = products_at + m_size;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < p->strips * NB; block++)
            if (p->m == 4)
                weights(4, p, to_x, block, u, mine, w);
            else
                weights(2, p, to_x, block, u, mine, w);
        memset(mine, 0, sizeof(float) * (size_t)line);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < chunks; i++) {
            const chunk k = chunk_at(p, i);
            for (int64_t image = 0; image < k.images; image++)
                for (int64_t block = 0; block < p->c_blocks; block++)
                    if (p->m == 4)
                        image_tiles(4, p, &k, image, block, v, mine, x);
                    else
                        image_tiles(2, p, &k, image, block, v, mine, x);
            for (int64_t point = 0; point < p->points; point++)
                for (int64_t strip = 0; strip < p->strips; strip++)
                    products(products_at + point * point_size(p->strips * NB, k.tiles) + strip * NB * k.tiles * LANES,
                             u + point * u_point + strip * p->c_blocks * LANES * STRIP, v + point * point_size(p->c_blocks, k.tiles), k.tiles, p->c_blocks);
            /* the pixels of the result take the frame's room, whose border is zeroed again */
            for (int64_t image = 0; image < k.images; image++)
                for (int64_t block = 0; block < up(p->o, LANES); block++)
                    if (p->m == 4)
                        output_tiles(4, p, &k, image, block, out, products_at, mine, bias, add);
                    else
                        output_tiles(2, p, &k, image, block, out, products_at, mine, bias, add);
            memset(mine, 0, sizeof(float) * (size_t)line);
        }
    }
    td__free(u);
}

static void run_weights(const plan *p, int threads, float *gw, const float *g, const float *x, bool add)
{
    const int64_t w_point = weights_size(p), tiles = plan_tiles(p), v_size = p->points * point_size(p->c_blocks, tiles), blocks = p->strips * NB,
                  g_size = p->points * point_size(blocks, tiles), line = line_size(p), chunks = plan_chunks(p);
    float *sums = td__alloc(sizeof(float) * (size_t)(p->points * w_point + v_size + g_size + threads * 2 * line)), *v = sums + p->points * w_point,
          *gv = v + v_size, *lines = gv + g_size;
    if (!sums)
        return;
    memset(sums, 0, sizeof(float) * (size_t)(p->points * w_point));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = lines + omp_get_thread_num() % threads * 2 * line, *other = mine + line;   /* frames: of the image, of the gradient */
        memset(mine, 0, sizeof(float) * (size_t)(2 * line));
        for (int64_t i = 0; i < chunks; i++) {
            const chunk k = chunk_at(p, i);
#pragma omp for schedule(static)
            for (int64_t item = 0; item < k.images * (p->c_blocks + blocks); item++) {
                const int64_t image = item / (p->c_blocks + blocks), block = item % (p->c_blocks + blocks);
                if (block < p->c_blocks && p->m == 4)
                    image_tiles(4, p, &k, image, block, v, mine, x);
                else if (block < p->c_blocks)
                    image_tiles(2, p, &k, image, block, v, mine, x);
                else if (p->m == 4)
                    gradient_tiles(4, p, &k, image, block - p->c_blocks, gv, other, g);
                else
                    gradient_tiles(2, p, &k, image, block - p->c_blocks, gv, other, g);
            }
#pragma omp for schedule(static)
            for (int64_t item = 0; item < p->points * p->strips; item++) {
                const int64_t point = item / p->strips, strip = item % p->strips;
                for (int64_t block = 0; block < p->c_blocks; block++)
                    summed(sums + point * w_point + (strip * p->c_blocks + block) * LANES * STRIP,
                           v + point * point_size(p->c_blocks, k.tiles) + block * k.tiles * LANES,
                           gv + point * point_size(blocks, k.tiles) + strip * NB * k.tiles * LANES, k.tiles * LANES, k.tiles);
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < up(p->o, LANES); block++)
            if (p->m == 4)
                weights_gradient(4, p, block, gw, sums, mine, add);
            else
                weights_gradient(2, p, block, gw, sums, mine, add);
    }
    td__free(sums);
}

bool K(conv2d_by_tiles)(td_dtype t, const td_conv2d_shape *s)
{
    return t == TD_F32 && s->n > 0 && s->kh == 3 && s->kw == 3 && s->stride == 1 && s->dilation == 1 && s->groups == 1 && s->padding <= 2 &&
           s->c >= 16 && s->o >= 16 && s->oh >= 3 && s->ow >= 3 && s->oh == s->h + 2 * s->padding - 2 && s->ow == s->w + 2 * s->padding - 2 && !td__conv_direct();
}

void K(conv2d_tiles)(const td_conv2d_shape *s, bool to_x, float *out, const float *in, const float *w, const float *bias, bool add)
{
    plan p = plan_new(s, to_x);
    const int threads = threads_for(&p);
    plan_cut(&p, FEW, up(p.n * p.rows * p.cols, threads));
    run(&p, to_x, threads, out, in, w, bias, add);
}

void K(conv2d_tiles_weights)(const td_conv2d_shape *s, float *gw, const float *gout, const float *x, bool add)
{
    plan p = plan_new(s, false);
    plan_cut(&p, FEW_SUMMED, p.n * p.rows * p.cols);
    run_weights(&p, threads_for(&p), gw, gout, x, add);
}
